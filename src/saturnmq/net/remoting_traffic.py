"""What the connections of one Remoting port count, and what they have in flight together."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

from saturnmq.kernel.clock import Clock
from saturnmq.kernel.config import Limits
from saturnmq.kernel.errors import SystemBusy
from saturnmq.kernel.metrics import Metrics
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode

#: bytes of answers that the connections of a port make in one turn of the loop: what a connection that is cut off had,
#: is free only after it
TURN_BYTES = 16 << 20
#: so long after the last refusal a limit counts as not reached any more, milliseconds
_CALM_MS = 1_000


class Refusals:
    """Since when a limit on waiting requests is reached: since the first refusal that others followed without a pause.

    Kept only where something is refused, so that it costs nothing where nothing is.
    """

    __slots__ = ("_last_ms", "_since_ms")

    def __init__(self) -> None:
        self._since_ms = self._last_ms = -_CALM_MS

    def busy(self, now_ms: int, number: int, whose: str, setting: str) -> SystemBusy:
        if now_ms - self._last_ms >= _CALM_MS:
            self._since_ms = now_ms
        self._last_ms = now_ms
        return SystemBusy(
            f"[OVERLOAD]{number} requests {whose} wait for their answers, as many as may ({setting}), since "
            f"{(now_ms - self._since_ms) / 1000:.1f} s; try again later"
        )


class GivesWay(Protocol):
    """A connection, as far as it may cost the others of its port something."""

    def give_up_held(self) -> None: ...

    def give_up_unsent(self) -> None: ...


class Share:
    """Bytes of one kind that the connections of a port have together. Over the limit, who has most of them gives way.

    Told only of connections that are behind; the others have none to speak of.
    """

    def __init__(self, most: int, give_way: Callable[[GivesWay], None]) -> None:
        self._most, self._give_way = most, give_way
        self._of: dict[GivesWay, int] = {}
        self.total = 0

    def set(self, connection: GivesWay, size: int) -> None:
        """What this connection has now. `give_way` of some connection is called inside, which sets it to 0."""
        self.total += size - self._of.pop(connection, 0)
        if size:
            self._of[connection] = size
        while self.total > self._most:
            self._give_way(max(self._of, key=self._of.__getitem__))


class Traffic:
    """What the connections of one server or client count, under its name."""

    def __init__(self, metrics: Metrics, name: str, clock: Clock, limits: Limits) -> None:
        self.name, self.limits = name, limits
        self._clock = clock
        self._requests = metrics.counter(
            "saturnmq_remoting_requests_total",
            "Remoting requests by what was asked and answered",
            ("server", "request_code", "response_code"),
        )
        self._connections = metrics.counter(
            "saturnmq_remoting_connections", "Open Remoting connections", ("server",), kind="gauge"
        )
        self._protocol_errors = metrics.counter(
            "saturnmq_remoting_protocol_errors_total", "Connections closed because they broke the protocol", ("server",)
        )
        self._bugs = metrics.counter(
            "saturnmq_remoting_unexpected_errors_total", "Requests that failed with an error of ours", ("server",)
        )
        self._limited = metrics.counter(
            "saturnmq_remoting_limited_total",
            "Requests refused and connections cut off because a limit was reached",
            ("server", "limit"),
        )
        #: (request code, response code) to the labels; as many as there are handlers and answers
        self._labels: dict[tuple[int, int | None], tuple[str, str, str]] = {}
        #: requests that wait for their answers; there is room for one more at most from here on
        self.waiting = 0
        self.nearly_full = limits.remoting_requests_waiting_in_all - 1
        #: sends are looked at closely before they are handled
        self.is_full = False
        self._refusals = Refusals()
        #: bytes of requests that are not whole, or behind a peer that does not read
        self.held = Share(limits.remoting_held_bytes, lambda connection: connection.give_up_held())
        #: bytes of answers that slow peers have not taken
        self.unsent = Share(limits.remoting_unsent_bytes, lambda connection: connection.give_up_unsent())
        self._turn_bytes = 0
        #: the connections that did not come to theirs go on in the next one
        self.turn_is_over = False
        labels = {"server": name}
        for what, text, read in (
            ("waiting_requests", "Remoting requests that wait for their answers", lambda: self.waiting),
            ("held_bytes", "Bytes of Remoting requests that are not whole or not handled", lambda: self.held.total),
            ("unsent_bytes", "Bytes of answers that slow peers have not taken", lambda: self.unsent.total),
        ):
            metrics.gauge(f"saturnmq_remoting_{what}", text, read, labels)

    def request(self, code: int, answer: int | None) -> None:
        """One request is over; `answer` is None for those that get none."""
        labels = self._labels.get((code, answer))
        if labels is None:
            labels = self._labels[code, answer] = (
                self.name,
                _name(RequestCode, code),
                "" if answer is None else _name(ResponseCode, answer),
            )
        self._requests.add(labels)

    def unknown_request(self) -> None:
        self._requests.add((self.name, "unknown", ResponseCode.REQUEST_CODE_NOT_SUPPORTED.name))

    def connected(self, change: int) -> None:
        self._connections.add((self.name,), change)

    def protocol_error(self) -> None:
        self._protocol_errors.add((self.name,))

    def bug(self) -> None:
        self._bugs.add((self.name,))

    def limited(self, setting: str) -> None:
        """Somebody met a limit."""
        self._limited.add((self.name, setting))

    def large_answers(self, size: int) -> None:
        """A connection made so many bytes of answers in this turn of the loop."""
        if not self._turn_bytes:
            self._clock.call_soon(self._begin_turn)
        self._turn_bytes += size
        self.turn_is_over = self._turn_bytes > TURN_BYTES

    def _begin_turn(self) -> None:
        self._turn_bytes, self.turn_is_over = 0, False

    def check_room(self, waiting: int, refusals: Refusals) -> None:
        """Raises SystemBusy when there is no room for another request to wait, on a connection where so many do."""
        self.is_full = self.waiting >= self.nearly_full
        if waiting >= self.limits.remoting_requests_waiting:
            whose, setting = "of this connection", "remotingRequestsWaiting"
        elif self.waiting > self.nearly_full:
            waiting, refusals = self.waiting, self._refusals
            whose, setting = "of all connections", "remotingRequestsWaitingInAll"
        else:
            return
        self.limited(setting)
        raise refusals.busy(self._clock.steady_ms(), waiting, whose, setting)


def _name(kind: type[IntEnum], code: int) -> str:
    try:
        return kind(code).name
    except ValueError:
        return str(code)
