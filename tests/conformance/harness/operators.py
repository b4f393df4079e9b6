"""What operators ask about consumers, over the broker's Remoting port. Has its own reader for fastjson's maps."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from harness.admin import AdminError, RemotingConnection

QUERY_MESSAGE = 12
UPDATE_AND_CREATE_SUBSCRIPTIONGROUP = 200
GET_CONSUMER_CONNECTION_LIST = 203
GET_CONSUME_STATS = 208
INVOKE_BROKER_TO_RESET_OFFSET = 222
INVOKE_BROKER_TO_GET_CONSUMER_STATUS = 223
GET_CONSUMER_RUNNING_INFO = 307
CONSUME_MESSAGE_DIRECTLY = 309
POLL_S = 0.05
#: `{"brokerName":"b","queueId":0,"topic":"t"}:7`, the value a number or an object without objects in it
_ENTRY = re.compile(r"(\{[^{}]*\}):(\{[^{}]*\}|-?\d+)")
LONG_MAX = (1 << 63) - 1

T = TypeVar("T")


def by_queue(body: bytes) -> dict[int, Any]:
    """The entries of a map of message queues, by queue id."""
    return {json.loads(queue)["queueId"]: json.loads(value) for queue, value in _ENTRY.findall(body.decode())}


class Operator:
    """A connection of its own to a broker."""

    def __init__(self, broker: str) -> None:
        self._broker = RemotingConnection(broker)

    def close(self) -> None:
        self._broker.close()

    def set_group(self, group: str, **settings: object) -> None:
        """Names as in SubscriptionGroupConfig.java; what is not named has its default."""
        config = {"groupName": group, **settings}
        self._broker.call(UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, json.dumps(config).encode())

    def reset(self, group: str, topic: str, stored_ms: int) -> dict[int, int]:
        """Where each queue was reset to."""
        return by_queue(
            self._broker.call(
                INVOKE_BROKER_TO_RESET_OFFSET, group=group, topic=topic, timestamp=str(stored_ms), isForce="true"
            )
        )

    def connection(self, group: str) -> dict[str, Any]:
        body = self._broker.call(GET_CONSUMER_CONNECTION_LIST, consumerGroup=group)
        return dict(json.loads(body))

    def progress(self, group: str, topic: str) -> dict[int, dict[str, int]]:
        """brokerOffset, consumerOffset, pullOffset and lastTimestamp of each queue."""
        return by_queue(self._broker.call(GET_CONSUME_STATS, consumerGroup=group, topic=topic))

    def positions(self, group: str, topic: str) -> dict[int, int]:
        """Where the one member of the group says that it is, in each of its queues."""
        return by_queue(self._broker.call(INVOKE_BROKER_TO_GET_CONSUMER_STATUS, group=group, topic=topic))

    def running_info(self, group: str, client_id: str, *, stack: bool) -> str:
        """JSON with maps of message queues, which nobody here reads."""
        return self._broker.call(
            GET_CONSUMER_RUNNING_INFO, consumerGroup=group, clientId=client_id, jstackEnable=str(stack).lower()
        ).decode()

    def consume(self, group: str, client_id: str, offset_id: str, topic: str) -> dict[str, Any]:
        """Hand the message to the consumer; what came of it."""
        body = self._broker.call(
            CONSUME_MESSAGE_DIRECTLY, consumerGroup=group, clientId=client_id, msgId=offset_id, topic=topic
        )
        return dict(json.loads(body))

    def query(self, topic: str, key: str) -> bytes:
        """The records with the key, one behind the other. Raises AdminError when there is none."""
        return self._broker.call(
            QUERY_MESSAGE, topic=topic, key=key, maxNum="32", beginTimestamp="0", endTimestamp=str(LONG_MAX)
        )


def wait_until(ask: Callable[[], T], is_good: Callable[[T], bool], timeout_s: float = 20) -> T:
    """What is asked for, when it is as it should be; an AdminError is not, and the last one is raised when time is
    over."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if is_good(answer := ask()):
                return answer
            assert time.monotonic() < deadline, f"after {timeout_s} s it is still {answer!r}"
        except AdminError:
            if time.monotonic() > deadline:
                raise
        time.sleep(POLL_S)
