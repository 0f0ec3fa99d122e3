"""Man pages and completion as an installation has them: in bash, zsh and fish themselves, by man and mandoc.

bash and zsh run on a terminal, and TAB is typed; what a line is completed with is written to a file by a wrapper of the shell's
own function. fish has a command for it.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni_py.cli.completion import INSTALLED
from cni_py.plugin_table import PLUGINS
from support.waiting import until

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "conf" / "share" / "man").rglob("*.[18]"))
WIDTH = 80

LINES = {
    "cni-py sta": {"status"},
    "cni-py add ": {"cbr0", "lan"},
    "cni-py add cbr0 --if": {"--ifname"},
    "cni-py repair --network=l": {"lan"},
    "cni-py lab break ": {"arp", "etcd", "fdb", "flanneld", "link", "route"},
    "cni-py check --cache-dir @/cni cbr0 def": {"default/web-1"},
    "cni-py check --cache-dir @/cni cbr0 fd00:": {"fd00::2"},
    "cni-py lab exec --directory @/lab n": {"node1", "node2"},
    "cni-py config check @/net.d/10": {"@/net.d/10-flannel.conflist"},
    "cni-py sweep --netconf-path @/ne": {"@/net.d"},
    "cni-py config get -- -etcd-c": {"-etcd-cafile", "-etcd-certfile"},
    "cni-py help lab he": {"heal"},
    "flanneld -host-network-overlap ": {"refuse", "warn"},
    "flanneld --etcd-pref": {"--etcd-prefix"},
    "cni-agent --s": {"--socket", "--sweep-seconds"},
}
"""Lines, and what they are completed with; ``@`` is the directory of the files."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation's scripts and program, and the files that have names."""
    directory = tmp_path_factory.mktemp("node")
    program = directory / "bin" / "cni-py"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {ROOT}/bin/cni-py "$@"\n')
    program.chmod(0o755)
    for name in ("flanneld", "cni-agent"):
        (program.parent / name).symlink_to("cni-py")
    for path in (path for paths in INSTALLED.values() for path in paths):
        installed = directory / "share" / path
        installed.parent.mkdir(parents=True, exist_ok=True)
        installed.write_text((ROOT / "conf" / "share" / path).read_text().replace("@PREFIX@", str(directory)))
    for name in ("net.d", "cni/results", "lab"):
        (directory / name).mkdir(parents=True)
    (directory / "net.d/10-flannel.conflist").write_text('{"name": "cbr0", "plugins": [{"type": "flannel"}]}')
    (directory / "net.d/20-lan.conf").write_text('{"name": "lan", "type": "macvlan"}')
    result = {
        "containerId": "c1",
        "ifName": "eth0",
        "networkName": "cbr0",
        "cniArgs": [["K8S_POD_NAMESPACE", "default"], ["K8S_POD_NAME", "web-1"]],
        "result": {"ips": [{"address": "fd00::2/64"}]},
    }
    (directory / "cni/results/cbr0-c1-eth0").write_text(json.dumps(result))
    (directory / "lab/state.json").write_text('{"nodes": [{"name": "node1"}, {"name": "node2"}]}')
    return directory


def environment(node: Path) -> dict[str, str]:
    return {
        "PATH": f"{node}/bin:{os.environ['PATH']}",
        "HOME": str(node),
        "NETCONFPATH": f"{node}/net.d",
        "TERM": "dumb",
        "LC_ALL": "C.UTF-8",
    }


def needed(program: str, package: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"no {program} (package {package})")
    return found


# --- bash and zsh, on a terminal --------------------------------------------------------------------------------------

BASH = """
PS1='> '; bind 'set completion-query-items 0'; bind 'set bell-style none'; bind 'set disable-completion off'
. NODE/share/bash-completion/completions/cni-py
completed() { _cni_py "$@"; printf '%s\\n' "${COMPREPLY[@]}" >>NODE/out; }
complete -F completed cni-py flanneld cni-agent
typed() { printf '= %s\\n' "$READLINE_LINE" >>NODE/out; READLINE_LINE=; READLINE_POINT=0; }
bind -x '"\\C-t": typed'
echo begun >NODE/out
"""
ZSH = """
PS1='> '; unsetopt auto_list auto_menu beep prompt_sp; fpath=(NODE/share/zsh/site-functions $fpath)
autoload -Uz compinit; compinit -D -u
compadd() {
    local option
    for option in "$@"; do case $option in -O|-A|-D) builtin compadd "$@"; return ;; --|-) break ;; esac; done
    local -a matched; builtin compadd -A matched "$@"; print -rl -- $matched >>NODE/out; builtin compadd "$@"
}
typed() { print -r -- "= $BUFFER" >>NODE/out; BUFFER= }
zle -N typed; bindkey '^T' typed
echo begun >NODE/out
"""


class Terminal:
    """A shell on a terminal."""

    def __init__(self, argv: list[str], setup: str, node: Path) -> None:
        self.node, self.out = node, node / "out"
        self.out.unlink(missing_ok=True)
        script = node / "setup"
        script.write_text(setup.replace("NODE", str(node)))
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(argv[0], argv, environment(node))
        self.type(f". {script}\n")
        self.wait(lambda: "begun" in self.text(), "the shell has begun")

    def text(self) -> str:
        return self.out.read_text() if self.out.exists() else ""

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def wait(self, condition: Callable[[], object], what: str) -> None:
        shown = bytearray()

        def drained() -> bool:
            while select.select([self.fd], [], [], 0)[0]:
                try:
                    shown.extend(os.read(self.fd, 1 << 16))
                except OSError:
                    return True
            return bool(condition())

        until(drained, lambda: f"{what}: {shown[-2000:].decode(errors='replace')}")

    def complete(self, line: str) -> tuple[set[str], str]:
        """Type a line and TAB. Returns: the candidates, and the line as the shell has completed it."""
        self.out.write_text("")
        self.type(f"{line}\t\x14")
        self.wait(lambda: re.search("^= .*\n", self.text(), re.MULTILINE), f"{line} is completed")
        *found, last = self.text().splitlines()
        return {one for one in found if one}, last.removeprefix("= ")

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture(params=["bash", "zsh"], scope="module")
def terminal(request: pytest.FixtureRequest, node: Path) -> Iterator[Terminal]:
    program = needed(request.param, request.param)
    options = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"]}[request.param]
    shell = Terminal([program, *options], {"bash": BASH, "zsh": ZSH}[request.param], node)
    yield shell
    shell.close()


@pytest.mark.parametrize("line", LINES, ids=str)
def test_line_on_a_terminal(terminal: Terminal, node: Path, line: str) -> None:
    line, expected = line.replace("@", str(node)), {one.replace("@", str(node)) for one in LINES[line]}
    found, completed = terminal.complete(line)
    if len(expected) == 1:
        (only,) = expected
        head, _, word = line.rpartition(" ")
        option, equals, _ = word.rpartition("=")
        assert completed.rstrip(" /") == f"{head} {option}{equals}{only}"
    else:
        assert found == expected


# --- fish -------------------------------------------------------------------------------------------------------------


def test_lines_in_fish(node: Path) -> None:
    fish = needed("fish", "fish")
    lines = [line.replace("@", str(node)) for line in LINES]
    script = "\n".join([f"source {node}/share/{INSTALLED['fish'][0]}", *(f"complete -C '{line}'; echo =" for line in lines)])
    done = subprocess.run(
        [fish, "--no-config", "-c", script], capture_output=True, text=True, env=environment(node), check=True
    )
    answers = done.stdout.split("=\n")
    for line, answer in zip(LINES, answers, strict=False):
        found = {one.partition("\t")[0].rstrip("/").removeprefix("--network=") for one in answer.splitlines()}
        assert found == {one.replace("@", str(node)) for one in LINES[line]}, line


# --- where the shells look --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["cni-py", "flanneld", "cni-agent"])
def test_bash_completion_loads_it(node: Path, program: str) -> None:
    """Load it with the first TAB, from share/: version 2.12 finds that beside bin/, earlier ones by XDG_DATA_DIRS."""
    loader = Path("/usr/share/bash-completion/bash_completion")
    if not loader.exists():
        pytest.skip("no bash-completion (package bash-completion)")
    script = f". {loader}; __load_completion {program}; complete -p {program}"
    environ = environment(node) | {"XDG_DATA_DIRS": f"{node}/share"}
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, env=environ, check=False)
    assert done.stdout == f"complete -F _cni_py {program}\n", done.stderr


# --- man pages --------------------------------------------------------------------------------------------------------


def test_every_program_and_plugin_has_a_page() -> None:
    assert {page.name for page in PAGES} == {"cni-py.1", "flanneld.8", "cni-agent.8", *(f"cni-{name}.8" for name in PLUGINS)}


def test_pages_are_valid() -> None:
    """Check them by mandoc, and by groff with all its warnings."""
    mandoc, groff = needed("mandoc", "mandoc"), needed("groff", "groff-base")
    done = subprocess.run([mandoc, "-T", "lint", "-W", "style", *PAGES], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    for page in PAGES:
        for device in ("utf8", "ascii"):
            command = [groff, "-ww", "-man", f"-T{device}", f"-rLL={WIDTH}n", page]
            shown = subprocess.run(command, capture_output=True, text=True, check=True)
            assert shown.stderr == "", page
            lines = re.sub("\x1b\\[[0-9;]*m|.\b", "", shown.stdout).splitlines()
            assert [line for line in lines if len(line) > WIDTH] == [], page


def test_pages_are_shown_by_man(tmp_path: Path) -> None:
    """Show them as a person does; apropos finds the name."""
    man = needed("man", "man-db")
    if "man 2." not in subprocess.run([man, "--version"], capture_output=True, text=True, check=False).stdout:
        pytest.skip("no man-db (package man-db)")
    for page in PAGES:
        command = [man, "--warnings", "-l", page]
        environ = {"PATH": os.environ["PATH"], "MANWIDTH": str(WIDTH), "LC_ALL": "C.UTF-8", "HOME": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, env=environ, check=True)
        assert done.stderr == "", page
        name = page.stem
        assert re.search(rf"^NAME\n +{name} - \w", done.stdout, re.MULTILINE), page
        if shutil.which("lexgrog"):
            subprocess.run(["lexgrog", page], capture_output=True, check=True)


IN_OPT = """
mount -t tmpfs tmpfs /opt
cp -a {node}/. /opt/
mkdir -p /opt/share/man/man8 /opt/man/man8
cp {root}/conf/share/man/man8/cni-bridge.8 /opt/share/man/man8/
ln -s ../../share/man/man8/cni-bridge.8 /opt/man/man8/
PATH=/usr/bin:/bin:/opt/bin man -w cni-bridge
rm -r /opt/man
PATH=/usr/bin:/bin:/opt/bin man -w cni-bridge || echo none
"""


@pytest.mark.netns
def test_man_finds_pages_of_opt_by_their_links_alone(node: Path) -> None:
    """The reason of /opt/man: man-db's configuration leads from /opt/bin there, and not to /opt/share/man."""
    needed("man", "man-db")
    if not Path("/etc/manpath.config").exists():
        pytest.skip("no man-db (package man-db)")
    script = IN_OPT.format(node=node, root=ROOT)
    done = subprocess.run(["unshare", "--mount", "sh", "-ec", script], capture_output=True, text=True, check=False)
    first, second = done.stdout.split()
    assert first in ("/opt/man/man8/cni-bridge.8", "/opt/share/man/man8/cni-bridge.8")
    assert second == "none", "man-db now looks in /opt/share/man: the links are no longer needed"
