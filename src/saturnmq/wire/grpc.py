"""gRPC over HTTP/2 (doc/PROTOCOL-HTTP2.md of grpc/grpc): messages in the body, the status in the trailers.

message: compressed 8 (0 or 1) | length 32 | that many bytes
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum

from saturnmq.wire.http2 import hpack

PREFIX = struct.Struct(">BI")
PREFIX_BYTES = PREFIX.size

CONTENT_TYPE = b"application/grpc"
#: a longer grpc-message is cut: clients bound the headers that they take
MAX_STATUS_MESSAGE_BYTES = 4096
#: gzip with its header and check sum
GZIP_WINDOW_BITS = 16 + zlib.MAX_WBITS
#: how many times larger than its gzip a message may be, beyond what any message may hold
MAX_INFLATION = 10

_TIMEOUT_UNITS_NS = {
    ord("H"): 3_600_000_000_000,
    ord("M"): 60_000_000_000,
    ord("S"): 1_000_000_000,
    ord("m"): 1_000_000,
    ord("u"): 1_000,
    ord("n"): 1,
}


class GrpcStatus(IntEnum):
    """doc/statuscodes.md of grpc/grpc."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class GrpcError(Exception):
    """A call that ends with a status other than OK. The connection survives.

    `limit` names the field of Limits that was passed.
    """

    def __init__(self, status: GrpcStatus, message: str, limit: str = "") -> None:
        super().__init__(f"{status.name}: {message}")
        self.status = status
        self.message = message
        self.limit = limit


HEADERS_BLOCK = b"\x88" + hpack.encode([(b"content-type", CONTENT_TYPE)])
OK_TRAILERS_BLOCK = hpack.encode([(b"grpc-status", b"0")])
#: the answer to something that is HTTP/2 but not gRPC
NOT_GRPC_BLOCK = hpack.encode([(b":status", b"415"), (b"content-type", b"text/plain")])
NOT_GRPC_TEXT = b"This port speaks gRPC: POST with content-type application/grpc.\n"
_ACCEPTED_ENCODINGS = hpack.encode([(b"grpc-accept-encoding", b"identity,gzip")])


def trailers_block(status: GrpcStatus, message: str) -> bytes:
    """The header block that ends a call after its headers were sent."""
    if status == GrpcStatus.OK and not message:
        return OK_TRAILERS_BLOCK
    fields = [(b"grpc-status", b"%d" % status)]
    if message:
        fields.append((b"grpc-message", _percent_encode(message)))
    return hpack.encode(fields)


def error_block(status: GrpcStatus, message: str) -> bytes:
    """The header block that is a whole answer (`Trailers-Only`)."""
    return HEADERS_BLOCK + _ACCEPTED_ENCODINGS + trailers_block(status, message)


def _percent_encode(message: str) -> bytes:
    """Printable ASCII as it is, all else as %XX of its UTF-8."""
    encoded = bytearray()
    for byte in message.encode("utf-8", "replace")[:MAX_STATUS_MESSAGE_BYTES]:
        if 0x20 <= byte <= 0x7E and byte != 0x25:
            encoded.append(byte)
        else:
            encoded += b"%%%02X" % byte
    return bytes(encoded)


def is_grpc(content_type: bytes) -> bool:
    """`application/grpc`, `application/grpc+proto`, `application/grpc;…`; not `application/grpc-web`."""
    return content_type == CONTENT_TYPE or content_type.startswith((CONTENT_TYPE + b"+", CONTENT_TYPE + b";"))


def timeout_ms(value: bytes) -> int:
    """A grpc-timeout, rounded up to milliseconds. Raises GrpcError (INVALID_ARGUMENT)."""
    digits = value[:-1]
    unit_ns = _TIMEOUT_UNITS_NS.get(value[-1]) if value else None
    if unit_ns is None or not digits.isdigit() or len(digits) > 8:
        raise GrpcError(
            GrpcStatus.INVALID_ARGUMENT, f"grpc-timeout {value!r} is not up to 8 digits and one of H M S m u n"
        )
    return -(-int(digits) * unit_ns // 1_000_000)


def check_encoding(encoding: bytes) -> bool:
    """Whether messages with the compressed flag are gzip. Raises GrpcError (UNIMPLEMENTED)."""
    if encoding not in (b"gzip", b"identity"):
        raise GrpcError(
            GrpcStatus.UNIMPLEMENTED, f"grpc-encoding {encoding.decode(errors='replace')!r} is not identity or gzip"
        )
    return encoding == b"gzip"


def whole_message(data: bytes) -> bytes | None:
    """The message when `data` is exactly one, uncompressed. Almost always it is: nothing has to be collected."""
    if (
        len(data) >= PREFIX_BYTES
        and data[0] == 0
        and int.from_bytes(data[1:PREFIX_BYTES], "big") == len(data) - PREFIX_BYTES
    ):
        return data[PREFIX_BYTES:]
    return None


class MessageReader:
    """Pieces of a body in, messages out. Owner: the call.

    Raises GrpcError: RESOURCE_EXHAUSTED for a message over the limit (told from its length, before it is collected),
    INTERNAL for one that cannot be decoded.
    """

    __slots__ = ("_buffer", "_inflated_bytes", "_limit_bytes", "_needed_bytes", "is_gzip")

    def __init__(self, limit_bytes: int, inflated_bytes: int, is_gzip: bool) -> None:
        """A message may have `limit_bytes`; one that grows by more than MAX_INFLATION, `inflated_bytes`."""
        self._limit_bytes = limit_bytes
        self._inflated_bytes = inflated_bytes
        self.is_gzip = is_gzip
        self._buffer = bytearray()
        #: nothing to look at before so many bytes are there
        self._needed_bytes = PREFIX_BYTES

    @property
    def buffered_bytes(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are complete now."""
        buffer = self._buffer
        buffer += data
        messages: list[bytes] = []
        if len(buffer) < self._needed_bytes:
            return messages
        position = 0
        with memoryview(buffer) as view:
            while True:
                self._needed_bytes = PREFIX_BYTES
                if len(view) - position < PREFIX_BYTES:
                    break
                compressed, length = PREFIX.unpack_from(view, position)
                self._check_prefix(compressed, length)
                start = position + PREFIX_BYTES
                self._needed_bytes = PREFIX_BYTES + length
                if len(view) - start < length:
                    break
                position = start + length
                message = bytes(view[start:position])
                messages.append(self._inflate(message) if compressed else message)
        del buffer[:position]
        return messages

    def _check_prefix(self, compressed: int, length: int) -> None:
        if compressed > 1:
            raise GrpcError(GrpcStatus.INTERNAL, f"the compressed flag of a message is {compressed}")
        if compressed and not self.is_gzip:
            raise GrpcError(GrpcStatus.INTERNAL, "a compressed message without grpc-encoding")
        if length > self._limit_bytes:
            raise GrpcError(
                GrpcStatus.RESOURCE_EXHAUSTED,
                f"a message of {length} bytes; this server takes up to {self._limit_bytes} bytes",
                "grpc_message_bytes",
            )

    def _inflate(self, data: bytes) -> bytes:
        limit = min(max(self._inflated_bytes, len(data) * MAX_INFLATION), self._limit_bytes)
        inflater = zlib.decompressobj(GZIP_WINDOW_BITS)
        try:
            message = inflater.decompress(data, limit + 1)
        except zlib.error as error:
            raise GrpcError(GrpcStatus.INTERNAL, f"the message is not gzip: {error}") from None
        if len(message) > limit:
            raise GrpcError(
                GrpcStatus.RESOURCE_EXHAUSTED,
                f"a gzip of {len(data)} bytes holds more than the {limit} bytes that it may",
                "grpc_inflated_bytes",
            )
        if not inflater.eof or inflater.unused_data:
            raise GrpcError(GrpcStatus.INTERNAL, "the gzip of a message is incomplete or followed by something else")
        return message
