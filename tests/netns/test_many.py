"""Many at once and many in a row: no address twice, no leak."""

from __future__ import annotations

import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from support.namespaces import PATH, Host
from support.pods import DUAL_ENV, FLANNEL, add, state
from support.waiting import until

PODS, MOST_PODS = 40, 200
AT_ONCE = 16
IN_A_ROW = 100
JOURNALS = 1001
"""Journals of deleted attachments that are kept; more are dropped fifty at a time."""


def run_all(bin_dir: str, verb: str, pods: list[str]) -> list[tuple[int, str]]:
    """Execute flannel for every pod, some at a time; exit status and output of each."""

    def one(pod: str) -> tuple[int, str]:
        env = {
            "PATH": PATH, "CNI_COMMAND": verb, "CNI_PATH": bin_dir, "CNI_CONTAINERID": pod,
            "CNI_NETNS": f"/run/netns/{pod}", "CNI_IFNAME": "eth0",
        }  # fmt: skip
        done = subprocess.run(
            [f"{bin_dir}/flannel"], input=json.dumps(FLANNEL), env=env, capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, pods))


def test_many_at_once(host: Host, longer: int) -> None:
    host.write_subnet_env(DUAL_ENV)
    first = host.netns("first")
    add(host, FLANNEL, first)
    before = state(host, first)
    pods = [f"c{number}" for number in range(min(PODS * longer, MOST_PODS))]
    host.run("".join(f"ip netns add {pod}\n" for pod in pods))
    added = host.do(run_all, host.bin_dir, "ADD", pods)
    assert [output for status, output in added if status] == []
    addresses = [ip["address"] for _, output in added for ip in json.loads(output)["ips"]]
    assert len(addresses) == len(set(addresses)) == 2 * len(pods)
    assert len(host.host_ends()) == len(pods) + 1
    deleted = host.do(run_all, host.bin_dir, "DEL", pods)
    assert [output for status, output in deleted if status] == []
    assert state(host, first) == before


def test_first_pods_of_a_host_at_once(host: Host) -> None:
    """Pods that all create the bridge, its addresses, the table, the directories."""
    host.write_subnet_env(DUAL_ENV)
    pods = [f"c{number}" for number in range(AT_ONCE)]
    host.run("".join(f"ip netns add {pod}\n" for pod in pods))
    added = host.do(run_all, host.bin_dir, "ADD", pods)
    assert [output for status, output in added if status] == []
    for pod, (_, output) in zip(pods, added, strict=True):
        reply = host.call("flannel", "CHECK", FLANNEL, sandbox=f"/run/netns/{pod}", container_id=pod, prev=json.loads(output))
        assert reply.rc == 0, reply
    assert [status for status, _ in host.do(run_all, host.bin_dir, "DEL", pods)] == [0] * len(pods)
    assert host.host_ends() == []


def one_after_the_other(bin_dir: str, times: int) -> dict[str, Any]:
    """ADD and DEL in this process, as an agent does it; what grew meanwhile."""
    from cni_py.engine import handle
    from cni_py.kernel.deletion import wait_for_deletions
    from cni_py.spec import call

    stdin = json.dumps(FLANNEL).encode()
    environ = {"CNI_PATH": bin_dir, "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": "eth0"}

    def plugin(verb: str, container_id: str) -> None:
        this = call.parse("flannel", environ | {"CNI_COMMAND": verb, "CNI_CONTAINERID": container_id}, f"{bin_dir}/flannel")
        status, reply = handle(this, stdin)
        assert status == 0, reply

    def size() -> dict[str, int]:
        with open("/proc/self/status") as file:
            memory = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
        threads = len(os.listdir("/proc/self/task"))
        return {"descriptors": len(os.listdir("/proc/self/fd")), "threads": threads, "kB": memory}

    for number in range(20):
        plugin("ADD", f"warm{number}")
        plugin("DEL", f"warm{number}")
    wait_for_deletions()
    before, began = size(), time.monotonic()
    for number in range(times):
        plugin("ADD", f"pod-{number}")
        plugin("DEL", f"pod-{number}")
    wait_for_deletions()  # a thread stays with the last until the kernel has freed it
    until(lambda: size()["threads"] <= before["threads"], "threads that have ended are no longer listed")
    after = size()
    return {"seconds": time.monotonic() - began} | {key: after[key] - before[key] for key in before}


def test_many_in_a_row(host: Host, longer: int) -> None:
    """Many calls in one process, as in the agent: as many starts of an interpreter would take much longer."""
    host.write_subnet_env(DUAL_ENV)
    first, pod = host.netns("first"), host.netns("c1")
    add(host, FLANNEL, first)
    before = state(host, first, pod)
    grown = host.do(one_after_the_other, host.bin_dir, IN_A_ROW * longer)
    assert state(host, first, pod) == before
    assert grown["descriptors"] <= 0, grown
    assert grown["kB"] < 8192, grown
    journals = host.files("/run/cni-py/journal")
    assert len(journals) <= JOURNALS + 50
    assert "/run/cni-py/journal/first:eth0:cbr0" in journals
    others = [name for name in host.files("/run/cni-py") if "/journal/" not in name and not name.endswith(("lock", "boot-id"))]
    assert others == ["/run/cni-py/attachments/first:eth0:cbr0"]


EVERY_VERB = """
import json, sys
sys.path.insert(-1, sys.argv[1])
from cni_py import engine
from cni_py.agent.warm_up import warm_up
from cni_py.spec import call
from cni_py.sweep import sweep
warm_up()
before = set(sys.modules)
environ = {"CNI_PATH": sys.argv[2], "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1"}
confs = json.loads(sys.argv[3])
previous = None
verbs = [(plugin, verb) for verb in ("ADD", "CHECK", "STATUS", "GC") for plugin in confs]
for plugin, verb in [*verbs, *((plugin, "DEL") for plugin in reversed(confs))]:
    of = {"CNI_COMMAND": verb, "CNI_IFNAME": "lo" if plugin == "loopback" else "eth0"}
    conf = confs[plugin] | ({"prevResult": previous} if previous and plugin != "loopback" else {})
    if verb == "GC":
        conf["cni.dev/valid-attachments"] = [{"containerID": "c1", "ifname": "eth0"}]
    status, reply = engine.handle(call.parse(plugin, environ | of), json.dumps(conf).encode())
    assert status == 0, (plugin, verb, reply)
    if (plugin, verb) == ("flannel", "ADD"):
        previous = json.loads(reply)
sweep.run(300.0, dry_run=True)
print(sorted(name for name in set(sys.modules) - before if name.startswith("cni_py")))
"""


def test_a_warm_process_loads_nothing_more(host: Host) -> None:
    """A new version may have been installed since, and its modules do not fit."""
    host.write_subnet_env(DUAL_ENV)
    host.netns("c1")
    ports = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": protocol} for protocol in ("tcp", "udp")]}
    confs = {
        "loopback": {"cniVersion": "1.1.0", "name": "lo", "type": "loopback"},
        "flannel": FLANNEL | {"cniVersion": "1.1.0"},
        "portmap": {"cniVersion": "1.1.0", "name": "cbr0", "type": "portmap", "snat": True, "runtimeConfig": ports},
    }
    lib = Path(host.bin_dir).parent.parent / "cni-py" / "lib"
    done = host.execute([f"{lib}/python", "-IS", "-c", EVERY_VERB, str(lib), str(host.bin_dir), json.dumps(confs)])
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
