"""The lesson that runs: its lab is started, found, and removed.

How it works. The lab is the one of ``cni-py lab``, in its default directory, so that every command of a page works as it is
printed. Before it is created, a file names the lesson; once it is complete, the same file names its first process. So
:func:`stop` removes what any kill has left, and never a lab that the user has created in the meantime.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cni_py import files
from cni_py.lab.lab import DIRECTORY, Lab
from cni_py.lab.machine import hint_inside
from cni_py.lab.programs import LabFailed
from cni_py.lab.state import State, read_keeper, take_down

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_py.lab.machine import Machine
    from cni_py.lab.site import Site
    from cni_py.lessons.lesson import Lesson

MARKER = "/run/cni-py/lesson.json"
EXIT_SECONDS = 5
"""Time in which the lab of a start that was killed ends."""


@dataclass(frozen=True, slots=True)
class Running:
    """``number``: the lesson, 0 if the file is damaged; ``keeper``: process and start time of its lab, None: incomplete."""

    number: int
    keeper: tuple[int, int] | None

    def has_lab(self) -> bool:
        """Return whether its lab runs."""
        keeper = _live_keeper()
        return keeper is not None and self.keeper == (keeper.pid, keeper.started)


def running() -> Running | None:
    """Return the lesson that was started, whether or not its lab still runs."""
    try:
        with open(MARKER) as file:
            raw: Any = json.load(file)
        keeper = raw["keeper"]
        return Running(int(raw["lesson"]), (int(keeper[0]), int(keeper[1])) if keeper else None)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, IndexError):
        return Running(0, None)


def start(lesson: Lesson, progress: Callable[[str], None]) -> bool:
    """Create the lab and what the exercise begins with; a failure leaves nothing.

    Returns: whether it was created; not if this lesson runs already. Raises: LabFailed.
    """
    if hint := hint_inside():
        raise LabFailed("a lesson cannot be started in a lab", hint=hint)
    former = running()
    if former is not None and former.has_lab():
        if former.number == lesson.number:
            return False
        hint = f"cni-py lesson check {former.number}; cni-py lesson stop {former.number}"
        raise LabFailed(f"lesson {former.number} is running", hint=hint)
    if former is not None:  # it was killed
        stop()
    if _live_keeper() is not None:
        raise LabFailed("a lab is running that is not a lesson's", hint="cni-py lab down removes it")
    _write(lesson.number, None)
    try:
        lab = Lab(**lesson.lab, numbered=True, directory=DIRECTORY, progress=progress)
        try:
            lab.up()
            assert lab.state.keeper is not None
            _write(lesson.number, (lab.state.keeper.pid, lab.state.keeper.started))
            lesson.prepare(lab)
            lab.stay()
        except BaseException:
            lab.down()
            raise
    except BaseException:
        _forget()
        raise
    return True


def open_lab(wanted: int) -> Site:
    """Return the lab of a lesson. Raises: LabFailed if the lesson does not run."""
    found = running()
    if found is None:
        raise not_running(wanted)
    if found.number not in (wanted, 0):
        raise LabFailed(f"lesson {found.number} is running, not lesson {wanted}", hint=f"cni-py lesson check {found.number}")
    if not found.has_lab():
        hint = f"cni-py lesson stop {wanted}; cni-py lesson start {wanted}"
        raise LabFailed(f"the lab of lesson {wanted} has ended", hint=hint)
    return Lab.open(DIRECTORY)


def not_running(wanted: int | None) -> LabFailed:
    """Return the error that a lesson, or None: any lesson, does not run. A shell in the lab cannot see that it does."""
    what = "no lesson is running" if wanted is None else f"lesson {wanted} is not running"
    if hint := hint_inside():
        return LabFailed(f"{what} in here", hint=hint)
    return LabFailed(what, hint="cni-py lesson list" if wanted is None else f"cni-py lesson start {wanted}")


def stop() -> bool:
    """Remove the lesson that was started, with its lab, in each state that a kill can leave. Returns: whether there was one.

    A lab that is not the lesson's is kept.
    """
    found = running()
    if found is None:
        return False
    keeper = _live_keeper()
    # a start that was killed takes its lab with it, in a moment; any other lab stays
    if keeper is None or found.has_lab() or (found.keeper is None and keeper.exits_within(EXIT_SECONDS)):
        take_down(DIRECTORY)
    _forget()
    return True


def _live_keeper() -> Machine | None:
    """Return the first process of the lab in the default directory; None if none runs."""
    try:
        state = State.read(DIRECTORY)
        keeper = state.keeper if state is not None else None
    except LabFailed:  # the file is damaged
        keeper = read_keeper(DIRECTORY)
    return keeper if keeper is not None and keeper.is_alive else None


def _write(number: int, keeper: tuple[int, int] | None) -> None:
    files.make_directory(os.path.dirname(MARKER), 0o700)
    files.write(MARKER, json.dumps({"lesson": number, "keeper": keeper}).encode())


def _forget() -> None:
    files.remove(MARKER)
    with suppress(OSError):  # plugins, agent or flanneld use it
        os.rmdir(os.path.dirname(MARKER))
