"""What other processes say of something, kept for a while."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

import msgspec

from saturnmq.kernel.clock import Clock
from saturnmq.kernel.errors import GroupNotFound, SaturnError, TopicNotFound
from saturnmq.kernel.later import Later, Reply, hear

T = TypeVar("T")


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """For how long an answer is good, and how many are."""

    #: milliseconds for which nobody is asked again
    fresh_ms: int
    #: milliseconds for which it is answered while somebody is asked; not more than `fresh_ms`: whoever wants it waits
    usable_ms: int = 0
    #: milliseconds for which "there is none" is remembered
    missing_ms: int = 0
    #: keys that are remembered; the one that was asked for first goes first
    most: int = 10_000


class Lookups(Generic[T]):
    """Owner of the answers by key. However many want one, it is asked for once at a time; when nobody can be reached,
    the last one is good for longer."""

    def __init__(self, ask: Callable[[str], Reply[T]], clock: Clock, kept: Kept) -> None:
        self._ask, self._clock, self._kept = ask, clock, kept
        #: by key; the steady time when it was said, and what
        self._known: dict[str, tuple[int, T | SaturnError]] = {}
        #: who waits for an answer that was asked for
        self._waiting: dict[str, list[Later[T]]] = {}

    def get(self, key: str) -> Reply[T]:
        """Raises, or fails with, what `ask` does."""
        known = self._known.get(key)
        if known is not None:
            at_ms, value = known
            age_ms = self._clock.steady_ms() - at_ms
            if isinstance(value, SaturnError):
                if age_ms < self._kept.missing_ms:
                    raise value
            elif age_ms < self._kept.fresh_ms:
                return value
            elif age_ms < self._kept.usable_ms:
                if key not in self._waiting:
                    self._look_up(key)
                return value
        return self._answer(key)

    def renewed(self, key: str, age_ms: int) -> Reply[T]:
        """As `get`, where nothing that was said so long ago will do unless nobody can be reached."""
        known = self._known.get(key)
        if known is not None and age_ms <= self._clock.steady_ms() - known[0] < self._kept.fresh_ms:
            return self._answer(key)
        return self.get(key)

    def last(self, key: str) -> T | None:
        """What was said, however long ago; None: nothing, or that there is none."""
        known = self._known.get(key)
        return None if known is None or isinstance(known[1], SaturnError) else known[1]

    def _answer(self, key: str) -> Later[T]:
        later: Later[T] = Later()
        if key in self._waiting:
            self._waiting[key].append(later)
        else:
            self._look_up(key, later)
        return later

    def forget(self, key: str) -> None:
        """Ask anew when it is wanted again."""
        self._known.pop(key, None)

    def _look_up(self, key: str, *first: Later[T]) -> None:
        self._waiting[key] = list(first)
        try:
            reply = self._ask(key)
        except SaturnError as error:
            self._failed(key, error)
            return
        hear(reply, partial(self._answered, key), partial(self._failed, key))

    def _answered(self, key: str, value: T) -> None:
        known = self._known.get(key)
        if known is not None and known[1] == value:
            value = known[1]  # whoever compares identities sees that nothing has changed
        self._keep(key, value)
        for later in self._waiting.pop(key):
            later.resolve(value)

    def _failed(self, key: str, error: BaseException) -> None:
        known = self._known.get(key)
        if isinstance(error, TopicNotFound | GroupNotFound):
            self._keep(key, error)
        elif known is not None and not isinstance(known[1], SaturnError):
            self._known[key] = self._clock.steady_ms() - self._kept.fresh_ms, known[1]
            for later in self._waiting.pop(key):
                later.resolve(known[1])
            return
        for later in self._waiting.pop(key):
            later.fail(error)

    def _keep(self, key: str, value: T | SaturnError) -> None:
        self._known.pop(key, None)
        if len(self._known) >= self._kept.most:
            del self._known[next(iter(self._known))]
        self._known[key] = self._clock.steady_ms(), value
