"""Crashes behind every event of the disk: what was acknowledged is delivered, never early, and little of it twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from saturnmq.broker import timers
from saturnmq.disk.simulated import everything_survives, nothing_survives
from saturnmq.kernel import properties as names
from saturnmq.kernel.message import Message
from saturnmq.store import timercheck
from saturnmq.store.store import Store
from saturnmq.store.timercheck import TimerCheck
from saturnmq.store.timerfiles import Changes, TimerFiles
from saturnmq.testing.clock import VirtualClock
from saturnmq.testing.offline import OfflineBroker
from saturnmq.testing.timers import History, TimerStage, sectors

#: of the scenario
SECONDS = 9


def scenario(flush: str, **settings: Any) -> tuple[TimerStage, History]:
    """Each tenth of a second another message, for the next seconds; some are taken back."""
    stage = TimerStage(flush=flush, **settings)
    history = History(stage)
    begin_ms = stage.clock.now_ms()
    slots: dict[int, int] = {}

    def act(now_ms: int) -> None:
        number = (now_ms - begin_ms) // 100
        if number < 60:
            slot_ms = stage.send(b"%d" % number, now_ms + 300 + number * 37 % 2500)
            assert slot_ms is not None
            slots[number] = slot_ms
            if number % 6 == 5 and slots[number - 1] >= now_ms:
                stage.recall(b"%d" % (number - 1), slots[number - 1])

    history.play(begin_ms + SECONDS * 1000, act)
    return stage, history


def recalled_of(stage: TimerStage) -> set[bytes]:
    return {body.removeprefix(b"recall ") for body in stage.due_ms if body.startswith(b"recall ")}


def messages_of(stage: TimerStage) -> set[bytes]:
    return {body for body in stage.due_ms if not body.startswith(b"recall ")}


def check(after: TimerStage, must: set[bytes], must_not: set[bytes], may: set[bytes]) -> None:
    """Everything that must come does; what comes, comes in time; twice only what had come before the crash."""
    after.clock.advance((SECONDS + 5) * 1000)
    assert after.error is None
    stored = after.stored()
    for one in stored:
        assert one.stored_ms >= int(names.decode(one.properties)[names.TIMER_DELIVER_MS]), "early"
    times = Counter(one.body for one in stored)
    assert must <= set(times) <= may
    assert must_not.isdisjoint(times)
    again = Counter(set(after.found_delivered))
    assert not times - Counter(set(times)) - again, "came again"


def crash_everywhere(flush: str, end: str, which: int = 0, step: int = 1, **settings: Any) -> None:
    """Behind each event of the scenario, from `which` on with this step."""
    stage, history = scenario(flush, **settings)
    messages, recalled = messages_of(stage), recalled_of(stage)
    loses = flush == "ASYNC_FLUSH" and end != "killed"
    for events in range(which, len(stage.disk.events) + 1, step):
        survives = {"killed": everything_survives, "power cut": nothing_survives, "sectors": sectors(events)}[end]
        # under ASYNC_FLUSH the write comes at the end of the turn, when the answer leaves too
        done = -1 if loses else events - (flush == "ASYNC_FLUSH")
        acknowledged = {body for body, at in stage.acknowledged.items() if at <= done}
        taken_back = {body for body in recalled if b"recall " + body in acknowledged}
        after = stage.crashed(events, survives, history.time_at(events))
        check(after, ((acknowledged | set(after.found_waiting)) & messages) - recalled, taken_back, messages)


def test_the_scenario() -> None:
    stage, _ = scenario("SYNC_FLUSH")
    recalled = recalled_of(stage)
    assert len(recalled) > 5
    assert sorted(stage.bodies()) == sorted(messages_of(stage) - recalled)


@pytest.mark.parametrize("flush", ["SYNC_FLUSH", "ASYNC_FLUSH"])
@pytest.mark.parametrize("which", range(8))
@pytest.mark.parametrize("end", ["killed", "power cut", "sectors"])
def test_nothing_is_lost_and_nothing_comes_early(flush: str, end: str, which: int) -> None:
    crash_everywhere(flush, end, which, 8)


def test_checkpoints_between_flushes_of_the_log() -> None:
    crash_everywhere("ASYNC_FLUSH", "power cut", 0, 5, flush_interval_commit_log=3000, timer_flush_interval_ms=300)


def _check_before_the_log(files: TimerFiles, changes: Changes, check: TimerCheck) -> None:
    timercheck.save(files._disk, check)
    files._log.sync(changes[0])
    files._wheel.write(changes[1])


def _no_slots(files: TimerFiles, changes: Changes, check: TimerCheck) -> None:
    files._log.sync(changes[0])
    timercheck.save(files._disk, check)


def _offset_ahead(files: TimerFiles, changes: Changes, check: TimerCheck) -> None:
    REAL_WRITE(files, changes, msgspec.structs.replace(check, queue_offset=check.queue_offset + 1))


def _slot_ahead(files: TimerFiles, changes: Changes, check: TimerCheck) -> None:
    REAL_WRITE(files, changes, msgspec.structs.replace(check, read_ms=check.read_ms + 1000))


REAL_WRITE = TimerFiles.write


@pytest.mark.parametrize("fault", [_check_before_the_log, _no_slots, _offset_ahead, _slot_ahead])
def test_a_checkpoint_that_says_too_much_is_found(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[[TimerFiles, Changes, TimerCheck], None]
) -> None:
    monkeypatch.setattr(TimerFiles, "write", fault)
    with pytest.raises(AssertionError):
        crash_everywhere("SYNC_FLUSH", "power cut")


def test_a_checkpoint_of_what_is_not_durable_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "flush", lambda store: None)
    with pytest.raises(AssertionError):
        crash_everywhere("ASYNC_FLUSH", "power cut", flush_interval_commit_log=3000, timer_flush_interval_ms=300)


def test_entries_behind_the_checkpoint_that_stay_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    repair = TimerFiles._repair
    monkeypatch.setattr(
        TimerFiles, "_repair", lambda files, start, limit, bound, *rest: repair(files, start, limit, 1 << 62, *rest)
    )
    with pytest.raises(AssertionError):
        crash_everywhere("SYNC_FLUSH", "killed")


def test_an_early_timer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "slot_of_due", lambda due_ms, precision_ms: (due_ms - 1001) // 1000 * 1000)
    with pytest.raises(AssertionError, match="early"):
        crash_everywhere("SYNC_FLUSH", "killed")


def test_entries_of_messages_that_a_power_cut_took_lead_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when others have their place in the log before the timers begin."""
    offline = OfflineBroker()
    offline.send("orders", b"x" * 100, TIMER_DELAY_MS="2000")
    offline.clock.advance(100)
    disk = offline.disk.crashed(
        None, lambda event: nothing_survives(event) if event.path.startswith("commitlog/") else ((0, 1 << 20),)
    )
    assert any(disk.read_file(f"timerlog/{0:020d}"))
    open_store = Store.open

    def open_and_append(store: Store) -> None:
        open_store(store)
        store.append([Message("others", 0, b"y" * 2000, b"", offline.clock.now_ms(), bytes(8))])

    monkeypatch.setattr(Store, "open", open_and_append)
    again = OfflineBroker(disk, VirtualClock(offline.clock.now_ms()))
    again.clock.advance(10_000)
    assert again.stored("orders") == []
    assert "lost" not in caplog.text
