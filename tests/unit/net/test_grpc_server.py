"""The gRPC port with real sockets: grpcio as client, and peers that are none."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
import uvloop

from saturnmq.kernel.config import Limits
from saturnmq.kernel.later import Later
from saturnmq.kernel.metrics import Metrics
from saturnmq.net import tls
from saturnmq.net.clock import LoopClock
from saturnmq.net.grpc_server import Call, GrpcError, GrpcServer, GrpcStatus, Kind, Method
from saturnmq.wire.http2 import frames
from saturnmq.wire.http2.frames import ErrorCode, frame
from saturnmq.wire.http2.hpack import encode

T = TypeVar("T")
WAIT_S = 20
LARGE = bytes(range(256)) * 20_000


class Service:
    """What the tests call, and what they may ask about afterwards."""

    def __init__(self, clock: LoopClock) -> None:
        self.clock = clock
        self.cancelled = threading.Event()
        self.waiting: list[Later[bytes]] = []

    def methods(self) -> dict[bytes, Method]:
        return {
            b"/t.T/Echo": Method(Kind.UNARY, lambda call, request: request),
            b"/t.T/Soon": Method(Kind.UNARY, self.soon),
            b"/t.T/Never": Method(Kind.UNARY, self.never),
            b"/t.T/Fail": Method(Kind.UNARY, self.fail),
            b"/t.T/Count": Method(Kind.SERVER_STREAM, self.count),
            b"/t.T/Talk": Method(Kind.BIDI, self.talk),
        }

    def soon(self, call: Call, request: bytes) -> Later[bytes]:
        later: Later[bytes] = Later()
        self.clock.call_soon(lambda: later.resolve(request))
        return later

    def never(self, call: Call, request: bytes) -> Later[bytes]:
        self.waiting.append(Later(self.cancelled.set))
        return self.waiting[-1]

    def fail(self, call: Call, request: bytes) -> bytes:
        raise GrpcError(GrpcStatus.FAILED_PRECONDITION, f"größer als 100% von {call.authority}")

    def count(self, call: Call, request: bytes) -> None:
        """As many large messages as asked for, no faster than they are read."""
        left = int(request)

        def more() -> None:
            nonlocal left
            while left and call.writable:
                left -= 1
                call.send(LARGE)
            if not left:
                call.finish()

        call.on_writable = more
        more()

    def talk(self, call: Call) -> None:
        call.on_message = call.send
        call.on_half_close = call.finish
        call.on_cancel = self.cancelled.set


class Server:
    """A server on a loop in a thread of its own: clients block."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits, context: ssl.SSLContext | None) -> None:
        self.loop = loop
        self.metrics = Metrics()
        self.thread = threading.Thread(target=loop.run_forever, name="server")
        self.thread.start()
        self.service, self.server = self.run(self.make(limits, context))
        self.address = str(self.run(self.server.listen("127.0.0.1", 0)))
        self.port = int(self.address.rpartition(":")[2])
        self.closed = False

    async def make(self, limits: Limits, context: ssl.SSLContext | None) -> tuple[Service, GrpcServer]:
        clock = LoopClock(self.loop)
        service = Service(clock)
        return service, GrpcServer(service.methods(), clock, limits, self.metrics, context)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(WAIT_S)

    def close(self, drain_ms: int = 100) -> None:
        if not self.closed:
            self.closed = True
            self.run(self.server.close(drain_ms))

    def stop(self) -> None:
        self.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def counted(self, name: str, *labels: str) -> int:
        return self.metrics.counter(name, "").values[labels]

    def wait_until(self, what: Callable[[], bool]) -> None:
        """For what another thread does soon."""
        end = time.monotonic() + WAIT_S
        while not what():
            assert time.monotonic() < end
            threading.Event().wait(0.005)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)


LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture(params=LOOPS)
def server(request: pytest.FixtureRequest, tls_directory: Path) -> Iterator[Server]:
    """With TLS and without it, on one port."""
    server = Server(LOOPS[request.param](), Limits(), tls.server_context(tls.certificate_files(tls_directory)))
    yield server
    server.stop()


@pytest.fixture
def make_server() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(context: ssl.SSLContext | None = None, **limits: Any) -> Server:
        servers.append(Server(uvloop.new_event_loop(), Limits(**limits), context))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def tls_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls")
    tls.development_certificate(directory)
    return directory


NO_LIMIT = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@contextlib.contextmanager
def client(server: Server, trust: Path | None = None) -> Iterator[grpc.Channel]:
    if trust is None:
        channel = grpc.insecure_channel(server.address, options=NO_LIMIT)
    else:
        credentials = grpc.ssl_channel_credentials((trust / tls.CERTIFICATE_FILE).read_bytes())
        channel = grpc.secure_channel(server.address, credentials, options=NO_LIMIT)
    with channel:
        yield channel


def failure(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code(), raised.value.details()


def test_all_kinds_of_calls(server: Server) -> None:
    with client(server) as channel:
        assert channel.unary_unary("/t.T/Echo")(b"hello", timeout=WAIT_S) == b"hello"
        assert channel.unary_unary("/t.T/Soon")(b"", timeout=WAIT_S) == b""
        assert list(channel.unary_stream("/t.T/Count")(b"3", timeout=WAIT_S)) == [LARGE] * 3
        talk = channel.stream_stream("/t.T/Talk")
        assert list(talk(iter([b"a", LARGE, b"b"]), timeout=WAIT_S)) == [b"a", LARGE, b"b"]
    assert server.counted("saturnmq_grpc_requests_total", "t.T/Talk", "OK") == 1
    assert server.counted("saturnmq_grpc_connections_opened_total") == 1


def test_large_messages_both_ways(server: Server) -> None:
    with client(server) as channel:
        echo = channel.unary_unary("/t.T/Echo")
        assert echo(LARGE, timeout=WAIT_S) == LARGE
        calls = [echo.future(LARGE[size:], timeout=WAIT_S) for size in range(0, 1_000_000, 200_000)]
        assert [len(call.result()) for call in calls] == [len(LARGE) - size for size in range(0, 1_000_000, 200_000)]


def test_gzip(server: Server) -> None:
    with client(server) as channel:
        echo = channel.unary_unary("/t.T/Echo")
        assert echo(LARGE, timeout=WAIT_S, compression=grpc.Compression.Gzip) == LARGE
        code, details = failure(lambda: echo(LARGE, timeout=WAIT_S, compression=grpc.Compression.Deflate))
    assert code == grpc.StatusCode.UNIMPLEMENTED
    assert "'deflate' is not identity or gzip" in details


def test_tls_on_the_same_port(server: Server, tls_directory: Path) -> None:
    with client(server, tls_directory) as secure, client(server) as plain:
        for channel in (secure, plain):
            assert channel.unary_unary("/t.T/Echo")(LARGE, timeout=WAIT_S) == LARGE
            talk = channel.stream_stream("/t.T/Talk")
            assert list(talk(iter([b"a", b"b"]), timeout=WAIT_S)) == [b"a", b"b"]


def test_alpn(server: Server, tls_directory: Path) -> None:
    context = ssl.create_default_context(cafile=str(tls_directory / tls.CERTIFICATE_FILE))
    context.set_alpn_protocols(["http/1.1", "h2"])
    with context.wrap_socket(server.connect(), server_hostname="localhost") as secure:
        assert secure.selected_alpn_protocol() == "h2"
        secure.sendall(frames.PREFACE + frame(frames.SETTINGS, 0, 0))
        assert secure.recv(9)[3] == frames.SETTINGS


def test_errors(server: Server) -> None:
    with client(server) as channel:
        assert failure(lambda: channel.unary_unary("/t.T/Nope")(b"", timeout=WAIT_S)) == (
            grpc.StatusCode.UNIMPLEMENTED,
            "t.T/Nope is not implemented by SaturnMQ",
        )
        assert failure(lambda: channel.unary_unary("/t.T/Fail")(b"", timeout=WAIT_S)) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            f"größer als 100% von {server.address}",
        )
    assert server.counted("saturnmq_grpc_requests_total", "unknown", "UNIMPLEMENTED") == 1


def test_a_deadline(server: Server) -> None:
    with client(server) as channel:
        code, _ = failure(lambda: channel.unary_unary("/t.T/Never")(b"", timeout=0.5))
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert server.service.cancelled.wait(WAIT_S)


def test_a_client_that_cancels(server: Server) -> None:
    with client(server) as channel:
        call = channel.unary_unary("/t.T/Never").future(b"")
        server.wait_until(lambda: len(server.service.waiting) == 1)
        call.cancel()
        assert server.service.cancelled.wait(WAIT_S)
        server.service.cancelled.clear()
        over = threading.Event()

        def messages() -> Iterator[bytes]:
            yield b"a"
            over.wait(WAIT_S)

        talk = channel.stream_stream("/t.T/Talk")(messages())
        next(talk)
        talk.cancel()
        assert server.service.cancelled.wait(WAIT_S)
        over.set()
        assert channel.unary_unary("/t.T/Echo")(b"still there", timeout=WAIT_S) == b"still there"


def test_more_calls_than_streams(make_server: Callable[..., Server]) -> None:
    server = make_server(http2_max_concurrent_streams=3)
    with client(server) as channel:
        soon = channel.unary_unary("/t.T/Soon")
        calls = [soon.future(b"%d" % number, timeout=WAIT_S) for number in range(100)]
        assert [call.result() for call in calls] == [b"%d" % number for number in range(100)]


def test_a_message_over_the_limit(make_server: Callable[..., Server]) -> None:
    server = make_server(grpc_message_bytes=1_000_000)
    with client(server) as channel:
        echo = channel.unary_unary("/t.T/Echo")
        code, details = failure(lambda: echo(LARGE, timeout=WAIT_S))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details == "a message of 5120000 bytes; this server takes up to 1000000 bytes"
        assert failure(lambda: echo(LARGE, timeout=WAIT_S, compression=grpc.Compression.Gzip))[0] == code
        assert echo(b"x", timeout=WAIT_S) == b"x"


# -- peers that are no gRPC clients


def read_all(peer: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := peer.recv(65536):
            found += piece
    return found


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "saturnmq.net.grpc"]


@pytest.mark.parametrize(
    ("said", "reason", "answer"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP_1_1_REQUIRED", b"HTTP/1.1 426 Upgrade Required"),
        (b"\x00\x01\x02\x03 garbage", "PROTOCOL_ERROR: the client speaks neither", b"\x00\x00"),
        (b"\x16\x03\x01\x00\x05hello", "TLS: ", b""),
        (frames.PREFACE + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01", "FRAME_SIZE_ERROR", b"\x00\x00"),
    ],
)
def test_whoever_speaks_something_else(
    server: Server, said: bytes, reason: str, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with server.connect() as peer:
        peer.sendall(said)
        assert read_all(peer).startswith(answer)
        host, port = peer.getsockname()
    server.wait_until(lambda: bool(warnings(caplog)))
    (warning,) = warnings(caplog)
    assert warning.startswith(f"closed the connection of {host}:{port}: {reason}")
    server.wait_until(lambda: server.counted("saturnmq_grpc_connections") == 0)


def test_who_comes_and_goes_is_no_news(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        server.connect().close()
    with server.connect() as peer:
        peer.sendall(frames.PREFACE + frame(frames.SETTINGS, 0, 0))
        peer.recv(1)
    server.wait_until(lambda: server.counted("saturnmq_grpc_connections_opened_total") == 1)
    server.wait_until(lambda: server.counted("saturnmq_grpc_connections") == 0)
    assert warnings(caplog) == []


def test_tls_that_is_not_configured(make_server: Callable[..., Server], caplog: pytest.LogCaptureFixture) -> None:
    server = make_server()
    with server.connect() as peer:
        peer.sendall(b"\x16\x03\x01")
        assert read_all(peer) == b""
    assert "it wants TLS, which is not configured" in warnings(caplog)[0]


@pytest.mark.parametrize("said", [b"", frames.PREFACE[:5], b"\x16\x03\x01\x02"])
def test_whoever_stops_half_way(
    make_server: Callable[..., Server], tls_directory: Path, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    server = make_server(tls.server_context(tls.certificate_files(tls_directory)), handshake_ms=80)
    with server.connect() as peer:
        peer.sendall(said)
        read_all(peer)
    server.wait_until(lambda: len(warnings(caplog)) == 1)


def test_a_storm_of_resets(make_server: Callable[..., Server], caplog: pytest.LogCaptureFixture) -> None:
    server = make_server()
    block = encode(
        [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/t.T/Never"),
            (b"content-type", b"application/grpc"),
        ]
    )
    with server.connect() as peer:
        peer.sendall(frames.PREFACE + frame(frames.SETTINGS, 0, 0))
        with contextlib.suppress(ConnectionError):
            for first in range(1, 20_000, 200):
                storm = b"".join(
                    frame(frames.HEADERS, frames.END_HEADERS, stream_id, block)
                    + frames.rst_stream(stream_id, ErrorCode.CANCEL)
                    for stream_id in range(first, first + 200, 2)
                )
                peer.sendall(storm)
        read_all(peer)
    server.wait_until(lambda: bool(warnings(caplog)))
    assert "too many streams were reset" in warnings(caplog)[0]
    assert server.counted("saturnmq_grpc_limits_hit_total", "http2_control_frames_per_10s") == 1
    with client(server) as channel:
        assert channel.unary_unary("/t.T/Echo")(b"x", timeout=WAIT_S) == b"x"


def test_a_reader_that_does_not_read(make_server: Callable[..., Server]) -> None:
    """Its calls are not even parsed while it owes us so much reading."""
    server = make_server(connection_write_buffer_bytes=100_000)
    block = encode(
        [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/t.T/Echo"), (b"content-type", b"application/grpc")]
    )
    message = b"\0" + (10_000).to_bytes(4, "big") + bytes(10_000)
    with server.connect() as peer:
        peer.setblocking(False)
        opened = frames.settings({frames.Setting.INITIAL_WINDOW_SIZE: 1 << 30}) + frames.window_update(0, 1 << 30)
        unsent = bytearray(frames.PREFACE + opened)
        stream_id, stalled = 1, 0
        while stalled < 20:
            if len(unsent) < 65536:
                unsent += frame(frames.HEADERS, frames.END_HEADERS, stream_id, block)
                unsent += frame(frames.DATA, frames.END_STREAM, stream_id, message)
                stream_id += 2
            try:
                del unsent[: peer.send(unsent)]
                stalled = 0
            except BlockingIOError:
                stalled += 1
                threading.Event().wait(0.01)
        (connection,) = server.server._connections
        assert connection._transport.get_write_buffer_size() < 1_000_000
        assert server.counted("saturnmq_grpc_requests_total", "t.T/Echo", "OK") < stream_id // 2


# -- listening and closing


def test_drain_and_close(server: Server) -> None:
    """What runs is finished; a stream that would stand for ever, or begins only now, is ended."""
    with client(server) as channel:
        running = channel.unary_unary("/t.T/Never").future(b"", timeout=WAIT_S)
        talk = channel.stream_stream("/t.T/Talk")
        answers = talk(iter_until(server.service.cancelled, b"first"), timeout=WAIT_S)
        assert next(answers) == b"first"
        server.wait_until(lambda: len(server.service.waiting) == 1)
        closing = asyncio.run_coroutine_threadsafe(server.server.close(10_000), server.loop)
        server.closed = True
        with pytest.raises(grpc.RpcError) as raised:
            next(answers)
        assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.UNAVAILABLE, "the server stops")
        with pytest.raises(OSError, match="refused"):
            server.connect()
        assert not running.done()
        server.loop.call_soon_threadsafe(server.service.waiting[0].resolve, b"last")
        assert running.result() == b"last"
        closing.result(WAIT_S)
    assert server.counted("saturnmq_grpc_connections") == 0


def iter_until(end: threading.Event, *messages: bytes) -> Iterator[bytes]:
    yield from messages
    assert end.wait(WAIT_S)


def test_close_ends_what_does_not_end_by_itself(server: Server) -> None:
    with client(server) as channel:
        call = channel.unary_unary("/t.T/Never").future(b"", timeout=WAIT_S)
        server.wait_until(lambda: len(server.service.waiting) == 1)
        with server.connect() as silent:
            server.wait_until(lambda: bool(server.server._newcomers.silent))
            server.close(drain_ms=50)
            assert read_all(silent) == b""
        assert call.code() == grpc.StatusCode.UNAVAILABLE
        assert call.details() == "the server stops"
    assert server.service.cancelled.is_set()


def test_several_listeners_and_ipv6(server: Server) -> None:
    address = server.run(server.server.listen("::1", 0))
    assert str(address).startswith("[::1]:")
    with grpc.insecure_channel(str(address)) as channel:
        assert channel.unary_unary("/t.T/Echo")(b"x", timeout=WAIT_S) == b"x"
    everywhere = server.run(server.server.listen("", 0))
    for host in ("127.0.0.1", "[::1]"):
        with grpc.insecure_channel(f"{host}:{everywhere.port}") as channel:
            assert channel.unary_unary("/t.T/Echo")(b"x", timeout=WAIT_S) == b"x"
    with pytest.raises(OSError, match="in use"):
        server.run(server.server.listen("127.0.0.1", server.port))


def test_many_connections_at_once(server: Server, tls_directory: Path) -> None:
    context = ssl.create_default_context(cafile=str(tls_directory / tls.CERTIFICATE_FILE))
    peers = [server.connect() for _ in range(60)]
    for number, peer in enumerate(peers):
        if number % 3 == 0:
            peers[number] = context.wrap_socket(peer, server_hostname="localhost")
    for peer in peers:
        peer.sendall(frames.PREFACE + frame(frames.SETTINGS, 0, 0))
    for peer in peers:
        assert peer.recv(9)[3] == frames.SETTINGS
    assert server.counted("saturnmq_grpc_connections") == 60
    for peer in peers:
        peer.close()
    server.wait_until(lambda: server.counted("saturnmq_grpc_connections") == 0)


def test_idle_connections_are_closed(make_server: Callable[..., Server]) -> None:
    server = make_server(grpc_idle_ms=40)
    with server.connect() as peer:
        peer.sendall(frames.PREFACE + frame(frames.SETTINGS, 0, 0))
        got = b""
        while b"saturnmq" not in got:  # GOAWAY and the PING that follows it
            got += peer.recv(1000)
        peer.sendall(frame(frames.PING, frames.ACK, 0, b"saturnmq"))
        assert frames.goaway(0, ErrorCode.NO_ERROR) in read_all(peer)
