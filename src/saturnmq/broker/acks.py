"""What a receipt handle can ask for: to acknowledge, to change the invisible time, to renew the lease.

Whether a handle is good is said at the head of `pop`.
"""

from __future__ import annotations

from saturnmq.broker.fifo import Orders
from saturnmq.broker.leases import CheckPoint, GroupQueue, Leases
from saturnmq.broker.longpoll import LongPolls
from saturnmq.broker.offsets import OffsetTable
from saturnmq.broker.order import Order
from saturnmq.broker.revive import Revival
from saturnmq.broker.revivelog import ReviveLog
from saturnmq.broker.reviverecords import ORDER_REVIVE_QUEUE, ReviveRecords
from saturnmq.kernel.clock import Clock
from saturnmq.kernel.errors import InvalidParameter, InvalidReceiptHandle, NoSuchMessage
from saturnmq.kernel.handle import TopicKind
from saturnmq.kernel.later import Reply, after
from saturnmq.kernel.ports import Delivery, InvisibleChanged
from saturnmq.kernel.topic import RETRY_PREFIX, pop_retry_topic
from saturnmq.store.store import Store


class Acks:
    """Acknowledge, change, renew (processor/AckMessageProcessor.java, ChangeInvisibleTimeProcessor.java)."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        offsets: OffsetTable,
        leases: Leases,
        records: ReviveRecords,
        revive_log: ReviveLog,
        revival: Revival,
        orders: Orders,
        polls: LongPolls,
    ) -> None:
        self._store, self._clock, self._offsets = store, clock, offsets
        self._leases, self._records, self._log = leases, records, revive_log
        self._revival, self._orders, self._polls = revival, orders, polls

    def ack(self, delivery: Delivery) -> Reply[None]:
        """Done with it. Raises InvalidReceiptHandle, NoSuchMessage."""
        queue, now_ms = self._queue_of(delivery), self._clock.now_ms()
        if delivery.revive_queue_id == ORDER_REVIVE_QUEUE:
            order = self._held_in_order(queue, delivery, now_ms)
            if order is None:
                return None
            place = self._orders.write(queue, order.acknowledge(delivery.queue_offset), now_ms)
        else:
            check_point = self._held(queue, delivery, now_ms)
            if check_point is None:
                return None
            offset = delivery.queue_offset
            [place] = self._log.append([self._records.acknowledgement(check_point, offset, now_ms)], [check_point])
            self._leases.close(check_point, offset, now_ms, acknowledged=True)
            if queue.is_full:
                queue.is_full = False
                self._polls.wake(queue.topic, queue.group, queue.queue_id)
        return self._store.when_durable(place.end, None)

    def change_invisible(self, delivery: Delivery, invisible_ms: int) -> Reply[InvisibleChanged]:
        """Hide it for `invisible_ms` from now on; the handle is replaced.

        Raises InvalidReceiptHandle, NoSuchMessage, InvalidParameter.
        """
        return self._change(delivery, invisible_ms, renews=False)

    def renew(self, delivery: Delivery, invisible_ms: int) -> Reply[InvisibleChanged | None]:
        """Hide it for `invisible_ms` from now on; the handle stays good. Raises as `change_invisible`."""
        return after(self._change(delivery, invisible_ms, renews=True), lambda _: None)

    def _change(self, delivery: Delivery, invisible_ms: int, *, renews: bool) -> Reply[InvisibleChanged]:
        if invisible_ms < 0:
            raise InvalidParameter(f"the invisible time cannot be {invisible_ms} ms")
        hide = self._hide_in_order if delivery.revive_queue_id == ORDER_REVIVE_QUEUE else self._hide
        return hide(delivery, invisible_ms, renews)

    def _hide(self, delivery: Delivery, invisible_ms: int, renews: bool) -> Reply[InvisibleChanged]:
        """A new check point, then an acknowledgement for the one before: in Apache's eyes too it is another lease."""
        queue, now_ms = self._queue_of(delivery), self._clock.now_ms()
        before = self._held(queue, delivery, now_ms)
        if before is None:
            raise InvalidReceiptHandle(f"{_name(delivery)} is acknowledged already")
        pop_ms = max(now_ms, before.pop_ms + 1)  # else the two could not be told apart
        check_point = CheckPoint(
            queue=queue,
            start=delivery.queue_offset,
            pop_ms=pop_ms,
            invisible_ms=invisible_ms,
            handle_ms=before.handle_ms if renews else pop_ms,
            claim_ms=max(before.claim_ms, pop_ms + invisible_ms),
            revive_queue_id=before.revive_queue_id,
            offsets=(delivery.queue_offset,),
            pending=1,
            changed=True,
        )
        _, closed = self._log.append(
            [
                self._records.check_point(check_point, now_ms),
                self._records.acknowledgement(before, delivery.queue_offset, now_ms),
            ],
            [check_point, before],
        )
        self._leases.grant(check_point)
        self._revival.watch()
        changed = InvisibleChanged(pop_ms, invisible_ms, check_point.revive_queue_id)
        return self._store.when_durable(closed.end, changed)

    def _hide_in_order(self, delivery: Delivery, invisible_ms: int, renews: bool) -> Reply[InvisibleChanged]:
        """The pop time of the batch stays; a new handle names the time from then on (as Apache's)."""
        queue, now_ms = self._queue_of(delivery), self._clock.now_ms()
        order = self._held_in_order(queue, delivery, now_ms)
        if order is None:
            raise InvalidReceiptHandle(f"{_name(delivery)} is acknowledged already")
        offset, end_ms = delivery.queue_offset, now_ms + invisible_ms
        handle_ms = order.handle_ms(offset) if renews else end_ms - order.pop_ms
        place = self._orders.write(queue, order.hide(offset, end_ms, handle_ms), now_ms)
        changed = InvisibleChanged(order.pop_ms, handle_ms, ORDER_REVIVE_QUEUE)
        return self._store.when_durable(place.end, changed)

    def _queue_of(self, delivery: Delivery) -> GroupQueue:
        self._log.check_ready()
        group, topic = delivery.group, delivery.topic
        if delivery.topic_kind is not TopicKind.NORMAL and not topic.startswith(RETRY_PREFIX):
            topic = pop_retry_topic(group, topic, v2=delivery.topic_kind is TopicKind.RETRY_V2)
        queue = self._leases.find(group, topic, delivery.queue_id)
        if queue is None:
            # not popped since the restart; the offset may tell that it was before
            queue = GroupQueue(group, topic, delivery.queue_id, delivery.topic_kind)
            queue.next_offset = self._offsets.get(group, topic, delivery.queue_id)
        return queue

    def _held(self, queue: GroupQueue, delivery: Delivery, now_ms: int) -> CheckPoint | None:
        """The lease that the handle is good for; None when the handle acknowledged the message. Raises otherwise."""
        offset = delivery.queue_offset
        check_point = queue.leases.get(offset)
        if check_point is not None:
            if check_point.handle_ms != delivery.pop_ms:
                raise _replaced(delivery)
            if check_point.until_ms <= now_ms:
                raise _expired(delivery, check_point.until_ms)
            return check_point
        self._check_given(queue, delivery)
        over = queue.over.get(offset)
        if over is None:
            if delivery.pop_ms + delivery.invisible_ms <= now_ms:
                raise _expired(delivery, delivery.pop_ms + delivery.invisible_ms)
        elif over.handle_ms != delivery.pop_ms:
            raise _replaced(delivery)
        elif not over.acknowledged or over.until_ms <= now_ms:
            raise _expired(delivery, over.until_ms)
        return None

    def _held_in_order(self, queue: GroupQueue, delivery: Delivery, now_ms: int) -> Order | None:
        """The batch that the handle is good for; None when the handle acknowledged the message. Raises otherwise.

        Of older batches it is not known which handle it was: what is acknowledged is acknowledged.
        """
        order, offset = queue.order, delivery.queue_offset
        if order is not None and offset in order.offsets and offset not in order.acknowledged:
            if (delivery.pop_ms, delivery.invisible_ms) != (order.pop_ms, order.handle_ms(offset)):
                raise _replaced(delivery)
            if order.end_ms(offset) <= now_ms:
                raise _expired(delivery, order.end_ms(offset))
            return order
        self._check_given(queue, delivery)
        last, end_ms = order or queue.last_order, delivery.pop_ms + delivery.invisible_ms
        if last is not None and last.pop_ms == delivery.pop_ms and offset in last.handles_ms:
            # of a message that it says nothing of, it may not be the batch: two can leave in one millisecond
            if last.handles_ms[offset] != delivery.invisible_ms:
                raise _replaced(delivery)
            end_ms = last.end_ms(offset)
        if end_ms <= now_ms:
            raise _expired(delivery, end_ms)
        return None

    def _check_given(self, queue: GroupQueue, delivery: Delivery) -> None:
        """Raises unless the group was given the message once."""
        offset = delivery.queue_offset
        first = self._store.min_offset(queue.topic, queue.queue_id)
        end = self._store.max_offset(queue.topic, queue.queue_id)
        if not first <= offset < end:
            raise NoSuchMessage(
                f"{_name(delivery)} does not exist: queue {queue.queue_id} of {queue.topic} has {first} to {end - 1}"
            )
        if offset >= max(queue.next_offset, queue.high):
            raise InvalidReceiptHandle(f"{_name(delivery)} was never received by this group: the handle is not ours")


def _name(delivery: Delivery) -> str:
    return f"message {delivery.queue_offset} of {delivery.topic}, queue {delivery.queue_id}, group {delivery.group},"


def _expired(delivery: Delivery, end_ms: int) -> InvalidReceiptHandle:
    return InvalidReceiptHandle(f"the receipt handle of {_name(delivery)} expired at {end_ms}")


def _replaced(delivery: Delivery) -> InvalidReceiptHandle:
    return InvalidReceiptHandle(
        f"the receipt handle of {_name(delivery)} popped at {delivery.pop_ms} is not that of its current delivery: "
        f"its invisible time was changed, or it was delivered again"
    )
