"""What clients were told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

#: topic, queue id, queue offset
Place: TypeAlias = tuple[str, int, int]
#: group, topic, queue id
Progress: TypeAlias = tuple[str, str, int]
#: a group is done with a message: group, body, and which copy of it in the retry topic; -1 for the message itself
Done: TypeAlias = tuple[str, bytes, int]
#: path, byte, bit; bit -1: the whole sector from that byte on
Flip: TypeAlias = tuple[str, int, int]

PAD = "pad"


class Violated(AssertionError):
    """An invariant does not hold."""


def must(holds: object, invariant: int, text: str) -> None:
    if not holds:
        raise Violated(f"invariant {invariant}: {text}")


def name(body: bytes | None) -> str:
    """Bodies begin with a number of their own."""
    return "nothing" if body is None else body.split(b".")[0].decode()


def key_of(body: bytes) -> str:
    return "K" + name(body)


@dataclass
class Facts:
    """What somebody was told at one moment."""

    #: acknowledged messages
    sent: dict[Place, bytes] = field(default_factory=dict)
    #: where something was seen to stand
    seen: dict[Place, bytes] = field(default_factory=dict)
    stored_ms: dict[bytes, int] = field(default_factory=dict)
    #: log position and size of what was seen
    log: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    #: delayed messages that were acknowledged
    delayed: set[bytes] = field(default_factory=set)
    #: names of delayed messages that arrived where they go to
    came: set[str] = field(default_factory=set)
    acknowledged: set[Done] = field(default_factory=set)
    #: offsets that were written, durably
    written: dict[Progress, int] = field(default_factory=dict)


@dataclass
class History(Facts):
    """Of all lives so far."""

    #: everything that anybody tried to send, with the property PAD of each
    bodies: dict[bytes, str] = field(default_factory=dict)
    #: when a delayed message may come, whoever was told
    due: dict[bytes, int] = field(default_factory=dict)
    #: acknowledged or not, nobody knows
    unsure: set[Done] = field(default_factory=set)
    #: names of delayed messages that arrived, if what followed was flushed
    came_unsure: set[str] = field(default_factory=set)
    #: every offset ever committed
    committed: dict[Progress, set[int]] = field(default_factory=dict)
    #: messages whose bytes were damaged
    damaged: set[bytes] = field(default_factory=set)
    flipped: set[Flip] = field(default_factory=set)

    def compare(self, facts: Facts) -> None:
        """What is told now with what was told before."""
        for place, body in (*facts.sent.items(), *facts.seen.items()):
            before = self.seen.get(place, body)
            must(before == body, 2, f"{place} held {name(before)}, now {name(body)}")

    def learn(self, facts: Facts) -> None:
        self.compare(facts)
        self.seen.update(facts.sent)
        self.seen.update(facts.seen)
        self.sent.update(facts.sent)
        self.stored_ms.update(facts.stored_ms)
        self.log.update(facts.log)
        self.delayed |= facts.delayed
        self.came |= facts.came
        self.acknowledged |= facts.acknowledged
        self.written.update(facts.written)

    def doubt(self, facts: Facts) -> None:
        """A power cut may have taken it back: ASYNC_FLUSH promised nothing. Offsets are written durably always."""
        self.unsure |= facts.acknowledged
        self.came_unsure |= facts.came
        self.written.update(facts.written)

    def copy(self) -> History:
        return History(**{what: known.copy() for what, known in vars(self).items()})
