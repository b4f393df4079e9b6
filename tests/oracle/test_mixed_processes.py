"""Our NameServer and Broker among Apache's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness.admin import Admin
from harness.apache import START_TIMEOUT_S, Apache
from harness.processes import Processes, exchange, wait_for_route
from harness.remoting import RemotingClient, RemotingProcess
from harness.servers import free_broker_port


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with ExitStack() as opened:
        yield Processes(tmp_path, opened)


def test_our_broker_at_apaches_nameserver(
    processes: Processes, namesrv: str, remoting_process: Callable[[str], RemotingProcess]
) -> None:
    broker = processes.broker("-n", namesrv)
    wait_for_route(namesrv, {"broker-a": broker.ready["broker"]})
    exchange_in_new_topic(namesrv, broker.ready["broker"], remoting_process("java"))
    assert broker.stop() == 0
    wait_for_route(namesrv, {})


def test_apaches_broker_at_our_nameserver(
    processes: Processes, apache: Apache, remoting_process: Callable[[str], RemotingProcess]
) -> None:
    namesrv, port = processes.namesrv().ready["namesrv"], free_broker_port()
    broker = apache.start("broker", port, NAMESRV=namesrv, BROKER_PORT=str(port))
    address = f"127.0.0.1:{port}"
    wait_for_route(namesrv, {"broker-a": address}, START_TIMEOUT_S)  # its port is open long before it registers
    exchange_in_new_topic(namesrv, address, remoting_process("java"))
    broker.kill()
    wait_for_route(namesrv, {})


def exchange_in_new_topic(namesrv: str, broker: str, process: RemotingProcess) -> None:
    admin = Admin(namesrv, broker)
    topic = admin.create_topic()
    admin.close()
    client = RemotingClient(process, namesrv)
    exchange(client, topic)
    client.close_all()
