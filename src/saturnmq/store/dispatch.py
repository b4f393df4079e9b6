"""From a record to its consume-queue entry: which queue, and the code that filters it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from saturnmq.kernel.message import TRANSACTION_MASK, TRANSACTION_PREPARED, TRANSACTION_ROLLBACK
from saturnmq.kernel.subscription import tag_hash
from saturnmq.kernel.topic import SCHEDULE_TOPIC

#: message → what a consume queue stores beside its position (topic, properties, stored_ms)
TagsCode = Callable[[str, bytes, int], int]


def is_queued(sys_flag: int) -> bool:
    """Messages marked as prepared or rolled back stand in the log only (CommitLogDispatcherBuildConsumeQueue)."""
    return sys_flag & TRANSACTION_MASK not in (TRANSACTION_PREPARED, TRANSACTION_ROLLBACK)


def find_property(properties: bytes, key: bytes) -> bytes | None:
    """The value of one property, without decoding the others; None when it is absent."""
    if key not in properties:  # most often
        return None
    at = properties.find(b"\x02%b\x01" % key)
    if at >= 0:
        at += len(key) + 2
    elif properties.startswith(key + b"\x01"):
        at = len(key) + 1
    else:
        return None
    end = properties.find(b"\x02", at)
    return properties[at:end] if end >= 0 else properties[at:]


@lru_cache(maxsize=65536)
def _hash(tag: bytes) -> int:
    return tag_hash(tag.decode("utf-8", "replace"))


def tags_code(delays_ms: list[int], topic: str, properties: bytes, stored_ms: int) -> int:
    """Java's hash of the tag, 0 without one; of a message that waits on a delay level, when it is due: so that what
    rebuilds a queue from the log comes to the same entries (CommitLog.checkMessageAndReturnSize)."""
    if topic == SCHEDULE_TOPIC:
        level = find_property(properties, b"DELAY")
        if level is not None and level.isdigit() and int(level) > 0:
            return stored_ms + delays_ms[min(int(level), len(delays_ms)) - 1]
    tag = find_property(properties, b"TAGS")
    return _hash(tag) if tag else 0
