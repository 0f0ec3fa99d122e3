"""Delete a link without waiting for the kernel's grace period.

Deleting a veth is acknowledged after 16 to 35 ms, an ifb no sooner. For nearly all of that time the link is invisible
already, with its name and addresses: the notification RTM_DELLINK comes after about 1 ms. So a
thread sends the request and waits, and the caller continues at the notification. If the process
exits in between, the kernel waits for the thread: nothing is interrupted.

Two sockets are opened in the namespace, one for the request and one for notifications; no thread stays inside.
"""

from __future__ import annotations

from _thread import allocate_lock, start_new_thread
from errno import ENODEV

from cni_py.journal import step
from cni_py.kernel.link import delete_request
from cni_py.netlink.attributes import decode_header
from cni_py.netlink.constants import NETLINK_ROUTE, RTM_DELLINK, RTMGRP_LINK
from cni_py.netlink.socket import Listener, open_host, question

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_py.kernel.link import Link
    from cni_py.kernel.netns import NetNS
    from cni_py.netlink.socket import Notification, Rtnl

POLL_SECONDS = 0.005
MAX_PENDING = 128
"""Maximum number of pending deletions; another one waits for its own acknowledgement."""

_pending: set[Deletion] = set()
_pending_lock = allocate_lock()


class Deletion:
    """Request to delete a link, for the thread that waits for it."""

    def __init__(self, asking: Rtnl, ifindex: int) -> None:
        self.asking, self.ifindex = asking, ifindex
        self.error: OSError | None = None
        self._running = allocate_lock()
        self._running.acquire()

    def run(self) -> None:
        """Send the request and wait for its acknowledgement."""
        try:
            self.asking.change(delete_request(self.ifindex), RTM_DELLINK)
        except OSError as error:
            self.error = error
        finally:
            self.asking.close()
            with _pending_lock:
                _pending.discard(self)
            self._running.release()

    def has_ended(self, wait: bool = False) -> bool:
        if not self._running.acquire(wait):
            return False
        self._running.release()
        return True


def delete_in_background(netns: NetNS | None, choose: Callable[[Rtnl], Link | None]) -> bool:
    """Delete a link of a sandbox (None: the host), and return when it is invisible; absence is success. Raises: KernelRefused.

    ``choose`` finds it, with a socket in the namespace. Returns: whether there was one to delete.
    """
    enter = netns.enter if netns is not None else ()
    with question(*enter, "ip", "monitor", "link"):
        asking, listening = netns.run(_sockets) if netns is not None else _sockets()
    with listening:
        try:
            link = choose(asking)
        except BaseException:
            asking.close()
            raise
        if link is None:
            asking.close()
            return False
        with step(*enter, "ip", "link", "del", link.name) as change:
            deletion = Deletion(asking, link.ifindex)
            _begin(deletion)
            while not deletion.has_ended():
                if _was_deleted(link, listening.receive(POLL_SECONDS)):
                    return True
            if deletion.error is not None and deletion.error.errno != ENODEV:
                raise deletion.error
            change.unchanged = deletion.error is not None
    return True


def _sockets() -> tuple[Rtnl, Listener]:
    return open_host(), Listener(NETLINK_ROUTE, RTMGRP_LINK)


def _was_deleted(link: Link, received: list[Notification] | None) -> bool:
    """Return whether one of the notifications reports the deletion."""
    deleted = [body for kind, _, body in received or () if kind == RTM_DELLINK]
    return any(decode_header("ifinfmsg", body)["index"] == link.ifindex for body in deleted)


def _begin(deletion: Deletion) -> None:
    with _pending_lock:
        in_background = len(_pending) < MAX_PENDING
        _pending.add(deletion)
    try:
        if in_background:
            start_new_thread(deletion.run, ())
            return
    except RuntimeError:  # the process has no more threads
        pass
    deletion.run()


def wait_for_deletions() -> None:
    """Wait until the kernel has acknowledged every deletion; for an agent that shuts down."""
    while True:
        with _pending_lock:
            deletion = next(iter(_pending), None)
        if deletion is None:
            return
        deletion.has_ended(wait=True)
