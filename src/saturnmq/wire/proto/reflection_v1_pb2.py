"""The messages of reflection_v1.proto; their types stand in reflection_v1_pb2.pyi."""

from saturnmq.wire.proto import publish

publish("reflection_v1.proto", globals())
