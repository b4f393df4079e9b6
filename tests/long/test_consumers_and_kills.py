"""`tests/conformance/test_testimony.py` for minutes: the server is killed twenty times under official consumers."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.clients import Client, ClientProcess
from harness.grpc_variants import GRPC_DEFAULTS
from harness.programs import built_or_skipped
from harness.witness import examine, kept_port_server

pytestmark = pytest.mark.long


def test_what_consumers_are_told_agrees(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    processes: list[ClientProcess] = []
    try:
        with kept_port_server(tmp_path / "server") as local:
            clients = {}
            for language in ("python", "go", "java"):
                source = GRPC_DEFAULTS[language].source
                command = list(source.toolchain.run)
                processes.append(ClientProcess(command, built_or_skipped(source), tmp_path / language, {}))
                clients[language] = Client(processes[-1], local.grpc, tls=GRPC_DEFAULTS[language].tls)
            _, given = examine(local, clients, logs, messages=2_000, kills=20, seed=1)
            assert given >= 4_000
    finally:
        for process in processes:
            process.kill()
