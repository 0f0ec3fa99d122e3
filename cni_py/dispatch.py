"""The plugins: a module each, with one ``CONFIG`` model and five functions.

``add(call, config)`` answers a :class:`~cni_py.spec.result.Result`, or the previous result as it came;
``delete``, ``check``, ``gc`` and ``status`` answer nothing. All raise ``CniError``.
"""

from __future__ import annotations

from sys import modules

from cni_py import config
from cni_py.plugin_table import PLUGINS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cni_py.spec.call import Call
    from cni_py.spec.result import Result

_FUNCTIONS = {"ADD": "add", "DEL": "delete", "CHECK": "check", "GC": "gc", "STATUS": "status"}


def load(plugin: str) -> Any:
    """The plugin's module."""
    name = PLUGINS[plugin].module
    __import__(name)
    return modules[name]


def run(call: Call) -> Result | Mapping[str, Any] | None:
    """Do what the call asks for, in this process. Raises: CniError."""
    module = load(call.plugin)
    settings = config.parse(module.CONFIG, call.conf)
    answer: Result | Mapping[str, Any] | None = getattr(module, _FUNCTIONS[call.verb])(call, settings)
    return answer
