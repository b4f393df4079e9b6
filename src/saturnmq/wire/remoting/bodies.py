"""Bodies that NameServers, brokers, clients and tools exchange, as structs.

Sources: remoting/protocol/{body,heartbeat,route}/*.java. Nothing is null on the wire: what is null in Java is absent.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, TypeVar, cast

import msgspec

from saturnmq.kernel.errors import InvalidParameter, ProtocolError
from saturnmq.kernel.ports import ConsumeType, MessageModel
from saturnmq.kernel.topic import BrokerData, DataVersion, GroupConfig, MessageQueue, TopicConfig
from saturnmq.wire.remoting import json

T = TypeVar("T")

#: what a compressed registration may become: 100,000 topics with the longest names and some attributes
MOST_INFLATED_BYTES = 64 << 20

#: one for each kind of body, made when the first comes
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}

#: first byte of a zlib stream (RFC 1950), and no JSON's
_ZLIB = 0x78
_LENGTH = struct.Struct(">i")


def decode(kind: type[T], body: bytes) -> T:
    """A body of this kind. Raises InvalidParameter, which answers the request; the connection goes on."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    try:
        return cast(T, decoder.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _tolerant(kind, body)


def encode(value: Any) -> bytes:
    """The body of a struct."""
    return json.write(_without_nulls(msgspec.to_builtins(value, str_keys=True)))


def _tolerant(kind: type[T], body: bytes) -> T:
    try:
        return msgspec.convert(_without_nulls(json.parse(body)), kind, strict=False, str_keys=True)
    except (ProtocolError, msgspec.ValidationError) as error:
        raise InvalidParameter(f"the body is no {kind.__name__}: {error}") from None


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


# --------------------------------------------------------------------------------------------------- clients


class SubscriptionData(msgspec.Struct, rename="camel", kw_only=True):
    """One topic that a consumer takes, and its filter."""

    topic: str
    sub_string: str = "*"
    expression_type: str = "TAG"
    tags_set: list[str] = []
    code_set: list[int] = []
    #: when the client subscribed, milliseconds on its clock
    sub_version: int = 0
    class_filter_mode: bool = False


class ConsumerData(msgspec.Struct, rename="camel", kw_only=True):
    """One consumer group of a client."""

    group_name: str
    consume_type: ConsumeType = ConsumeType.PASSIVELY
    message_model: MessageModel = MessageModel.CLUSTERING
    consume_from_where: str = "CONSUME_FROM_LAST_OFFSET"
    subscription_data_set: list[SubscriptionData] = []
    unit_mode: bool = False


class ProducerData(msgspec.Struct, rename="camel"):
    """One producer group of a client."""

    group_name: str


class HeartbeatData(msgspec.Struct, rename="camel", kw_only=True):
    """Who a client is (HEART_BEAT)."""

    client_id: str = msgspec.field(name="clientID")
    consumer_data_set: list[ConsumerData] = []
    producer_data_set: list[ProducerData] = []
    #: of the subscriptions; 0 from clients that send all of them every time
    heartbeat_fingerprint: int = 0
    #: the subscriptions are left out: they are as before
    without_sub: bool = False


class LockBatchRequest(msgspec.Struct, rename="camel", kw_only=True):
    """Queues that an orderly consumer locks (LOCK_BATCH_MQ) or gives back (UNLOCK_BATCH_MQ)."""

    consumer_group: str
    client_id: str
    mq_set: list[MessageQueue] = []
    only_this_broker: bool = False


class LockBatchResponse(msgspec.Struct):
    """The queues that the consumer holds now."""

    locked: list[MessageQueue] = msgspec.field(name="lockOKMQSet")


class Connection(msgspec.Struct, rename="camel"):
    """One connected client."""

    client_id: str
    client_addr: str
    language: str
    version: int


class ProducerConnection(msgspec.Struct, rename="camel"):
    """Who is in a producer group (GET_PRODUCER_CONNECTION_LIST)."""

    connection_set: list[Connection]


class ProducerInfo(msgspec.Struct, rename="camel", kw_only=True):
    """One producer, as GET_ALL_PRODUCER_INFO tells of it."""

    client_id: str
    #: `/host:port`
    remote_ip: str = msgspec.field(name="remoteIP")
    language: str
    version: int
    #: when it was last heard of, milliseconds
    last_update_timestamp: int


class ProducerTable(msgspec.Struct):
    """All producers by group."""

    data: dict[str, list[ProducerInfo]]


class ConsumerIds(msgspec.Struct, rename="camel"):
    """Who is in a consumer group (GET_CONSUMER_LIST_BY_GROUP)."""

    consumer_id_list: list[str]


# -------------------------------------------------------------------------------------------------- NameServer


class ClusterInfo(msgspec.Struct, rename="camel"):
    """All brokers, and the names of each cluster's."""

    broker_addr_table: dict[str, BrokerData]
    cluster_addr_table: dict[str, list[str]]


class TopicList(msgspec.Struct, rename="camel"):
    topic_list: list[str]
    broker_addr: str | None = None


class BrokerMemberGroup(msgspec.Struct, rename="camel"):
    """A broker and its replicas by broker id."""

    cluster: str
    broker_name: str
    broker_addrs: dict[int, str] = {}


class BrokerMembers(msgspec.Struct, rename="camel"):
    broker_member_group: BrokerMemberGroup


class TopicConfigTable(msgspec.Struct, rename="camel"):
    """All topics of a broker; in a registration that was split, some of them."""

    topic_config_table: dict[str, TopicConfig] = {}
    data_version: DataVersion = msgspec.field(default_factory=DataVersion)


class TopicConfigAndMappingTable(TopicConfigTable, rename="camel", kw_only=True):
    """The topics of a broker as tools ask for them. Ours has no static topics: nothing is mapped."""

    mapping_data_version: DataVersion
    topic_queue_mapping_detail_map: dict[str, str] = {}
    topic_queue_mapping_info_map: dict[str, str] = {}


class TopicConfigs(msgspec.Struct, rename="camel"):
    """Topics that an operator makes or changes together."""

    topic_config_list: list[TopicConfig]


class GroupConfigs(msgspec.Struct, rename="camel"):
    """Consumer groups that an operator makes or changes together."""

    group_config_list: list[GroupConfig]


class GroupConfigTable(msgspec.Struct, rename="camel", kw_only=True):
    """The consumer groups of a broker."""

    subscription_group_table: dict[str, GroupConfig]
    #: group → topic → bits of what it may not do
    forbidden_table: dict[str, dict[str, int]]
    data_version: DataVersion


class GroupForbidden(msgspec.Struct):
    """Whether a group may read a topic."""

    group: str
    topic: str
    readable: bool


class GroupList(msgspec.Struct, rename="camel"):
    group_list: list[str]


class TopicOffset(msgspec.Struct, rename="camel"):
    """Where one queue begins and ends; 0: it is empty."""

    min_offset: int
    max_offset: int
    #: when its last message was stored, milliseconds
    last_update_timestamp: int


class TopicStats(msgspec.Struct, rename="camel"):
    """How far the queues of a topic have come (GET_TOPIC_STATS_INFO)."""

    #: MessageQueue → TopicOffset, in fastjson's form (`json.write_queue_map`)
    offset_table: msgspec.Raw
    topic_put_tps: float


class StatsItem(msgspec.Struct):
    """One statistic over some time: the sum, that per second, and that per call."""

    sum: int
    tps: float
    avgpt: float


class StatsData(msgspec.Struct, rename="camel"):
    """One statistic (VIEW_BROKER_STATS_DATA)."""

    stats_minute: StatsItem
    stats_hour: StatsItem
    stats_day: StatsItem


class KVTable(msgspec.Struct):
    table: dict[str, str]


class RegisterBrokerBody(msgspec.Struct, rename="camel"):
    """What a broker tells NameServers."""

    topic_config_serialize_wrapper: TopicConfigTable = msgspec.field(default_factory=TopicConfigTable)
    filter_server_list: list[str] = []


def decode_registration(body: bytes, *, topics_only: bool = False) -> RegisterBrokerBody:
    """The body of REGISTER_BROKER. Raises InvalidParameter.

    Brokers before 3.0.11 send `topics_only`. Whether it is compressed shows in its first byte: of Apache's brokers the
    header's `compressed` says false even then (BrokerOuterAPI.java of 5.5.0, whose own NameServer refuses it).
    Compressed it is no JSON but a zlib stream of: data version, topics, filter servers, static topics (from brokers of
    5.0.0 on; not read). A list is its number, then its entries; an entry is its length, then its text; numbers have
    four bytes. (RegisterBrokerBody.java)
    """
    if not body:
        return RegisterBrokerBody()
    if topics_only:
        return RegisterBrokerBody(decode(TopicConfigTable, body))
    if body[0] != _ZLIB:
        return decode(RegisterBrokerBody, body)
    try:
        data = _Inflated(_inflate(body))
        version = decode(DataVersion, data.entry())
        topics = [_read_topic(data.entry()) for _ in range(data.number())]
        filter_servers = decode(list[str], data.entry())
    except (struct.error, zlib.error) as error:
        raise InvalidParameter(f"the compressed registration is broken: {error}") from None
    return RegisterBrokerBody(TopicConfigTable({topic.topic_name: topic for topic in topics}, version), filter_servers)


def encode_registration(body: RegisterBrokerBody, *, compressed: bool) -> bytes:
    """The reverse of `decode_registration`."""
    if not compressed:
        return encode(body)
    table = body.topic_config_serialize_wrapper
    topics = [_write_topic(topic) for topic in table.topic_config_table.values()]
    entries = [encode(table.data_version), *topics, json.write(body.filter_server_list)]
    parts = [_LENGTH.pack(len(entry)) + entry for entry in entries]
    parts.insert(1, _LENGTH.pack(len(topics)))
    parts.append(_LENGTH.pack(0))
    return zlib.compress(b"".join(parts), zlib.Z_BEST_SPEED)


def _inflate(body: bytes) -> bytes:
    stream = zlib.decompressobj()
    data = stream.decompress(body, MOST_INFLATED_BYTES)
    if not stream.eof:
        raise InvalidParameter(f"the compressed registration is cut off, or is over {MOST_INFLATED_BYTES} bytes")
    return data


class _Inflated:
    """A position in the bytes of a registration."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self) -> int:
        (number,) = _LENGTH.unpack_from(self._data, self._at)
        self._at += 4
        return int(number)

    def entry(self) -> bytes:
        length = self.number()
        if not 0 <= length <= len(self._data) - self._at:
            raise InvalidParameter(f"the compressed registration claims an entry of {length} bytes")
        self._at += length
        return self._data[self._at - length : self._at]


def _read_topic(text: bytes) -> TopicConfig:
    """`name readQueues writeQueues perm filterType {attributes}` (TopicConfig.java)."""
    parts = text.decode("utf-8", "replace").split(" ", 5)
    if len(parts) < 5:
        raise InvalidParameter(f"the compressed registration has no topic in {parts}")
    name, read_queues, write_queues, perm, filter_type, *attributes = parts
    fields = {
        "topicName": name,
        "readQueueNums": read_queues,
        "writeQueueNums": write_queues,
        "perm": perm,
        "topicFilterType": filter_type,
    }
    try:
        topic = msgspec.convert(fields, TopicConfig, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidParameter(f"the compressed registration has a broken topic {name!r}: {error}") from None
    if attributes and attributes[0]:
        topic.attributes = decode(dict[str, str], attributes[0].encode())
    return topic


def _write_topic(topic: TopicConfig) -> bytes:
    return b"%b %d %d %d %b %b" % (
        topic.topic_name.encode(),
        topic.read_queue_nums,
        topic.write_queue_nums,
        topic.perm,
        topic.topic_filter_type.encode(),
        json.write(topic.attributes),
    )
