"""files.py: whole reads and writes, locks."""

from __future__ import annotations

import errno
import fcntl
import os
import posix
import signal
import stat
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from cni_py import files, journal
from cni_py.errors import InvalidConfig, IOFailure


def test_read_is_whole_and_limited(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 100_000)
    assert files.read(str(path)) == b"x" * 100_000
    assert files.read(str(path), 100_000) == b"x" * 100_000
    with pytest.raises(IOFailure, match="larger than 99999 bytes"):
        files.read(str(path), 99_999)


@pytest.mark.parametrize("name", ["missing", "directory"])
def test_read_of_what_is_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError, match=r"No such file|Is a directory"):
        files.read(str(tmp_path / name))


def test_read_of_a_pipe_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert files.read(str(tmp_path / "pipe")) == b""


def test_read_of_something_endless_is_an_error() -> None:
    with pytest.raises(IOFailure, match="/dev/zero"):
        files.read("/dev/zero")


def test_write_replaces_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    before = path.stat().st_ino
    files.write(str(path), b"new", 0o640)
    assert path.read_text() == "new"
    assert path.stat().st_ino != before
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_new_file_has_no_name_before_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed writers leak nothing, not even under another name."""
    names: list[list[str]] = []
    write = posix.write

    def looking(fd: int, data: bytes) -> int:
        written = write(fd, data)
        names.append([path.name for path in tmp_path.iterdir()])
        return written

    monkeypatch.setattr(posix, "write", looking)
    files.write(str(tmp_path / "f"), b"new", 0o640)
    assert names == [[]]
    assert (tmp_path / "f").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


@pytest.mark.parametrize("number", [errno.EISDIR, errno.EOPNOTSUPP, errno.EINVAL])
def test_write_where_a_file_needs_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """File systems and kernels without O_TMPFILE."""
    plain = posix.open

    def refusing(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & posix.O_TMPFILE == posix.O_TMPFILE:
            raise OSError(number, os.strerror(number))
        return plain(path, flags, mode)

    monkeypatch.setattr(posix, "open", refusing)
    for content in ("new", "newer"):
        files.write(str(tmp_path / "f"), content.encode(), 0o640)
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("f", content)]
        assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640
    (tmp_path / "directory").mkdir()
    with pytest.raises(IOFailure):
        files.write(str(tmp_path / "directory"), b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "f"]


def test_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_text("old")

    def no_space(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(posix, "write", no_space)
    with pytest.raises(IOFailure, match="could not write") as error:
        files.write(str(path), b"new")
    monkeypatch.undo()
    assert error.value.errno == 28
    assert str(path) in error.value.msg
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_write_goes_on_after_a_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = posix.write
    monkeypatch.setattr(posix, "write", lambda fd, data: write(fd, bytes(data[:3])))
    files.write(str(tmp_path / "f"), b"0123456789")
    assert (tmp_path / "f").read_bytes() == b"0123456789"


@pytest.mark.parametrize("is_link", [False, True])
def test_write_takes_away_what_bears_its_name_for_a_new_file(tmp_path: Path, is_link: bool) -> None:
    """A killed writer's temporary, or a planted one, must not choose the file to overwrite, nor its readers."""
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "f").write_text("old")
    (tmp_path / ".f.tmp").symlink_to(tmp_path / "victim") if is_link else (tmp_path / ".f.tmp").hardlink_to(tmp_path / "victim")
    files.write(str(tmp_path / "f"), b"new", 0o600)
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "f").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "f").lstat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "victim"]


def test_write_of_a_path_without_a_directory_is_in_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporaries are on the file's own file system, which need not be that of "/"."""
    opened, plain = [], posix.open
    monkeypatch.setattr(posix, "open", lambda path, *how: opened.append(path) or plain(path, *how))
    monkeypatch.chdir(tmp_path)
    for content in (b"new", b"newer"):
        files.write("f", content)
        assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("f", content)]
    assert opened == [".", "."]


def test_write_over_a_directory_leaves_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with pytest.raises(IOFailure, match="Is a directory"):
        files.write(str(tmp_path / "f"), b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("other_is_killed", [False, True])
def test_write_while_another_replaces_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_is_killed: bool
) -> None:
    """Another comes between our new file's name and the rename: it removes it; and then it ends, or is killed there, too."""
    path, rename = tmp_path / "f", posix.rename
    path.write_text("old")
    seen = list[str]()

    def late(source: str, target: str) -> None:
        monkeypatch.setattr(posix, "rename", killed if other_is_killed else rename)
        with suppress(KeyboardInterrupt):
            files.write(str(path), b"other's")
        monkeypatch.setattr(posix, "rename", rename)
        seen.append(path.read_text())
        rename(source, target)

    def killed(source: str, target: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(posix, "rename", late)
    files.write(str(path), b"ours")
    assert seen == ["old" if other_is_killed else "other's"]
    assert path.read_text() == ("other's" if other_is_killed else "ours")  # what bore the name was whole: as if it were later
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_files_are_whole_while_many_replace_them(tmp_path: Path) -> None:
    path = tmp_path / "f"
    contents = [bytes([65 + number]) * (20_000 + number) for number in range(4)]
    path.write_bytes(contents[0])
    writers = []
    for content in contents:
        if not (pid := os.fork()):
            status = 1
            try:
                for _ in range(200):
                    files.write(str(path), content)
                status = 0
            finally:
                os._exit(status)
        writers.append(pid)
    read = 0
    while writers:
        assert path.read_bytes() in contents
        read += 1
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            assert status == 0
            writers.remove(pid)
    assert read > 1
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def kill_before(call: str, path: Path) -> None:
    """A process that replaces the file, killed before the first such call."""
    pid = os.fork()
    if not pid:
        setattr(posix, call, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        files.write(str(path), b"new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("call", ["write", "link", "rename"])
def test_killed_writers_leave_at_most_one_hidden_file(tmp_path: Path, call: str) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    for _ in range(3):
        kill_before(call, path)
    assert path.read_text() == "old"
    left = {path.name for path in tmp_path.iterdir()} - {"f"}
    assert left == ({".f.tmp"} if call == "rename" else set())
    assert files.list_directory(str(tmp_path)) == ["f"]
    files.remove(str(path))
    assert list(tmp_path.iterdir()) == []


def test_write_where_there_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(IOFailure, match="/none/f"):
        files.write(str(tmp_path / "none" / "f"), b"x")


def test_make_directory_makes_all_above(tmp_path: Path) -> None:
    files.make_directory(str(tmp_path / "a" / "b" / "c"), 0o700)
    files.make_directory(str(tmp_path / "a" / "b" / "c") + "/", 0o700)
    assert [stat.S_IMODE((tmp_path / p).stat().st_mode) for p in ("a", "a/b", "a/b/c")] == [0o700] * 3


def test_make_directory_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises((IOFailure, NotADirectoryError)):
        files.make_directory(str(tmp_path / "f" / "x"), 0o700)


def test_remove_of_what_is_not_there_is_success(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    files.remove(str(tmp_path / "f"))
    files.remove(str(tmp_path / "f"))
    assert not (tmp_path / "f").exists()
    (tmp_path / "d").mkdir()
    with pytest.raises(IOFailure, match="rm -f"):
        files.remove(str(tmp_path / "d"))


def test_list_directory(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / name).write_text("")
    assert files.list_directory(str(tmp_path)) == ["a", "b", "c"]
    assert files.list_directory(str(tmp_path / "none")) == []
    with pytest.raises(IOFailure, match="could not list"):
        files.list_directory(str(tmp_path / "a"))


def test_exists_sees_a_link_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/nowhere")
    assert files.exists(str(tmp_path / "link"))
    assert not files.exists(str(tmp_path / "none"))


@pytest.mark.parametrize("path", ["", "a", "./a", "/a/../b", "/..", "/a\0b", "/" + "x" * 1000])
def test_directory_of_a_configuration_that_cannot_be(path: str) -> None:
    with pytest.raises(InvalidConfig, match='"dataDir"'):
        files.check_directory("dataDir", path)


@pytest.mark.parametrize("path", ["/", "/a", "/a/..b/c..", "/var/lib/cni/"])
def test_directory_of_a_configuration_that_can_be(path: str) -> None:
    files.check_directory("dataDir", path)


def test_lock_is_one_at_a_time(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    order: list[str] = []

    def second() -> None:
        with files.Lock(path):
            order.append("second")

    with files.Lock(path):
        other = os.open(path, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
        thread = threading.Thread(target=second)
        thread.start()
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_lock_is_freed_after_a_failure(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with pytest.raises(ZeroDivisionError), files.Lock(path):
        1 / 0  # noqa: B018
    with files.Lock(path):
        pass


def test_lock_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(IOFailure, match="could not lock"), files.Lock(str(tmp_path / "none" / "lock")):
        pass
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IOFailure), files.Lock(str(tmp_path / "link")):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_every_change_is_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with journal.Journal("title", stderr_fd=2):
        files.make_directory(str(tmp_path / "d"), 0o700)
        files.write(str(tmp_path / "d" / "f"), b"x")
        files.read(str(tmp_path / "d" / "f"))
        files.remove(str(tmp_path / "d" / "f"))
    lines = [line.rsplit("  (", 1)[0] for line in capfd.readouterr().err.splitlines()]
    assert lines == [
        f"mkdir -p -m 700 {tmp_path}/d",
        f"printf %s x | install -m 600 /dev/stdin {tmp_path}/d/f",
        f"rm -f {tmp_path}/d/f",
        "# done",
    ]


@pytest.mark.parametrize(
    ("content", "mode", "is_shown"),
    [
        (b"one\ntwo words\n", 0o644, True),
        (b"it's 100% \\ $x\n", 0o600, True),
        (b'{"a": "b"}', 0o600, True),
        (b"\n", 0o600, True),
        (b"a secret\n", 0o400, False),
        (b"x" * 2000, 0o600, False),
        (b"a\nb", 0o600, True),
        ("\u00e4".encode(), 0o600, False),
    ],
)
def test_line_of_a_file_makes_the_same_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes, mode: int, is_shown: bool
) -> None:
    path = tmp_path / "f"
    with journal.Journal("title", stderr_fd=2):
        files.write(str(path), content, mode)
    line = capfd.readouterr().err.splitlines()[0].rsplit("  (", 1)[0]
    assert (line.startswith("printf ")) == is_shown
    if is_shown:
        path.unlink()
        subprocess.run(["sh", "-c", line], check=True)
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (content, mode)
    else:
        assert "secret" not in line
