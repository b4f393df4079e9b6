"""Bits that flip, and sectors that are lost, in what was durable."""

from __future__ import annotations

import random

from campaign.history import Flip, History
from campaign.process import TOPICS, Settings
from saturnmq.disk.simulated import SimulatedDisk
from saturnmq.store.checkpoint import PARSED_BYTES, parse
from saturnmq.store.consumequeue import ENTRY, ENTRY_BYTES
from saturnmq.store.walk import Walk

SECTOR_BYTES = 512
#: of a record with IPv4 hosts: what its CRC covers, or its own structure
_HEAD = (*range(12), *range(28, 36), *range(84, 88))
_BODY_AT = 88


class Damage:
    """Damages a disk that no process has open. `history` gets to know which messages may be lost. `flipped`: what
    `admin verify` must find."""

    def __init__(self, disk: SimulatedDisk, settings: Settings, history: History, chance: random.Random) -> None:
        self._disk, self._settings, self._history, self._chance = disk, settings, history, chance
        self._log = settings.log(disk)
        self._files = self._log.find_files()
        raw = disk.read_file("checkpoint")[:PARSED_BYTES] if disk.exists("checkpoint") else b""
        said = parse(raw.ljust(PARSED_BYTES, b"\0"))
        #: a store knows that damage before this position is no torn end
        self._end = said.confirmed if said.is_confirmed else 0
        self.flipped: set[Flip] = set()

    def do(self, *, checkpoint: bool) -> None:
        """`checkpoint` may be damaged. What that costs beside other damage, or when records are half written, nobody
        has promised: only it tells where the log ends."""
        if checkpoint and self._chance.random() < 0.1 and self._end and not self._history.flipped:
            self._flip("checkpoint", self._chance.randrange(80))
            self.flipped.clear()
            return
        for _ in range(self._chance.choice((1, 1, 2, 4))):
            self._chance.choice((self._flip_record, self._flip_record, self._lose_sector, self._flip_entry))()

    def _is_there(self, position: int, size: int) -> bool:
        return bool(self._files) and self._files[0] <= position and position + size <= self._end

    def _flip_record(self) -> None:
        history = self._history
        bodies = [
            body for body, place in history.log.items()
            if self._is_there(*place) and body not in history.due and body not in history.damaged
        ]  # fmt: skip
        if bodies:
            body = self._chance.choice(bodies)
            position = history.log[body][0] + self._chance.choice((*_HEAD, *range(_BODY_AT, _BODY_AT + len(body))))
            self._flip(self._log.path(position), position % self._log.file_size)
            history.damaged.add(body)

    def _lose_sector(self) -> None:
        """One that holds nothing but messages of clients."""
        history = self._history
        places = {
            position: body for body, (position, size) in history.log.items()
            if self._is_there(position, size) and body not in history.due
        }  # fmt: skip
        if not places:
            return
        start = self._chance.choice(list(places)) // SECTOR_BYTES * SECTOR_BYTES
        if not self._is_there(start, SECTOR_BYTES):
            return
        first = start - start % self._log.file_size
        walk = Walk(self._log, first, first + self._log.file_size, first + self._log.file_size)
        hit = [
            (record.commit_log_offset, record.body)
            for record in walk
            if record.commit_log_offset < start + SECTOR_BYTES and start < record.commit_log_offset + record.size
        ]
        if walk.end < start + SECTOR_BYTES:
            return  # something else is damaged there, and nobody knows what stands behind it
        if hit and all(places.get(position) == body for position, body in hit):
            path = self._log.path(start)
            _write(self._disk, path, start % self._log.file_size, bytes(SECTOR_BYTES))
            history.damaged.update(body for _, body in hit)
            self._note(path, start % self._log.file_size, -1)

    def _flip_entry(self) -> None:
        """Where in the log a message stands, or how long it is. The message is not lost."""
        history = self._history
        places = {place for body, place in history.log.items() if body not in history.damaged}
        topic = self._chance.choice(list(TOPICS))
        directory = f"consumequeue/{topic}/{self._chance.randrange(TOPICS[topic])}"
        entries = [
            (f"{directory}/{name}", number * ENTRY_BYTES, (position, size))
            for name in self._disk.list(directory)
            for number, (position, size, _) in enumerate(ENTRY.iter_unpack(self._disk.read_file(f"{directory}/{name}")))
        ]
        # that of the oldest message left would look like one of a deleted message
        is_oldest = [True, *(not self._is_there(*place) for _, _, place in entries)]
        entries = [
            entry
            for entry, oldest in zip(entries, is_oldest, strict=False)
            if entry[2] in places and self._is_there(*entry[2]) and not (oldest and self._files[0])
        ]
        if entries:
            path, at, _ = self._chance.choice(entries)
            before = self.flipped.copy()
            self._flip(path, at + self._chance.randrange(12))
            if self._disk.exists("abort"):  # a start makes it anew, perhaps: then it is only noted
                self.flipped = before

    def _flip(self, path: str, offset: int) -> None:
        (byte,) = self._disk.read_file(path)[offset : offset + 1]
        bit = self._chance.randrange(8)
        if (path, offset, bit) not in self._history.flipped:
            _write(self._disk, path, offset, bytes([byte ^ 1 << bit]))
            self._note(path, offset, bit)

    def _note(self, path: str, offset: int, bit: int) -> None:
        self.flipped.add((path, offset, bit))
        self._history.flipped.add((path, offset, bit))


def _write(disk: SimulatedDisk, path: str, offset: int, data: bytes) -> None:
    file = disk.open(path)
    file.pwrite(data, offset)
    file.fdatasync()
    file.close()
