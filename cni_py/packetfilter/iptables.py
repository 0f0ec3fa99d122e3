"""Masquerading by iptables, in the form of the Go plugins: a chain per attachment in the ``nat`` table.

Owns: chains ``CNI-<hash>`` and the rules of POSTROUTING that jump to them, ours and those that the
Go plugins created for the same attachment; IPv4 and IPv6, iptables-nft and iptables-legacy.

How it works. A change is one ``iptables-restore --noflush``: all of it or nothing. Rules in nftables are deleted
through libnftables (0.3 ms instead of 55), others by the program. Rules are compared as ``iptables -S`` prints them,
without regard to the order of words.

Go-compatible: pkg/ip/ipmasq_iptables_linux.go. The chain's name does not depend on the interface: two
interfaces of one container on one network share a chain, and their jumps differ by address.
"""

from __future__ import annotations

from errno import EINVAL

from cni_py import program
from cni_py.errors import KernelRefused, NotAvailable
from cni_py.files import read
from cni_py.journal import quote, step
from cni_py.packetfilter import libnftables, nfnetlink
from cni_py.packetfilter.masquerade_ruleset import MULTICAST, excluded_networks
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import Any

    from cni_py.packetfilter.masquerade_ruleset import Interface, Network
    from cni_py.packetfilter.ownership import Owner

IPTABLES_HINT = "is there an iptables for this kernel? iptables -t nat -S"
_ABSENT = 1  # exit status of iptables -S where there is no such chain


class Iptables(Value):
    """One of the programs: ``iptables`` or ``ip6tables``, of a flavour (``-nft``, ``-legacy``, or the host's default)."""

    version: int
    flavour: str = ""

    @property
    def name(self) -> str:
        return f"{'iptables' if self.version == 4 else 'ip6tables'}{self.flavour}"

    def find(self, suffix: str = "") -> str | None:
        """The program's path; if it is not installed, that of the one without a flavour in its name."""
        plain = self.name.removesuffix(self.flavour)
        return program.find_system(self.name + suffix) or program.find_system(plain + suffix)

    def path(self, suffix: str = "") -> str:
        """Raises: NotAvailable if it is not installed."""
        path = self.find(suffix)
        if path is None:
            raise NotAvailable(f'"{self.name}{suffix}" is not installed', hint="install iptables")
        return path

    def rules(self, chain: str, table: str = "nat") -> list[str] | None:
        """The ``-A`` lines of a chain; None: no such chain."""
        argv = [self.path(), "-w", "-t", table, "-S", chain]
        status, stdout, stderr = program.run_captured(argv)
        if status == _ABSENT:
            return None
        if status:
            raise KernelRefused(
                f'could not read the chain "{chain}": {program.describe(status)}', f"{' '.join(argv)}: {stderr}"
            )
        return [line for line in stdout.decode(errors="replace").splitlines() if line.startswith("-A ")]

    def listing(self, table: str = "nat") -> list[str]:
        """The whole table, as ``-P``, ``-N`` and ``-A`` lines."""
        argv = [self.path(), "-w", "-t", table, "-S"]
        status, stdout, stderr = program.run_captured(argv)
        if status:
            raise KernelRefused(
                f'could not read the table "{table}": {program.describe(status)}', f"{' '.join(argv)}: {stderr}", IPTABLES_HINT
            )
        return stdout.decode(errors="replace").splitlines()

    def table(self, table: str = "nat") -> dict[str, list[str]]:
        """The chains of a table, each with its ``-A`` lines, by one run of the program."""
        chains: dict[str, list[str]] = {}
        for line in self.listing(table):
            word, chain = line.split(" ", 2)[:2]
            lines = chains.setdefault(chain, [])
            if word == "-A":
                lines.append(line)
        return chains

    def apply(self, lines: list[str], table: str = "nat") -> None:
        """Run commands for a table, all or nothing."""
        lines = [f"*{table}", *lines, "COMMIT"]
        argv = [self.path("-restore"), "-w", "--noflush"]
        change = step(*argv)
        change.line = " ".join(["printf '%s\\n'", *map(quote, lines), "|", *argv])
        with change:
            status, _, stderr = program.run_captured(argv, ("\n".join(lines) + "\n").encode())
            if status:
                raise OSError(EINVAL, f"{program.describe(status)}: {stderr}")


def add(owner: Owner, addresses: Sequence[Interface], exclude: Collection[Network] = ()) -> None:
    """Masquerade packets from these addresses, except to their subnets. Idempotent."""
    for version in (4, 6):
        mine = [address for address in addresses if address.version == version]
        if mine:
            _add(Iptables(version), owner, mine, exclude)


def _add(tool: Iptables, owner: Owner, addresses: Sequence[Interface], exclude: Collection[Network]) -> None:
    chain = owner.go_chain()
    inside, jumps = wanted(owner, addresses, exclude)
    there = tool.rules(chain)
    if there is not None:  # no jump to a missing chain can exist
        jumps = missing_lines(jumps, tool.rules("POSTROUTING") or [])
    # Another interface of this container shares the chain and has its subnet in it: that rule must survive.
    kept = [line for line in there or [] if line.endswith("-j ACCEPT")]
    commands = [f":{chain} - [0:0]", *kept, *missing_lines(inside, kept)] if missing_lines(inside, there or []) else []
    if commands or jumps:
        tool.apply(commands + jumps)


def wanted(owner: Owner, addresses: Sequence[Interface], exclude: Collection[Network] = ()) -> tuple[list[str], list[str]]:
    """The rules inside the chain, and the jumps to it, for addresses of one family: pure."""
    chain = owner.go_chain()
    comment = "-m comment --comment " + quoted(owner.go_comment())
    excluded = {network: None for address in addresses for network in (address.network, *excluded_networks(address, exclude))}
    inside = [f"-A {chain} -d {network} {comment} -j ACCEPT" for network in excluded]
    inside.append(f"-A {chain} ! -d {MULTICAST[addresses[0].version]} {comment} -j MASQUERADE")
    jumps = [f"-A POSTROUTING -s {address.ip}/{address.max_prefixlen} {comment} -j {chain}" for address in addresses]
    return inside, jumps


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def missing_lines(wanted_lines: list[str], there: list[str]) -> list[str]:
    """The lines that iptables did not print; it orders the words of a line in its own way."""
    known = [sorted(line.split()) for line in there]
    return [line for line in wanted_lines if sorted(line.split()) not in known]


def missing(owner: Owner, addresses: Sequence[Interface], exclude: Collection[Network] = ()) -> list[str]:
    """Missing rules of this attachment, as ``-A`` lines."""
    found: list[str] = []
    for version in (4, 6):
        mine = [address for address in addresses if address.version == version]
        if mine:
            tool, (inside, jumps) = Iptables(version), wanted(owner, mine, exclude)
            found += missing_lines(inside, tool.rules(owner.go_chain()) or [])
            found += missing_lines(jumps, tool.rules("POSTROUTING") or [])
    return found


# ---- deleting ---------------------------------------------------------------------------------


def tools_with(chain: str) -> list[Iptables]:
    """The programs whose tables hold this chain, or in the legacy form may hold it; none of them is run."""
    return [
        Iptables(v, "-nft") for v, family in ((4, "ip"), (6, "ip6")) if nfnetlink.exists(f"{family} nat {chain}")
    ] + legacy_tools()


def legacy_tools() -> list[Iptables]:
    """The programs for the legacy tables of this namespace; without an installed iptables, no rule was made with one."""
    return [tool for tool in (Iptables(4, "-legacy"), Iptables(6, "-legacy")) if is_legacy(tool.version) and tool.find()]


def is_legacy(version: int, table: str = "nat") -> bool:
    """Return whether this namespace has this table in its legacy form."""
    # Not by asking the program: that would create the table.
    name = "ip_tables_names" if version == 4 else "ip6_tables_names"
    try:
        return table.encode() in read(f"/proc/thread-self/net/{name}").split()
    except OSError:
        return False


def delete(
    tool: Iptables, chain: str, sources: Collection[str] = (), parent: str = "POSTROUTING", *, table: str = "nat"
) -> None:
    """Delete the jumps to the chain, and the chain if none is left; absence is success.

    Args:
        sources: addresses whose jumps are deleted; empty: all.
        parent: the chain that the jumps are in.
    """
    libnftables.retry(lambda: _delete(tool, chain, sources, parent, table))


def _delete(tool: Iptables, chain: str, sources: Collection[str], parent: str, table: str) -> None:
    if tool.flavour == "-nft" and not libnftables.works():
        with libnftables.borrowed() as handle:
            _delete_by_nft(handle, f"{'ip' if tool.version == 4 else 'ip6'} {table}", chain, sources, parent)
        return
    if tool.rules(chain, table) is None:
        return
    jumps = [line for line in tool.rules(parent, table) or [] if line.endswith(f" -j {chain}")]
    selected = [line for line in jumps if not sources or _source(line) in sources]
    commands = ["-D" + line.removeprefix("-A") for line in selected]
    if len(selected) == len(jumps):
        commands += [f"-F {chain}", f"-X {chain}"]
    if commands:
        tool.apply(commands, table)


def _source(line: str) -> str:
    return line.partition(" -s ")[2].partition(" ")[0].partition("/")[0]


def _delete_by_nft(handle: libnftables.Nft, table: str, chain: str, sources: Collection[str], parent: str) -> None:
    if not nfnetlink.exists(f"{table} {chain}"):
        return
    jumps = [rule for rule in handle.rules(f"{table} {parent}") if _jumps_to(rule, chain)]
    selected = [rule for rule in jumps if not sources or _source_of(rule) in sources]
    commands = [f"delete rule {table} {parent} handle {rule['handle']}" for rule in selected]
    if len(selected) == len(jumps):
        commands += [f"flush chain {table} {chain}", f"delete chain {table} {chain}"]
    if commands:
        handle.run("; ".join(commands))


def _jumps_to(rule: dict[str, Any], chain: str) -> bool:
    return any("jump" in part and part["jump"]["target"] == chain for part in rule.get("expr", []))


def _source_of(rule: dict[str, Any]) -> str:
    for part in rule.get("expr", []):
        match = part.get("match") or {}
        if (match.get("left") or {}).get("payload", {}).get("field") == "saddr":
            return str(match["right"])
    return ""


def delete_stale(network: str, valid_ids: Collection[str], parent: str = "POSTROUTING", kind: str = "") -> None:
    """Delete the chains whose comment names this network and a container that is not valid.

    Only those that a rule jumps to: others have no effect.

    Args:
        parent: the chain that the jumps are in.
        kind: the text before the name in their comments.
    """
    tools = [Iptables(v, "-nft") for v, family in ((4, "ip"), (6, "ip6")) if nfnetlink.exists(f"{family} nat {parent}")]
    for tool in [tool for tool in tools if tool.find()] + legacy_tools():
        for line in tool.rules(parent) or []:
            chain = line.rpartition(" -j ")[2]
            container_id = line.partition(f'"{kind}name: \\"{network}\\" id: \\"')[2].partition('\\"')[0]
            if container_id and chain.startswith("CNI-") and container_id not in valid_ids:
                delete(tool, chain, parent=parent)
