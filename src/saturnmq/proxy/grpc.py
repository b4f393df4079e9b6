"""The gRPC face of the Proxy: `apache.rocketmq.v2.MessagingService`.

A handler parses, asks the Proxy, and builds the answer. What goes wrong is told in the answer (`status.code`), as
clients expect it; a gRPC status is for requests that cannot be read, for RPCs that this version does not have, and for
the Telemetry stream. Anything but a SaturnError that escapes is a bug, which the gRPC server logs and answers INTERNAL.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from saturnmq.kernel import errors
from saturnmq.kernel.errors import (
    ClientIdRequired,
    IllegalGroup,
    IllegalInvisibleTime,
    IllegalMessage,
    IllegalPollingTime,
    IllegalTopic,
    InvalidParameter,
    NoPermission,
    NotSupported,
    SaturnError,
)
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Later, Reply, after, chain, gather
from saturnmq.kernel.ports import ConsumerMembership, ConsumeType, MessageModel, PopStatus, SendReceipt
from saturnmq.kernel.properties import UNIQUE_KEY
from saturnmq.kernel.subscription import SQL92, TAG, Subscription, subscribe
from saturnmq.kernel.topic import (
    READ,
    WRITE,
    GroupConfig,
    MessageType,
    QueueData,
    check_group,
    check_topic,
    is_system_group,
    is_system_topic,
)
from saturnmq.net.grpc_server import Call, Kind, Method
from saturnmq.proxy import reflection
from saturnmq.proxy.messages import Incoming, set_time, take_in, to_client
from saturnmq.proxy.proxy import Proxy, Received, ReceiveRequest, ReceiveResult, existing
from saturnmq.proxy.routing import TopicView, addresses_to_tell, is_ip, parse_advertise
from saturnmq.proxy.settings import check_client_properties, complete_consumer, complete_producer
from saturnmq.wire.grpc import GrpcError, GrpcStatus
from saturnmq.wire.proto import rocketmq_pb2 as pb

logger = logging.getLogger(__name__)

SERVICE = "apache.rocketmq.v2.MessagingService"

#: the one place where errors become codes; a class that is not here has the code of the class above it
CODES: Mapping[type[SaturnError], pb.Code] = {
    SaturnError: pb.INTERNAL_SERVER_ERROR,
    errors.TopicNotFound: pb.TOPIC_NOT_FOUND,
    errors.IllegalTopic: pb.ILLEGAL_TOPIC,
    errors.GroupNotFound: pb.CONSUMER_GROUP_NOT_FOUND,
    errors.IllegalGroup: pb.ILLEGAL_CONSUMER_GROUP,
    errors.NoPermission: pb.FORBIDDEN,
    errors.IllegalMessage: pb.MESSAGE_CORRUPTED,
    errors.BodyTooLarge: pb.MESSAGE_BODY_TOO_LARGE,
    errors.BodyEmpty: pb.MESSAGE_BODY_EMPTY,
    errors.PropertiesTooLarge: pb.MESSAGE_PROPERTIES_TOO_LARGE,
    errors.IllegalPropertyKey: pb.ILLEGAL_MESSAGE_PROPERTY_KEY,
    errors.IllegalTag: pb.ILLEGAL_MESSAGE_TAG,
    errors.IllegalKey: pb.ILLEGAL_MESSAGE_KEY,
    errors.IllegalMessageId: pb.ILLEGAL_MESSAGE_ID,
    errors.IllegalMessageGroup: pb.ILLEGAL_MESSAGE_GROUP,
    errors.IllegalDeliveryTime: pb.ILLEGAL_DELIVERY_TIME,
    errors.MessageTypeMismatch: pb.MESSAGE_PROPERTY_CONFLICT_WITH_TYPE,
    errors.InvalidParameter: pb.BAD_REQUEST,
    errors.IllegalFilter: pb.ILLEGAL_FILTER_EXPRESSION,
    errors.IllegalInvisibleTime: pb.ILLEGAL_INVISIBLE_TIME,
    errors.IllegalPollingTime: pb.ILLEGAL_POLLING_TIME,
    errors.InvalidReceiptHandle: pb.INVALID_RECEIPT_HANDLE,
    errors.NoSuchMessage: pb.MESSAGE_NOT_FOUND,
    errors.NotFound: pb.NOT_FOUND,
    errors.ConsumerNotOnline: pb.NOT_FOUND,
    errors.ClientUnknown: pb.UNRECOGNIZED_CLIENT_TYPE,
    errors.ClientIdRequired: pb.CLIENT_ID_REQUIRED,
    errors.IllegalOperation: pb.PRECONDITION_FAILED,
    errors.NotSupported: pb.UNSUPPORTED,
    errors.SystemBusy: pb.TOO_MANY_REQUESTS,
    errors.ServiceUnavailable: pb.INTERNAL_SERVER_ERROR,
    errors.FlushTimeout: pb.MASTER_PERSISTENCE_TIMEOUT,
    errors.RequestTimeout: pb.PROXY_TIMEOUT,
    errors.ConnectionLost: pb.PROXY_TIMEOUT,
}

#: RPCs of later versions
NOT_YET = ("PullMessage", "UpdateOffset", "GetOffset", "QueryOffset", "EndTransaction", "RecallMessage",
           "SyncLiteSubscription")  # fmt: skip

#: messages of one ReceiveMessage (ProxyUtils.MAX_MSG_NUMS_FOR_POP_REQUEST)
MAX_BATCH = 32
#: an answer that leaves at the deadline arrives after it
ANSWER_AHEAD_MS = 200
#: a client that has not said so (Settings.request_timeout), milliseconds
DEFAULT_REQUEST_TIMEOUT_MS = 3000
#: versions before this one do not know ILLEGAL_POLLING_TIME; compared as text, as Apache does
POLLING_TIME_CODE_SINCE = "5.0.3"

OK = pb.Status(code=pb.OK, message="OK")
CONSUME_TYPES = {pb.SIMPLE_CONSUMER: ConsumeType.ACTIVELY, pb.PUSH_CONSUMER: ConsumeType.PASSIVELY}
ACCEPTED_TYPES: Mapping[MessageType, Sequence[pb.MessageType]] = {
    MessageType.NORMAL: [pb.NORMAL],
    MessageType.FIFO: [pb.FIFO],
    MessageType.DELAY: [pb.DELAY],
    MessageType.TRANSACTION: [pb.TRANSACTION],
    MessageType.MIXED: [pb.NORMAL, pb.FIFO, pb.DELAY, pb.TRANSACTION],
}
FILTER_TYPES = {pb.FILTER_TYPE_UNSPECIFIED: TAG, pb.TAG: TAG, pb.SQL: SQL92}

Request = TypeVar("Request", bound=Message)
#: builds the answer that tells of a failure
Refusal = Callable[[Request, pb.Status], Message]


def code_of(error: SaturnError) -> pb.Code:
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


def status_of(error: SaturnError) -> pb.Status:
    return pb.Status(code=code_of(error), message=str(error) or (type(error).__doc__ or ""))


def methods(proxy: Proxy) -> dict[bytes, Method]:
    """The table for `net.grpc_server.GrpcServer`. Raises ValueError when `advertise` cannot be read."""
    face = MessagingService(proxy)
    table = {
        "QueryRoute": _unary(face.query_route, pb.QueryRouteRequest, _only_status(pb.QueryRouteResponse)),
        "Heartbeat": _unary(face.heartbeat, pb.HeartbeatRequest, _only_status(pb.HeartbeatResponse)),
        "SendMessage": _unary(face.send_message, pb.SendMessageRequest, _only_status(pb.SendMessageResponse)),
        "QueryAssignment": _unary(
            face.query_assignment, pb.QueryAssignmentRequest, _only_status(pb.QueryAssignmentResponse)
        ),
        "ReceiveMessage": Method(Kind.SERVER_STREAM, face.receive_message),
        "AckMessage": _unary(face.ack_message, pb.AckMessageRequest, _only_status(pb.AckMessageResponse)),
        "ChangeInvisibleDuration": _unary(
            face.change_invisible_duration, pb.ChangeInvisibleDurationRequest, _same_handle
        ),
        "ForwardMessageToDeadLetterQueue": _unary(
            face.forward_message_to_dead_letter_queue,
            pb.ForwardMessageToDeadLetterQueueRequest,
            _only_status(pb.ForwardMessageToDeadLetterQueueResponse),
        ),
        "NotifyClientTermination": _unary(
            face.notify_client_termination,
            pb.NotifyClientTerminationRequest,
            _only_status(pb.NotifyClientTerminationResponse),
        ),
        "Telemetry": Method(Kind.BIDI, face.telemetry),
        **{name: Method(Kind.UNARY, partial(_not_yet, name)) for name in NOT_YET},
    }
    return {f"/{SERVICE}/{name}".encode(): method for name, method in table.items()} | reflection.methods([SERVICE])


def _not_yet(name: str, call: Call, data: bytes) -> bytes:
    raise GrpcError(GrpcStatus.UNIMPLEMENTED, f"{name} is not supported by this version of SaturnMQ")


def _only_status(response: Callable[..., Message]) -> Callable[[Message, pb.Status], Message]:
    return lambda request, status: response(status=status)


def _same_handle(request: pb.ChangeInvisibleDurationRequest, status: pb.Status) -> Message:
    """A client may take over whatever handle the answer has: give it the one that is still good."""
    return pb.ChangeInvisibleDurationResponse(status=status, receipt_handle=request.receipt_handle)


def _unary(
    handler: Callable[[Call, Request], Reply[Message]], request_type: type[Request], refusal: Refusal[Request]
) -> Method:
    """The boundary of a request: bytes in, bytes out, a SaturnError becomes a status in the answer."""
    parse = request_type.FromString

    def handle(call: Call, data: bytes) -> Reply[bytes]:
        try:
            request = parse(data)
        except DecodeError as error:
            raise unreadable(request_type, error) from None
        try:
            client_id_of(call)
            reply = handler(call, request)
        except SaturnError as error:
            return refusal(request, status_of(error)).SerializeToString()
        if not isinstance(reply, Later):
            return reply.SerializeToString()
        answer: Later[bytes] = Later(reply.cancel)

        def fail(error: BaseException) -> None:
            if isinstance(error, SaturnError):
                answer.resolve(refusal(request, status_of(error)).SerializeToString())
            else:
                answer.fail(error)

        reply.then(lambda response: answer.resolve(response.SerializeToString()), fail)
        return answer

    return Method(Kind.UNARY, handle)


def unreadable(expected: type[Message], error: DecodeError) -> GrpcError:
    return GrpcError(GrpcStatus.INVALID_ARGUMENT, f"the request is not a {expected.DESCRIPTOR.full_name}: {error}")


def client_id_of(call: Call) -> str:
    """Raises ClientIdRequired."""
    client_id = header(call, b"x-mq-client-id")
    if not client_id or client_id.isspace():
        raise ClientIdRequired("the header x-mq-client-id is missing or blank: every client names itself in it")
    return client_id


def header(call: Call, name: bytes) -> str:
    return call.headers.get(name, b"").decode("utf-8", "replace")


@lru_cache(maxsize=4096)
def check_client_topic(topic: str) -> None:
    """Raises IllegalTopic unless a client may use a topic of this name."""
    check_topic(topic)
    if is_system_topic(topic):
        raise IllegalTopic(f"the topic {topic} is RocketMQ's own: choose another name")


@lru_cache(maxsize=4096)
def check_client_group(group: str) -> None:
    """Raises IllegalGroup unless a client may use a consumer group of this name."""
    check_group(group)
    if is_system_group(group):
        raise IllegalGroup(f"the consumer group {group} is RocketMQ's own: choose another name")


compiled = lru_cache(maxsize=4096)(subscribe)


def subscription_of(topic: str, filter_expression: pb.FilterExpression) -> Subscription:
    """Raises IllegalFilter, NotSupported."""
    kind = FILTER_TYPES.get(filter_expression.type, str(filter_expression.type))
    return compiled(topic, filter_expression.expression, kind)


class MessagingService:
    """One method for each RPC."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._config = proxy.config
        self._clock = proxy.clock
        self._advertise = parse_advertise(proxy.config.advertise)

    # ------------------------------------------------------------------------------------------------- routes

    def query_route(self, call: Call, request: pb.QueryRouteRequest) -> Reply[Message]:
        check_client_topic(request.topic.name)
        endpoints = self._endpoints(call, request.endpoints)
        return after(self._proxy.routing.view(request.topic.name), partial(_route, request.topic, endpoints))

    def query_assignment(self, call: Call, request: pb.QueryAssignmentRequest) -> Reply[Message]:
        topic, group = request.topic.name, request.group.name
        check_client_topic(topic)
        check_client_group(group)
        endpoints = self._endpoints(call, request.endpoints)

        def of_view(view: TopicView) -> Reply[Message]:
            broker = next(iter(self._proxy.brokers.values()))
            return after(broker.group_config(group), partial(_assignments, request.topic, endpoints, view))

        return chain(self._proxy.routing.view(topic), of_view)

    def _endpoints(self, call: Call, requested: pb.Endpoints) -> pb.Endpoints:
        addresses = addresses_to_tell(
            self._advertise,
            [Address(address.host, address.port) for address in requested.addresses],
            call.authority,
            call.local,
        )
        scheme = {4: pb.IPv4, 6: pb.IPv6}.get(is_ip(addresses[0].host), pb.DOMAIN_NAME)
        return pb.Endpoints(
            scheme=scheme, addresses=[pb.Address(host=address.host, port=address.port) for address in addresses]
        )

    # ------------------------------------------------------------------------------------------------ messages

    def send_message(self, call: Call, request: pb.SendMessageRequest) -> Reply[Message]:
        sent = request.messages
        if not sent:
            raise IllegalMessage("the request has no message: send at least one")
        first = sent[0]
        topic = first.topic.name
        check_client_topic(topic)
        now_ms = self._clock.now_ms()
        incoming = [take_in(first, topic, call.peer, self._config, now_ms)]
        for message in sent[1:]:
            if message.topic != first.topic:
                raise IllegalMessage("the messages of one request have different topics: send them one by one")
            incoming.append(take_in(message, topic, call.peer, self._config, now_ms))
        kind, message_group = common(incoming)
        reply = self._proxy.send(topic, [one.message for one in incoming], incoming[0].properties, kind, message_group)
        return after(reply, partial(_sent, incoming))

    def receive_message(self, call: Call, data: bytes) -> None:
        try:
            request = pb.ReceiveMessageRequest.FromString(data)
        except DecodeError as error:
            raise unreadable(pb.ReceiveMessageRequest, error) from None
        try:
            reply = after(
                self._proxy.receive(self._receive_request(call, request)),
                partial(self._deliver, call, request.message_queue.topic.name),
            )
        except SaturnError as error:
            end_receive(call, status_of(error), self._clock.now_ms())
            return
        if isinstance(reply, Later):
            call.on_cancel = reply.cancel
            reply.then(lambda _: None, partial(self._receive_failed, call))

    def _receive_request(self, call: Call, request: pb.ReceiveMessageRequest) -> ReceiveRequest:
        client_id = client_id_of(call)
        queue = request.message_queue
        topic, group = queue.topic.name, request.group.name
        wait_ms = self._wait_ms(call, request)
        check_client_topic(topic)
        check_client_group(group)
        auto_renew = request.auto_renew and self._config.enable_proxy_auto_renew
        if auto_renew:
            invisible_ms = self._config.default_invisible_time_mills
        else:
            invisible_ms = request.invisible_duration.ToMilliseconds()
            self._check_invisible(invisible_ms, self._config.min_invisible_time_mills_for_recv)
        subscription = subscription_of(topic, request.filter_expression)
        self._known_consumer(call, client_id, group, subscription, auto_renew)
        return ReceiveRequest(
            group=group,
            topic=topic,
            broker_name=queue.broker.name,
            max_messages=max(1, min(request.batch_size, MAX_BATCH)),
            invisible_ms=invisible_ms,
            wait_ms=wait_ms,
            subscription=subscription,
            client_id=client_id,
            attempt_id=request.attempt_id if request.HasField("attempt_id") else None,
            auto_renew=auto_renew,
        )

    def _wait_ms(self, call: Call, request: pb.ReceiveMessageRequest) -> int:
        """How long to wait for a message. Raises IllegalPollingTime. No deadline is one far away."""
        shortest = self._config.grpc_client_consumer_min_long_polling_timeout_millis
        longest = self._config.grpc_client_consumer_max_long_polling_timeout_millis
        left_ms = None if call.deadline_ms is None else call.deadline_ms - self._clock.now_ms()
        if request.HasField("long_polling_timeout"):
            wanted = request.long_polling_timeout.ToMilliseconds()
        elif left_ms is not None:
            wanted = left_ms - DEFAULT_REQUEST_TIMEOUT_MS // 2
        else:
            wanted = longest
        wait_ms = min(max(wanted, shortest), longest)
        if left_ms is None or wait_ms <= left_ms - ANSWER_AHEAD_MS:
            return wait_ms
        if left_ms >= shortest:
            return left_ms - ANSWER_AHEAD_MS
        text = (
            f"{left_ms} ms are left before the deadline, a long poll needs {shortest}: give the call a longer "
            "deadline, or check whether the network delays it"
        )
        if header(call, b"x-mq-client-version") < POLLING_TIME_CODE_SINCE:
            raise InvalidParameter(text)
        raise IllegalPollingTime(text)

    def _check_invisible(self, invisible_ms: int, shortest_ms: int) -> None:
        longest_ms = self._config.max_invisible_time_mills
        if invisible_ms < shortest_ms or invisible_ms > longest_ms > 0:
            raise IllegalInvisibleTime(
                f"the invisible duration is {invisible_ms} ms, it must be from {shortest_ms} to {longest_ms} ms"
            )

    def _known_consumer(
        self, call: Call, client_id: str, group: str, subscription: Subscription, auto_renew: bool
    ) -> None:
        """A consumer whose settings this Proxy does not have, after a restart say: the request tells enough."""
        client = self._proxy.sessions.get(client_id)
        if client is not None and client.membership is not None:
            return
        self._proxy.sessions.join(
            client_id,
            header(call, b"x-mq-language"),
            call.peer,
            membership=ConsumerMembership(
                group=group,
                consume_type=ConsumeType.PASSIVELY if auto_renew else ConsumeType.ACTIVELY,
                message_model=MessageModel.CLUSTERING,
                subscriptions=[subscription],
            ),
            producer_groups=() if client is None else client.producer_groups,
        )

    def _deliver(self, call: Call, topic: str, result: ReceiveResult) -> None:
        if result.messages:
            _Delivery(self._proxy, call, topic, result.messages).start()
        else:
            end_receive(call, _nothing_received(result), self._clock.now_ms())

    def _receive_failed(self, call: Call, error: BaseException) -> None:
        if isinstance(error, SaturnError):
            end_receive(call, status_of(error), self._clock.now_ms())
            return
        logger.error("ReceiveMessage of %s failed", call.peer, exc_info=error)
        call.finish(GrpcStatus.INTERNAL, "internal error: the server's log has the details")

    def ack_message(self, call: Call, request: pb.AckMessageRequest) -> Reply[Message]:
        topic, group = request.topic.name, request.group.name
        check_client_topic(topic)
        check_client_group(group)
        if not request.entries:
            raise InvalidParameter("the request acknowledges nothing: it has no entry")
        replies = [in_band(partial(self._proxy.ack, group, topic, entry.receipt_handle)) for entry in request.entries]
        return after(gather(replies), partial(_acknowledged, request))

    def change_invisible_duration(self, call: Call, request: pb.ChangeInvisibleDurationRequest) -> Reply[Message]:
        topic, group = request.topic.name, request.group.name
        check_client_topic(topic)
        check_client_group(group)
        invisible_ms = request.invisible_duration.ToMilliseconds()
        self._check_invisible(invisible_ms, 0)
        reply = self._proxy.change_invisible(group, topic, request.receipt_handle, invisible_ms)
        return after(reply, lambda handle: pb.ChangeInvisibleDurationResponse(status=OK, receipt_handle=handle))

    def forward_message_to_dead_letter_queue(
        self, call: Call, request: pb.ForwardMessageToDeadLetterQueueRequest
    ) -> Reply[Message]:
        topic, group = request.topic.name, request.group.name
        check_client_topic(topic)
        check_client_group(group)
        reply = self._proxy.forward_to_dead_letters(group, topic, request.receipt_handle, request.message_id)
        return after(reply, lambda _: pb.ForwardMessageToDeadLetterQueueResponse(status=OK))

    # ------------------------------------------------------------------------------------------------- clients

    def heartbeat(self, call: Call, request: pb.HeartbeatRequest) -> Reply[Message]:
        self._proxy.sessions.heartbeat(client_id_of(call))
        return pb.HeartbeatResponse(status=OK)

    def notify_client_termination(self, call: Call, request: pb.NotifyClientTerminationRequest) -> Reply[Message]:
        """Well done even when the client was not known: it is not there afterwards."""
        self._proxy.sessions.leave(client_id_of(call))
        return pb.NotifyClientTerminationResponse(status=OK)

    def telemetry(self, call: Call) -> None:
        def closed() -> None:
            client = self._proxy.sessions.get(header(call, b"x-mq-client-id"))
            if client is not None and client.stream is call:
                client.stream = None

        def half_closed() -> None:
            closed()
            call.finish()

        call.on_message = partial(self._telemetry_command, call)
        call.on_half_close = half_closed
        call.on_cancel = closed

    def _telemetry_command(self, call: Call, data: bytes) -> None:
        try:
            command = pb.TelemetryCommand.FromString(data)
        except DecodeError as error:
            raise unreadable(pb.TelemetryCommand, error) from None
        if command.WhichOneof("command") != "settings":
            return  # an answer to a command that nobody waits for any more
        try:
            reply = after(self._settings(call, command.settings), partial(_tell_settings, call))
        except SaturnError as error:
            raise _telemetry_error(error) from None
        if isinstance(reply, Later):
            reply.then(lambda _: None, partial(_telemetry_failed, call))

    def _settings(self, call: Call, sent: pb.Settings) -> Reply[pb.Settings]:
        """Take in what the client says of itself; answer the settings that it shall work with."""
        client_id = client_id_of(call)
        check_client_properties(sent)
        kind = sent.WhichOneof("pub_sub")
        if kind == "publishing":
            topics = [topic.name for topic in sent.publishing.topics]
            for topic in topics:
                check_client_topic(topic)
            self._join(call, client_id, None, topics)
            return complete_producer(sent, self._config)
        if kind != "subscription":
            raise InvalidParameter(
                "the settings have neither `publishing` nor `subscription`: is this a producer or a consumer?"
            )
        membership = _membership(sent)
        broker = next(iter(self._proxy.brokers.values()))

        def complete(found: GroupConfig | None) -> pb.Settings:
            group = existing(found, membership.group)
            self._join(call, client_id, membership, ())
            return complete_consumer(sent, self._config, group)

        return after(broker.group_config(membership.group), complete)

    def _join(
        self, call: Call, client_id: str, membership: ConsumerMembership | None, producer_groups: Sequence[str]
    ) -> None:
        client = self._proxy.sessions.join(
            client_id,
            header(call, b"x-mq-language"),
            call.peer,
            membership=membership,
            producer_groups=producer_groups,
        )
        client.stream = call


class _Delivery:
    """The messages of one ReceiveMessage on their way to the client, as fast as it reads.

    What it does not take, because it or its connection went away, goes back to the group at once.
    """

    __slots__ = ("_call", "_messages", "_next", "_proxy", "_topic")

    def __init__(self, proxy: Proxy, call: Call, topic: str, messages: list[Received]) -> None:
        self._proxy = proxy
        self._call = call
        self._topic = topic
        self._messages = messages
        self._next = 0

    def start(self) -> None:
        call = self._call
        if not call.open:
            self._give_back()
            return
        call.on_cancel = self._give_back
        call.on_writable = self._go_on
        call.send(FOUND)
        self._go_on()

    def _go_on(self) -> None:
        call = self._call
        messages = self._messages
        while self._next < len(messages):
            if not call.writable:
                return  # on_writable or on_cancel comes
            self._next += 1
            call.send(to_client(messages[self._next - 1], self._topic))
        end_receive(call, None, self._proxy.clock.now_ms())

    def _give_back(self) -> None:
        self._proxy.give_back(self._messages[self._next :])


def end_receive(call: Call, status: pb.Status | None, now_ms: int) -> None:
    """The status, unless it was sent before the messages, then the time, which clients expect in any case."""
    if status is not None:
        call.send(pb.ReceiveMessageResponse(status=status).SerializeToString())
    last = pb.ReceiveMessageResponse()
    set_time(last.delivery_timestamp, now_ms)
    call.send(last.SerializeToString())
    call.finish()


# ------------------------------------------------------------------------------------------------------- answers

FOUND = pb.ReceiveMessageResponse(status=OK).SerializeToString()
#: status OK, and one entry with status OK
SENT = pb.SendMessageResponse(status=OK, entries=[pb.SendResultEntry(status=OK)]).SerializeToString()


def common(incoming: Sequence[Incoming]) -> tuple[MessageType, str]:
    """Type and message group of the messages of one request. Raises IllegalMessage when they have several: one queue
    takes them all, so that they would lose their order or their type."""
    first = incoming[0]
    for other in incoming:
        if other.message_group != first.message_group or other.message_type is not first.message_type:
            raise IllegalMessage(
                "the messages of one request have different message groups or types: send them one by one"
            )
    return first.message_type, first.message_group


def _sent(incoming: Sequence[Incoming], receipt: SendReceipt) -> Message:
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
    return response


def _nothing_received(result: ReceiveResult) -> pb.Status:
    if result.status is PopStatus.POLLING_FULL:
        return pb.Status(
            code=pb.TOO_MANY_REQUESTS,
            message="too many consumers wait for messages of this topic already (popPollingSize): try again later",
        )
    text = "no match message" if result.status is PopStatus.FOUND else "no new message"
    return pb.Status(code=pb.MESSAGE_NOT_FOUND, message=text)


def in_band(act: Callable[[], Reply[None]]) -> Reply[pb.Status]:
    """What became of one entry of many."""
    try:
        reply = act()
    except SaturnError as error:
        return status_of(error)
    if not isinstance(reply, Later):
        return OK
    answer: Later[pb.Status] = Later(reply.cancel)

    def fail(error: BaseException) -> None:
        if isinstance(error, SaturnError):
            answer.resolve(status_of(error))
        else:
            answer.fail(error)

    reply.then(lambda _: answer.resolve(OK), fail)
    return answer


def _acknowledged(request: pb.AckMessageRequest, statuses: Sequence[pb.Status]) -> Message:
    response = pb.AckMessageResponse()
    for entry, status in zip(request.entries, statuses, strict=True):
        response.entries.add(message_id=entry.message_id, receipt_handle=entry.receipt_handle, status=status)
    codes = {status.code for status in statuses}
    if len(codes) == 1:
        response.status.CopyFrom(statuses[0])
    else:
        response.status.code = pb.MULTIPLE_RESULTS
        response.status.message = "MULTIPLE_RESULTS"
    return response


def _route(topic: pb.Resource, endpoints: pb.Endpoints, view: TopicView) -> Message:
    response = pb.QueryRouteResponse(status=OK)
    accepted = ACCEPTED_TYPES.get(view.message_type, [pb.MESSAGE_TYPE_UNSPECIFIED])
    for data in view.queue_datas:
        for broker_id in view.broker_ids[data.broker_name]:
            broker = pb.Broker(name=data.broker_name, id=broker_id, endpoints=endpoints)
            for queue_id, permission in enumerate(queue_permissions(data)):
                response.message_queues.add(
                    topic=topic, id=queue_id, permission=permission, broker=broker, accept_message_types=accepted
                )
    return response


def queue_permissions(data: QueueData) -> list[pb.Permission]:
    """What may be done with each queue: first those to read only, then to write only, then both
    (proxy/grpc/v2/route/RouteActivity.java)."""
    reads = data.read_queue_nums if data.perm & READ else 0
    writes = data.write_queue_nums if data.perm & WRITE else 0
    if not data.perm & (READ | WRITE):
        return [pb.NONE] * max(1, data.read_queue_nums, data.write_queue_nums)
    both = min(reads, writes)
    return [pb.READ] * (reads - both) + [pb.WRITE] * (writes - both) + [pb.READ_WRITE] * both


def _assignments(topic: pb.Resource, endpoints: pb.Endpoints, view: TopicView, group: GroupConfig | None) -> Message:
    """Every consumer of a group gets all queues: messages are balanced, not queues. An orderly group sees them one by
    one, any other as one queue -1 for each broker."""
    response = pb.QueryAssignmentResponse(status=OK)
    orderly = group is not None and group.consume_message_orderly
    for data in view.queue_datas:
        if data.broker_name not in view.readable:
            continue
        broker = pb.Broker(name=data.broker_name, id=0, endpoints=endpoints)
        permission = pb.READ_WRITE if data.perm & WRITE else pb.READ
        for queue_id in range(data.read_queue_nums) if orderly else [-1]:
            response.assignments.add().message_queue.MergeFrom(
                pb.MessageQueue(topic=topic, id=queue_id, permission=permission, broker=broker)
            )
    if not response.assignments:
        raise NoPermission(f"the topic {view.topic} has no readable queue: give it perm 6 and a read queue")
    return response


def _membership(sent: pb.Settings) -> ConsumerMembership:
    """Raises IllegalGroup, IllegalTopic, IllegalFilter, NotSupported."""
    consume_type = CONSUME_TYPES.get(sent.client_type)
    if consume_type is None:
        name = pb.ClientType.Name(sent.client_type) if sent.client_type in pb.ClientType.values() else sent.client_type
        raise NotSupported(
            f"clients of the type {name} are not supported by this version of SaturnMQ: use a push or simple consumer"
        )
    group = sent.subscription.group.name
    check_client_group(group)
    subscriptions = []
    for entry in sent.subscription.subscriptions:
        check_client_topic(entry.topic.name)
        subscriptions.append(subscription_of(entry.topic.name, entry.expression))
    return ConsumerMembership(
        group=group,
        consume_type=consume_type,
        message_model=MessageModel.CLUSTERING,
        subscriptions=subscriptions,
    )


def _tell_settings(call: Call, settings: pb.Settings) -> None:
    if call.open:
        call.send(pb.TelemetryCommand(status=OK, settings=settings).SerializeToString())


def _telemetry_error(error: SaturnError) -> GrpcError:
    """A stream has no status of its own in RocketMQ's interface: clients look at gRPC's."""
    code = code_of(error)
    if code == pb.UNSUPPORTED:
        return GrpcError(GrpcStatus.UNIMPLEMENTED, str(error))
    return GrpcError(GrpcStatus.INVALID_ARGUMENT if code < pb.INTERNAL_ERROR else GrpcStatus.INTERNAL, str(error))


def _telemetry_failed(call: Call, error: BaseException) -> None:
    if isinstance(error, SaturnError):
        told = _telemetry_error(error)
        call.finish(told.status, told.message)
        return
    logger.error("Telemetry of %s failed", call.peer, exc_info=error)
    call.finish(GrpcStatus.INTERNAL, "internal error: the server's log has the details")
