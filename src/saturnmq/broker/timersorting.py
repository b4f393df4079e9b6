"""Sorting in: each message of the timer topic gets its place in the wheel, in the order of the topic's queue."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from saturnmq.broker import timermessages
from saturnmq.broker.attempts import Attempts
from saturnmq.broker.timermessages import NEVER, Sieve, Waiting, deliverable
from saturnmq.broker.timermetrics import TimerMetrics
from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.errors import SaturnError
from saturnmq.kernel.subscription import tag_hash
from saturnmq.kernel.topic import TIMER_TOPIC
from saturnmq.store.reading import Cold
from saturnmq.store.results import Found, FoundStatus
from saturnmq.store.store import Store
from saturnmq.store.timercheck import TimerCheck
from saturnmq.store.timerfiles import Timed, TimerFiles

if TYPE_CHECKING:
    from saturnmq.broker.timerdelivery import TimerDelivery

log = logging.getLogger(__name__)

#: messages, and bytes of them, that are sorted in in one turn of the loop
_TURN_MESSAGES = 128
_TURN_BYTES = 1 << 20
#: messages that nobody needs, passed in one turn
_TURN_PASSED = 4096
#: how long sorting in waits for what may not be needed then
PATIENCE_MS = 2_000
#: messages that were passed, none of them sorted in, until a checkpoint says so
_PASSED_QUIETLY = 20_000


class TimerSorting:
    """Owns how far the timer topic is sorted in. Owner: `broker.timers`."""

    def __init__(
        self,
        store: Store,
        files: TimerFiles,
        clock: Clock,
        metrics: TimerMetrics,
        delivery: TimerDelivery,
        check: TimerCheck,
        changed: Callable[[], None],
        sieve: Sieve,
    ) -> None:
        self._store, self._files, self._clock, self._metrics = store, files, clock, metrics
        self._sieve = sieve
        self._delivery, self._changed = delivery, changed
        self._attempts = Attempts(clock, store.background)
        #: queue offset of the next message
        self._offset = self._told = check.queue_offset
        #: up to here messages are sorted in now, what comes behind it when the timer says
        self._goal = self._offset
        self._timer: Timer | None = None
        self._settled, self._settled_ms = check.settled, check.settled_ms
        #: came so late that their slots are over, not delivered yet: queue offset and message
        self._late: deque[tuple[int, Waiting]] = deque()
        self._is_busy = self._is_stopped = False
        #: the next message has no place in the ring before others are delivered
        self._is_blocked = False
        #: slots from this time on wait until everything up to this queue offset is sorted in
        self._hold_ms, self._hold_offset = 0, store.max_offset(TIMER_TOPIC, 0)
        self.enabled = True

    def state(self, check: TimerCheck) -> TimerCheck:
        """The same with how far sorting in is: up to the first message that is neither sorted in nor delivered."""
        return msgspec.structs.replace(
            check,
            queue_offset=self._late[0][0] if self._late else self._offset,
            settled_ms=self._settled_ms,
            settled=self._settled,
        )

    @property
    def behind(self) -> int:
        """Messages that are to be sorted in."""
        return self._store.max_offset(TIMER_TOPIC, 0) - self._offset

    def is_before(self, slot_ms: int) -> bool:
        """Whether there may be messages for the slot that are not sorted in yet, and are waited for: what takes a
        message back must not come behind it."""
        waits = slot_ms >= self._hold_ms and self._offset < self._hold_offset
        return waits and self.enabled and not self._is_blocked

    def hold(self, slot_ms: int) -> None:
        """What was just appended to the timer topic is for this slot or later ones."""
        if self._offset >= self._hold_offset:
            self._hold_ms = slot_ms
        self._hold_ms = min(self._hold_ms, slot_ms)
        self._hold_offset = self._store.next_offset(TIMER_TOPIC, 0)

    def arrived(self, offset: int) -> None:
        """The message can be read now."""
        if not self._sieve.arrived(offset):
            self._goal = max(self._goal, offset + 1)
        self._start()

    def start(self) -> None:
        """Go on with all that there is, now or when messages come."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._goal = self._store.max_offset(TIMER_TOPIC, 0)
        self._start()

    def _start(self) -> None:
        if self._is_busy or self._is_stopped or not self.enabled or self._is_blocked:
            return
        if self._offset < self._goal:
            self._is_busy = True
            self._clock.call_soon(self._go_on)
        elif self._timer is None and self.behind > 0:
            self._timer = self._clock.call_at(self._clock.now_ms() + PATIENCE_MS, self.start)

    def stop(self) -> None:
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def unblock(self) -> None:
        """Slots were delivered: there is more place in the ring."""
        if self._is_blocked:
            self._is_blocked = False
            self.start()

    def _go_on(self) -> None:
        if self._is_stopped:
            return
        end = min(self._goal, self._offset + _TURN_PASSED)
        self._offset = self._sieve.first_needed(self._offset, end)
        if self._offset - self._told > _PASSED_QUIETLY:
            self._told = self._offset
            self._changed()
        if self._offset == end:
            self._over()
            return
        most = min(_TURN_MESSAGES, self._goal - self._offset)
        self._attempts.ask(
            lambda: self._store.get(TIMER_TOPIC, 0, self._offset, most, _TURN_BYTES), self._found, self._failed
        )

    def _failed(self, error: BaseException) -> None:
        self._attempts.again(f"messages for a time, from {self._offset} on, are not sorted in", error, self._go_on)

    def _found(self, found: Found) -> None:
        if self._is_stopped:
            return
        if found.status in (FoundStatus.FOUND, FoundStatus.NO_MATCH):
            self._sort_in(found)
            return
        if found.status in (FoundStatus.BEFORE, FoundStatus.BEYOND):
            log.warning("messages for a time are sorted in from %d on, not %d", found.next_offset, self._offset)
            self._offset = found.next_offset
        self._over()

    def _sort_in(self, found: Found) -> None:
        """Give each message its place; whatever fails, none has one yet."""
        now_ms = self._clock.now_ms()
        self._delivery.pass_empty(now_ms)
        timed: list[Timed] = []
        placed: list[Waiting] = []
        late: list[tuple[int, Waiting]] = []
        next_offset, self._is_blocked = found.next_offset, False
        for data, offset, position in zip(found.records, found.offsets, found.positions, strict=True):
            waiting = timermessages.read(data, f"offset {offset} of {TIMER_TOPIC}")
            if waiting is None or (offset < self._settled and waiting.slot_ms < self._settled_ms):
                continue
            if not self._sieve.needs(offset, waiting):
                continue
            if self._is_late(waiting, now_ms):
                late.append((offset, waiting))
            elif self._delivery.has_place(waiting.slot_ms, now_ms):
                timed.append(Timed(waiting.slot_ms, position, len(data), waiting.is_delete, tag_hash(waiting.topic)))
                placed.append(waiting)
            else:
                next_offset, self._is_blocked = offset, True
                break
        if timed:
            try:
                self._delivery.added(self._files.add(timed, now_ms))
            except Cold:
                self._attempts.run(lambda: self._files.warm(timed, now_ms), lambda _: self._go_on(), self._failed)
                return
            except OSError as error:
                self._failed(error)
                return
        self._sieve.passed(range(self._offset, next_offset))
        self._offset = self._told = next_offset
        self._late.extend(late)
        for topic, count in Counter(waiting.topic for waiting in placed).items():
            self._metrics.sorted_in(topic, count, sum(one.is_delete for one in placed if one.topic == topic))
        self._changed()
        self._deliver_late()
        self._over()

    def _is_late(self, waiting: Waiting, now_ms: int) -> bool:
        """Its slot is over and will not be delivered again."""
        is_over = waiting.slot_ms + self._files.precision_ms <= now_ms
        return is_over and waiting.slot_ms < self._delivery.read_ms

    def _over(self) -> None:
        self._is_busy = False
        self._start()
        self._delivery.step()

    def _deliver_late(self) -> None:
        while self._late and not self._is_stopped:
            _, waiting = self._late[0]
            if not waiting.is_delete and self._sieve.wants(waiting):
                message = deliverable(waiting, NEVER, self._clock.now_ms())
                try:
                    [place] = self._store.append((message,), again=True)
                except SaturnError as error:
                    self._attempts.again("a message whose time has come is not delivered", error, self._deliver_late)
                    return
                self._sieve.delivered(waiting, place)
            self._late.popleft()
            self._changed()
