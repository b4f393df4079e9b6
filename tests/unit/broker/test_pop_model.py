"""Random lives of consumers that pop, through restarts, kills and power cuts, against a model that knows no leases.

The model remembers only what consumers were told. It checks
- every message is delivered until it is acknowledged (the end of each life drains the topic);
- what was acknowledged, and answered, is never delivered again;
- nobody gets a message while another holds it under a good lease;
- a handle is good exactly as long as its lease, and says no afterwards;
- FIFO: a queue's messages come in order, one batch at a time.

What a power cut may repeat is what it says at the head of `broker.pop`: then the model does not know (`unsure`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from saturnmq.broker import leasefile, revivelog, timersorting
from saturnmq.broker.acks import Acks
from saturnmq.broker.leasefile import LeaseFile
from saturnmq.broker.leasereplay import LeaseReplay
from saturnmq.broker.leases import CheckPoint, Leases
from saturnmq.broker.offsets import OffsetTable
from saturnmq.broker.order import Order
from saturnmq.broker.revive import Revival
from saturnmq.broker.reviverecords import ReviveRecords
from saturnmq.disk.simulated import everything_survives
from saturnmq.kernel.errors import InvalidReceiptHandle, NoSuchMessage
from saturnmq.kernel.message import Message
from saturnmq.testing.apache_revive import in_flight, revived_by_apache
from saturnmq.testing.pops import Answer, Held, PopStage

QUEUES = 2


@dataclass
class Hand:
    """A handle that some consumer got."""

    held: Held
    #: end of the lease that it is good for; None: nobody knows any more
    until_ms: int | None
    #: when that lease began; the next one of the same message begins later
    begun_ms: int
    #: another handle of the same delivery replaced it
    replaced: bool = False
    #: it acknowledged the message
    done: bool = False

    def __repr__(self) -> str:
        state = "replaced " * self.replaced + "done " * self.done
        return f"<{self.held.name} popped {self.held.delivery.pop_ms} {state}until {self.until_ms}>"


@dataclass(repr=False)
class Group:
    name: str
    fifo: bool
    #: by message: who holds it
    holders: dict[str, Hand] = field(default_factory=dict)
    acked: set[str] = field(default_factory=set)
    #: acknowledged, or not: a power cut may have undone it
    unsure: set[str] = field(default_factory=set)
    hands: list[Hand] = field(default_factory=list)
    #: by queue: attempt id of the last FIFO pop that got something
    attempts: dict[int, str | None] = field(default_factory=dict)

    def __repr__(self) -> str:
        return self.name

    def holds(self, message: str, now_ms: int) -> bool:
        hand = self.holders.get(message)
        return hand is not None and hand.until_ms is not None and hand.until_ms > now_ms

    def doubt(self) -> None:
        """Nobody knows which leases there are."""
        self.holders.clear()
        for hand in self.hands:
            hand.until_ms = None


class PopLife(RuleBasedStateMachine):
    flush = "SYNC_FLUSH"

    @initialize()
    def begin(self) -> None:
        # few revive queues, so that records of different consumers mix
        self.stage = PopStage(queues={"orders": QUEUES}, flush=self.flush, settings={"revive_queue_num": 2})
        self.groups = [Group("g", fifo=False), Group("f", fifo=True)]
        #: by queue, in order
        self.sent: list[list[str]] = [[] for _ in range(QUEUES)]

    @property
    def now_ms(self) -> int:
        return self.stage.clock.now_ms()

    # -------------------------------------------------------------------------------------------------- rules

    @rule(queue_id=st.integers(0, QUEUES - 1), count=st.integers(1, 5), flushed=st.booleans())
    def send(self, queue_id: int, count: int, flushed: bool) -> None:
        sent = self.sent[queue_id]
        names = [f"{queue_id}.{len(sent) + number}" for number in range(count)]
        self.stage.send(*names, queue_id=queue_id)
        self.stage.store.flush()
        self.stage.clock.run_soon()
        sent += names
        self.settle()

    @rule(
        group=st.integers(0, 1),
        most=st.integers(1, 8),
        invisible_ms=st.sampled_from([1, 1000, 10_000, 60_000]),
        draw=st.integers(0, 99),
        attempt=st.sampled_from([None, "a", "b"]),
    )
    def pop(self, group: int, most: int, invisible_ms: int, draw: int, attempt: str | None) -> None:
        one = self.groups[group]
        self.stage.draws = [draw]
        held = self.stage.pop(
            group=one.name, max_messages=most, invisible_ms=invisible_ms, fifo=one.fifo, attempt_id=attempt
        )
        self.received(one, held, attempt)

    @precondition(lambda self: any(group.hands for group in self.groups))
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        group, hand = self.some_hand(data)
        if self.expect(group, hand, lambda: self.stage.ack(hand.held), repeats=True):
            self.acknowledged(group, hand)

    @precondition(lambda self: any(group.hands for group in self.groups))
    @rule(data=st.data(), invisible_ms=st.sampled_from([0, 1, 1000, 30_000, 90_000]))
    def change(self, data: st.DataObject, invisible_ms: int) -> None:
        group, hand = self.some_hand(data)
        changed: list[Held] = []
        if self.expect(group, hand, lambda: changed.append(self.stage.change(hand.held, invisible_ms))):
            delivery = changed[0].delivery
            fresh = hand
            if delivery != hand.held.delivery:  # of FIFO a change within the millisecond of the pop gives the same
                hand.replaced = True
                fresh = Hand(changed[0], None, delivery.pop_ms)
                group.hands.append(fresh)
            fresh.until_ms = delivery.pop_ms + delivery.invisible_ms
            group.holders[hand.held.name] = fresh

    @precondition(lambda self: any(group.hands for group in self.groups))
    @rule(data=st.data(), invisible_ms=st.sampled_from([1000, 30_000, 90_000]))
    def renew(self, data: st.DataObject, invisible_ms: int) -> None:
        group, hand = self.some_hand(data)
        if self.expect(group, hand, lambda: self.stage.renew(hand.held, invisible_ms)):
            if not group.fifo:
                hand.begun_ms = max(self.now_ms, hand.begun_ms + 1)
            hand.until_ms = invisible_ms + (self.now_ms if group.fifo else hand.begun_ms)

    @rule(milliseconds=st.sampled_from([1, 500, 1000, 5000, 10_000, 30_000, 60_000]))
    def advance(self, milliseconds: int) -> None:
        self.stage.advance(milliseconds)

    @rule()
    def flush_now(self) -> None:
        self.stage.store.flush()
        self.stage.clock.run_soon()
        self.settle()

    @rule()
    def restart(self) -> None:
        self.begin_again(self.stage.restart())
        self.settle()

    @rule()
    def kill(self) -> None:
        self.begin_again(self.stage.kill())

    @rule()
    def power_cut(self) -> None:
        self.begin_again(self.stage.power_cut())
        self.cut()

    @precondition(lambda self: any(group.hands for group in self.groups))
    @rule(data=st.data(), kills=st.booleans())
    def crash_within_an_ack(self, data: st.DataObject, kills: bool) -> None:
        """The acknowledgement was never answered."""
        group, hand = self.some_hand(data)
        Answer(lambda: self.stage.pops.ack(hand.held.delivery))
        if hand.held.name not in group.acked:
            group.unsure.add(hand.held.name)
            hand.until_ms = None
            if group.holders.get(hand.held.name) is hand:
                del group.holders[hand.held.name]
        self.crash(kills)

    @rule(group=st.integers(0, 1), kills=st.booleans())
    def crash_within_a_pop(self, group: int, kills: bool) -> None:
        """The messages may have left; nobody knows whether their check points did."""
        one = self.groups[group]
        Answer(lambda: self.stage.pops.pop(self.stage.request(one.name, fifo=one.fifo)))
        self.crash(kills)

    def crash(self, kills: bool) -> None:
        self.begin_again(self.stage.kill() if kills else self.stage.power_cut())
        if not kills:
            self.cut()

    def begin_again(self, stage: PopStage) -> None:
        """A FIFO batch that is over leaves no trace of its renewals."""
        self.stage = stage
        for group in self.groups:
            for hand in group.hands:
                if group.fifo and hand.done:
                    hand.until_ms = None

    def teardown(self) -> None:
        if not hasattr(self, "stage"):
            return
        everything = {name for names in self.sent for name in names}
        for _ in range(100):
            self.stage.advance(100_000)
            more = False
            for group in self.groups:
                held = self.stage.pop(group=group.name, max_messages=32, fifo=group.fifo)
                more = more or bool(held)
                self.received(group, held, None)
                for one in held:
                    self.stage.ack(one)
                    group.acked.add(one.name)
                    group.holders.pop(one.name, None)
            if not more:
                break
        for group in self.groups:
            left = everything - group.acked - group.unsure
            assert not left, f"{group.name} never got {sorted(left)}"
        assert self.stage.pops.leases.in_flight == 0

    # -------------------------------------------------------------------------------------------------- model

    def some_hand(self, data: st.DataObject) -> tuple[Group, Hand]:
        return data.draw(st.sampled_from([(group, hand) for group in self.groups for hand in group.hands[-12:]]))

    def received(self, group: Group, held: list[Held], attempt: str | None) -> None:
        now_ms = self.now_ms
        for one in held:
            assert one.name not in group.acked, f"{one.name} was acknowledged"
            if not group.fifo:
                assert not group.holds(one.name, now_ms), f"{one.name} is held"
        if group.fifo:
            self.received_in_order(group, held, attempt)
        for one in held:
            hand = Hand(one, one.delivery.pop_ms + one.delivery.invisible_ms, one.delivery.pop_ms)
            group.hands.append(hand)
            before = group.holders.get(one.name)
            if before is not None:
                before.replaced = True
            group.holders[one.name] = hand
            group.unsure.discard(one.name)

    def received_in_order(self, group: Group, held: list[Held], attempt: str | None) -> None:
        for queue_id, sent in enumerate(self.sent):
            got = [one.name for one in held if one.delivery.queue_id == queue_id]
            if not got:
                continue
            blocked = {name for name in sent if group.holds(name, self.now_ms)}
            if blocked:
                assert attempt is not None, f"{got} while {blocked} is held"
                assert attempt == group.attempts[queue_id], f"{got} while {blocked} is held"
                for name in blocked:  # whoever repeats an attempt never heard of the first one
                    group.holders.pop(name).replaced = True
            group.attempts[queue_id] = attempt
            open_ = [name for name in sent if name not in group.acked]
            certain = [name for name in open_ if name not in group.unsure or name in got]
            assert got == certain[: len(got)], f"{got} of {certain}"

    def expect(self, group: Group, hand: Hand, verb, *, repeats: bool = False) -> bool:  # type: ignore[no-untyped-def]
        """Whether it took effect; checks that it had to, or had not to."""
        name, now_ms = hand.held.name, self.now_ms
        good = hand.until_ms is not None and hand.until_ms > now_ms and not hand.replaced
        try:
            verb()
        except (InvalidReceiptHandle, NoSuchMessage) as error:
            if hand.until_ms is not None and good and not (hand.done and not repeats) and name not in group.unsure:
                raise AssertionError(f"the handle of {name} should be good: {hand}") from error
            return False
        if hand.until_ms is None:
            # it was good, and has had its effect
            assert not group.holds(name, now_ms), f"{name} is somebody else's"
            group.unsure.add(name)
            group.holders.pop(name, None)
            return False
        if not good:
            # what is acknowledged is acknowledged: of a FIFO batch that is over nobody knows which handle did it
            assert group.fifo, f"the handle of {name} should not be good at {now_ms}: {hand}"
            assert name in group.acked | group.unsure, f"{name} was not acknowledged by {hand}"
            return False
        return not hand.done

    def acknowledged(self, group: Group, hand: Hand) -> None:
        hand.done = True
        group.holders.pop(hand.held.name, None)
        group.unsure.discard(hand.held.name)
        group.acked.add(hand.held.name)

    def settle(self) -> None:
        """Everything until now is on the disk."""

    def cut(self) -> None:
        """The power is gone. SYNC_FLUSH: what was answered is on the disk, and pops were, a turn later."""

    @invariant()
    def counted(self) -> None:
        if hasattr(self, "stage"):
            assert self.stage.pops.leases.in_flight >= 0


class AsyncPopLife(PopLife):
    """Whatever happened since the last flush is in doubt after a power cut."""

    flush = "ASYNC_FLUSH"

    def settle(self) -> None:
        self.since: list[set[str]] = [set() for _ in self.groups]

    def acknowledged(self, group: Group, hand: Hand) -> None:
        super().acknowledged(group, hand)
        if not hasattr(self, "since"):
            self.settle()
        self.since[self.groups.index(group)].add(hand.held.name)

    def cut(self) -> None:
        if not hasattr(self, "since"):
            self.settle()
        for group, since in zip(self.groups, self.since, strict=True):
            group.doubt()
            group.acked -= since
            group.unsure |= since
        self.settle()


class SnapshotPopLife(PopLife):
    """Snapshots are taken all the time, a bit in each turn."""

    @initialize()
    def begin(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(leasefile, "_MAX_BEHIND", 1)
        self.patch.setattr(leasefile, "_FRAME_ITEMS", 1)
        self.patch.setattr(revivelog, "_ADVANCE_MS", 1)
        super().begin()

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            if hasattr(self, "patch"):
                self.patch.undo()


class TakenOverPopLife(PopLife):
    """At every end it is asked what Apache would make of it."""

    @initialize()
    def begin(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(leasefile, "_MAX_BEHIND", 10)
        self.patch.setattr(timersorting, "PATIENCE_MS", 300)
        super().begin()

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            if hasattr(self, "patch"):
                self.patch.undo()

    @rule()
    def kill(self) -> None:
        disk = self.stage.disk.crashed(survives=everything_survives)
        assert revived_by_apache(self.stage, disk, queues=2) == in_flight(self.stage)
        super().kill()

    @rule()
    def restart(self) -> None:
        stage, expected = self.stage, in_flight(self.stage)
        stage.stop()
        disk = stage.disk.crashed(survives=everything_survives)
        assert revived_by_apache(stage, disk, queues=2) == expected
        self.begin_again(stage.begin_again())
        self.settle()


for life in (PopLife, AsyncPopLife, SnapshotPopLife, TakenOverPopLife):
    life.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPopLife = PopLife.TestCase
TestAsyncPopLife = AsyncPopLife.TestCase
TestTakenOverPopLife = TakenOverPopLife.TestCase
TestSnapshotPopLife = SnapshotPopLife.TestCase


# ------------------------------------------------------------------------------------- the model finds faults


def forget_check_points(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LeaseReplay, "_check_point", lambda self, body, queue_id, offset: None)


def forget_acknowledgements(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LeaseReplay, "_acknowledged", lambda self, body: None)


def forget_batches(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LeaseReplay, "_order", lambda self, body: None)


def forget_renewals(patch: pytest.MonkeyPatch) -> None:
    written = ReviveRecords.check_point

    def check_point(self: ReviveRecords, point: CheckPoint, *rest: Any, **more: Any) -> Message:
        return written(self, msgspec.structs.replace(point, handle_ms=point.pop_ms), *rest, **more)

    patch.setattr(ReviveRecords, "check_point", check_point)


def end_leases_early(patch: pytest.MonkeyPatch) -> None:
    due = Leases.take_due
    next_ms = Leases.next_expiry_ms
    patch.setattr(Leases, "take_due", lambda self, now_ms: due(self, now_ms + 9_000))
    patch.setattr(Leases, "next_expiry_ms", lambda self: (next_ms(self) or 1 << 50) - 9_000)


def end_leases_never(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Revival, "watch", lambda self: None)


def copy_twice(patch: pytest.MonkeyPatch) -> None:
    close = Revival._close
    patch.setattr(Revival, "_close", lambda self, point, offsets, copies: close(self, point, offsets, 2 * copies))


def never_copy(patch: pytest.MonkeyPatch) -> None:
    close = Revival._close
    patch.setattr(Revival, "_close", lambda self, point, offsets, copies: close(self, point, offsets, []))


def take_any_handle(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Acks, "_held", lambda self, queue, delivery, now_ms: queue.leases.get(delivery.queue_offset))


def take_any_handle_in_order(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Acks, "_held_in_order", lambda self, queue, delivery, now_ms: queue.order)


def never_block(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Order, "free_at_ms", 0)


def offsets_before_check_points(patch: pytest.MonkeyPatch) -> None:
    """The offsets file does not wait for a flush of what it covers."""
    begin = OffsetTable.__init__
    patch.setattr(OffsetTable, "__init__", lambda self, disk, clock, flush: begin(self, disk, clock, lambda: None, 0))


def read_too_little_again(patch: pytest.MonkeyPatch) -> None:
    load = LeaseFile.load

    def load_later(self: LeaseFile) -> leasefile.Begin | None:
        begin = load(self)
        if begin is not None:
            begin.offset += 1
        return begin

    patch.setattr(LeaseFile, "load", load_later)


# the seeds are ones that find their fault soon
@pytest.mark.parametrize(
    ("fault", "life", "seed"),
    [
        (forget_check_points, PopLife, None),
        (forget_acknowledgements, PopLife, None),
        (forget_batches, PopLife, 2),
        (forget_renewals, PopLife, 21),
        (end_leases_early, PopLife, 19),
        (end_leases_never, PopLife, None),
        (copy_twice, PopLife, 15),
        (never_copy, PopLife, None),
        (take_any_handle, PopLife, None),
        (take_any_handle_in_order, PopLife, None),
        (never_block, PopLife, 4),
        (offsets_before_check_points, AsyncPopLife, None),
        (read_too_little_again, SnapshotPopLife, None),
    ],
)
def test_a_fault_is_found(
    fault: Callable[[pytest.MonkeyPatch], None], life: type[PopLife], seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    monkeypatch.setattr(life, "_hypothesis_internal_use_seed", seed, raising=False)  # what @hypothesis.seed does
    found: list[BaseException] = []
    try:
        run_state_machine_as_test(
            life,
            settings=settings(
                max_examples=3000,
                stateful_step_count=40,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                print_blob=False,
                report_multiple_bugs=False,
            ),
        )
    except Exception as error:  # noqa: BLE001 - any way to notice will do
        found.append(error)
    assert found, "3000 lives passed with the fault"
