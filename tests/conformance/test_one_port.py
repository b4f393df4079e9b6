"""A Remoting client that reaches one port only, under another number: the Proxy's Remoting port serves it all."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
from harness.admin import Admin
from harness.forwarder import Forwarder
from harness.remoting import RemotingClient, RemotingMessage, RemotingProcess
from harness.servers import Server


def test_everything_goes_through_the_forwarded_port(
    remoting_language: str, remoting_process: Callable[[str], RemotingProcess], server: Server, admin: Admin
) -> None:
    if server.is_apache:
        pytest.skip("Apache's Local mode answers routes with the broker's own address (issue #9630 of its users)")
    topic = admin.create_topic()
    with Forwarder(server.proxy_remoting) as forwarder:
        client = RemotingClient(remoting_process(remoting_language), f"127.0.0.1:{forwarder.port}")
        [receipt] = client.producer().send([RemotingMessage(topic, b"x" * 70_000, "tag")])
        [delivery] = client.push(uuid.uuid4().hex, {topic: "tag"}).received(1)
        client.close_all()
        assert (delivery.id, delivery.message.body) == (receipt.id, b"x" * 70_000)
        assert forwarder.sent_bytes > 0
