"""What is sent by one protocol is read by the other as it was sent: id, keys, tag, properties, body."""

from __future__ import annotations

import uuid

import pytest
from harness.admin import Admin
from harness.clients import Client, Message
from harness.exchange import assert_same, varied_messages
from harness.remoting import RemotingClient, RemotingProducer
from harness.servers import Server

pytestmark = pytest.mark.clients("python", "go", "java", "node", "rust", smoke=())


def test_grpc_to_remoting_push(
    client: Client, java_remoting: RemotingClient, go_remoting: RemotingClient, admin: Admin
) -> None:
    topic = admin.create_topic()
    consumers = [remoting.push(uuid.uuid4().hex, {topic: "*"}) for remoting in (java_remoting, go_remoting)]
    sent = varied_messages(topic)
    ids = client.producer(topic).send(sent)
    for consumer in consumers:
        assert_same(sent, ids, consumer.take(len(sent)))


def test_remoting_to_grpc_simple(
    server: Server, client: Client, java_remoting: RemotingClient, go_remoting: RemotingClient, admin: Admin
) -> None:
    """One by one from both languages, and as a batch from Java: Go's batches have no ids.

    Remoting clients compress with zlib from 4 KiB on. Apache passes that on as gzip, which Node's client cannot read.
    """
    topic = admin.create_topic()
    ways = [(java_remoting, "sync"), (go_remoting, "sync"), (java_remoting, "batch")]
    most_bytes = 4000 if server.is_apache and "nodejs" in client.process.client else 1 << 20
    sent: list[Message] = []
    ids: list[str] = []
    for remoting, mode in ways:
        messages = [message for message in varied_messages(topic) if len(message.body) < most_bytes]
        ids += ids_of(remoting.producer(), messages, mode)
        sent += messages
    consumer = client.simple(admin.create_group(), {topic: "*"})
    assert_same(sent, ids, consumer.take(len(sent)))


def ids_of(producer: RemotingProducer, messages: list[Message], mode: str) -> list[str]:
    return [one for receipt in producer.send(messages, mode) for one in receipt.id.split(",")]
