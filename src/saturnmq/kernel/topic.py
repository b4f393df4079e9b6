"""Topics, consumer groups, queues and routes, with the names that RocketMQ derives from them.

The structs encode (msgspec) to the JSON that Apache's processes exchange and keep in `config/*.json`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from saturnmq.kernel.errors import IllegalGroup, IllegalTopic

READ, WRITE, INHERIT = 4, 2, 1
#: the bit of topics whose messages have priorities
PRIORITY = 8
READ_WRITE = READ | WRITE

#: bits of a topic's sysFlag: sent to, or consumed, by clients in unit mode (common/sysflag/TopicSysFlag.java)
UNIT, UNIT_SUBSCRIPTION = 1, 2

RETRY_PREFIX = "%RETRY%"
DLQ_PREFIX = "%DLQ%"
SYSTEM_PREFIX = "rmq_sys_"
DEFAULT_TOPIC = "TBW102"
SCHEDULE_TOPIC = "SCHEDULE_TOPIC_XXXX"
HALF_TOPIC = "RMQ_SYS_TRANS_HALF_TOPIC"
OP_HALF_TOPIC = "RMQ_SYS_TRANS_OP_HALF_TOPIC"
TRANS_CHECK_MAX_TIME_TOPIC = "TRANS_CHECK_MAX_TIME_TOPIC"
TRACE_TOPIC = "RMQ_SYS_TRACE_TOPIC"
SELF_TEST_TOPIC = "SELF_TEST_TOPIC"
BENCHMARK_TOPIC = "BenchmarkTest"
OFFSET_MOVED_TOPIC = "OFFSET_MOVED_EVENT"
TIMER_TOPIC = "rmq_sys_wheel_timer"
REVIVE_GROUP = "CID_RMQ_SYS_REVIVE_GROUP"
TRANSACTION_GROUP = "CID_RMQ_SYS_TRANS"
SYSTEM_GROUP_PREFIX = "CID_RMQ_SYS_"

#: common/topic/TopicValidator.java
SYSTEM_TOPICS = frozenset(
    {
        DEFAULT_TOPIC, SCHEDULE_TOPIC, BENCHMARK_TOPIC, HALF_TOPIC, TRACE_TOPIC, OP_HALF_TOPIC,
        TRANS_CHECK_MAX_TIME_TOPIC, SELF_TEST_TOPIC, OFFSET_MOVED_TOPIC,
        # Apache's broker has these for itself when it keeps things in RocksDB; ours only keeps the names
        "CHECKPOINT_TOPIC", "RMQ_SYS_ROCKSDB_TRANS_HALF_TOPIC", "RMQ_SYS_ROCKSDB_TRANS_OP_HALF_TOPIC",
    }
)  # fmt: skip
#: topics that no client may send to
NO_SEND_TOPICS = frozenset(
    {
        SCHEDULE_TOPIC,
        TIMER_TOPIC,
        HALF_TOPIC,
        OP_HALF_TOPIC,
        TRANS_CHECK_MAX_TIME_TOPIC,
        SELF_TEST_TOPIC,
        OFFSET_MOVED_TOPIC,
    }
)

#: what the 18 delay levels mean by default, milliseconds
LEVEL_WAITS_MS = (
    1_000, 5_000, 10_000, 30_000, 60_000, 120_000, 180_000, 240_000, 300_000, 360_000, 420_000, 480_000, 540_000,
    600_000, 1_200_000, 1_800_000, 3_600_000, 7_200_000,
)  # fmt: skip

#: topic attribute, ours: for so many seconds a message id is stored once
DEDUP_WINDOW = "dedup.window.seconds"
MAX_DEDUP_WINDOW_S = 7 * 86_400

MAX_TOPIC_LENGTH = 127
#: of %RETRY%<group>_<topic> and %DLQ%<group>
MAX_DERIVED_TOPIC_LENGTH = 255
MAX_GROUP_LENGTH = 120
_NAME = re.compile(r"[%|a-zA-Z0-9_-]+\Z")


class MessageType(StrEnum):
    """What a topic takes: its attribute `message.type`."""

    NORMAL = "NORMAL"
    FIFO = "FIFO"
    DELAY = "DELAY"
    TRANSACTION = "TRANSACTION"
    MIXED = "MIXED"
    UNSPECIFIED = "UNSPECIFIED"


class TopicConfig(msgspec.Struct, rename="camel", kw_only=True):
    """A topic of one broker (common/TopicConfig.java)."""

    topic_name: str
    read_queue_nums: int = 16
    write_queue_nums: int = 16
    perm: int = READ_WRITE
    topic_filter_type: str = "SINGLE_TAG"
    topic_sys_flag: int = 0
    order: bool = False
    attributes: dict[str, str] = {}

    @property
    def message_type(self) -> MessageType:
        """The attribute `message.type`: NORMAL when absent, UNSPECIFIED when this server does not know it."""
        text = self.attributes.get("message.type", MessageType.NORMAL)
        return MessageType(text) if text in MessageType.__members__ else MessageType.UNSPECIFIED


class DataVersion(msgspec.Struct, rename="camel"):
    """How often a table of a broker changed; peers compare it before they ask for the table."""

    counter: int = 0
    state_version: int = 0
    #: of the last change, milliseconds
    timestamp: int = 0

    def bump(self, now_ms: int) -> None:
        self.counter += 1
        self.timestamp = now_ms


class ExponentialRetry(msgspec.Struct, rename="camel"):
    """Waits of a consumer's retries, milliseconds: `initial * multiplier ** n`, at most `max`."""

    initial: int = 5_000
    max: int = 7_200_000
    multiplier: int = 2


class CustomizedRetry(msgspec.Struct, rename="camel"):
    """Waits of a consumer's retries, milliseconds, one after the other, then the last one again."""

    next: list[int] = msgspec.field(default_factory=lambda: list(LEVEL_WAITS_MS))


class GroupRetryPolicy(msgspec.Struct, rename="camel"):
    #: CUSTOMIZED or EXPONENTIAL
    type: str = "CUSTOMIZED"
    exponential_retry_policy: ExponentialRetry | None = None
    customized_retry_policy: CustomizedRetry | None = None

    @property
    def is_set(self) -> bool:
        """It says something else than the delay levels do."""
        return self.exponential_retry_policy is not None or self.customized_retry_policy is not None

    @property
    def waits_ms(self) -> list[int]:
        """Those of CUSTOMIZED; never none, on which clients fail."""
        customized = self.customized_retry_policy
        return customized.next if customized is not None and customized.next else CustomizedRetry().next

    def delay_ms(self, reconsume_times: int) -> int:
        """How long a message that failed once more waits for its next delivery (CustomizedRetryPolicy.java: the first
        two of a list of waits are not used)."""
        if self.type == "EXPONENTIAL":
            exponential = self.exponential_retry_policy or ExponentialRetry()
            factor: int = exponential.multiplier ** min(max(reconsume_times, 0), 32)
            return min(exponential.initial * factor, exponential.max)
        waits = self.waits_ms
        return waits[min(max(reconsume_times, 0) + 2, len(waits) - 1)]


class GroupConfig(msgspec.Struct, rename="camel", kw_only=True):
    """A consumer group of one broker (remoting/protocol/subscription/SubscriptionGroupConfig.java)."""

    group_name: str
    consume_enable: bool = True
    consume_from_min_enable: bool = True
    consume_broadcast_enable: bool = True
    consume_message_orderly: bool = False
    retry_queue_nums: int = 1
    retry_max_times: int = 16
    group_retry_policy: GroupRetryPolicy = msgspec.field(default_factory=GroupRetryPolicy)
    broker_id: int = 0
    which_broker_when_consume_slowly: int = 1
    notify_consumer_ids_changed_enable: bool = True
    group_sys_flag: int = 0
    consume_timeout_minute: int = 15
    subscription_data_set: list[dict[str, Any]] | None = None
    attributes: dict[str, str] = {}


class MessageQueue(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """One queue of a topic on one broker."""

    topic: str
    broker_name: str
    queue_id: int


class BrokerData(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=False):
    """The addresses of a broker and its replicas by broker id; 0 is the master."""

    cluster: str
    broker_name: str
    broker_addrs: dict[int, str]
    enable_acting_master: bool = False
    zone_name: str | None = None


class QueueData(msgspec.Struct, rename="camel", kw_only=True):
    """How many queues a topic has on a broker, and what may be done with them."""

    broker_name: str
    read_queue_nums: int
    write_queue_nums: int
    perm: int
    topic_sys_flag: int = 0


class TopicRoute(msgspec.Struct, rename="camel", kw_only=True):
    """Where a topic lives (remoting/protocol/route/TopicRouteData.java)."""

    broker_datas: list[BrokerData]
    queue_datas: list[QueueData]
    filter_server_table: dict[str, list[str]] = {}
    order_topic_conf: str | None = None


class Registration(msgspec.Struct, kw_only=True):
    """What one broker tells a NameServer of itself. A later one may bring only the topics that changed."""

    cluster: str
    broker_name: str
    broker_id: int
    #: `host:port` for clients; the host 0.0.0.0 stands for the one that a client dialled
    address: str
    #: `host:port` for its replicas
    ha_address: str = ""
    topics: Mapping[str, TopicConfig]
    version: DataVersion
    #: milliseconds without a word from it after which it is gone; None leaves it to the NameServer
    heartbeat_timeout_ms: int | None = None
    #: None from brokers older than 5.0; else their replica with the lowest id speaks for a master that is gone
    enable_acting_master: bool | None = None
    zone_name: str | None = None
    #: of 4.x brokers
    filter_servers: list[str] = []


def retry_topic(group: str) -> str:
    return RETRY_PREFIX + group


def dlq_topic(group: str) -> str:
    return DLQ_PREFIX + group


def pop_retry_topic(group: str, topic: str, *, v2: bool = False) -> str:
    """Where pop puts what a group did not acknowledge in time (common/KeyBuilder.java)."""
    return f"{RETRY_PREFIX}{group}{'+' if v2 else '_'}{topic}"


def topic_of_retries(name: str, group: str) -> str:
    """Where a message was sent that the group failed: of a pop retry topic its topic, else the name itself."""
    prefix = RETRY_PREFIX + group
    return name[len(prefix) + 1 :] if name.startswith((prefix + "_", prefix + "+")) else name


def is_system_topic(topic: str) -> bool:
    return topic in SYSTEM_TOPICS or topic.startswith(SYSTEM_PREFIX)


def is_system_group(group: str) -> bool:
    return group.startswith(SYSTEM_GROUP_PREFIX)


def check_topic(topic: str) -> None:
    """Raises IllegalTopic unless the name can be a topic (common/topic/TopicValidator.java)."""
    if not topic.strip():
        raise IllegalTopic("the topic is empty")
    most = MAX_DERIVED_TOPIC_LENGTH if topic.startswith((RETRY_PREFIX, DLQ_PREFIX)) else MAX_TOPIC_LENGTH
    if len(topic) > most:
        raise IllegalTopic(f"the topic has {len(topic)} characters, the limit is {most}")
    if not _NAME.match(topic):
        raise IllegalTopic(f"the topic {topic!r} has a character outside of letters, digits and % | _ -")


def check_group(group: str) -> None:
    """Raises IllegalGroup unless the name can be a consumer group (client/Validators.java)."""
    if not group.strip():
        raise IllegalGroup("the consumer group is empty")
    if len(group) > MAX_GROUP_LENGTH:
        raise IllegalGroup(f"the consumer group has {len(group)} characters, the limit is {MAX_GROUP_LENGTH}")
    if not _NAME.match(group):
        raise IllegalGroup(f"the consumer group {group!r} has a character outside of letters, digits and % | _ -")
