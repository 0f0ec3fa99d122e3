"""Output of `cni-py` for people: commands as they were typed, and lines that fit a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from cni_py.cli import output

HINT = "cni-py lesson list; sudo cni-py lab up; sudo -E cni-py add x; /x/cni-py y"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be a ``cni-py`` that is in no PATH."""
    path = tmp_path / "bin" / "cni-py"
    path.parent.mkdir()
    path.touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(path)])
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(output, "SUDO_PATH", "/nowhere")
    return path


def test_command_outside_of_path_is_named_by_its_path(program: Path) -> None:
    assert output.as_typed(HINT) == (f"{program} lesson list; sudo {program} lab up; sudo -E {program} add x; /x/cni-py y")


def test_command_that_sudo_does_not_find_is_named_by_its_path_after_sudo_alone(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.chdir(program.parent)
    for typed in (str(program), "./cni-py"):
        monkeypatch.setattr(sys, "argv", [typed])
        assert output.as_typed(HINT) == (f"cni-py lesson list; sudo {program} lab up; sudo -E {program} add x; /x/cni-py y")


def test_command_in_both_paths_stays(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setattr(output, "SUDO_PATH", str(program.parent))
    assert output.as_typed(HINT) == HINT


def test_hint_repeats_the_command_line_as_root() -> None:
    assert output.as_root(["lab", "exec", "node1", "--", "echo", "a b"]) == "sudo cni-py lab exec node1 -- echo 'a b'"


LINE = "  missing  green has eth0: a-name-that-is-longer-than-a-narrow-terminal was   found, and nothing else"


def test_folded_line_fits_and_loses_nothing() -> None:
    longest = len(LINE.split()[4]) + 11
    for width in range(1, 120):
        lines = output.folded(LINE, width, 9)
        assert " ".join(lines).split() == LINE.split()
        assert all(line.startswith(" " * 11) for line in lines[1:])
        assert lines == [LINE] or max(map(len, lines)) <= max(width, longest)
        assert (len(lines) == 1) == (width >= len(LINE) or width <= 11)


@pytest.mark.parametrize("columns", [40, 80])
def test_terminal_gets_folded_lines_and_a_pipe_whole_ones(columns: int) -> None:
    code = f"from cni_py.cli.output import show_folded; show_folded({LINE!r}, 9)"
    argv = [sys.executable, "-c", code]
    environment = os.environ | {"COLUMNS": str(columns)}
    piped = subprocess.run(argv, capture_output=True, text=True, env=environment, check=True)
    assert piped.stdout == f"{LINE}\n"
    leader, follower = pty.openpty()
    subprocess.run(argv, stdout=follower, env=environment, check=True)
    os.close(follower)
    with os.fdopen(leader, errors="replace") as terminal:
        printed = os.read(terminal.fileno(), 4096).decode()
    assert printed.split() == LINE.split()
    assert max(map(len, printed.splitlines())) <= max(columns, len(LINE.split()[4]) + 11)
    assert len(printed.splitlines()) > 1
