"""Records what Apache's NameServer answers to a long conversation, as the vector of ours.

    APACHE_HOME=/tmp/apache .venv/bin/python scripts/record_nameserver.py PATH/TO/apache.sh

Writes tests/vectors/nameserver/conversation.json: steps, each a request on a named connection and its answer, or a
connection that is closed, or what the replicas that listen were told meanwhile.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from saturnmq.kernel.topic import DataVersion, TopicConfig
from saturnmq.wire.remoting import bodies
from saturnmq.wire.remoting.json import parse

VECTOR = Path(__file__).parent.parent / "tests" / "vectors" / "nameserver" / "conversation.json"
NAMESERVER = "127.0.0.1:19876"
#: replicas that hear who acts as master
REPLICAS = ("127.0.0.1:19901", "127.0.0.1:19902")
#: what Apache does in the background, and says nothing about
SETTLE_S = 0.5

A = {"clusterName": "c", "brokerName": "a", "brokerAddr": "10.0.0.1:10911", "brokerId": "0"}
A1 = {**A, "brokerAddr": REPLICAS[0], "brokerId": "1"}
A2 = {**A, "brokerAddr": REPLICAS[1], "brokerId": "2"}
FAR = {"clusterName": "d", "brokerName": "far", "brokerAddr": "10.0.1.1:10911", "brokerId": "0"}
HA = {"haServerAddr": "10.0.0.1:10912"}
FLAGS = {"t": 0, "unit": 1, "subscribed": 2, "both": 3}
VERSION = DataVersion(1, 0, 5)
ORDER = "ORDER_TOPIC_CONFIG"


def registration(
    topics: Mapping[str, int],
    version: DataVersion = VERSION,
    *,
    compressed: bool = False,
    servers: tuple[str, ...] = (),
) -> bytes:
    """Topic → sysFlag."""
    table = {
        name: TopicConfig(topic_name=name, read_queue_nums=4, write_queue_nums=4, topic_sys_flag=flag)
        for name, flag in topics.items()
    }
    body = bodies.RegisterBrokerBody(bodies.TopicConfigTable(table, version), list(servers))
    return bodies.encode_registration(body, compressed=compressed)


ALL = registration(FLAGS)
QUEUES = b'{"queueDatas":[{"brokerName":"%b","perm":6,"readQueueNums":2,"writeQueueNums":3,"topicSysFlag":0}]}'
OLD = b'{"topicConfigTable":{"old":{"topicName":"old"},"old2":{"topicName":"old2"}},"dataVersion":{"counter":1}}'


def request(code: int, body: bytes = b"", *, on: str = "tools", version: int = 479, **fields: str) -> dict[str, Any]:
    step: dict[str, Any] = {"on": on, "code": code, "version": version, "fields": fields}
    try:
        step["body"] = body.decode()
    except UnicodeDecodeError:
        step["base64"] = base64.b64encode(body).decode()
    return step


def conversation() -> Iterator[dict[str, Any]]:
    yield from before_any_broker()
    yield from registrations()
    yield from questions()
    yield from operators()
    yield from order_topics()
    yield from replicas()
    yield from zones()
    yield from partings()


def before_any_broker() -> Iterator[dict[str, Any]]:
    yield request(105, topic="t")
    for code in (206, 106, 304, 311, 312, 313):
        yield request(code)
    yield request(224, cluster="c")
    for code in (101, 102):
        yield request(code, namespace="n", key="k")
    yield request(219, namespace="n")
    yield request(100, namespace="n", key="k", value="v=1;ä")
    yield request(100, namespace="n", key="k2", value="v2")
    yield request(101, namespace="n", key="k")
    yield request(219, namespace="n")
    yield request(100, namespace="n", value="no key")
    yield request(101, namespace="n", key="K")
    for key in ("k", "k", "k2"):
        yield request(102, namespace="n", key=key)
    yield request(219, namespace="n")
    yield request(901, clusterName="c", brokerName="a")
    yield request(322, b'{"counter":1,"stateVersion":0,"timestamp":5}', **A)
    yield request(904, **A)
    yield request(104, **A)
    yield request(205, brokerName="a")
    yield request(327, brokerName="a")
    yield request(216, topic="t")
    yield request(999)
    yield request(905, minBrokerId="0")


def registrations() -> Iterator[dict[str, Any]]:
    crc = str(zlib.crc32(ALL) & 0x7FFFFFFF)
    compressed = registration(FLAGS, compressed=True)
    yield request(103, registration({"t": 0}), on="broker", **A, **HA)
    yield request(103, ALL, on="broker", **A, **HA, bodyCrc32="1")
    yield request(103, b"{", on="broker", **A, **HA)
    yield request(103, ALL, on="broker", **A, **HA, bodyCrc32=crc, compressed="false")
    yield request(103, compressed, on="broker", **A, **HA, compressed="true")
    yield request(103, on="broker", **A, **HA)
    yield request(103, ALL, on="broker", **A)
    yield request(103, ALL, on="broker", **A, **HA)
    yield request(
        103, OLD, on="old", version=30, clusterName="c", brokerName="o", brokerAddr="10.0.0.9:1", brokerId="0"
    )
    for version in (
        b'{"counter":1,"stateVersion":0,"timestamp":5}',
        b'{"counter":2,"stateVersion":0,"timestamp":5}',
        b"",
    ):
        yield request(322, version, on="broker", **A)
    yield request(904, on="broker", **A)
    # one topic, later; then what has the version of before changes nothing
    yield request(103, registration({"new": 0}, DataVersion(2, 0, 6)), on="broker", **A, **HA)
    yield request(103, registration({"t": 1, "new": 1}, DataVersion(2, 0, 6)), on="broker", **A, **HA)
    yield request(105, topic="new")
    yield request(322, b'{"counter":2,"stateVersion":0,"timestamp":6}', on="broker", **A)


def questions() -> Iterator[dict[str, Any]]:
    yield request(105, topic="t")
    yield request(105, topic="t", acceptStandardJsonOnly="true")
    yield request(105, topic="t", version=400)
    yield request(105, topic="nope")
    for code in (206, 106, 311, 312, 313):
        yield request(code)
    for cluster in ("c", "nope"):
        yield request(224, cluster=cluster)
    for cluster, name in (("c", "a"), ("nope", "a"), ("c", "nope")):
        yield request(901, clusterName=cluster, brokerName=name)


def operators() -> Iterator[dict[str, Any]]:
    yield request(205, brokerName="a")
    yield request(105, topic="t")
    yield request(103, registration({**FLAGS, "new": 0}, DataVersion(2, 0, 6)), on="broker", **A, **HA)
    yield request(105, topic="t")
    yield request(327, brokerName="a")
    yield request(105, topic="t")
    yield request(217, QUEUES % b"a", topic="made")
    yield request(105, topic="made")
    yield request(217, QUEUES % b"nope", topic="made2")
    yield request(105, topic="made2")
    yield request(217, topic="made3")
    yield request(216, topic="made")
    yield request(105, topic="made")
    for cluster in ("nope", "c"):
        yield request(216, topic="unit", clusterName=cluster)
        yield request(105, topic="unit")
    yield request(318, b"kvConfigPath=/tmp/x\n")
    yield request(318, b"somethingElse=1\n")
    yield request(318)
    yield request(318, b"enableTopicList=false\nenableAllTopicList=false\n")
    for code in (206, 311, 312, 313):
        yield request(code)
    yield request(224, cluster="c")
    yield request(318, b"enableTopicList=true\nenableAllTopicList=true\n")
    yield request(206)


def order_topics() -> Iterator[dict[str, Any]]:
    yield request(100, namespace=ORDER, key="t", value="a:4")
    yield request(105, topic="t")
    yield request(103, ALL, on="broker", **A, **HA)
    yield request(318, b"orderMessageEnable=true\n")
    yield request(105, topic="t")
    yield request(105, topic="both")
    yield request(318, b"returnOrderTopicConfigToBroker=false\norderMessageEnable=false\n")
    yield request(103, ALL, on="broker", **A, **HA)


def replicas() -> Iterator[dict[str, Any]]:
    acting = {"enableActingMaster": "true", "heartbeatTimeoutMillis": "60000"}
    yield request(318, b"supportActingMaster=true\nnotifyMinBrokerIdChanged=true\n")
    yield request(103, registration(FLAGS, DataVersion(1, 1, 1)), on="replica2", **A2, **HA)
    yield request(105, topic="t")
    yield request(103, ALL, on="broker", **A, **HA, **acting)
    yield request(103, ALL, on="replica1", **A1, haServerAddr="10.0.0.2:10912", **acting)
    yield request(103, ALL, on="replica2", **A2, haServerAddr="10.0.0.3:10912", **acting)
    yield request(105, topic="t")
    yield request(901, clusterName="c", brokerName="a")
    yield {"told": {}}
    yield request(104, on="broker", **A)
    yield {"told": {}}
    yield request(105, topic="t")
    yield request(105, topic="t", __ZONE_MODE="true", __ZONE_NAME="z1")
    yield request(318, b"supportActingMaster=false\n")
    yield request(105, topic="t")
    yield request(105, topic="t", __ZONE_MODE="true", __ZONE_NAME="z1")
    yield request(103, registration({**FLAGS, "by1": 0}, DataVersion(7, 1, 7)), on="replica1", **A1, **HA, **acting)
    yield request(103, registration({**FLAGS, "by2": 0}, DataVersion(7, 1, 7)), on="replica2", **A2, **HA, **acting)
    yield request(105, topic="by1")
    yield request(105, topic="by2")
    yield request(103, registration(FLAGS, DataVersion(9, 2, 9)), on="broker", **A, **HA, **acting)
    yield {"told": {}}
    yield request(105, topic="t")
    # the first replica was elected: it comes under the master's number
    yield request(
        103, registration(FLAGS, DataVersion(9, 3, 10)), on="replica1", **{**A1, "brokerId": "0"}, **HA, **acting
    )
    yield request(105, topic="t")
    yield request(103, registration(FLAGS, DataVersion(9, 2, 11)), on="broker", **A, **HA, **acting)
    yield request(105, topic="t")
    yield request(106)


def zones() -> Iterator[dict[str, Any]]:
    yield request(103, ALL, on="far", **FAR, **HA, __ZONE_NAME="Z1")
    for zone in ("z1", "Z1", "z2", " "):
        yield request(105, topic="t", __ZONE_MODE="true", __ZONE_NAME=zone)
    yield request(105, topic="t", __ZONE_NAME="Z1")
    yield request(106)
    for cluster in ("c", "d"):
        yield request(224, cluster=cluster)
    yield request(103, registration(FLAGS, DataVersion(2, 0, 2), servers=("10.9.9.9:1",)), on="far", **FAR, **HA)
    yield request(105, topic="t")
    yield request(103, ALL, on="far", **FAR, **HA)


def partings() -> Iterator[dict[str, Any]]:
    yield request(318, b"deleteTopicWithBrokerRegistration=true\n")
    yield request(103, registration({"t": 0, "unit": 1}, DataVersion(3, 0, 3)), on="far", **FAR, **HA)
    yield request(224, cluster="d")
    yield request(104, on="far", **FAR)
    yield request(105, topic="t")
    yield {"close": "old"}
    yield request(105, topic="old")
    yield {"close": "replica1"}
    yield request(901, clusterName="c", brokerName="a")
    yield {"close": "replica2"}
    yield {"close": "broker"}
    yield request(206)
    yield request(106)
    yield {"told": {}}


class Replica:
    """Listens at an address and remembers what it is told."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.told: list[dict[str, Any]] = []
        self._listener = socket.create_server((host, int(port)))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._hear, args=(connection,), daemon=True).start()

    def _hear(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                header, _ = frame(connection)
                self.told.append({"code": header["code"], "fields": header.get("extFields") or {}})


def frame(connection: socket.socket) -> tuple[dict[str, Any], bytes]:
    length, mark = struct.unpack(">II", exactly(connection, 8))
    data, end = exactly(connection, length - 4), mark & 0xFFFFFF
    return parse(data[:end]), data[end:]


def exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


class Recorder:
    def __init__(self) -> None:
        self.connections: dict[str, socket.socket] = {}
        self.replicas = {address: Replica(address) for address in REPLICAS}
        self.steps: list[dict[str, Any]] = []

    def record(self, step: dict[str, Any]) -> None:
        if "close" in step:
            self.connections.pop(step["close"]).close()
            time.sleep(SETTLE_S)
        elif "told" in step:
            time.sleep(SETTLE_S)
            for address, replica in self.replicas.items():
                step["told"][address], replica.told = replica.told, []
        else:
            step["answer"] = self._answer(step)
            if step["code"] == 104:
                time.sleep(SETTLE_S)
        self.steps.append(step)

    def _answer(self, step: dict[str, Any]) -> dict[str, Any]:
        if step["on"] not in self.connections:
            host, _, port = NAMESERVER.rpartition(":")
            self.connections[step["on"]] = socket.create_connection((host, int(port)))
        body = base64.b64decode(step["base64"]) if "base64" in step else step["body"].encode()
        asked = {"code": step["code"], "language": "JAVA", "version": step["version"], "opaque": 1, "flag": 0}
        header = json.dumps({**asked, "extFields": step["fields"]}).encode()
        said = struct.pack(">II", 4 + len(header) + len(body), len(header)) + header + body
        self.connections[step["on"]].sendall(said)
        answer, content = frame(self.connections[step["on"]])
        return {
            "code": answer["code"],
            "remark": answer.get("remark"),
            "fields": answer.get("extFields") or {},
            "body": parse(content) if content else None,
        }


def main(script: str) -> None:
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "lib").symlink_to(Path(os.environ["APACHE_HOME"]) / "lib")
        environment = {**os.environ, "APACHE_HOME": home, "NAMESRV": NAMESERVER}
        apache = subprocess.Popen(["bash", script, "start", "namesrv"], env=environment, stdout=subprocess.DEVNULL)
        try:
            for _ in range(300):
                with contextlib.suppress(OSError):
                    host, _, port = NAMESERVER.rpartition(":")
                    socket.create_connection((host, int(port))).close()
                    break
                time.sleep(0.1)
            recorder = Recorder()
            for step in conversation():
                recorder.record(step)
        finally:
            apache.kill()
            apache.wait()
    VECTOR.write_text("[\n" + ",\n".join(json.dumps(step) for step in recorder.steps) + "\n]\n")


if __name__ == "__main__":
    main(sys.argv[1])
