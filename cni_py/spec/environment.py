"""Variables of a call (CNI spec section 2, "Parameters"): required ones by verb, and their valid values.

Everything from the environment that reaches a path, a command or a kernel name passes through here.
Nothing is imported and no class is defined: the client checks a call in microseconds before it sends it
to the agent or loads the modules to handle it alone.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    Fault = tuple[str, str, str]
    """Parts of an error: msg, details, hint."""

VERBS = ("ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION")
REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
}
"""Required variables by verb; the other verbs have no attachment."""
MAX_NAME = 200
"""Maximum length of a container id or network name: both become file names."""
MAX_PATH = 4096
NESTED = "CNI_PY_NESTED"
"""Set for third-party plugins: if they execute ours in turn, ours know that one of our calls waits for them."""
DIFFERENCES = "CNI_PY_DIFFERENCES"
"""Set by ``cni-py check``: the error object of CHECK lists the differences one by one, as ``differences``."""
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_NAME = _LETTERS | frozenset("_.-")


def fault_in(environ: "Mapping[str, str]") -> "Fault | None":
    """Return the first error in the variables of a call, or None."""
    verb = environ.get("CNI_COMMAND", "")
    if verb not in VERBS:
        return f"unknown CNI_COMMAND: {verb}", "", f"one of {', '.join(VERBS)}"
    required = REQUIRED.get(verb)
    if not required:
        return None
    missing = [name for name in required if not environ.get(name)]
    if missing:
        return f"required env variables [{','.join(missing)}] missing", "", ""
    return _fault_in_attachment(environ)


def _fault_in_attachment(environ: "Mapping[str, str]") -> "Fault | None":
    container_id, ifname, netns = environ["CNI_CONTAINERID"], environ["CNI_IFNAME"], environ.get("CNI_NETNS", "")
    if not is_name(container_id):
        return (
            "invalid characters in containerID",
            container_id[:MAX_NAME],
            f"CNI_CONTAINERID is a letter or digit, then letters, digits, '_', '.' and '-', at most {MAX_NAME} in all",
        )
    if fault := link_name_fault(ifname):
        return fault, f"CNI_IFNAME is {ifname[:40]!r}", ""
    if len(netns) > MAX_PATH or "\n" in netns:
        return "CNI_NETNS is not a path of a network namespace", netns[:100], ""
    return None


def is_name(text: str) -> bool:
    """Return whether this can be a container id or a network name: a file name and nothing more."""
    return bool(text) and text[0] in _LETTERS and _NAME.issuperset(text) and len(text) <= MAX_NAME


def link_name_fault(name: str) -> str:
    """Return the reason why this cannot be the name of a link, "" if it can: the kernel's dev_valid_name().

    The kernel counts a byte 0xA0 as white space ("à" has one). Besides, "all" and "default" are names
    of sysctl directories, and the kernel expands "eth%d".
    """
    encoded = name.encode(errors="surrogateescape")
    if not 0 < len(encoded) < 16:
        return (
            "interface name is too long: interface name should be less than 16 characters"
            if name
            else "interface name is empty"
        )
    if name in (".", ".."):
        return "interface name is . or .."
    if any(c in "/:" or c.isspace() for c in name) or 0xA0 in encoded:
        return "interface name contains / or : or whitespace characters"
    if name in ("all", "default") or "%" in name or not name.isprintable():
        return "interface name is all or default, or contains % or characters that cannot be printed"
    return ""
