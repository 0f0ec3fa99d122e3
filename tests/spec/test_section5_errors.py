"""CNI spec, section 5, "Error": input that cannot be read or makes no sense, through the executables."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.namespaces import Host, Sandbox
from support.spec_cases import (
    PLUGINS,
    VERBS,
    VERSIONS,
    code_of,
    conf,
    environment,
    error_of,
    execute,
    has_attachment,
    host_ends,
    new_sandbox,
)

pytestmark = pytest.mark.netns

WITH_INPUT = [verb for verb in VERBS if verb != "VERSION"]

UNDECODABLE = {
    "empty": b"",
    "blank": b" \n\t ",
    "half": b'{"name":"n"',
    "brace": b"{",
    "list": b"[]",
    "text": b'"x"',
    "number": b"7",
    "null": b"null",
    "true": b"true",
    "two": b"{}{}",
    "trailing": b'{"name":"n"}x',
    "comma": b'{"name":"n",}',
    "comment": b'{"name":"n"}//',
    "single quotes": b"{'name':'n'}",
    "bare": b"name: n",
    "NaN": b'{"name":"n","x":NaN}',
    "Infinity": b'{"name":"n","x":-Infinity}',
    "leading zero": b'{"name":"n","x":01}',
    "control character": b'{"name":"n\x01"}',
    "newline in text": b'{"name":"a\nb"}',
    "half a surrogate": b'{"name":"n","x":"\\ud800"}',
    "invalid UTF-8": b'{"name":"n","x":"\xff\xfe"}',
    "overlong UTF-8": b'{"name":"n","x":"\xc0\xaf"}',
    "UTF-16": '{"name":"n"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"name":"n"}',
    "NUL": b"\0" * 100,
    "binary": bytes(range(256)) * 10,
    "deep list": b'{"x":' + b"[" * 100_000,
    "deep object": b'{"x":' * 100_000,
    "deep and closed": b'{"x":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "many digits": b'{"name":"n","x":' + b"9" * 10_000 + b"}",
    "5 MiB": b'{"name":"n","x":"' + b"a" * (5 << 20) + b'"}',
    "5 MiB of blanks": b" " * (5 << 20) + b'{"name":"n"}',
}


@pytest.fixture(scope="module")
def sandbox(warm_node: Host) -> Sandbox:
    """Nothing must ever be put into it."""
    return new_sandbox(warm_node)


@pytest.mark.parametrize("stdin", UNDECODABLE.values(), ids=UNDECODABLE)
@pytest.mark.parametrize("plugin", PLUGINS)
def test_undecodable_input_is_code_6(node: Host, sandbox: Sandbox, plugin: str, stdin: bytes) -> None:
    error = error_of(execute(node, plugin, environment(node, "ADD", sandbox), stdin))
    assert error["code"] == 6
    assert error["cniVersion"] == "1.1.0"
    assert len(error["msg"]) < 1000


@pytest.mark.parametrize("verb", WITH_INPUT)
@pytest.mark.parametrize("plugin", PLUGINS)
def test_undecodable_input_is_code_6_for_every_verb(node: Host, sandbox: Sandbox, plugin: str, verb: str) -> None:
    for name in ("empty", "brace", "list", "invalid UTF-8", "deep list"):
        assert code_of(execute(node, plugin, environment(node, verb, sandbox), UNDECODABLE[name])) == 6


@pytest.mark.parametrize("redirect", ["<&-", "<&- 2>&-", "0</proc/1/mem"])
def test_input_that_cannot_be_read_is_code_5_or_6(node: Host, sandbox: Sandbox, redirect: str) -> None:
    assert code_of(execute(node, "flannel", environment(node, "ADD", sandbox), redirect=redirect)) in (5, 6)


def test_input_without_end_is_refused(node: Host, sandbox: Sandbox) -> None:
    assert code_of(execute(node, "bridge", environment(node, "ADD", sandbox), redirect="</dev/zero")) == 6


@pytest.fixture(scope="module")
def many_attachments() -> str:
    return json.dumps([{"containerID": f"{number:064x}", "ifname": "eth0"} for number in range(31_000)])


@pytest.mark.parametrize("plugin", PLUGINS)
def test_large_configuration_is_read(node: Host, plugin: str, many_attachments: str) -> None:
    """A GC of thousands of attachments: 3 MiB."""
    network = json.dumps(conf(plugin))[:-1] + f', "cni.dev/valid-attachments": {many_attachments}}}'
    assert len(network) > 3 << 20
    node.ok(plugin, "GC", network)


def test_version_of_an_error_is_that_of_the_request(node: Host, sandbox: Sandbox) -> None:
    for version in VERSIONS:
        network = conf("bridge", version, hairpinMode=True, promiscMode=True)
        error = error_of(node.call("bridge", "ADD", network, sandbox=sandbox))
        assert (error["code"], error["cniVersion"]) == (7, version)


# a key of a plugin, and values that it cannot have
WRONG: list[tuple[str, str, list[Any]]] = [
    ("flannel", "delegate", [7, "x", [], True]),
    ("flannel", "ipam", [7, "x", [1]]),
    ("flannel", "subnetFile", [7, {}, False]),
    ("flannel", "dataDir", [7, "relative", "/a/../b", "", "/a\0b", "/" + "x" * 5000]),
    ("flannel", "delegateMode", [7, "", "maybe", "EXEC"]),
    ("flannel", "runtimeConfig", [7, "x", []]),
    ("flannel", "masqueradeBeyond", ["x", True]),
    ("bridge", "bridge", [7, "", "a" * 16, "a/b", "a b", ".", "all", "x\n"]),
    ("bridge", "isGateway", ["yes", 1, 0, "true"]),
    ("bridge", "isDefaultGateway", ["yes", 1]),
    ("bridge", "forceAddress", ["yes", 1]),
    ("bridge", "ipMasq", ["yes", 1]),
    ("bridge", "ipMasqBackend", ["x", 7]),
    ("bridge", "masqueradeExcept", ["10.0.0.0/8", ["x"], [7]]),
    ("bridge", "mtu", ["1500", -1, 65536, 1500.5, True, 1 << 80]),
    ("bridge", "hairpinMode", ["yes", 1]),
    ("bridge", "promiscMode", ["yes", 1]),
    ("bridge", "vlan", ["1", -1, 4095, 1.5, True]),
    ("bridge", "vlanTrunk", [7, [7], [{"id": 0}], [{"id": 4095}], [{"minID": 5}], [{"minID": 5, "maxID": 4}]]),
    ("bridge", "macspoofchk", ["yes", 1]),
    ("bridge", "disableContainerInterface", [1, True]),
    ("bridge", "portIsolation", ["yes", 1]),
    ("bridge", "enabledad", ["yes", 1]),
    ("bridge", "ipam", [7, "x", {"type": 7}, {"type": "../x"}]),
    ("bridge", "dns", [7, {"nameservers": "x"}, {"search": [7]}, {"domain": 7}]),
    ("bridge", "args", [7, {"cni": 7}, {"cni": {"mac": 7}}, {"cni": {"mac": "x"}}]),
    ("bridge", "runtimeConfig", [7, {"mac": 7}, {"mac": "c2:11"}, {"mac": "c2:11:22:33:44:5g"}]),
    (
        "host-local",
        "ipam",
        [None, 7, "x", {}, {"type": "host-local"}, {"ranges": []}, {"ranges": [[]]}, {"ranges": [[7]]}, {"subnet": "x"}],
    ),
    ("host-local", "args", [7, {"cni": {"ips": "10.1.2.3"}}, {"cni": {"ips": ["x"]}}]),
    ("host-local", "runtimeConfig", [7, {"ips": [7]}, {"ipRanges": [7]}, {"ipRanges": [[{"subnet": "10.1.2.0/24"}]]}]),
    ("portmap", "snat", ["yes", 1]),
    ("portmap", "masqAll", ["yes", 1]),
    ("portmap", "markMasqBit", ["1", -1, 32, 1.5, True]),
    ("portmap", "externalSetMarkChain", [7, {}, []]),
    ("portmap", "conditionsV4", ["x", [7], {}]),
    ("portmap", "conditionsV6", ["x", [7], {}]),
    ("portmap", "backend", [7, "x", []]),
    ("sbr", "table", ["7", 0, -1, 1 << 32]),
    ("sbr", "gateways", [["x"], "10.1.2.1", [7], ["10.1.2.1", "10.1.2.2"]]),
    ("firewall", "ingressPolicy", ["closed", 7, []]),
    ("firewall", "backend", [7, []]),
    ("firewall", "firewalldZone", [7]),
    ("firewall", "iptablesAdminChainName", [7, "a b", "x" * 29, "-j", "a\nCOMMIT"]),
    ("tuning", "mtu", ["1400", -1, 1.5, True, 1 << 31]),
    ("tuning", "txQLen", ["7", -1, []]),
    ("tuning", "promisc", ["yes", 1]),
    ("tuning", "sysctl", ["net", [], {"kernel.hostname": "x"}, {"net.core.somaxconn": 7}]),
    ("tuning", "mac", [7, "zz"]),
    ("tuning", "dataDir", ["relative", 7]),
    ("bandwidth", "ingressRate", ["1M", -1, 1.5, True, 1 << 64, []]),
    ("bandwidth", "runtimeConfig", [{"bandwidth": 7}, {"bandwidth": {"egressBurst": "x"}}]),
    (
        "portmap",
        "runtimeConfig",
        [7, "x", {"portMappings": "x"}, {"portMappings": [7]}, {"portMappings": [{"hostPort": "80"}]}],
    ),
]


WORDS = {
    "args": ("mac", "ip"),
    "ipMasqBackend": ("backend",),
    "ipam": ("ip ranges", "range set", "plugin type", "cidr", "subnet"),
    "masqueradeExcept": ("masquerade",),
    "runtimeConfig": ("mac", "ip", "range set"),
    "vlanTrunk": ("minid",),
}
"""Known sentences of the Go plugins that name no key; a message may have one instead of the key."""


@pytest.mark.parametrize(("plugin", "key", "values"), WRONG, ids=[f"{plugin}-{key}" for plugin, key, _ in WRONG])
def test_wrong_value_is_code_7_and_names_the_key(
    node: Host, sandbox: Sandbox, plugin: str, key: str, values: list[Any]
) -> None:
    for value in values:
        network = conf(plugin, ipMasq=True) | {key: value} if plugin == "bridge" else conf(plugin, **{key: value})
        reply = node.call(plugin, "ADD", network, sandbox=sandbox)
        if reply.rc == 0:
            node.call(plugin, "DEL", network, sandbox=sandbox)
        error = error_of(reply)
        assert error["code"] == 7, (value, error)
        text = (error["msg"] + error.get("details", "")).lower()
        assert any(word in text for word in (key.lower(), *WORDS.get(key, ()))), (value, error)


@pytest.mark.parametrize("version", [7, True, 1.0, [], {}, ["1.0.0"]])
@pytest.mark.parametrize("plugin", PLUGINS)
def test_version_that_is_no_text(node: Host, sandbox: Sandbox, plugin: str, version: Any) -> None:
    for verb in WITH_INPUT:
        of = {"sandbox": sandbox} if has_attachment(verb) else {}
        assert code_of(node.call(plugin, verb, conf(plugin, cniVersion=version), **of)) in (1, 6, 7)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_unknown_keys_are_accepted(node: Host, plugin: str) -> None:
    odd = {
        "keyA": ["some more", {"deep": None}],
        "Bridge": "x",
        "": 1,
        "__class__": 2,
        "capabilities": {"mac": True},
        "é": "\u2028",
    }
    node.ok(plugin, "STATUS", conf(plugin) | odd)


@pytest.mark.parametrize("redirect", [">&-", ">/dev/full", ">&- 2>&-"])
def test_answer_that_cannot_be_written_is_a_failure(node: Host, redirect: str) -> None:
    """The runtime must not take it for success; one line says why, without a traceback."""
    rc, _, stderr = execute(node, "loopback", environment(node, "VERSION"), b"{}", redirect)
    assert rc == 1
    assert b"Traceback" not in stderr
    assert (b"could not write the reply" in stderr) == ("2>&-" not in redirect)


def test_error_is_one_line_of_json(node: Host) -> None:
    rc, stdout, stderr = execute(node, "flannel", {"CNI_COMMAND": "ADD"})
    assert (rc, stderr) == (1, b"")
    assert stdout.count(b"\n") <= 1
    assert json.loads(stdout)["code"] == 4


def test_nothing_is_left_of_all_that(node: Host, sandbox: Sandbox) -> None:
    """Last in this file: nothing that was refused above has left a trace."""
    assert {name: text for name, text in node.files("/var/lib/cni").items() if "last_reserved_ip" not in name} == {}
    assert host_ends(node) == []
    assert [link["ifname"] for link in node.json("ip -j link", sandbox)] == ["lo"]
