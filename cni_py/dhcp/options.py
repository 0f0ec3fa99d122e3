"""Options that a network configuration requests and provides: ``ipam.request`` and ``ipam.provide``. Pure.

Source: containernetworking/plugins plugins/ipam/dhcp/options.go.
"""

from __future__ import annotations

from cni_py.dhcp import packet as dhcp
from cni_py.errors import InvalidConfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

NAMES = {
    "dhcp-client-identifier": dhcp.CLIENT_ID,
    "subnet-mask": dhcp.SUBNET_MASK,
    "routers": dhcp.ROUTER,
    "host-name": dhcp.HOST_NAME,
    "user-class": dhcp.USER_CLASS,
    "vendor-class-identifier": dhcp.VENDOR_CLASS,
}
DEFAULT = (dhcp.SUBNET_MASK, dhcp.ROUTER)


def parse(ipam: Mapping[str, Any], args: Mapping[str, str]) -> tuple[tuple[int, ...], tuple[tuple[int, bytes], ...]]:
    """Returns: codes to request; codes to provide, with values. Raises: InvalidConfig."""
    entries = ipam.get("request") or []
    requested = [code_of(entry.get("option", "")) for entry in entries]
    if not any(entry.get("skipDefault") for entry in entries):
        requested += DEFAULT
    provided = []
    for entry in ipam.get("provide") or []:
        value = entry.get("value") or args.get(entry.get("fromArg") or "", "")
        provided.append((code_of(entry.get("option", "")), str(value).encode(errors="surrogateescape")))
    return tuple(dict.fromkeys(requested)), tuple((code, value) for code, value in provided if value)


def code_of(option: str) -> int:
    """The number of an option. Raises: InvalidConfig."""
    if option in NAMES:
        return NAMES[option]
    if option.isascii() and option.isdecimal() and len(option) <= 3 and int(option) <= 255:
        return int(option)
    raise InvalidConfig(
        f'Can not parse option "{option[:60]}"',
        "Can not parse option: neither a name nor a number",
        f"0 to 255, or {', '.join(NAMES)}",
    )
