"""Apache's Broker, recorded (scripts/record_broker.py), and ours, asked the same about consumers: the same answers."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from saturnmq.testing.offline import OfflineBroker, OfflineConnection
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.json import parse

VECTOR = Path(__file__).parents[2] / "vectors" / "broker" / "consumers.json"
STEPS: list[dict[str, Any]] = json.loads(VECTOR.read_text())
#: beginning of Apache's remark → our code, and what we say: the same without Java's words, or an error where Apache
#: says SUCCESS and has no body for its tools
OTHERWISE = {
    "java.lang.NullPointerException": (1, "No Any Consumer online in the consumer group: ["),
    "Index ": (1, " is not exist!"),
    "subscription group [nope] does not exist": (26, "subscription group [nope] does not exist"),
    "OFFSET_": (None, ""),
    # together with SUCCESS
    "not set any response code": (0, ""),
}
#: what no two brokers say alike, and what only Apache's does: Java's getters, indexes of its tables
STARS = {
    "timestamp", "clientAddr", "brokerAddr", "counter", "consumeTps", "lastTimestamp", "minTimeStamp", "maxTimeStamp",
    "consumeTimeStamp", "delayTime", "physicOffset", "physicSize",
}  # fmt: skip
APACHES = {"minTimeStampStr", "maxTimeStampStr", "consumeTimeStampStr", "groupTopicMap", "pullOffsetTable"}
#: of all groups, which Apache does not tell: it has them as 0
UNTOLD = {"pullOffset", "totalInflightDiff"}


def comparable(value: Any, stars: set[str]) -> Any:
    """Lists in an order of their own: Apache's is that of its hash maps."""
    if isinstance(value, list):
        items = [comparable(item, stars) for item in value]
        return sorted(items, key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, dict):
        return {
            str(key): "*" if key in stars else comparable(item, stars)
            for key, item in value.items()
            if key not in APACHES
        }
    return value


def test_every_answer_is_apaches() -> None:
    offline = OfflineBroker(settings={"auto_create_subscription_group": False})
    connections: defaultdict[str, OfflineConnection] = defaultdict(OfflineConnection)
    for step in STEPS:
        code, apaches = step["code"], step["answer"]
        ours = offline.ask(code, step["fields"], step["body"].encode(), connections[step["on"]], step["version"])
        offline.clock.advance(1_000)
        remark = apaches["remark"] or ""
        expected = next(
            (said for words, said in OTHERWISE.items() if remark.startswith(words)), (apaches["code"], remark)
        )
        assert ours.code == (apaches["code"] if expected[0] is None else expected[0]), step
        assert expected[1] in ours.remark, (step, ours.remark)
        if ours.code or code == RequestCode.SEND_MESSAGE_V2:
            continue
        assert ours.fields.items() <= apaches["fields"].items(), step
        stars = STARS | UNTOLD if code == RequestCode.GET_BROKER_CONSUME_STATS else STARS
        assert bool(ours.body) == bool(apaches["body"]), step
        if ours.body:
            theirs = comparable(parse(apaches["body"].encode()), stars)
            assert comparable(parse(ours.body), stars) == theirs, step


def test_the_conversation_is_about_everything_that_operators_ask_of_consumers() -> None:
    asked = {step["code"] for step in STEPS if step["answer"]["code"] == ResponseCode.SUCCESS}
    assert asked >= {
        RequestCode.GET_CONSUMER_CONNECTION_LIST, RequestCode.GET_CONSUME_STATS, RequestCode.GET_BROKER_CONSUME_STATS,
        RequestCode.QUERY_CONSUME_TIME_SPAN, RequestCode.QUERY_CORRECTION_OFFSET, RequestCode.GET_ALL_CONSUMER_OFFSET,
        RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, RequestCode.INVOKE_BROKER_TO_GET_CONSUMER_STATUS,
        RequestCode.CLONE_GROUP_OFFSET, RequestCode.QUERY_SUBSCRIPTION_BY_CONSUMER, RequestCode.QUERY_CONSUME_QUEUE,
        RequestCode.QUERY_CONSUMER_OFFSET, RequestCode.UPDATE_CONSUMER_OFFSET, RequestCode.POLLING_INFO,
        RequestCode.POP_ROLLBACK,
    }  # fmt: skip
