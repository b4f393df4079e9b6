"""grpcurl, which knows of a server only what it reflects."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness.admin import Admin
from harness.programs import GO, ProgramSource, Toolchain, built_or_skipped
from harness.servers import Server, only_saturn

PACKAGE = "github.com/fullstorydev/grpcurl/cmd/grpcurl"
#: its version is in clients/grpcurl/go.mod
GRPCURL = ProgramSource(
    "grpcurl",
    Toolchain(
        needs=GO.needs, build=(("go", "build", "-buildvcs=false", "-o", "grpcurl", PACKAGE),), run=("./grpcurl",)
    ),
)
SERVICE = "apache.rocketmq.v2.MessagingService"

pytestmark = only_saturn  # Apache's Proxy has no reflection


class Grpcurl:
    def __init__(self, program: Path, address: str, transport: str) -> None:
        self._command = [str(program), transport, "-H", "x-mq-client-id: grpcurl"]
        self._address = address

    def run(self, *verb: str, data: dict[str, Any] | None = None) -> str:
        given = ["-d", json.dumps(data)] if data is not None else []
        done = subprocess.run(
            [*self._command, *given, self._address, *verb], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(params=["-plaintext", "-insecure"])
def grpcurl(request: pytest.FixtureRequest, server: Server) -> Grpcurl:
    """Without TLS, and with TLS whose certificate nobody vouches for."""
    return Grpcurl(built_or_skipped(GRPCURL) / "grpcurl", server.grpc, request.param)


def test_the_services(grpcurl: Grpcurl) -> None:
    assert grpcurl.run("list").split() == [
        SERVICE,
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ]


def test_the_methods_and_their_messages(grpcurl: Grpcurl) -> None:
    service = grpcurl.run("describe", SERVICE)
    assert "rpc SendMessage ( .apache.rocketmq.v2.SendMessageRequest )" in service
    assert "rpc Telemetry ( stream .apache.rocketmq.v2.TelemetryCommand )" in service
    assert service.count("  rpc ") == 17
    message = grpcurl.run("describe", ".apache.rocketmq.v2.QueryRouteRequest")
    assert ".apache.rocketmq.v2.Resource topic = 1;" in message


def test_a_call(grpcurl: Grpcurl, admin: Admin, server: Server) -> None:
    topic = admin.create_topic(queues=1)
    answer = json.loads(grpcurl.run(f"{SERVICE}/QueryRoute", data={"topic": {"name": topic}}))
    assert answer["status"]["code"] == "OK"
    (queue,) = answer["messageQueues"]
    assert queue["topic"]["name"] == topic
    (address,) = queue["broker"]["endpoints"]["addresses"]
    assert f"{address['host']}:{address['port']}" == server.grpc


def test_a_consumer_that_keeps_its_own_place(grpcurl: Grpcurl, admin: Admin) -> None:
    topic, group = admin.create_topic(queues=1), {"name": admin.create_group()}
    [queue] = json.loads(grpcurl.run(f"{SERVICE}/QueryRoute", data={"topic": {"name": topic}}))["messageQueues"]
    place = {"topic": {"name": topic}, "id": queue.get("id", 0), "broker": {"name": queue["broker"]["name"]}}
    message = {
        "topic": {"name": topic},
        "body": "eA==",
        "systemProperties": {"messageId": "01" + "A" * 32, "messageType": "NORMAL", "bodyEncoding": "IDENTITY"},
    }
    grpcurl.run(f"{SERVICE}/SendMessage", data={"messages": [message]})

    pull = {"group": group, "messageQueue": place, "batchSize": 32}
    answer = grpcurl.run(f"{SERVICE}/PullMessage", data=pull)
    assert '"body": "eA=="' in answer
    assert '"nextOffset": "1"' in answer
    end = json.loads(grpcurl.run(f"{SERVICE}/QueryOffset", data={"messageQueue": place, "queryOffsetPolicy": "END"}))
    assert end["offset"] == "1"
    mine = {"group": group, "messageQueue": place}
    assert json.loads(grpcurl.run(f"{SERVICE}/GetOffset", data=mine))["status"]["code"] == "OFFSET_NOT_FOUND"
    grpcurl.run(f"{SERVICE}/UpdateOffset", data={**mine, "offset": "1"})
    assert json.loads(grpcurl.run(f"{SERVICE}/GetOffset", data=mine))["offset"] == "1"
