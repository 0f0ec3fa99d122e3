"""Command line of ``cni-py``: commands, options and their help."""

from __future__ import annotations

import argparse
import sys
from textwrap import fill

from cni_py import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_DESCRIPTION = """\
Attach network namespaces to CNI networks by hand, as a container runtime would,
and see what the plugins did."""

_EXAMPLES = """\
examples:
  ip netns add blue
  cni-py add cbr0 blue --explain   attach it, and print every step as a command
  cni-py check cbr0 blue           compare it with the state that ADD created
  cni-py explain                   list the attachments of this node
  cni-py explain 10.244.91.2       show the journal of this one
  cni-py doctor                    find what is wrong with this node
  cni-py plan cbr0 blue            explain what ADD would do, and do nothing
  cni-py del cbr0 blue
  cni-py walk blue 10.244.85.2     show the path of a packet, and verify it
  cni-py repair                    restore rules after nft flush ruleset
  cni-py sweep --dry-run           list resources leaked by deleted pods
  cni-py version -v                show kernel, libraries and plugins
  cni-py config get                show the network configuration of flanneld
  cni-py lab up                    create three nodes with pods, to experiment
  cni-py lesson list               learn how all of this works

Run "cni-py help COMMAND" for details. Attachments can be shared with cnitool:
the environment, the container ids and the cached results are the same."""

_ENVIRONMENT = """\
environment (an option overrides its variable):
  NETCONFPATH  directory of network configurations  (/etc/cni/net.d)
  CNI_PATH     directories of plugins, separated by colons
               (default: this installation's plugins, then /opt/cni/bin)
  CNI_IFNAME   interface name in the sandbox        (eth0)
  CNI_ARGS     KEY=VALUE;KEY=VALUE                  (none)
  CAP_ARGS     capability arguments, JSON           (none)"""

_ADD = """\
Attach a network namespace to a network and print the result.

Executes every plugin of the network with ADD. If one fails, the changes made by the
plugins in front of it remain until "cni-py del".

examples:
  cni-py add cbr0 blue
  cni-py add cbr0 /proc/4711/ns/net --ifname eth1 --explain
  cni-py add cbr0 blue --cap-args '{"portMappings":
    [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}'"""

_CHECK = """\
Compare an attachment with the state that ADD created.

Prints every difference, with the command that repairs it. Arguments default to those of
ADD. The plugins are asked even if the network's cniVersion has no CHECK.

exit status: 0 as ADD left it, 1 differences, 3 a plugin could not be asked

examples:
  cni-py check cbr0 blue
  cni-py check default/web-1
  cni-py check 10.244.91.2 --json"""

_DEL = """\
Delete an attachment.

Executes the plugins in reverse order with DEL. Succeeds if nothing is left to delete;
the namespace need not exist any more. Arguments default to those of ADD.

example:
  cni-py del cbr0 blue"""

_GC = """\
Garbage-collect: delete every attachment of a network except the valid ones.

Deletes each cached attachment that is not valid, then lets the plugins collect
leaked resources (cniVersion 1.1.0). Without an option it lists what it would delete. The
attachments of a container runtime on this host are in the same cache.

examples:
  cni-py gc cbr0 --valid-living
  cni-py gc cbr0 --valid cnitool-352833ea4e7f1a968163/eth0"""

_STATUS = """\
Ask the plugins of a network whether they are ready, and compare what they rely on.

Prints nothing and exits with 0 if they are, and if subnet.env agrees with the bridge and
flannel's device. Without a network: print the agent's statistics as JSON: calls,
latencies (p50, p95, p99 by verb), attachments, failures, repairs.

exit status: 0 ready, 1 not ready or contradictory, 3 a plugin could not be asked

examples:
  cni-py status cbr0
  cni-py status"""

_EXPLAIN = """\
Explain what was done for an attachment, and why; or list the attachments of this node.

The list says of each whether it is live, failed, gone (its namespace no longer exists,
and DEL was not called) or deleted, and its last error. With an attachment, each change
to the kernel or to a file is shown: what it is for, as the command that would make it,
and the reason: a key of the configuration, a line of subnet.env, a section of the CNI
specification. Times are UTC. Journals are kept until the next boot.

Of changes that belong to no single attachment, --node shows sweeps, restored rules and
garbage collection, --flanneld those of flanneld and the lease or event behind each.

examples:
  cni-py explain
  cni-py explain default/web-1
  cni-py explain 10.244.91.2 -v
  cni-py explain cnitool-3528 --ifname eth1
  cni-py explain --flanneld"""

_DOCTOR = """\
Find what is wrong with this node's pod network, why it matters, and what repairs it.

Checks flanneld, its lease and subnet.env, network configurations, links, routes, ARP and
FDB entries of every peer, kernel parameters, every rule of the packet filter, address
pools, leaked resources, certificates, and the host below; and sends real packets through
the tunnel to the other nodes, for two seconds at most. With POD, IP or NODE: what
concerns that attachment (as for explain), or the node with that address or subnet.

Changes nothing. With --fix it runs the commands of findings that are safe: they restore
what flanneld or a plugin has made, set a kernel parameter, or call cni-py.

exit status: 0 nothing wrong, 1 warnings, 2 errors; 3 nothing wrong was found, but
something could not be checked, or POD is unknown

examples:
  cni-py doctor
  cni-py doctor default/web-1
  cni-py doctor 192.168.123.12
  cni-py doctor --fix --dry-run
  cni-py doctor --bundle /tmp/node1.tar.gz"""

_WALK = """\
Show the path of a packet, hop by hop, and verify it with a real one.

The path is predicted from the kernel's own tables in every namespace that the packet
passes: policy rules, routes, neighbours, FDB, rules of nftables, connection tracking. Each
change of address, port and size is marked (*). Then one packet is sent and captured at
each interface: + seen as predicted, ! different, - not seen; x marks where it ends, ? what
is not understood. With a port the packet is a TCP SYN, without one an ICMP echo.

SOURCE is a pod (web-1, default/web-1, a namespace, an address, a container id), "node",
or a place of a running lab (pod1, node1, outside). DESTINATION may also be an address
outside; add :PORT for a port. From a node the walk ends at the wire; in a lab it goes on.

Nothing remains on the node. Where rules exist, a table of nftables with the flag "owner"
traces the packet; the kernel deletes it with this process, also when that is killed.

exit status: 0 it arrives, or leaves the node as predicted; 1 it does not; 3 it cannot be
followed

examples:
  cni-py walk default/web-1 10.244.85.2
  cni-py walk default/web-1 192.0.2.2:443 --reply
  cni-py walk pod1 pod2 --size 1450
  cni-py walk outside node1:8080 --svg path.svg
  cni-py walk pod1 pod2 --no-probe --json"""

_PLAN = """\
Explain what a call would do, instead of doing it.

The plugins run in a copy of this host: its network namespaces with their links,
addresses, routes, rules and kernel parameters, and the files in which plugins keep their
state. The copy is discarded afterwards; nothing on the host changes. Each change is shown
as "cni-py explain" shows it. What would fail fails here with the same error and exit
status. Names of veths and MAC addresses are random: ADD will choose others.

With --script it prints a shell script that makes the same changes, for a namespace in the
state that this host is in. Of third-party plugins, which write no journal, the difference
between the state before and after is shown.

GC keeps the attachments whose namespace exists. With DHCP, firewalld or a device named by
its place in the hardware there is no plan: none of these has a copy.

exit status: that of the call; 3 there can be no plan

examples:
  cni-py plan cbr0 blue
  cni-py plan cbr0 blue --command DEL -v
  cni-py plan cbr0 blue --script >attach-blue.sh"""

_SWEEP = """\
Remove resources leaked by deleted pods: those that belong to no live network namespace.

Reservations of host-local, saved configurations of flannel, records, elements of
nftables, masquerade chains of iptables, leaked veths; cached results are listed, not
deleted. Each is shown with its owner, its age, and the reason why it is stale.
Resources of live pods are never removed, whichever program created them: addresses in
every namespace, processes and mounts are checked, and if any of them cannot be checked,
nothing is removed.

With --convert-to-go the masquerade and the host ports of all pods then become chains of
iptables, as the Go plugins create them: do that when you return to them, after our
plugins no longer run ("make uninstall" does it).

exit status: 0 done, 1 something could not be removed or converted, 3 not everything
could be checked

examples:
  cni-py sweep --dry-run
  cni-py sweep --grace 60 --network cbr0
  cni-py sweep --convert-to-go"""

_REPAIR = """\
Restore rules of live pods that another program has deleted.

nft flush ruleset or a restart of firewalld deletes masquerade, host ports, checks of MAC
addresses and what the plugin firewall accepts.

Only what is missing is added, for attachments whose record and sandbox exist. An address
or a host port that another attachment has now is left to it. cni-agent does the same within
seconds; so do GC, and the next ADD where everything was flushed.

exit status: 0 done, 1 something could not be restored

examples:
  cni-py repair --dry-run
  cni-py repair --network podman"""

_LAB = """\
Create a flannel network of namespaces on this machine, to learn and to test.

Nodes, their switch, a router, a host beyond it and pods are namespaces; flanneld runs on
the nodes. The machine's own network is not touched, and "down" removes everything.

examples:
  cni-py lab up --nodes 3 --backend vxlan
  cni-py lab ping                             ping all pods, in two sizes
  cni-py lab exec node1 -- ip route
  cni-py lab exec pod1 -- ping 10.244.85.2
  cni-py lab break route node1                watch flanneld restore it
  cni-py lab break link node2; cni-py lab ping; cni-py lab heal
  cni-py lab down

Places are node1 ..., pod1 ..., router, outside, switch, and etcd if the lab has one."""

_LAB_UP = """\
Create the network, and return when every flanneld is ready and the pods reach one another.

examples:
  cni-py lab up
  cni-py lab up --nodes 4 --segments 2
  cni-py lab up --segments 2 --backend-option DirectRouting=true
  cni-py lab up --backend host-gw --ipv6 --datastore etcd"""

_LESSON = """\
Learn how a pod gets its network: the exercises of the lessons in docs/lessons.

"start" builds a lab for one lesson and prints the exercise; "check" says whether it is
solved, or what is missing. The machine's own network is not touched, and "stop" removes
everything. Passed exercises are remembered in ~/.local/state/cni-py (XDG_STATE_HOME).

examples:
  cni-py lesson list
  cni-py lesson start 1
  cni-py lab exec node1            a shell in the lab, to do it in
  cni-py lesson check 1 --hint
  cni-py lesson stop 1"""

_LESSON_LIST = "List the lessons, and which exercises are passed."

_LESSON_START = """\
Build the lab of a lesson, and print its exercise.

The lab is that of "cni-py lab", in its default directory, so all commands of cni-py lab
work on it. One lesson runs at a time. For the lesson that runs already, the exercise is
printed again, and nothing is changed."""

_LESSON_CHECK = """\
Check whether the exercise of a lesson is solved, and print what is missing.

exit status: 0 solved, 1 something is missing"""

_LESSON_STOP = """\
Remove the lab of a lesson, whatever its state; progress is kept."""

_LAB_FAULTS = ("link", "etcd", "flanneld", "route", "arp", "fdb")
_FLANNELD_JOURNAL = "/run/flannel/journal"
_LAB_DIRECTORY = "/run/cni-py/lab"
_NETCONF_PATH = "NETCONFPATH; /etc/cni/net.d"
_CNI_PATH = "CNI_PATH; this installation's plugins, /opt/cni/bin"
"""The end of an option's help: its variable, its default. Reference and man page read it from there (cli/table.py)."""

_COMPLETION = """\
Print the completion of commands, options and names for a shell.

Completed are commands, options and their values: networks, namespaces, attachments,
places of a lab, files; and the options of flanneld and cni-agent. "make install" puts the
three files below PREFIX/share; a shell that does not look there reads this:

examples:
  source <(cni-py completion bash)    bash: in ~/.bashrc
  source <(cni-py completion zsh)     zsh: in ~/.zshrc, behind compinit
  cni-py completion fish | source     fish: in ~/.config/fish/config.fish"""

_CONFIG = """\
Show the plugins' configuration keys, or read and write flannel's network configuration.

"get", "set", "leases", "reserve" and "release" work on flannel's datastore, "check" on
files. "cni-py config" and "cni-py config PLUGIN" are short for "cni-py config keys"."""

_KEYS = """\
Show the configuration keys of the plugins: type, default, meaning, example.

examples:
  cni-py config keys
  cni-py config keys bridge"""

_WHICH_DATASTORE = """\
The datastore is selected as for flanneld, by its options after "--" or its variables
(FLANNELD_ETCD_ENDPOINTS ...); the default is etcd on this machine."""

_CONFIG_GET = f"""\
Show the network configuration in flannel's datastore.

Exits with 1 if it is invalid; the error names the keys.

{_WHICH_DATASTORE}

examples:
  cni-py config get
  cni-py config get -- -etcd-endpoints=https://192.168.123.11:2379 \\
    -etcd-cafile=ca.crt -etcd-certfile=client.crt \\
    -etcd-keyfile=client.key"""

_CONFIG_SET = f"""\
Validate a network configuration and write it to flannel's datastore.

Rejected if it does not fit the nodes' leases, or if it changes the back end while nodes
hold leases: they would lose connectivity to one another until all of them have been
restarted. --force writes it anyway. flanneld reads it when it starts.

{_WHICH_DATASTORE}

examples:
  cni-py config set /etc/kube-flannel/net-conf.json
  echo '{{"Network": "10.244.0.0/16", "Backend": {{"Type": "vxlan"}}}}' |
    cni-py config set -
  cni-py config set net.json -- -datastore=file:/var/lib/flannel/net.json"""

_CONFIG_RESERVE = f"""\
Reserve a subnet permanently for the node with this public address.

The node uses it when its flanneld starts; if it has that subnet now, it keeps it.

{_WHICH_DATASTORE}

examples:
  cni-py config reserve 10.244.91.0/24 192.168.123.11
  cni-py config reserve 10.244.91.0/24,fd00:10:244:91::/64 192.168.123.11"""

_CONFIG_RELEASE = f"""\
Turn a reserved subnet into a lease: it expires after 24 hours unless its node renews it.

{_WHICH_DATASTORE}

example:
  cni-py config release 10.244.91.0/24"""

_CONFIG_LEASES = f"""\
List the leases and reservations of flannel's nodes.

{_WHICH_DATASTORE}

examples:
  cni-py config leases
  cni-py config leases --json"""

_CONFIG_CHECK = """\
Check configuration files, as flanneld and the plugins read them.

Network configurations of flannel, and *.conflist, *.conf, *.json of CNI: values, unknown
keys, and keys that are probably mistyped. Nothing is executed, and nothing is changed.

exit status: 0 valid, 1 an error; with --strict a warning too

examples:
  cni-py config check /etc/kube-flannel/net-conf.json
  cni-py config check --strict /etc/cni/net.d/*"""

_DATASTORE_COMMANDS = {
    "get": _CONFIG_GET,
    "set": _CONFIG_SET,
    "leases": _CONFIG_LEASES,
    "reserve": _CONFIG_RESERVE,
    "release": _CONFIG_RELEASE,
}
CONFIG_COMMANDS = ("keys", "check", *_DATASTORE_COMMANDS)

SHELLS = ("bash", "zsh", "fish")

_VERBS = {"add": _ADD, "check": _CHECK, "del": _DEL, "gc": _GC, "status": _STATUS}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; ``command`` names the command. Exits with 2 on wrong usage, with 0 after help."""
    words = list(sys.argv[1:] if argv is None else argv)
    typed = words
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if words[:1] == ["config"] and words[1:2] not in ([name] for name in (*CONFIG_COMMANDS, "-h", "--help")):
        words.insert(1, "keys")  # the short form
    parser = build()
    if not words:
        words = ["--help"]
    _check_command(parser, words)
    if words[0] == "config" and words[1] in _DATASTORE_COMMANDS:
        return _parse_with_flanneld_options(parser, words)
    options = parser.parse_args(words)
    options.typed = typed
    return options


def build() -> argparse.ArgumentParser:
    """Return the parser of all commands, of which completion, man page and reference are made too (cli/table.py)."""
    parser = _new(argparse.ArgumentParser, prog="cni-py", description=_DESCRIPTION, epilog=f"{_EXAMPLES}\n\n{_ENVIRONMENT}")
    parser.add_argument("--version", action="version", version=f"cni-py {__version__}", help="show the version, and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, text in _VERBS.items():
        command = _new(commands.add_parser, name, help=_summary(text), description=text, epilog=_ENVIRONMENT)
        _add_verb_arguments(command, name)
    _add_repair(_new(commands.add_parser, "repair", help=_summary(_REPAIR), description=_REPAIR))
    _add_sweep(_new(commands.add_parser, "sweep", help=_summary(_SWEEP), description=_SWEEP))
    _add_explain(_new(commands.add_parser, "explain", help=_summary(_EXPLAIN), description=_EXPLAIN))
    _add_doctor(_new(commands.add_parser, "doctor", help=_summary(_DOCTOR), description=_DOCTOR))
    _add_walk(_new(commands.add_parser, "walk", help=_summary(_WALK), description=_WALK))
    _add_plan(_new(commands.add_parser, "plan", help=_summary(_PLAN), description=_PLAN))
    text = "show the version, and with -v the kernel, libraries and plugins of this host"
    _add_version(_new(commands.add_parser, "version", help=text))
    config = _new(commands.add_parser, "config", help=_summary(_CONFIG), description=_CONFIG)
    config_commands = config.add_subparsers(title="commands", metavar="COMMAND", dest="config_command", required=True)
    _add_config_commands(config_commands.add_parser)
    _add_completion(_new(commands.add_parser, "completion", help=_summary(_COMPLETION), description=_COMPLETION))
    lesson = _new(commands.add_parser, "lesson", help=_summary(_LESSON), description=_LESSON)
    lesson_commands = lesson.add_subparsers(title="commands", metavar="COMMAND", dest="lesson_command", required=True)
    _add_lesson_commands(lesson_commands.add_parser)
    lab = _new(commands.add_parser, "lab", help=_summary(_LAB), description=_LAB)
    lab_commands = lab.add_subparsers(title="commands", metavar="COMMAND", dest="lab_command", required=True)
    _add_lab_commands(lab_commands.add_parser)
    return parser


def _parse_with_flanneld_options(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Parse a command on the datastore: flanneld's own parser takes what follows "--", since Go's flags differ."""
    end = words.index("--") if "--" in words else len(words)
    options, unknown = parser.parse_known_args(words[:end])
    if unknown:
        parser.error(f'unrecognized arguments: {" ".join(unknown)} (flanneld\'s options must follow "--")')
    options.flanneld_options = words[end + 1 :]
    return options


def _check_command(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Reject an unknown command, with the most similar one; argparse would list all of them."""
    choices = commands_of(parser)
    if not choices or not words or words[0].startswith("-"):
        return
    if words[0] not in choices:
        parser.error(f'unknown command "{words[0]}"{did_you_mean(words[0], choices)}')
    _check_command(choices[words[0]], words[1:])


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the commands of a parser by their names, in order; none if it is that of a single command."""
    return next((dict(action.choices) for action in parser._actions if isinstance(action, argparse._SubParsersAction)), {})


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``: did you mean "add"?``, or "" if no choice is similar."""
    from difflib import get_close_matches

    close = get_close_matches(word, list(choices), n=1)
    return f': did you mean "{close[0]}"?' if close else ""


def _add_repair(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dry-run", action="store_true", help="show what would be restored, without any change")
    command.add_argument("--network", metavar="NAME", action="append", help="this network only (may be repeated)")
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_sweep(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dry-run", action="store_true", help="show what would be removed, without any change")
    text = "keep what is younger (%(default)g)"
    command.add_argument("--grace", metavar="SECONDS", type=_seconds, default=300.0, help=text)
    command.add_argument("--network", metavar="NAME", action="append", help="this network only (may be repeated)")
    command.add_argument("--json", action="store_true", help="print JSON")
    text = f"directory of network configurations, which name state directories ({_NETCONF_PATH})"
    command.add_argument("--netconf-path", metavar="DIR", help=text)
    text = "afterwards, turn masquerade and host ports into what the Go plugins create and delete"
    command.add_argument("--convert-to-go", action="store_true", help=text)


def _add_doctor(command: argparse.ArgumentParser) -> None:
    text = "an attachment, as for explain; or a node, by its address or subnet"
    command.add_argument("target", metavar="POD|IP|NODE", nargs="?", default="", help=text)
    command.add_argument("--fix", action="store_true", help="run the commands of findings that are safe, and examine again")
    command.add_argument("--dry-run", action="store_true", help="print the commands that --fix would run")
    text = "write a report with facts, journals and versions, without secrets"
    command.add_argument("--bundle", metavar="FILE.tar.gz", help=text)
    command.add_argument("--no-probes", action="store_true", help="send no packets to other nodes")
    command.add_argument("--rules", action="store_true", help="list the rules")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--netconf-path", metavar="DIR", help=f"directory of network configurations ({_NETCONF_PATH})")
    command.add_argument("--cni-path", metavar="DIR:DIR", help=f"directories of plugins ({_CNI_PATH})")
    command.add_argument("--cache-dir", metavar="DIR", default="/var/lib/cni", help="directory of cached results (%(default)s)")


def _add_explain(command: argparse.ArgumentParser) -> None:
    text = "a container id or its beginning, a pod, a network namespace, an address; default: list all"
    command.add_argument("attachment", nargs="?", metavar="ATTACHMENT", help=text)
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("-i", "--ifname", default="", metavar="NAME", help="this interface only")
    command.add_argument("--network", default="", metavar="NAME", help="this network only")
    text = "show rules of the packet filter that all pods share, too"
    command.add_argument("-v", "--verbose", action="store_true", help=text)
    which = command.add_mutually_exclusive_group()
    text = "the changes of flanneld; FILE: its journal, beside its -subnet-file (%(const)s)"
    which.add_argument("--flanneld", nargs="?", const=_FLANNELD_JOURNAL, metavar="FILE", help=text)
    text = "changes that belong to no single attachment: sweeps, restored rules, GC"
    which.add_argument("--node", action="store_true", help=text)


def _add_walk(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", metavar="SOURCE", help="pod, node, or place of a lab that sends; or an address")
    text = "pod, node, place of a lab, or address; IPv6 with a port in brackets"
    command.add_argument("destination", metavar="DESTINATION[:PORT]", help=text)
    text = "icmp, tcp or udp; default: tcp with a port, icmp without one"
    command.add_argument("--protocol", choices=("icmp", "tcp", "udp"), help=text)
    command.add_argument("--size", metavar="BYTES", type=int, default=0, help="of the IP packet, which has DF set (84)")
    command.add_argument("-6", "--ipv6", action="store_true", help="the IPv6 address of a destination that has both")
    command.add_argument("--reply", action="store_true", help="show every hop of the reply too")
    command.add_argument("--no-probe", action="store_true", help="predict alone; send nothing")
    command.add_argument("--seconds", type=_seconds, default=2.0, help="time to wait for the packet (%(default)g)")
    command.add_argument("--svg", metavar="FILE", default="", help="draw it into this file too")
    command.add_argument("--json", action="store_true", help="print JSON")
    text = "of a lab whose places are meant (%(default)s)"
    command.add_argument("--directory", metavar="DIR", default=_LAB_DIRECTORY, help=text)


def _add_plan(command: argparse.ArgumentParser) -> None:
    command.add_argument("network", metavar="NETWORK", help='the "name" in its configuration')
    command.add_argument("netns", metavar="NETNS", help='path of a network namespace, or its name in "ip netns"')
    text = "the call: ADD, DEL, CHECK or GC (%(default)s)"
    command.add_argument("--command", dest="verb", choices=("ADD", "DEL", "CHECK", "GC"), default="ADD", help=text)
    _add_attachment_arguments(command)
    _add_runtime_arguments(command)
    form = command.add_mutually_exclusive_group()
    form.add_argument("--script", action="store_true", help="print a shell script that makes the changes")
    form.add_argument("--json", action="store_true", help="print JSON")
    text = "show rules of the packet filter that all pods share, too"
    command.add_argument("-v", "--verbose", action="store_true", help=text)


def _add_version(command: argparse.ArgumentParser) -> None:
    command.add_argument("-v", "--verbose", action="store_true", help="libraries, kernel, masquerade back end, plugins")
    command.add_argument("--cni-path", metavar="DIR:DIR", help=f"directories of plugins ({_CNI_PATH})")
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_completion(command: argparse.ArgumentParser) -> None:
    command.add_argument("shell", choices=SHELLS, help="the shell that reads it")


def _add_config_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = _new(add, "keys", help=_summary(_KEYS), description=_KEYS)
    command.add_argument("plugin", nargs="?", metavar="PLUGIN", default="", help="this plugin only")
    command.add_argument("--markdown", action="store_true", help="print docs/configuration.md")
    command = _new(add, "check", help=_summary(_CONFIG_CHECK), description=_CONFIG_CHECK)
    command.add_argument("files", metavar="FILE", nargs="+", help="configuration file")
    command.add_argument("--strict", action="store_true", help="fail for warnings too")
    command.add_argument("--json", action="store_true", help="print JSON")
    for name, text in _DATASTORE_COMMANDS.items():
        _add_datastore_arguments(_new(add, name, help=_summary(text), description=text), name)


def _add_datastore_arguments(command: argparse.ArgumentParser, name: str) -> None:
    if name == "set":
        command.add_argument("source", metavar="FILE", help="- for standard input")
        command.add_argument("--force", action="store_true", help="write it even if it does not fit the nodes' leases")
    command.add_argument("--json", action="store_true", help="print JSON")
    if name in ("reserve", "release"):
        text = "such as 10.244.91.0/24; for a dual-stack network one per family, separated by a comma"
        command.add_argument("subnet", metavar="SUBNET", help=text)
    if name == "reserve":
        command.add_argument("public_ip", metavar="PUBLIC_IP", help="address that identifies the node")
    words = " ".join(command.format_usage().split()).removeprefix("usage: ").replace(" [-h]", "").replace("[--json] ", "")
    command.usage = f"{words} [--json] [-- FLANNELD-OPTION ...]".replace("[--json] [--json]", "[--json]")


def _add_lab_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = _new_lab(add, "up", _LAB_UP)
    command.add_argument("--nodes", type=int, default=3, metavar="N", help="number of nodes (%(default)s)")
    command.add_argument("--backend", default="vxlan", metavar="TYPE", help="vxlan, host-gw, udp, ... (%(default)s)")
    text = "a key of the Backend object; the value is JSON or plain text (may be repeated)"
    command.add_argument("--backend-option", metavar="KEY=VALUE", type=_json_setting, action="append", default=[], help=text)
    command.add_argument("--ipv6", action="store_true", help="use IPv6 too")
    command.add_argument("--no-ipv4", action="store_true", help="use IPv6 only")
    command.add_argument("--datastore", choices=("file", "etcd"), default="file", help="where leases are stored (%(default)s)")
    command.add_argument(
        "--segments", type=int, choices=(1, 2), default=1, help="2: put every other node behind a router (%(default)s)"
    )
    command.add_argument("--pods", type=int, default=1, metavar="N", help="pods per node (%(default)s)")
    command.add_argument("--net-conf", metavar="FILE", help="complete network configuration, - for standard input")
    command.add_argument("--flanneld", metavar="PATH", default="", help="use this flanneld instead of this installation's")
    text = "node N leases the Nth subnet of the network, instead of one at random: the same addresses each time"
    command.add_argument("--numbered", action="store_true", help=text)
    text = "option for flanneld, such as --flanneld-option=-v=1 (may be repeated)"
    command.add_argument("--flanneld-option", metavar="OPTION", action="append", default=[], help=text)

    command = _new_lab(add, "exec", "Run a command in a place of the lab; the default is a shell.")
    command.add_argument("where", metavar="PLACE", help="node1, pod1, router, outside, switch, etcd")
    command.add_argument("argv", metavar="-- COMMAND", nargs=argparse.REMAINDER, help="command with its arguments")

    text = (
        "Ping from every pod to every other one, and print the time of a small packet and of a full-sized one with DF.\n\n"
        "exit status: 0 all reach each other, 1 a reply is missing"
    )
    command = _new_lab(add, "ping", text)
    command.add_argument("--outside", action="store_true", help="ping the host beyond the router too")
    command.add_argument("--seconds", type=_seconds, default=1.0, help="time to wait for replies (%(default)g)")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = _new_lab(
        add, "status", "Show the state of the lab and what is broken.\n\nexit status: 0 nothing, 1 something is broken"
    )
    command.add_argument("--json", action="store_true", help="print JSON")

    command = _new_lab(add, "log", "Show the log of a node's flanneld or of etcd.")
    command.add_argument("where", metavar="PLACE", help="node1, etcd")

    text = "Break something, and see whether flanneld restores it: a cable, a daemon, entries in a node's kernel."
    command = _new_lab(add, "break", text)
    command.add_argument(
        "what", choices=_LAB_FAULTS, help="link: cable unplugged; flanneld, etcd: SIGKILL; others: entries deleted"
    )
    command.add_argument("node", metavar="NODE", nargs="?", default="", help="node1 ...; not for etcd")

    command = _new_lab(add, "heal", "Repair what was broken; without arguments, everything.")
    command.add_argument("what", choices=_LAB_FAULTS, nargs="?", help="as in break")
    command.add_argument("node", metavar="NODE", nargs="?", default="", help="node1 ...; not for etcd")

    _new_lab(add, "down", "Remove the lab, whatever its state.")


def _add_lesson_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = _new(add, "list", help=_summary(_LESSON_LIST), description=_LESSON_LIST)
    command.add_argument("--json", action="store_true", help="print JSON")
    for name, text in {"start": _LESSON_START, "check": _LESSON_CHECK, "stop": _LESSON_STOP}.items():
        command = _new(add, name, help=_summary(text), description=text)
        which = "number of the lesson, as cni-py lesson list has it"
        if name == "start":
            command.add_argument("number", metavar="N", type=_lesson_number, help=which)
        else:
            which += "; default: the one that runs"
            command.add_argument("number", metavar="N", type=_lesson_number, nargs="?", help=which)
        if name == "check":
            command.add_argument("--hint", action="store_true", help="print a hint about the first requirement that is missing")
            command.add_argument("--json", action="store_true", help="print JSON")


def _new_lab(add: Callable[..., argparse.ArgumentParser], name: str, text: str) -> argparse.ArgumentParser:
    command = _new(add, name, help=_summary(text), description=text)
    text = "state and logs of the lab (%(default)s)"
    command.add_argument("--directory", metavar="DIR", default=_LAB_DIRECTORY, help=text)
    former = argparse.SUPPRESS  # no default either: it would replace the one above
    command.add_argument("--folder", dest="directory", default=former, help=former)
    return command


def _json_setting(text: str) -> tuple[str, object]:
    """Parse ``DirectRouting=true``, ``Port=8472``, ``Type=udp``."""
    import json

    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _add_verb_arguments(command: argparse.ArgumentParser, verb: str) -> None:
    if verb == "check":  # argparse would print "NETWORK [NETNS]"
        command.usage = "cni-py check [NETWORK] NETNS|POD|ADDRESS|CONTAINERID [options]"
    nargs = "?" if verb == "status" else None
    command.add_argument("network", metavar="NETWORK", nargs=nargs, help='the "name" in its configuration')
    if verb in ("add", "check", "del"):
        text = 'path of a network namespace, or its name in "ip netns"'
        if verb == "check":
            text += "; or a pod (web-1, default/web-1), an address, a container id; with one of these NETWORK may be left out"
        command.add_argument("netns", metavar="NETNS", nargs="?" if verb == "check" else None, help=text)
        _add_attachment_arguments(command)
    else:
        command.add_argument("netns", metavar="NETNS", nargs="?", help="ignored; accepted because cnitool requires it")
    if verb == "gc":
        text = "keep this attachment (may be repeated)"
        command.add_argument("--valid", metavar="CONTAINERID/IFNAME", type=_valid_attachment, action="append", help=text)
        command.add_argument("--valid-living", action="store_true", help="keep cached attachments whose namespace exists")
        command.add_argument("--all", action="store_true", help="delete every cached attachment, also those of live pods")
    if verb != "add":
        command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--explain", action="store_true", help="print each step to standard error")
    _add_runtime_arguments(command)


def _add_attachment_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("-i", "--ifname", metavar="NAME", help="interface name in the sandbox (CNI_IFNAME; eth0)")
    text = "container id (cnitool's, derived from the path of the namespace)"
    command.add_argument("--container-id", metavar="ID", help=text)
    command.add_argument("--args", metavar="KEY=VALUE;...", type=_pairs, help="arguments for the plugins (CNI_ARGS; none)")
    command.add_argument("--cap-args", metavar="JSON", type=_object, help="capability arguments (CAP_ARGS; none)")


def _add_runtime_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--netconf-path", metavar="DIR", help=f"directory of network configurations ({_NETCONF_PATH})")
    command.add_argument("--cni-path", metavar="DIR:DIR", help=f"directories of plugins ({_CNI_PATH})")
    command.add_argument("--cache-dir", metavar="DIR", default="/var/lib/cni", help="directory for results (%(default)s)")


def _valid_attachment(text: str) -> tuple[str, str]:
    container_id, _, ifname = text.partition("/")
    if not container_id or not ifname:
        raise argparse.ArgumentTypeError(f"{text!r} is not CONTAINERID/IFNAME")
    return container_id, ifname


def _pairs(text: str) -> str:
    """Check that it is ``KEY=VALUE;KEY=VALUE``, and return it."""
    for pair in text.split(";") if text else ():
        if pair.count("=") != 1 or not all(pair.split("=")):
            raise argparse.ArgumentTypeError(f'"{pair}" is not KEY=VALUE')
    return text


def _object(text: str) -> str:
    """Check that it is a JSON object, and return it."""
    import json

    try:
        is_object = not text or isinstance(json.loads(text), dict)
    except ValueError:
        is_object = False
    if not is_object:
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return text


def _lesson_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a lesson: cni-py lesson list")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _new(make: Callable[..., argparse.ArgumentParser], *args: str, **kwargs: str) -> argparse.ArgumentParser:
    kwargs["description"] = _folded(kwargs.get("description", ""))
    return make(*args, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)


def _folded(text: str) -> str:
    """Fold paragraphs to 80 columns; those with an indented line, such as examples, are kept as they are."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(one if "\n  " in one else fill(one, 79, break_on_hyphens=False) for one in paragraphs)


def _summary(text: str) -> str:
    """Return the first sentence, in the form of the list of commands."""
    line = text.partition("\n")[0].rstrip(".")
    return line[0].lower() + line[1:]
