"""The server's end of one HTTP/2 connection, sans-IO: bytes in, events out; answers in, bytes out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from saturnmq.kernel.config import Limits
from saturnmq.wire.http2 import frames
from saturnmq.wire.http2.frames import ErrorCode, Http2Error, Setting
from saturnmq.wire.http2.hpack import Decoder, Field, encode
from saturnmq.wire.http2.streams import (
    NEXT_STATE,
    HeadersTooLarge,
    MalformedRequest,
    Move,
    State,
    Stream,
    check_trailers,
    content_length,
    request_headers,
)

#: what a browser or curl gets before the connection is closed
HTTP_1_ANSWER_BODY = b"This port speaks gRPC (HTTP/2), not HTTP/1.1.\n"
HTTP_1_ANSWER = (
    b"HTTP/1.1 426 Upgrade Required\r\nConnection: close, Upgrade\r\nUpgrade: h2c\r\nContent-Type: text/plain\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(HTTP_1_ANSWER_BODY), HTTP_1_ANSWER_BODY)
)
TOO_LARGE_BLOCK = encode([(b":status", b"431")])

CONTROL_PERIOD_MS = 10_000
#: events of one call of receive_data: the shell looks at its budget between calls
MAX_EVENTS = 64
#: bytes of one stream before the next that waits for the connection's window has its turn
TURN_BYTES = 65_536
#: control frames that one answer allows for
ANSWER_PAYS = 4
#: a DATA frame from here on counts as one; smaller ones may be the peer's own doing (CVE-2019-9511)
PAYING_BYTES = 1024
#: streams that were opened for nothing, which headers over the limit count as: a block of 16 KiB may name 16,000
TOO_LARGE_COSTS = 100
DRAIN_PING = b"saturnmq"
#: see ServerConnection._expected
ANY = -1
#: of the line that tells HTTP/1.1 from noise; clients do not write longer ones to a server that they do not know
HTTP_1_LINE_BYTES = 8192


class RequestReceived(msgspec.Struct, gc=False):
    """A new stream with its headers; `ended` when there is no body."""

    stream: Stream
    ended: bool


class DataReceived(msgspec.Struct, gc=False):
    """A piece of the body, padding removed. Empty with `ended` after trailers, whose fields gRPC does not use."""

    stream: Stream
    data: bytes
    ended: bool


class StreamReset(msgspec.Struct, gc=False):
    """The stream is gone, by the peer's wish, or (`fault`) by ours because it broke the protocol."""

    stream: Stream
    code: int
    fault: bool


class StreamWritable(msgspec.Struct, gc=False):
    """Everything that was given to the stream has left."""

    stream: Stream


class Rejected(msgspec.Struct, gc=False):
    """A frame or request that reached no stream; `limit` names the field of Limits where that was the reason."""

    code: ErrorCode
    limit: str


Event: TypeAlias = RequestReceived | DataReceived | StreamReset | StreamWritable | Rejected


class ServerConnection:
    """Frames, streams and windows of one connection. Owner: the shell, which moves bytes and knows the time.

    `receive_data` returns events, at most about MAX_EVENTS; while `more` is true, call it again with no data.
    It raises Http2Error (a ProtocolError) only when all events before the fault have been returned; GOAWAY is then
    among the bytes to send and the connection is to be closed. What is to be written collects in `output`.
    """

    def __init__(self, limits: Limits) -> None:
        assert limits.http2_stream_window_bytes >= frames.DEFAULT_WINDOW, "peers use the default until they see ours"
        assert limits.http2_connection_window_bytes >= frames.DEFAULT_WINDOW, "a window cannot be taken back"
        self._limits = limits
        self.streams: dict[int, Stream] = {}
        #: bytes and views to write, in order
        self.output: list[bytes | memoryview] = []
        self.output_bytes = 0
        #: true once the peer has said the preface and its settings
        self.ready = False
        self.more = False
        #: the peer was told that this connection ends
        self.draining = False
        #: body bytes that wait for the peer's windows, all streams together
        self.queued_bytes = 0
        #: body bytes that did not have to wait any longer
        self._sent_bytes = 0

        self._events: list[Event] = []
        #: something came that took long
        self._turn_is_over = False
        self._fault: Http2Error | None = None
        self._buffer = b""
        #: where the next frame begins in `_buffer`
        self._position = 0
        self._started = False
        #: the only type of frame that may come next, -1 where any may
        self._expected = frames.SETTINGS
        self._decoder = Decoder()
        self._last_stream_id = 0
        #: the last stream that is still served; those after it are refused
        self._drained_id: int | None = None
        #: streams that we reset and whose frames may still be under way
        self._reset_streams: dict[int, None] = {}
        #: HEADERS that wait for their CONTINUATION: stream id, END_STREAM
        self._partial: tuple[int, bool] | None = None
        self._partial_block = bytearray()

        self._stream_window = limits.http2_stream_window_bytes
        self._stream_window_low = self._stream_window // 2
        self._receive_window = limits.http2_connection_window_bytes
        self._receive_window_low = self._receive_window // 2
        self._send_window = frames.DEFAULT_WINDOW
        self._peer_stream_window = frames.DEFAULT_WINDOW
        self._peer_frame_bytes = frames.DEFAULT_FRAME_BYTES
        #: streams with something in their outbox, by id, in the order of their turns
        self._waiting: dict[int, Stream] = {}

        self._now_ms = 0
        self._period_end_ms = 0
        #: frames that cost us and move nothing, and answers that pay for them (see `_count_control`)
        self._control_frames = 0
        self._earned = 0
        self._resets = 0

    def _greet(self) -> None:
        limits = self._limits
        self._put(
            frames.settings(
                {
                    Setting.HEADER_TABLE_SIZE: limits.http2_header_table_bytes,
                    Setting.MAX_CONCURRENT_STREAMS: limits.http2_max_concurrent_streams,
                    Setting.INITIAL_WINDOW_SIZE: limits.http2_stream_window_bytes,
                    Setting.MAX_FRAME_SIZE: limits.http2_max_frame_bytes,
                    Setting.MAX_HEADER_LIST_SIZE: limits.http2_header_list_bytes,
                }
            )
        )
        if self._receive_window > frames.DEFAULT_WINDOW:
            self._put(frames.window_update(0, self._receive_window - frames.DEFAULT_WINDOW))

    # -- what comes in

    def receive_data(self, data: bytes, now_ms: int) -> list[Event]:
        """Parse what came, and what is left of earlier data."""
        if self._fault is not None:
            raise self._fault
        if now_ms >= self._period_end_ms:
            self._period_end_ms = now_ms + CONTROL_PERIOD_MS
            self._control_frames = self._earned = self._resets = 0
        if self._position < len(self._buffer):
            self._buffer = self._buffer[self._position :] + data
        else:
            self._buffer = data
        self._position = 0
        events = self._events = []
        self.more = self._turn_is_over = False
        try:
            self._parse(events)
        except Http2Error as fault:
            self._fail(fault)
            if not events:
                raise
        return events

    def _fail(self, fault: Http2Error) -> None:
        self._fault = fault
        self._buffer = b""
        self._position = 0
        self.more = True
        if self._started:
            self._put(frames.goaway(self._last_worked_id(), fault.code, str(fault)))

    def _parse(self, events: list[Event]) -> None:
        """Take whole frames until `events` is full."""
        if not self._started:
            self._take_preface()
            if not self._started:
                return
        data = self._buffer
        position = self._position
        end = len(data)
        longest = self._limits.http2_max_frame_bytes << 8 | 0xFF
        unpack = frames.HEADER.unpack_from
        while end - position >= frames.HEADER_BYTES:
            if len(events) >= MAX_EVENTS or self._turn_is_over:
                self.more = True
                break
            word, flags, stream_id = unpack(data, position)
            if word > longest:
                raise Http2Error(
                    ErrorCode.FRAME_SIZE_ERROR, f"a frame of {word >> 8} bytes, the limit is {longest >> 8}"
                )
            start = position + frames.HEADER_BYTES
            stop = start + (word >> 8)
            if stop > end:
                break
            kind = word & 0xFF
            if kind != self._expected != ANY:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"a frame of type {kind} where {self._expected} must come")
            position = stop
            handle = HANDLERS[kind] if kind < len(HANDLERS) else ServerConnection._ignore
            handle(self, flags, stream_id & frames.STREAM_ID_MASK, data[start:stop])
        self._position = position
        if not self.more:
            self._buffer = data[position:]
            self._position = 0

    def _take_preface(self) -> None:
        start = self._buffer[: len(frames.PREFACE)]
        if not frames.PREFACE.startswith(start):
            self._take_http_1()
            return
        if len(start) == len(frames.PREFACE):
            self._started = True
            self._position = len(start)
            self._greet()

    def _take_http_1(self) -> None:
        """Raises once the first line says what it is."""
        line, newline, _ = self._buffer.partition(b"\n")
        if line[:1].isupper() and not newline and len(line) < HTTP_1_LINE_BYTES:
            return
        if b" HTTP/1." in line:
            self.output = [HTTP_1_ANSWER]
            raise Http2Error(ErrorCode.HTTP_1_1_REQUIRED, "the client speaks HTTP/1.1")
        self._started = True
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "the client speaks neither HTTP/2 nor HTTP/1.1")

    def _on_data(self, flags: int, stream_id: int, data: bytes) -> None:
        size = len(data)
        self._receive_window -= size
        if self._receive_window < self._receive_window_low:
            self._open_connection_window()
        if flags & frames.PADDED:
            data = _unpad(data)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._on_data_without_stream(flags, stream_id)
            return
        ended = flags & frames.END_STREAM
        state = NEXT_STATE[stream.state][Move.RECEIVE_END if ended else Move.RECEIVE]
        if state is None:
            self._stream_fault(stream, ErrorCode.STREAM_CLOSED)
            return
        stream.receive_window -= size
        if stream.receive_window < 0:
            self._stream_fault(stream, ErrorCode.FLOW_CONTROL_ERROR)
            return
        if stream.expected_bytes >= 0:
            stream.expected_bytes -= len(data)
            if stream.expected_bytes < 0 or (ended and stream.expected_bytes):
                self._stream_fault(stream, ErrorCode.PROTOCOL_ERROR)
                return
        stream.state = state
        if not ended:
            if not data:
                self._count_control()
            if stream.receive_window < self._stream_window_low:
                self._put(frames.window_update(stream_id, self._stream_window - stream.receive_window))
                stream.receive_window = self._stream_window
        self._events.append(DataReceived(stream, data, bool(ended)))

    def _open_connection_window(self) -> None:
        if self._receive_window < 0:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window")
        full = self._limits.http2_connection_window_bytes
        self._put(frames.window_update(0, full - self._receive_window))
        self._receive_window = full

    def _on_data_without_stream(self, flags: int, stream_id: int) -> None:
        self._check_not_idle(stream_id, "DATA")
        if stream_id not in self._reset_streams:
            self._put(frames.rst_stream(stream_id, ErrorCode.STREAM_CLOSED))
            self._reject(ErrorCode.STREAM_CLOSED)
        elif flags & frames.END_STREAM:
            del self._reset_streams[stream_id]

    def _on_headers(self, flags: int, stream_id: int, block: bytes) -> None:
        if not stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        if flags & frames.PADDED:
            block = _unpad(block)
        if flags & frames.PRIORITY_FIELDS:
            if len(block) < 5:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            _check_dependency(stream_id, block)
            block = block[5:]
        if flags & frames.END_HEADERS:
            self._on_header_block(stream_id, block, bool(flags & frames.END_STREAM))
            return
        self._partial = stream_id, bool(flags & frames.END_STREAM)
        self._partial_block = bytearray(block)
        self._expected = frames.CONTINUATION

    def _on_continuation(self, flags: int, stream_id: int, block: bytes) -> None:
        if self._partial is None or self._partial[0] != stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of no header block of this stream")
        self._count_control()
        self._partial_block += block
        limit = self._limits.http2_header_list_bytes
        if len(self._partial_block) > limit:
            reason = f"a header block over {limit} bytes"
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, reason, "http2_header_list_bytes")
        if flags & frames.END_HEADERS:
            ended = self._partial[1]
            self._partial = None
            self._expected = ANY
            self._on_header_block(stream_id, bytes(self._partial_block), ended)

    def _on_header_block(self, stream_id: int, block: bytes, ended: bool) -> None:
        fields = self._decoder.decode(block)
        if stream_id <= self._last_stream_id:
            self._on_trailers(stream_id, fields, ended)
            return
        if not stream_id & 1:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a client's stream has an odd id")
        self._last_stream_id = stream_id
        if self._drained_id is not None:
            self._refuse(stream_id, ended, "")
            return
        if len(self.streams) >= self._limits.http2_max_concurrent_streams:
            self._refuse(stream_id, ended, "http2_max_concurrent_streams")
            return
        try:
            headers = request_headers(fields, self._limits.http2_header_list_bytes)
            length = headers.get(b"content-length")
            expected_bytes = -1 if length is None else content_length(length)
            if ended and expected_bytes > 0:
                raise MalformedRequest("content-length without a body")
        except MalformedRequest:
            self._reset_unknown(stream_id, ended, ErrorCode.PROTOCOL_ERROR)
            self._reject(ErrorCode.PROTOCOL_ERROR)
            return
        except HeadersTooLarge:
            self._put(frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, stream_id, TOO_LARGE_BLOCK))
            self._reset_unknown(stream_id, ended, ErrorCode.NO_ERROR)
            self._turn_is_over = True
            self._reject(ErrorCode.ENHANCE_YOUR_CALM, "http2_header_list_bytes", TOO_LARGE_COSTS)
            return
        state = State.HALF_CLOSED_REMOTE if ended else State.OPEN
        stream = Stream(stream_id, headers, state, self._stream_window, self._peer_stream_window)
        stream.expected_bytes = expected_bytes
        self.streams[stream_id] = stream
        self._events.append(RequestReceived(stream, ended))

    def _on_trailers(self, stream_id: int, fields: list[Field], ended: bool) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id not in self._reset_streams:
                raise Http2Error(ErrorCode.STREAM_CLOSED, f"HEADERS on the closed stream {stream_id}")
            if ended:
                del self._reset_streams[stream_id]
            return
        state = NEXT_STATE[stream.state][Move.RECEIVE_END]
        if state is None:
            self._stream_fault(stream, ErrorCode.STREAM_CLOSED)
            return
        try:
            check_trailers(fields)
        except MalformedRequest:
            ended = False
        if not ended or stream.expected_bytes > 0:
            self._stream_fault(stream, ErrorCode.PROTOCOL_ERROR)
            return
        stream.state = state
        self._events.append(DataReceived(stream, b"", True))

    def _on_priority(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Ignored (section 5.3.2), but checked and counted."""
        self._count_control()
        if not stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(payload) == 5:
            _check_dependency(stream_id, payload)
            return
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._stream_fault(stream, ErrorCode.FRAME_SIZE_ERROR)
        elif stream_id > self._last_stream_id:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY has five bytes")
        else:
            self._put(frames.rst_stream(stream_id, ErrorCode.FRAME_SIZE_ERROR))
            self._reject(ErrorCode.FRAME_SIZE_ERROR)

    def _on_rst_stream(self, flags: int, stream_id: int, payload: bytes) -> None:
        _check_size(payload, 4, "RST_STREAM")
        self._check_not_idle(stream_id, "RST_STREAM")
        self._count_reset()
        self._reset_streams.pop(stream_id, None)
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._forget(stream)
            self._events.append(StreamReset(stream, int.from_bytes(payload, "big"), fault=False))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        self._count_control()
        if flags & frames.ACK:
            _check_size(payload, 0, "SETTINGS with ACK")
            self._decoder.allow(self._limits.http2_header_table_bytes)
            return
        if len(payload) % frames.SETTING.size:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS is made of six bytes each")
        window = self._peer_stream_window
        for key, value in frames.SETTING.iter_unpack(payload):
            self._apply(key, value)
        self._put(frames.frame(frames.SETTINGS, frames.ACK, 0))  # before what the new window lets out
        if self._peer_stream_window != window:  # once, however often it stands there: it is work for every stream
            self._change_windows(self._peer_stream_window - window)
        if not self.ready:
            self.ready = True
            self._expected = ANY

    def _apply(self, key: int, value: int) -> None:
        """The other settings are about what we do not do: push, a dynamic table, streams of our own."""
        if key == Setting.INITIAL_WINDOW_SIZE:
            if value > frames.MAX_WINDOW:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is over 2^31-1")
            self._peer_stream_window = value
        elif key == Setting.MAX_FRAME_SIZE:
            if not frames.DEFAULT_FRAME_BYTES <= value <= frames.MAX_FRAME_BYTES:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "MAX_FRAME_SIZE is between 2^14 and 2^24-1")
            self._peer_frame_bytes = value
        elif key == Setting.ENABLE_PUSH and value > 1:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")

    def _change_windows(self, difference: int) -> None:
        """Section 6.9.2: a window may become negative, but not too large."""
        for stream in self.streams.values():
            stream.send_window += difference
            if stream.send_window > frames.MAX_WINDOW:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE makes a window too large")
        if difference > 0:
            self._send_waiting()

    def _on_push_promise(self, flags: int, stream_id: int, payload: bytes) -> None:
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a client cannot push")

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        _check_size(payload, 8, "PING")
        self._count_control()
        if not flags & frames.ACK:
            self._put(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif payload == DRAIN_PING and self.draining and self._drained_id is None:
            self._drained_id = self._last_stream_id
            self._put(frames.goaway(self._drained_id, ErrorCode.NO_ERROR))

    def _on_goaway(self, flags: int, stream_id: int, payload: bytes) -> None:
        """The peer opens no more streams, and closes when it has its answers."""
        if stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY is too short")
        self._count_control()

    def _on_window_update(self, flags: int, stream_id: int, payload: bytes) -> None:
        _check_size(payload, 4, "WINDOW_UPDATE")
        self._count_control()
        increment = int.from_bytes(payload, "big") & frames.STREAM_ID_MASK
        if not stream_id:
            self._send_window += increment
            if not increment or self._send_window > frames.MAX_WINDOW:
                code = ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR
                raise Http2Error(code, f"WINDOW_UPDATE by {increment}")
            self._send_waiting()
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id, "WINDOW_UPDATE")
            return
        stream.send_window += increment
        if not increment or stream.send_window > frames.MAX_WINDOW:
            code = ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR
            self._stream_fault(stream, code)
        elif stream.outbox:
            self._send_outbox(stream, stream.queued_bytes)
            self._tell_writable(stream)

    def _ignore(self, flags: int, stream_id: int, payload: bytes) -> None:
        """A type that we do not know (section 5.5)."""
        self._count_control()

    # -- what the peer may not do

    def _check_not_idle(self, stream_id: int, name: str) -> None:
        if stream_id > self._last_stream_id or not stream_id & 1:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"{name} on the idle stream {stream_id}")

    def _count_control(self) -> None:
        """A frame that makes work and moves nothing.

        Clients that estimate the bandwidth (grpc-go) send a WINDOW_UPDATE and a PING for most of our answers, so each
        answer pays for some.
        """
        self._control_frames += 1
        if self._control_frames - self._earned > self._limits.http2_control_frames_per_10s:
            raise _calm("PING, SETTINGS, WINDOW_UPDATE or empty frames")

    def _count_reset(self, streams: int = 1) -> None:
        """A stream that was opened for nothing: no answer pays for it (CVE-2023-44487, CVE-2025-8671)."""
        self._resets += streams
        if self._resets > self._limits.http2_control_frames_per_10s:
            raise _calm("streams were reset")

    def _reject(self, code: ErrorCode, limit: str = "", costs: int = 1) -> None:
        self._events.append(Rejected(code, limit))
        self._count_reset(costs)

    def _refuse(self, stream_id: int, ended: bool, limit: str) -> None:
        """The peer may try again, on another connection or later (section 8.7)."""
        self._reset_unknown(stream_id, ended, ErrorCode.REFUSED_STREAM)
        self._reject(ErrorCode.REFUSED_STREAM, limit)

    def _stream_fault(self, stream: Stream, code: ErrorCode) -> None:
        self.reset(stream, code)
        self._events.append(StreamReset(stream, code, fault=True))
        self._count_reset()

    def _reset_unknown(self, stream_id: int, ended: bool, code: ErrorCode) -> None:
        if not ended:
            self._remember_reset(stream_id)
        if not ended or code != ErrorCode.NO_ERROR:
            self._put(frames.rst_stream(stream_id, code))

    def _remember_reset(self, stream_id: int) -> None:
        self._reset_streams[stream_id] = None
        if len(self._reset_streams) > self._limits.http2_max_concurrent_streams:
            del self._reset_streams[next(iter(self._reset_streams))]

    # -- what goes out

    def respond(self, stream: Stream, head: bytes, prefix: bytes, body: bytes, trailers: bytes) -> None:
        """A whole response; `head` and `trailers` are header blocks, `prefix` and `body` one piece of data.

        Almost every answer is small and finds its request ended and the windows open: three frames, and done.
        """
        size = len(prefix) + len(body)
        if (
            stream.state == State.HALF_CLOSED_REMOTE
            and size <= stream.send_window
            and size <= self._send_window
            and size <= self._peer_frame_bytes
        ):
            stream_id = stream.id
            self._send_window -= size
            self._sent_bytes += size
            self._earned += ANSWER_PAYS
            self.output_bytes += size
            pack = frames.HEADER.pack
            self.output += (
                pack(len(head) << 8 | frames.HEADERS, frames.END_HEADERS, stream_id),
                head,
                pack(size << 8, 0, stream_id),
                prefix,
                body,
                pack(len(trailers) << 8 | frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, stream_id),
                trailers,
            )
            stream.state = State.CLOSED
            del self.streams[stream_id]
            return
        self.send_headers(stream, head)
        self.send_data(stream, prefix, body)
        self.end(stream, trailers)

    def send_headers(self, stream: Stream, block: bytes) -> None:
        """The header block of a response. Like all that is sent: nothing happens once the stream is closed."""
        assert len(block) <= frames.DEFAULT_FRAME_BYTES
        if stream.state != State.CLOSED:
            self._put(frames.frame(frames.HEADERS, frames.END_HEADERS, stream.id, block))

    def send_data(self, stream: Stream, prefix: bytes, body: bytes) -> None:
        """A piece of the response's body, in two parts so that nobody has to join them. Waits for the windows."""
        if stream.state == State.CLOSED:
            return
        outbox = stream.outbox
        if outbox is None:
            outbox = stream.outbox = deque()
        outbox.append(memoryview(prefix))
        if body:
            outbox.append(memoryview(body))
        size = len(prefix) + len(body)
        stream.queued_bytes += size
        self.queued_bytes += size
        self._earned += ANSWER_PAYS
        self._send_outbox(stream, size)

    def end(self, stream: Stream, trailers: bytes) -> None:
        """End the stream with a header block, or without one, once its data has left."""
        if stream.state == State.CLOSED:
            return
        stream.trailers = trailers
        if not stream.outbox:
            self._send_end(stream)

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """Drop the stream and what waits in it."""
        if stream.state == State.CLOSED:
            return
        if stream.state == State.OPEN:
            self._remember_reset(stream.id)
        self._put(frames.rst_stream(stream.id, code))
        self._forget(stream)

    def drain(self) -> None:
        """Say that the connection ends soon (section 6.8).

        What the peer opens before it answers our PING is still served; what comes later is refused.
        """
        if not self.draining and self.ready:
            self._put(frames.goaway(frames.STREAM_ID_MASK, ErrorCode.NO_ERROR))
            self._put(frames.frame(frames.PING, 0, 0, DRAIN_PING))
        self.draining = True

    @property
    def drained(self) -> bool:
        """The peer knows that the connection ends; what it opened before is all that is left."""
        return self._drained_id is not None

    @property
    def progress(self) -> tuple[int, int, int]:
        """Changes with every request and every answer, and with almost every piece of one."""
        return self._last_stream_id, self._receive_window, self._sent_bytes

    def data_to_send(self) -> bytes:
        """Everything that is to be written, and forget it."""
        data = b"".join(self.output)
        self.output.clear()
        self.output_bytes = 0
        return data

    def _last_worked_id(self) -> int:
        return self._last_stream_id if self._drained_id is None else self._drained_id

    def _put(self, data: bytes) -> None:
        self.output.append(data)
        self.output_bytes += len(data)

    def _send_outbox(self, stream: Stream, most_bytes: int) -> None:
        """Send what the windows allow. Whatever is left waits for WINDOW_UPDATE."""
        assert stream.outbox is not None
        budget = min(most_bytes, self._send_window, stream.send_window)
        while budget > 0 and stream.queued_bytes:
            size = min(budget, self._peer_frame_bytes, stream.queued_bytes)
            self.output.append(frames.HEADER.pack(size << 8, 0, stream.id))
            self._move(stream, stream.outbox, size)
            budget -= size
            if size >= PAYING_BYTES:
                self._earned += ANSWER_PAYS
        if stream.queued_bytes:
            self._waiting[stream.id] = stream
            return
        self._waiting.pop(stream.id, None)
        if stream.trailers is not None:
            self._send_end(stream)

    def _move(self, stream: Stream, outbox: deque[memoryview], size: int) -> None:
        """From the outbox to the output, counted in the windows."""
        stream.queued_bytes -= size
        stream.send_window -= size
        self.queued_bytes -= size
        self._send_window -= size
        self._sent_bytes += size
        self.output_bytes += size
        while size:
            piece = outbox[0]
            if len(piece) > size:
                self.output.append(piece[:size])
                outbox[0] = piece[size:]
                return
            self.output.append(piece)
            outbox.popleft()
            size -= len(piece)

    def _send_waiting(self) -> None:
        """The connection's window or all streams' windows opened: a turn for each, until nothing moves."""
        moved = True
        while moved:
            moved = False
            for stream in list(self._waiting.values()):
                if self._send_window <= 0:
                    return
                if stream.send_window > 0:
                    del self._waiting[stream.id]
                    self._send_outbox(stream, TURN_BYTES)
                    self._tell_writable(stream)
                    moved = True

    def _tell_writable(self, stream: Stream) -> None:
        if not stream.queued_bytes and stream.state != State.CLOSED:
            self._events.append(StreamWritable(stream))

    def _send_end(self, stream: Stream) -> None:
        if stream.trailers:
            flags = frames.END_HEADERS | frames.END_STREAM
            self._put(frames.frame(frames.HEADERS, flags, stream.id, stream.trailers))
        else:
            self._put(frames.frame(frames.DATA, frames.END_STREAM, stream.id))
        if stream.state == State.OPEN:
            # the answer is complete: the peer need not send the rest of its request (section 8.1)
            self.reset(stream, ErrorCode.NO_ERROR)
        else:
            self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        stream.state = State.CLOSED
        self.queued_bytes -= stream.queued_bytes
        stream.queued_bytes = 0
        stream.outbox = None
        self._waiting.pop(stream.id, None)
        del self.streams[stream.id]


def _unpad(payload: bytes) -> bytes:
    """Section 6.1: the first byte says how many bytes at the end are nothing."""
    if not payload or payload[0] >= len(payload):
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "padding longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def _check_dependency(stream_id: int, priority: bytes) -> None:
    """RFC 7540, 5.3.1; RFC 9113 lets it pass."""
    if int.from_bytes(priority[:4], "big") & frames.STREAM_ID_MASK == stream_id:
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")


def _check_size(payload: bytes, size: int, name: str) -> None:
    if len(payload) != size:
        raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"{name} of {len(payload)} bytes")


def _calm(what: str) -> Http2Error:
    return Http2Error(ErrorCode.ENHANCE_YOUR_CALM, f"too many {what} in 10 s", "http2_control_frames_per_10s")


#: by type of frame
HANDLERS: tuple[Callable[[ServerConnection, int, int, bytes], None], ...] = (
    ServerConnection._on_data,
    ServerConnection._on_headers,
    ServerConnection._on_priority,
    ServerConnection._on_rst_stream,
    ServerConnection._on_settings,
    ServerConnection._on_push_promise,
    ServerConnection._on_ping,
    ServerConnection._on_goaway,
    ServerConnection._on_window_update,
    ServerConnection._on_continuation,
)
