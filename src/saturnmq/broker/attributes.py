"""Attributes of topics and groups: `+key=value` and `-key` requests (common/attribute/AttributeUtil.java)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from saturnmq.kernel.errors import IllegalAttribute
from saturnmq.kernel.topic import DEDUP_WINDOW, MAX_DEDUP_WINDOW_S, MessageType


class Attribute(msgspec.Struct, frozen=True):
    """What values it takes: one of these, or if there are none, a whole number."""

    values: tuple[str, ...] = ()
    changeable: bool = True
    least: int = -1
    most: int = (1 << 63) - 1

    def takes(self, value: str) -> bool:
        if self.values:
            return value in self.values
        return _NUMBER.fullmatch(value) is not None and self.least <= int(value) <= self.most

    def __str__(self) -> str:
        upto = "on" if self.most == (1 << 63) - 1 else f"to {self.most}"
        return ", ".join(self.values) or f"whole numbers from {self.least} {upto}"


_NUMBER = re.compile(r"-?\d{1,19}", re.ASCII)


#: common/TopicAttributes.java, and ours
TOPIC_ATTRIBUTES: Mapping[str, Attribute] = {
    "queue.type": Attribute(("BatchCQ", "SimpleCQ"), changeable=False),
    "cleanup.policy": Attribute(("DELETE", "COMPACTION"), changeable=False),
    "message.type": Attribute(tuple(MessageType)),
    "reserve.time": Attribute(),
    DEDUP_WINDOW: Attribute(least=0, most=MAX_DEDUP_WINDOW_S),
}

#: common/SubscriptionGroupAttributes.java
GROUP_ATTRIBUTES: Mapping[str, Attribute] = {}


def parse(text: str) -> dict[str, str]:
    """`+a=1,-b` as it stands in a header. Raises IllegalAttribute."""
    changes: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key in changes:
            raise IllegalAttribute(f"the attribute {key!r} is named twice")
        changes[key] = value
    return changes


def alter(
    known: Mapping[str, Attribute], current: Mapping[str, str] | None, changes: Mapping[str, str]
) -> dict[str, str]:
    """`current` (None: a new topic or group) with the changes made. Raises IllegalAttribute."""
    altered = dict(current or {})
    for change, value in changes.items():
        sign, key = change[:1], change[1:]
        attribute = known.get(key)
        if sign not in ("+", "-") or not key:
            raise IllegalAttribute(f"the attribute change {change!r} must begin with + or - and name a key")
        if sign == "-" and current is None:
            raise IllegalAttribute(f"only add attribute is supported while creating, not -{key}")
        if attribute is None:
            raise IllegalAttribute(f"unsupported key: {key}, known are {', '.join(known) or 'none'}")
        if current is not None and not attribute.changeable:
            raise IllegalAttribute(f"attempt to update an unchangeable attribute. key: {key}")
        if sign == "-":
            if key not in altered:
                raise IllegalAttribute(f"attempt to delete a nonexistent key: {key}")
            del altered[key]
        elif not attribute.takes(value):
            raise IllegalAttribute(f"the attribute {key} takes {attribute}, not {value!r}")
        else:
            altered[key] = value
    return altered
