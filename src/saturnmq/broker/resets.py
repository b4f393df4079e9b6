"""Operators send a consumer group elsewhere: by time, to an offset, or to where another group is."""

from __future__ import annotations

from collections.abc import Mapping

from saturnmq.broker.clients import ClientTable
from saturnmq.broker.groups import GroupTable
from saturnmq.broker.longpoll import LongPolls
from saturnmq.broker.offsets import OffsetTable
from saturnmq.broker.pop import Pops
from saturnmq.broker.topics import TopicTable
from saturnmq.kernel.errors import ConsumerNotOnline, GroupNotFound, InvalidParameter, SaturnError, TopicNotFound
from saturnmq.kernel.later import Reply, after, chain, gather
from saturnmq.kernel.ports import Boundary
from saturnmq.kernel.topic import MessageQueue, TopicConfig
from saturnmq.store.store import Store


class Resets:
    """AdminBrokerProcessor#resetOffset, #cloneGroupOffset; Broker2Client#resetOffset.

    Two ways lead to the consumers. The table of offsets holds the reset until the next pull or pop of the group is
    told of it, which comes at once (`reset`). Or the members are told to go there, and commit it when they have
    (`reset_clients`), as before 5.0.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        topics: TopicTable,
        groups: GroupTable,
        offsets: OffsetTable,
        clients: ClientTable,
        polls: LongPolls,
        pops: Pops,
    ) -> None:
        self._name, self._store, self._topics, self._groups = name, store, topics, groups
        self._offsets, self._clients, self._polls, self._pops = offsets, clients, polls, pops

    def reset(
        self, group: str, topic: str, timestamp_ms: int, *, queue_id: int = -1, offset: int = -1
    ) -> Reply[Mapping[MessageQueue, int]]:
        """Of all queues, or of one; to the time, or of the one queue to the offset. A negative time is the end. Answers
        when a restart finds it."""
        config = self._topics.get(topic)
        if config is None:
            raise TopicNotFound(f"Topic {topic} does not exist")
        if not self._groups.exists(group):
            raise GroupNotFound(f"Group {group} does not exist")
        if queue_id >= config.read_queue_nums:
            raise InvalidParameter(
                f"queueId[{queue_id}] is illegal, topic:[{topic}] topicConfig.readQueueNums:[{config.read_queue_nums}]"
            )
        if queue_id >= 0 and offset != -1:
            self._check(topic, queue_id, offset)
            return self._reset(group, {MessageQueue(topic, self._name, queue_id): offset})
        queues = self._queues(config) if queue_id < 0 else [MessageQueue(topic, self._name, queue_id)]
        offsets = gather([self._offset_at(queue, timestamp_ms) for queue in queues])
        return chain(offsets, lambda offsets: self._reset(group, dict(zip(queues, offsets, strict=True))))

    def reset_clients(
        self, group: str, topic: str, timestamp_ms: int, *, force: bool
    ) -> Reply[Mapping[MessageQueue, int]]:
        """`force`: forwards too. Raises ConsumerNotOnline."""
        config = self._topics.get(topic)
        if config is None:
            raise TopicNotFound(f"[reset-offset] reset offset failed, no topic in this broker. topic={topic}")
        queues = self._queues(config)
        committed = [self._offsets.get(group, topic, queue.queue_id) for queue in queues]
        if -1 in committed:
            raise SaturnError(f"THe consumer group <{group}> not exist")

        def tell(offsets: list[int]) -> Mapping[MessageQueue, int]:
            wanted = {
                queue: offset if force or offset < current else current
                for queue, offset, current in zip(queues, offsets, committed, strict=True)
            }
            members = self._clients.consumer_group(group)
            if members is None:
                raise ConsumerNotOnline(
                    f"Consumer not online, so can not reset offset, Group: {group} Topic: {topic} "
                    f"Timestamp: {timestamp_ms}"
                )
            for channel in members.members:
                channel.reset_offsets(group, topic, timestamp_ms, wanted)
            return wanted

        return after(gather([self._offset_at(queue, timestamp_ms) for queue in queues]), tell)

    def clone(self, source: str, group: str, topic: str | None, *, offline: bool) -> Reply[None]:
        """The group goes on where the source is, in one topic or all. Not offline: only where the source subscribes,
        when any of it is connected. Answers when a restart finds it."""
        if self._groups.get(group) is None:
            raise GroupNotFound(f"Group {group} does not exist")
        members = self._clients.consumer_group(source)
        for name in [topic] if topic else self._offsets.topics_of(source):
            unsubscribed = members is not None and members.subscriptions and name not in members.subscriptions
            if self._topics.get(name) is not None and (offline or not unsubscribed):
                for queue_id, offset in self._offsets.of_group(source, name).items():
                    self._pops.move(group, name, queue_id, offset)
                self._offsets.clone(source, group, name)
        return self._offsets.write()

    def _queues(self, topic: TopicConfig) -> list[MessageQueue]:
        return [MessageQueue(topic.topic_name, self._name, queue_id) for queue_id in range(topic.read_queue_nums)]

    def _check(self, topic: str, queue_id: int, offset: int) -> None:
        low, high = self._store.min_offset(topic, queue_id), self._store.max_offset(topic, queue_id)
        if not low <= offset <= high + 1:
            raise SaturnError(f"Target offset {offset} not in consume queue range [{low}-{high}]")

    def _offset_at(self, queue: MessageQueue, timestamp_ms: int) -> Reply[int]:
        if timestamp_ms < 0:
            return self._store.max_offset(queue.topic, queue.queue_id)
        return self._store.offset_by_time(queue.topic, queue.queue_id, timestamp_ms, Boundary.LOWER)

    def _reset(self, group: str, offsets: dict[MessageQueue, int]) -> Reply[Mapping[MessageQueue, int]]:
        for queue, offset in offsets.items():
            self._pops.move(group, queue.topic, queue.queue_id, offset)
            self._offsets.reset(group, queue.topic, queue.queue_id, offset)
            self._polls.wake_pulls(queue.topic, queue.queue_id)
            self._polls.wake(queue.topic, group, queue.queue_id)
        return after(self._offsets.write(), lambda _: offsets)
