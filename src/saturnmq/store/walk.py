"""Reading the log from front to back, believing nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from struct import Struct, error
from typing import TypeAlias
from zlib import crc32

from saturnmq.kernel.errors import ProtocolError
from saturnmq.kernel.message import COMPRESSED, MULTI_TAGS, TRANSACTION_MASK, TRANSACTION_ROLLBACK, StoredMessage
from saturnmq.store.commitlog import BLANK_BYTES, LogReader
from saturnmq.store.consumequeue import can_be_directory
from saturnmq.store.dispatch import is_queued
from saturnmq.wire.record import BLANK, MAGIC_BLANK, MAGIC_V1, MAGIC_V2, MIN_SIZE, decode

_CHUNK_BYTES = 4 << 20
#: what a disk writes whole
_SECTOR_BYTES = 512
_MAGICS = (MAGIC_V1, MAGIC_V2)
#: what changes nothing about a record's layout or its queue
_PLAIN_FLAGS = COMPRESSED | MULTI_TAGS | 0x700
#: no clock shows this; milliseconds
_LAST_MS = 1 << 48
_ANY_MAGIC = re.compile(b"|".join(re.escape(magic.to_bytes(4, "big")) for magic in _MAGICS))

#: log position, size, topic, queue id, queue offset, sysFlag, store time, properties
Row: TypeAlias = tuple[int, int, str, int, int, int, int, bytes]

#: size, magic, bodyCRC, queue id, queue offset, position, sysFlag, store time, length of the body (IPv4 hosts)
_HEAD = Struct(">IIIi4xqqI8x8xq8x12xi")
_HEAD_BYTES = _HEAD.size
_unpack_head = _HEAD.unpack_from


class Walk:
    """The records from `start` up to the first place that holds none; `end` is then that place and `reason` says why,
    or is empty where the log is blank. Behind `durable`, where a crash may have left half-written records, a record
    with lost sectors is none, even if no CRC covers them. After `resume` it goes on from `end`."""

    def __init__(
        self, reader: LogReader, start: int, limit: int, durable: int, chunk_bytes: int = _CHUNK_BYTES
    ) -> None:
        self._reader = reader
        self._chunk_bytes = chunk_bytes
        self._limit = limit
        self._durable = durable
        self.end = start
        self.reason = ""
        #: position and size of each record that says nothing (`repair`), as far as `rows` has come
        self.fillers: list[tuple[int, int]] = []
        self._blank = False
        #: bytes that the next chunk must have, for the record that was cut off in the last
        self._needed = 0

    def resume(self, position: int) -> None:
        """Go on there, with the next `iter`."""
        self.end, self.reason, self._blank, self._needed = position, "", False, 0

    def __iter__(self) -> Iterator[StoredMessage]:
        for chunk, start, file_end in self._chunks():
            while (record := self._next(chunk, self.end - start, file_end - self.end)) is not None:
                self.end += record.size
                yield record
                if self.end >= self._limit:
                    return

    def rows(self) -> Iterator[list[Row]]:
        """The same without bodies, many at a time: recovery's time is spent here."""
        for chunk, start, file_end in self._chunks():
            rows: list[Row] = []
            # what the fast lane takes ends before the limit, and stands where no crash has left half a record
            fast_end = min(self._limit, self._durable, file_end - BLANK_BYTES) - start
            while True:
                self.end = start + _take_plain(chunk, start, self.end - start, fast_end, rows)
                if self.end >= self._limit:
                    break
                record = self._next(chunk, self.end - start, file_end - self.end)
                if record is None:
                    break
                self.end += record.size
                rows.append(row_of(record))
                if record.sys_flag & TRANSACTION_MASK == TRANSACTION_ROLLBACK:
                    self.fillers.append((record.commit_log_offset, record.size))
            yield rows

    def _chunks(self) -> Iterator[tuple[bytes, int, int]]:
        """The log from `end` on: some bytes of one file, where they begin, and where the file ends."""
        file_size = self._reader.file_size
        while self.end < self._limit and not self._blank and not self.reason:
            start, rest = self.end, file_size - self.end % file_size
            chunk = self._reader.read(start, min(max(self._chunk_bytes, self._needed), rest))
            if len(chunk) < self._needed:
                self.reason = "the file ends there"
            yield chunk, start, start + rest

    def _next(self, chunk: bytes, at: int, rest: int) -> StoredMessage | None:
        """The record at this place of a chunk of one file. None: see `reason`, `_blank`, `_needed` or a new `end`."""
        self._needed = 0
        if self.reason:
            return None
        if len(chunk) - at < BLANK_BYTES:
            self._needed = BLANK_BYTES
            return None
        size, magic = BLANK.unpack_from(chunk, at)
        if magic == MAGIC_BLANK and size == rest:
            self.end += rest
        elif size == 0 and magic == 0:
            self._blank = True
        elif magic not in _MAGICS:
            self.reason = f"magic 0x{magic:08X} begins no record"
        elif not MIN_SIZE <= size <= rest - BLANK_BYTES:
            self.reason = f"a record of {size} bytes cannot stand there"
        elif len(chunk) - at < size:
            self._needed = size
        else:
            return self._check(chunk[at : at + size])
        return None

    def _check(self, data: bytes) -> StoredMessage | None:
        try:
            record = decode(data, check_crc=True)
        except ProtocolError as error:
            self.reason = str(error)
            return None
        if record.commit_log_offset != self.end:
            self.reason = f"the record there says that it stands at {record.commit_log_offset}"
        elif self.end >= self._durable and has_lost_sectors(record, data):
            self.reason = "the record there is half-written"
        else:
            self.reason = what_cannot_be(record)
            return None if self.reason else record
        return None


def row_of(record: StoredMessage) -> Row:
    return (
        record.commit_log_offset, record.size, record.topic, record.queue_id, record.queue_offset, record.sys_flag,
        record.stored_ms, record.properties,
    )  # fmt: skip


def _take_plain(chunk: bytes, start: int, at: int, end: int, rows: list[Row]) -> int:
    """Take rows of v1 records with IPv4 hosts from here on, as long as nothing is odd about them. Gives where the next
    one stands, for `Walk._next` to say what it is."""
    end = min(end, len(chunk))
    topics: dict[bytes, str] = {}
    while True:
        try:
            size, magic, crc, queue_id, offset, position, sys_flag, stored_ms, body = _unpack_head(chunk, at)
            body_at = at + _HEAD_BYTES
            topic_at = body_at + body
            next_at = at + size
            topic_end = topic_at + 1 + chunk[topic_at]
            properties_at = topic_end + 2
            if (
                magic != MAGIC_V1
                or sys_flag & ~_PLAIN_FLAGS
                or position != start + at
                or body < 0
                or next_at > end
                or properties_at + (chunk[topic_end] << 8 | chunk[topic_end + 1]) != next_at
                or crc32(chunk[body_at:topic_at]) & 0x7FFFFFFF != crc
                or not 0 < stored_ms < _LAST_MS
                or queue_id | offset < 0
            ):
                return at
            encoded = chunk[topic_at + 1 : topic_end]
            topic = topics.get(encoded)
            if topic is None:
                topic = topics[encoded] = _topic(encoded)
        except (error, IndexError, ValueError):
            return at
        rows.append((position, size, topic, queue_id, offset, sys_flag, stored_ms, chunk[properties_at:next_at]))
        at = next_at


@lru_cache(maxsize=65536)
def _topic(encoded: bytes) -> str:
    """Raises ValueError."""
    topic = encoded.decode()
    if not can_be_directory(topic):
        raise ValueError(topic)
    return topic


def what_cannot_be(record: StoredMessage) -> str:
    """What no broker has written, in fields that no CRC covers and that a server goes wrong with: nothing of this may
    name a directory, or set the clock."""
    if not 0 < record.stored_ms < _LAST_MS:
        return f"the record there says that it was stored at {record.stored_ms}"
    if is_queued(record.sys_flag):
        topic = record.topic
        if not can_be_directory(topic):
            return f"the record there names a topic {topic!r}"
        if record.queue_id < 0 or record.queue_offset < 0:
            return f"the record there has offset {record.queue_offset} of queue {record.queue_id}"
    return ""


def has_lost_sectors(record: StoredMessage, data: bytes) -> bool:
    """Whether topic or properties, which no CRC covers, have zeros that a write cut off by a power cut leaves: at the
    record's end, or over a whole sector. Text of clients has none there."""
    if "\0" in record.topic:
        return True
    properties = record.properties
    if b"\0" not in properties:
        return False
    if properties[-1] == 0:
        return True
    first = record.commit_log_offset + record.size - len(properties)
    sector = first + -first % _SECTOR_BYTES
    while sector < record.commit_log_offset + record.size:
        at = sector - record.commit_log_offset
        if not data[at : at + _SECTOR_BYTES].strip(b"\0"):
            return True
        sector += _SECTOR_BYTES
    return False


def find_next(reader: LogReader, damaged: int, limit: int, stored_ms: int) -> int | None:
    """Where the log goes on behind a record that is damaged: where that says that it ends, when something begins there,
    else at the next whole record (`find_record`), which may as well be the body of the damaged one."""
    head = reader.read(damaged, BLANK_BYTES)
    size: int
    magic: int
    size, magic = BLANK.unpack(head) if len(head) == BLANK_BYTES else (0, 0)
    rest = reader.file_size - damaged % reader.file_size
    if magic in _MAGICS and MIN_SIZE <= size <= rest - BLANK_BYTES:
        end = damaged + size
        is_blank = reader.read(end, BLANK_BYTES) == BLANK.pack(rest - size, MAGIC_BLANK)
        if end == limit or (end < limit and (is_blank or _is_record(reader, end, stored_ms))):
            return end
    return find_record(reader, damaged + min(MIN_SIZE, rest), limit, stored_ms)


def find_record(reader: LogReader, start: int, limit: int, stored_ms: int) -> int | None:
    """The position of the first whole record at or after `start` that was stored at `stored_ms` or later, if any.
    Older ones are remains of a log that was cut there before (Apache leaves them standing)."""
    position = start
    while position < limit:
        rest = reader.file_size - position % reader.file_size
        chunk = reader.read(position, min(_CHUNK_BYTES, rest))
        for magic in _ANY_MAGIC.finditer(chunk):
            found = position + magic.start() - 4
            if found >= start and _is_record(reader, found, stored_ms):
                return found
        # a magic across two chunks is found in the second, which begins 3 bytes before its place
        position += len(chunk) - 3 if len(chunk) == _CHUNK_BYTES < rest else rest
    return None


def _is_record(reader: LogReader, position: int, stored_ms: int) -> bool:
    size = int.from_bytes(reader.read(position, 4), "big")
    if not MIN_SIZE <= size <= reader.file_size - position % reader.file_size:
        return False
    try:
        record = decode(reader.read(position, size), check_crc=True)
    except ProtocolError:
        return False
    return record.commit_log_offset == position and record.stored_ms >= stored_ms
