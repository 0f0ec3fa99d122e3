"""Refusals of the kernel that one must expect, in words: by operation and error number, a sentence, and what to do next.

    except KernelRefused as refused:
        explain("route", refused, link=…, dst=…)
        raise

The kernel's own words and the command go into ``details``. Errors that are not in the table stay as they are.
"""

from __future__ import annotations

from errno import EACCES, EADDRNOTAVAIL, EBUSY, EEXIST, EHOSTUNREACH, EINVAL, ELOOP, ENETDOWN, ENETUNREACH, EOPNOTSUPP, ERANGE

from cni_py.errors import KernelRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

Words = tuple[str, str]
"""Sentence and hint, in which the operation's objects are filled in."""

_LOOK = "look at it: {enter}ip -d link show {name}"
_MAC = "an interface has no multicast address (odd first byte), and not all zeros"
_NO_MAC = '"{mac}" cannot be the MAC address of "{name}"', _MAC
_NO_GATEWAY = (
    'the gateway "{gateway}" of the route to "{dst}" cannot be reached over "{link}"',
    'its "gw" has to be in a subnet of the pod, or behind a route before it. See: {enter}ip route show table all',
)
_NO_ADDRESS = (
    '"{link}" cannot have the address "{address}"',
    "an interface has an address of one host, no group or network",
)

TABLE: dict[tuple[str, int], Words] = {
    # the sentence is Go's (pkg/ip/link_linux.go), which people search for
    ("veth", EEXIST): ('container veth name ("{name}") peer provided ("{peer}") already exists', _LOOK),
    ("veth", EINVAL): ('the kernel creates no veth "{name}" with an MTU of {mtu}', '"mtu" is 68 to 65535'),
    ("veth", EADDRNOTAVAIL): _NO_MAC,
    ("veth", EOPNOTSUPP): ("this kernel has no veth", "it needs CONFIG_VETH, or the module veth"),
    ("link", EEXIST): ('"{name}" already exists in "{netns}"', _LOOK),
    ("link", EBUSY): ('the kernel creates no {kind} on "{master}", which is in use', "look at it: ip -d link show {master}"),
    ("link", EINVAL): ('the kernel creates no {kind} "{name}" like this', "its values are out of range, or do not go together"),
    ("link", ERANGE): ('a number of the {kind} "{name}" is out of range', "see its keys: cni-py config keys {kind}"),
    ("link", EADDRNOTAVAIL): ('the {kind} "{name}" cannot have this MAC address', _MAC),
    ("move", EEXIST): ('"{name}" already exists in "{netns}"', _LOOK),
    ("bridge", EOPNOTSUPP): ('this kernel creates no bridge "{name}"', "it needs CONFIG_BRIDGE, or the module bridge"),
    ("bridge", EINVAL): ('the kernel creates no bridge "{name}" with an MTU of {mtu}', '"mtu" is 68 to 65535'),
    ("address", EACCES): (  # "Permission denied", whatever rights the caller has
        '"{link}" cannot have the address "{address}"',
        'IPv6 is disabled on "{link}": {enter}sysctl -w net/ipv6/conf/{link}/disable_ipv6=0',
    ),
    ("address", EADDRNOTAVAIL): _NO_ADDRESS,
    ("address", EINVAL): _NO_ADDRESS,
    ("route", ENETUNREACH): _NO_GATEWAY,
    ("route", EHOSTUNREACH): _NO_GATEWAY,
    ("route", EINVAL): (
        'the kernel takes no such route to "{dst}" over "{link}"',
        'its "gw" may be an address of the pod itself, or its "scope" not fit. See: {enter}ip addr show {link}',
    ),
    ("route", EEXIST): (
        'the route to "{dst}" over "{link}" exists already: it is named twice',
        '"isDefaultGateway" adds one besides a default route without "gw". See: {enter}ip route show table all',
    ),
    ("up", ENETDOWN): ('"{name}" cannot be set up: the link below it is down', "look at both: {enter}ip -d link show"),
    ("up", EADDRNOTAVAIL): ('"{name}" cannot be set up: it has no valid MAC address', _LOOK),
    ("rename", EEXIST): ('"{name}" cannot be renamed: "{new}" already exists', "look at it: {enter}ip -d link show {new}"),
    ("rename", EBUSY): ('"{name}" cannot be renamed: it is in use', _LOOK),
    ("master", EBUSY): ('"{name}" cannot be a port of "{master}": it is in use, or another device\'s port', _LOOK),
    ("master", ELOOP): ('"{name}" cannot be a port of "{master}": it would lead back to it', _LOOK),
    ("master", EINVAL): ('"{name}" cannot be a port of "{master}"', _LOOK),
    ("mtu", EINVAL): ('"{name}" cannot have an MTU of {mtu}', "its limits: {enter}ip -d link show {name}"),
    ("mac", EADDRNOTAVAIL): _NO_MAC,
    ("mac", EBUSY): ('the MAC address of "{name}" cannot be changed while it is up', _LOOK),
}
"""Sentence and hint by operation and error number; flanneld's UDP port is in udp_port.py."""


def explain(operation: str, refused: KernelRefused, **objects: object) -> None:
    """Raise the refusal in the table's words, with the kernel's in its details; return if the table has none.

    Raises: KernelRefused.
    """
    sentence, hint = TABLE.get((operation, refused.errno), ("", ""))
    if sentence:
        raise KernelRefused(sentence.format(**objects), in_details(refused), hint.format(**objects), refused.errno) from refused


def in_details(refused: KernelRefused) -> str:
    """Return the kernel's words, and the command that it refused."""
    return f"{refused.details}: {refused.msg}"


def prefix(enter: Sequence[str]) -> str:
    """Return the command that enters a namespace, as the beginning of another one."""
    return " ".join([*enter, ""])
