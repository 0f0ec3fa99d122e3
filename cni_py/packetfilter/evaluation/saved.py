"""Rules of iptables, as iptables-save prints them, in the expressions of nft's JSON: pure.

A rule is read when a packet first meets it. A match or a target that is not known here is an extension (``xt``) that is not
understood.

Source: iptables(8), iptables-extensions(8); iptables, iptables/iptables-save.c and extensions (their ``save`` functions).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

from cni_py.packetfilter.evaluation.chains import Chain, Rule
from cni_py.packetfilter.evaluation.statements import ACCEPT, DROP

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from cni_py.packetfilter.evaluation.expressions import Json

TABLES = frozenset(("filter", "nat", "mangle", "raw", "security"))
_PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
_ALL = 0xFFFFFFFF
_META_MARK, _CT_MARK = {"meta": {"key": "mark"}}, {"ct": {"key": "mark"}}


def chains(program: str, text: str) -> list[Chain]:
    """Return the chains of ``iptables-save``. ``program``: such as ``iptables-nft``, without the suffix ``-save``."""
    version = 6 if program.startswith("ip6") else 4
    found: list[Chain] = []
    table, of_table = "", dict[str, Chain]()
    for line in text.splitlines():
        if line.startswith("*"):
            table, of_table = line[1:].strip(), {}
        elif line.startswith(":"):
            name, policy, *_ = line[1:].split()
            of_table[name] = _chain(program, version, table, name, policy)
            found.append(of_table[name])
        elif line.startswith("-A "):
            name = line.split(" ", 2)[1]
            if name in of_table:
                of_table[name].rules.append(_rule(line, version, name, of_table))
    return found


def _chain(program: str, version: int, table: str, name: str, policy: str) -> Chain:
    family, full = "ip" if version == 4 else "ip6", f"{program} {table}"
    if policy == "-":
        return Chain(family, full, name)
    hook = name.lower()
    is_of_source = table == "nat" and hook in ("postrouting", "input")
    priority = 100 if is_of_source else _PRIORITIES.get(table, 0)
    kind = "nat" if table == "nat" else "route" if (table, hook) == ("mangle", "output") else "filter"
    return Chain(family, full, name, hook, priority, kind, DROP if policy == "DROP" else ACCEPT)


def _rule(line: str, version: int, chain: str, names: Collection[str]) -> Rule:
    def read() -> list[Json]:
        try:
            words = shlex.split(line) if '"' in line or "\\" in line else line.split()  # shlex takes ten times as long
        except ValueError:  # a comment with a line break
            return [_not_understood("target", "unfinished quotation")]
        return _Reader(version, chain, names).read(words[2:])

    return Rule(line, 0, read)


def destinations(saved: Mapping[str, str], chain: str) -> list[str]:
    """Return the destinations that the rules of a chain name: the addresses of Services in KUBE-SERVICES."""
    lines = [line for text in saved.values() for line in text.splitlines() if line.startswith(f"-A {chain} ")]
    words = [line.split(" ") for line in lines]
    return [of[of.index("-d") + 1] for of in words if "-d" in of[:-1]]


@dataclass(slots=True)
class _Reader:
    """Reads one rule of a chain. ``names``: the chains of its table."""

    version: int
    chain: str
    names: Collection[str]
    found: list[Json] = field(default_factory=list)

    def read(self, words: Sequence[str]) -> list[Json]:
        """Read the words after ``-A CHAIN``."""
        module, at, is_negated = "", 0, False
        while at < len(words):
            word, values = words[at], _values(words, at + 1)
            at += 1
            if word == "!":
                is_negated = True
                continue
            if word in ("-j", "-g"):
                return self.found + self._target(word, words[at], words[at + 1 :])
            if word == "-m":
                module, at = words[at], at + 1
                self.found += [] if module in _MODULES else [_not_understood("match", module)]
                continue
            name = word if word in _BASIC else f"{module} {word}"
            at += _COUNTS.get(name, 1 if name in _KNOWN else len(values))
            self.found += [] if name in _IGNORED else [self._condition(name, values, is_negated)]
            is_negated = False
        return self.found

    def _condition(self, name: str, values: Sequence[str], is_negated: bool) -> Json:
        """Read an option. With several matches, one of them has to hold."""
        if name in _LIMITS:
            return {"limit": {"inv": _LIMITS[name] != is_negated}}
        make = _OPTIONS.get(name)
        matches = make(self, *values[: _COUNTS.get(name, 1)]) if make else None
        if matches is None:
            return _not_understood("match", name.partition(" ")[0])
        if len(matches) == 1 and matches[0]["op"] == "==":
            return {"match": matches[0] | {"op": "!=" if is_negated else "=="}}
        return {"some": {"of": matches, "inv": is_negated}}

    def _target(self, word: str, name: str, options: Sequence[str]) -> list[Json]:
        if name in self.names:
            return [{"goto" if word == "-g" else "jump": {"target": name}}]
        make = _TARGETS.get(name)
        made = [] if name in _HARMLESS else make(self, options) if make else None
        return [_not_understood("target", name)] if made is None else made

    def payload(self, name: str) -> Json:
        return {"payload": {"protocol": "ip" if self.version == 4 else "ip6", "field": name}}


def _values(words: Sequence[str], at: int) -> list[str]:
    """The words up to the next option."""
    end = next((number for number in range(at, len(words)) if words[number].startswith(("!", "-"))), len(words))
    return list(words[at:end])


def _not_understood(kind: str, name: str) -> Json:
    return {"xt": {"type": kind, "name": name}}


# ---- matches ----------------------------------------------------------------------------------

if TYPE_CHECKING:
    Option = Callable[..., list[Json] | None]
    """Called with the reader and the option's values. Returns: matches; None: the value is not understood."""


def _match(left: Any, right: Any, op: str = "==") -> Json:
    return {"op": op, "left": left, "right": right}


def _address(name: str) -> Option:
    def make(reader: _Reader, value: str) -> list[Json]:
        left, (address, _, mask) = reader.payload(name), value.partition("/")
        try:
            network = ip_network(value, strict=False)
        except ValueError:  # a mask with gaps
            return [_match({"&": [left, mask]}, address)]
        return [_match(left, {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}})]

    return make


def _link(key: str) -> Option:
    return lambda _, name: [_match({"meta": {"key": key}}, f"{name[:-1]}*" if name.endswith("+") else name)]


def _protocol(_: _Reader, name: str) -> list[Json]:
    return [_match({"meta": {"key": "l4proto"}}, "*" if name in ("all", "0") else int(name) if name.isdigit() else name)]


def _range(text: str, separator: str = ":") -> Any:
    low, dash, high = text.partition(separator)
    return {"range": [int(low or 0), int(high or 65535)]} if dash else int(text)


def _ports(protocol: str, *fields: str) -> Option:
    """Ports of the header; with two fields, either of them."""

    def make(_: _Reader, text: str) -> list[Json]:
        ports = {"set": [_range(part) for part in text.split(",")]}
        return [_match({"payload": {"protocol": protocol, "field": name}}, ports) for name in fields]

    return make


def _flags(text: str) -> list[str]:
    named = {"ALL": ["fin", "syn", "rst", "psh", "ack", "urg"], "NONE": list[str]()}
    return named.get(text, text.lower().split(","))


def _tcp_flags(_: _Reader, mask: str, flags: str) -> list[Json]:
    return [_match({"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, _flags(mask)]}, _flags(flags))]


def _icmp(protocol: str, names: Mapping[str, str]) -> Option:
    def make(_: _Reader, value: str) -> list[Json] | None:
        kind, slash, code = value.partition("/")
        left = {"payload": {"protocol": protocol, "field": "type"}}
        return None if slash and code != "0" else [_match(left, "*" if kind == "any" else names.get(kind, kind))]

    return make


def _state(_: _Reader, value: str) -> list[Json]:
    words = value.lower().split(",")
    translated = [word for word in words if word in ("snat", "dnat")]
    asked = (("state", [word for word in words if word not in translated]), ("status", translated))
    return [_match({"ct": {"key": key}}, of, "in") for key, of in asked if of]


def _mark(left: Json) -> Option:
    def make(_: _Reader, value: str) -> list[Json]:
        mark, mask = _masked(value)
        return [_match({"&": [left, mask]}, mark)]

    return make


def _masked(text: str) -> tuple[int, int]:
    mark, _, mask = text.partition("/")
    return int(mark, 0), int(mask, 0) if mask else _ALL


def _names(left: Json, names: Mapping[str, str] | None = None) -> Option:
    return lambda _, value: [_match(left, {"set": [(names or {}).get(word, word) for word in value.lower().split(",")]})]


def _between(name: str) -> Option:
    return lambda reader, value: [_match(reader.payload(name), {"range": value.split("-")})]


_OPTIONS: dict[str, Option] = {
    "-s": _address("saddr"),
    "-d": _address("daddr"),
    "-i": _link("iifname"),
    "-o": _link("oifname"),
    "-p": _protocol,
    "-f": lambda _: [_match(0, 1)],  # a packet that is followed is whole
    **{f"{name} --sport": _ports(name, "sport") for name in ("tcp", "udp", "udplite", "sctp", "dccp")},
    **{f"{name} --dport": _ports(name, "dport") for name in ("tcp", "udp", "udplite", "sctp", "dccp")},
    "tcp --tcp-flags": _tcp_flags,
    "icmp --icmp-type": _icmp("icmp", {"0": "echo-reply", "8": "echo-request"}),
    "icmp6 --icmpv6-type": _icmp("icmpv6", {"128": "echo-request", "129": "echo-reply"}),
    "multiport --sports": _ports("th", "sport"),
    "multiport --dports": _ports("th", "dport"),
    "multiport --ports": _ports("th", "sport", "dport"),
    "conntrack --ctstate": _state,
    "conntrack --ctdir": _names({"ct": {"key": "direction"}}),
    "state --state": _state,
    "mark --mark": _mark(_META_MARK),
    "connmark --mark": _mark(_CT_MARK),
    "addrtype --src-type": _names({"fib": {"result": "type", "flags": ["saddr"]}}),
    "addrtype --dst-type": _names({"fib": {"result": "type", "flags": ["daddr"]}}),
    "pkttype --pkt-type": _names({"meta": {"key": "pkttype"}}, {"unicast": "host"}),
    "iprange --src-range": _between("saddr"),
    "iprange --dst-range": _between("daddr"),
    "length --length": lambda _, value: [_match({"meta": {"key": "length"}}, _range(value))],
}
"""Options by the module and their name; without a module, those of every rule."""
_COUNTS = {"-f": 0, "tcp --tcp-flags": 2}
"""Numbers of values, where it is not one."""
_LIMITS = {
    "limit --limit": False,
    "hashlimit --hashlimit-upto": False,
    "hashlimit --hashlimit-above": True,
    "connlimit --connlimit-upto": False,
    "connlimit --connlimit-above": True,
}
"""Limits; True: the rule is for what is over it."""
_IGNORED = frozenset(
    {"comment --comment", "limit --limit-burst", "connlimit --connlimit-mask"}
    | {f"hashlimit --hashlimit-{name}" for name in ("burst", "name", "mode", "srcmask", "dstmask", "htable-expire")}
)
"""Options with a value that does not matter."""
_KNOWN = _OPTIONS.keys() | _LIMITS | _IGNORED
_BASIC = frozenset(name for name in _OPTIONS if " " not in name)
_MODULES = frozenset(name.partition(" ")[0] for name in _KNOWN if " " in name)


# ---- targets ----------------------------------------------------------------------------------

_HARMLESS = frozenset(
    (
        "AUDIT", "CHECKSUM", "CLASSIFY", "CONNSECMARK", "DSCP", "ECN", "HL", "LED", "LOG", "NFLOG", "RATEEST", "SECMARK", "SET",
        "TCPMSS", "TCPOPTSTRIP", "TEE", "TOS", "TRACE", "TTL", "ULOG",
    )
)  # fmt: skip
"""Targets without an effect on where a packet goes."""


def _option(options: Sequence[str], name: str) -> str:
    return options[options.index(name) + 1] if name in options else ""


if TYPE_CHECKING:
    Target = Callable[[_Reader, Sequence[str]], list[Json] | None]
    """Called with the reader and the words behind the target. Returns: statements; None: it is not understood."""


def _plain(statement: str) -> Target:
    return lambda _, __: [{statement: None}]


def _translation(kind: str, option: str) -> Target:
    def make(_: _Reader, options: Sequence[str]) -> list[Json] | None:
        address, port = _end(_option(options, option))
        return [{kind: {"addr": address, "port": port}}]

    return make


def _end(text: str) -> tuple[Any, Any]:
    """An address or a range of them, and a port, as ``10.1.2.3:80`` or ``[fd00::2]:80``; None where there is none."""
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") > 1:
        address, port = text, ""
    else:
        address, _, port = text.partition(":")
    return ({"range": address.split("-")} if "-" in address else address or None), _range(port, "-") if port else None


def _redirect(kind: str) -> Target:
    def make(_: _Reader, options: Sequence[str]) -> list[Json]:
        port = _option(options, "--to-ports")
        return [{kind: {"port": _range(port, "-") if port else None}}]

    return make


def _netmap(reader: _Reader, options: Sequence[str]) -> list[Json] | None:
    """A network in place of the address's own; which address, the hook decides."""
    kind = {"PREROUTING": "dnat", "OUTPUT": "dnat", "POSTROUTING": "snat", "INPUT": "snat"}.get(reader.chain)
    network = ip_network(_option(options, "--to"), strict=False)
    if kind is None:
        return None
    address = reader.payload("daddr" if kind == "dnat" else "saddr")
    value = {"|": [{"&": [address, int(network.hostmask)]}, int(network.network_address)]}
    return [{kind: {"addr": value}}]


def _set_mark(left: Json) -> Target:
    def make(_: _Reader, options: Sequence[str]) -> list[Json] | None:
        if "--save-mark" in options or "--restore-mark" in options:
            return [_copy_mark(options)]
        if "--set-xmark" not in options:
            return None
        mark, mask = _masked(_option(options, "--set-xmark"))
        return [_mangle(left, {"^": [{"&": [left, ~mask & _ALL]}, mark]})]

    return make


def _copy_mark(options: Sequence[str]) -> Json:
    """Copy the mark of the packet to the connection, or back: the bits of one mask are replaced by those of the other."""
    meta_mask, ct_mask = (int(_option(options, name) or hex(_ALL), 0) for name in ("--nfmask", "--ctmask"))
    of_packet, of_connection = (_META_MARK, meta_mask), (_CT_MARK, ct_mask)
    (source, read), (target, replaced) = (of_packet, of_connection) if "--save-mark" in options else (of_connection, of_packet)
    return _mangle(target, {"^": [{"&": [target, ~replaced & _ALL]}, {"&": [source, read]}]})


def _mangle(left: Json, value: Json) -> Json:
    return {"mangle": {"key": left, "value": value}}


def _ct(_: _Reader, options: Sequence[str]) -> list[Json]:
    return [{"notrack": None}] if "--notrack" in options else []


_TARGETS: dict[str, Target] = {
    "ACCEPT": _plain("accept"),
    "DROP": _plain("drop"),
    "REJECT": _plain("reject"),
    "RETURN": _plain("return"),
    "QUEUE": _plain("queue"),
    "NFQUEUE": _plain("queue"),
    "NOTRACK": _plain("notrack"),
    "CT": _ct,
    "MASQUERADE": _redirect("masquerade"),
    "REDIRECT": _redirect("redirect"),
    "DNAT": _translation("dnat", "--to-destination"),
    "SNAT": _translation("snat", "--to-source"),
    "NETMAP": _netmap,
    "MARK": _set_mark(_META_MARK),
    "CONNMARK": _set_mark(_CT_MARK),
}
