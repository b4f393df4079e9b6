"""Messages for an arbitrary time, in their three forms: sent with a time, waiting in the timer topic, delivered.

Sources: util/HookUtils.java, store/timer/TimerMessageStore.java (convert, buildDeleteKey).
"""

from __future__ import annotations

import logging
import re
from typing import Protocol

import msgspec

from saturnmq.kernel import properties as names
from saturnmq.kernel.errors import IllegalDeliveryTime
from saturnmq.kernel.message import BORN_HOST_V6, STORE_HOST_V6, Appended, Message, StoredMessage
from saturnmq.kernel.topic import TIMER_TOPIC
from saturnmq.store.dispatch import find_property
from saturnmq.wire import record

log = logging.getLogger(__name__)

#: the properties that ask for a time, in the order in which they count
TIMERS = (names.TIMER_DELAY_SEC, names.TIMER_DELAY_MS, names.TIMER_DELIVER_MS)
#: TIMER_ENQUEUE_MS of what was never in the wheel: Java's Long.MAX_VALUE
NEVER = (1 << 63) - 1
_NUMBER = re.compile(r"[+-]?[0-9]+\Z")


def due_ms(timer: str, text: str, now_ms: int) -> int:
    """The time that one of TIMERS asks for. Raises IllegalDeliveryTime."""
    if not _NUMBER.match(text):
        raise IllegalDeliveryTime(f"the property {timer} is not a number: {text!r}")
    value = int(text)
    if timer == names.TIMER_DELIVER_MS:
        return value
    return now_ms + value * (1000 if timer == names.TIMER_DELAY_SEC else 1)


class Waiting(msgspec.Struct, gc=False):
    """A message of the timer topic, with what decides about it."""

    stored: StoredMessage
    #: the time of its slot
    slot_ms: int
    topic: str
    queue_id: int
    #: it is no message but takes one back
    is_delete: bool

    @property
    def properties(self) -> dict[str, str]:
        return names.decode(self.stored.properties)


class Sieve(Protocol):
    """Who puts messages into the timer topic without a client, and knows which of them nobody needs any more. Offsets
    are those of the topic's queue."""

    def arrived(self, offset: int) -> bool:
        """A message can be read now. Whether sorting it in may wait a while: perhaps nobody needs it then."""
        ...

    def first_needed(self, offset: int, end: int) -> int:
        """The first message from there on that may be needed, or `end`, or one before; those before it are passed."""
        ...

    def needs(self, offset: int, waiting: Waiting) -> bool:
        """Whether it is to be sorted in. Asked once more when sorting in failed."""
        ...

    def passed(self, offsets: range) -> None:
        """They are sorted in, as far as they are needed."""
        ...

    def wants(self, waiting: Waiting) -> bool:
        """Its time has come: whether it is to be delivered, or rolled."""
        ...

    def delivered(self, waiting: Waiting, place: Appended) -> None: ...


class Everything:
    """The sieve that lets everything through."""

    def arrived(self, offset: int) -> bool:
        return False

    def first_needed(self, offset: int, end: int) -> int:
        return offset

    def needs(self, offset: int, waiting: Waiting) -> bool:
        return True

    def passed(self, offsets: range) -> None: ...

    def wants(self, waiting: Waiting) -> bool:
        return True

    def delivered(self, waiting: Waiting, place: Appended) -> None: ...


def read(data: bytes, place: str) -> Waiting | None:
    """None, and a line in the log, when the record is no message that waits: it cannot be delivered."""
    stored = record.decode(data)
    packed = stored.properties
    out_ms, topic = find_property(packed, b"TIMER_OUT_MS"), find_property(packed, b"REAL_TOPIC")
    queue_id = find_property(packed, b"REAL_QID")
    if (
        stored.topic != TIMER_TOPIC
        or not topic
        or out_ms is None
        or not out_ms.isdigit()
        or queue_id is None
        or not queue_id.isdigit()
    ):
        log.error("the message at %s does not say when and where it is to be delivered: dropped", place)
        return None
    is_delete = find_property(packed, b"TIMER_DEL_UNIQKEY") is not None
    return Waiting(stored, int(out_ms), topic.decode("utf-8", "replace"), int(queue_id), is_delete)


def deliverable(waiting: Waiting, sorted_in_ms: int, now_ms: int) -> Message:
    """The message for its topic. Apache leaves TIMER_*, REAL_TOPIC and REAL_QID in the properties, and so do consumers
    see them."""
    packed = waiting.stored.properties
    if find_property(packed, b"TIMER_ENQUEUE_MS") is None:
        times = b"TIMER_ENQUEUE_MS\x01%d\x02TIMER_DEQUEUE_MS\x01%d\x02" % (sorted_in_ms, now_ms)
        packed += times if packed.endswith(b"\x02") else b"\x02" + times
    else:
        packed = names.encode({**waiting.properties, **_times(sorted_in_ms, now_ms)})
    return _copy(waiting, waiting.topic, waiting.queue_id, packed)


def rolled(waiting: Waiting, sorted_in_ms: int, now_ms: int) -> Message:
    """The message for the timer topic again: its time is further away than the wheel reached."""
    properties = waiting.properties
    times = properties.get(names.TIMER_ROLL_TIMES, "")
    properties[names.TIMER_ROLL_TIMES] = str(int(times) + 1 if times.isdigit() else 1)
    return _copy(waiting, TIMER_TOPIC, 0, names.encode({**properties, **_times(sorted_in_ms, now_ms)}))


def _times(sorted_in_ms: int, now_ms: int) -> dict[str, str]:
    return {names.TIMER_ENQUEUE_MS: str(sorted_in_ms), names.TIMER_DEQUEUE_MS: str(now_ms)}


def _copy(waiting: Waiting, topic: str, queue_id: int, properties: bytes) -> Message:
    stored = waiting.stored
    return Message(
        topic=topic,
        queue_id=queue_id,
        body=stored.body,
        # what says when it was where is left out where there is no room for it
        properties=properties if len(properties) <= record.MAX_PROPERTIES_BYTES else stored.properties,
        born_ms=stored.born_ms,
        born_host=stored.born_host,
        flag=stored.flag,
        sys_flag=stored.sys_flag & ~(BORN_HOST_V6 | STORE_HOST_V6),
        reconsume_times=stored.reconsume_times,
    )


class Recalled:
    """What is taken back of one slot. Owner: the delivery of the slot.

    A message is meant by its topic and id. TIMER_DEL_UNIQKEY has the id alone, or before it its topic and a plus
    (appendTopicForTimerDeleteKey, and Apache's brokers before 5.5): both forms are understood.
    """

    def __init__(self) -> None:
        #: topic and key → whether its message was there
        self._keys: dict[tuple[str, str], bool] = {}

    def add(self, delete: Waiting) -> None:
        key = find_property(delete.stored.properties, b"TIMER_DEL_UNIQKEY") or b""
        self._keys.setdefault((delete.topic, key.decode("utf-8", "replace")), False)

    def takes(self, waiting: Waiting) -> bool:
        if self._keys:
            key = find_property(waiting.stored.properties, b"UNIQ_KEY")
            if key is not None:
                topic, unique_key = waiting.topic, key.decode("utf-8", "replace")
                for place in ((topic, unique_key), (topic, f"{topic}+{unique_key}")):
                    if place in self._keys:
                        self._keys[place] = True
                        return True
        return False

    def in_vain(self) -> list[str]:
        """The topics of those whose messages were not there."""
        return [topic for (topic, _), was_there in self._keys.items() if not was_there]
