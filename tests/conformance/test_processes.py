"""NameServer and Broker as processes of their own, among themselves and with Apache's."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from harness.admin import GET_ROUTEINFO_BY_TOPIC, Admin, AdminError, RemotingConnection
from harness.clients import Message
from harness.remoting import RemotingClient, RemotingProcess
from harness.servers import Apache, free_broker_port, free_port, only_apache, only_saturn

from saturnmq import __version__
from saturnmq.testing.server import ServerProcess

TOPIC_NOT_EXIST = 17
#: of what happens at once, on a machine that is busy
SOON_S = 10
#: registerNameServerPeriod
PERIOD_MS = 30_000


class Processes:
    """Starts processes of ours and ends them; each has its directory below `home`."""

    def __init__(self, home: Path, opened: ExitStack) -> None:
        self._home, self._opened = home, opened

    def namesrv(self, port: int = 0, name: str = "namesrv") -> ServerProcess:
        return self._start(name, "namesrv", "--port", str(port))

    def broker(self, *arguments: str, name: str = "broker-a") -> ServerProcess:
        files = ("--data-dir", str(self._home / name / "data"))
        ports = ("--port", "0", "--http-port", "0", "--test-clock")
        return self._start(name, "broker", *files, *ports, "--set", f"brokerName={name}", *arguments)

    def _start(self, name: str, *arguments: str) -> ServerProcess:
        home = self._home / name
        home.mkdir(exist_ok=True)
        process = ServerProcess(*arguments, home=home)
        process.start()
        self._opened.callback(lambda: process.running and process.kill())
        return process


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with ExitStack() as opened:
        yield Processes(tmp_path, opened)


def route(namesrv: str, topic: str = "TBW102") -> dict[str, str]:
    """Broker name → address; empty when the NameServer does not know the topic."""
    connection = RemotingConnection(namesrv)
    try:
        data = json.loads(connection.call(GET_ROUTEINFO_BY_TOPIC, topic=topic, acceptStandardJsonOnly="true"))
    except AdminError as error:
        if error.code != TOPIC_NOT_EXIST:
            raise
        return {}
    finally:
        connection.close()
    return {broker["brokerName"]: broker["brokerAddrs"]["0"] for broker in data["brokerDatas"]}


def wait_for_route(namesrv: str, brokers: dict[str, str]) -> None:
    deadline = time.monotonic() + SOON_S
    while (known := route(namesrv)) != brokers:
        assert time.monotonic() < deadline, f"{namesrv} knows {known}, not {brokers}"
        time.sleep(0.02)


def exchange(client: RemotingClient, topic: str) -> None:
    """A message there and back."""
    client.producer().send([Message(topic, b"there and back")])
    (received,) = client.push("exchange", {topic: "*"}).take(1)
    assert received.message.body == b"there and back"


@only_saturn
def test_clients_find_the_broker_through_the_nameserver(
    processes: Processes, remoting_language: str, remoting_process: Callable[[str], RemotingProcess]
) -> None:
    names = processes.namesrv().ready
    broker = processes.broker("-n", names["namesrv"]).ready
    wait_for_route(names["namesrv"], {"broker-a": broker["broker"]})
    client = RemotingClient(remoting_process(remoting_language), names["namesrv"])
    exchange(client, "separate")  # created on first use, autoCreateTopicEnable
    client.close_all()
    assert set(names) == {"namesrv", "pid", "version"}
    assert set(broker) == {"broker", "http", "pid", "version"}
    assert {names["version"], broker["version"]} == {__version__}


@only_saturn
def test_two_brokers_at_two_nameservers(processes: Processes) -> None:
    namesrvs = [processes.namesrv(name=name).ready["namesrv"] for name in ("first", "second")]
    brokers = {
        name: processes.broker("-n", ";".join(namesrvs), name=name).ready["broker"] for name in ("broker-a", "broker-b")
    }
    for namesrv in namesrvs:
        wait_for_route(namesrv, brokers)


@only_saturn
def test_a_nameserver_that_comes_back_learns_of_the_broker(processes: Processes) -> None:
    port = free_port()
    names = processes.namesrv(port)
    broker = processes.broker("-n", f"127.0.0.1:{port}")
    wait_for_route(f"127.0.0.1:{port}", {"broker-a": broker.ready["broker"]})
    assert names.stop() == 0
    names = processes.namesrv(port)
    assert route(f"127.0.0.1:{port}") == {}
    advance(broker, PERIOD_MS)
    wait_for_route(f"127.0.0.1:{port}", {"broker-a": broker.ready["broker"]})


@only_saturn
def test_a_broker_starts_before_its_nameserver(processes: Processes) -> None:
    port = free_port()
    broker = processes.broker("-n", f"127.0.0.1:{port}")
    processes.namesrv(port)
    advance(broker, PERIOD_MS)
    wait_for_route(f"127.0.0.1:{port}", {"broker-a": broker.ready["broker"]})


@only_saturn
@pytest.mark.parametrize("end", [ServerProcess.stop, ServerProcess.kill])
def test_a_broker_that_is_gone_has_no_route(processes: Processes, end: Callable[[ServerProcess], int]) -> None:
    """Whether it said good-bye or not."""
    names = processes.namesrv().ready["namesrv"]
    broker = processes.broker("-n", names)
    wait_for_route(names, {"broker-a": broker.ready["broker"]})
    end(broker)
    wait_for_route(names, {})


@only_saturn
def test_a_broker_stops_without_its_nameserver(processes: Processes) -> None:
    names = processes.namesrv()
    broker = processes.broker("-n", names.ready["namesrv"])
    names.kill()
    assert broker.stop() == 0


@only_saturn
def test_a_broker_under_another_address(processes: Processes) -> None:
    names = processes.namesrv().ready["namesrv"]
    processes.broker("-n", names, "--advertise", "broker=mq.example:30911")
    wait_for_route(names, {"broker-a": "mq.example:30911"})


def advance(broker: ServerProcess, milliseconds: int) -> None:
    address = f"http://{broker.ready['http']}/test-clock/advance/{milliseconds}"
    with urlopen(Request(address, method="POST"), timeout=10):
        pass


# ------------------------------------------------------------------------------------------------ with Apache's


@contextmanager
def apache(home: Path) -> Iterator[Apache]:
    home.mkdir()
    started = Apache(home)
    try:
        yield started
    finally:
        started.kill()


@only_apache
@pytest.mark.oracle
def test_our_broker_at_apaches_nameserver(
    processes: Processes, tmp_path: Path, remoting_process: Callable[[str], RemotingProcess]
) -> None:
    port = free_port()
    namesrv = f"127.0.0.1:{port}"
    with apache(tmp_path / "apache") as theirs:
        theirs.start("namesrv", port, NAMESRV=namesrv)
        broker = processes.broker("-n", namesrv)
        wait_for_route(namesrv, {"broker-a": broker.ready["broker"]})
        admin = Admin(namesrv, broker.ready["broker"])
        topic = admin.create_topic()
        admin.close()
        client = RemotingClient(remoting_process("java"), namesrv)
        exchange(client, topic)
        client.close_all()
        assert broker.stop() == 0
        wait_for_route(namesrv, {})


@only_apache
@pytest.mark.oracle
def test_apaches_broker_at_our_nameserver(
    processes: Processes, tmp_path: Path, remoting_process: Callable[[str], RemotingProcess]
) -> None:
    namesrv, port = processes.namesrv().ready["namesrv"], free_broker_port()
    with apache(tmp_path / "apache") as theirs:
        theirs.start("broker", port, NAMESRV=namesrv, BROKER_PORT=str(port))
        wait_for_route(namesrv, {"broker-a": f"127.0.0.1:{port}"})
        admin = Admin(namesrv, f"127.0.0.1:{port}")
        topic = admin.create_topic()
        admin.close()
        client = RemotingClient(remoting_process("java"), namesrv)
        exchange(client, topic)
        client.close_all()
    wait_for_route(namesrv, {})
