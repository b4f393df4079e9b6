"""What every room may know: the nouns of the protocol, the ports between rooms, errors, limits and time.

Nothing here opens a socket or a file, reads a clock or draws a random number.
"""
