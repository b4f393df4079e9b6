"""What docs/idempotence.md shows works when it is copied."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import grpc
from harness.admin import RemotingConnection
from harness.programs import ROOT
from harness.servers import only_saturn

from saturnmq.testing.server import LocalServer
from saturnmq.wire.proto import rocketmq_pb2 as pb

pytestmark = only_saturn


def program(local: LocalServer) -> str:
    page = (ROOT / "docs" / "idempotence.md").read_text()
    found = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert found is not None
    assert "127.0.0.1:8081" in found[1]
    return found[1].replace("127.0.0.1:8081", local.grpc)


def coffees(home: Path) -> list[str]:
    with closing(sqlite3.connect(home / "coffees.db")) as database:
        return sorted(row[0] for row in database.execute("SELECT customer FROM coffees"))


def send(local: LocalServer, unique_key: str, body: bytes) -> None:
    connection = RemotingConnection(local.broker)
    fields = {"a": "p", "b": "orders", "c": "TBW102", "d": "1", "e": "0", "f": "0", "g": "7", "h": "0"}
    connection.call(310, body, **fields, i=f"UNIQ_KEY\x01{unique_key}\x02")
    connection.close()


def run_until_consumed(local: LocalServer, home: Path) -> None:
    """As long as it takes, then it is killed as a crash would."""
    environment = {**os.environ, "HOME": str(home)}
    consumer = subprocess.Popen([sys.executable, "-c", program(local)], cwd=home, env=environment)
    try:
        deadline = time.monotonic() + 60
        while in_queue(local) > acknowledged(local):
            assert consumer.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        consumer.kill()
        consumer.wait()


def in_queue(local: LocalServer) -> int:
    connection = RemotingConnection(local.broker)
    _, fields = connection.ask(30, topic="orders", queueId="0")
    connection.close()
    return int(fields["offset"])


def acknowledged(local: LocalServer) -> int:
    """What is under no lease any more, as mqadmin consumerProgress has it."""
    connection = RemotingConnection(local.broker)
    body = connection.call(208, consumerGroup="baristas", topic="orders").decode()
    connection.close()
    offsets = re.findall(r'"consumerOffset":(\d+)[^{}]*\}', body)
    return sum(map(int, offsets))


def test_the_consumer_of_the_documentation(tmp_path: Path) -> None:
    """Every message comes twice while it runs, and once more to the one that runs after it."""
    with LocalServer() as local:
        for customer in ("ada", "grace"):
            send(local, f"id-{customer}", customer.encode())
            send(local, f"id-{customer}", customer.encode())
        run_until_consumed(local, tmp_path)
        assert coffees(tmp_path) == ["ada", "grace"]
        for customer in ("ada", "grace", "joan"):
            send(local, f"id-{customer}", customer.encode())
        run_until_consumed(local, tmp_path)
        assert coffees(tmp_path) == ["ada", "grace", "joan"]


def test_a_window_over_both_protocols() -> None:
    """A message id that came over one is known to the other, after a crash too."""
    with LocalServer("--set", "flushDiskType=SYNC_FLUSH") as local:
        connection = RemotingConnection(local.broker)
        topic = {"topic": "orders", "defaultTopic": "TBW102", "topicFilterType": "SINGLE_TAG", "topicSysFlag": "0"}
        queues = {"readQueueNums": "1", "writeQueueNums": "1", "perm": "6", "order": "false"}
        attributes = "+dedup.window.seconds=600,+message.type=NORMAL"
        connection.call(17, **topic, **queues, attributes=attributes)  # type: ignore[arg-type]
        connection.close()
        assert send_over_grpc(local, "one") == [("one", 0)]
        send(local, "one", b"repeated")
        send(local, "two", b"two")
        assert send_over_grpc(local, "one", "two") == [("one", 0), ("two", 1)]
        local.kill()
        local.start()
        assert send_over_grpc(local, "two") == [("two", 1)]
        assert in_queue(local) == 2


def send_over_grpc(local: LocalServer, *message_ids: str) -> list[tuple[str, int]]:
    """Ids and offsets as the Proxy answers them."""
    request = pb.SendMessageRequest()
    for message_id in message_ids:
        message = request.messages.add(body=b"body")
        message.topic.name = "orders"
        message.system_properties.message_id = message_id
        message.system_properties.message_type = pb.NORMAL
        message.system_properties.born_timestamp.GetCurrentTime()
    with grpc.insecure_channel(local.grpc) as channel:
        call = channel.unary_unary("/apache.rocketmq.v2.MessagingService/SendMessage")
        data = call(request.SerializeToString(), metadata=[("x-mq-client-id", "c")], timeout=10)
    answer = pb.SendMessageResponse.FromString(data)
    assert answer.status.code == pb.OK, answer
    return [(entry.message_id, entry.offset) for entry in answer.entries]
