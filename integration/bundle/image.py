"""Write an OCI image of a bundle, without a container engine.

Owns: the image's file system, its configuration and labels.

How it works. The installer installs the bundle into an empty directory, with the prefix /opt. Added are a static busybox, for
manifests whose init container runs `cp` and for a look around, and `/flannel`, the one file that flannel's own manifest copies.
The directory becomes one layer; layer, configuration and manifest are blobs of an OCI layout, in a tar. `ctr images import`,
`podman load` and `skopeo copy oci-archive:` read it.

Source: OCI image-spec 1.1: image-layout, manifest, config, annotations.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from datetime import UTC, datetime
from pathlib import Path

from integration.bundle import archive, debian, sbom
from integration.bundle.tree import Tree, version

ROOT = Path(__file__).resolve().parents[2]
NAME = "docker.io/cni-py/cni-py"
APPLETS = (
    "cat",
    "cp",
    "env",
    "grep",
    "head",
    "ip",
    "ls",
    "mkdir",
    "mount",
    "mv",
    "nsenter",
    "ps",
    "rm",
    "sh",
    "sleep",
    "tail",
    "wget",
)
PATH = "/opt/bin:/opt/cni-py:/usr/bin:/bin"
TYPE = "application/vnd.oci.image"
FLANNEL = """#!/bin/sh
''':'
# The plugin flannel for flannel's own manifest, which copies this one file to the host. The library has to be there.
[ -x {python} ] && exec {python} -IS "$0" "$@"
echo '{{"cniVersion": "1.0.0", "code": 11, "msg": "cni-py is not installed on this node: {python} does not exist",' \\
  '"details": "this file alone cannot attach pods: install the bundle on the node, or apply kube-cni-py.yml"}}'
exit 1
'''
import sys

sys.path.insert(-1, {lib!r})
from cni_py.client import main

main()
"""
"""A script of the shell, and of Python: the shell starts the interpreter with it, under its name."""


def write(path: Path, tree: Tree, rootfs: Path, date: int, level: int = 9, number: str = "") -> None:
    """Write the image of a tree, compressed by gzip's `level`. `number`: its version, if it is not this checkout's."""
    busybox = debian.Apt(tree.debian.with_name(f"apt-{tree.architecture}"), tree.architecture).packages(["busybox-static"])
    make_rootfs(tree, rootfs, busybox)
    parts = sbom.parts_in((tree.lib / sbom.NAME).read_text()) + sbom.parts_of(busybox, [])
    put(rootfs / "usr/share/sbom" / sbom.NAME, sbom.document(path.name, parts, date))
    layer = io.BytesIO()
    archive.tar(layer, [(rootfs, "")], date)
    packed = gzip.compress(layer.getvalue(), compresslevel=level, mtime=0)
    new = path.with_name(f".{path.name}.new")
    with new.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as image:
        for name, data in sorted(layout(tree.architecture, layer.getvalue(), packed, date, number or version()).items()):
            info = archive.entry(name, 0o644, date)
            info.size = len(data)
            image.addfile(info, io.BytesIO(data))
    new.replace(path)


def make_rootfs(tree: Tree, rootfs: Path, busybox: list[debian.Package]) -> None:
    """Create the image's directories."""
    shutil.rmtree(rootfs, ignore_errors=True)
    rootfs.mkdir(parents=True)
    words = ["install", "--prefix", "/opt", "--destdir", str(rootfs), "--no-units"]
    installer = [sys.executable, "-ISB", str(tree.lib / "integration" / "install")]
    subprocess.run([*installer, *words], check=True, stdout=subprocess.DEVNULL)
    unpacked = rootfs.with_name(f"busybox-{tree.architecture}")
    debian.unpack(busybox, unpacked)
    put(rootfs / "bin/busybox", (unpacked / "bin/busybox").read_bytes(), 0o755)
    for name in APPLETS:
        (rootfs / "bin" / name).symlink_to("busybox")
    for name in ("cni-agent", "cni-py", "flanneld"):
        link = rootfs / "usr/bin" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"/opt/bin/{name}")
    lib = "/opt/cni-py/lib"
    put(rootfs / "flannel", FLANNEL.format(python=f"{lib}/python", lib=lib), 0o755)
    put(rootfs / "etc/passwd", "root:x:0:0:root:/:/bin/sh\nnonroot:x:65532:65532:nonroot:/:/bin/sh\n")
    put(rootfs / "etc/group", "root:x:0:\nnonroot:x:65532:\n")
    for name in ("run", "tmp", "proc", "sys", "dev", "var/lib"):
        (rootfs / name).mkdir(parents=True, exist_ok=True)


def put(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)


def layout(architecture: str, layer: bytes, packed: bytes, date: int, number: str) -> dict[str, bytes]:
    """Return the files of the OCI layout."""
    created = datetime.fromtimestamp(date, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    labels = {
        "org.opencontainers.image.title": "cni-py",
        "org.opencontainers.image.description": "flannel, its plugins, and the agent of cni-py; installs itself on a node",
        "org.opencontainers.image.version": number,
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.created": created,
    }
    config = {
        "created": created,
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": [f"PATH={PATH}"], "Cmd": ["/opt/bin/flanneld"], "WorkingDir": "/", "Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
        "history": [{"created": created, "created_by": "make image", "comment": f"cni-py {number}"}],
    }
    blobs: dict[str, bytes] = {}
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{TYPE}.manifest.v1+json",
        "config": add(blobs, f"{TYPE}.config.v1+json", text(config)),
        "layers": [add(blobs, f"{TYPE}.layer.v1.tar+gzip", packed)],
        "annotations": labels,
    }
    entry = add(blobs, f"{TYPE}.manifest.v1+json", text(manifest))
    entry["platform"] = {"architecture": architecture, "os": "linux"}
    name = f"{NAME}:{number}"
    entry["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": number}
    index = {"schemaVersion": 2, "mediaType": f"{TYPE}.index.v1+json", "manifests": [entry]}
    return {"oci-layout": text({"imageLayoutVersion": "1.0.0"}), "index.json": text(index), **blobs}


def add(blobs: dict[str, bytes], media_type: str, data: bytes) -> dict[str, object]:
    """Add a blob. Returns: its descriptor."""
    blobs["blobs/" + digest(data).replace(":", "/")] = data
    return {"mediaType": media_type, "digest": digest(data), "size": len(data)}


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def text(document: dict[str, object]) -> bytes:
    return json.dumps(document, sort_keys=True).encode()
