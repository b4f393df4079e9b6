"""Remoting: messages by key and by their place in the log, and what a consume queue says
(processor/QueryMessageProcessor.java, AdminBrokerProcessor#queryConsumeQueue)."""

from __future__ import annotations

import msgspec

from saturnmq.broker.broker import Broker
from saturnmq.kernel.errors import SaturnError
from saturnmq.kernel.later import Reply, after
from saturnmq.kernel.subscription import TAG
from saturnmq.net.remoting_connection import RemotingConnection
from saturnmq.store.keys import KeyKind
from saturnmq.wire.remoting.bodies import encode
from saturnmq.wire.remoting.codes import ResponseCode
from saturnmq.wire.remoting.command import Command, Response
from saturnmq.wire.remoting.consumers import ConsumeQueueEntry, ConsumeQueuePage, subscription_data
from saturnmq.wire.remoting.headers import ConsumeQueueHeader, QueryHeader, ViewHeader

_KINDS = {kind.value: kind for kind in KeyKind}
#: entries of a consume queue in one answer
_MOST_ENTRIES = 10_000


class QueryHandlers:
    """Looking for messages, as operators do."""

    def __init__(self, broker: Broker) -> None:
        self._store, self._clients = broker.store, broker.clients

    def by_key(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        """The newest messages with the key, in the order of the log. Ours: how much of the log was not looked through,
        for those who must know that there are no more."""
        header = msgspec.convert(command.fields, QueryHeader, strict=False)
        kind, count = _KINDS.get(header.index_type or "", KeyKind.KEY), header.max_num
        if (header.unique_key_query or "").lower() == "true":
            kind, count = KeyKind.UNIQUE, self._store.config.default_query_max_num
        reply = self._store.query(header.topic, header.key, count, header.begin_timestamp, header.end_timestamp, kind)
        behind = self._store.index_behind
        return after(reply, lambda records: self._found(records, behind))

    def _found(self, records: list[bytes], behind: int) -> Response:
        indexed_ms, indexed_position = self._store.indexed if records else (0, 0)
        fields = {
            "indexLastUpdateTimestamp": str(indexed_ms),
            "indexLastUpdatePhyoffset": str(indexed_position),
        }
        if behind:
            fields["indexBehind"] = str(behind)
        if not records:
            remark = "can not find message, maybe time range not correct"
            return Response(ResponseCode.QUERY_NOT_FOUND, remark, fields)
        return Response(fields=fields, body=b"".join(reversed(records)))

    def by_position(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, ViewHeader, strict=False)

        def answer(record: bytes | None) -> Response:
            if record is None:
                remark = f"can not find message by the offset, {header.offset}"
                return Response(ResponseCode.SYSTEM_ERROR, remark)
            return Response(body=record)

        return after(self._store.record_at(header.offset), answer)

    def consume_queue(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, ConsumeQueueHeader, strict=False)
        topic, queue_id, index = header.topic, header.queue_id, header.index
        if queue_id not in self._store.queues(topic):
            raise SaturnError(f"{queue_id}@{topic} is not exist!")
        low, high = self._store.min_offset(topic, queue_id), self._store.max_offset(topic, queue_id)
        if not low <= index < high:
            # Apache says so with SUCCESS and no body, which its mqadmin cannot read
            raise SaturnError(f"Index {index} of {queue_id}@{topic} is not exist! It has {low} to {high - 1}")

        def answer(entries: list[tuple[int, int, int]]) -> Response:
            page = ConsumeQueuePage(
                queue_data=[
                    ConsumeQueueEntry(physic_offset=position, physic_size=size, tags_code=code)
                    for position, size, code in entries
                ],
                max_queue_index=high,
                min_queue_index=low,
            )
            if header.consumer_group is not None:
                self._add_filter(page, topic, header.consumer_group)
            return Response(body=encode(page))

        return after(self._store.entries(topic, queue_id, index, min(header.count, _MOST_ENTRIES)), answer)

    def _add_filter(self, page: ConsumeQueuePage, topic: str, name: str) -> None:
        """What the group wants of the topic, and `null` or the expression that is more than tags."""
        group = self._clients.consumer_group(name)
        wanted = None if group is None else group.subscriptions.get(topic)
        if wanted is None:
            page.filter_data = f"{name}@{topic} is not online!"
            return
        page.subscription_data = subscription_data(wanted)
        page.filter_data = "null" if wanted.expression_type == TAG else wanted.expression
