"""What consumers asked and were told, and whether one right server can have told them all of it.

Everyone who takes part writes down what it asks and what it hears, with the time; whoever ends the server writes that
down too. `Judge` goes through these entries in the order of time and knows nothing else: no server, no lease, no log.
So the same judge hears a model on a simulated disk and the logs of official clients. It raises Contradiction unless

1. nobody is given a message while another certainly holds it: from when he heard of it until the invisible time after
   he asked for it is over, or he settles it;
2. who acknowledged a message, and heard that it is done, made it done: its group is not given it again;
3. a handle is good as long as its lease lasts, for a repeated acknowledgement too, and not a moment longer; when it was
   replaced it is not good at all;
4. a group in order is given a message when all that were sent before it under the same key are done;
5. nothing comes before its time, deliveries of a message are counted, and none is beyond the most that there may be;
6. in the end every message that was sent is done, or among the dead letters, where none is that could be consumed;
7. a group that an operator sent elsewhere is given again what stands there, done or not, and nothing that it was sent
   past, unless it was given that before and may be given it again; of a topic or group that was deleted nothing comes.

What was asked and never answered may have happened or not. A power cut may undo what was not on the disk yet, as far as
the server says so; then the judge claims less.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec


class Contradiction(AssertionError):
    """No right server can have said all of this."""


class Sent(msgspec.Struct, tag=True, frozen=True):
    """A message, and its sender heard that it is stored."""

    at_ms: float
    message: str
    topic: str
    #: those of one key are in order
    key: str = ""
    due_ms: float = 0
    #: where it stands, as far as its sender was told
    queue: int = -1
    offset: int = -1


class Asked(msgspec.Struct, tag=True, frozen=True):
    """`verb`: receive, ack, change or bury. `call` is the asker's name for it."""

    at_ms: float
    call: str
    group: str
    consumer: str
    verb: str
    handle: str = ""
    #: for how long to hide; of a receive: None while the consumer lives
    hidden_ms: float | None = None
    attempt_id: str | None = None


class Given(msgspec.Struct, frozen=True):
    message: str
    handle: str
    #: 1 for the first delivery; 0: not told
    attempt: int = 0


class Answered(msgspec.Struct, tag=True, frozen=True):
    at_ms: float
    call: str
    #: False: the handle is refused; None: it may have been done or not
    ok: bool | None = True
    given: list[Given] = []
    #: of a change: the handle that is good from now on
    handle: str = ""
    #: for readers: the reason of a refusal
    why: str = ""


class Left(msgspec.Struct, tag=True, frozen=True):
    """A consumer ends; what it holds may be given to others."""

    at_ms: float
    consumer: str


class Crashed(msgspec.Struct, tag=True, frozen=True):
    """Also of a server that was stopped: what was not answered will not be."""

    at_ms: float
    #: how many entries of this log were on the disk, if the power was cut; None: all
    durable: int | None = None
    #: what was acknowledged and answered is on the disk all the same
    sync: bool = True
    #: delayed messages that came that shortly before may come twice
    repeats_ms: float = 0


class Cleaned(msgspec.Struct, tag=True, frozen=True):
    """The server may have deleted what was stored that long ago, unless somebody holds it."""

    at_ms: float
    kept_ms: float


class Reset(msgspec.Struct, tag=True, frozen=True):
    """An operator sends a group elsewhere, and heard that it goes on there."""

    at_ms: float
    group: str
    topic: str
    #: by queue
    offsets: dict[int, int]
    #: if it was to this time
    to_ms: float = -math.inf


class Deleted(msgspec.Struct, tag=True, frozen=True):
    """An operator deletes a topic, or a group with its offsets, and hears that it is done. Names may be used again."""

    at_ms: float
    topic: str = ""
    group: str = ""


Entry: TypeAlias = Sent | Asked | Answered | Left | Crashed | Cleaned | Reset | Deleted
_line = msgspec.json.Decoder(Entry)


def read_entries(logs: Iterable[bytes]) -> list[Entry]:
    """Of several logs, a JSON entry on each line, in the order of time."""
    return sorted((_line.decode(line) for log in logs for line in log.splitlines()), key=lambda entry: entry.at_ms)


@dataclass(frozen=True)
class Group:
    topics: Collection[str]
    in_order: bool = False
    most_attempts: int = 17


@dataclass(eq=False)
class _Hand:
    """One handle of one message."""

    case: _Case
    consumer: str
    #: number of the entry that gave it
    number: int
    attempt: int
    attempt_id: str | None
    #: nobody else is given the message before that
    held_until: float
    #: the handle is good until then for sure, and not good from then on
    good_until: float
    over_at: float
    replaced: bool = False
    acknowledged: bool = False
    #: it may be good, or not
    doubtful: bool = False

    def doubt(self) -> None:
        self.doubtful = True
        self.held_until = self.good_until = -math.inf


@dataclass(eq=False)
class _Case:
    """What one group did with one message."""

    group: str
    message: str
    hands: list[_Hand] = field(default_factory=list)
    #: number of the entry that said so
    done: int | None = None
    buried: int | None = None
    #: perhaps done, perhaps not
    maybe: bool = False
    bury_asked: bool = False
    #: calls to settle it that are not answered yet
    pending: set[str] = field(default_factory=set)
    #: it may come twice
    twice: bool = False
    #: number of the entry since which the group is past it, and was never given it
    skipped: int | None = None
    #: there was another before, with what became of it then
    again: bool = False
    #: number of the entry that deleted the group, which was not given it since
    reborn: int | None = None

    @property
    def settled(self) -> bool:
        return self.done is not None or self.buried is not None or self.maybe or self.skipped is not None


class Judge:
    """Owner of what is known. Of what nobody wrote down it claims nothing."""

    def __init__(self, groups: Mapping[str, Group]) -> None:
        self._groups = groups
        self._number = 0
        self._now_ms = -math.inf
        self._sent: dict[str, Sent] = {}
        #: by key, in order
        self._order: defaultdict[str, list[str]] = defaultdict(list)
        self._cases: dict[tuple[str, str], _Case] = {}
        self._hands: dict[tuple[str, str], _Hand] = {}
        self._open: dict[str, tuple[int, Asked]] = {}
        #: those that a crash left without an answer
        self._late: dict[str, tuple[int, Asked]] = {}
        #: numbers of entries of messages, and of those that changed a case, since the last crash
        self._fresh: list[tuple[int, Sent]] = []
        self._touched: list[tuple[int, _Case, _Hand | None]] = []
        self._excused: set[tuple[str, str]] = set()
        self._back_ms = -math.inf
        #: by group: answers that are lost, perhaps with messages
        self._unheard: Counter[str] = Counter()
        self._crashes = 0
        #: numbers of the entries that say so: of consumers that left, groups that were sent elsewhere, or deleted with
        #: what they consume, messages whose topic was deleted
        self._left: dict[str, int] = {}
        self._moved: dict[str, int] = {}
        self._gone: dict[str, int] = {}

    def hear(self, entry: Entry) -> None:
        self._number += 1
        self._now_ms = entry.at_ms
        self._back_ms = entry.at_ms if self._back_ms == math.inf else self._back_ms
        match entry:
            case Sent():
                self._sent[entry.message] = entry
                self._fresh.append((self._number, entry))
                if entry.key:
                    self._order[entry.key].append(entry.message)
            case Asked():
                self._asked(entry)
            case Answered():
                self._answered(entry)
            case Left():
                self._leaves(entry)
            case Crashed():
                self._crashed(entry)
            case Cleaned():
                self._excuse(entry)
            case Reset():
                self._reset(entry)
            case Deleted():
                self._delete(entry)

    def _asked(self, asked: Asked) -> None:
        self._open[asked.call] = self._number, asked
        hand = self._hands.get((asked.group, asked.handle))
        if asked.verb != "receive" and hand is not None:
            hand.held_until = min(hand.held_until, asked.at_ms)
            if asked.verb == "change":
                hand.good_until = min(hand.good_until, asked.at_ms)
            else:
                hand.case.pending.add(asked.call)
            hand.case.bury_asked |= asked.verb == "bury"

    def _answered(self, answer: Answered) -> None:
        number, asked = (self._open if answer.call in self._open else self._late).pop(answer.call)
        if (hand := self._hands.get((asked.group, asked.handle))) is not None:
            hand.case.pending.discard(asked.call)
        if answer.ok is None:
            self._lost(asked)
        elif asked.verb == "receive":
            self._received(number, asked, answer)
        elif hand is not None:
            self._settled(number, asked, answer, hand)

    def _leaves(self, left: Left) -> None:
        self._left[left.consumer] = self._number
        for _, asked in self._open.values():  # he may be given something and give it back
            self._unheard[asked.group] += asked.consumer == left.consumer
        for hand in self._hands.values():
            if hand.consumer == left.consumer and hand.over_at == math.inf:
                hand.held_until = min(hand.held_until, left.at_ms)
                hand.good_until = min(hand.good_until, left.at_ms)

    # ----------------------------------------------------------------------------------------------- given

    def _received(self, number: int, asked: Asked, answer: Answered) -> None:
        before: set[str] = set()
        for given in answer.given:
            case = self._case(asked.group, given.message)
            self._check_given(number, asked, answer, given, case)
            self._check_order(case, before)
            before.add(given.message)
            for hand in case.hands:
                if hand.attempt_id is not None and hand.attempt_id == asked.attempt_id:
                    hand.replaced, hand.held_until = True, -math.inf
            case.maybe, case.reborn = False, None
            self._add(case, given.handle, asked, answer.at_ms, given.attempt)
            if max(self._left.get(asked.consumer, 0), self._moved.get(asked.group, 0)) > number:
                case.hands[-1].doubt()

    def _check_given(self, number: int, asked: Asked, answer: Answered, given: Given, case: _Case) -> None:
        what = f"{asked.group} is given {given.message} at {answer.at_ms:.0f}"
        sent, most = self._sent.get(given.message), self._groups[asked.group].most_attempts
        if sent is not None:
            _must(answer.at_ms >= sent.due_ms, f"{what}, before its time {sent.due_ms:.0f}")
        _must(self._gone.get(given.message, number) >= number, f"{what}, but its topic was deleted")
        old = case.reborn is not None and case.reborn < number and not self._unheard[asked.group]
        _must(not old or given.attempt <= 1, f"{what} as attempt {given.attempt}, and had none since it was deleted")
        _must(case.skipped is None or case.skipped > number, f"{what}, but the group was sent past it")
        if case.twice:
            return
        for end, name in ((case.done, "it is done"), (case.buried, "it is a dead letter")):
            _must(end is None or end > number, f"{what}, but {name}")
        _must(given.attempt <= most, f"{what}, for the {given.attempt}th time, {most} are the most")
        for hand in case.hands:
            if hand.number < number and (hand.attempt_id is None or hand.attempt_id != asked.attempt_id):
                held = hand.held_until > answer.at_ms
                _must(not held, f"{what}, but {hand.consumer} holds it until {hand.held_until:.0f}")
                counted = hand.doubtful or not given.attempt or given.attempt > hand.attempt
                _must(counted, f"{what} as attempt {given.attempt}, and had {hand.attempt} before")

    def _check_order(self, case: _Case, before: set[str]) -> None:
        sent = self._sent.get(case.message)
        if sent is None or not sent.key or not self._groups[case.group].in_order:
            return
        for earlier in self._order[sent.key]:
            if earlier == case.message:
                return
            passed = earlier in before or self._is_over(self._case(case.group, earlier))
            _must(passed, f"{case.group} is given {case.message} before {earlier}")

    def _is_over(self, case: _Case) -> bool:
        """It may have been tried as often as it can be, or be deleted."""
        attempts = max((hand.attempt for hand in case.hands), default=0) + self._unheard[case.group]
        tried = attempts >= self._groups[case.group].most_attempts
        return case.settled or bool(case.pending) or tried or (case.group, case.message) in self._excused

    def _add(self, case: _Case, handle: str, asked: Asked, at_ms: float, attempt: int) -> None:
        hidden_ms = math.inf if asked.hidden_ms is None else asked.hidden_ms
        until, over_at = asked.at_ms + hidden_ms, at_ms + hidden_ms
        hand = _Hand(case, asked.consumer, self._number, attempt, asked.attempt_id, until, until, over_at)
        case.hands.append(hand)
        self._hands[case.group, handle] = hand
        self._touched.append((self._number, case, hand))

    # --------------------------------------------------------------------------------------------- settled

    def _settled(self, number: int, asked: Asked, answer: Answered, hand: _Hand) -> None:
        case, verb = hand.case, asked.verb
        what = f"{asked.group} {hand.consumer}: {verb} of {case.message} at {asked.at_ms:.0f}"
        good = not hand.replaced and not hand.doubtful and answer.at_ms < hand.good_until
        if not answer.ok:
            fair = not good or (verb != "ack" and (hand.acknowledged or case.settled))
            _must(fair, f"{what} is refused, its lease ends at {hand.good_until:.0f}")
            return
        self._touched.append((self._number, case, None))
        if verb == "bury":  # answered well whatever became of the handle
            if good and not case.settled:
                case.buried = self._number
            else:
                case.maybe = case.maybe or (case.done is None and case.buried is None)
            return
        lenient = (self._groups[case.group].in_order and case.settled) or case.buried is not None
        _must(lenient or not hand.replaced or hand.doubtful, f"{what} is answered well, but its handle was replaced")
        late = asked.at_ms >= hand.over_at and not hand.doubtful
        _must(lenient or not late, f"{what} is answered well, but its lease was over at {hand.over_at:.0f}")
        if verb == "ack":
            hand.acknowledged = True
            if hand.over_at == math.inf:  # nobody renews it any more
                hand.good_until = min(hand.good_until, answer.at_ms)
            if hand.doubtful:
                case.maybe = case.maybe or case.done is None
            elif case.done is None:
                case.done, case.maybe = self._number, False
            return
        _must(lenient or not hand.acknowledged or hand.doubtful, f"{what} is answered well, but it is done")
        if self._hands.get((asked.group, answer.handle)) is not hand:
            hand.replaced = True
        self._add(case, answer.handle, msgspec.structs.replace(asked, consumer=hand.consumer), answer.at_ms, 0)
        case.hands[-1].attempt, case.hands[-1].attempt_id = hand.attempt, hand.attempt_id
        if hand.doubtful:
            case.hands[-1].doubt()

    # ----------------------------------------------------------------------------------------------- the end

    def _crashed(self, crash: Crashed) -> None:
        self._crashes += 1
        for sent in self._sent.values():
            if sent.due_ms and crash.at_ms - crash.repeats_ms <= max(sent.due_ms, self._back_ms) <= crash.at_ms:
                for group in self._groups_of(sent):
                    self._case(group, sent.message).twice = True
        self._back_ms = math.inf  # until somebody is heard again
        for _, asked in self._open.values():
            hand = self._hands.get((asked.group, asked.handle))
            if asked.verb == "receive":
                self._unheard[asked.group] += 1
            elif hand is not None:
                hand.doubt()
                hand.case.maybe = hand.case.maybe or (asked.verb != "change" and hand.case.done is None)
        self._late |= self._open  # clients try again by themselves
        self._open.clear()
        for hand in self._hands.values():
            if hand.over_at == math.inf:  # nobody renews it any more
                hand.held_until = min(hand.held_until, crash.at_ms)
                hand.good_until = min(hand.good_until, crash.at_ms)
        if crash.durable is not None:
            for number, case, hand in self._touched:
                if number > crash.durable:
                    self._undo(case, hand, crash.sync)
            for number, sent in self._fresh:
                if number > crash.durable and not crash.sync:  # it may not be there
                    self._forget(sent)
        self._touched.clear()
        self._fresh.clear()

    def _lost(self, asked: Asked) -> None:
        """Nobody knows whether it was done."""
        hand = self._hands.get((asked.group, asked.handle))
        if asked.verb == "receive":
            self._unheard[asked.group] += 1
        elif hand is not None:
            hand.doubt()
            hand.case.maybe = hand.case.maybe or (asked.verb != "change" and hand.case.done is None)

    def _undo(self, case: _Case, hand: _Hand | None, sync: bool) -> None:
        """The power cut may have undone that the hand was given, or, without one, that something was settled."""
        if hand is not None:
            hand.doubt()
        elif not sync:
            case.maybe = case.maybe or case.done is not None or case.buried is not None
            case.done = case.buried = None
            for each in case.hands:
                each.doubt()

    def _excuse(self, cleaned: Cleaned) -> None:
        for sent in self._sent.values():
            if max(sent.at_ms, sent.due_ms) + cleaned.kept_ms > cleaned.at_ms:
                continue
            for group in self._groups_of(sent):
                case = self._case(group, sent.message)
                if not any(hand.held_until > cleaned.at_ms for hand in case.hands):
                    self._excused.add((group, sent.message))

    # ------------------------------------------------------------------------------------------- operators

    def _reset(self, reset: Reset) -> None:
        group = reset.group
        waiting = any(asked.group == group and asked.verb == "receive" for _, asked in self._open.values())
        self._moved[group] = self._number
        self._forget_strangers(group)
        for sent in [sent for sent in self._sent.values() if sent.topic == reset.topic]:
            case, offset = self._case(group, sent.message), reset.offsets.get(sent.queue)
            if offset is None:
                if sent.queue < 0:  # it may be there, or come later
                    self._begin_again(case).twice = True
                    self._excused.add((group, sent.message))
            elif sent.offset >= offset:
                _must(
                    sent.at_ms >= reset.to_ms, f"{group} is sent to {reset.to_ms:.0f}, and to {sent.message} before it"
                )
                self._come_again(case, waiting)
            else:
                self._pass(case, waiting)

    def _come_again(self, case: _Case, waiting: bool) -> None:
        """All of the topic from there on; what lapsed before comes back besides."""
        last = case.hands[-1] if case.hands else None
        if last is None:
            known = not waiting and not self._unheard[case.group]
        else:
            known = case.done is not None or (last.attempt == 1 and last.held_until > self._now_ms)
        twice = case.twice or not known
        self._begin_again(case).twice = twice and not self._groups[case.group].in_order

    def _pass(self, case: _Case, waiting: bool) -> None:
        """The group is past it. What it was given comes back, but in order."""
        if case.done is not None or case.skipped is not None:
            return
        unknown = case.hands or case.twice or waiting or self._unheard[case.group]
        if self._groups[case.group].in_order or not unknown:
            self._begin_again(case).skipped = self._number
        elif all(hand.doubtful for hand in case.hands):
            self._excused.add((case.group, case.message))

    def _begin_again(self, case: _Case) -> _Case:
        """Whoever had it has nothing in his hands."""
        for hand in case.hands:
            hand.doubt()
        fresh = self._cases[case.group, case.message] = _Case(case.group, case.message, again=True)
        return fresh

    def _forget_strangers(self, group: str) -> None:
        """Messages that it was given, and nobody heard that they are stored: where they are nobody knows."""
        for case in list(self._cases.values()):
            if case.group == group and case.message not in self._sent:
                self._begin_again(case).twice = True

    def _delete(self, deleted: Deleted) -> None:
        for group, consumed in self._groups.items():
            if group == deleted.group or deleted.topic in consumed.topics:
                self._moved[group] = self._number
                self._forget_strangers(group)
        for sent in list(self._sent.values()):
            if sent.topic == deleted.topic:
                for group in self._groups_of(sent):
                    self._begin_again(self._case(group, sent.message))
                self._gone[sent.message] = self._number
                self._forget(sent)
            elif deleted.group in self._groups_of(sent):
                self._begin_again(self._case(deleted.group, sent.message)).reborn = self._number
                self._excused.add((deleted.group, sent.message))
        if deleted.group:
            self._unheard[deleted.group] = 0

    def _forget(self, sent: Sent) -> None:
        if self._sent.pop(sent.message, None) is not None:
            self._order[sent.key] = [name for name in self._order[sent.key] if name != sent.message]

    def end(self, dead: Mapping[str, Collection[str]]) -> None:
        """Every group was given everything that it still could be given; `dead` are its dead letters."""
        for sent in self._sent.values():
            for group in self._groups_of(sent):
                case, is_dead = self._case(group, sent.message), sent.message in dead.get(group, ())
                where = f"{sent.message} of {group}"
                excused = case.maybe or case.skipped is not None or (group, sent.message) in self._excused
                _must(is_dead or case.done is not None or excused, f"{where} is neither done nor a dead letter")
                if is_dead and not case.bury_asked and not case.again and not self._crashes:
                    _must(case.done is None, f"{where} is done and a dead letter")
                    _must(self._is_over(case), f"{where} is a dead letter, and was not tried often enough")

    def _groups_of(self, sent: Sent) -> Iterator[str]:
        return (name for name, group in self._groups.items() if sent.topic in group.topics)

    def _case(self, group: str, message: str) -> _Case:
        return self._cases.setdefault((group, message), _Case(group, message))


def _must(holds: object, text: str) -> None:
    if not holds:
        raise Contradiction(text)
