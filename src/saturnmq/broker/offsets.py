"""How far each consumer group has come."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from saturnmq.broker.jsonfile import JsonFile
from saturnmq.disk.port import Disk
from saturnmq.kernel.clock import Background, Clock
from saturnmq.kernel.later import Reply
from saturnmq.kernel.topic import DataVersion

#: changes between two versions of the table (BrokerConfig.consumerOffsetUpdateVersionStep)
VERSION_STEP = 500

_NOTHING: Mapping[int, int] = {}


class _File(msgspec.Struct, rename="camel"):
    """config/consumerOffset.json"""

    #: `topic@group` → queue id → offset
    offset_table: dict[str, dict[int, int]] = {}
    data_version: DataVersion = msgspec.field(default_factory=DataVersion)


class OffsetTable:
    """Owns the committed offsets and `config/consumerOffset.json` (broker/offset/ConsumerOffsetManager.java).

    An offset is the queue offset of the next message that the group takes. The file is written `delay_ms` after a
    change, and only after `flush` of what was in the log then: else a power cut could leave an offset of messages
    that are gone, and skip the new ones that take their places.

    A *reset* is an offset that an operator set: until a consumer of the group has been told of it, what consumers
    commit from before it does not count. Who has not been told when the broker ends finds the offset where it asks.
    """

    def __init__(
        self,
        disk: Disk,
        clock: Clock,
        flush: Callable[[], Reply[None]],
        delay_ms: int = 5_000,
        background: Background | None = None,
    ) -> None:
        self._clock = clock
        self._offsets: dict[str, dict[int, int]] = {}
        #: by group, topic and queue id: resets that no consumer was told of yet
        self._resets: dict[tuple[str, str, int], int] = {}
        #: where the last pull ended, by `topic@group` and queue id; not kept over a restart
        self._pulled: dict[str, dict[int, int]] = {}
        self._file = JsonFile(
            disk, clock, "consumerOffset.json", self.encode, delay_ms=delay_ms, before=flush, background=background
        )
        self._changes = 0
        self.version = DataVersion(timestamp=clock.now_ms())

    def load(self) -> None:
        """Raises ValueError when the file and its .bak are broken."""
        stored = self._file.read(_File)
        if stored is not None:
            self._offsets = stored.offset_table
            self.version = stored.data_version

    def write(self) -> Reply[None]:
        return self._file.write()

    @property
    def write_error(self) -> BaseException | None:
        """Why the last write failed, if it did."""
        return self._file.error

    def get(self, group: str, topic: str, queue_id: int) -> int:
        """-1: the group never committed one."""
        return self._offsets.get(f"{topic}@{group}", _NOTHING).get(queue_id, -1)

    def of_group(self, group: str, topic: str) -> Mapping[int, int]:
        """By queue id."""
        return self._offsets.get(f"{topic}@{group}", _NOTHING)

    def topics_of(self, group: str) -> set[str]:
        """Where the group has offsets."""
        return {topic for topic, other in self._places() if other == group}

    def groups_of(self, topic: str) -> set[str]:
        """Who has offsets there."""
        return {group for other, group in self._places() if other == topic}

    def topics_by_group(self) -> dict[str, set[str]]:
        """As `topics_of`, of every group."""
        topics: dict[str, set[str]] = {}
        for topic, group in self._places():
            topics.setdefault(group, set()).add(topic)
        return topics

    def commit(self, group: str, topic: str, queue_id: int, offset: int) -> bool:
        """Forwards or backwards. False: the queue was reset, and no consumer was told of it yet: it does not count."""
        if self.is_reset(group, topic, queue_id):
            return False
        self._put(group, topic, queue_id, offset)
        return True

    # -------------------------------------------------------------------------------------------------- pulls

    def pulled(self, group: str, topic: str, queue_id: int, offset: int) -> None:
        """A pull has been answered with messages up to there."""
        self._pulled.setdefault(f"{topic}@{group}", {})[queue_id] = offset

    def pulled_to(self, group: str, topic: str, queue_id: int) -> int:
        """-1: nobody has pulled since the broker started."""
        return self._pulled.get(f"{topic}@{group}", _NOTHING).get(queue_id, -1)

    # ------------------------------------------------------------------------------------------------- resets

    def reset(self, group: str, topic: str, queue_id: int, offset: int) -> None:
        """An operator's word: the group goes on there."""
        self._resets[group, topic, queue_id] = offset
        self._pulled.get(f"{topic}@{group}", {}).pop(queue_id, None)
        self._put(group, topic, queue_id, offset)

    def is_reset(self, group: str, topic: str, queue_id: int) -> bool:
        """Whether no consumer was told of the last reset yet. Asked on every commit."""
        return bool(self._resets) and (group, topic, queue_id) in self._resets

    def take_reset(self, group: str, topic: str, queue_id: int) -> int | None:
        """Where the queue was reset to, for the consumer that is told of it now. Asked on every pull."""
        return self._resets.pop((group, topic, queue_id), None) if self._resets else None

    # ------------------------------------------------------------------------------------------- administration

    def clone(self, source: str, group: str, topic: str) -> None:
        """The group is where the source is, and forgets what else it knew of the topic. Nothing to clone: no change."""
        offsets = self._offsets.get(f"{topic}@{source}")
        if offsets is not None:
            self._offsets[f"{topic}@{group}"] = dict(offsets)
            self._changed()

    def forget_group(self, group: str) -> None:
        """The group is gone."""
        self._forget([f"{topic}@{other}" for topic, other in self._places() if other == group])
        self._resets = {place: offset for place, offset in self._resets.items() if place[0] != group}

    def forget_topic(self, topic: str) -> None:
        """The topic is gone."""
        self._forget([f"{other}@{group}" for other, group in self._places() if other == topic])
        self._resets = {place: offset for place, offset in self._resets.items() if place[1] != topic}

    def encode(self) -> bytes:
        """As it stands in the file (GET_ALL_CONSUMER_OFFSET)."""
        return msgspec.json.encode(_File(self._offsets, self.version))

    def _places(self) -> list[tuple[str, str]]:
        """Topic and group."""
        return [(topic, group) for topic, _, group in (key.partition("@") for key in self._offsets)]

    def _put(self, group: str, topic: str, queue_id: int, offset: int) -> None:
        self._offsets.setdefault(f"{topic}@{group}", {})[queue_id] = offset
        self._changed()

    def _forget(self, keys: list[str]) -> None:
        for key in keys:
            del self._offsets[key]
            self._pulled.pop(key, None)
        if keys:
            self._changed()

    def _changed(self) -> None:
        self._changes += 1
        if self._changes % VERSION_STEP == 0:
            self.version.bump(self._clock.now_ms())
        self._file.changed()
