"""Alerts and dashboard of conf/kubernetes: the PromQL expressions, and what they name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

KUBERNETES = Path(__file__).resolve().parents[2] / "conf" / "kubernetes"
_SELECTED = re.compile(r"(?P<metric>cni_py\w+)(?:\{(?P<labels>[^}]*)\})?")
_MATCHER = re.compile(r'(?P<label>\w+)\s*(?:=~|!~|!=|=)\s*"(?P<value>[^"]*)"')
_BY = re.compile(r"\bby \(([^)]*)\)")
_LEGEND = re.compile(r"\{\{ ?(?:\$labels\.)?(\w+) ?\}\}")
OF_PROMETHEUS = {"instance", "job", "le", "$value"}


def expressions() -> Iterator[tuple[str, str]]:
    """Yield each expression, and the text that shows its labels."""
    for group in yaml.safe_load((KUBERNETES / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["expr"], " ".join(rule["annotations"].values())
    for panel in json.loads((KUBERNETES / "dashboard.json").read_text())["panels"]:
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]


def metrics_in(expression: str) -> set[str]:
    return {match["metric"] for match in _SELECTED.finditer(expression)}


def labels_in(expression: str, shown: str) -> set[str]:
    """Return the labels that an expression or its text names, without those that Prometheus adds."""
    named = {match["label"] for found in _SELECTED.finditer(expression) for match in _MATCHER.finditer(found["labels"] or "")}
    named |= {label.strip() for found in _BY.findall(expression) for label in found.split(",")}
    return (named | set(_LEGEND.findall(shown))) - OF_PROMETHEUS


def values_in(expression: str) -> Iterator[tuple[str, str]]:
    """Yield label and value of what is compared for equality."""
    for found in _SELECTED.finditer(expression):
        for match in re.finditer(r'(\w+)="([^"]*)"', found["labels"] or ""):
            yield match[1], match[2]


def exported(text: str) -> dict[str, set[str]]:
    """Return the metrics of a text of Prometheus' format, with their labels; a histogram by its parts."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            match = re.match(r"(\w+)(?:\{(.*)\})? ", line)
            assert match, line
            found.setdefault(match[1], set()).update(
                label for label, _ in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or "")
            )
        elif line.startswith("# TYPE "):
            found.setdefault(line.split()[2], set())
    return found
