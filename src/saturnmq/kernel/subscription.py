"""What a consumer wants of a topic."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from saturnmq.kernel.errors import IllegalFilter, NotSupported

ALL = "*"
TAG = "TAG"
SQL92 = "SQL92"


#: longer tags are hashed each time: nobody fills the memory with them
_CACHED_TAG = 128


def tag_hash(tag: str) -> int:
    """Java's `String.hashCode`: what a consume queue stores of a tag."""
    return _cached_hash(tag) if len(tag) <= _CACHED_TAG else _hash(tag)


def _hash(tag: str) -> int:
    value = 0
    for unit in memoryview(tag.encode("utf-16-le", "surrogatepass")).cast("H"):
        value = (value * 31 + unit) & 0xFFFFFFFF
    return value - 0x100000000 if value & 0x80000000 else value


_cached_hash = lru_cache(maxsize=65536)(_hash)


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """A compiled filter. `tags` empty means everything."""

    topic: str
    expression: str = ALL
    expression_type: str = TAG
    tags: frozenset[str] = frozenset()
    codes: frozenset[int] = frozenset()
    version: int = 0

    @property
    def takes_all(self) -> bool:
        return not self.tags


def subscribe(topic: str, expression: str | None, expression_type: str | None = TAG, version: int = 0) -> Subscription:
    """Compile `a || b`, `*` or nothing. Raises IllegalFilter, NotSupported for SQL92 (a later version)."""
    if expression_type not in (None, "", TAG):
        if expression_type != SQL92:
            raise IllegalFilter(f"the filter type {expression_type!r} is unknown, use TAG")
        raise NotSupported("SQL92 filters are not supported by this version of SaturnMQ; filter by TAG")
    text = (expression or "").strip()
    if text in ("", ALL):
        return Subscription(topic=topic, version=version)
    tags = frozenset(tag for tag in (part.strip() for part in text.split("||")) if tag)
    if not tags:
        raise IllegalFilter(f"the tag expression {expression!r} names no tag; write `a || b`, or `*` for all")
    return Subscription(topic=topic, expression=text, tags=tags, codes=frozenset(map(tag_hash, tags)), version=version)
