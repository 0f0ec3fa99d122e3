"""``cni-py explain`` after ADD and DEL of a chain, and of flanneld: in a pipe, on terminals, as JSON, and pasted into another host."""

from __future__ import annotations

import fcntl
import json
import os
import re
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cni_py.explain.shapes import GROUPS
from support.flannel import network
from support.namespaces import PATH, Host, Sandbox
from support.waiting import until

pytestmark = pytest.mark.netns

FLANNEL = {
    "name": "cbr0",
    "cniVersion": "1.0.0",
    "type": "flannel",
    "delegate": {"isDefaultGateway": True, "hairpinMode": True},
}
PORTS = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
PORTMAP = {"name": "cbr0", "cniVersion": "1.0.0", "type": "portmap", "runtimeConfig": {"portMappings": PORTS}}
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
TEXT, NUMBER = {"type": "string"}, {"type": ["number", "null"]}
CALL = {
    "type": "object",
    "additionalProperties": False,
    "required": ["title", "verb", "plugin", "network", "began", "outcome", "error", "seconds", "configuration", "items"],
    "properties": {
        **dict.fromkeys(("title", "verb", "plugin", "network", "began", "error"), TEXT),
        "outcome": {"enum": ["done", "failed", ""]},
        "seconds": NUMBER,
        "configuration": {"type": "object"},
        "items": {"type": "array", "items": {"oneOf": [{"$ref": "#/$defs/step"}, {"$ref": "#/$defs/note"}]}},
    },
}
STEP = {
    "type": "object",
    "additionalProperties": False,
    "required": ["kind", "number", "group", "title", "what", "command", "shown", "netns", "time", "seconds", "failure", "why"],
    "properties": {
        **dict.fromkeys(("title", "what", "command", "shown", "netns", "time", "failure"), TEXT),
        "kind": {"const": "step"},
        "number": {"type": "integer"},
        "group": {"enum": [*GROUPS]},
        "seconds": NUMBER,
        "why": {
            "type": "object",
            "additionalProperties": False,
            "required": ["text", "key", "source", "value", "line", "section"],
            "properties": {
                **dict.fromkeys(("text", "key", "line", "section"), TEXT),
                "source": {"enum": ["configuration", "subnet.env", "flannel", "runtime", "default", "unknown", ""]},
                "value": {},
            },
        },
    },
}
NOTE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["kind", "group", "text", "time"],
    "properties": {"kind": {"enum": ["note", "other"]}, "group": {"enum": ["", "lease"]}, "text": TEXT, "time": TEXT},
}
SCHEMA = {"type": "array", "items": CALL, "$defs": {"step": STEP, "note": NOTE}}
"""Schema of ``calls``, as docs/cni-py.md describes it."""


def attach(host: Host) -> dict[str, Any]:
    host.write_subnet_env()
    pod = host.netns("c1")
    added = host.call("flannel", "ADD", FLANNEL, sandbox=pod)
    assert added.rc == 0, added
    forwarded = host.call("portmap", "ADD", PORTMAP | {"prevResult": added.json}, sandbox=pod)
    assert forwarded.rc == 0, forwarded
    return dict(forwarded.json)


@pytest.fixture(scope="module")
def chain(bin_dir: Path) -> Iterator[Host]:
    """A host with one attachment, c1, and a journal of another that is damaged."""
    with Host(bin_dir) as host:
        attach(host)
        host.write(
            "/run/cni-py/journal/old:eth0:net",
            "# 2026-11-24T10:00:00Z ADD bri\x1b]0;owned\x07dge\nip link se\x1b[31m\nx\x9b31m\x85y\n",
        )
        yield host


@pytest.fixture
def program(cni_py: Path) -> str:
    return str(cni_py)


def explained(host: Host, program: str, *words: str) -> str:
    return host.run(" ".join([program, "explain", *words]))


def on_terminal(host: Host, program: str, columns: int, *words: str, env: dict[str, str] | None = None) -> str:
    """Return what the command prints to a terminal of so many columns, its lines ended by a newline alone."""
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environ = {"PATH": PATH, "LC_ALL": "C.UTF-8", "TERM": "xterm-256color"} | (env or {})
    process = subprocess.Popen(
        host.command(program, "explain", *words), stdin=subprocess.DEVNULL, stdout=its, stderr=subprocess.PIPE, env=environ
    )
    os.close(its)
    output = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # EIO: the other end was closed
            break
        if not block:
            break
        output += block
    os.close(ours)
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, said) == (0, b"")
    return output.decode().replace("\r\n", "\n")


# --- a chain ----------------------------------------------------------------------------------------------------------


def test_pipe_has_each_command_once_as_it_is(chain: Host, program: str) -> None:
    text = explained(chain, program, "c1", "-v")
    assert "\x1b" not in text
    (one,) = json.loads(explained(chain, program, "c1", "--json"))
    assert [call["plugin"] for call in one["calls"]] == ["flannel", "portmap"]
    every = [item for call in one["calls"] for item in call["items"]]
    commands = [item["command"] for item in every if item["kind"] == "step" and not item["command"].startswith("nft")]
    lines = [line.strip() for line in text.splitlines()]
    assert all(lines.count(command) == commands.count(command) for command in commands)
    assert not [item for item in every if item["kind"] == "step" and item["group"] == "other"]
    headings = [line.strip() for line in text.splitlines() if re.fullmatch(r"  \S.*", line)]
    order = list(dict.fromkeys(heading for heading in headings if heading in GROUPS.values()))
    assert order[:4] == [GROUPS[group] for group in ("record", "configuration", "bridge", "veth")]
    assert {GROUPS["masquerade"], GROUPS["hostport"], GROUPS["route"], GROUPS["address"], GROUPS["forwarding"]} <= {*order}


def test_reasons_name_configuration_subnet_env_and_specification(chain: Host, program: str) -> None:
    text = explained(chain, program, "c1")
    for reason in (
        '"delegate.isDefaultGateway": true in the configuration',
        '"delegate.hairpinMode": true in the configuration',
        "FLANNEL_SUBNET=10.244.91.1/24 in subnet.env",
        "FLANNEL_NETWORK=10.244.0.0/16 in subnet.env",
        "FLANNEL_IPMASQ=false in subnet.env",
        "CNI specification 1.1.0, section 2, ADD",
        "CNI conventions: portMappings",
    ):
        assert reason in text, reason
    assert "type nat hook" not in text, "what pods share is folded"
    assert "type nat hook" in explained(chain, program, "c1", "-v")


@pytest.mark.parametrize("columns", [40, 80])
def test_terminal(chain: Host, program: str, columns: int) -> None:
    shown = on_terminal(chain, program, columns, "c1")
    assert "\x1b[" in shown
    plain = ESCAPE.sub("", shown)
    assert "\x1b" not in plain
    assert max(map(len, plain.split("\n")[2:])) <= columns
    uncoloured = on_terminal(chain, program, columns, "c1", env={"NO_COLOR": "1"})
    assert "\x1b" not in uncoloured
    assert [line.rstrip() for line in uncoloured.split("\n")] == [line.rstrip() for line in plain.split("\n")]
    assert "\x1b" not in on_terminal(chain, program, columns, "c1", env={"TERM": "dumb"})


def test_json_is_as_documented(chain: Host, program: str) -> None:
    for word in ("c1", "old"):
        (one,) = json.loads(explained(chain, program, word, "--json"))
        jsonschema.validate(one["calls"], SCHEMA)
        assert re.match(r"# \d{4}-", one["journal"][0])


def test_nothing_steers_the_terminal(chain: Host, program: str) -> None:
    for shown in (explained(chain, program, "old"), ESCAPE.sub("", on_terminal(chain, program, 80, "old"))):
        assert all(letter.isprintable() for line in shown.split("\n") for letter in line)
        assert "\\x1b]0;owned\\x07dge" in shown
        assert "ip link se\\x1b[31m" in shown
        assert "x\\x9b31m\\x85y" in shown, "no line is cut where journal.py ends none"


@pytest.mark.parametrize("columns", [0, 40])
def test_what_is_shown_can_be_pasted_into_another_host(chain: Host, program: str, bin_dir: Path, columns: int) -> None:
    """The text itself, as copied from a pipe or from a narrow terminal; no command waits for the keyboard."""
    text = (
        on_terminal(chain, program, columns, "c1", "-v", env={"NO_COLOR": "1"})
        if columns
        else explained(chain, program, "c1", "-v")
    )
    with Host(bin_dir) as other:
        other.netns("c1")
        other.run("mkdir -p /run/cni-py")
        other.run("set -e\n" + "\n".join(commands_in(text)), stdin="")
        for question in (
            "nft list ruleset",
            "find /run/cni-py/attachments /run/cni-py/portmap /var/lib/cni -type f | sort | xargs md5sum",
        ):
            pasted, ours = other.run(question), chain.run(question)
            assert "10.244.91.2" in pasted or "c1" in pasted
            assert pasted == "".join(line for line in ours.splitlines(keepends=True) if not line.endswith("/lock\n"))
        assert other.json("ip -j route", "c1") == chain.json("ip -j route", "c1")
        assert other.run("cat /proc/sys/net/ipv4/ip_forward") == "1\n"


def commands_in(text: str) -> list[str]:
    """The lines of the commands: those that follow a step's sentence, up to its reason, the next step or a heading."""
    found, is_command = [], False
    for line in text.split("\n"):
        if re.match(r" +\d+  [A-Z]", line):
            is_command, before = True, True
        elif re.match(r"       why: |  \S|== |$|       # ", line) and not line.startswith("           "):
            is_command = False
        elif is_command:
            before = before and not re.match(r"       (nsenter|ip|bridge|sysctl|nft|printf|mkdir|install|rm)\b", line)
            found += [] if before else [line]
    return found


def test_del_is_explained_too(host: Host, program: str) -> None:
    result = attach(host)
    for plugin, conf in (("portmap", PORTMAP | {"prevResult": result}), ("flannel", FLANNEL)):
        assert host.call(plugin, "DEL", conf, sandbox="/run/netns/c1").rc == 0
    (one,) = json.loads(explained(host, program, "c1", "--json"))
    jsonschema.validate(one["calls"], SCHEMA)
    assert [call["verb"] for call in one["calls"]] == ["ADD", "ADD", "DEL", "DEL"]
    deleted = [item for call in one["calls"][2:] for item in call["items"] if item["kind"] == "step"]
    assert {item["why"]["section"] for item in deleted} == {"section 2, DEL"}
    assert {"masquerade", "hostport", "reservation", "interface", "record", "configuration"} <= {
        item["group"] for item in deleted
    }


# --- what belongs to no attachment ------------------------------------------------------------------------------------


def test_sweep_repair_and_gc_are_explained(host: Host, program: str) -> None:
    attach(host)
    assert "the first ADD of this boot" in explained(host, program, "--node")
    host.run("nft flush ruleset")
    host.run(f"{program} repair")
    host.delete_netns(Sandbox("c1"))
    assert host.call("flannel", "GC", FLANNEL | {"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}).rc == 0
    text = explained(host, program, "--node")
    assert "restore rules" in text
    assert "GC flannel, network cbr0" in text
    found = json.loads(explained(host, program, "--node", "--json"))
    jsonschema.validate(found["calls"], SCHEMA)
    assert not [item for call in found["calls"] for item in call["items"] if item.get("group") == "other"]


# --- flanneld ---------------------------------------------------------------------------------------------------------


def test_flanneld(tmp_path: Path, program: str) -> None:
    with network(tmp_path, "vxlan", nodes=2) as net:
        net.start()
        node, peer = net.nodes
        text = node.run(f"{program} explain --flanneld")
        assert "a session begins: vxlan over eth0" in text
        assert GROUPS["tunnel"] in text
        assert f"the lease of {peer.subnet}.0/24 is that of {peer.address}" in text or f"{peer.subnet}.0/24 via" in text
        route = f"ip route del {peer.subnet}.0/24"
        node.run(route)
        until(lambda: f"{peer.subnet}.0/24" in node.routes(), "the route is restored")
        until(
            lambda: "another process has changed" in node.run(f"{program} explain --flanneld"), "the reason is in the journal"
        )
        found = json.loads(node.run(f"{program} explain --flanneld --json"))
        jsonschema.validate(found["calls"], SCHEMA)
        assert found["path"] == "/run/flannel/journal"
        items = [item for call in found["calls"] for item in call["items"]]
        assert [item for item in items if item["kind"] == "step"]
        assert not [item["command"] for item in items if item.get("group") == "other"]
        reasons = {call["title"] for call in found["calls"]}
        assert any(reason.startswith("another process has changed what is desired: ") for reason in reasons)
        assert node.run("stat -c %a /run/flannel/journal") == "600\n"
