"""The two files that say how far a store had come: `checkpoint` and `abort`.

checkpoint, 4096 bytes, big endian (store/StoreCheckpoint.java):

    physicMsgTimestamp 8 | logicsMsgTimestamp 8 | indexMsgTimestamp 8 | masterFlushedOffset 8 | confirmPhyOffset 8

The first three are store times: every message stored up to then is durable in the log, in the consume queues, in the
index with its slots. We
write confirmPhyOffset after each flush of the log, without a sync of its own: whatever a crash leaves of it is a log
position below which everything had been durable, so damage there is not the torn end of a crash. Fields are aligned
words, which no disk tears.

abort exists while a broker runs, or ran and crashed. Apache looks only whether it is there; ours says `saturnmq`
inside, because only of our own queues we know that no entry on disk is ahead of the durable log.
"""

from __future__ import annotations

from struct import Struct

from saturnmq.disk.port import Disk, File

PATH = "checkpoint"
ABORT = "abort"
_OURS = b"saturnmq"
_SIZE = 4096
_FIELDS = Struct(">qqqqq")
_TIMES = Struct(">qqq")
_CONFIRM_AT = 32
#: Apache's own margin between a store time and what it proves
MARGIN_MS = 3000


class Checkpoint:
    """Owner: the store. `confirm` and `save` may be called from other threads, each from one at a time."""

    def __init__(self, disk: Disk) -> None:
        self._file: File = disk.create(PATH)
        if self._file.size() < _SIZE:
            self._file.truncate(_SIZE)
            self._file.allocate(0, _SIZE)
            self._file.fdatasync()
            disk.sync_directory("")
        self.log_ms: int
        self.queues_ms: int
        self.confirmed: int
        self.index_ms: int
        self.log_ms, self.queues_ms, self.index_ms, _, self.confirmed = _FIELDS.unpack(
            self._file.pread(_FIELDS.size, 0)
        )

    @property
    def safe_ms(self) -> int:
        """Messages stored up to this time are durable in log and queues."""
        return max(0, min(self.log_ms, self.queues_ms) - MARGIN_MS)

    def confirm(self, position: int) -> None:
        """The log is durable up to here."""
        self._file.pwrite(position.to_bytes(8, "big"), _CONFIRM_AT)
        self.confirmed = position

    def save(self, log_ms: int, queues_ms: int, index_ms: int | None = None) -> None:
        """Durable on return; the index's time stays as it is when it is None. Raises OSError."""
        if index_ms is None:
            index_ms = self.index_ms
        self._file.pwrite(_TIMES.pack(log_ms, queues_ms, index_ms), 0)
        self._file.fdatasync()
        self.log_ms, self.queues_ms, self.index_ms = log_ms, queues_ms, index_ms

    def close(self) -> None:
        self._file.close()


class Abort:
    """The mark of a store in use. Owner: the store."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        #: the last process that used the store did not close it
        self.present = disk.exists(ABORT)
        #: and that process was ours
        self.ours = self.present and disk.read_file(ABORT) == _OURS

    def write(self) -> None:
        self._disk.replace_file(ABORT, _OURS)

    def remove(self) -> None:
        self._disk.unlink(ABORT)
        self._disk.sync_directory("")
