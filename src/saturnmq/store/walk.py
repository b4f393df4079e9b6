"""Reading the log from front to back, believing nothing."""

from __future__ import annotations

from collections.abc import Iterator

from saturnmq.kernel.errors import ProtocolError
from saturnmq.kernel.message import StoredMessage
from saturnmq.store.commitlog import BLANK_BYTES, LogReader
from saturnmq.wire.record import BLANK, MAGIC_BLANK, MAGIC_V1, MAGIC_V2, MIN_SIZE, decode

_CHUNK_BYTES = 4 << 20
#: what a disk writes whole
_SECTOR_BYTES = 512
_MAGICS = (MAGIC_V1, MAGIC_V2)


class Walk:
    """The records from `start` up to the first place that holds none; `end` is then that place and `reason` says why,
    or is empty where the log is blank. Behind `durable`, where a crash may have left half-written records, a record
    with lost sectors is none, even if no CRC covers them."""

    def __init__(
        self, reader: LogReader, start: int, limit: int, durable: int, chunk_bytes: int = _CHUNK_BYTES
    ) -> None:
        self._reader = reader
        self._chunk_bytes = chunk_bytes
        self._limit = limit
        self._durable = durable
        self.end = start
        self.reason = ""
        self._blank = False
        #: bytes that the next chunk must have, for the record that was cut off in the last
        self._needed = 0

    def __iter__(self) -> Iterator[StoredMessage]:
        file_size = self._reader.file_size
        while self.end < self._limit and not self._blank and not self.reason:
            start, rest = self.end, file_size - self.end % file_size
            chunk = self._reader.read(start, min(max(self._chunk_bytes, self._needed), rest))
            if len(chunk) < self._needed:
                self.reason = "the file ends there"
            while (record := self._next(chunk, self.end - start, start + rest - self.end)) is not None:
                self.end += record.size
                yield record
                if self.end >= self._limit:
                    return

    def _next(self, chunk: bytes, at: int, rest: int) -> StoredMessage | None:
        """The record at this place of a chunk of one file. None: see `reason`, `_blank`, `_needed` or a new `end`."""
        self._needed = 0
        if self.reason:
            return None
        if len(chunk) - at < BLANK_BYTES:
            self._needed = BLANK_BYTES
            return None
        size, magic = BLANK.unpack_from(chunk, at)
        if magic == MAGIC_BLANK and size == rest:
            self.end += rest
        elif size == 0 and magic == 0:
            self._blank = True
        elif magic not in _MAGICS:
            self.reason = f"magic 0x{magic:08X} begins no record"
        elif not MIN_SIZE <= size <= rest - BLANK_BYTES:
            self.reason = f"a record of {size} bytes cannot stand there"
        elif len(chunk) - at < size:
            self._needed = size
        else:
            return self._check(chunk[at : at + size])
        return None

    def _check(self, data: bytes) -> StoredMessage | None:
        try:
            record = decode(data, check_crc=True)
        except ProtocolError as error:
            self.reason = str(error)
            return None
        if record.commit_log_offset != self.end:
            self.reason = f"the record there says that it stands at {record.commit_log_offset}"
        elif self.end >= self._durable and has_lost_sectors(record, data):
            self.reason = "the record there is half-written"
        else:
            return record
        return None


def has_lost_sectors(record: StoredMessage, data: bytes) -> bool:
    """Whether topic or properties, which no CRC covers, have zeros that a write cut off by a power cut leaves: at the
    record's end, or over a whole sector. Text of clients has none there."""
    if "\0" in record.topic:
        return True
    properties = record.properties
    if b"\0" not in properties:
        return False
    if properties[-1] == 0:
        return True
    first = record.commit_log_offset + record.size - len(properties)
    sector = first + -first % _SECTOR_BYTES
    while sector < record.commit_log_offset + record.size:
        at = sector - record.commit_log_offset
        if not data[at : at + _SECTOR_BYTES].strip(b"\0"):
            return True
        sector += _SECTOR_BYTES
    return False


def find_record(reader: LogReader, start: int, limit: int, stored_ms: int) -> int | None:
    """The position of the first whole record at or after `start` that was stored at `stored_ms` or later, if any.
    Older ones are remains of a log that was cut there before (Apache leaves them standing)."""
    position = start
    while position < limit:
        rest = reader.file_size - position % reader.file_size
        chunk = reader.read(position, min(_CHUNK_BYTES, rest))
        for magic in _MAGICS:
            at = chunk.find(magic.to_bytes(4, "big"))
            while at >= 0:
                if at + position >= start + 4 and _is_record(reader, position + at - 4, stored_ms):
                    return position + at - 4
                at = chunk.find(magic.to_bytes(4, "big"), at + 1)
        # a magic across two chunks is found in the second, which begins 3 bytes before its place
        position += len(chunk) - 3 if len(chunk) == _CHUNK_BYTES < rest else rest
    return None


def _is_record(reader: LogReader, position: int, stored_ms: int) -> bool:
    size = int.from_bytes(reader.read(position, 4), "big")
    if not MIN_SIZE <= size <= reader.file_size - position % reader.file_size:
        return False
    try:
        record = decode(reader.read(position, size), check_crc=True)
    except ProtocolError:
        return False
    return record.commit_log_offset == position and record.stored_ms >= stored_ms
