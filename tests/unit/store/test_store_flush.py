"""Who waits for the disk, and what they hear."""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest
from store_stage import Answer, HeldBackground, Stage

from saturnmq.disk.simulated import Event, Operation, SimulatedDisk, everything_survives
from saturnmq.kernel.errors import FlushTimeout, ServiceUnavailable
from saturnmq.store import commitlog, flush
from saturnmq.store.store import Store


class Recording(SimulatedDisk):
    """Knows up to where the log is durable, to hold every acknowledgement against it."""

    def __init__(self) -> None:
        super().__init__()
        self._end = 0
        #: of writes that no sync has covered: inode, log position
        self._unsynced: list[tuple[int, int]] = []

    @property
    def durable(self) -> int:
        return min([position for _, position in self._unsynced], default=self._end)

    def record(self, operation: Operation, path: str, **fields: Any) -> None:
        super().record(operation, path, **fields)
        if path.startswith("commitlog/"):
            event: Event = self.events[-1]
            if operation is Operation.WRITE:
                position = int(path[-20:]) + event.offset
                self._unsynced.append((event.inode, position))
                self._end = position + len(event.data)
            elif operation is Operation.SYNC:
                self._unsynced = [write for write in self._unsynced if write[0] != event.inode]


def acknowledge_all(disk: Recording) -> int:
    """Send from several turns, over rolls; each acknowledgement must find its bytes durable. Gives how many came."""
    held = HeldBackground()
    stage = Stage(disk, flusher=held).open()
    acknowledged = 0

    def deliver(end: int) -> None:
        nonlocal acknowledged
        acknowledged += 1
        assert end <= disk.durable, f"acknowledged up to {end}, durable up to {disk.durable}"

    def fail(error: BaseException) -> None:
        raise error

    for turn in range(30):
        for _ in range(turn % 4 + 1):
            (appended,) = stage.append(b"x" * 200)
            reply = stage.store.when_durable(appended.end, appended.end)
            assert not isinstance(reply, int)
            reply.then(deliver, fail)
        stage.clock.run_soon()
        if turn % 3:
            held.go()
    held.go()
    held.go()
    return acknowledged


def test_no_acknowledgement_before_a_successful_fdatasync_that_covers_it() -> None:
    disk = Recording()
    assert acknowledge_all(disk) == 73
    assert len(disk.list("commitlog")) > 5


def test_that_test_fails_without_the_fdatasync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flush, "_sync", lambda files, checkpoint, target: checkpoint.confirm(target))
    with pytest.raises(AssertionError, match="acknowledged up to"):
        acknowledge_all(Recording())


def test_that_test_fails_on_a_disk_whose_fdatasync_does_nothing() -> None:
    class Mutant(Recording):
        def record(self, operation: Operation, path: str, **fields: Any) -> None:
            if operation is not Operation.SYNC:
                super().record(operation, path, **fields)

    with pytest.raises(AssertionError, match="acknowledged up to"):
        acknowledge_all(Mutant())


def test_one_sync_releases_everyone() -> None:
    held = HeldBackground()
    stage = Stage(flusher=held).open()
    answers = [Answer(stage.store.when_durable(stage.append(b"x")[0].end, number)) for number in range(5)]
    stage.clock.run_soon()
    assert len(held.jobs) == 1
    late = Answer(stage.store.when_durable(stage.append(b"late")[0].end, "late"))
    stage.clock.run_soon()
    assert len(held.jobs) == 1  # one sync at a time
    held.go()
    assert [answer.value for answer in answers] == [0, 1, 2, 3, 4]
    assert not late.answered
    held.go()
    assert late.value == "late"
    assert held.jobs == []


def test_who_asks_for_less_later_is_answered_with_the_one_before() -> None:
    held = HeldBackground()
    stage = Stage(flusher=held).open()
    first, second = stage.append(b"x", b"y")
    answers = [Answer(stage.store.when_durable(place.end, place.end)) for place in (second, first)]
    stage.clock.run_soon()
    held.go()
    assert [answer.value for answer in answers] == [second.end, first.end]
    (third,) = stage.append(b"z")
    early = Answer(stage.store.when_durable(third.end, None))
    assert stage.store.when_durable(first.end, "at once") == "at once"
    assert not early.answered


def test_readers_see_a_message_when_it_is_durable() -> None:
    held = HeldBackground()
    stage = Stage(flusher=held).open()
    (appended,) = stage.append(b"x")
    stage.clock.run_soon()
    assert (stage.store.max_offset("Topic", 0), stage.arrivals) == (0, [])
    (second,) = stage.append(b"y")
    assert (appended.queue_offset, second.queue_offset) == (0, 1)
    held.go()
    assert stage.store.max_offset("Topic", 0) == 1
    assert [(arrival.queue_offset, arrival.tags_code) for arrival in stage.arrivals] == [(0, 114586)]
    assert stage.arrivals[0].properties == b"KEYS\x01k\x02TAGS\x01tag\x02"


def test_async_readers_see_it_at_the_end_of_the_turn() -> None:
    held = HeldBackground()
    stage = Stage(flusher=held, flush_disk_type="ASYNC_FLUSH").open()
    (appended,) = stage.append(b"x")
    assert stage.store.when_durable(appended.end, "now") == "now"
    assert stage.store.max_offset("Topic", 0) == 0
    stage.clock.run_soon()
    assert stage.store.max_offset("Topic", 0) == 1
    assert held.jobs == []
    assert stage.store.flushed < appended.end
    stage.clock.advance(500)
    assert len(held.jobs) == 1
    held.go()
    assert stage.store.flushed == appended.end


def test_an_idle_store_does_nothing() -> None:
    stage = Stage(flush_disk_type="ASYNC_FLUSH").open()
    stage.append(b"x")
    stage.clock.advance(60_000)
    events = len(stage.disk.events)
    stage.clock.advance(3_600_000)
    assert len(stage.disk.events) == events


def test_a_slow_disk_times_out_and_goes_on() -> None:
    held = HeldBackground()
    stage = Stage(flusher=held).open()
    first = Answer(stage.store.when_durable(stage.append(b"x")[0].end, None))
    stage.clock.advance(3_000)
    second = Answer(stage.store.when_durable(stage.append(b"y")[0].end, None))
    whole = Answer(stage.store.flush())
    stage.clock.advance(2_000)
    assert isinstance(first.error, FlushTimeout)
    assert not second.answered
    stage.clock.advance(2_999)
    assert not second.answered
    stage.clock.advance(1)
    assert isinstance(second.error, FlushTimeout)
    assert not whole.answered
    held.go()
    held.go()
    assert whole.answered
    assert whole.error is None
    assert stage.bodies() == [b"x", b"y"]  # the disk came back: they are stored after all
    third = Answer(stage.store.when_durable(stage.append(b"z")[0].end, None))
    stage.clock.run_soon()
    held.go()
    assert third.error is None
    assert third.answered


def test_a_clock_put_forward_is_no_slow_disk() -> None:
    held = HeldBackground()
    stage = Stage(flusher=held).open()
    sent = Answer(stage.store.when_durable(stage.append(b"x")[0].end, None))
    stage.clock.advance(4_999)
    stage.clock.jump(3_600_000)
    assert not sent.answered
    stage.clock.advance(1)
    assert isinstance(sent.error, FlushTimeout)


def test_a_cancelled_wait_is_no_error() -> None:
    held = HeldBackground()
    stage = Stage(flusher=held).open()
    replies: list[Any] = [stage.store.when_durable(stage.append(b"x")[0].end, number) for number in range(3)]
    answers = [Answer(reply) for reply in replies]
    replies[1].cancel()
    stage.clock.run_soon()
    held.go()
    assert [answer.value for answer in answers] == [0, None, 2]


def test_a_listener_that_raises_does_not_keep_others_waiting() -> None:
    stage = Stage().open()
    first = stage.store.when_durable(stage.append(b"x")[0].end, None)
    second = Answer(stage.store.when_durable(stage.append(b"y")[0].end, None))

    def broken(_: object) -> None:
        raise RuntimeError("a bug of the listener")

    assert first is not None
    first.then(broken, broken)
    with pytest.raises(RuntimeError):
        stage.clock.run_soon()
    stage.clock.run_soon()
    assert second.answered


def failed_sync(stage: Stage) -> list[Answer]:
    answers = [Answer(stage.store.when_durable(stage.append(b"x")[0].end, None)) for _ in range(3)]
    stage.disk.faults[Operation.SYNC, "commitlog/"] = errno.EIO
    stage.clock.run_soon()
    return answers


def test_a_failed_fdatasync_fails_everyone_and_is_never_tried_again() -> None:
    stage = Stage().open()
    stage.send(b"before")
    answers = failed_sync(stage)
    for answer in answers:
        assert isinstance(answer.error, ServiceUnavailable)
        assert "commitlog/00000000000000000000" in str(answer.error)
        assert "errno 5" in str(answer.error)
    stage.disk.faults.clear()  # the disk says that it is well again; the dirty pages are gone
    events = len(stage.disk.events)
    with pytest.raises(ServiceUnavailable, match="errno 5"):
        stage.append(b"again")
    with pytest.raises(ServiceUnavailable):
        stage.store.when_durable(stage.store.end, None)
    with pytest.raises(ServiceUnavailable):
        stage.store.flush()
    stage.clock.advance(100_000)
    assert len(stage.disk.events) == events
    assert stage.bodies() == [b"before"]  # what had been acknowledged can still be read
    stage.store.close()
    assert stage.disk.exists("abort")
    assert stage.again().bodies()[0] == b"before"


def test_a_failed_write_fails_everyone() -> None:
    stage = Stage().open()
    answer = Answer(stage.store.when_durable(stage.append(b"x")[0].end, None))
    stage.disk.faults[Operation.WRITE, "commitlog/"] = errno.EIO
    stage.clock.run_soon()
    assert isinstance(answer.error, ServiceUnavailable)
    stage.disk.faults.clear()
    with pytest.raises(ServiceUnavailable, match="until it is restarted"):
        stage.append(b"again")
    stage.store.close()
    assert stage.again().bodies() == []


def test_a_failed_write_of_the_queues_stops_appends() -> None:
    stage = Stage().open()
    stage.send(b"x")
    stage.disk.faults[Operation.CREATE, "consumequeue/"] = errno.EIO
    stage.clock.advance(1_000)
    with pytest.raises(ServiceUnavailable, match=r"consumequeue/Topic/0/00000000000000000000.*errno 5"):
        stage.append(b"y")
    assert stage.bodies() == [b"x"]
    stage.disk.faults.clear()
    stage.store.close()
    assert stage.again().bodies() == [b"x"]


def test_a_full_disk_refuses_messages_until_there_is_room() -> None:
    stage = Stage().open()
    stage.send(*[b"x" * 300] * 4)
    stage.clock.run_soon()
    stage.disk.faults[Operation.ALLOCATE, "commitlog/"] = errno.ENOSPC
    filled = 0
    with pytest.raises(ServiceUnavailable, match=r"commitlog/\d{20}: No space left on device \(errno 28\)"):  # noqa: PT012
        for _ in range(20):
            stage.send(b"y" * 300)
            filled += 1
    with pytest.raises(ServiceUnavailable):
        stage.append(b"z" * 300)
    stage.disk.faults.clear()
    (appended,) = stage.send(b"z" * 300)
    assert appended.queue_offset == 4 + filled
    assert stage.bodies() == [b"x" * 300] * 4 + [b"y" * 300] * filled + [b"z" * 300]
    assert Stage(stage.disk.crashed()).open().bodies() == stage.bodies()


@pytest.mark.parametrize("seed", range(5))
def test_every_write_has_its_room_before(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows are smaller than files, and the background is late or never comes."""
    monkeypatch.setattr(commitlog, "WINDOW_BYTES", 512)
    chance = random.Random(seed)
    held = HeldBackground()
    stage = Stage(reader=held).open()
    for _ in range(60):
        stage.append(b"x" * chance.choice([0, 100, 700]))
        if chance.random() < 0.5:
            stage.clock.run_soon()
        if chance.random() < 0.5:
            held.go()
    stage.clock.run_soon()
    room: dict[str, int] = {}
    for event in stage.disk.events:
        if event.operation is Operation.ALLOCATE and event.path.startswith("commitlog/"):
            assert event.offset <= room.get(event.path, 0), "a hole"
            assert event.offset + event.size <= 2048, "the file would grow"
            room[event.path] = max(room.get(event.path, 0), event.offset + event.size)
        elif event.operation is Operation.WRITE and event.path.startswith("commitlog/"):
            assert event.offset + len(event.data) <= room[event.path]
    assert len(stage.all()) == 60


def test_slow_writes_of_the_queues_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time to write them comes in a turn in which messages were appended."""
    held = HeldBackground()
    stage = Stage(reader=held, flush_disk_type="ASYNC_FLUSH").open()
    for number in range(6):
        stage.append(b"%d" % number)
        with monkeypatch.context() as turn:
            turn.setattr(stage.clock, "run_soon", lambda: None)
            stage.clock.advance(1_500)
        stage.clock.run_soon()
        if number % 3 == 2:
            held.go()
    for _ in range(10):
        stage.clock.advance(1_500)
        held.go()
    again = Stage(stage.disk.crashed(survives=everything_survives), clock=stage.clock)
    files = again.store._queues.files
    entries = [files.entry("consumequeue/Topic/0", offset)[0] for offset in range(6)]
    assert again.open().bodies() == [b"%d" % number for number in range(6)]
    assert entries == [stored.commit_log_offset for stored in again.all()]


def test_stopping_refuses_appends_and_waits_for_the_disk() -> None:
    held = HeldBackground()
    stage = Stage(flusher=held).open()
    sent = Answer(stage.store.when_durable(stage.append(b"x")[0].end, None))
    stage.clock.run_soon()
    stopped = Answer(stage.store.stop())
    with pytest.raises(ServiceUnavailable, match="stopping"):
        stage.append(b"y")
    stage.clock.run_soon()
    assert not stopped.answered
    held.go()
    assert sent.answered
    assert stopped.answered
    stage.store.close()
    assert not stage.disk.exists("abort")
    assert stage.disk.open_files == 0


def test_closing_without_stopping_looks_like_a_crash_but_loses_nothing() -> None:
    held = HeldBackground()
    stage = Stage(flusher=held).open()
    answer = Answer(stage.store.when_durable(stage.append(b"x")[0].end, None))
    stage.clock.run_soon()
    stage.store.close()
    assert isinstance(answer.error, ServiceUnavailable)
    assert stage.disk.exists("abort")
    held.go()  # the sync comes back to a store that is gone
    assert stage.again().bodies() == [b"x"]


def test_a_store_that_was_never_opened_closes() -> None:
    stage = Stage()
    stage.store.close()
    with pytest.raises(ServiceUnavailable, match="not open"):
        stage.append(b"x")
    assert isinstance(stage.store, Store)
