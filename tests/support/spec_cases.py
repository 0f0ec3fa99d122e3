"""Shared parts of the files in spec/: the spec's versions and verbs, a configuration per plugin, raw calls."""

from __future__ import annotations

import json
import re
import subprocess
from itertools import count
from typing import Any

import pytest

from cni_py import plugin_table
from support.mains import NICS, UPLINK, has_kind
from support.namespaces import PATH, Host, Reply, Sandbox

ELSEWHERE = ("vrf", "dhcp")
"""Plugins that need a kernel that few have, a daemon and a server: tests/netns has tests of their own."""
PLUGINS = tuple(plugin for plugin, row in plugin_table.PLUGINS.items() if has_kind(row.link) and plugin not in ELSEWHERE)
"""The plugins that this kernel can run; `make test-kernel` has one that runs all."""
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
VERBS = ("ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION")
FIRST_VERSION = {"CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}

BOTH_FAMILIES = (
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.91.1/24\nFLANNEL_IPV6_NETWORK=fd00:10::/48\n"
    "FLANNEL_IPV6_SUBNET=fd00:10:0:5::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
)
STATIC = [{"address": "10.1.2.5/24", "gateway": "10.1.2.1"}, {"address": "fd00:1::5/64", "gateway": "fd00:1::1"}]
EXECUTABLE = "executable"
"""The parameter of the fixture `node` by which its plugins are executed; without it each call is a fork."""
every_version = pytest.mark.parametrize(
    ("node", "version"),
    [*(pytest.param(None, version, id=version) for version in VERSIONS), pytest.param(EXECUTABLE, "1.1.0", id=EXECUTABLE)],
    indirect=["node"],
)
"""Pairs of way and version: all versions without the start of an interpreter, and one of them by the executables."""
PREVIOUS_IP = "10.1.2.3"
HOST_END = "hostend0"
CHAINED = ("bandwidth", "tuning", "sbr")
"""Plugins that change an existing interface: for them a sandbox has ``eth0``, a veth."""

_numbers = count()


def has(version: str, verb: str) -> bool:
    """Return whether this version of the spec has the verb."""
    return VERSIONS.index(version) >= VERSIONS.index(FIRST_VERSION.get(verb, "0.1.0"))


def conf(plugin: str, version: str | None = "1.1.0", **keys: Any) -> dict[str, Any]:
    """A configuration that works: one address of each family, but for loopback; the network's name is the plugin's.

    portmap, firewall and those of ``CHAINED`` follow another plugin, whose result is in it.
    """
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.2.9", "mtu": 1400, "priority": 7}],
    }
    own: dict[str, Any] = {
        "flannel": {"delegate": {"bridge": "flannel0", "isDefaultGateway": True}},
        "bridge": {"bridge": "bridge0", "isGateway": True, "ipam": ipam, "dns": {"nameservers": ["10.1.2.1"], "search": ["a"]}},
        "host-local": {"ipam": ipam},
        "ptp": {"ipMasq": True, "ipam": ipam, "dns": {"nameservers": ["10.1.2.1"]}},
        "macvlan": {"master": "up0", "ipam": ipam},
        "ipvlan": {"master": "up0", "ipam": ipam},
        "vlan": {"master": "up0", "vlanId": 100, "ipam": ipam},
        "dummy": {"ipam": ipam},
        "tap": {"ipam": ipam},
        "host-device": {"device": "nic1", "ipam": ipam},
        "static": {"ipam": {"type": "static", "addresses": STATIC, "routes": ipam["routes"]}},
        "portmap": {
            "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
            "prevResult": previous(version or "0.1.0"),
        },
        "loopback": {},
        "sbr": {"prevResult": previous(version or "0.1.0")},
        "firewall": {"prevResult": previous(version or "0.1.0")},
        "tuning": {"mtu": 1400, "prevResult": previous(version or "0.1.0")},
        "bandwidth": {
            "runtimeConfig": {
                "bandwidth": {"ingressRate": 8 << 20, "ingressBurst": 8 << 20, "egressRate": 8000, "egressBurst": 8 << 14}
            },
            "prevResult": previous(version or "0.1.0"),
        },
    }[plugin]
    about = {"name": f"{plugin}-net", "type": plugin} | ({} if version is None else {"cniVersion": version})
    return about | own | keys


def previous(version: str) -> dict[str, Any]:
    """Return the result of a plugin before portmap, in this version's form."""
    address, gateway = f"{PREVIOUS_IP}/24", "10.1.2.1"
    if version in VERSIONS[:2]:
        return {"cniVersion": version, "ip4": {"ip": address, "gateway": gateway}}
    family = {} if version in VERSIONS[5:] else {"version": "4"}
    ends = [{"name": HOST_END}, {"name": "eth0", "sandbox": "/run/netns/any"}]
    return {
        "cniVersion": version,
        "interfaces": ends,
        "ips": [{**family, "address": address, "gateway": gateway, "interface": 1}],
    }


def supports(plugin: str, version: str) -> bool:
    """Return whether the plugin accepts this version, as the Go plugin of its name."""
    return VERSIONS.index(version) >= VERSIONS.index(plugin_table.PLUGINS[plugin].since)


def new_sandbox(host: Host, plugin: str = "") -> Sandbox:
    """A sandbox whose name no other test has; for a plugin of `CHAINED` with the interface that it changes."""
    made = Sandbox(f"box{next(_numbers)}")
    provide_links(host, plugin)
    # of the test before: the kernel deletes it some time after its namespace
    script = [f"ip netns add {made.name}", *without_host_end(host)]
    if plugin in CHAINED:
        script += [
            f"nsenter --net={made.path} sh -c 'for of in all default; do echo 0 >/proc/sys/net/ipv6/conf/$of/accept_dad; done'",
            f"ip link add {HOST_END} type veth peer name eth0 netns {made.name}",
            f"ip link set {HOST_END} up",
            f"ip -n {made.name} addr add {PREVIOUS_IP}/24 dev eth0",
            f"ip -n {made.name} link set eth0 up",
        ]
    host.run("\n".join(script))
    return made


def delete_sandbox(host: Host, sandbox: Sandbox) -> None:
    """Delete what new_sandbox() made."""
    host.run("\n".join([*without_host_end(host), f"ip netns delete {sandbox.name}"]), check=False)


def without_host_end(host: Host) -> list[str]:
    """The command that deletes the other end of a sandbox's interface, if there is one."""
    return [f"ip link del {HOST_END} 2>&1 || :"] if has_link(host, HOST_END) else []


def has_link(host: Host, name: str) -> bool:
    return host.path(f"/sys/class/net/{name}").exists()


def provide_links(host: Host, plugin: str) -> None:
    """Create the host's links that a plugin's configuration names, which even STATUS looks for."""
    if plugin in ("macvlan", "ipvlan", "vlan") and not has_link(host, "up0"):
        host.run(UPLINK)
    if plugin == "host-device" and not has_link(host, "nic1"):  # it was deleted with the sandbox of another test
        host.run("for n in 1 2; do ip link del wire$n 2>&1 || :; done; " + NICS)


def host_ends(host: Host) -> list[str]:
    """Host ends of pods, without the links that new_sandbox() makes for plugins that need one."""
    return [name for name in host.host_ends() if not re.fullmatch(rf"{HOST_END}|up\d|nic\d|wire\d", name)]


def plugin_of(request: pytest.FixtureRequest) -> str:
    """The parameter ``plugin`` of a test, "" if it has none."""
    call = getattr(request.node, "callspec", None)
    return str(call.params.get("plugin", "")) if call else ""


def new_id() -> str:
    """A container id that no other test has."""
    return f"container{next(_numbers)}"


def execute(
    host: Host,
    program: str,
    env: dict[str, str | bytes],
    stdin: bytes = b"",
    redirect: str = "",
) -> tuple[int, bytes, bytes]:
    """Execute a plugin (a name in bin_dir, or a path) with exactly this environment: status, stdout, stderr.

    `redirect`: for the shell, as in "<&-".
    """
    path = program if "/" in program else f"{host.bin_dir}/{program}"
    if not redirect:
        return host.plugin(path, env, stdin)
    argv = host.command("sh", "-c", f'exec "$0" {redirect}', path)
    done = subprocess.run(argv, input=stdin, env=env, capture_output=True, timeout=30, check=False)
    return done.returncode, done.stdout, done.stderr


def environment(host: Host, verb: str, sandbox: Sandbox | str = "", container_id: str = "c1") -> dict[str, str | bytes]:
    """Return the variables that a runtime sets."""
    of_attachment = {"CNI_CONTAINERID": container_id, "CNI_NETNS": str(sandbox), "CNI_IFNAME": "eth0"}
    return {"PATH": PATH, "CNI_COMMAND": verb, "CNI_PATH": host.bin_dir} | (of_attachment if has_attachment(verb) else {})


def has_attachment(verb: str) -> bool:
    """Return whether the verb is about one container."""
    return verb in ("ADD", "DEL", "CHECK")


def error_of(reply: Reply | tuple[int, bytes, bytes]) -> dict[str, Any]:
    """The error object, checked: as the spec has it, alone on standard output, exit status not 0, no traceback."""
    if isinstance(reply, Reply):
        rc, error, stderr = reply.rc, reply.json, reply.stderr
    else:
        rc, error, stderr = reply[0], json.loads(reply[1]), reply[2].decode(errors="replace")
    assert "Traceback" not in stderr, stderr
    assert rc == 1, error
    assert error is not None
    assert set(error) <= {"cniVersion", "code", "msg", "details"}
    assert error["cniVersion"] in VERSIONS
    assert type(error["code"]) is int
    assert error["code"] > 0
    assert isinstance(error["msg"], str)
    assert error["msg"]
    assert isinstance(error.get("details", ""), str)
    assert "Traceback" not in error["msg"] + error.get("details", "")
    return error


def code_of(reply: Reply | tuple[int, bytes, bytes]) -> int:
    return error_of(reply)["code"]
