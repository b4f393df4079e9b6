"""What the banner tells newcomers to paste works when it is pasted."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent, indent

import pytest
from harness.admin import RemotingConnection
from harness.grpc_variants import GRPC_DEFAULTS
from harness.pipeline import read_back
from harness.programs import SOURCES, built_or_skipped
from harness.servers import only_saturn

from saturnmq.testing.server import LocalServer

QUEUES = 8
JAVA_PROGRAM = """
import org.apache.rocketmq.client.apis.*;

class Snippet {{
    public static void main(String[] arguments) throws Exception {{
{snippet}
        System.exit(0);
    }}
}}
"""
GO_PROGRAM = """
package main

import (
	"context"
	"fmt"

	"github.com/apache/rocketmq-clients/golang/v5"
	"github.com/apache/rocketmq-clients/golang/v5/credentials"
)

func main() {{
{snippet}
}}
"""

pytestmark = only_saturn


@pytest.fixture(scope="module")
def local() -> Iterator[LocalServer]:
    with LocalServer() as local:
        yield local


def snippet(local: LocalServer, language: str) -> str:
    found = re.search(rf"^  {language} .*\n\n((?:    .*\n)+)", local.log(), re.MULTILINE)
    assert found is not None, local.log()
    return dedent(found[1])


def python(code: str, home: Path) -> list[str]:
    return [sys.executable, "-u", "-c", f"{code}\nimport os\nos._exit(0)"]


def java(code: str, home: Path) -> list[str]:
    jars = built_or_skipped(GRPC_DEFAULTS["java"].source) / "target" / "dependency" / "*"
    (home / "Snippet.java").write_text(JAVA_PROGRAM.format(snippet=indent(code, " " * 8)))
    return ["java", f"-Duser.home={home}", "-cp", str(jars), "Snippet.java"]


def go(code: str, home: Path) -> list[str]:
    built_or_skipped(GRPC_DEFAULTS["go"].source)
    for name in ("go.mod", "go.sum"):
        shutil.copy(SOURCES / "go" / name, home)
    (home / "main.go").write_text(GO_PROGRAM.format(snippet=indent(code, "\t")))
    return ["go", "run", "-buildvcs=false", "."]


@pytest.mark.parametrize(("language", "program"), [("Python", python), ("Java", java), ("Go", go)])
def test_a_snippet(
    local: LocalServer, language: str, program: Callable[[str, Path], list[str]], tmp_path: Path
) -> None:
    command = program(snippet(local, language), tmp_path)
    before = stored(local)
    environment = {**os.environ, "rocketmq.client.logRoot": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert stored(local) == [*before, b"world"]
    assert re.search("01[0-9A-F]{32}", done.stdout), f"it prints the message's id: {done.stdout}"


def stored(local: LocalServer) -> list[bytes]:
    connection = RemotingConnection(local.broker)
    bodies = [one.body for one in read_back(connection, "hello", QUEUES)]
    connection.close()
    return bodies
