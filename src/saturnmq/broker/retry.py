"""Sending back: a consumer could not handle a message and wants it again later, or never again."""

from __future__ import annotations

from collections.abc import Callable

from saturnmq.broker.deadletters import dead_letter
from saturnmq.broker.groups import GroupTable
from saturnmq.broker.schedule import DelayLevels
from saturnmq.broker.topics import TopicTable
from saturnmq.kernel import properties as names
from saturnmq.kernel.config import BrokerConfig
from saturnmq.kernel.errors import GroupNotFound, NoPermission, NoSuchMessage
from saturnmq.kernel.later import Reply, chain
from saturnmq.kernel.message import BORN_HOST_V6, STORE_HOST_V6, Message
from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.ports import DeadReason, SendBackRequest
from saturnmq.kernel.topic import UNIT_SUBSCRIPTION, WRITE, GroupConfig, GroupRetryPolicy
from saturnmq.store.store import Store
from saturnmq.wire import record

#: level of the first retry; each later one is a level higher
FIRST_LEVEL = 3


class SendBacks:
    """Copies messages to `%RETRY%<group>` through a delay level, or to `%DLQ%<group>`.

    Source: processor/AbstractSendMessageProcessor.java#consumerSendMsgBack.
    """

    def __init__(
        self,
        config: BrokerConfig,
        store: Store,
        topics: TopicTable,
        groups: GroupTable,
        delays: DelayLevels,
        random: Callable[[int], int],
        metrics: Metrics,
    ) -> None:
        self._store, self._topics, self._groups = store, topics, groups
        self._delays, self._random = delays, random
        self.configure(config)
        self._sent_back = metrics.counter(
            "saturnmq_send_back_messages_total", "Messages that consumers sent back", ("topic", "consumer_group")
        )
        self._dead = metrics.counter(
            "rocketmq_send_to_dlq_messages_total", "Messages that became dead letters", ("consumer_group",)
        )

    def configure(self, config: BrokerConfig) -> None:
        """Take over what may change while the broker runs: whether it takes messages."""
        self._name, self._may_write = config.broker_name, config.broker_permission & WRITE

    def send_back(self, request: SendBackRequest) -> Reply[None]:
        """Answers when the copy is durable: the consumer commits the original then."""
        group = self._groups.get(request.group)
        if group is None:
            raise GroupNotFound(f"subscription group not exist, {request.group}")
        if not self._may_write:
            raise NoPermission(f"the broker[{self._name}] sending message is forbidden")
        if group.retry_queue_nums <= 0:
            return None
        return chain(self._store.record_at(request.commit_log_offset), lambda data: self._copy(request, group, data))

    def _next_level(self, policy: GroupRetryPolicy, reconsume_times: int) -> int:
        """Of a message that failed once more: the group's policy counts where it has one. Apache heeds it only for gRPC
        consumers."""
        if policy.is_set:
            return self._delays.level_of(policy.delay_ms(reconsume_times))
        return FIRST_LEVEL + reconsume_times

    def _copy(self, request: SendBackRequest, group: GroupConfig, data: bytes | None) -> Reply[None]:
        if data is None:
            raise NoSuchMessage(f"look message by offset failed, {request.commit_log_offset}")
        stored = record.decode(data)
        properties = names.decode(stored.properties)
        properties.setdefault(names.RETRY_TOPIC, stored.topic)
        properties[names.WAIT] = "false"
        if not properties.get(names.ORIGIN_MESSAGE_ID, "").strip():
            properties[names.ORIGIN_MESSAGE_ID] = record.offset_message_id(stored.store_host, stored.commit_log_offset)
        most = group.retry_max_times if request.max_reconsume_times is None else request.max_reconsume_times
        given_up = request.delay_level < 0
        dead = given_up or stored.reconsume_times >= most
        level = 0 if dead else request.delay_level or self._next_level(group.group_retry_policy, stored.reconsume_times)
        properties[names.DELAY] = str(level)
        if dead:
            topic, queue_id = self._topics.ensure_dlq(request.group), 0
            properties = dead_letter(properties, request.group, request.reason if given_up else DeadReason.MAX_ATTEMPTS)
            self._dead.add((request.group,))
        else:
            unit = UNIT_SUBSCRIPTION if request.unit_mode else 0
            topic = self._topics.ensure_retry(request.group, group.retry_queue_nums, unit)
            queue_id = self._random(group.retry_queue_nums)
        if not topic.perm & WRITE:
            raise NoPermission(f"the topic[{topic.topic_name}] sending message is forbidden")
        message = Message(
            topic=topic.topic_name,
            queue_id=queue_id,
            body=stored.body,
            properties=names.encode(properties),
            born_ms=stored.born_ms,
            born_host=stored.born_host,
            flag=stored.flag,
            sys_flag=stored.sys_flag & ~(BORN_HOST_V6 | STORE_HOST_V6),
            reconsume_times=min(stored.reconsume_times + 1, record.MAX_RECONSUME_TIMES),
        )
        if level > 0:
            self._delays.postpone(message, level)
        (appended,) = self._store.append((message,))
        self._sent_back.add((properties[names.RETRY_TOPIC], request.group))
        return self._store.when_durable(appended.end, None)
