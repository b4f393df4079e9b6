"""JSON as fastjson writes and reads it.

Apache's processes exchange what fastjson 1.2 makes of Java objects, and that is JSON only most of the time: a map with
numbers for keys is `{0:"a"}`, a map of message queues is `{{"brokerName":"b","queueId":0,"topic":"t"}:1}`; names and
strings may stand in single quotes, names without any, and a comma may close a list. `parse` takes all of it. What we
write is standard, except for maps of message queues, which Apache's tools read in no other form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

from saturnmq.kernel.errors import ProtocolError
from saturnmq.kernel.topic import MessageQueue

#: what about a second of work can read; each queue of a consumer's statistics needs about 32
MOST_TOKENS = 1_000_000
#: nesting of what RocketMQ sends stays under 8
MOST_DEPTH = 64

write = msgspec.json.encode

_TOKEN = re.compile(
    r"""\s*+(?:
      (?P<mark>[{}\[\]:,])
    | (?P<string>"[^"\\]*+(?:\\.[^"\\]*+)*+"|'[^'\\]*+(?:\\.[^'\\]*+)*+')
    | (?P<word>[^\s{}\[\]:,"']++)
    | (?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)
_INTEGER = re.compile(r"[-+]?\d{1,19}\Z", re.ASCII)
_REAL = re.compile(r"[-+]?\d{0,40}(?:\.\d{0,40})?(?:[eE][-+]?\d{1,3})?\Z", re.ASCII)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WORDS = {"true": True, "false": False, "null": None}


def parse(text: bytes, most_tokens: int = MOST_TOKENS) -> Any:
    """Python's values of a JSON text or a text in the dialect. Object keys become MessageQueues, other keys strings.

    Raises ProtocolError.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Reader(text.decode("utf-8", "replace"), most_tokens).whole()


def write_queue_map(entries: Mapping[MessageQueue, Any]) -> msgspec.Raw:
    """A map of message queues as fastjson writes it, to be put into a larger value."""
    return msgspec.Raw(b"{%b}" % b",".join(b"%b:%b" % (write(queue), write(value)) for queue, value in entries.items()))


class _Reader:
    """Recursive descent over tokens, one ahead."""

    def __init__(self, text: str, most_tokens: int) -> None:
        self._text = text
        self._end = 0
        self._tokens_left = most_tokens
        self._depth = 0
        self._advance()

    def whole(self) -> Any:
        value = self._value()
        if self._kind != "end":
            self._refuse("something after the end")
        return value

    def _advance(self) -> None:
        match = _TOKEN.match(self._text, self._end)
        if match is None or match.lastgroup is None:
            self._refuse("no JSON")
        self._tokens_left -= 1
        if self._tokens_left < 0:
            raise ProtocolError("a JSON text in fastjson's dialect is too long")
        self._kind = match.lastgroup
        self._token = match.group(match.lastgroup)
        self._end = match.end()

    def _refuse(self, why: str) -> NoReturn:
        raise ProtocolError(f"{why} before character {self._end} of a JSON text: {self._text[self._end :][:20]!r}")

    def _takes(self, mark: str) -> bool:
        """Go past this mark if it is the next token."""
        if self._kind != "mark" or self._token != mark:
            return False
        self._advance()
        return True

    def _value(self) -> Any:
        kind, token = self._kind, self._token
        if kind == "end" or token in ("}", "]", ":", ","):
            self._refuse("a value is missing")
        self._advance()
        if kind == "string":
            return _unquote(token)
        if kind == "word":
            return self._word(token)
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise ProtocolError(f"a JSON text nests deeper than {MOST_DEPTH}")
        value = self._object() if token == "{" else self._array()
        self._depth -= 1
        return value

    def _array(self) -> list[Any]:
        values: list[Any] = []
        while not self._takes("]"):
            values.append(self._value())
            if not self._takes(",") and self._token != "]":
                self._refuse("neither , nor ]")
        return values

    def _object(self) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        while not self._takes("}"):
            key = self._key()
            if not self._takes(":"):
                self._refuse("no : after a key")
            values[key] = self._value()
            if not self._takes(",") and self._token != "}":
                self._refuse("neither , nor }")
        return values

    def _key(self) -> str | MessageQueue:
        kind, token = self._kind, self._token
        if kind == "mark" and token == "{":
            return self._queue(self._value())
        if kind not in ("string", "word"):
            self._refuse("a key is missing")
        self._advance()
        return _unquote(token) if kind == "string" else token

    def _queue(self, value: Any) -> MessageQueue:
        try:
            return msgspec.convert(value, MessageQueue, strict=False)
        except msgspec.ValidationError as error:
            raise ProtocolError(f"an object as a key is not a message queue: {error}") from None

    def _word(self, token: str) -> bool | int | float | None:
        if token in _WORDS:
            return _WORDS[token]
        if _INTEGER.match(token):
            return int(token)
        if not _REAL.match(token):
            self._refuse(f"the word {token[:20]!r}")
        try:
            return float(token)
        except ValueError:
            self._refuse(f"the number {token[:20]!r}")


def _unquote(token: str) -> str:
    text = token[1:-1]
    if "\\" not in text:
        return text
    # a pair of escaped surrogates is one character; a lone one becomes U+FFFD
    return _ESCAPE.sub(_unescape, text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _unescape(match: re.Match[str]) -> str:
    hexadecimal, letter = match.groups()
    return chr(int(hexadecimal, 16)) if hexadecimal else _ESCAPED.get(letter, letter)
