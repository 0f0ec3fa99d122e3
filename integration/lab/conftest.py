"""The fixture `lab`: a flannel network for a test, with what is installed.

    @pytest.mark.parametrize("lab", [{"nodes": 2, "backend": "host-gw"}], indirect=True)
    def test_something(lab):
        lab.run("node1", "ip route")

The parameter is the keyword arguments of `Lab`; without one it has three nodes and vxlan. It is taken down with the test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cni_py.lab import Lab
from cni_py.lab.programs import ETCD_TOOLS, TOOLS
from support.tools import need


@pytest.fixture
def lab(request: pytest.FixtureRequest, bin_dir: Path) -> Iterator[Lab]:
    options = getattr(request, "param", {})
    need(TOOLS | (ETCD_TOOLS if options.get("datastore") == "etcd" else {}))
    with Lab(prefix=str(bin_dir.parent.parent), **options) as made:
        yield made
