"""A broker without sockets, threads, disk or real time, for tests that drive it request by request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from saturnmq.broker import remoting
from saturnmq.broker.broker import Broker
from saturnmq.disk.simulated import SimulatedDisk
from saturnmq.kernel import properties as names
from saturnmq.kernel.config import BrokerConfig, StoreConfig
from saturnmq.kernel.errors import SaturnError
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Later, Reply, hear
from saturnmq.kernel.message import StoredMessage
from saturnmq.kernel.metrics import Metrics
from saturnmq.net.remoting_connection import RemotingConnection
from saturnmq.store.store import Store
from saturnmq.testing.clock import InlineBackground, VirtualClock
from saturnmq.wire import record
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode, response_code
from saturnmq.wire.remoting.command import Command, Response

#: files that a disk in memory makes quickly
SMALL = {
    "flush_disk_type": "ASYNC_FLUSH",
    "mapped_file_size_commit_log": 1 << 20,
    "mapped_file_size_consume_queue": 20_000,
    "max_hash_slot_num": 500,
    "max_index_num": 2000,
}


class OfflineConnection(RemotingConnection):
    """A client's connection that only remembers. `told` and `asked` are what the broker said through it."""

    def __init__(self, peer: str = "10.0.0.1:50000", local: str = "127.0.0.1:10911") -> None:
        self.peer, self.local = Address.parse(peer), Address.parse(local)
        self.on_close, self.channels = [], {}
        self._behind = False
        self.told: list[tuple[int, dict[str, str]]] = []
        #: of what was told
        self.bodies: list[bytes] = []
        self.asked: list[tuple[int, dict[str, str], bytes, Later[Command]]] = []

    def send_one_way(self, code: int, fields: Mapping[str, str], body: bytes = b"") -> None:
        self.told.append((code, dict(fields)))
        self.bodies.append(body)

    def request(self, code: int, fields: Mapping[str, str], body: bytes, timeout_ms: int) -> Later[Command]:
        answer: Later[Command] = Later()
        self.asked.append((code, dict(fields), body, answer))
        return answer

    def close(self) -> None:
        for call in self.on_close:
            call()


class Asked:
    """A request to the broker and what a client would see of it: errors are the response that they become."""

    def __init__(self, reply: Reply[Response | None]) -> None:
        self.reply = reply
        self._response: Response | None = None
        hear(reply, self._answered, self._failed)

    @property
    def waits(self) -> bool:
        """It is not answered yet."""
        return self._response is None

    @property
    def code(self) -> int:
        return self._answer.code

    @property
    def remark(self) -> str:
        return self._answer.remark or ""

    @property
    def fields(self) -> dict[str, str]:
        return self._answer.fields

    @property
    def body(self) -> bytes:
        return self._answer.body

    def cancel(self) -> None:
        """As when the client's connection is lost."""
        assert isinstance(self.reply, Later), "it waits"
        self.reply.cancel()

    @property
    def _answer(self) -> Response:
        assert self._response is not None, "it waits"
        return self._response

    def _answered(self, response: Response | None) -> None:
        self._response = response

    def _failed(self, error: BaseException) -> None:
        if not isinstance(error, SaturnError):
            raise error
        self._response = Response(response_code(error), str(error))


class OfflineBroker:
    """A Broker over a Store on a SimulatedDisk, with its Remoting table; `restart` is another process on the disk."""

    def __init__(
        self,
        disk: SimulatedDisk | None = None,
        clock: VirtualClock | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        store_settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.clock = clock or VirtualClock()
        self.disk = disk or SimulatedDisk()
        self.settings, self.store_settings = settings or {}, store_settings or {}
        self.metrics = Metrics()
        background = InlineBackground(self.clock)
        store_config = StoreConfig(**{**SMALL, **self.store_settings})
        self.store = Store(self.disk, store_config, self.clock, background, background)
        self.store.open()
        self.drawn = 0
        self.broker = Broker(
            BrokerConfig(**self.settings), self.store, self.clock, random=self._random, metrics=self.metrics
        )
        self.broker.start()
        self.handlers = remoting.table(self.broker)
        self.connection = OfflineConnection()
        self.clock.run_soon()

    def ask(
        self,
        code: int,
        fields: Mapping[str, object] | None = None,
        body: bytes = b"",
        connection: RemotingConnection | None = None,
        version: int = 479,
    ) -> Asked:
        """Send a request and let this turn of the loop end."""
        texts = {
            name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in (fields or {}).items()
            if value is not None
        }
        command = Command(int(code), 1, fields=texts, body=body, version=version)
        try:
            asked = Asked(self.handlers[command.code](command, connection or self.connection))
        except SaturnError as error:
            asked = Asked(Response(response_code(error), str(error)))
        except msgspec.ValidationError as error:  # as RemotingConnection answers it
            asked = Asked(Response(ResponseCode.SYSTEM_ERROR, f"the request cannot be understood: {error}"))
        self.clock.run_soon()
        return asked

    def send(
        self,
        topic: str,
        body: bytes = b"x",
        *,
        queue_id: int = 0,
        header: Mapping[str, object] | None = None,
        **properties: str,
    ) -> Asked:
        """Code 310. A unique key is added."""
        fields = {
            "a": "producers", "b": topic, "c": "TBW102", "d": 4, "e": queue_id, "f": 0, "g": 1_600_000_000_000, "h": 0,
            "i": names.encode({names.UNIQUE_KEY: "KEY", **properties}).decode(), "j": 0, "k": False, "m": False,
        }  # fmt: skip
        return self.ask(RequestCode.SEND_MESSAGE_V2, {**fields, **(header or {})}, body)

    def pull(self, group: str, topic: str, offset: int, *, queue_id: int = 0, **header: object) -> Asked:
        """Code 11, with the subscription in the header; `suspendTimeoutMillis` waits."""
        waits = 2 if "suspendTimeoutMillis" in header else 0
        fields = {
            "consumerGroup": group, "topic": topic, "queueId": queue_id, "queueOffset": offset, "maxMsgNums": 32,
            "sysFlag": 4 | waits, "commitOffset": 0, "suspendTimeoutMillis": 0, "subVersion": 0, "subscription": "*",
        }  # fmt: skip
        return self.ask(RequestCode.PULL_MESSAGE, {**fields, **header})

    def heartbeat(
        self,
        client_id: str,
        *,
        consumers: Mapping[str, list[str]] | None = None,
        producers: Sequence[str] = (),
        connection: RemotingConnection | None = None,
        **more: object,
    ) -> Asked:
        """Code 34. `consumers` are groups and the topics that they subscribe to."""
        body = {
            "clientID": client_id,
            "producerDataSet": [{"groupName": group} for group in producers],
            "consumerDataSet": [
                {
                    "groupName": group,
                    "consumeType": "CONSUME_PASSIVELY",
                    "messageModel": "CLUSTERING",
                    "consumeFromWhere": "CONSUME_FROM_LAST_OFFSET",
                    "subscriptionDataSet": [
                        {"topic": topic, "subString": "*", "subVersion": self.clock.now_ms(), "expressionType": "TAG"}
                        for topic in topics
                    ],
                }
                for group, topics in (consumers or {}).items()
            ],
            **more,
        }
        return self.ask(RequestCode.HEART_BEAT, body=json.write(body), connection=connection)

    def stored(self, topic: str, queue_id: int = 0) -> list[StoredMessage]:
        """What readers can see of a queue."""
        reply = self.store.get(topic, queue_id, self.store.min_offset(topic, queue_id), 1000, 1 << 30)
        assert not isinstance(reply, Later), "nothing is cold here"
        return [record.decode(data) for data in reply.records]

    def stop(self) -> None:
        self.broker.stop()
        self.clock.run_soon()
        self.store.close()
        self.clock.run_soon()

    def restart(self) -> OfflineBroker:
        """Stop, and start again on the same disk."""
        self.stop()
        return OfflineBroker(self.disk, self.clock, settings=self.settings, store_settings=self.store_settings)

    def _random(self, below: int) -> int:
        self.drawn += 1
        return self.drawn % below
