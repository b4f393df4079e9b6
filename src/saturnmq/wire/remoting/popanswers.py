"""What the answer to a pop says (`poprequests` has the form), as a client reads it: client/impl/MQClientAPIImpl.java
(processPopResponse)."""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct

from saturnmq.kernel import properties as names
from saturnmq.kernel.errors import InvalidReceiptHandle, ProtocolError
from saturnmq.kernel.handle import ReceiptHandle, TopicKind
from saturnmq.kernel.ports import Popped, PopResult, PopStatus
from saturnmq.wire import record as records

#: of a record: queue id, offset in the queue, offset in the commit log
_PLACE = Struct(">12xi4xqq")

#: by kind of topic and queue id, or `qo<queueId>%<offset>`
_Entries = Mapping[tuple[str, str], int]


def decode_popped(fields: Mapping[str, str], body: bytes) -> PopResult:
    """An answer that has messages. Raises ProtocolError."""
    try:
        starts, counts = _entries(fields["startOffsetInfo"]), _entries(fields.get("orderCountInfo", ""))
        return PopResult(
            status=PopStatus.FOUND,
            pop_ms=int(fields["popTime"]),
            invisible_ms=int(fields["invisibleTime"]),
            revive_queue_id=int(fields["reviveQid"]),
            rest=int(fields.get("restNum", 0)),
            messages=[_popped(record, starts, counts) for record in records.split(body)],
        )
    except (LookupError, ValueError, InvalidReceiptHandle) as error:
        raise ProtocolError(f"the answer to a pop cannot be read: {error!r}") from None


def _entries(text: str) -> _Entries:
    entries = {}
    for entry in text.split(";") if text else ():
        kind, key, number = entry.split(" ")
        entries[kind, key] = int(number)
    return entries


def _popped(record: bytes, starts: _Entries, counts: _Entries) -> Popped:
    """A message of a pop retry topic comes under the topic that it was sent to, with a handle of its own in it."""
    queue_id, queue_offset, commit_log_offset = _PLACE.unpack_from(record)
    properties = records.properties_of(record)
    if names.POP_CK.encode() in properties and (handle := names.decode(properties).get(names.POP_CK)):
        taken = ReceiptHandle.decode(handle)
        kind, queue_id, queue_offset = taken.topic_kind, taken.queue_id, taken.queue_offset
        start_offset = taken.start_offset
    else:
        kind, start_offset = TopicKind.NORMAL, starts["0", str(queue_id)]
    mark = str(int(kind))
    tries = counts and (counts.get((mark, f"qo{queue_id}%{queue_offset}")) or counts.get((mark, str(queue_id))))
    return Popped(
        record, kind, queue_id, queue_offset, commit_log_offset, start_offset,
        tries or records.reconsume_times(record),
    )  # fmt: skip
