"""HPACK, the compression of header fields (RFC 7541): a strict decoder, and an encoder that compresses nothing.

What a server of gRPC answers is a handful of constant blocks, so there is no dynamic table on the way out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from saturnmq.wire.http2 import huffman
from saturnmq.wire.http2.frames import ErrorCode, Http2Error

Field: TypeAlias = tuple[bytes, bytes]

#: an entry weighs its name, its value and this (section 4.1)
ENTRY_OVERHEAD_BYTES = 32
DEFAULT_TABLE_BYTES = 4096
#: seven bits each: nothing in a header block is near 2^28
MAX_INTEGER_BYTES = 4


def _fields(text: str) -> tuple[Field, ...]:
    return tuple((name.encode(), value.encode()) for name, _, value in (line.partition("=") for line in text.split()))


#: section 6.1: indices start at 1. Appendix A.
STATIC_TABLE: tuple[Field, ...] = (
    (b"", b""),
    *_fields(
        ":authority :method=GET :method=POST :path=/ :path=/index.html :scheme=http :scheme=https :status=200"
        " :status=204 :status=206 :status=304 :status=400 :status=404 :status=500 accept-charset"
    ),
    (b"accept-encoding", b"gzip, deflate"),
    *_fields(
        "accept-language accept-ranges accept access-control-allow-origin age allow authorization cache-control"
        " content-disposition content-encoding content-language content-length content-location content-range"
        " content-type cookie date etag expect expires from host if-match if-modified-since if-none-match if-range"
        " if-unmodified-since last-modified link location max-forwards proxy-authenticate proxy-authorization range"
        " referer refresh retry-after server set-cookie strict-transport-security transfer-encoding user-agent vary"
        " via www-authenticate"
    ),
)
STATIC_ENTRIES = len(STATIC_TABLE)
assert STATIC_ENTRIES == 62


class Decoder:
    """Header blocks of one connection, in order. Owner: its ServerConnection.

    A block must be decoded even when its request is refused: the next one builds on the table that it leaves behind.
    """

    __slots__ = ("_allowed_bytes", "_entries", "_must_update", "_table_bytes", "_used_bytes")

    def __init__(self) -> None:
        #: newest last: index 62 is [-1]
        self._entries: list[Field] = []
        self._used_bytes = 0
        self._table_bytes = DEFAULT_TABLE_BYTES
        self._allowed_bytes = DEFAULT_TABLE_BYTES
        self._must_update = False

    def allow(self, table_bytes: int) -> None:
        """The peer has acknowledged our SETTINGS_HEADER_TABLE_SIZE. A smaller one it must confirm (section 4.2)."""
        self._allowed_bytes = table_bytes
        self._must_update = table_bytes < self._table_bytes

    def decode(self, block: bytes) -> list[Field]:
        """The fields of one header block, in order. Raises Http2Error (COMPRESSION_ERROR)."""
        try:
            return self._decode(block)
        except IndexError:
            raise _error("a header block ends early or names an entry that the table does not have") from None

    def _decode(self, block: bytes) -> list[Field]:
        fields: list[Field] = []
        append = fields.append
        entries = self._entries
        end = len(block)
        position = self._table_updates(block) if self._must_update or (end and 0x20 <= block[0] < 0x40) else 0
        while position < end:
            byte = block[position]
            position += 1
            if byte >= 0x80:  # indexed field, section 6.1
                index = byte & 0x7F
                if index == 0x7F:
                    index, position = _integer(block, position, 0x7F)
                elif index == 0:
                    raise _error("index 0")
                append(STATIC_TABLE[index] if index < STATIC_ENTRIES else entries[STATIC_ENTRIES - 1 - index])
                continue
            if byte >= 0x40:  # literal that joins the table, section 6.2.1
                index, prefix = byte & 0x3F, 0x3F
            elif byte < 0x20:  # literal that does not, sections 6.2.2 and 6.2.3
                index, prefix = byte & 0x0F, 0x0F
            else:
                raise _error("a table size update inside a header block")
            if index == prefix:
                index, position = _integer(block, position, prefix)
            if index:
                name = (STATIC_TABLE[index] if index < STATIC_ENTRIES else entries[STATIC_ENTRIES - 1 - index])[0]
            else:
                name, position = _string(block, position)
            value, position = _string(block, position)
            field = name, value
            append(field)
            if prefix == 0x3F:
                entries.append(field)
                self._used_bytes += len(name) + len(value) + ENTRY_OVERHEAD_BYTES
                if self._used_bytes > self._table_bytes:
                    self._evict()
        return fields

    def _evict(self) -> None:
        """Section 4.4: the oldest leave first; an entry larger than the table empties it and is not kept."""
        entries = self._entries
        leaving = 0
        used = self._used_bytes
        while used > self._table_bytes:
            name, value = entries[leaving]
            used -= len(name) + len(value) + ENTRY_OVERHEAD_BYTES
            leaving += 1
        del entries[:leaving]
        self._used_bytes = used

    def _table_updates(self, block: bytes) -> int:
        """Section 6.3: updates stand before the first field. Returns where that is."""
        position = 0
        while position < len(block) and block[position] & 0xE0 == 0x20:
            size = block[position] & 0x1F
            position += 1
            if size == 0x1F:
                size, position = _integer(block, position, 0x1F)
            if size > self._allowed_bytes:
                raise _error(f"a table of {size} bytes, the limit is {self._allowed_bytes}")
            self._table_bytes = size
            self._must_update = False
            self._evict()
        if self._must_update:
            raise _error("no table size update after our setting became smaller")
        return position


def _integer(block: bytes, position: int, prefix: int) -> tuple[int, int]:
    """Section 5.1, the bytes after a full prefix. Returns the number and where it ends."""
    number = prefix
    for shift in range(0, 7 * MAX_INTEGER_BYTES, 7):
        byte = block[position]
        position += 1
        number += (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise _error("an integer is too large")


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    """Section 5.2. Returns the string and where it ends."""
    byte = block[position]
    position += 1
    length = byte & 0x7F
    if length == 0x7F:
        length, position = _integer(block, position, 0x7F)
    end = position + length
    if end > len(block):
        raise _error("a string is longer than its header block")
    string = block[position:end]
    return (huffman.decode(string) if byte & 0x80 else string), end


def _error(reason: str) -> Http2Error:
    return Http2Error(ErrorCode.COMPRESSION_ERROR, reason)


def encode(fields: Iterable[Field]) -> bytes:
    """A header block of literals that join no table (section 6.2.2), without Huffman. Names in lower case."""
    block = bytearray()
    for name, value in fields:
        block.append(0)
        _put_string(block, name)
        _put_string(block, value)
    return bytes(block)


def _put_string(block: bytearray, string: bytes) -> None:
    length = len(string)
    if length < 0x7F:
        block.append(length)
    else:
        block.append(0x7F)
        length -= 0x7F
        while length >= 0x80:
            block.append(length & 0x7F | 0x80)
            length >>= 7
        block.append(length)
    block += string
