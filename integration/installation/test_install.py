"""integration/install: what it puts where, what it leaves alone, and what is left when it is killed.

Installed is a small checkout, made here: the real installer and launchers, a cni_py that only implements VERSION.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from cni_py.plugin_table import PLUGINS

ROOT = Path(__file__).resolve().parents[2]

# run with the installer's arguments: ends the process before the Nth change that it makes to the file system
KILLED_AT = """
import os, runpy, sys
left = int(sys.argv.pop(1))
def hook(event, args):
    global left
    if event in ("os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "shutil.copytree", "shutil.rmtree"):
        left -= 1
        if left < 0:
            os._exit(99)
sys.addaudithook(hook)
sys.argv[0] = INSTALL
runpy.run_path(INSTALL, run_name="__main__")
"""


SHARED = ("man/man1/cni-py.1", "man/man8/cni-bridge.8", "man/man8/cni-ptp.8", "bash-completion/completions/cni-py")
"""Some of the man pages and completions."""

CLIENT = """
def main():
    from cni_py import __version__
    print('{"supportedVersions": ["1.1.0"], "of": "' + __version__ + '"}')
"""


class Checkout:
    """Create the checkout to install from, in a version that a test chooses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.install = path / "integration" / "install"
        (path / "integration").mkdir(parents=True)
        (path / "cni_py").mkdir()
        (path / "build" / "runtime" / "pydantic_core").mkdir(parents=True)
        (path / "build" / "runtime" / "pydantic_core" / "__init__.py").write_text("")
        (path / "cni_py" / "client.py").write_text(CLIENT)
        (path / "cni_py" / "cli").mkdir(exist_ok=True)
        for name, text in (("__init__.py", ""), ("main.py", CLIENT)):
            (path / "cni_py" / "cli" / name).write_text(text)
        shutil.copy(ROOT / "cni_py" / "plugin_table.py", path / "cni_py")
        shutil.copy(ROOT / "integration" / "install", self.install)
        shutil.copy(ROOT / "LICENSE", path)
        shutil.copytree(ROOT / "bin", path / "bin", symlinks=True)
        shutil.copytree(ROOT / "conf", path / "conf", ignore=shutil.ignore_patterns("share"))
        for name in SHARED:
            (path / "conf" / "share" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "conf" / "share" / name, path / "conf" / "share" / name)
        self.set_version("1.0")

    def set_version(self, version: str) -> None:
        (self.path / "cni_py" / "__init__.py").write_text(f'"""A stub."""\n\n__version__ = "{version}"\n')


class Prefix:
    """An empty prefix, and the installer."""

    no_units: tuple[str, ...] = ("--no-units",)
    """Wherever the tests run."""

    def __init__(self, path: Path, checkout: Checkout) -> None:
        self.path = path
        self.bin = path / "cni" / "bin"
        self.checkout = checkout

    def install(self, *options: str, killed_at: int | None = None) -> subprocess.CompletedProcess[str]:
        return self._run("install", *self.no_units, *options, killed_at=killed_at)

    def uninstall(self, *options: str, killed_at: int | None = None) -> subprocess.CompletedProcess[str]:
        return self._run("uninstall", *options, killed_at=killed_at)

    def _run(self, verb: str, *options: str, killed_at: int | None) -> subprocess.CompletedProcess[str]:
        install = str(self.checkout.install)
        program = [sys.executable, install]
        if killed_at is not None:
            program = [sys.executable, "-c", f"INSTALL = {install!r}\n{KILLED_AT}", str(killed_at)]
        command = [*program, verb, "--prefix", str(self.path), *options]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    def everything(self) -> list[str]:
        return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*"))

    def libraries(self) -> list[str]:
        return sorted(path.name for path in (self.path / "cni-py").glob("lib-*"))


@pytest.fixture
def prefix(tmp_path: Path) -> Prefix:
    path = tmp_path / "prefix"
    path.mkdir()
    return Prefix(path, Checkout(tmp_path / "checkout"))


def version(plugin: Path) -> str | None:
    """Return the version of cni-py that the executed plugin reports, or None."""
    done = subprocess.run([plugin], env={}, capture_output=True, text=True, check=False)
    try:
        return str(json.loads(done.stdout)["of"])
    except ValueError:
        return None


def foreign(path: Path, text: str = "#!/bin/sh\necho Go\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o750)


def test_layout(prefix: Prefix) -> None:
    done = prefix.install()
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(os.listdir(prefix.path)) == ["bin", "cni", "cni-py", "share"]
    assert sorted(os.listdir(prefix.bin)) == sorted([*PLUGINS, "cni-plugin"])
    assert not any((prefix.bin / name).is_symlink() for name in PLUGINS)
    assert {(prefix.bin / name).read_text() for name in PLUGINS} == {(prefix.bin / "cni-plugin").read_text()}
    assert sorted(os.listdir(prefix.path / "bin")) == ["cni-agent", "cni-py", "flanneld"]
    assert (prefix.path / "cni-py" / "VERSION").read_text().strip()
    assert (prefix.path / "cni-py" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert {version(prefix.bin / name) for name in PLUGINS} == {"1.0"}


def test_launcher_is_absolute_isolated_and_short(prefix: Prefix) -> None:
    prefix.install()
    assert (prefix.bin / "cni-plugin").read_text() == (
        f"#!{prefix.path}/cni-py/lib/python -IS\n"
        "import sys\n"
        "\n"
        f"sys.path.insert(-1, '{prefix.path}/cni-py/lib')\n"
        "from cni_py.client import main\n"
        "\n"
        "main()\n"
    )
    interpreter = prefix.path / "cni-py" / "lib" / "python"
    assert os.readlink(interpreter) == os.path.realpath(sys._base_executable)


def test_single_copy_of_a_plugin_runs(prefix: Prefix, tmp_path: Path) -> None:
    """Some runtimes copy plugins one by one, following links."""
    prefix.install()
    shutil.copy(prefix.bin / "flannel", tmp_path / "flannel")
    assert not (tmp_path / "flannel").is_symlink()
    assert version(tmp_path / "flannel") == "1.0"
    prefix.checkout.set_version("1.1")
    prefix.install()
    assert version(tmp_path / "flannel") == "1.1"


def test_plugin_that_a_daemonset_overwrites_costs_no_other_plugin(prefix: Prefix, tmp_path: Path) -> None:
    """flannel's own init container runs `cp -f /flannel /opt/cni/bin/flannel`, which writes through a link."""
    prefix.install()
    foreign(tmp_path / "flannel")
    subprocess.run(["cp", "-f", tmp_path / "flannel", prefix.bin / "flannel"], check=True)
    assert {version(prefix.bin / name) for name in PLUGINS if name != "flannel"} == {"1.0"}
    assert (prefix.bin / "flannel").read_text() == GO
    assert prefix.uninstall().returncode == 0
    assert prefix.everything() == ["cni", "cni/bin", "cni/bin/flannel"]


def test_links_of_a_former_version_become_copies(prefix: Prefix) -> None:
    prefix.install()
    for name in PLUGINS:
        (prefix.bin / name).unlink()
        (prefix.bin / name).symlink_to("cni-plugin")
    assert prefix.install().returncode == 0
    assert not any((prefix.bin / name).is_symlink() for name in PLUGINS)
    assert {version(prefix.bin / name) for name in PLUGINS} == {"1.0"}
    assert not list(prefix.bin.glob("*.before-cni-py"))


# --- man pages and completion -----------------------------------------------------------------------------------------


def share_of(prefix: Prefix) -> set[str]:
    return {str(path.relative_to(prefix.path / "share")) for path in (prefix.path / "share").rglob("*") if path.is_file()}


def test_man_pages_and_completion_come_and_go(prefix: Prefix) -> None:
    prefix.install()
    assert share_of(prefix) == set(SHARED)
    assert f"{prefix.path}/bin/cni-py __complete" in (prefix.path / "share" / SHARED[-1]).read_text()
    assert not (prefix.path / "man").exists()
    assert prefix.uninstall().returncode == 0
    assert prefix.everything() == []


def test_pages_of_plugins_that_are_not_installed_are_left_out(prefix: Prefix) -> None:
    prefix.install("--plugins", "bridge,host-local")
    assert share_of(prefix) == set(SHARED) - {"man/man8/cni-ptp.8"}
    prefix.install()
    assert share_of(prefix) == set(SHARED)
    prefix.install("--plugins", "ptp")
    assert share_of(prefix) == set(SHARED) - {"man/man8/cni-bridge.8"}


def test_pages_of_other_programs_are_left_alone(prefix: Prefix) -> None:
    theirs = prefix.path / "share/man/man8/cni-ptp.8"
    foreign(theirs, '.TH CNI-PTP 8 "" Go\n')
    done = prefix.install()
    assert done.returncode == 0
    assert f"{theirs} is another program's, and left alone" in done.stdout
    ours = prefix.path / "share/man/man8/cni-bridge.8"
    foreign(ours, "of another one since\n")
    assert prefix.uninstall().returncode == 0
    assert theirs.read_text().endswith("Go\n")
    assert share_of(prefix) == {"man/man8/cni-ptp.8", "man/man8/cni-bridge.8"}


def test_directory_man_beside_bin_has_links_to_the_pages(prefix: Prefix) -> None:
    """man-db looks there instead of in share/man, as it does for /opt/bin."""
    foreign(prefix.path / "man/man8/other.8")
    assert prefix.install().returncode == 0
    assert (prefix.path / "man/man8/cni-ptp.8").resolve() == prefix.path / "share/man/man8/cni-ptp.8"
    assert prefix.install().returncode == 0
    assert prefix.uninstall().returncode == 0
    assert prefix.everything() == ["man", "man/man8", "man/man8/other.8"]


def test_man_that_leads_to_share_has_no_links(prefix: Prefix) -> None:
    """Install where `man` is a link, as /usr/local/man is."""
    (prefix.path / "share/man").mkdir(parents=True)
    (prefix.path / "man").symlink_to("share/man")
    prefix.install()
    assert not (prefix.path / "share/man/man8/cni-ptp.8").is_symlink()
    assert prefix.uninstall().returncode == 0
    assert prefix.everything() == ["man", "share", "share/man"]


def test_opt_has_both(prefix: Prefix, tmp_path: Path) -> None:
    options = ["--destdir", str(tmp_path / "stage"), "--prefix", "/opt"]
    prefix.install(*options)
    assert os.readlink(tmp_path / "stage/opt/man/man1/cni-py.1") == "../../share/man/man1/cni-py.1"
    completion = (tmp_path / "stage/opt/share" / SHARED[-1]).read_text()
    assert "/opt/bin/cni-py __complete" in completion
    assert str(tmp_path) not in completion
    assert prefix.uninstall(*options).returncode == 0
    assert list((tmp_path / "stage/opt").iterdir()) == []


READ_ONLY_HOST = """
mount -t tmpfs tmpfs {host}
mkdir -p {host}/opt/cni-py {host}/opt/cni/bin {host}/opt/bin
for name in cni-py cni/bin bin; do mkdir -p {data}/$name; mount --bind {data}/$name {host}/opt/$name; done
mount -o remount,ro {host}
{python} {install} install --no-units --destdir {host}
{python} {install} install --no-units --destdir {host}
cat {host}/opt/cni-py/manifest
"""


@pytest.mark.netns
def test_container_with_a_read_only_file_system_installs_the_programs(prefix: Prefix, tmp_path: Path) -> None:
    """The init container of kube-cni-py.yml: the host's directories of programs are mounted, nothing else can be written."""
    (tmp_path / "host").mkdir()
    install = prefix.checkout.install
    script = READ_ONLY_HOST.format(host=tmp_path / "host", data=tmp_path / "data", python=sys.executable, install=install)
    done = subprocess.run(["unshare", "--mount", "sh", "-ec", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "man pages and completion are not installed" in done.stdout
    assert "shared " not in done.stdout
    assert (tmp_path / "data/cni/bin/flannel").exists()
    assert (tmp_path / "data/bin/cni-py").exists()


def test_checkout_without_generated_files_is_installed(prefix: Prefix) -> None:
    shutil.rmtree(prefix.checkout.path / "conf" / "share")
    assert prefix.install().returncode == 0
    assert not (prefix.path / "share").exists()


def test_bytecode_is_valid_whatever_the_time_of_its_source(prefix: Prefix) -> None:
    prefix.install()
    package = prefix.path / "cni-py" / "lib" / "cni_py"
    compiled = list(package.rglob("*.pyc"))
    assert len(compiled) == len(list(package.rglob("*.py")))
    unchecked_hash = (1).to_bytes(4, "little")  # PEP 552
    assert {file.read_bytes()[4:8] for file in compiled} == {unchecked_hash}


def test_destdir_is_written_to_and_not_named(prefix: Prefix, tmp_path: Path) -> None:
    options = ["--destdir", str(tmp_path / "stage"), "--prefix", "/opt"]
    assert prefix.install(*options).returncode == 0
    stage = tmp_path / "stage" / "opt"
    assert (stage / "cni" / "bin" / "flannel").read_text().startswith("#!/opt/cni-py/lib/python -IS\n")
    compiled = (stage / "cni-py" / "lib" / "cni_py" / "__pycache__").glob("client.*.pyc")
    assert all(str(tmp_path).encode() not in file.read_bytes() for file in compiled)
    assert prefix.uninstall(*options).returncode == 0
    assert list(stage.iterdir()) == []


UNITS = ("cni-agent.service", "cni-agent.socket", "cni-dhcp.service", "cni-dhcp.socket", "flanneld.service")


def enable(directory: Path, conf: Path | str) -> set[str]:
    """Create links as `systemctl enable` does for linked units, and third-party ones. Returns the latter."""
    for wants in ("multi-user.target.wants", "sockets.target.wants", "kubelet.service.requires"):
        (directory / wants).mkdir(parents=True)
    (directory / "multi-user.target.wants" / "flanneld.service").symlink_to(f"{conf}/flanneld.service")
    (directory / "multi-user.target.wants" / "cni-agent.service").symlink_to("/etc/systemd/system/cni-agent.service")
    (directory / "sockets.target.wants" / "cni-agent.socket").symlink_to("../cni-agent.socket")
    theirs = {
        "multi-user.target.wants/containerd.service": "/usr/lib/systemd/system/containerd.service",
        "multi-user.target.wants/gone.service": "/etc/systemd/system/gone.service",
        "kubelet.service.requires/flanneld.service": "/usr/lib/systemd/system/flanneld.service",
        "masked.service": "/dev/null",
        "ours.service": "/elsewhere/cni-py/conf/flanneld.service",
    }
    for name, to in theirs.items():
        (directory / name).symlink_to(to)
    (directory / "flanneld.service.d").mkdir()
    (directory / "flanneld.service.d" / "proxy.conf").write_text("[Service]\n")
    return {*theirs, "flanneld.service.d/proxy.conf"}


def files_in(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_symlink() or path.is_file()}


def test_links_of_systemd_go_with_a_staged_installation(prefix: Prefix, tmp_path: Path) -> None:
    """Enable a unit in an image: `systemctl --root=… enable /opt/cni-py/conf/flanneld.service`."""
    options = ["--destdir", str(tmp_path / "stage"), "--prefix", "/opt"]
    assert prefix.install(*options).returncode == 0
    units = tmp_path / "stage" / "etc" / "systemd" / "system"
    assert not units.exists()
    theirs = enable(units, "/opt/cni-py/conf")
    for name in UNITS:
        (units / name).symlink_to(f"/opt/cni-py/conf/{name}")
    assert prefix.uninstall(*options).returncode == 0
    assert files_in(units) == theirs
    assert not (units / "sockets.target.wants").exists()


IN_A_MACHINE_WITH_SYSTEMD = """
mount -t tmpfs tmpfs /etc/systemd/system
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
exec "$@"
"""


@pytest.mark.netns
def test_links_of_systemd_go_with_the_installation(prefix: Prefix, tmp_path: Path) -> None:
    """The directory of units is one of the test's own."""
    script = tmp_path / "script"
    script.write_text(
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(ROOT)]!r}\n"
        "from pathlib import Path\n"
        "from test_install import Checkout, Prefix, UNITS, enable, files_in\n"
        f"prefix = Prefix.__new__(Prefix); prefix.no_units = (); prefix.path = Path({str(prefix.path)!r})\n"
        f"prefix.checkout = Checkout.__new__(Checkout); prefix.checkout.install = Path({str(prefix.checkout.install)!r})\n"
        "units = Path('/etc/systemd/system')\n"
        "(units / 'cni-agent.socket').symlink_to('/dev/null')  # masked\n"
        "assert prefix.install('--no-units').returncode == 0\n"
        "assert files_in(units) == {'cni-agent.socket'}\n"
        "assert prefix.install().returncode == 0\n"
        "assert files_in(units) == set(UNITS)\n"
        "assert (units / 'cni-agent.socket').readlink() == Path('/dev/null')\n"
        "assert prefix.install('--no-units').returncode == 0\n"
        "assert files_in(units) == set(UNITS), 'left alone'\n"
        "theirs = enable(units, prefix.path / 'cni-py' / 'conf')\n"
        "done = prefix.uninstall()\n"
        "assert done.returncode == 0\n"
        "names = 'cni-agent.service cni-dhcp.service cni-dhcp.socket flanneld.service'\n"
        "assert f'systemd no longer starts {names}; ' in done.stdout, done.stdout\n"
        "masked = {'cni-agent.socket', 'sockets.target.wants/cni-agent.socket'}\n"
        "assert files_in(units) == theirs | masked, files_in(units)\n"
    )
    inside = ["unshare", "--mount", "sh", "-ec", IN_A_MACHINE_WITH_SYSTEMD, "sh", sys.executable, str(script)]
    done = subprocess.run(inside, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.netns
def test_flanneld_that_was_there_before_is_named(prefix: Prefix, tmp_path: Path) -> None:
    """The deployment guide's unit and process: left alone, and reported to the operator."""
    script = tmp_path / "script"
    go = tmp_path / "go" / "flanneld"
    foreign(go, "#!/bin/sh\nread x\n")
    script.write_text(
        f"import subprocess, sys; sys.path[:0] = {[str(Path(__file__).parent), str(ROOT)]!r}\n"
        "from pathlib import Path\n"
        "from test_install import Prefix, Checkout\n"
        f"prefix = Prefix.__new__(Prefix); prefix.no_units = (); prefix.path = Path({str(prefix.path)!r})\n"
        f"prefix.checkout = Checkout.__new__(Checkout); prefix.checkout.install = Path({str(prefix.checkout.install)!r})\n"
        "unit = Path('/etc/systemd/system/flanneld.service')\n"
        "unit.write_text('[Service]\\nExecStart=/opt/bin/flanneld $FLANNEL_OPTIONS\\n')\n"
        f"running = subprocess.Popen([{str(go)!r}], stdin=subprocess.PIPE)\n"
        "said = prefix.install('--replace').stdout\n"
        "assert f'{unit} is the unit of another flanneld' in said, said\n"
        "assert 'docs/from-go.md' in said\n"
        f"assert f'process {{running.pid}} ({go}) is a flanneld from before' in said, said\n"
        "assert 'ExecStart=/opt/bin/flanneld $' in unit.read_text(), 'left alone'\n"
        "assert 'export PATH=$PATH:' in said\n"
        "running.communicate()\n"
        "unit.unlink()\n"
        "said = prefix.install().stdout\n"
        "assert 'another flanneld' not in said and 'from before' not in said, said\n"
    )
    inside = ["unshare", "--mount", "--net", "sh", "-ec", IN_A_MACHINE_WITH_SYSTEMD, "sh", sys.executable, str(script)]
    done = subprocess.run(inside, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("mode", [0o077, 0o000])
def test_modes_are_the_same_whatever_the_checkout_had(prefix: Prefix, mode: int) -> None:
    for path in [*prefix.checkout.path.rglob("*")]:
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() or os.access(path, os.X_OK) else 0o666) & ~mode | 0o600)
    assert prefix.install().returncode == 0
    programs = {*prefix.bin.iterdir(), *(prefix.path / "bin").iterdir()}
    for path in prefix.path.rglob("*"):
        if not path.is_symlink():
            expected = 0o755 if path.is_dir() or path in programs else 0o644
            assert path.stat().st_mode & 0o7777 == expected, path


def test_upgrade_leaves_one_library(prefix: Prefix) -> None:
    prefix.install()
    prefix.checkout.set_version("1.1")
    assert prefix.install().returncode == 0
    assert len(prefix.libraries()) == 1
    assert prefix.libraries()[0].startswith("lib-1.1-")
    assert version(prefix.bin / "bridge") == "1.1"


def test_uninstall_leaves_nothing_of_ours_and_all_of_others(prefix: Prefix) -> None:
    foreign(prefix.bin / "third-party")
    prefix.install()
    assert prefix.uninstall().returncode == 0
    assert prefix.everything() == ["cni", "cni/bin", "cni/bin/third-party"]
    assert prefix.uninstall().returncode == 1


def test_foreign_plugin_is_not_overwritten(prefix: Prefix) -> None:
    foreign(prefix.bin / "flannel")
    foreign(prefix.bin / "bridge")
    before = prefix.everything()
    done = prefix.install()
    assert done.returncode == 1
    assert str(prefix.bin / "flannel") in done.stderr
    assert str(prefix.bin / "bridge") in done.stderr
    assert "REPLACE=1" in done.stderr
    assert prefix.everything() == before


def test_replaced_plugin_is_kept_and_put_back(prefix: Prefix) -> None:
    foreign(prefix.bin / "real-flannel", "#!/bin/sh\necho linked\n")
    (prefix.bin / "flannel").symlink_to("real-flannel")
    foreign(prefix.bin / "bridge")
    before = {path: (path.read_bytes(), path.stat().st_mode) for path in prefix.bin.iterdir()}
    assert prefix.install("--replace").returncode == 0
    assert version(prefix.bin / "bridge") == "1.0"
    assert version(prefix.bin / "flannel") == "1.0"
    assert (prefix.bin / "bridge.before-cni-py").read_text() == "#!/bin/sh\necho Go\n"
    assert prefix.install().returncode == 0  # an upgrade need not say it again
    assert prefix.uninstall().returncode == 0
    assert {path: (path.read_bytes(), path.stat().st_mode) for path in prefix.bin.iterdir()} == before
    assert os.readlink(prefix.bin / "flannel") == "real-flannel"


def test_plugin_that_others_put_in_place_since_is_left_alone(prefix: Prefix) -> None:
    foreign(prefix.bin / "bridge", "old")
    prefix.install("--replace")
    (prefix.bin / "bridge").unlink()
    foreign(prefix.bin / "bridge", "new")
    done = prefix.install("--replace")
    assert done.returncode == 1
    assert "bridge.before-cni-py" in done.stderr
    assert prefix.uninstall().returncode == 0
    assert (prefix.bin / "bridge").read_text() == "new"
    assert (prefix.bin / "bridge.before-cni-py").read_text() == "old"


@pytest.mark.parametrize("path", ["with blank", "long" * 60])
def test_prefix_that_the_kernel_cannot_execute_is_refused(prefix: Prefix, path: str) -> None:
    done = prefix.install("--prefix", str(prefix.path / path))
    assert done.returncode == 1
    assert "cannot be used" in done.stderr
    assert prefix.everything() == []


GO = "#!/bin/sh\necho Go\n"


@pytest.fixture
def points(longer: int) -> Iterator[int]:
    """Changes before which the installer is killed: all of them, or every third."""
    return count(step=1 if longer > 1 else 3)


def test_installation_killed_at_any_point(prefix: Prefix, points: Iterator[int]) -> None:
    """Kill a first installation, over a third-party plugin, before each change in turn; uninstall it now and then."""
    bridge = prefix.bin / "bridge"
    foreign(bridge, GO)
    while prefix.install("--replace", killed_at=(point := next(points))).returncode == 99:
        assert bridge.read_text() == GO or version(bridge) == "1.0"
        if point % 9 == 0:
            prefix.uninstall()  # refuses where nothing was begun
            assert bridge.read_text() == GO
            assert not (prefix.bin / "bridge.before-cni-py").exists()
    assert point > 20
    assert {version(prefix.bin / name) for name in PLUGINS} == {"1.0"}


def test_upgrade_killed_at_any_point(prefix: Prefix, points: Iterator[int]) -> None:
    """Old or new, but always one of them; and what was interrupted is completed by the next."""
    prefix.install()
    prefix.checkout.set_version("1.1")
    seen = []
    while prefix.install(killed_at=next(points)).returncode == 99:
        seen += [version(prefix.bin / "flannel")]
    assert set(seen) == {"1.0", "1.1"}
    assert seen == sorted(seen)
    assert len(prefix.libraries()) == 1


def test_removal_killed_at_any_point(prefix: Prefix, points: Iterator[int]) -> None:
    bridge = prefix.bin / "bridge"
    foreign(bridge, GO)
    prefix.install("--replace")
    while prefix.uninstall(killed_at=(point := next(points))).returncode == 99:
        assert bridge.read_text() == GO or version(bridge) == "1.0"
        prefix.install()
        prefix.install("--replace")
    assert point > 10
    assert prefix.everything() == ["cni", "cni/bin", "cni/bin/bridge"]
    assert bridge.read_text() == GO
