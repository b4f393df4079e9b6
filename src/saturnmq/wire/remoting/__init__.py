"""The Remoting protocol of 4.x clients, brokers and tools: frames, headers, bodies, the JSON dialect.

Source of the format: remoting/protocol/RemotingCommand.java, RocketMQSerializable.java; /docs/compatibility.md.
"""
