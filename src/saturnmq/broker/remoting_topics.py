"""Remoting: topics as operators make, see and delete them (processor/AdminBrokerProcessor.java)."""

from __future__ import annotations

import msgspec

from saturnmq.broker import attributes
from saturnmq.broker.broker import Broker
from saturnmq.broker.paging import page
from saturnmq.kernel.errors import NotSupported, TopicNotFound
from saturnmq.kernel.later import Reply, after, gather
from saturnmq.kernel.topic import DataVersion, MessageQueue, TopicConfig
from saturnmq.net.remoting_connection import RemotingConnection
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.bodies import (
    TopicConfigAndMappingTable,
    TopicConfigs,
    TopicList,
    TopicOffset,
    TopicStats,
    decode,
    encode,
)
from saturnmq.wire.remoting.command import Command, Response
from saturnmq.wire.remoting.headers import CreateTopicHeader, TopicHeader, TopicPageHeader


class TopicHandlers:
    """One method per request code."""

    def __init__(self, broker: Broker) -> None:
        self._broker, self._topics, self._store = broker, broker.topics, broker.store
        #: nothing is ever mapped
        self._mapping_version = DataVersion(timestamp=broker.clock.now_ms())

    def put(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, CreateTopicHeader, strict=False)
        topic = TopicConfig(
            topic_name=header.topic,
            read_queue_nums=header.read_queue_nums,
            write_queue_nums=header.write_queue_nums,
            perm=header.perm,
            topic_filter_type=header.topic_filter_type,
            topic_sys_flag=header.topic_sys_flag or 0,
            order=header.order,
            attributes=attributes.parse(header.attributes or ""),
        )
        self._topics.alter([topic])
        return Response()

    def put_all(self, command: Command, connection: RemotingConnection) -> Response:
        """All or none: Apache stops at the first one that is already as asked, and makes none of the others."""
        self._topics.alter(decode(TopicConfigs, command.body).topic_config_list)
        return Response()

    def put_static(self, command: Command, connection: RemotingConnection) -> Response:
        raise NotSupported("static topics are not supported by SaturnMQ; make an ordinary topic (updateTopic)")

    def get(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, TopicHeader, strict=False)
        topic = self._topics.get_or_create(header.topic)
        if topic is None:
            raise TopicNotFound(f"No topic in this broker. topic: {header.topic}")
        return Response(body=encode(topic))

    def get_all(self, command: Command, connection: RemotingConnection) -> Response:
        """All of them, or a page in the order of their names; another data version begins at the first page again."""
        header = msgspec.convert(command.fields, TopicPageHeader, strict=False)
        topics, version = self._topics.configs, self._topics.version
        table = dict(topics)
        if header != TopicPageHeader():
            size = self._broker.config.split_metadata_size
            if header.max_topic_num is not None:
                size = min(size, header.max_topic_num)
            table = page(topics, version, header.data_version, header.topic_seq, size)
        body = TopicConfigAndMappingTable(table, version, mapping_data_version=self._mapping_version)
        return Response(fields={"totalTopicNum": str(len(topics))}, body=encode(body))

    def system_topics(self, command: Command, connection: RemotingConnection) -> Response:
        return Response(body=encode(TopicList(sorted(self._topics.system_topics()))))

    def stats(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, TopicHeader, strict=False)
        topic = self._topics.get(header.topic)
        if topic is None:
            raise TopicNotFound(f"topic[{header.topic}] not exist")
        queues = [
            MessageQueue(header.topic, self._broker.name, queue_id)
            for queue_id in range(max(topic.read_queue_nums, topic.write_queue_nums))
        ]
        return after(
            gather([self._offset(queue) for queue in queues]),
            lambda offsets: self._stats(header.topic, dict(zip(queues, offsets, strict=True))),
        )

    def _offset(self, queue: MessageQueue) -> Reply[TopicOffset]:
        low = self._store.min_offset(queue.topic, queue.queue_id)
        high = self._store.max_offset(queue.topic, queue.queue_id)
        if high == 0:
            return TopicOffset(low, high, 0)
        stored = self._store.stored_ms_at(queue.topic, queue.queue_id, high - 1)
        return after(stored, lambda stored_ms: TopicOffset(low, high, stored_ms))

    def _stats(self, topic: str, offsets: dict[MessageQueue, TopicOffset]) -> Response:
        tps = self._broker.stats.tps("TOPIC_PUT_NUMS", topic)
        return Response(body=json.write(TopicStats(json.write_queue_map(offsets), tps)))

    def delete(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, TopicHeader, strict=False)
        return after(self._broker.delete_topics([header.topic]), lambda _: Response())

    def delete_all(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        topics = decode(TopicList, command.body).topic_list
        return after(self._broker.delete_topics(topics), lambda _: Response())

    def clean_unused(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        """Delete the data of topics that this broker has no settings of."""
        return after(self._broker.delete_unused_topics(), lambda _: Response())
