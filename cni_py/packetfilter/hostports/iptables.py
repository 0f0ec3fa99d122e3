"""Host ports by iptables, in the form of the Go plugin: on hosts without nftables, or for ``externalSetMarkChain``.

Owns, in the table ``nat`` of IPv4 and IPv6: a chain ``CNI-DN-<hash>`` per attachment and the rules of
``CNI-HOSTPORT-DNAT`` that jump to it; shared ``CNI-HOSTPORT-DNAT``, ``-SETMARK``, ``-MASQ`` and the jumps to
them. Go's DEL deletes ours, ours deletes Go's.

A change is one ``iptables-restore --noflush``. The jump to a new attachment is inserted before all
others: the newest mapping of a port wins (the Go plugin appends: the oldest wins). Go-compatible:
plugins/meta/portmap/portmap_iptables.go, chain.go. The chain's name does not depend on the interface.
"""

from __future__ import annotations

from cni_py.errors import KernelRefused
from cni_py.journal import note
from cni_py.packetfilter import iptables
from cni_py.packetfilter.iptables import Iptables, missing_lines, quoted
from cni_py.packetfilter.ownership import digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.packetfilter.hostports.rules import Mapping, Wanted
    from cni_py.packetfilter.ownership import Owner

DNAT, SETMARK, MASQUERADE, OLD_SNAT = "CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SNAT"
COMMENT = "dnat "
_MAX_COMMENT = 255
_PORTS_PER_RULE = 15  # of the match "multiport"
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./:,!")
_ANYWHERE = {4: "0.0.0.0/0", 6: "::/0"}


def dnat_chain(owner: Owner) -> str:
    """The attachment's chain. Go-compatible: pkg/utils/utils.go, MustFormatChainNameWithPrefix."""
    return f"CNI-DN-{digest(owner.network + owner.container_id)[:21]}"


def old_snat_chain(owner: Owner) -> str:
    """A chain that Go plugins before 0.8 created."""
    return f"CNI-SN-{digest(owner.network + owner.container_id)[:21]}"


# ---- rules, pure ------------------------------------------------------------------------------


def comment(owner: Owner) -> str:
    text = COMMENT + owner.go_comment()
    return text if len(text) <= _MAX_COMMENT else text[:253] + "..."


def inside(wanted: Wanted, version: int) -> list[str]:
    """The rules in the attachment's chain, as ``iptables -S`` prints them."""
    chain = dnat_chain(wanted.owner)
    return [f"-A {chain} {rule}" for mapping in wanted.of(version) for rule in _rules(mapping, wanted)]


def _rules(mapping: Mapping, wanted: Wanted) -> list[str]:
    """Mark the sources to masquerade, then translate."""
    to = f"-d {mapping.host_address}/{mapping.pod.max_prefixlen} " if mapping.host_address else ""
    port = f"{to}-p {mapping.protocol} -m {mapping.protocol} --dport {mapping.host_port}"
    pod = f"[{mapping.pod.ip}]" if mapping.version == 6 else str(mapping.pod.ip)
    sources = []
    if wanted.snat:
        sources = [str(mapping.pod.network)] + ["127.0.0.1/32"] * (mapping.version == 4)
        sources = [_ANYWHERE[mapping.version]] if wanted.masq_all else sources
    mark = f"{port} -j {wanted.set_mark_chain or SETMARK}"
    marks = [mark if source == _ANYWHERE[mapping.version] else f"-s {source} {mark}" for source in sources]
    return [*marks, f"{port} -j DNAT --to-destination {pod}:{mapping.pod_port}"]


def jumps(wanted: Wanted, version: int) -> list[str]:
    """The jumps to the attachment's chain. Go-compatible: they name every port, of the other IP version too."""
    chain, lines = dnat_chain(wanted.owner), []
    conditions = "".join([f"{word if _PLAIN.issuperset(word) else quoted(word)} " for word in wanted.words(version)])
    for protocol in sorted({protocol for protocol, _ in wanted.ports}):
        ports = [str(port) for of, port in wanted.ports if of == protocol]
        for first in range(0, len(ports), _PORTS_PER_RULE):
            some = ",".join(ports[first : first + _PORTS_PER_RULE])
            match = f"-m comment --comment {quoted(comment(wanted.owner))} -m multiport --dports {some}"
            lines.append(f"-A {DNAT} -p {protocol} {match} {conditions}-j {chain}")
    return lines


def shared(wanted: Wanted) -> dict[str, list[str]]:
    """The rules of the shared chains, by chain."""
    to_host = f"-m addrtype --dst-type LOCAL -j {DNAT}"
    lines = {DNAT: [], "PREROUTING": [f"-A PREROUTING {to_host}"], "OUTPUT": [f"-A OUTPUT {to_host}"]}
    if wanted.snat and not wanted.set_mark_chain:
        mark = f"{1 << wanted.mark_bit:#x}/{1 << wanted.mark_bit:#x}"
        lines[SETMARK] = [f'-A {SETMARK} -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark {mark}']
        lines[MASQUERADE] = [f"-A {MASQUERADE} -m mark --mark {mark} -j MASQUERADE"]
        # Inserted first: rules of bridge and ptp end the traversal of the table.
        lines["POSTROUTING"] = [f'-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j {MASQUERADE}']
    return lines


# ---- changes ----------------------------------------------------------------------------------


def add(wanted: Wanted) -> None:
    """Map the ports, each IP version in one step. Idempotent. Raises: NotAvailable, KernelRefused."""
    for version in wanted.versions:
        tool = Iptables(version)
        there = tool.table()
        try:
            tool.apply(add_commands(wanted, version, there))
        except KernelRefused as refused:
            if not wanted.set_mark_chain or wanted.set_mark_chain in there:
                raise
            raise KernelRefused(
                f'the kernel refused: {tool.name} has no chain "{wanted.set_mark_chain}", which "externalSetMarkChain" names',
                refused.details,
                "kube-proxy creates KUBE-MARK-MASQ in its mode iptables; without it, leave the key out",
                refused.errno,
            ) from refused


def add_commands(wanted: Wanted, version: int, there: dict[str, list[str]]) -> list[str]:
    """The commands that map the ports, given the chains that exist. Pure, except for notes in the journal."""
    chain = dnat_chain(wanted.owner)
    commands = []
    for name, lines in shared(wanted).items():
        commands += [f":{name} - [0:0]"] if name not in there else []
        for line in missing_lines(lines, there.get(name, [])):
            commands.append(line if name != "POSTROUTING" else "-I POSTROUTING 1" + line.removeprefix("-A POSTROUTING"))
    entries = there.get(DNAT, [])
    old = ["-D" + line.removeprefix("-A") for line in entries if line.endswith(f" -j {chain}")]
    new = [f"-I {DNAT} 1" + line.removeprefix(f"-A {DNAT}") for line in reversed(jumps(wanted, version))]
    _note_others([line for line in entries if not line.endswith(f" -j {chain}")], wanted)
    return [*commands, f":{chain} - [0:0]", *inside(wanted, version), *old, *new]


def _note_others(entries: list[str], wanted: Wanted) -> None:
    """Note the ports that other attachments have had."""
    for line in entries:
        theirs = line.partition(" --dports ")[2].partition(" ")[0].split(",")
        for protocol, port in wanted.ports:
            if str(port) in theirs and f" -p {protocol} " in line:
                whose = line.partition('--comment "')[2].partition('" -m ')[0].replace('\\"', '"')
                note(f'host port {protocol} {port} reassigned from {whose or line} to "{wanted.owner}"')


def missing(wanted: Wanted) -> list[str]:
    """Missing rules, as ``-A`` lines. Conditions are not compared: iptables prints them in its own way."""
    found: list[str] = []
    bare = wanted.replace(conditions=())
    for version in wanted.versions:
        there = Iptables(version).table()
        entries = [set(line.split()) for line in there.get(DNAT, [])]
        found += missing_lines(inside(wanted, version), there.get(dnat_chain(wanted.owner), []))
        found += [line for line in jumps(bare, version) if not any(entry >= set(line.split()) for entry in entries)]
        for name, lines in shared(wanted).items():
            found += missing_lines(lines, there.get(name, []))
    return found


def made(owner: Owner) -> bool:
    """Return whether this attachment's mappings are in iptables: from the Go plugin, or from us on a host without nftables."""
    return bool(iptables.tools_with(dnat_chain(owner)))


def delete(owner: Owner) -> bool:
    """Delete the attachment's chains; absence is success. Returns: whether there was one. Raises: KernelRefused."""
    found = False
    for chain, parent in ((dnat_chain(owner), DNAT), (old_snat_chain(owner), OLD_SNAT)):
        for tool in iptables.tools_with(chain):
            found = True
            iptables.delete(tool, chain, parent=parent)
    return found


def delete_stale(network: str, valid_ids: frozenset[str]) -> None:
    """Delete the chains of this network's containers that are not valid. Raises: KernelRefused."""
    iptables.delete_stale(network, valid_ids, DNAT, COMMENT)
