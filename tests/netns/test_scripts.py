"""Scripts for what the recorded cases leave out: with them, every key of every plugin is in a call that a script repeats.

The recorded cases themselves are run as scripts where they are compared (support/recorded.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from cni_py.config import models
from cni_py.plugin_table import PLUGINS
from support import recorded

pytestmark = pytest.mark.netns

POOL = {"type": "host-local", "subnet": "10.10.1.0/24"}
BRIDGE = {"type": "bridge", "bridge": "br9", "isGateway": True, "ipam": POOL}
DUAL = {"type": "host-local", "ranges": [[{"subnet": "10.10.1.0/24"}], [{"subnet": "fd00:10:1::/64"}]]}
PORTS = [
    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"},
    {"hostPort": 53, "containerPort": 53, "protocol": "udp"},
]
PORTMAP = {"type": "portmap", "runtimeConfig": {"portMappings": PORTS}}
ROUTES = [
    {"dst": "0.0.0.0/0", "mtu": 1400, "advmss": 1360, "priority": 100},
    {"dst": "198.51.100.0/24", "gw": "10.10.1.7"},
    {"dst": "203.0.113.0/24", "scope": 253, "table": 77},
    {"dst": "2001:db8::/32", "mtu": 1300, "priority": 7},
]
SUBNET_ENV = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.91.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"


def case(
    *confs: dict[str, Any], setup: str = "", files: dict[str, str] | None = None, cni_version: str = "1.0.0"
) -> recorded.Case:
    """ADD of a chain for two pods, but for host ports for one; CHECK and DEL of the first."""
    chain = [{"name": "net1", "cniVersion": cni_version, **conf} for conf in confs]

    def steps(verb: str, order: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"plugin": conf["type"], "verb": verb, "conf": conf, "prev": True} for conf in order]

    adds = [{"plugin": conf["type"], "verb": "ADD", "conf": conf, "prev": bool(at)} for at, conf in enumerate(chain)]
    second = [] if "portmap" in [conf["type"] for conf in confs] else [one | {"id": "c2", "ns": 2} for one in adds]
    return {
        "steps": [*adds, *second, *steps("CHECK", chain), *steps("DEL", chain[::-1])],
        "files": files or {},
        "setup": setup,
    }


CASES = {
    "bridge-iptables": case({**BRIDGE, "ipMasq": True, "ipMasqBackend": "iptables"}),
    "bridge-except": case({**BRIDGE, "ipMasq": True, "masqueradeExcept": ["10.0.0.0/8", "fd00::/8"], "ipam": DUAL}),
    "bridge-force-address": case(
        {**BRIDGE, "forceAddress": True}, setup="ip link add br9 type bridge; ip addr add 10.77.0.1/24 dev br9; ip link set br9 up"
    ),
    "bridge-macspoof": case({**BRIDGE, "macspoofchk": True}),
    "bridge-dad": case({**BRIDGE, "enabledad": True, "ipam": DUAL}),
    "bridge-mac": case({**BRIDGE, "args": {"cni": {"mac": "02:00:00:00:00:77"}}}, setup="sysctl -qw net.ipv6.conf.default.forwarding=1"),
    "bridge-native": case({**BRIDGE, "delegateMode": "native", "mtu": 1400, "promiscMode": True, "isDefaultGateway": True}),
    "bridge-odd-name": case({**BRIDGE, "bridge": "br'9$(a)`", "ipMasq": True}),
    "bridge-range": case({**BRIDGE, "ipam": {**POOL, "rangeStart": "10.10.1.50", "rangeEnd": "10.10.1.60"}}),
    "flannel-beyond": case(
        {"type": "flannel", "masqueradeBeyond": "network", "delegate": {"ipMasq": True, "isDefaultGateway": True}},
        files={"/run/flannel/subnet.env": SUBNET_ENV},
    ),
    "ptp-iptables": case({"type": "ptp", "ipMasq": True, "ipMasqBackend": "iptables", "ipam": DUAL}),
    "ptp-except": case({"type": "ptp", "ipMasq": True, "masqueradeExcept": ["10.0.0.0/8"], "ipam": POOL}),
    "tap-mac": case({"type": "tap", "runtimeConfig": {"mac": "02:00:00:00:00:78"}, "ipam": POOL}),
    "host-local": case(
        {
            **BRIDGE,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.10.1.0/24", "rangeStart": "10.10.1.50", "rangeEnd": "10.10.1.60"}], [{"subnet": "2001:db8::/64"}]],
                "routes": ROUTES,
            },
        },
        cni_version="1.1.0",
    ),
    "portmap": case(BRIDGE, {**PORTMAP, "masqAll": True, "markMasqBit": 20}),
    "portmap-no-snat": case(BRIDGE, {**PORTMAP, "snat": False, "conditionsV4": ["ip", "saddr", "198.51.100.0/24"], "conditionsV6": []}),
    "portmap-iptables": case(BRIDGE, {**PORTMAP, "backend": "iptables", "conditionsV4": ["-s", "198.51.100.0/24"]}),
    "portmap-mark-chain": case(
        BRIDGE, {**PORTMAP, "externalSetMarkChain": "MARK-MASQ"}, setup="iptables -t nat -N MARK-MASQ; ip6tables -t nat -N MARK-MASQ"
    ),
    "bandwidth": case(BRIDGE, {"type": "bandwidth", "egressRate": 8_000_000, "egressBurst": 800_000, "ingressRate": 1_000_000, "ingressBurst": 80_000}),
    "firewall": case({**BRIDGE, "ipam": DUAL}, {"type": "firewall", "backend": "iptables"}),
    "sbr": case({**BRIDGE, "ipam": {**POOL, "routes": [{"dst": "0.0.0.0/0"}]}}, {"type": "sbr", "addSourceHints": True}),
    "tuning": case(
        BRIDGE,
        {"type": "tuning", "dataDir": "/run/cni-state/tuning", "mtu": 1300, "promisc": True, "sysctl": {"net.ipv4.conf.IFNAME.log_martians": "1"}},
    ),
}  # fmt: skip
"""Calls by name."""

EXEMPT = {
    "cniVersion", "name", "type", "prevResult", "disableCheck", "capabilities", "runtimeConfig", "args",  # of every call
    "selinuxContext",  # without SELinux it means nothing
    "firewalldZone",  # it needs firewalld, whose rules are its own: tests/netns/test_firewall.py
    "kernelpath",  # it finds the same link as "device" does
    "linkInContainer",  # of ipvlan, which this kernel may lack: integration/kernel
    "vlan", "vlanTrunk", "vlanTrunk.id", "vlanTrunk.minID", "vlanTrunk.maxID", "preserveDefaultVlan",  # the same, of bridges
    "ipam.request.skipDefault",  # of dhcp: what a server gives is not the script's
}  # fmt: skip
"""Keys that no script can be tried with here."""


@pytest.mark.parametrize("name", CASES)
def test_script_leaves_what_the_plugin_leaves(name: str, bin_dir: Path, tmp_path: Path) -> None:
    recorded.run_scripts(CASES[name], bin_dir, tmp_path)


@pytest.mark.parametrize("missing", ["nft ", "ip_forward=1", "hairpin", "ip addr add 10.10.1.2", "/networks/net1/10.10.1.2"])
def test_script_without_one_of_the_changes_is_noticed(missing: str, bin_dir: Path, tmp_path: Path) -> None:
    """The comparison sees each kind of change."""
    one = CASES["bridge-except"]
    agent = recorded.CountingAgent(one, tmp_path)
    recorded.run_case(one, bin_dir, agent)
    events = agent.events()
    at = next(index for index, event in enumerate(events) if missing in event.get("line", ""))
    with pytest.raises(AssertionError, match="step 0"):
        recorded.compare_scripts(one, [*events[:at], *events[at + 1 :]], bin_dir)


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        yield key
        for inner in models_in(field.annotation):
            yield from keys_of(inner, f"{key}.")


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


def keys_in(value: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield prefix + key
            yield from keys_in(inner, f"{prefix}{key}.")
    for inner in value if isinstance(value, list) else ():
        yield from keys_in(inner, prefix)


def test_every_key_is_in_a_call_that_a_script_repeats() -> None:
    used: dict[str, set[str]] = {plugin: set() for plugin in PLUGINS}
    cases = [one for parameter in all_recorded() for one in parameter.values] + list(CASES.values())
    for step in (step for one in cases for step in one["steps"] if step.get("verb") == "ADD" and "raw" not in step["conf"]):
        for conf, prefix in ((step["conf"], ""), (step["conf"].get("ipam"), "ipam.")):
            kind = conf.get("type") if isinstance(conf, dict) else None
            if kind in used:
                used[kind].update(keys_in(conf, prefix))
    for plugin, row in PLUGINS.items():
        all_keys = set(keys_of(getattr(models, row.model)))
        own = (
            {key for key in all_keys if key.startswith("ipam.")}
            if row.kind == "ipam"
            else {k for k in all_keys if not k.startswith(("ipam.", "dns"))}
        )
        missing = {
            key
            for key in own - used[plugin]
            if not EXEMPT & {key, key.rpartition(".")[2]} and not key.startswith(("prevResult", "args."))
        }
        assert missing - SHARED.get(plugin, set()) == set(), plugin


SHARED = {
    plugin: {"delegateMode", "runtimeConfig.ips", "runtimeConfig.mac", "runtimeConfig.infinibandGUID", "args.cni.mac"}
    for plugin in PLUGINS
}
"""Keys of code that all main plugins share, which are tried with one of them."""


def all_recorded() -> Iterator[Any]:
    for directory in ("golden", "golden-plugins"):
        yield from recorded.parameters(recorded.INTEGRATION / directory / "cases")


def test_recorded_cases_are_repeated_but_those_of_other_plugins() -> None:
    """Cases in which a third-party plugin is the delegate have no script; all others have."""
    left_out = [parameter.id for parameter in all_recorded() if recorded.runs_other_plugins(parameter.values[0])]
    assert all("/usr/lib/cni" in json.dumps(one) for one in (p.values[0]["steps"] for p in all_recorded() if p.id in left_out))
    assert len(left_out) < 10
