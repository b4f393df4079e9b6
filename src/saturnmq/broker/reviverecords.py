"""What is written of leases: messages for a time, for the revive topic.

They stand in the timer topic, with `rmq_sys_REVIVE_LOG_<cluster>` as the topic that they are for, as Apache writes them
(processor/PopMessageProcessor.java, buildCkMsg; util/HookUtils.java): the bodies are the JSON of its classes
(store/pop/PopCheckPoint.java, AckMsg.java, BatchAckMsg.java), told apart by their tag; it skips fields and tags that it
does not know:

    ck    {so, pt, it, bm, n, q, t, c, ro, d, bn}    a check point: messages so + d[i] left at pt for it milliseconds
    ack   {ao, so, c, t, q, pt, bn}                  message ao of check point (t, c, q, so, pt) is done
    bAck  {…, ao: -1, aol: […]}                      several of them
    fifo  {t, c, q, so, x, bn, order}                ours, due at once: a group has a queue behind it up to so, has read
                                                     up to x, and, in order, holds `order` (Apache's OrderInfo); without
                                                     one: it begins there, or was sent there
    gone  {t: […], g: […], bn}                       ours, due at once: topics or groups were deleted; what came before
                                                     is of messages that are no longer there, or that nobody holds

and in them, ours:

    hp    in a ck that is not of a pop: the pop time in the handle that is good for it (of a renewal: the older one)
    ce    in such a ck: when the last of all handles of the delivery says that it expires
    ch    in such a ck: 1 of a change or renewal
    rv    in a bAck: not acknowledged, but copied to the retry topic
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from saturnmq.broker.leases import CheckPoint, GroupQueue
from saturnmq.broker.order import Order
from saturnmq.kernel.message import Message
from saturnmq.kernel.topic import TIMER_TOPIC
from saturnmq.store.store import Store
from saturnmq.store.timerwheel import slot_of_due

CK, ACK, BATCH_ACK, FIFO, GONE = "ck", "ack", "bAck", "fifo", "gone"
#: a check point is due this much earlier than its acknowledgements, milliseconds
_ACK_INTERVAL_MS = 1000
#: the revive queue id in handles of FIFO groups, which have no check points (common/KeyBuilder.java)
ORDER_REVIVE_QUEUE = 999


#: what tells a check point from all others
Name: TypeAlias = "tuple[str, str, int, int, int]"


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

    @property
    def name(self) -> Name:
        return self.topic, self.group, self.queue_id, self.start, self.pop_ms

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

    @property
    def name(self) -> Name:
        """Of its check point."""
        return self.topic, self.group, self.queue_id, self.start, self.pop_ms


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


class GoneBody(msgspec.Struct, rename={"topics": "t", "broker_name": "bn", "groups": "g"}, omit_defaults=True):
    topics: list[str]
    broker_name: str | None = None
    groups: list[str] = []


parse_ck = msgspec.json.Decoder(CkBody).decode
parse_ack = msgspec.json.Decoder(AckBody).decode
parse_fifo = msgspec.json.Decoder(FifoBody).decode
parse_gone = msgspec.json.Decoder(GoneBody).decode


class ReviveRecords:
    """Makes the messages. JSON by hand: topics and groups have no character to escape."""

    def __init__(self, store: Store, topic: str, broker_name: str) -> None:
        """`topic`: the revive topic."""
        self._store = store
        self._precision_ms = store.config.timer_precision_ms
        self._topic = topic
        self._broker = broker_name
        self._broker_json = msgspec.json.encode(broker_name).decode()

    def check_point(self, check_point: CheckPoint, now_ms: int) -> Message:
        queue, start, pop_ms, offsets = check_point.queue, check_point.start, check_point.pop_ms, check_point.offsets
        differences = ",".join([str(offset - start) for offset in offsets])
        ours = ""
        if check_point.changed:
            ours = f',"hp":{check_point.handle_ms},"ce":{check_point.claim_ms},"ch":1'
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
        now_ms: int,
    ) -> Message:
        body = self.fifo(queue, order, committed, next_offset)
        key = f"{queue.topic}@{queue.queue_id}@{committed}@{queue.group}@{now_ms}@{self._broker}@fifo"
        return self._message(FIFO, 0, msgspec.json.encode(body).decode(), key, now_ms, now_ms)

    def fifo(self, queue: GroupQueue, order: Order | None, committed: int, next_offset: int) -> FifoBody:
        info = None if order is None else OrderInfo.of(order)
        return FifoBody(queue.topic, queue.group, queue.queue_id, committed, next_offset, info, self._broker)

    def gone(self, topics: list[str], groups: list[str], now_ms: int) -> Message:
        """They are deleted."""
        body = msgspec.json.encode(GoneBody(topics, self._broker, groups)).decode()
        name = [*topics, *groups][0]
        return self._message(GONE, 0, body, f"{name}@{now_ms}@{self._broker}@gone", now_ms, now_ms)

    def _message(self, tag: str, revive_queue_id: int, body: str, key: str, deliver_ms: int, now_ms: int) -> Message:
        slot_ms = slot_of_due(deliver_ms, self._precision_ms)
        properties = (
            f"TIMER_DELIVER_MS\x01{deliver_ms}\x02UNIQ_KEY\x01{key}\x02TAGS\x01{tag}\x02TIMER_OUT_MS\x01{slot_ms}\x02"
            f"REAL_TOPIC\x01{self._topic}\x02REAL_QID\x01{revive_queue_id}\x02"
        )
        return Message(TIMER_TOPIC, 0, body.encode(), properties.encode(), now_ms, self._store.store_host)


def compact(offsets: list[int]) -> Sequence[int]:
    """The same in less memory: nearly always they are consecutive."""
    first, end = offsets[0], offsets[-1] + 1
    return range(first, end) if end - first == len(offsets) else tuple(offsets)
