"""Somebody sets the wall clock while the broker works: nothing fails, nothing waits, nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import pytest
from harness.wall_clock import WallClock
from long_ledger import QUEUES, Ledger
from long_load import Load, Sent, eventually, pull_fields, send_fields

from saturnmq.kernel.properties import DELAY
from saturnmq.testing.server import LocalServer
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode

pytest_plugins = ["long_stage"]
pytestmark = pytest.mark.long

HOUR_MS = 3_600_000
YEAR_MS = 365 * 24 * HOUR_MS
#: level 2
DELAY_S = 5
#: messages acknowledged before the jump, and again after it
PHASE = 5_000
SETTINGS = ("flushDiskType=SYNC_FLUSH", "maxTransferCountOnMessageInMemory=1000")


def send_later(load: Load, name: bytes) -> None:
    answer = load.ask(RequestCode.SEND_MESSAGE_V2, send_fields("later", 0, f"{DELAY}\x012\x02"), name)
    assert answer.code == ResponseCode.SUCCESS, answer.remark


class Phases:
    """Ends a load when PHASE messages were acknowledged so many times, or one was not; tells of each of those times."""

    def __init__(self, count: int) -> None:
        self._left = count * PHASE
        self._over: SimpleQueue[None] = SimpleQueue()

    def heard(self, sent: Sent) -> bool:
        self._left -= sent.acknowledged
        if self._left % PHASE == 0:
            self._over.put(None)
        return not sent.acknowledged or self._left <= 0

    def wait_next(self) -> None:
        self._over.get(timeout=60)


def wait_for_delayed(load: Load, count: int) -> None:
    """So many different ones; a crash may deliver some twice."""
    assert len(eventually(lambda: set(load.pull("later", 0)), lambda came: len(came) >= count)) == count


@pytest.mark.parametrize("jumps", [(-HOUR_MS, HOUR_MS), (HOUR_MS, -HOUR_MS), (-3 * YEAR_MS, 3 * YEAR_MS), (-500, 700)])
def test_under_load(servers: Callable[..., LocalServer], tmp_path: Path, jumps: tuple[int, ...]) -> None:
    clock = WallClock(tmp_path / "clock")
    server = servers(tmp_path / "data", *SETTINGS, command=clock.command)
    load, ledger = Load(lambda: server.broker), Ledger()
    load.send([("quiet", 0, b"the only one")])
    with ThreadPoolExecutor(2) as threads:
        for number, jump_ms in enumerate(jumps):
            phases = Phases(3)
            send_later(load, b"before %d" % number)
            poll = threads.submit(
                load.ask, RequestCode.PULL_MESSAGE, pull_fields("quiet", 0, 1, wait_ms=DELAY_S * 1000)
            )
            sends = threads.submit(load.send, ledger.messages(), phases.heard)
            phases.wait_next()
            clock.jump(jump_ms)
            phases.wait_next()
            send_later(load, b"after %d" % number)
            begin = time.monotonic()
            answers = sends.result(timeout=60)
            assert [sent for sent in answers if not sent.acknowledged] == []
            ledger.add(answers)
            ledger.check(load)
            wait_for_delayed(load, 2 * number + 2)
            assert poll.result(timeout=2 * DELAY_S).code == ResponseCode.PULL_NOT_FOUND
            assert time.monotonic() - begin < 2 * DELAY_S
    for queue_id in range(QUEUES):
        times = [stored.stored_ms for stored in load.read("orders-0", queue_id)]
        assert times == sorted(times)
    server.kill()
    server.start()
    ledger.check(load)
    assert server.stop() == 0


def test_a_start_in_the_past(servers: Callable[..., LocalServer], tmp_path: Path) -> None:
    """After a reboot the clock is an hour behind the last message; later it is right again."""
    clock = WallClock(tmp_path / "clock")
    server = servers(tmp_path / "data", *SETTINGS, command=clock.command)
    load, ledger = Load(lambda: server.broker), Ledger()
    for number, jump_ms in enumerate((-HOUR_MS, 0, HOUR_MS)):
        ledger.add(load.send(ledger.messages(), Phases(1).heard))
        send_later(load, b"before %d" % number)
        server.kill()
        clock.jump(jump_ms)
        server.start()
        ledger.check(load)
        send_later(load, b"after %d" % number)
        wait_for_delayed(load, 2 * number + 2)
    assert server.stop() == 0
