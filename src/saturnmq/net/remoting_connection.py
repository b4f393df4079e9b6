"""One TCP connection that speaks Remoting, from either end: both sides may ask, both answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Any, TypeAlias, cast

import msgspec

from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.errors import ConnectionLost, ProtocolError, RequestTimeout, SaturnError, SystemBusy
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Later, Reply
from saturnmq.net.remoting_traffic import Refusals, Traffic
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode, response_code
from saturnmq.wire.remoting.command import ONE_WAY, RESPONSE, Command, Response
from saturnmq.wire.remoting.connection import RemotingDecoder, encode, response_parts

log = logging.getLogger(__name__)

#: Bytes that a connection may have unsent without being behind; more than most answers.
_BEHIND_BYTES = 64 * 1024
#: about what a decoded request takes besides its body
_COMMAND_BYTES = 1_000
#: From here on clients go elsewhere when they are told to (MQVersion.V5_3_1; NettyRemotingAbstract.java).
_V5_3_1 = 475
#: a connection that stops has seen the end of what its peer had sent when nothing came for so long, milliseconds
_QUIET_MS = 50
#: Where too many requests wait, these are refused before they leave something behind.
_SENDS = frozenset(
    {
        RequestCode.SEND_MESSAGE, RequestCode.SEND_MESSAGE_V2, RequestCode.SEND_BATCH_MESSAGE,
        RequestCode.SEND_REPLY_MESSAGE, RequestCode.SEND_REPLY_MESSAGE_V2, RequestCode.CONSUMER_SEND_MSG_BACK,
    }
)  # fmt: skip
_NO_ADDRESS = ("", 0)


class RemotingConnection(asyncio.Protocol):
    """Owner of the requests that wait for an answer, theirs and ours, and of the replies that are not written yet.

    All commands of one read are handled in one turn of the loop, and their replies leave in one write. A reply
    that comes later leaves with the others of its turn. Bounded by: commands and reply bytes per turn (the rest
    waits for the next turn, unread), unsent bytes (nothing is read until the peer reads), waiting requests, each of
    them also in all connections of the port together (`Traffic`).
    """

    peer: Address
    local: Address
    _transport: asyncio.Transport
    _idle_timer: Timer

    def __init__(
        self,
        handlers: Mapping[int, Handler],
        clock: Clock,
        traffic: Traffic,
        opened: Callable[[RemotingConnection], None],
        closed: Callable[[RemotingConnection], None],
        ends: tuple[Address, Address] | None = None,
    ) -> None:
        """`ends`: the peer and the local address, where they are not the socket's."""
        self._ends = ends
        #: called once, when the connection is gone
        self.on_close: list[Callable[[], None]] = []
        #: what the faces of this server keep per connection, by their own keys
        self.channels: dict[str, Any] = {}
        self._handlers = handlers
        self._handler: Callable[[int], Handler | None] = handlers.get
        self._clock = clock
        self._limits = traffic.limits
        self._traffic = traffic
        self._opened = opened
        self._closed = closed
        self._decoder = RemotingDecoder(traffic.limits)
        #: decoded, and not handled because the turn's budget was spent
        self._commands: list[Command] = []
        #: what this turn says, in pieces
        self._output: list[bytes] = []
        self._output_bytes = 0
        self._flush_planned = False
        self._turn_planned = False
        self._reading = True
        self._writable = True
        self._draining = False
        self._lost = False
        #: the peer is behind: what it has not taken is counted
        self._behind = False
        self._unsent_bytes = self._held_bytes = 0
        #: answers that are on their way
        self._waiting: set[Later[Response | None]] = set()
        self._nearly_full = traffic.limits.remoting_requests_waiting - 1
        #: sends are looked at closely before they are handled
        self._is_full = False
        self._refusals = Refusals()
        #: our requests by opaque
        self._requests: dict[int, tuple[Later[Command], Timer]] = {}
        self._opaques = count(1)
        self._active_ms = 0

    # ---------------------------------------------------------------------------------- what handlers may call

    @property
    def behind(self) -> bool:
        """The peer is slow to read what it was sent."""
        return self._behind

    def send_one_way(self, code: int, fields: Mapping[str, str], body: bytes = b"") -> None:
        """Tell the peer something; nobody answers. Lost when the connection is."""
        self._say(Command(code, self._next_opaque(), ONE_WAY, fields=dict(fields), body=body))

    def request(self, code: int, fields: Mapping[str, str], body: bytes, timeout_ms: int) -> Later[Command]:
        """Ask the peer. Fails with RequestTimeout or ConnectionLost; any response code is an answer."""
        answer: Later[Command] = Later()
        if self._lost:
            answer.fail(ConnectionLost(f"the connection of {self.peer} is closed"))
            return answer
        opaque = self._next_opaque()
        timer = self._clock.call_at(
            self._clock.now_ms() + timeout_ms, partial(self._timed_out, opaque, code, timeout_ms)
        )
        self._requests[opaque] = (answer, timer)
        answer.on_cancel = partial(self._forget, opaque)
        self._say(Command(code, opaque, fields=dict(fields), body=body))
        return answer

    def _say(self, command: Command) -> None:
        """In one write with whatever else this turn has to say: a Proxy asks for many clients at once."""
        data = encode(command)
        self._output.append(data)
        self._output_bytes += len(data)
        if self._output_bytes > _BEHIND_BYTES:
            self._write_output()
        else:
            self._plan_flush()

    def close(self) -> None:
        """Write what is ready, then close."""
        self._flush()
        self._transport.close()

    def drain(self) -> None:
        """Answer what waits and what the peer has sent already, then close."""
        self._draining = True
        self._handler = lambda code: self._go_away
        self._clock.call_at(self._clock.now_ms() + _QUIET_MS, self._close_if_quiet)

    def _go_away(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        """Who knows what it means is sent elsewhere; others are served once more. What nobody waits for is always done:
        a consumer says how far it came."""
        if command.version > _V5_3_1 and not command.flag & ONE_WAY:
            return Response(ResponseCode.GO_AWAY, "please go away: this server stops, others may serve you")
        if not command.flag & ONE_WAY:
            self._pause_reading()
        handler = self._handlers.get(command.code)
        return _unknown(command) if handler is None else handler(command, connection)

    def _close_if_quiet(self) -> None:
        quiet_ms = self._clock.steady_ms() - self._active_ms
        if self._reading and quiet_ms < _QUIET_MS:
            self._clock.call_at(self._clock.now_ms() + _QUIET_MS - quiet_ms, self._close_if_quiet)
            return
        self._pause_reading()
        if not self._waiting:
            self.close()

    def abort(self) -> None:
        """Close now, whatever is unsent."""
        self._transport.abort()

    # --------------------------------------------------------------------------------- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_BEHIND_BYTES)
        socket_ends = _address(transport.get_extra_info("peername")), _address(transport.get_extra_info("sockname"))
        self.peer, self.local = self._ends or socket_ends
        self._traffic.connected(1)
        self._active_ms = self._clock.steady_ms()
        self._watch_idleness()
        self._opened(self)

    def data_received(self, data: bytes) -> None:
        self._active_ms = self._clock.steady_ms()
        self._decode(data)
        if self._reading:
            self._turn()
        self._count_held()

    def pause_writing(self) -> None:
        self._behind = True
        self._count_unsent()

    def resume_writing(self) -> None:
        self._behind, self._unsent_bytes = False, 0
        self._traffic.unsent.set(self, 0)
        if not self._writable:
            self._writable = True
            self._plan_turn()

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        self._traffic.connected(-1)
        self._idle_timer.cancel()
        self._commands.clear()
        self._traffic.held.set(self, 0)
        self._traffic.unsent.set(self, 0)
        waiting, self._waiting = self._waiting, set()
        self._traffic.waiting -= len(waiting)
        requests, self._requests = self._requests, {}
        for parked in waiting:
            self._guard(parked.cancel)
        for answer, timer in requests.values():
            timer.cancel()
            self._guard(partial(answer.fail, ConnectionLost(f"the connection of {self.peer} was lost")))
        for call in self.on_close:
            self._guard(call)
        self._closed(self)

    # ------------------------------------------------------------------------------------------------- reading

    def _decode(self, data: bytes) -> None:
        try:
            self._commands += self._decoder.receive_data(data)
        except ProtocolError as error:
            log.warning("%s: closed the connection of %s: %s", self._traffic.name, self.peer, error)
            self._traffic.protocol_error()
            self.close()

    def _turn(self) -> None:
        """Handle what is decoded, as far as this turn's budget goes."""
        if self._traffic.turn_is_over:
            self._pause_reading()
            self._plan_turn()
            return
        commands, self._commands = self._commands, []
        self._flush_planned = True
        for done, command in enumerate(commands, 1):
            self._handle(command)
            if self._output_bytes > self._limits.connection_write_buffer_bytes:
                self._commands = commands[done:]
                break
        if self._output_bytes > _BEHIND_BYTES:
            self._traffic.large_answers(self._output_bytes)
        self._flush()
        if self._commands or self._decoder.has_more:
            self._pause_reading()
            self._plan_turn()

    def _plan_turn(self) -> None:
        if not self._turn_planned:
            self._turn_planned = True
            self._clock.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        """Go on with what an earlier turn left; when there is nothing, read again."""
        self._turn_planned = False
        if not self._writable or self._transport.is_closing():
            return
        if not self._commands and self._decoder.has_more:
            self._decode(b"")
        if self._commands:
            self._turn()
        self._count_held()
        if self._draining:
            return
        if not self._turn_planned and self._writable and not self._reading and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    def _pause_reading(self) -> None:
        if self._reading and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def _count_held(self) -> None:
        """What came and is not handled: frames that are not whole, and what is behind a peer that does not read."""
        held = self._decoder.held_bytes
        if self._commands:
            held += sum(_COMMAND_BYTES + len(command.body) for command in self._commands)
        if held != self._held_bytes:
            self._held_bytes = held
            self._traffic.held.set(self, held)

    def give_up_held(self) -> None:
        """All connections together hold too much, and this one most of it."""
        command = None if self._commands else self._decoder.refuse()
        held, self._held_bytes = self._held_bytes, 0
        self._traffic.held.set(self, 0)
        self._traffic.limited("remotingHeldBytes")
        said = f"{held} bytes that wait to become whole or to be handled, most of all (remotingHeldBytes)"
        if command is None:
            log.warning("%s: cut off %s, which has %s", self._traffic.name, self.peer, said)
            self.abort()
            return
        log.warning("%s: refused a request of %s, which has %s", self._traffic.name, self.peer, said)
        busy = f"[OVERLOAD]this request has {said}; try again later"
        self._answer(command, Response(ResponseCode.SYSTEM_BUSY, busy))
        self._plan_flush()

    # ------------------------------------------------------------------------------------------------ answering

    def _handle(self, command: Command) -> None:
        """The boundary of a request: whatever escapes its handler becomes its answer, and nobody else's."""
        if command.flag & RESPONSE:
            self._guard(partial(self._answered, command))
            return
        handler = self._handler(command.code)
        if handler is None:
            self._traffic.unknown_request()
            self._reply(command, _unknown(command))
            return
        try:
            if (self._is_full or self._traffic.is_full) and command.code in _SENDS:
                self._check_room()
            reply = handler(command, self)
            if isinstance(reply, Later):
                self._park(command, reply)
            else:
                self._answer(command, reply)
        except Exception as error:  # noqa: BLE001 - the one boundary
            self._fail(command, error)

    def _check_room(self) -> None:
        """Raises SystemBusy when no other request may wait."""
        waiting = len(self._waiting)
        self._is_full = waiting >= self._nearly_full
        self._traffic.check_room(waiting, self._refusals)

    def _park(self, command: Command, reply: Later[Response | None]) -> None:
        traffic = self._traffic
        if len(self._waiting) >= self._nearly_full or traffic.waiting >= traffic.nearly_full:
            try:
                self._check_room()
            except SystemBusy:
                reply.cancel()
                raise
        traffic.waiting += 1
        self._waiting.add(reply)
        command.body = b""  # whoever needs it has it
        reply.then(partial(self._answer_parked, command, reply), partial(self._fail_parked, command, reply))

    def _answer_parked(self, command: Command, reply: Later[Response | None], response: Response | None) -> None:
        self._waiting.discard(reply)
        self._traffic.waiting -= 1
        try:
            self._answer(command, response)
        except Exception as error:  # noqa: BLE001 - the one boundary
            self._fail(command, error)
        self._plan_flush()

    def _fail_parked(self, command: Command, reply: Later[Response | None], error: BaseException) -> None:
        self._waiting.discard(reply)
        self._traffic.waiting -= 1
        self._fail(command, error)
        self._plan_flush()

    def _answer(self, command: Command, response: Response | None) -> None:
        if response is None or command.flag & ONE_WAY:
            self._traffic.request(command.code, None)
            return
        self._reply(command, response)
        self._traffic.request(command.code, response.code)

    def _fail(self, command: Command, error: BaseException) -> None:
        if isinstance(error, SaturnError):
            code, remark = response_code(error), str(error)
        elif isinstance(error, (ProtocolError, msgspec.ValidationError)):
            code, remark = ResponseCode.SYSTEM_ERROR, f"the request cannot be understood: {error}"
        else:
            self._traffic.bug()
            log.error("%s: request %d of %s failed", self._traffic.name, command.code, self.peer, exc_info=error)
            code, remark = ResponseCode.SYSTEM_ERROR, "this request made the server fail; its log says how"
        self._answer(command, Response(code, remark))

    def _reply(self, command: Command, response: Response) -> None:
        if command.flag & ONE_WAY:
            return
        pieces = response_parts(command.opaque, command.binary, response)
        self._output += pieces
        self._output_bytes += len(pieces[1]) + len(pieces[2])

    def _plan_flush(self) -> None:
        if not self._flush_planned:
            self._flush_planned = True
            self._clock.call_soon(self._flush)

    def _flush(self) -> None:
        """One write for all that is ready."""
        self._flush_planned = False
        self._write_output()
        if self._draining and not self._waiting and not self._reading:
            self._transport.close()

    def _write_output(self) -> None:
        output = self._output
        if not output:
            return
        self._output, self._output_bytes = [], 0
        if self._transport.is_closing():
            return
        self._active_ms = self._clock.steady_ms()
        self._transport.write(b"".join(output))
        if self._behind:
            self._count_unsent()

    def _count_unsent(self) -> None:
        """Who asks and does not read is not read either; what it asked for before may still come, to a limit."""
        unsent = self._unsent_bytes = self._transport.get_write_buffer_size()
        if unsent > self._limits.connection_unsent_bytes:
            self._cut_off("connectionUnsentBytes")
            return
        if unsent > self._limits.connection_write_buffer_bytes:
            self._writable = False
            self._pause_reading()
        self._traffic.unsent.set(self, unsent)

    def give_up_unsent(self) -> None:
        """All connections together leave too much unread, and this one most of it."""
        self._cut_off("remotingUnsentBytes")

    def _cut_off(self, setting: str) -> None:
        name, unsent = self._traffic.name, self._unsent_bytes
        log.warning("%s: cut off %s, which leaves %d bytes unread (%s)", name, self.peer, unsent, setting)
        self._traffic.limited(setting)
        self._traffic.unsent.set(self, 0)
        self.abort()

    # -------------------------------------------------------------------------------------------- our own requests

    def _next_opaque(self) -> int:
        return next(self._opaques) & 0x7FFFFFFF

    def _answered(self, command: Command) -> None:
        entry = self._requests.pop(command.opaque, None)
        if entry is not None:  # else it came after its time-out
            answer, timer = entry
            timer.cancel()
            answer.resolve(command)

    def _timed_out(self, opaque: int, code: int, timeout_ms: int) -> None:
        answer, _ = self._requests.pop(opaque)
        answer.fail(RequestTimeout(f"{self.peer} did not answer request {code} within {timeout_ms} ms"))

    def _forget(self, opaque: int) -> None:
        entry = self._requests.pop(opaque, None)
        if entry is not None:  # else this connection is lost, and with it who asked through it
            entry[1].cancel()

    # -------------------------------------------------------------------------------------------------- the rest

    def _close_if_idle(self) -> None:
        """Close after `idle_connection_ms` without a word from either end; what is unread then has the same time again.

        A connection that never said anything gets no less: Java's clients open one to each NameServer and keep it
        until they need it.
        """
        steady_ms = self._clock.steady_ms()
        if steady_ms - self._active_ms >= self._limits.idle_connection_ms:
            if self._transport.is_closing():
                self.abort()
                return
            log.debug("%s: closed the idle connection of %s", self._traffic.name, self.peer)
            self.close()
            self._active_ms = steady_ms
        self._watch_idleness()

    def _watch_idleness(self) -> None:
        left_ms = self._active_ms + self._limits.idle_connection_ms - self._clock.steady_ms()
        self._idle_timer = self._clock.call_at(self._clock.now_ms() + left_ms, self._close_if_idle)

    def _guard(self, call: Callable[[], None]) -> None:
        """Whoever listens may fail; this connection and its other listeners go on."""
        try:
            call()
        except Exception as error:
            self._traffic.bug()
            log.error("%s: a listener of the connection of %s failed", self._traffic.name, self.peer, exc_info=error)


#: None means that the request gets no answer. A handler that answers later takes what it needs of the body at once.
Handler: TypeAlias = Callable[[Command, RemotingConnection], Reply[Response | None]]


def _unknown(command: Command) -> Response:
    return Response(ResponseCode.REQUEST_CODE_NOT_SUPPORTED, f" request type {command.code} not supported")


def _address(name: tuple[Any, ...] | None) -> Address:
    """What a socket says of an end of it, IPv4 as such when it came through an IPv6 socket."""
    host, port, *_ = name or _NO_ADDRESS
    return Address(host.removeprefix("::ffff:") if "." in host else host, port)
