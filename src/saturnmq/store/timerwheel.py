"""The timer wheel: for each slot of time, where in the timer log its last entry stands.

A ring of 2 × 604,800 slots of timerPrecisionMs (1 s): slot number n, its time divided by the precision, is the slot at
n modulo the ring's length. 32 bytes, big endian (store/timer/Slot.java, TimerWheel.java):

    n 8 | first 8 | last 8 | count 4 | magic 4 (0)

`first` and `last` are positions in the timer log. A slot with another n is one of an earlier turn of the ring, and
empty. A message that is due at D waits in the slot of the last whole precision before D (`slot_of_due`), which is
delivered when it is over: so never before D, and at the first whole second at or after it. File `timerwheel`, a hole
where no slot was ever used.

Slots that changed are kept in memory until `write`: no slot on disk leads to an entry that is not durable.
"""

from __future__ import annotations

from itertools import chain
from struct import Struct
from typing import NamedTuple

from saturnmq.disk.port import Disk, File
from saturnmq.store.reading import Cold
from saturnmq.store.timerlog import NONE

PATH = "timerwheel"
SLOT = Struct(">qqqii")
SLOT_BYTES = SLOT.size
#: TimerMessageStore.TIMER_WHEEL_TTL_DAY, TIMER_BLANK_SLOTS
HALF_SLOTS = 7 * 24 * 3600
SPARE_SLOTS = 60
SLOTS = 2 * HALF_SLOTS
_WHEEL_BYTES = SLOTS * SLOT_BYTES
#: slots that one call of `next_used` looks at
LOOK_SLOTS = 4096
_NUMBER = Struct(">q24x")


class Slot(NamedTuple):
    """`messages` is how many it has, less one for each that is taken back."""

    first: int
    last: int
    messages: int


EMPTY = Slot(NONE, NONE, 0)


def slot_of_due(due_ms: int, precision_ms: int) -> int:
    """The time of the slot in which a message waits (util/HookUtils.java): what becomes its TIMER_OUT_MS."""
    return (due_ms - 1) // precision_ms * precision_ms


class TimerWheel:
    """Owner: `store.timerfiles`. `slot`, `next_used` and `write` may run in threads; slots are numbered, not timed."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._file: File
        #: changed since the last `take`, and being written
        self._changed: dict[int, Slot] = {}
        self._writing: dict[int, Slot] = {}

    def open(self) -> bool:
        """Whether it was there, of the right length. Raises OSError."""
        self._file = self._disk.create(PATH)
        if self._file.size() == _WHEEL_BYTES:
            return True
        self.clear()
        return False

    def clear(self) -> None:
        """Empty all slots. Raises OSError."""
        self._changed, self._writing = {}, {}
        self._file.truncate(0)
        self._file.truncate(_WHEEL_BYTES)
        self._file.fdatasync()
        self._disk.sync_directory("")

    def close(self) -> None:
        self._file.close()

    def slot(self, number: int, *, wait: bool = False) -> Slot:
        """Raises Cold unless it may `wait` for the disk."""
        slot = self._changed.get(number) or self._writing.get(number)
        if slot is not None:
            return slot
        found, first, last, count = self._stored(number, wait)
        return Slot(first, last, count) if found == number and last >= 0 else EMPTY

    def _stored(self, number: int, wait: bool) -> tuple[int, int, int, int]:
        at = number % SLOTS * SLOT_BYTES
        data = self._file.pread(SLOT_BYTES, at) if wait else self._file.try_pread(SLOT_BYTES, at)
        if data is None:
            raise Cold
        found, first, last, count, _ = SLOT.unpack(data)
        return found, first, last, count

    def put(self, number: int, slot: Slot) -> None:
        self._changed[number] = slot

    def next_used(self, start: int, end: int, *, wait: bool) -> int | None:
        """The first slot in [start, end) with something in it; looks at no more than LOOK_SLOTS."""
        end = min(end, start + LOOK_SLOTS)
        # a thread must not go through what the event loop changes
        kept = min((n for n in chain(tuple(self._changed), tuple(self._writing)) if start <= n < end), default=end)
        while start < kept:
            index = start % SLOTS
            stop = min(kept, start + SLOTS - index)
            size = (stop - start) * SLOT_BYTES
            at = index * SLOT_BYTES
            if self._file.data_from(at) >= at + size:
                start = stop
                continue
            data = self._file.pread(size, at) if wait else self._file.try_pread(size, at)
            if data is None:
                raise Cold
            for number, (found,) in enumerate(_NUMBER.iter_unpack(data), start):
                if found == number:
                    return number
            start = stop
        return kept if kept < end else None

    @property
    def dirty(self) -> bool:
        return bool(self._changed)

    def take(self) -> dict[int, Slot]:
        """What `write` has to write; `written` or `not_written` comes after it."""
        assert not self._writing, "one write at a time"
        self._writing, self._changed = self._changed, {}
        return self._writing

    def write(self, slots: dict[int, Slot]) -> None:
        """Durable on return. Raises OSError."""
        run, start = bytearray(), 0
        for index, number in sorted((number % SLOTS, number) for number in slots):
            at = index * SLOT_BYTES
            if at != start + len(run):
                if run:
                    self._file.pwrite(run, start)
                run, start = bytearray(), at
            slot = slots[number]
            run += SLOT.pack(number if slot.last >= 0 else 0, slot.first, slot.last, slot.messages, 0)
        if run:
            self._file.pwrite(run, start)
            self._file.fdatasync()

    def written(self) -> None:
        self._writing = {}

    def not_written(self) -> None:
        """What was taken has to be written again."""
        self._changed = {**self._writing, **self._changed}
        self._writing = {}
