"""Delay levels: messages that become visible some fixed time after they were stored."""

from __future__ import annotations

import logging
from itertools import count

import msgspec

from saturnmq.broker.jsonfile import JsonFile
from saturnmq.kernel import properties as names
from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.config import parse_delays
from saturnmq.kernel.errors import SaturnError
from saturnmq.kernel.later import Reply, hear
from saturnmq.kernel.message import BORN_HOST_V6, STORE_HOST_V6, Message
from saturnmq.kernel.topic import SCHEDULE_TOPIC, DataVersion
from saturnmq.store.results import Found, FoundStatus
from saturnmq.store.store import Store
from saturnmq.wire import record

log = logging.getLogger(__name__)

#: messages, and bytes of them, that one level delivers in one turn of the loop
_TURN_MESSAGES = 32
_TURN_BYTES = 1 << 20
#: how often the offsets are written while they change (flushDelayOffsetInterval)
_WRITE_MS = 10_000
#: after a failed read or append
_RETRY_MS = 1_000


class _File(msgspec.Struct, rename="camel"):
    """config/delayOffset.json"""

    #: level → queue offset of the next message to deliver
    offset_table: dict[int, int] = {}
    data_version: DataVersion = msgspec.field(default_factory=DataVersion)


class _Level:
    """One level: a queue of SCHEDULE_TOPIC_XXXX, in the order in which its messages become due."""

    __slots__ = ("busy", "delay_ms", "due_ms", "number", "offset", "seen_end", "seen_ms", "timer")

    def __init__(self, number: int, delay_ms: int) -> None:
        self.number, self.delay_ms = number, delay_ms
        #: of the next message to deliver
        self.offset = 0
        #: when that one is due; None until it was looked at
        self.due_ms: int | None = None
        #: messages from the future up to this offset have been there since then
        self.seen_end = self.seen_ms = 0
        self.timer: Timer | None = None
        self.busy = False


class DelayLevels:
    """Owns how far each level is delivered, and `config/delayOffset.json` (schedule/ScheduleMessageService.java).

    Level n is queue n-1. All messages of a level wait equally long, so only the first one of each needs a timer, and an
    empty level needs none. What was delivered but whose offset was not yet on disk is delivered again after a crash;
    an offset reaches the disk only after the delivered messages did.
    """

    def __init__(self, store: Store, clock: Clock, levels: str) -> None:
        self._store, self._clock = store, clock
        self._levels = [_Level(number, delay_ms) for number, delay_ms in zip(count(1), parse_delays(levels))]
        self._file = JsonFile(
            store.disk,
            clock,
            "delayOffset.json",
            self._encode,
            delay_ms=_WRITE_MS,
            before=store.flush,
            background=store.background,
        )
        self._version = DataVersion(timestamp=clock.now_ms())
        self._running = False

    @property
    def most(self) -> int:
        """The highest level."""
        return len(self._levels)

    def load(self) -> None:
        """Raises ValueError when the file and its .bak are broken."""
        stored = self._file.read(_File)
        if stored is not None:
            self._version = stored.data_version
            for level in self._levels:
                level.offset = stored.offset_table.get(level.number, 0)

    def start(self) -> None:
        self._running = True
        for level in self._levels:
            if self._store.max_offset(SCHEDULE_TOPIC, level.number - 1) != level.offset:
                self._look(level)

    def stop(self) -> None:
        self._running = False
        for level in self._levels:
            if level.timer is not None:
                level.timer.cancel()
                level.timer = None

    def write(self) -> Reply[None]:
        return self._file.write()

    def pending_from(self, end: int) -> Reply[int]:
        """`store.retention.Lodger`: of messages that are not delivered yet."""
        store = self._store
        return store.first_position(
            [
                (SCHEDULE_TOPIC, queue_id, max(level.offset, store.min_offset(SCHEDULE_TOPIC, queue_id)))
                for queue_id, level in enumerate(self._levels)
            ],
            end,
        )

    def level_of(self, wait_ms: int) -> int:
        """The one that waits so long, or else the next longer one; the highest for what is longer than all."""
        return next((level.number for level in self._levels if level.delay_ms >= wait_ms), self.most)

    def postpone(self, message: Message, level: int) -> None:
        """Turn the message into one that comes back to its topic and queue after the level's delay."""
        level = min(level, self.most)
        properties = names.decode(message.properties)
        properties[names.DELAY] = str(level)
        properties[names.REAL_TOPIC] = message.topic
        properties[names.REAL_QUEUE_ID] = str(message.queue_id)
        message.properties = names.encode(properties)
        message.topic, message.queue_id = SCHEDULE_TOPIC, level - 1

    def arrived(self, queue_id: int) -> None:
        """A message of this level can be read now."""
        level = self._levels[queue_id] if queue_id < self.most else None
        if level is not None and level.timer is None and not level.busy and self._running:
            self._look(level)

    def _look(self, level: _Level) -> None:
        """Read what is next and deliver what is due."""
        level.timer = None
        level.busy = True
        queue_id = level.number - 1
        try:
            reply = self._store.get(SCHEDULE_TOPIC, queue_id, level.offset, _TURN_MESSAGES, _TURN_BYTES)
        except SaturnError as error:
            self._failed(level, error)
        else:
            hear(reply, lambda found: self._found(level, found), lambda error: self._failed(level, error))

    def _found(self, level: _Level, found: Found) -> None:
        level.busy = False
        if not self._running:
            return
        if found.status is FoundStatus.FOUND:
            try:
                self._deliver(level, found)
            except SaturnError as error:
                self._failed(level, error)
        elif found.next_offset != level.offset:  # deleted, lost in damage, or never there
            log.warning(
                "delay level %d is at %d, the queue has %d to %d: going on at %d",
                level.number, level.offset, found.min_offset, found.max_offset, found.next_offset,
            )  # fmt: skip
            self._advance(level, found.next_offset)
            self._look_soon(level)
        elif self._store.max_offset(SCHEDULE_TOPIC, level.number - 1) > level.offset:
            self._look_soon(level)  # one came while this was read from the disk

    def _look_soon(self, level: _Level) -> None:
        level.timer = self._clock.call_soon(lambda: self._look(level))

    def _deliver(self, level: _Level, found: Found) -> None:
        now_ms = self._clock.now_ms()
        for data, offset in zip(found.records, found.offsets, strict=True):
            stored = record.decode(data)
            if level.due_ms is None:
                level.due_ms = self._stored_ms(level, offset, stored.stored_ms, now_ms) + level.delay_ms
            if level.due_ms > now_ms:
                level.timer = self._clock.call_at(level.due_ms, lambda: self._look(level))
                return
            properties = names.decode(stored.properties)
            topic, queue_id = properties.get(names.REAL_TOPIC), properties.get(names.REAL_QUEUE_ID, "")
            if topic is None or not queue_id.isdigit():
                log.error("the delayed message at %d has no REAL_TOPIC and REAL_QID: dropped", offset)
            elif stored.commit_log_offset < self._store.deleted_before(topic):
                log.info("the delayed message at %d is dropped: its topic %s was deleted", offset, topic)
            else:
                # Apache leaves DELAY, REAL_TOPIC and REAL_QID in the properties, and so do consumers see them
                self._store.append(
                    (
                        Message(
                            topic=topic,
                            queue_id=int(queue_id),
                            body=stored.body,
                            properties=stored.properties,
                            born_ms=stored.born_ms,
                            born_host=stored.born_host,
                            flag=stored.flag,
                            sys_flag=stored.sys_flag & ~(BORN_HOST_V6 | STORE_HOST_V6),
                            reconsume_times=stored.reconsume_times,
                        ),
                    )
                )
            self._advance(level, offset + 1)
        self._look_soon(level)

    def _stored_ms(self, level: _Level, offset: int, stored_ms: int, now_ms: int) -> int:
        """Since when a message waits. One from the future (the wall clock was put back, and the broker started since)
        waits since it was first seen, with all that were there with it."""
        if stored_ms <= now_ms:
            return stored_ms
        if offset >= level.seen_end:
            level.seen_end, level.seen_ms = self._store.max_offset(SCHEDULE_TOPIC, level.number - 1), now_ms
        return level.seen_ms

    def _advance(self, level: _Level, offset: int) -> None:
        level.offset, level.due_ms = offset, None
        self._file.changed()

    def _failed(self, level: _Level, error: BaseException) -> None:
        level.busy = False
        log.error("delay level %d, offset %d: %s; trying again in %d ms", level.number, level.offset, error, _RETRY_MS)
        if self._running:
            level.timer = self._clock.call_at(self._clock.now_ms() + _RETRY_MS, lambda: self._look(level))

    def offsets(self) -> dict[int, int]:
        """By level: of the next message to deliver, where there was one."""
        return {level.number: level.offset for level in self._levels if level.offset}

    def _encode(self) -> bytes:
        self._version.bump(self._clock.now_ms())
        return self.encode()

    def encode(self) -> bytes:
        """As it stands in the file (GET_ALL_DELAY_OFFSET)."""
        return msgspec.json.encode(_File({level.number: level.offset for level in self._levels}, self._version))
