"""Scripts of journals: what is printed is what the commands would have read, whatever it is; and links get their MAC addresses."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_py import files, journal
from cni_py.explain import calls
from cni_py.explain.words import parse
from cni_py.ipam.store import _write_step
from cni_py.plan import script
from cni_py.plan.script import Outcome

TITLE = "# 2026-11-24T10:00:00Z ADD bridge, network net, container c1, eth0 in /run/netns/c1"


def script_of(*commands: str, outcome: Outcome | None = None) -> str:
    lines = [TITLE, *(f"10:00:00.000001  {command}  (0.07 ms)" for command in commands), "10:00:00.000001  # done  (1.00 ms)"]
    return "\n".join(script.render(calls.read(lines), outcome or Outcome()))


def printed_by(text: str) -> bytes:
    """Return what a shell makes of a command that prints."""
    return subprocess.run(["/bin/sh", "-c", text], capture_output=True, check=True).stdout


OWNER = re.compile(rb"[A-Za-z0-9:][ -~]*(?:\r\n[ -~]*)?")
"""Text that host-local writes: the name of a container, and of an interface, or an address."""
CONTENT = st.one_of(
    st.binary(max_size=60),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60).map(str.encode),
    st.sampled_from(
        [
            b"",
            b"\n",
            b"%s\n",
            b"a\nb",
            b"a\r\nb",
            b"c1\r\neth%0",
            b"'quoted' $HOME `x` \\n\n",
            b"\0\xff",
            b"-n\n",
            b"%d%%",
            b"\0%s",
            "ä\n€".encode(),
        ]
    ),
)


@given(CONTENT)
def test_any_content_is_written_as_it_is(content: bytes) -> None:
    outcome = Outcome({"/var/lib/cni/x": content})
    text = script_of("install -m 600 /dev/stdin /var/lib/cni/x", outcome=outcome)
    command = text.rpartition("\nprintf ")[2].rpartition(" | install")[0]
    assert printed_by(f"printf {command}") == content
    shown = parse(f"printf {command} | install -m 600 /dev/stdin /x")
    assert shown is not None
    assert script._printed(shown) == content


@given(CONTENT)
def test_journal_prints_what_was_written(content: bytes) -> None:
    """The journal shows the content of a file, for a shell and for the script alike."""
    steps = [files._install("/x", content, 0o600)]
    if OWNER.fullmatch(content):
        steps.append(_write_step(content, "/x"))
    for step in steps:
        line = journal.printable(step.line)
        command = parse(line)
        if line.startswith("printf") and line == step.line:
            assert command is not None
            assert script._printed(command) == content
            assert printed_by(line.rpartition(" | ")[0]) == content


def test_links_get_the_mac_addresses_of_the_run() -> None:
    macs = {
        ("", "veth01234567"): "02:00:00:00:00:01",
        ("/run/netns/c1", "eth0"): "02:00:00:00:00:02",
        ("/run/netns/c1", "net1"): "02:00:00:00:00:03",
        ("", "br0"): "02:00:00:00:00:04",
        ("/run/netns/c1", "vl0"): "02:00:00:00:00:05",
        ("/run/netns/c1", "tap0"): "02:00:00:00:00:06",
    }
    text = script_of(
        "ip link add br0 type bridge",
        "ip link add veth01234567 mtu 1400 master br0 type veth peer name eth0 mtu 1400 netns /run/netns/c1"
        " && ip link property add dev veth01234567 altname cni:c1:eth0:net",
        "ip link add tmp1 link dev0 netns /run/netns/c1 type macvlan mode bridge",
        "nsenter --net=/run/netns/c1 ip link set tmp1 name net1",
        "ip link add vl0 link dev0 netns /run/netns/c1 type vlan id 5",
        "nsenter --net=/run/netns/c1 ip tuntap add dev tap0 mode tap",
        "ip link add veth1 type veth peer name eth1 address 02:00:00:00:00:09 netns /run/netns/c1",
        outcome=Outcome({}, macs),
    )
    given_macs = [line for line in text.splitlines() if " address 02:" in line and "link set" in line]
    assert given_macs == [
        "nsenter --net=/run/netns/c1 ip link set dev eth0 address 02:00:00:00:00:02",
        "ip link set dev veth01234567 address 02:00:00:00:00:01",
        "nsenter --net=/run/netns/c1 ip link set dev tmp1 address 02:00:00:00:00:03",
        "nsenter --net=/run/netns/c1 ip link set dev tap0 address 02:00:00:00:00:06",
    ]


def test_record_asks_for_the_numbers_of_its_namespace(tmp_path: Path) -> None:
    netns = tmp_path / "a namespace"
    netns.touch()
    record = f'{{"netns":"{netns}","dev":1,"ino":2,"ctime":3,"more":"\'"}}'
    text = script_of(f"printf %s {journal.quote(record)} | install -m 600 /dev/stdin /run/cni-py/attachments/c1:eth0:net")
    commands = "\n".join(line for line in text.splitlines() if line.startswith(("identity", "{")))
    status = netns.stat()
    assert printed_by(commands.rpartition(" | ")[0]).decode() == record.replace(
        '"dev":1,"ino":2,"ctime":3', f'"dev":{status.st_dev},"ino":{status.st_ino},"ctime":{status.st_ctime_ns}'
    )


def test_what_failed_or_was_nothing_is_a_comment() -> None:
    text = script_of(
        "ip link set x up  # failed: No such device", "# nothing to do: ip link del x", "# undo: the link", "ip link del y"
    )
    commands = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert commands == ["set -eu", "ip link del y"]


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_script_is_of_every_shell(shell: str) -> None:
    text = script_of("sysctl -w net/ipv4/ip_forward=1", "nft 'add table inet x; add chain inet x y'", "mkdir -p -m 700 '/a b'")
    subprocess.run([shell, "-n"], input=text, text=True, check=True)
