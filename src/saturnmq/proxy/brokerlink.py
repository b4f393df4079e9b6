"""Requests to one broker and its replicas: where they go, how many there are, and what to do without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from saturnmq.kernel.clock import Clock
from saturnmq.kernel.errors import ProtocolError, SaturnError, ServiceUnavailable, SystemBusy, Unreachable
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Later
from saturnmq.net.remoting_client import RemotingClient
from saturnmq.proxy.health import Health
from saturnmq.proxy.routing import MASTER
from saturnmq.wire.remoting.command import Command

#: how long a broker may take, beyond what it was asked to wait, milliseconds (MQClientAPIImpl: 3 s)
TIMEOUT_MS = 3_000
#: requests to one broker that it has not answered
MOST_IN_FLIGHT = 20_000
#: bodies of them: a broker that takes none keeps no more of our memory than this
MOST_BYTES_IN_FLIGHT = 64 << 20

T = TypeVar("T")


class BrokerLink:
    """Owner of what is in flight to a broker.

    Sends have connections of their own: they do not stand behind the messages that others receive.
    """

    def __init__(self, name: str, sends: RemotingClient, others: RemotingClient, clock: Clock) -> None:
        self.name = name
        self._sends, self._others, self._clock = sends, others, clock
        #: by broker id
        self._places: dict[int, tuple[Address, Health]] = {}
        self._in_flight = self._bytes_in_flight = 0

    @property
    def addresses(self) -> Mapping[int, Address]:
        """Of the master and its replicas by broker id, as NameServers say; empty while they know of none."""
        return {broker_id: address for broker_id, (address, _) in self._places.items()}

    @addresses.setter
    def addresses(self, addresses: Mapping[int, Address]) -> None:
        known = dict(self._places.values())
        self._places = {
            broker_id: (address, known.get(address) or Health(self._clock))
            for broker_id, address in sorted(addresses.items())
        }

    @property
    def takes_sends(self) -> bool:
        """As far as is known it would take one, and soon."""
        return MASTER in self._places and self._places[MASTER][1].usable

    @property
    def reachable(self) -> bool:
        return any(not health.paused for _, health in self._places.values())

    def ask(
        self,
        code: int,
        fields: Mapping[str, str],
        read: Callable[[Command], T],
        *,
        body: bytes = b"",
        wait_ms: int = 0,
        sends: bool = False,
    ) -> Later[T]:
        """Ask the master, or for anything but a send a replica where it is gone. Raises Unreachable, SystemBusy."""
        address, health = self._choose(sends)
        if self._in_flight >= MOST_IN_FLIGHT or self._bytes_in_flight + len(body) > MOST_BYTES_IN_FLIGHT:
            raise SystemBusy(
                f"the broker {self.name} has not answered {self._in_flight} requests of {self._bytes_in_flight} bytes, "
                f"the limits are {MOST_IN_FLIGHT} and {MOST_BYTES_IN_FLIGHT}: try again in a moment"
            )
        health.admit(self.name)
        self._in_flight += 1
        self._bytes_in_flight += len(body)
        began_ms = self._clock.steady_ms()
        answer: Later[T] = Later()

        def done() -> None:
            self._in_flight -= 1
            self._bytes_in_flight -= len(body)

        def answered(command: Command) -> None:
            done()
            health.answered()
            if sends:
                health.took(self._clock.steady_ms() - began_ms)
            try:
                value = read(command)
            except (LookupError, ValueError, ProtocolError) as error:
                answer.fail(SaturnError(f"the broker {self.name} gave an answer that cannot be read: {error!r}"))
            except SaturnError as error:
                if isinstance(error, ServiceUnavailable | Unreachable):
                    health.avoid()
                answer.fail(error)
            else:
                answer.resolve(value)

        def failed(error: BaseException) -> None:
            done()
            if isinstance(error, SaturnError):
                health.failed(error)
            answer.fail(error)

        def cancel() -> None:
            done()
            asked.cancel()

        client = self._sends if sends else self._others
        asked = client.request(address, code, fields, body, wait_ms + TIMEOUT_MS)
        answer.on_cancel = cancel
        asked.then(answered, failed)
        return answer

    def tell(self, code: int, fields: Mapping[str, str], body: bytes = b"") -> None:
        """Nobody hears of it when the broker cannot be reached. Raises Unreachable where it is known."""
        address, health = self._choose(sends=False)
        health.admit(self.name)
        self._others.one_way(address, code, fields, body)

    def _choose(self, sends: bool) -> tuple[Address, Health]:
        """The master; for what is no send the first one that can be reached."""
        places = [place for broker_id, place in self._places.items() if not sends or broker_id == MASTER]
        if not places:
            raise Unreachable(f"no NameServer knows {'a master of ' if sends else ''}the broker {self.name}")
        return next((place for place in places if not place[1].paused), places[0])
