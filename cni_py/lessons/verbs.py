"""Lesson 8: damaged and leaked attachments, found by CHECK and sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_py.lessons import facts
from cni_py.lessons.lesson import Lesson, Requirement

if TYPE_CHECKING:
    from cni_py.lab.site import Site

NODE, DAMAGED, LEAKED, UNTOUCHED = "node2", "alpha", "beta", "pod2"


def _prepare(site: Site) -> None:
    site.run(
        NODE,
        f"for name in {DAMAGED} {LEAKED}; do ip netns add $name; cni-py add cbr0 $name >/dev/null; done\n"
        f"ip -n {DAMAGED} route del default; ip -n {DAMAGED} link set eth0 mtu 1400\n"
        f"ip netns del {LEAKED}",
    )


def _states(site: Site) -> dict[str, str]:
    """Return the state of each attachment by the name of its namespace."""
    return {one.get("netns", "").rpartition("/")[2]: str(one.get("state")) for one in facts.attachments(site, NODE)}


def _not_alive(site: Site) -> str:
    states = _states(site)
    return "; ".join(
        f"{name} is {states.get(name, 'not attached')}" for name in (DAMAGED, UNTOUCHED) if states.get(name) != "live"
    )


def _differs(site: Site) -> str:
    text = site.run(NODE, f"cni-py check cbr0 {DAMAGED} 2>&1 && echo as ADD left it", check=False).strip()
    if text.endswith("as ADD left it"):
        return ""
    lines = [line for line in text.splitlines() if "expected" in line]
    count = len(lines) or 1
    return f"cni-py check reports {count} difference{'s' * (count != 1)}"


def _leaks(site: Site) -> str:
    used = {facts.address_of(site, NODE, name) for name in (DAMAGED, UNTOUCHED)}
    used |= {address for name in _states(site) if name for address in [facts.address_of(site, NODE, name)]}
    stale = sorted(set(facts.reservations(site, NODE, "cbr0")) - used)
    return f"{', '.join(stale)} is reserved, and no pod of {NODE} has it" if stale else ""


def _is_cached(site: Site) -> str:
    gone = [name for name, state in _states(site).items() if state == "gone"]
    return f"cni-py explain lists {', '.join(gone)} as gone" if gone else ""


LESSON = Lesson(
    8,
    "08-check-gc-status.md",
    "CHECK, GC, STATUS",
    25,
    f"""\
On {NODE}, the pod "{DAMAGED}" was changed after its ADD, and the pod "{LEAKED}" was deleted without DEL. Repair the
first without deleting it, delete what is left of the second, and leave {UNTOUCHED} alone.""",
    (
        Requirement(
            f"{DAMAGED} and {UNTOUCHED} are attached",
            _not_alive,
            f"cni-py add cbr0 NAME on {NODE} attaches one again; cni-py gc cbr0 --all deletes live pods too",
            is_gate=True,
        ),
        Requirement(
            f"{DAMAGED} is as ADD left it",
            _differs,
            f"cni-py check cbr0 {DAMAGED} on {NODE} prints each difference, with the command that repairs it",
        ),
        Requirement(
            f"no address is reserved for {LEAKED}",
            _leaks,
            "cni-py sweep --dry-run, and its option --grace",
        ),
        Requirement(
            f"no result is cached for {LEAKED}",
            _is_cached,
            "cni-py sweep lists cached results and does not delete them; GC, with the pods that live, does: cni-py help gc",
        ),
    ),
    _prepare,
    {"nodes": 2},
    NODE,
)
