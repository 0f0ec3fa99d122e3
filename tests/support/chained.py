"""Meta plugins behind a main plugin: a table of chains, their calls, and everything that they could have changed.

A test of all chains is parametrized over `CHAINS`; a new meta plugin is a row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from support import faults
from support.namespaces import Host, Reply, Sandbox
from support.pods import V4, V6, bridge_conf

BRIDGE = bridge_conf(V4, V6, isDefaultGateway=True)
MBIT = 1_000_000


@dataclass(frozen=True)
class Chain:
    """A configuration of a meta plugin, and of the main plugin in front of it."""

    conf: dict[str, Any]
    main: dict[str, Any] = field(default_factory=lambda: BRIDGE)
    setup: str = ""  # a script on the host, before everything else
    kind: str = ""  # of links that a kernel may lack

    @property
    def plugin(self) -> str:
        return str(self.conf["type"])


def meta_conf(plugin: str, **keys: Any) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "name": "net", "type": plugin} | keys


CLOSED = "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP"
LIMITS = {"ingressRate": 80 * MBIT, "ingressBurst": MBIT, "egressRate": 40 * MBIT, "egressBurst": MBIT}
CHAINS = {
    "bandwidth": Chain(meta_conf("bandwidth", runtimeConfig={"bandwidth": LIMITS})),
    "tuning": Chain(
        meta_conf(
            "tuning",
            sysctl={"net.core.somaxconn": "500", "net/ipv4/conf/IFNAME/arp_filter": "1"},
            mac="c2:11:22:33:44:99",
            mtu=1400,
            promisc=True,
            allmulti=True,
            txQLen=777,
        )
    ),
    "vrf": Chain(meta_conf("vrf", vrfname="blue"), kind="vrf"),
    "vrf-table": Chain(meta_conf("vrf", vrfname="blue", table=300), kind="vrf"),
    "sbr": Chain(meta_conf("sbr")),
    "sbr-hints": Chain(meta_conf("sbr", addSourceHints=True, gateways=["10.1.0.9"])),
    "sbr-table": Chain(meta_conf("sbr", table=300)),
    "firewall": Chain(meta_conf("firewall"), setup=CLOSED),
    "firewall-isolated": Chain(meta_conf("firewall", ingressPolicy="isolated", iptablesAdminChainName="MINE"), setup=CLOSED),
    "bandwidth-ingress": Chain(meta_conf("bandwidth", ingressRate=80 * MBIT, ingressBurst=MBIT)),
}


class Pods:
    """The calls of one chain on a host, by the executables of `bin_dir` or, with a fault, by those of support/faults.py."""

    def __init__(self, host: Host, chain: Chain) -> None:
        self.host, self.chain = host, chain
        self.results: dict[str, Any] = {}  # what the main plugin returned
        if chain.setup:
            host.run(chain.setup)

    def add_main(self, pod: Sandbox) -> Any:
        self.results[pod.name] = self.host.ok(
            self.chain.main["type"], "ADD", self.chain.main, sandbox=pod, container_id=pod.name
        )
        return self.results[pod.name]

    def call(self, verb: str, pod: Sandbox, prev: Any = None, **options: Any) -> Reply:
        """Call the meta plugin with the main plugin's result, or another one."""
        prev = self.results.get(pod.name) if prev is None else prev
        if verb == "CHECK":  # as ``cni-py check`` calls it
            options["env"] = {"CNI_PY_DIFFERENCES": "1"} | (options.get("env") or {})
        return self.host.call(
            self.chain.plugin, verb, self.chain.conf, sandbox=pod, container_id=pod.name, prev=prev or None, **options
        )

    def faulty(self, verb: str, pod: Sandbox, kind: str, number: int, errno: str = "EIO") -> tuple[Reply, str | None]:
        """The meta plugin with a fault: see `faults.call`."""
        return faults.call(
            self.host, verb, self.chain.conf, kind, number, errno,
            sandbox=pod, container_id=pod.name, prev=self.results.get(pod.name),
        )  # fmt: skip

    def ok(self, verb: str, pod: Sandbox, prev: Any = None, **options: Any) -> Any:
        reply = self.call(verb, pod, prev, **options)
        assert reply.rc == 0, reply
        return reply.json

    def add(self, pod: Sandbox) -> Any:
        """Both plugins; returns the meta plugin's result."""
        self.add_main(pod)
        return self.ok("ADD", pod)

    def delete(self, pod: Sandbox, *, prev: bool = True) -> None:
        """Both plugins, the meta plugin first, as a runtime does it."""
        self.ok("DEL", pod, None if prev else {})
        self.host.ok(self.chain.main["type"], "DEL", self.chain.main, sandbox=pod, container_id=pod.name)
        self.results.pop(pod.name, None)

    def gc(self, *valid: Sandbox) -> None:
        """GC of both, which keeps these."""
        listed = {"cni.dev/valid-attachments": [{"containerID": pod.name, "ifname": "eth0"} for pod in valid]}
        for conf in (self.chain.conf, self.chain.main):
            self.host.ok(conf["type"], "GC", conf | listed)

    def state(self, *pods: Sandbox) -> dict[str, Any]:
        """Everything that the plugins could have changed."""
        return whole_state(self.host, *pods)


def whole_state(host: Host, *pods: Sandbox) -> dict[str, Any]:
    """A snapshot, and what that does not show: queueing disciplines and filters, iptables, records, saved values."""
    seen = host.snapshot(*pods)
    more = {f"{pod} more": extras(host, pod, seen[str(pod)]) for pod in pods}
    files = host.files("/run/cni-py", "/run/cni")
    kept = {name: text for name, text in files.items() if "/journal/" not in name and not name.endswith(("boot-id", ".lock"))}
    return seen | more | {"shown": extras(host, None, seen["host"]), "records": kept}


def extras(host: Host, pod: Sandbox | None, network: dict[str, Any]) -> list[str]:
    """Lines on queueing disciplines, filters and iptables."""
    names = [link["ifname"] for link in network["addresses"]]
    asked = [f"{kind} show dev {name}{where}" for name in names for kind, where in (("qdisc", ""), ("filter", " ingress"))]
    shown = host.run("tc -j -batch -", pod, stdin="\n".join(asked) + "\n").splitlines()
    lines = [f"{question}: {line}" for question, line in zip(asked, shown, strict=True) if '"kind":"noqueue"' not in line]
    if network["nft"]:  # where nft has no table, iptables has no rule
        saved = host.run("iptables-save; ip6tables-save", pod).splitlines()
        lines += [re.sub(r" \[\d+:\d+\]$", "", line) for line in saved if not line.startswith("#")]
    return lines


def difference(before: dict[str, Any], after: dict[str, Any], path: str = "") -> list[str]:
    """Return the differences of two states, briefly."""
    found = []
    for key, was in before.items():
        now = after.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            found += difference(was, now, f"{path}{key}: ")
            found += [f"{path}{key}: +{new}" for new in now.keys() - was.keys()]
        elif isinstance(was, list) and isinstance(now, list):
            found += [f"{path}{key}: -{one}" for one in was if one not in now]
            found += [f"{path}{key}: +{one}" for one in now if one not in was]
        elif was != now:
            found.append(f"{path}{key}: {was} {now}")
    return found
