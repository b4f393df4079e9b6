"""The server under test: SaturnMQ, or Apache RocketMQ as the oracle, by SATURNMQ_CONFORMANCE_SERVER=saturn|apache."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.apache import Apache
from saturnmq.testing.server import LocalServer

SERVER = os.environ.get("SATURNMQ_CONFORMANCE_SERVER", "saturn")
only_saturn = pytest.mark.skipif(SERVER != "saturn", reason="a test of SaturnMQ's own")


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
    return {"saturn": start_saturn, "apache": start_apache}[SERVER](home)


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
