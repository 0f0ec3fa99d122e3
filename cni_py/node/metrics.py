"""The metrics of a daemon: counters, gauges and histograms, and their text for Prometheus.

One :class:`Registry` per process. Everything in it may be used from any thread. Why not prometheus-client:
docs/decisions/0013-metrics.md.

Source: Prometheus' text exposition format, version 0.0.4; ``histogram_quantile`` of PromQL.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of a histogram of latencies."""

Labels = tuple[str, ...]
"""Label values, in the order of the metric's label names."""


class Metric:
    """A name with a value for each set of label values."""

    kind = ""

    def __init__(self, lock: threading.Lock, name: str, help_text: str, labels: Labels) -> None:
        self.name, self.help_text, self.labels = name, help_text, labels
        self._lock = lock
        self._values: dict[Labels, float] = {}

    def values(self) -> dict[Labels, float]:
        """A copy, sorted by labels."""
        with self._lock:
            return dict(sorted(self._values.items()))

    def samples(self) -> Iterator[str]:
        """Lines of the text format."""
        for labels, value in self.values().items():
            yield _sample(self.name, zip(self.labels, labels, strict=True), value)


class Counter(Metric):
    """A value that only grows."""

    kind = "counter"

    def add(self, *labels: str, n: float = 1) -> None:
        with self._lock:
            self._values[labels] = self._values.get(labels, 0) + n


class Gauge(Metric):
    """A value that goes up and down."""

    kind = "gauge"

    def set(self, value: float, *labels: str) -> None:
        with self._lock:
            self._values[labels] = value

    def replace(self, values: Mapping[Labels, float]) -> None:
        """Set all values; labels that are not among them disappear."""
        with self._lock:
            self._values = dict(values)


class Histogram(Metric):
    """The distribution of values, such as latencies."""

    kind = "histogram"

    def __init__(
        self, lock: threading.Lock, name: str, help_text: str, labels: Labels, bounds: tuple[float, ...] = SECONDS
    ) -> None:
        super().__init__(lock, name, help_text, labels)
        self.bounds = bounds
        self._counts: dict[Labels, list[int]] = {}

    def observe(self, value: float, *labels: str) -> None:
        with self._lock:
            counts = self._counts.setdefault(labels, [0] * (len(self.bounds) + 1))
            counts[bisect_left(self.bounds, value)] += 1  # a value equal to a bound belongs below it ("le")
            self._values[labels] = self._values.get(labels, 0.0) + value

    def quantile(self, q: float, *labels: str) -> float:
        """An estimate, interpolated within a bucket, as PromQL's ``histogram_quantile``. 0 without values."""
        with self._lock:
            counts = list(self._counts.get(labels, ()))
        rank, below = q * sum(counts), 0
        for index, count in enumerate(counts):
            if count and below + count >= rank:
                if index == len(self.bounds):  # beyond the last bound: nothing to interpolate to
                    break
                low = self.bounds[index - 1] if index else 0.0
                return low + (self.bounds[index] - low) * (rank - below) / count
            below += count
        return self.bounds[-1] if counts else 0.0

    def samples(self) -> Iterator[str]:
        with self._lock:
            found = [(labels, list(counts), self._values[labels]) for labels, counts in sorted(self._counts.items())]
        for labels, counts, total in found:
            pairs = list(zip(self.labels, labels, strict=True))
            number = 0
            for bound, count in zip((*map(_number, self.bounds), "+Inf"), counts, strict=True):
                number += count
                yield _sample(f"{self.name}_bucket", [*pairs, ("le", bound)], number)
            yield _sample(f"{self.name}_sum", pairs, total)
            yield _sample(f"{self.name}_count", pairs, number)


M = TypeVar("M", bound=Metric)


class Registry:
    """The metrics of a process; ``prefix`` begins each of their names."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._lock = threading.Lock()
        self._metrics: dict[str, Metric] = {}
        self._updates: list[Callable[[], None]] = []

    def counter(self, name: str, help_text: str, labels: Labels = ()) -> Counter:
        """Idempotent, as the other two: a name that exists already returns the same metric."""
        return self._add(Counter(self._lock, self.prefix + name, help_text, labels))

    def gauge(self, name: str, help_text: str, labels: Labels = ()) -> Gauge:
        return self._add(Gauge(self._lock, self.prefix + name, help_text, labels))

    def histogram(self, name: str, help_text: str, labels: Labels = ()) -> Histogram:
        return self._add(Histogram(self._lock, self.prefix + name, help_text, labels))

    def before_exposition(self, update: Callable[[], None]) -> None:
        """Call ``update`` for each exposition: for values that are costly to keep current."""
        self._updates.append(update)

    def exposition(self) -> str:
        """The text format."""
        for update in self._updates:
            update()
        with self._lock:
            metrics = sorted(self._metrics.values(), key=lambda metric: metric.name)
        lines: list[str] = []
        for metric in metrics:
            help_text = metric.help_text.replace("\\", r"\\").replace("\n", r"\n")
            lines += [f"# HELP {metric.name} {help_text}", f"# TYPE {metric.name} {metric.kind}", *metric.samples()]
        return "\n".join(lines) + "\n"

    def _add(self, metric: M) -> M:
        with self._lock:
            known = self._metrics.setdefault(metric.name, metric)
        if not isinstance(known, type(metric)):
            raise TypeError(f"{metric.name} is a {known.kind} already")
        return known


def _sample(name: str, labels: Iterable[tuple[str, str]], value: float) -> str:
    texts = [f'{label}="{_escaped(text)}"' for label, text in labels]
    return f"{name}{{{','.join(texts)}}} {_number(value)}" if texts else f"{name} {_number(value)}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.15g}"
