"""Reasons: which key of the configuration, line of subnet.env, and section of the specification asked for a change. Pure.

What flannel's delegate does is configured in two places: flannel's own configuration has a ``delegate``, which flannel
completes from subnet.env and saves. The journal has both, so the origin of each value can be found.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

from cni_py.explain.calls import Call
from cni_py.explain.shapes import CONVENTIONS, DEL, GC, Recognised
from cni_py.explain.words import Command, unquoted

SPECIFICATION = "CNI specification 1.1.0"
_FROM_SUBNET_ENV = {
    "mtu": "FLANNEL_MTU",
    "ipMasq": "FLANNEL_IPMASQ",
    "ipam.ranges": "FLANNEL_SUBNET",
    "ipam.routes": "FLANNEL_NETWORK",
    "masqueradeExcept": "FLANNEL_NETWORK",
}
"""Keys that flannel sets in its delegate's configuration, and the line of subnet.env that they come from."""
CONFIGURATION, SUBNET_ENV, FLANNEL, RUNTIME, DEFAULT, UNKNOWN = (
    "configuration",
    "subnet.env",
    "flannel",
    "runtime",
    "default",
    "unknown",
)
"""Origins of a value."""


@dataclass(frozen=True, slots=True)
class Why:
    """Reason of a change.

    Attributes:
        text: a sentence.
        key: of the configuration, with dots between the levels; "": none.
        source: the origin of its value, see above; "": no key.
        value: of the key; None: the key is not set, or the journal does not have the configuration.
        line: of subnet.env.
        section: of the CNI specification, or of its conventions.
    """

    text: str
    key: str = ""
    source: str = ""
    value: Any = None
    line: str = ""
    section: str = ""

    def asked(self) -> str:
        """Return in words what asked for the change; "": nothing but what the plugin is."""
        shown = _shown(self.value)
        texts = {
            CONFIGURATION: f'"{self.key}": {shown} in the configuration',
            SUBNET_ENV: f"{self.line} in subnet.env",
            FLANNEL: f'"{self.key}": {shown}, which flannel sets',
            RUNTIME: f'"{self.key}": {shown}, from the runtime',
            DEFAULT: f'"{self.key}" is not set: its default',
            UNKNOWN: f'"{self.key}"',
        }
        return texts.get(self.source, "")

    def spec(self) -> str:
        """Return the section in words; "": none."""
        if self.section.startswith(CONVENTIONS):
            return f"CNI {self.section}"
        return f"{SPECIFICATION}, {self.section}" if self.section else ""


@dataclass(slots=True)
class Known:
    """The configurations of a call, as far as its journal has been read."""

    own: dict[str, Any]
    delegate: dict[str, Any]
    is_undoing: bool = False
    links: dict[tuple[str, str], str] = field(default_factory=dict)
    """The groups of links, by namespace and name."""

    def learn(self, call: Call, command: Command, found: Recognised) -> None:
        """Take which links a command makes, and the configuration that flannel saves for its delegate if it writes that."""
        words = found.words
        if found.shape.pattern.startswith("ip link add"):
            for name in ("bridge", "host", "gateway", "vrf", "ifb", "link"):
                if name in words:
                    self.links[found.netns, words[name]] = found.shape.group
            if master := re.search(r"\bmaster (\S+)", words.get("options", "")):
                self.links[found.netns, master[1]] = "bridge"
        if call.plugin != "flannel" or not command.producer or not command.words[-1].startswith("/var/lib/cni/flannel/"):
            return
        try:
            decoded = json.loads(unquoted(command.producer[-1]))
        except (ValueError, RecursionError):
            return
        self.delegate = decoded if isinstance(decoded, dict) else {}

    def group_of(self, found: Recognised) -> str:
        """Return the group of a change: that of the link that it helps to make, if it does."""
        link = found.words.get("link", found.words.get("port", "")) if found.shape.is_of_link else ""
        return self.links.get((found.netns, link), "interface" if link and found.netns else found.shape.group)


def reason(call: Call, known: Known, found: Recognised) -> Why:
    """Return why a change was made."""
    shape = found.shape
    if known.is_undoing:
        return Why("A later change failed: ADD leaves nothing behind.", section="section 2, ADD")
    if call.verb == "DEL":
        return Why("DEL removes what ADD created, as far as it still exists.", section=DEL)
    if call.verb == "GC":
        return Why("It belongs to no attachment that the runtime knows.", section=GC)
    text = shape.why.format_map(found.words)
    if not call.verb:
        return Why(text)
    key, source, value = _asked(call, known, shape.keys)
    named = next(filter(None, map(found.words.get, ("address", "dst", "route"))), "")
    family = (6 if ":" in named else 4) if named else 0
    line = _lines(key, value, _at(known.own, key), family) if source == SUBNET_ENV else ""
    return Why(text, key, source, value, line, shape.section)


def _asked(call: Call, known: Known, keys: tuple[str, ...]) -> tuple[str, str, Any]:
    """Return the first key that is set, where, and its value; else the first one, with its default."""
    for key in keys:
        if call.plugin == "flannel" and (value := _at(known.own.get("delegate"), key)) is not None:
            return f"delegate.{key}", CONFIGURATION, value
        if call.plugin == "flannel" and (value := _at(known.delegate, key)) is not None:
            if known.own and (own := _at(known.own, key)) is not None and key != "type" and key not in _FROM_SUBNET_ENV:
                return key, RUNTIME if key.startswith("runtimeConfig") else CONFIGURATION, own
            return key, SUBNET_ENV if key in _FROM_SUBNET_ENV else FLANNEL, value
        if (value := _at(known.own, key)) is not None and (call.plugin != "flannel" or key in ("delegate", "dataDir")):
            return key, RUNTIME if key.startswith("runtimeConfig") else CONFIGURATION, value
    if not keys:
        return "", "", None
    return keys[0], DEFAULT if known.own else UNKNOWN, None


def _at(conf: Any, key: str) -> Any:
    """Return the value of a key with dots; None if it is not set."""
    for part in key.split("."):
        conf = conf.get(part) if isinstance(conf, dict) else None
    return conf


def _lines(key: str, value: Any, own: Any, family: int) -> str:
    """Return the lines of subnet.env that a value comes from, those of one family if it is known (4 or 6)."""
    name = _FROM_SUBNET_ENV[key]
    if key == "ipMasq":
        return f"{name}={'false' if value else 'true'}"  # flanneld masquerades, so the bridge need not
    if key == "mtu":
        return f"{name}={value}"
    networks = _networks_in(value, "subnet" if key == "ipam.ranges" else "dst", own)
    if key == "ipam.ranges":
        networks = [_with_gateway(network) for network in networks]
    lines = [(6 if ":" in one else 4, one) for one in networks]
    chosen = [(of, one) for of, one in lines if of == family] or lines
    return ", ".join(f"{name if of == 4 else name.replace('FLANNEL_', 'FLANNEL_IPV6_')}={one}" for of, one in chosen)


def _networks_in(value: Any, member: str, own: Any) -> list[str]:
    """Return the networks of ranges or routes, without those that the configuration itself has."""
    flat = [one for some in (value if isinstance(value, list) else []) for one in (some if isinstance(some, list) else [some])]
    mine = own if isinstance(own, list) else []
    return [str(one.get(member)) if isinstance(one, dict) else str(one) for one in flat if one not in mine]


def _with_gateway(subnet: str) -> str:
    """Return a subnet as subnet.env has it: by its first host."""
    try:
        network = ip_network(subnet)
    except ValueError:
        return subnet
    return f"{network.network_address + 1}/{network.prefixlen}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:79]}…"
