"""Configurations: pydantic's models and the core schemas made of them agree, and no JSON makes a call go wrong.

Whole calls of flannel, bridge and loopback run in a Host's namespaces (tests/support/namespaces.py), so that whatever hypothesis
finds there is thrown away with them; those of host-local run in this process on a temporary directory.
"""

from __future__ import annotations

import contextlib
import copy
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from cni_py import config, engine, journal
from cni_py.attachment import record
from cni_py.config import models
from cni_py.config._schemas import Parsed
from cni_py.errors import CniError, InvalidConfig
from cni_py.spec import call
from support.examples import examples
from support.namespaces import Host

# --- strategies -------------------------------------------------------------------------------------------------------


def keys_of(model: type[BaseModel]) -> set[str]:
    """The aliases of a model and of all that it holds."""
    found: set[str] = set()
    schema = model.model_json_schema(by_alias=True)
    for part in [schema, *schema.get("$defs", {}).values()]:
        found |= set(part.get("properties", {}))
    return found


KEYS = sorted(
    set().union(*(keys_of(model) for model in models.MODELS))
    | {"cni.dev/valid-attachments", "cni.dev/attachments", "capabilities", "x"}
)
VERSIONS = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
LEAVES = (
    st.none()
    | st.booleans()
    | st.sampled_from(
        [0, 1, -1, 68, 255, 256, 1450, 4094, 4095, 65535, 65536, 1 << 32, (1 << 32) - 1, 1 << 63, 1 << 64, -(1 << 70)]
    )
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(
        [
            "10.1.2.0/24",
            "10.1.2.3",
            "fd00::/64",
            "::1",
            "0.0.0.0/0",
            "c2:11:22:33:44:55",
            "host-local",
            "auto",
            "native",
            *VERSIONS,
        ]
    )
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5), max_leaves=12
)
OBJECTS = st.dictionaries(st.sampled_from(KEYS), JSON, max_size=8)

RANGE = {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.10", "rangeEnd": "10.1.2.20", "gateway": "10.1.2.1"}
ROUTE = {"dst": "0.0.0.0/0", "gw": "10.1.2.1", "mtu": 1400, "advmss": 1300, "priority": 1, "table": 2, "scope": 0}
DNS = {"nameservers": ["10.1.2.1"], "domain": "d", "search": ["a"], "options": ["o"]}
IPAM = {"type": "host-local", "ranges": [[RANGE]], "routes": [ROUTE], "dataDir": "/d", "resolvConf": ""}
RESULT = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "eth0", "mac": "c2:11:22:33:44:55", "mtu": 1, "sandbox": "/s", "socketPath": "/p", "pciID": "i"}],
    "ips": [{"address": "10.1.2.3/24", "gateway": "10.1.2.1", "interface": 0}],
    "routes": [ROUTE],
    "dns": DNS,
}
NETWORK = {"cniVersion": "1.1.0", "name": "net", "type": "t", "prevResult": RESULT}
FULL: dict[str, dict[str, Any]] = {
    "FlannelConfig": NETWORK
    | {
        "subnetFile": "/s", "dataDir": "/d", "delegate": {"type": "bridge", "mtu": 1400}, "ipam": IPAM,
        "runtimeConfig": {"mac": "m"}, "delegateMode": "native", "masqueradeBeyond": "network",
    },
    "BridgeConfig": NETWORK
    | {
        "bridge": "br0", "isGateway": True, "isDefaultGateway": True, "forceAddress": True, "ipMasq": True,
        "ipMasqBackend": "nftables", "masqueradeExcept": ["10.0.0.0/8"], "mtu": 1450, "hairpinMode": True, "promiscMode": False,
        "vlan": 100, "vlanTrunk": [{"id": 7}, {"minID": 10, "maxID": 20}], "preserveDefaultVlan": True, "macspoofchk": True,
        "enabledad": True,
        "disableContainerInterface": False, "portIsolation": True, "ipam": IPAM, "dns": DNS, "delegateMode": "exec",
        "args": {"cni": {"mac": "c2:11:22:33:44:55"}}, "runtimeConfig": {"mac": "c2:11:22:33:44:55"},
    },
    "HostLocalConfig": NETWORK
    | {
        "ipam": IPAM | RANGE, "args": {"cni": {"ips": ["10.1.2.3"]}},
        "runtimeConfig": {"ips": ["10.1.2.3"], "ipRanges": [[RANGE]]},
    },
    "LoopbackConfig": NETWORK,
    "AnyResult": RESULT,
    "OldResult": {
        "ip4": {"ip": "10.1.2.3/24", "gateway": "10.1.2.1", "routes": [ROUTE]}, "ip6": {"ip": "fd00::3/64"}, "dns": DNS,
    },
    "ValidAttachments": {"attachments": [{"containerID": "c1", "ifname": "eth0"}]},
}  # fmt: skip


def spoil(conf: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    """A copy with up to three members, at any depth, replaced by rubbish, gone, or new."""
    conf = copy.deepcopy(conf)
    for _ in range(data.draw(st.integers(0, 3))):
        parent: Any = conf
        while True:
            places = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
            if not places:
                break
            place = data.draw(st.sampled_from(places))
            if isinstance(parent[place], dict | list) and parent[place] and data.draw(st.booleans()):
                parent = parent[place]
                continue
            match data.draw(st.sampled_from(["replace", "remove", "add"])):
                case "replace":
                    parent[place] = data.draw(JSON)
                case "remove":
                    del parent[place]
                case "add" if isinstance(parent, dict):
                    parent[data.draw(st.sampled_from(KEYS))] = data.draw(JSON)
            break
    return conf


# --- models and schemas -----------------------------------------------------------------------------------------------


def without_nulls(value: Any) -> Any:
    """Drop null members, as the plugins do."""
    if isinstance(value, dict):
        return {key: without_nulls(member) for key, member in value.items() if member is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def same(model: Any, parsed: Any) -> bool:
    """Return whether pydantic's object and ours hold the same values, of the same types."""
    if isinstance(model, BaseModel):
        return isinstance(parsed, Parsed) and all(
            same(getattr(model, name), getattr(parsed, name)) for name in type(model).model_fields
        )
    if isinstance(model, list):
        return isinstance(parsed, list) and len(model) == len(parsed) and all(map(same, model, parsed))
    return type(model) is type(parsed) and model == parsed


def check_agreement(name: str, raw: dict[str, Any]) -> None:
    before = json.dumps(raw)
    try:
        expected = getattr(models, name).model_validate(without_nulls(raw))
    except ValidationError:
        with pytest.raises(InvalidConfig):
            config.parse(name, raw)
    else:
        assert same(expected, config.parse(name, raw))
    assert json.dumps(raw) == before


def test_every_model_has_a_full_configuration_here() -> None:
    """Return an object with all keys of each model, so that mutation reaches them all."""
    for name, conf in FULL.items():
        model = getattr(models, name)
        check_agreement(name, conf)
        known = {field.alias or key for key, field in model.model_fields.items()}
        assert known <= set(conf), name


@pytest.mark.parametrize("name", FULL)
@settings(max_examples=examples(75), deadline=None)
@given(data=st.data())
def test_models_agree_on_spoilt_configurations(name: str, data: st.DataObject) -> None:
    check_agreement(name, spoil(FULL[name], data))


@pytest.mark.parametrize("name", [model.__name__ for model in models.MODELS])
@settings(max_examples=examples(37), deadline=None)
@given(raw=OBJECTS)
def test_models_agree_on_random_objects(name: str, raw: dict[str, Any]) -> None:
    check_agreement(name, raw)


@settings(max_examples=examples(75), deadline=None)
@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()) | st.text().map(str.encode))
def test_decoder_gives_an_object_or_our_error(data: bytes) -> None:
    try:
        assert isinstance(config.decode(data), dict)
    except CniError as error:
        assert error.code == 6  # noqa: PT017 — either outcome is right
        return
    assert isinstance(json.loads(data), dict)


# --- whole calls ------------------------------------------------------------------------------------------------------

VERBS = ["ADD", "DEL", "CHECK", "STATUS", "GC"]
KNOWN_CODES = {1, 2, 4, 5, 6, 7, 8, 11, 50, 51, 101, 102, 103}
"""Error codes without 100, which is a bug."""
STDIN = st.binary(max_size=50) | st.sampled_from([b"", b"{", b"[]", b"null", b'{"name":7}'])


def check_call(plugin: str, verb: str, stdin: bytes, netns: str, **env: str) -> None:
    """One call in this process: a good answer, or an error object with a known code."""
    environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_NETNS": netns, "CNI_IFNAME": "eth0"} | env
    status, reply = engine.handle(call.parse(plugin, environ), stdin)
    if status == 0:
        assert (json.loads(reply)["cniVersion"] in VERSIONS) if verb == "ADD" else reply == b""
        return
    error = json.loads(reply)
    assert status == 1
    assert set(error) <= {"cniVersion", "code", "msg", "details"}
    assert error["code"] in KNOWN_CODES, error
    assert error["msg"]


def within(conf: dict[str, Any], directory: str) -> dict[str, Any]:
    """Redirect every path that is written to into the directory, unless it has a wrong type."""
    conf = copy.deepcopy(conf)
    holders = [conf, *(conf[key] for key in ("ipam", "delegate", "runtimeConfig") if isinstance(conf.get(key), dict))]
    for holder in holders:
        if isinstance(holder.get("dataDir"), str | None):
            holder["dataDir"] = directory
    if isinstance(conf.get("resolvConf"), str):
        conf["resolvConf"] = ""
    return conf


@contextlib.contextmanager
def records_in(directory: str) -> Iterator[None]:
    """Journal and records in this directory instead of /run/cni-py."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (journal, record):
            patch.setattr(module, "RUN_DIR", f"{directory}/run")
        patch.setattr(journal, "JOURNAL_DIR", f"{directory}/run/journal")
        patch.setattr(record, "DIRECTORY", f"{directory}/run/attachments")
        if record.remembered.__defaults__:
            patch.setattr(record.remembered, "__defaults__", (f"{directory}/run/attachments",))
        yield


BASES: dict[str, list[dict[str, Any]]] = {
    "host-local": [
        {"name": "net", "cniVersion": "1.1.0", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.2.0/29"}]]}},
        FULL["HostLocalConfig"],
    ],
    "flannel": [{"name": "net", "cniVersion": "1.1.0", "delegate": {"isDefaultGateway": True}}, FULL["FlannelConfig"]],
    "bridge": [
        {
            "name": "net",
            "cniVersion": "1.1.0",
            "bridge": "br0",
            "isGateway": True,
            "ipam": {"type": "host-local", "subnet": "10.1.2.0/24"},
        },
        FULL["BridgeConfig"],
    ],
    "loopback": [{"name": "lo", "cniVersion": "1.1.0"}, FULL["LoopbackConfig"]],
}


@pytest.mark.parametrize("verb", VERBS)
@settings(max_examples=examples(37), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_host_local_answers_whatever_comes(verb: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory, records_in(directory):
        for _ in range(data.draw(st.integers(1, 3))):
            conf = data.draw(st.sampled_from(BASES["host-local"]).map(lambda base: spoil(base, data)) | OBJECTS)
            stdin = json.dumps(within({"ipam": {}} | conf, directory)).encode()
            check_call("host-local", verb, data.draw(st.just(stdin) | STDIN), "/nonexistent")
            verb = data.draw(st.sampled_from(VERBS))


def spoilt_calls(plugin: str, verb: str, number: int) -> None:
    """Run configurations near valid ones and garbage in a Host, with an existing, a deleted and no sandbox."""

    @settings(max_examples=number, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        conf = data.draw(st.sampled_from(BASES[plugin]).map(lambda base: spoil(base, data)) | OBJECTS)
        stdin = json.dumps(within(conf, "/var/lib/cni/spoilt")).encode()
        netns = data.draw(st.sampled_from(["/run/netns/c1", "/run/netns/gone", "/proc/self/ns/net", "/dev/null"]))
        args = data.draw(st.sampled_from(["", "IgnoreUnknown=1;A=b", "A=b", "MAC=c2:11:22:33:44:55", "MAC=x"]))
        check_call(plugin, verb, data.draw(st.just(stdin) | STDIN), netns, CNI_ARGS=args)
        if verb != "DEL":
            check_call(plugin, "DEL", stdin, netns, CNI_ARGS=args)

    run()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("plugin", ["flannel", "bridge", "loopback"])
def test_plugin_answers_whatever_comes(host: Host, plugin: str, verb: str) -> None:
    host.write_subnet_env()
    host.netns("c1")
    host.do(spoilt_calls, plugin, verb, examples(30))


def test_host_of_these_tests_is_not_this_machine(host: Host) -> None:
    """Test the precaution that makes the test above harmless."""
    assert host.do(lambda: Path("/run/netns").stat().st_dev) != Path("/run").stat().st_dev
