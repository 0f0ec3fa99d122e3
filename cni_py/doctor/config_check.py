"""``cni-py config check``: network configurations of flannel and of CNI, validated as flanneld and the plugins do it.

What kind a file is follows from its content: a ``conflist`` has ``plugins``, a plugin's configuration a ``type``, and
anything else is flannel's network configuration.
"""

from __future__ import annotations

from cni_py import config, files
from cni_py.config import lint
from cni_py.errors import CniError, InvalidConfig
from cni_py.plugin_table import PLUGINS
from cni_py.runtime import network_config
from cni_py.spec.versions import SUPPORTED
from cni_py.spelling import meant
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from cni_py.runtime.network_config import Network

LIST_KEYS = ("cniVersion", "cniVersions", "name", "disableCheck", "disableGC", "loadOnlyInlinedPlugins", "plugins")


class Checked(Value):
    """Findings about one file; ``kind`` is empty if it could not be read."""

    path: str
    kind: str = ""
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "file": self.path,
            "kind": self.kind,
            "errors": [*self.errors],
            "warnings": [*self.warnings],
            "notes": [*self.notes],
        }

    def lines(self) -> Iterator[str]:
        """Yield a line for each finding, or one that says that there is none."""
        yield from (f"{self.path}: error: {line}" for line in self.errors)
        yield from (f"{self.path}: warning: {line}" for line in self.warnings)
        yield from (f"{self.path}: {line}" for line in self.notes)
        if not self.errors and not self.warnings:
            yield f"{self.path}: valid ({self.kind})"


def check(path: str) -> Checked:
    """Check a file. Never raises for its content."""
    try:
        content = files.read(path, config.MAX_BYTES)
        raw = config.decode(content, "it")
    except OSError as error:
        return Checked(path, errors=(error.strerror or str(error),))
    except CniError as error:
        return Checked(path, errors=(f"it is not a JSON object: {error.msg.rpartition('it: ')[2]}",))
    if path.endswith(".conflist") or "plugins" in raw:
        return _conflist(path, content, raw)
    if config.member_of(raw, "type") is not None:
        return _single(path, raw)
    return _flannel_network(path, content)


def _flannel_network(path: str, content: bytes) -> Checked:
    from cni_py.flanneld import backends
    from cni_py.flanneld.network import NetworkConfig

    try:
        network = NetworkConfig.parse(content.decode())
    except (CniError, ValueError) as error:
        return Checked(path, "flannel network", tuple(_faults(error)))
    warnings = tuple(backends.remarks(network))
    try:
        backends.check(network)
    except CniError as error:
        return Checked(path, "flannel network", tuple(_faults(error)), warnings)
    return Checked(path, "flannel network", warnings=warnings)


def _conflist(path: str, content: bytes, raw: Mapping[str, Any]) -> Checked:
    warnings = [
        f'"{key}" is no key of a network configuration list and has no effect{_meant_in_list(key)}'
        for key in raw
        if key not in LIST_KEYS
    ]
    if not path.endswith(".conflist"):
        warnings.append("a runtime reads a list of plugins only from a file that is named *.conflist")
    try:
        network = network_config.parse_list(path, content, raw)
    except KeyError as error:
        return Checked(path, "network list", (f'"{error.args[0]}" is missing',), tuple(warnings))
    except CniError as error:
        words = ": ".join(filter(None, (error.msg.removeprefix(path).removeprefix(": ").removeprefix(", "), error.details)))
        return Checked(path, "network list", (words,), tuple(warnings))
    return _plugins(path, "network list", network, warnings)


def _meant_in_list(key: str) -> str:
    """Return the key that is probably meant: those of a list are exact, also in their case."""
    other_case = [name for name in LIST_KEYS if name.lower() == key.lower()]
    return f': is "{other_case[0]}" meant?' if other_case else meant(key, LIST_KEYS)


def _single(path: str, raw: Mapping[str, Any]) -> Checked:
    try:
        network = network_config.wrap_single(path, raw)
    except (CniError, KeyError) as error:
        return Checked(path, "plugin", tuple(_faults(error)))
    return _plugins(path, "plugin", network, [])


def _plugins(path: str, kind: str, network: Network, warnings: list[str]) -> Checked:
    errors: list[str] = []
    notes = [
        f'the keys of the third-party plugin "{config.member_of(one, "type")}" are not checked'
        for one in network.plugins
        if not _is_ours(one)
    ]
    if not network.name:
        errors.append('"name" is missing')
    if (network.cni_version or "0.1.0") not in SUPPORTED:
        errors.append(f'"cniVersion": {network.cni_version!r} is none of {", ".join(SUPPORTED)}')
    for number, plugin in enumerate(network.plugins):
        where = f"plugins[{number}]." if kind == "network list" else ""
        errors += [f"{where.rstrip('.')}: {fault}".removeprefix(": ") for fault in _invalid(plugin)]
        warnings += lint.remarks(plugin, where)
    return Checked(path, kind, tuple(errors), tuple(warnings), tuple(notes))


def _is_ours(plugin: Mapping[str, Any]) -> bool:
    return config.member_of(plugin, "type") in PLUGINS


def _invalid(plugin: Mapping[str, Any]) -> Iterator[str]:
    """Yield what one of our plugins would refuse; flannel's delegate is a plugin's configuration too."""
    row = PLUGINS.get(str(plugin.get("type") or ""))
    if row is None:
        return
    try:
        config.parse(row.model, plugin)
    except InvalidConfig as error:
        yield from _faults(error)
    delegate = plugin.get("delegate")
    if plugin.get("type") == "flannel" and isinstance(delegate, dict):
        yield from _invalid({"type": "bridge"} | delegate)


def _faults(error: Exception) -> Iterator[str]:
    yield getattr(error, "msg", "") or str(error)
    yield from filter(None, getattr(error, "details", "").split("; "))
