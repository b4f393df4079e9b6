"""Bodies about consumers: who they are, what they take, how far they have come.

Maps of message queues are `msgspec.Raw` here, in fastjson's form (`json.write_queue_map`). Sources:
remoting/protocol/body/*.java, remoting/protocol/admin/{ConsumeStats,OffsetWrapper}.java.
"""

from __future__ import annotations

import logging

import msgspec

from saturnmq.kernel.errors import IllegalFilter, InvalidParameter, ProtocolError
from saturnmq.kernel.ports import ConsumerMembership
from saturnmq.kernel.subscription import Subscription, keep
from saturnmq.kernel.topic import MessageQueue
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.bodies import Connection, ConsumerData, SubscriptionData

log = logging.getLogger(__name__)


def subscription_data(subscription: Subscription) -> SubscriptionData:
    """A filter as tools read it."""
    return SubscriptionData(
        topic=subscription.topic,
        sub_string=subscription.expression,
        expression_type=subscription.expression_type,
        tags_set=sorted(subscription.tags),
        code_set=sorted(subscription.codes),
        sub_version=subscription.version,
    )


def membership_of(consumer: ConsumerData) -> ConsumerMembership:
    """What a heart-beat says of a consumer. Filters that cannot be kept are left out: nobody would hear of them."""
    subscriptions = []
    for data in consumer.subscription_data_set:
        try:
            subscriptions.append(keep(data.topic, data.sub_string, data.expression_type, data.sub_version))
        except IllegalFilter as error:
            log.warning("group %s cannot have %s: %s", consumer.group_name, data.topic, error)
    return ConsumerMembership(
        group=consumer.group_name,
        consume_type=consumer.consume_type,
        message_model=consumer.message_model,
        consume_from=consumer.consume_from_where,
        subscriptions=subscriptions,
        unit_mode=consumer.unit_mode,
    )


class ConsumerConnection(msgspec.Struct, rename="camel", kw_only=True):
    """Who is in a consumer group, and what they said of it (GET_CONSUMER_CONNECTION_LIST)."""

    connection_set: list[Connection]
    #: by topic
    subscription_table: dict[str, SubscriptionData]
    consume_type: str
    message_model: str
    consume_from_where: str


class QuerySubscription(msgspec.Struct, rename="camel", omit_defaults=True):
    """What a group wants of a topic (QUERY_SUBSCRIPTION_BY_CONSUMER); nothing when nobody is connected."""

    group: str
    topic: str
    subscription_data: SubscriptionData | None = None


class QueueProgress(msgspec.Struct, rename="camel", kw_only=True):
    """How far a group has come with a queue (OffsetWrapper)."""

    #: where the queue ends
    broker_offset: int
    #: what the group takes next
    consumer_offset: int
    #: what consumers ask for next; they hold what is between the two
    pull_offset: int
    #: when the last message that is done was stored, milliseconds; 0: nothing is done
    last_timestamp: int


class ConsumeStats(msgspec.Struct, rename="camel", kw_only=True):
    """How far a group has come (GET_CONSUME_STATS)."""

    #: MessageQueue → QueueProgress
    offset_table: msgspec.Raw
    #: messages per second
    consume_tps: float


class ConsumeStatsList(msgspec.Struct, rename="camel", kw_only=True):
    """How far all groups of a broker have come (GET_BROKER_CONSUME_STATS)."""

    #: an object of one group each, its value one entry a topic
    consume_stats_list: list[dict[str, list[ConsumeStats]]]
    broker_addr: str
    #: messages that are not done
    total_diff: int
    #: messages that consumers hold
    total_inflight_diff: int


class QueueTimeSpan(msgspec.Struct, rename="camel", kw_only=True):
    """When messages of a queue were stored, milliseconds; -1: there is none."""

    message_queue: MessageQueue
    min_time_stamp: int
    max_time_stamp: int
    #: of the last one that is done; of the first one when none is
    consume_time_stamp: int
    #: how long the next one has been waiting
    delay_time: int


class ConsumeTimeSpans(msgspec.Struct, rename="camel"):
    """QUERY_CONSUME_TIME_SPAN"""

    consume_time_span_set: list[QueueTimeSpan]


class CorrectionOffsets(msgspec.Struct, rename="camel"):
    """By queue id (QUERY_CORRECTION_OFFSET)."""

    correction_offsets: dict[int, int]


class ResetOffsets(msgspec.Struct, rename="camel"):
    """Where queues were reset to (INVOKE_BROKER_TO_RESET_OFFSET, RESET_CONSUMER_CLIENT_OFFSET)."""

    #: MessageQueue → offset
    offset_table: msgspec.Raw


class QueueOffset(MessageQueue, frozen=True, rename="camel"):
    """A queue and an offset of it, as clients in C++ read them."""

    offset: int


class ResetOffsetsForC(msgspec.Struct, rename="camel"):
    """The same for clients in C++."""

    offset_table: list[QueueOffset]


class ConsumerStatus(msgspec.Struct, rename="camel"):
    """Where the members of a group are, each by its client id (INVOKE_BROKER_TO_GET_CONSUMER_STATUS)."""

    #: client id → (MessageQueue → offset)
    consumer_table: dict[str, msgspec.Raw]
    #: only in the answer of a client
    message_queue_table: dict[str, int] = {}


def decode_positions(body: bytes) -> dict[MessageQueue, int]:
    """Where one client is (GET_CONSUMER_STATUS_FROM_CLIENT). Raises InvalidParameter."""
    try:
        positions = json.parse(body)["messageQueueTable"]
        if all(isinstance(queue, MessageQueue) and isinstance(at, int) for queue, at in positions.items()):
            return dict(positions)
    except (ProtocolError, LookupError, TypeError, AttributeError):
        pass
    raise InvalidParameter(f"the client says where it is in a way that cannot be read: {body[:200]!r}")


class ConsumerRunningInfo(msgspec.Struct, rename="camel", kw_only=True):
    """What a consumer says of itself (GET_CONSUMER_RUNNING_INFO), as far as one without queues of its own has it."""

    properties: dict[str, str]
    subscription_set: list[SubscriptionData]
    mq_table: dict[str, str] = {}
    mq_pop_table: dict[str, str] = {}
    status_table: dict[str, str] = {}
    user_consumer_info: dict[str, str] = {}
    #: the stacks of its threads
    jstack: str | None = None


class DirectResult(msgspec.Struct, rename="camel", kw_only=True):
    """What came of a message that a consumer was handed (CONSUME_MESSAGE_DIRECTLY)."""

    #: CR_SUCCESS, CR_LATER, CR_ROLLBACK, CR_COMMIT, CR_THROW_EXCEPTION, CR_RETURN_NULL
    consume_result: str
    remark: str
    order: bool = False
    auto_commit: bool = True
    spent_time_mills: int = 0


class ConsumeQueueEntry(msgspec.Struct, rename="camel", kw_only=True):
    """One entry of a consume queue (ConsumeQueueData)."""

    #: in the commit log
    physic_offset: int
    #: bytes
    physic_size: int
    tags_code: int
    #: of an extension, which ours has none of
    eval: bool = False


class ConsumeQueuePage(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=True):
    """Some entries of a consume queue (QUERY_CONSUME_QUEUE)."""

    queue_data: list[ConsumeQueueEntry]
    max_queue_index: int
    min_queue_index: int
    subscription_data: SubscriptionData | None = None
    filter_data: str | None = None
