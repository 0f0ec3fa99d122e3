"""Lesson 9: a plugin of the learner's own, called as a runtime calls it."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any, NamedTuple

from cni_py.lessons import facts
from cni_py.lessons.lesson import Lesson, Requirement

if TYPE_CHECKING:
    from cni_py.lab.site import Site

PLUGIN, NOTES = "/run/plugins/noted", "/run/noted"
SECONDS = 10
CONTAINER, ADDRESS = "lesson-check", "10.1.2.3"
_PREVIOUS: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/none"}],
    "ips": [{"address": f"{ADDRESS}/24", "gateway": "10.1.2.1", "interface": 0}],
    "dns": {},
}
_CONF: dict[str, Any] = {"cniVersion": "1.1.0", "name": "lesson", "type": "noted"}


class _Reply(NamedTuple):
    """``value``: standard output as JSON, None if it is none; ``error``: the last line of standard error."""

    status: int
    value: Any
    text: str
    error: str

    def described(self) -> str:
        errors = f'; standard error ends with "{self.error}"' if self.error else ""
        return f'exit status {self.status}, and it printed "{self.text[:200]}"{errors}'


def _call(site: Site, verb: str, conf: dict[str, Any]) -> _Reply:
    """Execute the plugin."""
    variables = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": CONTAINER,
        "CNI_NETNS": "/run/netns/none",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/run/plugins",
    }
    if verb == "VERSION":
        variables = {"CNI_COMMAND": verb}
    words = " ".join(f"{name}={value}" for name, value in variables.items())
    # into a file: a process that the plugin leaves behind would hold a pipe open
    script = f"""
        status=0; reply=$(mktemp /run/replyXXXXXX)
        env {words} timeout -k 1 {SECONDS} {PLUGIN} >"$reply" 2>"$reply.errors" || status=$?
        head -c 100000 "$reply"; echo "exit $status"; tail -n 1 "$reply.errors" | head -c 200; rm "$reply" "$reply.errors"
    """
    text, _, rest = site.run("node1", script, stdin=json.dumps(conf)).rpartition("exit ")
    status, _, error = rest.partition("\n")
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    return _Reply(int(status), value, text.strip(), error.strip())


def _is_missing(site: Site) -> str:
    state = site.run("node1", f"test -f {PLUGIN} && echo file; test -x {PLUGIN} && echo executable", check=False).split()
    if "file" not in state:
        return f"node1 has no file {PLUGIN}"
    return "" if "executable" in state else f"{PLUGIN} is not executable"


def _version_differs(site: Site) -> str:
    made = _call(site, "VERSION", {"cniVersion": "1.1.0"})
    reply = made.value
    if made.status or not isinstance(reply, dict):
        return made.described()
    versions = reply.get("supportedVersions")
    if not isinstance(versions, list) or "1.1.0" not in versions:
        return f"supportedVersions is {json.dumps(versions)}, without 1.1.0"
    return (
        ""
        if reply.get("cniVersion") == "1.1.0"
        else f"cniVersion is {json.dumps(reply.get('cniVersion'))}, not that of the request"
    )


def _add_differs(site: Site) -> str:
    _forget(site)
    made = _call(site, "ADD", _CONF | {"prevResult": _PREVIOUS})
    if made.status:
        return made.described()
    if made.value != _PREVIOUS:
        return f'it printed "{made.text[:100]}", and not the prevResult that it was given'
    return ""


def _note_differs(site: Site) -> str:
    note = facts.read_file(site, "node1", f"{NOTES}/{CONTAINER}")
    if note is None:
        found = facts.list_directory(site, "node1", NOTES)
        return f"ADD of the container {CONTAINER} wrote no file {NOTES}/{CONTAINER}" + (
            f", but {', '.join(found)}" if found else ""
        )
    return "" if note.strip() == f"{ADDRESS}/24" else f'{NOTES}/{CONTAINER} has "{note.strip()[:100]}", not {ADDRESS}/24'


def _first_in_chain_differs(site: Site) -> str:
    made = _call(site, "ADD", _CONF)
    reply = made.value
    if not made.status:
        return "exit status 0: a runtime would take that for success"
    if not isinstance(reply, dict) or not isinstance(reply.get("code"), int):
        return f"{made.described()}, and not an object with cniVersion, code and msg"
    return "" if reply["code"] == 7 and reply.get("msg") else f"code is {reply['code']}, msg is {json.dumps(reply.get('msg'))}"


def _delete_differs(site: Site) -> str:
    site.run("node1", f"mkdir -p {NOTES}; echo {ADDRESS}/24 >{NOTES}/{CONTAINER}")
    for count in ("first", "second"):
        made = _call(site, "DEL", _CONF)
        if made.status:
            return f"the {count} DEL: {made.described()}"
        if facts.read_file(site, "node1", f"{NOTES}/{CONTAINER}") is not None:
            return f"a file {NOTES}/{CONTAINER}, as ADD has to write it, still exists after the {count} DEL"
    return ""


def _forget(site: Site) -> None:
    site.run("node1", f"rm -f {shlex.quote(f'{NOTES}/{CONTAINER}')}")


LESSON = Lesson(
    9,
    "09-your-own-plugin.md",
    "Write your own plugin",
    40,
    f"""\
Write the plugin {PLUGIN} on node1, in any language: chained behind a plugin that gives an
address, its ADD writes the first address of the pod, with its prefix length, to
{NOTES}/CONTAINERID and returns the previous result unchanged; its DEL deletes that file.""",
    (
        Requirement(
            f"{PLUGIN} is an executable file of node1",
            _is_missing,
            "node1 has a /run of its own: write it in cni-py lab exec node1, and chmod +x",
            is_gate=True,
        ),
        Requirement(
            "VERSION returns the versions that it supports, 1.1.0 among them",
            _version_differs,
            "CNI_COMMAND=VERSION comes with no other variable; the reply has the same cniVersion, and supportedVersions",
        ),
        Requirement(
            "ADD prints the previous result as it was",
            _add_differs,
            "it is prevResult in the configuration; standard output is the result, and nothing else may be there",
        ),
        Requirement(
            f"ADD writes the address to {NOTES}/CONTAINERID",
            _note_differs,
            f"ips[0].address of prevResult; CNI_CONTAINERID is the file's name; create {NOTES} first",
        ),
        Requirement(
            "ADD without a previous result fails, with an error of code 7",
            _first_in_chain_differs,
            "an error is an object on standard output, with cniVersion, code and msg, and an exit status that is not 0",
        ),
        Requirement(
            "DEL deletes it, and a second DEL succeeds too",
            _delete_differs,
            "a runtime repeats DEL, and calls it for an ADD that failed: a file that does not exist is deleted",
        ),
    ),
)
