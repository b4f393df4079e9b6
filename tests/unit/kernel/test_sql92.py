"""SQL92 filters: what passes, what is refused and how; beside a slow evaluator that was written apart from them.

`tests/oracle/test_sql92.py` asks Apache's own filter.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saturnmq.kernel.errors import IllegalFilter
from saturnmq.kernel.properties import encode
from saturnmq.kernel.sql92 import MAX_CHARACTERS, MAX_DEPTH, compile_filter


def passes(expression: str, **properties: str) -> bool:
    return compile_filter(expression)(encode(properties))


MESSAGE = {"a": "5", "b": "abc", "t": "true", "big": "3000000000", "point": "5.5", "none": ""}


@pytest.mark.parametrize(
    "expression",
    [
        "a = 5", "a <> 6", "a > 4", "a >= 5", "a < 6", "a <= 5", "5 = a", "6 > a", "a = '5'", "b = 'abc'", "b <> 'x'",
        "a BETWEEN 5 AND 7", "a NOT BETWEEN 6 AND 7", "a between -1 and 5.5", "point > 5.4", "point = 5.5",
        "a IN ('4', '5')", "a NOT IN ('4')", "b CONTAINS 'b'", "b NOT CONTAINS 'x'", "b STARTSWITH 'ab'",
        "b NOT STARTSWITH 'b'", "b ENDSWITH 'bc'", "b NOT ENDSWITH 'b'", "missing IS NULL", "a IS NOT NULL",
        "none IS NULL", "t = TRUE", "b = FALSE", "a = 5 AND b = 'abc'", "a = 6 OR b = 'abc'", "NOT (a = 6)",
        "a = 6 OR b = 'abc' AND t = true", "(a = 6 OR a = 5) AND t = true", "big > 2999999999", "a > point OR a = 5",
        "point > a", "+a = '5'", "a = -(-5)", "TRUE", "NOT FALSE", "missing = other", "point < 5.5e1",
        "a = 5 /* yes */ -- no\n AND TRUE",
        "a = 5 OR missing > 1", "'it''s' CONTAINS ''''", "$a_1 IS NULL", "a > b IS NULL OR TRUE = TRUE",
        "NULL IS NULL", "1 < 2", "2147483648 > 2147483647", "5 = 5.0", "9007199254740993 = 9007199254740992.0",
    ],
)  # fmt: skip
def test_passes(expression: str) -> None:
    assert passes(expression, **(MESSAGE if "a > b" not in expression else {"a": "5"}))


@pytest.mark.parametrize(
    "expression",
    [
        "a = 6", "missing = 5", "missing <> 5", "NOT (missing = 5)", "missing > 1 OR a = 6", "missing IN ('x')",
        "missing NOT IN ('x')", "missing CONTAINS 'x'", "missing NOT CONTAINS 'x'", "b CONTAINS ''",
        "b NOT CONTAINS ''", "missing = a", "a = missing", "a <> missing AND FALSE", "missing AND TRUE", "t", "a",
        "NOT a = 5", "b > 5", "b < 5", "b = 5", "b <> 5", "NOT (b = 5)", "point = 5", "big > 5", "big < 5", "big = 5",
        "TRUE = t", "-a = 5", "-a <> 5", "a > b", "b = 5 OR TRUE", "a = 6 AND b = 5", "FALSE", "NULL",
        "NOT NULL", "a = 5 = 5", "none = ''", "-TRUE = a",
        "5 CONTAINS '5'", "missing = TRUE", "1 = TRUE", "(a IS NULL) = t",
    ],
)  # fmt: skip
def test_does_not_pass(expression: str) -> None:
    assert not passes(expression, **MESSAGE)


def test_the_first_part_that_decides_ends_it() -> None:
    assert passes("TRUE OR b > 5", b="no number")
    assert not passes("b > 5 OR TRUE", b="no number"), "what cannot be compared does not pass, whatever comes after"
    assert not passes("FALSE AND b > 5", b="no number")


@pytest.mark.parametrize(
    ("text", "is_integer", "is_double"),
    [
        ("7", True, True), ("+7", True, True), ("-7", True, True), ("007", True, True), ("٧", True, False),
        (" 7", False, True), ("7.0", False, True), ("7.", False, True), (".7", False, True), ("7e0", False, True),
        ("7d", False, True), ("7F", False, True), ("7L", False, False), ("0x7", False, False), ("0x7p0", False, True),
        ("0X.7P-3f", False, True), ("0x1p99999", False, True), ("1e999", False, True), ("-Infinity", False, True),
        ("NaN", False, True), ("nan", False, False), ("inf", False, False), ("1_000", False, False), ("", False, False),
        ("2147483648", False, True), ("-2147483649", False, True), ("+-7", False, False), ("9" * 5000, False, True),
    ],
)  # fmt: skip
def test_numbers_are_read_as_in_java(text: str, is_integer: bool, is_double: bool) -> None:
    assert passes("a < 8 OR a >= 8", a=text) is is_integer
    assert passes("a < 8.5 OR a >= 8.5", a=text) is is_double


def test_doubles_have_javas_order() -> None:
    assert passes("a > 1e308", a="NaN")
    assert passes("a = b", a="NaN", b="NaN")
    assert passes("a < b", a="-0.0", b="0.0")
    assert passes("a <= b", a="1e999", b="NaN")
    assert not passes("a < 1.5", a="NaN")


@pytest.mark.parametrize(
    ("expression", "at", "text"),
    [
        ("", 1, "found the end, expected a property"),
        ("a LIKE 'x%'", 3, "found 'LIKE', expected = <> < <= > >= CONTAINS .*; for LIKE there are CONTAINS"),
        ("a = 1 b", 7, "found 'b', expected .* AND OR the end"),
        ("a != 1", 3, "found '!', .*unequal is <>"),
        ("a == 1", 4, "equal is a single ="),
        ('a = "x"', 5, "single quotes"),
        ("a = 'x", 5, "a string ends with a single quote"),
        ("a && b", 3, "write AND"),
        ("a.b = 1", 2, "names of properties"),
        ("a-b = 1", 2, "names of properties"),
        ("a = NULL", 5, "IS NULL"),
        ("5", 1, "expected a condition"),
        ("a AND 5", 7, "expected a condition"),
        ("NOT 5", 5, "expected a condition"),
        ("-a", 2, "expected a condition"),
        ("a > 'x'", 5, "a number or a property"),
        ("TRUE < a", 1, "a number or a property"),
        ("a > 1 > 2", 1, "a number or a property"),
        ("a BETWEEN 5 AND 3", 11, "the lesser one first"),
        ("a BETWEEN 'x' AND 'y'", 11, "a number or a property"),
        ("5 IN ('x')", 1, "expected a property before it"),
        ("a IN (1)", 7, "found '1', expected 'a string'"),
        ("a IN ()", 7, "expected 'a string'"),
        ("a IN ('x'", 10, r"expected , \)"),
        ("a IS 5", 6, "expected NULL NOT"),
        ("TRUE = 5", 8, "expected TRUE or FALSE"),
        ("a = 9223372036854775808", 5, "at most 9223372036854775807"),
        ("a = -9223372036854775808", 6, "at most"),
        ("a = 0.0", 5, "write 0"),
        ("a = 1e999", 5, "a double"),
        ("a = 012", 6, "found '12'"),
        ("(a = 1", 7, r"expected .*\)"),
        ("a = 1 -- unended", 7, "a comment after -- ends with its line"),
        ("a =\n  ?", 7, r"  >>>\?\): found"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(expression: str, at: int, text: str) -> None:
    with pytest.raises(IllegalFilter, match=rf"(?s)is wrong at character {at} \(.*{text}"):
        compile_filter(expression)


def test_messages_are_short_whatever_the_expression() -> None:
    with pytest.raises(IllegalFilter) as refused:
        compile_filter("x" * 4000 + " " + "y" * 4000)
    assert len(str(refused.value)) < 400


def test_limits() -> None:
    filler = " " * (MAX_CHARACTERS - 5)
    assert passes("a = 1" + filler, a="1")
    with pytest.raises(IllegalFilter, match=f"the limit is {MAX_CHARACTERS}"):
        compile_filter("a = 1" + filler + " ")
    for opening, closing in (("NOT (", ")"), ("NOT ", ""), ("(", " IS NULL)"), ("(a AND ", ")"), ("-(", " IS NULL)")):
        many = MAX_CHARACTERS // (len(opening) + len(closing)) - 1
        with pytest.raises(IllegalFilter, match=f"at most {MAX_DEPTH}"):
            compile_filter(opening * many + "a" + closing * many)
    assert passes("NOT (" * (MAX_DEPTH - 2) + "a = 1" + ")" * (MAX_DEPTH - 2), a="1")


def test_long_rows_are_no_depth() -> None:
    assert passes(" OR ".join(["a = 2"] * 800 + ["a = 1"]), a="1")
    assert passes(" AND ".join(["a = 1"] * 800), a="1")
    assert passes("(" * 4000 + "a = 1" + ")" * 4000, a="1")
    assert passes("a IN ('" + "','".join(map(str, range(1500))) + "')", a="1499")
    assert passes("a = " + "-" * 4000 + "1", a="1")


def test_an_expression_is_compiled_once() -> None:
    for expression in ("a = 1", "a = 1" + " OR a = 2" * 200):
        assert compile_filter(expression) is compile_filter(expression)


@given(
    st.text(max_size=60) | st.lists(st.sampled_from("a 5 ' ( ) = <> < AND OR NOT IS NULL IN , -- /* */ . -".split()))
)
def test_anything_compiles_or_is_refused(expression: str | list[str]) -> None:
    try:
        matches = compile_filter(expression if isinstance(expression, str) else " ".join(expression))
    except IllegalFilter:
        return
    assert matches(encode(MESSAGE)) in (True, False)


# ------------------------------------------------------------------------------------------ the slow evaluator

NAMES = ["a", "b", "c"]
TEXTS = ["5", "-5", "05", "5.0", "5.5", "abc", "ab", "true", "False", "2147483648", "", "x y"]


class Undecided(Exception):
    """The message does not pass, whatever else is said of it."""


def number(text: str, kind: type) -> float:
    """`int` stands for 32 bits, `float` for a double."""
    try:
        value = kind(text)
    except ValueError:
        raise Undecided from None
    if kind is int and not -1 << 31 <= value < 1 << 31:
        raise Undecided
    return float(value)


def value_of(node: tuple[Any, ...], message: dict[str, str]) -> Any:
    kind, *rest = node
    match kind:
        case "property":
            return message.get(rest[0]) or None
        case "text" | "number":
            return rest[0]
    raise AssertionError(kind)


def truth(node: tuple[Any, ...], message: dict[str, str]) -> bool | None:
    """True, False or None (unknown), straight from the definitions."""
    kind, *rest = node
    match kind:
        case "and" | "or":
            decisive = kind == "or"
            unknown = False
            for part in rest[0]:
                value = truth(part, message)
                if value is decisive:
                    return decisive
                unknown = unknown or value is None
            return None if unknown else not decisive
        case "not":
            value = truth(rest[0], message)
            return None if value is None else not value
        case "null":
            return (value_of(rest[0], message) is None) is rest[1]
        case "in":
            value = value_of(rest[0], message)
            return None if value is None else (value in rest[1]) is rest[2]
        case "part":
            value = value_of(rest[0], message)
            if value is None or not rest[2]:
                return False
            test = {"CONTAINS": str.__contains__, "STARTSWITH": str.startswith, "ENDSWITH": str.endswith}[rest[1]]
            return test(value, rest[2]) is rest[3]
        case "compare":
            return compared(value_of(rest[0], message), rest[1], value_of(rest[2], message))
    raise AssertionError(kind)


def compared(left: Any, sign: str, right: Any) -> bool | None:
    if sign in ("=", "<>"):
        if left is None or right is None:
            equal = True if left is right else None if left is None else False
        elif isinstance(left, str) and isinstance(right, str):
            equal = left == right
        else:
            equal = numbers(left, right)[0] == numbers(left, right)[1]
        return equal if sign == "=" or equal is None else not equal
    if left is None or right is None:
        return None
    one, other = numbers(left, right)
    return {"<": one < other, "<=": one <= other, ">": one > other, ">=": one >= other}[sign]


def numbers(left: Any, right: Any) -> tuple[float, float]:
    kinds = {type(value) for value in (left, right)} - {str}
    kind = kinds.pop() if len(kinds) == 1 else float
    return tuple(number(value, kind) if isinstance(value, str) else float(value) for value in (left, right))  # type: ignore[return-value]


def written(node: tuple[Any, ...]) -> str:
    kind, *rest = node

    def text(value: str) -> str:
        return "'" + value.replace("'", "''") + "'"

    match kind:
        case "property":
            return str(rest[0])
        case "text":
            return text(rest[0])
        case "number":
            return str(rest[0])
        case "and" | "or":
            return "(" + f" {kind} ".join(map(written, rest[0])) + ")"
        case "not":
            return f"NOT ({written(rest[0])})"
        case "null":
            return f"{written(rest[0])} IS {'' if rest[1] else 'NOT '}NULL"
        case "in":
            return f"{written(rest[0])} {'' if rest[2] else 'NOT '}IN ({','.join(map(text, rest[1]))})"
        case "part":
            return f"{written(rest[0])} {'' if rest[3] else 'NOT '}{rest[1]} {text(rest[2])}"
        case "compare":
            return f"{written(rest[0])} {rest[1]} {written(rest[2])}"
    raise AssertionError(kind)


properties = st.tuples(st.just("property"), st.sampled_from(NAMES))
literals = st.tuples(
    st.just("number"), st.sampled_from([0, 5, 6, 5.0, 5.5]).filter(lambda value: value is not math.nan)
)
texts = st.sampled_from([*TEXTS, "it's"])
comparisons = st.one_of(
    st.tuples(
        st.just("compare"),
        properties,
        st.sampled_from(["=", "<>", "<", "<=", ">", ">="]),
        st.one_of(properties, literals),
    ),
    st.tuples(st.just("compare"), literals, st.sampled_from(["=", "<>", "<", ">="]), properties),
    st.tuples(st.just("compare"), properties, st.sampled_from(["=", "<>"]), st.tuples(st.just("text"), texts)),
    st.tuples(st.just("null"), properties, st.booleans()),
    st.tuples(st.just("in"), properties, st.lists(texts, min_size=1, max_size=7), st.booleans()),
    st.tuples(
        st.just("part"), properties, st.sampled_from(["CONTAINS", "STARTSWITH", "ENDSWITH"]), texts, st.booleans()
    ),
)
conditions = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=4)),
        st.tuples(st.just("not"), inner),
    ),
    max_leaves=6,
)


@given(conditions, st.dictionaries(st.sampled_from(NAMES), st.sampled_from(TEXTS)))
def test_as_the_slow_evaluator(condition: tuple[Any, ...], message: dict[str, str]) -> None:
    try:
        expected = truth(condition, message) is True
    except Undecided:
        expected = False
    assert passes(written(condition), **message) is expected
