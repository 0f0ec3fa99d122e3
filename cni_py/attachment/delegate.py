"""Run another plugin for this one (CNI spec section 4): the delegate of flannel, the IPAM plugin of a main plugin.

Ours run in this process, which saves an interpreter's start; third-party ones are executed as by a
runtime. :func:`choose` selects one of the two. :func:`lease` to :func:`check_ready` are for main plugins.
"""

from __future__ import annotations

import posix

from cni_py import config, dispatch, files, program
from cni_py.errors import CniError, CouldNotRun, DelegateFailed, IncompatibleVersion, InvalidConfig, NotAvailable
from cni_py.journal import note
from cni_py.jsontext import encode
from cni_py.plugin_table import PLUGINS
from cni_py.spec.environment import NESTED, is_name
from cni_py.spec.result import Result, from_json
from cni_py.spec.versions import CURRENT, at_least

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol

    from cni_py.config.models import IpamType
    from cni_py.spec.call import Call
    from cni_py.undo import Attempts, Undo

    class WithIpam(Protocol):
        """Configuration of a main plugin; ``ipam.type`` "": no addresses."""

        ipam: IpamType
        delegate_mode: Any


MAX_OUTPUT = 1 << 20
"""Maximum size of a plugin's output."""


def add(call: Call, plugin: str, conf: Mapping[str, Any], mode: str, undo: Undo | None) -> Result:
    """Run ADD of another plugin; run its DEL if it or a later step fails. Raises: CniError; the delegate's own code is kept.

    One that is executed and fails gets a DEL, too (spec section 4). Ours have undone their changes
    themselves, and a rejection ("has been allocated to") must not cost the existing attachment.

    Args:
        undo: of the caller; None: no DEL.
    """
    inverse = (f"DEL of {plugin}", delete, call, plugin, conf, mode)
    inner, executable = _prepared(call, "ADD", plugin, conf, mode)
    try:
        answer = _execute(inner, executable) if executable else dispatch.run(inner)
    except CniError as error:
        if executable and undo and not isinstance(error, CouldNotRun):
            refused = error.code == IncompatibleVersion.code
            undo.on_failure(inverse[0], _delete_if_it_can if refused else delete, *inverse[2:])
        raise
    if undo:
        undo.on_failure(*inverse)
    if isinstance(answer, Result):
        return answer
    return from_json({"cniVersion": call.cni_version, **(answer or {})}, f'result of "{plugin}"')


def delete(call: Call, plugin: str, conf: Mapping[str, Any], mode: str) -> None:
    """DEL by another plugin. Raises: CniError."""
    _invoke(call, "DEL", plugin, conf, mode)


def _delete_if_it_can(call: Call, plugin: str, conf: Mapping[str, Any], mode: str) -> None:
    """Run DEL of one that rejected ADD for its version: it has done nothing, and may reject this, too. Raises: CniError."""
    try:
        delete(call, plugin, conf, mode)
    except DelegateFailed as error:
        if error.code != IncompatibleVersion.code:
            raise
        note(f'"{plugin}" rejected DEL as it rejected ADD:  {error.msg}')


def check(call: Call, plugin: str, conf: Mapping[str, Any], mode: str) -> None:
    """CHECK by another plugin. Raises: CniError."""
    if conf.get("prevResult"):
        conf = {**conf, "prevResult": with_gateways(conf["prevResult"])}
    _invoke(call, "CHECK", plugin, conf, mode)


def with_gateways(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the result with the gateway of the addresses in every route without one. Pure.

    The meaning is the same (spec section 5, "routes"), but Go plugins up to 1.1 compare the kernel's routes with
    those of the result, and then miss their own. Forms before 0.3.0 are not changed.
    """
    if "ip4" in result or "ip6" in result or not at_least(str(result.get("cniVersion") or CURRENT), "0.3.0"):
        return result
    gateways: dict[bool, str] = {}
    for ip in result.get("ips") or []:
        if ip.get("gateway"):
            gateways.setdefault(":" in ip["gateway"], ip["gateway"])
    routes = [
        route if route.get("gw") or (":" in route["dst"]) not in gateways else {**route, "gw": gateways[":" in route["dst"]]}
        for route in result.get("routes") or []
    ]
    return {**result, "routes": routes} if routes else result


def gc(call: Call, plugin: str, conf: Mapping[str, Any], mode: str) -> None:
    """Run GC of another plugin; one without this verb has nothing to do. Raises: CniError."""
    try:
        _invoke(call, "GC", plugin, conf, mode)
    except DelegateFailed as error:
        if error.code not in (1, 3, 4):  # 3: Go's before 1.2 miss the container id first
            raise
        note(f'"{plugin}" has no GC: {error.msg}')


def status(call: Call, plugin: str, conf: Mapping[str, Any], mode: str) -> None:
    """STATUS by another plugin. Raises: CniError with code 50 or 51."""
    try:
        _invoke(call, "STATUS", plugin, conf, mode)
    except CniError as error:
        if error.code in (50, 51):
            raise
        raise NotAvailable(f'"{plugin}" is not available: {error.msg}', error.details, error.hint) from error


# ---- the IPAM plugin of a main plugin: the same configuration, and the type of ``ipam`` ------------


def lease(undo: Undo, call: Call, config: WithIpam, interface: int = 0) -> Result:
    """Run ADD of the IPAM plugin. Returns: its result, with every address on the result's interface of this index.

    Raises: CniError; InvalidConfig without a plugin, without addresses, or for a route that no interface can have.
    """
    if not config.ipam.type:
        raise InvalidConfig("no plugin name provided", '"ipam.type" is missing', 'set "ipam": {"type": "host-local", …}')
    leased = add(call, config.ipam.type, call.conf, config.delegate_mode, undo)
    if not leased.ips:
        raise InvalidConfig("IPAM plugin returned missing IP config", f'"ipam.type" is "{config.ipam.type}"')
    for route in leased.routes:
        if route.fault:
            words = f'route "{route.dst}" of the IPAM plugin cannot be added: {route.fault}'
            raise InvalidConfig(words, f'"ipam.type" is "{config.ipam.type}"')
    return leased.replace(ips=tuple(ip.replace(interface=interface) for ip in leased.ips))


def release_from_link(attempts: Attempts, call: Call, config: WithIpam) -> None:
    """Run DEL of an IPAM plugin that may need the interface, as dhcp sends from it. First, before the link is deleted."""
    if config.ipam.type and _may_need_link(config.ipam.type):
        _release(attempts, call, config)


def release(attempts: Attempts, call: Call, config: WithIpam) -> None:
    """Run DEL of any other IPAM plugin. Last: no other pod gets an address before everything else of this one is deleted."""
    if config.ipam.type and not _may_need_link(config.ipam.type):
        _release(attempts, call, config)


def _may_need_link(plugin: str) -> bool:
    """Return whether DEL may need the interface. Third-party plugins may: the Go plugins always run them first. Pure."""
    return plugin not in PLUGINS or PLUGINS[plugin].needs_link


def _release(attempts: Attempts, call: Call, config: WithIpam) -> None:
    with attempts.attempt(f"addresses of {config.ipam.type}"):
        delete(call, config.ipam.type, call.conf, config.delegate_mode)


def release_stale_from_links(attempts: Attempts, call: Call, config: WithIpam) -> None:
    """Run GC of an IPAM plugin that may need the interfaces. First, as in DEL."""
    if config.ipam.type and _may_need_link(config.ipam.type):
        _release_stale(attempts, call, config)


def release_stale(attempts: Attempts, call: Call, config: WithIpam) -> None:
    """Run GC of any other IPAM plugin. Last, as in DEL."""
    if config.ipam.type and not _may_need_link(config.ipam.type):
        _release_stale(attempts, call, config)


def _release_stale(attempts: Attempts, call: Call, config: WithIpam) -> None:
    with attempts.attempt(f"addresses of {config.ipam.type}"):
        gc(call, config.ipam.type, call.conf, config.delegate_mode)


def check_leased(call: Call, config: WithIpam) -> None:
    """Run CHECK of the IPAM plugin. Raises: CniError."""
    if config.ipam.type:
        check(call, config.ipam.type, call.conf, config.delegate_mode)


def check_ready(call: Call, config: WithIpam) -> None:
    """Run STATUS of the IPAM plugin. Raises: CniError with code 50 or 51."""
    if config.ipam.type:
        status(call, config.ipam.type, call.conf, config.delegate_mode)


# ---- how it is run ----------------------------------------------------------------------------


def _invoke(call: Call, verb: str, plugin: str, conf: Mapping[str, Any], mode: str) -> Result | Mapping[str, Any] | None:
    inner, executable = _prepared(call, verb, plugin, conf, mode)
    return _execute(inner, executable) if executable else dispatch.run(inner)


def _prepared(call: Call, verb: str, plugin: str, conf: Mapping[str, Any], mode: str) -> tuple[Call, str]:
    """Return the inner call, and the executable for it, "" to run it here. Raises: InvalidConfig."""
    inner = call.replace(verb=verb, plugin=plugin, conf=conf, callers=(*call.callers, call.plugin))
    return inner, choose(inner, mode)


def choose(call: Call, mode: str) -> str:
    """Return the executable to run for ``call.plugin``, or "" to run it in this process.

    ``mode`` is the configuration's ``delegateMode``. Raises: InvalidConfig if there is none.
    """
    if not is_name(call.plugin):
        raise InvalidConfig(f"plugin type {call.plugin!r} cannot be the name of an executable", hint='a "type" has no slashes')
    if call.plugin in call.callers:
        raise InvalidConfig(
            f'plugin "{call.plugin}" would call itself',
            f"through {' and '.join(call.callers)}",
            'check "type" of "delegate" and "ipam"',
        )
    ours = call.plugin in PLUGINS
    if mode == "native" and ours:
        return ""
    found = program.find(call.plugin, call.cni_path) if mode != "native" else None
    if found is None:
        if ours and mode == "auto":
            return ""
        where = f"in path [{' '.join(call.cni_path)}]" if mode != "native" else "among the plugins of cni-py"
        raise InvalidConfig(
            f'failed to find plugin "{call.plugin}" {where}',
            hint=f"install it, or check the configuration's type and delegateMode: {mode}",
        )
    return "" if ours and mode == "auto" and _is_ours(found, call.launcher) else found


def _is_ours(path: str, launcher: str) -> bool:
    """Return whether an executable is the launcher that was started, or a copy of it."""
    try:
        found, own = posix.stat(path), posix.stat(launcher)
        if (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino):
            return True
        return found.st_size == own.st_size < 4096 and files.read(path) == files.read(launcher)
    except OSError:
        return False


def _execute(call: Call, executable: str) -> Mapping[str, Any] | None:
    """Execute a third-party plugin; its standard error is ours. Raises: DelegateFailed."""
    environ = dict(call.environ) | {
        "CNI_COMMAND": call.verb,
        "CNI_CONTAINERID": call.container_id,
        "CNI_NETNS": call.netns,
        "CNI_IFNAME": call.ifname,
        "CNI_PATH": ":".join(call.cni_path),
        NESTED: "1",
    }
    note(f"run {executable} {call.verb}")
    status, output = program.run([executable], encode(call.conf), environ, MAX_OUTPUT, stderr_fd=call.stderr_fd)
    answer: Mapping[str, Any] = {}
    if output.strip() and (status or call.verb == "ADD"):  # the other verbs have no result: other output is not an error
        try:
            answer = config.decode(output, f'output of "{executable}"')
        except CniError as error:
            if status == 0:
                raise DelegateFailed(100, f'plugin "{executable}" {call.verb}: its output is not JSON', error.msg) from error
            answer = {"details": output[:500].decode(errors="replace")}
    if status:
        how = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
        code = answer.get("code")
        words = str(answer.get("msg") or f"no reason given, {how}"), str(answer.get("details") or "")
        raise DelegateFailed(
            code if type(code) is int and code > 0 else 100,
            f'plugin "{call.plugin}" failed ({call.verb}): {words[0]}',
            words[1],
        )
    return answer or None
