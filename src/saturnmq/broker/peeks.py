"""Looking at what a pop would take, and taking nothing.

Source: processor/NotificationProcessor.java, processor/PeekMessageProcessor.java.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from saturnmq.broker.leases import GroupQueue, Leases
from saturnmq.broker.longpoll import LongPolls
from saturnmq.broker.offsets import OffsetTable
from saturnmq.broker.pop import Pops
from saturnmq.broker.topics import TopicTable
from saturnmq.kernel.clock import Clock
from saturnmq.kernel.errors import SaturnError, SystemBusy
from saturnmq.kernel.later import Later, Reply, after, chain
from saturnmq.kernel.ports import Notice, PopRequest
from saturnmq.store.results import Found, FoundStatus
from saturnmq.store.store import Store

#: out of 100 peeks, how many look at the retry topics first
_RETRY_FIRST = 20
#: of what one queue gives to a peek
_MOST_BYTES = 256 * 1024


class Peeked(NamedTuple):
    records: list[bytes]
    #: messages of the group that it was not given yet, those among them
    rest: int


class Peeks:
    """Asks the same questions as a pop; the state is that of the pops."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        topics: TopicTable,
        offsets: OffsetTable,
        polls: LongPolls,
        pops: Pops,
        random: Callable[[int], int],
    ) -> None:
        self._store, self._clock, self._topics, self._offsets = store, clock, topics, offsets
        self._polls, self._pops, self._random = polls, pops, random
        self._leases: Leases = pops.leases

    # ---------------------------------------------------------------------------------------------- has message

    def notify(self, request: PopRequest) -> Reply[Notice]:
        """Answers at once when there is a message for the group, else when one comes, at the latest after `wait_ms`."""
        fifo = self._pops.admit(request)
        for retry, _ in self._pops.retry_topics(request.group, request.topic):
            self._polls.link(retry, request.topic, request.group)
        if self._has_message(request, fifo):
            return Notice(True)
        if request.wait_ms <= 0:
            return Notice(False)
        answer: Later[Notice] = Later()
        if not self._wait(request, fifo, self._clock.now_ms() + request.wait_ms, answer):
            return Notice(False, is_full=True)
        return answer

    def _wait(self, request: PopRequest, fifo: bool, until_ms: int, answer: Later[Notice]) -> bool:
        """False: too many wait."""

        def wake(timed_out: bool) -> None:
            try:
                if timed_out or self._has_message(request, fifo):
                    answer.resolve(Notice(not timed_out))
                elif not self._wait(request, fifo, until_ms, answer):
                    answer.resolve(Notice(False, is_full=True))
            except SaturnError as error:
                answer.fail(error)

        wanted = request.subscription
        try:
            waiter = self._polls.wait(
                request.topic, request.queue_id, until_ms, wanted.codes, wake, matches=wanted.matches,
                group=request.group, takes=False,
            )  # fmt: skip
        except SystemBusy:
            return False
        answer.on_cancel = waiter.cancel
        return True

    def _has_message(self, request: PopRequest, fifo: bool) -> bool:
        if any(self._has(queue, offset, request, fifo) for queue, offset in self._queues(request, request.topic)):
            return True
        return any(
            self._has(queue, offset, request, fifo=False)
            for retry, _ in self._pops.retry_topics(request.group, request.topic)
            for queue, offset in self._queues(request, retry)
        )

    def _has(self, place: tuple[str, int], offset: int, request: PopRequest, fifo: bool) -> bool:
        """Whether the queue has something behind the offset, so far as that is known without waiting for the disk."""
        state = self._leases.find(request.group, *place)
        if fifo and state is not None and state.order is not None:
            if state.order.free_at_ms > self._clock.now_ms():
                return state.order.attempt_id is not None and state.order.attempt_id == request.attempt_id
            return True
        wanted = request.subscription
        if wanted.takes_all:
            return self._store.max_offset(*place) > offset
        found = self._store.get(*place, offset, 1, 1, wanted.codes or None, wanted.matches)
        if isinstance(found, Later):
            found.cancel()
            return True
        return found.status is FoundStatus.FOUND or (
            found.status in (FoundStatus.NO_MATCH, FoundStatus.BEFORE) and found.next_offset < found.max_offset
        )

    # ----------------------------------------------------------------------------------------------------- peek

    def peek(self, request: PopRequest) -> Reply[Peeked]:
        """The next messages of the group, which stay where they are; those of retry topics as they stand there."""
        self._pops.admit(request)
        queues = self._queues(request, request.topic)
        retries = [
            queue for retry, _ in self._pops.retry_topics(request.group, request.topic)
            for queue in self._queues(request, retry)
        ]  # fmt: skip
        plan = retries + queues if self._random(100) < _RETRY_FIRST else queues + retries
        rest = sum(max(0, self._store.max_offset(*place) - offset) for place, offset in plan)
        peeked: Reply[list[bytes]] = []
        for place, offset in plan:
            peeked = chain(peeked, partial(self._more, request, place, offset))
        return after(peeked, lambda records: Peeked(records, rest))

    def _more(
        self, request: PopRequest, place: tuple[str, int], offset: int, records: list[bytes]
    ) -> Reply[list[bytes]]:
        """With what the queue has."""
        most = request.max_messages - len(records)
        if most <= 0:
            return records

        def found(found: Found) -> Reply[list[bytes]]:
            if found.status in (FoundStatus.BEFORE, FoundStatus.BEYOND):
                return self._more(request, place, found.next_offset, records)
            return records + found.records

        return chain(self._store.get(*place, offset, most, _MOST_BYTES), found)

    # ---------------------------------------------------------------------------------------------------- queues

    def _queues(self, request: PopRequest, topic: str) -> list[tuple[tuple[str, int], int]]:
        """Queues of the topic that the request means, and which message of each comes next for the group."""
        config = self._topics.get(topic)
        if config is None:
            return []
        all_of_them = request.queue_id < 0 or topic != request.topic
        queue_ids = range(config.read_queue_nums) if all_of_them else [request.queue_id]
        return [((topic, queue_id), self._next_offset(request.group, topic, queue_id)) for queue_id in queue_ids]

    def _next_offset(self, group: str, topic: str, queue_id: int) -> int:
        """A group that was never there begins with the first message."""
        state: GroupQueue | None = self._leases.find(group, topic, queue_id)
        committed = self._offsets.get(group, topic, queue_id)
        if state is not None and state.next_offset >= 0 and state.committed == committed:
            return state.next_offset
        return committed if committed >= 0 else self._store.min_offset(topic, queue_id)
