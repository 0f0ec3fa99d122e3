"""Rulesets as text, and the names in them: pure, nothing here touches the kernel.

How masquerading works. One table serves every pod::

    table inet cni_py {
        map masq4 {                              # an element per pod address
            type ipv4_addr : verdict
            elements = { 10.244.91.2 comment "c1 eth0 1f3a…" : goto beyond-10.244.91.0_24 }
        }
        map masq6 { … }
        chain postrouting {                      # type nat hook postrouting priority srcnat
            ip daddr 224.0.0.0/4 return
            ip6 daddr ff00::/8 return
            ip saddr vmap @masq4
            ip6 saddr vmap @masq6
        }
        chain beyond-10.244.91.0_24 {            # shared by all pods of this subnet
            ip daddr != 10.244.91.0/24 masquerade
        }
    }

A packet costs one lookup, a pod one element, be there one pod or 250. An element's comment names
its owner, so that whoever deletes can compare first. ``macspoofchk`` has ``table bridge cni_py``, built alike.

Everything but the elements is written so that it can be sent again, in one transaction with the
element: an ADD repairs what somebody flushed. Lines of rules are in the form in which ``nft``
prints them, for CHECK compares with them. Needs nftables 0.9.7, where tables and maps got comments.
"""

from __future__ import annotations

from cni_py.errors import InvalidConfig
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

    Interface = IPv4Interface | IPv6Interface
    Network = IPv4Network | IPv6Network

MAX_COMMENT = 128  # nft's limit, in bytes
MAX_CHAIN_NAME = 120
TABLE = "inet cni_py"
SPOOF_TABLE = "bridge cni_py"
BEYOND = "beyond-"
MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}
_PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"


# ---- names ------------------------------------------------------------------------------------


def digest(text: str) -> str:
    """SHA-512 in hex, the hash of the Go plugins' names. ``hashlib`` would load OpenSSL: 3 ms."""
    try:
        from _sha2 import sha512  # type: ignore[import-not-found]  # Python 3.12
    except ImportError:
        from _sha512 import sha512  # type: ignore[import-not-found]  # Python 3.11
    return str(sha512(text.encode(errors="surrogateescape")).hexdigest())


class Owner(Value):
    """The attachment that a rule was made for."""

    container_id: str
    ifname: str
    network: str

    def comment(self) -> str:
        """The comment of this attachment's elements: id, interface, hash of the network. See :func:`parse_owner`."""
        return f"{short_id(self.container_id)} {percent_encode(self.ifname)} {network_hash(self.network)}"

    def go_chain(self) -> str:
        """Name of the iptables chain. Go-compatible: pkg/utils/utils.go, FormatChainName (it ignores the interface)."""
        return f"CNI-{digest(self.network + self.container_id)[:24]}"

    def go_comment(self) -> str:
        """Comment of the iptables rules. Go-compatible: pkg/utils/utils.go, FormatComment."""
        return f'name: "{self.network}" id: "{self.container_id}"'

    def go_instance(self) -> str:
        """First part of the Go plugins' nftables comments. Go-compatible: pkg/ip/ipmasq_nftables_linux.go."""
        return f"{digest(self.network)[:16]}-{digest(f'{self.ifname}:{self.container_id}')[:16]}"

    def __str__(self) -> str:
        return f"{self.container_id} {self.ifname} {self.network}"


def parse_owner(comment: str) -> tuple[str, str, str] | None:
    """(container id as :func:`short_id` gives it, interface name, network hash); ``None``: not a comment of ours."""
    parts = comment.split(" ")
    if len(parts) != 3:
        return None
    return parts[0], percent_decode(parts[1]), parts[2]


def network_hash(network: str) -> str:
    return digest(network)[:8]


def short_id(container_id: str) -> str:
    """The id as comments have it: beyond 72 characters its start, ``~`` and a hash of all of it.

    128 = 72 for the id, 45 for an interface name of 15 encoded bytes, 8 for the hash, two spaces, one spare.
    """
    encoded = percent_encode(container_id)
    return encoded if len(encoded) <= 72 else f"{encoded[:39]}~{digest(container_id)[:32]}"


def percent_encode(text: str) -> str:
    if not text.encode(errors="surrogateescape").translate(None, _PLAIN):
        return text
    return "".join([chr(b) if b in _PLAIN else f"%{b:02X}" for b in text.encode(errors="surrogateescape")])


def percent_decode(text: str) -> str:
    """The reverse; what :func:`percent_encode` cannot have made is left as it is."""
    head, *rest = text.split("%")
    try:
        raw = head.encode() + b"".join([bytes([int(part[:2], 16)]) + part[2:].encode() for part in rest])
    except ValueError:
        return text
    decoded = raw.decode(errors="surrogateescape")
    return decoded if percent_encode(decoded) == text else text


def stale(
    network: str, valid: Collection[tuple[str, str]] | None, is_dead: Callable[[str, str], bool] | None
) -> Callable[[str], bool]:
    """Which comments are of this network's attachments that are gone.

    Without a list of the valid ones ``is_dead`` decides, and is asked only where the whole id is known.
    """
    hashed = network_hash(network)
    live = {(short_id(container_id), ifname) for container_id, ifname in valid or ()}

    def doomed(comment: str) -> bool:
        container_id, ifname, of_network = parse_owner(comment) or ("", "", "")
        if of_network != hashed:
            return False
        if valid is not None:
            return (container_id, ifname) not in live
        return is_dead is not None and "~" not in container_id and is_dead(container_id, ifname)

    return doomed


# ---- masquerading -----------------------------------------------------------------------------

TABLE_BASE = f'add table {TABLE} {{ comment "cni-py: masquerade and host ports of pods"; }}'
MASQUERADE_BASE = (
    TABLE_BASE,
    f'add map {TABLE} masq4 {{ type ipv4_addr : verdict; comment "its rule by pod address; owner in the comment"; }}',
    f"add map {TABLE} masq6 {{ type ipv6_addr : verdict; }}",
    f"add chain {TABLE} postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}",
)
# Each rule has a comment, and other rules have other comments: ADD knows them by these (see rule_comments()).
POSTROUTING = (
    f'ip daddr {MULTICAST[4]} return comment "IPv4 multicast keeps its source address"',
    f'ip6 daddr {MULTICAST[6]} return comment "IPv6 multicast keeps its source address"',
    'ip saddr vmap @masq4 comment "a pod: on to the rule of its subnet"',
    'ip6 saddr vmap @masq6 comment "a pod: on to the IPv6 rule of its subnet"',
)


def rule_comments(lines: Iterable[str]) -> list[str]:
    return [line.partition(' comment "')[2].rstrip('"') for line in lines]


def map_of(address: Interface) -> str:
    return f"{TABLE} masq{address.version}"


def spared_networks(address: Interface, spare: Iterable[Network] = ()) -> list[Network]:
    """The networks that see the pod's own address: its subnet and ``spare``, of its family, without overlaps."""
    from ipaddress import collapse_addresses

    return list(collapse_addresses([address.network, *(n for n in spare if n.version == address.version)]))  # type: ignore[type-var]


def beyond_chain(spared: Sequence[Network]) -> str:
    """The chain's name. nft takes no colon in it, and an address holds no hyphen."""
    name = BEYOND + "-and-".join([str(n).replace("/", "_").replace(":", "-") for n in spared])
    return name if len(name) <= MAX_CHAIN_NAME else f"{BEYOND}{digest(name)[:32]}"


def beyond_rules(spared: Sequence[Network]) -> list[str]:
    family = "ip" if spared[0].version == 4 else "ip6"
    return [
        *(f'{family} daddr {network} return comment "not to {network}"' for network in spared[:-1]),
        f'{family} daddr != {spared[-1]} masquerade comment "beyond {spared[-1]}"',
    ]


def refill(chain: str, rules: Iterable[str]) -> list[str]:
    """Commands that leave exactly these rules in the chain, whatever was in it."""
    return [f"flush chain {chain}", *(f"add rule {chain} {rule}" for rule in rules)]


def wanted_chains(addresses: Iterable[Interface], spare: Iterable[Network] = ()) -> dict[str, Sequence[str]]:
    """The chains that these addresses need, and the rules in each."""
    chains: dict[str, Sequence[str]] = {f"{TABLE} postrouting": POSTROUTING}
    for address in addresses:
        spared = spared_networks(address, spare)
        chains[f"{TABLE} {beyond_chain(spared)}"] = beyond_rules(spared)
    return chains


def masquerade_base(chains: Mapping[str, Sequence[str]]) -> list[str]:
    """Commands that make table, maps and chains, or repair them."""
    made = [command for chain, lines in chains.items() for command in (f"add chain {chain}", *refill(chain, lines))]
    return [*MASQUERADE_BASE, *made[1:]]  # the first chain has been added with its hook


def masquerade_elements(
    owner: Owner, addresses: Iterable[Interface], spare: Iterable[Network] = (), replaced: Sequence[Interface] = ()
) -> list[str]:
    """Commands that add the elements of these addresses.

    Args:
        replaced: those of the addresses whose element is there and has to go in the same transaction.
    """
    commands = []
    for address in addresses:
        if address in replaced:
            commands.append(f"delete element {map_of(address)} {{ {address.ip} }}")
        target = beyond_chain(spared_networks(address, spare))
        commands.append(f'add element {map_of(address)} {{ {address.ip} comment "{owner.comment()}" : goto {target} }}')
    return commands


# ---- macspoofchk ------------------------------------------------------------------------------

SPOOF_BASE = (
    f'add table {SPOOF_TABLE} {{ comment "cni-py: ports that may send from one MAC address only"; }}',
    f"add set {SPOOF_TABLE} checked {{ type ifname; }}",
    f"add set {SPOOF_TABLE} allowed {{ type ifname . ether_addr; }}",
    f"add chain {SPOOF_TABLE} prerouting {{ type filter hook prerouting priority -300; policy accept; }}",
)
SPOOF_CHAIN = f"{SPOOF_TABLE} prerouting"
SPOOF_PREROUTING = (
    'iifname @checked iifname . ether saddr != @allowed drop comment "a checked port with another address than its own"',
)


def quoted_port(port: str) -> str:
    """The interface name as nft takes it. Raises: InvalidConfig for what its language cannot express."""
    if not port or any(c in '"\\*' or not c.isprintable() for c in port):
        raise InvalidConfig(
            f'macspoofchk cannot check the port "{port}"', "its name holds a character that nft gives a meaning"
        )
    return f'"{port}"'


def port_key(port: str, mac: str = "") -> bytes:
    """The key of a port in ``checked``, and with its address in ``allowed``: padded to 16 and 8 bytes."""
    name = port.encode(errors="surrogateescape").ljust(16, b"\0")
    return name + (bytes.fromhex(mac.replace(":", "")) + b"\0\0" if mac else b"")


def port_text(key: bytes) -> str:
    """The same in the language of nft."""
    name = key[:16].rstrip(b"\0").decode(errors="surrogateescape")
    return f'"{name}"' + (f" . {key[16:22].hex(':')}" if len(key) > 16 else "")


def mac_elements(owner: Owner, port: str, mac: str) -> list[str]:
    """Commands that let only frames of ``mac`` in through ``port``. Raises: InvalidConfig."""
    name, comment = quoted_port(port), f'comment "{owner.comment()}"'
    if len(mac) != 17 or not set(mac.lower()) <= set("0123456789abcdef:"):
        raise InvalidConfig(f'"{mac}" is not a MAC address')
    return [
        f"add element {SPOOF_TABLE} allowed {{ {name} . {mac.lower()} {comment} }}",
        f"add element {SPOOF_TABLE} checked {{ {name} {comment} }}",
    ]
