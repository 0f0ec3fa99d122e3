"""containerd by its CRI interface, as kubelet uses it, and by `ctr run --cni`: the guide's chain for real sandboxes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from integration.clients import image
from integration.clients.containerd import GUIDE, TCP, UDP, Containerd
from integration.clients.containers import (
    HOST4,
    HOST6,
    OUTSIDE,
    OUTSIDE4,
    OUTSIDE6,
    ask,
    done_by_us,
    refused,
    reservations,
    server_outside,
    state,
)
from integration.clients.cri import CriError
from support.agents import Agent
from support.namespaces import PATH, Host
from support.pods import DUAL_ENV
from support.waiting import until

GATEWAY = "10.244.91.1"
AT_ONCE = 8


@pytest.fixture
def containerd(host: Host, bin_dir: Path, containerd_program: str, answer_image: Path) -> Iterator[Containerd]:
    made = Containerd(containerd_program, host, bin_dir, answer_image)
    yield made
    host.close()  # and with it containerd and everything that it started
    made.process.wait(20)


@contextmanager
def nothing_left(containerd: Containerd, *plugins: dict[str, Any] | str, **options: Any) -> Iterator[None]:
    """The network is configured and a first sandbox has made what all share; afterwards all is as it was then."""
    containerd.configure(*plugins, **options)
    containerd.run("first", (9999, TCP), (9999, UDP), (9998, TCP, "127.0.0.1"))
    before = state(containerd.host)
    yield
    assert state(containerd.host) == before


# --- one sandbox ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_sandbox_with_ports(host: Host, containerd: Containerd, version: str, agent: Agent | None) -> None:
    with nothing_left(containerd, version=version):
        web = containerd.run("web", (8080, TCP), (5353, UDP), (8081, TCP, HOST4), (8082, TCP, "127.0.0.1"))
        (address,) = containerd.addresses(web)
        assert reservations(host, "cbr0") == ["10.244.91.2", address]
        assert done_by_us(host, web) == {"ADD loopback", "ADD flannel", "ADD portmap"}

        pod = containerd.netns(web)
        for port, protocol in ((8080, "tcp"), (5353, "udp")):
            assert ask(host, address, 80, protocol) == f"{GATEWAY} web"
            assert ask(host, HOST4, port, protocol, OUTSIDE) == f"{OUTSIDE4} web"
            assert ask(host, "127.0.0.1", port, protocol) == f"{GATEWAY} web"
            assert ask(host, HOST4, port, protocol, pod) == f"{GATEWAY} web"
        assert ask(host, HOST4, 8081, source=OUTSIDE) == f"{OUTSIDE4} web"
        assert refused(host, "127.0.0.1", 8081)
        assert refused(host, HOST4, 8082, source=OUTSIDE)
        assert ask(host, "127.0.0.1", 8082) == f"{GATEWAY} web"
        assert ask(host, "10.244.91.2", source=pod) == f"{address} first"
        with server_outside(host):
            assert ask(host, OUTSIDE4, source=pod).split()[0] == HOST4

        containerd.stop_sandbox(web)
        assert done_by_us(host, web) >= {"DEL loopback", "DEL flannel", "DEL portmap"}
        assert refused(host, HOST4, 8080, source=OUTSIDE)
        containerd.remove(web)


def test_shipped_file_in_the_version_that_this_containerd_takes(host: Host, containerd: Containerd) -> None:
    """One with a libcni before 1.2 does not know "cniVersions", and takes "cniVersion"."""
    conf = json.loads(GUIDE.read_text())
    containerd.write_network(json.dumps(conf | {"plugins": [*conf["plugins"], {"type": "failing"}]}))
    web = containerd.run("web", (8080, TCP))
    assert ask(host, HOST4, 8080, source=OUTSIDE) == f"{OUTSIDE4} web"
    containerd.remove(web)
    assert (reservations(host, "cbr0"), host.host_ends()) == ([], ["up0"])
    expected = "0.3.1" if containerd.version < (1, 7) else "1.1.0"
    assert set(host.path("/run/called").read_text().splitlines()) >= {f"ADD {expected}", f"DEL {expected}"}


def test_containerd_is_killed_in_the_middle_of_adds_and_deletes(host: Host, containerd: Containerd, cni_py: Path) -> None:
    """kubelet removes the sandboxes that containerd still knows; what belongs to none is found by a sweep."""
    containerd.configure("failing")
    containerd.run("first", (9999, TCP))
    before = state(host)
    kept = [containerd.run(f"old{number}", (8100 + number, TCP)) for number in range(2)]
    host.write("/run/failing", "wait ADD DEL")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        adds = [pool.submit(containerd.run, f"c{number}", (8080 + number, TCP)) for number in range(4)]
        deletes = [pool.submit(containerd.remove, each) for each in kept]
        until(lambda: _waiting(host) == 6, "four ADDs and two DELs have come to the last plugin")
        containerd.stop("KILL")
        for call in (*adds, *deletes):
            assert isinstance(call.exception(), CriError | OSError)
    host.run("rm /run/failing")
    until(lambda: _waiting(host) == 0, "the plugins have ended")
    containerd.start()
    for sandbox in containerd.cri.call("ListPodSandbox")["items"]:
        if sandbox["metadata"]["name"] != "first":
            containerd.remove(sandbox["id"])
    host.execute([str(cni_py), "sweep", "--grace", "0"])
    assert state(host) == before


def _waiting(host: Host) -> int:
    """Count the calls of the plugin `failing` that wait."""
    return int(host.run("ls /run/waiting 2>/dev/null | wc -l"))


def test_dual_stack(host: Host, containerd: Containerd, agent: Agent | None) -> None:
    host.write_subnet_env(DUAL_ENV)
    with nothing_left(containerd):
        web = containerd.run("web", (8080, TCP), (5353, UDP), (8081, TCP, HOST6))
        v4, v6 = containerd.addresses(web)
        assert (v4, v6) == ("10.244.91.3", "fd00:244:0:91::3")
        assert ask(host, v6) == "fd00:244:0:91::1 web"
        assert ask(host, HOST4, 8080, source=OUTSIDE) == f"{OUTSIDE4} web"
        for port, protocol in ((8080, "tcp"), (5353, "udp"), (8081, "tcp")):
            assert ask(host, HOST6, port, protocol, OUTSIDE) == f"{OUTSIDE6} web"
        assert refused(host, HOST4, 8081, source=OUTSIDE)
        assert ask(host, "fd00:244:0:91::2", source=containerd.netns(web)) == f"{v6} first"
        containerd.remove(web)


def test_sandbox_whose_namespace_was_deleted(host: Host, containerd: Containerd) -> None:
    """DEL after a crash comes with a path that leads nowhere, or without one."""
    with nothing_left(containerd):
        web = containerd.run("web", (8080, TCP))
        pod = containerd.netns(web)
        host.run(f"kill -KILL $(ip netns pids {pod.name})")
        until(lambda: containerd.ready() == ["first"], "containerd sees that the sandbox has ended")
        host.run(f"umount {pod}; rm {pod}")
        containerd.remove(web)


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.3.1", "1.0.0"])
def test_plugin_behind_flannel_fails(host: Host, containerd: Containerd, version: str, agent: Agent | None) -> None:
    with nothing_left(containerd, "failing", version=version):
        host.write("/run/failing", "ADD")
        with pytest.raises(CriError, match="no luck"):
            containerd.run("web", (8080, TCP))
        assert refused(host, HOST4, 8080, source=OUTSIDE)
        assert containerd.ready() == ["first"]


def test_plugin_behind_flannel_fails_in_del_too(host: Host, containerd: Containerd) -> None:
    """Stop the sandbox until that succeeds, as kubelet does."""
    with nothing_left(containerd, "failing"):
        web = containerd.run("web", (8080, TCP))
        host.write("/run/failing", "DEL")
        for _ in range(2):
            with pytest.raises(CriError, match="no luck"):
                containerd.stop_sandbox(web)
        host.run("rm /run/failing")
        containerd.remove(web)


def test_flannel_is_not_ready_then_is(host: Host, containerd: Containerd) -> None:
    with nothing_left(containerd):
        host.run("mv /run/flannel/subnet.env /run/flannel/not-yet")
        with pytest.raises(CriError, match=r"failed to load flannel 'subnet.env' file"):
            containerd.run("web", (8080, TCP))
        host.run("mv /run/flannel/not-yet /run/flannel/subnet.env")
        web = containerd.run("web", (8080, TCP))
        assert ask(host, HOST4, 8080, source=OUTSIDE) == f"{OUTSIDE4} web"
        containerd.remove(web)


def test_full_range(host: Host, containerd: Containerd) -> None:
    host.write_subnet_env(
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.91.1/29\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    )
    with nothing_left(containerd):
        others = [containerd.run(f"c{number}") for number in range(4)]
        with pytest.raises(CriError, match="no IP addresses available in range set"):
            containerd.run("web", (8080, TCP))
        containerd.remove(others.pop())
        others.append(containerd.run("web", (8080, TCP)))
        assert ask(host, HOST4, 8080, source=OUTSIDE) == f"{OUTSIDE4} web"
        for sandbox in others:
            containerd.remove(sandbox)


def test_pod_is_replaced_and_the_old_one_deleted_late(host: Host, containerd: Containerd) -> None:
    """Both have the port for a while: the newer one keeps it."""
    with nothing_left(containerd):
        old = containerd.run("old", (8080, TCP), (5353, UDP))
        new = containerd.run("new", (8080, TCP), (5353, UDP))
        assert ask(host, HOST4, 8080, source=OUTSIDE) == f"{OUTSIDE4} new"
        containerd.remove(old)
        for port, protocol in ((8080, "tcp"), (5353, "udp")):
            assert ask(host, HOST4, port, protocol, OUTSIDE) == f"{OUTSIDE4} new"
        containerd.remove(new)


# --- several, and restarts --------------------------------------------------------------------------------------------


def test_parallel(host: Host, containerd: Containerd, agent: Agent | None) -> None:
    with nothing_left(containerd):
        names = [f"c{number}" for number in range(AT_ONCE)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            sandboxes = list(
                pool.map(lambda name: containerd.run(name, (8080 + int(name[1:]), TCP), (8080 + int(name[1:]), UDP)), names)
            )
        addresses = {containerd.addresses(sandbox)[0] for sandbox in sandboxes}
        assert len(addresses) == AT_ONCE
        for name in names:
            for protocol in ("tcp", "udp"):
                assert ask(host, HOST4, 8080 + int(name[1:]), protocol, OUTSIDE) == f"{OUTSIDE4} {name}"
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(containerd.remove, sandboxes))


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
def test_restart_of_containerd(host: Host, containerd: Containerd, signal: str) -> None:
    with nothing_left(containerd):
        web = containerd.run("web", (8080, TCP), (5353, UDP))
        (address,) = containerd.addresses(web)
        containerd.stop(signal)
        assert ask(host, HOST4, 8080, source=OUTSIDE) == f"{OUTSIDE4} web"
        containerd.start()
        assert containerd.ready() == ["first", "web"]
        assert containerd.addresses(web) == [address]
        other = containerd.run("other", (8081, TCP))
        assert ask(host, HOST4, 8081, source=OUTSIDE) == f"{OUTSIDE4} other"
        assert ask(host, HOST4, 5353, "udp", OUTSIDE) == f"{OUTSIDE4} web"
        for sandbox in (web, other):
            containerd.remove(sandbox)


# --- ctr --------------------------------------------------------------------------------------------------------------


def test_ctr_run_with_cni(host: Host, containerd: Containerd, agent: Agent | None) -> None:
    """Ctr passes the namespace /proc/PID/ns/net, and none at DEL."""
    with nothing_left(containerd):
        options = ["--rm", "--cni", "--snapshotter", containerd.snapshotter, "--runc-binary", "/run/crun"]
        argv = host.command("ctr", "-n", "k8s.io", "run", *options, image.NAME, "c1")
        with subprocess.Popen(argv, env={"PATH": PATH}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as running:
            try:
                assert running.stdout is not None
                assert running.stdout.readline() == "ready\n"
                (address,) = set(reservations(host, "cbr0")) - {"10.244.91.2"}
                assert ask(host, address).split()[0] == GATEWAY
            finally:
                containerd.ctr("-n", "k8s.io", "task", "kill", "-s", "KILL", "c1")
        assert done_by_us(host, "k8s.io-c1") == {"ADD flannel", "DEL flannel"}  # lo was up, and no port is mapped
