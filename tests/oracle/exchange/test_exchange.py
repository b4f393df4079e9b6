"""Apache's broker and ours open each other's data directories: every message, offset, topic and group is there.

What stands in a record and where is compared as bytes, read through both servers by pulls; what operators and
applications see of a directory of ours in Apache's broker is asked of Apache's own client and mqadmin.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness.admin import AdminError
from harness.apache import Apache
from harness.mqadmin import Mqadmin, Said
from harness.pipeline import Numbered, PipelinedSender, Stored, read_back, records
from harness.remoting import RemotingClient, RemotingMessage, RemotingProcess
from harness.shared_broker import BROKER, OTHER, PATIENT, SMALL_FILES, SOON_WRITTEN, Server, SharedBroker

UPDATE_AND_CREATE_TOPIC = 17
UPDATE_AND_CREATE_SUBSCRIPTIONGROUP = 200
QUERY_MESSAGE = 12
UPDATE_CONSUMER_OFFSET = 15
CONSUMER_SEND_MSG_BACK = 36
POP_MESSAGE = 200_050

#: messages in each half of a story's load: some log files of 256 KiB
LOAD = 1_000
QUEUES = 4
FOR_EVER = 1 << 60
#: of what a server does in the background
SOON_S = 20
#: delay level 3, in seconds
DELAY_S = 10

DELAYED = "delayed"
TOPICS: dict[str, dict[str, object]] = {
    "load": {"readQueueNums": QUEUES, "writeQueueNums": QUEUES},
    "plain": {"readQueueNums": QUEUES, "writeQueueNums": QUEUES},
    "fifo": {"readQueueNums": 2, "writeQueueNums": 2, "order": "true", "attributes": "+message.type=FIFO"},
    DELAYED: {"readQueueNums": 6, "writeQueueNums": 3, "attributes": "+message.type=DELAY"},
    "unreadable": {"perm": 2},
    "unit": {"topicSysFlag": 1},
}
POPPING = "popping".ljust(118, "g")
GROUPS: dict[str, dict[str, object]] = {
    "half": {},
    "retried": {},
    POPPING: {},
    "buried": {"retryMaxTimes": 3},
    "fixed": {
        "consumeEnable": False,
        "consumeMessageOrderly": True,
        "retryQueueNums": 2,
        "groupRetryPolicy": {"type": "CUSTOMIZED", "customizedRetryPolicy": {"next": [1000, 5000]}},
        "consumeTimeoutMinute": 3,
    },
    "growing": {
        "consumeFromMinEnable": False,
        "consumeBroadcastEnable": False,
        "groupRetryPolicy": {
            "type": "EXPONENTIAL",
            "exponentialRetryPolicy": {"initial": 1000, "max": 60000, "multiplier": 3},
        },
    },
}
#: groups and the topics of which they consumed something, everything, nothing
PROGRESS = (("half", "load"), ("retried", "plain"), ("buried", "plain"), ("growing", "fifo"))


def body_of(number: int) -> bytes:
    own = random.Random(number)
    return b"%d:" % number + own.randbytes(own.randrange(600))


def load_properties(number: int) -> dict[str, str]:
    return {
        "UNIQ_KEY": unique_key(number),
        "KEYS": f"key-{number} decade-{number // 10}",
        "TAGS": "even" if number % 2 == 0 else "odd",
        "wörter": "夜" * (1 + number % 5),
    }


def unique_key(number: int) -> str:
    """As clients make it: queries read the time in it."""
    return f"7F00000100002A139A65{number:012X}"


@dataclass(frozen=True)
class Snapshot:
    """What a server says of the directory that it serves."""

    messages: dict[tuple[str, int, int], Stored]
    topics: dict[str, dict[str, Any]]
    groups: dict[str, dict[str, Any]]
    committed: dict[tuple[str, str, int], int | None]
    #: topic, queue and time → the offset of the first message that was stored then or later
    by_time: dict[tuple[str, int, int], int]

    @classmethod
    def of(cls, broker: SharedBroker, stories: list[Story]) -> Snapshot:
        topics = [topic for story in stories for topic in story.topics]
        groups = [group for story in stories for group in story.groups]
        retries = [f"{kind}{group}" for group in groups for kind in ("%RETRY%", "%DLQ%")]
        times = [story.begun_ms + step for story in stories for step in (-1000, 0, 300, 1000, 100_000_000)]
        return cls(
            messages=broker.messages(),
            topics={topic: broker.topic(topic) for topic in topics + retries if known(broker, topic)},
            groups={group: broker.group(group) for group in groups},
            committed={
                (group, topic, queue): broker.committed(group, topic, queue)
                for story in stories
                for group, topic in story.progress
                for queue in range(QUEUES)
            },
            by_time={
                (topic, queue, time_ms): broker.offset_by_time(topic, queue, time_ms)
                for story in stories
                for topic, queues in broker.queues().items()
                if topic in story.topics and topic != story.topic(DELAYED)
                for queue in queues
                for time_ms in times
            },
        )

    def assert_holds(self, earlier: Snapshot) -> None:
        """Everything that was said then is said now; more may have come."""
        gone = earlier.messages.keys() - self.messages.keys()
        assert not gone, f"{len(gone)} messages are gone, {sorted(gone)[:5]}"
        for place, message in earlier.messages.items():
            assert self.messages[place].record == message.record, place
        assert self.topics == earlier.topics
        for name, config in earlier.groups.items():
            assert self.groups[name] == config
        assert self.committed == earlier.committed
        assert self.by_time == earlier.by_time


def known(broker: SharedBroker, topic: str) -> bool:
    try:
        broker.topic(topic)
    except AdminError:
        return False
    return True


class Story:
    """Topics, groups, messages and progress that one server writes down. Its names are its own."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.topics = [self.topic(name) for name in TOPICS]
        self.groups = [self.group(name) for name in GROUPS]
        self.progress = [(self.group(group), self.topic(topic)) for group, topic in PROGRESS]
        #: queue of the load → where group `half` goes on
        self.consumed: dict[int, int] = {}
        self.begun_ms = 0
        self.delayed_until = 0.0
        #: numbers of acknowledged messages of the load → queue and offset
        self.acknowledged: dict[int, tuple[int, int]] = {}

    def topic(self, name: str) -> str:
        return f"{name}-{self.number}"

    def group(self, name: str) -> str:
        return f"{name}-{self.number}"

    def tell(self, broker: SharedBroker, process: RemotingProcess) -> None:
        self.store(broker, process)
        self.delay(broker, process)

    def store(self, broker: SharedBroker, process: RemotingProcess) -> None:
        """What is there to stay."""
        self.begun_ms = time.time_ns() // 1_000_000
        self.make(broker)
        self.load(broker.address)
        client = RemotingClient(process, broker.namesrv)
        try:
            self.send(client)
            self.consume(broker, client)
        finally:
            client.close_all()
        self.load(broker.address)
        self.commit(broker)

    def make(self, broker: SharedBroker) -> None:
        """Topics and groups."""
        for name, settings in TOPICS.items():
            fields = {"perm": 6, "topicFilterType": "SINGLE_TAG", "topicSysFlag": 0, "order": "false", **settings}
            fields = {"readQueueNums": 1, "writeQueueNums": 1, **fields, "defaultTopic": "TBW102"}
            texts = {key: str(value) for key, value in fields.items()}
            broker.connection.call(UPDATE_AND_CREATE_TOPIC, b"", topic=self.topic(name), **texts)
            broker.wait_for_route(self.topic(name))
        for name, config in GROUPS.items():
            body = json.dumps({"groupName": self.group(name), **config}).encode()
            broker.connection.call(UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body)

    def load(self, address: str) -> None:
        """Many messages fast; those that were acknowledged count."""
        first = self.number * 100_000 + len(self.acknowledged)
        sender = PipelinedSender(address, self.topic("load"), QUEUES, Numbered(body_of, load_properties))
        asyncio.run(sender.send(range(first, first + LOAD)))
        assert not sender.refused
        for sent in sender.acknowledged:
            self.acknowledged[sent.number] = (sent.queue_id, sent.queue_offset)

    def send(self, client: RemotingClient) -> None:
        """In every way that the Java client knows."""
        producer = client.producer()
        plain, fifo = self.topic("plain"), self.topic("fifo")
        properties = {"colour": "grün", "a b": "c d"}
        producer.send([RemotingMessage(plain, b"sync %d" % n, "red", ("a", f"k{n}"), properties) for n in range(20)])
        producer.send([RemotingMessage(plain, b"async %d" % n, keys=(f"async{n}",)) for n in range(20)], "async")
        producer.send([RemotingMessage(plain, b"one way %d" % n) for n in range(20)], "one_way")
        producer.send([RemotingMessage(plain, b"batch %d" % n, "blue", (f"b{n}",)) for n in range(20)], "batch")
        producer.send([RemotingMessage(fifo, b"in order %d" % n, queue_id=1) for n in range(20)])
        producer.send([RemotingMessage(plain, b"large, compressed by the client " * 3_000, keys=("large",))])

    def consume(self, broker: SharedBroker, client: RemotingClient) -> None:
        """What fails comes again, or goes to the dead letters; what is left over is in the offsets."""
        plain = self.topic("plain")
        self.pop(broker)
        for name, level, expected in (("retried", 1, 40), ("buried", -1, 20)):
            # a first one, for its client does not know the route of the retry topic that is made for it
            client.close(client.push(self.group(name), {self.topic("unit"): "*"}))
            consumer = client.push(self.group(name), {plain: "red"}, failures=1, retry_level=level)
            assert len(consumer.take(expected, timeout_s=40)) == expected
            client.close(consumer)
        for topic in (f"%DLQ%{self.group('buried')}", f"%RETRY%{self.group(POPPING)}_{plain}"):
            wait_until(partial(broker.has_messages, topic))

    def pop(self, broker: SharedBroker) -> None:
        """One message, not acknowledged: it goes to a retry topic whose name is so long that the record is of version
        2."""
        broker.connection.call(
            POP_MESSAGE,
            consumerGroup=self.group(POPPING),
            topic=self.topic("plain"),
            queueId="-1",
            maxMsgNums="1",
            invisibleTime="1000",
            pollTime="0",
            bornTime="0",
            initMode="0",
        )

    def commit(self, broker: SharedBroker) -> None:
        """Group `half` has consumed half of each queue of the load. Returns when that is on disk."""
        for queue in range(QUEUES):
            offset = sum(of == queue for of, _ in self.acknowledged.values()) // 2 + queue
            broker.connection.call(
                UPDATE_CONSUMER_OFFSET,
                consumerGroup=self.group("half"),
                topic=self.topic("load"),
                queueId=str(queue),
                commitOffset=str(offset),
            )
            self.consumed[queue] = offset
        broker.wait_written("consumerOffset.json", f"{self.topic('load')}@{self.group('half')}")

    def delay(self, broker: SharedBroker, process: RemotingProcess) -> None:
        """Messages, and one that failed, which become due when another server has the directory."""
        client = RemotingClient(process, broker.namesrv)
        topic = self.topic(DELAYED)
        messages = [RemotingMessage(topic, b"delayed %d" % n, delay_level=level) for n, level in enumerate((3, 3, 18))]
        client.producer().send(messages)
        client.close_all()
        failed = next(read_back(broker.connection, self.topic("plain"), QUEUES))
        broker.connection.call(
            CONSUMER_SEND_MSG_BACK,
            group=self.group("growing"),
            offset=str(failed.log_offset),
            delayLevel="3",
            originMsgId="",
            originTopic=failed.topic,
        )
        self.delayed_until = time.monotonic() + DELAY_S

    # ----------------------------------------------------------------------------------------- told by the other

    def check_queries(self, broker: SharedBroker, messages: Mapping[tuple[str, int, int], Stored]) -> None:
        topic = self.topic("load")
        for number in random.Random(0).sample(sorted(self.acknowledged), 30):
            stored = messages[(topic, *self.acknowledged[number])]
            assert stored.body == body_of(number)
            assert found(broker, topic, f"key-{number}") == {stored.record}
            assert found(broker, topic, unique_key(number), unique=True) == {stored.record}
        number = min(self.acknowledged)
        assert len(found(broker, topic, f"decade-{number // 10}")) == 10
        assert found(broker, topic, "no such key") == set()
        assert len(found(broker, self.topic("plain"), "large")) == 1
        assert len(found(broker, self.topic("plain"), "a")) == 20

    def check_mqadmin(self, admin: Callable[..., Said], told: Snapshot) -> None:
        """What an operator sees of it."""
        load, group = self.topic("load"), self.group("retried")
        config = admin("getConsumerConfig", "-g", self.group("fixed"))
        ends = Counter((topic, queue) for topic, queue, _ in told.messages)
        assert {*self.topics, f"%RETRY%{group}", f"%DLQ%{self.group('buried')}"} <= set(admin("topicList").lines)
        assert [row[:4] for row in admin("topicStatus", "-t", load).table()[:QUEUES]] == [
            [BROKER, str(queue), "0", str(ends[load, queue])] for queue in range(QUEUES)
        ]
        progress = [row[:5] for row in admin("consumerProgress", "-g", group).table() if row[1] == BROKER]
        assert [row for row in progress if row[0] == self.topic("plain")] == [
            [topic, BROKER, str(queue), str(ends[topic, queue]), str(offset)]
            for (of, topic, queue), offset in sorted(told.committed.items())
            if of == group
        ]
        assert config.fields["retryQueueNums"] == "2"
        assert config.fields["consumeEnable"] == "false"
        assert "next=[1000, 5000]" in config.fields["groupRetryPolicy"]
        number = max(self.acknowledged)
        queue, offset = self.acknowledged[number]
        stored = told.messages[load, queue, offset]
        by_key = admin("queryMsgByKey", "-t", load, "-k", f"key-{number}").table()
        assert {tuple(row[:3]) for row in by_key} == {(unique_key(number), str(queue), str(offset))}
        by_offset = admin("queryMsgByOffset", "-t", load, "-b", BROKER, "-i", str(queue), "-o", str(offset)).fields
        for described in (
            by_offset,
            admin("queryMsgById", "-t", load, "-i", by_offset["OffsetID"]).fields,
            admin("queryMsgByUniqueKey", "-t", load, "-i", unique_key(number)).fields,
        ):
            assert described["Queue ID"] == str(queue)
            assert described["Queue Offset"] == str(offset)
            assert described["CommitLog Offset"] == str(stored.log_offset)
            assert described["Tags"] == f"[{stored.properties['TAGS']}]"
            assert described["Keys"] == f"[{stored.properties['KEYS']}]"
            assert f"wörter={stored.properties['wörter']}" in described["Properties"]

    def check_new_messages(self, broker: SharedBroker) -> None:
        """The queues go on where they were."""
        before = len(self.acknowledged)
        ends = {queue: 1 + max(at for of, at in self.acknowledged.values() if of == queue) for queue in range(QUEUES)}
        self.load(broker.address)
        assert len(self.acknowledged) == before + LOAD
        places = sorted(self.acknowledged.values())
        for queue, end in ends.items():
            new = [at for of, at in places if of == queue and at >= end]
            assert new == list(range(end, end + len(new)))

    def check_progress(self, broker: SharedBroker, process: RemotingProcess) -> None:
        """The group gets what it had not, all of it, and nothing that it had."""
        client = RemotingClient(process, broker.namesrv)
        consumer = client.push(self.group("half"), {self.topic("load"): "*"})
        left = {(queue, offset) for queue, offset in self.acknowledged.values() if offset >= self.consumed[queue]}
        taken = consumer.received(len(left), timeout_s=60)
        client.close_all()
        assert sorted((message.queue_id, message.queue_offset) for message in taken) == sorted(left)

    def check_delayed(self, broker: SharedBroker) -> None:
        """Those of level 3 came, the one of level 18 did not."""
        delayed, retry = self.topic(DELAYED), f"%RETRY%{self.group('growing')}"
        for topic in (delayed, retry):
            wait_until(partial(broker.has_messages, topic), self.delayed_until - time.monotonic() + SOON_S)

        def bodies() -> list[bytes]:
            stored = broker.messages().items()
            return sorted(message.body for (of, _, _), message in stored if of in (delayed, retry))

        wait_until(lambda: len(bodies()) == 3, SOON_S)
        failed = next(read_back(broker.connection, self.topic("plain"), QUEUES)).body
        assert bodies() == sorted([b"delayed 0", b"delayed 1", failed])


def run(mqadmin: Mqadmin, namesrv: str, *command: str) -> Said:
    said = mqadmin.run(namesrv, *command)
    assert not said.err, f"{command}: {said}"
    return said


def found(broker: SharedBroker, topic: str, key: str, *, unique: bool = False) -> set[bytes]:
    """Records that a query finds, once its index has come so far. After a crash Apache finds the last message of an
    index file twice."""
    deadline = time.monotonic() + SOON_S
    while True:
        try:
            body = broker.connection.call(
                QUERY_MESSAGE,
                topic=topic,
                key=key,
                maxNum="64",
                beginTimestamp="0",
                endTimestamp=str(FOR_EVER),
                _UNIQUE_KEY_QUERY=str(unique).lower(),
            )
        except AdminError:
            if key == "no such key":
                return set()
            assert time.monotonic() < deadline, f"{key} is not found"
            time.sleep(0.05)
        else:
            return {stored.record for stored in records(body)}


def wait_until(condition: Callable[[], bool], timeout_s: float = SOON_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def broker(tmp_path: Path, apache: Apache, namesrv: str) -> Iterator[SharedBroker]:
    broker = SharedBroker(tmp_path, apache, namesrv, {**SMALL_FILES, **SOON_WRITTEN, **PATIENT})
    yield broker
    broker.kill()


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize("writer", ["apache", "saturn"])
def test_the_other_server_opens_it(
    broker: SharedBroker,
    remoting_process: Callable[[str], RemotingProcess],
    mqadmin: Mqadmin,
    writer: Server,
    end: str,
) -> None:
    process, story = remoting_process("java"), Story(1)
    broker.start(writer)
    story.tell(broker, process)
    told = Snapshot.of(broker, [story])
    getattr(broker, end)()
    assert broker.verify()[0] == []
    broker.start(OTHER[writer])
    Snapshot.of(broker, [story]).assert_holds(told)
    story.check_queries(broker, told.messages)
    if writer == "saturn":
        story.check_mqadmin(partial(run, mqadmin, broker.namesrv), told)
    story.check_new_messages(broker)
    story.check_delayed(broker)
    story.check_progress(broker, process)
    broker.stop()
    assert broker.verify()[0] == []


def test_a_round_trip(broker: SharedBroker, remoting_process: Callable[[str], RemotingProcess]) -> None:
    """Each server finds what all those before it have written, and goes on."""
    process = remoting_process("java")
    stories: list[Story] = []
    told: Snapshot | None = None
    ends = (SharedBroker.kill, SharedBroker.stop, SharedBroker.stop, SharedBroker.kill)
    servers: tuple[Server, ...] = ("saturn", "apache", "saturn", "apache")
    for number, (server, end) in enumerate(zip(servers, ends, strict=True)):
        broker.start(server)
        if told is not None:
            Snapshot.of(broker, stories).assert_holds(told)
            for story in stories:
                story.check_queries(broker, told.messages)
                story.check_delayed(broker)
        stories.append(Story(number))
        stories[-1].tell(broker, process)
        from_ipv6(broker, server, stories[-1])
        told = Snapshot.of(broker, stories)
        end(broker)
        assert broker.verify()[0] == []


def from_ipv6(broker: SharedBroker, server: Server, story: Story) -> None:
    """Messages whose hosts take 20 bytes in the record. Our broker listens on one address."""
    if server == "saturn":
        broker.stop()
        broker.start("saturn", "::1")
    story.load(f"[::1]:{broker.port}")
    if server == "saturn":
        broker.stop()
        broker.start("saturn")
