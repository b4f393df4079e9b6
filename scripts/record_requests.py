"""Records what the official Remoting clients and tools send to our ports, for the fuzz tests.

    .venv/bin/python scripts/record_requests.py

Runs the conformance tests of Remoting clients and mqadmin with servers that write down what they read, and keeps of
each kind of request (port, code, encoding, names of fields) a few small ones in tests/vectors/requests.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from saturnmq.kernel.config import Limits
from saturnmq.kernel.errors import ProtocolError
from saturnmq.wire.remoting.command import Command
from saturnmq.wire.remoting.connection import RemotingDecoder, encode

ROOT = Path(__file__).parent.parent
VECTORS = ROOT / "tests" / "vectors" / "requests"
TESTS = [
    f"tests/conformance/{name}"
    for name in (
        "test_remoting_*.py",
        "test_mqadmin*.py",
        "test_processes.py",
        "test_delayed.py",
        "test_sql92_clients.py",
    )
]
#: of one kind of request
MOST_EXAMPLES = 4
MOST_BYTES = 2_000
#: the name of a port in a server → the file
PORTS = {"namesrv": "nameserver", "broker": "broker"}

#: every Python process of the tests imports it at its start; servers then write down what they read
CUSTOMIZE = """
import itertools, os, sys
if "saturnmq" in sys.orig_argv:
    from saturnmq.net.remoting_connection import RemotingConnection
    number, made, received = itertools.count(), RemotingConnection.connection_made, RemotingConnection.data_received
    def connection_made(self, transport):
        name = f"{self._traffic.name}-{os.getpid()}-{next(number)}"
        self.record = open(os.path.join(os.environ["RECORD_REQUESTS"], name), "wb", buffering=0)
        made(self, transport)
    def data_received(self, data):
        self.record.write(data)
        received(self, data)
    RemotingConnection.connection_made, RemotingConnection.data_received = connection_made, data_received
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        records, customize = Path(home) / "records", Path(home) / "customize"
        records.mkdir()
        customize.mkdir()
        (customize / "sitecustomize.py").write_text(CUSTOMIZE)
        tests = [str(path.relative_to(ROOT)) for pattern in TESTS for path in sorted(ROOT.glob(pattern))]
        environment = {**os.environ, "PYTHONPATH": str(customize), "RECORD_REQUESTS": str(records)}
        subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], cwd=ROOT, env=environment, check=False)
        for port, name in PORTS.items():
            kept = examples(sorted(records.glob(f"{port}-*")))
            (VECTORS / f"{name}.bin").write_bytes(b"".join(map(encode, kept)))
            print(f"{name}: {len(kept)} requests of {len({command.code for command in kept})} codes")


def examples(records: list[Path]) -> list[Command]:
    """In the order in which they came: a heart-beat before the pull that needs it."""
    counts: Counter[tuple[object, ...]] = Counter()
    kept = []
    for record in records:
        for command in decoded(record.read_bytes()):
            kind = (command.code, command.binary, command.flag, frozenset(command.fields))
            if counts[kind] < MOST_EXAMPLES and len(encode(command)) <= MOST_BYTES:
                counts[kind] += 1
                kept.append(command)
    return kept


def decoded(data: bytes) -> Iterator[Command]:
    decoder = RemotingDecoder(Limits())
    with suppress(ProtocolError):  # tests send garbage, too
        yield from decoder.receive_data(data)
        while decoder.has_more:
            yield from decoder.receive_data(b"")


if __name__ == "__main__":
    main()
