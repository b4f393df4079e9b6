"""Records what Apache's Broker answers to operators, as the vector of ours.

    APACHE_HOME=/tmp/apache .venv/bin/python scripts/record_broker.py PATH/TO/apache.sh

Writes conversation.json and consumers.json in tests/vectors/broker: requests on named connections, each with its
answer. What no two brokers answer alike, times and addresses, is written as "*".
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from record_nameserver import frame, request

VECTORS = Path(__file__).parent.parent / "tests" / "vectors" / "broker"
NAMESERVER, BROKER_PORT = "127.0.0.1:19886", 19861
#: a process that is ready to listen may not be ready to answer
START_S = 60
_STAR = re.compile(
    r'("(?:timestamp|lastUpdateTimestamp|remoteIP|clientAddr|brokerAddr|topicPutTps|counter|consumeTps|lastTimestamp'
    r'|(?:min|max|consume)TimeStamp(?:Str)?|delayTime)":)("[^"]*"|[-0-9.E]+)'
)


def conversation() -> Iterator[dict[str, Any]]:
    yield from topics()
    yield from attributes()
    yield from topics_together()
    yield from groups()
    yield from groups_together()
    yield from clients()
    yield from messages()
    yield from broker()
    yield from deletions()


def topic(name: str, **more: str) -> dict[str, Any]:
    fields = {
        "topic": name, "defaultTopic": "TBW102", "readQueueNums": "4", "writeQueueNums": "4", "perm": "6",
        "topicFilterType": "SINGLE_TAG", "topicSysFlag": "0", "order": "false",
    }  # fmt: skip
    return request(17, **{**fields, **more})


def topics() -> Iterator[dict[str, Any]]:
    for name in ("t", "t", "", " ", "a b", "x" * 127, "x" * 128, "%RETRY%" + "x" * 248, "%DLQ%" + "x" * 251):
        yield topic(name)
        yield request(351, topic=name)
    for name in ("TBW102", "DefaultCluster", "rmq_sys_x", "CHECKPOINT_TOPIC", "DefaultCluster_REPLY_TOPIC", "broker-a"):
        yield topic(name)
    for more in (
        {"readQueueNums": "8", "writeQueueNums": "8", "perm": "4", "order": "true"},
        {"readQueueNums": "2", "writeQueueNums": "3", "perm": "2", "topicSysFlag": "3"},
        {"perm": "0"},
        {"topicFilterType": "MULTI_TAG"},
        {"topicFilterType": "NONSENSE"},
        {"readQueueNums": "x"},
    ):
        yield topic("t", **more)
        yield request(351, topic="t")
    yield request(17, topic="t2")
    yield request(351, topic="nope")
    yield request(305)
    for fields in ({"topicSeq": "0", "maxTopicNum": "3"}, {"topicSeq": "3", "dataVersion": "x", "maxTopicNum": "3"}):
        yield request(21, **fields)


def attributes() -> Iterator[dict[str, Any]]:
    for changes in (
        "+message.type=FIFO", "+message.type=NONSENSE", "-message.type", "message.type=FIFO", "+message.type",
        "+message.type=FIFO,+message.type=NORMAL", "+foo=bar", "+queue.type=BatchCQ", "+=x", "+a+b=x",
        "+message.type=", "+reserve.time=5", "+reserve.time=-2", "+reserve.time=x", "+message.type=MIXED",
        "+message.type=DELAY,-reserve.time", "-reserve.time", "+message.type=TRANSACTION,+reserve.time=-1",
    ):  # fmt: skip
        yield topic("attributes", attributes=changes)
        yield request(351, topic="attributes")
    yield topic("new", attributes="+message.type=FIFO,-reserve.time")
    yield request(351, topic="new")


def topics_together() -> Iterator[dict[str, Any]]:
    for body in (
        b'{"topicConfigList":[{"topicName":"lA","readQueueNums":3,"attributes":{"+message.type":"FIFO"}},{"topicName":"lB"}]}',
        b'{"topicConfigList":[{"topicName":"lD"},{"topicName":"a b"}]}',
        b'{"topicConfigList":[{"topicName":"lE","attributes":{"+x":"y"}}]}',
        b"",
        b"{}",
    ):
        yield request(18, body)
    for name in ("lA", "lB", "lD", "lE"):
        yield request(351, topic=name)


def groups() -> Iterator[dict[str, Any]]:
    for body in (
        b'{"groupName":"gB"}', b'{"groupName":"a b"}', b'{"groupName":""}', b"{}", b"x",
        b'{"groupName":"%s"}' % (b"g" * 121), b'{"groupName":"gB","attributes":{"+a":"b"}}',
        b'{"groupName":"gB","groupRetryPolicy":{"type":"EXPONENTIAL","exponentialRetryPolicy":'
        b'{"initial":1000,"max":60000,"multiplier":3}}}',
        b'{"groupName":"gC","groupRetryPolicy":{"type":"CUSTOMIZED","customizedRetryPolicy":{"next":[1000,2000]}},'
        b'"consumeEnable":false,"retryQueueNums":0,"retryMaxTimes":-3,"brokerId":3,"whichBrokerWhenConsumeSlowly":2,'
        b'"consumeMessageOrderly":true,"consumeTimeoutMinute":1,"groupSysFlag":1,"notifyConsumerIdsChangedEnable":false}',
    ):  # fmt: skip
        yield request(200, body)
    for name in ("gB", "gC", "made by asking", "made-by-asking"):
        yield request(352, group=name)
    for readable in (None, "false", "true", "false"):
        yield request(353, group="gB", topic="t", **({} if readable is None else {"readable": readable}))
    yield request(201)
    for fields in ({"groupSeq": "0", "maxGroupNum": "2"}, {"maxGroupNum": "0"}):
        yield request(201, **fields)
    for fields in ({"groupName": "gC"}, {"groupName": "nope"}, {"groupName": "gB", "cleanOffset": "true"}):
        yield request(207, **fields)
    yield request(201)


def groups_together() -> Iterator[dict[str, Any]]:
    for body in (
        b'{"groupConfigList":[{"groupName":"gE"},{"groupName":"gF","retryMaxTimes":2}]}',
        b'{"groupConfigList":[{"groupName":"gG"},{"groupName":"a b"}]}',
        b"",
        b"{}",
    ):
        yield request(225, body)
    yield request(352, group="gF")


def clients() -> Iterator[dict[str, Any]]:
    for fields in ({"producerGroup": "pg"}, {"producerGroup": "nope"}):
        yield request(204, **fields)
    yield request(328)
    beat = {
        "clientID": "client-1",
        "producerDataSet": [{"groupName": "pg"}, {"groupName": "pg2"}],
        "consumerDataSet": [
            {
                "groupName": "cg", "consumeType": "CONSUME_PASSIVELY", "messageModel": "CLUSTERING",
                "consumeFromWhere": "CONSUME_FROM_LAST_OFFSET", "unitMode": False,
                "subscriptionDataSet": [
                    {"topic": "lB", "subString": "*", "subVersion": 1, "expressionType": "TAG"}
                ],
            }
        ],
    }  # fmt: skip
    yield request(200, b'{"groupName":"cg"}')
    yield request(34, json.dumps(beat).encode(), on="client")
    yield request(328)
    yield request(204, producerGroup="pg")
    for name in ("lB", "nobody"):
        yield request(300, topic=name)


def messages() -> Iterator[dict[str, Any]]:
    for queue_id in ("0", "0", "1"):
        yield send("lB", queue_id)
    yield {"sleep": 2.0}
    yield request(202, topic="lB")
    yield request(202, topic="nope")
    yield request(200, b'{"groupName":"committed"}')
    yield request(15, on="client", consumerGroup="committed", topic="lB", queueId="0", commitOffset="1")
    yield request(300, topic="lB")
    for name in ("committed", "cg"):
        yield request(343, group=name)


def broker() -> Iterator[dict[str, Any]]:
    yield request(315, statsName="TOPIC_PUT_NUMS", statsKey="nope")
    for code in (306, 316, 329):
        yield request(code)
    yield request(28)
    for text in (b"maxMsgsNumBatch=33", b"rocketmqHome=x", b"configBlackList=x\nbrokerPermission=4"):
        yield request(25, text)
    yield request(25)
    yield request(26)
    for code in (13, 22, 23, 27, 47, 209, 210, 211, 212, 213, 214, 301, 302, 902, 903, 999, 5002, 5003):
        yield request(code)


def deletions() -> Iterator[dict[str, Any]]:
    for name in ("lB", "nope", "", "TBW102", "%RETRY%cg"):
        yield request(215, topic=name)
    yield request(351, topic="lB")
    yield request(300, topic="lB")
    yield request(343, group="committed")
    yield topic("lB")
    yield {"sleep": 1.0}
    yield request(202, topic="lB")


def consumers() -> Iterator[dict[str, Any]]:
    """About consumers: who they are, how far they have come, where operators send them."""
    yield topic("ct", readQueueNums="2", writeQueueNums="2")
    yield request(200, b'{"groupName":"cg"}')
    yield request(200, b'{"groupName":"other"}')
    yield from consumers_asked_about()
    beat = {
        "clientID": "c1",
        "producerDataSet": [],
        "consumerDataSet": [
            {
                "groupName": "cg", "consumeType": "CONSUME_ACTIVELY", "messageModel": "CLUSTERING",
                "consumeFromWhere": "CONSUME_FROM_FIRST_OFFSET",
                "subscriptionDataSet": [
                    {
                        "topic": "ct", "subString": "a || b", "tagsSet": ["a", "b"], "codeSet": [97, 98],
                        "subVersion": 5, "expressionType": "TAG",
                    },
                ],
            }
        ],
    }  # fmt: skip
    yield request(34, json.dumps(beat).encode(), on="client")
    for queue_id in ("0", "0", "1"):
        yield send("ct", queue_id)
    yield {"sleep": 2.0}
    yield request(15, consumerGroup="cg", topic="ct", queueId="0", commitOffset="1")
    yield request(15, consumerGroup="cg", topic="TBW102", queueId="0", commitOffset="1")
    yield from consumers_asked_about()
    for fields in ({"topic": "ct"}, {"topic": "TBW102"}, {"topicList": "ct;nope;TBW102"}):
        yield request(208, consumerGroup="cg", **fields)
    yield request(35, on="client", clientID="c1", consumerGroup="cg")
    yield from consumers_asked_about()
    # last: a pull that brings its subscription along counts as a member that wants it
    yield from resets()


def consumers_asked_about() -> Iterator[dict[str, Any]]:
    for group in ("cg", "other", "nope"):
        yield request(203, consumerGroup=group)
        yield request(208, consumerGroup=group)
        for name in ("ct", "nope"):
            yield request(208, consumerGroup=group, topic=name)
            yield request(303, group=group, topic=name)
            yield request(345, group=group, topic=name)
            yield request(308, compareGroup=group, topic=name)
        for fields in ({}, {"setZeroIfNotFound": "false"}):
            yield request(14, consumerGroup=group, topic="ct", queueId="0", **fields)
            yield request(14, consumerGroup=group, topic="nope", queueId="0", **fields)
        for code in (307, 223):
            yield request(code, consumerGroup=group, group=group, topic="ct", clientId="gone", clientAddr="gone",
                          jstackEnable="true")  # fmt: skip
        yield request(200055, consumerGroup=group, topic="ct", queueId="0")
        for index in ("0", "1", "2", "-1"):
            yield request(321, topic="ct", queueId="0", index=index, count="1", consumerGroup=group)
    yield request(321, topic="ct", queueId="0", index="0", count="10")
    yield request(321, topic="nope", queueId="0", index="0", count="10")
    yield request(317, isOrder="false")
    yield request(317, isOrder="true")
    yield request(43)
    yield request(200056)


def resets() -> Iterator[dict[str, Any]]:
    for name, group in (("nope", "cg"), ("ct", "nope")):
        yield request(222, topic=name, group=group, timestamp="0", isForce="true")
    for fields in (
        {"timestamp": "0"}, {"timestamp": "-1"}, {}, {"timestamp": "0", "queueId": "0"},
        {"timestamp": "-1", "queueId": "0", "offset": "1"}, {"timestamp": "0", "queueId": "0", "offset": "3"},
        {"timestamp": "0", "queueId": "0", "offset": "4"}, {"timestamp": "0", "queueId": "0", "offset": "-2"},
        {"timestamp": "4102444800000"},
    ):  # fmt: skip
        yield request(222, topic="ct", group="cg", isForce="true", **fields)
    yield request(15, consumerGroup="cg", topic="ct", queueId="0", commitOffset="1")
    yield request(14, consumerGroup="cg", topic="ct", queueId="0")
    for offset in ("0", "2"):
        yield request(11, consumerGroup="cg", topic="ct", queueId="0", queueOffset=offset, maxMsgNums="32", sysFlag="4",
                      commitOffset="0", suspendTimeoutMillis="0", subVersion="0", subscription="*")  # fmt: skip
    yield request(15, consumerGroup="cg", topic="ct", queueId="0", commitOffset="1")
    yield request(14, consumerGroup="cg", topic="ct", queueId="0")
    for fields in ({"topic": "ct"}, {"topic": "nope"}):
        yield request(314, srcGroup="cg", destGroup="other", offline="true", **fields)
    yield request(208, consumerGroup="other")


def send(name: str, queue_id: str) -> dict[str, Any]:
    fields = {
        "a": "pg", "b": name, "c": "TBW102", "d": "4", "e": queue_id, "f": "0", "g": "1", "h": "0",
        "i": "UNIQ_KEY\x01KEY\x02TAGS\x01a\x02", "j": "0", "k": "false", "m": "false",
    }  # fmt: skip
    return {**request(310, b"hello", on="client", **fields), "ignore": True}


class Recorder:
    def __init__(self) -> None:
        self._connections: dict[str, socket.socket] = {}

    def answer(self, step: dict[str, Any]) -> dict[str, Any]:
        connection = self._connections.get(step["on"])
        if connection is None:
            connection = self._connections[step["on"]] = socket.create_connection(("127.0.0.1", BROKER_PORT))
        asked = {"code": step["code"], "language": "PYTHON", "version": step["version"], "opaque": 1, "flag": 0}
        header, body = json.dumps({**asked, "extFields": step["fields"]}).encode(), step["body"].encode()
        connection.sendall(struct.pack(">II", 4 + len(header) + len(body), len(header)) + header + body)
        while True:
            answer, content = frame(connection)
            if answer["flag"] & 1:  # else the broker tells of something
                break
        return {
            "code": answer["code"],
            "remark": answer.get("remark"),
            "fields": {name: _STAR.sub(r'\1"*"', value) for name, value in (answer.get("extFields") or {}).items()},
            "body": _STAR.sub(r'\1"*"', content.decode("utf-8", "replace")),
        }


def wait_for(port: int) -> None:
    for _ in range(10 * START_S):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.1)


def main(script: str) -> None:
    VECTORS.mkdir(exist_ok=True)
    # else its 5.5.0 makes a group again by asking, when it has deleted it, whether it is one for light topics
    record(script, conversation(), VECTORS / "conversation.json", "autoCreateSubscriptionGroup=false")
    record(script, consumers(), VECTORS / "consumers.json", "autoCreateSubscriptionGroup=false")


def record(script: str, steps_to_go: Iterator[dict[str, Any]], vector: Path, settings: str) -> None:
    """At a broker of its own."""
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "lib").symlink_to(Path(os.environ["APACHE_HOME"]) / "lib")
        environment = {**os.environ, "APACHE_HOME": home, "NAMESRV": NAMESERVER, "BROKER_PORT": str(BROKER_PORT)}
        environment |= {"HEAP": "512m", "BROKER_CONF": settings}
        processes = []
        try:
            for kind, port in (("namesrv", int(NAMESERVER.rpartition(":")[2])), ("broker", BROKER_PORT)):
                command = ["bash", script, "start", kind]
                processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
                wait_for(port)
            time.sleep(3)
            steps, recorder = [], Recorder()
            for step in steps_to_go:
                if "sleep" in step:
                    time.sleep(step["sleep"])
                else:
                    steps.append({**step, "answer": recorder.answer(step)})
        finally:
            for process in processes:
                process.kill()
                process.wait()
    vector.write_text("[\n" + ",\n".join(json.dumps(step) for step in steps) + "\n]\n")


if __name__ == "__main__":
    main(sys.argv[1])
