"""Run a network's chain of plugins as libcni does (CNI spec section 3).

Each verb is a method of :class:`Runtime`: ADD executes the plugins in order, each with the result
of the previous one, and caches the last result; CHECK and DEL (in reverse order) pass that result again; GC
deletes what is no longer valid. Source: the behaviour of containernetworking/cni v1.3.0,
``libcni/api.go`` and ``pkg/invoke``; docs/cni-py.md lists the differences.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time

from cni_py import config, files, program
from cni_py.errors import CniError, DecodingFailure, DelegateFailed, InvalidConfig, InvalidEnvironment, IOFailure
from cni_py.jsontext import encode
from cni_py.runtime.network_config import Attachment, Network, request_config, version_number
from cni_py.runtime.result_cache import (
    CACHE_DIR,
    cache_path,
    cached_attachments,
    cached_result,
    in_version,
    read_cache,
    write_cache,
)
from cni_py.spec import call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

BUSY_ATTEMPTS = 6
"""A plugin that is being written (ETXTBSY) is retried once a second, as often as libcni does."""
OTHER_DIRECTORIES = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")
"""Directories where distributions install plugins: checked for a hint only."""


class PluginFailed(DelegateFailed):
    """Failure of a plugin in a chain: its name, the operation, and its own code and message."""

    def __init__(self, doing: str, cause: CniError) -> None:
        super().__init__(cause.code, f"{doing}: {cause.msg}", cause.details)
        self.hint = cause.hint


def find_plugin(kind: str, directories: Sequence[str]) -> str:
    """Find a plugin's executable. Raises: InvalidConfig, InvalidEnvironment."""
    if "/" in kind:
        raise InvalidConfig(f"invalid plugin name: {kind}", '"type" is the name of a file in CNI_PATH, not a path')
    if not directories:
        raise InvalidEnvironment(
            "the plugin search path is empty", hint="set CNI_PATH or --cni-path to a colon-separated list of directories"
        )
    for directory in directories:
        if os.path.isfile(f"{directory}/{kind}"):
            return f"{directory}/{kind}"
    elsewhere = [
        directory for directory in OTHER_DIRECTORIES if directory not in directories and os.path.isfile(f"{directory}/{kind}")
    ]
    hint = f"found in {elsewhere[0]}: set CNI_PATH={':'.join([*directories, elsewhere[0]])}" if elsewhere else ""
    raise InvalidEnvironment(f'failed to find plugin "{kind}" in path {":".join(directories)}', hint=hint)


class Runtime:
    """Executes chains.

    Args:
        cni_path: directories with plugins.
        cache_dir: directory for results.
        say: called with warnings that libcni does not give.
        narrate: called when a plugin starts and ends; our plugins then print each step to
            standard error.
    """

    def __init__(
        self,
        cni_path: Sequence[str],
        cache_dir: str = CACHE_DIR,
        *,
        say: Callable[[str], None],
        narrate: Callable[[str], None] | None = None,
    ) -> None:
        self.cni_path, self.cache_dir, self.say, self.narrate = tuple(cni_path), cache_dir, say, narrate

    def add(self, network: Network, attachment: Attachment) -> dict[str, Any]:
        """Execute the chain with ADD; the last plugin's result, in the network's version, is cached and returned."""
        _check_parameters("ADD", network, attachment)
        result: dict[str, Any] | None = None
        for plugin in network.plugins:
            with _naming(plugin, "add"):
                output = self._execute("ADD", request_config(network, plugin, attachment, result), attachment)
                result = _read_result(output, network.cni_version)
        assert result is not None
        write_cache(self.cache_dir, network, attachment, result)
        return result

    def delete(self, network: Network, attachment: Attachment) -> None:
        """Execute the chain in reverse order with DEL, each plugin with ADD's final result."""
        _check_parameters("DEL", network, attachment)
        prev_result = None
        path = cache_path(self.cache_dir, network.name, attachment)
        if version_number(network.cni_version) >= (0, 4, 0):
            try:
                prev_result = cached_result(self.cache_dir, network, attachment)
            except CniError as error:
                self.say(f"ignoring and deleting an invalid cached result: {error}")
                _remove(path)
        for plugin in reversed(network.plugins):
            with _naming(plugin, "delete"):
                self._execute("DEL", request_config(network, plugin, attachment, prev_result), attachment)
        _remove(path)

    def check(self, network: Network, attachment: Attachment) -> None:
        """Execute the chain with CHECK up to the first plugin that fails."""
        _check_parameters("CHECK", network, attachment)
        if version_number(network.cni_version) < (0, 4, 0):
            version = network.cni_version or "0.1.0"
            raise InvalidConfig(
                f'configuration version "{version}" does not support the CHECK command',
                hint="CHECK requires cniVersion 0.4.0 or newer",
            )
        if network.disable_check:
            self.say('"disableCheck" is set: nothing was checked')
            return
        prev_result = cached_result(self.cache_dir, network, attachment)
        if prev_result is None:
            self.say("no cached result for this attachment: was it added with this container id and interface?")
        for plugin in network.plugins:
            with _naming(plugin, "check"):
                self._execute("CHECK", request_config(network, plugin, attachment, prev_result), attachment)

    def status(self, network: Network) -> None:
        """Execute the chain with STATUS up to the first plugin that is not ready."""
        if version_number(network.cni_version) < (1, 1, 0):
            version = network.cni_version or "0.1.0"
            self.say(
                f'configuration version "{version}" does not support the STATUS command (1.1.0 does): no plugin was called'
            )
            return
        for plugin in network.plugins:
            with _naming(plugin, "status"):
                self._execute("STATUS", request_config(network, plugin, None, None), None)

    def gc(self, network: Network, valid: Sequence[tuple[str, str]] | None) -> list[CniError]:
        """Delete cached attachments of the network that are not valid, then execute the chain with GC.

        ``valid`` holds container id and interface name of each valid attachment. ``None``: all cached ones are
        deleted, and the plugins get no list. Continues after errors and returns all of them.
        """
        if network.disable_gc:
            self.say('"disableGC" is set: nothing was collected')
            return []
        errors: list[CniError] = []
        for cached in cached_attachments(self.cache_dir, network.name):
            stale = cached.attachment
            if (stale.container_id, stale.ifname) in (valid or ()):
                continue
            self.say(f"deleting stale attachment {stale.container_id} {stale.ifname}")
            try:
                self.delete(network, stale)
            except CniError as error:
                errors.append(PluginFailed(f"failed to delete stale attachment {stale.container_id} {stale.ifname}", error))
        if version_number(network.cni_version) >= (1, 1, 0):
            for plugin in network.plugins:
                conf = request_config(network, plugin, None, None)
                if valid is not None:
                    entries = [{"containerID": container_id, "ifname": ifname} for container_id, ifname in valid]
                    # libcni's second key: the name in the spec by mistake
                    conf |= {"cni.dev/valid-attachments": entries, "cni.dev/attachments": entries}
                try:
                    with _naming(plugin, "gc"):
                        self._execute("GC", conf, None)
                except CniError as error:
                    errors.append(error)
        return errors

    def recall(self, network: str, attachment: Attachment) -> Attachment:
        """Complete the attachment with the arguments of its ADD if it has none of its own (spec section 3)."""
        try:
            before = read_cache(cache_path(self.cache_dir, network, attachment)).attachment
        except (OSError, CniError):
            return attachment
        return attachment.replace(
            args=attachment.args or before.args, capability_args=attachment.capability_args or before.capability_args
        )

    def _execute(self, verb: str, conf: Mapping[str, Any], attachment: Attachment | None) -> bytes:
        """Execute one plugin and return its standard output. Raises: CniError with the plugin's code."""
        kind = config.member_of(conf, "type")
        path = find_plugin(kind, self.cni_path)
        environ = {**os.environ, **_parameters(verb, attachment), "CNI_PATH": ":".join(self.cni_path)}
        if self.narrate is not None:
            environ["CNI_PY_EXPLAIN"] = "1"
            self.narrate(f"{verb} {conf['name']}: {kind} ({path})")
        began = time.perf_counter()
        status, output = _run(path, encode(conf), environ)
        if self.narrate is not None:
            took = (time.perf_counter() - began) * 1000
            self.narrate(f"{verb} {conf['name']}: {kind} {'failed' if status else 'done'}, {took:.1f} ms")
        if status != 0:
            raise _plugin_error(status, output)
        return output


@contextlib.contextmanager
def _naming(plugin: Mapping[str, Any], doing: str) -> Iterator[None]:
    """Wrap errors inside in one that names this plugin, in libcni's words."""
    name = f' name="{plugin["name"]}"' if plugin.get("name") else ""
    try:
        yield
    except CniError as error:
        raise PluginFailed(f'plugin type="{config.member_of(plugin, "type")}"{name} failed ({doing})', error) from error


def _parameters(verb: str, attachment: Attachment | None) -> dict[str, str]:
    """Return the environment variables of a call; GC and STATUS have empty ones (Go-compatible: libcni/api.go, ``args``)."""
    of = attachment or Attachment("", "", "")
    return {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": of.container_id,
        "CNI_NETNS": of.netns,
        "CNI_IFNAME": of.ifname,
        "CNI_ARGS": ";".join(f"{key}={value}" for key, value in of.args),
    }


def _check_parameters(verb: str, network: Network, attachment: Attachment) -> None:
    """Reject values that must not become a file name or a variable. Raises: InvalidConfig, InvalidEnvironment."""
    call.check_network_name(network.name)
    parameters = _parameters(verb, attachment)
    call.parse("", parameters)
    for name, value in parameters.items():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidEnvironment(f"{name} is not UTF-8", f"{value!r}") from error


def _run(path: str, stdin: bytes, environ: Mapping[str, str]) -> tuple[int, bytes]:
    """Execute a plugin; its standard error is ours. Raises: IOFailure if it cannot be executed."""
    for attempt in range(1, BUSY_ATTEMPTS + 1):
        try:
            return program.run([path], stdin, environ, config.MAX_BYTES)
        except IOFailure as error:
            if error.errno == errno.ETXTBSY and attempt < BUSY_ATTEMPTS:
                time.sleep(1)
                continue
            if error.errno in (errno.EACCES, errno.ENOEXEC):
                error.hint = f"look at it: ls -lL {path}"
            raise
    raise AssertionError("unreachable")


def _plugin_error(status: int, output: bytes) -> CniError:
    """Decode the error that a plugin printed, or make one from its exit status."""
    ended = program.describe(status)
    if not output.strip():
        return DelegateFailed(
            100, f"netplugin failed with no error message: {ended}", "see its messages on standard error above"
        )
    try:
        raw = config.decode(output, "error of the plugin")
    except CniError:
        return DelegateFailed(
            100, "netplugin failed and its output is not an error object", output.decode(errors="replace")[:2000]
        )
    code = raw.get("code")
    message = raw.get("msg") or f"netplugin failed without a message: {ended}"
    return DelegateFailed(code if isinstance(code, int) else 100, str(message), str(raw.get("details") or ""))


def _read_result(output: bytes, version: str) -> dict[str, Any]:
    """Decode ADD's output in the network's version; a result without a version is in that version already."""
    if not output.strip():
        raise DecodingFailure("the plugin succeeded but printed no result")
    raw = {} if output.strip() == b"null" else config.decode(output, "result")
    if not isinstance(raw.get("cniVersion"), str) or not raw["cniVersion"]:
        raw["cniVersion"] = version or "0.1.0"
    return in_version(raw, version, "the result")


def _remove(path: str) -> None:
    """Remove the record; as in libcni, a failure is not an error of DEL."""
    with contextlib.suppress(CniError):
        files.remove(path)
