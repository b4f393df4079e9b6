"""Work that may have to wait, may fail, and is tried again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from saturnmq.kernel.clock import Background, Clock
from saturnmq.kernel.errors import SaturnError
from saturnmq.kernel.later import Later, Reply, hear
from saturnmq.store.reading import Cold

log = logging.getLogger(__name__)

T = TypeVar("T")

#: after a failure
RETRY_MS = 1_000


class Attempts:
    """For parts of the broker that go on by themselves: nobody waits for their answer, so that failing is no end."""

    def __init__(self, clock: Clock, background: Background) -> None:
        self._clock, self.run = clock, background.run

    def ask(
        self, ask: Callable[[], Reply[T]], then: Callable[[T], None], failed: Callable[[BaseException], None]
    ) -> None:
        """Go on with what `ask` answers, or refuses."""
        try:
            reply = ask()
        except (SaturnError, OSError) as error:
            failed(error)
        else:
            hear(reply, then, failed)

    def look(
        self, look: Callable[[bool], T], then: Callable[[T], None], failed: Callable[[BaseException], None]
    ) -> None:
        """Go on with what `look(False)` finds in memory, else with what `look(True)` finds on the disk, in a thread."""
        try:
            found = look(False)
        except Cold:
            self.run(lambda: look(True), then, failed)
        except Exception as error:  # noqa: BLE001 - as the thread would tell it
            failed(error)
        else:
            then(found)

    def later(self, work: Callable[[], T]) -> Reply[T]:
        """What the work, which is done in a thread, comes to."""
        later: Later[T] = Later()
        self.run(work, later.resolve, later.fail)
        return later

    def again(self, what: str, error: BaseException, act: Callable[[], None]) -> None:
        """Say what failed, and do it again in a while."""
        log.error("%s: %s; trying again in %d ms", what, error, RETRY_MS)
        self._clock.call_at(self._clock.now_ms() + RETRY_MS, act)
