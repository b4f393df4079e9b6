"""What a consumer wants of a topic."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import msgspec

from saturnmq.kernel.errors import IllegalFilter

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


#: whether a message with these packed properties is wanted
Matches = Callable[[bytes], bool]


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """A compiled filter: by tags (none means everything), or by properties."""

    topic: str
    expression: str = ALL
    expression_type: str = TAG
    tags: frozenset[str] = frozenset()
    codes: frozenset[int] = frozenset()
    #: of SQL92
    matches: Matches | None = None
    version: int = 0

    @property
    def takes_all(self) -> bool:
        return not self.tags and self.matches is None


def subscribe(topic: str, expression: str | None, expression_type: str | None = TAG, version: int = 0) -> Subscription:
    """Compile `a || b`, `*` or nothing, or an SQL92 expression. Raises IllegalFilter."""
    text = (expression or "").strip()
    if expression_type not in (None, "", TAG):
        return Subscription(
            topic=topic,
            expression=text,
            expression_type=expression_type,
            matches=_compile(text, expression_type),
            version=version,
        )
    if text in ("", ALL):
        return Subscription(topic=topic, version=version)
    tags = frozenset(tag for tag in (part.strip() for part in text.split("||")) if tag)
    if not tags:
        raise IllegalFilter(f"the tag expression {expression!r} names no tag; write `a || b`, or `*` for all")
    return Subscription(topic=topic, expression=text, tags=tags, codes=frozenset(map(tag_hash, tags)), version=version)


def keep(topic: str, expression: str | None, expression_type: str | None = TAG, version: int = 0) -> Subscription:
    """As `subscribe`, for what a client says of itself. A wrong filter over properties is kept, without `matches`: the
    client hears of it when it asks for messages, where it understands the answer. Raises IllegalFilter, about tags."""
    try:
        return subscribe(topic, expression, expression_type, version)
    except IllegalFilter:
        if expression_type in (None, "", TAG):
            raise
        return Subscription(topic=topic, expression=expression or "", expression_type=expression_type, version=version)


def _compile(text: str, expression_type: str) -> Matches:
    if expression_type != SQL92:
        raise IllegalFilter(f"the filter type {expression_type!r} is unknown, use TAG or SQL92")
    from saturnmq.kernel.sql92 import compile_filter  # it is large, and most servers never need it

    return compile_filter(text)
