"""Command ``cni-py``: a container runtime's calls by hand, journals, leaked resources, configuration, lab.

This module has the commands and their exit status, arguments.py the command line, output.py the printing. The work is done
in runtime/ (chains), sweep/ (leaked resources), explain.py (journals), host_report.py (this host), config/reference.py
(configuration keys), network_commands.py (flannel's configuration) and lab/ (a test network), each
imported when it is needed.
Reference: docs/cni-py.md, docs/lab.md.
"""

from __future__ import annotations

import io
import os
import sys

from cni_py import __version__
from cni_py.cli import arguments
from cni_py.cli.output import EXIT_FAILED, print_error, say, show
from cni_py.errors import CniError, DecodingFailure, InvalidEnvironment, InvalidNetNS, IOFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from cni_py.runtime.chain import Runtime
    from cni_py.runtime.network_config import Attachment, Network

EXIT_INTERRUPTED = 130
NETNS_DIRECTORIES = ("/run/netns", "/var/run/netns")
DEFAULT_NETCONF_PATH = "/etc/cni/net.d"
DEFAULT_CNI_PATH = "/opt/cni/bin"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns: exit status, 0 done, 1 failed, 130 Ctrl-C; argparse exits with 2 on wrong usage."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            options = arguments.parse(argv)
            return _COMMANDS[options.command](options)
        finally:
            sys.stdout.flush()
    except CniError as error:
        print_error(error)
        return EXIT_FAILED
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # otherwise Python reports the error again when it flushes at exit
        return EXIT_FAILED
    except OSError as error:
        say(str(error))
        return EXIT_FAILED


# ---- verbs ------------------------------------------------------------------------------------


def add(options: argparse.Namespace) -> int:
    """Run ``cni-py add``: the result goes to standard output."""
    import json

    from cni_py.runtime.chain import PluginFailed

    runtime, network, attachment = _prepare(options, sandbox_needed=True)
    try:
        result = runtime.add(network, attachment)
    except (PluginFailed, IOFailure) as error:
        undo = f"to undo what was created: {_command('del', options)}"
        error.hint = "; ".join(part for part in (error.hint, undo) if part)
        raise
    show(json.dumps(result, indent=4))
    return 0


def delete(options: argparse.Namespace) -> int:
    """Run ``cni-py del``, with the arguments of ADD unless others are given."""
    runtime, network, attachment = _prepare(options)
    runtime.delete(network, runtime.recall(network.name, attachment))
    return 0


def check(options: argparse.Namespace) -> int:
    """Run ``cni-py check``: prints nothing if all is as ADD left it."""
    runtime, network, attachment = _prepare(options, sandbox_needed=True)
    runtime.check(network, runtime.recall(network.name, attachment))
    return 0


def status(options: argparse.Namespace) -> int:
    """Run ``cni-py status``: prints nothing if every plugin is ready; without a network, the agent's statistics."""
    if not options.network:
        import json

        show(json.dumps(_agent_report(), indent=4))
        return 0
    _runtime(options).status(_network(options))
    return 0


def _agent_report() -> dict[str, object]:
    """Query the agent. Raises: IOFailure if it does not reply."""
    import json
    import socket

    from cni_py import protocol

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(protocol.REQUEST_SECONDS)
            sock.connect(protocol.SOCKET_PATH)
            protocol.check_agent_user(sock)
            sock.sendall(protocol.pack_request(protocol.STATUS_REQUEST, "", (), b"", (0, 0, 0, 0), 0))
            report: dict[str, object] = json.loads(protocol.read_reply(sock)[2])
            return report
    except (OSError, ValueError, protocol.FrameError) as error:
        raise IOFailure(
            "could not query the agent", f"{protocol.SOCKET_PATH}: {error}", "start it: cni-agent; the plugins work without it"
        ) from error


def gc(options: argparse.Namespace) -> int:
    """Run ``cni-py gc``: all errors are printed, not only the first."""
    from cni_py.runtime.result_cache import cached_attachments

    network = _network(options)
    valid = [*options.valid] if options.valid else None
    if options.valid_living:
        cached = [c.attachment for c in cached_attachments(options.cache_dir, network.name)]
        valid = [*(valid or ()), *((a.container_id, a.ifname) for a in cached if a.netns and os.path.exists(a.netns))]
    errors = _runtime(options).gc(network, valid)
    for error in errors:
        print_error(error)
    return EXIT_FAILED if errors else 0


def sweep(options: argparse.Namespace) -> int:
    """Run ``cni-py sweep``: the table goes to standard output, why checks are incomplete to standard error."""
    import json

    from cni_py.sweep import sweep as sweeping
    from cni_py.sweep.file_leftovers import Places, places_configured

    directory = _setting(options.netconf_path, "NETCONFPATH", DEFAULT_NETCONF_PATH)
    places = Places() | places_configured(directory, lambda line: say(f"warning: {line}"))
    report = sweeping.run(options.grace, options.dry_run, options.network, places=places)
    if options.json:
        show(json.dumps(report.as_json(), indent=4))
    for line in () if options.json else report.lines():
        show(line)
    for reason in report.missing:
        say(f"nothing was removed, because live pods could not all be identified: {reason}")
    for finding in report.failed:
        say(f"could not remove {finding.leftover.kind} {finding.leftover.what}: {finding.why.rpartition('; ')[2]}")
    return 0 if report.is_complete else EXIT_FAILED


def explain(options: argparse.Namespace) -> int:
    """Run ``cni-py explain``: print journals, or the list of them."""
    from cni_py.cli import explain as journals

    entries = journals.entries()
    if options.container_id is None:
        entries = [e for e in entries if options.ifname in ("", e.ifname) and options.network in ("", e.network)]
        for line in journals.render_list(entries):
            show(line)
        return 0
    for number, entry in enumerate(journals.select(entries, options.container_id, options.ifname, options.network)):
        if number:
            show("")
        for line in journals.render_journal(entry):
            show(line)
    return 0


def version(options: argparse.Namespace) -> int:
    """Run ``cni-py version``."""
    if not options.verbose:
        show(f"cni-py {__version__}")
        return 0
    from cni_py.cli.host_report import report

    lines = report(_cni_path(options))
    width = max(len(label) for label, _ in lines)
    for label, finding in lines:
        show(f"{label.ljust(width)}  {finding}")
    return 0


def config(options: argparse.Namespace) -> int:
    """Run ``cni-py config``: the keys of the plugins, or a command on flannel's datastore."""
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


def _network_config(options: argparse.Namespace) -> int:
    """Run ``cni-py config get``, ``set``, ``reserve`` or ``release``."""
    from cni_py.cli import network_commands
    from cni_py.flanneld.options import UsageError

    try:
        printed, messages = network_commands.run(options)
    except UsageError as error:
        say(str(error))
        return error.status
    for line in printed:
        show(line)
    for line in messages:
        say(line)
    return 0


def lab(options: argparse.Namespace) -> int:
    """Run ``cni-py lab``."""
    from cni_py.cli import lab_commands

    return lab_commands.run(options)


# ---- from options and environment to values ---------------------------------------------------


def _prepare(options: argparse.Namespace, *, sandbox_needed: bool = False) -> tuple[Runtime, Network, Attachment]:
    network = _network(options)
    attachment = _attachment(options)
    if sandbox_needed and not os.path.exists(attachment.netns):
        name = os.path.basename(attachment.netns)
        hint = f'"ip netns list" lists named ones, "ip netns add {name}" creates one'
        raise InvalidNetNS(f'network namespace "{attachment.netns}" does not exist', hint=hint)
    return _runtime(options), network, attachment


def _network(options: argparse.Namespace) -> Network:
    from cni_py.runtime.network_config import load_network

    directory = _setting(options.netconf_path, "NETCONFPATH", DEFAULT_NETCONF_PATH)
    return load_network(directory, options.network, lambda line: say(f"warning: {line}"))


def _attachment(options: argparse.Namespace) -> Attachment:
    from cni_py.runtime.network_config import Attachment

    ifname = _setting(options.ifname, "CNI_IFNAME", "eth0")
    netns = _find_netns(options, ifname)
    return Attachment(
        container_id=options.container_id or container_id_of(netns),
        netns=netns,
        ifname=ifname,
        args=parse_args(_setting(options.args, "CNI_ARGS", "")),
        capability_args=_capability_args(_setting(options.cap_args, "CAP_ARGS", "")),
    )


def _runtime(options: argparse.Namespace) -> Runtime:
    from cni_py.runtime.chain import Runtime

    narrate = (lambda line: say(line, "== ")) if options.explain else None
    return Runtime(_cni_path(options), options.cache_dir, say=say, narrate=narrate)


def _setting(option: str | None, variable: str, default: str) -> str:
    return option or os.environ.get(variable) or default


def _command(verb: str, options: argparse.Namespace) -> str:
    """Return the command for the same attachment, quoted for a shell."""
    from cni_py.journal import quote

    words = ["cni-py", verb, options.network, options.netns]
    given = {"--ifname": options.ifname, "--container-id": options.container_id}
    words += [word for option, value in given.items() if value for word in (option, value)]
    return " ".join(map(quote, words))


def _find_netns(options: argparse.Namespace, ifname: str) -> str:
    """Return the path of a namespace; a name without a slash is one of ``ip netns``.

    The container id is derived from the path as written, and both directories are the same one:
    so the spelling with which the attachment was added comes first.
    """
    if "/" in options.netns:
        return _absolute(options.netns)
    if options.netns in ("", ".", ".."):
        raise InvalidNetNS(f'"{options.netns}" is not a name of a network namespace', hint='"ip netns list" lists the names')
    paths = [f"{directory}/{options.netns}" for directory in NETNS_DIRECTORIES]
    cached = [
        p for p in paths if os.path.exists(f"{options.cache_dir}/results/{options.network}-{container_id_of(p)}-{ifname}")
    ]
    return [*cached, *filter(os.path.exists, paths), *paths][0]


def _absolute(path: str) -> str:
    """Clean the path like Go's filepath.Abs: two leading slashes become one."""
    return "/" + os.path.abspath(path).lstrip("/")


def container_id_of(netns: str) -> str:
    """Return the container id that cnitool derives from this path."""
    from hashlib import sha512

    return f"cnitool-{sha512(os.fsencode(netns)).hexdigest()[:20]}"


def parse_args(text: str) -> tuple[tuple[str, str], ...]:
    """Parse CNI_ARGS as cnitool does. Raises: InvalidEnvironment."""
    pairs = [tuple(pair.split("=")) for pair in text.split(";")] if text else []
    for pair in pairs:
        if len(pair) != 2 or not all(pair):
            raise InvalidEnvironment(f'invalid CNI_ARGS pair "{"=".join(pair)}"', hint="CNI_ARGS is KEY=VALUE;KEY=VALUE")
    return tuple((pair[0], pair[1]) for pair in pairs)


def _capability_args(text: str) -> dict[str, object]:
    from cni_py.config import decode

    try:
        return decode(text.encode(), "CAP_ARGS") if text else {}
    except (CniError, UnicodeEncodeError) as error:
        hint = """CAP_ARGS='{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}'"""
        raise DecodingFailure("CAP_ARGS is not a JSON object", str(error), f"for example {hint}") from error


def _cni_path(options: argparse.Namespace) -> list[str]:
    """Return the plugin directories, absolute: those given, or those of our own installation and /opt/cni/bin."""
    given = _setting(options.cni_path, "CNI_PATH", "")
    if given:
        return [_absolute(directory) for directory in given.split(":") if directory]
    beside = os.path.dirname(os.path.realpath(sys.argv[0]))
    own = [directory for directory in (beside, _absolute(f"{beside}/../cni/bin")) if os.path.exists(f"{directory}/cni-plugin")]
    return list(dict.fromkeys([*own, DEFAULT_CNI_PATH]))


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "add": add,
    "check": check,
    "del": delete,
    "gc": gc,
    "status": status,
    "sweep": sweep,
    "explain": explain,
    "version": version,
    "config": config,
    "lab": lab,
}

if __name__ == "__main__":
    sys.exit(main())
