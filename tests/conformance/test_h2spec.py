"""h2spec, the published conformance suite for HTTP/2 (RFC 7540, 7541), with its strict test."""

from __future__ import annotations

import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from harness.programs import GO, ProgramSource, Toolchain, built_or_skipped
from harness.servers import Server, only_saturn

PACKAGE = "github.com/summerwind/h2spec/cmd/h2spec"
#: its version is in clients/h2spec/go.mod: the last one that Go's module proxy has
H2SPEC = ProgramSource(
    "h2spec",
    Toolchain(needs=GO.needs, build=(("go", "build", "-buildvcs=false", "-o", "h2spec", PACKAGE),), run=("./h2spec",)),
)
TESTS = 146

pytestmark = only_saturn


@pytest.mark.parametrize("transport", [[], ["-t", "-k"]], ids=["plaintext", "TLS"])
def test_every_test_passes(server: Server, transport: list[str], tmp_path: Path) -> None:
    program = built_or_skipped(H2SPEC) / "h2spec"
    host, _, port = server.grpc.rpartition(":")
    report = tmp_path / "report.xml"
    command = [str(program), "-h", host, "-p", port, "--strict", "--junit-report", str(report), *transport]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    counted = [[int(suite.get(name, 0)) for name in ("tests", "skipped", "failures", "errors")] for suite in suites]
    assert [sum(column) for column in zip(*counted, strict=True)] == [TESTS, 0, 0, 0], done.stdout
    assert done.returncode == 0, done.stdout
