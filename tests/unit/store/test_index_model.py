"""The index beside a plain model: whatever is sent, however the store ends, what readers see is found by all of its
keys within its time, and nothing else is."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from store_stage import Stage, message

from saturnmq.disk.simulated import Event, Operation, SimulatedDisk, everything_survives, nothing_survives
from saturnmq.store import index
from saturnmq.store.keys import KeyKind
from saturnmq.wire.record import decode

END_MS = (1 << 63) - 1
WORDS = ["w0", "w1", "w2", "Aa", "BB", "größe"]  # Aa and BB have the same hash
TAGS = ["", "t1", "t2"]
#: files that are full soon, slots that are shared, answers that hold everything
SMALL: dict[str, Any] = {"max_index_num": 12, "max_hash_slot_num": 5, "max_msgs_num_batch": 10_000}


class Model:
    """The keys of every message that was sent. Shares no code with the store."""

    def __init__(self) -> None:
        self.sent: dict[bytes, tuple[str, list[str], str]] = {}

    def send(self, stage: Stage, unique: bool, words: list[str], tag: str) -> None:
        body = b"%d" % len(self.sent)
        name = f"U{len(self.sent)}" if unique else ""
        self.sent[body] = (name, words, tag)
        pairs = {"UNIQ_KEY": name, "KEYS": " ".join(words), "TAGS": tag}
        properties = "".join(f"{key}\x01{value}\x02" for key, value in pairs.items() if value).encode()
        stage.store.append([message(body, properties=properties)])

    def check(self, stage: Stage, begin_ms: int = 0, end_ms: int = END_MS) -> None:
        held = [stored.body for stored in stage.all()[::-1] if begin_ms <= stored.stored_ms <= end_ms]

        def find(key: str, kind: KeyKind) -> list[bytes]:
            records = stage.wait(stage.store.query("Topic", key, 10_000, begin_ms, end_ms, kind))
            return [decode(record, check_crc=True).body for record in records]

        for word in (*WORDS, "nothing"):
            assert find(word, KeyKind.KEY) == [body for body in held if word in self.sent[body][1]]
        for tag in TAGS[1:]:
            assert find(tag, KeyKind.TAG) == [body for body in held if tag == self.sent[body][2]]
        for body, (name, _, _) in self.sent.items():
            if name:
                assert find(name, KeyKind.UNIQUE) == [body] * (body in held)


def torn(seed: int) -> Callable[[Event], list[tuple[int, int]]]:
    """What was not synced: of some events nothing, of others all or some of their sectors."""
    chance = random.Random(seed)

    def survives(event: Event) -> list[tuple[int, int]]:
        if chance.random() < 0.3:
            return []
        if event.operation is not Operation.WRITE:
            return [(0, 0)]
        size, first = len(event.data), -event.offset % 512
        edges = [0, *range(first, size, 512), size]
        return [piece for piece in pairwise(edges) if chance.random() < 0.7]

    return survives


class IndexMachine(RuleBasedStateMachine):
    """Sends, pauses, ends of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.stage: Stage
        self.times = [0]

    @initialize(sync=st.sampled_from(["SYNC_FLUSH", "ASYNC_FLUSH"]), items=st.integers(2, 30), slots=st.integers(1, 9))
    def open(self, sync: str, items: int, slots: int) -> None:
        self.config = SMALL | {"max_index_num": items, "max_hash_slot_num": slots, "flush_disk_type": sync}
        self.stage = Stage(**self.config).open()

    @rule(unique=st.booleans(), words=st.lists(st.sampled_from(WORDS), max_size=4), tag=st.sampled_from(TAGS))
    def send(self, unique: bool, words: list[str], tag: str) -> None:
        self.model.send(self.stage, unique, words, tag)

    @rule(milliseconds=st.sampled_from([0, 1, 400, 999, 1000, 12_000, 70_000]))
    def pause(self, milliseconds: int) -> None:
        self.stage.clock.advance(milliseconds)
        self.times.append(self.stage.clock.now_ms())

    @rule(seed=st.integers(0, 10_000), kind=st.integers(0, 2))
    def crash(self, seed: int, kind: int) -> None:
        survives = (nothing_survives, everything_survives, torn(seed))[kind]
        disk = self.stage.disk.crashed(survives=survives)
        self.stage = Stage(disk, clock=self.stage.clock, **self.config).open()

    @rule()
    def restart(self) -> None:
        self.stage.close()
        self.stage = self.stage.again()

    @rule(which=st.integers(0, 9))
    def lose_a_file(self, which: int) -> None:
        self.stage.close()
        names = self.stage.disk.list("index")
        for name in names[which:]:
            self.stage.disk.unlink(f"index/{name}")
        self.stage.disk.sync_directory("index")
        self.stage = self.stage.again()

    @rule(operation=st.sampled_from([Operation.WRITE, Operation.SYNC, Operation.CREATE]))
    def be_full_for_a_while(self, operation: Operation) -> None:
        self.stage.disk.faults[operation, "index/"] = 28
        self.stage.clock.advance(3000)
        self.stage.disk.faults.clear()
        self.stage.clock.advance(61_000)

    @rule(begin=st.integers(0, 100), end=st.integers(0, 100))
    def look(self, begin: int, end: int) -> None:
        self.stage.clock.run_soon()
        times = self.times
        self.model.check(self.stage, times[begin % len(times)], times[end % len(times)])

    @invariant()
    def everything_is_found(self) -> None:
        if hasattr(self, "stage"):
            self.stage.clock.run_soon()
            self.model.check(self.stage)


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def workload(monkeypatch: pytest.MonkeyPatch, seed: int) -> tuple[Model, Stage]:
    monkeypatch.setattr(index, "_SYNC_INTERVAL_MS", 3000)
    monkeypatch.setattr(index, "_BATCH", 3)
    chance = random.Random(seed)
    model, stage = Model(), Stage(**SMALL).open()
    for _ in range(14):
        for _ in range(chance.randrange(4)):
            words = chance.choices(WORDS, k=chance.randrange(4))
            model.send(stage, chance.random() < 0.5, words, chance.choice(TAGS))
        stage.clock.run_soon()
        stage.clock.advance(chance.choice([0, 400, 2500]))
    return model, stage


def check_crash(model: Model, disk: SimulatedDisk, events: int, survives: Any, stage: Stage) -> Stage:
    again = Stage(disk.crashed(events, survives), clock=stage.clock, **SMALL).open()
    again.clock.run_soon()
    try:
        model.check(again)
    except BaseException as error:
        error.add_note(f"crash behind event {events}: {disk.events[events - 1] if events else None}, {survives}")
        raise
    return again


@pytest.mark.parametrize("seed", range(3))
def test_a_crash_behind_everything_that_is_done_to_the_disk(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, stage = workload(monkeypatch, seed)
    for events in range(len(stage.disk.events) + 1):
        for survives in (nothing_survives, everything_survives, torn(seed * 1000 + events)):
            again = check_crash(model, stage.disk, events, survives, stage)
            again.close()
            model.check(again.again())


def test_two_crashes_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model, stage = workload(monkeypatch, 9)
    for events in range(0, len(stage.disk.events) + 1, 7):
        second = check_crash(model, stage.disk, events, torn(events), stage)
        for _ in range(6):
            model.send(second, True, ["w0", "w1"], "t1")
        second.clock.advance(5000)
        for more in range(0, len(second.disk.events) + 1, 5):
            check_crash(model, second.disk, more, torn(more), second)
