"""Back ends whose device the reconciler does not know look after it themselves: once a second."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_py.errors import CniError
from cni_py.node.log import error

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event

LOOK_SECONDS = 1.0


def keep(stop: Event, ensure: Callable[[], None]) -> None:
    """Call ``ensure`` every second until ``stop``; what it raises is logged once, until it is something else."""
    trouble = ""
    while not stop.wait(LOOK_SECONDS):
        try:
            ensure()
            trouble = ""
        except CniError as fault:
            if str(fault) != trouble:
                trouble = str(fault)
                error(f"the device is not as it should be: {trouble}")
