"""Errors that a plugin returns (CNI spec section 5, "Error").

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
    ├── DelegateFailed       the delegate's code
    └── Incomplete           the code of the first failure

Codes below 100 are the spec's (8 is libcni's), the others are ours.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class CniError(Exception):
    """Failure, described for the runtime and for the person who reads its log.

    ``msg`` names the object in quotes, ``details`` has the text of the kernel or the file system and
    the journal line that failed, ``hint`` the next command to run.
    """

    code = 100

    def __init__(self, msg: str, details: str = "", hint: str = "") -> None:
        super().__init__(msg)
        self.msg, self.details, self.hint = msg, details, hint

    def as_json(self, cni_version: str) -> dict[str, Any]:
        """Return the spec's error object; the hint is appended to ``details`` because runtimes print nothing else."""
        details = ". ".join(part for part in (self.details, self.hint) if part)
        out: dict[str, Any] = {"cniVersion": cni_version, "code": self.code, "msg": self.msg}
        return out | ({"details": details} if details else {})

    def __str__(self) -> str:
        return ": ".join(part for part in (self.msg, self.details, self.hint) if part)


def reason_of(error: Exception) -> str:
    """Return the words of an error, of the system's without its number: "Is a directory", not "[Errno 21] Is a directory"."""
    return getattr(error, "strerror", None) or str(error)


class IncompatibleVersion(CniError):
    """Version of the CNI spec that the plugin does not have, or in which the result cannot be expressed.

    To do: use a `cniVersion` that VERSION lists, 0.1.0 to 1.1.0; `cniVersions` offers a runtime several.
    """

    code = 1


class UnsupportedField(CniError):
    """Field that is not supported; the message names its key and value.

    To do: remove the key, or choose another value: the configuration reference lists them.
    """

    code = 2


class InvalidEnvironment(CniError):
    """Variable of the environment that is missing or invalid; the message names it.

    To do: check what called the plugin. A runtime sets CNI_COMMAND, CNI_CONTAINERID and the others, by hand `cni-py add` does.
    """

    code = 4


class SystemFailure(CniError):
    """Failed system call; ``errno`` is its number."""

    def __init__(self, msg: str, details: str = "", hint: str = "", errno: int = 0) -> None:
        super().__init__(msg, details, hint)
        self.errno = errno


class IOFailure(SystemFailure):
    """Failure to read or write a file, or to run a program; the message names it.

    To do: check the file: is the file system full or read-only, or does another program hold the file?
    """

    code = 5


class CouldNotRun(IOFailure):
    """Failure to start a program: it has not run at all."""


class DecodingFailure(CniError):
    """Text that is not JSON, or not of the form that was expected: a configuration, a saved file, another plugin's reply.

    To do: run `cni-py config check FILE`, which names the line of a configuration.
    """

    code = 6


class InvalidConfig(CniError):
    """Configuration that is invalid; the message names the key and the value, details the rule.

    To do: run `cni-py config check FILE`, and correct the key; the configuration reference has its type and an example.
    """

    code = 7


class InvalidNetNS(CniError):
    """Network namespace that does not exist, that is the host's own, or file that is none.

    To do: check CNI_NETNS, in which the runtime names it: has the pod ended meanwhile? By hand: `ip netns add NAME`.
    """

    code = 8


class SandboxGone(InvalidNetNS):
    """Deleted network namespace: for DEL, success."""


class TryAgainLater(CniError):
    """Temporary state: another process is at work, or the agent ended in the middle of an ADD, which was undone.

    To do: nothing; a runtime retries. If it stays so, the message names what is waited for.
    """

    code = 11


class NotAvailable(CniError):
    """Plugin that cannot attach pods now (STATUS): subnet.env, a daemon, a kernel feature or free space is missing.

    To do: run the command in the hint; `cni-py status NETWORK` asks again. Is flanneld running?
    """

    code = 50


class InternalError(CniError):
    """Bug in our code: the traceback goes to standard error, never into the reply.

    To do: report it, with the traceback, the configuration and `cni-py version -v`.
    """

    code = 100


class KernelRefused(SystemFailure):
    """Change that the kernel rejected; ``details`` has its error text.

    To do: type the command in the message, which is the one that failed; `cni-py explain` has those before it.
    """

    code = 101


class AddressesExhausted(CniError):
    """Range without a free address.

    To do: run `cni-py sweep --dry-run`, which lists those of deleted pods; else delete pods, or configure a larger range.
    """

    code = 102


class CheckFailed(CniError):
    """Difference from the state that ADD created; details: expected and found. The hint is the command that repairs it.

    ``others`` are further differences that the same CHECK found.

    To do: run the command in the hint, or delete the pod; `cni-py check` names each difference.
    """

    code = 103
    others: tuple[CheckFailed, ...] = ()

    def as_json(self, cni_version: str) -> dict[str, Any]:
        """Return the error object; its ``details`` has all differences."""
        found = (self, *self.others)
        texts = [". ".join(filter(None, (one.details, one.hint))) for one in found]
        texts[1:] = [f"also: {one.msg}: {text}" for one, text in zip(found[1:], texts[1:], strict=True)]
        return super().as_json(cni_version) | {"details": "; ".join(texts)}

    def differences(self) -> list[dict[str, str]]:
        """Return the differences one by one, for ``cni-py check``: the spec's error object has no place for them."""
        return [{"msg": one.msg, "details": one.details, "hint": one.hint} for one in (self, *self.others)]


class DelegateFailed(CniError):
    """Failure of a plugin that was executed, with its own message and code, and of CHECK with what it found to differ."""

    differences: tuple[CheckFailed, ...] = ()

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg, details)
        self.code = code


class Incomplete(CniError):
    """Partial DEL or GC; the message names what is left."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg, details)
        self.code = code
