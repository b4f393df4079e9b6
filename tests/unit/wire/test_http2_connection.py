"""The server's end of HTTP/2: against the `h2` package as client, and against peers that lie, flood or stall."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import h2.config
import h2.connection
import h2.events
import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saturnmq.kernel.config import Limits
from saturnmq.kernel.errors import ProtocolError
from saturnmq.wire.http2 import frames
from saturnmq.wire.http2.connection import (
    DRAIN_PING,
    HTTP_1_ANSWER,
    DataReceived,
    Rejected,
    RequestReceived,
    ServerConnection,
    StreamReset,
    StreamWritable,
)
from saturnmq.wire.http2.frames import ErrorCode, Http2Error, Setting, frame
from saturnmq.wire.http2.hpack import encode
from saturnmq.wire.http2.streams import Stream

NOW_MS = 1_700_000_000_000
START = frames.PREFACE + frame(frames.SETTINGS, 0, 0)
REQUEST = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/s/m"), (b":authority", b"me")]
BLOCK = encode(REQUEST)
HEAD, TAIL = encode([(b":status", b"200")]), encode([(b"grpc-status", b"0")])


def headers(stream_id: int, block: bytes = BLOCK, ended: bool = False) -> bytes:
    return frame(frames.HEADERS, frames.END_HEADERS | ended, stream_id, block)


def data(stream_id: int, payload: bytes, ended: bool = False) -> bytes:
    return frame(frames.DATA, int(ended), stream_id, payload)


def setting(**values: int) -> bytes:
    return frames.settings({Setting[key.upper()]: value for key, value in values.items()})


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def describe(event: Any) -> tuple[Any, ...]:
    """An event as a value that can be compared between connections."""
    fields = [getattr(event, name) for name in type(event).__struct_fields__]
    return type(event).__name__, *[
        (field.id, tuple(field.headers.items())) if isinstance(field, Stream) else field for field in fields
    ]


def receive(connection: ServerConnection, received: bytes, now_ms: int = NOW_MS) -> list[Any]:
    """Everything that the bytes lead to."""
    events: list[Any] = list(connection.receive_data(received, now_ms))
    while connection.more:
        events += connection.receive_data(b"", now_ms)
    return events


def started(limits: Limits | None = None, peer: bytes = b"") -> ServerConnection:
    connection = ServerConnection(limits or Limits())
    receive(connection, START + peer)
    connection.data_to_send()
    return connection


def sent(connection: ServerConnection) -> list[tuple[int, int, int, bytes]]:
    """What is to be written, as (type, flags, stream id, payload)."""
    written, found = connection.data_to_send(), []
    while written:
        word, flags, stream_id = frames.HEADER.unpack_from(written)
        end = frames.HEADER_BYTES + (word >> 8)
        found.append((word & 0xFF, flags, stream_id, written[frames.HEADER_BYTES : end]))
        written = written[end:]
    return found


def data_sizes(connection: ServerConnection) -> list[tuple[int, int]]:
    return [(stream_id, len(payload)) for kind, _, stream_id, payload in sent(connection) if kind == frames.DATA]


def request(connection: ServerConnection, stream_id: int = 1, body: bytes = b"") -> Stream:
    events = receive(connection, headers(stream_id) + data(stream_id, body, True))
    stream = events[0].stream
    assert isinstance(stream, Stream)
    return stream


def fault(connection: ServerConnection, received: bytes, now_ms: int = NOW_MS) -> ErrorCode:
    """The connection error that the bytes lead to, which GOAWAY tells too."""
    with pytest.raises(Http2Error) as raised:
        receive(connection, received, now_ms)
    kind, _, _, payload = sent(connection)[-1]
    assert kind == frames.GOAWAY
    assert int.from_bytes(payload[4:8], "big") == raised.value.code
    with pytest.raises(Http2Error):
        connection.receive_data(b"", now_ms)
    return raised.value.code


def h2_client() -> h2.connection.H2Connection:
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    return client


# -- with h2 as client


def converse(
    client: h2.connection.H2Connection, server: ServerConnection, on_event: Callable[[Any], None]
) -> list[Any]:
    """Let both talk until nobody has anything to say. Returns the client's events."""
    seen: list[Any] = []
    while True:
        to_server = client.data_to_send()
        for event in receive(server, to_server) if to_server else []:
            on_event(event)
        to_client = server.data_to_send()
        if not to_client:
            return seen
        for event in client.receive_data(to_client):
            seen.append(event)
            if isinstance(event, h2.events.DataReceived):
                client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)


def test_h2_reads_a_small_answer() -> None:
    client, server = h2_client(), ServerConnection(Limits())
    client.send_headers(1, REQUEST)
    client.send_data(1, b"question", end_stream=True)

    def answer(event: Any) -> None:
        if isinstance(event, DataReceived) and event.ended:
            assert event.data == b"question"
            server.respond(event.stream, HEAD, b"ans", b"wer", TAIL)

    seen = converse(client, server, answer)
    assert [event.data for event in seen if isinstance(event, h2.events.DataReceived)] == [b"answer"]
    assert any(isinstance(event, h2.events.StreamEnded) for event in seen)
    assert not server.streams
    assert server.ready


def test_large_bodies_both_ways_keep_to_the_windows() -> None:
    """h2 raises when we pass its windows, and refuses to pass ours."""
    client, server = h2_client(), ServerConnection(Limits())
    body = bytes(range(256)) * 12_000
    got = bytearray()
    back = bytearray()
    converse(client, server, lambda event: None)
    for stream_id in (1, 3):
        client.send_headers(stream_id, REQUEST)
    rest = {1: body, 3: body}
    bodies: dict[int, bytearray] = {1: bytearray(), 3: bytearray()}

    def echo(event: Any) -> None:
        if isinstance(event, DataReceived):
            bodies[event.stream.id] += event.data
            if event.ended:
                server.respond(event.stream, HEAD, b"", bytes(bodies[event.stream.id]), TAIL)

    answers: dict[int, bytearray] = {1: got, 3: back}
    while rest or len(got) < len(body) or len(back) < len(body):
        for stream_id in list(rest):
            room = min(client.local_flow_control_window(stream_id), client.max_outbound_frame_size)
            piece, rest[stream_id] = rest[stream_id][:room], rest[stream_id][room:]
            client.send_data(stream_id, piece, end_stream=not rest[stream_id])
            if not rest[stream_id]:
                del rest[stream_id]
        for event in converse(client, server, echo):
            if isinstance(event, h2.events.DataReceived):
                answers[event.stream_id] += event.data
    assert got == body
    assert back == body
    assert not server.streams
    assert server.queued_bytes == 0


def session() -> bytes:
    """A client's side of a connection with a bit of everything that is allowed."""
    encoder = hpack.Encoder()
    block = encoder.encode([*REQUEST, (b"x-long", b"v" * 300)])
    again = encoder.encode(REQUEST)
    return b"".join(
        (
            START,
            setting(initial_window_size=100_000, max_frame_size=20_000, max_concurrent_streams=5),
            frame(frames.SETTINGS, frames.ACK, 0),
            frame(frames.HEADERS, 0, 1, block[:10]),
            frame(frames.CONTINUATION, 0, 1, block[10:100]),
            frame(frames.CONTINUATION, frames.END_HEADERS, 1, block[100:]),
            frame(frames.DATA, frames.PADDED, 1, b"\x03abc\0\0\0"),
            frame(
                frames.HEADERS,
                frames.END_HEADERS | frames.PADDED | frames.PRIORITY_FIELDS,
                3,
                b"\x02\0\0\0\1\xff" + again + b"\0\0",
            ),
            frame(frames.PING, 0, 0, b"12345678"),
            frame(frames.PRIORITY, 0, 3, b"\0\0\0\1\xff"),
            data(3, b"", False),
            data(3, b"x" * 5000, True),
            data(1, b"more"),
            headers(1, encode([(b"x-trailer", b"t")]), ended=True),
            frame(0x42, 0xFF, 7, b"unknown"),
            frames.window_update(0, 10),
            frames.window_update(1, 10),
            headers(5, ended=True),
            frames.rst_stream(5, ErrorCode.CANCEL),
            headers(7, encode([(b":method", b"POST")])),
            headers(9, encode([*REQUEST, (b"content-length", b"4")])),
            data(9, b"1234", True),
            frames.goaway(0, 0),
        )
    )


def test_a_session() -> None:
    long = (1, (*REQUEST, (b"x-long", b"v" * 300)))
    short = (3, tuple(REQUEST))
    ninth = (9, (*REQUEST, (b"content-length", b"4")))
    assert [describe(event) for event in receive(ServerConnection(Limits()), session())] == [
        ("RequestReceived", long, False),
        ("DataReceived", long, b"abc", False),
        ("RequestReceived", short, False),
        ("DataReceived", short, b"", False),
        ("DataReceived", short, b"x" * 5000, True),
        ("DataReceived", long, b"more", False),
        ("DataReceived", long, b"", True),
        ("RequestReceived", (5, tuple(REQUEST)), True),
        ("StreamReset", (5, tuple(REQUEST)), ErrorCode.CANCEL, False),
        ("Rejected", ErrorCode.PROTOCOL_ERROR, ""),
        ("RequestReceived", ninth, False),
        ("DataReceived", ninth, b"1234", True),
    ]


@given(st.lists(st.integers(0, len(session())), max_size=20))
def test_any_split_gives_the_same_events_and_answers(cuts: list[int]) -> None:
    whole, pieces = session(), sorted({0, len(session()), *cuts})
    at_once, in_parts = ServerConnection(Limits()), ServerConnection(Limits())
    expected = [describe(event) for event in receive(at_once, whole)]
    got: list[Any] = []
    for start, end in pairwise(pieces):
        got += [describe(event) for event in receive(in_parts, whole[start:end])]
    assert got == expected
    assert in_parts.data_to_send() == at_once.data_to_send()


def drive(connection: ServerConnection, pieces: Iterable[bytes]) -> None:
    """As a shell would: answer what is asked, until the connection fails."""
    try:
        for piece in pieces:
            for event in receive(connection, piece):
                if isinstance(event, RequestReceived | DataReceived) and event.ended:
                    connection.respond(event.stream, HEAD, b"x", b"y" * 70_000, TAIL)
    except ProtocolError:
        pass


@settings(max_examples=300)
@given(st.data())
def test_mutated_bytes_raise_only_protocol_errors(choices: st.DataObject) -> None:
    mutated = bytearray(session())
    for _ in range(choices.draw(st.integers(1, 10))):
        mutated[choices.draw(st.integers(len(frames.PREFACE), len(mutated) - 1))] = choices.draw(st.integers(0, 255))
    connection = ServerConnection(Limits())
    drive(connection, [bytes(mutated)])
    assert connection.queued_bytes == sum(stream.queued_bytes for stream in connection.streams.values())


any_frame = st.builds(
    frame,
    st.integers(0, 11),
    st.integers(0, 255),
    st.integers(0, 12),
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from([BLOCK, number(1), number(70_000), number(0x7FFFFFFF), bytes(8), b"\0\4" + number(0)]),
    ),
)


@settings(max_examples=300)
@given(st.lists(any_frame, max_size=30))
def test_random_frames_raise_only_protocol_errors(random_frames: list[bytes]) -> None:
    connection = started()
    drive(connection, random_frames)
    assert connection.queued_bytes == sum(stream.queued_bytes for stream in connection.streams.values())


@given(st.binary(max_size=100))
def test_random_bytes_raise_only_protocol_errors(garbage: bytes) -> None:
    drive(ServerConnection(Limits()), [garbage])


# -- the start


@pytest.mark.parametrize("hello", [b"GET / HTTP/1.1\r\n\r\n", b"POST /x HTTP/1.0\n", b"PRI * HTTP/1.1\r\n\r\n"])
def test_http_1_gets_an_answer_that_it_understands(hello: bytes) -> None:
    connection = ServerConnection(Limits())
    assert receive(connection, hello[:4]) == []
    with pytest.raises(Http2Error, match="HTTP_1_1_REQUIRED"):
        receive(connection, hello[4:])
    assert connection.data_to_send() == HTTP_1_ANSWER
    assert b"This port speaks gRPC" in HTTP_1_ANSWER


@pytest.mark.parametrize("hello", [b"\x00\x00\x01\x23", b"INVALID CONNECTION PREFACE\r\n\r\n", b"A" * 8192])
def test_neither_http_2_nor_1(hello: bytes) -> None:
    connection = ServerConnection(Limits())
    assert fault(connection, hello) == ErrorCode.PROTOCOL_ERROR
    assert not connection.ready


def test_our_settings_come_first() -> None:
    limits = Limits(http2_stream_window_bytes=100_000, http2_connection_window_bytes=200_000)
    connection = ServerConnection(limits)
    assert connection.receive_data(frames.PREFACE[:10], NOW_MS) == []
    assert connection.data_to_send() == b""
    receive(connection, frames.PREFACE[10:])
    kind, _, _, payload = sent(connection)[0]
    assert kind == frames.SETTINGS
    assert dict(struct.iter_unpack(">HI", payload)) == {
        Setting.HEADER_TABLE_SIZE: 4096,
        Setting.MAX_CONCURRENT_STREAMS: 1000,
        Setting.INITIAL_WINDOW_SIZE: 100_000,
        Setting.MAX_FRAME_SIZE: 16_384,
        Setting.MAX_HEADER_LIST_SIZE: 16_384,
    }
    assert not connection.ready
    receive(connection, frame(frames.SETTINGS, 0, 0))
    assert connection.ready
    assert sent(connection) == [(frames.SETTINGS, frames.ACK, 0, b"")]


def test_settings_must_come_first() -> None:
    connection = ServerConnection(Limits())
    assert fault(connection, frames.PREFACE + headers(1)) == ErrorCode.PROTOCOL_ERROR


# -- errors, table by table


@pytest.mark.parametrize(
    ("name", "received", "code"),
    [
        ("DATA on stream 0", data(0, b"x"), ErrorCode.PROTOCOL_ERROR),
        ("DATA on an idle stream", data(1, b"x"), ErrorCode.PROTOCOL_ERROR),
        ("HEADERS on stream 0", headers(0), ErrorCode.PROTOCOL_ERROR),
        ("HEADERS on an even stream", headers(2), ErrorCode.PROTOCOL_ERROR),
        ("HEADERS on a closed stream", headers(3, ended=True) + headers(1), ErrorCode.STREAM_CLOSED),
        ("HEADERS too short", frame(frames.HEADERS, 0x24, 1, b"abc"), ErrorCode.FRAME_SIZE_ERROR),
        ("padding of everything", frame(frames.HEADERS, 0xC, 1, b"\x05abcd"), ErrorCode.PROTOCOL_ERROR),
        ("padding without its length", headers(1) + frame(frames.DATA, 0x8, 1), ErrorCode.PROTOCOL_ERROR),
        ("a wrong block", headers(1, b"\x80"), ErrorCode.COMPRESSION_ERROR),
        ("CONTINUATION of nothing", frame(frames.CONTINUATION, 4, 1, BLOCK), ErrorCode.PROTOCOL_ERROR),
        (
            "CONTINUATION of another stream",
            frame(frames.HEADERS, 0, 1, BLOCK) + frame(frames.CONTINUATION, 4, 3),
            ErrorCode.PROTOCOL_ERROR,
        ),
        ("something inside a block", frame(frames.HEADERS, 0, 1, BLOCK) + bytes(9), ErrorCode.PROTOCOL_ERROR),
        ("PRIORITY on stream 0", frame(frames.PRIORITY, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
        ("PRIORITY of four bytes", frame(frames.PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
        ("PRIORITY after itself", frame(frames.PRIORITY, 0, 1, bytes(3) + b"\x01\x00"), ErrorCode.PROTOCOL_ERROR),
        (
            "HEADERS after itself",
            frame(frames.HEADERS, 0x24, 1, bytes(3) + b"\x01\x00" + BLOCK),
            ErrorCode.PROTOCOL_ERROR,
        ),
        ("RST_STREAM on stream 0", frames.rst_stream(0, 0), ErrorCode.PROTOCOL_ERROR),
        ("RST_STREAM on an idle stream", frames.rst_stream(1, 0), ErrorCode.PROTOCOL_ERROR),
        ("RST_STREAM of three bytes", frame(frames.RST_STREAM, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
        ("SETTINGS on a stream", frame(frames.SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
        ("SETTINGS of five bytes", frame(frames.SETTINGS, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
        ("SETTINGS with ACK and more", frame(frames.SETTINGS, 1, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
        ("ENABLE_PUSH 2", setting(enable_push=2), ErrorCode.PROTOCOL_ERROR),
        ("a window of 2^31", setting(initial_window_size=1 << 31), ErrorCode.FLOW_CONTROL_ERROR),
        ("a frame size too small", setting(max_frame_size=16_383), ErrorCode.PROTOCOL_ERROR),
        ("a frame size too large", setting(max_frame_size=1 << 24), ErrorCode.PROTOCOL_ERROR),
        (
            "settings that make a window too large",
            headers(1) + frames.window_update(1, 0x7FFF0000) + setting(initial_window_size=0x20000),
            ErrorCode.FLOW_CONTROL_ERROR,
        ),
        ("PUSH_PROMISE", frame(frames.PUSH_PROMISE, 4, 1, number(2)), ErrorCode.PROTOCOL_ERROR),
        ("PING on a stream", frame(frames.PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        ("PING of seven bytes", frame(frames.PING, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        ("GOAWAY on a stream", frame(frames.GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        ("GOAWAY of seven bytes", frame(frames.GOAWAY, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        ("WINDOW_UPDATE by 0", frames.window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
        ("WINDOW_UPDATE on an idle stream", frames.window_update(1, 1), ErrorCode.PROTOCOL_ERROR),
        ("WINDOW_UPDATE of three bytes", frame(frames.WINDOW_UPDATE, 0, 0, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
        ("a window over 2^31-1", frames.window_update(0, 0x7FFFFFFF), ErrorCode.FLOW_CONTROL_ERROR),
        ("a frame over 2^14", frame(frames.PING, 0, 0, bytes(16_385)), ErrorCode.FRAME_SIZE_ERROR),
        ("a frame that claims 16 MB", b"\xff\xff\xff" + bytes(6), ErrorCode.FRAME_SIZE_ERROR),
    ],
)
def test_connection_errors(name: str, received: bytes, code: ErrorCode) -> None:
    assert fault(started(), received) == code, name


@pytest.mark.parametrize(
    ("name", "received", "code"),
    [
        ("DATA after the end", data(1, b"x", True) + data(1, b"y"), ErrorCode.STREAM_CLOSED),
        ("HEADERS after the end", data(1, b"x", True) + headers(1, TAIL, True), ErrorCode.STREAM_CLOSED),
        ("HEADERS that do not end", headers(1, TAIL), ErrorCode.PROTOCOL_ERROR),
        ("trailers with a pseudo-header", headers(1, BLOCK, True), ErrorCode.PROTOCOL_ERROR),
        ("WINDOW_UPDATE by 0", frames.window_update(1, 0), ErrorCode.PROTOCOL_ERROR),
        ("a window over 2^31-1", frames.window_update(1, 0x7FFFFFFF), ErrorCode.FLOW_CONTROL_ERROR),
        ("PRIORITY of four bytes", frame(frames.PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
    ],
)
def test_stream_errors(name: str, received: bytes, code: ErrorCode) -> None:
    """The stream is reset, its owner told, and its neighbour served."""
    connection = started()
    receive(connection, headers(1))
    *_, last = receive(connection, received)
    assert isinstance(last, StreamReset), name
    assert (last.code, last.fault) == (code, True)
    assert sent(connection) == [(frames.RST_STREAM, 0, 1, number(code))]
    assert not connection.streams
    assert request(connection, 3).id == 3


@pytest.mark.parametrize(
    "fields",
    [
        [(b":method", b"POST")],
        [*REQUEST, REQUEST[0]],
        [*REQUEST, (b":status", b"200")],
        [(b"a", b"b"), *REQUEST],
        [*REQUEST, (b"", b"x")],
        [*REQUEST, (b"Upper", b"x")],
        [*REQUEST, (b"sp ace", b"x")],
        [*REQUEST, (b"colon:", b"x")],
        [*REQUEST, (b"a", b"x\0y")],
        [*REQUEST, (b"a", b"x\ny")],
        [*REQUEST, (b"a", b"x\ry")],
        [*REQUEST, (b"connection", b"close")],
        [*REQUEST, (b"transfer-encoding", b"chunked")],
        [*REQUEST, (b"te", b"gzip")],
        [*REQUEST, (b"content-length", b"x")],
        [*REQUEST, (b"content-length", b"9")],
        [*REQUEST[:2], (b":path", b"")],
    ],
)
def test_malformed_requests(fields: list[tuple[bytes, bytes]]) -> None:
    connection = started()
    assert receive(connection, headers(1, encode(fields), ended=True)) == [Rejected(ErrorCode.PROTOCOL_ERROR, "")]
    assert sent(connection) == [(frames.RST_STREAM, 0, 1, number(ErrorCode.PROTOCOL_ERROR))]


@pytest.mark.parametrize("pieces", [[b"12345"], [b"123"], [b"12", b"345"]])
def test_a_body_that_is_not_as_long_as_it_said(pieces: list[bytes]) -> None:
    connection = started()
    block = encode([*REQUEST, (b"content-length", b"4")])
    *before, last = pieces
    received = b"".join(data(1, piece) for piece in before) + data(1, last, True)
    events = receive(connection, headers(1, block) + received)
    assert isinstance(events[-1], StreamReset)


def test_a_repeated_header_is_its_last() -> None:
    connection = started()
    block = encode([*REQUEST, (b"a", b"1"), (b"a", b"2")])
    (event,) = receive(connection, headers(1, block, True))
    assert event.stream.headers[b"a"] == b"2"


def test_events_before_a_fault_are_delivered() -> None:
    connection = started()
    events = connection.receive_data(headers(1) + headers(2), NOW_MS)
    assert [type(event) for event in events] == [RequestReceived]
    assert connection.more
    with pytest.raises(Http2Error):
        connection.receive_data(b"", NOW_MS)


# -- closed streams


def test_frames_under_way_to_a_stream_that_we_reset_are_ignored() -> None:
    connection = started()
    (event,) = receive(connection, headers(1))
    connection.reset(event.stream, ErrorCode.CANCEL)
    connection.data_to_send()
    late = data(1, b"x") + frames.window_update(1, 5) + headers(1, TAIL, True) + frames.rst_stream(1, 0)
    assert receive(connection, late) == []
    assert sent(connection) == []


def test_an_answer_before_the_request_ends_stops_it() -> None:
    connection = started()
    (event,) = receive(connection, headers(1))
    connection.end(event.stream, TAIL)
    assert sent(connection) == [(frames.HEADERS, 5, 1, TAIL), (frames.RST_STREAM, 0, 1, number(0))]
    assert receive(connection, data(1, b"late", True)) == []
    assert receive(connection, data(1, b"after the end")) == [Rejected(ErrorCode.STREAM_CLOSED, "")]


def test_late_frames_for_an_answered_stream_are_ignored() -> None:
    connection = started()
    connection.respond(request(connection), HEAD, b"", b"x", TAIL)
    connection.data_to_send()
    assert receive(connection, frames.window_update(1, 5) + frames.rst_stream(1, 8)) == []
    assert sent(connection) == []
    assert receive(connection, data(1, b"x")) == [Rejected(ErrorCode.STREAM_CLOSED, "")]


def test_nothing_is_sent_on_a_closed_stream() -> None:
    connection = started()
    stream = request(connection)
    receive(connection, frames.rst_stream(1, ErrorCode.CANCEL))
    connection.respond(stream, HEAD, b"", b"x", TAIL)
    connection.send_headers(stream, HEAD)
    connection.end(stream, TAIL)
    connection.reset(stream, ErrorCode.CANCEL)
    assert connection.data_to_send() == b""


# -- windows


def test_a_stream_waits_for_its_window() -> None:
    connection = started(peer=setting(initial_window_size=10))
    stream = request(connection)
    connection.respond(stream, HEAD, b"12345", b"x" * 20, TAIL)
    assert sent(connection) == [(frames.HEADERS, 4, 1, HEAD), (frames.DATA, 0, 1, b"12345xxxxx")]
    assert receive(connection, frames.window_update(1, 14)) == []
    assert data_sizes(connection) == [(1, 14)]
    assert receive(connection, frames.window_update(1, 5)) == []
    assert sent(connection) == [(frames.DATA, 0, 1, b"x"), (frames.HEADERS, 5, 1, TAIL)]
    assert not connection.streams


def test_settings_change_the_windows_of_streams() -> None:
    connection = started(peer=setting(initial_window_size=10))
    stream = request(connection)
    connection.send_headers(stream, HEAD)
    connection.send_data(stream, b"", b"x" * 30)
    receive(connection, setting(initial_window_size=4))  # the window is -6 now
    connection.data_to_send()
    assert receive(connection, frames.window_update(1, 6)) == []
    assert data_sizes(connection) == []
    receive(connection, setting(initial_window_size=9))
    assert sent(connection) == [(frames.SETTINGS, frames.ACK, 0, b""), (frames.DATA, 0, 1, b"x" * 5)]
    assert receive(connection, setting(initial_window_size=100)) == [StreamWritable(stream)]
    assert data_sizes(connection) == [(1, 15)]


def test_streams_share_the_window_of_the_connection() -> None:
    connection = started(peer=setting(initial_window_size=1 << 20))
    streams = [request(connection, stream_id) for stream_id in (1, 3)]
    for stream in streams:
        connection.send_data(stream, b"", b"x" * 200_000)
    assert sum(size for _, size in data_sizes(connection)) == 65_535
    receive(connection, frames.window_update(0, 200_000))
    turns = data_sizes(connection)
    assert sum(size for _, size in turns) == 200_000
    by_stream = [sum(size for stream_id, size in turns if stream_id == wanted) for wanted in (1, 3)]
    assert by_stream[1] > 65_536  # the first did not take it all
    assert receive(connection, frames.window_update(0, 200_000)) == [
        StreamWritable(streams[0]),
        StreamWritable(streams[1]),
    ]


def test_frames_are_as_large_as_the_peer_takes_them() -> None:
    connection = started(peer=setting(initial_window_size=1 << 20, max_frame_size=30_000))
    receive(connection, frames.window_update(0, 1 << 20))
    connection.send_data(request(connection), b"", b"x" * 70_000)
    assert data_sizes(connection) == [(1, 30_000), (1, 30_000), (1, 10_000)]


def test_a_reset_drops_what_waits() -> None:
    connection = started(peer=setting(initial_window_size=0))
    stream = request(connection)
    connection.respond(stream, HEAD, b"", b"x" * 20, TAIL)
    assert connection.queued_bytes == 20
    assert receive(connection, frames.rst_stream(1, 8)) == [StreamReset(stream, 8, fault=False)]
    assert connection.queued_bytes == 0
    receive(connection, frames.window_update(0, 100))
    assert data_sizes(connection) == []


def test_our_windows_are_opened_again_at_half() -> None:
    limits = Limits(http2_stream_window_bytes=65_536, http2_connection_window_bytes=100_000)
    connection = started(limits)
    receive(connection, headers(1) + data(1, bytes(16_384)) * 2)
    assert sent(connection) == []
    receive(connection, data(1, b"x"))
    assert sent(connection) == [(frames.WINDOW_UPDATE, 0, 1, number(32_769))]
    receive(connection, data(1, bytes(16_384)) + data(1, bytes(1000)))
    assert sent(connection) == [(frames.WINDOW_UPDATE, 0, 0, number(32_769 + 16_384 + 1000))]


def test_a_peer_that_passes_the_window_of_a_stream() -> None:
    """Only possible for a peer that does not wait: our window is opened again as soon as it is half used."""
    connection = started()
    (event,) = receive(connection, headers(1))
    event.stream.receive_window = 5
    *_, last = receive(connection, data(1, b"123456"))
    assert last == StreamReset(event.stream, ErrorCode.FLOW_CONTROL_ERROR, fault=True)


# -- limits


def flood(piece: bytes, limits: Limits | None = None, before: bytes = b"") -> ErrorCode:
    return fault(started(limits or Limits(http2_control_frames_per_10s=100), before), piece * 200)


@pytest.mark.parametrize(
    ("name", "before", "piece"),
    [
        ("ping", b"", frame(frames.PING, 0, 0, bytes(8))),
        ("settings", b"", frame(frames.SETTINGS, 0, 0)),
        ("priority", b"", frame(frames.PRIORITY, 0, 1, bytes(5))),
        ("empty data", headers(1), data(1, b"")),
        ("padded empty data", headers(1), frame(frames.DATA, frames.PADDED, 1, b"\x03\0\0\0")),
        ("empty continuation", frame(frames.HEADERS, 0, 1), frame(frames.CONTINUATION, 0, 1)),
        ("unknown", b"", frame(99, 0, 0)),
        ("window updates", b"", frames.window_update(0, 1)),
        ("window updates of a closed stream", headers(1) + frames.rst_stream(1, 0), frames.window_update(1, 1)),
        ("goaway", b"", frames.goaway(0, 0)),
        ("data on a closed stream", headers(1, ended=True) + frames.rst_stream(1, 0), data(1, b"x")),
    ],
)
def test_floods(name: str, before: bytes, piece: bytes) -> None:
    assert flood(piece, before=before) == ErrorCode.ENHANCE_YOUR_CALM, name


@pytest.mark.parametrize(
    "end",
    [
        lambda stream_id: frames.rst_stream(stream_id, ErrorCode.CANCEL),  # CVE-2023-44487
        lambda stream_id: frames.window_update(stream_id, 0),  # CVE-2025-8671
        lambda stream_id: headers(stream_id, TAIL),
    ],
)
def test_rapid_reset(end: Callable[[int], bytes]) -> None:
    connection = started(Limits(http2_control_frames_per_10s=100))
    storm = b"".join(headers(stream_id) + end(stream_id) for stream_id in range(1, 500, 2))
    assert fault(connection, storm) == ErrorCode.ENHANCE_YOUR_CALM


def test_a_flood_is_counted_anew_after_ten_seconds() -> None:
    connection = started(Limits(http2_control_frames_per_10s=100))
    pings = frame(frames.PING, 0, 0, bytes(8)) * 90
    for period in range(5):
        receive(connection, pings, NOW_MS + 10_000 * (period + 1))


def test_answers_pay_for_pings_and_window_updates() -> None:
    """gRPC clients estimate the bandwidth with both for most answers that they read."""
    connection = started(Limits(http2_control_frames_per_10s=100))
    ping = frame(frames.PING, 0, 0, bytes(8))
    for index in range(300):
        connection.respond(request(connection, 2 * index + 1), HEAD, b"", b"x", TAIL)
        receive(connection, frames.window_update(0, 1) + ping)


def test_a_window_opened_byte_by_byte_does_not_pay() -> None:
    """CVE-2019-9511: each update lets one byte go."""
    connection = started(Limits(http2_control_frames_per_10s=100), setting(initial_window_size=0))
    connection.send_data(request(connection), b"", b"x" * 1000)
    assert fault(connection, frames.window_update(1, 1) * 200) == ErrorCode.ENHANCE_YOUR_CALM


def test_headers_over_the_limit_are_answered() -> None:
    limits = Limits(http2_header_list_bytes=1000)
    connection = started(limits)
    block = encode([*REQUEST, (b"a", b"x" * 1000)])
    assert receive(connection, headers(1, block, ended=True)) == [
        Rejected(ErrorCode.ENHANCE_YOUR_CALM, "http2_header_list_bytes")
    ]
    assert sent(connection) == [(frames.HEADERS, 5, 1, encode([(b":status", b"431")]))]
    assert request(connection, 3).id == 3


def test_a_bomb_of_indexed_headers_is_answered() -> None:
    """4,000 bytes in the table, named 4,000 times: 16 MB."""
    connection = started()
    encoder = hpack.Encoder()
    first = encoder.encode([*REQUEST, (b"a", b"x" * 4000)], huffman=False)
    tracemalloc.start()
    events = receive(connection, headers(1, first + b"\xbe" * 4000, ended=True))
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert events == [Rejected(ErrorCode.ENHANCE_YOUR_CALM, "http2_header_list_bytes")]
    assert most_bytes < 200_000


def test_bombs_come_one_by_one_and_not_for_long() -> None:
    connection = started()
    bomb = [*REQUEST, *[(b"a", b"")] * 600]
    bombs = b"".join(headers(stream_id, encode(bomb), ended=True) for stream_id in range(1, 81, 2))
    events = connection.receive_data(bombs, NOW_MS)
    for _ in range(20):
        assert events == [Rejected(ErrorCode.ENHANCE_YOUR_CALM, "http2_header_list_bytes")]
        assert connection.more
        events = connection.receive_data(b"", NOW_MS)
    assert fault(connection, b"") == ErrorCode.ENHANCE_YOUR_CALM


def test_a_window_that_changes_again_and_again_in_one_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change is work for every stream of the connection."""
    changes: list[int] = []
    monkeypatch.setattr(ServerConnection, "_change_windows", lambda _, difference: changes.append(difference))
    connection = started()
    values = (frames.SETTING.pack(Setting.INITIAL_WINDOW_SIZE, value) for value in range(70_000, 72_000))
    receive(connection, frame(frames.SETTINGS, 0, 0, b"".join(values)))
    assert changes == [71_999 - frames.DEFAULT_WINDOW]


def test_a_header_block_without_end() -> None:
    connection = started()
    endless = frame(frames.HEADERS, 0, 1, b"\0") + frame(frames.CONTINUATION, 0, 1, bytes(10_000)) * 2
    assert fault(connection, endless) == ErrorCode.ENHANCE_YOUR_CALM


def test_too_many_streams_are_refused() -> None:
    connection = started(Limits(http2_max_concurrent_streams=2))
    *_, last = receive(connection, headers(1) + headers(3) + headers(5) + data(5, b"late"))
    assert last == Rejected(ErrorCode.REFUSED_STREAM, "http2_max_concurrent_streams")
    assert sent(connection) == [(frames.RST_STREAM, 0, 5, number(ErrorCode.REFUSED_STREAM))]
    connection.end(connection.streams[1], TAIL)
    assert [describe(event)[0] for event in receive(connection, headers(7))] == ["RequestReceived"]


def test_parsing_stops_when_there_is_enough_to_do() -> None:
    connection = started(Limits(http2_max_concurrent_streams=1000))
    events = connection.receive_data(b"".join(headers(i, ended=True) for i in range(1, 401, 2)), NOW_MS)
    assert len(events) == 64
    assert connection.more
    total = len(events)
    while connection.more:
        total += len(connection.receive_data(b"", NOW_MS))
    assert total == 200


# -- the end


def test_drain_in_two_steps() -> None:
    connection = started()
    first = request(connection, 1)
    connection.drain()
    connection.drain()
    assert sent(connection) == [
        (frames.GOAWAY, 0, 0, number(0x7FFFFFFF) + number(0)),
        (frames.PING, 0, 0, DRAIN_PING),
    ]
    second = request(connection, 3)  # was under way
    assert not connection.drained
    receive(connection, frame(frames.PING, frames.ACK, 0, DRAIN_PING))
    assert connection.drained
    assert sent(connection) == [(frames.GOAWAY, 0, 0, number(3) + number(0))]
    assert receive(connection, headers(5) + data(5, b"x", True)) == [Rejected(ErrorCode.REFUSED_STREAM, "")]
    assert sent(connection) == [(frames.RST_STREAM, 0, 5, number(ErrorCode.REFUSED_STREAM))]
    for stream in (first, second):
        connection.respond(stream, HEAD, b"", b"x", TAIL)
    assert not connection.streams
    with pytest.raises(Http2Error):
        receive(connection, headers(2))
    assert sent(connection)[-1][3][:4] == number(3)  # GOAWAY never names a later stream
