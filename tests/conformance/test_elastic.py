"""Proxies that come and go under clients that stay: who knows another one goes on there, and nobody else notices."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from harness.admin import Admin
from harness.clients import Client, ClientError, Message, PushConsumer, SimpleConsumer
from harness.processes import Processes, wait_for_route
from harness.servers import free_port, only_saturn

from saturnmq.testing.server import ServerProcess

pytestmark = only_saturn

#: for what happens within moments
SOON_S = 15
MESSAGES = 5
#: more than the broker waits before it looks for half messages
CHECK_MS = 35_000


class Stage:
    """NameServer and broker, a topic, two groups, and as many Proxies as a test wants."""

    def __init__(self, home: Path, opened: ExitStack) -> None:
        self._home, self._opened = home, opened
        processes = Processes(home, opened)
        self.namesrv = processes.namesrv().ready["namesrv"]
        self.broker = processes.broker("-n", self.namesrv)
        address = self.broker.ready["broker"]
        wait_for_route(self.namesrv, {"broker-a": address})
        admin = self.admin = Admin(self.namesrv, address)
        opened.callback(admin.close)
        self.topic, self.pushed, self.taken = admin.create_topic(), admin.create_group(), admin.create_group()

    def proxy(self, name: str, *arguments: str) -> ServerProcess:
        """On a port that it keeps."""
        home = self._home / name
        ports = (f"--port={free_port()}", "--proxy-remoting-port=0", "--http-port=0", f"--data-dir={home / 'data'}")
        proxy = ServerProcess("proxy", "-n", self.namesrv, *ports, *arguments, home=home)
        proxy.start()
        self._opened.callback(lambda: proxy.running and proxy.stop())
        return proxy


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with ExitStack() as opened:
        yield Stage(tmp_path, opened)


class Traffic:
    """What one client sends and both kinds of consumers get."""

    def __init__(self, client: Client, stage: Stage) -> None:
        self._topic = stage.topic
        self._producer = client.producer(stage.topic)
        self._push = client.push(stage.pushed, {stage.topic: "*"})
        self._simple = client.simple(stage.taken, {stage.topic: "*"}, await_ms=2_000)

    def check(self) -> None:
        """No send fails, and what was sent comes."""
        sent = {one for _ in range(MESSAGES) for one in self._producer.send([Message(self._topic, b"x")])}
        for consumer in (self._push, self._simple):
            assert arrived(consumer, sent) == sent


def arrived(consumer: PushConsumer | SimpleConsumer, wanted: set[str]) -> set[str]:
    """Those of the wanted that come. A receive that waits at a Proxy that ends may fail, the next one does not."""
    got: set[str] = set()
    deadline = time.monotonic() + SOON_S
    while not wanted <= got and time.monotonic() < deadline:
        try:
            got |= {delivery.id for delivery in consumer.take(len(wanted - got), timeout_s=1)}
        except ClientError:
            continue
    return got & wanted


@pytest.mark.clients("python", "go", "java")
@pytest.mark.parametrize("end", [ServerProcess.stop, ServerProcess.kill])
def test_clients_that_know_two_proxies_need_one(
    client: Client, stage: Stage, end: Callable[[ServerProcess], int]
) -> None:
    """Stopped or killed, back again, and the other one."""
    proxies = [stage.proxy(name) for name in ("first", "second")]
    client.endpoints = ";".join(proxy.ready["grpc"] for proxy in proxies)
    traffic = Traffic(client, stage)
    traffic.check()
    for proxy in proxies:
        end(proxy)
        traffic.check()
        proxy.start()
    part(client)


@pytest.mark.clients("python", "go", "java")
def test_a_push_consumer_keeps_what_it_holds_when_its_proxy_is_killed(client: Client, stage: Stage) -> None:
    """It takes longer than a lease, goes on at another Proxy, and acknowledges there."""
    proxies = [stage.proxy(name) for name in ("first", "second")]
    client.endpoints = ";".join(proxy.ready["grpc"] for proxy in proxies)
    push = client.push(stage.pushed, {stage.topic: "*"}, paused=True)
    [sent] = client.producer(stage.topic).send([Message(stage.topic, b"x")])
    assert [delivery.id for delivery in push.take(1)] == [sent]
    wait_until(lambda: metric(stage.broker, "saturnmq_kept_leases") == 1)
    used, other = sorted(proxies, key=lambda proxy: metric(proxy, "saturnmq_grpc_connections"), reverse=True)
    used.kill()
    wait_until(lambda: metric(other, "saturnmq_grpc_connections") > 0)
    for _ in range(40):  # longer than a lease, and not so long that a client of another clock counts as silent
        advance(stage.broker, 2_000)
    assert not push.take(1, timeout_s=2)
    assert metric(stage.broker, "rocketmq_consumer_inflight_messages") == 1
    push.resume()
    wait_until(lambda: metric(stage.broker, "rocketmq_consumer_inflight_messages") == 0)
    assert not push.take(1, timeout_s=1)
    part(client)


@pytest.mark.clients("python", "go", "java")
def test_a_transaction_ends_through_another_proxy(client: Client, stage: Stage) -> None:
    """The half message came through one that is gone."""
    first, second = (stage.proxy(name) for name in ("first", "second"))
    topic = stage.admin.create_topic("TRANSACTION")
    client.endpoints = first.ready["grpc"]
    producer = client.producer(topic, checks="ROLLBACK")
    left = producer.transact(Message(topic, b"x"), "UNKNOWN")
    client.close(producer)
    first.kill()
    wait_until(lambda: not stage.admin.producer_ids(topic, topic))
    client.endpoints = second.ready["grpc"]
    producer = client.producer(topic, checks="COMMIT")
    wait_until(lambda: len(stage.admin.producer_ids(topic, topic)) == 1)
    advance(stage.broker, CHECK_MS)
    assert [checked.id for checked in producer.checked(1)] == [left]
    consumer = client.simple(stage.taken, {topic: "*"})
    assert [delivery.id for delivery in consumer.take(1)] == [left]
    part(client)


def test_clients_find_back_to_their_one_proxy(client: Client, stage: Stage) -> None:
    """Behind one address, of a load balancer say, another one comes in its place."""
    proxy = stage.proxy("first")
    client.endpoints = proxy.ready["grpc"]
    traffic = Traffic(client, stage)
    traffic.check()
    assert proxy.stop() == 0
    proxy.start()
    until_it_works(traffic.check)
    part(client)


def test_workers_come_and_go(client: Client, stage: Stage) -> None:
    proxy = stage.proxy("shared", "--workers=2")
    client.endpoints = proxy.ready["grpc"]
    traffic = Traffic(client, stage)
    traffic.check()
    for worker in workers_of(proxy):
        os.kill(worker, signal.SIGKILL)
        until_it_works(traffic.check)
    with urlopen(f"http://{proxy.ready['http']}/readyz", timeout=SOON_S) as page:
        assert page.read() == b"ready\n"
    part(client)
    assert proxy.stop() == 0
    assert "Traceback" not in proxy.log()


def part(client: Client) -> None:
    """Not waited for: Java's client never ends when it is closed in the second in which it opens its telemetry anew."""
    client.close_all(wait=False)


def metric(server: ServerProcess, name: str) -> int:
    """Its sum over all labels."""
    with urlopen(f"http://{server.ready['http']}/metrics", timeout=SOON_S) as page:
        samples = [line.rpartition(" ") for line in page.read().decode().splitlines()]
    return sum(int(value) for sample, _, value in samples if sample.partition("{")[0] == name)


def advance(server: ServerProcess, milliseconds: int) -> None:
    address = f"http://{server.ready['http']}/test-clock/advance/{milliseconds}"
    with urlopen(Request(address, method="POST"), timeout=SOON_S):
        pass


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def workers_of(parent: ServerProcess) -> list[int]:
    return [int(child) for child in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]


def until_it_works(act: Callable[[], None]) -> None:
    """What a client tried while nobody was there has failed; it may need a moment to notice that somebody is."""
    deadline = time.monotonic() + SOON_S
    while True:
        try:
            act()
        except ClientError:
            assert time.monotonic() < deadline, "the client does not find back"
            time.sleep(0.2)
        else:
            return
