"""One broker over the wire.

Source of the requests: proxy/service/message/ClusterMessageService.java, client/impl/MQClientAPIImpl.java.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from saturnmq.kernel.clock import Clock
from saturnmq.kernel.errors import (
    FlushTimeout,
    GroupNotFound,
    InvalidReceiptHandle,
    ProtocolError,
    SaturnError,
    SystemBusy,
    TopicNotFound,
    Unreachable,
)
from saturnmq.kernel.handle import ReceiptHandle
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Later
from saturnmq.kernel.ports import (
    Delivery,
    InvisibleChanged,
    PopRequest,
    PopResult,
    PopStatus,
    PullRequest,
    PullResult,
    PullStatus,
    RecallRequest,
    SendBackRequest,
    SendReceipt,
    SendRequest,
)
from saturnmq.kernel.topic import GroupConfig, TopicConfig
from saturnmq.net.remoting_client import RemotingClient
from saturnmq.proxy.health import Health
from saturnmq.proxy.proxy import real_topic
from saturnmq.proxy.receipts import give_back
from saturnmq.proxy.routing import MASTER
from saturnmq.wire import record as records
from saturnmq.wire.remoting.bodies import decode
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode, error_of
from saturnmq.wire.remoting.command import Command
from saturnmq.wire.remoting.extensions import CHECKS_HANDLE, KEEP_HANDLE
from saturnmq.wire.remoting.pops import decode_popped

#: how long a broker may take, beyond what it was asked to wait, milliseconds (MQClientAPIImpl: 3 s)
TIMEOUT_MS = 3_000
#: requests to one broker that it has not answered
MOST_IN_FLIGHT = 20_000
#: bodies of them: a broker that takes none keeps no more of our memory than this
MOST_BYTES_IN_FLIGHT = 64 << 20
#: messages that came for somebody who is gone are hidden for so long, milliseconds (invisibleTimeMillisWhenClear)
GIVE_BACK_MS = 1_000

# sysFlag bits of a pull (common/sysflag/PullSysFlag.java)
_SUSPEND, _SUBSCRIPTION = 0x2, 0x4
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

T = TypeVar("T")


class RemoteBroker:
    """A `kernel.ports.BrokerPort` over the wire. Owner of what is in flight to it.

    Sends have connections of their own: they do not stand behind the messages that others receive.
    """

    def __init__(self, name: str, sends: RemotingClient, others: RemotingClient, clock: Clock) -> None:
        self.name = name
        self._sends, self._others, self._clock = sends, others, clock
        self._healths: dict[int, tuple[Address, Health]] = {}
        self._in_flight = self._bytes_in_flight = 0

    @property
    def addresses(self) -> Mapping[int, Address]:
        """Of the master and its replicas by broker id, as NameServers say; empty while they know of none."""
        return {broker_id: address for broker_id, (address, _) in self._healths.items()}

    @addresses.setter
    def addresses(self, addresses: Mapping[int, Address]) -> None:
        known = {address: health for address, health in self._healths.values()}
        self._healths = {
            broker_id: (address, known.get(address) or Health(self._clock))
            for broker_id, address in sorted(addresses.items())
        }

    @property
    def takes_sends(self) -> bool:
        """As far as is known it would take one, and soon."""
        return MASTER in self._healths and self._healths[MASTER][1].usable

    @property
    def reachable(self) -> bool:
        return any(not health.paused for _, health in self._healths.values())

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

    def send_back(self, request: SendBackRequest) -> Later[None]:
        fields = {
            "offset": str(request.commit_log_offset),
            "group": request.group,
            "delayLevel": str(request.delay_level),
            "unitMode": "false",
        }
        optional = {
            "originMsgId": request.origin_message_id,
            "originTopic": request.origin_topic,
            "maxReconsumeTimes": request.max_reconsume_times,
        }
        fields |= {name: str(value) for name, value in optional.items() if value is not None}
        return self._ask(RequestCode.CONSUMER_SEND_MSG_BACK, fields, _nothing)

    # ------------------------------------------------------------------------------------------------ consuming

    def pull(self, request: PullRequest) -> Later[PullResult]:
        wanted = request.subscription
        fields = {
            "consumerGroup": request.group,
            "topic": request.queue.topic,
            "queueId": str(request.queue.queue_id),
            "queueOffset": str(request.offset),
            "maxMsgNums": str(request.max_messages),
            "maxMsgBytes": str(request.max_bytes),
            "sysFlag": str(_SUBSCRIPTION | (_SUSPEND if request.wait_ms else 0)),
            "commitOffset": "0",
            "suspendTimeoutMillis": str(request.wait_ms),
            "subVersion": str(wanted.version),
            "subscription": wanted.expression,
            "expressionType": wanted.expression_type,
        }
        return self._ask(RequestCode.PULL_MESSAGE, fields, _pulled, wait_ms=request.wait_ms)

    def pop(self, request: PopRequest) -> Later[PopResult]:
        """What comes for somebody who does not want it any more goes back to the group at once."""
        fields = {
            "consumerGroup": request.group,
            "topic": request.topic,
            "queueId": str(request.queue_id),
            "maxMsgNums": str(request.max_messages),
            "invisibleTime": str(request.invisible_ms),
            "pollTime": str(request.wait_ms),
            "bornTime": str(self._clock.now_ms()),
            "initMode": _FROM_LATEST if request.from_latest else _FROM_FIRST,
            "exp": request.subscription.expression,
            "expType": request.subscription.expression_type,
            "order": str(request.fifo).lower(),
        }
        if request.attempt_id is not None:
            fields["attemptId"] = request.attempt_id
        popped: Later[PopResult] = Later()
        asked = self._ask(RequestCode.POP_MESSAGE, fields, _popped, wait_ms=request.wait_ms)

        def deliver(result: PopResult) -> None:
            if popped.pending:
                popped.resolve(result)
            else:
                self._give_back(request, result)

        asked.then(deliver, popped.fail)
        return popped

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
        return self._ask(RequestCode.ACK_MESSAGE, self._settling(delivery), partial(self._settled, delivery, _nothing))

    def change_invisible(self, delivery: Delivery, invisible_ms: int) -> Later[InvisibleChanged]:
        fields = {**self._settling(delivery), "invisibleTime": str(invisible_ms)}
        read = partial(self._settled, delivery, _changed)
        return self._ask(RequestCode.CHANGE_MESSAGE_INVISIBLETIME, fields, read)

    def renew(self, delivery: Delivery, invisible_ms: int) -> Later[InvisibleChanged | None]:
        fields = {**self._settling(delivery), "invisibleTime": str(invisible_ms), KEEP_HANDLE: "true"}
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

    # ------------------------------------------------------------------------------------------ what it knows

    def topic_config(self, topic: str) -> Later[TopicConfig]:
        """Fails with TopicNotFound."""
        return self._ask(RequestCode.GET_TOPIC_CONFIG, {"topic": topic}, partial(_config, TopicConfig))

    def group_config(self, group: str) -> Later[GroupConfig | None]:
        """Fails with GroupNotFound."""
        return self._ask(RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG, {"group": group}, partial(_config, GroupConfig))

    # --------------------------------------------------------------------------------------------------- asking

    def _ask(
        self,
        code: int,
        fields: Mapping[str, str],
        read: Callable[[Command], T],
        *,
        body: bytes = b"",
        wait_ms: int = 0,
        sends: bool = False,
    ) -> Later[T]:
        """Ask the master, or for anything but a send a replica where it is gone. Raises Unreachable, SystemBusy."""
        address, health = self._choose(sends)
        if self._in_flight >= MOST_IN_FLIGHT or self._bytes_in_flight + len(body) > MOST_BYTES_IN_FLIGHT:
            raise SystemBusy(
                f"the broker {self.name} has not answered {self._in_flight} requests of {self._bytes_in_flight} bytes, "
                f"the limits are {MOST_IN_FLIGHT} and {MOST_BYTES_IN_FLIGHT}: try again in a moment"
            )
        health.admit(self.name)
        self._in_flight += 1
        self._bytes_in_flight += len(body)
        began_ms = self._clock.steady_ms()
        answer: Later[T] = Later()

        def done() -> None:
            self._in_flight -= 1
            self._bytes_in_flight -= len(body)

        def answered(command: Command) -> None:
            done()
            health.answered()
            if sends:
                health.took(self._clock.steady_ms() - began_ms)
            try:
                value = read(command)
            except (LookupError, ValueError, ProtocolError) as error:
                answer.fail(SaturnError(f"the broker {self.name} gave an answer that cannot be read: {error!r}"))
            except SaturnError as error:
                answer.fail(error)
            else:
                answer.resolve(value)

        def failed(error: BaseException) -> None:
            done()
            if isinstance(error, SaturnError):
                health.failed(error)
            answer.fail(error)

        def cancel() -> None:
            done()
            asked.cancel()

        client = self._sends if sends else self._others
        asked = client.request(address, code, fields, body, wait_ms + TIMEOUT_MS)
        answer.on_cancel = cancel
        asked.then(answered, failed)
        return answer

    def _choose(self, sends: bool) -> tuple[Address, Health]:
        """The master; for what is no send the first one that can be reached."""
        places = [place for broker_id, place in self._healths.items() if not sends or broker_id == MASTER]
        if not places:
            raise Unreachable(f"no NameServer knows {'a master of ' if sends else ''}the broker {self.name}")
        return next((place for place in places if not place[1].paused), places[0])


def _succeeded(answer: Command) -> Command:
    if answer.code != ResponseCode.SUCCESS:
        raise error_of(answer.code, answer.remark)
    return answer


def _nothing(answer: Command) -> None:
    _succeeded(answer)


def _receipt(answer: Command) -> SendReceipt:
    if answer.code != ResponseCode.FLUSH_DISK_TIMEOUT:
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
    if answer.code == ResponseCode.FLUSH_DISK_TIMEOUT:
        raise FlushTimeout(answer.remark or "the broker did not confirm the message in time", receipt)
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
