"""The kernel's own choice of a route for a packet, and why: which policy rule, which table, which entry.

    look_up(rtnl, Question(destination, source, iif)) -> Choice     asks as for a packet that is sent, or has come in by a link
    list_policy_rules(rtnl, version) -> list[PolicyRule]            every rule, of any kind, in the kernel's order

The kernel is asked twice: for the route that it takes, and for the entry that matched (RTM_F_FIB_MATCH). For a packet that has
come in it checks all that it would check of the packet itself: reverse path, forwarding, martian addresses.

Source: linux net/ipv4/route.c (inet_rtm_getroute), net/ipv6/route.c, include/uapi/linux/fib_rules.h.
"""

from __future__ import annotations

from errno import EAFNOSUPPORT, EOPNOTSUPP
from ipaddress import ip_address, ip_network
from struct import unpack

from cni_py.kernel.route import table_of
from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import decode, encode
from cni_py.netlink.constants import FAMILY, FR_ACT_TO_TBL, RT_TABLE_MAIN, RTM_GETROUTE, RTM_GETRULE, RTN_UNICAST
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.address import Address, Network
    from cni_py.netlink.attributes import Message
    from cni_py.netlink.socket import Rtnl

_RTM_F_LOOKUP_TABLE, _RTM_F_FIB_MATCH = 0x1000, 0x2000
_FIB_RULE_INVERT = 0x2
_ANY_PORTS = (0, 65535)
_KINDS = {
    1: "unicast",
    2: "local",
    3: "broadcast",
    4: "anycast",
    5: "multicast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
}
_DISCARDS, _THROW = frozenset((6, 7, 8)), 9
_DISCARDING_ACTIONS = frozenset(_KINDS[kind] for kind in _DISCARDS)
_RTNH_F_DEAD = 0x1
_TABLES = {253: "default", 254: "main", 255: "local"}
_PROTOCOLS = {2: "kernel", 3: "boot", 4: "static", 9: "ra", 16: "dhcp"}
_NUMBERS = {"icmp": {4: 1, 6: 58}, "tcp": {4: 6, 6: 6}, "udp": {4: 17, 6: 17}}
_ACTIONS = {2: "goto", 3: "nop", 6: "blackhole", 7: "unreachable", 8: "prohibit"}


class Question(Value):
    """A packet as far as routing reads it. ``iif`` 0: it is sent by this host; ``source`` None: the kernel chooses;
    ``oif``: the link that it has to leave by, 0 for any."""

    destination: Address
    source: Address | None = None
    iif: int = 0
    mark: int = 0
    protocol: str = ""
    source_port: int = 0
    destination_port: int = 0
    oif: int = 0


class Choice(Value):
    """Choice of the kernel.

    Attributes:
        errno: nonzero: it refuses, with this number.
        kind: "unicast", "local", ….
        ifindex: of the link that the packet leaves by.
        mtu: of the route, configured or learned from ICMP (path MTU), 0 for none; ``configured_mtu``: of the entry alone.
        matched: the entry, None where the kernel did not say.
        words: the entry as ``ip route`` would show it, without its device.
    """

    errno: int = 0
    reason: str = ""
    kind: str = ""
    ifindex: int = 0
    gateway: Address | None = None
    source: Address | None = None
    table: int = RT_TABLE_MAIN
    mtu: int = 0
    configured_mtu: int = 0
    matched: Network | None = None
    words: str = ""

    @property
    def table_name(self) -> str:
        return _TABLES.get(self.table, str(self.table))


class PolicyRule(Value):
    """A rule, as ``ip rule`` shows it; ``selects`` compares it with a packet."""

    priority: int
    action: str
    table: int
    text: str
    source: Network | None = None
    destination: Network | None = None
    iif: str = ""
    oif: str = ""
    mark: int | None = None
    mask: int = 0xFFFFFFFF
    protocol: int = 0
    source_ports: tuple[int, int] = _ANY_PORTS
    destination_ports: tuple[int, int] = _ANY_PORTS
    is_inverted: bool = False

    def selects(self, question: Question, iifname: str) -> bool:
        """Return whether it is for this packet. A packet that this host sends has the link ``lo``."""
        version = question.destination.version
        is_for = (
            (self.destination is None or question.destination in self.destination)
            and (self.source is None or (question.source is not None and question.source in self.source))
            and (not self.iif or self.iif == (iifname or "lo"))
            and not self.oif
            and (self.mark is None or question.mark & self.mask == self.mark & self.mask)
            and (not self.protocol or self.protocol == _NUMBERS.get(question.protocol, {}).get(version))
            and self.source_ports[0] <= question.source_port <= self.source_ports[1]
            and self.destination_ports[0] <= question.destination_port <= self.destination_ports[1]
        )
        return is_for != self.is_inverted


def look_up(rtnl: Rtnl, question: Question) -> Choice:
    """Return the kernel's choice; a refusal is one of its values. Raises: OSError if the kernel cannot be asked."""
    try:
        found = decode("rtmsg", rtnl.get(_message(question, _RTM_F_LOOKUP_TABLE), RTM_GETROUTE))
    except nl.NetlinkError as error:
        return Choice(errno=error.errno or 0, reason=str(error.strerror))
    packed = found.get("RTA_GATEWAY"), found.get("RTA_PREFSRC")
    gateway, source = (ip_address(of) if of else None for of in packed)
    choice = Choice(
        kind=_KINDS.get(found["type"], str(found["type"])),
        ifindex=found.get("RTA_OIF", 0),
        gateway=gateway,
        source=source,
        table=table_of(found),
        mtu=found.get("RTA_METRICS", {}).get("RTAX_MTU", 0),
    )
    return _with_entry(rtnl, question, choice)


def _with_entry(rtnl: Rtnl, question: Question, choice: Choice) -> Choice:
    """Add the entry that matched."""
    try:
        found = decode("rtmsg", rtnl.get(_message(question, _RTM_F_LOOKUP_TABLE | _RTM_F_FIB_MATCH), RTM_GETROUTE))
    except nl.NetlinkError:  # before Linux 4.13
        return choice
    network = _network_of(found)
    mtu = found.get("RTA_METRICS", {}).get("RTAX_MTU", 0)
    return choice.replace(matched=network, table=table_of(found), configured_mtu=mtu, words=_words(found, network))


def _message(question: Question, flags: int) -> bytes:
    destination, source = question.destination, question.source
    if destination.version == 6:
        flags &= ~_RTM_F_LOOKUP_TABLE  # IPv6 always returns the table, and refuses the flag
    ports = question.source_port, question.destination_port
    number = _NUMBERS.get(question.protocol, {}).get(destination.version)
    header = {"family": FAMILY[destination.version], "dst_len": destination.max_prefixlen, "flags": flags}
    if source is not None:
        header["src_len"] = source.max_prefixlen
    return encode(
        "rtmsg",
        header
        | {
            "RTA_DST": destination.packed,
            "RTA_SRC": source.packed if source is not None else None,
            "RTA_IIF": question.iif or None,
            "RTA_OIF": question.oif or None,
            "RTA_MARK": question.mark or None,
            "RTA_IP_PROTO": number,
            "RTA_SPORT": (ports[0] or None) if question.protocol in ("tcp", "udp") else None,
            "RTA_DPORT": (ports[1] or None) if question.protocol in ("tcp", "udp") else None,
        },
    )


def _network_of(found: Message) -> Network:
    zero = bytes(4 if found["family"] == FAMILY[4] else 16)
    return ip_network((found.get("RTA_DST", zero), found["dst_len"]), strict=False)


def _words(found: Message, network: Network) -> str:
    """The entry as ``ip route`` shows it, without its device."""
    kind = _KINDS.get(found["type"], "") if found["type"] != RTN_UNICAST else ""
    words = [kind, "default" if network.prefixlen == 0 else str(network)]
    gateway = found.get("RTA_GATEWAY")
    words += ["via", str(ip_address(gateway))] if gateway else []
    words += ["metric", str(found["RTA_PRIORITY"])] if found.get("RTA_PRIORITY") else []
    words += ["proto", _PROTOCOLS.get(found["proto"], str(found["proto"]))]
    return " ".join(filter(None, words))


class Discarding(Value):
    """Discards of a packet: by a policy rule itself, or by an entry of its table; ``words``: as ``ip route`` shows that."""

    rule: PolicyRule
    words: str = ""
    network: Network | None = None
    table_name: str = ""

    def __str__(self) -> str:
        return f"{self.words} (table {self.table_name})" if self.words else f"rule {self.rule.priority}: {self.rule.text}"


def find_discarding(rtnl: Rtnl, question: Question, iifname: str = "") -> Discarding | None:
    """Return the policy rule or the route that discards a packet, as the kernel finds it: rule by rule, in each table the most
    specific entry. None if none does. Raises: OSError.
    """
    family = FAMILY[question.destination.version]
    answers = rtnl.dump(encode("rtmsg", {"family": family}), RTM_GETROUTE)
    tables: dict[int, list[tuple[Network, Message]]] = {}
    for of in (decode("rtmsg", answer) for answer in answers if answer[0] == family):
        network = _network_of(of)
        if question.destination in network and not of["flags"] & _RTNH_F_DEAD:
            tables.setdefault(table_of(of), []).append((network, of))
    for rule in list_policy_rules(rtnl, question.destination.version):
        if not rule.selects(question, iifname):
            continue
        if rule.action in _DISCARDING_ACTIONS:
            return Discarding(rule)
        fitting = tables.get(rule.table, []) if rule.action == "lookup" else []
        if not fitting:
            continue
        network, of = min(fitting, key=lambda pair: (-pair[0].prefixlen, pair[1].get("RTA_PRIORITY", 0)))
        if of["type"] in _DISCARDS:
            return Discarding(rule, _words(of, network), network, _TABLES.get(rule.table, str(rule.table)))
        if of["type"] != _THROW:
            return None
    return None


def list_policy_rules(rtnl: Rtnl, version: int) -> list[PolicyRule]:
    """List the rules of one family in the order in which the kernel tries them. Raises: KernelRefused."""
    with nl.question(*rtnl.enter, "ip", f"-{version}", "rule", "show"):
        try:
            answers = rtnl.dump(encode("fibmsg", {"family": FAMILY[version]}), RTM_GETRULE)
        except nl.NetlinkError as error:
            if error.errno not in (EAFNOSUPPORT, EOPNOTSUPP):
                raise
            answers = []
    decoded = [decode("fibmsg", answer) for answer in answers]
    return sorted([_rule_of(of) for of in decoded if of["family"] == FAMILY[version]], key=lambda rule: rule.priority)


def _rule_of(of: Message) -> PolicyRule:
    source = ip_network((of["FRA_SRC"], of["src_len"]), strict=False) if of.get("FRA_SRC") else None
    destination = ip_network((of["FRA_DST"], of["dst_len"]), strict=False) if of.get("FRA_DST") else None
    table = of.get("FRA_TABLE") or of["table"]
    action = "lookup" if of["action"] == FR_ACT_TO_TBL else _ACTIONS.get(of["action"], str(of["action"]))
    mark, mask = of.get("FRA_FWMARK"), of.get("FRA_FWMASK", 0xFFFFFFFF)
    words = [*(["not"] if of["flags"] & _FIB_RULE_INVERT else []), "from", str(source) if source else "all"]
    words += ["to", str(destination)] if destination else []
    words += ["fwmark", f"{mark:#x}/{mask:#x}"] if mark is not None else []
    for name, key in (("iif", "FRA_IIFNAME"), ("oif", "FRA_OIFNAME")):
        words += [name, of[key]] if of.get(key) else []
    ports = {name: _ports(of.get(key)) for name, key in (("sport", "FRA_SPORT_RANGE"), ("dport", "FRA_DPORT_RANGE"))}
    for name, (low, high) in ports.items():
        words += [name, f"{low}-{high}"] if (low, high) != _ANY_PORTS else []
    words += [action, _TABLES.get(table, str(table))] if action == "lookup" else [action]
    return PolicyRule(
        of.get("FRA_PRIORITY", 0), action, table, " ".join(words), source, destination, of.get("FRA_IIFNAME", ""),
        of.get("FRA_OIFNAME", ""), mark, mask, of.get("FRA_IP_PROTO", 0), ports["sport"], ports["dport"],
        bool(of["flags"] & _FIB_RULE_INVERT),
    )  # fmt: skip


def _ports(packed: bytes | None) -> tuple[int, int]:
    """Two ports of ``struct fib_rule_port_range``; none: any."""
    if packed is None:
        return _ANY_PORTS
    low, high = unpack("=HH", packed)
    return int(low), int(high)
