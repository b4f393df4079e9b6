"""What the store may ask of a disk. Paths are relative to the disk's root, with `/`; sizes and offsets are bytes.

Every method raises OSError with `errno` and, as `filename`, the path. Nothing is durable before its sync: the bytes
of a file before `fdatasync`, a new name before `sync_directory` of its directory.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview


class File(Protocol):
    """An open file. Each method may be called from any thread; `close` only when no other call is under way."""

    path: str

    def pwrite(self, data: Buffer, offset: int) -> None:
        """Write all of it."""
        ...

    def pread(self, size: int, offset: int) -> bytes:
        """Fewer bytes only at the end of the file. May wait for the disk."""
        ...

    def try_pread(self, size: int, offset: int) -> memoryview | None:
        """As `pread`, but None when it would have to wait for the disk."""
        ...

    def size(self) -> int: ...

    def data_from(self, offset: int) -> int:
        """Where, from this offset on, something else than zeros may stand: holes take no time to read past. The file's
        size when nothing does."""
        ...

    def truncate(self, size: int) -> None:
        """Cut, or lengthen by zeros that take no room."""
        ...

    def allocate(self, offset: int, size: int) -> None:
        """Give this part of the file real room, so that writing there cannot fail for want of it."""
        ...

    def fdatasync(self) -> None:
        """Make everything written so far durable. After a failure nobody knows what is: do not retry."""
        ...

    def close(self) -> None: ...


class Lock(Protocol):
    """Held until closed, or until the process ends."""

    def close(self) -> None: ...


class Space(NamedTuple):
    """How full the file system is that a directory stands on; bytes."""

    #: the directory, as the operating system knows it
    path: str
    used: int
    #: for us: what is kept for others is neither free nor used
    free: int

    @property
    def used_percent(self) -> int:
        """Rounded up, as `df` shows it."""
        total = self.used + self.free
        return -(-100 * self.used // total) if total else 0


class Disk(Protocol):
    """A directory tree that one store owns."""

    def open(self, path: str) -> File:
        """For reading and writing; where the whole file system can only be read, for that. Raises FileNotFoundError."""
        ...

    def create(self, path: str) -> File:
        """As `open`, but an absent file is made first."""
        ...

    def exists(self, path: str) -> bool: ...

    def list(self, path: str) -> list[str]:
        """The names in a directory, sorted; none when there is no such directory."""
        ...

    def mkdir(self, path: str, *, durable: bool = True) -> None:
        """With its parents. Does nothing when it is there. Not `durable`: the parents are still to be synced."""
        ...

    def rename(self, path: str, to: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def rmdir(self, path: str) -> None:
        """An empty directory."""
        ...

    def sync_directory(self, path: str) -> None: ...

    def sync_all(self, path: str) -> bool:
        """Everything on the file system of a directory: for very many files much cheaper than each. False when this
        system cannot, or would not tell that it failed."""
        ...

    def read_file(self, path: str) -> bytes: ...

    def replace_file(self, path: str, data: bytes) -> None:
        """The file has the old content or the new one, whatever happens; the new one, durable, on return."""
        ...

    def lock(self, path: str) -> Lock:
        """Take the lock file, against other processes too. Raises BlockingIOError when somebody else has it."""
        ...

    def lock_holder(self, path: str) -> int | None:
        """The id of the process that has the lock file, which is not touched; None when nobody else has."""
        ...

    def age_ms(self, path: str) -> int:
        """Milliseconds since the file was last written to, by the clock that wrote that down."""
        ...

    def space(self, path: str) -> Space:
        """Of the file system of a directory."""
        ...
