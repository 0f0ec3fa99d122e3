"""tuning: sysctls, MAC address, MTU, queue length, promiscuous and all-multicast mode of an interface that another plugin made.

Owns: the values of before ADD, in ``<dataDir>/<container id>_<ifname>.json`` as the Go plugin writes them: either deletes what
the other made. DEL restores them, except sysctls, which are deleted with the sandbox. It keeps its own records, for GC.

Source: containernetworking/plugins plugins/meta/tuning.
"""

from __future__ import annotations

from cni_py import config as configs
from cni_py import files
from cni_py.attachment import check as checks
from cni_py.attachment import record
from cni_py.attachment.chained import prev_result
from cni_py.errors import CheckFailed, CniError, SandboxGone
from cni_py.journal import note, quote
from cni_py.kernel import sysctl
from cni_py.kernel.link import find_link, get_link, set_allmulticast, set_mac, set_mtu, set_promiscuous, set_txqueuelen
from cni_py.kernel.netns import open_in, open_sandbox
from cni_py.netlink.socket import question
from cni_py.plugins.meta.tuning.plan import Plan, wanted
from cni_py.undo import Attempts, Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cni_py.config.models import TuningConfig
    from cni_py.kernel.link import Link
    from cni_py.kernel.netns import NetNS
    from cni_py.netlink.socket import Rtnl
    from cni_py.spec.call import Call
    from cni_py.spec.result import Result

CONFIG = "TuningConfig"
NO_PREV = "Required prevResult missing"
SETTINGS: dict[str, tuple[type, Callable[[Link], Any], Callable[[Rtnl, Link, Any], None]]] = {
    "mac": (str, lambda link: link.mac, set_mac),
    "promisc": (bool, lambda link: link.is_promiscuous, set_promiscuous),
    "mtu": (int, lambda link: link.mtu, set_mtu),
    "allmulti": (bool, lambda link: link.is_allmulticast, set_allmulticast),
    "txQLen": (int, lambda link: link.txqueuelen, set_txqueuelen),
}
"""Key in the file: its type, how a link shows it, how it is set. In the order of ADD."""
WORDS = {"mac": "address", "allmulti": "allmulticast", "txQLen": "txqueuelen"}
"""Words of ``ip link set`` that differ from the key."""


def add(call: Call, config: TuningConfig) -> Result:
    """Change what is asked for; return the previous result with the new MAC address and MTU. Spec section 2, ADD."""
    plan = wanted(call, config)
    prev = prev_result(config.prev_result, call, NO_PREV)
    path = saved_path(call, config)
    with open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns, open_in(netns) as sandbox, Undo() as undo:
        undo.on_failure_if_clean("the record as before", record.restore, call, record.remember(call))
        if plan.sysctls:
            with question(*netns.enter, "sysctl", "net"):
                netns.run(lambda: set_sysctls(undo, netns, plan))
        settings = settings_of(plan)
        if settings:
            link = get_link(sandbox, call.ifname)
            save(undo, path, {key: SETTINGS[key][1](link) for key in settings})
            for key, value in settings.items():
                undo.on_failure(key, set_back, sandbox, call.ifname, key, SETTINGS[key][1](link))
                SETTINGS[key][2](sandbox, link, value)
    return prev.replace(
        interfaces=tuple(
            of.replace(mac=plan.mac or of.mac, mtu=(plan.mtu or of.mtu) if of.mtu else 0)
            if of.sandbox and of.name == call.ifname
            else of
            for of in prev.interfaces
        )
    )


def delete(call: Call, config: TuningConfig) -> None:
    """Restore what ADD saved, and delete the file; success if namespace or interface no longer exist."""
    path = saved_path(call, config)
    saved = read_saved(path)
    attempts = Attempts()
    if saved and call.netns:
        with attempts.attempt(f'settings of "{call.ifname}"'):
            restore(call, saved)
    if not attempts.failed and files.exists(path):
        with attempts.attempt(path):
            files.remove(path)
    attempts.raise_if_failed("DEL")


def check(call: Call, config: TuningConfig) -> None:
    """Compare sysctls and settings with the configuration."""
    prev_result(config.prev_result, call, NO_PREV)
    plan = wanted(call, config)
    with open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns, open_in(netns) as sandbox:
        link = find_link(sandbox, call.ifname)
        if link is None:
            raise CheckFailed(f'the interface "{call.ifname}" is missing', "expected a link, found none", checks.RECREATE)
        found = checks.Differences()
        with question(*netns.enter, "sysctl", "net"):
            netns.run(lambda: check_sysctls(found, sandbox, plan))
        for key, expected in settings_of(plan).items():
            actual = SETTINGS[key][1](link)
            if actual != expected:
                value = ("off", "on")[expected] if isinstance(expected, bool) else expected
                found.report(
                    f"Error: Tuning link {link.name} configured {key} is {expected}, current value is {actual}",
                    f"expected {expected}, found {actual}",
                    checks.command(sandbox, f"ip link set {link.name} {WORDS.get(key, key)} {value}"),
                )
    found.raise_if_any()


def status(call: Call, config: TuningConfig) -> None:
    """Check that the configuration can work: keys of sysctls, the node's allow-list, the MAC address."""
    wanted(call, config)
    files.check_directory("dataDir", config.data_dir)


def gc(call: Call, config: TuningConfig) -> None:
    """Delete the saved values of this network's attachments that no longer exist."""
    is_stale = record.stale_test(call)
    attempts = Attempts()
    for container_id, ifname in record.remembered_by(call):
        path = saved_path(call.replace(container_id=container_id, ifname=ifname), config)
        if is_stale(container_id, ifname) and files.exists(path):
            with attempts.attempt(path):
                files.remove(path)
    attempts.raise_if_failed("GC")


# ---- sysctls: called by a thread in the sandbox ------------------------------------------------


def set_sysctls(undo: Undo, netns: NetNS, plan: Plan) -> None:
    """Raises: KernelRefused."""
    for name, value in plan.sysctls:
        before = sysctl.read(name)
        undo.on_failure(name, netns.run, lambda name=name, before=before: sysctl.ensure(name, before, netns.enter))
        sysctl.ensure(name, value, netns.enter)


def check_sysctls(found: checks.Differences, sandbox: Rtnl, plan: Plan) -> None:
    """Compare every sysctl. Raises: KernelRefused."""
    for name, value in plan.sysctls:
        actual = sysctl.read(name)
        if actual.split() != value.split():  # the kernel separates numbers by tabs
            found.report(
                f"Error: Tuning configured value of /proc/sys/{name} is {value}, current value is {actual}",
                f"expected {value}, found {actual}",
                checks.command(sandbox, f"sysctl -w {quote(f'{name}={value}')}"),
            )


# ---- settings of the link ---------------------------------------------------------------------


def settings_of(plan: Plan) -> dict[str, Any]:
    """The settings that are not left as they are, by their keys in the file, in the order of ADD. Pure."""
    values = (plan.mac, plan.promisc, plan.mtu, plan.allmulti, plan.txqueuelen)
    return {key: value for key, value in zip(SETTINGS, values, strict=True) if value is not None}


def restore(call: Call, saved: dict[str, Any]) -> None:
    """Restore saved values; absence of sandbox or interface is success. Raises: Incomplete, InvalidNetNS, KernelRefused."""
    attempts = Attempts()
    try:
        with open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns, open_in(netns) as sandbox:
            link = find_link(sandbox, call.ifname)
            for key, value in saved.items() if link else ():
                with attempts.attempt(key):
                    set_back(sandbox, call.ifname, key, value)
    except SandboxGone:
        return
    attempts.raise_if_failed("restoring")


def set_back(sandbox: Rtnl, ifname: str, key: str, value: Any) -> None:
    """Set one setting unless the link has it, or no longer exists. Raises: KernelRefused."""
    link = find_link(sandbox, ifname)
    if link is not None and SETTINGS[key][1](link) != value:
        SETTINGS[key][2](sandbox, link, value)


# ---- the file ---------------------------------------------------------------------------------


def saved_path(call: Call, config: TuningConfig) -> str:
    """The file with the values of before ADD. Go-compatible: plugins/meta/tuning/tuning.go. Raises: InvalidConfig."""
    files.check_directory("dataDir", config.data_dir)
    return f"{config.data_dir}/{call.container_id}_{call.ifname}.json"


def save(undo: Undo, path: str, before: dict[str, Any]) -> None:
    """Write the values; those that an earlier tuning of this chain saved stay: they are the first ones. Raises: IOFailure."""
    saved = read_saved(path)
    files.make_directory(path.rpartition("/")[0], 0o700)
    if saved:
        undo.on_failure("the saved values as before", files.write, path, encode(saved))
    else:
        undo.on_failure("the saved values", files.remove, path)
    files.write(path, encode(before | saved))


def encode(values: dict[str, Any]) -> bytes:
    """Render as the Go plugin: indented by one space, in its order. Pure."""
    from cni_py.jsontext import encode as compact

    lines = [f' "{key}": {compact(values[key]).decode()}' for key in SETTINGS if key in values]
    return ("{\n" + ",\n".join(lines) + "\n}").encode()


def read_saved(path: str) -> dict[str, Any]:
    """The saved values, without those of a wrong type; empty if there is no file or it is damaged."""
    try:
        decoded = configs.decode(files.read(path), path)
    except FileNotFoundError:
        return {}
    except (CniError, OSError) as error:
        note(f"ignored damaged saved values: {error}")
        return {}
    return {key: decoded[key] for key, (kind, _, _) in SETTINGS.items() if type(decoded.get(key)) is kind}
