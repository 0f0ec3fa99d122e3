"""Verbs of ``cni-py``: ``add``, ``check``, ``del``, ``gc``, ``status``, what a container runtime does, by hand.

The chains are run by runtime/chain.py; here are the command line and the environment as values, and what people read.
"""

from __future__ import annotations

import os
import sys

from cni_py.cli.output import EXIT_FAILED, EXIT_UNKNOWN, EXIT_USAGE, print_error, say, show_json
from cni_py.errors import CniError, DecodingFailure, InvalidEnvironment, InvalidNetNS, IOFailure, reason_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from cni_py.cli.attachments import Known
    from cni_py.runtime.chain import Asked, PluginFailed, Runtime
    from cni_py.runtime.network_config import Attachment, Network
    from cni_py.runtime.result_cache import Cached

NETNS_DIRECTORIES = ("/run/netns", "/var/run/netns")
DEFAULT_NETCONF_PATH = "/etc/cni/net.d"
DEFAULT_CNI_PATH = "/opt/cni/bin"


# ---- verbs ------------------------------------------------------------------------------------


def add(options: argparse.Namespace) -> int:
    """Run ``cni-py add``: the result goes to standard output."""
    from cni_py.runtime.chain import PluginFailed

    runtime, network, attachment = _prepare(options, sandbox_needed=True)
    before = attached(options, attachment)
    try:
        result = runtime.add(network, attachment)
    except PluginFailed as error:
        advise(error, options, before)
        raise
    except IOFailure as error:  # every plugin has succeeded: only the result could not be cached
        error.hint = "; ".join(filter(None, (error.hint, f"to undo what was created: {_command('del', options)}")))
        raise
    show_json(result)
    return 0


def advise(error: PluginFailed, options: argparse.Namespace, before: Known | None) -> None:
    """Complete the error of ADD with the next command, which must not cost a live pod its network.

    A plugin that fails undoes its own changes; those of the plugins in front of it stay. What was attached before is the
    work of an earlier ADD, and DEL would delete it.
    """
    from cni_py.cli.attachments import date_of

    if before is not None:
        addresses = f" with {', '.join(before.addresses)}" if before.addresses else ""
        details = f'"{before.ifname}" of {before.netns} is attached already, since {date_of(before.changed)}{addresses}'
        error.details = "; ".join(filter(None, (error.details, details)))
        advice = f"see its journal: cni-py explain {before.container_id}"
    elif error.completed:
        advice = f"to undo the changes of {', '.join(error.completed)}, which succeeded: {_command('del', options)}"
    else:
        return
    error.hint = "; ".join(filter(None, (error.hint, advice)))


def attached(options: argparse.Namespace, attachment: Attachment) -> Known | None:
    """Return the live attachment that is in the way: of this interface of the namespace, or of this container."""
    from cni_py.cli import attachments

    try:
        found = attachments.known(options.cache_dir)
    except CniError:
        return None
    ours = {(attachment.netns, attachment.ifname), (attachment.container_id, attachment.ifname)}
    same = [one for one in found if ours & {(one.netns, one.ifname), (one.container_id, one.ifname)}]
    return next((one for one in same if one.state == attachments.LIVE), None)


def delete(options: argparse.Namespace) -> int:
    """Run ``cni-py del``, with the arguments of ADD unless others are given."""
    runtime, network, attachment = _prepare(options)
    runtime.delete(network, runtime.recall(network.name, attachment))
    return 0


def check(options: argparse.Namespace) -> int:
    """Run ``cni-py check``: prints nothing if all is as ADD left it. Exits with 3 if a plugin could not be asked."""
    runtime = _runtime(options)
    answers = []
    for network, attachment in _to_check(options):
        if not os.path.exists(attachment.netns):
            raise _no_namespace(attachment, options)
        asked = runtime.check(network, runtime.recall(network.name, attachment))
        where = {"network": network.name, "containerID": attachment.container_id, "ifname": attachment.ifname}
        answers.append(where | {"netns": attachment.netns} | _as_json(asked, "differences"))
        if not options.json:
            _print_asked(asked)
    if options.json:
        show_json(answers)
    return _worst(answers)


def status(options: argparse.Namespace) -> int:
    """Run ``cni-py status``: prints nothing if every plugin is ready; without a network, the agent's statistics."""
    from cni_py.doctor import node_state

    if not options.network:
        show_json(_agent_report())
        return 0
    network = _network(options)
    asked = _runtime(options).status(network)
    found = node_state.contradictions(network)
    answer = {"network": network.name} | _as_json(asked, "notReady")
    answer["contradictions"] = [{"msg": one.msg, "details": one.details, "hint": one.hint} for one in found]
    if found:
        answer["result"] = "failed"
    if options.json:
        show_json(answer)
    else:
        _print_asked(asked)
        for one in found:
            print_error(one)
    return _worst([answer])


def _as_json(asked: Asked, key: str) -> dict[str, object]:
    """Return the outcome for programs; ``result`` is ok, failed or unknown."""
    found = [
        {"plugin": error.plugin, "code": error.code, "msg": one.msg, "details": one.details, "hint": one.hint}
        for error in asked.failed
        for one in error.differences or (error,)
    ]
    return {"result": "failed" if found else "unknown" if asked.unasked else "ok", key: found, "unasked": [*asked.unasked]}


def _worst(answers: Sequence[dict[str, object]]) -> int:
    results = [answer["result"] for answer in answers]
    return EXIT_FAILED if "failed" in results else EXIT_UNKNOWN if "unknown" in results else 0


def _print_asked(asked: Asked) -> None:
    """Print every difference as an error of its own."""
    from cni_py.errors import CheckFailed

    for error in asked.failed:
        heading = error.msg.partition(": ")[0]
        for one in error.differences:
            print_error(CheckFailed(f"{heading}: {one.msg}", one.details, one.hint))
        if not error.differences:
            print_error(error)
    for reason in asked.unasked:
        say(reason)


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
            "could not query the agent",
            f"{protocol.SOCKET_PATH}: {reason_of(error)}",
            "the plugins work without it; start it: systemctl start cni-agent.socket",
        ) from error


def gc(options: argparse.Namespace) -> int:
    """Run ``cni-py gc``: all errors are printed, not only the first."""
    from cni_py.runtime.result_cache import cached_attachments

    network = _network(options)
    valid = [*options.valid] if options.valid else None
    cached = cached_attachments(options.cache_dir, network.name)
    if options.valid_living:
        living = [one.attachment for one in cached if one.attachment.netns and os.path.exists(one.attachment.netns)]
        valid = [*(valid or ()), *((of.container_id, of.ifname) for of in living)]
    elif valid is None and not options.all and cached:
        return _list_what_gc_deletes(network, cached)
    errors = _runtime(options).gc(network, valid)
    if options.json:
        show_json({"errors": [{"code": e.code, "msg": e.msg, "details": e.details, "hint": e.hint} for e in errors]})
    else:
        for error in errors:
            print_error(error)
    return EXIT_FAILED if errors else 0


def _list_what_gc_deletes(network: Network, cached: Sequence[Cached]) -> int:
    """Refuse a GC that would delete every attachment because none was named as valid."""
    for one in cached:
        of = one.attachment
        exists = "exists" if of.netns and os.path.exists(of.netns) else "no longer exists"
        say(f"would be deleted: {of.container_id}/{of.ifname}, whose namespace {of.netns or '-'} {exists}")
    say(f"nothing was deleted: say which attachments of {network.name} are valid")
    say(f"hint: keep those whose namespace exists: cni-py gc {network.name} --valid-living; or --all to delete every one", "  ")
    return EXIT_USAGE


# ---- from options and environment to values ---------------------------------------------------


def _prepare(options: argparse.Namespace, *, sandbox_needed: bool = False) -> tuple[Runtime, Network, Attachment]:
    network, attachment = find(options, sandbox_needed=sandbox_needed)
    return _runtime(options), network, attachment


def find(options: argparse.Namespace, *, sandbox_needed: bool) -> tuple[Network, Attachment]:
    """Return the network and the attachment that the options name. Raises: CniError."""
    network = _network(options)
    attachment = _attachment(options)
    if sandbox_needed and not os.path.exists(attachment.netns):
        raise _no_namespace(attachment, options)
    return network, attachment


def _no_namespace(attachment: Attachment, options: argparse.Namespace) -> InvalidNetNS:
    """Return the error for a namespace that does not exist. A new one is no help for a deleted pod."""
    directory, _, name = attachment.netns.rpartition("/")
    hint = '"ip netns list" lists named ones'
    if options.command in ("add", "plan") and directory in NETNS_DIRECTORIES:
        hint += f', "ip netns add {name}" creates one'
    elif options.command == "check":
        hint = f"if the pod was deleted, list what is left of it: cni-py sweep --dry-run; {hint}"
    return InvalidNetNS(f'network namespace "{attachment.netns}" does not exist', hint=hint)


def _to_check(options: argparse.Namespace) -> list[tuple[Network, Attachment]]:
    """Return the attachments that the words name: NETWORK NETNS as for ADD, or what ``explain`` accepts, in any network."""
    from cni_py.runtime.network_config import load_network

    word = options.netns or options.network
    network = options.network if options.netns else ""
    if options.container_id or not (found := _known(options, word, network)):
        if not options.netns:
            from cni_py.cli import attachments

            attachments.select(attachments.known(options.cache_dir), word)  # raises, with what there is
        return [(_network(options), _attachment(options))]
    directory = setting(options.netconf_path, "NETCONFPATH", DEFAULT_NETCONF_PATH)
    warn = lambda line: say(f"warning: {line}")  # noqa: E731
    given = _given_arguments(options)
    return [
        (
            load_network(directory, one.network, warn),
            given.replace(container_id=one.container_id, netns=one.netns, ifname=one.ifname),
        )
        for one in found
    ]


def _known(options: argparse.Namespace, word: str, network: str) -> list[Known]:
    """Return what has been attached under this name and may still be there; empty if nothing was."""
    from cni_py.cli import attachments

    path = _absolute(word) if word.startswith(("/", "./", "../")) else word
    ifname = setting(options.ifname, "CNI_IFNAME", "")
    try:
        found = attachments.select(attachments.known(options.cache_dir), attachments.as_address(path), ifname, network)
    except CniError:
        return []
    return [one for one in found if one.netns and one.state != attachments.DELETED]


def _network(options: argparse.Namespace) -> Network:
    from cni_py.runtime.network_config import load_network

    directory = setting(options.netconf_path, "NETCONFPATH", DEFAULT_NETCONF_PATH)
    return load_network(directory, options.network, lambda line: say(f"warning: {line}"))


def _attachment(options: argparse.Namespace) -> Attachment:
    ifname = setting(options.ifname, "CNI_IFNAME", "eth0")
    netns = _find_netns(options, ifname)
    return _given_arguments(options).replace(
        container_id=options.container_id or container_id_of(netns), netns=netns, ifname=ifname
    )


def _given_arguments(options: argparse.Namespace) -> Attachment:
    """Return the arguments of the command line and the environment, of no container yet."""
    from cni_py.runtime.network_config import Attachment

    return Attachment(
        container_id="",
        netns="",
        ifname="",
        args=parse_args(setting(options.args, "CNI_ARGS", "")),
        capability_args=_capability_args(setting(options.cap_args, "CAP_ARGS", "")),
    )


def _runtime(options: argparse.Namespace) -> Runtime:
    from cni_py.runtime.chain import Runtime

    narrate = (lambda line: say(line, "== ")) if options.explain else None
    return Runtime(cni_path(options), options.cache_dir, say=say, narrate=narrate)


def setting(option: str | None, variable: str, default: str) -> str:
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


def cni_path(options: argparse.Namespace) -> list[str]:
    """Return the plugin directories, absolute: those given, or those of our own installation and /opt/cni/bin."""
    given = setting(options.cni_path, "CNI_PATH", "")
    if given:
        return [_absolute(directory) for directory in given.split(":") if directory]
    beside = os.path.dirname(os.path.realpath(sys.argv[0]))
    own = [directory for directory in (beside, _absolute(f"{beside}/../cni/bin")) if os.path.exists(f"{directory}/cni-plugin")]
    return list(dict.fromkeys([*own, DEFAULT_CNI_PATH]))
