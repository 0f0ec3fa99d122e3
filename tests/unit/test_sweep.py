"""Decisions of a sweep from leftovers and liveness; and the texts that both are parsed from."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni_py.attachment import record as attachments
from cni_py.cli import main as cli
from cni_py.errors import KernelRefused
from cni_py.journal import Journal
from cni_py.packetfilter.iptables import Iptables
from cni_py.packetfilter.ownership import Owner, network_hash
from cni_py.spec.call import Call
from cni_py.sweep import file_leftovers, leftovers, liveness, netns_scan, remove, stale, sweep
from cni_py.sweep.kernel_leftovers import jump
from cni_py.sweep.leftovers import ADDRESS, CACHED, CHAIN, ELEMENT, RECORD, SAVED, Leftover
from cni_py.sweep.liveness import Liveness
from cni_py.sweep.proc_walk import container_words
from cni_py.sweep.report import Finding, Report, age_text

NOW = 1_800_000_000.0
POD = bytes([10, 1, 0, 2])
HOST, ALIVE, GONE = 1, 0xF0000001, 0xF0000002  # inodes of namespaces
NOTHING = Liveness(namespaces={HOST: "the host"}, own=HOST)


def leftover(kind: str, age: float | None = 1000.0, **keys: Any) -> Leftover:
    stamp = None if age is None else (int((NOW - age) * 1e9), 1, 1)
    usual = {"container_id": "c1", "ifname": "eth0", "network": "net", "path": f"/{kind}"}
    keys = usual | {"stamp": stamp} | keys
    return Leftover(kind=kind, what=str(keys["path"]), hashed=network_hash(str(keys["network"])), **keys)


def reservation(age: float | None = 1000.0, **keys: Any) -> Leftover:
    return leftover(ADDRESS, age, **({"address": POD} | keys))


def element(**keys: Any) -> Leftover:
    """Return an element as it is read: its comment has only a hash of the network."""
    read: dict[str, Any] = {"address": POD, "key": Owner("c1", "eth0", "net").comment()} | keys
    return leftover(ELEMENT, None, **read).replace(network="")


def record(age: float | None = 1000.0, **keys: Any) -> Leftover:
    return leftover(RECORD, age, **({"netns": "/run/netns/c1", "inode": GONE} | keys))


def outcomes(found: list[Leftover], live: Liveness = NOTHING, calling: Call | None = None) -> list[str]:
    return sorted(finding.outcome for finding in stale.find_stale(found, live, NOW, 300, calling))


# --- dead -------------------------------------------------------------------------------------------------------------


def test_nothing_speaks_for_it() -> None:
    found = [record(), leftover(SAVED, ifname=""), reservation(), element()]
    findings = stale.find_stale(found, NOTHING, NOW, 300)
    assert {finding.outcome for finding in findings} == {"would be removed"}
    assert {finding.network for finding in findings} == {"net"}
    why = next(finding.why for finding in findings if finding.leftover.kind == ADDRESS)
    assert why == "10.1.0.2 is on no interface of any of 1 live namespace; recorded namespace /run/netns/c1 no longer exists"


def test_nothing_is_known_of_an_element_but_its_comment() -> None:
    (finding,) = stale.find_stale([element(address=b"")], NOTHING, NOW, 300)
    assert (finding.outcome, finding.age_seconds) == ("would be removed", None)
    assert finding.network == f"({network_hash('net')})"
    assert finding.why == "nothing of it exists in any of 1 live namespace"


def test_damaged_reservation_is_nobodys() -> None:
    (finding,) = stale.find_stale([reservation(container_id="", ifname="")], NOTHING, NOW, 300)
    assert finding.outcome == "would be removed"
    assert "names no owner" in finding.why


def test_number_of_a_namespace_that_was_given_again() -> None:
    live = NOTHING.replace(namespaces={HOST: "the host", GONE: "/run/netns/other"})
    assert outcomes([record(), reservation()], live) == ["would be removed"] * 2
    other = record(container_id="c2", netns="/run/netns/other")
    there = live.replace(sandboxes={"/run/netns/other": GONE, "/run/netns/c1": 0})
    assert outcomes([record(), other], there) == ["would be removed"]


def test_cached_result_is_reported() -> None:
    assert outcomes([leftover(CACHED, netns="/run/netns/c1")]) == ["reported"]


# --- alive ------------------------------------------------------------------------------------------------------------

SIGNS: dict[str, tuple[list[Leftover], Liveness]] = {
    "address": ([], NOTHING.replace(addresses={POD: "/run/netns/c1"})),
    "address of another leftover": ([reservation(address=b"\1\2\3\4")], NOTHING.replace(addresses={b"\1\2\3\4": "x"})),
    "host end": ([], NOTHING.replace(marks=frozenset({"c1:eth0:net"}))),
    "record": ([record()], NOTHING.replace(sandboxes={"/run/netns/c1": GONE})),
    "record, in another mount namespace": ([record()], NOTHING.replace(mount_points={"/run/netns/c1": {5, GONE}})),
    "record that cannot be checked": ([record()], NOTHING.replace(sandboxes={"/run/netns/c1": None})),
    "record of the host itself": ([record(inode=HOST)], NOTHING.replace(sandboxes={"/run/netns/c1": HOST})),
    "cached result": ([leftover(CACHED, netns="/run/netns/c1")], NOTHING.replace(sandboxes={"/run/netns/c1": ALIVE})),
    "cached result by /var/run": (
        [leftover(CACHED, netns="/var/run/netns/c1")],
        NOTHING.replace(mount_points={"/run/netns/c1": {ALIVE}}),
    ),
    "container": ([], NOTHING.replace(containers=frozenset({"c1"}))),
    "call": ([], NOTHING.replace(calls=frozenset({("c1", "eth0")}))),
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNS)
def test_one_sign_of_life_is_enough_for_all_of_an_attachment(name: str) -> None:
    more, live = SIGNS[name]
    assert outcomes([reservation(), leftover(SAVED, ifname=""), element(), *more], live) == []


def test_record_without_addresses_lives_by_its_number() -> None:
    live = NOTHING.replace(namespaces={HOST: "the host", GONE: "/proc/4711/ns/net"})
    assert outcomes([record(), leftover(SAVED, ifname="")], live) == []


@pytest.mark.parametrize(
    "other", [{"container_id": "c2"}, {"network": "other"}, {"ifname": "eth1"}], ids=["container", "network", "interface"]
)
def test_life_of_another_attachment_is_no_life(other: dict[str, str]) -> None:
    living = reservation(address=b"\1\2\3\4", **other)
    mark = f"{living.container_id}:{living.ifname}:{living.network}"
    live = NOTHING.replace(addresses={b"\1\2\3\4": "x"}, marks=frozenset({mark}))
    assert outcomes([living, reservation()], live) == ["would be removed"]


def test_file_that_names_no_interface_lives_with_any() -> None:
    living = reservation(ifname="eth1", address=b"\1\2\3\4")
    assert outcomes([living, leftover(SAVED, ifname="")], NOTHING.replace(addresses={b"\1\2\3\4": "x"})) == []


@pytest.mark.parametrize(("id_length", "network_length"), [(64, 200), (100, 200), (121, 120), (200, 200), (73, 3)])
def test_host_end_with_a_cut_mark(id_length: int, network_length: int) -> None:
    owner = Owner("a" * id_length, "i" * 15, "n" * network_length)
    live = NOTHING.replace(marks=frozenset({attachments.mark_of(owner.container_id, owner.ifname, owner.network)}))
    short, ifname, _ = owner.comment().split(" ")
    assert outcomes([element(container_id=short, ifname=ifname, network=owner.network, address=b"")], live) == []
    assert outcomes([reservation(container_id=owner.container_id, ifname=ifname, network=owner.network)], live) == []


def test_namespace_of_the_host_is_no_life_of_a_cached_result() -> None:
    """/proc/4711/ns/net: the number may be another process's by now."""
    live = NOTHING.replace(sandboxes={"/proc/4711/ns/net": HOST})
    assert outcomes([leftover(CACHED, netns="/proc/4711/ns/net"), reservation()], live) == ["reported", "would be removed"]


def test_what_has_the_name_of_an_attachment_that_is_being_made_is_no_life() -> None:
    call = Call("ADD", "bridge", "c1", "/run/netns/c1", "eth0", conf={"name": "net"})
    found = [reservation(), leftover(CACHED, netns="/run/netns/c1")]
    live = NOTHING.replace(sandboxes={"/run/netns/c1": ALIVE}, calls=frozenset({("c1", "eth0")}))
    assert outcomes(found, live) == []
    assert outcomes(found, live, call) == ["reported", "would be removed"]
    assert outcomes(found, live.replace(addresses={POD: "x"}), call) == []


# --- kept -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("age", [0.0, 299.9, -1.0, -1e9])
def test_youngest_file_speaks_for_all(age: float) -> None:
    assert outcomes([reservation(), leftover(SAVED, age, ifname=""), element()]) == ["kept"] * 3


def test_unknown_liveness_frees_nothing() -> None:
    (finding,) = stale.find_stale([reservation()], NOTHING.replace(missing=("a reason",)), NOW, 300)
    assert finding.outcome == "kept"
    assert finding.why.endswith("kept: liveness unknown: a reason")


def test_addresses_of_another_ipam_plugin_stand_nowhere() -> None:
    blind = leftover(SAVED, ifname="", is_blind=True)
    assert outcomes([blind]) == ["kept"]
    assert outcomes([blind, record()]) == ["would be removed"] * 2


# --- removal ----------------------------------------------------------------------------------------------------------


def test_file_that_was_rewritten_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "c1"
    path.write_text("old")
    stamp = leftovers.stamp_of(str(path))
    assert stamp
    other = tmp_path / "other"
    other.write_text("new")
    os.replace(other, path)
    assert not remove.remove_if_same(str(path), stamp)
    assert path.read_text() == "new"
    newer = leftovers.stamp_of(str(path))
    assert newer
    assert remove.remove_if_same(str(path), newer)
    assert list(tmp_path.iterdir()) == []
    assert not remove.remove_if_same(str(path), newer)


def test_file_that_comes_between_look_and_removal_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c1"
    path.write_text("old")
    stamp = leftovers.stamp_of(str(path))
    assert stamp
    path.write_text("of a newer ADD")
    looks = [stamp]
    monkeypatch.setattr(remove, "stamp_of", lambda path: looks.pop() if looks else leftovers.stamp_of(path))
    assert not remove.remove_if_same(str(path), stamp)
    assert path.read_text() == "of a newer ADD"
    assert [file.name for file in tmp_path.iterdir()] == ["c1"]


def test_removed_one_place_after_the_other_and_past_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def take(some: Any, _: Any) -> list[Leftover]:
        order.append(some[0].kind)
        if some[0].kind == ELEMENT:
            raise KernelRefused("no")
        return list(some)

    monkeypatch.setattr(remove, "_REMOVE", dict.fromkeys(remove._REMOVE, take))
    monkeypatch.setattr(remove, "retire", order.append)
    found = [record(path="/x/c1:eth0:net"), leftover(SAVED), reservation(), leftover(CHAIN), element()]
    removed = remove.remove(stale.find_stale(found, NOTHING, NOW, 300), found)
    assert order == [ELEMENT, CHAIN, ADDRESS, SAVED, RECORD, "c1:eth0:net"]
    assert sorted(finding.outcome for finding in removed) == ["failed", "removed", "removed", "removed", "removed"]
    report = Report(tuple(removed))
    assert not report.is_complete
    assert [finding.leftover.kind for finding in report.failed] == [ELEMENT]


def no_file(title: str, _name: str) -> Journal:
    return Journal(title)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directories of state below a directory, and nothing alive."""
    monkeypatch.setattr(attachments, "directories", lambda: [str(tmp_path / "records")])
    monkeypatch.setattr(file_leftovers, "CACHE_DIR", str(tmp_path / "results"))
    monkeypatch.setattr(sweep, "Journal", no_file)
    monkeypatch.setattr(liveness, "collect", lambda *_: NOTHING)
    (tmp_path / "networks" / "net").mkdir(parents=True)
    return tmp_path


def run(node: Path, **keys: Any) -> Report:
    places = file_leftovers.Places(frozenset({(str(node / "networks"), "")}), frozenset({str(node / "flannel")}))
    return sweep.run(places=places, with_kernel=False, **keys)


def test_stale_in_one_check_only_is_not_removed(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = node / "networks" / "net" / "10.1.0.2"
    file.write_text("c1\r\neth0")
    looks = [NOTHING.replace(addresses={POD: "came between"}), NOTHING]
    monkeypatch.setattr(liveness, "collect", lambda *_: looks.pop())
    report = run(node, grace_seconds=0)
    assert report.findings == ()
    assert looks == []
    assert file.exists()


def test_reservation_that_came_back_meanwhile_is_left(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another pod has the address now, which the sweep sees under the store's lock."""
    file = node / "networks" / "net" / "10.1.0.2"
    file.write_text("c1\r\neth0")

    def look(*_: Any) -> Liveness:
        file.unlink()
        file.write_text("c22\r\neth0")
        return NOTHING

    monkeypatch.setattr(liveness, "collect", look)
    (finding,) = run(node, grace_seconds=0).findings
    assert finding.outcome == "kept"
    assert file.read_bytes() == b"c22\r\neth0"


def test_deadline_that_has_passed_frees_nothing(node: Path) -> None:
    file = node / "networks" / "net" / "10.1.0.2"
    file.write_text("c1\r\neth0")
    report = run(node, grace_seconds=0, deadline=time.thread_time() - 1)
    assert report.missing == ("not enough time to read all leftovers",)
    assert file.exists()


def test_unreadable_state_leaves_liveness_unknown(node: Path) -> None:
    (node / "networks" / "net" / "10.1.0.2").write_text("c1\r\neth0")
    (node / "flannel").write_text("a file where a directory should be")
    report = run(node, grace_seconds=0)
    assert [finding.outcome for finding in report.findings] == ["kept"]
    assert "flannel" in report.missing[0]
    assert not report.is_complete


# --- reading ----------------------------------------------------------------------------------------------------------


def test_container_words() -> None:
    text = (
        "12:pids:/kubepods.slice/kubepods-pod1.slice/cri-containerd-3f2c.scope\n"
        "0::/machine.slice/libpod-aa11.scope/container\n1:name=systemd:/docker/77\n"
    )
    words = container_words(text)
    assert {"3f2c", "aa11", "77", "libpod-aa11"} <= words
    assert not {"", "cri", "f2c", "scope"} & words


MOUNTINFO = b"""\
36 35 0:4 net:[4026532281] /run/netns/a\\040b rw shared:1 - nsfs nsfs rw
37 35 0:4 mnt:[4026532282] /run/m rw - nsfs nsfs rw
38 35 0:5 /net:[1] /x rw - tmpfs tmpfs rw
39 35 0:4 / /y rw - nsfs nsfs rw
"""


def test_mountinfo() -> None:
    assert list(netns_scan.nsfs_mounts(MOUNTINFO)) == [("net", 4026532281, "/run/netns/a b"), ("mnt", 4026532282, "/run/m")]
    assert list(netns_scan.nsfs_mounts(b"")) == []


def test_copies_of_a_mount_are_passed_over() -> None:
    live: dict[bytes, int] = {}
    assert len([mount for _ in range(100) for mount in netns_scan.nsfs_mounts(MOUNTINFO, live)]) == 2 * netns_scan._COPIES


JUMP = '-A POSTROUTING -s 10.1.0.2/32 -m comment --comment "name: \\"net\\" id: \\"c1\\"" -j {}'


def test_jump_to_a_masquerade_chain() -> None:
    chain = Owner("c1", "", "net").go_chain()
    found = jump(JUMP.format(chain), Iptables(4))
    assert found
    assert (found.container_id, found.network, found.address, found.path) == ("c1", "net", POD, chain)


@pytest.mark.parametrize(
    "line",
    [
        JUMP.format("CNI-0123456789abcdef01234567"),
        JUMP.format("RETURN"),
        JUMP.format(Owner("c1", "", "net").go_chain()).replace("net", "other"),
        f"-A POSTROUTING -s 10.1.0.2/32 -j {Owner('c1', '', 'net').go_chain()}",
        "-A POSTROUTING -j MASQUERADE",
        "",
    ],
)
def test_jump_that_is_not_certainly_an_attachments(line: str) -> None:
    assert jump(line, Iptables(4)) is None


def test_places_of_configurations() -> None:
    plugins: list[dict[str, Any]] = [
        {"type": "flannel", "dataDir": "/a/", "ipam": {"dataDir": "/b"}},
        {"type": "bridge", "ipam": {"type": "host-local", "dataDir": "/c"}},
        {"type": "bridge", "ipam": {"type": "dhcp", "dataDir": "/not"}},
        {"type": "bridge", "ipam": "rubbish", "dataDir": "/not"},
        {"type": "flannel", "dataDir": 7, "ipam": {"dataDir": ["x"]}},
        {"type": "flannel", "dataDir": "relative"},
    ]
    places = file_leftovers.places_of(plugins, "net") | file_leftovers.Places()
    assert places.data == {(file_leftovers.DATA_DIR, ""), ("/b", "net"), ("/c", "net")}
    assert places.flannel == {file_leftovers.FLANNEL_DIR, "/a"}


@pytest.mark.parametrize("data_dir", ["relative", "/x/../etc", "/x\n", ""])
def test_paths_that_the_plugins_would_refuse_are_not_looked_at(data_dir: str) -> None:
    assert file_leftovers.network_directories(data_dir, "net", None) == []


def test_only_names_of_networks_are_directories_of_reservations(tmp_path: Path) -> None:
    for name in ("net", "-x", ".hidden", "other"):
        (tmp_path / name).mkdir()
    assert file_leftovers.network_directories(str(tmp_path), "", None) == [f"{tmp_path}/net", f"{tmp_path}/other"]
    assert file_leftovers.network_directories(str(tmp_path), "", ["other"]) == [f"{tmp_path}/other"]


def test_reservations_are_regular_files_named_as_addresses(tmp_path: Path) -> None:
    directory = tmp_path / "net"
    directory.mkdir()
    for name in ("10.1.0.2", "fd00::2", "010.1.0.3", "last_reserved_ip.0", "lock", "10.1.0.999", "fd00:0::3"):
        (directory / name).write_text("c1\r\neth0")
    (directory / "10.1.0.4").symlink_to("/etc/hostname")
    (directory / "10.1.0.5").mkdir()
    found = list(file_leftovers.reservations(str(directory)))
    assert sorted(one.path.rpartition("/")[2] for one in found) == ["10.1.0.2", "fd00::2"]
    assert {(one.container_id, one.ifname, one.network) for one in found} == {("c1", "eth0", "net")}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"name": 7, "ipam": 8}', '{"name": "../x", "ipam": {"dataDir": 9}}', "\udcff"]
)
def test_rubbish_of_every_kind_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    data = text.encode(errors="surrogateescape")
    monkeypatch.setattr(attachments, "directories", lambda: [str(tmp_path)])
    monkeypatch.setattr(file_leftovers, "CACHE_DIR", str(tmp_path))
    for name in ("c1", "c1:eth1", "c2:eth0:net", "../x", ":", "::"):
        if "/" not in name:
            (tmp_path / name).write_bytes(data)
    assert {one.container_id for one, _ in file_leftovers.saved(str(tmp_path))} == {"c1", "c2"}
    assert ("c2", "eth0", "net") in {(t.container_id, t.ifname, t.network) for t in file_leftovers.records()}
    assert list(file_leftovers.cached()) == []


# --- liveness ---------------------------------------------------------------------------------------------------------


def test_liveness_of_this_machine_knows_our_own_namespace() -> None:
    live = liveness.collect(["/proc/self/ns/net", "/nowhere", "/etc/hostname", "/etc/hostname/x"])
    assert live.own == os.stat("/proc/self/ns/net").st_ino
    assert live.sandboxes == {"/proc/self/ns/net": live.own, "/nowhere": 0, "/etc/hostname": 0, "/etc/hostname/x": 0}
    assert live.own in live.namespaces


def test_no_time_makes_it_incomplete() -> None:
    assert "not enough time to check everything" in liveness.collect([], time.thread_time() - 1).missing


# --- shown ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (-5, "future"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172800, "2 d"), (1e6, "11 d")],
)
def test_age_text(seconds: float | None, text: str) -> None:
    assert age_text(seconds) == text


def test_report_as_text_and_json() -> None:
    report = Report((Finding(reservation(), "net", 400.0, "why", "removed"),), 3, 2, (), False)
    assert list(report.lines()) == [
        "removed: container c1, eth0, network net, age 6 min",
        "    address  /address",
        "    why: why",
        "1 removed; 2 live attachments in 3 namespaces, including the host's",
    ]
    assert json.loads(json.dumps(report.as_json()))["findings"][0]["containerID"] == "c1"
    assert list(Report().lines()) == ["no leaked resources found"]
    assert list(Report(missing=("a reason",)).lines()) == ["unknown whether resources are leaked"]


def test_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[Any, ...]] = []
    answers: list[Report] = [Report(), Report(missing=("a reason",))]

    def answer(*args: Any, **_: Any) -> Report:
        asked.append(args)
        return answers.pop(0)

    monkeypatch.setattr(sweep, "run", answer)
    for name in ("a", "b"):
        (tmp_path / f"{name}.conf").write_text(json.dumps({"name": name, "type": "bridge"}))
    command: Callable[..., int] = lambda *argv: cli.main(["sweep", "--netconf-path", str(tmp_path), *argv])  # noqa: E731
    assert command() == 0
    assert command("--dry-run", "--grace", "1.5", "--network", "a", "--network", "b", "--json") == 3
    assert asked == [(300.0, False, None), (1.5, True, ["a", "b"])]
    captured = capsys.readouterr()
    assert captured.out.startswith("no leaked resources found\n{")
    assert captured.err == "cni-py: nothing was removed, because live pods could not all be identified:\n  a reason\n"


@pytest.mark.parametrize("seconds", ["-1", "x", "inf", "nan", ""])
def test_grace_is_a_number_of_seconds(seconds: str) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["sweep", f"--grace={seconds}"])
    assert leaving.value.code == 2
