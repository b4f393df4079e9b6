"""What peers can make a Remoting port hold: bounded for each of them and for all, and the others are served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from remoting_stage import Peer, Runner, Stage, both_loops, echo  # noqa: F401 - a fixture

from saturnmq.kernel.config import Limits
from saturnmq.kernel.later import Later
from saturnmq.kernel.metrics import Metrics
from saturnmq.net.remoting_connection import RemotingConnection
from saturnmq.net.remoting_traffic import TURN_BYTES, GivesWay, Refusals, Share, Traffic
from saturnmq.testing.clock import VirtualClock
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.command import ONE_WAY, Command, Response
from saturnmq.wire.remoting.connection import encode

OLD, NEW = 475, 476


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until then; the test has a time-out."""
    while not condition():  # noqa: ASYNC110 - what is waited for is the server's own
        await asyncio.sleep(0)


class Parking:
    """A handler whose answers wait until the test gives them."""

    def __init__(self) -> None:
        self.parked: list[Later[Response | None]] = []
        self.commands: list[Command] = []

    def __call__(self, command: Command, connection: RemotingConnection) -> Later[Response | None]:
        self.commands.append(command)
        self.parked.append(Later())
        return self.parked[-1]

    async def wait_for(self, number: int) -> None:
        await until(lambda: len(self.parked) >= number)


async def busy(peer: Peer) -> str:
    """The remark of the refusal that it gets next."""
    answer = await peer.receive()
    assert answer.code == ResponseCode.SYSTEM_BUSY
    assert answer.remark is not None
    return answer.remark


def limited(stage: Stage) -> dict[str, int]:
    lines = stage.counted("saturnmq_remoting_limited_total{")
    return {line.partition('limit="')[2].partition('"')[0]: int(line.rpartition(" ")[2]) for line in lines}


# -------------------------------------------------------------------------------------------- waiting requests


def test_a_send_is_refused_before_it_is_stored_and_says_since_when(run: Runner) -> None:
    async def main() -> None:
        park = Parking()
        async with Stage({310: park, 11: park, 34: echo}, remoting_requests_waiting=3) as stage:
            peer, neighbour = await stage.dial(), await stage.dial()
            peer.send(*(Command(310, n, body=b"body") for n in range(4)), Command(34, 9))
            remark = await busy(peer)
            assert remark == (
                "[OVERLOAD]3 requests of this connection wait for their answers, as many as may "
                "(remotingRequestsWaiting), since 0.0 s; try again later"
            )
            assert (await peer.receive()).opaque == 9, "what does not wait is served"
            stage.clock.advance(700)
            peer.send(Command(310, 5))
            assert "since 0.7 s" in await busy(peer)
            assert len(park.parked) == 3, "the handler never saw them"
            assert {command.body for command in park.commands} == {b""}, "what waits holds no body"
            peer.send(Command(11, 6))  # a pull leaves nothing behind: it is asked, and given up
            await busy(peer)
            assert not park.parked.pop().pending
            neighbour.send(Command(11, 7))
            await park.wait_for(4)
            assert stage.counted("saturnmq_remoting_waiting_requests{") == [
                'saturnmq_remoting_waiting_requests{server="stage"} 4'
            ]
            for later in park.parked:
                later.resolve(Response())
            assert {(await peer.receive()).opaque for _ in range(3)} == {0, 1, 2}
            stage.clock.advance(5000)
            peer.send(*(Command(310, n) for n in range(4)))
            assert "since 0.0 s" in await busy(peer), "the limit was not reached all the time"
            assert limited(stage) == {"remotingRequestsWaiting": 4}

    run(main())


def test_all_connections_together_are_bounded_too(run: Runner) -> None:
    async def main() -> None:
        park = Parking()
        async with Stage({310: park, 34: echo}, remoting_requests_waiting_in_all=3) as stage:
            first, second = await stage.dial(), await stage.dial()
            first.send(Command(310, 1), Command(310, 2))
            await park.wait_for(2)
            second.send(Command(310, 3), Command(310, 4))
            assert "3 requests of all connections wait" in (remark := await busy(second))
            assert "(remotingRequestsWaitingInAll)" in remark
            second.send(Command(34, 5))
            assert (await second.receive()).opaque == 5
            gone = asyncio.Event()
            park.parked[0].on_cancel = gone.set
            first.writer.close()
            await gone.wait()
            second.send(Command(310, 6), Command(310, 7))
            await park.wait_for(5)
            assert stage.counted("saturnmq_remoting_waiting_requests{")[0].endswith(" 3")

    run(main())


def test_a_flood_that_nobody_waits_for(run: Runner) -> None:
    """One-way requests that wait are bounded as others are; those over the limit are dropped, and counted."""

    async def main() -> None:
        park = Parking()
        async with Stage({310: park, 15: echo, 34: echo}, remoting_requests_waiting=10) as stage:
            peer, neighbour = await stage.dial(), await stage.dial()
            peer.send(*(Command(310 if n % 2 else 15, n, ONE_WAY) for n in range(2000)), Command(34, 2000))
            neighbour.send(Command(34, 1))
            assert (await neighbour.receive()).opaque == 1
            assert (await peer.receive()).opaque == 2000, "none of them was answered"
            assert len(park.parked) == 10
            assert limited(stage) == {"remotingRequestsWaiting": 990}

    run(main())


def test_since_when() -> None:
    refusals = Refusals()
    texts = [str(refusals.busy(now_ms, 1, "of x", "y")) for now_ms in (5_000, 5_999, 6_998, 8_000)]
    assert [text.partition("since ")[2].partition(" s")[0] for text in texts] == ["0.0", "1.0", "2.0", "0.0"]


# --------------------------------------------------------------------------------------------------- held bytes


def part(opaque: int, size: int, of: int = 1_000_000) -> bytes:
    """The first bytes of a frame."""
    return encode(Command(310, opaque, body=bytes(of)))[:size]


async def held(stage: Stage, size: int) -> None:
    """Returns when the port holds so many bytes."""
    await until(lambda: stage.counted("saturnmq_remoting_held_bytes{")[0].endswith(f" {size}"))


def test_who_holds_most_is_refused_and_goes_on(run: Runner, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with Stage({310: echo}, remoting_held_bytes=1_000_000) as stage:
            slow, slower, neighbour = await stage.dial(), await stage.dial(), await stage.dial()
            slow.writer.write(part(1, 600_000))
            await held(stage, 600_000)
            slower.writer.write(part(2, 300_000))
            await held(stage, 900_000)
            neighbour.send(Command(310, 3, body=bytes(200_000)))
            assert (await neighbour.receive()).opaque == 3
            answer = await slow.receive()
            assert (answer.opaque, answer.code) == (1, ResponseCode.SYSTEM_BUSY)
            assert "600000 bytes" in (answer.remark or "")
            assert "(remotingHeldBytes)" in (answer.remark or "")
            # the rest of the request that was refused is passed over
            whole = part(1, 2_000_000)
            slow.writer.write(whole[600_000:-1])
            slow.writer.write(whole[-1:] + encode(Command(310, 4, body=b"next")))
            answer = await slow.receive()
            assert (answer.opaque, answer.body) == (4, b"next")
            slower.writer.write(part(2, 2_000_000)[300_000:])
            assert (await slower.receive()).opaque == 2
            await held(stage, 0)
            assert limited(stage) == {"remotingHeldBytes": 1}

    with caplog.at_level(logging.WARNING):
        run(main())
    [record] = caplog.records
    assert "refused a request of" in record.getMessage()


def test_a_header_that_does_not_come_costs_the_connection(run: Runner) -> None:
    async def main() -> None:
        async with Stage({310: echo}, remoting_held_bytes=1_000_000) as stage:
            peer, neighbour = await stage.dial(), await stage.dial()
            peer.writer.write((15_000_000).to_bytes(4, "big") + (14_000_000).to_bytes(4, "big") + bytes(999_000))
            await held(stage, 999_008)
            peer.writer.write(bytes(1_000))
            assert await peer.closed()
            neighbour.send(Command(310, 1))
            assert (await neighbour.receive()).opaque == 1
            await held(stage, 0)

    run(main())


def test_requests_behind_a_peer_that_does_not_read_are_held(run: Runner, caplog: pytest.LogCaptureFixture) -> None:
    def large(command: Command, connection: RemotingConnection) -> Response:
        return Response(body=bytes(8 << 20))

    async def main() -> None:
        async with Stage({11: large, 310: echo}, remoting_held_bytes=100_000) as stage:
            peer, neighbour = await stage.dial(), await stage.dial()
            peer.send(*(Command(11, n, body=bytes(1000)) for n in range(200)))
            assert await peer.closed()
            neighbour.send(Command(310, 1))
            assert (await neighbour.receive()).opaque == 1

    with caplog.at_level(logging.WARNING):
        run(main())
    assert "cut off" in caplog.text
    assert "(remotingHeldBytes)" in caplog.text


# ------------------------------------------------------------------------------------------------- unsent bytes


class SlowTransport(asyncio.Transport):
    """Takes what is written; the peer takes it when the test says so."""

    def __init__(self) -> None:
        super().__init__({"peername": ("10.0.0.1", 50_000), "sockname": ("127.0.0.1", 10_911)})
        self.connection: RemotingConnection | None = None
        self.unsent = 0
        self.reads, self.is_aborted = True, False
        self.writes = self._high = 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high or 0

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert self.connection is not None
        self.writes += 1
        before, self.unsent = self.unsent, self.unsent + len(data)
        if before <= self._high < self.unsent:
            self.connection.pause_writing()

    def drained(self) -> None:
        assert self.connection is not None
        self.unsent = 0
        self.connection.resume_writing()

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True


class SlowPeers:
    """Connections of one port whose peers read only when the test says so."""

    def __init__(self, **limits: Any) -> None:
        self.clock, self.metrics = VirtualClock(), Metrics()
        self.traffic = Traffic(self.metrics, "stage", self.clock, Limits(**limits))

    def dial(self) -> SlowTransport:
        transport = SlowTransport()
        handlers = {11: lambda command, _: Response(body=bytes(int(command.fields["size"])))}
        transport.connection = RemotingConnection(
            handlers, self.clock, self.traffic, lambda connection: None, lambda connection: None
        )
        transport.connection.connection_made(transport)
        return transport

    def ask(self, transport: SlowTransport, size: int) -> None:
        assert transport.connection is not None
        transport.connection.data_received(encode(Command(11, 1, fields={"size": str(size)})))
        self.clock.run_soon()


def test_what_one_turn_asks_is_one_write() -> None:
    peers = SlowPeers()
    peer = peers.dial()
    assert peer.connection is not None
    for _ in range(10):
        peer.connection.request(310, {}, b"body", 1_000)
    peer.connection.send_one_way(40, {})
    assert peer.writes == 0
    peers.clock.run_soon()
    assert peer.writes == 1
    peer.connection.request(310, {}, bytes(100_000), 1_000)
    assert peer.writes == 2, "what is large does not wait for more"


def test_who_leaves_too_much_unread_is_not_read_until_it_has_taken_all() -> None:
    peers = SlowPeers(connection_write_buffer_bytes=200_000, connection_unsent_bytes=1_000_000)
    slow = peers.dial()
    peers.ask(slow, 50_000)
    assert peers.traffic.unsent.total == 0, "it is not behind yet"
    peers.ask(slow, 50_000)
    assert 100_000 < peers.traffic.unsent.total < 101_000
    assert slow.reads
    peers.ask(slow, 120_000)
    assert not slow.reads
    asked = peers.traffic.unsent.total
    peers.ask(slow, 100_000)  # what the socket had read before
    assert peers.traffic.unsent.total == asked, "it waits to be handled"
    assert peers.traffic.held.total > 0
    slow.drained()
    assert peers.traffic.unsent.total == 0
    peers.clock.run_soon()
    assert slow.reads
    assert 100_000 < slow.unsent < 101_000
    assert peers.traffic.held.total == 0
    peers.ask(slow, 1_000_000)
    assert slow.is_aborted
    assert peers.traffic.unsent.total == 0


def test_who_leaves_most_unread_is_cut_off_when_all_leave_too_much(caplog: pytest.LogCaptureFixture) -> None:
    peers = SlowPeers(remoting_unsent_bytes=1_000_000)
    slow, slower, quick = peers.dial(), peers.dial(), peers.dial()
    peers.ask(slow, 300_000)
    peers.ask(slower, 500_000)
    assert [peer.is_aborted for peer in (slow, slower)] == [False, False]
    peers.ask(quick, 300_000)
    assert [peer.is_aborted for peer in (slow, slower, quick)] == [False, True, False]
    quick.drained()
    assert 300_000 < peers.traffic.unsent.total < 301_000
    assert slow.connection is not None
    slow.connection.connection_lost(None)
    assert peers.traffic.unsent.total == 0
    [record] = caplog.records
    assert "bytes unread (remotingUnsentBytes)" in record.getMessage()
    line = 'saturnmq_remoting_limited_total{server="stage",limit="remotingUnsentBytes"} 1\n'
    assert line in "".join(peers.metrics.lines())


def test_what_a_turn_of_the_loop_makes_is_bounded() -> None:
    """Whoever is not served in this one is served in the next."""
    peers = SlowPeers(connection_write_buffer_bytes=100 << 20, connection_unsent_bytes=100 << 20)
    dialled = [peers.dial() for _ in range(4)]
    for peer in dialled:
        assert peer.connection is not None
        peer.connection.data_received(encode(Command(11, 1, fields={"size": str(TURN_BYTES // 2 + 1)})))
    assert [peer.unsent > 0 for peer in dialled] == [True, True, False, False]
    assert [peer.reads for peer in dialled] == [True, True, False, False]
    peers.clock.run_soon()
    assert all(peer.unsent > 0 and peer.reads for peer in dialled)


class Holder:
    """A connection that gives up all at once."""

    def __init__(self) -> None:
        self.share: Share | None = None

    def give_up_held(self) -> None:
        assert self.share is not None
        self.share.set(self, 0)

    give_up_unsent = give_up_held


def test_a_share_is_the_sum_of_what_everybody_has() -> None:
    gave: list[GivesWay] = []

    def give_way(connection: GivesWay) -> None:
        gave.append(connection)
        connection.give_up_held()

    share = Share(100, give_way)
    small, large = Holder(), Holder()
    small.share = large.share = share
    share.set(large, 80)
    share.set(large, 60)
    share.set(small, 40)
    assert (share.total, gave) == (100, [])
    share.set(small, 41)
    assert (share.total, gave) == (41, [large])
    share.set(small, 101)
    assert (share.total, gave) == (0, [large, small])


# ----------------------------------------------------------------------------------------------------- stopping


@pytest.mark.parametrize("code", [310, 999])
def test_who_understands_it_is_sent_elsewhere_when_the_server_stops(run: Runner, code: int) -> None:
    async def main() -> None:
        park = Parking()
        async with Stage({310: echo, 11: park, 15: park}) as stage:
            new, old = await stage.dial(), await stage.dial()
            for peer in (new, old):
                peer.send(Command(11, 1))
            await park.wait_for(2)
            closing = asyncio.create_task(stage.server.close(60_000))
            for _ in range(5):  # turns of the loop, in which it begins to close
                await asyncio.sleep(0)
            new.send(Command(code, 2, version=NEW), Command(15, 3, ONE_WAY, version=NEW), Command(310, 4, version=NEW))
            for opaque in (2, 4):
                answer = await new.receive()
                assert (answer.opaque, answer.code) == (opaque, ResponseCode.GO_AWAY)
                assert answer.remark == "please go away: this server stops, others may serve you"
            assert len(park.parked) == 3, "what nobody waits for is done"
            park.parked.pop().resolve(None)
            old.send(Command(code, 2, version=OLD))
            answer = await old.receive()
            assert answer.opaque == 2
            assert answer.code == (ResponseCode.SUCCESS if code == 310 else ResponseCode.REQUEST_CODE_NOT_SUPPORTED)
            assert not closing.done()
            for later in park.parked:
                later.resolve(Response())
            for peer in (new, old):
                assert (await peer.receive()).opaque == 1
                assert await peer.closed()
            await closing
            counted = stage.counted("saturnmq_remoting_requests_total{")
            assert any('response_code="GO_AWAY"' in line for line in counted)

    run(main())


def test_a_peer_that_goes_on_asking_does_not_hold_up_a_stop(run: Runner) -> None:
    async def main() -> None:
        async with Stage({310: echo}) as stage:
            peer = await stage.dial()
            peer.send(Command(310, 0))
            await peer.receive()
            closing = asyncio.create_task(stage.server.close(1_000))
            refused = 0
            while not closing.done():
                peer.send(Command(RequestCode.SEND_MESSAGE_V2, 1, version=NEW))
                try:
                    refused += (await peer.receive()).code == ResponseCode.GO_AWAY
                except (AssertionError, ConnectionError):
                    break
                stage.clock.advance(10)
            await closing
            assert refused > 10

    run(main())
