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

from harness.admin import RemotingConnection
from harness.programs import ROOT
from harness.servers import only_saturn

from saturnmq.testing.server import LocalServer

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
