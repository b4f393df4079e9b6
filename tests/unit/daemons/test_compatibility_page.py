"""docs/compatibility.md says what tests show, and nothing else."""

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "compatibility.md"
CLIENTS = ("Python", "Go", "Node", "Java", "Java 4", "Rust")
NAME = re.compile(r"`((?:unit/\w+/|oracle/(?:exchange/)?)?test_\w+\.py)::(test_\w+)`")


@pytest.fixture(scope="module")
def collected() -> dict[str, set[str]]:
    """Test → the parameters that it runs with; none: {""}."""
    paths = {f"tests/{path}" for path, _ in NAME.findall(PAGE.read_text()) if path.startswith(("unit/", "oracle/"))}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/conformance", *sorted(paths)]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tests = defaultdict(set)
    for line in listed.splitlines():
        test, _, parameters = line.removeprefix("tests/").removeprefix("conformance/").partition("[")
        tests[test].add(parameters.rstrip("]"))
    return tests


def rows() -> list[tuple[dict[str, str], str]]:
    """Client → cell, and the test, of every row that names a test."""
    found = []
    heads: list[str] = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if "test" in cells:
            heads = cells
        elif cells and heads and (name := NAME.search(cells[-1])):
            by_client = {head: cell for head, cell in zip(heads, cells, strict=True) if head in CLIENTS}
            found.append((by_client, f"{name[1]}::{name[2]}"))
    return found


def test_every_row_has_its_test(collected: dict[str, set[str]]) -> None:
    tests = [test for _, test in rows()]
    assert len(tests) == len(NAME.findall(PAGE.read_text())) > 50
    assert [test for test in tests if test not in collected] == []


def test_clients_are_those_that_the_test_runs_with(collected: dict[str, set[str]]) -> None:
    for cells, test in rows():
        # python-tls and go-plaintext are variants of their client; other parameters come after a client's name
        run_with = {parameters.partition("-")[0].lower() for parameters in collected[test]}
        if run_with == {""}:
            continue  # one test with all the clients that it needs
        says = {parameter(client) for client, cell in cells.items() if cell == "yes"}
        assert not cells or says == run_with & {parameter(client) for client in CLIENTS}, test


def parameter(client: str) -> str:
    return client.lower().replace(" ", "")


def test_versions() -> None:
    """Of the client programs that are built."""
    page = PAGE.read_text()
    clients = ROOT / "tests" / "conformance" / "clients"
    go = re.findall(r"^require (github\.com/apache/\S+) (\S+)", (clients / "go" / "go.mod").read_text(), re.MULTILINE)
    go += re.findall(
        r"^require (github\.com/apache/\S+) (\S+)", (clients / "go_remoting" / "go.mod").read_text(), re.MULTILINE
    )
    node = re.findall(r'"(rocketmq-client-nodejs)": "(\S+)"', (clients / "node" / "package.json").read_text())
    java = re.findall(
        r"<artifactId>(rocketmq-client-java)</artifactId>\s*<version>(\S+)</version>",
        (clients / "java_grpc" / "pom.xml").read_text(),
    )
    remoting = [clients / "java_remoting" / "pom.xml", clients.parent / "harness" / "remoting_fixtures.py"]
    java += [
        ("rocketmq-client", version)
        for path in remoting
        for version in re.findall(r"(?:<|-D)client[=>]([\d.]+)", path.read_text())
    ]
    python = re.findall(r'"(rocketmq-python-client)==(\S+)"', (ROOT / "pyproject.toml").read_text())
    rust = re.findall(r'^(rocketmq) = "=(\S+)"', (clients / "rust" / "Cargo.toml").read_text(), re.MULTILINE)
    assert len([*go, *node, *java, *python, *rust]) == 8
    for name, version in [*go, *node, *java, *python, *rust]:
        assert f"`{name}` {version}" in page
