"""The commit log: every record of every topic, one after the other, in files of one size.

A file's name is the log position of its first byte, 20 digits. A record never crosses files: when it does not fit, with
8 bytes to spare, the rest of the file begins with a blank (its size 4, magic 4) and the record opens the next file.
Files have their full length from the start (`ftruncate`: a hole) and get real room in a window ahead of the writes, so
that a full disk refuses a message before it is appended, not after. Source: store/CommitLog.java.
"""

from __future__ import annotations

import logging
from itertools import pairwise

from saturnmq.disk.port import Disk, File
from saturnmq.kernel.clock import Background
from saturnmq.store.results import StoreRefused
from saturnmq.wire.record import BLANK, MAGIC_BLANK

log = logging.getLogger(__name__)

#: room is allocated this far ahead
WINDOW_BYTES = 32 << 20
#: what a record must leave in a file, for the blank
BLANK_BYTES = BLANK.size


def file_name(position: int) -> str:
    return f"{position:020d}"


def list_files(disk: Disk, directory: str, file_size: int) -> list[int]:
    """Positions of the log's files. Raises StoreRefused when one is missing or has no position for a name."""
    names = disk.list(directory)
    foreign = [name for name in names if not (len(name) == 20 and name.isdigit() and int(name) % file_size == 0)]
    if foreign:
        raise StoreRefused(
            f"{directory}/{foreign[0]} is no log file of {file_size} bytes: its name must be a multiple of that; "
            "set mappedFileSizeCommitLog to the size that this store was made with, or move the file away"
        )
    positions = [int(name) for name in names]
    for before, position in pairwise(positions):
        if position != before + file_size:
            raise StoreRefused(
                f"{directory}/{file_name(before + file_size)} is missing, others stand around it; bring it back, or "
                "set mappedFileSizeCommitLog to the size that this store was made with"
            )
    return positions


class LogReader:
    """Reads the log's files, each through `open_file`; what a thread and the event loop share of it is only layout."""

    def __init__(self, disk: Disk, directory: str, file_size: int) -> None:
        self.disk, self.directory, self.file_size = disk, directory, file_size

    def path(self, position: int) -> str:
        """Of the file that holds the position."""
        return f"{self.directory}/{position - position % self.file_size:020d}"

    def read(self, position: int, size: int) -> bytes:
        """May wait for the disk; opens and closes. Raises OSError."""
        file = self.disk.open(self.path(position))
        try:
            return file.pread(size, position % self.file_size)
        finally:
            file.close()


class CommitLog(LogReader):
    """The writing end. Owner: the store, on the event loop; other threads only sync the files of `take_unsynced` and
    make room through descriptors of their own.

    `end` counts what was appended, `written` what stands in the files; between them lies what one turn appended.
    """

    def __init__(self, disk: Disk, directory: str, file_size: int, background: Background) -> None:
        super().__init__(disk, directory, file_size)
        self._background = background
        self.first = self.end = self.written = 0
        #: a write failed: what stands behind `written` is unknown
        self.broken = False
        self._pending: list[bytes] = []
        self._file: File
        self._file_end = 0
        #: positions below this have real room
        self._allocated = 0
        self._allocating = False
        #: the next file, being made by the background, and when it is made
        self._preparing = self._prepared = -1
        #: files with writes that no sync covers yet, and those that a sync is at work on
        self._unsynced: list[File] = []
        self._syncing: list[File] = []
        self._closed = False

    def start(self, first: int, end: int) -> None:
        """Begin to append at `end`, which recovery found. Raises OSError."""
        self.first, self.end, self.written = first, end, end
        self.disk.mkdir(self.directory)
        start = end - end % self.file_size
        self._enter(self._next_file(start), start)
        self._allocated = max(self._allocated, end)

    # -------------------------------------------------------------------------------------------- appending

    def place(self, size: int) -> int:
        """The position of the next record, which has this size and must be `add`ed now. Raises OSError when the disk
        has no room: the log is as it was, unless it is `broken`."""
        if size + BLANK_BYTES > self._file_end - self.end:
            self._roll()
        if self.end + size + BLANK_BYTES > self._allocated:
            self._allocate(self.end + size + BLANK_BYTES)
        elif self.end + WINDOW_BYTES // 2 > self._allocated:
            self._make_room_ahead()
        return self.end

    def add(self, record: bytes) -> None:
        self._pending.append(record)
        self.end += len(record)

    def write(self) -> None:
        """Bring what was appended into the file with one write. Raises OSError: the log is `broken` then."""
        pending = self._pending
        if not pending:
            return
        self._pending = []
        try:
            self._file.pwrite(pending[0] if len(pending) == 1 else b"".join(pending), self.written % self.file_size)
        except OSError:
            self.broken = True
            raise
        self.written = self.end
        if not self._unsynced or self._unsynced[-1] is not self._file:
            self._unsynced.append(self._file)

    def _roll(self) -> None:
        start = self._file_end
        file = self._next_file(start)
        self.add(BLANK.pack(start - self.end, MAGIC_BLANK))
        self.write()
        self.end = self.written = start
        self._enter(file, start)

    def _next_file(self, start: int) -> File:
        path = self.path(start)
        if self._prepared != start:
            prepare(self.disk, path, self.file_size)
        return self.disk.open(path)

    def _enter(self, file: File, start: int) -> None:
        if self._file_end and self._file not in self._unsynced and self._file not in self._syncing:
            self._file.close()
        self._file = file
        self._file_end = start + self.file_size
        self._allocated = start + min(WINDOW_BYTES, self.file_size)

    # ------------------------------------------------------------------------------------------- room ahead

    def _allocate(self, least: int) -> None:
        start = self._allocated
        end = min(self._file_end, max(least, start + WINDOW_BYTES))
        self._file.allocate(start % self.file_size, end - start)
        self._allocated = end
        self._allocating = False

    def _make_room_ahead(self) -> None:
        """Start to make the next window, or the next file, before it is needed. After a failure the append that needs
        the room tries again, and its sender hears of it."""
        disk = self.disk
        if self._allocated < self._file_end:
            if not self._allocating:
                self._allocating = True
                start, end = self._allocated, min(self._file_end, self._allocated + WINDOW_BYTES)
                path, offset = self.path(start), start % self.file_size
                self._background.run(
                    lambda: _allocate_at(disk, path, offset, end - start),
                    lambda _: self._has_room(start, end),
                    _no_room_ahead,
                )
        elif self._preparing != self._file_end:
            self._preparing = start = self._file_end
            path, file_size = self.path(start), self.file_size
            self._background.run(
                lambda: prepare(disk, path, file_size), lambda _: self._has_next_file(start), _no_room_ahead
            )

    def _has_room(self, start: int, end: int) -> None:
        if self._allocated == start:  # no append came first
            self._allocated = end
            self._allocating = False

    def _has_next_file(self, start: int) -> None:
        self._prepared = start

    # ---------------------------------------------------------------------------------------------- syncing

    def take_unsynced(self) -> list[File]:
        """The files that a sync of everything written must sync. Give them back to `synced`, once, after it."""
        self._syncing, self._unsynced = self._unsynced, []
        return self._syncing

    def synced(self) -> None:
        """Nobody works on the taken files any more: close those that are full."""
        files, self._syncing = self._syncing, []
        for file in files:
            if self._closed or (file is not self._file and file not in self._unsynced):
                file.close()

    def close(self) -> None:
        """`write` and a sync come before. Files that a sync is at work on are left to `synced`."""
        self._closed = True
        for file in {*self._unsynced, self._file}.difference(self._syncing):
            file.close()


def _no_room_ahead(error: BaseException) -> None:
    log.warning("the commit log has no room ahead: %s", error)


def prepare(disk: Disk, path: str, file_size: int) -> None:
    """A log file of full length with room in its first window, durable. Doing it twice, or on a file in use, changes
    nothing. Raises OSError."""
    file = disk.create(path)
    try:
        if file.size() != file_size:
            file.truncate(file_size)
        file.allocate(0, min(WINDOW_BYTES, file_size))
        file.fdatasync()
    finally:
        file.close()
    disk.sync_directory(path.rpartition("/")[0])


def _allocate_at(disk: Disk, path: str, offset: int, size: int) -> None:
    file = disk.open(path)
    try:
        file.allocate(offset, size)
    finally:
        file.close()


def zero_tail(disk: Disk, path: str, offset: int, file_size: int) -> None:
    """Let nothing stand in the file behind the offset: old bytes there could pass for records one day. Not synced."""
    file = disk.open(path)
    try:
        file.truncate(offset)
        file.truncate(file_size)
    finally:
        file.close()
