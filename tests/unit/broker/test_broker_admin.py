"""What operators do over Remoting: topics, groups, settings, state, clean-ups. Apache's own answers are in
test_broker_conversation.py."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest

from saturnmq.broker.settings import CHANGEABLE
from saturnmq.disk.simulated import Operation
from saturnmq.kernel.configfile import parse_properties
from saturnmq.kernel.errors import ServiceUnavailable
from saturnmq.kernel.topic import UNIT_SUBSCRIPTION, DataVersion, GroupConfig, MessageQueue, TopicConfig
from saturnmq.testing.clock import InlineBackground
from saturnmq.testing.offline import Asked, OfflineBroker, OfflineConnection
from saturnmq.wire.record import decode as decode_record
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.json import parse

HOUR_MS = 3_600_000


def topic_fields(name: str, **more: object) -> dict[str, object]:
    fields = {
        "topic": name, "defaultTopic": "TBW102", "readQueueNums": 4, "writeQueueNums": 4, "perm": 6,
        "topicFilterType": "SINGLE_TAG", "topicSysFlag": 0, "order": False,
    }  # fmt: skip
    return {**fields, **more}


def body(offline: OfflineBroker, code: int, **fields: object) -> Any:
    """What the answer holds; it is a success."""
    answer = offline.ask(code, fields)
    assert (answer.code, answer.remark) == (0, "")
    return parse(answer.body)


# ------------------------------------------------------------------------------------------------------ topics


def test_a_topic_grows_shrinks_and_changes_and_an_update_that_changes_nothing_leaves_no_trace() -> None:
    offline = OfflineBroker()
    told: list[TopicConfig] = []
    offline.broker.topics.on_change = told.append
    put = RequestCode.UPDATE_AND_CREATE_TOPIC
    for fields in (
        {},
        {"readQueueNums": 8, "writeQueueNums": 8, "perm": 4, "order": True},
        {"readQueueNums": 8, "writeQueueNums": 2, "perm": 6, "topicSysFlag": 2, "topicFilterType": "MULTI_TAG"},
    ):
        assert offline.ask(put, topic_fields("t", **fields)).code == 0
        changes = offline.broker.topics.version.counter
        assert offline.ask(put, topic_fields("t", **fields)).code == 0
        assert offline.broker.topics.version.counter == changes
    assert len(told) == 3
    assert body(offline, RequestCode.GET_TOPIC_CONFIG, topic="t") == {
        "topicName": "t", "readQueueNums": 8, "writeQueueNums": 2, "perm": 6, "topicFilterType": "MULTI_TAG",
        "topicSysFlag": 2, "order": False, "attributes": {},
    }  # fmt: skip
    assert offline.restart().broker.topics.get("t") == told[-1]


def test_attributes_change_one_by_one() -> None:
    offline = OfflineBroker()
    for changes, left in (
        ("+message.type=FIFO", {"message.type": "FIFO"}),
        ("+reserve.time=-1", {"message.type": "FIFO", "reserve.time": "-1"}),
        ("", {"message.type": "FIFO", "reserve.time": "-1"}),
        ("-reserve.time,+message.type=DELAY", {"message.type": "DELAY"}),
    ):
        assert offline.ask(RequestCode.UPDATE_AND_CREATE_TOPIC, topic_fields("t", attributes=changes)).code == 0
        assert body(offline, RequestCode.GET_TOPIC_CONFIG, topic="t")["attributes"] == left
    refused = offline.ask(RequestCode.UPDATE_AND_CREATE_TOPIC, topic_fields("t", attributes="+reserve.time=soon"))
    assert "reserve.time takes whole numbers from -1 on, not 'soon'" in refused.remark


def test_mixed_topics_are_for_those_who_ask_for_them() -> None:
    for settings in ({"enable_mixed_message_type": True}, {"dev_auto_create": True}):
        offline = OfflineBroker(settings=settings)
        fields = topic_fields("t", attributes="+message.type=MIXED")
        assert offline.ask(RequestCode.UPDATE_AND_CREATE_TOPIC, fields).code == 0


def test_topics_that_come_together_are_made_all_or_none() -> None:
    offline = OfflineBroker()
    offline.broker.topics.put(TopicConfig(topic_name="same"))

    def put(*topics: dict[str, object]) -> int:
        data = json.dumps({"topicConfigList": topics}).encode()
        return offline.ask(RequestCode.UPDATE_AND_CREATE_TOPIC_LIST, body=data).code

    assert put({"topicName": "a"}, {"topicName": "b c"}) == ResponseCode.INVALID_PARAMETER
    assert put({"topicName": "a"}, {"topicName": "b", "attributes": {"+x": "y"}}) == ResponseCode.SYSTEM_ERROR
    assert offline.broker.topics.get("a") is None
    assert put({"topicName": "same"}, {"topicName": "a", "attributes": {"+message.type": "FIFO"}}) == 0
    topic = offline.broker.topics.get("a")
    assert topic is not None
    assert (topic.attributes, topic.write_queue_nums) == ({"message.type": "FIFO"}, 16)


def test_static_topics_are_refused() -> None:
    answer = OfflineBroker().ask(RequestCode.UPDATE_AND_CREATE_STATIC_TOPIC, topic_fields("t"))
    assert (answer.code, "static topics" in answer.remark) == (ResponseCode.REQUEST_CODE_NOT_SUPPORTED, True)


def test_all_topics_come_in_pages() -> None:
    offline = OfflineBroker(settings={"split_metadata_size": 7})
    for number in range(5):
        offline.broker.topics.put(TopicConfig(topic_name=f"t{number}"))
    code, names = RequestCode.GET_ALL_TOPIC_CONFIG, sorted(offline.broker.topics.configs)
    everything = body(offline, code)
    assert sorted(everything["topicConfigTable"]) == names
    version = json.dumps(everything["dataVersion"])
    pages: list[str] = []
    while len(pages) < len(names):
        page = offline.ask(code, {"topicSeq": len(pages), "dataVersion": version, "maxTopicNum": 100})
        assert page.fields == {"totalTopicNum": str(len(names))}
        table = parse(page.body)["topicConfigTable"]
        assert len(table) == min(7, len(names) - len(pages))
        pages += table
    assert pages == names
    assert list(body(offline, code, topicSeq=4, maxTopicNum=2)["topicConfigTable"]) == names[:2], "no version"
    changed = json.dumps({**everything["dataVersion"], "counter": 99})
    assert list(body(offline, code, topicSeq=4, dataVersion=changed, maxTopicNum=2)["topicConfigTable"]) == names[:2]
    assert body(offline, code, topicSeq=99, dataVersion=version)["topicConfigTable"] == {}
    assert offline.ask(code, {"topicSeq": 0, "dataVersion": "?"}).code == ResponseCode.INVALID_PARAMETER


def test_where_the_queues_of_a_topic_are() -> None:
    offline = OfflineBroker()
    offline.send("orders", queue_id=1)
    offline.clock.advance(5)
    offline.send("orders", queue_id=1)
    second_ms = offline.clock.now_ms()
    offline.clock.advance(10_000)
    answer = body(offline, RequestCode.GET_TOPIC_STATS_INFO, topic="orders")
    empty = {"minOffset": 0, "maxOffset": 0, "lastUpdateTimestamp": 0}
    queues = {MessageQueue("orders", "broker-a", queue_id): empty for queue_id in range(4)}
    filled = {MessageQueue("orders", "broker-a", 1): {**empty, "maxOffset": 2, "lastUpdateTimestamp": second_ms}}
    assert answer == {"offsetTable": {**queues, **filled}, "topicPutTps": 0.2}
    assert offline.ask(RequestCode.GET_TOPIC_STATS_INFO, {"topic": "x"}).code == ResponseCode.TOPIC_NOT_EXIST


def test_a_deleted_topic_is_gone_with_its_messages_offsets_and_retries() -> None:
    offline = OfflineBroker()
    for topic in ("orders", "other", "%RETRY%g_orders", "%RETRY%g+orders"):
        offline.broker.topics.put(TopicConfig(topic_name=topic, read_queue_nums=4, write_queue_nums=4))
        offline.send(topic)
    for topic in ("orders", "other", "%RETRY%g_orders"):
        offline.broker.offsets.commit("g", topic, 0, 1)
    offline.clock.advance(10_000)
    assert offline.ask(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": "orders"}).code == 0
    assert offline.broker.offsets.topics_of("g") == {"other"}
    for path in ("topics.json", "consumerOffset.json"):
        assert b"orders" not in offline.disk.read_file(f"config/{path}"), "durable when it is answered"
    assert {topic for topic in offline.store.topics() if not topic.startswith("rmq_sys_")} == {"other"}
    assert not [topic for topic in offline.broker.topics.configs if "orders" in topic]
    again = offline.restart()
    assert again.broker.topics.get("orders") is None
    assert again.send("orders").fields["queueOffset"] == "0"
    assert again.ask(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": "never there"}).code == 0


def pop(offline: OfflineBroker, *, fifo: bool = False, most: int = 32) -> Asked:
    fields = {
        "consumerGroup": "g", "topic": "orders", "queueId": -1, "maxMsgNums": most, "invisibleTime": 60_000,
        "pollTime": 0, "bornTime": 0, "initMode": 0, "order": fifo,
    }  # fmt: skip
    return offline.ask(RequestCode.POP_MESSAGE, fields)


def bodies(popped: Asked) -> list[bytes]:
    offset, found = 0, []
    while offset < len(popped.body):
        size = int.from_bytes(popped.body[offset : offset + 4], "big")
        found.append(decode_record(popped.body[offset : offset + size]).body)
        offset += size
    return found


@pytest.mark.parametrize("fifo", [False, True])
@pytest.mark.parametrize("restart", [False, True])
def test_messages_in_flight_of_a_deleted_topic_are_not_those_of_a_new_one(fifo: bool, restart: bool) -> None:
    """Each message of the new one has the offset of an old one."""
    offline = OfflineBroker()
    for _ in range(5):
        offline.send("orders", b"old")
    offline.send("others")
    assert bodies(pop(offline, fifo=fifo, most=3)) == [b"old"] * 3
    offline.clock.advance(1000)
    assert offline.ask(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": "orders"}).code == 0
    assert offline.broker.pops.leases.in_flight == 0
    for _ in range(2):
        offline.send("orders", b"new")
    offline.clock.advance(1000)
    if restart:
        offline = offline.restart()
    assert bodies(pop(offline, fifo=fifo)) == [b"new"] * 2
    assert offline.broker.pops.leases.in_flight == 2
    offline = offline.restart()
    assert (bodies(pop(offline, fifo=fifo)), offline.broker.pops.leases.in_flight) == ([], 2)
    offline.clock.advance(60_000)
    assert bodies(pop(offline, fifo=fifo)) == [b"new"] * 2


def test_leases_that_come_back_for_a_second_time_do_not_when_their_retry_topic_is_deleted() -> None:
    offline = OfflineBroker()
    offline.send("orders", b"first")
    pop(offline)
    offline.clock.advance(60_000)
    assert bodies(pop(offline)) == [b"first"]
    assert offline.ask(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": "%RETRY%g_orders"}).code == 0
    offline.send("orders", b"second")
    assert bodies(pop(offline)) == [b"second"]
    offline.clock.advance(60_000)
    assert bodies(pop(offline)) == [b"second"]
    again = offline.broker.pops.leases.find("g", "%RETRY%g_orders", 0)
    assert again is not None
    assert list(again.leases) == [0]


def test_a_topic_is_deleted_while_the_end_of_a_lease_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    offline = OfflineBroker()
    offline.send("orders", b"old")
    pop(offline)

    def fails(messages: object, **how: bool) -> None:
        raise ServiceUnavailable("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(offline.store, "append", fails)
        offline.clock.advance(60_000)
    assert offline.ask(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": "orders"}).code == 0
    offline.send("orders", b"new")
    offline.clock.advance(10_000)
    assert offline.broker.pops.leases.in_flight == 0
    assert bodies(pop(offline)) == [b"new"]


@pytest.mark.parametrize("at", ["pop", "slow pop", "end of the lease"])
def test_a_topic_is_deleted_and_made_again_while_its_messages_are_read_for_a_group(
    at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = OfflineBroker()
    pop(offline)
    offline.send("orders", b"old")
    if at == "end of the lease":
        pop(offline)
    offline.clock.advance(59_999)
    offline.disk.cold.update(path for path in offline.disk.names if path.startswith("commitlog"))
    begun: list[tuple[Any, ...]] = []
    with monkeypatch.context() as patched:
        patched.setattr(InlineBackground, "run", lambda *work: begun.append(work))
        if at == "end of the lease":
            offline.clock.advance(1)
        else:
            popped = pop(offline)
            assert popped.waits
        read = begun[0]
        deleted = offline.ask(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": "orders"})
    if at == "slow pop":
        begun.append(begun.pop(0))
    for background, work, done, failed in begun:
        if at == "slow pop" and work is read[1]:
            offline.send("orders", b"new")
        background.run(work, done, failed)
        offline.clock.run_soon()
    assert deleted.code == 0
    if at == "slow pop":
        assert bodies(popped) == [b"new"]
        return
    assert offline.broker.pops.leases.in_flight == 0
    if at == "pop":
        assert popped.code == ResponseCode.TOPIC_NOT_EXIST
    assert [topic for topic in offline.store.topics() if "orders" in topic] == []
    offline.send("orders", b"new")
    assert bodies(pop(offline)) == [b"new"]


@pytest.mark.parametrize("topic", ["TBW102", "broker-a", "rmq_sys_x", "DefaultCluster_REPLY_TOPIC", " "])
def test_the_brokers_own_topics_are_not_deleted(topic: str) -> None:
    offline = OfflineBroker()
    answer = offline.ask(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": topic})
    assert answer.code == ResponseCode.INVALID_PARAMETER


def test_topics_and_groups_that_are_deleted_together() -> None:
    """As brokers after Apache's 5.5.0 do."""
    offline = OfflineBroker(settings={"auto_create_subscription_group": False})
    for name in ("a", "b", "c"):
        offline.send(name)
        offline.broker.groups.put(GroupConfig(group_name=name))
        offline.broker.offsets.commit(name, "c", 0, 1)

    def delete(code: RequestCode, **fields: object) -> int:
        return offline.ask(code, body=json.dumps(fields).encode()).code

    assert delete(RequestCode.DELETE_TOPIC_IN_BROKER_LIST, topicList=["a", "TBW102"]) == ResponseCode.INVALID_PARAMETER
    assert offline.broker.topics.get("a") is not None
    assert delete(RequestCode.DELETE_TOPIC_IN_BROKER_LIST, topicList=["a", "b", "x"]) == 0
    assert [offline.store.queues(name) for name in ("a", "b", "c")] == [[], [], [0]]
    assert delete(RequestCode.DELETE_SUBSCRIPTION_GROUP_LIST, groupNameList=["a", "x"], cleanOffset=True) == 0
    assert delete(RequestCode.DELETE_SUBSCRIPTION_GROUP_LIST, groupNameList=["b"]) == 0
    assert [offline.broker.groups.exists(name) for name in ("a", "b", "c")] == [False, False, True]
    assert offline.broker.offsets.groups_of("c") == {"b", "c"}


def test_what_no_topic_knows_is_cleaned_up() -> None:
    offline = OfflineBroker()
    offline.send("orders")
    offline.send("lost")
    offline.clock.advance(10_000)
    offline.broker.topics.delete("lost")
    assert offline.ask(RequestCode.CLEAN_UNUSED_TOPIC).code == 0
    assert offline.store.topics() == ["orders"]
    assert offline.ask(RequestCode.CLEAN_UNUSED_TOPIC).code == 0


# ------------------------------------------------------------------------------------------------------ groups


def test_groups_that_come_together_are_made_all_or_none() -> None:
    offline = OfflineBroker(settings={"auto_create_subscription_group": False})

    def put(*groups: dict[str, object]) -> int:
        data = json.dumps({"groupConfigList": groups}).encode()
        return offline.ask(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST, body=data).code

    assert put({"groupName": "a"}, {"groupName": "b c"}) == ResponseCode.INVALID_PARAMETER
    assert not offline.broker.groups.exists("a")
    assert put({"groupName": "a"}, {"groupName": "b", "retryMaxTimes": 3}) == 0
    assert body(offline, RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG, group="b")["retryMaxTimes"] == 3
    assert offline.ask(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body=b'{"groupName":""}').code == 29


def test_all_groups_come_in_pages_with_what_they_may_not_do() -> None:
    offline = OfflineBroker()
    offline.broker.groups.forbid("CID_ONSAPI_OWNER", "t", readable=False)
    offline.broker.groups.forbid("TOOLS_CONSUMER", "t", readable=False)
    code, names = RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG, sorted(offline.broker.groups.configs)
    everything = body(offline, code)
    assert sorted(everything["subscriptionGroupTable"]) == names
    assert everything["forbiddenTable"] == {"CID_ONSAPI_OWNER": {"t": 4}, "TOOLS_CONSUMER": {"t": 4}}
    version = json.dumps(everything["dataVersion"])
    page = offline.ask(code, {"groupSeq": 1, "dataVersion": version, "maxGroupNum": 2})
    assert page.fields == {"totalGroupNum": str(len(names))}
    assert list(parse(page.body)["subscriptionGroupTable"]) == names[1:3]
    assert parse(page.body)["forbiddenTable"] == {name: {"t": 4} for name in names[1:3] if name == "CID_ONSAPI_OWNER"}


def test_a_group_is_forbidden_a_topic_and_a_restart_remembers() -> None:
    offline = OfflineBroker()
    code = RequestCode.UPDATE_AND_GET_GROUP_FORBIDDEN

    def ask(topic: str, readable: bool | None = None) -> bool:
        answer = parse(offline.ask(code, {"group": "g", "topic": topic, "readable": readable}).body)
        assert (answer["group"], answer["topic"]) == ("g", topic)
        return bool(answer["readable"])

    assert ask("a")
    assert not ask("a", readable=False)
    assert not ask("b", readable=False)
    offline.send("a")
    offline.heartbeat("c", consumers={"g": ["a"]})
    refused = offline.pull("g", "a", 0, sysFlag=0)
    assert (refused.code, "forbidden" in refused.remark) == (ResponseCode.NO_PERMISSION, True)
    assert ask("b", readable=True)
    assert not ask("a"), "Apache forgets all topics of the group"
    offline = offline.restart()
    assert not ask("a")
    assert ask("a", readable=True)
    assert offline.broker.groups.forbidden == {}
    file = parse(offline.restart().disk.read_file("config/subscriptionGroup.json"))
    assert file["forbiddenTable"] == {}


def test_a_deleted_group_leaves_its_offsets_unless_they_are_to_go_too() -> None:
    offline = OfflineBroker(settings={"auto_create_subscription_group": False})
    for group in ("kept", "gone"):
        offline.broker.groups.put(GroupConfig(group_name=group))
        offline.broker.groups.forbid(group, "x", readable=False)
        offline.broker.offsets.commit(group, "orders", 0, 7)
        offline.ask(RequestCode.DELETE_SUBSCRIPTIONGROUP, {"groupName": group, "cleanOffset": group == "gone"})
        assert offline.ask(RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG, {"group": group}).code == 26
        assert offline.broker.groups.may_read(group, "x")
    assert body(offline, RequestCode.QUERY_TOPIC_CONSUME_BY_WHO, topic="orders") == {"groupList": ["kept"]}
    assert body(offline, RequestCode.QUERY_TOPICS_BY_CONSUMER, group="kept")["topicList"] == ["orders"]
    assert body(offline, RequestCode.QUERY_TOPICS_BY_CONSUMER, group="gone")["topicList"] == []
    changes = offline.broker.groups.version.counter
    assert offline.ask(RequestCode.DELETE_SUBSCRIPTIONGROUP, {"groupName": "never there"}).code == 0
    assert offline.broker.groups.version.counter == changes


def test_who_consumes_a_topic_or_did() -> None:
    offline = OfflineBroker()
    offline.heartbeat("c", consumers={"now": ["orders"], "other": ["bills"]})
    offline.broker.offsets.commit("before", "orders", 0, 1)
    assert body(offline, RequestCode.QUERY_TOPIC_CONSUME_BY_WHO, topic="orders") == {"groupList": ["before", "now"]}


def test_all_producers_by_group() -> None:
    offline = OfflineBroker()
    offline.heartbeat("one", producers=["p", "q"], connection=OfflineConnection("10.0.0.7:1234"))
    joined_ms = offline.clock.now_ms()
    offline.clock.advance(50)
    info = {
        "clientId": "one", "remoteIP": "/10.0.0.7:1234", "language": "PYTHON", "version": 479,
        "lastUpdateTimestamp": joined_ms,
    }  # fmt: skip
    assert body(offline, RequestCode.GET_ALL_PRODUCER_INFO) == {"data": {"p": [info], "q": [info]}}


# ---------------------------------------------------------------------------------------------------- settings


def settings(offline: OfflineBroker) -> dict[str, str]:
    answer = offline.ask(RequestCode.GET_BROKER_CONFIG)
    assert answer.code == 0
    return parse_properties(answer.body.decode())


def change(offline: OfflineBroker, text: str) -> tuple[int, str]:
    answer = offline.ask(RequestCode.UPDATE_BROKER_CONFIG, body=text.encode())
    return answer.code, answer.remark


def test_settings_are_told_in_the_form_of_the_file() -> None:
    offline = OfflineBroker(settings={"broker_name": "b-1"})
    offline.broker.settings.actual = {"listenPort": 4711}
    answer = offline.ask(RequestCode.GET_BROKER_CONFIG)
    lines = answer.body.decode().splitlines()
    assert lines == sorted(lines)
    assert {"brokerName=b-1", "autoCreateTopicEnable=true", "listenPort=4711", "brokerRole=ASYNC_MASTER"} <= {*lines}
    assert {"flushDiskType=ASYNC_FLUSH", "fileReservedTime=72", "brokerIP1="} <= {*lines}
    version = DataVersion(timestamp=offline.clock.now_ms())
    assert answer.fields == {"version": json.dumps(version_fields(version), separators=(",", ":"))}


def version_fields(version: DataVersion) -> dict[str, int]:
    return {"counter": version.counter, "stateVersion": version.state_version, "timestamp": version.timestamp}


def test_a_change_is_in_force_at_once_and_kept() -> None:
    offline = OfflineBroker()
    kept: list[dict[str, str]] = []
    offline.broker.settings.keep = lambda changes: kept.append(dict(changes))
    assert change(offline, "autoCreateTopicEnable=false\nmaxMessageSize=3\n") == (0, "")
    assert offline.send("orders").code == ResponseCode.TOPIC_NOT_EXIST
    offline.broker.topics.put(TopicConfig(topic_name="orders"))
    assert offline.send("orders", b"four").code == ResponseCode.MESSAGE_ILLEGAL
    assert (settings(offline)["autoCreateTopicEnable"], settings(offline)["maxMessageSize"]) == ("false", "3")
    assert kept == [{"autoCreateTopicEnable": "false", "maxMessageSize": "3"}]
    assert parse(offline.ask(RequestCode.GET_BROKER_CONFIG).fields["version"].encode())["counter"] == 1
    assert change(offline, "maxMessageSize=3") == (0, "")
    assert len(kept) == 1, "nothing new"


def test_the_permission_of_the_broker_is_taken_away_and_given_back() -> None:
    offline = OfflineBroker()
    offline.send("orders")
    assert change(offline, "brokerPermission=4")[0] == 0
    assert offline.send("orders").code == ResponseCode.NO_PERMISSION
    assert offline.pull("g", "orders", 0).code == 0
    assert change(offline, "brokerPermission=2")[0] == 0
    assert offline.send("orders").code == 0
    assert offline.pull("g", "orders", 0).code == ResponseCode.NO_PERMISSION
    fields = {"consumerGroup": "g", "topic": "orders", "queueId": -1, "maxMsgNums": 1, "invisibleTime": 1000}
    fields |= {"pollTime": 0, "bornTime": 0, "initMode": 0, "order": False}
    assert offline.ask(RequestCode.POP_MESSAGE, fields).code == ResponseCode.NO_PERMISSION
    assert change(offline, "brokerPermission=6")[0] == 0
    assert offline.pull("g", "orders", 0).code == 0


def test_other_settings_that_change_at_once() -> None:
    offline = OfflineBroker(store_settings={"file_reserved_time": 1000})
    text = """
        autoCreateSubscriptionGroup=false
        fileReservedTime=1
        deleteWhen=0;1;2
        diskMaxUsedSpaceRatio=80
        maxTransferCountOnMessageInMemory=2
        litePullMessageEnable=false
        maxTopicQueueNums=5
        splitMetadataSize=3
        enableMixedMessageType=true
    """
    assert change(offline, text) == (0, "")
    assert offline.broker.group_config("new") is None
    for _ in range(3):
        offline.send("orders")
    offline.broker.groups.put(GroupConfig(group_name="g"))
    assert offline.pull("g", "orders", 0).fields["nextBeginOffset"] == "2"
    assert offline.ask(RequestCode.LITE_PULL_MESSAGE, pull_fields()).code == ResponseCode.NO_PERMISSION
    many = topic_fields("t", writeQueueNums=6, attributes="+message.type=MIXED")
    assert "maxTopicQueueNums" in offline.ask(RequestCode.UPDATE_AND_CREATE_TOPIC, many).remark
    assert offline.ask(RequestCode.UPDATE_AND_CREATE_TOPIC, {**many, "writeQueueNums": 5}).code == 0
    assert len(body(offline, RequestCode.GET_ALL_TOPIC_CONFIG, topicSeq=0)["topicConfigTable"]) == 3
    assert offline.store.config.file_reserved_time == 1


def pull_fields() -> dict[str, object]:
    return {
        "consumerGroup": "g", "topic": "orders", "queueId": 0, "queueOffset": 0, "maxMsgNums": 1, "sysFlag": 4,
        "commitOffset": 0, "suspendTimeoutMillis": 0, "subVersion": 0, "subscription": "*",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "code", "remark"),
    [
        ("brokerPermission=much", ResponseCode.INVALID_PARAMETER, "brokerPermission = 'much' cannot be used"),
        ("brokerPermision=6", ResponseCode.INVALID_PARAMETER, "did you mean brokerPermission?"),
        ("deleteWhen=25", ResponseCode.INVALID_PARAMETER, "deleteWhen = '25' cannot be used"),
        ("listenPort=1\nautoCreateTopicEnable=false", ResponseCode.INVALID_PARAMETER, "listenPort: read at the start"),
        ("brokerRole=SLAVE", ResponseCode.INVALID_PARAMETER, "the broker would be alone"),
        ("configBlackList=", ResponseCode.NO_PERMISSION, "Can not update config in black list."),
        ("rocketmqHome=/", ResponseCode.NO_PERMISSION, "Can not update config in black list."),
        ("brokerConfigPath=/", ResponseCode.NO_PERMISSION, "Can not update config in black list."),
        ("traceOn=false", ResponseCode.NO_PERMISSION, "Can not update config in black list."),
    ],
)
def test_changes_that_are_refused_change_nothing(text: str, code: int, remark: str) -> None:
    offline = OfflineBroker(settings={"config_black_list": "configBlackList;brokerConfigPath;traceOn"})
    before = settings(offline)
    answer = change(offline, f"{text}\nmaxMsgsNumBatch=5")
    assert (answer[0], remark in answer[1]) == (code, True), answer
    assert settings(offline) == before


def test_settings_of_apaches_that_mean_nothing_here_do_no_harm() -> None:
    offline = OfflineBroker()
    code, remark = change(offline, "sendMessageThreadPoolNums=16\nlistenPort=10911\nmaxMsgsNumBatch=5")
    assert (code, remark) == (0, "without effect here: sendMessageThreadPoolNums")
    assert settings(offline)["maxMsgsNumBatch"] == "5"
    assert offline.ask(RequestCode.UPDATE_BROKER_CONFIG, body=b"\xff").code == ResponseCode.INVALID_PARAMETER
    assert change(offline, "") == (0, "")


def test_the_documents_say_which_settings_change_at_once() -> None:
    page = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()
    paragraph = page[page.index("These of a broker take effect at once:") :].partition("All others")[0]
    assert set(re.findall(r"`(\w+)`", paragraph)) == CHANGEABLE


def test_a_change_that_cannot_be_kept_is_in_force_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    offline = OfflineBroker()

    def keep(changes: object) -> None:
        raise OSError(errno.EROFS, "read-only", "broker.conf")

    offline.broker.settings.keep = keep
    assert change(offline, "maxMsgsNumBatch=5") == (0, "")
    assert settings(offline)["maxMsgsNumBatch"] == "5"
    assert "a restart forgets them: broker.conf: read-only" in caplog.text


def test_cleaning_is_asked_for() -> None:
    offline = OfflineBroker(store_settings={"file_reserved_time": 1, "mapped_file_size_commit_log": 2048})
    offline.disk.now_ms = offline.clock.now_ms
    for _ in range(40):
        offline.send("orders", b"x" * 200)
    offline.clock.advance(30_000)
    offline.clock.advance(2 * HOUR_MS)
    offline.send("orders")
    offline.clock.advance(30_000)
    assert offline.store.first == 0
    assert offline.ask(RequestCode.DELETE_EXPIRED_COMMITLOG).code == 0
    offline.clock.advance(5_000)
    assert offline.store.first > 0
    assert offline.ask(RequestCode.CLEAN_EXPIRED_CONSUMEQUEUE).code == 0


def test_cleaning_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    offline = OfflineBroker()
    offline.store.stop()
    offline.clock.run_soon()
    assert offline.ask(RequestCode.DELETE_EXPIRED_COMMITLOG).code == 0
    assert offline.ask(RequestCode.CLEAN_EXPIRED_CONSUMEQUEUE).code == ResponseCode.SERVICE_NOT_AVAILABLE


def test_how_far_delay_levels_are() -> None:
    offline = OfflineBroker()
    offline.send("orders", DELAY="2")
    offline.send("orders", DELAY="2")
    offline.clock.advance(6_000)
    assert body(offline, RequestCode.GET_ALL_DELAY_OFFSET)["offsetTable"]["2"] == 2
    assert runtime(offline)["scheduleMessageOffset_2"] == "2,2"


# ----------------------------------------------------------------------------------------- state and statistics


def runtime(offline: OfflineBroker) -> dict[str, str]:
    table: dict[str, str] = body(offline, RequestCode.GET_BROKER_RUNTIME_INFO)["table"]
    return table


def test_the_state_of_a_broker() -> None:
    offline = OfflineBroker()
    offline.disk.spaces[""] = (30 << 30, 70 << 30)
    boot_ms = offline.clock.now_ms()
    offline.clock.advance(5_000)
    first_ms = offline.clock.now_ms()
    for _ in range(20):
        offline.send("orders", b"x")
    offline.pull("g", "orders", 0)
    offline.pull("g", "orders", 20)
    offline.clock.advance(10_000)
    table = runtime(offline)
    assert table["bootTimestamp"] == str(boot_ms)
    assert table["runtime"] == "[ 0 days, 0 hours, 0 minutes, 15 seconds ]"
    assert table["earliestMessageTimeStamp"] == str(first_ms)
    assert (table["putMessageTimesTotal"], table["putMessageFailedTimes"]) == ("20", "0")
    assert table["putMessageSizeTotal"] == table["commitLogMaxOffset"] == str(offline.store.end)
    assert float(table["putMessageAverageSize"]) == offline.store.end / 20
    assert table["putTps"] == "2.0 2.0 2.0"
    assert table["getTransferredTps"] == "2.0 2.0 2.0"
    assert table["getFoundTps"] == "0.1 0.1 0.1"
    assert float(table["getTotalTps"].split()[0]) > 0.1
    assert (table["msgPutTotalTodayNow"], table["msgGetTotalTodayNow"]) == ("20", "20")
    assert (table["commitLogMinOffset"], table["dispatchBehindBytes"], table["remainHowManyDataToFlush"]) == (
        "0", "0", "0 B",
    )  # fmt: skip
    assert table["commitLogDirCapacity"] == "Total : 100.0 GiB, Free : 70.0 GiB."
    assert (table["consumeQueueDiskRatio"], float(table["commitLogDiskRatio"])) == ("0.3", 0.0)
    assert table["brokerVersionDesc"] == "V5_3_3"


def test_the_state_of_an_empty_broker() -> None:
    table = runtime(OfflineBroker())
    assert (table["commitLogMinOffset"], table["commitLogMaxOffset"]) == ("-1", "0")
    assert (table["earliestMessageTimeStamp"], table["putTps"], table["putMessageAverageSize"]) == (
        "-1", "0.0 0.0 0.0", "0.0",
    )  # fmt: skip


def test_the_oldest_message_may_be_on_the_disk_only() -> None:
    offline = OfflineBroker()
    offline.send("orders")
    offline.clock.advance(10_000)
    offline.disk.cold.update(offline.disk.names)
    assert int(runtime(offline)["earliestMessageTimeStamp"]) > 0


def test_yesterday_and_today() -> None:
    offline = OfflineBroker()
    for _ in range(3):
        offline.send("orders")
        offline.clock.advance(24 * HOUR_MS)
    offline.send("orders")
    table = runtime(offline)
    keys = ("msgPutTotalYesterdayMorning", "msgPutTotalTodayMorning", "msgPutTotalTodayNow")
    assert [table[key] for key in keys] == ["2", "3", "4"]


def statistic(offline: OfflineBroker, name: str, key: str) -> dict[str, dict[str, float]]:
    answer: dict[str, dict[str, float]] = body(
        offline, RequestCode.VIEW_BROKER_STATS_DATA, statsName=name, statsKey=key
    )
    return answer


def test_statistics_of_the_last_minute_hour_and_day() -> None:
    offline = OfflineBroker()
    for minute in range(100):
        offline.send("orders", b"x")
        if minute % 10 == 0:
            offline.pull("g", "orders", minute)
        offline.clock.advance(60_000)
    minutes = statistic(offline, "TOPIC_PUT_NUMS", "orders")
    assert minutes["statsMinute"] == {"sum": 1, "tps": 1 / 60, "avgpt": 1.0}
    assert minutes["statsHour"]["sum"] in (60, 70)
    assert minutes["statsHour"]["tps"] == pytest.approx(1 / 60)
    assert minutes["statsDay"] == {"sum": 100, "tps": 1 / 60, "avgpt": 1.0}
    size = statistic(offline, "TOPIC_PUT_SIZE", "orders")
    assert size["statsDay"]["avgpt"] == offline.store.end / 100 == size["statsMinute"]["sum"]
    assert statistic(offline, "GROUP_GET_NUMS", "orders@g")["statsDay"]["sum"] == 10
    assert statistic(offline, "GROUP_GET_SIZE", "orders@g")["statsDay"]["avgpt"] == offline.store.end / 100
    assert statistic(offline, "BROKER_PUT_NUMS", "DefaultCluster")["statsDay"]["sum"] == 100
    assert statistic(offline, "BROKER_GET_NUMS", "DefaultCluster")["statsDay"]["sum"] == 10
    offline.clock.advance(26 * HOUR_MS)
    rest = statistic(offline, "TOPIC_PUT_NUMS", "orders")
    assert [rest[window] for window in rest] == [{"sum": 0, "tps": 0.0, "avgpt": 0.0}] * 3


def test_how_long_reads_for_a_group_take() -> None:
    offline = OfflineBroker()
    offline.send("orders", queue_id=2)
    offline.clock.advance(10_000)
    assert offline.pull("g", "orders", 0, queue_id=2).fields["nextBeginOffset"] == "1"
    offline.disk.cold.update(offline.disk.names)
    run, offline.store._background.run = offline.store._background.run, lambda *job: slow.append(job)  # type: ignore
    slow: list[Any] = []
    pull = offline.pull("g", "orders", 0, queue_id=2)
    offline.clock.advance(30)
    assert pull.waits
    run(*slow[0])
    offline.clock.advance(10_000)
    assert not pull.waits
    minute = statistic(offline, "GROUP_GET_LATENCY", "2@orders@g")["statsMinute"]
    assert (minute["sum"], minute["avgpt"]) == (30, 15.0)


def test_statistics_that_are_not_there() -> None:
    offline = OfflineBroker()
    for name, key in (("TOPIC_PUT_NUMS", "orders"), ("NO_SUCH", "orders"), ("GROUP_GET_NUMS", "orders")):
        answer = offline.ask(RequestCode.VIEW_BROKER_STATS_DATA, {"statsName": name, "statsKey": key})
        assert (answer.code, answer.remark) == (ResponseCode.SYSTEM_ERROR, f"The stats <{name}> <{key}> not exist")


def test_what_was_sent_back_is_counted_by_topic_and_group() -> None:
    offline = OfflineBroker()
    offline.send("orders")
    fields = {"offset": 0, "group": "g", "delayLevel": 0}
    assert offline.ask(RequestCode.CONSUMER_SEND_MSG_BACK, fields).code == 0
    offline.clock.advance(10_000)
    assert statistic(offline, "SNDBCK_PUT_NUMS", "orders@g")["statsMinute"]["sum"] == 1


def test_what_a_unit_sends_back_goes_to_a_retry_topic_of_units() -> None:
    offline = OfflineBroker()
    offline.send("orders")
    fields = {"offset": 0, "group": "g", "delayLevel": 0, "unitMode": "true"}
    assert offline.ask(RequestCode.CONSUMER_SEND_MSG_BACK, fields).code == 0
    retry = offline.broker.topics.get("%RETRY%g")
    assert retry is not None
    assert retry.topic_sys_flag == UNIT_SUBSCRIPTION


def test_statistics_of_what_is_deleted_go_and_the_brokers_own_stay() -> None:
    offline = OfflineBroker()
    for topic in ("orders", "bills"):
        for _ in range(3):
            offline.send(topic)
        offline.pull("g", topic, 0)
        offline.pull("h", topic, 0)
    offline.clock.advance(10_000)
    offline.ask(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": "orders"})
    offline.ask(RequestCode.DELETE_SUBSCRIPTIONGROUP, {"groupName": "g"})
    rates = offline.broker.stats.rates
    assert [rates("TOPIC_PUT_NUMS", topic) is None for topic in ("orders", "bills")] == [True, False]
    assert [rates("GROUP_GET_NUMS", key) is None for key in ("orders@h", "bills@g", "bills@h")] == [True, True, False]
    assert statistic(offline, "BROKER_PUT_NUMS", "DefaultCluster")["statsMinute"]["sum"] == 6
    offline.send("orders")
    offline.clock.advance(10_000)
    assert statistic(offline, "TOPIC_PUT_NUMS", "orders")["statsMinute"]["sum"] == 1 + 3, "of the last minute"
    assert statistic(offline, "BROKER_PUT_NUMS", "DefaultCluster")["statsMinute"]["sum"] == 7
    assert runtime(offline)["msgPutTotalTodayNow"] == "7"


def test_a_disk_that_refuses_does_not_delete_half_a_topic() -> None:
    offline = OfflineBroker()
    offline.send("orders")
    offline.clock.advance(10_000)
    offline.disk.faults[Operation.CREATE, "config/deletedTopics"] = errno.ENOSPC
    answer = offline.ask(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": "orders"})
    assert (answer.code, "deletedTopics" in answer.remark) == (ResponseCode.SERVICE_NOT_AVAILABLE, True)
    offline.disk.faults.clear()
    assert offline.ask(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": "orders"}).code == 0
    assert offline.store.queues("orders") == []
