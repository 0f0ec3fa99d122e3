"""Keys as Go's encoding/json takes them: in any case, the last in the text wins, objects member by member."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cni_py import config, engine, journal
from cni_py.config import models
from cni_py.flanneld.network import NetworkConfig
from cni_py.jsontext import Received, fold
from cni_py.plugin_table import PLUGINS
from cni_py.runtime import network_config
from cni_py.spec import call
from cni_py.spelling import is_one_letter_off

BRIDGE = '{"cniVersion":"1.0.0","name":"n","type":"bridge",'
CASES = [
    # plugin, text, attribute, value that Go's struct has
    ("bridge", '{"IsDefaultGateway":true}', "is_default_gateway", True),
    ("bridge", '{"isgateway":true}', "is_gateway", True),
    ("bridge", '{"ISGATEWAY":true}', "is_gateway", True),
    ("bridge", '{"mtu":1400,"MTU":1300}', "mtu", 1300),
    ("bridge", '{"MTU":1300,"mtu":1400}', "mtu", 1400),
    ("bridge", '{"mtu":1400,"MTU":1300,"mtu":1200}', "mtu", 1200),
    ("bridge", '{"MTU":1,"Mtu":2,"mTu":3}', "mtu", 3),
    ("bridge", '{"mtu":1400,"MTU":null}', "mtu", 1400),
    ("bridge", '{"ipMasqBackend":"iptables","IPMASQBACKEND":null}', "ip_masq_backend", None),
    ("bridge", '{"ipMasqBackend":"iptables","ipMasqBackend":null}', "ip_masq_backend", None),
    ("bridge", '{"vlanTrunk":[{"id":7}],"VlanTrunk":null}', "vlan_trunk", []),
    ("bridge", '{"VlanTrunk":[{"MinId":10,"MAXID":20}]}', "vlan_trunk[0].max_id", 20),
    ("bridge", '{"IPAM":{"Type":"x"}}', "ipam.type", "x"),
    ("bridge", '{"dns":{"domain":"d"},"DNS":{"Search":["s"]}}', "dns.domain", "d"),
    ("bridge", '{"dns":{"domain":"d"},"DNS":{"Search":["s"]}}', "dns.search", ["s"]),
    ("bridge", '{"dns":{"domain":"d"},"dns":{"search":["s"]}}', "dns.domain", "d"),
    ("bridge", '{"dns":{"domain":"d"},"dns":null}', "dns.domain", "d"),
    ("bridge", '{"RuntimeConfig":{"MAC":"c2:11:22:33:44:55"}}', "runtime_config.mac", "c2:11:22:33:44:55"),
    ("bridge", '{"Args":{"CNI":{"Mac":"c2:11:22:33:44:55"}}}', "args.cni.mac", "c2:11:22:33:44:55"),
    ("bridge", '{"ma\u017fqueradeExcept":["10.0.0.0/8"]}', "masquerade_except", ["10.0.0.0/8"]),
    ("bridge", '{"macspoofch\u212a":true}', "macspoofchk", True),
    ("bridge", '{"is_gateway":true,"isGatewa\u00ff":true,"x":1}', "is_gateway", False),
    ("host-local", '{"ipam":{"Subnet":"10.0.0.0/24"}}', "ipam.subnet", "10.0.0.0/24"),
    ("host-local", '{"ipam":{"subnet":"a","Subnet":"b","subnet":"c"}}', "ipam.subnet", "c"),
    ("host-local", '{"ipam":{"subnet":"a"},"Ipam":{"gateway":"b"}}', "ipam.subnet", "a"),
    ("host-local", '{"ipam":{"subnet":"a"},"ipam":{"gateway":"b"}}', "ipam.subnet", "a"),
    ("host-local", '{"ipam":{"subnet":"a"},"ipam":null}', "ipam", None),
    ("host-local", '{"ipam":{"Ranges":[[{"SUBNET":"a","RangeStart":"b"}]]}}', "ipam.ranges[0][0].range_start", "b"),
    ("host-local", '{"ipam":{"routes":[{"Dst":"0.0.0.0/0","GW":"g"}]}}', "ipam.routes[0].gw", "g"),
    ("host-local", '{"RUNTIMECONFIG":{"IPRanges":[[{"Subnet":"a"}]],"IPs":["b"]}}', "runtime_config.ips", ["b"]),
    ("host-local", '{"runtimeConfig":{"ips":["a"],"IPS":["b"]}}', "runtime_config.ips", ["b"]),
    ("portmap", '{"runtimeConfig":{"PortMappings":[{"HostPort":1,"hostport":2}]}}', "runtime_config.port_mappings[0].host_port", 2),
    ("portmap", '{"SNAT":false}', "snat", False),
    ("portmap", '{"snat":false,"Snat":true,"snat":false}', "snat", False),
    ("flannel", '{"SubnetFile":"/s"}', "subnet_file", "/s"),
    # maps: whole members, by exact keys
    ("flannel", '{"Delegate":{"isGateway":false,"IsGateway":true}}', "delegate", {"isGateway": False, "IsGateway": True}),
    ("flannel", '{"delegate":{"mtu":1},"Delegate":{"MTU":2}}', "delegate", {"mtu": 1, "MTU": 2}),
    ("flannel", '{"delegate":{"dns":{"domain":"d"}},"delegate":{"dns":{"search":[]}}}', "delegate", {"dns": {"search": []}}),
    ("flannel", '{"delegate":{"mtu":1},"Delegate":null}', "delegate", {}),
    ("flannel", '{"runtimeConfig":{"a":1},"runtimeconfig":{"b":2}}', "runtime_config", {"a": 1, "b": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("plugin", "text", "attribute", "value"), CASES)
def test_keys_are_taken_as_go_takes_them(plugin: str, text: str, attribute: str, value: Any) -> None:
    model = PLUGINS[plugin].model
    parsed = config.parse(model, config.decode_for(model, text.encode()))
    for part in attribute.replace("[", ".[").split("."):
        parsed = parsed[int(part[1:-1])] if part.startswith("[") else getattr(parsed, part)
    assert parsed == value


@pytest.mark.parametrize("model", models.MODELS, ids=lambda model: model.__name__)
def test_every_key_of_every_model_is_taken_in_any_case(model: type[models.Model]) -> None:
    """Keys of a later version, too."""
    fields = config.fields_of(config.SCHEMAS[model.__name__])
    for field in model.model_fields.values():
        assert field.alias
        for key in (field.alias, field.alias.lower(), field.alias.upper(), field.alias[0].upper() + field.alias[1:]):
            members = config._members({key: 7}, config.SCHEMAS[model.__name__], "", [])
            assert members == {field.alias: 7}
    assert {name for name, _ in fields.values()} == {field.alias for field in model.model_fields.values()}


@pytest.mark.parametrize("model", models.MODELS, ids=lambda model: model.__name__)
def test_no_two_fields_of_a_model_differ_in_case_alone(model: type[models.Model]) -> None:
    folded = [fold(field.alias or "") for field in model.model_fields.values()]
    assert len(set(folded)) == len(folded)


def test_what_the_engine_reads_itself_is_taken_in_any_case() -> None:
    conf = config.decode_for(
        "BridgeConfig", b'{"Name":"n","CNIVersion":"1.0.0","PREVRESULT":{},"Cni.Dev/Valid-Attachments":[]}'
    )
    assert list(conf) == ["name", "cniVersion", "prevResult", "cni.dev/valid-attachments"]
    status, reply = engine.handle(call.parse("bridge", {"CNI_COMMAND": "STATUS"}), b'{"NAME":"n","cniversion":"9"}')
    assert status == 1
    assert json.loads(reply)["details"].startswith('config is "9"')


def test_a_configuration_in_the_usual_case_is_not_copied() -> None:
    """The usual call must not pay for the rare one."""
    conf = config.decode_for("BridgeConfig", b'{"name":"n","ipam":{"type":"host-local","subnet":"10.0.0.0/24"},"x":1}')
    assert isinstance(conf, Received)
    assert config.canonical("HostLocalConfig", conf) is conf


def test_keys_of_a_result_are_taken_in_any_case() -> None:
    parsed = config.parse("AnyResult", {"IPs": [{"Address": "10.0.0.2/24", "INTERFACE": 0}], "Interfaces": [{"Name": "eth0"}]})
    assert (parsed.ips[0].address, parsed.interfaces[0].name) == ("10.0.0.2/24", "eth0")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("isGatway", "isGateway"),
        ("isGatewayy", "isGateway"),
        ("ISGATEWEY", "isGateway"),
        ("isGaetway", "isGateway"),
        ("is_gateway", "isGateway"),
        ("isGtewy", ""),
        ("gateway", ""),
        ("mtuu", "mtu"),
        ("capabilites", "capabilities"),
        ("comment", ""),
    ],
)
def test_key_that_is_one_letter_off_is_a_warning(key: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "RUN_DIR", str(tmp_path))
    monkeypatch.setattr(journal, "JOURNAL_DIR", f"{tmp_path}/journal")
    with journal.Journal("a test", "c1:eth0:n"):
        config.parse("BridgeConfig", {key: True, "capabilities": {}, "ipam": {"types": 1}})
        journal.note("end")
    text = (tmp_path / "journal" / "c1:eth0:n").read_text()
    assert ("warning" in text) == bool(meant)
    assert (f'unknown key "{key}" has no effect: is "{meant}" meant?' in text) == bool(meant)


@pytest.mark.parametrize(
    ("model", "raw", "path"),
    [
        ("HostLocalConfig", {"ipam": {"ranges": [[{"subnt": "10.0.0.0/24"}]]}}, "ipam.ranges.subnt"),
        ("HostLocalConfig", {"ipam": {"rotues": []}}, "ipam.rotues"),
        ("BridgeConfig", {"vlanTrunk": [{"min": 1, "maxIDs": 7}]}, "vlanTrunk.maxIDs"),
        ("PortmapConfig", {"runtimeConfig": {"portMapings": []}}, "runtimeConfig.portMapings"),
    ],
)
def test_warning_names_the_path(model: str, raw: dict[str, Any], path: str, capfd: pytest.CaptureFixture[str]) -> None:
    with journal.Journal("a test", stderr_fd=2):
        config.parse(model, raw)
    assert f'unknown key "{path}"' in capfd.readouterr().err


@pytest.mark.parametrize(
    ("one", "other", "is_off"),
    [("", "", False), ("a", "", True), ("a", "a", False), ("a", "b", True), ("ab", "ba", True), ("abc", "ab", True), ("bc", "abc", True),
     ("abc", "acb", True), ("abcd", "badc", False), ("abc", "cba", False), ("ab", "cd", False), ("abc", "a", False)],
)  # fmt: skip
def test_one_letter_off(one: str, other: str, is_off: bool) -> None:
    assert is_one_letter_off(one, other) is is_off
    assert is_one_letter_off(other, one) is is_off


# ---- the list, which libcni reads into a map, and its plugins, which it does not -------------------


def write(directory: Path, name: str, text: str) -> list[str]:
    (directory / name).write_text(text)
    return []


def test_keys_of_a_list_are_exact_and_those_of_its_plugins_are_not(tmp_path: Path) -> None:
    warnings = write(
        tmp_path, "1.conflist", '{"name":"n","plugins":[{"Type":"bridge","Capabilities":{"mac":true},"mtu":1,"MTU":2}]}'
    )
    network = network_config.load_network(str(tmp_path), "n", warnings.append)
    attachment = network_config.Attachment("c1", "/n", "eth0", capability_args={"mac": "c2:11:22:33:44:55"})
    conf = network_config.request_config(network, network.plugins[0], attachment, None)
    assert conf["runtimeConfig"] == {"mac": "c2:11:22:33:44:55"}
    assert list(conf) == sorted(conf)
    assert warnings == []


def test_key_of_a_list_in_another_case_is_a_warning(tmp_path: Path) -> None:
    warnings = write(
        tmp_path, "1.conflist", '{"name":"n","DisableCheck":true,"disableGc":true,"x":1,"plugins":[{"type":"bridge"}]}'
    )
    network = network_config.load_network(str(tmp_path), "n", warnings.append)
    assert (network.disable_check, network.disable_gc) == (False, False)
    assert [line.partition(": ")[2] for line in warnings] == [
        'unknown key "DisableCheck" has no effect: is "disableCheck" meant? The keys of a list are exact',
        'unknown key "disableGc" has no effect: is "disableGC" meant? The keys of a list are exact',
    ]


def test_single_configuration_is_found_by_its_name_in_any_case(tmp_path: Path) -> None:
    warnings = write(tmp_path, "1.conf", '{"Name":"n","TYPE":"bridge","CniVersion":"0.3.1"}')
    network = network_config.load_network(str(tmp_path), "n", warnings.append)
    assert (network.name, network.cni_version, warnings) == ("n", "0.3.1", [])


# ---- flanneld's net-conf ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "attribute", "value"),
    [
        ('{"network":"10.1.0.0/16","NETWORK":"10.2.0.0/16"}', "network", "10.2.0.0/16"),
        ('{"Network":"10.1.0.0/16","network":"10.2.0.0/16","Network":"10.3.0.0/16"}', "network", "10.3.0.0/16"),
        ('{"Network":"10.1.0.0/16","subnetlen":25,"SubnetLen":null}', "subnet_len", "25"),
        ('{"Network":"10.1.0.0/16","backend":{"type":"VXLAN"}}', "backend_type", "vxlan"),
        ('{"Network":"10.1.0.0/16","Backend":{"Type":"udp","type":"vxlan","Type":"host-gw"}}', "backend_type", "host-gw"),
    ],
)
def test_net_conf_is_taken_as_go_takes_it(text: str, attribute: str, value: str) -> None:
    assert str(getattr(NetworkConfig.parse(text), attribute)) == value


def test_keys_of_a_back_end_are_taken_in_the_order_of_the_text() -> None:
    from cni_py.flanneld.backends import vxlan

    network = NetworkConfig.parse(
        '{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","Port":1,"port":2,"Port":3,"VNI":4,"vni":5}}'
    )
    parsed = vxlan.Config.parse(network.backend)
    assert (parsed.port, parsed.vni) == (3, 5)
