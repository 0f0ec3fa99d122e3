"""Command ``cni-py doctor``: what is wrong with this node's pod network, why it matters, and the command that repairs it.

The facts are read and the rules evaluated in cni_py/doctor/; this module knows the command line, and what POD, IP or NODE is.
Changes nothing, unless ``--fix`` is given.
"""

from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from cni_py.cli import attachments
from cni_py.cli.explain import print_lines
from cni_py.cli.output import as_typed, print_error, say, show, show_json
from cni_py.cli.verbs import DEFAULT_NETCONF_PATH, cni_path, setting
from cni_py.doctor import examine, gather, repair, text
from cni_py.doctor.catalogue import RULES
from cni_py.doctor.gather_pods import Asked
from cni_py.errors import CniError
from cni_py.kernel.address import list_host_addresses
from cni_py.netlink.socket import open_host
from cni_py.plural import counted
from cni_py.runtime.result_cache import CACHE_DIR

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from cni_py.doctor.facts import Facts
    from cni_py.doctor.findings import Report

EXIT_COULD_NOT_LOOK = 3
MOST_PODS = 250
"""Pods whose interfaces are read where none was named: the last that were attached."""


def run(options: argparse.Namespace) -> int:
    """Examine this node. Returns: 0 nothing found, 1 warnings, 2 errors, 3 something was not checked, or an unknown POD."""
    if options.rules:
        return _list_rules(options)
    try:
        request, about = _request(options)
    except CniError as error:
        if options.json:
            show_json({"error": {"code": error.code, "msg": error.msg, "details": error.details, "hint": error.hint}})
        print_error(error)
        return EXIT_COULD_NOT_LOOK
    facts, report = _examine(request, about)
    if options.fix or options.dry_run:
        facts, report = _fix(options, request, about, facts, report)
    if options.json:
        show_json(report.as_json())
    else:
        typed = replace(report, findings=tuple(_as_typed(report)))
        print_lines(lambda width: text.render(typed, width))
    if options.bundle:
        _bundle(options.bundle, facts, report)
    return report.status


def _as_typed(report: Report) -> Iterator:  # type: ignore[type-arg]
    for finding in report.findings:
        yield replace(finding, repair=tuple(map(as_typed, finding.repair)))


def _examine(request: gather.Request, about: frozenset[str]) -> tuple[Facts, Report]:
    again = replace(request, probes=False)

    def look_again(before: Facts) -> Facts:
        return replace(gather.gather(again), probed=before.probed)

    return examine.examine(lambda: gather.gather(request), RULES, about, look_again=look_again)


def _fix(
    options: argparse.Namespace, request: gather.Request, about: frozenset[str], facts: Facts, report: Report
) -> tuple[Facts, Report]:
    """Run what may be run, and examine the node again."""
    wanted = repair.commands(report.findings)
    if not options.json:
        for command, rules in wanted.items():
            show(
                f"{'would run' if options.dry_run else 'run'}: {repair.in_words(command)}  ({', '.join(dict.fromkeys(rules))})"
            )
        if not wanted:
            show("nothing to run: no finding has a command that may be run without a decision")
        show("")
    if options.dry_run or not wanted:
        return facts, report
    fixed = repair.run(report.findings, lambda _: None)
    for one in fixed:
        if one.outcome != repair.DONE:
            say(f"failed: {repair.in_words(one.command)}: {one.outcome}")
    facts, report = _examine(request, about)
    return facts, replace(report, fixed=tuple(one.as_json() for one in fixed))


def _bundle(path: str, facts: Facts, report: Report) -> None:
    """Raises: IOFailure."""
    from cni_py.cli import host_report
    from cni_py.doctor import bundle

    names = bundle.write(path, facts, report, host_report.report(facts.cni_path))
    say(f"wrote {path}: {counted(len(names), 'file')}, without the secrets that were recognized; read it before you send it")


def _list_rules(options: argparse.Namespace) -> int:
    if options.json:
        show_json(
            [
                {"rule": one.name, "severity": one.severity, "checks": one.checks, "why": one.why, "fix": one.fixes}
                for one in RULES
            ]
        )
        return 0
    for one in RULES:
        show(f"{one.name} ({one.severity})")
        show(f"    {one.checks}")
    return 0


# ---- POD, IP or NODE ----------------------------------------------------------------------------


def _request(options: argparse.Namespace) -> tuple[gather.Request, frozenset[str]]:
    """Return what is to be read, and the names of what was asked about. Raises: CniError if it is unknown."""
    directory = setting(options.netconf_path, "NETCONFPATH", DEFAULT_NETCONF_PATH)
    request = gather.Request(conf_directory=directory, cni_path=tuple(cni_path(options)), probes=not options.no_probes)
    word = options.target
    if not word:
        try:
            live = [one for one in attachments.known(options.cache_dir) if one.state == attachments.LIVE]
        except (CniError, OSError) as error:
            reason = "it requires root" if os.geteuid() else str(error)
            return replace(request, pods_fault=reason), frozenset()
        return replace(request, pods=tuple(_asked(one, request, options) for one in live[-MOST_PODS:])), frozenset()
    found = _attachments(word, options.cache_dir)
    if found:
        asked = tuple(replace(_asked(one, request, options), with_check=True, error=one.error) for one in found)
        return replace(request, pods=asked), frozenset(name for one in asked for name in one.names)
    peers, note = _peers(word)
    return replace(request, peers=peers, notes=(note,) if note else ()), peers


def _asked(one: attachments.Known, request: gather.Request, options: argparse.Namespace) -> Asked:
    """Return what to read of an attachment: its interface from inside; no errors of before, and no plugin is executed."""
    return Asked(
        container_id=one.container_id,
        ifname=one.ifname,
        network=one.network,
        netns=one.netns,
        state=one.state,
        pod=one.pod,
        addresses=one.addresses,
        cni_path=request.cni_path,
        conf_directory=request.conf_directory,
        cache_dir=options.cache_dir,
        with_check=False,
    )


def _attachments(word: str, cache_dir: str = CACHE_DIR) -> list[attachments.Known]:
    path = os.path.abspath(word) if word.startswith(("/", "./", "../")) else word
    try:
        return attachments.select(attachments.known(cache_dir), attachments.as_address(path))
    except CniError:
        return []


def _peers(word: str) -> tuple[frozenset[str], str]:
    """Return the names of the node whose lease the word names: its address, its subnet, or an address in that; and a note.

    Raises: CniError.
    """
    facts = gather.known_only(subnet_file=gather.subnet_file_by_default())
    leases = list(facts.known.leases.values()) if facts.known else []
    for lease in leases:
        names = {str(name) for name in (*lease.subnets.each(), *lease.attributes.addresses)}
        if word in names:
            return frozenset(names), ""
        if not any(_is_in(word, subnet) for subnet in lease.subnets.each()):
            continue
        node = lease.attributes.addresses[0]
        if facts.known is None or lease.subnets != facts.known.own.subnets:
            return frozenset(
                names
            ), f"{word} is on node {node}: what is wrong there is seen there, run cni-py doctor {word} on it"
        if _is_of_host(word):
            return frozenset(names), ""
        details = f"it is in the subnet of this node, {lease.subnets}, and no pod of this node has it"
        raise CniError(f'unknown pod "{word}"', details, "list pods: cni-py explain")
    if os.geteuid():
        raise CniError(
            f'"{word}" cannot be looked up', "another user than root can read neither attachments nor leases", "run it as root"
        )
    nodes = ", ".join(str(lease.attributes.addresses[0]) for lease in leases[:10]) or "none"
    details = f"it is not an attachment of this node, and not a node or subnet of a lease; nodes: {nodes}"
    raise CniError(f'unknown pod or node "{word}"', details, "list pods: cni-py explain; one of another node is known there")


def _is_of_host(word: str) -> bool:
    """Return whether an address, or a network in other words, is one of this host."""
    with open_host() as host:
        return word in {str(at.address) for at in list_host_addresses(host)} or "/" in word


def _is_in(word: str, subnet: object) -> bool:
    try:
        address = ip_address(word)
    except ValueError:
        try:
            return ip_network(word) == subnet
        except ValueError:
            return False
    return address in subnet  # type: ignore[operator]  # a network
