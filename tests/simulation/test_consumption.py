"""The short model of consumption of `make check`. `make model` is the long one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from campaign.process import listen, stop_listening
from consumption.lives import LIVES, Consumers, live
from consumption.planted import found
from harness.testimony import (
    Answered,
    Asked,
    Contradiction,
    Crashed,
    Deleted,
    Entry,
    Given,
    Group,
    Judge,
    Reset,
    Sent,
)


@pytest.fixture(autouse=True)
def _listen() -> Iterator[None]:
    listen()
    yield
    stop_listening()


@pytest.mark.parametrize("kind", LIVES)
def test_lives(kind: type[Consumers]) -> None:
    assert live(kind, seed=5, lives=25) is None
    assert kind.steps > 500


#: the others take longer: `make model FAULT=all`
QUICK = ("nothing comes back", "any handle is good",
         "attempts are not counted", "a message is skipped", "tried without end", "a reset is not in the log",
         "what a deleted group did not acknowledge comes back", "a change to no time at all does nothing")  # fmt: skip


@pytest.mark.parametrize("fault", QUICK)
def test_a_planted_fault_is_found(fault: str) -> None:
    seen = found(fault)
    assert seen is not None
    assert "Contradiction" in seen[1]


# ------------------------------------------------------------------------------------------------- the judge

SENT = Sent(0, "m", "t", queue=0, offset=5)
NEXT = Sent(0, "n", "t", queue=0, offset=6)


def reset(at_ms: float, offset: int, to_ms: float = 0) -> Reset:
    return Reset(at_ms, "g", "t", {0: offset}, to_ms)


def received(at_ms: float, call: str, *messages: str, consumer: str = "a", attempt: int = 1) -> list[Entry]:
    asked = Asked(at_ms, call, "g", consumer, "receive", hidden_ms=1000)
    return [asked, Answered(at_ms, call, given=[Given(name, f"{name} {call}", attempt) for name in messages])]


def acked(at_ms: float, call: str, handle: str, *, ok: bool = True) -> list[Entry]:
    return [Asked(at_ms, call, "g", "a", "ack", handle), Answered(at_ms, call, ok)]


@pytest.mark.parametrize(
    ("entries", "wrong"),
    [
        ([SENT, *received(1, "1", "m"), *received(900, "2", "m", consumer="b", attempt=2)], "holds it until 1001"),
        ([SENT, *received(1, "1", "m"), *received(1001, "2", "m", consumer="b", attempt=2)], ""),
        ([SENT, *received(1, "1", "m"), *received(1001, "2", "m")], "had 1 before"),
        ([SENT, *received(1, "1", "m"), *acked(2, "2", "m 1"), *received(3, "3", "m", attempt=2)], "it is done"),
        ([SENT, *received(1, "1", "m"), *acked(2, "2", "m 1"), *acked(3, "3", "m 1")], ""),
        ([SENT, *received(1, "1", "m"), *acked(2, "2", "m 1", ok=False)], "refused"),
        ([SENT, *received(1, "1", "m"), *acked(1001, "2", "m 1")], "was over at 1001"),
        ([Sent(0, "m", "t", due_ms=50), *received(49, "1", "m")], "before its time"),
        ([Sent(0, "m", "t", "k"), Sent(0, "n", "t", "k"), *received(1, "1", "n")], "before m"),
        ([Sent(0, "m", "t", "k"), Sent(0, "n", "t", "k"), *received(1, "1", "m", "n")], ""),
        ([SENT, *received(1, "1", "m", attempt=4)], "3 are the most"),
        ([SENT, *received(1, "1", "m"), Crashed(2, durable=1), *received(3, "2", "m")], ""),
        ([SENT, *received(1, "1", "m"), *acked(2, "2", "m 1"), reset(3, 5), *received(4, "3", "m")], ""),
        ([SENT, *received(1, "1", "m"), *acked(2, "2", "m 1"), reset(3, 6), *received(4, "3", "m")], "it is done"),
        ([SENT, *received(1, "1", "m"), reset(2, 5), *received(3, "2", "m")], ""),
        ([SENT, *received(1, "1", "m"), reset(2, 5), *received(3, "2", "m"), *received(4, "3", "m")], "holds it"),
        ([SENT, reset(1, 6), *received(2, "1", "m")], "sent past it"),
        ([SENT, NEXT, reset(1, 6), *received(2, "1", "n")], ""),
        ([SENT, reset(1, 5, to_ms=1)], "before it"),
        ([SENT, Deleted(1, topic="t"), *received(2, "1", "m")], "its topic was deleted"),
        ([SENT, *received(1, "1", "m"), Deleted(2, group="g"), *received(3, "2", "m", attempt=2)], "had none since"),
        ([SENT, *received(1, "1", "m"), Deleted(2, group="g"), *received(3, "2", "m")], ""),
    ],
)
def test_what_the_judge_says(entries: list[Entry], wrong: str) -> None:
    judge = Judge({"g": Group(("t",), in_order=True, most_attempts=3)})
    said = ""
    try:
        for entry in entries:
            judge.hear(entry)
    except Contradiction as error:
        said = str(error)
    assert wrong in said if wrong else not said


def test_in_the_end_every_message_is_somewhere() -> None:
    for operator in ([], [reset(1, 5)], [Deleted(1, group="g"), NEXT]):
        judge = Judge({"g": Group(("t",))})
        for entry in [SENT, *operator]:
            judge.hear(entry)
        with pytest.raises(Contradiction, match="neither done nor a dead letter"):
            judge.end({})


@pytest.mark.parametrize("operator", [reset(1, 6), Deleted(1, topic="t"), Deleted(1, group="g")])
def test_what_operators_took_away_is_owed_to_nobody(operator: Entry) -> None:
    judge = Judge({"g": Group(("t",), in_order=True)})
    for entry in [SENT, operator]:
        judge.hear(entry)
    judge.end({})
