"""flanneld as a whole beside a real etcd that dies, forgets and refuses: what nodes forward stays, and heals by itself.

Of jumps of the clock is covered what the daemon itself does with the time of day, by a launcher that gives it another; not
what gRPC and TLS do with it. A time namespace has no time of day of its own, and the machine's is left alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import sleep

import pytest

from cni_py.lab.programs import LabFailed
from integration.etcd import servers
from integration.etcd.cluster import CONFIG, NEVER, PREFIX, SUBNETS, Cluster, Etcd, Flanneld, peer
from support.waiting import until

pytestmark = pytest.mark.netns

ENDPOINT = "-etcd-endpoints=http://192.168.123.2:2379"
CONFLIST = "10-flannel.conflist"


class Pair:
    """Two nodes with a pod each, one etcd, and a third node without flanneld."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.etcd = Etcd(cluster).wait()
        self.etcd.ctl("put", f"{PREFIX}/config", CONFIG)
        self.daemons = start_all(cluster, ("node1", "node2"), [ENDPOINT])

    def follows(self, number: int, etcd: Etcd | None = None) -> None:
        """A peer that comes and goes in etcd comes and goes in both nodes' routes."""
        check_follows(self.cluster, etcd or self.etcd, ("node1", "node2"), number)


def start_all(cluster: Cluster, names: tuple[str, ...], options: list[str]) -> dict[str, Flanneld]:
    """flanneld and a pod on each of these nodes; ``pod1`` is on the first."""
    daemons = {name: cluster.start_flanneld(name, options) for name in names}
    for number, (name, daemon) in enumerate(daemons.items(), 1):
        daemon.wait_ready()
        shutil.copy(cluster.programs.conflist, cluster.path(name, f"/etc/cni/net.d/{CONFLIST}"))
        cluster.attach(f"pod{number}", name)
    assert cluster.ping().is_complete
    return daemons


def has_route(cluster: Cluster, name: str, number: int) -> bool:
    return bool(cluster.json(name, f"ip -j route show 10.244.{number}.0/24"))


def check_follows(cluster: Cluster, etcd: Etcd, names: tuple[str, ...], number: int) -> None:
    key, value = peer(number)
    etcd.ctl("put", key, value)
    for name in names:
        until(lambda name=name: has_route(cluster, name, number), f"{name} has a route to the new peer {number}")  # type: ignore[misc]
    etcd.ctl("del", key)
    for name in names:
        until(lambda name=name: not has_route(cluster, name, number), f"{name} has none to the one that left")  # type: ignore[misc]


@pytest.fixture(scope="module")
def pair(bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with Cluster(bin_dir, tmp_path_factory.mktemp("pair"), ("node1", "node2", "node3")) as cluster:
        yield Pair(cluster)


# ---- one etcd ---------------------------------------------------------------------------------


def test_etcd_killed_and_restarted(pair: Pair) -> None:
    before = pair.etcd.leases()
    with pair.cluster.traffic("pod1", "pod2") as traffic:
        pair.etcd.kill()
        pair.daemons["node1"].until_logged("etcd watch channel for /coreos.com/network/subnets closed")
        pair.etcd.start()
        pair.etcd.wait()
        pair.follows(201)
    assert traffic.lost == 0
    assert pair.etcd.leases() == before
    pair.daemons["node1"].until_logged("etcd responds again")
    assert pair.daemons["node1"].log.count("etcd watch channel") == pair.daemons["node1"].log.count("etcd responds again") == 1


@pytest.mark.parametrize("how", ["revoked", "deleted"])
def test_lost_lease_is_made_again(pair: Pair, how: str) -> None:
    """Our own pods' way out stays, and that of the others to us: no lease is taken for ended at once."""
    key = pair.etcd.key_of("192.168.123.11")
    before = pair.etcd.leases()[key]
    with pair.cluster.traffic("pod1", "pod2") as traffic:
        if how == "revoked":
            pair.etcd.ctl("lease", "revoke", before["lease"])
        else:
            pair.etcd.ctl("del", SUBNETS + key)
        took = until(lambda: key in pair.etcd.leases(), "the lease is there again")
        after = pair.etcd.leases()
        until(lambda: has_route(pair.cluster, "node2", int(key.split(".")[2])), "node 2 has its route to node 1 again")
    print(f"{how}: made again after {took:.2f} s, {traffic.lost} packets lost")
    assert traffic.lost == 0
    assert {**after[key], "lease": ""} == {**before, "lease": ""}
    assert after[key]["lease"] != before["lease"]
    assert len(after) == 2
    assert pair.cluster.ping().is_complete


def test_altered_lease_is_published_again(pair: Pair) -> None:
    """Another process changes it, by hand or by a script: other nodes would send to a wrong MAC address."""
    key = pair.etcd.key_of("192.168.123.11")
    before = pair.etcd.leases()[key]
    wrong = {name: value for name, value in before.items() if name != "lease"}
    wrong["BackendData"] = {"VNI": 1, "VtepMAC": "02:11:22:33:44:55"}
    pair.etcd.ctl("put", SUBNETS + key, json.dumps(wrong), f"--lease={before['lease']}")
    took = until(lambda: pair.etcd.leases()[key]["BackendData"] == before["BackendData"], "the lease is as it was")
    print(f"published again after {took:.2f} s")
    after = pair.etcd.leases()
    assert {**after[key], "lease": ""} == {**before, "lease": ""}
    assert after[key]["lease"] != "0"
    until(lambda: pair.cluster.ping().is_complete, "node 2 knows the right address")


def test_other_address_is_published_at_once(pair: Pair) -> None:
    """The old connection is of an address that no longer exists."""
    key, gave_up = pair.etcd.key_of("192.168.123.12"), "forwarding by what was saved"
    before = pair.daemons["node2"].log.count(gave_up)
    for old, new in (("12", "52"), ("52", "12")):
        route = "ip route replace default via 192.168.123.2"
        change = f"ip addr add 192.168.123.{new}/24 dev eth0; ip addr del 192.168.123.{old}/24 dev eth0"
        pair.cluster.run("node2", f"{change}; ip addr replace 192.168.123.{new}/24 dev eth0; {route}")
        until(lambda new=new: pair.etcd.key_of(f"192.168.123.{new}") == key, "the lease has the new address")  # type: ignore[misc]
        until(lambda: pair.cluster.ping().is_complete, "the other node follows")
    assert pair.daemons["node2"].log.count(gave_up) == before, pair.daemons["node2"].log
    assert len(pair.etcd.leases()) == 2


def test_compaction_while_a_node_was_away(pair: Pair) -> None:
    """The node wakes up, its watch begins where it ended, and etcd no longer has that history."""
    daemon = pair.daemons["node1"]
    daemon.signal("STOP")
    try:
        pair.etcd.kill()
        pair.etcd.start()
        pair.etcd.wait()
        (gone, value), (come, other) = peer(202), peer(203)
        pair.etcd.ctl("put", gone, value)
        pair.etcd.ctl("put", come, other)
        pair.etcd.ctl("del", gone)
        for _ in range(3):
            pair.etcd.ctl("put", f"{PREFIX}/nothing", "")
        pair.etcd.ctl("compact", str(pair.etcd.revision()))
    finally:
        daemon.signal("CONT")
    daemon.until_logged("fell behind compaction horizon")
    until(lambda: has_route(pair.cluster, "node1", 203), "the peer that came meanwhile")
    assert not has_route(pair.cluster, "node1", 202)
    pair.etcd.ctl("del", come)
    pair.follows(204)


def test_subnet_taken_by_another_node(pair: Pair) -> None:
    """Two nodes with one subnet are worse than another subnet, whatever the reason was."""
    daemon = pair.cluster.start_flanneld("node3", [ENDPOINT]).wait_ready()
    subnet = pair.cluster.subnet("node3")
    key = SUBNETS + subnet.replace("/", "-")
    pair.etcd.ctl("put", key, peer(77)[1])
    until(lambda: pair.cluster.subnet("node3") != subnet, "another subnet in subnet.env")
    daemon.until_logged("Lease has been revoked.")
    now = pair.cluster.subnet("node3")
    assert pair.etcd.key_of("192.168.123.13") == now.replace("/", "-")
    assert pair.etcd.key_of("192.168.123.77") == subnet.replace("/", "-")
    assert pair.cluster.json("node3", "ip -j -4 addr show flannel.1")[0]["addr_info"][0]["local"] == now.removesuffix("/24")
    until(lambda: has_route(pair.cluster, "node1", int(now.split(".")[2])), "the others follow")
    daemon.signal("TERM")
    pair.etcd.ctl("del", key)


# ---- three members ----------------------------------------------------------------------------


def test_members_lost_and_leader_changed(bin_dir: Path, tmp_path: Path) -> None:
    with Cluster(bin_dir, tmp_path, ("node1", "node2")) as cluster:
        members = [Etcd(cluster, number=number, members=3) for number in range(3)]
        for member in members:
            member.wait()
        members[0].ctl("put", f"{PREFIX}/config", CONFIG)
        endpoints = ",".join(member.endpoint for member in members)
        start_all(cluster, ("node1", "node2"), [f"-etcd-endpoints={endpoints}"])
        before = members[0].leases()
        with cluster.traffic("pod1", "pod2") as traffic:
            leader = next(member for member in members if member.is_leader())
            leader.kill()
            one, two = (member for member in members if member is not leader)
            one.wait()
            check_follows(cluster, one, ("node1", "node2"), 201)
            two.kill()  # no majority: no node can write, and nothing changes
            sleep(1)
            two.start()
            leader.start()
            for member in members:
                member.wait()
            check_follows(cluster, two, ("node1", "node2"), 202)
        assert traffic.lost == 0
        assert one.leases() == before


# ---- permissions-------------------------------------------------------------------------------


def test_wrong_password_and_another_one(bin_dir: Path, tmp_path: Path) -> None:
    with Cluster(bin_dir, tmp_path, ("node1",)) as cluster:
        etcd = Etcd(cluster, options=["--bcrypt-cost", "4"]).wait()
        etcd.ctl("put", f"{PREFIX}/config", CONFIG)
        for words in (
            ("user", "add", "root:secret"),
            ("user", "grant-role", "root", "root"),
            ("role", "add", "flannel"),
            ("role", "grant-permission", "flannel", "--prefix=true", "readwrite", PREFIX),
            ("user", "add", "flannel:right"),
            ("user", "grant-role", "flannel", "flannel"),
            ("auth", "enable"),
        ):
            etcd.ctl(*words)
        etcd.login = ["--user", "root:secret"]
        env = {"FLANNELD_ETCD_USERNAME": "flannel", "FLANNELD_ETCD_PASSWORD": "Pa55word"}
        daemon = cluster.start_flanneld("node1", [ENDPOINT], env)
        daemon.until_logged("authentication failed, invalid user ID or password")
        with pytest.raises(LabFailed, match="was not ready"):
            daemon.notice.wait_ready(daemon.service, NEVER, 1.2)
        assert daemon.log.count("authentication failed") == 1, "it is said once, not every second"
        etcd.ctl("user", "passwd", "flannel", "--interactive=false", stdin="Pa55word\n")
        daemon.wait_ready()
        etcd.ctl("user", "passwd", "flannel", "--interactive=false", stdin="right\n")
        etcd.kill()  # it forgets the users that had logged in
        etcd.start()
        etcd.wait()
        key, value = peer(201)
        etcd.ctl("put", key, value)
        until(lambda: daemon.log.count("authentication failed") == 2, "the daemon that may no longer read logs it")
        assert not has_route(cluster, "node1", 201)
        assert cluster.json("node1", "ip -j -4 addr show flannel.1")
        etcd.ctl("user", "passwd", "flannel", "--interactive=false", stdin="Pa55word\n")
        until(lambda: has_route(cluster, "node1", 201), "it follows again")
        assert "Pa55word" not in daemon.log


def test_certificate_expired_and_another_one(bin_dir: Path, tmp_path: Path) -> None:
    with Cluster(bin_dir, tmp_path, ("node1",)) as cluster:
        pki = cluster.directory / "shared"
        good, bad = pki / "good", pki / "bad"
        good.mkdir()
        servers.make_certificates(good, address="192.168.123.2")
        shutil.copytree(good, bad)
        servers.sign(bad, "server", days=0)
        use(pki, good)
        etcd = Etcd(cluster, pki="/run/lab/shared").wait()
        etcd.ctl("put", f"{PREFIX}/config", CONFIG)
        key, value = peer(201)
        etcd.ctl("put", key, value)
        options = ["cafile=/run/lab/shared/ca.crt", "certfile=/run/lab/shared/client.crt", "keyfile=/run/lab/shared/client.key"]
        daemon = cluster.start_flanneld("node1", [ENDPOINT.replace("http:", "https:"), *(f"-etcd-{each}" for each in options)])
        daemon.wait_ready()
        assert has_route(cluster, "node1", 201)
        etcd.kill()
        use(pki, bad)
        etcd.start()
        daemon.until_logged("certificate has expired")
        assert has_route(cluster, "node1", 201)
        etcd.kill()
        use(pki, good)
        etcd.start()
        etcd.wait()
        check_follows(cluster, etcd, ("node1",), 202)


def test_client_certificate_expires_and_another_one(bin_dir: Path, tmp_path: Path) -> None:
    with Cluster(bin_dir, tmp_path, ("node1",)) as cluster:
        pki, made = cluster.directory / "shared", cluster.directory / "shared" / "made"
        made.mkdir()
        servers.make_certificates(made, address="192.168.123.2")
        ends = datetime.now(UTC) + timedelta(seconds=8)
        servers.sign_until(made, "client", ends)
        use(pki, made)
        etcd = Etcd(cluster, pki="/run/lab/shared").wait()
        etcd.ctl("put", f"{PREFIX}/config", CONFIG)
        etcd.ctl("put", *peer(201))
        options = ["cafile=/run/lab/shared/ca.crt", "certfile=/run/lab/shared/client.crt", "keyfile=/run/lab/shared/client.key"]
        daemon = cluster.start_flanneld("node1", [ENDPOINT.replace("http:", "https:"), *(f"-etcd-{each}" for each in options)])
        daemon.wait_ready()
        before = etcd.leases()
        sleep((ends - datetime.now(UTC)).total_seconds() + 1)
        etcd.kill()
        etcd.start()
        etcd.wait()
        daemon.until_logged('our client certificate "/run/lab/shared/client.crt" has expired')
        assert has_route(cluster, "node1", 201)
        servers.sign(made, "client", days=2)
        use(pki, made)
        daemon.until_logged("etcd responds again")
        etcd.wait()
        assert etcd.leases() == before
        check_follows(cluster, etcd, ("node1",), 202)


def use(pki: Path, directory: Path) -> None:
    """Replace the files of the PKI, each as a whole: etcd may be reading them."""
    for file in directory.iterdir():
        new = shutil.copy(file, pki / f".{file.name}")
        new.replace(pki / file.name.replace(".pem", ".crt"))


# ---- time -------------------------------------------------------------------------------------

LAUNCHER = """\
import time
from pathlib import Path
from cni_py.flanneld import lease, own_lease
from cni_py.flanneld.stores import etcd as etcd_store
for module in (etcd_store, lease, own_lease):  # gRPC has the kernel's time and would not agree with another in Python
    module.time = lambda: time.time() + float(Path("/run/clock").read_text())
etcd_store.LEASE_SECONDS = 61
"""


def test_clock_jumps(bin_dir: Path, tmp_path: Path) -> None:
    """A lease of 61 s, renewed 60 s before its end: every second, whatever time of day it is."""
    with Cluster(bin_dir, tmp_path, ("node1",)) as cluster:
        etcd = Etcd(cluster).wait()
        etcd.ctl("put", f"{PREFIX}/config", CONFIG)
        own = Path(cluster.programs.flanneld)
        first, *lines = own.read_text().replace("__file__", repr(str(own))).splitlines()
        program = cluster.directory / "shared" / "flanneld"
        start = next(number for number, line in enumerate(lines) if line.startswith("from cni_py"))
        program.write_text("\n".join([first, *lines[:start], LAUNCHER, *lines[start:], ""]))
        program.chmod(0o755)
        cluster.path("node1", "/run/clock").write_text("0")
        daemon = cluster.start_flanneld("node1", [ENDPOINT, "-subnet-lease-renew-margin=1"], program="/run/lab/shared/flanneld")
        daemon.wait_ready()
        lease = etcd.leases()
        for jump in (-10 * 3600, 30 * 24 * 3600):
            daemon.until_logged("Lease renewed", daemon.log.count("Lease renewed") + 1)
            cluster.path("node1", "/run/clock").write_text(str(jump))
            daemon.until_logged("Lease renewed", daemon.log.count("Lease renewed") + 2)
        assert etcd.leases() == lease
        assert daemon.log.count("Allocated lease") == 1


# ---- at once ----------------------------------------------------------------------------------


def test_twenty_nodes_start_at_once(bin_dir: Path, tmp_path: Path) -> None:
    """And each of them finds the way to all others."""
    names = tuple(f"node{number}" for number in range(1, 21))
    with Cluster(bin_dir, tmp_path, names) as cluster:
        etcd = Etcd(cluster).wait()
        etcd.ctl("put", f"{PREFIX}/config", CONFIG)
        daemons = [cluster.start_flanneld(name, [ENDPOINT]) for name in names]
        for daemon in daemons:
            daemon.wait_ready(50)
        subnets = [cluster.subnet(name) for name in names]
        assert len(set(subnets)) == 20
        leases = etcd.leases()
        assert {key.replace("-", "/"): lease["PublicIP"] for key, lease in leases.items()} == dict(
            zip(subnets, (cluster.addresses[name] for name in names), strict=True)
        )
        for name in names:
            others = set(subnets) - {cluster.subnet(name)}
            until(lambda name=name, others=others: others == peers_of(cluster, name), f"{name} knows the others")  # type: ignore[misc]


def peers_of(cluster: Cluster, name: str) -> set[str]:
    return {route["dst"] for route in cluster.json(name, "ip -j -4 route show dev flannel.1")}
