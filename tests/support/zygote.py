"""A process that has loaded every plugin, and forks for each call: run by support/warm.py, with what it needs and no more.

    python -IS zygote.py SOCKET LAUNCHER

SOCKET is the number of a descriptor. A request is one message on it: process 1 of the host, program and environment, and the
descriptors of standard input, output and error and of a pipe, on which the exit status is written. LAUNCHER is the
installed ``cni-plugin``: the modules are loaded from where it finds them.

``serve`` is used by support/case_zygote.py, too.
"""

import gc
import os
import posix
import select
import signal
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CALL = "\nfrom cni_py.client import main\n"
CLONE_NEWPID = 0x20000000


def main() -> None:
    control, launcher = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    with open(launcher) as file:
        exec(file.read().partition(CALL)[0], {"__file__": launcher})
    from cni_py import client, engine, protocol
    from cni_py.agent.warm_up import load_modules

    load_modules()
    assert {client, engine, protocol}  # the forks have them
    serve(control, _enter_processes, _become)


def serve(control: socket.socket, enter: "Callable[[bytes], None]", become: "Callable[[bytes, list[int]], None]") -> None:
    """Fork for each request until the socket is closed.

    ``enter`` chooses the process namespace of the fork, which only children enter; ``become`` is called in it.
    """
    from cni_py.kernel.netns import setns

    gc.freeze()
    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    running: dict[int, tuple[int, int]] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd in running:
                poll.unregister(fd)
                _reap(fd, *running.pop(fd))
                continue
            request, fds, _, _ = socket.recv_fds(control, 1 << 20, 4)
            if not request:
                return
            enter(request)
            pid = os.fork()
            if pid == 0:
                try:
                    become(request, fds)
                finally:
                    posix._exit(127)
            setns(own, CLONE_NEWPID)
            for given in fds[:3]:
                os.close(given)
            pidfd = os.pidfd_open(pid)
            running[pidfd] = pid, fds[3]
            poll.register(pidfd, select.POLLIN)


def _reap(pidfd: int, pid: int, status_fd: int) -> None:
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        os.write(status_fd, str(status).encode())
    except BrokenPipeError:  # the test was given up
        pass
    os.close(status_fd)
    os.close(pidfd)


def _enter_processes(request: bytes) -> None:
    """Enter the process namespace of the host."""
    from cni_py.kernel.netns import setns

    target = int(request.partition(b"\0")[0])
    inner = os.open(f"/proc/{target}/ns/pid", os.O_RDONLY)
    setns(inner, CLONE_NEWPID)
    os.close(inner)


def _become(request: bytes, fds: list[int]) -> None:
    """The child: enter the host as nsenter(1) does, and be the program there."""
    from cni_py.kernel.netns import setns

    target, program, *variables = request.split(b"\0")
    environ = dict(variable.split(b"=", 1) for variable in variables)
    root = os.open(f"/proc/{int(target)}/root", os.O_PATH)
    for space in [os.open(f"/proc/{int(target)}/ns/{kind}", os.O_RDONLY) for kind in ("net", "ipc", "mnt")]:
        setns(space, 0)
    os.fchdir(root)
    os.chroot(".")
    os.chdir("/")
    use_as_streams(fds)
    with open(program, "rb") as file:
        text = file.read()
    if CALL.encode() not in text:
        os.execve(program, [program], environ)
    be_plugin(os.fsdecode(program), text, environ)


def use_as_streams(fds: list[int]) -> None:
    """Make the first three standard input, output and error, and close everything else."""
    for number, fd in enumerate(fds[:3]):
        os.dup2(fd, number)
    os.closerange(3, 1024)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def be_plugin(program: str, text: bytes, environ: dict[bytes, bytes]) -> None:
    """Run the launcher of this text."""
    posix.environ.clear()
    posix.environ.update(environ)
    sys.argv = [program]
    exec(compile(text, program, "exec"), {"__name__": "__main__", "__file__": program})


if __name__ == "__main__":
    main()
