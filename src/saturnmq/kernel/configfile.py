"""Reading settings: Apache's Java properties files, the environment and flags, all into the structs of `kernel.config`.

Apache silently ignores unknown keys and values that it cannot read. Here a key that nobody knows is a warning with a
guess at what was meant, and a value that cannot be read is an error that names the key, the value and what it takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

import msgspec

S = TypeVar("S", bound=msgspec.Struct)

_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ENTRY = re.compile(r"((?:[^\\=:\s]|\\.)*)\s*[=:]?\s*(.*)\Z", re.DOTALL)
_LITERALS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


class IllegalConfig(Exception):
    """A setting cannot be used; the message names the key, the value and what would do."""


def parse_properties(text: str) -> dict[str, str]:
    """Java properties (java.util.Properties.load): `=`, `:` or blank separators, `\\` continuation, `#` and `!`."""
    entries = {}
    lines = iter(text.splitlines())
    for line in lines:
        line = line.lstrip()
        if not line or line[0] in "#!":
            continue
        while _continues(line):
            line = line[:-1] + next(lines, "").lstrip()
        found = _ENTRY.match(line)
        assert found is not None, "the pattern matches every line"
        if key := _unescape(found[1]):
            entries[key] = _unescape(found[2]).strip()
    return entries


def _continues(line: str) -> bool:
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def _unescape(text: str) -> str:
    def literal(found: re.Match[str]) -> str:
        code = found[1]
        return chr(int(code[1:], 16)) if len(code) == 5 else _LITERALS.get(code, code)

    return _ESCAPE.sub(literal, text)


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


def unknown_keys(names: Iterable[str], *types: type[msgspec.Struct]) -> list[str]:
    """A warning for each name that no type takes."""
    known = {key.lower(): key for key in keys(*types)}
    warnings = []
    for name in names:
        if name in known.values():
            continue
        guesses = get_close_matches(name.lower(), known, n=1)
        meant = f"; did you mean {known[guesses[0]]}?" if guesses else ""
        warnings.append(f"the setting {name} is unknown to this version of SaturnMQ and has no effect{meant}")
    return warnings


def convert(values: Mapping[str, Any], struct: type[S]) -> S:
    """The settings that are the struct's own; strings become numbers and booleans. Raises IllegalConfig."""
    own = {key: values[key] for key in keys(struct) if key in values}
    try:
        return msgspec.convert(own, struct, strict=False)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at ")
        key = path.strip("`$.")
        raise IllegalConfig(f"{key} = {own.get(key)!r} cannot be used: {reason}") from None
