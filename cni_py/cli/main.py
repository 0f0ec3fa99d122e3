"""Command ``cni-py``: a container runtime's calls by hand, journals, leaked resources, configuration, lab.

This module has the commands and their exit status, arguments.py the command line, output.py the printing, verbs.py what a
runtime does. The work is done in runtime/ (chains), sweep/ (leaked resources), explain.py (what was done, and why), plan.py
(what would be done), doctor.py (what is wrong), walk.py (the path of a packet), host_report.py (this host),
config/reference.py (configuration keys), network_commands.py (flannel's configuration), lab/ (a test network) and
lessons/ (exercises in it), each imported when it is needed. Reference: docs/cni-py.md and the pages that it names.
"""

from __future__ import annotations

import io
import os
import sys

from cni_py import __version__
from cni_py.cli import arguments
from cni_py.cli.output import EXIT_FAILED, EXIT_UNKNOWN, print_error, say, show, show_json
from cni_py.cli.verbs import DEFAULT_NETCONF_PATH, add, check, cni_path, delete, gc, setting, status
from cni_py.errors import CniError, IOFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from cni_py.sweep.file_leftovers import Places

EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns: exit status, 0 done, 1 failed, 3 unknown, 130 Ctrl-C; argparse exits with 2 on wrong usage."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    wants_json = False
    try:
        try:
            options = arguments.parse(argv)
            wants_json = getattr(options, "json", False)
            return _COMMANDS[options.command](options)
        finally:
            sys.stdout.flush()
    except CniError as error:
        if wants_json:
            show_json({"error": {"code": error.code, "msg": error.msg, "details": error.details, "hint": error.hint}})
        print_error(error)
        return EXIT_FAILED
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # otherwise Python reports the error again when it flushes at exit
        return EXIT_FAILED
    except OSError as error:
        # as a shell says it: without "[Errno 2]"
        words = ": ".join(filter(None, (str(error.filename or ""), error.strerror))) or str(error)
        if wants_json:
            show_json({"error": {"code": IOFailure.code, "msg": words, "details": "", "hint": ""}})
        say(words)
        return EXIT_FAILED


def repair(options: argparse.Namespace) -> int:
    """Run ``cni-py repair``: print what was missing, and what was done about it."""
    from cni_py.sweep import restore

    _warn_of_unknown(options.network, setting("", "NETCONFPATH", DEFAULT_NETCONF_PATH))
    lost = restore.restore(options.network, options.dry_run)
    if options.json:
        show_json({"dryRun": options.dry_run, "lost": [one.as_json() for one in lost]})
    for one in () if options.json else lost:
        show(f"{one.outcome}: {one.what} of container {one.container_id}, {one.ifname}, network {one.network}")
    if not lost and not options.json:
        show("no rules are missing of attachments that have a record (/run/cni-py)")
    for one in lost:
        if one.outcome == restore.FAILED:
            say(f"could not restore {one.what} of container {one.container_id}: {one.why}")
    return EXIT_FAILED if any(one.outcome == restore.FAILED for one in lost) else 0


def sweep(options: argparse.Namespace) -> int:
    """Run ``cni-py sweep``: the findings go to standard output, why checks are incomplete to standard error."""
    from cni_py.sweep import sweep as sweeping
    from cni_py.sweep.file_leftovers import Places, places_configured

    directory = setting(options.netconf_path, "NETCONFPATH", DEFAULT_NETCONF_PATH)
    places = Places() | places_configured(directory, lambda line: say(f"warning: {line}"))
    _warn_of_unknown(options.network, directory)
    report = sweeping.run(options.grace, options.dry_run, options.network, places=places)
    if options.json:
        show_json(report.as_json())
    for line in () if options.json else report.lines():
        show(line)
    if report.missing:
        say("nothing was removed, because live pods could not all be identified:")
    for reason in report.missing:
        say(reason, "  ")
    if report.missing and os.geteuid() != 0:
        say("hint: sudo cni-py sweep", "  ")
    for finding in report.failed:
        say(f"could not remove {finding.leftover.kind} {finding.leftover.what}: {finding.why.rpartition('; ')[2]}")
    is_left = options.convert_to_go and not options.dry_run and _convert(places)
    return EXIT_FAILED if report.failed or is_left else EXIT_UNKNOWN if report.missing else 0


def _warn_of_unknown(names: Sequence[str] | None, directory: str) -> None:
    """Warn of networks that no file configures: one that was deleted may have leaked resources, a mistyped one has none."""
    from cni_py.runtime.network_config import names_in

    known = names_in(directory) if names else set()
    for name in names or ():
        if name not in known:
            say(f'warning: no file in {directory} configures a network "{name}"')


def _convert(places: Places) -> bool:
    """Turn masquerade and host ports into the Go plugins' form. Returns: whether something could not be."""
    from cni_py.sweep import convert

    outcome = convert.convert(places)
    for line in outcome.lines():
        say(line)
    return bool(outcome.left)


def explain(options: argparse.Namespace) -> int:
    """Run ``cni-py explain``."""
    from cni_py.cli import explain as explaining

    return explaining.run(options)


def plan(options: argparse.Namespace) -> int:
    """Run ``cni-py plan``."""
    from cni_py.cli import plan as planning

    return planning.run(options)


def version(options: argparse.Namespace) -> int:
    """Run ``cni-py version``."""
    if not options.verbose:
        show_json({"cni-py": __version__}) if options.json else show(f"cni-py {__version__}")
        return 0
    from cni_py.cli.host_report import report

    lines = report(cni_path(options))
    if options.json:
        show_json(dict(lines))
        return 0
    width = max(len(label) for label, _ in lines)
    for label, finding in lines:
        show(f"{label.ljust(width)}  {finding}")
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Run ``cni-py doctor``."""
    from cni_py.cli import doctor as examining

    return examining.run(options)


def config(options: argparse.Namespace) -> int:
    """Run ``cni-py config``: the keys of the plugins, or a command on flannel's datastore."""
    if options.config_command == "check":
        return _check_files(options)
    if options.config_command != "keys":
        return _network_config(options)
    from cni_py.config import reference
    from cni_py.plugin_table import PLUGINS

    if options.plugin and options.plugin not in PLUGINS:
        known = [*PLUGINS, *arguments.CONFIG_COMMANDS]
        suggestion = arguments.did_you_mean(options.plugin, known)
        raise CniError(f'unknown plugin "{options.plugin}"{suggestion}', hint=f"one of {', '.join(PLUGINS)}")
    show(reference.render_reference().rstrip("\n") if options.markdown else "\n".join(reference.render_text(options.plugin)))
    return 0


def _check_files(options: argparse.Namespace) -> int:
    """Run ``cni-py config check``: a line for each finding; exits with 1 for an error, with ``--strict`` for a warning too."""
    from cni_py.doctor import config_check

    found = [config_check.check(path) for path in options.files]
    if options.json:
        show_json([one.as_json() for one in found])
    for line in (line for one in found for line in one.lines()) if not options.json else ():
        show(line)
    return EXIT_FAILED if any(one.errors or (options.strict and one.warnings) for one in found) else 0


def _network_config(options: argparse.Namespace) -> int:
    """Run ``cni-py config get``, ``set``, ``leases``, ``reserve`` or ``release``."""
    from cni_py.cli import network_commands
    from cni_py.flanneld.options import UsageError

    try:
        printed, messages = network_commands.run(options)
    except UsageError as error:
        say(str(error))
        return error.status
    if options.json and options.config_command != "leases":
        show_json({"printed": printed, "messages": messages})
        return 0
    for line in printed:
        show(line)
    for line in messages:
        say(line)
    return 0


def walk(options: argparse.Namespace) -> int:
    """Run ``cni-py walk``."""
    from cni_py.cli import walk as walking

    return walking.run(options)


def lab(options: argparse.Namespace) -> int:
    """Run ``cni-py lab``."""
    from cni_py.cli import lab_commands

    return lab_commands.run(options)


def lesson(options: argparse.Namespace) -> int:
    """Run ``cni-py lesson``."""
    from cni_py.cli import lesson_commands

    return lesson_commands.run(options)


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "add": add,
    "check": check,
    "del": delete,
    "gc": gc,
    "status": status,
    "repair": repair,
    "sweep": sweep,
    "explain": explain,
    "doctor": doctor,
    "walk": walk,
    "plan": plan,
    "version": version,
    "config": config,
    "lab": lab,
    "lesson": lesson,
}

if __name__ == "__main__":
    sys.exit(main())
