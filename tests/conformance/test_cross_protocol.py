"""What is sent by one protocol is read by the other as it was sent: id, keys, tag, properties, body."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from harness.admin import Admin
from harness.clients import Client, Message
from harness.exchange import assert_same, varied_messages
from harness.remoting import RemotingClient, RemotingProducer
from harness.remoting_fixtures import start as start_remoting
from harness.servers import Server, only_saturn

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


@pytest.fixture(scope="module")
def compressing(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RemotingClient]]:
    """Java, told to compress in other ways than it does by itself."""
    processes = []
    for way in ("LZ4", "ZSTD"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("JAVA_TOOL_OPTIONS", f"-Drocketmq.message.compressType={way}")
            processes.append(start_remoting("java", tmp_path_factory.mktemp(way)))
    yield [RemotingClient(process, server.namesrv) for process in processes]
    for process in processes:
        process.kill()


@only_saturn  # Apache passes it on as it is, and calls it gzip: Python's, Node's and Rust's clients cannot read it
def test_whatever_a_remoting_client_compresses_with(
    client: Client, compressing: list[RemotingClient], admin: Admin
) -> None:
    topic, group = admin.create_topic(), admin.create_group()
    message = Message(topic, b"compressed " * 10_000)
    ids = [one for remoting in compressing for one in ids_of(remoting.producer(), [message], "sync")]
    assert_same([message] * 2, ids, client.simple(group, {topic: "*"}).take(2))
