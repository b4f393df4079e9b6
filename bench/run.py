"""`make bench`: SaturnMQ beside Apache RocketMQ 5.5.0, in turn, with the load generator of ../shared/bench.

The figure that carries between machines is server CPU per message; rates are limited by the generator, which shares
the cores. Each server is measured in every round (A B A B), and the median of the rounds counts. Exits non-zero when
a path costs more than LIMIT times Apache's CPU.

    bench/run.py [--rounds 2] [--only grpc-send,…] [--skip-apache]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "bench"
BUILD = ROOT / "build" / "bench"
sys.path.insert(0, str(ROOT / "tests" / "conformance"))

from harness.admin import Admin  # noqa: E402 - the path comes first

from saturnmq.testing.server import LocalServer  # noqa: E402

#: no path may cost more of Apache's CPU per message (issue 3)
LIMIT = 1.5
#: a start takes at most so much of Apache's
START_LIMIT = 0.1
APACHE = "Apache 5.5.0, ASYNC_FLUSH"
WARM_UP = 200_000

LOADS = {
    "gRPC send": ("grpc", "-mode grpc-send -n 100000 -c 64 -conns 4"),
    "gRPC receive": ("grpc", "-mode grpc-recv -n 100000 -c 16 -conns 4"),
    "Remoting send, JSON": ("broker", "-mode remoting-send -n 200000 -c 64 -conns 4"),
    "Remoting send, binary": ("broker", "-mode remoting-send -n 200000 -c 64 -conns 4 -binary"),
    "Remoting pull": ("broker", "-mode remoting-pull -n 300000"),
}


@dataclass
class Target:
    """A running server."""

    addresses: dict[str, str]
    pid: int
    start_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default="")
    parser.add_argument("--skip-apache", action="store_true")
    arguments = parser.parse_args()
    loads = {name: load for name, load in LOADS.items() if arguments.only in load[1]}
    build()
    servers: dict[str, Callable[[], Any]] = {
        "SaturnMQ, SYNC_FLUSH": lambda: saturn("SYNC_FLUSH"),
        "SaturnMQ, ASYNC_FLUSH": lambda: saturn("ASYNC_FLUSH"),
    }
    if not arguments.skip_apache:
        servers[APACHE] = apache
    figures: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    starts: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(arguments.rounds):
        for server, start in servers.items():
            with start() as target:
                starts[server].append(target.start_s)
                prepare(target, warm_up=WARM_UP if server.startswith("Apache") else 2000)
                for name, (listener, load) in loads.items():
                    figure = run(target, listener, load)
                    figures[name, server].append(figure)
                    print(name, "|", server, "|", json.dumps(figure), flush=True)
    report(figures, starts)


def build() -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    subprocess.run(["go", "build", "-o", str(BUILD / "loadgen"), "."], cwd=SHARED / "loadgen", check=True)


def run(target: Target, listener: str, load: str) -> dict[str, Any]:
    command = [str(BUILD / "loadgen"), *load.split(), "-addr", target.addresses[listener], "-pids", str(target.pid)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    figure: dict[str, Any] = json.loads(answer.stdout)
    if figure["errors"]:
        raise SystemExit(f"{' '.join(command)}: {figure['errors']} errors, the first: {figure.get('first_error')}")
    return figure


def prepare(target: Target, warm_up: int) -> None:
    admin = Admin(target.addresses["namesrv"], target.addresses["broker"])
    admin.create_topic(name="bench", queues=8)
    admin.create_group(name="bench-group")
    admin.close()
    for listener, load in (
        ("grpc", f"-mode grpc-send -n {warm_up}"),
        ("broker", f"-mode remoting-send -n {warm_up}"),
        ("grpc", f"-mode grpc-recv -n {warm_up}"),
    ):
        run(target, listener, load)


@contextmanager
def saturn(flush: str) -> Iterator[Target]:
    server = LocalServer("--set", f"flushDiskType={flush}", dev=False)
    begin = time.monotonic()
    with server:
        seconds = time.monotonic() - begin
        yield Target({"namesrv": server.namesrv, "broker": server.broker, "grpc": server.grpc}, server.pid, seconds)


@contextmanager
def apache() -> Iterator[Target]:
    home = Path(os.environ.get("APACHE_HOME", ROOT / "build" / "apache"))
    script = str(SHARED / "apache" / "apache.sh")
    ports = free_ports(4)
    environment = {
        **os.environ,
        "APACHE_HOME": str(home),
        "NAMESRV": f"127.0.0.1:{ports[0]}",
        "BROKER_PORT": str(ports[1]),
        "GRPC_PORT": str(ports[2]),
        "PROXY_PORT": str(ports[3]),
        "BROKER_CONF": "transactionOpBatchInterval=3600000;transactionOpMsgMaxSize=1",
    }
    if not (home / "lib").exists():
        subprocess.run([script, "install"], env=environment, check=True)
    processes = []
    try:
        with (BUILD / "apache.log").open("w") as log:
            for role, port in (("namesrv", ports[0]), ("local", ports[2])):
                begin = time.monotonic()
                processes.append(subprocess.Popen([script, "start", role], env=environment, stdout=log, stderr=log))
                wait_for(port)
        seconds = time.monotonic() - begin
        addresses = [f"127.0.0.1:{port}" for port in ports]
        yield Target({"namesrv": addresses[0], "broker": addresses[1], "grpc": addresses[2]}, processes[1].pid, seconds)
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
        shutil.rmtree(home / f"store-{ports[1]}", ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Free when asked. The broker also takes two below and one above its own."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def wait_for(port: int) -> None:
    for _ in range(1200):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit(f"nothing listens on {port}, see {BUILD / 'apache.log'}")


def report(figures: dict[tuple[str, str], list[dict[str, Any]]], starts: dict[str, list[float]]) -> None:
    def median(runs: list[dict[str, Any]], field: str) -> float:
        return float(statistics.median(figure[field] for figure in runs))

    print("\n| path | server | CPU µs/message | of Apache's | messages/s | p50 ms | p99 ms | RSS MB (anonymous) |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    slow = []
    for (name, server), runs in figures.items():
        apache_runs = figures.get((name, APACHE))
        ratio = (
            median(runs, "server_cpu_us_per_msg") / median(apache_runs, "server_cpu_us_per_msg") if apache_runs else 0
        )
        if ratio > LIMIT:
            slow.append(f"{name} on {server}: {ratio:.2f} of Apache's CPU, the limit is {LIMIT}")
        print(
            f"| {name} | {server} | {median(runs, 'server_cpu_us_per_msg'):.1f} | {ratio:.2f} "
            f"| {median(runs, 'rate'):.0f} | {median(runs, 'p50_ms'):.2f} | {median(runs, 'p99_ms'):.2f} "
            f"| {median(runs, 'server_rss_mb'):.0f} ({median(runs, 'server_rss_anon_mb'):.0f}) |"
        )
    for server, seconds in starts.items():
        print(f"start: {server}: {statistics.median(seconds):.2f} s")
        ratio = statistics.median(seconds) / statistics.median(starts.get(APACHE, seconds))
        if APACHE in starts and server != APACHE and ratio > START_LIMIT:
            slow.append(f"the start of {server} takes {ratio:.2f} of Apache's, the limit is {START_LIMIT}")
    if slow:
        raise SystemExit("\n".join(slow))


if __name__ == "__main__":
    main()
