"""metrics.py of node and agent: counters, gauges and histograms, as Prometheus text and as the agent's report."""

from __future__ import annotations

import threading

import pytest

from cni_py.agent.metrics import AgentMetrics
from cni_py.agent.options import parse_metrics_address
from cni_py.node.metrics import SECONDS, Registry

# --- the registry -----------------------------------------------------------------------------------------------------


@pytest.fixture
def registry() -> Registry:
    return Registry("test_")


def test_exposition_is_sorted_and_complete(registry: Registry) -> None:
    registry.gauge("free", "Free ones.", ("network",)).set(2**64 - 2, "b")
    registry.gauge("free", "Free ones.", ("network",)).set(0.5, "a")
    registry.counter("calls_total", "Calls.").add()
    registry.gauge("unset", "Not set yet.")
    assert registry.exposition().splitlines() == [
        "# HELP test_calls_total Calls.",
        "# TYPE test_calls_total counter",
        "test_calls_total 1",
        "# HELP test_free Free ones.",
        "# TYPE test_free gauge",
        'test_free{network="a"} 0.5',
        'test_free{network="b"} 18446744073709551614',
        "# HELP test_unset Not set yet.",
        "# TYPE test_unset gauge",
    ]
    assert registry.exposition().endswith("\n")


def test_texts_are_escaped(registry: Registry) -> None:
    registry.gauge("g", 'a "\\" \nb', ("label",)).set(1, 'x"\\\ny')
    lines = registry.exposition().splitlines()
    assert lines[0] == r'# HELP test_g a "\\" \nb'
    assert lines[2] == r'test_g{label="x\"\\\ny"} 1'


def test_gauge_whose_labels_disappear(registry: Registry) -> None:
    gauge = registry.gauge("g", "", ("network",))
    gauge.replace({("a",): 1, ("b",): 2})
    gauge.replace({("b",): 3})
    assert gauge.values() == {("b",): 3}


def test_value_is_updated_for_each_exposition(registry: Registry) -> None:
    values = [2, 1]
    registry.before_exposition(lambda: registry.gauge("g", "").set(values.pop()))
    assert [registry.exposition().splitlines()[-1] for _ in range(2)] == ["test_g 1", "test_g 2"]


def test_name_has_one_kind(registry: Registry) -> None:
    registry.counter("x", "").add()
    with pytest.raises(TypeError, match="test_x is a counter already"):
        registry.gauge("x", "")


def test_histogram(registry: Registry) -> None:
    histogram = registry.histogram("seconds", "How long.", ("verb",))
    for value in (0.0005, 0.001, 0.0011, 7.0, 1000.0):
        histogram.observe(value, "ADD")
    lines = registry.exposition().splitlines()
    assert lines[:2] == ["# HELP test_seconds How long.", "# TYPE test_seconds histogram"]
    counts = {line.partition('le="')[2].partition('"')[0]: int(line.split()[-1]) for line in lines if "_bucket{" in line}
    assert list(counts) == [*(f"{bound:.15g}" for bound in SECONDS), "+Inf"]
    assert (counts["0.001"], counts["0.0025"], counts["5"], counts["10"], counts["30"], counts["+Inf"]) == (2, 3, 3, 4, 4, 5)
    assert lines[-2:] == ['test_seconds_sum{verb="ADD"} 1007.0026', 'test_seconds_count{verb="ADD"} 5']


@pytest.mark.parametrize(
    ("values", "q", "expected"),
    [
        ([], 0.5, 0.0),
        ([0.004] * 100, 0.5, 0.00375),  # the middle of 0.0025 to 0.005
        ([0.004] * 100, 1.0, 0.005),
        ([0.0007] * 90 + [0.3] * 10, 0.5, 0.5 / 0.9 * 0.001),
        ([0.0007] * 90 + [0.3] * 10, 0.95, 0.375),
        ([1000.0], 0.5, 30.0),  # beyond the last bound
    ],
)
def test_quantile_is_interpolated_as_promql_does(registry: Registry, values: list[float], q: float, expected: float) -> None:
    histogram = registry.histogram("seconds", "")
    for value in values:
        histogram.observe(value)
    assert histogram.quantile(q) == pytest.approx(expected)


def test_threads_count_together(registry: Registry) -> None:
    counter, histogram = registry.counter("c", "", ("x",)), registry.histogram("h", "")

    def count() -> None:
        for _ in range(500):
            counter.add("1")
            histogram.observe(0.001)
            registry.exposition()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.values() == {("1",): 2000}
    assert "test_h_count 2000" in registry.exposition().splitlines()


# --- the agent's ------------------------------------------------------------------------------------------------------


@pytest.fixture
def metrics() -> AgentMetrics:
    made = AgentMetrics()
    for milliseconds in range(1, 101):
        made.count_call("flannel", "ADD", 0, milliseconds / 1000)
    made.count_call("flannel", "DEL", 101, 0.004)
    made.count_call("portmap", "ADD", 7, 0.2)
    made.count("repairs", 3)
    made.count("repairs")
    return made


def test_nothing_has_been_counted() -> None:
    assert AgentMetrics().as_json() == {"up_seconds": 0, "calls": {}, "failures": {}, "latencies": {}, "events": {}}
    assert "cni_py_calls_total{" not in AgentMetrics().registry.exposition()


def test_json(metrics: AgentMetrics) -> None:
    shown = metrics.as_json()
    assert shown["calls"] == {"flannel ADD": 100, "flannel DEL": 1, "portmap ADD": 1}
    assert shown["failures"] == {"flannel DEL code 101": 1, "portmap ADD code 7": 1}
    assert shown["latencies"]["ADD"] == {"p50_ms": 50.5, "p95_ms": 95.95, "p99_ms": 99.99}
    assert shown["latencies"]["DEL"] == {"p50_ms": 3.75, "p95_ms": 4.88, "p99_ms": 4.98}
    assert shown["events"] == {"repairs": 4}


def test_text(metrics: AgentMetrics) -> None:
    metrics.set_gauges({"attachments": 12, "calls_in_progress": 0, "workers": 1})
    text = metrics.registry.exposition()
    lines = text.splitlines()
    assert 'cni_py_calls_total{plugin="flannel",verb="ADD"} 100' in lines
    assert 'cni_py_failures_total{plugin="flannel",verb="DEL",code="101"} 1' in lines
    assert 'cni_py_events_total{event="repairs"} 4' in lines
    assert 'cni_py_call_seconds_bucket{verb="DEL",le="0.005"} 1' in lines
    assert 'cni_py_call_seconds_count{verb="ADD"} 101' in lines
    assert "cni_py_attachments 12" in lines
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    for line in lines:
        assert line.startswith(("# TYPE ", "# HELP ", *names)), line


@pytest.mark.parametrize("address", ["unix:/run/metrics.sock", "127.0.0.1:9109", "127.1.2.3:1"])
def test_address_of_metrics(address: str) -> None:
    assert parse_metrics_address(address) == address


@pytest.mark.parametrize(
    "address", ["", "unix:x", "0.0.0.0:1", "[::1]:1", "::1:1", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:"]
)
def test_address_that_is_not_of_this_node_alone(address: str) -> None:
    with pytest.raises(ValueError):
        parse_metrics_address(address)
