"""Fixtures of the tests with Kubernetes' own programs: what K8S_BIN has, and bare nodes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from integration.kubernetes.cluster import Cluster, archive_of_the_image, cluster
from support.namespaces import PATH

BUILT = Path(__file__).resolve().parents[2] / "build" / "containerd2"
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
NODES = 3
BareNodes = Callable[..., Any]


@pytest.fixture(scope="session")
def binaries() -> Path:
    """The directory of `make test-kubernetes K8S_BIN=DIR`. Skips the test where it has no whole cluster."""
    found = Path(os.environ.get("K8S_BIN", "/nonexistent"))
    if not all(os.access(found / name, os.X_OK) for name in PROGRAMS):
        pytest.skip(f"K8S_BIN lacks some of {', '.join(PROGRAMS)} (make test-kubernetes K8S_BIN=DIR)")
    return found


@pytest.fixture(scope="session")
def archive() -> Path:
    """Our image. Skips the test where there is none."""
    found = archive_of_the_image()
    if found is None:
        pytest.skip("no image in dist (make image)")
    return found


@pytest.fixture(scope="module")
def bare_nodes(tmp_path_factory: pytest.TempPathFactory, binaries: Path, archive: Path) -> BareNodes:
    """Return a context manager: a control plane and three nodes that have registered, without a network plugin."""

    @contextmanager
    def made(*archives: Path) -> Iterator[Cluster]:
        places = [f"{binaries}", f"{BUILT}", PATH]
        containerd = str(shutil.which("containerd", path=":".join(places)))
        with cluster(tmp_path_factory.mktemp("cluster"), binaries, containerd, [archive, *archives], NODES) as three:
            with ThreadPoolExecutor(NODES) as pool:
                list(pool.map(three.start_node, three.numbers))
            three.wait(lambda: len(three.get("/api/v1/nodes")["items"]) == NODES, "all nodes have registered")
            yield three

    return made
