"""The server under test: SaturnMQ, or Apache RocketMQ as the oracle, by SATURNMQ_CONFORMANCE_SERVER=saturn|apache."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness.programs import ROOT

START_TIMEOUT_S = 20
APACHE_START_TIMEOUT_S = 90
STOP_TIMEOUT_S = 15
POLL_S = 0.02
APACHE_SCRIPT = ROOT.parent / "shared" / "bench" / "apache" / "apache.sh"


class StartFailed(Exception):
    """The server did not come up."""


@dataclass(frozen=True)
class Server:
    """Where a running server listens; `host:port` each."""

    name: str
    namesrv: str
    broker: str
    proxy_remoting: str
    grpc: str
    processes: tuple[subprocess.Popen[bytes], ...]
    log_path: Path
    #: /healthz, /readyz, /metrics; Apache has none
    http: str = ""

    @property
    def is_apache(self) -> bool:
        return self.name == "apache"

    @property
    def settle_s(self) -> float:
        """See harness.clients.Client; Python's simple consumer starts without waiting for its settings."""
        return 0.2 if self.is_apache else 0

    def stop(self) -> None:
        """SaturnMQ must drain and end in time with status 0; Apache's files are thrown away, so it is killed."""
        for process in self.processes:
            if self.is_apache:
                process.kill()
                process.wait()
            else:
                process.terminate()
                assert process.wait(STOP_TIMEOUT_S) == 0, f"see {self.log_path}"


def start_server(home: Path) -> Server:
    """The server that the environment names, on free ports, with its files under `home`."""
    name = os.environ.get("SATURNMQ_CONFORMANCE_SERVER", "saturn")
    return {"saturn": start_saturn, "apache": start_apache}[name](home)


def start_saturn(home: Path) -> Server:
    ready_file = home / "ready.json"
    log_path = home / "saturnmq.log"
    listeners = ("namesrv", "broker", "proxy-remoting", "grpc", "http")
    command = [str(ROOT / ".venv" / "bin" / "saturnmq"), "local", "--data-dir", str(home / "data")]
    command += ["--ready-file", str(ready_file)]
    for listener in listeners:
        command += [f"--{listener}-port", "0"]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    _wait_until(ready_file.exists, process, log_path, START_TIMEOUT_S)
    ready = json.loads(ready_file.read_text())
    return Server(
        "saturn",
        namesrv=ready["namesrv"],
        broker=ready["broker"],
        proxy_remoting=ready["proxy_remoting"],
        grpc=ready["grpc"],
        http=ready["http"],
        processes=(process,),
        log_path=log_path,
    )


def start_apache(home: Path) -> Server:
    """NameServer and Local-mode Proxy of Apache RocketMQ. Its jars are fetched once, to build/apache."""
    installed = Path(os.environ.get("APACHE_HOME", ROOT / "build" / "apache"))
    if not (installed / "lib").exists():
        subprocess.run(
            ["bash", str(APACHE_SCRIPT), "install"], env={**os.environ, "APACHE_HOME": str(installed)}, check=True
        )
    (home / "lib").symlink_to(installed / "lib")
    namesrv, grpc, proxy_remoting = (_free_ports(0)[0] for _ in range(3))
    broker = _free_ports(-2, 0, 1)[1]  # the VIP port, its own and the replication port
    log_path = home / "apache.log"
    environment = {
        **os.environ,
        "APACHE_HOME": str(home),
        "NAMESRV": f"127.0.0.1:{namesrv}",
        "BROKER_PORT": str(broker),
        "GRPC_PORT": str(grpc),
        "PROXY_PORT": str(proxy_remoting),
        "HEAP": "512m",
    }
    processes = []
    for part, ports in (("namesrv", (namesrv,)), ("local", (broker, grpc, proxy_remoting))):
        with log_path.open("ab") as log:
            command = ["bash", str(APACHE_SCRIPT), "start", part]
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        processes.append(process)
        for port in ports:
            _wait_until(partial(_accepts, port), process, log_path, APACHE_START_TIMEOUT_S)
    return Server(
        "apache",
        namesrv=f"127.0.0.1:{namesrv}",
        broker=f"127.0.0.1:{broker}",
        proxy_remoting=f"127.0.0.1:{proxy_remoting}",
        grpc=f"127.0.0.1:{grpc}",
        processes=tuple(reversed(processes)),
        log_path=log_path,
    )


def _wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log_path: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise StartFailed(f"{log_path}:\n{log_path.read_text(errors='replace')[-4000:]}")
        time.sleep(POLL_S)


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


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
