"""CNI spec, section 2, "Parameters": the variables of every verb of every plugin, through the executables."""

from __future__ import annotations

from typing import Any

import pytest

from cni_py import plugin_table
from support.namespaces import Host, Sandbox
from support.spec_cases import (
    PLUGINS,
    VERSIONS,
    code_of,
    conf,
    environment,
    error_of,
    execute,
    has,
    has_attachment,
    host_ends,
    new_id,
    new_sandbox,
)

pytestmark = pytest.mark.netns

ATTACHED = ("ADD", "DEL", "CHECK")
REQUIRED = {
    "ADD": ("CONTAINERID", "NETNS", "IFNAME"),
    "CHECK": ("CONTAINERID", "NETNS", "IFNAME"),
    "DEL": ("CONTAINERID", "IFNAME"),
}
EVERY_REQUIRED = [(verb, f"CNI_{name}") for verb, names in REQUIRED.items() for name in names]


@pytest.fixture(scope="module")
def box(warm_node: Host) -> Sandbox:
    """A sandbox that nothing must ever be put into."""
    return new_sandbox(warm_node)


# --- CNI_COMMAND ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["FROB", "add", "ADD ", " ", "ADD\n", "ADDX", "АDD", "__class__"])
@pytest.mark.parametrize("plugin", PLUGINS)
def test_unknown_command_is_named(node: Host, box: Sandbox, plugin: str, verb: str) -> None:
    error = error_of(node.call(plugin, verb, conf(plugin), sandbox=box))
    assert error["code"] == 4
    assert "CNI_COMMAND" in error["msg"]
    assert verb in error["msg"]


# --- variables that are required --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize(("verb", "name"), EVERY_REQUIRED)
@pytest.mark.parametrize("plugin", PLUGINS)
def test_required_variable_is_missing(node: Host, box: Sandbox, plugin: str, verb: str, name: str, value: str | None) -> None:
    """ "The error message must contain the names of invalid variables": those and no others."""
    error = error_of(node.call(plugin, verb, conf(plugin), sandbox=box, env={name: value}))
    assert error["code"] == 4
    assert name in error["msg"]
    assert [other for other in REQUIRED[verb] if f"CNI_{other}" != name and f"CNI_{other}" in error["msg"]] == []


@pytest.mark.parametrize("verb", ATTACHED)
@pytest.mark.parametrize("plugin", PLUGINS)
def test_all_missing_variables_are_named_at_once(node: Host, plugin: str, verb: str) -> None:
    error = error_of(execute(node, plugin, {"CNI_COMMAND": verb}, b"{}"))
    assert error["code"] == 4
    assert all(f"CNI_{name}" in error["msg"] for name in REQUIRED[verb])


@pytest.mark.parametrize("verb", ATTACHED)
def test_environment_is_checked_before_the_configuration(node: Host, verb: str) -> None:
    """Wrong environments are reported immediately, whatever is on standard input."""
    assert code_of(execute(node, "flannel", {"CNI_COMMAND": verb}, b"{")) == 4


@pytest.mark.parametrize("plugin", PLUGINS)
def test_path_is_optional(node: Host, plugin: str) -> None:
    """The spec's list of optional parameters; GC has it as a required one, libcni always sends it."""
    for value in (None, "", ":", "relative", "/does/not/exist:/dev/null"):
        box = new_sandbox(node, plugin)  # sbr leaves its routes to the deletion of the namespace
        of: dict[str, Any] = {"sandbox": box, "container_id": new_id()}
        bare: dict[str, Any] = {"env": {"CNI_PATH": value}}
        result = node.ok(plugin, "ADD", conf(plugin), **of, **bare)
        node.ok(plugin, "CHECK", conf(plugin), prev=result, **of, **bare)
        node.ok(plugin, "DEL", conf(plugin), prev=result, **of, **bare)
        node.ok(plugin, "STATUS", conf(plugin), **bare)
        node.ok(plugin, "GC", conf(plugin), **bare)
        node.delete_netns(box)


# --- CNI_CONTAINERID --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "container_id",
    [
        ".",
        "..",
        ".hidden",
        "-rf",
        "_x",
        "a/b",
        "../../etc/passwd",
        "a b",
        "a\nb",
        "a\n",
        "a:b",
        "a*",
        "ä",
        "日本",
        "a\x7f",
        "x" * 201,
    ],
)
@pytest.mark.parametrize("plugin", PLUGINS)
def test_container_id_that_cannot_be(node: Host, box: Sandbox, plugin: str, container_id: str) -> None:
    for verb in ATTACHED:
        error = error_of(node.call(plugin, verb, conf(plugin), sandbox=box, container_id=container_id))
        assert error["code"] == 4
        assert "containerID" in error["msg"]
        assert "CNI_CONTAINERID" in error["details"]


@pytest.mark.parametrize("container_id", ["a", "0", "Z.", "a-_.b", "d0d7" * 16, "x" * 200])
@pytest.mark.parametrize("plugin", PLUGINS)
def test_container_id_that_can_be(node: Host, plugin: str, container_id: str) -> None:
    box = new_sandbox(node, plugin)
    result = node.ok(plugin, "ADD", conf(plugin), sandbox=box, container_id=container_id)
    node.ok(plugin, "CHECK", conf(plugin), sandbox=box, container_id=container_id, prev=result)
    node.delete_netns(box)
    node.ok(plugin, "DEL", conf(plugin), container_id=container_id)
    assert not [
        name for name, text in node.files().items() if container_id in (text.partition("\r")[0], name.rpartition("/")[2])
    ]


@pytest.mark.parametrize("plugin", ["flannel", "bridge", "host-local"])
def test_longest_names_of_all_kinds_together(node: Host, plugin: str) -> None:
    """Container id, network and interface name end up in one file name and one alternative name of a link."""
    box = new_sandbox(node, plugin)
    network = conf(plugin, name="n" * 200)
    of: dict[str, Any] = {"container_id": "c" * 200, "ifname": "i" * 15}
    result = node.ok(plugin, "ADD", network, sandbox=box, **of)
    node.ok(plugin, "CHECK", network, sandbox=box, prev=result, **of)
    node.delete_netns(box)
    before = node.files()
    node.ok(plugin, "GC", network | {"cni.dev/valid-attachments": [{"containerID": "c" * 200, "ifname": "i" * 15}]})
    assert node.files() == before
    node.ok(plugin, "GC", network)
    assert not [name for name, text in node.files().items() if "c" * 100 in name + text]
    assert not host_ends(node)


# --- CNI_IFNAME -------------------------------------------------------------------------------------------------------

IMPOSSIBLE = [
    ".", "..", "all", "default", "a" * 16, "é" * 8, "日本語日本語", "a/b", "a:b", "a b", "a\nb", "\n", "a\tb", "a\x0b",
    "e\u00a0h", "à", "eth%d", "%s", "a\x7f", "a\x01", "a\u200b", "a\u2028", "../../x",
]  # fmt: skip


@pytest.mark.parametrize("ifname", IMPOSSIBLE)
@pytest.mark.parametrize("plugin", PLUGINS)
def test_interface_name_that_cannot_be(node: Host, box: Sandbox, plugin: str, ifname: str) -> None:
    for verb in ATTACHED:
        error = error_of(node.call(plugin, verb, conf(plugin), sandbox=box, ifname=ifname))
        assert error["code"] == 4
        assert "interface name" in error["msg"]
        assert "CNI_IFNAME" in error["details"]


@pytest.mark.parametrize(
    "ifname", ["a", "a" * 15, "é" * 7, "日本語日本", "eth0.100", "eth0-x_y", "-x", "😀", "a'b", 'a"b', "$x", "a;b", "#", "~"]
)
@pytest.mark.parametrize("plugin", ["flannel", "bridge", "host-local"])
def test_interface_name_that_can_be(node: Host, plugin: str, ifname: str) -> None:
    box = new_sandbox(node, plugin)
    of: dict[str, Any] = {"sandbox": box, "container_id": new_id(), "ifname": ifname}
    result = node.ok(plugin, "ADD", conf(plugin), **of)
    if plugin != "host-local":
        assert ifname in [interface["name"] for interface in result["interfaces"]]
        assert ifname in [link["ifname"] for link in node.json("ip -j link", box)]
    node.ok(plugin, "CHECK", conf(plugin), prev=result, **of)
    node.ok(plugin, "DEL", conf(plugin), prev=result, **of)
    assert [link["ifname"] for link in node.json("ip -j link", box)] == ["lo"]
    node.delete_netns(box)


@pytest.mark.parametrize("name", ["CNI_IFNAME", "CNI_CONTAINERID", "CNI_COMMAND"])
def test_variable_that_is_no_utf8(node: Host, box: Sandbox, name: str) -> None:
    env = environment(node, "ADD", box) | {name: b"a\xff\xfe"}
    assert code_of(execute(node, "bridge", env, b'{"name":"n","cniVersion":"1.1.0"}')) == 4


# --- CNI_NETNS --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("netns", ["/run/netns/a\nb", "/" + "x" * 5000])
@pytest.mark.parametrize("plugin", PLUGINS)
def test_path_of_a_sandbox_that_cannot_be(node: Host, plugin: str, netns: str) -> None:
    for verb in ATTACHED:
        error = error_of(node.call(plugin, verb, conf(plugin), sandbox=netns, container_id=new_id()))
        assert error["code"] == 4
        assert "CNI_NETNS" in error["msg"]


@pytest.mark.parametrize("path", [b"/run/netns/\xff\xfe", "/run/netns/ö b'c".encode()])
def test_path_of_a_sandbox_in_any_bytes(node: Host, path: bytes) -> None:
    """A file name is bytes; the result has them as well as JSON can say them."""
    file = f"\"$(printf '{octal(path)}')\""
    node.run(f"ip netns add odd && touch {file} && mount --bind /run/netns/odd {file}")
    env = environment(node, "ADD", container_id=new_id()) | {"CNI_NETNS": path}
    rc, stdout, stderr = execute(node, "loopback", env, b'{"name":"n","cniVersion":"1.1.0"}')
    assert (rc, stderr) == (0, b""), stdout
    node.run(f"umount {file}; ip netns delete odd")


def octal(path: bytes) -> str:
    """Format for printf(1)."""
    return "".join(f"\\{byte:03o}" for byte in path)


# --- CNI_ARGS ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", ["x", "=x", "a=b;", ";", "a=b=c", "a=b;;c=d", "a"])
@pytest.mark.parametrize("plugin", ["flannel", "bridge", "host-local"])
def test_args_that_are_no_pairs(node: Host, box: Sandbox, plugin: str, args: str) -> None:
    error = error_of(node.call(plugin, "ADD", conf(plugin), sandbox=box, container_id=new_id(), args=args))
    assert error["code"] == 4
    assert "ARGS" in error["msg"]


ODD_ARGS = (
    "none", "A=1;", ";", "=", "a=b=c", "K8S_POD_NAME", "FOO=BAR", "IgnoreUnknown=maybe", "IP=nonsense", "MAC=nonsense",
    'IgnoreUnknown=1;K8S_POD_NAME=web;K8S_ANNOT={"selector":"app=web"}',
)  # fmt: skip
READERS = {
    **{plugin: ["ADD"] for plugin, row in plugin_table.PLUGINS.items() if row.gives_addresses},
    "static": ["ADD", "CHECK"],
    "tuning": ["ADD", "CHECK"],
}
"""Verbs that read CNI_ARGS, or hand them to a plugin that does."""


@pytest.mark.parametrize("args", ODD_ARGS)
@pytest.mark.parametrize("plugin", PLUGINS)
def test_args_are_rejected_only_by_a_verb_that_reads_them(node: Host, plugin: str, args: str) -> None:
    """DEL of every plugin ignores them, and so does each verb of one that reads none."""
    box = new_sandbox(node, plugin)
    of: dict[str, Any] = {"sandbox": box, "container_id": new_id()}
    given = {verb: "" if verb in READERS.get(plugin, []) else args for verb in ("ADD", "CHECK")}
    result = node.ok(plugin, "ADD", conf(plugin), args=given["ADD"], **of)
    node.ok(plugin, "CHECK", conf(plugin), prev=result, args=given["CHECK"], **of)
    node.ok(plugin, "DEL", conf(plugin), prev=result, args=args, **of)
    node.ok(plugin, "DEL", conf(plugin), args=args, **of)
    node.delete_netns(box)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "odd",
    [
        {"args": "none"},
        {"container_id": "a/b"},
        {"ifname": "all"},
        {"env": {"CNI_IFNAME": None}},
        {"env": {"CNI_COMMAND": "X"}},
    ],
    ids=["args", "id", "ifname", "missing", "verb"],
)
def test_error_of_the_environment_has_the_version_of_the_configuration(
    node: Host, box: Sandbox, version: str, odd: dict[str, Any]
) -> None:
    error = error_of(node.call("bridge", "ADD", conf("bridge", version), **({"sandbox": box} | odd)))
    assert (error["code"], error["cniVersion"]) == (4, version)


@pytest.mark.parametrize("version", VERSIONS)
def test_error_before_the_call_has_the_version_of_the_configuration(node: Host, box: Sandbox, version: str) -> None:
    assert error_of(node.call("bridge", "ADD", conf("bridge", version, name="a/b"), sandbox=box))["cniVersion"] == version
    if not has(version, "STATUS"):
        assert error_of(node.call("bridge", "STATUS", conf("bridge", version)))["cniVersion"] == version


@pytest.mark.parametrize(
    "args", ["", "IgnoreUnknown=1", "IgnoreUnknown=true;K8S_POD_NAME=p;K8S_POD_UID=", "K8S_POD_NAME=p;IgnoreUnknown=1"]
)
@pytest.mark.parametrize("plugin", PLUGINS)
def test_args_as_runtimes_send_them(node: Host, plugin: str, args: str) -> None:
    box = new_sandbox(node, plugin)
    of: dict[str, Any] = {"sandbox": box, "container_id": new_id(), "args": args}
    result = node.ok(plugin, "ADD", conf(plugin), **of)
    node.ok(plugin, "CHECK", conf(plugin), prev=result, **of)
    node.ok(plugin, "DEL", conf(plugin), **of)
    node.delete_netns(box)


@pytest.mark.parametrize("plugin", ["flannel", "bridge", "host-local"])
def test_unknown_args_are_rejected_unless_ignored(node: Host, box: Sandbox, plugin: str) -> None:
    of: dict[str, Any] = {"sandbox": box, "container_id": new_id()}
    error = error_of(node.call(plugin, "ADD", conf(plugin), args="FOO=BAR", **of))
    assert error["code"] == 4
    assert "FOO=BAR" in error["msg"]
    node.ok(plugin, "DEL", conf(plugin), **of)


# --- the network's name -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [None, "", ".", "..", "/", "a/b", "../x", "-x", "_x", "a b", "a\n", "é", "a:b", "x" * 201, 7, True, [], {"a": 1}]
)
@pytest.mark.parametrize("plugin", PLUGINS)
def test_network_name_that_cannot_be(node: Host, box: Sandbox, plugin: str, name: Any) -> None:
    for verb in (*ATTACHED, "STATUS", "GC"):
        reply = node.call(plugin, verb, conf(plugin, name=name), sandbox=box if has_attachment(verb) else None)
        error = error_of(reply)
        assert error["code"] == 7
        assert "network name" in error["msg"]


@pytest.mark.parametrize("plugin", PLUGINS)
def test_network_name_is_needed(node: Host, box: Sandbox, plugin: str) -> None:
    nameless = conf(plugin)
    del nameless["name"]
    assert code_of(node.call(plugin, "ADD", nameless, sandbox=box)) == 7


@pytest.mark.parametrize("name", ["a", "0", "cbr0", "a.b-c_d", "N" * 200])
@pytest.mark.parametrize("plugin", PLUGINS)
def test_network_name_that_can_be(node: Host, plugin: str, name: str) -> None:
    box = new_sandbox(node, plugin)
    of: dict[str, Any] = {"sandbox": box, "container_id": new_id()}
    node.ok(plugin, "ADD", conf(plugin, name=name), **of)
    node.ok(plugin, "DEL", conf(plugin, name=name), **of)
    node.delete_netns(box)


def test_nothing_is_left_of_all_that(node: Host, box: Sandbox) -> None:
    """Last in this file: nothing that was refused above left a trace, and what was made was taken away."""
    assert [link["ifname"] for link in node.json("ip -j link", box)] == ["lo"]
    left = {name: text for name, text in node.files().items() if "last_reserved_ip" not in name}
    assert left == {}
    assert host_ends(node) == []
