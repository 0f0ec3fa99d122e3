"""Lesson 6: a subnet reserved in etcd for one node."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cni_py.lessons.lesson import Lesson, Requirement

if TYPE_CHECKING:
    from cni_py.lab.site import Site

NODE, NODE_ADDRESS, SUBNET, GATEWAY = "node2", "192.168.123.12", "10.244.77.0/24", "10.244.77.1"
_KEY = f"/coreos.com/network/subnets/{SUBNET.replace('/', '-')}"


def _no_key(site: Site) -> str:
    value = site.run("etcd", f"etcdctl get --print-value-only {_KEY}", check=False).strip()
    if not value:
        keys = site.run("etcd", "etcdctl get --prefix --keys-only /coreos.com/network/subnets", check=False).split()
        found = ", ".join(key.rpartition("/")[2].replace("-", "/") for key in keys)
        return f"etcd has no key {_KEY}, only the subnets {found}"
    found = json.loads(value).get("PublicIP")
    return "" if found == NODE_ADDRESS else f"{SUBNET} is that of {found}, and {NODE} has {NODE_ADDRESS}"


def _expires(site: Site) -> str:
    text = site.run("etcd", f"etcdctl get -w json {_KEY}", check=False)
    keys = json.loads(text or "{}").get("kvs") or [{}]
    return "the key has a lease of etcd, with which it expires" if keys[0].get("lease") else ""


def _is_not_used(site: Site) -> str:
    if not site.flanneld(NODE).is_alive:
        return f"flanneld of {NODE} does not run"
    found = site.subnets(NODE)
    return (
        "" if found == SUBNET else f"subnet.env of {NODE} has {found or 'no subnet'}: flanneld reads its lease when it starts"
    )


LESSON = Lesson(
    6,
    "06-etcd-and-leases.md",
    "etcd and leases",
    25,
    f"""\
Reserve the subnet {SUBNET} permanently for {NODE}, and make its flanneld use it.""",
    (
        Requirement(
            f"{SUBNET} belongs to {NODE}, by its address {NODE_ADDRESS}",
            _no_key,
            "cni-py help config reserve",
            is_gate=True,
        ),
        Requirement(
            "it does not expire",
            _expires,
            "a lease ends 24 hours after its flanneld; cni-py config reserve writes a key without one",
        ),
        Requirement(
            f"flanneld of {NODE} runs with {SUBNET}",
            _is_not_used,
            f"restart it: cni-py lab break flanneld {NODE}; cni-py lab heal flanneld {NODE}",
        ),
    ),
    lab={"nodes": 2, "datastore": "etcd"},
    place=NODE,
)
