"""Popping: consumers of a group share the messages of a topic one by one, each under a lease.

What a consumer takes is hidden from the rest of its group until the lease ends; acknowledged before that, it is done;
else it comes back (`revive`). Who holds what is in memory (`leases`) and, for a restart, in the log (`revivelog`).

**What a crash may repeat.** A pop appends its check points before its messages leave, and an acknowledgement, a change
and a renewal are answered when their records are as durable as a sent message is before it is acknowledged. So:

- A kill loses nothing that was answered: the leases go on, the handles stay good, what was acknowledged stays so.
- A power cut never undoes an answered acknowledgement, change or renewal under SYNC_FLUSH. A pop does not wait for the
  disk: a power cut within the moment before its check points are flushed gives the messages out once more, at once, and
  the handles of that moment are then foreign. Under ASYNC_FLUSH the moment is the flush interval, for all of them.
- Nothing is lost: the offsets file is written only after a flush of everything that was in the log when it was encoded,
  so that no offset in it is beyond a check point on the disk.

The same holds for FIFO groups: their batch is written to the log with every pop, acknowledgement and change.

**Which handle is good.** That of the current delivery, until its lease ends on this clock: a renewal leaves it good for
the longer lease, a change replaces it. A repeated acknowledgement within the lease is answered as the first one was.
Everything else is refused with the reason. Once a delivery that was never changed is over, its handle's own word is
taken for when it expired, for nothing else is kept of it.

Source of rules and names: processor/PopMessageProcessor.java, AckMessageProcessor.java,
ChangeInvisibleTimeProcessor.java, broker/offset/ConsumerOrderInfoManager.java.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from itertools import compress

import msgspec

from saturnmq.broker.groups import GroupTable
from saturnmq.broker.leases import CheckPoint, GroupQueue, Leases
from saturnmq.broker.longpoll import LongPolls
from saturnmq.broker.offsets import OffsetTable
from saturnmq.broker.order import MAX_BATCH, Order, next_order
from saturnmq.broker.revive import Revival
from saturnmq.broker.revivelog import ORDER_REVIVE_QUEUE, ReviveLog, ReviveRecords, compact
from saturnmq.broker.topics import TopicTable, revive_topic
from saturnmq.kernel import properties
from saturnmq.kernel.clock import Clock
from saturnmq.kernel.config import GIB, BrokerConfig
from saturnmq.kernel.errors import (
    GroupNotFound,
    InvalidParameter,
    InvalidReceiptHandle,
    NoPermission,
    NoSuchMessage,
    SaturnError,
    ServiceUnavailable,
    SystemBusy,
    TopicNotFound,
)
from saturnmq.kernel.handle import TopicKind
from saturnmq.kernel.later import Later, Reply, after
from saturnmq.kernel.message import Appended, Message
from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.ports import Delivery, InvisibleChanged, Popped, PopRequest, PopResult, PopStatus
from saturnmq.kernel.topic import READ, RETRY_PREFIX, TopicConfig, pop_retry_topic
from saturnmq.store.store import Found, FoundStatus, Store
from saturnmq.wire.record import decode, encode_stored, reconsume_times

#: messages of one pop (PopMessageProcessor)
MAX_MESSAGES = 32
#: reads of one pop that its filter took nothing of, before it lets others have their turn
_READS = 16
#: a message that the log has not grown by more than this since it was stored counts as in memory
_RECENT_BYTES = GIB
#: distances of messages from the start of their check point are Java ints
_MAX_DISTANCE = 0x7FFFFFFF


class _Share:
    """What a group has of a topic: its queues and those of the pop retry topic."""

    __slots__ = ("group", "queues", "retries", "retry_topics", "start", "topic")

    def __init__(self, group: str, topic: str, retry_topics: list[tuple[str, TopicKind]]) -> None:
        self.group, self.topic = group, topic
        self.queues: list[GroupQueue] = []
        #: names of the retry topics; one that exists has its queues in `retries`
        self.retry_topics = retry_topics
        self.retries: dict[str, list[GroupQueue]] = {}
        #: the queue that the next pop looks at first
        self.start = 0


class _Take(msgspec.Struct, gc=False):
    """Messages of one queue that a pop is about to take."""

    queue: GroupQueue
    offsets: list[int]
    records: list[bytes]
    #: in the commit log
    positions: list[int]
    #: where the queue goes on
    next_offset: int


class _Pop:
    """One pop on its way. Owner: Pops, until it is answered or cancelled."""

    __slots__ = ("bytes_left", "cold", "fifo", "later", "moved", "now_ms", "reads", "request", "rest", "share",
                 "takes", "until_ms", "wanted", "warm")  # fmt: skip

    def __init__(self, request: PopRequest, share: _Share, fifo: bool, until_ms: int) -> None:
        self.request, self.share, self.fifo, self.until_ms = request, share, fifo, until_ms
        #: what the caller waits for, once it must
        self.later: Later[PopResult] | None = None
        #: what a cold read brought: queue, offset asked for, answer
        self.warm: tuple[GroupQueue, int, Found] | None = None

    def begin(self, now_ms: int, bytes_left: int) -> None:
        """Another attempt."""
        self.now_ms, self.bytes_left = now_ms, bytes_left
        #: messages that it may still take
        self.wanted = self.request.max_messages
        self.takes: list[_Take] = []
        #: reads that it may still make
        self.reads = _READS
        #: about how much is left for others
        self.rest = 0
        #: some queue went on although nothing was taken of it
        self.moved = False
        #: it waits for a cold read
        self.cold = False

    def take(self, take: _Take) -> None:
        self.takes.append(take)
        self.wanted -= len(take.offsets)
        self.bytes_left -= sum(map(len, take.records))


class Pops:
    """Pop, acknowledge, change and renew. Owns the leases of the broker."""

    def __init__(
        self,
        config: BrokerConfig,
        store: Store,
        clock: Clock,
        topics: TopicTable,
        groups: GroupTable,
        offsets: OffsetTable,
        polls: LongPolls,
        random: Callable[[int], int],
        metrics: Metrics,
    ) -> None:
        self._config, self._store, self._clock = config, store, clock
        self._topics, self._groups, self._offsets = topics, groups, offsets
        self._polls, self._random = polls, random
        topic = revive_topic(config.broker_cluster_name)
        self.leases = Leases(config.revive_queue_num)
        self._records = ReviveRecords(store, topic, config.broker_name)
        self._log = ReviveLog(store, topic, config.revive_queue_num, self.leases, offsets, self._records, clock)
        self._revival = Revival(store, clock, topics, self.leases, self._records, self._log, polls, metrics)
        self._shares: dict[tuple[str, str], _Share] = {}
        self._revive_queue_id = 0
        self._ready = False
        self._messages_out = metrics.counter(
            "rocketmq_messages_out_total", "Messages that were taken", ("topic", "consumer_group")
        )
        self._bytes_out = metrics.counter(
            "rocketmq_throughput_out_total", "Bytes that were taken", ("topic", "consumer_group")
        )
        metrics.gauge(
            "rocketmq_consumer_inflight_messages",
            "Messages that consumers hold and have not acknowledged",
            lambda: self.leases.in_flight,
        )

    def start(self) -> Reply[None]:
        """Rebuild the leases from the log, and watch over them. Until it answers, requests are refused."""
        return after(self._log.replay(self._clock.now_ms()), self._started)

    def _started(self, _: None) -> None:
        self._ready = True
        self._revival.watch()

    def stop(self) -> None:
        """No more leases end; the offsets know how far a restart must read. They must be written after it."""
        self._ready = False
        self._revival.stop()
        self._log.close()

    # --------------------------------------------------------------------------------------------------- pop

    def pop(self, request: PopRequest) -> Reply[PopResult]:
        """Answers at once when there is something, else within `wait_ms`."""
        fifo = self._admit(request)
        share = self._share(request)
        now_ms = self._clock.now_ms()
        pop = _Pop(request, share, fifo, now_ms + request.wait_ms)
        result = self._attempt(pop)
        if result is None and pop.later is None:
            result = self._wait(pop)
        if result is None:
            assert pop.later is not None
            return pop.later
        return result

    def _admit(self, request: PopRequest) -> bool:
        """Whether the queues are popped in order. Raises unless the group may read the topic."""
        self._check_ready()
        if not self._config.broker_permission & READ:
            raise NoPermission(f"the broker[{self._config.broker_name}] pop message is forbidden")
        if not 1 <= request.max_messages <= MAX_MESSAGES:
            raise InvalidParameter(f"a pop takes 1 to {MAX_MESSAGES} messages, not {request.max_messages}")
        if request.invisible_ms < 0:
            raise InvalidParameter(f"the invisible time cannot be {request.invisible_ms} ms")
        topic = self._topics.get_or_create(request.topic)
        if topic is None:
            raise TopicNotFound(f"topic[{request.topic}] not exist, apply first please!")
        if not topic.perm & READ:
            raise NoPermission(f"the topic[{request.topic}] peeking message is forbidden")
        if request.queue_id >= topic.read_queue_nums:
            raise InvalidParameter(
                f"queueId[{request.queue_id}] is illegal, topic:[{request.topic}] "
                f"topicConfig.readQueueNums:[{topic.read_queue_nums}]"
            )
        group = self._groups.get(request.group)
        if group is None:
            raise GroupNotFound(f"subscription group [{request.group}] does not exist")
        if not group.consume_enable or not self._groups.may_read(request.group, request.topic):
            raise NoPermission(f"subscription group no permission, {request.group}")
        return request.fifo or group.consume_message_orderly

    def _check_ready(self) -> None:
        if not self._ready:
            raise ServiceUnavailable("the broker reads its leases after a restart, or stops; try again")

    def _share(self, request: PopRequest) -> _Share:
        group, name = request.group, request.topic
        share = self._shares.get((group, name))
        if share is None:
            share = self._shares[group, name] = _Share(group, name, self._retry_topics(group, name))
            for retry, _ in share.retry_topics:
                self._polls.link(retry, name, group)
        topic = self._topics.get(name)
        assert topic is not None
        if len(share.queues) != topic.read_queue_nums:
            share.queues = self._begin(share, topic, TopicKind.NORMAL, request.from_latest)
        for retry, kind in share.retry_topics:
            if retry not in share.retries and (topic := self._topics.get(retry)) is not None:
                share.retries[retry] = self._begin(share, topic, kind, from_latest=False)
        return share

    def _retry_topics(self, group: str, topic: str) -> list[tuple[str, TopicKind]]:
        """With v2 names those of v1 too: there may be messages from before they were turned on."""
        if topic.startswith(RETRY_PREFIX):
            return []
        names = [(pop_retry_topic(group, topic), TopicKind.RETRY)]
        if self._config.enable_retry_topic_v2:
            names.insert(0, (pop_retry_topic(group, topic, v2=True), TopicKind.RETRY_V2))
        return names

    def _begin(self, share: _Share, topic: TopicConfig, kind: TopicKind, from_latest: bool) -> list[GroupQueue]:
        """The queues of the topic; where the group never was, at its first offset.

        All at once: what comes into a queue from now on is not skipped when its turn comes. A queue that was added to
        a topic which the group consumes already begins with its first message.
        """
        queues = [self.leases.queue(share.group, topic.topic_name, i, kind) for i in range(topic.read_queue_nums)]
        known = [self._offsets.get(queue.group, queue.topic, queue.queue_id) for queue in queues]
        from_latest = from_latest and max(known) < 0
        for queue, committed in zip(queues, known, strict=True):
            if queue.next_offset < 0:
                self._place(queue, self._first_offset(queue, from_latest) if committed < 0 else committed)
        return queues

    def _first_offset(self, queue: GroupQueue, from_latest: bool) -> int:
        """PopMessageProcessor#getInitOffset. "In memory" is here: among the last bytes of the log, and no cold read."""
        first = self._store.min_offset(queue.topic, queue.queue_id)
        if not from_latest:
            return first
        if self._config.init_pop_offset_by_check_msg_in_mem and first <= 0:
            found = self._store.get(queue.topic, queue.queue_id, 0, 1, 1)
            if isinstance(found, Later):
                found.cancel()
            elif found.positions and self._store.end - found.positions[0] <= _RECENT_BYTES:
                return 0
        return max(0, self._store.max_offset(queue.topic, queue.queue_id) - 1)

    def _place(self, queue: GroupQueue, offset: int) -> None:
        """The group goes on there."""
        queue.next_offset = queue.recorded = offset
        self._commit(queue, offset)

    def _commit(self, queue: GroupQueue, offset: int) -> None:
        queue.committed = offset
        self._offsets.commit(queue.group, queue.topic, queue.queue_id, offset)

    def _follow_reset(self, queue: GroupQueue, from_latest: bool) -> None:
        """Go where somebody else committed the group to; FIFO forgets its batch then."""
        committed = self._offsets.get(queue.group, queue.topic, queue.queue_id)
        if committed != queue.committed:
            self._place(queue, committed if committed >= 0 else self._first_offset(queue, from_latest))
            if queue.order is not None:
                self._write_order(queue, None, queue.next_offset, self._clock.now_ms())

    def _attempt(self, pop: _Pop) -> PopResult | None:
        """Take what there is. None: nothing, or `pop.cold`: goes on later."""
        pop.begin(self._clock.now_ms(), self._config.max_transfer_bytes_on_message_in_memory)
        for queue in self._plan(pop):
            if queue.busy:
                continue
            if not pop.wanted:
                pop.rest += self._left(queue, pop.now_ms)
                continue
            self._follow_reset(queue, pop.request.from_latest)
            if pop.fifo:
                self._take_in_order(pop, queue)
            else:
                self._take(pop, queue)
            if pop.cold:
                return None
        pop.warm = None
        if not pop.takes:
            return None
        result = self._leave_in_order(pop) if pop.fifo else self._leave(pop)
        self._revival.watch()
        if pop.rest:
            self._polls.wake(pop.share.topic, pop.share.group, pop.request.queue_id)
        return result

    def _plan(self, pop: _Pop) -> list[GroupQueue]:
        """Queues in the order in which to look at them."""
        share = pop.share
        if pop.request.queue_id >= 0:
            plan = [share.queues[pop.request.queue_id]]
        else:
            share.start = (share.start + 1) % len(share.queues)
            plan = share.queues[share.start :] + share.queues[: share.start]
        if share.retries and not pop.fifo:
            retries = [queue for queues in share.retries.values() for queue in queues]
            if self._random(100) < self._config.pop_from_retry_probability:
                plan = retries + plan
            else:
                plan += retries
        if pop.warm is not None:
            plan.insert(0, pop.warm[0])
        return plan

    def _left(self, queue: GroupQueue, now_ms: int) -> int:
        """What a pop could still take of it, about."""
        if queue.order is not None and queue.order.free_at_ms > now_ms:
            return 0
        return max(0, self._store.max_offset(queue.topic, queue.queue_id) - queue.next_offset)

    def _get(
        self, pop: _Pop, queue: GroupQueue, offset: int, most: int, codes: frozenset[int] | None, wait: bool
    ) -> Found | None:
        """None: the messages must come from the disk first. When it may wait, the pop goes on when they are there."""
        if pop.warm is not None and pop.warm[:2] == (queue, offset):
            found: Reply[Found] = pop.warm[2]
            pop.warm = None
        else:
            found = self._store.get(queue.topic, queue.queue_id, offset, most, pop.bytes_left, codes)
        if not isinstance(found, Later):
            return found
        if not wait:
            found.cancel()
            return None
        pop.cold = queue.busy = True
        if pop.later is None:
            pop.later = Later()
        found.then(partial(self._warmed, pop, queue, offset), partial(self._not_warmed, pop, queue))
        return None

    def _warmed(self, pop: _Pop, queue: GroupQueue, offset: int, found: Found) -> None:
        queue.busy = False
        assert pop.later is not None
        if pop.later.pending:
            pop.warm = queue, offset, found
            self._again(pop, pop.later)
        else:
            self._polls.wake(pop.share.topic, pop.share.group, queue.queue_id)

    def _not_warmed(self, pop: _Pop, queue: GroupQueue, error: BaseException) -> None:
        queue.busy = False
        assert pop.later is not None
        pop.later.fail(error)

    def _again(self, pop: _Pop, later: Later[PopResult]) -> None:
        try:
            self._check_ready()
            result = self._attempt(pop)
            if result is None and not pop.cold:
                result = self._wait(pop)
        except SaturnError as error:
            later.fail(error)
        else:
            if result is not None:
                later.resolve(result)

    def _wait(self, pop: _Pop) -> PopResult | None:
        """None: it waits, and `pop.later` will hear."""
        request = pop.request
        if request.wait_ms <= 0:
            return PopResult(status=PopStatus.NOT_FOUND)
        later = pop.later = pop.later or Later()

        def wake(timed_out: bool) -> None:
            if timed_out:
                later.resolve(PopResult(status=PopStatus.POLLING_TIMEOUT))
            else:
                self._again(pop, later)

        try:
            waiter = self._polls.wait(
                request.topic, request.queue_id, pop.until_ms, request.subscription.codes, wake, group=request.group
            )
        except SystemBusy:
            return PopResult(status=PopStatus.POLLING_FULL)
        later.on_cancel = waiter.cancel
        if pop.moved and pop.rest:
            self._polls.wake(request.topic, request.group, request.queue_id)
        return None

    # ------------------------------------------------------------------------------------------------- taking

    def _take(self, pop: _Pop, queue: GroupQueue) -> None:
        """The next messages of the queue that the filter takes and nobody holds."""
        if queue.order is not None and queue.order.free_at_ms > pop.now_ms:
            return
        codes = pop.request.subscription.codes or None
        end, next_offset = self._store.max_offset(queue.topic, queue.queue_id), queue.next_offset
        while next_offset != end and pop.reads:
            found = self._get(pop, queue, next_offset, pop.wanted, codes, wait=not pop.takes)
            if found is None:
                break
            pop.reads -= 1
            end, next_offset = found.max_offset, found.next_offset
            if found.status is FoundStatus.FOUND and (take := _free(queue, found)) is not None:
                pop.take(take)
                break
            if next_offset == queue.next_offset:
                break
            queue.next_offset = next_offset
            self._commit(queue, next_offset)
            pop.moved = True
        pop.rest += max(0, end - next_offset)

    def _leave(self, pop: _Pop) -> PopResult:
        """The check points are in the log, then the messages leave."""
        request, now_ms = pop.request, pop.now_ms
        self._revive_queue_id = (self._revive_queue_id + 1) % self._config.revive_queue_num
        check_points = [
            CheckPoint(
                queue=take.queue,
                start=_start(take),
                pop_ms=now_ms,
                invisible_ms=request.invisible_ms,
                handle_ms=now_ms,
                claim_ms=now_ms + request.invisible_ms,
                revive_queue_id=self._revive_queue_id,
                revive_offset=-1,
                offsets=compact(take.offsets),
                pending=len(take.offsets),
            )
            for take in pop.takes
        ]
        places = self._log.append([self._records.check_point(c, c.offsets, now_ms) for c in check_points])
        messages: list[Popped] = []
        for take, check_point, place in zip(pop.takes, check_points, places, strict=True):
            check_point.revive_offset = place.queue_offset
            self.leases.grant(check_point)
            queue = take.queue
            queue.recorded, queue.next_offset = take.offsets[-1] + 1, take.next_offset
            self._commit(queue, take.next_offset)
            self._count(take)
            records = take.records
            if queue.kind is not TopicKind.NORMAL:
                records = [self._as_popped(record, request.topic, check_point) for record in records]
            start, kind, queue_id = check_point.start, queue.kind, queue.queue_id
            messages += [
                Popped(record, kind, queue_id, offset, position, start, reconsume_times(record))
                for record, offset, position in zip(records, take.offsets, take.positions, strict=True)
            ]
        return PopResult(
            status=PopStatus.FOUND,
            pop_ms=now_ms,
            invisible_ms=request.invisible_ms,
            revive_queue_id=self._revive_queue_id,
            rest=pop.rest,
            messages=messages,
        )

    def _as_popped(self, record: bytes, topic: str, check_point: CheckPoint) -> bytes:
        """A message of the retry topic under its original topic, with its handle: a Remoting client cannot build that
        without knowing where it was."""
        message = decode(record)
        pairs = properties.decode(message.properties)
        pairs[properties.POP_CK] = (
            f"{check_point.start} {check_point.pop_ms} {check_point.invisible_ms} {check_point.revive_queue_id} "
            f"{int(check_point.queue.kind)} {self._config.broker_name} {message.queue_id} {message.queue_offset}"
        )
        packed = properties.encode(pairs)
        return encode_stored(msgspec.structs.replace(message, topic=topic, properties=packed))

    def _count(self, take: _Take) -> None:
        labels = take.queue.topic, take.queue.group
        self._messages_out.values[labels] += len(take.records)
        self._bytes_out.values[labels] += sum(map(len, take.records))

    # -------------------------------------------------------------------------------------------------- FIFO

    def _take_in_order(self, pop: _Pop, queue: GroupQueue) -> None:
        """What remained of the last batch, then new messages; nothing while the batch blocks the queue."""
        order, attempt_id = queue.order, pop.request.attempt_id
        repeated = order is not None and attempt_id is not None and order.attempt_id == attempt_id
        if order is not None and not repeated and order.free_at_ms > pop.now_ms:
            return
        take = _Take(queue, [], [], [], queue.next_offset)
        if order is not None and not self._take_again(pop, take, order):
            return
        room = MAX_BATCH if queue.order is None else MAX_BATCH - len(queue.order.offsets)
        if not repeated and len(take.offsets) < pop.wanted and room > 0:
            self._take_new(pop, take, min(room, pop.wanted - len(take.offsets)))
        if take.offsets and not pop.cold:
            pop.take(take)

    def _take_again(self, pop: _Pop, take: _Take, order: Order) -> bool:
        """Messages of the batch that were not acknowledged. False when not all of them can be given now."""
        queue, remaining = take.queue, order.remaining()
        wanted = set(remaining)
        index = 0
        while index < len(remaining) and len(take.offsets) < pop.wanted:
            most = pop.wanted - len(take.offsets)
            found = self._get(pop, queue, remaining[index], most, None, wait=not pop.takes and not take.offsets)
            if found is None:
                break
            if found.status is not FoundStatus.FOUND:
                self._drop_lost(queue, order, found)
                return False
            for offset, record, position in zip(found.offsets, found.records, found.positions, strict=True):
                if offset in wanted:
                    take.offsets.append(offset)
                    take.records.append(record)
                    take.positions.append(position)
            index = bisect_right(remaining, found.offsets[-1])
        if index < len(remaining) and take.offsets and not pop.cold:
            pop.take(take)
        return index == len(remaining)

    def _drop_lost(self, queue: GroupQueue, order: Order, found: Found) -> None:
        """Messages of the batch are no longer in the log."""
        left: Order | None = order
        for offset in order.remaining():
            if left is not None and not found.min_offset <= offset < found.max_offset:
                left = left.acknowledge(offset)
        assert left != order
        self._write_order(queue, left, queue.next_offset, self._clock.now_ms())
        self._polls.wake(queue.topic, queue.group, queue.queue_id)

    def _take_new(self, pop: _Pop, take: _Take, most: int) -> None:
        queue, codes = take.queue, pop.request.subscription.codes or None
        end = self._store.max_offset(queue.topic, queue.queue_id)
        while take.next_offset != end and pop.reads:
            wait = not pop.takes and not take.offsets
            found = self._get(pop, queue, take.next_offset, most, codes, wait)
            if found is None:
                return
            pop.reads -= 1
            end = found.max_offset
            if found.status is FoundStatus.FOUND:
                take.offsets += found.offsets
                take.records += found.records
                take.positions += found.positions
                take.next_offset = found.next_offset
                return
            if found.next_offset == take.next_offset:
                return
            take.next_offset = queue.next_offset = found.next_offset
            if queue.order is None:
                self._commit(queue, found.next_offset)
            pop.moved = True
        pop.rest += max(0, end - take.next_offset)

    def _leave_in_order(self, pop: _Pop) -> PopResult:
        """The batches are in the log, then the messages leave."""
        request, now_ms = pop.request, pop.now_ms
        # a second delivery of a message must not have the pop time of the first
        pop_ms = max([now_ms, *(take.queue.order.pop_ms + 1 for take in pop.takes if take.queue.order is not None)])
        orders = [
            next_order(take.queue.order, request.attempt_id, pop_ms, request.invisible_ms, take.offsets)
            for take in pop.takes
        ]
        places = self._log.append(
            [
                self._order_record(take.queue, order, take.next_offset, now_ms)
                for take, order in zip(pop.takes, orders, strict=True)
            ]
        )
        messages: list[Popped] = []
        for take, order, place in zip(pop.takes, orders, places, strict=True):
            queue = take.queue
            self._put_order(queue, order, take.next_offset, place)
            self._count(take)
            messages += [
                Popped(
                    record,
                    queue.kind,
                    queue.queue_id,
                    offset,
                    position,
                    take.offsets[0],
                    order.counts.get(offset) or reconsume_times(record),
                )
                for record, offset, position in zip(take.records, take.offsets, take.positions, strict=True)
            ]
        return PopResult(
            status=PopStatus.FOUND,
            pop_ms=pop_ms,
            invisible_ms=request.invisible_ms,
            revive_queue_id=ORDER_REVIVE_QUEUE,
            rest=pop.rest,
            messages=messages,
        )

    def _order_record(self, queue: GroupQueue, order: Order | None, next_offset: int, now_ms: int) -> Message:
        committed = next_offset if order is None else order.offsets[0]
        revive_queue_id = queue.queue_id % self._config.revive_queue_num
        return self._records.order(queue, order, committed, next_offset, revive_queue_id, now_ms)

    def _put_order(self, queue: GroupQueue, order: Order | None, next_offset: int, place: Appended) -> None:
        self.leases.put_order(queue, order, place.queue_id, place.queue_offset)
        queue.next_offset = queue.recorded = next_offset
        self._commit(queue, next_offset if order is None else order.offsets[0])

    def _write_order(self, queue: GroupQueue, order: Order | None, next_offset: int, now_ms: int) -> Appended:
        """The queue has another batch now. Raises ServiceUnavailable, and leaves it as it was."""
        [place] = self._log.append([self._order_record(queue, order, next_offset, now_ms)])
        self._put_order(queue, order, next_offset, place)
        self._revival.watch()
        if order is None or order.free_at_ms <= now_ms:
            self._polls.wake(queue.topic, queue.group, queue.queue_id)
        return place

    # ------------------------------------------------------------------------------- what a handle can ask for

    def ack(self, delivery: Delivery) -> Reply[None]:
        """Done with it. Raises InvalidReceiptHandle, NoSuchMessage."""
        queue, now_ms = self._queue_of(delivery), self._clock.now_ms()
        if delivery.revive_queue_id == ORDER_REVIVE_QUEUE:
            order = self._held_in_order(queue, delivery, now_ms)
            if order is None:
                return None
            place = self._write_order(queue, order.acknowledge(delivery.queue_offset), queue.next_offset, now_ms)
        else:
            check_point = self._held(queue, delivery, now_ms)
            if check_point is None:
                return None
            offset = delivery.queue_offset
            [place] = self._log.append([self._records.acknowledgement(check_point, offset, now_ms)])
            self.leases.close(check_point, offset, now_ms, acknowledged=True)
        return self._store.when_durable(place.end, None)

    def change_invisible(self, delivery: Delivery, invisible_ms: int) -> Reply[InvisibleChanged]:
        """Hide it for `invisible_ms` from now on; another handle is good. Raises InvalidReceiptHandle, NoSuchMessage."""
        if delivery.revive_queue_id == ORDER_REVIVE_QUEUE:
            return self._hide_in_order(delivery, invisible_ms, renews=False)
        return self._hide(delivery, invisible_ms, renews=False)

    def renew(self, delivery: Delivery, invisible_ms: int) -> Reply[None]:
        """Hide it for `invisible_ms` from now on; the handle stays good. Raises InvalidReceiptHandle, NoSuchMessage."""
        if delivery.revive_queue_id == ORDER_REVIVE_QUEUE:
            return after(self._hide_in_order(delivery, invisible_ms, renews=True), lambda _: None)
        return after(self._hide(delivery, invisible_ms, renews=True), lambda _: None)

    def _hide(self, delivery: Delivery, invisible_ms: int, *, renews: bool) -> Reply[InvisibleChanged]:
        """A new check point, then an acknowledgement for the one before: in Apache's eyes too it is another lease."""
        queue, now_ms = self._queue_of(delivery), self._clock.now_ms()
        before = self._held(queue, delivery, now_ms)
        if before is None:
            raise InvalidReceiptHandle(f"{_name(delivery)} is acknowledged already")
        pop_ms = max(now_ms, before.pop_ms + 1)  # else the two could not be told apart
        check_point = CheckPoint(
            queue=queue,
            start=delivery.queue_offset,
            pop_ms=pop_ms,
            invisible_ms=invisible_ms,
            handle_ms=before.handle_ms if renews else pop_ms,
            claim_ms=max(before.claim_ms, pop_ms + invisible_ms),
            revive_queue_id=before.revive_queue_id,
            revive_offset=-1,
            offsets=(delivery.queue_offset,),
            pending=1,
            changed=True,
        )
        [place, closed] = self._log.append(
            [
                self._records.check_point(check_point, check_point.offsets, now_ms),
                self._records.acknowledgement(before, delivery.queue_offset, now_ms),
            ]
        )
        check_point.revive_offset = place.queue_offset
        self.leases.grant(check_point)
        self._revival.watch()
        changed = InvisibleChanged(pop_ms, invisible_ms, check_point.revive_queue_id)
        return self._store.when_durable(closed.end, changed)

    def _hide_in_order(self, delivery: Delivery, invisible_ms: int, *, renews: bool) -> Reply[InvisibleChanged]:
        """The pop time of the batch stays; a new handle names the time from then on (as Apache's)."""
        queue, now_ms = self._queue_of(delivery), self._clock.now_ms()
        order = self._held_in_order(queue, delivery, now_ms)
        if order is None:
            raise InvalidReceiptHandle(f"{_name(delivery)} is acknowledged already")
        offset, end_ms = delivery.queue_offset, now_ms + invisible_ms
        handle_ms = order.handle_ms(offset) if renews else end_ms - order.pop_ms
        place = self._write_order(queue, order.hide(offset, end_ms, handle_ms), queue.next_offset, now_ms)
        changed = InvisibleChanged(order.pop_ms, handle_ms, ORDER_REVIVE_QUEUE)
        return self._store.when_durable(place.end, changed)

    def _queue_of(self, delivery: Delivery) -> GroupQueue:
        self._check_ready()
        group, topic = delivery.group, delivery.topic
        if delivery.topic_kind is not TopicKind.NORMAL and not topic.startswith(RETRY_PREFIX):
            topic = pop_retry_topic(group, topic, v2=delivery.topic_kind is TopicKind.RETRY_V2)
        queue = self.leases.find(group, topic, delivery.queue_id)
        if queue is None:
            # not popped since the restart; the offset may tell that it was before
            queue = GroupQueue(group, topic, delivery.queue_id, delivery.topic_kind)
            queue.next_offset = self._offsets.get(group, topic, delivery.queue_id)
        return queue

    def _held(self, queue: GroupQueue, delivery: Delivery, now_ms: int) -> CheckPoint | None:
        """The lease that the handle is good for; None when the handle acknowledged the message. Raises otherwise."""
        offset = delivery.queue_offset
        check_point = queue.leases.get(offset)
        if check_point is not None:
            if check_point.handle_ms != delivery.pop_ms:
                raise _replaced(delivery)
            if check_point.until_ms <= now_ms:
                raise _expired(delivery, check_point.until_ms)
            return check_point
        self._check_given(queue, delivery)
        over = queue.over.get(offset)
        if over is None:
            if delivery.pop_ms + delivery.invisible_ms <= now_ms:
                raise _expired(delivery, delivery.pop_ms + delivery.invisible_ms)
        elif over.handle_ms != delivery.pop_ms:
            raise _replaced(delivery)
        elif not over.acknowledged or over.until_ms <= now_ms:
            raise _expired(delivery, over.until_ms)
        return None

    def _held_in_order(self, queue: GroupQueue, delivery: Delivery, now_ms: int) -> Order | None:
        """The batch that the handle is good for; None when the handle acknowledged the message. Raises otherwise."""
        order, offset = queue.order, delivery.queue_offset
        if order is None or offset not in order.offsets:
            self._check_given(queue, delivery)
            end_ms = delivery.pop_ms + delivery.invisible_ms
        elif (delivery.pop_ms, delivery.invisible_ms) != (order.pop_ms, order.handle_ms(offset)):
            raise _replaced(delivery)
        else:
            end_ms = order.end_ms(offset)
        if end_ms <= now_ms:
            raise _expired(delivery, end_ms)
        return None if order is None or offset not in order.offsets or offset in order.acknowledged else order

    def _check_given(self, queue: GroupQueue, delivery: Delivery) -> None:
        """Raises unless the group was given the message once."""
        offset = delivery.queue_offset
        first = self._store.min_offset(queue.topic, queue.queue_id)
        end = self._store.max_offset(queue.topic, queue.queue_id)
        if not first <= offset < end:
            raise NoSuchMessage(
                f"{_name(delivery)} does not exist: queue {queue.queue_id} of {queue.topic} has {first} to {end - 1}"
            )
        if offset >= max(queue.next_offset, queue.high):
            raise InvalidReceiptHandle(f"{_name(delivery)} was never received by this group: the handle is not ours")


def _free(queue: GroupQueue, found: Found) -> _Take | None:
    """What was found, without messages that are under a lease (after a reset)."""
    offsets, records, positions = found.offsets, found.records, found.positions
    if offsets[0] < queue.high and queue.leases:
        free = [offset not in queue.leases for offset in offsets]
        offsets, records, positions = (list(compress(column, free)) for column in (offsets, records, positions))
        if not offsets:
            return None
    return _Take(queue, offsets, records, positions, found.next_offset)


def _start(take: _Take) -> int:
    """What the check point counts from: the end of the one before, over what the filter skipped."""
    start = take.queue.recorded
    return start if take.offsets[-1] - start <= _MAX_DISTANCE else take.offsets[0]


def _name(delivery: Delivery) -> str:
    return f"message {delivery.queue_offset} of {delivery.topic}, queue {delivery.queue_id}, group {delivery.group},"


def _expired(delivery: Delivery, end_ms: int) -> InvalidReceiptHandle:
    return InvalidReceiptHandle(f"the receipt handle of {_name(delivery)} expired at {end_ms}")


def _replaced(delivery: Delivery) -> InvalidReceiptHandle:
    return InvalidReceiptHandle(
        f"the receipt handle of {_name(delivery)} popped at {delivery.pop_ms} is not that of its current delivery: "
        f"its invisible time was changed, or it was delivered again"
    )
