"""A disk in memory that remembers everything done to it: the stage of the crash campaigns.

`events` is the history. `crashed(n, survives)` is the disk that a power cut after the first `n` events leaves: what was
synced before is there; of the rest, `survives` decides what had reached the disk, of a write perhaps some sectors.
`faults` makes operations fail.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TypeAlias

import msgspec

from saturnmq.disk.port import Buffer, Space


class Operation(StrEnum):
    CREATE = "create"
    WRITE = "write"
    TRUNCATE = "truncate"
    ALLOCATE = "allocate"
    SYNC = "sync"
    #: what was written before it is lost, and no later sync covers it
    FAILED_SYNC = "failed_sync"
    MKDIR = "mkdir"
    RENAME = "rename"
    UNLINK = "unlink"
    RMDIR = "rmdir"
    SYNC_DIRECTORY = "sync_directory"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was done. `inode` is the file's identity, which a rename does not change."""

    operation: Operation
    path: str
    inode: int = -1
    offset: int = 0
    data: bytes = b""
    #: new size of a truncate, length of an allocate
    size: int = 0
    #: where a rename goes to
    to: str = ""


#: of an event that no sync made durable before the crash: what of it reached the disk. Of a write these byte ranges
#: (from, to) of its data; anything else happened when there is any range.
Survives = Callable[[Event], Sequence[tuple[int, int]]]


def nothing_survives(event: Event) -> Sequence[tuple[int, int]]:
    """The hardest power cut: the disk has only what it was told to sync."""
    return ()


def everything_survives(event: Event) -> Sequence[tuple[int, int]]:
    """The process was killed, the operating system lives: its page cache writes everything out."""
    return ((0, len(event.data)),)


_SYNCS = (Operation.SYNC, Operation.FAILED_SYNC, Operation.SYNC_DIRECTORY)


def _durable(history: Sequence[Event]) -> set[int]:
    """Which of these events a sync covers. One that failed has lost what was written before it; sizes and names are no
    data, and are synced with the next."""
    durable: set[int] = set()
    #: inodes and directories that are synced later; inodes whose next sync succeeds
    covered: set[int | str] = set()
    written: set[int] = set()
    for at, event in reversed(list(enumerate(history))):
        match event.operation:
            case Operation.SYNC:
                covered.add(event.inode)
                written.add(event.inode)
            case Operation.FAILED_SYNC:
                written.discard(event.inode)
            case Operation.SYNC_DIRECTORY:
                covered.add(event.path)
            case Operation.WRITE:
                if event.inode in written:
                    durable.add(at)
            case Operation.TRUNCATE | Operation.ALLOCATE:
                if event.inode in covered:
                    durable.add(at)
            case _:
                if _parent(event.path) in covered:
                    durable.add(at)
    return durable


def _check_name(path: str) -> None:
    """Nobody may ask for what stands outside of the root; other names the operating system would not take."""
    _check_inside(path)
    if "\0" in path:
        raise ValueError("embedded null byte")
    if any(len(part.encode()) > 255 for part in path.split("/")):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)


def _check_inside(path: str) -> None:
    assert not {".", ".."} & set(path.split("/")), f"{path!r} leaves its directory"


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


class Sparse:
    """The content of a file that is mostly a hole, as far as this disk uses a bytearray."""

    _PAGE = 4096

    def __init__(self, content: bytearray | Sparse) -> None:
        #: by number; those that are not there are zeros
        self.pages: dict[int, bytearray] = {}
        self._size = len(content)
        self[0 : self._size] = bytes(content[0 : self._size])

    def copy(self) -> Sparse:
        copied = Sparse(bytearray())
        copied._size = self._size
        copied.pages = {number: page.copy() for number, page in self.pages.items()}
        return copied

    def __len__(self) -> int:
        return self._size

    def extend(self, zeros: bytes) -> None:
        self.grow(self._size + len(zeros))

    def grow(self, size: int) -> None:
        self._size = size

    def data_from(self, offset: int) -> int:
        """See `disk.port.File`."""
        pages = [page for page in self.pages if page >= offset // self._PAGE]
        return max(offset, min(pages) * self._PAGE) if pages else max(offset, self._size)

    def __getitem__(self, where: slice) -> bytes:
        start, stop, _ = where.indices(self._size)
        parts = []
        while start < stop:
            number, at = divmod(start, self._PAGE)
            end = min(stop, (number + 1) * self._PAGE)
            page = self.pages.get(number)
            parts.append(bytes(end - start) if page is None else page[at : at + end - start])
            start = end
        return b"".join(parts)

    def __setitem__(self, where: slice, data: bytes) -> None:
        start, stop, _ = where.indices(self._size)
        assert stop - start == len(data), "no other assignment is needed"
        for at in range(start // self._PAGE * self._PAGE, stop, self._PAGE):
            begin, end = max(start, at), min(stop, at + self._PAGE)
            part = data[begin - start : end - start]
            if at // self._PAGE in self.pages or any(part):
                page = self.pages.setdefault(at // self._PAGE, bytearray(self._PAGE))
                page[begin - at : end - at] = part

    def __delitem__(self, where: slice) -> None:
        size = where.indices(self._size)[0]
        self.pages = {number: page for number, page in self.pages.items() if number * self._PAGE < size}
        if size % self._PAGE and (last := self.pages.get(size // self._PAGE)) is not None:
            last[size % self._PAGE :] = bytes(self._PAGE - size % self._PAGE)
        self._size = size


#: what a file holds
Content: TypeAlias = bytearray | Sparse
#: a file that gets so many zeros at once is kept as a hole with something in it
_LARGE_HOLE = 8 << 20


class SimulatedFile:
    """See `disk.port.File`."""

    def __init__(self, disk: SimulatedDisk, path: str, inode: int) -> None:
        self._disk = disk
        self._inode = inode
        self.path = path
        self.closed = False
        disk.open_files += 1

    def pwrite(self, data: Buffer, offset: int) -> None:
        assert not self.closed
        data = bytes(data)
        self._disk.check(Operation.WRITE, self.path)
        _write(self._disk.inodes[self._inode], data, offset)
        self._disk.record(Operation.WRITE, self.path, inode=self._inode, offset=offset, data=data)

    def pread(self, size: int, offset: int) -> bytes:
        assert not self.closed
        self._disk.cold.discard(self.path)
        return bytes(self._disk.inodes[self._inode][offset : offset + size])

    def try_pread(self, size: int, offset: int) -> memoryview | None:
        assert not self.closed
        if self.path in self._disk.cold:
            return None
        return memoryview(bytes(self._disk.inodes[self._inode][offset : offset + size]))

    def size(self) -> int:
        return len(self._disk.inodes[self._inode])

    def data_from(self, offset: int) -> int:
        content = self._disk.inodes[self._inode]
        return content.data_from(offset) if isinstance(content, Sparse) else offset

    def truncate(self, size: int) -> None:
        self._disk.check(Operation.TRUNCATE, self.path)
        _truncate(self._disk.inodes, self._inode, size)
        self._disk.record(Operation.TRUNCATE, self.path, inode=self._inode, size=size)

    def allocate(self, offset: int, size: int) -> None:
        self._disk.check(Operation.ALLOCATE, self.path)
        self._disk.record(Operation.ALLOCATE, self.path, inode=self._inode, offset=offset, size=size)

    def fdatasync(self) -> None:
        assert not self.closed
        self._disk.sync(self.path, self._inode)

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self._disk.open_files -= 1


class SimulatedLock:
    def __init__(self, disk: SimulatedDisk, path: str) -> None:
        self._disk, self._path = disk, path
        if path in disk.locks:
            raise BlockingIOError(errno.EAGAIN, "another process has the lock", path)
        disk.locks.add(path)

    def close(self) -> None:
        self._disk.locks.discard(self._path)


class SimulatedDisk:
    """See `disk.port.Disk`. Owner: a test."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.inodes: dict[int, Content] = {}
        self.names: dict[str, int] = {}
        self.directories: set[str] = {""}
        self.locks: set[str] = set()
        #: paths whose content is not in the page cache: `try_pread` gives None until something has read them
        self.cold: set[str] = set()
        #: the errno with which an operation fails on every path that begins with the text
        self.faults: dict[tuple[Operation, str], int] = {}
        self.open_files = 0
        #: the time that writes leave in `modified`, by inode; without a clock nothing ever gets old
        self.now_ms: Callable[[], int] = lambda: 1 << 62
        self.modified: dict[int, int] = {}
        #: by directory: bytes used and free
        self.spaces: dict[str, tuple[int, int]] = {}
        #: what this disk held when it was made, durable
        self._base: tuple[dict[int, Content], dict[str, int], set[str]] = ({}, {}, {""})

    # ------------------------------------------------------------------------------------------ the stage

    def check(self, operation: Operation, path: str) -> None:
        for (failing, prefix), number in self.faults.items():
            if failing is operation and path.startswith(prefix):
                raise OSError(number, os.strerror(number), path)

    def sync(self, path: str, inode: int) -> None:
        try:
            self.check(Operation.SYNC, path)
        except OSError:
            self.record(Operation.FAILED_SYNC, path, inode=inode)
            raise
        self.record(Operation.SYNC, path, inode=inode)

    def record(
        self,
        operation: Operation,
        path: str,
        *,
        inode: int = -1,
        offset: int = 0,
        data: bytes = b"",
        size: int = 0,
        to: str = "",
    ) -> None:
        if data or size:
            self.modified[inode] = self.now_ms()
        self.events.append(
            Event(operation=operation, path=path, inode=inode, offset=offset, data=data, size=size, to=to)
        )

    def crashed(self, events: int | None = None, survives: Survives = nothing_survives) -> SimulatedDisk:
        """The disk after a crash behind the first `events` events (all of them when None), free of locks and faults."""
        history = self.events[:events]
        durable = _durable(history)
        after = SimulatedDisk()
        after.now_ms, after.modified = self.now_ms, dict(self.modified)
        contents, names, directories = self._base
        after.inodes = {inode: content.copy() for inode, content in contents.items()}
        after.names, after.directories = dict(names), set(directories)
        for at, event in enumerate(history):
            if event.operation is Operation.CREATE:
                after.inodes[event.inode] = bytearray()  # its bytes live as long as any name may
            if event.operation not in _SYNCS:
                ranges = everything_survives(event) if at in durable else survives(event)
                if ranges:
                    after._replay(event, ranges)
        for path in sorted(after.directories):
            if _parent(path) not in after.directories:
                after.directories.discard(path)
        after.names = {path: inode for path, inode in after.names.items() if _parent(path) in after.directories}
        after._base = ({i: c.copy() for i, c in after.inodes.items()}, dict(after.names), set(after.directories))
        return after

    def _replay(self, event: Event, ranges: Sequence[tuple[int, int]]) -> None:
        match event.operation:
            case Operation.CREATE:
                self.names[event.path] = event.inode
            case Operation.WRITE:
                for start, end in ranges:
                    _write(self.inodes[event.inode], event.data[start:end], event.offset + start)
            case Operation.TRUNCATE:
                _truncate(self.inodes, event.inode, event.size)
            case Operation.MKDIR:
                self.directories.add(event.path)
            case Operation.RENAME:
                if event.path in self.names:
                    self.names[event.to] = self.names.pop(event.path)
            case Operation.UNLINK:
                self.names.pop(event.path, None)
            case Operation.RMDIR:
                self.directories.discard(event.path)

    # ------------------------------------------------------------------------------------------- the port

    def open(self, path: str) -> SimulatedFile:
        _check_name(path)
        if path not in self.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return SimulatedFile(self, path, self.names[path])

    def create(self, path: str) -> SimulatedFile:
        if path not in self.names:
            _check_name(path)
            if _parent(path) not in self.directories:
                raise FileNotFoundError(errno.ENOENT, "no such directory", path)
            self.check(Operation.CREATE, path)
            inode = len(self.inodes)
            self.inodes[inode] = bytearray()
            self.names[path] = inode
            self.record(Operation.CREATE, path, inode=inode)
        return self.open(path)

    def exists(self, path: str) -> bool:
        _check_inside(path)
        return path in self.names or path in self.directories

    def list(self, path: str) -> list[str]:
        _check_name(path)
        if path not in self.directories:
            return []
        return sorted(
            os.path.basename(name) for name in (*self.names, *self.directories) if name and _parent(name) == path
        )

    def mkdir(self, path: str, *, durable: bool = True) -> None:
        if path in self.directories:
            return
        _check_name(path)
        self.mkdir(_parent(path), durable=durable)
        self.check(Operation.MKDIR, path)
        self.directories.add(path)
        self.record(Operation.MKDIR, path)
        if durable:
            self.sync_directory(_parent(path))

    def rename(self, path: str, to: str) -> None:
        self.check(Operation.RENAME, path)
        self.names[to] = self.names.pop(path)
        self.record(Operation.RENAME, path, to=to)

    def unlink(self, path: str) -> None:
        if path not in self.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        self.check(Operation.UNLINK, path)
        inode = self.names.pop(path)
        self.record(Operation.UNLINK, path, inode=inode)

    def rmdir(self, path: str) -> None:
        if path not in self.directories:
            raise FileNotFoundError(errno.ENOENT, "no such directory", path)
        if self.list(path):
            raise OSError(errno.ENOTEMPTY, "the directory is not empty", path)
        self.check(Operation.RMDIR, path)
        self.directories.discard(path)
        self.record(Operation.RMDIR, path)

    def sync_directory(self, path: str) -> None:
        self.check(Operation.SYNC_DIRECTORY, path)
        self.record(Operation.SYNC_DIRECTORY, path)

    def sync_all(self, path: str) -> bool:
        for name, inode in list(self.names.items()):
            self.sync(name, inode)
        for directory in sorted(self.directories):
            self.sync_directory(directory)
        return True

    def read_file(self, path: str) -> bytes:
        file = self.open(path)
        try:
            return file.pread(file.size(), 0)
        finally:
            file.close()

    def replace_file(self, path: str, data: bytes) -> None:
        self.mkdir(_parent(path))
        file = self.create(path + ".tmp")
        try:
            file.truncate(0)
            file.pwrite(data, 0)
            file.fdatasync()
        finally:
            file.close()
        self.rename(path + ".tmp", path)
        self.sync_directory(_parent(path))

    def lock(self, path: str) -> SimulatedLock:
        return SimulatedLock(self, path)

    def lock_holder(self, path: str) -> int | None:
        return os.getpid() if path in self.locks else None

    def age_ms(self, path: str) -> int:
        self.open(path).close()  # raises when it is not there
        return self.now_ms() - self.modified.get(self.names[path], self.now_ms())

    def space(self, path: str) -> Space:
        return Space(path or ".", *self.spaces.get(path, (0, 1 << 40)))


def _write(content: Content, data: bytes, offset: int) -> None:
    if len(content) < offset + len(data):
        content.extend(bytes(offset + len(data) - len(content)))
    content[offset : offset + len(data)] = data


def _truncate(contents: dict[int, Content], inode: int, size: int) -> None:
    content = contents[inode]
    del content[size:]
    if size - len(content) > _LARGE_HOLE or isinstance(content, Sparse):
        contents[inode] = sparse = Sparse(content)
        sparse.grow(size)
    else:
        content.extend(bytes(size - len(content)))
