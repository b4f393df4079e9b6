"""The two files that say how far a store had come: `checkpoint` and `abort`.

checkpoint, 4096 bytes, big endian (store/StoreCheckpoint.java):

    physicMsgTimestamp 8 | logicsMsgTimestamp 8 | indexMsgTimestamp 8 | masterFlushedOffset 8 | confirmPhyOffset 8
    logicsPhysicalOffset 8

The first three are store times: every message stored up to then is durable in the log, in the consume queues, in the
index with its slots. We write confirmPhyOffset after each flush of the log, without a sync of its own: whatever a crash
leaves of it is a log position below which everything had been durable, so damage there is not the torn end of a crash.
All of it stands in one sector, which no disk tears. logicsPhysicalOffset, which Apache has since 5.5, is 0 here: else a
start of its broker after a crash takes the queue entries of all messages up to that log position for durable, instead
of asking the times.

abort exists while a broker runs, or ran and crashed. Apache looks only whether it is there; ours says `saturnmq`
inside, because only of our own queues we know that no entry on disk is ahead of the durable log.

Apache's fields have no check of their own. Behind them, where Apache neither reads nor writes, stands what tells ours
from damaged ones and from what Apache wrote since:

    confirmPhyOffset's check 8 at 48 | the three times again 24 | queued 8 | the check of those 8

`queued` is the log position below which all entries of consume queues are durable: there a recovery begins. A check is
the CRC32, + 2³².
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple
from zlib import crc32

from saturnmq.disk.port import Disk, File

PATH = "checkpoint"
ABORT = "abort"
OURS = b"saturnmq"
_SIZE = 4096
_FIELDS = Struct(">qqqqq")
_TIMES = Struct(">qqq")
_CONFIRM_AT = 32
_CONFIRMED = Struct(">qqq")
_AGAIN_AT = 56
_AGAIN = Struct(">qqqqq")
PARSED_BYTES = _AGAIN_AT + _AGAIN.size
#: Apache's own margin between a store time and what it proves
MARGIN_MS = 3000


class Said(NamedTuple):
    """What a checkpoint says; `is_confirmed` and `is_ours` are true when the checks are right. `queued` is 0 unless
    both times are the same."""

    log_ms: int
    queues_ms: int
    index_ms: int
    confirmed: int
    queued: int
    is_confirmed: bool
    is_ours: bool


def parse(raw: bytes, *, apache_crashed: bool = False) -> Said:
    """Of the first PARSED_BYTES. `apache_crashed`: the last times in it are Apache's."""
    times = list(_TIMES.unpack_from(raw))
    confirmed, _, check = _CONFIRMED.unpack_from(raw, _CONFIRM_AT)
    is_confirmed = check == _check(raw[_CONFIRM_AT : _CONFIRM_AT + 8])
    *again, queued, check = _AGAIN.unpack_from(raw, _AGAIN_AT)
    is_ours = check == _check(raw[_AGAIN_AT : PARSED_BYTES - 8])
    if times != again or not is_ours:
        queued = 0
    if is_ours:
        if not apache_crashed:
            # the older ones are right, whether a crash came between the two writes, or damage, or Apache
            times = [min(pair) for pair in zip(times, again, strict=True)]
    elif not apache_crashed and any(raw[_AGAIN_AT:PARSED_BYTES]):
        times = [0, 0, 0]
    log_ms, queues_ms, index_ms = times
    return Said(log_ms, queues_ms, index_ms, confirmed, queued, is_confirmed, is_ours)


class Checkpoint:
    """Owner: the store. `confirm` and `save` may be called from other threads, each from one at a time."""

    def __init__(self, disk: Disk, *, apache_crashed: bool = False) -> None:
        """`apache_crashed`: the last times in it are Apache's."""
        self._file: File = disk.create(PATH)
        if self._file.size() < _SIZE:
            self._file.truncate(_SIZE)
            self._file.allocate(0, _SIZE)
            self._file.fdatasync()
            disk.sync_directory("")
        said = parse(self._file.pread(PARSED_BYTES, 0), apache_crashed=apache_crashed)
        self.log_ms, self.queues_ms, self.index_ms = said.log_ms, said.queues_ms, said.index_ms
        #: `is_confirmed`: we wrote `confirmed`; it is the end of a record, below which everything is durable
        self.confirmed, self.is_confirmed = said.confirmed, said.is_confirmed
        #: where a recovery after a crash of ours may begin
        self.queued = said.queued

    @property
    def safe_ms(self) -> int:
        """Messages stored up to this time are durable in log and queues."""
        return max(0, min(self.log_ms, self.queues_ms) - MARGIN_MS)

    def confirm(self, position: int) -> None:
        """The log is durable up to here."""
        packed = position.to_bytes(8, "big")
        self._file.pwrite(_CONFIRMED.pack(position, 0, _check(packed)), _CONFIRM_AT)
        self.confirmed = position

    def save(self, log_ms: int, queues_ms: int, queued: int, index_ms: int | None = None) -> None:
        """Durable on return; the index's time stays as it is when it is None. Raises OSError."""
        if index_ms is None:
            index_ms = self.index_ms
        times = _TIMES.pack(log_ms, queues_ms, index_ms)
        again = times + queued.to_bytes(8, "big")
        self._file.pwrite(again + _check(again).to_bytes(8, "big"), _AGAIN_AT)
        self._file.pwrite(times, 0)
        self._file.fdatasync()
        self.log_ms, self.queues_ms, self.index_ms, self.queued = log_ms, queues_ms, index_ms, queued

    def close(self) -> None:
        self._file.close()


def _check(packed: bytes) -> int:
    return crc32(packed) + (1 << 32)


class Abort:
    """The mark of a store in use. Owner: the store."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        #: the last process that used the store did not close it
        self.present = disk.exists(ABORT)
        #: and that process was ours
        self.ours = self.present and disk.read_file(ABORT) == OURS

    def write(self) -> None:
        self._disk.replace_file(ABORT, OURS)

    def remove(self) -> None:
        self._disk.unlink(ABORT)
        self._disk.sync_directory("")
