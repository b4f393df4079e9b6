"""Group commit: one fdatasync makes everything durable that was written before it, and releases everyone who waited.

SYNC_FLUSH starts the next sync as soon as there is something to sync and the last one is over; ASYNC_FLUSH every
flushIntervalCommitLog. After a failed sync nobody knows what is on disk (the kernel may have dropped the dirty pages):
every waiter fails and there is no next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from saturnmq.disk.port import File
from saturnmq.kernel.clock import Background, Clock, Timer
from saturnmq.kernel.errors import FlushTimeout
from saturnmq.kernel.later import Later, Reply
from saturnmq.store.checkpoint import Checkpoint
from saturnmq.store.commitlog import CommitLog

T = TypeVar("T")

_NEVER_MS = 1 << 62


class GroupCommit:
    """Owner: the store. `on_flushed` hears of every success before the waiters, `on_failed` of the one failure."""

    def __init__(
        self,
        log: CommitLog,
        checkpoint: Checkpoint,
        clock: Clock,
        flusher: Background,
        *,
        #: 0: at once
        interval_ms: int,
        timeout_ms: int,
        on_flushed: Callable[[], None],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self._log, self._checkpoint, self._clock, self._flusher = log, checkpoint, clock, flusher
        self._interval_ms, self._timeout_ms = interval_ms, timeout_ms
        self._on_flushed, self._on_failed = on_flushed, on_failed
        #: the log is durable up to here
        self.flushed = log.written
        self._syncing = False
        self._stopped = False
        self._timer: Timer | None = None
        #: position, reply, its value, deadline by the steady clock; who asks for less behind somebody who asks for more
        #: waits with him
        self._waiters: deque[tuple[int, Later[Any], Any, int]] = deque()
        self._deadline: Timer | None = None

    def wait(self, position: int, value: T, *, timeout: bool = True) -> Reply[T]:
        """The value when everything below the position is durable. Fails with FlushTimeout."""
        if position <= self.flushed:
            return value
        later: Later[T] = Later()
        if timeout:
            deadline_ms = self._clock.steady_ms() + self._timeout_ms
            if self._deadline is None:
                self._deadline = self._clock.call_at(self._clock.now_ms() + self._timeout_ms, self._time_out)
        else:
            deadline_ms = _NEVER_MS
        self._waiters.append((position, later, value, deadline_ms))
        return later

    def written(self) -> None:
        """The log was written to."""
        if self._interval_ms == 0:
            self.sync()
        elif self._timer is None and not self._stopped:
            self._timer = self._clock.call_at(self._clock.now_ms() + self._interval_ms, self._interval_over)

    def sync(self) -> None:
        """Start a sync unless one is under way, which another will follow."""
        if self._syncing or self._stopped or self._log.written <= self.flushed:
            return
        self._syncing = True
        target, files, checkpoint = self._log.written, self._log.take_unsynced(), self._checkpoint
        self._flusher.run(lambda: _sync(files, checkpoint, target), lambda _: self._synced(target), self._failed)

    @property
    def syncing(self) -> bool:
        return self._syncing

    def sync_now(self) -> None:
        """The same on this thread, at the end, when no sync is under way: that one alone would hear of an error.
        Raises OSError."""
        assert not self._syncing
        target = self._log.written
        _sync(self._log.take_unsynced(), self._checkpoint, target)
        self._log.synced()
        self._release(target)

    def stop(self, error: BaseException) -> None:
        """No more syncs; whoever waits hears the error."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._deadline is not None:
            self._deadline.cancel()
        waiters, self._waiters = self._waiters, deque()
        for _, later, _, _ in waiters:
            later.fail(error)

    def _interval_over(self) -> None:
        self._timer = None
        self.sync()

    def _synced(self, target: int) -> None:
        self._syncing = False
        self._log.synced()
        if self._stopped:
            return
        self._release(target)
        if self._log.written > self.flushed and (self._interval_ms == 0 or self._waiters):
            self.sync()

    def _release(self, target: int) -> None:
        self.flushed = target
        try:
            self._on_flushed()
        finally:
            self._answer()

    def _answer(self) -> None:
        waiters, flushed = self._waiters, self.flushed
        try:
            while waiters and waiters[0][0] <= flushed:
                _, later, value, _ = waiters.popleft()
                later.resolve(value)
        finally:
            if waiters and waiters[0][0] <= flushed:  # a listener raised: that is no reason to keep the others waiting
                self._clock.call_soon(self._answer)

    def _failed(self, error: BaseException) -> None:
        self._syncing = False
        self._log.synced()
        if not self._stopped:
            self._on_failed(error)

    def _time_out(self) -> None:
        self._deadline = None
        steady_ms = self._clock.steady_ms()
        late = [(later, value) for _, later, value, deadline_ms in self._waiters if deadline_ms <= steady_ms]
        self._waiters = deque(waiter for waiter in self._waiters if waiter[3] > steady_ms)
        next_ms = min((waiter[3] for waiter in self._waiters), default=_NEVER_MS)
        if next_ms != _NEVER_MS:
            self._deadline = self._clock.call_at(self._clock.now_ms() + next_ms - steady_ms, self._time_out)
        for later, value in late:
            later.fail(FlushTimeout(f"the disk did not confirm in {self._timeout_ms} ms (syncFlushTimeout)", value))


def _sync(files: list[File], checkpoint: Checkpoint, target: int) -> None:
    for file in files:
        file.fdatasync()
    checkpoint.confirm(target)
