"""A disk that can only be read: for tools that look at a directory that is somebody else's, or a server's at work."""

from __future__ import annotations

import errno
import os
from typing import NoReturn

from saturnmq.disk.real import RealDisk, RealFile


class ReadOnlyDisk(RealDisk):
    """See `disk.port.Disk`. What would change anything raises OSError; files are opened for reading."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)

    def open(self, path: str) -> RealFile:
        full = self._at(path)
        if os.path.isdir(full):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), full)
        return RealFile(full, os.open(full, os.O_RDONLY | os.O_CLOEXEC))

    def _refuse(self, path: str, *_: object, **__: object) -> NoReturn:
        raise OSError(errno.EROFS, "the disk is only read", self._at(path))

    create = mkdir = rename = unlink = rmdir = sync_directory = replace_file = lock = _refuse
