"""Real disks that are full, broken or forbidden. What was acknowledged is there afterwards, and the error says why."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from long_disks import SmallDisk
from long_load import Load, Sent, eventually

from saturnmq.testing.server import LocalServer, ServerError
from saturnmq.wire.remoting.codes import ResponseCode

pytest_plugins = ["long_stage"]
pytestmark = pytest.mark.long

#: files that fit on small disks
SMALL = (
    "mappedFileSizeCommitLog=4194304",
    "mappedFileSizeConsumeQueue=200000",
    "maxIndexNum=20000",
    "maxHashSlotNum=5000",
)
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")

Start = Callable[..., LocalServer]
Mount = Callable[[int], SmallDisk]


def messages(start: int = 0) -> Iterator[tuple[str, int, bytes]]:
    for number in count(start):
        yield f"topic-{number % 3}", number % 4, b"%08d" % number + bytes(4000)


def refused(sent: Sent) -> bool:
    return sent.code == ResponseCode.SERVICE_NOT_AVAILABLE


def check_nothing_is_lost(load: Load, sent: list[Sent]) -> None:
    """Every acknowledged message is there once, with its bytes, and nothing that was not sent."""
    queues: dict[tuple[str, int], tuple[set[bytes], set[bytes]]] = defaultdict(lambda: (set(), set()))
    for message in sent:
        known, acknowledged = queues[message.topic, message.queue_id]
        known.add(message.body)
        if message.acknowledged:
            acknowledged.add(message.body)
    for (topic, queue_id), (known, acknowledged) in queues.items():
        found = load.pull(topic, queue_id)
        assert len(found) == len(set(found))
        assert acknowledged <= set(found) <= known


def send_when_it_takes_again(load: Load, sent: list[Sent]) -> None:
    """One message, tried until it is taken."""

    def once() -> Sent:
        sent.extend(load.send([next(messages(len(sent)))]))
        return sent[-1]

    eventually(once, lambda message: message.acknowledged)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("diskSpaceWarningLevelRatio=90", "% full (diskSpaceWarningLevelRatio) or has"),
        ("diskSpaceWarningLevelRatio=100", "No space left on device"),  # until there is not a byte left
    ],
)
def test_a_full_disk(small_disk: Mount, servers: Start, setting: str, says: str) -> None:
    disk = small_disk(96)
    ballast = disk.ballast(40)
    server = servers(disk.path / "data", *SMALL, setting, "flushDiskType=SYNC_FLUSH")
    load = Load(lambda: server.broker)
    sent = load.send(messages(), until=refused)
    assert sum(message.acknowledged for message in sent) > 1000
    refusals = [message for message in sent if not message.acknowledged]
    assert all(refused(message) for message in refusals)
    assert str(disk.path / "data") in refusals[0].remark
    assert says in refusals[0].remark
    with urlopen(f"http://{server.http}/metrics", timeout=5) as page:
        text = page.read().decode()
    ratio = next(float(line.split()[1]) for line in text.splitlines() if line.startswith("saturnmq_disk_used_ratio"))
    assert ratio > 0.89
    check_nothing_is_lost(load, sent)

    ballast.unlink()
    send_when_it_takes_again(load, sent)
    sent += load.send([next(messages(len(sent) + extra)) for extra in range(500)])
    assert sent[-1].acknowledged
    check_nothing_is_lost(load, sent)

    sent += load.send(messages(len(sent)), until=refused)
    server.kill()
    room = disk.path / "data" / "commitlog"
    assert room.exists()
    server.start()
    check_nothing_is_lost(load, sent)
    assert server.stop() == 0
    server.start()
    check_nothing_is_lost(load, sent)


def test_a_disk_that_fills_and_empties_all_the_time(small_disk: Mount, servers: Start) -> None:
    """Somebody else's file comes and goes under load, to the last byte."""
    disk = small_disk(160)
    server = servers(disk.path / "data", *SMALL, "diskSpaceWarningLevelRatio=100", "flushDiskType=SYNC_FLUSH")
    load = Load(lambda: server.broker)
    sent: list[Sent] = []
    for _ in range(6):
        filler = (disk.path / "ballast").open("wb", buffering=0)
        try:
            while True:
                filler.write(bytes(1 << 20))
        except OSError:
            filler.close()
        sent += load.send((next(messages(len(sent) + number)) for number in range(600)), until=refused)
        (disk.path / "ballast").unlink()
        send_when_it_takes_again(load, sent)
        sent += load.send([next(messages(len(sent) + number)) for number in range(200)])
    assert any(not message.acknowledged for message in sent)
    assert sum(message.acknowledged for message in sent) > 1000
    check_nothing_is_lost(load, sent)
    server.kill()
    server.start()
    check_nothing_is_lost(load, sent)
    assert server.stop() == 0


@pytest.mark.parametrize("small_disk", ["ext4"], indirect=True)
def test_a_disk_that_becomes_read_only(small_disk: Mount, servers: Start) -> None:
    """The file system finds an error and protects itself (errors=remount-ro)."""
    disk = small_disk(200)
    server = servers(disk.path / "data", *SMALL, "flushDiskType=SYNC_FLUSH")
    load = Load(lambda: server.broker)
    sent = load.send(message for message, _ in zip(messages(), range(2000), strict=False))
    assert all(message.acknowledged for message in sent)
    trigger = Path(f"/sys/fs/ext4/{disk.device}/trigger_fs_error")
    if not trigger.exists():
        pytest.fail("NOT TESTED, this kernel cannot be told to find an error in a file system")
    trigger.write_text("a test")
    sent += load.send(messages(len(sent)), until=refused)
    refusal = next(message for message in sent if not message.acknowledged)
    assert str(disk.path / "data") in refusal.remark
    assert "the disk failed" in refusal.remark
    again = load.send([next(messages(len(sent)))])
    assert refused(again[0])
    check_nothing_is_lost(load, sent)
    server.stop()
    disk.remount()
    server.start()
    check_nothing_is_lost(load, sent + again)
    send_when_it_takes_again(load, sent)
    assert server.stop() == 0


@pytest.fixture
def nobody(tmp_path: Path) -> dict[str, Any]:
    """How to start a server that has no rights."""
    command = (*NOBODY, sys.executable, "-m", "saturnmq")
    tried = subprocess.run([*command, "version"], capture_output=True, check=False, cwd="/")
    if tried.returncode:
        pytest.fail(f"NOT TESTED, no server can be started as another user: {tried.stderr.decode()}")
    for directory in (tmp_path, *tmp_path.parents):
        if directory.owner() == "root" and len(directory.parts) > 2:
            directory.chmod(0o755)
    return {"command": command}


def test_a_directory_without_permission(servers: Start, nobody: dict[str, Any], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    with pytest.raises(ServerError) as refusal:
        servers(data, **nobody)
    said = str(refusal.value)
    assert f"the data directory {data} cannot be used" in said
    assert "Permission denied" in said
    assert "Traceback" not in said


def test_a_directory_that_loses_its_permission(servers: Start, nobody: dict[str, Any], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o777)
    server = servers(data, *SMALL, "flushDiskType=SYNC_FLUSH", **nobody)
    load = Load(lambda: server.broker)
    sent = load.send(message for message, _ in zip(messages(), range(500), strict=False))
    (data / "commitlog").chmod(0o555)
    sent += load.send(messages(len(sent)), until=refused)
    refusal = next(message for message in sent if not message.acknowledged)
    assert f"{data}/commitlog/" in refusal.remark
    assert "Permission denied (errno 13)" in refusal.remark
    check_nothing_is_lost(load, sent)
    (data / "commitlog").chmod(0o755)
    send_when_it_takes_again(load, sent)
    sent += load.send(message for message, _ in zip(messages(len(sent)), range(2000), strict=False))
    assert sent[-1].acknowledged
    check_nothing_is_lost(load, sent)
    assert server.stop() == 0
    server.start()
    check_nothing_is_lost(load, sent)
