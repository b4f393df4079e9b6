"""Leases of push consumers whose Proxy was killed: who lives keeps what it holds."""

from __future__ import annotations

import pytest

from saturnmq.broker.keeping import LONGEST_MS, Keeping
from saturnmq.kernel.errors import InvalidReceiptHandle, ServiceUnavailable
from saturnmq.kernel.later import Reply
from saturnmq.kernel.ports import Delivery, InvisibleChanged
from saturnmq.testing.pops import Held, PopStage

CLIENT, EXPIRE_MS, INVISIBLE_MS = "client-1", 120_000, 60_000


class Stage(PopStage):
    """A consumer holds one message, which its Proxy renewed once."""

    def __init__(self) -> None:
        super().__init__()
        self.keeping = Keeping(self.renewed, self.clock, EXPIRE_MS)
        self.renewals = 0
        self.failing: Exception | None = None
        self.send("m")
        (self.one,) = self.pop(invisible_ms=INVISIBLE_MS)
        self.hand_over()

    def renewed(self, delivery: Delivery, invisible_ms: int) -> Reply[InvisibleChanged | None]:
        self.renewals += 1
        if self.failing is not None:
            raise self.failing
        return self.pops.renew(delivery, invisible_ms)

    def hand_over(self) -> None:
        self._do(lambda: self.keeping.renew(self.one.delivery, INVISIBLE_MS, CLIENT))

    def live(self, seconds: int, *, heart_beats: bool = True) -> None:
        for _ in range(seconds // 10):
            self.advance(10_000)
            if heart_beats:
                self.keeping.heard(CLIENT)

    def others_get(self) -> list[Held]:
        return self.pop(invisible_ms=INVISIBLE_MS)


def test_who_lives_keeps_what_it_holds_and_settles_it_with_its_handle() -> None:
    stage = Stage()
    stage.live(3_600)
    assert stage.others_get() == []
    assert 1 + 3_600 / 60 <= stage.renewals <= 1 + 3_600 / 53
    stage.ack(stage.one)
    renewals = stage.renewals
    stage.live(600)
    assert stage.others_get() == []
    assert stage.renewals == renewals + 1, "it found that there is nothing to keep"
    assert stage.keeping._timer is None


def test_who_is_silent_loses_it() -> None:
    stage = Stage()
    stage.live(100, heart_beats=False)
    assert stage.others_get() == []
    stage.live(110, heart_beats=False)
    assert [one.name for one in stage.others_get()] == ["m"]
    with pytest.raises(InvalidReceiptHandle):
        stage.ack(stage.one)


def test_who_left_loses_it_when_the_lease_ends() -> None:
    stage = Stage()
    stage.live(50)
    stage.keeping.gone(CLIENT)
    stage.live(70)
    assert [one.name for one in stage.others_get()] == ["m"]


def test_while_a_proxy_renews_the_broker_does_not() -> None:
    stage = Stage()
    for number in range(2, 20):
        stage.live(50)
        stage.hand_over()
        assert stage.renewals == number


def test_what_was_not_handed_over_ends() -> None:
    """It may never have reached the consumer."""
    stage = Stage()
    stage.send("other")
    assert [one.name for one in stage.others_get()] == ["other"]
    stage.live(70)
    assert [one.name for one in stage.others_get()] == ["other"]


def test_not_for_ever() -> None:
    stage = Stage()
    stage.live(LONGEST_MS // 1000 + 120)
    assert [one.name for one in stage.others_get()] == ["m"]


def test_a_moment_in_which_the_broker_cannot() -> None:
    stage = Stage()
    stage.live(50)
    stage.failing = ServiceUnavailable("the disk is full")
    stage.advance(6_500)
    assert stage.renewals > 1
    stage.failing = None
    stage.live(60)
    assert stage.others_get() == []
