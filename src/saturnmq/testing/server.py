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
from typing import Any


class ServerError(Exception):
    """The server did not start; the message ends with what it printed."""


class LocalServer:
    """`saturnmq local` in a child process. `stop()`, `kill()` and `start()` may be called any number of times."""

    def __init__(
        self,
        *arguments: str,
        dev: bool = True,
        data_dir: Path | None = None,
        start_timeout_s: float = 30,
        command: Sequence[str] = (sys.executable, "-m", "saturnmq"),
    ) -> None:
        """Further `arguments` are those of `saturnmq local`. Without `data_dir` a temporary one is used and removed."""
        self._home = Path(tempfile.mkdtemp(prefix="saturnmq-"))
        self.data_dir = data_dir or self._home / "data"
        self.log_file = self._home / "server.log"
        self._ready_file = self._home / "ready.json"
        self._start_timeout_s = start_timeout_s
        ports = [f"--{name}-port=0" for name in ("namesrv", "broker", "proxy-remoting", "grpc", "http")]
        self._command = [*command, "local", f"--data-dir={self.data_dir}", f"--ready-file={self._ready_file}"]
        self._command += [*ports, *(["--dev"] if dev else []), *arguments]
        self._process: subprocess.Popen[bytes] | None = None
        self._ready: dict[str, Any] = {}

    @property
    def namesrv(self) -> str:
        """`host:port` for `namesrvAddr` of Remoting clients."""
        return str(self._ready["namesrv"])

    @property
    def broker(self) -> str:
        return str(self._ready["broker"])

    @property
    def proxy_remoting(self) -> str:
        return str(self._ready["proxy_remoting"])

    @property
    def grpc(self) -> str:
        """`host:port` for the endpoints of gRPC clients."""
        return str(self._ready["grpc"])

    @property
    def http(self) -> str:
        return str(self._ready["http"])

    @property
    def pid(self) -> int:
        return int(self._ready["pid"])

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
                raise ServerError(f"saturnmq local did not become ready; it printed:\n{self.log()[-4000:]}")
            time.sleep(0.01)
        self._ready = json.loads(self._ready_file.read_text())

    def stop(self, timeout_s: float = 20) -> int:
        """Ask it to drain and stop; its exit status."""
        return self._end(signal.SIGTERM, timeout_s)

    def kill(self) -> int:
        """End it at once, as a crash would."""
        return self._end(signal.SIGKILL, 20)

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

    def __enter__(self) -> LocalServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.stop()
        if error is not None and os.environ.get("CI"):
            sys.stderr.write(self.log()[-8000:])
        shutil.rmtree(self._home, ignore_errors=True)
