"""What Remoting requests to a broker, or a Proxy, carry: header fields and JSON bodies, under Apache's names.

Parsed with `msgspec.convert(fields, Header, strict=False)`: header values are strings. Fields that this server has no
use for are left out. Source: remoting/protocol/header/ and body/.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, field

from saturnmq.kernel.ports import DeadReason
from saturnmq.wire.remoting.bodies import SubscriptionData

#: Java's: what is stored of them has as many bits
Int = Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)]
Long = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
FilterType = Literal["SINGLE_TAG", "MULTI_TAG"]


class SendHeader(msgspec.Struct, rename="camel", gc=False, kw_only=True):
    """SEND_MESSAGE, SEND_REPLY_MESSAGE"""

    producer_group: str
    topic: str
    default_topic: str
    default_topic_queue_nums: Int
    queue_id: Int
    sys_flag: Int
    born_timestamp: Long
    flag: Int
    properties: str | None = None
    reconsume_times: Int | None = None
    unit_mode: bool | None = None
    batch: bool | None = None
    max_reconsume_times: Int | None = None


class SendHeaderV2(msgspec.Struct, gc=False, kw_only=True):
    """SEND_MESSAGE_V2, SEND_BATCH_MESSAGE, SEND_REPLY_MESSAGE_V2: the same with names of one letter"""

    producer_group: str = field(name="a")
    topic: str = field(name="b")
    default_topic: str = field(name="c")
    default_topic_queue_nums: Int = field(name="d")
    queue_id: Int = field(name="e")
    sys_flag: Int = field(name="f")
    born_timestamp: Long = field(name="g")
    flag: Int = field(name="h")
    properties: str | None = field(name="i", default=None)
    reconsume_times: Int | None = field(name="j", default=None)
    unit_mode: bool | None = field(name="k", default=None)
    max_reconsume_times: Int | None = field(name="l", default=None)
    batch: bool | None = field(name="m", default=None)


class EndTransactionHeader(msgspec.Struct, rename="camel", gc=False, kw_only=True):
    """END_TRANSACTION"""

    producer_group: str
    tran_state_table_offset: Long
    commit_log_offset: Long
    #: bits of sysFlag
    commit_or_rollback: Int
    from_transaction_check: bool | None = None
    topic: str | None = None
    #: our Proxy's, of the message that is meant: what clients put into msgId is not looked at
    unique_key: str | None = field(name="uniqKey", default=None)


class ResumeCheckHeader(msgspec.Struct, rename="camel", kw_only=True):
    """RESUME_CHECK_HALF_MESSAGE"""

    msg_id: str


class PullHeader(msgspec.Struct, rename="camel", gc=False, kw_only=True):
    """PULL_MESSAGE, LITE_PULL_MESSAGE"""

    consumer_group: str
    topic: str
    queue_id: Int
    queue_offset: Long
    max_msg_nums: Int
    sys_flag: Int
    commit_offset: Long
    suspend_timeout_millis: Long
    sub_version: Long
    subscription: str | None = None
    expression_type: str | None = None
    max_msg_bytes: Int | None = None


class OffsetHeader(msgspec.Struct, rename="camel", gc=False, kw_only=True):
    """QUERY_CONSUMER_OFFSET"""

    consumer_group: str
    topic: str
    queue_id: Int
    set_zero_if_not_found: bool | None = None


class CommitHeader(msgspec.Struct, rename="camel", gc=False, kw_only=True):
    """UPDATE_CONSUMER_OFFSET"""

    consumer_group: str
    topic: str
    queue_id: Int
    commit_offset: Long


class QueueHeader(msgspec.Struct, rename="camel", gc=False, kw_only=True):
    """GET_MAX_OFFSET, GET_MIN_OFFSET, GET_EARLIEST_MSG_STORETIME, SEARCH_OFFSET_BY_TIMESTAMP"""

    topic: str
    queue_id: Int


class SearchHeader(QueueHeader, rename="camel"):
    timestamp: Long
    boundary_type: str | None = None


class QueryHeader(msgspec.Struct, rename="camel", kw_only=True):
    """QUERY_MESSAGE"""

    topic: str
    key: str
    max_num: Int
    begin_timestamp: Long
    end_timestamp: Long
    index_type: str | None = None
    #: a field with this name among all others
    unique_key_query: str | None = field(name="_UNIQUE_KEY_QUERY", default=None)


class ViewHeader(msgspec.Struct):
    """VIEW_MESSAGE_BY_ID"""

    #: in the commit log
    offset: Long


class SendBackHeader(msgspec.Struct, rename="camel", gc=False, kw_only=True):
    """CONSUMER_SEND_MSG_BACK"""

    offset: Long
    group: str
    delay_level: Int
    origin_msg_id: str | None = None
    origin_topic: str | None = None
    max_reconsume_times: Int | None = None
    unit_mode: bool | None = None
    #: ours, from our Proxy: why it is to be buried
    dead_reason: DeadReason | None = None


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


class RunningInfoHeader(msgspec.Struct, rename="camel"):
    """GET_CONSUMER_RUNNING_INFO"""

    consumer_group: str
    client_id: str
    jstack_enable: bool


class DirectConsumeHeader(msgspec.Struct, rename="camel"):
    """CONSUME_MESSAGE_DIRECTLY"""

    consumer_group: str
    client_id: str
    #: an offset message id
    msg_id: str
    topic: str | None = None


class ConsumerStatusHeader(msgspec.Struct, rename="camel"):
    """INVOKE_BROKER_TO_GET_CONSUMER_STATUS"""

    topic: str
    group: str
    #: a client id; none: all members
    client_addr: str | None = None


class ConsumeStatsHeader(msgspec.Struct, rename="camel"):
    """GET_CONSUME_STATS: of one topic, or of those in the list (`a;b`), or of all"""

    consumer_group: str
    topic: str | None = None
    topic_list: str | None = None


class OrderHeader(msgspec.Struct, rename="camel"):
    """GET_BROKER_CONSUME_STATS"""

    is_order: bool


class GroupTopicHeader(msgspec.Struct):
    """QUERY_CONSUME_TIME_SPAN, QUERY_SUBSCRIPTION_BY_CONSUMER"""

    group: str
    topic: str


class CorrectionHeader(msgspec.Struct, rename="camel"):
    """QUERY_CORRECTION_OFFSET"""

    compare_group: str
    topic: str
    #: `a,b`
    filter_groups: str | None = None


class ResetHeader(msgspec.Struct, rename="camel"):
    """INVOKE_BROKER_TO_RESET_OFFSET"""

    topic: str
    group: str
    #: milliseconds; negative: to the end
    timestamp: Long = 0
    is_force: bool = False
    #: -1: all
    queue_id: Int = -1
    #: of the one queue; -1: by the timestamp
    offset: Long = -1


class CloneHeader(msgspec.Struct, rename="camel"):
    """CLONE_GROUP_OFFSET"""

    src_group: str
    dest_group: str
    #: none: all topics
    topic: str | None = None
    offline: bool = False


class ConsumeQueueHeader(msgspec.Struct, rename="camel"):
    """QUERY_CONSUME_QUEUE"""

    topic: str
    queue_id: Int
    index: Long
    count: Int
    consumer_group: str | None = None


class TopicHeader(msgspec.Struct):
    """GET_TOPIC_CONFIG, GET_TOPIC_STATS_INFO, DELETE_TOPIC_IN_BROKER, QUERY_TOPIC_CONSUME_BY_WHO"""

    topic: str


class GroupHeader(msgspec.Struct):
    """GET_SUBSCRIPTIONGROUP_CONFIG, QUERY_TOPICS_BY_CONSUMER"""

    group: str


class TopicPageHeader(msgspec.Struct, rename="camel", kw_only=True):
    """GET_ALL_TOPIC_CONFIG: without any of these, all topics at once"""

    #: how many topics the pages before had
    topic_seq: Int | None = None
    #: that the first page had, as JSON
    data_version: str | None = None
    max_topic_num: Int | None = None


class GroupPageHeader(msgspec.Struct, rename="camel", kw_only=True):
    """GET_ALL_SUBSCRIPTIONGROUP_CONFIG: as TopicPageHeader"""

    group_seq: Int | None = None
    data_version: str | None = None
    max_group_num: Int | None = None


class DeleteGroupHeader(msgspec.Struct, rename="camel"):
    """DELETE_SUBSCRIPTIONGROUP"""

    group_name: str
    clean_offset: bool = False


class DeleteGroupsBody(msgspec.Struct, rename="camel"):
    """DELETE_SUBSCRIPTION_GROUP_LIST"""

    group_name_list: list[str]
    clean_offset: bool = False


class ForbidHeader(msgspec.Struct):
    """UPDATE_AND_GET_GROUP_FORBIDDEN; without `readable` it only asks"""

    group: str
    topic: str
    readable: bool | None = None


class StatsHeader(msgspec.Struct, rename="camel"):
    """VIEW_BROKER_STATS_DATA"""

    stats_name: str
    stats_key: str


class CreateTopicHeader(msgspec.Struct, rename="camel", kw_only=True):
    """UPDATE_AND_CREATE_TOPIC"""

    topic: str
    read_queue_nums: Int
    write_queue_nums: Int
    perm: Int
    topic_filter_type: FilterType
    topic_sys_flag: Int | None = None
    order: bool = False
    attributes: str | None = None


class PopHeader(msgspec.Struct, rename="camel", gc=False, kw_only=True):
    """POP_MESSAGE"""

    consumer_group: str
    topic: str
    queue_id: Int
    max_msg_nums: Int
    invisible_time: Long
    poll_time: Long
    init_mode: Int
    exp_type: str | None = None
    exp: str | None = None
    order: bool | None = None
    attempt_id: str | None = None


class NotificationHeader(msgspec.Struct, rename="camel", kw_only=True):
    """NOTIFICATION"""

    consumer_group: str
    topic: str
    queue_id: Int
    poll_time: Long
    order: bool | None = None
    attempt_id: str | None = None
    exp_type: str | None = None
    exp: str | None = None


class PeekHeader(msgspec.Struct, rename="camel"):
    """PEEK_MESSAGE"""

    consumer_group: str
    topic: str
    queue_id: Int
    max_msg_nums: Int


class PollingHeader(msgspec.Struct, rename="camel"):
    """POLLING_INFO"""

    consumer_group: str
    topic: str
    queue_id: Int


class AckHeader(msgspec.Struct, rename="camel", gc=False, kw_only=True):
    """ACK_MESSAGE"""

    consumer_group: str
    topic: str
    queue_id: Int
    extra_info: str
    offset: Long


class ChangeInvisibleHeader(AckHeader, rename="camel"):
    """CHANGE_MESSAGE_INVISIBLETIME"""

    invisible_time: Long


class BatchAck(msgspec.Struct, kw_only=True):
    """Messages of one pop of one queue."""

    group: str = field(name="c")
    topic: str = field(name="t")
    #: TopicKind
    retry: str = field(name="r")
    start_offset: Long = field(name="so")
    queue_id: Int = field(name="q")
    revive_queue_id: Int = field(name="rq")
    pop_ms: Long = field(name="pt")
    invisible_ms: Long = field(name="it")
    #: Base64 of little-endian bytes; bit n stands for start_offset + n
    bits: str = field(name="b")


class BatchAckBody(msgspec.Struct, kw_only=True):
    """BATCH_ACK_MESSAGE"""

    acks: list[BatchAck]
    #: in the body, not in the header as in all other requests
    broker_name: str | None = field(name="brokerName", default=None)


class RecallHeader(msgspec.Struct, rename="camel", gc=False, kw_only=True):
    """RECALL_MESSAGE"""

    topic: str
    recall_handle: str
    producer_group: str | None = None


class CheckClientBody(msgspec.Struct, rename="camel", kw_only=True):
    """CHECK_CLIENT_CONFIG"""

    subscription_data: SubscriptionData | None = None
