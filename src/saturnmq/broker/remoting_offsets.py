"""Remoting: where groups are, and where queues begin and end (processor/ConsumerManageProcessor.java,
AdminBrokerProcessor.java)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from saturnmq.broker.broker import Broker
from saturnmq.kernel.later import Reply, after
from saturnmq.kernel.topic import MessageQueue
from saturnmq.net.remoting_connection import RemotingConnection
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.command import Command, Response
from saturnmq.wire.remoting.consumers import CorrectionOffsets, ResetOffsets
from saturnmq.wire.remoting.headers import (
    CloneHeader,
    CorrectionHeader,
    QueueHeader,
    ResetHeader,
)

#: Java's Long.MAX_VALUE
_LONG_MAX = (1 << 63) - 1


class OffsetHandlers:
    """One method per request code."""

    def __init__(self, broker: Broker) -> None:
        self._broker, self._store, self._offsets = broker, broker.store, broker.offsets

    # ---------------------------------------------------------------------------------------------- consumers

    # ------------------------------------------------------------------------------------------------- queues

    def earliest_stored(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, QueueHeader, strict=False)
        topic, queue_id = header.topic, header.queue_id
        return after(
            self._store.stored_ms_at(topic, queue_id, self._store.min_offset(topic, queue_id)),
            lambda stored_ms: Response(fields={"timestamp": str(stored_ms)}),
        )

    # ---------------------------------------------------------------------------------------------- operators

    def all(self, command: Command, connection: RemotingConnection) -> Response:
        return Response(body=self._offsets.encode())

    def reset(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, ResetHeader, strict=False)
        resets, group, topic = self._broker.resets, header.group, header.topic
        if self._broker.config.use_server_side_reset_offset:
            reset = resets.reset(group, topic, header.timestamp, queue_id=header.queue_id, offset=header.offset)
        else:
            reset = resets.reset_clients(group, topic, header.timestamp, force=header.is_force)
        return after(reset, _reset)

    def clone(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, CloneHeader, strict=False)
        cloned = self._broker.resets.clone(header.src_group, header.dest_group, header.topic, offline=header.offline)
        return after(cloned, lambda _: Response())

    def corrections(self, command: Command, connection: RemotingConnection) -> Response:
        """How far back the groups of a topic are at most, by queue. Apache forgets the offsets of `filterGroups` over
        it; here they are left out."""
        header = msgspec.convert(command.fields, CorrectionHeader, strict=False)
        topic, without = header.topic, (header.filter_groups or "").split(",")
        lowest: dict[int, int] = {}
        for group in self._offsets.groups_of(topic).difference(without):
            for queue_id, offset in self._offsets.of_group(group, topic).items():
                if offset >= self._store.min_offset(topic, queue_id):
                    lowest[queue_id] = min(offset, lowest.get(queue_id, offset))
        for queue_id, offset in self._offsets.of_group(header.compare_group, topic).items():
            if lowest.get(queue_id, 0) > offset:
                lowest[queue_id] = _LONG_MAX  # it is behind the others: there is nothing to correct
        return Response(body=json.write(CorrectionOffsets(lowest)))


def _offset(offset: int) -> Response:
    return Response(fields={"offset": str(offset)})


def _reset(offsets: Mapping[MessageQueue, int]) -> Response:
    return Response(body=json.write(ResetOffsets(json.write_queue_map(offsets))))
