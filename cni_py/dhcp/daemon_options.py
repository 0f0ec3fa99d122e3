"""Options of ``dhcp daemon``, in Go's form: their values, defaults and help. Reference and man page are made of this table."""

from __future__ import annotations

from cni_py.dhcp.wire import SOCKET

OPTIONS: dict[str, tuple[str, str, str]] = {
    "pidfile": ("FILE", "", "Write the process id into this file; it is deleted when the daemon ends."),
    "hostprefix": ("DIR", "", "Directory at which the host's file system is mounted: in front of the socket's path."),
    "socketpath": (
        "PATH",
        SOCKET,
        "Where to listen; the plugin's key daemonSocketPath names the same. Ignored with LISTEN_FDS.",
    ),
    "broadcast": ("", "", "Ask servers to broadcast their replies."),
    "timeout": ("DURATION", "10s", "Time to wait for a reply before the request is sent again."),
    "resendmax": ("DURATION", "62s", "Longest pause between two requests."),
    "resendtimeout": ("DURATION", "208s", "Give up after this time."),
}
"""Value ("" for a switch), default, and meaning of each option."""


def help_text() -> str:
    """Return what ``dhcp daemon --help`` prints."""
    lines = [
        "Usage: dhcp daemon [OPTION]...",
        "",
        "Keeps the leases of pods whose networks have the IPAM plugin dhcp: renews, rebinds and releases",
        'them. Options begin with one or two dashes; a value follows after "=" or a space. A DURATION',
        "is like 10s or 1m30s.",
        "",
    ]
    for name, (value, default, text) in OPTIONS.items():
        lines += [f"  -{name} {value}".rstrip(), f"        {text}" + (f" ({default})" if default else "")]
    return "\n".join(lines)
