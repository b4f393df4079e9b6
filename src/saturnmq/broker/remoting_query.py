"""Remoting: messages by key and by their place in the log (processor/QueryMessageProcessor.java)."""

from __future__ import annotations

import msgspec

from saturnmq.broker.broker import Broker
from saturnmq.broker.headers import QueryHeader, ViewHeader
from saturnmq.kernel.later import Reply, after
from saturnmq.net.remoting_connection import RemotingConnection
from saturnmq.store.keys import KeyKind
from saturnmq.wire.remoting.codes import ResponseCode
from saturnmq.wire.remoting.command import Command, Response

_KINDS = {kind.value: kind for kind in KeyKind}


class QueryHandlers:
    """Looking for messages, as operators do."""

    def __init__(self, broker: Broker) -> None:
        self._store = broker.store

    def by_key(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        """The newest messages with the key, in the order of the log."""
        header = msgspec.convert(command.fields, QueryHeader, strict=False)
        kind, count = _KINDS.get(header.index_type or "", KeyKind.KEY), header.max_num
        if (header.unique_key_query or "").lower() == "true":
            kind, count = KeyKind.UNIQUE, self._store.config.default_query_max_num
        reply = self._store.query(header.topic, header.key, count, header.begin_timestamp, header.end_timestamp, kind)
        return after(reply, self._found)

    def _found(self, records: list[bytes]) -> Response:
        indexed_ms, indexed_position = self._store.indexed if records else (0, 0)
        fields = {
            "indexLastUpdateTimestamp": str(indexed_ms),
            "indexLastUpdatePhyoffset": str(indexed_position),
        }
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
