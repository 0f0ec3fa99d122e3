"""The machines that the code blocks of README and docs run on, as a session of the page's reader.

Used by test_code_blocks.py, which compares, and by `integration/docs/refresh`, which writes what has changed. Programs that a
test machine lacks are stand-ins: ``sudo`` executes, ``systemctl`` starts what a unit's ExecStart says with its
EnvironmentFile and waits for READY=1, as systemd does.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

from integration.etcd import servers
from support.code_blocks import ROOT, Block, as_shown
from support.namespaces import Host
from support.waiting import until

ADDRESS = "192.168.123.11"
NODE_PAGES = [
    "README.md",
    "docs/cni-py.md",
    "docs/contributing.md",
    "docs/lab.md",
    "docs/walk.md",
    "docs/flanneld.md",
    "docs/from-go.md",
]
"""Pages with blocks that run on a node."""
LESSONS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "lessons").glob("*.md"))
"""Pages whose blocks run in a lab, which they create."""
SET_PATH = ("README.md", "docs/flanneld.md", "docs/from-go.md")

SETUP = f"""
cp -a /etc /run/etc && mount --bind /run/etc /etc
mount -t tmpfs tmpfs /etc/cni
mkdir -p /etc/systemd/system /run/systemd/system
mount -t tmpfs tmpfs /mnt
mount -t tmpfs tmpfs /opt 2>/dev/null || {{ mkdir -p /opt; mount -t tmpfs tmpfs /opt; }}
mkdir -p /var/lib/flannel && mount -t tmpfs tmpfs /var/lib/flannel
ip link add eth0 type veth peer name switch0; ip link set switch0 up
echo 8 >/proc/sys/net/ipv4/conf/switch0/arp_ignore  # else the node replies here to ARP requests for its own address
ip addr add {ADDRESS}/24 dev eth0; ip link set eth0 up; ip route add default via 192.168.123.1 onlink dev eth0
"""

SYSTEMCTL = """#!/usr/bin/env python3
import os, pathlib, re, signal, socket, subprocess, sys
words = [word for word in sys.argv[1:] if not word.startswith("-")]
verb, units = words[0], words[1:]
for unit in units:
    name = unit.removesuffix(".service")
    pid = pathlib.Path(f"/run/stub-{name}.pid")
    if verb in ("stop", "restart") and pid.exists():
        os.kill(int(pid.read_text()), signal.SIGTERM)
        while os.path.exists(f"/proc/{pid.read_text()}"):
            pass
        pid.unlink()
    if verb in ("start", "restart") or (verb == "enable" and "--now" in sys.argv):
        text = pathlib.Path(f"/etc/systemd/system/{name}.service").read_text()
        environ = {"PATH": os.environ["PATH"], "NOTIFY_SOCKET": "/run/stub-notify"}
        for file in re.findall("^EnvironmentFile=-?(.*)$", text, re.M):
            lines = pathlib.Path(file).read_text().splitlines()
            environ |= dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
        pathlib.Path("/run/stub-notify").unlink(missing_ok=True)
        ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ready.bind("/run/stub-notify")
        ready.settimeout(60)
        log = open(f"/run/stub-{name}.log", "ab")
        argv = re.search("^ExecStart=(.*)$", text, re.M)[1].split()
        child = subprocess.Popen(argv, env=environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        pid.write_text(str(child.pid))
        while b"READY=1" not in ready.recv(4096):
            pass
    if verb == "status":
        print(pathlib.Path(f"/run/stub-{name}.log").read_text()[-300:])
        sys.exit(0 if pid.exists() else 3)
"""
SUDO = '#!/bin/sh\n[ "$1" = -E ] && shift\nexec "$@"\n'

PREVIOUS = """\
FLANNEL_NETWORK=10.244.0.0/16
FLANNEL_SUBNET=10.244.91.1/24
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
"""
"""subnet.env of an earlier run: flanneld leases this subnet again instead of one at random."""

ENTER = re.compile(r"cni-py lab exec \w+")
"""A line that opens a shell in a lab: what comes after it is typed there, until `exit`."""
DAEMON = "flanneld -"
"""Beginning of a line that runs until it is stopped: the session starts it, waits until it is ready, and stops it."""


class Machine:
    """The guide's node, in namespaces of its own."""

    directory = "/mnt/work"
    """The reader's current directory, in which the checkout's files are."""

    def __init__(self, host: Host, prefix: Path, page: str) -> None:
        self.host, self.page, self.place = host, page, ""
        self.prepare(prefix)

    def prepare(self, prefix: Path) -> None:
        host, page = self.host, self.page
        host.run(SETUP)
        host.run(f"cp -a {prefix}/. /opt/")
        self.write("/run/stubs/systemctl", SYSTEMCTL, 0o755)
        self.write("/run/stubs/sudo", SUDO, 0o755)
        host.run("mkdir -p /run/tls /mnt/work")
        host.do(servers.make_certificates, Path("/run/tls"), 2, ADDRESS)
        host.do(_start_etcd)
        host.run(
            "cp /run/tls/ca.pem /mnt/work/ca.crt; cp /run/tls/ca.key /mnt/work/ca.key; cp -a "
            + str(ROOT / "conf")
            + " /mnt/work/"
        )
        host.run("ln -sfn /opt/cni-py/conf/flanneld.service /etc/systemd/system/flanneld.service")
        names = ("integration", "build", "cni_py", "bin", "tests", "conftest.py", "pyproject.toml")
        host.run("\n".join(f"ln -sfn {ROOT / name} /mnt/work/{name}" for name in names))
        if page == "README.md":
            self.with_client_certificate()
        if page == "docs/from-go.md":
            self.with_the_guides_files()
        if page in ("docs/cni-py.md", "docs/contributing.md"):
            self.with_client_certificate()
            self.write("/run/flannel/subnet.env", PREVIOUS)  # the pages reserve and release other subnets
            host.run(
                "cd /mnt/work; install -D -m 0600 conf/flanneld.env /etc/kube-flannel/flanneld.env;"
                "(set -a; . /etc/kube-flannel/flanneld.env; /opt/bin/cni-py config set conf/net-conf.json);"
                "PATH=/run/stubs:$PATH; systemctl enable --now flanneld"
            )
        host.run("install -D -m 0644 /mnt/work/conf/10-flannel.conflist /etc/cni/net.d/10-flannel.conflist")

    def with_client_certificate(self) -> None:
        self.host.run(
            "mkdir -p /etc/kube-flannel; cd /run/tls; cp ca.pem /etc/kube-flannel/etcd-ca.crt;"
            "cp client.pem /etc/kube-flannel/flanneld.crt; cp client.key /etc/kube-flannel/flanneld.key"
        )

    def with_the_guides_files(self) -> None:
        """The guide's unit and options, and a flanneld that runs by them."""
        self.host.run(
            "mkdir -p /etc/kube-flannel; cd /mnt/work; cp /run/tls/client.pem flanneld.crt; cp /run/tls/client.key flanneld.key"
        )
        options = "-etcd-cafile=/run/tls/ca.pem -etcd-certfile=/run/tls/client.pem -etcd-keyfile=/run/tls/client.key"
        self.write(
            "/etc/kube-flannel/flannel.conf",
            f'FLANNEL_OPTIONS="{options}"\nFLANNEL_ETCD_ENDPOINTS="https://{ADDRESS}:2379"\n',
        )
        self.host.run("rm /etc/systemd/system/flanneld.service")
        started = f"[Service]\nExecStart=/opt/bin/flanneld -etcd-endpoints=https://{ADDRESS}:2379 {options}\n"
        self.write("/etc/systemd/system/flanneld.service", started)
        self.host.run(
            f"cd /mnt/work; /opt/bin/cni-py config set conf/net-conf.json -- -etcd-endpoints=https://{ADDRESS}:2379 {options};"
            "PATH=/run/stubs:$PATH; systemctl start flanneld"
        )

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        self.host.run(f"mkdir -p {os.path.dirname(path)}; cat >{path}; chmod {mode:o} {path}", stdin=text)

    def run(self, block: Block) -> str:
        """Run one block in the session's state. Returns: what it printed, on both streams."""
        if block.marker == "fresh node":
            self.host.run("PATH=/run/stubs:$PATH; systemctl stop flanneld; rm -rf /run/flannel; ip link del flannel.1 || true")
        if block.lang == "python":
            path = f"PYTHONPATH={ROOT} {ROOT}/build/venv/bin/python"
            return self._script(block, f"{path} - <<'CODE_BLOCK'\n{block.text}CODE_BLOCK\n")
        head, last = _without_last_line(block.text)
        if last == "exit" or ENTER.fullmatch(last):
            printed = self._script(block, head) if head else ""
            self.place = "" if last == "exit" else last.split()[3]  # where the next blocks are typed
            return printed
        printed = self._script(block, _without_daemons(block.text))
        for daemon in _daemons(block.text):
            self._daemon(block, daemon)
        return printed

    def _script(self, block: Block, text: str) -> str:
        state = "/run/session"
        fails = block.marker == "fails"
        script = f"exec 2>&1; cd {self.directory}; [ ! -e {state} ] || . {state}\n{'' if fails else 'set -e'}\n{text}\n"
        script += f"status=$?; set +e; export -p >{state}; exit $status\n"
        # README, flanneld.md and the lessons set PATH themselves; the others say in their text where the command is
        path = f"/run/stubs:{os.environ['PATH']}" + ("" if self.page in (*SET_PATH, *LESSONS) else ":/opt/bin")
        argv = ["bash", "-c", script]
        if self.place:
            argv = [f"{self.directory}/bin/cni-py", "lab", "exec", self.place, "--", *argv]
        done = self.host.execute(argv, env={"PATH": path, "HOME": "/root", "LC_ALL": "C.UTF-8"})
        assert (done.returncode != 0) == fails, f"{block}\n{block.text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return as_shown(done.stdout)

    def _daemon(self, block: Block, line: str) -> None:
        self.host.run("rm -f /run/flannel/subnet.env")
        self._script(block, f"({line}) >/run/daemon.log 2>&1 &\n")
        log = self.host.path("/run/daemon.log")
        until(
            self.host.path("/run/flannel/subnet.env").exists,
            lambda: f"{block}: {line}: {log.read_text()[-2000:]}",
        )
        self.host.run("kill $(pgrep -of bin/flannel[d]); while pgrep -f bin/flannel[d] >/dev/null; do sleep 0.02; done")


def _start_etcd() -> None:
    tls = "/run/tls"
    command = [
        "etcd", "--data-dir", "/run/etcd-data", "--listen-client-urls", f"https://{ADDRESS}:2379",
        "--advertise-client-urls", f"https://{ADDRESS}:2379", "--listen-peer-urls", "http://127.0.0.1:2380",
        "--cert-file", f"{tls}/server.pem", "--key-file", f"{tls}/server.key",
        "--client-cert-auth", "--trusted-ca-file", f"{tls}/ca.pem",
    ]  # fmt: skip
    with open("/run/etcd.log", "ab") as log:
        subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=servers.ENVIRONMENT)
    until(_accepts_connections, "etcd accepts connections")


def _accepts_connections() -> bool:
    try:
        socket.create_connection((ADDRESS, 2379), 1).close()
    except OSError:
        return False
    return True


def _without_last_line(text: str) -> tuple[str, str]:
    """Return the lines but the last, and the last without its comment."""
    head, _, last = text.rstrip("\n").rpartition("\n")
    return f"{head}\n" if head else "", last.partition("  #")[0].rstrip()


def _joined(text: str) -> list[str]:
    return text.replace("\\\n", " ").splitlines()


def _is_daemon(line: str) -> bool:
    return line.startswith(DAEMON) and not line.startswith(
        ("flanneld --check-config", "flanneld --cleanup", "flanneld --version")
    )


def _daemons(text: str) -> list[str]:
    return [line for line in _joined(text) if _is_daemon(line)]


def _without_daemons(text: str) -> str:
    daemons = _daemons(text)
    return "\n".join(line for line in _joined(text) if line not in daemons) + "\n" if daemons else text


class LessonMachine(Machine):
    """A machine with the checkout and nothing else: a lesson creates its lab."""

    directory = "/root/cni-py"

    def prepare(self, prefix: Path) -> None:
        # by way of another directory, since the checkout may be below /root
        self.host.run(
            f"mount -t tmpfs tmpfs /mnt; mkdir /mnt/checkout; mount --bind {ROOT} /mnt/checkout; mount -t tmpfs tmpfs /root;"
            f"mkdir {self.directory}; mount --bind /mnt/checkout {self.directory}"
        )


def machine_of(page: str, host: Host, prefix: Path) -> Machine:
    return (LessonMachine if page in LESSONS else Machine)(host, prefix, page)


def runnable(block: Block, machine: Machine) -> bool:
    """Return whether a block is typed, on this machine."""
    kind, _, needed = block.marker.partition(": ")
    if kind == "needs link":
        # the kernel says "Unknown device type" of a kind that it lacks, before it reads the rest
        words = machine.host.run(
            f"ip link add link lo name probe type {needed} 2>&1 || true; ip link del probe 2>/dev/null || true"
        )
        return "Unknown device type" not in words
    is_there = kind != "needs" or os.path.exists(needed)
    return block.is_run and block.lang in ("sh", "python") and is_there
