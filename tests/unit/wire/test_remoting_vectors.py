"""What Apache's processes and clients really said (tests/vectors/remoting/README.md)."""

from __future__ import annotations

import json as standard
from collections.abc import Iterator
from pathlib import Path

import pytest

from saturnmq.kernel.config import Limits
from saturnmq.kernel.topic import MessageQueue, TopicRoute
from saturnmq.wire.remoting import bodies, json
from saturnmq.wire.remoting.codes import LanguageCode, RequestCode
from saturnmq.wire.remoting.command import ONE_WAY, RESPONSE, Command
from saturnmq.wire.remoting.connection import RemotingDecoder, encode

VECTORS = Path(__file__).parents[2] / "vectors" / "remoting"
FILES = sorted(VECTORS.glob("*.bin"), key=lambda file: file.name)
LIMITS = Limits()
APACHE_5_5_0 = 513


def commands(data: bytes, step: int = 1 << 20) -> list[Command]:
    decoder = RemotingDecoder(LIMITS)
    return [command for at in range(0, len(data), step) for command in decoder.receive_data(data[at : at + step])]


def frames(data: bytes) -> Iterator[bytes]:
    while data:
        end = 4 + int.from_bytes(data[:4], "big")
        yield data[:end]
        data = data[end:]


def said(name: str, code: int | None = None) -> list[Command]:
    """The requests with this code, or the replies with a body."""
    found = commands((VECTORS / f"{name}.bin").read_bytes())
    return [c for c in found if (c.code == code if code is not None else not c.code and c.body)]


def test_there_are_vectors_of_both_encodings() -> None:
    heard = [command for file in FILES for command in commands(file.read_bytes())]
    assert {command.binary for command in heard} == {True, False}
    assert {command.version for command in heard} == {APACHE_5_5_0}
    assert {command.language for command in heard} == {LanguageCode.JAVA}
    assert {RESPONSE, ONE_WAY, 0} == {command.flag for command in heard}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_frame_is_read_and_written_back(file: Path) -> None:
    data = file.read_bytes()
    heard = commands(data)
    assert commands(data, 7) == heard
    for command, frame in zip(heard, frames(data), strict=True):
        written = encode(command)
        if command.binary:
            assert written == frame
        else:
            assert header(written) == header(frame)
            assert written.endswith(command.body)


def header(frame: bytes) -> dict[str, object]:
    length = int.from_bytes(frame[5:8], "big")
    values: dict[str, object] = standard.loads(frame[8 : 8 + length])
    values.pop("serializeTypeCurrentRPC", None)  # Java's own, which the frame says anyway
    return {key: value for key, value in values.items() if value not in (None, {})}


def test_sends() -> None:
    for encoding in ("json", "rocketmq"):
        first, *_ = said(f"broker-send-{encoding}-1-requests", RequestCode.SEND_MESSAGE_V2)
        assert first.body == b"Hello RocketMQ 0"
        assert (first.fields["b"], first.fields["c"], first.fields["m"]) == ("TopicTest", "TBW102", "false")
        assert "TAGS\x01TagA" in first.fields["i"]


def test_heartbeats() -> None:
    *_, heartbeat = said("broker-consume-json-1-requests", RequestCode.HEART_BEAT)
    [consumer] = bodies.decode(bodies.HeartbeatData, heartbeat.body).consumer_data_set
    assert consumer.group_name == "please_rename_unique_group_name_4"
    assert {subscription.topic for subscription in consumer.subscription_data_set} == {
        "TopicTest",
        "%RETRY%please_rename_unique_group_name_4",
    }


def test_registrations() -> None:
    registration, *_ = said("nameserver-registration-1-requests", RequestCode.REGISTER_BROKER)
    body = bodies.decode_registration(registration.body)
    table = body.topic_config_serialize_wrapper
    assert table.topic_config_table["TBW102"].perm == 7
    assert table.data_version.timestamp > 0
    for compressed in (False, True):
        assert bodies.decode_registration(bodies.encode_registration(body, compressed=compressed)) == body


def test_routes_and_clusters() -> None:
    [reply] = said("nameserver-topicRoute-1-replies")
    route = bodies.decode(TopicRoute, reply.body)
    assert route.broker_datas[0].broker_addrs == {0: "127.0.0.2:19711"}
    assert standard.loads(bodies.encode(route)) == standard.loads(reply.body)
    [reply] = said("nameserver-clusterList-1-replies")
    assert b'{0:"127.0.0.2:19711"}' in reply.body
    clusters = bodies.decode(bodies.ClusterInfo, reply.body)
    assert clusters.cluster_addr_table == {"DefaultCluster": ["broker-a"]}
    assert clusters.broker_addr_table["broker-a"].broker_addrs == {0: "127.0.0.2:19711"}
    [reply] = said("nameserver-topicList-1-replies")
    assert "TopicTest" in bodies.decode(bodies.TopicList, reply.body).topic_list


@pytest.mark.parametrize(("command", "field"), [("topicStatus", "maxOffset"), ("consumerProgress", "brokerOffset")])
def test_maps_of_message_queues(command: str, field: str) -> None:
    reply, *_ = said(f"broker-{command}-1-replies")
    table = json.parse(reply.body)["offsetTable"]
    assert set(table) == {MessageQueue("TopicTest", "broker-a", queue_id) for queue_id in range(4)}
    assert {offsets[field] for offsets in table.values()} == {500}
    assert json.parse(json.write({"offsetTable": json.write_queue_map(table)})) == {"offsetTable": table}
