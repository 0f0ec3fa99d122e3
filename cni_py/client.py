"""The start of an executed plugin: ``bin/cni-plugin`` calls :func:`main` under the plugin's name.

VERSION, errors of the environment and a call by hand are answered here with next to nothing
imported; not even ``__future__``, a file like any other, which takes a tenth of a millisecond. Every other call
goes to the agent (``protocol.py`` is the contract) and, if there is none, to ``engine.handle()`` in this process.
"""

import posix
import sys

from cni_py.plugin_table import PLUGINS
from cni_py.spec.environment import REQUIRED, fault_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.errors import CniError
    from cni_py.spec.environment import Fault

MAX_STDIN = 4 << 20
GO_VERSION = "1.9.1"
"""Version of the Go plugins whose keys and behaviour these have."""
_STDIN, _STDOUT, _STDERR = 0, 1, 2


def main() -> None:
    """Handle one call and exit at once: taking the interpreter down costs a millisecond."""
    try:
        status = _answer()
    except OSError as error:  # the reader has exited, or standard output is closed
        _say(f"{sys.argv[0]}: could not write the reply: {error}\n")
        status = 1
    posix._exit(status)


def _answer() -> int:
    launcher = sys.argv[0]
    plugin = launcher.rpartition("/")[2]
    if plugin == "dhcp" and sys.argv[1:2] == ["daemon"]:
        from cni_py.dhcp.daemon import main as run_daemon

        return run_daemon(sys.argv[2:])
    environ = _environ()
    verb = environ.get("CNI_COMMAND")
    if not verb:
        _say(_about(plugin))
        return 0
    fault = _unknown(plugin) if plugin not in PLUGINS else fault_in(environ)
    if fault:
        from cni_py.errors import InvalidEnvironment

        return _fail(InvalidEnvironment(*fault), _requested_version())
    if verb == "VERSION":
        _write(_STDOUT, _version_json(plugin, _requested_version()))
        return 0
    try:
        stdin = _read_stdin()
    except OSError as error:
        from cni_py.errors import IOFailure

        return _fail(IOFailure("error reading from standard input", error.strerror or "", errno=error.errno or 0))
    status, reply = _ask_agent(plugin, launcher, environ, stdin) or _work_alone(plugin, launcher, environ, stdin)
    _write(_STDOUT, reply)
    return status


def _work_alone(plugin: str, launcher: str, environ: dict[str, str], stdin: bytes) -> tuple[int, bytes]:
    from cni_py.attachment import lock, record
    from cni_py.engine import handle
    from cni_py.spec.call import parse

    call = parse(plugin, environ, launcher)
    with lock.AttachmentLock(call):
        if record.is_first_of_boot(call):
            from cni_py.sweep import sweep

            sweep.before_first_call(call, stdin)
        status, reply = handle(call, stdin)
        if status == 0 and record.may_have_lost_rules(call):
            from cni_py.sweep import restore

            restore.of_others()
        return status, reply


def _ask_agent(plugin: str, launcher: str, environ: dict[str, str], stdin: bytes) -> tuple[int, bytes] | None:
    """Return the agent's reply; None if there is no agent, or it refuses: then we do the work.

    Once it has begun, a broken connection leaves its work incomplete. Idempotent verbs are
    repeated here; an ADD is undone by a DEL, and fails.
    """
    from cni_py import protocol

    verb = environ["CNI_COMMAND"]
    try:
        return protocol.ask_agent(plugin, launcher, environ.get("CNI_NETNS", "") if verb in REQUIRED else "", stdin)
    except protocol.BrokeOff as error:
        _say(f"the agent disconnected during {verb}: {error}\n")
    return _undo_add(plugin, launcher, environ, stdin) if verb == "ADD" else None


def _undo_add(plugin: str, launcher: str, environ: dict[str, str], stdin: bytes) -> tuple[int, bytes]:
    """Reply to an ADD that the agent did in part: undo it, and ask for a retry."""
    from cni_py.errors import TryAgainLater

    failed, _ = _work_alone(plugin, launcher, environ | {"CNI_COMMAND": "DEL"}, stdin)
    left = "undoing it failed: DEL is required" if failed else "it was undone"
    lost = TryAgainLater("the agent disconnected during ADD", left, "see its log: journalctl -u cni-agent")
    return 1, _as_json(lost, _version_in(stdin))


def _unknown(plugin: str) -> "Fault":
    return (
        f'unknown plugin "{plugin}"',
        f"plugins: {', '.join(PLUGINS)}",
        "execute the launcher under one of these names",
    )


def _fail(error: "CniError", version: str = "") -> int:
    _write(_STDOUT, _as_json(error, version) + b"\n")
    return 1


def _as_json(error: "CniError", version: str = "") -> bytes:
    """The error in this version, the current one if it is unknown."""
    from cni_py.jsontext import encode
    from cni_py.spec.versions import CURRENT, SUPPORTED

    return encode(error.as_json(version if version in SUPPORTED else CURRENT))


def _environ() -> dict[str, str]:
    """The environment as text; ``os`` would cost two milliseconds."""
    encoding = sys.getfilesystemencoding()
    return {k.decode(encoding, "surrogateescape"): v.decode(encoding, "surrogateescape") for k, v in posix.environ.items()}


def _read_stdin() -> bytes:
    """Read standard input, at most one block more than allowed. Raises: OSError."""
    data = b""
    while len(data) <= MAX_STDIN and (block := posix.read(_STDIN, 1 << 16)):
        data += block
    return data


def _requested_version() -> str:
    """Return the cniVersion of the configuration, "" if it has none: for VERSION, and for errors before it is decoded.

    By hand and from Go's older libraries there is no request, and the pipe may stay open: neither the end
    of the input is waited for, nor its beginning for long.
    """
    from select import select

    data = b""
    try:
        while not (version := _version_in(data)) and len(data) <= MAX_STDIN and not posix.isatty(_STDIN):
            if not select([_STDIN], [], [], 1.0 if data else 0.1)[0] or not (block := posix.read(_STDIN, 1 << 16)):
                break
            data += block
    except OSError:  # closed, or a directory
        return ""
    return version


def _version_in(request: bytes) -> str:
    """Return the value of cniVersion, once its closing quote was read; decoding JSON would cost more than all of VERSION."""
    after = request.partition(b'"cniVersion"')[2].lstrip(b" \t\r\n:")
    version, end, _ = after[1:].partition(b'"')
    return version.decode("ascii", "replace") if after[:1] == b'"' and end else ""


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[posix.write(fd, data) :]


def _say(text: str) -> None:
    """Write to standard error, if it is open."""
    try:
        _write(_STDERR, text.encode(errors="backslashreplace"))
    except OSError:
        pass


def _about(plugin: str) -> str:
    from cni_py import __version__
    from cni_py.spec.versions import SUPPORTED, supported_since

    # nerdctl reads a semantic version behind "CNI firewall plugin ", and asks for the policy "isolated" from 1.7.1 on
    name = f"{plugin} plugin v{GO_VERSION}+cni-py.{__version__}" if plugin in PLUGINS else f"plugin of cni-py {__version__}"
    versions = supported_since(PLUGINS[plugin].since) if plugin in PLUGINS else SUPPORTED
    return (
        f"CNI {name}\n"
        f"CNI protocol versions supported: {', '.join(versions)}\n"
        "It is executed by a container runtime, with CNI_COMMAND and the other variables of the CNI spec;\n"
        "to try it by hand: cni-py add --help\n"
    )


def _version_json(plugin: str, asked: str) -> bytes:
    """The reply to VERSION names the version of the request, where it is one that we know."""
    from cni_py.spec.versions import CURRENT, SUPPORTED, supported_since

    versions = ",".join(f'"{version}"' for version in supported_since(PLUGINS[plugin].since))
    return f'{{"cniVersion":"{asked if asked in SUPPORTED else CURRENT}","supportedVersions":[{versions}]}}\n'.encode()
