"""What clients ask of a broker that pop, and how it answers, as calls of a `BrokerPort` (see `requests`).

The answer to a pop tells a client in three texts how to build receipt handles.
Source: remoting/protocol/header/ExtraInfoUtil.java. Entries of a text are joined by `;`, and begin with the kind of
topic (0, or 1 and 2 for pop retry topics) and a queue id:

    startOffsetInfo   kind queueId startOffset
    msgOffsetInfo     kind queueId offset,offset,…
    orderCountInfo    kind queueId count, and kind qo<queueId>%<offset> count
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice

import msgspec

from saturnmq.kernel.errors import InvalidParameter, InvalidReceiptHandle, NoSuchMessage
from saturnmq.kernel.handle import ReceiptHandle, TopicKind
from saturnmq.kernel.later import Reply, after, gather, rescue
from saturnmq.kernel.ports import (
    Delivery,
    InvisibleChanged,
    Notice,
    Popped,
    PopRequest,
    PopResult,
    PopStatus,
)
from saturnmq.kernel.subscription import subscribe
from saturnmq.kernel.topic import pop_retry_topic
from saturnmq.wire.remoting.bodies import decode, encode
from saturnmq.wire.remoting.codes import ResponseCode
from saturnmq.wire.remoting.command import Command, Response
from saturnmq.wire.remoting.extensions import CHECKS_HANDLE, KEEP_FOR, KEEP_HANDLE, extensions
from saturnmq.wire.remoting.headers import (
    AckHeader,
    BatchAck,
    BatchAckBody,
    ChangeInvisibleHeader,
    NotificationHeader,
    PopHeader,
)
from saturnmq.wire.remoting.requests import Brokers, Peer, broker_of

_CODES = {
    PopStatus.FOUND: ResponseCode.SUCCESS,
    PopStatus.NOT_FOUND: ResponseCode.POLLING_TIMEOUT,
    PopStatus.POLLING_FULL: ResponseCode.POLLING_FULL,
    PopStatus.POLLING_TIMEOUT: ResponseCode.POLLING_TIMEOUT,
}
#: initMode of a pop: a new group begins at the last message (common/constant/ConsumeInitMode.java)
_INIT_MAX = 1
#: messages of one pop (ConsumeQueue of a check point: its bit map has 32 bits)
MOST_MESSAGES = 32
#: of a batch acknowledgement: messages of one pop of a queue may be far apart where others were filtered out
MOST_BITS = 1 << 16
#: messages of one batch acknowledgement
MOST_ACKS = 4_096


class PopRequests:
    """One method per request code (processor/PopMessageProcessor.java and its neighbours)."""

    def __init__(self, brokers: Brokers) -> None:
        self._brokers = brokers

    def pop(self, command: Command, connection: Peer) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, PopHeader, strict=False)
        request = PopRequest(
            group=header.consumer_group,
            topic=header.topic,
            queue_id=header.queue_id,
            max_messages=min(header.max_msg_nums, MOST_MESSAGES),
            invisible_ms=header.invisible_time,
            wait_ms=header.poll_time,
            subscription=subscribe(header.topic, header.exp, header.exp_type),
            from_latest=header.init_mode == _INIT_MAX,
            fifo=bool(header.order),
            attempt_id=header.attempt_id,
        )
        broker = broker_of(self._brokers, command)
        return after(broker.pop(request), lambda result: _popped(request, result))

    def ack(self, command: Command, connection: Peer) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, AckHeader, strict=False)
        broker = broker_of(self._brokers, command)
        return after(broker.ack(_delivery(header)), lambda _: Response(fields=extensions(command, CHECKS_HANDLE)))

    def batch_ack(self, command: Command, connection: Peer) -> Reply[Response | None]:
        """What another acknowledgement was faster with, or came too late for, does not spoil the others."""
        body = decode(BatchAckBody, command.body)
        broker = self._brokers.named(body.broker_name)
        deliveries = list(islice((one for pop in body.acks for one in _deliveries(pop)), MOST_ACKS + 1))
        if len(deliveries) > MOST_ACKS:
            raise InvalidParameter(f"the batch acknowledges more than {MOST_ACKS} messages: send several")
        replies = [
            rescue(partial(broker.ack, delivery), (InvalidReceiptHandle, NoSuchMessage), lambda error: None)
            for delivery in deliveries
        ]
        return after(gather(replies), lambda _: Response())

    def change_invisible(self, command: Command, connection: Peer) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, ChangeInvisibleHeader, strict=False)
        broker = broker_of(self._brokers, command)
        delivery, done = _delivery(header), extensions(command, CHECKS_HANDLE)
        if KEEP_HANDLE in command.fields:
            renewed = broker.renew(delivery, header.invisible_time, command.fields.get(KEEP_FOR, ""))
            return after(renewed, partial(_renewed, delivery, done))
        return after(broker.change_invisible(delivery, header.invisible_time), partial(_changed, done))

    def notification(self, command: Command, connection: Peer) -> Reply[Response | None]:
        """Tell when a pop would find something."""
        header = msgspec.convert(command.fields, NotificationHeader, strict=False)
        request = PopRequest(
            group=header.consumer_group,
            topic=header.topic,
            queue_id=header.queue_id,
            max_messages=1,
            invisible_ms=0,
            wait_ms=header.poll_time,
            subscription=subscribe(header.topic, header.exp, header.exp_type),
            fifo=bool(header.order),
            attempt_id=header.attempt_id,
        )
        return after(broker_of(self._brokers, command).notify(request), _noticed)


def _noticed(notice: Notice) -> Response:
    fields = {"hasMsg": str(notice.has_message).lower(), "pollingFull": str(notice.is_full).lower()}
    return Response(fields=fields)


def _popped(request: PopRequest, result: PopResult) -> Response:
    if result.status is not PopStatus.FOUND:
        return Response(_CODES[result.status], result.status.name)
    queues: dict[tuple[int, int], list[Popped]] = {}
    for message in result.messages:
        queues.setdefault((int(message.topic_kind), message.queue_id), []).append(message)
    fields = {
        "popTime": str(result.pop_ms),
        "invisibleTime": str(result.invisible_ms),
        "reviveQid": str(result.revive_queue_id),
        "restNum": str(result.rest),
        "startOffsetInfo": ";".join(
            [f"{kind} {queue_id} {messages[0].start_offset}" for (kind, queue_id), messages in queues.items()]
        ),
        "msgOffsetInfo": ";".join(
            [
                f"{kind} {queue_id} {','.join([str(message.queue_offset) for message in messages])}"
                for (kind, queue_id), messages in queues.items()
            ]
        ),
    }
    if request.fifo:
        fields["orderCountInfo"] = ";".join(
            entry for (kind, _), messages in queues.items() for entry in _order_counts(kind, messages)
        )
    return Response(fields=fields, body=b"".join([message.record for message in result.messages]))


def _order_counts(kind: int, messages: list[Popped]) -> Iterator[str]:
    """How often each message of a FIFO queue was delivered before, and for old clients the least of it."""
    queue_id = messages[0].queue_id
    for message in messages:
        if message.reconsume_times:
            yield f"{kind} qo{queue_id}%{message.queue_offset} {message.reconsume_times}"
    yield f"{kind} {queue_id} {min(message.reconsume_times for message in messages)}"


def _own_topic(topic: str, group: str, kind: TopicKind) -> str:
    """The topic that a consumer subscribed to, of one that may be a pop retry topic."""
    if kind is TopicKind.NORMAL:
        return topic
    return topic.removeprefix(pop_retry_topic(group, "", v2=kind is TopicKind.RETRY_V2))


def _delivery(header: AckHeader) -> Delivery:
    """Raises InvalidReceiptHandle."""
    handle = ReceiptHandle.decode(header.extra_info)
    return Delivery(
        group=header.consumer_group,
        topic=_own_topic(header.topic, header.consumer_group, handle.topic_kind),
        topic_kind=handle.topic_kind,
        queue_id=header.queue_id,
        queue_offset=header.offset,
        start_offset=handle.start_offset,
        pop_ms=handle.pop_ms,
        invisible_ms=handle.invisible_ms,
        revive_queue_id=handle.revive_queue_id,
    )


def _deliveries(pop: BatchAck) -> Iterator[Delivery]:
    """Raises InvalidReceiptHandle."""
    try:
        kind = TopicKind(int(pop.retry))
        bits = int.from_bytes(base64.b64decode(pop.bits, validate=True), "little")
    except ValueError as error:
        raise InvalidReceiptHandle(f"the batch acknowledgement cannot be read: {error}") from None
    if bits.bit_length() > MOST_BITS:
        raise InvalidReceiptHandle(f"the batch acknowledgement has more than {MOST_BITS} bits")
    for index in range(bits.bit_length()):
        if bits >> index & 1:
            yield Delivery(
                group=pop.group,
                topic=_own_topic(pop.topic, pop.group, kind),
                topic_kind=kind,
                queue_id=pop.queue_id,
                queue_offset=pop.start_offset + index,
                start_offset=pop.start_offset,
                pop_ms=pop.pop_ms,
                invisible_ms=pop.invisible_ms,
                revive_queue_id=pop.revive_queue_id,
            )


def encode_batch_ack(broker_name: str, deliveries: Iterable[Delivery]) -> bytes:
    """A BATCH_ACK_MESSAGE's body, with an entry for each pop of a queue (MQClientAPIImpl.java, batchAckMessageAsync).
    No offset may be MOST_BITS or more behind the first of its pop."""
    pops: dict[Delivery, int] = {}
    for delivery in deliveries:
        pop = msgspec.structs.replace(delivery, queue_offset=delivery.start_offset)
        pops[pop] = pops.get(pop, 0) | 1 << delivery.queue_offset - delivery.start_offset
    acks = [
        BatchAck(
            group=pop.group,
            topic=pop.topic,
            retry=str(int(pop.topic_kind)),
            start_offset=pop.start_offset,
            queue_id=pop.queue_id,
            revive_queue_id=pop.revive_queue_id,
            pop_ms=pop.pop_ms,
            invisible_ms=pop.invisible_ms,
            bits=base64.b64encode(bits.to_bytes(-(-bits.bit_length() // 8), "little")).decode(),
        )
        for pop, bits in pops.items()
    ]
    return encode(BatchAckBody(acks=acks, broker_name=broker_name))


def _renewed(delivery: Delivery, extensions: dict[str, str], changed: InvisibleChanged | None) -> Response:
    if changed is not None:
        return _changed(extensions, changed)
    same = InvisibleChanged(delivery.pop_ms, delivery.invisible_ms, delivery.revive_queue_id)
    return _changed({**extensions, KEEP_HANDLE: "true"}, same)


def _changed(extensions: dict[str, str], changed: InvisibleChanged) -> Response:
    return Response(
        fields={
            **extensions,
            "popTime": str(changed.pop_ms),
            "invisibleTime": str(changed.invisible_ms),
            "reviveQid": str(changed.revive_queue_id),
        }
    )
