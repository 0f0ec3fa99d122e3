"""CNI spec, section 5, "ADD Success": results of ADD in every version's own form, through the executables."""

from __future__ import annotations

import re
from typing import Any

import pytest

from support.namespaces import Host, Reply, Sandbox
from support.spec_cases import (
    BOTH_FAMILIES,
    CHAINED,
    PLUGINS,
    VERSIONS,
    code_of,
    conf,
    error_of,
    every_version,
    new_id,
    new_sandbox,
)

pytestmark = pytest.mark.netns

MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
OLD, MIDDLE, NEW = VERSIONS[:2], VERSIONS[2:5], VERSIONS[5:]
MEMBERS = {"interfaces": "interfaces", "ips": "ips", "routes": "routes"}
KEYS_OF_INTERFACE = {"name", "mac", "sandbox"}
KEYS_OF_ROUTE = {"dst", "gw"}
NEWEST_OF_INTERFACE = {"mtu", "socketPath", "pciID"}
NEWEST_OF_ROUTE = {"mtu", "advmss", "priority", "table", "scope"}


def add(node: Host, sandbox: Sandbox, plugin: str, network: dict[str, Any]) -> tuple[dict[str, Any], Reply]:
    """The result, and the reply; the attachment is deleted again."""
    of: dict[str, Any] = {"sandbox": sandbox, "container_id": new_id()}
    reply = node.call(plugin, "ADD", network, **of)
    assert reply.rc == 0, reply.json
    if plugin in ("flannel", "bridge"):
        reply.json["links"] = {
            **{link["ifname"]: link for link in node.json("ip -j link")},
            **{link["ifname"]: link for link in node.json("ip -j link show eth0", sandbox)},
        }
    node.ok(plugin, "DEL", network, **of)
    links = reply.json.pop("links", {})
    return reply.json, Reply(0, links)


# --- the form ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", OLD)
@pytest.mark.parametrize("plugin", ["flannel", "bridge", "host-local"])
def test_form_of_0_1_and_0_2(node: Host, sandbox: Sandbox, plugin: str, version: str) -> None:
    """One address a family, its routes beside it, no interfaces."""
    result, _ = add(node, sandbox, plugin, conf(plugin, version))
    assert set(result) == {"cniVersion", "ip4", "ip6", "dns"}
    assert result["cniVersion"] == version
    for family, dot in (("ip4", "."), ("ip6", ":")):
        assert set(result[family]) == {"ip", "gateway", "routes"}
        assert dot in result[family]["ip"]
        assert "/" in result[family]["ip"]
        assert dot in result[family]["gateway"]
        assert all(set(route) <= KEYS_OF_ROUTE and dot in route["dst"] for route in result[family]["routes"])


@pytest.mark.parametrize("version", MIDDLE + NEW)
@pytest.mark.parametrize("plugin", ["flannel", "bridge", "host-local"])
def test_form_from_0_3_on(node: Host, sandbox: Sandbox, plugin: str, version: str) -> None:
    result, links = add(node, sandbox, plugin, conf(plugin, version))
    newest = version == "1.1.0"
    is_ipam = plugin == "host-local"
    expected = {"cniVersion", "ips", "routes"} | (set() if is_ipam else {"interfaces"})
    with_dns = version in MIDDLE or plugin == "bridge"
    assert set(result) == expected | ({"dns"} if with_dns else set())
    assert result["cniVersion"] == version
    for ip, number in zip(result["ips"], ("4", "6"), strict=True):
        keys = {"address", "gateway"} | ({"version"} if version in MIDDLE else set()) | (set() if is_ipam else {"interface"})
        assert set(ip) == keys
        assert ip.get("version", number) == number
        assert ip.get("interface", 2) == 2
    for route in result["routes"]:
        assert set(route) <= KEYS_OF_ROUTE | (NEWEST_OF_ROUTE if newest else set())
    if is_ipam:
        return
    bridge, host_end, end = result["interfaces"]
    assert (bridge["name"], end["name"], end["sandbox"]) == (f"{plugin}0", "eth0", str(sandbox))
    assert re.fullmatch(r"veth[0-9a-f]{8}", host_end["name"])
    for interface in result["interfaces"]:
        allowed = KEYS_OF_INTERFACE | (NEWEST_OF_INTERFACE if newest else set())
        assert {"name", "mac"} <= set(interface) <= allowed
        assert MAC.fullmatch(interface["mac"])
        assert ("sandbox" in interface) == (interface is end)
        kernel = links.json[interface["name"]]
        assert interface["mac"] == kernel["address"]
        if newest:
            assert interface["mtu"] == kernel["mtu"]


@every_version
def test_loopback_has_one_form_for_all(node: Host, sandbox: Sandbox, version: str) -> None:
    """Go-compatible: the form of 1.0.0 under every older version's number (golden: loopback/version-0.1.0)."""
    result, _ = add(node, sandbox, "loopback", conf("loopback", version))
    mtu = {"mtu": 65536} if version == "1.1.0" else {}
    assert result == {
        "cniVersion": version,
        "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": str(sandbox)} | mtu],
        "ips": [{"address": "127.0.0.1/8", "interface": 0}, {"address": "::1/128", "interface": 0}],
    }


@pytest.mark.parametrize("mtu", [1280, 1400, 9000])
@pytest.mark.parametrize("plugin", ["flannel", "bridge"])
def test_mtu_of_the_result_is_that_of_the_kernel(host: Host, plugin: str, mtu: int) -> None:
    host.write_subnet_env(BOTH_FAMILIES)
    network = conf("bridge", mtu=mtu) if plugin == "bridge" else conf("flannel", delegate={"bridge": "flannel0", "mtu": mtu})
    result, links = add(host, host.netns("c1"), plugin, network)
    assert [interface["mtu"] for interface in result["interfaces"]] == [mtu] * 3
    assert [links.json[interface["name"]]["mtu"] for interface in result["interfaces"]] == [mtu] * 3


def test_route_says_what_the_version_can_say(node: Host, sandbox: Sandbox) -> None:
    route = {"dst": "10.9.0.0/16", "gw": "10.1.2.1", "mtu": 1400, "advmss": 1300, "priority": 0, "table": 100, "scope": 0}
    ipam = {"type": "host-local", "subnet": "10.1.2.0/24", "routes": [route]}
    for version in MIDDLE + NEW:
        result, _ = add(node, sandbox, "host-local", conf("host-local", version, ipam=ipam))
        assert result["routes"] == [route if version == "1.1.0" else {"dst": route["dst"], "gw": route["gw"]}]


@every_version
def test_dns_of_the_configuration_is_handed_back(node: Host, sandbox: Sandbox, version: str) -> None:
    dns = {"nameservers": ["10.1.2.1", "fd00::53"], "domain": "d.example", "search": ["a", "b"], "options": ["ndots:2"]}
    result, _ = add(node, sandbox, "bridge", conf("bridge", version, dns=dns))
    assert result["dns"] == dns


@pytest.mark.parametrize("version", OLD)
def test_old_version_cannot_say_that_there_is_no_address(node: Host, sandbox: Sandbox, version: str) -> None:
    """ADD fails as with Go; and DEL undoes what it created."""
    network = {"name": "l2", "type": "bridge", "cniVersion": version, "bridge": "l2br"}
    of: dict[str, Any] = {"sandbox": sandbox, "container_id": new_id()}
    error = error_of(node.call("bridge", "ADD", network, **of))
    assert (error["code"], error["msg"]) == (7, "cannot convert: no valid IP addresses")
    assert version in error["details"]
    node.ok("bridge", "DEL", network, **of)
    assert not node.json("ip -j link show master l2br")


@pytest.mark.parametrize("version", OLD)
@pytest.mark.parametrize("plugin", ["bridge", "host-local", "ptp"])
def test_del_succeeds_where_add_refuses_the_version(node: Host, sandbox: Sandbox, plugin: str, version: str) -> None:
    """Two addresses of a family, which these versions cannot express."""
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.3.0/24"}]]}
    network = conf(plugin, version, ipam=ipam)
    of: dict[str, Any] = {"sandbox": sandbox, "container_id": new_id()}
    assert code_of(node.call(plugin, "ADD", network, **of)) == 7
    for _ in range(2):
        node.ok(plugin, "DEL", network, **of)


def test_result_of_layer_2_has_no_addresses(node: Host, sandbox: Sandbox) -> None:
    result, _ = add(node, sandbox, "bridge", {"name": "l2", "type": "bridge", "cniVersion": "1.1.0", "bridge": "l2br"})
    assert set(result) == {"cniVersion", "interfaces"}
    assert [interface["name"] for interface in result["interfaces"]][::2] == ["l2br", "eth0"]


def test_ipam_result_is_abbreviated(node: Host, sandbox: Sandbox) -> None:
    """ "it is missing the interfaces array, as well as the interface entry in ips"."""
    result, _ = add(node, sandbox, "host-local", conf("host-local"))
    assert "interfaces" not in result
    assert all("interface" not in ip for ip in result["ips"])


@pytest.mark.parametrize("plugin", PLUGINS)
def test_only_add_and_version_have_an_answer(node: Host, sandbox: Sandbox, plugin: str) -> None:
    of: dict[str, Any] = {"sandbox": sandbox, "container_id": new_id()}
    result = node.ok(plugin, "ADD", conf(plugin), **of)
    assert node.ok(plugin, "CHECK", conf(plugin), prev=result, **of) is None
    assert node.ok(plugin, "STATUS", conf(plugin)) is None
    assert node.ok(plugin, "DEL", conf(plugin), prev=result, **of) is None
    assert node.ok(plugin, "GC", conf(plugin)) is None


# --- prevResult -------------------------------------------------------------------------------------------------------

PREVIOUS: dict[str, dict[str, Any]] = {
    "0.2.0": {
        "ip4": {"ip": "192.0.2.1/24", "gateway": "192.0.2.254", "routes": [{"dst": "0.0.0.0/0"}]},
        "dns": {"domain": "d"},
    },
    "0.4.0": {"interfaces": [{"name": "x"}], "ips": [{"version": "4", "address": "192.0.2.1/24", "interface": 0}], "dns": {}},
    "1.0.0": {"interfaces": [{"name": "x", "mac": "c2:11:22:33:44:55"}], "ips": [{"address": "192.0.2.1/24", "interface": 0}]},
    "1.1.0": {"interfaces": [{"name": "x", "mtu": 1400, "pciID": "p"}], "routes": [{"dst": "::/0", "priority": 0}]},
}


@pytest.mark.parametrize("version", PREVIOUS)
def test_loopback_passes_the_previous_result_on(node: Host, sandbox: Sandbox, version: str) -> None:
    """ "Plugins provided a prevResult key … must output it as their result"."""
    prev = {"cniVersion": version} | PREVIOUS[version]
    assert node.ok("loopback", "ADD", conf("loopback", version), sandbox=sandbox, prev=prev) == prev
    assert "UP" in node.json("ip -j link show lo", sandbox)[0]["flags"]


@pytest.mark.parametrize("version", PREVIOUS)
def test_loopback_names_the_version_of_a_previous_result_without_one(node: Host, sandbox: Sandbox, version: str) -> None:
    """The result has the version of the request: "cniVersion: The same version supplied on input"."""
    prev = PREVIOUS[version]
    assert node.ok("loopback", "ADD", conf("loopback", version), sandbox=sandbox, prev=prev) == {"cniVersion": version} | prev


BAD_PREVIOUS = [
    ("x", 7),
    (7, 7),
    ([], 7),
    ({"cniVersion": "9.9.9"}, 1),
    ({"cniVersion": 7}, 1),
    ({"cniVersion": "1.1.0", "ips": 7}, 6),
    ({"cniVersion": "1.1.0", "ips": [7]}, 6),
    ({"cniVersion": "1.1.0", "ips": [{}]}, 6),
    ({"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.300/24"}]}, 6),
    ({"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.3/24", "interface": -1}]}, 6),
    ({"cniVersion": "1.1.0", "interfaces": [{"name": 7}]}, 6),
    ({"cniVersion": "1.1.0", "routes": [{"dst": "x"}]}, 6),
    ({"cniVersion": "1.1.0", "routes": [{"dst": "::/0", "gw": "x"}]}, 6),
    ({"cniVersion": "1.1.0", "dns": []}, 6),
    ({"cniVersion": "0.2.0", "ip4": {"ip": "x"}}, 6),
    ({"cniVersion": "0.2.0", "ip4": []}, 6),
]


@pytest.mark.parametrize(("prev", "code"), BAD_PREVIOUS)
@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
def test_previous_result_that_is_none(node: Host, verb: str, prev: Any, code: int) -> None:
    for plugin in [plugin for plugin in PLUGINS if plugin not in CHAINED]:
        if verb == "ADD" and plugin != "loopback":
            continue  # the first plugins of a chain do not look at it
        of: dict[str, Any] = {"sandbox": new_sandbox(node, plugin), "container_id": new_id()}
        if verb == "CHECK":
            node.ok(plugin, "ADD", conf(plugin), **of)
        reply = node.call(plugin, verb, conf(plugin, prevResult=prev), **of)
        if plugin != "loopback" or reply.rc:
            assert code_of(reply) in (code, 103), (plugin, reply.json)
        node.ok(plugin, "DEL", conf(plugin), **of)


@pytest.mark.parametrize(
    "prev",
    [
        {"cniVersion": "0.2.0", "ips": [7], "routes": [7]},
        {"cniVersion": "0.2.0", "ips": 7, "routes": "x"},
        {"cniVersion": "0.2.0", "ip4": {"ip": "10.1.2.3/24"}, "routes": [{"gw": "x"}]},
        {"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.3/24", "interface": 99}]},
        {"cniVersion": "1.1.0", "ips": None, "routes": None, "interfaces": None, "dns": None},
        {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "x"}], "ips": [], "routes": []},
    ],
)
@pytest.mark.parametrize("plugin", ["flannel", "bridge", "host-local"])
def test_odd_previous_result_is_never_a_bug(node: Host, sandbox: Sandbox, plugin: str, prev: dict[str, Any]) -> None:
    of: dict[str, Any] = {"sandbox": sandbox, "container_id": new_id()}
    node.ok(plugin, "ADD", conf(plugin), **of)
    reply = node.call(plugin, "CHECK", conf(plugin, prevResult=prev), **of)
    assert reply.rc == 0 or error_of(reply)["code"] != 100, reply.json
    reply = node.call(plugin, "DEL", conf(plugin, prevResult=prev), **of)
    assert reply.rc == 0 or error_of(reply)["code"] != 100, reply.json
    node.ok(plugin, "DEL", conf(plugin), **of)


@pytest.mark.parametrize("version", MIDDLE[2:] + NEW)
@pytest.mark.parametrize("plugin", ["flannel", "bridge", "host-local"])
def test_check_reads_a_result_of_any_version_that_says_enough(node: Host, sandbox: Sandbox, plugin: str, version: str) -> None:
    """The runtime caches the last plugin's result unchanged."""
    of: dict[str, Any] = {"sandbox": sandbox, "container_id": new_id()}
    result = node.ok(plugin, "ADD", conf(plugin, version), **of)
    for later in (v for v in VERSIONS[4:] if v >= version):
        node.ok(plugin, "CHECK", conf(plugin, later), prev=result, **of)
    node.ok(plugin, "DEL", conf(plugin, version), prev=result, **of)
