"""What a message is found by, and finding it: the index tells where a hash was seen, the record itself decides."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from functools import lru_cache

import msgspec

from saturnmq.kernel import properties as names
from saturnmq.kernel.errors import ProtocolError
from saturnmq.kernel.message import StoredMessage
from saturnmq.store.indexfile import Chain, key_hash
from saturnmq.store.reading import Cold, Reader, read_record
from saturnmq.wire.record import decode

#: items that a query looks at on the event loop
_HOT_STEPS = 1000
#: of records that a query finds: clients take frames of 16 MiB
_MAX_FOUND_BYTES = 8 << 20

# as they stand in properties that begin and end with a separator
_UNIQUE = b"\x02UNIQ_KEY\x01"
_KEYS = b"\x02KEYS\x01"
_TAGS = b"\x02TAGS\x01"


class KeyKind(Enum):
    """What a query's key is. The letters are Apache's index types."""

    UNIQUE = "U"
    KEY = "K"  # a word of KEYS, or the unique key
    TAG = "T"


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """The newest messages of the topic with this key, stored in [begin_ms, end_ms]."""

    topic: str
    key: str
    kind: KeyKind
    max_count: int
    begin_ms: int
    end_ms: int

    @property
    def hash(self) -> int:
        key = f"{self.topic}{'#T#' if self.kind is KeyKind.TAG else '#'}{self.key}"
        return key_hash(key.encode())

    def takes(self, message: StoredMessage) -> bool:
        """Other keys have the same hash."""
        if message.topic != self.topic or not self.begin_ms <= message.stored_ms <= self.end_ms:
            return False
        properties = names.decode(message.properties)
        if self.kind is KeyKind.TAG:
            return properties.get(names.TAGS) == self.key
        if properties.get(names.UNIQUE_KEY) == self.key:
            return True
        return self.kind is KeyKind.KEY and self.key in properties.get(names.KEYS, "").split(" ")


def hashes(topic: str, properties: bytes) -> list[int]:
    """Of the keys that a message is found by, in the order of its items. Of a property that stands twice the last one
    counts."""
    prefix = _prefix(topic)
    text = b"\x02" + properties + b"\x02"
    found = []
    at = text.rfind(_UNIQUE)
    if at >= 0:
        at += len(_UNIQUE)
        found.append(key_hash(prefix + text[at : text.find(b"\x02", at)]))
    at = text.rfind(_KEYS)
    if at >= 0:
        at += len(_KEYS)
        for word in text[at : text.find(b"\x02", at)].split(b" "):
            if word:
                found.append(key_hash(prefix + word))
    at = text.rfind(_TAGS)
    if at >= 0:
        at += len(_TAGS)
        tag = text[at : text.find(b"\x02", at)]
        if tag:
            found.append(_tag_hash(prefix, tag))
    return found


@lru_cache(maxsize=4096)
def _prefix(topic: str) -> bytes:
    return topic.encode() + b"#"


@lru_cache(maxsize=4096)
def _tag_hash(prefix: bytes, tag: bytes) -> int:
    return key_hash(prefix + b"T#" + tag)


def find_by_key(
    reader: Reader, chains: Sequence[Chain], query: Query, log_first: int, log_end: int, file_size: int, *, cold: bool
) -> list[bytes]:
    """The records that a query finds, newest first. Raises OSError, and Cold when `cold` readers must do it."""
    found: list[bytes] = []
    size = steps = 0
    last = -1
    for chain in chains:
        for position in chain.positions(query.begin_ms, query.end_ms):
            steps += 1
            if steps > _HOT_STEPS and not cold:
                raise Cold
            # the items of one message that has a key twice stand together
            if position is None or position == last or not log_first <= position < log_end:
                continue
            last = position
            record = read_record(reader, file_size, position, log_end)
            if record is None or not _takes(query, record):
                continue
            size += len(record)
            if found and size > _MAX_FOUND_BYTES:
                return found
            found.append(record)
            if len(found) == query.max_count:
                return found
    return found


def _takes(query: Query, record: bytes) -> bool:
    try:
        return query.takes(decode(record))
    except ProtocolError:
        return False
