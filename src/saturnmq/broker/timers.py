"""Messages for an arbitrary time: taken into the timer topic, sorted into the wheel, delivered when their time comes.

A message with a time is appended to rmq_sys_wheel_timer with the topic and queue that it is for (`postpone`). From
there two things go on, a little in each turn of the loop. *Sorting in* follows the topic's queue and gives each message
a place in the wheel. *Delivery* takes the slots whose time is over, one after the other, and appends their messages to
their topics. What is too far away for the wheel waits in an earlier slot and is then appended to the timer topic again
("rolled"): no record has to be kept for longer than timerRollWindowSlot.

What a crash repeats: messages that were delivered after the last checkpoint, timerFlushIntervalMs ago at most and the
time that it took. Nothing is lost and nothing comes early: a checkpoint says only what is durable.
Source: store/timer/TimerMessageStore.java.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from saturnmq.broker import timermessages
from saturnmq.broker.attempts import Attempts
from saturnmq.broker.timercheckpoints import TimerCheckpoints
from saturnmq.broker.timerdelivery import TimerDelivery
from saturnmq.broker.timermessages import TIMERS, Everything, Sieve
from saturnmq.broker.timermetrics import TimerMetrics
from saturnmq.broker.timersorting import PATIENCE_MS, TimerSorting
from saturnmq.kernel import properties as names
from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.config import StoreConfig
from saturnmq.kernel.errors import (
    IllegalDeliveryTime,
    ServiceUnavailable,
    TimersCongested,
    TimersDisabled,
)
from saturnmq.kernel.later import Reply, after, chain, gather, hear
from saturnmq.kernel.message import Message
from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.subscription import tag_hash
from saturnmq.kernel.topic import TIMER_TOPIC
from saturnmq.store.store import Store
from saturnmq.store.timercheck import TimerCheck
from saturnmq.store.timerfiles import Oldest, TimerFiles
from saturnmq.store.timerwheel import slot_of_due

log = logging.getLogger(__name__)

#: Java's Integer.MAX_VALUE: slots are not counted
_NO_LIMIT = (1 << 31) - 1


class Timers:
    """Owns the files of delayed messages and their checkpoints."""

    def __init__(self, store: Store, clock: Clock, *, random: Callable[[int], int], metrics: Metrics) -> None:
        """`random(n)` draws from 0 to n-1."""
        self._config = config = store.config
        self._store, self._clock, self._random = store, clock, random
        self._attempts = Attempts(clock, store.background)
        self._files = TimerFiles(
            store.disk, config.timer_precision_ms, config.timer_roll_window_slot, config.mapped_file_size_timer_log
        )
        self.metrics = TimerMetrics(store, clock, metrics)
        #: settable before `begin`
        self.sieve: Sieve = Everything()
        #: what the files say after `open`, until `begin`
        self._opened: TimerCheck | None = None
        #: both while this runs
        self._sorting: TimerSorting | None = None
        self._delivery: TimerDelivery | None = None
        #: there are no files yet
        self._waits_for_first = False
        #: they are made then
        self._timer: Timer | None = None
        #: why messages for a time are refused: their files failed
        self._failure: str | None = None
        self._checkpoints = TimerCheckpoints(store, self._files, clock, self._state, self._failed)

    def configure(self, config: StoreConfig) -> None:
        """Take over what may change while the broker runs."""
        self._config = config
        self._checkpoints.interval_ms = config.timer_flush_interval_ms
        if self._sorting is not None and self._delivery is not None:
            self._sorting.enabled = not config.timer_stop_enqueue
            self._delivery.enabled = not config.timer_stop_dequeue
            self._sorting.start()
            self._delivery.step()

    # ------------------------------------------------------------------------------------------------ taking in

    def postpone(self, message: Message, properties: dict[str, str]) -> int | None:
        """Turn a message with a time into one of the timer topic and give its TIMER_OUT_MS; None when it is due or has
        no time. The caller packs the properties, which change too. Raises IllegalDeliveryTime, TimersDisabled,
        TimersCongested, ServiceUnavailable."""
        timer = next((name for name in TIMERS if name in properties), None)
        if timer is None or names.TIMER_OUT_MS in properties or message.topic == TIMER_TOPIC:
            return None
        config, now_ms = self._config, self._clock.now_ms()
        if not config.timer_wheel_enable:
            raise TimersDisabled("accurate timer message is not enabled, timerWheelEnable is false")
        due_ms = timermessages.due_ms(timer, properties[timer], now_ms)
        most_ms = config.timer_max_delay_sec * 1000
        if due_ms <= now_ms:
            if names.TIMER_DEL_UNIQUE_KEY in properties:
                raise IllegalDeliveryTime("a message that takes back another must be due when that is, in the future")
            return None
        if due_ms - now_ms > most_ms:
            raise IllegalDeliveryTime(
                f"the delivery time is {due_ms - now_ms} ms away, the limit is timerMaxDelaySec="
                f"{config.timer_max_delay_sec} ({most_ms} ms): choose an earlier time, or raise it"
            )
        if self._failure is not None:
            raise ServiceUnavailable(self._failure)
        slot_ms = slot_of_due(due_ms, config.timer_precision_ms)
        self._check_congestion(slot_ms)
        properties[names.TIMER_OUT_MS] = str(slot_ms)
        properties[names.REAL_TOPIC] = message.topic
        properties[names.REAL_QUEUE_ID] = str(message.queue_id)
        message.topic, message.queue_id = TIMER_TOPIC, 0
        return slot_ms

    def _check_congestion(self, slot_ms: int) -> None:
        """Refuse more of the messages the fuller the slot is (TimerMessageStore.isReject)."""
        limit = self._config.timer_congest_num_each_slot
        if limit == _NO_LIMIT or self._sorting is None:
            return
        over = self._files.messages(slot_ms) - limit
        if over > 0 and (over >= limit or self._random(1000) > 1000 * over / (limit + 0.1)):
            raise TimersCongested(
                f"timer message is under flow control, max num limit is {2 * limit} or the current value is greater "
                f"than {limit} and less than {2 * limit}, trigger random flow control (timerCongestNumEachSlot)"
            )

    # ------------------------------------------------------------------------------------------ starting, stopping

    def load(self) -> None:
        """Raises ValueError when the file of the numbers and its .bak are broken."""
        self.metrics.load()

    def open(self) -> Reply[None]:
        """Recover the files; where there are none, with the first message. Fails with OSError, StoreRefused."""
        if not self._config.timer_wheel_enable:
            return None
        if self._store.max_offset(TIMER_TOPIC, 0) == 0 and not self._files.exist():
            self._waits_for_first = True
            return None
        return self._recover()

    @property
    def sorted_to(self) -> int:
        """After `open`: messages of the timer topic from this offset on are not in the wheel."""
        return self._store.min_offset(TIMER_TOPIC, 0) if self._opened is None else self._opened.queue_offset

    def places_of(self, topic: str) -> Reply[list[tuple[int, int]]]:
        """After `open`: log positions and sizes of the messages in the wheel that are for this topic, or one with the
        same hash, in the order in which they came. Looks through the whole timer log."""
        check = self._opened
        if check is None:
            return []
        return self._attempts.later(lambda: self._files.places_of(check, tag_hash(topic)))

    def begin(self) -> None:
        """Sort in and deliver, if there are files."""
        if self._opened is not None:
            check, self._opened = self._opened, None
            self._begin(check)

    def _recover(self) -> Reply[None]:
        store, files = self._store, self._files
        low, high = store.min_offset(TIMER_TOPIC, 0), store.max_offset(TIMER_TOPIC, 0)
        offset = files.load(low, high).queue_offset
        bound: Reply[int] = store.position_at(TIMER_TOPIC, 0, offset) if offset < high else store.opened_at

        def opened(position: int) -> Reply[None]:
            check = self._attempts.later(lambda: files.open(position, low, high, crashed=store.crashed))
            return after(check, self._keep)

        return chain(bound, opened)

    def _keep(self, check: TimerCheck) -> None:
        self._opened = check

    def _begin(self, check: TimerCheck) -> None:
        store, files, clock, metrics = self._store, self._files, self._clock, self.metrics
        delivery = TimerDelivery(
            store, files, clock, metrics, check, self._checkpoints.changed, self._begin_anew, self.sieve
        )
        sorting = TimerSorting(store, files, clock, metrics, delivery, check, self._checkpoints.changed, self.sieve)
        delivery.is_held, delivery.on_rolled, delivery.on_room = sorting.is_before, sorting.hold, sorting.unblock
        self._delivery, self._sorting = delivery, sorting
        self.configure(self._config)

    def _begin_anew(self, error: BaseException) -> None:
        """The timer log is damaged: what is delivered is known, all other messages are sorted in again."""
        log.error("%s", error)
        check = self._state()
        self._halt()

        def begin_anew(_: None) -> Reply[TimerCheck]:
            low = self._store.min_offset(TIMER_TOPIC, 0)
            return self._attempts.later(lambda: self._files.begin_anew(check, low))

        hear(chain(self._checkpoints.pause(), begin_anew), self._begin, self._failed)

    def _halt(self) -> None:
        """Sorting in and delivery end where they are."""
        if self._sorting is not None and self._delivery is not None:
            self._sorting.stop()
            self._delivery.stop()
            self._sorting = self._delivery = None

    def _failed(self, error: BaseException) -> None:
        """Nobody knows what is in the files."""
        self._failure = f"delayed messages wait until the broker is restarted: their files failed: {error}"
        log.error("%s", self._failure)
        self._halt()

    def stop(self) -> Reply[None]:
        """Stop, and write how far it came. Answers when that is on disk, or cannot be. The store is open until then."""
        self._waits_for_first = False
        if self._sorting is None or self._delivery is None:
            return self.metrics.write()
        self._sorting.stop()
        self._delivery.stop()
        written = chain(self._checkpoints.pause(), lambda _: self._checkpoints.write())
        return after(gather([written, self.metrics.write()]), lambda _: self._close())

    def _close(self) -> None:
        self._halt()
        self._files.close()

    def arrived(self, offset: int) -> None:
        """A message of the timer topic can be read now."""
        if self._sorting is not None:
            self._sorting.arrived(offset)
        elif self._waits_for_first and not self.sieve.arrived(offset):
            self._make_files()
        elif self._waits_for_first and self._timer is None:
            self._timer = self._clock.call_at(self._clock.now_ms() + PATIENCE_MS, self._make_files)

    def _make_files(self) -> None:
        if self._waits_for_first:
            self._waits_for_first = False
            self._attempts.ask(self._recover, lambda _: self.begin(), self._failed)

    def _state(self) -> TimerCheck:
        """How far sorting in and delivery are."""
        assert self._sorting is not None
        assert self._delivery is not None
        return self._delivery.state(self._sorting.state(self._files.state(self._clock.now_ms())))

    # -------------------------------------------------------------------------------------------------- for others

    def pending_from(self, end: int) -> Reply[int]:
        """`store.retention.Lodger`: of messages whose time has not come, as a crash now would find them."""
        if self._waits_for_first or not self._config.timer_wheel_enable:
            return self._store.first_position([(TIMER_TOPIC, 0, self._store.min_offset(TIMER_TOPIC, 0))], end)
        if self._sorting is None:
            return 0
        check = self._files.check
        if check.queue_offset < self._state().queue_offset:
            self._checkpoints.changed()  # perhaps nothing but what nobody needed: soon it need not be kept
        oldest = self._attempts.later(lambda: self._files.oldest_pending(check))
        return chain(oldest, lambda found: self._clean(found, check, end))

    def _clean(self, oldest: Oldest, check: TimerCheck, end: int) -> Reply[int]:
        paths = self._files.drop_before(oldest.position)
        if paths:
            self._attempts.run(lambda: self._files.delete(paths), lambda _: None, _not_deleted)
        if oldest.commit_log_offset is not None:
            end = min(end, oldest.commit_log_offset)
        return self._store.first_position([(TIMER_TOPIC, 0, check.queue_offset)], end)

    def check_point(self) -> bytes:
        """The body that answers GET_TIMER_CHECK_POINT."""
        return (self._files.check if self._sorting is None else self._state()).encode()

    def runtime(self) -> dict[str, str]:
        """What GET_BROKER_RUNTIME_INFO says of delayed messages (AdminBrokerProcessor.prepareRuntimeInfo)."""
        now_ms, metrics = self._clock.now_ms(), self.metrics
        read_ms, behind = now_ms, 0
        if self._sorting is not None and self._delivery is not None:
            self._delivery.pass_empty(now_ms)
            read_ms, behind = self._delivery.read_ms, self._sorting.behind
        return {
            "timerReadBehind": str((now_ms - read_ms) // 1000),
            "timerOffsetBehind": str(behind),
            "timerCongestNum": str(metrics.waiting()),
            "timerEnqueueTps": str(metrics.enqueued.read(now_ms)),
            "timerDequeueTps": str(metrics.dequeued.read(now_ms)),
        }


def _not_deleted(error: BaseException) -> None:
    log.warning("old files of the timer log could not be deleted: %s", error)
