"""The store: appends messages, makes them durable, finds them again. One writer, the event loop; nothing locks.

A message's way: `append` gives it its places and puts its record into the log's buffer. At the end of the turn one
write takes everything appended in it. SYNC_FLUSH: then a sync; when that has succeeded, readers see the messages (queue
entry, `max_offset`, `on_arrival`) and `when_durable` answers. ASYNC_FLUSH: readers see them after the write, and nobody
waits. So under SYNC_FLUSH no consumer can commit an offset that a power cut would give to another message.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from saturnmq.disk.openfiles import OpenFiles
from saturnmq.disk.port import Disk, Lock
from saturnmq.kernel.clock import Background, Clock, Timer
from saturnmq.kernel.config import GIB, StoreConfig, parse_delays
from saturnmq.kernel.errors import BodyTooLarge, PropertiesTooLarge, SaturnError, ServiceUnavailable, SystemBusy
from saturnmq.kernel.host import Address, pack
from saturnmq.kernel.later import Later, Reply, after, chain, gather, hear
from saturnmq.kernel.message import Appended, Message
from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.ports import Boundary
from saturnmq.kernel.subscription import Matches
from saturnmq.store import foreign
from saturnmq.store.checkpoint import Abort, Checkpoint
from saturnmq.store.commitlog import BLANK_BYTES, CommitLog, log_directories
from saturnmq.store.consumequeue import ENTRY_BYTES, ConsumeQueue, ConsumeQueues
from saturnmq.store.deleted import DeletedTopics
from saturnmq.store.dispatch import is_queued, tags_code
from saturnmq.store.flush import GroupCommit
from saturnmq.store.index import Index, Row
from saturnmq.store.indexfile import IndexWrite
from saturnmq.store.keys import KeyKind, Query, find_by_key
from saturnmq.store.reading import (
    Cold,
    ColdReader,
    HotReader,
    Reader,
    find_matching,
    find_messages,
    find_time,
    read_entries,
    read_places,
    read_position,
    read_record,
    read_stored_ms,
)
from saturnmq.store.recovery import Recovery
from saturnmq.store.results import Arrival, Found, FoundStatus, StoreRefused
from saturnmq.store.retention import Retention
from saturnmq.store.space import DiskSpace, is_no_room
from saturnmq.wire.record import MAX_PROPERTIES_BYTES, encode, size_of

__all__ = ["Arrival", "Found", "FoundStatus", "Store", "StoreRefused"]

log = logging.getLogger(__name__)

T = TypeVar("T")

#: what counts as in memory, of the log's end
RECENT_BYTES = GIB
#: descriptors kept open for reading
OPEN_FILES = 512
#: queue entries that may wait for their write (20 bytes each); above it the disk is too slow for what comes in
MAX_UNWRITTEN_ENTRIES = 2_000_000
#: a checkpoint is made when the last one is so old, or so much was stored since: a start after a crash looks through
#: that, and through what came while the checkpoint was made
CHECKPOINT_MS = 10_000
CHECKPOINT_BYTES = 128 << 20

#: end and position of a record, size, queue, queue offset, tags code, properties, store time
_Row = tuple[int, int, int, ConsumeQueue, int, int, bytes, int]


class Store:
    """Owner of log, queues and flush; the broker owns the store. `open` comes first, `close` last."""

    def __init__(
        self,
        disk: Disk,
        config: StoreConfig,
        clock: Clock,
        flusher: Background,
        reader: Background,
        store_host: bytes = pack(Address("127.0.0.1", 10911)),
    ) -> None:
        self.disk = disk
        self.config = config
        #: for blocking work of the store's owner too
        self.background = reader
        #: stands in every record; settable before the first append
        self.store_host = store_host
        #: hears of each message when readers may see it
        self.on_arrival: Callable[[Arrival], None] | None = None
        self._config = config
        self._clock = clock
        self._flusher = flusher
        self._background = reader
        self._sync_flush = config.flush_disk_type == "SYNC_FLUSH"
        self._tags_code = partial(tags_code, parse_delays(config.message_delay_level))
        self._max_body = config.max_message_size
        self._max_record = config.mapped_file_size_commit_log - BLANK_BYTES
        writable, read_only = log_directories(config)
        self._log = CommitLog(
            disk, writable[0], config.mapped_file_size_commit_log, reader, others=writable[1:], read_only=read_only
        )
        queue_file_size = -(-config.mapped_file_size_consume_queue // ENTRY_BYTES) * ENTRY_BYTES
        self._open_files = OpenFiles(disk, OPEN_FILES)
        self._queues = ConsumeQueues(
            disk,
            queue_file_size,
            reader,
            on_failed=self._fail,
            on_no_room=self._queues_found_no_room,
            on_delete=self._open_files.drop,
        )
        self._hot = HotReader(self._log, self._queues.files, self._open_files)
        self._index = Index(disk, config, self._log, clock, reader, self._arm)
        self.space = DiskSpace(disk, writable, config, clock, reader, self._looked_at_disk)
        self._retention = Retention(
            disk, self._log, self._queues, self._index, self.space, config, clock, reader,
            flush=self.flush, on_delete=self._open_files.drop,
        )  # fmt: skip
        #: who is asked before old messages are deleted
        self.lodgers = self._retention.lodgers
        self.lodgers["entries of consume queues"] = lambda end: min(end, self._queued)
        self.clean = self._retention.clean
        #: since the start: messages appended and refused, reads with messages and without
        self.appended = self.refused = self.found = self.missed = 0
        #: where the log ended then: what a thing of before the start points to behind it is lost
        self.opened_at = 0
        self._lock: Lock | None = None
        self._checkpoint: Checkpoint
        self._abort: Abort
        self._commit: GroupCommit
        #: why there are no more appends
        self._refusal: str | None = "the store is not open"
        self._failed = False
        #: why there are no more appends until there is room on the disk; then records that are appended could not even
        #: be written, or they can and only new messages are refused
        self._short: str | None = None
        self._stuck = False
        #: appended, not yet seen by readers
        self._rows: deque[_Row] = deque()
        self._turn_ends = False
        self._stored_ms = 0
        #: store time of the last message that readers see
        self._seen_ms = 0
        #: where in the log its record ends, and below which all queue entries are durable: a queue whose messages are
        #: deleted with the log knows only from its entries which offset comes next
        self._seen = self._queued = 0
        self._tick: Timer | None = None
        self._tick_ms = 0
        self._writing_queues = False
        self._next_checkpoint_ms = 0
        self._deleted: DeletedTopics
        #: topics to be deleted one after the other, each with who waits for it
        self._deletions: deque[tuple[frozenset[str], Later[None]]] = deque()
        #: the answer to `stop`
        self._idle: Later[None] | None = None

    # ---------------------------------------------------------------------------------------- opening, closing

    def open(self) -> None:
        """Recover and be ready. Raises StoreRefused, OSError."""
        self._refuse_foreign()
        try:
            lock = self.disk.lock("lock")
        except BlockingIOError as error:
            raise StoreRefused(f"{error.filename}: another broker uses this store; stop it first") from error
        try:
            self._recover()
        except BaseException:
            lock.close()
            raise
        self._lock = lock

    def _refuse_foreign(self) -> None:
        foreign.refuse(self.disk)

    def _recover(self) -> None:
        self._abort = abort = Abort(self.disk)
        self._checkpoint = checkpoint = Checkpoint(self.disk, apache_crashed=abort.present and not abort.ours)
        self._deleted = DeletedTopics(self.disk)
        self._queues.finish_deleting(self._deleted.positions)
        recovered = Recovery(
            self.disk, self._log, self._queues, checkpoint, self._abort, self._deleted.positions, self._tags_code
        ).run()
        self._log.start(recovered.first, recovered.end)
        self._stored_ms = self._seen_ms = recovered.stored_ms
        self._seen = self._queued = self.opened_at = recovered.end
        self._commit = GroupCommit(
            self._log,
            checkpoint,
            self._clock,
            self._flusher,
            interval_ms=0 if self._sync_flush else self._config.flush_interval_commit_log,
            timeout_ms=self._config.sync_flush_timeout,
            on_flushed=self._flushed,
            on_failed=self._fail,
        )
        self._abort.write()
        self._next_checkpoint_ms = self._clock.now_ms() + CHECKPOINT_MS
        self._refusal = None
        self.space.start()
        self._retention.start()
        self._index.open(crashed=self._abort.present, ours=self._abort.ours, checkpoint_ms=checkpoint.index_ms)

    def stop(self) -> Reply[None]:
        """Refuse appends from now on; answers when all is durable and no thread works for the store any more."""
        self._refusal = self._refusal or "the broker is stopping"
        self.space.stop()
        return chain(self._retention.stop(), lambda _: self._stop())

    def _stop(self) -> Reply[None]:
        self._write()
        if self._failed or self._stuck:
            return None
        idle = self._idle = Later[None]()

        def flushed(_: None) -> None:
            if not self._writing_queues and idle.pending:
                idle.resolve(None)

        flush = self.flush()
        if isinstance(flush, Later):
            flush.then(flushed, lambda _: None)  # a failure resolves `idle` itself
        else:
            flushed(None)
        return idle if idle.pending else None

    def close(self) -> None:
        """Flush everything, so that the next start finds a clean store. Call it when `stop` has answered: with work
        under way in another thread the store closes, but the next start will check it as after a crash."""
        if self._lock is None:
            return
        self._refusal = self._refusal or "the broker is stopping"
        if self._tick is not None:
            self._tick.cancel()
        self._write()
        busy = self._commit.syncing or self._writing_queues
        if self._stuck:
            log.error("messages of the last moments are lost: %s", self._short)
        elif not busy and not self._failed:
            self._close_cleanly()
        self._commit.stop(ServiceUnavailable(self._refusal))
        self._queues.stop()
        self.space.stop()
        self._retention.stop()
        self._index.close()
        self._log.close()
        self._open_files.close()
        if not busy:
            self._checkpoint.close()
        self._lock.close()
        self._lock = None

    def _close_cleanly(self) -> None:
        try:
            self._commit.sync_now()
            self._queues.sync_now()
            self._index.sync_now()
            self._checkpoint.save(self._seen_ms, self._seen_ms, self._seen, self._index.durable_ms)
            self._abort.remove()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """The disk failed: nobody knows what is on it. No append and no flush succeeds any more, until a restart."""
        if self._failed:
            return
        self._failed = True
        self._refusal = f"{_describe(error)}; the broker takes no messages until it is restarted"
        log.error("%s", self._refusal)
        self._queues.stop()
        self._retention.stop()
        self._index.stop()
        self._commit.stop(ServiceUnavailable(self._refusal))
        if self._idle is not None and self._idle.pending:
            self._idle.resolve(None)

    # -------------------------------------------------------------------------------------------------- appending

    @property
    def flushed(self) -> int:
        """The log is durable up to here."""
        return self._commit.flushed

    @property
    def crashed(self) -> bool:
        """It was not closed before it was opened."""
        return self._abort.present

    @property
    def end(self) -> int:
        """Where the next record will begin, or its file."""
        return self._log.end

    def append(self, messages: Sequence[Message], *, urgent: bool = False, again: bool = False) -> list[Appended]:
        """Give each message the next offset of its queue and its place in the log; readers see it later. `urgent`: what
        consumers need to come to an end with what they have, taken as long as there is any room at all. `again`: these
        were taken before, maxMessageSize may have been another one then. Raises IllegalTopic, BodyTooLarge,
        PropertiesTooLarge, SystemBusy, and nothing is appended; ServiceUnavailable, and messages before the one that
        found no room may be stored."""
        if self._short is not None and (self._stuck or not urgent):
            self.refused += len(messages)
            raise ServiceUnavailable(self._short)
        sizes = self._check(messages, self._max_record if again else self._max_body)
        commit_log, queues, store_host = self._log, self._queues.known, self.store_host
        now_ms = self._clock.now_ms()
        stored_ms = self._stored_ms = now_ms if now_ms > self._stored_ms else self._stored_ms
        appended = []
        if not self._turn_ends:
            self._turn_ends = True
            self._clock.call_soon(self._end_turn)
        for message, size in zip(messages, sizes, strict=True):
            topic, queue_id = message.topic, message.queue_id
            try:
                queue = queues.get((topic, queue_id)) or self._queues.open(topic, queue_id)
                position = commit_log.place(size)
            except OSError as error:
                raise self._no_room(error) from error
            queued = is_queued(message.sys_flag)
            offset = queue.next_offset if queued else 0
            commit_log.add(
                encode(
                    message,
                    queue_offset=offset,
                    commit_log_offset=position,
                    stored_ms=stored_ms,
                    store_host=store_host,
                )
            )
            if queued:
                queue.next_offset = offset + 1
                properties = message.properties
                code = self._tags_code(topic, properties, stored_ms)
                self._rows.append((position + size, position, size, queue, offset, code, properties, stored_ms))
            appended.append(Appended(position, size, queue_id, offset, stored_ms))
        self.appended += len(appended)
        return appended

    def _check(self, messages: Sequence[Message], max_body: int) -> list[int]:
        """The sizes of the messages' records, when all of them may be appended."""
        if self._refusal is not None:
            raise ServiceUnavailable(self._refusal)
        if self._queues.unwritten > MAX_UNWRITTEN_ENTRIES:
            raise SystemBusy("the disk is too slow: the consume queues are far behind the commit log; try again later")
        store_host, max_record = self.store_host, self._max_record
        sizes = []
        for message in messages:
            size = size_of(message, store_host=store_host)
            if len(message.body) > max_body or len(message.properties) > MAX_PROPERTIES_BYTES or size > max_record:
                raise self._too_large(message)
            sizes.append(size)
        return sizes

    def _too_large(self, message: Message) -> SaturnError:
        body_bytes, properties_bytes = len(message.body), len(message.properties)
        if properties_bytes > MAX_PROPERTIES_BYTES:
            return PropertiesTooLarge(
                f"the properties have {properties_bytes} bytes, the limit is {MAX_PROPERTIES_BYTES}"
            )
        if body_bytes > self._max_body:
            return BodyTooLarge(f"the body has {body_bytes} bytes, maxMessageSize is {self._max_body}")
        return BodyTooLarge(
            f"the body has {body_bytes} bytes, a commit log file only {self._log.file_size} (mappedFileSizeCommitLog)"
        )

    def _no_room(self, error: OSError) -> ServiceUnavailable:
        if self._log.broken:
            self._fail(error)
        return ServiceUnavailable(self.space.explain(error) if is_no_room(error) else _describe(error))

    def _looked_at_disk(self) -> None:
        """There is room, or there is not."""
        self._log.full = self.space.full
        if self._stuck:
            self._write()
        if not self._stuck:
            self._short = self.space.refusal

    def _queues_found_no_room(self, error: BaseException) -> None:
        """The entries wait in memory; a log that cannot grow does not let them become many."""
        log.warning("consume queues cannot be written yet: %s", error)
        self._rest()

    def _end_turn(self) -> None:
        self._turn_ends = False
        self._write()

    def _write(self) -> None:
        """Bring appended records into the file; the rest of the pipeline follows."""
        if self._failed:
            return
        try:
            self._log.write()
        except OSError as error:
            if self._log.broken:
                self._fail(error)
            elif not self._stuck:
                self._stuck, self._short = True, self.space.explain(error)
                log.error("%s", self._short)
            return
        self._stuck = False
        if not self._sync_flush:
            self._show(self._log.written)
        if self._log.written > self._commit.flushed:
            self._commit.written()

    @property
    def first(self) -> int:
        """Where the log begins."""
        return self._log.first

    @property
    def appended_bytes(self) -> int:
        """Of the log since the start."""
        return self._log.end - self.opened_at

    @property
    def unseen_bytes(self) -> int:
        """Of messages that readers do not see yet."""
        return self._log.end - self._rows[0][1] if self._rows else 0

    def when_durable(self, position: int, value: T) -> Reply[T]:
        """The value when everything below the log position may be acknowledged: under SYNC_FLUSH after a successful
        fdatasync that covers it, under ASYNC_FLUSH now. Fails with FlushTimeout, ServiceUnavailable."""
        if self._failed:
            raise ServiceUnavailable(self._refusal)
        return self._commit.wait(position, value) if self._sync_flush else value

    def flush(self) -> Reply[None]:
        """Answers when everything appended so far is durable. Fails with ServiceUnavailable."""
        self._write()
        if self._failed or self._stuck:
            raise ServiceUnavailable(self._refusal if self._failed else self._short)
        reply = self._commit.wait(self._log.end, None, timeout=False)
        self._commit.sync()
        return reply

    # ------------------------------------------------------------------------------------------- showing to readers

    def _flushed(self) -> None:
        if self._sync_flush:
            self._show(self._commit.flushed)

    def _show(self, upto: int) -> None:
        rows, queues, on_arrival = self._rows, self._queues, self.on_arrival
        if not rows or rows[0][0] > upto:
            return
        arrivals = []
        indexed: list[Row] = []
        while rows and rows[0][0] <= upto:
            self._seen, position, size, queue, offset, code, properties, stored_ms = rows.popleft()
            queues.add(queue, position, size, code)
            indexed.append((queue.topic, position, properties, stored_ms))
            if on_arrival is not None:
                arrivals.append(Arrival(queue.topic, queue.queue_id, offset, code, properties, stored_ms))
            self._seen_ms = stored_ms
        self._index.feed(indexed, upto)
        self._arm()
        if on_arrival is not None:
            for arrival in arrivals:
                on_arrival(arrival)

    # ---------------------------------------------------------------------------- queues and index to disk, checkpoint

    def _arm(self) -> None:
        self._write_queues_at(self._clock.now_ms() + self._config.flush_interval_consume_queue)

    def _write_queues_at(self, when_ms: int) -> None:
        """Or sooner."""
        if self._writing_queues or self._failed or (self._tick is not None and self._tick_ms <= when_ms):
            return
        if self._tick is not None:
            self._tick.cancel()
        self._tick_ms = when_ms
        self._tick = self._clock.call_at(when_ms, self._write_queues)

    def _write_queues(self) -> None:
        """Bring the tails into the files, once their records are durable; sometimes make the files durable too."""
        self._tick = None
        if self._failed or self._refusal is not None or self._writing_queues:
            return  # topics may be being deleted: `_rest` comes again
        self._writing_queues = True  # before messages are shown, which asks for this again
        self._write()
        if self._failed or self._stuck:
            self._writing_queues = False
            self._arm()
            return
        seen, tails, writes = (self._seen, self._seen_ms), self._queues.take(), self._index.take()
        flush = self.flush() if not self._sync_flush else None

        def write(_: None) -> None:
            self._queues.write(tails, lambda: self._wrote_queues(seen, writes))

        def failed(error: BaseException) -> None:
            """The store has failed, and everybody knows."""

        if isinstance(flush, Later):
            flush.then(write, failed)
        else:
            write(None)

    def _wrote_queues(self, seen: tuple[int, int], writes: list[IndexWrite]) -> None:
        self._index.write(writes, lambda: self._wrote_index(seen))

    def _wrote_index(self, seen: tuple[int, int]) -> None:
        if self._clock.now_ms() >= self._next_checkpoint_ms or seen[0] - self._queued >= CHECKPOINT_BYTES:
            self._queues.sync(lambda: self._save_checkpoint(*seen))
        else:
            self._rest()

    def _save_checkpoint(self, seen: int, seen_ms: int) -> None:
        checkpoint, index_ms = self._checkpoint, self._index.durable_ms
        self._background.run(
            lambda: checkpoint.save(seen_ms, seen_ms, seen, index_ms),
            lambda _: self._saved_checkpoint(seen),
            self._fail,
        )

    def _saved_checkpoint(self, seen: int) -> None:
        self._queued = seen
        self._next_checkpoint_ms = self._clock.now_ms() + CHECKPOINT_MS
        self._rest()

    def _rest(self) -> None:
        self._writing_queues = False
        self._delete_next()
        if self._writing_queues:
            return
        if self._idle is not None and self._idle.pending:
            self._idle.resolve(None)
        elif self._queues.dirty or self._index.dirty:
            self._arm()
        elif self._queued < self._seen:
            self._write_queues_at(self._next_checkpoint_ms)

    # ------------------------------------------------------------------------------------------- deleting topics

    def delete(self, topics: Iterable[str]) -> Reply[None]:
        """Delete the messages of these topics: their queues are gone, and begin again at offset 0 when the names are
        used again. While that is done appends to them are refused, and no queue files are written. Fails with
        ServiceUnavailable."""
        later: Later[None] = Later()
        self._deletions.append((frozenset(topics), later))
        self._delete_next()
        return later

    def deleted_before(self, topic: str) -> int:
        """Messages of the topic before this log position are deleted; 0: none are."""
        return self._deleted.position(topic)

    def _delete_next(self) -> None:
        if self._writing_queues or not self._deletions:
            return
        self._writing_queues = True
        topics, later = self._deletions.popleft()

        def deleted(_: None) -> None:
            later.resolve(None)
            self._rest()

        def failed(error: BaseException) -> None:
            later.fail(ServiceUnavailable(_describe(error)) if isinstance(error, OSError) else error)
            self._rest()

        try:
            hear(self._delete(topics), deleted, failed)
        except (SaturnError, OSError) as error:
            failed(error)

    def _delete(self, topics: frozenset[str]) -> Reply[None]:
        """While no queue entries are written. What is on its way to its queue must have come there first."""
        if self._refusal is not None:
            raise ServiceUnavailable(self._refusal)
        if any(row[3].topic in topics for row in self._rows):
            return chain(self.flush(), lambda _: self._delete(topics))
        self._queues.close(topics)
        written = Later[None]()
        reply: Reply[None] = written
        deleted, positions = self._deleted, self._deleted.with_deleted(topics, self._log.end, self._log.first)

        def failed(error: BaseException) -> None:
            if is_no_room(error):  # the file is as it was; after any other error a restart sees what was done
                self._queues.reopen(topics)
            written.fail(error)

        self._background.run(lambda: deleted.write(positions), written.resolve, failed)
        return chain(reply, lambda _: self._queues.delete_topics(topics))

    # ---------------------------------------------------------------------------------------------------- reading

    def get(
        self,
        topic: str,
        queue_id: int,
        offset: int,
        max_messages: int,
        max_bytes: int,
        codes: frozenset[int] | None = None,
        matches: Matches | None = None,
    ) -> Reply[Found]:
        """Messages of a queue from `offset` on, those whose tags code is one of `codes` (None or empty: all), or that
        match: now when they are in memory, else later. The first one is given even if it is longer than `max_bytes`."""
        queue = self._queues.find(topic, queue_id)
        if queue is None:
            self.missed += 1
            return Found(status=FoundStatus.EMPTY, next_offset=0, min_offset=0, max_offset=0)
        low, high = queue.min_offset, queue.max_offset
        if not low <= offset < high:
            self.missed += 1
            return _outside(offset, low, high)
        self.found += 1
        file_size = self._log.file_size

        def find(reader: Reader) -> Found:
            if matches is None:
                found = find_messages(reader, file_size, queue, offset, high, max_messages, max_bytes, codes)
            else:
                found = find_matching(reader, file_size, queue, offset, high, max_messages, max_bytes, matches)
            next_offset, records, offsets, positions = found
            return Found(
                status=FoundStatus.FOUND if records else FoundStatus.NO_MATCH,
                next_offset=next_offset,
                min_offset=low,
                max_offset=high,
                records=records,
                offsets=offsets,
                positions=positions,
            )

        return self._read(
            find, lambda: self.get(topic, queue_id, offset, max_messages, max_bytes, codes, matches), queue
        )

    def record_at(self, commit_log_offset: int) -> Reply[bytes | None]:
        """The record that begins at this log position, durable or not; None when none does."""
        if not self._log.first <= commit_log_offset < self._log.end:
            return None
        if commit_log_offset >= self._log.written:
            self._write()
        end, file_size = self._log.written, self._log.file_size
        return self._read(
            lambda reader: read_record(reader, file_size, commit_log_offset, end),
            lambda: self.record_at(commit_log_offset),
        )

    def records(self, places: Sequence[tuple[int, int]]) -> Reply[list[bytes | None]]:
        """The records at these log positions and of these sizes, all visible; None where no such one stands."""
        return self._read(lambda reader: read_places(reader, places), lambda: self.records(places))

    def min_offset(self, topic: str, queue_id: int) -> int:
        """Of the oldest message kept; 0 of an unknown queue."""
        queue = self._queues.find(topic, queue_id)
        return 0 if queue is None else queue.min_offset

    def max_offset(self, topic: str, queue_id: int) -> int:
        """Of the next message to become visible; 0 of an unknown queue."""
        queue = self._queues.find(topic, queue_id)
        return 0 if queue is None else queue.max_offset

    def next_offset(self, topic: str, queue_id: int) -> int:
        """Of the next message to be appended; 0 of an unknown queue."""
        queue = self._queues.find(topic, queue_id)
        return 0 if queue is None else queue.next_offset

    def offset_by_time(self, topic: str, queue_id: int, stored_ms: int, boundary: Boundary) -> Reply[int]:
        """Which message a time stands for. After the last one: LOWER gives `max_offset`, UPPER the last one; before the
        first one, both give `min_offset`."""
        queue = self._queues.find(topic, queue_id)
        if queue is None:
            return 0
        low, high = queue.min_offset, queue.max_offset
        return self._read(
            lambda reader: find_time(reader, queue, low, high, stored_ms, boundary),
            lambda: self.offset_by_time(topic, queue_id, stored_ms, boundary),
            queue,
        )

    def stored_ms_at(self, topic: str, queue_id: int, offset: int) -> Reply[int]:
        """When the message was stored; -1 when there is none."""
        queue = self._queues.find(topic, queue_id)
        if queue is None or not queue.min_offset <= offset < queue.max_offset:
            return -1
        return self._read(
            lambda reader: read_stored_ms(reader, queue, offset),
            lambda: self.stored_ms_at(topic, queue_id, offset),
            queue,
        )

    def query(
        self, topic: str, key: str, max_count: int, begin_ms: int, end_ms: int, kind: KeyKind = KeyKind.KEY
    ) -> Reply[list[bytes]]:
        """The newest records of a topic with this key that were stored in [begin_ms, end_ms], newest first; no more
        than maxMsgsNumBatch."""
        max_count = min(max_count, self._config.max_msgs_num_batch)
        if max_count <= 0:
            return []
        query = Query(topic=topic, key=key, kind=kind, max_count=max_count, begin_ms=begin_ms, end_ms=end_ms)
        first = max(self._log.first, self._deleted.position(topic))
        end, file_size = self._log.written, self._log.file_size
        try:
            chains = self._index.chains(query, cold=False)
            return find_by_key(self._hot, chains, query, first, end, file_size, cold=False)
        except Cold:
            chains, reader = self._index.chains(query, cold=True), ColdReader(self._log, self._queues.files, None)
            return self._read_cold(
                lambda: find_by_key(reader, chains, query, first, end, file_size, cold=True),
                lambda: self.query(topic, key, max_count, begin_ms, end_ms, kind),
            )

    @property
    def indexed(self) -> tuple[int, int]:
        """Store time and log position of the last message that a query can find; zeros when there is none."""
        return self._index.end_ms, self._index.end_position

    @property
    def index_behind(self) -> int:
        """Bytes of the log that a query asked in this turn does not look through: after a crash, for a while."""
        return self._index.behind

    def topics(self) -> list[str]:
        """Those with queues on disk."""
        return self._queues.topics()

    def queues(self, topic: str) -> list[int]:
        """Ids of the topic's queues that hold data, or did."""
        return self._queues.ids(topic)

    def position_at(self, topic: str, queue_id: int, offset: int) -> Reply[int]:
        """Where the message stands in the log; -1 when there is none."""
        queue = self._queues.find(topic, queue_id)
        if queue is None or not queue.min_offset <= offset < queue.max_offset:
            return -1
        return self._read(
            lambda reader: read_position(reader, queue, offset),
            lambda: self.position_at(topic, queue_id, offset),
            queue,
        )

    def entries(self, topic: str, queue_id: int, offset: int, most: int) -> Reply[list[tuple[int, int, int]]]:
        """What the consume queue says from the offset on: log position, size and tags code of each message. Nothing
        when the offset is outside of it."""
        queue = self._queues.find(topic, queue_id)
        if queue is None or not queue.min_offset <= offset < queue.max_offset:
            return []
        end = min(offset + most, queue.max_offset)
        return self._read(
            lambda reader: read_entries(reader, queue, offset, end),
            lambda: self.entries(topic, queue_id, offset, most),
            queue,
        )

    def is_recent(self, topic: str, queue_id: int, offset: int) -> bool:
        """Whether the log has grown by less than RECENT_BYTES since the message was stored: the message counts as in
        memory (Apache's checkInStoreByConsumeOffset, by which a new group begins at 0). False when there is none."""
        if self._log.end - self._log.first <= RECENT_BYTES:
            return self.min_offset(topic, queue_id) <= offset < self.max_offset(topic, queue_id)
        position = self.position_at(topic, queue_id, offset)
        return not isinstance(position, Later) and position >= self._log.end - RECENT_BYTES

    def first_position(self, places: Iterable[tuple[str, int, int]], end: int) -> Reply[int]:
        """The lowest log position of these messages (topic, queue id, queue offset), or `end` when that is lower. What
        a lodger answers."""
        positions = gather([self.position_at(*place) for place in places])
        return after(positions, lambda found: min(position for position in (*found, end) if position >= 0))

    def _read(
        self, look: Callable[[Reader], T], again: Callable[[], Reply[T]], queue: ConsumeQueue | None = None
    ) -> Reply[T]:
        try:
            return look(self._hot)
        except Cold:
            reader = ColdReader(self._log, self._queues.files, queue)
            return self._read_cold(lambda: look(reader), again, queue)

    def _read_cold(
        self, look: Callable[[], T], again: Callable[[], Reply[T]], queue: ConsumeQueue | None = None
    ) -> Reply[T]:
        """In a thread. When the file that it wants is deleted before it comes to it, begin `again`."""
        later: Later[T] = Later()
        first, low = self._log.first, 0 if queue is None else queue.min_offset

        def failed(error: BaseException) -> None:
            if isinstance(error, FileNotFoundError) and (
                self._log.first > first or (queue is not None and queue.min_offset > low)
            ):
                try:
                    hear(again(), later.resolve, later.fail)
                except OSError as new_error:
                    later.fail(new_error)
            else:
                later.fail(error)

        self._background.run(look, later.resolve, failed)
        return later

    def configure(self, config: StoreConfig) -> None:
        """Take over what may change while the store is open: when messages are deleted, how full the disk may be, how
        long messages may be, how many a query finds. Raises ValueError."""
        self._retention.configure(config)
        self.space.configure(config)
        self.config = self._config = config
        self._max_body = config.max_message_size

    def measure(self, metrics: Metrics) -> None:
        """Show what the store's files take."""
        metrics.gauge("saturnmq_commit_log_min_offset", "Log position of the oldest byte kept", lambda: self._log.first)
        metrics.gauge("saturnmq_commit_log_max_offset", "Log position of the next message", lambda: self._log.end)
        self.space.measure(metrics)


def _outside(offset: int, low: int, high: int) -> Found:
    if high == 0:
        status, next_offset = FoundStatus.EMPTY, 0
    elif offset < low:
        status, next_offset = FoundStatus.BEFORE, low
    elif offset == high:
        status, next_offset = FoundStatus.END, offset
    else:
        status, next_offset = FoundStatus.BEYOND, high
    return Found(status=status, next_offset=next_offset, min_offset=low, max_offset=high)


def _describe(error: BaseException) -> str:
    """What the operator must know: which file, which errno."""
    if isinstance(error, OSError):
        return f"the disk failed: {error.filename}: {error.strerror} (errno {error.errno})"
    return f"the disk failed: {error}"
