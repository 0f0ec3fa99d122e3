"""The command line of ``cni-py``: commands, options and their help."""

from __future__ import annotations

import argparse

from cni_py import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_DESCRIPTION = """\
Attach network namespaces to CNI networks by hand, as a container runtime would,
and see what the plugins did."""

_EXAMPLES = """\
examples:
  ip netns add blue
  cni-py add cbr0 blue --explain      attach it, and show every step as a command
  cni-py check cbr0 blue              is all as it was made?
  cni-py explain                      every attachment that has a journal
  cni-py explain cnitool-3528         what was done to this one
  cni-py del cbr0 blue
  cni-py sweep --dry-run              what did pods leave behind that are gone?
  cni-py version -v                   what this host has of what is needed

"cni-py COMMAND --help" tells more. Attachments can be shared with cnitool: the
environment, the container ids and the cached results are the same."""

_ENVIRONMENT = """\
environment (an option comes before its variable):
  NETCONFPATH  folder of network configurations   (/etc/cni/net.d)
  CNI_PATH     folders of plugins, with : between (those of this installation, /opt/cni/bin)
  CNI_IFNAME   interface name in the sandbox      (eth0)
  CNI_ARGS     KEY=VALUE;KEY=VALUE                (none)
  CAP_ARGS     capability arguments, JSON         (none)"""

_ADD = """\
Attach a network namespace to a network and print the result.

Executes every plugin of the network with ADD. If one fails, what the ones before
it made stays until "cni-py del".

examples:
  cni-py add cbr0 blue
  cni-py add cbr0 /proc/4711/ns/net --ifname eth1 --explain
  cni-py add cbr0 blue --cap-args \\
    '{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}'"""

_CHECK = """\
Check that an attachment is as ADD left it (cniVersion 0.4.0 or newer).

Silent, with exit status 0, where it is. Arguments that are not given are those of ADD.

example:
  cni-py check cbr0 blue"""

_DEL = """\
Take an attachment back.

Executes the plugins backwards with DEL. Success where there is nothing to take back;
the namespace may be gone. Arguments that are not given are those of ADD.

example:
  cni-py del cbr0 blue"""

_GC = """\
Clean up: delete every attachment of a network but the valid ones.

Deletes each attachment in the cache that is not valid, then lets the plugins collect
what is left (cniVersion 1.1.0). Without --valid and --valid-living NO attachment is
valid, as with cnitool: those of a container runtime on this host are deleted too.

examples:
  cni-py gc cbr0 --valid-living
  cni-py gc cbr0 --valid cnitool-352833ea4e7f1a968163/eth0"""

_STATUS = """\
Ask the plugins of a network whether they are ready (cniVersion 1.1.0).

Silent, with exit status 0, where they are. Without a network: what the agent says of
itself, as JSON: calls, latencies (p50, p95, p99 by verb), attachments, failures, repairs.

examples:
  cni-py status cbr0
  cni-py status"""

_EXPLAIN = """\
Show the journal of an attachment, or a list of all attachments that have one.

Each line is a change to the kernel or to a file, as a command that would do the same,
with its time (UTC) and how long it took. Journals are kept until the next boot.

examples:
  cni-py explain
  cni-py explain cnitool-3528
  cni-py explain cnitool-3528 --ifname eth1"""

_SWEEP = """\
Free what pods left behind that are gone: it belongs to no live network namespace.

Reservations of host-local, saved configurations of flannel, records, elements of
nftables, masquerade chains of iptables, stray veths; cached results are told, not
deleted. The table says for each what it is, whose, how old, and why it is dead. Never
anything of a live pod, whoever made it: addresses in every namespace, processes and
mounts are looked at, and while something cannot be looked at nothing is freed.

examples:
  cni-py sweep --dry-run
  cni-py sweep --grace 60 --network cbr0"""

_VERBS = {"add": _ADD, "check": _CHECK, "del": _DEL, "gc": _GC, "status": _STATUS}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options by name; ``command`` says which. Exits with 2 where the usage is wrong, with 0 after help."""
    parser = _new(argparse.ArgumentParser, prog="cni-py", description=_DESCRIPTION, epilog=f"{_EXAMPLES}\n\n{_ENVIRONMENT}")
    parser.add_argument("--version", action="version", version=f"cni-py {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, text in _VERBS.items():
        command = _new(commands.add_parser, name, help=_summary(text), description=text, epilog=_ENVIRONMENT)
        _add_verb_arguments(command, name)

    command = _new(commands.add_parser, "sweep", help=_summary(_SWEEP), description=_SWEEP)
    command.add_argument("--dry-run", action="store_true", help="show what would be freed, and change nothing")
    text = "what is younger stays (%(default)g)"
    command.add_argument("--grace", metavar="SECONDS", type=_seconds, default=300.0, help=text)
    command.add_argument("--network", metavar="NAME", action="append", help="this network only (may be repeated)")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--netconf-path", metavar="DIR", help="folder of network configurations: they name folders of state")

    command = _new(commands.add_parser, "explain", help=_summary(_EXPLAIN), description=_EXPLAIN)
    command.add_argument(
        "container_id", nargs="?", metavar="CONTAINERID", help="or the beginning of it; left out: a list of all"
    )
    command.add_argument("-i", "--ifname", default="", help="this interface only")
    command.add_argument("--network", default="", metavar="NAME", help="this network only")

    command = _new(commands.add_parser, "version", help="show the version, and with -v what this host has of what is needed")
    command.add_argument("-v", "--verbose", action="store_true", help="libraries, kernel, masquerade backend, plugins")
    command.add_argument("--cni-path", metavar="DIR:DIR", help="folders of plugins (CNI_PATH)")

    command = _new(
        commands.add_parser, "config", help="show the configuration keys of the plugins: type, default, meaning, example"
    )
    command.add_argument("plugin", nargs="?", metavar="PLUGIN", default="", help="this plugin only")
    command.add_argument("--markdown", action="store_true", help="as docs/configuration.md")
    return parser.parse_args(argv)


def _add_verb_arguments(command: argparse.ArgumentParser, verb: str) -> None:
    nargs = "?" if verb == "status" else None
    command.add_argument("network", metavar="NETWORK", nargs=nargs, help='the "name" in its configuration')
    if verb in ("add", "check", "del"):
        command.add_argument("netns", metavar="NETNS", help='path of a network namespace, or its name in "ip netns"')
        command.add_argument("-i", "--ifname", help="interface name in the sandbox")
        command.add_argument("--container-id", metavar="ID", help="left out: cnitool's, made from the path of the namespace")
        command.add_argument("--args", metavar="KEY=VALUE;...", help="arguments for the plugins")
        command.add_argument("--cap-args", metavar="JSON", help="capability arguments")
    else:
        command.add_argument("netns", metavar="NETNS", nargs="?", help="not used; taken because cnitool wants it")
    if verb == "gc":
        text = "this attachment stays (may be repeated)"
        command.add_argument("--valid", metavar="CONTAINERID/IFNAME", type=_valid_attachment, action="append", help=text)
        command.add_argument("--valid-living", action="store_true", help="cached attachments stay whose namespace is there")
    command.add_argument("--explain", action="store_true", help="show on standard error what is done, step by step")
    command.add_argument("--netconf-path", metavar="DIR", help="folder of network configurations")
    command.add_argument("--cni-path", metavar="DIR:DIR", help="folders of plugins")
    command.add_argument("--cache-dir", metavar="DIR", default="/var/lib/cni", help="where results are kept (%(default)s)")


def _valid_attachment(text: str) -> tuple[str, str]:
    container_id, _, ifname = text.partition("/")
    if not container_id or not ifname:
        raise argparse.ArgumentTypeError(f"{text!r} is not CONTAINERID/IFNAME")
    return container_id, ifname


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds


def _new(make: Callable[..., argparse.ArgumentParser], *args: str, **kwargs: str) -> argparse.ArgumentParser:
    return make(*args, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)


def _summary(text: str) -> str:
    """The first sentence, as it stands in the list of commands."""
    line = text.partition("\n")[0].rstrip(".")
    return line[0].lower() + line[1:]
