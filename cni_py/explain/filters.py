"""Recognise changes to the packet filter, by the objects that they name. Pure.

A transaction of nftables is one command of the journal, with everything that has to change at once, so it is no shape of a
few words: its commands are taken apart, and the names of the chains, maps and sets in them say what it is for.
"""

from __future__ import annotations

import re

from cni_py.explain.shapes import CONVENTIONS, Recognised, Shape
from cni_py.explain.words import Command, unquoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAMS = frozenset(
    f"{tool}{flavour}{restore}"
    for tool in ("iptables", "ip6tables")
    for flavour in ("", "-nft", "-legacy")
    for restore in ("", "-restore")
) | {"nft"}

_MASQUERADE = Shape(
    "masquerade",
    "",
    "",
    "Beyond its network nothing could reply to a pod's address, so its packets leave with the node's.",
    ("ipMasq",),
    "section 1, ipMasq",
)
_HOSTPORT = Shape(
    "hostport",
    "",
    "",
    "Connections to a port of the node reach a port of the pod; the reply has the node's address again.",
    ("runtimeConfig.portMappings",),
    CONVENTIONS + "portMappings",
)
_MAC = Shape("mac", "", "", "A pod that claims the MAC address of another one would receive its packets.", ("macspoofchk",))
_FIREWALL = Shape(
    "firewall",
    "",
    "",
    "Where the firewall drops what no rule accepts, the pod's packets need a rule of their own.",
    ("backend", "iptablesAdminChainName", "ingressPolicy", "type"),
)
_NODE = Shape(
    "masquerade", "", "", "Pods' packets keep their source address inside the flannel network, and get the node's beyond it."
)
_GUARD = Shape(
    "tunnel", "", "", "The kernel receives VXLAN on every address of the host; these rules accept it on the published one only."
)

_OWNERS: tuple[tuple[re.Pattern[str], Shape], ...] = tuple(
    (re.compile(pattern), shape)
    for pattern, shape in (
        (r"\bcni_py_flanneld_vxlan\b", _GUARD),
        (r"\bcni_py_flanneld\b|\bFLANNEL-|\bflannel-ipv[46]\b", _NODE),
        (r"\bbridge (cni_py|cni_plugins\w*|nat)\b|\bcni_macspoof\b", _MAC),
        (
            r"\bhostports[46]|\blocalnet\b|\bmasquerade-mark|\bmark\d|\bCNI-(DN-|HOSTPORT-)|\bcni_hostport\b|\bif-[0-9a-f]{8,}",
            _HOSTPORT,
        ),
        (r"\bCNI-(FORWARD|ADMIN|ISOLATION)|\bfilter\b|^\*filter", _FIREWALL),
        (
            r"\bmasq[46]\b|\bbeyond-|\bpostrouting\b|\bMASQUERADE\b|\bCNI-[0-9a-f]{24}\b|\bcni_plugins_masquerade\b|\bmasq_checks\b",
            _MASQUERADE,
        ),
    )
)
"""Names of objects, and what they belong to; the first that is found counts."""
_VERBS = {
    "add": "Add",
    "delete": "Delete",
    "flush": "Empty",
    "insert": "Add",
    "create": "Add",
    "-A": "Add",
    "-I": "Add",
    "-D": "Delete",
}
_NOUNS = {"element": "element", "rule": "rule", "chain": "chain", "map": "map", "set": "set", "table": "table"}


def recognise(command: Command) -> Recognised | None:
    """Return what a transaction is for; None if it names nothing that is known."""
    commands = commands_of(command)
    text = "\n".join(commands)
    shape = next((shape for pattern, shape in _OWNERS if pattern.search(text)), None)
    if shape is None:
        return None
    return Recognised(shape, _what(commands), {}, command.netns)


def program_of(command: Command) -> str:
    """Return the name of the program, which the journal may have with its directory."""
    return command.words[0].rpartition("/")[2]


def commands_of(command: Command) -> list[str]:
    """Return the commands of a transaction of nft, or the lines that an ``iptables-restore`` reads."""
    if program_of(command) == "nft":
        return split(" ".join(map(unquoted, command.words[1:])))
    if command.producer:
        return [unquoted(word) for word in command.producer[2:]]
    return [" ".join(map(unquoted, command.words[1:]))]


def split(text: str) -> list[str]:
    """Split at each semicolon outside of braces and quotes."""
    found, start, depth, quoted = [], 0, 0, False
    for place, letter in enumerate(text):
        if letter == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif letter in "{}":
            depth += 1 if letter == "{" else -1
        elif letter == ";" and depth <= 0:
            found.append(text[start:place].strip())
            start = place + 1
    found.append(text[start:].strip())
    return [one for one in found if one]


def is_base(command: str) -> bool:
    """Return whether a command of nft makes what all pods share: tables, chains, maps, sets and rules, not elements."""
    return bool(re.match(r"(add|create|flush) (table|chain|map|set|rule)\b", command))


def _what(commands: Sequence[str]) -> str:
    """Return a sentence with what is added and deleted, and how many of each."""
    elements: dict[str, list[str]] = {}
    others: dict[tuple[str, str], int] = {}
    for command in commands:
        words = command.split()
        verb = _VERBS.get(words[0], "")
        if command.startswith(("add element", "delete element")) and "{" in command:
            keys = _keys_in(command)
            elements.setdefault(verb, []).extend(f"{key} ({words[4]})" for key in keys)
        elif verb and words[0].startswith("-"):
            others[verb, "rule"] = others.get((verb, "rule"), 0) + 1
        elif verb and len(words) > 1 and words[1] in _NOUNS:
            others[verb, _NOUNS[words[1]]] = others.get((verb, _NOUNS[words[1]]), 0) + 1
        elif words[0].startswith(":"):
            others["Add", "chain"] = others.get(("Add", "chain"), 0) + 1
        elif words[0] in ("-F", "-X"):
            others["Delete", "chain"] = others.get(("Delete", "chain"), 0) + (words[0] == "-X")
    sentences = [f"{verb} {_some(keys)}." for verb, keys in elements.items()]
    verbs: dict[str, list[str]] = {}
    for (verb, noun), number in others.items():
        if number and verb != "Empty":
            verbs.setdefault(verb, []).append(f"{number} {noun}{'s' if number > 1 else ''}")
    if elements and "Add" in verbs:
        sentences.append(f"Create what pods share: {', '.join(verbs.pop('Add'))}.")
    sentences += [f"{verb} {', '.join(parts)}." for verb, parts in verbs.items()]
    return " ".join(sentences) or "Change the rules."


def _keys_in(command: str) -> list[str]:
    """Return the keys of the elements in ``add element TABLE SET { KEY comment "…" : VALUE, … }``."""
    inside = command[command.index("{") + 1 : command.rindex("}") if "}" in command else None]
    parts = re.split(r',(?=(?:[^"]*"[^"]*")*[^"]*$)', inside) if inside.count(",") < 50 else inside.split(",")
    return [re.split(r" comment | : ", part, maxsplit=1)[0].strip() for part in parts if part.strip()]


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
