"""The server under test, by SATURNMQ_CONFORMANCE_SERVER: SaturnMQ in Local mode (saturn), as three processes (cluster),
as a Proxy over Apache's broker (over-apache), or Apache RocketMQ as the oracle (apache)."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from harness.apache import START_TIMEOUT_S, Apache
from harness.processes import wait_for_route
from saturnmq.testing.server import LocalServer, ServerProcess

SERVER = os.environ.get("SATURNMQ_CONFORMANCE_SERVER", "saturn")
only_saturn = pytest.mark.skipif(SERVER != "saturn", reason="a test of SaturnMQ's own")

OURS, APACHES = "saturn", "apache"


@dataclass(frozen=True)
class Server:
    """Where a running server listens; `host:port` each."""

    name: str
    namesrv: str
    broker: str
    proxy_remoting: str
    grpc: str
    log_path: Path
    stop: Callable[[], None]
    #: /healthz, /readyz, /metrics; Apache has none
    http: str = ""
    pid: int = 0

    @property
    def is_apache(self) -> bool:
        return self.name == "apache"

    @property
    def settle_s(self) -> float:
        """See harness.clients.Client; Python's simple consumer starts without waiting for its settings."""
        return 0.2 if self.is_apache else 0


def start_server(home: Path) -> Server:
    """The server that the environment names, on free ports, with its files under `home`."""
    starts: dict[str, Callable[[Path], Server]] = {
        "saturn": start_saturn,
        "cluster": start_cluster,
        "over-apache": partial(start_cluster, broker=APACHES),
        "apache": start_apache,
    }
    return starts[SERVER](home)


def start_saturn(home: Path) -> Server:
    local = LocalServer(dev=False, home=home)
    local.start()

    def stop() -> None:
        """It must drain and end in time with status 0."""
        assert local.stop() == 0, f"see {local.log_file}"

    return Server(
        "saturn",
        namesrv=local.namesrv,
        broker=local.broker,
        proxy_remoting=local.proxy_remoting,
        grpc=local.grpc,
        http=local.http,
        log_path=local.log_file,
        stop=stop,
        pid=local.pid,
    )


def start_apache(home: Path) -> Server:
    """NameServer and Local-mode Proxy of Apache RocketMQ."""
    apache = Apache(home)
    namesrv, grpc, proxy_remoting = (free_port() for _ in range(3))
    broker = free_broker_port()
    addresses = {
        "NAMESRV": f"127.0.0.1:{namesrv}",
        "BROKER_PORT": str(broker),
        "GRPC_PORT": str(grpc),
        "PROXY_PORT": str(proxy_remoting),
        "BROKER_CONF": "enablePropertyFilter=true;recallMessageEnable=true",
    }
    apache.start("namesrv", namesrv, **addresses)
    apache.start("local", broker, grpc, proxy_remoting, **addresses)
    return Server(
        "apache",
        namesrv=f"127.0.0.1:{namesrv}",
        broker=f"127.0.0.1:{broker}",
        proxy_remoting=f"127.0.0.1:{proxy_remoting}",
        grpc=f"127.0.0.1:{grpc}",
        log_path=apache.log_path,
        stop=apache.kill,
    )


def start_cluster(
    home: Path,
    namesrv: str = OURS,
    broker: str = OURS,
    proxy: str = OURS,
    settings: Mapping[str, str] | None = None,
    proxy_flags: Sequence[str] = (),
) -> Server:
    """NameServer, Broker and Proxy as processes of their own, each ours or Apache's. `settings` are the Broker's,
    `proxy_flags` of a Proxy of ours."""
    changed = [f"{key}={value}" for key, value in (settings or {}).items()]
    opened = ExitStack()
    apache = Apache(home) if APACHES in (namesrv, broker, proxy) else None
    logs = []

    def ours(name: str, *arguments: str) -> dict[str, str]:
        files = home / name
        files.mkdir()
        process = ServerProcess(name, *arguments, "--http-port", "0", "--data-dir", str(files / "data"), home=files)
        process.start()
        opened.callback(process.stop)
        logs.append(process.log_file)
        return process.ready

    ports = {"NAMESRV": f"127.0.0.1:{free_port()}", "BROKER_PORT": str(free_broker_port())}
    ports |= {"GRPC_PORT": str(free_port()), "PROXY_PORT": str(free_port())}
    try:
        if apache is not None:
            opened.callback(apache.kill)
        names_port = int(ports["NAMESRV"].rpartition(":")[2])
        if namesrv == OURS or apache is None:
            ours("namesrv", "--port", str(names_port))
        else:
            apache.start("namesrv", names_port, **ports)
        if broker == OURS or apache is None:
            flags = [flag for setting in changed for flag in ("--set", setting)]
            ours("broker", "-n", ports["NAMESRV"], "--port", ports["BROKER_PORT"], *flags)
        else:
            lines = ["enablePropertyFilter=true", "recallMessageEnable=true", *changed]
            apache.start("broker", int(ports["BROKER_PORT"]), BROKER_CONF=";".join(lines), **ports)
        wait_for_route(ports["NAMESRV"], {"broker-a": f"127.0.0.1:{ports['BROKER_PORT']}"}, START_TIMEOUT_S)
        http = ""
        if proxy == OURS or apache is None:
            listen = ("--port", ports["GRPC_PORT"], "--proxy-remoting-port", ports["PROXY_PORT"])
            http = ours("proxy", "-n", ports["NAMESRV"], *listen, *proxy_flags)["http"]
        else:
            apache.start("proxy", int(ports["GRPC_PORT"]), int(ports["PROXY_PORT"]), **ports)
    except BaseException:
        opened.close()
        raise
    return Server(
        proxy,
        namesrv=ports["NAMESRV"],
        broker=f"127.0.0.1:{ports['BROKER_PORT']}",
        proxy_remoting=f"127.0.0.1:{ports['PROXY_PORT']}",
        grpc=f"127.0.0.1:{ports['GRPC_PORT']}",
        log_path=logs[-1] if logs else home / "apache.log",
        stop=opened.close,
        http=http,
    )


def free_port() -> int:
    return _free_ports(0)[0]


def free_broker_port() -> int:
    """Free with its VIP port before it and its replication port behind it."""
    return _free_ports(-2, 0, 1)[1]


def _free_ports(*offsets: int) -> list[int]:
    """Ports at these distances from one another that are all free now."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = probe.getsockname()[1]
        ports = [first + offset - offsets[0] for offset in offsets]
        if all(_is_free(port) for port in ports):
            return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
