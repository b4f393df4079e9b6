"""What consumers are told when they leave the balance to their broker: queues, modes, and where both are kept."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from saturnmq.broker.assignment import averagely, by_circle
from saturnmq.kernel.errors import ConnectionLost, TopicNotFound
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Later, Reply
from saturnmq.kernel.topic import BrokerData, GroupConfig, MessageQueue, QueueData, TopicConfig, TopicRoute
from saturnmq.net.lookups import Kept
from saturnmq.net.nameservers import NameServers, RemoteRoutes
from saturnmq.net.remoting_client import RemotingClient
from saturnmq.testing.clock import VirtualClock
from saturnmq.testing.offline import Asked, OfflineBroker, OfflineConnection
from saturnmq.testing.pops import Answer
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.bodies import encode
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command

QUEUES = [MessageQueue("orders", "broker-a", queue_id) for queue_id in range(8)]


@pytest.fixture
def offline() -> OfflineBroker:
    return staged()


def staged(**settings: Any) -> OfflineBroker:
    """A topic with four queues; group `g` has three members."""
    offline = OfflineBroker(settings=settings)
    offline.broker.topics.put(TopicConfig(topic_name="orders", read_queue_nums=4, write_queue_nums=4))
    for client_id in ("b", "a", "c"):
        join(offline, client_id)
    return offline


def join(offline: OfflineBroker, client_id: str) -> OfflineConnection:
    connection = OfflineConnection()
    assert offline.heartbeat(client_id, consumers={"g": ["orders"]}, connection=connection).code == 0
    return connection


def ask(offline: OfflineBroker, client_id: str = "a", topic: str = "orders", **more: object) -> Any:
    """The queues (broker name and id) and the mode; None: go on with what you have."""
    body = {
        "topic": topic, "consumerGroup": "g", "clientId": client_id, "strategyName": "AVG",
        "messageModel": "CLUSTERING",
    }  # fmt: skip
    asked = offline.ask(RequestCode.QUERY_ASSIGNMENT, body=json.write({**body, **more}))
    assert asked.code == 0
    answer: Any = json.parse(asked.body)
    if "messageQueueAssignments" not in answer:
        return None
    assignments = answer["messageQueueAssignments"]
    modes = {assignment["mode"] for assignment in assignments}
    assert len(modes) <= 1
    queues = [assignment["messageQueue"] for assignment in assignments]
    assert all(queue["topic"] == topic for queue in queues)
    return [(queue["brokerName"], queue["queueId"]) for queue in queues], modes.pop() if modes else None


def queue_ids(offline: OfflineBroker, client_id: str, **more: Any) -> list[int]:
    return [queue_id for _, queue_id in ask(offline, client_id, **more)[0]]


def set_mode(offline: OfflineBroker, mode: str, share: int = 0, topic: str = "orders", group: str = "g") -> Asked:
    body = {"topic": topic, "consumerGroup": group, "mode": mode, "popShareQueueNum": share}
    return offline.ask(RequestCode.SET_MESSAGE_REQUEST_MODE, body=json.write(body))


# ------------------------------------------------------------------------------------------------- strategies


@pytest.mark.parametrize("strategy", [averagely, by_circle])
def test_every_queue_has_one_reader(strategy: Any) -> None:
    for members in range(1, 12):
        shares = [list(strategy(QUEUES, members, member)) for member in range(members)]
        assert sorted(itertools.chain(*shares), key=lambda queue: queue.queue_id) == QUEUES
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_how_they_differ() -> None:
    assert [queue.queue_id for queue in averagely(QUEUES, 3, 0)] == [0, 1, 2]
    assert [queue.queue_id for queue in averagely(QUEUES, 3, 2)] == [6, 7]
    assert [queue.queue_id for queue in by_circle(QUEUES, 3, 0)] == [0, 3, 6]


# ------------------------------------------------------------------------------------------------------- pulling


def test_pulling_members_share_the_queues(offline: OfflineBroker) -> None:
    assert [ask(offline, client_id) for client_id in "abc"] == [
        ([("broker-a", 0), ("broker-a", 1)], "PULL"),
        ([("broker-a", 2)], "PULL"),
        ([("broker-a", 3)], "PULL"),
    ]
    assert queue_ids(offline, "a", strategyName="AVG_BY_CIRCLE") == [0, 3]


def test_who_comes_and_goes_changes_the_shares(offline: OfflineBroker) -> None:
    last = join(offline, "d")
    assert queue_ids(offline, "a") == [0]
    last.close()
    assert queue_ids(offline, "a") == [0, 1]


def test_members_that_nobody_knows_get_nothing(offline: OfflineBroker) -> None:
    assert ask(offline, "z") == ([], None)


def test_broadcasting_gives_all_to_all(offline: OfflineBroker) -> None:
    assert queue_ids(offline, "z", messageModel="BROADCASTING") == [0, 1, 2, 3]


def test_a_broker_that_does_not_balance() -> None:
    assert queue_ids(staged(server_load_balancer_enable=False), "a") == [0, 1, 2, 3]


def test_no_answer_changes_nothing(offline: OfflineBroker) -> None:
    assert ask(offline, topic="nowhere") is None
    assert ask(offline, consumerGroup="nobody") is None
    assert ask(offline, strategyName="CONSISTENT_HASH") is None
    assert offline.ask(RequestCode.QUERY_ASSIGNMENT, body=b"{}").code == ResponseCode.INVALID_PARAMETER


# ------------------------------------------------------------------------------------------------------- popping


def test_popping_members_share_everything(offline: OfflineBroker) -> None:
    assert set_mode(offline, "POP", share=-1).code == 0
    assert [ask(offline, client_id) for client_id in "az"] == [([("broker-a", -1)], "POP")] * 2


def test_popping_members_share_with_those_that_follow(offline: OfflineBroker) -> None:
    """With as many others as the operator says, unless that is all of them."""
    set_mode(offline, "POP", share=1)
    assert [queue_ids(offline, client_id) for client_id in "abc"] == [[0, 1, 2], [2, 3], [3, 0, 1]]
    assert ask(offline, "z") == ([], None)
    set_mode(offline, "POP", share=2)
    assert queue_ids(offline, "a") == [-1]
    set_mode(offline, "POP", share=1)
    for client_id in ("d", "e"):
        join(offline, client_id)
    assert [queue_ids(offline, client_id) for client_id in "abcde"] == [[0], [1], [2], [3], [0]]


def test_the_default_mode_is_not_for_retry_topics() -> None:
    offline = staged(default_message_request_mode="POP", default_pop_share_queue_num=1)
    assert ask(offline, "b") == ([("broker-a", 2), ("broker-a", 3)], "POP")
    assert ask(offline, "a", topic="%RETRY%g") == ([("broker-a", 0)], "PULL")
    set_mode(offline, "PULL")
    assert ask(offline, "b") == ([("broker-a", 2)], "PULL")


# --------------------------------------------------------------------------------------------------------- modes


def test_modes_outlive_the_broker(offline: OfflineBroker) -> None:
    assert set_mode(offline, "POP", share=3).code == 0
    assert json.parse(offline.disk.read_file("config/messageRequestMode.json")) == {
        "messageRequestModeMap": {
            "orders": {"g": {"topic": "orders", "consumerGroup": "g", "mode": "POP", "popShareQueueNum": 3}}
        }
    }
    again = offline.restart()
    modes: Any = json.parse(again.ask(RequestCode.GET_ALL_MESSAGE_REQUEST_MODE).body)
    assert modes["messageRequestModeMap"]["orders"]["g"]["mode"] == "POP"
    join(again, "a")
    assert queue_ids(again, "a") == [-1]


def test_a_broker_without_modes_says_so(offline: OfflineBroker) -> None:
    body = offline.ask(RequestCode.GET_ALL_MESSAGE_REQUEST_MODE).body
    assert json.parse(body) == {"messageRequestModeMap": {}}


@pytest.mark.parametrize(
    ("topic", "group", "mode", "code"),
    [
        ("%RETRY%g", "g", "POP", ResponseCode.NO_PERMISSION),
        ("nowhere", "g", "POP", ResponseCode.TOPIC_NOT_EXIST),
        ("orders", "a b", "POP", ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST),
        ("orders", "g", "PUSH", ResponseCode.INVALID_PARAMETER),
    ],
)
def test_modes_that_are_refused(offline: OfflineBroker, topic: str, group: str, mode: str, code: int) -> None:
    assert set_mode(offline, mode, topic=topic, group=group).code == code
    assert offline.broker.modes.table.message_request_mode_map == {}


def test_a_group_that_is_not_there_is_made(offline: OfflineBroker) -> None:
    assert set_mode(offline, "POP", group="new").code == 0
    assert offline.broker.groups.get("new") == GroupConfig(group_name="new")


# -------------------------------------------------------------------------------------------------- other brokers


def route(*brokers: str, perm: int = 6) -> TopicRoute:
    return TopicRoute(
        broker_datas=[BrokerData(cluster="c", broker_name=name, broker_addrs={0: "127.0.0.1:1"}) for name in brokers],
        queue_datas=[QueueData(broker_name=name, read_queue_nums=2, write_queue_nums=2, perm=perm) for name in brokers],
    )


class FakeRoutes:
    def __init__(self, answer: Reply[TopicRoute] | Exception) -> None:
        self.answer = answer

    def route(self, topic: str) -> Reply[TopicRoute]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_queues_of_all_brokers_are_shared(offline: OfflineBroker) -> None:
    offline.broker.assignments.routes = FakeRoutes(route("broker-b", "broker-a"))
    assert ask(offline, "a")[0] == [("broker-a", 0), ("broker-a", 1)]
    assert ask(offline, "c")[0] == [("broker-b", 1)]
    set_mode(offline, "POP")
    assert ask(offline, "c")[0] == [("broker-a", -1), ("broker-b", -1)]
    offline.broker.assignments.routes = FakeRoutes(route("broker-b", perm=2))
    assert ask(offline, "a") is None, "nothing to read"
    offline.broker.assignments.routes = FakeRoutes(TopicNotFound("nowhere"))
    assert ask(offline, "a") is None


class FakeClient(RemotingClient):
    """Remembers what is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Address, Any, Later[Command]]] = []

    def request(self, address: Address, code: int, fields: Any, body: bytes, timeout_ms: int) -> Later[Command]:
        answer: Later[Command] = Later()
        assert code == RequestCode.GET_ROUTEINFO_BY_TOPIC
        self.asked.append((address, fields, answer))
        return answer

    def answer(self, code: int = 0, body: bytes = b"") -> Address:
        address, _, later = self.asked.pop(0)
        later.resolve(Command(code, 1, body=body))
        return address


class Wire:
    def __init__(self) -> None:
        self.client, self.clock = FakeClient(), VirtualClock()
        self.addresses = [Address("10.0.0.1", 9876), Address("10.0.0.2", 9876)]
        self.routes = RemoteRoutes(NameServers(self.client, self.addresses), self.clock, Kept(fresh_ms=30_000))

    def ask(self) -> Answer:
        return Answer(lambda: self.routes.route("orders"))


def test_a_nameserver_is_asked_once_in_a_while() -> None:
    wire = Wire()
    first = wire.ask()
    [(address, fields, _)] = wire.client.asked
    assert (address, fields["topic"]) == (wire.addresses[0], "orders")
    wire.client.answer(body=encode(route("broker-a")))
    assert first.value == route("broker-a")
    wire.clock.advance(29_999)
    assert wire.ask().value == route("broker-a")
    wire.clock.advance(1)
    again = wire.ask()
    wire.client.answer(body=encode(route("broker-b")))
    assert again.value == route("broker-b")


def test_the_next_nameserver_is_asked_and_what_was_known_is_good() -> None:
    wire = Wire()
    unknown = wire.ask()
    assert wire.client.answer(ResponseCode.SYSTEM_ERROR) == wire.addresses[0]
    assert wire.client.answer(body=b"{") == wire.addresses[1]
    with pytest.raises(ConnectionLost, match="no NameServer says"):
        _ = unknown.value
    known = wire.ask()
    wire.client.asked.pop(0)[2].fail(ConnectionLost("gone"))
    wire.client.answer(body=encode(route("broker-a")))
    assert known.value == route("broker-a")
    wire.clock.advance(60_000)
    later = wire.ask()
    for _ in wire.addresses:
        wire.client.asked.pop(0)[2].fail(ConnectionLost("gone"))
    assert later.value == route("broker-a")


def test_a_topic_that_is_gone_is_forgotten() -> None:
    wire = Wire()
    wire.ask()
    wire.client.answer(body=encode(route("broker-a")))
    wire.clock.advance(60_000)
    gone = wire.ask()
    for _ in wire.addresses:
        wire.client.answer(ResponseCode.TOPIC_NOT_EXIST)
    with pytest.raises(TopicNotFound):
        _ = gone.value
    unknown = wire.ask()
    for _ in wire.addresses:
        wire.client.answer(ResponseCode.SYSTEM_ERROR)
    with pytest.raises(ConnectionLost):
        _ = unknown.value
