"""Queue locks of orderly consumers."""

from __future__ import annotations

from collections.abc import Iterable

from saturnmq.kernel.clock import Clock
from saturnmq.kernel.topic import MessageQueue


class QueueLocks:
    """Owns which client of a group may consume a queue in order (client/rebalance/RebalanceLockManager.java).

    A lock lives `life_ms` after it was last asked for; clients ask every 20 s. Locks are lost with the process: their
    owners ask again, and nobody else can have taken messages from the queue in the meantime.
    """

    def __init__(self, clock: Clock, life_ms: int) -> None:
        self._clock, self._life_ms = clock, life_ms
        #: group → queue → (client id, when it dies)
        self._locks: dict[str, dict[MessageQueue, tuple[str, int]]] = {}

    def lock(self, group: str, queues: Iterable[MessageQueue], client_id: str) -> list[MessageQueue]:
        """The queues that are the client's now, for another `life_ms`."""
        steady_ms = self._clock.steady_ms()
        locks = self._locks.setdefault(group, {})
        locked = []
        for queue in queues:
            owner, dies_ms = locks.get(queue, (client_id, 0))
            if owner == client_id or dies_ms < steady_ms:
                locks[queue] = client_id, steady_ms + self._life_ms
                locked.append(queue)
        return locked

    def unlock(self, group: str, queues: Iterable[MessageQueue], client_id: str) -> None:
        """Give up those of the queues that are the client's."""
        locks = self._locks.get(group, {})
        for queue in queues:
            if queue in locks and locks[queue][0] == client_id:
                del locks[queue]
        if not locks:
            self._locks.pop(group, None)

    def forget_group(self, group: str) -> None:
        """The group is gone."""
        self._locks.pop(group, None)

    def any_alive(self, group: str) -> bool:
        """Whether the group consumes in order just now."""
        locks = self._locks.get(group)
        if locks is None:
            return False
        steady_ms = self._clock.steady_ms()
        return any(dies_ms >= steady_ms for _, dies_ms in locks.values())
