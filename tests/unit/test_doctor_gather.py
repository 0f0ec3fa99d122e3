"""Reading of the doctor's facts: processes, units, certificates, programs, file systems, nodes of Kubernetes, probes."""

from __future__ import annotations

import os
import socket
import struct
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path
from typing import Any

import pytest

from cni_py.doctor import gather_kubernetes, gather_node, gather_processes, gather_services, probe
from cni_py.doctor.facts import Daemon, Wanted
from cni_py.errors import NotAvailable
from cni_py.flanneld.lease import Attributes, Lease, Subnets
from cni_py.flanneld.options import Options
from cni_py.flanneld.stores.kubernetes_annotations import DEFAULT_PREFIX, Annotations
from cni_py.kernel.neighbour import Neighbour
from cni_py.kernel.route import Route
from cni_py.node.health import Health
from cni_py.packetfilter.evaluation import reading
from cni_py.packetfilter.iptables import Iptables
from support import apiserver, pki
from support.kube import Cluster

# ---- processes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "place"),
    [
        (["/opt/bin/flanneld", "-iface", "eth0"], 0),
        (["python3", "-IS", "/opt/bin/flanneld", "-iface", "eth0"], 2),
        (["/usr/bin/python3.11", "/opt/bin/flanneld"], 1),
        (["sudo", "/opt/bin/flanneld"], None),
        (["sh", "-c", "flanneld -iface eth0"], None),
        (["python3", "script.py", "/opt/bin/flanneld"], None),
        (["vi", "flanneld"], None),
        (["/opt/bin/flanneld.old"], None),
        ([], None),
    ],
)
def test_process_is_a_flanneld(argv: list[str], place: int | None) -> None:
    assert gather_processes._place(argv) == place


def test_child_that_has_not_executed_its_program_is_no_second_flanneld() -> None:
    parents = {17: 1, 1276: 17, 30: 1}
    daemons = [Daemon(pid, "/opt/bin/flanneld") for pid in parents]
    assert [one.pid for one in gather_processes.without_forks(daemons, parents.__getitem__)] == [17, 30]
    assert gather_processes._parent(os.getpid()) == os.getppid()


@pytest.fixture
def unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gather_processes, "_UNITS", (str(tmp_path / "flanneld.service"),))
    monkeypatch.setattr(os.path, "isdir", lambda path: True if path == "/run/systemd/system" else os.path.exists(path))
    return tmp_path / "flanneld.service"


def test_options_of_a_unit(unit: Path, tmp_path: Path) -> None:
    (tmp_path / "env").write_text('# comment\nFLANNELD_ETCD_PREFIX="/net"\nFLANNELD_IP_MASQ=true\n')
    unit.write_text(f"[Service]\nEnvironmentFile=-{tmp_path}/env\nExecStart=/opt/bin/flanneld \\\n  -subnet-file=/run/x.env\n")
    (tmp_path / "flanneld.service.d").mkdir()
    (tmp_path / "flanneld.service.d/10.conf").write_text('[Service]\nEnvironment="FLANNELD_ETCD_CAFILE=/ca.crt"\n')
    exists, options = gather_processes.of_unit()
    assert exists
    assert options is not None
    assert (options.etcd_prefix, options.subnet_file, options.etcd_cafile) == ("/net", "/run/x.env", "/ca.crt")
    assert gather_processes.unit_files() == [str(unit), f"{unit}.d/10.conf", f"{tmp_path}/env"]


def test_unit_that_cannot_be_read_has_no_options(unit: Path) -> None:
    assert gather_processes.of_unit() == (False, None)
    unit.write_text("[Service]\nExecStart=/opt/bin/flanneld -nosuch\n")
    assert gather_processes.of_unit() == (True, None)


def test_readiness() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        health = Health()
        health.start(listener)
        try:
            daemon = Daemon(1, "flanneld", Options(healthz_ip="127.0.0.1", healthz_port=port))
            health.set_unready("no etcd")
            assert gather_processes._asked(daemon).reasons == ("no etcd",)
            health.set_ready()
            assert gather_processes._asked(daemon).is_ready
        finally:
            health.stop()
    dead = gather_processes._asked(daemon)
    assert (dead.is_ready, "does not answer" in dead.reasons[0]) == (False, True)


# ---- the host -----------------------------------------------------------------------------------


def test_dates_of_certificates(tmp_path: Path) -> None:
    begins = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    ends = begins + timedelta(days=20)
    pki.openssl(tmp_path, "req", "-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-out", "req", "-subj", "/CN=x")
    pki.sign(tmp_path, begins, ends, "crt", "-in", "req", "-selfsign", "-keyfile", "key")
    (tmp_path / "empty").write_text("")
    crt, empty = str(tmp_path / "crt"), str(tmp_path / "empty")
    found = gather_node.certificates(Options(etcd_certfile=crt, etcd_cafile=empty))
    assert [(one.path, one.begins, one.ends) for one in found] == [(crt, begins, ends), (empty, None, None)]
    assert found[1].fault == "it has no certificate"
    assert gather_node.certificates(Options(etcd_certfile="/nosuch"))[0].fault == "No such file or directory"
    assert gather_node.certificates(Options(etcd_certfile=crt, kube_subnet_mgr=True)) == []


def test_programs(tmp_path: Path) -> None:
    for name, text, mode in (
        ("good", "#!/bin/sh\n", 0o755),
        ("mode", "#!/bin/sh\n", 0o644),
        ("empty", "", 0o755),
        ("interpreter", "#!/nosuch/python3\n", 0o755),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(mode)
    (tmp_path / "link").symlink_to("/nosuch")
    (tmp_path / "second").mkdir()
    (tmp_path / "second/mode").write_text("#!/bin/sh\n")
    (tmp_path / "second/mode").chmod(0o755)
    names = ["good", "mode", "empty", "interpreter", "link", "absent"]
    found = {one.name: one.fault for one in gather_node.programs(names, [str(tmp_path)])}
    assert found == {
        "good": "",
        "mode": "it is not executable",
        "empty": "it is empty",
        "interpreter": "its interpreter /nosuch/python3 does not exist",
        "link": "it is a link to /nosuch, which does not exist",
        "absent": f"it is not in {tmp_path}",
    }
    later = gather_node.programs(["mode"], [str(tmp_path), str(tmp_path / "second")])[0]
    assert (later.path, later.fault) == (str(tmp_path / "second/mode"), "")


def elf(machine: int, order: int = 1) -> bytes:
    """Return the head of an ELF file for a machine."""
    return b"\x7fELF\x02" + bytes([order, 1]) + bytes(11) + machine.to_bytes(2, "little" if order == 1 else "big") + bytes(20)


@pytest.mark.parametrize(
    ("head", "fault"),
    [
        (elf(62), ""),
        (elf(3), ""),
        (elf(183), "it is for arm64, and this one is amd64"),
        (elf(22, order=2), "it is for s390x, and this one is amd64"),
        (elf(999), "it is for machine 999, and this one is amd64"),
        (b"Not Found\n", 'it is not a program: it begins with "Not Found"'),
        (b"<!DOCTYPE html><html>", 'it is not a program: it begins with "<!DOCTYPE html><html"'),
        (b"\x1f\x8b\x08\x00", "it is not a program"),
        (b"\x7fELF", "it is not a program"),
        (b"#!/bin/sh\n", ""),
    ],
)
def test_file_that_the_kernel_would_not_execute(head: bytes, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather_node, "_own_machine", lambda: 62)
    monkeypatch.setattr(gather_node, "_is_emulated", lambda machine: machine == 40)
    assert gather_node._why_not_executed(head) == fault


def test_program_of_another_machine_that_the_kernel_emulates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather_node, "_own_machine", lambda: 62)
    monkeypatch.setattr(gather_node, "_is_emulated", lambda machine: machine == 183)
    assert gather_node._why_not_executed(elf(183)) == ""


def test_python_is_for_this_machine() -> None:
    assert gather_node._own_machine() in gather_node._MACHINES


def test_services_in_the_map_of_kube_proxy() -> None:
    key = {"concat": ["10.96.0.1", "tcp", 443]}
    elements = [
        [key, {"goto": {"target": "x"}}],
        [{"elem": {"val": {"concat": ["fd00:96::1", "udp", 53]}}}, {"drop": None}],
        [key, {}],
    ]
    objects = [
        {"table": {}},
        {"map": {"name": "service-ips", "elem": elements}},
        {"map": {"name": "service-nodeports", "elem": [[{"concat": ["tcp", 80]}, {}]]}},
    ]
    assert gather_services.addresses(objects) == [ip_address("10.96.0.1"), ip_address("fd00:96::1")]
    assert gather_services.addresses([{"map": {"name": "service-ips"}}]) == []


def test_configurations_are_in_the_order_of_a_runtime(tmp_path: Path) -> None:
    for name in ("20.conflist", "10.conf", "05.json", "30.txt"):
        (tmp_path / name).write_text("{}")
    assert [os.path.basename(one.path) for one in gather_node.conf_files(str(tmp_path))] == [
        "05.json",
        "10.conf",
        "20.conflist",
    ]
    assert gather_node.conf_files(str(tmp_path / "nosuch")) == []


def test_disks_are_listed_once(tmp_path: Path) -> None:
    found = gather_node.disks([str(tmp_path), str(tmp_path / "does/not/exist")])
    assert len(found) == 1
    assert found[0].total_bytes > found[0].free_bytes > 0


def test_port_of_a_program_is_found() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        assert f"process {os.getpid()}" in gather_node.port_holders(port)[0]
    assert gather_node.port_holders(port) == []


def test_tables_whose_program_is_missing_are_not_taken_for_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_nft_tools", lambda _: [Iptables(4, "-nft")])
    monkeypatch.setattr(Iptables, "find", lambda *_: None)
    with pytest.raises(NotAvailable, match='"iptables-nft-save" is not installed'):
        reading.read()


# ---- Kubernetes ---------------------------------------------------------------------------------


def node(**changes: Any) -> dict[str, Any]:
    annotations = {
        "kube-subnet-manager": "true",
        "backend-type": "vxlan",
        "backend-data": '{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}',
        "public-ip": "192.168.123.11",
    } | changes.pop("annotations", {})
    kept = {f"{DEFAULT_PREFIX}/{key}": value for key, value in annotations.items() if value is not None}
    return {
        "metadata": {"name": "n1", "annotations": kept},
        "spec": {"podCIDRs": ["10.244.1.0/24"]} | changes.pop("spec", {}),
        "status": changes,
    }


@pytest.mark.parametrize(
    ("item", "fault", "unavailable", "cidrs"),
    [
        (node(), "", "", ("10.244.1.0/24",)),
        (node(annotations={"public-ip": None}), "public-ip is missing", "", ("10.244.1.0/24",)),
        (node(annotations={"backend-data": "{"}), "backend-data is no JSON", "", ("10.244.1.0/24",)),
        (node(spec={"podCIDRs": []}), "missing IPv4 address on n.Spec.PodCIDRs", "", ()),
        (
            node(conditions=[{"type": "NetworkUnavailable", "status": "True", "message": "no route created"}]),
            "",
            "no route created",
            ("10.244.1.0/24",),
        ),
        (node(conditions=[{"type": "NetworkUnavailable", "status": "False", "message": "x"}]), "", "", ("10.244.1.0/24",)),
    ],
    ids=["healthy", "no address", "no JSON", "no podCIDR", "unavailable", "available"],
)
def test_node_of_kubernetes(item: dict[str, Any], fault: str, unavailable: str, cidrs: tuple[str, ...]) -> None:
    found = gather_kubernetes.node_of(item, Annotations(DEFAULT_PREFIX), ipv4=True, ipv6=False)
    assert fault in found.fault
    assert bool(fault) == bool(found.fault)
    assert (found.name, found.managed, found.network_unavailable, found.pod_cidrs) == ("n1", True, unavailable, cidrs)


def test_nodes_of_a_cluster(cluster: Cluster) -> None:
    """Read from an API server: our node, and one with half of its annotations; the call is one that flanneld may make."""
    half = {key: text for key, text in apiserver.vxlan(2).items() if key != "public_ip"}
    cluster.server.put(apiserver.node(1, **apiserver.vxlan(1)))
    cluster.server.put(apiserver.node(2, **half))
    options = Options(kube_subnet_mgr=True, kube_api_url=cluster.server.url)
    found = gather_kubernetes.read(options, {"NODE_NAME": "node1"}, None)
    assert found.node is not None
    assert (found.fault, found.node.fault, found.node.pod_cidrs) == ("", "", ("10.244.1.0/24",))
    assert [(one.name, one.managed, one.fault) for one in found.others] == [("node2", True, "public-ip is missing")]


def test_api_that_does_not_know_the_node_is_a_fault(cluster: Cluster) -> None:
    options = Options(kube_subnet_mgr=True, kube_api_url=cluster.server.url)
    assert "404" in gather_kubernetes.read(options, {"NODE_NAME": "nosuch"}, None).fault


# ---- probes -------------------------------------------------------------------------------------


def wanted(number: int, *, has_tunnel: bool = True) -> Wanted:
    subnet = IPv4Network((int(IPv4Address("10.0.0.0")) + 256 * number, 24))
    lease = Lease(Subnets(subnet), Attributes(IPv4Address("192.168.123.11"), backend_type="vxlan"))
    neighbour = Neighbour("flannel.1", subnet.network_address, "02:00:00:00:00:01") if has_tunnel else None
    return Wanted(lease, subnet, Route(subnet, "flannel.1"), neighbour)


def test_end_of_the_tunnel_is_asked_or_the_gateway_of_the_pods() -> None:
    (tunnel,) = probe.targets_of([wanted(5)], 1450)
    (direct,) = probe.targets_of([wanted(5, has_tunnel=False)], 1500)
    assert (str(tunnel.end), str(direct.end)) == ("10.0.5.0", "10.0.5.1")
    assert (str(tunnel.beyond), direct.beyond) == ("10.0.5.2", None)


def test_error_counts_as_an_answer_if_the_peer_sent_it() -> None:
    (target,) = probe.targets_of([wanted(5)], 1450)
    senders = ("10.0.5.0", "10.0.5.1", "192.168.123.11", "192.168.123.1", "10.0.6.0", "fe80::1%eth0")
    assert [target.is_sender(sender) for sender in senders] == [True, True, True, False, False, False]
    assert probe._is_error(echo(11, 0, inner=echo(8, 0)), 4)
    assert not probe._is_error(echo(0, 0), 4)


def test_sample_is_even_bounded_and_has_what_was_named() -> None:
    targets = probe.targets_of([wanted(number) for number in range(1000)], 1450)
    chosen = probe._sample(targets, frozenset())
    assert len(chosen) == probe.SAMPLE
    assert chosen[0] is targets[0]
    assert chosen == probe._sample(targets, frozenset())
    assert probe._sample(targets[:10], frozenset()) == targets[:10]
    assert probe._sample(targets, frozenset({"10.0.9.0/24"})) == [targets[9]]


def echo(kind: int, code: int, identifier: int = 7, inner: bytes = b"") -> bytes:
    head = bytes([0x45]) + bytes(19)
    if inner:
        return head + struct.pack("!BBHI", kind, code, 0, 0) + inner
    return head + struct.pack("!BBHHH", kind, code, 0, identifier, 0) + struct.pack("!IB", 3, 1) + bytes(11)


@pytest.mark.parametrize(
    ("packet", "found"),
    [
        (echo(0, 0), (3, 1)),
        (echo(0, 0, identifier=8), None),
        (echo(8, 0), None),
        (echo(11, 0, inner=echo(8, 0)), (3, 1)),
        (echo(3, 2, inner=echo(8, 0)), (3, 1)),
        (echo(3, 1, inner=echo(8, 0)), None),
        (echo(3, 4, inner=echo(8, 0)), None),
        (echo(3, 2, inner=echo(8, 0)[:24]), None),
        (b"\x45", None),
    ],
    ids=["reply", "of another", "request", "time exceeded", "protocol", "host unreachable", "too large", "short", "shorter"],
)
def test_replies(packet: bytes, found: tuple[int, int] | None) -> None:
    assert probe._answer(packet, 4, 7) == found


def test_closed_port_refuses() -> None:
    here = ip_address("127.0.0.1")
    assert probe._refused([here], kind=socket.SOCK_STREAM) == {here}
    assert probe._refused([here]) == {here}
