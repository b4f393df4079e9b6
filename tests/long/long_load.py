"""A client that asks a lot at once: what was acknowledged, and what can be read back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, NamedTuple, TypeVar

from saturnmq.kernel.config import Limits
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Reply
from saturnmq.kernel.message import StoredMessage
from saturnmq.kernel.metrics import Metrics
from saturnmq.net.clock import LoopClock
from saturnmq.net.remoting_client import RemotingClient
from saturnmq.net.tasks import wait_reply
from saturnmq.wire.record import decode, split
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command

T = TypeVar("T")

TIMEOUT_MS = 60_000
#: requests on their way
WINDOW = 500


class Sent(NamedTuple):
    """A message and its answer: a response code and a remark."""

    topic: str
    queue_id: int
    body: bytes
    code: int
    remark: str
    #: in its queue, when it was acknowledged
    offset: int = -1

    @property
    def acknowledged(self) -> bool:
        return self.code == ResponseCode.SUCCESS


class Load:
    """Requests to one server. Each call connects anew: the server may be another one than before."""

    def __init__(self, address: Callable[[], str]) -> None:
        self._address = address

    def send(
        self, messages: Iterable[tuple[str, int, bytes]], until: Callable[[Sent], bool] = lambda _: False
    ) -> list[Sent]:
        """Send them, or as many as came before an answer that `until` takes; a lost connection is an answer too."""

        async def run(client: RemotingClient, address: Address) -> list[Sent]:
            done: list[Sent] = []
            places = asyncio.Semaphore(WINDOW)
            stop = False

            async def one(topic: str, queue_id: int, body: bytes) -> None:
                nonlocal stop
                try:
                    fields = send_fields(topic, queue_id)
                    answer = await _asked(client, address, RequestCode.SEND_MESSAGE_V2, fields, body)
                    offset = int(answer.fields.get("queueOffset", -1))
                    sent = Sent(topic, queue_id, body, answer.code, answer.remark or "", offset)
                except Exception as error:  # noqa: BLE001 - it is what the sender sees
                    sent = Sent(topic, queue_id, body, -1, str(error))
                finally:
                    places.release()
                done.append(sent)
                stop = stop or until(sent)

            async with asyncio.TaskGroup() as tasks:
                for message in messages:
                    await places.acquire()
                    if stop:
                        break
                    tasks.create_task(one(*message))
            return done

        return self._run(run)

    def ask(self, code: int, fields: dict[str, str], body: bytes = b"") -> Command:
        return self._run(lambda client, address: _asked(client, address, code, fields, body))

    def pull(self, topic: str, queue_id: int) -> list[bytes]:
        """The bodies of a queue, from its first message on."""
        return [stored.body for stored in self.read(topic, queue_id)]

    def read(self, topic: str, queue_id: int, offset: int = 0) -> list[StoredMessage]:
        """A queue from this offset or its first message on."""

        async def run(client: RemotingClient, address: Address) -> list[StoredMessage]:
            found: list[StoredMessage] = []
            at = offset
            while True:
                fields = pull_fields(topic, queue_id, at)
                answer = await _asked(client, address, RequestCode.PULL_MESSAGE, fields)
                if answer.code == ResponseCode.SUCCESS:
                    found += [decode(record, check_crc=True) for record in split(answer.body)]
                elif answer.code not in (ResponseCode.PULL_RETRY_IMMEDIATELY, ResponseCode.PULL_OFFSET_MOVED):
                    assert answer.code == ResponseCode.PULL_NOT_FOUND, (answer.code, answer.remark)
                    return found
                at = int(answer.fields["nextBeginOffset"])

        return self._run(run)

    def _run(self, call: Callable[[RemotingClient, Address], Coroutine[Any, Any, T]]) -> T:
        async def run() -> T:
            clock = LoopClock(asyncio.get_running_loop())
            client = RemotingClient(clock, Limits(), Metrics())
            try:
                return await call(client, Address.parse(self._address()))
            finally:
                await client.close()

        return asyncio.run(run())


def eventually(look: Callable[[], T], holds: Callable[[T], bool], seconds: float = 20) -> T:
    """What `look` gives once it `holds`."""
    deadline = time.monotonic() + seconds
    while not holds(found := look()):
        assert time.monotonic() < deadline, f"after {seconds} s still {found!r}"[:2000]
        time.sleep(0.2)
    return found


async def _asked(
    client: RemotingClient, address: Address, code: int, fields: dict[str, str], body: bytes = b""
) -> Command:
    reply: Reply[Command] = client.request(address, code, fields, body, TIMEOUT_MS)
    return await wait_reply(reply)


def send_fields(topic: str, queue_id: int, properties: str = "") -> dict[str, str]:
    return {
        "a": "producers", "b": topic, "c": "TBW102", "d": "4", "e": str(queue_id), "f": "0", "g": "1", "h": "0",
        "i": properties, "j": "0", "k": "false", "m": "false",
    }  # fmt: skip


def pull_fields(topic: str, queue_id: int, offset: int, wait_ms: int = 0) -> dict[str, str]:
    return {
        "consumerGroup": "readers", "topic": topic, "queueId": str(queue_id), "queueOffset": str(offset),
        "maxMsgNums": "1000", "sysFlag": "6" if wait_ms else "4", "commitOffset": "0",
        "suspendTimeoutMillis": str(wait_ms), "subVersion": "0", "subscription": "*", "expressionType": "TAG",
    }  # fmt: skip
