"""Looking things up in queues and log. The same code runs inline over what is in memory and, when that is not enough
(`Cold`), once more in a thread that may wait for the disk."""

from __future__ import annotations

import logging
import struct
from collections.abc import Sequence
from struct import Struct
from typing import Protocol
from zlib import crc32

from saturnmq.disk.openfiles import OpenFiles
from saturnmq.disk.port import Buffer
from saturnmq.kernel.errors import ProtocolError
from saturnmq.kernel.message import BORN_HOST_V6, STORE_HOST_V6, TRANSACTION_MASK, TRANSACTION_ROLLBACK
from saturnmq.kernel.ports import Boundary
from saturnmq.kernel.subscription import Matches
from saturnmq.store.commitlog import BLANK_BYTES, CommitLog, LogReader
from saturnmq.store.consumequeue import ENTRY, ENTRY_BYTES, FILLER_SIZE, ConsumeQueue, QueueFiles
from saturnmq.store.walk import Walk, find_record
from saturnmq.wire.record import BLANK, MAGIC_V1, MAGIC_V2, MIN_SIZE, decode, properties_of

log = logging.getLogger(__name__)

#: records with no more than this between them are read with one call
_GAP_BYTES = 16 * 1024
#: at most so much at once
_RUN_BYTES = 1 << 20
#: of the log, where a record is looked for whose queue entry is damaged
_SEARCH_BYTES = 64 << 20
#: entries on each side that may be damaged too
_NEIGHBOURS = 100
#: a queue of such a name holds messages that are stored in others
_LMQ_PREFIX = "%LMQ%"
#: entries that one `find_messages` looks at when a filter takes few of them (maxFilterMessageSize 16000)
_FILTERED_ENTRIES = 800
#: and when it has to read each message to know, which takes some microseconds; bytes of them, and messages at once
_MATCHED_ENTRIES, _MATCHED_BYTES, _MATCHED_AT_ONCE = 256, 2 << 20, 32

_SIZE_AND_POSITION = Struct(">I24xq")
_size_and_position = _SIZE_AND_POSITION.unpack_from
#: size, magic, bodyCRC, position, sysFlag, length of the body (IPv4 hosts)
_HEAD = Struct(">III16xqI44xi")
_unpack_head = _HEAD.unpack_from
#: magic, queue id, queue offset, sysFlag, length of the body (IPv4 hosts)
_unpack_place = Struct(">4xI4xi4xq8xI44xi").unpack_from
_STORED_HEAD = Struct(">36xI8x8xq4xq")
_HEAD_BYTES = 76


class Cold(Exception):
    """What should be read is not in memory, and this reader must not wait."""


class Reader(Protocol):
    """Reads the log, and the entries of one queue."""

    def log(self, position: int, size: int) -> Buffer: ...

    def entries(self, queue: ConsumeQueue, offset: int, count: int) -> Buffer:
        """Up to `count` entries, at least one; the caller asks only for what is there."""
        ...

    def holds(self, position: int, size: int) -> bool:
        """Whether the log can have a record of that size there."""
        ...

    def search(self, queue: ConsumeQueue, offset: int) -> bytes | None:
        """The record of that offset, whose entry does not lead to it."""
        ...


class HotReader:
    """Reads memory only, raises Cold. For the event loop."""

    def __init__(self, log: CommitLog, files: QueueFiles, open_files: OpenFiles) -> None:
        self._log, self._files, self._open_files = log, files, open_files

    def log(self, position: int, size: int) -> Buffer:
        view = self._open_files.get(self._log.path(position)).try_pread(size, position % self._log.file_size)
        if view is None:
            raise Cold
        return view

    def entries(self, queue: ConsumeQueue, offset: int, count: int) -> Buffer:
        at = offset - queue.tail_offset
        if at >= 0:
            return bytes(queue.tail[at * ENTRY_BYTES : (at + count) * ENTRY_BYTES])
        files = self._files
        count = min(count, -at, files.per_file - offset % files.per_file)
        view = self._open_files.get(files.path(queue, offset)).try_pread(count * ENTRY_BYTES, files.place(offset))
        if view is None:
            raise Cold
        return view

    def holds(self, position: int, size: int) -> bool:
        return _holds(self._log, self._log.first, self._log.written, position, size)

    def search(self, queue: ConsumeQueue, offset: int) -> bytes | None:
        raise Cold


class ColdReader:
    """Waits for the disk. For one use in a thread: made on the event loop, it keeps a queue's tail as it is then."""

    def __init__(self, log: CommitLog, files: QueueFiles, queue: ConsumeQueue | None) -> None:
        self._log, self._files = log, files
        self._first, self._end = log.first, log.written
        self._low, self._high = (queue.min_offset, queue.max_offset) if queue is not None else (0, 0)
        self._tail_offset, self._tail = (queue.tail_offset, bytes(queue.tail)) if queue is not None else (0, b"")

    def log(self, position: int, size: int) -> Buffer:
        return self._log.read(position, size)

    def entries(self, queue: ConsumeQueue, offset: int, count: int) -> Buffer:
        at = offset - self._tail_offset
        if at >= 0:
            return self._tail[at * ENTRY_BYTES : (at + count) * ENTRY_BYTES]
        return self._files.read(queue, offset, min(count, -at))

    def holds(self, position: int, size: int) -> bool:
        return _holds(self._log, self._first, self._end, position, size)

    def search(self, queue: ConsumeQueue, offset: int) -> bytes | None:
        """It stands between its neighbours of the same queue; looked for in _SEARCH_BYTES. The one that the entry leads
        to is it too when it stands there: Apache numbers a queue's entries anew when it makes them over a gap."""
        before = self._neighbour(queue, range(offset - 1, max(self._low, offset - _NEIGHBOURS) - 1, -1))
        behind = self._neighbour(queue, range(offset + 1, min(self._high, offset + _NEIGHBOURS)))
        low = self._first if before is None else sum(before)
        high = self._end if behind is None else behind[0]
        walk = Walk(self._log, low, min(high, low + _SEARCH_BYTES), self._end)
        while True:
            for record in walk:
                if (record.topic, record.queue_id, record.queue_offset) == (queue.topic, queue.queue_id, offset):
                    log.error("%s: the entry at offset %d is damaged; its message was found", queue.directory, offset)
                    return self._log.read(record.commit_log_offset, record.size)
            if (found := find_record(self._log, walk.end + 1, min(high, low + _SEARCH_BYTES), 0)) is None:
                break
            walk.resume(found)
        position, size = self._entry(queue, offset)
        if not low <= position < high or not self.holds(position, size):
            return None
        data = self._log.read(position, size)
        return data if is_whole(data, size, position) and _has_topic(data, queue.topic) else None

    def _neighbour(self, queue: ConsumeQueue, offsets: range) -> tuple[int, int] | None:
        """Log position and size of the first of these that is whole, and of this queue."""
        for offset in offsets:
            position, size = self._entry(queue, offset)
            if self.holds(position, size):
                record = self._log.read(position, size)
                if is_whole(record, size, position) and _is_of(record, queue, offset):
                    return position, size
        return None

    def _entry(self, queue: ConsumeQueue, offset: int) -> tuple[int, int]:
        [(position, size, _)] = ENTRY.iter_unpack(self.entries(queue, offset, 1))
        return position, size


def _holds(log: LogReader, first: int, end: int, position: int, size: int) -> bool:
    return (
        size >= MIN_SIZE
        and first <= position <= end - size
        and position % log.file_size + size <= log.file_size - BLANK_BYTES
    )


def find_messages(
    reader: Reader,
    file_size: int,
    queue: ConsumeQueue,
    offset: int,
    end: int,
    max_messages: int,
    max_bytes: int,
    codes: frozenset[int] | None,
) -> tuple[int, list[bytes], list[int], list[int]]:
    """Messages of a queue in [offset, end): at least one that the filter takes when there is one within reach, else no
    more than either limit. Gives where to go on, the records, their queue offsets and log positions."""
    offsets: list[int] = []
    positions: list[int] = []
    sizes: list[int] = []
    total = 0
    reach = min(end, offset + (max(max_messages, _FILTERED_ENTRIES) if codes else max_messages))
    while offset < reach and len(offsets) < max_messages:
        for position, size, code in ENTRY.iter_unpack(reader.entries(queue, offset, reach - offset)):
            if size != FILLER_SIZE and (not codes or code in codes):
                total += size
                if offsets and (total > max_bytes or len(offsets) == max_messages):
                    reach = offset
                    break
                offsets.append(offset)
                positions.append(position)
                sizes.append(size)
            offset += 1
    records, missing = _read_records(reader, file_size, queue, offsets, positions, sizes)
    for index in reversed(missing):
        del offsets[index], positions[index]
    return offset, records, offsets, positions


def find_matching(
    reader: Reader,
    file_size: int,
    queue: ConsumeQueue,
    offset: int,
    end: int,
    max_messages: int,
    max_bytes: int,
    matches: Matches,
) -> tuple[int, list[bytes], list[int], list[int]]:
    """As `find_messages`, for a filter that needs the messages themselves."""
    records: list[bytes] = []
    offsets: list[int] = []
    positions: list[int] = []
    reach, unread, room = min(end, offset + _MATCHED_ENTRIES), _MATCHED_BYTES, max_bytes
    while offset < reach and unread > 0 and len(records) < max_messages:
        offset, *found = find_messages(reader, file_size, queue, offset, reach, _MATCHED_AT_ONCE, unread, None)
        for record, at, position in zip(*found, strict=True):
            if len(records) == max_messages:
                return at, records, offsets, positions
            unread -= len(record)
            if matches(properties_of(record)):
                room -= len(record)
                if records and room < 0:
                    return at, records, offsets, positions
                records.append(record)
                offsets.append(at)
                positions.append(position)
    return offset, records, offsets, positions


def _read_records(
    reader: Reader, file_size: int, queue: ConsumeQueue, offsets: list[int], positions: list[int], sizes: list[int]
) -> tuple[list[bytes], list[int]]:
    """Records at rising positions; near ones with one read. Where no message stands there is no record, but its index
    in the second list."""
    records: list[bytes] = []
    missing: list[int] = []
    count, first = len(positions), 0
    while first < count:
        start, after, view = positions[first], first + 1, memoryview(b"")
        if reader.holds(start, sizes[first]):
            end = start + sizes[first]
            limit = min(start - start % file_size + file_size, start + _RUN_BYTES)
            while (
                after < count
                and end <= positions[after] <= end + _GAP_BYTES
                and positions[after] + sizes[after] <= limit
            ):
                end = max(end, positions[after] + sizes[after])
                after += 1
            view = memoryview(reader.log(start, end - start))
        for index in range(first, after):
            position, size = positions[index], sizes[index]
            found = bytes(view[position - start : position - start + size])
            record: bytes | None = found
            if not is_whole(found, size, position) or not (_is_of(found, queue, offsets[index]) or _is_filler(found)):
                record = reader.search(queue, offsets[index])
                if record is None:
                    log.error(
                        "%s: the message at offset %d is lost: the commit log has no record of %d bytes at %d",
                        queue.directory, offsets[index], size, position,
                    )  # fmt: skip
                else:
                    positions[index] = _position_of(record)
            if record is None or _is_filler(record):
                missing.append(index)
            else:
                records.append(record)
        first = after
    return records, missing


def _is_of(record: bytes, queue: ConsumeQueue, offset: int) -> bool:
    """Whether a whole record says so itself: a damaged entry may lead to the message of another one, most likely where
    all are of one size, and no CRC covers a record's topic."""
    magic, queue_id, queue_offset, sys_flag, body = _unpack_place(record)
    if queue_offset == offset and queue_id == queue.queue_id:
        if magic == MAGIC_V1 and not sys_flag & (BORN_HOST_V6 | STORE_HOST_V6):
            if record.startswith(queue.stored_topic, _HEAD.size + body):
                return True
        elif _has_topic(record, queue.topic):
            return True
    return queue.topic.startswith(_LMQ_PREFIX)


def _has_topic(record: bytes, topic: str) -> bool:
    try:
        return decode(record).topic == topic
    except ProtocolError:
        return False


def _is_filler(record: bytes) -> bool:
    """A record that is marked as rolled back is no message."""
    return record[39] & TRANSACTION_MASK == TRANSACTION_ROLLBACK


def _position_of(record: bytes) -> int:
    position: int = _size_and_position(record)[1]
    return position


def is_whole(record: bytes, size: int, position: int) -> bool:
    """Whether these bytes are a record of that size and place whose body matches its CRC."""
    try:
        found_size, magic, crc, found_position, sys_flag, body = _unpack_head(record)
        if found_size != size or found_position != position or len(record) != size:
            return False
        if magic != MAGIC_V1 or sys_flag & (BORN_HOST_V6 | STORE_HOST_V6):
            decode(record, check_crc=True)
            return True
        topic_at: int = _HEAD.size + body
        topic_end: int = topic_at + 1 + record[topic_at]
        return (
            topic_end + 2 + (record[topic_end] << 8 | record[topic_end + 1]) == size
            and crc32(record[_HEAD.size : topic_at]) & 0x7FFFFFFF == crc
        )
    except (struct.error, IndexError, ProtocolError):
        return False


def read_record(reader: Reader, file_size: int, position: int, end: int) -> bytes | None:
    """The record that begins at this log position, None when none does. Anybody may ask for any position."""
    room = min(end, position - position % file_size + file_size) - position
    if room < MIN_SIZE:
        return None
    head = bytes(reader.log(position, min(room, 4096)))
    size, magic = BLANK.unpack_from(head)
    if magic not in (MAGIC_V1, MAGIC_V2) or not MIN_SIZE <= size <= room:
        return None
    record = head[:size] if size <= len(head) else bytes(reader.log(position, size))
    return record if is_whole(record, size, position) and not _is_filler(record) else None


def read_places(reader: Reader, places: Sequence[tuple[int, int]]) -> list[bytes | None]:
    """The records at these log positions and of these sizes; None where no such one stands."""
    records: list[bytes | None] = []
    for position, size in places:
        data = bytes(reader.log(position, size)) if reader.holds(position, size) else b""
        records.append(data if is_whole(data, size, position) and not _is_filler(data) else None)
    return records


def read_position(reader: Reader, queue: ConsumeQueue, offset: int) -> int:
    """Where in the log the message at this offset, which must be there, stands."""
    position: int
    [(position, _, _)] = ENTRY.iter_unpack(reader.entries(queue, offset, 1))
    return position


def read_entries(reader: Reader, queue: ConsumeQueue, offset: int, end: int) -> list[tuple[int, int, int]]:
    """The entries of [offset, end), which must be there: log position, size and tags code."""
    found: list[tuple[int, int, int]] = []
    while (at := offset + len(found)) < end:
        found += ENTRY.iter_unpack(reader.entries(queue, at, end - at))
    return found


def read_stored_ms(reader: Reader, queue: ConsumeQueue, offset: int) -> int:
    """When the message at this offset, which must be there, was stored; of a lost one, when one beside it was, because
    times are searched through; -1 when nothing tells."""
    position, size, _ = next(ENTRY.iter_unpack(reader.entries(queue, offset, 1)))
    if not reader.holds(position, MIN_SIZE):
        return -1
    head = bytes(reader.log(position, _HEAD_BYTES))
    if _size_and_position(head) != (int.from_bytes(head[:4], "big") if size == FILLER_SIZE else size, position):
        return -1
    sys_flag: int
    stored_ms: int
    stored_v6_ms: int
    sys_flag, stored_ms, stored_v6_ms = _STORED_HEAD.unpack_from(head)
    return stored_v6_ms if sys_flag & BORN_HOST_V6 else stored_ms


def find_time(reader: Reader, queue: ConsumeQueue, low: int, high: int, stored_ms: int, boundary: Boundary) -> int:
    """The offset in [low, high) that a store time stands for. Past the last message LOWER is `high`, the next one to
    come; before the first one UPPER is `low`. Store times do not fall along a queue."""
    first, end = low, high
    bound = stored_ms + (boundary is Boundary.UPPER)
    while low < high:
        middle = (low + high) // 2
        if read_stored_ms(reader, queue, middle) < bound:
            low = middle + 1
        else:
            high = middle
    return low if boundary is Boundary.LOWER else max(first, min(low, end) - 1)
