"""SQL92 filters: an expression over the properties of a message becomes a function of them.

Grammar, types and three-valued logic are Apache's, down to `NOT a = 1`, which means `(NOT a) = 1`, and `0.0`, which is
refused. One thing differs: an expression ends where it is understood to end. Apache ignores what follows, so that
`a LIKE 'x%'` is taken there, for `a`, and no message ever passes.

A property that is missing or empty is NULL. A comparison with NULL is unknown, and only what is true passes.

Imported when the first such filter comes: the parser generator takes a tenth of a second and 3 MB.
Source: filter/parser/SelectorParser.jj, filter/expression/.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import cache, lru_cache

import msgspec
from lark import Lark, Token, Transformer, UnexpectedCharacters, UnexpectedToken, v_args

from saturnmq.kernel.errors import IllegalFilter
from saturnmq.kernel.properties import decode
from saturnmq.kernel.sqlvalues import Long, Value, compare, compare_sizes, equal, to_integer, to_long
from saturnmq.kernel.subscription import Matches

#: of an expression: room for a thousand strings of an IN. The worst of that length takes a tenth of a second
MAX_CHARACTERS = 16_384
#: operators inside of operators: each is a call inside of a call. A row of ANDs is one
MAX_DEPTH = 100

#: compiled expressions take about a hundred bytes for each character: the number that is kept depends on their length
_SHORT, _KEPT_SHORT, _KEPT_LONG = 512, 1024, 16
#: characters before and behind the place of an error that its message shows
_EXCERPT = 30

_GRAMMAR = r"""
start: either
?either: both (_OR both)*
?both: equality (_AND equality)*
?equality: comparison
    | equality (EQUAL | UNEQUAL) comparison -> equality
    | equality _IS NOT? NULL -> missing
?comparison: operand
    | comparison SIZE operand -> size
    | comparison NOT? PART STRING -> part
    | comparison NOT? _BETWEEN operand _AND operand -> between
    | comparison NOT? _IN "(" STRING ("," STRING)* ")" -> choice
?operand: "+" operand
    | "-" operand -> minus
    | NOT operand -> negation
    | STRING -> string
    | WHOLE -> whole
    | DOUBLE -> double
    | TRUTH -> truth
    | NULL -> truth
    | NAME -> property
    | "(" either ")"

EQUAL: "="
UNEQUAL.1: "<>"
SIZE: "<" | "<=" | ">" | ">="
NAME: /[A-Za-z_$][A-Za-z0-9_$]*/
DOUBLE.1: /[0-9]+\.[0-9]*([eE][+-]?[0-9]+)?|\.[0-9]+([eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+/
WHOLE: /0|[1-9][0-9]*[lL]?/
STRING: /'[^']*(''[^']*)*'/
%declare NOT _AND _OR _BETWEEN _IN _IS NULL TRUTH PART
%ignore /[ \t\n\r\f]+/
%ignore /--[^\n\r]*[\n\r]/
%ignore /\/\*[^*]*\*+([^*\/][^*]*\*+)*\//
"""

#: reserved words, in any case → terminals
_WORDS = {
    "NOT": "NOT", "AND": "_AND", "OR": "_OR", "BETWEEN": "_BETWEEN", "IN": "_IN", "IS": "_IS", "NULL": "NULL",
    "TRUE": "TRUTH", "FALSE": "TRUTH", "CONTAINS": "PART", "STARTSWITH": "PART", "ENDSWITH": "PART",
}  # fmt: skip
#: what a user may write for a terminal, in the order in which an error names them
_EXPECTED = {
    "NAME": "a property", "STRING": "'a string'", "WHOLE": "a number", "TRUTH": "TRUE or FALSE", "LPAR": "(",
    "EQUAL": "=", "UNEQUAL": "<>", "SIZE": "< <= > >=", "PART": "CONTAINS STARTSWITH ENDSWITH", "_BETWEEN": "BETWEEN",
    "_IN": "IN", "_IS": "IS", "NULL": "NULL", "NOT": "NOT", "_AND": "AND", "_OR": "OR", "COMMA": ",", "RPAR": ")",
    "$END": "the end",
}  # fmt: skip
#: what people write who know other dialects → what they mean
_HINTS = {
    "LIKE": "for LIKE there are CONTAINS, STARTSWITH and ENDSWITH",
    "!": "unequal is <>",
    "=": "equal is a single =",
    "&": "write AND",
    "|": "write OR",
    '"': "strings stand between single quotes",
    "'": "a string ends with a single quote, one inside of it is doubled",
    ".": "names of properties have letters, digits, _ and $",
    "-": "names of properties have letters, digits, _ and $; a comment after -- ends with its line",
}

Properties = Mapping[str, str]
Evaluate = Callable[[Properties], Value]

_SIZES: Mapping[str, Callable[[int, int], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_PARTS: Mapping[str, Callable[[str, str], bool]] = {
    "CONTAINS": operator.contains,
    "STARTSWITH": str.startswith,
    "ENDSWITH": str.endswith,
}


class _Wrong(Exception):
    """Grammatical, but not meaningful, at a place in the expression."""

    def __init__(self, at: int, found: str, expected: str) -> None:
        super().__init__(at, found, expected)
        self.at, self.found, self.expected = at, found, expected


class _Node(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an expression."""

    evaluate: Evaluate
    #: where it begins
    at: int
    #: calls inside of calls
    depth: int = 1
    #: its value is true, false or unknown
    is_condition: bool = False
    is_constant: bool = False
    #: of a constant, or a number with its sign
    value: Value = None
    #: of a property
    name: str | None = None


def _condition(evaluate: Evaluate, *parts: _Node) -> _Node:
    return _Node(evaluate=evaluate, at=parts[0].at, depth=_depth(*parts), is_condition=True)


def _depth(*parts: _Node) -> int:
    depth = 1 + max(part.depth for part in parts)
    if depth > MAX_DEPTH:
        raise _Wrong(parts[-1].at, "operators inside of operators", f"at most {MAX_DEPTH} of them")
    return depth


@v_args(inline=True)
class _Compiler(Transformer[Token, _Node]):
    """Makes nodes while the parser reads, each by the rule of its name, so that no tree has to be walked."""

    def start(self, node: _Node) -> _Node:
        return _as_condition(node)

    def either(self, *parts: _Node) -> _Node:
        tests = [_as_condition(part).evaluate for part in parts]

        def evaluate(properties: Properties) -> bool | None:
            known = True
            for test in tests:
                value = test(properties)
                if value is True:
                    return True
                known &= value is not None
            return False if known else None

        return _condition(evaluate, *parts)

    def both(self, *parts: _Node) -> _Node:
        tests = [_as_condition(part).evaluate for part in parts]

        def evaluate(properties: Properties) -> bool | None:
            known = True
            for test in tests:
                value = test(properties)
                if value is False:
                    return False
                known &= value is not None
            return True if known else None

        return _condition(evaluate, *parts)

    def equality(self, left: _Node, sign: Token, right: _Node) -> _Node:
        for node in (left, right):
            if node.is_constant and node.value is None:
                raise _Wrong(node.at, "NULL", "a value; missing properties are found with IS NULL")
        if left.is_constant and right.is_constant and left.is_condition and not right.is_condition:
            raise _Wrong(right.at, repr(right.value), "TRUE or FALSE")
        node = _equal(left, right)
        return node if sign == "=" else _negated(node)

    def missing(self, node: _Node, *words: Token) -> _Node:
        operand = node.evaluate
        result = _condition(lambda properties: operand(properties) is None, node)
        return _negated(result) if len(words) == 2 else result

    def size(self, left: _Node, sign: Token, right: _Node) -> _Node:
        return _sized(left, str(sign), right)

    def part(self, node: _Node, *words: Token) -> _Node:
        *negation, kind, literal = words
        test, part, negated, operand = _PARTS[kind.upper()], _text(literal), bool(negation), node.evaluate
        if not part:
            return _condition(lambda properties: False, node)

        def evaluate(properties: Properties) -> bool:
            value = operand(properties)
            return isinstance(value, str) and test(value, part) != negated

        return _condition(evaluate, node)

    def between(self, node: _Node, *rest: Token | _Node) -> _Node:
        low, high = (part for part in rest if isinstance(part, _Node))
        if len(rest) == 3:
            return self.either(_sized(node, "<", low), _sized(node, ">", high))
        constant = low.is_constant and high.is_constant and _is_number(low) and _is_number(high)
        if constant and compare(high.value, low.value) < 0:
            raise _Wrong(low.at, f"{low.value} AND {high.value}", "the lesser one first")
        return self.both(_sized(node, ">=", low), _sized(node, "<=", high))

    def choice(self, node: _Node, *words: Token) -> _Node:
        name = node.name
        if name is None:
            raise _Wrong(node.at, "IN behind something else", "a property before it")
        negated = words[0].type == "NOT"
        values = frozenset(_text(word) for word in words if word.type == "STRING")

        def evaluate(properties: Properties) -> bool | None:
            text = properties.get(name)
            return (text in values) != negated if text else None

        return _condition(evaluate, node)

    def minus(self, node: _Node) -> _Node:
        number, operand = node.value, node.evaluate
        if isinstance(number, int | float) and not isinstance(number, bool):
            value = type(number)(-number)
            return _Node(evaluate=lambda properties: value, at=node.at, value=value)

        def evaluate(properties: Properties) -> None:
            operand(properties)  # it may be Incomparable

        return _Node(evaluate=evaluate, at=node.at, depth=_depth(node))

    def negation(self, word: Token, node: _Node) -> _Node:
        return _negated(_as_condition(node))

    def string(self, token: Token) -> _Node:
        return _constant(token, _text(token))

    def whole(self, token: Token) -> _Node:
        number = int(token.rstrip("lL"))
        if number >= 1 << 63:
            raise _Wrong(_at(token), token, f"at most {(1 << 63) - 1}")
        return _constant(token, number if number < 1 << 31 else Long(number))

    def double(self, token: Token) -> _Node:
        number = float(token)
        if not 0 < number < float("inf"):
            raise _Wrong(_at(token), token, "a double above 0 that is no infinity; write 0 for 0.0")
        return _constant(token, number)

    def truth(self, token: Token) -> _Node:
        value = {"TRUE": True, "FALSE": False}.get(token.upper())
        return msgspec.structs.replace(_constant(token, value), is_condition=True)

    def property(self, token: Token) -> _Node:
        name = str(token)
        return _Node(evaluate=lambda properties: properties.get(name) or None, at=_at(token), name=name)


def _at(token: Token) -> int:
    assert token.start_pos is not None, "it came out of the text"
    return token.start_pos


def _text(literal: Token) -> str:
    return literal[1:-1].replace("''", "'")


def _constant(token: Token, value: Value) -> _Node:
    return _Node(evaluate=lambda properties: value, at=_at(token), is_constant=True, value=value)


def _is_number(node: _Node) -> bool:
    return node.value is not None and not isinstance(node.value, bool | str)


def _as_condition(node: _Node) -> _Node:
    """A property alone is never true, not even when it says `true`."""
    if node.is_condition:
        return node
    if node.name is None:
        raise _Wrong(node.at, "a value", "a condition: =, <>, <, BETWEEN, IS NULL …")
    operand = node.evaluate
    return _condition(lambda properties: None if operand(properties) is None else False, node)


def _negated(node: _Node) -> _Node:
    operand = node.evaluate

    def evaluate(properties: Properties) -> bool | None:
        value = operand(properties)
        return None if value is None else not value

    return _condition(evaluate, node)


def _equal(left: _Node, right: _Node) -> _Node:
    name, value = left.name, right.value
    if name is not None and isinstance(value, str):

        def equals(properties: Properties) -> bool | None:
            text = properties.get(name)
            return text == value if text else None

        return _condition(equals, left, right)
    if name is not None and isinstance(value, int) and not isinstance(value, bool):
        return _condition(_number_test(name, operator.eq, value), left, right)
    first, second = left.evaluate, right.evaluate
    return _condition(lambda properties: equal(first(properties), second(properties)), left, right)


def _sized(left: _Node, sign: str, right: _Node) -> _Node:
    for node in (left, right):
        if node.is_condition or (node.is_constant and not _is_number(node)):
            raise _Wrong(node.at, "no number", "a number or a property on both sides: only they have an order")
    test, name, value = _SIZES[sign], left.name, right.value
    if name is not None and isinstance(value, int):
        return _condition(_number_test(name, test, value), left, right)
    first, second = left.evaluate, right.evaluate

    def evaluate(properties: Properties) -> bool | None:
        one, other = first(properties), second(properties)
        return None if one is None or other is None else test(compare_sizes(one, other), 0)

    return _condition(evaluate, left, right)


def _number_test(name: str, test: Callable[[int, int], bool], number: int) -> Evaluate:
    """The comparison that nearly every filter makes, with nothing else in its way."""
    read = to_long if isinstance(number, Long) else to_integer

    def evaluate(properties: Properties) -> bool | None:
        text = properties.get(name)
        return test(read(text), number) if text else None

    return evaluate


@cache
def _parser() -> Lark:
    def word(token: Token) -> Token:
        kind = _WORDS.get(token.upper())
        return token if kind is None else Token.new_borrow_pos(kind, str(token), token)

    return Lark(_GRAMMAR, parser="lalr", lexer="basic", transformer=_Compiler(), lexer_callbacks={"NAME": word})


def compile_filter(expression: str) -> Matches:
    """Whether a message with these packed properties passes. Raises IllegalFilter with the place and what would do."""
    if len(expression) > MAX_CHARACTERS:
        raise IllegalFilter(f"the SQL92 filter has {len(expression)} characters, the limit is {MAX_CHARACTERS}")
    return _compiled_short(expression) if len(expression) <= _SHORT else _compiled_long(expression)


def _compile(expression: str) -> Matches:
    try:
        node: _Node = _parser().parse(expression)  # type: ignore[assignment]
    except _Wrong as wrong:
        raise _illegal(expression, wrong.at, wrong.found, wrong.expected) from None
    except UnexpectedCharacters as error:
        at: int = error.pos_in_stream or 0
        expected = f"a property, a value or an operator{_hint(expression[at:])}"
        raise _illegal(expression, at, repr(expression[at]), expected) from None
    except UnexpectedToken as error:
        accepted = error.accepts or set()
        expected = " ".join(text for name, text in _EXPECTED.items() if name in accepted)
        if error.token.type == "$END":
            raise _illegal(expression, len(expression), "the end", expected) from None
        expected += _hint(error.token)
        raise _illegal(expression, _at(error.token), repr(str(error.token)), expected) from None
    evaluate = node.evaluate

    def matches(packed: bytes) -> bool:
        try:
            return evaluate(decode(packed)) is True
        except ValueError:  # values that cannot be compared
            return False

    return matches


_compiled_short = lru_cache(maxsize=_KEPT_SHORT)(_compile)
_compiled_long = lru_cache(maxsize=_KEPT_LONG)(_compile)


def _hint(found: str) -> str:
    word = found.upper()
    return next((f"; {hint}" for begin, hint in _HINTS.items() if word.startswith(begin)), "")


def _illegal(expression: str, at: int, found: str, expected: str) -> IllegalFilter:
    """Counts characters from 1, and shows the place."""
    before, behind = expression[max(0, at - _EXCERPT) : at], expression[at : at + _EXCERPT]
    return IllegalFilter(
        f"the SQL92 filter is wrong at character {at + 1} ({before}>>>{behind}): found {found[:_EXCERPT]}, "
        f"expected {expected}"
    )
