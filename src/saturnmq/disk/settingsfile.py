"""A file of settings that a running server changes."""

from __future__ import annotations

from collections.abc import Mapping

from saturnmq.disk.port import Disk
from saturnmq.kernel import configfile


class SettingsFile:
    """A Java properties file. People write it, and so do we: what they wrote besides our changes stays."""

    def __init__(self, disk: Disk, path: str) -> None:
        self._disk, self._path = disk, path

    def change(self, changes: Mapping[str, str]) -> None:
        """Set these keys, durably. Raises OSError; the file is then as it was."""
        data = self._disk.read_file(self._path) if self._disk.exists(self._path) else b""
        # a file that is no UTF-8 keeps its bytes
        text = configfile.with_changes(data.decode("utf-8", "surrogateescape"), changes)
        self._disk.replace_file(self._path, text.encode("utf-8", "surrogateescape"))
