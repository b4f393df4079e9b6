"""What happens when a lease ends: the message goes to the pop retry topic, the FIFO queue is free again."""

from __future__ import annotations

import logging

from saturnmq.broker.leases import CheckPoint, GroupQueue, Leases
from saturnmq.broker.longpoll import LongPolls
from saturnmq.broker.revivelog import ReviveLog
from saturnmq.broker.reviverecords import ReviveRecords
from saturnmq.broker.topics import TopicTable
from saturnmq.kernel import properties
from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.errors import ProtocolError, SaturnError
from saturnmq.kernel.handle import TopicKind
from saturnmq.kernel.later import hear
from saturnmq.kernel.message import BORN_HOST_V6, STORE_HOST_V6, Message, StoredMessage
from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.topic import RETRY_PREFIX
from saturnmq.store.results import Found, FoundStatus
from saturnmq.store.store import Store
from saturnmq.wire.record import MAX_PROPERTIES_BYTES, MAX_RECONSUME_TIMES, decode

log = logging.getLogger(__name__)

#: leases that are ended in one turn of the loop
_PER_TURN = 64
#: bytes that are read at once
_READ_BYTES = 4 << 20
#: milliseconds until what could not be read or written is tried again
_RETRY_MS = 10_000


class Revival:
    """Ends leases in time: one timer, for the earliest (processor/PopReviveService.java).

    The copy in the retry topic and the record that closes the old delivery are one append, the copy first: a crash
    in between repeats the message, it never loses it.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        topics: TopicTable,
        leases: Leases,
        records: ReviveRecords,
        revive_log: ReviveLog,
        polls: LongPolls,
        metrics: Metrics,
    ) -> None:
        self._store, self._clock, self._topics, self._leases = store, clock, topics, leases
        self._records, self._log, self._polls = records, revive_log, polls
        self._timer: Timer | None = None
        self._timer_ms = 0
        self._failed: list[CheckPoint] = []
        self._revived = metrics.counter(
            "rocketmq_pop_revive_retry_messages_total",
            "Messages that went to a retry topic because nobody acknowledged them in time",
            ("consumer_group", "topic"),
        )

    def watch(self) -> None:
        """A lease was given or changed: be there when the first one ends."""
        when_ms = self._leases.next_expiry_ms()
        if when_ms is not None and (self._timer is None or when_ms < self._timer_ms):
            self.stop()
            self._timer_ms = when_ms
            self._timer = self._clock.call_at(when_ms, self._turn)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _turn(self) -> None:
        self._timer = None
        now_ms = self._clock.now_ms()
        for _ in range(_PER_TURN):
            due = self._leases.take_due(now_ms)
            if due is None:
                break
            if isinstance(due, GroupQueue):
                self._polls.wake(due.topic, due.group, due.queue_id)
            else:
                self._revive(due, due.remaining())
        self.watch()

    def _revive(self, check_point: CheckPoint, offsets: list[int]) -> None:
        """Copy the messages at `offsets`, reading from the first one on."""
        queue = check_point.queue
        if self._topics.get(queue.topic) is None:
            self._close(check_point, offsets, [])  # it was deleted
            return
        try:
            found = self._store.get(queue.topic, queue.queue_id, offsets[0], len(offsets), _READ_BYTES)
            hear(
                found,
                lambda found: self._copy(check_point, offsets, found),
                lambda error: self._fail(check_point, error),
            )
        except SaturnError as error:
            self._fail(check_point, error)

    def _copy(self, check_point: CheckPoint, offsets: list[int], found: Found) -> None:
        if not check_point.pending:
            return  # the topic was deleted meanwhile
        wanted = set(offsets)
        copies = []
        for offset, record in zip(found.offsets, found.records, strict=True):
            if offset in wanted:
                try:
                    copies.append(self._copy_of(check_point, record))
                except ProtocolError as error:
                    log.error(
                        "message %d of %s is damaged and does not come back: %s", offset, check_point.queue, error
                    )
        looked_at = found.status in (FoundStatus.FOUND, FoundStatus.NO_MATCH, FoundStatus.BEFORE)
        end = found.next_offset if looked_at else offsets[-1] + 1
        done = [offset for offset in offsets if offset < end]
        if len(copies) < len(done):
            log.warning("%d messages of %s are no longer in the log", len(done) - len(copies), check_point.queue)
        try:
            self._close(check_point, done, copies)
        except SaturnError as error:
            self._fail(check_point, error)
        else:
            if len(done) < len(offsets):
                self._revive(check_point, offsets[len(done) :])

    def _copy_of(self, check_point: CheckPoint, record: bytes) -> Message:
        """As Apache makes it (PopReviveService#reviveRetry), but the born host stays what it was."""
        queue, message = check_point.queue, decode(record)
        if queue.kind is TopicKind.NORMAL and not queue.topic.startswith(RETRY_PREFIX):
            topic = self._topics.ensure_pop_retry(queue.group, queue.topic).topic_name
        else:
            topic = queue.topic
        return Message(
            topic,
            0,
            message.body,
            _of_copy(message, check_point),
            message.born_ms,
            message.born_host,
            message.flag,
            message.sys_flag & ~(BORN_HOST_V6 | STORE_HOST_V6),
            min(message.reconsume_times + 1, MAX_RECONSUME_TIMES),
        )

    def _close(self, check_point: CheckPoint, offsets: list[int], copies: list[Message]) -> None:
        """The lease of `offsets` is over, `copies` take their place. Raises ServiceUnavailable."""
        now_ms = self._clock.now_ms()
        self._log.append([*copies, self._records.revived(check_point, offsets, now_ms)], [check_point])
        for offset in offsets:
            self._leases.close(check_point, offset, now_ms, acknowledged=False)
        self._revived.values[check_point.queue.group, check_point.queue.topic] += len(copies)

    def forget(self, queue: GroupQueue, offset: int) -> None:
        """An operator's word: leases of messages from this offset on are over, and nothing comes back of them. Raises
        ServiceUnavailable."""
        for check_point in {id(one): one for one in queue.leases.values()}.values():
            ended = [one for one in check_point.remaining() if one >= offset]
            if ended:
                self._close(check_point, ended, [])

    def _fail(self, check_point: CheckPoint, error: BaseException) -> None:
        """Leave it under its lease, whose handles are no longer good, and try again later."""
        log.error("messages of %s whose lease is over cannot be copied: %s", check_point.queue, error)
        if not self._failed:
            self._clock.call_at(self._clock.now_ms() + _RETRY_MS, self._try_again)
        self._failed.append(check_point)

    def _try_again(self) -> None:
        failed, self._failed = self._failed, []
        for check_point in failed:
            if check_point.pending:
                self._revive(check_point, check_point.remaining())


def _of_copy(message: StoredMessage, check_point: CheckPoint) -> bytes:
    """Its properties with `ORIGIN_GROUP` and, unless it has that of an earlier delivery, `1ST_POP_TIME`; as they were
    when there is no room for these."""
    pairs = properties.decode(message.properties)
    if not message.reconsume_times or properties.FIRST_POP_TIME not in pairs:
        pairs[properties.FIRST_POP_TIME] = str(check_point.pop_ms)
    pairs[properties.ORIGIN_GROUP] = check_point.queue.group
    longer = properties.encode(pairs)
    return longer if len(longer) <= MAX_PROPERTIES_BYTES else message.properties
