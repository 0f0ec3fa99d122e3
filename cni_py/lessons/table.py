"""The lessons in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_py.lab.programs import LabFailed
from cni_py.lessons import bridge, disk, guide, leases, one_add, own_plugin, ports, seven, verbs, vxlan

if TYPE_CHECKING:
    from cni_py.lessons.lesson import Lesson

LESSONS: tuple[Lesson, ...] = tuple(
    module.LESSON for module in (one_add, bridge, disk, ports, vxlan, leases, seven, verbs, own_plugin, guide)
)


def lesson(number: int) -> Lesson:
    """Raises: LabFailed."""
    for one in LESSONS:
        if one.number == number:
            return one
    raise LabFailed(f"unknown lesson {number}", hint=f"1 to {len(LESSONS)}: cni-py lesson list")
