"""A wall clock that a test sets: `python wall_clock.py FILE …` is `saturnmq …` whose clock is off by what FILE says."""

from __future__ import annotations

import mmap
import sys
import time
from pathlib import Path


class WallClock:
    """Of the servers that are started with `command`. Owner: the test."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.off_ms = 0
        self.jump(0)

    @property
    def command(self) -> tuple[str, ...]:
        return sys.executable, __file__, str(self._path)

    def jump(self, milliseconds: int) -> None:
        self.off_ms += milliseconds
        with self._path.open("r+b" if self._path.exists() else "wb") as file:
            file.write(self.off_ms.to_bytes(8, "big", signed=True))

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.off_ms


def run() -> None:
    with Path(sys.argv.pop(1)).open("rb") as file:
        shared = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    right_ns = time.time_ns

    def off_ns() -> int:
        return right_ns() + int.from_bytes(shared[:8], "big", signed=True) * 1_000_000

    time.time_ns = off_ns
    time.time = lambda: off_ns() / 1e9
    from saturnmq.__main__ import main

    main()


if __name__ == "__main__":
    run()
