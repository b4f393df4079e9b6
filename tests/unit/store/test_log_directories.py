"""A commit log in several directories, as Apache's MultiPathMappedFileQueue keeps it."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from store_stage import HeldBackground, Stage

from saturnmq.disk.simulated import Operation, everything_survives, nothing_survives
from saturnmq.kernel.errors import ServiceUnavailable
from saturnmq.store.results import StoreRefused


def several(**settings: Any) -> Stage:
    return Stage(store_path_commit_log="disk2/log, disk1/log", message_index_enable=False, **settings).open()


def fill(stage: Stage, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        stage.send(b"%06d" % number + b"x" * 194)


def numbers(stage: Stage) -> list[int]:
    return [int(body[:6]) for body in stage.bodies()]


def places(stage: Stage, *directories: str) -> list[list[int]]:
    return [[int(name) // 2048 for name in stage.disk.list(directory)] for directory in directories]


def test_files_are_made_in_turn() -> None:
    """In the order of the names, as Apache sorts them."""
    stage = several()
    fill(stage, 40)
    even, odd = places(stage, "disk1/log", "disk2/log")
    assert even == list(range(0, even[-1] + 1, 2))
    assert odd == list(range(1, odd[-1] + 1, 2))
    assert numbers(stage) == list(range(40))
    stage.close()
    stage = stage.again()
    assert numbers(stage) == list(range(40))
    fill(stage, 10, 40)
    assert numbers(stage) == list(range(50))
    assert stage.disk.list("commitlog") == []


@pytest.mark.parametrize("survives", [nothing_survives, everything_survives])
def test_a_crash_at_any_moment(survives: Any) -> None:
    stage = several()
    fill(stage, 20)
    begin = len(stage.disk.events)
    fill(stage, 10, 20)
    stage.clock.advance(2_000)
    for end in range(begin, len(stage.disk.events), 3):
        after = Stage(
            stage.disk.crashed(end, survives), store_path_commit_log="disk2/log,disk1/log", message_index_enable=False
        ).open()
        found = numbers(after)
        assert found == list(range(len(found)))
        assert len(found) >= 20
        fill(after, 8, len(found))
        assert numbers(after) == list(range(len(found) + 8))


def test_directories_that_are_only_read() -> None:
    stage = Stage(message_index_enable=False).open()
    fill(stage, 20)
    stage.close()
    before = stage.disk.list("commitlog")
    again = stage.again(store_path_commit_log="new", read_only_commit_log_store_paths="commitlog")
    assert numbers(again) == list(range(20))
    fill(again, 20, 20)
    assert numbers(again) == list(range(40))
    assert again.disk.list("commitlog") == before
    assert again.disk.list("new")[0] > before[-1]


def test_a_log_that_is_only_read_has_nowhere_to_grow() -> None:
    with pytest.raises(ValueError, match="readOnlyCommitLogStorePaths names all directories"):
        Stage(store_path_commit_log="a,b", read_only_commit_log_store_paths="b,a")


def test_a_directory_without_room_is_left_out() -> None:
    stage = several()
    fill(stage, 4)
    stage.disk.spaces["disk2/log"] = (95, 5)
    stage.clock.advance(5_000)
    fill(stage, 30, 4)
    one, other = places(stage, "disk1/log", "disk2/log")
    assert other == [1], "was there before"
    assert one == [0, *range(2, one[-1] + 1)]
    stage.disk.spaces["disk1/log"] = (95, 5)
    stage.clock.advance(5_000)
    with pytest.raises(ServiceUnavailable, match=r"disk\d/log"):
        stage.append(b"x")
    assert numbers(stage) == list(range(34))


def test_a_file_that_finds_no_room_is_made_elsewhere() -> None:
    """A directory that has room by its figures, and has none: the next try goes to another one."""
    held = HeldBackground()
    stage = several(reader=held)
    stage.disk.faults[Operation.ALLOCATE, "disk2/"] = errno.ENOSPC
    fill(stage, 6)
    with pytest.raises(ServiceUnavailable, match="disk2/log"):
        fill(stage, 6, 6)
    stage.clock.run_soon()
    held.go()
    stage.clock.run_soon()
    stage.disk.spaces["disk2/log"] = (95, 5)
    stored = stage.store.max_offset("Topic", 0)
    with pytest.raises(ServiceUnavailable, match="disk2/log"):
        fill(stage, 6, stored)
    fill(stage, 30, stored)
    assert places(stage, "disk2/log") == [[]]
    assert numbers(stage) == list(range(stored + 30))
    again = Stage(
        stage.disk.crashed(survives=everything_survives),
        store_path_commit_log="disk2/log,disk1/log",
        message_index_enable=False,
    )
    assert numbers(again.open()) == list(range(stored + 30))


def test_a_file_that_is_still_being_made_is_not_made_elsewhere_too() -> None:
    held = HeldBackground()
    stage = several(reader=held)
    stage.disk.faults[Operation.ALLOCATE, "disk2/"] = errno.ENOSPC
    for _ in range(3):
        with pytest.raises(ServiceUnavailable, match="disk2/log"):
            fill(stage, 10, stage.store._rows[-1][4] + 1 if stage.store._rows else stage.store.max_offset("Topic", 0))
        stage.clock.run_soon()
        stage.store._log.full = frozenset(["disk2/log"])
    stage.disk.faults.clear()
    held.go()
    stage.clock.run_soon()
    stored = stage.store.max_offset("Topic", 0)
    fill(stage, 20, stored)
    one, other = places(stage, "disk1/log", "disk2/log")
    assert 1 in other
    assert not set(one) & set(other)
    assert numbers(stage) == list(range(stored + 20))


def test_a_file_that_is_there_twice_is_refused() -> None:
    stage = several()
    fill(stage, 20)
    stage.close()
    stage.disk.create("disk1/log/00000000000000002048").close()
    with pytest.raises(StoreRefused, match="00000000000000002048 is a file of disk"):
        stage.again()


def test_a_missing_directory_is_a_missing_file() -> None:
    stage = several()
    fill(stage, 30)
    stage.close()
    with pytest.raises(StoreRefused, match="is missing"):
        stage.again(store_path_commit_log="disk1/log")


def test_old_files_go_wherever_they_are() -> None:
    stage = several(file_reserved_time=1, delete_when=";".join(map(str, range(24))))
    stage.disk.now_ms = stage.clock.now_ms
    fill(stage, 40)
    stage.clock.advance(3_660_000)
    one, other = places(stage, "disk1/log", "disk2/log")
    assert sorted(one + other) == list(range(stage.store.end // 2048, max(one + other) + 1))
    assert set(stage.store._log._elsewhere) <= {2048 * number for number in one + other}
    low = stage.store.min_offset("Topic", 0)
    assert numbers(stage) == list(range(low, 40))
    fill(stage, 20, 40)
    assert numbers(stage) == list(range(low, 60))
