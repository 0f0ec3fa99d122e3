"""subnet_env.py: the file that flanneld writes."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_py import subnet_env
from cni_py.errors import InvalidConfig, TryAgainLater
from cni_py.subnet_env import SubnetEnv, parse, read
from support.examples import examples

GUIDE = {
    "FLANNEL_NETWORK": "10.244.0.0/16",
    "FLANNEL_SUBNET": "10.244.91.1/24",
    "FLANNEL_MTU": "1450",
    "FLANNEL_IPMASQ": "false",
}
V6 = {"FLANNEL_IPV6_NETWORK": "fd00:10::/48", "FLANNEL_IPV6_SUBNET": "fd00:10:0:5::1/64"}


def text(**changes: str | None) -> str:
    return "".join(f"{key}={value}\n" for key, value in (GUIDE | changes).items() if value is not None)


def networks(*texts: str) -> tuple[Any, ...]:
    return tuple(ip_network(t) for t in texts)


def test_that_of_the_deployment_guide() -> None:
    assert parse(text()) == SubnetEnv(networks("10.244.0.0/16"), networks("10.244.91.0/24"), 1450, False)


def test_both_families_and_six_alone() -> None:
    assert parse(text(**V6)).networks == networks("10.244.0.0/16", "fd00:10::/48")
    assert parse(text(**V6)).subnets == networks("10.244.91.0/24", "fd00:10:0:5::/64")
    six = parse(text(FLANNEL_NETWORK=None, FLANNEL_SUBNET=None, **V6))
    assert (six.networks, six.subnets) == (networks("fd00:10::/48"), networks("fd00:10:0:5::/64"))


def test_comma_lists_keep_their_order_and_name_each_once() -> None:
    env = parse(text(FLANNEL_NETWORK="10.244.0.0/16,192.168.0.0/16, 10.244.0.0/16"))
    assert env.networks == networks("10.244.0.0/16", "192.168.0.0/16")


@pytest.mark.parametrize(
    "written",
    [
        "\n".join(reversed(text().splitlines())),
        text().replace("\n", "\r\n"),
        "# a comment\n\n   \n" + text() + "\nUNKNOWN=x\nno equals sign\n=\n#FLANNEL_MTU=9\n",
        text().replace("=", '="').replace("\n", '"\n'),
        text().replace("=", "='").replace("\n", "'\n"),
        "  " + text().replace("\n", "  \n  "),
        text(FLANNEL_SUBNET="10.1.1.1/24") + "FLANNEL_SUBNET=10.244.91.1/24\n",
    ],
    ids=["order", "CRLF", "comments", "double quotes", "single quotes", "blanks", "the last counts"],
)
def test_form_of_the_file_does_not_matter(written: str) -> None:
    assert parse(written) == parse(text())


@pytest.mark.parametrize(("value", "expected"), [("true", True), ("false", False), ("TRUE", False), ("1", False), ("x", False)])
def test_masquerade_is_the_word_true(value: str, expected: bool) -> None:
    """Go-compatible: flannel.go compares with "true"."""
    assert parse(text(FLANNEL_IPMASQ=value)).ip_masq is expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"FLANNEL_MTU": None}, "FLANNEL_MTU"),
        ({"FLANNEL_MTU": ""}, "FLANNEL_MTU"),
        ({"FLANNEL_IPMASQ": None}, "FLANNEL_IPMASQ"),
        ({"FLANNEL_NETWORK": None}, "FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK"),
        ({"FLANNEL_SUBNET": None}, "FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET"),
        ({"FLANNEL_SUBNET": "10.1.0.1"}, "invalid CIDR address"),
        ({"FLANNEL_SUBNET": "10.1.0.1/33"}, "invalid CIDR address"),
        ({"FLANNEL_SUBNET": "x/24"}, "invalid CIDR address"),
        ({"FLANNEL_NETWORK": "10.0.0.0/8,"}, "invalid CIDR address"),
        ({"FLANNEL_SUBNET": "fd00::1/64"}, "not IPv4"),
        ({"FLANNEL_IPV6_SUBNET": "10.1.0.1/24"}, "not IPv6"),
        ({"FLANNEL_SUBNET": "10.1.0.1/24,10.2.0.1/24"}, "more than one subnet"),
        ({"FLANNEL_MTU": "x"}, 'FLANNEL_MTU "x"'),
        ({"FLANNEL_MTU": "67"}, "68"),
        ({"FLANNEL_MTU": "65536"}, "65535"),
        ({"FLANNEL_MTU": "-1450"}, "FLANNEL_MTU"),
        ({"FLANNEL_MTU": "1450.0"}, "FLANNEL_MTU"),
        ({"FLANNEL_MTU": "١٤٥٠"}, "FLANNEL_MTU"),
        ({"FLANNEL_MTU": "9" * 5000}, "FLANNEL_MTU"),
    ],
)
def test_what_is_missing_or_wrong_is_named(changes: dict[str, str | None], words: str) -> None:
    with pytest.raises(ValueError, match="FLANNEL") as error:
        parse(text(**changes))
    assert words in str(error.value)


def test_missing_keys_are_named_together() -> None:
    with pytest.raises(ValueError, match=r"is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, .*, FLANNEL_MTU, FLANNEL_IPMASQ"):
        parse("")


@settings(max_examples=examples(75), deadline=None)
@given(
    st.text()
    | st.builds(lambda key, value: f"{key}={value}\n", st.sampled_from([*GUIDE, *V6]), st.text()).map(
        lambda line: text() + line
    )
)
def test_random_text_is_read_or_refused(content: str) -> None:
    try:
        assert parse(content).subnets
    except ValueError:
        pass


# --- the file ---------------------------------------------------------------------------------------------------------


def test_file_that_is_not_there_yet_is_code_11(tmp_path: Path) -> None:
    with pytest.raises(TryAgainLater) as error:
        read(str(tmp_path / "subnet.env"))
    assert error.value.msg == f"failed to load flannel 'subnet.env' file: open {tmp_path}/subnet.env: no such file or directory"
    assert subnet_env.HINT in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"\0" * 100, b"x" * (2 << 20), b"FLANNEL_MTU=1450\n"])
def test_file_that_is_damaged_is_code_7(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "subnet.env").write_bytes(content)
    with pytest.raises(InvalidConfig, match=r"failed to load flannel 'subnet.env' file"):
        read(str(tmp_path / "subnet.env"))


@pytest.mark.parametrize("name", ["", "directory", "a\0b", "file/x"])
def test_path_that_is_no_file_is_an_error_of_ours(tmp_path: Path, name: str) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises((InvalidConfig, TryAgainLater), match=r"subnet\.env"):
        read(f"{tmp_path}/{name}" if name else "")


def test_pipe_does_not_make_it_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "subnet.env")
    with pytest.raises(InvalidConfig):
        read(str(tmp_path / "subnet.env"))


def test_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "subnet.env").write_text(text())
    assert read(str(tmp_path / "subnet.env")) == parse(text())
