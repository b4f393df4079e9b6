"""Topics that were deleted while their messages still stand in the log: `config/deletedTopics.json`.

The file says of each topic up to which log position its messages are deleted. Whatever makes queues anew from the log
leaves those out: else a crash would bring a deleted topic back, and put old messages in the places of those that a new
topic of the same name has taken since. An entry lives as long as the log reaches back before its position. Apache has
no such file: what its broker makes anew from the log has the deleted messages in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from saturnmq.disk.port import Disk
from saturnmq.store.results import StoreRefused

PATH = "config/deletedTopics.json"


class _File(msgspec.Struct, rename="camel"):
    #: topic → log position
    deleted_table: dict[str, int] = {}


class DeletedTopics:
    """Owner: the store. `write` is for a thread, one at a time."""

    def __init__(self, disk: Disk) -> None:
        """Raises StoreRefused, OSError."""
        self._disk = disk
        #: topic → log position before which its messages are deleted
        self.positions: Mapping[str, int] = read(disk)

    def position(self, topic: str) -> int:
        """0: nothing of it is deleted."""
        return self.positions.get(topic, 0)

    def with_deleted(self, topics: Iterable[str], position: int, log_first: int) -> dict[str, int]:
        """For `write`, before the queues of these topics go: their messages before this position are deleted."""
        kept = {topic: at for topic, at in self.positions.items() if at > log_first}
        return kept | dict.fromkeys(topics, position)

    def write(self, positions: dict[str, int]) -> None:
        """Durable, and in force, on return. Raises OSError."""
        self._disk.replace_file(PATH, msgspec.json.encode(_File(positions)))
        self.positions = positions


def read(disk: Disk) -> dict[str, int]:
    """Topic → log position. Raises StoreRefused, OSError."""
    if not disk.exists(PATH):
        return {}
    try:
        return msgspec.json.decode(disk.read_file(PATH), type=_File).deleted_table
    except msgspec.DecodeError as error:
        raise StoreRefused(
            f"{PATH} cannot be read: {error}; bring it back from a copy, or move it away: then a start after a crash "
            "may bring deleted messages back"
        ) from error
