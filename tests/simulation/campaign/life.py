"""A process that does things, and what its clients are told."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias, TypeVar, cast

from campaign.history import PAD, Done, Facts, History, Progress, key_of, must, name
from campaign.process import HOUR_MS, POP_GROUPS, PULL_GROUPS, TOPICS, Process, Settings
from saturnmq.disk.simulated import Operation, SimulatedDisk
from saturnmq.kernel import properties
from saturnmq.kernel.errors import SaturnError
from saturnmq.kernel.handle import TopicKind
from saturnmq.kernel.later import Later, Reply
from saturnmq.kernel.message import Message
from saturnmq.kernel.ports import (
    ClientChannel,
    Delivery,
    EndTransactionRequest,
    PopRequest,
    PopResult,
    PullRequest,
    PullResult,
    Resolution,
    SendReceipt,
    SendRequest,
    TransactionCheck,
)
from saturnmq.kernel.subscription import subscribe
from saturnmq.kernel.topic import MessageQueue, TopicConfig
from saturnmq.store.results import Arrival
from saturnmq.testing.clock import VirtualClock
from saturnmq.wire.record import decode

T = TypeVar("T")

#: a sync fails more often: everything depends on it
_FAILING = (*(operation for operation in Operation if operation is not Operation.FAILED_SYNC), *[Operation.SYNC] * 3)
#: property, its value, milliseconds
Delay: TypeAlias = tuple[str, str, int]
DELAYS: Sequence[Delay] = (
    (properties.DELAY, "1", 1_000),
    (properties.DELAY, "3", 10_000),
    (properties.DELAY, "18", 2 * HOUR_MS),
    (properties.TIMER_DELAY_MS, "2500", 2_500),
    (properties.TIMER_DELAY_SEC, "5000", 5_000_000),
    # a half message comes when it is committed
    (properties.TRANSACTION_PREPARED, "true", 0),
    (properties.TRANSACTION_PREPARED, "true", 0),
)
_PRODUCERS = "p"
_HOST = bytes([10, 0, 0, 1, 0, 0, 0, 9])


class Life(Process):
    """`told` is what somebody was told, behind how many events of the disk."""

    def __init__(
        self, disk: SimulatedDisk, clock: VirtualClock, chance: random.Random, settings: Settings, history: History
    ) -> None:
        self.history = history
        self.told: list[tuple[int, Facts]] = []
        self.sent = self.deleted_files = self.faults = 0
        self._acknowledged: set[Done] = set()
        self._hands: list[tuple[Done, Delivery]] = []
        super().__init__(disk, clock, chance, settings)
        self.broker.producer_joined(cast(ClientChannel, _Committer(self)), _PRODUCERS)

    def watch(self) -> None:
        arrived = self.store.on_arrival
        assert arrived is not None

        def arrive(arrival: Arrival) -> None:
            arrived(arrival)
            if arrival.topic in TOPICS:
                key = properties.decode(arrival.properties)[properties.UNIQUE_KEY]
                self.tell(Facts(came={key.removeprefix("K")}))

        self.store.on_arrival = arrive

    def tell(self, facts: Facts) -> None:
        self.told.append((len(self.disk.events), facts))

    def step(self) -> None:
        steps: Sequence[tuple[Callable[[], None], int]] = (
            (self.send, 40), (self.pull, 6), (self.commit, 6), (self.pop, 12), (self.acknowledge, 14), (self.change, 3),
            (self.advance, 14), (self.flush, 2), (self.configure, 1), (self.write_offsets, 4), (self.grow_old, 1),
            (self.clean, 1), (self.fail, 2),
        )  # fmt: skip
        call = self.chance.choices([step for step, _ in steps], [weight for _, weight in steps])[0]
        with suppress(SaturnError):  # then nobody is told anything
            call()
        if self.chance.random() < 0.7:
            self.clock.run_soon()

    def _ask(self, reply: Reply[T], told: Callable[[T], Any]) -> None:
        """Somebody waits for the answer, or is never told."""
        if not self.settings.sync:
            self.clock.run_soon()  # an answer leaves at the end of the turn, behind its write
        if isinstance(reply, Later):
            reply.then(told, _refused)
        else:
            told(reply)

    # ------------------------------------------------------------------------------------------------- sending

    def send(self) -> None:
        for _ in range(self.chance.choice((1, 1, 1, 2, 5))):
            count = self.chance.choice((1, 1, 1, 3))
            delayed = count == 1 and self.chance.random() < 0.3
            self.send_some(*self._queue(), count, self.chance.choice(DELAYS) if delayed else None)

    def send_some(self, topic: str, queue_id: int, count: int, delay: Delay | None) -> None:
        messages = [self._message(topic, queue_id, delay) for _ in range(count)]
        now_ms = self.clock.now_ms()
        if delay is not None:
            self.history.due[messages[0].body] = now_ms + delay[2]
        request = SendRequest(
            producer_group=_PRODUCERS, messages=messages, properties=properties.decode(messages[0].properties),
            batch=count > 1,
        )  # fmt: skip
        bodies = [message.body for message in messages]
        self._ask(self.broker.send(request), partial(self._sent, topic, bodies, delay, now_ms))
        self.sent += count

    def end(self, half_offset: int, position: int, resolution: Resolution) -> None:
        """Nobody is told: what is not committed is asked about again."""
        request = EndTransactionRequest(
            topic="", producer_group=_PRODUCERS, half_offset=half_offset, commit_log_offset=position,
            resolution=resolution, from_check=True,
        )  # fmt: skip
        with suppress(SaturnError):
            self._ask(self.broker.end_transaction(request), _heard)

    def _message(self, topic: str, queue_id: int, delay: Delay | None) -> Message:
        chance, bodies = self.chance, self.history.bodies
        body = b"%d." % len(bodies) + b"x" * chance.choice((0, 3, 40, 300, 700))
        bodies[body] = "v" * chance.choice((1, 5, 600))
        pairs = {properties.UNIQUE_KEY: key_of(body), PAD: bodies[body]}
        if delay is not None:
            pairs |= {delay[0]: delay[1], properties.PRODUCER_GROUP: _PRODUCERS}
        if chance.random() < 0.3:
            pairs[properties.TAGS] = chance.choice("AB")
        return Message(topic, queue_id, body, properties.encode(pairs), self.clock.now_ms(), _HOST)

    def _sent(self, topic: str, bodies: list[bytes], delay: Delay | None, now_ms: int, receipt: SendReceipt) -> None:
        facts = Facts()
        if delay is not None:
            facts.delayed.update(bodies)
            if delay[0] == properties.TRANSACTION_PREPARED and self.chance.random() < 0.6:
                self.end(receipt.queue_offset, receipt.commit_log_offset, Resolution.COMMIT)
        else:
            for number, body in enumerate(bodies):
                facts.sent[topic, receipt.queue_id, receipt.queue_offset + number] = body
                facts.stored_ms[body] = now_ms
        self.tell(facts)

    # ----------------------------------------------------------------------------------------------- consuming

    def _queue(self) -> tuple[str, int]:
        topic = self.chance.choice(list(TOPICS))
        return topic, self.chance.randrange(TOPICS[topic])

    def pull(self) -> None:
        topic, queue_id = self._queue()
        low, high = self.store.min_offset(topic, queue_id), self.store.max_offset(topic, queue_id)
        request = PullRequest(
            group=self.chance.choice(PULL_GROUPS), queue=MessageQueue(topic, self.broker.name, queue_id),
            offset=self.chance.randint(low, high), max_messages=self.chance.choice((1, 32)), max_bytes=1 << 20,
            subscription=subscribe(topic, "*"),
        )  # fmt: skip
        self._ask(self.broker.pull(request), partial(self._pulled, topic, queue_id))

    def _pulled(self, topic: str, queue_id: int, result: PullResult) -> None:
        facts = Facts()
        for record in result.records:
            stored = decode(record, check_crc=True)
            facts.seen[topic, queue_id, stored.queue_offset] = stored.body
            facts.stored_ms[stored.body] = stored.stored_ms
        self.tell(facts)

    def commit(self) -> None:
        topic, queue_id = self._queue()
        group = self.chance.choice(PULL_GROUPS)
        low = max(0, self.broker.offsets.get(group, topic, queue_id))
        high = self.store.max_offset(topic, queue_id)
        if low <= high:
            offset = self.chance.randint(low, high)
            self.broker.offsets.commit(group, topic, queue_id, offset)
            self.history.committed.setdefault((group, topic, queue_id), set()).add(offset)

    @property
    def progress(self) -> dict[Progress, int]:
        return {key: self.broker.offsets.get(*key) for key in self.history.committed}

    def write_offsets(self) -> None:
        self.commit()
        offsets = self.progress
        self._ask(self.broker.offsets.write(), lambda _: self._wrote(offsets))

    def _wrote(self, offsets: dict[Progress, int]) -> None:
        if not self.faults:  # it may have been put off
            self.tell(Facts(written=offsets))

    def pop(self) -> None:
        topic, group = self.chance.choice(list(TOPICS)), self.chance.choice(POP_GROUPS)
        self.pop_some(group, topic, self.chance.choice((1, 4, 32)), self.chance.choice((1_000, 10_000, 60_000)))

    def pop_some(self, group: str, topic: str, count: int, invisible_ms: int) -> None:
        request = PopRequest(
            group=group, topic=topic, queue_id=-1, max_messages=count, invisible_ms=invisible_ms, wait_ms=0,
            subscription=subscribe(topic, "*"), from_latest=False,
        )  # fmt: skip
        self._ask(self.broker.pop(request), lambda result: self._hands.extend(self._popped(request, result)))

    def _popped(self, request: PopRequest, result: PopResult) -> list[tuple[Done, Delivery]]:
        taken = []
        for popped in result.messages:
            body = decode(popped.record, check_crc=True).body
            copy = -1 if popped.topic_kind is TopicKind.NORMAL else popped.queue_offset
            done = request.group, body, copy
            self._check_not_done(done)
            delivery = Delivery(
                group=request.group, topic=request.topic, topic_kind=popped.topic_kind, queue_id=popped.queue_id,
                queue_offset=popped.queue_offset, start_offset=popped.start_offset, pop_ms=result.pop_ms,
                invisible_ms=result.invisible_ms, revive_queue_id=result.revive_queue_id,
            )  # fmt: skip
            taken.append((done, delivery))
        return taken

    def _check_not_done(self, done: Done) -> None:
        """A crash may repeat the copy of a message whose lease is over, and a delayed message."""
        group, body, _ = done
        for acknowledged in (self.history.acknowledged, self._acknowledged):
            again = done in acknowledged or (group, body, -1) in acknowledged
            must(body in self.history.due or not again, 4, f"{name(body)} comes back to {group}, which is done")

    def acknowledge(self) -> None:
        if self._hands:
            done, delivery = self._hands.pop(self.chance.randrange(len(self._hands)))
            self.history.unsure.add(done)
            self._ask(self.broker.ack(delivery), lambda _: self._acked(done))

    def _acked(self, done: Done) -> None:
        self._acknowledged.add(done)
        self.tell(Facts(acknowledged={done}))

    def change(self) -> None:
        if self._hands:
            _, delivery = self._hands.pop(self.chance.randrange(len(self._hands)))
            self._ask(self.broker.change_invisible(delivery, self.chance.choice((0, 1_000, 30_000))), _heard)

    def drain(self, group: str) -> set[bytes]:
        """Everything that the group still gets, each message acknowledged at once."""
        got, idle = set[bytes](), 0
        while idle < 8:
            before = len(got)
            for topic in TOPICS:
                self.pop_some(group, topic, 32, 60_000)
                self.clock.advance(500)
                for (_, body, _), delivery in self._hands:
                    got.add(body)
                    self.wait(self.broker.ack(delivery))
                self._hands.clear()
            idle = 0 if len(got) > before else idle + 1
            if idle:
                self.clock.advance(20_000)
        return got

    # --------------------------------------------------------------------------------------- time, disk, settings

    def advance(self) -> None:
        self.clock.advance(self.chance.choice((1, 5, 30, 400, 1_500, 6_000, 12_000)))

    def grow_old(self) -> None:
        self.clock.advance(self.chance.choice((HOUR_MS // 4, HOUR_MS)))

    def clean(self) -> None:
        before = self.first
        self._ask(self.store.clean(), _heard)
        self.clock.advance(500)
        self.deleted_files += (self.first - before) // self.settings.log_bytes

    def flush(self) -> None:
        self._ask(self.store.flush(), _heard)

    def configure(self) -> None:
        queues = self.chance.randint(1, 4)
        self.broker.topics.put(TopicConfig(topic_name="other", read_queue_nums=queues, write_queue_nums=queues))

    def fail(self) -> None:
        """Some operation fails from now on, or none does any more."""
        if self.disk.faults:
            self.disk.faults.clear()
        elif self.chance.random() < 0.5:
            operation = self.chance.choice(_FAILING)
            prefix = self.chance.choice(
                ("", *(f"{directory}/" for directory in self.settings.directories), "consumequeue/", "config/",
                 "checkpoint", "index/")
            )  # fmt: skip
            self.disk.faults[operation, prefix] = self.chance.choice((errno.EIO, errno.ENOSPC))
            self.faults += 1


class _Committer:
    """A producer that is asked about its transactions."""

    client_id = "p"

    def __init__(self, life: Life) -> None:
        self._life = life

    def check_transaction(self, check: TransactionCheck) -> bool:
        resolution = self._life.chance.choice((Resolution.COMMIT, Resolution.UNKNOWN))
        self._life.end(check.half_offset, check.commit_log_offset, resolution)
        return True


def _heard(value: object) -> None:
    """Nobody remembers it."""


def _refused(error: BaseException) -> None:
    if not isinstance(error, SaturnError | OSError):
        raise error
