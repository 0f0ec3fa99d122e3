"""What a sweep decides from traces and evidence; and the texts that both are read from."""

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
from cni_py.sweep import leftovers, liveness, netns_scan, remove, stale, sweep
from cni_py.sweep.leftovers import ADDRESS, CACHED, CHAIN, ELEMENT, RECORD, SAVED, Trace
from cni_py.sweep.liveness import Evidence, container_words
from cni_py.sweep.report import Finding, Report, age_text

NOW = 1_800_000_000.0
POD = bytes([10, 1, 0, 2])
HOST, ALIVE, GONE = 1, 0xF0000001, 0xF0000002  # inodes of namespaces
NOTHING = Evidence(namespaces={HOST: "the host"}, own=HOST)


def trace(kind: str, age: float | None = 1000.0, **keys: Any) -> Trace:
    stamp = None if age is None else (int((NOW - age) * 1e9), 1, 1)
    usual = {"container_id": "c1", "ifname": "eth0", "network": "net", "path": f"/{kind}"}
    keys = usual | {"stamp": stamp} | keys
    return Trace(kind=kind, what=str(keys["path"]), hashed=network_hash(str(keys["network"])), **keys)


def reservation(age: float | None = 1000.0, **keys: Any) -> Trace:
    return trace(ADDRESS, age, **({"address": POD} | keys))


def element(**keys: Any) -> Trace:
    """As it is read: of the network it knows the hash alone."""
    read: dict[str, Any] = {"address": POD, "key": Owner("c1", "eth0", "net").comment()} | keys
    return trace(ELEMENT, None, **read).replace(network="")


def record(age: float | None = 1000.0, **keys: Any) -> Trace:
    return trace(RECORD, age, **({"netns": "/run/netns/c1", "inode": GONE} | keys))


def fates(found: list[Trace], seen: Evidence = NOTHING, calling: Call | None = None) -> list[str]:
    return sorted(finding.fate for finding in stale.decide(found, seen, NOW, 300, calling))


# --- dead -------------------------------------------------------------------------------------------------------------


def test_nothing_speaks_for_it() -> None:
    found = [record(), trace(SAVED, ifname=""), reservation(), element()]
    findings = stale.decide(found, NOTHING, NOW, 300)
    assert {finding.fate for finding in findings} == {"would be freed"}
    assert {finding.network for finding in findings} == {"net"}
    why = next(finding.why for finding in findings if finding.trace.kind == ADDRESS)
    assert why == "10.1.0.2 is on no interface of any of 1 live namespaces; recorded namespace /run/netns/c1 has gone"


def test_nothing_is_known_of_an_element_but_its_comment() -> None:
    (finding,) = stale.decide([element(address=b"")], NOTHING, NOW, 300)
    assert (finding.fate, finding.age_seconds) == ("would be freed", None)
    assert finding.network == f"({network_hash('net')})"
    assert finding.why == "nothing of it is in any of 1 live namespaces"


def test_damaged_reservation_is_nobodys() -> None:
    (finding,) = stale.decide([reservation(container_id="", ifname="")], NOTHING, NOW, 300)
    assert finding.fate == "would be freed"
    assert "nobody's" in finding.why


def test_number_of_a_namespace_that_was_given_again() -> None:
    seen = NOTHING.replace(namespaces={HOST: "the host", GONE: "/run/netns/other"})
    assert fates([record(), reservation()], seen) == ["would be freed"] * 2
    other = record(container_id="c2", netns="/run/netns/other")
    there = seen.replace(sandboxes={"/run/netns/other": GONE, "/run/netns/c1": 0})
    assert fates([record(), other], there) == ["would be freed"]


def test_cached_result_is_reported() -> None:
    assert fates([trace(CACHED, netns="/run/netns/c1")]) == ["reported"]


# --- alive ------------------------------------------------------------------------------------------------------------

SIGNS: dict[str, tuple[list[Trace], Evidence]] = {
    "address": ([], NOTHING.replace(addresses={POD: "/run/netns/c1"})),
    "address of another trace": ([reservation(address=b"\1\2\3\4")], NOTHING.replace(addresses={b"\1\2\3\4": "x"})),
    "host end": ([], NOTHING.replace(aliases=frozenset({"c1:eth0:net"}))),
    "record": ([record()], NOTHING.replace(sandboxes={"/run/netns/c1": GONE})),
    "record, in another mount namespace": ([record()], NOTHING.replace(mount_points={"/run/netns/c1": {5, GONE}})),
    "record that cannot be checked": ([record()], NOTHING.replace(sandboxes={"/run/netns/c1": None})),
    "record of the host itself": ([record(inode=HOST)], NOTHING.replace(sandboxes={"/run/netns/c1": HOST})),
    "cached result": ([trace(CACHED, netns="/run/netns/c1")], NOTHING.replace(sandboxes={"/run/netns/c1": ALIVE})),
    "cached result by /var/run": (
        [trace(CACHED, netns="/var/run/netns/c1")],
        NOTHING.replace(mount_points={"/run/netns/c1": {ALIVE}}),
    ),
    "container": ([], NOTHING.replace(containers=frozenset({"c1"}))),
    "call": ([], NOTHING.replace(calls=frozenset({("c1", "eth0")}))),
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNS)
def test_one_sign_of_life_is_enough_for_all_of_an_attachment(name: str) -> None:
    more, seen = SIGNS[name]
    assert fates([reservation(), trace(SAVED, ifname=""), element(), *more], seen) == []


def test_record_without_addresses_lives_by_its_number() -> None:
    seen = NOTHING.replace(namespaces={HOST: "the host", GONE: "/proc/4711/ns/net"})
    assert fates([record(), trace(SAVED, ifname="")], seen) == []


@pytest.mark.parametrize(
    "other", [{"container_id": "c2"}, {"network": "other"}, {"ifname": "eth1"}], ids=["container", "network", "interface"]
)
def test_life_of_another_attachment_is_no_life(other: dict[str, str]) -> None:
    living = reservation(address=b"\1\2\3\4", **other)
    alias = f"{living.container_id}:{living.ifname}:{living.network}"
    seen = NOTHING.replace(addresses={b"\1\2\3\4": "x"}, aliases=frozenset({alias}))
    assert fates([living, reservation()], seen) == ["would be freed"]


def test_file_that_names_no_interface_lives_with_any() -> None:
    living = reservation(ifname="eth1", address=b"\1\2\3\4")
    assert fates([living, trace(SAVED, ifname="")], NOTHING.replace(addresses={b"\1\2\3\4": "x"})) == []


@pytest.mark.parametrize(("id_length", "network_length"), [(64, 200), (100, 200), (121, 120), (200, 200), (73, 3)])
def test_host_end_with_a_cut_alias(id_length: int, network_length: int) -> None:
    owner = Owner("a" * id_length, "i" * 15, "n" * network_length)
    seen = NOTHING.replace(aliases=frozenset({attachments.name_of(owner.container_id, owner.ifname, owner.network)}))
    short, ifname, _ = owner.comment().split(" ")
    assert fates([element(container_id=short, ifname=ifname, network=owner.network, address=b"")], seen) == []
    assert fates([reservation(container_id=owner.container_id, ifname=ifname, network=owner.network)], seen) == []


def test_namespace_of_the_host_is_no_life_of_a_cached_result() -> None:
    """/proc/4711/ns/net: the number may be another process's by now."""
    seen = NOTHING.replace(sandboxes={"/proc/4711/ns/net": HOST})
    assert fates([trace(CACHED, netns="/proc/4711/ns/net"), reservation()], seen) == ["reported", "would be freed"]


def test_what_has_the_name_of_an_attachment_that_is_being_made_is_no_life() -> None:
    call = Call("ADD", "bridge", "c1", "/run/netns/c1", "eth0", conf={"name": "net"})
    found = [reservation(), trace(CACHED, netns="/run/netns/c1")]
    seen = NOTHING.replace(sandboxes={"/run/netns/c1": ALIVE}, calls=frozenset({("c1", "eth0")}))
    assert fates(found, seen) == []
    assert fates(found, seen, call) == ["reported", "would be freed"]
    assert fates(found, seen.replace(addresses={POD: "x"}), call) == []


# --- kept -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("age", [0.0, 299.9, -1.0, -1e9])
def test_youngest_file_speaks_for_all(age: float) -> None:
    assert fates([reservation(), trace(SAVED, age, ifname=""), element()]) == ["kept"] * 3


def test_incomplete_evidence_frees_nothing() -> None:
    (finding,) = stale.decide([reservation()], NOTHING.replace(missing=("a reason",)), NOW, 300)
    assert finding.fate == "kept"
    assert finding.why.endswith("kept: the evidence is incomplete: a reason")


def test_addresses_of_another_ipam_plugin_stand_nowhere() -> None:
    blind = trace(SAVED, ifname="", is_blind=True)
    assert fates([blind]) == ["kept"]
    assert fates([blind, record()]) == ["would be freed"] * 2


# --- freed ------------------------------------------------------------------------------------------------------------


def test_file_that_was_written_anew_is_left(tmp_path: Path) -> None:
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


def test_freed_one_place_after_the_other_and_past_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def free(some: Any, _: Any) -> list[Trace]:
        order.append(some[0].kind)
        if some[0].kind == ELEMENT:
            raise KernelRefused("no")
        return list(some)

    monkeypatch.setattr(remove, "_FREE", dict.fromkeys(remove._FREE, free))
    monkeypatch.setattr(remove, "retire", order.append)
    found = [record(path="/x/c1:eth0:net"), trace(SAVED), reservation(), trace(CHAIN), element()]
    freed = remove.free(stale.decide(found, NOTHING, NOW, 300), found)
    assert order == [ELEMENT, CHAIN, ADDRESS, SAVED, RECORD, "c1:eth0:net"]
    assert sorted(finding.fate for finding in freed) == ["failed", "freed", "freed", "freed", "freed"]
    report = Report(tuple(freed))
    assert not report.is_complete
    assert [finding.trace.kind for finding in report.failed] == [ELEMENT]


def no_file(title: str, _name: str) -> Journal:
    return Journal(title)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of state below a folder, and nothing alive."""
    monkeypatch.setattr(attachments, "directories", lambda: [str(tmp_path / "records")])
    monkeypatch.setattr(leftovers, "CACHE_DIR", str(tmp_path / "results"))
    monkeypatch.setattr(sweep, "Journal", no_file)
    monkeypatch.setattr(liveness, "collect", lambda *_: NOTHING)
    (tmp_path / "networks" / "net").mkdir(parents=True)
    return tmp_path


def run(node: Path, **keys: Any) -> Report:
    places = leftovers.Places(frozenset({(str(node / "networks"), "")}), frozenset({str(node / "flannel")}))
    return sweep.run(places=places, with_kernel=False, **keys)


def test_dead_in_one_look_only_is_not_freed(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

    def look(*_: Any) -> Evidence:
        file.unlink()
        file.write_text("c22\r\neth0")
        return NOTHING

    monkeypatch.setattr(liveness, "collect", look)
    (finding,) = run(node, grace_seconds=0).findings
    assert finding.fate == "kept"
    assert file.read_bytes() == b"c22\r\neth0"


def test_deadline_that_has_passed_frees_nothing(node: Path) -> None:
    file = node / "networks" / "net" / "10.1.0.2"
    file.write_text("c1\r\neth0")
    report = run(node, grace_seconds=0, deadline=time.thread_time() - 1)
    assert report.missing == ("there was no time to read all that is kept",)
    assert file.exists()


def test_unreadable_state_makes_the_evidence_incomplete(node: Path) -> None:
    (node / "networks" / "net" / "10.1.0.2").write_text("c1\r\neth0")
    (node / "flannel").write_text("a file where a folder should be")
    report = run(node, grace_seconds=0)
    assert [finding.fate for finding in report.findings] == ["kept"]
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
    seen: dict[bytes, int] = {}
    assert len([mount for _ in range(100) for mount in netns_scan.nsfs_mounts(MOUNTINFO, seen)]) == 2 * netns_scan._COPIES


JUMP = '-A POSTROUTING -s 10.1.0.2/32 -m comment --comment "name: \\"net\\" id: \\"c1\\"" -j {}'


def test_jump_to_a_masquerade_chain() -> None:
    chain = Owner("c1", "", "net").go_chain()
    found = leftovers.jump(JUMP.format(chain), Iptables(4))
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
    assert leftovers.jump(line, Iptables(4)) is None


def test_places_of_configurations() -> None:
    plugins: list[dict[str, Any]] = [
        {"type": "flannel", "dataDir": "/a/", "ipam": {"dataDir": "/b"}},
        {"type": "bridge", "ipam": {"type": "host-local", "dataDir": "/c"}},
        {"type": "bridge", "ipam": {"type": "dhcp", "dataDir": "/not"}},
        {"type": "bridge", "ipam": "rubbish", "dataDir": "/not"},
        {"type": "flannel", "dataDir": 7, "ipam": {"dataDir": ["x"]}},
        {"type": "flannel", "dataDir": "relative"},
    ]
    places = leftovers.places_of(plugins, "net") | leftovers.Places()
    assert places.data == {(leftovers.DATA_DIR, ""), ("/b", "net"), ("/c", "net")}
    assert places.flannel == {leftovers.FLANNEL_DIR, "/a"}


@pytest.mark.parametrize("data_dir", ["relative", "/x/../etc", "/x\n", ""])
def test_paths_that_the_plugins_would_refuse_are_not_looked_at(data_dir: str) -> None:
    assert leftovers.network_folders(data_dir, "net", None) == []


def test_only_names_of_networks_are_folders_of_reservations(tmp_path: Path) -> None:
    for name in ("net", "-x", ".hidden", "other"):
        (tmp_path / name).mkdir()
    assert leftovers.network_folders(str(tmp_path), "", None) == [f"{tmp_path}/net", f"{tmp_path}/other"]
    assert leftovers.network_folders(str(tmp_path), "", ["other"]) == [f"{tmp_path}/other"]


def test_reservations_are_regular_files_named_as_addresses(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    for name in ("10.1.0.2", "fd00::2", "010.1.0.3", "last_reserved_ip.0", "lock", "10.1.0.999", "fd00:0::3"):
        (folder / name).write_text("c1\r\neth0")
    (folder / "10.1.0.4").symlink_to("/etc/hostname")
    (folder / "10.1.0.5").mkdir()
    found = list(leftovers.reservations(str(folder)))
    assert sorted(trace.path.rpartition("/")[2] for trace in found) == ["10.1.0.2", "fd00::2"]
    assert {(trace.container_id, trace.ifname, trace.network) for trace in found} == {("c1", "eth0", "net")}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"name": 7, "ipam": 8}', '{"name": "../x", "ipam": {"dataDir": 9}}', "\udcff"]
)
def test_rubbish_of_every_kind_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    data = text.encode(errors="surrogateescape")
    monkeypatch.setattr(attachments, "directories", lambda: [str(tmp_path)])
    monkeypatch.setattr(leftovers, "CACHE_DIR", str(tmp_path))
    for name in ("c1", "c1:eth1", "c2:eth0:net", "../x", ":", "::"):
        if "/" not in name:
            (tmp_path / name).write_bytes(data)
    assert {trace.container_id for trace, _ in leftovers.saved(str(tmp_path))} == {"c1", "c2"}
    assert ("c2", "eth0", "net") in {(t.container_id, t.ifname, t.network) for t in leftovers.records()}
    assert list(leftovers.cached()) == []


# --- evidence ---------------------------------------------------------------------------------------------------------


def test_evidence_of_this_machine_knows_our_own_namespace() -> None:
    seen = liveness.collect(["/proc/self/ns/net", "/nowhere", "/etc/hostname", "/etc/hostname/x"])
    assert seen.own == os.stat("/proc/self/ns/net").st_ino
    assert seen.sandboxes == {"/proc/self/ns/net": seen.own, "/nowhere": 0, "/etc/hostname": 0, "/etc/hostname/x": 0}
    assert seen.own in seen.namespaces


def test_no_time_makes_it_incomplete() -> None:
    assert "there was no time to look at everything" in liveness.collect([], time.thread_time() - 1).missing


# --- shown ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (-5, "future"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172800, "2 d"), (1e6, "11 d")],
)
def test_age_text(seconds: float | None, text: str) -> None:
    assert age_text(seconds) == text


def test_report_as_table_and_json() -> None:
    report = Report((Finding(reservation(), "net", 400.0, "why", "freed"),), 3, 2, (), False)
    lines = list(report.lines())
    assert lines[0].split() == ["FATE", "WHAT", "CONTAINER", "ID", "INTERFACE", "NETWORK", "AGE", "WHY"]
    assert lines[1].split() == ["freed", "address", "/address", "c1", "eth0", "net", "6", "min", "why"]
    assert lines[2] == "1 freed; 2 attachments live, in 3 namespaces with the host's"
    assert json.loads(json.dumps(report.as_json()))["findings"][0]["containerID"] == "c1"
    assert list(Report().lines()) == ["nothing is left behind"]


def test_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[Any, ...]] = []
    answers: list[Report] = [Report(), Report(missing=("a reason",))]

    def answer(*args: Any, **_: Any) -> Report:
        asked.append(args)
        return answers.pop(0)

    monkeypatch.setattr(sweep, "run", answer)
    command: Callable[..., int] = lambda *argv: cli.main(["sweep", "--netconf-path", str(tmp_path), *argv])  # noqa: E731
    assert command() == 0
    assert command("--dry-run", "--grace", "1.5", "--network", "a", "--network", "b", "--json") == 1
    assert asked == [(300.0, False, None), (1.5, True, ["a", "b"])]
    captured = capsys.readouterr()
    assert captured.out.startswith("nothing is left behind\n{")
    assert captured.err == "cni-py: nothing is freed while the evidence is incomplete: a reason\n"


@pytest.mark.parametrize("seconds", ["-1", "x", "inf", "nan", ""])
def test_grace_is_a_number_of_seconds(seconds: str) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["sweep", f"--grace={seconds}"])
    assert leaving.value.code == 2
