"""Fixtures of the Remoting clients: a process per language for the whole run, closed clients after each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from harness.programs import GO, JAVA, ProgramSource, built_or_skipped
from harness.remoting import RemotingClient, RemotingProcess
from harness.servers import Server

#: the last client of version 4; its sends have the long field names (code 10)
JAVA_4 = replace(
    JAVA,
    build=(("mvn", "-q", "-B", "-Dgeneration=v4", "-Dclient=4.9.8", "compile", "dependency:copy-dependencies"),),
    run=("java", "-Dorg.apache.rocketmq.client.sendSmartMsg=false", *JAVA.run[1:]),
)
SOURCES = {
    "java": ProgramSource("java_remoting", JAVA),
    "java4": ProgramSource("java_remoting", JAVA_4, variant="_4"),
    "go": ProgramSource("go_remoting", GO),
}


def start(language: str, home: Path) -> RemotingProcess:
    source = SOURCES[language]
    # an environment name that Go's client reads; Java's keeps its offsets under user.home
    offsets = {"rocketmq.client.localOffsetStoreDir": str(home / "offsets")}
    return RemotingProcess(list(source.toolchain.run), built_or_skipped(source), home, offsets)


@pytest.fixture(scope="session")
def remoting_process(run_home: Path) -> Iterator[Callable[[str], RemotingProcess]]:
    """The running program of a language, built and started when it is first asked for, and again when it has ended."""
    running: dict[str, RemotingProcess] = {}

    def process_of(language: str) -> RemotingProcess:
        if language not in running or not running[language].running:
            running[language] = start(language, run_home / f"{language}-remoting")
        return running[language]

    yield process_of
    for process in running.values():
        process.kill()


@contextmanager
def client_of(process: RemotingProcess, server: Server) -> Iterator[RemotingClient]:
    client = RemotingClient(process, server.namesrv)
    yield client
    client.close_all()


@pytest.fixture
def java_remoting(remoting_process: Callable[[str], RemotingProcess], server: Server) -> Iterator[RemotingClient]:
    with client_of(remoting_process("java"), server) as client:
        yield client


@pytest.fixture
def go_remoting(remoting_process: Callable[[str], RemotingProcess], server: Server) -> Iterator[RemotingClient]:
    with client_of(remoting_process("go"), server) as client:
        yield client


@pytest.fixture(params=sorted(SOURCES))
def remoting_language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def remoting(
    remoting_language: str, remoting_process: Callable[[str], RemotingProcess], server: Server
) -> Iterator[RemotingClient]:
    """Each Remoting client in turn."""
    with client_of(remoting_process(remoting_language), server) as client:
        yield client


@pytest.fixture
def second_remoting(remoting_language: str, run_home: Path, server: Server) -> Iterator[RemotingClient]:
    """The client of `remoting` in another process, which the test may kill."""
    process = start(remoting_language, run_home / f"{remoting_language}-remoting-2")
    with client_of(process, server) as client:
        yield client
    process.kill()
