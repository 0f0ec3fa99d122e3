"""containerd 2 with the configuration as it is shipped: it takes the highest version, and calls STATUS when kubelet asks it.

It calls neither GC nor CHECK (2.2.9): what a killed containerd leaves is found by the agent's sweep.
It is in no Debian release that we test on. To build it, with Go 1.25 or newer, into build/containerd2:

    for program in containerd containerd-shim-runc-v2 ctr; do
        CGO_ENABLED=0 GOBIN=$PWD/build/containerd2 go install github.com/containerd/containerd/v2/cmd/$program@v2.2.9
    done
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.clients.containerd import GUIDE, TCP, Containerd
from integration.clients.containers import HOST4, OUTSIDE, OUTSIDE4, ask, refused, reservations
from integration.clients.cri import CriError
from support.agents import Agent
from support.namespaces import Host
from support.waiting import until

BUILT = Path(__file__).resolve().parents[2] / "build" / "containerd2"


@pytest.fixture
def containerd(host: Host, bin_dir: Path, containerd_program: str, answer_image: Path) -> Iterator[Containerd]:
    """containerd_program: it needs crun as the other one does."""
    if not (BUILT / "containerd").exists():
        pytest.skip("no containerd 2 in build/containerd2 (see the head of this file)")
    made = Containerd(str(BUILT / "containerd"), host, bin_dir, answer_image)
    yield made
    host.close()
    made.process.wait(20)


def shipped(containerd: Containerd) -> None:
    """Configure the shipped chain, with the plugin that records calls behind it."""
    conf = json.loads(GUIDE.read_text())
    conf["plugins"].append({"type": "failing"})
    containerd.write_network(json.dumps(conf))


def network_ready(containerd: Containerd) -> tuple[bool, str]:
    conditions = containerd.cri.call("Status")["status"]["conditions"]
    (found,) = [each for each in conditions if each["type"] == "NetworkReady"]
    return bool(found["status"]), found["message"]


def test_status_of_the_network_is_that_of_flannel(host: Host, containerd: Containerd) -> None:
    """Report the node as not ready until flanneld is, whatever file is in /etc/cni/net.d: kubelet asks containerd."""
    shipped(containerd)
    until(lambda: network_ready(containerd)[0], lambda: str(network_ready(containerd)))
    host.run("mv /run/flannel/subnet.env /run/flannel/not-yet")
    until(lambda: not network_ready(containerd)[0], "containerd sees that flannel is not ready")
    assert "subnet.env" in network_ready(containerd)[1]
    host.run("mv /run/flannel/not-yet /run/flannel/subnet.env")
    until(lambda: network_ready(containerd)[0], lambda: str(network_ready(containerd)))


def test_calls_are_in_the_highest_version(host: Host, containerd: Containerd, agent: Agent | None) -> None:
    shipped(containerd)
    web = containerd.run("web", (8080, TCP))
    assert ask(host, HOST4, 8080, source=OUTSIDE) == f"{OUTSIDE4} web"
    containerd.remove(web)
    assert refused(host, HOST4, 8080, source=OUTSIDE)
    assert reservations(host, "cbr0") == []
    called = set(host.path("/run/called").read_text().splitlines())
    assert called >= {"ADD 1.1.0", "DEL 1.1.0", "STATUS 1.1.0"}
    assert all(line.endswith(" 1.1.0") for line in called)


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
def test_restart_of_containerd_loses_no_sandbox(host: Host, containerd: Containerd, signal: str) -> None:
    shipped(containerd)
    web = containerd.run("web", (8080, TCP))
    (address,) = containerd.addresses(web)
    containerd.stop(signal)
    containerd.start()
    assert containerd.ready() == ["web"]
    assert containerd.addresses(web) == [address]
    until(lambda: network_ready(containerd)[0], lambda: str(network_ready(containerd)))
    assert ask(host, HOST4, 8080, source=OUTSIDE) == f"{OUTSIDE4} web"
    containerd.remove(web)


def test_error_of_a_plugin_is_the_runtimes(host: Host, containerd: Containerd) -> None:
    shipped(containerd)
    host.write("/run/failing", "ADD")
    with pytest.raises(CriError, match="no luck"):
        containerd.run("web", (8080, TCP))
    host.run("rm /run/failing")
    assert reservations(host, "cbr0") == []
