"""Which half messages are pending.

Half messages stand in the queue of RMQ_SYS_TRANS_HALF_TOPIC. That some are done with (committed, rolled back, or
written again further on) is told by an op message: `12,15,`, their offsets, in RMQ_SYS_TRANS_OP_HALF_TOPIC, with the
tag d. The group CID_RMQ_SYS_TRANS has an offset in both queues: all halves before the first are done with, and no op
message before the second says anything that has to be known. So says Apache's broker too, and goes on with what is left
here.

A half message that is asked about is written again, since it counts its checks. Whoever ends it may mean any of the
copies: they all name the first one, their origin (TRAN_PREPARED_QUEUE_OFFSET).

Source: broker/transaction/queue/TransactionalMessageServiceImpl.java.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Mapping
from typing import cast

from saturnmq.broker.offsets import OffsetTable
from saturnmq.kernel import properties as names
from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.config import BrokerConfig
from saturnmq.kernel.errors import SaturnError
from saturnmq.kernel.later import Later, Reply, chain
from saturnmq.kernel.message import Appended, Message
from saturnmq.kernel.topic import HALF_TOPIC, OP_HALF_TOPIC, TRANSACTION_GROUP
from saturnmq.store.results import Found, FoundStatus
from saturnmq.store.store import Store
from saturnmq.wire import record

log = logging.getLogger(__name__)

_ENDED = {names.TAGS: "d"}
#: of op messages about halves that were written again, or given up: nobody ended them. Apache's broker has none.
_MOVED = {**_ENDED, "MOVED": "true"}
#: op messages, and bytes of them, read at once at the start
_READ_MESSAGES, _READ_BYTES = 256, 1 << 20
#: op messages are forgotten together when so many halves or fewer came between them
_GRAIN = 1024
#: of an offset
_DIGITS = 18
#: half messages that were ended after they had been written again, at most remembered
_MOST_LATE = 100_000
_find_gap = re.compile(rb"[^\xff]").search


class Done:
    """Offsets that are done with, one bit each: all below `low`, and some above it."""

    __slots__ = ("_base", "_bits", "low")

    def __init__(self, low: int) -> None:
        #: the first that is not
        self.low = low
        self._base, self._bits = low, bytearray()

    def __contains__(self, offset: int) -> bool:
        return offset < self.low or self.next_gap(offset) != offset

    def add(self, offset: int) -> None:
        if offset < self.low:
            return
        byte, bit = divmod(offset - self._base, 8)
        if byte >= len(self._bits):
            self._bits.extend(bytes(byte + 1 - len(self._bits)))
        self._bits[byte] |= 1 << bit
        if offset == self.low:
            self.low = self.next_gap(offset)
            spare = (self.low - self._base) // 8
            if spare > 4096 or spare == len(self._bits):
                del self._bits[:spare]
                self._base += 8 * spare

    def next_gap(self, offset: int) -> int:
        """The first from there on that is not done with."""
        offset = max(offset, self.low)
        byte, bit = divmod(offset - self._base, 8)
        if byte >= len(self._bits):
            return offset
        rest = self._bits[byte] >> bit
        if rest != 0xFF >> bit:
            return offset + (~rest & rest + 1).bit_length() - 1
        gap = _find_gap(self._bits, byte + 1)
        if gap is None:
            return self._base + 8 * len(self._bits)
        value = gap.group()[0]
        return self._base + 8 * gap.start() + (~value & value + 1).bit_length() - 1


class Halves:
    """Owns what is pending and the op messages that are not written yet. Memory: a bit for each half message from the
    first pending one on."""

    def __init__(self, config: BrokerConfig, store: Store, clock: Clock, offsets: OffsetTable) -> None:
        self._store, self._clock, self._offsets = store, clock, offsets
        self.configure(config)
        self._done = Done(0)
        #: those that were ended when they had been written again, and where the queue ended then: the copy, which is
        #: done with too, stands before that
        self._late: dict[int, int] = {}
        #: the first of some op messages that stand together, and where the queue of halves ended at the first and the
        #: last of them: when all before that are done with, nothing that they say has to be known
        self._ops: deque[tuple[int, int, int]] = deque()
        #: offsets of the next op message
        self._unwritten = bytearray()
        self._timer: Timer | None = None

    def configure(self, config: BrokerConfig) -> None:
        self._batch_bytes = config.transaction_op_msg_max_size
        self._batch_ms = config.transaction_op_batch_interval

    # ------------------------------------------------------------------------------------------------- starting

    def load(self) -> Reply[None]:
        """Read what the op messages say. Fails with OSError."""
        self._done = Done(self._begin(HALF_TOPIC))
        return self._read(self._begin(OP_HALF_TOPIC))

    def _begin(self, topic: str) -> int:
        offset = self._offsets.get(TRANSACTION_GROUP, topic, 0)
        return min(max(offset, self._store.min_offset(topic, 0)), self._store.max_offset(topic, 0))

    def _read(self, offset: int) -> Reply[None]:
        while offset < self._store.max_offset(OP_HALF_TOPIC, 0):
            reply = self._store.get(OP_HALF_TOPIC, 0, offset, _READ_MESSAGES, _READ_BYTES)
            if isinstance(reply, Later):
                return chain(cast("Reply[Found]", reply), lambda found: self._read(self._take(found)))
            offset = self._take(reply)
        return None

    def _take(self, found: Found) -> int:
        """Gives where to go on."""
        for data, offset in zip(found.records, found.offsets, strict=True):
            stored = record.decode(data)
            properties = names.decode(stored.properties)
            if properties.get(names.TAGS) != "d":
                log.error("the op message at %d has not the tag d: it says nothing", offset)
                continue
            mark = self._done.add if "MOVED" in properties else self._mark
            for text in stored.body.split(b","):
                if text.isdigit() and len(text) <= _DIGITS and int(text) < self.end:
                    mark(int(text))
            self._remember(offset)
        assert found.status is not FoundStatus.END
        return found.next_offset

    # --------------------------------------------------------------------------------------------------- asking

    @property
    def low(self) -> int:
        """The first pending one, if it is before the end."""
        return self._done.low

    @property
    def end(self) -> int:
        """The offset of the next half message."""
        return self._store.next_offset(HALF_TOPIC, 0)

    def is_pending(self, offset: int) -> bool:
        return offset not in self._done

    def is_done(self, offset: int, origin: int) -> bool:
        """Or whether another copy was ended."""
        return offset in self._done or origin in self._late

    def next_pending(self, offset: int) -> int:
        """The first pending one from there on; the end, or more, when there is none."""
        return self._done.next_gap(offset)

    @property
    def op_low(self) -> int:
        """The first op message that has to be known after a restart."""
        while self._ops and self._ops[0][2] <= self.low:
            self._ops.popleft()
        return self._ops[0][0] if self._ops else self._store.next_offset(OP_HALF_TOPIC, 0)

    # --------------------------------------------------------------------------------------------------- ending

    def finish(self, offset: int, origin: int) -> None:
        """A half message is done with, and the copies of it. What says so is written soon."""
        was_done = offset in self._done
        self._add(offset)
        if was_done and origin != offset:
            self._add(origin)

    def move(self, offsets: list[int]) -> None:
        """These are done with: they were written again, or given up. Raises ServiceUnavailable."""
        self._append(b"".join([b"%d," % offset for offset in offsets]), _MOVED)
        for offset in offsets:
            self._done.add(offset)

    def lost(self, offset: int) -> None:
        """There is no such message any more."""
        self._done.add(offset)

    def _add(self, offset: int) -> None:
        self._mark(offset)
        self._unwritten += b"%d," % offset
        if len(self._unwritten) >= self._batch_bytes:
            self._try_to_write()
        self._see_to_it()

    def _see_to_it(self) -> None:
        """That what is not written is, soon."""
        if self._unwritten and self._timer is None:
            self._timer = self._clock.call_at(self._clock.now_ms() + self._batch_ms, self._due)

    def _due(self) -> None:
        self._timer = None
        self._try_to_write()

    def _mark(self, offset: int) -> None:
        if offset not in self._done:
            self._done.add(offset)
            return
        self._late[offset] = self.end
        while self._late:
            oldest = next(iter(self._late))
            if len(self._late) <= _MOST_LATE and self._late[oldest] > self.low:
                break
            del self._late[oldest]

    def write(self) -> Appended | None:
        """Append what is not written. Raises ServiceUnavailable, and it stays."""
        if not self._unwritten:
            return None
        appended = self._append(bytes(self._unwritten), _ENDED)
        self._unwritten.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return appended

    def _append(self, body: bytes, properties: Mapping[str, str]) -> Appended:
        store, now_ms = self._store, self._clock.now_ms()
        message = Message(OP_HALF_TOPIC, 0, body, names.encode(properties), now_ms, store.store_host)
        (appended,) = store.append((message,), urgent=True, again=True)
        self._remember(appended.queue_offset)
        return appended

    def _try_to_write(self) -> None:
        try:
            self.write()
        except SaturnError as error:
            log.error("half messages were ended, which cannot be written yet: %s", error)
            self._see_to_it()

    def _remember(self, op_offset: int) -> None:
        begin = end = self.end
        if self._ops and end - self._ops[-1][1] < _GRAIN:
            op_offset, begin, _ = self._ops.pop()
        self._ops.append((op_offset, begin, end))

    def save(self) -> None:
        """Let the group's offsets follow."""
        for topic, offset in ((HALF_TOPIC, min(self.low, self.end)), (OP_HALF_TOPIC, self.op_low)):
            if self._offsets.get(TRANSACTION_GROUP, topic, 0) != offset:
                self._offsets.commit(TRANSACTION_GROUP, topic, 0, offset)

    def stop(self) -> None:
        """Write what is left."""
        self._try_to_write()
        if self._timer is not None:
            self._timer.cancel()
        self.save()
