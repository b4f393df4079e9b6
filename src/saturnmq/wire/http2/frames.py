"""Frames of HTTP/2 (RFC 9113, sections 4, 6 and 7): numbers, the nine-byte header, and the errors that frames lead to.

length 24 | type 8 | flags 8 | reserved 1, stream id 31 | payload
"""

from __future__ import annotations

import struct
from enum import IntEnum

from saturnmq.kernel.errors import ProtocolError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

HEADER_BYTES = 9
#: length and type in one word, flags, stream id
HEADER = struct.Struct(">IBI")
#: the same, followed by one number of four bytes: RST_STREAM and WINDOW_UPDATE are nothing else
NUMBER = struct.Struct(">IBII")
SETTING = struct.Struct(">HI")

STREAM_ID_MASK = 0x7FFF_FFFF
MAX_WINDOW = 0x7FFF_FFFF
#: what a peer may send before it has seen our settings, and we before we have seen its
DEFAULT_WINDOW = 65_535
DEFAULT_FRAME_BYTES = 16_384
MAX_FRAME_BYTES = 0xFF_FFFF

# plain integers: an IntEnum costs three times as much where every frame is touched
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FIELDS = 0x20


class ErrorCode(IntEnum):
    """RFC 9113, section 7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class Setting(IntEnum):
    """RFC 9113, section 6.5.2."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


class Http2Error(ProtocolError):
    """The connection cannot go on; `code` is what GOAWAY says, `limit` names the field of Limits that was passed."""

    def __init__(self, code: ErrorCode, reason: str, limit: str = "") -> None:
        super().__init__(f"{code.name}: {reason}")
        self.code = code
        self.limit = limit


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def rst_stream(stream_id: int, code: int) -> bytes:
    return NUMBER.pack(4 << 8 | RST_STREAM, 0, stream_id, code)


def window_update(stream_id: int, increment: int) -> bytes:
    return NUMBER.pack(4 << 8 | WINDOW_UPDATE, 0, stream_id, increment)


def goaway(last_stream_id: int, code: int, reason: str = "") -> bytes:
    payload = last_stream_id.to_bytes(4, "big") + code.to_bytes(4, "big") + reason.encode()[:256]
    return frame(GOAWAY, 0, 0, payload)


def settings(values: dict[Setting, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(key, value) for key, value in values.items()))
