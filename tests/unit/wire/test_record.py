"""The record against bytes computed by hand from the layout, and against itself."""

from __future__ import annotations

from contextlib import suppress
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saturnmq.kernel.errors import ProtocolError
from saturnmq.kernel.host import Address, pack
from saturnmq.kernel.message import BORN_HOST_V6, STORE_HOST_V6, Message, StoredMessage
from saturnmq.wire import record

V4 = pack(Address("10.1.2.3", 10911))
V6 = pack(Address("2001:db8::1", 65535))

#: written out from the table of reference/store.md
BY_HAND = bytes.fromhex(
    "00000076"  # 118 bytes
    "daa320a7"  # magic v1
    "3610a686"  # CRC32 of "hello", sign bit cleared
    "00000003"  # queue id
    "00000007"  # flag
    "000000000000000b"  # queue offset
    "0000000000001000"  # physical offset
    "00000000"  # sysFlag
    "0000018bcfe56800"  # born
    "0a01020300002a9f"  # 10.1.2.3:10911
    "0000018bcfe56801"  # stored
    "7f00000100002a9f"  # 127.0.0.1:10911
    "00000002"  # reconsume times
    "0000000000000005"  # prepared transaction offset
    "00000005"
    "68656c6c6f"
    "06"
    "546f70696341"  # TopicA
    "0010"
    "4b455953016b3102" + "5441475301" + "7402" + "58"
)


def message(**changes: object) -> Message:
    fields: dict[str, object] = {
        "topic": "TopicA",
        "queue_id": 3,
        "body": b"hello",
        "properties": b"KEYS\x01k1\x02TAGS\x01t\x02X",
        "born_ms": 1_700_000_000_000,
        "born_host": V4,
        "flag": 7,
        "reconsume_times": 2,
        "prepared_transaction_offset": 5,
    }
    return Message(**(fields | changes))  # type: ignore[arg-type]


def encoded(message: Message, store_host: bytes = pack(Address("127.0.0.1", 10911))) -> bytes:
    return record.encode(
        message, queue_offset=11, commit_log_offset=4096, stored_ms=1_700_000_000_001, store_host=store_host
    )


def test_by_hand() -> None:
    assert crc32(b"hello") & 0x7FFFFFFF == 0x3610A686
    assert encoded(message()) == BY_HAND
    assert record.size_of(message()) == len(BY_HAND) == 0x76


def test_decode_by_hand() -> None:
    stored = record.decode(BY_HAND, check_crc=True)
    assert (stored.topic, stored.queue_id, stored.queue_offset, stored.commit_log_offset) == ("TopicA", 3, 11, 4096)
    assert (stored.body, stored.properties) == (b"hello", b"KEYS\x01k1\x02TAGS\x01t\x02X")
    assert (stored.born_ms, stored.stored_ms) == (1_700_000_000_000, 1_700_000_000_001)
    assert (stored.flag, stored.reconsume_times, stored.prepared_transaction_offset, stored.size) == (7, 2, 5, 0x76)
    assert record.encode_stored(stored) == BY_HAND


@pytest.mark.parametrize(("length", "magic"), [(127, record.MAGIC_V1), (128, record.MAGIC_V2), (255, record.MAGIC_V2)])
def test_a_long_topic_makes_v2(length: int, magic: int) -> None:
    long = encoded(message(topic="t" * length))
    assert int.from_bytes(long[4:8], "big") == magic
    assert len(long) == len(BY_HAND) - 6 + length + (1 if magic == record.MAGIC_V2 else 0)
    assert record.decode(long).topic == "t" * length


def test_a_topic_counts_in_bytes() -> None:
    assert record.decode(encoded(message(topic="é" * 64))).topic == "é" * 64
    assert encoded(message(topic="é" * 64))[4:8] == record.MAGIC_V2.to_bytes(4, "big")


@pytest.mark.parametrize("born", [V4, V6])
@pytest.mark.parametrize("store", [V4, V6])
def test_hosts_set_their_flags(born: bytes, store: bytes) -> None:
    stored = record.decode(encoded(message(born_host=born), store))
    assert (stored.born_host, stored.store_host) == (born, store)
    assert stored.sys_flag == (BORN_HOST_V6 if born is V6 else 0) | (STORE_HOST_V6 if store is V6 else 0)
    assert record.size_of(message(born_host=born), store_host=store) == stored.size


int32 = st.integers(-(2**31), 2**31 - 1)
int64 = st.integers(0, 2**63 - 1)
messages = st.builds(
    Message,
    topic=st.text(st.characters(codec="utf-8"), max_size=300),
    queue_id=st.integers(0, 2**31 - 1),
    body=st.binary(max_size=200),
    properties=st.binary(max_size=200),
    born_ms=int64,
    born_host=st.sampled_from([V4, V6]),
    flag=int32,
    sys_flag=st.sampled_from([0, 1, 4, 8, 12, 128]),
    reconsume_times=int32,
    prepared_transaction_offset=int64,
)


@given(messages, int64, int64, int64, st.sampled_from([V4, V6]))
def test_round_trip(message: Message, queue_offset: int, position: int, stored_ms: int, store_host: bytes) -> None:
    packed = record.encode(
        message, queue_offset=queue_offset, commit_log_offset=position, stored_ms=stored_ms, store_host=store_host
    )
    assert len(packed) == record.size_of(message, store_host=store_host)
    stored = record.decode(packed, check_crc=True)
    assert (stored.topic, stored.body, stored.properties) == (message.topic, message.body, message.properties)
    assert (stored.queue_offset, stored.commit_log_offset, stored.stored_ms) == (queue_offset, position, stored_ms)
    assert (stored.born_host, stored.store_host, stored.flag) == (message.born_host, store_host, message.flag)
    assert record.encode_stored(stored) == packed


@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error(garbage: bytes) -> None:
    for decode in (record.decode, record.split, record.decode_batch):
        with suppress(ProtocolError):
            decode(garbage)


@given(messages, st.data())
def test_a_damaged_record_is_a_protocol_error(message: Message, data: st.DataObject) -> None:
    packed = encoded(message)
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(ProtocolError):
        record.decode(packed[:cut])
    flipped = bytearray(packed)
    flipped[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        result: StoredMessage | None = record.decode(bytes(flipped), check_crc=True)
    except ProtocolError:
        result = None
    assert result is None or record.encode_stored(result)[:4] == packed[:4]


def test_crc_is_checked_when_asked() -> None:
    broken = BY_HAND.replace(b"hello", b"jello")
    assert record.decode(broken).body == b"jello"
    with pytest.raises(ProtocolError, match="at 4096 does not match its CRC"):
        record.decode(broken, check_crc=True)


def test_split() -> None:
    other = encoded(message(body=b""))
    assert record.split(BY_HAND + other + BY_HAND) == [BY_HAND, other, BY_HAND]
    assert record.split(b"") == []
    with pytest.raises(ProtocolError):
        record.split(BY_HAND + other[:-1])


def test_batch_by_hand() -> None:
    body = bytes.fromhex("0000001b 00000000 00000000 00000009 00000002 6869 0003 610162".replace(" ", ""))
    assert record.decode_batch(body) == [record.BatchEntry(9, b"hi", b"a\x01b")]
    assert record.encode_batch([record.BatchEntry(9, b"hi", b"a\x01b")]) == body


@given(st.lists(st.builds(record.BatchEntry, int32, st.binary(max_size=50), st.binary(max_size=50))), st.data())
def test_batch_round_trip(entries: list[record.BatchEntry], data: st.DataObject) -> None:
    body = record.encode_batch(entries)
    assert record.decode_batch(body) == entries
    if body:
        cut = data.draw(st.integers(1, len(body)))
        with suppress(ProtocolError):
            assert len(record.decode_batch(body[:-cut])) < len(entries)


def test_offset_message_id() -> None:
    # UtilAll.bytes2string of ip, port and offset
    assert record.offset_message_id(V4, 0x1234) == "0A01020300002A9F0000000000001234"
    assert record.parse_offset_message_id("0A01020300002A9F0000000000001234") == (V4, 0x1234)
    long = record.offset_message_id(V6, 7)
    assert len(long) == 56
    assert record.parse_offset_message_id(long) == (V6, 7)


@pytest.mark.parametrize("text", ["", "0A", "zz" * 16, "0A01020300002A9F00000000000012 4", "0A" * 17, "٣" * 32])
def test_no_offset_message_id(text: str) -> None:
    with pytest.raises(ProtocolError):
        record.parse_offset_message_id(text)
