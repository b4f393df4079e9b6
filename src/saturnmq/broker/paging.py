"""Long tables in pages: topics and groups, as other brokers and tools fetch them (enableSplitMetadata)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import TypeVar

from saturnmq.kernel.topic import DataVersion
from saturnmq.wire.remoting.bodies import decode

T = TypeVar("T")


def page(
    table: Mapping[str, T], version: DataVersion, asked_version: str | None, begin: int | None, size: int
) -> dict[str, T]:
    """So many from the place `begin` on, in the order of their names; who has seen another version of the table begins
    anew."""
    start = begin or 0
    if not asked_version or decode(DataVersion, asked_version.encode()) != version:
        start = 0
    return {name: table[name] for name in islice(sorted(table), max(0, start), max(0, start + size))}
