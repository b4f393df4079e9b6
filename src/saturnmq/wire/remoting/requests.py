"""What clients ask of a broker, and how it answers: header fields and bodies ↔ calls of a `BrokerPort`.

A broker's port serves these with the broker itself, a Proxy's with the broker that the request names. What is refused
here is what only this protocol can get wrong. A header field that is missing or no number escapes as
msgspec.ValidationError, which the connection answers with the name of the field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from saturnmq.kernel import properties as names
from saturnmq.kernel.errors import ConsumerNotOnline, FlushTimeout, IllegalMessage
from saturnmq.kernel.host import Address, pack
from saturnmq.kernel.later import Later, Reply, after, chain
from saturnmq.kernel.message import TRANSACTION_COMMIT, TRANSACTION_ROLLBACK, Message
from saturnmq.kernel.ports import (
    Boundary,
    BrokerPort,
    ClusterPort,
    DeadReason,
    EndTransactionRequest,
    GroupMembers,
    PullRequest,
    PullResult,
    PullStatus,
    RecallRequest,
    Resolution,
    SendBackRequest,
    SendReceipt,
    SendRequest,
)
from saturnmq.kernel.subscription import Subscription, subscribe
from saturnmq.kernel.topic import MessageQueue
from saturnmq.wire.record import decode_batch
from saturnmq.wire.remoting.bodies import (
    Connection,
    ConsumerIds,
    LockBatchRequest,
    LockBatchResponse,
    decode,
    encode,
)
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode, response_code
from saturnmq.wire.remoting.command import Command, Response
from saturnmq.wire.remoting.consumers import ConsumerConnection, subscription_data
from saturnmq.wire.remoting.headers import (
    CommitHeader,
    ConsumerGroupHeader,
    EndTransactionHeader,
    OffsetHeader,
    PullHeader,
    QueueHeader,
    RecallHeader,
    SearchHeader,
    SendBackHeader,
    SendHeader,
    SendHeaderV2,
)

#: the header field that names the broker (RpcRequestHeader.bname), and in headers with names of one letter
BROKER_NAME, BROKER_NAME_V2 = "bname", "n"

#: since when clients say how often a message may be retried (MQVersion.V3_4_9)
_V3_4_9 = 121

# sysFlag bits of a pull (common/sysflag/PullSysFlag.java)
COMMIT_OFFSET = 0x1
SUSPEND = 0x2
SUBSCRIPTION = 0x4

_RESOLUTIONS = {TRANSACTION_COMMIT: Resolution.COMMIT, TRANSACTION_ROLLBACK: Resolution.ROLLBACK}

_PULL_CODES = {
    PullStatus.FOUND: ResponseCode.SUCCESS,
    PullStatus.NOT_FOUND: ResponseCode.PULL_NOT_FOUND,
    PullStatus.NO_MATCH: ResponseCode.PULL_RETRY_IMMEDIATELY,
    PullStatus.OFFSET_MOVED: ResponseCode.PULL_OFFSET_MOVED,
}


class Peer(Protocol):
    """The connection that a request came over."""

    peer: Address


class Brokers(Protocol):
    """Who serves."""

    def named(self, name: str | None) -> BrokerPort:
        """None: the request names none."""
        ...


def broker_of(brokers: Brokers, command: Command) -> BrokerPort:
    """The one that the request names."""
    return brokers.named(command.fields.get(BROKER_NAME))


# ------------------------------------------------------------------------------------------------------ sends


def send_request(header: SendHeader | SendHeaderV2, command: Command, connection: Peer) -> SendRequest:
    """Raises IllegalMessage for a batch that has none."""
    born_host = pack(connection.peer)
    properties = (header.properties or "").encode()
    if header.batch:
        messages = [
            Message(
                header.topic,
                header.queue_id,
                entry.body,
                entry.properties,
                header.born_timestamp,
                born_host,
                entry.flag,
                header.sys_flag,
                header.reconsume_times or 0,
            )
            for entry in decode_batch(command.body)
        ]
        if not messages:
            raise IllegalMessage("the batch has no messages")
    else:
        messages = [
            Message(
                header.topic,
                header.queue_id,
                command.body,
                properties,
                header.born_timestamp,
                born_host,
                header.flag,
                header.sys_flag,
                header.reconsume_times or 0,
            )
        ]
    return SendRequest(
        producer_group=header.producer_group,
        messages=messages,
        properties=names.decode(properties),
        default_topic=header.default_topic,
        default_queue_nums=header.default_topic_queue_nums,
        max_reconsume_times=header.max_reconsume_times if command.version >= _V3_4_9 else None,
        batch=bool(header.batch),
        unit_mode=bool(header.unit_mode),
    )


class SendRequests:
    """Sending, sending back, taking back."""

    def __init__(
        self,
        brokers: Brokers,
        fields: Mapping[str, str],
        check: Callable[[BrokerPort, SendRequest], Reply[None]] | None = None,
    ) -> None:
        """`fields` are those of every answer to a send; `check` raises what speaks against one."""
        self._brokers, self._fields, self._check = brokers, fields, check

    def send(self, command: Command, connection: Peer) -> Reply[Response | None]:
        request = send_request(msgspec.convert(command.fields, SendHeader, strict=False), command, connection)
        broker = broker_of(self._brokers, command)
        return self.sent(broker.send(request) if self._check is None else self._checked(broker, request))

    def send_v2(self, command: Command, connection: Peer) -> Reply[Response | None]:
        request = send_request(msgspec.convert(command.fields, SendHeaderV2, strict=False), command, connection)
        broker = self._brokers.named(command.fields.get(BROKER_NAME_V2))
        return self.sent(broker.send(request) if self._check is None else self._checked(broker, request))

    def _checked(self, broker: BrokerPort, request: SendRequest) -> Reply[SendReceipt]:
        assert self._check is not None
        return chain(self._check(broker, request), lambda _: broker.send(request))

    def sent(self, reply: Reply[SendReceipt]) -> Reply[Response | None]:
        """The answer to a send."""
        if not isinstance(reply, Later):
            return self._receipt(reply)
        answer: Later[Response | None] = Later(reply.cancel)

        def failed(error: BaseException) -> None:
            if isinstance(error, FlushTimeout) and isinstance(error.value, SendReceipt):
                # the message is in the log: clients take this for sent, and want to know where
                answer.resolve(self._receipt(error.value, response_code(error), str(error)))
            else:
                answer.fail(error)

        reply.then(lambda receipt: answer.resolve(self._receipt(receipt)), failed)
        return answer

    def _receipt(self, receipt: SendReceipt, code: int = ResponseCode.SUCCESS, remark: str | None = None) -> Response:
        fields = {
            "msgId": receipt.message_id,
            "queueId": str(receipt.queue_id),
            "queueOffset": str(receipt.queue_offset),
            **self._fields,
        }
        if receipt.transaction_id is not None:
            fields["transactionId"] = receipt.transaction_id
        if receipt.recall_handle is not None:
            fields["recallHandle"] = receipt.recall_handle
        return Response(code, remark, fields)

    def send_back(self, command: Command, connection: Peer) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, SendBackHeader, strict=False)
        request = SendBackRequest(
            group=header.group,
            commit_log_offset=header.offset,
            delay_level=header.delay_level,
            max_reconsume_times=header.max_reconsume_times if command.version >= _V3_4_9 else None,
            origin_message_id=header.origin_msg_id,
            origin_topic=header.origin_topic,
            reason=header.dead_reason or DeadReason.CONSUMER,
            unit_mode=bool(header.unit_mode),
        )
        broker = broker_of(self._brokers, command)
        return after(broker.send_back(request), lambda _: Response())

    def recall(self, command: Command, connection: Peer) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, RecallHeader, strict=False)
        request = RecallRequest(
            topic=header.topic,
            handle=header.recall_handle,
            producer_group=header.producer_group,
            born_host=pack(connection.peer),
        )
        broker = broker_of(self._brokers, command)
        region = self._fields[names.MESSAGE_REGION]
        return after(
            broker.recall(request),
            lambda message_id: Response(fields={"msgId": message_id, names.MESSAGE_REGION: region}),
        )

    def end_transaction(self, command: Command, connection: Peer) -> Reply[Response | None]:
        """What is not decided has no answer, as at Apache's broker: clients send this one-way."""
        header = msgspec.convert(command.fields, EndTransactionHeader, strict=False)
        resolution = _RESOLUTIONS.get(header.commit_or_rollback)
        if resolution is None:
            return None
        request = EndTransactionRequest(
            topic=header.topic or "",
            producer_group=header.producer_group,
            half_offset=header.tran_state_table_offset,
            commit_log_offset=header.commit_log_offset,
            resolution=resolution,
            from_check=bool(header.from_transaction_check),
            message_id=header.unique_key,
        )
        broker = broker_of(self._brokers, command)
        return after(broker.end_transaction(request), lambda _: Response())


# ------------------------------------------------------------------------------------------------------ pulls


class PullRequests:
    """Reading a queue from an offset."""

    def __init__(self, brokers: Brokers, wanted: Callable[[PullHeader], Reply[Subscription]]) -> None:
        """`wanted` is what a consumer wants that said it in its heart-beats. Raises SubscriptionUnknown,
        SubscriptionOutdated."""
        self._brokers, self._wanted = brokers, wanted

    def pull(self, command: Command, connection: Peer) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, PullHeader, strict=False)
        broker = broker_of(self._brokers, command)
        lite = command.code == RequestCode.LITE_PULL_MESSAGE
        if not header.sys_flag & SUBSCRIPTION:
            return chain(self._wanted(header), lambda wanted: _pull(broker, header, wanted, lite))
        wanted = subscribe(header.topic, header.subscription, header.expression_type, header.sub_version)
        return _pull(broker, header, wanted, lite)


def _pull(broker: BrokerPort, header: PullHeader, wanted: Subscription, lite: bool) -> Reply[Response | None]:
    request = PullRequest(
        group=header.consumer_group,
        queue=MessageQueue(header.topic, broker.name, header.queue_id),
        offset=header.queue_offset,
        max_messages=header.max_msg_nums,
        max_bytes=header.max_msg_bytes or 0,
        subscription=wanted,
        wait_ms=header.suspend_timeout_millis if header.sys_flag & SUSPEND else 0,
        commit_offset=header.commit_offset if header.sys_flag & COMMIT_OFFSET else -1,
        lite=lite,
    )
    return after(broker.pull(request), _pulled)


def _pulled(result: PullResult) -> Response:
    fields = {
        "suggestWhichBrokerId": "0",
        "nextBeginOffset": str(result.next_offset),
        "minOffset": str(result.min_offset),
        "maxOffset": str(result.max_offset),
    }
    return Response(_PULL_CODES[result.status], result.status.name, fields, b"".join(result.records))


# ------------------------------------------------------------------------------------------------------ queues


class QueueRequests:
    """Where groups are in queues, where queues begin and end, and who may consume one in order."""

    def __init__(self, brokers: Brokers) -> None:
        self._brokers = brokers

    def committed(self, command: Command, connection: Peer) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, OffsetHeader, strict=False)
        broker = broker_of(self._brokers, command)
        queue = MessageQueue(header.topic, broker.name, header.queue_id)
        zero_if_new = header.set_zero_if_not_found is not False
        return after(broker.committed(header.consumer_group, queue, zero_if_new=zero_if_new), offset_answer)

    def commit(self, command: Command, connection: Peer) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, CommitHeader, strict=False)
        broker = broker_of(self._brokers, command)
        queue = MessageQueue(header.topic, broker.name, header.queue_id)
        return after(broker.commit(header.consumer_group, queue, header.commit_offset), _committed)

    def by_time(self, command: Command, connection: Peer) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, SearchHeader, strict=False)
        boundary = Boundary.UPPER if (header.boundary_type or "").upper() == Boundary.UPPER.name else Boundary.LOWER
        broker = broker_of(self._brokers, command)
        queue = MessageQueue(header.topic, broker.name, header.queue_id)
        return after(broker.offset_by_time(queue, header.timestamp, boundary), offset_answer)

    def largest(self, command: Command, connection: Peer) -> Reply[Response | None]:
        """`committed` changes nothing: nobody sees what is not flushed."""
        broker, queue = self._queue(command)
        return after(broker.max_offset(queue), offset_answer)

    def smallest(self, command: Command, connection: Peer) -> Reply[Response | None]:
        broker, queue = self._queue(command)
        return after(broker.min_offset(queue), offset_answer)

    def _queue(self, command: Command) -> tuple[BrokerPort, MessageQueue]:
        header = msgspec.convert(command.fields, QueueHeader, strict=False)
        broker = broker_of(self._brokers, command)
        return broker, MessageQueue(header.topic, broker.name, header.queue_id)

    def lock(self, command: Command, connection: Peer) -> Reply[Response | None]:
        body = decode(LockBatchRequest, command.body)
        if not body.mq_set:
            return Response(body=encode(LockBatchResponse([])))
        reply = self._of(body).lock(body.consumer_group, body.mq_set, body.client_id)
        return after(reply, lambda locked: Response(body=encode(LockBatchResponse(locked))))

    def unlock(self, command: Command, connection: Peer) -> Reply[Response | None]:
        body = decode(LockBatchRequest, command.body)
        if not body.mq_set:
            return Response()
        return after(self._of(body).unlock(body.consumer_group, body.mq_set, body.client_id), lambda _: Response())

    def _of(self, body: LockBatchRequest) -> BrokerPort:
        """All queues of a request are one broker's."""
        return self._brokers.named(body.mq_set[0].broker_name)


def offset_answer(offset: int) -> Response:
    return Response(fields={"offset": str(offset)})


def _committed(counts: bool) -> Response:
    return Response(remark=None if counts else "Offset has been previously reset")


# ----------------------------------------------------------------------------------------------------- members


class MemberRequests:
    """Who is in a consumer group."""

    def __init__(self, cluster: ClusterPort) -> None:
        self._cluster = cluster

    def ids(self, command: Command, connection: Peer) -> Reply[Response | None]:
        group = msgspec.convert(command.fields, ConsumerGroupHeader, strict=False).consumer_group

        def answer(found: GroupMembers | None) -> Response:
            if found is None:
                return Response(ResponseCode.SYSTEM_ERROR, f"no consumer for this group, {group}")
            return Response(body=encode(ConsumerIds(found.client_ids())))

        return after(self._cluster.members(group), answer)

    def connections(self, command: Command, connection: Peer) -> Reply[Response | None]:
        """And what they want."""
        group = msgspec.convert(command.fields, ConsumerGroupHeader, strict=False).consumer_group

        def answer(found: GroupMembers | None) -> Response:
            if found is None:
                raise ConsumerNotOnline(f"the consumer group[{group}] not online")
            body = ConsumerConnection(
                connection_set=[
                    Connection(one.client_id, one.address, one.language, one.version) for one in found.members
                ],
                subscription_table={topic: subscription_data(one) for topic, one in found.subscriptions.items()},
                consume_type=found.consume_type.value,
                message_model=found.message_model.value,
                consume_from_where=found.consume_from,
            )
            return Response(body=encode(body))

        return after(self._cluster.members(group), answer)
