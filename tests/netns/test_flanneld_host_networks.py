"""The host's own networks and the flannel network (flanneld/host_networks.py), with a flanneld on each node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from support.flannel import Net, network
from support.waiting import until

pytestmark = pytest.mark.netns

AROUND_THE_LAN = {"Network": "192.168.120.0/21", "SubnetLen": 24}
"""A network that contains the nodes' own 192.168.123.0/24, and five subnets more than that."""
PEER = {"PublicIP": "192.168.123.50", "BackendType": "vxlan", "BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:77"}}
IN_AN_HOUR = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
LENIENT = "-host-network-overlap=warn"


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    with network(tmp_path, "vxlan", nodes=1) as made:
        yield made


def configure(net: Net, config: dict[str, Any], **leases: dict[str, Any]) -> None:
    net.write({"config": {**config, "Backend": {"Type": "vxlan"}}, "leases": leases})


def leases(*keys: str, **attributes: Any) -> dict[str, dict[str, Any]]:
    return {key: {**PEER, **attributes} for key in keys}


# ---- this node's subnet -------------------------------------------------------------------------


def test_lan_inside_the_network_is_warned_of_and_not_leased(net: Net) -> None:
    [node] = net.nodes
    taken = leases(*(f"192.168.{third}.0-24" for third in (121, 122, 124, 125, 126)), Expires=IN_AN_HOUR)
    configure(net, AROUND_THE_LAN, **taken)
    flanneld = node.start().wait_ready()
    assert flanneld.log.count("the flannel network 192.168.120.0/21 contains 192.168.123.0/24 of eth0, networks of") == 1
    assert node.subnet == "192.168.127"
    assert node.reached("192.168.123.1")


def test_network_without_a_free_subnet_beside_the_lan_says_what_is_in_the_way(net: Net) -> None:
    [node] = net.nodes
    taken = leases(*(f"192.168.{third}.0-24" for third in (121, 122, 124, 125, 126)), Expires=IN_AN_HOUR)
    configure(net, AROUND_THE_LAN, **taken, **{"192.168.127.0-24": {**PEER, "PublicIP": "192.168.123.51"}})
    flanneld = node.start()
    flanneld.wait_for_log("out of subnets: none of the 7 of length 24")
    flanneld.wait_for_log("leases that expire: 5, ")
    flanneld.wait_for_log("leases without an end: 1 (reservations, ")
    flanneld.wait_for_log("what overlaps 192.168.123.0/24 of eth0, networks of this host itself, is not chosen")


def test_network_that_is_inside_the_lan_leases_nothing_unless_that_is_asked_for(net: Net) -> None:
    [node] = net.nodes
    configure(net, {"Network": "192.168.123.128/25", "SubnetLen": 28})
    flanneld = node.start()
    flanneld.wait_for_log("192.168.123.128/25 and every subnet of it is inside 192.168.123.0/24 of eth0")
    flanneld.wait_for_log("out of subnets: none of the 7 of length 28")
    assert node.env == {}
    flanneld.terminate()
    again = node.start(LENIENT).wait_ready()
    assert again.has_said("takes their packets", "our own subnet 192.168.123.")
    assert node.env["FLANNEL_SUBNET"].startswith("192.168.123.")


@pytest.mark.parametrize("expires", [True, False], ids=["lease", "reservation that has run"])
def test_node_that_runs_on_its_lan_keeps_its_lease_and_says_so(net: Net, expires: bool) -> None:
    """An upgrade, of Go's flanneld or ours; also after a reboot, without subnet.env."""
    [node] = net.nodes
    own = {**PEER, "PublicIP": node.address, **({"Expires": IN_AN_HOUR} if expires else {"Node": "node1"})}
    configure(net, AROUND_THE_LAN, **{"192.168.123.0-24": own})
    flanneld = node.start().wait_ready()
    assert node.subnet == "192.168.123"
    flanneld.wait_for_log("our own subnet 192.168.123.0/24 overlaps 192.168.123.0/24 of eth0, a network of this host itself")
    assert flanneld.has_said("it is kept, for pods may run on it")


def test_subnet_of_subnet_env_on_the_lan_is_kept(net: Net) -> None:
    [node] = net.nodes
    configure(net, AROUND_THE_LAN)
    env = "FLANNEL_NETWORK=192.168.120.0/21\nFLANNEL_SUBNET=192.168.123.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    node.host.write("/run/flannel/subnet.env", env)
    assert node.start().wait_ready().has_said("our own subnet 192.168.123.0/24 overlaps")
    assert node.subnet == "192.168.123"


def test_new_reservation_on_the_lan_is_refused_by_name_until_it_is_changed(net: Net) -> None:
    [node] = net.nodes
    configure(net, AROUND_THE_LAN, **{"192.168.123.0-24": {"PublicIP": node.address}})
    flanneld = node.start()
    words = "the subnet 192.168.123.0/24 of this node overlaps 192.168.123.0/24 of eth0, a network of this host itself"
    flanneld.wait_for_log(words)
    assert node.env == {}
    configure(net, AROUND_THE_LAN, **{"192.168.125.0-24": {"PublicIP": node.address}})
    flanneld.wait_ready()
    assert node.subnet == "192.168.125"


def test_new_reservation_on_the_lan_is_used_where_that_is_asked_for(net: Net) -> None:
    [node] = net.nodes
    configure(net, AROUND_THE_LAN, **{"192.168.123.0-24": {"PublicIP": node.address}})
    assert node.start(LENIENT).wait_ready().has_said("our own subnet 192.168.123.0/24 overlaps")


def test_refusal_ends_with_the_address_that_was_in_the_way(net: Net) -> None:
    [node] = net.nodes
    node.run("ip link add br9 type bridge; ip addr add 10.244.77.9/24 dev br9; ip link set br9 up")
    configure(net, {"Network": "10.244.0.0/16"}, **{"10.244.77.0-24": {"PublicIP": node.address}})
    flanneld = node.start()
    flanneld.wait_for_log("10.244.77.0/24 of this node overlaps 10.244.77.0/24 of br9")
    node.run("ip addr del 10.244.77.9/24 dev br9")
    flanneld.wait_ready()
    assert node.subnet == "10.244.77"


def test_address_of_a_node_is_in_no_new_subnet(net: Net) -> None:
    """The packets to that node would go into the tunnel."""
    [node] = net.nodes
    others = {f"10.99.{number}.0-24": {**PEER, "PublicIP": f"10.99.{number + 100}.7"} for number in range(1, 4)}
    configure(net, {"Network": "10.99.0.0/16", "SubnetMin": "10.99.100.0", "SubnetMax": "10.99.104.0"}, **others)
    node.start().wait_ready()
    assert node.subnet in ("10.99.100", "10.99.104")


def test_own_lease_without_an_end_is_said_with_what_ends_it(net: Net) -> None:
    """Copied from etcd v2, say, or reserved."""
    [node] = net.nodes
    configure(net, {"Network": "10.244.0.0/16"}, **{"10.244.7.0-24": {"PublicIP": node.address}})
    flanneld = node.start().wait_ready()
    assert flanneld.has_said(
        "our lease of 10.244.7.0/24 has no end", "cni-py config release 10.244.7.0/24 turns it into a lease"
    )
    flanneld.terminate()
    net.write({**net.read(), "leases": {}})
    assert "has no end" not in node.start().wait_ready().log


# ---- the routes to the others -------------------------------------------------------------------


def test_peer_on_the_lan_is_not_routed(net: Net) -> None:
    [node] = net.nodes
    lan_half = {"192.168.123.128-25": {**PEER, "PublicIP": "192.168.123.51"}}
    configure(net, {**AROUND_THE_LAN, "SubnetLen": 25}, **lan_half, **leases("192.168.125.0-25"))
    flanneld = node.start().wait_ready()
    until(lambda: "192.168.125.0/25" in node.routes())
    assert "192.168.123.128/25" not in node.routes()
    words = "ignoring the lease of 192.168.123.128/25: it overlaps 192.168.123.0/24 of eth0, a network of this host itself; "
    assert flanneld.log.count(words) == 1
    assert node.host.json("ip -j route get 192.168.123.200")[0]["dev"] == "eth0"
    flanneld.terminate()
    lenient = node.start(LENIENT).wait_ready()
    until(lambda: "192.168.123.128/25" in node.routes())
    assert lenient.has_said("routing 192.168.123.128/25 although it overlaps 192.168.123.0/24 of eth0")


@pytest.mark.parametrize("way", ["restart", "reboot", "Go's"])
def test_route_that_there_was_before_goes_on(net: Net, way: str) -> None:
    """An existing cluster, upgraded: no route is taken away; a new peer's is refused."""
    [node] = net.nodes
    config = {**AROUND_THE_LAN, "SubnetLen": 25}
    configure(net, config, **{"192.168.123.128-25": {**PEER, "PublicIP": "192.168.123.51"}})
    if way == "Go's":
        node.run("ip link add flannel.1 type vxlan id 1 dev eth0 dstport 8472; ip link set flannel.1 up")
        node.run("ip route add 192.168.123.128/25 via 192.168.123.128 dev flannel.1 onlink")
    else:
        first = node.start(LENIENT).wait_ready()
        until(lambda: "192.168.123.128/25" in node.routes())
        first.terminate()
        if way == "reboot":
            net.reboot(node)
    flanneld = node.start().wait_ready()
    until(lambda: "192.168.123.128/25" in node.routes())
    assert flanneld.has_said("routing 192.168.123.128/25 although it overlaps 192.168.123.0/24 of eth0", "it was routed before")
    content = net.read()
    content["leases"]["192.168.123.0-25"] = {**PEER, "PublicIP": "192.168.123.52"}
    net.write(content)
    flanneld.wait_for_log("ignoring the lease of 192.168.123.0/25: it overlaps 192.168.123.0/24 of eth0")
    assert "192.168.123.128/25" in node.routes()


def test_cluster_inside_a_wide_lan_goes_on_after_an_upgrade_with_a_reboot(net: Net) -> None:
    """No route is in the kernel and nothing is saved, but this node has a lease of the same kind."""
    [node] = net.nodes
    inside = {"192.168.123.16-28": {**PEER, "PublicIP": node.address, "Expires": IN_AN_HOUR}, **leases("192.168.123.128-28")}
    configure(net, {"Network": "192.168.123.0/24", "SubnetLen": 28}, **inside)
    flanneld = node.start().wait_ready()
    until(lambda: "192.168.123.128/28" in node.routes())
    assert flanneld.has_said(
        "our own subnet 192.168.123.16/28 overlaps", "routing 192.168.123.128/28 although", "so does our own subnet"
    )


@pytest.mark.parametrize("address", ["10.244.77.9/24", "10.244.77.9/28", "10.244.0.9/17"], ids=["same", "inside", "around"])
def test_network_that_the_host_gets_later_takes_the_route_away_as_long_as_it_has_it(net: Net, address: str) -> None:
    [node] = net.nodes
    configure(net, {"Network": "10.244.0.0/16", "SubnetMin": "10.244.200.0"}, **leases("10.244.77.0-24"))
    flanneld = node.start().wait_ready()
    until(lambda: "10.244.77.0/24" in node.routes())
    node.run(f"ip link add br9 type bridge; ip addr add {address} dev br9; ip link set br9 up")
    flanneld.wait_for_log("ignoring the lease of 10.244.77.0/24: it overlaps 10.244.")
    flanneld.wait_for_log("the flannel network 10.244.0.0/16 contains 10.244.")
    until(lambda: "10.244.77.0/24" not in node.routes())
    node.run(f"ip addr del {address} dev br9")
    until(lambda: "10.244.77.0/24" in node.routes())


def test_network_on_our_own_subnet_is_logged_once_and_the_lease_stays(net: Net) -> None:
    [node] = net.nodes
    flanneld = node.start().wait_ready()
    for _ in range(2):
        node.run(f"ip link add br9 type bridge; ip addr add {node.subnet}.9/28 dev br9; ip link set br9 up")
        flanneld.wait_for_log(f"our own subnet {node.subnet}.0/24 overlaps {node.subnet}.0/28 of br9")
        node.run("ip link del br9")
    assert flanneld.log.count("our own subnet") == 1


def test_own_devices_and_single_addresses_do_not_count(net: Net) -> None:
    """cni0, another flanneld's device, Docker on flannel's subnet, a service's address."""
    [node] = net.nodes
    configure(net, {"Network": "10.244.0.0/16", "SubnetMin": "10.244.200.0"}, **leases("10.244.77.0-24"))
    first = node.start().wait_ready()
    node.add_pod()
    node.run(
        f"ip link add docker0 type bridge; ip addr add {node.subnet}.1/24 dev docker0; ip link set docker0 up;"
        "ip link add flannel.7 type bridge; ip addr add 10.244.99.0/16 dev flannel.7; ip link set flannel.7 up;"
        "ip addr add 10.244.77.5/32 dev lo"
    )
    until(lambda: "10.244.77.0/24" in node.routes())
    first.terminate()
    again = node.start().wait_ready()
    until(lambda: "10.244.77.0/24" in node.routes())
    for flanneld in (first, again):
        assert "overlaps" not in flanneld.log
        assert "contains" not in flanneld.log


def test_check_config_says_it_too(net: Net) -> None:
    [node] = net.nodes
    config = {"Network": "192.168.120.0/21", "Backend": {"Type": "vxlan"}}
    done = node.run_flanneld("-check-config=-", stdin=json.dumps(config))
    assert done.returncode == 0
    assert "the flannel network 192.168.120.0/21 contains 192.168.123.0/24 of eth0" in done.stderr
    done = node.run_flanneld("-check-config=-", stdin=json.dumps({**config, "Network": "10.244.0.0/16"}))
    assert done.stderr == ""
