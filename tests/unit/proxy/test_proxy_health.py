"""When a broker is left alone, and when it is asked again; and what is remembered of answers."""

from __future__ import annotations

import pytest

from saturnmq.kernel.errors import ConnectionLost, RequestTimeout, TopicNotFound, Unreachable
from saturnmq.kernel.later import Later, Reply
from saturnmq.net.lookups import Kept, Lookups
from saturnmq.proxy.health import Health
from saturnmq.testing.clock import VirtualClock
from saturnmq.testing.pops import Answer


def test_one_request_looks_how_it_is_and_pauses_grow() -> None:
    clock = VirtualClock()
    health = Health(clock)
    for pause_ms in (100, 200, 400, 800, 1600, 2000, 2000):
        health.admit("b")
        health.failed(ConnectionLost("refused"))
        health.failed(ConnectionLost("another request of the same moment"))
        clock.advance(pause_ms - 1)
        with pytest.raises(Unreachable):
            health.admit("b")
        clock.advance(1)
    health.admit("b")
    with pytest.raises(Unreachable):
        health.admit("b")  # the other one looks
    health.answered()
    health.admit("b")
    assert health.usable


def test_a_request_that_took_too_long_may_be_its_own_fault() -> None:
    clock = VirtualClock()
    health = Health(clock)
    health.failed(RequestTimeout("slow"))
    assert (health.paused, health.usable) == (False, False)
    clock.advance(2_000)
    assert health.usable
    for _ in range(2):
        health.failed(RequestTimeout("slow"))
    assert health.paused


def test_sends_avoid_what_is_slow() -> None:
    clock = VirtualClock()
    health = Health(clock)
    health.took(549)
    assert health.usable
    health.took(550)
    assert not health.usable
    assert not health.paused
    clock.advance(2_000)
    assert health.usable


class Asked:
    """A lookup whose answers are given by hand."""

    def __init__(self, kept: Kept) -> None:
        self.clock = VirtualClock()
        self.waiting: list[Later[str]] = []
        self.lookups: Lookups[str] = Lookups(self._ask, self.clock, kept)

    def _ask(self, key: str) -> Reply[str]:
        self.waiting.append(Later())
        return self.waiting[-1]

    def get(self) -> Answer:
        return Answer(lambda: self.lookups.get("k"))


def test_however_many_want_to_know_one_asks() -> None:
    asked = Asked(Kept(fresh_ms=20_000, usable_ms=300_000))
    answers = [asked.get() for _ in range(3)]
    assert len(asked.waiting) == 1
    asked.waiting.pop().resolve("v")
    assert [answer.value for answer in answers] == ["v"] * 3
    asked.clock.advance(20_000)
    assert [asked.get().value for _ in range(3)] == ["v"] * 3, "nobody waits for the next answer"
    assert len(asked.waiting) == 1
    asked.waiting.pop().resolve("w")
    assert asked.get().value == "w"


def test_what_cannot_be_asked_is_what_it_was() -> None:
    asked = Asked(Kept(fresh_ms=20_000, usable_ms=300_000))
    asked.get()
    asked.waiting.pop().resolve("v")
    asked.clock.advance(300_000)
    late = asked.get()
    asked.waiting.pop().fail(ConnectionLost("gone"))
    assert late.value == "v"
    assert asked.get().value == "v"


def test_what_is_doubted_is_asked_for_before_its_time() -> None:
    asked = Asked(Kept(fresh_ms=20_000, usable_ms=300_000))
    assert asked.lookups.last("k") is None
    asked.get()
    asked.waiting.pop().resolve("v")
    asked.clock.advance(999)
    assert asked.lookups.renewed("k", 1_000) == "v"
    asked.clock.advance(1)
    renewed = Answer(lambda: asked.lookups.renewed("k", 1_000))
    asked.waiting.pop().fail(ConnectionLost("gone"))
    assert renewed.value == asked.lookups.last("k") == "v"
    assert asked.lookups.renewed("k", 1_000) == "v", "nobody waits for somebody who may not be there"


def test_what_is_missing_is_asked_for_again_soon() -> None:
    asked = Asked(Kept(fresh_ms=20_000, usable_ms=300_000, missing_ms=1_000))
    first = asked.get()
    asked.waiting.pop().fail(TopicNotFound("no"))
    for answer in (first, asked.get()):
        with pytest.raises(TopicNotFound):
            _ = answer.value
    assert not asked.waiting
    asked.clock.advance(1_000)
    asked.get()
    assert len(asked.waiting) == 1


def test_only_so_many_are_remembered() -> None:
    asked = Asked(Kept(fresh_ms=20_000, most=2))
    for key in "abc":
        asked.lookups.get(key)
        asked.waiting.pop().resolve(key)
    assert asked.lookups.get("b") == "b"
    assert isinstance(asked.lookups.get("a"), Later)
