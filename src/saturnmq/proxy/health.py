"""Whether a broker should be asked: one that is dead or slow must not hold up who could do without it."""

from __future__ import annotations

from saturnmq.kernel.clock import Clock
from saturnmq.kernel.errors import RequestTimeout, SaturnError, Unreachable

#: how long a broker that cannot be reached is left alone: twice as long each time, at most so long, milliseconds
FIRST_PAUSE_MS, LONGEST_PAUSE_MS = 100, 2_000
#: requests in a row that it did not answer in time before it counts as unreachable: one may be its own fault
TIMEOUTS = 3
#: how long others are preferred for sends after one that does not answer, or takes no messages, milliseconds
AVOID_MS = 2_000
#: a send that took so long, and how long others are preferred then, milliseconds (MQFaultStrategy.java)
SLOW_MS = ((15_000, 30_000), (5_000, 10_000), (3_000, 6_000), (1_800, 5_000), (550, 2_000))


class Health:
    """Of one address. Owner of what its last requests came to. When a pause is over, one request looks how it is; the
    others wait for what became of that."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: in a row
        self._failures = self._timeouts = 0
        #: a request is on its way that tells how it is
        self._looking = False
        #: steady milliseconds
        self._paused_until_ms = self._avoided_until_ms = 0

    @property
    def usable(self) -> bool:
        """Neither dead nor slow, as far as is known."""
        return self._clock.steady_ms() >= max(self._paused_until_ms, self._avoided_until_ms)

    @property
    def paused(self) -> bool:
        return self._clock.steady_ms() < self._paused_until_ms

    def admit(self, name: str) -> None:
        """Before a request. Raises Unreachable."""
        if self.paused:
            raise Unreachable(f"the broker {name} cannot be reached at the moment: it is asked again in a moment")
        if self._failures:
            self._looking = True
            self._pause()

    def answered(self) -> None:
        self._failures = self._timeouts = self._paused_until_ms = 0

    def took(self, latency_ms: int) -> None:
        """A send was answered after so long."""
        for slow_ms, avoid_ms in SLOW_MS:
            if latency_ms >= slow_ms:
                self._avoided_until_ms = self._clock.steady_ms() + avoid_ms
                return

    def failed(self, error: SaturnError) -> None:
        """It was not answered: ConnectionLost or RequestTimeout."""
        if isinstance(error, RequestTimeout):
            self._timeouts += 1
            self.avoid()
            if self._timeouts < TIMEOUTS:
                return
        if self._looking or not self.paused:  # else it is one failure of many requests
            self._looking = False
            self._failures += 1
            self._pause()

    def avoid(self) -> None:
        """Prefer others for a while."""
        self._avoided_until_ms = self._clock.steady_ms() + AVOID_MS

    def _pause(self) -> None:
        pause_ms = min(FIRST_PAUSE_MS << min(self._failures - 1, 10), LONGEST_PAUSE_MS)
        self._paused_until_ms = self._clock.steady_ms() + pause_ms
