"""Remoting, what operators ask of a client through the broker (processor/AdminBrokerProcessor.java, callConsumer)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from saturnmq.broker.broker import Broker
from saturnmq.kernel.errors import NotFound, RequestTimeout, SaturnError
from saturnmq.kernel.later import Reply, after, chain, gather, rescue
from saturnmq.kernel.ports import ClientChannel, DirectMessage
from saturnmq.kernel.topic import MessageQueue
from saturnmq.net.remoting_connection import RemotingConnection
from saturnmq.wire.record import parse_offset_message_id
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.codes import ResponseCode
from saturnmq.wire.remoting.command import Command, Response
from saturnmq.wire.remoting.consumers import (
    ConsumerStatus,
)
from saturnmq.wire.remoting.headers import ConsumerStatusHeader, DirectConsumeHeader, RunningInfoHeader


class RelayHandlers:
    """What operators ask of a client through the broker."""

    def __init__(self, broker: Broker) -> None:
        self._broker, self._clients = broker, broker.clients

    def running_info(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, RunningInfoHeader, strict=False)
        return self._relay(
            header.consumer_group,
            header.client_id,
            lambda channel: channel.running_info(header.consumer_group, with_stack=header.jstack_enable),
        )

    def consume(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        """Hand a message to one consumer."""
        header = msgspec.convert(command.fields, DirectConsumeHeader, strict=False)
        _, position = parse_offset_message_id(header.msg_id)
        return chain(self._broker.store.record_at(position), lambda record: self._consume(header, record))

    def _consume(self, header: DirectConsumeHeader, record: bytes | None) -> Reply[Response | None]:
        if record is None:
            raise NotFound(f"there is no message {header.msg_id} in the commit log any more")
        topic = self._broker.topics.get(header.topic or "")
        group = self._broker.groups.get(header.consumer_group)
        message = DirectMessage(
            group=header.consumer_group,
            record=record,
            message_id=header.msg_id,
            broker_name=self._broker.name,
            topic=header.topic or "",
            topic_sys_flag=None if topic is None else topic.topic_sys_flag,
            group_sys_flag=None if group is None else group.group_sys_flag,
        )
        return self._relay(header.consumer_group, header.client_id, lambda channel: channel.consume(message))

    def _relay(
        self, group: str, client_id: str, ask: Callable[[ClientChannel], Reply[bytes]]
    ) -> Reply[Response | None]:
        channel = self._clients.consumer(group, client_id)
        if channel is None:
            raise SaturnError(f"The Consumer <{group}> <{client_id}> not online")

        def timed_out(error: RequestTimeout) -> Response:
            return Response(ResponseCode.CONSUME_MSG_TIMEOUT, f"consumer <{group}> <{client_id}> Timeout: {error}")

        return rescue(lambda: after(ask(channel), lambda body: Response(body=body)), RequestTimeout, timed_out)

    def positions(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        """Where each member is, or the named one; who does not answer is left out."""
        header = msgspec.convert(command.fields, ConsumerStatusHeader, strict=False)
        members = self._clients.consumer_group(header.group)
        if members is None:
            raise SaturnError(f"No Any Consumer online in the consumer group: [{header.group}]")
        asked = [c for c in members.members if not header.client_addr or c.client_id == header.client_addr]

        def collect(found: list[Mapping[MessageQueue, int] | None]) -> Response:
            table = {
                channel.client_id: json.write_queue_map(positions)
                for channel, positions in zip(asked, found, strict=True)
                if positions is not None
            }
            return Response(body=json.write(ConsumerStatus(table)))

        return after(gather([self._positions(channel, header) for channel in asked]), collect)

    def _positions(
        self, channel: ClientChannel, header: ConsumerStatusHeader
    ) -> Reply[Mapping[MessageQueue, int] | None]:
        return rescue(lambda: channel.positions(header.group, header.topic), SaturnError, lambda error: None)
