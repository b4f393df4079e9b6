"""The receipt handle: what a consumer holds for a message that it has received and not yet acknowledged."""

from __future__ import annotations

from enum import IntEnum

import msgspec

from saturnmq.kernel.errors import InvalidReceiptHandle

#: of 64 bits with a sign
MAX_NUMBER = (1 << 63) - 1


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
