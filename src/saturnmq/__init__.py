"""SaturnMQ: a RocketMQ 5 server in Python: NameServer, Broker and Proxy."""

__version__ = "0.1.0"
