"""The state of leases: what is kept, what is forgotten, when it ends."""

from __future__ import annotations

import gc

from saturnmq.broker.leases import CheckPoint, GroupQueue, Leases
from saturnmq.broker.order import next_order


def check_point(queue: GroupQueue, first: int, count: int, pop_ms: int = 0, **fields: int) -> CheckPoint:
    values: dict[str, int] = {
        "start": first, "pop_ms": pop_ms, "invisible_ms": 1000, "handle_ms": pop_ms, "claim_ms": pop_ms + 1000,
        "revive_queue_id": 0, "pending": count, "changed": False, **fields,
    }  # fmt: skip
    return CheckPoint(queue=queue, offsets=range(first, first + count), **values)  # type: ignore[arg-type]


def test_a_lease_from_its_grant_to_its_end() -> None:
    leases = Leases()
    queue = leases.queue("g", "t", 0)
    one = check_point(queue, 0, 3)
    leases.grant(one)
    assert (leases.in_flight, queue.high, one.remaining()) == (3, 3, [0, 1, 2])
    leases.close(one, 1, 500, acknowledged=True)
    assert leases.next_expiry_ms() == 1000
    assert leases.take_due(999) is None
    assert leases.take_due(1000) is one
    assert leases.take_due(1000) is None
    assert one.remaining() == [0, 2]
    for offset in one.remaining():
        leases.close(one, offset, 1000, acknowledged=False)
    assert (leases.in_flight, queue.leases, queue.over) == (0, {}, {})


def test_a_change_takes_the_message_over() -> None:
    leases = Leases()
    queue = leases.queue("g", "t", 0)
    one, two = check_point(queue, 0, 2), check_point(queue, 1, 1, 10, changed=True, claim_ms=5000)
    leases.grant(one)
    leases.grant(two)
    assert (one.remaining(), two.remaining(), leases.in_flight) == ([0], [1], 2)
    leases.close(two, 1, 100, acknowledged=True)
    assert queue.over == {1: two}, "an older handle says that it is good until 5000"
    assert leases.take_due(1000) is one
    leases.close(one, 0, 1000, acknowledged=False)
    assert leases.take_due(5000) is None
    assert queue.over == {}


def test_the_oldest_record_in_a_revive_queue() -> None:
    leases = Leases()
    queue = leases.queue("g", "t", 0)
    points = [check_point(queue, number, 1) for number in range(5)]
    for number, point in enumerate(points):
        leases.grant(point)
        leases.put_in_revive(point, 10 + number)
    leases.close(points[0], 0, 0, acknowledged=True)
    leases.close(points[2], 2, 0, acknowledged=True)
    assert leases.first_in_revive(0) == 11
    leases.put_in_revive(points[1], 20)
    assert leases.first_in_revive(0) == 11, "the first one counts"
    leases.close(points[1], 1, 0, acknowledged=True)
    assert leases.first_in_revive(0) == 13
    early = check_point(queue, 9, 1)
    leases.grant(early)
    leases.put_in_revive(early, 3)
    assert leases.first_in_revive(0) == 3, "a snapshot does not come in their order"
    leases.forget_topic("t")
    assert leases.first_in_revive(0) is None
    assert leases.first_in_revive(7) is None


def test_a_batch_of_a_fifo_group() -> None:
    leases = Leases()
    queue = leases.queue("g", "t", 0)
    order = next_order(None, None, 0, 1000, [5, 6])
    leases.put_order(queue, order)
    assert (leases.in_flight, queue.high) == (2, 7)
    longer = order.hide(6, 3000, 3000)
    leases.put_order(queue, longer)
    assert leases.take_due(2999) is None
    assert leases.take_due(3000) is queue
    leases.put_order(queue, None)
    assert leases.in_flight == 0


def test_memory_is_of_what_is_in_flight_only() -> None:
    leases = Leases()
    queue = leases.queue("g", "t", 0)
    for number in range(20_000):
        point = check_point(queue, number, 1, number)
        leases.grant(point)
        leases.close(point, number, number, acknowledged=True)
    assert len(leases._expiries) <= 1025
    assert not queue.leases
    assert not queue.over


def test_the_garbage_collector_has_nothing_to_visit() -> None:
    leases = Leases()
    queue = leases.queue("g", "t", 0)
    gc.collect()
    before = len(gc.get_objects())
    for number in range(10_000):
        leases.grant(check_point(queue, number, 1, number))
    gc.collect()
    assert len(gc.get_objects()) - before < 100


def test_counts_of_a_batch_follow_its_deliveries() -> None:
    order = next_order(None, "a", 1, 1000, [5, 6, 7])
    assert order.counts == {}
    assert next_order(order, "a", 2, 1000, [5, 6, 7]).counts == {}
    after = order.acknowledge(6)
    assert after is not None
    again = next_order(after, "b", 3, 1000, [5])
    assert (again.offsets, again.counts, again.remaining()) == ([5, 6, 7], {5: 1}, [5, 7])
    assert (again.end_ms(5), again.end_ms(7), again.free_at_ms) == (1003, 0, 1003)
    left = again.acknowledge(5)
    assert left is not None
    assert (left.offsets, left.acknowledged) == ([7], frozenset())
    assert left.acknowledge(7) is None
