"""HPACK against the examples of RFC 7541, the `hpack` package, and peers that lie."""

from __future__ import annotations

import hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import given
from hypothesis import strategies as st

from saturnmq.wire.http2 import huffman
from saturnmq.wire.http2.frames import ErrorCode, Http2Error
from saturnmq.wire.http2.hpack import Decoder, Field, encode

oracle_huffman = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)

names = st.binary(min_size=1, max_size=40)
values = st.binary(max_size=200)
blocks = st.lists(
    st.tuples(st.lists(st.tuples(names, values), max_size=20), st.booleans(), st.integers(0, 4096)), max_size=8
)


def oracle_decode(decoder: hpack.Decoder, block: bytes) -> list[Field]:
    return [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]


def fault_of(*blocks_hex: str, allow: int | None = None) -> str:
    """Decode blocks in order; only the last may fail, and must."""
    decoder = Decoder()
    *before, last = [bytes.fromhex(text) for text in blocks_hex]
    for block in before:
        decoder.decode(block)
    if allow is not None:
        decoder.allow(allow)
    with pytest.raises(Http2Error) as raised:
        decoder.decode(last)
    assert raised.value.code == ErrorCode.COMPRESSION_ERROR
    return str(raised.value)


def test_examples_of_appendix_c4() -> None:
    decoder = Decoder()
    first = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"www.example.com")]
    assert decoder.decode(bytes.fromhex("828684418cf1e3c2e5f23a6ba0ab90f4ff")) == first
    assert decoder.decode(bytes.fromhex("828684be5886a8eb10649cbf")) == [*first, (b"cache-control", b"no-cache")]
    assert decoder.decode(bytes.fromhex("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf")) == [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":path", b"/index.html"),
        (b":authority", b"www.example.com"),
        (b"custom-key", b"custom-value"),
    ]


@given(blocks, st.booleans())
def test_what_the_oracle_encodes_is_decoded(requests: list[tuple[list[Field], bool, int]], without_index: bool) -> None:
    encoder = hpack.Encoder()
    decoder = Decoder()
    for fields, use_huffman, table_bytes in requests:
        encoder.header_table_size = table_bytes
        headers = [hpack.NeverIndexedHeaderTuple(*field) if without_index else field for field in fields]
        assert decoder.decode(encoder.encode(headers, huffman=use_huffman)) == fields


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_any_bytes_are_decoded_as_the_oracle_does_or_refused(garbage: list[bytes]) -> None:
    decoder, oracle = Decoder(), hpack.Decoder()
    for block in garbage:
        try:
            fields = decoder.decode(block)
        except Http2Error:
            return
        assert fields == oracle_decode(oracle, block)


@given(st.lists(st.tuples(names, values)))
def test_our_blocks_are_read_by_the_oracle(fields: list[Field]) -> None:
    assert oracle_decode(hpack.Decoder(), encode(fields)) == fields


@given(st.binary(max_size=300))
def test_huffman_as_the_oracle_encodes_it(text: bytes) -> None:
    assert huffman.decode(oracle_huffman.encode(text)) == text


def test_huffman_of_every_symbol() -> None:
    text = bytes(range(256)) * 3
    assert huffman.decode(oracle_huffman.encode(text)) == text


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        ("ff", "padding"),  # eight ones
        ("1fff", "padding"),  # `a`, then eleven ones
        ("18", "padding"),  # `a`, then zeros
        ("fffffffc", "end-of-string"),
        ("fffffffffffffffffc", "end-of-string"),
    ],
)
def test_huffman_that_is_wrong(encoded: str, reason: str) -> None:
    for _ in range(2):  # learnt, then known
        with pytest.raises(Http2Error, match=reason):
            huffman.decode(bytes.fromhex(encoded))


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("80", "index 0"),
        ("be", "does not have"),  # 62: the table is empty
        ("ff00", "does not have"),
        ("ffffffffffff7f", "too large"),
        ("ff", "ends early"),
        ("40", "ends early"),
        ("400161", "ends early"),
        ("4001610561", "longer than"),
        ("7e0161", "does not have"),
        ("8220", "inside a header block"),
        ("3fe21f", "4097 bytes, the limit is 4096"),
    ],
)
def test_blocks_that_are_wrong(block: str, reason: str) -> None:
    assert reason in fault_of(block)


def test_a_smaller_table_must_be_confirmed() -> None:
    assert "no table size update" in fault_of("82", "82", allow=100)
    decoder = Decoder()
    decoder.decode(bytes.fromhex("40 01 61 01 62"))
    decoder.allow(100)
    assert decoder.decode(bytes.fromhex("20 3f45 82")) == [(b":method", b"GET")]
    with pytest.raises(Http2Error, match="does not have"):  # the update to 0 emptied the table
        decoder.decode(bytes.fromhex("be"))


def test_an_entry_larger_than_the_table_empties_it() -> None:
    decoder = Decoder()
    decoder.decode(bytes.fromhex("40 01 61 01 62"))
    large = b"x" * 5000
    assert decoder.decode(b"\x40\x01c\x7f" + bytes([0x89, 0x26]) + large) == [(b"c", large)]
    with pytest.raises(Http2Error, match="does not have"):
        decoder.decode(bytes.fromhex("be"))
