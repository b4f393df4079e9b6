"""One request and its response (RFC 9113, section 5.1), and the rules for its headers (section 8)."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from enum import IntEnum
from functools import lru_cache
from typing import Any

from saturnmq.wire.http2.hpack import ENTRY_OVERHEAD_BYTES, Field


class State(IntEnum):
    """Of a stream that we know. A stream that we do not know is idle (its id is yet to come) or closed.

    Half-closed (local) never lasts: with our END_STREAM goes a RST_STREAM when the peer has not ended (section 8.1).
    """

    OPEN = 0
    HALF_CLOSED_REMOTE = 1
    CLOSED = 2


class Move(IntEnum):
    """What can happen to a stream."""

    RECEIVE = 0
    RECEIVE_END = 1
    SEND = 2
    SEND_END = 3
    RESET = 4


#: rows: State; columns: Move; None: the peer may not (STREAM_CLOSED), or we have a bug
NEXT_STATE: tuple[tuple[State | None, ...], ...] = (
    (State.OPEN, State.HALF_CLOSED_REMOTE, State.OPEN, State.CLOSED, State.CLOSED),
    (None, None, State.HALF_CLOSED_REMOTE, State.CLOSED, State.CLOSED),
    (None, None, None, None, State.CLOSED),
)


class Stream:
    """Owner: ServerConnection; the shell keeps what it knows of the request in `owner`."""

    __slots__ = (
        "expected_bytes",
        "headers",
        "id",
        "outbox",
        "owner",
        "queued_bytes",
        "receive_window",
        "send_window",
        "state",
        "trailers",
    )

    def __init__(
        self, stream_id: int, headers: Mapping[bytes, bytes], state: State, receive_window: int, send_window: int
    ) -> None:
        self.id = stream_id
        #: pseudo-headers included; of a repeated field the last
        self.headers = headers
        self.state = state
        self.receive_window = receive_window
        self.send_window = send_window
        #: body bytes still to come by content-length, -1 where it is not given
        self.expected_bytes = -1
        #: body bytes that wait for a window
        self.outbox: deque[memoryview] | None = None
        self.queued_bytes = 0
        #: the block that ends the stream, once everything before it has left
        self.trailers: bytes | None = None
        self.owner: Any = None


class MalformedRequest(Exception):
    """A stream error of type PROTOCOL_ERROR (section 8.1.1); never leaves this package."""


class HeadersTooLarge(Exception):
    """The decoded headers are over the limit; never leaves this package."""


#: section 8.2.2
CONNECTION_SPECIFIC = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
REQUIRED = {b":method", b":scheme", b":path"}
PSEUDO_HEADERS = REQUIRED | {b":authority"}
#: more names than this are checked each time, so that nobody fills the cache with long lists
CACHED_NAMES = 64
#: section 8.2.1; the colon of a pseudo-header apart
NAME = re.compile(rb"[\x21-\x39\x3b-\x40\x5b-\x7e]+")


def request_headers(fields: list[Field], limit_bytes: int) -> dict[bytes, bytes]:
    """The fields as a mapping. Raises MalformedRequest or HeadersTooLarge.

    A client names the same fields in the same order again and again, so names are checked once for each sequence of
    them. White space around a value (section 8.2.1) is let pass: it does no harm behind this point.
    """
    if len(fields) > CACHED_NAMES:  # references of a byte each to an entry of 4 KiB
        size = sum(len(name) + len(value) + ENTRY_OVERHEAD_BYTES for name, value in fields)
        if size > limit_bytes:
            raise HeadersTooLarge(f"headers of {size} bytes, the limit is {limit_bytes}")
    headers = dict(fields)
    if len(headers) == len(fields):
        names = tuple(headers)
        values = b"".join(headers.values())
    else:
        names = tuple(name for name, _ in fields)
        values = b"".join(value for _, value in fields)
    size = (_check_names if len(names) <= CACHED_NAMES else _check_names.__wrapped__)(names) + len(values)
    if size > limit_bytes:
        raise HeadersTooLarge(f"headers of {size} bytes, the limit is {limit_bytes}")
    if b"\0" in values or b"\n" in values or b"\r" in values:
        raise MalformedRequest("a control character in a header")
    if not headers[b":path"]:
        raise MalformedRequest("an empty :path")
    if headers.get(b"te", b"trailers") != b"trailers":
        raise MalformedRequest("te is not trailers")
    return headers


def check_trailers(fields: list[Field]) -> None:
    """Raises MalformedRequest."""
    for name, _ in fields:
        if not NAME.fullmatch(name):
            raise MalformedRequest(f"{name!r} in trailers")


def content_length(value: bytes) -> int:
    """Raises MalformedRequest."""
    if not value.isdigit() or len(value) > 18:
        raise MalformedRequest("content-length is not a number")
    return int(value)


@lru_cache(maxsize=256)
def _check_names(names: tuple[bytes, ...]) -> int:
    """Raises MalformedRequest. Returns what the names add to the size of the list (section 6.5.2)."""
    pseudo = [name for name in names if name.startswith(b":")]
    if pseudo != list(names[: len(pseudo)]):
        raise MalformedRequest("a pseudo-header after a regular one")
    if len(set(pseudo)) != len(pseudo) or not REQUIRED <= set(pseudo) <= PSEUDO_HEADERS:
        raise MalformedRequest(f"pseudo-headers {b' '.join(pseudo)!r}")
    for name in names[len(pseudo) :]:
        if not NAME.fullmatch(name) or name in CONNECTION_SPECIFIC:
            raise MalformedRequest(f"header name {name!r}")
    return sum(map(len, names)) + ENTRY_OVERHEAD_BYTES * len(names)
