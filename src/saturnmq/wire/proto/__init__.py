"""Protobuf messages of the gRPC interface, in a pool of our own.

The default pool accepts a package once in a process; the official Python client puts its own copy of
`apache.rocketmq.v2` there. With a private pool both live in one process, which tests and embedded servers need.
`rocketmq_pb2` and `reflection_v1_pb2` hold the messages; `descriptors` is compiled from the .proto files and
committed (scripts/compile_protos.py), so that nothing has to be compiled or opened at start.
"""

from __future__ import annotations

from base64 import b64decode
from typing import Any

from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message_factory import GetMessageClass

from saturnmq.wire.proto.descriptors import FILES

POOL = DescriptorPool()
for _file in FILES.values():
    POOL.AddSerializedFile(b64decode(_file))


def publish(file_name: str, namespace: dict[str, Any]) -> None:
    """Give a module what protoc would have written into it: message classes, enums and their values."""
    file = POOL.FindFileByName(file_name)
    for name, message in file.message_types_by_name.items():
        namespace[name] = GetMessageClass(message)
    for name, enum in file.enum_types_by_name.items():
        namespace[name] = EnumTypeWrapper(enum)
        namespace.update((value.name, value.number) for value in enum.values)
