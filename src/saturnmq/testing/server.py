"""A SaturnMQ server for tests of applications: a process of its own, on ports that nobody else has.

    with LocalServer() as server:
        client = make_client(server.grpc)

Everything a client names is created on first use (`--dev`); nothing outlives the `with`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.request import Request, urlopen

Self = TypeVar("Self", bound="ServerProcess")

POLL_S = 0.01
#: longer than a server takes to drain
STOP_TIMEOUT_S = 20
#: of what a server printed, in an error
LAST_WORDS = 4000


class ServerError(Exception):
    """The server did not start, or did not end well; the message ends with what it printed."""


class ServerProcess:
    """`saturnmq …` in a child process. `stop()`, `kill()` and `start()` may be called any number of times.

    Owner of the process and, unless it was given one, of the directory with its files, removed at the end of a `with`.
    """

    def __init__(
        self,
        *arguments: str,
        home: Path | None = None,
        start_timeout_s: float = 30,
        command: Sequence[str] = (sys.executable, "-m", "saturnmq"),
    ) -> None:
        self._temporary = home is None
        self.home = home or Path(tempfile.mkdtemp(prefix="saturnmq-"))
        self.home.mkdir(parents=True, exist_ok=True)
        self.log_file = self.home / "server.log"
        self._ready_file = self.home / "ready.json"
        self._start_timeout_s = start_timeout_s
        self._command = [*command, *arguments, f"--ready-file={self._ready_file}"]
        self._process: subprocess.Popen[bytes] | None = None
        #: the content of the ready file
        self.ready: dict[str, Any] = {}

    @property
    def pid(self) -> int:
        return int(self.ready["pid"])

    @property
    def running(self) -> bool:
        """It was started, and neither stopped nor killed from here."""
        return self._process is not None

    def log(self) -> str:
        """What the server printed so far, over all its starts."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def start(self) -> None:
        """Returns when clients can connect. Raises ServerError."""
        assert self._process is None, "the server runs already"
        self._ready_file.unlink(missing_ok=True)
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + self._start_timeout_s
        while not self._ready_file.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise self._error("did not become ready")
            time.sleep(POLL_S)
        self.ready = json.loads(self._ready_file.read_text())

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Ask it to drain and stop; its exit status, 0 when all is well."""
        return self._end(signal.SIGTERM, timeout_s)

    def kill(self) -> int:
        """End it at once, as a crash would."""
        return self._end(signal.SIGKILL, STOP_TIMEOUT_S)

    def _end(self, number: signal.Signals, timeout_s: float) -> int:
        assert self._process is not None, "the server does not run"
        process, self._process = self._process, None
        process.send_signal(number)
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def rss_anon_bytes(self) -> int:
        """Memory that only this process holds (Linux)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))

    def _error(self, what: str) -> ServerError:
        return ServerError(f"{' '.join(self._command)} {what}; it printed:\n{self.log()[-LAST_WORDS:]}")

    def __enter__(self: Self) -> Self:
        try:
            self.start()
        except BaseException:
            self._remove_home()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises ServerError when the server did not end with status 0, unless there is an error already."""
        try:
            status = self.stop() if self.running else 0
            if error is None and status:
                raise self._error(f"ended with status {status}")
            if error is not None and os.environ.get("CI"):
                sys.stderr.write(self.log()[-LAST_WORDS:])
        finally:
            self._remove_home()

    def _remove_home(self) -> None:
        if self._temporary:
            shutil.rmtree(self.home, ignore_errors=True)


class LocalServer(ServerProcess):
    """`saturnmq local`, with further `arguments` of yours."""

    def __init__(
        self,
        *arguments: str,
        dev: bool = True,
        data_dir: Path | None = None,
        home: Path | None = None,
        start_timeout_s: float = 30,
        command: Sequence[str] = (sys.executable, "-m", "saturnmq"),
    ) -> None:
        ports = [f"--{name}-port=0" for name in ("namesrv", "broker", "proxy-remoting", "grpc", "http")]
        mode = ["--dev"] if dev else []
        super().__init__(
            "local", *ports, *mode, *arguments, home=home, start_timeout_s=start_timeout_s, command=command
        )
        self.data_dir = data_dir or self.home / "data"
        self._command.append(f"--data-dir={self.data_dir}")

    @property
    def namesrv(self) -> str:
        """`host:port` for `namesrvAddr` of Remoting clients."""
        return str(self.ready["namesrv"])

    @property
    def broker(self) -> str:
        return str(self.ready["broker"])

    @property
    def proxy_remoting(self) -> str:
        return str(self.ready["proxy_remoting"])

    @property
    def grpc(self) -> str:
        """`host:port` for the endpoints of gRPC clients."""
        return str(self.ready["grpc"])

    @property
    def http(self) -> str:
        return str(self.ready["http"])

    def advance_clock(self, milliseconds: int) -> None:
        """Put the clock of a server with `--test-clock` forward: what was to happen until then happens now."""
        with urlopen(Request(f"http://{self.http}/test-clock/advance/{milliseconds}", method="POST"), timeout=10):
            pass
