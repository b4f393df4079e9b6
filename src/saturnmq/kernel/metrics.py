"""Counters as plain integers, written as Prometheus text when somebody asks."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate


class Counter:
    """A number per set of label values. Owner: the room that counts; `counter.add(("topic-a",))`."""

    __slots__ = ("help", "kind", "labels", "name", "values")

    def __init__(self, name: str, help: str, labels: tuple[str, ...] = (), kind: str = "counter") -> None:  # noqa: A002
        self.name, self.help, self.labels, self.kind = name, help, labels, kind
        self.values: defaultdict[tuple[str, ...], int] = defaultdict(int)

    def add(self, labels: tuple[str, ...] = (), amount: int = 1) -> None:
        self.values[labels] += amount


class Histogram:
    """How many values came up to each bound, per set of label values. Owner: the room that measures."""

    __slots__ = ("bounds", "help", "labels", "name", "values")

    def __init__(self, name: str, help: str, bounds: tuple[int, ...], labels: tuple[str, ...] = ()) -> None:  # noqa: A002
        self.name, self.help, self.bounds, self.labels = name, help, bounds, labels
        #: how many came between each two bounds, and above the last; behind them their sum
        self.values: dict[tuple[str, ...], list[int]] = {}

    def add(self, value: int, labels: tuple[str, ...] = ()) -> None:
        counts = self.values.setdefault(labels, [0] * (len(self.bounds) + 2))
        counts[bisect_left(self.bounds, value)] += 1
        counts[-1] += value

    def samples(self) -> Iterator[str]:
        for values, (*counts, total) in list(self.values.items()):
            labels = dict(zip(self.labels, values, strict=True))
            for bound, count in zip((*map(float, self.bounds), "+Inf"), accumulate(counts), strict=True):
                yield f"{_labelled(f'{self.name}_bucket', {**labels, 'le': str(bound)})} {count}\n"
            yield f"{_labelled(f'{self.name}_count', labels)} {sum(counts)}\n"
            yield f"{_labelled(f'{self.name}_sum', labels)} {total}\n"


class Metrics:
    """Everything one process counts. Gauges are functions, asked when the page is."""

    def __init__(self) -> None:
        self._counters: list[Counter] = []
        self._histograms: list[Histogram] = []
        #: by name: the help, and of each set of labels how it is written and read
        self._gauges: dict[str, tuple[str, list[tuple[str, Callable[[], int | float]]]]] = {}

    def counter(self, name: str, help: str, labels: tuple[str, ...] = (), kind: str = "counter") -> Counter:  # noqa: A002
        """The counter of this name: servers of one process share it, and tell themselves apart by a label."""
        for counter in self._counters:
            if counter.name == name:
                return counter
        counter = Counter(name, help, labels, kind)
        self._counters.append(counter)
        return counter

    def histogram(self, name: str, help: str, bounds: tuple[int, ...], labels: tuple[str, ...] = ()) -> Histogram:  # noqa: A002
        histogram = Histogram(name, help, bounds, labels)
        self._histograms.append(histogram)
        return histogram

    def gauge(
        self,
        name: str,
        help: str,  # noqa: A002
        read: Callable[[], int | float],
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """A number that is asked for. Servers of one process share a name, and tell themselves apart by a label."""
        _, reads = self._gauges.setdefault(name, (help, []))
        reads.append((_labelled(name, labels or {}), read))

    def lines(self) -> Iterator[str]:
        """Prometheus text, a line at a time."""
        for counter in self._counters:
            yield f"# HELP {counter.name} {counter.help}\n# TYPE {counter.name} {counter.kind}\n"
            for values, number in list(counter.values.items()):
                yield f"{_labelled(counter.name, dict(zip(counter.labels, values, strict=True)))} {number}\n"
        for histogram in self._histograms:
            yield f"# HELP {histogram.name} {histogram.help}\n# TYPE {histogram.name} histogram\n"
            yield from histogram.samples()
        for name, (text, reads) in self._gauges.items():
            yield f"# HELP {name} {text}\n# TYPE {name} gauge\n"
            for labelled, read in reads:
                yield f"{labelled} {read()}\n"


def together(label: str, pages: Mapping[str, str]) -> str:
    """One page of the pages of several processes: each sample says by `label` whose it is."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    metric = ""  # that the lines are about: a head comes before its samples
    for process, page in pages.items():
        for line in page.splitlines():
            if line.startswith("# "):
                metric = line.split(" ", 3)[2]
                if line not in heads.setdefault(metric, []):
                    heads[metric].append(line)
                continue
            name, brace, rest = line.partition("{")
            if brace:
                sample = f'{name}{{{label}="{process}",{rest}'
            else:
                name, _, number = line.partition(" ")
                sample = f'{name}{{{label}="{process}"}} {number}'
            samples.setdefault(metric, []).append(sample)
    return "".join(f"{line}\n" for metric, head in heads.items() for line in (*head, *samples.get(metric, ())))


def _labelled(name: str, labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{key}="{_escape(value)}"' for key, value in labels.items())
    return f"{name}{{{pairs}}}" if pairs else name


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
