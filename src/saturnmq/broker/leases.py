"""Which consumer group holds which message, and until when.

A *check point* is one pop of one queue: up to 32 messages that left together, with one pop time and one lease. It is
a message for a time in the log (`revivelog`), and so is every acknowledgement, so that this state can be rebuilt. A
change or a renewal of the lease of one message makes a check point of its own, for that message alone.

Nothing here reads a clock or writes anything: the same calls follow a living consumer and a replayed log. Memory is
one dictionary entry a message in flight and one small struct a check point, none of which the garbage collector
visits; what is acknowledged is forgotten at once, so nothing grows with what was delivered. The exception are
deliveries whose handles disagree (see `GroupQueue.over`), and those only until the last of their handles has expired.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence

import msgspec

from saturnmq.broker.order import Order
from saturnmq.kernel.handle import TopicKind

#: entries of the heap of expiries below which it is never rebuilt
_MIN_EXPIRIES = 1024


class CheckPoint(msgspec.Struct, gc=False, kw_only=True):
    """Messages of one queue that left with one pop. Times are the broker's milliseconds."""

    queue: GroupQueue
    #: queue offset that its record counts from
    start: int
    #: when it was popped, changed or renewed; with `start` its name in the log
    pop_ms: int
    invisible_ms: int
    #: of the handles that are good for it: `pop_ms`, or what it was before renewals
    handle_ms: int
    #: when the last of all handles that ever named this delivery says that it expires
    claim_ms: int
    revive_queue_id: int
    #: of the messages, ascending; acknowledged ones included
    offsets: Sequence[int]
    #: messages neither acknowledged nor back in a topic
    pending: int
    #: not the first lease of its one message
    changed: bool = False
    #: how a changed one ended
    acknowledged: bool = False
    #: its record is in the timer wheel, or nobody knows: what ends it must be there too
    in_wheel: bool = False
    #: where its record stands in the revive queue, if its time came before it ended; -1: nowhere
    revive_offset: int = -1

    @property
    def until_ms(self) -> int:
        return self.pop_ms + self.invisible_ms

    def remaining(self) -> list[int]:
        """Offsets of the messages that are still under this lease."""
        leases = self.queue.leases
        return [offset for offset in self.offsets if leases.get(offset) is self]


class GroupQueue:
    """What one group has of one queue. Owner: Leases; `pop` moves the offsets."""

    __slots__ = (
        "busy",
        "committed",
        "group",
        "high",
        "is_full",
        "kind",
        "last_order",
        "leases",
        "next_offset",
        "order",
        "over",
        "queue_id",
        "recorded",
        "topic",
    )

    def __init__(self, group: str, topic: str, queue_id: int, kind: TopicKind) -> None:
        self.group, self.topic, self.queue_id, self.kind = group, topic, queue_id, kind
        #: the next message that the group was never given; -1: not known yet
        self.next_offset = -1
        #: what the table of offsets was told last; another value there is a reset
        self.committed = -1
        #: end of the last check point. The next one counts from here, over what the filter skipped in between, so
        #: that a replay follows them without a gap
        self.recorded = -1
        #: one more than any offset that was ever given
        self.high = 0
        #: a pop was refused because so much of it is in flight
        self.is_full = False
        #: a cold read for one pop is on its way; others pass by
        self.busy = False
        #: offset → the check point whose lease it is under
        self.leases: dict[int, CheckPoint] = {}
        #: offset → a changed delivery that is over, until the last handle of it has expired. Only this tells a handle
        #: that was replaced, or whose lease was cut short, from one that acknowledged the message
        self.over: dict[int, CheckPoint] = {}
        #: of a FIFO group: the batch that blocks the queue
        self.order: Order | None = None
        #: the batch before, when all of it is acknowledged: its handles may come once more
        self.last_order: Order | None = None

    def __str__(self) -> str:
        return f"{self.topic}@{self.group}@{self.queue_id}"


class Leases:
    """All leases of one broker, and when they end."""

    def __init__(self) -> None:
        self._queues: dict[tuple[str, str, int], GroupQueue] = {}
        #: a heap of keys (milliseconds << 32 | running number) of `_expiring`: ints, which no garbage collection visits
        self._expiries: list[int] = []
        #: check points at the end of their lease or to be forgotten, FIFO queues to be unblocked; some of them stale
        self._expiring: dict[int, CheckPoint | GroupQueue] = {}
        self._number = 0
        #: the heap is rebuilt without stale entries when it is longer than this
        self._rebuild_at = _MIN_EXPIRIES
        #: by revive queue: offset → check point whose record stands there
        self._in_revive: defaultdict[int, dict[int, CheckPoint]] = defaultdict(dict)
        #: messages under lease
        self.in_flight = 0

    # ------------------------------------------------------------------------------------------------ queues

    def queue(self, group: str, topic: str, queue_id: int, kind: TopicKind = TopicKind.NORMAL) -> GroupQueue:
        """The state of it, made when there was none."""
        key = group, topic, queue_id
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = GroupQueue(group, topic, queue_id, kind)
        return queue

    def find(self, group: str, topic: str, queue_id: int) -> GroupQueue | None:
        return self._queues.get((group, topic, queue_id))

    def queues(self) -> Iterator[GroupQueue]:
        return iter(self._queues.values())

    def forget_topic(self, topic: str) -> None:
        """It was deleted: the leases of its messages are over, and groups begin anew in one that gets its name."""
        self._forget([key for key in self._queues if key[1] == topic])

    def forget_group(self, group: str) -> None:
        """It was deleted; one that gets its name begins anew."""
        self._forget([key for key in self._queues if key[0] == group])

    def _forget(self, keys: list[tuple[str, str, int]]) -> None:
        for key in keys:
            queue = self._queues.pop(key)
            self.put_order(queue, None)
            for offset, check_point in list(queue.leases.items()):
                self._end(check_point, offset)
            queue.over = {}

    # ------------------------------------------------------------------------------------------------ leases

    def grant(self, check_point: CheckPoint) -> None:
        """The lease begins. A message of it that is under another lease changes over to this one."""
        queue = check_point.queue
        leases = queue.leases
        if check_point.offsets[0] < queue.high:
            for offset in check_point.offsets:
                if offset in leases:
                    self._end(leases[offset], offset)
        leases.update(dict.fromkeys(check_point.offsets, check_point))
        self.in_flight += check_point.pending
        queue.high = max(queue.high, check_point.offsets[-1] + 1)
        self._expect(check_point.until_ms, check_point)

    def close(self, check_point: CheckPoint, offset: int, now_ms: int, *, acknowledged: bool) -> None:
        """The message is acknowledged, or back in a topic."""
        if check_point.changed and check_point.claim_ms > now_ms:
            self._end(check_point, offset)
            check_point.acknowledged = acknowledged
            self.put_over(check_point)
        else:
            self._end(check_point, offset)

    def _end(self, check_point: CheckPoint, offset: int) -> None:
        del check_point.queue.leases[offset]
        check_point.pending -= 1
        self.in_flight -= 1
        if not check_point.pending and check_point.revive_offset >= 0:
            del self._in_revive[check_point.revive_queue_id][check_point.revive_offset]

    def put_over(self, check_point: CheckPoint) -> None:
        """A changed delivery is over, as a snapshot says."""
        check_point.queue.over[check_point.offsets[0]] = check_point
        self._expect(check_point.claim_ms, check_point)

    def held(self, queue: GroupQueue, offsets: Sequence[int], start: int, pop_ms: int) -> CheckPoint | None:
        """The check point of that name, if any of these messages is under its lease."""
        for offset in offsets:
            check_point = queue.leases.get(offset)
            if check_point is not None and (check_point.start, check_point.pop_ms) == (start, pop_ms):
                return check_point
        return None

    def oldest(self, group: str, topic: str, queue_id: int) -> int | None:
        """Offset of the first message of the queue that is under a lease. Looks at all of them."""
        queue = self._queues.get((group, topic, queue_id))
        return None if queue is None else min(queue.leases, default=None)

    # ------------------------------------------------------------------------------------------------- order

    def put_order(self, queue: GroupQueue, order: Order | None) -> None:
        """The batch of a FIFO queue is `order` now."""
        if queue.order is not None:
            self.in_flight -= len(queue.order.remaining())
        queue.last_order, queue.order = queue.order, order
        if order is not None:
            self.in_flight += len(order.remaining())
            queue.high = max(queue.high, order.offsets[-1] + 1)
            self._expect(order.free_at_ms, queue)

    # ------------------------------------------------------------------------------------------ the revive topic

    def put_in_revive(self, check_point: CheckPoint, revive_offset: int) -> None:
        """Its record stands in its revive queue too. After a crash once more: the first one counts, until it ends."""
        if check_point.revive_offset < 0:
            check_point.revive_offset = revive_offset
            self._in_revive[check_point.revive_queue_id][revive_offset] = check_point

    def in_revive(self, revive_queue_id: int, revive_offset: int) -> CheckPoint:
        return self._in_revive[revive_queue_id][revive_offset]

    def first_in_revive(self, revive_queue_id: int) -> int | None:
        """Offset of the oldest record of the revive queue whose check point has messages under its lease."""
        return min(self._in_revive[revive_queue_id], default=None)

    # ----------------------------------------------------------------------------------------------- retention

    def oldest_pending(self, now_ms: int) -> list[tuple[str, int, int]]:
        """Topic, queue id and offset of the oldest message of each group that is in flight. A FIFO batch whose leases
        are over is not: it waits like all that comes behind it."""
        oldest = []
        for queue in self._queues.values():
            if queue.leases:
                oldest.append((queue.topic, queue.queue_id, min(queue.leases)))
            if queue.order is not None and queue.order.free_at_ms > now_ms:
                oldest.append((queue.topic, queue.queue_id, queue.order.remaining()[0]))
        return oldest

    # -------------------------------------------------------------------------------------------------- time

    def next_expiry_ms(self) -> int | None:
        """When `take_due` will have something, or earlier."""
        return self._expiries[0] >> 32 if self._expiries else None

    def take_due(self, now_ms: int) -> CheckPoint | GroupQueue | None:
        """A check point whose lease is over, or a FIFO queue whose block is; None when there is none (left)."""
        while self._expiries and self._expiries[0] >> 32 <= now_ms:
            key = heapq.heappop(self._expiries)
            due = self._expiring.pop(key)
            if _is_stale(key >> 32, due):
                continue
            if isinstance(due, GroupQueue) or due.pending:
                return due
            del due.queue.over[due.offsets[0]]
        return None

    def _expect(self, when_ms: int, what: CheckPoint | GroupQueue) -> None:
        self._number = (self._number + 1) & 0xFFFFFFFF
        key = when_ms << 32 | self._number
        self._expiring[key] = what
        heapq.heappush(self._expiries, key)
        if len(self._expiries) > self._rebuild_at:
            self._expiring = {key: what for key, what in self._expiring.items() if not _is_stale(key >> 32, what)}
            self._expiries = list(self._expiring)
            heapq.heapify(self._expiries)
            self._rebuild_at = max(_MIN_EXPIRIES, 2 * len(self._expiries))


def _is_stale(when_ms: int, what: CheckPoint | GroupQueue) -> bool:
    """Whether it ended, or changed, before its time came."""
    if isinstance(what, GroupQueue):
        return what.order is None or what.order.free_at_ms != when_ms
    if what.pending:
        return when_ms != what.until_ms
    return when_ms != what.claim_ms or what.queue.over.get(what.offsets[0]) is not what
