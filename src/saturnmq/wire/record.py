"""The commit-log record, byte for byte Apache's: what is on disk is what a pull answers and what replication ships.

Big endian. v2 differs only in the two bytes of the topic's length; it is written when the topic is over 127 bytes.

    totalSize 4 | magic 4 | bodyCRC 4 | queueId 4 | flag 4 | queueOffset 8 | physicalOffset 8 | sysFlag 4
    bornTimestamp 8 | bornHost 8 or 20 | storeTimestamp 8 | storeHost 8 or 20 | reconsumeTimes 4
    preparedTransactionOffset 8 | bodyLength 4, body | topicLength 1 (v1) or 2 (v2), topic
    propertiesLength 2, properties

A host is the IP and four bytes of port; sysFlag says which of them is IPv6 (20 bytes). bodyCRC is CRC32 with the sign
bit cleared. Source: store/MessageExtEncoder.java, common/message/MessageDecoder.java, store/CommitLog.java.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from struct import Struct, error
from zlib import crc32

import msgspec

from saturnmq.kernel.errors import ProtocolError
from saturnmq.kernel.message import BORN_HOST_V6, STORE_HOST_V6, Message, StoredMessage

MAGIC_V1 = 0xDAA320A7
MAGIC_V2 = 0xDAA320AB
#: the filler at the end of a log file: its size (4) and this
MAGIC_BLANK = 0xCBD43194
BLANK = Struct(">II")

MAX_V1_TOPIC_BYTES = 127
#: their length is a Java short
MAX_PROPERTIES_BYTES = 32767
#: it is a Java int, and what comes from a client may have it already
MAX_RECONSUME_TIMES = 0x7FFFFFFF
#: a record with IPv4 hosts, no body, no topic, no properties
MIN_SIZE = 91

_HOST_BYTES = 8
_HOST_V6_BYTES = 20
#: what comes before the body, by (bornHost is IPv6, storeHost is IPv6)
_HEADS = {
    (born, store): Struct(f">IIIIiqqIq{20 if born else 8}sq{20 if store else 8}siqi")
    for born in (False, True)
    for store in (False, True)
}
_HEAD = _HEADS[False, False]
_pack_head = _HEAD.pack
_HEAD_BYTES = _HEAD.size
_LENGTH = Struct(">H")
_pack_length = _LENGTH.pack
_SYS_FLAG = Struct(">36xI")
#: the bits of sysFlag that are not about hosts; Java's may be negative
_NOT_OF_HOSTS = 0xFFFFFFFF & ~(BORN_HOST_V6 | STORE_HOST_V6)
_BATCH_HEAD = Struct(">IIIiI")
_WHOLE_CRC_KEY = b"__CRC32#\x01"
_WHOLE_CRC_BYTES = len(_WHOLE_CRC_KEY) + 10 + 1
#: behind two IPv4 hosts
_RECONSUME_TIMES = Struct(">72xi").unpack_from


@lru_cache(maxsize=65536)
def _topic_field(topic: str) -> tuple[int, bytes]:
    """The magic that the topic asks for, and its length and bytes as they stand in the record."""
    encoded = topic.encode()
    if len(encoded) <= MAX_V1_TOPIC_BYTES:
        return MAGIC_V1, bytes((len(encoded),)) + encoded
    return MAGIC_V2, _pack_length(len(encoded)) + encoded


def size_of(message: Message, *, store_host: bytes = bytes(_HOST_BYTES)) -> int:
    """Bytes of the record that `encode` makes with this store host."""
    return (
        _HEAD_BYTES - 2 * _HOST_BYTES + len(message.born_host) + len(store_host)
        + len(message.body) + len(_topic_field(message.topic)[1]) + 2 + len(message.properties)
    )  # fmt: skip


def encode(message: Message, *, queue_offset: int, commit_log_offset: int, stored_ms: int, store_host: bytes) -> bytes:
    """The record. The caller has checked the limits: a topic or properties over 32,767 bytes have no encoding."""
    body, properties, born_host = message.body, message.properties, message.born_host
    sys_flag = message.sys_flag & _NOT_OF_HOSTS  # whatever a client says of them
    magic, topic = _topic_field(message.topic)
    if len(born_host) == 8 and len(store_host) == 8:
        pack, head_bytes = _pack_head, _HEAD_BYTES
    else:
        head = _HEADS[len(born_host) == _HOST_V6_BYTES, len(store_host) == _HOST_V6_BYTES]
        pack, head_bytes = head.pack, head.size
        sys_flag |= (BORN_HOST_V6 if len(born_host) == _HOST_V6_BYTES else 0) | (
            STORE_HOST_V6 if len(store_host) == _HOST_V6_BYTES else 0
        )
    return b"".join(
        (
            pack(
                head_bytes + len(body) + len(topic) + 2 + len(properties),
                magic,
                crc32(body) & 0x7FFFFFFF,
                message.queue_id,
                message.flag,
                queue_offset,
                commit_log_offset,
                sys_flag,
                message.born_ms,
                born_host,
                stored_ms,
                store_host,
                message.reconsume_times,
                message.prepared_transaction_offset,
                len(body),
            ),
            body,
            topic,
            _pack_length(len(properties)),
            properties,
        )
    )


def encode_stored(stored: StoredMessage) -> bytes:
    """The record of a message that is already stored, at the same offsets: to answer it under another topic."""
    message = Message(
        stored.topic,
        stored.queue_id,
        stored.body,
        stored.properties,
        stored.born_ms,
        stored.born_host,
        stored.flag,
        stored.sys_flag,
        stored.reconsume_times,
        stored.prepared_transaction_offset,
    )
    return encode(
        message,
        queue_offset=stored.queue_offset,
        commit_log_offset=stored.commit_log_offset,
        stored_ms=stored.stored_ms,
        store_host=stored.store_host,
    )


def decode(record: bytes, *, check_crc: bool = False) -> StoredMessage:
    """The message of exactly one record. Raises ProtocolError when the bytes are none, or its body is damaged."""
    try:
        (sys_flag,) = _SYS_FLAG.unpack_from(record)
        head = _HEADS[sys_flag & BORN_HOST_V6 != 0, sys_flag & STORE_HOST_V6 != 0]
        (
            size, magic, body_crc, queue_id, flag, queue_offset, commit_log_offset, sys_flag,
            born_ms, born_host, stored_ms, store_host, reconsume_times, prepared_transaction_offset, body_length,
        ) = head.unpack_from(record)  # fmt: skip
        topic_at = head.size + body_length
        if magic == MAGIC_V1:
            topic_length = record[topic_at]
            topic_at += 1
        elif magic == MAGIC_V2:
            (topic_length,) = _LENGTH.unpack_from(record, topic_at)
            topic_at += 2
        else:
            raise ProtocolError(f"a record cannot begin with magic 0x{magic:08X}")
        properties_at = topic_at + topic_length + 2
        (properties_length,) = _LENGTH.unpack_from(record, properties_at - 2)
        topic = record[topic_at : properties_at - 2].decode()
    except (error, IndexError) as short:
        raise ProtocolError(f"a record of {len(record)} bytes is too short: {short}") from None
    except UnicodeDecodeError:
        raise ProtocolError("the topic of a record is not UTF-8") from None
    if body_length < 0 or size != len(record) or size != properties_at + properties_length:
        raise ProtocolError(
            f"a record says {size} bytes, its fields take {properties_at + properties_length}, {len(record)} are there"
        )
    body = record[head.size : head.size + body_length]
    if check_crc and crc32(body) & 0x7FFFFFFF != body_crc:
        raise ProtocolError(f"the body of the record at {commit_log_offset} does not match its CRC")
    return StoredMessage(
        topic=topic,
        queue_id=queue_id,
        queue_offset=queue_offset,
        commit_log_offset=commit_log_offset,
        body=body,
        body_crc=body_crc,
        properties=record[properties_at:],
        flag=flag,
        sys_flag=sys_flag,
        born_ms=born_ms,
        born_host=born_host,
        stored_ms=stored_ms,
        store_host=store_host,
        reconsume_times=reconsume_times,
        prepared_transaction_offset=prepared_transaction_offset,
        size=size,
    )


def whole_crc(record: bytes) -> bool | None:
    """Whether the CRC that Apache puts into the properties of each record (enabledAppendPropCRC=true) is that of all
    bytes before it; None when there is none. Its ten digits stand in reverse order."""
    tail = record[-_WHOLE_CRC_BYTES:]
    digits = tail[len(_WHOLE_CRC_KEY) : -1]
    if not tail.startswith(_WHOLE_CRC_KEY):
        return None
    return (
        digits.isdigit()
        and tail.endswith(b"\x02")
        and int(digits[::-1]) == crc32(record[:-_WHOLE_CRC_BYTES]) & 0x7FFFFFFF
    )


def reconsume_times(record: bytes) -> int:
    """That one field, of a record that is known to be whole."""
    v6_hosts = record[39] & (BORN_HOST_V6 | STORE_HOST_V6)
    if v6_hosts:
        record = record[24:] if v6_hosts == BORN_HOST_V6 | STORE_HOST_V6 else record[12:]
    times: int = _RECONSUME_TIMES(record)[0]
    return times


def properties_of(record: bytes) -> bytes:
    """They alone, as they are packed, of a record that is known to be whole."""
    v6_hosts = record[39] & (BORN_HOST_V6 | STORE_HOST_V6)
    at = _HEAD_BYTES
    if v6_hosts:
        at += 24 if v6_hosts == BORN_HOST_V6 | STORE_HOST_V6 else 12
    at += int.from_bytes(record[at - 4 : at], "big")
    if record[7] == MAGIC_V1 & 0xFF:
        return record[at + 3 + record[at] :]
    return record[at + 4 + int.from_bytes(record[at : at + 2], "big") :]


def split(records: bytes) -> list[bytes]:
    """The records of a pull reply. Raises ProtocolError when the bytes do not end with a record's end."""
    found, at = [], 0
    while at < len(records):
        size = int.from_bytes(records[at : at + 4], "big")
        if size < MIN_SIZE or at + size > len(records):
            raise ProtocolError(f"a record of {size} bytes at {at} does not fit into {len(records)}")
        found.append(records[at : at + size])
        at += size
    return found


class BatchEntry(msgspec.Struct, gc=False):
    """One message of a batch that a client sends under one header (Remoting code 320)."""

    flag: int
    body: bytes
    properties: bytes


def encode_batch(entries: Sequence[BatchEntry]) -> bytes:
    """Repeated: totalSize 4 | magic 4 (0) | CRC 4 (0) | flag 4 | bodyLength 4, body | propertiesLength 2, properties"""
    parts: list[bytes] = []
    for entry in entries:
        size = _BATCH_HEAD.size + len(entry.body) + 2 + len(entry.properties)
        parts.append(_BATCH_HEAD.pack(size, 0, 0, entry.flag, len(entry.body)))
        parts += (entry.body, _pack_length(len(entry.properties)), entry.properties)
    return b"".join(parts)


def decode_batch(body: bytes) -> list[BatchEntry]:
    """The reverse of `encode_batch`. Raises ProtocolError."""
    entries, at = [], 0
    while at < len(body):
        try:
            size, _, _, flag, length = _BATCH_HEAD.unpack_from(body, at)
            body_at = at + _BATCH_HEAD.size
            properties_at = body_at + length + 2
            (properties_length,) = _LENGTH.unpack_from(body, properties_at - 2)
        except error:
            raise ProtocolError(f"the message at {at} of a batch of {len(body)} bytes is cut off") from None
        end = properties_at + properties_length
        if end > len(body) or size != end - at:
            raise ProtocolError(f"the message at {at} of a batch says {size} bytes, its fields take {end - at}")
        entries.append(BatchEntry(flag, body[body_at : properties_at - 2], body[properties_at:end]))
        at = end
    return entries


def offset_message_id(store_host: bytes, commit_log_offset: int) -> str:
    """The broker's own id of a message: its store host and log offset in upper-case hex, 32 or 56 characters."""
    return (store_host + commit_log_offset.to_bytes(8, "big")).hex().upper()


def parse_offset_message_id(message_id: str) -> tuple[bytes, int]:
    """The packed store host and the log offset. Raises ProtocolError when the text is no offset message id."""
    try:
        packed = bytes.fromhex(message_id)
    except ValueError:
        raise ProtocolError(f"{message_id!r} is no offset message id: it is not hexadecimal") from None
    if len(message_id) not in (32, 56) or len(packed) * 2 != len(message_id):
        raise ProtocolError(f"an offset message id has 32 or 56 characters, not {len(message_id)}")
    return packed[:-8], int.from_bytes(packed[-8:], "big")
