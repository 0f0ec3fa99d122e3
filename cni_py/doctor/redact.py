"""Remove secrets from texts of a node, so that they can be given to another person.

How it works, twice. First, secrets are collected: values in the places of secrets, in any of the texts (a password behind
its name, in a URL, in an environment file), and the content of files that are known to hold one. Then each of them is replaced
in every text, in whatever form it has there; and what looks like a secret is replaced even where its value is not known:
private keys, tokens, 32 bytes in Base64 as WireGuard has keys. A public key looks the same, and is replaced too.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HIDDEN = "[removed]"
_SHORTEST, _LONGEST_WORD = 4, 20
"""Characters of a secret that is replaced wherever it occurs: a shorter one would be found in every word."""
_NAMES = (
    r"pass(?:word|wd|phrase)?|pwd|(?<![a-z])pw|psk|pre-?shared-?key|secret(?:s|-?key)?|token|private-?key|priv-?key|api-?key|"
    r"access-?key|client-?key(?:-?data)?|(?:encryption|signing|master|shared|auth|account)-?key|credentials?|auth(?:orization)?|"
    r"bearer|cookie|dockercfg|dockerconfigjson"
)
_NAME = rf"[\w.-]*?(?:{_NAMES.replace('-?', '[-_]?')})(?![a-z])[\w]*"
_ASSIGNED = re.compile(
    rf"""(?ix) (?<![\w]) (["']? -{{0,2}} {_NAME} \\?["']? [ \t]* (?: [:=] [ \t]* | [ \t]+ ) )
         ( \\?" (?:[^"\\]|\\.)* \\?" | '[^']*' | [^\s,;&"'}}\]]+ )"""
)
_NAMED = re.compile(
    rf"""(?ix) (\\?["']? name \\?["']? \s* [:=] \s* \\?["']? {_NAME} \\?["']? \s*
         [,\n] \s* \\?["']? value \\?["']? \s* [:=] \s*)
         ( \\?" (?:[^"\\]|\\.)* \\?" | '[^']*' | [^\s,;&"'}}\]]+ )"""
)
"""A variable of a container, with its name and its value apart."""
_HARMLESS = re.compile(
    r"(?ix) \[removed\]? | \*+ | true | false | null | none | yes | no | is | was | are | file | of | for | and | or | to | the"
    r" | in | has | with | not | from | must | \d{1,2} | /[\w./-]* | -{1,2}[\w-]+"
    r" | [\w./-]+\.(?:pem|crt|key|conf|json|env|yaml|yml|txt)"
)
"""Words that follow the name of a secret in prose, and names of files."""
_URL = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)([^\s/@:\"']*):([^\s@\"']+)@")
_URL_TOKEN = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)([^\s/@:\"']{8,})@")
_HEADER = re.compile(r"(?i)\b(bearer|basic|token)(\s+)(?=\S*\d|\S{21})([\w.~+/=-]{8,})")
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_JWT = re.compile(r"\beyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*")
_KEY = re.compile(r"(?<![A-Za-z0-9+/=])[A-Za-z0-9+/]{43}=(?![A-Za-z0-9+/=])")
_LOGIN = re.compile(r"(?i)((?:^|[\s\"'])(?:-u|--user|--userpwd|ETCDCTL_USER)[ =][\"']?[^\s:=\"']+:)([^\s\"'@/]+)")
"""A user's name and password together, as curl(1) and etcdctl have them."""
_ISSUED = re.compile(
    r"\b(?:xox[abeoprs]-[\w-]{10,}|gh[opsur]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|AKIA[A-Z0-9]{16}|AIza[\w-]{30,}"
    r"|hv[bsr]\.[\w-]{20,}|npm_\w{30,}|sk-[\w-]{20,}|AGE-SECRET-KEY-1\w{20,}|[a-z0-9]{6}\.[a-z0-9]{16})(?![\w.-])"
)
"""Tokens that services issue with a form of their own; the last is kubeadm's."""
_WHOLE_NAME = re.compile(_NAME, re.IGNORECASE)


class Redactor:
    """``secrets``: values that are known, such as the content of a key file."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: set[str] = set()
        for secret in secrets:
            self.add(secret)

    def add(self, secret: str) -> None:
        """Remember a secret; short ones and words that stand everywhere are not replaced by their value."""
        text = secret.strip().strip("\"'")
        if len(text) >= _SHORTEST and not _HARMLESS.fullmatch(text):
            self._secrets.add(text)
            for inner in _inside(text):
                self.add(inner)

    def learn(self, text: str) -> None:
        """Collect the secrets of a text, before any text is redacted."""
        for pattern in (_ASSIGNED, _NAMED):
            for found in pattern.finditer(text):
                self.add("" if _is_prose(found) else _bare(found[2]))
        for found in _URL.finditer(text):
            self.add(found[3])
        for found in _URL_TOKEN.finditer(text):
            self.add(found[2])
        for found in _HEADER.finditer(text):
            self.add(found[3])
        for found in _LOGIN.finditer(text):
            self.add(found[2])
        for found in _ISSUED.finditer(text):
            self.add(found[0])
        for found in _PEM.finditer(text):
            for line in found[0].splitlines():
                self.add("" if line.startswith("-----") else line)
        for value in _values_of_json(text):
            self.add(value)

    def redact(self, text: str) -> str:
        """Return the text without secrets."""
        text = _PEM.sub(HIDDEN, text)
        for form in sorted({form for secret in self._secrets for form in _forms(secret)}, key=len, reverse=True):
            text = text.replace(form, HIDDEN)
        text = _URL.sub(rf"\1{HIDDEN}@", text)
        text = _URL_TOKEN.sub(rf"\1{HIDDEN}@", text)
        text = _HEADER.sub(rf"\1\2{HIDDEN}", text)
        text = _LOGIN.sub(rf"\1{HIDDEN}", text)
        text = _ISSUED.sub(HIDDEN, text)
        text = _JWT.sub(HIDDEN, text)
        text = _KEY.sub(HIDDEN, text)
        return _ASSIGNED.sub(_replaced, _NAMED.sub(_replaced, text))


def _inside(secret: str) -> Iterator[str]:
    """Yield the secrets in one that is Base64 of a text: a user's name and password, as registries have them, or JSON."""
    try:
        text = b64decode(secret, validate=True).decode()
    except ValueError:  # of no Base64, and of other bytes than a text
        return
    user, colon, password = text.partition(":")
    if text.startswith("{"):
        yield from _values_of_json(text)
    elif colon and user and text.isprintable() and " " not in text:
        yield password


def _bare(value: str) -> str:
    return value.strip().strip("\\").strip("\"'").rstrip("\\")


def _is_prose(found: re.Match[str]) -> bool:
    """Return whether the value is the next word of a sentence: "token expired". With a digit in it, it is not."""
    name, value = found[1], found[2]
    is_assigned = ":" in name or "=" in name or name.lstrip("\"'").startswith("-") or value[0] in "\\\"'"
    return not is_assigned and not (len(value) > _LONGEST_WORD or any(letter.isdigit() for letter in value))


def _replaced(found: re.Match[str]) -> str:
    value = found[2]
    if _HARMLESS.fullmatch(_bare(value)) or _is_prose(found):
        return found[0]
    mark = value[:2] if value.startswith('\\"') else value[0] if value[0] in "\"'" else ""
    return f"{found[1]}{mark}{HIDDEN}{mark}"


def _forms(secret: str) -> Iterator[str]:
    """Yield the forms in which a secret may stand in a text."""
    yield secret
    yield quote(secret, safe="")
    yield quote(secret)
    yield json.dumps(secret)[1:-1]
    yield b64encode(secret.encode()).decode()


def _values_of_json(text: str) -> Iterator[str]:
    """Yield the values of secret names in a JSON text, at any depth, also inside of texts that are JSON themselves."""
    start = text.lstrip()[:1]
    if start not in ("{", "["):
        return
    try:
        yield from _secret_values(json.loads(text))
    except (ValueError, RecursionError):
        for line in text.splitlines()[1:] if "\n" in text else ():
            yield from _values_of_json(line)


def _secret_values(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        named = value.get("name")
        for key, inner in value.items():
            yield from _secret_values(inner, str(named) if key == "value" and isinstance(named, str) else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _secret_values(inner, name)
    elif isinstance(value, str):
        if name and _WHOLE_NAME.fullmatch(name):
            yield value
        yield from _values_of_json(value)
