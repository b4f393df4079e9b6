"""Topics that store a repeated send once: `dedup.window.seconds`."""

from __future__ import annotations

import pytest

from saturnmq.kernel import properties as names
from saturnmq.kernel.message import Message
from saturnmq.kernel.topic import TopicConfig
from saturnmq.testing.clock import VirtualClock
from saturnmq.testing.offline import Asked, OfflineBroker
from saturnmq.wire.record import BatchEntry, encode_batch
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command

WINDOW_S = 60
SYNC = {"flush_disk_type": "SYNC_FLUSH"}


def broker(seconds: int = WINDOW_S, **settings: object) -> OfflineBroker:
    offline = OfflineBroker(settings=settings, store_settings=SYNC)
    offline.broker.topics.put(TopicConfig(topic_name="orders", attributes={"dedup.window.seconds": str(seconds)}))
    return offline


def send(offline: OfflineBroker, unique_key: str, body: bytes = b"x", *, queue_id: int = 0, **properties: str) -> Asked:
    return offline.send("orders", body, queue_id=queue_id, header=None, **{"UNIQ_KEY": unique_key, **properties})


def bodies(offline: OfflineBroker, *queues: int) -> list[bytes]:
    return [one.body for queue_id in queues or (0,) for one in offline.stored("orders", queue_id)]


def power_cut(offline: OfflineBroker) -> OfflineBroker:
    """Another process on what was synced."""
    clock = VirtualClock(offline.clock.now_ms() + 1)
    return OfflineBroker(
        offline.disk.crashed(), clock, settings=offline.settings, store_settings=offline.store_settings
    )


def test_a_repeated_send_is_answered_as_the_first_and_stored_once() -> None:
    offline = broker()
    send(offline, "OTHER", b"other")
    first = send(offline, "ID", b"first")
    again = send(offline, "ID", b"again", queue_id=3)
    assert (first.code, first.fields) == (0, again.fields)
    assert (first.fields["queueId"], first.fields["queueOffset"]) == ("0", "1")
    assert bodies(offline, 0, 3) == [b"other", b"first"]
    assert 'saturnmq_repeated_messages_total{topic="orders"} 1' in "".join(offline.metrics.lines())
    offline.send("free", UNIQ_KEY="ID")
    offline.send("free", UNIQ_KEY="ID")
    assert len(offline.stored("free")) == 2


def test_the_window_ends() -> None:
    offline = broker()
    send(offline, "ID", b"first")
    offline.clock.advance(WINDOW_S * 1000)
    send(offline, "ID", b"repeated")
    offline.clock.advance(1)
    send(offline, "ID", b"new")
    assert bodies(offline) == [b"first", b"new"]


def test_what_waits_for_its_flush_makes_the_repetition_wait_too() -> None:
    offline = broker()

    def begin(body: bytes) -> Asked:
        fields = {
            "a": "p", "b": "orders", "c": "", "d": "1", "e": "0", "f": "0", "g": "7", "h": "0",
            "i": names.encode({"UNIQ_KEY": "ID"}).decode(),
        }  # fmt: skip
        command = Command(RequestCode.SEND_MESSAGE_V2, 1, fields=fields, body=body)
        return Asked(offline.handlers[command.code](command, offline.connection))

    first, again = begin(b"first"), begin(b"again")
    assert (first.waits, again.waits) == (True, True)
    offline.clock.run_soon()
    assert (first.code, first.fields) == (0, again.fields)
    assert bodies(offline) == [b"first"]


@pytest.mark.parametrize("end", [OfflineBroker.restart, power_cut])
def test_what_was_acknowledged_is_known_after_the_end(end: object) -> None:
    offline = broker()
    send(offline, "OLD", b"old")
    offline.clock.advance(WINDOW_S * 1000 - 5)
    first = send(offline, "ID", b"first", queue_id=2)
    assert callable(end)
    again = end(offline)
    again.clock.advance(10)
    assert send(again, "ID", b"again").fields == first.fields
    send(again, "OLD", b"new")
    assert bodies(again, 0, 2) == [b"old", b"new", b"first"]


def test_a_full_window_refuses_and_names_its_setting() -> None:
    offline = broker(dedup_window_max_messages=2)
    first = send(offline, "A")
    offline.clock.advance(1000)
    send(offline, "B")
    refused = send(offline, "C")
    assert (refused.code, "dedupWindowMaxMessages=2" in refused.remark) == (ResponseCode.SYSTEM_BUSY, True)
    assert send(offline, "A").fields == first.fields, "what is known is answered"
    assert offline.send("free").code == 0, "others have no window"
    offline.clock.advance(WINDOW_S * 1000 - 999)
    assert send(offline, "C").code == 0
    assert len(bodies(offline)) == 3


def test_what_has_no_room_after_a_restart_is_not_let_through() -> None:
    offline = broker()
    for key in "ABC":
        offline.clock.advance(1000)
        send(offline, key)
    offline.stop()
    smaller = OfflineBroker(offline.disk, offline.clock, settings={"dedup_window_max_messages": 2}, store_settings=SYNC)
    assert (send(smaller, "A").code, send(smaller, "C").code) == (0, ResponseCode.SYSTEM_BUSY)
    smaller.clock.advance(WINDOW_S * 1000 - 1)
    assert send(smaller, "C").code == ResponseCode.SYSTEM_BUSY, "it is in the window"
    smaller.clock.advance(1)
    assert send(smaller, "C").code == 0
    assert len(bodies(smaller)) == 4


DELAYS = [{"DELAY": "3"}, {"TIMER_DELAY_MS": "10000"}]


@pytest.mark.parametrize("delay", DELAYS, ids=["level", "time"])
@pytest.mark.parametrize("restarts", [False, True])
def test_a_message_that_waits_counts_from_its_send(delay: dict[str, str], restarts: bool) -> None:
    offline = broker()
    first = send(offline, "ID", b"first", queue_id=2, **delay)
    offline = offline.restart() if restarts else offline
    assert send(offline, "ID", b"again", queue_id=2, **delay).fields == first.fields
    offline.clock.advance(30_000)
    assert bodies(offline, 2) == [b"first"]
    offline = offline.restart() if restarts else offline
    send(offline, "ID", b"in the window")
    offline.clock.advance(WINDOW_S * 1000 - 30_000 + 1)
    send(offline, "ID", b"behind it")
    assert bodies(offline, 2, 0) == [b"first", b"behind it"]


@pytest.mark.parametrize("restarts", [False, True])
def test_what_was_recalled_may_be_sent_again(restarts: bool) -> None:
    offline = broker()
    sent = send(offline, "ID", b"recalled", TIMER_DELAY_MS="10000")
    handle = sent.fields["recallHandle"]
    assert send(offline, "ID", TIMER_DELAY_MS="10000").fields["recallHandle"] == handle
    assert offline.ask(RequestCode.RECALL_MESSAGE, {"topic": "orders", "recallHandle": handle}).code == 0
    offline = offline.restart() if restarts else offline
    send(offline, "ID", b"meant")
    send(offline, "ID", b"repeated")
    offline.clock.advance(20_000)
    assert bodies(offline) == [b"meant"]


def test_of_a_batch_what_is_new_is_stored() -> None:
    offline = broker()

    def batch(*keys: str) -> Asked:
        fields = {"a": "p", "b": "orders", "c": "", "d": 1, "e": 1, "f": 0, "g": 7, "h": 0, "i": "", "m": True}
        entries = [BatchEntry(0, key.encode(), names.encode({"UNIQ_KEY": key} if key else {})) for key in keys]
        return offline.ask(RequestCode.SEND_BATCH_MESSAGE, fields, encode_batch(entries))

    b = send(offline, "B", b"B", queue_id=0)
    first = batch("A", "B", "C", "C", "", "")
    ids = first.fields["msgId"].split(",")
    assert (first.code, len(ids), ids[1], ids[2]) == (0, 6, b.fields["msgId"], ids[3])
    assert bodies(offline, 0, 1) == [b"B", b"A", b"C", b"", b""]
    again = batch("A", "B", "C", "C")
    assert (again.code, again.fields["msgId"].split(",")) == (0, ids[:4])
    assert (again.fields["queueId"], again.fields["queueOffset"]) == ("1", "0")
    assert len(bodies(offline, 0, 1)) == 5


def test_half_messages_and_what_operators_send_again_pass() -> None:
    offline = broker()
    send(offline, "ID", b"first")
    for _ in range(2):
        assert send(offline, "ID", b"half", TRAN_MSG="true", PGROUP="p").code == 0
    assert len(offline.stored("RMQ_SYS_TRANS_HALF_TOPIC")) == 2
    send(offline, "ID", b"resent", DLQ_RESENT="PLACE")
    assert bodies(offline) == [b"first", b"resent"]
    again = offline.restart()
    send(again, "ID", b"again")
    assert bodies(again) == [b"first", b"resent"]


@pytest.mark.parametrize("restarts", [False, True])
def test_a_deleted_topic_takes_its_window_along(restarts: bool) -> None:
    offline = broker()
    send(offline, "ID", b"first")
    send(offline, "LATER", DELAY="5")
    offline.broker.delete_topics(["orders"])
    offline.clock.run_soon()
    offline.broker.topics.put(TopicConfig(topic_name="orders", attributes={"dedup.window.seconds": "60"}))
    offline = offline.restart() if restarts else offline
    send(offline, "ID", b"new")
    send(offline, "LATER", b"too")
    assert bodies(offline) == [b"new", b"too"]


def test_the_attribute() -> None:
    offline = OfflineBroker()

    def update(attributes: str) -> Asked:
        fields = {
            "topic": "orders", "defaultTopic": "TBW102", "readQueueNums": 1, "writeQueueNums": 1, "perm": 6,
            "topicFilterType": "SINGLE_TAG", "topicSysFlag": 0, "order": False, "attributes": attributes,
        }  # fmt: skip
        return offline.ask(RequestCode.UPDATE_AND_CREATE_TOPIC, fields)

    for wrong in ("-1", "604801", "1.5", ""):
        refused = update(f"+dedup.window.seconds={wrong}")
        assert (refused.code, "0 to 604800" in refused.remark) == (ResponseCode.SYSTEM_ERROR, True)
    assert update("+dedup.window.seconds=60").code == 0
    send(offline, "ID")
    send(offline, "ID")
    assert len(bodies(offline)) == 1
    assert update("-dedup.window.seconds").code == 0
    send(offline, "ID")
    assert len(bodies(offline)) == 2
    assert update("+dedup.window.seconds=0").code == 0
    send(offline, "ID")
    assert len(bodies(offline)) == 3


def test_what_only_looks_like_a_message_that_waits_harms_no_start() -> None:
    """Its properties are a client's: others may have written to the queue of the delay level."""
    offline = broker()
    for queue_id in ("", "x", "9" * 30):
        message = Message("SCHEDULE_TOPIC_XXXX", 2, b"x", names.encode({"UNIQ_KEY": "ID"}), 7, bytes(8))
        message.properties += names.encode({"REAL_TOPIC": "orders", **({"REAL_QID": queue_id} if queue_id else {})})
        offline.store.append((message,))
    offline.clock.run_soon()
    again = offline.restart()
    assert send(again, "OTHER").code == 0
