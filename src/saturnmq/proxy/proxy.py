"""What the Proxy does, in kernel terms. Its faces translate to and from their protocols."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import TypeAlias

import msgspec

from saturnmq.kernel import properties as props
from saturnmq.kernel.clock import Clock
from saturnmq.kernel.config import ProxyConfig
from saturnmq.kernel.errors import (
    GroupNotFound,
    IllegalInvisibleTime,
    IllegalOperation,
    InvalidReceiptHandle,
    InvalidTransactionId,
    MessageTypeMismatch,
    NoSuchMessage,
    SaturnError,
    ServiceUnavailable,
    Unreachable,
)
from saturnmq.kernel.handle import RecallHandle, ReceiptHandle, TopicKind, TransactionHandle
from saturnmq.kernel.later import Later, Reply, after, chain, rescue
from saturnmq.kernel.message import Message, StoredMessage
from saturnmq.kernel.ports import (
    BrokerPort,
    ClusterPort,
    DeadReason,
    Delivery,
    EndTransactionRequest,
    InvisibleChanged,
    PopRequest,
    PopResult,
    PopStatus,
    RecallRequest,
    Resolution,
    RoutePort,
    SendBackRequest,
    SendReceipt,
    SendRequest,
)
from saturnmq.kernel.subscription import Subscription
from saturnmq.kernel.topic import (
    DLQ_PREFIX,
    RETRY_PREFIX,
    GroupConfig,
    MessageQueue,
    MessageType,
    TopicConfig,
    pop_retry_topic,
)
from saturnmq.proxy.receipts import Receipts, after_change, give_back, settle
from saturnmq.proxy.routing import Routing, TopicView
from saturnmq.proxy.sessions import Sessions
from saturnmq.wire import record

logger = logging.getLogger(__name__)

#: what has one of them is for a time
_DELAYS = frozenset({props.DELAY, props.TIMER_DELIVER_MS, props.TIMER_DELAY_SEC, props.TIMER_DELAY_MS})


class ReceiveRequest(msgspec.Struct, gc=False, kw_only=True):
    """Take messages for one consumer."""

    group: str
    topic: str
    #: empty: any broker
    broker_name: str
    max_messages: int
    invisible_ms: int
    wait_ms: int
    subscription: Subscription
    client_id: str
    attempt_id: str | None = None
    #: keep what was received invisible while the client lives
    auto_renew: bool = False


class Received(msgspec.Struct, gc=False):
    """One message for the consumer, with the handle to settle it by."""

    message: StoredMessage
    properties: dict[str, str]
    handle: str
    broker: BrokerPort
    delivery: Delivery
    #: deliveries before this one
    reconsume_times: int


class ReceiveResult(msgspec.Struct):
    """`status` FOUND without messages: there were some, and the filter or the dead letters took them all."""

    status: PopStatus
    messages: list[Received] = []


NOTHING = ReceiveResult(PopStatus.POLLING_TIMEOUT)


class _LongPoll:
    """One that waits to receive. Owner: `Proxy`, among the `polls` of the client, until it is answered or cancelled."""

    __slots__ = ("_client_id", "_polls", "_under_way", "answer")

    def __init__(self, polls: _LongPolls, client_id: str, under_way: Later[ReceiveResult]) -> None:
        self._polls, self._client_id, self._under_way = polls, client_id, under_way
        self.answer: Later[ReceiveResult] = Later(self._cancel)
        polls.setdefault(client_id, {})[self] = None
        under_way.then(self._received, self._failed)

    def end(self) -> None:
        """It takes nothing any more; it is forgotten already."""
        self._under_way.cancel()
        self.answer.resolve(NOTHING)

    def _cancel(self) -> None:
        self._forget()
        self._under_way.cancel()

    def _received(self, result: ReceiveResult) -> None:
        self._forget()
        self.answer.resolve(result)

    def _failed(self, error: BaseException) -> None:
        self._forget()
        self.answer.fail(error)

    def _forget(self) -> None:
        polls = self._polls[self._client_id]
        del polls[self]
        if not polls:
            del self._polls[self._client_id]


#: in the order in which they came
_LongPolls: TypeAlias = dict[str, dict[_LongPoll, None]]


class Proxy:
    """Sends, receives and settles messages. Owner of routing, sessions and receipts.

    In Local mode the broker of this process is all of `brokers`, and the cluster; nothing between is encoded.
    """

    def __init__(
        self,
        brokers: Mapping[str, BrokerPort],
        cluster: ClusterPort,
        routes: RoutePort,
        config: ProxyConfig,
        clock: Clock,
    ) -> None:
        self.config = config
        self.clock = clock
        self.brokers = brokers
        self.cluster = cluster
        self.routes = routes
        self.routing = Routing(brokers, cluster, routes, clock)
        self.sessions = Sessions(cluster, clock, config.channel_expired_timeout)
        self.receipts = Receipts(cluster, config, clock)
        self.sessions.on_gone = lambda client: self.receipts.client_gone(client.client_id)
        #: by client
        self._long_polls: _LongPolls = {}
        self._draining = False

    def drain(self) -> bool:
        """Who waits for messages hears now that there are none, and nobody gets any more. Whether anybody waited."""
        self._draining = True
        self.receipts.hand_over()
        waited = bool(self._long_polls)
        for client_id in list(self._long_polls):
            self._end_long_polls(client_id)
        return waited

    def client_ends(self, client_id: str) -> None:
        """By its own word: it takes nothing any more. What its long polls got would count as an attempt that nobody
        made. (Those of a client that is silent may still be heard.)"""
        self._end_long_polls(client_id)
        self.sessions.leave(client_id)

    def _end_long_polls(self, client_id: str) -> None:
        for poll in self._long_polls.pop(client_id, ()):
            poll.end()

    def close(self) -> None:
        """Stop. The leases of push consumers go on at the broker: who is back soon, here or elsewhere, settles them."""
        self.receipts.close()
        self.sessions.close()

    # ------------------------------------------------------------------------------------------------- sending

    def send(
        self,
        topic: str,
        messages: list[Message],
        properties: dict[str, str],
        message_type: MessageType,
        message_group: str,
    ) -> Reply[SendReceipt]:
        """Send one message, or several to one queue; `properties` are those of the first.

        Sets the messages' queue. Raises TopicNotFound, MessageTypeMismatch, NoPermission.
        """
        return chain(
            self.routing.view(topic),
            lambda view: self._send(view, messages, properties, message_type, message_group),
        )

    def _send(
        self,
        view: TopicView,
        messages: list[Message],
        properties: dict[str, str],
        message_type: MessageType,
        message_group: str,
    ) -> Reply[SendReceipt]:
        """What a broker cannot have stored goes to another one, unless that would break an order."""
        self._check_type(view.topic, view.message_type, message_type)
        queue = view.choose_queue(message_group)

        def send_to(queue: MessageQueue) -> Reply[SendReceipt]:
            for message in messages:
                message.queue_id = queue.queue_id
            sent = self.brokers[queue.broker_name].send(
                SendRequest(
                    producer_group=view.topic, messages=messages, properties=properties, batch=len(messages) > 1
                )
            )
            if message_type is MessageType.TRANSACTION:
                return after(sent, partial(_with_handle, queue.broker_name, properties[props.UNIQUE_KEY]))
            return sent

        def send_elsewhere(error: SaturnError) -> Reply[SendReceipt]:
            other = view.choose_other_queue(self.brokers, queue)
            if other is None:
                raise error
            return send_to(other)

        if message_group:
            return send_to(queue)
        if not self.brokers[queue.broker_name].takes_sends:
            other = view.choose_other_queue(self.brokers, queue)
            if other is None:
                return chain(
                    self.routing.anew(view.topic),
                    lambda view: send_to(view.choose_other_queue(self.brokers, queue) or queue),
                )
            queue = other
        if view.is_on_one_broker:
            return send_to(queue)
        return rescue(lambda: send_to(queue), (Unreachable, ServiceUnavailable), send_elsewhere)

    def check_type(self, topic: str, sent: MessageType) -> Reply[None]:
        """Raises MessageTypeMismatch. A topic that is not there yet takes what it is created for."""

        def check(config: TopicConfig | None) -> None:
            if config is not None:
                self._check_type(topic, config.message_type, sent)

        return after(self.cluster.topic_config(topic), check)

    def _check_type(self, topic: str, taken: MessageType, sent: MessageType) -> None:
        if taken is sent or taken is MessageType.MIXED or not self.config.enable_topic_message_type_check:
            return
        if topic.startswith((RETRY_PREFIX, DLQ_PREFIX)):
            return
        raise MessageTypeMismatch(
            f"the topic {topic} takes {taken} messages, this one is {sent}: send it to a topic of its type, or change "
            f"this one (`mqadmin updateTopic -t {topic} -a +message.type={sent}`; MIXED takes all types, where the "
            "broker has enableMixedMessageType=true)"
        )

    def recall(self, topic: str, handle_text: str, born_host: bytes) -> Reply[str]:
        """Take back a message whose time has not come. Answers its id. Raises MessageTypeMismatch, IllegalOperation."""
        request = RecallRequest(topic=topic, handle=handle_text, producer_group=topic, born_host=born_host)

        def recall(view: TopicView) -> Reply[str]:
            self._check_type(view.topic, view.message_type, MessageType.DELAY)
            handle = RecallHandle.decode(handle_text)
            broker = self.brokers.get(handle.broker_name)
            if broker is None:
                raise IllegalOperation(
                    f"the recall handle is of the broker {handle.broker_name[:80]!r}, this Proxy serves "
                    + ", ".join(self.brokers)
                )
            return broker.recall(request)

        return chain(self.routing.view(topic), recall)

    def end_transaction(
        self, topic: str, transaction_id: str, message_id: str, resolution: Resolution, *, from_check: bool
    ) -> Reply[None]:
        """Commit a half message of this topic or roll it back, through whichever Proxy it was sent. Raises
        InvalidTransactionId, IllegalOperation."""
        handle = TransactionHandle.decode(transaction_id)
        broker = self.brokers.get(handle.broker_name)
        if broker is None:
            raise InvalidTransactionId(
                f"the transaction id is of the broker {handle.broker_name[:80]!r}, this Proxy serves "
                + ", ".join(self.brokers)
            )
        if message_id not in ("", handle.message_id):
            raise InvalidTransactionId("the transaction id is another message's")
        if resolution is Resolution.UNKNOWN:
            return None
        return broker.end_transaction(
            EndTransactionRequest(
                topic=topic,
                producer_group=topic,
                half_offset=handle.half_offset,
                commit_log_offset=handle.commit_log_offset,
                resolution=resolution,
                from_check=from_check,
                message_id=handle.message_id,
            )
        )

    # ----------------------------------------------------------------------------------------------- receiving

    def receive(self, request: ReceiveRequest) -> Reply[ReceiveResult]:
        """Take messages, or wait for one. Raises TopicNotFound, GroupNotFound, NoPermission, IllegalInvisibleTime.

        What the filter does not take is acknowledged, what was tried too often goes to the dead letters; neither is
        in the result. The result is for `give_back` when it cannot be delivered.
        """
        if request.auto_renew:
            self.receipts.check_room()
        else:
            self._check_invisible(request.invisible_ms, self.config.min_invisible_time_mills_for_recv)
        if self._draining:
            return NOTHING
        reply = chain(self.routing.view(request.topic), lambda view: self._receive(view, request))
        if isinstance(reply, Later):
            return _LongPoll(self._long_polls, request.client_id, reply).answer
        return reply

    def _check_invisible(self, invisible_ms: int, shortest_ms: int) -> None:
        longest_ms = self.config.max_invisible_time_mills
        if not shortest_ms <= invisible_ms <= longest_ms:
            raise IllegalInvisibleTime(
                f"the invisible duration is {invisible_ms} ms, it must be from {shortest_ms} to {longest_ms} ms"
            )

    def _receive(self, view: TopicView, request: ReceiveRequest) -> Reply[ReceiveResult]:
        broker = self.brokers[view.choose_broker(request.broker_name)]
        return chain(self.cluster.group_config(request.group), lambda group: self._pop(broker, group, request))

    def _pop(self, broker: BrokerPort, found: GroupConfig | None, request: ReceiveRequest) -> Reply[ReceiveResult]:
        group = existing(found, request.group)
        reply = broker.pop(
            PopRequest(
                group=request.group,
                topic=request.topic,
                queue_id=-1,
                max_messages=request.max_messages,
                invisible_ms=request.invisible_ms,
                wait_ms=request.wait_ms,
                subscription=request.subscription,
                fifo=group.consume_message_orderly,
                attempt_id=request.attempt_id,
                client_id=request.client_id,
            )
        )
        return after(reply, partial(self._received, broker, group, request))

    def _received(
        self, broker: BrokerPort, group: GroupConfig, request: ReceiveRequest, result: PopResult
    ) -> ReceiveResult:
        messages = []
        tags = request.subscription.tags
        for popped in result.messages:
            message = record.decode(popped.record)
            properties = props.decode(message.properties)
            handle = ReceiptHandle(
                start_offset=popped.start_offset,
                pop_ms=result.pop_ms,
                invisible_ms=result.invisible_ms,
                revive_queue_id=result.revive_queue_id,
                topic_kind=popped.topic_kind,
                broker_name=broker.name,
                queue_id=popped.queue_id,
                queue_offset=popped.queue_offset,
                commit_log_offset=popped.commit_log_offset,
            )
            delivery = delivery_of(handle, request.group, request.topic)
            if tags and properties.get(props.TAGS) not in tags:
                # the broker filters by hash, and two tags may share one
                settle(partial(broker.ack, delivery), _nothing, partial(_not_settled, delivery))
            elif popped.reconsume_times > group.retry_max_times:
                settle(
                    partial(
                        self._bury,
                        broker,
                        handle,
                        delivery,
                        message_id(message, properties),
                        DeadReason.MAX_ATTEMPTS,
                    ),
                    _nothing,
                    partial(_not_settled, delivery),
                )
            else:
                messages.append(
                    Received(message, properties, handle.encode(), broker, delivery, popped.reconsume_times)
                )
        if request.auto_renew:
            if messages and self.sessions.get(request.client_id) is None:
                self.give_back(messages)  # the client left while this waited
                return ReceiveResult(PopStatus.NOT_FOUND)
            for received in messages:
                self.receipts.hold(
                    received.handle, request.client_id, broker, received.delivery, received.reconsume_times
                )
        return ReceiveResult(result.status, messages)

    def give_back(self, messages: list[Received]) -> None:
        """These could not be delivered: let another consumer have them."""
        for received in messages:
            self.receipts.drop(received.handle)
            give_back(received.broker, received.delivery, self.config.invisible_time_millis_when_clear)

    # ------------------------------------------------------------------------------------------------ settling

    def ack(self, group: str, topic: str, handle_text: str) -> Reply[None]:
        """The message is consumed. Raises InvalidReceiptHandle, NoSuchMessage: it may come again."""
        handle = ReceiptHandle.decode(handle_text)
        broker = self._broker_of(handle)
        delivery = self.receipts.settling(handle_text, delivery_of(handle, group, topic))
        return after(chain(delivery, broker.ack), lambda _: self.receipts.drop(handle_text))

    def change_invisible(self, group: str, topic: str, handle_text: str, invisible_ms: int) -> Reply[str]:
        """Show the message again after `invisible_ms`. Answers the handle that is good from now on."""
        self._check_invisible(invisible_ms, 0)
        handle = ReceiptHandle.decode(handle_text)

        def changed(now: InvisibleChanged) -> str:
            self.receipts.drop(handle_text)
            return msgspec.structs.replace(
                handle,
                start_offset=handle.queue_offset,  # as `receipts.after_change`
                pop_ms=now.pop_ms,
                invisible_ms=now.invisible_ms,
                revive_queue_id=now.revive_queue_id,
            ).encode()

        broker = self._broker_of(handle)
        delivery = self.receipts.settling(handle_text, delivery_of(handle, group, topic))
        return after(chain(delivery, lambda delivery: broker.change_invisible(delivery, invisible_ms)), changed)

    def forward_to_dead_letters(self, group: str, topic: str, handle_text: str, message_id: str) -> Reply[None]:
        """Bury the message: no consumer of the group gets it again.

        Clients repeat this until they hear that it is done, so it is renewed first. When that is refused, the delivery
        is over: the message is buried already, or gone, or comes again to somebody who decides anew. Done, then.
        """
        handle = ReceiptHandle.decode(handle_text)
        if handle.commit_log_offset < 0:
            raise InvalidReceiptHandle(
                "the receipt handle does not say where the message is (no ninth field): use it as it was received"
            )
        broker = self._broker_of(handle)

        def bury() -> Reply[None]:
            return chain(self.receipts.settling(handle_text, delivery_of(handle, group, topic)), hold)

        def hold(delivery: Delivery) -> Reply[None]:
            def held(changed: InvisibleChanged | None) -> Reply[None]:
                now = delivery if changed is None else after_change(delivery, changed)
                return self._bury(broker, handle, now, message_id)

            return chain(broker.renew(delivery, self.config.default_invisible_time_mills), held)

        def over(error: SaturnError) -> None:
            logger.info("message %s of %s is not buried: %s", message_id, group, error)

        buried = rescue(bury, (InvalidReceiptHandle, NoSuchMessage), over)
        return after(buried, lambda _: self.receipts.drop(handle_text))

    def _bury(
        self,
        broker: BrokerPort,
        handle: ReceiptHandle,
        delivery: Delivery,
        message_id: str,
        reason: DeadReason = DeadReason.CONSUMER,
    ) -> Reply[None]:
        request = SendBackRequest(
            group=delivery.group,
            commit_log_offset=handle.commit_log_offset,
            delay_level=-1,
            max_reconsume_times=0,
            origin_message_id=message_id,
            origin_topic=real_topic(delivery),
            reason=reason,
        )
        return chain(broker.send_back(request), lambda _: broker.ack(delivery))

    def _broker_of(self, handle: ReceiptHandle) -> BrokerPort:
        broker = self.brokers.get(handle.broker_name)
        if broker is None:
            raise InvalidReceiptHandle(
                f"the receipt handle is of the broker {handle.broker_name[:80]!r}, this Proxy serves "
                + ", ".join(self.brokers)
            )
        return broker


def _with_handle(broker_name: str, message_id: str, receipt: SendReceipt) -> SendReceipt:
    """Of a half message: what any Proxy ends it by."""
    receipt.transaction_id = TransactionHandle(
        broker_name=broker_name,
        half_offset=receipt.queue_offset,
        commit_log_offset=receipt.commit_log_offset,
        message_id=message_id,
    ).encode()
    return receipt


def type_of(properties: Mapping[str, str]) -> MessageType:
    """As its properties make it (common/attribute/TopicMessageType.java)."""
    if properties.get(props.TRANSACTION_PREPARED) == "true":
        return MessageType.TRANSACTION
    if not _DELAYS.isdisjoint(properties):
        return MessageType.DELAY
    return MessageType.FIFO if props.SHARDING_KEY in properties else MessageType.NORMAL


def existing(group: GroupConfig | None, name: str) -> GroupConfig:
    """Raises GroupNotFound."""
    if group is None:
        raise GroupNotFound(
            f"the consumer group {name} does not exist: create it (`mqadmin updateSubGroup -n NAMESRV -c CLUSTER -g "
            f"{name}`), or start the broker with autoCreateSubscriptionGroup=true"
        )
    return group


def delivery_of(handle: ReceiptHandle, group: str, topic: str) -> Delivery:
    """The broker's part of a handle."""
    return Delivery(
        group=group,
        topic=topic,
        topic_kind=handle.topic_kind,
        queue_id=handle.queue_id,
        queue_offset=handle.queue_offset,
        start_offset=handle.start_offset,
        pop_ms=handle.pop_ms,
        invisible_ms=handle.invisible_ms,
        revive_queue_id=handle.revive_queue_id,
    )


def real_topic(delivery: Delivery) -> str:
    """The topic whose queue the message was popped from."""
    if delivery.topic_kind is TopicKind.NORMAL:
        return delivery.topic
    return pop_retry_topic(delivery.group, delivery.topic, v2=delivery.topic_kind is TopicKind.RETRY_V2)


def message_id(message: StoredMessage, properties: Mapping[str, str]) -> str:
    """The sender's id, else the one that says where the message is stored."""
    return properties.get(props.UNIQUE_KEY) or record.offset_message_id(message.store_host, message.commit_log_offset)


def _nothing(_: object) -> None:
    """A settled message needs no more."""


def _not_settled(delivery: Delivery, error: BaseException) -> None:
    logger.warning(
        "message %s/%s/%s of %s is not settled, it will come again: %s",
        *(delivery.topic, delivery.queue_id, delivery.queue_offset, delivery.group, error),
    )
