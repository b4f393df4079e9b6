"""ReceiveMessage: a consumer waits for messages and gets them as a stream, as fast as it reads."""

from __future__ import annotations

from functools import partial

from saturnmq.kernel.errors import IllegalPollingTime, InvalidParameter, SaturnError
from saturnmq.kernel.later import Reply, after
from saturnmq.kernel.ports import ConsumerMembership, ConsumeType, MessageModel, PopStatus
from saturnmq.kernel.subscription import Subscription
from saturnmq.net.grpc_server import Call
from saturnmq.proxy.checks import (
    check_client_group,
    check_client_topic,
    client_id_of,
    header,
    parse,
    subscription_of,
)
from saturnmq.proxy.codes import OK, status_of
from saturnmq.proxy.messages import set_time, to_client
from saturnmq.proxy.proxy import Proxy, Received, ReceiveRequest, ReceiveResult
from saturnmq.wire.grpc import GrpcStatus
from saturnmq.wire.proto import rocketmq_pb2 as pb

#: messages of one ReceiveMessage (ProxyUtils.MAX_MSG_NUMS_FOR_POP_REQUEST)
MAX_BATCH = 32
#: clients send a UUID
MAX_ATTEMPT_ID = 256
#: bodies of messages that wait for their clients to read, all together
MAX_UNREAD_BYTES = 256 * 1024 * 1024
#: an answer that leaves at the deadline arrives after it
ANSWER_AHEAD_MS = 200
#: a client that has not said so (Settings.request_timeout), milliseconds
DEFAULT_REQUEST_TIMEOUT_MS = 3000
#: versions before this one do not know ILLEGAL_POLLING_TIME; compared as text, as Apache does
POLLING_TIME_CODE_SINCE = "5.0.3"

FOUND = pb.ReceiveMessageResponse(status=OK).SerializeToString()


class Receiving:
    """Owner of the deliveries that wait for their clients to read."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.unread_bytes = 0
        self._config = proxy.config
        self._clock = proxy.clock

    def receive_message(self, call: Call, data: bytes) -> Reply[None]:
        request = parse(pb.ReceiveMessageRequest, data)
        reply = self.proxy.receive(self._receive_request(call, request))
        return after(reply, partial(self._deliver, call, request.message_queue.topic.name))

    def refuse(self, call: Call, error: SaturnError) -> None:
        self._end(call, status_of(error))

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
        attempt_id = request.attempt_id if request.HasField("attempt_id") else None
        if attempt_id is not None and len(attempt_id) > MAX_ATTEMPT_ID:
            raise InvalidParameter(f"the attempt id has {len(attempt_id)} characters, the limit is {MAX_ATTEMPT_ID}")
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
            attempt_id=attempt_id,
            auto_renew=auto_renew,
        )

    def _wait_ms(self, call: Call, request: pb.ReceiveMessageRequest) -> int:
        """How long to wait for a message. Raises IllegalPollingTime. No deadline is one far away."""
        shortest = self._config.grpc_client_consumer_min_long_polling_timeout_millis
        longest = self._config.grpc_client_consumer_max_long_polling_timeout_millis
        left_ms = None if call.deadline_ms is None else call.deadline_ms - self._clock.steady_ms()
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

    def _known_consumer(
        self, call: Call, client_id: str, group: str, subscription: Subscription, auto_renew: bool
    ) -> None:
        """A consumer whose settings this Proxy does not have, after a restart say: the request tells enough."""
        client = self.proxy.sessions.get(client_id)
        if client is not None and client.membership is not None:
            return
        self.proxy.sessions.join(
            client_id,
            header(call, b"x-mq-language"),
            call.peer,
            len(subscription.expression),
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
            _Delivery(self, call, topic, result.messages).start()
        else:
            self._end(call, _nothing_received(result))

    def _end(self, call: Call, status: pb.Status) -> None:
        call.send(pb.ReceiveMessageResponse(status=status).SerializeToString())
        self.end(call)

    def end(self, call: Call) -> None:
        """Last comes the time, which clients expect in any case."""
        last = pb.ReceiveMessageResponse()
        set_time(last.delivery_timestamp, self._clock.now_ms())
        call.send(last.SerializeToString())
        call.finish()


class _Delivery:
    """The messages of one ReceiveMessage on their way to the client.

    What it does not take, because it or its connection went away, goes back to the group at once.
    """

    __slots__ = ("_call", "_messages", "_next", "_receiving", "_topic", "_unread_bytes")

    def __init__(self, receiving: Receiving, call: Call, topic: str, messages: list[Received]) -> None:
        self._receiving = receiving
        self._call = call
        self._topic = topic
        self._messages = messages
        self._next = 0
        #: what it has of `Receiving.unread_bytes`
        self._unread_bytes = 0

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
                self._wait()
                return
            one = messages[self._next]
            self._next += 1
            call.send(to_client(one.message, one.properties, one.handle, one.reconsume_times, self._topic))
        self._receiving.unread_bytes -= self._unread_bytes
        self._receiving.end(call)

    def _wait(self) -> None:
        """on_writable or on_cancel comes, unless too many wait already."""
        if self._unread_bytes:
            return
        unread_bytes = sum(len(received.message.body) for received in self._messages[self._next :])
        if self._receiving.unread_bytes + unread_bytes > MAX_UNREAD_BYTES:
            self._give_back()
            self._call.finish(GrpcStatus.RESOURCE_EXHAUSTED, "too many messages wait for clients that do not read")
            return
        self._unread_bytes = unread_bytes
        self._receiving.unread_bytes += unread_bytes

    def _give_back(self) -> None:
        self._receiving.unread_bytes -= self._unread_bytes
        self._receiving.proxy.give_back(self._messages[self._next :])


def _nothing_received(result: ReceiveResult) -> pb.Status:
    if result.status is PopStatus.POLLING_FULL:
        return pb.Status(
            code=pb.TOO_MANY_REQUESTS,
            message="too many consumers wait for messages of this topic already (popPollingSize): try again later",
        )
    text = "no match message" if result.status is PopStatus.FOUND else "no new message"
    return pb.Status(code=pb.MESSAGE_NOT_FOUND, message=text)
