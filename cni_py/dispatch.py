"""Find a plugin's module and run one verb of it; :class:`Plugin` is what such a module has to have.

Verbs that are delegated come here again, with the same process and another plugin (attachment/delegate.py).
"""

from __future__ import annotations

from sys import modules

from cni_py import config
from cni_py.plugin_table import PLUGINS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol, TypeVar

    from cni_py.spec.call import Call
    from cni_py.spec.result import Result

    Model_contra = TypeVar("Model_contra", contravariant=True)

    class Plugin(Protocol[Model_contra]):
        """A module with one function per verb. All of them raise ``CniError``, and nothing else on purpose.

        ``CONFIG`` names the model in config/models.py. ``config`` is typed as that model; at run time it is a ``Parsed``,
        which has the same attributes and no methods.
        """

        CONFIG: str

        def add(self, call: Call, config: Model_contra) -> Result | Mapping[str, Any]:
            """Create the attachment, or add to it. Returns: a result, or the previous one unchanged."""

        def delete(self, call: Call, config: Model_contra) -> None:
            """Delete what ADD created, as far as it exists; absence is success."""

        def check(self, call: Call, config: Model_contra) -> None:
            """Compare the attachment with what ADD created. Raises: CheckFailed."""

        def gc(self, call: Call, config: Model_contra) -> None:
            """Delete what belongs to attachments of this network that no longer exist."""

        def status(self, call: Call, config: Model_contra) -> None:
            """Check that an ADD could succeed now. Raises: NotAvailable."""


def load(plugin: str) -> Plugin[Any]:
    """Import the plugin's module."""
    name = PLUGINS[plugin].module
    __import__(name)
    module: Plugin[Any] = modules[name]  # tests/layers/test_plugin_types.py holds each module to it
    return module


def run(call: Call) -> Result | Mapping[str, Any] | None:
    """Run the call's verb in this process; only ADD returns a result. Raises: CniError."""
    plugin = load(call.plugin)
    conf = config.canonical(plugin.CONFIG, call.conf)  # of the outermost call the engine has done it
    if conf is not call.conf:
        call = call.replace(conf=conf)
    settings = config.parse(plugin.CONFIG, conf, deleting=call.verb in ("DEL", "GC"))
    if call.verb == "ADD":
        return plugin.add(call, settings)
    verbs = {"DEL": plugin.delete, "CHECK": plugin.check, "GC": plugin.gc, "STATUS": plugin.status}
    verbs[call.verb](call, settings)
    return None
