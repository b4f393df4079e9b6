"""Sending: from a request to records in the log."""

from __future__ import annotations

from collections.abc import Callable

from saturnmq.broker import halfmessages
from saturnmq.broker.deadletters import dead_letter
from saturnmq.broker.dedup import DedupWindows, Known, may_repeat, window_ms
from saturnmq.broker.groups import GroupTable
from saturnmq.broker.locks import QueueLocks
from saturnmq.broker.schedule import DelayLevels
from saturnmq.broker.timermessages import TIMERS
from saturnmq.broker.timers import Timers
from saturnmq.broker.topics import TopicTable
from saturnmq.kernel import properties as names
from saturnmq.kernel.clock import Clock
from saturnmq.kernel.config import BrokerConfig
from saturnmq.kernel.errors import (
    BodyTooLarge,
    GroupNotFound,
    IllegalMessage,
    InvalidParameter,
    NoPermission,
    NotSupported,
    PropertiesTooLarge,
    TopicNotFound,
)
from saturnmq.kernel.handle import RecallHandle
from saturnmq.kernel.later import Reply
from saturnmq.kernel.message import INNER_BATCH, NEED_UNWRAP, TRANSACTION_MASK, Appended, Message
from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.ports import DeadReason, SendReceipt, SendRequest
from saturnmq.kernel.topic import (
    DEDUP_WINDOW,
    HALF_TOPIC,
    NO_SEND_TOPICS,
    RETRY_PREFIX,
    UNIT,
    UNIT_SUBSCRIPTION,
    WRITE,
    TopicConfig,
    check_topic,
)
from saturnmq.store.store import Store
from saturnmq.wire.record import MAX_PROPERTIES_BYTES, offset_message_id

#: properties that ask for more than an append, or that only the broker may set
_SPECIAL = frozenset(
    {
        names.DELAY, names.TRANSACTION_PREPARED, names.TIMER_DELAY_SEC, names.TIMER_DELAY_MS, names.TIMER_DELIVER_MS,
        names.INNER_MULTI_DISPATCH, names.POP_CK, names.MESSAGE_REGION, names.TRACE_ON, names.CLUSTER,
    }
)  # fmt: skip
#: sysFlag bits of messages that are not simply appended
_UNUSUAL = TRANSACTION_MASK | INNER_BATCH | NEED_UNWRAP


class Sends:
    """Checks, completes and appends what producers send (processor/SendMessageProcessor.java).

    The path of an ordinary message is `send` alone; what is rare has a method of its own.
    """

    def __init__(
        self,
        config: BrokerConfig,
        store: Store,
        clock: Clock,
        topics: TopicTable,
        groups: GroupTable,
        locks: QueueLocks,
        delays: DelayLevels,
        timers: Timers,
        windows: DedupWindows,
        random: Callable[[int], int],
        metrics: Metrics,
    ) -> None:
        self._store, self._clock, self._topics, self._groups = store, clock, topics, groups
        self._locks, self._delays, self._timers, self._random = locks, delays, timers, random
        self._windows = windows
        self.configure(config)
        #: what Apache's broker adds to every message; a consumer needs CLUSTER to answer a request
        self._stamp = names.encode(
            {
                names.MESSAGE_REGION: config.region_id,
                names.TRACE_ON: str(config.trace_on).lower(),
                names.CLUSTER: config.broker_cluster_name,
            }
        )
        self._messages_in = metrics.counter("rocketmq_messages_in_total", "Messages that were sent", ("topic",))
        self._bytes_in = metrics.counter("rocketmq_throughput_in_total", "Bytes that were sent", ("topic",))
        self._dead = metrics.counter(
            "rocketmq_send_to_dlq_messages_total", "Messages that became dead letters", ("consumer_group",)
        )

    def configure(self, config: BrokerConfig) -> None:
        """Take over what may change while the broker runs: whether it takes messages."""
        self._config, self._may_write = config, config.broker_permission & WRITE

    def send(self, request: SendRequest) -> Reply[SendReceipt]:
        """Append and answer when it is as durable as configured. Raises what a producer did wrong.

        The request's messages belong to the broker from here on: it completes them in place.
        """
        message = request.messages[0]
        topic = self.admit(request)
        queue_id = message.queue_id
        if queue_id < 0:
            queue_id = message.queue_id = self._random(topic.write_queue_nums)
        if request.batch:
            return self._send_batch(request.messages, topic)
        properties = request.properties
        unique_key = properties.get(names.UNIQUE_KEY)
        has_window = DEDUP_WINDOW in topic.attributes and may_repeat(topic, properties)
        if has_window and (known := self._windows.find(topic, properties[names.UNIQUE_KEY])) is not None:
            return self._repeated(topic, known, properties)
        slot_ms = None
        if (
            not unique_key
            or not _SPECIAL.isdisjoint(properties)
            or message.sys_flag & _UNUSUAL
            or topic.topic_name.startswith(RETRY_PREFIX)
        ):
            slot_ms = self._prepare(request, message, properties)
            unique_key = properties[names.UNIQUE_KEY]
        elif message.properties.endswith(b"\x02"):
            message.properties += self._stamp
        else:
            message.properties += b"\x02" + self._stamp
        (appended,) = self._store.append((message,))
        if has_window:
            self._windows.add(topic, unique_key, Known(appended, queue_id, slot_ms))
        labels = (HALF_TOPIC if message.topic == HALF_TOPIC else topic.topic_name,)
        self._messages_in.values[labels] += 1
        self._bytes_in.values[labels] += appended.size
        receipt = self._receipt(topic, appended, queue_id, slot_ms, unique_key)
        if properties.get(names.WAIT) == "false":
            return receipt
        return self._store.when_durable(appended.end, receipt)

    def _repeated(self, topic: TopicConfig, known: Known, properties: dict[str, str]) -> Reply[SendReceipt]:
        """It was stored before: answer as the first one was answered, or when that is."""
        unique_key = properties[names.UNIQUE_KEY]
        receipt = self._receipt(topic, known.place, known.queue_id, known.slot_ms, unique_key)
        if properties.get(names.WAIT) == "false":
            return receipt
        return self._store.when_durable(known.place.end, receipt)

    def _receipt(
        self, topic: TopicConfig, place: Appended, queue_id: int, slot_ms: int | None, unique_key: str
    ) -> SendReceipt:
        recall_handle = None
        if slot_ms is not None:
            recall_handle = RecallHandle.of(topic.topic_name, self._config.broker_name, slot_ms, unique_key).encode()
        return SendReceipt(
            queue_id=queue_id,
            queue_offset=place.queue_offset,
            message_id=offset_message_id(self._store.store_host, place.commit_log_offset),
            commit_log_offset=place.commit_log_offset,
            transaction_id=unique_key,
            recall_handle=recall_handle,
        )

    def admit(self, request: SendRequest) -> TopicConfig:
        """The topic, which is created when that is allowed. Raises unless it takes the message."""
        message = request.messages[0]
        name = message.topic
        topic = self._topics.get(name)
        if topic is None or not topic.perm & self._may_write or name in NO_SEND_TOPICS:
            topic = self._admit_rare(request, name, topic)
        if message.queue_id >= topic.write_queue_nums and message.queue_id >= topic.read_queue_nums:
            raise InvalidParameter(
                f"request queueId[{message.queue_id}] is illegal, {name} has "
                f"{topic.write_queue_nums} write and {topic.read_queue_nums} read queues"
            )
        return topic

    def _admit_rare(self, request: SendRequest, name: str, topic: TopicConfig | None) -> TopicConfig:
        """An unknown topic, or one that may not be sent to."""
        if not self._may_write:
            raise NoPermission(f"the broker[{self._config.broker_name}] sending message is forbidden")
        check_topic(name)
        if name in NO_SEND_TOPICS:
            raise NoPermission(f"Sending message to topic[{name}] is forbidden.")
        if topic is None:
            if name.startswith(RETRY_PREFIX):
                flags = UNIT_SUBSCRIPTION if request.unit_mode else 0
                return self._topics.ensure_retry(name.removeprefix(RETRY_PREFIX), topic_sys_flag=flags)
            topic = self._topics.create_from_default(
                name, request.default_topic, request.default_queue_nums, UNIT if request.unit_mode else 0
            )
            topic = topic or self._topics.get_or_create(name)
        if topic is None:
            raise TopicNotFound(f"topic[{name}] not exist, apply first please!")
        if not topic.perm & WRITE:
            raise NoPermission(f"the topic[{name}] sending message is forbidden")
        return topic

    def _send_batch(self, messages: list[Message], topic: TopicConfig) -> Reply[SendReceipt]:
        """Consecutive messages of one queue, each a record of its own, stored as they came."""
        if topic.topic_name.startswith(RETRY_PREFIX):
            raise IllegalMessage(f"batch request does not support retry group {topic.topic_name}")
        if topic.attributes.get("queue.type") == "BatchCQ":
            raise NotSupported(f"{topic.topic_name} is a BatchCQ topic; this version of SaturnMQ has no inner batches")
        if messages[0].sys_flag & _UNUSUAL:
            raise IllegalMessage(f"the sysFlag {messages[0].sys_flag} says what no batch can be: send one by one")
        queue_id = messages[0].queue_id
        size = 0
        for message in messages:
            message.queue_id = queue_id
            size += len(message.body)
            if b"TIMER_DEL" in message.properties and not names.decode(message.properties).keys().isdisjoint(TIMERS):
                raise IllegalMessage("a batch cannot have messages for a time: send them one by one")
        if size > self._store.config.max_message_size:
            raise BodyTooLarge(f"the batch has {size} bytes, the limit is {self._store.config.max_message_size}")
        appended = self._append_new(messages, topic) if window_ms(topic) else self._append(messages)
        host = self._store.store_host
        receipt = SendReceipt(
            queue_id=appended[0].queue_id,
            queue_offset=appended[0].queue_offset,
            message_id=",".join([offset_message_id(host, one.commit_log_offset) for one in appended]),
            commit_log_offset=appended[0].commit_log_offset,
        )
        return self._store.when_durable(max(one.end for one in appended), receipt)

    def _append(self, messages: list[Message]) -> list[Appended]:
        appended = self._store.append(messages)
        labels = (messages[0].topic,)
        self._messages_in.values[labels] += len(appended)
        self._bytes_in.values[labels] += appended[-1].end - appended[0].commit_log_offset
        return appended

    def _append_new(self, messages: list[Message], topic: TopicConfig) -> list[Appended]:
        """Those of the batch that the window of their topic does not have; where all of them are."""
        keys = [names.decode(message.properties).get(names.UNIQUE_KEY, "") for message in messages]
        known = [self._windows.find(topic, key, room=len(messages)) if key else None for key in keys]
        # one that is in it twice goes with the first
        first = [keys.index(key) if key else index for index, key in enumerate(keys)]
        new = [index for index, one in enumerate(known) if one is None and first[index] == index]
        for index, place in zip(new, self._append([messages[index] for index in new]) if new else (), strict=True):
            known[index] = Known(place, place.queue_id, None)
            if keys[index]:
                self._windows.add(topic, keys[index], Known(place, place.queue_id, None))
        places = [known[index] for index in first]
        return [one.place for one in places if one is not None]

    def _prepare(self, request: SendRequest, message: Message, properties: dict[str, str]) -> int | None:
        """The rare cases of `send`: rewrites the message and its properties, and gives the slot of one that can be
        recalled. Raises what is not supported."""
        if not properties.get(names.UNIQUE_KEY):
            properties[names.UNIQUE_KEY] = f"{self._random(1 << 128):032X}"
        for name in (names.POP_CK, names.MESSAGE_REGION, names.TRACE_ON, names.CLUSTER):
            properties.pop(name, None)
        if names.INNER_MULTI_DISPATCH in properties or message.sys_flag & (INNER_BATCH | NEED_UNWRAP):
            raise NotSupported("light queues and inner batches are not supported by this version of SaturnMQ")
        dead = message.topic.startswith(RETRY_PREFIX) and self._send_to_dead_letters(request, message, properties)
        level = 0 if dead else _integer(properties.get(names.DELAY))
        in_transaction = properties.get(names.TRANSACTION_PREPARED, "").lower() == "true"
        # what was committed keeps the property: as a dead letter too, and when a consumer of before 4.6.1 returns it
        again = dead or names.DLQ_RESENT in properties or (message.reconsume_times > 0 and level > 0)
        if in_transaction and not again:
            self._halve(message, properties)
            return None
        if message.sys_flag & TRANSACTION_MASK and not in_transaction:
            raise IllegalMessage(f"the sysFlag {message.sys_flag} says what only the broker may say of a transaction")
        message.sys_flag &= ~TRANSACTION_MASK
        if level > 0:
            for name in TIMERS:
                properties.pop(name, None)
        topic = message.topic
        slot_ms = None if level > 0 else self._timers.postpone(message, properties)
        message.properties = names.encode(properties) + self._stamp
        if level > 0:
            self._delays.postpone(message, level)
        return None if topic.startswith(RETRY_PREFIX) else slot_ms

    def _halve(self, message: Message, properties: dict[str, str]) -> None:
        if self._config.reject_transaction_message:
            raise NoPermission(f"the broker[{self._config.broker_name}] sending transaction message is forbidden")
        if names.DELAY in properties or not properties.keys().isdisjoint(TIMERS):
            raise IllegalMessage("a message of a transaction cannot be for a time too: send it without one")
        halfmessages.halve(message, properties)
        message.properties = names.encode(properties) + self._stamp
        most = MAX_PROPERTIES_BYTES - halfmessages.COPY_BYTES
        if len(message.properties) > most:
            raise PropertiesTooLarge(
                f"the properties have {len(message.properties)} bytes, the limit of a half message is {most}"
            )

    def _send_to_dead_letters(self, request: SendRequest, message: Message, properties: dict[str, str]) -> bool:
        """Whether a consumer tried it often enough; then the message goes to the dead letters instead."""
        if names.DLQ_RESENT in properties and not message.reconsume_times:
            return False  # an operator sends it back
        group = message.topic.removeprefix(RETRY_PREFIX)
        config = self._groups.get(group)
        if config is None:
            raise GroupNotFound(f"subscription group not exist, {group}")
        most = config.retry_max_times if request.max_reconsume_times is None else request.max_reconsume_times
        # an orderly consumer only sends what it gives up on
        tried_enough = message.reconsume_times > most
        if not tried_enough and not self._locks.any_alive(group):
            return False
        properties[names.DELAY] = "-1"
        properties.setdefault(names.RETRY_TOPIC, message.topic)
        message.topic, message.queue_id = self._topics.ensure_dlq(group).topic_name, 0
        reason = DeadReason.MAX_ATTEMPTS if tried_enough else DeadReason.CONSUMER
        properties.update(dead_letter(properties, group, reason))
        self._dead.add((group,))
        return True


def _integer(text: str | None) -> int:
    """Java's NumberUtils.toInt: 0 when it is none."""
    try:
        return int(text or 0)
    except ValueError:
        return 0
