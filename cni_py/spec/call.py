"""One call of a plugin: the verb and its parameters, checked by ``environment.py``."""

from __future__ import annotations

from cni_py.errors import InvalidConfig, InvalidEnvironment
from cni_py.spec.environment import MAX_NAME, NESTED, REQUIRED, fault_in, is_name, split_args
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


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

    @property
    def is_nested(self) -> bool:
        """Whether another call of ours executed the plugin that executed us."""
        return NESTED in self.environ

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
    if fault := fault_in(environ):
        raise InvalidEnvironment(*fault)
    verb = environ["CNI_COMMAND"]
    of_attachment = environ if verb in REQUIRED else {}
    return Call(
        verb=verb,
        plugin=plugin,
        container_id=of_attachment.get("CNI_CONTAINERID", ""),
        netns=of_attachment.get("CNI_NETNS", ""),
        ifname=of_attachment.get("CNI_IFNAME", ""),
        args=tuple((key, value) for key, value in split_args(of_attachment.get("CNI_ARGS", ""))),
        cni_path=tuple(p for p in environ.get("CNI_PATH", "").split(":") if p.startswith("/")),
        launcher=launcher,
        environ=environ,
    )


def check_network_name(name: object) -> None:
    """Raises: InvalidConfig (code 7)."""
    if not name:
        raise InvalidConfig("missing network name", hint='the configuration needs a "name"')
    if not isinstance(name, str) or not is_name(name):
        raise InvalidConfig("invalid characters found in network name", str(name)[:MAX_NAME])
