"""The way back to a client that speaks Remoting: what it is told and asked, by the server itself or for an operator.

Source: broker/client/net/Broker2Client.java
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from saturnmq.kernel import properties as names
from saturnmq.kernel.errors import SaturnError, ServiceUnavailable
from saturnmq.kernel.later import Later
from saturnmq.kernel.ports import DirectMessage, SendRequest, TransactionCheck
from saturnmq.kernel.topic import HALF_TOPIC, MessageQueue
from saturnmq.net.remoting_connection import RemotingConnection
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.codes import LanguageCode, RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command
from saturnmq.wire.remoting.consumers import QueueOffset, ResetOffsets, ResetOffsetsForC, decode_positions

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

    def check_transaction(self, check: TransactionCheck) -> bool:
        if self._connection.behind:
            return False
        fields = {
            "topic": HALF_TOPIC,
            "tranStateTableOffset": str(check.half_offset),
            "commitLogOffset": str(check.commit_log_offset),
            "msgId": check.message_id,
            "transactionId": check.message_id,
            "offsetMsgId": check.offset_message_id,
            "bname": check.broker_name,
        }
        self._connection.send_one_way(RequestCode.CHECK_TRANSACTION_STATE, fields, check.record)
        return True

    def _ask(
        self, code: int, fields: Mapping[str, str], body: bytes = b"", timeout_ms: int = TIMEOUT_MS
    ) -> Later[bytes]:
        return self._connection.request(code, fields, body, timeout_ms).map(_body)


def _body(answer: Command) -> bytes:
    # Go's client says SUCCESS, nothing, and in the remark why it has nothing to say
    if answer.code != ResponseCode.SUCCESS or not answer.body:
        raise SaturnError(answer.remark or f"the client answered {answer.code}")
    return answer.body


def channel_of(
    command: Command,
    connection: RemotingConnection,
    client_id: str,
    role: str,
    lost: Callable[[RemotingChannel], None],
) -> RemotingChannel:
    """The client in this role; several may share a connection. `lost` hears of each when the connection is lost."""
    channels: dict[str, RemotingChannel] | None = connection.channels.get(role)
    if channels is None:
        channels = connection.channels[role] = {}
        connection.on_close.append(partial(_lost, channels, lost))
    channel = channels.get(client_id)
    if channel is None:
        channel = channels[client_id] = RemotingChannel(connection, client_id, command.language, command.version)
    return channel


def _lost(channels: Mapping[str, RemotingChannel], lost: Callable[[RemotingChannel], None]) -> None:
    for channel in channels.values():
        lost(channel)
