"""What Apache's broker would make of our leases if it opened our directory next, without Apache.

Its timer delivers what is in the wheel and in the timer topic; its PopReviveService then reads the revive topic from
the offset of its group on (processor/PopReviveService.java).
"""

from __future__ import annotations

from typing import NamedTuple

from saturnmq.broker.offsets import OffsetTable
from saturnmq.broker.reviverecords import parse_ack, parse_ck
from saturnmq.broker.timers import Timers
from saturnmq.broker.topics import revive_topic
from saturnmq.disk.simulated import SimulatedDisk
from saturnmq.kernel import properties
from saturnmq.kernel.later import after, hear
from saturnmq.kernel.message import StoredMessage
from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.topic import REVIVE_GROUP, TIMER_TOPIC
from saturnmq.store.results import Arrival, Found
from saturnmq.store.store import Store
from saturnmq.testing.clock import InlineBackground, VirtualClock
from saturnmq.testing.pops import PopStage
from saturnmq.wire.record import decode

REVIVE_TOPIC = revive_topic("DefaultCluster")
#: longer than any lease of those who ask
_FOR_MS = 200_000


class Revived(NamedTuple):
    group: str
    topic: str
    queue_id: int
    offset: int
    #: when its lease ends
    until_ms: int


def in_flight(stage: PopStage) -> set[Revived]:
    """What consumers hold."""
    return {
        Revived(queue.group, queue.topic, queue.queue_id, offset, point.until_ms)
        for queue in stage.pops.leases.queues()
        for offset, point in queue.leases.items()
    }


def revived_by_apache(stage: PopStage, disk: SimulatedDisk, *, queues: int = 8) -> set[Revived]:
    """The messages that it gives out again soon, with what the stage has left on its disk. Fails when it would do so
    early."""
    clock = VirtualClock(stage.clock.now_ms())
    background = InlineBackground(clock)
    store = Store(disk, stage.store.config, clock, background, background)
    store.open()
    timers = Timers(store, clock, random=lambda below: 0, metrics=Metrics())

    def arrived(arrival: Arrival) -> None:
        if arrival.topic == TIMER_TOPIC:
            timers.arrived(arrival.queue_offset)

    store.on_arrival = arrived
    hear(after(timers.open(), lambda _: timers.begin()), lambda _: None, _raise)
    offsets = OffsetTable(disk, clock, lambda: None)
    offsets.load()
    clock.run_soon()
    clock.advance(_FOR_MS)
    revived: set[Revived] = set()
    for queue_id in range(queues):
        first = offsets.get(REVIVE_GROUP, REVIVE_TOPIC, queue_id) + 1
        found = store.get(REVIVE_TOPIC, queue_id, first, 100_000, 1 << 30)
        assert isinstance(found, Found), "in memory"
        revived |= _revived([decode(data) for data in found.records])
    return revived


def _revived(messages: list[StoredMessage]) -> set[Revived]:
    check_points: dict[tuple[object, ...], tuple[dict[int, Revived], int]] = {}
    for message in messages:
        pairs = properties.decode(message.properties)
        # the greatest of these is what Apache takes for the time
        assert int(pairs["TIMER_DELIVER_MS"]) <= message.stored_ms, "delivered early"
        if pairs["TAGS"] == "ck":
            body = parse_ck(message.body)
            name = body.topic, body.group, body.queue_id, body.start, body.pop_ms
            until_ms = body.pop_ms + body.invisible_ms
            leased = {
                offset: Revived(body.group, body.topic, body.queue_id, offset, until_ms) for offset in body.offsets()
            }
            check_points[name] = leased, until_ms
        elif pairs["TAGS"] in ("ack", "bAck"):
            end = parse_ack(message.body)
            found = check_points.get((end.topic, end.group, end.queue_id, end.start, end.pop_ms))
            if found is not None:
                leased, until_ms = found
                for offset in [end.offset] if end.offsets is None else end.offsets:
                    leased.pop(offset, None)
    return {one for leased, _ in check_points.values() for one in leased.values()}


def _raise(error: BaseException) -> None:
    raise error
