"""The command line of ``cni-py``: commands, options and their help."""

from __future__ import annotations

import argparse
import sys

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
  cni-py config get                   the network that flanneld is to make
  cni-py lab up                       three nodes with flanneld and pods, to try things on

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

_LAB = """\
A flannel network on this machine, to learn and to test: nodes, their switch, a router,
a host beyond it, flanneld and pods, all of them namespaces. Nothing of the machine's own
network is touched, and "down" removes everything.

examples:
  cni-py lab up --nodes 3 --backend vxlan
  cni-py lab ping                             who reaches whom, with full-sized packets too
  cni-py lab exec node1 -- ip route
  cni-py lab exec pod1 -- ping 10.244.85.2
  cni-py lab break route node1                and see flanneld put it back
  cni-py lab break link node2; cni-py lab ping; cni-py lab heal
  cni-py lab down

Places are node1 ..., pod1 ..., router, outside, switch, and etcd where there is one."""

_LAB_UP = """\
Make the network: ready when every flanneld says so and the pods reach one another.

examples:
  cni-py lab up
  cni-py lab up --nodes 4 --segments 2 --backend-option DirectRouting=true
  cni-py lab up --backend host-gw --ipv6 --datastore etcd"""

_LAB_FAULTS = ("link", "etcd", "flanneld", "route", "arp", "fdb")
_LAB_FOLDER = "/run/cni-py/lab"

_CONFIG = """\
Show the configuration keys of the plugins: type, default, meaning, example.

The network's configuration, which flanneld reads, is another thing: "cni-py config get"
and "cni-py config set", and "reserve" and "release" for a node's subnet."""

_WHICH_DATASTORE = """\
The datastore is named as for flanneld, by its options after "--" or its variables
(FLANNELD_ETCD_ENDPOINTS ...); without any it is etcd on this machine."""

_CONFIG_GET = f"""\
Show the network configuration that is in flannel's datastore.

Exit status 1 where no flanneld could use it; the error names the keys.

{_WHICH_DATASTORE}

examples:
  cni-py config get
  cni-py config get -- -etcd-endpoints=https://192.168.123.11:2379 \\
    -etcd-cafile=ca.crt -etcd-certfile=client.crt -etcd-keyfile=client.key"""

_CONFIG_SET = f"""\
Write the network configuration into flannel's datastore, once all of it is right.

Refused where subnets that nodes have do not fit it, or its back end is another while
there are nodes: those would lose one another until the last one has been restarted.
With --force it is written all the same. flanneld reads it when it starts.

{_WHICH_DATASTORE}

examples:
  cni-py config set /etc/kube-flannel/net-conf.json
  echo '{{"Network": "10.244.0.0/16", "Backend": {{"Type": "vxlan"}}}}' | cni-py config set -
  cni-py config set net-conf.json -- -datastore=file:/var/lib/flannel/network.json"""

_CONFIG_RESERVE = f"""\
Keep a subnet for the node with this public address, for ever.

The node takes it when its flanneld starts; if it has that subnet now, it keeps it.

{_WHICH_DATASTORE}

examples:
  cni-py config reserve 10.244.91.0/24 192.168.123.11
  cni-py config reserve 10.244.91.0/24,fd00:10:244:91::/64 192.168.123.11"""

_CONFIG_RELEASE = f"""\
Make a reserved subnet a lease: it ends after 24 hours if its node does not renew it.

{_WHICH_DATASTORE}

example:
  cni-py config release 10.244.91.0/24"""

NETWORK_COMMANDS = {
    "config get": _CONFIG_GET,
    "config set": _CONFIG_SET,
    "config reserve": _CONFIG_RESERVE,
    "config release": _CONFIG_RELEASE,
}
"""Two words that are one command: "config" alone has an argument, and its help is not theirs."""

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

    command = _new(commands.add_parser, "config", help=_summary(_CONFIG), description=_CONFIG)
    command.add_argument("plugin", nargs="?", metavar="PLUGIN", default="", help="this plugin only")
    command.add_argument("--markdown", action="store_true", help="as docs/configuration.md")

    for name, text in NETWORK_COMMANDS.items():
        _add_network_arguments(_new(commands.add_parser, name, help=_summary(text), description=text), name)

    command = _new(commands.add_parser, "lab", help="make a flannel network of namespaces on this machine", description=_LAB)
    _add_lab_commands(command.add_subparsers(title="commands", metavar="COMMAND", dest="lab_command", required=True).add_parser)
    words = list(sys.argv[1:] if argv is None else argv)
    if " ".join(words[:2]) not in NETWORK_COMMANDS:
        return parser.parse_args(words)
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_args([" ".join(words[:2]), *words[2:end]])
    options.flanneld_options = words[end + 1 :]
    return options


def _add_network_arguments(command: argparse.ArgumentParser, name: str) -> None:
    if name == "config set":
        command.add_argument("source", metavar="FILE", help="- for standard input")
        command.add_argument("--force", action="store_true", help="write it although nodes have subnets that do not fit")
    if name in ("config reserve", "config release"):
        text = "10.244.91.0/24; of a network with both families one of each, with a comma between"
        command.add_argument("subnet", metavar="SUBNET", help=text)
    if name == "config reserve":
        command.add_argument("public_ip", metavar="PUBLIC_IP", help="by which the node is known to the others")
    command.usage = f"{command.format_usage().removeprefix('usage: ').strip()} [-- FLANNELD-OPTION ...]"


def _add_lab_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = _new_lab(add, "up", _LAB_UP)
    command.add_argument("--nodes", type=int, default=3, metavar="N", help="how many (%(default)s)")
    command.add_argument("--backend", default="vxlan", metavar="TYPE", help="vxlan, host-gw, udp, ... (%(default)s)")
    text = "a key of the Backend object, its value as JSON or a word (may be repeated)"
    command.add_argument("--backend-option", metavar="KEY=VALUE", type=_json_setting, action="append", default=[], help=text)
    command.add_argument("--ipv6", action="store_true", help="IPv4 and IPv6")
    command.add_argument("--no-ipv4", action="store_true", help="IPv6 alone")
    command.add_argument("--datastore", choices=("file", "etcd"), default="file", help="where leases are (%(default)s)")
    command.add_argument("--segments", type=int, choices=(1, 2), default=1, help="2: every other node behind a router")
    command.add_argument("--pods", type=int, default=1, metavar="N", help="on each node (%(default)s)")
    command.add_argument("--net-conf", metavar="FILE", help="the whole network configuration, - for standard input")
    command.add_argument("--flanneld", metavar="PATH", default="", help="another flanneld than this installation's")
    text = "added to the command line of flanneld, as --flanneld-option=-v=1 (may be repeated)"
    command.add_argument("--flanneld-option", metavar="OPTION", action="append", default=[], help=text)

    command = _new_lab(add, "exec", "Run a command in a place of the lab; without one, a shell.")
    command.add_argument("where", metavar="PLACE", help="node1, pod1, router, outside, switch, etcd")
    command.add_argument("argv", metavar="-- COMMAND", nargs=argparse.REMAINDER, help="and its arguments")

    text = "Ping from every pod to every other one, small and full-sized with DF. Exit status 1 where an answer is missing."
    command = _new_lab(add, "ping", text)
    command.add_argument("--outside", action="store_true", help="and to the host beyond the router")
    command.add_argument("--seconds", type=_seconds, default=1.0, help="wait for answers (%(default)g)")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = _new_lab(add, "status", "Show what there is and what is broken. Exit status 1 where something is.")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = _new_lab(add, "log", "Show what flanneld on a node said, or etcd.")
    command.add_argument("where", metavar="PLACE", help="node1, etcd")

    text = "Break something, and see whether flanneld puts it back: a cable, a daemon, entries in a node's kernel."
    command = _new_lab(add, "break", text)
    command.add_argument("what", choices=_LAB_FAULTS, help="link: the cable; flanneld, etcd: SIGKILL; the others: deleted")
    command.add_argument("node", metavar="NODE", nargs="?", default="", help="node1 ...; not for etcd")

    command = _new_lab(add, "heal", "Put back what was broken; without a name, all of it.")
    command.add_argument("what", choices=_LAB_FAULTS, nargs="?", help="as in break")
    command.add_argument("node", metavar="NODE", nargs="?", default="", help="node1 ...; not for etcd")

    _new_lab(add, "down", "Remove the lab, whatever state it is in.")


def _new_lab(add: Callable[..., argparse.ArgumentParser], name: str, text: str) -> argparse.ArgumentParser:
    command = _new(add, name, help=_summary(text), description=text)
    command.add_argument("--folder", metavar="DIR", default=_LAB_FOLDER, help="the lab's state and logs (%(default)s)")
    return command


def _json_setting(text: str) -> tuple[str, object]:
    """``DirectRouting=true``, ``Port=8472``, ``Type=udp``."""
    import json

    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


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
