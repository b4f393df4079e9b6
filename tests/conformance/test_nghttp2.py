"""nghttp and h2load, which know HTTP/2 and nothing of gRPC."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest
from harness.admin import Admin
from harness.programs import ProgramSource, Toolchain, built_or_skipped
from harness.servers import Server, only_saturn

from saturnmq.wire.proto import rocketmq_pb2 as pb

#: fetched from Debian where no package has installed them
NGHTTP2 = ProgramSource("nghttp2", Toolchain(needs=("apt-get", "dpkg-deb"), build=(("sh", "fetch.sh"),), run=()))
METHOD = "apache.rocketmq.v2.MessagingService/QueryRoute"
CALLS = 3000

pytestmark = only_saturn

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, admin: Admin) -> Run:
    """Run a program that sends the body of a QueryRoute; what it prints."""
    request = pb.QueryRouteRequest(topic=pb.Resource(name=admin.create_topic(queues=1))).SerializeToString()
    body = tmp_path / "body"
    body.write_bytes(b"\0" + len(request).to_bytes(4, "big") + request)
    environment = dict(os.environ)
    folder = Path()
    if shutil.which("h2load") is None or shutil.which("nghttp") is None:
        folder = built_or_skipped(NGHTTP2) / "usr"
        environment["LD_LIBRARY_PATH"] = ":".join(str(path) for path in (folder / "lib").iterdir())
        folder /= "bin"

    def run(program: str, *arguments: str) -> str:
        headers = ("content-type: application/grpc", "te: trailers", "x-mq-client-id: nghttp2")
        options = [option for header in headers for option in ("-H", header)]
        command = [str(folder / program), *options, "-d", str(body), *arguments]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def calls_so_far(server: Server) -> int:
    with urlopen(f"http://{server.http}/metrics") as answer:
        found = re.search(rf'requests_total{{method="{METHOD}",status="OK"}} (\d+)', answer.read().decode())
    return int(found[1]) if found else 0


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_call_of_nghttp(run: Run, server: Server, scheme: str) -> None:
    said = run("nghttp", "-v", "-n", "-H", ":method: POST", f"{scheme}://{server.grpc}/{METHOD}")
    assert re.search(r"recv \(stream_id=\d+\).* :status: 200", said)
    assert re.search(r"recv \(stream_id=\d+\).* grpc-status: 0", said)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_thousands_of_calls_of_h2load(run: Run, server: Server, scheme: str) -> None:
    before = calls_so_far(server)
    said = run("h2load", "-n", str(CALLS), "-c", "20", "-m", "50", f"{scheme}://{server.grpc}/{METHOD}")
    assert f"{CALLS} total, {CALLS} started, {CALLS} done, {CALLS} succeeded, 0 failed, 0 errored, 0 timeout" in said
    assert f"status codes: {CALLS} 2xx" in said
    assert calls_so_far(server) - before == CALLS
