"""Every code block of README and docs, in the order of the page: what is printed can be typed, and prints what the page shows.

The blocks of a page run as one session on a machine of its own (machine.py): the guide's first node, with etcd and TLS,
this installation in /opt, and files of its own in /etc; or, for a lesson, a machine with nothing but the checkout. What needs
a cluster, a build or the installer is marked, with the test that runs it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from integration.docs.machine import LESSONS, NODE_PAGES, Machine, machine_of, runnable
from support.code_blocks import (
    DRAWN,
    PAGES,
    ROOT,
    RUN,
    Block,
    Shown,
    blocks_of,
    contradiction,
    indented_commands,
    normalised,
    with_outputs,
)
from support.namespaces import Host


@pytest.fixture
def machine(host: Host, bin_dir: Path, request: pytest.FixtureRequest) -> Machine:
    if shutil.which("etcd") is None:
        pytest.skip("no etcd (package etcd-server)")
    return machine_of(request.param, host, bin_dir.parent.parent)


@pytest.mark.netns
@pytest.mark.parametrize("machine", [*NODE_PAGES, *LESSONS], indirect=True, ids=str)
def test_page_runs_in_its_order(machine: Machine) -> None:
    all_shown = all_printed = ""
    for shown in with_outputs(ROOT / machine.page):
        if runnable(shown.block, machine):
            printed = machine.run(shown.block)
            assert_as_shown(shown, printed)
            if shown.output is not None:
                all_shown, all_printed = all_shown + shown.output.text, all_printed + printed
    name = contradiction(all_shown, all_printed)
    assert not name, f"{name} is from another run than the rest of {machine.page}: make docs PAGES={machine.page}"


def assert_as_shown(shown: Shown, printed: str) -> None:
    """Compare what a block printed with its output on the page. `make docs` writes it again."""
    if shown.output is not None:
        assert normalised(printed) == normalised(shown.output.text), f"{shown.output}, after {shown.block.text}"


ALL = [block for page in PAGES for block in blocks_of(page)]


@pytest.mark.parametrize("block", ALL, ids=str)
def test_block_is_run_or_says_why_not(block: Block) -> None:
    assert block.lang in RUN + DRAWN, f"{block}: what language is {block.lang}?"
    if block.lang in ("sh", "python") and block.is_run:
        assert block.page in (*NODE_PAGES, *LESSONS), (
            f"{block}: no machine runs the blocks of this page: mark it, or add the page to NODE_PAGES"
        )
    if block.lang == "json":
        text = block.text.strip()
        json.loads(text if text.startswith(("{", "[")) else f"{{{text}}}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_command_hides_in_an_indented_block(page: Path) -> None:
    assert indented_commands(page.read_text()) == []


def test_conflist_of_readme_is_the_shipped_one() -> None:
    (block,) = [block for block in blocks_of(ROOT / "README.md") if block.lang == "json"]
    assert json.loads(block.text) == json.loads((ROOT / "conf" / "10-flannel.conflist").read_text())


@pytest.mark.parametrize("block", [block for block in ALL if block.lang == "console"], ids=str)
def test_console_shows_what_is_printed(block: Block, cni_py: Path) -> None:
    command, *expected = block.text.splitlines()
    environ = {"PATH": f"{cni_py.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-c", command.removeprefix("$ ")], capture_output=True, text=True, env=environ, check=False, timeout=60
    )
    assert (done.stdout + done.stderr).splitlines() == expected


def test_markers_and_commands_are_found() -> None:
    text = "<!-- not run: it is long -->\n```sh\nmake x\n```\n1. a\n\n   ```sh\n   ls\n   ```\n\n    make bench\n"
    first, second = blocks_of(ROOT / "README.md", text)
    assert (first.marker, first.is_run, first.text) == ("not run: it is long", False, "make x\n")
    assert (second.is_run, second.text) == (True, "ls\n")
    assert indented_commands(text)
