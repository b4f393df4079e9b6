"""Transactions: what becomes of half messages, who is asked about them, what a restart leaves of them."""

from __future__ import annotations

import re

import msgspec
import pytest

from saturnmq.broker.halves import Done
from saturnmq.kernel import properties as names
from saturnmq.kernel.message import (
    TRANSACTION_COMMIT,
    TRANSACTION_PREPARED,
    TRANSACTION_ROLLBACK,
    Message,
    StoredMessage,
)
from saturnmq.kernel.topic import HALF_TOPIC, OP_HALF_TOPIC, TRANS_CHECK_MAX_TIME_TOPIC, TRANSACTION_GROUP, TopicConfig
from saturnmq.testing.offline import Asked, OfflineBroker, OfflineConnection
from saturnmq.wire import record
from saturnmq.wire.record import BatchEntry, encode_batch
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode

INTERVAL_MS = 30_000


def started(**settings: object) -> OfflineBroker:
    offline = OfflineBroker(settings=settings)
    offline.broker.topics.put(TopicConfig(topic_name="orders"))
    offline.clock.run_soon()
    return offline


@pytest.fixture
def offline() -> OfflineBroker:
    return started()


@pytest.fixture
def producer(offline: OfflineBroker) -> OfflineConnection:
    return joined(offline)


def joined(offline: OfflineBroker, client_id: str = "p", group: str = "producers") -> OfflineConnection:
    connection = OfflineConnection(f"10.0.0.2:{len(client_id)}")
    offline.heartbeat(client_id, producers=[group], connection=connection)
    return connection


class Half:
    """A half message that was sent."""

    def __init__(self, offline: OfflineBroker, body: bytes = b"x", **properties: str) -> None:
        self.sent = offline.send(
            "orders", body, queue_id=2, header={"f": TRANSACTION_PREPARED}, TRAN_MSG="true", PGROUP="producers",
            **properties,
        )  # fmt: skip
        assert self.sent.code == 0
        self.offset = int(self.sent.fields["queueOffset"])
        _, self.position = record.parse_offset_message_id(self.sent.fields["msgId"])


class Check:
    """A question to a producer, as it would be answered."""

    def __init__(self, fields: dict[str, str], body: bytes) -> None:
        self.fields, self.message = fields, record.decode(body)
        self.offset, self.position = int(fields["tranStateTableOffset"]), int(fields["commitLogOffset"])


def end(offline: OfflineBroker, half: Half | Check, resolution: int = TRANSACTION_COMMIT, **fields: object) -> Asked:
    header = {
        "topic": "orders", "producerGroup": "producers", "tranStateTableOffset": half.offset,
        "commitLogOffset": half.position, "commitOrRollback": resolution, "msgId": "KEY", "transactionId": "KEY",
        "fromTransactionCheck": isinstance(half, Check),
    }  # fmt: skip
    return offline.ask(RequestCode.END_TRANSACTION, {**header, **fields})


def checks(connection: OfflineConnection) -> list[Check]:
    """What came since the last look."""
    told, connection.told = connection.told, []
    bodies, connection.bodies = connection.bodies, []
    return [Check(fields, body) for (_, fields), body in zip(told, bodies, strict=True)]


def orders(offline: OfflineBroker) -> list[bytes]:
    return [stored.body for stored in offline.stored("orders", 2)]


def ops(offline: OfflineBroker) -> list[bytes]:
    return [stored.body for stored in offline.stored(OP_HALF_TOPIC)]


def pending(offline: OfflineBroker) -> int:
    """Of the topic, as the metrics tell it."""
    match = re.search(r'^rocketmq_half_messages\{topic="orders"\} (\d+)', "".join(offline.metrics.lines()), re.M)
    return int(match.group(1)) if match else 0


def pairs(stored: StoredMessage) -> dict[str, str]:
    return names.decode(stored.properties)


# ---------------------------------------------------------------------------------------------------------- ending


def test_a_half_message_is_seen_by_nobody_until_it_is_committed(offline: OfflineBroker) -> None:
    half = Half(offline, b"body", TAGS="t", color="red")
    assert half.sent.fields["transactionId"] == "KEY"
    assert (half.sent.fields["queueId"], half.offset) == ("2", 0)
    [stored] = offline.stored(HALF_TOPIC)
    assert (stored.sys_flag, stored.queue_id) == (0, 0)
    assert pairs(stored) == {
        "UNIQ_KEY": "KEY", "TRAN_MSG": "true", "PGROUP": "producers", "TAGS": "t", "color": "red",
        "__transactionId__": "KEY", "REAL_TOPIC": "orders", "REAL_QID": "2",
        "MSG_REGION": "DefaultRegion", "TRACE_ON": "true", "CLUSTER": "DefaultCluster",
    }  # fmt: skip
    assert (orders(offline), pending(offline)) == ([], 1)

    assert end(offline, half).code == 0
    [message] = offline.stored("orders", 2)
    assert (message.body, message.sys_flag) == (b"body", TRANSACTION_COMMIT)
    assert message.prepared_transaction_offset == half.position
    assert (message.born_ms, message.born_host) == (stored.born_ms, stored.born_host)
    assert message.properties == stored.properties
    assert pending(offline) == 0
    assert 'rocketmq_commit_messages_total{topic="orders"} 1' in "".join(offline.metrics.lines())


def test_how_long_it_took_to_be_committed(offline: OfflineBroker) -> None:
    half = Half(offline)
    [stored] = offline.stored(HALF_TOPIC)
    offline.clock.advance(stored.born_ms + 7_000 - offline.clock.now_ms())
    for _ in range(2):  # the second finds it committed
        assert end(offline, half).code == 0
    found = re.findall(r"rocketmq_finish_message_latency_\w+(_\w+){(.+)} (\d+)", "".join(offline.metrics.lines()))
    labels = 'topic="orders"'
    assert found[:2] == [("_bucket", f'{labels},le="5.0"', "0"), ("_bucket", f'{labels},le="60.0"', "1")]
    assert found[-2:] == [("_count", labels, "1"), ("_sum", labels, "7")]


def test_a_rollback_is_durable_when_it_is_answered(offline: OfflineBroker) -> None:
    half = Half(offline)
    assert end(offline, half, TRANSACTION_ROLLBACK).code == 0
    assert (ops(offline), orders(offline), pending(offline)) == ([b"0,"], [], 0)
    assert 'rocketmq_rollback_messages_total{topic="orders"} 1' in "".join(offline.metrics.lines())


@pytest.mark.parametrize("resolution", [0, 4, 5, -1])
def test_what_is_not_decided_has_no_answer_and_changes_nothing(offline: OfflineBroker, resolution: int) -> None:
    half = Half(offline)
    assert end(offline, half, resolution).waits
    assert pending(offline) == 1


@pytest.mark.parametrize(
    ("wrong", "remark"),
    [
        ({"producerGroup": "others"}, "The producer group wrong"),
        ({"tranStateTableOffset": 1}, "The transaction state table offset wrong"),
        ({"uniqKey": "ANOTHER"}, "The message id wrong"),
        ({"commitLogOffset": 1}, "Find prepared transaction message failed"),
        ({"commitLogOffset": 1 << 40}, "Find prepared transaction message failed"),
        ({"commitLogOffset": -1}, "Find prepared transaction message failed"),
    ],
)
def test_who_means_another_half_message_ends_none(
    offline: OfflineBroker, wrong: dict[str, object], remark: str
) -> None:
    half = Half(offline)
    for resolution in (TRANSACTION_COMMIT, TRANSACTION_ROLLBACK):
        refused = end(offline, half, resolution, **wrong)
        assert (refused.code, refused.remark) == (ResponseCode.SYSTEM_ERROR, remark)
    assert (pending(offline), orders(offline)) == (1, [])


def test_a_message_that_is_no_half_one_cannot_be_committed(offline: OfflineBroker) -> None:
    sent = offline.send("orders", PGROUP="producers", REAL_TOPIC="orders", REAL_QID="0")
    _, position = record.parse_offset_message_id(sent.fields["msgId"])
    refused = end(offline, Half(offline), commitLogOffset=position, tranStateTableOffset=0)
    assert refused.remark == "Find prepared transaction message failed"


def test_a_record_inside_of_a_body_is_no_half_message(offline: OfflineBroker) -> None:
    """Who knows the log may forge one at the right place."""
    Half(offline)
    [stored] = offline.stored(HALF_TOPIC)
    envelope = Message("", 0, b"", b"", 0, bytes(8))
    # a body ends before a length of 1, the topic, and one of 2
    at = offline.store.end + record.size_of(envelope, store_host=offline.store.store_host) - 3
    forged = msgspec.structs.replace(stored, commit_log_offset=at)
    offline.send("orders", record.encode_stored(forged))
    assert offline.store.record_at(at) is not None, "it is there to be found"
    refused = end(offline, Half(offline), tranStateTableOffset=0, commitLogOffset=at)
    assert refused.remark == "The commit log offset wrong"


def test_ending_twice_answers_the_same_and_delivers_once(offline: OfflineBroker) -> None:
    half = Half(offline)
    assert [end(offline, half).code, end(offline, half).code] == [0, 0]
    assert (len(orders(offline)), pending(offline)) == (1, 0)
    other = Half(offline)
    assert [end(offline, other, TRANSACTION_ROLLBACK).code for _ in range(2)] == [0, 0]
    assert pending(offline) == 0


def test_a_commit_after_a_rollback_is_not_lost(offline: OfflineBroker) -> None:
    half = Half(offline)
    end(offline, half, TRANSACTION_ROLLBACK)
    assert end(offline, half).code == 0
    assert (len(orders(offline)), pending(offline)) == (1, 0)


@pytest.mark.parametrize("restarts", [False, True])
def test_a_half_message_goes_with_its_topic(restarts: bool) -> None:
    """To one of that name it does not come either, whoever ends it when; and nobody is asked about it."""
    offline = started()
    ended, left = Half(offline, b"ended"), Half(offline, b"left")
    assert offline.ask(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": "orders"}).code == 0
    offline = offline.restart() if restarts else offline
    refused = end(offline, ended)
    assert (refused.code, refused.remark) == (
        ResponseCode.TOPIC_NOT_EXIST, "topic[orders] was deleted since the half message was sent"
    )  # fmt: skip
    assert "orders" not in offline.store.topics()
    offline.broker.topics.put(TopicConfig(topic_name="orders"))
    fresh, producer = Half(offline, b"fresh"), joined(offline)
    offline.clock.advance(3 * INTERVAL_MS)
    assert {check.message.body for check in checks(producer)} == {b"fresh"}
    assert end(offline, left).code == ResponseCode.TOPIC_NOT_EXIST
    assert end(offline, fresh).code == 0
    assert orders(offline) == [b"fresh"]
    offline.clock.advance(3 * INTERVAL_MS)
    assert pending(offline) == 0


def test_who_names_a_time_must_not_end_it_later_by_himself(offline: OfflineBroker, producer: OfflineConnection) -> None:
    half = Half(offline, CHECK_IMMUNITY_TIME_IN_SECONDS="20")
    offline.clock.advance(20_001)
    assert end(offline, half).code == ResponseCode.ILLEGAL_OPERATION
    assert end(offline, half, TRANSACTION_ROLLBACK).code == ResponseCode.ILLEGAL_OPERATION
    offline.clock.advance(INTERVAL_MS)
    [check] = checks(producer)
    assert end(offline, check).code == 0
    assert len(orders(offline)) == 1


@pytest.mark.parametrize(("immunity", "late_ms"), [("2", 6_001), ("x", 6_001), ("", None)])
def test_times_that_are_too_short_or_none(offline: OfflineBroker, immunity: str, late_ms: int | None) -> None:
    half = Half(offline, CHECK_IMMUNITY_TIME_IN_SECONDS=immunity)
    offline.clock.advance(6_000)
    if late_ms is not None:
        offline.clock.advance(late_ms - 6_000)
        assert end(offline, half).code == ResponseCode.ILLEGAL_OPERATION
    else:
        assert end(offline, half).code == 0


# --------------------------------------------------------------------------------------------------------- sending


@pytest.mark.parametrize("name", ["DELAY", "TIMER_DELAY_SEC", "TIMER_DELAY_MS", "TIMER_DELIVER_MS"])
def test_a_half_message_cannot_be_for_a_time_too(offline: OfflineBroker, name: str) -> None:
    properties = names.encode({"UNIQ_KEY": "KEY", "TRAN_MSG": "true", "PGROUP": "producers", name: "1"}).decode()
    assert offline.send("orders", header={"i": properties}).code == ResponseCode.MESSAGE_ILLEGAL


def test_a_broker_that_takes_no_half_messages() -> None:
    offline = started(reject_transaction_message=True)
    refused = offline.send("orders", TRAN_MSG="true", PGROUP="producers")
    assert refused.code == ResponseCode.NO_PERMISSION
    assert refused.remark == "the broker[broker-a] sending transaction message is forbidden"
    assert offline.send("orders", TRAN_MSG="false").code == 0


def test_flags_of_a_transaction_are_only_the_brokers_to_set(offline: OfflineBroker) -> None:
    for flag in (TRANSACTION_PREPARED, TRANSACTION_COMMIT, TRANSACTION_ROLLBACK):
        assert offline.send("orders", header={"f": flag}).code == ResponseCode.MESSAGE_ILLEGAL
        batch = encode_batch([BatchEntry(0, b"x", b"")])
        assert offline.send("orders", batch, header={"f": flag, "m": True}).code == ResponseCode.MESSAGE_ILLEGAL


def test_an_old_consumer_sends_a_committed_message_back_as_it_is(offline: OfflineBroker) -> None:
    """Clients of before 4.6.1 leave the property and the flag."""
    offline.ask(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body=b'{"groupName":"g"}')
    header = {"f": TRANSACTION_PREPARED, "j": 1}
    assert offline.send("%RETRY%g", b"again", header=header, TRAN_MSG="true", DELAY="1").code == 0
    assert offline.stored(HALF_TOPIC) == []
    offline.clock.advance(1_000)
    assert [stored.body for stored in offline.stored("%RETRY%g")] == [b"again"]


def test_properties_must_leave_room_for_what_a_check_adds(offline: OfflineBroker) -> None:
    def send(length: int) -> int:
        return offline.send("orders", TRAN_MSG="true", PGROUP="producers", filler="f" * length).code

    longest = max(length for length in range(32_300, 32_700) if send(length) == 0)
    offline.clock.advance(INTERVAL_MS)
    copies = [pairs(stored) for stored in offline.stored(HALF_TOPIC) if b"CHECK_TIMES" in stored.properties]
    assert max(len(copy["filler"]) for copy in copies) == longest


# -------------------------------------------------------------------------------------------------------- checking


def test_a_producer_is_asked_and_may_not_know_yet(offline: OfflineBroker, producer: OfflineConnection) -> None:
    Half(offline, b"body", TAGS="t")
    offline.clock.advance(INTERVAL_MS - 1)
    assert producer.told == []
    for times in (1, 2, 3):
        offline.clock.advance(1 if times == 1 else INTERVAL_MS)
        assert [code for code, _ in producer.told] == [RequestCode.CHECK_TRANSACTION_STATE]
        [check] = checks(producer)
        stored = offline.stored(HALF_TOPIC)[-1]
        assert pairs(stored)["TRANSACTION_CHECK_TIMES"] == str(times)
        assert (check.offset, check.position) == (times, stored.commit_log_offset)
        assert check.fields == {
            "topic": HALF_TOPIC, "tranStateTableOffset": str(times), "commitLogOffset": str(stored.commit_log_offset),
            "msgId": "KEY", "transactionId": "KEY", "bname": "broker-a",
            "offsetMsgId": record.offset_message_id(stored.store_host, stored.commit_log_offset),
        }  # fmt: skip
        message = check.message
        assert (message.topic, message.queue_id, message.body) == ("orders", 2, b"body")
        assert end(offline, check, 0).waits
    assert end(offline, check).code == 0
    assert (orders(offline), pending(offline)) == ([b"body"], 0)
    offline.clock.advance(3 * INTERVAL_MS)
    assert checks(producer) == []


def test_nobody_is_asked_about_what_is_ended_or_new(offline: OfflineBroker, producer: OfflineConnection) -> None:
    halves = [Half(offline, b"%d" % number) for number in range(6)]
    end(offline, halves[0])
    end(offline, halves[1], TRANSACTION_ROLLBACK)
    end(offline, halves[4])
    offline.clock.advance(INTERVAL_MS - 6_000)
    Half(offline, b"new")
    offline.clock.advance(6_000)
    assert [check.message.body for check in checks(producer)] == [b"2", b"3", b"5"]


def test_the_time_out_is_a_setting() -> None:
    offline = started(transaction_time_out=40_000, transaction_check_interval=10_000)
    producer = joined(offline)
    Half(offline)
    offline.clock.advance(40_000)
    assert checks(producer) == []
    offline.clock.advance(10_000)
    assert len(checks(producer)) == 1


def test_one_that_nobody_shall_ask_about_yet_does_not_hold_up_others(
    offline: OfflineBroker, producer: OfflineConnection
) -> None:
    Half(offline, b"immune", CHECK_IMMUNITY_TIME_IN_SECONDS="100")
    Half(offline, b"other")
    offline.clock.advance(INTERVAL_MS)
    [check] = checks(producer)
    assert check.message.body == b"other"
    end(offline, check)
    offline.clock.advance(2 * INTERVAL_MS)
    assert checks(producer) == []
    assert len(offline.stored(HALF_TOPIC)) == 3, "it is not written again while it waits"
    offline.clock.advance(INTERVAL_MS)
    assert [check.message.body for check in checks(producer)] == [b"immune"]


def test_nobody_is_asked_for_three_days_at_most(offline: OfflineBroker) -> None:
    Half(offline, CHECK_IMMUNITY_TIME_IN_SECONDS="999999999")
    offline.clock.advance(72 * 3_600_000)
    assert len(offline.stored(HALF_TOPIC)) == 1
    offline.clock.advance(INTERVAL_MS)
    assert len(offline.stored(HALF_TOPIC)) == 2


def test_another_producer_of_the_group_is_asked_when_the_first_is_gone(offline: OfflineBroker) -> None:
    first, second, stranger = joined(offline, "a"), joined(offline, "bb"), joined(offline, "ccc", "others")
    Half(offline)
    offline.ask(RequestCode.UNREGISTER_CLIENT, {"clientID": "a", "producerGroup": "producers"}, connection=first)
    offline.clock.advance(INTERVAL_MS)
    assert (checks(first), checks(stranger)) == ([], [])
    [check] = checks(second)
    assert end(offline, check).code == 0


def test_producers_are_asked_in_turn(offline: OfflineBroker) -> None:
    producers = [joined(offline, "x" * length) for length in (1, 2, 3)]
    for number in range(9):
        Half(offline, b"%d" % number)
    offline.clock.advance(INTERVAL_MS)
    assert [len(checks(producer)) for producer in producers] == [3, 3, 3]


def test_one_that_was_asked_about_too_often_is_given_up_and_brought_back() -> None:
    offline = started(transaction_check_max=2)
    producer = joined(offline)
    Half(offline, b"body")
    offline.clock.advance(3 * INTERVAL_MS)
    assert len(checks(producer)) == 2
    [given_up] = offline.stored(TRANS_CHECK_MAX_TIME_TOPIC)
    assert (given_up.body, pairs(given_up)["TRANSACTION_CHECK_TIMES"]) == (b"body", "2")
    assert (pending(offline), orders(offline)) == (0, [])
    offline.clock.advance(3 * INTERVAL_MS)
    assert checks(producer) == []

    message_id = record.offset_message_id(given_up.store_host, given_up.commit_log_offset)
    resume = RequestCode.RESUME_CHECK_HALF_MESSAGE
    assert offline.ask(resume, {"topic": TRANS_CHECK_MAX_TIME_TOPIC, "msgId": message_id}).code == 0
    assert pending(offline) == 1
    producer = joined(offline)
    offline.clock.advance(INTERVAL_MS)
    [check] = checks(producer)
    assert end(offline, check).code == 0
    assert (orders(offline), pending(offline)) == ([b"body"], 0)


def test_only_half_messages_are_brought_back(offline: OfflineBroker, producer: OfflineConnection) -> None:
    half, resume = Half(offline), RequestCode.RESUME_CHECK_HALF_MESSAGE
    sent = offline.send("orders", REAL_TOPIC="orders", REAL_QID="0").fields["msgId"]
    for message_id in (sent, sent[:-2] + "01"):
        assert offline.ask(resume, {"msgId": message_id}).code == ResponseCode.SYSTEM_ERROR
    assert offline.ask(resume, {"msgId": half.sent.fields["msgId"]}).code == 0
    offline.clock.advance(INTERVAL_MS)
    [check] = checks(producer)
    end(offline, check)
    assert offline.ask(resume, {"msgId": half.sent.fields["msgId"]}).code == ResponseCode.SYSTEM_ERROR


def test_what_is_ended_by_itself_after_it_was_asked_about_is_not_asked_about_again(
    offline: OfflineBroker, producer: OfflineConnection
) -> None:
    half = Half(offline)
    offline.clock.advance(2 * INTERVAL_MS)
    first, second = checks(producer)
    assert end(offline, half).code == 0
    offline.clock.advance(2 * INTERVAL_MS)
    assert (checks(producer), pending(offline)) == ([], 0)
    assert [end(offline, check).code for check in (first, second)] == [0, 0]
    assert len(orders(offline)) == 1, "who answers late does not make it come again"


def test_many_are_looked_at_in_batches(offline: OfflineBroker, producer: OfflineConnection) -> None:
    for number in range(700):
        half = Half(offline, b"%d" % number, CHECK_IMMUNITY_TIME_IN_SECONDS="50" if number % 2 else "7")
        if number % 7 == 0:
            end(offline, half)
    offline.clock.advance(INTERVAL_MS)
    asked = [int(check.message.body) for check in checks(producer)]
    assert asked == [number for number in range(0, 700, 2) if number % 7]
    offline.clock.advance(INTERVAL_MS)
    asked = [int(check.message.body) for check in checks(producer)]
    assert sorted(asked) == [number for number in range(700) if number % 7]


def test_nothing_runs_while_nothing_is_pending(offline: OfflineBroker) -> None:
    offline.clock.advance(60_000)
    half = Half(offline)
    end(offline, half)
    offline.clock.advance(60_000)
    before = offline.store.found + offline.store.missed
    transactions = offline.broker.transactions
    offline.clock.advance(3_600_000)
    assert transactions._timer is None
    assert offline.store.found + offline.store.missed == before


# ---------------------------------------------------------------------------------------------------------- op messages


def test_commits_are_written_together_after_a_while(offline: OfflineBroker) -> None:
    for half in [Half(offline) for _ in range(3)]:
        end(offline, half)
    offline.clock.advance(2_999)
    assert ops(offline) == []
    offline.clock.advance(1)
    [op] = offline.stored(OP_HALF_TOPIC)
    assert (op.body, pairs(op), op.sys_flag) == (b"0,1,2,", {"TAGS": "d"}, 0)


def test_many_commits_are_written_at_once() -> None:
    offline = started(transaction_op_msg_max_size=8)
    for half in [Half(offline) for _ in range(9)]:
        end(offline, half)
    assert ops(offline) == [b"0,1,2,3,", b"4,5,6,7,"]


def test_the_offsets_of_the_group_follow(offline: OfflineBroker) -> None:
    def offsets() -> tuple[int, int]:
        get = offline.broker.offsets.get
        return get(TRANSACTION_GROUP, HALF_TOPIC, 0), get(TRANSACTION_GROUP, OP_HALF_TOPIC, 0)

    first, second = Half(offline, CHECK_IMMUNITY_TIME_IN_SECONDS="120"), Half(offline)
    end(offline, second)
    offline.clock.advance(INTERVAL_MS)
    assert offsets() == (0, 0)
    end(offline, first)
    offline.clock.advance(INTERVAL_MS)
    assert offsets() == (2, 2)


# ------------------------------------------------------------------------------------------------------------ restarts


def test_a_restart_at_each_step(offline: OfflineBroker) -> None:
    offline.settings = {"transaction_check_max": 2}
    half = Half(offline, b"one")
    Half(offline, b"two")
    offline = offline.restart()
    assert pending(offline) == 2
    assert end(offline, half).code == 0
    offline = offline.restart()
    producer = joined(offline)
    offline.clock.advance(INTERVAL_MS)
    [check] = checks(producer)
    assert check.message.body == b"two"
    offline = offline.restart()
    producer = joined(offline)
    offline.clock.advance(INTERVAL_MS)
    [check] = checks(producer)
    assert pairs(check.message)["TRANSACTION_CHECK_TIMES"] == "2"
    offline = offline.restart()
    offline.clock.advance(INTERVAL_MS)
    assert len(offline.stored(TRANS_CHECK_MAX_TIME_TOPIC)) == 1
    assert end(offline, check).code == 0, "better late than lost"
    offline = offline.restart()
    producer = joined(offline)
    offline.clock.advance(3 * INTERVAL_MS)
    assert (checks(producer), orders(offline), pending(offline)) == ([], [b"one", b"two"], 0)


def test_what_was_ended_behind_a_pending_one_stays_ended(offline: OfflineBroker) -> None:
    Half(offline, b"immune", CHECK_IMMUNITY_TIME_IN_SECONDS="200")
    for number in range(5):
        half = Half(offline, b"%d" % number)
        if number % 2:
            end(offline, half, TRANSACTION_ROLLBACK)
    producer = joined(offline)
    offline.clock.advance(INTERVAL_MS)
    for check in checks(producer):
        end(offline, check)
    offline = offline.restart()
    offline.clock.advance(5 * INTERVAL_MS)
    producer = joined(offline)
    offline.clock.advance(INTERVAL_MS)
    assert [check.message.body for check in checks(producer)] == [b"immune"]
    assert sorted(orders(offline)) == [b"0", b"2", b"4"]


def test_a_copy_is_known_as_one_after_a_restart(offline: OfflineBroker) -> None:
    half = Half(offline)
    offline.clock.advance(INTERVAL_MS)
    end(offline, half)
    offline = offline.restart()
    producer = joined(offline)
    offline.clock.advance(2 * INTERVAL_MS)
    assert (checks(producer), pending(offline), len(orders(offline))) == ([], 0, 1)


# ------------------------------------------------------------------------------------------------------------- parts


def test_offsets_that_are_done_with() -> None:
    done = Done(10)
    for offset in (11, 12, 13, 20, 27, 30_000):
        done.add(offset)
    assert (done.low, done.next_gap(10), done.next_gap(11), done.next_gap(20), done.next_gap(0)) == (10, 10, 14, 21, 10)
    done.add(10)
    assert done.low == 14
    assert [offset in done for offset in (9, 13, 14, 20, 26, 27, 30_000, 30_001)] == [
        True, True, False, True, False, True, True, False
    ]  # fmt: skip
    for offset in range(60_000):
        done.add(offset)
    assert (done.low, len(done._bits)) == (60_000, 1)
    done.add(60_005)
    assert (done.next_gap(60_005), done.next_gap(70_000)) == (60_006, 70_000)


def test_what_apache_wrote_again_before_anybody_may_be_asked(offline: OfflineBroker) -> None:
    """Its broker counts that as a check."""
    begun_ms = offline.clock.now_ms()
    properties = names.encode(
        {
            "UNIQ_KEY": "KEY", "TRAN_MSG": "true", "PGROUP": "producers", "CHECK_IMMUNITY_TIME_IN_SECONDS": "70",
            "REAL_TOPIC": "orders", "REAL_QID": "2", "TRANSACTION_CHECK_TIMES": "1", "TRAN_PREPARED_QUEUE_OFFSET": "7",
        }
    )  # fmt: skip
    offline.clock.advance(20_000)
    offline.store.append([Message(HALF_TOPIC, 0, b"x", properties, begun_ms, bytes(8))])
    offline.clock.run_soon()
    producer = joined(offline)
    offline.clock.advance(INTERVAL_MS)
    assert checks(producer) == []
    offline.clock.advance(INTERVAL_MS)
    assert len(checks(producer)) == 1


def test_who_is_slow_to_read_is_not_asked_more(offline: OfflineBroker, caplog: pytest.LogCaptureFixture) -> None:
    slow, other = joined(offline, "a"), joined(offline, "bb")
    for number in range(4):
        Half(offline, b"%d" % number)
    slow._behind = True
    offline.clock.advance(INTERVAL_MS)
    assert (len(checks(slow)), len(checks(other))) == (0, 4)
    other._behind = True
    for number in range(40):
        Half(offline, b"%d" % number)
    offline.clock.advance(INTERVAL_MS + 50)
    assert offline.broker.transactions._pass is not None, "it waits"
    slow._behind = False
    offline.clock.advance(100)
    assert len(checks(slow)) == 12
    assert "1 producer groups are pending, and nobody can be asked: producers" in caplog.text
