"""CNI spec, section 2, "CNI operations": every verb of every plugin in every version, through the executables."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import subprocess
import termios
from typing import Any

import pytest

from cni_py import plugin_table
from support.namespaces import GONE, PATH, Host, Sandbox
from support.nft import list_elements
from support.spec_cases import (
    BOTH_FAMILIES,
    CHAINED,
    FIRST_VERSION,
    PLUGINS,
    VERBS,
    VERSIONS,
    code_of,
    conf,
    environment,
    error_of,
    every_version,
    execute,
    has,
    has_attachment,
    new_id,
    new_sandbox,
    supports,
)

pytestmark = pytest.mark.netns

WITH_IPAM = ("flannel", "bridge", "host-local", "ptp", "macvlan", "tap")
ALL_VERSIONS = {"supportedVersions": list(VERSIONS)}


@pytest.fixture(scope="module")
def box(warm_node: Host) -> Sandbox:
    """A sandbox that nothing must ever be put into."""
    return new_sandbox(warm_node)


def versions_of(plugin: str) -> dict[str, list[str]]:
    return {"supportedVersions": [version for version in VERSIONS if supports(plugin, version)]}


def left_behind(host: Host, container_id: str) -> list[str]:
    """Return everything that still belongs to a container."""
    files = {name: text for name, text in host.files("/var/lib/cni", "/run/cni-py").items() if "/journal/" not in name}
    links = host.json("ip -j link show")
    return [
        *(name for name, text in files.items() if container_id in name + text),
        *(link["ifname"] for link in links if container_id in str(link.get("altnames", ""))),
        *(str(element) for element in list_elements(host) if element.container == container_id),
    ]


# --- all verbs in all versions ----------------------------------------------------------------------------------------


@every_version
@pytest.mark.parametrize("plugin", PLUGINS)
def test_attachment_lives_and_ends(node: Host, sandbox: Sandbox, plugin: str, version: str) -> None:
    of: dict[str, Any] = {"sandbox": sandbox, "container_id": new_id()}
    if not supports(plugin, version):
        for verb in ("ADD", "DEL", "CHECK"):
            assert code_of(node.call(plugin, verb, conf(plugin, version), **of)) == 1
        return
    result = node.ok(plugin, "ADD", conf(plugin, version), **of)
    assert result["cniVersion"] == version
    assert left_behind(node, of["container_id"]) or not plugin_table.PLUGINS[plugin].record
    if has(version, "CHECK"):
        assert node.ok(plugin, "CHECK", conf(plugin, version), prev=result, **of) is None
    for _ in range(2):  # "Plugins MUST accept multiple DEL calls"
        assert node.ok(plugin, "DEL", conf(plugin, version), prev=result, **of) is None
    assert not left_behind(node, of["container_id"])


@every_version
@pytest.mark.parametrize("verb", FIRST_VERSION)
@pytest.mark.parametrize("plugin", PLUGINS)
def test_verb_exists_from_its_version_on(node: Host, sandbox: Sandbox, plugin: str, verb: str, version: str) -> None:
    of: dict[str, Any] = {"sandbox": sandbox, "container_id": new_id()} if has_attachment(verb) else {}
    if not has(version, verb) or not supports(plugin, version):
        error = error_of(node.call(plugin, verb, conf(plugin, version), **of))
        assert error["code"] == 1
        assert verb in error["msg"] or not supports(plugin, version)
        return
    result = node.ok(plugin, "ADD", conf(plugin, version), **of) if of else None
    assert node.ok(plugin, verb, conf(plugin, version), prev=result, **of) is None
    if of:
        node.ok(plugin, "DEL", conf(plugin, version), **of)


@pytest.mark.parametrize("version", [None, ""])
@pytest.mark.parametrize("plugin", PLUGINS)
def test_configuration_without_version_means_0_1_0(node: Host, sandbox: Sandbox, plugin: str, version: str | None) -> None:
    of: dict[str, Any] = {"sandbox": sandbox, "container_id": new_id()}
    if not supports(plugin, "0.1.0"):
        assert code_of(node.call(plugin, "ADD", conf(plugin, version), **of)) == 1
        return
    assert node.ok(plugin, "ADD", conf(plugin, version), **of)["cniVersion"] == "0.1.0"
    assert code_of(node.call(plugin, "CHECK", conf(plugin, version), **of)) == 1
    assert code_of(node.call(plugin, "STATUS", conf(plugin, version))) == 1
    node.ok(plugin, "DEL", conf(plugin, version), **of)


@pytest.mark.parametrize("version", ["0.0.1", "0.3.2", "1.0", "1.1.1", "2.0.0", "v1.0.0", "1.0.0 ", "latest", "１.0.0"])
@pytest.mark.parametrize("plugin", PLUGINS)
def test_unknown_version_is_incompatible(node: Host, box: Sandbox, plugin: str, version: str) -> None:
    for verb in VERBS[:-1]:
        error = error_of(node.call(plugin, verb, conf(plugin, version), sandbox=box))
        assert error["code"] == 1
        assert error["cniVersion"] == "1.1.0"


# --- ADD --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", WITH_IPAM)
def test_second_add_is_refused_and_the_first_stays(node: Host, sandbox: Sandbox, plugin: str) -> None:
    """ "If an interface of the requested name already exists in the container, the CNI plugin MUST return with an error"."""
    of: dict[str, Any] = {"sandbox": sandbox, "container_id": new_id()}
    result = node.ok(plugin, "ADD", conf(plugin), **of)
    before = (node.files(), node.host_ends(), node.snapshot(sandbox)[str(sandbox)])
    error_of(node.call(plugin, "ADD", conf(plugin), **of))
    after = (node.files(), node.host_ends(), node.snapshot(sandbox)[str(sandbox)])
    assert without_rounds(after[0]) == without_rounds(before[0])
    assert after[1:] == before[1:]
    node.ok(plugin, "CHECK", conf(plugin), prev=result, **of)
    node.ok(plugin, "DEL", conf(plugin), **of)


def without_rounds(files: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in files.items() if "last_reserved_ip" not in name}


@pytest.mark.parametrize("plugin", ["flannel", "bridge"])
def test_interface_of_another_one_is_not_taken(node: Host, sandbox: Sandbox, plugin: str) -> None:
    node.run("ip link add eth0 type veth peer name other", sandbox)
    before = node.snapshot(sandbox)[str(sandbox)]
    container_id = new_id()
    error_of(node.call(plugin, "ADD", conf(plugin), sandbox=sandbox, container_id=container_id))
    assert node.snapshot(sandbox)[str(sandbox)] == before
    assert not [name for name in left_behind(node, container_id) if "attachments" not in name]
    node.run("ip link delete eth0", sandbox)
    node.ok(plugin, "DEL", conf(plugin), sandbox=sandbox, container_id=container_id)


@pytest.mark.parametrize("plugin", ["flannel", "bridge", "host-local"])
def test_container_may_be_added_with_two_interface_names(node: Host, sandbox: Sandbox, plugin: str) -> None:
    of: dict[str, Any] = {"sandbox": sandbox, "container_id": new_id()}
    first = node.ok(plugin, "ADD", conf(plugin), ifname="eth0", **of)
    second = node.ok(plugin, "ADD", conf(plugin), ifname="eth1", **of)
    assert first["ips"][0]["address"] != second["ips"][0]["address"]
    node.ok(plugin, "DEL", conf(plugin), ifname="eth0", **of)
    node.ok(plugin, "CHECK", conf(plugin), ifname="eth1", prev=second, **of)
    node.ok(plugin, "DEL", conf(plugin), ifname="eth1", **of)
    assert not left_behind(node, of["container_id"])


@pytest.mark.parametrize("plugin", ["flannel", "bridge", "loopback"])
def test_add_refuses_what_is_no_sandbox(node: Host, plugin: str) -> None:
    """Code 8 for a deleted namespace, a path that is not one, or the host's own; and nothing leaks."""
    node.run("mkdir -p /run/odd; echo text >/run/odd/file; : >/run/odd/empty; ln -sfn /proc/1/ns/net /run/odd/link")
    own = "/proc/self/ns/net"
    for netns in (own, "/proc/1/ns/net", "/run/odd/link", "/proc/1/ns/mnt", "/run/odd/file", "/run/odd/empty", "/run", GONE):
        container_id = new_id()
        error = error_of(node.call(plugin, "ADD", conf(plugin), sandbox=netns, container_id=container_id))
        assert error["code"] == 8, netns
        assert netns in error["msg"] + error.get("details", "")
        assert not [name for name in left_behind(node, container_id) if "attachments" not in name]
        assert code_of(node.call(plugin, "CHECK", conf(plugin), sandbox=netns, container_id=container_id)) in (8, 103)
        node.call(plugin, "DEL", conf(plugin), container_id=container_id)


def test_netns_override_lets_the_host_be_the_sandbox(node: Host) -> None:
    """CNI_NETNS_OVERRIDE, as libcni has it."""
    of: dict[str, Any] = {"sandbox": "/proc/self/ns/net", "env": {"CNI_NETNS_OVERRIDE": "1"}}
    assert node.ok("loopback", "ADD", conf("loopback"), **of)["interfaces"][0]["name"] == "lo"


# --- DEL --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("netns", ["", GONE, "/proc/999999999/ns/net"])
@pytest.mark.parametrize("plugin", PLUGINS)
def test_delete_needs_no_sandbox(node: Host, plugin: str, netns: str) -> None:
    """Namespaces may be deleted before DEL, whether the runtime knows it or not."""
    container_id, box = new_id(), new_sandbox(node, plugin)
    node.ok(plugin, "ADD", conf(plugin), sandbox=box, container_id=container_id)
    node.delete_netns(box)
    for _ in range(2):
        assert node.ok(plugin, "DEL", conf(plugin), sandbox=netns, container_id=container_id) is None
    assert not left_behind(node, container_id)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_delete_without_netns_variable(node: Host, sandbox: Sandbox, plugin: str) -> None:
    """The container still runs: its end of the veth goes all the same."""
    container_id = new_id()
    node.ok(plugin, "ADD", conf(plugin), sandbox=sandbox, container_id=container_id)
    node.ok(plugin, "DEL", conf(plugin), container_id=container_id, env={"CNI_NETNS": None})
    assert not left_behind(node, container_id)
    assert "eth0" not in node.run("ip -br link", sandbox) or plugin in CHAINED


@every_version
@pytest.mark.parametrize("plugin", PLUGINS)
def test_delete_of_what_was_never_added(node: Host, sandbox: Sandbox, plugin: str, version: str) -> None:
    before = (node.files(), node.host_ends(), node.snapshot(sandbox)[str(sandbox)])
    if not supports(plugin, version):
        assert code_of(node.call(plugin, "DEL", conf(plugin, version), sandbox=sandbox, container_id=new_id())) == 1
        return
    assert node.ok(plugin, "DEL", conf(plugin, version), sandbox=sandbox, container_id=new_id()) is None
    assert (node.files(), node.host_ends(), node.snapshot(sandbox)[str(sandbox)]) == before


@pytest.mark.parametrize("plugin", PLUGINS)
def test_delete_on_a_host_where_nothing_ever_was(host: Host, plugin: str) -> None:
    """No subnet.env, no bridge, no directory, no nftables table: success, and nothing is made."""
    before = host.snapshot()
    assert host.ok(plugin, "DEL", conf(plugin)) is None
    assert host.snapshot() == before
    assert "/var/lib/cni/networks" not in host.run("find /var/lib/cni")


def test_flannel_delete_needs_no_subnet_env(node: Host, sandbox: Sandbox) -> None:
    of: dict[str, Any] = {"sandbox": sandbox, "container_id": new_id()}
    node.ok("flannel", "ADD", conf("flannel"), **of)
    node.run("rm /run/flannel/subnet.env")
    try:
        assert code_of(node.call("flannel", "STATUS", conf("flannel"))) == 50
        node.ok("flannel", "DEL", conf("flannel"), **of)
        assert code_of(node.call("flannel", "ADD", conf("flannel"), **of)) == 11
        node.ok("flannel", "DEL", conf("flannel"), **of)
    finally:
        node.write_subnet_env(BOTH_FAMILIES)
    assert not left_behind(node, of["container_id"])


@pytest.mark.parametrize("plugin", ["flannel", "bridge", "loopback"])
def test_delete_never_touches_the_host_for_a_sandbox(node: Host, plugin: str) -> None:
    """CNI_NETNS is the host's own: refused, for the host's interface of that name is not the container's."""
    node.run("ip link add eth0 type veth peer name other")
    try:
        of: dict[str, Any] = {"sandbox": "/proc/self/ns/net", "container_id": new_id()}
        reply = node.call(plugin, "DEL", conf(plugin), **of)
        assert reply.rc == 0 or reply.code == 8
        assert node.json("ip -j link show eth0")
        assert "UP" in node.json("ip -j link show lo")[0]["flags"]
    finally:
        node.run("ip link delete eth0")


@pytest.mark.parametrize("prev", [{}, {"cniVersion": "1.1.0"}, None])
@pytest.mark.parametrize("plugin", PLUGINS)
def test_delete_with_an_empty_previous_result(node: Host, sandbox: Sandbox, plugin: str, prev: Any) -> None:
    """ "Plugins should still return without error if prevResult is empty"; null, as some runtimes send it, is none."""
    of: dict[str, Any] = {"sandbox": sandbox, "container_id": new_id()}
    node.ok(plugin, "ADD", conf(plugin), **of)
    node.ok(plugin, "DEL", conf(plugin, prevResult=prev), **of)
    assert not left_behind(node, of["container_id"])


# --- CHECK ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plugin", "damage"),
    [
        ("flannel", "ip link delete eth0"),
        ("bridge", "ip link delete eth0"),
        ("flannel", "ip addr flush dev eth0"),
        ("bridge", "ip addr flush dev eth0"),
        ("bridge", "ip link set eth0 down"),
        ("bridge", "ip route delete default"),
        ("loopback", "ip link set lo down"),
    ],
)
def test_check_sees_damage_in_the_sandbox(node: Host, sandbox: Sandbox, plugin: str, damage: str) -> None:
    of: dict[str, Any] = {"sandbox": sandbox, "container_id": new_id()}
    result = node.ok(plugin, "ADD", conf(plugin), **of)
    node.run(damage, sandbox)
    error = error_of(node.call(plugin, "CHECK", conf(plugin), prev=result, **of))
    assert error["code"] == 103
    assert "missing" in error["msg"] or "expected" in error["details"]
    node.ok(plugin, "DEL", conf(plugin), prev=result, **of)


@pytest.mark.parametrize("plugin", WITH_IPAM)
def test_check_goes_down_to_the_reservation(node: Host, sandbox: Sandbox, plugin: str) -> None:
    of: dict[str, Any] = {"sandbox": sandbox, "container_id": new_id()}
    result = node.ok(plugin, "ADD", conf(plugin), **of)
    address = result["ips"][0]["address"].partition("/")[0]
    node.run(f"rm /var/lib/cni/networks/{plugin}-net/{address}")
    assert code_of(node.call(plugin, "CHECK", conf(plugin), prev=result, **of)) == 103
    node.ok(plugin, "DEL", conf(plugin), prev=result, **of)


@pytest.mark.parametrize("plugin", WITH_IPAM)
def test_check_of_what_was_never_added_fails(node: Host, sandbox: Sandbox, plugin: str) -> None:
    error_of(node.call(plugin, "CHECK", conf(plugin), sandbox=sandbox, container_id=new_id()))


# --- STATUS -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plugin", "keys"),
    [
        ("host-local", {"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.5.0.0/30"}]]}}),
        ("bridge", {"bridge": "full0", "ipam": {"type": "host-local", "subnet": "10.5.1.0/30"}}),
    ],
)
def test_status_is_50_while_no_address_is_left(node: Host, sandbox: Sandbox, plugin: str, keys: dict[str, Any]) -> None:
    of: dict[str, Any] = {"sandbox": sandbox, "container_id": new_id()}
    network = conf(plugin) | keys | {"name": f"full-{plugin}"}
    assert node.ok(plugin, "STATUS", network) is None
    node.ok(plugin, "ADD", network, **of)
    error = error_of(node.call(plugin, "STATUS", network))
    assert error["code"] == 50
    assert "no IP addresses available in range set" in error["msg"]
    node.ok(plugin, "DEL", network, **of)
    node.ok(plugin, "STATUS", network)


@pytest.mark.parametrize("text", [None, "", "FLANNEL_MTU=1450\n", "\0\0", "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=x\n"])
def test_status_of_flannel_is_50_with_the_reason(host: Host, text: str | None) -> None:
    if text is not None:
        host.write_subnet_env(text)
    error = error_of(host.call("flannel", "STATUS", conf("flannel")))
    assert error["code"] == 50
    assert "subnet.env" in error["msg"]
    host.write_subnet_env()
    assert host.ok("flannel", "STATUS", conf("flannel")) is None


@pytest.mark.parametrize("plugin", PLUGINS)
def test_status_changes_nothing(host: Host, plugin: str) -> None:
    host.write_subnet_env()
    new_sandbox(host, plugin)
    before = host.snapshot()
    for _ in range(2):
        assert host.ok(plugin, "STATUS", conf(plugin)) is None
    assert host.snapshot() == before


# --- GC ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
@pytest.mark.parametrize("plugin", WITH_IPAM)
def test_gc_frees_what_is_not_in_the_list(node: Host, plugin: str, key: str) -> None:
    keep, drop, boxes = new_id(), new_id(), [new_sandbox(node, plugin), new_sandbox(node, plugin)]
    kept = node.ok(plugin, "ADD", conf(plugin), sandbox=boxes[0], container_id=keep)
    node.ok(plugin, "ADD", conf(plugin), sandbox=boxes[1], container_id=drop)
    node.delete_netns(boxes[1])
    valid = {key: [{"containerID": keep, "ifname": "eth0"}]}
    for _ in range(2):
        assert node.ok(plugin, "GC", conf(plugin) | valid) is None
    assert not left_behind(node, drop)
    node.ok(plugin, "CHECK", conf(plugin), sandbox=boxes[0], container_id=keep, prev=kept)
    node.ok(plugin, "GC", conf(plugin) | {key: []})
    assert not left_behind(node, keep)


@pytest.mark.parametrize("plugin", WITH_IPAM)
def test_gc_without_a_list_frees_only_what_is_certainly_dead(node: Host, plugin: str) -> None:
    alive, dead, boxes = new_id(), new_id(), [new_sandbox(node, plugin), new_sandbox(node, plugin)]
    living = node.ok(plugin, "ADD", conf(plugin), sandbox=boxes[0], container_id=alive)
    node.ok(plugin, "ADD", conf(plugin), sandbox=boxes[1], container_id=dead)
    node.delete_netns(boxes[1])
    node.ok(plugin, "GC", conf(plugin))
    assert not left_behind(node, dead)
    node.ok(plugin, "CHECK", conf(plugin), sandbox=boxes[0], container_id=alive, prev=living)
    node.ok(plugin, "DEL", conf(plugin), sandbox=boxes[0], container_id=alive)


@pytest.mark.parametrize("plugin", WITH_IPAM)
def test_gc_leaves_another_network_alone(node: Host, sandbox: Sandbox, plugin: str) -> None:
    other = conf(plugin, name="other-net")
    of: dict[str, Any] = {"sandbox": sandbox, "container_id": new_id()}
    result = node.ok(plugin, "ADD", other, **of)
    node.ok(plugin, "GC", conf(plugin) | {"cni.dev/valid-attachments": []})
    node.ok(plugin, "CHECK", other, prev=result, **of)
    node.ok(plugin, "DEL", other, **of)


@pytest.mark.parametrize("attachments", ["all", [1], [{"ifname": "eth0"}], [{"containerID": 7, "ifname": "eth0"}], {"a": 1}])
@pytest.mark.parametrize("plugin", WITH_IPAM)
def test_gc_with_a_list_that_is_none_frees_nothing(node: Host, sandbox: Sandbox, plugin: str, attachments: Any) -> None:
    of: dict[str, Any] = {"sandbox": sandbox, "container_id": new_id()}
    result = node.ok(plugin, "ADD", conf(plugin), **of)
    assert code_of(node.call(plugin, "GC", conf(plugin) | {"cni.dev/valid-attachments": attachments})) == 7
    node.ok(plugin, "CHECK", conf(plugin), prev=result, **of)
    node.ok(plugin, "DEL", conf(plugin), **of)


# --- VERSION ----------------------------------------------------------------------------------------------------------


@every_version
@pytest.mark.parametrize("plugin", PLUGINS)
def test_version_names_that_of_the_request(node: Host, plugin: str, version: str) -> None:
    expected = {"cniVersion": version} | versions_of(plugin)
    assert node.ok(plugin, "VERSION", {"cniVersion": version}) == expected
    assert node.ok(plugin, "VERSION", conf(plugin, version)) == expected
    assert node.ok(plugin, "VERSION", f'{{ "cniVersion" :\n\t"{version}" }}\n') == expected


@pytest.mark.parametrize(
    "stdin", ["", "{}", "null", "[]", "{", '{"cniVersion": "9.9.9"}', '{"cniVersion": 1}', "\0", "x" * 1000]
)
@pytest.mark.parametrize("plugin", PLUGINS)
def test_version_answers_whatever_comes(node: Host, plugin: str, stdin: str) -> None:
    assert node.ok(plugin, "VERSION", stdin) == {"cniVersion": "1.1.0"} | versions_of(plugin)


@pytest.mark.parametrize("redirect", ["</dev/null", "<&-", "</dev/zero", "2>&-", "<&- 2>&-"])
@pytest.mark.parametrize("plugin", PLUGINS)
def test_version_with_odd_descriptors(node: Host, plugin: str, redirect: str) -> None:
    rc, stdout, stderr = execute(node, plugin, environment(node, "VERSION"), redirect=redirect)
    assert (rc, stderr) == (0, b"")
    assert json.loads(stdout) == {"cniVersion": "1.1.0"} | versions_of(plugin)


def answer_of_version(node: Host, plugin: str, stdin: Any) -> Any:
    done = subprocess.run(
        node.command(f"{node.bin_dir}/{plugin}"),
        stdin=stdin,
        env=environment(node, "VERSION"),
        capture_output=True,
        timeout=30,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("sent", [b"", b'{"cniVersion":"1.0.0"}'])
@pytest.mark.parametrize("plugin", PLUGINS)
def test_version_does_not_wait_for_the_end_of_a_pipe(node: Host, plugin: str, sent: bytes) -> None:
    read_fd, write_fd = os.pipe()
    try:
        os.write(write_fd, sent)
        answer = answer_of_version(node, plugin, read_fd)
    finally:
        os.close(read_fd)
        os.close(write_fd)
    assert answer == {"cniVersion": "1.0.0" if sent else "1.1.0"} | versions_of(plugin)


def test_version_does_not_wait_for_a_terminal(node: Host) -> None:
    ours, its = pty.openpty()
    try:
        assert answer_of_version(node, "flannel", its) == {"cniVersion": "1.1.0"} | ALL_VERSIONS
    finally:
        os.close(ours)
        os.close(its)


def test_version_of_a_request_that_comes_in_two_parts(node: Host) -> None:
    child = subprocess.Popen(
        node.command(f"{node.bin_dir}/flannel"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(node, "VERSION"),
    )
    assert child.stdin is not None
    child.stdin.write(b'{"cniVer')
    child.stdin.flush()
    unread = 1
    while unread:  # until the plugin has read the first part: FIONREAD counts what is still in the pipe
        unread = int.from_bytes(fcntl.ioctl(child.stdin, termios.FIONREAD, b"\0" * 4), "little")
        assert child.poll() is None
    stdout, _ = child.communicate(b'sion":"0.4.0"}', timeout=30)
    assert json.loads(stdout)["cniVersion"] == "0.4.0"


def test_version_needs_no_other_variable(node: Host) -> None:
    rc, stdout, stderr = execute(node, "flannel", {"CNI_COMMAND": "VERSION"}, b'{"cniVersion":"1.0.0"}')
    assert (rc, stderr) == (0, b"")
    assert json.loads(stdout) == {"cniVersion": "1.0.0"} | ALL_VERSIONS


@pytest.mark.parametrize("verb", ["VERSION", "STATUS", "GC"])
def test_variables_of_an_attachment_do_not_matter_without_one(node: Host, verb: str) -> None:
    """libcni's ``args`` are those of ADD, DEL and CHECK; other variables are ignored."""
    odd: dict[str, str | None] = {"CNI_CONTAINERID": "../x", "CNI_IFNAME": "a" * 99, "CNI_NETNS": "x\ny", "CNI_ARGS": "rubbish"}
    node.ok("loopback", verb, conf("loopback"), env=odd)


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", [{}, {"CNI_COMMAND": ""}, {"CNI_CONTAINERID": "c1", "CNI_PATH": "/x"}])
@pytest.mark.parametrize("plugin", PLUGINS)
def test_run_by_hand_it_says_what_it_is(node: Host, plugin: str, env: dict[str, str | bytes]) -> None:
    rc, stdout, stderr = execute(node, plugin, {"PATH": PATH} | env)
    assert rc == 0
    assert not stdout
    text = stderr.decode()
    assert re.match(rf"CNI {plugin} plugin v\d+\.\d+\.\d+\+cni-py\.[\w.]+\n", text), "runtimes read it as a semantic version"
    assert all(version in text for version in versions_of(plugin)["supportedVersions"])
    assert "Traceback" not in text


def test_run_by_hand_on_a_terminal_it_does_not_wait(node: Host) -> None:
    ours, its = pty.openpty()
    try:
        done = subprocess.run(node.command(f"{node.bin_dir}/bridge"), stdin=its, env={}, capture_output=True, timeout=30)
    finally:
        os.close(ours)
        os.close(its)
    assert done.returncode == 0
    assert b"CNI bridge" in done.stderr


def test_launcher_by_another_name_is_no_plugin(node: Host) -> None:
    node.run(f"mkdir -p /run/odd; ln -sfn {node.bin_dir}/flannel /run/odd/calico; cp {node.bin_dir}/cni-plugin /run/odd/cp")
    for program in (f"{node.bin_dir}/cni-plugin", "/run/odd/calico", "/run/odd/cp"):
        for verb in VERBS:
            error = error_of(execute(node, program, environment(node, verb), b"{}"))
            assert error["code"] == 4
            assert program.rpartition("/")[2] in error["msg"]
        rc, stdout, stderr = execute(node, program, {})
        assert (rc, stdout) == (0, b"")
        assert b"CNI plugin of cni-py" in stderr
