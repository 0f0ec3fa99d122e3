"""Fixtures of several files of unit tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from support.kube import Cluster
    from support.watching import Watching

settings.register_profile("without deadline", deadline=None)  # an example takes a hundred times as long on a busy machine
settings.load_profile("without deadline")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A Kubernetes cluster of one node."""
    from cni_py.flanneld.stores import kubernetes as kube_store
    from support.apiserver import ApiServer
    from support.kube import Cluster

    monkeypatch.setattr(kube_store, "MIN_AGAIN_SECONDS", 0.01)
    with ApiServer() as server:
        cluster = Cluster(server, tmp_path)
        yield cluster
        cluster.store.close()


@pytest.fixture
def watcher(cluster: Cluster) -> Iterator[Watching]:
    """A watcher of its leases."""
    from support.watching import Watching

    with Watching(cluster.store) as watcher:
        cluster.server.wait_for_watch()
        yield watcher
