"""Delivery of what waited: slot after slot of the wheel, when the time of each is over."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from saturnmq.broker.attempts import Attempts
from saturnmq.broker.timermessages import Sieve
from saturnmq.broker.timermetrics import TimerMetrics
from saturnmq.broker.timerslot import TimerSlot
from saturnmq.kernel.clock import Clock, Timer
from saturnmq.store.store import Store
from saturnmq.store.timercheck import NOTHING, TimerCheck
from saturnmq.store.timerfiles import TimerFiles
from saturnmq.store.timerwheel import LOOK_SLOTS

log = logging.getLogger(__name__)

#: slots ahead in which the next one with something in it is known
_AHEAD_SLOTS = LOOK_SLOTS // 2
#: how long before its time is over a slot is made ready
_READY_MS = 400
_NEVER_MS = 1 << 62


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
        sieve: Sieve,
    ) -> None:
        self._store, self._files, self._clock, self._metrics = store, files, clock, metrics
        self._sieve = sieve
        self._changed, self._on_damage = changed, damaged
        self._attempts = Attempts(clock, store.background)
        self.is_held: Callable[[int], bool] = lambda slot_ms: False
        self.on_rolled: Callable[[int], None] = lambda slot_ms: None
        self.on_room: Callable[[], None] = lambda: None
        self.enabled = True
        self._is_stopped = False
        now_ms = clock.now_ms()
        #: the slot that is delivered next, or is being delivered
        self.read_ms = check.read_ms or self._present(now_ms)
        self._slot: TimerSlot | None = None
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
        if self._slot is not None:
            self._slot.stop()

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
            self._slot.added()
        elif slot_ms < self._next_ms:
            self._next_ms, self._is_exact = slot_ms, True

    def step(self) -> None:
        """Go on with what is to be done now, else wait for its time."""
        if self._is_stopped or self._is_seeking or not self.enabled:
            return
        now_ms, precision_ms = self._clock.now_ms(), self._files.precision_ms
        if self._slot is not None:
            self._step_slot(self._slot, now_ms)
        elif not self._is_exact and self._next_ms <= now_ms + _AHEAD_SLOTS * precision_ms:
            self._seek()
        elif self._next_ms + precision_ms - min(precision_ms, _READY_MS) > now_ms:
            self.pass_empty(now_ms)
            self._wake_at(self._next_ms + precision_ms - min(precision_ms, _READY_MS))
        else:
            self._open(self._next_ms)

    def _open(self, slot_ms: int) -> None:
        """The slot is the next one, and its time is over or nearly so."""
        if slot_ms > self.read_ms:
            self.read_ms, self._delivered = slot_ms, NOTHING
        passed = self._passed - 1 if slot_ms < self._passed_ms else NOTHING
        self._slot = TimerSlot(
            self,
            self._store,
            self._files,
            self._clock,
            self._metrics,
            self._sieve,
            slot_ms,
            max(self._delivered, passed),
        )
        self._slot.open()
        self.step()

    def _step_slot(self, slot: TimerSlot, now_ms: int) -> None:
        over_ms = slot.time_ms + self._files.precision_ms
        if over_ms > now_ms:
            self._wake_at(over_ms)
        elif not self.is_held(slot.time_ms):
            slot.due()

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

    # ------------------------------------------------------------------------------------------ of the present slot

    def progressed(self) -> None:
        self._changed()

    def rolled(self, slot_ms: int) -> None:
        self.on_rolled(slot_ms)

    def damaged(self, error: BaseException) -> None:
        self._on_damage(error)

    def ended(self) -> None:
        assert self._slot is not None, "one ends"
        self.read_ms = self._next_ms = self._slot.time_ms + self._files.precision_ms
        self._slot, self._delivered = None, NOTHING
        self._is_exact = False
        self._changed()
        self.on_room()
        self.step()
