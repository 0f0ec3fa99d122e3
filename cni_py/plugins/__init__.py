"""The plugins: a module each, with one ``CONFIG`` model and five functions.

``add(call, config)`` answers a :class:`~cni_py.result.Result`, or the previous result as it came;
``delete``, ``check``, ``gc`` and ``status`` answer nothing. All raise ``CniError``.
"""

from __future__ import annotations

from cni_py import config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cni_py.call import Call
    from cni_py.result import Result

MODULES = {
    "flannel": "flannel",
    "bridge": "bridge",
    "host-local": "host_local",
    "portmap": "portmap",
    "loopback": "loopback",
}
_FUNCTIONS = {"ADD": "add", "DEL": "delete", "CHECK": "check", "GC": "gc", "STATUS": "status"}


def run(call: Call) -> Result | Mapping[str, Any] | None:
    """Do what the call asks for, in this process. Raises: CniError."""
    module = getattr(__import__(f"cni_py.plugins.{MODULES[call.plugin]}").plugins, MODULES[call.plugin])
    settings = config.parse(module.CONFIG, call.conf)
    answer: Result | Mapping[str, Any] | None = getattr(module, _FUNCTIONS[call.verb])(call, settings)
    return answer
