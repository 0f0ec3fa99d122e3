"""Masquerading as a ruleset: pure, nothing here touches the kernel.

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

A packet costs one lookup and a pod one element, with one pod or with 250. An element's comment names its owner.

Everything but the elements can be sent again, in one transaction with the
element: an ADD repairs a ruleset that was flushed. Rules are written as ``nft``
prints them, since CHECK compares with them. Needs nftables 0.9.7, which has comments of tables and maps.
"""

from __future__ import annotations

from cni_py.packetfilter.ownership import BEYOND, MAX_CHAIN_NAME, TABLE, TABLE_BASE, digest, refill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

    from cni_py.packetfilter.ownership import Owner

    Interface = IPv4Interface | IPv6Interface
    Network = IPv4Network | IPv6Network

MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}
BASE = (
    TABLE_BASE,
    f'add map {TABLE} masq4 {{ type ipv4_addr : verdict; comment "its rule by pod address; owner in the comment"; }}',
    f"add map {TABLE} masq6 {{ type ipv6_addr : verdict; }}",
    f"add chain {TABLE} postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}",
)
# Another rule needs another comment: ADD recognizes rules by their comments alone (see rule_comments()).
POSTROUTING = (
    f'ip daddr {MULTICAST[4]} return comment "IPv4 multicast keeps its source address"',
    f'ip6 daddr {MULTICAST[6]} return comment "IPv6 multicast keeps its source address"',
    'ip saddr vmap @masq4 comment "a pod: on to the rule of its subnet"',
    'ip6 saddr vmap @masq6 comment "a pod: on to the IPv6 rule of its subnet"',
)


def map_of(address: Interface) -> str:
    return f"{TABLE} masq{address.version}"


def excluded_networks(address: Interface, exclude: Iterable[Network] = ()) -> list[Network]:
    """Destinations that are not masqueraded: the pod's subnet and ``exclude``, of its family, without overlaps."""
    from ipaddress import collapse_addresses

    return list(collapse_addresses([address.network, *(n for n in exclude if n.version == address.version)]))  # type: ignore[type-var]


def beyond_chain(excluded: Sequence[Network]) -> str:
    """The chain's name. nft takes no colon in it, and an address holds no hyphen."""
    name = BEYOND + "-and-".join([str(n).replace("/", "_").replace(":", "-") for n in excluded])
    return name if len(name) <= MAX_CHAIN_NAME else f"{BEYOND}{digest(name)[:32]}"


def beyond_rules(excluded: Sequence[Network]) -> list[str]:
    family = "ip" if excluded[0].version == 4 else "ip6"
    return [
        *(f'{family} daddr {network} return comment "not to {network}"' for network in excluded[:-1]),
        f'{family} daddr != {excluded[-1]} masquerade comment "beyond {excluded[-1]}"',
    ]


def wanted_chains(addresses: Iterable[Interface], exclude: Iterable[Network] = ()) -> dict[str, Sequence[str]]:
    """The chains that these addresses need, and the rules in each."""
    chains: dict[str, Sequence[str]] = {f"{TABLE} postrouting": POSTROUTING}
    for address in addresses:
        excluded = excluded_networks(address, exclude)
        chains[f"{TABLE} {beyond_chain(excluded)}"] = beyond_rules(excluded)
    return chains


def base(chains: Mapping[str, Sequence[str]]) -> list[str]:
    """Commands that create or repair these chains, and with ``postrouting`` the table and its maps, which it needs."""
    made = [command for chain, lines in chains.items() for command in (f"add chain {chain}", *refill(chain, lines))]
    return [*BASE, *made[1:]] if f"{TABLE} postrouting" in chains else made  # BASE has added it, with its hook


def element_commands(
    owner: Owner, addresses: Iterable[Interface], exclude: Iterable[Network] = (), replaced: Sequence[Interface] = ()
) -> list[str]:
    """Commands that add the elements of these addresses.

    Args:
        replaced: those of the addresses that have an element already, which the same transaction deletes.
    """
    commands = []
    for address in addresses:
        if address in replaced:
            commands.append(f"delete element {map_of(address)} {{ {address.ip} }}")
        target = beyond_chain(excluded_networks(address, exclude))
        commands.append(f'add element {map_of(address)} {{ {address.ip} comment "{owner.comment()}" : goto {target} }}')
    return commands
