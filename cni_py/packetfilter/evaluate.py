"""Decide what the rules of this host do to a packet that is described, without sending one: pure.

    Ruleset.of(saved, nft_objects)                 saved: iptables-save's text by family; nft_objects: "nft -j list ruleset"
    ruleset.verdict(packet, hook) -> Verdict       accepted, dropped (and by which rule), translated, or unknown

How it works. Both languages become one form: chains of rules, each with its text, a test of the packet and what it does. A test
returns True, False or None: it depends on what is not modelled (sets of addresses, limits, types of addresses). A rule that
may apply is passed over and remembered: a packet that such a rule may have accepted is not reported as dropped. So what is
reported as dropped is dropped, and a ruleset that is too complicated is unknown.

Source: man pages nft(8), libnftables-json(5), iptables-extensions(8).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

Address = IPv4Address | IPv6Address
Test = Callable[["Packet"], bool | None]

ACCEPT, DROP, TRANSLATE, UNKNOWN = "accept", "drop", "translate", "unknown"
HOOKS = ("ingress", "prerouting", "input", "forward", "output", "postrouting")
IPTABLES_TABLES = frozenset(("filter", "nat", "mangle", "raw", "security"))
_FAMILIES_OF = {4: ("ip", "inet"), 6: ("ip6", "inet")}
_PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
_NAMED = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}
_DEEPEST = 32
_BRIDGE = -1
_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "ipv6-icmp": 58, "icmpv6": 58}


@dataclass(frozen=True, slots=True)
class Packet:
    """``incoming``, ``outgoing``: names of links, "" if there is none; ``state``: as conntrack has it."""

    source: Address
    destination: Address
    protocol: str = "tcp"
    port: int = 80
    incoming: str = ""
    outgoing: str = ""
    state: str = "new"

    @property
    def version(self) -> int:
        return self.source.version


@dataclass(frozen=True, slots=True)
class Rule:
    """``action``: accept, drop, reject, return, jump, goto, translate, map, or "" for none that ends the chain."""

    text: str
    test: Test
    action: str = ""
    target: str = ""
    choose: Callable[[Packet], tuple[str, str] | None] | None = None
    """Lookup in a verdict map: action and target; None: there is no element for the packet."""


@dataclass(slots=True)
class Chain:
    """``table``: as messages name it; ``hook`` "": no base chain; ``device``: of an ingress chain."""

    table: str
    name: str
    version: int = 0
    hook: str = ""
    priority: int = 0
    policy: str = ACCEPT
    device: str = ""
    rules: list[Rule] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.table} {self.name}"

    def is_of(self, version: int) -> bool:
        return self.version in (0, version)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``chain`` and ``rule``: what decided; ``rule`` "" where it was the policy of the chain."""

    kind: str
    chain: str = ""
    rule: str = ""

    @property
    def words(self) -> str:
        return f"chain {self.chain}: {self.rule}" if self.rule else f"chain {self.chain}: its policy is drop"


class Ruleset:
    """Every chain of this host."""

    def __init__(self, chains: Iterable[Chain]) -> None:
        self.chains = list(chains)
        self._by_name = {(chain.table, chain.name): chain for chain in self.chains}

    @classmethod
    def of(cls, saved: Mapping[str, str], nft_objects: Sequence[Mapping[str, Any]]) -> Ruleset:
        """``saved``: iptables-save's output by the name of the program's flavour, such as "iptables-nft"."""
        chains = [chain for name, text in saved.items() for chain in _of_iptables(name, text)]
        return cls([*chains, *_of_nft(nft_objects)])

    def at(self, hook: str, version: int) -> list[Chain]:
        """Return the base chains of a hook, in the order in which a packet meets them."""
        return sorted(
            (chain for chain in self.chains if chain.hook == hook and chain.is_of(version)), key=lambda chain: chain.priority
        )

    def bridged(self, packet: Packet) -> Verdict:
        """Return what happens to a packet between two ports of a bridge in the tables of the family bridge."""
        chains = [chain for chain in self.chains if chain.version == _BRIDGE and chain.hook in ("prerouting", "forward")]
        found = [_Walk(self._by_name, packet).run(chain) for chain in sorted(chains, key=lambda chain: chain.priority)]
        return next((verdict for verdict in found if verdict.kind == DROP), Verdict(ACCEPT))

    def verdict(self, packet: Packet, *hooks: str) -> Verdict:
        """Return what happens to the packet at these hooks: the first drop, else a translation, else accept or unknown."""
        found: list[Verdict] = []
        for hook in hooks:
            met = (chain for chain in self.at(hook, packet.version) if chain.device in ("", packet.incoming))
            found += [_Walk(self._by_name, packet).run(chain) for chain in met]
        for kind in (DROP, TRANSLATE, UNKNOWN):
            for verdict in found:
                if verdict.kind == kind:
                    return verdict
        return Verdict(ACCEPT)


class _Walk:
    """One packet in one base chain."""

    def __init__(self, chains: Mapping[tuple[str, str], Chain], packet: Packet) -> None:
        self._chains, self._packet = chains, packet
        self._may_be_accepted = self._may_be_dropped = False

    def run(self, base: Chain) -> Verdict:
        found = self._inside(base, 0, is_certain=True) or Verdict(base.policy, str(base))
        if found.kind == DROP and self._may_be_accepted:
            return Verdict(UNKNOWN, found.chain, found.rule)
        if found.kind == ACCEPT and self._may_be_dropped:
            return Verdict(UNKNOWN, found.chain, found.rule)
        return found

    def _inside(self, chain: Chain, depth: int, *, is_certain: bool) -> Verdict | None:
        """Return what ends the walk; None: the chain was left without a decision."""
        for rule in chain.rules if depth < _DEEPEST else ():
            matches = rule.test(self._packet)
            if matches is False:
                continue
            action, target = rule.action, rule.target
            if rule.choose is not None:
                chosen = rule.choose(self._packet)
                if chosen is None:
                    continue
                action, target = chosen
            applies = is_certain and matches is True and action != UNKNOWN
            if action in ("jump", "goto"):
                into = self._chains.get((chain.table, target))
                found = self._inside(into, depth + 1, is_certain=applies) if into else None
                if found is not None or (applies and action == "goto"):
                    return found
            elif action == "return":
                if applies:
                    return None
            elif action in (ACCEPT, DROP, "reject", TRANSLATE, UNKNOWN):
                kind = DROP if action == "reject" else action
                if applies:
                    return Verdict(kind, str(chain), rule.text)
                self._may_be_accepted |= kind != DROP
                self._may_be_dropped |= kind in (DROP, UNKNOWN)
        return None


# ---- iptables -----------------------------------------------------------------------------------


def _of_iptables(name: str, text: str) -> Iterator[Chain]:
    """Yield the chains of ``iptables-save``."""
    version = 6 if name.startswith("ip6") else 4
    table, chains = "", dict[str, Chain]()
    for line in text.splitlines():
        if line.startswith("*"):
            yield from chains.values()
            table, chains = line[1:].strip(), {}
        elif line.startswith(":"):
            chain, policy, *_ = line[1:].split()
            hook = chain.lower() if chain.lower() in HOOKS else ""
            kind = DROP if policy == "DROP" else ACCEPT
            priority = 100 if (table, hook) == ("nat", "postrouting") else _PRIORITIES.get(table, 0)
            chains[chain] = Chain(f"{name} {table}", chain, version, hook, priority, kind)
        elif line.startswith("-A "):
            chain = line.split(" ", 2)[1]
            if chain in chains:
                chains[chain].rules.append(_iptables_rule(line))
    yield from chains.values()


_TARGETS = {"ACCEPT": ACCEPT, "DROP": DROP, "REJECT": "reject", "RETURN": "return"}
_TRANSLATE = ("MASQUERADE", "SNAT", "NETMAP")
_NO_DECISION = ("LOG", "NFLOG", "MARK", "CONNMARK", "CT", "NOTRACK", "TCPMSS", "TRACE", "CHECKSUM", "CLASSIFY", "SET", "DSCP")
_IGNORED_VALUES = ("--comment", "-m")


def _iptables_rule(line: str) -> Rule:
    words = shlex.split(line)[2:]
    tests: list[Test] = []
    action = target = ""
    at, negated = 0, False
    while at < len(words):
        word = words[at]
        value = words[at + 1] if at + 1 < len(words) else ""
        at += 2
        if word == "!":
            at, negated = at - 1, True
            continue
        if word in ("-j", "-g"):
            action, target = _iptables_target(word, value)
            break
        if word not in _IGNORED_VALUES:
            known = _IPTABLES_TESTS.get(word)
            test: Test = known(value) if known else _unknown
            if known is None and value.startswith("-"):  # an option without a value
                at -= 1
            tests.append(_negated(test) if negated else test)
        negated = False
    return Rule(line, _all(tests), action, target)


def _iptables_target(word: str, name: str) -> tuple[str, str]:
    if name in _TARGETS:
        return _TARGETS[name], ""
    if name in _TRANSLATE:
        return TRANSLATE, ""
    if name in _NO_DECISION or (name.isupper() and name in ("DNAT", "REDIRECT", "TPROXY")):
        return "", ""
    return ("goto" if word == "-g" else "jump"), name


def _unknown(_: Packet) -> bool | None:
    return None


def _negated(test: Test) -> Test:
    def negated(packet: Packet) -> bool | None:
        found = test(packet)
        return None if found is None else not found

    return negated


def _all(tests: Sequence[Test]) -> Test:
    """Return a test that holds where all do: False as soon as one is, whatever is unknown."""

    def every(packet: Packet) -> bool | None:
        found = [test(packet) for test in tests]
        return False if False in found else None if None in found else True

    return every


def _address_test(of: Callable[[Packet], Address]) -> Callable[[str], Test]:
    def make(value: str) -> Test:
        try:
            networks = [ip_network(text, strict=False) for text in value.split(",")]
        except ValueError:
            return _unknown
        return lambda packet: any(network.version == packet.version and of(packet) in network for network in networks)

    return make


def _link_test(of: Callable[[Packet], str]) -> Callable[[str], Test]:
    def make(value: str) -> Test:
        return lambda packet: _is_link(of(packet), value.replace("+", "*"))

    return make


def _is_link(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _protocol_test(value: str) -> Test:
    return lambda packet: value == "all" or _number(value) == _number(packet.protocol)


def _number(protocol: str) -> int:
    return int(protocol) if protocol.isdigit() else _PROTOCOLS.get(protocol, -1)


def _ports_test(value: str) -> Test:
    def test(packet: Packet) -> bool | None:
        if packet.protocol not in ("tcp", "udp"):
            return False
        for part in value.split(","):
            low, _, high = part.partition(":")
            if not (low or "0").isdigit() or not (high or "0").isdigit():
                return None
            if int(low or 0) <= packet.port <= int(high or (65535 if ":" in part else low)):
                return True
        return False

    return test


def _state_test(value: str) -> Test:
    return lambda packet: packet.state in value.lower().split(",")


def _mark_test(value: str) -> Test:
    mark, _, mask = value.partition("/")
    try:
        wanted = int(mark, 0) & int(mask or "0xffffffff", 0)
    except ValueError:
        return _unknown
    return lambda _: wanted == 0  # the packets that are described have none


_IPTABLES_TESTS: dict[str, Callable[[str], Test]] = {
    "-s": _address_test(lambda packet: packet.source),
    "-d": _address_test(lambda packet: packet.destination),
    "-i": _link_test(lambda packet: packet.incoming),
    "-o": _link_test(lambda packet: packet.outgoing),
    "-p": _protocol_test,
    "--dport": _ports_test,
    "--dports": _ports_test,
    "--ctstate": _state_test,
    "--state": _state_test,
    "--mark": _mark_test,
}


# ---- nftables -----------------------------------------------------------------------------------


def _of_nft(objects: Sequence[Mapping[str, Any]]) -> Iterator[Chain]:
    """Yield the chains of ``nft -j list ruleset``, but for those that iptables-nft manages, which are read by it."""
    chains: dict[tuple[str, str], Chain] = {}
    sets: dict[tuple[str, str], list[Any]] = {}
    for kind, of in (next(iter(each.items())) for each in objects if each):
        if kind in ("set", "map"):
            sets[f"{of['family']} {of['table']}", of["name"]] = of.get("elem", [])
        if kind == "chain" and not _is_of_iptables(of):
            chain = _nft_chain(of)
            chains[chain.table, chain.name] = chain
    for of in (each["rule"] for each in objects if "rule" in each):
        table = f"{of['family']} {of['table']}"
        found = chains.get((table, of["chain"]))
        if found is not None:
            found.rules.append(_nft_rule(of, lambda name, table=table: sets.get((table, name))))  # type: ignore[misc]
    yield from chains.values()


def _is_of_iptables(chain: Mapping[str, Any]) -> bool:
    return (
        chain["family"] in ("ip", "ip6")
        and chain["table"] in IPTABLES_TABLES
        and (chain["name"].isupper() or "hook" not in chain)
    )


def _nft_chain(of: Mapping[str, Any]) -> Chain:
    family, priority = of["family"], of.get("prio", 0)
    return Chain(
        f"{family} {of['table']}",
        of["name"],
        {"ip": 4, "ip6": 6, "inet": 0, "netdev": 0}.get(family, _BRIDGE),
        of.get("hook", ""),
        priority if isinstance(priority, int) else _NAMED.get(str(priority), 0),
        DROP if of.get("policy") == "drop" else ACCEPT,
        of.get("dev", "") if isinstance(of.get("dev", ""), str) else "",
    )


Sets = Callable[[str], "list[Any] | None"]


def _nft_rule(of: Mapping[str, Any], sets: Sets) -> Rule:
    tests: list[Test] = []
    words: list[str] = []
    for expression in of.get("expr", []):
        key, value = next(iter(expression.items()))
        words.append(_nft_words(key, value))
        if key == "match":
            tests.append(_nft_test(value, sets))
        elif key in (ACCEPT, DROP, "reject", "return"):
            return Rule(_text(words, of), _all(tests), key)
        elif key in ("jump", "goto"):
            return Rule(_text(words, of), _all(tests), key, value["target"])
        elif key in ("masquerade", "snat"):
            return Rule(_text(words, of), _all(tests), TRANSLATE)
        elif key == "vmap":
            return Rule(_text(words, of), _all(tests), choose=_choice(value, sets))
        elif key in ("limit", "xt", "quota", "connlimit", "ct count", "queue", "flow"):
            tests.append(_unknown)
    return Rule(_text(words, of), _all(tests))


def _text(words: Sequence[str], of: Mapping[str, Any]) -> str:
    comment = f' comment "{of["comment"]}"' if of.get("comment") else ""
    return " ".join(filter(None, words)) + f"{comment} (handle {of.get('handle', '?')})"


def _nft_words(key: str, value: Any) -> str:
    """Return an expression nearly as nft prints it."""
    if key == "match":
        op = "" if value["op"] in ("==", "in") else f"{value['op']} "
        return f"{_side(value['left'])} {op}{_side(value['right'])}"
    if key in ("jump", "goto"):
        return f"{key} {value['target']}"
    if key == "vmap":
        return f"{_side(value['key'])} vmap {_side(value['data'])}"
    return "" if key == "counter" else key


def _side(value: Any) -> str:  # noqa: PLR0911 — a line for each form
    if isinstance(value, dict):
        key, inner = next(iter(value.items()))
        if key == "payload" and isinstance(inner, dict) and "field" in inner:
            return f"{inner['protocol']} {inner['field']}"
        if key in ("meta", "ct"):
            name = inner.get("key")
            return str(name) if key == "meta" and name in ("iifname", "oifname", "iif", "oif") else f"{key} {name}"
        if key == "prefix":
            return f"{inner['addr']}/{inner['len']}"
        if key == "set":
            return "{ " + ", ".join(map(_side, inner)) + " }" if isinstance(inner, list) else _side(inner)
        if key == "range":
            return "-".join(map(_side, inner))
        if key == "&":
            return " & ".join(map(_side, inner))
        return str(key)
    return ", ".join(map(_side, value)) if isinstance(value, list) else str(value)


class _Unknown(Exception):
    """Something that is not modelled."""


def _nft_test(match: Mapping[str, Any], sets: Sets) -> Test:
    left, right, op = match["left"], match["right"], match["op"]

    def test(packet: Packet) -> bool | None:
        try:
            value = _value(left, packet)
            if value is None:  # a field of another protocol or family
                return False
            found = _is_in(value, right, sets)
        except (_Unknown, ValueError, KeyError, TypeError):
            return None
        if op in ("==", "in"):
            return found
        return not found if op == "!=" else None

    return test


def _value(left: Any, packet: Packet) -> Any:
    """Return the packet's value of the left side; None: it has no such field. Raises: _Unknown."""
    key, inner = next(iter(left.items()))
    if key == "meta":
        return _meta(inner["key"], packet)
    if key == "ct" and inner.get("key") == "state":
        return packet.state
    if key == "payload" and "field" in inner:
        return _field(inner["protocol"], inner["field"], packet)
    if key == "&" and isinstance(inner[0], dict):
        value = _value(inner[0], packet)
        if isinstance(value, int) and isinstance(inner[1], int):
            return value & inner[1]
    raise _Unknown


def _meta(key: str, packet: Packet) -> Any:
    values: dict[str, Any] = {
        "iifname": packet.incoming,
        "iif": packet.incoming,
        "oifname": packet.outgoing,
        "oif": packet.outgoing,
        "l4proto": packet.protocol,
        "nfproto": "ipv4" if packet.version == 4 else "ipv6",
        "protocol": "ip" if packet.version == 4 else "ip6",
        "mark": 0,
    }
    if key not in values:
        raise _Unknown
    return values[key]


def _field(protocol: str, name: str, packet: Packet) -> Any:
    if protocol in ("ip", "ip6"):
        if packet.version != (4 if protocol == "ip" else 6):
            return None
        if name in ("saddr", "daddr"):
            return packet.source if name == "saddr" else packet.destination
        if name in ("protocol", "nexthdr"):
            return packet.protocol
    if protocol in ("tcp", "udp", "th"):
        if protocol not in ("th", packet.protocol):
            return None
        if name == "dport" and packet.protocol in ("tcp", "udp"):
            return packet.port
    raise _Unknown


def _is_in(value: Any, right: Any, sets: Sets) -> bool:  # noqa: PLR0911 — a line for each form
    """Return whether a value is, or is in, the right side of a match. Raises: _Unknown, ValueError."""
    if isinstance(right, list):
        return any(_is_in(value, each, sets) for each in right)
    if isinstance(right, dict):
        key, inner = next(iter(right.items()))
        if key == "set":
            return _is_in(value, inner, sets)
        if key == "elem":
            return _is_in(value, inner["val"], sets)
        if key == "prefix":
            return isinstance(value, IPv4Address | IPv6Address) and value in ip_network(f"{inner['addr']}/{inner['len']}")
        if key == "range":
            low, high = (_comparable(value, each) for each in inner)
            return bool(low <= value <= high)
        raise _Unknown
    if isinstance(right, str) and right.startswith("@"):
        elements = sets(right[1:])
        if elements is None:
            raise _Unknown
        return any(_is_in(value, each, sets) for each in elements)
    if isinstance(value, IPv4Address | IPv6Address):
        return "/" not in str(right) and value == ip_address(right)
    if isinstance(value, str) and isinstance(right, str):
        return _is_link(value, right) if right.endswith("*") else value == right or 0 <= _number(value) == _number(right)
    if isinstance(value, str) and isinstance(right, int):
        return _number(value) == right
    return bool(value == right)


def _comparable(value: Any, end: Any) -> Any:
    return ip_address(end) if isinstance(value, IPv4Address | IPv6Address) else end


def _choice(vmap: Mapping[str, Any], sets: Sets) -> Callable[[Packet], tuple[str, str] | None]:
    data = vmap["data"]
    plain: dict[str, Any] = {}
    others: list[Any] = []
    is_read = False

    def read() -> None:
        """Index the elements: a map of the node's pods has hundreds, and each packet asks for one."""
        nonlocal is_read
        elements = sets(data[1:]) if isinstance(data, str) else data["set"]
        if elements is None:
            raise _Unknown
        for key, verdict in elements:
            value = key["elem"]["val"] if isinstance(key, dict) and "elem" in key else key
            if isinstance(value, str) and not value.endswith("*"):
                plain.setdefault(value, verdict)
            else:
                others.append((key, verdict))
        is_read = True

    def choose(packet: Packet) -> tuple[str, str] | None:
        try:
            if not is_read:
                read()
            value = _value(vmap["key"], packet)
            if value is None:
                return None
            found = plain.get(str(value))
            if found is None:
                found = next((verdict for key, verdict in others if _is_in(value, key, sets)), None)
            if found is None:
                return None
            action, inner = next(iter(found.items()))
            return action, (inner or {}).get("target", "")
        except (_Unknown, ValueError, KeyError, TypeError):
            return UNKNOWN, ""

    return choose


# ---- questions about the whole ------------------------------------------------------------------

_ADDRESS = re.compile(r" -d (\S+)")


def destinations_of(saved: Mapping[str, str], chain: str) -> list[str]:
    """Return the destinations that the rules of an iptables chain name: the addresses of Services in KUBE-SERVICES."""
    lines = [line for text in saved.values() for line in text.splitlines() if line.startswith(f"-A {chain} ")]
    return [found[1] for line in lines if (found := _ADDRESS.search(line))]
