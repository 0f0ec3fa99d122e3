"""Facts about a node of the lab that requirements ask for: interfaces, routes, files, replies. Changes nothing.

A function returns "" if it is as asked, and otherwise a sentence about what was found, unless its docstring says more.
"""

from __future__ import annotations

import json
import shlex
import sys
from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_py.lab.site import Site

WAIT_SECONDS = 3
LISTEN_SECONDS = 20
"""Time for which the server of :func:`source_seen` waits for its one connection."""

_SERVER = f"""
import os, socket, sys
try:
    server = socket.create_server(("", int(sys.argv[1])))
except OSError:
    sys.exit()  # another server of the learner's has the port
if os.fork():
    os._exit(0)
os.setsid()
for stream in range(3):
    os.close(stream)
server.settimeout({LISTEN_SECONDS})
connection, address = server.accept()
connection.sendall(address[0].encode())
"""
_CLIENT = f"""
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), {WAIT_SECONDS}) as connection:
        connection.settimeout({WAIT_SECONDS})
        connection.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        print(connection.recv(99).decode(errors="replace"))
except OSError as error:
    print("failed", error.strerror or error)
"""


def inside(netns: str, command: str) -> str:
    """Return the command as run in a network namespace of the node; "": in the node's own."""
    return f"ip netns exec {shlex.quote(netns)} {command}" if netns else command


def read_json(site: Site, node: str, command: str) -> Any:
    """Return the decoded output of a command; None if it fails or prints no JSON."""
    text = site.run(node, f"{command} 2>/dev/null", check=False)
    try:
        return json.loads(text.replace("fan-map ", ""))  # Ubuntu's ip(8) writes that into the details of a VXLAN device
    except ValueError:
        return None


def read_file(site: Site, node: str, path: str) -> str | None:
    """Return a file of the node; None if it does not exist."""
    try:
        with open(site.machine(node).path(path), newline="", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def list_directory(site: Site, node: str, path: str) -> list[str]:
    """Return the names in a directory of the node, sorted; none if it does not exist."""
    return sorted(site.run(node, f"ls -A {shlex.quote(path)} 2>/dev/null", check=False).split())


def links(site: Site, node: str, netns: str = "") -> dict[str, dict[str, Any]]:
    """Return the interfaces of a namespace by their names, as ``ip -j -d addr`` has them; none if it does not exist."""
    found = read_json(site, node, inside(netns, "ip -j -d addr show")) or []
    return {link["ifname"]: link for link in found if link}


def addresses(link: dict[str, Any]) -> list[str]:
    """Return the IPv4 addresses of an interface, with their prefix lengths."""
    return [f"{one['local']}/{one['prefixlen']}" for one in link.get("addr_info", ()) if one["family"] == "inet"]


def no_namespace(site: Site, node: str, netns: str) -> str:
    names = [entry["name"] for entry in read_json(site, node, "ip -j netns list") or []]
    return "" if netns in names else f"there is none on {node}: ip netns add {netns}"


def no_interface(site: Site, node: str, netns: str, ifname: str = "eth0") -> str:
    """Find whether a namespace has an interface that is up."""
    if missing := no_namespace(site, node, netns):
        return missing
    link = links(site, node, netns).get(ifname)
    if link is None:
        others = [name for name in links(site, node, netns) if name != "lo"]
        return f"{netns} has no interface {ifname}" + (f", but {', '.join(others)}" if others else "")
    return "" if "UP" in link["flags"] else f"{ifname} of {netns} is down"


def no_address_in(site: Site, node: str, netns: str, network: str, ifname: str = "eth0") -> str:
    """Find whether an interface has exactly one IPv4 address, and in this network with its prefix length."""
    if missing := no_interface(site, node, netns, ifname):
        return missing
    found = addresses(links(site, node, netns)[ifname])
    if not found:
        return f"{ifname} of {netns} has no IPv4 address"
    wrong = [one for one in found if ip_interface(one).network != ip_network(network)]
    return f"{ifname} of {netns} has {', '.join(found)}" if wrong or len(found) > 1 else ""


def address_of(site: Site, node: str, netns: str, ifname: str = "eth0") -> str:
    """Return the first IPv4 address of an interface, without its prefix length; "" if it has none."""
    found = addresses(links(site, node, netns).get(ifname, {}))
    return found[0].partition("/")[0] if found else ""


def no_default_route(site: Site, node: str, netns: str, gateway: str) -> str:
    routes = read_json(site, node, inside(netns, "ip -j route show default")) or []
    if not routes:
        return f"{netns} has no default route"
    found = [route.get("gateway", "no gateway") for route in routes]
    return "" if found == [gateway] else f"the default route of {netns} leads to {', '.join(found)}"


def no_ping(site: Site, node: str, netns: str, target: str) -> str:
    command = inside(netns, f"ping -n -q -c 1 -W {WAIT_SECONDS} {target} >/dev/null 2>&1 && echo reply")
    is_reached = "reply" in site.run(node, command, check=False)
    return "" if is_reached else f"no reply to a ping from {netns or node} to {target}"


def host_end(site: Site, node: str, netns: str, ifname: str = "eth0") -> dict[str, Any] | None:
    """Return the node's end of a veth whose other end is in a namespace; None if there is none."""
    link = links(site, node, netns).get(ifname, {})
    kind = link.get("linkinfo", {}).get("info_kind")
    index = link.get("link_index")
    if kind != "veth" or index is None:
        return None
    # the number alone may be that of any link, if the other end is in a third namespace
    ends = [one for one in links(site, node).values() if (one["ifindex"], one.get("link_index")) == (index, link["ifindex"])]
    return ends[0] if ends else None


def not_a_port_of(site: Site, node: str, netns: str, bridge: str) -> str:
    """Find whether the node's end of a namespace's veth is a port of this bridge, and up."""
    end = host_end(site, node, netns)
    if end is None:
        return f"eth0 of {netns} is not a veth whose other end is on {node}"
    if end.get("master") != bridge:
        master = f"a port of {end['master']}" if "master" in end else "not a port of any bridge"
        return f"{end['ifname']}, the other end of eth0 of {netns}, is {master}"
    return "" if "UP" in end["flags"] else f"{end['ifname']} is down"


def reservations(site: Site, node: str, network: str) -> dict[str, str]:
    """Return the addresses that host-local has reserved, each with its container id."""
    directory = f"/var/lib/cni/networks/{network}"
    files = [name for name in list_directory(site, node, directory) if _is_address(name)]
    texts = {name: read_file(site, node, f"{directory}/{name}") or "" for name in files}
    return {name: text.splitlines()[0] if text.strip() else "" for name, text in texts.items()}


def attachments(site: Site, node: str) -> list[dict[str, Any]]:
    """Return the attachments of a node, as ``cni-py explain --json`` lists them."""
    found = read_json(site, node, "cni-py explain --json")
    return found if isinstance(found, list) else []


def elements(site: Site, node: str, table: str, name: str) -> Iterator[Any]:
    """Yield the elements of a map of nftables, as ``nft -j`` has them."""
    found = read_json(site, node, f"nft -j list map {table} {name}") or {"nftables": []}
    for entry in found["nftables"]:
        yield from entry.get("map", {}).get("elem", ())


def source_seen(site: Site, client: str, address: str, port: int, *, node: str, netns: str, server_port: int) -> str:
    """Connect from ``client`` to an address, while a server listens in a namespace of ``node``.

    Returns: the source address that the server has seen, or "failed" with the reason.
    """
    python = shlex.quote(sys.executable)
    site.run(node, inside(netns, f"{python} -IS -c {shlex.quote(_SERVER)} {server_port}"), check=False)
    return site.run(client, f"{python} -IS -c {shlex.quote(_CLIENT)} {address} {port}", check=False).strip()


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
