"""The deployment guide as a test: every command from the certificates to a ping between pods of different nodes.

Three nodes, named and addressed as in the guide, with Docker's bridge and Docker's FORWARD policy. Different from it:

- ``/run`` takes the place of ``/etc``, which the machines of a test share: ``/run/kubernetes/pki/etcd``, ``/run/kube-flannel``;
- no systemd runs here: what it does with the unit and its environment file is done by the test;
- the guide gives ``server.key`` to all nodes; here node 2 has a client certificate, as ``conf/flanneld.env`` asks for.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from integration.etcd import servers
from integration.etcd.cluster import CONFIG, PREFIX, Cluster, Etcd, Flanneld

pytestmark = pytest.mark.netns

ROOT = Path(__file__).resolve().parents[2]
MASTER, NODE1, NODE2 = NODES = ("k8s-master", "k8s-node1", "k8s-node2")
PKI, CONF = "/run/kubernetes/pki/etcd", "/run/kube-flannel"
ENDPOINT = "https://192.168.123.11:2379"
KLOG = re.compile(r"[IWE]\d{4} \d\d:\d\d:\d\d\.\d{6} (?=[ \d]{7} ) *(?P<pid>\d+) [a-z_0-9]+\.py:\d+\] (?P<text>.*)")

FLANNEL_CONF = f"""\
FLANNEL_OPTIONS="-etcd-cafile={PKI}/ca.crt -etcd-certfile={PKI}/server.crt -etcd-keyfile={PKI}/server.key"
FLANNEL_ETCD_ENDPOINTS="{ENDPOINT}"
"""
EXEC_START = r"""/opt/bin/flanneld \
   -etcd-endpoints=${FLANNEL_ETCD_ENDPOINTS} \
   $FLANNEL_OPTIONS
"""
CONFLIST = """\
{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "flannel",
      "delegate": {
        "hairpinMode": true,
        "isDefaultGateway": true
      }
    },
    {
      "type": "portmap",
      "capabilities": {
        "portMappings": true
      }
    }
  ]
}
"""


def test_guide(bin_dir: Path, tmp_path: Path) -> None:
    with Cluster(bin_dir, tmp_path, NODES, ifname="ens33") as cluster:
        for name in NODES:
            cluster.run(name, "ip link add docker0 type bridge; ip addr add 172.17.0.1/16 dev docker0; ip link set docker0 up")
            cluster.run(name, "iptables -P FORWARD DROP")
        distribute_certificates(cluster)
        etcd = Etcd(cluster, MASTER, pki=PKI).wait()
        check_member(etcd)
        etcd.ctl("put", f"{PREFIX}/config", CONFIG)
        assert etcd.ctl("get", f"{PREFIX}/config") == f"{PREFIX}/config\n{CONFIG}\n"
        daemons = start_daemons(cluster)
        check_first_log(daemons[MASTER])
        check_leases(cluster, etcd)
        start_again(cluster, daemons[MASTER])
        for number, name in enumerate((MASTER, MASTER, NODE1, NODE1, NODE2), 1):
            cluster.attach(f"pod{number}", name)
        for name in (MASTER, NODE1):
            check_links(cluster, name)
        matrix = cluster.ping(size=1450)
        assert matrix.is_complete, "\n".join(matrix.lines())
        refused = cluster.run("pod1", f"ping -c 1 -W 1 -s 1423 -M do {cluster.pods['pod3'][1]} 2>&1 || true")
        assert re.search("message too long", refused, re.IGNORECASE), refused
        for daemon in daemons.values():
            daemon.signal("TERM")
        assert cluster.ping().is_complete, "what flanneld made stays when it ends"


def distribute_certificates(cluster: Cluster) -> None:
    """Step 8 of the guide: to every node, by its names; to node 2 a client's in place of the server's."""
    made = cluster.directory / "shared"
    servers.make_certificates(made, address=cluster.addresses[MASTER])
    for name in NODES:
        own = "client" if name == NODE2 else "server"
        files = {"ca.pem": f"{PKI}/ca.crt", f"{own}.pem": f"{PKI}/{own}.crt", f"{own}.key": f"{PKI}/{own}.key"}
        if name == NODE2:
            files = {
                "ca.pem": f"{CONF}/etcd-ca.crt",
                "client.pem": f"{CONF}/flanneld.crt",
                "client.key": f"{CONF}/flanneld.key",
            }
        for source, target in files.items():
            cluster.path(name, target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(made / source, cluster.path(name, target))


def check_member(etcd: Etcd) -> None:
    """Step 2: etcdctl member list -w table. The number is the guide's too: it follows from name and addresses."""
    table = etcd.ctl("member", "list", "-w", "table").replace("│", "|")  # etcdctl 3.7 draws its lines
    row = [cell.strip() for cell in table.splitlines()[3].strip("|").split("|")]
    assert row == ["d9fb26556fe7b4a5", "started", MASTER, "https://192.168.123.11:2380", ENDPOINT, "false"]


def start_daemons(cluster: Cluster) -> dict[str, Flanneld]:
    """Steps 5 to 9: the master by its command line, node 1 as the guide's unit does, node 2 by our ``conf/flanneld.env``."""
    shipped = json.loads((ROOT / "conf" / "10-flannel.conflist").read_text())
    assert shipped.pop("cniVersions") == ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]  # which the guide's runtime ignores
    assert json.loads(CONFLIST) == shipped
    for name in NODES:
        cluster.path(name, "/etc/cni/net.d/10-flannel.conflist").write_text(CONFLIST)
    by_unit = as_systemd_does(EXEC_START, FLANNEL_CONF)
    options = [
        f"-etcd-endpoints={ENDPOINT}",
        f"-etcd-cafile={PKI}/ca.crt",
        f"-etcd-certfile={PKI}/server.crt",
        f"-etcd-keyfile={PKI}/server.key",
    ]
    assert by_unit == ["/opt/bin/flanneld", *options]
    assert cluster.run(MASTER, f"{cluster.programs.cni_py} config get -- {shlex.join(options)}") == f"{CONFIG}\n"
    ours = (ROOT / "conf" / "flanneld.env").read_text().replace("/etc/kube-flannel", CONF)
    env = environment_file(ours)
    assert as_systemd_does(exec_start((ROOT / "conf" / "flanneld.service").read_text()), ours) == ["@PREFIX@/bin/flanneld"]
    daemons = {
        MASTER: cluster.start_flanneld(MASTER, options),
        NODE1: cluster.start_flanneld(NODE1, by_unit[1:], environment_file(FLANNEL_CONF)),
        NODE2: cluster.start_flanneld(NODE2, env=env),
    }
    for daemon in daemons.values():
        daemon.wait_ready()
    return daemons


def environment_file(text: str) -> dict[str, str]:
    """EnvironmentFile= of systemd: a line is NAME=value, quotes around it fall away."""
    lines = [line for line in text.splitlines() if line.strip() and line[0] not in "#;"]
    return {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines)}


def exec_start(unit: str) -> str:
    found = re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    assert found is not None
    return found[1]


def as_systemd_does(command: str, env: str) -> list[str]:
    """ExecStart=: ``${NAME}`` is inserted in its place, ``$NAME`` as a word of its own becomes words."""
    variables, argv = environment_file(env), []
    for word in shlex.split(command.replace("\\\n", "")):
        if word.startswith("$") and word[1] != "{":
            argv += variables[word[1:]].split()
        else:
            argv.append(re.sub(r"\$\{(\w+)\}", lambda found: variables[found[1]], word))
    return argv


def texts(daemon: Flanneld) -> list[str]:
    """The log without the heads of the lines, which are klog's."""
    found = [KLOG.fullmatch(line) for line in daemon.log.splitlines()]
    assert all(found), daemon.log
    assert len({line["pid"] for line in found if line}) == 1
    return [line["text"] for line in found if line]


def check_in_order(lines: list[str], wanted: list[str]) -> None:
    """Each of these patterns, in this order, with anything between."""
    rest = iter(lines)
    for pattern in wanted:
        assert any(re.fullmatch(pattern, line) for line in rest), (pattern, lines)


ALWAYS = [
    "Changing default FORWARD chain policy to ACCEPT",
    "Wrote subnet file to /run/flannel/subnet.env",
    r"Running backend\.",
]
"""And then, of two threads: these."""
SOON = ["watching for new subnet leases", r"Waiting for 22h59m5\d(\.\d+)?s to renew lease"]


def check_first_log(daemon: Flanneld) -> None:
    daemon.until_logged("to renew lease")
    lines = texts(daemon)
    options = (
        f"etcdEndpoints:{ENDPOINT} etcdPrefix:/coreos.com/network etcdKeyfile:{PKI}/server.key etcdCertfile:{PKI}/server.crt"
    )
    assert lines[0].startswith(f"CLI flags config: {{{options} etcdCAFile:{PKI}/ca.crt ")
    allocated = r"Allocated lease \(ip: 10\.244\.\d+\.0/24 ipv6: ::/0\) to current node \(192\.168\.123\.11\)"
    check_in_order(lines, [allocated, *ALWAYS])
    for pattern in SOON:
        check_in_order(lines, [ALWAYS[-1], pattern])


def start_again(cluster: Cluster, daemon: Flanneld) -> None:
    """``systemctl restart flanneld``: the log that the guide shows is that of a node that has a lease."""
    subnet, link = (
        cluster.subnet(MASTER),
        cluster.run(MASTER, "cat /sys/class/net/flannel.1/address /sys/class/net/flannel.1/ifindex"),
    )
    daemon.signal("TERM")
    assert texts(daemon)[-1] == "Exiting cleanly..."
    daemon.start()
    daemon.wait_ready()
    daemon.until_logged("to renew lease")
    found = rf"Found lease \(ip: {re.escape(subnet)} ipv6: ::/0\) for current IP \(192\.168\.123\.11\), reusing"
    check_in_order(texts(daemon), [found, *ALWAYS])
    for pattern in SOON:
        check_in_order(texts(daemon), [found, pattern])
    assert cluster.run(MASTER, "cat /sys/class/net/flannel.1/address /sys/class/net/flannel.1/ifindex") == link


def check_leases(cluster: Cluster, etcd: Etcd) -> None:
    """Leases in etcd are those that the nodes wrote down for their plugins."""
    leases = etcd.leases()
    assert sorted(lease["PublicIP"] for lease in leases.values()) == sorted(cluster.addresses[name] for name in NODES)
    for name in NODES:
        key = etcd.key_of(cluster.addresses[name])
        assert cluster.subnet(name) == key.replace("-", "/")
        assert cluster.path(name, "/run/flannel/subnet.env").read_text() == (
            "FLANNEL_NETWORK=10.244.0.0/16\n"
            f"FLANNEL_SUBNET={key.replace('.0-', '.1/')}\n"
            "FLANNEL_MTU=1450\n"
            "FLANNEL_IPMASQ=false\n"
        )
        mac = cluster.path(name, "/sys/class/net/flannel.1/address").read_text().strip()
        assert (leases[key]["BackendType"], leases[key]["BackendData"]) == ("vxlan", {"VNI": 1, "VtepMAC": mac})


def check_links(cluster: Cluster, name: str) -> None:
    """``ip a`` as the guide prints it; its numbers of links and MACs are others on every machine."""
    shown = re.sub(r"^\d+: ", "", cluster.run(name, "ip a"), flags=re.MULTILINE)
    net = cluster.subnet(name).removesuffix(".0/24")
    mac = r"link/ether [0-9a-f:]{17} brd ff:ff:ff:ff:ff:ff"
    life = r"\n       valid_lft forever preferred_lft forever"
    link_local = rf"\n    inet6 fe80::[0-9a-f:]+/64 scope link (?:\S+ )*{life}"
    up = r"<BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue"
    link = r"group default (?:qlen 1000)?"
    host_end = rf"veth[0-9a-f]{{8}}@if\d+: {up} master cni0 state UP {link}\n    {mac} link-netns \S+\n"
    host_end += rf"    altname cni:\S+{link_local}\n"
    for what in (
        rf"flannel\.1: {up} state UNKNOWN {link}\n    {mac}\n    inet {net}\.0/32 scope global flannel\.1{life}{link_local}",
        rf"cni0: {up} state UP {link}\n    {mac}\n    inet {net}\.1/24 brd {net}\.255 scope global cni0{life}{link_local}",
        rf"(?:{host_end}){{2}}",
    ):
        assert re.search(what, shown), (what, shown)
