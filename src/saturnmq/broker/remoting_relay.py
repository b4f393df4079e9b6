"""Remoting, the way to a client: what the broker tells one and asks it, by itself or because an operator asked.

Source: broker/client/net/Broker2Client.java, processor/AdminBrokerProcessor.java (callConsumer).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from saturnmq.broker.broker import Broker
from saturnmq.broker.headers import ConsumerStatusHeader, DirectConsumeHeader, RunningInfoHeader
from saturnmq.kernel import properties as names
from saturnmq.kernel.errors import NotFound, RequestTimeout, SaturnError, ServiceUnavailable
from saturnmq.kernel.later import Later, Reply, after, chain, gather, rescue
from saturnmq.kernel.ports import ClientChannel, DirectMessage, SendRequest
from saturnmq.kernel.topic import MessageQueue
from saturnmq.net.remoting_connection import RemotingConnection
from saturnmq.wire.record import parse_offset_message_id
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.codes import LanguageCode, RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command, Response
from saturnmq.wire.remoting.consumers import (
    ConsumerStatus,
    QueueOffset,
    ResetOffsets,
    ResetOffsetsForC,
    decode_positions,
)

#: how long a client may take to answer (Broker2Client#callClient)
TIMEOUT_MS = 10_000
#: for where it is: every member of the group is asked (Broker2Client#getConsumeStatus)
POSITIONS_TIMEOUT_MS = 5_000


class RemotingChannel:
    """A `kernel.ports.ClientChannel` over one connection."""

    def __init__(self, connection: RemotingConnection, client_id: str, language: int, version: int) -> None:
        self._connection = connection
        self.client_id, self.language, self.version = client_id, LanguageCode(language).name, version
        self.peer = connection.peer

    def consumers_changed(self, group: str) -> None:
        self._connection.send_one_way(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, {"consumerGroup": group})

    def reply_message(self, request: SendRequest, received_ms: int) -> Later[None]:
        message = request.messages[0]
        fields = {
            "producerGroup": request.producer_group,
            "topic": message.topic,
            "defaultTopic": request.default_topic,
            "defaultTopicQueueNums": str(request.default_queue_nums),
            "queueId": str(message.queue_id),
            "sysFlag": str(message.sys_flag),
            "bornTimestamp": str(message.born_ms),
            "flag": str(message.flag),
            "properties": names.encode(request.properties).decode(),
            "reconsumeTimes": str(message.reconsume_times),
            "unitMode": "false",
            "bornHost": str(self.peer),
            "storeHost": str(self._connection.local),
            "storeTimestamp": str(received_ms),
        }
        return self._connection.request(RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT, fields, message.body, TIMEOUT_MS).map(
            self._taken
        )

    def _taken(self, answer: Command) -> None:
        if answer.code != ResponseCode.SUCCESS:
            raise ServiceUnavailable(f"push reply message to {self.client_id} fail: {answer.remark}")

    def reset_offsets(self, group: str, topic: str, timestamp_ms: int, offsets: Mapping[MessageQueue, int]) -> None:
        fields = {"topic": topic, "group": group, "timestamp": str(timestamp_ms), "isForce": "true"}
        body: ResetOffsets | ResetOffsetsForC
        if self.language == LanguageCode.CPP.name:
            body = ResetOffsetsForC(
                [QueueOffset(q.topic, q.broker_name, q.queue_id, offset) for q, offset in offsets.items()]
            )
        else:
            body = ResetOffsets(json.write_queue_map(offsets))
        self._connection.send_one_way(RequestCode.RESET_CONSUMER_CLIENT_OFFSET, fields, json.write(body))

    def positions(self, group: str, topic: str) -> Later[Mapping[MessageQueue, int]]:
        return self._ask(
            RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT,
            {"topic": topic, "group": group},
            timeout_ms=POSITIONS_TIMEOUT_MS,
        ).map(decode_positions)

    def running_info(self, group: str, *, with_stack: bool) -> Later[bytes]:
        fields = {"consumerGroup": group, "clientId": self.client_id, "jstackEnable": str(with_stack).lower()}
        return self._ask(RequestCode.GET_CONSUMER_RUNNING_INFO, fields)

    def consume(self, message: DirectMessage) -> Later[bytes]:
        fields = {
            "consumerGroup": message.group,
            "clientId": self.client_id,
            "msgId": message.message_id,
            "brokerName": message.broker_name,
        }
        optional = {
            "topic": message.topic or None,
            "topicSysFlag": message.topic_sys_flag,
            "groupSysFlag": message.group_sys_flag,
        }
        fields |= {name: str(value) for name, value in optional.items() if value is not None}
        return self._ask(RequestCode.CONSUME_MESSAGE_DIRECTLY, fields, message.record)

    def _ask(
        self, code: int, fields: Mapping[str, str], body: bytes = b"", timeout_ms: int = TIMEOUT_MS
    ) -> Later[bytes]:
        return self._connection.request(code, fields, body, timeout_ms).map(_body)


def _body(answer: Command) -> bytes:
    # Go's client says SUCCESS, nothing, and in the remark why it has nothing to say
    if answer.code != ResponseCode.SUCCESS or not answer.body:
        raise SaturnError(answer.remark or f"the client answered {answer.code}")
    return answer.body


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
