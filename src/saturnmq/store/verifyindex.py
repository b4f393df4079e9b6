"""Is the index of messages by key right in itself, and does it hold what the log holds?

Its items stand in the log's order. So they are read once, beside the log: each file's chains, slots and header are made
anew from its items and compared, and each record is asked whether its keys are there. The slots of one file are in
memory.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from saturnmq.disk.port import Disk, File
from saturnmq.kernel.config import StoreConfig
from saturnmq.store.findings import Finding, State, Tell, Totals
from saturnmq.store.indexfile import DIRECTORY, HEADER, HEADER_BYTES, ITEM, ITEM_BYTES, SLOT_BYTES, Shape
from saturnmq.store.scan import Damage, size_of

_CHUNK_ITEMS = 64 * 1024
_MOST_SECONDS = 0x7FFFFFFF
#: what a file of another size is searched for
_MOST_GUESSED_SLOTS = 100_000

_MADE_ANEW = "stop the server and move index away: a start makes it anew from the commit log"
_UNNOTICED = f"a start does not notice, and queries by key miss messages. {_MADE_ANEW[0].upper()}{_MADE_ANEW[1:]}"
_DROPPED = "a start makes this file and those behind it anew from the commit log"


class _Header(NamedTuple):
    begin_ms: int
    end_ms: int
    begin: int
    end: int
    slots_used: int
    next_item: int


class _Item(NamedTuple):
    path: str
    at: int
    number: int
    hash: int
    position: int
    seconds: int
    header: _Header


class IndexCheck:
    """Owner: `Verifier`. `record` for each record in order, then `finish` once."""

    def __init__(
        self, disk: Disk, config: StoreConfig, state: State, log_first: int, tell: Tell, totals: Totals
    ) -> None:
        self._disk, self._config, self._state = disk, config, state
        self._log_first, self._tell, self._totals = log_first, tell, totals
        self._names = [name for name in disk.list(DIRECTORY) if self._is_index_name(name)]
        self.there = bool(self._names)
        #: messages in [begin, end] of the log must be found
        self._begin, self._end = self._range()
        self._items = self._all_items()
        self._item: _Item | None = next(self._items, None)
        self._damages: list[Damage] = []

    def damage(self, damage: Damage) -> None:
        """The log holds no records there."""
        self._damages.append(damage)

    def record(self, position: int, stored_ms: int, hashes: Sequence[int], *, optional: bool) -> None:
        """The record at this log position is found by these keys, the last of which (the tag) Apache before 5.5 leaves
        out; `optional`: it may not be found at all."""
        while self._item is not None and self._item.position < position:
            self._leads_nowhere(self._item)
            self._item = next(self._items, None)
        found = []
        path, at = "", 0
        while self._item is not None and self._item.position == position:
            path, at = self._item.path, self._item.at
            found.append(self._item.hash)
            self._check_time(self._item, stored_ms)
            self._item = next(self._items, None)
        if found == hashes or {*found} in ({*hashes}, {*hashes[:-1]}):
            return
        if found == hashes[: len(found)] and position >= self._end:
            return  # a file became full between its items, and the next one has none yet
        if not found:
            if self._begin <= position <= self._end and not optional:
                self._damage(DIRECTORY, None, f"the message at log position {position} has no items", _UNNOTICED)
        else:
            self._damage(path, at, f"the items of the message at log position {position} are not its keys", _UNNOTICED)

    def finish(self, log_end: int) -> None:
        """What is left leads behind the log."""
        while self._item is not None:
            if self._item.position < log_end:
                self._leads_nowhere(self._item)
            elif not self._state.live:
                what = (
                    f"item {self._item.number} leads to log position {self._item.position}, the log ends at {log_end}"
                )
                self._tell(Finding(not self._state.crashed, self._item.path, self._item.at, what, _DROPPED))
                for _ in self._items:
                    pass
                return
            self._item = next(self._items, None)

    def _leads_nowhere(self, item: _Item) -> None:
        inside = any(damage.position <= item.position < damage.end for damage in self._damages)
        if item.position >= self._log_first and not inside:
            what = f"item {item.number} leads to log position {item.position}, where no record begins"
            self._damage(item.path, item.at, what, _UNNOTICED)

    def _check_time(self, item: _Item, stored_ms: int) -> None:
        """A file's first item counts from the end of the file before, as Apache has it; nobody reads that."""
        header = item.header
        seconds = max(0, min((stored_ms - header.begin_ms) // 1000, _MOST_SECONDS))
        if item.number > 1 and item.seconds != seconds:
            what = f"item {item.number} was stored {item.seconds} s after the file's begin, its record {seconds} s"
            self._damage(item.path, item.at, what, _UNNOTICED)
        if item.number == 1 and stored_ms != header.begin_ms:
            what = f"its header says that it begins at {header.begin_ms}, its first record says {stored_ms}"
            self._damage(item.path, 0, what, _UNNOTICED)
        if item.number == header.next_item - 1 and stored_ms != header.end_ms and not self._state.live:
            what = f"its header says that it ends at {header.end_ms}, its last record says {stored_ms}"
            self._damage(item.path, 8, what, _UNNOTICED)

    # ------------------------------------------------------------------------------------------------ the files

    def _is_index_name(self, name: str) -> bool:
        if len(name) == 17 and name.isdigit():
            return True
        self._damage(f"{DIRECTORY}/{name}", None, "is no index file", "a start ignores it")
        return False

    def _range(self) -> tuple[int, int]:
        headers = [
            header for name in self._names if (header := self._header(name)) is not None and header.next_item > 1
        ]
        return (headers[0].begin, headers[-1].end) if headers else (0, -1)

    def _header(self, name: str) -> _Header | None:
        file = self._disk.open(f"{DIRECTORY}/{name}")
        try:
            head = file.pread(HEADER_BYTES, 0)
        finally:
            file.close()
        return _Header(*HEADER.unpack(head)) if len(head) == HEADER_BYTES else None

    def _all_items(self) -> Iterator[_Item]:
        """In the order of the log; one that breaks it is told of and left out."""
        held: _Item | None = None
        last = -1
        for name in self._names:
            for item in self._items_of(f"{DIRECTORY}/{name}", self._header(name)):
                if held is not None and item.position < last:
                    self._out_of_order(item)
                    continue
                if held is not None and item.position < held.position:
                    self._out_of_order(held)
                elif held is not None:
                    last = held.position
                    yield held
                held = item
        if held is not None:
            yield held

    def _out_of_order(self, item: _Item) -> None:
        what = f"item {item.number} leads to log position {item.position}, out of order"
        self._damage(item.path, item.at, what, _UNNOTICED)

    def _items_of(self, path: str, header: _Header | None) -> Iterator[_Item]:
        self._totals.files += 1
        self._totals.bytes += size_of(self._disk, path)
        if header is None and self._state.crashed:
            self._tell(Finding(False, path, None, "a crash has left this file without its header", _DROPPED))
        elif header is None or header.next_item > 1:
            shape = find_shape(self._disk, path, Shape(self._config.max_hash_slot_num, self._config.max_index_num))
            if header is None or shape is None or header.next_item > shape.items:
                what = "its size or header is not that of an index file of maxHashSlotNum and maxIndexNum"
                self._damage(path, None, what, _DROPPED)
            else:
                yield from self._file_items(path, header, shape)

    def _file_items(self, path: str, header: _Header, shape: Shape) -> Iterator[_Item]:
        slots = array("i", bytes(shape.slots * SLOT_BYTES))
        used, first, last = 0, -1, -1
        for number, (hash_, position, seconds, previous) in self._raw_items(path, header.next_item, shape):
            at = shape.item_at(number)
            slot = hash_ % shape.slots
            if previous != slots[slot]:
                self._damage(path, at, f"item {number} does not lead to the one before it in its slot", _DROPPED)
            used += not slots[slot]
            slots[slot] = number
            first, last = (position if number == 1 else first), position
            self._totals.index_items += 1
            yield _Item(path, at, number, hash_, position, seconds, header)
        if (first, last) != (header.begin, header.end):
            what = (
                f"its header says that it leads from {header.begin} to {header.end}, its items from {first} to {last}"
            )
            self._damage(path, 16, what, _DROPPED)
        self._check_slots(path, header, slots, used)

    def _raw_items(self, path: str, count: int, shape: Shape) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
        file = self._disk.open(path)
        try:
            number = 1
            while number < count:
                some = min(_CHUNK_ITEMS, count - number)
                for item in ITEM.iter_unpack(file.pread(some * ITEM_BYTES, shape.item_at(number))):
                    yield number, item
                    number += 1
        finally:
            file.close()

    def _check_slots(self, path: str, header: _Header, slots: array[int], used: int) -> None:
        """A header that counts no slots says that they are not on disk yet; what a crash left of them is made anew."""
        if (
            self._state.live
            or header.slots_used == 0
            or (self._state.crashed and header.end_ms >= self._state.index_ms)
        ):
            return
        if header.slots_used != used:
            what = f"its header says that {header.slots_used} slots are in use, {used} are"
            self._damage(path, 32, what, _UNNOTICED)
        if sys.byteorder == "little":
            slots.byteswap()
        there = self._slots(path, len(slots))
        if there != slots:
            slot = next(index for index, (one, other) in enumerate(zip(there, slots, strict=True)) if one != other)
            self._damage(
                path, HEADER_BYTES + slot * SLOT_BYTES, f"slot {slot} does not lead to its newest item", _UNNOTICED
            )

    def _slots(self, path: str, count: int) -> array[int]:
        file = self._disk.open(path)
        try:
            return array("i", file.pread(count * SLOT_BYTES, HEADER_BYTES))
        finally:
            file.close()

    def _damage(self, path: str, at: int | None, what: str, effect: str) -> None:
        self._tell(Finding(True, path, at, what, effect))


def find_shape(disk: Disk, path: str, usual: Shape) -> Shape | None:
    """The shape of a file that has items. When its size is not the usual one, its items tell how many slots there are:
    the first and the last lead to where the header says, and the last one's slot to it. Raises OSError."""
    file = disk.open(path)
    try:
        size, head = file.size(), file.pread(HEADER_BYTES, 0)
        if size == usual.file_bytes or len(head) < HEADER_BYTES:
            return usual if size == usual.file_bytes else None
        header = _Header(*HEADER.unpack(head))
        words = (size - HEADER_BYTES) // SLOT_BYTES
        shapes = [
            shape
            for slots in range(words % 5 or 5, min(words, _MOST_GUESSED_SLOTS), 5)
            if _position_at(file, shape := _shape(size, slots), 1) == header.begin
            and 1 < header.next_item <= shape.items
            and _position_at(file, shape, header.next_item - 1) == header.end
        ]
        sure = [shape for shape in shapes if _newest(file, shape, header.next_item - 1) == header.next_item - 1]
    finally:
        file.close()
    # with too few slots, the zeros before item 1 may pass for an item that leads to 0
    return next(iter(sure or reversed(shapes)), None)


def _shape(size: int, slots: int) -> Shape:
    return Shape(slots, (size - HEADER_BYTES - slots * SLOT_BYTES) // ITEM_BYTES)


def _newest(file: File, shape: Shape, number: int) -> int:
    """What stands in the slot of this item."""
    hash_ = int.from_bytes(file.pread(4, shape.item_at(number)), "big")
    return int.from_bytes(file.pread(SLOT_BYTES, HEADER_BYTES + hash_ % shape.slots * SLOT_BYTES), "big")


def _position_at(file: File, shape: Shape, number: int) -> int:
    raw = file.pread(ITEM_BYTES, shape.item_at(number))
    return int.from_bytes(raw[4:12], "big", signed=True) if len(raw) == ITEM_BYTES else -1
