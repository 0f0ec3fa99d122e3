"""Explanations of journals: every line is shown once and in order, every command of this suite is known, and can be typed."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cni_py.explain import calls, commands, steps, text
from cni_py.explain.shapes import GROUPS, OF_DAEMON, ON_HOST, OTHER, SHAPES
from cni_py.explain.steps import Note, Step
from cni_py.explain.words import parse
from cni_py.journal import quote

PACKAGE = Path(__file__).resolve().parents[2] / "cni_py"
TITLE = "# 2026-11-24T10:00:00Z ADD flannel, network cbr0, pod shop/web-1, container c1, eth0 in /run/netns/c1"
FLANNEL = {"name": "cbr0", "type": "flannel", "delegate": {"hairpinMode": True}}
SAVED = {
    "type": "bridge", "name": "cbr0", "mtu": 1450, "ipMasq": True, "isGateway": True, "hairpinMode": True,
    "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.244.91.0/24"}], [{"subnet": "fd00:91::/64"}]],
        "routes": [{"dst": "10.244.0.0/16"}, {"dst": "fd00::/48"}],
    },
}  # fmt: skip
NFT = (
    'add table inet cni_py { comment "cni-py: pods; all"; }; add map inet cni_py masq4 { type ipv4_addr : verdict; }; '
    "add chain inet cni_py postrouting { type nat hook postrouting priority srcnat; policy accept; }; "
    'add rule inet cni_py postrouting ip saddr vmap @masq4 comment "a pod: on"; '
    'add element inet cni_py masq4 { 10.244.91.2 comment "c1 eth0 cb6e746f" : goto beyond-10.244.91.0_24 }'
)


def journal_of(*lines: str, title: str = TITLE, configuration: Any = None) -> list[str]:
    """A call as journal.py writes it."""
    numbered = [f"10:00:00.{number:06d}  {line}  (0.25 ms)" for number, line in enumerate(lines)]
    head = [title] if configuration is None else [title, f"10:00:00.000000  # configuration: {json.dumps(configuration)}"]
    return [*head, *numbered, "10:00:00.999999  # done  (8.41 ms)"]


def only(*lines: str, **more: Any) -> list[Step | Note]:
    (call,) = calls.read(journal_of(*lines, **more))
    return steps.explain(call)


def step_of(line: str, **more: Any) -> Step:
    (found,) = only(line, **more)
    assert isinstance(found, Step)
    return found


# --- reading ----------------------------------------------------------------------------------------------------------

A_LINE = st.one_of(
    st.text(),
    st.sampled_from(
        [
            TITLE,
            "# 2026-11-24T10:00:00Z sweep, grace 300 s",
            "# older lines were cut",
            "10:00:00.000001  # done  (1.00 ms)",
            "10:00:00.000001  # failed: no address  (1.00 ms)",
            "10:00:00.000001  # configuration: {",
            '10:00:00.000001  # configuration: {"delegate": 3, "ipam": []}',
            "10:00:00.000001  # undo: the veth",
            "10:00:00.000001  ip link set cni0 up  (0.07 ms)",
            "10:00:00.000001  ip link set cni0 up  # failed: File exists  (0.07 ms)",
            "10:00:00.000001  nft 'add table inet cni_py; add element inet cni_py masq4 { 10.0.0.1 : goto x }'  (0.07 ms)",
            '10:00:00.000001  printf %s \'{"mtu": [], "ipam": {"ranges": 7, "routes": [1]}}\' | install -m 600 /dev/stdin /var/lib/cni/flannel/c1',
            "10:00:00.000001  ip addr add 10.1.0.2/24 dev eth0",
            "10:00:00.000001  ip route add 10.1.0.0/24 dev eth0",
            "10:00:00.000001  ip link add 'unterminated",
            "10:00:00.000001  ",
        ]
    ),
)


@settings(deadline=None)
@given(st.lists(A_LINE.map(lambda line: line.replace("\n", " "))))
@example(["10:00:00.000001  ip link set cni0 up", TITLE, TITLE])
def test_every_line_is_in_one_call_and_shown_once_in_its_order(lines: list[str]) -> None:
    found = calls.read(lines)
    assert [line.raw for call in found for line in call.lines] == lines
    for call in found:
        shown = [item.line.raw for item in steps.explain(call)]
        kinds = (calls.STEP, calls.NOTE, calls.OTHER)
        assert shown == [line.raw for line in call.lines if line.kind in kinds]
        numbers = [item.number for item in steps.explain(call) if isinstance(item, Step)]
        assert numbers == list(range(1, len(numbers) + 1))
        json.dumps(steps.as_json(call))
    for width in (None, 80, 40):
        for parts in text.render(found, width):
            assert all(part.kind in vars(text).values() for part in parts)


@settings(deadline=None)
@given(st.lists(A_LINE.map(lambda line: line.replace("\n", " "))))
def test_every_command_is_in_the_text_once(lines: list[str]) -> None:
    shown = "\n".join(text.plain(calls.read(lines), verbose=True))
    steps_of = [item for call in calls.read(lines) for item in steps.explain(call, verbose=True) if isinstance(item, Step)]
    position = 0
    for step in steps_of:
        for line in step.shown:
            position = shown.index(line, position) + len(line)


def test_title_of_every_kind() -> None:
    (call,) = calls.read(journal_of("ip link set cni0 up", configuration=FLANNEL))
    assert (call.verb, call.plugin, call.network, call.pod) == ("ADD", "flannel", "cbr0", "shop/web-1")
    assert (call.container_id, call.ifname, call.netns) == ("c1", "eth0", "/run/netns/c1")
    assert (call.outcome, call.seconds, call.configuration) == ("done", pytest.approx(0.00841), FLANNEL)
    title = "# 2026-11-24T10:00:00Z GC bridge, network a, b, container -, - in -"
    (gc,) = calls.read([title])
    assert (gc.verb, gc.network, gc.container_id, gc.netns, gc.outcome) == ("GC", "a, b", "", "", "")
    (other,) = calls.read(["# 2026-11-24T10:00:00Z sweep, grace 300 s"])
    assert (other.verb, other.title) == ("", "sweep, grace 300 s")


# --- recognising ------------------------------------------------------------------------------------------------------

# a command of each function that makes a change, by module; the recorded cases have all others (support/recorded.py)
COMMANDS = {
    "flanneld/stores/shared_file.py": {"replace": ("install /dev/stdin /var/lib/flannel/net.json", "state")},
    "flanneld/saved.py": {"_append": ("tee -a /var/lib/cni-py/flanneld.json", "state")},
    "ipam/store.py": {
        "_write_step": ("printf 'c1\\r\\neth0' | install -m 600 /dev/stdin /var/lib/cni/networks/net/10.1.0.2", "reservation")
    },
    "kernel/sysctl.py": {"ensure": ("sysctl -w net/ipv4/ip_forward=1", "forwarding")},
    "kernel/vrf.py": {"create_vrf": ("ip link add red type vrf table 10", "vrf")},
    "kernel/rule.py": {
        "add_rule": ("nsenter --net=/run/netns/c1 ip -4 rule add from 10.1.0.2 lookup 100", "rule"),
        "delete_rule": ("nsenter --net=/run/netns/c1 ip -4 rule del from 10.1.0.2 lookup 100 priority 32765", "rule"),
    },
    "kernel/tap.py": {"create": ("nsenter --net=/run/netns/c1 ip tuntap add dev tap0 mode tap multi_queue", "interface")},
    "kernel/tun.py": {"open_tun": ("ip tuntap add dev flannel.1 mode tun", "interface")},
    "kernel/link.py": {
        "create_bridge": ("ip link add cni0 mtu 1450 address 0a:58:0a:f4:5b:01 type bridge vlan_filtering 1", "bridge"),
        "create_veth": (
            ("ip link add veth1a2b3c4d mtu 1450 master cni0 type veth peer name eth0 mtu 1450 netns /run/netns/c1"
            " && ip link property add dev veth1a2b3c4d altname cni:c1:eth0:cbr0"),
            "veth",
        ),
        "create_vlan_gateway": ("ip link add veth1 mtu 1500 master br0 type veth peer name br0.100 mtu 1500", "veth"),
        "set_port": ("ip link set veth1 up type bridge_slave hairpin on isolated off", "bridge"),
        "set_up": ("ip link set lo up", "interface"),
        "set_down": ("nsenter --net=/run/netns/c1 ip link set eth0 down", "interface"),
        "rename": ("ip link set eth0 name nic1", "interface"),
        "set_master": ("ip link set eth0 master red", "bridge"),
        "release": ("ip link set eth0 nomaster", "bridge"),
        "move": ("ip link set nic1 netns /run/netns/c1 name eth0 alias nic1", "device"),
        "set_alias": ("ip link set nic1 alias ''", "device"),
        "set_arp_on": ("ip link set nic1 arp on", "interface"),
        "set_promiscuous": ("ip link set br0 promisc on", "bridge"),
        "set_allmulticast": ("ip link set eth0 allmulticast on", "interface"),
        "set_txqueuelen": ("ip link set eth0 txqueuelen 500", "interface"),
        "set_mac": ("nsenter --net=/run/netns/c1 ip link set eth0 address 02:00:00:00:00:01", "interface"),
        "set_mtu": ("nsenter --net=/run/netns/c1 ip link set eth0 mtu 1400", "interface"),
        "delete_link": ("nsenter --net=/run/netns/c1 ip link del eth0", "interface"),
        "add_vlan": ("bridge vlan add dev veth1 vid 100 pvid untagged", "vlan"),
        "delete_vlan": ("bridge vlan del dev veth1 vid 1", "vlan"),
    },
    "kernel/vxlan.py": {
        "_correct": ("ip link set flannel.1 type vxlan nolearning", "tunnel"),
        "_create": ("ip link add flannel.1 mtu 1450 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472", "tunnel"),
    },
    "kernel/wireguard.py": {
        "set_device": ("wg set flannel-wg listen-port 51820 private-key /dev/stdin", "tunnel"),
        "set_peers": ("wg set flannel-wg peer AAAA= endpoint 192.0.2.2:51820 allowed-ips 10.1.0.0/24", "peer"),
        "remove_peer": ("wg set flannel-wg peer AAAA= remove", "peer"),
    },
    "kernel/route.py": {
        "add_route": ("nsenter --net=/run/netns/c1 ip route add 10.244.0.0/16 via 10.244.91.1 dev eth0", "route"),
        "put_route": ("ip route replace 10.1.0.2 dev veth1", "route"),
        "delete_connected_route": ("nsenter --net=/run/netns/c1 ip route del 10.1.0.0/24 dev eth0 proto kernel", "route"),
        "remove_route": ("ip route del 10.1.0.2 dev veth1", "route"),
    },
    "kernel/deletion.py": {"delete_in_background": ("nsenter --net=/run/netns/c1 ip link del eth0", "interface")},
    "kernel/virtual_link.py": {"create": ("ip link add eth0 link nic1 netns /run/netns/c1 mtu 1400 type macvlan mode bridge", "interface")},
    "kernel/address.py": {
        "add_address": ("nsenter --net=/run/netns/c1 ip addr add 10.244.91.2/24 broadcast 10.244.91.255 dev eth0", "address"),
        "delete_address": ("ip addr del 10.1.0.1/24 dev cni0", "address"),
    },
    "kernel/device.py": {
        "ensure_device": ("ip link add flannel.ipip mtu 1480 type ipip local 192.0.2.1", "tunnel"),
        "ensure_up": ("ip link set flannel.ipip mtu 1480 up", "interface"),
    },
    "kernel/conntrack.py": {
        "_delete": ("conntrack -D -f ipv4 -p udp --orig-port-dst 53", "connections"),
        "delete_original": ("conntrack -D -f ipv4 -p udp -s 10.244.0.2 -d 192.0.2.2", "connections"),
    },
    "kernel/tc.py": {
        "set_shape": ("tc qdisc replace dev veth1 root handle 1: tbf rate 125000bps burst 1000 limit 3125", "shaping"),
        "delete_root": ("tc qdisc del dev veth1 root", "shaping"),
        "create_ifb": ("ip link add bwp1 mtu 1500 type ifb && ip link set bwp1 up alias 'cni:c1:eth0:net'", "shaping"),
        "redirect": (
            "tc filter add dev veth1 parent ffff: protocol all prio 49152 u32 match u32 0 0 action mirred egress redirect dev bwp1",
            "shaping",
        ),
        "_delete_filter": ("tc filter del dev veth1 parent ffff: prio 49152", "shaping"),
        "delete_redirect": ("tc qdisc del dev veth1 ingress", "shaping"),
    },
    "kernel/bulk.py": {"change_many": ("bridge fdb replace 02:00:00:00:00:01 dev flannel.1 dst 192.0.2.2", "fdb")},
    "sweep/remove.py": {"remove_if_same": ("rm -f /var/lib/cni/networks/net/10.1.0.2", "reservation")},
    "packetfilter/firewalld.py": {
        "add": ("firewall-cmd --zone=trusted --add-source=10.1.0.2/32", "firewall"),
        "delete": ("firewall-cmd --zone=trusted --remove-source=10.1.0.2/32", "firewall"),
    },
    "packetfilter/iptables.py": {
        "apply": ("printf '%s\\n' '*nat' ':CNI-DN-0123 - [0:0]' COMMIT | /usr/sbin/iptables-nft-restore -w --noflush", "hostport")
    },
    "packetfilter/libnftables.py": {
        "run": ("nft 'add table bridge cni_py; add element bridge cni_py checked { veth1 }'", "mac"),
        "delete_elements": ("nft delete element inet cni_py masq4 '{ 10.1.0.2 }'", "masquerade"),
        "delete_unused_chains": ("nft 'flush chain inet cni_py beyond-10.1.0.0_24; delete chain inet cni_py beyond-10.1.0.0_24'", "masquerade"),
        "change": ("nft add element inet cni_py hostports4 '{ tcp . 8080 : 10.1.0.2 . 80 }'", "hostport"),
    },
    "files.py": {
        "make_directory": ("mkdir -p -m 755 /var/lib/cni/networks/net", "reservation"),
        "_install": ("printf %s '{}' | install -m 600 /dev/stdin /run/cni-py/attachments/c1:eth0:net", "record"),
        "remove": ("rm -f /run/cni-py/attachments/c1:eth0:net", "record"),
    },
}  # fmt: skip
MORE = [
    pytest.param("tc qdisc add dev veth1 handle ffff: ingress", "shaping", id="ingress"),
    pytest.param("ip neigh replace 10.1.0.0 lladdr 02:00:00:00:00:01 dev flannel.1 nud permanent", "neighbour", id="neigh"),
    pytest.param("ip route del blackhole 10.1.0.0/16 proto 151", "route", id="blackhole"),
    pytest.param(
        "printf '%s\\n' FLANNEL_MTU=1450 | install -m 644 /dev/stdin /run/flannel/subnet.env", "state", id="subnet.env"
    ),
    pytest.param("sysctl -w net/core/somaxconn=500", "sysctl", id="sysctl"),
    pytest.param("sysctl -w net/ipv4/conf/cni0/route_localnet=1", "hostport", id="route_localnet"),
]
ROWS = [pytest.param(*row, id=f"{module}:{name}") for module, of in COMMANDS.items() for name, row in of.items()] + MORE


@pytest.mark.parametrize(("command", "group"), ROWS)
def test_command_is_recognised(command: str, group: str) -> None:
    step = step_of(command)
    assert (step.group, step.line.text) == (group, command)
    assert step.what.endswith(".")
    assert step.why.text
    assert "{" not in step.what + step.why.text


def step_sites() -> Iterator[tuple[str, str]]:
    """Module and function of every ``step(…)`` in the package."""
    for source in sorted(PACKAGE.rglob("*.py")):
        for function in [node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.FunctionDef)]:
            called = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
            if any(isinstance(name, ast.Name) and name.id == "step" for name in called):
                yield str(source.relative_to(PACKAGE)), function.name


def test_every_function_that_makes_changes_is_in_the_table() -> None:
    ours = {(module, name) for module, of in COMMANDS.items() for name in of}
    assert set(step_sites()) | {("kernel/bulk.py", "change_many")} == ours


def test_every_group_and_every_shape_has_its_words() -> None:
    for table in (SHAPES, ON_HOST, OF_DAEMON):
        assert {shape.group for shape in table} <= GROUPS.keys()
        assert len({shape.pattern for shape in table}) == len(table), "a second row would never be tried"
        assert all(shape.why.endswith(".") and shape.what.endswith(".") for shape in table)


@pytest.mark.parametrize(
    ("command", "group", "what", "why"),
    [
        ("ip addr add 10.244.38.0/32 dev flannel.1", "address", "Assign 10.244.38.0/32 to flannel.1.", "Packets of the node itself"),
        ("ip route replace 10.1.0.0/24 via 10.1.0.0 dev flannel.1 onlink proto 122", "route", "Route 10.1.0.0/24 via 10.1.0.0", "The lease"),
        ("ip route del 10.1.0.0/24 via 10.1.0.0 dev flannel.1 onlink proto 122", "route", "Delete the route", "No lease"),
        ("ip neigh replace 10.1.0.0 lladdr c2:00:00:00:00:01 dev flannel.1 nud permanent", "neighbour", "Enter c2:00:00:00:00:01 as the MAC address of 10.1.0.0", "The other"),
        ("bridge fdb replace c2:00:00:00:00:01 dev flannel.1 dst 192.0.2.2 self permanent", "fdb", "Send frames for c2:00:00:00:00:01 through flannel.1", "The other node"),
        ("printf '%s\\n' FLANNEL_MTU=1450 | install -m 644 /dev/stdin /run/flannel/subnet.env", "state", "Write /run/flannel/subnet.env.", "The plugin"),
        ("install -m 600 /dev/stdin /var/lib/cni-py/flanneld.json", "state", "Save the leases in /var/lib/cni-py/flanneld.json.", "If flanneld starts"),
    ],
)  # fmt: skip
def test_what_flanneld_does_has_its_own_reasons(command: str, group: str, what: str, why: str) -> None:
    step = step_of(command, title="# 2026-11-24T10:00:00Z a session begins: vxlan over eth0")
    assert step.group == group
    assert step.what.startswith(what)
    assert step.why.text.startswith(why)


@pytest.mark.parametrize("command", ["reboot --now", "ip link frobnicate x", "nft list ruleset", "'", "ip link set 'x", "a\\"])
def test_unknown_command_is_shown_as_it_is(command: str) -> None:
    step = step_of(command)
    assert (step.group, step.what, step.shown) == (OTHER, "", (command,))


def test_damaged_line_takes_no_time() -> None:
    """A pattern that tries every place for every wildcard would not come to an end."""
    for command in (
        "printf " + "a > " * 20_000,
        "'" * 60_001,
        "ip link add " + "type veth peer " * 5_000,
        "nft '" + "{;" * 30_000 + "'",
    ):
        step_of(command)


# --- reasons ----------------------------------------------------------------------------------------------------------

SAVE = f"printf %s {quote(json.dumps(SAVED))} | install -m 600 /dev/stdin /var/lib/cni/flannel/c1"


@pytest.mark.parametrize(
    ("command", "source", "asked"),
    [
        ("ip link set v up type bridge_slave hairpin on isolated off", "configuration", '"delegate.hairpinMode": true in the configuration'),
        ("sysctl -w net/ipv4/ip_forward=1", "flannel", '"isGateway": true, which flannel sets'),
        ("nsenter --net=/run/netns/c1 ip addr add 10.244.91.2/24 dev eth0", "subnet.env", "FLANNEL_SUBNET=10.244.91.1/24 in subnet.env"),
        ("nsenter --net=/run/netns/c1 ip addr add fd00:91::2/64 dev eth0", "subnet.env", "FLANNEL_IPV6_SUBNET=fd00:91::1/64 in subnet.env"),
        ("nsenter --net=/run/netns/c1 ip route add 10.244.0.0/16 dev eth0", "subnet.env", "FLANNEL_NETWORK=10.244.0.0/16 in subnet.env"),
        ("nsenter --net=/run/netns/c1 ip link set eth0 mtu 1450", "subnet.env", "FLANNEL_MTU=1450 in subnet.env"),
        (f"nft {quote(NFT)}", "subnet.env", "FLANNEL_IPMASQ=false in subnet.env"),
    ],
)  # fmt: skip
def test_what_asked_in_the_chain_of_flannel(command: str, source: str, asked: str) -> None:
    step = only(SAVE, command, configuration=FLANNEL)[1]
    assert isinstance(step, Step)
    assert (step.why.source, step.why.asked()) == (source, asked)


@pytest.mark.parametrize(
    ("configuration", "source", "asked"),
    [
        ({"type": "bridge", "isGateway": True}, "configuration", '"isGateway": true in the configuration'),
        ({"type": "bridge", "isDefaultGateway": True, "isGateway": False}, "configuration", '"isDefaultGateway": true in the configuration'),
        ({"type": "bridge"}, "default", '"isDefaultGateway" is not set: its default'),
        (None, "unknown", '"isDefaultGateway"'),
    ],
)  # fmt: skip
def test_what_asked_of_a_plugin(configuration: Any, source: str, asked: str) -> None:
    title = TITLE.replace("ADD flannel", "ADD bridge")
    step = step_of("sysctl -w net/ipv4/ip_forward=1", title=title, configuration=configuration)
    assert (step.why.source, step.why.asked()) == (source, asked)


def test_runtime_and_specification_are_named() -> None:
    ports = [{"hostPort": 8080, "containerPort": 80}]
    configuration = {"type": "portmap", "runtimeConfig": {"portMappings": ports}}
    command = "nft add element inet cni_py hostports4 '{ tcp . 8080 : 10.1.0.2 . 80 }'"
    step = step_of(command, title=TITLE.replace("flannel", "portmap"), configuration=configuration)
    assert (step.why.source, step.why.key, step.why.value) == ("runtime", "runtimeConfig.portMappings", ports)
    assert step.why.spec() == "CNI conventions: portMappings"
    record = step_of("printf %s '{}' | install -m 600 /dev/stdin /run/cni-py/attachments/c1:eth0:net")
    assert record.why.spec() == "CNI specification 1.1.0, section 2, ADD"


def test_undone_and_deleted_changes_have_that_reason() -> None:
    first, note, second = only("ip link set cni0 up", "# undo: the veth", "ip link del veth1")
    assert isinstance(first, Step)
    assert isinstance(second, Step)
    assert isinstance(note, Note)
    assert "later change failed" in second.why.text
    assert "later change failed" not in first.why.text
    assert "DEL" in step_of("ip link del veth1", title=TITLE.replace("ADD", "DEL")).why.text


def test_a_change_belongs_to_the_link_that_it_helps_to_make() -> None:
    lines = [COMMANDS["kernel/link.py"]["create_bridge"][0], "sysctl -w net/ipv6/conf/cni0/accept_ra=0", "ip link set cni0 up"]
    lines += [
        COMMANDS["kernel/link.py"]["create_veth"][0],
        "ip link set veth1a2b3c4d up",
        "nsenter --net=/run/netns/c1 ip link set eth0 up",
    ]
    groups = [item.group for item in only(*lines) if isinstance(item, Step)]
    assert groups == ["bridge", "bridge", "bridge", "veth", "veth", "interface"]


def test_lease_of_dhcp_is_a_group_though_another_process_made_it() -> None:
    lines = list(
        text.plain(calls.read(journal_of("ip link set eth0 up", "# the DHCP daemon has leased 10.1.0.7, gateway none")))
    )
    assert (
        lines[lines.index("  Lease of the address (DHCP)") + 1] == "       # the DHCP daemon has leased 10.1.0.7, gateway none"
    )


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [row.values[0] for row in ROWS])
def test_shown_command_never_waits_for_the_keyboard(command: str) -> None:
    """Every command that reads standard input gets it from a pipe or a file, and what is missing is said."""
    shown = step_of(command).shown
    has_content = re.search(r"^printf .* \| ", shown[-1]) is not None
    reads = re.search(r"/dev/stdin|^(nsenter \S+ )?tee |-restore ", command) is not None
    assert ("CONTENT" in shown[-1]) == (shown[0] == commands.NO_CONTENT) == (reads and not has_content)
    assert has_content or "/dev/stdin" not in shown[-1]


def test_script_of_nft_folds_what_pods_share() -> None:
    short, long = (
        step_of(f"nft {quote(NFT)}").shown,
        commands.shown(f"nft {quote(NFT)}", parse(f"nft {quote(NFT)}"), verbose=True),
    )
    assert short == (
        "nft '",
        "    # 1 table, 1 chain, 1 map, 1 rule that pods share: -v shows them",
        '    add element inet cni_py masq4 { 10.244.91.2 comment "c1 eth0 cb6e746f" : goto beyond-10.244.91.0_24 }',
        "'",
    )
    assert len(long) == 7
    assert [line.strip() for line in long[1:-1]] == [
        'add table inet cni_py { comment "cni-py: pods; all"; }',
        "add map inet cni_py masq4 { type ipv4_addr : verdict; }",
        "add chain inet cni_py postrouting { type nat hook postrouting priority srcnat; policy accept; }",
        'add rule inet cni_py postrouting ip saddr vmap @masq4 comment "a pod: on"',
        'add element inet cni_py masq4 { 10.244.91.2 comment "c1 eth0 cb6e746f" : goto beyond-10.244.91.0_24 }',
    ]


WORDS = st.lists(
    st.text(st.characters(codec="ascii", exclude_characters="\0\n\r"), min_size=0, max_size=90), min_size=1, max_size=12
)


def typed(shown: str) -> list[str]:
    """The words that a shell makes of what is shown."""
    done = subprocess.run(["/bin/sh", "-c", f"printf '%s\\0' {shown}"], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


@settings(deadline=None)
@given(WORDS, st.integers(20, 100), st.integers(0, 8))
def test_broken_command_is_the_same_command(words: list[str], width: int, indent: int) -> None:
    line = " ".join(map(quote, words))
    lines = list(commands.wrapped([line], width, indent))
    assert typed("\n".join(lines).strip()) == words == shlex.split(line)
    assert all(len(one) <= width for one in lines)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_broken_script_is_the_same_script(width: int) -> None:
    """nft joins a line that ends with a backslash to the next one; so do we, and compare."""
    text_of = NFT.replace("a pod: on", "it's a pod: " + "x" * 90)
    script = commands.shown(f"nft {quote(text_of)}", parse(f"nft {quote(text_of)}"), verbose=True)
    lines = list(commands.wrapped(script, width, 7))
    assert all(len(line) <= width for line in lines)
    ((_, inside),) = [typed("\n".join(lines).strip())]
    joined = re.sub(r" +", " ", inside.replace("\\\n", " ")).strip()
    assert [one.strip() for one in joined.split("\n")] == [one.strip() for one in text_of.split("; add ")[0:1]] + [
        f"add {one.strip()}" for one in text_of.split("; add ")[1:]
    ]


# --- text -------------------------------------------------------------------------------------------------------------


def test_text_of_a_call() -> None:
    lines = list(text.plain(calls.read(journal_of("ip link set cni0 up", "# undo: all", configuration=FLANNEL))))
    assert lines[0] == "ADD flannel, network cbr0, pod shop/web-1, container c1, eth0 in /run/netns/c1"
    assert "    1  Set cni0 up. [10:00:00.000000, 0.25 ms]" in lines
    assert "       ip link set cni0 up" in lines
    assert "       # undo: all" in lines
    assert lines[-1] == "  done (8.41 ms)"


@pytest.mark.parametrize("width", [40, 60, 80, 132])
def test_text_keeps_within_the_terminal(width: int) -> None:
    every = [row.values[0] for row in ROWS] + [SAVE, f"nft {quote(NFT)}"]
    for parts in text.render(calls.read(journal_of(*every, configuration=FLANNEL)), width, verbose=True):
        line = "".join(part.text for part in parts)
        assert len(line) <= width, line
