"""What the agent counts, as JSON and as Prometheus text."""

from __future__ import annotations

import threading

import pytest

from cni_py.agent.metrics import parse_address
from cni_py.agent.statistics import KEPT_LATENCIES, Statistics


@pytest.fixture
def statistics() -> Statistics:
    made = Statistics()
    for milliseconds in range(1, 101):
        made.count_call("flannel", "ADD", 0, milliseconds / 1000)
    made.count_call("flannel", "DEL", 101, 0.005)
    made.count_call("portmap", "ADD", 7, 0.2)
    made.count("repairs", 3)
    made.count("repairs")
    return made


def test_nothing_has_been_counted() -> None:
    empty = Statistics()
    assert empty.as_json() == {"up_seconds": 0, "calls": {}, "failures": {}, "latencies": {}, "events": {}}
    assert "cni_py_calls_total{" not in empty.as_prometheus({})


def test_json(statistics: Statistics) -> None:
    shown = statistics.as_json()
    assert shown["calls"] == {"flannel ADD": 100, "flannel DEL": 1, "portmap ADD": 1}
    assert shown["failures"] == {"flannel DEL code 101": 1, "portmap ADD code 7": 1}
    assert shown["latencies"]["ADD"] == {"p50_ms": 51.0, "p95_ms": 96.0, "p99_ms": 100.0}
    assert shown["latencies"]["DEL"] == {"p50_ms": 5.0, "p95_ms": 5.0, "p99_ms": 5.0}
    assert shown["events"] == {"repairs": 4}


def test_prometheus_text(statistics: Statistics) -> None:
    text = statistics.as_prometheus({"attachments": 12})
    lines = text.splitlines()
    assert text.endswith("\n")
    assert 'cni_py_calls_total{plugin="flannel",verb="ADD"} 100' in lines
    assert 'cni_py_failures_total{plugin="flannel",verb="DEL",code="101"} 1' in lines
    assert 'cni_py_events_total{event="repairs"} 4' in lines
    assert 'cni_py_call_seconds{verb="DEL",quantile="0.5"} 0.005000' in lines
    assert lines[-2:] == ["# TYPE cni_py_attachments gauge", "cni_py_attachments 12"]
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    for line in lines:
        assert line.startswith(("# TYPE ", *names)), line


def test_latencies_are_of_the_last_calls() -> None:
    statistics = Statistics()
    for seconds in [9.0] * 10 + [0.001] * KEPT_LATENCIES:
        statistics.count_call("bridge", "ADD", 0, seconds)
    assert statistics.as_json()["latencies"]["ADD"]["p99_ms"] == 1.0
    assert statistics.as_json()["calls"] == {"bridge ADD": 10 + KEPT_LATENCIES}


def test_threads_count_together() -> None:
    statistics = Statistics()

    def count() -> None:
        for _ in range(500):
            statistics.count_call("bridge", "ADD", 11, 0.001)
            statistics.count("sweeps")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statistics.as_json()["calls"] == {"bridge ADD": 2000}
    assert statistics.as_json()["failures"] == {"bridge ADD code 11": 2000}
    assert statistics.as_json()["events"] == {"sweeps": 2000}


@pytest.mark.parametrize("address", ["unix:/run/metrics.sock", "127.0.0.1:9109", "127.1.2.3:1"])
def test_address_of_metrics(address: str) -> None:
    assert parse_address(address) == address


@pytest.mark.parametrize(
    "address", ["", "unix:x", "0.0.0.0:1", "[::1]:1", "::1:1", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:"]
)
def test_address_that_is_not_of_this_node_alone(address: str) -> None:
    with pytest.raises(ValueError):
        parse_address(address)
