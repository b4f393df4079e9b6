"""`make drill MINUTES=…`: three Proxies over two Brokers under load, and one fault after another.

kill -9, SIGSTOP, restart, partition and slow link, of each Proxy and each Broker, in an order that the seed gives.
Producers (Java, Go) and consumers (Go's push consumer, Python's simple consumer, a group each) know the three Proxies.
Every message whose send was answered must come to both groups; what comes twice is counted. Each server stands in a
network namespace of its own, which needs root, else on loopback (`long_network`).
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "conformance"))

from harness.admin import Admin
from harness.clients import Client, ClientError, ClientProcess, Delivery, Message, Producer, SimpleConsumer
from harness.grpc_variants import GRPC_DEFAULTS
from harness.processes import wait_for_route
from harness.programs import built_or_skipped
from harness.servers import free_broker_port, free_port
from long_network import Loopback, Namespaces, network

from saturnmq.testing.server import ServerProcess

TOPIC, GROUPS = "drill", ("pushed", "taken")
BROKERS, PROXIES = ("broker-a", "broker-b"), ("proxy-1", "proxy-2", "proxy-3")
#: threads of each producing client, and how long each waits between its sends: the load shares the machine's cores
SENDERS, SEND_S = 3, 0.03
RECEIVERS = 4
FAULT_S, REST_S = 8.0, 4.0
#: for leases to end, and for clients to find back after the last fault
SETTLE_S = 200.0


class Server:
    """A process at an address that it keeps, and the link that leads to it. Owner of both."""

    def __init__(
        self, opened: ExitStack, home: Path, net: Namespaces | Loopback, name: str, port: int, *arguments: str
    ) -> None:
        self.name = name
        self.link = net.place()
        #: where the others reach it
        self.address = self.link.address(port)
        command, *more = (argument.format(name=name, address=self.address) for argument in arguments)
        files = home / name
        given = (f"--host={self.link.host}", f"--port={port}", "--http-port=0", f"--data-dir={files / 'data'}", *more)
        within = (*self.link.command, sys.executable, "-m", "saturnmq")
        self.process = ServerProcess(command, *given, home=files, command=within)
        opened.callback(lambda: self.process.running and self.process.kill())
        self.process.start()

    def kill_9(self) -> None:
        self.process.kill()
        time.sleep(FAULT_S)
        self.process.start()

    def sigstop(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)
        time.sleep(FAULT_S)
        os.kill(self.process.pid, signal.SIGCONT)

    def restart(self) -> None:
        status = self.process.stop()
        assert status == 0, f"{self.name} ended with status {status}:\n{self.process.log()[-4000:]}"
        self.process.start()

    def partition(self) -> None:
        self.link.partition()
        time.sleep(FAULT_S)
        self.link.heal()

    def slow_link(self) -> None:
        self.link.slow_down()
        time.sleep(FAULT_S)
        self.link.speed_up()


FAULTS: tuple[Callable[[Server], None], ...] = (
    Server.kill_9,
    Server.sigstop,
    Server.restart,
    Server.partition,
    Server.slow_link,
)


class Ledger:
    """What was answered, and what came. Written by the threads of the load."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = 0
        self.acknowledged: set[bytes] = set()
        self.refused: Counter[str] = Counter()
        self.came: dict[str, Counter[bytes]] = {group: Counter() for group in GROUPS}
        self.failed_receives: Counter[str] = Counter()
        self.sending, self.receiving = True, True

    def send(self, producer: Producer) -> None:
        while self.sending:
            with self._lock:
                self._number += 1
                body = b"%d" % self._number
            try:
                producer.send([Message(TOPIC, body)])
            except ClientError as error:
                self.refused[error.kind] += 1
            else:
                self.acknowledged.add(body)
            time.sleep(SEND_S)

    def receive(self, consumer: SimpleConsumer) -> None:
        while self.receiving:
            try:
                deliveries = consumer.receive(max_messages=32)
                self.add("taken", deliveries)
                consumer.ack(deliveries)
            except ClientError as error:
                self.failed_receives[error.kind] += 1

    def listen(self, process: ClientProcess, name: str) -> None:
        deliveries = process.deliveries(name)
        while self.receiving:
            while not deliveries.empty():
                self.add("pushed", [deliveries.get()])
            time.sleep(SEND_S)

    def add(self, group: str, deliveries: list[Delivery]) -> None:
        self.came[group].update(delivery.message.body for delivery in deliveries)

    def missing(self, group: str) -> set[bytes]:
        return self.acknowledged - self.came[group].keys()

    def __str__(self) -> str:
        groups = ", ".join(
            f"{group}: {len(came):,} came, {came.total() - len(came)} repeats, {len(self.missing(group))} missing"
            for group, came in self.came.items()
        )
        return f"{len(self.acknowledged):,} acknowledged, {self.refused.total()} refused; {groups}"


class Stage:
    """All the processes. Owner: the stack that they end with."""

    def __init__(self, home: Path, opened: ExitStack) -> None:
        self._home, self._opened, self._threads = home, opened, list[threading.Thread]()
        net = network(opened, partial(print, flush=True))
        arguments = (f"--host={net.host}", "--port=0", "--http-port=0", f"--data-dir={home / 'names'}")
        names = ServerProcess("namesrv", *arguments, home=home / "n")
        names.start()
        opened.callback(names.kill)
        namesrv = names.ready["namesrv"]
        named = ("--set=brokerName={name}", "--advertise=broker={address}")
        self.brokers = [
            Server(opened, home, net, name, free_broker_port(), "broker", "-n", namesrv, *named) for name in BROKERS
        ]
        wait_for_route(namesrv, {broker.name: broker.address for broker in self.brokers})
        for broker in self.brokers:
            admin = Admin(namesrv, broker.process.ready["broker"])
            admin.create_topic(name=TOPIC)
            for group in GROUPS:
                admin.create_group(name=group)
            admin.close()
        self.proxies = [
            Server(opened, home, net, name, free_port(), "proxy", "-n", namesrv, "--proxy-remoting-port=0")
            for name in PROXIES
        ]

    def client(self, language: str) -> Client:
        variant = GRPC_DEFAULTS[language]
        folder = built_or_skipped(variant.source)
        process = ClientProcess(list(variant.source.toolchain.run), folder, self._home / f"client-{language}", {})
        self._opened.callback(process.kill)
        endpoints = ";".join(proxy.address for proxy in self.proxies)
        return Client(process, endpoints, tls=variant.tls)

    def load(self, ledger: Ledger) -> None:
        java, go, python = (self.client(language) for language in ("java", "go", "python"))
        push = go.push(GROUPS[0], {TOPIC: "*"})
        self._run(ledger.listen, go.process, push.name)
        simple = python.simple(GROUPS[1], {TOPIC: "*"}, await_ms=3_000)
        for _ in range(RECEIVERS):
            self._run(ledger.receive, simple)
        for client in (java, go):
            producer = client.producer(TOPIC)
            for _ in range(SENDERS):
                self._run(ledger.send, producer)

    def _run(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)


def drill(stage: Stage, ledger: Ledger, chance: random.Random, end_s: float) -> None:
    begin_s, done = time.monotonic(), Counter[str]()
    while time.monotonic() < end_s:
        rounds = [(fault, server) for fault in FAULTS for server in (*stage.proxies, *stage.brokers)]
        chance.shuffle(rounds)
        for fault, server in rounds:
            fault(server)
            done[fault.__name__] += 1
            time.sleep(REST_S)
            print(f"{time.monotonic() - begin_s:6.0f} s: {fault.__name__} of {server.name}: {ledger}", flush=True)
            if time.monotonic() > end_s:
                break
    print(f"{done.total()} faults: {', '.join(f'{number} {name}' for name, number in done.items())}", flush=True)


def settle(ledger: Ledger) -> None:
    """All that was acknowledged has come, or the time is over."""
    ledger.sending = False
    deadline = time.monotonic() + SETTLE_S
    while any(ledger.missing(group) for group in GROUPS) and time.monotonic() < deadline:
        time.sleep(0.5)
    ledger.receiving = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--home", type=Path, help="where logs and data are kept; else in a directory that goes away")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # or the network would stay
    ledger = Ledger()
    with ExitStack() as opened:
        home = options.home or Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="saturnmq-drill-")))
        stage = Stage(home, opened)
        stage.load(ledger)
        drill(stage, ledger, random.Random(options.seed), time.monotonic() + options.minutes * 60)
        settle(ledger)
        print(ledger, dict(ledger.refused), dict(ledger.failed_receives), flush=True)
        broken = [server.name for server in (*stage.proxies, *stage.brokers) if "Traceback" in server.process.log()]
    missing = {group: sorted(ledger.missing(group))[:10] for group in GROUPS if ledger.missing(group)}
    if missing or broken:
        raise SystemExit(f"acknowledged and never consumed: {missing}; tracebacks in the logs of {broken or 'nobody'}")


if __name__ == "__main__":
    main()
