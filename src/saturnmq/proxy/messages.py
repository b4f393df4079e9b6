"""Messages between gRPC and the log: checked on the way in, completed on the way out.

Both directions are on the hot path: fields are read once and written by assignment, which costs upb a third of building
nested messages. Sources: proxy/grpc/v2/producer/SendMessageActivity.java, proxy/grpc/v2/common/GrpcConverter.java.
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache
from hashlib import md5
from typing import TYPE_CHECKING

import msgspec

from saturnmq.kernel import properties as props
from saturnmq.kernel.config import MIB, ProxyConfig, parse_delays
from saturnmq.kernel.errors import (
    BodyEmpty,
    BodyTooLarge,
    IllegalDeliveryTime,
    IllegalKey,
    IllegalMessageGroup,
    IllegalMessageId,
    IllegalPropertyKey,
    IllegalTag,
    InvalidParameter,
    NotSupported,
    PropertiesTooLarge,
)
from saturnmq.kernel.host import Address, pack, unpack
from saturnmq.kernel.message import COMPRESSED, TRANSACTION_PREPARED, Message, StoredMessage
from saturnmq.kernel.topic import MessageType
from saturnmq.proxy.proxy import message_id, type_of
from saturnmq.wire.proto import rocketmq_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

#: the end of the year 9999 (google/protobuf/timestamp.proto)
MAX_TIME_MS = 253_402_300_799_999
MAX_TIME_DIGITS = 15
MAX_INT32 = (1 << 31) - 1

#: Java's Character.isISOControl
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_has_control = _CONTROL.search

_UNSUPPORTED_TYPES = {
    pb.LITE: "lite topics are not supported by this version of SaturnMQ: nothing was sent",
    pb.PRIORITY: "message priorities are not supported by this version of SaturnMQ: nothing was sent",
}


_TYPES = {
    MessageType.NORMAL: pb.NORMAL,
    MessageType.FIFO: pb.FIFO,
    MessageType.DELAY: pb.DELAY,
    MessageType.TRANSACTION: pb.TRANSACTION,
}

#: properties that have a field of their own in gRPC, or none at all. Apache shows the last four to applications.
_NOT_FOR_USERS = props.RESERVED | {
    props.SHARDING_KEY,
    props.TRACE_CONTEXT,
    props.INNER_MULTI_DISPATCH,
    props.TRANSACTION_ID,
}


_GZIP_MAGIC = b"\x1f\x8b"
#: what a Remoting client may send before it compresses (its maxMessageSize); a bomb stays closed
_MOST_INFLATED_BYTES = 4 * MIB
#: what zstd's highest ordinary level looks back; a frame may ask for gigabytes
_ZSTD_WINDOW_BYTES = 8 * MIB
#: four bytes may hold 128 KiB, and nothing bounds what one call makes of its input
_ZSTD_PIECE_BYTES = 256


class Incoming(msgspec.Struct, gc=False):
    """A message that passed the checks. `properties` are those that `message` carries, packed."""

    message: Message
    properties: dict[str, str]
    message_type: MessageType
    message_group: str


def take_in(sent: pb.Message, topic: str, peer: Address, config: ProxyConfig, now_ms: int) -> Incoming:
    """Check a message and map its properties. Raises one of the IllegalMessage errors, or NotSupported."""
    body = sent.body
    if len(body) > config.max_message_size > 0:
        raise BodyTooLarge(
            f"the body has {len(body)} bytes, the limit is maxMessageSize={config.max_message_size}: raise it, "
            "or store the body elsewhere and send a reference"
        )
    if not body and config.enable_message_body_empty_check:
        raise BodyEmpty("the body is empty: send at least one byte, or set enableMessageBodyEmptyCheck=false")
    system = sent.system_properties
    properties = dict(sent.user_properties.items())
    tag = system.tag
    keys = list(system.keys)
    _check_properties(properties, tag, keys, config)
    if tag:
        properties[props.TAGS] = tag
    if keys:
        properties[props.KEYS] = " ".join(keys)
    unique_key = system.message_id
    if not unique_key or unique_key.isspace() or _has_control(unique_key):
        raise IllegalMessageId(
            "the message id is empty or has a control character: the client sets system_properties.message_id"
        )
    properties[props.UNIQUE_KEY] = unique_key
    kind = _message_type(system, properties, config, now_ms)
    if system.delivery_attempt:
        properties[props.RECONSUME_TIME] = str(system.delivery_attempt)
    properties[props.PRODUCER_GROUP] = topic
    if kind is MessageType.TRANSACTION:
        _put_in_transaction(system, properties, config)
    group = system.message_group
    if group:
        _check_message_group(group, config)
        properties[props.SHARDING_KEY] = group
    if kind is MessageType.NORMAL and props.SHARDING_KEY in properties:
        kind = MessageType.FIFO
    if system.trace_context:
        _put(properties, props.TRACE_CONTEXT, system.trace_context)
    _put(properties, props.BORN_HOST, system.born_host or str(peer))
    born = system.born_timestamp
    born_ms = born.seconds * 1000 + born.nanos // 1_000_000
    if 0 < born_ms <= MAX_TIME_MS:
        properties[props.BORN_TIMESTAMP] = str(born_ms)
    else:
        born_ms = now_ms
    message = Message(
        topic,
        -1,
        body,
        props.encode(properties),
        born_ms,
        pack(peer),
        0,
        (COMPRESSED if system.body_encoding == pb.GZIP else 0)
        | (TRANSACTION_PREPARED if kind is MessageType.TRANSACTION else 0),
    )
    return Incoming(message, properties, kind, group)


def _put_in_transaction(system: pb.SystemProperties, properties: dict[str, str], config: ProxyConfig) -> None:
    """Raises InvalidParameter."""
    properties[props.TRANSACTION_PREPARED] = "true"
    if system.HasField("orphaned_transaction_recovery_duration"):
        seconds = system.orphaned_transaction_recovery_duration.seconds
        if not 0 <= seconds <= config.max_transaction_recovery_second:
            raise InvalidParameter(
                f"the orphaned transaction recovery duration is {seconds} s, it must be from 0 to "
                f"maxTransactionRecoverySecond={config.max_transaction_recovery_second}"
            )
        properties[props.CHECK_IMMUNITY_TIME_IN_SECONDS] = str(seconds)


def _put(properties: dict[str, str], key: str, value: str) -> None:
    """Set a property that the client chose freely: a separator in it would forge others."""
    if _has_control(value):
        raise InvalidParameter(f"a control character in the value that becomes the property {key}")
    properties[key] = value


def _check_properties(user: dict[str, str], tag: str, keys: list[str], config: ProxyConfig) -> None:
    if len(user) > config.user_property_max_num > 0:
        raise PropertiesTooLarge(
            f"{len(user)} user properties, the limit is userPropertyMaxNum={config.user_property_max_num}"
        )
    text = "".join([*user, *user.values(), tag, *keys])
    size = len(text) if text.isascii() else len(text.encode())
    if size > config.max_user_property_size > 0:
        raise PropertiesTooLarge(
            f"user properties, tag and keys have {size} bytes together, the limit is "
            f"maxUserPropertySize={config.max_user_property_size}"
        )
    if not props.RESERVED.isdisjoint(user):
        taken = sorted(props.RESERVED.intersection(user))
        raise IllegalPropertyKey(f"the property keys {', '.join(taken)} are RocketMQ's own: choose other names")
    if _has_control(text):
        _blame_control_character(user, tag)
    if tag and (tag.isspace() or "|" in tag):
        raise IllegalTag(f"the tag {tag!r} is blank or has a `|`, which separates tags in a subscription")
    for key in keys:
        if key.isspace():
            raise IllegalKey("a message key is blank: leave it out")


def _blame_control_character(user: dict[str, str], tag: str) -> None:
    for key, value in user.items():
        if _has_control(key) or _has_control(value):
            raise IllegalPropertyKey(f"the user property {key!r} has a control character in its key or value")
    if _has_control(tag):
        raise IllegalTag(f"the tag {tag!r} has a control character")
    raise IllegalKey("a message key has a control character")


def _check_message_group(group: str, config: ProxyConfig) -> None:
    if group.isspace() or _has_control(group):
        raise IllegalMessageGroup(f"the message group {group!r} is blank or has a control character")
    limit = config.max_message_group_size
    if len(group.encode()) >= limit > 0:
        raise IllegalMessageGroup(
            f"the message group has {len(group.encode())} bytes, it must be shorter than maxMessageGroupSize={limit}"
        )


def _message_type(
    system: pb.SystemProperties, properties: dict[str, str], config: ProxyConfig, now_ms: int
) -> MessageType:
    """As its properties make it: what the client calls it counts only where the server would have to act on it."""
    refusal = _UNSUPPORTED_TYPES.get(system.message_type)
    if refusal is not None:
        raise NotSupported(refusal)
    if system.lite_topic:
        raise NotSupported(_UNSUPPORTED_TYPES[pb.LITE])
    if system.HasField("priority"):
        raise NotSupported(_UNSUPPORTED_TYPES[pb.PRIORITY])
    in_transaction = system.message_type == pb.TRANSACTION
    if not system.HasField("delivery_timestamp"):
        return MessageType.TRANSACTION if in_transaction else MessageType.NORMAL
    if in_transaction:
        raise InvalidParameter("a message of a transaction cannot be for a time too: send it without one")
    due = system.delivery_timestamp
    due_ms = due.seconds * 1000 + due.nanos // 1_000_000
    if due_ms - now_ms > config.max_delay_time_mills > 0:
        raise IllegalDeliveryTime(
            f"the delivery time is {due_ms - now_ms} ms away, the limit is maxDelayTimeMills="
            f"{config.max_delay_time_mills}: choose an earlier time, or raise it (and timerMaxDelaySec of the broker)"
        )
    if config.use_delay_level:
        properties[props.DELAY] = str(delay_level(due_ms - now_ms, config.message_delay_level))
    properties[props.TIMER_DELIVER_MS] = str(max(due_ms, 0))
    return MessageType.DELAY


def delay_level(wait_ms: int, levels: str) -> int:
    """The first level that waits longer, else the last one (ProxyConfig.computeDelayLevel). Raises ValueError."""
    waits_ms = parse_delays(levels)
    return next((level for level, level_ms in enumerate(waits_ms, 1) if level_ms > wait_ms), len(waits_ms))


# ------------------------------------------------------------------------------------------------------- outwards


def to_client(
    stored: StoredMessage, properties: dict[str, str], handle: str, reconsume_times: int, topic: str
) -> bytes:
    """One message of a ReceiveMessage stream, serialized. `reconsume_times`: deliveries before this one."""
    response = pb.ReceiveMessageResponse()
    message = response.message
    message.topic.name = topic
    user = {key: value for key, value in properties.items() if key not in _NOT_FOR_USERS}
    if user:
        message.user_properties.update(user)
    body, encoding = (stored.body, pb.IDENTITY) if not stored.sys_flag & COMPRESSED else _readable(stored.body)
    message.body = body
    system = message.system_properties
    tag = properties.get(props.TAGS)
    if tag:
        system.tag = tag
    keys = properties.get(props.KEYS)
    if keys:
        system.keys.extend(keys.split())
    system.message_id = message_id(stored, properties)
    digest = system.body_digest
    digest.type = pb.MD5
    digest.checksum = md5(body, usedforsecurity=False).hexdigest().upper()
    system.body_encoding = encoding
    system.message_type = _TYPES[type_of(properties)]
    set_time(system.born_timestamp, stored.born_ms)
    set_time(system.store_timestamp, stored.stored_ms)
    system.born_host = properties.get(props.BORN_HOST) or _host(stored.born_host)
    system.store_host = _host_and_port(stored.store_host)
    system.receipt_handle = handle
    system.queue_id = stored.queue_id
    system.queue_offset = stored.queue_offset
    system.delivery_attempt = min(reconsume_times, MAX_INT32 - 1) + 1
    _rare_properties(system, properties)
    return response.SerializeToString()


def _readable(compressed: bytes) -> tuple[bytes, pb.Encoding]:
    """A compressed body as every gRPC client can read it, and its encoding.

    Remoting clients compress with zlib, LZ4 or ZSTD; Apache passes all of it on as GZIP, and it depends on the client
    what it makes of that: Node's takes nothing but gzip. What is none of these stays as it came.
    """
    if not compressed.startswith(_GZIP_MAGIC):
        inflate = next((inflate for magic, inflate in _INFLATERS if compressed.startswith(magic)), _inflate_zlib)
        plain = inflate(compressed)
        if plain is not None:
            return plain, pb.IDENTITY
    return compressed, pb.GZIP


def _inflate_zlib(compressed: bytes) -> bytes | None:
    """Like the others: None where it is damaged, or too large."""
    inflate = zlib.decompressobj()
    try:
        plain = inflate.decompress(compressed, _MOST_INFLATED_BYTES)
    except zlib.error:
        return None
    return plain if inflate.eof else None


def _inflate_lz4(compressed: bytes) -> bytes | None:
    import lz4.frame  # few need it

    inflate = lz4.frame.LZ4FrameDecompressor()
    try:
        plain: bytes = inflate.decompress(compressed, _MOST_INFLATED_BYTES)
    except RuntimeError:
        return None
    return plain if inflate.eof else None


def _inflate_zstd(compressed: bytes) -> bytes | None:
    import zstandard

    inflate = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
    plain = bytearray()
    try:
        for start in range(0, len(compressed), _ZSTD_PIECE_BYTES):
            plain += inflate.decompress(compressed[start : start + _ZSTD_PIECE_BYTES])
            if len(plain) > _MOST_INFLATED_BYTES:
                return None
    except zstandard.ZstdError:
        return None
    return bytes(plain) if inflate.eof else None


#: by what the compressed body begins with
_INFLATERS = ((b"\x04\x22\x4d\x18", _inflate_lz4), (b"\x28\xb5\x2f\xfd", _inflate_zstd))


def set_time(timestamp: Timestamp, ms: int) -> None:
    """`FromMilliseconds`, four times as fast. What a Timestamp cannot say (another's clock is not ours) is cut."""
    if not 0 <= ms <= MAX_TIME_MS:
        ms = min(max(ms, 0), MAX_TIME_MS)
    timestamp.seconds = ms // 1000
    timestamp.nanos = ms % 1000 * 1_000_000


def _rare_properties(system: pb.SystemProperties, properties: dict[str, str]) -> None:
    group = properties.get(props.SHARDING_KEY)
    if group is not None:
        system.message_group = group
    trace = properties.get(props.TRACE_CONTEXT)
    if trace is not None:
        system.trace_context = trace
    due = properties.get(props.TIMER_DELIVER_MS)
    if due is not None and due.isdecimal() and len(due) <= MAX_TIME_DIGITS:
        set_time(system.delivery_timestamp, int(due))
    dead_topic = properties.get(props.DLQ_ORIGIN_TOPIC)
    dead_id = properties.get(props.DLQ_ORIGIN_MESSAGE_ID)
    if dead_topic is not None and dead_id is not None:
        system.dead_letter_queue.topic = dead_topic
        system.dead_letter_queue.message_id = dead_id


@lru_cache(maxsize=4096)
def _host(packed: bytes) -> str:
    return unpack(packed).host


@lru_cache(maxsize=4096)
def _host_and_port(packed: bytes) -> str:
    return str(unpack(packed))
