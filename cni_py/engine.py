"""One call in, one reply out: :func:`handle` is the only place where an error becomes JSON.

The same function answers in one shot and in the agent. Source: CNI spec sections 2 and 5.
"""

from __future__ import annotations

import sys

from cni_py import config, dispatch, files, journal
from cni_py.attachment import record
from cni_py.errors import CniError, DecodingFailure, IncompatibleVersion, InternalError, IOFailure
from cni_py.jsontext import encode
from cni_py.plugin_table import PLUGINS
from cni_py.spec.call import check_network_name
from cni_py.spec.result import Result
from cni_py.spec.versions import CURRENT, FIRST_VERSION_OF_VERB, SUPPORTED, at_least
from cni_py.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cni_py.spec.call import Call

_is_swept = False
"""Whether the sweep of this boot is known to have been: no process lives in two."""


def handle(call: Call, stdin: bytes) -> tuple[int, bytes]:
    """Answer a call: its exit status and what goes to standard output, empty where the verb has no result."""
    version = CURRENT
    try:
        conf = config.decode(stdin)
        check_network_name(conf.get("name"))
        version = _checked_version(conf, call.verb)
        return 0, _run(call.replace(conf=conf))
    except CniError as error:
        return 1, encode(error.as_json(version))
    except Exception as error:  # noqa: BLE001 — a bug: the reply names it, the traceback goes to standard error
        sys.excepthook(type(error), error, error.__traceback__)
        fault = InternalError(
            f"internal error of {call.plugin}: {type(error).__name__}: {error}",
            hint="please report it with the plugin's standard error",
        )
        return 1, encode(fault.as_json(version))


def handle_in_turn(call: Call, stdin: bytes) -> tuple[int, bytes]:
    """:func:`handle`, not before another process has ended what it does for this attachment."""
    with record.Turn(call):
        return handle(call, stdin)


def _run(call: Call) -> bytes:
    if call.verb in ("ADD", "GC") and PLUGINS[call.plugin].record == "shared":
        _sweep_once_a_boot(call)
    name = record.name_of(call.container_id, call.ifname, call.network) if call.container_id else f"gc:{call.network}"
    where = f"container {call.container_id or '-'}, {call.ifname or '-'} in {call.netns or '-'}"
    title = f"{call.verb} {call.plugin}, network {call.network}, {where}"
    keeps_file = call.verb in ("ADD", "DEL", "GC")
    with journal.Journal(title, name if keeps_file else "", call.stderr_fd if "CNI_PY_EXPLAIN" in call.environ else -1):
        with Undo() as undo:
            if call.verb == "ADD" and PLUGINS[call.plugin].record == "shared":
                undo.once_clean("the record as before", record.restore, call, record.remember(call))
            answer = dispatch.run(call)
            if call.verb == "ADD":
                undo.on_failure("the attachment", dispatch.run, call.replace(verb="DEL"))
            reply = _as_json(answer, call.cni_version)
        if PLUGINS[call.plugin].record:
            if call.verb == "DEL":
                record.forget(call)
            if call.verb == "GC":
                record.forget_stale(call)
    if call.verb == "DEL":
        journal.retire(name)
    return reply


def _as_json(answer: Result | Mapping[str, object] | None, version: str) -> bytes:
    """What goes to standard output. Raises: InvalidConfig, where a result cannot be said in this version."""
    if answer is None:
        return b""
    return encode(answer.as_version(version) if isinstance(answer, Result) else answer)


def _sweep_once_a_boot(call: Call) -> None:
    """Before the first call of a boot, whose id is not in our file yet: see sweep.py, which is loaded then alone."""
    global _is_swept
    if _is_swept:
        return
    try:
        if files.read(f"{journal.RUN_DIR}/boot-id") == files.read("/proc/sys/kernel/random/boot_id"):
            _is_swept = True
            return
    except (OSError, IOFailure):
        pass
    from cni_py.sweep import sweep

    sweep.at_first_call(call)


def _checked_version(conf: dict[str, object], verb: str) -> str:
    """The configuration's cniVersion; missing means 0.1.0. Raises: DecodingFailure, IncompatibleVersion."""
    version = conf.get("cniVersion") or "0.1.0"
    if not isinstance(version, str):
        raise DecodingFailure(f"cniVersion is {version!r}, not a string")
    if version not in SUPPORTED:
        raise IncompatibleVersion("incompatible CNI versions", f'config is "{version}", plugin supports {", ".join(SUPPORTED)}')
    if not at_least(version, FIRST_VERSION_OF_VERB.get(verb, version)):
        raise IncompatibleVersion(
            f"config version does not allow {verb}", f'config is "{version}", {verb} needs {FIRST_VERSION_OF_VERB[verb]}'
        )
    return version
