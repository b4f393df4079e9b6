"""A Proxy in Cluster mode over real Brokers and a NameServer without sockets: their tables of requests are the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy_fakes import FakeCall, Grpc, R, message, receive_request, stream

from saturnmq.kernel.config import ClusterConfig, ProxyConfig
from saturnmq.kernel.errors import RequestTimeout, SaturnError, Unreachable
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Later, Reply, hear
from saturnmq.kernel.topic import TopicConfig
from saturnmq.nameserver import remoting as nameserver_remoting
from saturnmq.net.nameservers import NameServers
from saturnmq.net.remoting_client import RemotingClient
from saturnmq.net.remoting_connection import Handler
from saturnmq.proxy import grpc
from saturnmq.proxy.cluster import Cluster
from saturnmq.proxy.proxy import Proxy
from saturnmq.testing.clock import VirtualClock
from saturnmq.testing.nameserver import name_server
from saturnmq.testing.offline import OfflineBroker, OfflineConnection
from saturnmq.wire.proto import rocketmq_pb2 as pb
from saturnmq.wire.remoting.codes import response_code
from saturnmq.wire.remoting.command import Command, Response

NAMES = Address("10.0.0.9", 9876)


class Network:
    """Who is where, and what becomes of requests."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.servers: dict[Address, Mapping[int, Handler]] = {}
        #: they refuse connections
        self.dead: set[Address] = set()
        #: they take requests and answer none
        self.silent: set[Address] = set()
        #: fields that are ours, which Apache's processes do not know
        self.unknown_fields: set[str] = set()
        #: in the order in which they were asked
        self.asked: list[tuple[Address, int]] = []

    def count(self, code: int) -> int:
        return sum(1 for _, asked in self.asked if asked == code)


class Wire(RemotingClient):
    """One client of a Proxy's: every request is handled at once."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.connections: dict[Address, OfflineConnection] = {}

    def request(
        self, address: Address, code: int, fields: Mapping[str, str], body: bytes, timeout_ms: int
    ) -> Later[Command]:
        network, clock = self._network, self._network.clock
        network.asked.append((address, code))
        answer: Later[Command] = Later()
        if address in network.dead:
            answer.fail(Unreachable(f"{address} refuses connections"))
            return answer
        timer = clock.call_at(clock.now_ms() + timeout_ms, lambda: answer.fail(RequestTimeout(f"{address} is silent")))

        def deliver(response: Response | None) -> None:
            assert response is not None
            timer.cancel()
            answer.resolve(
                Command(response.code, 1, remark=response.remark, fields=response.fields, body=response.body)
            )

        def fail(error: BaseException) -> None:
            assert isinstance(error, SaturnError)
            deliver(Response(response_code(error), str(error)))

        def cancel() -> None:
            timer.cancel()
            if isinstance(reply, Later):
                reply.cancel()

        reply: Reply[Response | None] = Later()
        answer.on_cancel = cancel
        if address not in network.silent:
            try:
                reply = self._handle(address, code, fields, body)
            except SaturnError as error:
                fail(error)
            else:
                hear(reply, deliver, fail)
        return answer

    def one_way(self, address: Address, code: int, fields: Mapping[str, str], body: bytes = b"") -> None:
        self._network.asked.append((address, code))
        if address not in self._network.dead | self._network.silent:
            self._handle(address, code, fields, body)

    def _handle(self, address: Address, code: int, fields: Mapping[str, str], body: bytes) -> Reply[Response | None]:
        connection = self.connections.setdefault(address, OfflineConnection())
        known = {name: value for name, value in fields.items() if name not in self._network.unknown_fields}
        return self._network.servers[address][code](Command(code, 1, fields=known, body=body), connection)


class ClusterStage(Grpc):
    """Brokers `broker-a`, `broker-b`… at one NameServer, and a client at the gRPC face of a Proxy over them."""

    def __init__(self, brokers: int = 1, **settings: Any) -> None:
        super().__init__()
        self.config = ClusterConfig(**settings)
        self.clock = VirtualClock()
        self.network = Network(self.clock)
        self.names = name_server(self.clock)
        self.network.servers[NAMES] = nameserver_remoting.table(self.names)
        self.brokers: dict[str, OfflineBroker] = {}
        for letter in "abcdef"[:brokers]:
            self.add_broker(f"broker-{letter}")
        self.names_addresses = [NAMES]
        self.start_proxy()

    def start_proxy(self, config: ProxyConfig | None = None) -> None:
        """Another one, which knows nothing yet."""
        self.sends, self.others = Wire(self.network), Wire(self.network)
        names = NameServers(Wire(self.network), self.names_addresses)
        self.cluster = Cluster(names, self.sends, self.others, self.config, self.clock, random=lambda n: 0)
        self.cluster.start()
        self.proxy = Proxy(self.cluster.brokers, self.cluster, self.cluster, config or ProxyConfig(), self.clock)
        self.table = grpc.methods(self.proxy)

    def address(self, name: str) -> Address:
        return Address(f"10.0.0.{1 + 'abcdef'.index(name[-1])}", 10911)

    def add_broker(self, name: str) -> OfflineBroker:
        broker = self.brokers[name] = OfflineBroker(clock=self.clock, settings={"broker_name": name})
        self.network.servers[self.address(name)] = broker.handlers
        broker.broker.register(self.names.routes, self.address(name))
        return broker

    def add_topic(self, topic: str, kind: str = "NORMAL", queues: int = 1) -> None:
        """On all brokers."""
        for broker in self.brokers.values():
            attributes = {"message.type": kind}
            broker.broker.topics.put(
                TopicConfig(topic_name=topic, read_queue_nums=queues, write_queue_nums=queues, attributes=attributes)
            )

    def unary(self, rpc: str, request: Any, answer: type[R]) -> R:
        """A call that is answered in this turn."""
        call = self.start(rpc, request)
        self.clock.run_soon()
        assert call.ended is not None, f"{rpc} waits"
        return answer.FromString(call.out[-1])

    def send(self, body: bytes = b"hello", topic: str = "t", **system: Any) -> pb.SendMessageResponse:
        request = pb.SendMessageRequest(messages=[message(topic, body, **system)])
        return self.unary("SendMessage", request, pb.SendMessageResponse)

    def take(self, broker: str = "broker-a", **fields: Any) -> list[pb.Message]:
        """Whatever of topic `t` the group `g` gets from a broker now."""
        request = receive_request(**fields)
        request.message_queue.broker.name = broker
        call = self.receive(request)
        self.clock.run_soon()
        if call.ended is None:
            self.clock.advance(30_000)
        return stream(call)[1]

    def ack(self, handle: str) -> pb.Code:
        request = pb.AckMessageRequest(group=pb.Resource(name="g"), topic=pb.Resource(name="t"))
        request.entries.add(message_id="id", receipt_handle=handle)
        return self.unary("AckMessage", request, pb.AckMessageResponse).status.code

    def stored(self, topic: str = "t") -> list[tuple[str, bytes]]:
        """(broker, body) of all that stands in queue 0."""
        return [(name, one.body) for name, broker in self.brokers.items() for one in broker.stored(topic)]


def handle_of(received: pb.Message) -> str:
    return received.system_properties.receipt_handle


__all__ = ["NAMES", "ClusterStage", "FakeCall", "Network", "Wire", "handle_of"]
