"""Time as an argument. Times are integers: milliseconds since 1970 (`_ms`), as RocketMQ writes them everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Timer(Protocol):
    """A call that has not happened yet."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """What a room may ask of time. `net.clock` runs it on the event loop, `testing.clock` by hand."""

    def now_ms(self) -> int:
        """Wall-clock milliseconds since the epoch: for what is stored and for points in time. Never goes back: after
        the wall clock was put back it runs on, slower, until that has caught up. It may jump ahead."""
        ...

    def steady_ms(self) -> int:
        """Milliseconds since some moment: for how long something takes. Never jumps, whatever the wall clock does."""
        ...

    def call_at(self, when_ms: int, call: Callable[[], None]) -> Timer:
        """Call once when `now_ms` is `when_ms`, or soon after it, from the event loop, never from inside."""
        ...

    def call_soon(self, call: Callable[[], None]) -> Timer:
        """Call once at the end of this turn of the event loop."""
        ...


class Background(Protocol):
    """Work that would block the event loop: an fdatasync, a cold read, a new file. `net.tasks` runs it in threads."""

    def run(self, work: Callable[[], T], done: Callable[[T], None], failed: Callable[[BaseException], None]) -> None:
        """Call `work` off the loop, then `done` or `failed` on the loop, never from inside this call."""
        ...
