"""`make bench-proxies`: Proxies in Cluster mode over one broker of ours, in turn on this machine.

CPU of the Proxy processes per message with 1, 2 and 4 workers, which must stay within LIMIT of one; Apache's over
the same broker beside it; and the memory of an idle client connection. Exits non-zero when a limit is broken.

    bench/proxies.py [--rounds 3] [--messages 40000] [--idle 2000] [--skip-apache]
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "conformance"))

from harness.apache import Apache
from run import WARM_UP, Target, build, free_ports, prepare, run

from saturnmq.testing.server import ServerProcess
from saturnmq.wire.http2.frames import PREFACE

#: of the CPU per message of one process
LIMIT = 1.2
#: for each worker: what is in flight decides how much of it one turn of a loop does at once
LOADS = {
    "send": "-mode grpc-send -c {in_flight} -conns {connections} -n {messages}",
    "receive": "-mode grpc-recv -c {connections} -conns {connections} -n {messages}",
}
ONE, APACHE = "SaturnMQ", "Apache 5.5.0"
#: an empty SETTINGS frame
SETTINGS = bytes(3) + b"\x04" + bytes(5)
SETTLE_S = 3


class Stage:
    """NameServer and broker of ours."""

    def __init__(self, opened: ExitStack, home: Path) -> None:
        self.home = home
        names = opened.enter_context(ServerProcess("namesrv", "--port=0", "--http-port=0", home=home / "namesrv"))
        self.namesrv = str(names.ready["namesrv"])
        settings = ("--set=flushDiskType=ASYNC_FLUSH", f"--data-dir={home / 'data'}")
        ports = ("--port=0", "--http-port=0")
        broker = opened.enter_context(ServerProcess("broker", "-n", self.namesrv, *ports, *settings, home=home / "b"))
        self.broker = str(broker.ready["broker"])

    @contextmanager
    def ours(self, workers: int) -> Iterator[tuple[Target, list[int]]]:
        arguments = ("-n", self.namesrv, "--port=0", "--proxy-remoting-port=0", "--http-port=0", f"--workers={workers}")
        with ServerProcess(
            "proxy", *arguments, f"--data-dir={self.home / 'p'}", home=self.home / f"p{workers}"
        ) as proxy:
            children = Path(f"/proc/{proxy.pid}/task/{proxy.pid}/children").read_text().split()
            yield self._target(proxy.ready["grpc"], proxy.pid), [proxy.pid, *map(int, children)]

    @contextmanager
    def apaches(self) -> Iterator[tuple[Target, list[int]]]:
        home = self.home / f"apache-{time.monotonic_ns()}"
        home.mkdir()
        grpc, remoting = free_ports(2)
        apache = Apache(home)
        apache._environment["JDK_JAVA_OPTIONS"] = ""  # both compilers: at its best
        try:
            process = apache.start("proxy", grpc, NAMESRV=self.namesrv, GRPC_PORT=str(grpc), PROXY_PORT=str(remoting))
            pid = process._process.pid
            yield self._target(f"127.0.0.1:{grpc}", pid), [pid]
        finally:
            apache.kill()

    def _target(self, grpc: str, pid: int) -> Target:
        return Target({"namesrv": self.namesrv, "broker": self.broker, "grpc": grpc}, pid, 0)


def measure(target: Target, pids: list[int], messages: int, workers: int = 1) -> dict[str, float]:
    """CPU microseconds of the Proxy per message, under as much load for each worker."""
    figures = {}
    for name, load in LOADS.items():
        before = sum(map(cpu_s, pids))
        run(target, "grpc", load.format(messages=messages, in_flight=64 * workers, connections=8 * workers))
        figures[name] = (sum(map(cpu_s, pids)) - before) * 1e6 / messages
    return figures


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle_bytes(target: Target, pids: list[int], count: int) -> float:
    """What one client connection adds that says hello and no more."""
    host, _, port = target.addresses["grpc"].rpartition(":")
    before = sum(map(rss_bytes, pids))
    with ExitStack() as opened:
        for _ in range(count):
            one = opened.enter_context(socket.create_connection((host, int(port))))
            one.sendall(PREFACE + SETTINGS)
            one.recv(9)
        time.sleep(SETTLE_S)
        return (sum(map(rss_bytes, pids)) - before) / count


def rss_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=int, default=40_000)
    parser.add_argument("--idle", type=int, default=2_000)
    parser.add_argument("--skip-apache", action="store_true")
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    build()
    figures: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with ExitStack() as opened:
        stage = Stage(opened, Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="saturnmq-bench-"))))
        for _ in range(arguments.rounds):
            for workers in (1, 2, 4):
                with stage.ours(workers) as (target, pids):
                    if workers == 1:
                        figures[ONE]["idle"].append(idle_bytes(target, pids, arguments.idle))
                    prepare(target, warm_up=2000)
                    add(figures[name_of(workers)], measure(target, pids, arguments.messages, workers))
            if not arguments.skip_apache:
                with stage.apaches() as (target, pids):
                    figures[APACHE]["idle"].append(idle_bytes(target, pids, arguments.idle))
                    prepare(target, warm_up=WARM_UP)
                    add(figures[APACHE], measure(target, pids, arguments.messages))
    report(figures)


def name_of(workers: int) -> str:
    return "SaturnMQ" if workers == 1 else f"SaturnMQ, {workers} workers"


def add(to: defaultdict[str, list[float]], figures: dict[str, float]) -> None:
    for name, figure in figures.items():
        to[name].append(figure)


def report(figures: defaultdict[str, defaultdict[str, list[float]]]) -> None:
    one = {name: statistics.median(runs) for name, runs in figures[ONE].items()}
    print("| Proxy | send, CPU µs | of one process | receive and ack, CPU µs | of one process | idle connection, KiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    dear = []
    for proxy, runs in figures.items():
        cells = []
        for name in LOADS:
            figure = statistics.median(runs[name])
            cells.append(f"{figure:.1f} | {figure / one[name]:.2f}")
            if proxy != APACHE and figure > LIMIT * one[name]:
                dear.append(f"{name} with {proxy}: {figure / one[name]:.2f} of one worker's CPU, the limit is {LIMIT}")
        idle = f"{statistics.median(runs['idle']) / 1024:.1f}" if runs["idle"] else "–"
        print(f"| {proxy} | {' | '.join(cells)} | {idle} |")
    if dear:
        raise SystemExit("\n".join(dear))


if __name__ == "__main__":
    main()
