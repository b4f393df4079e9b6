"""Do the consume queues hold exactly what the log holds?

The log's records come by in order. The entries that they ask for are kept, queue by queue, until there are many; then
they are compared with the files, a run of bytes at a time. Of a queue only counters stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby

from saturnmq.disk.port import Disk
from saturnmq.store.consumequeue import DIRECTORY, ENTRY, ENTRY_BYTES, FILLER_SIZE
from saturnmq.store.findings import Finding, State, Tell, Totals
from saturnmq.store.scan import Damage, LogFiles, first_data, is_log_name, size_of

#: entries kept in memory, of all queues
MOST_HELD = 1 << 20
_CHUNK_ENTRIES = 64 * 1024
#: of a run that differs, these are told about together
_FEW_ENTRIES = 4096
_NO_ENTRY = bytes(ENTRY_BYTES)
#: files that tell the size of all
_SAMPLES = 64

_MADE_ANEW = "stop the server and move consumequeue away: a start makes it anew from the commit log"
_UNNOTICED = f"a start does not notice. {_MADE_ANEW[0].upper()}{_MADE_ANEW[1:]}"
_HEALED = "a start makes them from the commit log"
_LOST = "no start brings them back: only a replica or a copy can"


class _Queue:
    """One queue, as the log tells it."""

    __slots__ = ("before_jump", "directory", "first", "name", "next", "position", "run", "run_offset")

    def __init__(self, topic: str, queue_id: int, offset: int) -> None:
        self.name = f"{topic} queue {queue_id}"
        self.directory = f"{DIRECTORY}/{topic}/{queue_id}"
        #: offsets [first, next) stand in the log
        self.first = self.next = offset
        #: what `next` was before the last offset that did not follow; -1: none
        self.before_jump = -1
        #: log position of the last record
        self.position = -1
        #: entries from `run_offset` on that are to be compared
        self.run, self.run_offset = bytearray(), offset


class QueueCheck:
    """Owner: `Verifier`. `record` for each queued record in order, then `finish` once."""

    def __init__(
        self, disk: Disk, log: LogFiles, state: State, file_size: int | None, tell: Tell, totals: Totals, *, there: bool
    ) -> None:
        """`there`: the queues are files, which can be looked at; else only the log's offsets are."""
        self._disk, self._log, self._state, self._tell, self._totals = disk, log, state, tell, totals
        self._there = there
        self._file_size = file_size or _file_size(disk)
        self._per_file = self._file_size // ENTRY_BYTES
        self._queues: dict[tuple[str, int], _Queue] = {}
        self._held = 0
        #: queue → entries that the server, or a start, will write
        self._unwritten: dict[str, int] = {}
        #: damaged parts of the log so far
        self._damages: list[Damage] = []
        #: what a start has put in place of damage: log position → size
        self._fillers: dict[int, int] = {}

    def damage(self, damage: Damage) -> None:
        """The log holds no records there."""
        self._damages.append(damage)

    def filler(self, position: int, size: int) -> None:
        """A record that a start has put where damage was; entries of lost messages lead to it."""
        self._fillers[position] = size

    def ends(self) -> Iterator[tuple[str, int, int]]:
        """Topic, queue id and next offset of every queue that the log knows."""
        return ((topic, queue_id, queue.next) for (topic, queue_id), queue in self._queues.items())

    # ------------------------------------------------------------------------------------------- what is asked for

    def record(self, topic: str, queue_id: int, offset: int, position: int, size: int, code: int) -> None:
        queue = self._queues.get((topic, queue_id))
        if queue is None:
            queue = self._queues[topic, queue_id] = _Queue(topic, queue_id, offset)
        if offset != queue.next and not self._follows(queue, offset, position):
            return
        queue.run += ENTRY.pack(position, size, code)
        queue.next, queue.position = offset + 1, position
        self._held += 1
        if self._held >= MOST_HELD:
            for each in self._queues.values():
                self._compare(each)
            self._held = 0

    def _follows(self, queue: _Queue, offset: int, position: int) -> bool:
        """Say that an offset is not the next one; whether to go on from it."""
        path, at = self._log.path(position), position % self._log.file_size
        if offset < queue.next and offset != queue.before_jump:
            what = f"{queue.name} has the offset {offset} a second time"
            self._damage(path, at, what, "a start that looks at this part of the log keeps the first one")
            return False
        if offset > queue.next:
            self._skips(queue, offset, position)
        else:
            self._damage(path, at, f"{queue.name} goes back to the offset {offset}", "readers may miss messages")
        self._compare(queue)
        queue.before_jump, queue.run_offset = queue.next, offset
        return True

    def _skips(self, queue: _Queue, offset: int, position: int) -> None:
        """The log has no records of the queue between its last one and this one."""
        path, at = self._log.path(position), position % self._log.file_size
        what = f"{queue.name} has no messages from offset {queue.next} to {offset - 1}"
        if any(queue.position < filler < position for filler in self._fillers):
            what += ": they stood where a start has put a filler"
            self._tell(Finding(False, path, at, what, f"readers pass over them. {_LOST[0].upper()}{_LOST[1:]}"))
        elif any(queue.position < damage.position < position for damage in self._damages):
            self._damage(path, at, f"{what}: they stood in a damaged part of the log", _LOST)
        else:
            self._damage(path, at, what, "readers pass over them")
        if self._there:
            for of_entry, entry in self._entries(queue.directory, queue.next, min(offset, queue.next + _CHUNK_ENTRIES)):
                at_position, size, _ = ENTRY.unpack(entry)
                inside = any(damage.position <= at_position < damage.end for damage in self._damages)
                if entry != _NO_ENTRY and not inside and not self._leads_to_filler(at_position, size):
                    what = f"leads to log position {at_position}, where no record of it stands"
                    self._old(queue.directory, queue.name, of_entry, what)

    def _leads_to_filler(self, position: int, size: int) -> bool:
        return size == FILLER_SIZE or self._fillers.get(position) == size

    # --------------------------------------------------------------------------------------------- what is there

    def _compare(self, queue: _Queue) -> None:
        expected, offset = bytes(queue.run), queue.run_offset
        queue.run.clear()
        queue.run_offset = queue.next
        if not self._there or self._read(queue.directory, offset, len(expected) // ENTRY_BYTES) == expected:
            return
        for at in range(0, len(expected), _FEW_ENTRIES * ENTRY_BYTES):
            some = expected[at : at + _FEW_ENTRIES * ENTRY_BYTES]
            self._compare_each(queue, offset + at // ENTRY_BYTES, some)

    def _compare_each(self, queue: _Queue, offset: int, expected: bytes) -> None:
        count = len(expected) // ENTRY_BYTES
        found = self._read(queue.directory, offset, count)
        kinds = ((index, self._kind(expected, found, index)) for index in range(count))
        for (kind, healed), group in groupby(kinds, key=lambda pair: pair[1]):
            indexes = [index for index, _ in group]
            if kind:
                self._differs(queue, kind, healed, offset + indexes[0], len(indexes), found[indexes[0] * ENTRY_BYTES :])

    def _kind(self, expected: bytes, found: bytes, index: int) -> tuple[str, bool]:
        """How an entry differs, nothing when it does not, and whether a start makes it anew."""
        at = index * ENTRY_BYTES
        wanted, there = expected[at : at + ENTRY_BYTES], found[at : at + ENTRY_BYTES]
        if there == wanted:
            return "", False
        healed = self._state.crashed and int.from_bytes(wanted[:8], "big") >= self._state.rebuilt_from
        if there == _NO_ENTRY:
            return "missing", healed or self._state.live
        return "wrong", healed

    def _differs(self, queue: _Queue, kind: str, healed: bool, offset: int, count: int, found: bytes) -> None:
        if healed:
            self._unwritten[queue.name] = self._unwritten.get(queue.name, 0) + count
            return
        which = f"entry {offset}" if count == 1 else f"{count} entries from {offset} on"
        if kind == "missing":
            what = f"{queue.name} has no {which}" if count == 1 else f"{queue.name} lacks {which}"
        else:
            position, size, code = ENTRY.unpack_from(found)
            what = f"{queue.name} has a wrong {which}" if count == 1 else f"{queue.name} has wrong {which}"
            what += f" (position {position}, size {size}, tags code {code})"
        self._damage(self._path(queue.directory, offset), offset % self._per_file * ENTRY_BYTES, what, _UNNOTICED)

    def _path(self, directory: str, offset: int) -> str:
        return f"{directory}/{offset // self._per_file * self._file_size:020d}"

    def _read(self, directory: str, offset: int, count: int) -> bytes:
        """Entries, zeros where no file is."""
        parts = []
        while count:
            some = min(count, self._per_file - offset % self._per_file)
            parts.append(self._read_file(self._path(directory, offset), offset % self._per_file, some))
            offset, count = offset + some, count - some
        return b"".join(parts)

    def _read_file(self, path: str, index: int, count: int) -> bytes:
        try:
            file = self._disk.open(path)
        except FileNotFoundError:
            return bytes(count * ENTRY_BYTES)
        try:
            return file.pread(count * ENTRY_BYTES, index * ENTRY_BYTES).ljust(count * ENTRY_BYTES, b"\0")
        finally:
            file.close()

    # ------------------------------------------------------------------------------------------------- the rest

    def finish(self, log_end: int) -> None:
        """Compare what is still kept, and look at what the log did not ask for."""
        for queue in self._queues.values():
            self._compare(queue)
        if not self._there:
            return
        if self._unwritten:
            what = f"{sum(self._unwritten.values())} entries of {len(self._unwritten)} queues are not written yet"
            effect = "the server will write them" if self._state.live else _HEALED
            self._tell(Finding(False, DIRECTORY, None, what, effect))
        names = {queue.directory: queue for queue in self._queues.values()}
        for topic in self._disk.list(DIRECTORY):
            for queue_id in self._disk.list(f"{DIRECTORY}/{topic}"):
                directory = f"{DIRECTORY}/{topic}/{queue_id}"
                if queue_id.isdigit():
                    self._check_queue(directory, f"{topic} queue {queue_id}", names.get(directory), log_end)
                else:
                    self._stray(directory)

    def _check_queue(self, directory: str, name: str, queue: _Queue | None, log_end: int) -> None:
        self._totals.queues += 1
        starts = self._check_files(directory, name)
        if not starts:
            return
        begin, end = starts[0], starts[-1] + self._per_file
        if queue is None:
            count, stop = self._check_old(directory, name, begin, end, log_end)
        else:
            count, stop = self._check_old(directory, name, begin, min(queue.first, end), log_end)
            if stop < min(queue.first, end):
                self._hole(directory, name, stop)
            count, stop = count + queue.next - queue.first, queue.next
        self._totals.entries += count
        for start in starts:
            if start + self._per_file > stop:
                self._check_behind(directory, name, start, max(0, stop - start), log_end)

    def _check_files(self, directory: str, name: str) -> list[int]:
        """Offsets of the first entries of the queue's files."""
        starts: list[int] = []
        for file_name in self._disk.list(directory):
            path = f"{directory}/{file_name}"
            if not is_log_name(file_name) or int(file_name) % self._file_size:
                self._stray(path)
                continue
            size = size_of(self._disk, path)
            self._totals.files += 1
            self._totals.bytes += size
            if size != self._file_size:
                what = f"has {size} bytes, other files of queues have {self._file_size}"
                effect = "a start sets it right" if self._state.crashed else _UNNOTICED
                self._tell(Finding(not self._state.crashed, path, None, what, effect))
            start = int(file_name) // ENTRY_BYTES
            if starts and start != starts[-1] + self._per_file:
                missing = self._path(directory, starts[-1] + self._per_file)
                # a crash may lose the name of a file and not that of the next; lost entries are told of one by one
                effect = _HEALED if self._state.crashed else f"a start refuses the queue. {_MADE_ANEW}"
                self._tell(Finding(not self._state.crashed, missing, None, f"{name} lacks this file", effect))
            starts.append(start)
        return starts

    def _stray(self, path: str) -> None:
        effect = (
            f"a start ignores it, or refuses the queue: move it away, or set mappedFileSizeConsumeQueue ({_MADE_ANEW})"
        )
        self._damage(path, None, f"is no part of a queue with files of {self._file_size} bytes", effect)

    def _check_old(self, directory: str, name: str, begin: int, end: int, log_end: int) -> tuple[int, int]:
        """Entries from `begin` to `end` are of messages that the log has lost or deleted; gives how many there are, and
        the offset of the first one that is empty."""
        last, count = -1, 0
        for offset, entry in self._entries(directory, begin, end):
            position, size, _ = ENTRY.unpack(entry)
            if entry == _NO_ENTRY:
                return count, offset
            if self._leads_to_filler(position, size):
                continue
            count += 1
            if size <= 0 or position <= last:
                what = f"does not follow the one before it (position {position}, size {size})"
                self._old(directory, name, offset, what)
            elif position >= log_end:
                self._ahead(directory, name, offset, position, log_end)
            elif position >= self._log.first and not any(d.position <= position < d.end for d in self._damages):
                self._old(directory, name, offset, f"leads to log position {position}, where no record of it stands")
            last = max(last, position)
        return count, end

    def _hole(self, directory: str, name: str, offset: int) -> None:
        """A start that makes queues anew from the whole log leaves holes when it is cut off."""
        if self._state.crashed and self._state.rebuilt_from <= self._log.first:
            what = f"entry {offset} of {name} is empty, with others behind it"
            path, at = self._path(directory, offset), offset % self._per_file * ENTRY_BYTES
            self._tell(Finding(False, path, at, what, _HEALED))
        else:
            self._old(directory, name, offset, "is empty, with others behind it")

    def _old(self, directory: str, name: str, offset: int, what: str) -> None:
        at = offset % self._per_file * ENTRY_BYTES
        self._damage(self._path(directory, offset), at, f"entry {offset} of {name} {what}", _UNNOTICED)

    def _entries(self, directory: str, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
        while begin < end:
            data = self._read(directory, begin, min(_CHUNK_ENTRIES, end - begin))
            for at in range(0, len(data), ENTRY_BYTES):
                yield begin, data[at : at + ENTRY_BYTES]
                begin += 1

    def _check_behind(self, directory: str, name: str, start: int, index: int, log_end: int) -> None:
        """Nothing may stand in this file from that entry on, unless it leads to fillers."""
        path = self._path(directory, start)
        while (found := self._data(path, index * ENTRY_BYTES)) is not None:
            index = found // ENTRY_BYTES
            position, size, _ = ENTRY.unpack(self._read_file(path, index, 1))
            if self._leads_to_filler(position, size):
                index += 1
                continue
            if position >= log_end and size > 0:
                self._ahead(directory, name, start + index, position, log_end)
            elif not any(damage.position <= position < damage.end for damage in self._damages):
                self._old(directory, name, start + index, "stands behind the last one")
            return

    def _data(self, path: str, offset: int) -> int | None:
        file = self._disk.open(path)
        try:
            return first_data(file, offset)
        finally:
            file.close()

    def _ahead(self, directory: str, name: str, offset: int, position: int, log_end: int) -> None:
        """Apache's broker writes entries before the log is flushed; ours never does."""
        if self._state.live:
            return
        self._tell(
            Finding(
                not self._state.crashed,
                self._path(directory, offset),
                offset % self._per_file * ENTRY_BYTES,
                f"entry {offset} of {name} leads to log position {position}, behind the log's end at {log_end}",
                "a start cuts the queue there",
            )
        )

    def _damage(self, path: str, at: int | None, what: str, effect: str) -> None:
        self._tell(Finding(True, path, at, what, effect))


def _file_size(disk: Disk) -> int:
    """What most of the first queues' files have."""
    sizes: Counter[int] = Counter()
    for topic in disk.list(DIRECTORY):
        for queue_id in disk.list(f"{DIRECTORY}/{topic}"):
            directory = f"{DIRECTORY}/{topic}/{queue_id}"
            for name in disk.list(directory):
                if is_log_name(name) and (size := size_of(disk, f"{directory}/{name}")):
                    sizes[size // ENTRY_BYTES * ENTRY_BYTES] += 1
            if sizes.total() >= _SAMPLES:
                break
    return max(ENTRY_BYTES, sizes.most_common(1)[0][0]) if sizes else ENTRY_BYTES
