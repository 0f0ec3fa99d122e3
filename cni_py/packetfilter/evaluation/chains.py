"""Chains of rules, of nftables and of iptables, and the reader of nft's JSON: pure.

Source: nft(8), libnftables-json(5); linux include/uapi/linux/netfilter_ipv4.h (priorities), net/netfilter/nf_nat_core.c.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cni_py.packetfilter.evaluation.expressions import Compiler
from cni_py.packetfilter.evaluation.statements import ACCEPT, UNEXPECTED, UNREADABLE, steps_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from cni_py.packetfilter.evaluation.expressions import Json
    from cni_py.packetfilter.evaluation.statements import Step

FAMILIES = {4: ("inet", "ip"), 6: ("inet", "ip6")}
"""Families whose chains see packets of a version."""
NAT_PRIORITY = {"prerouting": -100, "output": -100, "forward": 1 << 31, "input": 100, "postrouting": 100}
"""Priorities at which the kernel translates, or undoes a translation."""
NFTABLES = "nftables"
_CONNTRACK_PRIORITY = -200
"""Priority at which connection tracking finds a packet's connection."""

ChainName = tuple[str, str]
"""Table and chain, as messages name them: ``inet cni_py``, ``masq4``; ``iptables-legacy nat``, ``POSTROUTING``."""


class Rule:
    """A rule. ``text``: as nft or iptables-save prints it; ``handle``: 0 of iptables.

    ``read`` returns its expressions, when a packet first meets it.
    """

    __slots__ = ("_read", "_steps", "handle", "text")

    def __init__(self, text: str, handle: int, read: Callable[[], Sequence[Json]]) -> None:
        self.text, self.handle, self._read = text, handle, read
        self._steps: tuple[Step, ...] | None = None

    def steps(self, compiler: Compiler) -> tuple[Step, ...]:
        if self._steps is None:
            try:
                self._steps = steps_of(self._read(), self.text, compiler)
            except UNEXPECTED:
                self._steps = (UNREADABLE,)
        return self._steps


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """A chain. ``hook`` "": no base chain; ``kind``: filter, nat or route; ``devices``: if it is for some links alone."""

    family: str
    table: str
    name: str
    hook: str = ""
    priority: int = 0
    kind: str = ""
    policy: str = ACCEPT
    devices: tuple[str, ...] = ()
    rules: list[Rule] = field(default_factory=list)
    compiler: Compiler = field(default_factory=Compiler, repr=False)

    def __str__(self) -> str:
        return f"{self.table} {self.name}"

    @property
    def program(self) -> str:
        """Return ``nftables``, or the program whose chain it is, such as ``iptables-legacy``."""
        owner = self.table.partition(" ")[0]
        return NFTABLES if owner == self.family else owner

    @property
    def is_before_tracking(self) -> bool:
        return self.hook == "ingress" or (self.hook in ("prerouting", "output") and self.priority < _CONNTRACK_PRIORITY)

    @property
    def order(self) -> tuple[int, int, int]:
        """Its place among the chains of a hook: all of the kind nat run where translation does, by their priority."""
        if self.kind == "nat":
            return NAT_PRIORITY.get(self.hook, self.priority), 0, self.priority
        return self.priority, 1, 0


def of_nftables(
    objects: Sequence[Json], texts: Mapping[tuple[str, str, str, int], str], without: Collection[str]
) -> list[Chain]:
    """Return the chains of ``nft -j list ruleset``.

    Args:
        without: chains that are read elsewhere, as ``ip filter FORWARD``.
    """
    elements: dict[str, dict[str, list[Any]]] = {}
    for of in (of for entry in objects for kind, of in entry.items() if kind in ("set", "map")):
        elements.setdefault(f"{of['family']} {of['table']}", {})[of["name"]] = of.get("elem", [])
    compilers: dict[str, Compiler] = {}
    chains: dict[str, Chain] = {}
    for kind, of in ((kind, of) for entry in objects for kind, of in entry.items()):
        if kind == "chain":
            table = f"{of['family']} {of['table']}"
            compiler = compilers.setdefault(table, Compiler(elements.get(table)))
            chains[f"{table} {of['name']}"] = _chain(of, table, compiler)
        elif kind == "rule" and (chain := chains.get(f"{of['family']} {of['table']} {of['chain']}")) is not None:
            text = texts.get((of["family"], of["table"], of["chain"], of["handle"]), "")
            chain.rules.append(Rule(text, of["handle"], lambda of=of: of.get("expr", [])))  # type: ignore[misc]
    return [chain for name, chain in chains.items() if name not in without]


def _chain(of: Json, table: str, compiler: Compiler) -> Chain:
    device = of.get("dev", ())
    return Chain(
        of["family"],
        table,
        of["name"],
        of.get("hook", ""),
        of.get("prio", 0),
        of.get("type", ""),
        of.get("policy", ACCEPT),
        (device,) if isinstance(device, str) else tuple(device),
        compiler=compiler,
    )
