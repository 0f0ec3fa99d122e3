"""Host ports as rulesets: pure, nothing here touches the kernel.

How it works. Everything is in ``table inet cni_py``, beside the masquerade of masquerade_ruleset.py; here
for IPv4, the same with a 6 for IPv6::

    map hostports4    { tcp . 8080 comment "c1 eth0 1f3a…" : 10.244.91.2 . 80 }            # any address of the host
    map hostports4_at { 192.0.2.1 . udp . 53 comment "c2 …" : 10.244.91.3 . 53 }           # one address only
    map sources4      { tcp . 8080 comment "c1 …" : jump mark13-from-10.244.91.0_24 }      # and sources4_at
    chain prerouting, output {                   # type nat, priority dstnat
        meta nfproto ipv4 fib daddr type local jump hostports4
    }
    chain hostports4 {
        ip daddr . meta l4proto . th dport vmap @sources4_at
        dnat ip to ip daddr . meta l4proto . th dport map @hostports4_at
        meta l4proto . th dport vmap @sources4
        dnat ip to meta l4proto . th dport map @hostports4
    }
    chain mark13-from-10.244.91.0_24 {           # shared by the pods of this subnet
        ip saddr 10.244.91.0/24 meta mark set meta mark | 0x00002000
        ip saddr 127.0.0.0/8 meta mark set meta mark | 0x00002000
    }
    chain masquerade-mark13 {                    # type nat hook postrouting priority srcnat
        ct status dnat meta mark & 0x00002000 == 0x00002000 masquerade
    }
    chain localnet {                             # type filter hook prerouting priority raw
        iifname @localnet ip daddr 127.0.0.0/8 drop
    }

A connection costs at most four lookups and a mapping two elements, with one mapping or with 250. The mapping of
one address takes precedence over that of any, as with sockets. An element's comment names its owner.

Masqueraded sources (marked for ``masquerade-mark13``, as in the Go plugin's
iptables rules): the pod itself, which would not accept a reply from itself; its neighbours, to which it
would reply directly, bypassing the translation; the loopback address, which cannot leave the
host. The pod sees the address of all others. ``conditionsV4`` and ``conditionsV6`` come before
that, in a chain ``if-<hash>`` that all pods of the configuration share.

``localnet`` closes what ``route_localnet`` opens: with it the kernel accepts packets to 127.0.0.0/8
from that link, so any pod could reach services that listen only on the host's loopback address. A reply
never has such an address on the wire. Source: containernetworking/plugins plugins/meta/portmap.
"""

from __future__ import annotations

from cni_py.packetfilter.ownership import IF, MARK, MASQUERADE_MARK, TABLE, TABLE_BASE, Owner, digest, refill
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

    Address = IPv4Address | IPv6Address
    Interface = IPv4Interface | IPv6Interface
    Chains = dict[str, tuple[str, Sequence[str]]]
    """Chain to its hook (empty: none) and its rules."""

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}  # as IP numbers them; nft and iptables take the names
LOCALNET = f"{TABLE} localnet"  # the set of links, and the chain that looks them up
_IP = {4: "ip", 6: "ip6"}
_TYPE = {4: "ipv4_addr", 6: "ipv6_addr"}
_LOOPBACK = "127.0.0.0/8"  # IPv4 only: the kernel accepts replies to ::1 from lo alone, with any setting


class Mapping(Value):
    """A port of the host that is forwarded to a port of a pod; ``host_address`` None: any address of the host."""

    protocol: str
    host_port: int
    pod: Interface
    pod_port: int
    host_address: Address | None = None

    @property
    def version(self) -> int:
        return self.pod.version

    @property
    def suffix(self) -> str:
        """Suffix of its maps' names."""
        return f"{self.version}_at" if self.host_address else str(self.version)

    @property
    def is_for_localhost(self) -> bool:
        """True if 127.0.0.1 may connect to it."""
        return self.version == 4 and (self.host_address is None or self.host_address.is_loopback)

    def __str__(self) -> str:
        at = f"{self.host_address or 'any address'} {self.protocol} {self.host_port}"
        return f"{at} to {self.pod.ip} {self.pod_port}"


class Wanted(Value):
    """The mappings of one attachment, and how connections to them are treated.

    Args:
        ports: protocol and host port of every requested mapping, of either IP version.
        snat: masquerade the sources that need it; ``masq_all``: every source.
        mark_bit: 0 to 31, the bit of the packet's mark for it.
        conditions: IP version to further matches, in the syntax of the back end.
        set_mark_chain: iptables only: an external chain that sets the mark.
    """

    owner: Owner
    mappings: tuple[Mapping, ...] = ()
    ports: tuple[tuple[str, int], ...] = ()
    snat: bool = True
    masq_all: bool = False
    mark_bit: int = 13
    conditions: tuple[tuple[int, tuple[str, ...]], ...] = ()
    set_mark_chain: str = ""

    @property
    def versions(self) -> list[int]:
        return sorted({mapping.version for mapping in self.mappings})

    def of(self, version: int) -> tuple[Mapping, ...]:
        return tuple([mapping for mapping in self.mappings if mapping.version == version])

    def words(self, version: int) -> tuple[str, ...]:
        """The conditions of this IP version."""
        return dict(self.conditions).get(version, ())


# ---- keys and texts of elements ---------------------------------------------------------------


def hostports_map(mapping: Mapping) -> str:
    return f"{TABLE} hostports{mapping.suffix}"


def sources_map(mapping: Mapping) -> str:
    return f"{TABLE} sources{mapping.suffix}"


HOSTPORTS = tuple([f"{TABLE} hostports{suffix}" for suffix in ("4", "4_at", "6", "6_at")])
SOURCES = tuple([f"{TABLE} sources{suffix}" for suffix in ("4", "4_at", "6", "6_at")])


def key_of(mapping: Mapping) -> bytes:
    """The key in both maps: address if it has one, protocol and port, each padded to four bytes."""
    address = mapping.host_address.packed if mapping.host_address else b""
    return address + bytes([PROTOCOLS[mapping.protocol], 0, 0, 0]) + mapping.host_port.to_bytes(2, "big") + b"\0\0"


def target_of(mapping: Mapping) -> bytes:
    """The value of the key: address and port."""
    return mapping.pod.ip.packed + mapping.pod_port.to_bytes(2, "big") + b"\0\0"


def key_text(key: bytes) -> str:
    """A key in nft's syntax."""
    protocol, port = key_protocol_port(key)
    address = f"{address_text(key[:-8])} . " if len(key) > 8 else ""
    names = {number: name for name, number in PROTOCOLS.items()}
    return f"{address}{names.get(protocol, protocol)} . {port}"


def key_protocol_port(key: bytes) -> tuple[int, int]:
    return key[-8], int.from_bytes(key[-4:-2], "big")


def target_text(target: bytes) -> str:
    """The value of an element in nft's syntax."""
    return f"{address_text(target[:-4])} . {int.from_bytes(target[-4:-2], 'big')}" if target else "none"


def address_text(packed: bytes) -> str:
    if len(packed) == 4:
        return ".".join(map(str, packed))
    from ipaddress import ip_address

    return str(ip_address(packed))


# ---- chains -----------------------------------------------------------------------------------


def base() -> list[str]:
    """Commands that create table and maps unless they exist."""
    commands = [TABLE_BASE]
    for version in (4, 6):
        port = "inet_proto . inet_service"
        for suffix, key in ((f"{version}", port), (f"{version}_at", f"{_TYPE[version]} . {port}")):
            commands.append(f"add map {TABLE} hostports{suffix} {{ type {key} : {_TYPE[version]} . inet_service; }}")
            commands.append(f"add map {TABLE} sources{suffix} {{ type {key} : verdict; }}")
    return [*commands, f"add set {LOCALNET} {{ type ifname; }}"]


def hostports_rules(version: int) -> list[str]:
    """Translate a connection to this host; the mapping of one address takes precedence over that of any."""
    port, ip = "meta l4proto . th dport", _IP[version]
    return [
        f'{ip} daddr . {port} vmap @sources{version}_at comment "of one address: by source"',
        f'dnat {ip} addr . port to {ip} daddr . {port} map @hostports{version}_at comment "of one address: to the pod"',
        f'{port} vmap @sources{version} comment "of any address: by source"',
        f'dnat {ip} addr . port to {port} map @hostports{version} comment "of any address: to the pod"',
    ]


LOCAL_RULES = (
    'meta nfproto ipv4 fib daddr type local jump hostports4 comment "IPv4 to this host"',
    'ip6 daddr != ::1 fib daddr type local jump hostports6 comment "IPv6 to this host"',
)
LOCALNET_RULES = ('iifname @localnet ip daddr 127.0.0.0/8 drop comment "route_localnet is for the host, not for pods"',)
BASE_CHAINS: Chains = {
    f"{TABLE} hostports4": ("", hostports_rules(4)),
    f"{TABLE} hostports6": ("", hostports_rules(6)),
    f"{TABLE} prerouting": ("type nat hook prerouting priority dstnat; policy accept;", LOCAL_RULES),
    f"{TABLE} output": ("type nat hook output priority -100; policy accept;", LOCAL_RULES),
    LOCALNET: ("type filter hook prerouting priority raw; policy accept;", LOCALNET_RULES),
}


def mark_chain(mapping: Mapping, wanted: Wanted) -> str:
    """The chain that marks the masqueraded sources; its name holds the pod's subnet and the bit."""
    network = "all" if wanted.masq_all else str(mapping.pod.network).replace("/", "_").replace(":", "-")
    return f"{MARK}{wanted.mark_bit}-from-{network}"


def mark_rules(mapping: Mapping, wanted: Wanted) -> list[str]:
    mark = f"meta mark set meta mark | {_hex(wanted.mark_bit)}"
    if wanted.masq_all:
        return [f'{mark} comment "every source is masqueraded"']
    sources = [str(mapping.pod.network), *([_LOOPBACK] if mapping.version == 4 else [])]
    if mapping.pod.network.prefixlen == mapping.pod.max_prefixlen:
        sources[0] = str(mapping.pod.ip)  # as nft prints it
    return [f'{_IP[mapping.version]} saddr {source} {mark} comment "from {source}: masqueraded"' for source in sources]


def condition_chain(mapping: Mapping, wanted: Wanted) -> str:
    """The chain of a configuration's conditions; its name is a hash of its content."""
    onward = mark_chain(mapping, wanted) if wanted.snat else ""
    return f"{IF}{digest(' '.join([str(mapping.version), *wanted.words(mapping.version), onward]))[:24]}"


def condition_rules(mapping: Mapping, wanted: Wanted) -> list[str]:
    """Translate connections that meet the conditions, and no others."""
    onward = f"goto {mark_chain(mapping, wanted)}" if wanted.snat else "return"
    conditions = " ".join(wanted.words(mapping.version))
    return [
        f'{conditions} {onward} comment "what meets the conditions"',
        'accept comment "what does not is not translated"',
    ]


def source_chain(mapping: Mapping, wanted: Wanted) -> str:
    """The target of the mapping's element in ``sources…``; empty: it needs none."""
    if wanted.words(mapping.version):
        return condition_chain(mapping, wanted)
    return mark_chain(mapping, wanted) if wanted.snat else ""


def masquerade_chain(bit: int) -> str:
    return f"{TABLE} {MASQUERADE_MARK}{bit}"


def masquerade_rules(bit: int) -> list[str]:
    return [f'ct status dnat meta mark & {_hex(bit)} == {_hex(bit)} masquerade comment "a host port and a marked source"']


def _hex(bit: int) -> str:
    return f"0x{1 << bit:08x}"


def wanted_chains(wanted: Wanted) -> Chains:
    """Return the chains that these mappings need: hook and rules of each, a chain after those that it refers to."""
    chains: Chains = {}
    for mapping in wanted.mappings:
        if wanted.snat:
            chains[f"{TABLE} {mark_chain(mapping, wanted)}"] = ("", mark_rules(mapping, wanted))
            hook = "type nat hook postrouting priority srcnat; policy accept;"
            chains[masquerade_chain(wanted.mark_bit)] = (hook, masquerade_rules(wanted.mark_bit))
        if wanted.words(mapping.version):
            chains[f"{TABLE} {condition_chain(mapping, wanted)}"] = ("", condition_rules(mapping, wanted))
    return BASE_CHAINS | chains


def chain_commands(chains: Chains) -> list[str]:
    """Commands that create these chains and leave exactly these rules in them."""
    made = [f"add chain {chain}" + (f" {{ {hook} }}" if hook else "") for chain, (hook, _) in chains.items()]
    return made + [command for chain, (_, lines) in chains.items() for command in refill(chain, lines)]


def as_printed(line: str) -> str:
    """A rule in one form: ``nft`` before 1.0 needs and prints "addr . port", later versions print bit 31 as a prefix."""
    return line.replace(" addr . port to ", " to ").replace("mark 0x80000000/1", "mark & 0x80000000 == 0x80000000")


# ---- elements ---------------------------------------------------------------------------------


def element_commands(mapping: Mapping, wanted: Wanted) -> list[str]:
    """Commands that add the mapping."""
    key, comment = key_text(key_of(mapping)), f'comment "{wanted.owner.comment()}"'
    chain = source_chain(mapping, wanted)
    commands = [f"add element {hostports_map(mapping)} {{ {key} {comment} : {target_text(target_of(mapping))} }}"]
    if chain:
        commands.append(f"add element {sources_map(mapping)} {{ {key} {comment} : jump {chain} }}")
    return commands


def delete_command(name: str, keys: Iterable[bytes]) -> str:
    return f"delete element {name} {{ {', '.join(map(key_text, keys))} }}"


def is_quotable(link: str) -> bool:
    """Return whether nft's syntax can express this name. Links with other names, which are unusual, stay unprotected."""
    return not any(c in '"\\*' or not c.isprintable() for c in link)


def link_key(link: str) -> bytes:
    """The key of a link in the set ``localnet``."""
    return link.encode(errors="surrogateescape").ljust(16, b"\0")


def link_text(key: bytes) -> str:
    """Return the key of a link in nft's syntax."""
    return '"' + key.rstrip(b"\0").decode(errors="surrogateescape") + '"'


def localnet_command(link: str) -> str:
    """Drop packets from this link to a loopback address."""
    return f'add element {LOCALNET} {{ "{link}" }}'
