"""The short model of consumption of `make check`. `make model` is the long one."""

from __future__ import annotations

import pytest
from consumption.lives import LIVES, Consumers, live
from consumption.planted import found
from harness.testimony import Answered, Asked, Contradiction, Crashed, Entry, Given, Group, Judge, Sent


@pytest.mark.parametrize("kind", LIVES)
def test_lives(kind: type[Consumers]) -> None:
    assert live(kind, seed=5, lives=40) is None
    assert kind.steps > 500


#: the others take longer: `make model FAULT=all`
QUICK = ("nothing comes back", "leases end early", "leases are not renewed", "any handle is good",
         "attempts are not counted", "a message is skipped", "tried without end")  # fmt: skip


@pytest.mark.parametrize("fault", QUICK)
def test_a_planted_fault_is_found(fault: str) -> None:
    seen = found(fault)
    assert seen is not None
    assert "Contradiction" in seen[1]


# ------------------------------------------------------------------------------------------------- the judge

SENT = Sent(0, "m", "t")


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
    judge = Judge({"g": Group(("t",))})
    judge.hear(SENT)
    with pytest.raises(Contradiction, match="neither done nor a dead letter"):
        judge.end({})
