"""Load all modules before the first call."""

from __future__ import annotations

import gc
import os

import cni_py
from cni_py.ipam import store
from cni_py.lazy import keep_without_init
from cni_py.packetfilter import libnftables


def warm_up() -> None:
    """Prepare a process that handles many calls in threads."""
    load_modules()
    libnftables.works()
    store.keep_between_calls()
    gc.freeze()  # nothing of this is ever garbage: later collections need not look at it


def load_modules() -> None:
    """Load every module that any call may need."""
    # Every one: a module that is loaded later could be of another version, which was installed in the meantime.
    keep_without_init("pydantic_core")
    for package in ("attachment", "ipam", "kernel", "netlink", "packetfilter", "plugins", "sweep"):
        _import_all(f"{os.path.dirname(cni_py.__file__)}/{package}", f"cni_py.{package}")


def _import_all(path: str, package: str) -> None:
    __import__(package)
    for name in os.listdir(path):
        module, dot, _ = name.partition(".py")
        if dot and module != "__init__":
            __import__(f"{package}.{module}")
        elif not dot and name != "__pycache__":
            _import_all(f"{path}/{name}", f"{package}.{name}")
