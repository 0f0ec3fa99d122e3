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
from cni_py.errors import CheckFailed, CniError, DecodingFailure, DelegateFailed, InvalidConfig, InvalidEnvironment, IOFailure
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
from cni_py.spec.environment import DIFFERENCES
from cni_py.spelling import nearest
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from typing import Any

BUSY_ATTEMPTS = 6
"""A plugin that is being written (ETXTBSY) is retried once a second, as often as libcni does."""
OTHER_DIRECTORIES = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")
"""Directories where distributions install plugins: checked for a hint only."""


CHECK_FROM, STATUS_FROM = "0.4.0", "1.1.0"
"""The versions of the spec that introduced these verbs."""
_UNSUPPORTED = {"CHECK": (1, 4), "STATUS": (1, 3, 4)}
"""Codes of a plugin that does not know this version of the spec, or this verb; Go's then misses a container id of STATUS."""


class PluginFailed(DelegateFailed):
    """Failure of a plugin in a chain: its name, the operation, and its own code and message.

    Attributes:
        plugin: its type.
        differences: each of them, from one of our plugins in CHECK.
        completed: types of the plugins in front of it that have succeeded, in ADD.
    """

    def __init__(self, doing: str, cause: CniError, plugin: str = "") -> None:
        super().__init__(cause.code, f"{doing}: {cause.msg}", cause.details)
        self.hint, self.plugin = cause.hint, plugin
        self.differences: tuple[CheckFailed, ...] = getattr(cause, "differences", ())
        self.completed: tuple[str, ...] = ()


class Asked(Value):
    """Outcome of CHECK or STATUS: what the plugins reported, and why any of them was not asked."""

    failed: tuple[PluginFailed, ...] = ()
    unasked: tuple[str, ...] = ()


def _programs(directories: Sequence[str]) -> list[str]:
    """Return the names of the files in the directories that can be read."""
    found = list[str]()
    for directory in directories:
        with contextlib.suppress(OSError):
            found += os.listdir(directory)
    return found


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
    if not hint and (near := nearest(kind, _programs(directories))):
        hint = f'correct "type" in the network configuration: is "{near}" meant?'
    raise InvalidEnvironment(f'failed to find plugin "{kind}" in path {":".join(directories)}', hint=hint)


class Runtime:
    """Executes chains.

    Args:
        cni_path: directories with plugins.
        cache_dir: directory for results.
        say: called with warnings that libcni does not give.
        narrate: called when a plugin starts and ends; our plugins then print each step to
            standard error.
        watch: context manager that each plugin is executed in, called with its type and its path.
    """

    def __init__(
        self,
        cni_path: Sequence[str],
        cache_dir: str = CACHE_DIR,
        *,
        say: Callable[[str], None],
        narrate: Callable[[str], None] | None = None,
        watch: Callable[[str, str], AbstractContextManager[None]] | None = None,
    ) -> None:
        self.cni_path, self.cache_dir, self.say, self.narrate = tuple(cni_path), cache_dir, say, narrate
        self._watch = watch or (lambda _plugin, _path: contextlib.nullcontext())

    def add(self, network: Network, attachment: Attachment) -> dict[str, Any]:
        """Execute the chain with ADD; the last plugin's result, in the network's version, is cached and returned."""
        _check_parameters("ADD", network, attachment)
        result: dict[str, Any] | None = None
        for number, plugin in enumerate(network.plugins):
            try:
                with _naming(plugin, "add"):
                    output = self._execute("ADD", request_config(network, plugin, attachment, result), attachment)
                    result = _read_result(output, network.cni_version)
            except PluginFailed as error:
                error.completed = tuple(one["type"] for one in network.plugins[:number])
                raise
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

    def check(self, network: Network, attachment: Attachment) -> Asked:
        """Execute every plugin of the chain with CHECK, in 0.4.0 if the network has an older version.

        A runtime stops at the first plugin that fails, and refuses below 0.4.0.
        """
        _check_parameters("CHECK", network, attachment)
        network = self._in_version(network, "CHECK", CHECK_FROM)
        if network.disable_check:
            return Asked(unasked=('"disableCheck" is set: nothing was checked',))
        prev_result = cached_result(self.cache_dir, network, attachment)
        if prev_result is None:
            self.say("no cached result for this attachment: was it added with this container id and interface?")
        elif not prev_result.get("interfaces"):  # results before 0.3.0 have none
            prev_result["interfaces"] = [{"name": attachment.ifname, "sandbox": attachment.netns}]
        return self._ask("CHECK", network, attachment, prev_result)

    def status(self, network: Network) -> Asked:
        """Execute every plugin of the chain with STATUS, in 1.1.0 if the network has an older version."""
        return self._ask("STATUS", self._in_version(network, "STATUS", STATUS_FROM), None, None)

    def _in_version(self, network: Network, verb: str, first: str) -> Network:
        """Return the network in a version that has the verb. People may ask for what the runtime never does."""
        if version_number(network.cni_version) >= version_number(first):
            return network
        where = f" ({network.path})" if network.path else ""
        self.say(
            f'the runtime never runs {verb} with "cniVersion": "{network.cni_version or "0.1.0"}"{where}: '
            f"the plugins are asked in version {first}"
        )
        return network.replace(cni_version=first)

    def _ask(self, verb: str, network: Network, attachment: Attachment | None, prev_result: object) -> Asked:
        failed, unasked = [], []
        for plugin in network.plugins:
            try:
                with _naming(plugin, verb.lower()):
                    self._execute(verb, request_config(network, plugin, attachment, prev_result), attachment)
            except PluginFailed as error:
                if error.code in _UNSUPPORTED[verb]:
                    unasked.append(f'plugin "{plugin["type"]}" cannot be asked: {error.msg.partition(": ")[2]}')
                else:
                    failed.append(error)
        return Asked(tuple(failed), tuple(unasked))

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
            self.say(f"deleting attachment {stale.container_id} {stale.ifname}")
            try:
                self.delete(network, stale)
            except CniError as error:
                errors.append(PluginFailed(f"failed to delete attachment {stale.container_id} {stale.ifname}", error))
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
        if verb == "CHECK":
            environ[DIFFERENCES] = "1"
        began = time.perf_counter()
        with self._watch(kind, path):
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
        kind = config.member_of(plugin, "type")
        raise PluginFailed(f'plugin type="{kind}"{name} failed ({doing})', error, kind) from error


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
    error = DelegateFailed(code if isinstance(code, int) else 100, str(message), str(raw.get("details") or ""))
    error.differences = _differences(raw.get("differences"))
    return error


def _differences(raw: object) -> tuple[CheckFailed, ...]:
    """Return the differences that one of our plugins found; empty if another plugin uses the key."""
    return tuple(
        CheckFailed(one["msg"], str(one.get("details") or ""), str(one.get("hint") or ""))
        for one in (raw if isinstance(raw, list) else ())
        if isinstance(one, dict) and isinstance(one.get("msg"), str)
    )


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
