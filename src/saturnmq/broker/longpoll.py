"""Consumers that wait for a message: woken when one arrives that they want, or when their time is over.

Nothing happens while nothing happens: there is no task and no poll, only dictionaries and one timer for the earliest
deadline, so 50,000 waiting consumers cost their memory. Waiters are woken at the end of the turn in which messages
became visible, never from inside the store.

A pull waits for itself: every pull whose filter matches is woken. Pops of a group share the messages: one waiter of
each group is woken, and it wakes the next one (`wake`) when it leaves something behind. So one message to a group
with a thousand idle consumers costs one attempt, not a thousand.

What Apache does (broker/longpolling/PullRequestHoldService.java, PopLongPollingService.java) and this does not: look
at all waiters every few seconds in case a notification was missed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import islice
from typing import Protocol

from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.errors import SystemBusy
from saturnmq.kernel.subscription import Matches

ANY_QUEUE = -1
#: stale entries of the deadline heap that are tolerated before it is rebuilt
_STALE_DEADLINES = 1024


class Arrived(Protocol):
    """What a wake-up needs to know of a `store.Arrival`."""

    @property
    def topic(self) -> str: ...
    @property
    def queue_id(self) -> int: ...
    @property
    def tags_code(self) -> int: ...
    @property
    def properties(self) -> bytes: ...


class Waiter:
    """One consumer that waits. Owner: the LongPolls it came from, until it is woken, timed out or cancelled."""

    __slots__ = ("_bucket", "_polls", "_wake")

    def __init__(self, polls: LongPolls, bucket: _Bucket, wake: Callable[[bool], None]) -> None:
        self._polls = polls
        self._bucket: _Bucket | None = bucket
        self._wake: Callable[[bool], None] | None = wake

    @property
    def waiting(self) -> bool:
        return self._bucket is not None

    def cancel(self) -> None:
        """Wait no longer: `wake` will not be called. Does nothing when it already was."""
        if self._bucket is not None:
            self._polls._forget(self)


#: tag codes, filter over properties, whether its waiters take what they are woken for
_Kind = tuple[frozenset[int], Matches | None, bool]


class _Bucket:
    """Waiters that are alike: same topic, queue, group and filter; in order of arrival."""

    __slots__ = ("codes", "due", "group", "kind", "matches", "queue_id", "topic", "waiters")

    def __init__(self, topic: str, queue_id: int, group: str | None, kind: _Kind) -> None:
        self.topic, self.queue_id, self.group, self.kind = topic, queue_id, group, kind
        self.codes, self.matches, _ = kind
        self.waiters: dict[Waiter, None] = {}
        self.due = False


class LongPolls:
    """All waiting consumers of one broker, by topic, queue, group and filter.

    `per_group` bounds the waiters of one topic and group, `in_all` all waiters.
    """

    def __init__(self, clock: Clock, *, per_group: int, in_all: int) -> None:
        self._clock = clock
        self._per_group, self._in_all = per_group, in_all
        #: by topic and queue (or ANY_QUEUE), then group (None: pulls), then filter
        self._places: dict[tuple[str, int], dict[str | None, dict[_Kind, _Bucket]]] = {}
        #: by topic and group: waiters on each queue
        self._counts: dict[tuple[str, str], dict[int, int]] = {}
        #: topic whose arrivals wake a group that waits on another topic
        self._links: dict[str, tuple[str, str]] = {}
        self._count = 0
        #: buckets with something to do at the end of this turn
        self._due: list[_Bucket] = []
        #: (deadline, order, waiter); woken and cancelled ones stay until they come up or the heap is rebuilt
        self._deadlines: list[tuple[int, int, Waiter]] = []
        self._order = 0
        self._timer: Timer | None = None
        self._timer_ms = 0

    def __len__(self) -> int:
        return self._count

    def wait(
        self,
        topic: str,
        queue_id: int,
        until_ms: int,
        codes: frozenset[int],
        wake: Callable[[bool], None],
        *,
        matches: Matches | None = None,
        group: str | None = None,
        takes: bool = True,
    ) -> Waiter:
        """Call `wake(False)` once when a message arrives whose tag code is in `codes` and that matches, `wake(True)` at
        `until_ms`.

        `queue_id` may be ANY_QUEUE, `codes` empty (any message). With a group, its waiters take turns; those that take
        nothing, among themselves. Raises SystemBusy when too many wait already.
        """
        self._admit(topic, queue_id, group)
        groups = self._places.setdefault((topic, queue_id), {})
        buckets = groups.setdefault(group, {})
        kind = codes, matches, takes
        bucket = buckets.get(kind)
        if bucket is None:
            bucket = buckets[kind] = _Bucket(topic, queue_id, group, kind)
        waiter = Waiter(self, bucket, wake)
        bucket.waiters[waiter] = None
        self._count += 1
        self._order += 1
        heapq.heappush(self._deadlines, (until_ms, self._order, waiter))
        if self._timer is None or until_ms < self._timer_ms:
            self._set_timer(until_ms)
        return waiter

    def link(self, arrivals_of: str, topic: str, group: str) -> None:
        """From now on a message in `arrivals_of` (the group's pop retry topic) also wakes who waits on `topic`."""
        self._links[arrivals_of] = (topic, group)

    def unlink(self, arrivals_of: str) -> None:
        """The topic is gone."""
        self._links.pop(arrivals_of, None)

    def arrived(self, arrival: Arrived) -> None:
        """A message can be read now."""
        topic, code = arrival.topic, arrival.tags_code
        for queue_id in (arrival.queue_id, ANY_QUEUE):
            groups = self._places.get((topic, queue_id))
            if groups is not None:
                for buckets in groups.values():
                    for bucket in buckets.values():
                        if (
                            not bucket.due
                            and (not bucket.codes or code in bucket.codes)
                            and (bucket.matches is None or bucket.matches(arrival.properties))
                        ):
                            self._make_due(bucket)
        link = self._links.get(topic)
        if link is not None:
            self.wake(*link)

    def wake(self, topic: str, group: str, queue_id: int = ANY_QUEUE) -> None:
        """There is something for the group that no arrival tells: left over, given back, or no longer blocked.

        Wakes one waiter on any queue of the topic, and one on `queue_id`, or on each.
        """
        queues = self._counts.get((topic, group))
        if queues is None:
            return
        for place in queues if queue_id == ANY_QUEUE else (ANY_QUEUE, queue_id):
            for bucket in self._places.get((topic, place), {}).get(group, {}).values():
                if not bucket.due:
                    self._make_due(bucket)

    def waiting(self, topic: str, group: str, queue_id: int) -> int:
        """How many pops of the group wait on the queue, or on ANY_QUEUE."""
        buckets = self._places.get((topic, queue_id), {}).get(group, {})
        return sum(len(bucket.waiters) for (_, _, takes), bucket in buckets.items() if takes)

    def wake_pulls(self, topic: str, queue_id: int) -> None:
        """Every pull that waits on the queue has to look again: some group's offset is another one now."""
        for bucket in self._places.get((topic, queue_id), {}).get(None, {}).values():
            if not bucket.due:
                self._make_due(bucket)

    def close(self) -> None:
        """The broker stops: everyone's wait is over now, and nobody may wait any more."""
        self._in_all = 0
        for _, _, waiter in list(self._deadlines):
            if waiter.waiting:
                self._forget(waiter)(True)

    def _admit(self, topic: str, queue_id: int, group: str | None) -> None:
        """Count one more. Raises SystemBusy at a limit."""
        if self._count >= self._in_all:
            raise SystemBusy(f"{self._count} consumers wait for messages already, the limit is {self._in_all}")
        if group is None:
            return
        queues = self._counts.setdefault((topic, group), {})
        count = sum(queues.values())
        if count >= self._per_group:
            raise SystemBusy(
                f"{count} consumers of {group} wait on {topic} already, popPollingSize is {self._per_group}"
            )
        queues[queue_id] = queues.get(queue_id, 0) + 1

    def _make_due(self, bucket: _Bucket) -> None:
        bucket.due = True
        if not self._due:
            self._clock.call_soon(self._wake_due)
        self._due.append(bucket)

    def _wake_due(self) -> None:
        due, self._due = self._due, []
        for bucket in due:
            bucket.due = False
            turns = len(bucket.waiters) if bucket.group is None else 1
            for waiter in list(islice(bucket.waiters, turns)):
                if waiter.waiting:  # one that is woken may cancel another
                    self._forget(waiter)(False)

    def _forget(self, waiter: Waiter) -> Callable[[bool], None]:
        """Answers how to wake it; it keeps nothing, for it stays in the heap."""
        bucket, wake = waiter._bucket, waiter._wake
        assert bucket is not None
        assert wake is not None
        waiter._bucket = waiter._wake = None
        del bucket.waiters[waiter]
        self._count -= 1
        if bucket.group is not None:
            queues = self._counts[bucket.topic, bucket.group]
            queues[bucket.queue_id] -= 1
            if not queues[bucket.queue_id]:
                del queues[bucket.queue_id]
            if not queues:
                del self._counts[bucket.topic, bucket.group]
        if not bucket.waiters:
            self._drop(bucket)
        if len(self._deadlines) > 2 * self._count + _STALE_DEADLINES:
            self._deadlines = [entry for entry in self._deadlines if entry[2].waiting]
            heapq.heapify(self._deadlines)
        return wake

    def _drop(self, bucket: _Bucket) -> None:
        place = bucket.topic, bucket.queue_id
        groups = self._places[place]
        buckets = groups[bucket.group]
        del buckets[bucket.kind]
        if not buckets:
            del groups[bucket.group]
        if not groups:
            del self._places[place]

    def _set_timer(self, when_ms: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_ms = when_ms
        self._timer = self._clock.call_at(when_ms, self._time_out)

    def _time_out(self) -> None:
        self._timer = None
        now_ms = self._clock.now_ms()
        while self._deadlines and (self._deadlines[0][0] <= now_ms or not self._deadlines[0][2].waiting):
            waiter = heapq.heappop(self._deadlines)[2]
            if waiter.waiting:
                self._forget(waiter)(True)
        if self._deadlines and (self._timer is None or self._deadlines[0][0] < self._timer_ms):
            self._set_timer(self._deadlines[0][0])
