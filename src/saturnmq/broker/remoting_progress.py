"""Remoting: how far consumer groups have come (processor/AdminBrokerProcessor.java)."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from saturnmq.broker.broker import Broker
from saturnmq.kernel.errors import TopicNotFound
from saturnmq.kernel.later import Reply, after, gather
from saturnmq.kernel.topic import MessageQueue, pop_retry_topic
from saturnmq.net.remoting_connection import RemotingConnection
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.command import Command, Response
from saturnmq.wire.remoting.consumers import (
    ConsumeStats,
    ConsumeStatsList,
    ConsumeTimeSpans,
    QueueProgress,
    QueueTimeSpan,
)
from saturnmq.wire.remoting.headers import ConsumeStatsHeader, GroupTopicHeader, OrderHeader

Progress = dict[MessageQueue, QueueProgress]


class ProgressHandlers:
    """One method per request code. What pop has given out and nobody acknowledged is not done: Apache counts it as
    done once it is in the log."""

    def __init__(self, broker: Broker) -> None:
        self._broker, self._store = broker, broker.store
        self._topics, self._offsets, self._clients = broker.topics, broker.offsets, broker.clients
        self._leases = broker.pops.leases

    def of_group(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        """Of the named topics; else of the named one, or of all with offsets, as far as connected members want it."""
        header = msgspec.convert(command.fields, ConsumeStatsHeader, strict=False)
        group = header.consumer_group
        named = set(filter(None, (header.topic_list or "").split(";")))
        if not named:
            named = {header.topic} if header.topic else self._offsets.topics_of(group)
            named = self._wanted(group, named)
        topics = [topic for topic in sorted(named) if self._topics.get(topic) is not None]

        def answer(found: list[Progress]) -> Response:
            progress = {queue: one for topic in found for queue, one in topic.items()}
            return Response(body=json.write(self._stats(group, topics, progress)))

        return after(gather([self._progress(group, topic) for topic in topics]), answer)

    def of_all(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        """Of every group and topic; of ordered topics alone when asked."""
        header = msgspec.convert(command.fields, OrderHeader, strict=False)
        topics_by_group = self._offsets.topics_by_group()
        groups = {
            group: [
                topic
                for topic in sorted(self._wanted(group, topics_by_group.get(group, set())))
                if (config := self._topics.get(topic)) is not None and (config.order or not header.is_order)
            ]
            for group in self._broker.groups.configs
        }
        places = [(group, topic) for group, topics in groups.items() for topic in topics]

        def answer(found: list[Progress]) -> Response:
            by_group: dict[str, list[ConsumeStats]] = {group: [] for group in groups}
            for (group, topic), progress in zip(places, found, strict=True):
                by_group[group].append(self._stats(group, [topic], progress))
            all_progress = [one for progress in found for one in progress.values()]
            body = ConsumeStatsList(
                consume_stats_list=[{group: stats} for group, stats in by_group.items()],
                broker_addr=str(connection.local),
                total_diff=sum(one.broker_offset - one.consumer_offset for one in all_progress),
                total_inflight_diff=sum(one.pull_offset - one.consumer_offset for one in all_progress),
            )
            return Response(body=json.write(body))

        return after(gather([self._progress(group, topic) for group, topic in places]), answer)

    def _wanted(self, group: str, topics: set[str]) -> set[str]:
        """Without those that nobody of the group subscribes to, when any of it is connected; with what pop gives the
        group again."""
        members = self._clients.consumer_group(group)
        if members is not None and members.subscriptions:
            topics = topics & members.subscriptions.keys()
        again = {pop_retry_topic(group, topic, v2=v2) for topic in topics for v2 in (False, True)}
        return topics | again & self._topics.configs.keys()

    def _stats(self, group: str, topics: Iterable[str], progress: Progress) -> ConsumeStats:
        tps = sum([self._broker.stats.tps("GROUP_GET_NUMS", f"{topic}@{group}") for topic in topics], 0.0)
        return ConsumeStats(offset_table=json.write_queue_map(progress), consume_tps=tps)

    def _progress(self, group: str, topic: str) -> Reply[Progress]:
        queues = self._queues(topic)
        found = gather([self._of_queue(group, queue) for queue in queues])
        return after(found, lambda progress: dict(zip(queues, progress, strict=True)))

    def _queues(self, topic: str) -> list[MessageQueue]:
        config = self._topics.get(topic)
        assert config is not None, "it was looked up in this turn"
        return [MessageQueue(topic, self._broker.name, queue_id) for queue_id in range(config.read_queue_nums)]

    def _of_queue(self, group: str, queue: MessageQueue) -> Reply[QueueProgress]:
        topic, queue_id = queue.topic, queue.queue_id
        committed = max(0, self._offsets.get(group, topic, queue_id))
        held = self._leases.oldest(group, topic, queue_id)
        consumed = committed if held is None else min(committed, held)
        progress = QueueProgress(
            broker_offset=self._store.max_offset(topic, queue_id),
            consumer_offset=consumed,
            pull_offset=max(committed, self._offsets.pulled_to(group, topic, queue_id)),
            last_timestamp=0,
        )

        def stored(stored_ms: int) -> QueueProgress:
            progress.last_timestamp = max(0, stored_ms)
            return progress

        return after(self._store.stored_ms_at(topic, queue_id, consumed - 1), stored)

    def time_spans(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        """When what is there, what is done and what comes next was stored."""
        header = msgspec.convert(command.fields, GroupTopicHeader, strict=False)
        if self._topics.get(header.topic) is None:
            raise TopicNotFound(f"topic[{header.topic}] not exist")
        spans = gather([self._time_span(header.group, queue) for queue in self._queues(header.topic)])
        return after(spans, lambda spans: Response(body=json.write(ConsumeTimeSpans(spans))))

    def _time_span(self, group: str, queue: MessageQueue) -> Reply[QueueTimeSpan]:
        topic, queue_id = queue.topic, queue.queue_id
        low, high = self._store.min_offset(topic, queue_id), self._store.max_offset(topic, queue_id)
        consumed = max(low, self._offsets.get(group, topic, queue_id))
        stored = gather(
            [self._store.stored_ms_at(topic, queue_id, offset) for offset in (low, high - 1, consumed - 1, consumed)]
        )

        def span(times: list[int]) -> QueueTimeSpan:
            first_ms, last_ms, consumed_ms, next_ms = times
            return QueueTimeSpan(
                message_queue=queue,
                min_time_stamp=first_ms,
                max_time_stamp=last_ms,
                consume_time_stamp=consumed_ms if consumed > low else first_ms,
                delay_time=self._broker.clock.now_ms() - next_ms if next_ms >= 0 else 0,
            )

        return after(stored, span)
