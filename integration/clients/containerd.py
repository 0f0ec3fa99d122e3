"""containerd in a host of a test, driven by its CRI interface.

    containerd = Containerd(program, host, bin_dir, archive)
    sandbox = containerd.run("web", (8080, TCP))

A sandbox's only process is the server (see answer.py), so that no container has to be created in it. containerd executes
plugins in /opt/cni/bin, where ours are, and `failing`, a plugin that does what /run/failing says, and writes verb and version
of each call to /run/called.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from integration.clients import image
from integration.clients.containers import prepare
from integration.clients.cri import Cri, CriError
from support.namespaces import PATH, Host, Sandbox
from support.waiting import until

GUIDE = Path(__file__).resolve().parents[2] / "conf" / "10-flannel.conflist"
TCP, UDP = 0, 1
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
import json, os, sys, time
verb = os.environ["CNI_COMMAND"]
conf = json.load(sys.stdin)
with open("/run/called", "a") as file:
    file.write(verb + " " + conf["cniVersion"] + "\\n")
said = open("/run/failing").read().split() if os.path.exists("/run/failing") else []
if "wait" in said and verb in said:
    os.makedirs("/run/waiting", exist_ok=True)
    open(f"/run/waiting/{{os.getpid()}}", "w").close()
    while os.path.exists("/run/failing"):
        time.sleep(0.01)
    os.unlink(f"/run/waiting/{{os.getpid()}}")
elif verb in said:
    print(json.dumps({{"cniVersion": conf["cniVersion"], "code": 110, "msg": "no luck"}}))
    sys.exit(1)
if verb == "ADD":
    print(json.dumps(conf["prevResult"]))
if verb == "VERSION":
    print(json.dumps({{"cniVersion": "1.0.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}}))
"""


class Containerd:
    """containerd in a host: `start()`, `stop()`, and sandboxes by name."""

    def __init__(self, program: str, host: Host, bin_dir: Path, archive: Path) -> None:
        self.program, self.host = program, host
        self.path = f"{os.path.dirname(program)}:{PATH}"  # its own shim and ctr
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
            self.process = subprocess.Popen(argv, env={"PATH": self.path}, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(self._replies, f"containerd replies, see {self.log}")

    def _replies(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            self.cri.call("ListPodSandbox")
        except (CriError, OSError):
            return False
        return True

    @property
    def version(self) -> tuple[int, int]:
        major, minor = re.search(r"v?(\d+)\.(\d+)\.", self.host.execute([self.program, "--version"]).stdout).groups()  # type: ignore[union-attr]
        return int(major), int(minor)

    def stop(self, signal: str = "TERM") -> None:
        self.host.run(f"kill -{signal} $(cat /run/containerd.pid)")
        self.process.wait(20)

    def ctr(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return self.host.execute(["ctr", *argv], env={"PATH": self.path, "TMPDIR": "/run"})

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
