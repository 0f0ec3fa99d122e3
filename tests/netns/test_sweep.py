"""`cni-py sweep` and the first call of a boot on a real kernel: stale resources are removed, live ones kept."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.namespaces import Host, Sandbox, wait_for_end
from support.nft import list_elements
from support.pods import FLANNEL, NO_DAD, V6, add, addresses, bridge_conf, delete, records

BRIDGE = bridge_conf(isGateway=True, ipMasq=True)
SPOOF = bridge_conf(isGateway=True, ipMasq=True, macspoofchk=True)
GO_BRIDGE = BRIDGE | {"cniVersion": "1.0.0"}
OLD_BOOT = "00000000-0000-0000-0000-000000000000\n"
Sweep = Callable[..., dict[str, Any]]


@pytest.fixture
def sweep(host: Host, cni_py: Path) -> Sweep:
    """Run `cni-py sweep --json`. Returns: the report, with standard error as `said`."""

    def run(*options: str, status: int = 0) -> dict[str, Any]:
        done = host.execute([str(cni_py), "sweep", "--json", *options])
        assert done.returncode == status, done.stdout + done.stderr
        report: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
        return report | {"said": done.stderr}

    return run


def outcomes(report: dict[str, Any]) -> dict[str, list[str]]:
    """Kind to outcomes."""
    found: dict[str, list[str]] = {}
    for finding in report["findings"]:
        found.setdefault(finding["kind"], []).append(finding["outcome"])
    return {kind: sorted(some) for kind, some in found.items()}


def all_outcomes(report: dict[str, Any]) -> set[str]:
    return {finding["outcome"] for finding in report["findings"]}


def reserved(host: Host, network: str = "net") -> list[str]:
    return reserved_in(host, f"/var/lib/cni/networks/{network}")


def reserved_in(host: Host, directory: str) -> list[str]:
    return sorted(name.rpartition("/")[2] for name in host.files(directory) if "last_reserved" not in name)


def elements(host: Host) -> list[str]:
    """Comments of all elements of our tables."""
    return sorted(element.comment for element in list_elements(host) if element.comment)


def put_back(host: Host, seconds: float, *paths: str) -> None:
    """Make files older; default: all that determine an attachment's age."""
    then = time.time() - seconds
    for path in paths or tuple(host.files("/var/lib/cni", "/run/cni-py/attachments")):
        os.utime(host.path(path), (then, then))


def lose(host: Host, pod: Sandbox) -> None:
    """Delete the namespace without DEL, and wait until the kernel has taken it down with its veth."""
    others = len(host.host_ends()) - 1
    host.delete_netns(pod)
    deadline = time.monotonic() + 10
    while len(host.host_ends()) > others and time.monotonic() < deadline:
        pass


def go_add(host: Host, pod: Sandbox, go_plugins: str, conf: dict[str, Any] = GO_BRIDGE) -> Any:
    return add(host, conf, pod, cni_path=go_plugins) if conf["type"] == "flannel" else host.ok(
        f"{go_plugins}/bridge", "ADD", conf, sandbox=pod, container_id=pod.name, cni_path=go_plugins
    )  # fmt: skip


# --- what is dead goes ------------------------------------------------------------------------------------------------


def test_nothing_is_left_of_a_pod_whose_namespace_has_gone(host: Host, sweep: Sweep) -> None:
    host.write_subnet_env()
    conf = FLANNEL | {"delegate": {"macspoofchk": True}}
    live, dead = host.netns("c1"), host.netns("c2")
    add(host, conf, live)
    before, before_records = host.snapshot(live), records(host)
    add(host, conf, dead)
    lose(host, dead)
    report = sweep("--grace", "0")
    assert outcomes(report) == {
        "address": ["removed"],
        "nftables element": ["removed"] * 3,
        "record": ["removed"],
        "saved configuration": ["removed"],
    }
    assert {(f["containerID"], f["ifname"] or "eth0", f["network"]) for f in report["findings"]} == {("c2", "eth0", "cbr0")}
    assert host.snapshot(live) == before
    assert records(host) == before_records
    assert outcomes(sweep("--grace", "0")) == {}


def test_a_block_for_each_attachment_shows_the_reason_once(host: Host, cni_py: Path) -> None:
    pod = host.netns("c1")
    add(host, BRIDGE, pod)
    host.delete_netns(pod)
    lines = host.run(f"{cni_py} sweep --dry-run --grace 0").splitlines()
    assert lines[0].startswith("would be removed: container c1, eth0, network net, age ")
    assert "    address  10.1.0.2 (/var/lib/cni/networks/net/10.1.0.2)" in lines
    text = " ".join(" ".join(lines).split())
    assert text.count("10.1.0.2 is on no interface of any of 1 live namespace;") == 1
    assert text.count("recorded namespace /run/netns/c1 no longer exists") == 1
    assert text.endswith("3 would be removed; 0 live attachments in 1 namespace, including the host's")
    assert max(map(len, lines)) <= 80


def test_each_change_is_in_the_journal(host: Host, sweep: Sweep) -> None:
    pod = host.netns("c1")
    add(host, BRIDGE, pod)
    host.delete_netns(pod)
    sweep("--grace", "0")
    journal = host.path("/run/cni-py/journal/sweep").read_text()
    for line in (
        "delete element inet cni_py masq4 { 10.1.0.2 }; flush chain inet cni_py beyond-10.1.0.0_24; ",
        "rm -f /var/lib/cni/networks/net/10.1.0.2",
        "rm -f /run/cni-py/attachments/c1:eth0:net",
    ):
        assert line in journal
    assert host.path("/run/cni-py/journal/deleted/c1:eth0:net").exists()


def test_dry_run_changes_nothing(host: Host, sweep: Sweep) -> None:
    dead, live = host.netns("c1"), host.netns("c2")
    add(host, SPOOF, dead)
    add(host, SPOOF, live)
    lose(host, dead)
    before = host.snapshot(live), host.files("/run/cni-py"), host.run("find /var/lib/cni /run/cni-py -printf '%p %i %T@\n'")
    report = sweep("--dry-run", "--grace", "0")
    assert all_outcomes(report) == {"would be removed"}
    assert (
        host.snapshot(live),
        host.files("/run/cni-py"),
        host.run("find /var/lib/cni /run/cni-py -printf '%p %i %T@\n'"),
    ) == before


def test_element_whose_pod_the_go_plugins_deleted(host: Host, sweep: Sweep, go_plugins: str) -> None:
    """The Go plugins do not know our elements, records and marks."""
    dead, live = host.netns("c1"), host.netns("c2")
    add(host, BRIDGE, dead)
    add(host, BRIDGE, live)
    without = GO_BRIDGE | {"ipMasq": False}  # 1.1.1 fails where its own masquerade chain is not there
    host.ok(f"{go_plugins}/bridge", "DEL", without, sandbox=dead, container_id="c1", cni_path=go_plugins)
    host.delete_netns(dead)
    assert reserved(host) == ["10.1.0.3"]
    assert len(elements(host)) == 2
    assert outcomes(sweep("--grace", "0")) == {"nftables element": ["removed"], "record": ["removed"]}
    assert [comment.split()[0] for comment in elements(host)] == ["c2"]


def test_element_without_any_file_is_old(host: Host, sweep: Sweep) -> None:
    """ADD makes record, saved configuration, reservation, element in this order: what has none left is not being made."""
    pod = host.netns("c1")
    add(host, BRIDGE, pod)
    host.delete_netns(pod)
    host.run("rm -r /run/cni-py/attachments /var/lib/cni/networks/net")
    report = sweep()
    assert outcomes(report) == {"nftables element": ["removed"]}
    assert report["findings"][0]["ageSeconds"] is None
    assert elements(host) == []


def test_ports_of_a_dead_pod(host: Host, sweep: Sweep) -> None:
    pods = [host.netns("c1"), host.netns("c2")]
    for pod, port in zip(pods, (8080, 8081), strict=True):
        result = add(host, BRIDGE, pod)
        mapping = [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]
        conf = {"cniVersion": "1.1.0", "name": "net", "type": "portmap", "runtimeConfig": {"portMappings": mapping}}
        add(host, conf, pod, prev=result)
    host.run("rm -r /run/cni-py/attachments")
    assert outcomes(sweep("--grace", "0")) == {}
    host.delete_netns(pods[0])
    report = sweep("--grace", "0")
    assert outcomes(report)["nftables element"] == ["removed"] * 3
    assert outcomes(report)["record"] == ["removed"]
    assert {comment.split()[0] for comment in elements(host)} == {"c2"}
    assert len(elements(host)) == 3


def test_masquerade_chain_of_the_go_plugins(host: Host, sweep: Sweep, go_plugins: str) -> None:
    dead, live = host.netns("c1"), host.netns("c2")
    go_add(host, dead, go_plugins)
    go_add(host, live, go_plugins)
    foreign = 'iptables -t nat -A POSTROUTING -s 10.9.9.9 -m comment --comment \'name: "net" id: "c1"\' -j RETURN'
    host.run(foreign)
    rules = host.run("iptables -t nat -S")
    assert rules.count("MASQUERADE") == 2
    assert outcomes(sweep("--grace", "0")) == {}
    host.delete_netns(dead)
    assert outcomes(sweep("--grace", "0")) == {"address": ["removed"], "iptables chain": ["removed"]}
    after = host.run("iptables -t nat -S")
    gone = set(rules.splitlines()) - set(after.splitlines())
    assert len(gone) == 4
    assert len({line.split()[-1] for line in gone if "-j CNI-" in line}) == 1
    assert all("c1" in line or line.startswith("-N") for line in gone)
    assert reserved(host) == ["10.1.0.3"]


def test_damaged_files(host: Host, sweep: Sweep) -> None:
    for path in (
        "/var/lib/cni/networks/net/10.1.0.9",
        "/var/lib/cni/flannel/dead1",
        "/run/cni-py/attachments/dead1:eth0:net",
    ):
        host.write(path, "\0\1{")
    host.write("/var/lib/cni/networks/net/10.1.0.8", "")
    host.write("/var/lib/cni/networks/net/notes.txt", "mine")
    host.write("/var/lib/cni/flannel/.dead1.tmp", "{}")
    host.write("/var/lib/cni/flannel/dead2.4711.tmp", '{"na')
    host.path("/var/lib/cni/networks/net/10.1.0.7").mkdir()
    report = sweep("--grace", "0")
    assert outcomes(report) == {"address": ["removed"] * 2, "saved configuration": ["removed"] * 2, "record": ["removed"]}
    assert host.files("/var/lib/cni") == {"/var/lib/cni/networks/net/notes.txt": "mine"}
    assert host.path("/var/lib/cni/networks/net/10.1.0.7").exists()


def test_directories_that_configurations_name(host: Host, sweep: Sweep) -> None:
    inner = bridge_conf(ipam={"dataDir": "/run/a"}) | {"name": "one"}
    chain = {
        "name": "one",
        "cniVersion": "1.1.0",
        "plugins": [{k: v for k, v in inner.items() if k not in ("name", "cniVersion")}],
    }
    host.write("/etc/cni/net.d/10-one.conflist", json.dumps(chain))
    host.write("/etc/cni/net.d/20-two.conf", json.dumps({"name": "two", "type": "flannel", "dataDir": "/run/b"}))
    host.write("/etc/cni/net.d/30-bad.conf", "{")
    host.write("/run/a/one/10.1.0.2", "c1\r\neth0")
    host.write("/run/a/else/10.1.0.2", "c1\r\neth0")
    host.write("/run/b/c2", json.dumps({"name": "two", "type": "bridge", "ipam": {"type": "host-local", "dataDir": "/run/c"}}))
    host.write("/run/c/two/10.2.0.2", "c2\r\neth0")
    report = sweep("--grace", "0")
    assert sorted(f["path"] for f in report["findings"]) == ["/run/a/one/10.1.0.2", "/run/b/c2", "/run/c/two/10.2.0.2"]
    assert all_outcomes(report) == {"removed"}
    assert "30-bad.conf" in report["said"]
    assert host.path("/run/a/else/10.1.0.2").exists()


def test_cached_result_is_reported_and_kept(host: Host, sweep: Sweep) -> None:
    entry = {"kind": "cniCacheV1", "containerId": "c1", "ifName": "eth0", "networkName": "net", "netns": "/run/netns/c1"}
    host.write("/var/lib/cni/results/net-c1-eth0", json.dumps(entry))
    assert outcomes(sweep("--grace", "0")) == {"cached result": ["reported"]}
    assert host.path("/var/lib/cni/results/net-c1-eth0").exists()
    [finding] = sweep("--grace", "0")["findings"]
    assert finding["why"].endswith("; deleted by: cni-py gc net --valid-living")


def test_veth_with_both_ends_on_the_host(host: Host, sweep: Sweep) -> None:
    host.run("ip link add v1 type veth peer name w1; ip link property add dev v1 altname cni:c1:eth0:net")
    host.run("ip link add v2 type veth peer name w2; ip link set v2 alias cni:c2:eth0:net; ip addr add 10.1.0.2/24 dev w2")
    host.run("ip link add v3 type veth peer name w3; ip link set v3 alias other")
    assert outcomes(sweep()) == {"veth": ["removed"]}
    assert host.host_ends() == ["v2", "v3", "w2", "w3"]


def test_one_network_only(host: Host, sweep: Sweep) -> None:
    host.write("/var/lib/cni/networks/one/10.1.0.2", "c1\r\neth0")
    host.write("/var/lib/cni/networks/two/10.2.0.2", "c1\r\neth0")
    report = sweep("--grace", "0", "--network", "one")
    assert [f["path"] for f in report["findings"]] == ["/var/lib/cni/networks/one/10.1.0.2"]
    assert reserved(host, "two") == ["10.2.0.2"]


def test_killed_sweep_is_completed_by_the_next(host: Host, cni_py: Path, sweep: Sweep) -> None:
    """The files that are removed first lead to the rest."""
    conf = FLANNEL | {"ipam": {"dataDir": "/run/far"}}
    host.write_subnet_env()
    live = host.netns("live")
    add(host, conf, live)
    before = host.snapshot(live), reserved_in(host, "/run/far/cbr0"), records(host)
    for delay in (0.04, 0.05, 0.06, 0.07, 0.08, 0.1):
        for number in range(4):
            add(host, conf, host.netns(f"c{number}"))
        for number in range(4):
            lose(host, Sandbox(f"c{number}"))
        killed = subprocess.Popen(
            host.command(str(cni_py), "sweep", "--grace", "0"), stdout=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(delay)
        os.killpg(killed.pid, signal.SIGKILL)
        wait_for_end(killed)
        sweep("--grace", "0")
        assert (host.snapshot(live), reserved_in(host, "/run/far/cbr0"), records(host)) == before
        assert [comment.split()[0] for comment in elements(host)] == ["live"]


# --- what lives stays -------------------------------------------------------------------------------------------------

WAIT = "until [ -e /run/ready ]; do sleep 0.02; done"
HOLDERS = {
    "mount": "",
    "process": f"ip netns exec c1 sh -c 'touch /run/ready; exec sleep 60' & {WAIT}; ip netns del c1",
    "thread": f"""python3 - <<'END' &
import ctypes, threading, time
def inside():
    fd = open("/run/netns/c1")
    assert ctypes.CDLL(None).setns(fd.fileno(), 0x40000000) == 0
    fd.close()
    open("/run/ready", "w")
    time.sleep(60)
threading.Thread(target=inside).start()
END
{WAIT}; ip netns del c1""",
    "descriptor of a mount": f"sh -c 'touch /run/ready; exec sleep 60' 3</run/netns/c1 & {WAIT}; ip netns del c1",
    "descriptor of a process": f"""
ip netns exec c1 sh -c 'touch /run/ready; exec sleep 60' & first=$!; {WAIT}; rm /run/ready; ip netns del c1
sh -c 'touch /run/ready; exec sleep 60' 3</proc/$first/ns/net & {WAIT}; kill $first; wait $first || true""",
    "mount of another mount namespace": f"""
unshare --mount --propagation private sh -c '
    touch /run/held; mount --bind /run/netns/c1 /run/held; touch /run/ready; sleep 60' &
{WAIT}; ip netns del c1""",
    # the kernel mounts no mount namespace in one that was made after it; Linux 6.18 numbers them per processor
    "mount of a mount namespace without processes": f"""
mkdir /run/mnt; mount --bind /run/mnt /run/mnt; mount --make-private /run/mnt; touch /run/mnt/ns
for try in $(seq 50); do
    unshare --mount --propagation private sh -c '
        touch /run/held; mount --bind /run/netns/c1 /run/held; touch /run/ready; exec sleep 60' &
    {WAIT}; rm /run/ready
    if mount --bind /proc/$!/ns/mnt /run/mnt/ns; then kill $!; wait $! || true; ip netns del c1; exit 0; fi
    kill $!; wait $! || true
done; exit 1""",
    "mount in a chroot": f"""
mkdir -p /run/root/held
for d in usr bin lib lib64; do mkdir -p /run/root/$d; mount --rbind /$d /run/root/$d; done
touch /run/root/held/ns; mount --bind /run/netns/c1 /run/root/held/ns
chroot /run/root sh -c 'echo >/held/ready; exec sleep 60' & ln -s /run/root/held/ready /run/ready
{WAIT}; ip netns del c1""",
}


@pytest.mark.parametrize("maker", ["ours", "go"])
@pytest.mark.parametrize("holder", HOLDERS)
def test_live_pod_is_left_alone(host: Host, sweep: Sweep, go_plugins: str, maker: str, holder: str) -> None:
    """Pods are kept, whichever plugin attached them and whatever holds their namespace, without any of our files in /run."""
    pod, conf = host.netns("c1"), bridge_conf([{"subnet": "10.1.0.0/24"}], V6, isGateway=True, ipMasq=True)
    if maker == "ours":
        add(host, conf, pod)
    else:
        host.run(NO_DAD)
        go_add(host, pod, go_plugins, conf | {"cniVersion": "1.0.0"})
    host.run(f"exec >/run/said 2>&1\n{HOLDERS[holder]}")
    assert host.run("test -e /run/netns/c1 && echo there || true") == ("there\n" if holder == "mount" else "")
    before = host.snapshot(), elements(host)
    for emptied in (False, True):
        if emptied:
            host.run("rm -rf /run/cni-py")
        report = sweep("--grace", "0")
        assert report["findings"] == []
        assert report["missing"] == []
    assert (host.snapshot(), elements(host)) == before


def test_pod_without_a_veth(host: Host, sweep: Sweep) -> None:
    """Its namespace has no number on the host: it is entered."""
    pod = host.netns("c1")
    host.run("ip link set lo up; ip addr add 10.1.0.5/24 dev lo; ip addr add fd00:1::5/64 dev lo", pod)
    for address in ("10.1.0.5", "fd00:1::5", "10.1.0.6"):
        host.write(f"/var/lib/cni/networks/net/{address}", "c1\r\neth0" if address != "10.1.0.6" else "c2\r\neth0")
    assert [f["containerID"] for f in sweep("--grace", "0")["findings"]] == ["c2"]
    assert reserved(host) == ["10.1.0.5", "fd00:1::5"]


def test_layer_2_pod_lives_by_its_host_end(host: Host, sweep: Sweep) -> None:
    pod = host.netns("c1")
    conf = bridge_conf(macspoofchk=True)
    del conf["ipam"]
    add(host, conf, pod)
    host.run("rm -r /run/cni-py")
    assert sweep("--grace", "0")["findings"] == []
    host.delete_netns(pod)
    assert outcomes(sweep("--grace", "0")) == {"nftables element": ["removed"] * 2}


def test_pod_that_took_its_address_away_lives_by_its_record(host: Host, sweep: Sweep) -> None:
    """Pods of virtual machines do this: they pass their address on by DHCP."""
    pod = host.netns("c1")
    add(host, BRIDGE, pod)
    host.run("ip addr flush dev eth0", pod)
    assert sweep("--grace", "0")["findings"] == []


def test_pod_that_took_its_address_away_lives_by_its_cached_result(host: Host, sweep: Sweep, go_plugins: str) -> None:
    pod = host.netns("c1")
    go_add(host, pod, go_plugins)
    entry = {"kind": "cniCacheV1", "containerId": "c1", "ifName": "eth0", "networkName": "net", "netns": "/var/run/netns/c1"}
    host.write("/var/lib/cni/results/net-c1-eth0", json.dumps(entry))
    host.run("ip addr flush dev eth0", pod)
    assert sweep("--grace", "0")["findings"] == []


def test_add_of_the_go_plugins_that_is_under_way(host: Host, sweep: Sweep) -> None:
    """The attachment has a reservation, but neither an address nor a record."""
    host.netns("c1")
    host.write("/var/lib/cni/networks/net/10.1.0.2", "c1\r\neth0")
    host.run("mkfifo /run/end; (CNI_COMMAND=ADD CNI_CONTAINERID=c1 CNI_IFNAME=eth0 sh -c '"
             "touch /run/ready; read _ </run/end'; touch /run/ended; sleep 60) >/dev/null 2>&1 &"
             "until [ -e /run/ready ]; do sleep 0.02; done")  # fmt: skip
    assert sweep("--grace", "0")["findings"] == []
    host.run("echo >/run/end; until [ -e /run/ended ]; do sleep 0.02; done")
    assert outcomes(sweep("--grace", "0")) == {"address": ["removed"]}


@pytest.mark.parametrize(
    ("age", "words"),
    [(100.0, r"too young: 1\d\d s of 300 \(option --grace\)"), (-86400.0, "its modification time is in the future")],
)
def test_young_and_future_files_stay(host: Host, sweep: Sweep, age: float, words: str) -> None:
    host.write_subnet_env()
    pod = host.netns("c1")
    add(host, FLANNEL, pod)
    host.delete_netns(pod)
    put_back(host, 10_000)
    put_back(host, age, "/var/lib/cni/networks/cbr0/10.244.91.2")
    report = sweep()
    assert {f["outcome"] for f in report["findings"]} == {"kept"}
    assert all(re.fullmatch(words, f["why"].rpartition("kept: ")[2]) for f in report["findings"])
    assert len(report["findings"]) == 4  # the youngest file speaks for all of the attachment
    put_back(host, 301)
    assert all_outcomes(sweep()) == {"removed"}


def test_namespace_number_that_was_given_again(host: Host, sweep: Sweep) -> None:
    """The kernel reuses the inode of a deleted namespace: a record with it does not prove that a pod is live."""
    pod = host.netns("c1")
    add(host, BRIDGE, pod)
    lose(host, pod)
    record = host.path("/run/cni-py/attachments/c1:eth0:net")
    inode = int(host.run(f"stat -Lc %i {host.netns('later')}"))
    record.write_text(json.dumps(json.loads(record.read_text()) | {"ino": inode}))
    assert all_outcomes(sweep("--grace", "0")) == {"removed"}


# --- unknown liveness -------------------------------------------------------------------------------------------------


def test_without_root_nothing_is_removed(host: Host) -> None:
    host.write("/var/lib/cni/networks/net/10.1.0.2", "c1\r\neth0")
    host.run("chmod -R a+rX /var/lib/cni; chmod 777 /var/lib/cni/networks/net")
    outcomes, missing = host.do(_sweep_as_another_user)
    assert outcomes == ["kept"]
    assert missing[0] == "not running as root: namespaces of other processes are unreadable"
    assert reserved(host) == ["10.1.0.2"]


def _sweep_as_another_user() -> tuple[list[str], tuple[str, ...]]:
    from cni_py.packetfilter import libnftables  # noqa: F401 — imported first: another user may not be able to read it
    from cni_py.sweep import sweep

    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    report = sweep.run(0.0, with_kernel=False)
    return [finding.outcome for finding in report.findings], report.missing


def test_in_another_pid_namespace_nothing_is_removed(host: Host, cni_py: Path) -> None:
    """The pods' processes are invisible; a veth to a namespace without a process reveals it."""
    pod = host.netns("c1")
    add(host, BRIDGE, pod)
    host.run(f"exec >/run/said 2>&1\n{HOLDERS['process']}")
    host.write("/var/lib/cni/networks/net/10.1.0.77", "c7\r\neth0")
    done = host.execute(["unshare", "--pid", "--fork", "--mount-proc", str(cni_py), "sweep", "--grace", "0"])
    assert done.returncode == 3, done.stdout
    assert "/proc may not show the whole host" in done.stderr
    assert "kept: liveness unknown" in " ".join(done.stdout.split())
    assert reserved(host) == ["10.1.0.2", "10.1.0.77"]


def test_process_that_cannot_be_looked_at_is_named(host: Host, cni_py: Path) -> None:
    """Root without CAP_SYS_PTRACE, as in a container, cannot read a process with more capabilities."""
    host.write("/var/lib/cni/networks/net/10.1.0.2", "c1\r\neth0")
    done = host.execute(["setpriv", "--bounding-set=-sys_ptrace", str(cni_py), "sweep", "--grace", "0"])
    assert done.returncode == 3, done.stderr
    assert re.search(r"^  process 1 \(\w+\) cannot be inspected: /proc/1/\S+: Permission denied$", done.stderr, re.MULTILINE)
    assert "CAP_SYS_PTRACE" in done.stderr
    assert reserved(host) == ["10.1.0.2"]


@pytest.mark.parametrize("leaked", [True, False])
def test_another_user_gets_one_reason_and_no_false_all_clear(host: Host, cni_py: Path, leaked: bool) -> None:
    if leaked:
        host.write("/var/lib/cni/networks/net/10.1.0.2", "c1\r\neth0")
    done = host.execute(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", str(cni_py), "sweep"])
    if "Permission denied" in done.stderr and "can't open file" in done.stderr:
        pytest.skip("the installation is in a directory that other users cannot enter")
    assert done.returncode == 3
    assert done.stderr.count("\n") <= 8
    assert "hint: sudo cni-py sweep" in done.stderr
    assert "no leaked resources" not in done.stdout
    assert "1 kept" in done.stdout if leaked else "unknown whether resources are leaked" in done.stdout


def test_resources_that_cannot_be_removed_are_named(host: Host, sweep: Sweep) -> None:
    for network in ("one", "two"):
        host.write(f"/var/lib/cni/networks/{network}/10.1.0.2", "c1\r\neth0")
        host.write(f"/var/lib/cni/networks/{network}/lock", "")
    host.run("cd /var/lib/cni/networks/one; mount --bind . .; mount -o remount,bind,ro .")
    report = sweep("--grace", "0", status=1)
    assert outcomes(report) == {"address": ["failed", "removed"]}
    assert "could not remove address 10.1.0.2 (/var/lib/cni/networks/one/10.1.0.2)" in report["said"]
    assert "Read-only file system" in report["said"]
    assert (reserved(host, "one"), reserved(host, "two")) == (["10.1.0.2"], [])


# --- beside running calls ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maker", ["ours", "go"])
def test_add_and_delete_beside_sweeps_without_grace(host: Host, cni_py: Path, go_plugins: str, maker: str) -> None:
    """No call fails, no address is given twice, nothing of a live pod goes."""
    conf = bridge_conf([{"subnet": "10.1.0.0/28"}], isGateway=True, ipMasq=True, cniVersion="1.0.0")
    plugin, path = ("bridge", None) if maker == "ours" else (f"{go_plugins}/bridge", go_plugins)
    pods = [host.netns(f"c{number}") for number in range(3)]
    until, wrong, calls = time.monotonic() + 4, [], [0]

    def work(pod: Sandbox) -> None:
        while time.monotonic() < until and not wrong:
            reply = host.call(plugin, "ADD", conf, sandbox=pod, container_id=pod.name, cni_path=path)
            if reply.rc:
                wrong.append(f"ADD: {reply.json}")
                return
            address = reply.json["ips"][0]["address"].partition("/")[0]
            time.sleep(0.05)
            text = host.path(f"/var/lib/cni/networks/net/{address}")
            if not text.exists() or text.read_text().split() != [pod.name, "eth0"]:
                wrong.append(f"the reservation of {pod.name}, {address}, was deleted")
            if maker == "ours" and not any(comment.startswith(f"{pod.name} ") for comment in elements(host)):
                wrong.append(f"the element of {pod.name} was deleted")
            reply = host.call(plugin, "DEL", conf, sandbox=pod, container_id=pod.name, cni_path=path)
            if reply.rc:
                wrong.append(f"DEL: {reply.json}")
            calls[0] += 1

    def keep_sweeping() -> None:
        while time.monotonic() < until and not wrong:
            done = host.execute([str(cni_py), "sweep", "--grace", "0"])
            if done.returncode:
                wrong.append(f"sweep: {done.stdout}{done.stderr}")

    threads = [threading.Thread(target=work, args=(pod,)) for pod in pods] + [threading.Thread(target=keep_sweeping)] * 1
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert calls[0] > 3
    assert reserved(host) == []
    assert elements(host) == []


# --- the first call of a boot -----------------------------------------------------------------------------------------


def test_first_call_after_a_reboot_frees_what_is_dead_and_keeps_what_lives(host: Host, go_plugins: str) -> None:
    """A node that was switched from the Go plugins has live pods and an empty /run/cni-py, too."""
    host.write_subnet_env()
    pods = {name: host.netns(name) for name in ("dead1", "dead2", "live1", "live2", "new")}
    for name, pod in pods.items():
        if name.endswith("1"):
            add(host, FLANNEL, pod)
        elif name.endswith("2"):
            go_add(host, pod, go_plugins, FLANNEL | {"cniVersion": "1.0.0", "delegateMode": "exec"})
    for name in ("dead1", "dead2"):
        host.delete_netns(pods[name])
    put_back(host, 61)
    host.write("/run/cni-py/boot-id", OLD_BOOT)
    host.run("rm -r /run/cni-py/attachments")
    assert len(reserved(host, "cbr0")) == 4
    add(host, FLANNEL, pods["new"])
    assert len(reserved(host, "cbr0")) == 3
    assert sorted(name.rpartition("/")[2] for name in host.files("/var/lib/cni/flannel")) == ["live1", "live2", "new"]
    assert host.path("/run/cni-py/boot-id").read_text() == host.run("cat /proc/sys/kernel/random/boot_id")


@pytest.mark.parametrize("cached", [False, True])
def test_container_that_is_started_again_after_a_reboot(host: Host, cached: bool) -> None:
    """Podman uses the same id. Without the sweep its old reservation would make ADD fail."""
    pod = host.netns("c1")
    add(host, BRIDGE, pod)
    host.run("ip netns del c1; ip netns add c1; ip link del br0; nft flush ruleset; rm -r /run/cni-py")
    if cached:
        entry = {"kind": "cniCacheV1", "containerId": "c1", "ifName": "eth0", "networkName": "net", "netns": "/run/netns/c1"}
        host.write("/var/lib/cni/results/net-c1-eth0", json.dumps(entry))
    put_back(host, 61)
    add(host, BRIDGE, pod)
    assert reserved(host) == ["10.1.0.3"]
    assert addresses(host, "eth0", pod) == ["10.1.0.3/24"]


def test_first_call_sweeps_once(host: Host) -> None:
    pod = host.netns("c1")
    add(host, BRIDGE, pod)
    host.write("/var/lib/cni/networks/net/10.1.0.99", "gone\r\neth0")
    put_back(host, 1000, "/var/lib/cni/networks/net/10.1.0.99")
    add(host, BRIDGE, host.netns("c2"))
    assert "10.1.0.99" in reserved(host)
    host.run("rm /run/cni-py/boot-id")
    host.ok(
        "bridge",
        "GC",
        BRIDGE | {"cni.dev/valid-attachments": [{"containerID": c, "ifname": "eth0"} for c in ("c1", "c2", "gone")]},
    )
    assert "10.1.0.99" not in reserved(host)


def test_young_state_stays_at_the_first_call(host: Host) -> None:
    host.write("/var/lib/cni/networks/net/10.1.0.99", "gone\r\neth0")
    add(host, BRIDGE, host.netns("c1"))
    assert "10.1.0.99" in reserved(host)


def test_second_of_two_first_calls_goes_on(host: Host) -> None:
    pod = host.netns("c1")
    host.write("/var/lib/cni/networks/net/10.1.0.99", "gone\r\neth0")
    put_back(host, 1000, "/var/lib/cni/networks/net/10.1.0.99")
    host.run("mkdir /run/cni-py; (flock 9; touch /run/locked; sleep 60) 9>/run/cni-py/sweep.lock >/dev/null 2>&1 &"
             "until [ -e /run/locked ]; do sleep 0.02; done")  # fmt: skip
    add(host, BRIDGE, pod)
    assert "10.1.0.99" in reserved(host)
    assert not host.path("/run/cni-py/boot-id").exists()


def test_first_call_never_fails_because_of_the_sweep(host: Host) -> None:
    """Unreadable directories, rubbish where files should be."""
    host.path("/var/lib/cni/flannel").mkdir()
    host.write("/var/lib/cni/networks/net/10.1.0.99", "gone\r\neth0")
    put_back(host, 1000, "/var/lib/cni/networks/net/10.1.0.99")
    host.write("/run/cni-py/attachments", "")
    host.path("/run/cni-py/attachments").unlink()
    host.path("/run/cni-py/sweep.lock").mkdir()
    pod = host.netns("c1")
    add(host, BRIDGE, pod)
    delete(host, BRIDGE, pod)
