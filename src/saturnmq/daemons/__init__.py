"""The composition root: builds the processes from their rooms. The only room that knows Broker and Proxy.

`options` is what the command line said, `processes` what is opened and closed in which order, `life` the way of every
process from its first line to its last, `banner` what people read.
"""
