"""The clock of a server, over a wall clock that somebody sets while it runs."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count
from typing import cast

import pytest

from saturnmq.net.clock import LoopClock

HOUR_MS = 3_600_000


class Handle:
    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class World:
    """A steady clock, a wall clock and as much of an event loop as `LoopClock` asks for."""

    def __init__(self) -> None:
        self.steady_ms, self.wall_ms = 5_000, 1_700_000_000_000
        self._order = count()
        self._calls: list[tuple[float, int, Handle]] = []
        self.clock = LoopClock(
            cast(asyncio.AbstractEventLoop, self), lambda: self.wall_ms * 1_000_000, lambda: self.steady_ms * 1_000_000
        )

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Handle:
        handle = Handle(call)
        heapq.heappush(self._calls, (self.steady_ms + delay_s * 1000, next(self._order), handle))
        return handle

    def call_soon(self, call: Callable[[], None]) -> Handle:
        return self.call_later(0, call)

    def sleep(self, milliseconds: int) -> None:
        end = self.steady_ms + milliseconds
        while self._calls and self._calls[0][0] <= end:
            when_ms, _, handle = heapq.heappop(self._calls)
            self._pass(max(0, -int(-when_ms // 1) - self.steady_ms))
            if handle.call is not None:
                handle.call()
        self._pass(end - self.steady_ms)

    def _pass(self, milliseconds: int) -> None:
        self.steady_ms += milliseconds
        self.wall_ms += milliseconds

    def after(self, delay_ms: int) -> list[int]:
        """Where a timer writes how late it came, by the steady clock."""
        came: list[int] = []
        due_ms = self.steady_ms + delay_ms
        self.clock.call_at(self.clock.now_ms() + delay_ms, lambda: came.append(self.steady_ms - due_ms))
        return came


@pytest.fixture
def world() -> World:
    return World()


def test_an_undisturbed_clock_shows_the_time(world: World) -> None:
    came = world.after(1500)
    world.sleep(1499)
    assert (world.clock.now_ms(), came) == (world.wall_ms, [])
    world.sleep(1)
    assert (world.clock.now_ms(), came) == (world.wall_ms, [0])


@pytest.mark.parametrize("back_ms", [1, 900, HOUR_MS, 400 * 24 * HOUR_MS])
def test_put_back_the_clock_goes_on_and_timers_come(world: World, back_ms: int) -> None:
    came = world.after(3000)
    world.sleep(1000)
    before_ms, steady_ms = world.clock.now_ms(), world.clock.steady_ms()
    world.wall_ms -= back_ms
    assert world.clock.now_ms() == before_ms
    again = world.after(3000)
    world.sleep(10_000)
    assert 0 <= came[0] <= 2000 // 7 + 2, "a little later, because the clock is slower until it is right again"
    assert 0 <= again[0] <= 3000 // 7 + 2
    assert world.clock.now_ms() > before_ms
    assert world.clock.steady_ms() == steady_ms + 10_000


def test_put_back_the_clock_is_right_again_one_day(world: World) -> None:
    world.wall_ms -= HOUR_MS
    shown = []
    for _ in range(8 * 3600 + 10):
        world.sleep(1000)
        shown.append(world.clock.now_ms())
    assert shown == sorted(set(shown)), "never back, never still"
    assert shown[-1] == world.wall_ms
    assert shown[-100] > world.wall_ms - 100_000
    assert world.clock.wall_ms() == world.wall_ms


def test_put_back_and_asked_all_the_time_it_is_right_again_too(world: World) -> None:
    world.wall_ms -= 100
    for _ in range(900):
        world.sleep(1)
        world.clock.now_ms()
    assert world.clock.now_ms() == world.wall_ms


def test_put_forward_the_clock_follows_and_what_is_due_comes_within_a_second(world: World) -> None:
    came, far = world.after(HOUR_MS - 1000), world.after(2 * HOUR_MS)
    steady_ms = world.clock.steady_ms()
    world.wall_ms += HOUR_MS
    assert world.clock.now_ms() == world.wall_ms
    world.sleep(1000)
    assert [-HOUR_MS + 1000 <= late <= -HOUR_MS + 2000 for late in came] == [True]
    assert far == []
    assert world.clock.steady_ms() == steady_ms + 1000


def test_to_and_fro(world: World) -> None:
    """A glitch: a day ahead, and back after a second."""
    world.wall_ms += 24 * HOUR_MS
    world.sleep(1000)
    ahead_ms = world.clock.now_ms()
    world.wall_ms -= 24 * HOUR_MS
    came = world.after(5000)
    world.sleep(6000)
    assert len(came) == 1
    assert world.clock.now_ms() >= ahead_ms


def test_a_test_puts_all_of_it_forward(world: World) -> None:
    came = world.after(HOUR_MS)
    world.clock.advance(HOUR_MS)
    world.sleep(0)
    assert came == [-HOUR_MS]
    assert world.clock.now_ms() == world.clock.wall_ms() == world.wall_ms + HOUR_MS
    assert world.clock.steady_ms() == world.steady_ms + HOUR_MS


def test_a_timer_that_is_cancelled_in_the_turn_in_which_it_is_due() -> None:
    """As after a process was stopped for a while: an answer and its time-out are there at once."""
    world = World()
    rung: list[str] = []
    due_ms = world.clock.now_ms() + 10
    world.clock.call_at(due_ms, lambda: late.cancel())
    late = world.clock.call_at(due_ms, lambda: rung.append("late"))
    world.sleep(20)
    assert not rung
