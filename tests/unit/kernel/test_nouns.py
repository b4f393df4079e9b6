"""Names, addresses, properties, handles and filters."""

from base64 import urlsafe_b64encode

import pytest

from saturnmq.kernel import properties
from saturnmq.kernel.errors import IllegalFilter, IllegalGroup, IllegalTopic, InvalidReceiptHandle, InvalidTransactionId
from saturnmq.kernel.handle import ReceiptHandle, TopicKind, TransactionHandle
from saturnmq.kernel.host import Address, pack, unpack
from saturnmq.kernel.metrics import Metrics, together
from saturnmq.kernel.subscription import subscribe, tag_hash
from saturnmq.kernel.topic import TopicConfig, check_group, check_topic, is_system_topic, pop_retry_topic


@pytest.mark.parametrize("text", ["127.0.0.1:80", "[::1]:10911", "broker.example:1"])
def test_addresses_round_trip(text: str) -> None:
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize("text", ["", "host", "host:", ":80", "host:99999", "host:-1", "host:٣"])
def test_bad_addresses_say_so(text: str) -> None:
    with pytest.raises(ValueError, match="host"):
        Address.parse(text)


def test_packed_hosts() -> None:
    assert pack(Address("127.0.0.1", 10911)) == bytes([127, 0, 0, 1, 0, 0, 0x2A, 0x9F])
    assert len(pack(Address("::1", 1))) == 20
    assert unpack(pack(Address("::1", 1))) == Address("::1", 1)
    assert pack(Address("a-name", 5)) == bytes([0, 0, 0, 0, 0, 0, 0, 5])


def test_properties_round_trip_and_tolerate_a_missing_end() -> None:
    pairs = {"KEYS": "a b", "TAGS": "t", "émoji": "☄"}
    assert properties.decode(properties.encode(pairs)) == pairs
    assert properties.decode(properties.encode(pairs)[:-1]) == pairs
    assert properties.decode(b"") == {}


# Java: "TagA".hashCode() etc.
@pytest.mark.parametrize(("tag", "code"), [("", 0), ("a", 97), ("TagA", 2598919), ("rocketmq-tag", -1463410402)])
def test_tag_hash_is_javas(tag: str, code: int) -> None:
    def java(text: str) -> int:
        value = 0
        for character in text:
            value = (31 * value + ord(character)) % (1 << 32)
        return value - (1 << 32) if value >= 1 << 31 else value

    assert tag_hash(tag) == java(tag)
    if tag in ("", "a", "TagA"):
        assert tag_hash(tag) == code


def test_filters() -> None:
    assert subscribe("t", "*").takes_all
    assert subscribe("t", None).takes_all
    assert subscribe("t", " a||b ").tags == {"a", "b"}
    assert subscribe("t", "a").codes == {97}
    with pytest.raises(IllegalFilter, match="names no tag"):
        subscribe("t", "||")
    by_properties = subscribe("t", " a > 1 ", "SQL92")
    assert by_properties.matches is not None
    assert by_properties.matches(properties.encode({"a": "2"}))
    assert (by_properties.expression, by_properties.tags, by_properties.takes_all) == ("a > 1", frozenset(), False)
    for nothing in (None, "", " "):
        with pytest.raises(IllegalFilter, match="found the end"):
            subscribe("t", nothing, "SQL92")
    with pytest.raises(IllegalFilter, match="unknown"):
        subscribe("t", "a", "REGEX")


def test_handles_round_trip_and_bad_ones_say_why() -> None:
    handle = ReceiptHandle(
        start_offset=1, pop_ms=2, invisible_ms=3, revive_queue_id=4, topic_kind=TopicKind.RETRY,
        broker_name="broker-a", queue_id=5, queue_offset=6, commit_log_offset=7,
    )  # fmt: skip
    assert handle.encode() == "1 2 3 4 1 broker-a 5 6 7"
    assert ReceiptHandle.decode(handle.encode()) == handle
    assert ReceiptHandle.decode("1 2 3 4 1 broker-a 5 6").commit_log_offset == -1
    assert handle.visible_again_ms == 5
    for text in ("", "1 2", "a b c d e f g h", "1 2 3 4 9 broker-a 5 6 7"):
        with pytest.raises(InvalidReceiptHandle):
            ReceiptHandle.decode(text)


def test_names() -> None:
    check_topic("%RETRY%group_topic-1")
    check_group("group")
    for bad in ("", " ", "a b", "a" * 128, "é"):
        with pytest.raises(IllegalTopic):
            check_topic(bad)
    for bad in ("", "a/b", "a" * 121):
        with pytest.raises(IllegalGroup):
            check_group(bad)
    assert is_system_topic("rmq_sys_wheel_timer")
    assert not is_system_topic("orders")
    assert pop_retry_topic("g", "t") == "%RETRY%g_t"
    assert pop_retry_topic("g", "t", v2=True) == "%RETRY%g+t"


def test_topic_types() -> None:
    assert TopicConfig(topic_name="t").message_type == "NORMAL"
    assert TopicConfig(topic_name="t", attributes={"message.type": "FIFO"}).message_type == "FIFO"
    assert TopicConfig(topic_name="t", attributes={"message.type": "LITE"}).message_type == "UNSPECIFIED"


def test_metrics_page() -> None:
    metrics = Metrics()
    counter = metrics.counter("c_total", "what it counts", ("topic",))
    counter.add(('a"b',))
    counter.add(('a"b',), 2)
    metrics.gauge("g", "how many", lambda: 5)
    assert "".join(metrics.lines()) == (
        '# HELP c_total what it counts\n# TYPE c_total counter\nc_total{topic="a\\"b"} 3\n'
        "# HELP g how many\n# TYPE g gauge\ng 5\n"
    )


def test_a_histogram() -> None:
    metrics = Metrics()
    histogram = metrics.histogram("h", "how long", (5, 60), ("topic",))
    for value in (0, 5, 6, 61):
        histogram.add(value, ("a",))
    page = "".join(metrics.lines())
    assert page == (
        '# HELP h how long\n# TYPE h histogram\nh_bucket{topic="a",le="5.0"} 2\nh_bucket{topic="a",le="60.0"} 3\n'
        'h_bucket{topic="a",le="+Inf"} 4\nh_count{topic="a"} 4\nh_sum{topic="a"} 72\n'
    )
    assert together("worker", {"1": page, "2": page}).count("h_count{worker=") == 2


def test_transaction_handles() -> None:
    handle = TransactionHandle(broker_name="b", half_offset=7, commit_log_offset=1 << 40, message_id="01 AB")
    assert TransactionHandle.decode(handle.encode()) == handle


@pytest.mark.parametrize(
    "text", ["v1 b 1 2", "v2 b 1 2 id", "v1 b x 2 id", "v1 b -1 2 id", f"v1 b 1 {1 << 63} id", "", "é"]
)
def test_what_is_no_transaction_handle(text: str) -> None:
    for forged in (urlsafe_b64encode(text.encode()).decode(), text):
        with pytest.raises(InvalidTransactionId):
            TransactionHandle.decode(forged)
