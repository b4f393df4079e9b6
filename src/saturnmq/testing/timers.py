"""Delayed messages on a stage: a store on a simulated disk, virtual time, and nothing else that runs by itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from saturnmq.broker.timers import Timers
from saturnmq.disk.simulated import Event, Operation, SimulatedDisk, Survives
from saturnmq.kernel import properties as names
from saturnmq.kernel.config import StoreConfig
from saturnmq.kernel.host import Address, pack
from saturnmq.kernel.later import Later, hear
from saturnmq.kernel.message import Message, StoredMessage
from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.topic import TIMER_TOPIC
from saturnmq.store.results import Arrival
from saturnmq.store.store import Store
from saturnmq.testing.clock import InlineBackground, VirtualClock
from saturnmq.wire import record

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
_HOST = pack(Address("10.0.0.1", 4321))


class TimerStage:
    """One process. `again` is the next one on the same disk, `crashed` one on what a crash left of it."""

    def __init__(
        self,
        disk: SimulatedDisk | None = None,
        clock: VirtualClock | None = None,
        *,
        flush: str = "SYNC_FLUSH",
        watches_disk: bool = False,
        **settings: Any,
    ) -> None:
        """`watches_disk`: every few seconds, as a store does; without it days pass in no time."""
        self.clock, self.disk = clock or VirtualClock(), disk or SimulatedDisk()
        self._settings: dict[str, Any] = {"flush": flush, "watches_disk": watches_disk, **settings}
        self.config = StoreConfig(
            flush_disk_type=flush,  # type: ignore[arg-type]
            **{
                "mapped_file_size_commit_log": 1 << 18,
                "mapped_file_size_consume_queue": 20_000,
                "mapped_file_size_timer_log": 52 * 200 + 16,
                "max_hash_slot_num": 10,
                "max_index_num": 10,
                "message_index_enable": False,
                "clean_resource_interval": DAY_MS,
                **settings,
            },
        )
        background = InlineBackground(self.clock)
        self.store = Store(self.disk, self.config, self.clock, background, background)
        self.store.open()
        if not watches_disk:
            self.store.space.stop()
        #: what waited and what was delivered when the store was opened
        self.found_waiting = self.bodies(TIMER_TOPIC)
        self.found_delivered = self.bodies()
        self.timers = Timers(self.store, self.clock, random=lambda below: 500 % below, metrics=Metrics())
        self.timers.load()
        self.store.on_arrival = self._arrived
        self.store.lodgers["messages for a time"] = self.timers.pending_from
        #: what went wrong at the start
        self.error: BaseException | None = None
        hear(self.timers.open(), lambda _: self.timers.begin(), self._failed)
        #: in how many events of the disk each message was acknowledged
        self.acknowledged: dict[bytes, int] = {}
        self.due_ms: dict[bytes, int] = {}
        self.clock.run_soon()

    def _failed(self, error: BaseException) -> None:
        self.error = error

    def _arrived(self, arrival: Arrival) -> None:
        if arrival.topic == TIMER_TOPIC:
            self.timers.arrived(arrival.queue_offset)

    def send(self, body: bytes, due_ms: int, *, topic: str = "orders", **properties: str) -> int | None:
        """A message for a time; gives its slot."""
        message = Message(topic, 0, body, b"", self.clock.now_ms(), _HOST)
        pairs = {names.UNIQUE_KEY: body.decode(), names.TIMER_DELIVER_MS: str(due_ms), **properties}
        slot_ms = self.timers.postpone(message, pairs)
        message.properties = names.encode(pairs)
        (appended,) = self.store.append((message,))
        self.due_ms[body] = due_ms

        def acknowledged(_: None) -> None:
            self.acknowledged[body] = len(self.disk.events)

        hear(self.store.when_durable(appended.end, None), acknowledged, self._failed)
        return slot_ms

    def recall(self, body: bytes, slot_ms: int, *, topic: str = "orders", key: str = "") -> None:
        """Take back the message of that name."""
        self.send(b"recall " + body, slot_ms + 1, topic=topic, TIMER_DEL_UNIQKEY=key or body.decode())

    def stored(self, topic: str = "orders", queue_id: int = 0) -> list[StoredMessage]:
        reply = self.store.get(topic, queue_id, self.store.min_offset(topic, queue_id), 100_000, 1 << 30)
        if isinstance(reply, Later):
            found: list[Any] = []
            reply.then(found.append, found.append)
            self.clock.run_soon()
            (reply,) = found
        return [record.decode(data) for data in reply.records]

    def bodies(self, topic: str = "orders") -> list[bytes]:
        return [stored.body for stored in self.stored(topic)]

    def stop(self) -> None:
        stopped: list[None] = []
        hear(self.timers.stop(), stopped.append, self._failed)
        self.clock.run_soon()
        assert stopped, "it stops"
        assert self.error is None
        hear(self.store.stop(), lambda _: None, self._failed)
        self.clock.run_soon()
        self.store.close()

    def again(self, *, off_ms: int = 0, **settings: Any) -> TimerStage:
        self.stop()
        self.clock.advance(off_ms)
        return TimerStage(self.disk, self.clock, **{**self._settings, **settings})

    def crashed(self, events: int | None, survives: Survives, now_ms: int) -> TimerStage:
        return TimerStage(self.disk.crashed(events, survives), VirtualClock(now_ms), **self._settings)


def sectors(seed: int) -> Survives:
    """Of what was not synced: nothing, all of it, or sectors in any order."""
    chance = random.Random(seed)

    def survives(event: Event) -> Sequence[tuple[int, int]]:
        size = len(event.data)
        kind = chance.randrange(3)
        if kind == 0:
            return ()
        if kind == 1 or event.operation is not Operation.WRITE:
            return ((0, size),)
        edges = [0, *range(-event.offset % 512, size, 512), size]
        return [(a, b) for a, b in pairwise(edges) if chance.random() < 0.6]

    return survives


class History:
    """Which time it was at each event of a disk."""

    def __init__(self, stage: TimerStage) -> None:
        self._stage = stage
        self._times: list[tuple[int, int]] = []

    def play(self, until_ms: int, act: Callable[[int], None]) -> None:
        """Call `act(now_ms)` every 100 ms of virtual time until then."""
        clock = self._stage.clock
        while clock.now_ms() < until_ms:
            act(clock.now_ms())
            clock.advance(100)
            self._times.append((len(self._stage.disk.events), clock.now_ms()))

    def time_at(self, events: int) -> int:
        return next((now_ms for count, now_ms in self._times if count >= events), self._times[-1][1])
