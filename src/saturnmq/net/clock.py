"""The real time, on the event loop."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from itertools import count


class LoopTimer:
    """See `kernel.clock.Timer`."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None

    def ring(self) -> None:
        """It is due; whatever else happens in this turn may still have cancelled it."""
        if self.call is not None:
            self.call()


#: a wall clock that was put back by an hour is met again eight hours later
_CATCH_UP = 8


class LoopClock:
    """A `kernel.clock.Clock`. Keeps its own heap of timers, so that a test can put it forward (`--test-clock`).

    `now_ms` is what passed since the start, plus how far the wall clock is ahead of that. That only changes when
    somebody sets the wall clock: put forward, it is followed at once; put back, slowly.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        wall_ns: Callable[[], int] = time.time_ns,
        steady_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._loop, self._wall_ns, self._steady_ns = loop, wall_ns, steady_ns
        #: the wall clock is ahead of the steady one by this
        self._offset_ns = wall_ns() - steady_ns()
        #: when that was last looked at, by the steady clock
        self._looked_ns = steady_ns()
        self._order = count()
        self._timers: list[tuple[int, int, LoopTimer]] = []
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_ms = 0
        self._ahead_ms = 0

    def now_ms(self) -> int:
        steady_ns = self._steady_ns()
        offset_ns = self._wall_ns() - steady_ns
        if offset_ns < self._offset_ns:
            offset_ns = max(offset_ns, self._offset_ns - (steady_ns - self._looked_ns) // _CATCH_UP)
        self._offset_ns, self._looked_ns = offset_ns, steady_ns
        return (steady_ns + offset_ns) // 1_000_000 + self._ahead_ms

    def wall_ms(self) -> int:
        """What the system's clock shows, which may go back: for what the system has dated."""
        return self._wall_ns() // 1_000_000 + self._ahead_ms

    def steady_ms(self) -> int:
        return self._steady_ns() // 1_000_000 + self._ahead_ms

    def call_at(self, when_ms: int, call: Callable[[], None]) -> LoopTimer:
        timer = LoopTimer(call)
        heapq.heappush(self._timers, (when_ms, next(self._order), timer))
        if self._alarm is None or when_ms < self._alarm_ms:
            self._set_alarm()
        return timer

    def call_soon(self, call: Callable[[], None]) -> asyncio.Handle:
        return self._loop.call_soon(call)

    def advance(self, milliseconds: int) -> None:
        """Put the clock forward; what became due runs in the next turn."""
        self._ahead_ms += milliseconds
        self._set_alarm()

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._timers:
            self._alarm_ms = self._timers[0][0]
            # a wall clock may be put forward: look again at least once a second
            delay = min(max(0, self._alarm_ms - self.now_ms()), 1000) / 1000
            self._alarm = self._loop.call_later(delay, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        now_ms = self.now_ms()
        due = []
        while self._timers and self._timers[0][0] <= now_ms:
            due.append(heapq.heappop(self._timers)[2])
        for timer in due:
            self._loop.call_soon(timer.ring)
        self._set_alarm()
