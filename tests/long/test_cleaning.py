"""Old files go while messages come and are read, in a real process on a real disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from long_load import Load, eventually, pull_fields

from saturnmq.kernel.errors import ConnectionLost
from saturnmq.testing.server import LocalServer
from saturnmq.wire.record import decode, split
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode

pytest_plugins = ["long_stage"]
pytestmark = pytest.mark.long

HOUR_MS = 3_600_000
FILE_BYTES = 1 << 20


def test_cleaning_under_load(servers: Callable[..., LocalServer], tmp_path: Path) -> None:
    """An hour passes between bursts, so that each burst finds the one before it expired; readers follow from the first
    message left and must see consecutive messages, whole ones, and never an error."""
    always = ";".join(map(str, range(24)))
    server = servers(
        tmp_path / "data",
        f"mappedFileSizeCommitLog={FILE_BYTES}", "mappedFileSizeConsumeQueue=20000", "maxIndexNum=2000",
        "maxHashSlotNum=500", "fileReservedTime=1", f"deleteWhen={always}", "deleteCommitLogFilesInterval=10",
        "cleanResourceInterval=200", "flushDiskType=SYNC_FLUSH",
        arguments=["--test-clock"],
    )  # fmt: skip
    server.advance_clock(60_000)
    commit_log = tmp_path / "data" / "commitlog"
    stop = threading.Event()
    errors: list[str] = []
    reads = [0]

    def read() -> None:
        load = Load(lambda: server.broker)
        offset = 0
        while not stop.is_set():
            try:
                answer = load.ask(RequestCode.PULL_MESSAGE, pull_fields("orders", 0, offset))
            except ConnectionLost:  # it was idle for half an hour
                continue
            if answer.code == ResponseCode.SUCCESS:
                records = [decode(record, check_crc=True) for record in split(answer.body)]
                numbers = [int(record.body[:8]) for record in records]
                if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
                    errors.append(f"not consecutive: {numbers}")
                reads[0] += 1
            elif answer.code not in (
                ResponseCode.PULL_OFFSET_MOVED, ResponseCode.PULL_RETRY_IMMEDIATELY, ResponseCode.PULL_NOT_FOUND,
            ):  # fmt: skip
                errors.append(f"{answer.code} {answer.remark}")
            # from the front again when it has come to the end: where files go
            offset = 0 if answer.code == ResponseCode.PULL_NOT_FOUND else int(answer.fields["nextBeginOffset"])

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    load, sent = Load(lambda: server.broker), 0
    sizes = []
    try:
        for _ in range(12):
            burst = [("orders", 0, b"%08d" % number + os.urandom(4000)) for number in range(sent, sent + 1_500)]
            assert all(message.acknowledged for message in load.send(burst))
            sent += len(burst)
            sizes.append(len(os.listdir(commit_log)))
            server.advance_clock(HOUR_MS // 2 + 1)
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert errors == []
    assert reads[0] > 100
    assert max(sizes) <= 3 * 7 + 2, f"files: {sizes}"
    assert int(sorted(os.listdir(commit_log))[0]) > 10 * FILE_BYTES
    # by the disk's clock all of them were written long ago: only the file in use stays, and the one before it for the
    # queue entries that it tells of
    eventually(lambda: len(os.listdir(commit_log)), lambda files: files <= 3)
    bodies = load.pull("orders", 0)
    assert [int(body[:8]) for body in bodies] == list(range(sent - len(bodies), sent))
    deleted = [os.readlink(f"/proc/{server.pid}/fd/{name}") for name in os.listdir(f"/proc/{server.pid}/fd")]
    assert not [path for path in deleted if path.endswith("(deleted)") and "/data/" in path]
    server.kill()
    server.start()
    assert load.pull("orders", 0) == bodies
    assert server.stop() == 0
