"""Return to the Go plugins while our pods run: `cni-py sweep --convert-to-go`, which `make uninstall` runs.

Go's DEL then deletes everything of such a pod at the first attempt, and the next pod with its port is reachable.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.namespaces import Host, Sandbox
from support.pods import V4, V6, bridge_conf

ROOT = Path(__file__).resolve().parents[2]
BRIDGE = bridge_conf(V4, V6, isDefaultGateway=True, ipMasq=True) | {"cniVersion": "1.0.0"}
PORTMAP = {"cniVersion": "1.0.0", "name": "net", "type": "portmap", "snat": True}
SERVER = """
import select, socket, sys
server = socket.create_server(("", 80))
print("ready", flush=True)
while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
    connection, _ = server.accept()
    connection.sendall(b"NAME")
    connection.close()
"""


@pytest.fixture
def host(host: Host) -> Host:
    host.run(
        "ip link add o type veth peer name o1; ip netns add out; ip link set o1 netns out; ip addr add 198.51.100.1/24 dev o;"
        "ip link set o up; ip -n out addr add 198.51.100.2/24 dev o1; ip -n out link set o1 up"
    )
    return host


def ports(**entry: Any) -> dict[str, Any]:
    return PORTMAP | {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"} | entry]}}


def call(host: Host, bin_dir: str, verb: str, portmap: dict[str, Any], pod: Sandbox, prev: Any = None) -> Any:
    """ADD or DEL of bridge and portmap, by the plugins in this directory."""
    of: dict[str, Any] = {"sandbox": pod, "container_id": pod.name, "cni_path": bin_dir}
    if verb == "ADD":
        result = host.ok(f"{bin_dir}/bridge", "ADD", BRIDGE, **of)
        return host.ok(f"{bin_dir}/portmap", "ADD", portmap, prev=result, **of)
    host.ok(f"{bin_dir}/portmap", "DEL", portmap, prev=prev, **of)
    return host.ok(f"{bin_dir}/bridge", "DEL", BRIDGE, prev=prev, **of)


def serve(host: Host, pod: Sandbox) -> subprocess.Popen[str]:
    """A server that says its pod's name, until its standard input is closed."""
    code = SERVER.replace("NAME", pod.name)
    command = host.command(sys.executable, "-c", code, sandbox=pod)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


OUTSIDE = Sandbox("out")


def fetch(host: Host, address: str = "198.51.100.1", sandbox: Sandbox | None = OUTSIDE) -> str:
    code = f"import socket; s = socket.create_connection(('{address}', 8080), 2); print(s.recv(9).decode())"
    return host.run(f'{sys.executable} -c "{code}"', sandbox, check=False).strip()


def convert(host: Host) -> str:
    done = host.execute([f"{Path(host.bin_dir).parent.parent}/bin/cni-py", "sweep", "--convert-to-go"])
    assert done.returncode == 0, done
    return done.stderr


def elements(host: Host) -> list[str]:
    return [line for line in host.run("nft list ruleset").splitlines() if 'comment "c1 eth0' in line]


MAPPINGS = {
    "any address": ports(),
    "one address": ports(hostIP="198.51.100.1"),
    "without snat": ports() | {"snat": False},
    "masqAll": ports() | {"masqAll": True},
    "another mark": ports() | {"markMasqBit": 20},
}


@pytest.mark.parametrize("portmap", MAPPINGS.values(), ids=MAPPINGS.keys())
def test_next_pod_on_the_port_is_reachable(host: Host, go_plugins: str, portmap: dict[str, Any]) -> None:
    first, second = host.netns("c1"), host.netns("c2")
    result = call(host, host.bin_dir, "ADD", portmap, first)
    server = serve(host, first)
    assert fetch(host) == "c1"
    said = convert(host)
    assert "converted to iptables: c1 eth0 net: " in said
    assert host.run("nft list table inet cni_py", check=False) == ""
    assert fetch(host) == "c1"
    if portmap.get("snat", True) and "hostIP" not in portmap["runtimeConfig"]["portMappings"][0]:
        assert fetch(host, "127.0.0.1", None) == "c1"
    assert host.run("ping -c1 -W2 198.51.100.2", first)
    call(host, go_plugins, "DEL", portmap, first, result)
    server.communicate("")
    rules = host.run("iptables-save -t nat; ip6tables-save -t nat")
    assert "c1" not in rules, rules
    call(host, go_plugins, "ADD", portmap, second)
    server = serve(host, second)
    assert fetch(host) == "c2"
    server.communicate("")


def test_our_own_del_finds_what_was_handed_over(host: Host) -> None:
    pod = host.netns("c1")
    result = call(host, host.bin_dir, "ADD", ports(), pod)
    convert(host)
    call(host, host.bin_dir, "DEL", ports(), pod, result)
    rules = host.run("iptables-save -t nat; ip6tables-save -t nat")
    assert "c1" not in rules
    assert host.host_ends() == ["o"]


def test_without_records_the_reservation_names_the_network(host: Host) -> None:
    pod = host.netns("c1")
    call(host, host.bin_dir, "ADD", ports(), pod)
    host.run("rm -rf /run/cni-py/attachments /run/cni-py/portmap")
    assert "converted to iptables: c1 eth0 net: " in convert(host)


def test_what_cannot_be_handed_over_stays_and_is_named(host: Host) -> None:
    """Conditions of nftables, and an element whose network no file names."""
    first, second = host.netns("c1"), host.netns("c2")
    call(host, host.bin_dir, "ADD", ports(hostPort=8081) | {"conditionsV4": ["ip", "saddr", "198.51.100.0/24"]}, first)
    call(host, host.bin_dir, "ADD", ports(), second)
    done = host.execute([f"{Path(host.bin_dir).parent.parent}/bin/cni-py", "sweep", "--convert-to-go"])
    assert done.returncode == 1
    assert 'not converted: "c1 eth0' in done.stderr
    assert "converted to iptables: c2 eth0 net: " in done.stderr
    assert elements(host)
    host.run("rm -rf /run/cni-py /var/lib/cni/networks")
    done = host.execute([f"{Path(host.bin_dir).parent.parent}/bin/cni-py", "sweep", "--convert-to-go"])
    assert "no file names its network" in done.stderr


def test_nothing_to_convert(host: Host) -> None:
    assert "nothing to convert" in convert(host)


def test_table_that_the_last_pod_left_is_deleted(host: Host) -> None:
    pod = host.netns("c1")
    for verb in ("ADD", "DEL"):
        call(host, host.bin_dir, verb, ports(), pod)
    assert host.run("nft list table inet cni_py") != ""
    assert "nothing to convert" in convert(host)
    assert host.run("nft list table inet cni_py", check=False) == ""


def test_uninstall_hands_over(host: Host, go_plugins: str, tmp_path: Path) -> None:
    """The whole return: the Go plugins are where they were, and delete our pod."""
    pod = host.netns("c1")
    host.run(f"mkdir -p /run/opt/cni/bin; cp {go_plugins}/bridge {go_plugins}/host-local {go_plugins}/portmap /run/opt/cni/bin")
    install = f"{ROOT}/build/venv/bin/python {ROOT}/integration/install"
    host.run(f"{install} install --prefix /run/opt --replace --no-units")
    result = call(host, "/run/opt/cni/bin", "ADD", ports(), pod)
    server = serve(host, pod)
    said = host.run(f"{install} uninstall --prefix /run/opt")
    assert "converted to iptables: c1 eth0 net: " in said
    assert fetch(host) == "c1"
    server.communicate("")
    call(host, "/run/opt/cni/bin", "DEL", ports(), pod, result)
    assert "c1" not in host.run("iptables-save -t nat; ip6tables-save -t nat")
    assert host.host_ends() == ["o"]
