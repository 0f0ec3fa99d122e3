"""flanneld's options: Go's flags in Go's syntax, the environment, and the few that are ours.

Each option is a field of :class:`Options`, with its default, its reader and its help text beside it; the
parser, the help and the variables' names follow from that. An option of Go's that is not here is
in ``REFUSED`` with the reason, so that nothing is ignored in silence.

Source: flannel-io/flannel main.go (flags, order of the dump), Go's flag package (syntax), coreos/pkg
flagutil/env.go (variables). Stricter than Go: docs/flanneld.md, "Differences from Go".
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from ipaddress import ip_address, ip_network
from posixpath import normpath
from textwrap import fill
from typing import Any

from cni_py import __version__
from cni_py.flanneld.lease import why_no_node
from cni_py.flanneld.pattern import Pattern

PREFIX = "FLANNELD_"
DAY_MINUTES = 24 * 60
MARGIN_FAULT = "Invalid subnet-lease-renew-margin option, out of acceptable range"
_TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))
_FALSE = frozenset(("0", "f", "F", "FALSE", "false", "False"))
_NUMBER = re.compile(r"[+-]?(?:0|[1-9]\d{0,9}|0[xX][\da-fA-F]{1,8}|0[oO]?[0-7]{1,11}|0[bB][01]{1,32})")
_ENDPOINT = re.compile(r"(?:https?://)?(?:\[[\da-fA-F:.]+(?:%[\w.-]+)?\]|[\w.-]+)(?::(?P<port>\d{1,9}))?/?", re.ASCII)

REFUSED = {
    "vmodule": "our log has one verbosity for all modules: -v",
    "log-backtrace-at": "Go's log library prints stacks of Go; ours says module and line",
    "log_backtrace_at": "Go's log library prints stacks of Go; ours says module and line",
    "logtostderr": "the log always goes to standard error",
    "alsologtostderr": "the log always goes to standard error",
    "stderrthreshold": "the log always goes to standard error, all of it",
    "log_dir": "the log always goes to standard error: systemd and Kubernetes keep it",
    "use-multi-cluster-cidr": "newer flannel serves one network too",
    "networks": "one flanneld serves one network: start another with its own -etcd-prefix and -subnet-file",
    "listen": "flannel gave up its client and server mode: every node asks the datastore itself",
    "remote": "flannel gave up its client and server mode: every node asks the datastore itself",
}
"""Options that some flanneld knows or knew, and why ours does not."""
REFUSED_OF_GO = ("vmodule", "log_backtrace_at")
"""Options of these that Go's flanneld has now: the manual names them among the options."""


class UsageError(Exception):
    """The command line or a variable is wrong; the text names it. ``status``: what the process ends with."""

    status = 2


# ---- values -----------------------------------------------------------------------------------


def _switch(text: str) -> bool:
    if text not in _TRUE | _FALSE:
        raise ValueError("it is true or false")
    return text in _TRUE


def _families(text: str) -> bool | str:
    """A switch, or the family for which it is on."""
    if text in ("ipv4", "ipv6"):
        return text
    if text not in _TRUE | _FALSE:
        raise ValueError("it is true, false, ipv4 or ipv6")
    return text in _TRUE


def _number(low: int, high: int, unit: str = "", fault: str = "") -> Callable[[str], int]:
    """Written as Go reads it: 10, 0x0a, 012."""
    limits = f"{fault}it is a whole number{unit and f' of {unit}'}, {low} to {high}"

    def read(text: str) -> int:
        if _NUMBER.fullmatch(text) is None:
            raise ValueError(limits)
        number = int(re.sub(r"^([+-]?)0(?=[0-7])", r"\g<1>0o", text), 0)
        if not low <= number <= high:
            raise ValueError(limits)
        return number

    return read


def _needed(text: str) -> str:
    if not text:
        raise ValueError("it is empty")
    return text


def _endpoints(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(","))
    if not all(found):
        raise ValueError("it is a list of URLs with a comma between two")
    return tuple(_endpoint(each) for each in found)


def _endpoint(text: str) -> str:
    """Return it as gRPC takes it; without a port that would take 443."""
    if text.startswith("unix:"):
        return f"unix:{_needed(text.removeprefix('unix:').removeprefix('//'))}"
    shown = without_password(text)
    if shown != text:
        raise ValueError(f'"{shown}" has a user: give -etcd-username and -etcd-password')
    found = _ENDPOINT.fullmatch(text)
    if found is None:
        raise ValueError(f'"{text}" is none: write http://HOST:PORT or https://HOST:PORT, an IPv6 address in brackets')
    if found["port"] is None:
        raise ValueError(f'"{text}" has no port: write {text.rstrip("/")}:2379')
    if not 0 < int(found["port"]) < 1 << 16:
        raise ValueError(f'"{text}" has no such port: it is 1 to 65535')
    return text


def _key(text: str) -> str:
    """Clean a key as Go's ``path.Join`` does, of empty, ``.`` and ``..`` parts; "" is no part at all."""
    cleaned = re.sub("^//", "/", normpath(text))
    return "" if cleaned == "." else cleaned


def _address(*versions: int) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text and ("%" in text or ip_address(text).version not in versions):
            raise ValueError(f"it is an IPv{' or IPv'.join(str(version) for version in versions)} address")
        return text

    return read


def _network(text: str) -> str:
    if "/" not in text or "%" in text:
        raise ValueError("it is a network such as 192.168.0.0/16 or fd00::/8")
    return str(ip_network(text, strict=False))


def _public(version: int) -> Callable[[str], str]:
    """The other nodes ignore a lease with an address that no node can have."""

    def read(text: str) -> str:
        if _address(version)(text) and (why_not := why_no_node(ip_address(text))):
            raise ValueError(f"it is {why_not}, by which no other node reaches this one")
        return text

    return read


def _pattern(text: str) -> str:
    return Pattern(_needed(text)).text


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"it is {' or '.join(words)}")
        return text

    return read


def _datastore(text: str) -> str:
    if text and not (text.startswith("file:") and len(text) > len("file:")):
        raise ValueError("it is file:PATH; without this option it is etcd")
    return text


# ---- options ----------------------------------------------------------------------------------

ETCD, KUBERNETES, OTHER, NETWORK, TRAFFIC, OBSERVE, ACTIONS = (
    "etcd",
    "Kubernetes, instead of etcd",
    "A file, instead of etcd",
    "The node and its subnet",
    "Packet filter and routes",
    "Health and log",
    "Other modes",
)


def _option(
    default: object, group: str, value: str, text: str, read: Callable[[str], object] | None = None, *, is_secret: bool = False
) -> Any:
    """One option. ``value``: what its help calls the value; ``read``: raises ValueError with what would be right."""
    reader = read or (_switch if isinstance(default, bool) else str)
    return field(default=default, repr=not is_secret, metadata={"group": group, "value": value, "text": text, "read": reader})


@dataclass(frozen=True, slots=True)
class Options:
    """The options that flanneld was started with. Names are Go's, ``_`` for ``-``."""

    etcd_endpoints: tuple[str, ...] = _option(
        ("http://127.0.0.1:4001", "http://127.0.0.1:2379"),
        ETCD,
        "URL,URL",
        "etcd's members, separated by commas: http://HOST:PORT, https://…, HOST:PORT (with TLS if a TLS file is given) or "
        "unix:PATH. One is used until it fails, then the next.",
        _endpoints,
    )
    etcd_prefix: str = _option("/coreos.com/network", ETCD, "KEY", "Prefix of flannel's keys.", _key)
    etcd_keyfile: str = _option("", ETCD, "FILE", "Key of the client certificate, PEM.")
    etcd_certfile: str = _option(
        "",
        ETCD,
        "FILE",
        "Client certificate, PEM. Create one for flannel: do not copy the server's own key to other nodes.",
    )
    etcd_cafile: str = _option(
        "", ETCD, "FILE", "Certificate of the CA that signed etcd's, PEM; works without a client certificate."
    )
    etcd_username: str = _option("", ETCD, "NAME", "User name, if etcd requires users.")
    etcd_password: str = _option(
        "",
        ETCD,
        "PASSWORD",
        "Password of the user. Every user of the host can read command lines: "
        "set FLANNELD_ETCD_PASSWORD in a file that only root can read.",
        is_secret=True,
    )

    kube_subnet_mgr: bool = _option(
        False, KUBERNETES, "", "Use the node's podCIDR as subnet, and read those of the other nodes from their annotations."
    )
    kube_api_url: str = _option("", KUBERNETES, "URL", "The API server; not needed in a pod.")
    kubeconfig_file: str = _option(
        "",
        KUBERNETES,
        "FILE",
        "Credentials for the API server: token, client certificate, password or a program (exec); not needed in a pod.",
    )
    kube_annotation_prefix: str = _option(
        "flannel.alpha.coreos.com", KUBERNETES, "NAME", "Prefix of the annotations' names.", _needed
    )
    net_config_path: str = _option(
        "/etc/kube-flannel/net-conf.json", KUBERNETES, "FILE", "Network configuration, which is otherwise in etcd.", _needed
    )
    set_node_network_unavailable: bool = _option(
        True, KUBERNETES, "", "Clear the node's condition NetworkUnavailable once the network is ready."
    )

    datastore: str = _option(
        "",
        OTHER,
        "file:PATH",
        "Keep configuration and leases in this file: for one machine, a lab, or a static list. It is reloaded when it changes.",
        _datastore,
    )

    iface: tuple[str, ...] = _option(
        (), NETWORK, "NAME|IP", "Interface to the other nodes; repeatable, the first existing one is used.", _needed
    )
    iface_regex: tuple[str, ...] = _option(
        (),
        NETWORK,
        "REGEX",
        "Like -iface, by a regular expression for its address or name, in the syntax of RE2 as with Go; repeatable, tried "
        "after -iface.",
        _pattern,
    )
    iface_cidr: tuple[str, ...] = _option(
        (),
        NETWORK,
        "CIDR",
        "Like -iface, by a network of one of its addresses; repeatable, tried after -iface-regex.",
        _network,
    )
    iface_node_ip: bool = _option(
        False,
        NETWORK,
        "",
        "Like -iface, by the node's InternalIP in the Kubernetes API; tried after -iface-cidr, needs -kube-subnet-mgr.",
    )
    iface_can_reach: str = _option(
        "",
        NETWORK,
        "IP",
        "Like -iface, by the route to this address, tried last. Without any of these: the default route's interface.",
        _address(4, 6),
    )
    public_ip: str = _option(
        "",
        NETWORK,
        "IP",
        "Address under which other nodes reach this one; with -iface it may belong to a NAT device. "
        "Default: the interface's address.",
        _public(4),
    )
    public_ipv6: str = _option("", NETWORK, "IP", "Like -public-ip, for IPv6.", _public(6))
    host_network_overlap: str = _option(
        "refuse",
        NETWORK,
        "refuse|warn",
        "What to do if the subnet of this node or of another one overlaps a network of this host's links.",
        _one_of("refuse", "warn"),
    )
    subnet_file: str = _option(
        "/run/flannel/subnet.env", NETWORK, "FILE", "File with subnet and MTU to write for the flannel plugin.", _needed
    )
    allow_commands: bool = _option(
        False,
        NETWORK,
        "",
        "Run commands that the network configuration names (back end extension). "
        "Without it there is a warning; a later version will refuse them.",
    )
    subnet_lease_renew_margin: int = _option(
        60,
        NETWORK,
        "MINUTES",
        "Renew a lease this long before it expires, 24 hours after the last renewal; 1 to 1439.",
        _number(1, DAY_MINUTES - 1, "minutes", f"{MARGIN_FAULT}: "),
    )

    ip_masq: bool | str = _option(
        False,
        TRAFFIC,
        "[=ipv4|ipv6]",
        "Masquerade traffic that leaves the flannel network, of both families or of one alone. Otherwise the bridge plugin "
        "does (ipMasq).",
        _families,
    )
    vxlan_one_address: bool = _option(
        False,
        TRAFFIC,
        "",
        "With vxlan, drop packets of the tunnel for other addresses of this host than the published one.",
    )
    ip_masq_fully_random_disable: bool = _option(False, TRAFFIC, "", "Let masquerading keep source ports if possible.")
    iptables_forward_rules: bool = _option(True, TRAFFIC, "", "Accept forwarded traffic from and to the flannel network.")
    iptables_resync: int = _option(
        5,
        TRAFFIC,
        "SECONDS",
        "How often to check that all rules exist, 1 to 86400. Where the kernel notifies of changes, they are restored at once.",
        _number(1, 24 * 3600, "seconds"),
    )
    ip_blackhole_route: bool = _option(
        False, TRAFFIC, "", "Drop packets to unused addresses of our subnet, instead of sending them out again."
    )

    healthz_ip: str = _option("0.0.0.0", OBSERVE, "IP", "Address of the health server.", _address(4, 6))
    healthz_port: int = _option(
        0, OBSERVE, "PORT", "Port of the health server, for /healthz, /readyz and /metrics; 0: no server.", _number(0, 65535)
    )
    v: int = _option(
        0,
        OBSERVE,
        "LEVEL",
        "Verbosity: 1 each change to the kernel and to files, as the command that would make it; 2 also watched events.",
        _number(0, 2**31 - 1),
    )

    check_config: str = _option(
        "",
        ACTIONS,
        "FILE",
        "Check a network configuration, - for standard input, and list every key that is invalid or has no effect.",
        _needed,
    )
    cleanup: bool = _option(
        False,
        ACTIONS,
        "",
        "Remove what flanneld created and keeps when it stops: devices, routes, rules, subnet.env. Pods lose their network.",
    )
    version: bool = _option(False, ACTIONS, "", "Print the version.")

    warnings: tuple[str, ...] = ()
    """Warnings about options without effect; for the log."""
    node_addresses: tuple[str, ...] = ()
    """The node's InternalIPs, which the daemon reads with ``iface_node_ip``."""

    def masquerades(self, version: int) -> bool:
        """Return whether this family is masqueraded."""
        return self.ip_masq is True or self.ip_masq == f"ipv{version}"

    def redacted(self) -> str:
        """Return the text for the log, ``CLI flags config: …``: Go's names in Go's order, then ours; no password."""
        values = {name: _as_go(getattr(self, attribute)) for name, attribute in _DUMP.items()}
        values["etcdEndpoints"] = ",".join(self.etcd_endpoints)
        values["etcdPassword"] = "***" if self.etcd_password else ""
        return "{" + " ".join(f"{name}:{value}" for name, value in values.items()) + "}"


_DUMP = {
    "etcdEndpoints": "etcd_endpoints",
    "etcdPrefix": "etcd_prefix",
    "etcdKeyfile": "etcd_keyfile",
    "etcdCertfile": "etcd_certfile",
    "etcdCAFile": "etcd_cafile",
    "etcdUsername": "etcd_username",
    "etcdPassword": "etcd_password",
    "version": "version",
    "kubeSubnetMgr": "kube_subnet_mgr",
    "kubeApiUrl": "kube_api_url",
    "kubeAnnotationPrefix": "kube_annotation_prefix",
    "kubeConfigFile": "kubeconfig_file",
    "iface": "iface",
    "ifaceRegex": "iface_regex",
    "ipMasq": "ip_masq",
    "ipMasqRandomFullyDisable": "ip_masq_fully_random_disable",
    "ifaceCanReach": "iface_can_reach",
    "subnetFile": "subnet_file",
    "publicIP": "public_ip",
    "publicIPv6": "public_ipv6",
    "subnetLeaseRenewMargin": "subnet_lease_renew_margin",
    "healthzIP": "healthz_ip",
    "healthzPort": "healthz_port",
    "iptablesResyncSeconds": "iptables_resync",
    "iptablesForwardRules": "iptables_forward_rules",
    "blackholeRoute": "ip_blackhole_route",
    "netConfPath": "net_config_path",
    "setNodeNetworkUnavailable": "set_node_network_unavailable",
    "datastore": "datastore",
    "ifaceCIDR": "iface_cidr",
    "ifaceNodeIP": "iface_node_ip",
    "hostNetworkOverlap": "host_network_overlap",
    "allowCommands": "allow_commands",
    "vxlanOneAddress": "vxlan_one_address",
}

FIELDS: dict[str, Field[Any]] = {option.name.replace("_", "-"): option for option in fields(Options) if option.metadata}
"""Every option by its name. Completion, man page and reference are made of this, too (cni_py/cli/table.py)."""


def _as_go(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{' '.join(value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def without_password(endpoint: str) -> str:
    """The URL as it may be shown."""
    user, at, host = endpoint.rpartition("@")
    return f"{user[: user.find('://') + 3] if '://' in user else ''}***@{host}" if at else endpoint


# ---- reading ----------------------------------------------------------------------------------


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Options of the command line (without the program's name), then of the environment; ``--help`` prints and exits.

    Raises: UsageError; SystemExit(0) after the help.
    """
    given: dict[str, Any] = {}
    for name, text in _words(argv):
        option = FIELDS[name]
        value = _read(option, text, f"flag -{name}")
        given[option.name] = (*given.get(option.name, ()), value) if _is_repeatable(option) else value
    if given.get("version"):
        return Options(**given)
    warnings = _add_environment(given, environ)
    options = Options(**given)
    _check_together(options)
    return Options(**given, warnings=(*warnings, *_without_effect(options, given)))


def _words(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and text of each option on the command line. Raises: UsageError."""
    words = deque(argv)
    while words:
        word = words.popleft()
        if word == "--" and not words:
            return
        if word == "--" or len(word) < 2 or word[0] != "-":
            word = words[0] if word == "--" else word
            raise UsageError(f'"{word}" is no option, and flanneld takes nothing else; a switch has a "=": -ip-masq=false')
        name, equals, text = word.removeprefix("-").removeprefix("-").partition("=")
        if not name or name[0] == "-":
            raise UsageError(f"bad flag syntax: {word}")
        if name in ("h", "help"):
            print(help_text())
            raise SystemExit(0)
        _check_known(name, f"-{name}")
        if not equals and _is_switch(FIELDS[name]):
            text = "true"
        elif not equals:
            if not words:
                raise UsageError(f"flag needs an argument: -{name}")
            text = words.popleft()
        yield name, text


def _check_known(name: str, shown: str) -> None:
    """Raises: UsageError."""
    if name in REFUSED:
        raise UsageError(f"{shown} is not supported: {REFUSED[name]}")
    if name not in FIELDS:
        near = get_close_matches(name, FIELDS, 1)
        raise UsageError(
            f"flag provided but not defined: {shown}" + (f"; is it -{near[0]}?" if near else "; see flanneld --help")
        )


def _is_switch(option: Field[Any]) -> bool:
    return isinstance(option.default, bool)


def _is_repeatable(option: Field[Any]) -> bool:
    return option.default == ()


def _is_action(option: Field[Any]) -> bool:
    return bool(option.metadata["group"] == ACTIONS)


def _read(option: Field[Any], text: str, where: str) -> Any:
    """Raises: UsageError, with what was given and where."""
    try:
        return option.metadata["read"](text)
    except ValueError as error:
        shown = (without_password(text) if option.metadata["value"].startswith("URL") else text) if option.repr else "***"
        raise UsageError(f'invalid value "{shown}" for {where}: {error}') from error


def _add_environment(given: dict[str, Any], environ: Mapping[str, str]) -> list[str]:
    """Complete ``given`` from the environment, where an empty value is none; what has no effect. Raises: UsageError.

    Go-compatible: the command line comes first, and a variable adds one element to what is repeatable.
    """
    options = {variable_of(name): option for name, option in FIELDS.items() if not _is_action(option)}
    refused = {variable_of(name): name for name in REFUSED}
    warnings = []
    for variable, text in sorted(environ.items()):
        if not variable.startswith(PREFIX) or not text:
            continue
        option = options.get(variable)
        if option is None:
            if variable in refused:
                _check_known(refused[variable], variable)
            near = get_close_matches(variable, options, 1)
            words = f"; is it {near[0]}?" if near else ""
            warnings.append(f"{variable} is no option of flanneld that can be given in the environment{words}")
        elif option.name not in given:
            value = _read(option, text, variable)
            given[option.name] = (value,) if _is_repeatable(option) else value
    return warnings


def variable_of(name: str) -> str:
    return PREFIX + name.replace("-", "_").upper()


def _check_together(options: Options) -> None:
    """Raises: UsageError where two options contradict each other."""
    if options.datastore and options.kube_subnet_mgr:
        raise UsageError("-datastore and -kube-subnet-mgr: there is one datastore")
    if options.check_config and options.cleanup:
        raise UsageError("-check-config and -cleanup: one of them at a time")
    if options.iface_node_ip and not options.kube_subnet_mgr:
        raise UsageError("-iface-node-ip needs -kube-subnet-mgr: the node's InternalIP is in the Kubernetes API")
    if bool(options.etcd_keyfile) != bool(options.etcd_certfile):
        raise UsageError("-etcd-keyfile and -etcd-certfile: a client certificate needs both")
    if bool(options.etcd_username) != bool(options.etcd_password):
        raise UsageError("-etcd-username and -etcd-password: to log in needs both")


def _without_effect(options: Options, given: Mapping[str, Any]) -> list[str]:
    """Options of a datastore that is not the one in use."""
    reasons = {}
    if options.datastore or options.kube_subnet_mgr:
        reasons[ETCD] = "etcd is not the datastore"
    if not options.kube_subnet_mgr:
        reasons[KUBERNETES] = "it needs -kube-subnet-mgr"
    return [
        f"-{name} has no effect: {reasons[option.metadata['group']]}"
        for name, option in FIELDS.items()
        if option.name in given and option.name != "kube_subnet_mgr" and option.metadata["group"] in reasons
    ]


# ---- help -------------------------------------------------------------------------------------

_HEAD = f"""\
Usage: flanneld [OPTION]...

flanneld {__version__} of cni-py. Leases this node a subnet of the flannel network, writes
it to /run/flannel/subnet.env for the CNI plugin, and maintains the routes to the other
nodes. Its leases are Go flannel's: both can serve one cluster.

Options begin with one or two dashes; a value follows after "=" or a space, a switch
takes "=" alone (-ip-masq=false). An option that is not given is taken from its
variable: -etcd-endpoints from FLANNELD_ETCD_ENDPOINTS.
"""

_TAIL = """\
Signals: SIGTERM and SIGINT end flanneld; what it made stays, so pods keep their network.
Exit status: 0 ended or done, 1 failed, 2 an option is wrong.

Examples:
  flanneld -etcd-endpoints=https://192.168.123.11:2379 \\
    -etcd-cafile=/etc/kube-flannel/etcd-ca.crt \\
    -etcd-certfile=/etc/kube-flannel/flanneld.crt \\
    -etcd-keyfile=/etc/kube-flannel/flanneld.key -ip-masq
  flanneld -datastore=file:/var/lib/flannel/network.json -iface=eth1
  flanneld -check-config /etc/kube-flannel/net-conf.json

More: man flanneld, docs/flanneld.md"""


def help_text() -> str:
    """Return what ``--help`` prints."""
    groups: dict[str, list[str]] = {}
    for name, option in FIELDS.items():
        groups.setdefault(option.metadata["group"], []).append(_help_of(name, option))
    return "\n".join([_HEAD, *("\n".join([f"{group}:", *lines, ""]) for group, lines in groups.items()), _TAIL])


def shown_default(option: Field[Any]) -> str:
    """Return the default as the help has it; "" for none."""
    shown = ",".join(option.default) if isinstance(option.default, tuple) else _as_go(option.default)
    return "" if shown == "false" else shown


def _help_of(name: str, option: Field[Any]) -> str:
    shown = shown_default(option)
    text = option.metadata["text"] + (f" ({shown})" if shown else "")
    value = option.metadata["value"]
    head = f"  -{name}{'' if value.startswith('[') else ' '}{value}".rstrip()
    return f"{head}\n" + fill(text, 80, initial_indent=" " * 8, subsequent_indent=" " * 8, break_on_hyphens=False)
