"""What a dead letter says of itself."""

from __future__ import annotations

from saturnmq.kernel import properties as names
from saturnmq.kernel.ports import DeadReason
from saturnmq.kernel.topic import topic_of_retries
from saturnmq.wire.record import MAX_PROPERTIES_BYTES


def dead_letter(properties: dict[str, str], group: str, reason: DeadReason) -> dict[str, str]:
    """The properties with the topic and the id that it had, by Apache's names, and why it is here; as they are when
    there is no room. RETRY_TOPIC is in them."""
    origin = {
        names.DLQ_ORIGIN_TOPIC: topic_of_retries(properties[names.RETRY_TOPIC], group),
        names.DLQ_ORIGIN_MESSAGE_ID: properties.get(names.UNIQUE_KEY) or properties[names.ORIGIN_MESSAGE_ID],
        names.DLQ_REASON: reason.value,
    }
    letter = {**properties, **origin}
    return letter if len(names.encode(letter)) <= MAX_PROPERTIES_BYTES else properties
