"""Tracing of packets on a kernel that lacks what it needs: the error names it."""

from __future__ import annotations

from errno import EINVAL, EOPNOTSUPP, EPERM

import pytest

from cni_py.errors import KernelRefused, NotAvailable
from cni_py.packetfilter import trace


class Socket:
    """Replaces libnftables and the listener. ``errno``: how the kernel refuses a table with an owner."""

    errno = 0

    def __init__(self, *_: object) -> None:
        self.closed = False

    def run(self, text: str) -> None:
        if "flags owner" in text and self.errno:
            raise KernelRefused(f"nft {text}", errno=self.errno)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("errno", "wanted"), [(EINVAL, NotAvailable), (EOPNOTSUPP, NotAvailable), (EPERM, KernelRefused)])
def test_kernel_without_owned_tables_is_named(monkeypatch: pytest.MonkeyPatch, errno: int, wanted: type[Exception]) -> None:
    opened: list[Socket] = []

    def opens(*_: object) -> Socket:
        opened.append(Socket())
        opened[-1].errno = errno
        return opened[-1]

    monkeypatch.setattr(trace, "Nft", opens)
    monkeypatch.setattr(trace, "Listener", opens)
    with pytest.raises(wanted) as raised:
        trace.Tracer([])
    assert ("Linux 5.12" in str(raised.value)) == (wanted is NotAvailable)
    assert [one.closed for one in opened] == [True, True]
