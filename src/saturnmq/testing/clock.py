"""Time by hand, for tests."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import TypeVar

T = TypeVar("T")


class VirtualTimer:
    """See `kernel.clock.Timer`."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class VirtualClock:
    """A `kernel.clock.Clock` that stands still until `advance`. `run_soon` is the end of a turn of the loop."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms
        #: where `steady_ms` begins: far from the time of day, for those who mix them up
        self._began_ms = now_ms - 1_000_000
        self._order = count()
        self._timers: list[tuple[int, int, VirtualTimer]] = []
        self._soon: list[VirtualTimer] = []

    def now_ms(self) -> int:
        return self._now_ms

    def steady_ms(self) -> int:
        return self._now_ms - self._began_ms

    def jump(self, milliseconds: int) -> None:
        """Somebody put the wall clock forward: no time has passed, but timers are due."""
        self._now_ms += milliseconds
        self._began_ms += milliseconds
        self.advance(0)

    def call_at(self, when_ms: int, call: Callable[[], None]) -> VirtualTimer:
        timer = VirtualTimer(call)
        heapq.heappush(self._timers, (when_ms, next(self._order), timer))
        return timer

    def call_soon(self, call: Callable[[], None]) -> VirtualTimer:
        timer = VirtualTimer(call)
        self._soon.append(timer)
        return timer

    def run_soon(self) -> None:
        """Run what was put off to the end of the turn, and what that puts off."""
        while self._soon:
            timers, self._soon = self._soon, []
            for timer in timers:
                if timer.call is not None:
                    timer.call()

    def advance(self, milliseconds: int) -> None:
        """Let time pass; every timer on the way fires at its own moment."""
        end = self._now_ms + milliseconds
        self.run_soon()
        while self._timers and self._timers[0][0] <= end:
            when_ms, _, timer = heapq.heappop(self._timers)
            self._now_ms = max(self._now_ms, when_ms)
            if timer.call is not None:
                timer.call()
            self.run_soon()
        self._now_ms = end


class InlineBackground:
    """A `kernel.clock.Background` that works at the end of the turn, on the same thread."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock

    def run(self, work: Callable[[], T], done: Callable[[T], None], failed: Callable[[BaseException], None]) -> None:
        def turn() -> None:
            try:
                value = work()
            except Exception as error:  # noqa: BLE001 - whatever went wrong is the owner's
                failed(error)
            else:
                done(value)

        self._clock.call_soon(turn)
