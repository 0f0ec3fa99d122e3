"""Every error a plugin answers with (CNI spec section 5, "Error").

::

    CniError
    ├── IncompatibleVersion    1    UnsupportedField       2
    ├── InvalidEnvironment     4    IOFailure              5
    ├── DecodingFailure        6    InvalidConfig          7
    ├── InvalidNetNS           8    (SandboxGone)         8
    ├── TryAgainLater         11
    ├── NotAvailable          50
    ├── InternalError        100    KernelRefused        101
    ├── AddressesExhausted   102    CheckFailed          103
    ├── DelegateFailed       the code that the delegate gave
    └── Incomplete           the code of the first thing that could not be done

Codes below 100 are the spec's (8 is libcni's), the others are ours.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class CniError(Exception):
    """What failed, for the runtime and for the person who reads its log.

    ``msg`` names the object in quotes, ``details`` gives the kernel's or the file's own words and
    the journal line that failed, ``hint`` the next thing to do.
    """

    code = 100

    def __init__(self, msg: str, details: str = "", hint: str = "") -> None:
        super().__init__(msg)
        self.msg, self.details, self.hint = msg, details, hint

    def as_json(self, cni_version: str) -> dict[str, Any]:
        """The spec's error object; the hint ends ``details``, for runtimes print nothing else."""
        details = ". ".join(part for part in (self.details, self.hint) if part)
        out: dict[str, Any] = {"cniVersion": cni_version, "code": self.code, "msg": self.msg}
        return out | ({"details": details} if details else {})

    def __str__(self) -> str:
        return ": ".join(part for part in (self.msg, self.details, self.hint) if part)


class IncompatibleVersion(CniError):
    code = 1


class UnsupportedField(CniError):
    """The message names key and value of what cannot be done here."""

    code = 2


class InvalidEnvironment(CniError):
    code = 4


class SystemFailure(CniError):
    """A system call failed; ``errno`` is its number."""

    def __init__(self, msg: str, details: str = "", hint: str = "", errno: int = 0) -> None:
        super().__init__(msg, details, hint)
        self.errno = errno


class IOFailure(SystemFailure):
    """A file could not be read or written."""

    code = 5


class CouldNotRun(IOFailure):
    """A program that was to be executed did not start: it has done nothing."""


class DecodingFailure(CniError):
    code = 6


class InvalidConfig(CniError):
    code = 7


class InvalidNetNS(CniError):
    code = 8


class SandboxGone(InvalidNetNS):
    """The network namespace is no longer there: for DEL, success."""


class TryAgainLater(CniError):
    code = 11


class NotAvailable(CniError):
    code = 50


class InternalError(CniError):
    """A bug of ours: the traceback goes to standard error, never into the reply."""


class KernelRefused(SystemFailure):
    """The kernel said no; ``details`` has its words."""

    code = 101


class AddressesExhausted(CniError):
    code = 102


class CheckFailed(CniError):
    """Something that ADD made differs from what it should be; details: expected and found."""

    code = 103


class DelegateFailed(CniError):
    """A plugin that was executed failed: its own words and its own code."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg, details)
        self.code = code


class Incomplete(CniError):
    """DEL or GC did what could be done; the message names what is left."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg, details)
        self.code = code
