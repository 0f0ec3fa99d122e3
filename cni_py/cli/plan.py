"""Command ``cni-py plan``: what a call would do, explained; or as a shell script. Changes nothing.

The call is made in a copy of the host (cni_py/plan/), explained as any other (cni_py/explain/), and printed here.
"""

from __future__ import annotations

import re

from cni_py import __version__
from cni_py.cli import verbs
from cni_py.cli.explain import print_lines
from cni_py.cli.output import EXIT_FAILED, EXIT_UNKNOWN, print_error, say, show, show_json
from cni_py.errors import CheckFailed, CniError
from cni_py.explain import calls, steps, text
from cni_py.plan import script
from cni_py.plan.rehearsal import NotPlannable, Request, rehearse
from cni_py.runtime.chain import PluginFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from cni_py.explain.text import Part
    from cni_py.plan.rehearsal import Rehearsal

_RANDOM_VETH = re.compile(r"\bveth[0-9a-f]{8}\b")


def run(options: argparse.Namespace) -> int:
    """Print the plan. Returns: the exit status of the call; 3 if there can be no plan. Raises: CniError."""
    network, attachment = verbs.find(options, sandbox_needed=options.verb in ("ADD", "CHECK"))
    request = Request(options.verb, network, attachment, verbs.cni_path(options), options.cache_dir)
    before = verbs.attached(options, attachment) if options.verb == "ADD" else None
    try:
        found = rehearse(request)
    except NotPlannable as reason:
        print_error(reason)
        return EXIT_UNKNOWN
    for error in found.errors:
        if isinstance(error, PluginFailed) and options.verb == "ADD":
            verbs.advise(error, options, before)
    if options.script:
        return _print_script(found, options)
    if options.json:
        show_json(_as_json(found, request, options))
    else:
        print_lines(lambda width: _render(found, width, options))
    for line in found.said:
        say(line)
    for error in found.errors:
        _print_error(error)
    return EXIT_FAILED if found.errors else EXIT_UNKNOWN if options.verb == "CHECK" and found.said else 0


def _print_error(error: CniError) -> None:
    """Print an error as the call would: of CHECK, each difference as one of its own."""
    differences: tuple[CheckFailed, ...] = getattr(error, "differences", ())
    heading = error.msg.partition(": ")[0]
    for one in differences:
        print_error(CheckFailed(f"{heading}: {one.msg}", one.details, one.hint))
    if not differences:
        print_error(error)


def _print_script(found: Rehearsal, options: argparse.Namespace) -> int:
    """Print the script; without one, why. Returns: the exit status."""
    for error in found.errors:
        _print_error(error)
    if found.unexplained:
        names = ", ".join(dict.fromkeys(one.path for one in found.unexplained))
        print_error(
            CniError(
                "no script can be made: not every plugin has a journal",
                f"{names} is not one of cni-py",
                "see the difference between before and after: leave --script out",
            )
        )
        return EXIT_FAILED
    if found.errors:
        return EXIT_FAILED
    heading = (
        f"What {options.verb} of the network {options.network} does for {options.netns}, found by cni-py {__version__}.",
        "These commands leave what the plugins leave, on a host in the state in which this one was.",
        "What is random, names of veths and MAC addresses, is as it was in that run.",
    )
    show("\n".join(script.render(calls.read(found.journal), found.outcome, heading)))
    return 0


def _as_json(found: Rehearsal, request: Request, options: argparse.Namespace) -> dict[str, object]:
    errors = [{"code": of.code, "msg": of.msg, "details": of.details, "hint": of.hint} for of in found.errors]
    return {
        "command": request.verb,
        "network": request.network.name,
        "containerID": request.attachment.container_id,
        "ifname": request.attachment.ifname,
        "netns": request.attachment.netns,
        "result": found.result,
        "errors": errors,
        "calls": [steps.as_json(call, verbose=options.verbose) for call in calls.read(found.journal)],
        "otherPlugins": [one.as_json() for one in found.unexplained],
        "warnings": found.said,
        "notes": found.notes,
    }


def _render(found: Rehearsal, width: int | None, options: argparse.Namespace) -> Iterator[list[Part]]:
    yield from text.render(calls.read(found.journal), width, verbose=options.verbose)
    for one in found.unexplained:
        yield []
        yield [
            text.Part(
                text.TITLE, f"{one.plugin} ({one.path}) is not one of cni-py and has no journal: before (-) and after (+)"
            )
        ]
        for line in one.lines or ["no difference"]:
            yield [text.Part(text.COMMAND, f"  {line}")]
    notes = [*found.notes]
    if any(_RANDOM_VETH.search(line) for line in found.journal) and not found.errors:
        notes.append("names of veths and MAC addresses are random: another call chooses others")
    yield []
    for note in notes:
        yield [text.Part(text.DIM, f"# {note}")]
    yield [
        text.Part(text.BAD if found.errors else text.TITLE, f"{options.verb} {_how(found)}; nothing was changed on this host")
    ]


def _how(found: Rehearsal) -> str:
    """Return how the call would end, and for ADD which addresses the pod would get."""
    if found.errors:
        return "would fail"
    result = found.result or {}
    given = [str(of.get("address", "")) for of in result.get("ips", ())]
    inside = [str(of.get("name", "")) for of in result.get("interfaces", ()) if of.get("sandbox")]
    return f"would succeed: {', '.join(inside) or 'the pod'} gets {', '.join(given)}" if given else "would succeed"
