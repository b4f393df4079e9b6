"""How many messages of each topic wait for their time: `config/timermetrics`, and the counters of `/metrics`."""

from __future__ import annotations

import msgspec

from saturnmq.broker.jsonfile import JsonFile
from saturnmq.kernel.clock import Clock
from saturnmq.kernel.later import Reply
from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.topic import DataVersion
from saturnmq.store.store import Store

#: how often the file is written while the numbers change
_WRITE_MS = 10_000
#: over this many milliseconds a rate is taken
_RATE_MS = 1_000


class Metric(msgspec.Struct, rename="camel"):
    """Of one topic."""

    count: int = 0
    #: of the last change
    time_stamp: int = 0


class _File(msgspec.Struct, rename="camel"):
    """config/timermetrics (store/timer/TimerMetrics.java)"""

    timing_count: dict[str, Metric] = {}
    data_version: DataVersion = msgspec.field(default_factory=DataVersion)


class _Rate:
    """Messages a second."""

    def __init__(self) -> None:
        self._began_ms = self._count = 0
        self._last = 0.0

    def add(self, now_ms: int, count: int) -> None:
        self.read(now_ms)
        self._count += count

    def read(self, now_ms: int) -> float:
        """Over the last whole period."""
        passed_ms = now_ms - self._began_ms
        if passed_ms >= _RATE_MS:
            self._last = self._count * 1000 / passed_ms if passed_ms < 2 * _RATE_MS else 0.0
            self._began_ms, self._count = now_ms, 0
        return self._last


class TimerMetrics:
    """Owner: `broker.timers`. After a crash the numbers of a topic may be off by what changed in the last 10 s."""

    def __init__(self, store: Store, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self._waiting: dict[str, Metric] = {}
        self._version = DataVersion(timestamp=clock.now_ms())
        self._file = JsonFile(
            store.disk, clock, "timermetrics", self.encode, delay_ms=_WRITE_MS, background=store.background
        )
        self.enqueued, self.dequeued = _Rate(), _Rate()
        self._in = metrics.counter("rocketmq_timer_enqueue_total", "Messages that were given a time", ("topic",))
        self._out = metrics.counter("rocketmq_timer_dequeue_total", "Messages whose time had come", ("topic",))
        metrics.gauge("rocketmq_timing_messages", "Messages that wait for their time", self.waiting)

    def load(self) -> None:
        """Raises ValueError when the file and its .bak are broken."""
        stored = self._file.read(_File)
        if stored is not None:
            self._waiting, self._version = stored.timing_count, stored.data_version

    def write(self) -> Reply[None]:
        return self._file.write()

    def waiting(self) -> int:
        """Of all topics."""
        return sum(metric.count for metric in self._waiting.values())

    def sorted_in(self, topic: str, count: int, deletes: int) -> None:
        """`deletes` of them take messages back."""
        self._in.values[(topic,)] += count
        self.enqueued.add(self._clock.now_ms(), count)
        self.change(topic, count - 2 * deletes)

    def came_out(self, topic: str, count: int) -> None:
        self._out.values[(topic,)] += count
        self.dequeued.add(self._clock.now_ms(), count)
        self.change(topic, -count)

    def change(self, topic: str, count: int) -> None:
        metric = self._waiting.get(topic)
        if metric is None:
            metric = self._waiting[topic] = Metric()
        now_ms = self._clock.now_ms()
        metric.count += count
        metric.time_stamp = now_ms
        self._version.bump(now_ms)
        self._file.changed()

    def forget(self, topic: str) -> None:
        """The topic is deleted."""
        if self._waiting.pop(topic, None) is not None:
            self._file.changed()

    def encode(self) -> bytes:
        return msgspec.json.encode(_File(self._waiting, self._version))
