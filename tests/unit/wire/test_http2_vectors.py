"""Bytes between the official Python client (grpcio) and Apache's Proxy (grpc-java), as they were recorded."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saturnmq.kernel.config import Limits
from saturnmq.wire.grpc import MessageReader
from saturnmq.wire.http2 import frames
from saturnmq.wire.http2.connection import DataReceived, RequestReceived, ServerConnection, StreamReset
from saturnmq.wire.http2.hpack import Decoder

VECTORS = Path(__file__).parents[2] / "vectors" / "http2"
FILES = sorted(VECTORS.glob("*.bin"))
REQUESTS = sorted(VECTORS.glob("*-requests.bin"))


def frames_of(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Kind, flags, stream, payload."""
    data = data.removeprefix(frames.PREFACE)
    while data:
        word, flags, stream_id = frames.HEADER.unpack_from(data)
        end = frames.HEADER_BYTES + (word >> 8)
        yield word & 0xFF, flags, stream_id, data[frames.HEADER_BYTES : end]
        data = data[end:]


def test_there_are_vectors() -> None:
    assert len(FILES) == 4
    assert len(REQUESTS) == 2


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_header_block_and_every_message_is_read(file: Path) -> None:
    decoder, oracle = Decoder(), hpack.Decoder()
    readers: dict[int, MessageReader] = {}
    blocks = 0
    for kind, flags, stream_id, payload in frames_of(file.read_bytes()):
        assert not flags & frames.PADDED
        if kind == frames.HEADERS:
            block = payload[5:] if flags & frames.PRIORITY_FIELDS else payload
            assert decoder.decode(block) == [tuple(field[:2]) for field in oracle.decode(block, raw=True)]
            blocks += 1
        elif kind == frames.DATA:
            readers.setdefault(stream_id, MessageReader(1 << 20, 1 << 20, is_gzip=False)).feed(payload)
    assert blocks > 5
    assert all(reader.buffered_bytes == 0 for reader in readers.values())


def said(data: bytes, cuts: list[int]) -> list[tuple[object, ...]]:
    """What a connection hears, however the bytes are cut: requests, bodies, resets."""
    connection = ServerConnection(Limits())
    heard: list[tuple[object, ...]] = []
    edges = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    for start, end in pairwise(edges):
        piece = data[start:end]
        while True:
            for event in connection.receive_data(piece, 0):
                if isinstance(event, RequestReceived):
                    heard.append(("request", event.stream.id, dict(event.stream.headers), event.ended))
                elif isinstance(event, DataReceived):
                    heard.append(("data", event.stream.id, event.data, event.ended))
                else:
                    assert isinstance(event, StreamReset)
                    heard.append(("reset", event.stream.id, event.code, event.fault))
            if not connection.more:
                break
            piece = b""
    return heard


WHOLE = {file: said(file.read_bytes(), []) for file in REQUESTS}


@pytest.mark.parametrize("file", REQUESTS, ids=lambda file: file.stem)
def test_requests_of_a_client(file: Path) -> None:
    heard = WHOLE[file]
    opened = [entry for entry in heard if entry[0] == "request"]
    assert [stream_id for _, stream_id, _, _ in opened] == list(range(1, 2 * len(opened), 2))
    for _, _, headers, ended in opened:
        assert isinstance(headers, dict)
        assert headers[b":path"].startswith(b"/apache.rocketmq.v2.MessagingService/")
        assert headers[b"x-mq-client-version"]
        assert not ended
    assert not any(entry[0] == "reset" and entry[3] for entry in heard), "nothing in it is a fault"


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(REQUESTS), st.lists(st.integers(0, 1 << 16), max_size=30))
def test_any_split_of_the_bytes_says_the_same(file: Path, cuts: list[int]) -> None:
    assert said(file.read_bytes(), cuts) == WHOLE[file]
