"""When how far delayed messages are is written: some time after it changed, and when the broker stops."""

from __future__ import annotations

import logging
from collections.abc import Callable

from saturnmq.broker.attempts import RETRY_MS, Attempts
from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.errors import SaturnError
from saturnmq.kernel.later import Later, Reply
from saturnmq.store.space import is_no_room
from saturnmq.store.store import Store
from saturnmq.store.timercheck import TimerCheck
from saturnmq.store.timerfiles import Changes, TimerFiles

log = logging.getLogger(__name__)


class TimerCheckpoints:
    """Owner: `broker.timers`. One write at a time; `failed` hears of an error after which nobody knows what is on the
    disk, and there is no write any more."""

    def __init__(
        self,
        store: Store,
        files: TimerFiles,
        clock: Clock,
        state: Callable[[], TimerCheck],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._store, self._files, self._clock, self._state, self._on_failed = store, files, clock, state, failed
        self._attempts = Attempts(clock, store.background)
        #: between a change and the write
        self.interval_ms = 1000
        self._timer: Timer | None = None
        self._is_writing = self._is_changed = False
        #: who waits for the end of the write under way: nothing is written by itself then
        self._idle: Later[None] | None = None

    def changed(self) -> None:
        """See to it that it is written."""
        self._is_changed = True
        if not self._is_writing:
            self._write_in(self.interval_ms)

    def pause(self) -> Reply[None]:
        """Write nothing more by itself until the next change. Answers when no write is under way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._is_writing:
            return None
        self._idle = Later()
        return self._idle

    def write(self) -> Reply[None]:
        """Write now; no write is under way. Answers when that is over, and never fails: what could not be written is
        tried again."""
        self._is_writing, self._is_changed = True, False
        over: Later[None] = Later()
        check, changes = self._state(), self._files.take()
        self._attempts.ask(
            self._store.flush,
            lambda _: self._attempts.run(
                lambda: self._files.write(changes, check),
                lambda _: self._written(check, over),
                lambda error: self._not_written(changes, error, over),
            ),
            lambda error: self._not_written(changes, error, over),
        )
        return over if over.pending else None

    def _write_in(self, milliseconds: int) -> None:
        if self._timer is None:
            self._timer = self._clock.call_at(self._clock.now_ms() + milliseconds, self._due)

    def _due(self) -> None:
        self._timer = None
        self.write()

    def _written(self, check: TimerCheck, over: Later[None]) -> None:
        self._files.written(check)
        self._over(over, self.interval_ms)

    def _not_written(self, changes: Changes, error: BaseException, over: Later[None]) -> None:
        self._files.not_written(changes)
        self._is_changed = isinstance(error, SaturnError) or is_no_room(error)
        if self._is_changed:
            log.error("how far delayed messages are was not written: %s; trying again in %d ms", error, RETRY_MS)
        else:
            self._on_failed(error)
        self._over(over, RETRY_MS)

    def _over(self, over: Later[None], next_ms: int) -> None:
        self._is_writing = False
        over.resolve(None)
        if self._idle is not None:
            idle, self._idle = self._idle, None
            idle.resolve(None)
        elif self._is_changed:
            self._write_in(next_ms)
