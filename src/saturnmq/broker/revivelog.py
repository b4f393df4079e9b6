"""Leases in the log: what is written to the revive topic, and how a restart reads it.

Messages of `rmq_sys_REVIVE_LOG_<cluster>`, bodies in the JSON of Apache's classes (store/pop/PopCheckPoint.java,
AckMsg.java, BatchAckMsg.java), told apart by their tag; Apache skips fields and tags that it does not know:

    ck    {so, pt, it, bm, n, q, t, c, ro, d, bn}    a check point: messages so + d[i] left at pt for it milliseconds
    ack   {ao, so, c, t, q, pt, bn}                  message ao of check point (t, c, q, so, pt) is done
    bAck  {…, ao: -1, aol: […]}                      several of them
    fifo  {t, c, q, so, x, bn, order}                ours: a FIFO group has a queue behind it up to so, has read up
                                                     to x, and holds `order` (ConsumerOrderInfoManager.OrderInfo)
    gone  {t: […], bn}                               ours, one in each revive queue: the topics were deleted; what
                                                     came before is of messages that are no longer there

and in them, ours:

    hp    in a ck that is not of a pop: the pop time in the handle that is good for it (of a renewal: the older one)
    ce    in such a ck: when the last of all handles of the delivery says that it expires
    ch    in such a ck: 1 of a change or renewal, 0 of a check point of a pop that is written again
    rv    in a bAck: not acknowledged, but copied to the retry topic

An acknowledgement is in the revive queue of its check point, after it.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import msgspec

from saturnmq.broker.leases import CheckPoint, GroupQueue, Leases
from saturnmq.broker.offsets import OffsetTable
from saturnmq.broker.order import Order
from saturnmq.kernel import properties
from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.errors import SaturnError, ServiceUnavailable
from saturnmq.kernel.handle import TopicKind
from saturnmq.kernel.later import Later, Reply, after, chain, gather
from saturnmq.kernel.message import Appended, Message, StoredMessage
from saturnmq.kernel.topic import REVIVE_GROUP, pop_retry_topic
from saturnmq.store.results import Found
from saturnmq.store.store import Store
from saturnmq.wire.record import decode

log = logging.getLogger(__name__)

CK, ACK, BATCH_ACK, FIFO, GONE = "ck", "ack", "bAck", "fifo", "gone"
#: a check point is due this much earlier in Apache's revive topic than its acknowledgements, milliseconds
_ACK_INTERVAL_MS = 1000
#: the revive queue id in handles of FIFO groups, which have no check points (common/KeyBuilder.java)
ORDER_REVIVE_QUEUE = 999
#: milliseconds from an append to the next look at what a restart needs
_ADVANCE_MS = 5_000
#: records of one revive queue, besides those of live leases, that a restart may always have to read
_MAX_BEHIND = 10_000
#: records that are written again in one turn
_COMPACT_RECORDS = 1_000
#: read at once by a restart
_REPLAY_RECORDS = 1024
_REPLAY_BYTES = 1 << 20


class CkBody(msgspec.Struct, gc=False, rename={
    "start": "so", "pop_ms": "pt", "invisible_ms": "it", "bit_map": "bm", "count": "n", "queue_id": "q", "topic": "t",
    "group": "c", "revive_offset": "ro", "differences": "d", "broker_name": "bn", "handle_ms": "hp", "claim_ms": "ce",
    "changed": "ch",
}):  # fmt: skip
    start: int
    pop_ms: int
    invisible_ms: int
    topic: str
    group: str
    queue_id: int
    count: int
    bit_map: int = 0
    revive_offset: int = 0
    differences: list[int] | None = None
    broker_name: str | None = None
    handle_ms: int | None = None
    claim_ms: int | None = None
    changed: int = 0

    def offsets(self) -> list[int]:
        """Of the messages that its bit map does not call done."""
        differences = self.differences or range(self.count)
        return [self.start + d for bit, d in enumerate(differences) if not self.bit_map >> bit & 1]


class AckBody(msgspec.Struct, gc=False, rename={
    "offset": "ao", "offsets": "aol", "start": "so", "pop_ms": "pt", "queue_id": "q", "topic": "t", "group": "c",
    "broker_name": "bn", "revived": "rv",
}):  # fmt: skip
    start: int
    pop_ms: int
    topic: str
    group: str
    queue_id: int
    offset: int
    offsets: list[int] | None = None
    broker_name: str | None = None
    revived: int = 0


class OrderInfo(msgspec.Struct, omit_defaults=True, rename={
    "pop_ms": "popTime", "invisible_ms": "i", "offsets": "o", "ends_ms": "ot", "counts": "oc", "last_ms": "l",
    "done": "cm", "attempt_id": "a", "handles_ms": "h",
}):  # fmt: skip
    """A FIFO batch as Apache writes it. `offsets`: the first one, then distances from it; `done`: bits of them."""

    pop_ms: int
    offsets: list[int]
    invisible_ms: int | None = None
    ends_ms: dict[int, int] | None = None
    counts: dict[int, int] | None = None
    last_ms: int = 0
    done: int = 0
    attempt_id: str | None = None
    #: ours, `Order.handles_ms`
    handles_ms: dict[int, int] | None = None

    @classmethod
    def of(cls, order: Order) -> OrderInfo:
        first = order.offsets[0]
        return cls(
            pop_ms=order.pop_ms,
            offsets=[first, *(offset - first for offset in order.offsets[1:])],
            invisible_ms=order.invisible_ms,
            ends_ms=order.ends_ms or None,
            counts=order.counts or None,
            last_ms=order.pop_ms,
            done=sum(1 << bit for bit, offset in enumerate(order.offsets) if offset in order.acknowledged),
            attempt_id=order.attempt_id,
            handles_ms=order.handles_ms or None,
        )

    def order(self) -> Order:
        first = self.offsets[0]
        offsets = [first, *(first + distance for distance in self.offsets[1:])]
        return Order(
            attempt_id=self.attempt_id,
            pop_ms=self.pop_ms,
            invisible_ms=self.invisible_ms or 0,
            offsets=offsets,
            counts=self.counts or {},
            acknowledged=frozenset(offset for bit, offset in enumerate(offsets) if self.done >> bit & 1),
            ends_ms=self.ends_ms or {},
            handles_ms=self.handles_ms or {},
        )


class FifoBody(msgspec.Struct, omit_defaults=True, rename={
    "topic": "t", "group": "c", "queue_id": "q", "committed": "so", "next_offset": "x", "broker_name": "bn",
}):  # fmt: skip
    topic: str
    group: str
    queue_id: int
    committed: int
    next_offset: int
    order: OrderInfo | None = None
    broker_name: str | None = None


class GoneBody(msgspec.Struct, rename={"topics": "t", "broker_name": "bn"}):
    topics: list[str]
    broker_name: str | None = None


_ck = msgspec.json.Decoder(CkBody)
_ack = msgspec.json.Decoder(AckBody)
_fifo = msgspec.json.Decoder(FifoBody)
_gone = msgspec.json.Decoder(GoneBody)


class ReviveRecords:
    """Makes the messages of the revive topic. JSON by hand: topics and groups have no character to escape."""

    def __init__(self, store: Store, topic: str, broker_name: str) -> None:
        self._store = store
        self._topic = topic
        self._broker = broker_name
        self._broker_json = msgspec.json.encode(broker_name).decode()

    def check_point(
        self, check_point: CheckPoint, offsets: Sequence[int], now_ms: int, *, again: bool = False
    ) -> Message:
        """The record of `offsets` of it. `again`: it is the second one, which tells nothing of how far the group is."""
        queue, start, pop_ms = check_point.queue, check_point.start, check_point.pop_ms
        differences = ",".join([str(offset - start) for offset in offsets])
        ours = ""
        if again or check_point.changed:
            ours = f',"hp":{check_point.handle_ms},"ce":{check_point.claim_ms},"ch":{check_point.changed:d}'
        return self._message(
            CK,
            check_point.revive_queue_id,
            f'{{"bm":0,"bn":{self._broker_json},"c":"{queue.group}","d":[{differences}],'
            f'"it":{check_point.invisible_ms},"n":{len(offsets)},"pt":{pop_ms},"q":{queue.queue_id},"ro":0,'
            f'"so":{start},"t":"{queue.topic}"{ours}}}',
            f"{queue.topic}@{queue.queue_id}@{start}@{queue.group}@{pop_ms}@{self._broker}@ck",
            check_point.until_ms - _ACK_INTERVAL_MS,
            now_ms,
        )

    def acknowledgement(self, check_point: CheckPoint, offset: int, now_ms: int) -> Message:
        queue, pop_ms = check_point.queue, check_point.pop_ms
        return self._message(
            ACK,
            check_point.revive_queue_id,
            f'{{"ao":{offset},"bn":{self._broker_json},"c":"{queue.group}","pt":{pop_ms},"q":{queue.queue_id},'
            f'"so":{check_point.start},"t":"{queue.topic}"}}',
            f"{queue.topic}@{queue.queue_id}@{offset}@{queue.group}@{pop_ms}@{self._broker}@ack",
            pop_ms + check_point.invisible_ms,
            now_ms,
        )

    def revived(self, check_point: CheckPoint, offsets: Sequence[int], now_ms: int) -> Message:
        """The messages went to the retry topic: for Apache as good as acknowledged."""
        queue, pop_ms = check_point.queue, check_point.pop_ms
        return self._message(
            BATCH_ACK,
            check_point.revive_queue_id,
            f'{{"ao":-1,"aol":{list(offsets)},"bn":{self._broker_json},"c":"{queue.group}","pt":{pop_ms},'
            f'"q":{queue.queue_id},"rv":1,"so":{check_point.start},"t":"{queue.topic}"}}',
            f"{queue.topic}@{queue.queue_id}@-1@{queue.group}@{pop_ms}@{self._broker}@ack",
            pop_ms + check_point.invisible_ms,
            now_ms,
        )

    def order(
        self,
        queue: GroupQueue,
        order: Order | None,
        committed: int,
        next_offset: int,
        revive_queue_id: int,
        now_ms: int,
    ) -> Message:
        body = FifoBody(
            queue.topic,
            queue.group,
            queue.queue_id,
            committed,
            next_offset,
            None if order is None else OrderInfo.of(order),
            self._broker,
        )
        key = f"{queue.topic}@{queue.queue_id}@{committed}@{queue.group}@{now_ms}@{self._broker}@fifo"
        return self._message(FIFO, revive_queue_id, msgspec.json.encode(body).decode(), key, now_ms, now_ms)

    def gone(self, topics: list[str], revive_queue_id: int, now_ms: int) -> Message:
        """The topics are deleted."""
        body = msgspec.json.encode(GoneBody(topics, self._broker)).decode()
        return self._message(GONE, revive_queue_id, body, f"{topics[0]}@{now_ms}@{self._broker}@gone", now_ms, now_ms)

    def _message(self, tag: str, revive_queue_id: int, body: str, key: str, deliver_ms: int, now_ms: int) -> Message:
        properties = f"TIMER_DELIVER_MS\x01{deliver_ms}\x02UNIQ_KEY\x01{key}\x02TAGS\x01{tag}\x02"
        return Message(self._topic, revive_queue_id, body.encode(), properties.encode(), now_ms, self._store.store_host)


class ReviveLog:
    """The revive topic: appends to it, replays it, and says how much of it a restart still needs.

    That is the committed offset of CID_RMQ_SYS_REVIVE_GROUP: the last record, as Apache counts, that is not needed.
    It moves a while after something was appended. A lease that holds it back for very many records is written again
    at the end, so that what a restart reads is bounded by what is in flight.
    """

    def __init__(
        self,
        store: Store,
        topic: str,
        queues: int,
        leases: Leases,
        offsets: OffsetTable,
        records: ReviveRecords,
        clock: Clock,
    ) -> None:
        self._store, self._topic, self._leases, self._offsets = store, topic, leases, offsets
        self._records, self._clock = records, clock
        #: next offset of each revive queue
        self._ends = [0] * queues
        self._timer: Timer | None = None
        #: replayed, and not closed
        self._ready = False

    def check_ready(self) -> None:
        """Raises ServiceUnavailable while the leases are not known."""
        if not self._ready:
            raise ServiceUnavailable("the broker reads its leases after a restart, or stops; try again")

    def append(self, messages: list[Message]) -> list[Appended]:
        """Revive records, perhaps with messages that belong to them. Raises ServiceUnavailable."""
        appended = self._store.append(messages, urgent=True)
        for place, message in zip(appended, messages, strict=True):
            if message.topic == self._topic:
                self._ends[place.queue_id] = place.queue_offset + 1
        if self._timer is None:
            self._timer = self._clock.call_at(self._clock.now_ms() + _ADVANCE_MS, self.advance)
        return appended

    def forget_topics(self, topics: Iterable[str]) -> None:
        """They are deleted: nobody holds a message of theirs any more. Raises ServiceUnavailable."""
        self.check_ready()
        leased = {queue.topic for queue in self._leases.queues()}
        gone = [topic for topic in topics if topic in leased]
        if gone:
            now_ms = self._clock.now_ms()
            self.append([self._records.gone(gone, queue_id, now_ms) for queue_id in range(len(self._ends))])
            for topic in gone:
                self._leases.forget_topic(topic)

    def advance(self) -> None:
        """Commit what is no longer needed, and write again what is needed and far behind."""
        self._timer = None
        now_ms = self._clock.now_ms()
        for revive_queue_id in range(len(self._ends)):
            try:
                self._compact(revive_queue_id, now_ms)
            except SaturnError as error:
                log.warning("revive records cannot be written: %s", error)
            needed = self._leases.first_needed(revive_queue_id)
            done = (self._ends[revive_queue_id] if needed is None else needed) - 1
            if done != self._offsets.get(REVIVE_GROUP, self._topic, revive_queue_id):
                self._offsets.commit(REVIVE_GROUP, self._topic, revive_queue_id, done)

    def _compact(self, revive_queue_id: int, now_ms: int) -> None:
        """Records behind at most double what it leaves there, so that less is written again than was appended."""
        first, live = self._leases.first_needed(revive_queue_id), self._leases.needed(revive_queue_id)
        keep = _MAX_BEHIND + 2 * live
        if first is not None and self._ends[revive_queue_id] - first > 2 * keep:
            before = self._ends[revive_queue_id] - keep
            for owner in self._leases.needed_before(revive_queue_id, before, _COMPACT_RECORDS):
                self._write_again(owner, now_ms)

    def close(self) -> None:
        """Before the offsets are written for the last time."""
        self._ready = False
        if self._timer is not None:
            self._timer.cancel()
            self.advance()

    def _write_again(self, owner: CheckPoint | GroupQueue, now_ms: int) -> None:
        """Raises ServiceUnavailable."""
        if isinstance(owner, GroupQueue):
            assert owner.order is not None
            assert owner.order_record is not None
            revive_queue_id = owner.order_record[0]
            record = self._records.order(
                owner, owner.order, owner.committed, owner.next_offset, revive_queue_id, now_ms
            )
            [place] = self.append([record])
            self._leases.put_order(owner, owner.order, revive_queue_id, place.queue_offset)
        elif owner.pending:
            [place] = self.append([self._records.check_point(owner, owner.remaining(), now_ms, again=True)])
            self._leases.moved(owner, place.queue_offset)
        elif owner.offsets[0] in owner.queue.leases:  # after a reset: its record must not come after the other one
            self._leases.forget(owner)
        else:
            [offset] = owner.offsets
            if owner.acknowledged:
                end = self._records.acknowledgement(owner, offset, now_ms)
            else:
                end = self._records.revived(owner, [offset], now_ms)
            place, _ = self.append([self._records.check_point(owner, [offset], now_ms, again=True), end])
            self._leases.moved(owner, place.queue_offset)

    # --------------------------------------------------------------------------------------------- retention

    def pending_from(self, end: int) -> Reply[int]:
        """`store.retention.Lodger`: of messages in flight, and of what a restart needs to know of them."""
        if not self._ready:
            return 0
        now_ms = self._clock.now_ms()
        records = [
            (revive_queue_id, offset, owner)
            for revive_queue_id in range(len(self._ends))
            for offset, owner in self._leases.first_records(revive_queue_id, _COMPACT_RECORDS)
            if not _is_in_flight(owner, now_ms)
        ]
        positions = gather([self._store.position_at(self._topic, queue_id, at) for queue_id, at, _ in records])
        return chain(positions, lambda found: self._make_way(end, records, found))

    def _make_way(
        self, end: int, records: list[tuple[int, int, CheckPoint | GroupQueue]], positions: list[int]
    ) -> Reply[int]:
        """Write those records again that would go for nobody's sake: a FIFO group that nobody consumes, a lease that is
        over."""
        now_ms = self._clock.now_ms()
        for (revive_queue_id, offset, owner), position in zip(records, positions, strict=True):
            if position < end and self._leases.needs(revive_queue_id, offset, owner):
                self._write_again(owner, now_ms)
        places = self._leases.oldest_pending(now_ms)
        for revive_queue_id in range(len(self._ends)):
            for offset, _ in self._leases.first_records(revive_queue_id, 1):
                places.append((self._topic, revive_queue_id, offset))
        return self._store.first_position(places, end)

    # ----------------------------------------------------------------------------------------------- restart

    def replay(self, now_ms: int) -> Reply[None]:
        """Rebuild the leases from what the log holds. Raises or fails with ServiceUnavailable."""
        first = [self._offsets.get(REVIVE_GROUP, self._topic, queue_id) + 1 for queue_id in range(len(self._ends))]
        replay = _Replay(self._leases, self._offsets, now_ms)
        records = _InOrder(self._store, self._topic, first, replay.apply)
        return after(records.read(), lambda ends: self._replayed(ends, replay))

    def _replayed(self, ends: list[int], replay: _Replay) -> None:
        self._ends = ends
        replay.finish()
        self._ready = True
        if replay.count:
            log.info("%d records of leases read, %d messages are in flight", replay.count, self._leases.in_flight)


class _InOrder:
    """The records of all revive queues in the order in which they were written: that of their log positions."""

    def __init__(self, store: Store, topic: str, first: list[int], apply: Callable[[StoredMessage], None]) -> None:
        self._store, self._topic, self._apply = store, topic, apply
        self._next = first
        #: by revive queue: records read but not applied, last first
        self._read: list[list[tuple[int, bytes]]] = [[] for _ in first]
        #: (log position, revive queue) of the first record of each
        self._heads: list[tuple[int, int]] = []
        self._empty = list(range(len(first)))

    def read(self) -> Reply[list[int]]:
        """Apply them all. Answers with the next offset of each revive queue."""
        while True:
            while self._empty:
                queue_id = self._empty.pop()
                found = self._store.get(self._topic, queue_id, self._next[queue_id], _REPLAY_RECORDS, _REPLAY_BYTES)
                if isinstance(found, Later):
                    return chain(found, partial(self._resume, queue_id))
                self._add(queue_id, found)
            if not self._heads:
                return self._next
            _, queue_id = heapq.heappop(self._heads)
            rest = self._read[queue_id]
            self._apply(decode(rest.pop()[1]))
            if rest:
                heapq.heappush(self._heads, (rest[-1][0], queue_id))
            else:
                self._empty.append(queue_id)

    def _resume(self, queue_id: int, found: Found) -> Reply[list[int]]:
        self._add(queue_id, found)
        return self.read()

    def _add(self, queue_id: int, found: Found) -> None:
        moved = self._next[queue_id] != found.next_offset
        self._next[queue_id] = found.next_offset
        if found.records:
            self._read[queue_id] = list(zip(found.positions, found.records, strict=True))[::-1]
            heapq.heappush(self._heads, (found.positions[0], queue_id))
        elif moved:  # the first records are no longer there
            self._empty.append(queue_id)


class _Replay:
    """What a restart makes of the records: the calls that made them, once more."""

    def __init__(self, leases: Leases, offsets: OffsetTable, now_ms: int) -> None:
        self._leases, self._offsets, self._now_ms = leases, offsets, now_ms
        self.count = 0

    def apply(self, message: StoredMessage) -> None:
        tag = properties.decode(message.properties).get(properties.TAGS)
        try:
            if tag == CK:
                self._check_point(_ck.decode(message.body), message)
            elif tag in (ACK, BATCH_ACK):
                self._acknowledged(_ack.decode(message.body))
            elif tag == FIFO:
                self._order(_fifo.decode(message.body), message)
            elif tag == GONE:
                for topic in _gone.decode(message.body).topics:
                    self._leases.forget_topic(topic)
        except msgspec.MsgspecError as error:
            log.error("revive record %s@%d is skipped: %s", message.queue_id, message.queue_offset, error)
        self.count += 1

    def finish(self) -> None:
        """Tell the offsets how far the groups have come."""
        for queue in self._leases.queues():
            queue.recorded = queue.next_offset
            if queue.order is None:
                queue.committed = queue.next_offset
            self._offsets.commit(queue.group, queue.topic, queue.queue_id, queue.committed)

    def _queue(self, group: str, topic: str, queue_id: int) -> GroupQueue:
        queue = self._leases.queue(group, topic, queue_id)
        if queue.next_offset < 0:
            queue.kind = kind_of(group, topic)
            queue.next_offset = self._offsets.get(group, topic, queue_id)
        return queue

    def _check_point(self, body: CkBody, message: StoredMessage) -> None:
        offsets = body.offsets()
        if not offsets:
            return
        queue = self._queue(body.group, body.topic, body.queue_id)
        end = offsets[-1] + 1
        if queue.next_offset < 0 or (body.handle_ms is None and body.start <= queue.next_offset < end):
            # of a pop, and not from before the group was reset
            queue.next_offset = end
        until_ms = body.pop_ms + body.invisible_ms
        self._leases.grant(
            CheckPoint(
                queue=queue,
                start=body.start,
                pop_ms=body.pop_ms,
                invisible_ms=body.invisible_ms,
                handle_ms=body.pop_ms if body.handle_ms is None else body.handle_ms,
                claim_ms=until_ms if body.claim_ms is None else body.claim_ms,
                revive_queue_id=message.queue_id,
                revive_offset=message.queue_offset,
                offsets=compact(offsets),
                pending=len(offsets),
                changed=bool(body.changed),
            )
        )

    def _acknowledged(self, body: AckBody) -> None:
        queue = self._leases.find(body.group, body.topic, body.queue_id)
        if queue is None:
            return
        for offset in [body.offset] if body.offsets is None else body.offsets:
            check_point = queue.leases.get(offset)
            if check_point is not None and (check_point.start, check_point.pop_ms) == (body.start, body.pop_ms):
                self._leases.close(check_point, offset, self._now_ms, acknowledged=not body.revived)

    def _order(self, body: FifoBody, message: StoredMessage) -> None:
        queue = self._queue(body.group, body.topic, body.queue_id)
        queue.committed, queue.next_offset = body.committed, body.next_offset
        order = None if body.order is None or not body.order.offsets else body.order.order()
        self._leases.put_order(queue, order, message.queue_id, message.queue_offset)


def _is_in_flight(owner: CheckPoint | GroupQueue, now_ms: int) -> bool:
    if isinstance(owner, CheckPoint):
        return owner.pending > 0
    return owner.order is not None and owner.order.free_at_ms > now_ms


def compact(offsets: list[int]) -> Sequence[int]:
    """The same in less memory: nearly always they are consecutive."""
    first, end = offsets[0], offsets[-1] + 1
    return range(first, end) if end - first == len(offsets) else tuple(offsets)


def kind_of(group: str, topic: str) -> TopicKind:
    """Whether it is a pop retry topic of the group, and of which form."""
    for kind in (TopicKind.RETRY, TopicKind.RETRY_V2):
        if topic.startswith(pop_retry_topic(group, "", v2=kind is TopicKind.RETRY_V2)):
            return kind
    return TopicKind.NORMAL
