"""The gRPC face of the Proxy: `apache.rocketmq.v2.MessagingService`.

A handler parses, asks the Proxy, and builds the answer. What goes wrong is told in the answer (`status.code`), as
clients expect it; a gRPC status is for requests that cannot be read, for RPCs that this version does not have, and for
the Telemetry stream. Anything but a SaturnError that escapes is a bug, which the gRPC server logs and answers INTERNAL.

Here are the table of RPCs and those that are small; `routes`, `receiving` and `telemetry` have the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar, cast

from google.protobuf.message import Message

from saturnmq.kernel.errors import IllegalMessage, InvalidParameter, NotSupported, SaturnError
from saturnmq.kernel.host import pack
from saturnmq.kernel.later import Reply, after, gather, rescue
from saturnmq.kernel.ports import Resolution, SendReceipt
from saturnmq.kernel.properties import UNIQUE_KEY
from saturnmq.kernel.topic import MessageType
from saturnmq.net.grpc_server import Call, Kind, Method
from saturnmq.proxy import reflection, telemetry
from saturnmq.proxy.checks import (
    MAX_ENTRIES,
    check_client_group,
    check_client_id,
    check_client_topic,
    parse,
)
from saturnmq.proxy.codes import OK, status_of
from saturnmq.proxy.messages import Incoming, take_in
from saturnmq.proxy.proxy import Proxy
from saturnmq.proxy.pulling import Pulling
from saturnmq.proxy.receiving import Receiving
from saturnmq.proxy.routes import Routes
from saturnmq.proxy.telemetry import Telemetry
from saturnmq.wire.proto import rocketmq_pb2 as pb

SERVICE = "apache.rocketmq.v2.MessagingService"

#: what a send may have beside bodies of maxMessageSize
BESIDE_BODY_BYTES = 1024 * 1024

#: status OK, and one entry with status OK
SENT = pb.SendMessageResponse(status=OK, entries=[pb.SendResultEntry(status=OK)]).SerializeToString()

#: types of messages, why only one of them goes into a request
_SENT_ALONE = {MessageType.DELAY: "for a time", MessageType.TRANSACTION: "of transactions"}
_RESOLUTIONS = {pb.COMMIT: Resolution.COMMIT, pb.ROLLBACK: Resolution.ROLLBACK}

Request = TypeVar("Request", bound=Message)


def methods(proxy: Proxy) -> dict[bytes, Method]:
    """The table for `net.grpc_server.GrpcServer`. Raises ValueError when `advertise` cannot be read."""
    messages, receiving, routes, clients = Messages(proxy), Receiving(proxy), Routes(proxy), Telemetry(proxy)
    pulling = Pulling(proxy)
    dead_letters = pb.ForwardMessageToDeadLetterQueueRequest, pb.ForwardMessageToDeadLetterQueueResponse
    termination = pb.NotifyClientTerminationRequest, pb.NotifyClientTerminationResponse
    table = {
        "QueryRoute": _unary(routes.query_route, pb.QueryRouteRequest, pb.QueryRouteResponse),
        "QueryAssignment": _unary(routes.query_assignment, pb.QueryAssignmentRequest, pb.QueryAssignmentResponse),
        "SendMessage": Method(Kind.UNARY, messages.send_message, partial(_refuse, pb.SendMessageResponse)),
        "EndTransaction": _unary(messages.end_transaction, pb.EndTransactionRequest, pb.EndTransactionResponse),
        "RecallMessage": _unary(messages.recall_message, pb.RecallMessageRequest, pb.RecallMessageResponse),
        "ReceiveMessage": Method(Kind.SERVER_STREAM, receiving.receive_message, receiving.refuse),
        "AckMessage": _unary(messages.ack_message, pb.AckMessageRequest, pb.AckMessageResponse),
        "ChangeInvisibleDuration": _unary(
            messages.change_invisible_duration, pb.ChangeInvisibleDurationRequest, pb.ChangeInvisibleDurationResponse
        ),
        "ForwardMessageToDeadLetterQueue": _unary(messages.forward_message_to_dead_letter_queue, *dead_letters),
        "Telemetry": Method(Kind.BIDI, clients.telemetry, telemetry.refuse),
        "Heartbeat": _unary(clients.heartbeat, pb.HeartbeatRequest, pb.HeartbeatResponse),
        "NotifyClientTermination": _unary(clients.notify_client_termination, *termination),
        "PullMessage": Method(Kind.SERVER_STREAM, pulling.pull_message, pulling.refuse),
        "GetOffset": _unary(pulling.get_offset, pb.GetOffsetRequest, pb.GetOffsetResponse),
        "UpdateOffset": _unary(pulling.update_offset, pb.UpdateOffsetRequest, pb.UpdateOffsetResponse),
        "QueryOffset": _unary(pulling.query_offset, pb.QueryOffsetRequest, pb.QueryOffsetResponse),
        "SyncLiteSubscription": _unary(_no_lite, pb.SyncLiteSubscriptionRequest, pb.SyncLiteSubscriptionResponse),
    }
    return {f"/{SERVICE}/{name}".encode(): method for name, method in table.items()} | reflection.methods([SERVICE])


def _no_lite(call: Call, request: pb.SyncLiteSubscriptionRequest) -> bytes:
    raise NotSupported("SyncLiteSubscription: lite topics are not supported by this version of SaturnMQ")


def _unary(
    handler: Callable[[Call, Request], Reply[bytes]], request_type: type[Request], response_type: Callable[..., Message]
) -> Method:
    def handle(call: Call, data: bytes) -> Reply[bytes]:
        check_client_id(call)
        return handler(call, parse(request_type, data))

    return Method(Kind.UNARY, handle, partial(_refuse, response_type))


def _refuse(response_type: Callable[..., Message], call: Call, error: SaturnError) -> None:
    call.send(response_type(status=status_of(error)).SerializeToString())
    call.finish()


class Messages:
    """Sends messages, and settles those that were received."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._config = proxy.config
        self._clock = proxy.clock
        self._most_bytes = proxy.config.max_message_size + BESIDE_BODY_BYTES

    def send_message(self, call: Call, data: bytes) -> Reply[bytes]:
        check_client_id(call)
        sent = parse(pb.SendMessageRequest, data, self._most_bytes).messages
        if not sent:
            raise IllegalMessage("the request has no message: send at least one")
        if len(sent) > MAX_ENTRIES:
            raise IllegalMessage(f"the request has {len(sent)} messages, the limit is {MAX_ENTRIES}")
        first = sent[0]
        topic = first.topic.name
        check_client_topic(topic)
        now_ms = self._clock.now_ms()
        incoming = [take_in(first, topic, call.peer, self._config, now_ms)]
        for message in sent[1:]:
            if message.topic != first.topic:
                raise IllegalMessage("the messages of one request have different topics: send them one by one")
            incoming.append(take_in(message, topic, call.peer, self._config, now_ms))
        kind, message_group = _common(incoming)
        if kind in _SENT_ALONE and len(incoming) > 1:
            raise IllegalMessage(f"the messages of one request are {_SENT_ALONE[kind]}: send them one by one")
        reply = self._proxy.send(topic, [one.message for one in incoming], incoming[0].properties, kind, message_group)
        return after(reply, partial(_sent, incoming))

    def end_transaction(self, call: Call, request: pb.EndTransactionRequest) -> Reply[bytes]:
        check_client_topic(request.topic.name)
        reply = self._proxy.end_transaction(
            request.topic.name,
            request.transaction_id,
            request.message_id,
            _RESOLUTIONS.get(request.resolution, Resolution.UNKNOWN),
            from_check=request.source == pb.SOURCE_SERVER_CHECK,
        )
        return after(reply, _ended)

    def recall_message(self, call: Call, request: pb.RecallMessageRequest) -> Reply[bytes]:
        topic = request.topic.name
        check_client_topic(topic)
        return after(self._proxy.recall(topic, request.recall_handle, pack(call.peer)), _recalled)

    def ack_message(self, call: Call, request: pb.AckMessageRequest) -> Reply[bytes]:
        topic, group = request.topic.name, request.group.name
        check_client_topic(topic)
        check_client_group(group)
        if not request.entries:
            raise InvalidParameter("the request acknowledges nothing: it has no entry")
        if len(request.entries) > MAX_ENTRIES:
            raise InvalidParameter(f"the request has {len(request.entries)} entries, the limit is {MAX_ENTRIES}")
        ack = cast("Callable[..., Reply[pb.Status | None]]", self._proxy.ack)  # it never answers a status: None is OK
        replies = [
            rescue(partial(ack, group, topic, entry.receipt_handle), SaturnError, status_of)
            for entry in request.entries
        ]
        return after(gather(replies), partial(_acknowledged, request))

    def change_invisible_duration(self, call: Call, request: pb.ChangeInvisibleDurationRequest) -> Reply[bytes]:
        """Clients take over whatever handle the answer has: a refusal has the one that they know."""
        topic, group = request.topic.name, request.group.name
        old = request.receipt_handle

        def change() -> Reply[bytes]:
            check_client_topic(topic)
            check_client_group(group)
            invisible_ms = request.invisible_duration.ToMilliseconds()
            return after(self._proxy.change_invisible(group, topic, old, invisible_ms), partial(_changed, OK))

        return rescue(change, SaturnError, lambda error: _changed(status_of(error), old))

    def forward_message_to_dead_letter_queue(
        self, call: Call, request: pb.ForwardMessageToDeadLetterQueueRequest
    ) -> Reply[bytes]:
        topic, group = request.topic.name, request.group.name
        check_client_topic(topic)
        check_client_group(group)
        reply = self._proxy.forward_to_dead_letters(group, topic, request.receipt_handle, request.message_id)
        return after(reply, _forwarded)


def _common(incoming: Sequence[Incoming]) -> tuple[MessageType, str]:
    """Type and message group of the messages of one request. Raises IllegalMessage when they have several: one queue
    takes them all, so that they would lose their order or their type."""
    first = incoming[0]
    for other in incoming:
        if other.message_group != first.message_group or other.message_type is not first.message_type:
            raise IllegalMessage(
                "the messages of one request have different message groups or types: send them one by one"
            )
    return first.message_type, first.message_group


def _sent(incoming: Sequence[Incoming], receipt: SendReceipt) -> bytes:
    response = pb.SendMessageResponse.FromString(SENT)
    entry = response.entries[0]
    for index, one in enumerate(incoming):
        if index > 0:
            entry = response.entries.add(status=OK)
        entry.message_id = one.properties[UNIQUE_KEY]
        entry.offset = receipt.queue_offset + index
        if receipt.transaction_id is not None:
            entry.transaction_id = receipt.transaction_id
        if receipt.recall_handle is not None:
            entry.recall_handle = receipt.recall_handle
    return response.SerializeToString()


def _ended(_: None) -> bytes:
    return pb.EndTransactionResponse(status=OK).SerializeToString()


def _recalled(message_id: str) -> bytes:
    return pb.RecallMessageResponse(status=OK, message_id=message_id).SerializeToString()


def _acknowledged(request: pb.AckMessageRequest, statuses: Sequence[pb.Status | None]) -> bytes:
    """None stands for OK."""
    response = pb.AckMessageResponse()
    codes = set()
    for entry, status in zip(request.entries, statuses, strict=True):
        status = status or OK
        codes.add(status.code)
        response.entries.add(message_id=entry.message_id, receipt_handle=entry.receipt_handle, status=status)
    if len(codes) == 1:
        response.status.CopyFrom(response.entries[0].status)
    else:
        response.status.code = pb.MULTIPLE_RESULTS
        response.status.message = "MULTIPLE_RESULTS"
    return response.SerializeToString()


def _changed(status: pb.Status, handle: str) -> bytes:
    return pb.ChangeInvisibleDurationResponse(status=status, receipt_handle=handle).SerializeToString()


def _forwarded(_: None) -> bytes:
    return pb.ForwardMessageToDeadLetterQueueResponse(status=OK).SerializeToString()
