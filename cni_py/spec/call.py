"""Call of a plugin: the verb and its parameters, checked by ``environment.py``."""

from __future__ import annotations

from cni_py.errors import InvalidConfig, InvalidEnvironment
from cni_py.spec.environment import MAX_NAME, NESTED, REQUIRED, fault_in, is_name
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class Call(Value):
    """Parameters of one call; ``conf`` is the network configuration as received, a JSON object, and ``raw`` its text.

    ``args`` is CNI_ARGS in parts, unchecked: only the verb of a plugin that reads it may reject it (:meth:`pairs`).
    ``netns`` is the path of the sandbox, empty if DEL gets none; ``cni_path`` the directories to
    search for other plugins; ``environ`` is passed to plugins that are executed; ``callers`` are
    our plugins that delegated to this one. The agent receives the sandbox and standard error from
    its client as file descriptors. ``is_return``: an ADD of a container whose sandbox of before no longer exists.
    """

    verb: str
    plugin: str
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: tuple[tuple[str, ...], ...] = ()
    cni_path: tuple[str, ...] = ()
    launcher: str = ""
    environ: Mapping[str, str] = {}
    callers: tuple[str, ...] = ()
    sandbox_fd: int = -1
    stderr_fd: int = 2
    is_return: bool = False
    conf: Mapping[str, Any] = {}
    raw: bytes = b""

    @property
    def network(self) -> str:
        """Name of the network."""
        return str(self.conf.get("name", ""))

    @property
    def cni_version(self) -> str:
        """Spec version of the configuration and the result."""
        return str(self.conf.get("cniVersion") or "0.1.0")

    @property
    def may_be_host(self) -> bool:
        """True if CNI_NETNS may be the namespace that the plugin runs in (CNI_NETNS_OVERRIDE)."""
        return self.environ.get("CNI_NETNS_OVERRIDE", "").upper() in ("TRUE", "1")

    @property
    def is_nested(self) -> bool:
        """True if one of our calls executed the plugin that executed us."""
        return NESTED in self.environ

    def pairs(self) -> dict[str, str]:
        """CNI_ARGS by key, for a verb that reads it; DEL never does. Raises: InvalidEnvironment.

        Go-compatible: containernetworking/cni pkg/types/args.go; a value cannot hold a ``=``.
        """
        for pair in self.args:
            if len(pair) != 2:
                raise InvalidEnvironment(f'ARGS: invalid pair "{"=".join(pair)}"', "CNI_ARGS is KEY=VALUE;KEY=VALUE")
        return dict(self.args)  # type: ignore[arg-type]  # two of each

    def known_pairs(self, *known: str) -> dict[str, str]:
        """CNI_ARGS by key; other keys are rejected unless IgnoreUnknown is true. Raises: InvalidEnvironment."""
        pairs = self.pairs()
        unknown = [f"{key}={value}" for key, value in pairs.items() if key not in (*known, "IgnoreUnknown")]
        if unknown and pairs.get("IgnoreUnknown") not in ("1", "t", "T", "TRUE", "true", "True"):
            raise InvalidEnvironment(
                f"ARGS: unknown args {unknown}",
                f"known CNI_ARGS: {', '.join(known) or 'none'}",
                "add IgnoreUnknown=1",
            )
        return pairs


def parse(plugin: str, environ: Mapping[str, str], launcher: str = "") -> Call:
    """Check the environment and make a call of it. Raises: InvalidEnvironment, which names the variables."""
    if fault := fault_in(environ):
        raise InvalidEnvironment(*fault)
    verb = environ["CNI_COMMAND"]
    of_attachment = environ if verb in REQUIRED else {}
    args = of_attachment.get("CNI_ARGS", "")
    return Call(
        verb=verb,
        plugin=plugin,
        container_id=of_attachment.get("CNI_CONTAINERID", ""),
        netns=of_attachment.get("CNI_NETNS", ""),
        ifname=of_attachment.get("CNI_IFNAME", ""),
        args=tuple([tuple(pair.split("=")) for pair in args.split(";")]) if args else (),
        cni_path=tuple(p for p in environ.get("CNI_PATH", "").split(":") if p.startswith("/")),
        launcher=launcher,
        environ=environ,
    )


def check_network_name(name: object) -> None:
    """Check that the name can be a file name. Raises: InvalidConfig (code 7)."""
    if not name:
        raise InvalidConfig("missing network name", hint='the configuration needs a "name"')
    if not isinstance(name, str) or not is_name(name):
        raise InvalidConfig("invalid characters found in network name", str(name)[:MAX_NAME])
