"""Apache's own benchmark programs run against ours, unmodified, and report no failure.

Not with `-y true`: the producer then queues so much in itself that most of it times out, with Apache's broker too.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.admin import Admin
from harness.apache import Apache
from harness.mqadmin import Mqadmin

from saturnmq.testing.server import LocalServer

PACKAGE = "org.apache.rocketmq.example.benchmark"
JVM = ("java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
MESSAGES = 3000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    with LocalServer(dev=False, home=tmp_path / "server") as server:
        yield server


@pytest.fixture
def topic(server: LocalServer) -> Iterator[str]:
    admin = Admin(server.namesrv, server.broker)
    yield admin.create_topic(queues=4)
    admin.close()


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[LocalServer]:
    """It asks about transactions after two seconds."""
    settings = ("--set", "transactionTimeOut=2000", "--set", "transactionCheckInterval=1000")
    with LocalServer(*settings, dev=False, home=tmp_path / "impatient") as server:
        yield server


@contextmanager
def program(apache: Apache, name: str, *arguments: str) -> Iterator[Iterator[str]]:
    """The lines that it prints."""
    process = subprocess.Popen(
        [*JVM, f"-Duser.home={apache.home}", "-cp", f"{apache.home}/lib/*", f"{PACKAGE}.{name}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield iter(process.stdout)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def first(lines: Iterator[str], pattern: str) -> tuple[int, ...]:
    """The numbers of the first line of this form."""
    seen: list[str] = []
    for line in lines:
        seen.append(line)
        if found := re.search(pattern, line):
            return tuple(int(number) for number in found.groups())
    raise AssertionError("".join(seen))


def stored(mqadmin: Mqadmin, server: LocalServer, topic: str) -> int:
    rows = mqadmin.run(server.namesrv, "topicStatus", "-t", topic).table()
    return sum(int(row[3]) - int(row[2]) for row in rows if row[0] == "broker-a")


def test_producer_and_consumer(apache: Apache, mqadmin: Mqadmin, server: LocalServer, topic: str) -> None:
    where = ("-n", server.namesrv, "-t", topic)
    with program(apache, "Consumer", *where, "-g", "consumers", "-w", "4", "-ri", "500") as consumed:
        first(consumed, "Consumer Started")
        with program(apache, "Producer", *where, "-w", "4", "-q", str(MESSAGES), "-k", "true", "-l", "3") as sent:
            done = first(sent, r"\[Complete\] Send Total: (\d+) .*Send Failed: (\d+) .*Response Failed: (\d+)")
        assert done == (MESSAGES, 0, 0)
        left = "unknown"
        while left != "0":
            assert first(consumed, r"Consume TPS: \d+ .*Consume Fail: (\d+)") == (0,)
            left = mqadmin.run(server.namesrv, "consumerProgress", "-g", "consumers").fields["Consume Diff Total"]
    assert stored(mqadmin, server, topic) == MESSAGES


def test_batch_producer(apache: Apache, mqadmin: Mqadmin, server: LocalServer, topic: str) -> None:
    with program(
        apache, "BatchProducer", "-n", server.namesrv, "-t", topic, "-w", "2", "-b", "16", "-ri", "1000"
    ) as sent:
        rate, failed = first(sent, r"Send MPS: ([1-9]\d*) .*Send Message Failed: (\d+)")
    assert failed == 0
    total = stored(mqadmin, server, topic)
    assert total >= rate
    assert total % 16 == 0


def test_transaction_producer(apache: Apache, mqadmin: Mqadmin, impatient: LocalServer) -> None:
    """It says of a fifth of its messages only when it is asked what becomes of them, and of some of those later."""
    admin = Admin(impatient.namesrv, impatient.broker)
    topic = admin.create_topic("TRANSACTION", queues=4)
    admin.close()
    rates = ("-sr", "0.2", "-su", "0.2", "-cr", "0.3", "-cu", "0.2")
    where = ("-n", impatient.namesrv, "-t", topic, "-w", "2", "-i", "5", "-ri", "1000", *rates)
    checked = 0
    with program(apache, "TransactionProducer", *where) as sent:
        for _ in range(8):
            numbers = first(
                sent, r"Send Failed: (\d+) \| Check: (\d+) \| UnexpectedCheck: (\d+) \| DuplicatedCheck: (\d+)"
            )
            failed, checks, unexpected, duplicated = numbers
            assert (failed, unexpected, duplicated) == (0, 0, 0)
            checked += checks
    assert checked > 100
    assert stored(mqadmin, impatient, topic) > 0
