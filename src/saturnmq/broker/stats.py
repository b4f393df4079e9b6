"""How much went through the broker in the last minute, hour and day (store/stats/BrokerStatsManager.java).

Requests add to `kernel.metrics.Counter`s whether anybody looks or not; nothing more is counted for this. A timer
compares them with what they were, and keeps of a sample only what has changed: a topic at rest costs nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import NamedTuple

from saturnmq.broker.pull import Pulls
from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.metrics import Counter, Metrics
from saturnmq.store.store import Store

#: between two samples, milliseconds
SAMPLE_MS = 10_000
#: samples in a minute, in one of the six parts of an hour, and in an hour
_MINUTE, _PART_OF_HOUR, _HOUR = 6, 60, 360
#: samples that rates per second go back at most: ten minutes
_LONGEST = 60

#: what a number is counted by: a topic, or a topic and a group
Key = tuple[str, ...]


class Rate(NamedTuple):
    """What was added within a window: altogether, per second, and per message."""

    sum: int
    tps: float
    per_message: float


class _Sums:
    """What was added to some numbers, in parts of equal length: those that are full, and the one that grows."""

    __slots__ = ("_full", "_growing", "_grown", "_samples")

    def __init__(self, parts: int, samples: int) -> None:
        """A part takes so many samples."""
        self._samples = samples
        self._full: deque[dict[Key, int]] = deque(maxlen=parts)
        self._growing: dict[Key, int] = {}
        self._grown = 0

    def add(self, added: Mapping[Key, int]) -> None:
        """One sample."""
        growing = self._growing
        for key, value in added.items():
            growing[key] = growing.get(key, 0) + value
        self._grown += 1
        if self._grown == self._samples:
            self._full.append(growing)
            self._growing, self._grown = {}, 0

    def sum(self, key: Key) -> int:
        return sum([part.get(key, 0) for part in self._full]) + self._growing.get(key, 0)

    @property
    def seconds(self) -> float:
        """That the sums are of."""
        return (len(self._full) * self._samples + self._grown) * SAMPLE_MS / 1000


class _Series:
    """The last minute, hour and day of some numbers. Owner: Stats."""

    __slots__ = ("_last", "values", "windows")

    def __init__(self, values: Callable[[], Mapping[Key, int]]) -> None:
        self.values = values
        self._last: dict[Key, int] = {}
        self.windows = (_Sums(_MINUTE, 1), _Sums(6, _PART_OF_HOUR), _Sums(24, _HOUR))

    def sample(self) -> None:
        last, added = self._last, {}
        for key, value in self.values().items():
            before = last.get(key, 0)
            if value != before:
                added[key] = value - before
                last[key] = value
        for window in self.windows:
            window.add(added)

    def forget(self, key: Key) -> None:
        self._last.pop(key, None)


class Stats:
    """Owns the samples, the timer that takes them, and what the counters of deleted topics and groups had come to."""

    def __init__(self, cluster: str, store: Store, pulls: Pulls, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self.started_ms = clock.now_ms()
        of_topic, of_both = ("topic",), ("topic", "consumer_group")
        sent = metrics.counter("rocketmq_messages_in_total", "Messages that were sent", of_topic)
        sent_bytes = metrics.counter("rocketmq_throughput_in_total", "Bytes that were sent", of_topic)
        taken = metrics.counter("rocketmq_messages_out_total", "Messages that were taken", of_both)
        taken_bytes = metrics.counter("rocketmq_throughput_out_total", "Bytes that were taken", of_both)
        sent_back = metrics.counter("saturnmq_send_back_messages_total", "Messages that consumers sent back", of_both)
        #: with the sums of what was forgotten
        self._counters: dict[Counter, int] = dict.fromkeys(
            (sent, sent_bytes, taken, taken_bytes, sent_back, pulls.reads, pulls.read_ms), 0
        )
        series = {counter: _Series(_values_of(counter)) for counter in self._counters}
        puts, gets = _Series(lambda: {(cluster,): self._total(sent)}), _Series(lambda: {(cluster,): self._total(taken)})
        #: by Apache's names: the numbers, and the messages (of GROUP_GET_LATENCY: pulls) that they are about
        self._series: dict[str, tuple[_Series, _Series]] = {
            "TOPIC_PUT_NUMS": (series[sent], series[sent]),
            "TOPIC_PUT_SIZE": (series[sent_bytes], series[sent]),
            "GROUP_GET_NUMS": (series[taken], series[taken]),
            "GROUP_GET_SIZE": (series[taken_bytes], series[taken]),
            "SNDBCK_PUT_NUMS": (series[sent_back], series[sent_back]),
            "GROUP_GET_LATENCY": (series[pulls.read_ms], series[pulls.reads]),
            "BROKER_PUT_NUMS": (puts, puts),
            "BROKER_GET_NUMS": (gets, gets),
        }
        self._sampled = (*series.values(), puts, gets)
        self._totals: dict[str, Callable[[], int]] = {
            "appended": lambda: store.appended,
            "found": lambda: store.found,
            "missed": lambda: store.missed,
            "sent": lambda: self._total(sent),
            "taken": lambda: self._total(taken),
        }
        self._history: dict[str, deque[int]] = {name: deque([0], maxlen=_LONGEST + 1) for name in self._totals}
        #: what each total was at the last two midnights
        self._mornings: dict[str, tuple[int, int]] = dict.fromkeys(self._totals, (0, 0))
        self._day = self._today()
        self._timer: Timer | None = None

    def start(self) -> None:
        self._timer = self._clock.call_at(self._clock.now_ms() + SAMPLE_MS, self._sample)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def rates(self, name: str, key: str) -> tuple[Rate, Rate, Rate] | None:
        """Of the last minute, hour and day. The key's parts are joined with `@`. None when there is no such statistic,
        or nothing was ever counted."""
        parts = tuple(key.split("@"))
        if name not in self._series or parts not in self._series[name][0].values():
            return None
        numbers, messages = self._series[name]
        minute, hour, day = (
            _rate(sums, counts, parts) for sums, counts in zip(numbers.windows, messages.windows, strict=True)
        )
        return minute, hour, day

    def tps(self, name: str, key: str) -> float:
        """Of the last minute."""
        rates = self.rates(name, key)
        return 0.0 if rates is None else rates[0].tps

    def per_second(self, total: str) -> tuple[float, float, float]:
        """How fast it grew in the last ten seconds, minute and ten minutes."""
        history = self._history[total]
        ten_seconds, minute, ten_minutes = (
            _growth(history, min(samples, len(history) - 1)) for samples in (1, _MINUTE, _LONGEST)
        )
        return ten_seconds, minute, ten_minutes

    def by_day(self, total: str) -> tuple[int, int, int]:
        """What it was at yesterday's midnight, at today's, and is now."""
        yesterday, today = self._mornings[total]
        return yesterday, today, self._totals[total]()

    def forget_topic(self, topic: str) -> None:
        """It is deleted."""
        self._forget("topic", topic)

    def forget_group(self, group: str) -> None:
        """It is deleted."""
        self._forget("consumer_group", group)

    def _forget(self, label: str, name: str) -> None:
        for counter in self._counters:
            if label not in counter.labels:
                continue
            at = counter.labels.index(label)
            for key in [key for key in counter.values if key[at] == name]:
                self._counters[counter] += counter.values.pop(key)
                for series in self._sampled:
                    series.forget(key)

    def _total(self, counter: Counter) -> int:
        return sum(counter.values.values()) + self._counters[counter]

    def _sample(self) -> None:
        self.start()
        for series in self._sampled:
            series.sample()
        for name, total in self._totals.items():
            self._history[name].append(total())
        if (day := self._today()) != self._day:
            self._day = day
            for name, total in self._totals.items():
                self._mornings[name] = self._mornings[name][1], total()

    def _today(self) -> int:
        return datetime.fromtimestamp(self._clock.now_ms() // 1000).toordinal()


def _values_of(counter: Counter) -> Callable[[], Mapping[Key, int]]:
    return lambda: counter.values


def _rate(sums: _Sums, messages: _Sums, key: Key) -> Rate:
    total, count = sums.sum(key), messages.sum(key)
    return Rate(total, total / sums.seconds if sums.seconds else 0.0, total / count if count else 0.0)


def _growth(history: deque[int], samples: int) -> float:
    """Per second, over the last samples."""
    return (history[-1] - history[-1 - samples]) * 1000 / (samples * SAMPLE_MS) if samples else 0.0
