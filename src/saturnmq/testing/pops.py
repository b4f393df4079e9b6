"""Consumers that pop, on a stage: a store on a simulated disk, virtual time, crashes of both kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from saturnmq.broker.groups import GroupTable
from saturnmq.broker.longpoll import LongPolls
from saturnmq.broker.offsets import OffsetTable
from saturnmq.broker.pop import Pops
from saturnmq.broker.timers import Timers
from saturnmq.broker.topics import TopicTable
from saturnmq.disk.simulated import SimulatedDisk, everything_survives, nothing_survives
from saturnmq.kernel import properties
from saturnmq.kernel.config import BrokerConfig, StoreConfig
from saturnmq.kernel.errors import SaturnError
from saturnmq.kernel.later import Later, Reply, after, chain
from saturnmq.kernel.message import Message, StoredMessage
from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.ports import Delivery, PopRequest, PopResult
from saturnmq.kernel.subscription import TAG, subscribe
from saturnmq.kernel.topic import TIMER_TOPIC, TopicConfig
from saturnmq.store.results import Arrival
from saturnmq.store.store import Store
from saturnmq.testing.clock import InlineBackground, VirtualClock
from saturnmq.wire import record

T = TypeVar("T")


#: from a power cut to the next start, at least
BOOT_MS = 1_000


class Waiting(Exception):
    """The answer is not there yet."""


class Answer:
    """What a call answers, now or later. Errors of the protocol are values too."""

    def __init__(self, call: Callable[[], Reply[Any]]) -> None:
        self._values: list[Any] = []
        self.later: Later[Any] | None = None
        try:
            reply = call()
        except SaturnError as error:
            reply = error
        if isinstance(reply, Later):
            self.later = reply
            reply.then(self._values.append, self._values.append)
        else:
            self._values.append(reply)

    @property
    def waits(self) -> bool:
        return not self._values

    @property
    def value(self) -> Any:
        """Raises Waiting, and the error that was the answer."""
        if not self._values:
            raise Waiting
        if isinstance(self._values[0], BaseException):
            raise self._values[0]
        return self._values[0]


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A message in a consumer's hands. `name` is its body."""

    name: str
    delivery: Delivery
    stored: StoredMessage
    reconsume_times: int

    @property
    def properties(self) -> dict[str, str]:
        return properties.decode(self.stored.properties)

    def changed(self, *, pop_ms: int, invisible_ms: int, revive_queue_id: int) -> Held:
        delivery = msgspec.structs.replace(
            self.delivery, pop_ms=pop_ms, invisible_ms=invisible_ms, revive_queue_id=revive_queue_id
        )
        return msgspec.structs.replace(self, delivery=delivery)


class PopStage:
    """One broker's pops. `restart`, `kill` and `power_cut` give the stage after it; this one is over then."""

    def __init__(
        self,
        disk: SimulatedDisk | None = None,
        clock: VirtualClock | None = None,
        *,
        queues: Mapping[str, int] | None = None,
        settings: Mapping[str, Any] | None = None,
        store_settings: Mapping[str, Any] | None = None,
        flush: str = "SYNC_FLUSH",
    ) -> None:
        self.clock, self.disk = clock or VirtualClock(), disk or SimulatedDisk()
        self._again: dict[str, Any] = {
            "queues": queues, "settings": settings, "store_settings": store_settings, "flush": flush,
        }  # fmt: skip
        background = InlineBackground(self.clock)
        config = BrokerConfig(**(settings or {}))
        small = {
            "mapped_file_size_commit_log": 1 << 20,
            "mapped_file_size_consume_queue": 20_000,
            "max_hash_slot_num": 500,
            "max_index_num": 2000,
            "mapped_file_size_timer_log": 52 * 200 + 16,
        }
        store_config = StoreConfig(flush_disk_type=flush, **{**small, **(store_settings or {})})  # type: ignore[arg-type]
        self.store = Store(self.disk, store_config, self.clock, background, background)
        self.store.open()
        self.topics = TopicTable(config, self.disk, self.clock)
        self.groups = GroupTable(config, self.disk, self.clock)
        self.offsets = OffsetTable(self.disk, self.clock, self.store.flush)
        for table in (self.topics, self.groups, self.offsets):
            table.load()
        self.polls = LongPolls(self.clock, per_group=config.pop_polling_size, in_all=config.max_pop_polling_size)
        self.store.on_arrival = self._arrived
        self.metrics = Metrics()
        self.timers = Timers(self.store, self.clock, random=lambda below: 0, metrics=self.metrics)
        self.timers.load()
        #: what the next draws give
        self.draws: list[int] = []
        self.pops = Pops(
            config,
            self.store,
            self.clock,
            self.topics,
            self.groups,
            self.offsets,
            self.polls,
            self.timers,
            self._random,
            self.metrics,
        )
        self.store.lodgers["messages for a time"] = self.timers.pending_from
        self.store.lodgers["messages in flight"] = self.pops.pending_from
        self.started = Answer(self._start)
        for topic, count in (queues or {"orders": 1}).items():
            if self.topics.get(topic) is None:
                self.topics.put(TopicConfig(topic_name=topic, read_queue_nums=count, write_queue_nums=count))
        self.clock.run_soon()

    def _start(self) -> Reply[None]:
        started = chain(self.timers.open(), lambda _: self.pops.start())
        return after(started, lambda _: self.timers.begin())

    def _arrived(self, arrival: Arrival) -> None:
        self.polls.arrived(arrival)
        if arrival.topic == TIMER_TOPIC:
            self.timers.arrived(arrival.queue_offset)

    def _random(self, below: int) -> int:
        return self.draws.pop(0) % below if self.draws else below - 1

    # ------------------------------------------------------------------------------------------------- verbs

    def send(self, *names: str, topic: str = "orders", queue_id: int = 0, tags: str = "") -> None:
        pairs = {"UNIQ_KEY": "", "colour": "blue"} | ({properties.TAGS: tags} if tags else {})
        self.store.append(
            [
                Message(
                    topic, queue_id, name.encode(), properties.encode({**pairs, "UNIQ_KEY": name}), 1_600_000_000_000,
                    bytes([10, 0, 0, 1, 0, 0, 0, 9]),
                )
                for name in names
            ]
        )  # fmt: skip
        self.clock.run_soon()

    def request(
        self, group: str = "g", topic: str = "orders", expression: str = "*", kind: str = TAG, **fields: Any
    ) -> PopRequest:
        defaults = {"queue_id": -1, "max_messages": 32, "invisible_ms": 60_000, "wait_ms": 0, "from_latest": False}
        subscription = subscribe(topic, expression, kind)
        return PopRequest(group=group, topic=topic, subscription=subscription, **{**defaults, **fields})

    def ask(self, group: str = "g", topic: str = "orders", expression: str = "*", **fields: Any) -> Answer:
        """A pop that may wait."""
        request = self.request(group, topic, expression, **fields)
        answer = Answer(lambda: self.pops.pop(request))
        self.clock.run_soon()
        return answer

    def pop(self, group: str = "g", topic: str = "orders", expression: str = "*", **fields: Any) -> list[Held]:
        """A pop that is answered at once."""
        request = self.request(group, topic, expression, **fields)
        answer = Answer(lambda: self.pops.pop(request))
        self.clock.run_soon()
        return self.held(request, answer.value)

    def held(self, request: PopRequest, result: PopResult) -> list[Held]:
        return [
            Held(
                name=record.decode(popped.record).body.decode(),
                stored=record.decode(popped.record, check_crc=True),
                reconsume_times=popped.reconsume_times,
                delivery=Delivery(
                    group=request.group,
                    topic=request.topic,
                    topic_kind=popped.topic_kind,
                    queue_id=popped.queue_id,
                    queue_offset=popped.queue_offset,
                    start_offset=popped.start_offset,
                    pop_ms=result.pop_ms,
                    invisible_ms=result.invisible_ms,
                    revive_queue_id=result.revive_queue_id,
                ),
            )
            for popped in result.messages
        ]

    def ack(self, held: Held) -> None:
        self._do(lambda: self.pops.ack(held.delivery))

    def change(self, held: Held, invisible_ms: int) -> Held:
        """The message with its new handle."""
        changed = self._do(lambda: self.pops.change_invisible(held.delivery, invisible_ms))
        return held.changed(
            pop_ms=changed.pop_ms, invisible_ms=changed.invisible_ms, revive_queue_id=changed.revive_queue_id
        )

    def renew(self, held: Held, invisible_ms: int) -> None:
        self._do(lambda: self.pops.renew(held.delivery, invisible_ms))

    def _do(self, call: Callable[[], Reply[Any]]) -> Any:
        answer = Answer(call)
        self.clock.run_soon()
        return answer.value

    def advance(self, milliseconds: int) -> None:
        self.clock.advance(milliseconds)

    # --------------------------------------------------------------------------------------------- the end

    def restart(self) -> PopStage:
        """Stopped in order, and started again."""
        self.stop()
        return self.begin_again()

    def begin_again(self) -> PopStage:
        """After `stop`."""
        return PopStage(self.disk, self.clock, **self._again)

    def stop(self) -> None:
        """In order."""
        stopped = Answer(self.pops.stop)
        self.clock.run_soon()
        assert not stopped.waits
        self.topics.write()
        self.groups.write()
        self.offsets.write()
        stopped = Answer(self.timers.stop)
        self.clock.run_soon()
        assert not stopped.waits
        self.store.close()

    def kill(self) -> PopStage:
        """The process is gone, what it wrote is in the page cache."""
        return self._crash(self.disk.crashed(survives=everything_survives), 1)

    def power_cut(self) -> PopStage:
        """Only what was synced is there."""
        return self._crash(self.disk.crashed(survives=nothing_survives), BOOT_MS)

    def _crash(self, disk: SimulatedDisk, off_ms: int) -> PopStage:
        return PopStage(disk, VirtualClock(self.clock.now_ms() + off_ms), **self._again)
