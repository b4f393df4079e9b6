"""The leases when the broker starts: what they were in a snapshot, and what the log says of the time since then.

Records stand in the timer topic, and in the revive topic: there, copies that the timer wheel of some broker delivered,
and what Apache's broker, or ours before it used the timer topic, wrote directly. Apache ends leases without a record.
What it has looked at and is done with, the offset of the revive group says: a check point up to there has ended.

With a snapshot all that came since is replayed in the order in which it was written; a copy then says nothing that its
original has not said, but where it stands. Without one (a directory of Apache's, of an older SaturnMQ; a snapshot that
is damaged) the check points are those in the wheel, those in the revive topic behind that offset and those in the timer
topic that are not in the wheel yet, less what has ended of them. They do not stand in the order in which the messages
were given out: one that the wheel could not reach is written again on the way.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from saturnmq.broker.leasefile import Begin, LeaseFile, restored_queue
from saturnmq.broker.leases import CheckPoint, Leases
from saturnmq.broker.offsets import OffsetTable
from saturnmq.broker.orderfile import Kept, OrderFile
from saturnmq.broker.reviverecords import (
    ACK,
    BATCH_ACK,
    CK,
    FIFO,
    GONE,
    AckBody,
    CkBody,
    FifoBody,
    GoneBody,
    Name,
    compact,
    parse_ack,
    parse_ck,
    parse_fifo,
    parse_gone,
)
from saturnmq.broker.timers import Timers
from saturnmq.kernel import properties as names
from saturnmq.kernel.later import Later, Reply, after, chain
from saturnmq.kernel.message import StoredMessage
from saturnmq.kernel.subscription import tag_hash
from saturnmq.kernel.topic import REVIVE_GROUP, TIMER_TOPIC
from saturnmq.store.results import Found
from saturnmq.store.store import Store
from saturnmq.wire.record import decode

log = logging.getLogger(__name__)

#: read at once
_RECORDS = 1024
_BYTES = 1 << 20
_CODES = frozenset(map(tag_hash, (CK, ACK, BATCH_ACK, FIFO, GONE)))


class LeaseReplay:
    """One start of the broker."""

    def __init__(
        self,
        store: Store,
        revive_topic: str,
        revive_queues: int,
        leases: Leases,
        offsets: OffsetTable,
        file: LeaseFile,
        orders: OrderFile,
        timers: Timers,
        now_ms: int,
    ) -> None:
        """The timers are open and have not begun."""
        self._store, self._topic, self._leases, self._offsets = store, revive_topic, leases, offsets
        self._file, self._orders, self._timers, self._now_ms = file, orders, timers, now_ms
        #: up to these offsets the check points of each revive queue have ended
        self._ended = [offsets.get(REVIVE_GROUP, revive_topic, queue_id) for queue_id in range(revive_queues)]
        #: without a snapshot nothing is applied until all of it is there: check points with revive queue and offset in
        #: it, and what ended some of their messages
        self._collects = False
        self._found: list[tuple[CkBody, int, int]] = []
        self._ends: list[AckBody] = []
        self.count = 0
        #: check points in the revive topic
        self.in_revive: set[Name] = set()
        #: something is known from another broker's file alone
        self.took_over = False

    def run(self) -> Reply[None]:
        """Raises or fails with ServiceUnavailable, OSError."""
        begin = self._file.load()
        if begin is not None:
            return after(self._follow(begin), lambda _: self._finish())
        self._collects = True
        wheel = chain(self._timers.places_of(self._topic), self._take_of_wheel)
        rest = chain(wheel, lambda _: self._read([ended + 1 for ended in self._ended], self._timers.sorted_to))
        return after(rest, lambda _: self._apply_collected())

    def _follow(self, begin: Begin) -> Reply[None]:
        first = [*begin.revive_offsets, *(ended + 1 for ended in self._ended[len(begin.revive_offsets) :])]
        for queue_id, ended in enumerate(self._ended):
            while (offset := self._leases.first_in_revive(queue_id)) is not None and offset <= ended:
                self._end(self._leases.in_revive(queue_id, offset))
        return self._read(first[: len(self._ended)], begin.offset)

    def _apply_collected(self) -> None:
        for found in sorted(self._found, key=lambda found: found[0].pop_ms):
            self._check_point(*found)
        for body in self._ends:
            self._acknowledged(body)
        self._finish()

    def _read(self, revive_offsets: list[int], timer_offset: int) -> Reply[None]:
        """Replay queues from these offsets on."""
        queues = [_Queue(self._topic, queue_id, self._of_revive) for queue_id in range(len(revive_offsets))]
        queues.append(_Queue(TIMER_TOPIC, 0, self._of_timer))
        return _InOrder(self._store, queues, [*revive_offsets, timer_offset]).read()

    def _take_of_wheel(self, places: list[tuple[int, int]]) -> Reply[None]:
        while places:
            some, places = places[:_RECORDS], places[_RECORDS:]
            records = self._store.records(some)
            if isinstance(records, Later):
                return chain(records, partial(self._took_of_wheel, places))
            self._of_wheel(records)
        return None

    def _took_of_wheel(self, places: list[tuple[int, int]], records: list[bytes | None]) -> Reply[None]:
        self._of_wheel(records)
        return self._take_of_wheel(places)

    def _of_wheel(self, records: Sequence[bytes | None]) -> None:
        for data in records:
            if data is not None:
                self._of_timer(decode(data))

    # ---------------------------------------------------------------------------------------------- one record

    def _of_timer(self, message: StoredMessage) -> None:
        pairs = names.decode(message.properties)
        # written again for another place in the wheel, a record says nothing new in a replay
        if pairs.get(names.REAL_TOPIC) == self._topic and (self._collects or names.TIMER_ROLL_TIMES not in pairs):
            self._apply(message, pairs.get(names.TAGS), int(pairs[names.REAL_QUEUE_ID]), -1)

    def _of_revive(self, message: StoredMessage) -> None:
        pairs = names.decode(message.properties)
        if self._collects or names.TIMER_OUT_MS not in pairs:
            self._apply(message, pairs.get(names.TAGS), message.queue_id, message.queue_offset)
        elif pairs.get(names.TAGS) == CK:
            self._found_copy(message)

    def _apply(self, message: StoredMessage, tag: str | None, revive_queue_id: int, revive_offset: int) -> None:
        try:
            if tag == CK:
                place = parse_ck(message.body), revive_queue_id, revive_offset
                if revive_offset >= 0:
                    self.in_revive.add(place[0].name)
                if self._collects:
                    self._found.append(place)
                else:
                    self._check_point(*place)
            elif tag in (ACK, BATCH_ACK):
                end = parse_ack(message.body)
                if self._collects:
                    self._ends.append(end)
                else:
                    self._acknowledged(end)
            elif tag == FIFO:
                self._order(parse_fifo(message.body))
            elif tag == GONE:
                self._gone(parse_gone(message.body))
        except msgspec.MsgspecError as error:
            log.error("%s %d@%d is skipped: %s", message.topic, message.queue_id, message.queue_offset, error)
        self.count += 1

    def _check_point(self, body: CkBody, revive_queue_id: int, revive_offset: int) -> None:
        offsets = body.offsets()
        if not offsets:
            return
        queue = restored_queue(self._leases, self._offsets, body.group, body.topic, body.queue_id)
        end = offsets[-1] + 1
        if queue.next_offset < 0 or (body.handle_ms is None and body.start <= queue.next_offset < end):
            # of a pop, and not from before the group was reset
            queue.next_offset = end
        until_ms = body.pop_ms + body.invisible_ms
        check_point = CheckPoint(
            queue=queue,
            start=body.start,
            pop_ms=body.pop_ms,
            invisible_ms=body.invisible_ms,
            handle_ms=body.pop_ms if body.handle_ms is None else body.handle_ms,
            claim_ms=until_ms if body.claim_ms is None else body.claim_ms,
            revive_queue_id=revive_queue_id,
            offsets=compact(offsets),
            pending=len(offsets),
            changed=bool(body.changed),
            in_wheel=True,
        )
        self._leases.grant(check_point)
        if revive_offset >= 0:
            self._place(check_point, revive_offset)

    def _found_copy(self, message: StoredMessage) -> None:
        try:
            body = parse_ck(message.body)
        except msgspec.MsgspecError:
            return  # as the original
        self.in_revive.add(body.name)
        queue = self._leases.find(body.group, body.topic, body.queue_id)
        if queue is not None:
            check_point = self._leases.held(queue, body.offsets(), body.start, body.pop_ms)
            if check_point is not None:
                self._place(check_point, message.queue_offset)

    def _place(self, check_point: CheckPoint, revive_offset: int) -> None:
        self._leases.put_in_revive(check_point, revive_offset)
        if revive_offset <= self._ended[check_point.revive_queue_id]:
            self._end(check_point)

    def _end(self, check_point: CheckPoint) -> None:
        """Somebody else has ended it."""
        for offset in check_point.remaining():
            self._leases.close(check_point, offset, self._now_ms, acknowledged=False)

    def _acknowledged(self, body: AckBody) -> None:
        queue = self._leases.find(body.group, body.topic, body.queue_id)
        if queue is None:
            return
        for offset in [body.offset] if body.offsets is None else body.offsets:
            check_point = queue.leases.get(offset)
            if check_point is not None and (check_point.start, check_point.pop_ms) == (body.start, body.pop_ms):
                self._leases.close(check_point, offset, self._now_ms, acknowledged=not body.revived)

    def _gone(self, body: GoneBody) -> None:
        topics, groups = body.topics, body.groups
        self._found = [one for one in self._found if one[0].topic not in topics and one[0].group not in groups]
        for topic in topics:
            self._leases.forget_topic(topic)
        for group in groups:
            self._leases.forget_group(group)

    def _order(self, body: FifoBody) -> None:
        queue = restored_queue(self._leases, self._offsets, body.group, body.topic, body.queue_id)
        queue.committed, queue.next_offset = body.committed, body.next_offset
        order = None if body.order is None or not body.order.offsets else body.order.order()
        self._leases.put_order(queue, order)

    def _take_over(self, kept: Kept) -> None:
        """Apache's broker has gone on with the queue since, or it found it as ours left it and did not."""
        queue = restored_queue(self._leases, self._offsets, kept.group, kept.topic, kept.queue_id)
        before, end = queue.order, kept.info.order().offsets[-1] + 1
        committed = self._offsets.get(queue.group, queue.topic, queue.queue_id)
        if end <= committed if before is None else kept.info.pop_ms < before.pop_ms:
            return
        self.took_over = True
        done = frozenset[int]()
        if before is not None and kept.info.pop_ms == before.pop_ms:
            first = kept.info.order().offsets
            done = before.acknowledged | {offset for offset in first if offset < before.offsets[0]}
        order = kept.order(done)
        self._leases.put_order(queue, order)
        queue.next_offset = end if order is not None else max(end, committed)
        queue.committed = queue.next_offset if order is None else order.offsets[0]

    def _finish(self) -> None:
        """Tell the offsets how far the groups have come."""
        for kept in self._orders.read_foreign():
            self._take_over(kept)
        for queue in self._leases.queues():
            queue.recorded = queue.next_offset
            if queue.order is None:
                queue.committed = queue.next_offset
            self._offsets.commit(queue.group, queue.topic, queue.queue_id, queue.committed)
        if self.count or self._leases.in_flight:
            log.info("%d records of leases read, %d messages are in flight", self.count, self._leases.in_flight)


class _Queue(NamedTuple):
    topic: str
    queue_id: int
    apply: Callable[[StoredMessage], None]


class _InOrder:
    """The records of some queues in the order in which they were written: that of their log positions."""

    def __init__(self, store: Store, queues: list[_Queue], first: list[int]) -> None:
        self._store, self._queues, self._next = store, queues, first
        #: by queue: records read but not applied, last first
        self._read: list[list[tuple[int, bytes]]] = [[] for _ in queues]
        #: (log position, queue) of the first record of each
        self._heads: list[tuple[int, int]] = []
        self._empty = list(range(len(queues)))

    def read(self) -> Reply[None]:
        """Apply them all."""
        while True:
            while self._empty:
                at = self._empty.pop()
                queue = self._queues[at]
                found = self._store.get(queue.topic, queue.queue_id, self._next[at], _RECORDS, _BYTES, _CODES)
                if isinstance(found, Later):
                    return chain(found, partial(self._resume, at))
                self._add(at, found)
            if not self._heads:
                return None
            _, at = heapq.heappop(self._heads)
            rest = self._read[at]
            self._queues[at].apply(decode(rest.pop()[1]))
            if rest:
                heapq.heappush(self._heads, (rest[-1][0], at))
            else:
                self._empty.append(at)

    def _resume(self, at: int, found: Found) -> Reply[None]:
        self._add(at, found)
        return self.read()

    def _add(self, at: int, found: Found) -> None:
        moved = self._next[at] != found.next_offset
        self._next[at] = found.next_offset
        if found.records:
            self._read[at] = list(zip(found.positions, found.records, strict=True))[::-1]
            heapq.heappush(self._heads, (found.positions[0], at))
        elif moved:  # none of them is a record, or the first ones are no longer there
            self._empty.append(at)
