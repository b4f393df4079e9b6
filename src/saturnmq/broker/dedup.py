"""Sends that are repeated within a topic's window are stored once: the topic attribute `dedup.window.seconds`.

A producer that got no answer sends again, with the same message id (UNIQ_KEY). In a topic with the attribute the broker
finds the id and answers as it did the first time. Apache has no such thing. Decisions:

- What counts is the time since the first one was stored. It holds for this broker: a client that sends again elsewhere
  is not found out.
- A message for a time, or with a delay level, counts from its send, not from its delivery. One that is recalled may be
  sent again.
- Half messages pass, always: one that was rolled back may be sent again under its id. So do commits, retries,
  deliveries of what waited, revivals, and dead letters that operators send again.
- Of a batch those are stored that are new. Its answer names the queue and offset of its first message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from struct import Struct

import msgspec

from saturnmq.broker.topics import TopicTable
from saturnmq.kernel import properties as names
from saturnmq.kernel.clock import Clock
from saturnmq.kernel.config import BrokerConfig
from saturnmq.kernel.errors import ServiceUnavailable, SystemBusy
from saturnmq.kernel.later import Later, Reply, after, chain
from saturnmq.kernel.message import TRANSACTION_MASK, Appended, StoredMessage
from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.ports import Boundary
from saturnmq.kernel.topic import DEDUP_WINDOW, SCHEDULE_TOPIC, TIMER_TOPIC, TopicConfig
from saturnmq.store.results import Found
from saturnmq.store.store import Store
from saturnmq.wire import record

log = logging.getLogger(__name__)

#: commit-log offset, size, queue offset, store time; the queue that it was sent to; slot of the timer wheel, or -1
_PLACE = Struct(">qiqqqq")
#: of one read when the windows are made anew
_READ_MESSAGES = 1024
_READ_BYTES = 4 << 20


class Known(msgspec.Struct, gc=False):
    """Where a message was stored, as its producer was told."""

    place: Appended
    #: that it was sent to; one that waits for a time is stored in another
    queue_id: int
    #: of one that waits for a time
    slot_ms: int | None


class _Window:
    """The ids of one topic, those of the oldest messages first; each with its packed place."""

    __slots__ = ("full_until_ms", "ids")

    def __init__(self) -> None:
        self.ids: dict[str, bytes] = {}
        #: until then more ids are in the window than there is room for: what is not in it may still be a repetition
        self.full_until_ms = 0


class DedupWindows:
    """Owns which messages the topics with a window have. All of it follows from the log: a start reads those topics,
    and what waits for a time, as far back as the longest window reaches."""

    def __init__(self, config: BrokerConfig, store: Store, clock: Clock, topics: TopicTable, metrics: Metrics) -> None:
        self._store, self._clock, self._topics = store, clock, topics
        self._windows: dict[str, _Window] = {}
        #: ids in all windows
        self._count = 0
        self._ready = False
        self.configure(config)
        self._repeated = metrics.counter(
            "saturnmq_repeated_messages_total", "Sends that were stored before, within dedup.window.seconds", ("topic",)
        )
        metrics.gauge("saturnmq_dedup_messages", "Message ids in the windows of topics", lambda: self._count)

    def configure(self, config: BrokerConfig) -> None:
        """Take over what may change while the broker runs: how many ids there may be."""
        self._most = config.dedup_window_max_messages

    # ------------------------------------------------------------------------------------------------- sending

    def find(self, topic: TopicConfig, unique_key: str, room: int = 1) -> Known | None:
        """The message that was stored with this id within the window. None: it is new, and there is room for so many.
        Raises SystemBusy, ServiceUnavailable."""
        if not self._ready:
            raise ServiceUnavailable(f"the broker reads the window of {topic.topic_name} after a restart; try again")
        window = self._windows.get(topic.topic_name)
        if window is not None:
            self._drop_old(window, window_ms(topic))
            packed = window.ids.get(unique_key)
            if packed is not None:
                self._repeated.add((topic.topic_name,))
                return _unpacked(packed)
        self._check_room(topic.topic_name, window, room)
        return None

    def _check_room(self, topic: str, window: _Window | None, room: int) -> None:
        if self._count + room > self._most:
            for name, other in self._windows.items():
                self._drop_old(other, self._window_ms_of(name))
        if self._count + room > self._most or (window is not None and self._clock.now_ms() < window.full_until_ms):
            raise SystemBusy(
                f"the topic {topic} has {DEDUP_WINDOW}, and the ids of {self._count} messages fill the windows of this "
                f"broker: dedupWindowMaxMessages={self._most}; raise it, make windows shorter, or wait"
            )

    def add(self, topic: TopicConfig, unique_key: str, known: Known) -> None:
        """It was stored."""
        window = self._windows.setdefault(topic.topic_name, _Window())
        self._count += unique_key not in window.ids
        window.ids[unique_key] = _packed(known)

    def forget(self, topic: str, unique_key: str) -> None:
        """It was recalled: it may be sent again."""
        window = self._windows.get(topic)
        if window is not None and window.ids.pop(unique_key, None) is not None:
            self._count -= 1

    def forget_topic(self, topic: str) -> None:
        """It is deleted."""
        window = self._windows.pop(topic, None)
        self._count -= 0 if window is None else len(window.ids)

    def _drop_old(self, window: _Window, length_ms: int) -> None:
        """What is longer ago than the window is long now."""
        end_ms = self._clock.now_ms() - length_ms
        ids = window.ids
        while ids:
            oldest = next(iter(ids))
            if _unpacked(ids[oldest]).place.stored_ms >= end_ms:
                break
            del ids[oldest]
            self._count -= 1

    def _window_ms_of(self, topic: str) -> int:
        config = self._topics.get(topic)
        return 0 if config is None else window_ms(config)

    # ------------------------------------------------------------------------------------------------ starting

    def start(self) -> Reply[None]:
        """Make the windows anew. Until it answers, sends to their topics are refused."""
        windows = {name: ms for name, topic in self._topics.configs.items() if (ms := window_ms(topic))}
        if not windows:
            self._ready = True
            return None
        rebuild = _Rebuild(self._store, self._clock, windows, self._most)
        return after(rebuild.read(), lambda _: self._open(rebuild.windows()))

    def _open(self, windows: dict[str, _Window]) -> None:
        self._windows, self._ready = windows, True
        self._count = sum(len(window.ids) for window in windows.values())
        log.info("%d ids of messages are in the windows of %d topics", self._count, len(windows))


class _Rebuild:
    """Reads what was sent to some topics within their windows."""

    def __init__(self, store: Store, clock: Clock, windows: dict[str, int], most: int) -> None:
        self._store, self._now_ms, self._window_ms, self._most = store, clock.now_ms(), windows, most
        #: topic and id → place, packed
        self._found: dict[tuple[str, str], bytes] = {}
        #: topic and id → log position of the last recall
        self._recalled: dict[tuple[str, str], int] = {}
        #: topic → store time of the last one that there was no room for
        self._left_ms: dict[str, int] = {}

    def read(self) -> Reply[None]:
        longest_ms = max(self._window_ms.values())
        places = [
            (topic, queue_id, ms)
            for topic, ms in [*self._window_ms.items(), (SCHEDULE_TOPIC, longest_ms), (TIMER_TOPIC, longest_ms)]
            for queue_id in self._store.queues(topic)
        ]
        reply: Reply[None] = None
        for place in places:
            reply = chain(reply, self._reader(*place))
        return reply

    def _reader(self, topic: str, queue_id: int, window_ms: int) -> Callable[[None], Reply[None]]:
        def read(_: None) -> Reply[None]:
            first = self._store.offset_by_time(topic, queue_id, self._now_ms - window_ms, Boundary.LOWER)
            return chain(first, lambda offset: self._read_queue(topic, queue_id, offset))

        return read

    def _read_queue(self, topic: str, queue_id: int, offset: int) -> Reply[None]:
        while offset < self._store.max_offset(topic, queue_id):
            reply = self._store.get(topic, queue_id, offset, _READ_MESSAGES, _READ_BYTES)
            if isinstance(reply, Later):
                taken: Reply[int] = reply.map(self._take)
                return chain(taken, lambda offset: self._read_queue(topic, queue_id, offset))
            offset = self._take(reply)
        return None

    def _take(self, found: Found) -> int:
        for data in found.records:
            stored = record.decode(data)
            self._look_at(stored, names.decode(stored.properties))
        return found.next_offset

    def _look_at(self, stored: StoredMessage, properties: dict[str, str]) -> None:
        waits = stored.topic in (SCHEDULE_TOPIC, TIMER_TOPIC)
        topic = properties.get(names.REAL_TOPIC, "") if waits else stored.topic
        window_ms, unique_key = self._window_ms.get(topic), properties.get(names.UNIQUE_KEY)
        if window_ms is None or not unique_key or stored.stored_ms < self._now_ms - window_ms:
            return
        place, position = (topic, unique_key), stored.commit_log_offset
        if position < self._store.deleted_before(topic):
            return
        if names.TIMER_DEL_UNIQUE_KEY in properties:
            self._recalled[place] = position
        elif not _is_again(stored, properties, waits):
            queue_id = _number(properties.get(names.REAL_QUEUE_ID)) if waits else stored.queue_id
            appended = Appended(position, stored.size, stored.queue_id, stored.queue_offset, stored.stored_ms)
            slot_ms = _number(properties.get(names.TIMER_OUT_MS)) if stored.topic == TIMER_TOPIC else None
            if len(self._found) < self._most:
                self._found[place] = _packed(Known(appended, queue_id, slot_ms))
            else:
                self._left_ms[topic] = max(stored.stored_ms, self._left_ms.get(topic, 0))

    def windows(self) -> dict[str, _Window]:
        windows: dict[str, _Window] = {}
        for (topic, unique_key), packed in sorted(self._found.items(), key=lambda item: _stored_ms(item[1])):
            if self._recalled.get((topic, unique_key), -1) < _unpacked(packed).place.commit_log_offset:
                windows.setdefault(topic, _Window()).ids[unique_key] = packed
        for topic, left_ms in self._left_ms.items():
            windows.setdefault(topic, _Window()).full_until_ms = left_ms + self._window_ms[topic]
        return windows


def window_ms(topic: TopicConfig) -> int:
    """0: the topic has none."""
    seconds = topic.attributes.get(DEDUP_WINDOW, "")
    return int(seconds) * 1000 if seconds.isdecimal() else 0


def may_repeat(topic: TopicConfig, properties: dict[str, str]) -> bool:
    """Whether a send may be a repetition of another: see above."""
    in_transaction = properties.get(names.TRANSACTION_PREPARED, "").lower() == "true"
    has_id = properties.get(names.UNIQUE_KEY) and names.DLQ_RESENT not in properties
    return window_ms(topic) > 0 and bool(has_id) and not in_transaction


def _is_again(stored: StoredMessage, properties: dict[str, str], waits: bool) -> bool:
    """Whether the broker stored it once more, or was told to."""
    delivered = not waits and names.REAL_TOPIC in properties
    rolled = waits and names.TIMER_ROLL_TIMES in properties
    return delivered or rolled or names.DLQ_RESENT in properties or bool(stored.sys_flag & TRANSACTION_MASK)


def _number(text: str | None) -> int:
    """Of a property that the broker wrote; 0 when something else did."""
    return int(text) if text and text.isdecimal() and len(text) <= 18 else 0


def _packed(known: Known) -> bytes:
    place, slot_ms = known.place, -1 if known.slot_ms is None else known.slot_ms
    return _PLACE.pack(
        place.commit_log_offset, place.size, place.queue_offset, place.stored_ms, known.queue_id, slot_ms
    )


def _unpacked(packed: bytes) -> Known:
    position, size, queue_offset, stored_ms, queue_id, slot_ms = _PLACE.unpack(packed)
    place = Appended(position, size, queue_id, queue_offset, stored_ms)
    return Known(place, queue_id, None if slot_ms < 0 else slot_ms)


def _stored_ms(packed: bytes) -> int:
    return _unpacked(packed).place.stored_ms
