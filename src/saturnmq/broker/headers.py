"""What Remoting requests to a broker carry: header fields and JSON bodies, under Apache's names.

Parsed with `msgspec.convert(fields, Header, strict=False)`: header values are strings. Fields that this server has no
use for are left out. Source: remoting/protocol/header/ and body/.
"""

from __future__ import annotations

import msgspec
from msgspec import field

from saturnmq.wire.remoting.bodies import SubscriptionData


class SendHeader(msgspec.Struct, rename="camel", gc=False, kw_only=True):
    """SEND_MESSAGE, SEND_REPLY_MESSAGE"""

    producer_group: str
    topic: str
    default_topic: str
    default_topic_queue_nums: int
    queue_id: int
    sys_flag: int
    born_timestamp: int
    flag: int
    properties: str | None = None
    reconsume_times: int | None = None
    batch: bool | None = None
    max_reconsume_times: int | None = None


class SendHeaderV2(msgspec.Struct, gc=False, kw_only=True):
    """SEND_MESSAGE_V2, SEND_BATCH_MESSAGE, SEND_REPLY_MESSAGE_V2: the same with names of one letter"""

    producer_group: str = field(name="a")
    topic: str = field(name="b")
    default_topic: str = field(name="c")
    default_topic_queue_nums: int = field(name="d")
    queue_id: int = field(name="e")
    sys_flag: int = field(name="f")
    born_timestamp: int = field(name="g")
    flag: int = field(name="h")
    properties: str | None = field(name="i", default=None)
    reconsume_times: int | None = field(name="j", default=None)
    max_reconsume_times: int | None = field(name="l", default=None)
    batch: bool | None = field(name="m", default=None)


class PullHeader(msgspec.Struct, rename="camel", gc=False, kw_only=True):
    """PULL_MESSAGE, LITE_PULL_MESSAGE"""

    consumer_group: str
    topic: str
    queue_id: int
    queue_offset: int
    max_msg_nums: int
    sys_flag: int
    commit_offset: int
    suspend_timeout_millis: int
    sub_version: int
    subscription: str | None = None
    expression_type: str | None = None
    max_msg_bytes: int | None = None


class OffsetHeader(msgspec.Struct, rename="camel", gc=False, kw_only=True):
    """QUERY_CONSUMER_OFFSET"""

    consumer_group: str
    topic: str
    queue_id: int
    set_zero_if_not_found: bool | None = None


class CommitHeader(msgspec.Struct, rename="camel", gc=False, kw_only=True):
    """UPDATE_CONSUMER_OFFSET"""

    consumer_group: str
    topic: str
    queue_id: int
    commit_offset: int


class QueueHeader(msgspec.Struct, rename="camel", gc=False, kw_only=True):
    """GET_MAX_OFFSET, GET_MIN_OFFSET, GET_EARLIEST_MSG_STORETIME, SEARCH_OFFSET_BY_TIMESTAMP"""

    topic: str
    queue_id: int


class SearchHeader(QueueHeader, rename="camel"):
    timestamp: int
    boundary_type: str | None = None


class QueryHeader(msgspec.Struct, rename="camel", kw_only=True):
    """QUERY_MESSAGE"""

    topic: str
    key: str
    max_num: int
    begin_timestamp: int
    end_timestamp: int
    index_type: str | None = None
    #: a field with this name among all others
    unique_key_query: str | None = field(name="_UNIQUE_KEY_QUERY", default=None)


class ViewHeader(msgspec.Struct):
    """VIEW_MESSAGE_BY_ID"""

    #: in the commit log
    offset: int


class SendBackHeader(msgspec.Struct, rename="camel", gc=False, kw_only=True):
    """CONSUMER_SEND_MSG_BACK"""

    offset: int
    group: str
    delay_level: int
    origin_msg_id: str | None = None
    origin_topic: str | None = None
    max_reconsume_times: int | None = None


class UnregisterHeader(msgspec.Struct, rename="camel", kw_only=True):
    """UNREGISTER_CLIENT"""

    client_id: str = field(name="clientID")
    producer_group: str | None = None
    consumer_group: str | None = None


class ProducerGroupHeader(msgspec.Struct, rename="camel"):
    """GET_PRODUCER_CONNECTION_LIST"""

    producer_group: str


class ConsumerGroupHeader(msgspec.Struct, rename="camel"):
    """GET_CONSUMER_LIST_BY_GROUP"""

    consumer_group: str


class TopicHeader(msgspec.Struct):
    """GET_TOPIC_CONFIG"""

    topic: str


class GroupHeader(msgspec.Struct):
    """GET_SUBSCRIPTIONGROUP_CONFIG"""

    group: str


class CreateTopicHeader(msgspec.Struct, rename="camel", kw_only=True):
    """UPDATE_AND_CREATE_TOPIC"""

    topic: str
    read_queue_nums: int
    write_queue_nums: int
    perm: int
    topic_filter_type: str
    topic_sys_flag: int | None = None
    order: bool = False
    attributes: str | None = None


class PopHeader(msgspec.Struct, rename="camel", gc=False, kw_only=True):
    """POP_MESSAGE"""

    consumer_group: str
    topic: str
    queue_id: int
    max_msg_nums: int
    invisible_time: int
    poll_time: int
    init_mode: int
    exp_type: str | None = None
    exp: str | None = None
    order: bool | None = None
    attempt_id: str | None = None


class AckHeader(msgspec.Struct, rename="camel", gc=False, kw_only=True):
    """ACK_MESSAGE"""

    consumer_group: str
    topic: str
    queue_id: int
    extra_info: str
    offset: int


class ChangeInvisibleHeader(AckHeader, rename="camel"):
    """CHANGE_MESSAGE_INVISIBLETIME"""

    invisible_time: int


class BatchAck(msgspec.Struct, kw_only=True):
    """Messages of one pop of one queue."""

    group: str = field(name="c")
    topic: str = field(name="t")
    #: TopicKind
    retry: str = field(name="r")
    start_offset: int = field(name="so")
    queue_id: int = field(name="q")
    revive_queue_id: int = field(name="rq")
    pop_ms: int = field(name="pt")
    invisible_ms: int = field(name="it")
    #: Base64 of little-endian bytes; bit n stands for start_offset + n
    bits: str = field(name="b")


class BatchAckBody(msgspec.Struct, kw_only=True):
    """BATCH_ACK_MESSAGE"""

    acks: list[BatchAck]


class CheckClientBody(msgspec.Struct, rename="camel", kw_only=True):
    """CHECK_CLIENT_CONFIG"""

    subscription_data: SubscriptionData | None = None
