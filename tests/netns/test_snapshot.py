"""Host and sandbox before the ADD of a second pod are equal to what they are after its DEL, or its GC: for every option."""

from __future__ import annotations

from typing import Any

import pytest

from support.namespaces import Host
from support.pods import DUAL_ENV, OPTIONS, add, delete, gc, state, wait_for_dad


@pytest.mark.parametrize("verb", ["DEL", "GC"])
@pytest.mark.parametrize("conf", OPTIONS.values(), ids=OPTIONS.keys())
def test_second_pod_leaves_no_trace(host: Host, conf: dict[str, Any], verb: str) -> None:
    host.write_subnet_env(DUAL_ENV)
    first, second = host.netns("c1"), host.netns("c2")
    mac: dict[str, Any] = {"runtimeConfig": {"mac": "02:00:00:00:00:02"}} if "args" in conf else {}
    add(host, conf, first)
    if conf.get("enabledad"):
        wait_for_dad(host, first)
    before = state(host, first, second)
    add(host, conf | mac, second)
    assert state(host, first, second) != before
    if verb == "DEL":
        delete(host, conf | mac, second)
    else:
        gc(host, conf, ("c1", "eth0"))
    assert state(host, first, second) == before


@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_names_as_long_as_can_be_leave_no_trace(host: Host, verb: str) -> None:
    """The mark of a host end holds 127 characters, the name of a record 250: here they are cut."""
    conf = OPTIONS["all"] | {"name": "n" * 200}
    first, second = host.netns("c1"), host.netns("c2")
    add(host, conf, first, container_id="a" * 200, ifname="i" * 15)
    before = state(host, first, second)
    add(host, conf, second, container_id="b" * 200, ifname="i" * 15)
    if verb == "DEL":
        delete(host, conf, second, container_id="b" * 200, ifname="i" * 15)
    else:
        gc(host, conf, ("a" * 200, "i" * 15))
    assert state(host, first, second) == before


def test_every_option_is_in_the_list() -> None:
    from cni_py.config.models import BridgeConfig, FlannelConfig, NetworkConfig

    shared = set(NetworkConfig.model_fields)
    options = {field.alias or name for name, field in BridgeConfig.model_fields.items() if name not in shared}
    options |= {field.alias or name for name, field in FlannelConfig.model_fields.items() if name not in shared}
    used = {key for conf in OPTIONS.values() for key in (*conf, *conf.get("delegate", {}))} | {"mac"}
    elsewhere = {
        "vlan", "vlanTrunk", "preserveDefaultVlan",  # refused by kernels without VLAN filtering: test_bridge_options.py
        "delegateMode", "subnetFile", "dataDir", "runtimeConfig",  # test_flannel.py and below
    }  # fmt: skip
    assert options - used <= elsewhere


@pytest.mark.parametrize("mode", ["exec", "native"])
def test_delegate_mode_changes_nothing_of_that(host: Host, mode: str) -> None:
    host.write_subnet_env(DUAL_ENV)
    conf = OPTIONS["flannel"] | {"delegateMode": mode}
    first, second = host.netns("c1"), host.netns("c2")
    add(host, conf, first)
    before = state(host, first, second)
    add(host, conf, second)
    delete(host, conf, second)
    assert state(host, first, second) == before


def test_paths_of_ones_own_are_used_and_left_empty(host: Host) -> None:
    host.write("/run/blue/subnet.env", DUAL_ENV)
    conf = OPTIONS["flannel"] | {
        "subnetFile": "/run/blue/subnet.env",
        "dataDir": "/run/blue/flannel",
        "ipam": {"dataDir": "/run/blue/ipam"},
    }
    pod = host.netns("c1")
    add(host, conf, pod)
    made = host.files("/run/blue", "/var/lib/cni")
    assert {"/run/blue/flannel/c1", "/run/blue/ipam/cbr0/10.244.91.2"} <= made.keys()
    assert not [name for name in made if name.startswith("/var/lib/cni")]
    delete(host, conf, pod)
    assert {"/run/blue/flannel/c1", "/run/blue/ipam/cbr0/10.244.91.2"} & host.files("/run/blue").keys() == set()
