"""The life of flanneld as a process: what it says and to whom, how it begins and ends, and what it follows meanwhile."""

from __future__ import annotations

import http.client
import json
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cni_py.flanneld.vanished import LINGER_SECONDS
from support.flannel import FAMILIES, NETWORK, SAVED, SUBNET_ENV, Net, Node, network
from support.waiting import until

pytestmark = pytest.mark.netns

KLOG = re.compile(r"[IWE]\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ [\w.]+:\d+\] .")
PORT = 8471
SOON_SECONDS = 15.0
"""Half a second, where nothing else is at work."""
RETRY_SECONDS = 0.5
SHORT_TIMES = f"from cni_py.flanneld import own_lease; from cni_py.flanneld.stores import file_watch; own_lease.LOST_RETRY_SECONDS = {RETRY_SECONDS}; file_watch.POLL_SECONDS = 0.02"
"""Seconds for two flannelds that take their lease from each other again and again, before they wait."""
FULL = "dd status=none if=/dev/zero bs=4k", "64k"
"""A command that fills a file system, and its size."""


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    """A node; tests add others."""
    with network(tmp_path, "vxlan", nodes=1) as made:
        yield made


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Net]:
    """Two nodes that run, with a pod each."""
    with network(tmp_path, "vxlan", nodes=2) as made:
        made.start()
        yield made


def get(node: Node, path: str) -> tuple[int, str]:
    """Status and text of the health server's answer."""
    status, text = node.host.do(_get, path)
    return int(status), str(text)


def _get(path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def reach_one_another(net: Net) -> None:
    """Soon."""
    until(lambda: net.unreached(answer_seconds=1) == [], "pods reach one another")


# ---- start --------------------------------------------------------------------------------------------------------


def test_start_says_what_the_guide_shows_and_is_ready_last(net: Net) -> None:
    [node] = net.nodes
    flanneld = node.start("-ip-masq")
    notice = flanneld.wait_for_notice("READY=1")
    env = node.env
    assert re.fullmatch(r"10\.244\.\d+\.1/24", env["FLANNEL_SUBNET"])
    assert env == {
        "FLANNEL_NETWORK": "10.244.0.0/16",
        "FLANNEL_SUBNET": env["FLANNEL_SUBNET"],
        "FLANNEL_MTU": "1450",
        "FLANNEL_IPMASQ": "true",
    }
    assert node.host.path(SUBNET_ENV).stat().st_mode & 0o777 == 0o644
    subnet = f"{node.subnet}.0/24"
    assert f"STATUS=subnet {subnet} leased, vxlan over eth0" in notice
    lines = [
        "CLI flags config: {etcdEndpoints:",
        "Created subnet manager: File Subnet Manager - ",
        "Installing signal handlers",
        "Found network config - Backend type: vxlan",
        "Using interface with name eth0 and address 192.168.123.11",
        "Defaulting external address to interface address (192.168.123.11)",
        "VXLAN config: VNI=1 Port=0 GBP=false Learning=false DirectRouting=false",
        f"Allocated lease (ip: {subnet} ipv6: ::/0) to current node (192.168.123.11)",
        "Wrote subnet file to /run/flannel/subnet.env",
        "Running backend.",
    ]
    flanneld.wait_for_log("Waiting for 22h59m5")
    flanneld.wait_for_log("flannel is ready")
    places = [flanneld.log.find(line) for line in lines]
    assert -1 not in places, flanneld.log
    assert places == sorted(places)
    assert flanneld.has_said("watching for new subnet leases", "to renew lease")
    assert [line for line in flanneld.log.splitlines() if not KLOG.match(line)] == []
    device = node.device()
    assert (device["mtu"], device["flags"].count("UP")) == (1450, 1)
    assert [
        address["local"] + "/" + str(address["prefixlen"]) for address in device["addr_info"] if address["family"] == "inet"
    ] == [f"{node.subnet}.0/32"]
    data = device["linkinfo"]["info_data"]
    assert (data["id"], data["local"], data["link"], data["port"], data["learning"]) == (
        1,
        "192.168.123.11",
        "eth0",
        8472,
        False,
    )
    assert net.leases()[f"{node.subnet}.0-24"]["BackendData"] == {"VNI": 1, "VtepMAC": device["address"]}


def test_each_change_is_a_command_in_the_log_for_who_asks_for_it(two: Net) -> None:
    """Log it as a person could type it; nothing of it without ``-v=1``."""
    first, second = two.nodes
    assert first.flanneld
    assert "ip link add" not in first.flanneld.log
    first.flanneld.kill()
    first.run("ip link del flannel.1")
    daemon = first.start("-v=1").wait_ready()
    gateway = f"{second.subnet}.0"
    mac, own = (node.device()["address"] for node in (second, first))
    for words in (
        f"ip link add flannel.1 mtu 1450 txqueuelen 0 address {own} type vxlan id 1 dev eth0 local {first.address} dstport 8472",
        f"ip addr add {first.subnet}.0/32 dev flannel.1",
        "ip link set flannel.1 up",
        f"ip neigh replace {gateway} lladdr {mac} dev flannel.1 nud permanent",
        f"bridge fdb replace {mac} dev flannel.1 dst {second.address} self permanent",
        f"ip route replace {gateway}/24 via {gateway} dev flannel.1 onlink proto 122",
    ):
        assert f"] {words}" in daemon.log
    assert f"FLANNEL_IPMASQ=false | install -m 644 /dev/stdin {SUBNET_ENV}" in daemon.log
    routes = [line for line in daemon.log.splitlines() if "ip route replace" in line]
    first.run("ip route flush proto 122")
    first.run(routes[0].partition("] ")[2].partition("  (")[0])  # it is what flanneld would do
    reach_one_another(two)


def test_second_start_reuses_the_lease(net: Net) -> None:
    [node] = net.nodes
    node.start().wait_ready()
    before, env = node.state(), node.env
    assert node.flanneld
    node.flanneld.terminate()
    flanneld = node.start().wait_ready()
    assert flanneld.has_said(f"Found lease (ip: {node.subnet}.0/24 ipv6: ::/0) for current IP (192.168.123.11), reusing")
    assert (node.state(), node.env) == (before, env)


def test_without_lease_the_subnet_in_subnet_env_is_taken_again(net: Net) -> None:
    [node] = net.nodes
    node.host.write(
        SUBNET_ENV, "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.77.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    )
    assert node.start().wait_ready().has_said("Found previously leased subnet (10.244.77.0/24), reusing")
    assert node.env["FLANNEL_SUBNET"] == "10.244.77.1/24"


def test_watchdog_hears_of_us(net: Net) -> None:
    [node] = net.nodes
    flanneld = node.start(env={"WATCHDOG_USEC": "600000"}).wait_ready()
    began = time.monotonic()
    for _ in range(4):
        flanneld.wait_for_notice("WATCHDOG=1")
    assert time.monotonic() - began > 0.8  # every 0.3 s, and not all the time


def test_datastore_is_waited_for_in_words(net: Net) -> None:
    """The watchdog, the probes and SIGTERM are no reason either."""
    [node] = net.nodes
    away = net.datastore.rename(net.datastore.with_suffix(".away"))
    flanneld = node.start(f"-healthz-port={PORT}", env={"WATCHDOG_USEC": "3000000"})
    assert "STATUS=no network configuration:" in flanneld.wait_for_notice("STATUS")
    flanneld.wait_for_notice("WATCHDOG=1")
    assert get(node, "/healthz") == (200, "flanneld is running")
    status, text = get(node, "/readyz")
    assert status == 503
    assert f"{net.datastore} does not exist" in text
    assert "cni_py_flanneld_ready 0\n" in get(node, "/metrics")[1]
    flanneld.wait_for_notice("WATCHDOG=1")
    assert flanneld.log.count("Couldn't fetch network config") == 1  # the same is said once
    assert not node.host.path(SUBNET_ENV).exists()

    net.write({"config": {"Network": "10.244.0.0/16", "Backend": {"Type": 7}}, "leases": {}})
    flanneld.wait_for_log("Couldn't fetch network config", count=2)
    away.rename(net.datastore)
    flanneld.wait_ready()
    assert get(node, "/readyz") == (200, "flanneld is ready")
    metrics = get(node, "/metrics")[1]
    assert "cni_py_flanneld_ready 1\n" in metrics
    assert "cni_py_flanneld_leases 1\n" in metrics
    assert get(node, "/other")[0] == 404


def test_pool_that_is_exhausted_is_asked_again(net: Net) -> None:
    """One subnet for two nodes: the second waits, says so, and has it when it is free."""
    first, second = net.nodes[0], *net.add_nodes(1)
    net.write(
        {"config": NETWORK | {"SubnetMin": "10.244.5.0", "SubnetMax": "10.244.5.0", "Backend": {"Type": "vxlan"}}, "leases": {}}
    )
    first.start().wait_ready()
    waiting = second.start()
    for _ in range(3):  # it has asked again, and does not repeat itself in the log
        assert "STATUS=no subnet is leased:" in waiting.wait_for_notice("STATUS")
    assert waiting.log.count("failed to acquire lease") == 1
    assert "10.244.5.0" in waiting.log
    assert waiting.status is None
    assert first.flanneld
    first.flanneld.terminate()
    net.write(net.read() | {"leases": {}})
    waiting.wait_ready()
    assert second.env["FLANNEL_SUBNET"] == "10.244.5.1/24"


# ---- what is wrong ------------------------------------------------------------------------------------------------

WRONG_OPTIONS = {
    "unknown": (["-ifaces=eth0"], "flag provided but not defined: -ifaces"),
    "not supported": (["-vmodule=x=1"], "-vmodule is not supported"),
    "no value": (["-iface"], "flag needs an argument: -iface"),
    "wrong value": (["-healthz-port=http"], 'invalid value "http" for flag -healthz-port'),
    "margin": (["-subnet-lease-renew-margin=1440"], "Invalid subnet-lease-renew-margin option, out of acceptable range"),
    "no option": (["eth0"], '"eth0" is no option'),
    "address": (["-public-ip=fd00::1"], "-public-ip"),
    "two datastores": (["-datastore=file:/x", "-kube-subnet-mgr"], "there is one datastore"),
}


@pytest.mark.parametrize("what", WRONG_OPTIONS)
def test_wrong_option_ends_it_with_2(net: Net, what: str) -> None:
    argv, words = WRONG_OPTIONS[what]
    done = net.nodes[0].run_flanneld(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_wrong_variable_ends_it_with_2(net: Net) -> None:
    flanneld = net.nodes[0].start(env={"FLANNELD_HEALTHZ_PORT": "http"})
    assert flanneld.wait() == 2
    assert "FLANNELD_HEALTHZ_PORT" in flanneld.log


WRONG_BACKENDS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"Type": "tencent-vpc"}, "unknown backend type: tencent-vpc"),
    "wrong key": ({"Type": "vxlan", "VNI": "one"}, '"Backend.VNI"'),
    "out of range": ({"Type": "vxlan", "Port": 70000}, '"Backend.Port"'),
    "MTU too small": ({"Type": "vxlan", "MTU": 500}, "too small"),
}


@pytest.mark.parametrize("what", WRONG_BACKENDS)
def test_wrong_back_end_ends_it_with_1_and_changes_nothing(net: Net, what: str) -> None:
    [node] = net.nodes
    backend, words = WRONG_BACKENDS[what]
    net.write({"config": NETWORK | {"Backend": backend}, "leases": {}})
    flanneld = node.start()
    assert flanneld.wait() == 1
    assert words in flanneld.log.splitlines()[-1]
    assert (net.leases(), node.device(), node.routes()) == ({}, {}, {})
    checked = node.run_flanneld("-check-config=-", stdin=json.dumps(NETWORK | {"Backend": backend}))
    assert (checked.returncode, words in checked.stderr) == (1, True)


def test_udp_refuses_an_interface_too_small_for_ipv6(net: Net) -> None:
    net.write({"config": FAMILIES["dual"] | {"Backend": {"Type": "udp"}}, "leases": {}})
    net.nodes[0].run("ip addr add fd00:123::11/64 dev eth0 nodad; ip link set eth0 mtu 1327")
    flanneld = net.nodes[0].start()
    assert flanneld.wait() == 1
    assert "an MTU of 1279 bytes is too small for IPv6 pods" in flanneld.log.splitlines()[-1]
    assert (net.leases(), net.nodes[0].device("flannel0")) == ({}, {})


def test_udp_starts_while_the_kernel_asks_for_other_owners_of_the_address(net: Net) -> None:
    """A boot: an IPv6 address can be used a second or more after the interface is up."""
    [node] = net.nodes
    net.write({"config": FAMILIES["dual"] | {"Backend": {"Type": "udp"}}, "leases": {}})
    node.run("for d in all eth0; do echo 1 >/proc/sys/net/ipv6/conf/$d/accept_dad; done")
    node.run("echo 60 >/proc/sys/net/ipv6/conf/eth0/dad_transmits; ip addr add fd00:123::11/64 dev eth0")
    node.run("ip -6 route add default via fd00:123::1")
    assert "tentative" in node.run("ip addr show dev eth0")
    node.start().wait_ready()
    assert "tentative" in node.run("ip addr show dev eth0")
    assert "[fd00:123::11]:8285" in node.run("ss -lun")


def test_udp_ends_without_a_word_of_the_device_that_goes_with_it(net: Net) -> None:
    net.write({"config": FAMILIES["v4"] | {"Backend": {"Type": "udp"}}, "leases": {}})
    flanneld = net.nodes[0].start().wait_ready()
    assert flanneld.terminate() == 0
    assert [line for line in flanneld.log.splitlines() if line[0] != "I"] == []


def test_restart_where_the_disk_is_full_goes_on_with_the_file_that_is_right(net: Net) -> None:
    [node] = net.nodes
    node.run(f"mkdir -p /run/flannel; mount -t tmpfs -o size={FULL[1]} none /run/flannel")
    node.start().wait_ready().terminate()
    env = node.env
    node.run(f"{FULL[0]} of=/run/flannel/fill", check=False)
    node.start().wait_ready()
    assert node.flanneld
    assert node.flanneld.has_said("/run/flannel/subnet.env is right as it is", "No space left on device")
    assert "Wrote subnet file" not in node.flanneld.log
    assert node.env == env


def test_start_where_the_disk_is_full_ends_it_with_1_and_the_files_name(net: Net) -> None:
    [node] = net.nodes
    node.run(f"mkdir -p /run/flannel; mount -t tmpfs -o size={FULL[1]} none /run/flannel")
    node.run(f"{FULL[0]} of=/run/flannel/fill", check=False)
    flanneld = node.start()
    assert flanneld.wait() == 1
    last = flanneld.log.splitlines()[-1]
    assert "/run/flannel/subnet.env" in last
    assert "No space left on device" in last


def test_leases_are_saved_when_the_disk_has_room_again(net: Net) -> None:
    [node] = net.nodes
    node.run(f"mkdir -p /var/lib/cni-py; mount -t tmpfs -o size={FULL[1]} none /var/lib/cni-py")
    node.run(f"{FULL[0]} of=/var/lib/cni-py/fill", check=False)
    flanneld = node.start().wait_ready()
    assert flanneld.has_said("the leases could not be saved for the next boot", "No space left on device")
    node.run("rm /var/lib/cni-py/fill")
    saved = node.host.path(SAVED)
    until(lambda: saved.exists() and node.subnet in saved.read_text(), "the leases are saved")
    assert flanneld.log.count("could not be saved") == 1


@pytest.mark.parametrize(("backend", "device"), [("vxlan", "flannel-v6.1"), ("udp", "flannel0")])
def test_device_has_ipv6_where_new_interfaces_have_none(net: Net, backend: str, device: str) -> None:
    [node] = net.nodes
    net.write({"config": FAMILIES["dual"] | {"Backend": {"Type": backend}}, "leases": {}})
    node.run("ip addr add fd00:123::11/64 dev eth0 nodad; echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6")
    node.start().wait_ready()
    assert f"inet6 {node.subnet6}/128" in node.run(f"ip addr show dev {device}")


def test_second_network_leaves_the_first_ones_routes_and_saved_leases_alone(two: Net, tmp_path: Path) -> None:
    first, other = two.nodes
    ways = set(first.routes())
    datastore = tmp_path / "second.json"
    lease = {"PublicIP": other.address, "BackendType": "vxlan", "BackendData": {"VNI": 2, "VtepMAC": "02:00:00:00:00:02"}}
    config = {"Network": "10.99.0.0/16", "Backend": {"Type": "vxlan", "VNI": 2}}
    datastore.write_text(json.dumps({"config": config, "leases": {"10.99.7.0-24": lease}}))
    flanneld, mac = first.flanneld, first.device()["address"]
    assert flanneld
    options = [f"--datastore=file:{datastore}", "-subnet-file=/run/flannel/two.env", "-iptables-forward-rules=false"]
    second = first.start(*options).wait_ready()
    both = {*ways, "10.99.7.0/24"}
    assert set(first.routes()) == both
    assert first.device("flannel.2")["address"] != mac
    first.run("ip route flush proto 122")  # each restores its own, and no more
    until(lambda: set(first.routes()) == both, "all routes are back")
    first.run("ip link set flannel.1 mtu 1300; ip link set flannel.2 mtu 1300")
    for name in ("flannel.1", "flannel.2"):
        until(lambda name=name: first.device(name)["mtu"] == 1450, f"{name} is as it was")  # type: ignore[misc]
    assert set(first.routes()) == both
    second.terminate()
    flanneld.terminate()
    for name, network_ in (("flanneld.json", "10.244.0.0/16"), ("flanneld-run-flannel-two.env.json", "10.99.0.0/16")):
        assert network_ in first.host.path(f"/var/lib/cni-py/{name}").read_text()


def test_interface_that_cannot_be_used_for_a_while_is_logged_once(net: Net) -> None:
    [node] = net.nodes
    flanneld = node.start().wait_ready()
    node.run("ip link set eth0 mtu 600")
    flanneld.wait_for_log("VXLAN config:", count=4)  # it tries again and again
    assert flanneld.log.count("an MTU of 550 bytes is too small") == 1
    node.run("ip link set eth0 mtu 1500")
    flanneld.wait_ready()


def test_interface_that_is_not_there_ends_it_with_1_and_the_inventory(net: Net) -> None:
    net.nodes[0].run("ip link set eth0 name ens3")
    flanneld = net.nodes[0].start()
    assert flanneld.wait() == 1
    assert "Failed to find interface to use that matches the interfaces and/or regexes provided" in flanneld.log
    assert "ens3:[192.168.123.11 " in flanneld.log


def test_health_port_in_use_ends_it_with_1(net: Net) -> None:
    [node] = net.nodes
    node.start(f"-healthz-port={PORT}").wait_ready()
    second = node.start(f"-healthz-port={PORT}", "-subnet-file=/run/flannel/two.env")
    assert second.wait() == 1
    assert "Address already in use" in second.log


# ---- end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "which", ["PreStartupCommand", "PostStartupCommand", "SubnetAddCommand", "SubnetRemoveCommand"], ids=lambda name: name[:-7]
)
def test_sigterm_while_a_command_runs_kills_it_and_ends_soon(net: Net, which: str) -> None:
    [node] = net.nodes
    hangs = "sh -c 'sleep 60 & echo $$ $! >/run/pids.new; mv /run/pids.new /run/pids; wait'"
    config = NETWORK | {"Backend": {"Type": "extension", which: hangs}}
    peer = {"10.244.77.0-24": {"PublicIP": "192.168.123.12", "BackendType": "extension"}}
    net.write({"config": config, "leases": peer})
    flanneld = node.start()
    if which == "SubnetRemoveCommand":
        flanneld.wait_for_log("Subnet added: 10.244.77.0/24")
        net.write(net.read() | {"leases": {}})
    until(node.host.path("/run/pids").exists, "the command runs")
    pids = node.host.path("/run/pids").read_text().split()
    began = time.monotonic()
    assert flanneld.terminate() == 0
    assert time.monotonic() - began < SOON_SECONDS
    assert "Exiting cleanly" in flanneld.log
    assert "flanneld ends, killed" in flanneld.log
    assert flanneld.log.count(f"the back end extension runs commands that the network configuration names ({which})") == 1
    flanneld = node.start("-allow-commands")
    flanneld.wait_for_log("CLI flags config")
    flanneld.terminate()
    assert "extension runs commands" not in flanneld.log
    until(lambda: all(node.host.execute(["kill", "-0", pid]).returncode != 0 for pid in pids), "what it started has ended")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_soon_and_leaves_the_way(two: Net, number: signal.Signals) -> None:
    first = two.nodes[0]
    before, flanneld = first.state(), first.flanneld
    assert flanneld
    began = time.monotonic()
    flanneld.signal(number)
    flanneld.wait_for_notice("STOPPING=1")
    assert flanneld.wait() == 0
    assert time.monotonic() - began < SOON_SECONDS
    assert flanneld.log.rstrip().endswith("Exiting cleanly...")
    assert first.state() == before
    assert first.reached(two.nodes[1].pods["pod2"][0], pod="pod1")


def test_signal_at_any_moment_ends_it_with_0(net: Net) -> None:
    """SIGTERM kills it as any program, before it handles signals."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    for _ in range(8):
        flanneld = net.nodes[0].start()
        time.sleep(moments.uniform(0.1, 0.8))
        status = flanneld.terminate()
        assert status == 0 or "Installing signal handlers" not in flanneld.log, flanneld.log


@pytest.mark.parametrize("backend", ["vxlan", "host-gw", "udp"])
def test_cleanup_removes_all_that_it_made(tmp_path: Path, backend: str) -> None:
    with network(tmp_path, backend, "dual", nodes=2) as net:
        node = net.nodes[0]
        before = node.host.snapshot()
        net.options = ["-ip-masq", "-ip-blackhole-route"]
        net.start(pods=False)
        assert node.flanneld
        node.flanneld.terminate()
        left = [path.with_name(f".{path.name}.tmp") for path in map(node.host.path, (SUBNET_ENV, SAVED))]
        for path in left:  # of a flanneld that was killed
            path.touch()
        done = node.run_flanneld("-cleanup", "-iface=eth0")
        assert done.returncode == 0, done.stderr
        assert "removed what flanneld had made" in done.stderr
        assert node.host.snapshot() == before
        assert not node.host.path(SUBNET_ENV).exists()
        assert not node.host.path(SAVED).exists()
        assert [path for path in left if path.exists()] == []
        assert node.run_flanneld("-cleanup").returncode == 0  # nothing is there any more


def test_cleanup_does_what_it_can_where_the_interface_has_gone(net: Net) -> None:
    [node] = net.nodes
    node.start("-ip-masq").wait_ready()
    assert node.flanneld
    node.flanneld.terminate()
    done = node.run_flanneld("-cleanup", "-iface=eth7")
    assert done.returncode == 1
    assert "not all could be removed" in done.stderr
    assert "what the back end made" in done.stderr
    assert (node.device(), node.routes()) == ({}, {})
    assert "cni_py" not in node.run("nft list tables")


# ---- the subnet file ----------------------------------------------------------------------------------------------


DAMAGES = [
    "rm {}",
    "echo FLANNEL_MTU=1 >>{}",
    ": >{}",
    "rm {0}; ln -s /etc/hostname {0}",
    "mv {0} {0}.old",
    "sed -i s/1450/1400/ {}",
]


def test_subnet_file_is_kept_as_it_is(net: Net) -> None:
    """Deleted or altered; and where something is in its way /readyz says so, until that was deleted."""
    [node] = net.nodes
    flanneld = node.start(f"-healthz-port={PORT}").wait_ready()
    path = node.host.path(SUBNET_ENV)
    right = path.read_text()
    for damage in DAMAGES:
        node.run(damage.format(SUBNET_ENV))
        until(lambda: path.is_file() and not path.is_symlink() and path.read_text() == right, f"restored after {damage}")
    # logged when it was done: the file is right before its line is there
    flanneld.wait_for_log(f"restored {SUBNET_ENV}, which another process had ", count=len(DAMAGES))
    assert flanneld.log.count(f"restored {SUBNET_ENV}, which another process had deleted") == 2
    assert get(node, "/readyz")[0] == 200
    node.run(f"rm {SUBNET_ENV}; mkdir -p {SUBNET_ENV}/in-the-way")
    until(lambda: get(node, "/readyz")[0] == 503, "it is not ready")
    assert f"{SUBNET_ENV} was changed by another process and cannot be restored" in get(node, "/readyz")[1]
    node.run(f"rm -r {SUBNET_ENV}")
    until(lambda: get(node, "/readyz")[0] == 200, "it is ready again")
    assert path.read_text() == right


SOON = "from cni_py.node import file_watch; file_watch.SETTLE_SECONDS = 0.01"


def test_another_process_that_writes_the_subnet_file_again_and_again_is_backed_off_from(net: Net) -> None:
    [node] = net.nodes
    net.code = "from cni_py.flanneld import subnet_file as s; s.BACK_OFF_SECONDS = 1000.0\n"
    net.code += SOON
    flanneld = node.start().wait_ready()
    node.run(f"while ! test -e /run/end; do rm -f {SUBNET_ENV}; sleep 0.02; done >/dev/null 2>&1 &")
    flanneld.wait_for_log(f"another process changes {SUBNET_ENV} again and again")
    node.run("touch /run/end")
    assert flanneld.log.count(f"restored {SUBNET_ENV}") == 11
    assert flanneld.terminate() == 0


def test_second_flanneld_with_the_same_subnet_file_is_refused_and_so_is_a_cleanup(net: Net) -> None:
    [node] = net.nodes
    first = node.start().wait_ready()
    state = node.state()
    words = f"flanneld already runs with the subnet file {SUBNET_ENV}: process "
    node.run("ln -s flannel /run/other-name")
    for option in ([], ["-subnet-file=/run/other-name/subnet.env"]):
        second = node.start(*option)
        assert second.wait() == 1
        [holder] = re.findall(r"flanneld already runs with the subnet file \S+: process (\d+)", second.log)
        assert "flanneld" in node.run(f"tr '\\0' ' ' </proc/{holder}/cmdline")
    done = node.run_flanneld("-cleanup", "-iface=eth0")
    assert done.returncode == 1
    assert "nothing was removed: " in done.stderr
    assert words in done.stderr
    assert node.state() == state
    assert node.env
    first.kill()
    third = node.start().wait_ready()
    third.terminate()
    assert node.run_flanneld("-cleanup", "-iface=eth0").returncode == 0
    assert node.run("ls -A /run/flannel") == ""


LOCK_DAMAGES = [
    "rm -r /run/flannel",
    "rm /run/flannel/.subnet.env.lock",
    "touch /run/flannel/x; mv /run/flannel/x /run/flannel/.subnet.env.lock",
]


def test_lock_that_another_process_deletes_is_taken_again(net: Net) -> None:
    [node] = net.nodes
    first = node.start().wait_ready()
    for number, damage in enumerate(LOCK_DAMAGES, 1):
        node.run(damage)
        until(
            lambda number=number: first.log.count("restored /run/flannel/.subnet.env.lock") == number,  # type: ignore[misc]
            f"locked again after {damage}",
        )
        assert "flanneld already runs with the subnet file" in node.run_flanneld("-cleanup", "-iface=eth0").stderr
    assert "flanneld already runs with the subnet file" in node.run_flanneld().stderr
    assert first.terminate() == 0


def test_lock_that_another_flanneld_has_meanwhile_is_an_error_of_the_first(net: Net) -> None:
    [node] = net.nodes
    first = node.start().wait_ready()
    with first.stopped():
        node.run("rm /run/flannel/.subnet.env.lock")
        second = node.start().wait_ready()
    first.wait_for_log("cannot be locked again: flanneld already runs with the subnet file")
    assert second.terminate() == 0
    first.wait_for_log("restored /run/flannel/.subnet.env.lock")
    assert first.terminate() == 0


@pytest.mark.parametrize("where", ["/run", "/run /var/lib"])
def test_node_whose_directories_are_read_only_has_a_lock_elsewhere_or_none(net: Net, where: str) -> None:
    [node] = net.nodes
    node.start().wait_ready().terminate()
    node.run(
        f"for d in {where}; do mount --bind $d $d; mount -o remount,bind,ro $d; done; rm -f /run/flannel/.subnet.env.lock || true"
    )
    first = node.start().wait_ready()
    has_lock = where == "/run"
    assert first.has_said("a second flanneld with") != has_lock
    second = node.start()
    if has_lock:
        assert second.wait() == 1
        assert "flanneld already runs with the subnet file" in second.log
    else:
        second.wait_ready()


# ---- without the datastore ----------------------------------------------------------------------------------------


def test_after_a_reboot_it_forwards_by_what_was_saved_and_confirms_it_later(two: Net) -> None:
    first, second = two.nodes
    device, env = first.device(), first.env
    assert first.flanneld
    first.flanneld.terminate()  # it saves what it knows, at the latest now
    two.reboot(first)
    assert first.device() == {}
    away = two.datastore.rename(two.datastore.with_suffix(".away"))
    flanneld = first.start(f"-healthz-port={PORT}", "-healthz-ip=127.0.0.1")
    notice = flanneld.wait_for_notice("READY=1")
    assert "by what was saved" in notice
    assert get(first, "/readyz") == (200, "flanneld is ready\nby what was saved, for the datastore does not answer")
    assert flanneld.has_said("no network configuration now: forwarding by what was saved")
    assert first.env == env
    assert first.device()["address"] == device["address"]  # the peer still sends to it
    first.add_pod()
    reach_one_another(two)
    assert flanneld.log.count("still without the datastore") == 1

    away.rename(two.datastore)
    flanneld.wait_for_log("the datastore responds again, and our lease of")
    assert "by what was saved" not in flanneld.wait_for_notice("READY=1")
    assert two.unreached() == []
    assert second.flanneld
    assert second.flanneld.status is None


def test_leases_that_would_lead_packets_astray_are_ignored(two: Net) -> None:
    """One holds the nodes' own network, one a part of our subnet; neither goes into what is saved."""
    first, second = two.nodes
    before, content = first.state(), two.read()
    lease = content["leases"][f"{second.subnet}.0-24"]
    bad = ["192.168.123.0-25", "128.0.0.0-1", f"{first.subnet}.128-25"]
    two.write({**content, "leases": {**content["leases"], **{key: {**lease, "PublicIP": "192.168.123.50"} for key in bad}}})
    assert first.flanneld
    for key in bad:
        first.flanneld.wait_for_log(f"ignoring the lease of {key.replace('-', '/')}: ")
    first.flanneld.terminate()
    assert two.leases().keys() >= set(bad)
    assert not any(key in first.host.path(SAVED).read_text() for key in bad)
    first.start().wait_ready()
    assert first.state() == before
    assert two.unreached() == []


def test_lease_with_our_own_address_is_no_peer_and_is_checked_again_when_it_changes(two: Net) -> None:
    first, _ = two.nodes
    before, content = first.state(), two.read()
    own = content["leases"][f"{first.subnet}.0-24"]
    other = {**own, "BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:77"}}
    spare = next(of for of in ("10.244.77", "10.244.78", "10.244.79") if f"{of}.0-24" not in content["leases"])

    def put(public_ip: str) -> None:
        two.write({**content, "leases": {**content["leases"], f"{spare}.0-24": {**other, "PublicIP": public_ip}}})

    assert first.flanneld
    words = f"ignoring the lease of {spare}.0/24: 192.168.123.11 is our own address"
    put("192.168.123.11")
    first.flanneld.wait_for_log(words)
    assert first.state() == before
    put("192.168.123.50")
    until(lambda: f"{spare}.0/24" in first.routes(), "it is followed")
    put("192.168.123.11")
    first.flanneld.wait_for_log(words, count=2)
    until(lambda: first.state() == before, "it is left again")


def test_reservation_for_our_own_address_is_taken(net: Net) -> None:
    """A peer with it would be ignored: it is the node's own."""
    [node] = net.nodes
    content = net.read()
    net.write({**content, "leases": {"10.244.77.0-24": {"PublicIP": node.address, "BackendType": "vxlan"}}})
    assert not node.start().wait_ready().has_said("ignoring")
    assert node.subnet == "10.244.77"


def test_leases_with_addresses_that_no_node_has_are_logged_once(two: Net) -> None:
    first, second = two.nodes
    before, content = first.state(), two.read()
    theirs = content["leases"][f"{second.subnet}.0-24"]
    addresses = ["224.0.0.5", "255.255.255.255", "127.0.0.1", "0.0.0.0", True, 3232267058]
    *free, other = [f"10.244.{number}" for number in range(70, 79) if f"10.244.{number}" not in (first.subnet, second.subnet)]
    nonsense = {f"{key}.0-24": {**theirs, "PublicIP": address} for key, address in zip(free, addresses, strict=False)}
    two.write({**content, "leases": {**content["leases"], **nonsense}})
    assert first.flanneld
    for key in nonsense:
        first.flanneld.wait_for_log(f'ignored "{key}": the value is no lease: ')
    peer = {**theirs, "PublicIP": "192.168.123.50", "BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:78"}}
    two.write({**two.read(), "leases": {**two.read()["leases"], f"{other}.0-24": peer}})
    until(lambda: f"{other}.0/24" in first.routes(), "what came after them is followed")
    assert all(first.flanneld.log.count(key) == 1 for key in nonsense)
    [route] = set(first.state()["routes"]) - set(before["routes"])
    assert route.startswith(f"{other}.0/24 ")


def test_saved_lease_that_has_ended_is_not_used(two: Net) -> None:
    first = two.nodes[0]
    two.reboot(first)
    header, *leases = first.host.path(SAVED).read_text().splitlines(keepends=True)
    saved = json.loads(header)
    saved["own"]["expires"] = time.time() - 1
    first.host.write(SAVED, json.dumps(saved) + "\n" + "".join(leases))
    away = two.datastore.rename(two.datastore.with_suffix(".away"))
    flanneld = first.start()
    flanneld.wait_for_notice("STATUS=no network configuration")
    assert first.device() == {}
    away.rename(two.datastore)
    flanneld.wait_ready()


NO_CONFIG = '{{"config": {}, "own": {{"key": "10.244.1.0-24", "value": "{{}}", "expires": null}}, "leases": []}}'


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[" * 100_000,
        NO_CONFIG.format('"x"'),
        NO_CONFIG.format(json.dumps('{"Network": "10.244.0.0/16", "Backend": {"Type": "x"}}')),
    ],
    ids=["half", "deep", "no configuration", "unknown back end"],
)
def test_damaged_saved_leases_are_as_none(net: Net, text: str) -> None:
    [node] = net.nodes
    node.host.write(SAVED, text)
    flanneld = node.start().wait_ready()
    assert f"what was saved in {SAVED} cannot be used" in flanneld.log
    assert json.loads(node.host.path(SAVED).read_text().splitlines()[0])["own"]["key"] == f"{node.subnet}.0-24"
    assert node.host.path(SAVED).stat().st_mode & 0o777 == 0o600


def test_another_network_than_the_saved_one_is_taken_when_the_datastore_answers(two: Net) -> None:
    first = two.nodes[0]
    two.reboot(first)
    content = two.read()
    away = two.datastore.rename(two.datastore.with_suffix(".away"))
    flanneld = first.start().wait_ready()
    assert first.env["FLANNEL_NETWORK"] == "10.244.0.0/16"
    content["config"]["Network"], content["leases"] = "10.9.0.0/16", {}
    two.write(content)
    flanneld.wait_for_log("the network configuration is another than the saved one")
    until(lambda: first.env["FLANNEL_NETWORK"] == "10.9.0.0/16", "subnet.env of the other network")
    assert first.env["FLANNEL_SUBNET"].startswith("10.9.")
    assert away.exists()


def test_datastore_away_for_a_while_changes_nothing(two: Net) -> None:
    first = two.nodes[0]
    before = first.state()
    away = two.datastore.rename(two.datastore.with_suffix(".away"))
    assert first.flanneld
    first.flanneld.wait_for_log("the last good leases stay")
    assert first.state() == before
    assert two.unreached() == []
    away.rename(two.datastore)
    first.flanneld.wait_for_log("can be read again")
    assert first.state() == before


# ---- the lease ----------------------------------------------------------------------------------------------------


def test_lost_lease_is_made_again_and_nothing_is_touched_here(two: Net) -> None:
    """The other nodes' way to us stays until then."""
    first = two.nodes[0]
    key, before = f"{first.subnet}.0-24", first.state()
    assert first.flanneld
    for node in two.nodes:
        node.run("ip monitor route neigh address link >/run/heard 2>&1 & echo $! >/run/monitor")
    content = two.read()
    lost = content["leases"].pop(key)
    two.write(content)
    took = until(lambda: key in two.leases(), "the lease is there again")
    print(f"lost for {took:.2f} s")
    assert {k: v for k, v in two.leases()[key].items() if k != "Expires"} == {k: v for k, v in lost.items() if k != "Expires"}
    first.flanneld.wait_for_log("Lease renewed, new expiration:")
    reach_one_another(two)
    assert first.state() == before
    time.sleep(LINGER_SECONDS)
    for node in two.nodes:
        heard = node.run("kill $(cat /run/monitor); cat /run/heard")
        assert [line for line in heard.splitlines() if "flannel.1" in line] == []


def test_altered_lease_is_published_again(two: Net) -> None:
    first, second = two.nodes
    key, content = f"{first.subnet}.0-24", two.read()
    lease = content["leases"][key]
    before = {name: value for name, value in lease.items() if name != "Expires"}
    lease["BackendData"] = {"VNI": 1, "VtepMAC": "02:11:22:33:44:55"}
    two.write(content)
    took = until(lambda: two.leases()[key].items() >= before.items(), "it is as it was")
    print(f"restored after {took:.2f} s")
    assert first.flanneld
    assert first.flanneld.has_said(f"our lease of {first.subnet}.0/24 was changed by another process: publishing it again")
    until(lambda: first.device()["address"] in second.run("ip neigh show dev flannel.1"), "the peer knows the right address")
    reach_one_another(two)


def test_two_with_one_public_address_do_not_fight_for_ever(tmp_path: Path) -> None:
    """Each takes the other's lease for its own, changed by another process: the log says what is wrong, and they slow down."""
    with network(tmp_path, "vxlan", nodes=2) as net:
        net.options, net.code = ["-public-ip=192.168.123.99"], SHORT_TIMES
        for node in net.nodes:
            node.start().wait_ready()
        words = "another process takes or changes our lease again and again: has another flanneld the public address 192.168.123.99 too?"
        assert all(node.flanneld for node in net.nodes)
        daemons = [node.flanneld for node in net.nodes if node.flanneld]
        until(lambda: any(daemon.has_said(words) for daemon in daemons), words)
        until(lambda: all(daemon.has_said(words) for daemon in daemons), "the other one comes to the same")

        def renewed() -> int:
            return sum(daemon.log.count("Lease renewed") for daemon in daemons)

        first = renewed()
        until(lambda: renewed() > first, "the next time")
        second = renewed()
        took = until(lambda: renewed() > second + 2, "three times more")
        print(f"three times in {took:.1f} s")
        assert took > RETRY_SECONDS  # each waits so long
        assert len(net.leases()) == 1


def test_lease_that_another_has_is_given_up(two: Net) -> None:
    first, second = two.nodes
    old = first.subnet
    assert first.flanneld
    content = two.read()
    content["leases"][f"{old}.0-24"] |= {
        "PublicIP": "192.168.123.99",
        "BackendData": {"VNI": 1, "VtepMAC": "02:11:22:33:44:55"},
    }
    two.write(content)
    first.flanneld.wait_for_log("Lease has been revoked.")
    until(lambda: first.subnet != old, "another subnet")
    until(lambda: f"{first.subnet}.0/24" in second.routes(), "the peer knows it")
    assert [address["local"] for address in first.device()["addr_info"] if address["family"] == "inet"] == [f"{first.subnet}.0"]
    assert "dev cni0 proto kernel" in first.run(f"ip route show {old}.0/24")  # the old pods still have a way to their node
    assert first.flanneld.status is None


# ---- the interface ------------------------------------------------------------------------------------------------


def test_other_address_of_the_interface_is_followed_with_the_same_subnet(two: Net) -> None:
    first, second = two.nodes
    env, mac = first.env, first.device()["address"]
    first.run(
        "ip addr add 192.168.123.50/24 dev eth0; ip addr del 192.168.123.11/24 dev eth0; ip addr replace 192.168.123.50/24 dev eth0"
    )
    assert first.flanneld
    first.flanneld.wait_for_log("the external interface is another now")
    until(lambda: two.leases()[f"{first.subnet}.0-24"]["PublicIP"] == "192.168.123.50", "the lease says so")
    assert first.env == env
    until(lambda: "dst 192.168.123.50" in second.run("bridge fdb show dev flannel.1"), "the peer's FDB")
    reach_one_another(two)
    assert first.device()["linkinfo"]["info_data"]["local"] == "192.168.123.50"
    assert first.device()["address"] == mac
    assert len(two.leases()) == 2


def test_flap_of_the_interface_is_survived(two: Net) -> None:
    first = two.nodes[0]
    before = first.state()
    first.run("ip link set eth0 down; sleep 0.3; ip link set eth0 up")
    reach_one_another(two)
    assert first.state() == before
    assert first.flanneld
    assert first.flanneld.log.count("flannel is ready") == 1


def test_interface_that_is_created_again_is_followed(two: Net) -> None:
    """The kernel takes the VXLAN device with it."""
    first = two.nodes[0]
    before = first.state()
    first.run("ip link del eth0")
    assert first.flanneld
    first.flanneld.wait_for_log("the data path could not be repaired, retrying")
    assert first.device() == {}
    two.plug_in(first)
    until(lambda: first.state() == before, "all is there again")
    reach_one_another(two)


def test_other_mtu_of_the_interface_is_followed(two: Net) -> None:
    first = two.nodes[0]
    first.run("ip link set eth0 mtu 1400")
    until(lambda: first.env["FLANNEL_MTU"] == "1350", "subnet.env")
    assert first.device()["mtu"] == 1350
    assert first.flanneld
    first.flanneld.wait_for_log("flannel is ready", count=2)
    first.run("ip link set cni0 mtu 1350")
    assert first.reached(two.nodes[1].pods["pod2"][0], size=1350)
