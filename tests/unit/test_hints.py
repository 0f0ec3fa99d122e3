"""Every hint in the sources: a command that changes something has a test that types it where it appears.

A hint that a person types at once must leave the node better off. So a new one fails here until it is words alone, or a
command that only reads, or has its scenario in COMMANDS.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.hints import READS, commands_in, hints_in, templates

ROOT = Path(__file__).resolve().parents[2]
CHECKED = "tests/netns/test_check.py::test_hints_repair_what_was_changed"
BANDWIDTH = "tests/netns/test_bandwidth.py::test_check_sees_what_was_changed"
TUNING = "tests/netns/test_tuning.py::test_check_sees_what_was_changed"
VLANS = "integration/kernel/test_bridge_vlan.py"
LAB = "integration/lab/test_lab.py"
LESSONS = "integration/lab/test_lessons.py"
ADVICE = "tests/netns/test_cli.py"
TLS = "integration/etcd/test_tls_errors.py"

COMMANDS = {
    # CHECK: each command is typed after each change, and CHECK then finds nothing
    "ip link set {} up": CHECKED,
    "ip link set {} name {}": CHECKED,
    "ip link set {} mtu {}": CHECKED,
    "{} address {}": CHECKED,
    "{} mtu {}": CHECKED,
    "ip addr add {} dev {}{}": CHECKED,
    "sysctl -w {}=1": CHECKED,
    "ip route replace {}": CHECKED,
    "ip link set {} master {}": CHECKED,
    "ip link set {} promisc on": CHECKED,
    "{} hairpin {}": CHECKED,
    "{} isolated {}": CHECKED,
    "cni-py repair": CHECKED,
    "nft flush chain {}; {}": CHECKED,
    "nsenter --net={} ip link set lo up": "tests/netns/test_check.py::test_loopback",
    "ip link set {} type bridge vlan_filtering 1": VLANS,
    "bridge vlan add dev {} vid {}{}": VLANS,
    "bridge vlan del dev {} vid {}": VLANS,
    "tc qdisc replace dev {} root handle 1: {}": BANDWIDTH,
    "{} dev {} ingress; tc filter add dev {} parent ffff: protocol all prio 1 u32 match u32 0 0 action mirred egress redirect dev {}": (
        BANDWIDTH
    ),
    "sysctl -w {}": TUNING,
    "ip link set {} {} {}": TUNING,
    # cni-py add, gc, status
    "to undo the changes of {}, which succeeded: {}": f"{ADVICE}::test_hint_after_a_later_plugin_failed_cleans_up",
    "to undo what was created: {}": f"{ADVICE}::test_hint_after_a_later_plugin_failed_cleans_up",
    "ip addr add {} dev {}": f"{ADVICE}::test_hint_about_a_bridge_without_address_gives_it_back",
    "ip addr del {} dev {}": f"{ADVICE}::test_former_subnet_on_the_bridge_is_kept_while_pods_use_it",
    "keep those whose namespace exists: cni-py gc {} --valid-living; or --all to delete every one": (
        f"{ADVICE}::test_gc_keeps_live_pods_unless_all_is_said"
    ),
    ', "ip netns add {}" creates one': f"{ADVICE}::test_hint_creates_the_namespace_that_is_missing",
    "list the reservations with their container ids: grep -r . {}; remove those of deleted pods: cni-py sweep": (
        f"{ADVICE}::test_hint_of_a_full_range_frees_the_addresses_of_deleted_pods_alone"
    ),
    # etcd
    "create one: {}": f"{TLS}::test_hint_about_a_missing_configuration_creates_one",
    "delete keys that do not belong there; see: {}": (
        "integration/etcd/test_etcd_store.py::test_values_of_any_size_are_read_in_parts_and_cost_no_other_lease"
    ),
    "see its state: {}": f"{TLS}::test_hint_of_an_etcd_that_is_down_is_a_command_for_it",
    "change one of the two; to give up the reservation: {}": f"{TLS}::test_hint_about_a_reservation_that_does_not_fit",
    "see: {}": f"{TLS}::test_hint_about_a_subnet_that_is_not_reserved",
    # a file as the datastore
    "create it: {}": "tests/unit/test_network_command.py::test_hint_about_a_missing_file_creates_it",
    # the lab
    "cni-py lab up": f"{LAB}::test_hints_of_the_lab_are_typed",
    "cni-py lab up --datastore etcd": f"{LAB}::test_hints_of_the_lab_are_typed",
    "cni-py lab status; cni-py lab down": f"{LAB}::test_hints_of_the_lab_are_typed",
    "cni-py lab heal {}": f"{LAB}::test_hints_of_the_lab_are_typed",
    "cni-py lab break {} {}; nodes: {}": f"{LAB}::test_hints_of_the_lab_are_typed",
    "without a node: cni-py lab break etcd": f"{LAB}::test_hints_of_the_lab_are_typed",
    "cni-py lab down removes the lab": f"{LAB}::test_hints_of_the_lab_are_typed",
    # lessons
    "cni-py lesson start {}": f"{LESSONS}::test_one_lesson_at_a_time_and_its_hints_are_typed",
    "cni-py lesson check {}": f"{LESSONS}::test_one_lesson_at_a_time_and_its_hints_are_typed",
    "cni-py lesson stop {}": f"{LESSONS}::test_one_lesson_at_a_time_and_its_hints_are_typed",
    "cni-py lesson check {}; cni-py lesson stop {}": f"{LESSONS}::test_one_lesson_at_a_time_and_its_hints_are_typed",
    "cni-py lesson stop {}; cni-py lesson start {}": f"{LESSONS}::test_one_lesson_at_a_time_and_its_hints_are_typed",
    "cni-py lesson list": f"{LESSONS}::test_one_lesson_at_a_time_and_its_hints_are_typed",
    "1 to {}: cni-py lesson list": f"{LESSONS}::test_one_lesson_at_a_time_and_its_hints_are_typed",
    "cni-py lab down removes it": f"{LESSONS}::test_no_other_lab_is_removed",
    "rm {}: the exercises then count as not started": f"{LESSONS}::test_progress_outlives_a_lesson",
    "cni-py lab down removes what is left of it, cni-py lab up creates a new one": f"{LAB}::test_hints_of_the_lab_are_typed",
}
"""Hints with a command that changes something, and the test that types it in the state that produced it."""

NOT_HERE = {
    "stop that one, systemctl stop flanneld; a second network on this node needs another -subnet-file": (
        "a choice between two flannelds; ending one costs no connection"
    ),
    "the plugins work without it; start it: systemctl start cni-agent.socket": "needs systemd",
    "systemctl restart cni-dhcp.socket; or run: dhcp daemon": "needs systemd; tests/netns/test_dhcp.py runs the daemon",
    "start it: systemctl start cni-dhcp.socket, or run: dhcp daemon": "needs systemd; tests/netns/test_dhcp.py runs the daemon",
    "try: modprobe {}; else use a kernel with {}": "loads a module into the machine's kernel",
    "if it needs that: sysctl -w net.ipv6.conf.{}.accept_ra=2": "a choice, in a warning of flanneld",
    "install them (names as in Debian): apt-get install {}": "installs packages of the machine",
    "install it: pip install 'cni-py[flanneld]'": "installs packages of the machine",
    "make install installs it": "integration/installation/test_install.py installs",
    "change it with: kubectl -n kube-flannel edit configmap kube-flannel-cfg": "needs a cluster, and opens an editor",
    "change it where it comes from, or: chmod u+w": "words of a permission",
    "a service account's token does: tokenFile, or kubectl create token": "needs a cluster",
    "make one: wg genkey": "prints a key; wireguard is not installed",
    "sudo cni-py sweep": "needs another user, with a password",
    "sudo cni-py lab up": "needs another user, with a password",
    "sudo cni-py walk {} {}": "needs another user, with a password",
}
"""Hints with a command that no test can type here, and why."""

UNFILLED = {
    "found in {}: set CNI_PATH={}",
    "one of {}",
    "{} must be a JSON object",
    "it must be {}",
    "see {}",
    "faults: {}",
    "nodes: {}",
    "places: {}",
    "existing networks: {}",
    "for example {}",
    'add to its "leases", for example, "10.244.1.0-24": {}',
    "if the pod was deleted, list what is left of it: cni-py sweep --dry-run; {}",
    "install it, or check the configuration's type and delegateMode: {}",
}
"""Hints that end with a value, which is no command."""


def may_hide_a_command(template: str) -> bool:
    """Return whether what is filled in may be the command: at the beginning, or after a colon."""
    return bool(re.search(r"(^|: ){}( |$|;)", template)) and "tls_probe" not in templates()[template]


def changes_something(template: str) -> bool:
    """Return whether the hint has a command that does not only read, or may have one."""
    changing = [command for command in commands_in(template) if not READS.match(command)]
    return bool(changing) or (may_hide_a_command(template) and template not in UNFILLED)


def test_command_that_changes_something_has_a_scenario() -> None:
    """A hint has a test that types it in the state that produced it."""
    tested = COMMANDS.keys() | NOT_HERE.keys()
    assert [f"{of}: {hint!r}" for hint, of in templates().items() if changes_something(hint) and hint not in tested] == []


def test_catalogue_has_no_hint_that_no_longer_exists() -> None:
    assert (COMMANDS.keys() | NOT_HERE.keys() | UNFILLED) - templates().keys() == set()


@pytest.mark.parametrize("scenario", sorted(set(COMMANDS.values())))
def test_scenario_exists(scenario: str) -> None:
    path, _, name = scenario.partition("::")
    text = (ROOT / path).read_text()
    assert not name or f"def {name}(" in text, scenario


def test_new_hint_is_found_wherever_it_is_written() -> None:
    source = """
raise InvalidConfig("a", "b", "rm -r /one")
raise Refused("a", hint=f"ip link del {x}")
error.hint = "nft flush ruleset" if bad else "see: ip addr"
def reason(): return "systemctl restart x"
found.expect("s", 1, 2, command(rtnl, f"ip link set {x} up"))
say("hint: cni-py del x", "  ")
""".replace("def reason", "def fault")
    assert set(hints_in(source)) == {
        "rm -r /one", "ip link del {}", "nft flush ruleset", "see: ip addr", "systemctl restart x", "ip link set {} up",
        "cni-py del x",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("hint", "commands", "reads"),
    [
        ("see: ip -br addr", ["ip -br addr"], True),
        ("choose another, or see: ss -tlnp sport = :8", ["ss -tlnp sport = :8"], True),
        ('"ip netns list" lists the names', ["ip netns list"], True),
        ("list them: cni-py explain; delete them", ["cni-py explain"], True),
        ("ip addr del {} dev {}", ["ip addr del {} dev {}"], False),
        ("to undo: cni-py del x y", ["cni-py del x y"], False),
        ("nft list chain {}", ["nft list chain {}"], True),
        ('use "vxlan" for IPv6', [], True),
        ("look at it: ls -lL {}", ["ls -lL {}"], True),
    ],
)
def test_commands_of_a_hint(hint: str, commands: list[str], reads: bool) -> None:
    assert commands_in(hint) == commands
    assert all(READS.match(command) for command in commands) == reads
