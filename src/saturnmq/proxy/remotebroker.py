"""One broker over the wire.

Source of the requests: proxy/service/message/ClusterMessageService.java, client/impl/MQClientAPIImpl.java.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from saturnmq.kernel.clock import Clock
from saturnmq.kernel.errors import (
    FlushTimeout,
    GroupNotFound,
    InvalidReceiptHandle,
    ReplicaTimeout,
    ReplicaUnavailable,
    TopicNotFound,
)
from saturnmq.kernel.handle import ReceiptHandle
from saturnmq.kernel.later import Later, Reply
from saturnmq.kernel.message import TRANSACTION_COMMIT, TRANSACTION_ROLLBACK
from saturnmq.kernel.ports import (
    Boundary,
    Delivery,
    EndTransactionRequest,
    InvisibleChanged,
    Notice,
    PopRequest,
    PopResult,
    PopStatus,
    PullRequest,
    PullResult,
    PullStatus,
    RecallRequest,
    Resolution,
    SendBackRequest,
    SendReceipt,
    SendRequest,
)
from saturnmq.kernel.topic import DEFAULT_TOPIC, GroupConfig, MessageQueue, TopicConfig
from saturnmq.net.remoting_client import RemotingClient
from saturnmq.proxy.batchacks import BatchAcks
from saturnmq.proxy.brokerlink import BrokerLink
from saturnmq.proxy.proxy import real_topic
from saturnmq.proxy.receipts import give_back
from saturnmq.wire import record as records
from saturnmq.wire.remoting.bodies import HeartbeatData, LockBatchRequest, LockBatchResponse, decode, encode
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode, error_of
from saturnmq.wire.remoting.command import Command
from saturnmq.wire.remoting.extensions import CHECKS_HANDLE, KEEP_FOR, KEEP_HANDLE, MANY_CLIENTS
from saturnmq.wire.remoting.popanswers import decode_popped
from saturnmq.wire.remoting.poprequests import MOST_BITS, encode_batch_ack

#: messages that came for somebody who is gone are hidden for so long, milliseconds (invisibleTimeMillisWhenClear)
GIVE_BACK_MS = 1_000

# sysFlag bits of a pull (common/sysflag/PullSysFlag.java)
_COMMIT_OFFSET, _SUSPEND, _SUBSCRIPTION = 0x1, 0x2, 0x4
#: initMode of a pop (common/constant/ConsumeInitMode.java)
_FROM_FIRST, _FROM_LATEST = "0", "1"

_PULLED: Mapping[int, PullStatus] = {
    ResponseCode.SUCCESS: PullStatus.FOUND,
    ResponseCode.PULL_NOT_FOUND: PullStatus.NOT_FOUND,
    ResponseCode.PULL_RETRY_IMMEDIATELY: PullStatus.NO_MATCH,
    ResponseCode.PULL_OFFSET_MOVED: PullStatus.OFFSET_MOVED,
}
_NOT_POPPED: Mapping[int, PopStatus] = {
    ResponseCode.PULL_NOT_FOUND: PopStatus.NOT_FOUND,
    ResponseCode.POLLING_FULL: PopStatus.POLLING_FULL,
    ResponseCode.POLLING_TIMEOUT: PopStatus.POLLING_TIMEOUT,
}

#: the message is in the log, but not as durable as it should be
_UNSURE: Mapping[int, type[FlushTimeout]] = {
    ResponseCode.FLUSH_DISK_TIMEOUT: FlushTimeout,
    ResponseCode.FLUSH_SLAVE_TIMEOUT: ReplicaTimeout,
    ResponseCode.SLAVE_NOT_AVAILABLE: ReplicaUnavailable,
}
#: commitOrRollback (common/sysflag/MessageSysFlag.java)
_RESOLUTIONS = {
    Resolution.COMMIT: TRANSACTION_COMMIT,
    Resolution.ROLLBACK: TRANSACTION_ROLLBACK,
    Resolution.UNKNOWN: 0,
}

T = TypeVar("T")


class RemoteBroker:
    """A `kernel.ports.BrokerPort` over the wire."""

    def __init__(
        self, name: str, sends: RemotingClient, others: RemotingClient, clock: Clock, *, batch_acks: bool = False
    ) -> None:
        self.name = name
        #: that it belongs to
        self.cluster = ""
        self.link = BrokerLink(name, sends, others, clock)
        self._ask, self._clock = self.link.ask, clock
        #: it is ours, as its answer to a heart-beat shows
        self.keeps_leases = False
        #: who waits for messages, and how to tell them that there are none
        self._polls: dict[Later[Any], Callable[[], None]] = {}
        self._draining = False
        self._batch_acks = BatchAcks(self._ack, self._ack_several, clock) if batch_acks else None

    @property
    def takes_sends(self) -> bool:
        return self.link.takes_sends

    def drain(self) -> bool:
        """Who waits for messages hears now that there are none, and nobody waits any more. Whether anybody waited."""
        self._draining = True
        polls, self._polls = self._polls, {}
        for answer_nothing in polls.values():
            answer_nothing()
        return bool(polls)

    # --------------------------------------------------------------------------------------------------- sends

    def send(self, request: SendRequest) -> Later[SendReceipt]:
        message = request.messages[0]
        if request.batch:
            body = records.encode_batch([records.BatchEntry(m.flag, m.body, m.properties) for m in request.messages])
            properties = b""
        else:
            body, properties = message.body, message.properties
        fields = {
            "a": request.producer_group,
            "b": message.topic,
            "c": request.default_topic,
            "d": str(request.default_queue_nums),
            "e": str(message.queue_id),
            "f": str(message.sys_flag),
            "g": str(message.born_ms),
            "h": str(message.flag),
            "i": properties.decode("utf-8", "replace"),
            "j": str(message.reconsume_times),
            "k": str(request.unit_mode).lower(),
            "m": str(request.batch).lower(),
        }
        if request.max_reconsume_times is not None:
            fields["l"] = str(request.max_reconsume_times)
        code = RequestCode.SEND_BATCH_MESSAGE if request.batch else RequestCode.SEND_MESSAGE_V2
        return self._ask(code, fields, _receipt, body=body, sends=True)

    def recall(self, request: RecallRequest) -> Later[str]:
        fields = {"topic": request.topic, "recallHandle": request.handle, "producerGroup": request.producer_group or ""}
        return self._ask(RequestCode.RECALL_MESSAGE, fields, lambda answer: _succeeded(answer).fields["msgId"])

    def end_transaction(self, request: EndTransactionRequest) -> Reply[None]:
        fields = {
            "topic": request.topic,
            "producerGroup": request.producer_group,
            "tranStateTableOffset": str(request.half_offset),
            "commitLogOffset": str(request.commit_log_offset),
            "commitOrRollback": str(_RESOLUTIONS[request.resolution]),
            "fromTransactionCheck": str(request.from_check).lower(),
            "msgId": request.message_id or "",
            "transactionId": request.message_id or "",
        }
        if request.message_id is not None:
            fields["uniqKey"] = request.message_id
        if request.resolution is Resolution.UNKNOWN:
            self.link.tell(RequestCode.END_TRANSACTION, fields)  # Apache's broker does not answer
            return None
        return self._ask(RequestCode.END_TRANSACTION, fields, _nothing)

    def send_back(self, request: SendBackRequest) -> Later[None]:
        fields = {
            "offset": str(request.commit_log_offset),
            "group": request.group,
            "delayLevel": str(request.delay_level),
            "unitMode": str(request.unit_mode).lower(),
        }
        optional = {
            "originMsgId": request.origin_message_id,
            "originTopic": request.origin_topic,
            "maxReconsumeTimes": request.max_reconsume_times,
            "deadReason": request.reason.value if request.delay_level < 0 else None,
        }
        fields |= {name: str(value) for name, value in optional.items() if value is not None}
        return self._ask(RequestCode.CONSUMER_SEND_MSG_BACK, fields, _nothing)

    # ------------------------------------------------------------------------------------------------ consuming

    def pull(self, request: PullRequest) -> Later[PullResult]:
        wanted, wait_ms = request.subscription, self._wait_ms(request.wait_ms)
        fields = {
            "consumerGroup": request.group,
            "topic": request.queue.topic,
            "queueId": str(request.queue.queue_id),
            "queueOffset": str(request.offset),
            "maxMsgNums": str(request.max_messages),
            "sysFlag": str(
                _SUBSCRIPTION | (_SUSPEND if wait_ms else 0) | (_COMMIT_OFFSET if request.commit_offset >= 0 else 0)
            ),
            "commitOffset": str(max(request.commit_offset, 0)),
            "suspendTimeoutMillis": str(wait_ms),
            "subVersion": str(wanted.version),
            "subscription": wanted.expression,
            "expressionType": wanted.expression_type,
        }
        if request.max_bytes:
            fields["maxMsgBytes"] = str(request.max_bytes)
        code = RequestCode.LITE_PULL_MESSAGE if request.lite else RequestCode.PULL_MESSAGE
        offset = request.offset
        nothing = PullResult(status=PullStatus.NOT_FOUND, next_offset=offset, min_offset=offset, max_offset=offset)
        return self._poll(self._ask(code, fields, _pulled, wait_ms=wait_ms), nothing)

    def pop(self, request: PopRequest) -> Later[PopResult]:
        """What comes for somebody who does not want it any more goes back to the group at once."""
        wait_ms = self._wait_ms(request.wait_ms)
        fields = {
            "consumerGroup": request.group,
            "topic": request.topic,
            "queueId": str(request.queue_id),
            "maxMsgNums": str(request.max_messages),
            "invisibleTime": str(request.invisible_ms),
            "pollTime": str(wait_ms),
            "bornTime": str(self._clock.now_ms()),
            "initMode": _FROM_LATEST if request.from_latest else _FROM_FIRST,
            "exp": request.subscription.expression,
            "expType": request.subscription.expression_type,
            "order": str(request.fifo).lower(),
        }
        if request.attempt_id is not None:
            fields["attemptId"] = request.attempt_id
        asked = self._ask(RequestCode.POP_MESSAGE, fields, _popped, wait_ms=wait_ms)
        return self._poll(asked, PopResult(status=PopStatus.POLLING_TIMEOUT), partial(self._give_back, request))

    def _wait_ms(self, wanted_ms: int) -> int:
        return 0 if self._draining else wanted_ms

    def _poll(self, asked: Later[T], nothing: T, give_back: Callable[[T], None] | None = None) -> Later[T]:
        """`nothing` is the answer when this Proxy stops; `give_back` takes what comes for somebody who is gone."""

        def cancel() -> None:
            self._polls.pop(answer, None)
            if give_back is None:
                asked.cancel()

        def deliver(result: T) -> None:
            if answer.pending:
                del self._polls[answer]
                answer.resolve(result)
            elif give_back is not None:
                give_back(result)

        def fail(error: BaseException) -> None:
            if answer.pending:
                del self._polls[answer]
                answer.fail(error)

        answer: Later[T] = Later(cancel)
        self._polls[answer] = partial(answer.resolve, nothing)
        asked.then(deliver, fail)
        return answer

    def _give_back(self, request: PopRequest, result: PopResult) -> None:
        for message in result.messages:
            delivery = Delivery(
                group=request.group,
                topic=request.topic,
                topic_kind=message.topic_kind,
                queue_id=message.queue_id,
                queue_offset=message.queue_offset,
                start_offset=message.start_offset,
                pop_ms=result.pop_ms,
                invisible_ms=result.invisible_ms,
                revive_queue_id=result.revive_queue_id,
            )
            give_back(self, delivery, GIVE_BACK_MS)

    def ack(self, delivery: Delivery) -> Later[None]:
        """One that is expired goes alone: what becomes of it is its client's to know."""
        batch = self._batch_acks
        if batch is None or not 0 <= delivery.queue_offset - delivery.start_offset < MOST_BITS:
            return self._ack(delivery)
        expired = delivery.pop_ms + delivery.invisible_ms <= self._clock.now_ms()
        return self._ack(delivery) if expired else batch.ack(delivery)

    def _ack_several(self, deliveries: Sequence[Delivery]) -> Later[None]:
        return self._ask(RequestCode.BATCH_ACK_MESSAGE, {}, _nothing, body=encode_batch_ack(self.name, deliveries))

    def _ack(self, delivery: Delivery) -> Later[None]:
        return self._ask(RequestCode.ACK_MESSAGE, self._settling(delivery), partial(self._settled, delivery, _nothing))

    def change_invisible(self, delivery: Delivery, invisible_ms: int) -> Later[InvisibleChanged]:
        fields = {**self._settling(delivery), "invisibleTime": str(invisible_ms)}
        read = partial(self._settled, delivery, _changed)
        return self._ask(RequestCode.CHANGE_MESSAGE_INVISIBLETIME, fields, read)

    def renew(self, delivery: Delivery, invisible_ms: int, client_id: str = "") -> Later[InvisibleChanged | None]:
        fields = {**self._settling(delivery), "invisibleTime": str(invisible_ms), KEEP_HANDLE: "true"}
        if client_id:
            fields[KEEP_FOR] = client_id
        return self._ask(RequestCode.CHANGE_MESSAGE_INVISIBLETIME, fields, partial(self._settled, delivery, _renewed))

    def _settling(self, delivery: Delivery) -> dict[str, str]:
        handle = ReceiptHandle(
            start_offset=delivery.start_offset,
            pop_ms=delivery.pop_ms,
            invisible_ms=delivery.invisible_ms,
            revive_queue_id=delivery.revive_queue_id,
            topic_kind=delivery.topic_kind,
            broker_name=self.name,
            queue_id=delivery.queue_id,
            queue_offset=delivery.queue_offset,
        )
        return {
            "consumerGroup": delivery.group,
            "topic": real_topic(delivery),
            "queueId": str(delivery.queue_id),
            "extraInfo": handle.encode(),
            "offset": str(delivery.queue_offset),
            CHECKS_HANDLE: "true",
        }

    def _settled(self, delivery: Delivery, read: Callable[[Command], T], answer: Command) -> T:
        """Apache's broker settles what is expired without a word; its Proxy looks at its own clock first."""
        if answer.code == ResponseCode.MESSAGE_ILLEGAL:
            raise InvalidReceiptHandle(answer.remark or "the broker does not take the receipt handle")
        value = read(answer)
        if CHECKS_HANDLE not in answer.fields and delivery.pop_ms + delivery.invisible_ms <= self._clock.now_ms():
            raise InvalidReceiptHandle(
                f"the receipt handle expired at {delivery.pop_ms + delivery.invisible_ms}: the message comes again"
            )
        return value

    # ------------------------------------------------------------------------- consumers that keep their place

    def notify(self, request: PopRequest) -> Later[Notice]:
        wait_ms = self._wait_ms(request.wait_ms)
        fields = {
            "consumerGroup": request.group,
            "topic": request.topic,
            "queueId": str(request.queue_id),
            "pollTime": str(wait_ms),
            "bornTime": str(self._clock.now_ms()),
            "order": str(request.fifo).lower(),
            "exp": request.subscription.expression,
            "expType": request.subscription.expression_type,
        }
        if request.attempt_id is not None:
            fields["attemptId"] = request.attempt_id
        return self._poll(self._ask(RequestCode.NOTIFICATION, fields, _notice, wait_ms=wait_ms), Notice(False))

    def committed(self, group: str, queue: MessageQueue, *, zero_if_new: bool = True) -> Later[int]:
        fields = {**_queue(queue), "consumerGroup": group, "setZeroIfNotFound": str(zero_if_new).lower()}
        return self._ask(RequestCode.QUERY_CONSUMER_OFFSET, fields, _offset)

    def commit(self, group: str, queue: MessageQueue, offset: int) -> Later[bool]:
        fields = {**_queue(queue), "consumerGroup": group, "commitOffset": str(offset)}
        return self._ask(RequestCode.UPDATE_CONSUMER_OFFSET, fields, lambda answer: not _succeeded(answer).remark)

    def min_offset(self, queue: MessageQueue) -> Later[int]:
        return self._ask(RequestCode.GET_MIN_OFFSET, _queue(queue), _offset)

    def max_offset(self, queue: MessageQueue) -> Later[int]:
        return self._ask(RequestCode.GET_MAX_OFFSET, _queue(queue), _offset)

    def offset_by_time(self, queue: MessageQueue, timestamp_ms: int, boundary: Boundary) -> Later[int]:
        fields = {**_queue(queue), "timestamp": str(timestamp_ms), "boundaryType": boundary.name}
        return self._ask(RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, fields, _offset)

    def lock(self, group: str, queues: Sequence[MessageQueue], client_id: str) -> Later[list[MessageQueue]]:
        body = encode(LockBatchRequest(consumer_group=group, client_id=client_id, mq_set=list(queues)))
        return self._ask(RequestCode.LOCK_BATCH_MQ, {}, _locked, body=body)

    def unlock(self, group: str, queues: Sequence[MessageQueue], client_id: str) -> Later[None]:
        body = encode(LockBatchRequest(consumer_group=group, client_id=client_id, mq_set=list(queues)))
        return self._ask(RequestCode.UNLOCK_BATCH_MQ, {}, _nothing, body=body)

    # -------------------------------------------------------------------------------------------------- clients

    def heartbeat(self, data: HeartbeatData) -> Later[bool]:
        """Whether it takes several clients over one connection."""
        return self._ask(
            RequestCode.HEART_BEAT,
            {MANY_CLIENTS: "true"},
            lambda answer: MANY_CLIENTS in _succeeded(answer).fields,
            body=encode(data),
        )

    def unregister(self, client_id: str, role: Mapping[str, str]) -> Later[None]:
        return self._ask(RequestCode.UNREGISTER_CLIENT, {"clientID": client_id, **role}, _nothing)

    # ------------------------------------------------------------------------------------------ what it knows

    def create_topic(self, config: TopicConfig) -> Later[None]:
        fields = {
            "topic": config.topic_name,
            "defaultTopic": DEFAULT_TOPIC,
            "readQueueNums": str(config.read_queue_nums),
            "writeQueueNums": str(config.write_queue_nums),
            "perm": str(config.perm),
            "topicFilterType": config.topic_filter_type,
            "topicSysFlag": str(config.topic_sys_flag),
            "order": str(config.order).lower(),
        }
        return self._ask(RequestCode.UPDATE_AND_CREATE_TOPIC, fields, _nothing)

    def topic_config(self, topic: str) -> Later[TopicConfig]:
        """Fails with TopicNotFound."""
        return self._ask(RequestCode.GET_TOPIC_CONFIG, {"topic": topic}, partial(_config, TopicConfig))

    def group_config(self, group: str) -> Later[GroupConfig | None]:
        """Fails with GroupNotFound."""
        return self._ask(RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG, {"group": group}, partial(_config, GroupConfig))


def _succeeded(answer: Command) -> Command:
    if answer.code != ResponseCode.SUCCESS:
        raise error_of(answer.code, answer.remark)
    return answer


def _nothing(answer: Command) -> None:
    _succeeded(answer)


def _receipt(answer: Command) -> SendReceipt:
    unsure = _UNSURE.get(answer.code)
    if unsure is None:
        _succeeded(answer)
    fields = answer.fields
    _, position = records.parse_offset_message_id(fields["msgId"].partition(",")[0])
    receipt = SendReceipt(
        queue_id=int(fields["queueId"]),
        queue_offset=int(fields["queueOffset"]),
        message_id=fields["msgId"],
        commit_log_offset=position,
        transaction_id=fields.get("transactionId"),
        recall_handle=fields.get("recallHandle"),
    )
    if unsure is not None:
        raise unsure(answer.remark or unsure.__doc__ or "", receipt)
    return receipt


def _pulled(answer: Command) -> PullResult:
    status = _PULLED.get(answer.code)
    if status is None:
        raise error_of(answer.code, answer.remark)
    return PullResult(
        status=status,
        next_offset=int(answer.fields["nextBeginOffset"]),
        min_offset=int(answer.fields["minOffset"]),
        max_offset=int(answer.fields["maxOffset"]),
        records=records.split(answer.body),
    )


def _popped(answer: Command) -> PopResult:
    if answer.code in _NOT_POPPED:
        return PopResult(status=_NOT_POPPED[answer.code])
    _succeeded(answer)
    return decode_popped(answer.fields, answer.body)


def _notice(answer: Command) -> Notice:
    fields = _succeeded(answer).fields
    return Notice(fields.get("hasMsg") == "true", fields.get("pollingFull") == "true")


def _queue(queue: MessageQueue) -> dict[str, str]:
    return {"topic": queue.topic, "queueId": str(queue.queue_id)}


def _offset(answer: Command) -> int:
    return int(_succeeded(answer).fields["offset"])


def _locked(answer: Command) -> list[MessageQueue]:
    return decode(LockBatchResponse, _succeeded(answer).body).locked


def _changed(answer: Command) -> InvisibleChanged:
    fields = _succeeded(answer).fields
    if "popTime" not in fields:  # Apache's, of a message in an order that is acknowledged
        raise InvalidReceiptHandle("the message is acknowledged already")
    return InvisibleChanged(int(fields["popTime"]), int(fields["invisibleTime"]), int(fields["reviveQid"]))


def _renewed(answer: Command) -> InvisibleChanged | None:
    changed = _changed(answer)
    return None if KEEP_HANDLE in answer.fields else changed


def _config(kind: type[T], answer: Command) -> T:
    if answer.code == ResponseCode.TOPIC_NOT_EXIST:
        raise TopicNotFound(answer.remark or "")
    if answer.code == ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST:
        raise GroupNotFound(answer.remark or "")
    return decode(kind, _succeeded(answer).body)
