"""Networks of the host against the flannel network: pure parts of host_networks.py and allocate.py."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_py.datastore.errors import Refused
from cni_py.flanneld import allocate, host_networks
from cni_py.flanneld.host_networks import HostNetwork, HostNetworks, overlapping, warnings
from cni_py.flanneld.lease import Subnets
from cni_py.flanneld.network import NetworkConfig
from cni_py.flanneld.options import Options
from cni_py.flanneld.stores import PoolExhausted
from support.examples import examples

Network = IPv4Network | IPv6Network


def on_host(*texts: str) -> list[HostNetwork]:
    """``10.0.5.0/24 eth0``."""
    return [HostNetwork(ip_network(text.split()[0]), text.split()[1]) for text in texts]


def network(ipv4: str, length: int = 24, ipv6: str = "") -> NetworkConfig:
    second = f', "EnableIPv6": true, "IPv6Network": "{ipv6}"' if ipv6 else ""
    return NetworkConfig.parse(f'{{"Network": "{ipv4}", "SubnetLen": {length}{second}, "Backend": {{"Type": "vxlan"}}}}')


def subnets(text: str) -> Subnets:
    found = ip_network(text)
    return Subnets(ipv4=found) if isinstance(found, IPv4Network) else Subnets(ipv6=found)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []

    def warning_once(text: str, before: set[str]) -> None:
        if text not in before:
            before.add(text)
            lines.append(text)

    monkeypatch.setattr(host_networks, "warning_once", warning_once)
    return lines


def configured(config: NetworkConfig, *texts: str, may_overlap: bool = False) -> NetworkConfig:
    return config.on_host(host(*texts, host_network_overlap="warn" if may_overlap else "refuse"))


def host(*texts: str, **options: str) -> HostNetworks:
    made = HostNetworks(Options(**options))  # type: ignore[arg-type]
    made.found = frozenset(on_host(*texts))
    return made


# ---- the flannel network as a whole --------------------------------------------------------------


@pytest.mark.parametrize(
    "flannel, networks, expected",
    [
        ("10.244.0.0/16", ["192.168.0.0/16 eth0", "172.17.0.0/16 docker0", "127.0.0.0/8 lo", "fd00::/8 eth0"], []),
        ("10.0.0.0/8", ["10.0.5.0/24 eth0"], ["10.0.0.0/8 contains 10.0.5.0/24 of eth0, networks of"]),
        ("172.16.0.0/12", ["172.17.0.0/16 docker0"], ["172.16.0.0/12 contains 172.17.0.0/16 of docker0, networks of"]),
        ("10.0.5.0/24", ["10.0.5.0/24 eth0"], ["10.0.5.0/24 and every subnet of it is inside 10.0.5.0/24 of eth0"]),
        ("10.244.0.0/16", ["10.0.0.0/8 eth0"], ["10.244.0.0/16 and every subnet of it is inside 10.0.0.0/8 of eth0"]),
        ("10.0.0.0/8", ["10.0.5.1/32 lo", "10.9.9.9/32 kube-ipvs0"], []),
        (
            "10.0.0.0/8",
            ["10.9.0.0/24 eth1", "10.0.0.0/7 wg0", "10.0.5.0/24 eth0"],
            [
                "10.0.0.0/8 and every subnet of it is inside 10.0.0.0/7 of wg0",
                "contains 10.0.5.0/24 of eth0, 10.9.0.0/24 of eth1,",
            ],
        ),
    ],
)
def test_overlap_names_both_networks(flannel: str, networks: list[str], expected: list[str]) -> None:
    lines = warnings([ip_network(flannel)], on_host(*networks))
    assert len(lines) == len(expected)
    assert all(words in line for words, line in zip(expected, lines, strict=True))


def test_each_family_has_its_line_and_hundreds_of_networks_are_shortened() -> None:
    many = [f"10.{number}.0.0/24 br{number}" for number in range(200)]
    lines = warnings([ip_network("10.0.0.0/8"), ip_network("fd00::/48")], on_host(*many, "fd00::/64 eth0"))
    assert len(lines) == 2
    assert "10.9.0.0/24 of br9 and 190 more, networks of" in lines[0]
    assert "the flannel network fd00::/48 contains fd00::/64 of eth0" in lines[1]


def test_warnings_say_what_follows_by_the_option() -> None:
    found = on_host("10.0.5.0/24 eth0")
    assert "is not leased here, and none of another node is routed" in warnings([ip_network("10.0.0.0/8")], found)[0]
    assert "takes their packets" in warnings([ip_network("10.0.0.0/8")], found, refuses=False)[0]


# ---- a peer's route -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "subnet, networks, why_not",
    [
        ("10.244.7.0/24", ["192.168.0.0/24 eth0"], ""),
        ("10.0.5.0/24", ["10.0.5.0/24 eth0"], "it overlaps 10.0.5.0/24 of eth0, a network of this host itself"),
        ("10.0.5.0/24", ["10.0.0.0/16 eth0"], "it overlaps 10.0.0.0/16 of eth0"),
        ("10.0.5.0/24", ["10.0.5.64/26 eth0"], "it overlaps 10.0.5.64/26 of eth0"),
        ("10.0.5.0/24", ["10.0.5.64/32 lo"], ""),
        ("fd00:5::/64", ["fd00::/16 eth0"], "it overlaps fd00::/16 of eth0"),
        ("fd00:5::/64", ["10.0.0.0/8 eth0"], ""),
    ],
)
def test_peer_is_not_routed_over_a_network_of_the_host(subnet: str, networks: list[str], why_not: str, said: list[str]) -> None:
    found = host(*networks).why_not(subnets(subnet))
    assert found.startswith(why_not)
    assert bool(found) is bool(why_not)
    assert said == []


def test_peer_is_routed_with_a_warning_where_that_is_asked_for(said: list[str]) -> None:
    lenient = host("10.0.5.0/24 eth0", host_network_overlap="warn")
    for _ in range(3):
        assert lenient.why_not(subnets("10.0.5.0/24")) == ""
    assert len(said) == 1
    assert "routing 10.0.5.0/24 although it overlaps 10.0.5.0/24 of eth0" in said[0]


def test_what_was_routed_before_goes_on_and_a_new_overlap_does_not(said: list[str]) -> None:
    """An upgrade, or a mixed cluster, takes no route away; a network that is added later does."""
    known = host("10.0.0.0/16 eth0")
    known.keep([ip_network("10.0.5.0/24"), ip_network("10.9.0.0/24")])
    assert known.why_not(subnets("10.0.5.0/24")) == ""
    assert "it was routed before" in said[0]
    assert known.why_not(subnets("10.0.6.0/24"))
    known.found = frozenset(on_host("10.0.0.0/16 eth0", "10.9.0.0/24 br1"))
    assert "it overlaps 10.9.0.0/24 of br1" in known.why_not(subnets("10.9.0.0/24"))
    known.found = frozenset(on_host("10.0.0.0/16 eth1"))
    assert known.why_not(subnets("10.0.5.0/24"))


def test_network_that_our_own_subnet_overlaps_at_start_is_lived_with(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    known = host("10.0.0.0/8 eth0", "172.16.0.0/12 eth1")
    monkeypatch.setattr(host_networks, "list_host_networks", lambda _: known.found)
    assert known.why_not(subnets("10.244.5.0/24"))
    known.start_on(Subnets(IPv4Network("10.244.7.0/24")))
    assert known.why_not(subnets("10.244.5.0/24")) == ""
    assert "so does our own subnet" in said[-1]
    assert known.why_not(subnets("172.20.5.0/24"))
    known.found = frozenset(on_host("10.244.0.0/16 br9"))
    known.warn_of_own(Subnets(IPv4Network("10.244.7.0/24")))
    assert known.why_not(subnets("10.244.6.0/24"))


def test_own_subnet_that_overlaps_is_said_once(said: list[str]) -> None:
    known = host("10.0.5.0/24 eth0", "192.168.0.0/16 eth1")
    for _ in range(2):
        known.warn_of_own(Subnets(IPv4Network("10.0.5.0/24"), IPv6Network("fd00::/64")))
        known.warn([ip_network("10.0.0.0/8")])
    assert len(said) == 2
    assert said[0].startswith("our own subnet 10.0.5.0/24 overlaps 10.0.5.0/24 of eth0")


# ---- a subnet for this node ---------------------------------------------------------------------

HOSTS = st.lists(
    st.builds(
        lambda number, length: f"{IPv4Network((int(IPv4Address('10.3.128.0')) + number * 128, length), strict=False)} eth0",
        st.integers(0, 1000), st.integers(14, 32),
    ), max_size=6,
)  # fmt: skip


@settings(max_examples=examples(75), deadline=None)
@given(
    networks=HOSTS,
    taken=st.lists(st.integers(0, 63), max_size=40),
    nodes=st.lists(st.integers(0, 1 << 14), max_size=5),
    may_overlap=st.booleans(),
)
def test_choice_overlaps_no_network_of_the_host_and_holds_no_node(
    networks: list[str], taken: list[int], nodes: list[int], may_overlap: bool
) -> None:
    config = configured(network("10.4.0.0/18"), *networks, may_overlap=may_overlap)
    leases = [Subnets(IPv4Network((int(IPv4Address("10.4.0.0")) + number * 256, 24))) for number in taken]
    addresses = [IPv4Address("10.4.0.0") + number for number in nodes]
    pool = allocate.pool4(config)
    assert pool is not None
    free = [pool[n] for n in range(pool.count) if not any(lease.overlap(Subnets(pool[n])) for lease in leases)]
    fine = [
        subnet
        for subnet in free
        if not overlapping(subnet, on_host(*networks)) and not any(address in subnet for address in addresses)
    ]
    if not (fine or (may_overlap and free)):
        with pytest.raises(PoolExhausted):
            allocate.free(config, leases, nodes=addresses)
        return
    assert allocate.free(config, leases, nodes=addresses).ipv4 in (fine or free)


def test_each_family_avoids_its_own() -> None:
    config = configured(network("10.4.0.0/24", 26, "fd00:4::/48"), "10.4.0.0/25 eth0", "fd00:4::/49 eth0", "10.4.0.200/32 lo")
    nodes = [ip_address("fd00:4:0:8000::1"), ip_address("192.168.0.1")]
    for _ in range(20):
        with pytest.raises(PoolExhausted, match=r"10\.4\.0\.64 \.\.\. 10\.4\.0\.192 is free"):
            allocate.free(config, [Subnets(IPv4Network("10.4.0.128/26"))], nodes=nodes)
        chosen = allocate.free(config, [], nodes=nodes)
        assert chosen.ipv4 == IPv4Network("10.4.0.128/26")
        assert chosen.ipv6 is not None
        assert chosen.ipv6.network_address > ip_address("fd00:4:0:8000::1")


def test_full_pool_counts_what_is_in_the_way() -> None:
    config = configured(network("10.4.0.0/22"), "10.4.3.0/24 eth0")
    taken = [Subnets(IPv4Network("10.4.1.0/24")), Subnets(IPv4Network("10.4.2.0/24"))]
    with pytest.raises(PoolExhausted) as full:
        allocate.free(config, taken, endless=taken[:1])
    for words in (
        "out of subnets: none of the 3 of length 24 in 10.4.1.0 ... 10.4.3.0 is free",
        "leases that expire: 1, those of deleted nodes within a day",
        "leases without an end: 1 (reservations, or keys copied from etcd v2 or written by hand), to which cni-py config release",
        "what overlaps 10.4.3.0/24 of eth0, networks of this host itself, is not chosen",
    ):
        assert words in str(full.value)
    with pytest.raises(PoolExhausted) as full:
        allocate.free(config, taken, endless=taken)
    assert "within a day" not in str(full.value)
    with pytest.raises(PoolExhausted) as full:
        allocate.free(config, taken)
    assert "without an end" not in str(full.value)


@pytest.mark.parametrize("has_run, may_overlap", [(False, True), (True, False), (True, True)])
def test_assigned_subnet_is_kept_where_pods_may_run_on_it(has_run: bool, may_overlap: bool) -> None:
    config = configured(network("10.0.0.0/8"), "10.0.5.0/24 eth0", may_overlap=may_overlap)
    allocate.check_host_networks(subnets("10.0.5.0/24"), config, has_run)


def test_assigned_subnet_is_refused_by_name_where_it_is_new() -> None:
    config = configured(network("10.0.0.0/8"), "10.0.5.0/24 eth0", "10.0.6.1/32 lo")
    with pytest.raises(Refused, match=r"10\.0\.5\.0/25 of this node overlaps 10\.0\.5\.0/24 of eth0"):
        allocate.check_host_networks(subnets("10.0.5.0/25"), config, has_run=False)
    allocate.check_host_networks(subnets("10.0.6.0/24"), config, has_run=False)
    allocate.check_host_networks(subnets("10.0.7.0/24"), config, has_run=False)
