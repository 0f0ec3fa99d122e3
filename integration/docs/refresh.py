"""Run the pages whose output is shown, and write again what has changed: ``python integration/docs/refresh.py [PAGE...]``.

A page whose output differs in volatile parts alone stays as it is (`support.code_blocks.normalised`); otherwise all of it is
written, so that a page shows one run. It must be run as root, as the lab.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from integration.docs.machine import LESSONS, NODE_PAGES, Machine, machine_of, runnable
from support.code_blocks import Shown, with_new_outputs, with_outputs
from support.namespaces import Host


@cache
def installed() -> Path:
    """Install the checkout for pages about a node. Returns: the prefix."""
    prefix = ROOT / "build" / "test"
    install = [sys.executable, str(ROOT / "integration" / "install"), "install", "--prefix", str(prefix)]
    subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
    return prefix


def pages_with_output() -> list[str]:
    return [page for page in (*NODE_PAGES, *LESSONS) if any(one.output for one in with_outputs(ROOT / page))]


def run_page(machine: Machine, shown: list[Shown]) -> list[str]:
    """Run the blocks of a page in order. Returns: what each printed."""
    return [machine.run(one.block) if runnable(one.block, machine) else "" for one in shown]


def refresh(page: str) -> bool:
    """Run a page and write its output again. Returns: whether that changed it."""
    path = ROOT / page
    shown = with_outputs(path)
    with Host() as host:
        machine = machine_of(page, host, ROOT if page in LESSONS else installed())
        printed = run_page(machine, shown)
    outputs = [(one.output, text) for one, text in zip(shown, printed, strict=True) if one.output is not None]
    former = path.read_text()
    text = with_new_outputs(former, outputs)
    path.write_text(text)
    return text != former


def main(pages: list[str]) -> int:
    for page in pages or pages_with_output():
        print(f"{page}: {'output written again' if refresh(page) else 'as shown'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
