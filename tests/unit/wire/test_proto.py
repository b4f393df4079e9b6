"""Our protos beside the official client's, in one process: the same interface, in another pool."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto

from saturnmq.wire.proto import POOL
from saturnmq.wire.proto import rocketmq_pb2 as pb

#: what apache/rocketmq-apis has and the client 5.1.2 does not know yet
NEWER = {"client_properties", "INVALID_CLIENT_PROPERTIES", "ClientPropertiesEntry"}

COMPARE = """
import sys
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
import saturnmq.wire.proto.rocketmq_pb2 as ours
from rocketmq.grpc_protocol import definition_pb2, service_pb2  # a second copy of the package, in the default pool
data = service_pb2.SendMessageRequest(messages=[definition_pb2.Message(body=b"x")]).SerializeToString()
assert ours.SendMessageRequest.FromString(data).messages[0].body == b"x"
assert ours.SendMessageRequest is not service_pb2.SendMessageRequest
pool = descriptor_pool.Default()
for name in ("definition.proto", "service.proto"):
    file = FileDescriptorProto()
    pool.FindFileByName(name).CopyToProto(file)
    sys.stdout.buffer.write(len(file.SerializeToString()).to_bytes(4, "big") + file.SerializeToString())
"""


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorProto:
    """The official client's interface. In a process of its own: importing the client sets up loggers and log files."""
    home = tmp_path_factory.mktemp("home")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(COMPARE)],
        env={"HOME": str(home), "PATH": ""},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    whole, data = FileDescriptorProto(), done.stdout
    while data:
        size = int.from_bytes(data[:4], "big")
        whole.MergeFrom(FileDescriptorProto.FromString(data[4 : 4 + size]))
        data = data[4 + size :]
    return whole


def fields(message: DescriptorProto) -> set[tuple[object, ...]]:
    found: set[tuple[object, ...]] = set()
    for field in message.field:
        oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
        if field.name not in NEWER:
            found.add(
                (field.name, field.number, field.type, field.label, field.type_name, field.proto3_optional, oneof)
            )
    return found


def values(enum: EnumDescriptorProto) -> set[tuple[str, int]]:
    return {(value.name, value.number) for value in enum.value if value.name not in NEWER}


def ours() -> FileDescriptorProto:
    file = FileDescriptorProto()
    POOL.FindFileByName("rocketmq.proto").CopyToProto(file)
    return file


def test_the_messages_are_the_official_ones(official: FileDescriptorProto) -> None:
    theirs = {message.name: message for message in official.message_type}
    mine = {message.name: message for message in ours().message_type}
    assert mine.keys() == theirs.keys()
    for name, message in mine.items():
        assert fields(message) == fields(theirs[name]), name
        nested = {enum.name: values(enum) for enum in message.enum_type}
        assert nested == {enum.name: values(enum) for enum in theirs[name].enum_type}, name


def test_the_enums_are_the_official_ones(official: FileDescriptorProto) -> None:
    theirs = {enum.name: values(enum) for enum in official.enum_type}
    assert {enum.name: values(enum) for enum in ours().enum_type} == theirs


def test_the_rpcs_are_the_official_ones(official: FileDescriptorProto) -> None:
    def rpcs(file: FileDescriptorProto) -> set[tuple[object, ...]]:
        (service,) = [service for service in file.service if service.name == "MessagingService"]
        return {
            (rpc.name, rpc.input_type, rpc.output_type, rpc.client_streaming, rpc.server_streaming)
            for rpc in service.method
        }

    assert rpcs(ours()) == rpcs(official)
    assert len(rpcs(official)) == 17


def test_the_default_pool_is_left_alone() -> None:
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindFileByName("rocketmq.proto")
    assert pb.Message.DESCRIPTOR.file.pool is POOL


def test_times_have_their_methods() -> None:
    settings = pb.Settings()
    settings.request_timeout.FromMilliseconds(1_500)
    assert settings.request_timeout.ToSeconds() == 1
    assert pb.Settings.FromString(settings.SerializeToString()).request_timeout.nanos == 500_000_000


def test_enums_have_names() -> None:
    assert pb.Code.Name(pb.TOPIC_NOT_FOUND) == "TOPIC_NOT_FOUND"
    assert pb.OK == pb.Code.OK == 20000
    assert pb.OffsetOption.MAX == 2


def test_what_is_committed_is_compiled_from_the_protos() -> None:
    """`make rewrite` was run: names and numbers of the sources are in the descriptors."""
    source = (Path(__file__).parents[3] / "src/saturnmq/wire/proto/rocketmq.proto").read_text()
    for message in ours().message_type:
        assert f"message {message.name} {{" in source
        for field in message.field:
            assert f" {field.name} = {field.number};" in source
    assert source.count("\nmessage ") == len(ours().message_type)
