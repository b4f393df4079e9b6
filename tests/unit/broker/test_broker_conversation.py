"""Apache's Broker, recorded (scripts/record_broker.py), and ours, asked the same by operators: the same answers."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from saturnmq.kernel.configfile import parse_properties
from saturnmq.testing.offline import Asked, OfflineBroker, OfflineConnection
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.json import parse

VECTOR = Path(__file__).parents[2] / "vectors" / "broker" / "conversation.json"
STEPS: list[dict[str, Any]] = json.loads(VECTOR.read_text())
#: what is told elsewhere, or has no body
OTHERS = frozenset({RequestCode.SEND_MESSAGE_V2, RequestCode.UPDATE_CONSUMER_OFFSET, RequestCode.HEART_BEAT})
#: beginning of Apache's remark → our code, and what we say: the same in other words, or without Java's
OTHERWISE = {
    "The specified topic is blank": (29, ""),
    "The specified topic: a b": (29, "'a b' has a character outside of"),
    "The specified topic: xx": (29, "the topic has 128 characters, the limit is 127"),
    "The specified topic is DLQ or Retry topic": (29, "the topic has 256 characters, the limit is 255"),
    "The specified group is blank": (29, ""),
    "The specified group: a b": (29, "'a b' has a character outside of"),
    "The specified group: gg": (29, "the consumer group has 121 characters, the limit is 120"),
    "value is not in set": (
        1,
        "message.type takes NORMAL, FIFO, DELAY, TRANSACTION, MIXED, UNSPECIFIED, not 'NONSENSE'",
    ),
    "value is not in range": (1, "takes whole numbers from -1 on, not '-2'"),
    "For input string": (1, "takes whole numbers from -1 on, not 'x'"),
    "Index 1 out of bounds": (1, "not ''"),
    "add/alter attribute format is wrong": (1, "must begin with + or -"),
    "delete attribute format is wrong": (1, "not ''"),
    "key duplication": (1, "is named twice"),
    "only add attribute is supported": (1, "only add attribute is supported while creating"),
    "MIXED message type is not supported": (29, "MIXED message type is not supported unless enableMixedMessageType"),
    "kv string format wrong": (1, ""),
    "java.lang.RuntimeException: unsupported key: a": (1, "unsupported key: a"),
    "org.apache.rocketmq.remoting.exception": (1, "the request cannot be understood"),
    'Cannot invoke "java.lang.Integer': (1, "the request cannot be understood"),
    "com.alibaba.fastjson2.JSONException": (29, "the body is no"),
    'java.lang.NullPointerException: Cannot invoke "java.lang.Integer.intValue()"': (0, ""),
    "java.lang.NullPointerException": (29, "the body is no"),
    # together with SUCCESS
    "not set any response code": (0, ""),
}
STARS = {"timestamp", "lastUpdateTimestamp", "remoteIP", "clientAddr", "brokerAddr", "topicPutTps", "counter"}
#: what later releases of Apache's serve, and we do
LATER = frozenset({RequestCode.DELETE_TOPIC_IN_BROKER_LIST, RequestCode.DELETE_SUBSCRIPTION_GROUP_LIST})
#: topics that only Apache's broker has
APACHES_TOPICS = {"RMQ_SYS_ROCKSDB_TRANS_HALF_TOPIC", "RMQ_SYS_ROCKSDB_TRANS_OP_HALF_TOPIC"}


def comparable(value: Any) -> Any:
    """Lists in an order of their own: Apache's is that of its hash maps; "*" for what no two brokers say alike."""
    if isinstance(value, list):
        return sorted(map(comparable, value), key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, dict):
        return {str(key): "*" if key in STARS else comparable(item) for key, item in value.items()}
    return value


class Conversation:
    def __init__(self) -> None:
        self.offline = OfflineBroker(settings={"auto_create_subscription_group": False})
        self.connections: defaultdict[str, OfflineConnection] = defaultdict(
            lambda: OfflineConnection(local="127.0.0.1:10911")
        )

    def go_through(self, step: dict[str, Any]) -> None:
        code, apaches = step["code"], step["answer"]
        if code not in self.offline.handlers or code in LATER:
            assert apaches["code"] == ResponseCode.REQUEST_CODE_NOT_SUPPORTED, step
            return
        connection = self.connections[step["on"]]
        ours = self.offline.ask(code, step["fields"], step["body"].encode(), connection, step["version"])
        self.offline.clock.advance(1_000)
        if code in OTHERS:
            assert ours.code == apaches["code"], step
            return
        remark = (apaches["remark"] or "").rstrip(".")
        said = next((said for words, said in OTHERWISE.items() if remark.startswith(words)), (apaches["code"], remark))
        assert (ours.code, said[1] in ours.remark) == (said[0], True), (step, ours.remark)
        if apaches["code"] == 0:
            self._compare(step, ours)

    def _compare(self, step: dict[str, Any], ours: Asked) -> None:
        code, apaches = step["code"], step["answer"]
        if code == RequestCode.GET_BROKER_CONFIG:
            theirs = parse_properties(apaches["body"])
            known = parse_properties(ours.body.decode())
            assert theirs.keys() >= {"brokerName", "brokerRole", "fileReservedTime"} <= known.keys()
            assert apaches["fields"].keys() == ours.fields.keys()
            return
        assert bool(ours.body) == bool(apaches["body"]), step
        if not ours.body:
            return
        theirs, mine = comparable(parse(apaches["body"].encode())), comparable(parse(ours.body))
        if code == RequestCode.GET_BROKER_RUNTIME_INFO:
            missing = theirs["table"].keys() - mine["table"].keys()
            assert all(key.startswith("commitLogDiskRatio_") for key in missing), missing
            return
        if code == RequestCode.GET_ALL_DELAY_OFFSET:
            assert theirs.keys() == mine.keys()
            return
        if code == RequestCode.GET_ALL_TOPIC_CONFIG:
            assert int(apaches["fields"]["totalTopicNum"]) - int(ours.fields["totalTopicNum"]) == len(APACHES_TOPICS)
        else:
            assert ours.fields == apaches["fields"], step
        assert mine == theirs, step


def test_every_answer_is_apaches() -> None:
    conversation = Conversation()
    for step in STEPS:
        conversation.go_through(step)


def test_the_conversation_is_about_everything_that_operators_ask_of_topics_groups_and_the_broker() -> None:
    asked = {step["code"] for step in STEPS}
    assert asked >= {
        RequestCode.UPDATE_AND_CREATE_TOPIC, RequestCode.UPDATE_AND_CREATE_TOPIC_LIST, RequestCode.GET_ALL_TOPIC_CONFIG,
        RequestCode.GET_TOPIC_CONFIG, RequestCode.GET_TOPIC_STATS_INFO, RequestCode.DELETE_TOPIC_IN_BROKER,
        RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST,
        RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG, RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG,
        RequestCode.DELETE_SUBSCRIPTIONGROUP, RequestCode.UPDATE_AND_GET_GROUP_FORBIDDEN,
        RequestCode.UPDATE_BROKER_CONFIG, RequestCode.GET_BROKER_CONFIG, RequestCode.GET_BROKER_RUNTIME_INFO,
        RequestCode.VIEW_BROKER_STATS_DATA, RequestCode.CLEAN_EXPIRED_CONSUMEQUEUE, RequestCode.CLEAN_UNUSED_TOPIC,
        RequestCode.DELETE_EXPIRED_COMMITLOG, RequestCode.GET_PRODUCER_CONNECTION_LIST,
        RequestCode.GET_ALL_PRODUCER_INFO, RequestCode.QUERY_TOPIC_CONSUME_BY_WHO, RequestCode.QUERY_TOPICS_BY_CONSUMER,
        RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_BROKER,
    }  # fmt: skip
