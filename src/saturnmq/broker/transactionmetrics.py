"""How many half messages of each topic are pending: `config/transactionMetrics`, and the counters of `/metrics`."""

from __future__ import annotations

import msgspec

from saturnmq.broker.jsonfile import JsonFile
from saturnmq.broker.timermetrics import Metric
from saturnmq.kernel.clock import Clock
from saturnmq.kernel.later import Reply
from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.topic import DataVersion
from saturnmq.store.store import Store

#: seconds (broker/metrics/BrokerMetricsManager.java)
_LATENCIES_S = (5, 60, 600, 3_600, 43_200, 86_400)


class _File(msgspec.Struct, rename="camel"):
    """config/transactionMetrics (broker/transaction/TransactionMetrics.java)"""

    transaction_count: dict[str, Metric] = {}
    data_version: DataVersion = msgspec.field(default_factory=DataVersion)


class TransactionMetrics:
    """Owner: `broker.transactions`. After a crash the numbers may be off by what changed since the last write."""

    def __init__(self, store: Store, clock: Clock, metrics: Metrics, write_ms: int) -> None:
        self._clock = clock
        self._pending: dict[str, Metric] = {}
        self._version = DataVersion(timestamp=clock.now_ms())
        self._file = JsonFile(
            store.disk, clock, "transactionMetrics", self._encode, delay_ms=write_ms, background=store.background
        )
        self._halves = metrics.counter("rocketmq_half_messages", "Half messages that are pending", ("topic",), "gauge")
        self.committed = metrics.counter(
            "rocketmq_commit_messages_total", "Half messages that were committed", ("topic",)
        )
        self.latency = metrics.histogram(
            "rocketmq_finish_message_latency_milliseconds",
            "From the birth of a half message to its commit: seconds, whatever Apache calls it",
            _LATENCIES_S,
            ("topic",),
        )
        self.rolled_back = metrics.counter(
            "rocketmq_rollback_messages_total", "Half messages that were rolled back", ("topic",)
        )

    def load(self) -> None:
        """Raises ValueError when the file and its .bak are broken."""
        stored = self._file.read(_File)
        if stored is not None:
            self._pending, self._version = stored.transaction_count, stored.data_version
            for topic, metric in self._pending.items():
                self._halves.values[(topic,)] = metric.count

    def write(self) -> Reply[None]:
        return self._file.write()

    def change(self, topic: str, count: int) -> None:
        metric = self._pending.setdefault(topic, Metric())
        now_ms = self._clock.now_ms()
        metric.count += count
        metric.time_stamp = now_ms
        self._halves.values[(topic,)] = metric.count
        self._version.bump(now_ms)
        self._file.changed()

    def forget(self, topic: str) -> None:
        """The topic is deleted."""
        if self._pending.pop(topic, None) is not None:
            self._halves.values.pop((topic,), None)
            self._file.changed()

    def _encode(self) -> bytes:
        return msgspec.json.encode(_File(self._pending, self._version))
