"""What the store tells: messages found, messages that arrived, and why it cannot be opened."""

from __future__ import annotations

from enum import Enum, auto

import msgspec


class FoundStatus(Enum):
    FOUND = auto()
    NO_MATCH = auto()  # messages there, none that the filter takes: go on at next_offset at once
    END = auto()  # the offset is the next one to come
    BEYOND = auto()  # the offset is past that
    BEFORE = auto()  # the offset is older than the oldest message kept
    EMPTY = auto()  # no such queue, or nothing was ever stored in it


class Found(msgspec.Struct, gc=False, kw_only=True):
    """An answer to `Store.get`. The three lists belong together; `next_offset` is where to go on."""

    status: FoundStatus
    next_offset: int
    min_offset: int
    max_offset: int
    #: as they stand in the commit log
    records: list[bytes] = []
    #: queue offsets
    offsets: list[int] = []
    #: log positions
    positions: list[int] = []


class Arrival(msgspec.Struct, gc=False):
    """A message that readers may see from now on."""

    topic: str
    queue_id: int
    queue_offset: int
    tags_code: int
    properties: bytes
    stored_ms: int


class StoreRefused(Exception):
    """The store directory cannot be opened as it is. The message names the file, the position and what to do."""
