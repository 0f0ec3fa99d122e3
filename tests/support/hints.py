"""Every hint and advice in the sources, found by their place in the code: arguments named ``hint``, and what becomes one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
POSITIONS = {
    **dict.fromkeys(
        [
            "CniError",
            "IncompatibleVersion",
            "UnsupportedField",
            "InvalidEnvironment",
            "SystemFailure",
            "IOFailure",
            "CouldNotRun",
            "DecodingFailure",
            "InvalidConfig",
            "InvalidNetNS",
            "SandboxGone",
            "TryAgainLater",
            "NotAvailable",
            "InternalError",
            "KernelRefused",
            "AddressesExhausted",
            "CheckFailed",
            "LabFailed",
            "WrongUsage",
            "NoSuchNetwork",
            "report",
        ],
        2,
    ),
    "expect": 3,
    **dict.fromkeys(["StoreError", "Refused", "Unavailable", "LeaseTaken"], 1),
}
"""Errors and functions, and which of their arguments is the hint."""
NAMES = ("hint", "HINT", "RECREATE", "REPAIR", "advice", "_LOG", "IPTABLES_HINT")

FUNCTIONS = ("_conflicting_device", "fault", "what_is_invalid", "reason", "_not_verified", "_not_accepted")
"""Functions that return a hint."""


@cache
def templates() -> dict[str, str]:
    """Return every hint of cni_py, with ``{}`` for what is filled in, and the module that has it."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "cni_py").rglob("*.py")):
        for text in hints_in(path.read_text()):
            found.setdefault(text, str(path.relative_to(ROOT)))
    return found


def hints_in(source: str) -> Iterator[str]:
    """Yield the hints of a module."""
    for node in ast.walk(ast.parse(source)):
        for expression in _expressions(node):
            yield from filter(str.strip, _texts(expression))


def _expressions(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.Call):
        yield from (keyword.value for keyword in node.keywords if keyword.arg == "hint")
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        position = POSITIONS.get(name)
        if position is not None and len(node.args) > position:
            yield node.args[position]
        if name == "say" and ast.unparse(node.args[0]).lstrip("f'\"").startswith("hint: "):
            yield node.args[0]
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value is not None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [getattr(one, "id", getattr(one, "attr", "")) for one in targets]
        if any(name in NAMES for name in names):
            yield node.value
    if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "TABLE" and isinstance(node.value, ast.Dict):
        yield from node.value.values  # kernel/refusals.py: sentence and hint
    if isinstance(node, ast.FunctionDef) and node.name in FUNCTIONS:
        yield from (one.value for one in ast.walk(node) if isinstance(one, ast.Return) and one.value is not None)


def _texts(expression: ast.expr) -> Iterator[str]:
    """Yield the texts that an expression may be: both sides of a choice, a formatted text with ``{}`` in its holes."""
    if isinstance(expression, ast.Constant):
        if isinstance(expression.value, str):
            yield expression.value.removeprefix("hint: ")
    elif isinstance(expression, ast.JoinedStr):
        parts = [one.value if isinstance(one, ast.Constant) else "{}" for one in expression.values]
        yield "".join(map(str, parts)).removeprefix("hint: ")
    elif isinstance(expression, ast.IfExp):
        yield from _texts(expression.body)
        yield from _texts(expression.orelse)
    elif isinstance(expression, ast.BoolOp):
        for one in expression.values:
            yield from _texts(one)
    elif isinstance(expression, ast.BinOp):
        left, right = list(_texts(expression.left)), list(_texts(expression.right))
        yield from (f"{one}{other}" for one in left or ["{}"] for other in right or ["{}"])
    elif isinstance(expression, ast.Call) and getattr(expression.func, "id", "") == "command":
        yield from _texts(expression.args[1])
    elif isinstance(expression, ast.Call):  # "; ".join(filter(None, (error.hint, "…")))
        for one in expression.args:
            yield from _texts(one)
    elif isinstance(expression, ast.Dict):
        for value in expression.values:
            yield from _texts(value)
    elif isinstance(expression, ast.Tuple):
        for value in expression.elts[1:]:  # words, hint = …
            yield from _texts(value)


_PROGRAMS = (
    "ip|bridge|nft|iptables|sysctl|nsenter|modprobe|rm|mv|printf|chmod|systemctl|journalctl|etcdctl|kubectl|cni-py|flanneld|make"
    "|apt-get|pip|ls|df|ss|fuser|cat|grep|wg|namei|sudo|echo"
)
READS = re.compile(
    r"(ip( -\S+)* (addr|link show|link$|netns list|monitor|route)\b(?! (add|del|set|flush|replace))|nft (list|monitor)\b|iptables .*-S\b"
    r"|journalctl\b|systemctl status |ss -|ls |df |fuser -v|cat |grep |namei |etcdctl get\b|bridge (fdb|link) show"
    r"|cni-py (explain|check|status|version|sweep --dry-run|lab (status|log|ping)|config (get|leases|check|keys)))"
)
"""Commands that change nothing."""
_COMMAND = re.compile(rf"(?:(?:^|: |, |; |\")|\bor )((?:{_PROGRAMS}) (?!it\b|one:|may\b)[^;\"]+)")


def commands_in(hint: str) -> list[str]:
    """Return the commands in a hint: at its beginning, after a colon, or in quotes."""
    return [
        re.split(r" (?:lists|creates|removes|installs)\b|, ", found)[0].strip() for found in _COMMAND.findall(hint)
    ]  # fmt: skip
