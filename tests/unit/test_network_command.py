"""``cni-py config get``, ``set``, ``reserve``, ``release``: validated before anything is written, and refused with reasons."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from cni_py.cli import main as cli
from cni_py.cli.network_commands import parse_subnets, why_this_etcd
from cni_py.datastore.errors import Refused, Unavailable
from cni_py.flanneld import host_networks, network
from cni_py.flanneld.commands import check_config
from cni_py.flanneld.lease import Subnets
from cni_py.flanneld.options import Options
from cni_py.flanneld.stores.file import FileStore

CONFIG = '{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}'
DUAL = '{"EnableIPv6":true,"Network":"10.244.0.0/16","IPv6Network":"fd00:10::/48","Backend":{"Type":"vxlan"}}'
LEASE = {"PublicIP": "192.168.123.11", "PublicIPv6": None, "BackendType": "vxlan", "Expires": "2099-01-01T00:00:00Z"}
ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def datastore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("FLANNELD_")]:
        monkeypatch.delenv(name)
    return tmp_path / "network.json"


@pytest.fixture
def run(datastore: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Status, standard output and standard error of ``cni-py config …`` with the file as datastore."""

    def command(
        *argv: str, stdin: str = "", options: tuple[str, ...] = (f"-datastore=file:{datastore}",)
    ) -> tuple[int, str, str]:
        with tempfile.TemporaryFile() as given:
            given.write(stdin.encode())
            given.seek(0)
            monkeypatch.setattr(network, "STDIN_FD", given.fileno())
            try:
                status = cli.main(["config", *argv, *(("--", *options) if options else ())])
            except SystemExit as leaving:
                status = int(leaving.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


def write(datastore: Path, leases: dict[str, Any], config: str = CONFIG) -> None:
    datastore.write_text(json.dumps({"config": json.loads(config), "leases": leases, "note": "mine"}))


def test_set_makes_the_file_and_get_shows_it(run: Run, datastore: Path, tmp_path: Path) -> None:
    assert run("get")[0] == 1
    (tmp_path / "net-conf.json").write_text(CONFIG)
    status, out, err = run("set", str(tmp_path / "net-conf.json"))
    assert (status, out) == (0, "")
    assert "written: 10.244.0.0/16: subnets of /24, 10.244.1.0 to 10.244.255.0; back end vxlan" in err
    assert json.loads(datastore.read_text()) == {"config": json.loads(CONFIG), "leases": {}}
    assert datastore.stat().st_mode & 0o777 == 0o600
    status, out, err = run("get")
    assert (status, json.loads(out), err) == (0, json.loads(CONFIG), "")


def test_datastore_by_variable(run: Run, datastore: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLANNELD_DATASTORE", f"file:{datastore}")
    assert run("set", "-", stdin=CONFIG, options=())[0] == 0
    assert run("get", options=())[0] == 0
    assert FileStore(str(datastore), "node").read_network_config() == json.dumps(json.loads(CONFIG))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"Network":"10.244.0.0/16","SubnetLen":31,"Backend":{"Type":"vxlan"}}', '"SubnetLen"'),
        ('{"Network":"10.244.0.0/33","SubnetMin":"x","Backend":{"Type":"vxlan"}}', '"Network"'),
        ('{"Network":"10.244.0.0/33","SubnetMin":"x","Backend":{"Type":"vxlan"}}', '"SubnetMin"'),
        ('{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":"one"}}', '"Backend.VNI"'),
        ('{"Network":"10.244.0.0/16","Backend":{"Type":"vxlam"}}', "Backend.Type is one of vxlan"),
        ('{"Network":"10.244.0.0/16","Backend":{}}', '"Backend.Type"'),
        ("[]", "not an object"),
        ("{", "no JSON"),
        ("", "no JSON"),
        ("\udcff", "not text"),
    ],
)
def test_wrong_configuration_is_not_written(run: Run, datastore: Path, tmp_path: Path, text: str, key: str) -> None:
    write(datastore, {})
    before = datastore.read_bytes()
    source = tmp_path / "net-conf.json"
    source.write_bytes(text.encode(errors="surrogateescape"))
    status, out, err = run("set", str(source), "--force")
    assert (status, out) == (1, "")
    assert key in err
    assert datastore.read_bytes() == before


@pytest.mark.parametrize("source", network.STDIN)
def test_pipe_that_does_not_wait_is_waited_for(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Feed a pipe that is empty at first, and is completed later."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    parts = [CONFIG[:20], CONFIG[20:]]

    def fill(*_: object) -> None:
        if parts:
            os.write(writer, parts.pop(0).encode())
        else:
            os.close(writer)

    monkeypatch.setattr(network, "STDIN_FD", reader)
    monkeypatch.setattr(network.select, "select", fill)
    assert network.read_text(source) == CONFIG
    os.close(reader)


def test_named_pipe_is_waited_for(tmp_path: Path) -> None:
    """Read a pipe like a shell's ``<(…)``."""
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        written = pool.submit((tmp_path / "pipe").write_text, CONFIG)
        assert network.read_text(str(tmp_path / "pipe")) == CONFIG
        assert written.result() == len(CONFIG)


def test_standard_input_without_end_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/zero") as zero:
        monkeypatch.setattr(network, "STDIN_FD", zero.fileno())
        assert check_config("-") == 1
    assert "larger than 1048576 bytes" in capsys.readouterr().err


def test_reservation_that_contains_its_node_is_warned_of(run: Run, datastore: Path) -> None:
    write(datastore, {})
    assert (
        "warning: 10.244.7.0/24 contains 10.244.7.9, the node's own address" in run("reserve", "10.244.7.0/24", "10.244.7.9")[2]
    )
    assert "warning" not in run("reserve", "10.244.8.0/24", "192.168.0.9")[2]


@pytest.fixture
def lan(monkeypatch: pytest.MonkeyPatch) -> None:
    found = frozenset((host_networks.HostNetwork(IPv4Network("10.0.5.0/24"), "eth0"),))
    monkeypatch.setattr(host_networks, "list_host_networks", lambda: found)


@pytest.mark.usefixtures("lan")
def test_network_that_contains_the_lan_is_warned_of_where_it_is_checked_and_written(
    run: Run, datastore: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "the flannel network 10.0.0.0/8 contains 10.0.5.0/24 of eth0, networks of this host's own links"
    text = CONFIG.replace("10.244.0.0/16", "10.0.0.0/8")
    (tmp_path / "net-conf.json").write_text(text)
    assert check_config(str(tmp_path / "net-conf.json")) == 0
    assert words in capsys.readouterr().err
    status, _, err = run("set", "-", stdin=text)
    assert (status, words in err) == (0, True)
    assert json.loads(datastore.read_text())["config"]["Network"] == "10.0.0.0/8"


@pytest.mark.usefixtures("lan")
def test_check_warns_of_probable_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "net-conf.json"
    source.write_text('{"Network":"10.244.0.0/16","Netwrok":1,"Backend":{"type":"vxlan","DirectRoutng":true}}')
    assert check_config(str(source)) == 0
    assert capsys.readouterr().err.splitlines() == [
        f'flanneld: {source}: "Netwrok" is no key of a network configuration and has no effect: is "Network" meant?',
        f'flanneld: {source}: "Backend.DirectRoutng" is no key of the back end vxlan and has no effect: is "DirectRouting" meant?',
    ]
    assert check_config("/nonexistent") == 1
    assert capsys.readouterr().err == "flanneld: /nonexistent: No such file or directory\n"


def test_warnings_are_printed(run: Run) -> None:
    status, _, err = run("set", "-", stdin='{"Network":"10.244.0.0/16","Netwrok":1,"Backend":{"Type":"vxlan"}}')
    assert status == 0
    assert '"Netwrok" is no key of a network configuration' in err
    assert '"Netwrok" is no key' in run("get")[2]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"Network":"10.9.0.0/16","Backend":{"Type":"vxlan"}}', "leases that do not fit 10.9.0.0/16"),
        ('{"Network":"10.244.0.0/16","SubnetLen":25,"Backend":{"Type":"vxlan"}}', "192.168.123.11 (10.244.91.0/24)"),
        ('{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}', "192.168.123.11 (10.244.91.0/24) has vxlan"),
        (DUAL, "leases that do not fit"),
    ],
)
def test_change_that_conflicts_with_leases_needs_force(run: Run, datastore: Path, text: str, reason: str) -> None:
    write(datastore, {"10.244.91.0-24": LEASE})
    before = datastore.read_bytes()
    status, _, err = run("set", "-", stdin=text)
    assert status == 1
    assert reason in err
    assert "--force" in err
    assert datastore.read_bytes() == before
    assert run("set", "-", "--force", stdin=text)[0] == 0
    after = json.loads(datastore.read_text())
    assert (after["config"], after["leases"], after["note"]) == (json.loads(text), {"10.244.91.0-24": LEASE}, "mine")


def test_change_that_fits_the_leases_is_written_and_names_the_nodes_to_restart(run: Run, datastore: Path) -> None:
    write(datastore, {"10.244.91.0-24": LEASE})
    text = '{"Network":"10.244.0.0/15","SubnetLen":24,"Backend":{"Type":"vxlan","DirectRouting":true}}'
    status, _, err = run("set", "-", stdin=text)
    assert status == 0
    assert "nodes with a lease: 192.168.123.11 (10.244.91.0/24)" in err


def test_get_of_what_cannot_be_used(run: Run, datastore: Path) -> None:
    write(datastore, {}, '{"Network":"10.244.0.0/16","Backend":{"Type":"nothing"}}')
    status, out, err = run("get")
    assert (status, out) == (1, "")
    assert "unknown backend type: nothing" in err
    assert '"Type": "nothing"' in err


# ---- reservations -----------------------------------------------------------------------------


def test_reserve_and_release(run: Run, datastore: Path) -> None:
    write(datastore, {"10.244.91.0-24": LEASE | {"Node": "node1", "Note": "mine"}})
    assert run("reserve", "10.244.92.0/24", "192.168.123.12")[0] == 0
    assert run("reserve", "10.244.91.0/24", "192.168.123.11")[0] == 0
    leases = json.loads(datastore.read_text())["leases"]
    assert leases["10.244.91.0-24"] == LEASE | {"Node": "node1", "Note": "mine", "Expires": None}
    assert leases["10.244.92.0-24"] == {"PublicIP": "192.168.123.12", "PublicIPv6": None, "Expires": None}
    status, _, err = run("release", "10.244.91.0/24")
    assert status == 0
    assert "expires in 24 hours" in err
    assert json.loads(datastore.read_text())["leases"]["10.244.91.0-24"]["Expires"] is not None
    status, _, err = run("release", "10.244.91.0/24")
    assert status == 1
    assert "10.244.91.0/24 is not reserved" in err


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (("10.244.91.0/24", "192.168.123.12"), "10.244.91.0/24 is leased to 192.168.123.11"),
        (("10.244.7.0/24", "192.168.123.12"), "cannot be understood has 10.244.7.0/24"),
        (("10.244.92.0/25", "192.168.123.12"), "subnet 10.244.92.0/25 does not fit the network"),
        (("10.244.0.0/24", "192.168.123.12"), "subnet 10.244.0.0/24 does not fit the network"),
        (("fd00::/64", "192.168.123.12"), "does not fit the network"),
        (("10.244.92.1/24", "192.168.123.12"), 'invalid subnet "10.244.92.1/24"'),
        (("10.244.92.0/24", "node2"), 'invalid IP address of a node: "node2"'),
        (("10.244.92.0/24", "fd00::2"), "identified by their IPv4 address"),
        (("10.244.92.0/24", "0.0.0.0"), "it is no host's"),
        (("10.244.92.0/24", "224.0.0.5"), "it is multicast"),
        (("10.244.92.0/24", "127.0.0.1"), "it is loopback"),
        (("10.244.92.0/24", "255.255.255.255"), 'invalid IP address of a node: "255.255.255.255"'),
        (("10.244.92.0/24", "fe80::1%eth0"), "it is link-local, with a zone"),
    ],
)
def test_reservation_that_is_refused(run: Run, datastore: Path, argv: tuple[str, ...], reason: str) -> None:
    write(datastore, {"10.244.91.0-24": LEASE, "10.244.7.0-24": {"PublicIP": "?"}})
    before = json.loads(datastore.read_text())
    status, out, err = run("reserve", *argv)
    assert (status, out) == (1, "")
    assert reason in err
    assert json.loads(datastore.read_text()) == before


def test_subnets_of_both_families() -> None:
    subnets = parse_subnets("10.244.91.0/24,fd00:10:0:91::/64")
    assert isinstance(subnets, Subnets)
    assert subnets.as_key() == "10.244.91.0-24&fd00:10:0:91::-64"


# ---- which datastore --------------------------------------------------------------------------


def test_file_that_cannot_be_written(run: Run, datastore: Path) -> None:
    write(datastore, {})
    datastore.chmod(0o444)
    for argv in (("set", "-"), ("reserve", "10.244.92.0/24", "192.168.123.12"), ("release", "10.244.92.0/24")):
        status, _, err = run(*argv, stdin=CONFIG)
        assert status == 1
        assert "is read only" in err
    assert run("get")[0] == 0


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (("-nonsense",), 2, "flag provided but not defined: -nonsense"),
        (("-cleanup",), 2, "flanneld options that select the datastore"),
        (("-version",), 2, "flanneld options that select the datastore"),
        (("-etcd-certfile=x",), 2, "a client certificate needs both"),
        (
            ("-etcd-cafile=/no/such/file", "-etcd-endpoints=https://127.0.0.1:1"),
            1,
            'the CA certificate "/no/such/file"\n  details: No such file',
        ),
        (("-etcd-endpoints=http://127.0.0.1:1",), 1, "etcd cannot be used"),
        (("-kube-subnet-mgr",), 1, "kubectl"),
        (("-datastore=file:/no/such/directory/file",), 1, "does not exist"),
    ],
)
def test_datastore_that_cannot_be_used(run: Run, options: tuple[str, ...], status: int, words: str) -> None:
    found = run("get", options=options)
    assert found[:2] == (status, "")
    assert words in found[2]


def test_etcd_of_this_machine_that_does_not_reply_is_said_to_be_the_default() -> None:
    """Check that this is said if no option and no variable named one, and not of one that has replied with a refusal."""
    asked = "-etcd-endpoints=http://HOST:2379"
    here, there = Options(), Options(etcd_endpoints=("http://192.168.123.2:2379",))
    assert asked in why_this_etcd(here, Unavailable("x"))
    assert why_this_etcd(here, Refused("x")) == ""
    assert why_this_etcd(there, Unavailable("x")) == ""
    assert why_this_etcd(Options(datastore="file:/x"), Unavailable("x")) == ""


@pytest.mark.parametrize("action", ["get", "set", "leases", "reserve", "release"])
def test_every_action_has_help(run: Run, action: str) -> None:
    status, out, _ = run(action, "--help", options=())
    assert status == 0
    assert out.startswith(f"usage: cni-py config {action} ")
    assert out.isascii()
    assert max(map(len, out.splitlines())) <= 100


def test_what_is_not_given_is_wrong_usage(run: Run) -> None:
    for argv in (("set",), ("reserve", "10.244.92.0/24"), ("release",), ("get", "more"), ("get", "-etcd-prefix=/x")):
        status, out, err = run(*argv, options=())
        assert (status, out) == (2, ""), argv
        assert "usage" in err


def test_hint_about_a_missing_file_creates_it(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / "network.json"
    _, _, err = run("get", options=(f"-datastore=file:{path}",))
    command = err.partition("hint: create it: ")[2].strip()
    program = ROOT / "bin" / "cni-py"
    subprocess.run(["sh", "-ec", command.replace("cni-py", str(program), 1)], check=True, capture_output=True, timeout=60)
    assert run("get", options=(f"-datastore=file:{path}",))[0] == 0


def test_mistyped_variable_is_a_warning(run: Run, datastore: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(datastore, {})
    monkeypatch.setenv("FLANNELD_ETCD_ENDPOINT", "https://192.168.123.11:2379")
    assert "is it FLANNELD_ETCD_ENDPOINTS?" in run("get")[2]


def test_file_that_does_not_exist_is_named_without_a_number(run: Run, datastore: Path) -> None:
    assert run("set", "/nope") == (1, "", "cni-py: /nope: No such file or directory\n")


def test_mistyped_key_is_not_written_without_force(run: Run, datastore: Path, tmp_path: Path) -> None:
    path = tmp_path / "net-conf.json"
    path.write_text('{"Network": "10.244.0.0/16", "Bakend": {"Type": "vxlan"}}')
    status, _, err = run("set", str(path))
    assert status == 1
    assert 'is "Backend" meant?' in err
    assert not datastore.exists()
    assert run("set", "--force", str(path))[0] == 0


def test_leases_are_listed(run: Run, datastore: Path) -> None:
    lease = {"PublicIP": "192.168.123.12", "PublicIPv6": None}
    write(datastore, {"10.244.2.0-24": LEASE, "10.244.1.0-24": lease, "10.244.10.0-24": lease})
    status, out, err = run("leases")
    assert (status, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["SUBNET", "NODE", "BACK", "END", "EXPIRES"],
        ["10.244.1.0/24", "192.168.123.12", "vxlan", "never:", "reserved"],
        ["10.244.2.0/24", "192.168.123.11", "vxlan", "2099-01-01", "00:00:00Z"],
        ["10.244.10.0/24", "192.168.123.12", "vxlan", "never:", "reserved"],
    ]
    found = json.loads(run("leases", "--json")[1])
    assert [one["isReservation"] for one in found] == [True, False, True]
    write(datastore, {})
    assert run("leases") == (0, "", "cni-py: no leases\n")
