"""File systems of a few megabytes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

MIB = 1 << 20


class SmallDisk:
    """A file system of its own, mounted at `path`. Owner: the fixture."""

    def __init__(self, path: Path, image: Path | None) -> None:
        self.path, self._image = path, image

    @property
    def device(self) -> str:
        """`loop0`"""
        found = subprocess.run(["findmnt", "-n", "-o", "SOURCE", str(self.path)], capture_output=True, check=True)
        return found.stdout.decode().strip().rpartition("/")[2]

    def mount(self, megabytes: int) -> None:
        """Raises CalledProcessError."""
        if self._image is None:
            command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(self.path)]
        else:
            with self._image.open("wb") as file:
                file.truncate(megabytes * MIB)
            subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(self._image)], check=True, capture_output=True)
            command = ["mount", "-o", "loop,errors=remount-ro", str(self._image), str(self.path)]
        subprocess.run(command, check=True, capture_output=True)

    def remount(self) -> None:
        """Again, after its repair."""
        assert self._image is not None
        self.unmount()
        subprocess.run(["fsck.ext4", "-p", "-f", str(self._image)], check=False, capture_output=True)
        subprocess.run(["mount", "-o", "loop", str(self._image), str(self.path)], check=True, capture_output=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=False, capture_output=True)

    def ballast(self, megabytes: int) -> Path:
        """Somebody else's file."""
        path = self.path / "ballast"
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, megabytes * MIB)
        return path
