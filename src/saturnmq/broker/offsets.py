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
        self._file = JsonFile(
            disk, clock, "consumerOffset.json", self._encode, delay_ms=delay_ms, before=flush, background=background
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

    def get(self, group: str, topic: str, queue_id: int) -> int:
        """-1: the group never committed one."""
        return self._offsets.get(f"{topic}@{group}", _NOTHING).get(queue_id, -1)

    def commit(self, group: str, topic: str, queue_id: int, offset: int) -> None:
        """Forwards or backwards: a consumer may be reset."""
        self._offsets.setdefault(f"{topic}@{group}", {})[queue_id] = offset
        self._changes += 1
        if self._changes % VERSION_STEP == 0:
            self.version.bump(self._clock.now_ms())
        self._file.changed()

    def _encode(self) -> bytes:
        return msgspec.json.encode(_File(self._offsets, self.version))
