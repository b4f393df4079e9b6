"""Delivery of what waited: slot after slot of the wheel, when the time of each is over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import msgspec

from saturnmq.broker import timermessages
from saturnmq.broker.attempts import Attempts
from saturnmq.broker.timermessages import Recalled, deliverable, rolled
from saturnmq.broker.timermetrics import TimerMetrics
from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.errors import SaturnError
from saturnmq.kernel.message import Message
from saturnmq.store.reading import Cold
from saturnmq.store.store import Store
from saturnmq.store.timercheck import NOTHING, TimerCheck
from saturnmq.store.timerfiles import Chain, TimerFiles
from saturnmq.store.timerlog import ROLL, TimerEntry, TimerLogDamaged
from saturnmq.store.timerwheel import LOOK_SLOTS

log = logging.getLogger(__name__)

#: messages, and bytes of them, that are delivered in one turn of the loop
_TURN_MESSAGES = 128
_TURN_BYTES = 1 << 20
#: entries of a slot that are followed on the event loop; more are followed in a thread
_INLINE_ENTRIES = 4096
#: slots ahead in which the next one with something in it is known
_AHEAD_SLOTS = LOOK_SLOTS // 2
_NEVER_MS = 1 << 62


class _Slot(msgspec.Struct):
    """A slot that is being delivered."""

    time_ms: int
    #: everything up to this entry of the timer log is delivered
    delivered: int
    recalled: Recalled
    #: its last entry when the chain was followed, and whether others came since
    last: int = NOTHING
    has_more: bool = False
    #: what is next, and where in it
    entries: Sequence[TimerEntry] = ()
    at: int = 0
    #: where the parts that follow end
    marks: list[int] = []


class TimerDelivery:
    """Owns how far the slots are delivered. Owner: `broker.timers`.

    `is_held(slot_ms)` says whether a slot must wait although its time is over, `on_rolled(slot_ms)` hears of messages
    that were appended to the timer topic again, `on_room()` that slots were passed.
    """

    def __init__(
        self,
        store: Store,
        files: TimerFiles,
        clock: Clock,
        metrics: TimerMetrics,
        check: TimerCheck,
        changed: Callable[[], None],
        damaged: Callable[[BaseException], None],
    ) -> None:
        self._store, self._files, self._clock, self._metrics = store, files, clock, metrics
        self._changed, self._damaged = changed, damaged
        self._attempts = Attempts(clock, store.background)
        self.is_held: Callable[[int], bool] = lambda slot_ms: False
        self.on_rolled: Callable[[int], None] = lambda slot_ms: None
        self.on_room: Callable[[], None] = lambda: None
        self.enabled = True
        self._is_stopped = False
        now_ms = clock.now_ms()
        #: the slot that is delivered next, or is being delivered
        self.read_ms = check.read_ms or self._present(now_ms)
        self._slot: _Slot | None = None
        #: see `store.timercheck`
        self._delivered, self._passed_ms, self._passed = check.delivered, check.passed_ms, check.passed
        #: no slot from `read_ms` up to here has anything in it; when `_is_exact`, this one has
        self._next_ms = self.read_ms
        self._is_exact = self._is_seeking = False
        #: the earliest slot that got something while the next one was sought
        self._added_ms = _NEVER_MS
        self._timer: Timer | None = None
        self._timer_ms = _NEVER_MS
        if self.read_ms > self._present(now_ms):
            self._put_back(self._present(now_ms))

    def state(self, check: TimerCheck) -> TimerCheck:
        """The same with how far delivery is."""
        return msgspec.structs.replace(
            check,
            read_ms=self.read_ms,
            delivered=self._delivered if self._slot is None else self._slot.delivered,
            passed_ms=self._passed_ms,
            passed=self._passed,
        )

    def stop(self) -> None:
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()

    # --------------------------------------------------------------------------------------------- what is next

    def _present(self, now_ms: int) -> int:
        """The slot whose time is now."""
        return now_ms // self._files.precision_ms * self._files.precision_ms

    def pass_empty(self, now_ms: int) -> None:
        """Where no slot that is over has anything in it, the present one is next."""
        present_ms = self._present(now_ms)
        if self._slot is None and self._next_ms >= present_ms > self.read_ms:
            self.read_ms, self._delivered = present_ms, NOTHING
            self.on_room()

    def has_place(self, slot_ms: int, now_ms: int) -> bool:
        """Whether a message for this slot can be sorted in now."""
        if slot_ms < self.read_ms:
            if self._slot is not None:
                return False
            self._put_back(slot_ms)
        return self._files.reaches(self._files.slot_for(slot_ms, now_ms), self.read_ms)

    def _put_back(self, slot_ms: int) -> None:
        """The clock was put back: slots that were delivered get messages again."""
        log.warning("the clock was put back: going on with messages for %d, not %d", slot_ms, self.read_ms)
        if self.read_ms > self._passed_ms:
            self._passed_ms, self._passed = self.read_ms, self._files.log_end
        self.read_ms = self._next_ms = slot_ms
        self._is_exact, self._delivered = False, NOTHING

    def added(self, slot_ms: int) -> None:
        """This slot got something, and maybe later ones."""
        self._added_ms = min(self._added_ms, slot_ms)
        if self._slot is not None and slot_ms == self._slot.time_ms:
            self._slot.has_more = True
        elif slot_ms < self._next_ms:
            self._next_ms, self._is_exact = slot_ms, True

    def step(self) -> None:
        """Deliver the next slot when its time is over, else wait for that."""
        if self._is_stopped or self._slot is not None or self._is_seeking or not self.enabled:
            return
        now_ms, precision_ms = self._clock.now_ms(), self._files.precision_ms
        if not self._is_exact and self._next_ms <= now_ms + _AHEAD_SLOTS * precision_ms:
            self._seek()
        elif self._next_ms + precision_ms > now_ms:
            self.pass_empty(now_ms)
            self._wake_at(self._next_ms + precision_ms)
        elif not self.is_held(self._next_ms):
            if self._next_ms > self.read_ms:
                self.read_ms, self._delivered = self._next_ms, NOTHING
            passed = self._passed - 1 if self.read_ms < self._passed_ms else NOTHING
            self._slot = _Slot(self.read_ms, max(self._delivered, passed), Recalled())
            self._follow(self._slot)

    def _wake_at(self, when_ms: int) -> None:
        if self._timer is not None:
            if self._timer_ms <= when_ms:
                return
            self._timer.cancel()
        self._timer, self._timer_ms = self._clock.call_at(when_ms, self._wake), when_ms

    def _wake(self) -> None:
        self._timer, self._timer_ms = None, _NEVER_MS
        self.step()

    def _seek(self) -> None:
        """Find the next slot with something in it, up to LOOK_SLOTS ahead."""
        self._is_seeking, self._added_ms = True, _NEVER_MS
        start_ms = self._next_ms
        end_ms = start_ms + LOOK_SLOTS * self._files.precision_ms
        self._attempts.look(
            lambda wait: self._files.next_used(start_ms, end_ms, wait=wait),
            lambda found_ms: self._sought(start_ms, end_ms, found_ms),
            self._seek_failed,
        )

    def _sought(self, start_ms: int, end_ms: int, found_ms: int | None) -> None:
        self._is_seeking = False
        if self._next_ms == start_ms and not self._is_exact:
            first_ms = min(found_ms or end_ms, self._added_ms, end_ms)
            self._next_ms, self._is_exact = first_ms, first_ms < end_ms
            if not self._files.reaches(first_ms, self.read_ms):  # a whole turn of the wheel is empty
                self._next_ms, self._is_exact = max(first_ms, self._present(self._clock.now_ms())), False
        self._clock.call_soon(self.step)

    def _seek_failed(self, error: BaseException) -> None:
        self._is_seeking = False
        self._attempts.again("the timer wheel cannot be read", error, self.step)

    # -------------------------------------------------------------------------------------------------- one slot

    def _follow(self, slot: _Slot) -> None:
        """Find what of the slot is not delivered yet."""

        def look(wait: bool) -> tuple[int, Chain]:
            last = self._files.last(slot.time_ms, wait=wait)
            if not wait and self._files.messages(slot.time_ms) > _INLINE_ENTRIES:
                raise Cold
            return last, self._files.chain(slot.time_ms, last, slot.delivered, wait=wait)

        self._attempts.look(
            look, lambda found: self._followed(slot, *found), lambda error: self._not_followed(slot, error)
        )

    def _not_followed(self, slot: _Slot, error: BaseException) -> None:
        if self._is_stopped:
            return
        if isinstance(error, TimerLogDamaged):
            self._damaged(error)
        else:
            self._attempts.again(
                f"slot {slot.time_ms} of the timer wheel cannot be read", error, lambda: self._follow(slot)
            )

    def _followed(self, slot: _Slot, last: int, chain: Chain) -> None:
        slot.last, slot.entries, slot.at, slot.marks = last, [*chain.deletes, *chain.entries], 0, chain.marks
        self._go_on(slot)

    def _go_on(self, slot: _Slot) -> None:
        """With the next messages of the slot."""
        if self._is_stopped:
            return
        group = self._group(slot)
        if group:
            places = [(entry.commit_log_offset, entry.record_bytes) for entry in group]
            self._attempts.ask(
                lambda: self._store.records(places),
                lambda records: self._deliver(slot, group, records),
                lambda error: self._attempts.again("delayed messages cannot be read", error, lambda: self._go_on(slot)),
            )
        elif slot.marks:
            mark = slot.marks.pop()
            self._attempts.look(
                lambda wait: self._files.chain(slot.time_ms, mark, slot.delivered, wait=wait),
                lambda chain: self._next_part(slot, chain),
                lambda error: self._not_followed(slot, error),
            )
        else:
            self._end(slot)

    def _group(self, slot: _Slot) -> list[TimerEntry]:
        """What is delivered in one turn."""
        group: list[TimerEntry] = []
        size = 0
        for entry in slot.entries[slot.at : slot.at + _TURN_MESSAGES]:
            size += entry.record_bytes
            if group and size > _TURN_BYTES:
                break
            group.append(entry)
        return group

    def _next_part(self, slot: _Slot, chain: Chain) -> None:
        slot.entries, slot.at = chain.entries, 0
        self._go_on(slot)

    def _deliver(self, slot: _Slot, group: list[TimerEntry], records: Sequence[bytes | None]) -> None:
        """Append the messages of a group to their topics, or to the timer topic again."""
        if self._is_stopped:
            return
        now_ms = self._clock.now_ms()
        messages: list[Message] = []
        topics: list[str] = []
        rolled_ms = _NEVER_MS
        for entry, data in zip(group, records, strict=True):
            if data is None:
                log.error("a delayed message is lost: the commit log has no record at %d", entry.commit_log_offset)
                continue
            waiting = timermessages.read(data, str(entry.commit_log_offset))
            if waiting is None:
                continue
            if entry.is_delete:
                slot.recalled.add(waiting)
            elif entry.magic & ROLL:
                rolled_ms = min(rolled_ms, waiting.slot_ms)
                messages.append(rolled(waiting, entry.written_ms, now_ms))
                topics.append(waiting.topic)
            elif not slot.recalled.takes(waiting):
                messages.append(deliverable(waiting, entry.written_ms, now_ms))
                topics.append(waiting.topic)
        try:
            self._store.append(messages, again=True)
        except SaturnError as error:
            self._attempts.again("messages whose time has come are not delivered", error, lambda: self._go_on(slot))
            return
        for topic in topics:
            self._metrics.came_out(topic)
        if rolled_ms < _NEVER_MS:
            self.on_rolled(rolled_ms)
        slot.at += len(group)
        if not group[-1].is_delete:
            slot.delivered = group[-1].position
        self._changed()
        self._clock.call_soon(lambda: self._go_on(slot))

    def _end(self, slot: _Slot) -> None:
        """Everything that the slot had is delivered."""
        slot.delivered = max(slot.delivered, slot.last)
        if slot.has_more:
            slot.has_more = False
            self._follow(slot)
            return
        for topic in slot.recalled.in_vain():
            self._metrics.change(topic, 1)
        self._slot, self._delivered = None, NOTHING
        self.read_ms = self._next_ms = slot.time_ms + self._files.precision_ms
        self._is_exact = False
        self._changed()
        self.on_room()
        self.step()
