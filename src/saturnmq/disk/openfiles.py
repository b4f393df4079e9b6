"""Descriptors are few, queues are many: the files used last stay open, the others are closed."""

from __future__ import annotations

from saturnmq.disk.port import Disk, File


class OpenFiles:
    """At most `limit` open files by path, the least recently used closed first. Owner: one thread, which alone uses
    the files that it gets here, so that none is closed under a call."""

    def __init__(self, disk: Disk, limit: int) -> None:
        self._disk = disk
        self._limit = limit
        self._files: dict[str, File] = {}

    def get(self, path: str) -> File:
        """The file, opened when it is not. Raises FileNotFoundError."""
        files = self._files
        file = files.pop(path, None)
        if file is None:
            file = self._disk.open(path)
            if len(files) >= self._limit:
                files.pop(next(iter(files))).close()
        files[path] = file  # the newest stands last
        return file

    def drop(self, path: str) -> None:
        """Close the file if it is open: a deleted one takes room as long as somebody has it."""
        file = self._files.pop(path, None)
        if file is not None:
            file.close()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def __len__(self) -> int:
        return len(self._files)
