"""What the agent counts: calls, failures, latencies; as JSON for ``cni-py status``, as text for Prometheus."""

from __future__ import annotations

import threading
from collections import Counter, deque
from time import time
from typing import Any

KEPT_LATENCIES = 1000
QUANTILES = (0.5, 0.95, 0.99)


class Statistics:
    """Counters of one agent; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.started = time()
        self.calls: Counter[tuple[str, str]] = Counter()
        self.failures: Counter[tuple[str, str, int]] = Counter()
        self.events: Counter[str] = Counter()
        self._latencies: dict[str, deque[float]] = {}

    def count_call(self, plugin: str, verb: str, code: int, seconds: float) -> None:
        """One answered call; ``code`` 0 is success."""
        with self._lock:
            self.calls[plugin, verb] += 1
            if code:
                self.failures[plugin, verb, code] += 1
            self._latencies.setdefault(verb, deque(maxlen=KEPT_LATENCIES)).append(seconds)

    def count(self, event: str, number: int = 1) -> None:
        """Something else that is worth counting: broken connections, repairs, what a sweep freed."""
        with self._lock:
            self.events[event] += number

    def latencies(self) -> dict[str, dict[float, float]]:
        """By verb, seconds by quantile over the last ``KEPT_LATENCIES`` calls."""
        with self._lock:
            kept = {verb: sorted(values) for verb, values in self._latencies.items()}
        return {
            verb: {q: values[min(int(q * len(values)), len(values) - 1)] for q in QUANTILES} for verb, values in kept.items()
        }

    def as_json(self) -> dict[str, Any]:
        latencies = {
            verb: {f"p{int(q * 100)}_ms": round(seconds * 1000, 2) for q, seconds in of_verb.items()}
            for verb, of_verb in self.latencies().items()
        }
        with self._lock:
            return {
                "up_seconds": int(time() - self.started),
                "calls": {f"{plugin} {verb}": n for (plugin, verb), n in sorted(self.calls.items())},
                "failures": {f"{plugin} {verb} code {code}": n for (plugin, verb, code), n in sorted(self.failures.items())},
                "latencies": latencies,
                "events": dict(sorted(self.events.items())),
            }

    def as_prometheus(self, gauges: dict[str, int]) -> str:
        """The text exposition format, version 0.0.4."""
        lines = ["# TYPE cni_py_calls_total counter"]
        with self._lock:
            lines += [f'cni_py_calls_total{{plugin="{p}",verb="{v}"}} {n}' for (p, v), n in sorted(self.calls.items())]
            lines.append("# TYPE cni_py_failures_total counter")
            lines += [
                f'cni_py_failures_total{{plugin="{p}",verb="{v}",code="{c}"}} {n}'
                for (p, v, c), n in sorted(self.failures.items())
            ]
            lines.append("# TYPE cni_py_events_total counter")
            lines += [f'cni_py_events_total{{event="{event}"}} {n}' for event, n in sorted(self.events.items())]
        lines.append("# TYPE cni_py_call_seconds summary")
        for verb, quantiles in sorted(self.latencies().items()):
            lines += [f'cni_py_call_seconds{{verb="{verb}",quantile="{q}"}} {seconds:.6f}' for q, seconds in quantiles.items()]
        for name, value in gauges.items():
            lines += [f"# TYPE cni_py_{name} gauge", f"cni_py_{name} {value}"]
        return "\n".join(lines) + "\n"
