"""The main plugins whose link is of a kind of its own: a configuration of each for every pod, and the host that it needs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from cni_py.plugin_table import PLUGINS
from support.namespaces import Host
from support.pods import NO_DAD

IPAM = {
    "type": "host-local",
    "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]],
    "routes": [
        {"dst": "10.7.0.0/16"},
        {"dst": "10.8.0.0/16", "gw": "10.1.0.1", "mtu": 1300, "advmss": 1200, "priority": 7},
        {"dst": "10.9.0.0/16", "table": 100},
        {"dst": "fd00:9::/64"},
    ],
}
UPLINK = "ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up\n"
"""A link of the host, with a wire; it is what a macvlan, ipvlan or vlan is made on."""

NICS = (
    "for n in 1 2; do ip link add nic$n type veth peer name wire$n; ip link set nic$n down; ip link set wire$n up; done\n"
    "until [ $(ip -o link show | grep -c 'wire[12]@.*NO-CARRIER') = 2 ]; do :; done\n"
)
"""A device for each pod, with a wire. The kernel reports that the wire has no carrier a moment later."""


@dataclass(frozen=True)
class Main:
    """``keys``: of a configuration, for the pod of this name. ``kind``: of its links, if a kernel may lack it."""

    keys: Callable[[str], dict[str, Any]]
    setup: str = ""
    kind: str = ""

    def conf(self, plugin: str, pod: str = "c1", **keys: Any) -> dict[str, Any]:
        return {"cniVersion": "1.1.0", "name": "net", "type": plugin, "ipam": IPAM} | self.keys(pod) | keys


MAINS: dict[str, Main] = {
    "macvlan": Main(lambda _: {"master": "up0", "mtu": 1400}, UPLINK),
    "ipvlan": Main(lambda _: {"master": "up0", "mtu": 1400}, UPLINK, "ipvlan"),
    "vlan": Main(lambda pod: {"master": "up0", "mtu": 1400, "vlanId": 100 + int(pod[1:])}, UPLINK, "vlan"),
    "dummy": Main(lambda _: {}, kind="dummy"),
    "tap": Main(lambda _: {"mtu": 1400, "owner": 1000, "mac": "c2:11:22:33:44:55"}),
    "host-device": Main(lambda pod: {"device": f"nic{pod[1:]}"}, NICS),
    "ptp": Main(lambda _: {"ipMasq": True, "mtu": 1400, "masqueradeExcept": ["10.0.0.0/8"]}),
}


@cache
def has_kind(kind: str) -> bool:
    """Return whether this kernel can make links of a kind."""
    if kind == "tun":
        return os.path.exists("/dev/net/tun")
    of = {
        "vlan": "link p0 type vlan id 5",
        "ipvlan": "link p0 type ipvlan",
        "macvlan": "link p0 type macvlan",
        "vrf": "type vrf table 9",
    }.get(kind, f"type {kind}")
    script = f"ip link add p0 type veth peer name p1; ip link add x0 {of}"
    return not kind or subprocess.run(["unshare", "-n", "sh", "-ec", script], capture_output=True, check=False).returncode == 0


def parameters(*plugins: str) -> list[Any]:
    """Return these plugins (default: all), as parameters of a test; one whose links this kernel lacks is skipped."""
    found = []
    for plugin in plugins or MAINS:
        kind = MAINS[plugin].kind
        mark = pytest.mark.skipif(not has_kind(kind), reason=f"this kernel has no links of kind {kind}")
        found.append(pytest.param(plugin, marks=[mark] if kind else []))
    return found


def prepare(host: Host) -> Host:
    """Set up links of the host for every plugin."""
    host.run(NO_DAD + "".join(dict.fromkeys(main.setup for main in MAINS.values())))
    return host


def missing() -> set[str]:
    """Main plugins of the table that are neither here nor have tests of their own."""
    return {plugin for plugin, row in PLUGINS.items() if row.kind == "main"} - MAINS.keys() - {"bridge", "loopback"}
