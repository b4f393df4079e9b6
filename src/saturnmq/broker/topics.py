"""The topics of a broker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from saturnmq.broker.attributes import TOPIC_ATTRIBUTES, alter
from saturnmq.broker.jsonfile import JsonFile
from saturnmq.disk.port import Disk
from saturnmq.kernel.clock import Background, Clock
from saturnmq.kernel.config import BrokerConfig
from saturnmq.kernel.errors import IllegalTopic, InvalidParameter
from saturnmq.kernel.later import Reply
from saturnmq.kernel.topic import (
    BENCHMARK_TOPIC,
    DEFAULT_TOPIC,
    DLQ_PREFIX,
    HALF_TOPIC,
    INHERIT,
    OFFSET_MOVED_TOPIC,
    OP_HALF_TOPIC,
    PRIORITY,
    READ_WRITE,
    RETRY_PREFIX,
    SCHEDULE_TOPIC,
    SELF_TEST_TOPIC,
    SYSTEM_TOPICS,
    TIMER_TOPIC,
    TRACE_TOPIC,
    TRANS_CHECK_MAX_TIME_TOPIC,
    DataVersion,
    MessageType,
    TopicConfig,
    check_topic,
    dlq_topic,
    is_system_topic,
    pop_retry_topic,
    retry_topic,
)

log = logging.getLogger(__name__)

SCHEDULE_QUEUES = 18


def revive_topic(cluster: str) -> str:
    """Where pop keeps what is in flight."""
    return f"rmq_sys_REVIVE_LOG_{cluster}"


def reply_topic(cluster: str) -> str:
    """Where answers of request-reply are kept."""
    return f"{cluster}_REPLY_TOPIC"


class _File(msgspec.Struct, rename="camel"):
    """config/topics.json"""

    topic_config_table: dict[str, TopicConfig] = {}
    data_version: DataVersion = msgspec.field(default_factory=DataVersion)


class TopicTable:
    """Owns the topic configs and `config/topics.json` (broker/topic/TopicConfigManager.java).

    A change is written at the end of the turn, or of a pause in proportion to the length of the table. What a crash
    makes it forget of that is made again of the queues that are there: no message is out of reach.
    """

    def __init__(self, config: BrokerConfig, disk: Disk, clock: Clock, background: Background | None = None) -> None:
        self._config, self._clock = config, clock
        self._topics: dict[str, TopicConfig] = {topic.topic_name: topic for topic in _system_topics(config)}
        self._own = {config.broker_cluster_name, config.broker_name, reply_topic(config.broker_cluster_name)}
        self._file = JsonFile(disk, clock, "topics.json", self._encode, background=background)
        #: queues of all topics
        self._queues = sum(map(_queues_of, self._topics.values()))
        self.version = DataVersion(timestamp=clock.now_ms())
        #: told of every new and changed topic; set by the registration
        self.on_change: Callable[[TopicConfig], None] = lambda topic: None

    @property
    def configs(self) -> Mapping[str, TopicConfig]:
        return self._topics

    def load(self) -> None:
        """Raises ValueError when the file and its .bak are broken."""
        stored = self._file.read(_File)
        if stored is not None:
            self._topics.update(stored.topic_config_table)
            self.version = stored.data_version
            self.version.bump(self._clock.now_ms())
            self._queues = sum(map(_queues_of, self._topics.values()))

    def restore(self, name: str, queue_nums: int) -> None:
        """Make a topic again of which only its messages are left. It takes messages of all types: which it took is not
        known any more."""
        log.warning(
            "topic %s has messages and no settings, as after a crash: made again, with %d queues", name, queue_nums
        )
        self.put(
            TopicConfig(
                topic_name=name,
                read_queue_nums=queue_nums,
                write_queue_nums=queue_nums,
                attributes={"message.type": MessageType.MIXED.value},
            )
        )

    def configure(self, config: BrokerConfig) -> None:
        """Other rules for topics made from now on, and what NameServers hear of all of them (brokerPermission)."""
        if config.broker_permission != self._config.broker_permission:
            self.version.bump(self._clock.now_ms())
        self._config = config

    def write(self) -> Reply[None]:
        return self._file.write()

    def get(self, name: str) -> TopicConfig | None:
        return self._topics.get(name)

    def get_or_create(self, name: str) -> TopicConfig | None:
        """The topic; one that is not there is created with `--dev`, else None."""
        topic = self._topics.get(name)
        if topic is not None or not self._config.dev_auto_create or not _is_users(name):
            return topic
        return self._create(name, self._config.default_topic_queue_nums)

    def put(self, topic: TopicConfig) -> None:
        """Add or replace it as it is."""
        before = self._topics.get(topic.topic_name)
        log.info("topic %s: %s", "created" if before is None else "changed", topic)
        self._queues += _queues_of(topic) - (0 if before is None else _queues_of(before))
        self._topics[topic.topic_name] = topic
        self.version.bump(self._clock.now_ms())
        self._file.changed()
        self.on_change(topic)

    def alter(self, topics: Iterable[TopicConfig]) -> None:
        """Add or replace them, all or none; their attributes are changes (`+key`, `-key`) to what is there. Raises
        IllegalTopic, IllegalAttribute, InvalidParameter."""
        for topic in [self._altered(topic) for topic in topics]:
            if topic != self._topics.get(topic.topic_name):
                self.put(topic)

    def _altered(self, topic: TopicConfig) -> TopicConfig:
        name = topic.topic_name
        check_topic(name)
        if self.is_system(name):
            raise IllegalTopic(f"The topic[{name}] is conflict with system topic.")
        if topic.read_queue_nums < 1 or topic.write_queue_nums < 1:
            raise InvalidParameter(f"the topic {name} needs at least one queue to read and one to write")
        if not 0 <= topic.perm <= READ_WRITE | INHERIT | PRIORITY:
            raise InvalidParameter(f"perm {topic.perm} of {name}: add up 4 (read), 2 (write) and 1 (a template)")
        self._check_queues(topic)
        current = self._topics.get(name)
        attributes = alter(TOPIC_ATTRIBUTES, None if current is None else current.attributes, topic.attributes)
        if topic.attributes.get("+message.type") == MessageType.MIXED and not (
            self._config.enable_mixed_message_type or self._config.dev_auto_create
        ):
            raise InvalidParameter(
                f"{name}: MIXED message type is not supported unless enableMixedMessageType is true; give the topic "
                f"one type, for clients treat each in its own way"
            )
        return msgspec.structs.replace(topic, attributes=attributes)

    def delete(self, name: str) -> None:
        """Forget it. Clients are told by the NameServers, which hear of it from whoever deletes the topic there."""
        topic = self._topics.pop(name, None)
        if topic is not None:
            log.info("topic %s is deleted", name)
            self._queues -= _queues_of(topic)
            self.version.bump(self._clock.now_ms())
            self._file.changed()

    def system_topics(self) -> set[str]:
        """What no user may have, make or delete; whether this broker uses them or not."""
        return {*SYSTEM_TOPICS, *self._own, *filter(is_system_topic, self._topics)}

    def is_system(self, name: str) -> bool:
        """Whether the broker made the topic for itself."""
        return is_system_topic(name) or name in self._own

    def create_from_default(
        self, name: str, default_topic: str, queue_nums: int, topic_sys_flag: int = 0
    ) -> TopicConfig | None:
        """What the first send to an unknown topic makes of its template. None when the template does not allow it."""
        template = self._topics.get(default_topic)
        if template is None or not template.perm & INHERIT:
            return None
        if default_topic == DEFAULT_TOPIC and not (
            self._config.auto_create_topic_enable or self._config.dev_auto_create
        ):
            return None
        queue_nums = max(1, min(queue_nums, template.write_queue_nums))
        return self._create(name, queue_nums, template.perm & ~INHERIT, topic_sys_flag, template.topic_filter_type)

    def ensure_retry(self, group: str, queue_nums: int = 1, topic_sys_flag: int = 0) -> TopicConfig:
        """`%RETRY%<group>`"""
        return self._ensure(retry_topic(group), queue_nums, topic_sys_flag)

    def ensure_dlq(self, group: str) -> TopicConfig:
        """`%DLQ%<group>`"""
        return self._ensure(dlq_topic(group), 1)

    def ensure_given_up(self) -> TopicConfig:
        """Where half messages go about which producers were asked too often."""
        return self._ensure(TRANS_CHECK_MAX_TIME_TOPIC, 1)

    def ensure_pop_retry(self, group: str, topic: str) -> TopicConfig:
        """Where pop puts what the group did not acknowledge in time."""
        return self._ensure(pop_retry_topic(group, topic, v2=self._config.enable_retry_topic_v2), 1)

    def _ensure(self, name: str, queue_nums: int, topic_sys_flag: int = 0) -> TopicConfig:
        topic = self._topics.get(name)
        if topic is None:
            queue_nums = min(queue_nums, self._config.max_topic_queue_nums)
            topic = TopicConfig(
                topic_name=name, read_queue_nums=queue_nums, write_queue_nums=queue_nums, topic_sys_flag=topic_sys_flag
            )
            self.put(topic)
        return topic

    def _create(
        self,
        name: str,
        queue_nums: int,
        perm: int = READ_WRITE,
        topic_sys_flag: int = 0,
        topic_filter_type: str = "SINGLE_TAG",
    ) -> TopicConfig:
        topic = TopicConfig(
            topic_name=name,
            read_queue_nums=queue_nums,
            write_queue_nums=queue_nums,
            perm=perm,
            topic_sys_flag=topic_sys_flag,
            topic_filter_type=topic_filter_type,
            attributes={"message.type": MessageType.MIXED.value} if self._config.dev_auto_create else {},
        )
        self._check_queues(topic)
        self.put(topic)
        return topic

    def _check_queues(self, topic: TopicConfig) -> None:
        """Raises InvalidParameter when there would be too many of them. What the broker makes for itself passes."""
        queues, most, in_all = _queues_of(topic), self._config.max_topic_queue_nums, self._config.max_queue_nums
        if queues > most:
            raise InvalidParameter(
                f"the topic {topic.topic_name} would have {queues} queues, the limit is {most} (maxTopicQueueNums)"
            )
        before = self._topics.get(topic.topic_name)
        more = queues - (0 if before is None else _queues_of(before))
        if more > 0 and self._queues + more > in_all:
            raise InvalidParameter(
                f"the topic {topic.topic_name} would bring {more} queues more, this broker has {self._queues} and the "
                f"limit is {in_all} (maxQueueNums)"
            )

    def _encode(self) -> bytes:
        return msgspec.json.encode(_File(self._topics, self.version))


def _queues_of(topic: TopicConfig) -> int:
    return max(topic.read_queue_nums, topic.write_queue_nums)


def _is_users(name: str) -> bool:
    """Whether an application could mean a topic of its own by the name."""
    try:
        check_topic(name)
    except IllegalTopic:
        return False
    return not (name.startswith((RETRY_PREFIX, DLQ_PREFIX)) or is_system_topic(name))


def _system_topics(config: BrokerConfig) -> Iterator[TopicConfig]:
    """What every broker has from the start (TopicConfigManager#init)."""
    cluster, broker = config.broker_cluster_name, config.broker_name
    yield _system_topic(SELF_TEST_TOPIC, 1)
    if config.auto_create_topic_enable or config.dev_auto_create:
        yield _system_topic(DEFAULT_TOPIC, config.default_topic_queue_nums, INHERIT | READ_WRITE)
    yield _system_topic(BENCHMARK_TOPIC, 1024)
    yield _system_topic(cluster, 16, INHERIT | (READ_WRITE if config.cluster_topic_enable else 0))
    yield _system_topic(broker, 1, INHERIT | (READ_WRITE if config.broker_topic_enable else 0))
    yield _system_topic(OFFSET_MOVED_TOPIC, 1)
    yield _system_topic(SCHEDULE_TOPIC, SCHEDULE_QUEUES)
    if config.trace_topic_enable:
        yield _system_topic(TRACE_TOPIC, 1)
    yield _system_topic(reply_topic(cluster), 1)
    yield _system_topic(revive_topic(cluster), config.revive_queue_num)
    yield _system_topic(f"rmq_sys_SYNC_BROKER_MEMBER_{broker}", 1, INHERIT)
    yield _system_topic(HALF_TOPIC, 1)
    yield _system_topic(OP_HALF_TOPIC, 1)
    yield _system_topic(TIMER_TOPIC, 1)


def _system_topic(name: str, queues: int, perm: int = READ_WRITE) -> TopicConfig:
    return TopicConfig(topic_name=name, read_queue_nums=queues, write_queue_nums=queues, perm=perm)
