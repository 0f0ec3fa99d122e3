"""The installed plugins with faults in them: a step that the kernel refuses, an answer that is lost, a kill.

How it works. A directory of launchers, as installed, but for one block of code before `client.main()`. It counts the
operations of the call (each request to the kernel, each system call that changes a file) and does what the
environment asks for at the FAULT_AT-th. What was counted, and what failed, is written to FAULT_REPORT.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cni_py.plugin_table import PLUGINS
from support.namespaces import Host, Reply

DIRECTORY = "/run/faults"
REPORT = f"{DIRECTORY}/report"
NEVER = 1 << 30
"""No call has so many operations."""

# refuse: the operation of the N-th journal step fails before it changes anything
# lost:   the N-th change of the kernel is made, but its acknowledgement is an error
# read:   the N-th question to the kernel fails
# kill:   SIGKILL before the N-th operation that changes something
HOOK = """
import errno, posix
from cni_py import journal

class Faults:
    kind = posix.environ.get(b"FAULT_KIND", b"").decode()
    at = int(posix.environ.get(b"FAULT_AT", b"0"))
    number = getattr(errno, posix.environ.get(b"FAULT_ERRNO", b"EIO").decode())
    report = posix.environ.get(b"FAULT_REPORT", b"")
    count = 0
    armed = ""
    line = ""

faults = Faults()
real_open, real_write = posix.open, posix.write

def say(fired):
    fd = real_open(faults.report, posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC, 0o600)
    real_write(fd, f"{faults.count}\\n{fired}".encode())
    posix.close(fd)

def fail(line):
    say(line)
    raise OSError(faults.number, posix.strerror(faults.number))

def reached(kind):
    if faults.kind != kind:
        return False
    faults.count += 1
    return faults.count == faults.at

enter = journal.step.__enter__
leave = journal.step.__exit__

def step_enter(self):
    enter(self)
    faults.line = self.line
    if reached("refuse"):
        faults.armed = self.line
    return self

def step_leave(self, kind, error, trace):
    faults.line = ""
    return leave(self, kind, error, trace)

journal.step.__enter__, journal.step.__exit__ = step_enter, step_leave

def changing(function, lost=False):
    def wrapped(*args, **kw):
        if reached("kill"):
            say(faults.line)
            posix.kill(posix.getpid(), 9)
        if faults.armed:
            line, faults.armed = faults.armed, ""
            fail(line)
        answer = function(*args, **kw)
        if lost and faults.line and reached("lost"):
            fail(faults.line)
        return answer
    return wrapped

def reading(function):
    def wrapped(*args, **kw):
        if reached("read"):
            fail("read")
        return function(*args, **kw)
    return wrapped

def opening(path, flags, *rest, **kw):
    changes = flags & (posix.O_CREAT | posix.O_WRONLY | posix.O_RDWR) and not is_ours(path)
    return (changed_open if changes else real_open)(path, flags, *rest, **kw)

def writing(fd, data):
    return changed_write(fd, data) if fd > 2 and not is_journal(fd) else real_write(fd, data)

def is_ours(path):
    text = path if isinstance(path, str) else path.decode()
    return text.startswith(("/run/cni-py/journal/", "/run/faults/", "/proc/self/")) or text.endswith("lock")

def is_journal(fd):
    try:
        return is_ours(posix.readlink(f"/proc/self/fd/{fd}")) or posix.readlink(f"/proc/self/fd/{fd}").startswith("/memfd")
    except OSError:
        return False

changed_open, changed_write = changing(posix.open), changing(posix.write)
posix.open, posix.write = opening, writing
for name in ("mkdir", "rename", "unlink", "link"):
    def guarded(path, *rest, _plain=getattr(posix, name), _changing=changing(getattr(posix, name)), **kw):
        return (_plain if is_ours(path) else _changing)(path, *rest, **kw)
    setattr(posix, name, guarded)

spawn = posix.posix_spawn
posix.posix_spawn = lambda *args, **kw: (changing(spawn) if faults.line else spawn)(*args, **kw)

def patch_kernel():
    from cni_py.netlink.socket import Rtnl
    from cni_py.packetfilter import libnftables, nfnetlink
    Rtnl.change_all = changing(Rtnl.change_all, lost=True)
    nfnetlink.change_elements = changing(nfnetlink.change_elements, lost=True)
    Rtnl.get, Rtnl.dump = reading(Rtnl.get), reading(Rtnl.dump)
    plain = libnftables.Nft._command
    changed, read = changing(plain, lost=True), reading(plain)
    libnftables.Nft._command = lambda self, text, flags=0: (read if text.split()[0] in ("list", "get") else changed)(self, text, flags)

if posix.environ.get(b"CNI_COMMAND") and faults.kind:
    patch_kernel()
    plain_exit = posix._exit
    def leaving(status):
        if faults.count < faults.at:
            say("")
        plain_exit(status)
    posix._exit = leaving
"""


def install(host: Host) -> None:
    """Make the directory of launchers in the host."""
    launcher = Path(host.bin_dir, "cni-plugin").read_text()
    assert "\nfrom cni_py.client import main\n" in launcher, launcher
    host.write(
        f"{DIRECTORY}/cni-plugin",
        launcher.replace("\nfrom cni_py.client import main\n", f"\n{HOOK}\nfrom cni_py.client import main\n"),
    )
    host.run(f"cd {DIRECTORY}; chmod +x cni-plugin; for name in {' '.join(PLUGINS)}; do ln -s cni-plugin $name; done")


def environ(kind: str, at: int, errno: str = "EIO") -> dict[str, str | None]:
    return {"FAULT_KIND": kind, "FAULT_AT": str(at), "FAULT_ERRNO": errno, "FAULT_REPORT": REPORT}


def call(
    host: Host, verb: str, conf: dict[str, Any], kind: str, at: int, errno: str = "EIO", **options: Any
) -> tuple[Reply, str | None]:
    """Execute a plugin with a fault at its N-th operation.

    Returns: the reply, and the journal line in which the fault came ("": in none); None if the call ended before.
    """
    host.path(REPORT).unlink(missing_ok=True)
    plugin = f"{DIRECTORY}/{conf['type']}"
    reply = host.call(plugin, verb, conf, cni_path=DIRECTORY, env=environ(kind, at, errno), **options)
    count, _, line = host.path(REPORT).read_text().partition("\n")
    return reply, line if int(count) >= at else None


def count(host: Host, verb: str, conf: dict[str, Any], kind: str, *, is_refused: bool = False, **options: Any) -> int:
    """Count the operations of this kind in a call, in the host's present state: it is made, without a fault."""
    reply, _ = call(host, verb, conf, kind, NEVER, **options)
    assert (reply.rc == 1) == is_refused, reply
    return int(host.path(REPORT).read_text().partition("\n")[0])


def killed(reply: Reply) -> bool:
    """Return whether the plugin was killed."""
    return reply.rc not in (0, 1)
