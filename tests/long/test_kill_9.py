"""`kill -9` under load, again and again: each acknowledged message is at its offset after each restart."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from long_ledger import Ledger
from long_load import Load, Sent

from saturnmq.testing.server import LocalServer

pytest_plugins = ["long_stage"]
pytestmark = pytest.mark.long

ROUNDS = 100
#: files that end many times in all the rounds, and answers that do not
SETTINGS = (
    "flushDiskType=SYNC_FLUSH",
    "mappedFileSizeCommitLog=4194304",
    "mappedFileSizeConsumeQueue=20000",
    "maxIndexNum=20000",
    "maxHashSlotNum=5000",
    "maxTransferCountOnMessageInMemory=1000",
    "maxTransferBytesOnMessageInMemory=1048576",
)
MOST_MESSAGES = 3000


def verify(data: Path) -> None:
    """`saturnmq admin verify` finds no damage."""
    settings = [f"--set={setting}" for setting in SETTINGS]
    command = [sys.executable, "-m", "saturnmq", "admin", "verify", str(data), *settings]
    said = subprocess.run(command, capture_output=True, check=False, text=True)
    assert said.returncode == 0, said.stdout + said.stderr


def test_kill_9(servers: Callable[..., LocalServer], tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    server = servers(tmp_path / "data", *SETTINGS)
    load, ledger = Load(lambda: server.broker), Ledger()
    for _ in range(ROUNDS):
        left = chance.randint(1, MOST_MESSAGES)

        def is_over(sent: Sent) -> bool:
            nonlocal left
            left -= sent.acknowledged
            if left == 0:
                server.kill()
            return left <= 0

        ledger.add(load.send(ledger.messages(), until=is_over))
        verify(server.data_dir)
        server.start()
        ledger.check(load)
        verify(server.data_dir)
    print(f"{ROUNDS} times kill -9, {ledger.acknowledged} messages acknowledged, none lost")
    assert ledger.acknowledged > ROUNDS * MOST_MESSAGES // 4
    assert server.stop() == 0
    verify(server.data_dir)
