"""Operators send groups elsewhere, and consumers are told."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from saturnmq.kernel.topic import GroupConfig, TopicConfig
from saturnmq.testing.offline import Asked, OfflineBroker, OfflineConnection
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.codes import LanguageCode, RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command

SUSPEND, SUBSCRIPTION, COMMIT = 2, 4, 1


def stage(settings: Mapping[str, object] | None = None) -> OfflineBroker:
    """Three messages in queue 0 of `orders`, a second apart; the group `g` is done with all of them."""
    offline = OfflineBroker(settings=settings)
    offline.broker.topics.put(TopicConfig(topic_name="orders", read_queue_nums=2, write_queue_nums=2))
    offline.broker.groups.put(GroupConfig(group_name="g"))
    for _ in range(3):
        offline.send("orders")
        offline.clock.advance(1000)
    commit(offline, 3)
    commit(offline, 0, queue_id=1)
    return offline


@pytest.fixture
def offline() -> OfflineBroker:
    return stage()


def reset(offline: OfflineBroker, timestamp: int, **fields: object) -> Asked:
    header = {"topic": "orders", "group": "g", "timestamp": timestamp, "isForce": True, **fields}
    return offline.ask(RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, header)


def offsets(answer: Asked) -> dict[int, int]:
    assert answer.code == 0, answer.remark
    return {queue.queue_id: offset for queue, offset in json.parse(answer.body)["offsetTable"].items()}


def commit(offline: OfflineBroker, offset: int, queue_id: int = 0) -> Asked:
    fields = {"consumerGroup": "g", "topic": "orders", "queueId": queue_id, "commitOffset": offset}
    return offline.ask(RequestCode.UPDATE_CONSUMER_OFFSET, fields)


def committed(offline: OfflineBroker, group: str = "g", queue_id: int = 0) -> int:
    fields = {"consumerGroup": group, "topic": "orders", "queueId": queue_id}
    return int(offline.ask(RequestCode.QUERY_CONSUMER_OFFSET, fields).fields["offset"])


def test_to_a_time(offline: OfflineBroker) -> None:
    second_ms = offline.stored("orders")[1].stored_ms
    assert offsets(reset(offline, second_ms)) == {0: 1, 1: 0}
    assert offsets(reset(offline, second_ms + 1)) == {0: 2, 1: 0}
    assert offsets(reset(offline, 0)) == {0: 0, 1: 0}
    assert offsets(reset(offline, -1)) == {0: 3, 1: 0}
    assert offsets(reset(offline, offline.clock.now_ms())) == {0: 3, 1: 0}


def test_one_queue(offline: OfflineBroker) -> None:
    assert offsets(reset(offline, 0, queueId=0)) == {0: 0}
    assert offsets(reset(offline, 0, queueId=0, offset=2)) == {0: 2}
    assert offsets(reset(offline, -1, queueId=0, offset=-1)) == {0: 3}
    assert offsets(reset(offline, 0, queueId=0, offset=4)) == {0: 4}
    for offset in (5, -2):
        refused = reset(offline, 0, queueId=0, offset=offset)
        assert refused.code == ResponseCode.SYSTEM_ERROR
        assert refused.remark == f"Target offset {offset} not in consume queue range [0-3]"


def test_queues_and_offsets_that_no_topic_has(offline: OfflineBroker) -> None:
    """Whoever makes them up does not fill the table."""
    assert reset(offline, 0, queueId=2).code == ResponseCode.INVALID_PARAMETER
    for offset, queue_id in ((1, 16_384), (1, -1), (-1, 0)):
        assert commit(offline, offset, queue_id).code == ResponseCode.INVALID_PARAMETER
    assert commit(offline, 1 << 63, 0).code == ResponseCode.SYSTEM_ERROR  # no Java long
    offline.pull("g", "orders", 0, sysFlag=SUBSCRIPTION | COMMIT, commitOffset=1 << 63)
    assert dict(offline.broker.offsets.of_group("g", "orders")) == {0: 3, 1: 0}


def test_what_is_not_there(offline: OfflineBroker) -> None:
    refused = reset(offline, 0, topic="none")
    assert (refused.code, refused.remark) == (ResponseCode.TOPIC_NOT_EXIST, "Topic none does not exist")
    refused = reset(offline, 0, group="none")
    assert (refused.code, refused.remark) == (ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, "Group none does not exist")


def test_the_next_pull_is_told_once(offline: OfflineBroker) -> None:
    reset(offline, 0)
    told = offline.pull("g", "orders", 3, sysFlag=SUBSCRIPTION | COMMIT, commitOffset=3)
    assert (told.code, told.fields["nextBeginOffset"]) == (ResponseCode.PULL_OFFSET_MOVED, "0")
    assert (told.fields["minOffset"], told.fields["maxOffset"]) == ("0", "3")
    assert committed(offline) == 0, "what the pull commits is of the time before"
    assert offline.pull("g", "orders", 0).code == ResponseCode.SUCCESS
    assert offline.pull("other", "orders", 3).code == ResponseCode.PULL_NOT_FOUND, "it is this group's"


def test_a_pull_that_waits_is_told_at_once(offline: OfflineBroker) -> None:
    waiting = offline.pull("g", "orders", 3, suspendTimeoutMillis=15_000)
    other = offline.pull("other", "orders", 3, suspendTimeoutMillis=15_000)
    assert waiting.waits
    reset(offline, 0)
    assert (waiting.code, waiting.fields["nextBeginOffset"]) == (ResponseCode.PULL_OFFSET_MOVED, "0")
    assert other.waits
    offline.send("orders")
    assert other.code == ResponseCode.SUCCESS


def test_what_consumers_commit_before_they_are_told_does_not_count(offline: OfflineBroker) -> None:
    reset(offline, 0)
    ignored = commit(offline, 3)
    assert (ignored.code, ignored.remark) == (ResponseCode.SUCCESS, "Offset has been previously reset")
    assert committed(offline) == 0
    offline.pull("g", "orders", 3)
    assert commit(offline, 2).remark == ""
    assert committed(offline) == 2


def test_a_restart_forgets_that_it_was_a_reset_and_not_where_to(offline: OfflineBroker) -> None:
    reset(offline, 0)
    again = offline.restart()
    assert committed(again) == 0
    assert again.pull("g", "orders", 0).code == ResponseCode.SUCCESS


def pop(offline: OfflineBroker, wait_ms: int = 0) -> Asked:
    fields = {
        "consumerGroup": "g", "topic": "orders", "queueId": -1, "maxMsgNums": 32, "invisibleTime": 60_000,
        "pollTime": wait_ms, "bornTime": 0, "initMode": 0,
    }  # fmt: skip
    return offline.ask(RequestCode.POP_MESSAGE, fields)


def test_a_pop_that_waits_gets_what_the_group_was_sent_back_to(offline: OfflineBroker) -> None:
    waiting = pop(offline, wait_ms=15_000)
    assert waiting.waits
    reset(offline, 0)
    assert (waiting.code, waiting.fields["msgOffsetInfo"]) == (ResponseCode.SUCCESS, "0 0 0,1,2")


def test_a_reset_frees_a_queue_that_is_popped_in_order() -> None:
    """To where it is already: the batch that blocked it is forgotten."""
    offline = stage()
    offline.broker.groups.put(GroupConfig(group_name="g", consume_message_orderly=True))
    reset(offline, 0)
    assert pop(offline).fields["msgOffsetInfo"] == "0 0 0,1,2"
    assert pop(offline).code == ResponseCode.POLLING_TIMEOUT
    assert committed(offline) == 0
    reset(offline, 0)
    assert pop(offline).fields["msgOffsetInfo"] == "0 0 0,1,2"


def test_an_operator_makes_one_group_go_on_where_another_is(offline: OfflineBroker) -> None:
    offline.broker.offsets.commit("g", "gone", 0, 7)

    def clone(**fields: object) -> None:
        header = {"srcGroup": "g", "destGroup": "h", "offline": True, **fields}
        assert offline.ask(RequestCode.CLONE_GROUP_OFFSET, header).code == 0

    clone(topic="none")
    assert offline.broker.offsets.topics_of("h") == set()
    clone()
    assert offline.broker.offsets.topics_of("h") == {"orders"}, "a topic that is gone is left behind"
    assert dict(offline.broker.offsets.of_group("h", "orders")) == {0: 3, 1: 0}
    commit(offline, 1)
    assert committed(offline, "h") == 3
    clone(topic="orders")
    assert committed(offline, "h") == 1


def test_nobody_goes_on_under_a_name_that_no_group_can_have(offline: OfflineBroker) -> None:
    refused = offline.ask(RequestCode.CLONE_GROUP_OFFSET, {"srcGroup": "g", "destGroup": "a b", "offline": True})
    assert (refused.code, refused.remark) == (ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, "Group a b does not exist")


def test_a_connected_group_is_followed_where_it_subscribes(offline: OfflineBroker) -> None:
    offline.heartbeat("c", consumers={"g": ["more"]})
    header = {"srcGroup": "g", "destGroup": "h", "topic": "orders", "offline": False}
    offline.ask(RequestCode.CLONE_GROUP_OFFSET, header)
    assert offline.broker.offsets.topics_of("h") == set()
    offline.heartbeat("c", consumers={"g": ["orders"]})
    offline.ask(RequestCode.CLONE_GROUP_OFFSET, header)
    assert offline.broker.offsets.topics_of("h") == {"orders"}


def test_members_are_told_themselves_where_the_broker_does_not_keep_resets() -> None:
    offline = stage({"use_server_side_reset_offset": False})
    java, cpp = OfflineConnection(), OfflineConnection()
    refused = reset(offline, 0)
    assert refused.code == ResponseCode.CONSUMER_NOT_ONLINE
    assert refused.remark == "Consumer not online, so can not reset offset, Group: g Topic: orders Timestamp: 0"
    offline.heartbeat("java", consumers={"g": ["orders"]}, connection=java)
    body = b'{"clientID":"cpp","consumerDataSet":[{"groupName":"g"}]}'
    offline.handlers[RequestCode.HEART_BEAT](
        Command(RequestCode.HEART_BEAT, 1, language=LanguageCode.CPP, body=body), cpp
    )
    offline.clock.run_soon()
    second_ms = offline.stored("orders")[1].stored_ms
    assert offsets(reset(offline, second_ms)) == {0: 1, 1: 0}
    fields = {"topic": "orders", "group": "g", "timestamp": str(second_ms), "isForce": "true"}
    for connection in (java, cpp):
        assert connection.told[-1] == (RequestCode.RESET_CONSUMER_CLIENT_OFFSET, fields)
    queue = {"topic": "orders", "brokerName": "broker-a"}
    assert json.parse(cpp.bodies[-1]) == {
        "offsetTable": [{**queue, "queueId": 0, "offset": 1}, {**queue, "queueId": 1, "offset": 0}]
    }
    assert java.bodies[-1] == (
        b'{"offsetTable":{{"topic":"orders","brokerName":"broker-a","queueId":0}:1,'
        b'{"topic":"orders","brokerName":"broker-a","queueId":1}:0}}'
    )
    assert committed(offline) == 3, "the members commit it"


def test_without_force_no_member_goes_forwards() -> None:
    offline = stage({"use_server_side_reset_offset": False})
    offline.heartbeat("c", consumers={"g": ["orders"]})
    commit(offline, 1)
    assert offsets(reset(offline, -1, isForce=False)) == {0: 1, 1: 0}
    assert offsets(reset(offline, 0, isForce=False)) == {0: 0, 1: 0}
    assert offsets(reset(offline, -1)) == {0: 3, 1: 0}


def test_members_cannot_be_sent_where_the_group_never_was() -> None:
    offline = stage({"use_server_side_reset_offset": False})
    offline.heartbeat("c", consumers={"h": ["orders"]})
    refused = reset(offline, 0, group="h")
    assert (refused.code, refused.remark) == (ResponseCode.SYSTEM_ERROR, "THe consumer group <h> not exist")
    refused = reset(offline, 0, topic="none")
    assert refused.code == ResponseCode.TOPIC_NOT_EXIST
    assert refused.remark == "[reset-offset] reset offset failed, no topic in this broker. topic=none"
