"""What a store must hold: each acknowledged message at its offset, with its bytes, and nothing that nobody sent."""

from __future__ import annotations

import subprocess
import sys
from array import array
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

from long_load import Load, Sent

from saturnmq.testing.server import LocalServer

#: files that end many times in all the rounds, and answers that do not
SETTINGS = (
    "flushDiskType=SYNC_FLUSH",
    "mappedFileSizeCommitLog=4194304",
    "mappedFileSizeConsumeQueue=20000",
    "maxIndexNum=20000",
    "maxHashSlotNum=5000",
    "maxTransferCountOnMessageInMemory=1000",
    "maxTransferBytesOnMessageInMemory=1048576",
)
TOPICS, QUEUES = 5, 4
#: of a message's body: mostly small ones, and each that is longer than a page or two
SIZES = (20, 100, 130, 300, 20, 128, 1000, 20, 60, 9000)
_NOBODY = -1


def body(number: int) -> bytes:
    """Its number, and bytes that no other message has."""
    start = b"%010d" % number
    size = SIZES[number % len(SIZES)]
    return (start + (start[::-1] + b"\0\xff") * (size // 12))[:size]


def place(number: int) -> tuple[str, int]:
    """The message's topic and queue id."""
    return f"orders-{number % TOPICS}", number // TOPICS % QUEUES


class Ledger:
    """Numbers messages, and remembers at which offset each acknowledged one must be."""

    def __init__(self) -> None:
        self._next = 0
        self.acknowledged = 0
        #: queue → the number of the message at each offset from `_first` on
        self._numbers: dict[tuple[str, int], array[int]] = {}
        self._first: dict[tuple[str, int], int] = {}

    def messages(self) -> Iterator[tuple[str, int, bytes]]:
        """New ones."""
        for number in count(self._next):
            self._next = number + 1
            yield (*place(number), body(number))

    def add(self, answers: Iterable[Sent]) -> None:
        """No offset was given twice."""
        for sent in answers:
            if sent.acknowledged:
                self.acknowledged += 1
                queue = sent.topic, sent.queue_id
                numbers, at = self._numbers.setdefault(queue, array("q")), sent.offset - self._first.get(queue, 0)
                assert at >= 0, f"{queue} gives offset {sent.offset} again"
                numbers.extend([_NOBODY] * (at + 1 - len(numbers)))
                number = int(sent.body[:10])
                assert numbers[at] in (_NOBODY, number), f"{queue} gives offset {sent.offset} again"
                numbers[at] = number

    def check(self, load: Load, *, cleaned: bool = False) -> int:
        """Read everything back; how many messages there were. `cleaned`: old ones may be deleted."""
        read = 0
        for queue in list(self._numbers):
            read += self._check_queue(load, queue, cleaned=cleaned)
        return read

    def _check_queue(self, load: Load, queue: tuple[str, int], *, cleaned: bool) -> int:
        numbers, first = self._numbers[queue], self._first.get(queue, 0)
        found = load.read(*queue, first)
        start = found[0].queue_offset if found else first + len(numbers)
        assert start == first or (cleaned and start > first), f"{queue} begins at {start}, not {first}"
        assert [stored.queue_offset for stored in found] == list(range(start, start + len(found))), queue
        known = numbers[start - first :]
        assert len(found) >= len(known), f"{queue} has lost its end: {len(found)} of {len(known)} are left"
        for stored in found:
            number = int(stored.body[:10])
            assert stored.body == body(number), f"{queue} has other bytes at {stored.queue_offset}"
            assert (place(number), number < self._next) == (queue, True), f"{queue}: nobody sent {number} here"
        came = [int(stored.body[:10]) for stored in found]
        assert len(set(came)) == len(came), f"{queue} has a message twice"
        lost = [start + at for at, number in enumerate(known) if number not in (_NOBODY, came[at])]
        assert not lost, f"{queue} has lost the messages at {lost[:10]}, {len(lost)} in all"
        # what was not acknowledged and is there stays
        self._numbers[queue], self._first[queue] = array("q", came), start
        return len(found)


def kill_under_load(server: LocalServer, load: Load, ledger: Ledger, messages: int) -> None:
    """Send as fast as it goes, and `kill -9` when so many messages are acknowledged."""
    left = messages

    def is_over(sent: Sent) -> bool:
        nonlocal left
        left -= sent.acknowledged
        if left == 0 and sent.acknowledged:
            server.kill()
        return left <= 0

    ledger.add(load.send(ledger.messages(), until=is_over))


def verify(data: Path) -> None:
    """`saturnmq admin verify` finds no damage."""
    settings = [f"--set={setting}" for setting in SETTINGS]
    command = [sys.executable, "-m", "saturnmq", "admin", "verify", str(data), *settings]
    said = subprocess.run(command, capture_output=True, check=False, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
