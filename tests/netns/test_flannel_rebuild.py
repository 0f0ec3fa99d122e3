"""flannel's damaged saved configuration over a third-party delegate: DEL and GC rebuild everything that it needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.namespaces import Host, Sandbox
from support.pods import DUAL_ENV, FLANNEL, gc
from support.warm import WarmHost

SAVED = "/var/lib/cni/flannel/c1"
BIN = "/run/bin"
DAMAGE = {
    "empty": ": >{}",
    "half": "truncate -s $(($(stat -c %s {}) / 2)) {}",
    "no JSON": "echo garbage >{}",
    "list": "echo '[1]' >{}",
    "too large": "head -c 2000000 /dev/zero >{}",
    "type alone": 'echo \'{{"type": "bridge"}}\' >{}',
    "no ranges": 'python3 -c \'import json; c = json.load(open("{}")); del c["ipam"]["ranges"]; json.dump(c, open("{}", "w"))\'',
    "no name": 'python3 -c \'import json; c = json.load(open("{}")); del c["name"]; json.dump(c, open("{}", "w"))\'',
    "ipam is a text": 'python3 -c \'import json; c = json.load(open("{}")); c["ipam"] = "x"; json.dump(c, open("{}", "w"))\'',
}
LOST = {
    "nothing": "true",
    "subnet.env": "rm /run/flannel/subnet.env",
    "subnet.env of another lease": "sed -i s/10.244.91/10.244.7/ /run/flannel/subnet.env",
    "all of /run": "rm -rf /run/cni-py /run/flannel",
    "reservations": "rm -rf /run/flannel /var/lib/cni/networks",
}


@pytest.fixture
def host(bin_dir: Path, go_plugins: str) -> Iterator[Host]:
    with WarmHost(bin_dir) as made:
        made.write_subnet_env(DUAL_ENV)
        made.run(f"mkdir {BIN}; ln -s {go_plugins}/bridge {go_plugins}/host-local {BIN}")
        yield made


def conf_of(**delegate: Any) -> dict[str, Any]:
    return FLANNEL | {"cniVersion": "1.0.0", "delegateMode": "exec", "delegate": {"isDefaultGateway": True} | delegate}


def add(host: Host, conf: dict[str, Any], pod: Sandbox) -> dict[str, Any]:
    result: dict[str, Any] = host.ok("flannel", "ADD", conf, sandbox=pod, container_id=pod.name, cni_path=BIN)
    return result


def left(host: Host) -> dict[str, Any]:
    found = {
        "host ends": host.host_ends(),
        "files": [n for n in host.files("/var/lib/cni") if "last_reserved" not in n and not n.endswith("/lock")],
        "rules": [line for line in host.run("iptables-save -t nat; ip6tables-save -t nat").splitlines() if "CNI-" in line],
    }
    return {key: value for key, value in found.items() if value}


@pytest.mark.parametrize("ip_masq", [True, False])
@pytest.mark.parametrize("lost", LOST)
def test_del_with_every_damage(host: Host, lost: str, ip_masq: bool) -> None:
    conf = conf_of(**({} if ip_masq else {"ipMasq": False}))
    for number, (name, damage) in enumerate(DAMAGE.items()):
        pod = host.netns("c1")
        result = add(host, conf, pod)
        host.run(damage.format(SAVED, SAVED) + "; " + LOST[lost])
        prev = result if number % 2 else None  # since 0.4.0 runtimes hand it to DEL
        host.ok("flannel", "DEL", conf, sandbox=pod, cni_path=BIN, prev=prev)
        assert left(host) == {}, name
        host.delete_netns(pod)
        host.write_subnet_env(DUAL_ENV)


@pytest.mark.parametrize("lost", ["nothing", "subnet.env"])
@pytest.mark.parametrize("damage", ["empty", "no ranges", "type alone"])
def test_del_without_the_namespace(host: Host, lost: str, damage: str) -> None:
    pod = host.netns("c1")
    add(host, conf_of(), pod)
    host.run(DAMAGE[damage].format(SAVED, SAVED) + "; " + LOST[lost])
    host.delete_netns(pod)
    host.ok("flannel", "DEL", conf_of(), sandbox=pod, cni_path=BIN)
    assert "files" not in left(host)


@pytest.mark.parametrize("damage", ["empty", "no ranges", "no name"])
def test_gc_with_a_damaged_saved_configuration(host: Host, damage: str) -> None:
    pod, other = host.netns("c1"), host.netns("c2")
    for box in (pod, other):
        host.ok("flannel", "ADD", conf_of(), sandbox=box, container_id=box.name, cni_path=BIN)
    host.run(DAMAGE[damage].format(SAVED, SAVED) + "; rm /run/flannel/subnet.env")
    host.delete_netns(pod)
    gc(host, conf_of() | {"cniVersion": "1.1.0"}, ("c2", "eth0"), cni_path=BIN)
    names = [name for name in host.files("/var/lib/cni") if "last_reserved" not in name]
    assert not [name for name in names if name.endswith("/c1") or host.path(name).read_text().startswith("c1")]
    assert "/var/lib/cni/flannel/c2" in names


def test_every_field_reaches_the_delegate(host: Host) -> None:
    """A delegate that records its configuration gets at DEL, without the saved one, what it got at ADD."""
    host.write(
        f"{BIN}/recorder",
        '#!/bin/sh\ncat >/run/seen.$CNI_COMMAND\n[ $CNI_COMMAND = ADD ] && echo \'{"cniVersion":"1.0.0","ips":[{"address":"10.244.91.7/24"}]}\'\nexit 0\n',
    )
    host.run(f"chmod +x {BIN}/recorder")
    conf = FLANNEL | {
        "cniVersion": "1.0.0",
        "delegate": {"type": "recorder", "master": "eth0", "mode": "l2", "ipMasq": True},
        "ipam": {"dataDir": "/var/lib/cni/other", "routes": [{"dst": "10.7.0.0/16"}]},
        "runtimeConfig": {"mac": "c2:11:22:33:44:55"},
    }
    pod = host.netns("c1")
    add(host, conf, pod)
    host.run(f": >{SAVED}")
    host.ok("flannel", "DEL", conf, sandbox=pod, cni_path=BIN)
    seen = {verb: json.loads(host.path(f"/run/seen.{verb}").read_text()) for verb in ("ADD", "DEL")}
    assert seen["DEL"] == seen["ADD"]
