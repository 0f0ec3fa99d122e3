#!/usr/bin/env python3
"""Tests of what the kernel here may lack, in guests that have it, and of an old kernel. `make test-kernel` calls this.

    run.py [uml|qemu|oldest] [--limit SECONDS] [PYTEST-ARGUMENT …]     (arguments take the place of the guest's list of tests)

    uml    user-mode Linux 6.1: bridge VLANs, vlan, ipvlan, vrf, dummy, ipip; of nftables it has the family `bridge` alone
    qemu   Debian's kernel under software emulation: WireGuard, and what needs nftables' family `inet`
    oldest Linux 5.10 of the oldest Debian, under software emulation: the bundle, the guide's chain, flanneld's vxlan

How it works. A guest is one process here; its root is this machine's file system, read-only. In it one pytest runs
all of its list. Each line is shown as it comes, under the guest's name; the last one adds up both closing lines.
Where user-mode Linux does not start, its tests run in qemu.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
HERE = CHECKOUT / "integration" / "kernel"
BUILD = CHECKOUT / "build" / "kernel"
UML = CHECKOUT / "integration" / "golden-plugins" / "uml.sh"
PYTHON = CHECKOUT / "build" / "venv" / "bin" / "python"
BIN_DIR = CHECKOUT / "build" / "test" / "cni" / "bin"
KINDS = ("vlan", "ipvlan", "dummy")
MAIN, CHAINED, CHAINS = (f"tests/netns/{name}.py" for name in ("test_main_plugins", "test_chained", "test_chains"))
TESTS = {
    "uml": [
        "integration/kernel/test_bridge_vlan.py",
        "integration/kernel/test_flanneld_ipip.py",
        "integration/kernel/test_recorded.py",
        "tests/netns/test_bridge_options.py::test_vlan",
        *(f"{MAIN}::test_second_pod_leaves_no_trace[{verb}-{kind}]" for kind in KINDS for verb in ("DEL", "GC")),
        *(f"{MAIN}::test_kill_before_each_operation[{of}-{kind}]" for kind in KINDS for of in ("ADD-GC", "DEL-DEL")),
        *(f"{MAIN}::test_del_after_the_interface_was_deleted[{kind}]" for kind in KINDS),
        *(f"{MAIN}::{test}[ipvlan]" for test in ("test_delegate_of_flannel", "test_check_finds_routes_that_sbr_moved")),
        *(f"{CHAINS}::test_static_addresses_on_the_wire[{kind}]" for kind in ("vlan", "ipvlan")),
        f"{CHAINS}::test_pods_of_another_delegate_reach_each_other[ipvlan]",
        "tests/netns/test_dhcp.py::test_lease_of_an_interface_on_the_wire[vlan]",
        *(
            f"integration/interop/test_go_main_plugins.py::test_one_adds_and_the_other_checks_and_deletes[{kind}-static-{order}]"
            for kind in ("vlan", "ipvlan")
            for order in ("ours-then-go", "go-then-ours")
        ),
        "tests/netns/test_vrf.py",
        *(
            f"{CHAINED}::test_{test}[vrf]"
            for test in (
                "add_check_delete_leave_nothing",
                "delete_needs_no_previous_result_and_no_namespace",
                "check_before_add_fails",
                "add_takes_everything_back_whichever_step_fails",
                "del_names_what_is_left_and_the_next_one_does_it",
                "kernel_that_does_not_answer_a_question",
                "gc_deletes_what_is_not_listed_and_only_that",
            )
        ),
        *(f"{CHAINED}::test_kill_before_each_operation[{of}-vrf]" for of in ("ADD-DEL", "DEL-GC")),
        f"{CHAINED}::test_add_check_delete_leave_nothing[vrf-table]",
    ],
    "qemu": [
        "integration/kernel/test_flanneld_wireguard.py",
    ],
    "oldest": [
        "integration/kernel/test_oldest.py",
        "tests/netns/test_flannel.py::test_deployment_guide",
        "tests/netns/test_check.py::test_right_after_add_all_is_well[ipMasq-1.1.0]",
        "tests/netns/test_check.py::test_right_after_add_all_is_well[macspoofchk-1.1.0]",
        *(f"tests/netns/test_portmap.py::test_second_pod_leaves_no_trace[{backend}]" for backend in ("nftables", "iptables")),
        "tests/netns/test_flanneld_paths.py::test_vxlan_joins_pods[dual]",
    ],
}
KERNELS = {"qemu": "linux", "oldest": "oldest"}
"""Directories of the kernels that qemu starts, below BUILD."""
ADDOPTS = "--strict-markers --strict-config -ra -p no:cacheprovider --import-mode=importlib"
TEST_SECONDS = 600
LIMIT_SECONDS = 1200
CLOSING = re.compile(r"=+ (.*) in [\d.]+s.*=+$")
MEGABYTES = 1024
_lock = threading.Lock()


@dataclass
class Guest:
    """``counts``: of pytest's closing line; empty where it never came to one."""

    name: str
    tests: list[str]
    limit: float
    counts: Counter[str] = field(default_factory=Counter)
    status: int | None = None
    began: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Run its process, to its end or to the limit."""
        command = uml_command(self.tests) if self.name == "uml" else qemu_command(self.name, self.tests)
        environment = os.environ | {"PATH": f"{BUILD / 'bin'}:{os.environ['PATH']}", "LIMIT": f"{self.limit:.0f}"}
        self.say(f"starts, with {' '.join(self.tests)}")
        process = subprocess.Popen(
            ["nice", "timeout", "--kill-after=5", f"{self.limit:.0f}", *command],
            cwd=CHECKOUT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self.hear(line.rstrip())
        process.wait()
        if not self.counts:
            self.say(f"did not come to pytest's closing line (limit: {self.limit:.0f} s)")

    def hear(self, line: str) -> None:
        if line.startswith("exit status "):
            self.status = int(line.split()[2])
        elif line:
            self.say(line)
        if found := CLOSING.search(line):
            self.counts.update({kind: int(number) for number, kind in re.findall(r"(\d+) ([a-z]+)", found[1])})

    def say(self, line: str) -> None:
        with _lock:
            print(f"{self.name:6} {time.monotonic() - self.began:4.0f} s  {line}", flush=True)

    @property
    def has_passed(self) -> bool:
        return self.status == 0 and self.counts["passed"] > 0


def guest_command(modules: str, tests: list[str]) -> list[str]:
    pytest = [str(PYTHON), "-m", "pytest", "-p", "pytest_timeout", "-v", "--color=no", "-o", f"timeout={TEST_SECONDS}"]
    guest = [str(HERE / "guest"), modules, "env", f"TEST_BIN_DIR={BIN_DIR}"]
    return ["sh", *guest, *pytest, "-o", f"addopts={ADDOPTS}", *tests]


def uml_command(tests: list[str]) -> list[str]:
    return [str(UML), *guest_command("/run/modprobe", tests)]


def qemu_command(name: str, tests: list[str]) -> list[str]:
    directory = BUILD / KERNELS[name]
    (BUILD / f"command-{name}").write_text(shlex.join(guest_command(str(directory), tests)) + "\n")
    hardware = ["-accel", "tcg,thread=multi", "-smp", "2", "-cpu", "max", "-m", str(MEGABYTES)]
    console = ["-display", "none", "-monitor", "none", "-serial", "stdio", "-serial", f"file:{BUILD / f'console-{name}'}"]
    kernel = ["-kernel", str(directory / "vmlinuz"), "-initrd", str(directory / "initramfs"), "-no-reboot"]
    kernel += ["-append", f"console=ttyS1 quiet panic=-1 checkout={CHECKOUT} guest={name}"]
    files = ["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]
    return ["qemu-system-x86_64", "-nic", "none", *hardware, *console, *kernel, *files]


def uml_starts() -> bool:
    environment = os.environ | {"PATH": f"{BUILD / 'bin'}:{os.environ['PATH']}", "LIMIT": "60"}
    return subprocess.run([UML, "true"], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode == 0


def planned(chosen: str, arguments: list[str], limit: float) -> list[Guest]:
    """The guests, each with its tests."""
    every = [name for name in TESTS if name != "oldest" or not arguments]  # tests that are named are about features
    tests = {name: arguments or TESTS[name] for name in ([chosen] if chosen else every)}
    if "uml" in tests and not uml_starts():
        print("user-mode Linux does not start here (uml.sh true): its tests run in qemu", flush=True)
        tests["qemu"] = [*dict.fromkeys(tests.get("qemu", []) + tests.pop("uml"))]
    return [Guest(name, of_it, limit) for name, of_it in tests.items()]


def closing_line(guests: list[Guest], seconds: float) -> str:
    """Add up the counts, in the form of pytest's last line."""
    counts = sum((guest.counts for guest in guests), Counter())
    lost = sum(not guest.counts for guest in guests)
    counts["errors"] += counts.pop("error", 0) + lost
    kinds = [kind for kind in ("failed", "passed", "skipped", "deselected", "xfailed", "errors") if counts[kind]]
    words = ", ".join(f"{counts[kind]} {kind}" for kind in kinds) or "no tests ran"
    return f" {words} in {seconds:.2f}s ".center(100, "=")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("guest", nargs="?", default="")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS)
    options, arguments = parser.parse_known_args()
    if options.guest and options.guest not in TESTS:
        arguments, options.guest = [options.guest, *arguments], ""
    began = time.monotonic()
    guests = planned(options.guest, arguments, options.limit)
    threads = [threading.Thread(target=guest.run) for guest in guests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(closing_line(guests, time.monotonic() - began), flush=True)
    return 0 if all(guest.has_passed for guest in guests) else 1


if __name__ == "__main__":
    sys.exit(main())
