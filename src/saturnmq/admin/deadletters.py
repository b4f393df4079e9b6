"""Dead letters: what is known of one, and the message that it becomes when it is sent again."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import msgspec

from saturnmq.kernel import properties as names
from saturnmq.kernel.host import Address
from saturnmq.kernel.message import BORN_HOST_V6, COMPRESSED, STORE_HOST_V6, TRANSACTION_MASK, StoredMessage
from saturnmq.kernel.topic import pop_retry_topic, retry_topic, topic_of_retries
from saturnmq.wire.record import decode, offset_message_id, parse_offset_message_id

#: what says how it was stored, delivered and buried. The message that is sent again begins anew; the rest is its own.
#: (Apache's revival sets ORIGIN_GROUP)
_OF_ITS_LIFE = frozenset(
    """DELAY WAIT RETRY_TOPIC REAL_TOPIC REAL_QID TRAN_MSG MIN_OFFSET MAX_OFFSET RECONSUME_TIME MAX_RECONSUME_TIMES
    CONSUME_START_TIME ORIGIN_GROUP POP_CK POP_CK_OFFSET 1ST_POP_TIME TRAN_PREPARED_QUEUE_OFFSET INNER_MULTI_DISPATCH
    INNER_MULTI_QUEUE_OFFSET TIMER_DELAY_MS TIMER_DELAY_SEC TIMER_DELIVER_MS TIMER_ENQUEUE_MS TIMER_DEQUEUE_MS
    TIMER_ROLL_TIMES TIMER_OUT_MS TIMER_DEL_UNIQKEY TIMER_DELAY_LEVEL MSG_REGION TRACE_ON CLUSTER DLQ_ORIGIN_TOPIC
    DLQ_ORIGIN_MESSAGE_ID DLQ_REASON DLQ_RESENT""".split()
)
_NOT_USERS = names.RESERVED | _OF_ITS_LIFE
#: of bodies that are shown
_MOST_INFLATED_BYTES = 64 << 20


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A message of `%DLQ%<group>` of one broker."""

    group: str
    #: its master, and where it is
    broker_name: str
    broker: Address
    stored: StoredMessage
    properties: dict[str, str]

    @classmethod
    def of(cls, group: str, broker_name: str, broker: Address, record: bytes) -> DeadLetter:
        """Raises ProtocolError."""
        stored = decode(record)
        properties = names.decode(stored.properties)
        return cls(group=group, broker_name=broker_name, broker=broker, stored=stored, properties=properties)

    @property
    def message_id(self) -> str:
        """That the message always had."""
        return self.properties.get(names.UNIQUE_KEY) or self.properties.get(names.ORIGIN_MESSAGE_ID) or self.place

    @property
    def place(self) -> str:
        """The offset message id of the letter itself."""
        return offset_message_id(self.stored.store_host, self.stored.commit_log_offset)

    @property
    def topic(self) -> str:
        """Where the message was sent first; empty when the letter does not say."""
        origin = self.properties.get(names.DLQ_ORIGIN_TOPIC)
        return origin or topic_of_retries(self.properties.get(names.RETRY_TOPIC, ""), self.group)

    @property
    def pop_retry_topic(self) -> str | None:
        """The one that it came from: pop consumers failed it more than once."""
        topic = self.properties.get(names.RETRY_TOPIC, "")
        return topic if topic != topic_of_retries(topic, self.group) else None

    @property
    def retry_topics(self) -> list[str]:
        """Those that its group may read: one when it pulls, the others when it pops."""
        pop_retries = [pop_retry_topic(self.group, self.topic, v2=v2) for v2 in (False, True)]
        return [retry_topic(self.group), *pop_retries]

    def is_resent_as(self, record: bytes) -> bool:
        """Whether this record is the message, sent again from this letter or from a later one."""
        properties = names.decode(decode(record).properties)
        resent = properties.get(names.DLQ_RESENT)
        return (
            resent is not None
            and properties.get(names.UNIQUE_KEY) == self.message_id
            and parse_offset_message_id(resent)[1] >= self.stored.commit_log_offset
        )

    def resent_properties(self, topic: str) -> dict[str, str]:
        """Of the message for this topic. Where it comes from stands in them: that is what marks the letter."""
        kept = {key: value for key, value in self.properties.items() if key not in _OF_ITS_LIFE}
        if topic != self.topic:
            kept[names.RETRY_TOPIC] = self.topic
        return {**kept, names.UNIQUE_KEY: self.message_id, names.DLQ_RESENT: self.place}

    @property
    def resent_sys_flag(self) -> int:
        return self.stored.sys_flag & ~(TRANSACTION_MASK | BORN_HOST_V6 | STORE_HOST_V6)

    def as_json(self, *, resent: bool | None) -> dict[str, Any]:
        """For people and programs; a body that is no text is in base64. `resent` None: nobody knows."""
        stored = self.stored
        known = {
            "messageId": self.message_id,
            "topic": self.topic,
            "group": self.group,
            "reason": self.properties.get(names.DLQ_REASON, ""),
            "reconsumeTimes": stored.reconsume_times,
            "keys": self.properties.get(names.KEYS, "").split(),
            "tag": self.properties.get(names.TAGS, ""),
            "bornMs": stored.born_ms,
            "deadMs": stored.stored_ms,
            "resent": resent,
            "broker": self.broker_name,
            "queueOffset": stored.queue_offset,
            "offsetMessageId": self.place,
            "properties": {key: value for key, value in self.properties.items() if key not in _NOT_USERS},
            "systemProperties": {key: value for key, value in self.properties.items() if key in _NOT_USERS},
        }
        body = _readable(stored)
        try:
            return {**known, "body": body.decode()}
        except UnicodeDecodeError:
            return {**known, "bodyBase64": base64.b64encode(body).decode()}


def _readable(stored: StoredMessage) -> bytes:
    """The body, inflated when it is zlib's; other compressions stay as they are."""
    if stored.sys_flag & COMPRESSED:
        inflate = zlib.decompressobj()
        try:
            body = inflate.decompress(stored.body, _MOST_INFLATED_BYTES)
        except zlib.error:
            return stored.body
        if inflate.eof:
            return body
    return stored.body
