"""Frames: bytes from a connection into commands, and commands into bytes.

All integers are big endian. A frame:

    0    4   bytes after this field
    4    1   header encoding: 0 JSON, 1 ROCKETMQ ("binary")
    5    3   header length
    8    …   header
    …    …   body

A binary header is `code:i16 language:i8 version:i16 opaque:i32 flag:i32 remark:i32+bytes fields:i32+entries`, an entry
is `key:i16+bytes value:i32+bytes`. Sources: remoting/netty/NettyDecoder.java, protocol/RemotingCommand.java and
RocketMQSerializable.java.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from saturnmq.kernel.config import Limits
from saturnmq.kernel.errors import ProtocolError
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.codes import TRUNCATED_CODES, LanguageCode
from saturnmq.wire.remoting.command import LANGUAGE, RESPONSE, VERSION, Command, Response

_JSON, _BINARY = 0, 1
_FRAME = struct.Struct(">iI")
_FIXED = struct.Struct(">hbhiii")
_FIXED_OUT = struct.Struct(">HbHiiI")
#: an entry whose key has one letter, as all of SEND_MESSAGE_V2's have: key length, key, value length
_SHORT_ENTRY = struct.Struct(">HBI")
_U32 = struct.Struct(">I")

_LANGUAGES = {language.name: int(language) for language in LanguageCode}
_LANGUAGE_NAMES = {int(language): language.name for language in LanguageCode}
_OTHER = int(LanguageCode.OTHER)

#: a header that needs the tolerant reader is a small one
_TOLERANT_TOKENS = 10_000

#: What a length of four printable letters means: somebody took this port for another. 0x16 opens a TLS handshake.
_HTTP_WORDS = frozenset({b"GET ", b"POST", b"PUT ", b"HEAD", b"PRI ", b"OPTI", b"DELE", b"PATC", b"CONN", b"TRAC"})


class _Header(msgspec.Struct, gc=False):
    code: int = 0
    opaque: int = 0
    flag: int = 0
    language: str = "OTHER"
    version: int = 0
    remark: str | None = None
    extFields: dict[str, str] = {}  # noqa: N815 - the name on the wire


_header_decoder = msgspec.json.Decoder(_Header)


class RemotingDecoder:
    """Bytes in, commands out. Owner of the bytes of the frame that is not complete yet.

    One call returns at most `remoting_requests_per_turn` commands; while `has_more`, call again with no bytes.
    Nothing is copied more than twice, however the bytes are split.
    """

    def __init__(self, limits: Limits) -> None:
        self._most_bytes = limits.remoting_frame_bytes
        self._most_commands = limits.remoting_requests_per_turn
        #: a frame that has begun, and how long it must get before another look at it pays
        self._partial = bytearray()
        self._awaited = 4
        #: whole frames that the last call left
        self._rest = b""
        self._rest_at = 0
        #: bytes to come of a frame that was refused
        self._skipped = 0

    @property
    def has_more(self) -> bool:
        """Commands, or the reason of a ProtocolError, wait for the next call."""
        return self._rest_at < len(self._rest)

    @property
    def held_bytes(self) -> int:
        """Of frames that are not whole, or wait for the next call."""
        return len(self._partial) + len(self._rest) - self._rest_at

    def refuse(self) -> Command | None:
        """Forget the frame that is not whole: the rest of it is passed over. None when its header has not come, or when
        there is no such frame; then nothing is forgotten."""
        if len(self._partial) < 8:
            return None
        end = 8 + int.from_bytes(self._partial[5:8], "big")
        if len(self._partial) < end:
            return None
        try:
            command = decode_frame(bytes(self._partial[:end]), 0, end)
        except ProtocolError:
            return None
        self._skipped = 4 + int.from_bytes(self._partial[:4], "big") - len(self._partial)
        self._partial = bytearray()
        return command

    def receive_data(self, data: bytes) -> list[Command]:
        """The commands that are complete now. Raises ProtocolError; all commands before the broken frame came first."""
        if self._skipped:
            skipped = min(self._skipped, len(data))
            self._skipped -= skipped
            data = data[skipped:]
        at = 0
        if self._rest:
            data, at = self._rest + data if data else self._rest, self._rest_at
            self._rest, self._rest_at = b"", 0
        elif self._partial:
            self._partial += data
            if len(self._partial) < self._awaited:
                return []
            data = bytes(self._partial)
            self._partial = bytearray()
        commands: list[Command] = []
        try:
            while len(commands) < self._most_commands:
                end = self._frame_end(data, at)
                if not end:
                    self._partial += data[at:] if at else data
                    return commands
                commands.append(decode_frame(data, at, end))
                at = end
        except ProtocolError:
            if not commands:
                raise
        self._rest, self._rest_at = data, at
        return commands

    def _frame_end(self, data: bytes, at: int) -> int:
        """Where the frame at `at` ends, 0 when the bytes end before."""
        available = len(data) - at
        if available < 4:
            self._awaited = 4
            return 0
        length = int.from_bytes(data[at : at + 4], "big", signed=True)
        if not 4 <= length <= self._most_bytes:
            raise ProtocolError(_not_a_length(data[at : at + 4], length, self._most_bytes))
        if available < 4 + length:
            self._awaited = 4 + length
            return 0
        return at + 4 + length


def decode_frame(data: bytes, at: int, end: int) -> Command:
    """One whole frame `data[at:end]`, at least 8 bytes. Raises ProtocolError."""
    _, mark = _FRAME.unpack_from(data, at)
    header = at + 8
    body = header + (mark & 0xFFFFFF)
    if body > end:
        raise ProtocolError(f"a header of {body - header} bytes in a frame with {end - header} left")
    encoding = mark >> 24
    if encoding == _BINARY:
        return _decode_binary(data[header:body], data[body:end])
    if encoding == _JSON:
        return _decode_json(data[header:body], data[body:end])
    raise ProtocolError(f"the header encoding {encoding} is unknown")


def _decode_json(header: bytes, body: bytes) -> Command:
    try:
        h = _header_decoder.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        h = _tolerant_header(header)
    language = _LANGUAGES.get(h.language, _OTHER)
    return Command(h.code, h.opaque, h.flag, language, h.version, h.remark, h.extFields, body)


def _tolerant_header(header: bytes) -> _Header:
    """A header as fastjson would still read it: other types of values, its dialect, nulls."""
    raw = json.parse(header, most_tokens=_TOLERANT_TOKENS)
    if not isinstance(raw, dict):
        raise ProtocolError("the header is not a JSON object")
    fields = raw.get("extFields") or {}
    if not isinstance(fields, dict):
        raise ProtocolError("the header's extFields are not a JSON object")
    language = raw.get("language")
    if isinstance(language, int):
        language = _LANGUAGE_NAMES.get(language)
    remark = raw.get("remark")
    return _Header(
        code=_whole_number(raw, "code"),
        opaque=_whole_number(raw, "opaque"),
        flag=_whole_number(raw, "flag"),
        language=str(language),
        version=_whole_number(raw, "version"),
        remark=None if remark is None else _text(remark),
        extFields={str(key): _text(value) for key, value in fields.items() if value is not None},
    )


def _whole_number(raw: dict[Any, Any], name: str) -> int:
    value = raw.get(name)
    if value is None:
        return 0
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise ProtocolError(f"the header's {name} is not a number") from None


def _text(value: object) -> str:
    """A value of extFields as Java's map of strings would hold it."""
    if isinstance(value, str):
        return value
    return json.write(value).decode()


def _decode_binary(header: bytes, body: bytes) -> Command:
    try:
        code, language, version, opaque, flag, length = _FIXED.unpack_from(header)
        at = 17
        remark = None
        if length:
            remark = header[at : at + length].decode("utf-8", "replace")
            at += length
            if length < 0:
                raise ProtocolError(f"a remark of {length} bytes")
        (length,) = _U32.unpack_from(header, at)
        fields = _decode_fields(header[at + 4 :], length) if length else {}
    except struct.error:
        raise ProtocolError("the binary header ends too early") from None
    if not flag & RESPONSE:
        code = TRUNCATED_CODES.get(code, code)
    if language not in _LANGUAGE_NAMES:
        language = _OTHER
    return Command(code, opaque, flag, language, version, remark, fields, body, True)


def _decode_fields(section: bytes, length: int) -> dict[str, str]:
    """`length` bytes of entries. A value without bytes is Java's null: the field is absent.

    Keys and values are sliced from one string of Latin-1, which has a character for each byte; the few that are
    not ASCII are decoded again. Raises ProtocolError and struct.error.
    """
    if length != len(section):
        raise ProtocolError(f"fields of {length} bytes in a header with {len(section)} left")
    text = section.decode("latin-1")
    short_entry, fields, at = _SHORT_ENTRY.unpack_from, {}, 0
    while at < length:
        key_length, _, value_length = short_entry(section, at)
        if key_length == 1:
            key = text[at + 2]
            at += 7
        else:
            at += 2
            key = text[at : at + key_length]
            if not key.isascii():
                key = section[at : at + key_length].decode("utf-8", "replace")
            at += key_length
            (value_length,) = _U32.unpack_from(section, at)
            at += 4
        end = at + value_length
        if end > length:
            raise ProtocolError(f"the field {key!r} claims {value_length} bytes, {length - at} are left")
        if value_length:
            value = text[at:end]
            fields[key] = value if value.isascii() else section[at:end].decode("utf-8", "replace")
        at = end
    return fields


def _not_a_length(four: bytes, length: int, most_bytes: int) -> str:
    if four in _HTTP_WORDS:
        return "an HTTP request came to this port, which speaks RocketMQ's Remoting protocol (gRPC has its own port)"
    if four[0] == 0x16:
        return "a TLS handshake came to this port, which speaks RocketMQ's Remoting protocol without TLS"
    return f"a frame claims {length} bytes, the limit is {most_bytes}: this is not RocketMQ's Remoting protocol"


def encode(command: Command) -> bytes:
    """A whole frame, in the header encoding that the command names."""
    if command.binary:
        header = _binary_header(
            command.code,
            command.opaque,
            command.flag,
            command.language,
            command.version,
            command.remark,
            command.fields,
        )
    else:
        header = msgspec.json.encode(
            _Header(
                command.code,
                command.opaque,
                command.flag,
                _LANGUAGE_NAMES.get(command.language, "OTHER"),
                command.version,
                command.remark,
                command.fields,
            )
        )
    return b"".join((_frame(header, command.body, command.binary), header, command.body))


def encode_response(request: Command, response: Response) -> bytes:
    """A whole frame that answers `request`, in the header encoding of the request."""
    return b"".join(response_parts(request.opaque, request.binary, response))


def response_parts(opaque: int, binary: bool, response: Response) -> tuple[bytes, bytes, bytes]:
    """The pieces of an answer, for whoever joins several into one write."""
    body = response.body
    if binary:
        header = _binary_header(response.code, opaque, RESPONSE, LANGUAGE, VERSION, response.remark, response.fields)
    elif response.remark is None:
        header = _JSON_RESPONSE % (response.code, _json(response.fields), opaque)
    else:
        header = _JSON_RESPONSE_REMARK % (response.code, _json(response.fields), opaque, _json(response.remark))
    return _frame(header, body, binary), header, body


_json = msgspec.json.Encoder().encode
_JSON_RESPONSE = b'{"code":%%d,"extFields":%%b,"flag":1,"language":"%b","opaque":%%d,"version":%d}' % (
    LANGUAGE.name.encode(),
    VERSION,
)
_JSON_RESPONSE_REMARK = _JSON_RESPONSE[:-1] + b',"remark":%b}'


def _frame(header: bytes, body: bytes, binary: bool) -> bytes:
    return _FRAME.pack(4 + len(header) + len(body), len(header) | binary << 24)


def _binary_header(
    code: int, opaque: int, flag: int, language: int, version: int, remark: str | None, fields: Mapping[str, str]
) -> bytes:
    said = remark.encode() if remark else b""
    parts = [b"", said, b""]
    length = 0
    for key, value in fields.items():
        name, content = _binary_key(key), value.encode()
        length += len(name) + 4 + len(content)
        parts += (name, len(content).to_bytes(4, "big"), content)
    parts[0] = _FIXED_OUT.pack(code & 0xFFFF, language, version & 0xFFFF, opaque, flag, len(said))
    parts[2] = length.to_bytes(4, "big")
    return b"".join(parts)


@lru_cache(maxsize=1024)
def _binary_key(key: str) -> bytes:
    """A field's name with its length before it. Names are few, and ours."""
    name = key.encode()
    return len(name).to_bytes(2, "big") + name
