"""Attributes of topics and groups: `+key=value` and `-key` requests (common/attribute/AttributeUtil.java)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from saturnmq.kernel.errors import IllegalAttribute
from saturnmq.kernel.topic import MessageType


class Attribute(msgspec.Struct, frozen=True):
    takes: Callable[[str], bool]
    changeable: bool = True


def _is_long(text: str) -> bool:
    return text.removeprefix("-").isdigit() and -1 <= int(text) < 1 << 63


#: common/TopicAttributes.java
TOPIC_ATTRIBUTES: Mapping[str, Attribute] = {
    "queue.type": Attribute({"BatchCQ", "SimpleCQ"}.__contains__, changeable=False),
    "cleanup.policy": Attribute({"DELETE", "COMPACTION"}.__contains__, changeable=False),
    "message.type": Attribute(MessageType.__members__.__contains__),
    "reserve.time": Attribute(_is_long),
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
            raise IllegalAttribute(f"the attribute {key} does not take the value {value!r}")
        else:
            altered[key] = value
    return altered
