"""`saturnmq admin dlq`: operators see dead letters and send them again, whoever is online; official clients look on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from typing import Any

import pytest
from harness.admin import Admin, RemotingConnection
from harness.clients import Client, Message
from harness.pipeline import read_back
from harness.remoting import RemotingClient, lived_before
from harness.servers import Server, only_saturn

from saturnmq.testing.server import LocalServer

#: two deliveries of each message; the first two waits are not used
TWO = {"retries": 1, "waits_ms": [100, 100, 300]}


def dlq(server: Server | LocalServer, verb: str, group: str, *arguments: str) -> list[str]:
    """The lines that it prints."""
    command = [sys.executable, "-m", "saturnmq", "admin", "dlq", verb, "-n", server.namesrv, "-g", group, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def export(server: Server, group: str, count: int) -> list[dict[str, Any]]:
    """When that many have died."""
    deadline = time.monotonic() + 20
    while True:
        letters = [json.loads(line) for line in dlq(server, "export", group)]
        if len(letters) >= count:
            assert len(letters) == count
            return letters
        assert time.monotonic() < deadline, f"{letters} in time"


def without_mark(message: Message) -> Message:
    """Apache's Proxy does not know that it is no user's."""
    return replace(message, properties={key: value for key, value in message.properties.items() if key != "DLQ_RESENT"})


def test_a_failed_message_is_seen_and_sent_again(client: Client, admin: Admin, server: Server) -> None:
    topic, group = admin.create_topic(), admin.create_group(**TWO)  # type: ignore[arg-type]
    consumer = client.push(group, {topic: "*"}, failures=2)
    sent = [Message(topic, b"one", "tag", ("key",), {"user": "property"}), Message(topic, "zwölf".encode())]
    ids = client.producer(topic).send(sent)
    assert len(consumer.take(4)) == 4
    letters = {letter["messageId"]: letter for letter in export(server, group, 2)}
    assert set(letters) == set(ids)
    one, two = letters[ids[0]], letters[ids[1]]
    assert (one["body"], one["keys"], one["tag"], one["properties"]) == ("one", ["key"], "tag", {"user": "property"})
    assert (one["topic"], one["group"], one["resent"], two["body"]) == (topic, group, False, "zwölf")
    assert server.is_apache or one["reason"] == "MAX_ATTEMPTS"

    assert dlq(server, "resend", group, ids[0]) == [f"1 sent again to {topic}"]
    [again] = consumer.take(1)
    assert (again.id, without_mark(again.message), again.attempt) == (ids[0], sent[0], 1)
    assert dlq(server, "resend", group, "--all", "--to", "group")[0].startswith("1 sent again to %RETRY%")
    [again] = consumer.take(1)
    assert (again.id, without_mark(again.message)) == (ids[1], sent[1])
    assert dlq(server, "resend", group, "--all") == [
        "2 were sent again before: left out (--again sends them once more)"
    ]
    assert all(letter["resent"] for letter in export(server, group, 2))
    assert not consumer.take(1, timeout_s=0.5)
    assert dlq(server, "resend", group, ids[0], "--again") == [f"1 sent again to {topic}"]
    assert consumer.take(1)[0].id == ids[0]


@pytest.mark.parametrize("to", ["topic", "group"])
def test_a_pulled_message_is_sent_again(remoting: RemotingClient, admin: Admin, server: Server, to: str) -> None:
    """To a consumer that was not there when it was."""
    topic, group = admin.create_topic(), uuid.uuid4().hex
    lived_before(remoting, group, topic)
    consumer = remoting.push(group, {topic: "*"}, failures=1, retry_level=1)
    producer = remoting.producer()
    sent = Message(topic, b"body", "tag", ("key",), {"user": "property"})
    producer.send([Message(topic, b"comes back")])
    assert len(consumer.take(2)) == 2
    remoting.close(consumer)
    consumer = remoting.push(group, {topic: "*"}, failures=1, retry_level=-1)
    [receipt] = producer.send([sent])
    consumer.received(1)
    [letter] = export(server, group, 1)
    assert (letter["messageId"], letter["topic"], letter["keys"]) == (receipt.id, topic, ["key"])
    assert server.is_apache or letter["reason"] == "CONSUMER"
    remoting.close(consumer)

    resent_to = topic if to == "topic" else f"%RETRY%{group}"
    assert dlq(server, "resend", group, "--all", "--to", to) == [f"1 sent again to {resent_to}"]
    assert "left out" in dlq(server, "resend", group, "--all", "--to", to)[0]
    [again] = remoting.push(group, {topic: "*"}).received(1)
    assert (again.id, again.message) == (receipt.id, sent)
    assert again.system["ORIGIN_MESSAGE_ID"] == receipt.offset_id
    assert "yes" in dlq(server, "list", group)[1]


def test_what_fails_too_often_becomes_a_dead_letter(remoting: RemotingClient, admin: Admin, server: Server) -> None:
    """Over Remoting the client says how often: 16 retries, a second apart here."""
    topic, group = admin.create_topic(), uuid.uuid4().hex
    lived_before(remoting, group, topic)
    consumer = remoting.push(group, {topic: "*"}, failures=1000, retry_level=1)
    [receipt] = remoting.producer().send([Message(topic, b"body", keys=("key",))])
    tries = consumer.received(17, timeout_s=90)
    assert [one.attempt for one in tries] == list(range(1, 18))
    assert {one.id for one in tries} == {receipt.id}
    [letter] = export(server, group, 1)
    assert (letter["messageId"], letter["keys"], letter["reconsumeTimes"]) == (receipt.id, ["key"], 17)
    assert server.is_apache or letter["reason"] == "MAX_ATTEMPTS"
    assert not consumer.take(1, timeout_s=1.5)


def test_nothing_there(admin: Admin, server: Server) -> None:
    group = admin.create_group()
    assert dlq(server, "list", group) == []
    assert dlq(server, "export", group) == []
    assert dlq(server, "resend", group, "--all") == [f"group {group} has no dead letters there"]


def bury(local: LocalServer, count: int) -> None:
    """So many messages of `orders` that the group g gives up: id-0, id-1, …"""
    connection = RemotingConnection(local.broker)
    for number in range(count):
        send = {"a": "p", "b": "orders", "c": "TBW102", "d": "1", "e": "0", "f": "0", "g": "7", "h": "0"}
        _, sent = connection.ask(310, b"%d" % number, **send, i=f"UNIQ_KEY\x01id-{number}\x02")
        back = {"offset": str(int(sent["msgId"][16:], 16)), "group": "g", "delayLevel": "-1"}
        connection.call(36, b"", **back)
    connection.close()


@only_saturn
def test_what_was_sent_again_is_known_after_a_crash() -> None:
    with LocalServer("--set", "flushDiskType=SYNC_FLUSH") as local:
        bury(local, 3)
        assert dlq(local, "resend", "g", "id-1") == ["1 sent again to orders"]
        local.kill()
        local.start()
        assert dlq(local, "resend", "g", "--all")[0] == "2 sent again to orders"
        local.kill()
        local.start()
        assert [line[:16] for line in dlq(local, "resend", "g", "--all")] == ["3 were sent agai"]
        assert dlq(local, "resend", "g", "--all", "--from", "2100-01-01") == ["group g has no dead letters there"]
        assert dlq(local, "resend", "g", "--all", "--until", "2001-01-01") == ["group g has no dead letters there"]
        connection = RemotingConnection(local.broker)
        assert sorted(one.body for one in read_back(connection, "orders", 1)) == [b"0", b"0", b"1", b"1", b"2", b"2"]
        connection.close()


@only_saturn
def test_without_an_index_nobody_can_tell() -> None:
    with LocalServer("--set", "messageIndexEnable=false") as local:
        bury(local, 1)
        assert json.loads(dlq(local, "export", "g")[0])["resent"] is None
        with pytest.raises(AssertionError, match="messageIndexEnable"):
            dlq(local, "resend", "g", "--all")
        assert dlq(local, "resend", "g", "--all", "--again") == ["1 sent again to orders"]


@only_saturn
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["resend", "-g", "g"], "say which"),
        (["resend", "-g", "g", "no-such-id"], "no dead letter of message no-such-id"),
        (["list", "-g", "g", "-n", "127.0.0.1:1"], "no NameServer answers"),
    ],
)
def test_errors_say_how_to_go_on(server: Server, arguments: list[str], says: str) -> None:
    command = [sys.executable, "-m", "saturnmq", "admin", "dlq", *arguments]
    if "-n" not in arguments:
        command += ["-n", server.namesrv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert says in done.stderr
