"""Messages for an arbitrary time: taken into the timer topic, sorted into the wheel, delivered when their time comes.

A message with a time is appended to rmq_sys_wheel_timer with the topic and queue that it is for (`postpone`). From
there two things go on, a little in each turn of the loop. *Sorting in* follows the topic's queue and gives each message
a place in the wheel. *Delivery* takes the slots whose time is over, one after the other, and appends their messages to
their topics. What is too far away for the wheel waits in an earlier slot and is then appended to the timer topic again
("rolled"): no record has to be kept for longer than timerRollWindowSlot.

What a crash repeats: messages that were delivered after the last checkpoint, timerFlushIntervalMs ago at most and the
time that it took. Nothing is lost and nothing comes early: a checkpoint says only what is durable.
Source: store/timer/TimerMessageStore.java.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from saturnmq.broker.timermetrics import TimerMetrics
from saturnmq.kernel import properties as names
from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.config import StoreConfig
from saturnmq.kernel.errors import (
    IllegalDeliveryTime,
    SaturnError,
    ServiceUnavailable,
    TimersCongested,
    TimersDisabled,
)
from saturnmq.kernel.later import Later, Reply, after, chain, gather, hear
from saturnmq.kernel.message import BORN_HOST_V6, STORE_HOST_V6, Message, StoredMessage
from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.subscription import tag_hash
from saturnmq.kernel.topic import TIMER_TOPIC
from saturnmq.store.dispatch import find_property
from saturnmq.store.reading import Cold
from saturnmq.store.results import Found, FoundStatus
from saturnmq.store.space import is_no_room
from saturnmq.store.store import Store
from saturnmq.store.timercheck import NOTHING, TimerCheck
from saturnmq.store.timerfiles import Chain, Changes, Oldest, Timed, TimerFiles
from saturnmq.store.timerlog import ROLL, TimerEntry
from saturnmq.store.timerwheel import LOOK_SLOTS, slot_of_due
from saturnmq.wire import record

log = logging.getLogger(__name__)

T = TypeVar("T")

#: the properties that ask for a time, in the order in which they count
TIMERS = (names.TIMER_DELAY_SEC, names.TIMER_DELAY_MS, names.TIMER_DELIVER_MS)
#: messages, and bytes of them, that are sorted in or delivered in one turn of the loop
_TURN_MESSAGES = 128
_TURN_BYTES = 1 << 20
#: entries of a slot that are followed on the event loop; more are followed in a thread
_INLINE_ENTRIES = 4096
#: slots ahead in which the next one with something in it is known
_AHEAD_SLOTS = LOOK_SLOTS // 2
#: after a failed read, append or checkpoint
_RETRY_MS = 1_000
#: TIMER_ENQUEUE_MS of what was never in the wheel: Java's Long.MAX_VALUE
_NEVER = (1 << 63) - 1
_NUMBER = re.compile(r"[+-]?[0-9]+\Z")
_NEVER_MS = 1 << 62


class _Waiting(msgspec.Struct):
    """A slot that is being delivered."""

    slot_ms: int
    #: everything up to this entry of the timer log is delivered
    delivered: int
    #: the last entry when the chain was followed; others may have come since
    last: int = NOTHING
    #: what is next, and where in it
    entries: Sequence[TimerEntry] = ()
    at: int = 0
    marks: list[int] = []
    #: what is taken back, topic and id, and whether it was found
    recalled: dict[tuple[str, str], bool] = {}


class Timers:
    """Owns the files of delayed messages and how far they are sorted in and delivered."""

    def __init__(self, store: Store, clock: Clock, *, random: Callable[[int], int], metrics: Metrics) -> None:
        """`random(n)` draws from 0 to n-1. Raises StoreRefused, OSError."""
        config = store.config
        self._store, self._clock, self._random = store, clock, random
        self._files = TimerFiles(
            store.disk, config.timer_precision_ms, config.timer_roll_window_slot, config.mapped_file_size_timer_log
        )
        self._precision_ms = config.timer_precision_ms
        self.configure(config)
        self.metrics = TimerMetrics(store, clock, metrics)
        self._running = False
        #: there are no files yet
        self._waits_for_first = False
        #: why messages for a time are refused: their files failed
        self._failure: str | None = None

        #: queue offset of the next message of the timer topic to be sorted in
        self._offset = 0
        self._sorting = False
        #: the next one has no place in the ring yet
        self._blocked = False
        #: came so late that their slots are over, not delivered yet: queue offset and record
        self._late: deque[tuple[int, StoredMessage]] = deque()

        #: the slot that is delivered next, or is being delivered
        self._read_ms = 0
        self._slot: _Waiting | None = None
        #: no slot from `_read_ms` up to here has anything in it; when `_exact`, this one has
        self._next_ms = 0
        self._exact = False
        self._seeking = False
        #: the earliest slot that got something while the next one was sought
        self._sought_ms = _NEVER_MS
        #: slots from `_hold_ms` on are delivered when the timer topic is sorted in up to this queue offset: what takes
        #: their messages back may stand there
        self._hold_ms, self._hold_offset = 0, 0
        #: see `store.timercheck`
        self._delivered = NOTHING
        self._passed_ms = self._passed = 0
        self._settled_ms = self._settled = 0
        self._timer: Timer | None = None
        self._timer_ms = _NEVER_MS

        self._counter = 0
        self._flush_timer: Timer | None = None
        self._flushing = False
        self._is_changed = False
        #: the answer to `stop`
        self._idle: Later[None] | None = None

    def configure(self, config: StoreConfig) -> None:
        """Take over what may change while the broker runs."""
        self._config = config

    # ------------------------------------------------------------------------------------------------ taking in

    def postpone(self, message: Message, properties: dict[str, str]) -> int | None:
        """Turn a message with a time into one of the timer topic and give its TIMER_OUT_MS; None when it is due or has
        no time. The caller packs the properties, which change too. Raises IllegalDeliveryTime, TimersDisabled,
        TimersCongested, ServiceUnavailable."""
        timer = next((name for name in TIMERS if name in properties), None)
        if timer is None or names.TIMER_OUT_MS in properties or message.topic == TIMER_TOPIC:
            return None
        config, now_ms = self._config, self._clock.now_ms()
        if not config.timer_wheel_enable:
            raise TimersDisabled("accurate timer message is not enabled, timerWheelEnable is false")
        due_ms = _due_ms(timer, properties[timer], now_ms)
        most_ms = config.timer_max_delay_sec * 1000
        if due_ms <= now_ms:
            if names.TIMER_DEL_UNIQUE_KEY in properties:
                raise IllegalDeliveryTime("a message that takes back another must be due when that is, in the future")
            return None
        if due_ms - now_ms > most_ms:
            raise IllegalDeliveryTime(
                f"the delivery time is {due_ms - now_ms} ms away, the limit is timerMaxDelaySec="
                f"{config.timer_max_delay_sec} ({most_ms} ms): choose an earlier time, or raise it"
            )
        if self._failure is not None:
            raise ServiceUnavailable(self._failure)
        slot_ms = slot_of_due(due_ms, self._precision_ms)
        self._check_congestion(slot_ms)
        properties[names.TIMER_OUT_MS] = str(slot_ms)
        properties[names.REAL_TOPIC] = message.topic
        properties[names.REAL_QUEUE_ID] = str(message.queue_id)
        message.topic, message.queue_id = TIMER_TOPIC, 0
        return slot_ms

    def _check_congestion(self, slot_ms: int) -> None:
        """Refuse more of the messages the fuller the slot is (TimerMessageStore.isReject)."""
        limit = self._config.timer_congest_num_each_slot
        if limit == (1 << 31) - 1 or not self._running:
            return
        over = self._files.messages(slot_ms) - limit
        if over > 0 and (over >= limit or self._random(1000) > 1000 * over / (limit + 0.1)):
            raise TimersCongested(
                f"timer message is under flow control, max num limit is {2 * limit} or the current value is greater "
                f"than {limit} and less than {2 * limit}, trigger random flow control (timerCongestNumEachSlot)"
            )

    # ------------------------------------------------------------------------------------------ starting, stopping

    def load(self) -> None:
        """Raises ValueError when the file of the numbers and its .bak are broken."""
        self.metrics.load()

    def start(self) -> Reply[None]:
        """Recover the files and begin; where there are none, with the first message. Fails with OSError,
        StoreRefused."""
        if not self._config.timer_wheel_enable:
            return None
        if self._store.max_offset(TIMER_TOPIC, 0) == 0 and not self._files.exist():
            self._waits_for_first = True
            return None
        return self._recover()

    def _recover(self) -> Reply[None]:
        store = self._store
        low, high = store.min_offset(TIMER_TOPIC, 0), store.max_offset(TIMER_TOPIC, 0)
        offset = self._files.load(low, high).queue_offset
        bound: Reply[int] = store.position_at(TIMER_TOPIC, 0, offset) if offset < high else store.end
        return chain(bound, lambda position: self._open(position, low, high))

    def _open(self, bound: int, low: int, high: int) -> Reply[None]:
        crashed = self._store.crashed
        opened = self._in_background(lambda: self._files.open(bound, low, high, crashed=crashed))
        return after(opened, lambda check: self._opened(check, high))

    def _first_came(self) -> None:
        self._waits_for_first = False
        self._ask(self._recover, lambda _: None, self._failed)

    def _failed(self, error: BaseException) -> None:
        """Nobody knows what is in the files."""
        self._failure = f"delayed messages wait until the broker is restarted: their files failed: {error}"
        log.error("%s", self._failure)
        self._running = False

    def _opened(self, check: TimerCheck, high: int) -> None:
        self._offset, self._counter = check.queue_offset, check.counter
        self._delivered, self._passed_ms, self._passed = check.delivered, check.passed_ms, check.passed
        self._settled_ms, self._settled = check.settled_ms, check.settled
        self._read_ms = self._next_ms = check.read_ms or self._floor(self._clock.now_ms())
        if not self._config.timer_stop_enqueue:
            self._hold_ms, self._hold_offset = 0, high
        self._running = True
        if self._read_ms > self._floor(self._clock.now_ms()):
            self._put_back(self._floor(self._clock.now_ms()))
        self._sort()
        self._step()

    def stop(self) -> Reply[None]:
        """Stop, and write how far it came. Answers when that is on disk, or cannot be. The store is open until then."""
        self._waits_for_first = False
        if not self._running:
            return self.metrics.write()
        self._running = False
        for timer in (self._timer, self._flush_timer):
            if timer is not None:
                timer.cancel()
        self._flush_timer = None
        stopped: Later[None] = Later()
        self._idle = Later()
        hear(gather([self._idle, self.metrics.write()]), lambda _: self._close(stopped), lambda _: self._close(stopped))
        if not self._flushing:
            self._flush()
        return stopped if stopped.pending else None

    def _close(self, stopped: Later[None]) -> None:
        self._files.close()
        stopped.resolve(None)

    # ------------------------------------------------------------------------------------------------- sorting in

    def arrived(self) -> None:
        """A message of the timer topic can be read now."""
        if self._waits_for_first:
            self._first_came()
        elif not self._sorting and self._running and not self._config.timer_stop_enqueue:
            self._sorting = True
            self._clock.call_soon(self._sort_on)

    def _sort(self) -> None:
        if self._offset < self._store.max_offset(TIMER_TOPIC, 0):
            self.arrived()

    def _sort_on(self) -> None:
        if not self._running:
            self._sorting = False
            return
        self._ask(
            lambda: self._store.get(TIMER_TOPIC, 0, self._offset, _TURN_MESSAGES, _TURN_BYTES),
            self._found,
            self._sorting_failed,
        )

    def _sorting_failed(self, error: BaseException) -> None:
        self._retry(f"messages for a time, from {self._offset} on, are not sorted in: {error}", self._sort_on)

    def _found(self, found: Found) -> None:
        if not self._running:
            self._sorting = False
        elif found.status in (FoundStatus.FOUND, FoundStatus.NO_MATCH):
            self._sort_in(found)
        else:
            if found.status in (FoundStatus.BEFORE, FoundStatus.BEYOND):
                log.warning("messages for a time are sorted in from %d on, not %d", found.next_offset, self._offset)
                self._offset = found.next_offset
            self._sorted()

    def _sort_in(self, found: Found) -> None:
        """Give each message its place; whatever raises, none has one yet."""
        now_ms = self._clock.now_ms()
        self._pass_empty(now_ms)
        timed: list[Timed] = []
        counted: list[tuple[str, int]] = []
        late: list[tuple[int, StoredMessage]] = []
        next_offset, self._blocked = found.next_offset, False
        for data, offset, position in zip(found.records, found.offsets, found.positions, strict=True):
            stored = record.decode(data)
            slot_ms, topic = _time_and_topic(stored, offset)
            if topic is None or (offset < self._settled and slot_ms < self._settled_ms):
                continue
            is_delete = find_property(stored.properties, b"TIMER_DEL_UNIQKEY") is not None
            if slot_ms < self._read_ms:
                if slot_ms + self._precision_ms <= now_ms:
                    late.append((offset, stored))
                    continue
                if self._slot is None:
                    self._put_back(slot_ms)
            if slot_ms < self._read_ms or not self._files.reaches(self._files.slot_for(slot_ms, now_ms), self._read_ms):
                next_offset, self._blocked = offset, True
                break
            timed.append(Timed(slot_ms, position, len(data), is_delete, tag_hash(topic)))
            counted.append((topic, -1 if is_delete else 1))
        if timed:
            try:
                earliest_ms = self._files.add(timed, now_ms)
            except Cold:
                self._work(lambda: self._files.warm(timed, now_ms), lambda _: self._sort_on(), self._sorting_failed)
                return
            except OSError as error:
                self._sorting_failed(error)
                return
            self._sought_ms = min(self._sought_ms, earliest_ms)
            if earliest_ms < self._next_ms:
                self._next_ms, self._exact = earliest_ms, True
        self._offset = next_offset
        self._late.extend(late)
        for topic, count in counted:
            self.metrics.sorted_in(topic, count)
        self._changed()
        self._deliver_late()
        self._sorted()

    def _sorted(self) -> None:
        self._sorting = False
        if not self._blocked:
            self._sort()
        self._step()

    def _pass_empty(self, now_ms: int) -> None:
        """Where no slot that is over has anything in it, the present one is next."""
        present_ms = self._floor(now_ms)
        if self._slot is None and self._next_ms >= present_ms > self._read_ms:
            self._read_ms, self._delivered = present_ms, NOTHING
            if self._blocked:
                self.arrived()

    def _put_back(self, slot_ms: int) -> None:
        """The clock was put back: what is due before the slot that would be next has its time again."""
        log.warning("the clock was put back: going on with messages for %d, not %d", slot_ms, self._read_ms)
        if self._read_ms > self._passed_ms:
            self._passed_ms, self._passed = self._read_ms, self._files.log_end
        self._read_ms = self._next_ms = slot_ms
        self._exact, self._delivered = False, NOTHING

    def _deliver_late(self) -> None:
        while self._late:
            _, stored = self._late[0]
            if find_property(stored.properties, b"TIMER_DEL_UNIQKEY") is None:
                try:
                    self._store.append((_delivered(stored, _NEVER, self._clock.now_ms()),), again=True)
                except SaturnError as error:
                    self._retry(f"a message whose time has come is not delivered: {error}", self._deliver_late)
                    return
            self._late.popleft()
            self._changed()

    # -------------------------------------------------------------------------------------------------- delivery

    def _floor(self, now_ms: int) -> int:
        return now_ms // self._precision_ms * self._precision_ms

    def _step(self) -> None:
        """Deliver the next slot when its time is over, else wait for that."""
        if not self._running or self._slot is not None or self._seeking or self._config.timer_stop_dequeue:
            return
        now_ms = self._clock.now_ms()
        if not self._exact and self._next_ms <= now_ms + _AHEAD_SLOTS * self._precision_ms:
            self._seek()
        elif self._next_ms + self._precision_ms > now_ms:
            self._pass_empty(now_ms)
            self._wake_at(self._next_ms + self._precision_ms)
        elif not self._is_held():
            if self._next_ms > self._read_ms:
                self._read_ms, self._delivered = self._next_ms, NOTHING
            passed = self._passed - 1 if self._read_ms < self._passed_ms else NOTHING
            self._slot = _Waiting(self._read_ms, max(self._delivered, passed), recalled={})
            self._follow(self._slot)

    def _is_held(self) -> bool:
        """Sorting in goes first; it comes back to `_step`."""
        return (
            self._next_ms >= self._hold_ms
            and self._offset < self._hold_offset
            and not self._blocked
            and not self._config.timer_stop_enqueue
        )

    def _wake_at(self, when_ms: int) -> None:
        if self._timer is not None:
            if self._timer_ms <= when_ms:
                return
            self._timer.cancel()
        self._timer, self._timer_ms = self._clock.call_at(when_ms, self._wake), when_ms

    def _wake(self) -> None:
        self._timer, self._timer_ms = None, _NEVER_MS
        self._step()

    def _seek(self) -> None:
        """Find the next slot with something in it, up to LOOK_SLOTS ahead."""
        self._seeking, self._sought_ms = True, _NEVER_MS
        start_ms = self._next_ms
        end_ms = start_ms + LOOK_SLOTS * self._precision_ms
        self._look(
            lambda wait: self._files.next_used(start_ms, end_ms, wait=wait),
            lambda found_ms: self._sought(start_ms, end_ms, found_ms),
            self._seek_failed,
        )

    def _sought(self, start_ms: int, end_ms: int, found_ms: int | None) -> None:
        self._seeking = False
        if self._next_ms == start_ms and not self._exact:
            first_ms = min(found_ms or end_ms, self._sought_ms, end_ms)
            self._next_ms, self._exact = first_ms, first_ms < end_ms
            if not self._files.reaches(first_ms, self._read_ms):  # a whole turn of the wheel is empty
                self._next_ms, self._exact = max(first_ms, self._floor(self._clock.now_ms())), False
        self._clock.call_soon(self._step)

    def _seek_failed(self, error: BaseException) -> None:
        self._seeking = False
        self._retry(f"the timer wheel cannot be read: {error}", self._step)

    # ------------------------------------------------------------------------------------------ delivery of a slot

    def _follow(self, slot: _Waiting) -> None:
        """Find what of the slot is not delivered yet."""

        def look(wait: bool) -> tuple[int, Chain]:
            last = self._files.last(slot.slot_ms, wait=wait)
            if not wait and self._files.messages(slot.slot_ms) > _INLINE_ENTRIES:
                raise Cold
            return last, self._files.chain(slot.slot_ms, last, slot.delivered, wait=wait)

        self._look(look, lambda found: self._followed(slot, *found), lambda error: self._slot_failed(slot, error))

    def _followed(self, slot: _Waiting, last: int, chain: Chain) -> None:
        slot.last, slot.entries, slot.at, slot.marks = last, [*chain.deletes, *chain.entries], 0, chain.marks
        self._go_on(slot)

    def _slot_failed(self, slot: _Waiting, error: BaseException) -> None:
        self._retry(f"slot {slot.slot_ms} of the timer wheel cannot be read: {error}", lambda: self._follow(slot))

    def _go_on(self, slot: _Waiting) -> None:
        """With the next messages of the slot, in a turn of their own."""
        if not self._running:
            return
        group: list[TimerEntry] = []
        size = 0
        for entry in slot.entries[slot.at : slot.at + _TURN_MESSAGES]:
            size += entry.record_bytes
            if group and size > _TURN_BYTES:
                break
            group.append(entry)
        if group:
            places = [(entry.commit_log_offset, entry.record_bytes) for entry in group]
            self._ask(
                lambda: self._store.records(places),
                lambda records: self._deliver(slot, group, records),
                lambda error: self._retry(f"delayed messages cannot be read: {error}", lambda: self._go_on(slot)),
            )
        elif slot.marks:
            mark = slot.marks.pop()
            self._look(
                lambda wait: self._files.chain(slot.slot_ms, mark, slot.delivered, wait=wait),
                lambda chain: self._next_part(slot, chain),
                lambda error: self._slot_failed(slot, error),
            )
        else:
            self._end(slot)

    def _next_part(self, slot: _Waiting, chain: Chain) -> None:
        slot.entries, slot.at = chain.entries, 0
        self._go_on(slot)

    def _deliver(self, slot: _Waiting, group: list[TimerEntry], records: Sequence[bytes | None]) -> None:
        """Append the messages of a group to their topics, or to the timer topic again."""
        if not self._running:
            return
        now_ms = self._clock.now_ms()
        messages: list[Message] = []
        topics: list[str] = []
        rolled: list[int] = []
        for entry, data in zip(group, records, strict=True):
            stored = _timer_message(entry, data)
            if stored is None:
                continue
            properties = names.decode(stored.properties)
            topic = properties.get(names.REAL_TOPIC, "")
            if entry.is_delete:
                slot.recalled.setdefault((topic, properties.get(names.TIMER_DEL_UNIQUE_KEY, "")), False)
            elif entry.magic & ROLL:
                rolled.append(int(properties[names.TIMER_OUT_MS]))
                messages.append(_rolled(stored, properties, entry.written_ms, now_ms))
                topics.append(topic)
            elif not _is_recalled(slot.recalled, topic, properties.get(names.UNIQUE_KEY, "")):
                messages.append(_delivered(stored, entry.written_ms, now_ms))
                topics.append(topic)
        try:
            self._store.append(messages, again=True)
        except SaturnError as error:
            self._retry(f"messages whose time has come are not delivered: {error}", lambda: self._go_on(slot))
            return
        for topic in topics:
            self.metrics.came_out(topic)
        if rolled:
            self._hold(min(rolled))
        slot.at += len(group)
        slot.delivered = max(slot.delivered, *(entry.position for entry in group if not entry.is_delete), NOTHING)
        self._changed()
        self._clock.call_soon(lambda: self._go_on(slot))

    def _hold(self, out_ms: int) -> None:
        """Rolled messages were appended: they are sorted in before the first of their slots is delivered."""
        if self._offset >= self._hold_offset:
            self._hold_ms = out_ms
        self._hold_ms, self._hold_offset = min(self._hold_ms, out_ms), self._store.next_offset(TIMER_TOPIC, 0)

    def _end(self, slot: _Waiting) -> None:
        """Everything that the slot had is delivered. More may have come meanwhile."""
        try:
            last = self._files.last(slot.slot_ms, wait=False)
        except Cold:
            last = NOTHING  # what came meanwhile is in memory
        if last > slot.last:
            slot.delivered = slot.last
            self._follow(slot)
            return
        for (topic, _), was_found in slot.recalled.items():
            if not was_found:
                self.metrics.change(topic, 1)
        self._slot, self._delivered = None, NOTHING
        self._read_ms = self._next_ms = slot.slot_ms + self._precision_ms
        self._exact = False
        self._changed()
        if self._blocked:
            self._sort()
        self._step()

    # -------------------------------------------------------------------------------------------------- checkpoint

    def _changed(self) -> None:
        """See to it that how far this is gets written."""
        self._is_changed = True
        if self._flush_timer is None and not self._flushing and self._running:
            interval_ms = self._config.timer_flush_interval_ms
            self._flush_timer = self._clock.call_at(self._clock.now_ms() + interval_ms, self._flush)

    def _flush(self) -> None:
        """Write a checkpoint: of what is durable then."""
        self._flush_timer = None
        self._flushing, self._is_changed = True, False
        self._counter += 1
        check = self._state()
        changes = self._files.take()

        def write(_: None) -> None:
            self._work(
                lambda: self._files.write(changes, check),
                lambda _: self._flushed(check),
                lambda error: self._not_flushed(changes, error),
            )

        self._ask(self._store.flush, write, lambda error: self._not_flushed(changes, error))

    def _state(self) -> TimerCheck:
        return TimerCheck(
            read_ms=self._read_ms,
            log_position=self._files.log_end,
            queue_offset=self._late[0][0] if self._late else self._offset,
            counter=self._counter,
            changed_ms=self._clock.now_ms(),
            precision_ms=self._precision_ms,
            delivered=self._delivered if self._slot is None else self._slot.delivered,
            passed_ms=self._passed_ms,
            passed=self._passed,
            settled_ms=self._settled_ms,
            settled=self._settled,
            is_ours=True,
        )

    def _flushed(self, check: TimerCheck) -> None:
        self._files.written(check)
        self._flush_over()

    def _not_flushed(self, changes: Changes, error: BaseException) -> None:
        self._files.not_written(changes)
        self._is_changed = True
        if self._running and (isinstance(error, SaturnError) or is_no_room(error)):
            log.error("how far delayed messages are was not written: %s; trying again in %d ms", error, _RETRY_MS)
            self._flushing = False
            self._flush_timer = self._clock.call_at(self._clock.now_ms() + _RETRY_MS, self._flush)
            return
        if not isinstance(error, SaturnError):
            self._failed(error)
        self._is_changed = False
        self._flush_over()

    def _flush_over(self) -> None:
        self._flushing = False
        if self._idle is not None:
            if self._is_changed and self._failure is None:
                self._flush()
            elif self._idle.pending:
                self._idle.resolve(None)
        elif self._is_changed:
            self._changed()

    def pending_from(self, end: int) -> Reply[int]:
        """`store.retention.Lodger`: of messages whose time has not come, as a crash now would find them."""
        if not self._config.timer_wheel_enable:
            return self._store.first_position([(TIMER_TOPIC, 0, self._store.min_offset(TIMER_TOPIC, 0))], end)
        if self._waits_for_first:
            return end
        if not self._running:
            return 0
        check = self._files.check
        return chain(
            self._in_background(lambda: self._files.oldest_pending(check)), lambda found: self._clean(found, check, end)
        )

    def _clean(self, oldest: Oldest, check: TimerCheck, end: int) -> Reply[int]:
        paths = self._files.drop_before(oldest.position)
        if paths:
            self._work(lambda: self._files.delete(paths), lambda _: None, lambda error: log.warning("%s", error))
        if oldest.commit_log_offset is not None:
            end = min(end, oldest.commit_log_offset)
        return self._store.first_position([(TIMER_TOPIC, 0, check.queue_offset)], end)

    # -------------------------------------------------------------------------------------------------- asking

    def check_point(self) -> bytes:
        """The body that answers GET_TIMER_CHECK_POINT."""
        return self._state().encode()

    def runtime(self) -> dict[str, str]:
        """What GET_BROKER_RUNTIME_INFO says of delayed messages (AdminBrokerProcessor.prepareRuntimeInfo)."""
        now_ms = self._clock.now_ms()
        self._pass_empty(now_ms)
        behind = self._store.max_offset(TIMER_TOPIC, 0) - self._offset
        return {
            "timerReadBehind": str((now_ms - self._read_ms) // 1000 if self._running else 0),
            "timerOffsetBehind": str(behind if self._running else 0),
            "timerCongestNum": str(self.metrics.waiting()),
            "timerEnqueueTps": str(self.metrics.enqueued.read(now_ms)),
            "timerDequeueTps": str(self.metrics.dequeued.read(now_ms)),
        }

    # ----------------------------------------------------------------------------------------------------- waiting

    def _ask(
        self, ask: Callable[[], Reply[T]], then: Callable[[T], None], failed: Callable[[BaseException], None]
    ) -> None:
        """Go on with what the store answers, or refuses."""
        try:
            reply = ask()
        except (SaturnError, OSError) as error:
            failed(error)
        else:
            hear(reply, then, failed)

    def _look(
        self, look: Callable[[bool], T], then: Callable[[T], None], failed: Callable[[BaseException], None]
    ) -> None:
        """Go on with what `look(False)` finds in memory, else with what `look(True)` finds on the disk."""
        try:
            found = look(False)
        except Cold:
            self._work(lambda: look(True), then, failed)
        except OSError as error:
            failed(error)
        else:
            then(found)

    def _work(self, work: Callable[[], T], then: Callable[[T], None], failed: Callable[[BaseException], None]) -> None:
        self._store.background.run(work, then, failed)

    def _in_background(self, work: Callable[[], T]) -> Reply[T]:
        later: Later[T] = Later()
        self._work(work, later.resolve, later.fail)
        return later

    def _retry(self, text: str, again: Callable[[], None]) -> None:
        log.error("%s; trying again in %d ms", text, _RETRY_MS)
        self._clock.call_at(self._clock.now_ms() + _RETRY_MS, again)


def _due_ms(timer: str, text: str, now_ms: int) -> int:
    """Raises IllegalDeliveryTime."""
    if not _NUMBER.match(text):
        raise IllegalDeliveryTime(f"the property {timer} is not a number: {text!r}")
    value = int(text)
    if timer == names.TIMER_DELIVER_MS:
        return value
    return now_ms + value * (1000 if timer == names.TIMER_DELAY_SEC else 1)


def _time_and_topic(stored: StoredMessage, offset: int) -> tuple[int, str | None]:
    """The slot of a message of the timer topic and the topic that it is for; no topic when it has none, and cannot be
    delivered."""
    out_ms, topic = find_property(stored.properties, b"TIMER_OUT_MS"), find_property(stored.properties, b"REAL_TOPIC")
    queue_id = find_property(stored.properties, b"REAL_QID")
    if out_ms is None or not out_ms.isdigit() or not topic or queue_id is None or not queue_id.isdigit():
        log.error("the message at %d of %s has no TIMER_OUT_MS, REAL_TOPIC and REAL_QID: dropped", offset, TIMER_TOPIC)
        return 0, None
    return int(out_ms), topic.decode("utf-8", "replace")


def _timer_message(entry: TimerEntry, data: bytes | None) -> StoredMessage | None:
    """None, and a line in the log, when the entry leads to no message of the timer topic."""
    stored = None if data is None else record.decode(data)
    if stored is None or stored.topic != TIMER_TOPIC:
        log.error(
            "a delayed message is lost: the commit log has no message of %s with %d bytes at %d",
            TIMER_TOPIC, entry.record_bytes, entry.commit_log_offset,
        )  # fmt: skip
        return None
    return stored


def _is_recalled(recalled: dict[tuple[str, str], bool], topic: str, unique_key: str) -> bool:
    """Both forms of TIMER_DEL_UNIQKEY are understood: the id alone, and before it its topic with a plus."""
    if recalled:
        for key in ((topic, unique_key), (topic, f"{topic}+{unique_key}")):
            if key in recalled:
                recalled[key] = True
                return True
    return False


def _delivered(stored: StoredMessage, written_ms: int, now_ms: int) -> Message:
    """A message for its topic. Apache leaves TIMER_*, REAL_TOPIC and REAL_QID in the properties, and so do consumers
    see them."""
    topic, queue_id = find_property(stored.properties, b"REAL_TOPIC"), find_property(stored.properties, b"REAL_QID")
    assert topic is not None, "it was sorted in"
    assert queue_id is not None, "it was sorted in"
    if find_property(stored.properties, b"TIMER_ENQUEUE_MS") is None:
        times = b"TIMER_ENQUEUE_MS\x01%d\x02TIMER_DEQUEUE_MS\x01%d\x02" % (written_ms, now_ms)
        packed = stored.properties + (times if stored.properties.endswith(b"\x02") else b"\x02" + times)
    else:
        packed = names.encode(_with_times(names.decode(stored.properties), written_ms, now_ms))
    return _copy(stored, topic.decode("utf-8", "replace"), int(queue_id), packed)


def _rolled(stored: StoredMessage, properties: dict[str, str], written_ms: int, now_ms: int) -> Message:
    """A message for the timer topic again."""
    times = properties.get(names.TIMER_ROLL_TIMES, "")
    properties[names.TIMER_ROLL_TIMES] = str(int(times) + 1 if times.isdigit() else 1)
    return _copy(stored, TIMER_TOPIC, 0, names.encode(_with_times(properties, written_ms, now_ms)))


def _with_times(properties: dict[str, str], written_ms: int, now_ms: int) -> dict[str, str]:
    return {**properties, names.TIMER_ENQUEUE_MS: str(written_ms), names.TIMER_DEQUEUE_MS: str(now_ms)}


def _copy(stored: StoredMessage, topic: str, queue_id: int, properties: bytes) -> Message:
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
