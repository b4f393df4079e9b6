"""The language of SQL92 filters is Apache's: generated expressions at its filter, and a table at its running broker.

What is allowed to differ: an expression of which Apache reads only the beginning is refused here, where it stops.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from harness.admin import Admin
from harness.apache import Apache
from harness.clients import ClientError, Message
from harness.mqadmin import JVM
from harness.programs import SOURCES
from harness.remoting import RemotingClient, RemotingProcess
from harness.servers import free_broker_port

from saturnmq.kernel.errors import IllegalFilter
from saturnmq.kernel.properties import encode
from saturnmq.kernel.sql92 import compile_filter
from saturnmq.testing.server import LocalServer

PROGRAM = SOURCES / "sql92" / "Sql92.java"
EXPRESSIONS = 20_000
MESSAGES_EACH = 8
SUBSCRIPTION_PARSE_FAILED = 23

NAMES = ["a", "b", "c", "missing", "A1", "_x$"]
VALUES = [
    "", "x", "abc", "abcdef", "it's", "é", "null", "true", "TRUE", "false", "0", "5", "-5", "+5", "00012", "5.0", "5.5",
    ".5", "5.", "+.5e-3", "1e3", "1e400", "1e-400", "4.9e-324", "-0", "0.0", "-0.0", "NaN", "Infinity", "-Infinity",
    " 7 ", "\t5", "5d", "5f", "5L", "1_000", "٣", "0x10", "0x1p3", "0X1P-1074D", "0x1.fffffffffffff8p1023",
    "2147483647", "2147483648", "-2147483648", "-2147483649", "9223372036854775807", "9223372036854775808", "--5", "5e",
]  # fmt: skip
NUMBERS = [
    "0", "1", "5", "-5", "+5", "5L", "5l", "2147483647", "2147483648", "-2147483648", "- 2147483648",
    "9223372036854775807", "9223372036854775808", "-9223372036854775807", "9007199254740993", "9007199254740993.0",
    "5.5", "5.", ".5", "5e0", "1E3", "1e-3", "1e308", "1e400", "0.0", "4.9e-324", "007.5", "012",
]  # fmt: skip
TOKENS = "a b 5 5.5 'x' = <> < <= > >= NOT AND OR IS NULL BETWEEN IN ( ) , CONTAINS + - TRUE ' -- /* */ ! == \n . LIKE"


class Writer:
    """Writes expressions, most of them right."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def expression(self) -> str:
        kind = self._chance.random()
        if kind < 0.1:
            tokens = TOKENS.split(" ")
            return " ".join(self._chance.choice(tokens) for _ in range(self._chance.randint(1, 9)))
        text = self._condition(2)
        return self._damaged(text) if kind < 0.2 else text

    def message(self) -> dict[str, str]:
        return {
            name: self._chance.choice(VALUES) for name in NAMES if name != "missing" and self._chance.random() < 0.75
        }

    def _damaged(self, text: str) -> str:
        low, high = sorted(self._chance.randrange(len(text) + 1) for _ in range(2))
        token = self._chance.choice(TOKENS.split(" "))
        return self._chance.choice(
            [text[:low] + text[low + 1 :], text[:low] + token + text[low:], text[:low] + text[high:]]
        )

    def _condition(self, depth: int) -> str:
        parts = [
            self._comparison(depth) if depth <= 0 or self._chance.random() < 0.8 else f"({self._condition(depth - 1)})"
            for _ in range(self._chance.choice([1, 1, 2, 2, 3]))
        ]
        text = parts[0]
        for part in parts[1:]:
            text += self._chance.choice([" AND ", " OR ", " and\n", "/* c ** */ or -- c\n"]) + part
        return text

    def _comparison(self, depth: int) -> str:
        one, other, negation = self._operand(depth), self._operand(depth), self._chance.choice(["", " NOT", "not "])
        forms = [
            f"{one} {self._chance.choice(['=', '<>'])} {other}",
            f"{one}{self._chance.choice(['<', '<=', '>', '>='])}{other}",
            f"{one} {negation} BETWEEN {other} AND {self._operand(depth)}",
            f"{one} {negation} in ({','.join(self._text() for _ in range(self._chance.randint(1, 6)))})",
            f"{one} {negation} {self._chance.choice(['CONTAINS', 'startswith', 'EndsWith'])} {self._text()}",
            f"{one} IS {self._chance.choice(['', 'NOT'])} NULL",
            f"NOT {one}",
            f"NOT ({one} = {other})",
            one,
        ]
        return self._chance.choices(forms, weights=[5, 5, 2, 2, 2, 2, 1, 1, 1])[0]

    def _operand(self, depth: int) -> str:
        forms: list[Callable[[], str]] = [
            lambda: self._chance.choice(NAMES),
            lambda: self._chance.choice(NUMBERS),
            self._text,
            lambda: self._chance.choice(["TRUE", "false", "NULL"]),
            lambda: self._chance.choice("+-") + self._chance.choice(["", " "]) + self._operand(depth - 1),
            lambda: f"({self._condition(depth - 1)})" if depth > 0 else self._chance.choice(NAMES),
        ]
        return self._chance.choices(forms, weights=[62, 25, 4, 3, 2, 4])[0]()

    def _text(self) -> str:
        return "'" + self._chance.choice(VALUES).replace("'", "''") + "'"


def asked_of_apache(apache: Apache, questions: list[tuple[str, list[bytes]]]) -> list[list[bool] | None]:
    """Which messages pass; None: it is refused."""
    lines = [
        json.dumps({"expression": expression, "messages": [packed.decode() for packed in messages]})
        for expression, messages in questions
    ]
    done = subprocess.run(
        [*JVM, "-cp", f"{apache.home}/lib/*", str(PROGRAM)],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line == "null" or line.startswith("[")]
    assert len(answers) == len(questions), done.stderr[-2000:]
    return answers


def answer_of_ours(expression: str, messages: list[bytes]) -> tuple[list[bool] | None, str]:
    try:
        matches = compile_filter(expression)
    except IllegalFilter as why:
        return None, str(why)
    return [matches(packed) for packed in messages], ""


def read_by_apache(expression: str, why: str) -> str:
    """What Apache reads of an expression that we refuse because of what follows."""
    place = re.search(r"at character (\d+)", why)
    assert place is not None, why
    return expression[: int(place[1]) - 1]


def test_generated_expressions(apache: Apache) -> None:
    writer = Writer(random.Random(20_261_122))
    questions = [
        (writer.expression(), [encode(writer.message()) for _ in range(MESSAGES_EACH)]) for _ in range(EXPRESSIONS)
    ]
    agreed = refused = cut = 0
    for (expression, messages), theirs in zip(questions, asked_of_apache(apache, questions), strict=True):
        ours, why = answer_of_ours(expression, messages)
        if ours == theirs:
            agreed, refused = agreed + (ours is not None), refused + (ours is None)
            continue
        assert ours is None, f"{expression!r}: {messages} pass {ours}, at Apache's {theirs}"
        beginning, _ = answer_of_ours(read_by_apache(expression, why), messages)
        assert beginning == theirs, f"{expression!r} is refused: {why}; Apache: {theirs}"
        cut += 1
    assert agreed > EXPRESSIONS // 3
    assert refused > EXPRESSIONS // 10
    assert cut < EXPRESSIONS // 20


# ----------------------------------------------------------------------------------------------- running brokers

MESSAGES: list[Mapping[str, str]] = [
    {},
    {"a": "5", "b": "abc"},
    {"a": "5.5", "b": "ABC", "flag": "true"},
    {"a": "-1", "b": "it's", "flag": "yes"},
    {"a": "many", "b": "5"},
    {"a": "3000000000", "b": "é☄"},
    {"b": "abcdef", "flag": "FALSE"},
    {"a": "5"},
]
TABLE = [
    "a = 5", "a <> 5", "a > 4", "a < 6", "a >= 5.5", "a > 2147483648", "a > 4L", "NOT (a = 5)", "NOT a = 5",
    "a = '5'", "a BETWEEN 0 AND 10", "a NOT BETWEEN 0 AND 10", "a BETWEEN 0 AND 10.5", "b = 'abc'", "b <> 'abc'",
    "b = 'it''s'", "b IN ('abc', '5')", "b NOT IN ('abc', '5')", "b CONTAINS 'bc'", "b NOT CONTAINS 'bc'",
    "b STARTSWITH 'ab'", "b NOT ENDSWITH 'f'", "a IS NULL", "a IS NOT NULL", "flag = TRUE", "flag = FALSE", "flag",
    "a = b", "a <= b", "a IS NULL OR a > 0", "a IS NOT NULL AND b IS NOT NULL", "a > 0 OR TRUE", "TRUE OR a > 0",
    "a = 5 AND b = 'abc' OR flag = true", "a = -1", "a = - 1", "-a = 1", "TAGS = 't'", "TAGS IN ('u')",
    "KEYS = 'k 7'", "UNIQ_KEY IS NOT NULL", "TRUE", "FALSE", "NULL", "a=5/* comment */AND b='abc'", "a",
]  # fmt: skip
WRONG = [
    "a = NULL", "a > 'x'", "5", "a BETWEEN 5 AND 3", "a IN (5)", "a = 0.0", "a != 5", "a = 9223372036854775808",
    "(a = 5", "a = 'x", "a =", "=",
]  # fmt: skip
#: refused here, while Apache reads the beginning
CUT = ["a LIKE '5%'", "a = 5 b = 6", "a = 012", "a-b = 5"]


@pytest.fixture
def ours() -> Iterator[LocalServer]:
    with LocalServer(dev=False) as server:
        yield server


def table_at(admin: Admin, client: RemotingClient) -> dict[str, list[bytes] | int | None]:
    """For each expression the messages that a pull gets, or the code that refuses it."""
    topic = admin.create_topic(queues=1)
    client.producer().send(
        [
            Message(topic, b"%d" % number, "t", keys=("k", str(number)), properties=pairs)
            for number, pairs in enumerate(MESSAGES)
        ]
    )
    puller = client.classic("sql92-table")
    found: dict[str, list[bytes] | int | None] = {}
    for expression in TABLE + WRONG + CUT:
        try:
            found[expression] = [received.message.body for received in puller.filtered(topic, expression)]
        except ClientError as refused:
            found[expression] = refused.code
    return found


def test_a_table_of_expressions_and_messages(
    apache: Apache, namesrv: str, ours: LocalServer, remoting_process: Callable[[str], RemotingProcess], tmp_path: Path
) -> None:
    port = free_broker_port()
    broker = apache.start(
        "broker", port, NAMESRV=namesrv, BROKER_PORT=str(port), BROKER_CONF="enablePropertyFilter=true"
    )
    tables = []
    for names, address in ((namesrv, f"127.0.0.1:{port}"), (ours.namesrv, ours.broker)):
        admin, client = Admin(names, address), RemotingClient(remoting_process("java"), names)
        tables.append(table_at(admin, client))
        client.close_all()
        admin.close()
    broker.kill()
    theirs, mine = tables
    for expression in TABLE:
        assert mine[expression] == theirs[expression], expression
    assert sum(bool(mine[expression]) for expression in TABLE) > len(TABLE) // 2
    for expression in WRONG + CUT:
        assert mine[expression] == SUBSCRIPTION_PARSE_FAILED, expression
    everything = [b"%d" % number for number in range(len(MESSAGES))]
    for expression in WRONG:
        assert theirs[expression] == everything, "its broker does not filter by what it does not understand"
    for expression in CUT:
        assert theirs[expression] != everything, expression
