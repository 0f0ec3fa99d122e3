"""CNI spec, section 4, "Plugin Delegation": flannel's delegate and bridge's IPAM plugin, ours and foreign ones.

The foreign one is a shell script, `/run/fake/fake` (and its copies under other names): it records its environment and
standard input in /run/record, says something on standard error, and then does what `/run/fake/VERB` says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.namespaces import GONE, Host, Reply, Sandbox
from support.spec_cases import VERSIONS, code_of, conf, error_of

FAKE = """#!/bin/sh
n=$(ls /run/record | grep -c env)
tr '\\0' '\\n' </proc/$$/environ >/run/record/$n.env
cat >/run/record/$n.stdin
echo "the foreign plugin speaks: $CNI_COMMAND" >&2
[ ! -e "/run/fake/$CNI_COMMAND" ] || . "/run/fake/$CNI_COMMAND"
"""
RESULT = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "eth0", "mac": "c2:11:22:33:44:55", "mtu": 1400, "sandbox": "/run/netns/c1"}],
    "ips": [{"address": "10.244.91.7/24", "gateway": "10.244.91.1", "interface": 0}],
    "routes": [{"dst": "10.244.0.0/16"}],
}


@dataclass
class Recorded:
    """One execution of the foreign plugin."""

    env: dict[str, str]
    conf: dict[str, Any]

    @property
    def verb(self) -> str:
        return self.env["CNI_COMMAND"]


class Delegation:
    """A host with the foreign plugin, and a sandbox."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.write_subnet_env()
        host.run("mkdir /run/fake /run/record")
        host.write("/run/fake/fake", FAKE)
        host.run("chmod 755 /run/fake/fake; cp -p /run/fake/fake /run/fake/bridge; cp -p /run/fake/fake /run/fake/host-local")
        self.answer("ADD", RESULT)
        self.sandbox = host.netns("c1")

    def answer(self, verb: str, value: Any, status: int = 0) -> None:
        """Output and exit status of the third-party plugin."""
        self.script(verb, f"cat <<'END'\n{json.dumps(value)}\nEND\nexit {status}\n")

    def script(self, verb: str, shell: str) -> None:
        self.host.write(f"/run/fake/{verb}", shell)

    def call(
        self,
        plugin: str,
        verb: str,
        network: dict[str, Any],
        *,
        cni_path: str = "/run/fake",
        sandbox: Sandbox | str = "c1",
        **more: Any,
    ) -> Reply:
        if sandbox == "c1" and verb in ("ADD", "DEL", "CHECK"):
            more["sandbox"] = self.sandbox
        more["env"] = {"CNI_PY_EXPLAIN": "1"} | more.get("env", {})
        return self.host.call(plugin, verb, network, cni_path=cni_path, **more)

    def ok(self, *args: Any, **more: Any) -> Any:
        reply = self.call(*args, **more)
        assert reply.rc == 0, f"{reply.json}\n{reply.stderr[:3000]}"
        return reply.json

    @property
    def recorded(self) -> list[Recorded]:
        out = []
        for number in range(len(list(self.host.path("/run/record").glob("*.env")))):
            lines = self.host.path(f"/run/record/{number}.env").read_text().splitlines()
            text = self.host.path(f"/run/record/{number}.stdin").read_text()
            out.append(Recorded(dict(line.split("=", 1) for line in lines if "=" in line), json.loads(text)))
        return out

    @property
    def verbs(self) -> list[str]:
        return [recorded.verb for recorded in self.recorded]


@pytest.fixture
def delegation(host: Host) -> Delegation:
    return Delegation(host)


def flannel(version: str = "1.1.0", **keys: Any) -> dict[str, Any]:
    """flannel over the foreign plugin."""
    return {
        "name": "cbr0",
        "type": "flannel",
        "cniVersion": version,
        "delegate": {"type": "fake", "keyA": [1, {"b": 2}]},
    } | keys


def bridge(**keys: Any) -> dict[str, Any]:
    """bridge over the foreign plugin."""
    return {
        "name": "net1",
        "type": "bridge",
        "cniVersion": "1.1.0",
        "bridge": "br9",
        "ipam": {"type": "fake", "keyA": "x"},
    } | keys


def executions(reply: Reply) -> list[str]:
    """The plugins that were executed, as the journal on standard error has them."""
    return [line.split("# run ", 1)[1].rsplit("  (", 1)[0] for line in reply.stderr.splitlines() if line.startswith("# run ")]


# --- which one is run, and how ----------------------------------------------------------------------------------------


def test_flannel_finds_its_own_bridge_by_the_link_it_was_started_by(delegation: Delegation, host: Host) -> None:
    reply = delegation.call("flannel", "ADD", conf("flannel"), cni_path=host.bin_dir)
    assert reply.rc == 0
    assert executions(reply) == []


@pytest.mark.parametrize(
    "made_by", ["cp {launcher} /run/ours/bridge", "ln -s {launcher} /run/ours/bridge", "ln -s {bin}/bridge /run/ours/bridge"]
)
def test_ours_is_ours_as_a_copy_or_a_link(delegation: Delegation, host: Host, made_by: str) -> None:
    """Runtimes and images copy plugins about."""
    host.run("mkdir /run/ours; " + made_by.format(launcher=f"{host.bin_dir}/cni-plugin", bin=host.bin_dir))
    reply = delegation.call("flannel", "ADD", conf("flannel"), cni_path="/run/ours")
    assert reply.rc == 0
    assert executions(reply) == []
    assert host.json("ip -j link show eth0", delegation.sandbox)


def test_copy_of_a_copy_finds_the_others(delegation: Delegation, host: Host) -> None:
    """flannel itself was started as a copy."""
    host.run(f"mkdir /run/ours; for p in flannel bridge host-local; do cp {host.bin_dir}/cni-plugin /run/ours/$p; done")
    reply = delegation.call("/run/ours/flannel", "ADD", conf("flannel"), cni_path="/run/ours")
    assert reply.rc == 0
    assert executions(reply) == []


def test_foreign_plugin_by_the_name_of_ours_is_executed(delegation: Delegation, host: Host) -> None:
    """The first directory of CNI_PATH wins, as everywhere."""
    reply = delegation.call("flannel", "ADD", conf("flannel"), cni_path=f"/run/fake:{host.bin_dir}")
    assert executions(reply) == ["/run/fake/bridge ADD"]
    assert reply.json["ips"][0]["address"] == "10.244.91.7/24"
    assert delegation.verbs == ["ADD"]


def test_what_cannot_be_executed_is_not_found(delegation: Delegation, host: Host) -> None:
    host.run(
        "mkdir -p /run/a/bridge /run/b; cp /run/fake/fake /run/b/bridge; chmod 644 /run/b/bridge; ln -s /gone /run/b/host-local"
    )
    reply = delegation.call("flannel", "ADD", conf("flannel"), cni_path="/run/a:/run/b:/run/c:/dev/null")
    assert reply.rc == 0
    assert executions(reply) == []


@pytest.mark.parametrize(
    ("mode", "cni_path", "executed"),
    [
        ("auto", "", []),
        ("auto", "{bin}", []),
        ("auto", "/run/fake", ["/run/fake/bridge ADD"]),
        ("native", "", []),
        ("native", "{bin}", []),
        ("native", "/run/fake", []),
        ("exec", "{bin}", ["{bin}/bridge ADD"]),
        ("exec", "/run/fake", ["/run/fake/bridge ADD"]),
    ],
)
def test_delegate_mode(delegation: Delegation, host: Host, mode: str, cni_path: str, executed: list[str]) -> None:
    network = conf("flannel", delegateMode=mode)
    reply = delegation.call("flannel", "ADD", network, cni_path=cni_path.format(bin=host.bin_dir))
    assert reply.rc == 0, reply.json
    shown = [line for line in executions(reply) if "host-local" not in line]
    assert shown == [line.format(bin=host.bin_dir) for line in executed]
    assert len(delegation.verbs) == (1 if "/run/fake/bridge ADD" in executed else 0)
    assert delegation.call("flannel", "DEL", network, cni_path=cni_path.format(bin=host.bin_dir)).rc == 0


def test_mode_goes_down_to_the_ipam_plugin(delegation: Delegation, host: Host) -> None:
    network = conf("flannel", delegateMode="exec")
    reply = delegation.call("flannel", "ADD", network, cni_path=host.bin_dir)
    assert reply.rc == 0
    assert executions(reply) == [f"{host.bin_dir}/bridge ADD", f"{host.bin_dir}/host-local ADD"]


def test_all_modes_answer_the_same(delegation: Delegation, host: Host) -> None:
    answers = []
    for number, mode in enumerate(("auto", "native", "exec")):
        of: dict[str, Any] = {"container_id": f"m{number}", "ifname": f"eth{number}", "cni_path": host.bin_dir}
        network = conf("flannel", delegateMode=mode)
        result = delegation.ok("flannel", "ADD", network, **of)
        delegation.ok("flannel", "CHECK", network, prev=result, **of)
        delegation.ok("flannel", "STATUS", network, cni_path=host.bin_dir)
        answers.append(json.loads(json.dumps(result).replace(f"eth{number}", "eth0").replace(f"91.{number + 2}/", "91.2/")))
        for interface in answers[-1]["interfaces"]:
            interface.pop("mac")
            interface["name"] = interface["name"][:4]
        saved = json.loads(host.path(f"/var/lib/cni/flannel/m{number}").read_text())
        assert saved.pop("delegateMode") == mode
        answers[-1]["saved"] = saved
    assert answers[1] == answers[0]
    assert answers[2] == answers[0]
    for number in range(3):
        delegation.ok(
            "flannel", "DEL", conf("flannel"), container_id=f"m{number}", ifname=f"eth{number}", cni_path=host.bin_dir
        )
    assert host.host_ends() == []


@pytest.mark.parametrize(
    ("network", "plugin"),
    [
        (flannel(), "flannel"),
        (flannel(delegateMode="exec"), "flannel"),
        (flannel(delegateMode="native"), "flannel"),
        (conf("flannel", delegateMode="exec"), "flannel"),
        (bridge(), "bridge"),
        (bridge(delegateMode="native"), "bridge"),
        (bridge(delegateMode="exec", ipam={"type": "host-local", "subnet": "10.1.0.0/24"}), "bridge"),
    ],
)
def test_plugin_that_cannot_be_found_is_an_error(
    delegation: Delegation, host: Host, network: dict[str, Any], plugin: str
) -> None:
    before = (host.files(), host.host_ends())
    wanted = network["ipam"]["type"] if plugin == "bridge" else network["delegate"].get("type", "bridge")
    for verb in ("ADD", "STATUS"):
        error = error_of(delegation.call(plugin, verb, network, cni_path="/run/nothing"))
        assert error["code"] == (50 if verb == "STATUS" else 7)
        assert f'"{wanted}"' in error["msg"]
    assert (host.files(), host.host_ends()) == before


@pytest.mark.parametrize(
    "kind", ["../fake/fake", "/run/fake/fake", "a/b", "..", ".", "", "-fake", "fa ke", "fake\n", "f\u0000"]
)
def test_type_that_is_no_name_of_a_file_is_refused(delegation: Delegation, host: Host, kind: str) -> None:
    """ "Must not contain characters disallowed in file paths"."""
    before = (host.files(), host.host_ends())
    assert code_of(delegation.call("flannel", "ADD", flannel(delegate={"type": kind}))) == 7
    if kind:
        assert code_of(delegation.call("bridge", "ADD", bridge(ipam={"type": kind}))) == 7
    assert delegation.verbs == []
    assert (host.files(), host.host_ends()) == before


@pytest.mark.parametrize("kind", [7, None, [], {}, True])
def test_type_that_is_no_text_is_refused(delegation: Delegation, kind: Any) -> None:
    network = flannel(delegate={"type": kind})
    reply = delegation.call("flannel", "ADD", network, cni_path="")
    assert code_of(reply) == 7


@pytest.mark.parametrize("key", ["name", "ipam"])
def test_flannel_refuses_what_only_it_may_set(delegation: Delegation, key: str) -> None:
    error = error_of(delegation.call("flannel", "ADD", flannel(delegate={"type": "fake", key: {}})))
    assert error["code"] == 7
    assert f"'{key}'" in error["msg"]
    assert delegation.verbs == []


@pytest.mark.parametrize(
    ("plugin", "network"),
    [
        ("bridge", bridge(ipam={"type": "bridge"})),
        ("bridge", bridge(ipam={"type": "flannel"})),
        ("bridge", bridge(ipam={"type": "loopback"})),
        ("flannel", flannel(delegate={"type": "flannel"})),
    ],
)
@pytest.mark.parametrize("mode", ["auto", "native"])
def test_plugin_that_delegates_to_its_like_comes_to_an_end(
    delegation: Delegation, host: Host, plugin: str, network: dict[str, Any], mode: str
) -> None:
    """No endless recursion, nothing left; whether it is an error is the plugin's matter."""
    of = {"cni_path": host.bin_dir}
    for verb in ("ADD", "CHECK", "STATUS", "GC", "DEL", "DEL"):
        reply = delegation.call(plugin, verb, network | {"delegateMode": mode}, **of)
        assert reply.rc == 0 or error_of(reply)["code"] != 100, (verb, reply.json)
    assert host.host_ends() == []


# --- what the foreign plugin gets -------------------------------------------------------------------------------------


def test_delegate_gets_environment_and_configuration(delegation: Delegation) -> None:
    """ "The delegated plugin must receive all the same environment variables"."""
    env: dict[str, str | None] = {"FOO": "bar baz", "CNI_OTHER": "x"}
    delegation.ok(
        "flannel", "ADD", flannel(), env=env, args="IgnoreUnknown=1;K8S_POD_NAME=p", cni_path="/run/nothing:/run/fake"
    )
    (add,) = delegation.recorded
    expected = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/c1",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=p",
        "CNI_PATH": "/run/nothing:/run/fake",
        "FOO": "bar baz",
        "CNI_OTHER": "x",
    }
    assert {name: add.env.get(name) for name in expected} == expected
    assert add.conf == {
        "name": "cbr0",
        "type": "fake",
        "cniVersion": "1.1.0",
        "keyA": [1, {"b": 2}],
        "ipMasq": True,
        "mtu": 1450,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.91.0/24"}]], "routes": [{"dst": "10.244.0.0/16"}]},
    }


def test_ipam_plugin_gets_the_complete_configuration(delegation: Delegation) -> None:
    """ "in the IPAM case, not just the ipam section of the configuration"."""
    network = bridge(keyB={"deep": [1.5, "é", None, True]}, runtimeConfig={"mac": "c2:11:22:33:44:55", "other": 1})
    delegation.ok("bridge", "ADD", network)
    delegation.ok("bridge", "DEL", network)
    add, delete = delegation.recorded
    assert (add.verb, delete.verb) == ("ADD", "DEL")
    assert add.conf == network
    assert delete.conf == network


def test_delegate_keeps_what_the_user_set(delegation: Delegation) -> None:
    own = {"type": "fake", "ipMasq": False, "mtu": 9000, "isGateway": False, "cniVersion": "9", "runtimeConfig": {"x": 1}}
    ipam = {"type": "other", "dataDir": "/x", "routes": [{"dst": "1.2.3.0/24"}], "ranges": "mine"}
    delegation.ok("flannel", "ADD", flannel("1.0.0", delegate=own, ipam=ipam, runtimeConfig={"mac": "m"}))
    (add,) = delegation.recorded
    assert add.conf == {
        "name": "cbr0",
        "type": "fake",
        "cniVersion": "1.0.0",
        "ipMasq": False,
        "mtu": 9000,
        "isGateway": False,
        "runtimeConfig": {"mac": "m"},
        "ipam": {
            "type": "other",
            "dataDir": "/x",
            "ranges": [[{"subnet": "10.244.91.0/24"}]],
            "routes": [{"dst": "1.2.3.0/24"}, {"dst": "10.244.0.0/16"}],
        },
    }


@pytest.mark.parametrize("verb", ["CHECK", "DEL"])
def test_later_verbs_get_the_configuration_that_add_used(delegation: Delegation, host: Host, verb: str) -> None:
    """The saved configuration is used, whatever was edited in between, and the previous result is passed."""
    delegation.ok("flannel", "ADD", flannel())
    host.write_subnet_env("FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUBNET=10.9.9.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=true\n")
    delegation.ok("flannel", verb, flannel(delegate={"type": "bridge", "keyB": 1}), prev=RESULT)
    add, later = delegation.recorded
    assert later.verb == verb
    sent = later.conf.pop("prevResult")
    assert sent["ips"] == RESULT["ips"]
    assert later.conf == add.conf


def test_null_reaches_the_delegate(delegation: Delegation) -> None:
    """The user's ``delegate`` is the user's: a null in it is a value (Go-compatible: a map in flannel.go)."""
    own = {"type": "fake", "keyA": None, "keyB": {"c": None}, "mtu": None}
    delegation.ok("flannel", "ADD", flannel(delegate=own))
    (add,) = delegation.recorded
    assert {key: add.conf.get(key, "missing") for key in own} == own


def test_number_that_no_float_can_hold_reaches_the_delegate_as_json(delegation: Delegation, host: Host) -> None:
    """1e999 is a JSON number; as a float it is infinite, which JSON has no word for."""
    text = json.dumps(flannel()).replace('"keyA": [1', '"keyA": [1e999')
    assert host.call("flannel", "ADD", text, sandbox=delegation.sandbox, cni_path="/run/fake").rc == 0
    assert "nf" not in host.path("/run/record/0.stdin").read_text().replace("interface", "")
    assert host.call("flannel", "DEL", text, sandbox=delegation.sandbox, cni_path="/run/fake").rc == 0
    assert delegation.verbs == ["ADD", "DEL"]


# --- results --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_result_of_the_delegate_is_in_the_requested_version(delegation: Delegation, version: str) -> None:
    delegation.answer("ADD", RESULT)
    result = delegation.ok("flannel", "ADD", flannel(version))
    assert result["cniVersion"] == version
    if version in ("0.1.0", "0.2.0"):
        assert result["ip4"] == {"ip": "10.244.91.7/24", "gateway": "10.244.91.1", "routes": [{"dst": "10.244.0.0/16"}]}
    else:
        assert result["ips"][0]["address"] == "10.244.91.7/24"
        assert result["interfaces"][0].get("mtu") == (1400 if version == "1.1.0" else None)


def test_result_without_a_version_is_in_that_of_the_configuration(delegation: Delegation) -> None:
    """The spec's own example of an IPAM plugin's result has no version."""
    delegation.answer("ADD", {"ip4": {"ip": "10.244.91.9/24"}})
    assert delegation.ok("flannel", "ADD", flannel("0.2.0"))["ip4"] == {"ip": "10.244.91.9/24"}


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 7, 11, 42, 99, 100, 101, 999, 123456])
@pytest.mark.parametrize("plugin", ["flannel", "bridge"])
def test_error_of_the_delegate_keeps_its_code_and_words(delegation: Delegation, host: Host, plugin: str, code: int) -> None:
    delegation.answer("ADD", {"cniVersion": "1.1.0", "code": code, "msg": "its own words é", "details": "and more"}, status=1)
    before = (host.files(), host.host_ends())
    error = error_of(delegation.call(plugin, "ADD", {"flannel": flannel(), "bridge": bridge()}[plugin]))
    assert error["code"] == code
    assert "its own words é" in error["msg"]
    assert '"fake"' in error["msg"]
    assert error["details"] == "and more"
    assert delegation.verbs == ["ADD", "DEL"]  # "should execute again with DEL before returning failure"
    assert (host.files(), host.host_ends()) == before
    assert [link["ifname"] for link in host.json("ip -j link", delegation.sandbox)] == ["lo"]


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        ("exit 3", "exit status 3"),
        ("echo rubbish; exit 1", "rubbish"),
        ("kill -9 $$; sleep 5", "signal 9"),
        ("kill -TERM $$; sleep 5", "signal 15"),
        ('echo \'{"code":"x","msg":7}\'; exit 1', "7"),
        ('echo \'{"code":0,"msg":""}\'; exit 1', "exit status 1"),
        ("echo '{\"code\":-5}'; exit 1", "exit status 1"),
        ('echo \'{"code":null,"msg":null}\'; exit 1', "exit status 1"),
        ("echo '[]'; exit 1", "[]"),
        ("echo 'not JSON'", "not JSON"),
        ("echo '[1]'", "not JSON"),
        ("echo 'null'", "not JSON"),
        ("printf '\\377\\376'", "not JSON"),
        ("head -c 3000000 /dev/zero", "3000000"),
        ("printf '%s' '{\"ips\":7}'", "ips"),
        ('printf \'%s\' \'{"ips":[{"address":"x"}]}\'', "x"),
        ("printf '%s' '{\"cniVersion\":\"9.9.9\"}'", "9.9.9"),
        ("printf '%s' '{\"cniVersion\":[1]}'", "cniVersion"),
        ("printf '%s' '{\"interfaces\":[{}]}'", "name"),
    ],
)
@pytest.mark.parametrize("plugin", ["flannel", "bridge"])
def test_delegate_that_goes_wrong(delegation: Delegation, host: Host, plugin: str, shell: str, words: str) -> None:
    """Always an error object that says how, a DEL, and nothing left."""
    delegation.script("ADD", shell)
    before = (host.files(), host.host_ends())
    error = error_of(delegation.call(plugin, "ADD", {"flannel": flannel(), "bridge": bridge()}[plugin]))
    assert words in error["msg"] + error.get("details", "")
    assert "fake" in error["msg"]
    assert type(error["code"]) is int
    assert delegation.verbs == ["ADD", "DEL"]
    assert (host.files(), host.host_ends()) == before


def test_error_code_that_is_no_number_becomes_100(delegation: Delegation) -> None:
    for code in (True, "7", 7.5, None, [7], -1, 0):
        delegation.answer("ADD", {"code": code, "msg": "m"}, status=1)
        assert code_of(delegation.call("flannel", "ADD", flannel())) == 100


def test_delegate_that_is_no_program(delegation: Delegation, host: Host) -> None:
    host.run("cd /run/fake; printf '#!/no/interpreter\\n' >odd; printf 'not a program' >text; chmod 755 odd text")
    for kind in ("odd", "text"):
        error = error_of(delegation.call("flannel", "ADD", flannel(delegate={"type": kind})))
        assert error["code"] == 5
        assert f"/run/fake/{kind}" in error["msg"]
    assert host.files() == {}


def test_failure_of_the_delete_that_follows_does_not_hide_the_first(delegation: Delegation) -> None:
    delegation.answer("ADD", {"code": 42, "msg": "first"}, status=1)
    delegation.answer("DEL", {"code": 43, "msg": "second"}, status=1)
    error = error_of(delegation.call("flannel", "ADD", flannel()))
    assert error["code"] == 42
    assert "first" in error["msg"]


@pytest.mark.parametrize("plugin", ["flannel", "bridge"])
def test_error_output_of_the_delegate_is_passed_through(delegation: Delegation, plugin: str) -> None:
    """ "Ensure that the delegated plugin's stderr is output to the calling plugin's stderr"."""
    network = {"flannel": flannel(), "bridge": bridge()}[plugin]
    for verb in ("ADD", "CHECK", "DEL", "GC", "STATUS"):
        reply = delegation.call(plugin, verb, network, prev=RESULT if verb == "CHECK" else None)
        assert f"the foreign plugin speaks: {verb}\n" in reply.stderr


# --- the other verbs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", ["flannel", "bridge"])
@pytest.mark.parametrize("verb", ["CHECK", "DEL", "GC", "STATUS"])
def test_every_verb_goes_down(delegation: Delegation, plugin: str, verb: str) -> None:
    """ "it must also execute any delegated plugins. If any of the delegated plugins return error, error should be returned"."""
    network = {"flannel": flannel(), "bridge": bridge()}[plugin]
    result = delegation.ok(plugin, "ADD", network)
    prev = result if verb in ("CHECK", "DEL") else None
    assert delegation.ok(plugin, verb, network, prev=prev) is None
    assert delegation.verbs == ["ADD", verb]
    delegation.ok(plugin, "DEL", network)
    delegation.ok(plugin, "ADD", network)
    delegation.answer(verb, {"code": 42, "msg": "no"}, status=1)
    error = error_of(delegation.call(plugin, verb, network, prev=prev))
    assert error["code"] == (50 if verb == "STATUS" else 42)
    assert "no" in error["msg"] + error.get("details", "")


@pytest.mark.parametrize("plugin", ["flannel", "bridge"])
@pytest.mark.parametrize("shell", ["echo done", "printf '\\377'", "echo '{}'", "echo null", "echo '[1'"])
def test_output_where_none_is_expected_does_not_matter(delegation: Delegation, plugin: str, shell: str) -> None:
    """DEL, CHECK, GC and STATUS have no output: a plugin that chats there and ends well has done it."""
    network = {"flannel": flannel(), "bridge": bridge()}[plugin]
    result = delegation.ok(plugin, "ADD", network)
    for verb in ("CHECK", "STATUS", "GC", "DEL"):
        delegation.script(verb, shell)
        delegation.ok(plugin, verb, network, prev=result if verb in ("CHECK", "DEL") else None)


@pytest.mark.parametrize("plugin", ["flannel", "bridge"])
def test_delete_that_failed_can_be_tried_again(delegation: Delegation, host: Host, plugin: str) -> None:
    network = {"flannel": flannel(), "bridge": bridge()}[plugin]
    delegation.ok(plugin, "ADD", network)
    delegation.answer("DEL", {"code": 11, "msg": "busy"}, status=1)
    for _ in range(2):
        assert code_of(delegation.call(plugin, "DEL", network)) == 11
    delegation.script("DEL", "")
    delegation.ok(plugin, "DEL", network)
    assert delegation.verbs == ["ADD", "DEL", "DEL", "DEL"]
    assert all(recorded.conf == delegation.recorded[0].conf for recorded in delegation.recorded)
    assert host.files() == {}


def test_flannel_delete_goes_down_once(delegation: Delegation) -> None:
    """Further DELs have nothing to delete, and do not call the delegate."""
    delegation.ok("flannel", "ADD", flannel())
    for _ in range(3):
        delegation.ok("flannel", "DEL", flannel(), sandbox=GONE)
    assert delegation.verbs == ["ADD", "DEL"]


@pytest.mark.parametrize("code", [1, 4])
@pytest.mark.parametrize("plugin", ["flannel", "bridge"])
def test_gc_is_sent_on_to_a_delegate_that_does_not_know_it(delegation: Delegation, plugin: str, code: int) -> None:
    """Go plugins before 1.5 answer "unknown CNI_COMMAND: GC", newer ones of an old configuration "does not allow GC"."""
    delegation.answer("GC", {"code": code, "msg": "unknown CNI_COMMAND: GC"}, status=1)
    network = {"flannel": flannel(), "bridge": bridge()}[plugin] | {"cni.dev/valid-attachments": []}
    assert delegation.ok(plugin, "GC", network) is None
    (gc,) = delegation.recorded
    assert gc.verb == "GC"
    assert gc.conf["cni.dev/valid-attachments"] == []


def test_gc_of_flannel_deletes_what_is_stale_by_the_saved_configuration(delegation: Delegation, host: Host) -> None:
    """The delegate may know no GC: each stale attachment gets a DEL, with the configuration that its ADD had."""
    for container_id in ("keep", "drop"):
        delegation.ok("flannel", "ADD", flannel(), container_id=container_id)
    valid = [{"containerID": "keep", "ifname": "eth0"}]
    delegation.ok("flannel", "GC", flannel() | {"cni.dev/valid-attachments": valid, "cni.dev/attachments": valid})
    assert delegation.verbs == ["ADD", "ADD", "DEL", "GC"]
    _, add, delete, gc = delegation.recorded
    assert (delete.env["CNI_CONTAINERID"], delete.env["CNI_IFNAME"], delete.env["CNI_NETNS"]) == ("drop", "eth0", "")
    assert delete.conf == add.conf
    assert gc.conf["cni.dev/valid-attachments"] == gc.conf["cni.dev/attachments"] == valid
    assert list(host.files()) == ["/var/lib/cni/flannel/keep"]


@pytest.mark.parametrize("code", [50, 51, 1, 4, 999])
@pytest.mark.parametrize("plugin", ["flannel", "bridge"])
def test_status_of_the_delegate_is_status(delegation: Delegation, plugin: str, code: int) -> None:
    """A delegate that knows no STATUS speaks no 1.1.0, so it could not ADD either."""
    delegation.answer("STATUS", {"code": code, "msg": "not now"}, status=1)
    error = error_of(delegation.call(plugin, "STATUS", {"flannel": flannel(), "bridge": bridge()}[plugin]))
    assert error["code"] == (51 if code == 51 else 50)
    assert "not now" in error["msg"]


def test_whole_chain_of_foreign_and_ours(delegation: Delegation, host: Host) -> None:
    """Our plugin calls a third-party one, which delegates to ours again."""
    host.write(
        "/run/fake/bridge", f'#!/bin/sh\necho "wrapped $CNI_COMMAND" >&2\nCNI_PATH={host.bin_dir} exec {host.bin_dir}/bridge\n'
    )
    network = conf("flannel")
    result = delegation.ok("flannel", "ADD", network)
    assert "wrapped CHECK" in delegation.call("flannel", "CHECK", network, prev=result).stderr
    assert host.json("ip -j addr show eth0", delegation.sandbox)[0]["mtu"] == 1450
    delegation.ok("flannel", "DEL", network, prev=result)
    assert host.host_ends() == []


@pytest.fixture(autouse=True)
def _no_traceback_ever(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert "Traceback" not in capfd.readouterr().err


def test_delegate_sees_no_descriptors_of_ours(delegation: Delegation, host: Host) -> None:
    """Third-party programs get only the three standard descriptors: no sockets, locks or namespaces leak."""
    delegation.script("ADD", "ls /proc/self/fd >/run/fds; cat <<'END'\n" + json.dumps(RESULT) + "\nEND\n")
    delegation.ok("bridge", "ADD", bridge())
    descriptors = set(host.path("/run/fds").read_text().split())
    assert descriptors <= {"0", "1", "2", "3"}  # 3 is ls's own
    assert Path(host.bin_dir).is_dir()
