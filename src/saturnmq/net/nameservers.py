"""Questions to NameServers: where topics have queues, and which brokers there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from saturnmq.kernel.clock import Clock
from saturnmq.kernel.errors import ConnectionLost, SaturnError, TopicNotFound
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Later, Reply, after, gather, rescue
from saturnmq.kernel.topic import TopicRoute
from saturnmq.net.lookups import Kept, Lookups
from saturnmq.net.remoting_client import RemotingClient
from saturnmq.wire.remoting.bodies import ClusterInfo, decode
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command

#: how long a NameServer may take, milliseconds (TopicRouteInfoManager: GET_TOPIC_ROUTE_TIMEOUT)
TIMEOUT_MS = 3_000

T = TypeVar("T")


class NameServers:
    """Several NameServers. When one does not know, those behind it are asked: it has just started, or they are another
    cluster's. Who knew last is asked first."""

    def __init__(self, client: RemotingClient, addresses: Sequence[Address]) -> None:
        self._client, self._addresses = client, list(addresses)

    def route(self, topic: str) -> Later[TopicRoute]:
        """Where a topic is now. Fails with TopicNotFound, ConnectionLost."""
        fields = {"topic": topic, "acceptStandardJsonOnly": "true"}
        return self._ask(RequestCode.GET_ROUTEINFO_BY_TOPIC, fields, f"where {topic} is", _route)

    def brokers(self) -> Reply[list[ClusterInfo]]:
        """Those that each of them knows now, as far as they answer. Fails with ConnectionLost: none does."""

        def ask(address: Address) -> Reply[ClusterInfo | None]:
            asked = self._client.request(address, RequestCode.GET_BROKER_CLUSTER_INFO, {}, b"", TIMEOUT_MS)
            return rescue(lambda: asked.map(_clusters), SaturnError, lambda _: None)

        def known(infos: Sequence[ClusterInfo | None]) -> list[ClusterInfo]:
            found = [info for info in infos if info is not None]
            if not found:
                raise ConnectionLost("no NameServer says which brokers there are")
            return found

        return after(gather([ask(address) for address in self._addresses]), known)

    def _ask(self, code: int, fields: dict[str, str], what: str, read: Callable[[Command], T]) -> Later[T]:
        answer: Later[T] = Later()
        left = list(self._addresses)
        missing: list[TopicNotFound] = []

        def ask_next() -> None:
            if not left:
                answer.fail(missing[0] if missing else ConnectionLost(f"no NameServer says {what}"))
                return
            address = left.pop(0)

            def answered(command: Command) -> None:
                try:
                    value = read(command)
                except SaturnError as error:
                    if isinstance(error, TopicNotFound):
                        missing.append(error)
                    ask_next()
                else:
                    self._addresses.remove(address)
                    self._addresses.insert(0, address)
                    answer.resolve(value)

            asked = self._client.request(address, code, fields, b"", TIMEOUT_MS)
            answer.on_cancel = asked.cancel
            asked.then(answered, lambda _: ask_next())

        ask_next()
        return answer


class RemoteRoutes:
    """A `kernel.ports.RoutePort` over the wire: what NameServers said lately."""

    def __init__(self, names: NameServers, clock: Clock, kept: Kept) -> None:
        self._lookups: Lookups[TopicRoute] = Lookups(names.route, clock, kept)

    def route(self, topic: str) -> Reply[TopicRoute]:
        """Raises TopicNotFound, ConnectionLost."""
        return self._lookups.get(topic)


def _route(command: Command) -> TopicRoute:
    if command.code == ResponseCode.TOPIC_NOT_EXIST:
        raise TopicNotFound(command.remark or "no NameServer knows the topic")
    return decode(TopicRoute, _succeeded(command).body)


def _clusters(command: Command) -> ClusterInfo:
    return decode(ClusterInfo, _succeeded(command).body)


def _succeeded(command: Command) -> Command:
    if command.code != ResponseCode.SUCCESS:
        raise SaturnError(command.remark or f"it answered {command.code}")
    return command
