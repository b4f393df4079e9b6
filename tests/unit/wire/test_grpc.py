"""Messages, time-outs and status of gRPC."""

from __future__ import annotations

import gzip
import random
import tracemalloc
from itertools import pairwise
from urllib.parse import unquote_to_bytes

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saturnmq.wire import grpc
from saturnmq.wire.grpc import GrpcError, GrpcStatus, MessageReader


def framed(message: bytes, compressed: int = 0) -> bytes:
    return bytes([compressed]) + len(message).to_bytes(4, "big") + message


def fields(block: bytes) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in hpack.Decoder().decode(block, raw=True)}


def status_of(body: bytes, limit_bytes: int = 1000, gzipped: bool = False) -> GrpcStatus:
    with pytest.raises(GrpcError) as raised:
        MessageReader(limit_bytes, limit_bytes, gzipped).feed(body)
    return raised.value.status


@given(st.lists(st.tuples(st.binary(max_size=300), st.booleans()), max_size=6), st.lists(st.integers(0, 2000)))
def test_any_split_of_a_body_gives_the_same_messages(messages: list[tuple[bytes, bool]], cuts: list[int]) -> None:
    body = b"".join(framed(gzip.compress(message), 1) if zipped else framed(message) for message, zipped in messages)
    reader = MessageReader(1000, 1000, is_gzip=True)
    got = []
    for start, end in pairwise(sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})):
        got += reader.feed(body[start:end])
    assert got == [message for message, _ in messages]
    assert reader.buffered_bytes == 0


@given(st.binary(max_size=100), st.booleans())
def test_any_body_raises_only_grpc_errors(body: bytes, gzipped: bool) -> None:
    reader = MessageReader(50, 50, gzipped)
    try:
        messages = reader.feed(body)
    except GrpcError:
        return
    assert all(len(message) <= 50 for message in messages)


def test_a_whole_message() -> None:
    assert grpc.whole_message(framed(b"abc")) == b"abc"
    assert grpc.whole_message(framed(b"")) == b""
    for other in (b"", b"\0\0\0", framed(b"abc")[:-1], framed(b"abc") + b"x", framed(b"abc", 1)):
        assert grpc.whole_message(other) is None


def test_bodies_that_are_wrong() -> None:
    assert status_of(framed(b"x", 1)) == GrpcStatus.INTERNAL
    assert status_of(framed(b"x", 2), gzipped=True) == GrpcStatus.INTERNAL
    assert status_of(framed(b"not gzip", 1), gzipped=True) == GrpcStatus.INTERNAL
    assert status_of(framed(gzip.compress(b"x")[:-4], 1), gzipped=True) == GrpcStatus.INTERNAL
    assert status_of(framed(gzip.compress(b"x") + b"y", 1), gzipped=True) == GrpcStatus.INTERNAL


def test_messages_over_the_limit() -> None:
    assert MessageReader(1000, 1000, is_gzip=True).feed(framed(bytes(1000))) == [bytes(1000)]
    assert MessageReader(1000, 1000, is_gzip=True).feed(framed(gzip.compress(bytes(1000)), 1)) == [bytes(1000)]
    assert status_of(b"\0\x7f\xff\xff\xff") == GrpcStatus.RESOURCE_EXHAUSTED  # nothing of it has come yet
    assert status_of(framed(bytes(1001))) == GrpcStatus.RESOURCE_EXHAUSTED
    assert status_of(framed(gzip.compress(bytes(10_000_000)), 1), 20_000, True) == GrpcStatus.RESOURCE_EXHAUSTED


def test_what_a_small_gzip_may_hold() -> None:
    """A body of zeros shrinks to a thousandth, so every message that may be sent may be sent so; no bomb may."""
    reader = MessageReader(1_000_000, 5000, is_gzip=True)
    assert reader.feed(framed(gzip.compress(bytes(5000)), 1)) == [bytes(5000)]
    dense = random.Random(1).randbytes(20_000) * 9
    assert len(gzip.compress(dense)) < len(dense) / 8
    assert reader.feed(framed(gzip.compress(dense), 1)) == [dense]
    with pytest.raises(GrpcError, match="a gzip of 40 bytes holds more than the 5000 bytes that it may") as raised:
        reader.feed(framed(gzip.compress(bytes(5001)), 1))
    assert raised.value.limit == "grpc_inflated_bytes"


def test_crumbs_cost_no_more_than_their_bytes() -> None:
    reader = MessageReader(1_000_000, 0, is_gzip=False)
    tracemalloc.start()
    body = framed(bytes(400_000))
    for start in range(0, len(body), 2):
        reader.feed(body[start : start + 2])
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2_000_000


@pytest.mark.parametrize(
    ("value", "milliseconds"),
    [(b"1H", 3_600_000), (b"2M", 120_000), (b"3S", 3000), (b"4m", 4), (b"5000u", 5), (b"1n", 1), (b"0m", 0)],
)
def test_timeouts(value: bytes, milliseconds: int) -> None:
    assert grpc.timeout_ms(value) == milliseconds


@pytest.mark.parametrize("value", [b"", b"S", b"1", b"1x", b"-1S", b"1.5S", b"123456789S", "١S".encode()])
def test_timeouts_that_are_none(value: bytes) -> None:
    with pytest.raises(GrpcError) as raised:
        grpc.timeout_ms(value)
    assert raised.value.status == GrpcStatus.INVALID_ARGUMENT


def test_content_types() -> None:
    assert all(map(grpc.is_grpc, [b"application/grpc", b"application/grpc+proto", b"application/grpc;charset=utf-8"]))
    assert not any(map(grpc.is_grpc, [b"", b"application/grpc-web", b"text/html", b"application/json"]))


def test_encodings() -> None:
    assert grpc.check_encoding(b"gzip")
    assert not grpc.check_encoding(b"identity")
    with pytest.raises(GrpcError, match=r"UNIMPLEMENTED: .*deflate"):
        grpc.check_encoding(b"deflate")


def test_blocks() -> None:
    assert fields(grpc.HEADERS_BLOCK) == {":status": "200", "content-type": "application/grpc"}
    assert fields(grpc.trailers_block(GrpcStatus.OK, "")) == {"grpc-status": "0"}
    assert fields(grpc.error_block(GrpcStatus.NOT_FOUND, "no such thing")) == {
        ":status": "200",
        "content-type": "application/grpc",
        "grpc-accept-encoding": "identity,gzip",
        "grpc-status": "5",
        "grpc-message": "no such thing",
    }


@given(st.text())
def test_messages_of_errors_are_percent_encoded(text: str) -> None:
    encoded = fields(grpc.trailers_block(GrpcStatus.UNKNOWN, text + "x"))["grpc-message"]
    assert encoded.isascii()
    assert encoded.isprintable()
    assert unquote_to_bytes(encoded) == (text + "x").encode("utf-8", "replace")


def test_long_messages_of_errors_are_cut() -> None:
    assert len(fields(grpc.trailers_block(GrpcStatus.UNKNOWN, "x" * 100_000))["grpc-message"]) == 4096
