"""Recall: a producer takes back a message whose time has not come (processor/RecallMessageProcessor.java).

What takes a message back is itself a message for a time, in the same slot of the wheel: when the slot is delivered, it
goes first. Whether there is such a message is not looked at before.
"""

from __future__ import annotations

from saturnmq.broker.dedup import DedupWindows
from saturnmq.broker.timers import Timers
from saturnmq.broker.topics import TopicTable
from saturnmq.kernel import properties as names
from saturnmq.kernel.clock import Clock
from saturnmq.kernel.config import BrokerConfig
from saturnmq.kernel.errors import FlushTimeout, IllegalOperation, NoPermission, ServiceUnavailable, TopicNotFound
from saturnmq.kernel.handle import RecallHandle
from saturnmq.kernel.later import Reply, rescue
from saturnmq.kernel.message import Message
from saturnmq.kernel.ports import RecallRequest
from saturnmq.kernel.topic import WRITE
from saturnmq.store.store import Store

_TAG = "_RECALL_TAG_"
_BODY = b"0"


class Recalls:
    """The texts of the errors are Apache's, which clients look for."""

    def __init__(
        self,
        config: BrokerConfig,
        store: Store,
        clock: Clock,
        topics: TopicTable,
        timers: Timers,
        windows: DedupWindows,
    ) -> None:
        self._store, self._clock, self._topics, self._timers = store, clock, topics, timers
        self._windows = windows
        self.configure(config)

    def configure(self, config: BrokerConfig) -> None:
        """Take over what may change while the broker runs: whether it is allowed."""
        self._config = config

    def recall(self, request: RecallRequest) -> Reply[str]:
        """Answers the message's id when it is durable that the message does not come. Raises NoPermission,
        ServiceUnavailable, TopicNotFound, IllegalOperation."""
        handle = self._check(request)
        now_ms = self._clock.now_ms()
        key = handle.message_id
        if self._store.config.append_topic_for_timer_delete_key:
            key = f"{handle.topic}+{key}"
        properties = {
            names.TAGS: _TAG,
            names.TIMER_DEL_UNIQUE_KEY: key,
            names.UNIQUE_KEY: handle.message_id,
            names.TIMER_DELIVER_MS: str(handle.time_ms),
            names.BORN_TIMESTAMP: str(now_ms),
            names.TRACE_CONTEXT: "",
        }
        if request.producer_group is not None:
            properties[names.PRODUCER_GROUP] = request.producer_group
        message = Message(handle.topic, 0, _BODY, b"", now_ms, request.born_host)
        self._timers.postpone(message, properties)
        message.properties = names.encode(properties)
        (appended,) = self._store.append((message,))
        self._windows.forget(handle.topic, handle.message_id)
        return rescue(
            lambda: self._store.when_durable(appended.end, handle.message_id), FlushTimeout, lambda _: handle.message_id
        )

    def _check(self, request: RecallRequest) -> RecallHandle:
        config = self._config
        if not config.recall_message_enable:
            raise NoPermission("recall failed, operation is forbidden")
        if not config.broker_permission & WRITE and not config.allow_recall_when_broker_not_writeable:
            raise ServiceUnavailable("recall failed, broker service not available")
        if self._topics.get(request.topic) is None:
            raise TopicNotFound(f"recall failed, the topic[{request.topic}] not exist")
        handle = RecallHandle.decode(request.handle)
        if handle.topic != request.topic:
            raise IllegalOperation("recall failed, topic not match")
        if handle.broker_name != config.broker_name:
            raise IllegalOperation("recall failed, broker service not available")
        if not 0 < handle.time_ms - self._clock.now_ms() < self._store.config.timer_max_delay_sec * 1000:
            raise IllegalOperation("recall failed, timestamp invalid")
        return handle
