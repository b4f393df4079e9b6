"""Processes of Apache RocketMQ 5.5.0: the oracle."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from harness.programs import ROOT

SCRIPT = Path(os.environ.get("APACHE_SH", ROOT.parent / "shared" / "bench" / "apache" / "apache.sh"))
#: the port of a JVM that shares two cores with others
START_TIMEOUT_S = 240
#: a broker writes its files and leaves its NameServer
STOP_TIMEOUT_S = 60
POLL_S = 0.02
#: of a log, in an error
LAST_WORDS = 4000


class StartFailed(Exception):
    """Apache did not come up; the message ends with what it printed."""


def installed_jars() -> Path:
    """The folder of Apache's jars, fetched once: `$APACHE_HOME/lib`, or `build/apache/lib`."""
    home = Path(os.environ.get("APACHE_HOME", ROOT / "build" / "apache"))
    if not (home / "lib").exists():
        partial = home / "partial"  # one that was interrupted must not look complete
        shutil.rmtree(partial, ignore_errors=True)
        subprocess.run(["bash", str(SCRIPT), "install"], env={**os.environ, "APACHE_HOME": str(partial)}, check=True)
        (partial / "lib").rename(home / "lib")
        shutil.rmtree(partial)
    return home / "lib"


class ApacheProcess:
    """A running NameServer, Broker or Proxy."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """SIGTERM: it writes what it must and ends."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self._process.kill()
        self._process.wait()


class Apache:
    """A home directory for processes of Apache's: their settings, logs and stores. Owner of the processes."""

    def __init__(self, home: Path, heap: str = "512m") -> None:
        self.home = home
        (home / "lib").symlink_to(installed_jars())
        self.log_path = home / "apache.log"
        temporary = home / "tmp"
        temporary.mkdir()
        # what every start unpacks goes with the home; a short life on few cores is best served by the first compiler
        options = f"-Djava.io.tmpdir={temporary} -XX:TieredStopAtLevel=1"
        self._environment = {**os.environ, "APACHE_HOME": str(home), "HEAP": heap, "JDK_JAVA_OPTIONS": options}
        self._processes: list[ApacheProcess] = []

    def start(self, part: str, *ports: int, **settings: str) -> ApacheProcess:
        """`namesrv`, `broker` or `local` with settings of apache.sh; returns when these ports accept."""
        with self.log_path.open("ab") as log:
            command = ["bash", str(SCRIPT), "start", part]  # which becomes the JVM
            process = ApacheProcess(
                subprocess.Popen(
                    command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._environment | settings
                )
            )
        self._processes.append(process)
        deadline = time.monotonic() + START_TIMEOUT_S
        for port in ports:
            while not _accepts(port):
                if not process.running or time.monotonic() > deadline:
                    process.kill()
                    raise StartFailed(f"{self.log_path}:\n{self.log_path.read_text(errors='replace')[-LAST_WORDS:]}")
                time.sleep(POLL_S)
        return process

    def kill(self) -> None:
        """All of them. Their files are thrown away; they need not stop in order."""
        while self._processes:
            self._processes.pop().kill()


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
