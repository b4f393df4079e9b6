"""One connection of a gRPC client: its calls, and the turns in which they are handled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, cast

import msgspec

from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.config import Limits
from saturnmq.kernel.errors import ProtocolError, SaturnError
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Later, Reply
from saturnmq.kernel.metrics import Metrics
from saturnmq.wire import grpc
from saturnmq.wire.grpc import GrpcError, GrpcStatus, MessageReader
from saturnmq.wire.http2.connection import (
    DataReceived,
    Event,
    Rejected,
    RequestReceived,
    ServerConnection,
    StreamReset,
    StreamWritable,
)
from saturnmq.wire.http2.frames import ErrorCode, Http2Error
from saturnmq.wire.http2.streams import State, Stream

log = logging.getLogger("saturnmq.net.grpc")

#: a unary request is its headers and its body
EVENTS_PER_REQUEST = 2
#: of a turn, by what was too much: it may have cost a hundred times what a request does
LIMITED_COSTS = 64
#: a message that is inflated takes as much of a turn as if it had come in frames of this size
EVENT_BYTES = 16_384
#: A peer that asks and does not read: so many times connection_write_buffer_bytes unread, and it is cut off.
MOST_WRITE_BUFFERS = 16
NEVER_MS = 1 << 62
NO_ADDRESS = ("", 0)
UNKNOWN_METHOD = "unknown"
STOPS = "the server stops"
AGED = "the connection is old: call again on a new one"
#: connections that were made together do not all grow old together: their ports spread it
AGE_SPREAD = 1000


class Kind(IntEnum):
    """What a handler is given, and what is expected of it.

    UNARY: `handler(call, request) -> Reply[bytes]`. SERVER_STREAM: `handler(call, request) -> Reply[None]`, which uses
    `call.send` and `call.finish`, now or later. BIDI: `handler(call) -> None`, called when the headers are there; it
    sets `call.on_message` and `call.on_half_close`. A BIDI call stands as long as client and server do: a server that
    drains ends it at once, as UNAVAILABLE, while the other kinds are finished.

    A `Later` that a handler returns is cancelled when the call is; so that its errors are heard, a SERVER_STREAM and
    `on_message` return what they wait for as well.
    """

    UNARY = 0
    SERVER_STREAM = 1
    BIDI = 2


class Method(msgspec.Struct, frozen=True):
    """A method of a service. The handler may raise GrpcError; anything else that escapes is a bug: INTERNAL.

    Except for a SaturnError, where the service has words of its own for it: `refuse(call, error)` ends the call.
    """

    kind: Kind
    handler: Callable[..., Any]
    refuse: Callable[[Call, SaturnError], None] | None = None


class Route(msgspec.Struct, frozen=True):
    """A method and how it is counted when all went well."""

    method: Method
    name: str
    ok: tuple[str, str]


class Traffic:
    """What the connections of a gRPC port have in common: what they count, and the memory that requests share."""

    def __init__(self, metrics: Metrics) -> None:
        #: bytes of requests that are not whole yet
        self.held_bytes = 0
        self.connections = metrics.counter("saturnmq_grpc_connections", "Open gRPC connections", kind="gauge")
        self.connections_opened = metrics.counter("saturnmq_grpc_connections_opened_total", "gRPC connections so far")
        self.requests = metrics.counter(
            "saturnmq_grpc_requests_total", "gRPC calls by method and how they ended", ("method", "status")
        )
        self.protocol_errors = metrics.counter(
            "saturnmq_grpc_protocol_errors_total", "Streams and connections that broke HTTP/2, by its code", ("kind",)
        )
        self.limits = metrics.counter("saturnmq_grpc_limits_hit_total", "Limits that a gRPC peer hit", ("limit",))

    def limited(self, limit: str) -> None:
        """A peer hit this field of Limits."""
        self.limits.add((limit,))


class _Body:
    """A request, or the messages of a BIDI call, that do not come as one message in one frame. Owner: the call."""

    __slots__ = ("held_bytes", "held_until_ms", "reader", "request")

    def __init__(self, reader: MessageReader) -> None:
        self.reader = reader
        #: the message, which waits until the client has said all
        self.request: bytes | None = None
        #: what all this keeps in memory, and when we wait for the rest no longer
        self.held_bytes = 0
        self.held_until_ms = NEVER_MS


class Call:
    """One call, from the server's side. Owner: its connection; a handler keeps it as long as `open` is true.

    After the end `send` and `finish` do nothing, so a handler need not ask.
    """

    __slots__ = (
        "_body",
        "_connection",
        "_headers_sent",
        "_later",
        "_method",
        "_route",
        "_stream",
        "deadline_ms",
        "headers",
        "on_cancel",
        "on_half_close",
        "on_message",
        "on_writable",
        "open",
    )

    def __init__(self, connection: GrpcConnection, stream: Stream, route: Route, deadline_ms: int | None) -> None:
        self._connection = connection
        self._stream = stream
        self._route = route
        self._method = route.method
        #: names in lower case, pseudo-headers included; of a repeated header the last
        self.headers: Mapping[bytes, bytes] = stream.headers
        #: by our clock; None: the client waits as long as it takes
        self.deadline_ms = deadline_ms
        #: false once the call has ended, whoever ended it
        self.open = True
        #: told when the client, the deadline or the connection ended the call
        self.on_cancel: Callable[[], None] | None = None
        #: BIDI: told of each message and of the end of them
        self.on_message: Callable[[bytes], Reply[None]] | None = None
        self.on_half_close: Callable[[], None] | None = None
        #: told when `writable` is true again
        self.on_writable: Callable[[], None] | None = None
        self._headers_sent = False
        self._later: Later[bytes] | None = None
        self._body: _Body | None = None

    @property
    def path(self) -> str:
        """`/package.Service/Method`"""
        return self._stream.headers[b":path"].decode()

    @property
    def authority(self) -> str:
        """What the client dialled, as it says; may be empty."""
        headers = self.headers
        return headers.get(b":authority", headers.get(b"host", b"")).decode(errors="replace")

    @property
    def peer(self) -> Address:
        return self._connection.peer

    @property
    def local(self) -> Address:
        return self._connection.local

    @property
    def writable(self) -> bool:
        """False while what was sent waits for the client to read. Whoever has much to send waits for `on_writable`."""
        return self.open and self._connection.can_write(self._stream)

    def send(self, message: bytes) -> None:
        """A message to the client, in order."""
        if self.open:
            self._connection.send(self, message)

    def finish(self, status: GrpcStatus = GrpcStatus.OK, message: str = "") -> None:
        """End the call, after what was sent."""
        if self.open:
            self._connection.finish(self, status, message)

    def _deliver(self, message: bytes | None) -> None:
        """The Later of a handler has its value."""
        self._later = None
        if self._method.kind == Kind.UNARY:
            self._connection.reply(self, cast(bytes, message))

    def _fail(self, error: BaseException) -> None:
        self._later = None
        self._connection.fail(self, error)


class GrpcConnection(asyncio.Protocol):
    """Owner of the calls of one client and of what is not written yet.

    All requests of one read are handled in one turn of the loop, and their replies leave in one write; a reply that
    comes later leaves with the others of its turn. Bounded by: requests and reply bytes per turn (the rest waits
    unparsed for the next turn), unsent bytes (nothing is parsed until the peer reads), bytes that the peer leaves
    unread (it is cut off), bytes of incomplete messages.
    """

    peer: Address
    local: Address
    _transport: asyncio.Transport

    def __init__(
        self,
        routes: Mapping[bytes, Route],
        clock: Clock,
        limits: Limits,
        traffic: Traffic,
        opened: Callable[[GrpcConnection], None],
        gone: Callable[[GrpcConnection], None],
        ends: tuple[Address, Address] | None = None,
    ) -> None:
        """`ends`: the peer and the local address, where they are not the socket's."""
        self._ends = ends
        self._routes = routes
        self._clock = clock
        self._limits = limits
        self._traffic = traffic
        self._opened = opened
        self._gone = gone
        self._http2 = ServerConnection(limits)
        #: also true during a turn, which ends with a flush
        self._flush_planned = False
        self._turn_planned = False
        self._write_paused = False
        #: a handler found the output full and waits for on_writable
        self._output_was_full = False
        self._closing = False
        self._close_by_ms = NEVER_MS
        self._now_ms = 0
        #: events that this turn may still handle, and those that it left to the next one
        self._budget = 0
        self._unhandled: list[Event] = []
        #: bytes of requests that are not whole yet, all calls together
        self._held_bytes = 0
        #: the earliest deadline among the calls of this turn, and the timer for those that are not answered in it
        self._earliest_ms = NEVER_MS
        self._deadline_timer: Timer | None = None
        self._deadline_timer_ms = NEVER_MS
        #: when it is old
        self._old_ms = NEVER_MS
        #: see `sweep`
        self._active_ms = clock.steady_ms()
        self._progress = (0, 0, 0, 0)

    # -- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has another class
        self._transport.set_write_buffer_limits(high=self._limits.connection_write_buffer_bytes)
        socket_ends = _address(transport.get_extra_info("peername")), _address(transport.get_extra_info("sockname"))
        self.peer, self.local = self._ends or socket_ends
        if age_ms := self._limits.grpc_max_connection_age_ms:
            age_ms += age_ms * (self.peer.port % (AGE_SPREAD // 10)) // AGE_SPREAD
            self._old_ms = self._clock.steady_ms() + age_ms
        self._traffic.connections.add()
        self._traffic.connections_opened.add()
        self._opened(self)

    def data_received(self, data: bytes) -> None:
        self._turn(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._closing = True
        self._traffic.connections.add((), -1)
        if error is not None:
            log.debug("lost the connection of %s: %s", self.peer, error)
        self._cancel_all()
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        self._gone(self)

    def pause_writing(self) -> None:
        self._write_paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._closing:
            return
        if self._has_more:
            self._plan_turn()
        else:
            self._transport.resume_reading()
        self._tell_all_writable()

    # -- a turn

    def _turn(self, data: bytes = b"") -> None:
        if self._closing:
            return
        http2 = self._http2
        limits = self._limits
        self._now_ms = now_ms = self._clock.steady_ms()
        self._earliest_ms = NEVER_MS
        self._flush_planned = True
        self._budget = limits.http2_requests_per_turn * EVENTS_PER_REQUEST
        try:
            while True:
                events = http2.receive_data(data, now_ms)
                if self._unhandled:
                    events = self._unhandled + events
                    self._unhandled = []
                for index, event in enumerate(events, 1):
                    EVENT_HANDLERS[type(event)](self, event)
                    self._budget -= 1
                    if self._budget <= 0:
                        self._unhandled = events[index:]
                        break
                if not self._has_more or self._closing:
                    break
                data = b""
                if self._budget <= 0 or http2.output_bytes >= limits.connection_write_buffer_bytes:
                    self._transport.pause_reading()
                    self._plan_turn()
                    break
        except ProtocolError as error:
            self._close_for(error)
            return
        if self._earliest_ms < self._deadline_timer_ms and http2.streams:
            self._set_deadline_timer(self._earliest_ms)
        self._flush()

    def _plan_turn(self) -> None:
        """Others first: go on with what is parsed no further."""
        if not self._turn_planned:
            self._turn_planned = True
            self._clock.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._turn_planned = False
        if self._closing or self._write_paused:
            return
        self._turn()
        if not (self._has_more or self._closing or self._write_paused):
            self._transport.resume_reading()

    @property
    def _has_more(self) -> bool:
        """Something came that is not handled yet."""
        return self._http2.more or bool(self._unhandled)

    def _plan_flush(self) -> None:
        self._flush_planned = True
        self._clock.call_soon(self._flush)

    def _flush(self) -> None:
        """Write what this turn has to say, in one piece."""
        self._flush_planned = False
        if self._closing:
            return
        http2 = self._http2
        if http2.output:
            self._transport.write(http2.data_to_send())
        if self._output_was_full and not self._write_paused:
            self._output_was_full = False
            self._clock.call_soon(self._tell_all_writable)
        if http2.drained and not http2.streams:
            self._close()

    def _on_request(self, event: RequestReceived) -> None:
        stream = event.stream
        headers = stream.headers
        if stream.state == State.CLOSED:
            return  # reset in the same read
        route = self._routes.get(headers[b":path"])
        content_type = headers.get(b"content-type", b"")
        if headers[b":method"] != b"POST" or not grpc.is_grpc(content_type):
            if event.ended:  # else when it does, or at the next sweep
                self._refuse_foreign(stream)
            return
        if route is None:
            self._refuse_unknown(stream)
            return
        deadline_ms = None
        timeout = headers.get(b"grpc-timeout")
        if timeout is not None:
            try:
                deadline_ms = self._now_ms + grpc.timeout_ms(timeout)
            except GrpcError as error:
                self._http2.end(stream, grpc.error_block(error.status, error.message))
                return
            if deadline_ms < self._earliest_ms:
                self._earliest_ms = deadline_ms
        call = stream.owner = Call(self, stream, route, deadline_ms)
        if call._method.kind == Kind.BIDI:
            if self._http2.draining:
                call.finish(GrpcStatus.UNAVAILABLE, STOPS)
                return
            self._guard(call, call._method.handler, call)
        if event.ended:
            self._half_closed(call)

    def _on_data(self, event: DataReceived) -> None:
        call: Call | None = event.stream.owner
        if call is None:
            if event.ended and event.stream.trailers is None:
                self._refuse_foreign(event.stream)
            return  # else answered already
        message = grpc.whole_message(event.data) if call._body is None else None
        if call._method.kind == Kind.BIDI:
            if message is not None:
                self._on_message(call, message)
            else:
                self._collect(call, event.data)
        elif message is not None and event.ended:
            self._begin(call, message)
            return
        else:
            self._collect(call, event.data)
        if event.ended and call.open:
            self._half_closed(call)

    def _collect(self, call: Call, data: bytes) -> None:
        """A piece of a body."""
        try:
            messages = self._read(call, data)
        except GrpcError as error:
            if error.limit:
                self._traffic.limited(error.limit)
            self._end_call(call, error.status, error.message)
            return
        if call._method.kind == Kind.BIDI:
            for message in messages:
                self._on_message(call, message)
        elif messages:
            body = cast(_Body, call._body)
            if body.request is not None or len(messages) > 1:
                call.finish(GrpcStatus.UNIMPLEMENTED, f"{call.path} takes one message")
            else:
                body.request = messages[0]

    def _read(self, call: Call, data: bytes) -> list[bytes]:
        """The messages that are whole now. Raises GrpcError."""
        limits, body = self._limits, call._body
        if body is None:
            gzip = grpc.check_encoding(call.headers.get(b"grpc-encoding", b"identity"))
            body = call._body = _Body(MessageReader(limits.grpc_message_bytes, limits.grpc_inflated_bytes, gzip))
        messages = body.reader.feed(data)
        message_bytes = sum(map(len, messages))
        if body.reader.is_gzip:
            self._budget -= message_bytes // EVENT_BYTES
        held_bytes = body.reader.buffered_bytes + len(body.request or b"")
        if call._method.kind != Kind.BIDI:
            held_bytes += message_bytes
        self._hold(body, held_bytes)
        most_bytes = limits.grpc_message_bytes + grpc.PREFIX_BYTES
        if self._held_bytes > most_bytes or self._traffic.held_bytes > limits.grpc_held_bytes:
            reason = "too many bytes of requests that are not whole: try again later"
            raise GrpcError(GrpcStatus.RESOURCE_EXHAUSTED, reason, "grpc_held_bytes")
        return messages

    def _hold(self, body: _Body, held_bytes: int) -> None:
        """Count what a body keeps in memory, and give it time for the rest."""
        self._held_bytes += held_bytes - body.held_bytes
        self._traffic.held_bytes += held_bytes - body.held_bytes
        body.held_bytes = held_bytes
        body.held_until_ms = self._now_ms + self._limits.grpc_idle_ms

    def _on_message(self, call: Call, message: bytes) -> None:
        if call.on_message is not None:
            self._guard(call, call.on_message, message)

    def _half_closed(self, call: Call) -> None:
        """The client has said all."""
        body, call._body = call._body, None
        if body is not None:
            self._hold(body, 0)
            if body.reader.buffered_bytes:
                self.fail(call, GrpcError(GrpcStatus.INTERNAL, "the request ends inside a message"))
                return
        if call._method.kind == Kind.BIDI:
            if call.on_half_close is not None:
                self._guard(call, call.on_half_close)
        elif body is None or body.request is None:
            self.fail(call, GrpcError(GrpcStatus.UNIMPLEMENTED, f"{call.path} takes one message, none came"))
        else:
            self._begin(call, body.request)

    def _begin(self, call: Call, request: bytes) -> None:
        """The request of a unary call or of a stream from us is there."""
        method = call._method
        try:
            reply = method.handler(call, request)
        except Exception as error:  # noqa: BLE001 - the boundary of a request
            self.fail(call, error)
            return
        if isinstance(reply, Later):
            call._later = reply
            reply.then(call._deliver, call._fail)
        elif method.kind == Kind.UNARY:
            self.reply(call, reply)

    def _on_reset(self, event: StreamReset) -> None:
        if event.fault:
            self._traffic.protocol_errors.add((ErrorCode(event.code).name,))
        call: Call | None = event.stream.owner
        if call is not None:
            self._count(call, GrpcStatus.CANCELLED)
            self._cancel(call)

    def _on_writable(self, event: StreamWritable) -> None:
        call: Call | None = event.stream.owner
        if call is not None and call.on_writable is not None and call.writable:
            self._guard(call, call.on_writable)

    def _on_rejected(self, event: Rejected) -> None:
        if event.limit:
            self._budget -= LIMITED_COSTS
            self._traffic.limited(event.limit)
        else:
            self._traffic.protocol_errors.add((event.code.name,))

    def _refuse_foreign(self, stream: Stream) -> None:
        """HTTP/2, but not gRPC."""
        self._http2.send_headers(stream, grpc.NOT_GRPC_BLOCK)
        self._http2.send_data(stream, grpc.NOT_GRPC_TEXT, b"")
        self._http2.end(stream, b"")
        self._traffic.requests.add((UNKNOWN_METHOD, "415"))

    def _refuse_unknown(self, stream: Stream) -> None:
        path = stream.headers[b":path"].decode(errors="replace").removeprefix("/")
        message = f"{path} is not implemented by SaturnMQ"
        self._http2.end(stream, grpc.error_block(GrpcStatus.UNIMPLEMENTED, message))
        self._traffic.requests.add((UNKNOWN_METHOD, GrpcStatus.UNIMPLEMENTED.name))

    # -- what calls ask for

    def can_write(self, stream: Stream) -> bool:
        if self._http2.output_bytes >= self._limits.connection_write_buffer_bytes:
            self._output_was_full = True
            return False
        return not self._write_paused and not stream.queued_bytes

    def reply(self, call: Call, message: bytes) -> None:
        """The answer to a unary call."""
        if not call.open or self._is_overrun():
            return
        try:
            prefix = grpc.PREFIX.pack(0, len(message))
        except TypeError as error:
            self.fail(call, error)
            return
        call.open = False
        stream = call._stream
        stream.owner = None
        self._http2.respond(stream, grpc.HEADERS_BLOCK, prefix, message, grpc.OK_TRAILERS_BLOCK)
        self._traffic.requests.values[call._route.ok] += 1
        if not self._flush_planned:
            self._plan_flush()

    def send(self, call: Call, message: bytes) -> None:
        if self._is_overrun():
            return
        if not call._headers_sent:
            call._headers_sent = True
            self._http2.send_headers(call._stream, grpc.HEADERS_BLOCK)
        self._http2.send_data(call._stream, grpc.PREFIX.pack(0, len(message)), message)
        if not self._flush_planned:
            self._plan_flush()

    def finish(self, call: Call, status: GrpcStatus, message: str) -> None:
        call.open = False
        self._end(call, status, message)

    def fail(self, call: Call, error: BaseException) -> None:
        """End a call with what its handler raised."""
        if isinstance(error, GrpcError):
            call.finish(error.status, error.message)
            return
        refuse = call._method.refuse
        if refuse is not None and isinstance(error, SaturnError):
            refuse(call, error)
            return
        log.error("%s of %s failed: a bug", call.path, self.peer, exc_info=error)
        call.finish(GrpcStatus.INTERNAL, "internal error: the server's log has the details")

    def _guard(self, call: Call, step: Callable[..., Any], *arguments: Any) -> None:
        """The boundary of everything that a handler left for us to call."""
        try:
            reply = step(*arguments)
        except Exception as error:  # noqa: BLE001 - see above
            self.fail(call, error)
            return
        if isinstance(reply, Later):
            reply.then(lambda _: None, call._fail)

    def _end(self, call: Call, status: GrpcStatus, message: str) -> None:
        """Say how the call ended, after what was sent."""
        if call._headers_sent:
            block = grpc.trailers_block(status, message)
        elif status == GrpcStatus.OK:
            self._http2.send_headers(call._stream, grpc.HEADERS_BLOCK)
            block = grpc.trailers_block(status, message)
        else:
            block = grpc.error_block(status, message)
        self._http2.end(call._stream, block)
        self._count(call, status)
        self._release(call)
        if not self._flush_planned:
            self._plan_flush()

    def _count(self, call: Call, status: GrpcStatus) -> None:
        self._traffic.requests.add((call._route.name, status.name))

    def _release(self, call: Call) -> None:
        """Let go of everything that points back here: nothing is left to the garbage collector."""
        call._stream.owner = None
        call.on_cancel = call.on_message = call.on_half_close = call.on_writable = None
        if call._body is not None:
            self._hold(call._body, 0)
            call._body = None

    def _cancel(self, call: Call) -> None:
        """Nobody waits for the answer any more."""
        if not call.open:
            return
        call.open = False
        later, call._later = call._later, None
        on_cancel = call.on_cancel
        self._release(call)
        if later is not None:
            self._guard(call, later.cancel)
        if on_cancel is not None:
            self._guard(call, on_cancel)

    def _end_call(self, call: Call, status: GrpcStatus, message: str) -> None:
        """End a call over its handler's head."""
        self._cancel(call)
        self._end(call, status, message)

    def _cancel_all(self) -> None:
        for call in self._calls():
            self._count(call, GrpcStatus.CANCELLED)
            self._cancel(call)

    def _calls(self) -> list[Call]:
        return [stream.owner for stream in self._http2.streams.values() if stream.owner is not None]

    def _tell_all_writable(self) -> None:
        for call in self._calls():
            if call.on_writable is not None and call.writable:
                self._guard(call, call.on_writable)

    # -- deadlines: one timer for all calls, and none for those that are answered in their turn

    def _set_deadline_timer(self, when_ms: int) -> None:
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        self._deadline_timer_ms = when_ms
        left_ms = when_ms - self._clock.steady_ms()
        self._deadline_timer = self._clock.call_at(self._clock.now_ms() + left_ms, self._end_overdue)

    def _end_overdue(self) -> None:
        self._deadline_timer = None
        self._deadline_timer_ms = NEVER_MS
        now_ms = self._clock.steady_ms()
        next_ms = NEVER_MS
        for call in self._calls():
            if call.deadline_ms is None:
                continue
            if call.deadline_ms > now_ms:
                next_ms = min(next_ms, call.deadline_ms)
                continue
            self._end_call(call, GrpcStatus.DEADLINE_EXCEEDED, "the deadline of the call has passed")
        if next_ms < NEVER_MS:
            self._set_deadline_timer(next_ms)

    # -- the end of a connection

    def sweep(self, now_ms: int) -> None:
        """Look at the connection from time to time: does it say what it is, does it move?"""
        limits = self._limits
        http2 = self._http2
        for call in self._calls():
            if call._body is not None and call._body.held_bytes and now_ms >= call._body.held_until_ms:
                self._end_call(call, GrpcStatus.DEADLINE_EXCEEDED, "the request was never finished")
        for stream in list(http2.streams.values()):
            if stream.owner is None and stream.trailers is None:
                self._refuse_foreign(stream)
                self._flush()
        stuck = bool(self._write_paused or http2.queued_bytes)
        progress = (*http2.progress, self._transport.get_write_buffer_size())
        if now_ms >= self._close_by_ms and (self._closing or not http2.streams):
            self._transport.abort()
        elif self._closing:
            return
        elif not http2.ready:
            if now_ms - self._active_ms >= limits.handshake_ms:
                self._close_for(_limit("handshake_ms", f"no HTTP/2 within {limits.handshake_ms} ms"))
        elif now_ms >= self._old_ms:
            self._old_ms = NEVER_MS
            self.drain(NEVER_MS, AGED)
        elif progress != self._progress or (http2.streams and not stuck):
            self._progress = progress
            self._active_ms = now_ms
        elif now_ms - self._active_ms >= limits.grpc_idle_ms:
            if stuck:
                self._close_for(_limit("grpc_idle_ms", "the client leaves its answers unread"))
            else:
                self.drain(now_ms + limits.handshake_ms)

    def drain(self, close_by_ms: int, reason: str = STOPS) -> None:
        """Take no new calls, finish what runs, close. From `close_by_ms` on a sweep waits for calls only."""
        self._close_by_ms = min(self._close_by_ms, close_by_ms)
        if not self._http2.ready:
            self._close()
            return
        self._http2.drain()
        for call in self._calls():
            if call._method.kind == Kind.BIDI:
                self._end_call(call, GrpcStatus.UNAVAILABLE, reason)
        self._flush()

    def cut(self) -> None:
        """End what still runs, and close."""
        for call in self._calls():
            self._end_call(call, GrpcStatus.UNAVAILABLE, STOPS)
        self._flush()
        self._close()

    def abort(self) -> None:
        self._transport.abort()

    def _is_overrun(self) -> bool:
        """Whether the client leaves too much unread; if so it is cut off."""
        http2 = self._http2
        if not self._write_paused and not http2.queued_bytes:
            return False
        unread = http2.queued_bytes + http2.output_bytes + self._transport.get_write_buffer_size()
        if unread <= self._limits.connection_write_buffer_bytes * MOST_WRITE_BUFFERS:
            return False
        self._close_for(_limit("connection_write_buffer_bytes", f"the client leaves {unread} bytes unread"))
        return True

    def _close_for(self, error: ProtocolError) -> None:
        """Close because of what the client did or did not do; the one place that says so in the log."""
        if self._closing:
            return
        log.warning("closed the connection of %s: %s", self.peer, error)
        if isinstance(error, Http2Error):
            if error.limit:
                self._traffic.limited(error.limit)
            else:
                self._traffic.protocol_errors.add((error.code.name,))
        self._cancel_all()
        self._flush()
        self._close()

    def _close(self) -> None:
        """What was written still leaves, if the client reads it soon."""
        if not self._closing:
            self._closing = True
            self._close_by_ms = min(self._close_by_ms, self._clock.steady_ms() + self._limits.handshake_ms)
            self._transport.close()


def _limit(name: str, reason: str) -> Http2Error:
    return Http2Error(ErrorCode.ENHANCE_YOUR_CALM, reason, name)


def _address(name: tuple[Any, ...] | None) -> Address:
    host, port = (name or NO_ADDRESS)[:2]
    return Address(host, port)


EVENT_HANDLERS: dict[type, Callable[[GrpcConnection, Any], None]] = {
    RequestReceived: GrpcConnection._on_request,
    DataReceived: GrpcConnection._on_data,
    StreamReset: GrpcConnection._on_reset,
    StreamWritable: GrpcConnection._on_writable,
    Rejected: GrpcConnection._on_rejected,
}
