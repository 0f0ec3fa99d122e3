"""Plan of tuning before any change: configuration and arguments in, values out."""

from __future__ import annotations

from cni_py.attachment.interface import parse_mac
from cni_py.errors import InvalidConfig, IOFailure, reason_of
from cni_py.files import read
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from cni_py.config.models import TuningConfig
    from cni_py.spec.call import Call

ALLOW_LIST = "/etc/cni/tuning/allowlist.conf"
INTERFACE = "IFNAME"
"""Placeholder for the interface in the key of a sysctl."""
DUPLICATE = "duplicated sysctl keys are not allowed"


class Plan(Value):
    """Desired settings; None: untouched. ``sysctls``: names below /proc/sys with their values."""

    sysctls: tuple[tuple[str, str], ...] = ()
    mac: str | None = None
    promisc: bool | None = None
    mtu: int | None = None
    allmulti: bool | None = None
    txqueuelen: int | None = None


def wanted(call: Call, config: TuningConfig) -> Plan:
    """The settings: the configuration's, over them CNI_ARGS, the runtime's, those of ``args.cni``. Raises: InvalidConfig."""
    of_runtime = call.known_pairs("MAC")
    args = config.args.cni
    mac = args.mac or config.runtime_config.mac or of_runtime.get("MAC") or config.mac
    promisc = config.promisc if args.promisc is None else args.promisc
    sysctls = config.sysctl if args.sysctl is None else args.sysctl
    _refuse_duplicates(call.raw, sysctls)
    _refuse_unlisted(sysctls)
    return Plan(
        sysctls=_sysctls(sysctls, call.ifname),
        mac=_parse_mac(mac) or None,
        promisc=promisc or None,  # false leaves it as it is
        mtu=(config.mtu if args.mtu is None else args.mtu) or None,
        allmulti=config.allmulti if args.allmulti is None else args.allmulti,
        txqueuelen=config.tx_q_len if args.tx_q_len is None else args.tx_q_len,
    )


def _parse_mac(text: str) -> str:
    try:
        return parse_mac(text)
    except InvalidConfig as error:
        raise InvalidConfig(f"invalid args {text[:40]} for MAC addr", error.msg, error.hint) from error


def _sysctls(given: Mapping[str, Any], ifname: str) -> tuple[tuple[str, str], ...]:
    """Names below /proc/sys, and values. Raises: InvalidConfig."""
    found: dict[str, str] = {}
    for key, value in given.items():
        if not isinstance(value, str) or "\0" in value + key:
            raise InvalidConfig(f'the value of sysctl "{key[:200]}" is {value!r:.80}, not a string')
        name = sysctl_name(key, ifname)
        if found.setdefault(name, value) != value:
            raise InvalidConfig(DUPLICATE, f'"{key}" is given in two ways, with two values')
    return tuple(found.items())


def sysctl_name(key: str, ifname: str) -> str:
    """Return the name below /proc/sys, which has to be in ``net/``: dots are slashes, unless the key begins with slashes.

    Raises: InvalidConfig.
    """
    has_slashes = "/" in key.partition(".")[0]  # then a dot is part of a name: net/ipv4/conf/eth0.100/arp_filter
    name = (key if has_slashes else key.replace(".", "/")).replace(INTERFACE, ifname, 1)
    if not name.startswith("net/") or {"", ".", ".."}.intersection(name.split("/")):
        raise InvalidConfig(f'invalid net sysctl key: "{name[:200]}"', "it has to be below /proc/sys/net")
    return name


def _refuse_duplicates(raw: bytes, sysctls: Mapping[str, Any]) -> None:
    """Raises: InvalidConfig if the same key occurs twice; the decoded configuration has the last of them alone."""
    if not any(raw.count(f'"{key}"'.encode(errors="surrogateescape")) > 1 for key in sysctls):
        return
    from json import loads  # 6 ms, only if a key occurs more than once, wherever that is

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs) and sysctls.keys() == found.keys():
            raise InvalidConfig(DUPLICATE, f"keys: {', '.join(key for key, _ in pairs)}")
        return found

    loads(raw, object_pairs_hook=check)


def _refuse_unlisted(sysctls: Iterable[str]) -> None:
    """Raises: InvalidConfig if the node has an allow-list and a sysctl matches none of its patterns; IOFailure."""
    if not sysctls:
        return
    try:
        text = read(ALLOW_LIST).decode()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise IOFailure(f'could not read "{ALLOW_LIST}"', reason_of(error)) from error
    patterns = [line.strip() for line in text.splitlines() if line.strip()]
    for key in sysctls:
        if not any(_matches(pattern, key) for pattern in patterns):
            raise InvalidConfig(
                f"Sysctl {key} is not allowed. Only the following sysctls are allowed: [{' '.join(patterns)}]",
                hint=f"add a pattern to {ALLOW_LIST}",
            )


def _matches(pattern: str, key: str) -> bool:
    import re  # 4 ms, only on a node with an allow-list

    try:
        return re.search(pattern, key) is not None
    except re.error as error:
        raise InvalidConfig(f'invalid pattern in "{ALLOW_LIST}"', f'"{pattern}": {error}') from error
