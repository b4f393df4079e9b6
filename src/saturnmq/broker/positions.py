"""Where groups are in queues, and where queues begin and end (processor/ConsumerManageProcessor.java)."""

from __future__ import annotations

from saturnmq.broker.groups import GroupTable
from saturnmq.broker.offsets import OffsetTable
from saturnmq.broker.topics import TopicTable
from saturnmq.kernel.config import BrokerConfig
from saturnmq.kernel.errors import GroupNotFound, IllegalOffset, InvalidParameter, NotFound, TopicNotFound
from saturnmq.kernel.later import Reply
from saturnmq.kernel.ports import Boundary
from saturnmq.kernel.topic import MessageQueue
from saturnmq.store.store import Store

#: Java's Long.MAX_VALUE
_LONG_MAX = (1 << 63) - 1


class Positions:
    """Answers consumers that keep their own place."""

    def __init__(
        self, config: BrokerConfig, store: Store, topics: TopicTable, groups: GroupTable, offsets: OffsetTable
    ) -> None:
        self._store, self._topics, self._groups, self._offsets = store, topics, groups, offsets
        self.configure(config)

    def configure(self, config: BrokerConfig) -> None:
        """Take over what may change while the broker runs: how many queues a topic may have."""
        self._most_queues = config.max_topic_queue_nums

    def committed(self, group: str, queue: MessageQueue, *, zero_if_new: bool = True) -> int:
        """Raises NotFound for a group that begins where it likes."""
        offset = self._offsets.get(group, queue.topic, queue.queue_id)
        if offset >= 0:
            return offset
        if not zero_if_new:
            raise NotFound("Not found, do not set to zero, maybe this group boot first")
        if not self._store.is_recent(queue.topic, queue.queue_id, 0):
            raise NotFound("Not found, V3_0_6_SNAPSHOT maybe this group consumer boot first")
        return 0

    def commit(self, group: str, queue: MessageQueue, offset: int) -> bool:
        """False: an operator has sent the group elsewhere, and no consumer was told yet."""
        if not self._groups.exists(group):
            raise GroupNotFound(f"Group {group} not exist!")
        if self._topics.get(queue.topic) is None:
            raise TopicNotFound(f"Topic {queue.topic} not exist!")
        if not 0 <= queue.queue_id < self._most_queues:  # of a topic that has shrunk too
            raise InvalidParameter(f"queueId[{queue.queue_id}] is illegal, maxTopicQueueNums is {self._most_queues}")
        if not 0 <= offset <= _LONG_MAX:
            raise IllegalOffset(f"commitOffset {offset} is not in [0, {_LONG_MAX}]")
        return self._offsets.commit(group, queue.topic, queue.queue_id, offset)

    def min_offset(self, queue: MessageQueue) -> int:
        return self._store.min_offset(queue.topic, queue.queue_id)

    def max_offset(self, queue: MessageQueue) -> int:
        return self._store.max_offset(queue.topic, queue.queue_id)

    def offset_by_time(self, queue: MessageQueue, timestamp_ms: int, boundary: Boundary) -> Reply[int]:
        return self._store.offset_by_time(queue.topic, queue.queue_id, timestamp_ms, boundary)
