"""containerd by its CRI interface, as kubelet uses it, and by `ctr run --cni`: the deployment guide's chain for real sandboxes.

A sandbox's only process is the server (see answer.py), so that no container has to be created in it. containerd executes
plugins in /opt/cni/bin, where ours are, and `failing`, a plugin that does what /run/failing says.
"""

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
from integration.clients.containers import (
    HOST4,
    HOST6,
    OUTSIDE,
    OUTSIDE4,
    OUTSIDE6,
    ask,
    done_by_us,
    prepare,
    refused,
    reservations,
    server_outside,
    state,
)
from integration.clients.cri import Cri, CriError
from support.agents import Agent
from support.namespaces import PATH, Host, Sandbox
from support.pods import DUAL_ENV
from support.waiting import until

GUIDE = Path(__file__).resolve().parents[2] / "conf" / "10-flannel.conflist"
GATEWAY = "10.244.91.1"
TCP, UDP = 0, 1
AT_ONCE = 8
SOCKET = "/run/containerd/containerd.sock"

CONFIG = """
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "%(socket)s"
[plugins."io.containerd.grpc.v1.cri"]
  disable_cgroup = true
  disable_apparmor = true
  restrict_oom_score_adj = true
  sandbox_image = "%(image)s"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/opt/cni/bin"
  conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "%(snapshotter)s"
  default_runtime_name = "crun"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun.options]
  BinaryName = "/run/crun"
"""
CRUN = r"""#!/bin/sh
# Ubuntu 24.04's containerd writes a version of the OCI specification that its crun refuses
for word; do
    [ ! -f "$word/config.json" ] || sed -i 's/"ociVersion":"1\.[2-9][^"]*"/"ociVersion":"1.0.2"/' "$word/config.json"
done
exec crun --cgroup-manager=disabled "$@"
"""
FAILING = f"""#!{image.PYTHON} -I
import json, os, sys
verb = os.environ["CNI_COMMAND"]
conf = json.load(sys.stdin)
if os.path.exists("/run/failing") and verb in open("/run/failing").read():
    print(json.dumps({{"cniVersion": conf["cniVersion"], "code": 110, "msg": "no luck"}}))
    sys.exit(1)
if verb == "ADD":
    print(json.dumps(conf["prevResult"]))
if verb == "VERSION":
    print(json.dumps({{"cniVersion": "1.0.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0"]}}))
"""


class Containerd:
    """containerd in a host: `start()`, `stop()`, and sandboxes by name."""

    def __init__(self, program: str, host: Host, bin_dir: Path, archive: Path) -> None:
        self.program, self.host = program, host
        prepare(host, "/var/lib/containerd", "/opt/cni/bin")
        host.run(f"ln -s {bin_dir}/* /opt/cni/bin/")
        for path, text in (("/run/crun", CRUN), ("/opt/cni/bin/failing", FAILING)):
            host.write(path, text)
            host.run(f"chmod +x {path}")
        host.write_subnet_env()
        self.cri = Cri(f"/proc/{host.pid}/root{SOCKET}")
        self.snapshotter = "overlayfs"
        self.log = host.path("/run/containerd.log")
        self.start()
        self.import_image(archive)

    def import_image(self, archive: Path) -> None:
        done = self.ctr("-n", "k8s.io", "images", "import", "--snapshotter", self.snapshotter, str(archive))
        if done.returncode and self.snapshotter == "overlayfs":  # this kernel or file system has none
            self.stop()
            self.snapshotter = "native"
            self.start()
            self.import_image(archive)
        else:
            assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start it and wait until it replies."""
        config = CONFIG % {"socket": SOCKET, "image": image.NAME, "snapshotter": self.snapshotter}
        self.host.write("/run/containerd.toml", config)
        script = f"echo $$ >/run/containerd.pid; exec {self.program} --config /run/containerd.toml"
        with self.log.open("a") as log:
            argv = self.host.command("sh", "-c", script)
            self.process = subprocess.Popen(argv, env={"PATH": PATH}, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(self._replies, f"containerd replies, see {self.log}")

    def _replies(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            self.cri.call("ListPodSandbox")
        except (CriError, OSError):
            return False
        return True

    def stop(self, signal: str = "TERM") -> None:
        self.host.run(f"kill -{signal} $(cat /run/containerd.pid)")
        self.process.wait(20)

    def ctr(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return self.host.execute(["ctr", *argv], env={"PATH": PATH, "TMPDIR": "/run"})

    def configure(self, *plugins: dict[str, Any] | str, version: str = "1.0.0") -> None:
        """The network, in use at once: the guide's plugins, then these."""
        conf = json.loads(GUIDE.read_text())
        conf["cniVersion"], conf["cniVersions"] = version, [version]
        conf["plugins"] += [plugin if isinstance(plugin, dict) else {"type": plugin} for plugin in plugins]
        self.write_network(json.dumps(conf))

    def write_network(self, text: str) -> None:
        """containerd watches the directory; the file's new name shows in its answer when it has read it."""
        self.host.write("/etc/cni/net.d/10-flannel.conflist", text)
        until(lambda: json.loads(text)["plugins"] == self._loaded(), "containerd has read the network's configuration")

    def _loaded(self) -> list[dict[str, Any]]:
        (info,) = [
            entry["value"] for entry in self.cri.call("Status", verbose=True)["info"] if entry["key"] == "cniconfig"
        ] or [""]
        networks = json.loads(info)["Networks"] if info else []
        return json.loads(networks[-1]["Config"]["Source"])["plugins"] if networks else []

    # --- sandboxes ----------------------------------------------------------------------------------------------------

    def run(self, name: str, *ports: tuple[Any, ...]) -> str:
        """Start a sandbox; its id. `ports`: (host port, protocol, host address), each leads to port 80."""
        mappings = [dict(zip(("host_port", "protocol", "host_ip"), port, strict=False), container_port=80) for port in ports]
        return str(self.cri.call("RunPodSandbox", config=self._config(name, mappings))["pod_sandbox_id"])

    def _config(self, name: str, mappings: list[dict[str, Any]]) -> dict[str, Any]:
        metadata = {"name": name, "uid": f"uid-of-{name}", "namespace": "default"}
        return {"metadata": metadata, "hostname": name, "port_mappings": mappings, "linux": {}}

    def addresses(self, sandbox: str) -> list[str]:
        network = self.cri.call("PodSandboxStatus", pod_sandbox_id=sandbox)["status"]["network"]
        return [network["ip"], *(entry["ip"] for entry in network["additional_ips"])]

    def netns(self, sandbox: str) -> Sandbox:
        status = self.cri.call("PodSandboxStatus", pod_sandbox_id=sandbox, verbose=True)
        spec = json.loads(status["info"][0]["value"])["runtimeSpec"]
        (path,) = [space["path"] for space in spec["linux"]["namespaces"] if space["type"] == "network"]
        return Sandbox(Path(path).name)

    def stop_sandbox(self, sandbox: str) -> None:
        self.cri.call("StopPodSandbox", pod_sandbox_id=sandbox)

    def remove(self, sandbox: str) -> None:
        """Stop it, then remove it, as kubelet does."""
        self.stop_sandbox(sandbox)
        self.cri.call("RemovePodSandbox", pod_sandbox_id=sandbox)

    def ready(self) -> list[str]:
        """The names of the sandboxes that run."""
        return sorted(item["metadata"]["name"] for item in self.cri.call("ListPodSandbox")["items"] if item["state"] == 0)


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


def test_guides_file_as_it_is(host: Host, containerd: Containerd) -> None:
    containerd.write_network(GUIDE.read_text())
    web = containerd.run("web", (8080, TCP))
    assert ask(host, HOST4, 8080, source=OUTSIDE) == f"{OUTSIDE4} web"
    containerd.remove(web)
    assert (reservations(host, "cbr0"), host.host_ends()) == ([], ["up0"])


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
