"""Apache's mqadmin, one JVM for many commands (clients/mqadmin/Mqadmin.java)."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from harness.apache import LAST_WORDS, Apache
from harness.programs import SOURCES

PROGRAM = SOURCES / "mqadmin" / "Mqadmin.java"
#: a short life on few cores
JVM = ("java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
#: `Born Host:  127.0.0.1:5000`, `bootTimestamp  : 1`, `consumeEnable  =  true`
FIELD = re.compile(r"([^:=]+?)\s*[:=]\s+(.*)")


@dataclass(frozen=True)
class Said:
    """What a command printed. Its exit code says nothing."""

    out: str
    #: stack traces of what went wrong
    err: str

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.out.splitlines() if line.strip()]

    @property
    def fields(self) -> dict[str, str]:
        """Of lines `name: value` and `name = value`; of a name that comes twice the first."""
        found: dict[str, str] = {}
        for line in self.lines:
            if parts := FIELD.match(line):
                found.setdefault(parts[1].strip(), parts[2].strip())
        return found

    def table(self) -> list[list[str]]:
        """The words of each line but the headings, which begin with #."""
        return [line.split() for line in self.lines if not line.startswith("#")]


class Mqadmin:
    """The running program; owner of its process. Its files are in the home of the Apache it belongs to."""

    def __init__(self, apache: Apache) -> None:
        self.home = apache.home / "mqadmin"
        self.home.mkdir()
        self._log_path = self.home / "stderr.log"
        with self._log_path.open("w") as log:
            self._process = subprocess.Popen(
                [*JVM, f"-Duser.home={self.home}", "-cp", f"{apache.home}/lib/*", str(PROGRAM)],
                cwd=self.home,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin: IO[str] = self._process.stdin
        self._stdout: IO[str] = self._process.stdout

    def run(self, namesrv: str, command: str, *arguments: str) -> Said:
        """`mqadmin COMMAND -n NAMESRV ARGUMENTS`"""
        return self._run([command, "-n", namesrv, *arguments])

    def help(self) -> Said:
        """The list of commands."""
        return self._run([])

    def _run(self, given: Sequence[str]) -> Said:
        self._stdin.write(json.dumps({"args": list(given)}) + "\n")
        self._stdin.flush()
        line = self._stdout.readline()
        assert line, f"{' '.join(given)} ended mqadmin, which printed:\n{self._log_path.read_text()[-LAST_WORDS:]}"
        return Said(**json.loads(line))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._stdout.close()
        with suppress(BrokenPipeError):
            self._stdin.close()
