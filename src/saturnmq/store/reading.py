"""Looking things up in queues and log. The same code runs inline over what is in memory and, when that is not enough
(`Cold`), once more in a thread that may wait for the disk."""

from __future__ import annotations

import logging
from struct import Struct
from typing import Protocol

from saturnmq.disk.openfiles import OpenFiles
from saturnmq.disk.port import Buffer
from saturnmq.kernel.message import BORN_HOST_V6
from saturnmq.kernel.ports import Boundary
from saturnmq.store.commitlog import LogReader
from saturnmq.store.consumequeue import ENTRY, ENTRY_BYTES, FILLER_SIZE, ConsumeQueue, QueueFiles
from saturnmq.wire.record import BLANK, MAGIC_V1, MAGIC_V2, MIN_SIZE

log = logging.getLogger(__name__)

#: records with no more than this between them are read with one call
_GAP_BYTES = 16 * 1024
#: at most so much at once
_RUN_BYTES = 1 << 20
#: entries that one `find_messages` looks at when a filter takes few of them (maxFilterMessageSize 16000)
_FILTERED_ENTRIES = 800

_SIZE_AND_POSITION = Struct(">I24xq")
_size_and_position = _SIZE_AND_POSITION.unpack_from
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


class HotReader:
    """Reads memory only, raises Cold. For the event loop."""

    def __init__(self, log: LogReader, files: QueueFiles, open_files: OpenFiles) -> None:
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


class ColdReader:
    """Waits for the disk. For one use in a thread: made on the event loop, it keeps a queue's tail as it is then."""

    def __init__(self, log: LogReader, files: QueueFiles, queue: ConsumeQueue | None) -> None:
        self._log, self._files = log, files
        self._tail_offset, self._tail = (queue.tail_offset, bytes(queue.tail)) if queue is not None else (0, b"")

    def log(self, position: int, size: int) -> Buffer:
        return self._log.read(position, size)

    def entries(self, queue: ConsumeQueue, offset: int, count: int) -> Buffer:
        at = offset - self._tail_offset
        if at >= 0:
            return self._tail[at * ENTRY_BYTES : (at + count) * ENTRY_BYTES]
        return self._files.read(queue, offset, min(count, -at))


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
    records, damaged = _read_records(reader, file_size, positions, sizes)
    for index in reversed(damaged):
        del offsets[index], positions[index]
    return offset, records, offsets, positions


def _read_records(
    reader: Reader, file_size: int, positions: list[int], sizes: list[int]
) -> tuple[list[bytes], list[int]]:
    """Records at rising positions; near ones with one read. Where the log holds something else there is no record, but
    its index in the second list."""
    records: list[bytes] = []
    damaged: list[int] = []
    count, first = len(positions), 0
    while first < count:
        start = positions[first]
        end = start + sizes[first]
        limit = min(start - start % file_size + file_size, start + _RUN_BYTES)
        after = first + 1
        while after < count and positions[after] - end <= _GAP_BYTES and positions[after] + sizes[after] <= limit:
            end = positions[after] + sizes[after]
            after += 1
        view = memoryview(reader.log(start, end - start))
        for index in range(first, after):
            position, size = positions[index], sizes[index]
            at = position - start
            record = bytes(view[at : at + size])
            if len(record) < MIN_SIZE or _size_and_position(record) != (size, position):
                log.error("the commit log is damaged at %d: no record of %d bytes there, left out", position, size)
                damaged.append(index)
            else:
                records.append(record)
        first = after
    return records, damaged


def read_record(reader: Reader, file_size: int, position: int, end: int) -> bytes | None:
    """The record that begins at this log position, None when none does. Anybody may ask for any position."""
    room = min(end, position - position % file_size + file_size) - position
    if room < MIN_SIZE:
        return None
    head = bytes(reader.log(position, min(room, 4096)))
    size, magic = BLANK.unpack_from(head)
    if magic not in (MAGIC_V1, MAGIC_V2) or not MIN_SIZE <= size <= room:
        return None
    if _size_and_position(head) != (size, position):
        return None
    return head[:size] if size <= len(head) else bytes(reader.log(position, size))


def read_position(reader: Reader, queue: ConsumeQueue, offset: int) -> int:
    """Where in the log the message at this offset, which must be there, stands."""
    position: int
    [(position, _, _)] = ENTRY.iter_unpack(reader.entries(queue, offset, 1))
    return position


def read_stored_ms(reader: Reader, queue: ConsumeQueue, offset: int) -> int:
    """When the message at this offset, which must be there, was stored; -1 when its record is damaged or left out."""
    position, size, _ = next(ENTRY.iter_unpack(reader.entries(queue, offset, 1)))
    if size == FILLER_SIZE:
        return -1
    head = bytes(reader.log(position, _HEAD_BYTES))
    if len(head) < _HEAD_BYTES or _size_and_position(head) != (size, position):
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
