"""List of the table ``cni_py``, our own in the families inet and bridge, as nft(8) prints it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from support.namespaces import Host


@dataclass(frozen=True)
class Element:
    """Element of a set or a map. ``key`` and ``value`` are words with blanks between them; a set's element has no value."""

    set_name: str
    key: str
    comment: str
    value: str = ""

    @property
    def container(self) -> str:
        """The container's id, with which the comment begins."""
        return self.comment.partition(" ")[0]


def list_elements(host: Host, prefix: str = "") -> list[Element]:
    """List the elements of the sets and maps whose names begin with this."""
    listed = [entry.get("map") or entry.get("set") for entry in host.json("nft -j list ruleset")["nftables"]]
    ours = [one for one in listed if one and one["table"] == "cni_py" and one["name"].startswith(prefix)]
    return [_element(one["name"], item) for one in ours for item in one.get("elem", [])]


def _element(set_name: str, item: Any) -> Element:
    key, value = item if isinstance(item, list) else (item, "")
    described = key["elem"] if isinstance(key, dict) and "elem" in key else {"val": key}
    return Element(set_name, _words(described["val"]), described.get("comment", ""), _words(value))


def _words(value: Any) -> str:
    """Return the words of a value; of a verdict its JSON, as Python shows it."""
    return " ".join(map(str, value["concat"])) if isinstance(value, dict) and "concat" in value else str(value)
