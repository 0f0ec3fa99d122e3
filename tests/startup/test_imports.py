"""Modules that a call loads: start-up is most of a one-shot call, so every module has to be meant (docs: decision 0002).

The client is started as the launcher does it, by the installed interpreter with `-IS`, and leaves through
`posix._exit`: the wrapper replaces that and says what `sys.modules` holds then. The lists are allow-lists: a new import
makes a test fail, and adding it here requires measuring its cost (`python -IS -X importtime bin/flannel`).
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.agents import Agent
from support.namespaces import PATH, Host

WRAPPER = """
import posix, sys
before = set(sys.modules)
out, name, lib = sys.argv[1:]
sys.argv[:] = ["/opt/cni/bin/" + name]
sys.path.insert(0, lib)
leave = posix._exit
def say(status):
    fd = posix.open(out, posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC, 0o600)
    posix.write(fd, "\\n".join(sorted(set(sys.modules) - before)).encode())
    leave(status)
posix._exit = say
from cni_py.client import main
main()
"""

CLIENT = {"cni_py", "cni_py.client", "cni_py.plugin_table", "cni_py.spec", "cni_py.spec.environment"}
"""Modules that every call loads."""

VERSION = CLIENT | {"cni_py.spec.versions"}
"""Modules that VERSION and "what are you?" may load."""

ERROR = VERSION | {"__future__", "_json", "cni_py.errors", "cni_py.jsontext"}
"""Modules that an error of the environment needs."""

ASKING = CLIENT | {"_socket", "cni_py.protocol"}
"""Modules that a call needs to ask the agent; if one replies, no others are loaded."""

ENGINE = ASKING | ERROR | {
    "cni_py.spec.call", "cni_py.value",
    "cni_py.attachment", "cni_py.attachment.lock", "cni_py.attachment.record", "cni_py.config", "cni_py.dispatch", "cni_py.engine", "cni_py.files",
    "cni_py.journal", "cni_py.lazy", "cni_py.plugins", "cni_py.spec.result", "cni_py.config._schemas", "cni_py.undo",
    "ipaddress", "functools", "time",
    "pydantic_core._pydantic_core",
}  # fmt: skip

HOST_LOCAL = {
    "cni_py.ipam", "cni_py.ipam.ranges", "cni_py.ipam.resolv_conf", "cni_py.ipam.store",
    "cni_py.plugins.ipam", "cni_py.plugins.ipam.host_local",
    "cni_py.undo",
}  # fmt: skip
DELEGATION = {"cni_py.attachment.delegate", "cni_py.program", "cni_py.undo"}
NETLINK = {
    "cni_py.netlink", "cni_py.netlink.attributes", "cni_py.netlink.constants", "cni_py.netlink.netfilter", "cni_py.netlink.socket",
    "cni_py.netlink.tables",
}  # fmt: skip
PACKET_FILTER = {
    "cni_py.packetfilter", "cni_py.packetfilter.iptables", "cni_py.packetfilter.libnftables", "cni_py.packetfilter.masquerade",
    "cni_py.packetfilter.masquerade_ruleset", "cni_py.packetfilter.nfnetlink", "cni_py.packetfilter.ownership", "_sha512",
}  # fmt: skip
BRIDGE = NETLINK | PACKET_FILTER | {
    "cni_py.attachment.gateway", "cni_py.attachment.interface", "cni_py.attachment.packet_filter", "cni_py.attachment.veth", "cni_py.kernel", "cni_py.kernel.address", "cni_py.kernel.deletion", "cni_py.kernel.link",
    "cni_py.kernel.netns", "cni_py.kernel.route", "cni_py.kernel.sysctl", "cni_py.plugins.main", "cni_py.plugins.main.bridge",
    "cni_py.plugins.main.bridge.plan",
}  # fmt: skip
SETNS = {"_ctypes", "cni_py.c_library"}
"""Loaded for `setns`, before Python 3.12, which has it."""
FLANNEL = DELEGATION | {"cni_py.plugins.meta", "cni_py.plugins.meta.flannel", "cni_py.subnet_env"}

LIBRARY = {
    "_bisect", "_collections", "_collections_abc", "_functools", "_operator", "_struct", "_types", "_weakref", "bisect",
    "collections", "collections.abc", "copyreg", "errno", "fcntl", "itertools", "keyword", "math", "operator", "reprlib",
    "struct", "types", "zlib",
    "_datetime", "_weakrefset", "copy", "weakref",  # pydantic's core asks for these
}  # fmt: skip
"""Small modules of the standard library that the ones above load themselves; which ones differs from Python to Python."""

HEAVY = {
    "argparse", "asyncio", "concurrent", "contextlib", "ctypes", "dataclasses", "datetime", "decimal", "email", "enum", "importlib",
    "inspect", "json", "logging", "multiprocessing", "os", "pathlib", "pickle", "pydantic", "pyroute2", "re", "shlex",
    "shutil", "signal", "site", "socket", "subprocess", "tempfile", "threading", "traceback", "typing", "typing_extensions",
    "urllib", "uuid", "warnings",
}  # fmt: skip
"""Modules that a call must never load by accident; ``without_init`` leaves no ``pyroute2`` and no ``pydantic_core``."""


class Client:
    """The installed client, wrapped."""

    def __init__(self, bin_dir: Path, directory: Path) -> None:
        self.lib = bin_dir.parent.parent / "cni-py" / "lib"
        self.out, self.wrapper = directory / "modules", directory / "wrapper.py"
        self.wrapper.write_text(WRAPPER)

    def command(self, plugin: str) -> list[str]:
        return [f"{self.lib}/python", "-IS", str(self.wrapper), str(self.out), plugin, str(self.lib)]

    def modules(self) -> set[str]:
        loaded = set(self.out.read_text().split())
        self.out.unlink()
        return loaded

    def run(self, plugin: str, stdin: str = "", **env: str) -> tuple[int, set[str]]:
        """Exit status, and the modules that were loaded."""
        done = subprocess.run(self.command(plugin), input=stdin, env={"PATH": PATH} | env, capture_output=True, text=True)
        assert "Traceback" not in done.stderr
        return done.returncode, self.modules()

    def run_in(self, host: Host, plugin: str, conf: dict[str, Any], **env: str) -> set[str]:
        done = host.execute(self.command(plugin), stdin=json.dumps(conf), env={"PATH": PATH, "CNI_PATH": host.bin_dir} | env)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.modules()


@pytest.fixture
def client(bin_dir: Path, tmp_path: Path) -> Client:
    return Client(bin_dir, tmp_path)


def of_packages(loaded: set[str], *packages: str) -> set[str]:
    return {module for module in loaded if module.partition(".")[0] in packages}


def test_launcher_loads_nothing_but_the_client(bin_dir: Path) -> None:
    """`-I`: no PYTHONPATH, no user directory; `-S`: no site. And the interpreter by its absolute path."""
    first, *rest = (bin_dir / "cni-plugin").read_text().splitlines()
    assert first.startswith("#!/")
    assert first.endswith(" -IS")
    assert Path(first.removeprefix("#!").removesuffix(" -IS")).exists()
    imports = [line for line in rest if "import" in line]
    assert imports == ["import sys", "from cni_py.client import main"]


# --- without the engine -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stdin", ["", '{"cniVersion":"1.0.0"}', "{"])
def test_version(client: Client, stdin: str) -> None:
    status, loaded = client.run("flannel", stdin, CNI_COMMAND="VERSION")
    assert status == 0
    assert loaded == VERSION | ({"select"} & loaded)


@pytest.mark.parametrize(
    "env",
    [
        {"CNI_COMMAND": "FROB"},
        {"CNI_COMMAND": "ADD"},
        {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c1"},
        {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "../x", "CNI_NETNS": "/x", "CNI_IFNAME": "eth0"},
        {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/x", "CNI_IFNAME": "a" * 16},
    ],
)
def test_error_of_the_environment(client: Client, env: dict[str, str]) -> None:
    status, loaded = client.run("flannel", "{}", **env)
    assert status == 1
    assert loaded == ERROR | ({"select"} & loaded)  # to read the version of the configuration, without waiting for it


def test_run_by_hand(client: Client) -> None:
    status, loaded = client.run("flannel")
    assert status == 0
    assert loaded == VERSION


def test_unknown_name(client: Client) -> None:
    status, loaded = client.run("calico", "{}", CNI_COMMAND="ADD")
    assert status == 1
    assert loaded == ERROR | ({"select"} & loaded)  # to read the version of the configuration, without waiting for it


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "STATUS", "GC"])
def test_call_that_the_agent_answers(client: Client, host: Host, verb: str) -> None:
    """Nothing more, whatever it is that the agent has to load for it."""
    conf = {"cniVersion": "1.1.0", "name": "pool", "ipam": {"type": "host-local", "subnet": "10.1.2.0/24"}}
    of = {"CNI_CONTAINERID": "c1", "CNI_NETNS": str(host.netns("c1")), "CNI_IFNAME": "eth0"}
    with Agent(host) as agent:
        client.run_in(host, "host-local", conf, CNI_COMMAND="ADD", **of | {"CNI_IFNAME": "net1" if verb == "ADD" else "eth0"})
        assert client.run_in(host, "host-local", conf, CNI_COMMAND=verb, **of) == ASKING
        assert agent.calls() == 2


# --- with it ----------------------------------------------------------------------------------------------------------


def check(loaded: set[str], allowed: set[str]) -> None:
    """Nothing but what is allowed, and nothing heavy."""
    assert of_packages(loaded, *HEAVY) == set()
    assert loaded - allowed - LIBRARY == set()


def test_undecodable_input(client: Client) -> None:
    """No plugin is loaded for it."""
    status, loaded = client.run("bridge", "{", CNI_COMMAND="STATUS")
    assert status == 1
    check(loaded, ENGINE)


def test_status_of_flannel(client: Client, tmp_path: Path) -> None:
    """containerd 2 asks every five seconds: neither pyroute2 nor ctypes, down to host-local."""
    (tmp_path / "subnet.env").write_text(
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.91.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    )
    conf: dict[str, Any] = {
        "cniVersion": "1.1.0",
        "name": "cbr0",
        "subnetFile": f"{tmp_path}/subnet.env",
        "ipam": {"dataDir": f"{tmp_path}/n"},
    }
    status, loaded = client.run("flannel", json.dumps(conf), CNI_COMMAND="STATUS")
    assert status == 0
    assert of_packages(loaded, "pyroute2", "pydantic", "ctypes", "_ctypes", "socket", "_socket") <= {"_socket"}
    assert "cni_py.plugins.ipam.host_local" in loaded
    assert "cni_py.packetfilter.libnftables" not in loaded


def test_status_of_flannel_without_subnet_env(client: Client, tmp_path: Path) -> None:
    """The answer that it gives most often on a node that waits: neither bridge nor host-local is loaded."""
    conf = {"cniVersion": "1.1.0", "name": "cbr0", "subnetFile": f"{tmp_path}/none"}
    status, loaded = client.run("flannel", json.dumps(conf), CNI_COMMAND="STATUS")
    assert status == 1
    check(loaded, ENGINE | FLANNEL)


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL", "GC", "STATUS"])
def test_host_local(client: Client, host: Host, verb: str) -> None:
    conf = {"cniVersion": "1.1.0", "name": "pool", "ipam": {"type": "host-local", "subnet": "10.1.2.0/24"}}
    of = {"CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": "eth0"}
    client.run_in(host, "host-local", conf, CNI_COMMAND="ADD", **of)
    if verb == "ADD":
        client.run_in(host, "host-local", conf, CNI_COMMAND="DEL", **of)
    loaded = client.run_in(host, "host-local", conf, CNI_COMMAND=verb, **of)
    check(loaded, ENGINE | HOST_LOCAL)


def test_loopback_loads_no_packet_filter_and_no_ipam(client: Client, host: Host) -> None:
    sandbox = host.netns("c1")
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": str(sandbox), "CNI_IFNAME": "lo"}
    loaded = client.run_in(host, "loopback", {"cniVersion": "1.1.0", "name": "lo"}, **env)
    assert {
        module for module in of_packages(loaded, "cni_py") if "nft" in module or "ipam" in module or "masq" in module
    } == set()


SANDBOX_LINK = DELEGATION | NETLINK | {
    "cni_py.attachment.interface", "cni_py.attachment.sandbox_link", "cni_py.kernel", "cni_py.kernel.address",
    "cni_py.kernel.deletion", "cni_py.kernel.link", "cni_py.kernel.netns", "cni_py.kernel.route", "cni_py.kernel.sysctl",
    "cni_py.kernel.virtual_link", "cni_py.plugins.ipam", "cni_py.plugins.ipam.static", "cni_py.plugins.main", "cni_py.ipam", "cni_py.ipam.ranges",
}  # fmt: skip
OF_PLUGIN = {
    "macvlan": {"cni_py.attachment.master", "cni_py.plugins.main.macvlan"},
    "tap": {"cni_py.kernel.tap", "cni_py.plugins.main.tap"},
    "host-device": {"cni_py.kernel.sysfs", "cni_py.plugins.main.host_device"},
    "ptp": {"cni_py.attachment.gateway", "cni_py.attachment.veth", "cni_py.plugins.main.ptp"},
}


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
@pytest.mark.parametrize("plugin", OF_PLUGIN)
def test_main_plugin_with_static_addresses(client: Client, host: Host, plugin: str, verb: str) -> None:
    """No packet filter where nothing is masqueraded, and no reservations."""
    host.run("ip link add up0 type veth peer name up1")
    ipam = {"type": "static", "addresses": [{"address": "10.1.2.5/24", "gateway": "10.1.2.1"}]}
    own = {"macvlan": {"master": "up0"}, "host-device": {"device": "up0"}}.get(plugin, {})
    keys = own | {"delegateMode": "native", "ipam": ipam}
    conf = {"cniVersion": "1.1.0", "name": "net", "type": plugin} | keys
    env = {"CNI_CONTAINERID": "c1", "CNI_NETNS": str(host.netns("c1")), "CNI_IFNAME": "eth0"}
    client.run_in(host, plugin, conf, CNI_COMMAND="ADD", **env)  # the first of a boot sweeps
    if verb == "ADD":
        client.run_in(host, plugin, conf, CNI_COMMAND="DEL", **env)
    loaded = client.run_in(host, plugin, conf, CNI_COMMAND=verb, **env)
    check(loaded - SETNS, ENGINE | SANDBOX_LINK | OF_PLUGIN[plugin])


def test_flannel_loads_each_library_only_in_parts(client: Client, host: Host) -> None:
    """Three plugins in one process: no pyroute2, and of pydantic its core alone, not the package."""
    host.write_subnet_env()
    sandbox = host.netns("c1")
    env = {"CNI_CONTAINERID": "c1", "CNI_NETNS": str(sandbox), "CNI_IFNAME": "eth0"}
    delegate = {"isDefaultGateway": True, "delegateMode": "native"}
    conf = {"cniVersion": "1.1.0", "name": "cbr0", "type": "flannel", "delegateMode": "native", "delegate": delegate}
    client.run_in(host, "flannel", conf, CNI_COMMAND="ADD", **env)  # the first of a boot sweeps
    for verb in ("DEL", "ADD"):
        loaded = client.run_in(host, "flannel", conf, CNI_COMMAND=verb, **env)
        check(loaded - SETNS, ENGINE | HOST_LOCAL | FLANNEL | BRIDGE)
        assert of_packages(loaded, "pydantic_core") == {"pydantic_core._pydantic_core"}
