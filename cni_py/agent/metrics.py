"""The agent's metrics: calls, failures, latencies, events, free addresses; for Prometheus and for ``cni-py status``."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Any

from cni_py.node.metrics import Registry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cni_py.agent.ipam_usage import RangeSetUsage

QUANTILES = (0.5, 0.95, 0.99)


class AgentMetrics:
    """Every method may be called from any thread."""

    def __init__(self) -> None:
        self.started = time()
        self.registry = registry = Registry("cni_py_")
        self.calls = registry.counter("calls_total", "Calls of plugins that were handled.", ("plugin", "verb"))
        self.failures = registry.counter(
            "failures_total", "Calls that returned an error, by its code.", ("plugin", "verb", "code")
        )
        self.latency = registry.histogram("call_seconds", "Time that a call took.", ("verb",))
        self.events = registry.counter("events_total", "Sweeps, checks, repairs, and faults of connections.", ("event",))
        self._addresses = {
            "total": registry.gauge("addresses", "Addresses of a range set that can be allocated.", ("network", "range_set")),
            "taken": registry.gauge("addresses_taken", "Addresses of a range set that are reserved.", ("network", "range_set")),
            "free": registry.gauge(
                "addresses_free", "Addresses of a range set that are not reserved.", ("network", "range_set")
            ),
        }

    def count_call(self, plugin: str, verb: str, code: int, seconds: float) -> None:
        """Count a call that was handled; ``code`` 0 is success."""
        self.calls.add(plugin, verb)
        if code:
            self.failures.add(plugin, verb, str(code))
        self.latency.observe(seconds, verb)

    def count(self, event: str, n: int = 1) -> None:
        """Count anything else: broken connections, repairs, what a sweep freed."""
        self.events.add(event, n=n)

    def set_gauges(self, values: Mapping[str, int]) -> None:
        for name, value in values.items():
            self.registry.gauge(name, _HELP[name]).set(value)

    def set_usage(self, usage: Sequence[RangeSetUsage]) -> None:
        """Replace the gauges of addresses."""
        for key, gauge in self._addresses.items():
            gauge.replace({(one.network, one.range_set): one.as_json()[key] for one in usage})

    def as_json(self) -> dict[str, Any]:
        """JSON object of ``cni-py status``."""
        return {
            "up_seconds": int(time() - self.started),
            "calls": {" ".join(labels): n for labels, n in self.calls.values().items()},
            "failures": {f"{plugin} {verb} code {code}": n for (plugin, verb, code), n in self.failures.values().items()},
            "latencies": {
                verb: {f"p{int(q * 100)}_ms": round(self.latency.quantile(q, verb) * 1000, 2) for q in QUANTILES}
                for (verb,) in self.latency.values()
            },
            "events": {event: n for (event,), n in self.events.values().items()},
        }


_HELP = {
    "attachments": "Attachments that were created through this agent and not deleted.",
    "calls_in_progress": "Calls that wait or are being handled.",
    "workers": "Threads for calls.",
}
