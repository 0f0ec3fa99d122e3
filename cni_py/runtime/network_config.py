"""Network configurations as a runtime reads them (CNI spec section 1), and the request for each plugin (section 3).

:func:`load_network` finds a network by name in a directory, :func:`request_config` derives the
configuration of one call. Nothing is changed. Source: the behaviour of containernetworking/cni
v1.3.0, ``libcni/conf.go``; docs/cni-py.md lists the differences.
"""

from __future__ import annotations

import os
from contextlib import suppress

from cni_py import config, files
from cni_py.config import keys
from cni_py.errors import CniError, InvalidConfig, IOFailure
from cni_py.jsontext import encode
from cni_py.spec import call
from cni_py.spec.versions import CURRENT
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

_LIST_KEYS = ("cniVersion", "cniVersions", "name", "disableCheck", "disableGC", "loadOnlyInlinedPlugins", "plugins")
_PLUGIN_KEYS: dict[str, type] = {
    "cniVersion": str,
    "name": str,
    "capabilities": dict,
    "ipam": dict,
    "dns": dict,
    "prevResult": dict,
}


class Network(Value):
    """Configuration of a network: ``plugins`` in order, ``source`` the text that is cached with the result."""

    name: str
    cni_version: str
    plugins: tuple[Mapping[str, Any], ...]
    source: bytes
    path: str = ""
    disable_check: bool = False
    disable_gc: bool = False


class Attachment(Value):
    """Parameters of one attachment (spec section 3, "Attachment Parameters")."""

    container_id: str
    netns: str
    ifname: str
    args: tuple[tuple[str, str], ...] = ()
    capability_args: Mapping[str, Any] = {}


class NoSuchNetwork(CniError):
    """Lookup of a network that has no configuration in the directory."""


def conf_files(directory: str, *endings: str) -> list[str]:
    """Return the paths of the files with one of these endings, in lexical order; empty if the directory does not exist."""
    try:
        with os.scandir(directory) as entries:
            names = [e.name for e in entries if os.path.splitext(e.name)[1] in endings and not e.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise IOFailure(f'could not read "{directory}"', error.strerror or "", errno=error.errno or 0) from error
    return [f"{directory}/{name}" for name in sorted(names)]


def read_all(directory: str, warn: Callable[[str], None]) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Yield path, text and JSON object of every configuration: ``*.conflist`` first, then ``*.conf`` and ``*.json``.

    A file that is not a JSON object is skipped with a warning. (libcni fails there: one broken file
    makes every later network unusable.)
    """
    for path in [*conf_files(directory, ".conflist"), *conf_files(directory, ".conf", ".json")]:
        try:
            content = files.read(path, config.MAX_BYTES)
            raw = config.decode(content, path)
        except OSError as error:
            warn(f"skipped {path}: {error.strerror}")
        except CniError as error:
            warn(f"skipped {path}: {error.msg}")
        else:
            if not _name(path, raw):
                warn(f'skipped {path}: missing "name"')
            yield path, content, raw


def names_in(directory: str) -> set[str]:
    """Return the names of all networks that are configured in a directory; empty if it cannot be read."""
    with suppress(CniError):
        return {found for path, _, raw in read_all(directory, lambda _: None) if isinstance(found := _name(path, raw), str)}
    return set()


def load_network(directory: str, name: str, warn: Callable[[str], None]) -> Network:
    """Load the first configuration with this name. Raises: NoSuchNetwork; InvalidConfig or IOFailure if it is broken."""
    seen: dict[str, str] = {}
    skipped: list[str] = []

    def warn_of(line: str) -> None:
        skipped.append(line)
        warn(line)

    for path, content, raw in read_all(directory, warn_of):
        found = _name(path, raw)
        if found == name:
            _warn_of_unknown_keys(path, raw, warn)
            return parse_list(path, content, raw) if path.endswith(".conflist") else wrap_single(path, raw)
        if isinstance(found, str) and found:
            seen.setdefault(found, os.path.basename(path))
    if seen:
        there = ", ".join(f"{other} ({file})" for other, file in seen.items())
        raise NoSuchNetwork(f'no net configuration with name "{name}" in {directory}', hint=f"existing networks: {there}")
    if skipped:
        raise NoSuchNetwork(f"no net configurations found in {directory}", "; ".join(skipped), "correct these files")
    raise NoSuchNetwork(
        f"no net configurations found in {directory}",
        hint="put one there, as conf/10-flannel.conflist; or name another directory by --netconf-path",
    )


def _name(path: str, raw: Mapping[str, Any]) -> Any:
    """Return the network's name. Go-compatible: the keys of a list are exact, those of a plugin are not."""
    return raw.get("name") if path.endswith(".conflist") else config.member_of(raw, "name")


def _warn_of_unknown_keys(path: str, raw: Mapping[str, Any], warn: Callable[[str], None]) -> None:
    if path.endswith(".conflist"):
        for key in raw:
            meant = "" if key in _LIST_KEYS else keys.meant(key, _LIST_KEYS)
            if meant:
                warn(f'{path}: unknown key "{key}" has no effect: is "{meant}" meant? The keys of a list are exact')


def parse_list(path: str, content: bytes, raw: Mapping[str, Any]) -> Network:
    """Parse a network configuration (spec section 1), with the plugins of its sibling directory. Raises: InvalidConfig."""
    inlined_only = _flag(path, raw, "loadOnlyInlinedPlugins")
    inlined = raw.get("plugins", [])
    if "plugins" in raw and (not isinstance(inlined, list) or not inlined):
        raise InvalidConfig(f'{path}: "plugins" must be a list of at least one plugin')
    for number, plugin in enumerate(inlined):
        check_plugin(f"{path}, plugin {number}", plugin)
    if inlined_only and not inlined:
        raise InvalidConfig(f'{path}: "loadOnlyInlinedPlugins" is true, and "plugins" is missing')
    plugins = [*inlined, *([] if inlined_only else _sibling_plugins(path, raw["name"]))]
    if not plugins:
        directory = f"{os.path.dirname(path)}/{raw['name']}"
        raise InvalidConfig(f"{path}: no plugin configs found", hint=f'add "plugins", or put *.conf files into {directory}')
    return Network(
        name=raw["name"],
        cni_version=select_version(path, raw),
        plugins=tuple(plugins),
        source=content,
        path=path,
        disable_check=_flag(path, raw, "disableCheck"),
        disable_gc=_flag(path, raw, "disableGC"),
    )


def wrap_single(path: str, raw: Mapping[str, Any]) -> Network:
    """Wrap a configuration of one plugin, the form before 1.0.0, in a list. Raises: InvalidConfig."""
    if "plugins" in raw and config.member_of(raw, "type") is None:
        raise InvalidConfig(
            f"{path}: missing 'type'", hint=f"a list of plugins must be named {os.path.splitext(path)[0]}.conflist"
        )
    check_plugin(path, raw)
    name, version = config.member_of(raw, "name"), config.member_of(raw, "cniVersion") or ""
    source = encode({"name": name, "cniVersion": version, "plugins": [raw]})
    return Network(name=name, cni_version=version, plugins=(raw,), source=source, path=path)


def check_plugin(where: str, plugin: object) -> None:
    """Reject a plugin configuration whose common keys have the wrong type. Raises: InvalidConfig."""
    if not isinstance(plugin, dict):
        raise InvalidConfig(f"{where}: a plugin must be an object")
    kind = config.member_of(plugin, "type")
    if not isinstance(kind, str) or not kind:
        raise InvalidConfig(f"{where}: missing 'type'", hint='"type" is the name of the plugin\'s executable')
    for key, expected in _PLUGIN_KEYS.items():
        if not isinstance(config.member_of(plugin, key), expected | None):
            raise InvalidConfig(f'{where}: "{key}" must be {"an object" if expected is dict else "a string"}')
    for capability, wanted in (config.member_of(plugin, "capabilities") or {}).items():
        if not isinstance(wanted, bool):
            raise InvalidConfig(f'{where}: "capabilities.{capability}" must be true or false')


def select_version(where: str, raw: Mapping[str, Any]) -> str:
    """Return the highest of ``cniVersions`` and ``cniVersion`` that this suite supports. Raises: InvalidConfig."""
    version = raw.get("cniVersion", "")
    offered = raw.get("cniVersions", [])
    if not isinstance(version, str):
        raise InvalidConfig(f'{where}: "cniVersion" must be a string')
    if not isinstance(offered, list) or not all(isinstance(v, str) for v in offered):
        raise InvalidConfig(f'{where}: "cniVersions" must be a list of strings')
    if "cniVersions" not in raw:
        return version
    usable = [v for v in [*offered, *([version] if version else [])] if version_number(v) <= version_number(CURRENT)]
    return max(usable, key=version_number, default=version)


def version_number(version: str) -> tuple[int, int, int]:
    """Parse a version; an empty one means 0.1.0. Raises: InvalidConfig."""
    parts = (version or "0.1.0").split(".")
    if len(parts) > 3 or not all(part.isascii() and part.isdecimal() for part in parts):
        raise InvalidConfig(f'"{version}" is not a version of the CNI spec', hint=f"the latest is {CURRENT}")
    major, minor, micro = [*map(int, parts), 0, 0][:3]
    return major, minor, micro


def request_config(
    network: Network, plugin: Mapping[str, Any], attachment: Attachment | None, prev_result: object
) -> dict[str, Any]:
    """Derive a plugin's standard input (spec section 3, "Deriving request configuration").

    ``runtimeConfig`` holds the capability arguments that the plugin declares and the attachment
    has. Like libcni, and unlike the letter of the spec, ``capabilities`` is kept; the keys are sorted, since
    of several that set one field in different case the plugin takes the last.
    """
    conf = {**plugin, "name": network.name, "cniVersion": network.cni_version}
    if prev_result is not None:
        conf["prevResult"] = prev_result
    if attachment is not None:
        wanted = [name for name, wanted in (config.member_of(plugin, "capabilities") or {}).items() if wanted]
        arguments = {name: attachment.capability_args[name] for name in wanted if name in attachment.capability_args}
        if arguments:
            conf["runtimeConfig"] = arguments
    return config.in_order(conf)


def _sibling_plugins(path: str, name: str) -> list[dict[str, Any]]:
    """Load the plugins from the directory beside the file that has the network's name."""
    call.check_network_name(name)
    plugins = []
    for file in conf_files(f"{os.path.dirname(path)}/{name}", ".conf"):
        try:
            plugin = config.decode(files.read(file, config.MAX_BYTES), file)
        except OSError as error:
            raise IOFailure(f'could not read "{file}"', error.strerror or "", errno=error.errno or 0) from error
        check_plugin(file, plugin)
        plugins.append(plugin)
    return plugins


def _flag(where: str, raw: Mapping[str, Any], key: str) -> bool:
    """Parse a boolean key of a list; like libcni, the strings "true" and "false" are accepted as well."""
    value = raw.get(key, False)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise InvalidConfig(f'{where}: "{key}" must be true or false')
    return value
