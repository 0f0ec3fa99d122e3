"""Reading what ``nfnetlink.py`` does not: where chains hook into the kernel, and what becomes of what no rule decides.

Source of the numbers: linux/netfilter/nf_tables.h, linux/netfilter_ipv4.h.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from cni_py.netlink.attributes import attribute, attributes, text_of
from cni_py.netlink.constants import NF_DROP, NF_INET_FORWARD, NFT_MSG_GETCHAIN, NFT_MSG_GETRULE, NFT_MSG_GETTABLE
from cni_py.packetfilter import libnftables
from cni_py.packetfilter.nfnetlink import dump, get

FAMILIES = ("inet", "ip", "ip6")
_WITHOUT_DECISION = ("counter", "log")

RuleContent = tuple[str, int, bytes]
"""Chain, handle, and what the rule says."""


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain that the kernel calls. ``name`` as nft has it: family, table, chain."""

    name: str
    handle: int
    hook: int
    priority: int
    policy: int


def find(name: str) -> BaseChain | None:
    """Raises: KernelRefused."""
    family, table, chain = name.split(" ", 2)
    bodies = get(name, NFT_MSG_GETCHAIN, family, attribute(1, table) + attribute(3, chain))
    return next((found for body in bodies if (found := _base_chain(family, body))), None)


def on_hook(hook: int) -> list[BaseChain]:
    """All of them, of IPv4, IPv6 and both. Raises: KernelRefused."""
    chains = [_base_chain(family, body) for family in FAMILIES for body in dump(family, NFT_MSG_GETCHAIN, family, b"")]
    return [chain for chain in chains if chain is not None and chain.hook == hook]


def is_awake_with(table: str, uses: int) -> bool:
    """Whether the table is not dormant and holds this many chains, sets and other objects. Raises: KernelRefused."""
    family, name = table.split(" ", 1)
    found = [dict(attributes(body)) for body in get(table, NFT_MSG_GETTABLE, family, attribute(1, name))]
    return bool(found) and _number(found[0].get(2)) == 0 and _number(found[0].get(3)) == uses  # NFTA_TABLE_FLAGS, _USE


def rules(table: str, chain: str = "") -> list[RuleContent]:
    """The rules of a table, or of one chain of it, in order; equal if and only if nobody changed them. Raises: KernelRefused.

    ``nft replace`` and ``iptables -R`` leave a rule its handle, so handles alone do not tell.
    """
    family, name = table.split(" ", 1)
    names = attribute(1, name) + (attribute(2, chain) if chain else b"")
    found = [dict(attributes(body)) for body in dump(table, NFT_MSG_GETRULE, family, names)]
    return [_content(rule) for rule in found if text_of(rule.get(1, b"")) == name]


def _content(rule: dict[int, bytes]) -> RuleContent:
    """NFTA_RULE_CHAIN 2, HANDLE 3, EXPRESSIONS 4, USERDATA 7; NFTA_EXPR_NAME 1. Counters count, and are no change."""
    expressions = (value for _, value in attributes(rule.get(4, b"")))
    kept = [value for value in expressions if text_of(dict(attributes(value)).get(1, b"")) != "counter"]
    return text_of(rule.get(2, b"")), _number(rule.get(3)), b"".join(kept) + rule.get(7, b"")


def dropping_forwarders(spared: Collection[str]) -> list[str]:
    """Base chains that drop what is forwarded, by policy or by a last rule without a condition, in words.

    Args:
        spared: names of chains that are not looked at.

    Raises: KernelRefused, NotAvailable.
    """
    found = []
    for chain in on_hook(NF_INET_FORWARD):
        if chain.name in spared:
            continue
        if chain.policy == NF_DROP:
            found.append(f'"{chain.name}" (its policy is drop)')
            continue
        with libnftables.borrowed() as handle:
            rules = handle.rules(chain.name)
        last = [key for part in (rules[-1].get("expr", ()) if rules else ()) for key in part if key not in _WITHOUT_DECISION]
        if last in (["drop"], ["reject"]):
            found.append(f'"{chain.name}" (its last rule is {last[0]})')
    return found


def _base_chain(family: str, body: bytes) -> BaseChain | None:
    """NFTA_CHAIN_TABLE 1, HANDLE 2, NAME 3, HOOK 4, POLICY 5; NFTA_HOOK_HOOKNUM 1, PRIORITY 2."""
    parts = dict(attributes(body))
    if 4 not in parts:
        return None
    hook = dict(attributes(parts[4]))
    name = f"{family} {text_of(parts.get(1, b''))} {text_of(parts.get(3, b''))}"
    priority = int.from_bytes(hook.get(2, b""), "big", signed=True)
    return BaseChain(name, _number(parts.get(2)), _number(hook.get(1)), priority, _number(parts.get(5)))


def _number(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "big")
