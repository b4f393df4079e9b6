"""Popping: consumers of a group share the messages of a topic one by one, each under a lease.

What a consumer takes is hidden from the rest of its group until the lease ends; acknowledged before that, it is done;
else it comes back (`revive`). Who holds what is in memory (`leases`) and in the log (`revivelog`), from where a restart
has it, be it ours or that of Apache's broker.

**What a crash may repeat.** A pop appends its check points before its messages leave, and an acknowledgement, a change
and a renewal are answered when their records are as durable as a sent message is before it is acknowledged. So:

- A kill loses nothing that was answered: the leases go on, the handles stay good, what was acknowledged stays so.
- A power cut never undoes an answered acknowledgement, change or renewal under SYNC_FLUSH. A pop does not wait for the
  disk: a power cut within the moment before its check points are flushed gives the messages out once more, at once, and
  the handles of that moment are then foreign. Under ASYNC_FLUSH the moment is the flush interval, for all of them.
  What tells such a handle from that of the delivery after it is its pop time. That may be ahead of the clock by a
  millisecond for each change within one; a start takes longer. (Should somebody put the clock back meanwhile, to that
  very millisecond, either handle is taken for the other.)
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

import logging
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from itertools import compress

import msgspec

from saturnmq.broker.acks import Acks
from saturnmq.broker.fifo import Orders
from saturnmq.broker.groups import GroupTable
from saturnmq.broker.leasefile import LeaseFile
from saturnmq.broker.leasereplay import LeaseReplay
from saturnmq.broker.leases import CheckPoint, GroupQueue, Leases
from saturnmq.broker.longpoll import LongPolls
from saturnmq.broker.offsets import OffsetTable
from saturnmq.broker.order import MAX_BATCH, Order, next_order
from saturnmq.broker.orderfile import OrderFile
from saturnmq.broker.pull import FILTERED_OUT, filtered_out
from saturnmq.broker.revive import Revival
from saturnmq.broker.revivelog import ReviveLog
from saturnmq.broker.reviverecords import ORDER_REVIVE_QUEUE, ReviveRecords, compact
from saturnmq.broker.timers import Timers
from saturnmq.broker.topics import TopicTable, revive_topic
from saturnmq.kernel import properties
from saturnmq.kernel.clock import Clock
from saturnmq.kernel.config import BrokerConfig
from saturnmq.kernel.errors import (
    GroupNotFound,
    InvalidParameter,
    NoPermission,
    SystemBusy,
    TimersDisabled,
    TopicNotFound,
)
from saturnmq.kernel.handle import TopicKind
from saturnmq.kernel.later import Later, Reply, after, chain
from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.ports import Popped, PopRequest, PopResult, PopStatus
from saturnmq.kernel.subscription import Subscription
from saturnmq.kernel.topic import READ, RETRY_PREFIX, TopicConfig, pop_retry_topic
from saturnmq.store.results import Found, FoundStatus
from saturnmq.store.store import Store
from saturnmq.wire.record import MAX_PROPERTIES_BYTES, decode, encode_stored, reconsume_times

log = logging.getLogger(__name__)

#: messages of one pop (PopMessageProcessor)
MAX_MESSAGES = 32
#: reads of one pop that its filter took nothing of, before it lets others have their turn
_READS = 16
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
        if self.bytes_left <= 0:
            self.wanted = 0


class Pops:
    """Takes messages for consumers. Owns the leases of the broker, and everything that follows from them."""

    def __init__(
        self,
        config: BrokerConfig,
        store: Store,
        clock: Clock,
        topics: TopicTable,
        groups: GroupTable,
        offsets: OffsetTable,
        polls: LongPolls,
        timers: Timers,
        random: Callable[[int], int],
        metrics: Metrics,
    ) -> None:
        self._config, self._store, self._clock, self._timers = config, store, clock, timers
        self._topics, self._groups, self._offsets = topics, groups, offsets
        self._polls, self._random = polls, random
        topic, queues = revive_topic(config.broker_cluster_name), config.revive_queue_num
        self._revive_topic = topic
        self.leases = Leases()
        self._records = ReviveRecords(store, topic, config.broker_name)
        self._file = LeaseFile(store, clock, topic, queues, self.leases, offsets, self._records)
        self._log = ReviveLog(store, topic, queues, self.leases, offsets, self._records, self._file, clock)
        timers.sieve = self._log
        self._revival = Revival(store, clock, topics, self.leases, self._records, self._log, polls, metrics)
        self._order_file = OrderFile(store, clock, self.leases)
        self._orders = Orders(self.leases, offsets, self._records, self._log, self._revival, polls, self._order_file)
        self._acks = Acks(
            store, clock, offsets, self.leases, self._records, self._log, self._revival, self._orders, polls
        )
        self.ack = self._acks.ack
        self.change_invisible = self._acks.change_invisible
        self.renew = self._acks.renew
        self._shares: dict[tuple[str, str], _Share] = {}
        self._revive_queue_id = 0
        self._messages_out = metrics.counter(
            "rocketmq_messages_out_total", "Messages that were taken", ("topic", "consumer_group")
        )
        self._bytes_out = metrics.counter(
            "rocketmq_throughput_out_total", "Bytes that were taken", ("topic", "consumer_group")
        )
        self._filtered_out = metrics.counter(*FILTERED_OUT)
        metrics.gauge(
            "rocketmq_consumer_inflight_messages",
            "Messages that consumers hold and have not acknowledged",
            lambda: self.leases.in_flight,
        )

    def configure(self, config: BrokerConfig) -> None:
        """Take over what may change while the broker runs."""
        self._config = config

    def start(self) -> Reply[None]:
        """Rebuild the leases, and watch over them: the timers are open, and begin after it. Until it answers, requests
        are refused."""
        replay = LeaseReplay(
            self._store, self._revive_topic, self._config.revive_queue_num, self.leases, self._offsets, self._file,
            self._order_file, self._timers, self._clock.now_ms(),
        )  # fmt: skip
        return after(chain(replay.run(), lambda _: self._keep(replay)), lambda _: self._started(replay))

    def _keep(self, replay: LeaseReplay) -> Reply[None]:
        """What is not in the log, or only somewhere in it, is in a snapshot before anything else happens."""
        if not replay.took_over:
            return self._file.write() if self._file.offset < 0 else None
        self._order_file.changed()
        return self._file.write(always=True)

    def _started(self, replay: LeaseReplay) -> None:
        self._log.replayed(replay.in_revive)
        self._revival.watch()

    def pending_from(self, end: int) -> Reply[int]:
        """`store.retention.Lodger`"""
        return self._log.pending_from(end)

    def stop(self) -> Reply[None]:
        """No more leases end; a restart has little to read. Never fails."""
        self._revival.stop()
        return chain(self._log.close(), lambda _: self._order_file.write())

    def forget_topics(self, topics: list[str]) -> None:
        """They are deleted. Raises ServiceUnavailable, and has forgotten nothing then."""
        self._log.forget_topics(topics)
        self._order_file.changed()
        gone = frozenset(topics)
        self._shares = {place: share for place, share in self._shares.items() if place[1] not in gone}
        for share in self._shares.values():
            for topic in gone.intersection(share.retries):
                del share.retries[topic]

    def move(self, group: str, topic: str, queue_id: int, offset: int) -> None:
        """The group goes on at this offset: what it holds from there on is given out anew. What it holds before that
        comes back when it is not acknowledged; of a batch in order nothing does. Raises ServiceUnavailable."""
        queue = self.leases.find(group, topic, queue_id)
        if queue is not None:
            self._log.check_ready()
            self._revival.forget(queue, offset)
            queue.next_offset = offset
            self._orders.write(queue, None, self._clock.now_ms())

    def forget_group(self, group: str) -> None:
        """It is gone: nothing that it holds comes back, no batch of it blocks a queue. Raises ServiceUnavailable."""
        self._log.check_ready()
        for queue in [queue for queue in self.leases.queues() if queue.group == group]:
            self._revival.forget(queue, 0)
        self._log.forget_group(group)
        self._order_file.changed()
        self._shares = {place: share for place, share in self._shares.items() if place[0] != group}

    # --------------------------------------------------------------------------------------------------- pop

    def pop(self, request: PopRequest) -> Reply[PopResult]:
        """Answers at once when there is something, else within `wait_ms`."""
        fifo = self.admit(request)
        pop = _Pop(request, self._share(request), fifo, self._clock.now_ms() + request.wait_ms)
        result = self._attempt(pop)
        if result is None and not pop.cold:
            result = self._wait(pop)
        if result is None:
            assert pop.later is not None
            return pop.later
        return result

    def admit(self, request: PopRequest) -> bool:
        """Whether the queues are popped in order. Raises unless the group may read the topic."""
        self._log.check_ready()
        if not self._config.broker_permission & READ:
            raise NoPermission(f"the broker[{self._config.broker_name}] pop message is forbidden")
        if not self._store.config.timer_wheel_enable:
            raise TimersDisabled(
                f"the broker[{self._config.broker_name}] pop message is forbidden because timerWheelEnable is false"
            )
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

    def _share(self, request: PopRequest) -> _Share:
        """With the queues that the topics have now."""
        group, name = request.group, request.topic
        share = self._shares.get((group, name))
        if share is None:
            share = self._shares[group, name] = _Share(group, name, self.retry_topics(group, name))
            for retry, _ in share.retry_topics:
                self._polls.link(retry, name, group)
        topic = self._topics.get(name)
        if topic is None:
            raise TopicNotFound(f"topic[{name}] not exist any more")
        if len(share.queues) != topic.read_queue_nums:
            share.queues = self._begin(share, topic, TopicKind.NORMAL, request.from_latest)
        for retry, kind in share.retry_topics:
            if retry not in share.retries and (topic := self._topics.get(retry)) is not None:
                share.retries[retry] = self._begin(share, topic, kind, from_latest=False)
        return share

    def retry_topics(self, group: str, topic: str) -> list[tuple[str, TopicKind]]:
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
        a topic which the group consumes already begins with its first message. Where a new group begins with the latest
        message is in the log before any that it must not miss: after a crash that one is not the latest any more.
        """
        queues = [self.leases.queue(share.group, topic.topic_name, i, kind) for i in range(topic.read_queue_nums)]
        known = [self._offsets.get(queue.group, queue.topic, queue.queue_id) for queue in queues]
        from_latest = from_latest and max(known) < 0
        places = [
            (queue, self._first_offset(queue, from_latest) if committed < 0 else committed)
            for queue, committed in zip(queues, known, strict=True)
            if queue.next_offset < 0
        ]
        if from_latest and places:
            now_ms = self._clock.now_ms()
            records = [self._orders.record(queue, None, offset, now_ms) for queue, offset in places]
            self._log.append(records, [None] * len(records))
        for queue, offset in places:
            self._place(queue, offset)
        return queues

    def _first_offset(self, queue: GroupQueue, from_latest: bool) -> int:
        """PopMessageProcessor#getInitOffset."""
        if not from_latest:
            return self._store.min_offset(queue.topic, queue.queue_id)
        if self._config.init_pop_offset_by_check_msg_in_mem and self._store.is_recent(queue.topic, queue.queue_id, 0):
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
        """Go where an operator sent the group, or somebody else committed it to; FIFO forgets its batch then."""
        reset = self._offsets.take_reset(queue.group, queue.topic, queue.queue_id)
        committed = self._offsets.get(queue.group, queue.topic, queue.queue_id)
        if reset is not None or committed != queue.committed:
            offset = committed if committed >= 0 else self._first_offset(queue, from_latest)
            if queue.order is None:
                self._place(queue, offset)
            else:
                queue.next_offset = offset
                self._orders.write(queue, None, self._clock.now_ms())

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
            warm = pop.warm[0]
            plan = [warm, *(queue for queue in plan if queue is not warm)]
        return plan

    def _left(self, queue: GroupQueue, now_ms: int) -> int:
        """What a pop could still take of it, about."""
        if queue.order is not None and queue.order.free_at_ms > now_ms:
            return 0
        return max(0, self._store.max_offset(queue.topic, queue.queue_id) - queue.next_offset)

    def _get(
        self, pop: _Pop, queue: GroupQueue, offset: int, most: int, wanted: Subscription | None, wait: bool
    ) -> Found | None:
        """None: the messages must come from the disk first. When it may wait, the pop goes on when they are there."""
        if pop.warm is not None and pop.warm[:2] == (queue, offset):
            found: Reply[Found] = pop.warm[2]
            pop.warm = None
        else:
            codes, matches = (None, None) if wanted is None else (wanted.codes or None, wanted.matches)
            found = self._store.get(queue.topic, queue.queue_id, offset, most, pop.bytes_left, codes, matches)
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
            if self.leases.find(queue.group, queue.topic, queue.queue_id) is queue:  # else its topic was deleted
                pop.warm = queue, offset, found
            self._again(pop, pop.later)
        else:
            self._polls.wake(pop.share.topic, pop.share.group, queue.queue_id)

    def _not_warmed(self, pop: _Pop, queue: GroupQueue, error: BaseException) -> None:
        queue.busy = False
        assert pop.later is not None
        self._polls.wake(pop.share.topic, pop.share.group, queue.queue_id)
        pop.later.fail(error)

    def _again(self, pop: _Pop, later: Later[PopResult]) -> None:
        """It was woken, or has read. What it may do, an operator may have changed."""
        try:
            pop.fifo = self.admit(pop.request)
            pop.share = self._share(pop.request)
            result = self._attempt(pop)
            if result is None and not pop.cold:
                result = self._wait(pop)
        except Exception as error:  # noqa: BLE001 - it is this request's answer, whoever woke it
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
            wanted = request.subscription
            waiter = self._polls.wait(
                request.topic, request.queue_id, pop.until_ms, wanted.codes, wake, matches=wanted.matches,
                group=request.group,
            )  # fmt: skip
        except SystemBusy:
            return PopResult(status=PopStatus.POLLING_FULL)
        later.on_cancel = waiter.cancel
        if pop.moved and pop.rest:
            self._polls.wake(request.topic, request.group, request.queue_id)
        return None

    # ------------------------------------------------------------------------------------------------- taking

    def _take(self, pop: _Pop, queue: GroupQueue) -> None:
        """The next messages of the queue that the filter takes and nobody holds."""
        config = self._config
        if config.enable_pop_message_threshold and len(queue.leases) > config.pop_inflight_message_threshold:
            queue.is_full = True
            pop.rest += self._left(queue, pop.now_ms)
            return
        if queue.order is not None and queue.order.free_at_ms > pop.now_ms:
            return
        wanted = pop.request.subscription
        end, next_offset = self._store.max_offset(queue.topic, queue.queue_id), queue.next_offset
        while next_offset != end and pop.reads:
            found = self._get(pop, queue, next_offset, pop.wanted, wanted, wait=not pop.takes)
            if found is None:
                break
            pop.reads -= 1
            if wanted.matches is not None:
                self._filtered_out.values[queue.topic, queue.group] += filtered_out(found, next_offset)
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
                offsets=compact(take.offsets),
                pending=len(take.offsets),
            )
            for take in pop.takes
        ]
        self._log.append([self._records.check_point(c, now_ms) for c in check_points], check_points)
        messages: list[Popped] = []
        for take, check_point in zip(pop.takes, check_points, strict=True):
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
        if len(packed) > MAX_PROPERTIES_BYTES:
            packed = message.properties
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
            lost = [offset for offset in remaining[index:] if _is_lost(offset, found)]
            if lost:
                self._drop_lost(queue, order, lost)
                pop.moved, pop.rest = True, pop.rest + 1  # look again
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

    def _drop_lost(self, queue: GroupQueue, order: Order, lost: list[int]) -> None:
        """Messages of the batch are no longer in the log."""
        log.warning("messages %s of %s are no longer in the log", lost, queue)
        left: Order | None = order
        for offset in lost:
            left = left and left.acknowledge(offset)
        self._orders.write(queue, left, self._clock.now_ms())
        self._polls.wake(queue.topic, queue.group, queue.queue_id)

    def _take_new(self, pop: _Pop, take: _Take, most: int) -> None:
        queue, wanted = take.queue, pop.request.subscription
        end = self._store.max_offset(queue.topic, queue.queue_id)
        while take.next_offset != end and pop.reads:
            wait = not pop.takes and not take.offsets
            found = self._get(pop, queue, take.next_offset, most, wanted, wait)
            if found is None:
                return
            pop.reads -= 1
            if wanted.matches is not None:
                self._filtered_out.values[queue.topic, queue.group] += filtered_out(found, take.next_offset)
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
        records = [
            self._orders.record(take.queue, order, take.next_offset, now_ms)
            for take, order in zip(pop.takes, orders, strict=True)
        ]
        self._log.append(records, [None] * len(records))
        messages: list[Popped] = []
        for take, order in zip(pop.takes, orders, strict=True):
            queue = take.queue
            self._orders.put(queue, order, take.next_offset)
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


def _free(queue: GroupQueue, found: Found) -> _Take | None:
    """What was found, without messages that are under a lease (after a reset)."""
    offsets, records, positions = found.offsets, found.records, found.positions
    if offsets[0] < queue.high and queue.leases:
        free = [offset not in queue.leases for offset in offsets]
        offsets, records = list(compress(offsets, free)), list(compress(records, free))
        positions = list(compress(positions, free))
        if not offsets:
            return None
    return _Take(queue, offsets, records, positions, found.next_offset)


def _is_lost(offset: int, found: Found) -> bool:
    """Whether the queue does not have the message any more, as what was found from there on without a filter shows."""
    if not found.min_offset <= offset < found.max_offset:
        return True
    return offset < found.next_offset and offset not in found.offsets


def _start(take: _Take) -> int:
    """What the check point counts from: the end of the one before, over what the filter skipped."""
    start = take.queue.recorded
    return start if take.offsets[-1] - start <= _MAX_DISTANCE else take.offsets[0]
