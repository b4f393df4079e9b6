"""What a NameServer answers, over a real connection."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from saturnmq.kernel.config import Limits
from saturnmq.kernel.host import Address
from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.topic import DataVersion, TopicConfig, TopicRoute
from saturnmq.nameserver.remoting import table
from saturnmq.net.clock import LoopClock
from saturnmq.net.remoting_client import RemotingClient
from saturnmq.net.remoting_server import RemotingServer
from saturnmq.testing.nameserver import name_server
from saturnmq.wire.remoting import bodies
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command

BROKER = {"clusterName": "c", "brokerName": "a", "brokerAddr": "10.0.0.1:10911", "brokerId": "0"}
TOPICS = {name: TopicConfig(topic_name=name, read_queue_nums=4, write_queue_nums=4) for name in ("t", "u")}
VERSION = DataVersion(1, 0, 5)


class Stage:
    address: Address

    def __init__(self) -> None:
        clock = LoopClock(asyncio.get_running_loop())
        self.names = name_server(clock)
        self.routes = self.names.routes
        self.server = RemotingServer(table(self.names), clock, Limits(), Metrics(), "namesrv")
        self.client = RemotingClient(clock, Limits(), Metrics())

    async def ask(self, code: RequestCode, fields: dict[str, str] | None = None, body: bytes = b"") -> Command:
        answer: asyncio.Future[Command] = asyncio.get_running_loop().create_future()
        self.client.request(self.address, code, fields or {}, body, 5000).then(answer.set_result, answer.set_exception)
        return await answer

    async def register(self, compressed: bool = False, **changes: str) -> Command:
        body = bodies.encode_registration(
            bodies.RegisterBrokerBody(bodies.TopicConfigTable(TOPICS, VERSION)), compressed=compressed
        )
        crc = str(zlib.crc32(body) & 0x7FFFFFFF)
        fields = {**BROKER, "haServerAddr": "10.0.0.1:10912", "bodyCrc32": crc, "compressed": "false", **changes}
        return await self.ask(RequestCode.REGISTER_BROKER, fields, body)


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    stage.address = await stage.server.listen("127.0.0.1", 0)
    yield stage
    await stage.client.close()
    await stage.server.close(1000)


def test_a_broker_registers_and_its_topics_are_found() -> None:
    async def main() -> None:
        async with stage() as s:
            for compressed in (False, True):
                answer = await s.register(compressed)
                assert (answer.code, answer.fields) == (0, {})
            replica = await s.register(brokerId="1", brokerAddr="10.0.0.2:10911")
            assert replica.fields == {"haServerAddr": "10.0.0.1:10912", "masterAddr": "10.0.0.1:10911"}

            route = bodies.decode(TopicRoute, (await s.ask(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": "t"})).body)
            assert route.broker_datas[0].broker_addrs == {0: "10.0.0.1:10911", 1: "10.0.0.2:10911"}
            assert route.queue_datas[0].write_queue_nums == 4
            unknown = await s.ask(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": "nope"})
            assert unknown.code == ResponseCode.TOPIC_NOT_EXIST
            assert "Create it" in (unknown.remark or "")

            topics = await s.ask(RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER)
            assert bodies.decode(bodies.TopicList, topics.body).topic_list == ["t", "u"]
            clusters = msgspec.json.decode((await s.ask(RequestCode.GET_BROKER_CLUSTER_INFO)).body)
            assert clusters["clusterAddrTable"] == {"c": ["a"]}
            assert clusters["brokerAddrTable"]["a"]["brokerAddrs"] == {"0": "10.0.0.1:10911", "1": "10.0.0.2:10911"}
            members = await s.ask(RequestCode.GET_BROKER_MEMBER_GROUP, {"clusterName": "c", "brokerName": "a"})
            assert msgspec.json.decode(members.body) == {
                "brokerMemberGroup": {
                    "cluster": "c",
                    "brokerName": "a",
                    "brokerAddrs": {"0": "10.0.0.1:10911", "1": "10.0.0.2:10911"},
                }
            }

    asyncio.run(main())


def test_a_broker_leaves_by_itself_or_with_its_connection() -> None:
    async def main() -> None:
        async with stage() as s:
            await s.register()
            assert (await s.ask(RequestCode.UNREGISTER_BROKER, BROKER)).code == 0
            assert s.routes.brokers == {}
            await s.register()
            await s.register(brokerName="b", brokerAddr="10.0.0.2:10911")
            assert set(s.routes.brokers) == {"a", "b"}
            await s.client.close()
            await s.server.close(1000)
            assert s.routes.brokers == {}

    asyncio.run(main())


def test_data_versions_are_compared() -> None:
    async def main() -> None:
        async with stage() as s:

            async def changed(version: DataVersion) -> tuple[str, bytes]:
                answer = await s.ask(RequestCode.QUERY_DATA_VERSION, BROKER, bodies.encode(version))
                return answer.fields["changed"], answer.body

            assert await changed(VERSION) == ("true", b"")
            await s.register()
            assert await changed(VERSION) == ("false", bodies.encode(VERSION))
            assert await changed(DataVersion(2, 0, 6)) == ("true", bodies.encode(VERSION))
            assert (await s.ask(RequestCode.BROKER_HEARTBEAT, BROKER)).code == 0

    asyncio.run(main())


def test_a_broker_on_all_addresses_is_where_the_client_dialled() -> None:
    async def main() -> None:
        async with stage() as s:
            await s.register(brokerAddr="0.0.0.0:10911")
            for code, fields in (
                (RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": "t"}),
                (RequestCode.GET_BROKER_CLUSTER_INFO, {}),
            ):
                body = (await s.ask(code, fields)).body
                assert b'"brokerAddrs":{"0":"127.0.0.1:10911"}' in body
            assert s.routes.brokers["a"].broker_addrs == {0: "0.0.0.0:10911"}

    asyncio.run(main())


def test_a_port_that_serves_the_broker_too_names_itself() -> None:
    async def main() -> None:
        async with stage() as s:
            await s.register()
            server = RemotingServer(
                table(s.names, lambda local: local),
                LoopClock(asyncio.get_running_loop()),
                Limits(),
                Metrics(),
                "proxy",
            )
            s.address = await server.listen("127.0.0.1", 0)
            body = (await s.ask(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": "t"})).body
            assert f'"brokerAddrs":{{"0":"{s.address}"}}'.encode() in body
            await server.close(1000)

    asyncio.run(main())


def test_mistakes_are_answered() -> None:
    async def main() -> None:
        async with stage() as s:
            wrong: list[tuple[Any, ...]] = [
                (await s.register(bodyCrc32="1"), ResponseCode.SYSTEM_ERROR, "crc32 not match"),
                (await s.register(brokerId="x"), ResponseCode.SYSTEM_ERROR, "brokerId"),
                (
                    await s.ask(RequestCode.REGISTER_BROKER, {**BROKER, "haServerAddr": ""}, b"garbage"),
                    ResponseCode.INVALID_PARAMETER,
                    "RegisterBrokerBody",
                ),
                (
                    await s.ask(
                        RequestCode.REGISTER_BROKER,
                        {**BROKER, "haServerAddr": ""},
                        bodies.encode(bodies.RegisterBrokerBody(bodies.TopicConfigTable({"t": TOPICS["t"]}))),
                    ),
                    ResponseCode.SYSTEM_ERROR,
                    "register broker failed",
                ),
                (await s.ask(RequestCode.GET_ROUTEINFO_BY_TOPIC), ResponseCode.SYSTEM_ERROR, "topic"),
                (await s.ask(RequestCode.SEND_MESSAGE), ResponseCode.REQUEST_CODE_NOT_SUPPORTED, "10 not supported"),
            ]
            for answer, code, words in wrong:
                assert answer.code == code
                assert words in answer.remark
            assert s.routes.brokers == {}

    asyncio.run(main())
