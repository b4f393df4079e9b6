"""Random lives of consumers, through restarts, kills and power cuts. What they are told is all that is judged.

Consumers of every kind share a server: two groups that take what they can, one of few attempts, one in order, one whose
leases the Proxy renews while they live. They are slow, late, repeat themselves, change their minds and die. Operators
send groups elsewhere, and delete groups and topics, whose names are used again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import partial
from itertools import count
from typing import Any, NamedTuple
from unittest.mock import patch

import msgspec
from campaign.lives import torn
from campaign.process import HOUR_MS, TOPICS, Process, Settings
from harness.testimony import (
    Answered,
    Asked,
    Cleaned,
    Crashed,
    Deleted,
    Entry,
    Given,
    Group,
    Judge,
    Left,
    Reset,
    Sent,
)
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from saturnmq.broker import leasefile
from saturnmq.disk.simulated import SimulatedDisk, everything_survives, nothing_survives
from saturnmq.kernel import properties
from saturnmq.kernel.config import NameserverConfig, ProxyConfig
from saturnmq.kernel.errors import InvalidReceiptHandle, NoSuchMessage, SaturnError
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Reply
from saturnmq.kernel.message import Message
from saturnmq.kernel.ports import SendReceipt
from saturnmq.kernel.subscription import subscribe
from saturnmq.kernel.topic import DLQ_PREFIX, GroupConfig, MessageType, TopicConfig
from saturnmq.nameserver.routes import RouteTable
from saturnmq.proxy.proxy import Proxy, ReceiveRequest, ReceiveResult
from saturnmq.proxy.receipts import settle
from saturnmq.testing.clock import VirtualClock

NEVER_MS = 1000 * HOUR_MS
#: of one life
STEPS = 50
#: group → the topic it consumes, whether in order, how often a message is tried again
GROUPS = {"many": ("orders", False, 16), "few": ("orders", False, 2), "ordered": ("notes", True, 2),
          "pushed": ("bills", False, 3)}  # fmt: skip
CONSUMED = sorted({topic for topic, _, _ in GROUPS.values()})
KEYS = ("k1", "k2", "k3")
#: what a crash may repeat of delayed messages: timerFlushIntervalMs, and the slot under way
_TIMER_FLUSH_MS = 2_500
_HOST = bytes([10, 0, 0, 1, 0, 0, 0, 9])
_PROXY = ProxyConfig(
    enable_topic_message_type_check=False,
    min_invisible_time_mills_for_recv=1,
    renew_max_time_millis=NEVER_MS,
    grpc_client_consumer_min_long_polling_timeout_millis=0,
)


class Hand(NamedTuple):
    group: str
    consumer: str
    message: str
    handle: str


class Server(Process):
    """Local mode without its sockets."""

    def __init__(self, disk: SimulatedDisk, clock: VirtualClock, chance: random.Random, given: Settings) -> None:
        super().__init__(disk, clock, chance, given)
        for group in GROUPS:
            self.put_group(group)
        routes = RouteTable(NameserverConfig(), clock)
        self.broker.register(routes, Address("127.0.0.1", 10911))
        self.proxy = Proxy({self.broker.name: self.broker}, self.broker, routes, _PROXY, clock)

    def put_group(self, group: str) -> None:
        _, in_order, retries = GROUPS[group]
        self.broker.groups.put(GroupConfig(group_name=group, consume_message_orderly=in_order, retry_max_times=retries))

    def put_topic(self, topic: str) -> None:
        self.broker.topics.put(
            TopicConfig(topic_name=topic, read_queue_nums=TOPICS[topic], write_queue_nums=TOPICS[topic])
        )

    def close(self) -> None:
        self.proxy.close()
        self.broker.polls.close()
        self.clock.run_soon()
        super().close()


class Consumers(RuleBasedStateMachine):
    sync = True
    #: so far
    lives = steps = crashes = 0

    @initialize(seed=st.integers(0, 1 << 32))
    def begin(self, seed: int) -> None:
        type(self).lives += 1
        self.chance = random.Random(seed)
        self.settings = Settings(self.chance, sync=self.sync)
        self.settings.store = msgspec.structs.replace(
            self.settings.store, delete_when="", flush_interval_config=100, flush_interval_commit_log=2_000
        )
        # who is new begins with the latest message, wherever that stands
        self.settings.broker = msgspec.structs.replace(self.settings.broker, init_pop_offset_by_check_msg_in_mem=False)
        self.log: list[Entry] = []
        self.judged = self.durable = 0
        self.judge = Judge({name: Group((topic,), order, most + 1) for name, (topic, order, most) in GROUPS.items()})
        self.hands: list[Hand] = []
        self.calls, self.names = count(), count()
        self.alive: set[str] = set()
        #: id of the last one in order, and how many messages it wants
        self.attempt = "attempt", 1
        self.server = Server(SimulatedDisk(), VirtualClock(), self.chance, self.settings)
        self.come(GROUPS)

    @property
    def now_ms(self) -> int:
        return self.server.clock.now_ms()

    def come(self, groups: Iterable[str]) -> None:
        """They are new, and find nothing: what is sent from now on is theirs."""
        for group in groups:
            self.take(group, "first", 1, 1, 0, None)
        self.server.clock.run_soon()
        self.server.wait(self.server.store.flush())

    # --------------------------------------------------------------------------------------------- the log

    def ask(self, asked: Asked, call: Callable[[], Reply[Any]], told: Callable[[Any], dict[str, Any]]) -> None:
        """An answer leaves at the end of its turn, behind what it writes."""
        self.log.append(asked)

        def answer(ok: bool | None, value: Any) -> None:
            more = told(value) if ok else {"why": str(value)}
            self.log.append(Answered(self.now_ms, asked.call, ok, **more))

        def succeeded(value: Any) -> None:
            self.server.clock.call_soon(partial(answer, True, value))

        def failed(error: BaseException) -> None:
            assert isinstance(error, SaturnError), error
            refused = isinstance(error, InvalidReceiptHandle | NoSuchMessage)
            self.server.clock.call_soon(partial(answer, False if refused else None, error))

        settle(call, succeeded, failed)

    def asked(self, verb: str, group: str, consumer: str, handle: str = "", **more: Any) -> Asked:
        return Asked(self.now_ms, str(next(self.calls)), group, consumer, verb, handle, **more)

    @invariant()
    def judged_so_far(self) -> None:
        if hasattr(self, "server"):
            type(self).steps += 1
            while self.judged < len(self.log):
                self.judge.hear(self.log[self.judged])
                self.judged += 1
            if self.server.store.flushed == self.server.store.end:
                self.durable = len(self.log)

    # --------------------------------------------------------------------------------------------- sending

    @rule(topic=st.sampled_from(["orders", "notes", "bills"]), number=st.integers(1, 4), key=st.sampled_from(KEYS))
    def send(self, topic: str, number: int, key: str) -> None:
        for _ in range(number):
            self.send_one(topic, key if topic == "notes" else "", 0)

    @rule(delay_ms=st.sampled_from([1, 1_500, 10_000, 45_000]))
    def send_delayed(self, delay_ms: int) -> None:
        self.send_one("orders", "", self.now_ms + delay_ms)

    def send_one(self, topic: str, key: str, due_ms: int) -> None:
        name = f"m{next(self.names)}"
        pairs = {properties.UNIQUE_KEY: name}
        kind = MessageType.NORMAL
        if due_ms:
            pairs[properties.TIMER_DELIVER_MS], kind = str(due_ms), MessageType.DELAY
        if key:
            pairs[properties.SHARDING_KEY], kind = key, MessageType.FIFO
        message = Message(topic, -1, name.encode(), properties.encode(pairs), self.now_ms, _HOST)

        def sent(receipt: SendReceipt) -> None:
            place = (-1, -1) if due_ms else (receipt.queue_id, receipt.queue_offset)
            self.server.clock.call_soon(lambda: self.log.append(Sent(self.now_ms, name, topic, key, due_ms, *place)))

        settle(lambda: self.server.proxy.send(topic, [message], pairs, kind, key), sent, ignore)

    # ------------------------------------------------------------------------------------------- consuming

    @rule(
        group=st.sampled_from(["many", "few", "ordered"]),
        consumer=st.sampled_from("ab"),
        most=st.integers(1, 8),
        hidden_ms=st.sampled_from([1, 1_000, 10_000, 60_000]),
        wait_ms=st.sampled_from([0, 0, 0, 20_000]),
        attempt=st.sampled_from(["none", "new", "repeated"]),
    )
    def receive(self, group: str, consumer: str, most: int, hidden_ms: int, wait_ms: int, attempt: str) -> None:
        if group != "ordered" or attempt == "none":
            self.take(group, consumer, most, hidden_ms, wait_ms, None)
            return
        if attempt == "new":
            self.attempt = f"attempt {next(self.calls)}", most
        self.take(group, consumer, self.attempt[1], hidden_ms, wait_ms, self.attempt[0])

    @rule(consumer=st.sampled_from("ab"), most=st.integers(1, 8), wait_ms=st.sampled_from([0, 0, 20_000]))
    def receive_pushed(self, consumer: str, most: int, wait_ms: int) -> None:
        """Whose lease is renewed."""
        consumer = f"pushed-{consumer}"
        self.alive.add(consumer)
        self.server.proxy.sessions.join(consumer, "JAVA", Address("127.0.0.1", 1), 0)
        self.take("pushed", consumer, most, None, wait_ms, None)

    def take(
        self, group: str, consumer: str, most: int, hidden_ms: int | None, wait_ms: int, attempt: str | None
    ) -> None:
        topic = GROUPS[group][0]
        request = ReceiveRequest(
            group=group, topic=topic, broker_name="", max_messages=most, wait_ms=wait_ms, attempt_id=attempt,
            invisible_ms=_PROXY.default_invisible_time_mills if hidden_ms is None else hidden_ms,
            subscription=subscribe(topic, "*"), client_id=consumer, auto_renew=hidden_ms is None,
        )  # fmt: skip

        def told(result: ReceiveResult) -> dict[str, Any]:
            given = [Given(one.message.body.decode(), one.handle, one.reconsume_times + 1) for one in result.messages]
            self.hands += [Hand(group, consumer, one.message, one.handle) for one in given]
            return {"given": given}

        asked = self.asked("receive", group, consumer, hidden_ms=hidden_ms, attempt_id=attempt)
        self.ask(asked, lambda: self.server.proxy.receive(request), told)

    @rule(group=st.sampled_from(["few", "ordered"]), times=st.integers(1, 4))
    def neglect(self, group: str, times: int) -> None:
        """Take messages and let them lapse."""
        for _ in range(times):
            self.take(group, "c", 8, 500, 0, None)
            self.pass_time(2_000)

    def hand(self, data: st.DataObject) -> Hand:
        return data.draw(st.sampled_from(self.hands[-12:]))

    @precondition(lambda self: self.hands)
    @rule(data=st.data(), times=st.sampled_from([1, 1, 2]))
    def ack(self, data: st.DataObject, times: int) -> None:
        hand = self.hand(data)
        for _ in range(times):
            self.ack_one(hand)

    def ack_one(self, hand: Hand) -> None:
        asked = self.asked("ack", hand.group, hand.consumer, hand.handle)
        self.ask(asked, lambda: self.server.proxy.ack(hand.group, GROUPS[hand.group][0], hand.handle), lambda _: {})

    @precondition(lambda self: self.hands)
    @rule(data=st.data(), hidden_ms=st.sampled_from([0, 1, 1_000, 30_000, 90_000]))
    def change(self, data: st.DataObject, hidden_ms: int) -> None:
        hand = self.hand(data)

        def told(handle: str) -> dict[str, Any]:
            self.hands.append(hand._replace(handle=handle))
            return {"handle": handle}

        call = partial(self.server.proxy.change_invisible, hand.group, GROUPS[hand.group][0], hand.handle, hidden_ms)
        self.ask(self.asked("change", hand.group, hand.consumer, hand.handle, hidden_ms=hidden_ms), call, told)

    @precondition(lambda self: self.hands)
    @rule(data=st.data())
    def bury(self, data: st.DataObject) -> None:
        hand = self.hand(data)
        topic = GROUPS[hand.group][0]
        call = partial(self.server.proxy.forward_to_dead_letters, hand.group, topic, hand.handle, hand.message)
        self.ask(self.asked("bury", hand.group, hand.consumer, hand.handle), call, lambda _: {})

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.leave_one(data.draw(st.sampled_from(sorted(self.alive))))

    def leave_one(self, consumer: str) -> None:
        self.alive.discard(consumer)
        self.log.append(Left(self.now_ms, consumer))
        self.server.proxy.sessions.leave(consumer)

    # ------------------------------------------------------------------------------------------- operators

    @rule(
        group=st.sampled_from([*GROUPS]),
        where=st.sampled_from(["earliest", "latest", "time", "offset"]),
        ago_ms=st.sampled_from([0, 1_000, 30_000, 600_000]),
        far=st.floats(0, 1),
    )
    def reset(self, group: str, where: str, ago_ms: int, far: float) -> None:
        self.pass_time(1_000)  # who sent something was told
        topic, store, queue_id, offset = GROUPS[group][0], self.server.store, -1, -1
        to_ms = {"earliest": 0, "latest": -1, "offset": 0}.get(where, self.now_ms - ago_ms)
        if where == "offset":
            queue_id = round(far * (TOPICS[topic] - 1))
            low, high = store.min_offset(topic, queue_id), store.max_offset(topic, queue_id)
            offset = low + round(far * (high - low))
        at, now_ms = len(self.log), self.now_ms
        reply = self.server.broker.resets.reset(group, topic, to_ms, queue_id=queue_id, offset=offset)
        offsets = {queue.queue_id: offset for queue, offset in self.server.wait(reply).items()}
        time_ms = to_ms if where == "time" else 0
        self.log.insert(at, Reset(now_ms, group, topic, offsets, time_ms))

    @rule(topic=st.sampled_from(CONSUMED))
    def delete_topic(self, topic: str) -> None:
        self.pass_time(1_000)
        at, now_ms = len(self.log), self.now_ms
        self.server.wait(self.server.broker.delete_topics([topic]))
        self.log.insert(at, Deleted(now_ms, topic=topic))
        self.server.put_topic(topic)
        self.come(group for group in GROUPS if GROUPS[group][0] == topic)

    @rule(group=st.sampled_from([*GROUPS]))
    def delete_group(self, group: str) -> None:
        self.pass_time(1_000)
        at, now_ms = len(self.log), self.now_ms
        self.server.wait(self.server.broker.delete_group(group, offsets_too=True))
        self.log.insert(at, Deleted(now_ms, group=group))
        self.server.put_group(group)
        self.come([group])

    # ------------------------------------------------------------------------------------------------ time

    @rule(milliseconds=st.sampled_from([0, 1, 5, 30, 500, 1_000, 5_000, 10_000, 61_000]))
    def pass_time(self, milliseconds: int) -> None:
        self.server.clock.run_soon()
        while milliseconds > 0:
            for consumer in sorted(self.alive):
                if self.server.proxy.sessions.get(consumer) is not None:
                    self.server.proxy.sessions.heartbeat(consumer)
            self.server.clock.advance(min(milliseconds, 30_000))
            milliseconds -= 30_000

    @rule(hours=st.sampled_from([0, 1]))
    def clean(self, hours: int) -> None:
        """What is older than an hour may be deleted."""
        self.pass_time(hours * HOUR_MS)
        self.log.append(Cleaned(self.now_ms, HOUR_MS - 1_000))
        settle(self.server.store.clean, ignore, ignore)

    @rule(
        how=st.sampled_from(["stopped", "killed", "cut", "cut", "torn"]), gone_ms=st.sampled_from([0, 1, 5_000, 60_000])
    )
    def end_of_server(self, how: str, gone_ms: int) -> None:
        type(self).crashes += 1
        disk, durable = self.server.disk, None
        if how == "stopped":
            self.server.close()
        elif how == "killed":
            disk = disk.crashed(survives=everything_survives)
        else:
            survives = torn(self.chance) if how == "torn" else nothing_survives
            disk, durable = disk.crashed(survives=survives), self.durable
        self.log.append(Crashed(self.now_ms, durable, self.sync, _TIMER_FLUSH_MS))
        self.judged_so_far()
        self.server = Server(disk, VirtualClock(self.now_ms + gone_ms), self.chance, self.settings)

    def teardown(self) -> None:
        """Everyone leaves, and one consumer of each group takes all that there is."""
        if not hasattr(self, "server") or self.judged < len(self.log):
            return  # it did not begin, or is wrong already
        for consumer in sorted(self.alive):
            self.leave_one(consumer)
        quiet = 0
        while quiet < 5:
            had = len(self.hands)
            self.pass_time(61_000)
            for group in GROUPS:
                self.take(group, "z", 32, 60_000, 0, None)
            self.pass_time(500)
            for hand in self.hands[had:]:
                self.ack_one(hand)
            self.pass_time(500)
            quiet = quiet + 1 if len(self.hands) == had else 0
        self.judged_so_far()
        dead = {group: {one.body.decode() for one in self.server.read(DLQ_PREFIX + group, 0)} for group in GROUPS}
        self.judge.end(dead)


class ConsumersWithoutSync(Consumers):
    """ASYNC_FLUSH: a power cut may undo what is not on the disk yet."""

    sync = False


class ConsumersOfSnapshots(Consumers):
    """Snapshots of the leases are taken all the time, a bit in each turn."""

    @initialize(seed=st.integers(0, 1 << 32))
    def begin(self, seed: int) -> None:
        self.often = patch.multiple(leasefile, _MAX_BEHIND=1, _FRAME_ITEMS=1)
        self.often.start()
        super().begin(seed)

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            if hasattr(self, "often"):
                self.often.stop()


def ignore(_: object) -> None:
    """Nobody is told."""


LIVES: tuple[type[Consumers], ...] = (Consumers, ConsumersWithoutSync, ConsumersOfSnapshots)


def live(kind: type[Consumers], *, seed: int, lives: int) -> tuple[int, str] | None:
    """None: all went well; else how many lives it took, and what was wrong with the last one."""
    before = kind.lives
    kind._hypothesis_internal_use_seed = seed  # what @hypothesis.seed does
    try:
        run_state_machine_as_test(
            kind,
            settings=settings(
                max_examples=lives,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                print_blob=False,
                report_multiple_bugs=False,
            ),
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        return kind.lives - before, f"{type(error).__name__}: {error}"
    return None
