"""Every metric and label of the alerts and of the dashboard is exported by the agent or by flanneld."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

from support.agents import Agent
from support.flannel import network
from support.monitoring import exported, expressions, labels_in, metrics_in, values_in
from support.namespaces import Host
from support.waiting import until

pytestmark = pytest.mark.netns

FLANNEL = {
    "cniVersion": "1.1.0",
    "name": "cbr0",
    "type": "flannel",
    "delegate": {"isDefaultGateway": True},
}
PORT = 9808
VERBS = {"ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION"}


def scrape(port: int) -> dict[str, set[str]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        return exported(response.read().decode())


@pytest.fixture(scope="module")
def metrics(bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Names and labels of an agent that handled a call and one that failed, and of a flanneld with a peer."""
    with Host(bin_dir) as host, Agent(host, "--metrics", "127.0.0.1:9809", "--sweep-seconds", "0.1"):
        assert host.call("flannel", "ADD", FLANNEL, sandbox=host.netns("early")).rc != 0  # no subnet.env
        host.write_subnet_env()
        host.ok("flannel", "ADD", FLANNEL, sandbox=host.netns("pod"))
        until(lambda: host.do(scrape, 9809)["cni_py_events_total"], "the agent has swept")
        found = host.do(scrape, 9809)
    with network(tmp_path_factory.mktemp("network"), "vxlan", nodes=1) as net:
        node = net.nodes[0]
        node.start("-healthz-ip=127.0.0.1", f"-healthz-port={PORT}").wait_ready()
        late = {"cni_py_flanneld_refused", "cni_py_flanneld_reconcile_seconds"}
        until(lambda: late <= set(node.host.do(scrape, PORT)), "flanneld has checked its tables")
        return found | node.host.do(scrape, PORT)


@pytest.mark.parametrize(("expression", "shown"), list(expressions()))
def test_expression_names_what_is_exported(metrics: dict[str, set[str]], expression: str, shown: str) -> None:
    names = metrics_in(expression)
    assert names
    assert names - set(metrics) == set()
    assert labels_in(expression, shown) <= set().union(*(metrics[name] for name in names))


def test_values_of_labels_exist() -> None:
    """ "event" and "verb" are compared for equality."""
    source = "".join(path.read_text() for path in (Path(__file__).resolve().parents[2] / "cni_py" / "agent").glob("*.py"))
    for label, value in {pair for expression, _ in expressions() for pair in values_in(expression)}:
        assert {"verb": value in VERBS, "event": f'count("{value}"' in source}[label], value


def test_what_is_documented_is_exported(metrics: dict[str, set[str]]) -> None:
    """The tables of docs/agent.md and docs/flanneld.md have every metric."""
    docs = Path(__file__).resolve().parents[2] / "docs"
    text = (docs / "agent.md").read_text() + (docs / "flanneld.md").read_text()
    parts = {f"cni_py_call_seconds_{part}" for part in ("bucket", "sum", "count")}
    assert {name for name in set(metrics) - parts if f"`{name}`" not in text} == set()
