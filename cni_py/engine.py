"""Run one call and return its reply: the only module where an error becomes JSON.

One-shot calls and the agent use the same :func:`handle`. The caller holds the attachment's lock, and has swept
if this is the first call of a boot. Source: CNI spec sections 2 and 5.
"""

from __future__ import annotations

import sys

from cni_py import config, dispatch, journal
from cni_py.attachment import record
from cni_py.attachment.lock import NetworkLock
from cni_py.errors import CheckFailed, CniError, DecodingFailure, IncompatibleVersion, InternalError
from cni_py.jsontext import encode
from cni_py.plugin_table import PLUGINS
from cni_py.spec.call import check_network_name
from cni_py.spec.environment import DIFFERENCES
from cni_py.spec.result import Result
from cni_py.spec.versions import CURRENT, FIRST_VERSION_OF_VERB, SUPPORTED, at_least, supported_since
from cni_py.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cni_py.spec.call import Call


def handle(call: Call, stdin: bytes) -> tuple[int, bytes]:
    """Returns: exit status and standard output, which is empty if the verb has no result."""
    version = CURRENT
    try:
        conf = config.decode_for(PLUGINS[call.plugin].model, stdin)
        version = _version_of(conf)
        check_network_name(conf.get("name"))
        _check_version(conf, call)
        return 0, _run(call.replace(conf=conf, raw=stdin))
    except CheckFailed as error:
        differences = {"differences": error.differences()} if DIFFERENCES in call.environ else {}
        return 1, encode(error.as_json(version) | differences)
    except CniError as error:
        return 1, encode(error.as_json(version))
    except Exception as error:  # noqa: BLE001 — a bug: the reply names it, the traceback goes to standard error
        sys.excepthook(type(error), error, error.__traceback__)
        fault = InternalError(
            f"internal error in {call.plugin}: {type(error).__name__}: {error}",
            hint="please report it with the plugin's standard error",
        )
        return 1, encode(fault.as_json(version))


def _version_of(conf: Mapping[str, object]) -> str:
    """The version that the reply has: the configuration's, where it is one that we know; missing means 0.1.0."""
    version = conf.get("cniVersion") or "0.1.0"
    return version if isinstance(version, str) and version in SUPPORTED else CURRENT


def _check_version(conf: Mapping[str, object], call: Call) -> None:
    """Raises: DecodingFailure, IncompatibleVersion."""
    version = conf.get("cniVersion") or "0.1.0"
    if not isinstance(version, str):
        raise DecodingFailure(f"cniVersion is {version!r}, not a string")
    supported = supported_since(PLUGINS[call.plugin].since)
    if version not in supported:
        raise IncompatibleVersion("incompatible CNI versions", f'config is "{version}", plugin supports {", ".join(supported)}')
    first = FIRST_VERSION_OF_VERB.get(call.verb, version)
    if not at_least(version, first):
        raise IncompatibleVersion(
            f"config version does not allow {call.verb}", f'config is "{version}", {call.verb} needs {first}'
        )


def _run(call: Call) -> bytes:
    """Run the verb with a journal, and keep the attachment's record. Raises: CniError."""
    name = record.name_of(call.container_id, call.ifname, call.network) if call.container_id else f"gc:{call.network}"
    where = f"container {call.container_id or '-'}, {call.ifname or '-'} in {call.netns or '-'}"
    pod = record.pod_of(call)
    title = f"{call.verb} {call.plugin}, network {call.network}, {f'pod {pod}, ' if pod else ''}{where}"
    keeps_file = call.verb in ("ADD", "DEL", "GC")
    reply = b""
    explain_fd = call.stderr_fd if "CNI_PY_EXPLAIN" in call.environ else -1
    with journal.Journal(title, name if keeps_file else "", explain_fd, call.stderr_fd, lambda: _configuration(call)):
        if call.verb == "ADD":
            reply = _add(call)
        elif call.verb == "DEL":
            _delete(call)
        elif call.verb == "GC":
            _collect_garbage(call)
        else:
            dispatch.run(call)
    if call.verb == "DEL":
        journal.retire(name)
    return reply


def _configuration(call: Call) -> bytes:
    """Return the configuration for the journal: without the result before, and what the runtime says to GC."""
    if "prevResult" not in call.conf and call.verb != "GC" and b"\n" not in call.raw:
        return call.raw
    return encode({key: value for key, value in call.conf.items() if key != "prevResult" and not key.startswith("cni.dev/")})


def _add(call: Call) -> bytes:
    """Run ADD, all or nothing. Raises: CniError; InvalidConfig if this version of the spec cannot express the result."""
    with Undo() as undo:
        if PLUGINS[call.plugin].record == "shared":
            call = call.replace(is_return=record.is_return(call))
            undo.on_failure_if_clean("the record as before", record.restore, call, record.remember(call))
        result = dispatch.run(call)
        undo.on_failure("the attachment", _delete, call.replace(verb="DEL"))
        return encode(result.as_version(call.cni_version) if isinstance(result, Result) else result)


def _delete(call: Call) -> None:
    """Run DEL, then delete the record, which DEL may need. Raises: CniError."""
    dispatch.run(call)
    if PLUGINS[call.plugin].record:
        record.forget(call)


def _collect_garbage(call: Call) -> None:
    """Run GC, then delete the records of the attachments that are no longer valid. Raises: CniError."""
    with NetworkLock(call):  # else a repair restores what was deleted, from the record that is deleted last
        dispatch.run(call)
        if PLUGINS[call.plugin].record:
            record.forget_stale(call)
