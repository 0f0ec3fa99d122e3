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
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_py import journal
from cni_py.agent import log as agent_log
from cni_py.dhcp import daemon as dhcp_daemon
from cni_py.errors import CheckFailed, InvalidConfig, IOFailure, KernelRefused
from cni_py.journal import Journal, note, quote, step
from support.examples import examples

NAME = "c1:eth0:net"
LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{6}  (.*)")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Redirect the journals from /run/cni-py/journal."""
    monkeypatch.setattr(journal, "RUN_DIR", str(tmp_path / "cni-py"))
    monkeypatch.setattr(journal, "JOURNAL_DIR", str(tmp_path / "cni-py" / "journal"))
    return tmp_path / "cni-py" / "journal"


def lines(path: Path) -> list[str]:
    """The lines without times."""
    text = [match[1] if (match := LINE.fullmatch(line)) else line for line in path.read_text().splitlines()]
    return [re.sub(r"  \(\d+\.\d\d ms\)$", "", line) for line in text]


# --- words ------------------------------------------------------------------------------------------------------------


@settings(max_examples=examples(125), deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1))
def test_line_is_read_back_as_the_same_words(words: list[str]) -> None:
    assert shlex.split(step(*words).line) == words


ESCAPES = "\x1b]0;owned\x07", "\x9b2J", "a\r\n12:00:00.000000  rm -rf /", "\u202e", "\x7f"
"""Names that steer a terminal, or look like another line of the journal: a pod may call its interface so."""


@pytest.mark.parametrize("name", ESCAPES)
def test_name_cannot_steer_the_terminal_that_shows_the_journal(name: str, directory: Path) -> None:
    read_fd, write_fd = os.pipe()
    with Journal(f"ADD {name}", NAME, write_fd, write_fd) as one:
        with step("ip", "link", "set", name, "up"):
            pass
        note(name)
        one.warn(name)
    os.close(write_fd)
    with open(read_fd, encoding="utf-8") as shown:
        found = [*shown.read().split("\n")[:-1], *(directory / NAME).read_text().split("\n")[:-1]]
    assert len(found) == 8, "on standard error step, note, warning, end; in the file a title instead of the warning"
    assert all(line.isprintable() for line in found)


@pytest.mark.parametrize("log", [agent_log.log, dhcp_daemon.say])
def test_name_cannot_steer_the_terminal_that_shows_a_log(
    log: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    log("".join(ESCAPES))
    assert capsys.readouterr().err[:-1].isprintable()


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


def test_file_has_head_steps_and_end(directory: Path) -> None:
    with Journal("ADD bridge, network net", NAME):
        with step("ip", "link", "add", "a b"):
            pass
        note("a comment")
    assert (directory / NAME).exists()
    head, *rest = lines(directory / NAME)
    assert re.fullmatch(r"# \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ADD bridge, network net", head)
    assert rest == ["ip link add 'a b'", "# a comment", "# done"]
    assert stat.S_IMODE((directory / NAME).stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_file_is_not_made_where_nothing_happens(directory: Path) -> None:
    with Journal("DEL", NAME):
        pass
    assert not directory.exists()


def test_calls_add_to_the_file(directory: Path) -> None:
    for verb in ("ADD", "CHECK", "DEL"):
        with Journal(verb, NAME):
            note(verb)
    assert [line for line in lines(directory / NAME) if not line.startswith("# 2")] == [
        "# ADD", "# done", "# CHECK", "# done", "# DEL", "# done",
    ]  # fmt: skip


def test_failure_is_logged_with_the_line(directory: Path) -> None:
    with pytest.raises(KernelRefused) as error, Journal("ADD", NAME), step("ip", "link", "del", "x"):
        raise OSError(errno.ENODEV, "No such device")
    assert error.value.msg == 'the kernel refused: "ip link del x"'
    assert error.value.details == "No such device"
    assert error.value.errno == errno.ENODEV
    assert lines(directory / NAME)[1:] == [
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


def test_words_of_others_cannot_look_like_a_step(directory: Path) -> None:
    """A third-party plugin's message must not look like a command in the journal."""
    with pytest.raises(InvalidConfig), Journal("ADD", NAME):
        note("it said: a\nrm -rf /")
        with pytest.raises(KernelRefused), step("ip", "link"):
            raise OSError(1, "b\nrm -rf /")
        raise InvalidConfig("c\nrm -rf /", "d\nrm -rf /")
    assert not [line for line in lines(directory / NAME) if line.startswith("rm")]


# --- size and number --------------------------------------------------------------------------------------------------


def test_file_is_bounded_over_many_calls(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_BYTES", 4000)
    for call in range(200):
        with Journal(f"call {call}", NAME):
            note("x" * 50)
        assert (directory / NAME).stat().st_size <= 4000 + 200
    text = (directory / NAME).read_text()
    assert text.startswith("# older lines were cut\n")
    assert "call 199" in text
    assert "call 1 " not in text


def test_file_is_bounded_within_one_call(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GC of thousands of attachments is one call."""
    monkeypatch.setattr(journal, "MAX_BYTES", 4000)
    with Journal("GC", "gc:net"):
        for number in range(2000):
            with step("rm", "-f", f"/var/lib/cni/networks/net/10.1.2.{number}"):
                pass
            assert (directory / "gc:net").stat().st_size <= 4000 + 200
    kept = lines(directory / "gc:net")
    assert kept[0] == "# older lines were cut"
    assert kept[-2:] == ["rm -f /var/lib/cni/networks/net/10.1.2.1999", "# done"]
    assert all(line.startswith(("rm -f /var", "#")) for line in kept)


def test_one_line_that_is_too_long_is_cut_away(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_BYTES", 4000)
    with Journal("ADD", NAME):
        note("x" * 100_000)
        note("after")
    assert (directory / NAME).stat().st_size <= 4000
    assert "# after" in lines(directory / NAME)


def retired(directory: Path) -> list[str]:
    return sorted(os.listdir(directory / "deleted"))


def write(name: str, directory: Path, age_seconds: int = 0) -> None:
    with Journal("ADD", name):
        note("x")
    past = (directory / name).stat().st_mtime - age_seconds
    os.utime(directory / name, (past, past))


def test_journal_of_a_deleted_attachment_goes_aside(directory: Path) -> None:
    write(NAME, directory)
    journal.retire(NAME)
    assert retired(directory) == [NAME]
    assert not (directory / NAME).exists()


def test_oldest_of_the_deleted_go_first_then_the_oldest_of_the_living(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_FILES", 4)
    monkeypatch.setattr(journal, "_PRUNE_EVERY", 1)
    for number in range(3):
        write(f"dead{number}", directory, 100 - number)
        journal.retire(f"dead{number}")
    for number in range(3):
        write(f"live{number}", directory, 1000 - number)
    journal.retire("nothing")
    assert len(retired(directory)) == 3  # a retire that finds nothing tidies nothing
    write("last", directory, 1)
    journal.retire("last")
    assert retired(directory) == ["last"]
    assert sorted(p.name for p in directory.iterdir()) == ["deleted", "live0", "live1", "live2"]
    for number in range(3, 8):
        write(f"live{number}", directory, 100 - number)
    write("x", directory)
    journal.retire("x")
    assert retired(directory) == []
    assert sorted(p.name for p in directory.iterdir()) == ["deleted", "live4", "live5", "live6", "live7"]


def test_number_of_files_is_bounded(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_FILES", 10)
    monkeypatch.setattr(journal, "_retired", 0)
    counts = []
    for number in range(120):
        write(f"c{number}", directory)
        journal.retire(f"c{number}")
        counts.append(len(retired(directory)))
    assert max(counts) <= 10 + 50
    assert counts[50] == counts[100] == 10  # the 51st and the 101st


def test_a_process_of_one_call_tidies(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_FILES", 10)
    for number in range(20):
        monkeypatch.setattr(journal, "_retired", 0)
        write(f"c{number}", directory)
        journal.retire(f"c{number}")
        assert len(retired(directory)) <= 10
    assert "c19" in retired(directory)


def test_retire_twice_and_of_nothing(directory: Path) -> None:
    journal.retire(NAME)
    write(NAME, directory)
    journal.retire(NAME)
    journal.retire(NAME)
    assert retired(directory) == [NAME]


# --- nothing of it fails a call ---------------------------------------------------------------------------------------


def work() -> str:
    with Journal("ADD", NAME):
        with step("ip", "link"):
            pass
        note("x")
    journal.retire(NAME)
    return "done"


@pytest.mark.parametrize(
    "obstacle", ["file instead of run", "file instead of journal", "directory instead of file", "link", "no run"]
)
def test_journal_that_cannot_be_written_fails_nothing(
    directory: Path, tmp_path: Path, obstacle: str, monkeypatch: pytest.MonkeyPatch
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
            directory.write_text("")
        else:
            directory.mkdir()
            if obstacle == "link":
                (directory / NAME).symlink_to(tmp_path / "elsewhere")
            else:
                (directory / NAME).mkdir()
    assert work() == "done"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "function", ["write", "open", "mkdir", "rename", "listdir", "unlink", "ftruncate", "pread", "fstat", "stat"]
)
def test_system_call_that_fails_fails_nothing(directory: Path, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full or read-only /run, at any point."""
    monkeypatch.setattr(journal, "MAX_BYTES", 10)
    monkeypatch.setattr(journal, "MAX_FILES", 0)
    write("older", directory)

    def fail(*args: object, **keys: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(posix, function, fail)
        assert work() == "done"


def test_descriptor_is_closed(directory: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        work()
        with pytest.raises(ZeroDivisionError), Journal("ADD", NAME):
            note("x")
            1 / 0  # noqa: B018
    assert len(os.listdir("/proc/self/fd")) == before


# --- standard error, threads ------------------------------------------------------------------------------------------


def test_steps_are_shown_as_they_happen(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Journal("ADD", "", stderr_fd=2):
        with step("ip", "link", "add", "a b"):
            pass
        assert re.fullmatch(r"ip link add 'a b'  \(\d+\.\d\d ms\)\n", capfd.readouterr().err)
        note("y")
        assert capfd.readouterr().err == "# y\n"
    assert capfd.readouterr().err.startswith("# done  (")
    assert not directory.exists()


def test_closed_standard_error_fails_nothing(directory: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with Journal("ADD", NAME, stderr_fd=writing):
        note("still written")
    os.close(writing)
    with Journal("ADD", NAME, stderr_fd=writing):
        note("written again")
    assert {"# still written", "# written again"} <= {*lines(directory / NAME)}


def test_inner_journal_gives_way_to_the_outer_one(directory: Path) -> None:
    with Journal("outer", "a") as outer:
        with Journal("inner", "b"):
            note("in b")
        assert journal.current() is outer
        note("in a")
    assert journal.current() is None
    assert "# in b" in lines(directory / "b")
    assert "# in b" not in lines(directory / "a")


def test_thread_writes_to_the_journal_it_is_given(directory: Path) -> None:
    def inside(ours: Journal | None) -> None:
        note("nowhere")
        journal.use(ours)
        note("from the thread")

    with Journal("ADD", NAME) as ours:
        thread = threading.Thread(target=inside, args=(ours,))
        thread.start()
        thread.join(10)
    assert "# from the thread" in lines(directory / NAME)
    assert "nowhere" not in (directory / NAME).read_text()
