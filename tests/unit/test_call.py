"""call.py: the variables of a call. Through the executables: spec/test_section2_parameters.py."""

from __future__ import annotations

from typing import Any

import pytest

from cni_py.errors import InvalidConfig, InvalidEnvironment
from cni_py.spec.call import Call, check_network_name, parse
from cni_py.spec.environment import VERBS, is_name

ADD = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": "eth0"}


def test_all_of_a_call_is_read() -> None:
    environ = ADD | {"CNI_ARGS": "A=1;B=", "CNI_PATH": "/a:/b", "FOO": "x"}
    assert parse("bridge", environ, "/opt/cni/bin/bridge") == Call(
        verb="ADD",
        plugin="bridge",
        container_id="c1",
        netns="/run/netns/c1",
        ifname="eth0",
        args=(("A", "1"), ("B", "")),
        cni_path=("/a", "/b"),
        launcher="/opt/cni/bin/bridge",
        environ=environ,
    )


@pytest.mark.parametrize("verb", ["STATUS", "GC", "VERSION"])
def test_verbs_without_an_attachment_take_no_variables_of_one(verb: str) -> None:
    odd = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "../x", "CNI_NETNS": "x\ny", "CNI_IFNAME": "a" * 99, "CNI_ARGS": "rubbish"}
    this = parse("bridge", odd)
    assert (this.container_id, this.netns, this.ifname, this.args) == ("", "", "", ())


@pytest.mark.parametrize(("path", "directories"), [("", ()), ("/a", ("/a",)), ("a:./b:/c::/d/", ("/c", "/d/")), (":", ())])
def test_path_holds_absolute_directories_only(path: str, directories: tuple[str, ...]) -> None:
    assert parse("bridge", ADD | {"CNI_PATH": path}).cni_path == directories


def test_delete_needs_no_sandbox() -> None:
    assert (
        parse("bridge", {name: value for name, value in ADD.items() if name != "CNI_NETNS"} | {"CNI_COMMAND": "DEL"}).netns
        == ""
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"CNI_COMMAND": ""}, "CNI_COMMAND"),
        ({"CNI_COMMAND": "add"}, "CNI_COMMAND: add"),
        ({"CNI_CONTAINERID": ""}, "[CNI_CONTAINERID]"),
        ({"CNI_CONTAINERID": "", "CNI_NETNS": "", "CNI_IFNAME": ""}, "[CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME]"),
        ({"CNI_CONTAINERID": "a/b"}, "containerID"),
        ({"CNI_IFNAME": "a" * 16}, "too long"),
        ({"CNI_IFNAME": "é" * 8}, "too long"),
        ({"CNI_IFNAME": "all"}, "all"),
        ({"CNI_IFNAME": ".."}, ". or .."),
        ({"CNI_IFNAME": "a b"}, "whitespace"),
        ({"CNI_IFNAME": "à"}, "whitespace"),
        ({"CNI_IFNAME": "eth%d"}, "%"),
        ({"CNI_IFNAME": "a\udcff"}, "printed"),
        ({"CNI_NETNS": "a\nb"}, "CNI_NETNS"),
        ({"CNI_NETNS": "/" * 4097}, "CNI_NETNS"),
    ],
)
def test_impossible_variable_is_refused(changes: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidEnvironment) as error:
        parse("bridge", ADD | changes)
    assert words in error.value.msg


@pytest.mark.parametrize("ifname", ["a" * 15, "é" * 7, "eth0.1", "-"])
def test_possible_interface_name(ifname: str) -> None:
    assert parse("bridge", ADD | {"CNI_IFNAME": ifname}).ifname == ifname


@pytest.mark.parametrize(
    ("name", "expected"), [("a", True), ("0.-_Z", True), ("a" * 200, True), ("a" * 201, False), ("", False), (".a", False)]
)
def test_name_is_a_file_name_and_no_more(name: str, expected: bool) -> None:
    assert is_name(name) is expected


@pytest.mark.parametrize("name", [None, "", 0, [], {}, "a/b", "..", 7, True, "x" * 201])
def test_network_name_that_cannot_be(name: Any) -> None:
    with pytest.raises(InvalidConfig, match="network name"):
        check_network_name(name)


@pytest.mark.parametrize(
    ("conf", "network", "version"),
    [
        ({}, "", "0.1.0"),
        ({"name": "n", "cniVersion": ""}, "n", "0.1.0"),
        ({"name": "n", "cniVersion": "1.0.0"}, "n", "1.0.0"),
    ],
)
def test_network_and_version_are_the_configurations(conf: dict[str, Any], network: str, version: str) -> None:
    this = parse("bridge", ADD).replace(conf=conf)
    assert (this.network, this.cni_version) == (network, version)


@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("true", True), ("TRUE", True), ("", False), ("0", False), ("yes", False)]
)
def test_sandbox_may_be_the_host_where_the_override_says_so(value: str, expected: bool) -> None:
    assert parse("bridge", ADD | {"CNI_NETNS_OVERRIDE": value}).may_be_host is expected


@pytest.mark.parametrize(
    ("args", "refused"),
    [
        ("", False),
        ("MAC=x", False),
        ("FOO=x", True),
        ("FOO=x;IgnoreUnknown=1", False),
        ("FOO=x;IgnoreUnknown=false", True),
        ("IgnoreUnknown=x", False),
    ],
)
def test_unknown_args_are_rejected_unless_ignored(args: str, refused: bool) -> None:
    this = parse("bridge", ADD | {"CNI_ARGS": args})
    if refused:
        with pytest.raises(InvalidEnvironment, match="FOO=x"):
            this.known_pairs("MAC")
    else:
        assert this.known_pairs("MAC").get("MAC") == ("x" if args == "MAC=x" else None)


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL"])
@pytest.mark.parametrize("args", ["none", "A=1;", ";", "A=b=c", "=", "\n", "A=1;;B=2"])
def test_args_are_rejected_by_their_reader_alone(verb: str, args: str) -> None:
    this = parse("bridge", ADD | {"CNI_COMMAND": verb, "CNI_ARGS": args})
    if args == "=":
        assert this.pairs() == {"": ""}
        return
    with pytest.raises(InvalidEnvironment, match="ARGS: invalid pair"):
        this.pairs()


def test_every_verb_is_one_of_the_spec() -> None:
    assert VERBS == ("ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION")
