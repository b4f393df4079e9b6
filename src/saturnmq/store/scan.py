"""The whole log from front to back, over damage and missing files: for tools that only look.

Recovery stops where a record should be and none is; `scan` says so and goes on at the next whole record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TypeAlias, TypeVar

import msgspec

from saturnmq.disk.port import Disk, File
from saturnmq.kernel.message import StoredMessage
from saturnmq.store.commitlog import LogReader
from saturnmq.store.walk import Row, Walk, find_next, find_record

T = TypeVar("T")

_CHUNK_BYTES = 4 << 20


class Blank(msgspec.Struct, frozen=True):
    """The filler from the last record of a file to the file's end."""

    position: int
    end: int


class Damage(msgspec.Struct, frozen=True):
    """Bytes of the log that hold no record, with records behind them."""

    position: int
    end: int
    reason: str


class End(msgspec.Struct, frozen=True):
    """No whole record begins here or behind. `reason` is empty where the log is blank."""

    position: int
    reason: str


Gap: TypeAlias = Blank | Damage | End


class LogFiles(LogReader):
    """A log's files as they are found. Some may be missing, or cut."""

    def __init__(self, disk: Disk, directory: str, paths: Mapping[int, str], file_size: int) -> None:
        super().__init__(disk, directory, file_size)
        #: start → path, ascending
        self.paths = paths

    def path(self, position: int) -> str:
        start = position - position % self.file_size
        return self.paths.get(start) or f"{self.directory}/{start:020d}"

    @property
    def first(self) -> int:
        return next(iter(self.paths), 0)

    def runs(self) -> list[tuple[int, int]]:
        """From where to where files follow one another."""
        runs: list[tuple[int, int]] = []
        for start in self.paths:
            if runs and runs[-1][1] == start:
                runs[-1] = (runs[-1][0], start + self.file_size)
            else:
                runs.append((start, start + self.file_size))
        return runs


def find_log(disk: Disk, directories: Sequence[str], file_size: int | None) -> tuple[LogFiles, list[str]]:
    """The log of these directories, and the paths of files there that cannot be part of it. `file_size` None: what the
    names and sizes say. Raises OSError."""
    paths: dict[int, str] = {}
    strays = []
    for directory in directories:
        for name in disk.list(directory):
            path = f"{directory}/{name}" if directory else name
            if not is_log_name(name) or int(name) in paths:
                strays.append(path)
            else:
                paths[int(name)] = path
    paths = dict(sorted(paths.items()))
    size = file_size or _file_size(disk, paths)
    strays += [path for start, path in paths.items() if start % size]
    found = {start: path for start, path in paths.items() if not start % size}
    return LogFiles(disk, directories[0], found, size), strays


def is_log_name(name: str) -> bool:
    """Of a file of the log, or of a queue."""
    return len(name) == 20 and name.isascii() and name.isdigit()


def _file_size(disk: Disk, paths: Mapping[int, str]) -> int:
    """What lies between two names; of one file its own size, unless it was cut."""
    spacings = Counter(after - before for before, after in pairwise(paths))
    if spacings:
        return min(spacings)
    for start, path in paths.items():
        size = size_of(disk, path)
        return size if size and not start % size else max(start, 1)
    return 1


def size_of(disk: Disk, path: str) -> int:
    file = disk.open(path)
    try:
        return file.size()
    finally:
        file.close()


def scan(log: LogFiles, start: int | None = None) -> Iterator[StoredMessage | Gap]:
    """Everything, in order and without gaps, or from the first record at or behind `start` on; `End` comes last. Raises
    OSError."""
    position = log.first if start is None else _record_from(log, start)
    for piece in _scan(log, position, None, lambda walk: ([record] for record in walk), _place_of_message):
        if isinstance(piece, list):
            yield piece[0]
        else:
            yield piece


def scan_rows(log: LogFiles, durable: int | None) -> Iterator[list[Row] | Gap]:
    """The same without bodies, many records at a time. Behind `durable` a crash has left what there is: the first place
    that holds no record is the end."""
    return _scan(log, log.first, durable, Walk.rows, _place_of_row)


def _place_of_message(record: StoredMessage) -> tuple[int, int, int]:
    return record.commit_log_offset, record.size, record.stored_ms


def _place_of_row(row: Row) -> tuple[int, int, int]:
    return row[0], row[1], row[6]


def _scan(
    log: LogFiles,
    position: int,
    durable: int | None,
    records: Callable[[Walk], Iterator[list[T]]],
    place: Callable[[T], tuple[int, int, int]],
) -> Iterator[list[T] | Gap]:
    """`place` tells position, size and store time."""
    stored_ms = 0
    runs = [(max(first, position), limit) for first, limit in log.runs() if limit > position]
    for index, (first, limit) in enumerate(runs):
        if first > position and index:
            yield Damage(position, first, "the file is missing")
        position = first
        while position < limit:
            walk = Walk(log, position, limit, limit if durable is None else durable)
            for some in records(walk):
                if not some:
                    continue
                begin = place(some[0])[0]
                if begin > position:
                    yield Blank(position, begin)
                yield some
                position, size, stored_ms = place(some[-1])
                position += size
            if walk.end > position:
                yield Blank(position, walk.end)
                position = walk.end
            if position < limit:
                torn = durable is not None and position >= durable
                found = None if torn else find_next(log, position, limit, stored_ms)
                if torn or (found is None and index == len(runs) - 1):
                    yield End(position, walk.reason)
                    return
                yield Damage(position, found or limit, walk.reason or "zeros")
                position = found or limit
    yield End(position, "")


def _record_from(log: LogFiles, start: int) -> int:
    for first, limit in log.runs():
        if limit > start:
            found = find_record(log, max(first, start), limit, 0)
            if found is not None:
                return found
    return start


def data_behind(log: LogFiles, position: int) -> int | None:
    """Where, at or behind this position, the next byte stands that is not zero; None when none does. Raises OSError."""
    for start, path in log.paths.items():
        if start + log.file_size <= position:
            continue
        file = log.disk.open(path)
        try:
            found = first_data(file, max(0, position - start))
        finally:
            file.close()
        if found is not None:
            return start + found
    return None


def first_data(file: File, offset: int) -> int | None:
    """The offset of the file's first byte from here on that is not zero."""
    size = file.size()
    while (offset := file.data_from(offset)) < size:
        chunk = file.pread(_CHUNK_BYTES, offset)
        if rest := chunk.lstrip(b"\0"):
            return offset + len(chunk) - len(rest)
        offset += len(chunk)
    return None
