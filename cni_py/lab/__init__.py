"""A flannel network on one machine (``cni-py lab``): nodes, their switch, etcd and pods are namespaces.

::

    with Lab(nodes=3, backend="vxlan") as lab:
        assert lab.ping().is_complete
        lab.run("pod1", "ping -c 1 10.244.85.2")

How it works. One process, the keeper, is process 1 of a PID namespace, and everything else runs inside: the
machines (nodes, router, outside, etcd; `machine.py`), their daemons (`services.py`) and their pods. The switch is the
keeper's own network namespace. When the keeper exits, the kernel kills everything in the lab and removes
every interface, rule and mount with it: nothing is removed one by one, and no kill leaves anything. Until :meth:`Lab.stay`
the keeper exits with the process that created the lab, by a pipe that closes.

`lab.py` creates and removes a lab, with the parts of `build.py`; `site.py` is for everything that a running lab is used
for; `plan.py` has addresses and commands as values; `faults.py` breaks it.

Owns: the lab's directory (`/run/cni-py/lab`: state, logs, the file datastore; machines see it as `/run/lab`), and names
`/run/netns/cni-lab-…`, links into `/proc` that keep nothing alive.
"""

from __future__ import annotations

from cni_py.lab.lab import Lab
from cni_py.lab.ping import Matrix, Pair
from cni_py.lab.programs import LabFailed

__all__ = ["Lab", "LabFailed", "Matrix", "Pair"]
