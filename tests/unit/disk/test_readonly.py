"""Looking at a directory without touching it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from saturnmq.disk.readonly import ReadOnlyDisk
from saturnmq.disk.real import RealDisk
from saturnmq.disk.simulated import SimulatedDisk

HOLD = """
import sys
from saturnmq.disk.real import RealDisk
lock = RealDisk(sys.argv[1]).lock("lock")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    "change",
    [
        lambda disk: disk.create("new"),
        lambda disk: disk.mkdir("new"),
        lambda disk: disk.rename("file", "new"),
        lambda disk: disk.unlink("file"),
        lambda disk: disk.sync_directory(""),
        lambda disk: disk.replace_file("file", b""),
        lambda disk: disk.lock("lock"),
        lambda disk: disk.open("file").pwrite(b"x", 0),
        lambda disk: disk.open("file").truncate(0),
    ],
)
def test_nothing_can_be_changed(tmp_path: Path, change: Callable[[ReadOnlyDisk], object]) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with pytest.raises(OSError, match=r"only read|Bad file descriptor|Invalid argument") as raised:
        change(ReadOnlyDisk(str(tmp_path)))
    assert raised.value.filename
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert ReadOnlyDisk(str(tmp_path)).read_file("file") == b"content"


def test_a_missing_root_is_not_made(tmp_path: Path) -> None:
    disk = ReadOnlyDisk(str(tmp_path / "missing"))
    assert disk.list("") == []
    assert not (tmp_path / "missing").exists()


def test_holes_are_skipped(tmp_path: Path) -> None:
    disk = RealDisk(str(tmp_path))
    file = disk.create("sparse")
    file.truncate(64 << 20)
    file.pwrite(b"data", 48 << 20)
    assert 0 <= file.data_from(0) <= 48 << 20
    assert file.data_from(48 << 20) == 48 << 20
    assert 48 << 20 < file.data_from(49 << 20) <= 64 << 20
    assert file.data_from(64 << 20) == 64 << 20
    assert file.data_from(65 << 20) == 65 << 20
    file.close()


def test_who_has_the_lock(tmp_path: Path) -> None:
    disk = ReadOnlyDisk(str(tmp_path))
    assert disk.lock_holder("lock") is None
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert disk.lock_holder("lock") == process.pid
        with pytest.raises(BlockingIOError):  # asking did not take it away
            RealDisk(str(tmp_path)).lock("lock")
        process.communicate()
    assert disk.lock_holder("lock") is None


def test_who_has_a_simulated_lock() -> None:
    disk = SimulatedDisk()
    lock = disk.lock("lock")
    assert disk.lock_holder("lock") is not None
    lock.close()
    assert disk.lock_holder("lock") is None
