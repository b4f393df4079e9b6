"""Where topics have queues on other brokers: a broker's own questions to its NameServers."""

from __future__ import annotations

from collections.abc import Sequence

from saturnmq.kernel.clock import Clock
from saturnmq.kernel.errors import ConnectionLost, SaturnError, TopicNotFound
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Later, Reply
from saturnmq.kernel.topic import TopicRoute
from saturnmq.net.remoting_client import RemotingClient
from saturnmq.wire.remoting.bodies import decode
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command

#: how long a NameServer may take, milliseconds (TopicRouteInfoManager: GET_TOPIC_ROUTE_TIMEOUT)
TIMEOUT_MS = 3_000
#: topics that are remembered
MOST_TOPICS = 10_000


class RemoteRoutes:
    """A `kernel.ports.RoutePort` over the wire. Owns what NameServers said in the last `keep_ms`; when none of them can
    be reached, it is good for longer."""

    def __init__(self, client: RemotingClient, addresses: Sequence[Address], clock: Clock, keep_ms: int) -> None:
        self._client, self._addresses, self._clock, self._keep_ms = client, addresses, clock, keep_ms
        #: by topic; the steady time when it was said, and what
        self._known: dict[str, tuple[int, TopicRoute]] = {}

    def route(self, topic: str) -> Reply[TopicRoute]:
        """Raises TopicNotFound, ConnectionLost."""
        known = self._known.get(topic)
        if known is not None and self._clock.steady_ms() - known[0] < self._keep_ms:
            return known[1]
        answer: Later[TopicRoute] = Later()
        self._ask(topic, 0, answer)
        return answer

    def _ask(self, topic: str, index: int, answer: Later[TopicRoute]) -> None:
        """The NameServer at this place, and when it cannot say, those behind it."""
        if index == len(self._addresses):
            known = self._known.get(topic)
            if known is None:
                answer.fail(ConnectionLost(f"no NameServer says where {topic} is"))
            else:
                answer.resolve(known[1])
            return

        def answered(command: Command) -> None:
            if command.code == ResponseCode.TOPIC_NOT_EXIST:
                self._known.pop(topic, None)
                answer.fail(TopicNotFound(command.remark or f"no NameServer knows the topic {topic}"))
                return
            try:
                route = decode(TopicRoute, command.body) if command.code == ResponseCode.SUCCESS else None
            except SaturnError:
                route = None
            if route is None:
                self._ask(topic, index + 1, answer)
                return
            if len(self._known) >= MOST_TOPICS:
                del self._known[next(iter(self._known))]
            self._known[topic] = self._clock.steady_ms(), route
            answer.resolve(route)

        asked = self._client.request(
            self._addresses[index],
            RequestCode.GET_ROUTEINFO_BY_TOPIC,
            {"topic": topic, "acceptStandardJsonOnly": "true"},
            b"",
            TIMEOUT_MS,
        )
        answer.on_cancel = asked.cancel
        asked.then(answered, lambda _: self._ask(topic, index + 1, answer))
