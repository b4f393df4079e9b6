"""One slot of the timer wheel: its messages are made ready before its time is over, and delivered then."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Protocol

from saturnmq.broker import timermessages
from saturnmq.broker.attempts import Attempts
from saturnmq.broker.timermessages import Recalled, Sieve, Waiting, deliverable, rolled
from saturnmq.broker.timermetrics import TimerMetrics
from saturnmq.kernel.clock import Clock
from saturnmq.kernel.errors import SaturnError
from saturnmq.kernel.message import Message
from saturnmq.store.reading import Cold
from saturnmq.store.store import Store
from saturnmq.store.timerfiles import Chain, TimerFiles
from saturnmq.store.timerlog import NONE, ROLL, TimerEntry, TimerLogDamaged

log = logging.getLogger(__name__)

#: messages, and bytes of them, that are read or delivered in one turn of the loop: 3 ms. Fewer would need more flushes
#: and be pulled in smaller pieces, so that all of them take longer
TURN_MESSAGES = 512
_TURN_BYTES = 1 << 20
#: what is ready at most
_READY_MESSAGES = 8192
_READY_BYTES = 16 << 20
#: entries of a slot that are followed on the event loop; more are followed in a thread
INLINE_ENTRIES = 4096


class SlotOwner(Protocol):
    """Who has the slot delivered: `broker.timerdelivery`."""

    def progressed(self) -> None:
        """Messages were delivered."""
        ...

    def rolled(self, slot_ms: int) -> None:
        """Messages were appended to the timer topic again, for this slot or later ones."""
        ...

    def ended(self) -> None:
        """Nothing is left."""
        ...

    def damaged(self, error: BaseException) -> None:
        """The slot cannot be followed."""
        ...


class TimerSlot:
    """Owner: `broker.timerdelivery`. `open` comes first, `due` when the time is over; then it comes to its end.

    The parts of a slot come in order, and what takes messages back before anything that was there with it. At any time
    one thing is under way: following the chain, reading records, or a delivery.
    """

    def __init__(
        self,
        owner: SlotOwner,
        store: Store,
        files: TimerFiles,
        clock: Clock,
        metrics: TimerMetrics,
        sieve: Sieve,
        time_ms: int,
        delivered: int,
    ) -> None:
        """`delivered`: everything up to this entry of the timer log is."""
        self._owner, self._store, self._files, self._clock, self._metrics = owner, store, files, clock, metrics
        self._sieve = sieve
        self._attempts = Attempts(clock, store.background)
        self.time_ms, self.delivered = time_ms, delivered
        #: the last entry that was followed, and whether there are more
        self._last = delivered
        self._has_more = True
        #: not read yet: what takes messages back; messages, of a part that is in memory and of others, which are the
        #: entries from behind one position up to another
        self._deletes: deque[TimerEntry] = deque()
        self._entries: deque[TimerEntry] = deque()
        self._parts: deque[tuple[int, int]] = deque()
        self._recalled = Recalled()
        #: read, not delivered yet
        self._ready: deque[tuple[TimerEntry, Waiting | None]] = deque()
        self._ready_bytes = 0
        self._is_due = self._is_busy = self._is_stopped = False

    def open(self) -> None:
        """Make ready what there is."""
        self._next()

    def due(self) -> None:
        """The time is over."""
        self._is_due = True
        self._next()

    def added(self) -> None:
        """The slot got more."""
        self._has_more = True

    def stop(self) -> None:
        self._is_stopped = True

    # --------------------------------------------------------------------------------------------- what comes next

    def _next(self) -> None:
        if self._is_busy or self._is_stopped:
            return
        self._is_busy = True
        if self._has_more:
            self._follow()
        elif self._deletes:
            self._read(self._deletes, self._take_back)
        elif self._is_due and self._ready:
            self._deliver()
        elif self._entries and len(self._ready) < _READY_MESSAGES and self._ready_bytes < _READY_BYTES:
            self._read(self._entries, self._make_ready)
        elif self._parts and not self._entries:
            self._follow_part()
        else:
            self._is_busy = False
            if self._is_due:
                self._is_stopped = True
                for topic in self._recalled.in_vain():
                    self._metrics.change(topic, 1)
                self._owner.ended()

    def _done(self) -> None:
        """One step is; the others of the loop come before the next one."""
        self._is_busy = False
        self._clock.call_soon(self._next)

    # -------------------------------------------------------------------------------------------- following, reading

    def _follow(self) -> None:
        """Find what the slot has behind `_last`."""
        self._has_more = False
        before = self._last

        def look(wait: bool) -> tuple[int, Chain]:
            last = self._files.last(self.time_ms, wait=wait)
            if not wait and self._files.messages(self.time_ms) > INLINE_ENTRIES:
                raise Cold
            return last, self._files.chain(self.time_ms, last, before, wait=wait)

        def followed(found: tuple[int, Chain]) -> None:
            self._last, chain = found
            self._deletes.extend(
                entry for entry in chain.deletes if entry.position > before or before == self.delivered
            )
            self._append(chain, before)
            self._done()

        self._attempts.look(look, followed, lambda error: self._not_followed(error, self._follow))

    def _append(self, chain: Chain, before: int) -> None:
        """Add what was found at the end."""
        if self._parts or self._entries:
            if chain.entries:
                self._parts.append((chain.entries[-1].position, before))
        else:
            self._entries.extend(chain.entries)
        low = chain.entries[-1].position if chain.entries else NONE
        for mark in reversed(chain.marks):
            self._parts.append((mark, low))
            low = mark

    def _follow_part(self) -> None:
        last, before = self._parts.popleft()

        def followed(chain: Chain) -> None:
            self._entries.extend(chain.entries)
            self._done()

        def again() -> None:
            self._parts.appendleft((last, before))
            self._follow_part()

        self._attempts.look(
            lambda wait: self._files.chain(self.time_ms, last, before, wait=wait),
            followed,
            lambda error: self._not_followed(error, again),
        )

    def _not_followed(self, error: BaseException, again: Callable[[], None]) -> None:
        if self._is_stopped:
            return
        if isinstance(error, TimerLogDamaged):
            self._owner.damaged(error)
        else:
            self._attempts.again(f"slot {self.time_ms} of the timer wheel cannot be read", error, again)

    def _read(
        self, entries: deque[TimerEntry], take: Callable[[list[tuple[TimerEntry, Waiting | None]]], None]
    ) -> None:
        """Hand over the first of these entries with their messages."""
        group: list[TimerEntry] = []
        size = 0
        for entry in entries:
            size += entry.record_bytes
            if len(group) == TURN_MESSAGES or (group and size > _TURN_BYTES):
                break
            group.append(entry)
        places = [(entry.commit_log_offset, entry.record_bytes) for entry in group]

        def found(records: Sequence[bytes | None]) -> None:
            if self._is_stopped:
                return
            for _ in group:
                entries.popleft()
            take([(entry, _message(entry, data)) for entry, data in zip(group, records, strict=True)])
            self._done()

        def failed(error: BaseException) -> None:
            self._attempts.again("delayed messages cannot be read", error, lambda: self._read(entries, take))

        self._attempts.ask(lambda: self._store.records(places), found, failed)

    def _take_back(self, read: list[tuple[TimerEntry, Waiting | None]]) -> None:
        for _, waiting in read:
            if waiting is not None:
                self._recalled.add(waiting)

    def _make_ready(self, read: list[tuple[TimerEntry, Waiting | None]]) -> None:
        self._ready.extend(read)
        self._ready_bytes += sum(entry.record_bytes for entry, _ in read)

    # --------------------------------------------------------------------------------------------------- delivery

    def _deliver(self) -> None:
        """Append messages to their topics, or to the timer topic again."""
        if self._is_stopped:
            return
        now_ms = self._clock.now_ms()
        count = min(TURN_MESSAGES, len(self._ready))
        messages: list[Message] = []
        delivered: list[Waiting | None] = []
        topics: Counter[str] = Counter()
        rolled_ms: list[int] = []
        for at in range(count):
            entry, waiting = self._ready[at]
            if waiting is None or waiting.stored.commit_log_offset < self._store.deleted_before(waiting.topic):
                continue  # its topic was deleted
            if not self._sieve.wants(waiting):
                pass
            elif entry.magic & ROLL:
                rolled_ms.append(waiting.slot_ms)
                messages.append(rolled(waiting, entry.written_ms, now_ms))
                delivered.append(None)
            elif not self._recalled.takes(waiting):
                messages.append(deliverable(waiting, entry.written_ms, now_ms))
                delivered.append(waiting)
            else:
                continue
            topics[waiting.topic] += 1
        try:
            places = self._store.append(messages, again=True)
        except SaturnError as error:
            self._attempts.again("messages whose time has come are not delivered", error, self._deliver)
            return
        for _ in range(count):
            entry, _ = self._ready.popleft()
            self._ready_bytes -= entry.record_bytes
            self.delivered = entry.position
        for topic, number in topics.items():
            self._metrics.came_out(topic, number)
        for waiting, place in zip(delivered, places, strict=True):
            if waiting is not None:
                self._sieve.delivered(waiting, place)
        if rolled_ms:
            self._owner.rolled(min(rolled_ms))
        self._owner.progressed()
        self._done()


def _message(entry: TimerEntry, data: bytes | None) -> Waiting | None:
    """None, and a line in the log, when the entry leads to no message."""
    if data is None:
        log.error("a delayed message is lost: the commit log has no record at %d", entry.commit_log_offset)
        return None
    return timermessages.read(data, str(entry.commit_log_offset))
