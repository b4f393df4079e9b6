"""The index: which messages have a key. It follows the log, may fall behind it, and never holds it up.

While it keeps up (`_live`), it is fed with the messages that readers see and takes them in some hundred at a time, a
moment later, for who waits for these messages comes first, or when the queues are written. Otherwise, after a start or
after its disk failed, it reads the log from where it stands, in small pieces in the background, until it has come to
the end. So damage is no case of its own: a file that is not right is dropped with those after it, and the log is read
from there.

Files are written with the queues, once a second, when their records are durable. An index that cannot be written drops
the files that are not complete on disk, and is made anew from there when there is room; no send fails for it.

A message is found by its unique key, each word of its KEYS and its tag. Source: store/index/IndexService.java.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from errno import ENOSPC
from itertools import dropwhile, takewhile
from typing import TypeAlias, TypeVar

from saturnmq.disk.port import Buffer, Disk
from saturnmq.kernel.clock import Background, Clock, Timer
from saturnmq.kernel.config import StoreConfig
from saturnmq.store.commitlog import CommitLog, LogReader
from saturnmq.store.dispatch import is_queued
from saturnmq.store.indexfile import (
    DIRECTORY,
    Chain,
    DamagedIndex,
    IndexFile,
    IndexWrite,
    NewItem,
    Pages,
    Read,
    Shape,
    SlotMaker,
    read_pages,
)
from saturnmq.store.keys import Query, hashes
from saturnmq.store.reading import Cold
from saturnmq.store.walk import Walk, find_next

log = logging.getLogger(__name__)

T = TypeVar("T")

#: messages that wait to be taken in: the turn that does it is no longer than a millisecond for it
_BATCH = 256
#: and begins so much later
_LATER_MS = 100
#: of items that wait for the disk; above it the index falls behind
_MAX_TAIL_BYTES = 16 << 20
#: between syncs of the file that grows: what a start after a power cut reads again
_SYNC_INTERVAL_MS = 60_000
#: after the disk failed, and how much room it must have then
_RETRY_MS = 60_000
_LEAST_FREE_BYTES = 64 << 20
#: of the log, that one background job reads: a millisecond of small messages
_PIECE_BYTES = 64 << 10
_ALWAYS_MS = 1 << 62

#: topic, log position, properties, store time of a message
Row: TypeAlias = tuple[str, int, bytes, int]


class Index:
    """Owner: the store, on the event loop. Asks through `arm` for `take` and `write` soon."""

    def __init__(
        self,
        disk: Disk,
        config: StoreConfig,
        commit_log: CommitLog,
        clock: Clock,
        background: Background,
        arm: Callable[[], None],
    ) -> None:
        self._disk, self._log, self._clock, self._background, self._arm = disk, commit_log, clock, background, arm
        self._enabled = config.message_index_enable
        self._shape = Shape(config.max_hash_slot_num, config.max_index_num)
        #: oldest first
        self._files: list[IndexFile] = []
        #: every message below this log position is taken in; readers see those below the other
        self._position = self._shown = 0
        #: how many items the message at this position has already
        self._resume = (-1, 0)
        #: what is shown waits in `_pending`; else it must be read from the log
        self._live = False
        self._pending: list[Row] = []
        self._takes_in_soon = False
        #: a background job that reads is under way
        self._reading = False
        self._stopped = False
        #: the disk failed; when it is tried again
        self._retry: Timer | None = None
        self._warned = False
        self._last_name = ""
        self._next_sync_ms = 0
        #: makes the slots of a file that a crash left
        self._maker: SlotMaker | None = None

    @property
    def durable_ms(self) -> int | None:
        """For the checkpoint: all that was stored up to then is on disk with its slots. None: nobody knows."""
        if not self._enabled:
            return None
        durable_ms = 0
        for index_file in takewhile(_at_rest, self._files):
            durable_ms = index_file.end_ms
        return durable_ms

    @property
    def end_ms(self) -> int:
        """Store time of the last message that can be found."""
        return self._files[-1].end_ms if self._files else 0

    @property
    def end_position(self) -> int:
        """Its log position."""
        return self._files[-1].end_position if self._files else 0

    @property
    def behind(self) -> int:
        """Bytes of the log that readers see and a query did not look through."""
        return self._shown - self._position if self._enabled else 0

    # ---------------------------------------------------------------------------------------- opening, closing

    def open(self, *, crashed: bool, ours: bool, checkpoint_ms: int) -> None:
        """Take the files that are right, drop the others, and go on from there; the log is open. `ours`: what crashed
        was this server. `checkpoint_ms`: the checkpoint's word on the index. No damage is a reason not to start."""
        if not self._enabled:
            return
        self._shown = self._log.end
        self._next_sync_ms = self._clock.now_ms() + _SYNC_INTERVAL_MS
        try:
            self._load(crashed=crashed, trusted_ms=checkpoint_ms if crashed and not ours else _ALWAYS_MS)
            self._find_position()
        except OSError as error:
            self._suspend(error)
        else:
            self._go_on()

    def _load(self, *, crashed: bool, trusted_ms: int) -> None:
        found = [name for name in self._disk.list(DIRECTORY) if len(name) == 17 and name.isdigit()]
        self._last_name = max(found, default="")
        for at, name in enumerate(found):
            try:
                index_file = IndexFile.load(self._disk, name, self._shape)
                self._files.append(index_file)
                self._check(index_file, trusted_ms)
            except DamagedIndex as damaged:
                if not crashed:
                    log.warning("%s/%s %s: made anew from the commit log", DIRECTORY, name, damaged)
                self._drop(f"{DIRECTORY}/{name}" for name in found[at:])
                break

    def _check(self, index_file: IndexFile, trusted_ms: int) -> None:
        if len(self._files) > 1 and index_file.begin_position < self._files[-2].end_position:
            raise DamagedIndex("does not follow the one before it")
        if not index_file.empty and not index_file.begin_position <= index_file.end_position < self._log.end:
            raise DamagedIndex(f"ends at {index_file.end_position}, the commit log at {self._log.end}")
        if index_file.end_ms > trusted_ms:
            raise DamagedIndex("was mapped into memory, and its pages reached the disk in any order")

    def _drop(self, paths: Iterable[str]) -> None:
        """Remove these files, which are the newest ones; one after the other, so that whatever a crash leaves of them
        follows the others without a gap. Raises OSError."""
        dropped = sorted(paths, reverse=True)
        while self._files and self._files[-1].path in dropped:
            self._files.pop().close()
        for path in dropped:
            if self._disk.exists(path):
                self._disk.unlink(path)
                self._disk.sync_directory(DIRECTORY)

    def _find_position(self) -> None:
        """Go on behind the last message that has all its items. Raises OSError."""
        self._position, self._resume = self._log.first, (-1, 0)
        position, items = self._last_items()
        if items and position >= self._log.first:
            message = next(iter(Walk(self._log, position, self._log.end, self._log.end, _PIECE_BYTES)), None)
            if message is None:
                log.warning("%s is not of this commit log: made anew", self._files[-1].path)
                self._drop([index_file.path for index_file in self._files])
            elif items >= len(hashes(message.topic, message.properties)):
                self._position = position + message.size
            else:  # a file became full between them
                self._position, self._resume = position, (position, items)

    def _last_items(self) -> tuple[int, int]:
        """The log position of the last item, and how many there are of it."""
        position, count = -1, 0
        for index_file in reversed(self._files):
            for of_item in index_file.last_positions(self._disk):
                if count and of_item != position:
                    return position, count
                position, count = of_item, count + 1
        return position, count

    def sync_now(self) -> None:
        """Bring everything taken in to the disk, with its slots: the last call, when nothing is under way."""
        if not self._enabled or self._retry is not None:
            return
        try:
            self._take_in()
            for index_file in self._files:
                if index_file.stale and index_file.pages is None:
                    maker = SlotMaker(index_file)
                    while not maker.done:
                        maker.step(self._disk)
                    index_file.has_slots(maker)
                write = index_file.take(sync=True, slots=True)
                if write is not None:
                    write.run(self._disk)
                    index_file.wrote(write)
        except (OSError, DamagedIndex) as error:
            self._fail(error)

    def close(self) -> None:
        self.stop()
        for index_file in self._files:
            index_file.close()

    def stop(self) -> None:
        """Start no more jobs; those under way change nothing here any more."""
        self._stopped = True
        if self._retry is not None:
            self._retry.cancel()

    # ---------------------------------------------------------------------------------------------- adding

    def feed(self, rows: Sequence[Row], shown: int) -> None:
        """Readers see these messages now, and with them everything below this log position."""
        self._shown = shown
        if not self._live:
            self._go_on()
            return
        self._pending += rows
        if len(self._pending) >= _BATCH and not self._takes_in_soon:
            self._takes_in_soon = True
            self._clock.call_at(self._clock.now_ms() + _LATER_MS, self._take_in_batch)

    def _take_in_batch(self) -> None:
        """The others of the loop come before the next one."""
        self._take_in(_BATCH)
        self._takes_in_soon = len(self._pending) >= _BATCH
        if self._takes_in_soon:
            self._clock.call_soon(self._take_in_batch)

    def _take_in(self, most: int | None = None) -> None:
        if not self._live:
            return
        rows = self._pending[:most]
        del self._pending[: len(rows)]
        if self._files and len(self._files[-1].tail) > _MAX_TAIL_BYTES:
            self._live = False  # they are read again when there is room
            self._pending.clear()
            return
        self._add(rows)
        self._position = self._pending[0][1] if self._pending else self._shown

    def _add(self, rows: Sequence[Row]) -> None:
        items: list[NewItem] = []
        resume, taken = self._resume
        for topic, position, properties, stored_ms in rows:
            of_message = hashes(topic, properties)
            for hash_ in of_message[taken:] if position == resume else of_message:
                items.append((hash_, position, stored_ms))
        at = 0
        while at < len(items):
            at = self._growing().put(items, at)

    def _growing(self) -> IndexFile:
        if not self._files:
            self._files.append(IndexFile(self._new_name(), self._shape))
        elif self._files[-1].full:
            last = self._files[-1]
            self._files.append(IndexFile(self._new_name(), self._shape, last.end_ms, last.end_position))
        return self._files[-1]

    def _new_name(self) -> str:
        """The time, as Apache: local; but always behind the names that were there."""
        now_ms = self._clock.now_ms()
        name = f"{datetime.fromtimestamp(now_ms // 1000):%Y%m%d%H%M%S}{now_ms % 1000:03d}"
        if name <= self._last_name:
            name = f"{int(self._last_name) + 1:017d}"
        self._last_name = name
        return name

    # ---------------------------------------------------------------------------------------- catching up

    def _go_on(self) -> None:
        """Whatever comes next until messages can be taken in as they are shown."""
        if not self._enabled or self._live or self._reading or self._stopped or self._retry is not None:
            return
        self._position = max(self._position, self._log.first)
        last = self._files[-1] if self._files else None
        ready = last is None or last.full or last.pages is not None
        stale = next((index_file for index_file in self._files if index_file.stale and index_file.pages is None), None)
        if stale is not None:
            self._make_slots(stale)
        elif self._position >= self._shown:
            self._live = ready  # a file at rest comes into memory with the next message
        elif last is not None and not ready:
            self._read_slots(last)
        elif last is None or len(last.tail) <= _MAX_TAIL_BYTES:
            self._read_log()

    def _make_slots(self, index_file: IndexFile) -> None:
        disk = self._disk
        maker = self._maker = self._maker or SlotMaker(index_file)

        def made(_: None) -> None:
            if maker.done:
                self._maker = None
                index_file.has_slots(maker)
                self._arm()

        self._read(lambda: maker.step(disk), made, lambda error: self._slots_failed(index_file, error))

    def _read_slots(self, index_file: IndexFile) -> None:
        disk, path, shape = self._disk, index_file.path, self._shape

        def read(pages: Pages) -> None:
            index_file.pages = pages

        self._read(lambda: read_pages(disk, path, shape), read, lambda error: self._slots_failed(index_file, error))

    def _slots_failed(self, index_file: IndexFile, error: BaseException) -> None:
        self._maker = None
        if not isinstance(error, DamagedIndex):
            self._fail(error)
            return
        log.warning("%s %s: made anew from the commit log", index_file.path, error)
        try:
            self._drop([newer.path for newer in self._files[self._files.index(index_file) :]])
            self._find_position()
        except OSError as failure:
            self._fail(failure)

    def _read_log(self) -> None:
        reader, start, limit = self._log, self._position, self._shown

        def failed(error: BaseException) -> None:
            if not (isinstance(error, FileNotFoundError) and self._log.first > start):  # it is not too old by now
                self._suspend(error)

        self._read(lambda: read_rows(reader, start, limit), self._has_read, failed)

    def _has_read(self, read: tuple[list[Row], int]) -> None:
        rows, self._position = read
        self._add(rows)
        self._arm()

    def _read(self, work: Callable[[], T], done: Callable[[T], None], failed: Callable[[BaseException], None]) -> None:
        """The one background job that reads; then go on."""
        self._reading = True

        def over(tell: Callable[[], None]) -> None:
            self._reading = False
            if not self._stopped and self._retry is None:
                tell()
                self._go_on()

        self._background.run(work, lambda value: over(lambda: done(value)), lambda error: over(lambda: failed(error)))

    # ---------------------------------------------------------------------------------------------- writing

    @property
    def dirty(self) -> bool:
        """There is something to `take`."""
        return bool(self._pending) or any(
            index_file.tail or (index_file.full and index_file.pages is not None) for index_file in self._files
        )

    def take(self) -> list[IndexWrite]:
        """What is to be written, for `write` when the log is durable up to here."""
        if self._stopped or self._retry is not None:
            return []
        self._take_in()
        now_ms = self._clock.now_ms()
        sync = now_ms >= self._next_sync_ms or self._warned
        if sync:
            self._next_sync_ms = now_ms + _SYNC_INTERVAL_MS
        writes = [
            index_file.take(sync=sync or index_file.full, slots=index_file.full)
            for index_file in self._files
            if index_file.pages is not None
        ]
        return [write for write in writes if write is not None]

    def write(self, writes: Sequence[IndexWrite], done: Callable[[], None]) -> None:
        """Let the background write, then call `done`, even after a failure."""
        if not writes or self._stopped:
            done()
            return
        disk = self._disk

        def work() -> None:
            for write in writes:
                write.run(disk)

        def wrote(_: None) -> None:
            for write in writes:
                write.index_file.wrote(write)
            self._go_on()
            if self._warned and self._live:
                self._warned = False
                log.info("the index of message keys is complete and written again")
            done()

        def failed(error: BaseException) -> None:
            if any(write.index_file in self._files for write in writes):
                self._fail(error)
            done()

        self._background.run(work, wrote, failed)

    def _fail(self, error: BaseException) -> None:
        """An index file cannot be written or read. What is not at rest is lost: its room may be what others need."""
        try:
            self._drop(index_file.path for index_file in dropwhile(_at_rest, self._files))
        except OSError as failure:
            log.warning("%s is left behind: %s", failure.filename, failure.strerror)
        self._suspend(error)

    def _suspend(self, error: BaseException) -> None:
        self._live, self._maker = False, None
        self._pending.clear()
        if not self._warned:
            self._warned = True
            log.warning(
                "messages cannot be found by key until the index can be written again, all else goes on: %s", error
            )
        if not self._stopped:
            self._retry = self._clock.call_at(self._clock.now_ms() + _RETRY_MS, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        try:
            if self._reading or self._disk.space("").free < _LEAST_FREE_BYTES:
                raise OSError(ENOSPC, "no room yet", DIRECTORY)
            self._find_position()
        except OSError as error:
            self._suspend(error)
        else:
            self._go_on()

    def clean(self, first_position: int) -> list[str]:
        """The log begins there now: forget the files that lead to nothing behind it, but not the last one, nor one that
        is worked on. Gives the paths to delete."""
        gone = []
        while len(self._files) > 1 and self._files[0].end_position < first_position:
            if not _at_rest(self._files[0]):
                break
            self._files[0].close()
            gone.append(self._files.pop(0).path)
        return gone

    # ---------------------------------------------------------------------------------------------- finding

    def chains(self, query: Query, *, cold: bool) -> list[Chain]:
        """Where to look, newest first: on the event loop now, or `cold`, in a thread."""
        self._take_in()
        hash_, disk = query.hash, self._disk
        return [
            Chain(index_file, hash_, _cold(disk, index_file.path) if cold else _hot(disk, index_file), copy=cold)
            for index_file in reversed(self._files)
            if not index_file.empty and index_file.begin_ms <= query.end_ms and index_file.end_ms >= query.begin_ms
        ]


def _at_rest(index_file: IndexFile) -> bool:
    return index_file.pages is None and not index_file.stale


def _hot(disk: Disk, index_file: IndexFile) -> Read:
    def read(size: int, offset: int) -> Buffer:
        view = index_file.file(disk).try_pread(size, offset)
        if view is None:
            raise Cold
        return view

    return read


def _cold(disk: Disk, path: str) -> Read:
    def read(size: int, offset: int) -> Buffer:
        try:
            file = disk.open(path)
        except FileNotFoundError:
            return bytes(size)  # it was dropped meanwhile: nothing is found there any more
        try:
            return file.pread(size, offset)
        finally:
            file.close()

    return read


def read_rows(reader: LogReader, start: int, limit: int) -> tuple[list[Row], int]:
    """Some messages of the log from `start` on, and where to go on. May wait for the disk. Raises OSError."""
    walk = Walk(reader, start, limit, limit, _PIECE_BYTES)
    rows = []
    for record in walk:
        if is_queued(record.sys_flag):
            rows.append((record.topic, record.commit_log_offset, record.properties, record.stored_ms))
        if walk.end - start >= _PIECE_BYTES:
            break
    if walk.end > start:
        return rows, walk.end
    log.error("commit log %d: %s; what stands there cannot be found by key", start, walk.reason or "blank")
    return rows, find_next(reader, start, limit, 0) or limit
