"""FIFO groups: the batch that blocks a queue until all of it is acknowledged or given back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import dropwhile

import msgspec

#: messages of one batch: Apache notes their acknowledgements in the bits of a signed long
MAX_BATCH = 63


class Order(msgspec.Struct, kw_only=True):
    """The last batch that a FIFO group took of a queue, and what became of each message. Never changed, but replaced.

    What Apache keeps as `OrderInfo` (broker/offset/ConsumerOrderInfoManager.java), with its rules: the queue is
    blocked while any message is neither acknowledged nor visible again; whoever asks with the attempt id of the
    batch gets the same messages again, and its older handles are no longer good; deliveries are counted here, for the
    record in the log is never changed. Other than there an acknowledged message is not given again when one before it
    is.
    """

    attempt_id: str | None
    pop_ms: int
    invisible_ms: int
    #: queue offsets, ascending; the first one is not acknowledged
    offsets: list[int]
    #: offset → deliveries before the last one, where there were any
    counts: dict[int, int]
    acknowledged: frozenset[int] = frozenset()
    #: offset → end of its lease, where it is not that of the batch
    ends_ms: dict[int, int]
    #: offset → invisible time in the handle that is good for it, where it is not that of the batch
    handles_ms: dict[int, int]

    def end_ms(self, offset: int) -> int:
        """When the lease of the message is over."""
        return self.ends_ms.get(offset, self.pop_ms + self.invisible_ms)

    def handle_ms(self, offset: int) -> int:
        """The invisible time that the good handle of the message names."""
        return self.handles_ms.get(offset, self.invisible_ms)

    def remaining(self) -> list[int]:
        """What is not acknowledged."""
        return [offset for offset in self.offsets if offset not in self.acknowledged]

    @property
    def free_at_ms(self) -> int:
        """When nothing of it is hidden any more."""
        return max(map(self.end_ms, self.remaining()))

    def acknowledge(self, offset: int) -> Order | None:
        """Without the message; None when it was the last one."""
        return msgspec.structs.replace(self, acknowledged=self.acknowledged | {offset}).trimmed()

    def trimmed(self) -> Order | None:
        """From the first message on that is not acknowledged; None when all are."""
        offsets = list(dropwhile(self.acknowledged.__contains__, self.offsets))
        if not offsets:
            return None
        return msgspec.structs.replace(self, offsets=offsets, acknowledged=self.acknowledged.intersection(offsets))

    def hide(self, offset: int, end_ms: int, handle_ms: int) -> Order:
        """With another end of the message's lease, and a handle that names `handle_ms`."""
        return msgspec.structs.replace(
            self, ends_ms={**self.ends_ms, offset: end_ms}, handles_ms={**self.handles_ms, offset: handle_ms}
        )


def next_order(
    before: Order | None, attempt_id: str | None, pop_ms: int, invisible_ms: int, given: Sequence[int]
) -> Order:
    """The batch when `given` leaves: a beginning of what remained of the batch before, then new messages."""
    if before is None:
        before = Order(attempt_id=None, pop_ms=0, invisible_ms=0, offsets=[], counts={}, ends_ms={}, handles_ms={})
    more = 0 if attempt_id is not None and attempt_id == before.attempt_id else 1
    known = frozenset(before.offsets)
    counts = {offset: count for offset, count in before.counts.items() if offset not in before.acknowledged}
    for offset in given:
        if offset in known and (count := before.counts.get(offset, 0) + more):
            counts[offset] = count
    left = [offset for offset in before.remaining() if offset not in given]
    return Order(
        attempt_id=attempt_id,
        pop_ms=pop_ms,
        invisible_ms=invisible_ms,
        offsets=before.offsets + [offset for offset in given if offset not in known],
        counts=counts,
        acknowledged=before.acknowledged,
        ends_ms=dict.fromkeys(left, 0),
        handles_ms={},
    )
