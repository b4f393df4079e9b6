from __future__ import annotations

import operator
from functools import partial

import msgspec
import pytest

from saturnmq.broker.longpoll import ANY_QUEUE, LongPolls, Waiter
from saturnmq.kernel.errors import SystemBusy
from saturnmq.kernel.subscription import Matches
from saturnmq.testing.clock import VirtualClock

ALL: frozenset[int] = frozenset()


class Arrival(msgspec.Struct, frozen=True):
    topic: str = "orders"
    queue_id: int = 0
    tags_code: int = 0
    properties: bytes = b""


class Stage:
    """Consumers with names, and the story of who was woken and why."""

    def __init__(self, per_group: int = 10, in_all: int = 20) -> None:
        self.clock = VirtualClock(0)
        self.polls = LongPolls(self.clock, per_group=per_group, in_all=in_all)
        self.story: list[str] = []

    def wait(
        self,
        name: str,
        queue_id: int = ANY_QUEUE,
        until_ms: int = 1000,
        codes: frozenset[int] = ALL,
        group: str | None = None,
        topic: str = "orders",
        matches: Matches | None = None,
    ) -> Waiter:
        def wake(timed_out: bool) -> None:
            self.story.append(f"{name} timed out" if timed_out else name)

        return self.polls.wait(topic, queue_id, until_ms, codes, wake, matches=matches, group=group)

    def arrive(self, queue_id: int = 0, tags_code: int = 0, topic: str = "orders", properties: bytes = b"") -> None:
        self.polls.arrived(Arrival(topic, queue_id, tags_code, properties))

    def told(self) -> list[str]:
        self.clock.run_soon()
        story, self.story = self.story, []
        return story


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_every_pull_of_the_queue_is_woken_at_the_end_of_the_turn(stage: Stage) -> None:
    stage.wait("a", queue_id=0)
    stage.wait("b", queue_id=0)
    stage.wait("other queue", queue_id=1)
    stage.wait("other topic", queue_id=0, topic="invoices")
    stage.arrive()
    assert stage.story == []
    assert stage.told() == ["a", "b"]
    assert len(stage.polls) == 2


def test_a_message_wakes_one_pop_of_each_group(stage: Stage) -> None:
    for group in ("g", "h"):
        stage.wait(f"{group}1", group=group)
        stage.wait(f"{group}2", group=group)
    stage.arrive(queue_id=3)
    assert stage.told() == ["g1", "h1"]
    stage.arrive(queue_id=4)
    stage.arrive(queue_id=4)
    assert stage.told() == ["g2", "h2"]
    stage.arrive()
    assert stage.told() == []


def test_a_message_wakes_whose_filter_takes_it(stage: Stage) -> None:
    for group in (None, "g"):
        for wanted in (b"red", b"blue"):
            stage.wait(f"{group} {wanted.decode()}", queue_id=0, group=group, matches=partial(operator.eq, wanted))
        stage.wait(f"{group} anything", queue_id=0, group=group)
    stage.arrive(properties=b"blue")
    assert stage.told() == ["None blue", "None anything", "g blue", "g anything"]
    stage.arrive(properties=b"red")
    assert stage.told() == ["None red", "g red"]
    assert len(stage.polls) == 0


def test_who_leaves_something_behind_wakes_the_next(stage: Stage) -> None:
    stage.wait("first", group="g")
    stage.wait("second", group="g")
    stage.wait("queue 4", queue_id=4, group="g")
    stage.wait("queue 5", queue_id=5, group="g")
    stage.polls.wake("orders", "g", 5)
    assert stage.told() == ["first", "queue 5"]
    stage.polls.wake("orders", "g")
    assert sorted(stage.told()) == ["queue 4", "second"]
    stage.polls.wake("orders", "g")
    assert stage.told() == []


def test_only_a_matching_tag_wakes(stage: Stage) -> None:
    stage.wait("seven", codes=frozenset({7}))
    stage.wait("seven or eight", codes=frozenset({7, 8}), group="g")
    stage.arrive(tags_code=9)
    assert stage.told() == []
    stage.arrive(tags_code=8)
    assert stage.told() == ["seven or eight"]
    stage.arrive(tags_code=7)
    assert stage.told() == ["seven"]


def test_a_linked_topic_wakes_its_group_only(stage: Stage) -> None:
    stage.polls.link("%RETRY%g_orders", "orders", "g")
    stage.wait("g", group="g")
    stage.wait("h", group="h")
    stage.arrive(topic="%RETRY%g_orders", tags_code=1)
    assert stage.told() == ["g"]
    stage.polls.unlink("%RETRY%g_orders")
    stage.wait("g", group="g")
    stage.arrive(topic="%RETRY%g_orders")
    assert stage.told() == []


def test_time_is_over_at_its_moment_whatever_the_order(stage: Stage) -> None:
    stage.wait("late", until_ms=900)
    stage.wait("early", until_ms=100)
    stage.wait("middle", until_ms=500)
    stage.clock.advance(99)
    assert stage.told() == []
    stage.clock.advance(1)
    assert stage.told() == ["early timed out"]
    stage.clock.advance(800)
    assert stage.told() == ["middle timed out", "late timed out"]
    assert len(stage.polls) == 0


def test_a_cancelled_waiter_hears_nothing(stage: Stage) -> None:
    woken = stage.wait("woken")
    cancelled = stage.wait("cancelled")
    between = stage.wait("between")
    cancelled.cancel()
    cancelled.cancel()
    stage.arrive()
    between.cancel()
    assert stage.told() == ["woken"]
    woken.cancel()
    stage.clock.advance(2000)
    assert stage.told() == []
    assert len(stage.polls) == 0


def test_a_cancelled_turn_goes_to_the_next(stage: Stage) -> None:
    first = stage.wait("first", group="g")
    stage.wait("second", group="g")
    stage.arrive()
    first.cancel()
    assert stage.told() == ["second"]


def test_a_woken_waiter_may_wait_again(stage: Stage) -> None:
    def again(timed_out: bool) -> None:
        stage.story.append(f"again {timed_out}")
        if not timed_out:
            stage.polls.wait("orders", 0, 700, ALL, again)

    stage.polls.wait("orders", 0, 700, ALL, again)
    stage.arrive()
    stage.arrive()
    assert stage.told() == ["again False"]
    stage.clock.advance(700)
    assert stage.told() == ["again True"]


def test_limits_of_a_group_and_of_all(stage: Stage) -> None:
    waiters = [stage.wait("g", group="g") for _ in range(10)]
    with pytest.raises(SystemBusy, match="popPollingSize is 10"):
        stage.wait("g", group="g")
    waiters[0].cancel()
    stage.wait("g", group="g")
    for _ in range(10):
        stage.wait("pull")
    with pytest.raises(SystemBusy, match="the limit is 20"):
        stage.wait("pull")
    stage.clock.advance(1000)
    assert len(stage.told()) == 20
    stage.wait("g", group="g")


def test_what_came_and_went_leaves_no_memory() -> None:
    stage = Stage(per_group=10_000, in_all=10_000)
    for turn in range(10_000):
        stage.wait("x", group="g", until_ms=1_000_000 + turn).cancel()
    assert len(stage.polls._deadlines) <= 1025
    assert not stage.polls._places
    assert not stage.polls._counts
