"""flannel: subnet.env, the saved configuration, DEL whatever has been lost, two attachments, STATUS, GC."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.namespaces import GONE, SUBNET_ENV, Host, Sandbox
from support.nft import list_elements
from support.pods import DUAL_ENV, FLANNEL, add, addresses, check, delete, gc, link, records, routes, state, words

SAVED = "/var/lib/cni/flannel"


@pytest.fixture
def host(host: Host) -> Host:
    host.write_subnet_env()
    return host


def saved(host: Host, name: str = "c1") -> dict[str, Any]:
    conf: dict[str, Any] = json.loads(host.path(f"{SAVED}/{name}").read_text())
    return conf


def left(host: Host) -> dict[str, Any]:
    """Return all state of attachments; empty without any."""
    found = {
        "host ends": host.host_ends(),
        "files": [name for name in host.files("/var/lib/cni") if "last_reserved" not in name],
        "elements": list_elements(host),
        "records": records(host),
    }
    return {key: value for key, value in found.items() if value}


# --- subnet.env -------------------------------------------------------------------------------------------------------


def test_deployment_guide(host: Host) -> None:
    result = add(host, FLANNEL | {"cniVersion": "0.3.1"}, pod := host.netns("c1"))
    assert result["ips"] == [{"version": "4", "interface": 2, "address": "10.244.91.2/24", "gateway": "10.244.91.1"}]
    assert addresses(host, "cni0") == ["10.244.91.1/24"]
    assert link(host, "eth0", pod)["mtu"] == 1450
    assert {dst: route["gateway"] for dst, route in routes(host, pod).items()} == {
        "default": "10.244.91.1",
        "10.244.0.0/16": "10.244.91.1",
    }
    assert host.path(f"{SAVED}").stat().st_mode & 0o777 == 0o700
    assert host.path(f"{SAVED}/c1").stat().st_mode & 0o777 == 0o600


def test_saved_configuration(host: Host) -> None:
    add(host, FLANNEL, host.netns("c1"))
    assert saved(host) == {
        "type": "bridge", "name": "cbr0", "cniVersion": "1.1.0", "hairpinMode": True, "isDefaultGateway": True,
        "ipMasq": True, "mtu": 1450, "isGateway": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.91.0/24"}]], "routes": [{"dst": "10.244.0.0/16"}]},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (SUBNET_ENV, ["10.244.91.2/24"]),
        (DUAL_ENV, ["10.244.91.2/24", "fd00:244:0:91::2/64"]),
        ("FLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:91::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
         ["fd00:244:0:91::2/64"]),
        ("\n".join(reversed(SUBNET_ENV.splitlines())), ["10.244.91.2/24"]),
        ("# written by flanneld\r\n\r\nUNKNOWN=1\r\n" + SUBNET_ENV.replace("\n", "\r\n"), ["10.244.91.2/24"]),
        (SUBNET_ENV.replace("10.244.0.0/16", "10.244.0.0/16,10.245.0.0/16"), ["10.244.91.2/24"]),
    ],
    ids=["v4", "dual", "v6", "reversed", "comments", "comma-list"],
)  # fmt: skip
def test_forms_of_subnet_env(host: Host, text: str, wanted: list[str]) -> None:
    host.write_subnet_env(text)
    result = add(host, FLANNEL, pod := host.netns("c1"))
    assert [ip["address"] for ip in result["ips"]] == wanted
    assert check(host, FLANNEL, pod, result).rc == 0
    delete(host, FLANNEL, pod)
    assert left(host) == {}


def test_every_network_of_a_comma_list_has_a_route(host: Host) -> None:
    host.write_subnet_env(
        DUAL_ENV.replace("10.244.0.0/16", "10.244.0.0/16,10.245.0.0/16").replace("fd00:244::/48", "fd00:244::/48,fd00:245::/48")
    )
    add(host, FLANNEL, pod := host.netns("c1"))
    assert {"10.244.0.0/16", "10.245.0.0/16"} <= routes(host, pod).keys()
    assert {"fd00:244::/48", "fd00:245::/48"} <= routes(host, pod, family=6).keys()


@pytest.mark.parametrize("by_flanneld", [True, False])
def test_masquerade_is_the_bridges_where_it_is_not_flannelds(host: Host, by_flanneld: bool) -> None:
    host.write_subnet_env(SUBNET_ENV.replace("IPMASQ=false", f"IPMASQ={str(by_flanneld).lower()}"))
    add(host, FLANNEL, host.netns("c1"))
    assert ("10.244.91.2" in host.run("nft list ruleset")) is not by_flanneld


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (None, 11, "no such file"),
        ("", 7, "FLANNEL_NETWORK"),
        (SUBNET_ENV.replace("FLANNEL_SUBNET=10.244.91.1/24\n", ""), 7, "FLANNEL_SUBNET"),
        (SUBNET_ENV.replace("10.244.91.1/24", "10.244.91.1"), 7, "10.244.91.1"),
        (SUBNET_ENV.replace("10.244.91.1/24", "nonsense"), 7, "nonsense"),
        (SUBNET_ENV.replace("1450", "many"), 7, "FLANNEL_MTU"),
        (SUBNET_ENV.replace("FLANNEL_MTU=1450\n", ""), 7, "FLANNEL_MTU"),
        (SUBNET_ENV.replace("FLANNEL_IPMASQ=false\n", ""), 7, "FLANNEL_IPMASQ"),
    ],
    ids=["missing", "empty", "no-subnet", "no-prefix", "nonsense", "mtu", "no-mtu", "no-ipmasq"],
)
def test_subnet_env_that_cannot_be_used(host: Host, text: str | None, code: int, said: str) -> None:
    if text is None:
        host.path("/run/flannel/subnet.env").unlink()
    else:
        host.write_subnet_env(text)
    pod = host.netns("c1")
    reply = host.call("flannel", "ADD", FLANNEL, sandbox=pod)
    assert (reply.rc, reply.code) == (1, code), reply
    assert reply.json["msg"].startswith("failed to load flannel 'subnet.env' file: ")
    assert said in words(reply)
    assert left(host) == {}
    status = host.call("flannel", "STATUS", FLANNEL)
    assert (status.rc, status.code) == (1, 50), status
    assert said in words(status)


@pytest.mark.parametrize("key", ["name", "ipam"])
def test_delegate_must_not_have_what_flannel_sets(host: Host, key: str) -> None:
    reply = host.call("flannel", "ADD", FLANNEL | {"delegate": {key: "x"}}, sandbox=host.netns("c1"))
    assert reply.code == 7
    assert f"'{key}'" in words(reply)


def test_values_of_the_user_stand(host: Host) -> None:
    conf = FLANNEL | {
        "delegate": {"bridge": "br7", "mtu": 1300, "ipMasq": False, "isGateway": False},
        "ipam": {"routes": [{"dst": "10.99.0.0/16"}]},
    }
    add(host, conf, pod := host.netns("c1"))
    assert link(host, "eth0", pod)["mtu"] == 1300
    assert addresses(host, "br7") == []
    assert set(routes(host, pod)) == {"10.99.0.0/16", "10.244.0.0/16"}
    assert [route["dst"] for route in saved(host)["ipam"]["routes"]] == ["10.99.0.0/16", "10.244.0.0/16"]


# --- DEL --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    ["rm -f", "truncate -s 0", "truncate -s 40", "echo '[]' >", "echo '{\"type\": 7}' >", "head -c 300 /dev/urandom >"],
)
def test_del_works_around_a_damaged_saved_configuration(host: Host, damage: str) -> None:
    host.write_subnet_env(DUAL_ENV)
    add(host, FLANNEL, pod := host.netns("c1"))
    host.run(f"{damage} {SAVED}/c1")
    delete(host, FLANNEL, pod)
    assert left(host) == {}


@pytest.mark.parametrize("lost", ["subnet.env", "namespace", "namespace-file", "netns-variable", "run", "run-and-namespace"])
def test_del_needs_none_of_these(host: Host, lost: str) -> None:
    host.write_subnet_env(DUAL_ENV)
    add(host, FLANNEL, pod := host.netns("c1"))
    options: dict[str, Any] = {"sandbox": pod}
    if lost == "subnet.env":
        host.run("rm /run/flannel/subnet.env")
    if lost in ("namespace", "run-and-namespace"):
        host.delete_netns(pod)
    if lost == "namespace-file":
        host.run(f"umount {pod}")  # what is left is an empty file
    if lost == "netns-variable":
        options = {"sandbox": None}
    if lost in ("run", "run-and-namespace"):
        host.run("rm -rf /run/cni-py /run/flannel")
    host.ok("flannel", "DEL", FLANNEL, **options)
    assert left(host) == {}
    host.ok("flannel", "DEL", FLANNEL, **options)


def test_del_finds_an_interface_that_was_renamed(host: Host) -> None:
    add(host, FLANNEL, pod := host.netns("c1"))
    host.run("ip link set eth0 down; ip link set eth0 name net7", pod)
    delete(host, FLANNEL, pod)
    assert left(host) == {}


def test_del_with_a_changed_configuration_uses_the_saved_one(host: Host) -> None:
    add(host, FLANNEL | {"ipam": {"dataDir": "/var/lib/cni/blue"}}, pod := host.netns("c1"))
    delete(host, FLANNEL | {"delegate": {"bridge": "other"}}, pod)
    assert left(host) == {}


def test_del_of_what_was_never_added(host: Host) -> None:
    before = state(host)
    for netns in (None, GONE, host.netns("c1")):
        host.ok("flannel", "DEL", FLANNEL, sandbox=netns)
    assert state(host) == before


FAKE = """#!/bin/sh
cat >/run/fake/$CNI_COMMAND
test -e /run/fake/broken-$CNI_COMMAND && { echo '{"cniVersion": "1.1.0", "code": 42, "msg": "it is broken"}'; exit 1; }
test $CNI_COMMAND = ADD && echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.244.91.9/24"}]}'
exit 0
"""


@pytest.fixture
def fake(host: Host) -> dict[str, Any]:
    """A configuration whose delegate is another's, which fails while /run/fake/broken-VERB is there; and its CNI_PATH."""
    host.write("/run/fake/fake", FAKE)
    host.run("chmod +x /run/fake/fake")
    return {"conf": FLANNEL | {"delegate": {"type": "fake"}}, "cni_path": f"/run/fake:{host.bin_dir}"}


def test_saved_configuration_is_kept_until_the_delegates_del_succeeded(host: Host, fake: dict[str, Any]) -> None:
    host.ok("flannel", "ADD", sandbox=(pod := host.netns("c1")), **fake)
    kept = saved(host)
    host.write("/run/fake/broken-DEL", "")
    for _ in range(2):
        reply = host.call("flannel", "DEL", sandbox=pod, **fake)
        assert (reply.rc, reply.code) == (1, 42)
        assert "it is broken" in words(reply)
        assert saved(host) == kept
    host.path("/run/fake/broken-DEL").unlink()
    host.ok("flannel", "DEL", sandbox=pod, **fake)
    assert left(host) == {}
    assert json.loads(host.path("/run/fake/DEL").read_text()) == kept


def test_delegate_that_failed_gets_a_del(host: Host, fake: dict[str, Any]) -> None:
    """Spec section 4; and its own code is the answer's."""
    host.write("/run/fake/broken-ADD", "")
    reply = host.call("flannel", "ADD", sandbox=host.netns("c1"), **fake)
    assert (reply.rc, reply.code) == (1, 42)
    assert host.path("/run/fake/DEL").read_text() == host.path("/run/fake/ADD").read_text()
    assert left(host) == {}


def test_delegate_that_knows_no_such_version_may_refuse_both(host: Host, fake: dict[str, Any]) -> None:
    """The delegate has done nothing: the pod could never be deleted if a DEL had to succeed."""
    host.write("/run/fake/fake", FAKE.replace('"code": 42', '"code": 1'))
    host.write("/run/fake/broken-ADD", "")
    host.write("/run/fake/broken-DEL", "")
    reply = host.call("flannel", "ADD", sandbox=(pod := host.netns("c1")), **fake)
    assert (reply.rc, reply.code) == (1, 1)
    assert left(host) == {}
    host.ok("flannel", "DEL", sandbox=pod, **fake)


def test_delegate_whose_del_failed_too_gets_another_one(host: Host, fake: dict[str, Any]) -> None:
    """The saved configuration is kept for DEL, and the first error is returned."""
    host.write("/run/fake/broken-ADD", "")
    host.write("/run/fake/broken-DEL", "")
    reply = host.call("flannel", "ADD", sandbox=(pod := host.netns("c1")), **fake)
    assert (reply.rc, reply.code) == (1, 42)
    assert "failed (ADD)" in words(reply)
    assert left(host) == {"files": [f"{SAVED}/c1"], "records": ["c1:eth0:cbr0"]}
    for verb in ("ADD", "DEL"):
        host.path(f"/run/fake/broken-{verb}").unlink()
    host.path("/run/fake/DEL").unlink()
    host.ok("flannel", "DEL", sandbox=pod, **fake)
    assert host.path("/run/fake/DEL").exists()
    assert left(host) == {}


# --- twice ------------------------------------------------------------------------------------------------------------


def live(host: Host, pod: Sandbox) -> dict[str, Any]:
    return state(host, pod)


def test_duplicate_add_is_refused_and_the_live_one_stays(host: Host) -> None:
    result = add(host, FLANNEL, pod := host.netns("c1"))
    before = live(host, pod)
    reply = host.call("flannel", "ADD", FLANNEL, sandbox=pod)
    assert reply.rc == 1
    assert live(host, pod) == before
    assert check(host, FLANNEL, pod, result).rc == 0
    delete(host, FLANNEL, pod)
    assert left(host) == {}


@pytest.mark.parametrize("plugin", ["flannel", "bridge"])
def test_duplicate_add_with_another_namespace_is_refused_and_the_live_one_stays(host: Host, plugin: str) -> None:
    """Container and interface name are the same, but in that sandbox the name is free: host-local rejects it."""
    conf = FLANNEL if plugin == "flannel" else {
        "cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipMasq": True, "isGateway": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}]]},
    }  # fmt: skip
    result = add(host, conf, pod := host.netns("c1"))
    other = host.netns("c9")
    before = state(host, pod, other)
    reply = host.call(plugin, "ADD", conf, sandbox=other)
    assert reply.rc == 1
    assert "has been allocated to c1" in words(reply)
    assert state(host, pod, other) == before
    assert check(host, conf, pod, result).rc == 0
    host.delete_netns(other)
    host.ok(plugin, "GC", conf)
    assert state(host, pod) == {key: value for key, value in before.items() if key != str(other)}, (
        "GC knows whose sandbox lives"
    )


def test_same_interface_name_on_another_network_is_refused_and_the_live_one_stays(host: Host) -> None:
    """A runtime's mistake must not cost the pod its network."""
    result = add(host, FLANNEL, pod := host.netns("c1"))
    before = live(host, pod)
    other = FLANNEL | {"name": "other", "delegate": {"bridge": "br7"}}
    reply = host.call("flannel", "ADD", other, sandbox=pod)
    assert reply.rc == 1
    assert "eth0" in words(reply)
    assert check(host, FLANNEL, pod, result).rc == 0
    host.ok("flannel", "DEL", other, sandbox=pod)  # as runtimes do after a failed ADD
    assert check(host, FLANNEL, pod, result).rc == 0
    host.run("ip link del br7", check=False)
    assert live(host, pod) == before


TWO = {
    "same-network": (FLANNEL, FLANNEL),
    "two-networks": (
        FLANNEL,
        FLANNEL | {"name": "other", "delegate": {"bridge": "br7"}, "subnetFile": "/run/flannel/other.env"},
    ),
}


@pytest.mark.parametrize("lost_run", [False, True], ids=["", "run-emptied"])
@pytest.mark.parametrize(
    "order", [("eth0", "eth1"), ("eth1", "eth0"), ("eth0", "eth0", "eth1"), ("eth1", "eth1", "eth0", "eth0")]
)
@pytest.mark.parametrize("networks", TWO.values(), ids=TWO.keys())
def test_two_attachments_of_a_container(host: Host, networks: tuple[Any, Any], order: tuple[str, ...], lost_run: bool) -> None:
    host.write("/run/flannel/other.env", SUBNET_ENV.replace("10.244.", "10.55."))
    conf = {"eth0": networks[0], "eth1": networks[1]}
    pod = host.netns("c1")
    results = {ifname: add(host, conf[ifname], pod, ifname=ifname) for ifname in ("eth0", "eth1")}
    assert list(host.files(SAVED)) == [f"{SAVED}/c1", f"{SAVED}/c1:eth1"]
    assert saved(host)["name"] == "cbr0", "the first one has Go's file name"
    for ifname, result in results.items():
        assert check(host, conf[ifname], pod, result, ifname=ifname).rc == 0
    if lost_run:
        host.run("rm -rf /run/cni-py")
    alive = set(conf)
    for ifname in order:
        delete(host, conf[ifname], pod, ifname=ifname)
        alive.discard(ifname)
        assert {entry["ifname"] for entry in host.json("ip -j link", pod)} == alive | {"lo"}
        for other in alive:
            reply = check(host, conf[other], pod, results[other], ifname=other)
            assert reply.rc == 0, reply
    assert left(host) == {}


def test_second_attachment_alone_can_be_added_again(host: Host) -> None:
    pod = host.netns("c1")
    add(host, FLANNEL, pod)
    add(host, FLANNEL, pod, ifname="eth1")
    delete(host, FLANNEL, pod)
    add(host, FLANNEL, pod)
    for ifname in ("eth0", "eth1"):
        delete(host, FLANNEL, pod, ifname=ifname)
    assert left(host) == {}


# --- STATUS -----------------------------------------------------------------------------------------------------------


def test_status_is_well(host: Host) -> None:
    assert host.ok("flannel", "STATUS", FLANNEL) is None
    add(host, FLANNEL, host.netns("c1"))
    host.ok("flannel", "STATUS", FLANNEL)


def test_status_when_no_address_is_left(host: Host) -> None:
    host.write_subnet_env(SUBNET_ENV.replace("10.244.91.1/24", "10.244.91.1/30"))
    host.ok("flannel", "STATUS", FLANNEL)
    add(host, FLANNEL, pod := host.netns("c1"))
    reply = host.call("flannel", "STATUS", FLANNEL)
    assert (reply.rc, reply.code) == (1, 50)
    assert "no IP addresses available in range set" in words(reply)
    add_reply = host.call("flannel", "ADD", FLANNEL, sandbox=host.netns("c2"), container_id="c2")
    assert "no IP addresses available in range set" in words(add_reply)
    delete(host, FLANNEL, pod)
    host.ok("flannel", "STATUS", FLANNEL)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"delegate": {"type": "nothing"}}, "nothing"),
        ({"delegate": {"name": "x"}}, "name"),
        ({"ipam": {"type": "nothing"}}, "nothing"),
        ({"delegate": {"hairpinMode": True, "promiscMode": True}}, "hairpin"),
        ({"delegate": {"mtu": "many"}}, "mtu"),
    ],
)
def test_status_when_add_could_not_work(host: Host, keys: dict[str, Any], said: str) -> None:
    reply = host.call("flannel", "STATUS", FLANNEL | keys)
    assert (reply.rc, reply.code) == (1, 50), reply
    assert said in words(reply)


def test_status_makes_nothing(host: Host) -> None:
    before = host.snapshot()
    host.ok("flannel", "STATUS", FLANNEL)
    assert host.snapshot() == before
    assert host.files("/run/cni-py") == {}


# --- GC ---------------------------------------------------------------------------------------------------------------


def three_pods(host: Host) -> list[Sandbox]:
    pods = [host.netns(f"c{number}") for number in (1, 2, 3)]
    for pod in pods:
        add(host, FLANNEL, pod)
    return pods


def test_gc_frees_what_is_not_in_the_list(host: Host) -> None:
    host.write_subnet_env(DUAL_ENV)
    first, second = host.netns("c1"), host.netns("c2")
    result = add(host, FLANNEL, first)
    before = state(host, first, second)
    add(host, FLANNEL, second)
    gc(host, FLANNEL, ("c1", "eth0"), ("c2", "eth7"))
    assert state(host, first, second) == before
    assert check(host, FLANNEL, first, result).rc == 0
    gc(host, FLANNEL)
    assert left(host) == {}


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
def test_both_names_of_the_list_are_known(host: Host, key: str) -> None:
    add(host, FLANNEL, host.netns("c1"))
    host.ok("flannel", "GC", FLANNEL | {key: [{"containerID": "c1", "ifname": "eth0"}]})
    assert host.host_ends()
    host.ok("flannel", "GC", FLANNEL | {key: []})
    assert left(host) == {}


def test_gc_of_another_network_touches_nothing(host: Host) -> None:
    pods = three_pods(host)
    before = state(host, *pods)
    gc(host, FLANNEL | {"name": "other"})
    gc(host, FLANNEL | {"name": "cbr"})
    gc(host, FLANNEL | {"name": "cbr00"})
    assert state(host, *pods) == before


def test_gc_without_a_list_frees_only_the_dead(host: Host) -> None:
    pods = three_pods(host)
    host.delete_netns(pods[1])
    before = state(host, pods[0], pods[2])
    assert "c2:eth0:cbr0" in before["records"]
    host.ok("flannel", "GC", FLANNEL)
    after = state(host, pods[0], pods[2])
    assert [name for name in after["files"] if name not in before["files"]] == []
    assert {name for name in before["files"] if name not in after["files"]} == {
        f"{SAVED}/c2", "/var/lib/cni/networks/cbr0/10.244.91.3",
    }  # fmt: skip
    assert after["records"] == ["c1:eth0:cbr0", "c3:eth0:cbr0"]
    assert "10.244.91.3" not in host.run("nft list ruleset")
    assert len(host.host_ends()) == 2


def test_gc_without_a_list_knows_a_path_that_was_given_again(host: Host) -> None:
    add(host, FLANNEL, pod := host.netns("c1"))
    before = host.path(pod.path).stat().st_ino
    host.run(f"ip netns add spare; ip netns delete {pod.name}")
    for number in range(50):  # the kernel reuses the number of a deleted namespace
        if host.run(f"ip netns add n{number}; stat -c %i /run/netns/n{number}").strip() == str(before):
            break
    host.run("ip netns add c1")
    assert host.path(pod.path).stat().st_ino != before
    host.ok("flannel", "GC", FLANNEL)
    assert left(host) == {}


def test_gc_without_a_list_leaves_live_pods_alone(host: Host) -> None:
    pods = three_pods(host)
    before = state(host, *pods)
    host.ok("flannel", "GC", FLANNEL)
    assert state(host, *pods) == before


def test_gc_when_records_are_lost(host: Host) -> None:
    """GC without a list keeps everything then; with one it knows what is stale."""
    pods = three_pods(host)
    before = host.snapshot(*pods)
    host.run("rm -rf /run/cni-py")
    host.delete_netns(Sandbox("c3"))
    host.ok("flannel", "GC", FLANNEL)
    assert {name for name in host.files() if "last_reserved" not in name} == set(before["files"])
    gc(host, FLANNEL, ("c1", "eth0"))
    assert [name for name in host.files() if "last_reserved" not in name] == [
        f"{SAVED}/c1",
        "/var/lib/cni/networks/cbr0/10.244.91.2",
    ]
    assert len(host.host_ends()) == 1


def test_gc_when_the_saved_configuration_is_damaged(host: Host) -> None:
    three_pods(host)
    host.run(f"truncate -s 0 {SAVED}/c2; echo nonsense >{SAVED}/c3")
    gc(host, FLANNEL, ("c1", "eth0"))
    assert len(host.host_ends()) == 1
    assert "/var/lib/cni/networks/cbr0/10.244.91.3" not in host.files()
    assert records(host) == ["c1:eth0:cbr0"]
    assert f"{SAVED}/c1" in host.files()


def test_gc_of_one_of_two_attachments(host: Host) -> None:
    pod = host.netns("c1")
    results = {ifname: add(host, FLANNEL, pod, ifname=ifname) for ifname in ("eth0", "eth1")}
    gc(host, FLANNEL, ("c1", "eth1"))
    assert {entry["ifname"] for entry in host.json("ip -j link", pod)} == {"lo", "eth1"}
    reply = check(host, FLANNEL, pod, results["eth1"], ifname="eth1")
    assert reply.rc == 0, reply
    gc(host, FLANNEL)
    assert left(host) == {}


def test_gc_needs_no_subnet_env(host: Host) -> None:
    three_pods(host)
    host.path("/run/flannel/subnet.env").unlink()
    gc(host, FLANNEL)
    assert left(host) == {}


@pytest.mark.parametrize("raw", ["nothing", [{"containerID": "c1"}], {"containerID": "c1"}, [7]])
def test_list_that_cannot_be_read_frees_nothing(host: Host, raw: object) -> None:
    pods = three_pods(host)
    before = state(host, *pods)
    reply = host.call("flannel", "GC", FLANNEL | {"cni.dev/valid-attachments": raw})
    assert (reply.rc, reply.code) == (1, 7), reply
    assert state(host, *pods) == before
