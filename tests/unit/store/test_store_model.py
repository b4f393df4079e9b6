"""The store beside a plain model: a list of what was appended, in order. Whatever is done, whatever a crash takes and
however the store ends, each queue has the messages of that list that are left."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store_stage import Answer, Stage

from saturnmq.disk.simulated import Event, Operation, SimulatedDisk, everything_survives, nothing_survives
from saturnmq.kernel.errors import ServiceUnavailable
from saturnmq.kernel.ports import Boundary
from saturnmq.testing.clock import VirtualClock

HOUR_MS = 3_600_000
QUEUES = [("A", 0), ("A", 1), ("B", 0)]
SIZES = [0, 1, 60, 300, 1200]


class Sent(NamedTuple):
    queue: tuple[str, int]
    body: bytes
    stored_ms: int


class Model:
    """Shares no code with the store."""

    def __init__(self) -> None:
        #: everything that was ever appended and not taken by a crash
        self.log: list[Sent] = []
        #: how many of them are deleted, durable, to be seen
        self.deleted = self.durable = self.visible = 0

    def messages(self, queue: tuple[str, int], end: int) -> list[Sent]:
        """Their places in the list are their offsets."""
        return [sent for sent in self.log[:end] if sent.queue == queue]

    def range(self, queue: tuple[str, int]) -> tuple[int, int]:
        return len(self.messages(queue, self.deleted)), len(self.messages(queue, self.visible))

    def crash(self, left: int) -> None:
        """So many are left."""
        assert self.durable <= left <= len(self.log)
        del self.log[left:]
        self.durable = self.visible = left

    def clean(self, ranges: dict[tuple[str, int], int], now_ms: int) -> None:
        """The queues begin there now: the oldest are gone, and only what is old enough."""
        deleted = self.deleted
        while ranges != {queue: len(self.messages(queue, deleted)) for queue in QUEUES}:
            deleted += 1
            assert deleted <= self.durable, f"{ranges} is not where the queues begin without the oldest messages"
            assert self.log[deleted - 1].stored_ms <= now_ms - HOUR_MS
        self.deleted = deleted


def torn(seed: int) -> Any:
    """Of what was not synced: nothing, all, or some sectors of each write."""
    chance = random.Random(seed)

    def survives(event: Event) -> Sequence[tuple[int, int]]:
        size = len(event.data)
        kind = chance.randrange(3)
        if kind == 0:
            return ()
        if kind == 1 or event.operation is not Operation.WRITE or event.path == "checkpoint":
            return ((0, size),)
        edges = [0, *range(-event.offset % 512 or 512, size, 512), size]
        return [piece for piece in pairwise(edges) if chance.random() < 0.6]

    return survives


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.stage: Stage

    @initialize(sync=st.booleans(), queue_bytes=st.sampled_from([60, 200]))
    def open(self, sync: bool, queue_bytes: int) -> None:
        self.sync = sync
        self.config: dict[str, Any] = {
            "flush_disk_type": "SYNC_FLUSH" if sync else "ASYNC_FLUSH",
            "mapped_file_size_consume_queue": queue_bytes,
            "file_reserved_time": 1,
            "delete_when": "",
            "disk_min_free_bytes": 0,
        }
        disk, clock = SimulatedDisk(), VirtualClock()
        disk.now_ms = clock.now_ms
        self.stage = Stage(disk, clock=clock, **self.config).open()

    # --------------------------------------------------------------------------------------------- sending

    @rule(queue=st.sampled_from(QUEUES), sizes=st.lists(st.sampled_from(SIZES), min_size=1, max_size=4))
    def append(self, queue: tuple[str, int], sizes: list[int]) -> None:
        for size in sizes:
            self._append(queue, size)

    def _append(self, queue: tuple[str, int], size: int) -> None:
        model, stage = self.model, self.stage
        body = b"%d." % len(model.log) + bytes(size)
        (appended,) = stage.append(body, topic=queue[0], queue_id=queue[1])
        assert appended.queue_offset == len(model.messages(queue, len(model.log)))
        model.log.append(Sent(queue, body, appended.stored_ms))
        place = len(model.log)
        if self.sync:
            reply = stage.store.when_durable(appended.end, place)
            assert not isinstance(reply, int)
            reply.then(self._is_durable, _unexpected)

    def _is_durable(self, place: int) -> None:
        self.model.durable = max(self.model.durable, place)

    @rule()
    def end_turn(self) -> None:
        self.stage.clock.run_soon()
        self.model.visible = len(self.model.log)
        if self.sync:
            assert self.model.durable == len(self.model.log)

    @rule(milliseconds=st.sampled_from([1, 600, 1_500, 12_000]))
    def pause(self, milliseconds: int) -> None:
        self.stage.clock.advance(milliseconds)
        self.end_turn()

    @rule()
    def flush(self) -> None:
        answer = Answer(self.stage.store.flush())
        self.end_turn()
        assert answer.answered
        assert answer.error is None
        self.model.durable = len(self.model.log)

    @rule(queue=st.sampled_from(QUEUES))
    def have_no_room(self, queue: tuple[str, int]) -> None:
        """What is refused is not there, what is taken is."""
        self.end_turn()
        self.stage.disk.faults = {(operation, ""): 28 for operation in (Operation.ALLOCATE, Operation.CREATE)}
        try:
            for _ in range(3):
                self._append(queue, 300)
        except ServiceUnavailable:
            pass
        self.end_turn()
        self.stage.disk.faults.clear()
        self.stage.clock.advance(10_000)

    # -------------------------------------------------------------------------------------------- ends

    @rule(kind=st.integers(0, 2), seed=st.integers(0, 1_000_000))
    def crash(self, kind: int, seed: int) -> None:
        survives = (nothing_survives, everything_survives, torn(seed))[kind]
        self._start(self.stage.disk.crashed(None, survives))
        self.model.crash(sum(self.stage.store.max_offset(*queue) for queue in QUEUES))

    @rule()
    def restart(self) -> None:
        self._close()
        self._start(self.stage.disk)

    @rule()
    def lose_the_queues(self) -> None:
        self._close()
        if any(low == high > 0 for low, high in map(self.model.range, QUEUES)):
            self._start(self.stage.disk)  # nothing else tells which offset comes next in a queue without messages
            return
        disk = self.stage.disk
        for path in [path for path in disk.names if path.startswith("consumequeue/")]:
            disk.unlink(path)
        disk.directories = {path for path in disk.directories if not path.startswith("consumequeue")}
        self._start(disk)

    def _close(self) -> None:
        self.stage.close()
        self.model.durable = self.model.visible = len(self.model.log)

    def _start(self, disk: SimulatedDisk) -> None:
        disk.now_ms = self.stage.clock.now_ms
        self.stage = Stage(disk, clock=VirtualClock(self.stage.clock.now_ms()), **self.config)
        disk.now_ms = self.stage.clock.now_ms
        self.stage.open()

    # ------------------------------------------------------------------------------- cleaning and looking

    @rule(hours=st.sampled_from([0.5, 1, 1]))
    def clean(self, hours: float) -> None:
        self.stage.clock.advance(int(hours * HOUR_MS))
        self.end_turn()
        self.model.durable = len(self.model.log)
        answer = Answer(self.stage.store.clean())
        self.stage.clock.advance(60_000)
        assert answer.answered
        assert answer.error is None
        begins = {queue: self.stage.store.min_offset(*queue) for queue in QUEUES}
        self.model.clean(begins, self.stage.clock.now_ms())

    @precondition(lambda self: self.model.log)
    @rule(queue=st.sampled_from(QUEUES), part=st.floats(0, 1), count=st.integers(1, 40))
    def read(self, queue: tuple[str, int], part: float, count: int) -> None:
        self.end_turn()
        low, high = self.model.range(queue)
        if low < high:
            offset = low + int(part * (high - low - 1))
            found = self.stage.wait(self.stage.store.get(*queue, offset, count, 1 << 20))
            assert found.offsets == list(range(offset, min(high, offset + count)))
            assert (found.min_offset, found.max_offset, found.next_offset) == (low, high, found.offsets[-1] + 1)
            sent = self.model.messages(queue, self.model.visible)[offset]
            at = self.stage.wait(self.stage.store.offset_by_time(*queue, sent.stored_ms, Boundary.LOWER))
            assert at <= offset

    @invariant()
    def the_queues_hold_what_is_left(self) -> None:
        """To read ends the turn: what is appended in it is left to other rules."""
        if self.model.visible == len(self.model.log) > 0:
            for queue in QUEUES:
                low, high = self.model.range(queue)
                store = self.stage.store
                assert (store.min_offset(*queue), store.max_offset(*queue)) == (low, high)
                sent = self.model.messages(queue, self.model.visible)[low:]
                assert self.stage.bodies(*queue) == [one.body for one in sent]


def _unexpected(error: BaseException) -> None:
    raise AssertionError(error)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
