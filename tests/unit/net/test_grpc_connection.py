"""A gRPC connection over a transport and a clock that the test moves by hand."""

from __future__ import annotations

import gc
import gzip
import logging
from collections.abc import Callable
from typing import Any, cast

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saturnmq.kernel.config import Limits
from saturnmq.kernel.errors import NotFound, SaturnError
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Later
from saturnmq.kernel.metrics import Metrics
from saturnmq.net.grpc_connection import Call, GrpcConnection, Kind, Method, Route, Traffic
from saturnmq.testing.clock import VirtualClock
from saturnmq.wire.grpc import GrpcError, GrpcStatus
from saturnmq.wire.http2 import frames
from saturnmq.wire.http2.frames import ErrorCode, Setting, frame
from saturnmq.wire.http2.hpack import encode


class FakeTransport:
    """What uvloop's transport does, without a peer: bytes pile up until the test takes them."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.reading = True
        self.closed = self.aborted = False
        self.unsent_bytes = 0

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.writes.append(data)

    def get_extra_info(self, name: str) -> tuple[str, int]:
        return {"peername": ("10.0.0.1", 4000), "sockname": ("10.0.0.2", 8081)}[name]

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True


class Peer:
    """A client that writes frames, and the server's connection."""

    def __init__(
        self,
        limits: Limits | None = None,
        peer_settings: dict[Setting, int] | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        self.clock = VirtualClock()
        self.metrics = Metrics()
        self.traffic = traffic or Traffic(self.metrics)
        self.routes: dict[bytes, Route] = {}
        self.gone: list[GrpcConnection] = []
        self.transport = FakeTransport()
        limits = limits or Limits()
        self.connection = GrpcConnection(
            self.routes, self.clock, limits, self.traffic, lambda _: None, self.gone.append
        )
        self.connection.connection_made(cast(Any, self.transport))
        self.decoder = hpack.Decoder()
        self.say(frames.PREFACE + frames.settings(peer_settings or {}))
        self.transport.writes.clear()

    def serve(
        self, kind: Kind, handler: Callable[..., Any], refuse: Callable[[Call, SaturnError], None] | None = None
    ) -> None:
        self.routes[b"/s/m"] = Route(Method(kind, handler, refuse), "s/m", ("s/m", "OK"))

    def say(self, *pieces: bytes) -> None:
        self.connection.data_received(b"".join(pieces))

    def ask(self, stream_id: int = 1, message: bytes = b"q", /, **headers: str) -> None:
        self.say(request(stream_id, message, **headers))

    def heard(self) -> dict[int, list[Any]]:
        """By stream: header lists as dicts, bodies as bytes, resets as their code. Forgets it."""
        written, found = b"".join(self.transport.writes), dict[int, list[Any]]()
        self.transport.writes.clear()
        while written:
            word, _, stream_id = frames.HEADER.unpack_from(written)
            end = frames.HEADER_BYTES + (word >> 8)
            payload, written = written[frames.HEADER_BYTES : end], written[end:]
            said = found.setdefault(stream_id, [])
            if word & 0xFF == frames.HEADERS:
                block = self.decoder.decode(payload, raw=True)
                said.append({name.decode(): value.decode() for name, value in block})
            elif word & 0xFF == frames.DATA:
                said.append(payload)
            elif word & 0xFF == frames.RST_STREAM:
                said.append(ErrorCode(int.from_bytes(payload, "big")))
            elif word & 0xFF == frames.GOAWAY:
                said.append(("goaway", ErrorCode(int.from_bytes(payload[4:8], "big"))))
        return found

    def status(self, stream_id: int = 1) -> tuple[GrpcStatus, str]:
        for said in self.heard()[stream_id]:
            if isinstance(said, dict) and "grpc-status" in said:
                return GrpcStatus(int(said["grpc-status"])), said.get("grpc-message", "")
        raise AssertionError("no status")

    def counted(self, name: str) -> dict[tuple[str, ...], int]:
        return dict(getattr(self.traffic, name).values)


def body(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def opening(stream_id: int, ended: bool = False, /, **headers: str) -> bytes:
    fields = {":method": "POST", ":scheme": "http", ":path": "/s/m", "content-type": "application/grpc"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    block = encode((name.encode(), value.encode()) for name, value in fields.items())
    return frame(frames.HEADERS, frames.END_HEADERS | ended, stream_id, block)


def data(stream_id: int, payload: bytes, ended: bool = False) -> bytes:
    return frame(frames.DATA, int(ended), stream_id, payload)


def request(stream_id: int = 1, message: bytes = b"q", /, **headers: str) -> bytes:
    return opening(stream_id, **headers) + data(stream_id, body(message), True)


ANSWER = {":status": "200", "content-type": "application/grpc"}
OK = {"grpc-status": "0"}


# -- unary


def test_requests_of_one_read_are_answered_in_one_write() -> None:
    peer = Peer()
    peer.serve(Kind.UNARY, lambda call, question: question + b"!")
    peer.say(*(request(stream_id, b"%d" % stream_id) for stream_id in (1, 3, 5)))
    assert len(peer.transport.writes) == 1
    assert peer.heard() == {stream_id: [ANSWER, body(b"%d!" % stream_id), OK] for stream_id in (1, 3, 5)}
    assert peer.counted("requests") == {("s/m", "OK"): 3}


def test_what_a_handler_sees() -> None:
    peer = Peer()
    calls: list[Call] = []

    def handle(call: Call, question: bytes) -> bytes:
        calls.append(call)
        return b""

    peer.serve(Kind.UNARY, handle)
    peer.ask(x_mq_client_id="me", grpc_timeout="3S", host="example:8081")
    (call,) = calls
    assert call.path == "/s/m"
    assert call.headers[b"x-mq-client-id"] == b"me"
    assert call.authority == "example:8081"
    assert call.peer == Address("10.0.0.1", 4000)
    assert call.local == Address("10.0.0.2", 8081)
    assert call.deadline_ms == peer.clock.steady_ms() + 3000
    assert not call.open


def test_replies_that_come_later_leave_together() -> None:
    peer = Peer()
    laters: list[Later[bytes]] = []

    def park(call: Call, question: bytes) -> Later[bytes]:
        laters.append(Later())
        return laters[-1]

    peer.serve(Kind.UNARY, park)
    peer.say(request(1), request(3))
    assert peer.transport.writes == []
    laters[1].resolve(b"second")
    laters[0].resolve(b"first")
    assert peer.transport.writes == []
    peer.clock.run_soon()
    assert len(peer.transport.writes) == 1
    assert peer.heard() == {3: [ANSWER, body(b"second"), OK], 1: [ANSWER, body(b"first"), OK]}


def test_nothing_of_a_unary_call_is_left_to_the_garbage_collector() -> None:
    peer = Peer()
    later: list[Later[bytes]] = []
    peer.serve(Kind.UNARY, lambda call, question: b"now" if question == b"now" else later[-1])
    gc.collect()
    peer.ask(1, b"now")
    later.append(Later())
    peer.ask(3, b"later")
    later.pop().resolve(b"")
    peer.clock.run_soon()
    assert gc.collect() == 0


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (GrpcError(GrpcStatus.NOT_FOUND, "no 100% such thing\n"), GrpcStatus.NOT_FOUND, "no 100%25 such thing%0A"),
        (ValueError("secret"), GrpcStatus.INTERNAL, "internal error: the server's log has the details"),
    ],
)
def test_errors_of_handlers(
    error: Exception, status: GrpcStatus, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    peer = Peer()
    later: Later[bytes] = Later()

    def handle(call: Call, question: bytes) -> Later[bytes]:
        if question == b"raise":
            raise error
        return later

    peer.serve(Kind.UNARY, handle)
    peer.ask(1, b"raise")
    assert peer.status() == (status, message)
    peer.ask(3, b"later")
    later.fail(error)
    peer.clock.run_soon()
    assert peer.status(3) == (status, message)
    assert len([record for record in caplog.records if record.exc_info]) == (2 if status == GrpcStatus.INTERNAL else 0)
    assert peer.counted("requests") == {("s/m", status.name): 2}


def test_a_handler_that_answers_nonsense(caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer()
    later: Later[Any] = Later()
    peer.serve(Kind.UNARY, lambda call, question: None if question == b"now" else later)
    peer.say(request(1, b"now"), request(3, b"later"))
    later.resolve(1)
    peer.clock.run_soon()
    assert [said[0]["grpc-status"] for said in peer.heard().values()] == ["13", "13"]
    assert len(caplog.records) == 2


def test_a_unary_call_takes_one_message() -> None:
    peer = Peer()
    peer.serve(Kind.UNARY, lambda call, question: b"")
    peer.say(opening(1, True))
    assert peer.status()[0] == GrpcStatus.UNIMPLEMENTED
    peer.say(opening(3), data(3, body(b"a") + body(b"b"), True))
    assert peer.status(3)[0] == GrpcStatus.UNIMPLEMENTED
    peer.say(opening(5), data(5, body(b"a")), data(5, body(b"b"), True))
    assert peer.status(5)[0] == GrpcStatus.UNIMPLEMENTED
    peer.say(opening(7), data(7, body(b"abc")[:-1], True))
    assert peer.status(7) == (GrpcStatus.INTERNAL, "the request ends inside a message")


def test_a_message_in_pieces() -> None:
    peer = Peer()
    peer.serve(Kind.UNARY, lambda call, question: question)
    whole = body(b"x" * 100)
    peer.say(opening(1), data(1, whole[:3]))
    peer.say(data(1, whole[3:50]))
    peer.say(data(1, whole[50:]), data(1, b"", True))
    assert peer.heard()[1] == [ANSWER, whole, OK]


def test_not_a_call_of_ours() -> None:
    peer = Peer()
    peer.ask(1, **{":path": "/apache.rocketmq.v2.MessagingService/Nope"})
    assert peer.status() == (
        GrpcStatus.UNIMPLEMENTED,
        "apache.rocketmq.v2.MessagingService/Nope is not implemented by SaturnMQ",
    )
    peer.serve(Kind.UNARY, lambda call, question: b"")
    peer.ask(3, content_type="application/json")
    head, text, end = peer.heard()[3]
    assert head[":status"] == "415"
    assert b"speaks gRPC" in text
    assert end == b""
    peer.say(opening(11, content_type="text/plain"), data(11, b"more "))
    assert 11 not in peer.heard()
    peer.say(data(11, b"to come", True))
    assert peer.heard()[11][0][":status"] == "415"
    peer.ask(13, grpc_timeout="soon")
    assert peer.status(13)[0] == GrpcStatus.INVALID_ARGUMENT
    peer.ask(15, grpc_encoding="deflate")  # not compressed after all
    assert peer.heard()[15][-1] == OK
    peer.say(opening(17, grpc_encoding="deflate"), data(17, b"\1\0\0\0\1x", True))
    assert peer.status(17)[0] == GrpcStatus.UNIMPLEMENTED


def test_a_message_over_the_limit_is_refused_from_its_length() -> None:
    peer = Peer(Limits(grpc_message_bytes=1000))
    peer.serve(Kind.UNARY, lambda call, question: b"")
    peer.say(opening(1), data(1, body(bytes(1001))[:10]))
    said = peer.heard()[1]
    assert said[0]["grpc-status"] == "8"
    assert said[1] == ErrorCode.NO_ERROR  # stop sending
    assert peer.counted("limits") == {("grpc_message_bytes",): 1}


def test_incomplete_messages_of_all_calls_are_bounded() -> None:
    peer = Peer(Limits(grpc_message_bytes=10_000))
    peer.serve(Kind.UNARY, lambda call, question: b"")
    for stream_id in (1, 3):
        peer.say(opening(stream_id), data(stream_id, body(bytes(9000))[:4900]))
    peer.say(opening(5), data(5, body(bytes(9000))[:4900]))
    assert peer.status(5)[0] == GrpcStatus.RESOURCE_EXHAUSTED
    peer.say(frames.rst_stream(1, 8), opening(7), data(7, body(bytes(9000))[:4900]))
    assert 7 not in peer.heard()
    peer.say(frames.rst_stream(3, 8), opening(9), data(9, body(bytes(10_001))))
    peer.say(frames.rst_stream(7, 8))
    assert peer.connection._held_bytes == peer.traffic.held_bytes == 0
    assert peer.counted("limits") == {("grpc_held_bytes",): 1, ("grpc_message_bytes",): 1}


def test_a_message_counts_until_its_request_ends() -> None:
    peer = Peer(Limits(grpc_message_bytes=10_000))
    peer.serve(Kind.UNARY, lambda call, question: b"")
    for stream_id in (1, 3):
        peer.say(opening(stream_id), data(stream_id, body(bytes(4900))))
    peer.say(opening(5), data(5, body(bytes(4900))))
    assert peer.status(5)[0] == GrpcStatus.RESOURCE_EXHAUSTED
    peer.say(data(1, b"", True), data(3, b"", True))
    assert [peer.heard()[stream_id][-1] for stream_id in (1,)] == [OK]
    assert peer.traffic.held_bytes == 0


def test_incomplete_messages_of_all_connections_are_bounded() -> None:
    limits = Limits(grpc_message_bytes=10_000, grpc_held_bytes=25_000)
    peers = [Peer(limits)]
    peers += [Peer(limits, traffic=peers[0].traffic) for _ in range(2)]
    for peer in peers:
        peer.serve(Kind.UNARY, lambda call, question: b"")
        peer.say(opening(1), data(1, body(bytes(9000))[:8500]))
    assert [1 in peer.heard() for peer in peers] == [False, False, True]
    peers[0].connection.connection_lost(None)
    peers[2].say(opening(3), data(3, body(bytes(9000))[:8500]))
    assert 3 not in peers[2].heard()


def test_requests_that_are_never_finished_end() -> None:
    """A stream that waits for us keeps a connection; it does not keep another one's half request."""
    peer = Peer(Limits(grpc_idle_ms=20_000))
    peer.serve(Kind.UNARY, lambda call, question: b"")
    peer.routes[b"/s/talk"] = Route(Method(Kind.BIDI, lambda call: None), "talk", ("talk", "OK"))
    peer.say(opening(1, **{":path": "/s/talk"}), opening(3), data(3, body(b"abc")[:6]))
    pass_time(peer, 19_000)
    peer.say(data(3, body(b"abc")[6:7]))
    pass_time(peer, 19_000)
    assert peer.heard() == {}
    pass_time(peer, 2000)
    assert peer.status(3) == (GrpcStatus.DEADLINE_EXCEEDED, "the request was never finished")
    assert peer.traffic.held_bytes == 0
    assert not peer.transport.closed


def test_what_is_not_grpc_is_answered_before_it_ends_when_it_takes_too_long() -> None:
    peer = Peer()
    peer.say(opening(1, content_type="text/plain"))
    peer.connection.sweep(peer.clock.steady_ms())
    head, _, _, reset = peer.heard()[1]
    assert (head[":status"], reset) == ("415", ErrorCode.NO_ERROR)


def test_what_is_inflated_counts_in_the_turn() -> None:
    peer = Peer(Limits(grpc_inflated_bytes=4_000_000, http2_requests_per_turn=256))
    asked: list[int] = []

    def answer(call: Call, question: bytes) -> bytes:
        asked.append(len(question))
        return b""

    peer.serve(Kind.UNARY, answer)
    bomb = gzip.compress(bytes(4_000_000))
    bomb = b"\1" + len(bomb).to_bytes(4, "big") + bomb
    peer.say(*(opening(i, grpc_encoding="gzip") + data(i, bomb, True) for i in range(1, 17, 2)))
    assert asked == [4_000_000] * 3
    assert not peer.transport.reading
    peer.clock.run_soon()
    assert asked == [4_000_000] * 8
    assert peer.transport.reading


# -- errors of the service


def test_a_saturn_error_is_told_in_the_words_of_the_service(caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer()

    def refuse(call: Call, error: SaturnError) -> None:
        call.send(str(error).encode())
        call.finish()

    def begin(call: Call) -> None:
        call.on_message = handle_message

    def handle_message(message: bytes) -> Later[None]:
        later: Later[None] = Later()
        later.fail(NotFound("in the stream"))
        return later

    def raising(call: Call, question: bytes) -> bytes:
        raise NotFound("at once")

    later: Later[bytes] = Later()
    peer.serve(Kind.UNARY, raising, refuse)
    peer.ask(1)
    peer.serve(Kind.SERVER_STREAM, lambda call, question: later, refuse)
    peer.ask(3)
    later.fail(NotFound("later"))
    peer.serve(Kind.BIDI, begin, refuse)
    peer.say(opening(5), data(5, body(b"m")))
    peer.clock.run_soon()
    heard = peer.heard()
    assert [heard[stream_id][:3] for stream_id in (1, 3, 5)] == [
        [ANSWER, body(text), OK] for text in (b"at once", b"later", b"in the stream")
    ]
    assert caplog.records == []
    peer.serve(Kind.UNARY, raising)
    peer.ask(7)
    assert peer.status(7)[0] == GrpcStatus.INTERNAL
    assert len(caplog.records) == 1


def test_a_stream_that_waits_is_cancelled() -> None:
    peer = Peer()
    cancelled: list[str] = []
    peer.serve(Kind.SERVER_STREAM, lambda call, question: Later(lambda: cancelled.append("later")))
    peer.ask(1)
    peer.say(frames.rst_stream(1, 8))
    assert cancelled == ["later"]


# -- streams


def test_a_server_stream() -> None:
    peer = Peer()
    calls: list[Call] = []

    def begin(call: Call, question: bytes) -> None:
        calls.append(call)
        call.send(b"one")

    peer.serve(Kind.SERVER_STREAM, begin)
    peer.ask()
    assert peer.heard() == {1: [ANSWER, body(b"one")]}
    calls[0].send(b"two")
    calls[0].finish(GrpcStatus.ABORTED, "enough")
    calls[0].send(b"too late")
    calls[0].finish()
    peer.clock.run_soon()
    assert peer.heard() == {1: [body(b"two"), {"grpc-status": "10", "grpc-message": "enough"}]}
    assert peer.counted("requests") == {("s/m", "ABORTED"): 1}


def test_a_bidirectional_stream() -> None:
    peer = Peer()

    def begin(call: Call) -> None:
        call.on_message = lambda message: call.send(message.upper())
        call.on_half_close = call.finish

    peer.serve(Kind.BIDI, begin)
    peer.say(opening(1))
    peer.say(data(1, body(b"a") + body(b"b")[:2]))
    assert peer.heard() == {1: [ANSWER, body(b"A")]}
    peer.say(data(1, body(b"b")[2:]), data(1, b"", True))
    assert peer.heard() == {1: [body(b"B"), OK]}


def test_a_stream_that_ends_without_a_message() -> None:
    peer = Peer()
    peer.serve(Kind.BIDI, lambda call: call.finish())
    peer.say(opening(1))
    assert peer.heard() == {1: [ANSWER, OK, ErrorCode.NO_ERROR]}


def test_an_error_in_a_stream() -> None:
    peer = Peer()
    cancelled: list[bool] = []

    def begin(call: Call) -> None:
        def hear(message: bytes) -> None:
            raise GrpcError(GrpcStatus.INVALID_ARGUMENT, "no")

        call.on_message = hear
        call.on_cancel = lambda: cancelled.append(True)

    peer.serve(Kind.BIDI, begin)
    peer.say(opening(1), data(1, body(b"a")))
    assert peer.status() == (GrpcStatus.INVALID_ARGUMENT, "no")
    peer.connection.connection_lost(None)
    assert cancelled == []


# -- cancellation and deadlines


def cancellable(peer: Peer) -> list[str]:
    """A unary method that never answers; says what was cancelled."""
    cancelled: list[str] = []

    def wait(call: Call, question: bytes) -> Later[bytes]:
        call.on_cancel = lambda: cancelled.append(f"call {question.decode()}")
        return Later(lambda: cancelled.append(f"later {question.decode()}"))

    peer.serve(Kind.UNARY, wait)
    return cancelled


def test_a_reset_cancels_the_work() -> None:
    peer = Peer()
    cancelled = cancellable(peer)
    peer.ask(1, b"a")
    peer.say(frames.rst_stream(1, ErrorCode.CANCEL))
    assert cancelled == ["later a", "call a"]
    assert peer.counted("requests") == {("s/m", "CANCELLED"): 1}
    peer.connection.connection_lost(None)
    assert cancelled == ["later a", "call a"]


def test_a_lost_connection_cancels_the_work() -> None:
    peer = Peer()
    cancelled = cancellable(peer)
    peer.say(request(1, b"a"), request(3, b"b"))
    peer.connection.connection_lost(ConnectionResetError())
    assert cancelled == ["later a", "call a", "later b", "call b"]
    assert peer.gone == [peer.connection]
    assert peer.counted("connections") == {(): 0}


def test_a_reset_in_the_same_read_never_reaches_the_handler() -> None:
    peer = Peer()
    cancelled = cancellable(peer)
    peer.say(request(1), frames.rst_stream(1, ErrorCode.CANCEL))
    assert cancelled == []
    assert peer.heard() == {}


def test_deadlines() -> None:
    peer = Peer()
    cancelled = cancellable(peer)
    peer.say(request(1, b"a", grpc_timeout="3S"), request(3, b"b", grpc_timeout="1S"), request(5, b"c"))
    peer.clock.advance(999)
    assert cancelled == []
    peer.clock.advance(1)
    assert cancelled == ["later b", "call b"]
    assert peer.status(3) == (GrpcStatus.DEADLINE_EXCEEDED, "the deadline of the call has passed")
    peer.ask(7, b"d", grpc_timeout="500m")
    peer.clock.advance(500)
    assert peer.status(7)[0] == GrpcStatus.DEADLINE_EXCEEDED
    peer.clock.advance(1500)
    assert peer.status(1)[0] == GrpcStatus.DEADLINE_EXCEEDED
    peer.clock.advance(1_000_000)
    assert len(cancelled) == 6


def test_a_deadline_ends_a_request_that_never_ends() -> None:
    peer = Peer()
    cancellable(peer)
    peer.say(opening(1, grpc_timeout="1S"))
    peer.clock.advance(1000)
    assert peer.status()[0] == GrpcStatus.DEADLINE_EXCEEDED


def test_calls_that_are_answered_at_once_cost_no_timer() -> None:
    peer = Peer()
    peer.serve(Kind.UNARY, lambda call, question: b"")
    peer.ask(1, grpc_timeout="1S")
    assert peer.clock._timers == []


# -- back-pressure


def test_a_turn_has_a_budget() -> None:
    peer = Peer(Limits(http2_requests_per_turn=64))
    peer.serve(Kind.UNARY, lambda call, question: b"")
    peer.say(*(request(stream_id) for stream_id in range(1, 401, 2)))
    assert len(peer.heard()) == 64
    assert not peer.transport.reading
    peer.clock.run_soon()
    assert len(peer.heard()) == 136
    assert peer.transport.reading


def test_reply_bytes_end_a_turn_too() -> None:
    peer = Peer(Limits(connection_write_buffer_bytes=50_000), {Setting.INITIAL_WINDOW_SIZE: 1 << 20})
    peer.say(frames.window_update(0, 1 << 24))
    peer.serve(Kind.UNARY, lambda call, question: bytes(2000))
    peer.say(*(request(stream_id) for stream_id in range(1, 201, 2)))
    assert len(peer.heard()) == 32
    assert not peer.transport.reading
    peer.clock.run_soon()
    assert len(peer.heard()) == 68


def test_nothing_is_parsed_while_the_peer_does_not_read() -> None:
    peer = Peer(Limits(http2_requests_per_turn=32))
    peer.serve(Kind.UNARY, lambda call, question: b"")
    peer.say(*(request(stream_id) for stream_id in range(1, 201, 2)))
    peer.heard()
    peer.connection.pause_writing()
    peer.clock.run_soon()
    assert peer.heard() == {}
    assert not peer.transport.reading
    peer.connection.resume_writing()
    peer.clock.run_soon()
    assert len(peer.heard()) == 68
    assert peer.transport.reading


def test_writable() -> None:
    peer = Peer(Limits(connection_write_buffer_bytes=10_000), {Setting.INITIAL_WINDOW_SIZE: 100_000})
    calls: list[Call] = []
    told: list[bool] = []

    def begin(call: Call, question: bytes) -> None:
        calls.append(call)
        call.on_writable = lambda: told.append(call.writable)

    peer.serve(Kind.SERVER_STREAM, begin)
    peer.ask()
    (call,) = calls
    assert call.writable
    call.send(bytes(20_000))  # more than one write should hold
    assert not call.writable
    peer.clock.run_soon()
    assert told == [True]
    peer.connection.pause_writing()
    assert not call.writable
    peer.connection.resume_writing()
    assert told == [True, True]
    call.send(bytes(100_000))  # more than the windows
    peer.clock.run_soon()
    assert not call.writable
    peer.say(frames.window_update(0, 200_000), frames.window_update(1, 200_000))
    peer.clock.run_soon()
    assert told[2:] == [True]
    call.finish()
    assert not call.writable


def test_a_peer_that_never_reads_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer(Limits(connection_write_buffer_bytes=1000), {Setting.INITIAL_WINDOW_SIZE: 0})
    calls: list[Call] = []
    peer.serve(Kind.SERVER_STREAM, lambda call, question: calls.append(call))
    peer.ask()
    for _ in range(20):
        calls[0].send(bytes(1000))
    assert peer.transport.closed
    assert not calls[0].open
    (record,) = caplog.records
    assert "closed the connection of 10.0.0.1:4000: ENHANCE_YOUR_CALM: the client leaves 16" in record.message
    assert peer.counted("limits") == {("connection_write_buffer_bytes",): 1}


# -- the end


def test_a_broken_protocol_is_logged_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer()
    cancelled = cancellable(peer)
    peer.say(request(1, b"a"), frame(frames.PING, 0, 0, b"short"), request(3, b"b"))
    assert cancelled == ["later a", "call a"]
    assert peer.heard() == {0: [("goaway", ErrorCode.FRAME_SIZE_ERROR)]}
    assert peer.transport.closed
    peer.say(request(5))
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("saturnmq.net.grpc", logging.WARNING)
    assert record.message == "closed the connection of 10.0.0.1:4000: FRAME_SIZE_ERROR: PING of 5 bytes"
    assert peer.counted("protocol_errors") == {("FRAME_SIZE_ERROR",): 1}


def test_a_fault_of_a_stream_is_counted() -> None:
    peer = Peer()
    cancelled = cancellable(peer)
    peer.ask(1, b"a")
    peer.say(data(1, b"x"))
    assert cancelled == ["later a", "call a"]
    assert peer.heard() == {1: [ErrorCode.STREAM_CLOSED]}
    assert peer.counted("protocol_errors") == {("STREAM_CLOSED",): 1}
    peer.say(opening(3, connection="close"))
    assert peer.counted("protocol_errors") == {("STREAM_CLOSED",): 1, ("PROTOCOL_ERROR",): 1}


def drained(peer: Peer) -> None:
    peer.say(frame(frames.PING, frames.ACK, 0, b"saturnmq"))


def test_drain_finishes_what_runs() -> None:
    peer = Peer()
    laters: list[Later[bytes]] = [Later(), Later()]
    peer.serve(Kind.UNARY, lambda call, question: laters[int(question)])
    peer.ask(1, b"0")
    peer.connection.drain(peer.clock.steady_ms() + 1000)
    assert peer.heard() == {0: [("goaway", ErrorCode.NO_ERROR)]}
    peer.ask(3, b"1")
    drained(peer)
    peer.ask(5, b"1")
    assert peer.heard() == {0: [("goaway", ErrorCode.NO_ERROR)], 5: [ErrorCode.REFUSED_STREAM]}
    laters[0].resolve(b"a")
    peer.clock.run_soon()
    assert not peer.transport.closed
    laters[1].resolve(b"b")
    peer.clock.run_soon()
    assert peer.heard()[3] == [ANSWER, body(b"b"), OK]
    assert peer.transport.closed


def test_drain_ends_calls_that_stand() -> None:
    peer = Peer()
    cancelled: list[int] = []

    def stand(call: Call) -> None:
        call.on_cancel = lambda: cancelled.append(1)

    peer.serve(Kind.BIDI, stand)
    peer.say(opening(1))
    peer.connection.drain(peer.clock.steady_ms() + 1000)
    assert cancelled == [1]
    assert peer.status(1) == (GrpcStatus.UNAVAILABLE, "the server stops")
    peer.say(opening(3))  # crosses the GOAWAY
    assert peer.status(3) == (GrpcStatus.UNAVAILABLE, "the server stops")
    drained(peer)
    assert peer.transport.closed


def test_cut_ends_what_still_runs() -> None:
    peer = Peer()
    cancelled = cancellable(peer)
    peer.ask(1, b"a")
    peer.connection.cut()
    assert cancelled == ["later a", "call a"]
    assert peer.status() == (GrpcStatus.UNAVAILABLE, "the server stops")
    assert peer.transport.closed


def pass_time(peer: Peer, milliseconds: int, step_ms: int = 1000) -> None:
    """As the server does: a look from time to time."""
    for _ in range(0, milliseconds, step_ms):
        peer.clock.advance(step_ms)
        peer.connection.sweep(peer.clock.steady_ms())


def test_idle_connections_are_closed_politely(caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer(Limits(grpc_idle_ms=20_000, handshake_ms=10_000))
    peer.serve(Kind.UNARY, lambda call, question: b"")
    pass_time(peer, 15_000)
    peer.ask()
    peer.heard()
    pass_time(peer, 19_000)
    peer.say(frame(frames.PING, 0, 0, bytes(8)))  # keeps nothing alive
    assert peer.heard() == {0: []}
    pass_time(peer, 2000)
    assert peer.heard() == {0: [("goaway", ErrorCode.NO_ERROR)]}
    assert not peer.transport.closed
    drained(peer)
    assert peer.transport.closed
    assert caplog.records == []


def test_idle_connections_whose_peer_is_gone_are_cut() -> None:
    peer = Peer(Limits(grpc_idle_ms=20_000, handshake_ms=10_000))
    pass_time(peer, 21_000)
    assert not peer.transport.closed
    pass_time(peer, 11_000)
    assert peer.transport.aborted


def test_a_call_that_crosses_the_goaway_of_an_idle_connection_is_served() -> None:
    peer = Peer(Limits(grpc_idle_ms=20_000, handshake_ms=10_000))
    later: Later[bytes] = Later()
    peer.serve(Kind.UNARY, lambda call, question: later)
    pass_time(peer, 21_000)
    peer.ask()
    drained(peer)
    pass_time(peer, 60_000)
    later.resolve(b"late")
    peer.clock.run_soon()
    assert peer.heard()[1] == [ANSWER, body(b"late"), OK]
    assert peer.transport.closed
    assert not peer.transport.aborted


def test_clients_of_an_old_connection_are_sent_to_a_new_one(caplog: pytest.LogCaptureFixture) -> None:
    """What runs is finished; calls that stand are called again. The peer's port adds up to a tenth."""
    peer = Peer(Limits(grpc_max_connection_age_ms=30_000))
    later: Later[bytes] = Later()
    peer.serve(Kind.UNARY, lambda call, question: later)
    peer.routes[b"/s/talk"] = Route(Method(Kind.BIDI, lambda call: None), "s/talk", ("s/talk", "OK"))
    peer.ask(1)
    peer.say(opening(3, **{":path": "/s/talk"}))
    pass_time(peer, 29_000)
    assert peer.heard() == {}
    pass_time(peer, 4_000)
    heard = peer.heard()
    assert heard[0] == [("goaway", ErrorCode.NO_ERROR)]
    assert heard[3][0]["grpc-message"] == "the connection is old: call again on a new one"
    drained(peer)
    later.resolve(b"late")
    peer.clock.run_soon()
    assert peer.heard()[1] == [ANSWER, body(b"late"), OK]
    assert peer.transport.closed
    assert caplog.records == []


def test_a_connection_with_a_stream_is_not_idle() -> None:
    peer = Peer(Limits(grpc_idle_ms=20_000))
    cancellable(peer)
    peer.ask()
    pass_time(peer, 100_000)
    assert peer.heard() == {}


def test_a_connection_that_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer()
    silent = GrpcConnection({}, peer.clock, Limits(), peer.traffic, lambda _: None, lambda _: None)
    transport = FakeTransport()
    silent.connection_made(cast(Any, transport))
    silent.data_received(frames.PREFACE)
    silent.sweep(peer.clock.steady_ms() + 9_999)
    assert not transport.closed
    silent.sweep(peer.clock.steady_ms() + 10_000)
    assert transport.closed
    assert "no HTTP/2 within 10000 ms" in caplog.text
    assert peer.counted("limits") == {("handshake_ms",): 1}


@pytest.mark.parametrize("by", ["window", "socket"])
def test_a_peer_that_stops_reading_is_closed(by: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = {Setting.INITIAL_WINDOW_SIZE: 0} if by == "window" else {}
    peer = Peer(Limits(grpc_idle_ms=20_000), settings)
    peer.serve(Kind.UNARY, lambda call, question: b"answer")
    peer.ask()
    if by == "socket":
        peer.connection.pause_writing()
        peer.transport.unsent_bytes = 5000
        pass_time(peer, 10_000)
        peer.transport.unsent_bytes = 4000  # it read something
    pass_time(peer, 20_000)
    assert not peer.transport.closed
    pass_time(peer, 2_000)
    assert peer.transport.closed
    assert "leaves its answers unread" in caplog.text


# -- whatever a peer does

small = st.sampled_from([b"", body(b"m"), body(b"m") * 2, body(b"m")[:3], b"m", b"\1\0\0\0\1x", b"\0\xff\0\0\0"])
ids = st.sampled_from([1, 3, 5, 7])
pieces = st.one_of(
    st.builds(opening, ids, st.booleans()),
    st.builds(
        lambda stream_id, path: opening(stream_id, **{":path": path}),
        ids,
        st.sampled_from(["/s/stream", "/s/talk", "/no"]),
    ),
    st.builds(data, ids, small, st.booleans()),
    st.builds(frames.rst_stream, ids, st.just(8)),
    st.builds(frames.window_update, st.sampled_from([0, 1, 3, 5, 7]), st.integers(1, 100)),
    st.builds(lambda size: frames.settings({Setting.INITIAL_WINDOW_SIZE: size}), st.integers(0, 100)),
    st.builds(lambda kind, flags: frame(kind, flags, 0, bytes(8)), st.integers(0, 12), st.integers(0, 1)),
    st.just(frame(frames.PING, frames.ACK, 0, b"saturnmq")),
)
steps = st.one_of(pieces, st.sampled_from(["resolve", "fail", "send", "time", "pause", "resume", "drain", "sweep"]))


class Script:
    """What handlers and the loop may do in between."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.laters: list[Later[bytes]] = []
        self.calls: list[Call] = []
        self.paused = False
        peer.serve(Kind.UNARY, self.unary)
        peer.routes[b"/s/stream"] = Route(Method(Kind.SERVER_STREAM, self.stream), "stream", ("stream", "OK"))
        peer.routes[b"/s/talk"] = Route(Method(Kind.BIDI, self.talk), "talk", ("talk", "OK"))

    def unary(self, call: Call, question: bytes) -> Later[bytes]:
        call.on_cancel = call.finish
        self.laters.append(Later())
        return self.laters[-1]

    def stream(self, call: Call, question: bytes) -> None:
        self.calls.append(call)
        call.on_writable = lambda: call.send(b"more")

    def talk(self, call: Call) -> None:
        self.calls.append(call)
        call.on_message = lambda message: call.send(message * 50)
        call.on_half_close = call.finish

    def step(self, step: str) -> None:
        connection = self.peer.connection
        if step == "resolve" and self.laters:
            self.laters.pop().resolve(b"answer" * 20)
        elif step == "fail" and self.laters:
            self.laters.pop().fail(GrpcError(GrpcStatus.ABORTED, ""))
        elif step == "send":
            for call in self.calls:
                call.send(b"x" * 30)
        elif step == "time":
            self.peer.clock.advance(10)
        elif step == "pause" and not self.paused and not self.peer.transport.closed:
            self.paused = True
            connection.pause_writing()
        elif step == "resume" and self.paused:
            self.paused = False
            connection.resume_writing()
        elif step == "drain":
            connection.drain(self.peer.clock.steady_ms() + 1000)
        elif step == "sweep":
            connection.sweep(self.peer.clock.steady_ms())


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=40))
def test_whatever_a_peer_does_every_call_ends_and_nothing_is_left(script: list[bytes | str]) -> None:
    peer = Peer(Limits(http2_control_frames_per_10s=30))
    actor = Script(peer)
    for step in script:
        if isinstance(step, str):
            actor.step(step)
        else:
            peer.say(step)
    peer.clock.run_soon()
    peer.heard()  # can be parsed
    peer.connection.connection_lost(None)
    connection = peer.connection
    assert not any(call.open for call in actor.calls)
    assert connection._held_bytes == peer.traffic.held_bytes == 0
    assert connection._calls() == []
    peer.clock.advance(1000)
    assert peer.transport.writes == []
