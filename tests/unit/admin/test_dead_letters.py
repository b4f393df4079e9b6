"""What a dead letter becomes when it is sent again, and how it is shown."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import pytest

from saturnmq.admin import cli
from saturnmq.admin.deadletters import DeadLetter
from saturnmq.kernel import properties as names
from saturnmq.kernel.host import Address
from saturnmq.kernel.message import COMPRESSED, TRANSACTION_COMMIT, Message
from saturnmq.wire import record

HOST = bytes([127, 0, 0, 1, 0, 0, 0x2A, 0x9F])


def stored(position: int, body: bytes = b"x", *, sys_flag: int = 0, **properties: str) -> bytes:
    message = Message("%DLQ%g", 0, body, names.encode(properties), 7, HOST, sys_flag=sys_flag)
    return record.encode(message, queue_offset=3, commit_log_offset=position, stored_ms=9, store_host=HOST)


def letter(
    position: int = 100, body: bytes = b"x", *, sys_flag: int = 0, properties: Mapping[str, str] = {}
) -> DeadLetter:
    given = {"UNIQ_KEY": "ID", "RETRY_TOPIC": "orders", **properties}
    data = stored(position, body, sys_flag=sys_flag, **given)
    return DeadLetter.of("g", "broker-a", Address("127.0.0.1", 10911), data)


def test_what_is_the_messages_own_is_kept() -> None:
    own = {"KEYS": "a b", "TAGS": "t", "user": "u", "__SHARDINGKEY": "line", "ORIGIN_MESSAGE_ID": "OFFSET"}
    life = {"DELAY": "0", "WAIT": "false", "TRAN_MSG": "true", "TIMER_DELAY_MS": "9", "DLQ_REASON": "CONSUMER"}
    dead = letter(properties={**own, **life})
    again = {**own, "UNIQ_KEY": "ID", "DLQ_RESENT": dead.place}
    assert dead.resent_properties("orders") == again
    assert dead.resent_properties("%RETRY%g") == {**again, "RETRY_TOPIC": "orders"}, "whose clients want to know"
    assert letter(sys_flag=COMPRESSED | TRANSACTION_COMMIT).resent_sys_flag == COMPRESSED


@pytest.mark.parametrize(
    ("properties", "topic", "pop_retry"),
    [
        ({}, "orders", None),
        ({"RETRY_TOPIC": "%RETRY%g_orders"}, "orders", "%RETRY%g_orders"),
        ({"RETRY_TOPIC": "%RETRY%g+orders"}, "orders", "%RETRY%g+orders"),
        ({"RETRY_TOPIC": "other", "DLQ_ORIGIN_TOPIC": "orders"}, "orders", None),
    ],
)
def test_where_it_came_from(properties: dict[str, str], topic: str, pop_retry: str | None) -> None:
    dead = letter(properties=properties)
    assert (dead.topic, dead.pop_retry_topic) == (topic, pop_retry)


def test_a_letter_is_done_when_it_or_a_later_one_was_sent_again() -> None:
    dead = letter(100)
    for position, resent in ((99, False), (100, True), (200, True)):
        again = stored(300, UNIQ_KEY="ID", DLQ_RESENT=letter(position).place)
        assert dead.is_resent_as(again) is resent
    assert not dead.is_resent_as(stored(300, UNIQ_KEY="OTHER", DLQ_RESENT=dead.place)), "a key of the same hash"
    assert not dead.is_resent_as(stored(300, UNIQ_KEY="ID"))


def test_without_a_message_id_it_is_known_by_its_first_place() -> None:
    dead = DeadLetter.of("g", "b", Address("h", 1), stored(5, ORIGIN_MESSAGE_ID="FIRST", RETRY_TOPIC="orders"))
    assert (dead.message_id, dead.resent_properties("orders")["UNIQ_KEY"]) == ("FIRST", "FIRST")


def test_bodies_are_shown_as_they_were() -> None:
    assert letter(body="ü".encode()).as_json(resent=False)["body"] == "ü"
    assert letter(body=b"\xff").as_json(resent=False)["bodyBase64"] == "/w=="
    packed = zlib.compress(b"long")
    assert letter(body=packed, sys_flag=COMPRESSED).as_json(resent=True)["body"] == "long"
    assert "bodyBase64" in letter(body=packed[:-1], sys_flag=COMPRESSED).as_json(resent=True), "damaged"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dlq", "list"], "--group"),
        (["dlq", "list", "-g", "g", "-n", "nowhere"], "host:port"),
        (["dlq", "list", "-g", "g", "--from", "soon"], "is no time"),
        (["offsets", "reset", "-g", "g", "-t", "t", "--to", "1", "--queue", "b"], "BROKER:ID"),
    ],
)
def test_arguments_that_make_no_sense(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert says in capsys.readouterr().err
