"""dhcp with its daemon against two servers, dnsmasq and busybox udhcpd: leases, renewal, rebinding, release, gone sandboxes."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.chained import Chain, Pods, meta_conf
from support.mains import parameters
from support.namespaces import PATH, Host, Sandbox
from support.pods import add, check, delete, gc, words
from support.waiting import until

BRIDGE = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br9", "ipam": {"type": "dhcp"}}
ALONE = {"cniVersion": "1.1.0", "name": "net", "type": "none", "ipam": {"type": "dhcp"}}
LOG, DAEMON_LOG = "/run/server.log", "/run/dhcp.log"
DNSMASQ = (
    "dnsmasq --keep-in-foreground --conf-file=/dev/null --port=0 --interface=br9 --bind-interfaces --no-ping --dhcp-sequential-ip "
    "--dhcp-authoritative --dhcp-range=10.50.0.10,10.50.0.19,255.255.255.0,{lease} --dhcp-leasefile=/run/leases --pid-file= "
    f"--user=root --log-dhcp --log-facility={LOG} {{more}}"
)
UDHCPD = (
    "start 10.50.0.10\nend 10.50.0.19\ninterface br9\nlease_file /run/udhcpd.leases\npidfile /run/udhcpd.pid\nmin_lease 2\n"
    "option subnet 255.255.255.0\noption router 10.50.0.1\noption lease {lease}\n"
)
SECONDS = 30  # in which a lease of some seconds is renewed, however busy the machine is

needs_dnsmasq = pytest.mark.skipif(not shutil.which("dnsmasq"), reason="no dnsmasq (package dnsmasq-base)")
needs_udhcpd = pytest.mark.skipif(not shutil.which("busybox"), reason="no busybox (package busybox-static)")


@pytest.fixture
def host(host: Host) -> Host:
    host.run("ip link add br9 type bridge; ip addr add 10.50.0.1/24 dev br9; ip link set br9 up")
    return host


@contextmanager
def program(host: Host, *argv: str, env: dict[str, str] | None = None) -> Iterator[None]:
    """Run a program of the host until the end of the block, and wait then until it has ended."""
    until_end = '"$@" & child=$!; read line; kill $child; wait $child'
    process = subprocess.Popen(
        host.command("sh", "-c", until_end, "sh", *argv), stdin=subprocess.PIPE, env={"PATH": PATH} | (env or {})
    )
    try:
        yield
    finally:
        process.communicate(timeout=30)


@contextmanager
def daemon(host: Host, *options: str, path: str = "/run/cni/dhcp.sock") -> Iterator[None]:
    with program(host, "sh", "-c", f'exec "$0" "$@" 2>>{DAEMON_LOG}', f"{host.bin_dir}/dhcp", "daemon", *options):
        until(lambda: host.path(path).is_socket(), "the daemon listens")
        yield


@contextmanager
def dnsmasq(host: Host, *more: str, lease: str = "1h") -> Iterator[None]:
    with program(host, "sh", "-c", "exec " + DNSMASQ.format(lease=lease, more=" ".join(more))):
        yield


@contextmanager
def udhcpd(host: Host, lease: int) -> Iterator[None]:
    host.write("/run/udhcpd.conf", UDHCPD.format(lease=lease))
    host.run(": >>/run/udhcpd.leases")
    with program(host, "sh", "-c", f"exec busybox udhcpd -f /run/udhcpd.conf >>{LOG} 2>&1"):
        yield


def said(host: Host, text: str, path: str = LOG) -> int:
    """Count the lines of a log that have a text."""
    file = host.path(path)
    return file.read_text().count(text) if file.exists() else 0


def plug(host: Host, name: str) -> Sandbox:
    """A sandbox with an interface on the bridge, which the test made itself."""
    pod = host.netns(name)
    host.run(f"ip link add h{name} type veth peer name eth0 netns {name}; ip link set h{name} master br9 up")
    return pod


def of(conf: dict[str, Any]) -> dict[str, Any]:
    return conf | {"type": "dhcp"}


# --- dnsmasq ----------------------------------------------------------------------------------------------------------


@needs_dnsmasq
def test_pod_has_the_address_of_its_lease_until_del(host: Host) -> None:
    with daemon(host), dnsmasq(host):
        first, second = host.netns("c1"), host.netns("c2")
        result = add(host, BRIDGE, first)
        assert result["ips"] == [{"address": "10.50.0.10/24", "gateway": "10.50.0.1", "interface": 2}]
        assert "0% packet loss" in host.run("ping -c1 -W5 10.50.0.1", first)
        assert add(host, BRIDGE, second)["ips"][0]["address"] == "10.50.0.11/24"
        assert check(host, BRIDGE, first, result).rc == 0
        delete(host, BRIDGE, first)
        until(lambda: said(host, "DHCPRELEASE(br9) 10.50.0.10") == 1, "the address is given back")
        assert "10.50.0.10" not in host.path("/run/leases").read_text()
        reply = check(host, of(ALONE), first, result)
        assert (reply.code, 'no lease of "c1/net/eth0"' in words(reply)) == (103, True), "Go's CHECK takes a lease"
        delete(host, BRIDGE, first)
        gc(host, of(ALONE), ("c2", "eth0"))
        gc(host, of(ALONE) | {"name": "other"})
        assert check(host, of(ALONE), second, {"cniVersion": "1.1.0", "ips": [{"address": "10.50.0.11/24"}]}).rc == 0
        gc(host, of(ALONE))
        until(lambda: said(host, "DHCPRELEASE(br9) 10.50.0.11") == 1, "GC gives the other one back")


@needs_dnsmasq
def test_release_reaches_a_server_whose_mac_address_has_changed(host: Host) -> None:
    """Such as a bridge, which takes the lowest one of its ports."""
    with daemon(host), dnsmasq(host):
        pod = host.netns("c1")
        add(host, BRIDGE, pod)
        host.run("ip link set br9 address 02:00:00:00:00:99")
        delete(host, BRIDGE, pod)
        until(lambda: said(host, "DHCPRELEASE(br9) 10.50.0.10") == 1, "the address is given back")


@needs_dnsmasq
def test_release_that_has_to_wait_is_sent_before_the_interface_is_deleted(host: Host) -> None:
    """A busy machine's kernel delivers it later, from a queue that is emptied with the interface; here a rate delays it."""
    with daemon(host), dnsmasq(host):
        pod = host.netns("c1")
        add(host, BRIDGE, pod)
        host.run("tc qdisc add dev eth0 root tbf rate 16kbit burst 1600 limit 100000; ping -qc1 -W5 -s1450 10.50.0.1", pod)
        delete(host, BRIDGE, pod)
        until(lambda: said(host, "DHCPRELEASE(br9) 10.50.0.10") == 1, "the address is given back", SECONDS)


@needs_dnsmasq
@pytest.mark.parametrize("keys", [{}, {"type": "macvlan", "master": "up0"}], ids=["bridge", "macvlan"])
def test_gc_of_the_main_plugin_gives_leases_back(host: Host, keys: dict[str, Any]) -> None:
    """The release is sent from the interface, which GC therefore deletes afterwards."""
    with daemon(host), dnsmasq(host):
        host.run("ip link add up0 type veth peer name up1; ip link set up1 master br9 up; ip link set up0 up")
        pod = host.netns("c1")
        add(host, BRIDGE | keys, pod)
        gc(host, BRIDGE | keys)
        until(lambda: said(host, "DHCPRELEASE") == 1, "the address is given back")
        assert host.run("ip -br link show type veth; ip -br link show type macvlan", pod) == ""


@needs_dnsmasq
@pytest.mark.parametrize("plugin", parameters("macvlan", "vlan"))
def test_lease_of_an_interface_on_the_wire(host: Host, plugin: str) -> None:
    """The packets take the way of the interface below; in a VLAN the server is there, too."""
    with daemon(host), dnsmasq(host):
        host.run("ip link add up0 type veth peer name up1; ip link set up1 up; ip link set up0 up")
        if plugin == "vlan":
            host.run("ip link add link up1 up1.7 type vlan id 7; ip link set up1.7 master br9 up")
        else:
            host.run("ip link set up1 master br9")
        conf = BRIDGE | {"type": plugin, "master": "up0"} | ({"vlanId": 7} if plugin == "vlan" else {})
        pod = host.netns("c1")
        result = add(host, conf, pod)
        assert "0% packet loss" in host.run("ping -c1 -W5 10.50.0.1", pod)
        assert check(host, conf, pod, result).rc == 0
        delete(host, conf, pod)
        until(lambda: said(host, "DHCPRELEASE") == 1, "the address is given back")


@needs_dnsmasq
def test_daemon_works_within_the_limits_of_its_unit(host: Host) -> None:
    """Capabilities and no new privileges; and no family of sockets but those that the unit lists."""
    unit = (Path(__file__).resolve().parents[2] / "conf" / "cni-dhcp.service").read_text()
    kept = re.findall(r"CAP_(\w+)", unit.partition("CapabilityBoundingSet=")[2].splitlines()[0])
    options = ["--no-new-privs", f"--bounding-set=-all,{','.join(f'+{name.lower()}' for name in kept)}"]
    trace = ["strace", "-D", "-f", "-qq", "-e", "trace=socket", "-o", "/run/trace"] if shutil.which("strace") else []
    with (
        dnsmasq(host),
        program(
            host, "sh", "-c", f'exec "$@" 2>>{DAEMON_LOG}', "sh", *trace, "setpriv", *options, f"{host.bin_dir}/dhcp", "daemon"
        ),
    ):
        until(host.path("/run/cni/dhcp.sock").is_socket, "the daemon listens")
        pod = host.netns("c1")
        result = add(host, BRIDGE, pod)
        assert check(host, BRIDGE, pod, result).rc == 0
        delete(host, BRIDGE, pod)
        until(lambda: said(host, "DHCPRELEASE") == 1, "it is given back")
    if trace:
        families = set(re.findall(r"socket\((\w+)", host.path("/run/trace").read_text()))
        allowed = set(unit.partition("RestrictAddressFamilies=")[2].splitlines()[0].split())
        assert families <= allowed


@needs_dnsmasq
def test_what_is_requested_and_provided(host: Host) -> None:
    """Routes of option 121 alone, one of them on the link; a name from CNI_ARGS; a metric; another socket."""
    path = "/run/other.sock"
    ipam = {
        "type": "dhcp", "daemonSocketPath": path, "priority": 42, "request": [{"option": "121"}],
        "provide": [{"option": "host-name", "fromArg": "K8S_POD_NAME"}, {"option": "vendor-class-identifier", "value": "cni"}],
    }  # fmt: skip
    conf = BRIDGE | {"ipam": ipam}
    routes = "--dhcp-option=121,192.0.2.0/24,10.50.0.7,198.51.100.0/24,0.0.0.0"
    with daemon(host, "-socketpath", path, path=path), dnsmasq(host, routes):
        pod = host.netns("c1")
        result = add(host, conf, pod, args="IgnoreUnknown=1;K8S_POD_NAME=web")
        assert said(host, "client provides name: web")
        assert said(host, "vendor class: cni")
        shown = host.run("ip route", pod)
        assert "192.0.2.0/24 via 10.50.0.7 dev eth0 metric 42" in shown
        assert "198.51.100.0/24 dev eth0 scope link metric 42" in shown
        assert "default" not in shown
        assert check(host, conf, pod, result).rc == 0
        delete(host, conf, pod)


@needs_dnsmasq
def test_second_add_gives_the_first_lease_up_for_the_new_one(host: Host) -> None:
    with daemon(host), dnsmasq(host):
        pod = plug(host, "c1")
        one, two = (host.ok("dhcp", "ADD", ALONE, sandbox=pod) for _ in range(2))
        assert one["ips"] == two["ips"], "servers know a client by its identifier"
        host.ok("dhcp", "DEL", ALONE, sandbox=pod)
        host.ok("dhcp", "DEL", ALONE, sandbox=pod)


@needs_dnsmasq
def test_sandbox_that_is_gone_is_neither_kept_alive_nor_an_error(host: Host) -> None:
    with daemon(host), dnsmasq(host):
        pod = host.netns("c1")
        add(host, BRIDGE, pod)
        host.delete_netns(pod)
        until(lambda: host.host_ends() == [], "no socket of the daemon holds the namespace")
        delete(host, BRIDGE, pod)
        add(host, BRIDGE, host.netns("c2"))


# --- a lease of seconds -----------------------------------------------------------------------------------------------


@needs_udhcpd
def test_lease_is_renewed_at_half_time(host: Host) -> None:
    with daemon(host), udhcpd(host, 8):
        pod = host.netns("c1")
        result = add(host, BRIDGE, pod)
        until(lambda: said(host, "extended", DAEMON_LOG) >= 2, "the lease is renewed twice", SECONDS)
        assert said(host, "sending ACK") >= 3
        assert "0% packet loss" in host.run("ping -c1 -W5 10.50.0.1", pod)
        assert check(host, BRIDGE, pod, result).rc == 0


@needs_udhcpd
def test_lease_is_kept_by_the_daemon_after_a_restart(host: Host) -> None:
    """Restart after an end and after a kill. Go's forgets its leases: they end while the pods use the addresses."""
    with udhcpd(host, 60):
        first, second, gone = (host.netns(name) for name in ("c1", "c2", "c3"))
        with daemon(host):
            results = [add(host, BRIDGE, pod) for pod in (first, second, gone)]
        assert len(host.files("/run/cni-py/dhcp")) == 3
        host.delete_netns(gone)
        with daemon(host, "-pidfile", "/run/dhcp.pid"):
            for pod, result in zip((first, second), results, strict=False):
                assert check(host, BRIDGE, pod, result).rc == 0
            until(lambda: len(host.files("/run/cni-py/dhcp")) == 2, "that of the deleted sandbox is forgotten")
            host.run("kill -KILL $(cat /run/dhcp.pid); rm /run/cni/dhcp.sock")
        with daemon(host):
            delete(host, BRIDGE, first)
            until(lambda: check(host, BRIDGE, second, results[1]).rc == 0, "the other one is kept")
            assert said(host, f"lease of {results[0]['ips'][0]['address'].partition('/')[0]} released", DAEMON_LOG) == 1
            delete(host, BRIDGE, second)
        assert host.files("/run/cni-py/dhcp") == {}


@needs_udhcpd
def test_lease_that_became_due_without_a_daemon_is_renewed_by_the_next(host: Host) -> None:
    pod = host.netns("c1")
    with udhcpd(host, 600):
        with daemon(host):
            result = add(host, BRIDGE, pod)
        [(path, text)] = host.files("/run/cni-py/dhcp").items()
        saved = json.loads(text)
        host.write(path, json.dumps(saved | {"times": [0.0, *saved["times"][1:]]}))
        with daemon(host):
            until(lambda: said(host, "extended", DAEMON_LOG), "it is renewed at once")
            assert check(host, BRIDGE, pod, result).rc == 0
            assert json.loads(host.path(path).read_text())["times"][0] > 0
            delete(host, BRIDGE, pod)


def test_damaged_file_of_a_lease_is_deleted_and_nothing_else_happens(host: Host) -> None:
    boot = host.run("cat /proc/sys/kernel/random/boot_id").strip()
    of_this_boot = {"boot": boot, "socket": "/run/cni/dhcp.sock"}
    for number, text in enumerate(
        ("", "{", "[]", '{"boot": 7}', json.dumps(of_this_boot), json.dumps(of_this_boot | {"ack": "zz"}))
    ):
        host.write(f"/run/cni-py/dhcp/{number}", text)
    host.run("chmod 700 /run/cni-py/dhcp")
    other = json.dumps({"boot": boot, "socket": "/run/other.sock"})
    host.write("/run/cni-py/dhcp/other", other)
    with daemon(host):
        host.ok("dhcp", "STATUS", ALONE)
        assert host.files("/run/cni-py/dhcp") == {"/run/cni-py/dhcp/other": other}


@needs_udhcpd
def test_lease_that_no_server_renews_ends_with_the_interface_down(host: Host) -> None:
    with daemon(host):
        pod = host.netns("c1")
        with udhcpd(host, 4):
            result = add(host, BRIDGE, pod)
        until(lambda: said(host, "has ended", DAEMON_LOG), "the lease ends", SECONDS)
        assert said(host, "rebinding failed", DAEMON_LOG), "any server was asked before"
        until(lambda: "UP" not in host.json("ip -j link show eth0", pod)[0]["flags"], "it is set down, which is logged before")
        assert check(host, of(ALONE), pod, result).code == 103
        delete(host, BRIDGE, pod)


@needs_udhcpd
def test_another_server_takes_over_by_rebinding(host: Host) -> None:
    with daemon(host):
        pod = host.netns("c1")
        with udhcpd(host, 12):
            add(host, BRIDGE, pod)
        host.run(
            "ip addr add 10.50.0.2/24 dev br9; ip addr del 10.50.0.1/24 dev br9; ip addr add 10.50.0.2/24 dev br9", check=False
        )
        with udhcpd(host, 60):
            until(lambda: said(host, "extended", DAEMON_LOG), "the lease is rebound", SECONDS)
        assert said(host, "has ended", DAEMON_LOG) == 0
        delete(host, BRIDGE, pod)


@needs_udhcpd
def test_renewal_forgets_a_sandbox_that_is_gone(host: Host) -> None:
    with daemon(host), udhcpd(host, 4):
        pod = host.netns("c1")
        add(host, BRIDGE, pod)
        host.delete_netns(pod)
        until(lambda: said(host, "forgotten", DAEMON_LOG), "the daemon checks it", SECONDS)


# --- without a server, without a daemon -------------------------------------------------------------------------------


def test_no_server_is_an_error_after_the_time_and_nothing_is_left(host: Host) -> None:
    with daemon(host, "-timeout", "200ms", "-resendtimeout", "3s"):
        pod = host.netns("c1")
        before = host.snapshot(pod)
        reply = host.call("bridge", "ADD", BRIDGE, sandbox=pod)
        assert (reply.code, "error calling DHCP.Allocate: no more tries" in words(reply)) == (50, True), reply
        assert host.snapshot(pod)[pod.path] == before[pod.path]
        assert host.host_ends() == []


def test_no_daemon(host: Host) -> None:
    """ADD and CHECK fail and say so, DEL and GC succeed, STATUS is 50, of the main plugin too."""
    pod = host.netns("c1")
    for verb in ("ADD", "CHECK"):
        reply = host.call("dhcp", verb, ALONE, sandbox=pod)
        assert "error dialing DHCP daemon: dial unix /run/cni/dhcp.sock: connect: no such file or directory" in words(reply)
    for plugin, conf in (("dhcp", ALONE), ("bridge", BRIDGE)):
        assert host.call(plugin, "STATUS", conf).code == 50
        host.ok(plugin, "DEL", conf, sandbox=pod)
        gc(host, conf | {"type": plugin})
    with daemon(host):
        for plugin, conf in (("dhcp", ALONE), ("bridge", BRIDGE)):
            host.ok(plugin, "STATUS", conf)


def test_daemon_of_the_go_plugins_is_none(host: Host, go_plugins: str) -> None:
    """A node on which it still runs after the plugins were exchanged: pods can be deleted, and ADD and STATUS name it."""
    pod = host.netns("c1")
    with program(host, f"{go_plugins}/dhcp", "daemon"):
        until(lambda: host.path("/run/cni/dhcp.sock").is_socket(), "it listens")
        for verb in ("ADD", "CHECK", "STATUS"):
            reply = host.call("dhcp", verb, ALONE, sandbox=pod)
            assert (reply.code, "is the socket of another program" in words(reply)) == (50, True), reply
        host.ok("dhcp", "DEL", ALONE, sandbox=pod)
        gc(host, of(ALONE))


def test_interface_and_sandbox_that_are_not_there(host: Host) -> None:
    with daemon(host):
        pod = host.netns("c1")
        assert 'error looking up "eth7": Link not found' in words(host.call("dhcp", "ADD", ALONE, sandbox=pod, ifname="eth7"))
        assert "failed to open netns" in words(host.call("dhcp", "ADD", ALONE, sandbox="/run/netns/gone"))
        for option in ("colour", "300"):
            conf = ALONE | {"ipam": {"type": "dhcp", "request": [{"option": option}]}}
            assert f'Can not parse option "{option}"' in words(host.call("dhcp", "ADD", conf, sandbox=pod))


@pytest.mark.parametrize(
    "request_", [b"", b"{", b"[]", b'{"verb": 7}', b'{"verb": "ADD", "ipam": []}', b"\0" * 100, b'{"verb": "GC"}']
)
def test_any_request_is_answered_and_the_daemon_lives(host: Host, request_: bytes) -> None:
    def ask() -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect("/run/cni/dhcp.sock")
            sock.sendall(request_)
            sock.shutdown(socket.SHUT_WR)
            return sock.recv(1 << 16)

    with daemon(host):
        assert set(json.loads(host.do(ask))) in ({"error"}, {"result"})
        host.ok("dhcp", "STATUS", ALONE)


AS_ANOTHER_USER = ["setpriv", "--reuid=65534", "--clear-groups", "python3", "-c"]
CONNECT = (
    "import socket; s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect('/run/open.sock'); print(s.recv(1 << 16))"
)
LISTEN = (
    "import socket; s = socket.socket(socket.AF_UNIX); s.bind('/run/open/dhcp.sock'); s.listen(); c = s.accept()[0];"
    "[0 for _ in iter(lambda: c.recv(1 << 16), b'')]; s.accept()"
)


def test_client_of_another_user_is_refused(host: Host) -> None:
    """No mode of the socket lets it in: the directory is the operator's."""
    host.run("chmod 755 /run")
    with daemon(host, "-socketpath", "/run/open.sock", path="/run/open.sock"):
        assert host.run("stat -c %a /run/open.sock") == "755\n"
        assert "PermissionError" in host.execute([*AS_ANOTHER_USER, CONNECT]).stderr
        host.run("chmod 666 /run/open.sock")
        assert host.execute([*AS_ANOTHER_USER, CONNECT]).stdout == "b''\n"
    assert said(host, "the client is not root", DAEMON_LOG) == 1


def test_daemon_of_another_user_is_not_asked(host: Host) -> None:
    host.run("mkdir -m 777 /run/open; chmod 755 /run")
    pod = host.netns("c1")
    conf = ALONE | {"ipam": {"type": "dhcp", "daemonSocketPath": "/run/open/dhcp.sock"}}
    with program(host, *AS_ANOTHER_USER, LISTEN):
        until(host.path("/run/open/dhcp.sock").is_socket, "another user listens")
        reply = host.call("dhcp", "ADD", conf, sandbox=pod)
    assert reply.code == 50, reply
    assert "a process of user 65534 listens there" in words(reply)


def test_second_daemon_is_refused_and_no_file_but_a_socket_is_removed(host: Host) -> None:
    with daemon(host):
        done = host.execute([f"{host.bin_dir}/dhcp", "daemon"])
        assert (done.returncode, "already listens at /run/cni/dhcp.sock" in done.stderr) == (1, True), done.stderr
        host.ok("dhcp", "STATUS", ALONE)
    host.write("/run/precious", "x")
    done = host.execute([f"{host.bin_dir}/dhcp", "daemon", "-socketpath", "/run/precious"])
    assert (done.returncode, "is not a socket" in done.stderr) == (1, True), done.stderr
    assert host.path("/run/precious").read_text() == "x"
    host.run("python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/run/cni/dhcp.sock\")'")  # of a killed one
    with daemon(host):
        until(lambda: host.call("dhcp", "STATUS", ALONE).rc == 0, "the daemon listens")


@needs_dnsmasq
def test_add_whose_plugin_was_killed_keeps_no_lease_after_del(host: Host) -> None:
    """The daemon still asks for a lease when DEL comes; there is a server only then."""
    request = {"verb": "ADD", "containerID": "c1", "network": "net", "ifname": "eth0", "netns": "/run/netns/c1"}

    def ask() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect("/run/cni/dhcp.sock")
            sock.sendall(json.dumps(request).encode())

    with daemon(host):
        pod = plug(host, "c1")
        host.do(ask)
        until(lambda: "eth0" in host.run("ip -br link show up", pod), "the daemon works on it")
        host.ok("dhcp", "DEL", ALONE, sandbox=pod)
        with dnsmasq(host):
            other = plug(host, "c2")
            host.ok("dhcp", "ADD", ALONE, sandbox=other, container_id="c2")
            until(lambda: said(host, "DHCPACK") == 1 + said(host, "DHCPRELEASE"), "none is kept for the first")
            assert check(host, of(ALONE), pod, {"cniVersion": "1.1.0"}).code == 103


# --- the daemon -------------------------------------------------------------------------------------------------------


def test_sigterm_removes_socket_and_pid_file(host: Host) -> None:
    with daemon(host, "-pidfile", "/run/dhcp.pid"):
        assert host.path("/run/dhcp.pid").read_text().isdigit()
        assert oct(host.path("/run/cni").stat().st_mode & 0o777) == "0o700"
    assert not host.path("/run/cni/dhcp.sock").exists()
    assert not host.path("/run/dhcp.pid").exists()


def test_socket_that_systemd_hands_over_is_used_and_stays(host: Host) -> None:
    """LISTEN_FDS, LISTEN_PID: as systemd-socket-activate does it."""
    starter = (
        "import os, socket, sys\n"
        "made = socket.socket(socket.AF_UNIX); made.bind('/run/passed.sock'); made.listen()\n"
        "os.dup2(made.fileno(), 3); os.set_inheritable(3, True)\n"
        "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
        "os.execv(sys.argv[1], [sys.argv[1], 'daemon'])\n"
    )
    conf = ALONE | {"ipam": {"type": "dhcp", "daemonSocketPath": "/run/passed.sock"}}
    with program(host, "/usr/bin/python3", "-c", starter, f"{host.bin_dir}/dhcp"):
        until(lambda: host.path("/run/passed.sock").is_socket(), "the socket exists")
        until(lambda: host.call("dhcp", "STATUS", conf).rc == 0, "the daemon accepts")
        reply = host.call("dhcp", "CHECK", conf, sandbox=host.netns("c1"))
        assert reply.code == 103
    assert host.path("/run/passed.sock").is_socket(), "it is systemd's"


def test_host_prefix_goes_before_socket_and_sandbox(host: Host) -> None:
    """A daemon in a container that has the host's root at /host."""
    host.run("mkdir -p /run/host/run/cni; mount --rbind /run/netns /run/host/run 2>/dev/null || true")
    with daemon(host, "-hostprefix", "/run/host", path="/run/host/run/cni/dhcp.sock"):
        conf = ALONE | {"ipam": {"type": "dhcp", "daemonSocketPath": "/run/host/run/cni/dhcp.sock"}}
        reply = host.call("dhcp", "ADD", conf, sandbox="/x/none")
        assert "/run/host/x/none" in words(reply)


def test_meta_plugins_follow_it(host: Host) -> None:
    """A result of dhcp is one like any other."""
    if not shutil.which("dnsmasq"):
        pytest.skip("no dnsmasq (package dnsmasq-base)")
    with daemon(host), dnsmasq(host):
        pods = Pods(host, Chain(meta_conf("sbr"), main=BRIDGE))
        pod = host.netns("c1")
        result = pods.add(pod)
        assert pods.call("CHECK", pod, result).rc == 0
        pods.delete(pod)
