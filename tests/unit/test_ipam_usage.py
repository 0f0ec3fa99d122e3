"""Free addresses: by arithmetic on ranges and the names of reservations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cni_py.agent import ipam_usage
from cni_py.agent.ipam_usage import IpamUsage, RangeSetUsage
from cni_py.agent.metrics import AgentMetrics
from cni_py.spec.call import Call


def a_call(directory: Path, *range_sets: list[dict[str, str]], verb: str = "ADD", plugin: str = "bridge", **keys: Any) -> Call:
    ipam = {"type": "host-local", "dataDir": str(directory), "ranges": list(range_sets)}
    return Call(
        verb, plugin, container_id="c1", ifname="eth0", conf={"cniVersion": "1.1.0", "name": "net", "ipam": ipam} | keys
    )


def reserve(directory: Path, *names: str, network: str = "net") -> None:
    (directory / network).mkdir(exist_ok=True)
    for name in names:
        (directory / network / name).write_text("c1\r\neth0")


def usage(*calls: Call) -> list[tuple[str, str, int, int, int]]:
    networks = IpamUsage()
    for call in calls:
        networks.record_call(call)
    return [(pool.network, pool.range_set, pool.total, pool.taken, pool.free) for pool in networks.range_sets()]


def test_nothing_is_known_without_a_call() -> None:
    assert IpamUsage().range_sets() == []


def test_network_without_reservations_is_free(tmp_path: Path) -> None:
    call = a_call(tmp_path, [{"subnet": "10.1.0.0/24"}])
    assert usage(call) == [("net", "10.1.0.1-10.1.0.254", 253, 0, 253)]
    assert list(tmp_path.iterdir()) == []


def test_only_what_can_be_given_counts(tmp_path: Path) -> None:
    """The gateway, other ranges' and networks' reservations, the lock, and invalid names do not count."""
    reserve(tmp_path, "10.1.0.1", "10.1.0.2", "10.1.0.7", "10.1.0.200", "10.2.0.9", "lock", "last_reserved_ip.0", "1nonsense")
    reserve(tmp_path, "10.1.0.3", network="other")
    call = a_call(tmp_path, [{"subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.10"}], [{"subnet": "10.2.0.0/24"}])
    assert usage(call) == [("net", "10.1.0.1-10.1.0.10", 9, 2, 7), ("net", "10.2.0.1-10.2.0.254", 253, 1, 252)]


def test_ranges_of_a_set_count_together(tmp_path: Path) -> None:
    reserve(tmp_path, "10.1.0.2", "10.3.0.2")
    call = a_call(tmp_path, [{"subnet": "10.1.0.0/30"}, {"subnet": "10.3.0.0/29"}])
    assert usage(call) == [("net", "10.1.0.1-10.1.0.2,10.3.0.1-10.3.0.6", 6, 2, 4)]


def test_no_range_is_walked_through(tmp_path: Path) -> None:
    reserve(tmp_path, "fd00::2", "fd00::ffff:1")
    assert usage(a_call(tmp_path, [{"subnet": "fd00::/48"}]))[0][2:] == (2**80 - 2, 2, 2**80 - 4)


def test_old_form_and_capability(tmp_path: Path) -> None:
    call = a_call(tmp_path, ipam={"type": "host-local", "dataDir": str(tmp_path), "subnet": "10.1.0.0/24"})
    assert [pool[2] for pool in usage(call)] == [253]
    of_runtime = {"runtimeConfig": {"ipRanges": [[{"subnet": "10.5.0.0/28"}]]}}
    assert [pool[1] for pool in usage(a_call(tmp_path, **of_runtime))] == ["10.5.0.1-10.5.0.14"]


def test_subnet_of_flannel_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    env = tmp_path / "subnet.env"
    conf = {"cniVersion": "1.1.0", "name": "cbr0", "subnetFile": str(env), "ipam": {"dataDir": str(tmp_path)}}
    networks = IpamUsage()
    networks.record_call(Call("ADD", "flannel", container_id="c1", ifname="eth0", conf=conf))
    assert networks.range_sets() == []
    for number in (91, 92):
        text = f"FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.{number}.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
        env.write_text(text)
        assert networks.range_sets() == [RangeSetUsage("cbr0", f"10.244.{number}.1-10.244.{number}.254", 253, 0)]


@pytest.mark.parametrize(
    "change",
    [{"verb": "DEL"}, {"verb": "CHECK"}, {"plugin": "portmap"}, {"plugin": "loopback"}, {"name": 'a"b'}, {"ipam": {}},
     {"ipam": {"type": "dhcp"}}, {"ipam": 7}, {"ipam": {"type": "host-local"}}],
)  # fmt: skip
def test_calls_that_are_ignored(tmp_path: Path, change: dict[str, Any]) -> None:
    assert usage(a_call(tmp_path, [{"subnet": "10.1.0.0/24"}], **change)) == []


def test_networks_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was not named for the longest time goes; the newest call's ranges count."""
    monkeypatch.setattr(ipam_usage, "MAX_NETWORKS", 2)
    calls = [a_call(tmp_path, [{"subnet": "10.1.0.0/24"}], name=name) for name in ("a", "b", "a", "c")]
    newest = a_call(tmp_path, [{"subnet": "10.2.0.0/24"}], name="c", verb="STATUS")
    assert [pool[:2] for pool in usage(*calls, newest)] == [("a", "10.1.0.1-10.1.0.254"), ("c", "10.2.0.1-10.2.0.254")]


def test_metrics() -> None:
    metrics = AgentMetrics()
    metrics.set_usage([RangeSetUsage("old", "10.9.0.1-10.9.0.254", 253, 3)])
    metrics.set_usage([RangeSetUsage("cbr0", "10.1.0.1-10.1.0.254", 253, 3), RangeSetUsage("b", "fd00::1-fd00::2", 1, 1)])
    lines = [line for line in metrics.registry.exposition().splitlines() if line.startswith("cni_py_addresses")]
    assert lines == [
        'cni_py_addresses{network="b",range_set="fd00::1-fd00::2"} 1',
        'cni_py_addresses{network="cbr0",range_set="10.1.0.1-10.1.0.254"} 253',
        'cni_py_addresses_free{network="b",range_set="fd00::1-fd00::2"} 0',
        'cni_py_addresses_free{network="cbr0",range_set="10.1.0.1-10.1.0.254"} 250',
        'cni_py_addresses_taken{network="b",range_set="fd00::1-fd00::2"} 1',
        'cni_py_addresses_taken{network="cbr0",range_set="10.1.0.1-10.1.0.254"} 3',
    ]
