"""Operators' verbs against servers that answer as told; real ones are in tests/conformance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar, cast

import pytest

from saturnmq.admin.deadletters import DeadLetter
from saturnmq.admin.operations import Operations
from saturnmq.kernel import properties as names
from saturnmq.kernel.errors import ConnectionLost, RequestTimeout, SaturnError
from saturnmq.kernel.hashing import jump_hash
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Later
from saturnmq.kernel.message import Message
from saturnmq.kernel.subscription import tag_hash
from saturnmq.kernel.topic import BrokerData, QueueData, TopicRoute
from saturnmq.net.remoting_client import RemotingClient
from saturnmq.wire import record
from saturnmq.wire.remoting.bodies import TopicList, encode
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command

T = TypeVar("T")
NAMES, SECOND, BROKER = Address("names", 1), Address("names", 2), Address("broker", 3)
HOST = bytes([127, 0, 0, 1, 0, 0, 0, 3])
Answer = Command | BaseException
Asked = tuple[Address, int, dict[str, str]]


class Servers:
    """A `RemotingClient` whose servers are functions by request code."""

    def __init__(self, **answers: Callable[[Asked], Answer]) -> None:
        self.answers = answers
        self.asked: list[Asked] = []
        self.operations = Operations(cast(RemotingClient, self), [NAMES, SECOND])

    def request(
        self, address: Address, code: int, fields: Mapping[str, str], body: bytes, timeout_ms: int
    ) -> Later[Command]:
        asked = (address, code, dict(fields))
        self.asked.append(asked)
        answer = self.answers.get(RequestCode(code).name, nothing)(asked)
        later: Later[Command] = Later()
        if isinstance(answer, Command):
            later.resolve(answer)
        else:
            later.fail(answer)
        return later

    def sent(self) -> dict[str, str]:
        [fields] = [fields for _, code, fields in self.asked if code == RequestCode.SEND_MESSAGE_V2]
        return fields


def answered(code: int = 0, body: bytes = b"", **fields: str) -> Command:
    return Command(code, 1, fields=fields, body=body, remark="because")


def nothing(asked: Asked) -> Answer:
    return answered(ResponseCode.QUERY_NOT_FOUND)


def run(act: Coroutine[Any, Any, T]) -> T:
    async def main() -> T:
        return await act

    return asyncio.run(main())


def stored(**properties: str) -> bytes:
    message = Message("%DLQ%g", 0, b"x", names.encode(properties), 7, HOST)
    return record.encode(message, queue_offset=0, commit_log_offset=100, stored_ms=9, store_host=HOST)


def letter(**properties: str) -> DeadLetter:
    return DeadLetter.of("g", "broker-a", BROKER, stored(**{"UNIQ_KEY": "ID", "RETRY_TOPIC": "orders", **properties}))


def indexed(asked: Asked) -> Answer:
    """The letter is found, and nothing else with its id."""
    is_dlq = asked[2]["topic"].startswith("%DLQ%")
    return answered(body=stored(UNIQ_KEY="ID")) if is_dlq else answered(ResponseCode.QUERY_NOT_FOUND)


def route(perm: int = 6, queues: int = 4) -> Command:
    brokers = [BrokerData(cluster="c", broker_name="broker-a", broker_addrs={0: str(BROKER)})]
    data = [QueueData(broker_name="broker-a", read_queue_nums=queues, write_queue_nums=queues, perm=perm)]
    return answered(body=encode(TopicRoute(broker_datas=brokers, queue_datas=data)))


def test_a_letter_is_sent_to_the_broker_that_has_it() -> None:
    servers = Servers(QUERY_MESSAGE=indexed, SEND_MESSAGE_V2=lambda _: answered())
    assert run(servers.operations.resend(letter(), "orders")) is True
    assert (servers.asked[-1][0], servers.sent()["e"], servers.sent()["j"]) == (BROKER, "-1", "0")


def test_a_message_group_keeps_its_queue() -> None:
    answers = {"QUERY_MESSAGE": indexed, "SEND_MESSAGE_V2": lambda _: answered()}
    servers = Servers(**answers, GET_ROUTEINFO_BY_TOPIC=lambda _: route())
    run(servers.operations.resend(letter(__SHARDINGKEY="line"), "orders"))
    assert servers.sent()["e"] == str(jump_hash(tag_hash("line"), 4))


def test_without_the_index_nothing_is_sent() -> None:
    servers = Servers()
    with pytest.raises(SaturnError, match="messageIndexEnable"):
        run(servers.operations.resend(letter(), "orders"))
    servers = Servers(SEND_MESSAGE_V2=lambda _: answered())
    assert run(servers.operations.resend(letter(), "orders", again=True)) is True


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (RequestTimeout("no answer"), "is not known"),
        (ConnectionLost("gone"), "is not known"),
        (answered(ResponseCode.TOPIC_NOT_EXIST), "make it there"),
        (answered(ResponseCode.SYSTEM_BUSY), "answered 2: because"),
    ],
)
def test_what_was_not_sent_is_said(answer: Answer, says: str) -> None:
    servers = Servers(QUERY_MESSAGE=indexed, SEND_MESSAGE_V2=lambda _: answer)
    with pytest.raises(SaturnError, match=says):
        run(servers.operations.resend(letter(), "orders"))


def test_what_is_in_the_log_is_sent() -> None:
    servers = Servers(QUERY_MESSAGE=indexed, SEND_MESSAGE_V2=lambda _: answered(ResponseCode.FLUSH_DISK_TIMEOUT))
    assert run(servers.operations.resend(letter(), "orders")) is True


@pytest.mark.parametrize(
    ("read", "topic"),
    [
        (["orders", "%RETRY%g"], "%RETRY%g"),
        (["orders", "%RETRY%g_orders"], "%RETRY%g_orders"),
        (["orders"], None),
        (["%RETRY%g", "%RETRY%g+orders"], None),
    ],
)
def test_the_retry_topic_of_a_group(read: list[str], topic: str | None) -> None:
    servers = Servers(QUERY_TOPICS_BY_CONSUMER=lambda _: answered(body=encode(TopicList(read))))
    if topic is None:
        with pytest.raises(SaturnError, match="--to topic"):
            run(servers.operations.retry_topic_for(letter()))
    else:
        assert run(servers.operations.retry_topic_for(letter())) == topic
    assert run(servers.operations.retry_topic_for(letter(RETRY_TOPIC="%RETRY%g_orders"))) == "%RETRY%g_orders"


async def listed(operations: Operations) -> list[str]:
    return [one.message_id async for one in operations.dead_letters("g")]


def test_dead_letters_that_may_not_be_read() -> None:
    servers = Servers(GET_ROUTEINFO_BY_TOPIC=lambda _: route(perm=2))
    with pytest.raises(SaturnError, match="updateTopicPerm"):
        run(listed(servers.operations))


def test_another_name_server_answers() -> None:
    def second(asked: Asked) -> Answer:
        return ConnectionLost("down") if asked[0] == NAMES else answered(ResponseCode.TOPIC_NOT_EXIST)

    assert run(listed(Servers(GET_ROUTEINFO_BY_TOPIC=second).operations)) == []
    servers = Servers(GET_ROUTEINFO_BY_TOPIC=lambda _: ConnectionLost("down"))
    with pytest.raises(SaturnError, match="no NameServer answers"):
        run(listed(servers.operations))
