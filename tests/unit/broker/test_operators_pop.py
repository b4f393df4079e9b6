"""Operators and groups that pop: resets, skips, and what goes with a group or a topic that is deleted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest

from saturnmq.kernel.topic import GroupConfig, TopicConfig
from saturnmq.testing.clock import VirtualClock
from saturnmq.testing.offline import Asked, OfflineBroker
from saturnmq.wire import record
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode

LEASE_MS = 60_000
End: TypeAlias = Callable[[OfflineBroker], OfflineBroker]


def stage(count: int, **settings: object) -> OfflineBroker:
    """So many messages in the one queue of `orders`: 0, 1, …"""
    offline = OfflineBroker(settings=settings)
    offline.broker.topics.put(TopicConfig(topic_name="orders", read_queue_nums=1, write_queue_nums=1))
    offline.broker.groups.put(GroupConfig(group_name="g"))
    for number in range(count):
        offline.send("orders", b"%d" % number, UNIQ_KEY=str(number))
    return offline


def pop(offline: OfflineBroker, most: int = 32, *, fifo: bool = False, latest: bool = False, wait_ms: int = 0) -> Asked:
    fields = {
        "consumerGroup": "g", "topic": "orders", "queueId": -1, "maxMsgNums": most, "invisibleTime": LEASE_MS,
        "pollTime": wait_ms, "bornTime": 1, "initMode": int(latest), "exp": "*", "expType": "TAG", "order": fifo,
    }  # fmt: skip
    return offline.ask(RequestCode.POP_MESSAGE, fields)


def numbers(popped: Asked) -> list[int]:
    return sorted(int(record.decode(data).body) for data in record.split(popped.body))


def ack(offline: OfflineBroker, popped: Asked, offset: int) -> int:
    lease = " ".join(popped.fields[name] for name in ("popTime", "invisibleTime", "reviveQid"))
    handle = f"0 {lease} 0 broker-a 0 {offset}"
    fields = {"consumerGroup": "g", "topic": "orders", "queueId": 0, "extraInfo": handle, "offset": offset}
    return offline.ask(RequestCode.ACK_MESSAGE, fields).code


def reset(offline: OfflineBroker, timestamp: int, **fields: object) -> None:
    header = {"topic": "orders", "group": "g", "timestamp": timestamp, "isForce": True, **fields}
    assert offline.ask(RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, header).code == 0


def killed(offline: OfflineBroker) -> OfflineBroker:
    """Another process on what was written."""
    offline.store.flush()
    offline.clock.run_soon()
    clock = VirtualClock(offline.clock.now_ms() + 1)
    return OfflineBroker(offline.disk.crashed(), clock, settings=offline.settings)


@pytest.mark.parametrize("restarts", [False, True])
def test_a_reset_gives_out_anew_what_the_group_holds_from_there_on(restarts: bool) -> None:
    offline = stage(6)
    held = pop(offline, 4)
    offline.clock.advance(1000)
    reset(offline, 0, queueId=0, offset=2)
    again = pop(offline)
    assert numbers(again) == [2, 3, 4, 5]
    assert (ack(offline, held, 0), ack(offline, held, 2) != 0) == (0, True)
    offline = offline.restart() if restarts else offline
    offline.clock.advance(LEASE_MS)
    assert numbers(pop(offline)) == [1, 2, 3, 4, 5], "each once"


def test_a_group_that_skips_keeps_what_it_holds() -> None:
    """Nobody acknowledged that: it comes again, as at Apache's."""
    offline = stage(6)
    assert numbers(pop(offline, 2)) == [0, 1]
    reset(offline, -1)
    assert numbers(pop(offline)) == []
    offline.clock.advance(LEASE_MS)
    assert numbers(pop(offline)) == [0, 1]


@pytest.mark.parametrize("fifo", [False, True])
@pytest.mark.parametrize("end", [OfflineBroker.restart, killed])
@pytest.mark.parametrize("acknowledged", [0, 2, 3])
def test_a_reset_outlives_the_broker(fifo: bool, end: End, acknowledged: int) -> None:
    """Also one to before what the log says that the group was given."""
    offline = stage(3)
    held = pop(offline, fifo=fifo)
    for offset in range(acknowledged):
        assert ack(offline, held, offset) == 0
    reset(offline, 0)
    offline = end(offline)
    assert numbers(pop(offline, fifo=fifo)) == [0, 1, 2]


@pytest.mark.parametrize("end", [OfflineBroker.restart, killed])
def test_a_group_that_goes_on_where_another_is_does_so_after_the_broker_ends(end: End) -> None:
    offline = stage(3)
    held = pop(offline)
    for offset in range(3):
        assert ack(offline, held, offset) == 0
    offline.broker.offsets.commit("source", "orders", 0, 1)
    cloned = offline.ask(RequestCode.CLONE_GROUP_OFFSET, {"srcGroup": "source", "destGroup": "g", "offline": True})
    assert cloned.code == 0
    assert numbers(pop(end(offline))) == [1, 2]


def test_where_a_new_group_began_outlives_a_kill() -> None:
    """With the latest message: what came after that it must not miss, although others are later."""
    offline = stage(1, init_pop_offset_by_check_msg_in_mem=False)
    assert numbers(pop(offline, latest=True)) == [0]
    offline = stage(0, init_pop_offset_by_check_msg_in_mem=False)
    assert numbers(pop(offline, latest=True)) == []
    for number in range(3):
        offline.send("orders", b"%d" % number)
    assert numbers(pop(killed(offline), latest=True)) == [0, 1, 2]


def test_a_deleted_group_takes_along_what_it_was_not_given_again() -> None:
    offline = stage(1)
    pop(offline)
    offline.clock.advance(LEASE_MS)
    assert len(offline.stored("%RETRY%g_orders")) == 1
    fields = {"groupName": "g", "cleanOffset": True}
    assert offline.ask(RequestCode.DELETE_SUBSCRIPTIONGROUP, fields).code == 0
    assert offline.broker.topics.get("%RETRY%g_orders") is None
    offline.broker.groups.put(GroupConfig(group_name="g"))
    assert numbers(pop(offline)) == [0], "once"


@pytest.mark.parametrize("fifo", [False, True])
@pytest.mark.parametrize("end", [None, OfflineBroker.restart, killed])
def test_what_a_deleted_group_held_does_not_come_back(fifo: bool, end: object) -> None:
    offline = stage(3)
    pop(offline, 1, fifo=False)
    offline.clock.advance(LEASE_MS)
    assert numbers(pop(offline, fifo=False)) == [0, 1, 2], "of its retry topic too"
    if fifo:
        offline.send("orders", b"3")
        assert numbers(pop(offline, fifo=True)) == [3]
    offline.clock.advance(1000)
    fields = {"groupName": "g", "cleanOffset": True}
    assert offline.ask(RequestCode.DELETE_SUBSCRIPTIONGROUP, fields).code == 0
    assert offline.broker.pops.leases.in_flight == 0
    if end is not None:
        assert callable(end)
        offline = end(offline)
    offline.clock.advance(LEASE_MS)
    assert offline.broker.topics.get("%RETRY%g_orders") is None
    assert offline.store.max_offset("%RETRY%g_orders", 0) == 0
    offline.broker.groups.put(GroupConfig(group_name="g"))
    assert numbers(pop(offline, fifo=fifo)) == ([0, 1, 2, 3] if fifo else [0, 1, 2]), "another group of that name"


def test_who_waits_for_a_group_that_is_deleted_gets_nothing_for_it() -> None:
    offline = stage(0, auto_create_subscription_group=False)
    waiting = pop(offline, wait_ms=30_000)
    fields = {"groupName": "g", "cleanOffset": True}
    assert offline.ask(RequestCode.DELETE_SUBSCRIPTIONGROUP, fields).code == 0
    assert waiting.waits
    offline.send("orders", b"0")
    assert waiting.code == ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST
    assert offline.broker.offsets.topics_of("g") == set()


def test_a_group_that_is_deleted_without_its_offsets_goes_on_when_it_is_made_again() -> None:
    offline = stage(3)
    pop(offline, 2)
    assert offline.ask(RequestCode.DELETE_SUBSCRIPTIONGROUP, {"groupName": "g", "cleanOffset": False}).code == 0
    offline.clock.advance(LEASE_MS)
    offline.broker.groups.put(GroupConfig(group_name="g"))
    assert numbers(pop(offline)) == [0, 1, 2]


@pytest.mark.parametrize("delay", [{"DELAY": "3"}, {"TIMER_DELAY_MS": "10000"}], ids=["level", "time"])
@pytest.mark.parametrize("topic", ["orders", "%RETRY%g", "new"])
@pytest.mark.parametrize("end", [None, OfflineBroker.restart, killed])
def test_what_waits_for_a_deleted_topic_is_not_delivered(delay: dict[str, str], topic: str, end: object) -> None:
    """To one of that name neither, and no queue is made for it."""
    offline = stage(0)
    offline.send(topic, b"old", header=None, queue_id=0, **delay)
    assert offline.ask(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": topic}).code == 0
    if end is not None:
        assert callable(end)
        offline = end(offline)
    offline.clock.advance(5_000)
    assert offline.store.queues(topic) == []
    offline.send(topic, b"new", header=None, queue_id=0, **delay)
    offline.clock.advance(6_000)
    assert offline.store.queues(topic) == [], "the old one is due"
    offline.clock.advance(6_000)
    assert [one.body for one in offline.stored(topic)] == [b"new"]
