"""Remoting over loopback: server and client on real sockets, on both event loops, with time put forward by hand."""

from __future__ import annotations

import asyncio
import logging

import msgspec
import pytest
from remoting_stage import Runner, Stage, both_loops, echo, result  # noqa: F401 - a fixture

from saturnmq.kernel.errors import ConnectionLost, RequestTimeout, TopicNotFound
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Later
from saturnmq.net.remoting_server import RemotingConnection
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.command import ONE_WAY, Command, Response


@pytest.mark.parametrize("binary", [False, True])
def test_answers_come_in_order_and_in_the_encoding_of_the_question(run: Runner, binary: bool) -> None:
    async def main() -> None:
        async with Stage({310: echo}, remoting_requests_per_turn=3) as stage:
            peer = await stage.dial()
            peer.send(*(Command(310, n, fields={"n": str(n)}, body=b"x" * n, binary=binary) for n in range(50)))
            for n in range(50):
                answer = await peer.receive()
                assert (answer.opaque, answer.binary) == (n, binary)
                assert (answer.fields, answer.body) == ({"n": str(n)}, b"x" * n)
            assert stage.counted("saturnmq_remoting_connections{") == [
                'saturnmq_remoting_connections{server="stage"} 1'
            ]
            labels = 'server="stage",request_code="SEND_MESSAGE_V2",response_code="SUCCESS"'
            assert stage.counted("saturnmq_remoting_requests_total{") == [
                f"saturnmq_remoting_requests_total{{{labels}}} 50"
            ]

    run(main())


def test_who_comes_through_a_load_balancer(run: Runner) -> None:
    def ends(command: Command, connection: RemotingConnection) -> Response:
        return Response(remark=f"{connection.peer} {connection.local}")

    async def main() -> None:
        async with Stage({1: ends}) as stage:
            peer = await stage.dial()
            peer.writer.write(b"PROXY TCP6 2001:db8::1 ::1 1001 9876\r\n")
            peer.send(Command(1, 1))
            assert (await peer.receive()).remark == "[2001:db8::1]:1001 [::1]:9876"

    run(main())


def test_one_request_s_error_is_nobody_else_s(run: Runner, caplog: pytest.LogCaptureFixture) -> None:
    def missing(command: Command, connection: RemotingConnection) -> Response:
        raise TopicNotFound("no topic x: create it")

    def broken(command: Command, connection: RemotingConnection) -> Response:
        raise ZeroDivisionError("ours")

    def unencodable(command: Command, connection: RemotingConnection) -> Response:
        return Response(fields={"a": None})  # type: ignore[dict-item]

    def header(command: Command, connection: RemotingConnection) -> Response:
        msgspec.convert({}, Address)
        raise AssertionError

    async def main() -> None:
        async with Stage({1: missing, 2: broken, 3: echo, 4: header, 5: unencodable}) as stage:
            peer = await stage.dial()
            peer.send(*(Command(code, code, binary=code == 5) for code in (1, 2, 4, 5, 6, 3)))
            answers = [await peer.receive() for _ in range(6)]
            assert [(answer.opaque, answer.code, answer.remark) for answer in answers] == [
                (1, ResponseCode.TOPIC_NOT_EXIST, "no topic x: create it"),
                (2, ResponseCode.SYSTEM_ERROR, "this request made the server fail; its log says how"),
                (
                    4,
                    ResponseCode.SYSTEM_ERROR,
                    "the request cannot be understood: Object missing required field `host`",
                ),
                (5, ResponseCode.SYSTEM_ERROR, "this request made the server fail; its log says how"),
                (6, ResponseCode.REQUEST_CODE_NOT_SUPPORTED, " request type 6 not supported"),
                (3, ResponseCode.SUCCESS, None),
            ]
            assert stage.counted("saturnmq_remoting_unexpected_errors_total{")[0].endswith(" 2")

    with caplog.at_level(logging.WARNING):
        run(main())
    assert [type(record.exc_info[1]) for record in caplog.records if record.exc_info] == [
        ZeroDivisionError,
        AttributeError,
    ]


def test_one_way_requests_are_never_answered(run: Runner) -> None:
    parked: list[Later[Response | None]] = []

    def park(command: Command, connection: RemotingConnection) -> Later[Response | None]:
        parked.append(Later())
        return parked[-1]

    async def main() -> None:
        async with Stage({310: echo, 311: park, 312: lambda c, _: None}) as stage:
            peer = await stage.dial()
            peer.send(*(Command(code, code, ONE_WAY) for code in (310, 311, 999)), Command(312, 5), Command(310, 6))
            assert (await peer.receive()).opaque == 6
            parked[0].resolve(Response())
            peer.send(Command(310, 7))
            assert (await peer.receive()).opaque == 7

    run(main())


def test_answers_may_come_later(run: Runner) -> None:
    parked: dict[int, Later[Response | None]] = {}

    def park(command: Command, connection: RemotingConnection) -> Later[Response | None]:
        later = parked[command.opaque] = Later()
        return later

    async def main() -> None:
        async with Stage({11: park, 310: echo}, remoting_requests_waiting=3) as stage:
            peer = await stage.dial()
            peer.send(*(Command(11, n) for n in range(1, 5)), Command(310, 9))
            overload = await peer.receive()
            assert (overload.opaque, overload.code) == (4, ResponseCode.SYSTEM_BUSY)
            assert not parked[4].pending
            assert (await peer.receive()).opaque == 9
            parked[2].resolve(Response(19))
            parked[1].fail(TopicNotFound("gone"))
            assert [((a := await peer.receive()).opaque, a.code) for _ in range(2)] == [(2, 19), (1, 17)]
            cancelled = asyncio.Event()
            parked[3].on_cancel = cancelled.set
            peer.writer.close()
            await cancelled.wait()

    run(main())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x7f\xff\xff\xff", "claims 2147483647 bytes"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "an HTTP request came to this port, which speaks RocketMQ's Remoting"),
        (b"\x00\x00\x00\x04\x63\x00\x00\x00", "encoding 99"),
        (b"complete garbage", "claims"),
    ],
)
def test_garbage_costs_one_warning_and_its_own_connection(
    run: Runner, caplog: pytest.LogCaptureFixture, data: bytes, reason: str
) -> None:
    name = ""

    async def main() -> None:
        nonlocal name
        async with Stage({310: echo}) as stage:
            neighbour, peer = await stage.dial(), await stage.dial()
            name = peer.address
            peer.send(Command(310, 1))
            peer.writer.write(data)
            assert (await peer.receive()).opaque == 1
            assert await peer.closed()
            neighbour.send(Command(310, 2))
            assert (await neighbour.receive()).opaque == 2
            assert stage.counted("saturnmq_remoting_protocol_errors_total{")[0].endswith(" 1")

    with caplog.at_level(logging.WARNING):
        run(main())
    [record] = caplog.records
    assert f"closed the connection of {name}: " in record.getMessage()
    assert reason in record.getMessage()


def test_a_peer_that_does_not_read_is_not_read(run: Runner) -> None:
    handled = 0

    def large(command: Command, connection: RemotingConnection) -> Response:
        nonlocal handled
        handled += 1
        return Response(body=bytes(1 << 20))

    async def main() -> None:
        async with Stage({11: large}, connection_write_buffer_bytes=1 << 20) as stage:
            peer, other = await stage.dial(), await stage.dial()
            peer.send(*(Command(11, n) for n in range(200)))
            other.send(Command(11, 1))
            await other.receive()
            assert handled < 50  # what fits into the socket's buffers and ours
            for n in range(200):
                assert (await peer.receive()).opaque == n

    run(main())


def test_quiet_connections_are_closed_in_the_end(run: Runner) -> None:
    async def main() -> None:
        async with Stage({310: echo}) as stage:
            quiet, busy = await stage.dial(), await stage.dial()
            for _ in range(3):
                stage.clock.advance(50_000)
                busy.send(Command(310, 1))
                await busy.receive()
            assert await quiet.closed()
            busy.send(Command(310, 2))
            assert (await busy.receive()).opaque == 2

    run(main())


def test_a_peer_that_never_reads_is_cut_off(run: Runner, caplog: pytest.LogCaptureFixture) -> None:
    gone = asyncio.Event()

    def push(command: Command, connection: RemotingConnection) -> Response:
        connection.on_close.append(gone.set)
        for _ in range(64):
            connection.send_one_way(40, {}, bytes(1 << 20))
        return Response()

    async def main() -> None:
        async with Stage({34: push}, connection_unsent_bytes=16 << 20) as stage:
            peer = await stage.dial()
            peer.send(Command(34, 1))
            await gone.wait()

    with caplog.at_level(logging.WARNING):
        run(main())
    [record] = caplog.records
    assert "cut off 127.0.0.1:" in record.getMessage()
    assert "(connectionUnsentBytes)" in record.getMessage()


def test_what_is_not_read_before_the_connection_is_idle_is_dropped(run: Runner) -> None:
    gone = asyncio.Event()

    def large(command: Command, connection: RemotingConnection) -> Response:
        connection.on_close.append(gone.set)
        return Response(body=bytes(15 << 20))

    async def main() -> None:
        async with Stage({11: large, 310: echo}) as stage:
            peer, other = await stage.dial(), await stage.dial()
            peer.send(Command(11, 1))
            other.send(Command(310, 1))
            await other.receive()
            stage.clock.advance(120_000)  # closed, as far as we are concerned
            assert await other.closed()
            assert not gone.is_set()
            stage.clock.advance(120_000)
            await gone.wait()

    run(main())


def test_closing_answers_what_waits(run: Runner) -> None:
    parked: list[Later[Response | None]] = []
    is_parked = asyncio.Event()

    def park(command: Command, connection: RemotingConnection) -> Later[Response | None]:
        parked.append(Later())
        is_parked.set()
        return parked[-1]

    async def main() -> None:
        async with Stage({11: park}) as stage:
            peer, idle = await stage.dial(), await stage.dial()
            peer.send(Command(11, 1))
            await is_parked.wait()
            closing = asyncio.create_task(stage.server.close(60_000))
            assert await idle.closed()
            parked[0].resolve(Response())
            assert (await peer.receive()).opaque == 1
            assert await peer.closed()
            await closing
            with pytest.raises(ConnectionRefusedError):
                await stage.dial()

    run(main())


def test_closing_does_not_wait_for_ever(run: Runner) -> None:
    parked: list[Later[Response | None]] = []
    is_parked = asyncio.Event()

    def park(command: Command, connection: RemotingConnection) -> Later[Response | None]:
        parked.append(Later())
        is_parked.set()
        return parked[-1]

    async def main() -> None:
        async with Stage({11: park}) as stage:
            peer = await stage.dial()
            peer.send(Command(11, 1))
            await is_parked.wait()
            closing = asyncio.create_task(stage.server.close(60_000))
            await asyncio.sleep(0)
            stage.clock.advance(60_000)
            await closing
            assert await peer.closed()
            assert not parked[0].pending

    run(main())


def test_a_server_may_ask_its_clients(run: Runner) -> None:
    connections: list[RemotingConnection] = []

    def hello(command: Command, connection: RemotingConnection) -> Response:
        connections.append(connection)
        connection.send_one_way(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, {"consumerGroup": "g"})
        return Response()

    async def main() -> None:
        told = asyncio.Event()

        def notified(command: Command, connection: RemotingConnection) -> None:
            assert command.flag & ONE_WAY
            assert command.fields == {"consumerGroup": "g"}
            told.set()

        async with Stage({34: hello}) as stage:
            client = stage.client({326: echo, 40: notified, 307: lambda c, _: Later()})
            await result(client.request(stage.address, 34, {}, b"", 1000))
            await told.wait()
            [connection] = connections
            assert connection.local == stage.address
            answer = await result(connection.request(326, {"a": "b"}, b"reply", 1000))
            assert (answer.code, answer.fields, answer.body) == (0, {"a": "b"}, b"reply")

            waiting = connection.request(307, {}, b"", 5000)
            await result(connection.request(326, {}, b"", 1000))
            stage.clock.advance(5000)
            with pytest.raises(RequestTimeout, match="did not answer request 307 within 5000 ms"):
                await result(waiting)

            gone = asyncio.Event()
            connection.on_close.append(gone.set)
            waiting = connection.request(307, {}, b"", 5000)
            dropped = connection.request(307, {}, b"", 5000)
            dropped.cancel()
            await client.close()
            await gone.wait()
            with pytest.raises(ConnectionLost, match="was lost"):
                await result(waiting)
            with pytest.raises(ConnectionLost, match="is closed"):
                await result(connection.request(326, {}, b"", 1000))

    run(main())


def test_who_asks_a_client_about_itself_may_leave(run: Runner, caplog: pytest.LogCaptureFixture) -> None:
    """The request and the answer that it waits for are lost together."""
    gone = asyncio.Event()

    def relay(command: Command, connection: RemotingConnection) -> Later[Response | None]:
        connection.on_close.append(gone.set)
        return connection.request(307, {}, b"", 5000).map(lambda answer: Response())

    async def main() -> None:
        async with Stage({307: relay}) as stage:
            peer = await stage.dial()
            peer.send(Command(307, 1))
            assert (await peer.receive()).code == 307
            peer.writer.close()
            await gone.wait()

    run(main())
    assert caplog.records == []


def test_a_client_shares_one_connection_and_makes_a_new_one_when_it_is_lost(run: Runner) -> None:
    seen: list[RemotingConnection] = []

    def note(command: Command, connection: RemotingConnection) -> Response:
        seen.append(connection)
        return Response()

    async def main() -> None:
        async with Stage({1: note}) as stage:
            client = stage.client()
            client.one_way(stage.address, 1, {})
            asked = [client.request(stage.address, 1, {}, b"", 1000) for _ in range(3)]
            for later in asked:
                assert (await result(later)).code == 0
            client.one_way(stage.address, 1, {})
            await result(client.request(stage.address, 1, {}, b"", 1000))
            assert len(seen) == 6
            assert len(set(seen)) == 1
            assert client.local_address(stage.address) == seen[0].peer

            lost = asyncio.Event()
            seen[0].on_close.append(lost.set)
            seen[0].close()
            await lost.wait()
            await asyncio.sleep(0)
            try:
                await result(client.request(stage.address, 1, {}, b"", 1000))
            except ConnectionLost:  # the end was not seen yet
                await result(client.request(stage.address, 1, {}, b"", 1000))
            assert len(set(seen)) == 2
            await client.close()

    run(main())


def test_a_client_says_who_cannot_be_reached(run: Runner) -> None:
    async def main() -> None:
        async with Stage() as stage:
            client = stage.client()
            nobody = Address("127.0.0.1", 1)
            client.one_way(nobody, 1, {})
            with pytest.raises(ConnectionLost, match=r"127\.0\.0\.1:1 cannot be reached"):
                await result(client.request(nobody, 1, {}, b"", 1000))
            asked = client.request(stage.address, 1, {}, b"", 1000)
            given_up = client.request(stage.address, 1, {}, b"", 1000)
            given_up.cancel()
            await client.close()
            with pytest.raises(ConnectionLost, match="the client was closed"):
                await result(asked)

    run(main())
