"""NameServer and Broker as processes of their own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from harness.admin import RemotingConnection
from harness.clients import Message
from harness.processes import Processes, exchange, route, wait_for_route
from harness.remoting import RemotingClient, RemotingProcess
from harness.servers import free_broker_port, free_port, only_saturn

from saturnmq import __version__
from saturnmq.testing.server import ServerProcess

PUT_KV_CONFIG, GET_KV_CONFIG, UPDATE_NAMESRV_CONFIG, GET_NAMESRV_CONFIG = 100, 101, 318, 319
#: registerNameServerPeriod
PERIOD_MS = 30_000


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with ExitStack() as opened:
        yield Processes(tmp_path, opened)


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
    assert set(names) == {"namesrv", "http", "pid", "version"}
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
    for end in (ServerProcess.stop, ServerProcess.kill):
        assert end(names) in (0, -signal.SIGKILL)
        names = processes.namesrv(port)
        wait_for_route(f"127.0.0.1:{port}", {"broker-a": broker.ready["broker"]})
    advance(broker, 100 * PERIOD_MS)
    assert route(f"127.0.0.1:{port}"), "it says that it lives"


@only_saturn
def test_a_broker_starts_before_its_nameserver(processes: Processes) -> None:
    port = free_port()
    broker = processes.broker("-n", f"127.0.0.1:{port}")
    processes.namesrv(port)
    wait_for_route(f"127.0.0.1:{port}", {"broker-a": broker.ready["broker"]})


@only_saturn
def test_clients_go_on_while_nameservers_and_the_broker_restart(
    processes: Processes, remoting_language: str, remoting_process: Callable[[str], RemotingProcess]
) -> None:
    """And ask for routes that they do not know yet."""
    namesrvs = [processes.namesrv(free_port(), name) for name in ("first", "second")]
    addresses = [names.ready["namesrv"] for names in namesrvs]
    port = free_broker_port()
    broker = processes.broker("-n", ";".join(addresses), "--port", str(port))
    for address in addresses:
        wait_for_route(address, {"broker-a": broker.ready["broker"]})
    client = RemotingClient(remoting_process(remoting_language), ";".join(addresses))
    producer = client.producer()
    producer.send([Message("orders", b"0")])
    consumer = client.push("readers", {"orders": "*"})

    def exchange(number: int) -> None:
        producer.send([Message("orders", b"%d" % number), Message(f"new{number}", b"x")])
        assert [received.message.body for received in consumer.take(1, timeout_s=60)] == [b"%d" % number]

    assert [received.message.body for received in consumer.take(1)] == [b"0"]
    namesrvs[0].kill()
    exchange(1)
    namesrvs[0].start()
    wait_for_route(addresses[0], {"broker-a": broker.ready["broker"]})
    namesrvs[1].kill()
    exchange(2)
    namesrvs[1].start()
    broker.kill()
    for address in addresses:
        wait_for_route(address, {})
    broker.start()
    for address in addresses:
        wait_for_route(address, {"broker-a": broker.ready["broker"]})
    exchange(3)
    client.close_all()


@only_saturn
def test_a_nameserver_keeps_what_tools_gave_it(processes: Processes, tmp_path: Path) -> None:
    """Its KV configs and its settings."""
    names = processes.namesrv()
    tool = RemotingConnection(names.ready["namesrv"])
    tool.call(PUT_KV_CONFIG, namespace="n", key="k", value="v")
    tool.call(UPDATE_NAMESRV_CONFIG, b"orderMessageEnable=true")
    tool.close()
    with urlopen(f"http://{names.ready['http']}/readyz", timeout=10) as page:
        assert page.read() == b"ready\n"
    names.kill()
    names.start()
    tool = RemotingConnection(names.ready["namesrv"])
    assert tool.ask(GET_KV_CONFIG, namespace="n", key="k")[1] == {"value": "v"}
    settings = tool.call(GET_NAMESRV_CONFIG).decode().splitlines()
    assert {"orderMessageEnable=true", f"listenPort={names.ready['namesrv'].rpartition(':')[2]}"} <= set(settings)
    tool.close()


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
