"""options.py: Go's flags, in Go's syntax and from the environment; what is refused, and what is said then."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from cni_py.datastore.errors import Refused
from cni_py.flanneld.options import REFUSED, Options, UsageError, help_text, parse
from cni_py.flanneld.stores.etcd import EtcdStore

ROOT = Path(__file__).resolve().parents[2]

# flannel-io/flannel main.go: name, default
GO = {
    "etcd-endpoints": ("http://127.0.0.1:4001", "http://127.0.0.1:2379"),
    "etcd-prefix": "/coreos.com/network",
    "etcd-keyfile": "",
    "etcd-certfile": "",
    "etcd-cafile": "",
    "etcd-username": "",
    "etcd-password": "",
    "iface": (),
    "iface-regex": (),
    "iface-can-reach": "",
    "subnet-file": "/run/flannel/subnet.env",
    "public-ip": "",
    "public-ipv6": "",
    "subnet-lease-renew-margin": 60,
    "ip-masq": False,
    "ip-masq-fully-random-disable": False,
    "kube-subnet-mgr": False,
    "kube-api-url": "",
    "kube-annotation-prefix": "flannel.alpha.coreos.com",
    "kubeconfig-file": "",
    "version": False,
    "healthz-ip": "0.0.0.0",
    "healthz-port": 0,
    "iptables-resync": 5,
    "iptables-forward-rules": True,
    "ip-blackhole-route": False,
    "net-config-path": "/etc/kube-flannel/net-conf.json",
    "set-node-network-unavailable": True,
    "v": 0,
    "vmodule": None,
    "log_backtrace_at": None,
}
GO_DUMP = (
    "{etcdEndpoints:http://127.0.0.1:4001,http://127.0.0.1:2379 etcdPrefix:/coreos.com/network etcdKeyfile: etcdCertfile: etcdCAFile:"
    " etcdUsername: etcdPassword: version:false kubeSubnetMgr:false kubeApiUrl: kubeAnnotationPrefix:flannel.alpha.coreos.com"
    " kubeConfigFile: iface:[] ifaceRegex:[] ipMasq:false ipMasqRandomFullyDisable:false ifaceCanReach:"
    " subnetFile:/run/flannel/subnet.env publicIP: publicIPv6: subnetLeaseRenewMargin:60 healthzIP:0.0.0.0 healthzPort:0"
    " iptablesResyncSeconds:5 iptablesForwardRules:true blackholeRoute:false netConfPath:/etc/kube-flannel/net-conf.json"
    " setNodeNetworkUnavailable:true"
)


def fault(*argv: str, **environ: str) -> str:
    with pytest.raises(UsageError) as error:
        parse(argv, environ)
    assert error.value.status == 2
    return str(error.value)


@pytest.mark.parametrize("name", GO)
def test_every_option_of_go_is_here_or_refused_by_name(name: str) -> None:
    if name in REFUSED:
        assert fault(f"-{name}=x") == f"-{name} is not supported: {REFUSED[name]}"
    else:
        assert getattr(parse([], {}), name.replace("-", "_")) == GO[name]


def test_guides_command_line() -> None:
    options = parse(
        [
            "-etcd-endpoints=https://192.168.123.11:2379",
            "-etcd-cafile=/etc/kubernetes/pki/etcd/ca.crt",
            "-etcd-certfile=/etc/kubernetes/pki/etcd/server.crt",
            "-etcd-keyfile=/etc/kubernetes/pki/etcd/server.key",
        ],
        {},
    )
    assert options.etcd_endpoints == ("https://192.168.123.11:2379",)
    assert options.etcd_cafile == "/etc/kubernetes/pki/etcd/ca.crt"
    assert options.warnings == ()


def test_manifests_command_line() -> None:
    options = parse(["--ip-masq", "--kube-subnet-mgr", "--healthz-port=8081"], {"POD_NAME": "x", "EVENT_QUEUE_DEPTH": "5000"})
    assert (options.ip_masq, options.kube_subnet_mgr, options.healthz_port, options.warnings) == (True, True, 8081, ())


@pytest.mark.parametrize(
    "argv",
    [
        ["-subnet-file=/x"],
        ["--subnet-file=/x"],
        ["-subnet-file", "/x"],
        ["--subnet-file", "/x"],
        ["-subnet-file=/y", "--subnet-file", "/x"],
        ["-subnet-file=/x", "--"],
    ],
)
def test_syntax(argv: list[str]) -> None:
    assert parse(argv, {}) == Options(subnet_file="/x")


def test_value_may_look_like_an_option_or_hold_equal_signs() -> None:
    assert parse(["-etcd-prefix", "-v", "-etcd-username=a=b", "-etcd-password=c="], {}) == Options(
        etcd_prefix="-v", etcd_username="a=b", etcd_password="c="
    )


def test_switches() -> None:
    assert parse(["-ip-masq"], {}).ip_masq
    for text, versions in (("ipv4", [4]), ("ipv6", [6]), ("true", [4, 6]), ("1", [4, 6]), ("false", []), ("F", [])):
        for options in (parse([f"--ip-masq={text}"], {}), parse([], {"FLANNELD_IP_MASQ": text})):
            assert [version for version in (4, 6) if options.masquerades(version)] == versions
    assert " ipMasq:ipv4 " in parse(["-ip-masq=ipv4"], {}).redacted()
    for text in ("1", "t", "T", "TRUE", "true", "True"):
        assert parse([f"-ip-masq={text}"], {}).ip_masq
    for text in ("0", "f", "F", "FALSE", "false", "False"):
        assert not parse([f"-iptables-forward-rules={text}"], {}).iptables_forward_rules
    assert fault("-ip-masq=yes") == 'invalid value "yes" for flag -ip-masq: it is true, false, ipv4 or ipv6'
    assert fault("-ip-blackhole-route=ipv4") == 'invalid value "ipv4" for flag -ip-blackhole-route: it is true or false'
    assert fault("-ip-masq", "false").startswith('"false" is no option')


def test_repeatable() -> None:
    options = parse(["-iface=eth0", "-iface", "10.0.0.1", "--iface-regex=10\\.4.*", "-iface-regex=eth.*"], {})
    assert (options.iface, options.iface_regex) == (("eth0", "10.0.0.1"), ("10\\.4.*", "eth.*"))


def test_networks_of_the_interface() -> None:
    options = parse(["-iface-cidr=192.168.1.2/16", "-iface-cidr", "FD00::1/8"], {})
    assert options.iface_cidr == ("192.168.0.0/16", "fd00::/8")
    assert parse(["-iface-node-ip", "-kube-subnet-mgr"], {}).iface_node_ip
    assert parse([], {"FLANNELD_IFACE_CIDR": "10.0.0.0/8"}).iface_cidr == ("10.0.0.0/8",)


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("/coreos.com/network", "/coreos.com/network"),
        ("/kube//network", "/kube/network"),
        ("//kube/network//", "/kube/network"),
        ("/kube/./network/.", "/kube/network"),
        ("/kube/x/../network", "/kube/network"),
        ("/../kube", "/kube"),
        ("kube/network/", "kube/network"),
        ("../kube", "../kube"),
        ("a//b/../../..", ".."),
        ("/", "/"),
        ("///", "/"),
        ("", ""),
        ("./", ""),
        ("/ku be/é", "/ku be/é"),
    ],
)
def test_prefix_is_cleaned_as_go_cleans_it(text: str, prefix: str) -> None:
    """Expected: what Go's path.Join(text, "config") returns (go run, Go 1.26), without "config"."""
    assert parse([f"-etcd-prefix={text}"], {}).etcd_prefix == prefix


@pytest.mark.parametrize(
    ("text", "key"),
    [("/kube//network/", "/kube/network/config"), ("/", "/config"), ("", "config"), (".", "config"), ("kube", "kube/config")],
)
def test_key_of_the_configuration_is_gos(text: str, key: str) -> None:
    asked: list[str] = []

    class Client:
        def get(self, key: str) -> None:
            asked.append(key)

        def command(self, *words: str) -> str:
            return " ".join(words)

    store = EtcdStore(Client(), parse([f"-etcd-prefix={text}"], {}).etcd_prefix, None)  # type: ignore[arg-type]
    with pytest.raises(Refused, match="flannel config not found in etcd store"):
        store.read_network_config()
    assert asked == [key]


@pytest.mark.parametrize(
    ("text", "number"), [("10", 10), ("+10", 10), ("0x0A", 10), ("012", 10), ("0o12", 10), ("0b1010", 10), ("0", 0)]
)
def test_numbers_are_written_as_in_go(text: str, number: int) -> None:
    assert parse([f"-healthz-port={text}"], {}).healthz_port == number


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["-x"], "flag provided but not defined: -x; see flanneld --help"),
        (["-ipmasq"], "flag provided but not defined: -ipmasq; is it -ip-masq?"),
        (["-ip_masq"], "flag provided but not defined: -ip_masq; is it -ip-masq?"),
        (["-etcd-prefix"], "flag needs an argument: -etcd-prefix"),
        (["---v"], "bad flag syntax: ---v"),
        (["-=x"], "bad flag syntax: -=x"),
        (["start"], '"start" is no option'),
        (["-"], '"-" is no option'),
        (["--", "start"], '"start" is no option'),
        (["-v=x"], 'invalid value "x" for flag -v: it is a whole number, 0 to 2147483647'),
        (["-v=1.5"], 'invalid value "1.5" for flag -v'),
        (["-v= 1"], 'invalid value " 1" for flag -v'),
        (["-v=09"], 'invalid value "09" for flag -v'),
        (["-v=-1"], 'invalid value "-1" for flag -v: it is a whole number, 0 to'),
        (["-v=99999999999"], 'invalid value "99999999999" for flag -v'),
        (["-healthz-port=65536"], "it is a whole number, 0 to 65535"),
        (["-healthz-ip=localhost"], 'invalid value "localhost" for flag -healthz-ip: '),
        (["-iptables-resync=0"], "it is a whole number of seconds, 1 to 86400"),
        (["-iptables-resync=999999999999"], "it is a whole number of seconds, 1 to 86400"),
        (["-subnet-lease-renew-margin=0"], "Invalid subnet-lease-renew-margin option, out of acceptable range: it is a whole number of minutes, 1 to 1439"),
        (["-subnet-lease-renew-margin=1440"], "Invalid subnet-lease-renew-margin option, out of acceptable range"),
        (["-subnet-file="], "it is empty"),
        (["-iface="], "it is empty"),
        (["-iface-regex=("], 'invalid value "(" for flag -iface-regex: invalid regular expression: missing ): ('),
        (["-iface-can-reach=eth0"], 'invalid value "eth0" for flag -iface-can-reach'),
        (["-public-ip=::1"], 'invalid value "::1" for flag -public-ip: it is an IPv4 address'),
        (["-public-ipv6=10.0.0.1"], 'invalid value "10.0.0.1" for flag -public-ipv6: it is an IPv6 address'),
        (["-public-ipv6=fe80::1%eth0"], "it is an IPv6 address"),
        (["-public-ip=127.0.0.1"], 'invalid value "127.0.0.1" for flag -public-ip: it is loopback, by which no other node reaches'),
        (["-public-ip=0.0.0.0"], "it is no host's"),
        (["-public-ipv6=ff02::1"], "it is multicast"),
        (["-etcd-endpoints=http://a:1,,http://b:1"], "it is a list of URLs"),
        (["-etcd-endpoints=http://a:1,http://1.2.3.4"], '"http://1.2.3.4" has no port: write http://1.2.3.4:2379'),
        (["-etcd-endpoints=http://etcd/"], '"http://etcd/" has no port: write http://etcd:2379'),
        (["-etcd-endpoints=foo"], '"foo" has no port: write foo:2379'),
        (["-etcd-endpoints=http://[::1]"], '"http://[::1]" has no port: write http://[::1]:2379'),
        (["-etcd-endpoints=http://h:99999"], '"http://h:99999" has no such port: it is 1 to 65535'),
        (["-etcd-endpoints=http://h:0"], '"http://h:0" has no such port'),
        (["-etcd-endpoints=http://h:"], '"http://h:" is none'),
        (["-etcd-endpoints=ftp://h:1"], '"ftp://h:1" is none: write http://HOST:PORT or https://HOST:PORT'),
        (["-etcd-endpoints=http://::1:2379"], '"http://::1:2379" is none'),
        (["-etcd-endpoints=http://h:2379/v3"], '"http://h:2379/v3" is none'),
        (["-etcd-endpoints=http://h:2379 http://i:2379"], "is none: write http://HOST:PORT"),
        (["-etcd-endpoints=unix://"], "it is empty"),
        (["-etcd-endpoints="], "it is a list of URLs"),
        (["-iface-cidr=192.168.1.2"], 'invalid value "192.168.1.2" for flag -iface-cidr: it is a network such as 192.168.0.0/16'),
        (["-iface-cidr=192.168.1.0/33"], 'invalid value "192.168.1.0/33" for flag -iface-cidr'),
        (["-iface-cidr=fe80::%eth0/64"], "it is a network such as"),
        (["-iface-node-ip"], "-iface-node-ip needs -kube-subnet-mgr: the node's InternalIP is in the Kubernetes API"),
        (["-host-network-overlap=off"], 'invalid value "off" for flag -host-network-overlap: it is refuse or warn'),
        (["-datastore=/x"], 'invalid value "/x" for flag -datastore: it is file:PATH'),
        (["-datastore=file:"], "it is file:PATH"),
        (["-datastore=file:/x", "-kube-subnet-mgr"], "there is one datastore"),
        (["-etcd-keyfile=/x"], "a client certificate needs both"),
        (["-etcd-username=x"], "to log in needs both"),
        (["-check-config=-", "-cleanup"], "one of them at a time"),
        (["-check-config="], "it is empty"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(argv: list[str], said: str) -> None:
    assert said in fault(*argv)


@pytest.mark.parametrize(
    ("text", "endpoints"),
    [
        ("http://a:2379, https://b.example:2379/ ,c:1", ("http://a:2379", "https://b.example:2379/", "c:1")),
        ("http://[::1]:2379,[fe80::1%eth0]:2379", ("http://[::1]:2379", "[fe80::1%eth0]:2379")),
        ("unix:///run/etcd.sock,unix:/run/etcd.sock,unix:etcd.sock", ("unix:/run/etcd.sock", "unix:/run/etcd.sock", "unix:etcd.sock")),
    ],
)  # fmt: skip
def test_endpoints(text: str, endpoints: tuple[str, ...]) -> None:
    assert parse([f"-etcd-endpoints={text}"], {}).etcd_endpoints == endpoints


@pytest.mark.parametrize("name", REFUSED)
def test_refused_options_are_refused_in_the_environment_too(name: str) -> None:
    variable = "FLANNELD_" + name.replace("-", "_").upper()
    assert fault(**{variable: "x"}).startswith(f"{variable} is not supported: ")
    assert parse([], {variable: ""}) == Options()


# ---- environment ------------------------------------------------------------------------------


def test_environment() -> None:
    options = parse(
        ["-ip-masq=false"],
        {
            "FLANNELD_ETCD_ENDPOINTS": "http://a:1, http://b:2",
            "FLANNELD_IP_MASQ": "true",
            "FLANNELD_IFACE": "eth0,eth1",
            "FLANNELD_V": "2",
            "FLANNELD_SUBNET_FILE": "",
            "FLANNEL_OPTIONS": "-x",
            "HOME": "/root",
        },
    )
    assert options == Options(etcd_endpoints=("http://a:1", "http://b:2"), iface=("eth0,eth1",), v=2)


def test_wrong_value_in_the_environment_names_its_variable() -> None:
    assert fault(FLANNELD_HEALTHZ_PORT="http").startswith('invalid value "http" for FLANNELD_HEALTHZ_PORT: ')
    assert parse(["-healthz-port=1"], {"FLANNELD_HEALTHZ_PORT": "http"}).healthz_port == 1


def test_variables_that_are_no_options_are_reported() -> None:
    options = parse([], {"FLANNELD_IPMASQ": "true", "FLANNELD_CLEANUP": "true", "FLANNELD_CHECK_CONFIG": ""})
    assert options == Options(warnings=options.warnings)
    assert [line.split()[0] for line in options.warnings] == ["FLANNELD_CLEANUP", "FLANNELD_IPMASQ"]


def test_options_of_a_datastore_that_is_not_used_are_reported() -> None:
    assert parse(["-kubeconfig-file=/x"], {}).warnings == ("-kubeconfig-file has no effect: it needs -kube-subnet-mgr",)
    assert parse(["-kube-subnet-mgr"], {"FLANNELD_ETCD_PREFIX": "/x"}).warnings == (
        "-etcd-prefix has no effect: etcd is not the datastore",
    )
    warnings = parse(["-datastore=file:x", "-etcd-prefix=/x", "-net-config-path=/y"], {}).warnings
    assert [line.split()[0] for line in warnings] == ["-etcd-prefix", "-net-config-path"]


def test_version_comes_before_the_environment() -> None:
    assert parse(["-version"], {"FLANNELD_V": "x"}).version
    assert not parse([], {"FLANNELD_VERSION": "true"}).version


# ---- secrets ----------------------------------------------------------------------------------


def test_dump_is_gos_with_our_own_at_its_end() -> None:
    ours = "datastore: ifaceCIDR:[] ifaceNodeIP:false hostNetworkOverlap:refuse allowCommands:false vxlanOneAddress:false"
    assert Options().redacted() == f"{GO_DUMP} {ours}}}"
    assert (
        " iface:[eth0 10.0.0.1] ifaceRegex:[] ipMasq:true "
        in parse(["-iface=eth0", "-iface=10.0.0.1", "-ip-masq"], {}).redacted()
    )


def test_password_is_shown_nowhere() -> None:
    options = parse(["-etcd-username=root", "-etcd-password=hush", "-etcd-endpoints=https://a:1,b:2"], {})
    assert options.etcd_password == "hush"
    assert " etcdPassword:*** " in options.redacted()
    assert "hush" not in options.redacted()
    assert "hush" not in repr(Options(etcd_password="hush"))
    for endpoints in ("https://root:hush@a:1,b:2", "b:2,root:hush@a:1"):
        said = fault(f"-etcd-endpoints={endpoints}")
        assert '***@a:1" has a user: give -etcd-username and -etcd-password' in said
        assert "hush" not in said


def test_options_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Options().v = 3  # type: ignore[misc]


# ---- help -------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["-h", "--h", "-help", "--help"])
def test_help_ends_well(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(["-v=1", word, "-nonsense"], {})
    assert left.value.code == 0
    assert capsys.readouterr().out == help_text() + "\n"


def names() -> list[str]:
    return [option.name.replace("_", "-") for option in fields(Options) if option.metadata]


def test_help_names_every_option_once_and_fits_a_terminal() -> None:
    lines = help_text().splitlines()
    assert sorted(re.findall(r"^  -([\w-]+)", help_text(), re.MULTILINE)) == sorted(names())
    assert max(map(len, lines)) <= 90


def test_manual_has_every_option() -> None:
    manual = (ROOT / "docs/flanneld.md").read_text().partition("## CONFIGURATION")[0]
    documented: list[Any] = re.findall(r"^\| `-([\w-]+)", manual, re.MULTILINE)
    assert sorted(documented) == sorted([*names(), *(name for name in REFUSED if name in GO)])


# ---- what is installed ------------------------------------------------------------------------


def variables(text: str) -> dict[str, str]:
    """Read the file as systemd does."""
    lines = [line.strip() for line in text.splitlines()]
    return dict(line.split("=", 1) for line in lines if line and line[0] not in "#;")


def test_environment_file_that_is_installed_is_valid() -> None:
    text = (ROOT / "conf/flanneld.env").read_text()
    assert parse([], variables(text)).warnings == ()
    wanted = re.sub(r"^#(?=FLANNELD_)", "", text, flags=re.MULTILINE).replace("PASSWORD=", "PASSWORD=x")
    assert len(variables(wanted)) == 10
    assert parse([], variables(wanted)).warnings == ()


def test_unit_has_none_of_the_guides_faults() -> None:
    unit = (ROOT / "conf/flanneld.service").read_text()
    settings = variables("\n".join(line for line in unit.splitlines() if not line.startswith("[")))
    assert "$" not in unit
    assert "Before" not in settings
    assert "server.key" not in settings["ExecStart"]
    assert (settings["Type"], settings["WantedBy"], settings["ExecStart"]) == (
        "notify",
        "multi-user.target",
        "@PREFIX@/bin/flanneld",
    )
    assert settings["RestartPreventExitStatus"] == str(UsageError.status)
