"""portmap: connections to ports of the host go on to the pod. Stands behind another plugin in a chain.

Owns, per attachment: the nftables elements (or iptables chain) of its ports. Shared: the chains in
``table inet cni_py``, and ``route_localnet`` of the link to the pods, where 127.0.0.1 may connect. Its records,
by which GC knows who is gone, are apart from those of the plugin before it: that one's DEL comes later.

Source: containernetworking/plugins plugins/meta/portmap; the layout of the rules: kernel/portmap_rules.py.
"""

from __future__ import annotations

from cni_py.attachment import record as attachments
from cni_py.config import parse
from cni_py.errors import CniError, InvalidConfig
from cni_py.journal import note
from cni_py.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType
    from typing import Any

    from cni_py.config.models import PortmapConfig
    from cni_py.packetfilter.hostports.rules import Wanted
    from cni_py.spec.call import Call

CONFIG = "PortmapConfig"


def add(call: Call, config: PortmapConfig) -> Mapping[str, Any]:
    """Map the ports; the previous result is handed on as it came. Spec section 2, ADD."""
    backend, wanted = _plan(call, config)
    if wanted.mappings:
        with Undo() as undo:
            undo.once_clean("the record as before", attachments.restore, call, attachments.remember(call, conf=dict(call.conf)))
            undo.on_failure("port mappings", _kernel().delete, wanted.owner)
            _kernel().add(wanted, backend)
    handed_on: Mapping[str, Any] = call.conf["prevResult"]
    return handed_on


def delete(call: Call, config: PortmapConfig) -> None:
    """Take away every mapping of this attachment: neither a port nor a previous result has to be named.

    Go-compatible in nothing but success: the Go plugin does nothing where no port is named.
    """
    from cni_py.packetfilter.ownership import Owner

    udp = {m.host_port for m in config.runtime_config.port_mappings if m.protocol.lower() == "udp" and 0 < m.host_port < 65536}
    freed = _kernel().delete(Owner(call.container_id, call.ifname, call.network), udp)
    if freed:
        _give_back(call, freed)


def _give_back(call: Call, freed: set[tuple[int, bytes]]) -> None:
    """Map the freed ports for the container's other attachments that want them, too.

    podman maps a container's ports in each of its networks: the newest holds them, and when the
    container leaves that network they have to lead to it by another.
    """
    from cni_py.packetfilter.hostports.rules import key_of, target_of

    for record in attachments.others_of_container(call):
        try:
            this = call.replace(ifname=str(record["ifname"]), netns=str(record["netns"]), conf=record["conf"])
            backend, wanted = _plan(this, parse(CONFIG, this.conf, "the record of a port mapping"))
            again = tuple([m for m in wanted.mappings if (len(target_of(m)), key_of(m)) in freed])
            if again:
                note(f"host ports go back to network {this.network}")
                _kernel().add(wanted.replace(mappings=again), backend)
                freed -= {(len(target_of(m)), key_of(m)) for m in again}
        except (CniError, KeyError, TypeError) as error:  # an older record, or one that is damaged
            note(f"did not give host ports back: {error}")


def check(call: Call, config: PortmapConfig) -> None:
    """Compare every mapping with what is there: element, owner, target, chains, route_localnet."""
    if config.prev_result is None:
        raise InvalidConfig("Required prevResult missing", "CHECK needs the result of ADD")
    backend, wanted = _plan(call, config)
    if wanted.mappings:
        from cni_py.packetfilter.hostports import check as portmap_check

        portmap_check.check(wanted, backend)


def status(call: Call, config: PortmapConfig) -> None:
    """Ready when the configuration can be used and a back end works."""
    from cni_py.plugins.meta.portmap import plan as portmap_plan

    _kernel().check_backend(portmap_plan.check_config(config))


def gc(call: Call, config: PortmapConfig) -> None:
    """Delete the mappings of this network's attachments that have gone, and repair what all mappings share."""
    _kernel().delete_stale(call.network, attachments.valid(call), attachments.stale_test(call))


def _plan(call: Call, config: PortmapConfig) -> tuple[str, Wanted]:
    from cni_py.plugins.meta.portmap import plan as portmap_plan

    return portmap_plan.check_config(config), portmap_plan.wanted(call, config)


def _kernel() -> ModuleType:
    """``kernel.portmap``, imported where a port is mapped or may have been."""
    from cni_py.packetfilter.hostports import forwarding

    return forwarding
