"""The programs under examples/ do what they say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from harness.programs import ROOT
from harness.servers import free_port, only_saturn

EXAMPLES = ROOT / "examples"
START_S, STOP_S = 60, 20
PORTS = (9876, 10911, 10921, 8081, 8082)


@only_saturn
def test_the_cluster(tmp_path: Path) -> None:
    """It starts, orders go through it, and it stops, all of it."""
    environment = {**os.environ, "DATA": str(tmp_path / "data"), "SHIFT": str(free_port() - PORTS[-1])}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = ["sh", str(EXAMPLES / "cluster" / "start.sh")]
    with (tmp_path / "printed").open("w") as printed:
        cluster = subprocess.Popen(script, env=environment, stdout=printed, stderr=printed, start_new_session=True)
    try:
        wait_for(tmp_path / "data" / "consumer.log", "took order 2")
        cluster.send_signal(signal.SIGTERM)
        assert cluster.wait(STOP_S) == 0
        assert not members(cluster.pid)
    finally:
        for left in members(cluster.pid):
            os.kill(left, signal.SIGKILL)
    for log in (tmp_path / "data").glob("*.log"):
        assert "Traceback" not in log.read_text() or log.stem in ("producer", "consumer"), log.read_text()


def wait_for(path: Path, words: str) -> None:
    deadline = time.monotonic() + START_S
    while not path.exists() or words not in path.read_text():
        assert time.monotonic() < deadline, {log.name: log.read_text()[-1000:] for log in path.parent.glob("*.log")}
        time.sleep(0.1)


def members(session: int) -> list[int]:
    """The processes of a session."""
    found = subprocess.run(["pgrep", "-s", str(session)], check=False, capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]
