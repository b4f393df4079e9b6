"""Request-reply: a producer sends, whoever consumes answers, the broker brings the answer back (codes 325, 326)."""

from __future__ import annotations

import uuid

import pytest
from harness.admin import Admin
from harness.clients import ClientError
from harness.remoting import RemotingClient, RemotingMessage


def test_an_answer_comes_back(
    remoting: RemotingClient, java_remoting: RemotingClient, go_remoting: RemotingClient, admin: Admin
) -> None:
    """From both languages to the client that asks."""
    asker = remoting.producer()
    for answering in (java_remoting, go_remoting):
        topic = admin.create_topic()
        answering.push(uuid.uuid4().hex, {topic: "*"}, replier=answering.producer())
        answer = asker.request(RemotingMessage(topic, "wie spät?".encode(), "tag"))
        assert answer.message.body.decode() == "reply to wie spät?"
        assert answer.system["MSG_TYPE"] == "reply"


def test_nobody_answers(remoting: RemotingClient, admin: Admin) -> None:
    producer = remoting.producer()
    with pytest.raises(ClientError, match=r"(?i)time ?out"):
        producer.request(RemotingMessage(admin.create_topic(), b"anybody?"), timeout_ms=500)
