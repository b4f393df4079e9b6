"""Handles: what a client holds of a message, to say later which one it means.

The receipt handle is a consumer's, for a message that it has received and not yet acknowledged; the recall handle is a
producer's, for a message whose time has not come; the transaction handle is a gRPC producer's, for a half message.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from enum import IntEnum

import msgspec

from saturnmq.kernel.errors import IllegalOperation, InvalidReceiptHandle, InvalidTransactionId

#: of 64 bits with a sign
MAX_NUMBER = (1 << 63) - 1
#: what has more is no time of day, and may have more digits than Python turns into a number
_TIME_DIGITS = 19


class TopicKind(IntEnum):
    """Which topic the message was popped from."""

    NORMAL = 0
    RETRY = 1  # pop retry topic, v1 name
    RETRY_V2 = 2


class ReceiptHandle(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One delivery of one message.

    Text form, single spaces: `startOffset popTime invisibleTime reviveQueueId topicKind brokerName queueId
    queueOffset commitLogOffset`. A Remoting client builds the first eight itself from the answer to a pop
    (remoting/protocol/header/ExtraInfoUtil.java); the Proxy adds the ninth (common/consumer/ReceiptHandle.java).
    """

    #: offset of the checkpoint that this delivery belongs to
    start_offset: int
    #: when it was popped or last changed, on the broker's clock
    pop_ms: int
    invisible_ms: int
    revive_queue_id: int
    topic_kind: TopicKind
    broker_name: str
    queue_id: int
    queue_offset: int
    commit_log_offset: int = -1

    @property
    def visible_again_ms(self) -> int:
        return self.pop_ms + self.invisible_ms

    def encode(self) -> str:
        return (
            f"{self.start_offset} {self.pop_ms} {self.invisible_ms} {self.revive_queue_id} {int(self.topic_kind)} "
            f"{self.broker_name} {self.queue_id} {self.queue_offset} {self.commit_log_offset}"
        )

    @classmethod
    def decode(cls, text: str) -> ReceiptHandle:
        """Raises InvalidReceiptHandle. Eight fields (Remoting) or nine."""
        fields = text.split(" ")
        if len(fields) not in (8, 9):
            raise InvalidReceiptHandle(
                f"a receipt handle has 8 or 9 fields, this one has {len(fields)}: {text[:200]!r}"
            )
        broker_name = fields.pop(5)
        try:
            numbers = list(map(int, fields))
            if not (max(numbers) <= MAX_NUMBER and min(numbers) >= ~MAX_NUMBER):
                raise ValueError("a number has over 64 bits")
            return cls(
                start_offset=numbers[0],
                pop_ms=numbers[1],
                invisible_ms=numbers[2],
                revive_queue_id=numbers[3],
                topic_kind=TopicKind(numbers[4]),
                broker_name=broker_name,
                queue_id=numbers[5],
                queue_offset=numbers[6],
                commit_log_offset=numbers[7] if len(numbers) == 8 else -1,
            )
        except ValueError as error:
            raise InvalidReceiptHandle(f"the receipt handle {text[:200]!r} cannot be read: {error}") from None


class RecallHandle(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One message that is for a time. Text form: `v1 topic brokerName time messageId` in URL-safe Base64
    (common/producer/RecallMessageHandle.java)."""

    topic: str
    broker_name: str
    #: milliseconds; falls into the slot of the message when what takes it back is due then
    time_ms: int
    #: the unique key
    message_id: str

    @classmethod
    def of(cls, topic: str, broker_name: str, slot_ms: int, message_id: str) -> RecallHandle:
        """Of a message in this slot (its TIMER_OUT_MS)."""
        return cls(topic=topic, broker_name=broker_name, time_ms=slot_ms + 1, message_id=message_id)

    def encode(self) -> str:
        return urlsafe_b64encode(
            f"v1 {self.topic} {self.broker_name} {self.time_ms} {self.message_id}".encode()
        ).decode()

    @classmethod
    def decode(cls, text: str) -> RecallHandle:
        """Raises IllegalOperation. A time that is no number is -1, as Apache reads it."""
        try:
            data = text.encode("ascii")
            fields = urlsafe_b64decode(data + b"=" * (-len(data) % 4)).decode().split(" ")
        except ValueError:
            fields = []
        if len(fields) < 5 or fields[0] != "v1":
            raise IllegalOperation("recall handle is invalid")
        _, topic, broker_name, time, message_id, *_ = fields
        time_ms = int(time) if time.isascii() and time.isdigit() and len(time) < _TIME_DIGITS else -1
        return cls(topic=topic, broker_name=broker_name, time_ms=time_ms, message_id=message_id)


class TransactionHandle(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One half message, for any Proxy: the `transaction_id` over gRPC. Text form: `v1 brokerName halfOffset
    commitLogOffset messageId` in URL-safe Base64."""

    broker_name: str
    #: in the queue of half messages
    half_offset: int
    commit_log_offset: int
    #: the unique key
    message_id: str

    def encode(self) -> str:
        return urlsafe_b64encode(
            f"v1 {self.broker_name} {self.half_offset} {self.commit_log_offset} {self.message_id}".encode()
        ).decode()

    @classmethod
    def decode(cls, text: str) -> TransactionHandle:
        """Raises InvalidTransactionId."""
        try:
            version, broker_name, *numbers, message_id = urlsafe_b64decode(text.encode("ascii")).decode().split(" ", 4)
            half_offset, commit_log_offset = map(int, numbers)
            if version != "v1" or not 0 <= half_offset <= MAX_NUMBER or not 0 <= commit_log_offset <= MAX_NUMBER:
                raise ValueError("it has numbers that no message has")
        except ValueError as error:
            raise InvalidTransactionId(f"the transaction id {text[:200]!r} cannot be read: {error}") from None
        return cls(
            broker_name=broker_name,
            half_offset=half_offset,
            commit_log_offset=commit_log_offset,
            message_id=message_id,
        )
