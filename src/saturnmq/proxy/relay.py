"""What brokers ask and tell this Proxy about its clients: it hands that on, and answers what the clients say.

Source: proxy/service/client/ProxyClientRemotingProcessor.java.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import msgspec

from saturnmq.kernel import properties as props
from saturnmq.kernel.errors import ProtocolError, RequestTimeout, SaturnError
from saturnmq.kernel.later import Reply, after, rescue
from saturnmq.kernel.ports import ClientChannel, DirectMessage, TransactionCheck
from saturnmq.kernel.topic import MessageQueue
from saturnmq.net.remoting_connection import Handler, RemotingConnection
from saturnmq.proxy.presence import Presence
from saturnmq.wire import record as records
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command, Response
from saturnmq.wire.remoting.headers import Long, RunningInfoHeader

logger = logging.getLogger(__name__)


class CheckHeader(msgspec.Struct, rename="camel", kw_only=True):
    """CHECK_TRANSACTION_STATE"""

    tran_state_table_offset: Long
    commit_log_offset: Long
    msg_id: str = ""
    transaction_id: str | None = None
    offset_msg_id: str = ""
    bname: str = ""


class ConsumeHeader(msgspec.Struct, rename="camel", kw_only=True):
    """CONSUME_MESSAGE_DIRECTLY, as a broker relays it"""

    consumer_group: str
    client_id: str
    msg_id: str
    broker_name: str = ""
    topic: str = ""
    topic_sys_flag: int | None = None
    group_sys_flag: int | None = None


class ResetHeader(msgspec.Struct):
    """RESET_CONSUMER_CLIENT_OFFSET, GET_CONSUMER_STATUS_FROM_CLIENT"""

    topic: str
    group: str
    timestamp: int = 0


class Relay:
    """One method per request code."""

    def __init__(self, presence: Presence, broker_at: Callable[[RemotingConnection], str]) -> None:
        """`broker_at`: which broker is at the other end."""
        self._presence, self._broker_at = presence, broker_at

    def table(self) -> dict[int, Handler]:
        return {
            RequestCode.CHECK_TRANSACTION_STATE: self.check_transaction,
            RequestCode.NOTIFY_CONSUMER_IDS_CHANGED: self.ignore,
            RequestCode.RESET_CONSUMER_CLIENT_OFFSET: self.reset,
            RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT: self.positions,
            RequestCode.GET_CONSUMER_RUNNING_INFO: self.running_info,
            RequestCode.CONSUME_MESSAGE_DIRECTLY: self.consume,
        }

    def ignore(self, command: Command, connection: RemotingConnection) -> None:
        """Members of a group came or went at a broker: this Proxy knows better who its clients' fellows are."""

    def check_transaction(self, command: Command, connection: RemotingConnection) -> None:
        """Any producer of the group may know what became of it."""
        header = msgspec.convert(command.fields, CheckHeader, strict=False)
        properties = props.decode(records.decode(command.body).properties)
        group = properties.get(props.PRODUCER_GROUP, "")
        check = TransactionCheck(
            group=group,
            broker_name=header.bname or self._broker_at(connection),
            half_offset=header.tran_state_table_offset,
            commit_log_offset=header.commit_log_offset,
            message_id=properties.get(props.UNIQUE_KEY) or header.transaction_id or header.msg_id,
            offset_message_id=header.offset_msg_id,
            record=command.body,
        )
        if not any(channel.check_transaction(check) for channel in self._presence.producers_here(group)):
            logger.info("nobody here can be asked about the transaction %s of %s", check.message_id, group)

    def reset(self, command: Command, connection: RemotingConnection) -> None:
        header = msgspec.convert(command.fields, ResetHeader, strict=False)
        offsets = _offsets(command.body)
        for channel in self._presence.consumers_here(header.group):
            channel.reset_offsets(header.group, header.topic, header.timestamp, offsets)

    def positions(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        """Of the first that knows: the request does not name one."""
        header = msgspec.convert(command.fields, ResetHeader, strict=False)
        for channel in self._presence.consumers_here(header.group):
            return after(
                channel.positions(header.group, header.topic),
                lambda found: Response(body=b'{"messageQueueTable":%b}' % bytes(json.write_queue_map(found))),
            )
        raise SaturnError(f"no consumer of {header.group} is connected here")

    def running_info(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, RunningInfoHeader, strict=False)
        return self._ask(
            header.consumer_group,
            header.client_id,
            lambda channel: channel.running_info(header.consumer_group, with_stack=header.jstack_enable),
        )

    def consume(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, ConsumeHeader, strict=False)
        message = DirectMessage(
            group=header.consumer_group,
            record=command.body,
            message_id=header.msg_id,
            broker_name=header.broker_name,
            topic=header.topic,
            topic_sys_flag=header.topic_sys_flag,
            group_sys_flag=header.group_sys_flag,
        )
        return self._ask(header.consumer_group, header.client_id, lambda channel: channel.consume(message))

    def _ask(self, group: str, client_id: str, ask: Callable[[ClientChannel], Reply[bytes]]) -> Reply[Response | None]:
        channel = self._presence.consumer(group, client_id)
        if channel is None:
            raise SaturnError(f"the consumer {client_id} of {group} is not connected here")

        def timed_out(error: RequestTimeout) -> Response:
            return Response(ResponseCode.CONSUME_MSG_TIMEOUT, str(error))

        return rescue(lambda: after(ask(channel), lambda body: Response(body=body)), RequestTimeout, timed_out)


def _offsets(body: bytes) -> Mapping[MessageQueue, int]:
    """Of RESET_CONSUMER_CLIENT_OFFSET."""
    try:
        table = json.parse(body)["offsetTable"]
        return {queue: offset for queue, offset in table.items() if isinstance(queue, MessageQueue)}
    except (ProtocolError, LookupError, TypeError, AttributeError) as error:
        raise SaturnError(f"the offsets to go to cannot be read: {error}") from None
