"""Looking at what a pop would take: notifications and peeks, which take nothing."""

from __future__ import annotations

from typing import Any

import pytest

from saturnmq.kernel.topic import GroupConfig, TopicConfig
from saturnmq.testing.offline import Asked, OfflineBroker
from saturnmq.wire import record
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode


def staged(**settings: Any) -> OfflineBroker:
    offline = OfflineBroker(settings={"pop_from_retry_probability": 100, **settings})
    offline.broker.topics.put(TopicConfig(topic_name="orders", read_queue_nums=2, write_queue_nums=2))
    offline.clock.run_soon()
    return offline


@pytest.fixture
def offline() -> OfflineBroker:
    return staged()


def pop(offline: OfflineBroker, **more: object) -> Asked:
    fields = {
        "consumerGroup": "g", "topic": "orders", "queueId": -1, "maxMsgNums": 32, "invisibleTime": 60_000,
        "pollTime": 0, "bornTime": 1, "initMode": 0, "exp": "*", "expType": "TAG", "order": False,
    }  # fmt: skip
    return offline.ask(RequestCode.POP_MESSAGE, {**fields, **more})


def notify(offline: OfflineBroker, wait_ms: int = 0, **more: object) -> Asked:
    fields = {
        "consumerGroup": "g", "topic": "orders", "queueId": -1, "pollTime": wait_ms, "bornTime": 1, "order": False,
    }  # fmt: skip
    return offline.ask(RequestCode.NOTIFICATION, {**fields, **more})


def has_message(asked: Asked) -> bool:
    assert (asked.code, asked.fields["pollingFull"]) == (0, "false")
    return asked.fields["hasMsg"] == "true"


def peek(offline: OfflineBroker, **more: object) -> Asked:
    fields = {"consumerGroup": "g", "topic": "orders", "queueId": -1, "maxMsgNums": 32}
    return offline.ask(RequestCode.PEEK_MESSAGE, {**fields, **more})


def bodies(asked: Asked) -> list[bytes]:
    return [record.decode(one).body for one in record.split(asked.body)]


# ------------------------------------------------------------------------------------------------ notification


def test_there_is_something_or_not(offline: OfflineBroker) -> None:
    assert not has_message(notify(offline))
    offline.send("orders", queue_id=1)
    assert has_message(notify(offline))
    assert has_message(notify(offline, queueId=1))
    assert not has_message(notify(offline, queueId=0))
    assert has_message(notify(offline)), "nothing was taken"
    pop(offline)
    assert not has_message(notify(offline))


def test_it_waits_for_a_message(offline: OfflineBroker) -> None:
    waiting, elsewhere = notify(offline, 5_000), notify(offline, 5_000, queueId=0)
    offline.send("orders", queue_id=1)
    assert has_message(waiting)
    offline.clock.advance(4_999)
    assert elsewhere.waits
    offline.clock.advance(1)
    assert not has_message(elsewhere)
    assert len(offline.broker.polls) == 0


def test_it_waits_for_a_message_that_the_filter_takes(offline: OfflineBroker) -> None:
    red = notify(offline, 5_000, exp="colour = 'red'", expType="SQL92")
    tagged = notify(offline, 5_000, exp="t", expType="TAG")
    offline.send("orders", colour="blue")
    assert red.waits
    assert not has_message(notify(offline, exp="colour = 'red'", expType="SQL92"))
    offline.send("orders", colour="red")
    assert has_message(red)
    assert tagged.waits
    offline.send("orders", TAGS="t")
    assert has_message(tagged)
    assert has_message(notify(offline, exp="colour = 'red'", expType="SQL92"))
    refused = notify(offline, exp="colour =", expType="SQL92")
    assert refused.code == ResponseCode.SUBSCRIPTION_PARSE_FAILED


def test_a_pop_that_waits_gets_its_message_all_the_same(offline: OfflineBroker) -> None:
    """A notification takes nothing, so it must not take a pop's turn; nor must a pop take that of a notification."""
    notified = [notify(offline, 5_000) for _ in range(2)]
    popped = [pop(offline, pollTime=5_000) for _ in range(2)]
    offline.send("orders", b"1")
    assert [asked.waits for asked in popped] == [False, True]
    assert [asked.waits for asked in notified] == [False, True]
    offline.send("orders", b"2")
    assert [bodies(asked) for asked in popped] == [[b"1"], [b"2"]]


def test_it_hears_of_messages_that_come_back(offline: OfflineBroker) -> None:
    """From the retry topic, after a restart too, when no pop has asked yet."""
    offline.send("orders")
    pop(offline, invisibleTime=10_000)
    again = offline.restart()
    waiting = notify(again, 60_000)
    again.clock.advance(15_000)
    assert has_message(waiting)
    assert has_message(notify(again))


def test_a_reset_counts(offline: OfflineBroker) -> None:
    offline.send("orders")
    pop(offline)
    offline.broker.offsets.commit("g", "orders", 0, 0)
    assert has_message(notify(offline))


def test_fifo_groups_wait_until_the_queue_is_free(offline: OfflineBroker) -> None:
    offline.send("orders", b"1")
    offline.send("orders", b"2")
    pop(offline, order=True, maxMsgNums=1, attemptId="one", invisibleTime=10_000)
    assert not has_message(notify(offline, order=True))
    assert not has_message(notify(offline, order=True, attemptId="another"))
    assert has_message(notify(offline, order=True, attemptId="one")), "it would be given the same message again"
    waiting = notify(offline, 60_000, order=True)
    offline.send("orders", b"3")
    assert waiting.waits
    offline.clock.advance(10_000)
    assert has_message(waiting)
    offline.broker.groups.put(GroupConfig(group_name="g", consume_message_orderly=True))
    pop(offline, maxMsgNums=1)
    assert not has_message(notify(offline)), "the group itself is orderly"


def test_too_many_wait() -> None:
    offline = staged(pop_polling_size=1)
    assert notify(offline, 5_000).waits
    full = notify(offline, 5_000)
    assert (full.code, full.fields) == (0, {"hasMsg": "false", "pollingFull": "true"})


def test_waiting_pops_are_counted_without_notifications(offline: OfflineBroker) -> None:
    notify(offline, 5_000)
    pop(offline, pollTime=5_000)
    fields = {"consumerGroup": "g", "topic": "orders", "queueId": -1}
    assert offline.ask(RequestCode.POLLING_INFO, fields).fields["pollingNum"] == "1"


def test_a_client_that_goes_away_waits_no_longer(offline: OfflineBroker) -> None:
    notify(offline, 5_000).cancel()
    assert len(offline.broker.polls) == 0


# -------------------------------------------------------------------------------------------------------- peek


def test_a_peek_takes_nothing(offline: OfflineBroker) -> None:
    for number in range(3):
        offline.send("orders", b"%d" % number, queue_id=number % 2)
    for _ in range(2):
        peeked = peek(offline)
        assert (peeked.code, peeked.fields["restNum"], sorted(bodies(peeked))) == (0, "3", [b"0", b"1", b"2"])
    some = peek(offline, maxMsgNums=1)
    assert (some.fields["restNum"], len(bodies(some))) == ("3", 1)
    assert bodies(peek(offline, queueId=1)) == [b"1"]
    assert len(bodies(pop(offline))) == 3


def test_nothing_to_peek(offline: OfflineBroker) -> None:
    nothing = peek(offline)
    assert (nothing.code, nothing.fields["restNum"], nothing.body) == (ResponseCode.PULL_NOT_FOUND, "0", b"")
    offline.send("orders")
    pop(offline)
    assert peek(offline).code == ResponseCode.PULL_NOT_FOUND


def test_messages_of_retry_topics_are_peeked_at_as_they_are(offline: OfflineBroker) -> None:
    offline.send("orders", b"back")
    pop(offline, invisibleTime=10_000)
    offline.clock.advance(15_000)
    [stored] = [record.decode(one) for one in record.split(peek(offline).body)]
    assert (stored.topic, stored.body) == ("%RETRY%g_orders", b"back")


def test_an_offset_outside_of_the_queue_is_moved(offline: OfflineBroker) -> None:
    offline.send("orders", b"1")
    offline.broker.offsets.commit("g", "orders", 0, 99)
    assert peek(offline, queueId=0).code == ResponseCode.PULL_NOT_FOUND
    assert not has_message(notify(offline, queueId=0))


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"topic": "nowhere"}, ResponseCode.TOPIC_NOT_EXIST),
        ({"queueId": 9}, ResponseCode.INVALID_PARAMETER),
        ({"consumerGroup": "a b"}, ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST),
        ({"consumerGroup": "closed"}, ResponseCode.NO_PERMISSION),
        ({"topic": "unreadable"}, ResponseCode.NO_PERMISSION),
    ],
)
def test_who_may_not_pop_may_not_look(offline: OfflineBroker, header: dict[str, object], code: int) -> None:
    offline.broker.topics.put(TopicConfig(topic_name="unreadable", perm=2))
    offline.broker.groups.put(GroupConfig(group_name="closed", consume_enable=False))
    assert notify(offline, **header).code == code  # type: ignore[arg-type]
    assert peek(offline, **header).code == code
