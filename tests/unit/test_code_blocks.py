"""Output of code blocks on a page: found, compared without what differs from run to run, written again (support.code_blocks)."""

from __future__ import annotations

import pytest

from support.code_blocks import ROOT, as_shown, contradiction, normalised, with_new_outputs, with_outputs

PAGE = ROOT / "README.md"
TEXT = "a\n\n```sh\nls\n```\n\n```output\none\ntwo\n```\n\nb\n\n```sh\npwd\n```\n"


def test_output_belongs_to_the_block_before_it() -> None:
    first, second = with_outputs(PAGE, TEXT)
    assert first.output is not None
    assert (first.block.text, first.output.text, second.output) == ("ls\n", "one\ntwo\n", None)


@pytest.mark.parametrize(
    "text",
    [
        "```output\none\n```\n",
        "```text\na\n```\n\n```output\none\n```\n",
        "<!-- not run: it is long -->\n```sh\nls\n```\n\n```output\none\n```\n",
        "```sh\nls\n```\n\n```output\none\n```\n\n```output\ntwo\n```\n",
        "```sh\nls\n```\n\nwords\n\n```output\none\n```\n",
    ],
)
def test_output_without_its_commands_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"output|prints this"):
        with_outputs(PAGE, text)


@pytest.mark.parametrize(
    ("one", "another"),
    [
        (
            "eth0@if4  UP  1e:43:fd:24:74:7c <BROADCAST,UP,LOWER_UP>",
            "eth0@if12 DOWN 00:00:5e:00:53:01 <NO-CARRIER,BROADCAST,UP>",
        ),
        ("veth009c9401@if2 UP", "vethffffffff@if3  UP"),
        ("6: br0: mtu 1500", "17: br0: mtu 1500"),
        ("time=0.455 ms", "time=12 ms"),
        ("rtt min/avg = 0.4/0.5 ms", "rtt min/avg = 1/2 ms"),
        ("cbr0, 2026-11-30\n         22:44:34Z", "cbr0,\n  2027-01-01 01:02:03Z"),
        ("age 7\n    s", "age 12 s"),
        ("running (pid 17)", "running (pid 4711)"),
        ("10.1.2.3/24 fe80::30ad:c9ff:fe5c:38/64", "10.1.2.3/24"),
        ("a   b", "a b"),
    ],
)
def test_what_differs_from_run_to_run_is_equal(one: str, another: str) -> None:
    assert normalised(one) == normalised(another)


@pytest.mark.parametrize(
    ("one", "another"),
    [
        ("10.244.1.2/24", "10.244.1.3/24"),
        ("mtu 1450", "mtu 1500"),
        ("code: 102", "code: 103"),
        ("1 received", "0 received"),
        ("address", "addresses"),
        ("fd00::1/64", "fd00::2/64"),
        ("via 10.0.0.1 dev eth0", "via 10.0.0.1 dev eth1"),
        ("hostport 8080", "hostport 80"),
        ("<UP>", "<BROADCAST>"),
    ],
)
def test_what_a_page_is_about_is_not_equal(one: str, another: str) -> None:
    assert normalised(one) != normalised(another)


def test_page_is_written_again_where_it_differs() -> None:
    block = with_outputs(PAGE, TEXT)[0].output
    assert block is not None
    assert with_new_outputs(TEXT, [(block, "three\n")]) == TEXT.replace("one\ntwo\n", "three\n")
    assert with_new_outputs(TEXT, [(block, "one   \ntwo\n")]) == TEXT


TWO = TEXT.replace("one\ntwo\n", "veth00000001 02:00:00:00:00:01\n").replace(
    "pwd\n```\n", "pwd\n```\n\n```output\nby {}\n```\n"
)


@pytest.mark.parametrize(
    ("second", "printed", "found"),
    [
        ("02:00:00:00:00:01", "06:00:00:00:00:07", ""),
        ("02:00:00:00:00:02", "06:00:00:00:00:07", "02:00:00:00:00:02"),  # shown as two, and is one
        ("02:00:00:00:00:01", "06:00:00:00:00:08", "02:00:00:00:00:01"),  # shown as one, and is two
        ("veth00000001", "vethabcdef01", ""),
        ("veth00000002", "vethabcdef01", "veth00000002"),
        ("nothing", "nothing", ""),
    ],
)
def test_page_whose_blocks_are_of_two_runs_is_written_again(second: str, printed: str, found: str) -> None:
    text = TWO.format(second)
    new = ["vethabcdef01 06:00:00:00:00:07\n", f"by {printed}\n"]
    blocks = [one.output for one in with_outputs(PAGE, text) if one.output]
    assert contradiction("".join(block.text for block in blocks), "".join(new)) == found
    outputs = list(zip(blocks, new, strict=True))
    assert (with_new_outputs(text, outputs) == text) == (not found)
    changed = [new[0], f"by {printed}, otherwise\n"]
    assert all(one in with_new_outputs(text, list(zip(blocks, changed, strict=True))) for one in changed)


def test_output_as_shown_has_no_spaces_at_the_end_of_a_line() -> None:
    assert as_shown("\na  \n b\t\n\n") == "a\n b\n"
    assert as_shown("") == ""
