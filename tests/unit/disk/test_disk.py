"""What both disks must do alike, and what each does alone."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from saturnmq.disk.openfiles import OpenFiles
from saturnmq.disk.port import Disk, Space
from saturnmq.disk.real import RealDisk
from saturnmq.disk.simulated import Event, Operation, SimulatedDisk, everything_survives, nothing_survives


@pytest.fixture(params=["real", "simulated"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return RealDisk(str(tmp_path / "root")) if request.param == "real" else SimulatedDisk()


def test_files(disk: Disk) -> None:
    with pytest.raises(FileNotFoundError):
        disk.open("a")
    file = disk.create("a")
    file.pwrite(b"hello", 3)
    assert file.pread(100, 0) == b"\0\0\0hello"
    assert file.pread(2, 4) == b"el"
    view = file.try_pread(100, 5)
    assert view is not None
    assert bytes(view) == b"llo"
    assert bytes(file.try_pread(5, 8) or b"") == b""
    file.truncate(4)
    file.truncate(6)
    assert file.pread(100, 0) == b"\0\0\0h\0\0"
    file.allocate(0, 6)
    assert file.size() == 6
    file.fdatasync()
    file.close()
    again = disk.create("a")
    assert again.pread(100, 3) == b"h\0\0"
    again.close()


@pytest.mark.parametrize(("name", "error"), [("x" * 256, OSError), ("a/" + "x" * 256, OSError), ("a\0", ValueError)])
def test_what_is_no_name(disk: Disk, name: str, error: type[Exception]) -> None:
    assert not disk.exists(name)
    disk.mkdir("a")
    for use in (disk.list, disk.create, disk.open, disk.mkdir):
        with pytest.raises(error):
            use(name)


def test_nobody_leaves_the_simulated_root() -> None:
    disk = SimulatedDisk()
    for use in (disk.list, disk.create, disk.open, disk.mkdir, disk.exists):
        with pytest.raises(AssertionError, match="leaves its directory"):
            use("a/../b")


def test_directories(disk: Disk) -> None:
    assert disk.list("x/y") == []
    assert not disk.exists("x")
    disk.mkdir("x/y/z")
    disk.mkdir("x/y/z")
    disk.create("x/y/b").close()
    disk.create("x/y/a").close()
    disk.sync_directory("x/y")
    assert disk.list("x/y") == ["a", "b", "z"]
    disk.rename("x/y/a", "x/y/c")
    disk.unlink("x/y/b")
    assert disk.list("x/y") == ["c", "z"]
    with pytest.raises(FileNotFoundError):
        disk.unlink("x/y/b")
    with pytest.raises(FileNotFoundError):
        disk.create("no/such")


def test_how_long_ago_a_file_was_written_to(disk: Disk) -> None:
    file = disk.create("a")
    if isinstance(disk, SimulatedDisk):
        disk.now_ms = lambda: 1_700_000_000_000
    file.pwrite(b"x", 0)
    file.close()
    assert 0 <= disk.age_ms("a") < 60_000
    assert isinstance(disk, SimulatedDisk | RealDisk)
    now_ms = disk.now_ms()
    disk.now_ms = lambda: now_ms + 3_600_000
    assert 3_600_000 <= disk.age_ms("a") < 3_660_000
    with pytest.raises(FileNotFoundError):
        disk.age_ms("b")


def test_space(disk: Disk) -> None:
    disk.mkdir("a")
    path, used, free = space = disk.space("a")
    assert path.endswith("a")
    assert free > 0
    assert used >= 0
    assert 0 <= space.used_percent <= 100
    assert Space("", 1, 999).used_percent == 1
    assert Space("", 0, 0).used_percent == 0


def test_replace_file(disk: Disk) -> None:
    for content in (b"old and long", b"new"):
        disk.replace_file("config/topics.json", content)
        assert disk.read_file("config/topics.json") == content
    assert disk.list("config") == ["topics.json"]


def test_lock(disk: Disk) -> None:
    lock = disk.lock("lock")
    with pytest.raises(BlockingIOError) as refused:
        disk.lock("lock")
    assert str(refused.value.filename).endswith("lock")
    lock.close()
    disk.lock("lock").close()


def test_open_files_are_bounded(disk: Disk) -> None:
    for number in range(10):
        file = disk.create(f"f{number}")
        file.pwrite(b"%d" % number, 0)
        file.close()
    files = OpenFiles(disk, 3)
    for number in [0, 1, 2, 0, 3, 0, 4, 5, 0, 9, 8]:
        assert files.get(f"f{number}").pread(1, 0) == b"%d" % number
        assert len(files) <= 3
    kept = files.get("f0")
    files.get("f1")
    assert files.get("f0") is kept
    with pytest.raises(FileNotFoundError):
        files.get("nothing")
    files.drop("f1")
    files.drop("f1")
    assert len(files) == 2
    files.close()
    assert len(files) == 0


# ------------------------------------------------------------------------------------------------- the real one


def test_errors_name_the_path(tmp_path: Path) -> None:
    disk = RealDisk(str(tmp_path))
    file = disk.create("a")
    os.close(file._descriptor)
    calls: list[Callable[[], object]] = [
        lambda: file.pwrite(b"x", 0), lambda: file.pread(1, 0), lambda: file.try_pread(1, 0), file.fdatasync,
        lambda: file.truncate(1), lambda: file.allocate(0, 1),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(OSError, match="Bad file descriptor") as failed:
            call()
        assert failed.value.filename == str(tmp_path / "a")


def test_allocate_takes_room_and_truncate_does_not(tmp_path: Path) -> None:
    disk = RealDisk(str(tmp_path))
    file = disk.create("a")
    file.truncate(1 << 20)
    assert os.stat(tmp_path / "a").st_blocks == 0
    file.allocate(0, 1 << 16)
    assert (os.stat(tmp_path / "a").st_size, os.stat(tmp_path / "a").st_blocks * 512 >= 1 << 16) == (1 << 20, True)
    file.close()


def test_the_lock_keeps_other_processes_out_even_javas_kind(tmp_path: Path) -> None:
    """Apache's broker takes a POSIX record lock on the first byte."""
    lock = RealDisk(str(tmp_path)).lock("lock")
    program = (
        "import fcntl, os, sys; d = os.open(sys.argv[1], os.O_RDWR)\n"
        "try: fcntl.lockf(d, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)\n"
        "except OSError: sys.exit(7)"
    )
    command = [sys.executable, "-S", "-c", program, str(tmp_path / "lock")]
    assert subprocess.run(command, check=False).returncode == 7
    lock.close()
    assert subprocess.run(command, check=False).returncode == 0


# -------------------------------------------------------------------------------------------- the simulated one


def _written(disk: SimulatedDisk, *, sync: bool = False) -> SimulatedDisk:
    file = disk.create("f")
    disk.sync_directory("")
    file.pwrite(b"first", 0)
    file.fdatasync()
    file.pwrite(b"second", 5)
    if sync:
        file.fdatasync()
    return disk


def test_a_crash_keeps_what_was_synced() -> None:
    disk = _written(SimulatedDisk())
    assert disk.crashed().read_file("f") == b"first"
    assert disk.crashed(None, everything_survives).read_file("f") == b"firstsecond"
    assert disk.crashed(None, lambda event: ((1, 3), (5, 6))).read_file("f") == b"first\0ec\0\0d"
    assert _written(SimulatedDisk(), sync=True).crashed().read_file("f") == b"firstsecond"
    assert disk.crashed(3).read_file("f") == b""
    assert not disk.crashed(1).exists("f")
    assert disk.crashed(1, everything_survives).exists("f")


def test_names_are_durable_after_a_sync_of_their_directory() -> None:
    disk = SimulatedDisk()
    disk.replace_file("c", b"old")
    before = len(disk.events)
    disk.replace_file("c", b"new")
    contents = {disk.crashed(events).read_file("c") for events in range(before, len(disk.events) + 1)}
    assert contents == {b"old", b"new"}
    contents = {
        disk.crashed(events, everything_survives).read_file("c") for events in range(before, len(disk.events) + 1)
    }
    assert contents == {b"old", b"new"}
    disk.unlink("c")
    assert disk.crashed().exists("c")
    disk.sync_directory("")
    assert not disk.crashed().exists("c")


def test_a_crashed_disk_has_a_history_of_its_own() -> None:
    first = _written(SimulatedDisk()).crashed()
    assert first.events == []
    file = first.open("f")
    file.truncate(2)
    assert first.crashed().read_file("f") == b"first"
    file.fdatasync()
    assert first.crashed().read_file("f") == b"fi"
    other = first.create("g")
    other.pwrite(b"g", 0)
    assert first.crashed(None, everything_survives).read_file("g") == b"g"
    assert first.crashed(None, everything_survives).read_file("f") == b"fi"


def test_a_lost_truncate_is_lost() -> None:
    disk = SimulatedDisk()
    file = disk.create("f")
    disk.sync_directory("")
    file.truncate(10)
    assert disk.crashed(None, nothing_survives).open("f").size() == 0

    def only_truncates(event: Event) -> tuple[tuple[int, int], ...]:
        return ((0, 0),) if event.operation is Operation.TRUNCATE else ()

    assert disk.crashed(None, only_truncates).open("f").size() == 10


def test_no_later_sync_covers_what_was_written_before_one_that_failed() -> None:
    """As Linux has it: the pages that could not be written are clean then."""
    disk = SimulatedDisk()
    file = disk.create("f")
    disk.sync_directory("")
    file.pwrite(b"one", 0)
    disk.faults[Operation.SYNC, "f"] = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        file.fdatasync()
    disk.faults.clear()
    file.pwrite(b"two", 3)
    file.fdatasync()
    assert disk.crashed(None, nothing_survives).read_file("f") == b"\0\0\0two"
    assert disk.crashed(None, everything_survives).read_file("f") == b"onetwo"


def test_faults() -> None:
    disk = SimulatedDisk()
    disk.mkdir("d")
    file = disk.create("d/f")
    disk.faults[Operation.WRITE, "d/"] = errno.ENOSPC
    with pytest.raises(OSError, match="No space left") as failed:
        file.pwrite(b"x", 0)
    assert (failed.value.errno, failed.value.filename) == (errno.ENOSPC, "d/f")
    assert file.size() == 0
    disk.create("g").pwrite(b"x", 0)
    disk.faults.clear()
    file.pwrite(b"x", 0)


def test_cold_files() -> None:
    disk = _written(SimulatedDisk())
    file = disk.open("f")
    disk.cold.add("f")
    assert file.try_pread(5, 0) is None
    assert file.pread(5, 0) == b"first"
    assert bytes(file.try_pread(5, 0) or b"") == b"first"
