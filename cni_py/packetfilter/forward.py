"""flanneld's rules in the kernel: read, write, delete. forward_rules.py has their content.

Owns ``table inet cni_py_flanneld``, and in iptables' tables the chains ``CNI-PY-FLANNEL-MASQ`` (nat) and
``CNI-PY-FLANNEL-FWD`` (filter) with the jumps to them; deletes those of Go flannel too.

How a change is detected. What the kernel holds is compared with what it held after we wrote it, which takes 0.1 ms;
nft's output would not do, since its versions print differently. For iptables-nft the same comparison detects whether
anything has changed since the program was last run; legacy iptables has to be run each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from errno import ENOENT

from cni_py import program
from cni_py.errors import KernelRefused
from cni_py.netlink.constants import NF_ACCEPT, NF_DROP, NF_INET_FORWARD, NF_INET_POST_ROUTING
from cni_py.packetfilter import forward_rules as rules
from cni_py.packetfilter import iptables, libnftables, nfnetlink
from cni_py.packetfilter.forward_rules import Pair
from cni_py.packetfilter.iptables import Iptables
from cni_py.packetfilter.nfnetlink import BaseChain

FORWARDERS = ("ip filter FORWARD", "ip6 filter FORWARD")
"""iptables' own chains, as nft names them."""
_WITHOUT_DECISION = ("counter", "log")
Written = list[nfnetlink.RuleContent]


# ---- nftables ---------------------------------------------------------------------------------


def is_current(pairs: Iterable[Pair], written: Written, *, random_fully: bool) -> bool:
    """Return True if our table holds what :func:`write` returned. Raises: KernelRefused."""
    chain = nfnetlink.base_chain(rules.CHAIN)
    if chain is None or (chain.hook, chain.priority, chain.policy) != _POSTROUTING:
        return False
    if not nfnetlink.is_awake_with(rules.TABLE, uses=1) or nfnetlink.rule_contents(*_OUR_CHAIN) != written:
        return False
    # Another process may have changed the table between our writing and reading. The kernel numbers everything in a
    # table one by one: if all rules are ours, their handles directly follow the chain's.
    comments = [rules.nft_comment(rule, random_fully=random_fully) for rule in rules.nft_rules(pairs)]
    return nfnetlink.rule_handles(rules.CHAIN) == list(enumerate(comments, chain.handle + 1))


_OUR_CHAIN = (rules.TABLE, rules.CHAIN.rpartition(" ")[2])
_POSTROUTING = (NF_INET_POST_ROUTING, rules.PRIORITY, NF_ACCEPT)


def write(pairs: Iterable[Pair], *, random_fully: bool) -> Written:
    """Replace the content of our table. Returns: its rules as the kernel holds them. Raises: KernelRefused, NotAvailable."""
    with libnftables.borrowed() as handle:
        handle.run("; ".join(rules.nft_commands(pairs, random_fully=random_fully)))
    return nfnetlink.rule_contents(*_OUR_CHAIN)


def delete_table(name: str) -> bool:
    """Returns: whether it existed; absence is success. Raises: KernelRefused."""
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
class ChainSlot:
    """A chain of iptables, and the chain of the same table that jumps to it."""

    tool: Iptables
    table: str
    chain: str
    parent: str

    def __str__(self) -> str:
        return f"{self.tool.name} -t {self.table}, chain {self.chain}"

    @property
    def nft_table(self) -> str:
        return f"{'ip' if self.tool.version == 4 else 'ip6'} {self.table}"

    def fingerprint(self, *, whole: bool = False) -> object | None:
        """A value that any change to both chains, or to the whole table, alters. None: unknown, with legacy iptables."""
        if self.tool.flavour != "-nft":
            return None
        parent = nfnetlink.base_chain(f"{self.nft_table} {self.parent}")
        if whole:
            return parent, nfnetlink.rule_contents(self.nft_table)
        return parent, [nfnetlink.rule_contents(self.nft_table, chain) for chain in (self.parent, self.chain)]

    def apply(self, wanted: Sequence[str], *, first: bool) -> bool:
        """Write the chain and the jump to it. Returns: whether they had to be changed. Raises: CniError."""
        around = self.tool.rules(self.parent, self.table) or []
        inside = self.tool.rules(self.chain, self.table) or []
        commands = rules.commands(self.chain, self.parent, wanted, inside, around, first=first)
        if commands:
            self.tool.apply(commands, self.table)
        return bool(commands)

    def delete(self) -> None:
        """Absence is success. Raises: CniError."""
        iptables.delete(self.tool, self.chain, parent=self.parent, table=self.table)


def masquerade_slot(tool: Iptables, chain: str = rules.MASQUERADE_CHAIN) -> ChainSlot:
    return ChainSlot(tool, "nat", chain, "POSTROUTING")


def accept_slot(tool: Iptables, chain: str = rules.FORWARD_CHAIN) -> ChainSlot:
    return ChainSlot(tool, "filter", chain, "FORWARD")


def default_tool(version: int) -> Iptables:
    """The host's iptables, with its flavour in the name. Raises: NotAvailable, CouldNotRun."""
    plain = Iptables(version)
    return plain.replace(flavour=_flavour(plain.path()))


def is_installed(tool: Iptables) -> bool:
    """Return True if a program of this flavour is installed. Raises: CouldNotRun."""
    # Asked for its version: where only one flavour is installed, it is found under every name.
    path = tool.find()
    return path is not None and _flavour(path) == tool.flavour


_flavours: dict[str, str] = {}


def _flavour(path: str) -> str:
    if path not in _flavours:
        stdout = program.run_captured([path, "--version"])[1]
        _flavours[path] = "-nft" if b"nf_tables" in stdout else "-legacy"
    return _flavours[path]


def tools_with_forward(version: int) -> list[Iptables]:
    """Programs whose FORWARD exists in this namespace."""
    # Not by running them: that would create it.
    found = [Iptables(version, "-nft")] if nfnetlink.exists(FORWARDERS[version == 6]) else []
    found += [Iptables(version, "-legacy")] if iptables.is_legacy(version, "filter") else []
    return [tool for tool in found if is_installed(tool)]


def dropping_forwarders() -> list[str]:
    """nftables chains that drop forwarded packets, by policy or by a last rule without a condition, in words.

    They cannot be overruled; those that iptables can change are left out.

    Raises: CniError.
    """
    excluded = [name for name, version in zip(FORWARDERS, (4, 6), strict=True) if is_installed(Iptables(version, "-nft"))]
    chains = [chain for chain in nfnetlink.base_chains(NF_INET_FORWARD) if chain.name not in excluded]
    return [f'"{chain.name}" ({why})' for chain in chains if (why := _why_dropping(chain))]


def _why_dropping(chain: BaseChain) -> str:
    """Return the reason in words; "": it does not. Raises: KernelRefused, NotAvailable."""
    if chain.policy == NF_DROP:
        return "its policy is drop"
    with libnftables.borrowed() as handle:
        rules = handle.rules(chain.name)
    last = [key for part in (rules[-1].get("expr", ()) if rules else ()) for key in part if key not in _WITHOUT_DECISION]
    return f"its last rule is {last[0]}" if last in (["drop"], ["reject"]) else ""


def present(masquerade_chain: str, forward_chain: str) -> list[ChainSlot]:
    """The slots in which these chains exist, of both families and flavours. Raises: CniError."""
    slots = [
        slot
        for version in (4, 6)
        for flavour in ("-nft", "-legacy")
        for slot in (
            masquerade_slot(Iptables(version, flavour), masquerade_chain),
            accept_slot(Iptables(version, flavour), forward_chain),
        )
    ]
    return [slot for slot in slots if _exists(slot)]


def _exists(slot: ChainSlot) -> bool:
    if slot.tool.flavour == "-nft":
        return nfnetlink.exists(f"{slot.nft_table} {slot.chain}")
    if not iptables.is_legacy(slot.tool.version, slot.table) or not is_installed(slot.tool):
        return False
    return slot.tool.rules(slot.chain, slot.table) is not None
