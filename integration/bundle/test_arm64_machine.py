"""ADD and DEL by the bundle of arm64, in a machine that qemu emulates, with Debian's kernel, busybox and the bundle alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.bundle import debian, image
from integration.bundle.build import BUILD
from integration.bundle.test_bundle import CALLS
from integration.bundle.tree import Tree
from support.namespaces import PATH

MODULES = ("crc32c_generic", "bridge", "veth", "nft_chain_nat", "nft_masq", "nft_nat", "nft_ct")
SECONDS = 1200
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /run /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
export PATH=/bin:/opt/bin
/bin/busybox ip link set lo up
for module in {modules}; do /bin/busybox insmod /modules/$module.ko || exit; done
/bin/busybox uname -a
/bin/busybox sh -ec '{calls}' 2>&1
/bin/busybox echo "exit status $?"
/bin/busybox poweroff -f
"""


def initramfs(tree: Tree, modules: Path, directory: Path) -> Path:
    """Create the root of the machine: the image's, the kernel's modules, a first process."""
    apt = debian.Apt(BUILD / f"apt-{tree.architecture}", tree.architecture)
    rootfs = directory / "rootfs"
    image.make_rootfs(tree, rootfs, apt.packages(["busybox-static"]))
    (rootfs / "bin" / "unshare").symlink_to("busybox")
    (rootfs / "bin" / "readlink").symlink_to("busybox")
    (rootfs / "modules").mkdir()
    wanted = with_dependencies(modules)
    for module in wanted:
        shutil.copy(module, rootfs / "modules")
    names = " ".join(module.stem for module in wanted)
    (rootfs / "init").write_text(INIT.format(modules=names, calls=CALLS.replace("'", "'\\''")))
    (rootfs / "init").chmod(0o755)
    packed = directory / "initramfs"
    command = "find . | busybox cpio -o -H newc 2>/dev/null | gzip -1 >"
    subprocess.run(["sh", "-ec", f"{command} {packed}"], cwd=rootfs, check=True)
    return packed


def with_dependencies(modules: Path) -> list[Path]:
    """Return the files of MODULES, and of what they need, in the order in which they can be loaded."""
    (version,) = modules.iterdir()
    subprocess.run(["depmod", "-b", str(modules.parents[1]), version.name], env={"PATH": PATH}, check=True)
    lines = (line.partition(":") for line in (version / "modules.dep").read_text().splitlines())
    needed = {Path(name).stem: [version / word for word in [*reversed(rest.split()), name]] for name, _, rest in lines}
    return list(dict.fromkeys(file for name in MODULES for file in needed.get(name, [])))


@pytest.mark.timeout(SECONDS + 300)
def test_add_and_del(tree_for: Callable[[str], Tree], tmp_path: Path) -> None:
    if "TEST_KERNEL" not in os.environ:
        pytest.skip("only in make test-kernel: a machine is emulated")
    apt = debian.Apt(BUILD / "apt-arm64", "arm64")
    tree = tree_for("arm64")
    kernel = tmp_path / "kernel"
    debian.unpack(apt.packages([apt.newest("linux-image-cloud-arm64")]), kernel)
    (vmlinuz,) = (kernel / "boot").glob("vmlinuz-*")
    files = ["-kernel", str(vmlinuz), "-initrd", str(initramfs(tree, kernel / "lib" / "modules", tmp_path))]
    machine = ["-M", "virt", "-cpu", "cortex-a57", "-m", "1024", "-accel", "tcg", "-nic", "none", "-nographic", "-no-reboot"]
    command = ["qemu-system-aarch64", *machine, *files, "-append", "console=ttyAMA0 quiet panic=-1"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert "aarch64" in done.stdout
    assert "supportedVersions" in done.stdout
    assert '"address":"10.244.91.2/24"' in done.stdout
    assert "cni0" in done.stdout
    assert "exit status 0" in done.stdout, done.stdout[-3000:]
