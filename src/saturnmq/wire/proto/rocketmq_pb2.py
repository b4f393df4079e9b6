"""The messages of rocketmq.proto; their types stand in rocketmq_pb2.pyi."""

from saturnmq.wire.proto import publish

publish("rocketmq.proto", globals())
