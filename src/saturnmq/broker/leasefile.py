"""A snapshot of the leases, so that a restart need not read all of their records: the file `config/popleases`.

It says what stood before one offset of the timer topic; a restart replays the records from there on. It is taken in
slices, while the leases go on, so parts of it are of later moments: those records are replayed on what they have made
already, which changes nothing. The offsets of the groups are not in it but written with it: consumerOffset.json on the
disk is never older than the snapshot, and what came after both is in the records. Nothing of either is beyond the
flushed log.

The file is frames, big endian, the last one without a payload:

    length 4 | CRC-32 of the payload 4 | payload (MessagePack)

The first payload is a `Begin`, the others are lists of `_Queue`s.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from itertools import chain
from struct import Struct
from zlib import crc32

import msgspec

from saturnmq.broker.attempts import Attempts
from saturnmq.broker.leases import CheckPoint, GroupQueue, Leases
from saturnmq.broker.offsets import OffsetTable
from saturnmq.broker.reviverecords import FifoBody, OrderInfo, ReviveRecords, compact
from saturnmq.kernel.clock import Clock
from saturnmq.kernel.handle import TopicKind
from saturnmq.kernel.later import Later, Reply
from saturnmq.kernel.topic import TIMER_TOPIC, pop_retry_topic
from saturnmq.store.store import Store

log = logging.getLogger(__name__)

PATH = "config/popleases"
_VERSION = 1
_FRAME = Struct(">II")
#: records that a restart may always have to read; else twice as many as messages are in flight
_MAX_BEHIND = 10_000
#: check points, and queues, of one frame: what is looked at in one turn of the loop
_FRAME_ITEMS = 500


class Begin(msgspec.Struct, array_like=True):
    version: int
    #: of the timer topic: records from there on are not in the snapshot
    offset: int
    #: by revive queue, the same
    revive_offsets: list[int]


class _Point(msgspec.Struct, array_like=True, gc=False):
    """A `CheckPoint`, with the offsets of the messages that are under its lease."""

    start: int
    pop_ms: int
    invisible_ms: int
    handle_ms: int
    claim_ms: int
    revive_queue_id: int
    revive_offset: int
    offsets: list[int]
    changed: bool
    acknowledged: bool

    @classmethod
    def of(cls, point: CheckPoint, offsets: list[int]) -> _Point:
        return cls(
            point.start, point.pop_ms, point.invisible_ms, point.handle_ms, point.claim_ms, point.revive_queue_id,
            point.revive_offset, offsets, point.changed, point.acknowledged,
        )  # fmt: skip

    def check_point(self, queue: GroupQueue, *, pending: int) -> CheckPoint:
        return CheckPoint(
            queue=queue,
            start=self.start,
            pop_ms=self.pop_ms,
            invisible_ms=self.invisible_ms,
            handle_ms=self.handle_ms,
            claim_ms=self.claim_ms,
            revive_queue_id=self.revive_queue_id,
            offsets=compact(self.offsets),
            pending=pending,
            changed=self.changed,
            acknowledged=self.acknowledged,
            in_wheel=True,
        )


class _Queue(msgspec.Struct, array_like=True):
    """Something of a `GroupQueue`."""

    group: str
    topic: str
    queue_id: int
    lease: _Point | None = None
    over: _Point | None = None
    fifo: FifoBody | None = None
    last_order: OrderInfo | None = None


class LeaseFile:
    """Owner: `broker.pop`. Says when a snapshot is due, takes it, and reads it."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        revive_topic: str,
        revive_queues: int,
        leases: Leases,
        offsets: OffsetTable,
        records: ReviveRecords,
    ) -> None:
        self._store, self._clock, self._topic, self._queues = store, clock, revive_topic, revive_queues
        self._leases, self._offsets, self._records = leases, offsets, records
        self._attempts = Attempts(clock, store.background)
        #: of the timer topic: what a restart reads from; -1: there is no snapshot
        self.offset = -1
        #: the next one is taken when the timer topic has come there
        self._next = 0
        #: who waits for the one that is being taken; None: none is
        self._waiting: list[Later[None]] | None = None

    # -------------------------------------------------------------------------------------------------- writing

    def reached(self, offset: int) -> None:
        """The timer topic has come there."""
        if offset >= self._next:
            self._next = self.offset + max(_MAX_BEHIND, 2 * self._leases.in_flight)
            if offset >= self._next and self._waiting is None:
                self._clock.call_soon(self._take)

    def _take(self) -> None:
        self.write()

    def write(self, *, always: bool = False) -> Reply[None]:
        """Take one, if there is anything new in the log, or `always`. Answers when that is over; it may have failed,
        then a restart reads more. While one is taken, that is it."""
        if self._waiting is None:
            offset = self._store.next_offset(TIMER_TOPIC, 0)
            if offset == self.offset and not always:
                return None
            self._waiting = []
            later = self._wait()
            revive_offsets = [self._store.next_offset(self._topic, queue_id) for queue_id in range(self._queues)]
            frames = self._frames(Begin(_VERSION, offset, revive_offsets))
            self._attempts.ask(self._offsets.write, lambda _: self._turn(offset, frames, []), self._failed)
            return later
        return self._wait()

    def _wait(self) -> Later[None]:
        assert self._waiting is not None
        later: Later[None] = Later()
        self._waiting.append(later)
        return later

    def _frames(self, begin: Begin) -> Iterator[bytes]:
        yield _frame(begin)
        rows: list[_Queue] = []
        for items, row in enumerate(self._rows(), 1):
            rows.append(row)
            if items % _FRAME_ITEMS == 0:
                yield _frame(rows)
                rows = []
        yield _frame(rows)
        yield _FRAME.pack(0, 0)

    def _rows(self) -> Iterator[_Queue]:
        """Each with one check point, or what a FIFO group has of it, or nothing."""
        for queue in list(self._leases.queues()):
            group, topic, queue_id = queue.group, queue.topic, queue.queue_id
            order, last = queue.order, queue.last_order
            yield _Queue(
                group, topic, queue_id,
                fifo=None if order is None else self._records.fifo(queue, order, queue.committed, queue.next_offset),
                last_order=None if last is None or not last.handles_ms else OrderInfo.of(last),
            )  # fmt: skip
            before = None
            for offset in list(queue.leases):
                point = queue.leases.get(offset)
                if point is not None and point is not before:
                    yield _Queue(group, topic, queue_id, lease=_Point.of(point, point.remaining()))
                before = point
            for offset in list(queue.over):
                if (point := queue.over.get(offset)) is not None:
                    yield _Queue(group, topic, queue_id, over=_Point.of(point, [offset]))

    def _turn(self, offset: int, frames: Iterator[bytes], taken: list[bytes]) -> None:
        for frame in frames:
            taken.append(frame)
            self._clock.call_soon(partial(self._turn, offset, frames, taken))
            return
        self._attempts.ask(
            self._store.flush,
            lambda _: self._attempts.run(lambda: self._replace(taken), lambda _: self._over(offset), self._failed),
            self._failed,
        )

    def _replace(self, frames: list[bytes]) -> None:
        if self._offsets.write_error is not None:
            raise self._offsets.write_error
        self._store.disk.replace_file(PATH, b"".join(frames))

    def _over(self, offset: int) -> None:
        self.offset = offset
        self._next = offset + _MAX_BEHIND
        self._answer()

    def _failed(self, error: BaseException) -> None:
        log.error("%s was not written; a restart reads more: %s", PATH, error)
        self._next = self._store.next_offset(TIMER_TOPIC, 0) + _MAX_BEHIND
        self._answer()

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting or [], None
        for later in waiting:
            later.resolve(None)

    # -------------------------------------------------------------------------------------------------- reading

    def load(self) -> Begin | None:
        """Put its leases into place, and say what is to be replayed; None: there is no snapshot that can be used."""
        disk = self._store.disk
        if not disk.exists(PATH):
            return None
        low, high = self._store.min_offset(TIMER_TOPIC, 0), self._store.max_offset(TIMER_TOPIC, 0)
        try:
            payloads = _payloads(disk.read_file(PATH))
            begin = msgspec.msgpack.decode(next(payloads), type=Begin)
            if begin.version != _VERSION or not low <= begin.offset <= high:
                raise ValueError(f"version {begin.version} of {begin.offset}, the timer topic has {low} to {high}")
            rows = [msgspec.msgpack.decode(payload, type=list[_Queue]) for payload in payloads]
        except (ValueError, StopIteration, OSError) as error:
            log.error("%s cannot be used, the leases are put together from the log: %s", PATH, error)
            return None
        for row in chain.from_iterable(rows):
            self._restore(row)
        self.offset, self._next = begin.offset, begin.offset + _MAX_BEHIND
        return begin

    def _restore(self, row: _Queue) -> None:
        queue = restored_queue(self._leases, self._offsets, row.group, row.topic, row.queue_id)
        if row.lease is not None:
            check_point = row.lease.check_point(queue, pending=len(row.lease.offsets))
            self._leases.grant(check_point)
            if row.lease.revive_offset >= 0:
                self._leases.put_in_revive(check_point, row.lease.revive_offset)
        if row.over is not None:
            self._leases.put_over(row.over.check_point(queue, pending=0))
        if row.fifo is not None and row.fifo.order is not None:
            queue.committed, queue.next_offset = row.fifo.committed, row.fifo.next_offset
            self._leases.put_order(queue, row.fifo.order.order())
        if row.last_order is not None:
            queue.last_order = row.last_order.order()


def restored_queue(leases: Leases, offsets: OffsetTable, group: str, topic: str, queue_id: int) -> GroupQueue:
    """The state of it when the broker starts: the group is where it committed that it is."""
    queue = leases.queue(group, topic, queue_id)
    if queue.next_offset < 0:
        queue.kind = _kind_of(group, topic)
        queue.next_offset = offsets.get(group, topic, queue_id)
    return queue


def _kind_of(group: str, topic: str) -> TopicKind:
    """Whether it is a pop retry topic of the group, and of which form."""
    for kind in (TopicKind.RETRY, TopicKind.RETRY_V2):
        if topic.startswith(pop_retry_topic(group, "", v2=kind is TopicKind.RETRY_V2)):
            return kind
    return TopicKind.NORMAL


def _frame(value: object) -> bytes:
    payload = msgspec.msgpack.encode(value)
    return _FRAME.pack(len(payload), crc32(payload)) + payload


def _payloads(data: bytes) -> Iterator[bytes]:
    """Raises ValueError."""
    at = 0
    while True:
        if len(data) < at + _FRAME.size:
            raise ValueError(f"it ends within a frame, at {at}")
        size, crc = _FRAME.unpack_from(data, at)
        at += _FRAME.size
        if not size:
            return
        payload = data[at : at + size]
        if len(payload) != size or crc32(payload) != crc:
            raise ValueError(f"the frame at {at} is damaged")
        yield payload
        at += size
