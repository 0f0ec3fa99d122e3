"""SIGKILL of a whole chain: after one DEL, one GC or a reboot nothing is left, and the next ADD works.

The chains: flannel + portmap, flannel + bandwidth + tuning + portmap, and at boundaries ptp + portmap.

A few dozen kills, ten times as many in `make test-long`; integration/reliability makes thousands, and docs/reliability.md
has their table.
How it works: tests/support/kills.py.
"""

from __future__ import annotations

import os
import platform
import random
import signal
import time
from pathlib import Path

import pytest

from support import kills
from support.namespaces import Host
from support.waiting import Stuck

SECONDS = 2.0
FEWEST = 6  # as long as it takes, on a machine that has a lot else to do

needs_tracer = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="the tracer knows the system calls of x86_64 and aarch64"
)


of_flannel = pytest.mark.parametrize("chain", ["two", "four"])


def start(bin_dir: str, chain: str = "two") -> kills.Node:
    random.seed(20261124)
    return kills.Node(kills.Chain(bin_dir, kills.CHAINS[chain]))


def kill_at_boundaries(bin_dir: str, chain: str, verb: str, seconds: float) -> kills.Tally:
    """Kill at as many boundaries as there is time for, in any order, with each cleanup in turn."""
    node, found = start(bin_dir, chain), kills.Tally()
    total = node.boundaries(verb)
    assert total > 50
    deadline = time.monotonic() + seconds
    for number, calls in enumerate(random.sample(range(1, total + 1), total)):
        if time.monotonic() > deadline and found.kills >= FEWEST:
            break
        found.add(node.kill(verb, kills.CLEANERS[number % 3], calls=calls)[0])
    return found


@needs_tracer
@pytest.mark.parametrize("chain", kills.CHAINS)
@pytest.mark.parametrize("verb", kills.VERBS)
def test_kill_at_system_call_boundaries(host: Host, longer: int, verb: str, chain: str) -> None:
    found = host.do(kill_at_boundaries, host.bin_dir, chain, verb, SECONDS * longer)
    assert (found.leaks, found.failures) == ([], [])
    assert found.kills >= FEWEST


def kill_at_moments(bin_dir: str, chain: str, seconds: float) -> kills.Tally:
    node, found = start(bin_dir, chain), kills.Tally()
    node.measure_times()
    deadline = time.monotonic() + seconds
    for _, _, tally in node.at_moments(kills.VERBS, kills.CLEANERS):
        found.add(tally)
        if time.monotonic() > deadline and found.kills >= FEWEST:
            return found
    raise AssertionError("without end")


@of_flannel
def test_kill_at_random_moments(host: Host, longer: int, chain: str) -> None:
    found = host.do(kill_at_moments, host.bin_dir, chain, SECONDS * longer)
    assert (found.leaks, found.failures) == ([], [])
    assert found.kills >= FEWEST


def kill_and_collect_all(bin_dir: str, chain: str, verb: str, fewest: int) -> tuple[list[str], list[str]]:
    """Kill several calls of a pod, none of which is cleaned up, then GC with an empty list: what is left."""
    node = start(bin_dir, chain)
    total = node.boundaries(verb)
    steps = []
    for calls in range(1, total, max(1, total // fewest)):
        if verb != "ADD":
            node.chain.run("ADD", "c2")
        done = node.chain.run(verb, "c2", kills.Killer(calls=calls))
        steps.append(done.at or "" if done else "")
        node.chain.run("GC", "", valid=())
        left = node.what_is_left()
        if left:
            return steps, left
        node.chain.run("ADD", "c1")
    return steps, []


@needs_tracer
@of_flannel
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_gc_without_any_valid_attachment_takes_everything(host: Host, longer: int, verb: str, chain: str) -> None:
    steps, left = host.do(kill_and_collect_all, host.bin_dir, chain, verb, FEWEST * longer)
    assert left == [], steps[-1]
    assert len(steps) >= FEWEST


# --- the tracer itself ------------------------------------------------------------------------------------------------


def write_three_files(calls: int) -> tuple[kills.Done, list[str]]:
    """Kill a shell whose children create a file each."""
    for path in Path("/run").glob("made*"):
        path.unlink()
    script = "/bin/mkdir /run/made1; (echo >/run/made2) & wait; exec /bin/touch /run/made3"
    done = kills.Killer(calls=calls).run(["/bin/sh", "-c", script], {"PATH": "/bin"}, b"")
    left = sorted(path.name for path in Path("/run").glob("made*"))
    if "made1" in left:
        Path("/run/made1").rmdir()
    return done, left


def every_kill() -> list[tuple[str | None, list[str]]]:
    found = []
    for calls in range(1, 100):
        done, left = write_three_files(calls)
        found.append((done.at, left))
        if done.at is None:
            assert done.status == 0
            break
    return found


@needs_tracer
def test_tracer_kills_before_each_change_and_not_after_it(host: Host) -> None:
    """Kills in the program, in its children, and after exec; the named system call has not been made."""
    found = host.do(every_kill)
    files = [len(left) for _, left in found]
    assert files == sorted(files)
    assert (files[0], files[-1]) == (0, 3)
    before = {at.partition(" ")[2]: left for at, left in found[:-1] if at}
    assert before["mkdir /run/made1"] == []
    assert before["openat /run/made2"] == ["made1"]
    assert before["openat /run/made3"] == ["made1", "made2"]
    assert found[-1][0] is None


def hang(calls: int) -> str:
    """Return the report on a function that stops itself."""
    kills.LIMIT_SECONDS = 0.2
    try:
        kills.Killer(calls=calls).run_function(lambda: os.kill(os.getpid(), signal.SIGSTOP) or 0)
    except Stuck as stuck:
        return str(stuck)
    return ""


@needs_tracer
def test_process_that_does_not_end_is_reported(host: Host) -> None:
    """Run without the tracer, which lets no SIGSTOP through."""
    assert "T, it is stopped (SIGSTOP)" in host.do(hang, 0)
    assert host.do(hang, 1) == ""


@of_flannel
def test_killed_call_of_the_chain_is_reported(host: Host, chain: str) -> None:
    """A leak would be found: the state after a kill and before any cleanup."""
    left = host.do(leave_a_mess, host.bin_dir, chain)
    of_four = {"shaping", "sysctl of the host"} if chain == "four" else {"sysctl of the host"}
    assert set(left) == {"file", "link", "link in the sandbox", "rule"} | of_four


def leave_a_mess(bin_dir: str, chain: str) -> dict[str, list[str]]:
    node = start(bin_dir, chain)
    node.chain.run("ADD", "c2")
    Path("/proc/sys/net/core/somaxconn").write_text("499\n")
    return kills.difference(node.clean, kills.state())
