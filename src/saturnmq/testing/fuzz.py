"""What no client sends: recorded requests, changed at random, to the handlers of a NameServer and a Broker.

Everything runs in this thread, in virtual time and on a simulated disk; a seed gives the same frames again.
"""

from __future__ import annotations

import asyncio
import logging
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

import msgspec

from saturnmq.kernel.config import Limits
from saturnmq.kernel.later import Reply
from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.topic import TopicConfig
from saturnmq.nameserver import remoting as nameserver_remoting
from saturnmq.net.remoting_connection import Handler, RemotingConnection
from saturnmq.net.remoting_traffic import Traffic
from saturnmq.testing.clock import VirtualClock
from saturnmq.testing.nameserver import name_server
from saturnmq.testing.offline import OfflineBroker
from saturnmq.wire.remoting.codes import RequestCode
from saturnmq.wire.remoting.command import ONE_WAY, RESPONSE, Command, Response
from saturnmq.wire.remoting.connection import RemotingDecoder, encode

#: what people put where a number, a name or a list should stand
VALUES = (
    "", " ", "0", "-1", "1", "32", "2147483647", "2147483648", "-2147483649", "9223372036854775807",
    "9223372036854775808", "-9223372036854775809", "1" * 40, "9" * 5000, "1.5", "NaN", "1e400", "0x10", "true", "FALSE",
    "null", "None", "*", "%RETRY%", "%RETRY%g", "%DLQ%g", "TBW102", "SCHEDULE_TOPIC_XXXX", "rmq_sys_REVIVE_LOG_x",
    "x" * 128, "x" * 256, "é漢😀", "\x00", "\x01\x02", "a\x01b\x02a\x01b", "%s%n{}[]", "../../etc/passwd", "0.0.0.0:x",
    "[::]:1", "a:b:c", ":", ";", "||", "a||b", "TAGS = 'x' OR", "(" * 500, "1 2 3 4 5 6 7", "1 2 3 4 5 6 t q 8 9", "{",
    "[]", "[[[[", "+message.type=FIFO", "-message.type", "+a=b,-c", "+", "message.type", "\ud7ff", "0" * 32, "F" * 32,
)  # fmt: skip
#: of a body
WORDS = (
    b"null", b"[]", b"{}", b"0", b"-1", b"1e999", b'""', b"true", b"9" * 400, b'"\\ud800"', b"[" * 100, b"\xff\xfe",
    b"\x00" * 8, b"{{}:1}", b'{"topic":"t","brokerName":"broker-a","queueId":0}', b"\x7f\xff\xff\xff",
)  # fmt: skip
#: a connection ends after so many frames, if its peer's garbage did not end it before
FRAMES_PER_CONNECTION = 300
#: and between two questions of the neighbours
FRAMES_PER_QUESTION = 200


def recordings(vectors: Path) -> dict[str, list[Command]]:
    """What was recorded for the NameServer and for the Broker, of clients and of tools."""
    return {
        server: [
            *(
                command
                for path in sorted(vectors.glob(f"remoting/{server}-*-requests.bin"))
                for command in _requests(path)
            ),
            *_requests(vectors / "requests" / f"{server}.bin"),
            *(command for path in sorted(vectors.glob(f"{folder}/*.json")) for command in _steps(path)),
        ]
        for server, folder in (("nameserver", "nameserver"), ("broker", "broker"))
    }


def _requests(path: Path) -> list[Command]:
    decoder = RemotingDecoder(Limits(remoting_requests_per_turn=1 << 30))
    return [command for command in decoder.receive_data(path.read_bytes()) if not command.flag & RESPONSE]


def _steps(path: Path) -> list[Command]:
    """Of a conversation with Apache's servers (scripts/record_nameserver.py)."""
    return [
        Command(
            step["code"],
            1,
            version=step["version"],
            fields=step["fields"],
            body=b64decode(step["base64"]) if "base64" in step else step["body"].encode(),
        )
        for step in msgspec.json.decode(path.read_bytes())
        if "code" in step
    ]


class Mutator:
    """Makes frames of recorded requests. Most stay requests that some handler takes; some stay no frames."""

    def __init__(self, recorded: Sequence[Command], random: Random) -> None:
        self._recorded, self._random = recorded, random
        self._at = 0
        self._keys = sorted({key for command in recorded for key in command.fields})
        self._values = sorted({value for command in recorded for value in command.fields.values()})
        #: what answers said last: offsets, ids, receipt handles
        self._learned = deque(self._values[:1], maxlen=64)

    def frame(self) -> tuple[bytes, bool]:
        """A frame, and whether what follows it may be taken for a part of it."""
        random = self._random
        data = encode(self.command())
        if random.randrange(12) == 0:
            return self._damaged(data), True
        if random.randrange(50) == 0:
            return data[: random.randrange(len(data))], True
        return data, False

    def command(self) -> Command:
        """The next request, or any other one, with some changes, as a rule one."""
        random = self._random
        self._at = random.randrange(len(self._recorded)) if random.randrange(4) == 0 else self._at + 1
        command = msgspec.structs.replace(self._recorded[self._at % len(self._recorded)])
        command.fields = dict(command.fields)
        command.opaque = random.randrange(-(1 << 31), 1 << 31)
        if random.randrange(8) == 0:
            command.binary = not command.binary
        while random.randrange(3):
            random.choice((self._change_field, self._change_field, self._change_body, self._change_header))(command)
        return command

    def learn(self, answer: Command) -> None:
        """So that requests are about what is there."""
        fields = answer.fields
        self._learned.extend(fields.values())
        if "msgOffsetInfo" in fields and fields.get("startOffsetInfo"):
            start = fields["startOffsetInfo"].split(";")[0].split(" ")[2]
            kind, queue_id, offsets = fields["msgOffsetInfo"].split(";")[0].split(" ")
            popped = f"{fields['popTime']} {fields['invisibleTime']} {fields['reviveQid']}"
            self._learned.extend(
                f"{start} {popped} {kind} broker-a {queue_id} {offset}" for offset in offsets.split(",")
            )

    def _change_field(self, command: Command) -> None:
        random, fields = self._random, command.fields
        key = random.choice(list(fields)) if fields and random.randrange(8) else random.choice(self._keys)
        match random.randrange(6):
            case 5:
                fields[key] = random.choice(self._learned)
            case 0:
                fields.pop(key, None)
            case 1:
                fields[key] = random.choice(self._values)
            case 2 if fields.get(key):
                text = fields[key]
                at = random.randrange(len(text))
                fields[key] = text[:at] + random.choice(("", "-", "0", "\x01", "%", "é", " ")) + text[at + 1 :]
            case _:
                fields[key] = random.choice(VALUES)

    def _change_body(self, command: Command) -> None:
        random, body = self._random, command.body
        at = random.randrange(len(body) + 1)
        match random.randrange(6):
            case 0:
                command.body = body[:at]
            case 1:
                command.body = random.choice(self._recorded).body
            case 2:
                command.body = body[:at] + random.choice(WORDS) + body[at:]
            case 3:
                end = min(len(body), at + random.randrange(8))
                command.body = body[:at] + random.choice(WORDS) + body[end:]
            case 4:
                command.body = self._damaged(body) if body else random.randbytes(random.randrange(64))
            case _:
                command.body = random.choice((b"", random.choice(WORDS), random.randbytes(random.randrange(200))))

    def _change_header(self, command: Command) -> None:
        random = self._random
        match random.randrange(6):
            case 0:
                command.code = random.choice(list(RequestCode))
            case 1:
                command.code = random.choice(self._recorded).code
            case 2:
                command.version = random.choice((0, 30, 121, 400, 401, 413, 475, 476, 479, 1000, 32767))
            case 3:
                command.flag ^= ONE_WAY
            case 4:
                command.language = random.randrange(14)
            case _:
                command.remark = random.choice(VALUES)

    def _damaged(self, data: bytes) -> bytes:
        """Some bytes are others, gone, or there twice."""
        random, damaged = self._random, bytearray(data)
        for _ in range(random.choice((1, 1, 2, 8))):
            at = random.randrange(len(damaged) + 1)
            match random.randrange(4):
                case 0 if at < len(damaged):
                    damaged[at] ^= 1 << random.randrange(8)
                case 1 if at < len(damaged):
                    damaged[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
                case 2:
                    del damaged[at : at + random.randrange(1, 9)]
                case _:
                    damaged[at:at] = damaged[at : at + random.randrange(1, 17)]
        return bytes(damaged)


class Wire(asyncio.Transport):
    """A socket whose peer takes everything; keeps what was written last."""

    def __init__(self, number: int) -> None:
        super().__init__({"peername": ("10.0.0.1", 1024 + number % 60_000), "sockname": ("127.0.0.1", 10_911)})
        self.written = b""
        self.closed = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written = bytes(data)

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close


class Port:
    """The handlers of one server, and the connections that the fuzz makes to them, one after the other."""

    def __init__(self, name: str, handlers: Mapping[int, Handler], clock: VirtualClock, question: Command) -> None:
        self._handlers = {code: self._counted(handler) for code, handler in handlers.items()}
        self._clock, self._question = clock, question
        self.metrics = Metrics()
        self._traffic = Traffic(self.metrics, name, clock, Limits())
        #: requests that a handler got
        self.reached = 0
        self._connections = 0
        self._neighbour = self._connect()
        self._peer, self._left = self._connect(), FRAMES_PER_CONNECTION

    def receive(self, data: bytes, cut: int, most: int) -> None:
        """A frame, in two pieces. Its connection gets so many more at most."""
        connection, wire = self._peer
        connection.data_received(data[:cut])
        if data[cut:] and not wire.closed:
            connection.data_received(data[cut:])
        self._left = min(self._left - 1, most)
        if wire.closed or self._left < 0:
            connection.connection_lost(None)
            self._peer, self._left = self._connect(), FRAMES_PER_CONNECTION

    def last_answer(self) -> Command | None:
        answers = RemotingDecoder(Limits()).receive_data(self._peer[1].written)
        return answers[-1] if answers else None

    def answer_requests(self, command: Command) -> None:
        """As the peer: what the server asked it last, with the fields and the body of this."""
        connection, wire = self._peer
        for asked in RemotingDecoder(Limits()).receive_data(wire.written):
            if not asked.flag & (RESPONSE | ONE_WAY):
                answer = Command(command.code % 3, asked.opaque, RESPONSE, fields=command.fields, body=command.body)
                connection.data_received(encode(answer))

    def ask(self) -> None:
        """Raises AssertionError when a neighbour is not answered."""
        connection, wire = self._neighbour
        if wire.closed:  # it was idle too long
            connection.connection_lost(None)
            connection, wire = self._neighbour = self._connect()
        wire.written = b""
        connection.data_received(encode(self._question))
        self._clock.advance(0)
        answers = RemotingDecoder(Limits()).receive_data(wire.written)
        assert [answer.opaque for answer in answers] == [self._question.opaque], f"a neighbour was answered {answers}"

    def metrics_text(self) -> str:
        return "".join(self.metrics.lines())

    def close(self) -> None:
        for connection, _ in (self._neighbour, self._peer):
            connection.connection_lost(None)

    def _connect(self) -> tuple[RemotingConnection, Wire]:
        self._connections += 1
        wire = Wire(self._connections)
        connection = RemotingConnection(
            self._handlers, self._clock, self._traffic, lambda connection: None, lambda connection: None
        )
        connection.connection_made(wire)
        return connection, wire

    def _counted(self, handler: Handler) -> Callable[[Command, RemotingConnection], Reply[Response | None]]:
        def handle(command: Command, connection: RemotingConnection) -> Reply[Response | None]:
            self.reached += 1
            return handler(command, connection)

        return handle


class Log(logging.Handler):
    """Reads whatever the servers say, and keeps the errors."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.levelno >= logging.ERROR:
            self.errors.append(text)


class Fuzz:
    """A NameServer and a Broker, empty but for the topics of the recordings, and frames for both."""

    def __init__(self, seed: int, recorded: Mapping[str, Sequence[Command]]) -> None:
        self._random = Random(seed)
        self._clock = VirtualClock()
        self._offline = OfflineBroker(clock=self._clock, settings={"max_queue_nums": 5000})
        for name in {command.fields.get(key, "") for command in recorded["broker"] for key in ("topic", "b")} - {""}:
            if self._offline.broker.topics.get(name) is None:
                self._offline.broker.topics.put(TopicConfig(topic_name=name, read_queue_nums=4, write_queue_nums=4))
        question = Command(RequestCode.GET_KV_CONFIG, 7, fields={"namespace": "n", "key": "k"})
        limits = Command(RequestCode.GET_MAX_OFFSET, 7, fields={"topic": "TBW102", "queueId": "0"})
        names = name_server(self._clock)
        self.ports = {
            "nameserver": Port("namesrv", nameserver_remoting.table(names), self._clock, question),
            "broker": Port("broker", self._offline.handlers, self._clock, limits),
        }
        self._mutators = {server: Mutator(commands, self._random) for server, commands in recorded.items()}
        self.frames = 0

    @property
    def reached(self) -> int:
        return sum(port.reached for port in self.ports.values())

    def run(self, frames: int) -> None:
        """Raises what escapes a connection; AssertionError, when a server logged an error or forgot its neighbours."""
        log, logger = Log(), logging.getLogger("saturnmq")
        before = logger.level, logger.propagate
        logger.setLevel(logging.INFO)
        logger.propagate = False  # millions of lines
        logger.addHandler(log)
        try:
            for _ in range(frames):
                self._step()
                assert not log.errors, f"frame {self.frames}: {log.errors[0]}"
        finally:
            logger.removeHandler(log)
            logger.setLevel(before[0])
            logger.propagate = before[1]

    def _step(self) -> None:
        random = self._random
        name = "nameserver" if random.randrange(4) == 0 else "broker"
        port, mutator = self.ports[name], self._mutators[name]
        self.frames += 1
        frame, is_broken = mutator.frame()
        cut = random.randrange(len(frame) + 1) if random.randrange(8) == 0 else len(frame)
        port.receive(frame, cut, random.randrange(3) if is_broken else FRAMES_PER_CONNECTION)
        self._clock.run_soon()
        if random.randrange(5) == 0 and (answer := port.last_answer()) is not None:
            mutator.learn(answer)
        if random.randrange(20) == 0:
            port.answer_requests(mutator.command())
        if random.randrange(50) == 0:
            self._clock.advance(random.choice((1, 100, 5_000, 60_000)))
        if self.frames % FRAMES_PER_QUESTION == 0:
            for each in self.ports.values():
                each.ask()

    def close(self) -> None:
        for port in self.ports.values():
            port.close()
        self._offline.stop()
        self._clock.advance(0)
