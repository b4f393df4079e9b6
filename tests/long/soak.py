"""`make soak MINUTES=…`: sends, cleaning of old files, `kill -9`, and everything read back, again and again."""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from pathlib import Path

from long_ledger import SETTINGS, Ledger, kill_under_load, verify
from long_load import Load

from saturnmq.testing.server import LocalServer

HOUR_MS = 3_600_000
MOST_MESSAGES = 20_000
#: everything older than an hour goes, at any time; the clock is put forward for that
RETENTION = (
    "fileReservedTime=1",
    "deleteWhen=" + ";".join(map(str, range(24))),
    "cleanResourceInterval=500",
    "deleteCommitLogFilesInterval=10",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="saturnmq-soak-") as home:
        settings = [f"--set={setting}" for setting in (*SETTINGS, *RETENTION)]
        with LocalServer("--test-clock", *settings, home=Path(home)) as server:
            soak(server, chance, time.monotonic() + options.minutes * 60)


def soak(server: LocalServer, chance: random.Random, end_s: float) -> None:
    begin_s, rounds, cleanings, checked = time.monotonic(), 0, 0, 0
    load, ledger = Load(lambda: server.broker), Ledger()
    while time.monotonic() < end_s:
        for _ in range(chance.randrange(3)):
            send(load, ledger, chance.randint(1, MOST_MESSAGES))
            if chance.random() < 0.3:
                server.advance_clock(HOUR_MS)
                cleanings += 1
        kill_under_load(server, load, ledger, chance.randint(1, MOST_MESSAGES))
        verify(server.data_dir)
        server.start()
        checked += ledger.check(load, cleaned=True)
        rounds += 1
        first, *_ = sorted(os.listdir(server.data_dir / "commitlog"))
        print(
            f"{time.monotonic() - begin_s:6.0f} s: {rounds} times kill -9, {cleanings} cleanings, "
            f"{ledger.acknowledged:,} messages acknowledged, {checked:,} read back, the log begins at {int(first):,}, "
            f"{server.rss_anon_bytes() >> 20} MiB",
            flush=True,
        )


def send(load: Load, ledger: Ledger, messages: int) -> None:
    answers = load.send(message for message, _ in zip(ledger.messages(), range(messages), strict=False))
    assert all(sent.acknowledged for sent in answers)
    ledger.add(answers)


if __name__ == "__main__":
    main()
