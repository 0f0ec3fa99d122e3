"""flannel: renders the delegate's configuration from subnet.env, and runs the delegate.

Owns: ``<dataDir>/<container id>``, the delegate's configuration as used for ADD, which
DEL uses, so that neither a changed configuration nor a missing subnet.env can prevent a DEL. A
second attachment of the same container gets ``<container id>:<ifname>``: Go uses only the container id
as key, so the first attachment keeps that name. Source: flannel-io/cni-plugin flannel.go, flannel_linux.go.
"""

from __future__ import annotations

from cni_py import files, subnet_env
from cni_py.attachment import delegate, record
from cni_py.config import decode, in_order
from cni_py.errors import (
    CheckFailed,
    CniError,
    DecodingFailure,
    DelegateFailed,
    IncompatibleVersion,
    InvalidConfig,
    IOFailure,
    NotAvailable,
)
from cni_py.journal import note
from cni_py.jsontext import encode
from cni_py.spec.result import from_json
from cni_py.undo import Attempts, Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cni_py.config.models import FlannelConfig
    from cni_py.spec.call import Call
    from cni_py.spec.result import Result
    from cni_py.subnet_env import SubnetEnv

CONFIG = "FlannelConfig"


def add(call: Call, config: FlannelConfig) -> Result:
    """Render the delegate's configuration, save it, run the delegate with it."""
    env = subnet_env.read(config.subnet_file)
    conf = delegate_conf(call, config, env)
    path = saved_path(call, config)
    before = _read_saved(path)
    with Undo() as undo:
        undo.on_failure_if_clean("the saved configuration as before", _restore, path, before)
        _save(path, encode(conf))
        is_second = before is not None and not call.is_return  # then the delegate's DEL would delete a live one
        return delegate.add(call, conf["type"], conf, config.delegate_mode, None if is_second else undo)


def delete(call: Call, config: FlannelConfig) -> None:
    """Run the delegate's DEL with the saved configuration; keep the file until the delegate has succeeded."""
    path = saved_path(call, config)
    saved = _read_saved(path)
    if saved is None and not record.is_remembered(call.container_id, call.ifname, call.network):
        return
    _delete(call, config, _decoded(saved, path))
    if saved is not None:
        files.remove(path)


def _delete(call: Call, config: FlannelConfig, conf: dict[str, Any]) -> None:
    """Run the delegate's DEL with the saved configuration; of a damaged one with what is left of it, then without.

    Raises: CniError.
    """
    if is_whole(conf):
        try:
            delegate.delete(call, conf["type"], conf | _previous(call), config.delegate_mode)
            return
        except (InvalidConfig, DecodingFailure) as error:  # a third-party delegate raises DelegateFailed
            note(f"the saved configuration cannot be used: {error}")
            conf = {}
    rebuilt = rebuilt_delegate_conf(call, config)
    left = {key: value for key, value in conf.items() if key not in ("name", "ipam")}
    if left and isinstance(left.get("type", ""), str):
        try:
            conf = rebuilt | left
            delegate.delete(call, conf["type"], conf | _previous(call), config.delegate_mode)
            return
        except CniError as error:
            note(f"what is left of the saved configuration cannot be used: {error}")
    for version in ({}, {"cniVersion": "1.0.0"}, {"cniVersion": "0.4.0"}):
        try:
            delegate.delete(call, rebuilt["type"], rebuilt | version | _previous(call), config.delegate_mode)
            return
        except DelegateFailed as error:  # GC has a version that the delegate need not know: the saved one was that of ADD
            if error.code != IncompatibleVersion.code or "0.4.0" in version.values():
                raise


def is_whole(conf: dict[str, Any]) -> bool:
    """Return whether a saved configuration has all that a delegate needs to find what it made."""
    ipam = conf.get("ipam")
    if not isinstance(ipam, dict) or not all(isinstance(text, str) for text in (conf.get("type"), conf.get("name"))):
        return False
    return isinstance(ipam.get("type"), str) and bool(ipam["type"] != "host-local" or ipam.get("ranges") or ipam.get("subnet"))


def check(call: Call, config: FlannelConfig) -> None:
    """Check that the saved configuration exists; the delegate checks the rest."""
    if config.prev_result is not None:
        from_json(config.prev_result)
    path = saved_path(call, config)
    conf = _decoded(_read_saved(path), path)
    if not is_whole(conf):
        raise CheckFailed(
            f'the delegate\'s configuration "{path}" is missing or damaged',
            "expected the configuration that ADD saved, found none that is valid",
            "the pod's network and DEL work without it; ADD of a new pod writes a new one",
        )
    if call.conf.get("cniVersion"):  # of the call: ADD may have been in an older one, which has no CHECK
        conf["cniVersion"] = call.cni_version
    delegate.check(call, conf["type"], conf | _previous(call), config.delegate_mode)


def status(call: Call, config: FlannelConfig) -> None:
    """Check subnet.env, the directory of saved configurations and the delegate, which needs a free address."""
    try:
        conf = delegate_conf(call, config, subnet_env.read(config.subnet_file))
        files.check_space(config.data_dir)
    except CniError as error:
        raise NotAvailable(error.msg, error.details, error.hint) from error
    delegate.status(call, conf["type"], conf, config.delegate_mode)


def gc(call: Call, config: FlannelConfig) -> None:
    """Run DEL for every saved configuration of a stale attachment, then GC of the delegate."""
    is_stale = record.stale_test(call)
    attempts = Attempts()
    for name, conf in _saved_of_network(call, config):
        container_id, _, ifname = name.partition(":")
        ifnames = [ifname] if ifname else _ifnames(call, container_id) or [""]
        if all(is_stale(container_id, ifname) for ifname in ifnames):
            with attempts.attempt(f"attachment {name}"):
                for ifname in ifnames:
                    this = call.replace(verb="DEL", container_id=container_id, ifname=ifname or "eth0")
                    _delete(this, config, conf)
                files.remove(f"{config.data_dir}/{name}")
    with attempts.attempt("GC of the delegate"):
        conf = rebuilt_delegate_conf(call, config)
        listed = {key: value for key, value in call.conf.items() if key.startswith("cni.dev/")}
        delegate.gc(call, conf["type"], conf | listed, config.delegate_mode)
    attempts.raise_if_failed("GC")


def delegate_conf(call: Call, config: FlannelConfig, env: SubnetEnv) -> dict[str, Any]:
    """The delegate's configuration: the user's ``delegate`` completed from subnet.env. Pure.

    Raises: InvalidConfig if ``delegate`` has keys that only flannel may set.
    """
    conf = dict(call.conf.get("delegate") or {})
    for key in ("name", "ipam"):
        if key in conf:
            raise InvalidConfig(
                f"'delegate' dictionary must not have '{key}' field, it'll be set by flannel", f'"delegate": {{"{key}": …}}'
            )
    if not isinstance(conf.get("type", ""), str):
        raise InvalidConfig("'delegate' dictionary, if present, must have (string) 'type' field", f"it is {conf['type']!r}")
    conf = _base_conf(call, config, conf)
    conf.setdefault("ipMasq", not env.ip_masq)
    conf.setdefault("mtu", env.mtu)
    if conf["type"] == "bridge":
        conf.setdefault("isGateway", True)
    if config.masquerade_beyond == "network":
        conf.setdefault("masqueradeExcept", [str(network) for network in env.networks])
    ipam = dict(call.conf.get("ipam") or {})
    routes = ipam.get("routes") or []
    if not isinstance(routes, list):
        raise InvalidConfig('"ipam.routes" must be a list', f"it is {routes!r:.80}")
    ipam["ranges"] = [[{"subnet": str(subnet)}] for subnet in env.subnets]
    ipam["routes"] = [*routes, *({"dst": str(network)} for network in env.networks)]
    return in_order(conf | {"ipam": {"type": "host-local"} | ipam})


def rebuilt_delegate_conf(call: Call, config: FlannelConfig) -> dict[str, Any]:
    """Return a configuration for DEL and GC without the saved one."""
    from cni_py.plugins.meta.flannel import rebuild

    conf = {key: value for key, value in config.delegate.items() if key not in ("name", "ipam")}
    if not isinstance(conf.get("type", ""), str):
        conf.pop("type")
    return rebuild.complete(call, config, _base_conf(call, config, conf) | {"ipam": {"type": "host-local"} | config.ipam})


def _base_conf(call: Call, config: FlannelConfig, conf: dict[str, Any]) -> dict[str, Any]:
    """Return type, network, version, and the runtime's and the user's settings for running it."""
    conf = {"type": "bridge"} | conf | {"name": call.network}
    if call.conf.get("cniVersion"):
        conf["cniVersion"] = call.cni_version
    if config.runtime_config is not None:
        conf["runtimeConfig"] = config.runtime_config
    if "delegateMode" in call.conf:
        conf.setdefault("delegateMode", config.delegate_mode)
    return conf


def saved_path(call: Call, config: FlannelConfig) -> str:
    """Return the path of this attachment's delegate configuration. Raises: InvalidConfig."""
    files.check_directory("dataDir", config.data_dir)
    first, own = f"{config.data_dir}/{call.container_id}", f"{config.data_dir}/{call.container_id}:{call.ifname}"
    if files.exists(own):
        return own
    saved = _read_saved(first)
    if saved is None:
        return first
    network = _decoded(saved, first).get("name", call.network)
    others = (ifname for ifname in _ifnames(call, call.container_id) if ifname != call.ifname)
    is_anothers = network != call.network or any(not files.exists(f"{first}:{ifname}") for ifname in others)
    return own if is_anothers else first


def _ifnames(call: Call, container_id: str) -> list[str]:
    """Return the interface names of a container on this network: as recorded, or if records are lost, from its host ends."""
    recorded = [ifname for _, ifname in record.remembered(call.network, container_id=container_id)]
    if recorded:
        return recorded
    from cni_py.attachment import veth

    return [ifname for other, ifname in veth.owners_on_host(call.network) if other == container_id]


def _saved_of_network(call: Call, config: FlannelConfig) -> list[tuple[str, dict[str, Any]]]:
    """Return file name and content of every saved configuration of this network; the records name a damaged one's owner."""
    files.check_directory("dataDir", config.data_dir)
    recorded = {container_id for container_id, _ in record.remembered(call.network)}
    found = []
    for name in files.list_directory(config.data_dir):
        conf = _decoded(_read_saved(f"{config.data_dir}/{name}"), f"{config.data_dir}/{name}")
        if conf.get("name") == call.network or ("name" not in conf and name.partition(":")[0] in recorded):
            found.append((name, conf))
    return found


def _previous(call: Call) -> dict[str, Any]:
    return {"prevResult": call.conf["prevResult"]} if call.conf.get("prevResult") else {}


def _read_saved(path: str) -> bytes | None:
    """Read a file; None if it does not exist; one that is too large is damaged, and read as empty. Raises: IOFailure."""
    try:
        return files.read(path)
    except FileNotFoundError:
        return None
    except IOFailure as error:
        note(f"{error}: not a saved configuration")
        return b""
    except OSError as error:
        raise IOFailure(f'could not read the saved configuration "{path}"', error.strerror or "") from error


def _decoded(saved: bytes | None, path: str) -> dict[str, Any]:
    """Decode the saved configuration; empty if it is missing or damaged, with a note in the journal."""
    if saved is None:
        return {}
    try:
        conf = decode(saved, path)
    except CniError as error:
        note(f'the saved configuration "{path}" is damaged and ignored: {error.msg}')
        return {}
    if not is_whole(conf):
        note(f'the saved configuration "{path}" is damaged: it is not complete')
    return conf


def _save(path: str, content: bytes) -> None:
    files.make_directory(path.rpartition("/")[0], 0o700)
    files.write(path, content, 0o600)


def _restore(path: str, before: bytes | None) -> None:
    if before is None:
        if files.exists(path):
            files.remove(path)
    else:
        files.write(path, before, 0o600)
