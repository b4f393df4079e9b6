"""Damage inside the log: the bytes are kept beside it, and records that say nothing take their place.

Apache cuts its log at the first record that it cannot read (CommitLog.recoverNormally, recoverAbnormally), with all
that follows; a log without holes is read to its end by every server. The records are fillers: valid ones of a system
topic, marked as rolled back, so that they stand in no queue and no index (CommitLogDispatcherBuildConsumeQueue,
IndexService).

Queue entries of messages that were lost lead to a filler, because Apache answers a pull with whatever record an entry
leads to and must find a whole one there. Our readers pass over it. Its clients do too: as an inner batch of no messages
(an empty body, compressed: without any Apache's client stumbles) it unwraps to nothing (PullAPIWrapper), and a delay
level throws it away for its real topic (ScheduleMessageService). A filler that is too short for all that, for damage
below 160 bytes, has none of it; and Apache's POP, which unwraps nothing, gives consumers an empty message.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator

from saturnmq.disk.port import Disk
from saturnmq.kernel.message import COMPRESSED, INNER_BATCH, NEED_UNWRAP, TRANSACTION_ROLLBACK, Message
from saturnmq.kernel.properties import REAL_TOPIC
from saturnmq.kernel.topic import HALF_TOPIC, SYSTEM_PREFIX
from saturnmq.store.commitlog import BLANK_BYTES, LogReader
from saturnmq.wire.record import BLANK, MAGIC_BLANK, MIN_SIZE, encode

log = logging.getLogger(__name__)

#: where the damaged bytes are kept, as `<log position>-<bytes>.bin`
DIRECTORY = "damaged"
FILLER_TOPIC = f"{SYSTEM_PREFIX}SATURNMQ_FILLER"

_TOPIC_BYTES = len(FILLER_TOPIC)
_EMPTY_BODY = zlib.compress(b"")
_PROPERTIES = f"{REAL_TOPIC}\x01{HALF_TOPIC}\x02".encode()
_FULL_SIZE = MIN_SIZE + _TOPIC_BYTES + len(_EMPTY_BODY) + len(_PROPERTIES)
#: what is too long is filled by several; their length stands in the properties, which end at 32,767 bytes
_MAX_SIZE = 32 << 10
_CHUNK_BYTES = 4 << 20


def repair(reader: LogReader, start: int, end: int, stored_ms: int, reason: str) -> None:
    """Take the damaged bytes out of the log, which holds a record or a file's beginning at `end`. Durable, and nothing
    is overwritten before its copy is. Raises OSError."""
    while start < end:
        file_end = start - start % reader.file_size + reader.file_size
        stop = min(end, file_end)
        kept = _keep(reader, start, stop)
        log.error(
            "%s is damaged at %d (log position %d): %s. %d bytes are overwritten, what stood there is kept as %s",
            reader.path(start), start % reader.file_size, start, reason, stop - start, kept,
        )  # fmt: skip
        _overwrite(reader, start, stop, stop == file_end, stored_ms)
        start = stop


def _keep(reader: LogReader, start: int, end: int) -> str:
    """Copy this part of the log, durably. A crash may let the same damage be found again, half overwritten: the first
    copy stays."""
    disk: Disk = reader.disk
    path = f"{DIRECTORY}/{start:020d}-{end - start}.bin"
    if disk.exists(path):
        return path
    disk.mkdir(DIRECTORY)
    file = disk.create(path + ".tmp")
    try:
        file.truncate(0)
        for at in range(start, end, _CHUNK_BYTES):
            file.pwrite(reader.read(at, min(_CHUNK_BYTES, end - at)), at - start)
        file.fdatasync()
    finally:
        file.close()
    disk.rename(path + ".tmp", path)
    disk.sync_directory(DIRECTORY)
    return path


def _overwrite(reader: LogReader, start: int, end: int, to_file_end: bool, stored_ms: int) -> None:
    blank = 0
    if to_file_end:
        blank = end - start if end - start < MIN_SIZE + BLANK_BYTES else BLANK_BYTES
    file = reader.disk.open(reader.path(start))
    try:
        position = start
        for size in _sizes(end - blank - start):
            file.pwrite(_filler(position, size, stored_ms), position % reader.file_size)
            position += size
        if blank:
            file.pwrite(BLANK.pack(blank, MAGIC_BLANK), position % reader.file_size)
        file.fdatasync()
    finally:
        file.close()


def _sizes(length: int) -> Iterator[int]:
    """Of the fillers that take up exactly this length."""
    assert length == 0 or length >= MIN_SIZE
    while length:
        size = min(length, _MAX_SIZE)
        if 0 < length - size < MIN_SIZE:
            size -= MIN_SIZE
        yield size
        length -= size


def _filler(position: int, size: int, stored_ms: int) -> bytes:
    """A record of exactly this size that says nothing."""
    topic, body, properties, flags = FILLER_TOPIC, _EMPTY_BODY, _PROPERTIES, COMPRESSED | INNER_BATCH | NEED_UNWRAP
    if size < _FULL_SIZE:
        topic, body, properties, flags = FILLER_TOPIC[: size - MIN_SIZE], b"", b"", 0
    properties += b" " * (size - MIN_SIZE - len(topic) - len(body) - len(properties))
    message = Message(topic, 0, body, properties, stored_ms, bytes(8), sys_flag=TRANSACTION_ROLLBACK | flags)
    return encode(message, queue_offset=0, commit_log_offset=position, stored_ms=stored_ms, store_host=bytes(8))
