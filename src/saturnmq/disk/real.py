"""Files of the operating system. Linux is the platform of production, macOS works for development."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from saturnmq.disk.port import Buffer, Space

if sys.platform == "darwin":

    def _fdatasync(descriptor: int) -> None:
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)

    def _allocate(descriptor: int, offset: int, size: int) -> None:
        """macOS has no posix_fallocate; a full disk shows in pwrite."""

    _NOWAIT = 0
    #: struct flock: l_start, l_len, l_pid, l_type, l_whence
    _FLOCK = struct.Struct("qqihh")

    def _exclusive() -> bytes:
        return _FLOCK.pack(0, 1, 0, fcntl.F_WRLCK, os.SEEK_SET)

    def _holder(flock: bytes) -> int | None:
        _, _, pid, kind, _ = _FLOCK.unpack(flock)
        return None if kind == fcntl.F_UNLCK else pid
else:
    _fdatasync = os.fdatasync
    _allocate = os.posix_fallocate
    _NOWAIT = os.RWF_NOWAIT
    #: struct flock: l_type, l_whence, l_start, l_len, l_pid
    _FLOCK = struct.Struct("hhqqi4x")

    def _exclusive() -> bytes:
        return _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)

    def _holder(flock: bytes) -> int | None:
        kind, _, _, _, pid = _FLOCK.unpack(flock)
        return None if kind == fcntl.F_UNLCK else pid


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Calls on a descriptor raise OSError without the path; put it in."""
    try:
        yield
    except OSError as error:
        error.filename = path
        raise


class RealFile:
    """See `disk.port.File`."""

    __slots__ = ("_descriptor", "_nowait", "path")

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._nowait = _NOWAIT

    def pwrite(self, data: Buffer, offset: int) -> None:
        try:
            written = os.pwrite(self._descriptor, data, offset)
            while written < len(data):
                written += os.pwrite(self._descriptor, memoryview(data)[written:], offset + written)
        except OSError as error:  # `_naming` without its price
            error.filename = self.path
            raise

    def pread(self, size: int, offset: int) -> bytes:
        try:
            data = os.pread(self._descriptor, size, offset)
            while len(data) < size:
                more = os.pread(self._descriptor, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            error.filename = self.path
            raise
        return data

    def try_pread(self, size: int, offset: int) -> memoryview | None:
        buffer = bytearray(size)
        try:
            got = os.preadv(self._descriptor, (buffer,), offset, self._nowait)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP or not self._nowait:
                error.filename = self.path
                raise
            self._nowait = 0  # this file system cannot tell: read, and wait if need be
            return self.try_pread(size, offset)
        if got < size and offset + got < self.size():
            return None
        return memoryview(buffer)[:got]

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def data_from(self, offset: int) -> int:
        try:
            return os.lseek(self._descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return max(offset, self.size())
            return offset  # this file system cannot tell

    def truncate(self, size: int) -> None:
        with _naming(self.path):
            os.ftruncate(self._descriptor, size)

    def allocate(self, offset: int, size: int) -> None:
        with _naming(self.path):
            _allocate(self._descriptor, offset, size)

    def fdatasync(self) -> None:
        with _naming(self.path):
            _fdatasync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class RealLock:
    """Two locks on one descriptor: flock against a second store of this process, a POSIX record lock (which flock does
    not see) against Apache's broker, whose FileChannel.tryLock(0, 1) takes one of those."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
        except OSError as error:
            os.close(self._descriptor)
            raise BlockingIOError(errno.EAGAIN, "another process has the lock", path) from error

    def close(self) -> None:
        os.close(self._descriptor)


@cache
def _syncfs() -> Callable[[int], None] | None:
    """Linux's, which says since 5.8 when a write had failed (man 2 sync)."""
    system = os.uname()
    if system.sysname != "Linux" or [int(part) for part in re.findall(r"\d+", system.release)[:2]] < [5, 8]:
        return None
    import ctypes  # a tenth of the start, for what few need

    call = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if call is None:
        return None

    def syncfs(descriptor: int) -> None:
        if call(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    return syncfs


class RealDisk:
    """See `disk.port.Disk`. `root` is made when it is not there."""

    #: the clock that dates files; a test may put it forward
    now_ms: Callable[[], int] = staticmethod(_now_ms)

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        os.makedirs(self.root, exist_ok=True)

    def _at(self, path: str) -> str:
        return os.path.join(self.root, path)

    def open(self, path: str) -> RealFile:
        full = self._at(path)
        try:
            return RealFile(full, os.open(full, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            return RealFile(full, os.open(full, os.O_RDONLY | os.O_CLOEXEC))

    def create(self, path: str) -> RealFile:
        full = self._at(path)
        return RealFile(full, os.open(full, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))

    def exists(self, path: str) -> bool:
        return os.path.exists(self._at(path))

    def list(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(self._at(path)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def mkdir(self, path: str, *, durable: bool = True) -> None:
        if not path or self.exists(path):
            return
        parent = os.path.dirname(path)
        if parent != path:
            self.mkdir(parent, durable=durable)
        os.makedirs(self._at(path), exist_ok=True)
        if durable:
            self.sync_directory(parent)

    def rename(self, path: str, to: str) -> None:
        os.rename(self._at(path), self._at(to))

    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def sync_directory(self, path: str) -> None:
        full = self._at(path)
        descriptor = os.open(full, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with _naming(full):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def sync_all(self, path: str) -> bool:
        syncfs = _syncfs()
        if syncfs is None:
            return False
        full = self._at(path)
        descriptor = os.open(full, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with _naming(full):
                syncfs(descriptor)
        finally:
            os.close(descriptor)
        return True

    def read_file(self, path: str) -> bytes:
        with open(self._at(path), "rb") as file:
            return file.read()

    def replace_file(self, path: str, data: bytes) -> None:
        self.mkdir(os.path.dirname(path))
        file = self.create(path + ".tmp")
        try:
            file.truncate(0)
            file.pwrite(data, 0)
            file.fdatasync()
        finally:
            file.close()
        self.rename(path + ".tmp", path)
        self.sync_directory(os.path.dirname(path))

    def lock(self, path: str) -> RealLock:
        return RealLock(self._at(path))

    def lock_holder(self, path: str) -> int | None:
        try:
            descriptor = os.open(self._at(path), os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return _holder(fcntl.fcntl(descriptor, fcntl.F_GETLK, _exclusive()))
        finally:
            os.close(descriptor)

    def age_ms(self, path: str) -> int:
        return self.now_ms() - os.stat(self._at(path)).st_mtime_ns // 1_000_000

    def space(self, path: str) -> Space:
        full = os.path.abspath(self._at(path))
        stat = os.statvfs(full)
        return Space(full, (stat.f_blocks - stat.f_bfree) * stat.f_frsize, stat.f_bavail * stat.f_frsize)
