"""How far the delayed messages had come: `config/timercheck`, 4096 bytes, big endian.

    lastReadTimeMs 8 | lastTimerLogFlushPos 8 | lastTimerQueueOffset 8 | masterTimerQueueOffset 8
    stateVersion 8 | timestamp 8 | counter 8

lastReadTimeMs is the slot that is delivered next; up to lastTimerLogFlushPos the timer log is durable, with all slots
of the wheel that its entries changed; lastTimerQueueOffset is the first message of the timer topic that may have no
entry yet. All of it stands in one sector, which no disk tears. Source: store/timer/TimerCheckpoint.java.

Where Apache neither reads nor writes, at 56, stands what ours adds, with a check (CRC32 of all bytes before it, + 2³²)
that tells whether those of Apache's fields are ours too:

    timerPrecisionMs 8 | delivered 8 | passedMs 8 | passed 8 | settledMs 8 | settled 8 | check 8

Of the slot lastReadTimeMs everything up to the timer-log position `delivered` is delivered; of the slots before
`passedMs`, everything below the position `passed`: that lies behind lastReadTimeMs when the clock was put back. Of the
messages of the timer topic before the queue offset `settled`, those whose slots are before `settledMs` are delivered,
though they are sorted in anew: the other files were lost.
"""

from __future__ import annotations

from struct import Struct
from zlib import crc32

import msgspec

from saturnmq.disk.port import Disk

PATH = "config/timercheck"
_FIELDS = Struct(">qqqqqqq")
_OURS = Struct(">qqqqqq")
_CHECK = Struct(">q")
_FILE_BYTES = 4096
NOTHING = -1


class TimerCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One state of the timers, as it is or was durable."""

    read_ms: int = 0
    log_position: int = 0
    queue_offset: int = 0
    #: how often it changed, and when last
    counter: int = 0
    changed_ms: int = 0
    precision_ms: int = 0
    delivered: int = NOTHING
    passed_ms: int = 0
    passed: int = 0
    settled_ms: int = 0
    settled: int = 0
    #: the last one who wrote was ours; else what Apache does not know is empty
    is_ours: bool = False

    def encode(self) -> bytes:
        """What Apache sends of it (request GET_TIMER_CHECK_POINT)."""
        return _FIELDS.pack(
            self.read_ms, self.log_position, self.queue_offset, self.queue_offset, 0, self.changed_ms, self.counter
        )


def parse(data: bytes) -> TimerCheck:
    """Of a file that may be short."""
    data = data.ljust(_FILE_BYTES, b"\0")
    read_ms, log_position, queue_offset, master_offset, _, changed_ms, counter = _FIELDS.unpack_from(data)
    known = TimerCheck(
        read_ms=read_ms,
        log_position=log_position,
        queue_offset=min(queue_offset, master_offset),
        counter=counter,
        changed_ms=changed_ms,
    )
    end = _FIELDS.size + _OURS.size
    if _CHECK.unpack_from(data, end)[0] != _check(data[:end]):
        return known
    precision_ms, delivered, passed_ms, passed, settled_ms, settled = _OURS.unpack_from(data, _FIELDS.size)
    return msgspec.structs.replace(
        known,
        precision_ms=precision_ms,
        delivered=delivered,
        passed_ms=passed_ms,
        passed=passed,
        settled_ms=settled_ms,
        settled=settled,
        is_ours=True,
    )


def load(disk: Disk) -> TimerCheck:
    """Raises OSError."""
    return parse(disk.read_file(PATH)) if disk.exists(PATH) else TimerCheck()


def save(disk: Disk, check: TimerCheck) -> None:
    """Durable on return. Raises OSError."""
    data = check.encode() + _OURS.pack(
        check.precision_ms, check.delivered, check.passed_ms, check.passed, check.settled_ms, check.settled
    )
    is_new = not disk.exists(PATH)
    if is_new:
        disk.mkdir("config")
    file = disk.create(PATH)
    try:
        if file.size() < _FILE_BYTES:
            file.truncate(_FILE_BYTES)
        file.pwrite(data + _CHECK.pack(_check(data)), 0)
        file.fdatasync()
    finally:
        file.close()
    if is_new:
        disk.sync_directory("config")


def _check(data: bytes) -> int:
    return crc32(data) + (1 << 32)
