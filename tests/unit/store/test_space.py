"""A full disk: a clear refusal, nothing lost, and on it goes when there is room."""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest
from store_stage import Answer, Stage, message

from saturnmq.disk.simulated import Operation, SimulatedDisk, everything_survives
from saturnmq.kernel.errors import FlushTimeout, ServiceUnavailable
from saturnmq.kernel.metrics import Metrics
from saturnmq.testing.clock import VirtualClock

GIB = 1 << 30


def full(stage: Stage, used: int, free: int, *directories: str) -> None:
    for directory in directories or ("", "commitlog"):
        stage.disk.spaces[directory] = (used, free)


# ---------------------------------------------------------------------------------------------------- two figures


def test_both_figures_must_be_bad() -> None:
    stage = Stage().open()
    for used, free in ((95 * GIB, 5 * GIB), (9 * GIB, 1 * GIB), (GIB // 2, GIB // 2), (99 * GIB, GIB)):
        full(stage, used, free)
        stage.clock.advance(5_000)
        stage.send(b"x")
    full(stage, 99 * GIB, GIB - 1)
    stage.clock.advance(5_000)
    with pytest.raises(ServiceUnavailable) as refused:
        stage.append(b"y")
    assert str(refused.value) == (
        "no messages are taken: the disk of . is 100 % full and has 1023 MiB free; they are taken again when it is no "
        "more than 90 % full (diskSpaceWarningLevelRatio) or has 1024 MiB free (diskMinFreeBytes=1073741824)"
    )
    full(stage, 99 * GIB, GIB)
    with pytest.raises(ServiceUnavailable):
        stage.append(b"y")
    stage.clock.advance(5_000)
    stage.send(b"z")
    assert stage.bodies() == [b"x"] * 4 + [b"z"]


@pytest.mark.parametrize(
    ("directory", "refused"), [("", True), ("a", False), ("b", False), ("a b", True), ("c", False)]
)
def test_every_disk_that_matters(directory: str, refused: bool) -> None:
    """One of several log directories may be full; the root must not, and what is only read may."""
    stage = Stage(store_path_commit_log="a,b", read_only_commit_log_store_paths="c").open()
    full(stage, 95, 5, *directory.split(" "))
    stage.clock.advance(5_000)
    if refused:
        with pytest.raises(ServiceUnavailable, match="diskSpaceWarningLevelRatio"):
            stage.append(b"x")
    else:
        stage.send(b"x")


def test_settings() -> None:
    stage = Stage(disk_space_warning_level_ratio=50, disk_min_free_bytes=20_000).open()
    full(stage, 51_000, 49_000)
    stage.clock.advance(5_000)
    stage.send(b"x")
    full(stage, 510_000, 19_000)
    stage.clock.advance(5_000)
    with pytest.raises(ServiceUnavailable, match=r"97 % full and has 18 KiB free.*50 %.*diskMinFreeBytes=20000"):
        stage.append(b"x")


def test_what_consumers_need_is_taken_as_long_as_there_is_room() -> None:
    stage = Stage().open()
    full(stage, 95, 5)
    stage.clock.advance(5_000)
    with pytest.raises(ServiceUnavailable):
        stage.append(b"x")
    stage.store.append([message(b"acknowledged")], urgent=True)
    stage.clock.run_soon()
    assert stage.bodies() == [b"acknowledged"]


def test_gauges() -> None:
    stage = Stage().open()
    metrics = Metrics()
    stage.store.measure(metrics)
    stage.send(b"x")

    def page() -> dict[str, float]:
        lines = "".join(metrics.lines()).splitlines()
        return {name: float(value) for name, value in (line.split() for line in lines if line[0] != "#")}

    assert page() == {
        "saturnmq_commit_log_min_offset": 0,
        "saturnmq_commit_log_max_offset": stage.store.end,
        "saturnmq_disk_used_ratio": 0,
        "saturnmq_disk_free_bytes": 1 << 40,
        "saturnmq_disk_refuses_messages": 0,
    }
    full(stage, 94, 6, "commitlog")
    stage.clock.advance(5_000)
    assert page()["saturnmq_disk_used_ratio"] == 0.94
    assert page()["saturnmq_disk_free_bytes"] == 6
    assert page()["saturnmq_disk_refuses_messages"] == 1


def test_a_disk_that_does_not_tell_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage().open()

    def fails(path: str) -> Any:
        raise OSError(errno.EIO, "input/output error", path)

    with monkeypatch.context() as patch:
        patch.setattr(stage.disk, "space", fails)
        stage.clock.advance(60_000)
        stage.send(b"x")
        stage.disk.faults[Operation.ALLOCATE, "commitlog/"] = errno.ENOSPC
        with pytest.raises(ServiceUnavailable, match="No space left on device"):
            stage.send(*[b"x" * 900] * 4)
        stage.disk.faults.clear()
    full(stage, 95, 5)
    stage.clock.advance(5_000)
    with pytest.raises(ServiceUnavailable, match="95 % full"):
        stage.append(b"x")


# ------------------------------------------------------------------------------------------- no room for the log


def test_a_quota_that_is_used_up() -> None:
    """The figures look well, and there is no room all the same: every append tries again."""
    stage = Stage(message_index_enable=False).open()
    stage.send(b"x" * 1000)
    stage.disk.unlink("commitlog/00000000000000002048")  # which was prepared
    stage.store._log._prepared = -1
    stage.disk.faults[Operation.ALLOCATE, "commitlog/"] = errno.EDQUOT
    with pytest.raises(ServiceUnavailable, match=r"commitlog/0{16}2048: .*quota.*has 1024 GiB free and is 0 % full"):
        stage.append(b"y" * 1000)
    stage.disk.faults.clear()
    stage.send(b"z" * 1000)
    assert stage.bodies() == [b"x" * 1000, b"z" * 1000]


def test_an_append_without_room_is_refused_at_once_from_then_on() -> None:
    stage = Stage(message_index_enable=False).open()
    stage.send(b"x" * 1000)
    stage.disk.unlink("commitlog/00000000000000002048")  # which was prepared
    stage.store._log._prepared = -1
    stage.disk.faults[Operation.ALLOCATE, "commitlog/"] = errno.ENOSPC
    full(stage, 99, 1)
    with pytest.raises(ServiceUnavailable, match="99 % full"):
        stage.append(b"y" * 1000)
    stage.disk.faults.clear()
    with pytest.raises(ServiceUnavailable, match="99 % full"):
        stage.append(b"y")
    stage.disk.spaces.clear()
    stage.clock.advance(5_000)
    stage.send(b"z" * 1000)
    assert stage.bodies() == [b"x" * 1000, b"z" * 1000]


@pytest.mark.parametrize("flush", ["SYNC_FLUSH", "ASYNC_FLUSH"])
def test_a_write_without_room_is_repeated(flush: str) -> None:
    """On a file system that cannot allocate. What was appended stays in memory until there is room."""
    stage = Stage(flush_disk_type=flush).open()
    stage.send(b"before")
    stage.disk.faults[Operation.WRITE, "commitlog/"] = errno.ENOSPC
    answers = [Answer(stage.store.when_durable(stage.append(body)[0].end, body)) for body in (b"a", b"b")]
    stage.clock.run_soon()
    with pytest.raises(ServiceUnavailable, match="No space left on device"):
        stage.append(b"refused")
    with pytest.raises(ServiceUnavailable, match="No space left on device"):
        stage.store.append([message(b"refused")], urgent=True)
    with pytest.raises(ServiceUnavailable, match="No space left on device"):
        stage.store.flush()
    assert stage.bodies() == [b"before"]
    stage.clock.advance(4_000)
    assert [answer.answered for answer in answers] == [flush == "ASYNC_FLUSH"] * 2
    stage.disk.faults.clear()
    stage.clock.advance(1_000)
    assert [answer.value for answer in answers] == [b"a", b"b"]
    stage.send(b"after")
    assert stage.bodies() == [b"before", b"a", b"b", b"after"]
    stage.close()
    assert stage.again().bodies() == [b"before", b"a", b"b", b"after"]


def test_who_waits_for_a_write_without_room_is_told_in_time() -> None:
    stage = Stage().open()
    stage.disk.faults[Operation.WRITE, "commitlog/"] = errno.ENOSPC
    answer = Answer(stage.store.when_durable(stage.append(b"a")[0].end, None))
    stage.clock.advance(60_000)
    assert isinstance(answer.error, FlushTimeout)
    stage.disk.faults.clear()
    stage.clock.advance(5_000)
    assert stage.bodies() == [b"a"]


def test_stopping_while_there_is_no_room() -> None:
    stage = Stage().open()
    stage.send(b"before")
    stage.disk.faults[Operation.WRITE, "commitlog/"] = errno.ENOSPC
    answer = Answer(stage.store.when_durable(stage.append(b"a")[0].end, None))
    stage.clock.run_soon()
    stage.close()
    assert isinstance(answer.error, ServiceUnavailable)
    assert stage.disk.exists("abort"), "it was no clean end"
    assert stage.disk.open_files == 0
    stage.disk.faults.clear()
    assert stage.again().bodies() == [b"before"]


@pytest.mark.parametrize("seed", range(20))
def test_no_room_at_any_moment(seed: int) -> None:
    """Under load, room comes and goes for whatever wants to write; what was acknowledged is there in the end, once,
    also after a kill."""
    chance = random.Random(seed)
    stage = Stage(flush_interval_consume_queue=50).open()
    faults = [
        (operation, path)
        for operation in (Operation.WRITE, Operation.ALLOCATE, Operation.CREATE, Operation.MKDIR, Operation.TRUNCATE)
        for path in ("commitlog/", "consumequeue/", "index/")
    ]
    acknowledged: list[bytes] = []
    sent = 0
    for _ in range(300):
        stage.disk.faults = {fault: errno.ENOSPC for fault in faults if chance.random() < 0.2}
        for _ in range(chance.randrange(4)):
            sent += 1
            body = b"%d:" % sent + bytes(chance.randrange(700))
            try:
                [appended] = stage.append(body, queue_id=sent % 3)
                reply = stage.store.when_durable(appended.end, body)
            except ServiceUnavailable:
                continue
            assert not isinstance(reply, bytes)
            reply.then(acknowledged.append, lambda _: None)
        stage.clock.advance(chance.choice([0, 20, 500, 6_000]))
        if chance.random() < 0.02:
            disk, clock = stage.disk.crashed(survives=everything_survives), VirtualClock(stage.clock.now_ms())
            stage = Stage(disk, clock=clock, flush_interval_consume_queue=50).open()
    stage.disk.faults = {}
    stage.clock.advance(20_000)
    for after in (stage, Stage(stage.disk.crashed(survives=everything_survives), clock=stage.clock).open()):
        found = [body for queue_id in range(3) for body in after.bodies(queue_id=queue_id)]
        assert set(acknowledged) <= set(found)
        assert len(found) == len(set(found))
    assert len(acknowledged) > 50


def test_a_server_starts_on_a_full_disk() -> None:
    stage = Stage(mapped_file_size_commit_log=1 << 26).open()
    stage.send(b"x")
    stage.close()
    stage.disk.faults[Operation.ALLOCATE, "commitlog/"] = errno.ENOSPC
    full(stage, 99, 1)
    again = stage.again()
    assert again.bodies() == [b"x"]
    with pytest.raises(ServiceUnavailable, match="99 % full"):
        again.append(b"y")
    stage.disk.faults.clear()
    stage.disk.spaces.clear()
    again.clock.advance(5_000)
    again.send(b"z")
    assert again.bodies() == [b"x", b"z"]


# ---------------------------------------------------------------------------------------- no room for the queues


@pytest.mark.parametrize("operation", [Operation.MKDIR, Operation.CREATE, Operation.TRUNCATE, Operation.WRITE])
def test_queues_wait_in_memory_for_room(operation: Operation) -> None:
    stage = Stage().open()
    stage.disk.faults[operation, "consumequeue/"] = errno.ENOSPC
    for number in range(25):
        stage.send(b"%d" % number)
        stage.clock.advance(1_000)
    stage.clock.advance(60_000)
    expected = [b"%d" % number for number in range(25)]
    assert stage.bodies() == expected
    stage.disk.faults.clear()
    stage.clock.advance(60_000)
    assert stage.store._queues.unwritten == 0
    assert stage.bodies() == expected
    stage.close()
    assert not stage.disk.exists("abort")
    assert stage.again().bodies() == expected


def test_queues_without_room_at_the_end() -> None:
    stage = Stage().open()
    stage.disk.faults[Operation.WRITE, "consumequeue/"] = errno.ENOSPC
    stage.send(b"x")
    stage.clock.advance(5_000)
    stage.close()
    assert stage.disk.exists("abort")
    stage.disk.faults.clear()
    assert stage.again().bodies() == [b"x"]


def test_a_queue_file_without_its_fillers_is_no_file() -> None:
    """The queue's first file is made anew in the middle of the queue, and there is no room for what comes before."""
    stage = Stage().open()
    stage.send(*[b"%d" % number for number in range(5)])
    stage.clock.advance(2_000)
    stage.close()
    stage.disk.unlink("consumequeue/Topic/0/00000000000000000000")
    disk = SimulatedDisk()
    disk.inodes, disk.names, disk.directories = stage.disk.inodes, stage.disk.names, stage.disk.directories
    again = Stage(disk, clock=stage.clock)
    files = again.store._queues.files
    disk.faults[Operation.WRITE, "consumequeue/"] = errno.ENOSPC
    with pytest.raises(OSError, match="No space"):
        files.write("consumequeue/Topic/0", 5, bytes(20))
    assert disk.list("consumequeue/Topic/0") == []


def test_a_failed_sync_of_the_queues_is_final() -> None:
    stage = Stage().open()
    stage.send(b"x")
    stage.disk.faults[Operation.SYNC, "consumequeue/"] = errno.ENOSPC
    stage.clock.advance(20_000)
    with pytest.raises(ServiceUnavailable, match="until it is restarted"):
        stage.append(b"y")
