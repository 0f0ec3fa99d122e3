"""Debian's Go main plugins (containernetworking-plugins 1.1.1) and ours beside bridge: ADD by one, DEL by the other.

Go 1.1.1 looks for each route of a result with the gateway that is written there, so that the routes here have one; its
host-device leaves the alias on the device.
"""

from __future__ import annotations

from typing import Any

import pytest

from support.mains import MAINS, parameters, prepare
from support.namespaces import Host, Sandbox

CROSSED = [pytest.param("ours", "go", id="ours-then-go"), pytest.param("go", "ours", id="go-then-ours")]
IN_DEBIAN = ("ptp", "macvlan", "ipvlan", "vlan", "host-device")
IPAM = {
    "type": "host-local",
    "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]],
    "routes": [{"dst": "10.7.0.0/16", "gw": "10.1.0.1"}, {"dst": "fd00:9::/64", "gw": "fd00:1::1"}],
}
STATIC = {
    "type": "static",
    "addresses": [{"address": "10.1.0.9/24", "gateway": "10.1.0.1"}],
    "routes": [{"dst": "10.7.0.0/16", "gw": "10.1.0.1"}],
}


@pytest.fixture
def host(host: Host) -> Host:
    return prepare(host)


def directory(host: Host, side: str, go_plugins: str) -> str:
    return {"ours": host.bin_dir, "go": go_plugins}[side]


def call(host: Host, side: str, go_plugins: str, plugin: str, verb: str, conf: dict[str, Any], **options: Any) -> Any:
    """A plugin of one side, which finds plugins of its own side alone; must succeed."""
    where = directory(host, side, go_plugins)
    return host.ok(f"{where}/{plugin}", verb, conf, cni_path=where, **options)


def shown(host: Host, pod: Sandbox) -> list[str]:
    """Links, addresses and routes that an attachment has, without names and numbers that are another's each time."""
    text = host.run("ip -br link; ip -br addr; ip route; ip -6 route; ip route show table all | grep -c . ", pod)
    return [" ".join(line.split()) for line in text.splitlines() if "fe80" not in line and not line.startswith("eth0@")]


def links_of(snapshot: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the host's links by name, without aliases."""
    shown = snapshot["host"]["addresses"]
    return {link["ifname"]: {key: value for key, value in link.items() if key != "ifalias"} for link in shown}


@pytest.mark.parametrize(("adder", "deleter"), CROSSED)
@pytest.mark.parametrize("ipam", [IPAM, STATIC], ids=["host-local", "static"])
@pytest.mark.parametrize("plugin", parameters(*IN_DEBIAN))
def test_one_adds_and_the_other_checks_and_deletes(
    host: Host, go_plugins: str, plugin: str, ipam: dict[str, Any], adder: str, deleter: str
) -> None:
    first, pod = host.netns("c1"), host.netns("c2")
    common = {"cniVersion": "1.0.0", "ipam": IPAM}
    conf = MAINS[plugin].conf(plugin, "c2", **(common | {"ipam": ipam, "ipMasq": False}))
    for side in ("ours", "go"):  # what attachments share exists before
        other = MAINS[plugin].conf(plugin, **(common | {"ipMasq": False}))
        call(host, side, go_plugins, plugin, "ADD", other, sandbox=first, container_id="c1")
        call(host, side, go_plugins, plugin, "DEL", other, sandbox=first, container_id="c1")
    before = host.snapshot(pod)
    result = call(host, adder, go_plugins, plugin, "ADD", conf, sandbox=pod, container_id="c2")
    call(host, deleter, go_plugins, plugin, "CHECK", conf, sandbox=pod, container_id="c2", prev=result)
    call(host, deleter, go_plugins, plugin, "DEL", conf, sandbox=pod, container_id="c2", prev=result)
    after = host.snapshot(pod)
    assert after["files"] == before["files"]
    assert after[str(pod)] == before[str(pod)]
    assert links_of(after) == links_of(before)


@pytest.mark.parametrize("plugin", parameters(*IN_DEBIAN))
def test_both_configure_a_sandbox_alike(host: Host, go_plugins: str, plugin: str) -> None:
    conf = MAINS[plugin].conf(plugin, cniVersion="1.0.0", ipam=STATIC, ipMasq=False)
    seen = []
    for side in ("ours", "go"):
        pod = host.netns("c1")
        call(host, side, go_plugins, plugin, "ADD", conf, sandbox=pod)
        seen.append(shown(host, pod))
        call(host, side, go_plugins, plugin, "DEL", conf, sandbox=pod)
        host.delete_netns(pod)
    assert seen[0] == seen[1]


@pytest.mark.parametrize(("main", "ipam"), [("ours", "go"), ("go", "ours")])
@pytest.mark.parametrize("plugin", parameters("ptp", "macvlan"))
def test_one_side_executes_the_ipam_plugin_of_the_other(host: Host, go_plugins: str, plugin: str, main: str, ipam: str) -> None:
    pod = host.netns("c1")
    conf = MAINS[plugin].conf(plugin, cniVersion="1.0.0", ipam=STATIC, ipMasq=False)
    program, path = f"{directory(host, main, go_plugins)}/{plugin}", directory(host, ipam, go_plugins)
    result = host.ok(program, "ADD", conf, sandbox=pod, cni_path=path)
    assert result["ips"][0]["address"] == "10.1.0.9/24"
    host.ok(program, "CHECK", conf, sandbox=pod, cni_path=path, prev=result)
    host.ok(program, "DEL", conf, sandbox=pod, cni_path=path)
