"""A crash in the middle of 20,000 SYNC_FLUSH sends: what was acknowledged is there, as it was sent, once.

The page cache outlives a killed process: that no acknowledgement leaves before its fdatasync is shown elsewhere, with
a recording disk (tests/unit/store).
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator

import pytest
from harness.admin import Admin, RemotingConnection
from harness.pipeline import Numbered, PipelinedSender, Stored, read_back

from saturnmq.testing.server import LocalServer

MESSAGES = 20_000
#: acknowledged before the kill
ENOUGH = 8_000
QUEUES = 8
MOST_BODY_BYTES = 600

pytestmark = pytest.mark.skipif(
    os.environ.get("SATURNMQ_CONFORMANCE_SERVER") == "apache", reason="Apache's own recovery is not ours to test"
)


def body_of(number: int) -> bytes:
    """Its number, and as many random bytes as it likes, the same ones each time."""
    own = random.Random(number)
    return b"%d:" % number + own.randbytes(own.randrange(MOST_BODY_BYTES))


def properties_of(number: int) -> dict[str, str]:
    return {"UNIQ_KEY": f"{number:032X}", "number": str(number), "wörter": "夜" * (1 + number % 5)}


@pytest.fixture
def server() -> Iterator[LocalServer]:
    """Durable, as by default."""
    with LocalServer(dev=False) as server:
        yield server


async def send_until_killed(server: LocalServer, sender: PipelinedSender) -> None:
    sending = asyncio.create_task(sender.send(range(MESSAGES)), name="sending")
    await sender.wait_acknowledged(ENOUGH)
    server.kill()
    await sending


def number_of(message: Stored, topic: str) -> int:
    """Its number, when all of it is as it was sent."""
    number = int(message.body.partition(b":")[0])
    assert message.body == body_of(number)
    assert message.topic == topic
    assert properties_of(number).items() <= message.properties.items()  # the broker adds its own
    return number


def test_a_killed_server_keeps_what_it_acknowledged(server: LocalServer) -> None:
    messages = Numbered(body_of, properties_of)
    admin = Admin(server.namesrv, server.broker)
    topic = admin.create_topic(queues=QUEUES)
    admin.close()
    before = PipelinedSender(server.broker, topic, QUEUES, messages)
    asyncio.run(send_until_killed(server, before))
    assert ENOUGH <= len(before.acknowledged) < MESSAGES
    assert before.refused == []

    server.start()
    after = PipelinedSender(server.broker, topic, QUEUES, messages)
    asyncio.run(after.send(range(MESSAGES, MESSAGES + 500)))
    assert after.refused == []
    assert len(after.acknowledged) == 500

    connection = RemotingConnection(server.broker)
    stored = {
        (message.queue_id, message.queue_offset): number_of(message, topic)
        for message in read_back(connection, topic, QUEUES)
    }
    connection.close()
    acknowledged = {(one.queue_id, one.queue_offset): one.number for one in before.acknowledged + after.acknowledged}
    assert len(acknowledged) == len(before.acknowledged) + len(after.acknowledged)
    assert {place: stored.get(place) for place in acknowledged} == acknowledged
    assert len(set(stored.values())) == len(stored)
    for queue_id in range(QUEUES):
        offsets = sorted(offset for queue, offset in stored if queue == queue_id)
        assert offsets == list(range(len(offsets)))
