"""Pods of the tests: a server on every node with a host port, pods that come and go, and packets between pods meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from integration.clients import image
from integration.clients.containers import ask
from integration.kubernetes.cluster import Cluster
from support.flannel import Ping
from support.manifest import Object

HOST_PORT = 8080
CHURN = {"app": "churn"}
PING_SECONDS = "0.05"
REFUSED = ("FailedCreatePodSandBox", "FailedKillPod", "FailedSync")
"""Reasons of kubelet's events where a plugin failed."""
CONTAINER: Object = {"name": "answer", "image": image.NAME, "imagePullPolicy": "Never"}
POD: Object = {"automountServiceAccountToken": False, "terminationGracePeriodSeconds": 1}
ANSWER: Object = {
    "apiVersion": "apps/v1",
    "kind": "DaemonSet",
    "metadata": {"name": "answer", "namespace": "default"},
    "spec": {
        "selector": {"matchLabels": {"app": "answer"}},
        "template": {
            "metadata": {"labels": {"app": "answer"}},
            "spec": POD | {"containers": [CONTAINER | {"ports": [{"containerPort": 80, "hostPort": HOST_PORT}]}]},
        },
    },
}


def deployment(replicas: int, node: int | None = None) -> Object:
    """Return pods without host ports; ``node``: on this one alone."""
    spec = POD | {"containers": [CONTAINER]} | ({"nodeSelector": {"kubernetes.io/hostname": f"node{node}"}} if node else {})
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "churn", "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": CHURN},
            "template": {"metadata": {"labels": CHURN}, "spec": spec},
        },
    }


def churn_pods(made: Cluster) -> list[Object]:
    return made.pods("default", labelSelector="app=churn")


def count_running(made: Cluster) -> int:
    return sum(each["status"]["phase"] == "Running" for each in churn_pods(made))


def running(made: Cluster) -> dict[int, str]:
    """Return the addresses of the pods of `answer`, by their nodes."""
    return {number: each["status"]["podIP"] for number, each in answering(made).items()}


def answering(made: Cluster) -> dict[int, Object]:
    """Return the pods of `answer` that run, by their nodes."""
    found = made.pods("default", labelSelector="app=answer")
    up = [each for each in found if "deletionTimestamp" not in each["metadata"] and each["status"].get("podIP")]
    return {int(each["spec"]["nodeName"][4:]): each for each in up}


def check_paths(made: Cluster) -> None:
    """Ask each pod from each node, and by a host port."""
    numbers = made.numbers
    made.wait(lambda: len(running(made)) == len(numbers), "a pod of each node runs")
    for number in numbers:
        host = made.node(number).host
        for address in running(made).values():
            made.wait(lambda host=host, address=address: "answer" in ask(host, address), f"{address} from node{number}")
        other = made.node(number % len(numbers) + 1)
        made.wait(
            lambda host=host, other=other: "answer" in ask(host, other.address, HOST_PORT), f"a host port from node{number}"
        )


def namespace_of(made: Cluster, number: int, address: str) -> str:
    """Return the name of the network namespace in which a pod has this address."""
    script = f"for n in $(ls /run/netns); do ip -n $n -br addr 2>/dev/null | grep -qw {address} && echo $n; done; true"
    (name,) = made.node(number).host.run(script).split()
    return name


@contextmanager
def packets(made: Cluster, *numbers: int) -> Iterator[list[Ping]]:
    """Ping from the pod of each of these nodes to that of the next one, within this block."""
    addresses = running(made)
    with ExitStack() as stack:
        pings = []
        for number, other in zip(numbers, [*numbers[1:], numbers[0]], strict=True):
            argv = ["ping", "-n", "-W2", "-i", PING_SECONDS, addresses[other]]
            inside = namespace_of(made, number, addresses[number])
            pings.append(stack.enter_context(Ping(made.node(number).host.command(*argv, sandbox=inside))))
        yield pings


@dataclass
class Churn:
    """Pods that are created and deleted in turn, on all nodes, by a thread. ``rounds``: how often all of them came to run."""

    made: Cluster
    replicas: int
    rounds: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.ended.is_set():
            self.made.apply([deployment(self.replicas)])
            self.made.wait(lambda: count_running(self.made) == self.replicas, "all pods of a round run")
            self.rounds += 1
            self.made.delete([deployment(self.replicas)])
            self.made.wait(lambda: churn_pods(self.made) == [], "all pods of a round are deleted")


@contextmanager
def churn(made: Cluster, replicas: int = 6) -> Iterator[Churn]:
    """Create and delete pods within this block, for one round at least. Raises: AssertionError where a round does not end."""
    load = Churn(made, replicas)
    with ThreadPoolExecutor(1) as pool:
        running_load = pool.submit(load.run)
        try:
            yield load
            made.wait(lambda: load.rounds > 0 or running_load.done(), "a round of pods")
        finally:
            load.ended.set()
        running_load.result()


def refused(made: Cluster, reasons: tuple[str, ...] = REFUSED) -> list[str]:
    """Return what kubelet said of calls of plugins that failed."""
    events: list[dict[str, Any]] = made.get("/api/v1/namespaces/default/events").get("items", [])
    return [f"{each['count']} x {each['reason']}: {each.get('message', '')}" for each in events if each["reason"] in reasons]
