"""Checks a whole data directory (`saturnmq admin verify`): every record of the log, that queues and index hold what the
log holds, checkpoint and config files. Nothing is changed, and a server may be at work.

The log is read once, from front to back, the index beside it. In memory are counters by queue, and what the next
comparison needs.
"""

from __future__ import annotations

from typing import Any

from saturnmq.disk.port import Disk
from saturnmq.kernel.config import StoreConfig, parse_delays
from saturnmq.kernel.errors import ProtocolError
from saturnmq.kernel.message import INNER_BATCH, TRANSACTION_MASK, TRANSACTION_ROLLBACK
from saturnmq.store import deleted, foreign
from saturnmq.store.checkpoint import ABORT, MARGIN_MS, OURS, PARSED_BYTES, Said, parse
from saturnmq.store.checkpoint import PATH as CHECKPOINT
from saturnmq.store.commitlog import log_directories
from saturnmq.store.consumequeue import DIRECTORY as QUEUES
from saturnmq.store.consumequeue import ENTRY_BYTES
from saturnmq.store.dispatch import find_property, is_queued, tags_code
from saturnmq.store.findings import Finding, State, Tell, Totals
from saturnmq.store.keys import hashes
from saturnmq.store.scan import Blank, Damage, End, data_behind, find_log, scan_rows, size_of
from saturnmq.store.verifyindex import IndexCheck
from saturnmq.store.verifyqueues import QueueCheck
from saturnmq.store.walk import Row, Walk, has_lost_sectors
from saturnmq.wire.record import decode, whole_crc
from saturnmq.wire.remoting import json

LOCK = "lock"
CONFIG = "config"
LMQ_PREFIX = "%LMQ%"

_CHECKPOINT_BYTES = 4096

_SIZES = "set mappedFileSizeCommitLog to the size that this store was made with"
_RESTORE = "restore the file from a replica or a copy"
_REPAIRED = "a start keeps the bytes in damaged/, puts a filler in their place, and goes on behind it"
_LEFT_OUT = (
    "readers leave these messages out, and a start does not look there; one that goes through the whole log, as when "
    "consumequeue is moved away, keeps the bytes in damaged/ and puts a filler in their place"
)
_WITHOUT_CHECKPOINT = "a start looks through more of the log"


def is_store(disk: Disk) -> bool:
    """Whether there is anything to verify."""
    return bool({CHECKPOINT, ABORT, LOCK, QUEUES, "commitlog"}.intersection(disk.list(""))) or bool(foreign.find(disk))


def verify(disk: Disk, config: StoreConfig | None, tell: Tell) -> Totals:
    """Tell what is found, and sum up. `config` None: file sizes are what the files say, all else is as by default.
    Raises OSError, ValueError of settings that cannot be understood."""
    return Verifier(disk, config, tell).run()


class Verifier:
    """One look at one directory."""

    def __init__(self, disk: Disk, config: StoreConfig | None, tell: Tell) -> None:
        self._disk, self._sizes_known, self._config, self._told = (
            disk,
            config is not None,
            config or StoreConfig(),
            tell,
        )
        self.totals = Totals()
        self._delays_ms = parse_delays(self._config.message_delay_level)
        writable, read_only = log_directories(self._config)
        self._log, self._strays = find_log(
            disk, [*writable, *read_only], self._config.mapped_file_size_commit_log if self._sizes_known else None
        )
        self._times = self._read_checkpoint()
        live = disk.lock_holder(LOCK) is not None
        crashed = not live and disk.exists(ABORT)
        #: the log had been durable up to here, as far as a start knows
        self._durable = self._times.confirmed if self._times.is_confirmed or not crashed else -1
        self._state = State(
            live=live, crashed=crashed, rebuilt_from=self._rebuilt_from(crashed=crashed), index_ms=self._times.index_ms
        )
        self._deleted = deleted.read(disk)
        self._batch_topics = frozenset(disk.list("batchconsumequeue"))
        self._lmqs = frozenset(name for name in disk.list(QUEUES) if name.startswith(LMQ_PREFIX))
        #: of all records so far
        self._stored_ms = 0
        self._queues: QueueCheck
        self._index: IndexCheck

    def run(self) -> Totals:
        found = foreign.find(self._disk)
        for each in found:
            self._damage(each.path, None, each.what, f"a start refuses the store: {each.remedy}")
        self._check_log_files()
        queue_size = self._config.mapped_file_size_consume_queue if self._sizes_known else None
        self._queues = QueueCheck(
            self._disk, self._log, self._state, queue_size and -(-queue_size // ENTRY_BYTES) * ENTRY_BYTES,
            self._tell, self.totals,
            there=self._disk.exists(QUEUES) and not any(each.path.startswith(QUEUES) for each in found),
        )  # fmt: skip
        self._index = IndexCheck(self._disk, self._config, self._state, self._log.first, self._tell, self.totals)
        end = self._check_log()
        self._queues.finish(end)
        self._index.finish(end)
        self._check_queues_exist()
        self._check_checkpoint()
        self._check_config()
        return self.totals

    def _tell(self, finding: Finding) -> None:
        if finding.is_damage:
            self.totals.damages += 1
        else:
            self.totals.notes += 1
        self._told(finding)

    def _damage(self, path: str, at: int | None, what: str, effect: str) -> None:
        self._tell(Finding(True, path, at, what, effect))

    def _note(self, path: str, at: int | None, what: str, effect: str) -> None:
        self._tell(Finding(False, path, at, what, effect))

    # -------------------------------------------------------------------------------------- what a start would do

    def _rebuilt_from(self, *, crashed: bool) -> int:
        """As `Recovery` decides it."""
        starts = list(self._log.paths)
        if not self._disk.exists(QUEUES):
            return self._log.first
        if not crashed:
            return starts[-1] + self._log.file_size if starts else 0
        if self._disk.read_file(ABORT) == OURS and self._log.first <= self._times.queued <= self._durable:
            return self._times.queued
        safe_ms = min(self._times.log_ms, self._times.queues_ms) - MARGIN_MS
        for start in reversed(starts):
            record = next(iter(Walk(self._log, start, start + 1, start + 1)), None)
            if record is not None and 0 < record.stored_ms <= safe_ms:
                return start
        return self._log.first

    def _effect(self, position: int) -> str:
        """Of damage in the log."""
        if self._state.live:
            return _LEFT_OUT
        return _REPAIRED if position >= self._looked_from() else _LEFT_OUT

    def _looked_from(self) -> int:
        """Where a start begins to look at the log, as `Recovery` decides it."""
        log, starts = self._log, list(self._log.paths)
        if self._state.crashed or not self._disk.exists(QUEUES):
            return self._state.rebuilt_from
        limit = starts[-1] + log.file_size if starts else 0
        for start in reversed(starts):
            if start <= self._times.confirmed < start + log.file_size:
                walk = Walk(log, self._times.confirmed, limit, limit)
                next(iter(walk), None)
                return start if walk.reason else self._times.confirmed
            if any(log.read(start, 8)):
                return start
        return log.first

    # ---------------------------------------------------------------------------------------------------- the log

    def _check_log_files(self) -> None:
        log, starts = self._log, list(self._log.paths)
        for path in self._strays:
            what = f"is no file of a log of {log.file_size} bytes each, or is there twice"
            self._damage(path, None, what, f"a start refuses the store: move it away, or {_SIZES}")
        for start, path in log.paths.items():
            size = size_of(self._disk, path)
            self.totals.files += 1
            self.totals.bytes += size
            if size == log.file_size or self._state.live:
                continue
            what = f"has {size} bytes, not {log.file_size}"
            if start == starts[-1] and size < log.file_size:
                empty = data_behind(log, start) is None
                self._tell(Finding(not (self._state.crashed or empty), path, None, what, "a start makes it longer"))
            else:
                self._damage(path, None, what, f"a start refuses the store: {_RESTORE}, or {_SIZES}")
        self.totals.log_begin = log.first

    def _check_log(self) -> int:
        """Everything that stands in it; gives where it ends."""
        log = self._log
        end = log.first
        for piece in scan_rows(log, self._torn_from()):
            match piece:
                case list():
                    for row in piece:
                        self._check_record(row)
                case Blank():
                    pass
                case Damage():
                    self._queues.damage(piece)
                    self._index.damage(piece)
                    what = f"{piece.end - piece.position} bytes hold no record: {piece.reason}"
                    at = piece.position % log.file_size
                    self._damage(log.path(piece.position), at, what, self._effect(piece.position))
                case End():
                    self._check_end(piece)
                    end = piece.position
        self.totals.log_end = end
        return end

    def _torn_from(self) -> int | None:
        """A crash of our server leaves nothing behind this position that was acknowledged. Apache's does not say."""
        ours = self._disk.exists(ABORT) and self._disk.read_file(ABORT) == OURS
        return self._times.confirmed if ours and self._times.is_confirmed else None

    def _check_end(self, end: End) -> None:
        log, position = self._log, end.position
        path, at = log.path(position), position % log.file_size
        if position < self._durable and self._times.is_confirmed:
            what = f"the log ends there ({end.reason or 'zeros'}), it was durable up to log position {self._durable}"
            gone = self._durable > max(log.paths, default=-log.file_size) + log.file_size
            effect = f"a start refuses the store, for a file is missing: {_RESTORE}" if gone else self._effect(position)
            self._damage(path, at, what, effect)
        elif self._state.live or not log.paths:
            return
        elif end.reason and not self._state.crashed and position != self._durable:
            self._damage(path, at, f"the log ends there: {end.reason}", "a start cuts it there")
        elif end.reason:
            self._note(path, at, f"what stands behind the log's end is no record: {end.reason}", "a start cuts it")
        elif (behind := data_behind(log, position)) is not None:
            what = f"something stands behind the log's end, which is at {position}"
            self._note(log.path(behind), behind % log.file_size, what, "a start does not read it")

    def _check_record(self, row: Row) -> None:
        position, size, topic, queue_id, offset, sys_flag, stored_ms, properties = row
        self.totals.records += 1
        messages = self.totals.messages
        messages[topic] = messages.get(topic, 0) + 1
        if stored_ms != self._stored_ms:
            self._check_time(position, stored_ms)
        if b"__CRC32#" in properties or b"\0" in properties:
            self._check_properties(position, size)
        queued = not sys_flag & TRANSACTION_MASK or is_queued(sys_flag)
        if position < self._deleted.get(topic, 0):
            queued = False
        if queued and not sys_flag & INNER_BATCH and topic not in self._batch_topics:
            code = tags_code(self._delays_ms, topic, properties, stored_ms)
            self._queues.record(topic, queue_id, offset, position, size, code)
            if self._lmqs:
                self._check_lmqs(position, size, code, properties)
        elif sys_flag & TRANSACTION_MASK == TRANSACTION_ROLLBACK:
            self._queues.filler(position, size)
        if self._index.there:
            keys = hashes(topic, properties)
            self._index.record(position, stored_ms, keys, optional=not (queued and keys))

    def _check_properties(self, position: int, size: int) -> None:
        """The body's CRC does not cover them."""
        data = self._log.read(position, size)
        what = ""
        if whole_crc(data) is False:
            what = "the record does not match the CRC in its properties"
        elif has_lost_sectors(decode(data), data):
            what = "zeros stand in the properties of the record, as where a sector was lost"
        if what:
            self._damage(self._log.path(position), position % self._log.file_size, what, "readers get it as it is")

    def _check_time(self, position: int, stored_ms: int) -> None:
        if stored_ms < self._stored_ms:
            what = f"the record was stored at {stored_ms}, one before it at {self._stored_ms}"
            effect = "the clock went back, or one of them is damaged"
            self._note(self._log.path(position), position % self._log.file_size, what, effect)
        else:
            self._stored_ms = stored_ms

    def _check_lmqs(self, position: int, size: int, code: int, properties: bytes) -> None:
        """Entries of a message in light message queues (enableLmq=true)."""
        topics = (find_property(properties, b"INNER_MULTI_DISPATCH") or b"").decode("utf-8", "replace")
        offsets = (find_property(properties, b"INNER_MULTI_QUEUE_OFFSET") or b"").split(b",")
        for topic, offset in zip(topics.split(","), offsets, strict=False):
            if topic in self._lmqs and offset.isdigit():
                self._queues.record(topic, 0, int(offset), position, size, code)

    def _check_queues_exist(self) -> None:
        if self.totals.records and not self._disk.exists(QUEUES):
            self._damage(QUEUES, None, "is missing", "a start makes it anew from the commit log")

    # ----------------------------------------------------------------------------------------- the small files

    def _read_checkpoint(self) -> Said:
        """Zeros when there is none."""
        data = self._disk.read_file(CHECKPOINT) if self._disk.exists(CHECKPOINT) else b""
        apache_crashed = self._disk.exists(ABORT) and self._disk.read_file(ABORT) != OURS
        return parse(data[:PARSED_BYTES].ljust(PARSED_BYTES, b"\0"), apache_crashed=apache_crashed)

    def _check_checkpoint(self) -> None:
        if not self._disk.exists(CHECKPOINT):
            if self.totals.records:
                self._damage(CHECKPOINT, None, "is missing", _WITHOUT_CHECKPOINT)
            return
        data, times = self._disk.read_file(CHECKPOINT), self._times
        self.totals.files += 1
        self.totals.bytes += len(data)
        if len(data) != _CHECKPOINT_BYTES:
            what = f"has {len(data)} bytes, not {_CHECKPOINT_BYTES}"
            self._tell(Finding(self.totals.records > 0, CHECKPOINT, None, what, _WITHOUT_CHECKPOINT))
        if any(data[48:56]) and not times.is_confirmed:
            self._note(
                CHECKPOINT, 32, "the log position has another check", f"Apache wrote it, or {_WITHOUT_CHECKPOINT}"
            )
        if any(data[56:PARSED_BYTES]) and not times.is_ours:
            self._note(CHECKPOINT, 56, "the times have another check", _WITHOUT_CHECKPOINT)
        if self._state.live or not self.totals.records:
            return
        for name, time_ms in (("log", times.log_ms), ("queues", times.queues_ms), ("index", times.index_ms)):
            if time_ms > self._stored_ms:
                what = (
                    f"says that the {name} holds all up to {time_ms}, the last message was stored at {self._stored_ms}"
                )
                effect = "after a crash a start may look through too little of the log: move the file away"
                self._damage(CHECKPOINT, None, what, effect)
        if not times.is_confirmed and times.confirmed > self.totals.log_end:
            what = f"says that the log is durable up to {times.confirmed}, it ends at {self.totals.log_end}"
            self._damage(CHECKPOINT, 32, what, f"move the file away: without it {_WITHOUT_CHECKPOINT}")

    def _check_config(self) -> None:
        for name in self._disk.list(CONFIG):
            path = f"{CONFIG}/{name}"
            if not name.endswith((".json", ".json.bak")):
                continue
            content = self._parse(path)
            if content is not None and name == "consumerOffset.json" and not self._state.live:
                self._check_offsets(path, content)

    def _parse(self, path: str) -> Any:
        """The file's content, None when it has none."""
        data = self._disk.read_file(path)
        self.totals.files += 1
        self.totals.bytes += len(data)
        try:
            return json.parse(data, most_tokens=len(data) + 1)
        except ProtocolError as error:
            backup = f"{path}.bak"
            if path.endswith(".bak"):
                effect = "a start does not need it"
            elif self._disk.exists(backup):
                effect = f"a start takes {backup}"
            else:
                effect = "a start refuses it: restore it, or move it away and make anew what it held"
            self._damage(path, None, f"cannot be parsed: {error}", effect)
        return None

    def _check_offsets(self, path: str, content: Any) -> None:
        """No group may be ahead of its queue."""
        ends = {(topic, str(queue_id)): end for topic, queue_id, end in self._queues.ends()}
        table = content.get("offsetTable") if isinstance(content, dict) else None
        for key, offsets in (table or {}).items():
            topic, _, group = key.partition("@")
            for queue_id, offset in offsets.items():
                end = ends.get((topic, str(queue_id)))
                if end is not None and offset > end:
                    what = f"group {group} is at offset {offset} of {topic} queue {queue_id}, which ends at {end}"
                    self._damage(path, None, what, "the group gets none of the next messages, or begins again")
