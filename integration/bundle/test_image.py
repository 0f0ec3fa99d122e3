"""The OCI image: that its layout is valid, that containerd takes it, and that its programs run in it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from integration.bundle import image
from integration.bundle.build import BUILD
from integration.bundle.conftest import one_at_a_time
from integration.bundle.roots import Root
from integration.bundle.tree import Tree, version
from integration.clients.containerd import Containerd
from support.namespaces import Host

DATE = 1_700_000_000
NAME = f"{image.NAME}:{version()}"


@pytest.fixture(scope="module")
def made(tree: Tree) -> Path:
    """The image of this machine's processor, little compressed; made once for all processes of a run. No test changes it."""
    directory = BUILD / "test-image"
    path = directory / "cni-py.oci.tar"
    newest = max(file.stat().st_mtime for file in (tree.lib / "bundle.json", Path(image.__file__)))
    with one_at_a_time():
        if not path.exists() or path.stat().st_mtime < newest:
            directory.mkdir(exist_ok=True)
            image.write(path, tree, directory / "rootfs", DATE, level=1)
    return path


@pytest.fixture
def root(made: Path) -> Root:
    """The image's file system."""
    return Root(made.with_name("rootfs"))


def blobs(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}


def read(files: dict[str, bytes], descriptor: dict[str, object]) -> bytes:
    """Return the blob of a descriptor, whose size and digest it has."""
    data = files["blobs/" + str(descriptor["digest"]).replace(":", "/")]
    assert descriptor["size"] == len(data)
    assert descriptor["digest"] == "sha256:" + hashlib.sha256(data).hexdigest()
    return data


def test_layout(made: Path, tree: Tree) -> None:
    files = blobs(made)
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads(files["index.json"])
    (entry,) = index["manifests"]
    assert (index["schemaVersion"], index["mediaType"]) == (2, "application/vnd.oci.image.index.v1+json")
    assert entry["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert entry["platform"] == {"architecture": tree.architecture, "os": "linux"}
    assert entry["annotations"]["io.containerd.image.name"] == NAME
    manifest = json.loads(read(files, entry))
    config = json.loads(read(files, manifest["config"]))
    (layer,) = manifest["layers"]
    assert manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    assert layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar+gzip"
    data = gzip.decompress(read(files, layer))
    assert config["rootfs"] == {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(data).hexdigest()]}
    assert config["architecture"] == tree.architecture
    assert config["config"]["Labels"]["org.opencontainers.image.version"] == version()
    assert len(files) == 5  # no blob that nothing refers to
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
    assert {(member.uid, member.gid, member.mtime) for member in members} == {(0, 0, DATE)}
    assert [member.name for member in members if member.mode & 0o022 and not member.issym()] == []
    assert not any(member.name.startswith(("/", "./", "..")) for member in members)
    pages = {"opt/share/man/man1/cni-py.1", "opt/man/man8/flanneld.8", "opt/share/man/man8/cni-bridge.8"}
    assert pages <= {member.name for member in members}


def test_same_image_again(made: Path, tree: Tree, tmp_path: Path, longer: int) -> None:
    if longer == 1:
        pytest.skip("only in make test-long: another image is made")
    again = tmp_path / made.name
    image.write(again, tree, tmp_path / "rootfs", DATE, level=1)
    assert again.read_bytes() == made.read_bytes()


def test_programs_of_the_image(root: Root) -> None:
    output = root.run(
        "/opt/bin/flanneld --version; flanneld --version; /opt/cni-py/install --help; cni-agent --help; /usr/bin/cni-py version"
    )
    assert output.startswith(f"{version()}\n{version()}\n")
    assert "usage: install" in output
    assert f"cni-py {version()}" in output


def test_programs_run_without_root(root: Root) -> None:
    command = ["chroot", "--userspec=65532:65532", str(root.path), "/opt/bin/cni-py", "version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("cni-py ")


def test_contents_are_listed(root: Root) -> None:
    document = json.loads((root.path / "usr/share/sbom/sbom.spdx.json").read_text())
    assert {"cni-py", "busybox-static", "libc6", "grpcio"} <= {package["name"] for package in document["packages"]}


def test_file_that_flannels_manifest_copies(root: Root, tmp_path: Path) -> None:
    """The file works where the bundle is installed on the host; elsewhere it says in one sentence what is missing."""
    output = root.run(
        "mkdir /run/bin; cp -f /flannel /run/bin/flannel; CNI_COMMAND=VERSION /run/bin/flannel </dev/null; echo;"
        "mount -t tmpfs tmpfs /opt/cni-py; CNI_COMMAND=ADD /run/bin/flannel </dev/null || echo failed $?"
    ).splitlines()
    assert "supportedVersions" in json.loads(output[0])
    error = json.loads("".join(output[1:-1]))
    assert error["msg"] == "cni-py is not installed on this node: /opt/cni-py/lib/python does not exist"
    assert output[-1] == "failed 1"


def test_container_installs_on_its_host(root: Root) -> None:
    """The init container of kube-cni-py.yml, with the host's directories mounted."""
    output = root.run(
        "mkdir -p /run/host/opt/cni-py /run/host/opt/cni/bin; echo Go >/run/host/opt/cni/bin/bridge;"
        "/opt/cni-py/install --destdir /run/host --replace --plugins flannel,bridge,host-local,portmap,loopback;"
        "ls /run/host/opt/cni/bin; head -n 1 /run/host/opt/cni/bin/flannel"
    )
    expected = "bridge bridge.before-cni-py cni-plugin flannel host-local loopback portmap #!/opt/cni-py/lib/python -IS"
    assert " ".join(output.splitlines()[-8:]) == expected


def test_containerd_takes_it(host: Host, bin_dir: Path, containerd_program: str, answer_image: Path, made: Path) -> None:
    containerd = Containerd(containerd_program, host, bin_dir, answer_image)
    containerd.import_image(made)
    words = ["-n", "k8s.io", "run", "--rm", "--snapshotter", containerd.snapshotter]
    runtime = ["--runtime", "io.containerd.runc.v2", "--runc-binary", "/run/crun"]
    done = containerd.ctr(*words, *runtime, NAME, "trial", "/opt/bin/flanneld", "--version")
    host.close()
    containerd.process.wait(20)
    assert (done.returncode, done.stdout) == (0, f"{version()}\n"), done.stderr
