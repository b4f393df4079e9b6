"""SendMessage: what is checked, what is stored, which queue it goes to, what is answered."""

from __future__ import annotations

from typing import Any

import pytest
from proxy_fakes import Grpc, message

from saturnmq.kernel import properties as props
from saturnmq.kernel.config import ProxyConfig
from saturnmq.kernel.errors import FlushTimeout, IllegalOperation, ServiceUnavailable
from saturnmq.kernel.handle import RecallHandle
from saturnmq.kernel.host import Address, pack
from saturnmq.kernel.later import Later
from saturnmq.kernel.message import COMPRESSED
from saturnmq.kernel.ports import SendReceipt
from saturnmq.wire.proto import rocketmq_pb2 as pb

NOW_MS = 1_700_000_000_000


@pytest.fixture
def client() -> Grpc:
    client = Grpc()
    client.broker.add_topic("t", write_queue_nums=4)
    return client


def send(client: Grpc, *messages: pb.Message) -> pb.SendMessageResponse:
    return client.ask("SendMessage", pb.SendMessageRequest(messages=messages), pb.SendMessageResponse)


def refused(client: Grpc, *messages: pb.Message) -> pb.Status:
    response = send(client, *messages)
    assert not response.entries
    assert not client.broker.sent
    assert response.status.message
    return response.status


def test_the_answer(client: Grpc) -> None:
    response = send(client, message(message_id="id-1"))
    assert response.status == pb.Status(code=pb.OK, message="OK")
    assert list(response.entries) == [
        pb.SendResultEntry(status=pb.Status(code=pb.OK, message="OK"), message_id="id-1", offset=1)
    ]


def test_what_is_stored(client: Grpc) -> None:
    sent = message(
        message_id="id-1",
        tag="red",
        keys=["k1", "k2"],
        trace_context="00-1-2-01",
        born_timestamp={"seconds": 1_600_000_000, "nanos": 7_000_000},
        born_host="laptop",
        delivery_attempt=2,
        body_encoding=pb.GZIP,
    )
    sent.user_properties["colour"] = "dark"
    send(client, sent)
    (request,) = client.broker.sent
    (stored,) = request.messages
    assert request.producer_group == "t"
    assert not request.batch
    assert (stored.topic, stored.body, stored.sys_flag) == ("t", b"hello", COMPRESSED)
    assert stored.born_ms == 1_600_000_000_007
    assert stored.born_host == pack(Address("10.0.0.9", 5000))
    assert props.decode(stored.properties) == request.properties
    assert request.properties == {
        "colour": "dark",
        "TAGS": "red",
        "KEYS": "k1 k2",
        "UNIQ_KEY": "id-1",
        "RECONSUME_TIME": "2",
        "PGROUP": "t",
        "TRACE_CONTEXT": "00-1-2-01",
        "__BORNHOST": "laptop",
        "BORN_TIMESTAMP": "1600000000007",
    }


def test_a_client_that_says_little(client: Grpc) -> None:
    send(client, message(born_host=""))
    (stored,) = client.broker.sent[0].messages
    assert stored.born_ms == NOW_MS
    assert client.broker.sent[0].properties["__BORNHOST"] == "10.0.0.9:5000"


LONG = "x" * 16_384

LIMITS: list[tuple[str, dict[str, Any], dict[str, str], pb.Code]] = [
    ("blank tag", {"tag": "  "}, {}, pb.ILLEGAL_MESSAGE_TAG),
    ("tag with a bar", {"tag": "a|b"}, {}, pb.ILLEGAL_MESSAGE_TAG),
    ("tag with a control character", {"tag": "a\u0085"}, {}, pb.ILLEGAL_MESSAGE_TAG),
    ("blank key", {"keys": ["a", " "]}, {}, pb.ILLEGAL_MESSAGE_KEY),
    ("key with a control character", {"keys": ["a\n"]}, {}, pb.ILLEGAL_MESSAGE_KEY),
    ("no message id", {"message_id": ""}, {}, pb.ILLEGAL_MESSAGE_ID),
    ("blank message id", {"message_id": " "}, {}, pb.ILLEGAL_MESSAGE_ID),
    ("message id that would forge properties", {"message_id": "a\x02WAIT\x01x"}, {}, pb.ILLEGAL_MESSAGE_ID),
    ("trace context that would forge properties", {"trace_context": "a\x02b\x01c"}, {}, pb.BAD_REQUEST),
    ("born host that would forge properties", {"born_host": "a\x02b\x01c"}, {}, pb.BAD_REQUEST),
    ("blank group", {"message_group": " "}, {}, pb.ILLEGAL_MESSAGE_GROUP),
    ("group of 64 bytes", {"message_group": "g" * 64}, {}, pb.ILLEGAL_MESSAGE_GROUP),
    ("group of 64 bytes in 22 characters", {"message_group": "组" * 21 + "g"}, {}, pb.ILLEGAL_MESSAGE_GROUP),
    ("group with a control character", {"message_group": "\x7f"}, {}, pb.ILLEGAL_MESSAGE_GROUP),
    ("reserved key", {}, {"UNIQ_KEY": "x"}, pb.ILLEGAL_MESSAGE_PROPERTY_KEY),
    ("control character in a key", {}, {"a\x01": "x"}, pb.ILLEGAL_MESSAGE_PROPERTY_KEY),
    ("control character in a value", {}, {"a": "x\x9f"}, pb.ILLEGAL_MESSAGE_PROPERTY_KEY),
    ("129 properties", {}, {str(i): "" for i in range(129)}, pb.MESSAGE_PROPERTIES_TOO_LARGE),
    ("properties too long by one", {"tag": "t"}, {"k": LONG[2:] + "x"}, pb.MESSAGE_PROPERTIES_TOO_LARGE),
    ("properties too long in bytes", {}, {"k": "组" * 5462}, pb.MESSAGE_PROPERTIES_TOO_LARGE),
    ("due in over a day", {"delivery_timestamp": {"seconds": 1_700_086_401}}, {}, pb.ILLEGAL_DELIVERY_TIME),
]


@pytest.mark.parametrize(("system", "user", "code"), [row[1:] for row in LIMITS], ids=[row[0] for row in LIMITS])
def test_broken_limits(client: Grpc, system: dict[str, Any], user: dict[str, str], code: pb.Code) -> None:
    bad = message(**system)
    bad.user_properties.update(user)
    assert refused(client, bad).code == code


KEPT: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    ("group of 63 bytes", {"message_group": "g" * 63}, {}),
    ("128 properties", {}, {str(i): "" for i in range(128)}),
    ("properties as long as they may be", {"tag": "t"}, {"k": LONG[2:]}),
    ("unicode", {"tag": "标签", "keys": ["键"]}, {"属性": "值 with spaces"}),
]


@pytest.mark.parametrize(("system", "user"), [row[1:] for row in KEPT], ids=[row[0] for row in KEPT])
def test_kept_limits(system: dict[str, Any], user: dict[str, str]) -> None:
    client = Grpc()
    client.broker.add_topic("t", "MIXED")
    good = message(**system)
    good.user_properties.update(user)
    assert send(client, good).status.code == pb.OK


def test_bodies(client: Grpc) -> None:
    limit = 4 * 1024 * 1024
    assert refused(client, message(body=b"")).code == pb.MESSAGE_BODY_EMPTY
    too_large = refused(client, message(body=bytes(limit + 1)))
    assert too_large.code == pb.MESSAGE_BODY_TOO_LARGE
    assert str(limit) in too_large.message
    assert refused(client, message(body=bytes(2 * limit))).code == pb.MESSAGE_BODY_TOO_LARGE
    assert send(client, message(body=bytes(limit))).status.code == pb.OK


def test_limits_that_are_switched_off() -> None:
    client = Grpc(
        ProxyConfig(
            max_message_size=10 << 20,
            max_user_property_size=0,
            user_property_max_num=0,
            max_message_group_size=200,
            enable_message_body_empty_check=False,
            enable_topic_message_type_check=False,
        )
    )
    client.broker.add_topic("t")
    big = message(body=bytes(5 << 20), message_group="g" * 100)
    big.user_properties.update({str(i): LONG[:200] for i in range(200)})
    assert send(client, big).status.code == pb.OK
    assert send(client, message(body=b"")).status.code == pb.OK


def test_requests_that_make_no_sense(client: Grpc) -> None:
    assert refused(client).code == pb.MESSAGE_CORRUPTED
    assert refused(client, message("t"), message("u")).code == pb.MESSAGE_CORRUPTED
    assert refused(client, *([message("t")] * 1001)).code == pb.MESSAGE_CORRUPTED
    assert refused(client, message("")).code == pb.ILLEGAL_TOPIC
    assert refused(client, message("a b")).code == pb.ILLEGAL_TOPIC
    assert refused(client, message("x" * 128)).code == pb.ILLEGAL_TOPIC
    assert refused(client, message("TBW102")).code == pb.ILLEGAL_TOPIC
    assert refused(client, message("rmq_sys_x")).code == pb.ILLEGAL_TOPIC


def test_an_unknown_topic(client: Grpc) -> None:
    status = refused(client, message("nowhere"))
    assert status.code == pb.TOPIC_NOT_FOUND
    assert "updateTopic" in status.message
    assert "--dev" in status.message


def test_an_unknown_topic_is_made_with_dev(client: Grpc) -> None:
    client.broker.dev_auto_create = True
    assert send(client, message("new")).status.code == pb.OK
    assert send(client, message("new", message_group="g")).status.code == pb.OK


@pytest.mark.parametrize("kind", [pb.LITE, pb.PRIORITY])
def test_types_of_a_later_version(client: Grpc, kind: pb.MessageType) -> None:
    client.broker.add_topic("t", "MIXED")
    status = refused(client, message(message_type=kind))
    assert status.code == pb.NOT_IMPLEMENTED
    assert "not supported by this version" in status.message


@pytest.mark.parametrize("field", [{"lite_topic": "l"}, {"priority": 1}, {"priority": 0}])
def test_fields_of_a_later_version(client: Grpc, field: dict[str, Any]) -> None:
    assert refused(client, message(**field)).code == pb.NOT_IMPLEMENTED


def at(due_ms: int, topic: str = "later", **fields: Any) -> pb.Message:
    time = {"seconds": due_ms // 1000, "nanos": due_ms % 1000 * 1_000_000}
    return message(topic, message_type=pb.DELAY, delivery_timestamp=time, **fields)


@pytest.mark.parametrize("due_ms", [NOW_MS, NOW_MS - 1, NOW_MS + 1, NOW_MS + 1500, NOW_MS + 86_400_000])
def test_delivery_times(client: Grpc, due_ms: int) -> None:
    client.broker.add_topic("later", "DELAY")
    assert send(client, at(due_ms)).status.code == pb.OK
    sent = client.broker.sent[0]
    assert sent.properties["TIMER_DELIVER_MS"] == str(due_ms)
    assert props.decode(sent.messages[0].properties) == sent.properties
    assert "DELAY" not in sent.properties


def test_too_far_away(client: Grpc) -> None:
    client.broker.add_topic("later", "DELAY")
    status = refused(client, at(NOW_MS + 86_400_001))
    assert status.code == pb.ILLEGAL_DELIVERY_TIME
    assert "maxDelayTimeMills=86400000" in status.message


@pytest.mark.parametrize("days", [40, 366])
def test_the_farthest_time_is_a_setting(days: int) -> None:
    client = Grpc(config=ProxyConfig(max_delay_time_mills=days * 86_400_000))
    client.broker.add_topic("later", "DELAY")
    assert send(client, at(NOW_MS + days * 86_400_000)).status.code == pb.OK
    assert client.broker.sent[0].properties["TIMER_DELIVER_MS"] == str(NOW_MS + days * 86_400_000)


@pytest.mark.parametrize(
    ("wait_ms", "level"), [(-1, 1), (0, 1), (999, 1), (1000, 2), (5000, 3), (7_199_999, 18), (86_400_000, 18)]
)
def test_levels_instead_of_times(wait_ms: int, level: int) -> None:
    client = Grpc(config=ProxyConfig(use_delay_level=True))
    client.broker.add_topic("later", "DELAY")
    assert send(client, at(NOW_MS + wait_ms)).status.code == pb.OK
    assert client.broker.sent[0].properties["DELAY"] == str(level)


def test_several_messages_for_a_time_are_sent_one_by_one(client: Grpc) -> None:
    client.broker.add_topic("later", "DELAY")
    status = refused(client, at(NOW_MS + 1000), at(NOW_MS + 1000))
    assert (status.code, "one by one" in status.message) == (pb.MESSAGE_CORRUPTED, True)


def recall(client: Grpc, topic: str, handle: str) -> pb.RecallMessageResponse:
    request = pb.RecallMessageRequest(topic=pb.Resource(name=topic), recall_handle=handle)
    return client.ask("RecallMessage", request, pb.RecallMessageResponse)


def test_the_recall_handle_comes_back(client: Grpc) -> None:
    client.broker.add_topic("later", "DELAY")
    receipt = SendReceipt(queue_id=0, queue_offset=0, message_id="", commit_log_offset=0, recall_handle="handle")
    client.broker.answers["send"] = [receipt]
    (entry,) = send(client, at(NOW_MS + 1000)).entries
    assert entry.recall_handle == "handle"


@pytest.mark.parametrize("kind", ["DELAY", "MIXED"])
def test_recall(client: Grpc, kind: str) -> None:
    client.broker.add_topic("later", kind)
    handle = RecallHandle.of("later", "broker-a", NOW_MS, "id").encode()
    response = recall(client, "later", handle)
    assert (response.status.code, response.message_id) == (pb.OK, "the id")
    (request,) = client.broker.recalled
    assert (request.topic, request.handle, request.producer_group) == ("later", handle, "later")


@pytest.mark.parametrize(
    ("topic", "handle", "code", "text"),
    [
        ("later", "no handle", pb.PRECONDITION_FAILED, "invalid"),
        ("later", "", pb.PRECONDITION_FAILED, "invalid"),
        ("later", RecallHandle.of("later", "other", 1, "id").encode(), pb.PRECONDITION_FAILED, "other"),
        ("t", RecallHandle.of("t", "broker-a", 1, "id").encode(), pb.MESSAGE_PROPERTY_CONFLICT_WITH_TYPE, "DELAY"),
        ("unknown", RecallHandle.of("unknown", "broker-a", 1, "id").encode(), pb.TOPIC_NOT_FOUND, "unknown"),
        ("", "", pb.ILLEGAL_TOPIC, ""),
    ],
)
def test_recalls_that_are_refused(client: Grpc, topic: str, handle: str, code: pb.Code, text: str) -> None:
    client.broker.add_topic("later", "DELAY")
    status = recall(client, topic, handle).status
    assert (status.code, text in status.message) == (code, True), status.message
    assert client.broker.recalled == []


def test_what_the_broker_says_of_a_recall(client: Grpc) -> None:
    client.broker.add_topic("later", "DELAY")
    client.broker.answers["recall"] = [IllegalOperation("recall failed, timestamp invalid")]
    status = recall(client, "later", RecallHandle.of("later", "broker-a", 1, "id").encode()).status
    assert (status.code, status.message) == (pb.PRECONDITION_FAILED, "recall failed, timestamp invalid")


@pytest.mark.parametrize("seconds", [-(1 << 63), (1 << 63) - 1, 253_402_300_801])
def test_times_that_are_none(client: Grpc, seconds: int) -> None:
    """A clock that is far off is no reason to lose a message; a delivery that is far off is."""
    client.broker.add_topic("later", "DELAY")
    out_of_time = {"seconds": seconds, "nanos": -1}
    assert send(client, message(born_timestamp=out_of_time)).status.code == pb.OK
    (stored,) = client.broker.sent[0].messages
    assert stored.born_ms == NOW_MS
    assert "BORN_TIMESTAMP" not in client.broker.sent[0].properties
    code = send(client, message("later", delivery_timestamp=out_of_time)).status.code
    assert code == (pb.OK if seconds < 0 else pb.ILLEGAL_DELIVERY_TIME)


TYPES = [
    ("NORMAL", {}, True),
    ("NORMAL", {"message_group": "g"}, False),
    ("NORMAL", {"message_type": pb.DELAY}, True),  # what it is called does not count: nothing about it is delayed
    ("FIFO", {}, False),
    ("FIFO", {"message_group": "g"}, True),
    ("DELAY", {}, False),
    ("DELAY", {"delivery_timestamp": {"seconds": 1}}, True),
    ("NORMAL", {"delivery_timestamp": {"seconds": 1}}, False),
    ("TRANSACTION", {}, False),
    ("TRANSACTION", {"message_type": pb.TRANSACTION}, True),
    ("NORMAL", {"message_type": pb.TRANSACTION}, False),
    ("MIXED", {}, True),
    ("MIXED", {"message_group": "g"}, True),
    ("MIXED", {"message_type": pb.TRANSACTION}, True),
    ("MIXED", {"delivery_timestamp": {"seconds": 1}}, True),
    ("SOMETHING_NEW", {}, False),
]


@pytest.mark.parametrize(("topic_type", "system", "accepted"), TYPES)
def test_message_types(client: Grpc, topic_type: str, system: dict[str, Any], accepted: bool) -> None:
    client.broker.add_topic("t", topic_type)
    if accepted:
        assert send(client, message(**system)).status.code == pb.OK
    else:
        assert refused(client, message(**system)).code == pb.MESSAGE_PROPERTY_CONFLICT_WITH_TYPE


def test_dead_letters_and_retries_have_no_type(client: Grpc) -> None:
    for topic in ("%RETRY%g", "%DLQ%g"):
        client.broker.add_topic(topic, "NORMAL")
        assert send(client, message(topic, message_group="g")).status.code == pb.OK


def test_queues_take_turns(client: Grpc) -> None:
    for _ in range(8):
        send(client, message())
    assert [request.messages[0].queue_id for request in client.broker.sent] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_a_message_group_keeps_its_queue(client: Grpc) -> None:
    client.broker.add_topic("t", "FIFO", write_queue_nums=16)
    for group in ("order-4711", "group-1", "order-4711"):
        send(client, message(message_group=group))
    assert [request.messages[0].queue_id for request in client.broker.sent] == [3, 15, 3]


def test_no_queue_to_write_to(client: Grpc) -> None:
    client.broker.add_topic("t", perm=4)
    assert refused(client, message()).code == pb.FORBIDDEN


def test_a_batch(client: Grpc) -> None:
    response = send(client, message(message_id="a"), message(message_id="b"))
    (request,) = client.broker.sent
    assert request.batch
    assert [one.queue_id for one in request.messages] == [0, 0]
    assert [(entry.message_id, entry.offset) for entry in response.entries] == [("a", 1), ("b", 2)]
    assert {entry.status.code for entry in response.entries} == {pb.OK}


def test_a_batch_of_different_groups_would_lose_its_order() -> None:
    client = Grpc()
    client.broker.add_topic("t", "MIXED")
    assert refused(client, message(message_group="a"), message(message_group="b")).code == pb.MESSAGE_CORRUPTED
    assert refused(client, message(message_group="a"), message()).code == pb.MESSAGE_CORRUPTED
    assert send(client, message(message_group="a"), message(message_group="a")).status.code == pb.OK


def test_a_flush_that_takes_its_time(client: Grpc) -> None:
    flushed: Later[SendReceipt] = Later()
    client.broker.answers["send"] = [flushed]
    answers = client.ask_later(
        "SendMessage", pb.SendMessageRequest(messages=[message(message_id="x")]), pb.SendMessageResponse
    )
    assert not answers
    flushed.resolve(SendReceipt(queue_id=0, queue_offset=7, message_id="", commit_log_offset=0, transaction_id="tx"))
    assert answers[0].entries[0].offset == 7
    assert answers[0].entries[0].transaction_id == "tx"


def test_a_flush_that_fails(client: Grpc) -> None:
    flushed: Later[SendReceipt] = Later()
    client.broker.answers["send"] = [flushed]
    answers = client.ask_later("SendMessage", pb.SendMessageRequest(messages=[message()]), pb.SendMessageResponse)
    flushed.fail(FlushTimeout("no fdatasync within 5000 ms"))
    assert answers[0].status.code == pb.MASTER_PERSISTENCE_TIMEOUT
    client.broker.answers["send"] = [ServiceUnavailable("the disk is full")]
    assert send(client, message()).status == pb.Status(code=pb.INTERNAL_SERVER_ERROR, message="the disk is full")


def test_a_bug_reaches_the_server(client: Grpc) -> None:
    flushed: Later[SendReceipt] = Later()
    client.broker.answers["send"] = [flushed]
    client.start("SendMessage", pb.SendMessageRequest(messages=[message()]))
    with pytest.raises(ZeroDivisionError):
        flushed.fail(ZeroDivisionError())


def test_the_client_goes_away(client: Grpc) -> None:
    dropped: list[str] = []
    client.broker.answers["send"] = [Later(lambda: dropped.append("send"))]
    client.start("SendMessage", pb.SendMessageRequest(messages=[message()])).cancel()
    assert dropped == ["send"]


def test_slow_metadata(client: Grpc) -> None:
    config = client.broker.topics["t"]
    found: Later[object] = Later()
    client.broker.answers["topic_config"] = [found]
    answers = client.ask_later("SendMessage", pb.SendMessageRequest(messages=[message()]), pb.SendMessageResponse)
    found.resolve(config)
    assert answers[0].status.code == pb.OK


def test_a_client_without_a_name(client: Grpc) -> None:
    for headers in ({}, {b"x-mq-client-id": b" "}):
        client.headers = headers
        assert refused(client, message()).code == pb.CLIENT_ID_REQUIRED
