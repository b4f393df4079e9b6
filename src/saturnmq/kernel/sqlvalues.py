"""How SQL92 filters compare values: by the rules of Java's classes, because Apache's filters do.

A property is a string; a number in the text of a filter is an `Integer` when it fits into 32 bits, else a `Long`, and a
`Double` with a point or an exponent. Where the classes of two values differ, one is made what the other is, and what
cannot be read as such is Incomparable: such a message is not taken, whatever else the filter says.

Source: filter/expression/ComparisonExpression.java (__compare, evaluate), Integer.parseInt, Double.valueOf.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

Value = bool | int | float | str | None


class Incomparable(ValueError):
    """Two values of which neither can be made what the other is."""


class Long(int):
    """A number of 64 bits; what fits into 32 is an int."""


_DOUBLE = re.compile(
    r"[+-]?(?:NaN|Infinity|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fFdD]?"
    r"|(?P<hex>0[xX](?:[0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)[pP][+-]?[0-9]+)[fFdD]?)"
)
#: what String.trim takes off
_BLANK = "".join(map(chr, range(0x21)))


def to_integer(text: str) -> int:
    """Integer.valueOf. Raises Incomparable."""
    return _whole(text, 31)


def to_long(text: str) -> int:
    """Long.valueOf. Raises Incomparable."""
    return _whole(text, 63)


def _whole(text: str, bits: int) -> int:
    if text.isdecimal() or (text[:1] in "+-" and text[1:].isdecimal()):
        number = int(text)  # a ValueError when there are more digits than Python reads
        if -1 << bits <= number < 1 << bits:
            return number
    raise Incomparable(text)


def to_double(text: str) -> float:
    """Double.valueOf. Raises Incomparable."""
    text = text.strip(_BLANK)
    found = _DOUBLE.fullmatch(text)
    if found is None:
        raise Incomparable(text)
    text = text.rstrip("fFdD")
    if found["hex"] is None:
        return float(text)
    try:
        return float.fromhex(text)
    except OverflowError:
        return math.copysign(math.inf, -1 if text[0] == "-" else 1)


def to_boolean(text: str) -> bool:
    """Boolean.valueOf."""
    return text.lower() == "true"


def _same(value: Value) -> Value:
    return value


def _no_boolean(value: Value) -> Value:
    raise Incomparable("a truth value is not compared with a string on its right")


_Change = Callable[..., Value]
#: classes of two values → what to make of each; other pairs are unequal
_CHANGES: Mapping[tuple[type, type], tuple[_Change, _Change]] = {
    (bool, str): (_no_boolean, _same),
    (int, Long): (_same, _same),
    (int, float): (float, _same),
    (int, str): (_same, to_integer),
    (Long, int): (_same, _same),
    (Long, float): (float, _same),
    (Long, str): (_same, to_long),
    (float, int): (_same, float),
    (float, Long): (_same, float),
    (float, str): (_same, to_double),
    (str, bool): (to_boolean, _same),
    (str, int): (to_integer, _same),
    (str, Long): (to_long, _same),
    (str, float): (to_double, _same),
}


def compare(left: Value, right: Value) -> int:
    """Below 0, 0 or above 0; -1 too where the values cannot be told apart by size. Raises Incomparable."""
    if type(left) is not type(right):
        changes = _CHANGES.get((type(left), type(right)))
        if changes is None:
            return -1
        left, right = changes[0](left), changes[1](right)
    if isinstance(left, float) and isinstance(right, float):
        return _order(_place(left), _place(right))
    return _order(left, right)


def _order(left: Any, right: Any) -> int:
    return int(left > right) - int(left < right)


def _place(number: float) -> tuple[bool, float, float]:
    """Where a double stands among all: NaN above everything, -0.0 below 0.0 (Double.compare)."""
    return (True, 0.0, 0.0) if math.isnan(number) else (False, number, math.copysign(1.0, number))


def compare_sizes(left: Value, right: Value) -> int:
    """As `compare`, for < and >: two strings are compared as the numbers in them. Raises Incomparable."""
    if isinstance(left, str) and isinstance(right, str):
        return compare(to_double(left), to_double(right))
    return compare(left, right)


def equal(left: Value, right: Value) -> bool | None:
    """None (unknown) when only the left one is missing; a missing one on the right is another value."""
    if left is None:
        return True if right is None else None
    if right is None:
        return False
    return compare(left, right) == 0
