"""flanneld's rules in the kernel: what is there, make it so, take it away. What they are is in ``flannel_rules.py``.

Owns ``table inet cni_py_flanneld``, and in iptables' tables the chains ``CNI-PY-FLANNEL-MASQ`` (nat) and
``CNI-PY-FLANNEL-FWD`` (filter) with the jumps to them; deletes those of Go flannel too.

How "is it still there" is answered. Not by the text that nft prints, for its versions print differently, but by
what the kernel holds, compared with what it held after we wrote it: 0.1 ms. That nobody came between writing and
reading is known from handles: the kernel numbers what comes into a table one by one, so ours follow on the chain's,
and have our comments. For iptables-nft the same comparison tells whether anything has changed since the program
was last asked; for legacy iptables it has to be asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from errno import ENOENT

from cni_py import program
from cni_py.errors import KernelRefused
from cni_py.netlink.constants import NF_ACCEPT, NF_INET_POST_ROUTING
from cni_py.packetfilter import forward_rules as rules
from cni_py.packetfilter import iptables, libnftables, nfnetlink, nft_chains
from cni_py.packetfilter.forward_rules import Pair
from cni_py.packetfilter.iptables import Iptables

FORWARDERS = ("ip filter FORWARD", "ip6 filter FORWARD")
"""iptables' own chains, as nft names them."""


Written = list[nft_chains.RuleContent]


# ---- nftables ---------------------------------------------------------------------------------


def stands(pairs: Iterable[Pair], written: Written, *, random_fully: bool) -> bool:
    """Whether our table holds what :func:`write` left. Raises: KernelRefused."""
    chain = nft_chains.find(rules.CHAIN)
    if chain is None or (chain.hook, chain.priority, chain.policy) != _POSTROUTING:
        return False
    if not nft_chains.is_awake_with(rules.TABLE, uses=1) or nft_chains.rules(*_OUR_CHAIN) != written:
        return False
    comments = [rules.nft_comment(rule, random_fully=random_fully) for rule in rules.nft_rules(pairs)]
    return nfnetlink.rule_handles(rules.CHAIN) == list(enumerate(comments, chain.handle + 1))


_OUR_CHAIN = (rules.TABLE, rules.CHAIN.rpartition(" ")[2])
_POSTROUTING = (NF_INET_POST_ROUTING, rules.PRIORITY, NF_ACCEPT)


def write(pairs: Iterable[Pair], *, random_fully: bool) -> Written:
    """Leave in our table exactly what should be, and answer what is in it then. Raises: KernelRefused, NotAvailable."""
    with libnftables.borrowed() as handle:
        handle.run("; ".join(rules.nft_commands(pairs, random_fully=random_fully)))
    return nft_chains.rules(*_OUR_CHAIN)


def delete_table(name: str) -> bool:
    """Whether it was there; absence is success. Raises: KernelRefused."""
    if not libnftables.deletable(name):
        return False
    try:
        with libnftables.borrowed() as handle:
            handle.run(f"delete table {name}")
    except KernelRefused as error:
        if error.errno != ENOENT:
            raise
    return True


# ---- iptables ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """A chain, and the chain of the same table that jumps to it."""

    tool: Iptables
    table: str
    chain: str
    parent: str

    @property
    def nft_table(self) -> str:
        return f"{'ip' if self.tool.version == 4 else 'ip6'} {self.table}"

    def fingerprint(self, *, whole: bool = False) -> object | None:
        """What differs after any change: to both chains, or to the whole table. ``None``: the kernel cannot be asked."""
        if self.tool.flavour != "-nft":
            return None
        parent = nft_chains.find(f"{self.nft_table} {self.parent}")
        if whole:
            return parent, nft_chains.rules(self.nft_table)
        return parent, [nft_chains.rules(self.nft_table, chain) for chain in (self.parent, self.chain)]

    def put(self, wanted: Sequence[str], *, first: bool) -> bool:
        """Make it so; whether it was not. Raises: CniError."""
        around = self.tool.rules(self.parent, self.table) or []
        inside = self.tool.rules(self.chain, self.table) or []
        commands = rules.commands(self.chain, self.parent, wanted, inside, around, first=first)
        if commands:
            self.tool.apply(commands, self.table)
        return bool(commands)

    def delete(self) -> None:
        """Absence is success. Raises: CniError."""
        iptables.delete(self.tool, self.chain, parent=self.parent, table=self.table)


def masquerade_place(tool: Iptables, chain: str = rules.MASQUERADE_CHAIN) -> Place:
    return Place(tool, "nat", chain, "POSTROUTING")


def accept_place(tool: Iptables, chain: str = rules.FORWARD_CHAIN) -> Place:
    return Place(tool, "filter", chain, "FORWARD")


def default_tool(version: int) -> Iptables:
    """The host's iptables, with its flavour in the name. Raises: NotAvailable, CouldNotRun."""
    plain = Iptables(version)
    return plain.replace(flavour=_flavour(plain.path()))


def is_installed(tool: Iptables) -> bool:
    """Whether there is a program of this flavour: where there is one only, it answers to every name. Raises: CouldNotRun."""
    path = tool.find()
    return path is not None and _flavour(path) == tool.flavour


_flavours: dict[str, str] = {}


def _flavour(path: str) -> str:
    if path not in _flavours:
        stdout = program.run_captured([path, "--version"])[1]
        _flavours[path] = "-nft" if b"nf_tables" in stdout else "-legacy"
    return _flavours[path]


def tools_with_forward(version: int) -> list[Iptables]:
    """Those whose FORWARD is in this namespace: they are not asked, for asking makes it."""
    found = [Iptables(version, "-nft")] if nfnetlink.exists(FORWARDERS[version == 6]) else []
    found += [Iptables(version, "-legacy")] if iptables.is_legacy(version, "filter") else []
    return [tool for tool in found if is_installed(tool)]


def dropping_forwarders() -> list[str]:
    """Who in nftables drops what is forwarded and cannot be overruled: all but those that iptables can change.

    Raises: CniError.
    """
    spared = [name for name, version in zip(FORWARDERS, (4, 6), strict=True) if is_installed(Iptables(version, "-nft"))]
    return nft_chains.dropping_forwarders(spared)


def present(masquerade_chain: str, forward_chain: str) -> list[Place]:
    """Where these chains are, of both families and flavours. Raises: CniError."""
    places = [
        place
        for version in (4, 6)
        for flavour in ("-nft", "-legacy")
        for place in (
            masquerade_place(Iptables(version, flavour), masquerade_chain),
            accept_place(Iptables(version, flavour), forward_chain),
        )
    ]
    return [place for place in places if _is_there(place)]


def _is_there(place: Place) -> bool:
    if place.tool.flavour == "-nft":
        return nfnetlink.exists(f"{place.nft_table} {place.chain}")
    if not iptables.is_legacy(place.tool.version, place.table) or not is_installed(place.tool):
        return False
    return place.tool.rules(place.chain, place.table) is not None
