"""Names on this node that complete a command line: networks, namespaces, attachments, places of a lab.

Read from the files directly, at most :data:`MOST` of a directory, since a person waits; what cannot be read is left out.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

NETWORKS, RESULTS, NAMESPACES = "/etc/cni/net.d", "/var/lib/cni", "/run/netns"
RECORDS, LAB = "/run/cni-py/attachments", "/run/cni-py/lab"
LESSONS = 10
"""Number of lessons; their table would be loaded with the lab."""
MOST = 300
"""Files of a directory; the newest of them."""
_LARGEST = 1 << 20


def networks(directory: str = "") -> dict[str, str]:
    """Return the names of configured networks, with their plugins."""
    found: dict[str, str] = {}
    directory = directory or os.environ.get("NETCONFPATH") or NETWORKS
    for conf in _objects(directory, (".conflist", ".conf", ".json")):
        plugins = conf.get("plugins")
        types = [one.get("type") for one in (plugins if isinstance(plugins, list) else [conf]) if isinstance(one, dict)]
        if isinstance(conf.get("name"), str):
            found.setdefault(conf["name"], ", ".join(filter(None, map(_text, types))))
    return dict(sorted(found.items()))


def namespaces() -> dict[str, str]:
    """Return the names of ``ip netns``."""
    return dict.fromkeys(sorted(_names(NAMESPACES)), "network namespace")


def attachments(directory: str = "", *, only_ids: bool = False) -> dict[str, str]:
    """Return what names an attachment: pod, address, container id, namespace; with what it is."""
    pods, addresses, ids, netns = {}, {}, {}, {}
    for one in _attachments(directory):
        about = f"{one['ifname']} of network {one['network']}"
        ids[one["id"]] = about
        if one["pod"]:
            pods[one["pod"]] = about
        for address in one["addresses"]:
            addresses[address] = f"{one['pod'] or one['id'][:12]}, {about}"
        if one["netns"].startswith((f"{NAMESPACES}/", f"/var{NAMESPACES}/")):
            netns[one["netns"].rpartition("/")[2]] = about
    return ids if only_ids else pods | netns | addresses | ids


def cached(directory: str, network: str) -> dict[str, str]:
    """Return ``CONTAINERID/IFNAME`` of the attachments of a network, or of all."""
    found = [one for one in _attachments(directory) if network in ("", one["network"])]
    return {f"{one['id']}/{one['ifname']}": one["pod"] or ", ".join(one["addresses"]) for one in found}


def interfaces_of_pods(directory: str) -> dict[str, str]:
    """Return the names that interfaces have in sandboxes."""
    return dict.fromkeys(sorted({"eth0", *(one["ifname"] for one in _attachments(directory))}), "")


def places(directory: str, *, only_nodes: bool = False) -> dict[str, str]:
    """Return the places of a lab."""
    state = _object(f"{directory or LAB}/state.json") or {}
    nodes, pods, machines = state.get("nodes"), state.get("pods"), state.get("machines")
    found = {one["name"]: "node" for one in nodes or () if isinstance(one, dict) and isinstance(one.get("name"), str)}
    if only_nodes:
        return found
    found |= {name: f"pod of {one.get('node')}" for name, one in (pods or {}).items() if isinstance(one, dict)}
    return found | {name: "" for name in machines or () if name not in found}


def lessons() -> dict[str, str]:
    """Return the numbers of the lessons."""
    return {str(number): "lesson" for number in range(1, LESSONS + 1)}


def plugins() -> dict[str, str]:
    """Return the plugins of this suite."""
    from cni_py.plugin_table import PLUGINS

    return {name: f"{row.kind} plugin" for name, row in PLUGINS.items()}


def interfaces(*, addresses: bool) -> dict[str, str]:
    """Return the links of this host, without loopback and pods' ends; none where only an address is a value."""
    names = [] if addresses else sorted(_names("/sys/class/net"))
    return dict.fromkeys((name for name in names if name != "lo" and not name.startswith(("veth", "cali"))), "link")


# ---- files ------------------------------------------------------------------------------------


def _attachments(directory: str) -> Iterator[dict[str, Any]]:
    """Yield the attachments that a runtime has a result of, or that have a record."""
    seen = set()
    for raw in (*_objects(f"{directory or RESULTS}/results"), *_objects(RECORDS)):
        one = {
            "id": _text(raw.get("containerId") or raw.get("containerID")),
            "ifname": _text(raw.get("ifName") or raw.get("ifname")),
            "network": _text(raw.get("networkName") or raw.get("network")),
            "netns": _text(raw.get("netns")),
            "pod": _pod(raw.get("cniArgs") or raw.get("args")),
            "addresses": list(_addresses(raw.get("result"))),
        }
        key = one["id"], one["ifname"], one["network"]
        if one["id"] and key not in seen:
            seen.add(key)
            yield one


def _pod(args: object) -> str:
    """Return ``namespace/name`` from CNI_ARGS, as a list of pairs or as text."""
    pairs = [text.split("=", 1) for text in args.split(";")] if isinstance(args, str) else args
    named = {}
    for pair in pairs if isinstance(pairs, list) else ():
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair):
            named[pair[0]] = pair[1]
    name, space = named.get("K8S_POD_NAME", ""), named.get("K8S_POD_NAMESPACE", "")
    return f"{space}/{name}" if space and name else name


def _addresses(result: object) -> Iterator[str]:
    ips = result.get("ips") if isinstance(result, dict) else None
    for ip in ips if isinstance(ips, list) else ():
        if isinstance(ip, dict):
            yield _text(ip.get("address")).partition("/")[0]


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _objects(directory: str, endings: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a directory, in the order of their names."""
    try:
        with os.scandir(directory) as entries:
            found = [(entry.stat().st_mtime, entry.path) for entry in entries if not endings or entry.name.endswith(endings)]
    except OSError:
        return
    for _, path in sorted(sorted(found, reverse=True)[:MOST], key=lambda one: one[1]):
        one = _object(path)
        if one is not None:
            yield one


def _object(path: str) -> dict[str, Any] | None:
    import json  # 7 ms, which a command or an option need not wait for

    try:
        with open(path, "rb") as file:
            raw = json.loads(file.read(_LARGEST))
    except (OSError, ValueError, RecursionError):
        return None
    return raw if isinstance(raw, dict) else None
