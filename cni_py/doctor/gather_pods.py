"""One attachment that was asked about: its interface as seen from inside, and what CHECK says. Changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network

from cni_py.doctor.facts import Pod, PodLink
from cni_py.errors import CniError
from cni_py.kernel.address import list_addresses
from cni_py.kernel.link import list_links
from cni_py.kernel.netns import open_in, open_sandbox
from cni_py.kernel.route import list_routes_over
from cni_py.runtime.chain import Runtime
from cni_py.runtime.network_config import Attachment, load_network

_EVERYWHERE = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))


@dataclass(frozen=True, slots=True)
class Asked:
    """An attachment as the command line named it."""

    container_id: str
    ifname: str
    network: str
    netns: str
    state: str
    pod: str = ""
    addresses: tuple[str, ...] = ()
    error: str = ""
    cni_path: tuple[str, ...] = ()
    conf_directory: str = "/etc/cni/net.d"
    cache_dir: str = "/var/lib/cni"
    with_check: bool = True
    """Ask the plugins too, which executes them."""

    @property
    def names(self) -> frozenset[str]:
        return frozenset(filter(None, (self.container_id, self.pod, self.netns, *self.addresses)))


def read(asked: Asked) -> Pod:
    """Read what is known of it."""
    pod = Pod(
        names=asked.names,
        name=asked.pod or asked.netns.removeprefix("/run/netns/") or asked.container_id,
        container_id=asked.container_id,
        ifname=asked.ifname,
        network=asked.network,
        netns=asked.netns,
        state=asked.state,
        addresses=asked.addresses,
        error=asked.error,
    )
    try:
        links, peer = _inside(asked)
    except (CniError, OSError) as error:
        return replace(pod, fault=str(error))
    differences, unasked = _checked(asked) if asked.with_check else ([], [])
    return replace(pod, links=tuple(links), peer=peer, differences=tuple(differences), unasked=tuple(unasked))


def _inside(asked: Asked) -> tuple[list[PodLink], int]:
    """Return the interfaces of the sandbox, and the ifindex of the host end. Raises: CniError, OSError."""
    found, peer = list[PodLink](), 0
    with open_sandbox(asked.netns) as netns, open_in(netns) as sandbox:
        for link in list_links(sandbox):
            if link.name == "lo":
                continue
            routes = list_routes_over(sandbox, link)
            gateways = tuple(route.gateway for route in routes if route.dst in _EVERYWHERE and route.gateway)
            addresses = tuple(list_addresses(sandbox, link))
            found.append(PodLink(link.name, link.is_up, link.mtu, link.mac, addresses, gateways))
            if link.name == asked.ifname:
                peer = link.peer
    return found, peer


def _checked(asked: Asked) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Ask the plugins, as ``cni-py check`` does. Returns: what differs, and which could not be asked."""
    try:
        network = load_network(asked.conf_directory, asked.network, lambda _: None)
        runtime = Runtime(asked.cni_path, asked.cache_dir, say=lambda _: None)
        attachment = Attachment(container_id=asked.container_id, netns=asked.netns, ifname=asked.ifname)
        outcome = runtime.check(network, runtime.recall(network.name, attachment))
    except CniError as error:
        return [], [str(error)]
    found = [(one.msg, one.details, one.hint) for error in outcome.failed for one in (error.differences or (error,))]
    return found, list(outcome.unasked)
