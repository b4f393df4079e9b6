"""Pulling: reading a queue from an offset, and waiting for the next message."""

from __future__ import annotations

from saturnmq.broker import filters
from saturnmq.broker.clients import ClientTable
from saturnmq.broker.groups import GroupTable
from saturnmq.broker.longpoll import LongPolls
from saturnmq.broker.offsets import OffsetTable
from saturnmq.broker.topics import TopicTable
from saturnmq.kernel.clock import Clock
from saturnmq.kernel.config import BrokerConfig
from saturnmq.kernel.errors import GroupNotFound, InvalidParameter, NoPermission, SaturnError, TopicNotFound
from saturnmq.kernel.later import Later, Reply, chain, hear
from saturnmq.kernel.metrics import Counter, Metrics
from saturnmq.kernel.ports import PullRequest, PullResult, PullStatus
from saturnmq.kernel.topic import READ
from saturnmq.store.results import Found, FoundStatus
from saturnmq.store.store import Store

_STATUSES = {
    FoundStatus.FOUND: PullStatus.FOUND,
    FoundStatus.NO_MATCH: PullStatus.NO_MATCH,
    FoundStatus.END: PullStatus.NOT_FOUND,
    FoundStatus.BEYOND: PullStatus.OFFSET_MOVED,
    FoundStatus.BEFORE: PullStatus.OFFSET_MOVED,
}


#: of a held pull where longPollingEnable is off (shortPollingTimeMills)
_SHORT_POLL_MS = 1_000

#: counter of pulls and pops
FILTERED_OUT = (
    "saturnmq_messages_filtered_out_total",
    "Messages that were read for an SQL92 filter which does not take them",
    ("topic", "consumer_group"),
)


def filtered_out(found: Found, offset: int) -> int:
    """How many messages from `offset` on were looked at and not taken."""
    if found.status not in (FoundStatus.FOUND, FoundStatus.NO_MATCH):
        return 0
    return found.next_offset - offset - len(found.records)


class Pulls:
    """Reads for consumers that keep their own place (processor/PullMessageProcessor.java)."""

    def __init__(
        self,
        config: BrokerConfig,
        store: Store,
        clock: Clock,
        topics: TopicTable,
        groups: GroupTable,
        clients: ClientTable,
        offsets: OffsetTable,
        polls: LongPolls,
        metrics: Metrics,
    ) -> None:
        self._store, self._clock, self._polls = store, clock, polls
        self._topics, self._groups, self._clients, self._offsets = topics, groups, clients, offsets
        self.configure(config)
        labels = ("topic", "consumer_group")
        self._filtered_out = metrics.counter(*FILTERED_OUT)
        #: of each queue that a group pulls from: pulls with messages, and milliseconds that their reads took; the
        #: page of metrics has no place for all queues
        self.reads = Counter("reads", "", ("queue", "topic", "consumer_group"))
        self.read_ms = Counter("read_ms", "", ("queue", "topic", "consumer_group"))
        self._messages_out = metrics.counter("rocketmq_messages_out_total", "Messages that were taken", labels)
        self._bytes_out = metrics.counter("rocketmq_throughput_out_total", "Bytes that were taken", labels)

    def configure(self, config: BrokerConfig) -> None:
        """Take over what may change while the broker runs: whether it gives messages, how many at once, and how they
        may be filtered."""
        self._config = config
        self._name, self._may_read = config.broker_name, config.broker_permission & READ
        self._most_messages = config.max_transfer_count_on_message_in_memory
        self._most_bytes = config.max_transfer_bytes_on_message_in_memory

    def pull(self, request: PullRequest) -> Reply[PullResult]:
        """Answers at once, or within `wait_ms` when there is nothing at the offset yet."""
        wanted, config = request.subscription, self._config
        if request.lite and not config.lite_pull_message_enable:
            raise NoPermission(f"the broker[{self._name}] for lite pull consumer is forbidden")
        if not config.long_polling_enable:
            request.wait_ms = min(request.wait_ms, _SHORT_POLL_MS)
        request.subscription = filters.of_pull(config, self._clients, request.group, wanted)
        self._admit(request)
        moved = self._reset(request)
        if moved is not None:
            return moved  # what was done before it does not count
        if request.commit_offset >= 0:
            queue = request.queue
            self._offsets.commit(request.group, queue.topic, queue.queue_id, request.commit_offset)
        return chain(self._read(request), lambda found: self._found(request, found))

    def _admit(self, request: PullRequest) -> None:
        """Raises unless the group may read the queue."""
        name, queue_id = request.queue.topic, request.queue.queue_id
        if not self._may_read:
            raise NoPermission(f"the broker[{self._name}] pulling message is forbidden")
        group = self._groups.get(request.group)
        if group is None:
            raise GroupNotFound(f"subscription group [{request.group}] does not exist")
        if not group.consume_enable:
            raise NoPermission(f"subscription group no permission, {request.group}")
        topic = self._topics.get_or_create(name)
        if topic is None:
            raise TopicNotFound(f"topic[{name}] not exist, apply first please!")
        if not topic.perm & READ:
            raise NoPermission(f"the topic[{name}] pulling message is forbidden")
        if not 0 <= queue_id < topic.read_queue_nums:
            raise InvalidParameter(
                f"queueId[{queue_id}] is illegal, topic:[{name}] topicConfig.readQueueNums:[{topic.read_queue_nums}]"
            )

    def _reset(self, request: PullRequest) -> PullResult | None:
        """What tells the group that an operator sent it elsewhere."""
        topic, queue_id = request.queue.topic, request.queue.queue_id
        offset = self._offsets.take_reset(request.group, topic, queue_id)
        if offset is None:
            return None
        low, high = self._store.min_offset(topic, queue_id), self._store.max_offset(topic, queue_id)
        return PullResult(status=PullStatus.OFFSET_MOVED, next_offset=offset, min_offset=low, max_offset=high)

    def _read(self, request: PullRequest) -> Reply[Found]:
        reply = self._store.get(
            request.queue.topic,
            request.queue.queue_id,
            request.offset,
            # Go's pull consumer asks for 0 and expects one
            max(1, min(request.max_messages, self._most_messages)),
            min(request.max_bytes or self._most_bytes, self._most_bytes),
            request.subscription.codes or None,
            request.subscription.matches,
        )
        if not isinstance(reply, Later):
            return reply
        begun_ms = self._clock.steady_ms()

        def came(found: Found) -> Found:
            self.read_ms.values[_place(request)] += self._clock.steady_ms() - begun_ms
            return found

        return reply.map(came)

    def _found(self, request: PullRequest, found: Found) -> Reply[PullResult]:
        """Answer, or wait."""
        result = self._result(request, found)
        if result.status is not PullStatus.NOT_FOUND or request.wait_ms <= 0:
            return result
        if self._store.max_offset(request.queue.topic, request.queue.queue_id) > request.offset:
            # one came while this was read from the disk
            return chain(self._read(request), lambda found: self._found(request, found))
        answer: Later[PullResult] = Later()
        self._wait(request, self._clock.now_ms() + request.wait_ms, answer)
        return answer

    def _wait(self, request: PullRequest, until_ms: int, answer: Later[PullResult]) -> None:
        def wake(timed_out: bool) -> None:
            moved = self._reset(request)
            if moved is not None:
                answer.resolve(moved)
                return
            try:
                hear(self._read(request), lambda found: reread(found, timed_out), answer.fail)
            except SaturnError as error:
                answer.fail(error)

        def reread(found: Found, timed_out: bool) -> None:
            result = self._result(request, found)
            if result.status is PullStatus.NOT_FOUND and not timed_out:
                self._wait(request, until_ms, answer)
            else:
                answer.resolve(result)

        wanted = request.subscription
        waiter = self._polls.wait(
            request.queue.topic, request.queue.queue_id, until_ms, wanted.codes, wake, matches=wanted.matches
        )
        answer.on_cancel = waiter.cancel

    def _result(self, request: PullRequest, found: Found) -> PullResult:
        status = _STATUSES.get(found.status)
        if status is None:  # an empty queue
            status = PullStatus.NOT_FOUND if request.offset == found.max_offset else PullStatus.OFFSET_MOVED
        labels = (request.queue.topic, request.group)
        if request.subscription.matches is not None:
            self._filtered_out.values[labels] += filtered_out(found, request.offset)
        if found.next_offset != request.offset:
            self._offsets.pulled(request.group, request.queue.topic, request.queue.queue_id, found.next_offset)
        if found.records:
            self._messages_out.values[labels] += len(found.records)
            self._bytes_out.values[labels] += sum(map(len, found.records))
            place = _place(request)
            self.reads.values[place] += 1
            self.read_ms.values[place] += 0
        return PullResult(
            status=status,
            next_offset=found.next_offset,
            min_offset=found.min_offset,
            max_offset=found.max_offset,
            records=found.records,
        )


def _place(request: PullRequest) -> tuple[str, str, str]:
    return str(request.queue.queue_id), request.queue.topic, request.group
