"""NameServer and Broker of SaturnMQ as processes of their own."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path

from harness.admin import GET_ROUTEINFO_BY_TOPIC, AdminError, RemotingConnection
from harness.clients import Message
from harness.remoting import RemotingClient
from saturnmq.testing.server import ServerProcess

TOPIC_NOT_EXIST = 17
#: of what happens at once, on a machine that is busy
SOON_S = 10


class Processes:
    """Starts processes of ours and ends them; each has its directory below `home`."""

    def __init__(self, home: Path, opened: ExitStack) -> None:
        self._home, self._opened = home, opened

    def namesrv(self, port: int = 0, name: str = "namesrv") -> ServerProcess:
        files = ("--data-dir", str(self._home / name / "data"))
        return self._start(name, "namesrv", *files, "--port", str(port), "--http-port", "0")

    def broker(self, *arguments: str, name: str = "broker-a") -> ServerProcess:
        files = ("--data-dir", str(self._home / name / "data"))
        ports = ("--port", "0", "--http-port", "0", "--test-clock")
        return self._start(name, "broker", *files, *ports, "--set", f"brokerName={name}", *arguments)

    def _start(self, name: str, *arguments: str) -> ServerProcess:
        home = self._home / name
        home.mkdir(exist_ok=True)
        process = ServerProcess(*arguments, home=home)
        process.start()
        self._opened.callback(lambda: process.running and process.kill())
        return process


def route(namesrv: str, topic: str = "TBW102") -> dict[str, str]:
    """Broker name → address; empty when the NameServer does not know the topic."""
    connection = RemotingConnection(namesrv)
    try:
        data = json.loads(connection.call(GET_ROUTEINFO_BY_TOPIC, topic=topic, acceptStandardJsonOnly="true"))
    except AdminError as error:
        if error.code != TOPIC_NOT_EXIST:
            raise
        return {}
    finally:
        connection.close()
    return {broker["brokerName"]: broker["brokerAddrs"]["0"] for broker in data["brokerDatas"]}


def wait_for_route(namesrv: str, brokers: dict[str, str], timeout_s: float = SOON_S) -> None:
    deadline = time.monotonic() + timeout_s
    while (known := route(namesrv)) != brokers:
        assert time.monotonic() < deadline, f"{namesrv} knows {known}, not {brokers}"
        time.sleep(0.02)


def exchange(client: RemotingClient, topic: str) -> None:
    """A message there and back."""
    client.producer().send([Message(topic, b"there and back")])
    (received,) = client.push("exchange", {topic: "*"}).take(1)
    assert received.message.body == b"there and back"
