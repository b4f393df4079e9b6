"""`saturnmq admin offsets`: operators send groups elsewhere, of either kind of client."""

from __future__ import annotations

import subprocess
import sys
import uuid

from harness.admin import Admin
from harness.clients import Client, Message
from harness.remoting import RemotingClient, lived_before
from harness.servers import Server


def offsets(server: Server, verb: str, group: str, topic: str, *arguments: str) -> list[str]:
    """The lines that it prints."""
    where = ["-n", server.namesrv, "-g", group, "-t", topic]
    command = [sys.executable, "-m", "saturnmq", "admin", "offsets", verb, *where, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_group_that_is_not_there_is_sent_elsewhere(
    java_remoting: RemotingClient, admin: Admin, server: Server
) -> None:
    """Java's 5.x alone: the others take half a minute to go where their first pull is sent."""
    topic, group = admin.create_topic(), uuid.uuid4().hex
    lived_before(java_remoting, group, topic)
    producer = java_remoting.producer()
    producer.send([Message(topic, b"skipped")])
    lines = offsets(server, "skip", group, topic)
    assert len(lines) == 4
    assert sorted(int(line.split()[-1]) for line in lines) == [0, 0, 0, 1]
    producer.send([Message(topic, b"later")])
    consumer = java_remoting.push(group, {topic: "*"})
    assert [one.message.body for one in consumer.received(1)] == [b"later"]
    assert not consumer.take(1, timeout_s=0.5)
    offsets(server, "reset", group, topic, "--to", "earliest")
    assert sorted(one.message.body for one in consumer.received(2, timeout_s=40)) == [b"later", b"skipped"]


def test_a_group_that_pops_is_sent_elsewhere(client: Client, admin: Admin, server: Server) -> None:
    topic, group = admin.create_topic(queues=1), admin.create_group()
    producer, consumer = client.producer(topic), client.simple(group, {topic: "*"})
    ids = producer.send([Message(topic, b"%d" % number) for number in range(3)])
    assert len(consumer.take(3)) == 3
    lines = offsets(server, "reset", group, topic, "--to", "1", "--queue", "broker-a:0")
    assert [line.rpartition(" ")[2] for line in lines] == ["1"]
    assert [one.id for one in consumer.take(2)] == ids[1:]
    assert offsets(server, "skip", group, topic)[0].endswith(" 3")
