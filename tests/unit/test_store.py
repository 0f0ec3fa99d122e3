"""ipam/store.py and plugins/host_local.py: reservations in files, and what the verbs make of them."""

from __future__ import annotations

import errno
import fcntl
import os
import posix
import socket
import stat
import threading
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from cni_py import config
from cni_py.errors import AddressesExhausted, CheckFailed, CniError, InvalidConfig, InvalidEnvironment, IOFailure, NotAvailable
from cni_py.ipam import resolv_conf, store
from cni_py.ipam.store import Store, addresses_of, parse_owner
from cni_py.journal import Journal
from cni_py.plugins.ipam import host_local
from cni_py.spec.call import Call
from cni_py.spec.result import Result


class Pool:
    """A network in a temporary directory, and the plugin called on it."""

    def __init__(self, data_dir: Path, subnet: str = "10.1.2.0/29") -> None:
        self.data_dir = data_dir
        self.directory = data_dir / "pool"
        self.conf: dict[str, Any] = {
            "name": "pool",
            "cniVersion": "1.1.0",
            "ipam": {"type": "host-local", "ranges": [[{"subnet": subnet}]], "dataDir": str(data_dir)},
        }

    def call(
        self, verb: str, container_id: str, ifname: str = "eth0", args: tuple[tuple[str, str], ...] = (), **keys: Any
    ) -> Any:
        conf = self.conf | keys
        call = Call(verb, "host-local", container_id=container_id, ifname=ifname, args=args, conf=conf)
        function = {"ADD": "add", "DEL": "delete", "CHECK": "check", "STATUS": "status", "GC": "gc"}[verb]
        return getattr(host_local, function)(call, config.parse("HostLocalConfig", conf))

    def add(self, container_id: str, ifname: str = "eth0", **keys: Any) -> str:
        result: Result = self.call("ADD", container_id, ifname, **keys)
        return " ".join(str(ip.address.ip) for ip in result.ips)

    def delete(self, container_id: str, ifname: str = "eth0", **keys: Any) -> None:
        self.call("DEL", container_id, ifname, **keys)

    def put(self, name: str, text: bytes) -> Path:
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / name
        path.write_bytes(text)
        return path

    def texts(self) -> dict[str, bytes]:
        """The reservations."""
        return {p.name: p.read_bytes() for p in self.directory.iterdir() if p.name != "lock" and not p.name.startswith("last")}


@pytest.fixture(autouse=True, params=[False, True], ids=["read", "kept"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A process of one call, and one of many, which keeps what it read."""
    monkeypatch.setattr(store, "_kept", {} if request.param else None)
    return bool(request.param)


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path)


def sets(*subnets: str, data_dir: Path) -> dict[str, Any]:
    return {"type": "host-local", "ranges": [[{"subnet": s}] for s in subnets], "dataDir": str(data_dir)}


# The files


def test_add_writes_the_files_that_go_writes(pool: Pool) -> None:
    assert pool.add("c1") == "10.1.2.2"
    assert pool.texts() == {"10.1.2.2": b"c1\r\neth0"}
    assert (pool.directory / "last_reserved_ip.0").read_bytes() == b"10.1.2.2"
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in pool.directory.iterdir()}
    assert modes == {"10.1.2.2": 0o600, "last_reserved_ip.0": 0o600, "lock": 0o600}
    assert stat.S_IMODE(pool.directory.stat().st_mode) & 0o700 == 0o700


def test_add_keeps_the_mode_of_last_reserved(pool: Pool) -> None:
    pool.put("last_reserved_ip.0", b"10.1.2.4").chmod(0o644)
    assert pool.add("c1") == "10.1.2.5"
    assert stat.S_IMODE((pool.directory / "last_reserved_ip.0").stat().st_mode) == 0o644


def test_freed_address_is_not_given_at_once(pool: Pool) -> None:
    assert pool.add("c1") == "10.1.2.2"
    pool.delete("c1")
    assert pool.add("c1") == "10.1.2.3"


def test_del_without_a_directory_makes_none(pool: Pool) -> None:
    pool.delete("c1")
    pool.call("GC", "")
    assert not pool.directory.exists()


def test_del_with_a_file_in_the_directories_place_succeeds(pool: Pool) -> None:
    pool.directory.write_text("")
    pool.delete("c1")
    with pytest.raises(IOFailure, match="could not"):
        pool.add("c1")


def test_lost_lock_is_made_again(pool: Pool) -> None:
    pool.add("c1")
    (pool.directory / "lock").unlink()
    assert pool.add("c2") == "10.1.2.3"
    assert (pool.directory / "lock").exists()


def test_add_waits_for_the_lock(pool: Pool) -> None:
    pool.put("lock", b"")
    with (pool.directory / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=pool.add, args=("c1",))
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
        assert pool.texts() == {}
    thread.join(10)
    assert pool.texts() == {"10.1.2.2": b"c1\r\neth0"}


def test_no_descriptor_is_left_open(pool: Pool) -> None:
    before = os.listdir("/proc/self/fd")
    pool.add("c1")
    for verb in ("CHECK", "STATUS", "GC", "DEL"):
        pool.call(verb, "c1")
    with pytest.raises(InvalidEnvironment):
        pool.add("c2", args=(("IP", "10.1.2.1"),))
    assert os.listdir("/proc/self/fd") == before


# Old files, damage and files of other types


def test_old_file_is_freed_where_nothing_matches_exactly(pool: Pool) -> None:
    pool.put("10.1.2.2", b"c1")
    pool.put("10.1.2.3", b"c1\r\neth0")
    pool.delete("c1")
    assert pool.texts() == {"10.1.2.2": b"c1"}
    pool.delete("c1")
    assert pool.texts() == {}


def test_old_file_counts_as_the_containers_address(pool: Pool) -> None:
    pool.put("10.1.2.5", b"c1\n")
    pool.call("CHECK", "c1")
    with pytest.raises(InvalidEnvironment, match=r"10\.1\.2\.5 has been allocated to c1, duplicate allocation"):
        pool.add("c1")


@pytest.mark.parametrize(
    "text", [b"", b"\0" * 9, b"-x\r\neth0", b"a b", b"c1\r\neth0/x", b"c1\r\nname-that-is-too-long", b"\xff\xfe"]
)
def test_damaged_file_is_free_and_reported(pool: Pool, text: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    pool.put("10.1.2.2", text)
    with Journal("test", stderr_fd=2):
        assert pool.add("c1") == "10.1.2.2"
    assert pool.texts() == {"10.1.2.2": b"c1\r\neth0"}
    assert f"# free: {pool.directory}/10.1.2.2 is" in capfd.readouterr().err


def test_damaged_file_is_given_when_asked_for(pool: Pool) -> None:
    pool.put("10.1.2.4", b"")
    assert pool.add("c1", args=(("IP", "10.1.2.4"),)) == "10.1.2.4"


@pytest.mark.parametrize("text", [b"", b"garbage", b"10.1.2.99", b"fd00::1", b"10.1.2.2\xff"])
def test_damaged_last_reserved_begins_the_round_again(pool: Pool, text: bytes) -> None:
    pool.put("last_reserved_ip.0", text)
    assert pool.add("c1") == "10.1.2.2"
    assert (pool.directory / "last_reserved_ip.0").read_bytes() == b"10.1.2.2"


def test_last_reserved_that_cannot_be_written_costs_no_pod(pool: Pool) -> None:
    pool.put("x", b"")
    (pool.directory / "last_reserved_ip.0").mkdir()
    assert [pool.add("c1"), pool.add("c2")] == ["10.1.2.2", "10.1.2.3"]


def test_strange_things_are_neither_given_nor_touched(pool: Pool) -> None:
    outside = pool.data_dir / "outside"
    outside.write_bytes(b"c1\r\neth0")
    pool.directory.mkdir()
    (pool.directory / "10.1.2.2").mkdir()
    (pool.directory / "10.1.2.3").symlink_to(outside)
    (pool.directory / "10.1.2.4").symlink_to("nowhere")
    os.mkfifo(pool.directory / "10.1.2.5")
    with socket.socket(socket.AF_UNIX) as s:
        directory = os.open(pool.directory, os.O_RDONLY)
        s.bind(f"/proc/self/fd/{directory}/beef")
        os.close(directory)
    before = sorted(p.name for p in pool.directory.iterdir())
    assert pool.add("c1") == "10.1.2.6"
    with pytest.raises(AddressesExhausted):
        pool.add("c2")
    with pytest.raises(NotAvailable):
        pool.call("STATUS", "")
    pool.call("GC", "", **{"cni.dev/valid-attachments": []})
    pool.delete("c1")
    assert sorted(p.name for p in pool.directory.iterdir()) == sorted([*before, "last_reserved_ip.0", "lock"])
    assert outside.read_bytes() == b"c1\r\neth0"


def test_file_whose_name_is_no_address_is_left_alone(pool: Pool) -> None:
    pool.put("10.1.2.2.bak", b"c1\r\neth0")
    pool.put("FD00::1", b"c1\r\neth0")
    pool.delete("c1")
    pool.call("GC", "", **{"cni.dev/valid-attachments": []})
    assert set(pool.texts()) == {"10.1.2.2.bak", "FD00::1"}


@pytest.mark.parametrize(
    "text, owner",
    [
        (b"c1\r\neth0", ("c1", "eth0")),
        (b"c1", ("c1", "")),
        (b"  c1\r\n", ("c1", "")),
        (b"a_b.c-D9\r\n\xc3\xa9th0\n", ("a_b.c-D9", "éth0")),
        (b"x" * 300 + b"\r\neth0", ("x" * 300, "eth0")),
        (b"x" * 5000, None),
        (b"c1\neth0", None),
        (b".c1", None),
        (b"c1\r\n..", None),
    ],
)
def test_owner_of_a_text(text: bytes, owner: tuple[str, str] | None) -> None:
    assert parse_owner(text[:4096]) == owner


# All or nothing


def failing(monkeypatch: pytest.MonkeyPatch, name: str, number: int, only: bytes = b"", count: int = 1) -> None:
    """The system call fails from its first use on (with this text, if given), ``count`` times."""
    real, left = getattr(posix, name), [count]

    def call(*args: Any, **kwargs: Any) -> Any:
        if left[0] and only in (bytes(args[1]) if name == "write" else os.fsencode(args[0])):
            left[0] -= 1
            if name == "write":
                real(args[0], args[1][:1])
            raise OSError(number, os.strerror(number), *args[:1])
        return real(*args, **kwargs)

    monkeypatch.setattr(posix, name, call)


def test_full_disk_leaves_no_partial_reservation(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "write", errno.ENOSPC, b"c1")
    with pytest.raises(IOFailure) as error:
        pool.add("c1")
    assert error.value.code == 5
    assert f"printf 'c1\\r\\neth0' | install -m 600 /dev/stdin {pool.directory}/10.1.2.2" in error.value.msg
    assert pool.texts() == {}
    assert pool.add("c1") == "10.1.2.2"


def test_failure_of_a_later_set_frees_the_earlier_ones(pool: Pool) -> None:
    pool.conf["ipam"] = sets("10.1.2.0/29", "fd00::/126", data_dir=pool.data_dir)
    assert [pool.add("a"), pool.add("b")] == ["10.1.2.2 fd00::2", "10.1.2.3 fd00::3"]
    before = pool.texts()
    with pytest.raises(
        AddressesExhausted, match=r"failed to allocate for range 1: no IP addresses available in range set: fd00::1-fd00::3"
    ):
        pool.add("c")
    assert pool.texts() == before


def test_failure_does_not_free_what_was_there_before(pool: Pool) -> None:
    pool.put("10.1.2.5", b"c1\r\neth0")
    with pytest.raises(InvalidEnvironment):
        pool.add("c1")
    assert pool.texts() == {"10.1.2.5": b"c1\r\neth0"}


def test_del_goes_on_past_a_failure_and_names_what_is_left(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.conf["ipam"] = sets("10.1.2.0/29", "fd00::/126", "10.1.3.0/29", data_dir=pool.data_dir)
    pool.add("c1")
    failing(monkeypatch, "unlink", errno.EIO, b"fd00::2")
    with pytest.raises(IOFailure, match="could not release fd00::2 in"):
        pool.delete("c1")
    assert set(pool.texts()) == {"fd00::2"}
    pool.delete("c1")
    assert pool.texts() == {}


def test_file_that_comes_up_without_the_lock_is_passed_over(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.put("10.1.2.2", b"other\r\neth0")
    monkeypatch.setattr(posix, "listdir", lambda _: [])
    assert pool.add("c1") == "10.1.2.3"


# What may be asked for


@pytest.mark.parametrize(
    "keys",
    [
        {"args": (("IP", "10.1.2.4"),)},
        {"args": (("IP", "10.1.2.4/24"),)},
        {"args": (("IP", "::ffff:10.1.2.4"),)},
        {"args": (("IgnoreUnknown", "tRuE"), ("K8S_POD_NAME", "x"), ("IP", "10.1.2.4"))},
        {"runtimeConfig": {"ips": ["10.1.2.4"]}},
        {"runtimeConfig": {"ips": ["10.1.2.4/29", "10.1.2.4"]}},
        {"runtimeConfig": {"ips": ["::ffff:10.1.2.4/120"]}},
    ],
)
def test_address_that_is_asked_for_is_given(pool: Pool, keys: dict[str, Any]) -> None:
    assert pool.add("c1", **keys) == "10.1.2.4"


def test_address_of_the_configurations_args_is_given(pool: Pool) -> None:
    pool.conf["args"] = {"cni": {"ips": ["10.1.2.4"]}}
    assert pool.add("c1") == "10.1.2.4"


def test_asking_costs_no_look_at_the_other_reservations(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.put("10.1.2.2", b"c2\r\neth0")
    failing(monkeypatch, "listdir", errno.EIO)
    assert pool.add("c1", args=(("IP", "10.1.2.4"),)) == "10.1.2.4"


@pytest.mark.parametrize(
    "keys, error, words",
    [
        ({"args": (("FOO", "bar"), ("MAC", "x"))}, InvalidEnvironment, 'ARGS: unknown args ["FOO=bar" "MAC=x"]'),
        ({"args": (("IgnoreUnknown", "0"), ("FOO", "bar"))}, InvalidEnvironment, 'ARGS: unknown args ["FOO=bar"]'),
        (
            {"args": (("IgnoreUnknown", "T"),)},
            InvalidEnvironment,
            'ARGS: error parsing value of pair "IgnoreUnknown=T": boolean unmarshal error: invalid input t',
        ),
        ({"args": (("IP", "x"),)}, InvalidEnvironment, 'ARGS: error parsing value of pair "IP=x": invalid IP address x'),
        ({"args": (("IP", "10.9.9.9"),)}, InvalidEnvironment, "failed to allocate all requested IPs: 10.9.9.9"),
        (
            {"args": (("IP", "10.1.2.1"),)},
            InvalidEnvironment,
            "failed to allocate for range 0: requested ip 10.1.2.1 is subnet's gateway",
        ),
        ({"runtimeConfig": {"ips": ["10.1.2.4", "10.1.2.5"]}}, InvalidConfig, "failed to allocate all requested IPs: 10.1.2.5"),
        ({"runtimeConfig": {"ips": [""]}}, InvalidConfig, "invalid IP address "),
    ],
)
def test_address_that_cannot_be_given_is_refused(pool: Pool, keys: dict[str, Any], error: type[CniError], words: str) -> None:
    with pytest.raises(error) as refused:
        pool.add("c1", **keys)
    assert refused.value.msg == words
    assert not pool.directory.exists()


def test_address_that_is_taken_is_refused_with_its_owner(pool: Pool) -> None:
    pool.put("10.1.2.4", b"c9\r\nnet1")
    with pytest.raises(AddressesExhausted) as error:
        pool.add("c1", args=(("IP", "10.1.2.4"),))
    assert error.value.msg.endswith("requested IP address 10.1.2.4 is not available in range set 10.1.2.1-10.1.2.6")
    assert "is reserved by c9 net1" in error.value.details


def test_ranges_of_the_capability_come_first(pool: Pool) -> None:
    assert pool.add("c1", runtimeConfig={"ipRanges": [[{"subnet": "10.7.0.0/24"}]]}) == "10.7.0.2 10.1.2.2"


@pytest.mark.parametrize(
    "ipam, words",
    [
        (None, "IPAM config missing 'ipam' key"),
        ({}, "no IP ranges specified"),
        ({"ranges": [[]]}, "invalid range set 0: empty range set"),
        ({"dataDir": "relative"}, '"ipam.dataDir" must be an absolute path'),
        ({"dataDir": "/a/../b"}, '"ipam.dataDir" must be an absolute path'),
        ({"dataDir": "/a\0b"}, '"ipam.dataDir" must be an absolute path'),
        ({"dataDir": "/" + "a/" * 600}, '"ipam.dataDir" must be an absolute path'),
        ({"resolvConf": "/run/a\0"}, '"ipam.resolvConf" must be an absolute path'),
        ({"routes": [{"dst": "0.0.0.0"}]}, '"ipam.routes[0]": invalid CIDR address: 0.0.0.0'),
        ({"routes": [{"dst": "0.0.0.0/0", "gw": "x"}]}, '"ipam.routes[0]": invalid IP address x'),
    ],
)
def test_configuration_that_cannot_be_is_refused(pool: Pool, ipam: dict[str, Any] | None, words: str) -> None:
    if ipam and "ranges" not in ipam:
        ipam = {"ranges": [[{"subnet": "10.1.2.0/29"}]]} | ipam
    with pytest.raises(InvalidConfig) as error:
        pool.add("c1", ipam=ipam)
    assert error.value.msg.startswith(words)


@pytest.mark.parametrize("version, is_refused", [("0.2.0", True), ("0.3.0", False)])
def test_old_versions_have_one_address_per_family(pool: Pool, version: str, is_refused: bool) -> None:
    pool.conf |= {"cniVersion": version, "ipam": sets("10.1.2.0/29", "fd00::/64", "10.1.3.0/29", data_dir=pool.data_dir)}
    if is_refused:
        with pytest.raises(InvalidConfig, match=r"CNI version 0\.2\.0 does not support more than 1 address per family"):
            pool.add("c1")
    else:
        assert pool.add("c1") == "10.1.2.2 fd00::2 10.1.3.2"


# The result


def test_result_has_routes_with_everything_they_say(pool: Pool) -> None:
    route = {"dst": "192.168.0.0/16", "gw": "10.1.2.6", "mtu": 1400, "advmss": 1360, "priority": 7, "table": 99, "scope": 0}
    pool.conf["ipam"]["routes"] = [route, {"dst": "0.0.0.0/0"}]
    result: Result = pool.call("ADD", "c1")
    assert result.as_version("1.1.0") == {
        "cniVersion": "1.1.0",
        "ips": [{"address": "10.1.2.2/29", "gateway": "10.1.2.1"}],
        "routes": [route, {"dst": "0.0.0.0/0"}],
    }


def test_resolv_conf_is_read() -> None:
    servers = "# c\n; c\n nameserver 192.0.2.53 x\nnameserver\t2001:db8::53\nnameserver\n"
    text = f"{servers}search a b\nsearch c\ndomain d\ndomain e f\noptions x y\nfoo bar\n"
    assert resolv_conf.parse(text) == (("192.0.2.53", "2001:db8::53"), "e", ("a", "b", "c"), ("x", "y"))


def test_resolv_conf_that_is_not_there_takes_no_address(pool: Pool) -> None:
    pool.conf["ipam"]["resolvConf"] = str(pool.data_dir / "none")
    with pytest.raises(IOFailure, match="could not read resolvConf"):
        pool.add("c1")
    assert not pool.directory.exists()


# DEL, CHECK, STATUS, GC


@pytest.mark.parametrize("ranges", [[], [[]], [[{"subnet": "rubbish"}]], [[{"subnet": "10.99.0.0/24"}]]])
def test_del_needs_no_valid_ranges_nor_arguments(pool: Pool, ranges: list[Any]) -> None:
    pool.add("c1")
    pool.conf["ipam"]["ranges"] = ranges
    pool.delete("c1", args=(("FOO", "bar"),))
    assert pool.texts() == {}


def test_del_frees_one_attachment_only(pool: Pool) -> None:
    pool.add("c1")
    pool.add("c1", "eth1")
    pool.add("c11")
    pool.delete("c1")
    assert pool.texts() == {"10.1.2.3": b"c1\r\neth1", "10.1.2.4": b"c11\r\neth0"}


def test_check_without_a_reservation_fails(pool: Pool) -> None:
    with pytest.raises(CheckFailed, match="host-local: Failed to find address added by container c1"):
        pool.call("CHECK", "c1")
    assert not pool.directory.exists()


def test_check_compares_with_prev_result(pool: Pool) -> None:
    pool.add("c1")
    pool.put("10.1.2.4", b"c2\r\neth0")
    prev = {"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.2/29"}, {"address": "172.16.0.9/24"}]}
    pool.call("CHECK", "c1", prevResult=prev)
    with pytest.raises(CheckFailed) as error:
        pool.call("CHECK", "c1", prevResult={"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.4/29"}]})
    assert f'expected: c1 eth0 in "{pool.directory}/10.1.2.4", found: c2 eth0' in error.value.details
    with pytest.raises(CheckFailed, match="found: not reserved"):
        pool.call("CHECK", "c1", prevResult={"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.6/29"}]})


def test_check_with_prev_result_reads_no_other_reservation(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.add("c1")
    pool.put("10.1.2.4", b"c2")
    failing(monkeypatch, "listdir", errno.EIO)
    pool.call("CHECK", "c1", prevResult={"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.2/29"}]})
    pool.call("CHECK", "c2", prevResult={"cniVersion": "0.2.0", "ip4": {"ip": "10.1.2.4/29"}})


def test_status_reads_no_reservation_while_addresses_are_left(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(4):
        pool.add(f"c{n}")
    failing(monkeypatch, "open", errno.EIO)
    pool.call("STATUS", "")


def test_status_says_when_no_address_is_left(pool: Pool) -> None:
    pool.call("STATUS", "")
    assert not pool.directory.exists()
    for n in range(5):
        pool.call("STATUS", "")
        pool.add(f"c{n}")
    with pytest.raises(NotAvailable, match=r"no IP addresses available in range set: 10\.1\.2\.1-10\.1\.2\.6") as error:
        pool.call("STATUS", "")
    assert error.value.code == 50
    pool.put("10.1.2.4", b"")
    pool.call("STATUS", "")


def test_status_says_when_ranges_are_invalid(pool: Pool) -> None:
    pool.conf["ipam"]["ranges"] = [[{"subnet": "10.1.2.0/31"}]]
    with pytest.raises(NotAvailable, match="too small"):
        pool.call("STATUS", "")


def test_status_is_well_where_the_ranges_come_with_add(pool: Pool) -> None:
    del pool.conf["ipam"]["ranges"]
    with pytest.raises(NotAvailable, match="no IP ranges specified"):
        pool.call("STATUS", "")
    pool.call("STATUS", "", capabilities={"ipRanges": True})


def test_status_does_not_wait_for_the_lock(pool: Pool) -> None:
    with Store(str(pool.data_dir), "pool", create=True):
        pool.call("STATUS", "")


def test_gc_frees_what_is_not_in_the_list(pool: Pool) -> None:
    pool.put("10.1.2.2", b"c1\r\neth0")
    pool.put("10.1.2.3", b"c1\r\neth1")
    pool.put("10.1.2.4", b"c1")
    pool.put("10.1.2.5", b"c2")
    pool.put("10.1.2.6", b"")
    pool.put("10.77.0.9", b"c3\r\neth0")
    other = Pool(pool.data_dir)
    other.conf["name"] = "other"
    other.add("c3")
    pool.call("GC", "", **{"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth1"}]})
    assert pool.texts() == {"10.1.2.3": b"c1\r\neth1", "10.1.2.4": b"c1"}
    assert (pool.data_dir / "other" / "10.1.2.2").exists()


def test_gc_without_a_list_keeps_what_may_be_alive(pool: Pool) -> None:
    pool.add("c1")
    pool.put("10.1.2.4", b"c2")
    pool.call("GC", "")
    assert set(pool.texts()) == {"10.1.2.2", "10.1.2.4"}


def test_gc_goes_on_past_a_failure(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(3):
        pool.add(f"c{n}")
    failing(monkeypatch, "unlink", errno.EIO)
    with pytest.raises(IOFailure, match="could not release"):
        pool.call("GC", "", **{"cni.dev/valid-attachments": []})
    assert len(pool.texts()) == 1


def test_addresses_of_an_attachment(pool: Pool) -> None:
    pool.conf["ipam"] = sets("10.1.2.0/29", "fd00::/64", data_dir=pool.data_dir)
    pool.add("c1")
    assert set(addresses_of(str(pool.data_dir), "pool", "c1", "eth0")) == {ip_address("10.1.2.2"), ip_address("fd00::2")}
    assert addresses_of(str(pool.data_dir), "pool", "c2", "eth0") == []
    assert addresses_of(str(pool.data_dir), "none", "c2", "eth0") == []


def test_journal_lines_can_be_typed(pool: Pool, capfd: pytest.CaptureFixture[str]) -> None:
    with Journal("test", stderr_fd=2):
        pool.add("c1", "eth%d")
        pool.delete("c1", "eth%d")
    lines = [line.partition("  (")[0] for line in capfd.readouterr().err.splitlines()]
    assert lines == [
        f"mkdir -p -m 755 {pool.directory}",
        f"printf 'c1\\r\\neth%%d' | install -m 600 /dev/stdin {pool.directory}/10.1.2.2",
        f"printf 10.1.2.2 | install -m 600 /dev/stdin {pool.directory}/last_reserved_ip.0",
        f"rm -f {pool.directory}/10.1.2.2",
        "# done",
    ]


# Kept between calls


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read, one after the other."""
    paths: list[str] = []
    real = store._read

    def read(path: str) -> bytes | None:
        paths.append(path.rpartition("/")[2])
        return real(path)

    monkeypatch.setattr(store, "_read", read)
    return paths


@pytest.fixture
def keeping(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Pool:
    """A pool with four reservations in a process that keeps what it read."""
    monkeypatch.setattr(store, "_kept", {})
    for number in range(4):
        pool.add(f"c{number}")
    return pool


def of_others(pool: Pool, monkeypatch: pytest.MonkeyPatch, verb: str, *args: Any, **keys: Any) -> None:
    """A call in another process, which keeps nothing and knows of nothing that is kept."""
    with monkeypatch.context() as patch:
        patch.setattr(store, "_kept", None)
        pool.call(verb, *args, **keys)


def test_what_was_read_once_is_not_read_again(keeping: Pool, reads: list[str]) -> None:
    keeping.add("c9")
    assert reads == ["last_reserved_ip.0"]
    reads.clear()
    keeping.delete("c9")
    assert reads == ["10.1.2.6"]  # a decision hangs on it


def test_a_process_of_one_call_leaves_the_directories_time_alone(pool: Pool, kept: bool) -> None:
    pool.add("c1")
    before = pool.directory.stat().st_mtime_ns
    pool.call("CHECK", "c1")
    pool.delete("c2")
    assert (pool.directory.stat().st_mtime_ns == before) is not kept


def test_what_others_change_is_noticed_at_once(keeping: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes are seen however fast they follow: the kernel's clock for files has a resolution of milliseconds."""
    for number in range(300):
        of_others(keeping, monkeypatch, "DEL", "c3")
        of_others(keeping, monkeypatch, "ADD", f"x{number}", args=(("IP", "10.1.2.5"),))
        with pytest.raises(InvalidEnvironment, match="has been allocated to"):
            keeping.add(f"x{number}")
        keeping.delete(f"x{number}")
        assert "10.1.2.5" not in keeping.texts()
        keeping.call("ADD", "c3", args=(("IP", "10.1.2.5"),))


def test_a_kept_text_that_changed_in_its_file_decides_nothing(keeping: Pool) -> None:
    keeping.put("10.1.2.4", b"")
    keeping.delete("c2")
    assert keeping.texts()["10.1.2.4"] == b""
    assert [keeping.add("c7"), keeping.add("c8")] == ["10.1.2.6", "10.1.2.4"]


def test_a_directory_that_was_recreated_is_read(keeping: Pool) -> None:
    for path in keeping.directory.iterdir():
        path.unlink()
    keeping.directory.rmdir()
    keeping.put("10.1.2.2", b"other\r\neth0")
    assert keeping.add("c1") == "10.1.2.3"


def test_a_file_system_that_knows_whole_seconds_only_keeps_nothing(keeping: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    real = posix.utime
    monkeypatch.setattr(posix, "utime", lambda path, ns: real(path, ns=(ns[0] // 10**9 * 10**9, ns[1] // 10**9 * 10**9)))
    keeping.add("c9")
    assert store._kept == {}


def test_a_directory_whose_time_cannot_be_set_is_read_each_time(keeping: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, ns: tuple[int, int]) -> None:
        raise OSError(errno.EROFS, "Read-only file system", path)

    monkeypatch.setattr(posix, "utime", refuse)
    keeping.delete("c1")
    keeping.add("c1")
    assert store._kept == {}


def test_an_error_leaves_nothing_kept(keeping: Pool) -> None:
    with pytest.raises(InvalidEnvironment):
        keeping.add("c1")
    assert store._kept == {}


def test_directories_that_are_kept_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_kept", {})
    monkeypatch.setattr(store, "_MAX_KEPT", 3)
    for number in range(10):
        Pool(tmp_path / str(number)).add("c1")
        assert len(store._kept or ()) <= 3
