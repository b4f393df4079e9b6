"""Faults that somebody might make, or a refactoring: each taken into the server as it runs, to see that the campaigns
find it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any
from unittest.mock import patch

from campaign.lives import Campaign, Totals
from saturnmq.broker.halves import Halves
from saturnmq.broker.jsonfile import JsonFile
from saturnmq.broker.leasereplay import LeaseReplay
from saturnmq.disk.port import Disk, File
from saturnmq.disk.simulated import SimulatedDisk
from saturnmq.store import commitlog, flush, reading, recovery, walk
from saturnmq.store.checkpoint import Abort, Checkpoint
from saturnmq.store.consumequeue import QueueFiles
from saturnmq.store.retention import Retention
from saturnmq.store.store import Store

Plant = AbstractContextManager[Any]


def _log_not_synced(files: list[File], checkpoint: Checkpoint, target: int) -> None:
    checkpoint.confirm(target)


def _failed_sync_ignored(files: list[File], checkpoint: Checkpoint, target: int) -> None:
    for file in files:
        with suppress(OSError):
            file.fdatasync()
    checkpoint.confirm(target)


def _confirmed_before_sync(files: list[File], checkpoint: Checkpoint, target: int) -> None:
    checkpoint.confirm(target)
    for file in files:
        file.fdatasync()


def _acknowledged_before_flush(self: Store, position: int, value: Any) -> Any:
    return value


_write = Store._write


def _shown_before_flush(self: Store) -> None:
    _write(self)
    if not self._failed:
        self._show(self._log.written)


_init_json_file = JsonFile.__init__


def _offsets_before_flush(self: JsonFile, *args: Any, before: object = None, **options: Any) -> None:
    _init_json_file(self, *args, **options)


class _WithoutDirectorySync:
    """A disk that does not sync directories."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)

    def sync_directory(self, path: str) -> None:
        """Left out."""


_prepare = commitlog.prepare
_sync_queues = QueueFiles.sync
_replace_file = SimulatedDisk.replace_file


def _new_log_file_without_name(disk: Disk, path: str, file_size: int) -> None:
    _prepare(_WithoutDirectorySync(disk), path, file_size)


def _new_queue_without_name(self: QueueFiles, paths: Sequence[str]) -> None:
    disk, self.disk = self.disk, _WithoutDirectorySync(self.disk)
    try:
        _sync_queues(self, paths)
    finally:
        self.disk = disk


def _file_without_name(self: SimulatedDisk, path: str, data: bytes) -> None:
    with patch.object(SimulatedDisk, "sync_directory", lambda self, path: None):
        _replace_file(self, path, data)


_find_messages = reading.find_messages


def _served_twice(*args: Any) -> Any:
    next_offset, records, offsets, positions = _find_messages(*args)
    return next_offset - (len(records) > 1), records, offsets, positions


def _at_the_end(halves: Halves, topic: str) -> int:
    return halves._store.max_offset(topic, 0)


def _nothing(*args: Any, **options: Any) -> None:
    """Left out."""


#: by name: what is wrong
FAULTS: dict[str, Callable[[], Plant]] = {
    "the log is not synced": lambda: patch.object(flush, "_sync", _log_not_synced),
    "the error of a sync is ignored": lambda: patch.object(flush, "_sync", _failed_sync_ignored),
    "the checkpoint confirms what is not synced yet": lambda: patch.object(flush, "_sync", _confirmed_before_sync),
    "acknowledged before the flush": lambda: patch.object(Store, "when_durable", _acknowledged_before_flush),
    "shown to consumers before the flush": lambda: patch.object(Store, "_write", _shown_before_flush),
    "offsets are written before what they point to": lambda: patch.object(JsonFile, "__init__", _offsets_before_flush),
    "queues are not synced before the checkpoint": lambda: patch.object(QueueFiles, "sync", _nothing),
    "the name of a new log file is not synced": lambda: patch.object(commitlog, "prepare", _new_log_file_without_name),
    "the name of a new queue file is not synced": lambda: patch.object(QueueFiles, "sync", _new_queue_without_name),
    "the name of a config file is not synced": lambda: patch.object(SimulatedDisk, "replace_file", _file_without_name),
    "a record is served twice": lambda: patch("saturnmq.store.store.find_messages", _served_twice),
    "a damaged record is served": lambda: patch.object(reading, "is_whole", lambda record, size, position: True),
    "a half-written record counts": lambda: patch.object(walk, "has_lost_sectors", lambda record, data: False),
    "the torn end stays": lambda: patch.object(recovery, "zero_tail", _nothing),
    "a crash looks like a clean end": lambda: patch.object(Abort, "write", _nothing),
    "acknowledgements are forgotten by a restart": lambda: patch.object(LeaseReplay, "_acknowledged", _nothing),
    "half messages are forgotten by a restart": lambda: patch.object(Halves, "_begin", _at_the_end),
    "lodgers are not asked": lambda: patch.object(Retention, "_ask_lodgers", lambda self, end: end),
}  # fmt: skip


MOST_SEEDS = 60


def seeds_until_found(name: str) -> tuple[int, str] | None:
    """How many seeds it takes, and what the last one says; None: MOST_SEEDS do not find it."""
    for seed in range(1, MOST_SEEDS + 1):
        with FAULTS[name]():
            try:
                Campaign(seed, Totals()).run()
            except Exception as error:  # noqa: BLE001 - whatever goes wrong, the fault is noticed
                return seed, f"{type(error).__name__}: {error}".splitlines()[0]
    return None
