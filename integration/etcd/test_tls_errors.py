"""An error of TLS with etcd says which option or file is wrong: a real etcd, and every way to miss one of them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from integration.etcd import servers
from support.namespaces import Host

pytestmark = pytest.mark.netns

TLS = "/run/tls"
CASES = {
    # case: flanneld's options, what the error must say
    "no client certificate": (
        "https", f"-etcd-cafile={TLS}/ca.pem", ["requires a client certificate", "-etcd-certfile and -etcd-keyfile"],
    ),
    "certificate of another CA": (
        "https", f"-etcd-cafile={TLS}/ca.pem -etcd-certfile={TLS}/other.pem -etcd-keyfile={TLS}/other.key",
        [f'does not accept the client certificate "{TLS}/other.pem"', "-etcd-certfile"],
    ),
    "another CA": (
        "https", f"-etcd-cafile={TLS}/other.pem -etcd-certfile={TLS}/client.pem -etcd-keyfile={TLS}/client.key",
        [f'was not signed by "{TLS}/other.pem"', "-etcd-cafile"],
    ),
    "no CA": ("https", f"-etcd-certfile={TLS}/client.pem -etcd-keyfile={TLS}/client.key", ["set -etcd-cafile"]),
    "http to TLS": ("http", "", ["speaks TLS: write https://127.0.0.1:2379"]),
    "key missing": ("https", f"-etcd-cafile={TLS}/ca.pem -etcd-certfile={TLS}/client.pem -etcd-keyfile=/no.key", ["/no.key"]),
}  # fmt: skip


@pytest.fixture
def node(host: Host) -> Host:
    host.run(f"mkdir -p {TLS}")
    host.do(servers.make_certificates, Path(TLS))
    host.run(
        f"cd {TLS}; openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout other.key -out other.pem "
        "-days 9 -subj /CN=other 2>&1"
    )
    return host


def _start(tls: str) -> None:
    servers.Server(tls=tls).wait()


@pytest.mark.parametrize("case", CASES)
def test_error_names_the_option_or_file(node: Host, cni_py: Path, case: str) -> None:
    scheme, options, said = CASES[case]
    node.do(_start, TLS)
    argv = [str(cni_py), "config", "get", "--", f"-etcd-endpoints={scheme}://127.0.0.1:2379", *shlex.split(options)]
    done = node.execute(argv)
    assert done.returncode == 1
    for text in said:
        assert text in done.stderr, done.stderr


def test_tls_to_plain_http(node: Host, cni_py: Path) -> None:
    node.do(_start, "")
    done = node.execute(
        [str(cni_py), "config", "get", "--", "-etcd-endpoints=https://127.0.0.1:2379", f"-etcd-cafile={TLS}/ca.pem"]
    )
    assert "does not speak TLS: write http://127.0.0.1:2379" in done.stderr


def test_hint_about_a_missing_configuration_creates_one(node: Host, cni_py: Path) -> None:
    """Type it with the TLS options of the command that failed: without them etcdctl cannot connect either."""
    node.do(_start, TLS)
    options = f"-etcd-cafile={TLS}/ca.pem -etcd-certfile={TLS}/client.pem -etcd-keyfile={TLS}/client.key"
    argv = [str(cni_py), "config", "get", "--", "-etcd-endpoints=https://127.0.0.1:2379", *options.split()]
    done = node.execute(argv)
    hint = done.stderr.partition("hint: create one: ")[2].splitlines()[0]
    node.run(hint)
    assert node.execute(argv).returncode == 0


def test_hint_of_an_etcd_that_is_down_is_a_command_for_it(node: Host, cni_py: Path) -> None:
    done = node.execute([str(cni_py), "config", "get", "--", "-etcd-endpoints=http://127.0.0.1:2379"])
    hint = done.stderr.partition("hint: see its state: ")[2].splitlines()[0]
    node.do(_start, "")
    assert "is healthy" in node.run(f"{hint} 2>&1")


TLS_OPTIONS = f"-etcd-cafile={TLS}/ca.pem -etcd-certfile={TLS}/client.pem -etcd-keyfile={TLS}/client.key"
OPTIONS = f"-etcd-endpoints=https://127.0.0.1:2379 {TLS_OPTIONS}"


def test_hint_about_a_subnet_that_is_not_reserved(node: Host, cni_py: Path) -> None:
    node.do(_start, TLS)
    done = node.execute([str(cni_py), "config", "release", "10.244.7.0/24", "--", *OPTIONS.split()])
    node.run(done.stderr.partition("hint: see: ")[2].splitlines()[0])


def test_hint_about_a_reservation_that_does_not_fit(node: Host, cni_py: Path) -> None:
    """The network was changed under a reservation: the second command of the hint gives it up."""
    node.do(_start, TLS)
    node.run("ip link add eth0 type veth peer name eth1; ip link set eth1 up; ip link set eth0 up")
    node.run("ip addr add 192.168.1.5/24 dev eth0")

    def config(*argv: str, stdin: str | None = None) -> None:
        done = node.execute([str(cni_py), "config", *argv, "--", *OPTIONS.split()], stdin=stdin)
        assert done.returncode == 0, done.stderr

    config("set", "-", stdin='{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}')
    config("reserve", "10.244.7.0/24", "192.168.1.5")
    config("set", "--force", "-", stdin='{"Network": "10.99.0.0/16", "Backend": {"Type": "vxlan"}}')
    flanneld = f"timeout 20 {cni_py.parent}/flanneld {OPTIONS} -iface=eth0 2>&1"
    command = node.run(f"{flanneld} | grep -m1 'to give up the reservation'").partition("the reservation: ")[2].strip()
    node.run(command)
    assert "10.244.7.0" not in node.run(f"{command.partition(' del ')[0]} get --prefix /coreos.com/network/subnets")
