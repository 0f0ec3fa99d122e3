"""The fixture `lab`: a flannel network for a test, with what is installed.

    @pytest.mark.parametrize("lab", [{"nodes": 2, "backend": "host-gw"}], indirect=True)
    def test_something(lab):
        lab.run("node1", "ip route")

The parameter is the keyword arguments of `Lab`; without one it has three nodes and vxlan. It is taken down with the test.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni_py.lab import Lab
from cni_py.lab.programs import ETCD_PACKAGES, PACKAGES, SYSTEM_PATH


@pytest.fixture
def lab(request: pytest.FixtureRequest, bin_dir: Path) -> Iterator[Lab]:
    options = getattr(request, "param", {})
    need(PACKAGES | (ETCD_PACKAGES if options.get("datastore") == "etcd" else {}))
    with Lab(prefix=str(bin_dir.parent.parent), **options) as made:
        yield made


def need(programs: dict[str, str]) -> None:
    """Skip the test where one of these is missing."""
    for name, package in programs.items():
        if shutil.which(name, path=SYSTEM_PATH) is None:
            pytest.skip(f"no {name} (package {package})")
