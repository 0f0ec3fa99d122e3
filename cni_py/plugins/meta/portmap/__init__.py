"""portmap: connections to ports of the host are redirected to the pod. It is chained behind another plugin.

Owns, per attachment: the nftables elements (or the iptables chain) of its ports. Shared: the chains in
``table inet cni_py``, and ``route_localnet`` of the link to the pods, if 127.0.0.1 may connect. It keeps its own
records, for GC: DEL of the plugin in front of it comes later.

Source: containernetworking/plugins plugins/meta/portmap; the rules: packetfilter/hostports/rules.py.
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
    from typing import Any

    from cni_py.config.models import PortmapConfig
    from cni_py.packetfilter.hostports.rules import Wanted
    from cni_py.spec.call import Call

CONFIG = "PortmapConfig"


def add(call: Call, config: PortmapConfig) -> Mapping[str, Any]:
    """Map the ports; the previous result is returned unchanged. Spec section 2, ADD."""
    backend, wanted = _plan(call, config)
    if wanted.mappings:
        from cni_py.packetfilter.hostports import forwarding

        with Undo() as undo:
            undo.on_failure_if_clean(
                "the record as before", attachments.restore, call, attachments.remember(call, conf=dict(call.conf))
            )
            undo.on_failure("port mappings", forwarding.delete, wanted.owner, (), _mark_of(call))
            if forwarding.add(wanted, backend):
                attachments.say_rules_lost()
    prev_result: Mapping[str, Any] = call.conf["prevResult"]
    return prev_result


def delete(call: Call, config: PortmapConfig) -> None:
    """Delete every mapping of this attachment: the runtime need not give its ports, nor a previous result.

    Go-compatible in nothing but success: the Go plugin does nothing if it gets no ports.
    """
    from cni_py.packetfilter.hostports import forwarding

    udp = {m.host_port for m in config.runtime_config.port_mappings if m.protocol.lower() == "udp" and 0 < m.host_port < 65536}
    freed = forwarding.delete(attachments.owner_of(call), udp, _mark_of(call))
    if freed:
        _remap(call, freed)


def _mark_of(call: Call) -> str:
    """The mark of the host end, if the plugin in front created one."""
    return attachments.MARK + attachments.mark_of(call.container_id, call.ifname, call.network)


def _remap(call: Call, freed: set[tuple[int, bytes]]) -> None:
    """Map the freed ports to the container's other attachments that want them, too.

    podman maps a container's ports in each of its networks: the newest has them, and when the container leaves that
    network they have to lead to it through another one.
    """
    from cni_py.packetfilter.hostports import forwarding
    from cni_py.packetfilter.hostports.rules import key_of, target_of

    for record in attachments.others_of_container(call):
        try:
            this = call.replace(ifname=str(record["ifname"]), netns=str(record["netns"]), conf=record["conf"])
            backend, wanted = wanted_of(this)
            again = tuple([m for m in wanted.mappings if (len(target_of(m)), key_of(m)) in freed])
            if again:
                note(f"host ports return to network {this.network}")
                forwarding.add(wanted.replace(mappings=again), backend)
                freed -= {(len(target_of(m)), key_of(m)) for m in again}
        except (CniError, KeyError, TypeError) as error:  # an older record, or a damaged one
            note(f"host ports not remapped: {error}")


def wanted_of(call: Call) -> tuple[str, Wanted]:
    """Return back end and mappings of a recorded ADD. Raises: CniError."""
    return _plan(call, parse(CONFIG, call.conf, "the record of a port mapping"))


def check(call: Call, config: PortmapConfig) -> None:
    """Compare every mapping with the actual state: element, owner, target, chains, route_localnet."""
    if config.prev_result is None:
        raise InvalidConfig("Required prevResult missing", "CHECK needs the result of ADD")
    backend, wanted = _plan(call, config)
    if wanted.mappings:
        from cni_py.packetfilter.hostports import check as mappings

        mappings.check(wanted, backend)


def status(call: Call, config: PortmapConfig) -> None:
    """Check that the configuration can work and that a back end is usable."""
    from cni_py.packetfilter.hostports import forwarding
    from cni_py.plugins.meta.portmap import plan

    forwarding.check_backend(plan.check_config(config))


def gc(call: Call, config: PortmapConfig) -> None:
    """Delete the mappings of this network's attachments that no longer exist, and repair what all mappings share."""
    from cni_py.packetfilter.hostports import forwarding

    forwarding.delete_stale(call.network, attachments.valid(call), attachments.stale_test(call))


def _plan(call: Call, config: PortmapConfig) -> tuple[str, Wanted]:
    from cni_py.plugins.meta.portmap import plan  # it loads the rules, which DEL and GC load anyway

    return plan.check_config(config), plan.wanted(call, config)
