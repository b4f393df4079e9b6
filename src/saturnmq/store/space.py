"""Room on the disks: how much there is, and when there is too little of it to take messages.

A percentage alone refuses writes on a large disk that has hundreds of gigabytes left, and on a laptop whose disk is
full of other things; so both figures must be bad. What is left then is for the queues, the index, `config/*.json`, and
for what consumers say of messages that they have. It is looked at every few seconds and when a write found no room,
never on the way of a message.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence

from saturnmq.disk.port import Disk, Space
from saturnmq.kernel.clock import Background, Clock, Timer
from saturnmq.kernel.config import StoreConfig
from saturnmq.kernel.metrics import Metrics

log = logging.getLogger(__name__)

#: between two looks
INTERVAL_MS = 5_000


def is_no_room(error: BaseException) -> bool:
    """The disk is full, or the quota used up: nothing is broken, and the same write succeeds when there is room."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


class DiskSpace:
    """Knows the disks of one store: of its root directory and of those that log files are made in. Owner: the store.

    `on_look` is called after each look."""

    def __init__(
        self,
        disk: Disk,
        directories: Sequence[str],
        config: StoreConfig,
        clock: Clock,
        background: Background,
        on_look: Callable[[], None],
    ) -> None:
        self._disk, self._config, self._clock, self._background = disk, config, clock, background
        self._on_look = on_look
        #: the root first
        self._directories = ("", *directories)
        self._spaces: dict[str, Space] = {}
        self._timer: Timer | None = None
        self._stopped = False
        #: why no messages are taken; None while there is room
        self.refusal: str | None = None
        #: log directories without room for another file
        self.full: frozenset[str] = frozenset()

    def start(self) -> None:
        """Look now, and from now on; the directories are there. Raises OSError."""
        self.look()
        self._arm()

    def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    @property
    def fullest(self) -> Space:
        """Of the root and of the log directory with the most room: where it will be short first."""
        root, *logs = (self._spaces[directory] for directory in self._directories)
        return max(root, min(logs, key=lambda space: space.used_percent), key=lambda space: space.used_percent)

    @property
    def root(self) -> Space:
        """Of the store's own directory."""
        return self._spaces[self._directories[0]]

    @property
    def logs(self) -> list[Space]:
        """Of the directories that log files are made in."""
        return [self._spaces[directory] for directory in self._directories[1:]]

    def configure(self, config: StoreConfig) -> None:
        """Other limits, from the next look on."""
        self._config = config

    def look(self) -> None:
        """At once, on this thread. Raises OSError."""
        self._looked(_look(self._disk, self._directories))

    def explain(self, error: OSError) -> str:
        """What to say of a write that found no room. Looks again."""
        try:
            self.look()
        except OSError as failure:
            log.error("the room on the disk is not known: %s", failure)
        space = self.fullest
        return self.refusal or (
            f"{error.filename}: {error.strerror} (errno {error.errno}), while {space.path} has {_size(space.free)} free"
            f" and is {space.used_percent} % full: a quota may be used up; messages are taken again when there is room"
        )

    def measure(self, metrics: Metrics) -> None:
        metrics.gauge(
            "saturnmq_disk_used_ratio", "Used part of the store's disk", lambda: self.fullest.used_percent / 100
        )
        metrics.gauge("saturnmq_disk_free_bytes", "Free bytes on the store's disk", lambda: self.fullest.free)
        metrics.gauge(
            "saturnmq_disk_refuses_messages", "1 while the disk has no room", lambda: int(self.refusal is not None)
        )

    def _arm(self) -> None:
        if not self._stopped:
            self._timer = self._clock.call_at(self._clock.now_ms() + INTERVAL_MS, self._tick)

    def _tick(self) -> None:
        disk, directories = self._disk, self._directories
        self._background.run(lambda: _look(disk, directories), self._ticked, self._failed)

    def _ticked(self, spaces: dict[str, Space]) -> None:
        if not self._stopped:
            self._looked(spaces)
            self._arm()

    def _failed(self, error: BaseException) -> None:
        log.error("the room on the disk is not known: %s", error)
        self._arm()

    def _looked(self, spaces: dict[str, Space]) -> None:
        self._spaces = spaces
        root, *logs = self._directories
        self.full = frozenset(directory for directory in logs if self._is_short(spaces[directory]))
        if self._is_short(spaces[root]):
            short: Space | None = spaces[root]
        else:
            short = spaces[logs[0]] if len(self.full) == len(logs) else None
        before, self.refusal = self.refusal, self._refusal(short) if short is not None else None
        if self.refusal is not None and before is None:
            log.error("%s", self.refusal)
        elif self.refusal is None and before is not None:
            log.warning("there is room on the disk: messages are taken again")
        self._on_look()

    def _is_short(self, space: Space) -> bool:
        config = self._config
        return space.used_percent > config.disk_space_warning_level_ratio and space.free < config.disk_min_free_bytes

    def _refusal(self, space: Space) -> str:
        percent, least = self._config.disk_space_warning_level_ratio, self._config.disk_min_free_bytes
        return (
            f"no messages are taken: the disk of {space.path} is {space.used_percent} % full and has "
            f"{_size(space.free)} free; they are taken again when it is no more than {percent} % full "
            f"(diskSpaceWarningLevelRatio) or has {_size(least)} free (diskMinFreeBytes={least})"
        )


def _look(disk: Disk, directories: Sequence[str]) -> dict[str, Space]:
    return {directory: disk.space(directory) for directory in directories}


def _size(number: int) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 10_240:
            return f"{number} {unit}"
        number //= 1024
    return f"{number} TiB"
