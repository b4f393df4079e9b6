"""Topics, groups and offsets: rules and files."""

from __future__ import annotations

import errno

import pytest

from saturnmq.disk.simulated import Operation
from saturnmq.kernel.later import Later
from saturnmq.kernel.ports import BrokerPort
from saturnmq.kernel.topic import GroupConfig, TopicConfig
from saturnmq.testing.offline import OfflineBroker
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode


def topic_fields(name: str, **more: object) -> dict[str, object]:
    fields = {
        "topic": name, "defaultTopic": "TBW102", "readQueueNums": 4, "writeQueueNums": 4, "perm": 6,
        "topicFilterType": "SINGLE_TAG", "topicSysFlag": 0, "order": False,
    }  # fmt: skip
    return {**fields, **more}


def test_a_broker_has_its_system_topics_and_groups() -> None:
    broker = OfflineBroker().broker
    topics = broker.topics.configs
    assert (topics["TBW102"].write_queue_nums, topics["TBW102"].perm) == (8, 7)
    assert (topics["DefaultCluster"].write_queue_nums, topics["DefaultCluster"].perm) == (16, 7)
    assert (topics["broker-a"].write_queue_nums, topics["broker-a"].perm) == (1, 7)
    assert topics["SCHEDULE_TOPIC_XXXX"].write_queue_nums == 18
    assert topics["rmq_sys_REVIVE_LOG_DefaultCluster"].write_queue_nums == 8
    assert topics["rmq_sys_SYNC_BROKER_MEMBER_broker-a"].perm == 1
    assert topics["DefaultCluster_REPLY_TOPIC"].write_queue_nums == 1
    assert "RMQ_SYS_TRACE_TOPIC" not in topics
    assert broker.groups.exists("TOOLS_CONSUMER")
    assert broker.topics.is_system("broker-a")
    assert not broker.topics.is_system("orders")


def test_a_broker_is_what_the_proxy_asks_of_one() -> None:
    port: BrokerPort = OfflineBroker().broker
    assert port.name == "broker-a"


def test_without_auto_creation_there_is_no_template() -> None:
    offline = OfflineBroker(settings={"auto_create_topic_enable": False})
    assert offline.broker.topics.get("TBW102") is None
    assert offline.send("orders").code == ResponseCode.TOPIC_NOT_EXIST


def test_a_template_from_an_older_file_makes_nothing_when_auto_creation_is_off() -> None:
    first = OfflineBroker()
    first.broker.topics.put(TopicConfig(topic_name="any"))  # so that the file is written
    first.clock.run_soon()
    first.stop()
    second = OfflineBroker(first.disk, first.clock, settings={"auto_create_topic_enable": False})
    assert second.broker.topics.get("TBW102") is not None
    assert second.send("orders").code == ResponseCode.TOPIC_NOT_EXIST


def test_the_first_send_creates_a_topic_with_the_queues_that_the_client_wants_and_the_template_allows() -> None:
    offline = OfflineBroker()
    assert offline.send("few", header={"d": 4}).code == 0
    assert offline.send("many", header={"d": 100}).code == 0
    assert offline.broker.topics.get("few") == TopicConfig(topic_name="few", read_queue_nums=4, write_queue_nums=4)
    assert offline.broker.topics.get("many") == TopicConfig(topic_name="many", read_queue_nums=8, write_queue_nums=8)
    unknown = offline.send("other", header={"c": "no-such-template"})
    assert unknown.code == ResponseCode.TOPIC_NOT_EXIST
    assert "other" in unknown.remark
    offline.broker.topics.put(TopicConfig(topic_name="closed"))
    assert offline.send("other", header={"c": "closed"}).code == ResponseCode.TOPIC_NOT_EXIST


def test_dev_creates_whatever_is_named_as_mixed() -> None:
    offline = OfflineBroker(
        settings={"dev_auto_create": True, "auto_create_topic_enable": False, "auto_create_subscription_group": False}
    )
    assert offline.send("a").code == 0
    assert offline.pull("g", "b", 0).code == ResponseCode.PULL_NOT_FOUND
    for name in ("a", "b", "c"):
        config = offline.broker.topic_config(name)
        assert config is not None
        assert config.attributes == {"message.type": "MIXED"}
    assert offline.broker.groups.exists("g")
    assert offline.broker.topic_config("%DLQ%g") is None, "dead letters are not an application's topic"
    assert offline.broker.topic_config("a b") is None


def test_create_topic() -> None:
    offline = OfflineBroker()
    fields = topic_fields("orders", attributes="+message.type=FIFO,+cleanup.policy=DELETE", order=True)
    assert offline.ask(RequestCode.UPDATE_AND_CREATE_TOPIC, fields).code == 0
    topic = offline.broker.topics.get("orders")
    assert topic is not None
    assert (topic.attributes, topic.order) == ({"message.type": "FIFO", "cleanup.policy": "DELETE"}, True)

    change = topic_fields("orders", attributes="+message.type=NORMAL", writeQueueNums=16)
    assert offline.ask(RequestCode.UPDATE_AND_CREATE_TOPIC, change).code == 0
    topic = offline.broker.topics.get("orders")
    assert topic is not None
    assert topic.attributes == {"message.type": "NORMAL", "cleanup.policy": "DELETE"}
    assert topic.write_queue_nums == 16

    read = offline.ask(RequestCode.GET_TOPIC_CONFIG, {"topic": "orders"})
    assert json.parse(read.body)["attributes"] == topic.attributes
    missing = offline.ask(RequestCode.GET_TOPIC_CONFIG, {"topic": "nothing"})
    assert missing.code == ResponseCode.TOPIC_NOT_EXIST


@pytest.mark.parametrize(
    ("fields", "code", "remark"),
    [
        (topic_fields("a b"), 29, "a b"),
        (topic_fields(" "), 29, "empty"),
        (topic_fields("t" * 128), 29, "the limit is 127"),
        (topic_fields("%RETRY%" + "t" * 249), 29, "the limit is 255"),
        (topic_fields("TBW102"), 29, "conflict with system topic"),
        (topic_fields("broker-a"), 29, "conflict with system topic"),
        (topic_fields("CHECKPOINT_TOPIC"), 29, "conflict with system topic"),
        (topic_fields("t", readQueueNums=0), 29, "at least one queue"),
        (topic_fields("t", perm=16), 29, "perm 16"),
        (topic_fields("t", attributes="+message.type=MIXED"), 29, "MIXED message type is not supported"),
        (topic_fields("t", attributes="message.type=FIFO"), 1, "begin with + or -"),
        (topic_fields("t", attributes="+message.type=SOMETHING"), 1, "SOMETHING"),
        (topic_fields("t", attributes="+message.type=FIFO,+message.type=NORMAL"), 1, "named twice"),
        (topic_fields("t", attributes="-message.type"), 1, "only add attribute is supported while creating"),
        (topic_fields("t", attributes="+colour=red"), 1, "unsupported key: colour"),
        (topic_fields("old", attributes="+cleanup.policy=COMPACTION"), 1, "unchangeable"),
        (topic_fields("old", attributes="-message.type"), 1, "nonexistent"),
    ],
)
def test_create_topic_refusals(fields: dict[str, object], code: int, remark: str) -> None:
    offline = OfflineBroker()
    offline.broker.topics.put(TopicConfig(topic_name="old"))
    response = offline.ask(RequestCode.UPDATE_AND_CREATE_TOPIC, fields)
    assert response.code == code
    assert remark in response.remark
    assert offline.broker.topics.get("t") is None


def test_create_group() -> None:
    offline = OfflineBroker(settings={"auto_create_subscription_group": False})
    assert offline.broker.group_config("g") is None
    body = b'{"groupName":"g","retryMaxTimes":3,"consumeMessageOrderly":true,"groupRetryPolicy":{"type":"CUSTOMIZED"}}'
    assert offline.ask(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body=body).code == 0
    group = offline.broker.group_config("g")
    assert group is not None
    assert (group.retry_max_times, group.consume_message_orderly, group.retry_queue_nums) == (3, True, 1)
    read = offline.ask(RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG, {"group": "g"})
    assert json.parse(read.body)["retryMaxTimes"] == 3
    missing = offline.ask(RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG, {"group": "h"})
    assert missing.code == ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST
    broken = offline.ask(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body=b'{"groupName":"a b"}')
    assert broken.code == ResponseCode.INVALID_PARAMETER


def test_groups_are_created_on_demand_when_that_is_on() -> None:
    offline = OfflineBroker()
    assert offline.broker.group_config("g") == GroupConfig(group_name="g")
    assert offline.broker.group_config("a b") is None
    assert not offline.broker.groups.exists("h"), "asking whether it exists creates nothing"


def test_a_restart_keeps_topics_groups_and_offsets() -> None:
    offline = OfflineBroker()
    offline.send("orders", header={"d": 2})
    offline.broker.groups.put(GroupConfig(group_name="g", retry_max_times=5))
    offline.broker.offsets.commit("g", "orders", 1, 7)
    version = offline.broker.topics.version.counter
    again = offline.restart().broker
    assert again.topics.get("orders") == TopicConfig(topic_name="orders", read_queue_nums=2, write_queue_nums=2)
    assert again.groups.get("g") == GroupConfig(group_name="g", retry_max_times=5)
    assert again.offsets.get("g", "orders", 1) == 7
    assert again.offsets.get("g", "orders", 0) == -1
    assert again.topics.version.counter > version, "NameServers see that they must look again"


def test_a_new_topic_is_on_disk_at_the_end_of_the_turn_and_offsets_after_five_seconds() -> None:
    offline = OfflineBroker()
    offline.send("orders")
    assert b'"orders"' in offline.disk.read_file("config/topics.json")
    offline.broker.offsets.commit("g", "orders", 0, 1)
    offline.clock.advance(4_999)
    assert not offline.disk.exists("config/consumerOffset.json")
    offline.clock.advance(1)
    offline.clock.run_soon()
    assert json.parse(offline.disk.read_file("config/consumerOffset.json"))["offsetTable"] == {"orders@g": {"0": 1}}


def test_offsets_are_written_only_after_a_flush_of_the_log() -> None:
    offline = OfflineBroker(store_settings={"flush_interval_commit_log": 1_000_000})
    offline.send("orders")
    assert offline.store.flushed < offline.store.end
    offline.broker.offsets.commit("g", "orders", 0, 1)
    offline.clock.advance(5_000)
    offline.clock.run_soon()
    assert offline.disk.exists("config/consumerOffset.json")
    assert offline.store.flushed == offline.store.end


def test_what_changes_while_a_file_is_written_is_written_after_it() -> None:
    offline = OfflineBroker()
    offsets = offline.broker.offsets
    offsets.commit("g", "orders", 0, 1)
    first = offsets.write()
    assert isinstance(first, Later), "the writing is done in the background"
    offsets.commit("g", "orders", 0, 2)
    second = offsets.write()
    assert isinstance(second, Later)
    assert second.pending
    offline.clock.run_soon()
    assert not second.pending
    assert json.parse(offline.disk.read_file("config/consumerOffset.json"))["offsetTable"] == {"orders@g": {"0": 2}}
    assert offsets.write() is None, "nothing changed since"


def test_no_offset_is_written_when_the_log_cannot_be_flushed() -> None:
    offline = OfflineBroker()
    offline.send("orders")
    offline.broker.offsets.commit("g", "orders", 0, 1)
    offline.disk.faults[Operation.SYNC, "commitlog/"] = errno.EIO
    offline.send("orders")
    offline.clock.advance(30_000)
    assert not offline.disk.exists("config/consumerOffset.json")


def test_groups_are_written_without_nulls() -> None:
    offline = OfflineBroker()
    offline.broker.groups.put(GroupConfig(group_name="g"))
    offline.clock.run_soon()
    assert b"null" not in offline.disk.read_file("config/subscriptionGroup.json")


def test_apaches_files_are_read_dialect_and_all() -> None:
    offline = OfflineBroker()
    offline.stop()
    disk = offline.disk
    disk.mkdir("config")
    disk.replace_file(
        "config/topics.json",
        b'{"dataVersion":{"counter":4,"stateVersion":0,"timestamp":1700000000000},"topicConfigTable":{"orders":'
        b'{"attributes":{},"order":false,"perm":6,"readQueueNums":3,"topicFilterType":"SINGLE_TAG","topicName":"orders",'
        b'"topicSysFlag":0,"writeQueueNums":3}}}',
    )
    disk.replace_file(
        "config/consumerOffset.json",
        b'{"dataVersion":{"counter":1,"stateVersion":0,"timestamp":1},"offsetTable":{"orders@g":{0:12,1:5},"t@h":{3:1}}}',
    )
    disk.replace_file(
        "config/subscriptionGroup.json",
        b'{"dataVersion":{"counter":2,"stateVersion":0,"timestamp":1},"forbiddenTable":{"g":{"orders":4}},'
        b'"subscriptionGroupTable":{"g":{"attributes":{},"brokerId":0,"consumeBroadcastEnable":true,"consumeEnable":true,'
        b'"consumeFromMinEnable":true,"consumeMessageOrderly":false,"consumeTimeoutMinute":15,"groupName":"g",'
        b'"groupRetryPolicy":{"type":"CUSTOMIZED"},"groupSysFlag":0,"notifyConsumerIdsChangedEnable":true,'
        b'"retryMaxTimes":7,"retryQueueNums":1,"whichBrokerWhenConsumeSlowly":1}}}',
    )
    disk.replace_file("config/delayOffset.json", b'{"dataVersion":{"counter":1},"offsetTable":{3:5,4:1}}')
    broker = OfflineBroker(disk, offline.clock).broker
    orders = broker.topics.get("orders")
    assert orders is not None
    assert orders.read_queue_nums == 3
    assert broker.offsets.get("g", "orders", 0) == 12
    assert broker.offsets.get("h", "t", 3) == 1
    group = broker.groups.get("g")
    assert group is not None
    assert group.retry_max_times == 7
    assert not broker.groups.may_read("g", "orders")
    assert broker.groups.may_read("g", "other")


def test_a_broken_file_is_read_from_its_predecessor() -> None:
    offline = OfflineBroker()
    offline.send("first")
    offline.send("second")
    offline.stop()
    for broken in (b'{"topicConfigTable":{', b'{"topicConfigTable":[]}', b"null"):
        offline.disk.replace_file("config/topics.json", broken)
        again = OfflineBroker(offline.disk, offline.clock)
        assert again.broker.topics.get("first") is not None
        # and that one stays until there is a good file
        offline.disk.faults[Operation.RENAME, "config/topics.json.tmp"] = errno.EIO
        again.send("third")
        assert b'"first"' in offline.disk.read_file("config/topics.json.bak")
        offline.disk.faults.clear()
        again.stop()
    offline.disk.replace_file("config/topics.json", b"")
    offline.disk.replace_file("config/topics.json.bak", b"[")
    with pytest.raises(ValueError, match=r"neither config/topics.json nor its .bak"):
        OfflineBroker(offline.disk, offline.clock)


def test_a_write_that_fails_is_tried_again() -> None:
    offline = OfflineBroker()
    offline.send("first")
    offline.disk.faults[Operation.WRITE, "config/"] = errno.ENOSPC
    offline.send("second")
    assert not offline.disk.exists("config/topics.json"), "only the .bak is left"
    offline.disk.faults.clear()
    offline.clock.advance(5_000)
    assert b'"second"' in offline.disk.read_file("config/topics.json")
    assert b'"second"' not in offline.disk.read_file("config/topics.json.bak")
