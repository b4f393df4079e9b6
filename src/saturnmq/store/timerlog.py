"""The timer log: an entry for each message that waits, in the order in which they came; those of one slot are a chain.

52 bytes, big endian (store/timer/TimerLog.java, TimerMessageStore.doEnqueue):

    size 4 (52) | previous 8 | magic 4 | written 8 | delay 4 | commitLogOffset 8 | recordSize 4 | topicHash 4 | 0 8

`previous` is the position of the entry before it in the same slot, -1 when there is none. `written` is the time when it
was written, `delay` how long after that its slot is; milliseconds both. A file that has no room for an entry and a
blank ends with a blank (rest of the file 4, 0 8, magic 4); its name is the position of its first byte. Directory
`timerlog/`, files of 100 MiB.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from saturnmq.disk.openfiles import OpenFiles
from saturnmq.disk.port import Disk
from saturnmq.store.commitlog import file_name, zero_tail
from saturnmq.store.reading import Cold
from saturnmq.store.results import StoreRefused

log = logging.getLogger(__name__)

DIRECTORY = "timerlog"
UNIT = Struct(">iqiqiqiiq")
UNIT_BYTES = UNIT.size
_BLANK = Struct(">iqi")
_BLANK_MAGIC = -875286124
#: what the magic of an entry is made of: of each one; its slot is not its due time but where it is looked at again; it
#: is no message but takes one back
DEFAULT, ROLL, DELETE = 1, 2, 4
#: before the first entry of a slot
NONE = -1
#: what a slot may be away from the time of writing
MAX_DELAY_MS = (1 << 31) - 1
#: chains are followed backwards: entries that came together are read together
_BLOCK_BYTES = 16 * 1024
_SCAN_BYTES = 5_000 * UNIT_BYTES
_OPEN_FILES = 16


class TimerLogDamaged(Exception):
    """No entry stands where one should: what the log was good for must be made again from the timer topic."""


class TimerEntry(NamedTuple):
    """One entry, with its position in the timer log."""

    position: int
    previous: int
    magic: int
    written_ms: int
    delay_ms: int
    commit_log_offset: int
    record_bytes: int
    topic_hash: int

    @property
    def slot_ms(self) -> int:
        return self.written_ms + self.delay_ms

    @property
    def is_delete(self) -> bool:
        """It stands in the slot of the message that it takes back. (A delete that is still rolled is a message.)"""
        return self.magic & (DELETE | ROLL) == DELETE


def pack(previous: int, magic: int, written_ms: int, slot_ms: int, place: tuple[int, int], topic_hash: int) -> bytes:
    """The bytes of an entry; `place` is position and size of the message's record."""
    return UNIT.pack(UNIT_BYTES, previous, magic, written_ms, slot_ms - written_ms, *place, topic_hash, 0)


class TimerLog:
    """Owner: `store.timerfiles`. Written on the event loop; `read_chain`, `scan` and `sync` may run in threads."""

    def __init__(self, disk: Disk, file_size: int) -> None:
        self._disk, self.file_size = disk, file_size
        self._open_files = OpenFiles(disk, _OPEN_FILES)
        #: the oldest file, and where the next entry is looked for room
        self.first = self.end = 0
        #: paths written to since the last sync
        self._unsynced: dict[str, None] = {}

    def path(self, position: int) -> str:
        return f"{DIRECTORY}/{file_name(position - position % self.file_size)}"

    def find(self) -> tuple[int, int]:
        """Where the files begin and end. Raises StoreRefused when they are not files of the configured size that
        follow one another."""
        starts = [int(name) for name in self._disk.list(DIRECTORY) if len(name) == 20 and name.isdigit()]
        if not starts:
            return 0, 0
        expected = list(range(starts[0], starts[0] + len(starts) * self.file_size, self.file_size))
        if (
            starts != expected
            or starts[0] % self.file_size
            or any(self._size(start) > self.file_size for start in starts)
        ):
            raise StoreRefused(
                f"{DIRECTORY}: a file is missing, or they do not have {self.file_size} bytes each; set "
                f"mappedFileSizeTimerLog to the size that this store was made with, or move {DIRECTORY} and timerwheel "
                "away to have both made anew"
            )
        return starts[0], starts[-1] + self.file_size

    def _size(self, start: int) -> int:
        file = self._disk.open(self.path(start))
        try:
            return file.size()
        finally:
            file.close()

    def place(self, position: int) -> int:
        """Where an entry that comes at this position or behind it begins: it does not cross files."""
        room = self.file_size - position % self.file_size
        return position if room >= UNIT_BYTES + _BLANK.size else position + room

    # -------------------------------------------------------------------------------------------------- writing

    def write(self, units: list[bytes]) -> None:
        """Append entries, the first one at `place(end)`. Raises OSError, and then nothing is appended."""
        end, at = self.end, 0
        while at < len(units):
            start = self.place(end)
            if start != end:
                self._put(end, _BLANK.pack(start - end, 0, _BLANK_MAGIC))
            count = (self.file_size - start % self.file_size - _BLANK.size) // UNIT_BYTES
            run = b"".join(units[at : at + count])
            self._put(start, run)
            end, at = start + len(run), at + count
        self.end = end

    def _put(self, position: int, data: bytes) -> None:
        path = self.path(position)
        try:
            file = self._open_files.get(path)
        except FileNotFoundError:
            self._disk.mkdir(DIRECTORY)
            file = self._disk.create(path)
            try:
                file.truncate(self.file_size)
            finally:
                file.close()
            file = self._open_files.get(path)
        file.pwrite(data, position % self.file_size)
        self._unsynced[path] = None

    def take_unsynced(self) -> list[str]:
        """The files to be given to `sync`."""
        paths, self._unsynced = list(self._unsynced), {}
        return paths

    def give_back(self, paths: list[str]) -> None:
        """They were not synced."""
        self._unsynced.update(dict.fromkeys(paths))

    def sync(self, paths: list[str]) -> None:
        """Make files and their names durable. Raises OSError."""
        for path in paths:
            file = self._disk.open(path)
            try:
                file.fdatasync()
            finally:
                file.close()
        if paths:
            self._disk.sync_directory(DIRECTORY)

    def cut(self, position: int) -> None:
        """Let nothing stand from there on, durably, and go on there. Raises OSError."""
        first, limit = self.find()
        for start in range(limit - self.file_size, first - 1, -self.file_size):
            if start >= position > first:
                self._open_files.drop(self.path(start))
                self._disk.unlink(self.path(start))
            elif position < start + self.file_size:
                zero_tail(self._disk, self.path(start), max(0, position - start), self.file_size)
                self.sync([self.path(start)])
        if limit:
            self._disk.sync_directory(DIRECTORY)
        self.first, self.end = first, position

    def clear(self) -> None:
        """Delete all of it, durably. Nobody reads or writes meanwhile. Raises OSError."""
        for name in reversed(self._disk.list(DIRECTORY)):
            self._disk.unlink(f"{DIRECTORY}/{name}")
            self._disk.sync_directory(DIRECTORY)
        self._open_files.close()
        self._unsynced = {}
        self.first = self.end = 0

    def drop_before(self, position: int) -> list[str]:
        """The files that end there or before it, the oldest first, for `delete`."""
        paths = []
        while self.first + self.file_size <= min(position, self.end):
            paths.append(self.path(self.first))
            self._open_files.drop(paths[-1])
            self.first += self.file_size
        return paths

    def delete(self, paths: list[str]) -> None:
        """Each durably before the next. Raises OSError."""
        for path in paths:
            self._disk.unlink(path)
            self._disk.sync_directory(DIRECTORY)
            log.info("%s is deleted", path)

    def close(self) -> None:
        self._open_files.close()

    # -------------------------------------------------------------------------------------------------- reading

    def read_back(self, position: int, *, wait: bool) -> Iterator[TimerEntry]:
        """The entry there and those before it in its slot, the newest first. Raises TimerLogDamaged, OSError; Cold
        unless it may `wait` for the disk."""
        block, base = b"", 0
        while position != NONE:
            if not base <= position <= base + len(block) - UNIT_BYTES:
                base = max(position - position % self.file_size, position + UNIT_BYTES - _BLOCK_BYTES)
                block = self._read(base, position + UNIT_BYTES - base, wait)
            entry = _unpack(block, position - base, position) if len(block) >= position + UNIT_BYTES - base else None
            if entry is None:
                raise TimerLogDamaged(f"{self.path(position)}: there is no entry at {position}")
            yield entry
            position = entry.previous

    def _read(self, position: int, size: int, wait: bool) -> bytes:
        try:
            file = self._disk.open(self.path(position)) if wait else self._open_files.get(self.path(position))
        except FileNotFoundError:
            return b""
        if wait:
            try:
                return file.pread(size, position % self.file_size)
            finally:
                file.close()
        view = file.try_pread(size, position % self.file_size)
        if view is None:
            raise Cold
        return bytes(view)

    def scan(self, start: int, end: int) -> Iterator[TimerEntry]:
        """The entries in [start, end), up to what is none. Waits for the disk. Raises OSError."""
        while (start := self.place(start)) < end:
            stop = min(end, start - start % self.file_size + self.file_size - _BLANK.size, start + _SCAN_BYTES)
            block = self._read(start, stop - start, wait=True)
            for at in range(0, len(block) - UNIT_BYTES + 1, UNIT_BYTES):
                entry = _unpack(block, at, start + at)
                if entry is None:
                    return
                yield entry
            if len(block) < UNIT_BYTES:
                return
            start += len(block) // UNIT_BYTES * UNIT_BYTES


def _unpack(block: bytes, at: int, position: int) -> TimerEntry | None:
    """None when the bytes cannot be an entry."""
    size, previous, magic, written_ms, delay_ms, offset, record_bytes, topic_hash, _ = UNIT.unpack_from(block, at)
    if size != UNIT_BYTES or not 0 < magic <= (DEFAULT | ROLL | DELETE):
        return None
    if not NONE <= previous < position or written_ms <= 0 or delay_ms < 0 or offset < 0 or record_bytes <= 0:
        return None
    return TimerEntry(position, previous, magic, written_ms, delay_ms, offset, record_bytes, topic_hash)
