"""`kill -9` under load, again and again: each acknowledged message is at its offset after each restart."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from long_ledger import SETTINGS, Ledger, kill_under_load, verify
from long_load import Load

from saturnmq.testing.server import LocalServer

pytest_plugins = ["long_stage"]
pytestmark = pytest.mark.long

ROUNDS = 100
MOST_MESSAGES = 3000


def test_kill_9(servers: Callable[..., LocalServer], tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    server = servers(tmp_path / "data", *SETTINGS)
    load, ledger = Load(lambda: server.broker), Ledger()
    for _ in range(ROUNDS):
        kill_under_load(server, load, ledger, chance.randint(1, MOST_MESSAGES))
        verify(server.data_dir)
        server.start()
        ledger.check(load)
        verify(server.data_dir)
    print(f"{ROUNDS} times kill -9, {ledger.acknowledged} messages acknowledged, none lost")
    assert ledger.acknowledged > ROUNDS * MOST_MESSAGES // 4
    assert server.stop() == 0
    verify(server.data_dir)
