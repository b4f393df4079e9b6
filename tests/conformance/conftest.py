"""One server and one process per client and transport for the whole run; a topic and a group of its own for each test.

SATURNMQ_CONFORMANCE_SERVER=apache runs the same tests against Apache RocketMQ.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.admin import Admin
from harness.clients import Client, ClientProcess
from harness.forwarder import Forwarder
from harness.grpc_variants import GRPC_DEFAULTS, GRPC_VARIANTS, Variant
from harness.programs import built_or_skipped
from harness.remoting_fixtures import (  # noqa: F401 - fixtures
    go_remoting,
    java_remoting,
    remoting,
    remoting_language,
    remoting_process,
    second_remoting,
)
from harness.servers import Server, start_server


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "clients(*names, smoke): run with these client variants, and with which of them in make check"
    )
    config.addinivalue_line("markers", "smoke: the few conformance tests that make check runs")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that take `client` run with every gRPC client in its default transport, or as their mark says."""
    if "client" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("clients") or pytest.mark.clients()
        smoke = marker.kwargs.get("smoke", ("python",))
        variants = [
            pytest.param(name, marks=pytest.mark.smoke) if name in smoke else name
            for name in marker.args or GRPC_DEFAULTS
        ]
        metafunc.parametrize("client", variants, indirect=True)


@pytest.fixture(scope="session")
def run_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs and data of this run; pytest keeps those of the last three."""
    return tmp_path_factory.mktemp("conformance")


@pytest.fixture(scope="session")
def server(run_home: Path) -> Iterator[Server]:
    home = run_home / "server"
    home.mkdir()
    server = start_server(home)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def admin(server: Server) -> Iterator[Admin]:
    admin = Admin(server.namesrv, server.broker)
    yield admin
    admin.close()


@pytest.fixture(scope="session")
def forwarder(server: Server) -> Iterator[Forwarder]:
    """A port that leads to the gRPC port."""
    with Forwarder(server.grpc) as forwarder:
        yield forwarder


@pytest.fixture(scope="session")
def client_process(run_home: Path, server: Server, forwarder: Forwarder) -> Iterator[Callable[[str], ClientProcess]]:
    """The running program of a variant, built and started when it is first asked for, and again when it has ended.

    The forwarder outlives the programs: Node's ends when a connection is lost under a closed client's stream.
    """
    running: dict[str, ClientProcess] = {}

    def process_of(name: str) -> ClientProcess:
        if name not in running or not running[name].running:
            variant = GRPC_VARIANTS[name]
            built = built_or_skipped(variant.source)
            command = list(variant.source.toolchain.run)
            if name in running:
                running[name].kill()  # it has ended, its pipes have not
            running[name] = ClientProcess(command, built, run_home / name, trust(variant, server, run_home))
        return running[name]

    yield process_of
    for process in running.values():
        process.kill()


def trust(variant: Variant, server: Server, home: Path) -> dict[str, str]:
    if not variant.trusting:
        return {}
    if server.is_apache:
        pytest.skip("Apache's test certificate names no host")
    host, _, port = server.grpc.rpartition(":")
    certificate = home / "server.pem"
    certificate.write_text(ssl.get_server_certificate((host, int(port))))
    return {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(certificate)}


@pytest.fixture
def open_client(client_process: Callable[[str], ClientProcess], server: Server) -> Iterator[Callable[[str], Client]]:
    """Variant → Client, whose producers and consumers close after the test."""
    clients: list[Client] = []

    def open_one(variant: str) -> Client:
        process = client_process(variant)
        clients.append(Client(process, server.grpc, tls=GRPC_VARIANTS[variant].tls, settle_s=server.settle_s))
        return clients[-1]

    yield open_one
    for client in clients:
        client.close_all()


@pytest.fixture
def client(request: pytest.FixtureRequest, open_client: Callable[[str], Client]) -> Client:
    return open_client(request.param)
