"""100,000 queues in one broker: it starts, takes messages for all of them, stops and recovers, in bounded memory and
with a bounded number of descriptors."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from long_load import Load

from saturnmq.kernel.topic import TopicConfig
from saturnmq.testing.server import LocalServer

pytest_plugins = ["long_stage"]
pytestmark = pytest.mark.long

Start = Callable[..., LocalServer]

TOPICS, QUEUES = 10_000, 10
MIB = 1 << 20


def name(number: int) -> str:
    return f"topic-{number:05d}"


def _topic(topic: str) -> TopicConfig:
    return TopicConfig(topic_name=topic, read_queue_nums=QUEUES, write_queue_nums=QUEUES)


def one_each(body: bytes, step: int = 1) -> Iterator[tuple[str, int, bytes]]:
    for number in range(0, TOPICS, step):
        for queue_id in range(QUEUES):
            yield name(number), queue_id, b"%s %d %d" % (body, number, queue_id)


class Figures:
    """What a server takes, printed with `-s`."""

    def __init__(self, server: LocalServer) -> None:
        self._server = server
        self._since = time.monotonic()

    def took(self, what: str) -> float:
        seconds = time.monotonic() - self._since
        if self._server.running:
            print(f"{what}: {seconds:.1f} s, {self.memory_bytes / MIB:.0f} MiB, {self.descriptors} descriptors")
        else:
            print(f"{what}: {seconds:.1f} s")
        self._since = time.monotonic()
        return seconds

    @property
    def memory_bytes(self) -> int:
        return self._server.rss_anon_bytes()

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self._server.pid}/fd"))


def test_a_hundred_thousand_queues(servers: Start, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "config").mkdir(parents=True)
    table = {name(number): _topic(name(number)) for number in range(TOPICS)}
    (data / "config" / "topics.json").write_bytes(msgspec.json.encode({"topicConfigTable": table}))
    begin = time.monotonic()
    server = servers(data, "flushDiskType=SYNC_FLUSH", dev=False)
    figures = Figures(server)
    print(f"\nfirst start: {time.monotonic() - begin:.1f} s")
    figures.took("started")
    assert figures.memory_bytes < 150 * MIB
    load = Load(lambda: server.broker)

    sent = load.send(one_each(b"first"))
    figures.took("a message to each queue")
    assert all(message.acknowledged for message in sent)
    assert len(sent) == TOPICS * QUEUES
    assert figures.memory_bytes < 400 * MIB
    assert figures.descriptors < 2_000
    sent = load.send(one_each(b"second"))
    figures.took("another one to each queue")
    assert all(message.acknowledged for message in sent)
    assert figures.memory_bytes < 400 * MIB
    assert figures.descriptors < 2_000
    assert server.stop(timeout_s=120) == 0
    assert figures.took("stopped") < 60

    server.start()
    assert figures.took("started") < 5
    assert figures.memory_bytes < 150 * MIB
    chance = random.Random(4)
    for _ in range(500):
        number, queue_id = chance.randrange(TOPICS), chance.randrange(QUEUES)
        expected = [b"%s %d %d" % (body, number, queue_id) for body in (b"first", b"second")]
        assert load.pull(name(number), queue_id) == expected
    figures.took("500 queues read")
    assert all(message.acknowledged for message in load.send(one_each(b"third", step=5)))
    figures.took("a message to each fifth topic")

    server.kill()
    server.start()
    figures.took("started after a crash")
    assert figures.memory_bytes < 400 * MIB
    for _ in range(500):
        number, queue_id = chance.randrange(TOPICS), chance.randrange(QUEUES)
        bodies = [b"first", b"second"] if number % 5 else [b"first", b"second", b"third"]
        assert load.pull(name(number), queue_id) == [b"%s %d %d" % (body, number, queue_id) for body in bodies]
    assert server.stop(timeout_s=120) == 0


def test_topics_are_made_in_time_that_grows_with_their_number(servers: Start, tmp_path: Path) -> None:
    """Not with its square: each new topic is in a table that is written as a whole."""
    server = servers(tmp_path / "data", "flushDiskType=ASYNC_FLUSH")
    figures = Figures(server)
    load = Load(lambda: server.broker)
    times = []
    for part in range(4):
        first = part * 2_500
        sent = load.send((name(number), 0, b"x") for number in range(first, first + 2_500))
        assert all(message.acknowledged for message in sent)
        times.append(figures.took(f"{first + 2_500} topics"))
    assert times[-1] < 4 * times[0]
    server.kill()
    server.start()
    figures.took("started after a crash")
    for number in range(0, TOPICS, 101):
        assert load.pull(name(number), 0) == [b"x"], "known, or made again"
    assert server.stop(timeout_s=120) == 0
