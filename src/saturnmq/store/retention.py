"""Deleting what is old: log files, and the queue and index files that lead nowhere any more.

A log file is expired `fileReservedTime` after its last write, by the clock that dated it, the system's: ours may be
ahead of that after somebody put it back. Expired files are deleted in the hours of `deleteWhen`, and at any time when
the disk is fuller than diskMaxUsedSpaceRatio or somebody asks (`clean`); with cleanFileForciblyEnable and a disk fuller
than diskSpaceCleanForciblyRatio the oldest files are deleted whatever their age. The file that is written to stays.
Source of the rules: store/DefaultMessageStore.java (CleanCommitLogService), MappedFileQueue.java.

Messages that somebody still has to do something with are not deleted, expired or not: those who know of such messages
are asked first, the lodgers. What they did with the ones before (a delayed message was delivered, a lease was ended) is
in the log, and that is made durable before the file goes: else a power cut could take both.

Nobody who reads can miss a file: first the queues stop showing its messages, then the log begins behind it, then it is
deleted, and last the files of queues and index. A read in a thread that came before finds its file gone, and is made
again (`Store._read`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import TypeAlias, TypeVar

import msgspec

from saturnmq.disk.port import Disk, Space
from saturnmq.kernel.clock import Background, Clock, Timer
from saturnmq.kernel.config import StoreConfig
from saturnmq.kernel.errors import ServiceUnavailable
from saturnmq.kernel.later import Later, Reply, after, chain, gather, hear
from saturnmq.store.commitlog import CommitLog
from saturnmq.store.consumequeue import ConsumeQueues, QueueFile
from saturnmq.store.index import Index
from saturnmq.store.space import DiskSpace

log = logging.getLogger(__name__)

T = TypeVar("T")

#: from the start to the first look: there is enough to do then
_FIRST_LOOK_MS = 60_000
_HOUR_MS = 3_600_000

#: told up to which log position messages would be deleted, answers up to which they may be: the position of the first
#: message that is still pending, when that is lower
Lodger: TypeAlias = Callable[[int], Reply[int]]


class Cleaned(msgspec.Struct, frozen=True):
    """How many files were deleted."""

    log_files: int
    queue_files: int
    index_files: int


NOTHING = Cleaned(0, 0, 0)


def parse_hours(text: str) -> frozenset[int]:
    """`deleteWhen` ("04;16"). Raises ValueError."""
    hours = [hour.strip() for hour in text.split(";") if hour.strip()]
    if not all(hour.isdigit() and int(hour) < 24 for hour in hours):
        raise ValueError(f"deleteWhen = {text!r} cannot be used: write hours from 0 to 23, as in `4` or `4;16`")
    return frozenset(map(int, hours))


class Retention:
    """Owner: the store, on the event loop. One cleaning at a time."""

    def __init__(
        self,
        disk: Disk,
        commit_log: CommitLog,
        queues: ConsumeQueues,
        index: Index,
        space: DiskSpace,
        config: StoreConfig,
        clock: Clock,
        background: Background,
        *,
        flush: Callable[[], Reply[None]],
        #: hears of a file that is going to be deleted
        on_delete: Callable[[str], None],
    ) -> None:
        """Raises ValueError."""
        self._disk, self._log, self._queues, self._index, self._space = disk, commit_log, queues, index, space
        self._config, self._clock, self._background = config, clock, background
        self._flush, self._on_delete = flush, on_delete
        self._hours = parse_hours(config.delete_when)
        #: who must be asked, by a name for the log
        self.lodgers: dict[str, Lodger] = {}
        #: the log's first file on disk
        self._oldest = 0
        self._timer: Timer | None = None
        #: what is to be done: with the log's files or not, whatever their age or not, and who waits for it
        self._asked: deque[tuple[bool, bool, Later[Cleaned]]] = deque()
        self._busy = False
        self._pause: tuple[Timer, Later[None]] | None = None
        self._stopped = False
        #: who waits for the end of what is under way
        self._idle: Later[None] | None = None
        #: what was said of files that cannot be deleted since some were: it is said once
        self._said: set[str] = set()

    def configure(self, config: StoreConfig) -> None:
        """Other rules from now on. Raises ValueError."""
        self._hours = parse_hours(config.delete_when)
        self._config = config

    def start(self) -> None:
        """The log is open."""
        self._oldest = self._log.first
        self._timer = self._clock.call_at(self._clock.now_ms() + _FIRST_LOOK_MS, self._look)

    def stop(self) -> Reply[None]:
        """No more cleaning; answers when none is under way."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._pause is not None:
            (timer, over), self._pause = self._pause, None
            timer.cancel()
            over.resolve(None)
        if not self._busy:
            return None
        self._idle = Later()
        return self._idle

    def clean(self, *, commit_log: bool = True) -> Reply[Cleaned]:
        """Delete now what is expired, at most deleteFileBatchMax log files; or only the queue and index files that lead
        to no message. Fails with ServiceUnavailable, OSError."""
        return self._ask(commit_log=commit_log, forced=False)

    # --------------------------------------------------------------------------------------------------- when

    def _look(self) -> None:
        self._timer = self._clock.call_at(self._clock.now_ms() + self._config.clean_resource_interval, self._look)
        config, space = self._config, self._space.fullest
        forced = config.clean_file_forcibly_enable and space.used_percent > config.disk_space_clean_forcibly_ratio
        full = space.used_percent > config.disk_max_used_space_ratio
        if not self._busy and (forced or full or self._hour() in self._hours):
            self._ask(commit_log=True, forced=forced).then(lambda cleaned: self._looked(cleaned, space, full), _report)

    def _hour(self) -> int:
        return datetime.fromtimestamp(self._clock.now_ms() // 1000).hour

    def _looked(self, cleaned: Cleaned, space: Space, full: bool) -> None:
        if cleaned.log_files:
            self._said.clear()
        elif full:
            self._complain(
                f"the disk of {space.path} is {space.used_percent} % full (diskMaxUsedSpaceRatio "
                f"{self._config.disk_max_used_space_ratio}), and no log file can be deleted (fileReservedTime "
                f"{self._config.file_reserved_time} hours)"
            )

    def _complain(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            log.warning("%s", text)

    # -------------------------------------------------------------------------------------------- one by one

    def _ask(self, *, commit_log: bool, forced: bool) -> Later[Cleaned]:
        later: Later[Cleaned] = Later()
        self._asked.append((commit_log, forced, later))
        self._next()
        return later

    def _next(self) -> None:
        if self._busy or not self._asked:
            return
        self._busy = True
        commit_log, forced, later = self._asked.popleft()
        hear(
            self._clean_log(forced)
            if commit_log
            else chain(self._work(_nothing), lambda _: self._clean_up(self._log.first)),
            lambda cleaned: self._over(lambda: later.resolve(cleaned)),
            lambda error: self._over(lambda: later.fail(error)),
        )

    def _over(self, tell: Callable[[], None]) -> None:
        self._busy = False
        tell()
        if self._idle is not None and self._idle.pending and not self._asked:
            self._idle.resolve(None)
        self._next()

    def _work(self, work: Callable[[], T]) -> Reply[T]:
        """One job of a cleaning, in the background."""
        later: Later[T] = Later()
        if self._stopped:
            later.fail(ServiceUnavailable("the broker is stopping"))
        else:
            self._background.run(work, later.resolve, later.fail)
        return later

    # ------------------------------------------------------------------------------------- what a cleaning does

    def _clean_log(self, forced: bool) -> Reply[Cleaned]:
        file_size, disk = self._log.file_size, self._disk
        starts = range(self._oldest, self._log.written // file_size * file_size, file_size)
        paths = [self._log.path(start) for start in starts[: self._config.delete_file_batch_max]]
        reserved_ms = self._config.file_reserved_time * _HOUR_MS
        expired = self._work(lambda: len(paths) if forced else _expired(disk, paths, reserved_ms))
        allowed = chain(expired, lambda count: self._ask_lodgers(self._oldest + count * file_size))
        return chain(allowed, self._clean_to)

    def _ask_lodgers(self, end: int) -> Reply[int]:
        """Up to where the log may be deleted: the start of a file, `end` or one before."""
        if end == self._oldest:
            return end
        names = list(self.lodgers)
        return after(
            gather([lodger(end) for lodger in self.lodgers.values()]), lambda ends: self._heard(end, names, ends)
        )

    def _heard(self, end: int, names: list[str], ends: list[int]) -> int:
        allowed, holder = min([(end, ""), *zip(ends, names, strict=True)])
        if holder:
            self._complain(f"the commit log is expired up to {end}, but kept from {allowed} on for {holder}")
        return max(self._oldest, allowed // self._log.file_size * self._log.file_size)

    def _clean_to(self, end: int) -> Reply[Cleaned]:
        if end == self._oldest:
            return NOTHING
        return chain(self._flush(), lambda _: self._clean_up(end))

    def _clean_up(self, end: int) -> Reply[Cleaned]:
        """Delete the log's files below this position, the start of one, and what leads only there."""
        return chain(self._queues.hide(end), lambda queue_files: self._hide(end, queue_files))

    def _hide(self, end: int, queue_files: list[QueueFile]) -> Reply[Cleaned]:
        """The log goes first: whatever comes in between, no message is left in it that its queue does not know."""
        log_files = (end - self._oldest) // self._log.file_size
        self._log.first = max(self._log.first, end)
        index_paths = self._index.clean(end)
        deleted = chain(self._unlink_log(end), lambda _: self._work(lambda: _unlink(self._disk, index_paths)))
        return after(
            chain(deleted, lambda _: self._queues.delete(queue_files)),
            lambda _: Cleaned(log_files, len(queue_files), len(index_paths)),
        )

    def _unlink_log(self, end: int) -> Reply[None]:
        """Oldest first, each durable before the next: a crash must leave no gap."""
        start = self._oldest
        if start >= end:
            return None
        path = self._log.path(start)
        self._on_delete(path)
        return chain(self._work(lambda: _unlink(self._disk, [path])), lambda _: self._unlinked(path, start, end))

    def _unlinked(self, path: str, start: int, end: int) -> Reply[None]:
        log.info("%s is deleted", path)
        self._oldest = start + self._log.file_size
        self._log.forget(start)
        if self._oldest >= end:
            return None
        return chain(self._wait(self._config.delete_commit_log_files_interval), lambda _: self._unlink_log(end))

    def _wait(self, milliseconds: int) -> Reply[None]:
        later: Later[None] = Later()

        def over() -> None:
            self._pause = None
            later.resolve(None)

        self._pause = self._clock.call_at(self._clock.now_ms() + milliseconds, over), later
        return later


def _report(error: BaseException) -> None:
    log.warning("old files could not be deleted: %s", error)


def _nothing() -> None:
    """Only to see whether there is still work to be done."""


def _expired(disk: Disk, paths: list[str], reserved_ms: int) -> int:
    """How many of the files, from the first one on, are so old."""
    for count, path in enumerate(paths):
        if disk.age_ms(path) < reserved_ms:
            return count
    return len(paths)


def _unlink(disk: Disk, paths: list[str]) -> None:
    """Durable on return. What is not there any more is as good as deleted."""
    for path in paths:
        if disk.exists(path):
            disk.unlink(path)
            disk.sync_directory(path.rpartition("/")[0])
