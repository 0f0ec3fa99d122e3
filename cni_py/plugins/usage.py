"""Addresses of a network that are taken: by its configuration and the names of the reservations. Changes nothing."""

from __future__ import annotations

from cni_py import config, subnet_env
from cni_py.plugins.ipam import host_local
from cni_py.plugins.meta import flannel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.ipam.ranges import RangeSet
    from cni_py.spec.call import Call


def usage_of(call: Call) -> list[tuple[RangeSet, int]]:
    """Return range sets and the number of addresses taken of each; empty without host-local. Raises: CniError."""
    conf = call.conf
    if call.plugin == "flannel":
        settings = config.parse(flannel.CONFIG, conf)
        conf = flannel.delegate_conf(call, settings, subnet_env.read(settings.subnet_file))
    ipam = conf.get("ipam")
    if not isinstance(ipam, dict) or (config.member_of(ipam, "type") != "host-local" and call.plugin != "host-local"):
        return []
    return host_local.usage(call.replace(conf=conf), config.parse(host_local.CONFIG, conf))
