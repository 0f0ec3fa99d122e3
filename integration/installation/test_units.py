"""The systemd units: their limits cost no function, and systemd-analyze knows every setting."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CONF = Path(__file__).resolve().parents[2] / "conf"
UNITS = ["flanneld.service", "cni-agent.service", "cni-dhcp.service"]
NO_MOUNT_NAMESPACE = re.compile(
    r"^(Protect|Private|ReadOnly|ReadWrite|Inaccessible|Bind|Temporary|Root|Mount)\w*=", re.MULTILINE
)


def settings(unit: str) -> dict[str, str]:
    lines = (CONF / unit).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


@pytest.fixture
def analyze() -> str:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze (package systemd)")
    return program


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_knows_every_setting(analyze: str, unit: str, tmp_path: Path) -> None:
    for name in (unit, unit.replace(".service", ".socket")):
        if (CONF / name).exists():
            (tmp_path / name).write_text((CONF / name).read_text().replace("@PREFIX@/", "/bin/true #"))
    done = subprocess.run([analyze, "verify", str(tmp_path / unit)], capture_output=True, text=True, check=False, timeout=60)
    assert "Unknown" not in done.stderr, done.stderr
    assert "Failed to parse" not in done.stderr, done.stderr


@pytest.mark.parametrize(("unit", "most"), [("flanneld.service", 7.0), ("cni-agent.service", 8.9), ("cni-dhcp.service", 7.5)])
def test_exposure_is_less_than_that_of_a_bare_unit(analyze: str, unit: str, most: float, tmp_path: Path) -> None:
    (tmp_path / unit).write_text((CONF / unit).read_text().replace("@PREFIX@", "/opt"))
    argv = [analyze, "security", "--offline=true", "--no-pager", str(tmp_path / unit)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    if found is None:
        pytest.skip(f"systemd-analyze here cannot work offline: {done.stderr[:200]}")
    assert float(found[1]) <= most


@pytest.mark.parametrize("unit", UNITS)
def test_no_mount_namespace(unit: str) -> None:
    assert not NO_MOUNT_NAMESPACE.search((CONF / unit).read_text())


def test_drop_in_lifts_every_limit_of_flanneld() -> None:
    lifted = settings("drop-ins/flanneld-commands.conf")
    limits = {
        name
        for name in settings("flanneld.service")
        if name.startswith(("Capability", "NoNew", "Restrict", "Lock", "SystemCall"))
    }
    assert limits - {"RestartPreventExitStatus"} == set(lifted)


@pytest.mark.parametrize("backend", ["vxlan", "host-gw", "udp"])
def test_flanneld_works_within_its_capabilities(cni_py: Path, tmp_path: Path, backend: str) -> None:
    """The lab runs a flanneld with the unit's capabilities and without new privileges; pods reach one another."""
    kept = settings("flanneld.service")["CapabilityBoundingSet"].lower().replace("cap_", "+").split()
    limited = tmp_path / "flanneld"
    limited.write_text(
        f'#!/bin/sh\nexec setpriv --no-new-privs --bounding-set=-all,{",".join(kept)} {cni_py.parent}/flanneld "$@"\n'
    )
    limited.chmod(0o755)
    lab = [str(cni_py), "lab"]
    directory = ["--directory", str(tmp_path / "lab")]
    up = [*lab, "up", *directory, "--nodes", "2", "--backend", backend, "--flanneld", str(limited)]
    try:
        done = subprocess.run(up, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        words = subprocess.run(
            [*lab, "exec", *directory, "node1", "--", "sh", "-c", "grep CapBnd /proc/$(pgrep -of bin/flanneld)/status"],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert int(words.stdout.split()[1], 16).bit_count() == len(kept), words
        log = subprocess.run([*lab, "log", *directory, "node1"], capture_output=True, text=True, check=False, timeout=60).stdout
        assert "not permitted" not in log
        assert "denied" not in log
        subprocess.run([*lab, "break", *directory, "route", "node1"], check=True, capture_output=True, timeout=60)
        subprocess.run([*lab, "ping", *directory, "--outside"], check=True, capture_output=True, timeout=60)
    finally:
        subprocess.run([*lab, "down", *directory], check=True, capture_output=True, timeout=60)


def test_agents_limits_do_not_forbid_namespaces() -> None:
    assert "RestrictNamespaces" not in settings("cni-agent.service")
    assert "CapabilityBoundingSet" not in settings("cni-agent.service")
