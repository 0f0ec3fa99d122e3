"""One call of a plugin: the verb and its parameters, checked (CNI spec section 2, "Parameters").

Everything of the environment that reaches a path, a command or a kernel name passes through
here. Nothing is imported but the errors, so that a wrong environment is answered at once.
"""

from __future__ import annotations

from cni_py.errors import InvalidConfig, InvalidEnvironment
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

VERBS = ("ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION")
_REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
}
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_NAME = _LETTERS | frozenset("_.-")
MAX_NAME = 200
"""Characters of a container id or network name: both become file names."""
MAX_PATH = 4096


class Call(Value):
    """The parameters of one call; ``conf`` is the network configuration as it came, a JSON object.

    ``netns`` is the path of the sandbox, empty where DEL gets none; ``cni_path`` the folders to
    look for other plugins in; ``environ`` goes to plugins that are executed; ``callers``: the
    plugins of ours that delegated to this one. The agent gets the sandbox and standard error from
    its client as descriptors.
    """

    verb: str
    plugin: str
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: tuple[tuple[str, str], ...] = ()
    cni_path: tuple[str, ...] = ()
    launcher: str = ""
    environ: Mapping[str, str] = {}
    callers: tuple[str, ...] = ()
    sandbox_fd: int = -1
    stderr_fd: int = 2
    conf: Mapping[str, Any] = {}

    @property
    def network(self) -> str:
        """The network's name."""
        return str(self.conf.get("name", ""))

    @property
    def cni_version(self) -> str:
        """The spec version of configuration and result."""
        return str(self.conf.get("cniVersion") or "0.1.0")

    @property
    def may_be_host(self) -> bool:
        """CNI_NETNS_OVERRIDE: CNI_NETNS may be the namespace that the plugin runs in."""
        return self.environ.get("CNI_NETNS_OVERRIDE", "").upper() in ("TRUE", "1")

    def arg(self, key: str) -> str:
        """The value of a key of CNI_ARGS, empty where there is none."""
        return dict(self.args).get(key, "")

    def refuse_unknown_args(self, *known: str) -> None:
        """As Go's plugins do, unless IgnoreUnknown is true. Raises: InvalidEnvironment."""
        unknown = [f"{key}={value}" for key, value in self.args if key not in (*known, "IgnoreUnknown")]
        if unknown and self.arg("IgnoreUnknown") not in ("1", "t", "T", "TRUE", "true", "True"):
            raise InvalidEnvironment(
                f"ARGS: unknown args {unknown}",
                f"CNI_ARGS that this plugin knows: {', '.join(known) or 'none'}",
                "add IgnoreUnknown=1",
            )


def parse(plugin: str, environ: Mapping[str, str], launcher: str = "") -> Call:
    """Check the environment of a call. Raises: InvalidEnvironment, with the names of the variables."""
    verb = environ.get("CNI_COMMAND", "")
    if verb not in VERBS:
        raise InvalidEnvironment(f"unknown CNI_COMMAND: {verb}", hint=f"one of {', '.join(VERBS)}")
    required = _REQUIRED.get(verb, ())
    missing = [name for name in required if not environ.get(name)]
    if missing:
        raise InvalidEnvironment(f"required env variables [{','.join(missing)}] missing")
    container_id = environ.get("CNI_CONTAINERID", "") if required else ""
    ifname = environ.get("CNI_IFNAME", "") if required else ""
    if required:
        _check_container_id(container_id)
        _check_ifname(ifname)
    netns = environ.get("CNI_NETNS", "") if required else ""
    if len(netns) > MAX_PATH or "\n" in netns:
        raise InvalidEnvironment("CNI_NETNS is no path of a network namespace", netns[:100])
    return Call(
        verb=verb,
        plugin=plugin,
        container_id=container_id,
        netns=netns,
        ifname=ifname,
        args=_parse_args(environ.get("CNI_ARGS", "")) if required else (),
        cni_path=tuple(p for p in environ.get("CNI_PATH", "").split(":") if p.startswith("/")),
        launcher=launcher,
        environ=environ,
    )


def is_name(text: str) -> bool:
    """Whether this may be a container id or a network name: it can be a file name and no more."""
    return bool(text) and text[0] in _LETTERS and _NAME.issuperset(text) and len(text) <= MAX_NAME


def check_network_name(name: object) -> None:
    """Raises: InvalidConfig (code 7)."""
    if not name:
        raise InvalidConfig("missing network name", hint='the configuration needs a "name"')
    if not isinstance(name, str) or not is_name(name):
        raise InvalidConfig("invalid characters found in network name", str(name)[:MAX_NAME])


def _check_container_id(container_id: str) -> None:
    if not is_name(container_id):
        raise InvalidEnvironment(
            "invalid characters in containerID",
            container_id[:MAX_NAME],
            f"CNI_CONTAINERID is a letter or digit, then letters, digits, '_', '.' and '-', at most {MAX_NAME} in all",
        )


def _check_ifname(name: str) -> None:
    fault = link_name_fault(name)
    if fault:
        raise InvalidEnvironment(fault, f"CNI_IFNAME is {name[:40]!r}")


def link_name_fault(name: str) -> str:
    """Why this cannot be the name of a link, "" where it can: as the kernel's dev_valid_name().

    For the kernel a byte 0xA0 is white space ("à" has one). Besides, "all" and "default" are names
    of sysctl folders, and of "eth%d" the kernel makes a name of its own.
    """
    encoded = name.encode(errors="surrogateescape")
    if not 0 < len(encoded) < 16:
        return (
            "interface name is too long: interface name should be less than 16 characters"
            if name
            else "interface name is empty"
        )
    if name in (".", ".."):
        return "interface name is . or .."
    if any(c in "/:" or c.isspace() for c in name) or 0xA0 in encoded:
        return "interface name contains / or : or whitespace characters"
    if name in ("all", "default") or "%" in name or not name.isprintable():
        return "interface name is all or default, or contains % or characters that cannot be printed"
    return ""


def _parse_args(text: str) -> tuple[tuple[str, str], ...]:
    """CNI_ARGS: ``KEY=VALUE;KEY=VALUE``. Raises: InvalidEnvironment."""
    pairs = [tuple(pair.split("=")) for pair in text.split(";")] if text else []
    for pair in pairs:
        if len(pair) != 2 or not pair[0]:
            raise InvalidEnvironment(f'ARGS: invalid pair "{"=".join(pair)}"', "CNI_ARGS is KEY=VALUE;KEY=VALUE")
    return tuple((pair[0], pair[1]) for pair in pairs)
