"""The files of delayed messages together: wheel, timer log and checkpoint, and what makes them right after a crash.

The messages themselves stand in the commit log, in the topic rmq_sys_wheel_timer; these files only say when each is
due, and all of them can be made again from that topic's queue. A checkpoint is three syncs in this order: the timer
log, the slots that changed, `timercheck`. So after a crash the timer log may have entries behind the checkpoint, and
slots may lead to them: those are taken out again, and their messages sorted in once more from the queue.

Apache takes the positions of its checkpoint before it writes the other files: of its entries behind the checkpoint's
log position those count too whose messages stand before its queue offset.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import msgspec

from saturnmq.disk.port import Disk
from saturnmq.store import timercheck
from saturnmq.store.results import StoreRefused
from saturnmq.store.timercheck import NOTHING, TimerCheck
from saturnmq.store.timerlog import (
    DEFAULT,
    DELETE,
    MAX_DELAY_MS,
    NONE,
    ROLL,
    UNIT_BYTES,
    TimerEntry,
    TimerLog,
    TimerLogDamaged,
    pack,
)
from saturnmq.store.timerlog import DIRECTORY as TIMER_LOG
from saturnmq.store.timerwheel import EMPTY, HALF_SLOTS, SLOTS, SPARE_SLOTS, Slot, TimerWheel
from saturnmq.store.timerwheel import PATH as WHEEL

log = logging.getLogger(__name__)

#: entries of one slot that are in memory at once
SEGMENT_ENTRIES = 4096
#: slots that are repaired in memory before they are written
_REPAIRED_SLOTS = 20_000


#: files of the timer log and slots that are to be made durable
Changes: TypeAlias = "tuple[list[str], dict[int, Slot]]"


class Timed(NamedTuple):
    """A message of the timer topic, to be sorted in."""

    #: the time of its slot, which may be further away than the wheel reaches
    slot_ms: int
    commit_log_offset: int
    record_bytes: int
    is_delete: bool
    topic_hash: int


class Chain(NamedTuple):
    """A part of a slot, and how to go on."""

    #: messages in the order in which they came
    entries: list[TimerEntry]
    #: where the parts that follow end, the next one last
    marks: list[int]
    #: what takes messages of the slot back
    deletes: list[TimerEntry]


class Oldest(NamedTuple):
    """What is pending since longest."""

    #: of its entry in the timer log, or of one before it
    position: int
    #: where its record stands, or a place before it; None when nothing is pending
    commit_log_offset: int | None


class _Repaired(msgspec.Struct):
    """A slot that entries behind the checkpoint changed."""

    first: int
    last: int
    messages: int
    #: what stood on the disk
    stored_last: int
    is_cut: bool = False

    def redo(self, entry: TimerEntry) -> None:
        if entry.previous == NONE:
            self.first = entry.position
        if entry.position > self.stored_last:
            self.messages += _count_of(entry)
        self.last = entry.position

    def undo(self, entry: TimerEntry) -> None:
        if entry.position <= self.stored_last:
            self.messages -= _count_of(entry)
        if not self.is_cut:
            self.is_cut, self.last = True, entry.previous


class TimerFiles:
    """Owner: `broker.timers`, on the event loop; what takes `wait`, and `write`, may run in a thread."""

    def __init__(self, disk: Disk, precision_ms: int, window_slots: int, log_file_size: int) -> None:
        """`window_slots`: a message that is due later than so many slots from now is looked at again before."""
        self._disk, self.precision_ms = disk, precision_ms
        most = min(HALF_SLOTS - SPARE_SLOTS, MAX_DELAY_MS // precision_ms)
        self._window_slots = window_slots if 2 <= window_slots <= most else most
        self._log, self._wheel = TimerLog(disk, log_file_size), TimerWheel(disk)
        #: the last durable state
        self.check = TimerCheck()
        #: of the timer log: no entry before it is pending
        self._oldest = 0

    # -------------------------------------------------------------------------------------------------- opening

    def exist(self) -> bool:
        return any(map(self._disk.exists, (timercheck.PATH, WHEEL, TIMER_LOG)))

    def load(self, low: int, high: int) -> TimerCheck:
        """The last state; its queue offset is brought into [low, high], what the timer topic has. Raises OSError."""
        self.check = timercheck.load(self._disk)
        return msgspec.structs.replace(self.check, queue_offset=min(max(self.check.queue_offset, low), high))

    def open(self, bound: int, low: int, high: int, *, crashed: bool) -> TimerCheck:
        """Recover; gives the state to go on from. `bound` is where the message at the loaded queue offset stands in the
        commit log, or where that ends. Waits for the disk. Raises OSError, StoreRefused."""
        check, loaded = self.load(low, high), self.check
        wheel_is_whole = self._wheel.open()
        first, limit = self._log.find()
        if not first <= check.log_position <= limit or (loaded == TimerCheck() and limit):
            check = self.begin_anew(loaded, low)
        else:
            start = check.log_position
            self._log.first = self._oldest = first
            if check.is_ours and check.precision_ms != self.precision_ms:
                self._refuse_if_any_waits(check, high)
                self._wheel.clear()
            elif not wheel_is_whole or self._is_in_snapshots(check):
                self._wheel.clear()
                start = first
            self._repair(start, limit, bound, check.read_ms, crashed)
            check = msgspec.structs.replace(check, log_position=self._log.end)
        if limit or high or check.read_ms:
            check = msgspec.structs.replace(check, precision_ms=self.precision_ms, is_ours=True)
            timercheck.save(self._disk, check)
        self.check = check
        return check

    def _is_in_snapshots(self, check: TimerCheck) -> bool:
        """Apache's wheel may stand in other files (timerWheelSnapshotFlush)."""
        return not check.is_ours and any(name.startswith("timerwheel.") for name in self._disk.list(""))

    def _refuse_if_any_waits(self, check: TimerCheck, high: int) -> None:
        """A slot of another length would be over too early, or have no place in the log's chains."""
        if check.queue_offset < high or self.oldest_pending(check).commit_log_offset is not None:
            raise StoreRefused(
                f"timerPrecisionMs = {self.precision_ms} cannot be used yet: messages wait that were given their time "
                f"with {check.precision_ms}; set it back until they are delivered"
            )

    def begin_anew(self, check: TimerCheck, low: int) -> TimerCheck:
        """Sort in the whole queue again from its offset `low` on, but for what is delivered at this state; gives the
        state to go on from. For a thread: waits for the disk. Raises OSError."""
        log.warning("timerlog and timerwheel are made anew from the timer topic")
        self._wheel.clear()
        self._log.clear()
        for name in self._disk.list(""):
            if name.startswith("timerwheel."):
                self._disk.unlink(name)
        if check.settled < check.queue_offset:
            check = msgspec.structs.replace(check, settled=check.queue_offset, settled_ms=check.read_ms)
        return msgspec.structs.replace(
            check, queue_offset=low, log_position=0, delivered=NOTHING, passed_ms=0, passed=0
        )

    def _repair(self, start: int, limit: int, bound: int, read_ms: int, crashed: bool) -> None:
        """Bring the wheel to what the entries from `start` on say whose messages stand before the log position `bound`,
        and cut off the others."""
        repaired: dict[int, _Repaired] = {}
        end, is_cut = start, False
        for entry in self._log.scan(start, limit):
            is_cut = is_cut or entry.commit_log_offset >= bound
            if not is_cut:
                end = entry.position + UNIT_BYTES
                if len(repaired) >= _REPAIRED_SLOTS:
                    self._keep(repaired)
            if entry.slot_ms < read_ms and not is_cut:
                continue
            number = entry.slot_ms // self.precision_ms
            slot = repaired.get(number)
            if slot is None:
                stored = self._wheel.slot(number, wait=True)
                slot = repaired[number] = _Repaired(*stored, stored.last)
            (slot.undo if is_cut else slot.redo)(entry)
        self._keep(repaired)
        self._log.end = end
        if crashed or is_cut:
            self._log.cut(end)

    def _keep(self, repaired: dict[int, _Repaired]) -> None:
        self._wheel.write(
            {
                number: Slot(slot.first, slot.last, slot.messages) if slot.last != NONE else EMPTY
                for number, slot in repaired.items()
            }
        )
        repaired.clear()

    def close(self) -> None:
        self._log.close()
        self._wheel.close()

    # ----------------------------------------------------------------------------------------------- sorting in

    def reaches(self, slot_ms: int, read_ms: int) -> bool:
        """Whether the slot has its place in the ring as long as those from `read_ms` on are in use."""
        return slot_ms - read_ms < SLOTS * self.precision_ms

    def slot_for(self, slot_ms: int, now_ms: int) -> int:
        """The slot itself, or where a message is looked at again that is further away than the window."""
        precision_ms, window_slots = self.precision_ms, self._window_slots
        written_ms = now_ms // precision_ms * precision_ms
        beyond_ms = slot_ms - written_ms - window_slots * precision_ms
        if beyond_ms < 0:
            return slot_ms
        # give the last part of the way enough time (TimerMessageStore.doEnqueue)
        slots = window_slots // 2 if beyond_ms < window_slots // 3 * precision_ms else window_slots
        return written_ms + slots * precision_ms

    def warm(self, messages: Sequence[Timed], now_ms: int) -> None:
        """After `add` raised Cold: bring into memory what it needs. For a thread."""
        for message in messages:
            self._wheel.slot(self.slot_for(message.slot_ms, now_ms) // self.precision_ms, wait=True)

    def add(self, messages: Sequence[Timed], now_ms: int) -> int:
        """Sort in: all or, when it raises, none. Gives the earliest slot. Raises Cold, OSError."""
        precision_ms, place = self.precision_ms, self._log.place
        written_ms = now_ms // precision_ms * precision_ms
        changed: dict[int, Slot] = {}
        units = []
        position = self._log.end
        for slot_ms, offset, record_bytes, is_delete, topic_hash in messages:
            target_ms = self.slot_for(slot_ms, now_ms)
            number = target_ms // precision_ms
            slot = changed.get(number) or self._wheel.slot(number)
            magic = DEFAULT | (ROLL if target_ms != slot_ms else 0) | (DELETE if is_delete else 0)
            position = place(position)
            # an entry cannot be older than its slot: one that comes late was written when the slot was
            units.append(
                pack(slot.last, magic, min(written_ms, target_ms), target_ms, (offset, record_bytes), topic_hash)
            )
            first = position if slot.first == NONE else slot.first
            changed[number] = Slot(first, position, slot.messages + (-1 if is_delete else 1))
            position += UNIT_BYTES
        self._log.write(units)
        for number, slot in changed.items():
            self._wheel.put(number, slot)
        return min(changed) * precision_ms

    def messages(self, slot_ms: int) -> int:
        """How many a slot has. May wait for the disk."""
        return self._wheel.slot(slot_ms // self.precision_ms, wait=True).messages

    # ------------------------------------------------------------------------------------------------ looking up

    def next_used(self, start_ms: int, end_ms: int, *, wait: bool) -> int | None:
        """The first slot in [start, end) with something in it; None when there is none, or none in the first part of
        LOOK_SLOTS. Raises Cold unless it may `wait`."""
        precision_ms = self.precision_ms
        number = self._wheel.next_used(start_ms // precision_ms, end_ms // precision_ms, wait=wait)
        return None if number is None else number * precision_ms

    def last(self, slot_ms: int, *, wait: bool) -> int:
        """Where the last entry of the slot stands. Raises Cold unless it may `wait`."""
        return self._wheel.slot(slot_ms // self.precision_ms, wait=wait).last

    def chain(self, slot_ms: int, last: int, delivered: int, *, wait: bool) -> Chain:
        """The messages of the slot behind the position `delivered` up to the entry at `last`: the first part of them.
        Raises TimerLogDamaged, OSError; Cold unless it may `wait`."""
        entries: list[TimerEntry] = []
        marks: list[int] = []
        deletes = []
        for entry in self._log.read_back(last, wait=wait):
            if entry.slot_ms != slot_ms:
                raise TimerLogDamaged(f"the slot {slot_ms} leads to an entry of {entry.slot_ms} at {entry.position}")
            if entry.is_delete:
                deletes.append(entry)
            elif entry.position > delivered:
                if len(entries) == SEGMENT_ENTRIES:
                    marks.append(entries[0].position)
                    entries.clear()
                entries.append(entry)
        entries.reverse()
        return Chain(entries, marks, deletes)

    # -------------------------------------------------------------------------------------------------- checkpoint

    @property
    def log_end(self) -> int:
        return self._log.end

    def state(self, now_ms: int) -> TimerCheck:
        """The next checkpoint, as far as it is the files'."""
        return TimerCheck(
            log_position=self._log.end,
            counter=self.check.counter + 1,
            changed_ms=now_ms,
            precision_ms=self.precision_ms,
            is_ours=True,
        )

    def take(self) -> Changes:
        """What changed, for `write`; `written` or `not_written` comes after it."""
        return self._log.take_unsynced(), self._wheel.take()

    def write(self, changes: Changes, check: TimerCheck) -> None:
        """Make the changes durable, and say so. Raises OSError."""
        paths, slots = changes
        self._log.sync(paths)
        self._wheel.write(slots)
        timercheck.save(self._disk, check)

    def written(self, check: TimerCheck) -> None:
        self._wheel.written()
        self.check = check

    def not_written(self, changes: Changes) -> None:
        """It is to be tried again."""
        self._log.give_back(changes[0])
        self._wheel.not_written()

    # --------------------------------------------------------------------------------------------------- cleaning

    def oldest_pending(self, check: TimerCheck) -> Oldest:
        """The first message that is sorted in and not delivered, as this state has it. For a thread: waits for the
        disk. Raises OSError."""
        end = self._oldest
        for entry in self._log.scan(end, check.log_position):
            if entry.slot_ms >= check.read_ms:
                return Oldest(entry.position, entry.commit_log_offset)
            end = entry.position + UNIT_BYTES
        if self._log.place(end) < check.log_position:
            log.error("timerlog: there is no entry at %d; no message is deleted", end)
            return Oldest(self._oldest, 0)
        return Oldest(end, None)

    def places_of(self, check: TimerCheck, topic_hash: int) -> list[tuple[int, int]]:
        """Log positions and sizes of the messages for topics with this hash that are sorted in and not delivered, as
        this state has it. For a thread: waits for the disk. Raises OSError."""
        return [
            (entry.commit_log_offset, entry.record_bytes)
            for entry in self._log.scan(self._oldest, check.log_position)
            if entry.topic_hash == topic_hash and entry.slot_ms >= check.read_ms
        ]

    def drop_before(self, position: int) -> list[str]:
        """Files of the timer log without an entry that is pending, for `delete`; `position` is that of the oldest."""
        self._oldest = position
        return self._log.drop_before(position)

    def delete(self, paths: list[str]) -> None:
        """For a thread. Raises OSError."""
        self._log.delete(paths)


def _count_of(entry: TimerEntry) -> int:
    return -1 if entry.magic & DELETE else 1
