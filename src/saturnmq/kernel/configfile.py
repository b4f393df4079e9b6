"""Reading settings: Apache's Java properties files, the environment and flags, all into the structs of `kernel.config`.

Apache silently ignores unknown keys and values that it cannot read. Here a key that nobody knows is a warning with a
guess at what was meant, and a value that cannot be read is an error that names the key, the value and what it takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

import msgspec

S = TypeVar("S", bound=msgspec.Struct)

_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ENTRY = re.compile(r"((?:[^\\=:\s]|\\.)*)\s*[=:]?\s*(.*)\Z", re.DOTALL)
_LITERALS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_ESCAPES = {character: f"\\{letter}" for letter, character in _LITERALS.items()}
#: what Java's reader would take for something else in a key, and in a value
_IN_KEY = re.compile(r"[\\\s:=#!]|[^\x20-\x7e]")
_IN_VALUE = re.compile(r"\\|^ |[^\x20-\x7e]")

#: of difflib's ratio: takes every slip of a letter or two; of Apache's 600 settings five look like one of ours
LOOKS_MISSPELT = 0.85

_OPEN = "everybody would be let in, access control comes with a later version"
_ALONE = "the broker would be alone, replication comes with a later version"
#: settings that must not be ignored: the values that change nothing here, in lower case, and why no other one is taken
PROMISES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "aclEnable": (("false",), _OPEN),
    "authenticationEnabled": (("false",), _OPEN),
    "authorizationEnabled": (("false",), _OPEN),
    "brokerId": (("0",), _ALONE),
    "brokerRole": (("async_master", "sync_master"), _ALONE),
    "inSyncReplicas": (("1",), _ALONE),
    "minInSyncReplicas": (("1",), _ALONE),
    "enableControllerMode": (("false",), _ALONE),
    "enableControllerInNamesrv": (("false",), "no broker would be elected, replication comes with a later version"),
    "enableDLegerCommitLog": (("false",), "SaturnMQ does not read or write DLedger's log"),
    "storeType": (("default",), "SaturnMQ does not read or write RocksDB stores"),
    "timerRocksDBEnable": (("false",), "SaturnMQ does not read or write RocksDB stores"),
}


class IllegalConfig(Exception):
    """A setting cannot be used; the message names the key, the value and what would do."""


def parse_properties(text: str) -> dict[str, str]:
    """Java properties (java.util.Properties.load): `=`, `:` or blank separators, `\\` continuation, `#` and `!`."""
    entries = {}
    for _, line in _entries(text):
        key, value = _split(line)
        if key:
            entries[key] = value
    return entries


def properties(values: Mapping[str, Any]) -> str:
    """The settings as Java properties, sorted by key."""
    return "".join(f"{_property(key, value)}\n" for key, value in sorted(values.items()))


def with_changes(text: str, changes: Mapping[str, Any]) -> str:
    """Java properties in which these keys have these values. What people wrote besides stays: comments, order, other
    keys."""
    lines, left = [], dict(changes)
    for written, line in _entries(text):
        key, _ = _split(line) if line else ("", "")
        if key not in changes:
            lines.append(written)
        else:
            lines.append(_property(key, changes[key]))
            left.pop(key, None)
    lines += [_property(key, value) for key, value in left.items()]
    return "".join(f"{line}\n" for line in lines)


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """What is written, and the entry that it makes: "" for comments and empty lines."""
    lines = iter(text.splitlines())
    for written in lines:
        line = written.lstrip()
        if line[:1] in ("", "#", "!"):
            yield written, ""
            continue
        while _continues(line):
            more = next(lines, "")
            written += "\n" + more
            line = line[:-1] + more.lstrip()
        yield written, line


def _split(line: str) -> tuple[str, str]:
    found = _ENTRY.match(line)
    assert found is not None, "the pattern matches every line"
    return _unescape(found[1]), _unescape(found[2]).strip()


def _property(key: str, value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"{_IN_KEY.sub(_escape, key)}={_IN_VALUE.sub(_escape, text)}"


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    if character in _ESCAPES:
        return _ESCAPES[character]
    if " " <= character <= "~":
        return f"\\{character}"
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _continues(line: str) -> bool:
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def _unescape(text: str) -> str:
    def literal(found: re.Match[str]) -> str:
        code = found[1]
        return chr(int(code[1:], 16)) if len(code) == 5 else _LITERALS.get(code, code)

    text = _ESCAPE.sub(literal, text)
    # two halves of a character beyond U+FFFF are one; a file that is no UTF-8 has lone ones too
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def keys(*types: type[msgspec.Struct]) -> dict[str, str]:
    """Every key that the types take, with the environment variable that sets it too."""
    return {
        field.encode_name: "SATURNMQ_" + field.name.upper()
        for struct in types
        for field in msgspec.structs.fields(struct)
    }


def from_environment(environment: Mapping[str, str], *types: type[msgspec.Struct]) -> dict[str, str]:
    """The settings that environment variables make: `SATURNMQ_FLUSH_DISK_TYPE` sets flushDiskType."""
    return {key: environment[name] for key, name in keys(*types).items() if name in environment}


def warnings(names: Iterable[str], environment: Iterable[str], *types: type[msgspec.Struct]) -> list[str]:
    """What to say of settings that no type takes: a line for each one that looks misspelt, and one for all the others.

    Of the environment only what looks misspelt: orchestrators set variables of their own that begin with our name.
    """
    known = keys(*types)
    lines, others = [], []
    for name in names:
        if name in known:
            continue
        if guess := _guess(name, known):
            lines.append(f"the setting {name} is unknown and has no effect; did you mean {guess}?")
        else:
            others.append(name)
    for name in environment:
        if name.startswith("SATURNMQ_") and (guess := _guess(name, known.values())) and guess != name:
            lines.append(f"the environment variable {name} is unknown and has no effect; did you mean {guess}?")
    if others:
        lines.append(f"settings without effect in this version of SaturnMQ: {', '.join(others)}")
    return lines


def _guess(name: str, known: Iterable[str]) -> str | None:
    spelt = {key.lower(): key for key in known}
    guesses = get_close_matches(name.lower(), spelt, n=1, cutoff=LOOKS_MISSPELT)
    return spelt[guesses[0]] if guesses else None


def refuse_promises(values: Mapping[str, str]) -> None:
    """Raises IllegalConfig for a setting of Apache's that promises what this version cannot keep."""
    for key, (kept, why) in PROMISES.items():
        if (value := values.get(key, kept[0])).lower() not in kept:
            raise IllegalConfig(f"{key} = {value!r} cannot be used: {why}; without this setting the server starts")


def changed(configs: Sequence[msgspec.Struct], changes: Mapping[str, str]) -> list[msgspec.Struct]:
    """The settings of a running server with these changes, each struct with its own. A key of nobody's has no effect.

    Raises IllegalConfig: a value cannot be read, a key looks misspelt, or cannot be kept (PROMISES).
    """
    known = keys(*map(type, configs))
    for name in changes.keys() - known.keys():
        if guess := _guess(name, known):
            raise IllegalConfig(f"the setting {name} is unknown; did you mean {guess}?")
    refuse_promises(changes)
    return [convert({**msgspec.to_builtins(config), **changes}, type(config)) for config in configs]


def convert(values: Mapping[str, Any], struct: type[S]) -> S:
    """The settings that are the struct's own; strings become numbers and booleans. Raises IllegalConfig."""
    own = {key: values[key] for key in keys(struct) if key in values}
    try:
        return msgspec.convert(own, struct, strict=False)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at ")
        key = path.strip("`$.")
        choices = {field.encode_name: get_args(field.type) for field in msgspec.structs.fields(struct)}[key]
        if all(isinstance(choice, str) for choice in choices) and choices:
            reason = f"it takes {' or '.join(choices)}"
        raise IllegalConfig(f"{key} = {own.get(key)!r} cannot be used: {reason}") from None
