"""Processes that share a port, as real processes: `shared_port` is the program."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc
import pytest

from saturnmq.testing.server import ServerError, ServerProcess

PROGRAM = (sys.executable, str(Path(__file__).with_name("shared_port.py")))
WAIT_S = 20


class Client:
    """One connection."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])

    def call(self, method: str) -> str:
        return str(self.begin(method).result(WAIT_S))

    def begin(self, method: str) -> grpc.Future:
        stub = self.channel.unary_unary(f"/test/{method}", bytes, lambda answer: answer.decode())
        return stub.future(b"", wait_for_ready=True, timeout=WAIT_S)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess("--workers=2", home=tmp_path, command=PROGRAM) as server:
        yield server


@pytest.fixture
def clients(server: ServerProcess) -> Iterator[Callable[[int], list[Client]]]:
    made: list[Client] = []

    def make(count: int) -> list[Client]:
        made.extend(Client(server.ready["grpc"]) for _ in range(count))
        return made[-count:]

    yield make
    for client in made:
        client.channel.close()


Clients = Callable[[int], list[Client]]


def page(server: ServerProcess, path: str) -> tuple[int, str]:
    try:
        with urlopen(f"http://{server.ready['http']}{path}", timeout=WAIT_S) as answer:
            return int(answer.status), answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def wait_until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < end
        threading.Event().wait(0.02)


def test_each_connection_goes_to_the_worker_with_the_fewest(server: ServerProcess, clients: Clients) -> None:
    served = Counter(client.call("Who") for client in clients(6))
    assert sorted(served.values()) == [3, 3]
    assert str(server.pid) not in served


def test_the_parent_answers_for_all(server: ServerProcess, clients: Clients) -> None:
    for client in clients(2):
        client.call("Who")
    assert page(server, "/readyz") == (200, "ready\n")
    _, metrics = page(server, "/metrics")
    lines = metrics.splitlines()
    assert lines.count("# TYPE saturnmq_grpc_connections gauge") == 1
    assert {f'saturnmq_grpc_connections{{worker="{number}"}} 1' for number in (1, 2)} <= set(lines)
    assert "saturnmq_worker_restarts_total 0" in lines


def test_a_worker_that_dies_is_replaced(server: ServerProcess, clients: Clients) -> None:
    one, other = clients(2)
    before = {one.call("Who"), other.call("Who")}
    with pytest.raises(grpc.RpcError):
        one.call("Fail")
    assert other.call("Who") in before, "its neighbours do not notice"
    wait_until(lambda: "saturnmq_worker_restarts_total 1" in page(server, "/metrics")[1])
    wait_until(lambda: len({client.call("Who") for client in clients(4)} | {other.call("Who")}) == 2)
    assert "ended with status -9" in server.log()


def test_a_stopped_worker_gets_no_connections(server: ServerProcess, clients: Clients) -> None:
    stuck = int(clients(1)[0].call("Who"))
    os.kill(stuck, signal.SIGSTOP)
    try:
        wait_until(lambda: "saturnmq_workers 1\n" in page(server, "/metrics")[1])
        assert str(stuck) not in {client.call("Who") for client in clients(4)}
        assert page(server, "/readyz")[0] == 200, "the other one serves"
    finally:
        os.kill(stuck, signal.SIGCONT)


def test_all_drain_together(server: ServerProcess, clients: Clients) -> None:
    some = clients(2)
    for client in some:
        client.call("Who")
    waiting = [client.begin("Wait") for client in some]
    for client in some:
        client.call("Who")  # it came after the other
    assert server.stop() == 0
    assert server.log().count("stopping: running requests") == 3
    assert [answer.result(WAIT_S) for answer in waiting] == ["drained", "drained"]


def test_workers_end_with_their_parent(server: ServerProcess, clients: Clients) -> None:
    workers = {int(client.call("Who")) for client in clients(2)}
    server.kill()
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


def test_a_worker_that_cannot_start_ends_all(tmp_path: Path) -> None:
    server = ServerProcess("--workers=2", "--set=refuseToStart=1", home=tmp_path, command=PROGRAM)
    with pytest.raises(ServerError, match="worker 1 did not start"):
        server.start()
