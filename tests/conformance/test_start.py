"""The start of a server: soon, small, and ready when it says so."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from grpc import insecure_channel
from harness.admin import GET_ROUTEINFO_BY_TOPIC, RemotingConnection
from harness.clients import Client, ClientProcess, Message
from harness.pipeline import GET_MAX_OFFSET, SEND_MESSAGE_V2
from harness.programs import ROOT
from harness.servers import only_saturn

from saturnmq import __version__
from saturnmq.net.tls import development_certificate
from saturnmq.testing.server import LocalServer, ServerError
from saturnmq.wire.proto import rocketmq_pb2 as pb

#: what `saturnmq local` has imported when it is ready, but for the standard library; `make rewrite` records it anew
MODULES = ROOT / "tests" / "conformance" / "modules.txt"
#: parts of the standard library that cost more than they are worth at a start
HEAVY = {"email", "http", "logging.config", "multiprocessing", "pydoc", "unittest", "urllib.request", "xml"}
#: ours, and what a Python installation may bring along
NOT_OTHERS = {"saturnmq", "sitecustomize", "usercustomize"}
LISTENERS = ("namesrv", "broker", "proxy_remoting", "grpc", "http")

QUERY_ROUTE = "/apache.rocketmq.v2.MessagingService/QueryRoute"
MOST_IDLE_BYTES = 80 << 20

#: in a process of its own: `saturnmq local` up to the banner, and which modules it has then
RECORD = """
import os, signal, sys
from saturnmq.__main__ import main
from saturnmq.daemons import life

def banner(*_):
    print(*sorted(sys.modules), sep="\\n", flush=True)
    os._exit(0)

life.banner = banner
main()
"""

pytestmark = only_saturn


@pytest.fixture(scope="module")
def local() -> Iterator[LocalServer]:
    with LocalServer("--test-clock") as local:
        yield local


def get(address: str, path: str) -> tuple[int, str]:
    connection = HTTPConnection(address, timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    answer = response.status, response.read().decode()
    connection.close()
    return answer


def route(namesrv: str, topic: str) -> str:
    connection = RemotingConnection(namesrv)
    answer = connection.call(GET_ROUTEINFO_BY_TOPIC, topic=topic).decode()
    connection.close()
    return answer


def send_one(broker: str) -> None:
    """To the topic `first`, which --dev creates, as clients of Java do it by default (SendMessageRequestHeaderV2)."""
    fields = "a=g b=first c=TBW102 d=4 e=0 f=0 g=1700000000000 h=0 i= j=0 k=false m=false"
    connection = RemotingConnection(broker)
    connection.ask(SEND_MESSAGE_V2, b"first", **dict(pair.split("=") for pair in fields.split()))
    connection.close()


@pytest.mark.smoke
def test_the_ready_file_appears_when_clients_can_connect(tmp_path: Path) -> None:
    """Whole, and with exactly these fields. It goes when they cannot any more."""
    ready_file = tmp_path / "ready.json"
    ports = [f"--{name.replace('_', '-')}-port=0" for name in LISTENERS]
    command = [sys.executable, "-m", "saturnmq", "local", *ports]
    command += [f"--ready-file={ready_file}", f"--data-dir={tmp_path / 'data'}"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while not ready_file.exists():
            assert process.poll() is None, (tmp_path / "log").read_text()
        ready = json.loads(ready_file.read_text())
        for listener in LISTENERS:
            host, _, port = ready[listener].rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        assert set(ready) == {*LISTENERS, "pid", "version"}
        assert (ready["pid"], ready["version"]) == (process.pid, __version__)
        assert '"brokerName":"broker-a"' in route(ready["namesrv"], "TBW102")
        assert get(ready["http"], "/readyz") == (200, "ready\n")
    finally:
        process.terminate()
        assert process.wait(20) == 0
    assert not ready_file.exists()


def test_an_idle_server_is_small(local: LocalServer) -> None:
    assert get(local.http, "/healthz") == (200, "ok\n")  # everything is imported
    assert local.rss_anon_bytes() < MOST_IDLE_BYTES


def test_what_is_imported_before_it_is_ready(tmp_path: Path) -> None:
    development_certificate(tmp_path / "tls")  # to make one needs more
    ports = [f"--{name.replace('_', '-')}-port=0" for name in LISTENERS]
    said = subprocess.run(
        [sys.executable, "-c", RECORD, "local", *ports, f"--data-dir={tmp_path}"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    modules = said.stdout.split()
    assert not HEAVY & set(modules)
    ours = {name for name in modules if name.startswith("saturnmq")}
    others = {name.partition(".")[0] for name in modules if name[0] != "_"} - sys.stdlib_module_names - NOT_OTHERS
    recorded = "".join(f"{name}\n" for name in [*sorted(others), *sorted(ours)])
    if os.environ.get("SATURNMQ_REWRITE"):
        MODULES.write_text(recorded)
    assert recorded == MODULES.read_text(), "read the difference, and `make rewrite` if it is meant"


def test_health_and_metrics(local: LocalServer) -> None:
    send_one(local.broker)
    assert get(local.http, "/healthz") == (200, "ok\n")
    assert get(local.http, "/readyz") == (200, "ready\n")
    status, page = get(local.http, "/metrics")
    assert status == 200
    assert "# TYPE rocketmq_messages_in_total counter" in page.splitlines()
    assert 'rocketmq_messages_in_total{topic="first"} 1' in page.splitlines()
    assert get(local.http, "/test-clock/advance/0")[0] == 405  # a POST


def test_the_clock_of_a_test(local: LocalServer, client_process: Callable[[str], ClientProcess]) -> None:
    """Ends the time for which a message is invisible."""
    client = Client(client_process("python"), local.grpc, tls=False)
    client.producer("clock").send([Message("clock", b"tick")])
    consumer = client.simple("clocks", {"clock": "*"})
    (first,) = consumer.receive(invisible_ms=600_000)
    local.advance_clock(600_000)
    (second,) = consumer.receive(invisible_ms=600_000)
    client.close_all()
    assert (first.message.body, first.attempt) == (b"tick", 1)
    assert (second.message.body, second.attempt) == (b"tick", 2)


def test_without_a_test_clock_time_is_nobodys(tmp_path: Path) -> None:
    with LocalServer(data_dir=tmp_path) as local:
        assert get(local.http, "/test-clock/advance/1000")[0] == 404


def test_a_server_that_nobody_used_starts_again(tmp_path: Path) -> None:
    for _ in range(3):
        with LocalServer(data_dir=tmp_path, start_timeout_s=10):
            pass


def test_a_start_after_the_clock_went_back(tmp_path: Path) -> None:
    """What was stored in the future is there, and what is stored now."""
    with LocalServer("--test-clock", data_dir=tmp_path) as local:
        local.advance_clock(24 * 3_600_000)
        send_one(local.broker)
    with LocalServer(data_dir=tmp_path) as local:
        send_one(local.broker)
        connection = RemotingConnection(local.broker)
        assert connection.ask(GET_MAX_OFFSET, topic="first", queueId="0")[1]["offset"] == "2"
        connection.close()


def test_apaches_broker_conf_works_as_it_is(tmp_path: Path) -> None:
    config = tmp_path / "broker.conf"
    config.write_text("brokerName = apache\ndeleteWhen = 04\nfileReservedTime = 48\nbrokerRole = ASYNC_MASTER\n")
    with LocalServer("-c", str(config), data_dir=tmp_path / "data") as local:
        assert '"brokerName":"apache"' in route(local.namesrv, "TBW102")
        noise = [line for line in local.log().splitlines() if " WARNING " in line]
    assert [line.partition("saturnmq: ")[2] for line in noise] == [
        "settings without effect in this version of SaturnMQ: brokerRole"
    ]


@pytest.mark.parametrize(("host", "loopback"), [("::1", "[::1]"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]")])
def test_other_hosts(tmp_path: Path, host: str, loopback: str) -> None:
    """Programs on this machine are told what they can dial, and routes name it."""
    with LocalServer("--host", host, data_dir=tmp_path) as local:
        assert {local.ready[listener].rpartition(":")[0] for listener in LISTENERS} == {loopback}
        assert f'"{local.broker}"' in route(local.namesrv, "TBW102")
        assert f'setEndpoints("{local.grpc}")' in local.log()
        send_one(local.broker)


def test_both_families_on_one_port(tmp_path: Path) -> None:
    """`::` is every address, of IPv4 too; routes name the one that was dialled."""
    with LocalServer("--host", "::", data_dir=tmp_path) as local:
        for host in ("127.0.0.1", "[::1]"):
            namesrv, broker, _, grpc, http = (
                f"{host}:{local.ready[listener].rpartition(':')[2]}" for listener in LISTENERS
            )
            assert f'"{broker}"' in route(namesrv, "TBW102")
            assert get(http, "/readyz") == (200, "ready\n")
            request = pb.QueryRouteRequest(topic=pb.Resource(name="first")).SerializeToString()
            with insecure_channel(grpc) as channel:
                answer = channel.unary_unary(QUERY_ROUTE)(request, metadata=[("x-mq-client-id", "c")], timeout=10)
            (address,) = pb.QueryRouteResponse.FromString(answer).message_queues[0].broker.endpoints.addresses
            assert grpc == (f"[{address.host}]" if ":" in host else address.host) + f":{address.port}"


def test_advertised_addresses(tmp_path: Path) -> None:
    """A listener's own port stands where none is given."""
    arguments = ("--advertise", "mq.example", "--advertise", "broker=10.1.1.1:30911")
    with LocalServer(*arguments, data_dir=tmp_path) as local:
        port = local.proxy_remoting.rpartition(":")[2]
        assert '"10.1.1.1:30911"' in route(local.namesrv, "TBW102")
        assert f'"mq.example:{port}"' in route(local.proxy_remoting, "TBW102")
        assert f'setEndpoints("mq.example:{local.grpc.rpartition(":")[2]}")' in local.log()


def test_a_server_that_does_not_start_tells_its_test_why() -> None:
    local = LocalServer("--set", "flushDiskType=NEVER")
    with pytest.raises(
        ServerError, match=r"did not become ready; it printed:\n.*flushDiskType = 'NEVER' cannot be used"
    ):
        local.__enter__()
    assert not local.running
    assert not local.home.exists()


def test_a_server_that_ends_badly_tells_its_test() -> None:
    with pytest.raises(ServerError, match="ended with status -9"), LocalServer() as local:
        os.kill(local.pid, signal.SIGKILL)


def test_the_command_that_pip_installs() -> None:
    (script,) = entry_points(group="console_scripts", name="saturnmq")
    assert script.load().__module__ == "saturnmq.__main__"
    said = subprocess.run([sys.executable, "-m", "saturnmq", "version"], check=True, capture_output=True, text=True)
    assert said.stdout == f"{__version__}\n"
