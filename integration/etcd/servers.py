"""Real etcd servers on 127.0.0.1, inside of a Host (tests/support/namespaces.py): their data is in its /run; it ends them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from support import pki

NAMES = "abc"
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
ENVIRONMENT = {**os.environ, "GOMAXPROCS": "1", "ETCDCTL_API": "3"}
if os.uname().machine == "aarch64":
    ENVIRONMENT["ETCD_UNSUPPORTED_ARCH"] = "arm64"  # etcd 3.4 wants to be asked


class Server:
    """One member. ``others``: how many the cluster has; ``tls``: the directory with its certificates."""

    def __init__(self, number: int = 0, members: int = 1, tls: str = "", options: Sequence[str] = ()) -> None:
        self.port = 2379 + 10 * number
        self.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        peers = [f"http://127.0.0.1:{2380 + 10 * member}" for member in range(members)]
        self._command = [
            "etcd", "--name", NAMES[number], "--data-dir", f"/run/etcd-{NAMES[number]}",
            "--listen-client-urls", self.endpoint, "--advertise-client-urls", self.endpoint,
            "--listen-peer-urls", peers[number], "--initial-advertise-peer-urls", peers[number],
            "--initial-cluster", ",".join(f"{NAMES[member]}={peer}" for member, peer in enumerate(peers)), *options,
        ]  # fmt: skip
        if tls:
            self._command += ["--cert-file", f"{tls}/server.pem", "--key-file", f"{tls}/server.key"]
            self._command += ["--client-cert-auth", "--trusted-ca-file", f"{tls}/ca.pem"]
        self.start()

    def start(self) -> None:
        log = os.open("/run/etcd.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=ENVIRONMENT)
        os.close(log)

    def wait(self) -> Server:
        """Wait until its port is open, which it is when the cluster has a leader."""
        ends = monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 0.5).close()
                return self
            except OSError:
                words = Path("/run/etcd.log").read_text()[-1000:]
                assert monotonic() < ends, f"etcd does not start: {words}"
                assert self._process.poll() is None, f"etcd ended: {words}"
                sleep(0.02)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def halt(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def ctl(self, *words: str) -> str:
        """Output of etcdctl."""
        command = ["etcdctl", f"--endpoints={self.endpoint}", "--command-timeout=5s", *words]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=ENVIRONMENT, timeout=20)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ctl("endpoint", "status", "-w", "json"))[0]["Status"]
        return found

    def is_leader(self) -> bool:
        status = self.status()
        return bool(status["leader"] == status["header"]["member_id"])


def start(members: int = 1, tls: str = "", options: Sequence[str] = ()) -> list[Server]:
    """A new cluster that replies."""
    servers = [Server(number, members, tls, options) for number in range(members)]
    for server in servers:
        server.wait()
    return servers


def make_certificates(directory: Path, days: int = 2, address: str = "127.0.0.1") -> str:
    """``ca``, ``server``, ``client``, each .pem and .key, and ``other``: a CA that neither side trusts. Returns the directory.

    Args:
        days: how long server and client are valid; 0: they no longer are.
        address: where the server is.
    """
    for ca in ("ca", "other"):
        pki.openssl(
            directory, "req", "-x509", *KEY, "-keyout", f"{ca}.key", "-out", f"{ca}.pem", "-subj", f"/CN={ca}", "-days", "2"
        )
    (directory / "extensions").write_text(f"subjectAltName=IP:{address}\nextendedKeyUsage=serverAuth,clientAuth\n")
    for name in ("server", "client"):
        pki.openssl(directory, "req", *KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        sign(directory, name, days)
    return str(directory)


def sign(directory: Path, name: str, days: int) -> None:
    """Create a certificate, by the CA that exists."""
    pki.openssl(
        directory, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
        "-out", f"{name}.pem", "-days", str(days), "-extfile", "extensions",
    )  # fmt: skip


def sign_until(directory: Path, name: str, ends: datetime) -> None:
    """Create a certificate that ends at a second, by the CA that exists; put there in one step."""
    words = ("-in", f"{name}.csr", "-cert", "ca.pem", "-keyfile", "ca.key", "-extfile", "extensions")
    pki.sign(directory, datetime(2020, 1, 1), ends, f"{name}.pem", *words)
