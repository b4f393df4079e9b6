"""What official consumers are told while their server is killed and started again, judged by their logs alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.clients import Client
from harness.servers import only_saturn
from harness.witness import examine, kept_port_server

pytestmark = only_saturn


def test_what_consumers_are_told_agrees(open_client: Callable[[str], Client], tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    clients = {language: open_client(language) for language in ("python", "go", "java")}
    with kept_port_server(tmp_path / "server") as local:
        try:
            for client in clients.values():
                client.endpoints = local.grpc
            _, given = examine(local, clients, logs, messages=150, kills=2, seed=1)
        finally:
            for client in clients.values():
                client.close_all()
    assert given >= 300
