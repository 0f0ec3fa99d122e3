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
_ICMP_TYPES: dict[str, dict[int, str]] = {
    "icmp": {0: "echo-reply", 8: "echo-request"},
    "icmpv6": {128: "echo-request", 129: "echo-reply"},
}


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
    return Rule(line, 0, lambda: _Reader(version, chain, names).read(_words(line)[2:]))


def _words(line: str) -> list[str]:
    return shlex.split(line) if '"' in line or "'" in line or "\\" in line else line.split()


def destinations(saved: Mapping[str, str], chain: str) -> list[str]:
    """Return the destinations that the rules of a chain name: the addresses of Services in KUBE-SERVICES."""
    lines = [line for text in saved.values() for line in text.splitlines() if line.startswith(f"-A {chain} ")]
    words = [line.split(" ") for line in lines]
    return [of[of.index("-d") + 1] for of in words if "-d" in of[:-1]]


@dataclass(slots=True)
class _Reader:
    """Reads one rule. ``names``: the chains of its table."""

    version: int
    chain: str
    names: Collection[str]
    protocol: str = ""
    found: list[Json] = field(default_factory=list)

    def read(self, words: Sequence[str]) -> list[Json]:
        module, at, is_negated = "", 0, False
        while at < len(words):
            word, values = words[at], _values(words, at + 1)
            at += 1
            if word == "!":
                is_negated = True
                continue
            if word in ("-j", "-g"):
                self.found += self._target(word, words[at], list(words[at + 1 :]))
                break
            if word == "-m":
                module, at = words[at], at + 1
                if module not in _MODULES:
                    self.found.append(_not_understood("match", module))
                continue
            option = _OPTIONS.get(word if word in _BASIC else f"{module} {word}")
            if module == "comment" or (option is None and f"{module} {word}" in _IGNORED):
                at += 1
            elif option is None:
                at += len(values)
                self.found.append(_not_understood("match", module or word))
            else:
                at += option.count
                self.found += option.make(self, values[: option.count], is_negated)
            is_negated = False
        return self.found

    def _target(self, word: str, name: str, options: list[str]) -> list[Json]:
        if name in self.names:
            return [{"goto" if word == "-g" else "jump": {"target": name}}]
        if name in _HARMLESS:
            return []
        make = _TARGETS.get(name)
        made = make(self, options) if make else None
        return [_not_understood("target", name)] if made is None else made

    def payload(self, name: str) -> Json:
        return {"payload": {"protocol": "ip" if self.version == 4 else "ip6", "field": name}}


def _values(words: Sequence[str], at: int) -> list[str]:
    """The words up to the next option."""
    found = []
    for word in words[at:]:
        if word.startswith(("!", "-")):
            break
        found.append(word)
    return found


def _not_understood(kind: str, name: str) -> Json:
    return {"xt": {"type": kind, "name": name}}


def _match(left: Any, right: Any, is_negated: bool, op: str = "==") -> Json:
    return {"match": {"op": "!=" if is_negated else op, "left": left, "right": right}}


# ---- matches ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Option:
    """An option with ``count`` values. ``make`` is called with them, and whether ``!`` precedes it."""

    make: Callable[[_Reader, Sequence[str], bool], list[Json]]
    count: int = 1


def _address(name: str) -> _Option:
    def make(reader: _Reader, values: Sequence[str], is_negated: bool) -> list[Json]:
        left, (address, _, mask) = reader.payload(name), values[0].partition("/")
        try:
            network = ip_network(values[0], strict=False)
        except ValueError:  # a mask with gaps
            return [_match({"&": [left, mask]}, address, is_negated)]
        return [_match(left, {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}, is_negated)]

    return _Option(make)


def _link(key: str) -> _Option:
    def make(_: _Reader, values: Sequence[str], is_negated: bool) -> list[Json]:
        name = values[0]
        return [_match({"meta": {"key": key}}, f"{name[:-1]}*" if name.endswith("+") else name, is_negated)]

    return _Option(make)


def _protocol(reader: _Reader, values: Sequence[str], is_negated: bool) -> list[Json]:
    name = reader.protocol = values[0]
    if name in ("all", "0"):
        return []
    return [_match({"meta": {"key": "l4proto"}}, int(name) if name.isdigit() else name, is_negated)]


def _fragment(_: _Reader, __: Sequence[str], is_negated: bool) -> list[Json]:
    return [_match(0, 1, is_negated)]  # a packet that is followed is whole


def _range(text: str, separator: str = ":", last: int = 65535) -> Any:
    low, dash, high = text.partition(separator)
    return {"range": [int(low or 0), int(high or last)]} if dash else int(text)


def _ports(text: str) -> Json:
    return {"set": [_range(part) for part in text.split(",")]}


def _port(protocol: str, *fields: str) -> _Option:
    """Ports of the header; with two fields, either of them."""

    def make(_: _Reader, values: Sequence[str], is_negated: bool) -> list[Json]:
        left = [{"payload": {"protocol": protocol, "field": name}} for name in fields]
        if len(left) == 1:
            return [_match(left[0], _ports(values[0]), is_negated)]
        return [{"some": {"of": [_match(each, _ports(values[0]), False)["match"] for each in left], "inv": is_negated}}]

    return _Option(make)


def _flags(text: str) -> list[str]:
    all_flags = ["fin", "syn", "rst", "psh", "ack", "urg"]
    return {"ALL": all_flags, "NONE": []}.get(text, text.lower().split(","))


def _tcp_flags(_: _Reader, values: Sequence[str], is_negated: bool) -> list[Json]:
    left = {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, _flags(values[0])]}
    return [_match(left, _flags(values[1]), is_negated)]


def _icmp(protocol: str) -> _Option:
    def make(_: _Reader, values: Sequence[str], is_negated: bool) -> list[Json]:
        kind, slash, code = values[0].partition("/")
        if kind == "any" or not kind.isdigit() or (slash and code != "0"):
            return [] if kind == "any" else [_not_understood("match", protocol)]
        name = _ICMP_TYPES[protocol].get(int(kind), int(kind))
        return [_match({"payload": {"protocol": protocol, "field": "type"}}, name, is_negated)]

    return _Option(make)


def _state(_: _Reader, values: Sequence[str], is_negated: bool) -> list[Json]:
    words = values[0].lower().split(",")
    translated = [word for word in words if word in ("snat", "dnat")]
    matches = [
        _match({"ct": {"key": key}}, of, False, "in")["match"]
        for key, of in (("state", [word for word in words if word not in translated]), ("status", translated))
        if of
    ]
    return [{"some": {"of": matches, "inv": is_negated}}]


def _mark(left: Json) -> _Option:
    def make(_: _Reader, values: Sequence[str], is_negated: bool) -> list[Json]:
        mark, mask = _masked(values[0])
        return [_match(left if mask == _ALL else {"&": [left, mask]}, mark, is_negated)]

    return _Option(make)


def _masked(text: str) -> tuple[int, int]:
    mark, _, mask = text.partition("/")
    return int(mark, 0), int(mask, 0) if mask else _ALL


def _names(left: Json, names: Mapping[str, str] | None = None) -> _Option:
    def make(_: _Reader, values: Sequence[str], is_negated: bool) -> list[Json]:
        words = [(names or {}).get(word, word) for word in values[0].lower().split(",")]
        return [_match(left, {"set": words}, is_negated)]

    return _Option(make)


def _between(field_name: str) -> _Option:
    def make(reader: _Reader, values: Sequence[str], is_negated: bool) -> list[Json]:
        return [_match(reader.payload(field_name), {"range": values[0].split("-")}, is_negated)]

    return _Option(make)


def _length(_: _Reader, values: Sequence[str], is_negated: bool) -> list[Json]:
    return [_match({"meta": {"key": "length"}}, _range(values[0]), is_negated)]


def _limit(*, is_over: bool) -> _Option:
    return _Option(lambda _, __, is_negated: [{"limit": {"inv": is_over != is_negated}}])


_OPTIONS: dict[str, _Option] = {
    "-s": _address("saddr"),
    "-d": _address("daddr"),
    "-i": _link("iifname"),
    "-o": _link("oifname"),
    "-p": _Option(_protocol),
    "-f": _Option(_fragment, 0),
    **{f"{name} --sport": _port(name, "sport") for name in ("tcp", "udp", "udplite", "sctp", "dccp")},
    **{f"{name} --dport": _port(name, "dport") for name in ("tcp", "udp", "udplite", "sctp", "dccp")},
    "tcp --tcp-flags": _Option(_tcp_flags, 2),
    "icmp --icmp-type": _icmp("icmp"),
    "icmp6 --icmpv6-type": _icmp("icmpv6"),
    "multiport --sports": _port("th", "sport"),
    "multiport --dports": _port("th", "dport"),
    "multiport --ports": _port("th", "sport", "dport"),
    "conntrack --ctstate": _Option(_state),
    "conntrack --ctdir": _names({"ct": {"key": "direction"}}),
    "state --state": _Option(_state),
    "mark --mark": _mark(_META_MARK),
    "connmark --mark": _mark(_CT_MARK),
    "addrtype --src-type": _names({"fib": {"result": "type", "flags": ["saddr"]}}),
    "addrtype --dst-type": _names({"fib": {"result": "type", "flags": ["daddr"]}}),
    "pkttype --pkt-type": _names({"meta": {"key": "pkttype"}}, {"unicast": "host"}),
    "iprange --src-range": _between("saddr"),
    "iprange --dst-range": _between("daddr"),
    "length --length": _Option(_length),
    "limit --limit": _limit(is_over=False),
    "hashlimit --hashlimit-upto": _limit(is_over=False),
    "hashlimit --hashlimit-above": _limit(is_over=True),
    "connlimit --connlimit-upto": _limit(is_over=False),
    "connlimit --connlimit-above": _limit(is_over=True),
}
"""By the module and the option; without a module, of every rule."""
_BASIC = frozenset(word for word in _OPTIONS if " " not in word)
_MODULES = frozenset(word.partition(" ")[0] for word in _OPTIONS if " " in word) | {"comment"}
_IGNORED = frozenset(
    {"limit --limit-burst", "connlimit --connlimit-mask"}
    | {f"hashlimit --hashlimit-{name}" for name in ("burst", "name", "mode", "srcmask", "dstmask", "htable-expire")}
)
"""Options with a value that does not matter."""


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


def _plain(statement: str) -> Callable[[_Reader, list[str]], list[Json]]:
    return lambda _, __: [{statement: None}]


def _translation(kind: str, option: str) -> Callable[[_Reader, list[str]], list[Json] | None]:
    def make(_: _Reader, options: list[str]) -> list[Json] | None:
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


def _redirect(kind: str) -> Callable[[_Reader, list[str]], list[Json]]:
    def make(_: _Reader, options: list[str]) -> list[Json]:
        port = _option(options, "--to-ports")
        return [{kind: {"port": _range(port, "-") if port else None}}]

    return make


def _netmap(reader: _Reader, options: list[str]) -> list[Json] | None:
    """A network in place of the address's own; which address, the hook decides."""
    kind = {"PREROUTING": "dnat", "OUTPUT": "dnat", "POSTROUTING": "snat", "INPUT": "snat"}.get(reader.chain)
    network = ip_network(_option(options, "--to"), strict=False)
    if kind is None:
        return None
    address = reader.payload("daddr" if kind == "dnat" else "saddr")
    value = {"|": [{"&": [address, int(network.hostmask)]}, int(network.network_address)]}
    return [{kind: {"addr": value}}]


def _set_mark(left: Json) -> Callable[[_Reader, list[str]], list[Json] | None]:
    def make(_: _Reader, options: list[str]) -> list[Json] | None:
        if "--save-mark" in options or "--restore-mark" in options:
            return [_copy_mark(options)]
        if "--set-xmark" not in options:
            return None
        mark, mask = _masked(_option(options, "--set-xmark"))
        return [_mangle(left, {"^": [{"&": [left, ~mask & _ALL]}, mark]})]

    return make


def _copy_mark(options: list[str]) -> Json:
    """Of the packet to the connection, or back: the bits of the one mask are replaced by those of the other."""
    meta_mask, ct_mask = (int(_option(options, name) or hex(_ALL), 0) for name in ("--nfmask", "--ctmask"))
    of_packet, of_connection = (_META_MARK, meta_mask), (_CT_MARK, ct_mask)
    (source, read), (target, replaced) = (of_packet, of_connection) if "--save-mark" in options else (of_connection, of_packet)
    return _mangle(target, {"^": [{"&": [target, ~replaced & _ALL]}, {"&": [source, read]}]})


def _mangle(left: Json, value: Json) -> Json:
    return {"mangle": {"key": left, "value": value}}


def _ct(_: _Reader, options: list[str]) -> list[Json]:
    return [{"notrack": None}] if "--notrack" in options else []


_TARGETS: dict[str, Callable[[_Reader, list[str]], list[Json] | None]] = {
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
