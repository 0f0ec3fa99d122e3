"""Properties of every meta plugin behind a main plugin: all or nothing, DEL, CHECK, GC, kills. The table: support/chained.py."""

from __future__ import annotations

import random
from typing import Any

import pytest

from support import faults
from support.chained import CHAINS, Chain, Pods, difference
from support.mains import has_kind
from support.namespaces import Host
from support.pods import words

STRIDE = 4
"""Every fourth step fails in turn; with `make test-long` each."""
MAX_STEPS = 200
KILLS = 5
"""Moments of a call at which a test kills it, other ones for each plugin; with `make test-long` ten times as many."""
FEWEST = 3  # a call need not reach as many operations as the one that was counted
PREFERRED = ("sysctl -w net/ipv", "/run/cni-py")
"""Steps that ADD can do without: it says so in the journal."""

every_chain = pytest.mark.parametrize(
    "chain",
    [
        pytest.param(
            chain,
            id=name,
            marks=[pytest.mark.skipif(not has_kind(chain.kind), reason=f"this kernel has no links of kind {chain.kind}")],
        )
        for name, chain in CHAINS.items()
    ],
)


@pytest.fixture
def host(host: Host) -> Host:
    faults.install(host)
    return host


@pytest.fixture
def pods(host: Host, chain: Chain) -> Pods:
    return Pods(host, chain)


@every_chain
def test_add_check_delete_leave_nothing(host: Host, pods: Pods) -> None:
    """Run beside another pod, and DEL twice: with what ADD returned, and with nothing."""
    other, pod = host.netns("c1"), host.netns("c2")
    pods.add(other)
    before = pods.state(other, pod)
    result = pods.add(pod)
    during = pods.state(other, pod)
    assert during != before
    assert pods.ok("CHECK", pod, result) is None
    assert pods.state(other, pod) == during, "CHECK changes nothing"
    pods.delete(pod)
    pods.delete(pod, prev=False)
    assert pods.state(other, pod) == before


@every_chain
def test_delete_needs_no_previous_result_and_no_namespace(host: Host, pods: Pods) -> None:
    other, pod, gone = host.netns("c1"), host.netns("c2"), host.netns("c3")
    pods.add(other)
    before = pods.state(other)
    pods.add(pod)
    pods.delete(pod, prev=False)
    assert pods.state(other) == before
    pods.add(gone)
    host.delete_netns(gone)
    pods.delete(gone, prev=False)
    assert pods.state(other) == before


@every_chain
def test_check_before_add_fails(host: Host, pods: Pods) -> None:
    pod = host.netns("c1")
    prev = pods.add_main(pod)
    assert pods.call("CHECK", pod, prev).rc == 1
    assert pods.call("CHECK", pod, {}).rc == 1, "without a previous result"


@every_chain
def test_add_takes_everything_back_whichever_step_fails(host: Host, longer: int, pods: Pods) -> None:
    """And what was done though its acknowledgement was lost."""
    other, pod = host.netns("c1"), host.netns("c2")
    pods.add(other)
    clean = pods.state(other, pod)
    pods.add_main(pod)
    before = pods.state(other, pod)
    for kind in ("refuse", "lost"):
        seen = []
        for number in range(1, MAX_STEPS, STRIDE if longer == 1 else 1):
            reply, line = pods.faulty("ADD", pod, kind, number, ("EIO", "ENOSPC", "EPERM")[number % 3])
            if line is None:
                assert reply.rc == 0, reply
                break
            seen.append(line)
            if reply.rc == 0:
                assert any(words in line for words in PREFERRED), f"ADD succeeded without: {line}"
                pods.delete(pod)
                assert pods.state(other, pod) == clean, f"after DEL of what was made without: {line}"
                pods.add_main(pod)
                before = pods.state(other, pod)
                continue
            assert reply.code in (5, 101), f"{line}: {reply}"
            assert pods.state(other, pod) == before, f"after a failure ({kind}) of: {line}"
        else:
            raise AssertionError("no end of steps")
        assert seen or kind == "lost"  # rules are not written by netlink
        assert pods.call("CHECK", pod, reply.json).rc == 0
        pods.delete(pod)
        pods.add_main(pod)
        before = pods.state(other, pod)


@every_chain
def test_del_names_what_is_left_and_the_next_one_does_it(host: Host, longer: int, pods: Pods) -> None:
    other, pod = host.netns("c1"), host.netns("c2")
    pods.add(other)
    before = pods.state(other, pod)
    for number in range(1, MAX_STEPS, STRIDE if longer == 1 else 1):
        pods.add(pod)
        reply, line = pods.faulty("DEL", pod, "refuse", number)
        if line is None:
            assert reply.rc == 0, reply
            break
        if reply.rc:
            assert reply.code in (5, 101), f"{line}: {reply}"
            assert line.split()[-1] in words(reply) or "left behind" in words(reply), f"{line}: {reply}"
        pods.delete(pod)
        assert pods.state(other, pod) == before, line
    else:
        raise AssertionError("no end of steps")


@every_chain
def test_kernel_that_does_not_answer_a_question(host: Host, longer: int, pods: Pods) -> None:
    """Reading fails: an error of the kernel, and nothing is left incomplete."""
    pod = host.netns("c1")
    pods.add_main(pod)
    before = pods.state(pod)
    for number in range(1, MAX_STEPS, STRIDE if longer == 1 else 1):
        reply, line = pods.faulty("ADD", pod, "read", number)
        if reply.rc == 0:
            pods.ok("DEL", pod)
            if line is None:
                break
        else:
            assert reply.code == 101, reply
            assert pods.state(pod) == before, number
    else:
        raise AssertionError("no end of questions")


@every_chain
def test_gc_deletes_what_is_not_listed_and_only_that(host: Host, pods: Pods) -> None:
    keep, drop = host.netns("c1"), host.netns("c2")
    result = pods.add(keep)
    before = pods.state(keep)
    pods.add(drop)
    for _ in range(2):
        pods.gc(keep)
        host.delete_netns(drop)
        assert pods.state(keep) == before
        assert pods.call("CHECK", keep, result).rc == 0
        drop = host.netns("c2")
    pods.gc()
    pods.delete(keep)


@every_chain
@pytest.mark.parametrize("cleaner", ["DEL", "GC"])
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_kill_before_each_operation(host: Host, pods: Pods, longer: int, verb: str, cleaner: str) -> None:
    """SIGKILL before each request that changes the kernel and each system call that changes a file; then DEL or GC of both."""
    other, pod = host.netns("c1"), host.netns("c2")
    pods.add(other)
    before = pods.state(other, pod)
    pods.add_main(pod)
    if verb == "DEL":
        pods.ok("ADD", pod)
    total = count(pods, verb, pod)
    clean(pods, cleaner, other, pod)
    assert pods.state(other, pod) == before
    kills, leaks = 0, dict[str, Any]()
    for number in random.Random(f"{pods.chain.conf} {verb} {cleaner}").sample(range(1, total + 1), total):
        if kills >= KILLS * longer:
            break
        pods.add_main(pod)
        if verb == "DEL":
            pods.ok("ADD", pod)
        reply, line = pods.faulty(verb, pod, "kill", number)
        if line is not None:
            assert faults.killed(reply), (line, reply)
            kills += 1
        clean(pods, cleaner, other, pod)
        after = pods.state(other, pod)
        if after != before:
            leaks[f"{number}: {line}"] = difference(before, after)
            break
    assert leaks == {}
    assert kills >= min(FEWEST, total)
    pods.add(pod)


def count(pods: Pods, verb: str, pod: Any) -> int:
    """Count the operations of a call, which is made."""
    reply, _ = pods.faulty(verb, pod, "kill", faults.NEVER)
    assert reply.rc == 0, reply
    return int(pods.host.path(faults.REPORT).read_text().partition("\n")[0])


def clean(pods: Pods, cleaner: str, other: Any, pod: Any) -> None:
    """Clean up as a runtime does after a crash."""
    if cleaner == "DEL":
        pods.delete(pod, prev=False)
    else:
        pods.gc(other)
        pods.results.pop(pod.name, None)
