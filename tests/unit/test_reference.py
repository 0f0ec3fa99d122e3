"""The reference: no option, key, path, error, variable, metric or kernel object of the sources is missing in it.

What is written by hand (integration/reference/facts.py) is compared with the sources: texts in them, and the rulesets that they
make. What is generated is up to date.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from ipaddress import ip_interface
from pathlib import Path

import pytest

from cni_py.cli import main as cli
from cni_py.cli import table
from cni_py.cli.table import Command, Option
from cni_py.config import reference
from cni_py.explain import shapes
from cni_py.flanneld import options as flanneld_options
from cni_py.packetfilter import forward_rules, macspoof_ruleset, masquerade_ruleset, vxlan_guard
from cni_py.packetfilter.hostports import rules as hostports
from cni_py.plugin_table import PLUGINS
from integration.reference import facts, manual, pages, roff
from support.code_blocks import blocks_of

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "cni_py"
LEAVES = [leaf for name in table.PROGRAMS for leaf in table.PROGRAMS[name]().leaves()]
OPTIONS = [(leaf, option) for leaf in LEAVES for option in leaf.options]
MAN = {page.stem: page.read_text() for page in (ROOT / "conf" / "share" / "man").rglob("*.[18]")}


@cache
def sources() -> dict[str, ast.Module]:
    """Syntax trees of the package, without what is generated."""
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name not in ("tables.py", "_schemas.py")]
    return {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in paths}


def texts(tree: ast.Module) -> Iterator[str]:
    """Yield the texts of a module that are no docstrings; ``{}`` is what is put into one."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (documentation | inside):
            yield node.value


def plain(roff_text: str) -> str:
    """Return a man page as words: what is escaped and broken in its source is not."""
    text = re.sub(r"\\f[BIR]|\\:|\\&", "", roff_text)
    for form, character in (
        ("\\-", "-"),
        ("\\(aq", "'"),
        ("\\(dq", '"'),
        ("\\(ha", "^"),
        ("\\(ti", "~"),
        ("\\(ga", "`"),
        ("\\e", "\\"),
    ):
        text = text.replace(form, character)
    return " ".join(text.split())


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "option"), OPTIONS, ids=lambda value: " ".join(getattr(value, "path", getattr(value, "names", ())))
)
def test_option_has_a_meaning_and_is_in_its_man_page(command: Command, option: Option) -> None:
    assert len(option.text.split()) > 1, "its help says what it does"
    page = {"cni-py": "cni-py", "flanneld": "flanneld", "cni-agent": "cni-agent", "dhcp": "cni-dhcp"}[command.path[0]]
    if "--help" not in option.names:
        assert roff._breakable(roff._escaped(pages.words_of(option))) in MAN[page]
        first = re.split("[.;:(,`]", pages.prose(option.text))[0]
        assert plain(roff._escaped(first))[1:] in plain(MAN[page])


def actions() -> Iterator[tuple[str, object, str]]:
    """Yield the options of argparse: their command, default and full help."""
    from cni_py.agent import options as agent_options
    from cni_py.cli import arguments

    waiting = [("cni-py", arguments.build()), ("cni-agent", agent_options.build())]
    while waiting:
        name, parser = waiting.pop()
        waiting += [(f"{name} {below}", one) for below, one in arguments.commands_of(parser).items()]
        for action in parser._actions:
            if action.option_strings and action.nargs != 0:
                yield f"{name} {action.option_strings[-1]}", action.default, parser._get_formatter()._expand_help(action)


@pytest.mark.parametrize(("name", "default", "text"), list(actions()), ids=lambda value: str(value)[:60])
def test_help_names_the_default(name: str, default: object, text: str) -> None:
    if default not in (None, "", [], "==SUPPRESS==") and default:
        shown = f"{default:g}" if isinstance(default, float) else str(default)
        assert f"({shown})" in text or f"; {shown})" in text, f"{name}: its help ends without ({shown})"


def settings_read() -> Iterator[tuple[str, str]]:
    """Yield option and variable of each ``setting(options.NAME, "VARIABLE", …)`` of the commands."""
    for name, tree in sources().items():
        for node in ast.walk(tree) if name.startswith("cli/") else ():
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", "") == "setting"
                and isinstance(node.args[0], ast.Attribute)
            ):
                assert isinstance(node.args[1], ast.Constant)
                yield node.args[0].attr, str(node.args[1].value)


def test_help_names_the_variable() -> None:
    found = set(settings_read())
    assert len(found) >= 5
    for command, option in OPTIONS:
        for name, variable in found:
            if command.path[0] == "cni-py" and f"--{name.replace('_', '-')}" in option.names and command.path[1] != "explain":
                assert option.variable == variable, f"{' '.join(command.path)} {option.names}"
    assert {option.variable for command, option in OPTIONS if command.path[0] == "cni-py"} == {
        "",
        *(variable for _, variable in found),
    }


def test_variables_of_flanneld_follow_from_its_options() -> None:
    program = table.flanneld()
    assert {option.names[0] for option in program.options} == {f"-{name}" for name in flanneld_options.FIELDS}
    for option in program.options:
        name = option.names[0].lstrip("-")
        is_action = option.group == flanneld_options.ACTIONS
        assert option.variable == ("" if is_action else flanneld_options.variable_of(name))


def test_help_and_man_page_are_one_text() -> None:
    """Compare them, command by command: each sentence of a description is in both."""
    page = plain(MAN["cni-py"])
    for command in table.cni_py().leaves():
        for sentence in re.split(r"(?<=[.:]) ", " ".join(command.description.split("\n\nexample")[0].split())):
            words = plain(roff._escaped(sentence)).replace("exit status:", "Exit status:")  # in help as "examples:" is
            assert words in page, f"{' '.join(command.path)}: {sentence}"


def test_synopsis_has_every_command() -> None:
    synopsis = (ROOT / "docs" / "cni-py.md").read_text().partition("## Description")[0]
    for command in table.cni_py().commands:
        assert re.search(rf"^cni-py {command.name}( |$)", synopsis, re.MULTILINE), command.name
        names = "|".join(one.name for one in command.commands if command.name != "config")
        assert names in synopsis, names


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", PLUGINS)
def test_every_key_has_a_meaning_and_is_in_the_man_page(plugin: str) -> None:
    rows = reference.plugin_rows(plugin)
    assert [row.key for row in rows if not row.description] == []
    page = plain(MAN[f"cni-{plugin}"])
    for row in [*reference.rows(reference.NetworkConfig), *rows]:
        assert f"{row.key} ({row.type}" in page, row.key


def test_every_key_of_the_network_configuration_has_a_meaning() -> None:
    from cni_py.flanneld.backends import MODULES
    from cni_py.flanneld.network import NetworkConfig

    keys = {field.alias for field in NetworkConfig.model_fields.values() if field.alias}
    shown = pages.network_table()
    assert {key for key in keys if f"| `{key}` |" not in shown} == set()
    shown = pages.backends_table()
    for kind, module in MODULES.items():
        config = __import__(f"cni_py.flanneld.backends.{module}", fromlist=["Config"]).Config
        known = config.keys()
        assert [key for key in known if f"| `{kind}`: `{key}` |" not in shown] == []


@pytest.mark.parametrize("plugin", PLUGINS)
def test_examples_of_a_plugin_are_valid(plugin: str, tmp_path: Path) -> None:
    blocks = [block for block in blocks_of(ROOT / "docs" / "plugins" / f"{plugin}.md") if block.lang == "json"]
    assert blocks
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.conflist"
        path.write_text(block.text)
        assert cli.main(["config", "check", "--strict", str(path)]) == 0, block
        named = [one["type"] for one in json.loads(block.text)["plugins"]]
        named += [one["ipam"]["type"] for one in json.loads(block.text)["plugins"] if "ipam" in one]
        assert plugin in named


@pytest.mark.parametrize("name", MAN)
def test_man_page_has_its_sections_in_order(name: str) -> None:
    order = ["NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "OPTIONS", "ENVIRONMENT", "FILES", "EXAMPLES"]
    found = re.findall(r'^\.SH "(.*)"$', MAN[name], re.MULTILINE)
    assert set(order) - {"COMMANDS"} <= set(found)
    assert {"EXIT STATUS", "SEE ALSO"} <= set(found)
    assert [one for one in found if one in order] == [one for one in order if one in found]
    assert found[-1] == "SEE ALSO"
    assert any(one.startswith("CONFIGURATION") for one in found)
    also = re.findall(r"\\fB(cni\\-[\w\\-]+|flanneld)\\fR\((\d)\)", MAN[name].partition('.SH "SEE ALSO"')[2])
    assert {one.replace("\\-", "-") for one, _ in also} <= MAN.keys()
    assert re.search(r"^\.SH .*\n\.SH ", MAN[name], re.MULTILINE) is None, "a section without a word"


# --- errors -----------------------------------------------------------------------------------------------------------


def test_every_error_code_has_a_meaning_and_what_to_do() -> None:
    documented = pages.failures()
    for one in documented:
        assert one.meaning.endswith((".", "?")), one
        assert one.todo.endswith((".", "?", "!")), one
    codes = {one.code for one in documented}
    assert len(codes) == len(documented)
    in_sources = set()
    for tree in sources().values():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Assign)
                and getattr(node.targets[0], "id", "") == "code"
                and isinstance(node.value, ast.Constant)
            ):
                in_sources.add(node.value.value)
            if isinstance(node, ast.Dict):
                pairs = [(getattr(key, "value", ""), value) for key, value in zip(node.keys, node.values, strict=True)]
                in_sources |= {value.value for key, value in pairs if key == "code" and isinstance(value, ast.Constant)}
    assert {code for code in in_sources if isinstance(code, int)} - codes == set()


# --- files ------------------------------------------------------------------------------------------------------------

PATH = re.compile(r"(?<![\w./}:>*@-])/(?:run|var|etc|opt|proc|sys|dev|usr|sbin|bin)(?:/(?:[\w.*@-]|\{\})+)+/?")
EXAMPLES = {
    "/run/flannel/blue.env", "/var/lib/cni/blue", "/run/ipam", "/run/dhcp.sock", "/run/tuning", "/var/lib/flannel/network.json",
    "/var/lib/flannel/net.json", "/run/etcd", "/run/cni-state", "/run/flannel-cni",
}  # fmt: skip
"""Paths in examples, and those of a lab's own machines."""


def pattern_of(row: str) -> re.Pattern[str]:
    """Return what a row's path means: itself, and all that its words in capitals and "…" mean."""
    out = ""
    for part in re.split(r"(…|\*|[A-Z]{2,}|\bN\b)", row):
        out += ".*" if re.fullmatch(r"…|\*|[A-Z]{2,}|N", part) else re.escape(part)
    return re.compile(out.rstrip("/"))


def documented_paths() -> list[str]:
    rows = [one.path for files in facts.FILES.values() for one in files] + [path for path, _ in facts.NOT_OURS]
    found = []
    for row in (row for row in rows if row.startswith("/")):
        directory = row.split(", ")[0].rpartition("/")[0]
        found += [path if path.startswith("/") else f"{directory}/{path}" for path in row.split(", ")]
    return found + [str(parent) for path in found for parent in Path(path).parents]


def test_every_path_of_the_sources_has_a_row() -> None:
    patterns = [pattern_of(path) for path in documented_paths()]
    missing = defaultdict(set)
    for name, tree in sources().items():
        for text in texts(tree) if not name.startswith("lessons/") else ():  # what is typed in a lab
            for found in PATH.findall(text):
                path = re.sub(r"^(/etc/cni/net\.d)/(\*|\{\})$", r"\1", found.rstrip("/."))
                is_known = any(pattern.fullmatch(path) for pattern in patterns)
                if not is_known and path not in EXAMPLES:
                    missing[path].add(name)
    assert dict(missing) == {}


def test_missing_path_is_found() -> None:
    patterns = [pattern_of(path) for path in documented_paths()]
    assert not any(pattern.fullmatch("/run/cni-pie/x") for pattern in patterns)
    assert not any(pattern.fullmatch("/run/cni-py/other") for pattern in patterns)
    assert not any(pattern.fullmatch("/var/lib/other") for pattern in patterns)
    assert PATH.findall("install -m 600 /dev/stdin /run/cni-pie/{}") == ["/dev/stdin", "/run/cni-pie/{}"]


# --- the kernel -------------------------------------------------------------------------------------------------------

OBJECTS = [one.name for objects in facts.KERNEL.values() for one in objects]


def is_documented(kind: str, name: str) -> bool:
    """Return whether an object of nftables, iptables or a kernel parameter has a row."""
    for row in OBJECTS:
        for part in re.split(r", (?=[a-z]+ )|, |: ", row):
            words = part.partition(" in ")[0].split()
            if not words or (kind and kind not in row):
                continue
            pattern = re.sub(r"BIT|SUBNET|HASH|LINK|IFNAME", ".+", re.escape(words[-1]))
            if re.fullmatch(pattern, name):
                return True
    return False


def rulesets() -> Iterator[str]:
    yield from masquerade_ruleset.BASE
    yield from macspoof_ruleset.BASE
    yield from hostports.base()
    for chain in hostports.BASE_CHAINS:
        yield f"add chain {chain}"
    for name in ("forward_rules", "vxlan_guard", "macspoof_ruleset", "masquerade_ruleset", "hostports/rules"):
        for text in texts(sources()[f"packetfilter/{name}.py"]):
            if text.startswith("add "):
                yield text


def test_every_object_of_nftables_has_a_row() -> None:
    seen = Counter()
    for command in rulesets():
        found = re.match(r"add (table|chain|map|set) (?:(?:inet|bridge) \w+ |\{\} )?([\w-]+)(?![\w{-])", command)
        if found and found[2] not in ("inet", "bridge"):
            seen[found[1]] += 1
            assert is_documented(found[1], found[2]), command
    assert min(seen[kind] for kind in ("chain", "map", "set")) >= 1
    for tables in (masquerade_ruleset.TABLE, macspoof_ruleset.TABLE, forward_rules.TABLE, vxlan_guard.TABLE):
        assert any(f"table {tables}" in row for row in OBJECTS), tables
    address = ip_interface("10.244.91.2/24")
    made = [masquerade_ruleset.beyond_chain([address.network]), hostports.masquerade_chain(13)]
    for chain in [*made, f"{hostports.MARK}13-from-10.244.91.0_24", f"{hostports.IF}0123456789abcdef"]:
        assert is_documented("chain", chain.rpartition(" ")[2]), chain


def test_every_chain_of_iptables_has_a_row() -> None:
    names = set()
    for name, tree in sources().items():
        for text in texts(tree) if name.startswith(("packetfilter/", "plugins/", "flanneld/firewall")) else ():
            names |= {
                chain
                for chain in re.findall(r"\bCNI-[A-Z0-9-]*[A-Z0-9]\b(?:-\{\})?", text)
                if not chain.startswith("CNI-PY-EXPLAIN")
            }
    assert len(names) > 8
    for chain in names:
        assert is_documented("", chain.replace("{}", "HASH")) or any(f"{chain}-HASH" in row for row in OBJECTS), chain


def test_every_kernel_parameter_has_a_row() -> None:
    found = set()
    for name, tree in sources().items():
        if name.startswith(("explain/", "lab/", "config/", "kernel/refusals", "node/unsettable", "node/bridge_netfilter")):
            continue  # texts about them; parameters that are only read
        found |= {text for text in texts(tree) if re.fullmatch(r"net/ipv[46]/[\w/{}]+", text)}
        for node in ast.walk(tree):  # (("ipv4", "arp_notify", "1"), …), parameters of a pod's interface
            if isinstance(node, ast.Tuple) and len(node.elts) == 3 and all(isinstance(one, ast.Constant) for one in node.elts):
                family, parameter, _ = (one.value for one in node.elts)  # type: ignore[attr-defined]
                if family in ("ipv4", "ipv6"):
                    found.add(f"net/{family}/conf/{{}}/{parameter}")
    assert len(found) >= 6
    for parameter in found:
        assert is_documented("", parameter.replace("{}", "eth0")), parameter


def test_every_group_of_changes_has_a_row_or_is_a_file() -> None:
    groups = {group for objects in facts.KERNEL.values() for one in objects for group in one.groups}
    assert groups | facts.ON_DISK == set(shapes.GROUPS)


def test_every_owner_exists_and_every_plugin_has_its_own() -> None:
    known = {*PLUGINS, "cni-py", "cni-agent", "flanneld", "the runtime", *facts.EVERY}
    rows = [one for table_ in (facts.FILES, facts.KERNEL) for some in table_.values() for one in some] + list(facts.ENVIRONMENT)
    assert {owner for one in rows for owner in one.owners} <= known
    makes_links = {name for name, row in PLUGINS.items() if row.kind != "ipam" and name != "flannel"}
    owners = {owner for objects in facts.KERNEL.values() for one in objects for owner in one.owners}
    assert makes_links <= owners


# --- environment, metrics ---------------------------------------------------------------------------------------------

INTERNAL = {"CNI_PY_NESTED", "CNI_PY_DIFFERENCES"}
"""Set by our programs for those that they execute."""


def variables_read() -> Iterator[tuple[str, str]]:
    for name, tree in sources().items():
        for node in ast.walk(tree):
            argument = None
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "setdefault"):
                argument = node.args[0] if node.args and "environ" in ast.unparse(node.func.value) else None
            elif isinstance(node, ast.Subscript) and "environ" in ast.unparse(node.value):
                argument = node.slice
            elif isinstance(node, ast.Compare) and "environ" in ast.unparse(node.comparators[0]):
                argument = node.left
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield name, argument.value


def test_every_variable_that_is_read_has_a_row() -> None:
    documented = pages.render_environment()
    found = {variable: name for name, variable in variables_read()}
    assert len(found) > 12
    assert {
        variable: name for variable, name in found.items() if f"{variable}" not in documented and variable not in INTERNAL
    } == {}


def names_of(exposition: str) -> set[str]:
    return set(re.findall(r"^# HELP (\S+)", exposition, re.MULTILINE))


def test_every_metric_is_documented() -> None:
    """Compare with the agent's registry and a health server's, as they are exposed."""
    from cni_py.agent.metrics import _HELP, AgentMetrics
    from cni_py.node.health import Health

    agent = AgentMetrics()
    agent.set_gauges(dict.fromkeys(_HELP, 0))
    Health(program="cni-agent", registry=agent.registry)
    assert names_of(agent.registry.exposition()) == {one.name for one in pages.metrics("cni-agent")}
    flanneld = {one.name for one in pages.metrics("flanneld")}
    assert names_of(Health().metrics.exposition()) < flanneld
    dashboards = (ROOT / "conf" / "kubernetes").rglob("*")
    used = {name for path in dashboards if path.is_file() for name in re.findall(r"\bcni_py_\w+", path.read_text())}
    known = flanneld | {one.name for one in pages.metrics("cni-agent")}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in used} - known <= {"cni_py_flanneld"}


# --- generated --------------------------------------------------------------------------------------------------------


def test_generated_pages_are_up_to_date() -> None:
    made = pages.render() | manual.render()
    assert [str(path.relative_to(ROOT)) for path, text in made.items() if path.read_text() != text] == [], "make generate"


def rows_of(text: str) -> Iterable[str]:
    return (line for line in text.splitlines() if line.startswith("| `") and line.count("|") > 2)


def test_each_fact_is_on_one_page() -> None:
    """No row of a generated table is in a second page."""
    places = defaultdict(set)
    for page in sorted((ROOT / "docs").rglob("*.md")):
        if page.name != "configuration.md":  # a key that several plugins have is in the table of each
            for row in rows_of(page.read_text()):
                places[row].add(page.name)
    assert {row: sorted(names) for row, names in places.items() if len(names) > 1} == {}


def test_pages_are_reached_from_the_readme() -> None:
    index = (ROOT / "README.md").read_text() + (ROOT / "docs" / "reference" / "index.md").read_text()
    for page in [*(ROOT / "docs" / "reference").glob("*.md"), *(ROOT / "docs" / "plugins").glob("*.md")]:
        assert page.name in index or page.name == "index.md", page


# --- roff -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# NAME\n\na - b\n", ['.SH "NAME"', "a \\- b"]),
        ("Two. Sentences.\n", [".PP", "Two.", "Sentences."]),
        (".dot and 'quote\n", [".PP", "\\&.dot and \\(aqquote"]),
        ("a `--b` **c** *d*\n", [".PP", "a \\fB\\-\\-b\\fR \\fBc\\fR \\fId\\fR"]),
        ("[x](y.md) [z](https://e.org/)\n", [".PP", "x z <https://e.org/>"]),
        ("```sh\n.a \\\n  b\n```\n", [".PP", ".RS 2", ".EX", "\\&.a \\e", "  b", ".EE", ".RE"]),
        ("T\n: D\n", [".TP", "T", "D"]),
        ("one  \ntwo\n", [".PP", "one", ".br", "two"]),
        ("| a | meaning | default |\n|---|---|---|\n| `x` | it is | `1` |\n", [".TP", "\\fBx\\fR", "It is.", "Default: \\fB1\\fR."]),
        ("- a\n- b\n", [".IP \\(bu 4", "a", ".IP \\(bu 4", "b"]),
        ("<!-- c -->\n\nx … y\n", [".PP", "x ... y"]),
    ],
)  # fmt: skip
def test_roff(text: str, expected: list[str]) -> None:
    assert roff.page("x", 8, "2026-01-01", "v", text).splitlines()[5:] == expected


def test_character_without_a_form_is_refused() -> None:
    with pytest.raises(ValueError, match="CHARACTERS"):
        roff.page("x", 8, "2026-01-01", "v", "snow ☃\n")
