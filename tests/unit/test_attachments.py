"""attachments.py: which sandbox each attachment was made for, and what GC may take for gone."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_py import socket_lock
from cni_py.attachment import lock
from cni_py.attachment import record as attachments
from cni_py.errors import InvalidConfig
from cni_py.journal import Journal
from cni_py.spec.call import Call
from cni_py.spec.environment import NESTED
from support.examples import examples


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Redirect the records from /run/cni-py/attachments."""
    where = str(tmp_path / "cni-py" / "attachments")
    monkeypatch.setattr(attachments, "RUN_DIR", str(tmp_path / "cni-py"))
    monkeypatch.setattr(attachments, "DIRECTORY", where)
    if attachments.remembered.__defaults__:
        monkeypatch.setattr(attachments.remembered, "__defaults__", (where,))
    return Path(where)


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    """Any file: what counts is that the path leads to the same one."""
    path = tmp_path / "sandbox"
    path.write_text("")
    return path


def a_call(container_id: str = "c1", ifname: str = "eth0", network: str = "net", netns: str | Path = "", **keys: Any) -> Call:
    return Call("ADD", "bridge", container_id=container_id, ifname=ifname, netns=str(netns), conf={"name": network} | keys)


def stale(call: Call, *names: tuple[str, str]) -> list[bool]:
    test = attachments.stale_test(call)
    return [test(*name) for name in names]


# --- records ----------------------------------------------------------------------------------------------------------


def test_record_lives_from_add_to_delete(directory: Path, sandbox: Path) -> None:
    call = a_call(netns=sandbox)
    assert not attachments.is_remembered("c1", "eth0", "net")
    attachments.remember(call)
    assert attachments.is_remembered("c1", "eth0", "net")
    assert not attachments.is_remembered("c1", "eth1", "net")
    status = sandbox.stat()
    assert json.loads((directory / "c1:eth0:net").read_text()) == {
        "containerID": "c1", "ifname": "eth0", "network": "net", "netns": str(sandbox),
        "dev": status.st_dev, "ino": status.st_ino, "ctime": status.st_ctime_ns,
    }  # fmt: skip
    assert stat.S_IMODE((directory / "c1:eth0:net").stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for _ in range(2):
        attachments.forget(call)
        assert not attachments.is_remembered("c1", "eth0", "net")


@pytest.mark.parametrize(
    ("args", "kept", "pod"),
    [
        ("", None, ""),
        ("IgnoreUnknown=1", None, ""),
        ("none;K8S_POD_NAME=a=b;;K8S_POD_NAMESPACE", None, ""),
        ("K8S_POD_NAME=web", {"K8S_POD_NAME": "web"}, "web"),
        (
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-1;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u1",
            {"K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": "web-1", "K8S_POD_UID": "u1"},
            "default/web-1",
        ),
        ("K8S_POD_NAME=" + "x" * 9999, {"K8S_POD_NAME": "x" * 253}, "x" * 253),
    ],
)
def test_record_has_the_name_of_the_pod(
    directory: Path, sandbox: Path, args: str, kept: dict[str, str] | None, pod: str
) -> None:
    call = a_call(netns=sandbox).replace(args=tuple(tuple(pair.split("=")) for pair in args.split(";")) if args else ())
    attachments.remember(call)
    assert json.loads((directory / "c1:eth0:net").read_text()).get("args") == kept
    assert attachments.pod_of(call) == pod


def test_records_of_a_network(directory: Path, sandbox: Path) -> None:
    for container_id, ifname, network in (
        ("c1", "eth0", "net"),
        ("c1", "eth1", "net"),
        ("c2", "eth0", "net"),
        ("c1", "eth0", "other"),
    ):
        attachments.remember(a_call(container_id, ifname, network, sandbox))
    assert sorted(attachments.remembered("net")) == [("c1", "eth0"), ("c1", "eth1"), ("c2", "eth0")]
    assert attachments.remembered("none") == []


@pytest.mark.parametrize("container_id", ["c1", "a" * 120, "a" * 121, "a" * 230])
def test_records_of_a_container(directory: Path, sandbox: Path, container_id: str) -> None:
    """Records are found even if the file name has only a prefix of the id; other records are not read."""
    others = [container_id + "1", container_id[:-1] + "b", "x"]
    for other in (container_id, *others):
        attachments.remember(a_call(other, "eth0", "net", sandbox))
    attachments.remember(a_call(container_id, "eth1", "other", sandbox))
    assert attachments.remembered("net", container_id=container_id) == [(container_id, "eth0")]
    assert [record["ifname"] for record in attachments.others_of_container(a_call(container_id, "eth0", "net"))] == ["eth1"]
    assert attachments.others_of_container(a_call(container_id + "2", "eth0", "net")) == []


@pytest.mark.usefixtures("directory")
def test_directory_that_is_not_there_holds_nothing() -> None:
    attachments.forget(a_call())
    attachments.forget_stale(a_call())
    assert attachments.remembered("net") == []


def test_record_that_cannot_be_written_decides_nothing(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Warn once in a call, whatever cannot be written."""
    directory.parent.write_text("")
    with Journal("ADD", warn_fd=2):
        before = attachments.remember(a_call())
        attachments.restore(a_call(), before)
        attachments.restore(a_call(), b"{}")
        attachments.forget(a_call())
        attachments.forget_stale(a_call())
        assert attachments.remembered("net") == []
        assert attachments.read(a_call()) == {}
    assert capfd.readouterr().err.count("bookkeeping incomplete") == 1


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"{}", b"\xff", b'{"network":"net"}', b'{"network":7}', b"\0" * 50, b"x" * (2 << 20)]
)
def test_damaged_record_stops_nothing(directory: Path, sandbox: Path, content: bytes) -> None:
    attachments.remember(a_call("c1", netns=sandbox))
    (directory / "c2:eth0:net").write_bytes(content)
    (directory / "directory").mkdir()
    (directory / "link").symlink_to("/nowhere")
    assert ("c1", "eth0") in attachments.remembered("net")
    assert stale(a_call(), ("c2", "eth0"), ("c1", "eth0")) == [False, False]
    attachments.forget_stale(a_call())
    assert attachments.is_remembered("c1", "eth0", "net")
    attachments.forget(a_call("c2"))
    assert not attachments.is_remembered("c2", "eth0", "net")


@pytest.mark.parametrize(
    "record",
    [
        {"ino": 1},
        {"ino": 1, "dev": 1},
        {"ino": 1, "dev": 1, "netns": 7},
        {"ino": 1, "dev": 1, "netns": None},
        {"ino": 1, "netns": "/"},
    ],
)
def test_record_of_another_shape_stops_nothing(directory: Path, record: dict[str, Any]) -> None:
    """Records of a newer version or of other programs: GC keeps what it does not understand."""
    directory.mkdir(parents=True)
    (directory / "c1:eth0:net").write_text(json.dumps({"containerID": "c1", "ifname": "eth0", "network": "net"} | record))
    assert stale(a_call(), ("c1", "eth0")) == [False]


NAME = st.text("abcdefgXYZ0189_.-", min_size=1, max_size=200)


@settings(max_examples=examples(50), deadline=None)
@given(NAME, st.text(st.characters(exclude_characters="/:\0", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=15), NAME)
def test_name_fits_a_file_and_a_link_alias(container_id: str, ifname: str, network: str) -> None:
    name = attachments.name_of(container_id, ifname[:3], network)
    assert len(name.encode()) <= 251
    assert "/" not in name
    assert name.count(":") == 2
    assert name.split(":")[1] == ifname[:3]


def test_long_names_that_differ_have_names_that_differ() -> None:
    names = {
        attachments.name_of("c" * 199 + end, ifname, "n" * 199 + other)
        for end in "ab"
        for other in "ab"
        for ifname in ("e0", "e1")
    }
    assert len(names) == 8


# --- what GC may take for gone ----------------------------------------------------------------------------------------


def test_with_a_list_all_else_is_gone(directory: Path) -> None:
    valid = [{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c2", "ifname": "eth1", "more": 1}]
    call = a_call(**{"cni.dev/valid-attachments": valid})
    assert stale(call, ("c1", "eth0"), ("c1", "eth1"), ("c2", "eth0"), ("c2", "eth1"), ("c3", "eth0")) == [
        False,
        True,
        True,
        False,
        True,
    ]
    assert stale(call, ("c1", ""), ("c3", "")) == [False, True]  # a reservation of an old plugin holds the container id alone
    assert attachments.valid(call) == {("c1", "eth0"), ("c2", "eth1")}


def test_with_an_empty_list_everything_is_gone() -> None:
    assert stale(a_call(**{"cni.dev/valid-attachments": []}), ("c1", "eth0"), ("c1", "")) == [True, True]


def test_list_of_libcni_counts_where_the_specs_is_missing() -> None:
    entry = [{"containerID": "c1", "ifname": "eth0"}]
    assert attachments.valid(a_call(**{"cni.dev/attachments": entry})) == {("c1", "eth0")}
    assert attachments.valid(a_call(**{"cni.dev/attachments": entry, "cni.dev/valid-attachments": []})) == frozenset()
    assert attachments.valid(a_call()) is None
    assert attachments.valid(a_call(**{"cni.dev/valid-attachments": None})) is None


@pytest.mark.parametrize(
    "raw",
    ["x", 7, {}, [7], [None], [{}], [{"containerID": "c1"}], [{"containerID": 7, "ifname": "e"}], [[]], True, False, 0, ""],
)
def test_list_that_is_none_is_refused(raw: Any) -> None:
    """Never taken for an empty one, which would free everything."""
    with pytest.raises(InvalidConfig, match=r"cni\.dev/valid-attachments"):
        attachments.stale_test(a_call(**{"cni.dev/valid-attachments": raw}))


def test_without_a_list_only_a_lost_sandbox_is_certain(directory: Path, sandbox: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").write_text("")
    (tmp_path / "replaced").write_text("")
    for container_id, path in (
        ("alive", sandbox),
        ("dead", tmp_path / "gone"),
        ("other", tmp_path / "replaced"),
        ("never", tmp_path / "never"),
    ):
        attachments.remember(a_call(container_id, netns=path))
    (tmp_path / "gone").unlink()
    os.rename(tmp_path / "replaced", tmp_path / "kept")  # keeps the inode from being used again
    (tmp_path / "replaced").write_text("")
    names = [(name, "eth0") for name in ("alive", "dead", "other", "never", "unknown")]
    assert stale(a_call(), *names) == [False, True, True, False, False]
    assert stale(a_call(), ("dead", "")) == [False]
    attachments.forget_stale(a_call())
    assert sorted(attachments.remembered("net")) == [("alive", "eth0"), ("never", "eth0")]


def test_forgetting_what_is_stale_leaves_another_network_alone(directory: Path, sandbox: Path) -> None:
    attachments.remember(a_call("c1", network="net", netns=sandbox))
    attachments.remember(a_call("c1", network="other", netns=sandbox))
    attachments.forget_stale(a_call(**{"cni.dev/valid-attachments": []}))
    assert not attachments.is_remembered("c1", "eth0", "net")
    assert attachments.is_remembered("c1", "eth0", "other")


# --- the lock -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def lock_file(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lock, "RUN_DIR", str(directory.parent))
    monkeypatch.setattr(lock, "PATH", str(directory.parent / "turns.lock"))
    return directory.parent / "turns.lock"


def is_held_up(call: Call, kind: type[lock.AttachmentLock | lock.NetworkLock] = lock.AttachmentLock) -> bool:
    """Return whether another one has to end first; each lock has a descriptor of its own, as in another process."""
    ended = threading.Event()

    def take() -> None:
        with kind(call):
            ended.set()

    threading.Thread(target=take).start()
    return not ended.wait(0.05)


@pytest.mark.parametrize(
    ("call", "held_up"),
    [
        (a_call(), True),
        (a_call().replace(verb="DEL"), True),
        (a_call(network="other").replace(plugin="portmap"), True),
        (a_call().replace(verb="CHECK"), False),
        (a_call().replace(environ={NESTED: "1"}), False),
        (a_call(ifname="eth1"), False),
        (a_call(container_id="c2"), False),
        (a_call(container_id="c" * 200, ifname="i" * 15), False),
    ],
)
def test_lock_is_of_one_attachment(lock_file: Path, call: Call, held_up: bool) -> None:
    with lock.AttachmentLock(a_call()):
        assert is_held_up(call) == held_up
    assert not is_held_up(call)
    assert lock_file.read_bytes() == b""


def test_lock_is_of_one_network(lock_file: Path) -> None:
    call = a_call().replace(verb="GC")
    with lock.NetworkLock(call):
        assert is_held_up(call, lock.NetworkLock)
        assert not is_held_up(a_call(network="other"), lock.NetworkLock)
        assert not is_held_up(call.replace(environ={NESTED: "1"}), lock.NetworkLock), "the call that executed it holds the lock"
        assert not is_held_up(a_call())
        with pytest.raises(BlockingIOError), lock.NetworkLock(call, waits=False):
            pass


def test_lock_without_a_file_is_of_one_attachment_too(lock_file: Path) -> None:
    """A directory in its place, or a full or read-only file system: the lock is an abstract socket."""
    lock_file.parent.mkdir()
    lock_file.mkdir()
    mine = f"c{os.getpid()}"  # a socket's name is one for all tests of this machine
    with lock.AttachmentLock(a_call(mine)):
        assert is_held_up(a_call(mine))
        assert not is_held_up(a_call(mine, "eth1"))
    assert not is_held_up(a_call(mine))


def test_lock_that_cannot_be_had_holds_nothing_up(lock_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    lock_file.parent.mkdir()
    lock_file.mkdir()
    monkeypatch.setattr(socket_lock, "socket", no_socket)
    with lock.AttachmentLock(a_call()):
        assert not is_held_up(a_call())


def test_names_of_sockets_are_short_and_differ() -> None:
    names = ["nft.lock", "turn/" + "c" * 200 + ":eth0", "turn/" + "c" * 200 + ":eth1"]
    addresses = {socket_lock.address_of(name) for name in names}
    assert len(addresses) == len(names)
    assert all(len(address) <= 107 for address in addresses)
