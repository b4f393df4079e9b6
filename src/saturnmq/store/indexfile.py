"""One index file: a hash table on disk that finds messages by key, byte for byte Apache's.

Big endian. Items are numbered from 1; what stands at item 0 is never used.

    header 40: beginTimestamp 8 | endTimestamp 8 | beginPhyOffset 8 | endPhyOffset 8 | hashSlotCount 4 | indexCount 4
    slots, 4 each: number of the newest item of this slot, 0 for none
    items, 20 each: keyHash 4 | commitLogOffset 8 | seconds after beginTimestamp 4 | number of the slot's item before 4

Times are store times; hashSlotCount counts slots in use; indexCount is the number of the next item. A key is
`topic#key` or, of a tag, `topic#T#tag`; its hash is |String.hashCode|, its slot the remainder by the number of slots.
The seconds of a file's first item count from the end of the file before, as Apache has it; nobody needs them.
Source: store/index/IndexFile.java, IndexHeader.java, IndexService.java.

Items are only ever added. The slots of a file that grows are in memory, in pages made when they are touched; they go to
the disk when the file is full or the store closes. Until then the header says that no slot is in use, which Apache does
not look at: after a crash the slots of such a file are made anew from the items.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from struct import Struct
from typing import TypeAlias

import msgspec

from saturnmq.disk.port import Buffer, Disk, File

DIRECTORY = "index"
HEADER = Struct(">qqqqii")
HEADER_BYTES = HEADER.size
SLOT_BYTES = 4
ITEM = Struct(">iqii")
ITEM_BYTES = ITEM.size

_PAGE_SLOTS = 128
_PAGE_BITS = _PAGE_SLOTS.bit_length() - 1
_PAGE_MASK = _PAGE_SLOTS - 1
_PAGE_BYTES = _PAGE_SLOTS * SLOT_BYTES
_EMPTY_PAGE = bytes(_PAGE_BYTES)
_MAX_SECONDS = 0x7FFFFFFF
#: items that one background job looks at when slots are made anew: a few milliseconds
_ITEMS_PER_JOB = 16_384
#: items that one read brings in: neighbours of a key that is used often are near
_ITEMS_PER_READ = 64

_pack_item = ITEM.pack

#: hash, log position, store time of an item to add
NewItem: TypeAlias = tuple[int, int, int]
#: bytes of a file (size, offset); raises OSError, and Cold when it must not wait for them
Read: TypeAlias = Callable[[int, int], Buffer]
#: of 128 slots each; None: zeros
Pages: TypeAlias = "list[array[int] | None]"

# Java's polynomial hash is a number in base 31. A byte is 31 * a + b with digits a and b, so that int(), which is in C,
# does the arithmetic of both halves.
_DIGITS = b"0123456789abcdefghijklmnopqrstu"
_HIGH = bytes(_DIGITS[byte // 31] for byte in range(256))
_LOW = bytes(_DIGITS[byte % 31] for byte in range(256))
#: int() takes time that grows with the square of the length, and refuses 4300 digits
_LONG_KEY_BYTES = 512


def key_hash(key: bytes) -> int:
    """|String.hashCode| of the UTF-8 text; 0 for the one hash that has no absolute value in 32 bits."""
    if key.isascii() and 0 < len(key) <= _LONG_KEY_BYTES:
        value = int(key.translate(_HIGH), 31) * 31 + int(key.translate(_LOW), 31) & 0xFFFFFFFF
    else:
        value = 0
        for unit in memoryview(key.decode("utf-8", "replace").encode("utf-16-le")).cast("H"):
            value = value * 31 + unit & 0xFFFFFFFF
    return value if value < 0x80000000 else -value & 0x7FFFFFFF


class DamagedIndex(Exception):
    """The file is no index file of this log and these settings. The message says why."""


class Shape(msgspec.Struct, frozen=True):
    """What a file's layout depends on: maxHashSlotNum and maxIndexNum."""

    slots: int
    items: int

    @property
    def items_at(self) -> int:
        return HEADER_BYTES + self.slots * SLOT_BYTES

    @property
    def file_bytes(self) -> int:
        return self.items_at + self.items * ITEM_BYTES

    def item_at(self, index: int) -> int:
        return self.items_at + index * ITEM_BYTES


class IndexFile:
    """Owner: `Index`, on the event loop. `pages` is None while nothing is added: the file is the whole truth then."""

    def __init__(self, name: str, shape: Shape, begin_ms: int = 0, begin_position: int = 0) -> None:
        """A new file, not yet on disk. Until it has an item it begins where the one before it ends."""
        self.path = f"{DIRECTORY}/{name}"
        self.shape = shape
        self.begin_ms = self.end_ms = begin_ms
        self.begin_position = self.end_position = begin_position
        #: of the file without items: after a crash Apache goes on behind the end position of the last file
        self._first_header = HEADER.pack(begin_ms, begin_ms, begin_position, begin_position, 0, 1)
        self.slots_used = 0
        #: of the next item
        self.count = 1
        self.pages: Pages | None = _no_pages(shape)
        #: the items [tail_index, count), which are not, or not known to be, in the file
        self.tail, self.tail_index = bytearray(), 1
        #: the header on disk counts so many items, durable as these are; 0: there is no file
        self.synced = 0
        #: a crash left it: the slots on disk are not those of the items
        self.stale = False
        self._file: File | None = None

    @classmethod
    def load(cls, disk: Disk, name: str, shape: Shape) -> IndexFile:
        """A file on disk, with nothing in memory. Raises DamagedIndex, OSError."""
        loaded = cls(name, shape)
        file = loaded.file(disk)
        try:
            if file.size() != shape.file_bytes:
                raise DamagedIndex(f"has {file.size()} bytes, not {shape.file_bytes} (maxHashSlotNum, maxIndexNum)")
            (
                loaded.begin_ms, loaded.end_ms, loaded.begin_position, loaded.end_position, loaded.slots_used, count,
            ) = HEADER.unpack(file.pread(HEADER_BYTES, 0))  # fmt: skip
            if not 0 <= count <= shape.items:
                raise DamagedIndex(f"says that it has {count} items of {shape.items}")
            loaded.count = loaded.tail_index = loaded.synced = max(1, count)
            loaded.pages, loaded.stale = None, loaded.slots_used == 0 and not loaded.empty
            loaded._check_ends(file)
        finally:
            loaded.close()
        return loaded

    def _check_ends(self, file: File) -> None:
        for index, position in ((1, self.begin_position), (self.count - 1, self.end_position)):
            if not self.empty and ITEM.unpack(file.pread(ITEM_BYTES, self.shape.item_at(index)))[1] != position:
                raise DamagedIndex(f"has another item {index} than its header says")

    @property
    def empty(self) -> bool:
        return self.count == 1

    @property
    def full(self) -> bool:
        return self.count >= self.shape.items

    def file(self, disk: Disk) -> File:
        """For reading on the event loop what is on disk. Raises OSError."""
        if self._file is None:
            self._file = disk.open(self.path)
        return self._file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    # -------------------------------------------------------------------------------------------- adding

    def put(self, items: Sequence[NewItem], start: int) -> int:
        """Add items from `start` on, as many as there is room for. Gives where to go on."""
        pages, slots, count = self.pages, self.shape.slots, self.count
        assert pages is not None
        end = min(len(items), start + self.shape.items - count)
        used, packed = 0, []
        seconds, seconds_of = 0, -1
        for hash_, position, stored_ms in items[start:end]:
            slot = hash_ % slots
            page = pages[slot >> _PAGE_BITS]
            if page is None:
                page = pages[slot >> _PAGE_BITS] = array("i", _EMPTY_PAGE)
            slot &= _PAGE_MASK
            previous = page[slot]
            page[slot] = count
            if not previous:
                used += 1
            if stored_ms != seconds_of:
                seconds = self._seconds(stored_ms)
                if count == 1:
                    self.begin_position, self.begin_ms = position, stored_ms
                else:
                    seconds_of = stored_ms
            packed.append(_pack_item(hash_, position, seconds, previous))
            count += 1
        if packed:
            self.tail += b"".join(packed)
            self.count = count
            self.slots_used += used
            _, self.end_position, self.end_ms = items[end - 1]
        return end

    def _seconds(self, stored_ms: int) -> int:
        if self.begin_ms <= 0:
            return 0
        return min(max(0, (stored_ms - self.begin_ms) // 1000), _MAX_SECONDS)

    def _header(self, slots_used: int) -> bytes:
        return HEADER.pack(self.begin_ms, self.end_ms, self.begin_position, self.end_position, slots_used, self.count)

    def last_positions(self, disk: Disk) -> Iterator[int]:
        """Log positions of the items on disk, newest first. Raises OSError."""
        end = self.tail_index
        while end > 1:
            first = max(1, end - _ITEMS_PER_READ)
            items = self.file(disk).pread((end - first) * ITEM_BYTES, self.shape.item_at(first))
            yield from reversed([position for _, position, _, _ in ITEM.iter_unpack(items)])
            end = first

    # ------------------------------------------------------------------------------------------- to disk

    def take(self, *, sync: bool, slots: bool) -> IndexWrite | None:
        """What must be written, None when nothing must: new items; `sync`: durable, with the header; `slots`: with the
        slots, and nothing may be added until it is `wrote`."""
        if self.pages is None or not (self.tail or slots or (sync and self.synced < self.count)):
            return None
        return IndexWrite(
            index_file=self,
            new=self._first_header if self.synced == 0 else b"",
            tail_index=self.tail_index,
            tail=bytes(self.tail),
            count=self.count,
            growing=self._header(0) if sync or slots else b"",
            header=self._header(self.slots_used),
            pages=self.pages if slots else None,
        )

    def has_slots(self, maker: SlotMaker) -> None:
        """They were made anew."""
        self.pages, self.slots_used = maker.pages, maker.slots_used

    def wrote(self, write: IndexWrite) -> None:
        """That is done."""
        del self.tail[: len(write.tail)]
        self.tail_index += len(write.tail) // ITEM_BYTES
        if write.growing:
            self.synced = write.count
        if write.pages is not None:
            self.pages, self.stale = None, False


class IndexWrite(msgspec.Struct, kw_only=True):
    """Work for a thread: what it needs was copied, or nobody changes it meanwhile."""

    index_file: IndexFile
    #: the header that the file begins with, as long as its name is not known to be durable; then empty
    new: bytes
    tail_index: int
    tail: bytes
    count: int
    #: the header as long as the slots are not on disk; empty: no sync
    growing: bytes
    #: the header when they are
    header: bytes
    pages: Pages | None

    def run(self, disk: Disk) -> None:
        """Items are durable before the header that counts them, slots before the one that vouches for them. Raises
        OSError."""
        shape, path = self.index_file.shape, self.index_file.path
        if self.new:
            disk.mkdir(DIRECTORY)
        file = disk.create(path) if self.new else disk.open(path)
        try:
            if self.new and file.size() != shape.file_bytes:
                file.truncate(shape.file_bytes)
                file.pwrite(self.new, 0)
            if self.tail:
                file.pwrite(self.tail, shape.item_at(self.tail_index))
            if self.growing:
                _sync_under(file, self.growing)
            if self.pages is not None:
                for offset, run in _runs(self.pages, shape.slots * SLOT_BYTES):
                    file.pwrite(run, HEADER_BYTES + offset)
                _sync_under(file, self.header)
        finally:
            file.close()
        if self.new and self.growing:
            disk.sync_directory(DIRECTORY)


def _sync_under(file: File, header: bytes) -> None:
    file.fdatasync()
    file.pwrite(header, 0)
    file.fdatasync()


# ------------------------------------------------------------------------------------------------- slots in memory


def _no_pages(shape: Shape) -> Pages:
    return [None] * -(-shape.slots // _PAGE_SLOTS)


def read_pages(disk: Disk, path: str, shape: Shape) -> Pages:
    """The slots on disk. May wait for the disk. Raises OSError."""
    file = disk.open(path)
    try:
        slots = file.pread(shape.slots * SLOT_BYTES, HEADER_BYTES)
    finally:
        file.close()
    pages: Pages = []
    for at in range(0, len(slots), _PAGE_BYTES):
        page = slots[at : at + _PAGE_BYTES]
        pages.append(_swapped(array("i", page + bytes(_PAGE_BYTES - len(page)))) if any(page) else None)
    return pages


def _runs(pages: Pages, size: int) -> Iterator[tuple[int, bytes]]:
    """The pages in use as they stand in the file, neighbours together, each from which byte of the slots on."""
    run: list[bytes] = []
    for number, page in enumerate((*pages, None)):
        if page is not None:
            run.append(_swapped(page[:]).tobytes())
        elif run:
            start = (number - len(run)) * _PAGE_BYTES
            yield start, b"".join(run)[: size - start]
            run = []


def _swapped(page: array[int]) -> array[int]:
    """From the file's order of bytes to ours, or back."""
    if sys.byteorder == "little":
        page.byteswap()
    return page


class SlotMaker:
    """Makes the slots of a file anew from its durable items, and sees whether these belong together. Goes from one
    background job to the next, so that none holds up others for long."""

    def __init__(self, index_file: IndexFile) -> None:
        self.pages = _no_pages(index_file.shape)
        self.slots_used = 0
        self._path, self._shape, self._end = index_file.path, index_file.shape, index_file.count
        self._next = 1
        self._position = 0

    @property
    def done(self) -> bool:
        return self._next == self._end

    def step(self, disk: Disk) -> None:
        """Some more items. May wait for the disk. Raises DamagedIndex, OSError."""
        shape, pages, position, index = self._shape, self.pages, self._position, self._next
        size = min(_ITEMS_PER_JOB, self._end - index) * ITEM_BYTES
        file = disk.open(self._path)
        try:
            data = file.pread(size, shape.item_at(index))
        finally:
            file.close()
        if len(data) < size:
            raise DamagedIndex("is cut off")
        for hash_, item_position, _, previous in ITEM.iter_unpack(data):
            slot = hash_ % shape.slots
            page = pages[slot >> _PAGE_BITS]
            if page is None:
                page = pages[slot >> _PAGE_BITS] = array("i", _EMPTY_PAGE)
            if item_position < position or page[slot & _PAGE_MASK] != previous:
                raise DamagedIndex(f"has an item {index} that does not follow from those before it")
            if not previous:
                self.slots_used += 1
            page[slot & _PAGE_MASK] = index
            position, index = item_position, index + 1
        self._position, self._next = position, index


# ------------------------------------------------------------------------------------------------------ looking


class Chain:
    """The items of one slot in one file, as they are now: for the event loop, or copied for a thread."""

    def __init__(self, index_file: IndexFile, hash_: int, read: Read, *, copy: bool) -> None:
        self._read, self._shape, self._hash = read, index_file.shape, hash_
        self._slot = hash_ % index_file.shape.slots
        self._begin_ms, self._count = index_file.begin_ms, index_file.count
        self._tail_index = index_file.tail_index
        self._tail: Buffer = bytes(index_file.tail) if copy else index_file.tail
        #: None: on disk
        self._newest: int | None = None
        if index_file.pages is not None:
            page = index_file.pages[self._slot >> _PAGE_BITS]
            self._newest = page[self._slot & _PAGE_MASK] if page is not None else 0
        self._first, self._items = 0, b""

    def positions(self, begin_ms: int, end_ms: int) -> Iterator[int | None]:
        """Log positions that may have the hash's key and a store time in [begin_ms, end_ms], newest first: times are
        known to a second only, and other keys have this hash too. None: a step without a find."""
        slot_at = HEADER_BYTES + self._slot * SLOT_BYTES
        newest = self._newest
        index = int.from_bytes(self._read(SLOT_BYTES, slot_at), "big") if newest is None else newest
        before = self._count
        while 0 < index < before:  # a damaged file must not lead in circles
            hash_, position, seconds, previous = self._item(index)
            stored_ms = self._begin_ms + (seconds * 1000 if index > 1 else 0)
            if stored_ms + 999 < begin_ms or hash_ % self._shape.slots != self._slot:
                return
            yield position if hash_ == self._hash and stored_ms <= end_ms else None
            before, index = index, previous

    def _item(self, index: int) -> tuple[int, int, int, int]:
        at = index - self._tail_index
        if at >= 0:
            return ITEM.unpack_from(self._tail, at * ITEM_BYTES)
        at = index - self._first
        if not 0 <= at < len(self._items) // ITEM_BYTES:
            self._first = first = max(1, index - _ITEMS_PER_READ + 1)
            size = (index + 1 - first) * ITEM_BYTES
            self._items = bytes(self._read(size, self._shape.item_at(first)))
            at = index - first
        return ITEM.unpack_from(self._items, at * ITEM_BYTES)
