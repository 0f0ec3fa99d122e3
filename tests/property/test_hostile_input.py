"""Hostile input: names, arguments, paths, links, JSON of any depth and size. Whole calls in a Host, thrown away with it.

For every input, a plugin returns a result or an error object of a known code, never 100; it writes only where
it may, and follows no link to a third-party file; the packet filter has our rules and the former
ones alone. tests/property/test_config.py has the keys of the configurations, tests/spec the words of the errors.

How it works. `host.do` runs hypothesis in a forked child in the Host's namespaces, where all file systems but its
own tmpfs's are made read-only first. Before each call some of our files are links to third-party ones; after it all
files are checked. The examples are the same in each run (derandomize).
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cni_py import engine
from cni_py.errors import CniError
from cni_py.jsontext import encode
from cni_py.packetfilter import libnftables
from cni_py.plugin_table import PLUGINS
from cni_py.spec import call
from cni_py.sweep import sweep
from support.examples import examples
from support.namespaces import PATH, Host
from support.spec_cases import execute

EXAMPLES = {
    "flannel": 30,
    "bridge": 25,
    "host-local": 100,
    "portmap": 100,
    "static": 50,
    "bandwidth": 50,
    "tuning": 50,
    "firewall": 30,
    "sbr": 30,
}
"""Examples of ADD, of other plugins 20; the other verbs have half as many."""
SETTINGS = settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
KNOWN_CODES = {1, 2, 3, 4, 5, 6, 7, 8, 11, 50, 51, 101, 102, 103}
"""Error codes without 100, which is a bug."""
VICTIM = "/run/victim"
OURS = ("/run/cni-py", "/run/cni", "/var/lib/cni/flannel", "/var/lib/cni/networks")
OWN_DIRECTORY = "/run/own"  # what a configuration may name: everything in it may be written
_STORE = [f"/var/lib/cni/networks/net/{name}" for name in ("lock", "last_reserved_ip.0", "10.1.0.2", "10.244.91.2")]
LINKS = {
    "flannel": ["/var/lib/cni/flannel/c1", "/var/lib/cni/flannel/c1:eth0", "/run/cni-py/nft.lock", *_STORE],
    "bridge": ["/run/cni-py/nft.lock", *_STORE],
    "host-local": _STORE * 2,
    "portmap": ["/run/cni-py/nft.lock", "/run/cni-py/portmap/c1:eth0:net"] * 3,
    "ptp": ["/run/cni-py/nft.lock", *_STORE],
    "sbr": ["/run/cni-py/sbr/c1:eth0:net"] * 3,
    "firewall": ["/run/cni-py/nft.lock", "/run/cni-py/firewall/c1:eth0:net"] * 3,
    "tuning": ["/run/cni-py/tuning/c1:eth0:net", "/run/cni/tuning/c1_eth0.json", "/run/cni/tuning"],
    "bandwidth": ["/run/cni-py/bandwidth/c1:eth0:net"] * 3,
}
LINKS_OF_ALL = [
    "/run/cni-py/boot-id", "/run/cni-py/sweep.lock", "/run/cni-py/attachments/c1:eth0:net", "/run/cni-py/journal/c1:eth0:net",
    "/run/cni-py/journal/sweep", "/run/cni-py/journal/deleted/c1:eth0:net", "/run/cni-py/journal/gc:net",
]  # fmt: skip
"""Our files that are replaced by links to third-party files."""
TARGETS = [
    *[f"{VICTIM}/file", f"{VICTIM}/absent"] * 3, VICTIM, "/proc/self/mem", "/dev/zero", "loop", "../../../../run/victim/file",
]  # fmt: skip
CANARY = "add table inet canary; add chain inet canary keep; add rule inet canary keep counter accept"

# --- what comes -------------------------------------------------------------------------------------------------------

ODD = [
    "", ".", "..", "/", "a/b", "../victim/file", "../../run/victim/file", f"{VICTIM}/file", "a\nb", "a\0b", "a\r\nb", "\t",
    " ", 'a"b', 'a" }; flush ruleset; #', "a; flush ruleset", "a\nflush ruleset\n", "{}", "\\", "'", "`id`",
    "$(touch /run/victim/x)", "*", "%s%n%d", "-rf", "--help", "@masq4", "c1:eth0", "c1:eth0:net", "x" * 300, "é", "\u202e",
    "\ud800", "\udcff", "c1.sweep", "lock", "last_reserved_ip.0", "deleted", "10.1.0.2", "all", "default", "lo", "null", "0",
    "１",
]  # fmt: skip
TEXT = st.sampled_from(ODD) | st.text(max_size=12)
UPWARDS = ["../../victim/new", "../../../../run/victim/new", "../../../../run/victim", "..", "../../victim/file"]
NAMES = st.sampled_from(["c1", "net", *UPWARDS]) | TEXT
IFNAMES = (
    st.sampled_from(["eth0", 'e"th', "e\\", "e;{}", "$(id)", "é" * 7, "a" * 15, '"};{"', "-", "'", "#", "@x", "*", "e\\n", "}"])
    | TEXT
)
SANDBOXES = st.sampled_from(
    ["/run/netns/c1"] * 4
    + ["/run/netns/../netns/c1", "/run/netns/gone", "/proc/self/ns/net", "/proc/self/ns/mnt", f"{VICTIM}/file", "/run/fifo",
       "", "x", "/run/netns/c1\n", "/" + "x" * 5000, "/dev/null", "/run/netns"]
)  # fmt: skip
ARGS = st.sampled_from(["", "", "IgnoreUnknown=1;A=b", "K8S_POD_NAME=x", "IP=10.1.0.3", "MAC=c2:11:22:33:44:55"]) | st.builds(
    "{}={}".format, st.sampled_from(["IP", "MAC", "IgnoreUnknown", "A", ""]), TEXT
) | TEXT  # fmt: skip
PATHS = st.sampled_from(
    [
        OWN_DIRECTORY, f"{OWN_DIRECTORY}/deep/er", *[f"{OWN_DIRECTORY}/../victim", f"{OWN_DIRECTORY}/../../run/victim"] * 3, "victim",
        "../victim", "/", "//", "/run/./own", f"{VICTIM}/file", f"{VICTIM}/file/below", f"{OWN_DIRECTORY}/a\nb",
        f"{OWN_DIRECTORY}/a\0b", "/" + "x" * 2000, f"{OWN_DIRECTORY}/" + "x" * 300, "/proc/self", "/sys", "/nonexistent",
        "/run/fifo", "/dev/zero", "",
    ]
) | TEXT  # fmt: skip
PORTS = st.fixed_dictionaries(
    {"hostPort": st.sampled_from([8080, 53, 0, -1, 65536, 1 << 70]), "containerPort": st.sampled_from([80, 0, 99999])},
    optional={
        "protocol": st.sampled_from(["tcp", "udp", "sctp"]) | TEXT,
        "hostIP": st.sampled_from(["", "127.0.0.1", "::1"]) | TEXT,
    },
)
INJECTION = (
    "ip saddr 10.0.0.1 accept; add table inet pwned; add chain inet pwned mark13-from-10.1.0.0_24; add chain inet pwned x;"
    "add rule inet pwned x ip saddr 10.0.0.1"
)
WORDS = st.sampled_from([[INJECTION], INJECTION.split(), [INJECTION.replace(";", "\n")]]) | st.lists(
    st.sampled_from(["ip", "saddr", "10.0.0.0/8", "iifname", '"x"', "accept", "goto", "jump", "@masq4", "vmap", "comment", '"'])
    | TEXT,
    max_size=5,
)

IPAM = {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}]]}
PREVIOUS = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "eth0", "sandbox": "/run/netns/c1"}],
    "ips": [{"address": "10.1.0.2/24"}],
}
BASES: dict[str, dict[str, Any]] = {
    "dhcp": {"ipam": {"type": "dhcp"}},
    "flannel": {"delegate": {"isDefaultGateway": True}},
    "bridge": {"bridge": "br0", "isGateway": True, "ipMasq": True, "macspoofchk": True, "ipam": IPAM},
    "host-local": {"ipam": IPAM},
    "portmap": {
        "prevResult": PREVIOUS,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    },
    "loopback": {},
    "ptp": {"ipMasq": True, "ipam": IPAM},
    "macvlan": {"master": "up0", "ipam": IPAM},
    "ipvlan": {"master": "up0", "ipam": IPAM},
    "vlan": {"master": "up0", "vlanId": 7, "ipam": IPAM},
    "dummy": {"ipam": IPAM},
    "tap": {"ipam": IPAM},
    "host-device": {"device": "nic0", "ipam": IPAM},
    "static": {"ipam": {"type": "static", "addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}]}},
    "sbr": {"prevResult": PREVIOUS},
    "vrf": {"prevResult": PREVIOUS, "vrfname": "blue"},
    "firewall": {"prevResult": PREVIOUS, "ingressPolicy": "same-bridge"},
    "tuning": {"prevResult": PREVIOUS, "sysctl": {"net.core.somaxconn": "500"}, "mtu": 1400, "promisc": True},
    "bandwidth": {"prevResult": PREVIOUS | {"interfaces": [{"name": "w0"}]}, "ingressRate": 8_000_000, "ingressBurst": 800_000},
}
VALID = st.lists(st.fixed_dictionaries({"containerID": NAMES, "ifname": IFNAMES}), max_size=3)
CHANGES: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "dhcp": {"ipam.daemonSocketPath": PATHS, "ipam.priority": st.integers(), "ipam.request": st.lists(
        st.fixed_dictionaries({"option": TEXT}), max_size=2), "ipam.provide": st.lists(
            st.fixed_dictionaries({"option": st.just("12"), "value": TEXT, "fromArg": TEXT}), max_size=2)},
    "flannel": {"dataDir": PATHS, "subnetFile": PATHS, "delegate.type": TEXT, "delegate.bridge": IFNAMES, "ipam.dataDir": PATHS,
                "delegate.mtu": st.integers(), "delegateMode": TEXT, "masqueradeBeyond": TEXT, "runtimeConfig.mac": TEXT,
                "ipam.type": TEXT, "delegate.macspoofchk": st.booleans()},
    "bridge": {"bridge": IFNAMES, "ipam.dataDir": PATHS, "ipam.resolvConf": PATHS, "ipam.type": TEXT, "ipMasqBackend": TEXT,
               "masqueradeExcept": st.lists(TEXT, max_size=2), "args.cni.mac": TEXT, "dns.domain": TEXT, "mtu": st.integers()},
    "host-local": {"ipam.dataDir": PATHS, "ipam.resolvConf": PATHS, "args.cni.ips": st.lists(TEXT, max_size=2),
                   "ipam.routes": st.lists(st.fixed_dictionaries({"dst": TEXT, "gw": TEXT}), max_size=2)},
    "portmap": {"runtimeConfig.portMappings": st.lists(PORTS, max_size=3), "conditionsV4": WORDS, "conditionsV6": WORDS,
                "backend": st.sampled_from(["nftables", "iptables"]) | TEXT, "externalSetMarkChain": TEXT,
                "snat": st.booleans(), "markMasqBit": st.integers(-1, 33), "masqAll": st.booleans(), "prevResult.ips": st.lists(
                    st.fixed_dictionaries({"address": TEXT | st.just("10.1.0.2/24"), "interface": st.integers(-2, 2)}))},
    "loopback": {},
    "ptp": {"ipam.dataDir": PATHS, "ipam.type": TEXT, "ipMasqBackend": TEXT, "masqueradeExcept": st.lists(TEXT, max_size=2),
            "dns.domain": TEXT, "mtu": st.integers()},
    "macvlan": {"master": IFNAMES, "mode": TEXT, "mtu": st.integers(), "mac": TEXT, "runtimeConfig.mac": TEXT, "ipam.type": TEXT,
                "bcqueuelen": st.integers(), "linkInContainer": st.booleans(), "ipam.dataDir": PATHS},
    "ipvlan": {"master": IFNAMES, "mode": TEXT, "mtu": st.integers(), "linkInContainer": st.booleans(), "ipam.type": TEXT},
    "vlan": {"master": IFNAMES, "vlanId": st.integers(), "mtu": st.integers(), "linkInContainer": st.booleans(), "ipam.type": TEXT},
    "dummy": {"ipam.type": TEXT, "ipam.dataDir": PATHS},
    "host-device": {"device": IFNAMES, "hwaddr": TEXT, "kernelpath": PATHS | st.sampled_from(["/sys/devices/../class", "/sys/devices/"]),
                    "pciBusID": PATHS, "runtimeConfig.deviceID": PATHS, "ipam.type": TEXT},
    "tap": {"mtu": st.integers(), "mac": TEXT, "owner": st.integers(), "group": st.integers(), "bridge": IFNAMES,
            "multiQueue": st.booleans(), "selinuxContext": TEXT, "ipam.type": TEXT},
    "static": {"ipam.addresses": st.lists(st.fixed_dictionaries({"address": TEXT, "gateway": TEXT}), max_size=2),
               "args.cni.ips": st.lists(TEXT, max_size=2), "runtimeConfig.ips": st.lists(TEXT, max_size=2),
               "ipam.routes": st.lists(st.fixed_dictionaries({"dst": TEXT, "gw": TEXT}), max_size=2), "ipam.dns.domain": TEXT},
    "vrf": {"vrfname": IFNAMES, "table": st.integers()},
    "sbr": {"table": st.integers(), "gateways": st.lists(TEXT | st.sampled_from(["10.1.0.1", "fd00::1"]), max_size=3),
            "addSourceHints": st.booleans(), "prevResult.ips": st.lists(
                st.fixed_dictionaries({"address": TEXT | st.just("fd00::2/64"), "interface": st.integers(-2, 2)}), max_size=2)},
    "firewall": {"backend": st.sampled_from(["iptables", "firewalld"]) | TEXT, "iptablesAdminChainName": TEXT, "firewalldZone": TEXT,
                 "ingressPolicy": st.sampled_from(["open", "isolated"]) | TEXT, "prevResult.interfaces": st.lists(
                     st.fixed_dictionaries({"name": IFNAMES}), max_size=2), "prevResult.ips": st.lists(
                         st.fixed_dictionaries({"address": TEXT | st.just("fd00::2/64")}), max_size=2)},
    "tuning": {"sysctl": st.dictionaries(TEXT | st.sampled_from(["net.core.somaxconn", "net/../kernel/hostname"]), TEXT, max_size=2),
               "mac": TEXT, "mtu": st.integers(), "txQLen": st.integers(), "dataDir": PATHS, "args.cni.mac": TEXT},
    "bandwidth": {"ingressRate": st.integers(), "egressRate": st.integers(0, 1 << 64), "egressBurst": st.integers(0, 1 << 40),
                  "runtimeConfig.bandwidth": TEXT, "prevResult.interfaces": st.lists(
                      st.fixed_dictionaries({"name": IFNAMES, "sandbox": TEXT}), max_size=2)},
}  # fmt: skip
SHARED = {
    "name": NAMES,
    "cniVersion": TEXT | st.sampled_from(["0.1.0", "0.4.0", "1.0.0"]),
    "cni.dev/valid-attachments": VALID,
    "prevResult": st.just(PREVIOUS) | TEXT,
}


def deep(levels: int, opening: str, closing: str) -> bytes:
    return ('{"name":"net","cniVersion":"1.1.0","x":' + opening * levels + "1" + closing * levels + "}").encode()


HUGE = st.sampled_from(
    [
        deep(100, "[", "]"), deep(200, '{"a":', "}"), deep(100_000, "[", "]"), deep(50_000, '{"a":', "}"), b"[" * 1_000_000,
        b'{"name":"net","x":"' + b"x" * (3 << 20) + b'"}', b'{"name":"net","x":"' + b"x" * (5 << 20) + b'"}',
        b'{"name":"' + b"n" * (1 << 20) + b'"}', b'{"name":"net","mtu":' + b"9" * 100_000 + b"}",
        b'{"name":"net","mtu":1e999999}', b'{"name":"net","name":"other","cniVersion":"1.1.0"}', b'\xef\xbb\xbf{"name":"net"}',
        b'{"name":"\\ud800"}', b"\xff\xfe{\0}\0",
        b'{"name":"net","cniVersion":"1.1.0","prevResult":' + b'{"prevResult":' * 300 + b"{}" + b"}" * 301, b"\0" * 1000, b"",
    ]
)  # fmt: skip


def good_request(plugin: str) -> bytes:
    return json.dumps({"cniVersion": "1.1.0", "name": "net", "type": plugin} | BASES[plugin]).encode()


GOOD = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": "eth0", "CNI_PATH": "/x"}
VARIABLES = {"CNI_CONTAINERID": NAMES, "CNI_NETNS": SANDBOXES, "CNI_IFNAME": IFNAMES, "CNI_ARGS": ARGS, "CNI_PATH": PATHS}
ODDITIES = [{"variable"}, {"key"}, {"key"}, {"key"}, {"links"}, {"links"}, {"variable", "key", "links"}, {"keys"}, {"huge"}]
"""Odd parts of a call. Mostly a single one, so that later checks are reached too."""


@st.composite
def calls(draw: st.DrawFn, plugin: str, verb: str) -> tuple[list[tuple[str, str]], dict[str, str], bytes]:
    """Links that are in the way, the environment, the request."""
    odd = draw(st.sampled_from(ODDITIES))
    links: list[tuple[str, str]] = []
    environ = GOOD | {"CNI_COMMAND": verb}
    if "links" in odd:
        paths = [*LINKS.get(plugin, _STORE), *LINKS_OF_ALL]
        links = draw(st.lists(st.tuples(st.sampled_from(paths), st.sampled_from(TARGETS)), min_size=1, max_size=3))
    if "variable" in odd:
        name = draw(st.sampled_from(sorted(VARIABLES)))
        environ[name] = as_variable(draw(VARIABLES[name]))
    if "huge" in odd:
        return links, environ, draw(HUGE)
    conf = json.loads(good_request(plugin))
    changes = SHARED | CHANGES[plugin]
    names = sorted(changes) + [name for name, strategy in changes.items() if strategy in (PATHS, WORDS)] * 2
    for key in [draw(st.sampled_from(names)) for _ in range(3 if "keys" in odd else "key" in odd)]:
        put(conf, key, draw(changes[key]))
    return links, environ, json.dumps(conf).encode()


def put(conf: dict[str, Any], key: str, value: Any) -> None:
    """Set a key that may be in objects: "ipam.dataDir"."""
    *above, last = key.split(".") if not key.startswith("cni.dev") else [key]
    for part in above:
        if not isinstance(conf.get(part), dict):
            conf[part] = {}
        conf = conf[part]
    conf[last] = value


def as_variable(text: str) -> str:
    """Encode text as client.py reads it: any bytes except zero."""
    return text.replace("\0", "").encode(errors="surrogatepass").decode(errors="surrogateescape")


# --- what may not happen ----------------------------------------------------------------------------------------------


def protect() -> None:
    """Make everything read-only except the Host's own tmpfs's; add third-party files, and a table of the packet filter."""
    script = """
    awk '{print $5}' /proc/self/mountinfo | sort -u | while read -r mount; do
        case $mount in
            /run | /run/* | /var/lib/cni | /etc/cni | /proc | /proc/* | /sys | /sys/* | /dev | /dev/*) ;;
            *) mount -o remount,bind,ro "$mount" ;;
        esac
    done
    if touch /root/.hostile 2>/dev/null || touch /usr/.hostile 2>/dev/null; then echo "not read-only"; exit 1; fi
    mkdir -p /run/victim; echo precious >/run/victim/file; chmod 640 /run/victim/file; mkfifo /run/fifo
    """
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env={"PATH": PATH})
    assert done.returncode == 0, done.stdout + done.stderr
    libnftables.Nft().run(CANARY)


def tree() -> dict[str, tuple[Any, ...]]:
    """Every file and directory outside of what is ours: kind and mode, owner, content or target."""
    found = {}
    for top in ("/run", "/var/lib/cni", "/etc/cni"):
        for root, directories, names in os.walk(top):
            directories[:] = [
                name for name in directories if not is_ours(f"{root}/{name}") and f"{root}/{name}" != "/run/netns"
            ]
            for name in [*directories, *names]:
                path = f"{root}/{name}"
                status = os.lstat(path)
                if stat.S_ISREG(status.st_mode):
                    content: Any = Path(path).read_bytes()
                else:
                    content = os.readlink(path) if stat.S_ISLNK(status.st_mode) else None
                found[path] = (status.st_mode, status.st_uid, content)
    return found


def is_ours(path: str) -> bool:
    return any(path == directory or path.startswith(f"{directory}/") for directory in (*OURS, OWN_DIRECTORY))


def clear() -> None:
    """Restore the state before the first call: remove what DEL left because its arguments differed from ADD's, or it failed."""
    for directory in (*OURS, OWN_DIRECTORY):
        shutil.rmtree(directory, ignore_errors=True)
    os.mkdir(OWN_DIRECTORY)
    for link in [name for name in os.listdir("/sys/class/net") if name.startswith("veth")]:
        subprocess.run(["ip", "link", "delete", link], check=False, capture_output=True, env={"PATH": PATH})  # it may be going
    for link in [name for name in os.listdir("/sys/class/net") if os.path.isdir(f"/sys/class/net/{name}/bridge")]:
        subprocess.run(["ip", "link", "delete", "dev", link], check=True, env={"PATH": PATH})


def plant(links: list[tuple[str, str]]) -> None:
    for path, target in links:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if not os.path.lexists(path):
            os.symlink(path if target == "loop" else target, path)


OUR_CHAINS = (
    "postrouting",
    "prerouting",
    "output",
    "hostports",
    "localnet",
    "beyond-",
    "mark",
    "masquerade-mark",
    "if-",
    "macspoof",
)


def check_packet_filter() -> None:
    """Our tables with our chains, the foreign one as it was, and nothing else."""
    with libnftables.borrowed() as handle:
        objects = [dict(item) for item in handle.list_json("list ruleset") if "metainfo" not in item]
    tables = {(o["table"]["family"], o["table"]["name"]) for o in objects if "table" in o}
    assert ("inet", "canary") in tables
    iptables = {("ip", "nat"), ("ip6", "nat"), ("ip", "filter"), ("ip6", "filter")}
    assert tables - iptables <= {("inet", "canary"), ("inet", "cni_py"), ("bridge", "cni_py")}
    of_canary = [o for o in objects for kind, body in o.items() if kind != "table" and body.get("table") == "canary"]
    assert [next(iter(o)) for o in of_canary] == ["chain", "rule"]
    chains = [o["chain"]["name"] for o in objects if "chain" in o and o["chain"]["table"] == "cni_py"]
    assert [name for name in chains if not name.startswith(OUR_CHAINS)] == []


def check_call(plugin: str, environ: dict[str, str], stdin: bytes) -> None:
    """One call as client.py makes it."""
    try:
        this = call.parse(plugin, environ, f"/nonexistent/{plugin}")
        sweep.before_first_call(this, stdin)
        status, reply = engine.handle(this, stdin)
    except CniError as error:
        status, reply = 1, encode(error.as_json("1.1.0"))
    assert status in (0, 1)
    if status:
        error_object = json.loads(reply)
        assert set(error_object) <= {"cniVersion", "code", "msg", "details"}
        assert error_object["code"] in KNOWN_CODES, error_object
        assert error_object["code"] != 101 or b"syntax error" not in reply, error_object
        assert error_object["msg"]
        assert len(reply) < 20_000, "the error repeats what was sent"
    elif environ["CNI_COMMAND"] == "ADD":
        assert json.loads(reply)["cniVersion"]
    else:
        assert reply == b""


def hostile_calls(plugin: str, verb: str, number: int) -> None:
    """Run all examples of a plugin and a verb, in a Host."""
    protect()
    clear()
    before = tree()

    @settings(SETTINGS, max_examples=number)
    @given(this=calls(plugin, verb), is_there=st.booleans() if verb != "ADD" else st.just(False))
    def run(this: tuple[list[tuple[str, str]], dict[str, str], bytes], is_there: bool) -> None:
        links, environ, stdin = this
        if is_there:
            check_call(plugin, GOOD, good_request(plugin))
        plant(links)
        try:
            check_call(plugin, environ, stdin)
            assert tree() == before
            check_packet_filter()
            if verb != "DEL":
                check_call(plugin, environ | {"CNI_COMMAND": "DEL"}, stdin)
                assert tree() == before
                check_packet_filter()
        finally:
            clear()

    run()


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC"])
@pytest.mark.parametrize("plugin", PLUGINS)
def test_hostile_call(host: Host, plugin: str, verb: str) -> None:
    host.write_subnet_env()
    host.netns("c1")
    host.run("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up")
    host.run("ip link add nic0 type veth peer name wire0")
    if plugin == "portmap":  # the pod is behind a link with this name
        host.run("ip link add 'a\"};{' type veth peer name w1; ip addr add 10.1.0.1/24 dev 'a\"};{'; ip link set 'a\"};{' up")
    if PLUGINS[plugin].kind == "meta" and plugin != "flannel":
        host.run("ip link add w0 type veth peer name eth0 netns c1")
    host.do(hostile_calls, plugin, verb, examples(EXAMPLES.get(plugin, 20) // (1 if verb == "ADD" else 2)))


# --- by the executable ------------------------------------------------------------------------------------------------

RAW = [b"\xff\xfe", b"a\xffb", b'x" }; flush ruleset', b"\x1b[31m", b"..", b"c1\ninjected=1", b"%n" * 20, b"x" * 100_000]


@pytest.mark.parametrize("name", ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS", "CNI_PATH", "CNI_COMMAND"])
def test_environment_of_any_bytes(host: Host, name: str) -> None:
    """No traceback, one line of JSON, and a status that says so; DEL and GC too."""
    host.write_subnet_env()
    host.netns("c1")
    stdin = json.dumps({"cniVersion": "1.1.0", "name": "net", "type": "flannel"}).encode()
    env: dict[str, str | bytes] = {
        "PATH": PATH, "CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": "eth0",
    }  # fmt: skip
    for value in RAW:
        status, out, err = execute(host, "flannel", env | {name: value}, stdin)
        assert err == b"", err
        assert status in (0, 1)
        if status:
            assert out.count(b"\n") == 1
            assert json.loads(out)["code"] in KNOWN_CODES
        else:
            assert out == b""
