"""``cni-py lab``: a flannel network on one machine. Nodes, their switch, etcd and pods are namespaces.

::

    with Lab(nodes=3, backend="vxlan") as lab:
        assert lab.ping().is_complete
        lab.run("pod1", "ping -c 1 10.244.85.2")

How it works. One process, the keeper, is process 1 of a process namespace, and everything else runs in there: the
machines (nodes, router, outside, etcd; `machine.py`), what runs on them (`services.py`) and their pods. The switch is the
keeper's own network namespace. So whatever was killed, ending the keeper ends all of it, and the kernel removes
every interface, rule and mount with it: nothing is cleaned up one by one. Until a lab is told to stay it ends with whoever
made it, by a pipe that closes.

Owns: the lab's folder (`/run/cni-py/lab`: state, logs, the file datastore; machines see it as `/run/lab`), and names
`/run/netns/cni-lab-…`, links into `/proc` that keep nothing alive.
"""

from __future__ import annotations

from cni_py.lab.lab import Lab
from cni_py.lab.ping import Matrix, Pair
from cni_py.lab.programs import LabFailed

__all__ = ["Lab", "LabFailed", "Matrix", "Pair"]
