"""Consume queues: for each queue of a topic, where its messages stand in the log.

An entry is 20 bytes: log position 8 | record size 4 | tags code 8. Files hold 300,000 entries (the configured size),
are named by their first byte in the queue, and have their full length from the start, zero behind the last entry. A
queue that does not begin at a file's start has fillers before its first entry: position 0, size 0x7FFFFFFF, code 0.
Directory `consumequeue/<topic>/<queue id>/`. Source: store/ConsumeQueue.java.

Entries are kept in memory (`tail`) until the background has written them, in batches, once a second. They are given
here only when their records are durable (SYNC_FLUSH) or written (ASYNC_FLUSH), and go to the disk only when those are
durable: no entry on disk is ahead of the log. Nothing is scanned at start: a queue's first use reads its ends.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from struct import Struct
from typing import NamedTuple, TypeAlias

from saturnmq.disk.port import Buffer, Disk, File
from saturnmq.kernel.clock import Background
from saturnmq.kernel.errors import IllegalTopic, SystemBusy
from saturnmq.kernel.later import Later, Reply, after, chain
from saturnmq.store.commitlog import file_name, zero_tail
from saturnmq.store.results import StoreRefused
from saturnmq.store.space import is_no_room

log = logging.getLogger(__name__)

DIRECTORY = "consumequeue"
ENTRY = Struct(">qiq")
ENTRY_BYTES = ENTRY.size
FILLER_SIZE = 0x7FFFFFFF
FILLER = ENTRY.pack(0, FILLER_SIZE, 0)
#: queues that one background job writes or syncs, so that a cold read does not wait behind all of them
QUEUES_PER_JOB = 64
#: more files than this are synced with everything else on their disk: that takes seconds, and each alone minutes
SYNC_ALL_FROM = 1000

#: of a directory's name
MAX_NAME_BYTES = 255

_pack_entry = ENTRY.pack

#: a queue, the offset of the first entry, the entries
Tail: TypeAlias = "tuple[ConsumeQueue, int, bytes]"
#: a queue's directory, the offset of the file's first entry
QueueFile: TypeAlias = tuple[str, int]


class MissingEntries(Exception):
    """A queue lacks entries of messages that are not looked at: only the whole log can tell."""


class ConsumeQueue:
    """One queue. Offsets count messages. Owner: `ConsumeQueues`, on the event loop."""

    __slots__ = (
        "directory", "max_offset", "min_offset", "next_offset", "queue_id", "stored_topic", "tail", "tail_offset",
        "topic",
    )  # fmt: skip

    def __init__(self, topic: str, queue_id: int, min_offset: int, max_offset: int) -> None:
        self.topic, self.queue_id = topic, queue_id
        self.directory = f"{DIRECTORY}/{topic}/{queue_id}"
        #: as it stands in records of version 1
        encoded = topic.encode()
        self.stored_topic = bytes([len(encoded)]) + encoded
        #: readers see [min_offset, max_offset); next_offset is for the next message appended
        self.min_offset, self.max_offset, self.next_offset = min_offset, max_offset, max_offset
        #: the entries [tail_offset, max_offset), which are not, or not known to be, in the files
        self.tail, self.tail_offset = bytearray(), max_offset


class QueueEnds(NamedTuple):
    """What a thread must know of a queue to clean it: the offsets of entries on disk. One that was not used yet has no
    `low`."""

    directory: str
    low: int | None = None
    high: int = 0


class QueueFiles:
    """Where entries stand. For the event loop and for threads, which do not write and sync at the same time."""

    def __init__(self, disk: Disk, file_size: int) -> None:
        #: directories with new directories in them, to be synced
        self._made_in: set[str] = set()
        self.disk = disk
        self.file_size = file_size
        self.per_file = file_size // ENTRY_BYTES

    def forget(self, directory: str) -> None:
        """It is going to be removed: nothing in it or of it is synced any more."""
        self._made_in = {made_in for made_in in self._made_in if not f"{made_in}/".startswith(f"{directory}/")}

    def path(self, queue: ConsumeQueue, offset: int) -> str:
        """Of the file that holds the entry at this offset."""
        return f"{queue.directory}/{offset // self.per_file * self.file_size:020d}"

    def place(self, offset: int) -> int:
        """Where in its file the entry begins."""
        return offset % self.per_file * ENTRY_BYTES

    def read(self, queue: ConsumeQueue, offset: int, count: int) -> bytes:
        """Entries of one file, as many as it holds of those. May wait for the disk. Raises OSError."""
        file = self.disk.open(self.path(queue, offset))
        try:
            return file.pread(min(count, self.per_file - offset % self.per_file) * ENTRY_BYTES, self.place(offset))
        finally:
            file.close()

    def starts(self, directory: str) -> list[int]:
        """Offsets of the first entries of a queue's files. Raises StoreRefused."""
        positions = [int(name) for name in self.disk.list(directory) if len(name) == 20 and name.isdigit()]
        if any(position % self.file_size for position in positions):
            raise StoreRefused(
                f"{directory}: the files do not have {self.file_size} bytes each; set mappedFileSizeConsumeQueue to "
                f"the size that this store was made with, or move the directory {DIRECTORY} away to have it made anew"
            )
        return [position // ENTRY_BYTES for position in positions]

    def gap(self, starts: list[int]) -> int:
        """How many of a queue's files follow one another, from the first on."""
        for index, start in enumerate(starts):
            if start != starts[0] + index * self.per_file:
                return index
        return len(starts)

    def unlink(self, directory: str, start: int) -> None:
        self.disk.unlink(f"{directory}/{file_name(start * ENTRY_BYTES)}")

    def write(self, directory: str, offset: int, entries: Buffer) -> list[str]:
        """Write entries that follow one another from `offset` on; makes files as needed. Gives the paths written to.
        Raises OSError."""
        paths, view = [], memoryview(entries)
        while view:
            start = offset // self.per_file * self.per_file
            room = (self.per_file - (offset - start)) * ENTRY_BYTES
            path = f"{directory}/{file_name(start * ENTRY_BYTES)}"
            file = self._open(directory, path, offset - start)
            try:
                file.pwrite(view[:room], (offset - start) * ENTRY_BYTES)
            finally:
                file.close()
            paths.append(path)
            offset, view = start + self.per_file, view[room:]
        return paths

    def _open(self, directory: str, path: str, index: int) -> File:
        try:
            return self.disk.open(path)
        except FileNotFoundError:
            if not self.disk.exists(directory):
                self.disk.mkdir(DIRECTORY)
                self._made_in.update((DIRECTORY, directory.rpartition("/")[0]))
                self.disk.mkdir(directory, durable=False)
            file = self.disk.create(path)
            try:
                file.truncate(self.file_size)
                if index:
                    file.pwrite(FILLER * index, 0)
            except OSError:
                file.close()
                self.disk.unlink(path)  # without its fillers it would look empty
                raise
            return file

    def sync(self, paths: Collection[str]) -> None:
        """Make files and their names durable. Raises OSError."""
        if len(paths) > SYNC_ALL_FROM and self.disk.sync_all(DIRECTORY):
            self._made_in.clear()
            return
        made_in = self._made_in.copy()
        directories = made_in.copy()
        for path in paths:
            file = self.disk.open(path)
            try:
                file.fdatasync()
            finally:
                file.close()
            directories.add(path.rpartition("/")[0])
        for directory in sorted(directories):
            self.disk.sync_directory(directory)
        self._made_in -= made_in

    def remove(self, topic: str) -> None:
        """All queues of a topic, durably, the last file of each first: while there is any, the first one tells how old
        the queue is. Raises OSError."""
        above = f"{DIRECTORY}/{topic}"
        for name in self.disk.list(above):
            directory = f"{above}/{name}"
            for file in reversed(self.disk.list(directory)):
                self.disk.unlink(f"{directory}/{file}")
            self.disk.rmdir(directory)
        self.disk.rmdir(above)
        self.disk.sync_directory(DIRECTORY)

    def cut(self, directory: str, offset: int) -> list[str]:
        """Let nothing stand in the files from this offset on; the first file stays, to say where the queue is. Gives
        the paths of files that changed, for `sync`. Raises OSError."""
        starts, changed = self.starts(directory), []
        for start in reversed(starts):
            if start > starts[0] and start >= offset:
                self.unlink(directory, start)
                self.disk.sync_directory(directory)
            elif offset < start + self.per_file:
                path = f"{directory}/{file_name(start * ENTRY_BYTES)}"
                zero_tail(self.disk, path, max(0, offset - start) * ENTRY_BYTES, self.file_size)
                changed.append(path)
        return changed

    def entry(self, queue_directory: str, offset: int) -> tuple[int, int]:
        """Log position and size of one entry, zeros when there is none. May wait for the disk."""
        start = offset // self.per_file * self.per_file
        try:
            file = self.disk.open(f"{queue_directory}/{file_name(start * ENTRY_BYTES)}")
        except FileNotFoundError:
            return 0, 0
        try:
            raw = file.pread(ENTRY_BYTES, (offset - start) * ENTRY_BYTES)
        finally:
            file.close()
        position, size, _ = ENTRY.unpack(raw) if len(raw) == ENTRY_BYTES else (0, 0, 0)
        return position, size

    def filled(self, directory: str, starts: list[int]) -> int:
        """The offset behind the last entry of a queue with these files, zeros having no entries before them."""
        start = starts[-1]
        file = self.disk.open(f"{directory}/{file_name(start * ENTRY_BYTES)}")
        try:
            return start + _first_false(0, self.per_file, lambda index: any(file.pread(4, index * ENTRY_BYTES + 8)))
        finally:
            file.close()

    def oldest(self, directory: str, low: int, high: int, first_position: int) -> int:
        """The first offset in [low, high) whose message stands at `first_position` of the log or behind it."""
        if low >= high or not self._is_gone(directory, low, first_position):
            return low
        return _first_false(low + 1, high, lambda offset: self._are_gone(directory, offset, first_position))

    def _are_gone(self, directory: str, offset: int, first_position: int) -> bool:
        """Whether the message of this entry is deleted, and the one before it: a damaged entry alone must not hide all
        those before it. That of the oldest message left can still hide its own."""
        return all(self._is_gone(directory, at, first_position) for at in (offset - 1, offset))

    def _is_gone(self, directory: str, offset: int, first_position: int) -> bool:
        position, size = self.entry(directory, offset)
        return 0 <= position < first_position or (position == 0 and size == FILLER_SIZE)

    def expired(self, queue: QueueEnds, first_position: int) -> tuple[int, list[int]]:
        """Of a queue whose messages before this log position are deleted: the offset of the first one left, and the
        offsets at which files start that hold none of the others. The last file is not among them: it says where the
        queue goes on. May wait for the disk. Raises OSError."""
        starts = self.starts(queue.directory)
        if queue.low is None:
            low = starts[0] if starts else 0
            last = starts[-1] if starts else 0
            while low < last and self._are_gone(queue.directory, low + self.per_file - 1, first_position):
                low += self.per_file
        else:
            low = self.oldest(queue.directory, queue.low, queue.high, first_position)
        return low, [start for start in starts[:-1] if start + self.per_file <= low]

    def inside(self, directory: str, low: int, high: int, end_position: int) -> int:
        """The first offset in [low, high) whose message would stand behind the end of the log."""

        def is_inside(offset: int) -> bool:
            return self.entry(directory, offset)[0] < end_position

        return high if low == high or is_inside(high - 1) else _first_false(low, high, is_inside)


def _first_false(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first offset in [low, high) for which a condition that goes from true to false once is false; else high."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            low = middle + 1
        else:
            high = middle
    return low


@lru_cache(maxsize=65536)
def can_be_directory(topic: str) -> bool:
    return 0 < len(topic.encode()) <= MAX_NAME_BYTES and topic not in (".", "..") and not set("/\0") & set(topic)


class ConsumeQueues:
    """All queues of a store. Owner: the store, on the event loop. A queue that was used stays here, without its
    entries: about 300 bytes."""

    def __init__(
        self,
        disk: Disk,
        file_size: int,
        background: Background,
        on_failed: Callable[[BaseException], None],
        on_no_room: Callable[[BaseException], None],
        on_delete: Callable[[str], None],
    ) -> None:
        """`on_no_room`: entries could not be written yet, call `take` and `write` again. `on_delete` hears of a file
        that is going to be deleted."""
        self.files = QueueFiles(disk, file_size)
        self._disk = disk
        self._background = background
        self._on_failed, self._on_no_room, self._on_delete = on_failed, on_no_room, on_delete
        #: the queues that were used, by topic and queue id
        self.known: dict[tuple[str, int], ConsumeQueue] = {}
        #: queues with a tail
        self._dirty: dict[ConsumeQueue, None] = {}
        #: files written since their last sync
        self._unsynced: dict[str, None] = {}
        #: the log as recovery left it; entries before it, found when a queue is first used, are not served
        self.log_first = self.log_end = 0
        #: entries behind it are not damage: another server wrote them, or somebody took the log away
        self.may_be_ahead = False
        #: entries in all tails
        self.unwritten = 0
        #: topics that are being deleted, and their queues that were used
        self._closed: dict[str, list[ConsumeQueue]] = {}
        self._stopped = False

    # -------------------------------------------------------------------------------------------- looking

    def find(self, topic: str, queue_id: int) -> ConsumeQueue | None:
        """The queue if anything was ever stored in it. Raises OSError."""
        queue = self.known.get((topic, queue_id))
        if queue is None and can_be_directory(topic) and self._disk.exists(f"{DIRECTORY}/{topic}/{queue_id}"):
            return None if topic in self._closed else self.open(topic, queue_id)
        return queue

    def open(self, topic: str, queue_id: int) -> ConsumeQueue:
        """The queue, for an append: a new one when there is none. Raises IllegalTopic, SystemBusy, OSError."""
        queue = self.known.get((topic, queue_id))
        if queue is None:
            if topic in self._closed:
                raise SystemBusy(f"the topic {topic} is being deleted; try again later")
            if not can_be_directory(topic):
                raise IllegalTopic(
                    f"the topic {topic!r} cannot be a directory: it has 1 to {MAX_NAME_BYTES} bytes, and no slash"
                )
            directory, files = f"{DIRECTORY}/{topic}/{queue_id}", self.files
            low = high = 0
            if starts := files.starts(directory):
                if files.gap(starts) < len(starts):
                    raise StoreRefused(
                        f"{directory}: the file behind {starts[files.gap(starts) - 1]} is missing; move the directory "
                        f"{DIRECTORY} away to have it made anew"
                    )
                filled = files.filled(directory, starts)
                low = files.oldest(directory, starts[0], filled, self.log_first)
                high = files.inside(directory, low, filled, self.log_end) if self.may_be_ahead else filled
                if high < filled:
                    log.warning("%s: offsets from %d on are behind the end of the commit log: cut", directory, high)
                    files.sync(files.cut(directory, high))
            queue = self.known[topic, queue_id] = ConsumeQueue(topic, queue_id, low, high)
        return queue

    def topics(self) -> list[str]:
        """Those with queues on disk."""
        return self._disk.list(DIRECTORY)

    def ids(self, topic: str) -> list[int]:
        """Queue ids that hold data."""
        if not can_be_directory(topic):  # whatever a client calls a topic
            return []
        on_disk = {int(name) for name in self._disk.list(f"{DIRECTORY}/{topic}") if name.isdigit()}
        in_memory = {queue_id for (name, queue_id), queue in self.known.items() if name == topic and queue.next_offset}
        return sorted(on_disk | in_memory)

    # ------------------------------------------------------------------------------------------- recovering

    def rewind(self, topic: str, queue_id: int, offset: int, *, whole: bool) -> ConsumeQueue:
        """The queue as it was before the message at this offset: whatever stands there and behind is given anew, and
        `cut` comes when that is done. `whole`: so is everything that stands before. Until then the last file stays: it
        tells which offsets were given, also to a recovery after this one. Raises MissingEntries, OSError."""
        directory, files = f"{DIRECTORY}/{topic}/{queue_id}", self.files
        starts = files.starts(directory)
        good = 0 if whole else files.gap(starts)
        for start in reversed(starts[good:]):
            if start < starts[-1] or start + files.per_file <= offset:
                files.unlink(directory, start)
            elif start < offset:
                self._unsynced.update(dict.fromkeys(files.write(directory, start, FILLER * (offset - start))))
        low = offset
        if offset and not whole:
            if not good or starts[0] >= offset or files.entry(directory, offset - 1)[1] <= 0:
                raise MissingEntries(f"{directory} has no entry {offset - 1}")
            low = files.oldest(directory, starts[0], offset, self.log_first)
        queue = self.known[topic, queue_id] = ConsumeQueue(topic, queue_id, low, offset)
        return queue

    def finish_deleting(self, deleted: Mapping[str, int]) -> None:
        """Delete what a crash has left of topics that were being deleted: queues of messages that all stand before the
        topic's log position. Raises StoreRefused, OSError."""
        for topic, end_position in deleted.items():
            for queue_id in self.ids(topic):
                end, position = self.last_entry(topic, queue_id)
                if end and position < end_position:
                    self.files.remove(topic)
                    break

    def last_entry(self, topic: str, queue_id: int) -> tuple[int, int]:
        """The offset behind the queue's last entry on disk, and where in the log its message stands; zeros when there
        is none. Raises StoreRefused, OSError."""
        directory, files = f"{DIRECTORY}/{topic}/{queue_id}", self.files
        starts = files.starts(directory)
        end = files.filled(directory, starts) if starts else 0
        return end, files.entry(directory, end - 1)[0] if end else 0

    def entry(self, topic: str, queue_id: int, offset: int) -> tuple[int, int]:
        """Log position and size as they stand on disk, zeros when there is no such entry. Raises OSError."""
        return self.files.entry(f"{DIRECTORY}/{topic}/{queue_id}", offset)

    def fill(self, queue: ConsumeQueue, offset: int, position: int, size: int) -> None:
        """Leave out the offsets before this one; their entries lead to a filler that stands there, or (FILLER_SIZE) to
        nothing."""
        queue.tail += ENTRY.pack(position, size, 0) * (offset - queue.max_offset)
        self.unwritten += offset - queue.max_offset
        queue.max_offset = offset
        self._dirty[queue] = None

    def replace(self, queue: ConsumeQueue, offset: int, position: int, size: int, code: int) -> None:
        """Let an entry of the tail lead to another record."""
        at = (offset - queue.tail_offset) * ENTRY_BYTES
        queue.tail[at : at + ENTRY_BYTES] = _pack_entry(position, size, code)

    def cut(self, queue: ConsumeQueue) -> None:
        """Nothing stands behind its last entry; durable with the next `sync_now`. Raises OSError."""
        self._write_now(queue)
        self._unsynced.update(dict.fromkeys(self.files.cut(queue.directory, queue.max_offset)))

    def repoint(self, fillers: Sequence[tuple[int, int]]) -> None:
        """Let entries of messages that stood where the log has fillers now (position, size; rising) lead to those.
        Durable. Raises OSError."""
        files, changed = self.files, dict[str, None]()
        for topic, queue_id in self._on_disk():
            directory = f"{DIRECTORY}/{topic}/{queue_id}"
            end = self.last_entry(topic, queue_id)[0]
            offset = files.inside(directory, (files.starts(directory) or [0])[0], end, fillers[0][0])
            while offset < end and (entry := files.entry(directory, offset))[0] < sum(fillers[-1]):
                filler = fillers[bisect_right(fillers, entry[0], key=lambda filler: filler[0]) - 1]
                if entry != filler and filler[0] <= entry[0] < sum(filler) and entry[1] != FILLER_SIZE:
                    log.error("%s: the message at offset %d is lost in damage of the commit log", directory, offset)
                    changed.update(dict.fromkeys(files.write(directory, offset, ENTRY.pack(*filler, 0))))
                offset += 1
        files.sync(changed)

    def open_all(self) -> None:
        """Look at every queue on disk for entries behind the end of the log, which are cut. Raises OSError."""
        self.may_be_ahead = True
        for topic in self._disk.list(DIRECTORY):
            for queue_id in self.ids(topic):
                self.open(topic, queue_id)
        self.may_be_ahead = False

    def forget(self) -> None:
        """Begin again, before the store is open."""
        self.known.clear()
        self._dirty.clear()
        self._unsynced.clear()
        self.unwritten = 0

    # -------------------------------------------------------------------------------------------- writing

    def add(self, queue: ConsumeQueue, position: int, size: int, code: int) -> None:
        """Show one more message to the readers."""
        queue.tail += _pack_entry(position, size, code)
        queue.max_offset += 1
        self._dirty[queue] = None
        self.unwritten += 1

    def take(self) -> list[Tail]:
        """The tails as they are now, for `write`."""
        dirty, self._dirty = self._dirty, {}
        return [(queue, queue.tail_offset, bytes(queue.tail)) for queue in dirty]

    def write(self, tails: list[Tail], done: Callable[[], None]) -> None:
        """Let the background write the tails, some at a time; calls `done` after the last, not after a failure. What
        finds no room is `dirty` again."""
        if self._stopped:
            return
        if not tails:
            done()
            return
        some, rest = tails[:QUEUES_PER_JOB], tails[QUEUES_PER_JOB:]
        files = self.files

        def write() -> list[str]:
            return [path for queue, at, tail in some for path in files.write(queue.directory, at, tail)]

        def wrote(paths: list[str]) -> None:
            if self._stopped:
                return  # `write_now` came first
            self._unsynced.update(dict.fromkeys(paths))
            for queue, _, tail in some:
                self._drop(queue, len(tail))
            self.write(rest, done)

        def failed(error: BaseException) -> None:
            if is_no_room(error) and not self._stopped:
                self._dirty.update(dict.fromkeys(queue for queue, _, _ in tails))
                self._on_no_room(error)
            else:
                self._fail(error)

        self._background.run(write, wrote, failed)

    def _drop(self, queue: ConsumeQueue, size: int) -> None:
        """The first bytes of the tail are in the files now."""
        del queue.tail[:size]
        queue.tail_offset += size // ENTRY_BYTES
        self.unwritten -= size // ENTRY_BYTES

    def sync(self, done: Callable[[], None]) -> None:
        """Let the background sync every file written so far, some at a time; calls `done` after the last, not after a
        failure."""
        paths, self._unsynced = list(self._unsynced), {}
        self._sync(paths, done)

    def _sync(self, paths: list[str], done: Callable[[], None]) -> None:
        if self._stopped:
            return
        if not paths:
            done()
            return
        per_job = len(paths) if len(paths) > SYNC_ALL_FROM else QUEUES_PER_JOB
        some, rest = paths[:per_job], paths[per_job:]
        self._background.run(lambda: self.files.sync(some), lambda _: self._sync(rest, done), self._fail)

    # ------------------------------------------------------------------------------------------- cleaning

    def hide(self, first_position: int) -> Reply[list[QueueFile]]:
        """The messages before this log position, whose entries are durable, are going to be deleted: no queue shows
        them any more. Answers which files hold no others, for `delete`, or fails with OSError."""
        self.log_first = first_position
        hidden: Later[list[QueueFile]] = Later()
        self._background.run(
            self._on_disk,
            lambda on_disk: self._hide(list({**dict.fromkeys(on_disk), **self.known}), [], hidden),
            hidden.fail,
        )
        return hidden

    def _on_disk(self) -> list[tuple[str, int]]:
        return [
            (topic, int(name))
            for topic in self._disk.list(DIRECTORY)
            for name in self._disk.list(f"{DIRECTORY}/{topic}")
            if name.isdigit()
        ]

    def _hide(self, keys: list[tuple[str, int]], gone: list[QueueFile], hidden: Later[list[QueueFile]]) -> None:
        """Some queues at a time."""
        if not keys or self._stopped:
            hidden.resolve(gone)
            return
        some, rest = keys[:QUEUES_PER_JOB], keys[QUEUES_PER_JOB:]
        ends, first_position, files = [self._ends(key) for key in some], self.log_first, self.files

        def look() -> list[tuple[int, list[int]]]:
            return [files.expired(end, first_position) for end in ends]

        def looked(expired: list[tuple[int, list[int]]]) -> None:
            for key, end, (low, starts) in zip(some, ends, expired, strict=True):
                if key in self.known:
                    self.known[key].min_offset = max(self.known[key].min_offset, low)
                gone.extend((end.directory, start) for start in starts)
            self._hide(rest, gone, hidden)

        self._background.run(look, looked, hidden.fail)

    def delete(self, gone: list[QueueFile]) -> Reply[None]:
        """What `hide` found, when the log's files are deleted. Fails with OSError."""
        if not gone or self._stopped:
            return None
        some, rest = gone[:QUEUES_PER_JOB], gone[QUEUES_PER_JOB:]
        for directory, start in some:
            self._on_delete(f"{directory}/{file_name(start * ENTRY_BYTES)}")

        def delete() -> None:
            for directory, start in some:
                self.files.unlink(directory, start)
                self._disk.sync_directory(directory)  # before the next one: no gap may be left

        def go_on(_: None) -> Reply[None]:
            return self.delete(rest)

        deleted: Later[None] = Later()
        self._background.run(delete, deleted.resolve, deleted.fail)
        return chain(deleted, go_on)

    def _ends(self, key: tuple[str, int]) -> QueueEnds:
        queue = self.known.get(key)
        if queue is None:
            return QueueEnds(f"{DIRECTORY}/{key[0]}/{key[1]}")
        return QueueEnds(queue.directory, queue.min_offset, queue.tail_offset)

    # ------------------------------------------------------------------------------------------- deleting topics

    def close(self, topics: Iterable[str]) -> None:
        """Until `reopen` or `delete_topics`, none of these topics can be read or appended to."""
        for topic in topics:
            self._closed[topic] = [self.known.pop(key) for key in list(self.known) if key[0] == topic]

    def reopen(self, topics: Iterable[str]) -> None:
        """As they were before `close`."""
        for topic in topics:
            for queue in self._closed.pop(topic):
                self.known[topic, queue.queue_id] = queue

    def delete_topics(self, topics: Iterable[str]) -> Reply[None]:
        """Delete closed topics while no entries are being written or synced; their names may be used again when it
        answers. Fails with OSError; what is half deleted then stays closed."""
        there = [topic for topic in topics if can_be_directory(topic) and self._disk.exists(f"{DIRECTORY}/{topic}")]
        for topic in there:
            self._forget_closed(topic)

        def remove() -> None:
            for topic in there:
                self.files.remove(topic)

        removed = Later[None]()
        reply: Reply[None] = removed
        self._background.run(remove, removed.resolve, removed.fail)
        return after(reply, lambda _: self._deleted(topics))

    def _deleted(self, topics: Iterable[str]) -> None:
        for topic in topics:
            for queue in self._closed.pop(topic):
                self.unwritten -= len(queue.tail) // ENTRY_BYTES
                self._dirty.pop(queue, None)

    def _forget_closed(self, topic: str) -> None:
        """Nobody comes back to its files."""
        prefix = f"{DIRECTORY}/{topic}/"
        for queue in self._closed[topic]:
            # who reads it in a thread finds a file gone, sees that older messages are, and looks for the queue again
            queue.min_offset = queue.max_offset
        for queue_id in self._disk.list(prefix.removesuffix("/")):
            for name in self._disk.list(prefix + queue_id):
                self._on_delete(f"{prefix}{queue_id}/{name}")
        for path in [path for path in self._unsynced if path.startswith(prefix)]:
            del self._unsynced[path]
        self.files.forget(prefix.removesuffix("/"))

    def _fail(self, error: BaseException) -> None:
        if not self._stopped:
            self._on_failed(error)

    def write_now(self) -> None:
        """Write all tails on this thread. Raises OSError."""
        for queue in self.known.values():
            self._write_now(queue)
        self._dirty.clear()

    def _write_now(self, queue: ConsumeQueue) -> None:
        if queue.tail:
            paths = self.files.write(queue.directory, queue.tail_offset, queue.tail)
            self._unsynced.update(dict.fromkeys(paths))
            self._drop(queue, len(queue.tail))

    def sync_now(self) -> None:
        """Make all entries durable on this thread. Raises OSError."""
        self.write_now()
        self.files.sync(self._unsynced)
        self._unsynced.clear()

    @property
    def dirty(self) -> bool:
        return bool(self._dirty)

    def stop(self) -> None:
        """Start no more jobs; those under way change nothing here any more."""
        self._stopped = True
