"""Leases in the log: records of them are appended here, and what of them is in the timer wheel is for other brokers.

All records are messages for a time (`reviverecords`), one sequence: the queue of the timer topic. A restart replays
that, from a snapshot on (`leasefile`, `leasereplay`). Apache's broker learns of leases from its revive topic, to which
the timer wheel delivers their records when a lease is nearly over. So the wheel gets what Apache would need if it had
the directory next, in its form, and nothing else:

- A check point that is over when it would be sorted in, and what ended it, is passed. Its end stands in the timer topic
  already, behind it, and a checkpoint of the timers says that it was passed only when all of that is flushed. Sorting
  in is in no hurry, so this is what nearly all records come to.
- A check point in the wheel whose time comes is delivered only if it still has messages under its lease; what ended it
  follows it to where it went.
- A lease that is over ends from memory on time (`revive`). What is delivered of it lets Apache know; the revive group's
  offset goes past what has ended.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import msgspec

from saturnmq.broker.leasefile import LeaseFile
from saturnmq.broker.leases import CheckPoint, Leases
from saturnmq.broker.offsets import OffsetTable
from saturnmq.broker.reviverecords import ACK, BATCH_ACK, CK, AckBody, CkBody, Name, ReviveRecords, parse_ack, parse_ck
from saturnmq.broker.timermessages import Waiting
from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.errors import ServiceUnavailable
from saturnmq.kernel.later import Reply, chain
from saturnmq.kernel.message import Appended, Message
from saturnmq.kernel.topic import REVIVE_GROUP, TIMER_TOPIC
from saturnmq.store.dispatch import find_property
from saturnmq.store.store import Store

log = logging.getLogger(__name__)

#: from a delivery to the revive topic to the next look at what of it is over, milliseconds
_ADVANCE_MS = 5_000
#: records that are not sorted in yet of which it is known whose they are; of more it is not
_MAX_UNSORTED = 500_000
#: names of check points that were not delivered, so that their ends are not either; of some more at times
_MAX_DROPPED = 30_000

_UNKNOWN = object()


class ReviveLog:
    """Appends records, and is the `timermessages.Sieve` of them."""

    def __init__(
        self,
        store: Store,
        topic: str,
        queues: int,
        leases: Leases,
        offsets: OffsetTable,
        records: ReviveRecords,
        file: LeaseFile,
        clock: Clock,
    ) -> None:
        """`topic` and `queues`: the revive topic."""
        self._store, self._topic, self._queues, self._leases, self._offsets = store, topic, queues, leases, offsets
        self._records, self._file, self._clock = records, file, clock
        self._timer: Timer | None = None
        #: offset in the timer topic → whose record it is, None when only we want it; not sorted in yet
        self._unsorted: dict[int, CheckPoint | None] = {}
        #: see `_drop`
        self._dropped: set[Name] = set()
        self._dropped_before = self._dropped
        #: check points that were in the revive topic at the start, until all there have ended
        self._found: set[Name] = set()
        #: replayed, and not closed
        self._ready = False

    def check_ready(self) -> None:
        """Raises ServiceUnavailable while the leases are not known."""
        if not self._ready:
            raise ServiceUnavailable("the broker reads its leases after a restart, or stops; try again")

    def replayed(self, found: set[Name]) -> None:
        """The leases are known, and which check points are in the revive topic."""
        self._ready, self._found = True, found
        if self._advance() or found:
            self._advance_later()

    def append(self, messages: Sequence[Message], owners: Sequence[CheckPoint | None]) -> list[Appended]:
        """Messages, the last of which are the records of `owners`. Raises ServiceUnavailable."""
        appended = self._store.append(messages, urgent=True)
        unsorted = self._unsorted
        for place, owner in zip(appended[-len(owners) :], owners, strict=True):
            unsorted[place.queue_offset] = owner
        if len(unsorted) > _MAX_UNSORTED:
            for owner in unsorted.values():
                if owner is not None:
                    owner.in_wheel = True
            unsorted.clear()
        return appended

    def forget_topics(self, topics: Iterable[str]) -> None:
        """They are deleted: nobody holds a message of theirs any more. Raises ServiceUnavailable."""
        self.check_ready()
        leased = {queue.topic for queue in self._leases.queues()}
        gone = [topic for topic in topics if topic in leased]
        if gone:
            self.append([self._records.gone(gone, [], self._clock.now_ms())], [None])
            for topic in gone:
                self._leases.forget_topic(topic)

    def forget_group(self, group: str) -> None:
        """It is deleted, and holds nothing any more. Raises ServiceUnavailable."""
        if any(queue.group == group for queue in self._leases.queues()):
            self.append([self._records.gone([], [group], self._clock.now_ms())], [None])
            self._leases.forget_group(group)

    def close(self) -> Reply[None]:
        """Answers when a restart finds the leases, and has little to read. Never fails."""
        if not self._ready:
            return None
        self._ready = False
        if self._timer is not None:
            self._timer.cancel()
        self._advance()
        return chain(self._file.write(), lambda _: self._file.write())

    # ------------------------------------------------------------------------------------------ sieve: sorting in

    def arrived(self, offset: int) -> bool:
        self._file.reached(offset)
        return offset in self._unsorted

    def first_needed(self, offset: int, end: int) -> int:
        unsorted = self._unsorted
        while offset < end:
            owner = unsorted.get(offset, _UNKNOWN)
            if owner is _UNKNOWN or _is_needed(owner):  # type: ignore[arg-type]
                break
            del unsorted[offset]
            offset += 1
        return offset

    def needs(self, offset: int, waiting: Waiting) -> bool:
        owner = self._unsorted.get(offset, _UNKNOWN)
        return self.wants(waiting) if owner is _UNKNOWN else _is_needed(owner)  # type: ignore[arg-type]

    def passed(self, offsets: range) -> None:
        for offset in offsets:
            self._unsorted.pop(offset, None)

    # ------------------------------------------------------------------------------------------- sieve: delivery

    def wants(self, waiting: Waiting) -> bool:
        if waiting.topic != self._topic:
            return True
        try:
            found = _read(waiting)
        except msgspec.MsgspecError as error:
            log.error("revive record %d cannot be read: %s", waiting.stored.queue_offset, error)
            return True
        if found is None:
            return False
        if isinstance(found, AckBody):
            return found.name not in self._dropped and found.name not in self._dropped_before
        if self._held(found) is None:
            self._drop(found.name)
            return False
        return True

    def _drop(self, name: Name) -> None:
        """Nor are the ends of this check point to be delivered, which come within a second or two, unless it was
        delivered before a crash. Forgetting it would do no harm: nobody minds an end of nothing."""
        if name in self._found:
            return
        if len(self._dropped) >= _MAX_DROPPED:
            self._dropped_before, self._dropped = self._dropped, set()
        self._dropped.add(name)

    def delivered(self, waiting: Waiting, place: Appended) -> None:
        if waiting.topic != self._topic or find_property(waiting.stored.properties, b"TAGS") != b"ck":
            return
        found = _read(waiting)
        if isinstance(found, CkBody) and (check_point := self._held(found)) is not None:
            self._leases.put_in_revive(check_point, place.queue_offset)
        self._advance_later()

    def _held(self, body: CkBody) -> CheckPoint | None:
        queue = self._leases.find(body.group, body.topic, body.queue_id)
        return None if queue is None else self._leases.held(queue, body.offsets(), body.start, body.pop_ms)

    # ------------------------------------------------------------------------------------------ the revive topic

    def _advance_later(self) -> None:
        if self._timer is None:
            self._timer = self._clock.call_at(self._clock.now_ms() + _ADVANCE_MS, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._advance():
            self._advance_later()
        else:
            self._found.clear()

    def _advance(self) -> bool:
        """Commit what has ended. Whether something has not."""
        left = False
        for queue_id in range(self._queues):
            first = self._leases.first_in_revive(queue_id)
            done = (self._store.next_offset(self._topic, queue_id) if first is None else first) - 1
            if done != self._offsets.get(REVIVE_GROUP, self._topic, queue_id):
                self._offsets.commit(REVIVE_GROUP, self._topic, queue_id, done)
            left = left or first is not None
        return left

    # --------------------------------------------------------------------------------------------- retention

    def pending_from(self, end: int) -> Reply[int]:
        """`store.retention.Lodger`: of messages in flight, and of what a restart reads of them."""
        if not self._ready:
            return 0
        needed = self._store.first_position([(TIMER_TOPIC, 0, self._file.offset)], end)
        return chain(needed, lambda first: self._first_position(end) if first >= end else self._make_way(end))

    def _make_way(self, end: int) -> Reply[int]:
        """What a restart reads would go: let it begin later."""
        return chain(self._file.write(), lambda _: self._first_position(end))

    def _first_position(self, end: int) -> Reply[int]:
        places = self._leases.oldest_pending(self._clock.now_ms())
        places.append((TIMER_TOPIC, 0, self._file.offset))
        for queue_id in range(self._queues):
            if (first := self._leases.first_in_revive(queue_id)) is not None:
                places.append((self._topic, queue_id, first))
        return self._store.first_position(places, end)


def _is_needed(owner: CheckPoint | None) -> bool:
    """Whether this record of it is to be in the wheel: the check point comes first, and what ended it stays with it."""
    if owner is None or not (owner.pending or owner.in_wheel):
        return False
    owner.in_wheel = True
    return True


def _read(waiting: Waiting) -> CkBody | AckBody | None:
    """None: it is nothing for other brokers. Raises MsgspecError."""
    tag = (find_property(waiting.stored.properties, b"TAGS") or b"").decode("utf-8", "replace")
    if tag == CK:
        return parse_ck(waiting.stored.body)
    return parse_ack(waiting.stored.body) if tag in (ACK, BATCH_ACK) else None
