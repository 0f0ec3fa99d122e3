"""Values that are right alone and wrong together: every reply is a result or an error that names its keys, never code 100.

The configurations are valid by type; each has some values replaced by others of the same type: an address of the other family, a
network instead of an address, a number that fits no field of the kernel. Calls run in a Host's namespaces, in this process.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cni_py import engine
from cni_py.config.models import PLUGIN_MODELS
from cni_py.plugin_table import PLUGINS
from cni_py.spec import call
from support.namespaces import Host

TEXTS = [
    "10.1.2.7", "10.1.2.1", "255.255.255.255", "0.0.0.0", "127.0.0.1", "224.0.0.1", "169.254.1.1", "fd00:1::7", "::", "::1", "fe80::1",
    "fe80::1%eth0", "ff02::1", "::ffff:10.1.2.7", "10.1.2.0/24", "10.1.2.7/24", "10.1.2.7/32", "10.1.2.7/31", "0.0.0.0/0",
    "255.255.255.255/32", "255.255.255.254/31", "10.1.2.0/255.255.255.0", "fd00:1::/64", "fd00:1::7/64", "fd00:1::7/128", "::/0",
    "::ffff:10.1.2.7/120", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", "224.0.0.0/4", "127.0.0.0/8", "fe80::1%eth0/64",
    "c2:11:22:33:44:55", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "eth0", "lo", "br0", "cni0", "tcp", "udp",
    "nftables", "iptables", "KUBE-MARK-MASQ", "", " ", "a b", "a/b", "..", "x" * 300, "é", "\ud800", "\0", "\n", '"', "'", ";", "*", "\u2028",
    "/run/x", "/dev/null", "/proc/self/mem", "bridge", "host-local", "flannel", "stub", "1.1.0", "0.1.0", "0.4.0", "ip daddr 1.2.3.4", "!",
]  # fmt: skip
NUMBERS = [0, 1, -1, 13, 31, 32, 67, 68, 253, 254, 255, 256, 1500, 4094, 4095, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 63, 1 << 64]  # fmt: skip
RANGE4 = {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.10", "rangeEnd": "10.1.2.200", "gateway": "10.1.2.1"}
RANGE9 = {"subnet": "10.9.0.0/24"}
RANGE6 = {"subnet": "fd00:1::/64", "rangeStart": "fd00:1::10", "rangeEnd": "fd00:1::20", "gateway": "fd00:1::1"}
ROUTES = [
    {"dst": "0.0.0.0/0", "gw": "10.1.2.1"},
    {"dst": "10.9.0.0/16", "mtu": 1400, "advmss": 1300, "priority": 7, "table": 100, "scope": 0},
    {"dst": "::/0"},
    {"dst": "fd00:9::/64", "gw": "fd00:1::1", "priority": 8},
]
IPAM = {"type": "host-local", "ranges": [[RANGE4], [RANGE6]], "routes": ROUTES, "resolvConf": ""}
RESULT = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "br0", "mac": "c2:11:22:33:44:50", "mtu": 1450},
        {"name": "vethx", "mac": "c2:11:22:33:44:51", "mtu": 1450},
        {"name": "eth0", "mac": "c2:11:22:33:44:55", "mtu": 1450, "sandbox": "/run/netns/c1"},
    ],
    "ips": [
        {"address": "10.1.2.7/24", "gateway": "10.1.2.1", "interface": 2},
        {"address": "fd00:1::7/64", "gateway": "fd00:1::1", "interface": 2},
    ],
    "routes": ROUTES,
    "dns": {"nameservers": ["10.1.2.1"], "domain": "d", "search": ["a"], "options": ["o"]},
}
OLD_RESULT = {
    "cniVersion": "0.2.0",
    "ip4": {"ip": "10.1.2.7/24", "gateway": "10.1.2.1", "routes": ROUTES[:1]},
    "ip6": {"ip": "fd00:1::7/64", "gateway": "fd00:1::1", "routes": ROUTES[2:3]},
}
NETWORK = {"cniVersion": "1.1.0", "name": "net", "prevResult": RESULT}
BRIDGE = {
    "bridge": "br0", "isGateway": True, "isDefaultGateway": False, "forceAddress": True, "ipMasq": True, "ipMasqBackend": "nftables",
    "masqueradeExcept": ["10.0.0.0/8", "fd00::/8"], "mtu": 1450, "hairpinMode": True, "promiscMode": False, "vlan": 0, "vlanTrunk": [],
    "macspoofchk": True, "enabledad": False, "disableContainerInterface": False, "portIsolation": True,
    "args": {"cni": {"mac": "c2:11:22:33:44:55", "ips": ["10.1.2.20"]}},
    "runtimeConfig": {"mac": "c2:11:22:33:44:55", "ips": ["fd00:1::11"], "ipRanges": []},
    "dns": {"nameservers": [], "domain": "", "search": [], "options": []},
}  # fmt: skip
LIMITS = {"ingressRate": 8000000, "ingressBurst": 800000, "egressRate": 4000000, "egressBurst": 400000}
BASES: dict[str, list[dict[str, Any]]] = {
    "bridge": [NETWORK | BRIDGE | {"ipam": IPAM}, NETWORK | BRIDGE | {"ipam": {"type": "stub", "result": RESULT}}],
    "flannel": [
        NETWORK | {"delegate": {"isGateway": True, "mtu": 1400, "bridge": "br0"}, "ipam": {"routes": ROUTES}, "delegateMode": "auto"},
    ],
    "host-local": [
        NETWORK | {"ipam": IPAM, "args": {"cni": {"ips": ["10.1.2.20"]}}, "runtimeConfig": {"ips": ["fd00:1::11"], "ipRanges": [[RANGE9]]}},
        NETWORK | {"ipam": RANGE4 | {"type": "host-local", "routes": ROUTES}},
    ],
    "portmap": [
        NETWORK
        | {
            "snat": True, "masqAll": False, "markMasqBit": 13, "conditionsV4": [], "conditionsV6": [], "backend": "nftables",
            "runtimeConfig": {"portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"},
                {"hostPort": 53, "containerPort": 53, "protocol": "udp"},
            ]},
        },
    ],
    "ptp": [
        NETWORK | {"mtu": 1450, "ipMasq": True, "ipMasqBackend": "nftables", "masqueradeExcept": ["10.0.0.0/8"], "ipam": IPAM},
        NETWORK | {"ipam": {"type": "stub", "result": RESULT}},
    ],
    "static": [
        NETWORK
        | {
            "ipam": {
                "type": "static",
                "addresses": [{"address": "10.1.2.7/24", "gateway": "10.1.2.1"}, {"address": "fd00:1::7/64", "gateway": "fd00:1::1"}],
                "routes": ROUTES,
                "dns": RESULT["dns"],
            },
            "args": {"cni": {"ips": ["10.1.2.7/24"]}},
            "runtimeConfig": {"ips": ["10.1.2.8/24"]},
        },
    ],
    "bandwidth": [NETWORK | LIMITS, NETWORK | {"runtimeConfig": {"bandwidth": LIMITS}}],
    "tuning": [
        NETWORK
        | {
            "sysctl": {"net.core.somaxconn": "500"}, "mac": "c2:11:22:33:44:56", "mtu": 1400, "promisc": True, "allmulti": True,
            "txQLen": 500, "args": {"cni": {"mtu": 1300, "sysctl": {"net/ipv4/conf/IFNAME/arp_filter": "1"}}},
            "runtimeConfig": {"mac": "c2:11:22:33:44:57"},
        },
    ],
    "macvlan": [NETWORK | {"master": "host0", "mode": "bridge", "mtu": 1400, "mac": "c2:11:22:33:44:59", "bcqueuelen": 7, "ipam": IPAM}],
    "ipvlan": [NETWORK | {"master": "host0", "mode": "l2", "mtu": 1400, "ipam": IPAM}],
    "vlan": [NETWORK | {"master": "host0", "vlanId": 7, "mtu": 1400, "ipam": IPAM}],
    "dummy": [NETWORK | {"ipam": IPAM}],
    "tap": [NETWORK | {"multiQueue": True, "mtu": 1400, "mac": "c2:11:22:33:44:59", "owner": 7, "group": 8, "selinuxContext": "", "ipam": IPAM}],
    "host-device": [NETWORK | {"device": "dev0", "hwaddr": "", "kernelpath": "", "pciBusID": "", "ipam": IPAM}],
    "firewall": [
        NETWORK | {"backend": "iptables", "iptablesAdminChainName": "CNI-ADMIN", "firewalldZone": "trusted", "ingressPolicy": "same-bridge"},
    ],
    "sbr": [NETWORK | {"table": 100, "gateways": ["10.1.2.1"], "addSourceHints": True}, NETWORK | {"addSourceHints": True}],
    "loopback": [NETWORK],
}  # fmt: skip
NO_SUCH_KIND = 50
"""Code of a link that this kernel cannot create."""
KNOWN_CODES = {1, 2, 4, 5, 6, 7, 8, 11, 50, 51, 101, 102, 103}
ENV = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24\nFLANNEL_IPV6_NETWORK=fd00:1::/48\nFLANNEL_IPV6_SUBNET=fd00:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
STUB = """#!/bin/sh
[ "$CNI_COMMAND" = ADD ] || { cat >/dev/null; exit 0; }
exec cat /run/stub-result
"""


def bases_of(plugin: str) -> list[dict[str, Any]]:
    """Configurations to vary; of a plugin that has none here, one of the examples in its model."""
    if plugin in BASES:
        return BASES[plugin]
    fields = PLUGIN_MODELS[plugin].model_fields.values()
    return [NETWORK | {field.alias or "": field.examples[0] for field in fields if field.examples}]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [leaf for key, member in members for leaf in leaves(member, (*path, key))]
    return below or [path]


def vary(conf: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    """A copy in which up to four values are others of the same type, and some members are missing."""
    conf = copy.deepcopy(conf)
    for _ in range(data.draw(st.integers(1, 4))):
        *parents, last = data.draw(st.sampled_from(leaves(conf)))
        holder: Any = conf
        for key in parents:
            holder = holder[key]
        if data.draw(st.integers(0, 5)) == 0:
            del holder[last]
            continue
        match holder[last]:
            case bool():
                holder[last] = not holder[last]
            case int():
                holder[last] = data.draw(st.sampled_from(NUMBERS))
            case str() if last not in ("type", "name", "cniVersion") or data.draw(st.integers(0, 4)) == 0:
                holder[last] = data.draw(st.sampled_from(TEXTS))
    if not data.draw(st.integers(0, 3)):
        conf["prevResult"] = OLD_RESULT
    if data.draw(st.booleans()):
        conf["cniVersion"] = data.draw(st.sampled_from(["0.1.0", "0.3.1", "0.4.0", "1.0.0"]))
    return conf


def sandbox_of(plugin: str) -> str:
    """The second one has an interface already."""
    return "/run/netns/c2" if plugin in ("bandwidth", "tuning", "sbr", "vrf") else "/run/netns/c1"


def make_sandboxes(host: Host) -> None:
    host.netns("c1")
    host.netns("c2")
    host.run("ip link add vethx type veth peer name eth0 netns c2; ip link set vethx up; ip -n c2 link set eth0 up")
    host.run("ip -n c2 addr add 10.1.2.7/24 dev eth0; ip -n c2 addr add fd00:1::7/64 dev eth0 nodad")
    host.run(
        "ip link add host0 type bridge; ip link set host0 up; ip link add dev0 type veth peer name dev1; ip link set dev1 up"
    )


def reply_of(plugin: str, verb: str, conf: dict[str, Any]) -> tuple[int, str]:
    environ = {
        "CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_NETNS": sandbox_of(plugin), "CNI_IFNAME": "eth0", "CNI_PATH": "/run",
    }  # fmt: skip
    status, reply = engine.handle(call.parse(plugin, environ), json.dumps(conf).encode())
    return status, reply.decode()


def prepare(result: object = RESULT) -> None:
    Path("/run/stub").write_text(STUB)
    Path("/run/stub").chmod(0o700)
    Path("/run/stub-result").write_bytes(json.dumps(result).encode())
    Path("/run/flannel/subnet.env").write_text(ENV)


def bases_without_change() -> list[str]:
    prepare()
    return [reply_of(plugin, verb, conf)[1] for plugin in BASES for conf in BASES[plugin] for verb in ("ADD", "DEL")]


def test_configurations_that_are_varied_work(host: Host) -> None:
    """Otherwise whatever is changed in them would be found too late."""
    make_sandboxes(host)
    replies = [json.loads(reply) for reply in host.do(bases_without_change) if reply]
    assert [reply for reply in replies if reply.get("code", NO_SUCH_KIND) != NO_SUCH_KIND] == []


def ipam_of(*ranges: dict[str, Any], **routes: Any) -> dict[str, Any]:
    return {"type": "host-local", "ranges": [[each] for each in ranges], "routes": [{"dst": "10.9.0.0/16"} | routes]}


PAIRS = [
    # what does not go together, and the words that the error has
    ({"ipam": ipam_of({"subnet": "10.1.2.0/24", "gateway": "fd00:1::1"})}, ["fd00:1::1", '"gateway"', '"subnet"']),
    ({"ipam": ipam_of({"subnet": "fd00:1::/64", "gateway": "10.1.2.1"})}, ["10.1.2.1", '"gateway"', '"subnet"']),
    ({"ipam": ipam_of(RANGE4, gw="fd00:1::1")}, ["10.9.0.0/16", '"gw"', '"dst"', "fd00:1::1"]),
    ({"ipam": ipam_of(RANGE4, dst="fd00::/8", gw="10.1.2.1")}, ["fd00::/8", '"gw"', '"dst"', "10.1.2.1"]),
    ({"ipam": ipam_of(RANGE4, mtu=1 << 32)}, ["10.9.0.0/16", '"mtu"', "4294967296"]),
    ({"ipam": ipam_of(RANGE4, advmss=1 << 64)}, ["10.9.0.0/16", '"advmss"', "18446744073709551616"]),
    ({"ipam": ipam_of(RANGE4, priority=1 << 32)}, ['"ipam.routes[0].priority"', "4294967296"]),
    ({"ipam": ipam_of(RANGE4 | {"rangeStart": "fd00:1::7"})}, ["RangeStart fd00:1::7", "10.1.2.0/24"]),
    ({"ipam": {"type": "stub"}}, ['"gateway"', "255.255.255.255/32"]),
    ({"hairpinMode": True, "promiscMode": True}, ['"hairpinMode"', '"promiscMode"']),
]


def refusals_of_pairs() -> list[tuple[int, str]]:
    prepare({"cniVersion": "1.1.0", "ips": [{"address": "255.255.255.255/32"}]})
    plain = {"cniVersion": "1.1.0", "name": "net", "bridge": "br0", "isDefaultGateway": True}
    found = [reply_of("bridge", "ADD", plain | keys) for keys, _ in PAIRS]
    assert [reply_of("bridge", "DEL", plain | keys)[0] for keys, _ in PAIRS] == [0] * len(PAIRS)
    return found


def test_values_that_do_not_go_together_are_named(host: Host) -> None:
    make_sandboxes(host)
    for (keys, words), (status, reply) in zip(PAIRS, host.do(refusals_of_pairs), strict=True):
        error = json.loads(reply)
        assert (status, error["code"]) == (1, 7), (keys, reply)
        assert [word for word in words if word not in f"{error['msg']} {error.get('details', '')}"] == [], reply
    assert list(host.do(lambda: sorted(p.name for p in Path("/var/lib/cni/networks/net").glob("[1-9f]*")))) == []


def varied_calls(plugin: str, verb: str, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        conf = vary(data.draw(st.sampled_from(bases_of(plugin))), data)
        stubbed = conf.get("ipam", {}).get("result", RESULT) if isinstance(conf.get("ipam", {}), dict) else RESULT
        prepare(stubbed)
        for name in (verb, "DEL"):
            status, reply = reply_of(plugin, name, conf)
            assert status == 0 or json.loads(reply)["code"] in KNOWN_CODES, f"{name}: {reply}"

    run()


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "STATUS", "GC"])
@pytest.mark.parametrize("plugin", PLUGINS)
def test_no_values_that_are_right_by_type_are_a_bug(host: Host, plugin: str, verb: str, longer: int) -> None:
    make_sandboxes(host)
    host.do(varied_calls, plugin, verb, (30 if verb == "ADD" else 15) * longer)
