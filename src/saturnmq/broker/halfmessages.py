"""Half messages in their forms: as a producer sends one, waiting, asked about, committed, given up.

Sources: broker/transaction/queue/TransactionalMessageBridge.java, DefaultTransactionalMessageCheckListener.java,
broker/processor/EndTransactionProcessor.java.
"""

from __future__ import annotations

import msgspec

from saturnmq.kernel import properties as names
from saturnmq.kernel.message import (
    BORN_HOST_V6,
    STORE_HOST_V6,
    TRANSACTION_COMMIT,
    TRANSACTION_MASK,
    Message,
    StoredMessage,
)
from saturnmq.kernel.topic import HALF_TOPIC, TRANS_CHECK_MAX_TIME_TOPIC
from saturnmq.wire import record

#: of a number that is none of a message's, and may have more than Python reads
_DIGITS = 18
#: for which a producer may ask not to be asked, so that no half message holds back the deletion of files for ever
MOST_IMMUNE_MS = 72 * 3_600_000
#: what a copy has more than its origin: each property at its longest
COPY_BYTES = 80


def halve(message: Message, properties: dict[str, str]) -> None:
    """Turn a message into a half one. The caller packs the properties, which change too."""
    for name in (names.TRANSACTION_CHECK_TIMES, names.TRANSACTION_PREPARED_QUEUE_OFFSET):
        properties.pop(name, None)
    properties[names.TRANSACTION_ID] = properties[names.UNIQUE_KEY]
    properties[names.REAL_TOPIC] = message.topic
    properties[names.REAL_QUEUE_ID] = str(message.queue_id)
    message.topic, message.queue_id = HALF_TOPIC, 0
    message.sys_flag &= ~TRANSACTION_MASK


class Half(msgspec.Struct, gc=False):
    """One half message, or a copy of one."""

    stored: StoredMessage
    properties: dict[str, str]
    #: what it is for
    topic: str
    queue_id: int
    #: offset of the first copy
    origin: int
    #: how often it was asked about, or written again; None: never
    checks: int | None

    @property
    def offset(self) -> int:
        return self.stored.queue_offset

    def due_ms(self, now_ms: int, time_out_ms: int) -> int:
        """From when on a producer is asked."""
        stored_ms, wait_ms = self.stored.stored_ms, immunity_ms(self.properties)
        if stored_ms > now_ms or (wait_ms is None and self.checks is not None):
            return 0
        if wait_ms is None:
            return stored_ms + time_out_ms + 1
        if self.origin == self.offset:
            return stored_ms + wait_ms + 1
        # Apache writes those that nobody may be asked about yet again too, with one check more
        return min(stored_ms, self.stored.born_ms) + wait_ms + 1

    def copy(self, checks: int) -> Message:
        """For the queue of half messages again."""
        properties = {
            **self.properties,
            names.TRANSACTION_CHECK_TIMES: str(checks),
            names.TRANSACTION_PREPARED_QUEUE_OFFSET: str(self.origin),
        }
        return self._message(HALF_TOPIC, 0, names.encode(properties))

    def given_up(self) -> Message:
        return self._message(TRANS_CHECK_MAX_TIME_TOPIC, 0, self.stored.properties)

    def committed(self) -> Message:
        """The properties are those of the half message, as Apache leaves them: TRAN_MSG, REAL_TOPIC… are among them."""
        message = self._message(self.topic, self.queue_id, self.stored.properties)
        message.sys_flag |= TRANSACTION_COMMIT
        message.prepared_transaction_offset = self.stored.commit_log_offset
        return message

    def _message(self, topic: str, queue_id: int, properties: bytes) -> Message:
        stored = self.stored
        return Message(
            topic=topic,
            queue_id=queue_id,
            body=stored.body,
            properties=properties if len(properties) <= record.MAX_PROPERTIES_BYTES else stored.properties,
            born_ms=stored.born_ms,
            born_host=stored.born_host,
            flag=stored.flag,
            sys_flag=stored.sys_flag & ~(BORN_HOST_V6 | STORE_HOST_V6 | TRANSACTION_MASK),
            reconsume_times=stored.reconsume_times,
        )


def read(data: bytes) -> Half | None:
    """None: it does not say what it is for, and can only be given up."""
    stored = record.decode(data)
    properties = names.decode(stored.properties)
    topic, queue_id = properties.get(names.REAL_TOPIC), _number(properties, names.REAL_QUEUE_ID)
    if not topic or queue_id is None:
        return None
    origin = _number(properties, names.TRANSACTION_PREPARED_QUEUE_OFFSET)
    checks = _number(properties, names.TRANSACTION_CHECK_TIMES)
    return Half(
        stored=stored,
        properties=properties,
        topic=topic,
        queue_id=queue_id,
        origin=stored.queue_offset if origin is None else origin,
        checks=checks,
    )


def immunity_ms(properties: dict[str, str]) -> int | None:
    """For how long no producer is asked; None: it does not say, or what it says is no number."""
    seconds = _number(properties, names.CHECK_IMMUNITY_TIME_IN_SECONDS)
    return None if seconds is None else min(seconds * 1000, MOST_IMMUNE_MS)


def _number(properties: dict[str, str], name: str) -> int | None:
    text = properties.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else None
