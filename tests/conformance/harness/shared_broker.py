"""A data directory and a `broker.conf` that Apache's broker and ours serve in turn."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.admin import (
    GET_ROUTEINFO_BY_TOPIC,
    POLL_S,
    ROUTE_TIMEOUT_S,
    AdminError,
    RemotingConnection,
)
from harness.apache import START_TIMEOUT_S, Apache, ApacheProcess
from harness.pipeline import Stored, read_back
from harness.servers import free_broker_port
from saturnmq.testing.server import ServerProcess

Server = Literal["apache", "saturn"]
OTHER: dict[Server, Server] = {"apache": "saturn", "saturn": "apache"}
CLUSTER, BROKER = "DefaultCluster", "broker-a"
QUERY_CONSUMER_OFFSET = 14
SEARCH_OFFSET_BY_TIMESTAMP = 29
GET_MIN_OFFSET = 31
GET_TOPIC_CONFIG = 351
GET_SUBSCRIPTIONGROUP_CONFIG = 352
#: several log, queue and index files, with blanks at their ends, of a few thousand messages
SMALL_FILES = {
    "mappedFileSizeCommitLog": 256 * 1024,
    "mappedFileSizeConsumeQueue": 2_000,
    "maxHashSlotNum": 500,
    "maxIndexNum": 1_000,
}
#: on a machine with little to spare Apache refuses messages that waited for a fifth of a second
PATIENT = {"brokerFastFailureEnable": "false", "osPageCacheBusyTimeOutMills": 20_000}
#: a crash forgets what changed in config files since: each server's own setting, milliseconds
SOON_WRITTEN = {"flushConsumerOffsetInterval": 200, "flushIntervalConfig": 200}


@dataclass(frozen=True)
class Finding:
    """What `saturnmq admin verify` tells."""

    path: str
    at: int | None
    what: str


class SharedBroker:
    """Owner of the process that serves the directory now. Use `kill` at the end."""

    def __init__(
        self,
        home: Path,
        apache: Apache,
        namesrv: str,
        settings: Mapping[str, object],
        apaches: Mapping[str, object] | None = None,
    ) -> None:
        """`apaches`: settings that only Apache's broker is given."""
        self._home, self._apache, self.namesrv = home, apache, namesrv
        self._apaches = apaches or {}
        self.port = free_broker_port()
        #: which it is known under
        self.address = f"{settings.get('brokerIP1', '127.0.0.1')}:{self.port}"
        self.data_dir = home / "store"
        self.settings = {
            "brokerClusterName": CLUSTER,
            "brokerName": BROKER,
            "brokerId": 0,
            "brokerIP1": "127.0.0.1",
            "listenPort": self.port,
            "namesrvAddr": namesrv,
            "storePathRootDir": self.data_dir,
            **settings,
        }
        self.conf = home / "broker.conf"
        self.conf.write_text("".join(f"{key}={value}\n" for key, value in self.settings.items()))
        self._process: ApacheProcess | ServerProcess | None = None
        self._connection: RemotingConnection | None = None

    # ------------------------------------------------------------------------------------------- who serves it

    def start(self, server: Server, host: str = "127.0.0.1") -> None:
        """Returns when the NameServer knows the broker. `host` is where ours listens; Apache's listens everywhere."""
        assert self._process is None, "it runs already"
        if server == "apache":
            settings = ";".join(f"{key}={value}" for key, value in {**self.settings, **self._apaches}.items())
            self._process = self._apache.start(
                "broker", self.port, NAMESRV=self.namesrv, BROKER_PORT=str(self.port), BROKER_CONF=settings
            )
        else:
            process = self.saturn(host)
            process.start()
            self._process = process
        self._connection = RemotingConnection(f"{host}:{self.port}")
        self.wait_for_route("TBW102")

    def saturn(self, host: str = "127.0.0.1") -> ServerProcess:
        """Our broker, not started."""
        arguments = ("-c", str(self.conf), "--host", host, "--http-port", "0")
        return ServerProcess("broker", *arguments, home=self._home)

    def stop(self) -> None:
        process = self._ended()
        status = process.stop()
        assert not status, f"it ended with status {status}"

    def kill(self) -> None:
        """As a crash; nothing when nobody serves it."""
        if self._process is not None:
            self._ended().kill()

    def _ended(self) -> ApacheProcess | ServerProcess:
        assert self._process is not None, "it does not run"
        process, self._process = self._process, None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        return process

    def wait_for_route(self, topic: str) -> None:
        connection = RemotingConnection(self.namesrv)
        deadline = time.monotonic() + START_TIMEOUT_S
        try:
            while True:
                try:
                    body = connection.call(GET_ROUTEINFO_BY_TOPIC, topic=topic, acceptStandardJsonOnly="true")
                except AdminError:
                    body = b"{}"
                if self.address in body.decode():
                    return
                assert time.monotonic() < deadline, f"{self.namesrv} does not learn of {topic} at {self.address}"
                time.sleep(POLL_S)
        finally:
            connection.close()

    # ------------------------------------------------------------------------------------------ what is in it

    @property
    def connection(self) -> RemotingConnection:
        assert self._connection is not None
        return self._connection

    def queues(self) -> dict[str, list[int]]:
        """Of each topic that ever had a message."""
        folder = self.data_dir / "consumequeue"
        return {
            topic.name: sorted(int(queue.name) for queue in topic.iterdir() if any(queue.iterdir()))
            for topic in sorted(folder.iterdir())
        }

    def has_messages(self, topic: str) -> bool:
        return topic in self.queues()

    def messages(self) -> dict[tuple[str, int, int], Stored]:
        """Every message, as consumers get it: topic, queue and offset → what stands there."""
        return {
            (topic, stored.queue_id, stored.queue_offset): stored
            for topic, queues in self.queues().items()
            for stored in read_back(self.connection, topic, queues[-1] + 1)
        }

    def offset_by_time(self, topic: str, queue_id: int, time_ms: int) -> int:
        _, fields = self.connection.ask(
            SEARCH_OFFSET_BY_TIMESTAMP, topic=topic, queueId=str(queue_id), timestamp=str(time_ms)
        )
        return int(fields["offset"])

    def committed(self, group: str, topic: str, queue_id: int) -> int | None:
        try:
            _, fields = self.connection.ask(
                QUERY_CONSUMER_OFFSET, consumerGroup=group, topic=topic, queueId=str(queue_id)
            )
        except AdminError:
            return None
        return int(fields["offset"])

    def topic(self, name: str) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(self.connection.call(GET_TOPIC_CONFIG, topic=name))
        return config

    def group(self, name: str) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(self.connection.call(GET_SUBSCRIPTIONGROUP_CONFIG, group=name))
        return config

    def wait_written(self, file: str, *texts: str) -> None:
        """Until a config file says all of it."""
        path = self.data_dir / "config" / file
        deadline = time.monotonic() + ROUTE_TIMEOUT_S
        while True:
            said = path.read_text() if path.exists() else ""
            if all(text in said for text in texts):
                return
            assert time.monotonic() < deadline, f"{path} does not say {texts}: {said}"
            time.sleep(POLL_S)

    def verify(self) -> tuple[list[Finding], list[Finding]]:
        """Damages and notes of `saturnmq admin verify`."""
        command = [sys.executable, "-m", "saturnmq", "admin", "verify", str(self.data_dir), "--json", "-c"]
        done = subprocess.run([*command, str(self.conf)], capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert lines, done.stderr
        found: dict[str, list[Finding]] = {"damage": [], "note": []}
        for line in lines[:-1]:
            found[line["kind"]].append(Finding(line["path"], line["at"], line["what"]))
        assert bool(done.returncode) == bool(found["damage"])
        return found["damage"], found["note"]
