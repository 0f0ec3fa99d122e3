"""kernel/journal.py: every change is a line, in a file that is bounded and whose loss fails nothing."""

# ruff: noqa: PT012 — how a block ends is what is tested here

from __future__ import annotations

import errno
import os
import posix
import re
import shlex
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_py import journal
from cni_py.errors import CheckFailed, InvalidConfig, IOFailure, KernelRefused
from cni_py.journal import Journal, note, quote, step

NAME = "c1:eth0:net"
LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{6}  (.*)")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Redirect the journals from /run/cni-py/journal."""
    monkeypatch.setattr(journal, "RUN_DIR", str(tmp_path / "cni-py"))
    monkeypatch.setattr(journal, "JOURNAL_DIR", str(tmp_path / "cni-py" / "journal"))
    return tmp_path / "cni-py" / "journal"


def lines(path: Path) -> list[str]:
    """The lines without times."""
    text = [match[1] if (match := LINE.fullmatch(line)) else line for line in path.read_text().splitlines()]
    return [re.sub(r"  \(\d+\.\d\d ms\)$", "", line) for line in text]


# --- words ------------------------------------------------------------------------------------------------------------


@settings(max_examples=500, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1))
def test_line_is_read_back_as_the_same_words(words: list[str]) -> None:
    assert shlex.split(step(*words).line) == words


ODD = [
    "",
    " ",
    "'",
    "''",
    '"',
    "$HOME",
    "`id`",
    "a b",
    "*",
    "~",
    "#x",
    "!",
    "\\",
    "\n",
    "a'b\"c",
    "&&",
    ";",
    "|",
    ">x",
    "{a,b}",
    "é",
    "-n",
    "=",
    "%",
]


def test_shell_takes_odd_words_as_they_are() -> None:
    script = "printf '%s\\0' " + " ".join(quote(word) for word in ODD)
    for shell in ("sh", "bash"):
        done = subprocess.run([shell, "-c", script], capture_output=True, check=True, text=True)
        assert done.stdout.split("\0")[:-1] == ODD


@pytest.mark.parametrize("word", ["veth1a2b3c4d", "10.1.2.3/24", "fd00::1", "net/ipv4/ip_forward=1", "/run/x:y,z@%+"])
def test_plain_word_is_not_quoted(word: str) -> None:
    assert quote(word) == word


# --- the file ---------------------------------------------------------------------------------------------------------


def test_file_has_head_steps_and_end(folder: Path) -> None:
    with Journal("ADD bridge, network net", NAME):
        with step("ip", "link", "add", "a b"):
            pass
        note("a comment")
    assert (folder / NAME).exists()
    head, *rest = lines(folder / NAME)
    assert re.fullmatch(r"# \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ADD bridge, network net", head)
    assert rest == ["ip link add 'a b'", "# a comment", "# done"]
    assert stat.S_IMODE((folder / NAME).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_file_is_not_made_where_nothing_happens(folder: Path) -> None:
    with Journal("DEL", NAME):
        pass
    assert not folder.exists()


def test_calls_add_to_the_file(folder: Path) -> None:
    for verb in ("ADD", "CHECK", "DEL"):
        with Journal(verb, NAME):
            note(verb)
    assert [line for line in lines(folder / NAME) if not line.startswith("# 2")] == [
        "# ADD", "# done", "# CHECK", "# done", "# DEL", "# done",
    ]  # fmt: skip


def test_failure_is_logged_with_the_line(folder: Path) -> None:
    with pytest.raises(KernelRefused) as error, Journal("ADD", NAME), step("ip", "link", "del", "x"):
        raise OSError(errno.ENODEV, "No such device")
    assert error.value.msg == 'the kernel refused: "ip link del x"'
    assert error.value.details == "No such device"
    assert error.value.errno == errno.ENODEV
    assert lines(folder / NAME)[1:] == [
        "ip link del x  # failed: [Errno 19] No such device",
        '# failed: the kernel refused: "ip link del x": No such device',
    ]


def test_failed_step_of_a_file_is_code_5() -> None:
    with pytest.raises(IOFailure, match='could not write: "rm -f x"'), step("rm", "-f", "x", error=IOFailure):
        raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("error", [CheckFailed("x"), InvalidConfig("x"), ValueError("x"), KeyboardInterrupt()])
def test_other_errors_pass_a_step_unchanged(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, step("x"):
        raise error
    assert raised.value is error


def test_step_without_a_journal_is_fine() -> None:
    assert journal.current() is None
    with step("x"):
        note("y")


def test_words_of_others_cannot_look_like_a_step(folder: Path) -> None:
    """A third-party plugin's message must not look like a command in the journal."""
    with pytest.raises(InvalidConfig), Journal("ADD", NAME):
        note("it said: a\nrm -rf /")
        with pytest.raises(KernelRefused), step("ip", "link"):
            raise OSError(1, "b\nrm -rf /")
        raise InvalidConfig("c\nrm -rf /", "d\nrm -rf /")
    assert not [line for line in lines(folder / NAME) if line.startswith("rm")]


# --- size and number --------------------------------------------------------------------------------------------------


def test_file_is_bounded_over_many_calls(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_BYTES", 4000)
    for call in range(200):
        with Journal(f"call {call}", NAME):
            note("x" * 50)
        assert (folder / NAME).stat().st_size <= 4000 + 200
    text = (folder / NAME).read_text()
    assert text.startswith("# older lines were cut\n")
    assert "call 199" in text
    assert "call 1 " not in text


def test_file_is_bounded_within_one_call(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GC of thousands of attachments is one call."""
    monkeypatch.setattr(journal, "MAX_BYTES", 4000)
    with Journal("GC", "gc:net"):
        for number in range(2000):
            with step("rm", "-f", f"/var/lib/cni/networks/net/10.1.2.{number}"):
                pass
            assert (folder / "gc:net").stat().st_size <= 4000 + 200
    kept = lines(folder / "gc:net")
    assert kept[0] == "# older lines were cut"
    assert kept[-2:] == ["rm -f /var/lib/cni/networks/net/10.1.2.1999", "# done"]
    assert all(line.startswith(("rm -f /var", "#")) for line in kept)


def test_one_line_that_is_too_long_is_cut_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_BYTES", 4000)
    with Journal("ADD", NAME):
        note("x" * 100_000)
        note("after")
    assert (folder / NAME).stat().st_size <= 4000
    assert "# after" in lines(folder / NAME)


def retired(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "deleted"))


def write(name: str, folder: Path, age_seconds: int = 0) -> None:
    with Journal("ADD", name):
        note("x")
    past = (folder / name).stat().st_mtime - age_seconds
    os.utime(folder / name, (past, past))


def test_journal_of_a_deleted_attachment_goes_aside(folder: Path) -> None:
    write(NAME, folder)
    journal.retire(NAME)
    assert retired(folder) == [NAME]
    assert not (folder / NAME).exists()


def test_oldest_of_the_deleted_go_first_then_the_oldest_of_the_living(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_FILES", 4)
    monkeypatch.setattr(journal, "_PRUNE_EVERY", 1)
    for number in range(3):
        write(f"dead{number}", folder, 100 - number)
        journal.retire(f"dead{number}")
    for number in range(3):
        write(f"live{number}", folder, 1000 - number)
    journal.retire("nothing")
    assert len(retired(folder)) == 3  # a retire that finds nothing tidies nothing
    write("last", folder, 1)
    journal.retire("last")
    assert retired(folder) == ["last"]
    assert sorted(p.name for p in folder.iterdir()) == ["deleted", "live0", "live1", "live2"]
    for number in range(3, 8):
        write(f"live{number}", folder, 100 - number)
    write("x", folder)
    journal.retire("x")
    assert retired(folder) == []
    assert sorted(p.name for p in folder.iterdir()) == ["deleted", "live4", "live5", "live6", "live7"]


def test_number_of_files_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_FILES", 10)
    monkeypatch.setattr(journal, "_retired", 0)
    counts = []
    for number in range(120):
        write(f"c{number}", folder)
        journal.retire(f"c{number}")
        counts.append(len(retired(folder)))
    assert max(counts) <= 10 + 50
    assert counts[50] == counts[100] == 10  # the 51st and the 101st


def test_a_process_of_one_call_tidies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_FILES", 10)
    for number in range(20):
        monkeypatch.setattr(journal, "_retired", 0)
        write(f"c{number}", folder)
        journal.retire(f"c{number}")
        assert len(retired(folder)) <= 10
    assert "c19" in retired(folder)


def test_retire_twice_and_of_nothing(folder: Path) -> None:
    journal.retire(NAME)
    write(NAME, folder)
    journal.retire(NAME)
    journal.retire(NAME)
    assert retired(folder) == [NAME]


# --- nothing of it fails a call ---------------------------------------------------------------------------------------


def work() -> str:
    with Journal("ADD", NAME):
        with step("ip", "link"):
            pass
        note("x")
    journal.retire(NAME)
    return "done"


@pytest.mark.parametrize(
    "obstacle", ["file instead of run", "file instead of journal", "folder instead of file", "link", "no run"]
)
def test_journal_that_cannot_be_written_fails_nothing(
    folder: Path, tmp_path: Path, obstacle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "cni-py"
    if obstacle == "file instead of run":
        run.write_text("")
    elif obstacle == "no run":
        monkeypatch.setattr(journal, "RUN_DIR", "/proc/none/x")
        monkeypatch.setattr(journal, "JOURNAL_DIR", "/proc/none/x/journal")
    else:
        run.mkdir()
        if obstacle == "file instead of journal":
            folder.write_text("")
        else:
            folder.mkdir()
            if obstacle == "link":
                (folder / NAME).symlink_to(tmp_path / "elsewhere")
            else:
                (folder / NAME).mkdir()
    assert work() == "done"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "function", ["write", "open", "mkdir", "rename", "listdir", "unlink", "ftruncate", "pread", "fstat", "stat"]
)
def test_system_call_that_fails_fails_nothing(folder: Path, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full or read-only /run, at any point."""
    monkeypatch.setattr(journal, "MAX_BYTES", 10)
    monkeypatch.setattr(journal, "MAX_FILES", 0)
    write("older", folder)

    def fail(*args: object, **keys: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(posix, function, fail)
        assert work() == "done"


def test_descriptor_is_closed(folder: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        work()
        with pytest.raises(ZeroDivisionError), Journal("ADD", NAME):
            note("x")
            1 / 0  # noqa: B018
    assert len(os.listdir("/proc/self/fd")) == before


# --- standard error, threads ------------------------------------------------------------------------------------------


def test_steps_are_shown_as_they_happen(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Journal("ADD", "", stderr_fd=2):
        with step("ip", "link", "add", "a b"):
            pass
        assert re.fullmatch(r"ip link add 'a b'  \(\d+\.\d\d ms\)\n", capfd.readouterr().err)
        note("y")
        assert capfd.readouterr().err == "# y\n"
    assert capfd.readouterr().err.startswith("# done  (")
    assert not folder.exists()


def test_closed_standard_error_fails_nothing(folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with Journal("ADD", NAME, stderr_fd=writing):
        note("still written")
    os.close(writing)
    with Journal("ADD", NAME, stderr_fd=writing):
        note("written again")
    assert {"# still written", "# written again"} <= {*lines(folder / NAME)}


def test_inner_journal_gives_way_to_the_outer_one(folder: Path) -> None:
    with Journal("outer", "a") as outer:
        with Journal("inner", "b"):
            note("in b")
        assert journal.current() is outer
        note("in a")
    assert journal.current() is None
    assert "# in b" in lines(folder / "b")
    assert "# in b" not in lines(folder / "a")


def test_thread_writes_to_the_journal_it_is_given(folder: Path) -> None:
    def inside(ours: Journal | None) -> None:
        note("nowhere")
        journal.use(ours)
        note("from the thread")

    with Journal("ADD", NAME) as ours:
        thread = threading.Thread(target=inside, args=(ours,))
        thread.start()
        thread.join(10)
    assert "# from the thread" in lines(folder / NAME)
    assert "nowhere" not in (folder / NAME).read_text()
