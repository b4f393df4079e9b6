"""Push consumers that leave the balance to their broker (clientRebalance=false): it shares the queues among those that
pull, and lets others pop. The Java client only, whose orderly and broadcasting consumers always balance themselves.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness.admin import Admin, AdminError, RemotingConnection
from harness.processes import Processes, route, wait_for_route
from harness.remoting import Received, RemotingClient, RemotingMessage, RemotingProcess, RemotingPush, wait_shared
from harness.remoting_fixtures import SOURCES, client_of, start
from harness.servers import Server, free_broker_port, free_port, only_saturn

from saturnmq.testing.server import LocalServer

QUEUES = 4
ANY_QUEUE = frozenset({-1})
SET_MESSAGE_REQUEST_MODE = 401
GET_ALL_MESSAGE_REQUEST_MODE = 402
QUERY_CONSUMER_OFFSET = 14
#: the least that the client takes
INVISIBLE_MS = 5_000


class Modes:
    """How groups read topics, as `mqadmin setConsumeMode` sets it."""

    def __init__(self, broker: str) -> None:
        self._connection = RemotingConnection(broker)

    def put(self, topic: str, group: str, mode: str, share: int = -1) -> None:
        body = {"topic": topic, "consumerGroup": group, "mode": mode, "popShareQueueNum": share}
        self._connection.call(SET_MESSAGE_REQUEST_MODE, json.dumps(body).encode())

    def get(self, topic: str, group: str) -> str:
        table = json.loads(self._connection.call(GET_ALL_MESSAGE_REQUEST_MODE))["messageRequestModeMap"]
        return str(table[topic][group]["mode"])

    def done(self, topic: str, group: str) -> int:
        """How many messages of the topic the group was given."""
        return sum(self._offset(topic, group, queue_id) for queue_id in range(QUEUES))

    def _offset(self, topic: str, group: str, queue_id: int) -> int:
        try:
            _, fields = self._connection.ask(
                QUERY_CONSUMER_OFFSET, topic=topic, consumerGroup=group, queueId=str(queue_id)
            )
            return int(fields["offset"])
        except AdminError:
            return 0

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def modes(server: Server) -> Iterator[Modes]:
    modes = Modes(server.broker)
    yield modes
    modes.close()


@pytest.fixture
def topic(admin: Admin) -> str:
    return admin.create_topic(queues=QUEUES)


@pytest.fixture
def popping(admin: Admin, modes: Modes, topic: str) -> str:
    """A group that pops the topic."""
    group = admin.create_group()
    modes.put(topic, group, "POP")
    return group


def join(client: RemotingClient, group: str, topic: str, **more: object) -> RemotingPush:
    return client.push(group, {topic: "*"}, popping=True, invisible_ms=INVISIBLE_MS, retry_level=0, **more)  # type: ignore[arg-type]


def wait_assigned(consumer: RemotingPush, topic: str, queues: frozenset[int], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while consumer.queues(topic) != queues:
        assert time.monotonic() < deadline, f"after {timeout_s} s it has {consumer.queues(topic)}, not {queues}"
        time.sleep(0.02)


def send(client: RemotingClient, topic: str, count: int, first: int = 0) -> None:
    client.producer().send(
        RemotingMessage(topic, b"%d" % number, "t", properties={"n": str(number)}, queue_id=number % QUEUES)
        for number in range(first, first + count)
    )


def numbers(deliveries: list[Received]) -> list[int]:
    return [int(delivery.message.body) for delivery in deliveries]


def collected(consumers: list[RemotingPush], count: int, timeout_s: float = 30) -> Counter[int]:
    """How often each number came, when `count` different ones have come."""
    came: Counter[int] = Counter()
    deadline = time.monotonic() + timeout_s
    while len(came) < count and time.monotonic() < deadline:
        for consumer in consumers:
            came.update(numbers(consumer.received(1, timeout_s=0.02)))
    return came


# ------------------------------------------------------------------------------------------------------- pulling


def test_the_broker_shares_the_queues(java_remoting: RemotingClient, admin: Admin, topic: str) -> None:
    group = admin.create_group()
    first, second = (join(java_remoting, group, topic) for _ in range(2))
    wait_shared(topic, QUEUES, first, second, timeout_s=30)
    send(java_remoting, topic, 40)
    assert collected([first, second], 40) == Counter(range(40))
    java_remoting.close(second)
    wait_shared(topic, QUEUES, first, timeout_s=30)
    send(java_remoting, topic, 8, first=100)
    assert sorted(numbers(first.received(8))) == list(range(100, 108))


# ------------------------------------------------------------------------------------------------------- popping


def test_a_popping_consumer_gets_everything_once(
    java_remoting: RemotingClient, modes: Modes, topic: str, popping: str
) -> None:
    consumer = join(java_remoting, popping, topic)
    wait_assigned(consumer, topic, ANY_QUEUE)
    send(java_remoting, topic, 40)
    received = consumer.received(40)
    assert Counter(numbers(received)) == Counter(range(40))
    assert {(delivery.message.topic, delivery.attempt) for delivery in received} == {(topic, 1)}
    assert modes.done(topic, popping) == 40
    assert not consumer.take(1, timeout_s=INVISIBLE_MS / 1000 + 1), "all of it is acknowledged"


def test_a_waiting_consumer_gets_a_message_at_once(java_remoting: RemotingClient, topic: str, popping: str) -> None:
    """It waits in a pop of 15 s."""
    consumer = join(java_remoting, popping, topic)
    wait_assigned(consumer, topic, ANY_QUEUE)
    send(java_remoting, topic, 1)
    assert consumer.take(1)
    time.sleep(0.2)
    begun = time.monotonic()
    send(java_remoting, topic, 1)
    assert consumer.take(1)
    assert time.monotonic() - begun < 10


def test_consumers_share_and_leave(java_remoting: RemotingClient, topic: str, popping: str) -> None:
    """All of them pop from all queues."""
    consumers = [join(java_remoting, popping, topic) for _ in range(3)]
    for consumer in consumers:
        wait_assigned(consumer, topic, ANY_QUEUE)
    send(java_remoting, topic, 60)
    assert collected(consumers, 60) == Counter(range(60))
    java_remoting.close(consumers.pop())
    send(java_remoting, topic, 30, first=100)
    assert collected(consumers, 30) == Counter(range(100, 130))


def test_consumers_share_with_those_that_follow(
    java_remoting: RemotingClient, admin: Admin, modes: Modes, topic: str
) -> None:
    """popShareQueueNum=1: every queue has two consumers."""
    group = admin.create_group()
    modes.put(topic, group, "POP", share=1)
    consumers = [join(java_remoting, group, topic) for _ in range(4)]
    deadline = time.monotonic() + 30
    while Counter(queue for consumer in consumers for queue in consumer.queues(topic)) != dict.fromkeys(
        range(QUEUES), 2
    ):
        assert time.monotonic() < deadline, [consumer.queues(topic) for consumer in consumers]
        time.sleep(0.02)
    send(java_remoting, topic, 40)
    assert collected(consumers, 40) == Counter(range(40))


def test_what_failed_comes_again(java_remoting: RemotingClient, topic: str, popping: str) -> None:
    """After 10 s, the client's first wait: it changes the invisible time; the next delivery is from the retry topic."""
    consumer = join(java_remoting, popping, topic, failures=1)
    wait_assigned(consumer, topic, ANY_QUEUE)
    begun = time.monotonic()
    send(java_remoting, topic, 1)
    first, again = consumer.received(2, timeout_s=30)
    assert time.monotonic() - begun > 9
    assert [(delivery.attempt, delivery.failed) for delivery in (first, again)] == [(1, True), (2, False)]
    assert (again.id, again.message.topic, again.message.tag) == (first.id, topic, "t")
    assert again.message.properties["n"] == "0", "Apache adds one of its own"


def test_what_a_dead_consumer_held_goes_to_the_others(
    java_remoting: RemotingClient, run_home: Path, server: Server, topic: str, popping: str
) -> None:
    """It was killed while its listener ran."""
    dying = start("java", run_home / "java-dying")
    with client_of(dying, server) as client:
        held = join(client, popping, topic, holding=True)
        wait_assigned(held, topic, ANY_QUEUE)
        send(java_remoting, topic, 4)
        assert sorted(numbers(held.received(4))) == [0, 1, 2, 3]
        client.opened.clear()
        dying.kill()
    other = join(java_remoting, popping, topic)
    assert collected([other], 4) == Counter(range(4))


def test_filters(java_remoting: RemotingClient, modes: Modes, admin: Admin, topic: str) -> None:
    for sql, wanted in ((False, "t || u"), (True, "n >= 5 AND TAGS = 't'")):
        group = admin.create_group()
        modes.put(topic, group, "POP")
        consumer = java_remoting.push(group, {topic: wanted}, popping=True, invisible_ms=INVISIBLE_MS, sql=sql)
        wait_assigned(consumer, topic, ANY_QUEUE)
        send(java_remoting, topic, 8)
        expected = range(5, 8) if sql else range(8)
        assert set(collected([consumer], len(expected))) == set(expected)
        java_remoting.close(consumer)


def test_running_consumers_change_over(java_remoting: RemotingClient, modes: Modes, admin: Admin, topic: str) -> None:
    """From pulling to popping and back, when they ask again: here because another one comes or goes."""
    group = admin.create_group()
    staying = join(java_remoting, group, topic)
    wait_shared(topic, QUEUES, staying, timeout_s=30)
    send(java_remoting, topic, 20)
    assert Counter(numbers(staying.received(20))) == Counter(range(20))
    modes.put(topic, group, "POP")
    assert modes.get(topic, group) == "POP"
    other = join(java_remoting, group, topic)
    for consumer in (staying, other):
        wait_assigned(consumer, topic, ANY_QUEUE)
    send(java_remoting, topic, 20, first=100)
    assert set(collected([staying, other], 20)) >= set(range(100, 120))
    modes.put(topic, group, "PULL")
    java_remoting.close(other)
    wait_shared(topic, QUEUES, staying, timeout_s=30)
    send(java_remoting, topic, 20, first=200)
    came = collected([staying], 20)
    assert set(came) >= set(range(200, 220)), came


@only_saturn
def test_brokers_share_the_queues_of_all_of_them(
    tmp_path: Path, remoting_process: Callable[[str], RemotingProcess]
) -> None:
    """Each asks its NameServer where the others have queues of the topic, so that all say the same."""
    with ExitStack() as opened:
        processes = Processes(tmp_path, opened)
        names = processes.namesrv().ready["namesrv"]
        brokers = {name: processes.broker("-n", names, name=name).ready["broker"] for name in ("broker-a", "broker-b")}
        wait_for_route(names, brokers)
        client = RemotingClient(remoting_process("java"), names)
        group = "of-both"
        for address in brokers.values():
            admin, modes = Admin(names, address), Modes(address)
            admin.create_topic(queues=2, name="both")
            modes.put("both", admin.create_group(name=group), "PULL")
            admin.close()
            modes.close()
        wait_until(lambda: set(route(names, "both")) == set(brokers))
        pulling = [join(client, group, "both") for _ in range(2)]
        wait_until(lambda: sorted(len(consumer.queues("both")) for consumer in pulling) == [2, 2])
        client.producer().send([RemotingMessage("both", b"%d" % number, queue_id=number % 2) for number in range(40)])
        assert collected(pulling, 40) == Counter(range(40))
        client.close_all()


def wait_until(comes_true: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not comes_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def binary_remoting(run_home: Path, server: Server) -> Iterator[RemotingClient]:
    """A client whose headers have 16 bits for a request code."""
    process = RemotingProcess(
        list(SOURCES["java"].toolchain.run),
        SOURCES["java"].built(),
        run_home / "java-binary",
        {"JAVA_TOOL_OPTIONS": "-Drocketmq.serialize.type=ROCKETMQ"},
    )
    with client_of(process, server) as client:
        yield client
    process.kill()


@only_saturn
def test_popping_with_binary_headers(binary_remoting: RemotingClient, topic: str, popping: str) -> None:
    """Codes beyond 32767 are cut off there; Apache's broker does not know what is left of them."""
    consumer = join(binary_remoting, popping, topic)
    wait_assigned(consumer, topic, ANY_QUEUE)
    send(binary_remoting, topic, 8)
    assert Counter(numbers(consumer.received(8))) == Counter(range(8))
    assert not consumer.take(1, timeout_s=INVISIBLE_MS / 1000 + 1)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalServer]:
    """On ports that it keeps."""
    ports = f"--namesrv-port={free_port()}", f"--broker-port={free_broker_port()}"
    with LocalServer(*ports, dev=False, home=tmp_path) as local:
        yield local


@only_saturn
def test_popping_goes_on_when_the_broker_restarts(
    local: LocalServer, remoting_process: Callable[[str], RemotingProcess]
) -> None:
    """The mode is kept, and so is who holds what: what was acknowledged does not come again."""
    client = RemotingClient(remoting_process("java"), local.namesrv)
    admin, modes = Admin(local.namesrv, local.broker), Modes(local.broker)
    topic, group = admin.create_topic(queues=QUEUES), admin.create_group()
    modes.put(topic, group, "POP")
    admin.close()
    modes.close()
    consumer = join(client, group, topic)
    wait_assigned(consumer, topic, ANY_QUEUE)
    send(client, topic, 20)
    assert Counter(numbers(consumer.received(20))) == Counter(range(20))
    assert not consumer.take(1, timeout_s=INVISIBLE_MS / 1000 + 1), "the acknowledgements have come"
    assert local.stop() == 0
    local.start()
    admin = Admin(local.namesrv, local.broker)
    admin.wait_for_route(topic)
    admin.close()
    send(client, topic, 20, first=100)
    assert collected([consumer], 20, timeout_s=60) == Counter(range(100, 120))
    assert not consumer.take(1, timeout_s=INVISIBLE_MS / 1000 + 1)
    client.close_all()
    assert "Traceback" not in local.log()
