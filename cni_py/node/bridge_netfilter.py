"""Check that packets between pods of one node pass iptables: otherwise kube-proxy's Services do not reply to them.

    faults(ipv4, ipv6) -> list[str]        a line for each parameter that is missing or off; empty: all is well

A Service's packet from a pod to a pod on the same bridge is translated on its way out; the reply stays in the bridge, and is
translated back only if the bridge calls netfilter. Nothing is changed here: module and parameters are the host's.

Source: linux net/bridge/br_netfilter_hooks.c; flannel-io/flannel main.go, which does not start without the module.
"""

from __future__ import annotations

from cni_py.errors import KernelRefused
from cni_py.kernel import sysctl

_PARAMETERS = {4: "net/bridge/bridge-nf-call-iptables", 6: "net/bridge/bridge-nf-call-ip6tables"}
_CONSEQUENCE = "with kube-proxy a Service does not answer to a pod on the node of its endpoint"


def faults(ipv4: bool, ipv6: bool) -> list[str]:
    """Return what is missing for these families, each with the command that adds it."""
    names = [name for version, name in _PARAMETERS.items() if (ipv4 if version == 4 else ipv6)]
    found = {name: _value(name) for name in names}
    if not any(found.values()):
        return [f"the kernel module br_netfilter is not loaded: {_CONSEQUENCE}; modprobe br_netfilter"]
    off = [name for name, value in found.items() if value == "0"]
    return [f"{name.replace('/', '.')} is 0: {_CONSEQUENCE}; sysctl -w {name.replace('/', '.')}=1" for name in off]


def _value(name: str) -> str:
    """Empty where there is no such parameter."""
    try:
        return sysctl.read(name)
    except KernelRefused:
        return ""
