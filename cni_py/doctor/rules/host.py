"""The host below the network: file systems, limits of the kernel, certificates, the clock; and the node in Kubernetes."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from cni_py.doctor.findings import ERROR, WARNING, Finding
from cni_py.doctor.rules import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_py.doctor.facts import Facts

_MIB = 1 << 20
_FULL_BYTES, _NEARLY_BYTES = _MIB, 16 * _MIB
_FULL_FILES, _NEARLY_FILES = 16, 256
_FULL_PERCENT, _NEARLY_PERCENT = 98, 85
_SOON = timedelta(days=30)
_LEASE = 24 * 3600.0
_AHEAD = 3600.0
"""Seconds by which a file may be younger than now: file systems of other machines have their own clock."""


def disk(facts: Facts) -> Iterator[Finding]:
    """File systems that plugins and flanneld write to."""
    for one in facts.disks:
        if one.is_read_only:
            yield Finding(
                f"the file system of {one.directory} is read-only", (), (f"see why: dmesg; mount | grep {one.directory}",)
            )
            continue
        states = (
            (one.total_bytes, one.free_bytes, _FULL_BYTES, _NEARLY_BYTES, f"{one.free_bytes // 1024} KiB are free"),
            (one.total_files, one.free_files, _FULL_FILES, _NEARLY_FILES, f"{one.free_files} inodes are free"),
        )
        for total, free, full, nearly, words in states:
            if not total or free >= nearly or (total < 8 * nearly and free >= full):
                continue
            yield Finding(
                f"the file system of {one.directory} is {'full' if free < full else 'nearly full'}",
                (words,),
                (f"find what fills it: du -xh {one.directory} | sort -h | tail",),
                severity=ERROR if free < full else WARNING,
            )
            break


def connections(facts: Facts) -> Iterator[Finding]:
    """The table of connections: the kernel drops new ones when it is full."""
    count, most = facts.counters.connections, facts.counters.max_connections
    if count is None or not most:
        return
    percent = count * 100 // most
    if percent >= _NEARLY_PERCENT:
        is_full = percent >= _FULL_PERCENT
        command = ("sysctl", "-w", f"net.netfilter.nf_conntrack_max={2 * most}")
        yield Finding(
            f"the table of connections is {'full' if is_full else 'nearly full'}",
            (f"nf_conntrack_count is {count}, nf_conntrack_max is {most}",),
            (" ".join(command), "see which address has most: conntrack -L"),
            (command,),
            severity=ERROR if is_full else WARNING,
        )


def neighbour_table(facts: Facts) -> Iterator[Finding]:
    """The ARP table of the kernel: new neighbours are refused when it is full."""
    count, most = facts.counters.neighbours, facts.counters.max_neighbours
    if count is None or not most:
        return
    permanent = len(facts.neighbours)  # they are not counted against the limit
    percent = max(count - permanent, 0) * 100 // most
    if percent >= _NEARLY_PERCENT:
        is_full = percent >= _FULL_PERCENT
        commands = tuple(
            ("sysctl", "-w", f"net.ipv4.neigh.default.gc_thresh{n}={v}") for n, v in ((3, 4 * most), (2, 2 * most))
        )
        yield Finding(
            f"the ARP table of the kernel is {'full' if is_full else 'nearly full'}",
            (f"it has {count - permanent} entries, and gc_thresh3 is {most}",),
            tuple(" ".join(command) for command in commands),
            commands,
            severity=ERROR if is_full else WARNING,
        )


def inotify(facts: Facts) -> Iterator[Finding]:
    if facts.counters.inotify_fault:
        command = ("sysctl", "-w", "fs.inotify.max_user_instances=8192")
        yield Finding(
            "no process can watch files any more",
            (f"inotify_init: {facts.counters.inotify_fault}",),
            (" ".join(command), "to keep it: echo fs.inotify.max_user_instances=8192 >/etc/sysctl.d/90-inotify.conf"),
            (command,),
        )


def certificate(facts: Facts) -> Iterator[Finding]:
    """Certificates for etcd that have ended, or end soon: within 30 days, or a fifth of their time if that is shorter."""
    for one in facts.certificates:
        words = f'the {one.what}, "{one.path}",'
        renew = f"put a new one there, it is read without a restart: openssl x509 -noout -dates -in {one.path}"
        if one.fault:
            yield Finding(f"{words} cannot be read", (one.fault,), (renew,))
        if one.begins is None or one.ends is None:
            continue
        left = one.ends - facts.now
        if left <= timedelta():
            yield Finding(f"{words} has expired", (f"it ended on {one.ends:%Y-%m-%d %H:%M} UTC",), (renew,))
        elif facts.now < one.begins:
            begins = f"it begins on {one.begins:%Y-%m-%d %H:%M} UTC, and now is {facts.now:%Y-%m-%d %H:%M} UTC"
            yield Finding(f"{words} is not valid yet", (begins,), ("check the clock: timedatectl", renew))
        elif left < min(_SOON, (one.ends - one.begins) / 5):
            days = f"it ends on {one.ends:%Y-%m-%d %H:%M} UTC, in {left.days} days"
            yield Finding(f"{words} ends soon", (days,), (renew,), severity=WARNING)


def clock(facts: Facts) -> Iterator[Finding]:
    """A clock that is behind files of this node, or behind what the lease says."""
    now, lines = facts.now.timestamp(), []
    if facts.newest_file > now + _AHEAD:
        lines.append(f"a file of this node was written {(facts.newest_file - now) / 3600:.1f} h from now")
    own = facts.known.own if facts.known else None
    if own is not None and own.expires is not None and own.expires - now > _LEASE + _AHEAD:
        lines.append(f"our lease, of 24 h at most, ends {(own.expires - now) / 3600:.1f} h from now")
    if lines:
        text = f"now is {facts.now:%Y-%m-%d %H:%M:%S} UTC"
        yield Finding("the clock of this node is wrong", (*lines, text), ("timedatectl; chronyc makestep",))


def datastore(facts: Facts) -> Iterator[Finding]:
    """A datastore that does not answer: the fact is not read, and the reason is the finding."""
    from cni_py.doctor import facts as names

    reason = facts.unread.get(names.DATASTORE, "")
    if reason:
        yield Finding(
            "flannel's datastore cannot be read",
            (reason,),
            ("with its own options: cni-py config leases -- OPTION ...", "see: journalctl -u flanneld"),
        )
    if facts.kubernetes is not None and facts.kubernetes.fault:
        yield Finding("the Kubernetes API cannot be read", (facts.kubernetes.fault,), ("kubectl get --raw /readyz",))


def kubernetes(facts: Facts) -> Iterator[Finding]:
    """The node's object: podCIDR, annotations, the condition NetworkUnavailable."""
    node = facts.kubernetes.node if facts.kubernetes else None
    if node is None:
        return
    if not node.pod_cidrs:
        patch = f'kubectl patch node {node.name} -p \'{{"spec": {{"podCIDR": "10.244.N.0/24"}}}}\''
        yield Finding(
            f'node "{node.name}" has no podCIDR',
            ("spec.podCIDRs is empty: flanneld has no subnet to use",),
            ("kube-controller-manager --allocate-node-cidrs=true --cluster-cidr=NETWORK", f"or by hand: {patch}"),
        )
    elif node.managed and node.fault:
        yield Finding(
            f'node "{node.name}": the annotations of flannel are incomplete',
            (node.fault, *shown(f"{key}: {value}" for key, value in node.annotations.items())),
            ("flanneld writes them again: kubectl -n kube-flannel delete pod (that of this node)",),
        )
    elif not node.managed and facts.runs:
        yield Finding(
            f'node "{node.name}" has no annotations of flannel',
            ("the other nodes do not route to it",),
            ("see why flanneld does not write them: kubectl -n kube-flannel logs (the pod of this node)",),
        )
    if node.network_unavailable:
        yield Finding(
            f'node "{node.name}" has the condition NetworkUnavailable',
            (node.network_unavailable,),
            ("flanneld clears it when it is ready; see its log: kubectl -n kube-flannel logs (the pod of this node)",),
        )


def kube_peers(facts: Facts) -> Iterator[Finding]:
    """Other nodes that flannel cannot use."""
    for node in facts.kubernetes.others if facts.kubernetes else ():
        if node.managed and node.fault:
            yield Finding(
                f'node "{node.name}" is not reached: {node.fault}',
                shown(f"{key}: {value}" for key, value in node.annotations.items()),
                ("run cni-py doctor on that node",),
                about=frozenset((node.name, *node.pod_cidrs)),
            )
