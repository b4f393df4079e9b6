"""The commit log: every record of every topic, one after the other, in files of one size.

A file's name is the log position of its first byte, 20 digits. A record never crosses files: when it does not fit, with
8 bytes to spare, the rest of the file begins with a blank (its size 4, magic 4) and the record opens the next file.
Files have their full length from the start (`ftruncate`: a hole) and get real room in a window ahead of the writes, so
that a full disk refuses a message before it is appended, not after. Source: store/CommitLog.java.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise

from saturnmq.disk.port import Disk, File
from saturnmq.kernel.clock import Background
from saturnmq.kernel.config import StoreConfig
from saturnmq.store.results import StoreRefused
from saturnmq.store.space import is_no_room
from saturnmq.wire.record import BLANK, MAGIC_BLANK

log = logging.getLogger(__name__)

#: room is allocated this far ahead
WINDOW_BYTES = 32 << 20
#: what a record must leave in a file, for the blank
BLANK_BYTES = BLANK.size


def file_name(position: int) -> str:
    return f"{position:020d}"


def log_directories(config: StoreConfig) -> tuple[list[str], list[str]]:
    """Where log files are made, and where they are only read. Raises ValueError."""
    named, read_only = (
        [directory.strip() for directory in text.split(",") if directory.strip()]
        for text in (config.store_path_commit_log, config.read_only_commit_log_store_paths)
    )
    writable = [directory for directory in named or ["commitlog"] if directory not in read_only]
    if not writable:
        raise ValueError(
            "readOnlyCommitLogStorePaths names all directories of the commit log: none is left to write to"
        )
    return list(dict.fromkeys(writable)), list(dict.fromkeys(read_only))


class LogReader:
    """Reads the log's files; what a thread and the event loop share of it is only layout.

    The files may stand in several directories (MultiPathMappedFileQueue.java): `directory` is where those are that
    `find_files` found in none of the `others`."""

    def __init__(self, disk: Disk, directory: str, file_size: int, others: Sequence[str] = ()) -> None:
        self.disk, self.directory, self.file_size = disk, directory, file_size
        self.directories = (directory, *others)
        #: position of a file → its directory, of those in the others
        self._elsewhere: dict[int, str] = {}

    def find_files(self) -> list[int]:
        """Positions of the log's files. Raises StoreRefused when one is missing, is there twice or has no position for
        a name."""
        found: dict[int, str] = {}
        for directory in self.directories:
            for name in self.disk.list(directory):
                if not (len(name) == 20 and name.isdigit() and int(name) % self.file_size == 0):
                    raise StoreRefused(
                        f"{directory}/{name} is no log file of {self.file_size} bytes: its name must be a multiple of "
                        "that; set mappedFileSizeCommitLog to the size that this store was made with, or move the file "
                        "away"
                    )
                if int(name) in found:
                    raise StoreRefused(f"{name} is a file of {found[int(name)]} and of {directory}; move one away")
                found[int(name)] = directory
        positions = sorted(found)
        for before, position in pairwise(positions):
            if position != before + self.file_size:
                raise StoreRefused(
                    f"{self.directory}/{file_name(before + self.file_size)} is missing, others stand around it; bring "
                    "it back, or set mappedFileSizeCommitLog to the size that this store was made with"
                )
        self._elsewhere = {at: directory for at, directory in found.items() if directory != self.directory}
        return positions

    def path(self, position: int) -> str:
        """Of the file that holds the position."""
        start = position - position % self.file_size
        return f"{self._elsewhere.get(start, self.directory)}/{start:020d}"

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

    def __init__(
        self,
        disk: Disk,
        directory: str,
        file_size: int,
        background: Background,
        others: Sequence[str] = (),
        read_only: Sequence[str] = (),
    ) -> None:
        """New files are made in `directory` and the `others` in turn, those without room left out; `read_only`
        directories only lose files."""
        super().__init__(disk, directory, file_size, (*others, *read_only))
        self._background = background
        self._writable = sorted((directory, *others))
        #: directories without room for another file
        self.full: frozenset[str] = frozenset()
        self.first = self.end = self.written = 0
        #: a write failed, and not for want of room: what stands behind `written` is unknown
        self.broken = False
        self._pending: list[bytes] = []
        self._file: File
        self._file_end = 0
        #: positions below this have real room
        self._allocated = 0
        self._allocating = False
        #: the next file, being made by the background, and when it is made
        self._preparing = self._prepared = -1
        self._preparing_now = False
        #: files with writes that no sync covers yet, and those that a sync is at work on
        self._unsynced: list[File] = []
        self._syncing: list[File] = []
        self._closed = False

    def start(self, first: int, end: int) -> None:
        """Begin to append at `end`, which recovery found. Raises OSError."""
        self.first, self.end, self.written = first, end, end
        for directory in self._writable:
            self.disk.mkdir(directory)
        start = end - end % self.file_size
        if not self.disk.exists(self.path(start)):
            self._choose_directory(start)
        self._preparing = start
        try:
            self._enter(self._next_file(start), start)
        except OSError as error:  # a full disk is no reason not to start: the messages that are there can be read
            if not is_no_room(error) or not self.disk.exists(self.path(start)):
                raise
            self._enter(self.disk.open(self.path(start)), start)
            self._allocated = end
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
        """Bring what was appended into the file with one write. Raises OSError: the log is `broken` then, or (only file
        systems that cannot allocate come to that) the disk is full and the same write can be tried again."""
        pending = self._pending
        if pending:
            self._put(pending[0] if len(pending) == 1 else b"".join(pending))
            self._pending = []
            self.written = self.end

    def _put(self, data: bytes) -> None:
        try:
            self._file.pwrite(data, self.written % self.file_size)
        except OSError as error:
            self.broken = not is_no_room(error)
            raise
        if not self._unsynced or self._unsynced[-1] is not self._file:
            self._unsynced.append(self._file)

    def _roll(self) -> None:
        start = self._file_end
        file = self._next_file(start)
        try:
            self._put(b"".join((*self._pending, BLANK.pack(start - self.end, MAGIC_BLANK))))
        except OSError:
            file.close()
            raise
        self._pending = []
        self.end = self.written = start
        self._enter(file, start)

    def _next_file(self, start: int) -> File:
        if self._prepared != start:
            if self._preparing != start:
                self._choose_directory(start)
            try:
                prepare(self.disk, self.path(start), self.file_size)
            except OSError:
                if not self._preparing_now:
                    self._preparing = -1
                raise
        return self.disk.open(self.path(start))

    def _choose_directory(self, start: int) -> None:
        """Where a new file goes: the directories take turns (MultiPathMappedFileQueue.java). What an attempt left that
        found no room there is removed: no file may be there twice."""
        if len(self._writable) == 1:
            return
        before = self.path(start)
        choice = [directory for directory in self._writable if directory not in self.full] or self._writable
        self._elsewhere[start] = choice[start // self.file_size % len(choice)]
        if before != self.path(start) and self.disk.exists(before):
            self.disk.unlink(before)
            self.disk.sync_directory(before.rpartition("/")[0])

    def forget(self, start: int) -> None:
        """The file is deleted."""
        self._elsewhere.pop(start, None)

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
            start, file_size = self._file_end, self.file_size
            self._choose_directory(start)
            self._preparing, self._preparing_now = start, True
            path = self.path(start)
            self._background.run(
                lambda: prepare(disk, path, file_size), lambda _: self._has_next_file(start), self._has_no_next_file
            )

    def _has_room(self, start: int, end: int) -> None:
        if self._allocated == start:  # no append came first
            self._allocated = end
            self._allocating = False

    def _has_next_file(self, start: int) -> None:
        self._prepared, self._preparing_now = start, False

    def _has_no_next_file(self, error: BaseException) -> None:
        self._preparing_now = False
        _no_room_ahead(error)

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
