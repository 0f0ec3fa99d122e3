"""SIGKILL at any moment of ADD and DEL of the flannel chain: one DEL, or one GC, and nothing is left."""

from __future__ import annotations

import json
import os
import posix
import random
import signal
import subprocess
import time
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from support import faults
from support.namespaces import PATH, Host
from support.pods import DUAL_ENV, FLANNEL, add, delete, gc, state, without_empty_reservations

CONF = FLANNEL | {"delegate": {"hairpinMode": True, "isDefaultGateway": True, "macspoofchk": True}}
SECONDS = 2.0
FEWEST = 6  # kills of each kind, however long they take on a machine that has a lot else to do


@pytest.fixture
def host(host: Host) -> Host:
    host.write_subnet_env(DUAL_ENV)
    faults.install(host)
    return host


def clean(host: Host, verb: str, pod: Any) -> None:
    """Clean up as a runtime does after a crash: DEL of the attachment, or GC without it in the list."""
    if verb == "DEL":
        delete(host, CONF, pod)
    else:
        gc(host, CONF, ("c1", "eth0"))


# --- at each operation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cleaner", ["DEL", "GC"])
@pytest.mark.parametrize("killed", ["ADD", "DEL", "second ADD"])
def test_kill_before_each_operation(host: Host, longer: int, killed: str, cleaner: str) -> None:
    """Kill before each request that changes the kernel and each system call that changes a file. A second ADD replaces files.

    As many of these as there is time for, in any order.
    """
    verb = killed.removeprefix("second ")
    of: dict[str, Any] = {"sandbox": host.netns("c2"), "container_id": "c2"}
    first, second = host.netns("c1"), of["sandbox"]
    add(host, CONF, first)
    before = state(host, first, second)
    if killed != "ADD":
        add(host, CONF, second)
    total = faults.count(host, verb, CONF, "kill", is_refused=killed == "second ADD", **of)
    assert total > 8
    clean(host, cleaner, second)
    kills, leaks, deadline = 0, dict[str, list[str]](), time.monotonic() + SECONDS * longer
    for number in random.Random(20261124).sample(range(1, total + 1), total):
        if time.monotonic() > deadline and kills >= FEWEST:
            break
        if killed != "ADD":
            add(host, CONF, second)
        reply, line = faults.call(host, verb, CONF, "kill", number, **of)
        if line is not None:
            assert faults.killed(reply), (line, reply)
            kills += 1
        clean(host, cleaner, second)
        after = without_empty_reservations(state(host, first, second))
        if after != before:
            leaks[f"{number}: {line}"] = difference(before, after)
            host.run("rm -f /var/lib/cni/flannel/.*.tmp /run/cni-py/attachments/.*.tmp")
            host.run("ip link del eth0 2>&1", second, check=False)
            delete(host, CONF, second)
            after = without_empty_reservations(state(host, first, second))
            assert after == before, f"and not even a second DEL takes it away: {leaks}"
    assert kills >= FEWEST
    assert leaks == {}
    add(host, CONF, second)


def difference(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the differences of two snapshots, briefly."""
    found = []
    for key, was in before.items():
        if isinstance(was, dict) and key != "files":
            found += [f"{key}: {part}" for part in was if was[part] != after[key][part]]
        elif was != after[key]:
            found.append(f"{key}: {sorted(set(after[key]) ^ set(was)) or 'content'}")
    return found


# --- at any moment ----------------------------------------------------------------------------------------------------


class Runtime:
    """A small runtime inside the host: it starts plugins, kills them, and checks what is left."""

    def __init__(self, bin_dir: str) -> None:
        self.bin_dir = bin_dir
        self.seconds = {"ADD": 0.03, "DEL": 0.03}

    def start(self, verb: str, conf: dict[str, Any] = CONF) -> subprocess.Popen[bytes]:
        env = {"PATH": PATH, "CNI_COMMAND": verb, "CNI_PATH": self.bin_dir}
        if verb in ("ADD", "DEL"):
            env |= {"CNI_CONTAINERID": "c2", "CNI_NETNS": "/run/netns/c2", "CNI_IFNAME": "eth0"}
        process = subprocess.Popen(
            [f"{self.bin_dir}/flannel"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(conf).encode())
        process.stdin.close()
        process.stdin = None
        return process

    def finish(self, verb: str, conf: dict[str, Any] = CONF) -> None:
        began = time.monotonic()
        process = self.start(verb, conf)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 0, (verb, out, err)
        self.seconds[verb] = time.monotonic() - began  # how long it takes at present

    def kill(self, verb: str) -> bool:
        """Start it and kill it somewhere; whether it was still alive."""
        process = self.start(verb)
        time.sleep(random.uniform(0, self.seconds[verb]))  # the moment is what is tried
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return process.returncode == -signal.SIGKILL

    def left(self) -> list[str]:
        """Return what exists of c2: host ends except that of c1, files, elements, records, links in its namespace."""
        shown = subprocess.run(["ip", "-j", "link", "show", "type", "veth"], capture_output=True, text=True, check=True)
        ends = json.loads(shown.stdout or "[]")
        found = [f"link {end['ifname']}" for end in ends if ":c1:" not in str(end.get("altnames"))]
        for directory in ("/var/lib/cni/flannel", "/var/lib/cni/networks/cbr0", "/run/cni-py/attachments"):
            for name in os.listdir(directory):
                text = Path(directory, name).read_text()
                is_reservation = directory.endswith("cbr0")
                if name == "lock" or name.startswith("last_reserved") or "c1" in text + name or (is_reservation and not text):
                    continue
                found.append(f"{directory}/{name}")
        out = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True, env={"PATH": PATH}).stdout
        found += [line.strip() for line in out.splitlines() if '"c2 ' in line]
        return found


def kill_often(bin_dir: str, seconds: float) -> tuple[Counter[str], list[str]]:
    """Kill ADD and DEL in turn, clean up by DEL or GC; how often what was killed, and every leak."""
    random.seed(20261124)
    runtime = Runtime(bin_dir)
    for verb in ("ADD", "DEL") * 2:
        runtime.finish(verb)
    done: Counter[str] = Counter()
    leaks = []
    everything_but_c2 = CONF | {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}
    deadline = time.monotonic() + seconds
    for number in count():
        if time.monotonic() > deadline and min(done["ADD killed"], done["DEL killed"]) >= FEWEST:
            break
        verb = ("ADD", "DEL", "ADD")[number % 3]
        if verb == "DEL":
            runtime.finish("ADD")
        done[f"{verb} killed" if runtime.kill(verb) else f"{verb} was quicker"] += 1
        if number % 4 == 3:
            runtime.finish("GC", everything_but_c2)
        else:
            runtime.finish("DEL")
        if left := runtime.left():
            leaks.append(f"{number} {verb}: {', '.join(left)}")
            runtime.finish("DEL")
            for name in Path("/var/lib/cni/flannel").glob("*.tmp"):
                name.unlink()
    runtime.finish("ADD")
    runtime.finish("DEL")
    assert not runtime.left()
    assert posix.listdir("/var/lib/cni/flannel") == ["c1"]
    return done, leaks


def test_kill_at_random_moments(host: Host, longer: int) -> None:
    first, second = host.netns("c1"), host.netns("c2")
    add(host, CONF, first)
    before = state(host, first, second)
    done, leaks = host.do(kill_often, host.bin_dir, SECONDS * longer)
    assert leaks == [], f"{len(leaks)} of {done}"
    assert done["ADD killed"] >= FEWEST
    assert done["DEL killed"] >= FEWEST
    assert state(host, first, second) == before
