"""The store against a model, killed at every system call, and the plugin given any JSON.

The model knows each address's owner and the position of the round robin; damage, strange files and a lost
lock are steps like all others.
"""

from __future__ import annotations

import fcntl
import os
import posix
import shutil
import signal
import tempfile
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cni_py import config
from cni_py.errors import AddressesExhausted, CheckFailed, CniError, InvalidEnvironment, NotAvailable
from cni_py.ipam import store
from cni_py.plugins.ipam import host_local
from cni_py.spec.call import Call
from support.examples import examples

VERBS: dict[str, Callable[..., Any]] = {
    "ADD": host_local.add,
    "DEL": host_local.delete,
    "CHECK": host_local.check,
    "STATUS": host_local.status,
    "GC": host_local.gc,
}
CONTAINERS = st.sampled_from(["c1", "c2", "c3", "c4"])
IFNAMES = st.sampled_from(["eth0", "eth1"])
RANGES = [
    [
        {"subnet": "10.1.2.0/29"},
        {"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.1", "rangeEnd": "10.9.0.3", "gateway": "10.9.0.2"},
    ]
]
ORDER = [f"10.1.2.{n}" for n in range(2, 7)] + ["10.9.0.1", "10.9.0.3"]
RUBBISH = st.sampled_from([b"", b"\0\0", b"not a reservation", b"c1\r\nin/valid", b"\r\neth0"])


def configuration(data_dir: str, ranges: Any = None) -> dict[str, Any]:
    ipam = {"type": "host-local", "ranges": ranges or RANGES, "dataDir": data_dir}
    return {"name": "pool", "cniVersion": "1.1.0", "ipam": ipam}


def run(verb: str, conf: dict[str, Any], container_id: str = "", ifname: str = "eth0", ip: str = "") -> list[str]:
    """Call the plugin; the addresses of its result."""
    call = Call(verb, "host-local", container_id=container_id, ifname=ifname, args=(("IP", ip),) if ip else (), conf=conf)
    result = VERBS[verb](call, config.parse("HostLocalConfig", conf))
    return [str(each.address.ip) for each in result.ips] if verb == "ADD" else []


class StoreMachine(RuleBasedStateMachine):
    """Each rule does something to the directory and to the model, and compares what came of it."""

    @initialize()
    def begin(self) -> None:
        self.data_dir = tempfile.mkdtemp()
        self.directory = Path(self.data_dir) / "pool"
        self.conf = configuration(self.data_dir)
        self.held: dict[str, tuple[str, str]] = {}
        self.last = ""

    def teardown(self) -> None:
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def of(self, container_id: str, ifname: str) -> list[str]:
        exact = [a for a, owner in self.held.items() if owner == (container_id, ifname)]
        return exact or [a for a, owner in self.held.items() if owner == (container_id, "")]

    def next_free(self) -> str:
        begin = ORDER.index(self.last) + 1 if self.last in ORDER else 0
        return next((a for a in ORDER[begin:] + ORDER[:begin] if a not in self.held), "")

    @rule(container_id=CONTAINERS, ifname=IFNAMES)
    def add(self, container_id: str, ifname: str) -> None:
        expected = self.next_free()
        if self.of(container_id, ifname):
            with pytest.raises(InvalidEnvironment, match="has been allocated to"):
                run("ADD", self.conf, container_id, ifname)
        elif not expected:
            with pytest.raises(AddressesExhausted):
                run("ADD", self.conf, container_id, ifname)
        else:
            assert run("ADD", self.conf, container_id, ifname) == [expected]
            self.held[expected], self.last = (container_id, ifname), expected

    @rule(container_id=CONTAINERS, ifname=IFNAMES, address=st.sampled_from(ORDER))
    def add_by_address(self, container_id: str, ifname: str, address: str) -> None:
        if address in self.held:
            with pytest.raises(AddressesExhausted, match="is not available"):
                run("ADD", self.conf, container_id, ifname, address)
        else:
            assert run("ADD", self.conf, container_id, ifname, address) == [address]
            self.held[address], self.last = (container_id, ifname), address

    @rule(container_id=CONTAINERS, ifname=IFNAMES)
    def delete(self, container_id: str, ifname: str) -> None:
        for address in self.of(container_id, ifname):
            del self.held[address]
        run("DEL", self.conf, container_id, ifname)

    @rule(container_id=CONTAINERS, ifname=IFNAMES)
    def check(self, container_id: str, ifname: str) -> None:
        if self.of(container_id, ifname):
            run("CHECK", self.conf, container_id, ifname)
        else:
            with pytest.raises(CheckFailed):
                run("CHECK", self.conf, container_id, ifname)

    @rule()
    def status(self) -> None:
        if self.next_free():
            run("STATUS", self.conf)
        else:
            with pytest.raises(NotAvailable):
                run("STATUS", self.conf)

    @rule(valid=st.sets(st.tuples(CONTAINERS, IFNAMES)))
    def gc(self, valid: set[tuple[str, str]]) -> None:
        attachments = [{"containerID": c, "ifname": i} for c, i in valid]
        run("GC", self.conf | {"cni.dev/valid-attachments": attachments})
        containers = {c for c, _ in valid}
        self.held = {a: owner for a, owner in self.held.items() if owner in valid or (not owner[1] and owner[0] in containers)}

    @rule(address=st.sampled_from(ORDER), rubbish=RUBBISH)
    def damage(self, address: str, rubbish: bytes) -> None:
        if self.directory.exists():
            (self.directory / address).write_bytes(rubbish)
            self.held.pop(address, None)

    @rule(address=st.sampled_from(ORDER), container_id=CONTAINERS)
    def old_plugin_adds(self, address: str, container_id: str) -> None:
        if self.directory.exists() and address not in self.held:
            (self.directory / address).unlink(missing_ok=True)
            (self.directory / address).write_text(container_id)
            self.held[address] = (container_id, "")

    @rule(text=st.binary(max_size=12))
    def damage_last_reserved(self, text: bytes) -> None:
        if self.directory.exists():
            (self.directory / "last_reserved_ip.0").write_bytes(b"!" + text)
            self.last = ""

    @rule()
    def lose_the_lock(self) -> None:
        (self.directory / "lock").unlink(missing_ok=True)

    @invariant()
    def files_are_as_the_model_says(self) -> None:
        texts = {p.name: p.read_bytes() for p in self.directory.iterdir()} if self.directory.exists() else {}
        owners = {name: store.parse_owner(text) for name, text in texts.items() if name[0].isdigit()}
        assert {name: owner for name, owner in owners.items() if owner} == self.held
        for address, (container_id, ifname) in self.held.items():
            assert texts[address].decode() == container_id + (f"\r\n{ifname}" if ifname else "")


class KeepingMachine(StoreMachine):
    """Run the same in a process that caches what it read."""

    def __init__(self) -> None:
        super().__init__()
        store.keep_between_calls()

    def teardown(self) -> None:
        store._kept = None
        super().teardown()


TestStore, TestKeepingStore = StoreMachine.TestCase, KeepingMachine.TestCase
TestStore.settings = TestKeepingStore.settings = settings(max_examples=examples(20), stateful_step_count=30, deadline=None)


# Killed at every system call

SYSTEM_CALLS = ("stat", "lstat", "mkdir", "open", "read", "write", "close", "unlink", "rename", "listdir")


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Do the work in a process that kills itself instead of making its n-th system call; whether it came so far."""
    child = os.fork()
    if not child:
        left = [number]

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return call

        for name in SYSTEM_CALLS:
            setattr(posix, name, counted(getattr(posix, name)))
        fcntl.flock = counted(fcntl.flock)  # type: ignore[assignment]
        try:
            work()
        except CniError:
            pass
        except BaseException:  # noqa: BLE001 — the parent asks for the status
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


DUAL = [[{"subnet": "10.1.2.0/29"}], [{"subnet": "fd00::/125"}]]
POOL = {f"10.1.2.{n}" for n in range(2, 7)} | {f"fd00::{n}" for n in range(2, 8)}
BYSTANDERS = {"10.1.2.3": b"other\r\neth0", "fd00::3": b"c1\r\neth9"}
VICTIM = ("c1", "eth0")
SITUATIONS: dict[str, dict[str, bytes]] = {
    "no directory": {},
    "others are there": BYSTANDERS,
    "damaged files in the way": BYSTANDERS
    | {"10.1.2.4": b"", "fd00::4": b"??", "last_reserved_ip.0": b"10.1.2.3", "last_reserved_ip.1": b""},
    "the second set is full": BYSTANDERS | {f"fd00::{n}": b"full\r\neth0" for n in (2, 4, 5, 6, 7)},
    "it has addresses": BYSTANDERS | {"10.1.2.4": b"c1\r\neth0", "fd00::4": b"c1\r\neth0", "lock": b""},
    "it has an old file": BYSTANDERS | {"10.1.2.4": b"c1"},
}


def reservations(directory: Path) -> dict[str, tuple[str, str]]:
    texts = {p.name: p.read_bytes() for p in directory.iterdir()} if directory.exists() else {}
    owners = {name: store.parse_owner(text) for name, text in texts.items() if name in POOL}
    return {name: owner for name, owner in owners.items() if owner}


def add_until_full(conf: dict[str, Any], directory: Path) -> None:
    """Every free address can be allocated, once; reserved ones never are."""
    before = reservations(directory)
    for address in sorted(POOL - set(before)):
        family = 0 if "." in address else 1
        one = configuration(conf["ipam"]["dataDir"], [DUAL[family]])
        given_ = run("ADD", one, f"new-{address.replace(':', '-')}")
        assert given_[0] not in before
    assert set(reservations(directory)) == POOL
    assert {a: o for a, o in reservations(directory).items() if a in before} == before


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forking beside pytest-timeout's thread
@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("verb", ["ADD", "ADD by address", "DEL", "GC"])
def test_killed_at_any_system_call_nothing_is_lost(tmp_path: Path, situation: str, verb: str) -> None:
    number, was_killed = 0, True
    while was_killed:
        number += 1
        data_dir = tmp_path / str(number)
        directory = data_dir / "pool"
        if SITUATIONS[situation]:
            directory.mkdir(parents=True)
        for name, text in SITUATIONS[situation].items():
            (directory / name).write_bytes(text)
        conf = configuration(str(data_dir), DUAL)
        others = {a: o for a, o in reservations(directory).items() if o not in (VICTIM, ("c1", ""))}
        work = {
            "ADD": lambda c=conf: run("ADD", c, *VICTIM),
            "ADD by address": lambda c=conf: run("ADD", c, *VICTIM, ip="10.1.2.6"),
            "DEL": lambda c=conf: run("DEL", c, *VICTIM),
            "GC": lambda c=conf: run("GC", c | {"cni.dev/valid-attachments": VALID}),
        }
        was_killed = killed_at(number, work[verb])
        after = reservations(directory)
        assert {a: o for a, o in after.items() if o not in (VICTIM, ("c1", ""))} == others

        run("ADD", configuration(str(data_dir), DUAL[:1]), "next")
        run("DEL", conf, *VICTIM)
        run("DEL", conf, *VICTIM)
        assert {a: o for a, o in reservations(directory).items() if o[0] != "next"} == others
        add_until_full(conf, directory)
    assert number > 1


VALID = [
    {"containerID": "other", "ifname": "eth0"},
    {"containerID": "full", "ifname": "eth0"},
    {"containerID": "c1", "ifname": "eth9"},
]


# Many at once


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_many_processes_at_once_give_no_address_twice(tmp_path: Path) -> None:
    conf = configuration(str(tmp_path), [[{"subnet": "10.1.2.0/24"}]])
    children = []
    for child in range(10):
        pid = os.fork()
        if not pid:
            try:
                for n in range(20):
                    run("ADD", conf, f"c{child}-{n}")
                    if n % 2:
                        run("DEL", conf, f"c{child}-{n}")
            except BaseException:  # noqa: BLE001 — the parent asks for the status
                os._exit(1)
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 10
    owners = [p.read_bytes() for p in (tmp_path / "pool").iterdir() if p.name[0].isdigit()]
    assert len(owners) == len(set(owners)) == 100


# Any JSON

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6
)
ADDRESS = st.sampled_from(["10.1.2.0", "10.1.2.7", "::ffff:10.1.2.9", "fd00::5", "fe80::1%eth0", "x", ""]) | st.text(max_size=8)
ADDRESS_TEXT = ADDRESS | st.builds(str, st.builds(IPv4Address, st.integers(0, 2**32 - 1)))
CIDR = st.builds("{}/{}".format, ADDRESS_TEXT, st.integers(-1, 130)) | st.sampled_from(
    ["10.1.2.0/24", "fd00::/64", "10.0.0.0/8"]
)


def like(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what is expected, sometimes anything."""
    return st.integers(0, 9).flatmap(lambda n: JSON if n == 0 else strategy)


def members(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return like(st.fixed_dictionaries({}, optional={name: like(value) for name, value in values.items()}))


RANGE = {"subnet": CIDR, "rangeStart": ADDRESS_TEXT, "rangeEnd": ADDRESS_TEXT, "gateway": ADDRESS_TEXT}
RANGE_SETS = st.lists(like(st.lists(members(**RANGE) | st.just({"subnet": "10.1.2.0/24"}), max_size=3)), max_size=3)
NUMBERS = {name: st.integers(-1, 2**33) for name in ("mtu", "advmss", "priority", "table", "scope")}
IPAM = members(
    **RANGE,
    type=st.just("host-local"),
    ranges=RANGE_SETS,
    routes=st.lists(members(dst=CIDR, gw=ADDRESS_TEXT, **NUMBERS), max_size=2),
    dataDir=st.sampled_from(["", "relative", "/a/../b", "/a\0b", "/\ud800"]),
    resolvConf=st.sampled_from(["", "/dev/zero", "/etc/hostname", "/proc", "/none", "relative", "/a\0"]),
)
IPS = st.lists(ADDRESS_TEXT | CIDR, max_size=3)
CONFIGURATIONS = st.fixed_dictionaries(
    {"name": st.just("pool"), "cniVersion": st.sampled_from(["0.2.0", "0.4.0", "1.1.0"])},
    optional={
        "ipam": IPAM,
        "args": members(cni=members(ips=IPS)),
        "runtimeConfig": members(ips=IPS, ipRanges=RANGE_SETS),
        "prevResult": members(cniVersion=st.just("1.0.0"), ips=st.lists(members(address=CIDR), max_size=2)),
        "capabilities": members(ipRanges=st.booleans()),
        "cni.dev/valid-attachments": like(
            st.lists(members(containerID=st.text(max_size=3), ifname=st.text(max_size=3)), max_size=2)
        ),
    },
)
ARGS = st.lists(
    st.tuples(st.sampled_from(["IP", "IgnoreUnknown", "MAC", "x"]), ADDRESS_TEXT | CIDR | st.sampled_from(["1", "true"])),
    max_size=3,
)


@settings(
    max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(conf=CONFIGURATIONS, args=ARGS)
def test_any_configuration_gives_a_result_or_a_cni_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conf: dict[str, Any], args: list[tuple[str, str]]
) -> None:
    def here(_: str, network: str, create: bool = False) -> store.Store:
        return store.Store(str(tmp_path), network, create)

    monkeypatch.setattr(host_local, "Store", here)  # whatever dataDir is, nothing is done there
    for verb in ("ADD", "CHECK", "STATUS", "GC", "DEL"):
        call = Call(verb, "host-local", container_id="c1", ifname="eth0", args=tuple(args), conf=conf)
        try:
            result = VERBS[verb](call, config.parse("HostLocalConfig", conf))
            if result is not None:
                result.as_version(call.cni_version)
        except CniError as error:
            assert error.msg  # noqa: PT017 — most are refused, not all
