"""The image of all containers here, made of what this machine has: busybox, and Python for answer.py.

    archive = write_image(Path("/run/image.tar"), busybox)      # podman load -i …, ctr images import …

An OCI layout in a tar with one layer. Of Python it holds only what the server process needs: the
interpreter, the libraries that ldd names, and the modules that are loaded after its imports, each under the path that it
has here.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

NAME, PAUSE = "localhost/answer:1", "localhost/pause:1"
ANSWER = Path(__file__).with_name("answer.py")
PYTHON = os.path.realpath(sys.executable)
COMMAND = [PYTHON, "-IS", "/answer.py"]
APPLETS = ("ip", "sh", "sleep", "true")


def write_image(path: Path, busybox: str) -> Path:
    """Write the archive; both podman and containerd name the image NAME afterwards."""
    return write(path, [_layer(busybox)], {"Cmd": COMMAND})


def write_pause(path: Path, busybox: str, name: str = NAME) -> Path:
    """Write an image whose process does nothing, as Kubernetes' pause: what it costs is small."""
    files = {"bin/busybox": Path(busybox).read_bytes()}
    for file in _libraries(busybox):
        files[file.lstrip("/")] = Path(file).read_bytes()
    layer = _tar(files, {"bin/sleep": "busybox"}, ["etc", "tmp", "proc", "sys", "dev", "run"])
    return write(path, [layer], {"Cmd": ["/bin/sleep", "2147483647"]}, name)


def write(path: Path, layers: list[bytes], process: dict[str, Any], name: str = NAME) -> Path:
    """Write an image of layers that are tar archives. ``process``: Cmd, Entrypoint and other keys of its configuration."""
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "WorkingDir": "/"} | process,
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer) for layer in layers]},
    }
    blobs: dict[str, bytes] = {}
    image = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{image}.manifest.v1+json",
        "config": _add(blobs, f"{image}.config.v1+json", json.dumps(config).encode()),
        "layers": [_add(blobs, f"{image}.layer.v1.tar", layer) for layer in layers],
    }
    entry = _add(blobs, f"{image}.manifest.v1+json", json.dumps(manifest).encode())
    entry["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode(),
    }
    path.write_bytes(_tar(files | blobs))
    return path


def _add(blobs: dict[str, bytes], media_type: str, data: bytes) -> dict[str, object]:
    """Keep a blob; its descriptor."""
    digest = _digest(data)
    blobs["blobs/" + digest.replace(":", "/")] = data
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _layer(busybox: str) -> bytes:
    files = {"bin/busybox": Path(busybox).read_bytes(), "answer.py": ANSWER.read_bytes()}
    links = {f"bin/{name}": "busybox" for name in APPLETS}
    for file in {PYTHON, *_libraries(PYTHON), *_libraries(busybox), *_modules()}:
        files[file.lstrip("/")] = Path(file).read_bytes()
    return _tar(files, links, ["etc", "tmp", "proc", "sys", "dev", "run"])


def _modules() -> set[str]:
    """Files of the modules that answer.py imports and what they import, and the libraries of those in C."""
    imports = [
        alias.name for node in ast.walk(ast.parse(ANSWER.read_text())) if isinstance(node, ast.Import) for alias in node.names
    ]
    script = f"import sys, {', '.join(imports)}\nfor m in list(sys.modules.values()): print(getattr(m, '__file__', None) or '')"
    loaded = subprocess.run([PYTHON, "-IS", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    libraries = {library for file in loaded if file.endswith(".so") for library in _libraries(file)}
    return {file for file in loaded if file.startswith("/")} | libraries


def _libraries(file: str) -> set[str]:
    """The shared libraries and the loader, as the loader will look for them."""
    words = subprocess.run(["ldd", file], capture_output=True, text=True, check=False).stdout.split()  # fails for a static file
    return {word for word in words if word.startswith("/")}


def _tar(files: dict[str, bytes], links: dict[str, str] | None = None, directories: list[str] | None = None) -> bytes:
    """Create an archive in which every file may be read and executed by all users."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w", format=tarfile.PAX_FORMAT) as archive:
        above = {str(parent) for name in (*files, *(links or {})) for parent in Path(name).parents} - {"."}
        for name in sorted({*above, *(directories or [])}):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755
            archive.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return memory.getvalue()
