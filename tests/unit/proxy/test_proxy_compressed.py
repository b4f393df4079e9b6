"""Compressed bodies: every gRPC client must be able to read what any client compressed."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import lz4.frame
import pytest
import zstandard
from proxy_fakes import Grpc, found, popped, receive_request, stream

from saturnmq.kernel.message import COMPRESSED
from saturnmq.wire.proto import rocketmq_pb2 as pb

PLAIN = b"compressed " * 1000


def received(body: bytes) -> pb.Message:
    client = Grpc()
    client.broker.add_topic("t")
    client.broker.answers["pop"] = [found([popped(body=body, sys_flag=COMPRESSED)])]
    _, (message,) = stream(client.receive(receive_request()))
    return message


@pytest.mark.parametrize("compress", [zlib.compress, lz4.frame.compress, zstandard.compress])
def test_what_a_remoting_client_compressed_arrives_plain(compress: Callable[[bytes], bytes]) -> None:
    message = received(compress(PLAIN))
    assert message.body == PLAIN
    assert message.system_properties.body_encoding == pb.IDENTITY


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(gzip.compress(PLAIN), id="gzip"),
        pytest.param(zlib.compress(PLAIN)[:-5], id="cut off"),
        pytest.param(zlib.compress(bytes(5 << 20)), id="larger than any message"),
        pytest.param(lz4.frame.compress(PLAIN)[:-5], id="LZ4, cut off"),
        pytest.param(lz4.frame.compress(bytes(5 << 20)), id="LZ4, larger than any message"),
        pytest.param(b"\x04\x22\x4d\x18 not LZ4", id="LZ4, damaged"),
        pytest.param(zstandard.compress(PLAIN)[:-5], id="ZSTD, cut off"),
        pytest.param(zstandard.compress(bytes(5 << 20)), id="ZSTD, larger than any message"),
        pytest.param(b"\x28\xb5\x2f\xfd not ZSTD", id="ZSTD, damaged"),
        pytest.param(b"another algorithm", id="another algorithm"),
    ],
)
def test_anything_else_arrives_as_it_was_stored(body: bytes) -> None:
    message = received(body)
    assert message.body == body
    assert message.system_properties.body_encoding == pb.GZIP
