"""host-device: a device of the host, moved into the sandbox, and back again by DEL.

Owns: the device while it is in the sandbox, the leased addresses. Its name on the host is its alias then, as with Go, and
the attachment's record has it, too.

How it works. One request moves, renames and marks the device, and one brings it back: at any moment it is on the host under
its own name, or in the sandbox with its alias. A sandbox that is deleted gives a physical device back to the host under the
wrong name: DEL and GC find it by alias and rename it.

Source: containernetworking/plugins plugins/main/host-device/host-device.go.
"""

from __future__ import annotations

from errno import EEXIST

from cni_py.attachment import delegate, interface, record, sandbox_link
from cni_py.errors import CniError, InvalidConfig, KernelRefused, NotAvailable, SandboxGone
from cni_py.journal import note
from cni_py.kernel import sysfs
from cni_py.kernel.address import add_address, list_addresses
from cni_py.kernel.link import find_link, list_links, move, restore_name, set_alias, set_up
from cni_py.kernel.netns import open_in, open_own, open_sandbox
from cni_py.kernel.route import add_route, list_routes_over
from cni_py.netlink.constants import RT_TABLE_MAIN, RTPROT_KERNEL
from cni_py.netlink.socket import open_host
from cni_py.spec.environment import link_name_fault
from cni_py.spec.result import Interface, Result, dns_from_config
from cni_py.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cni_py.config.models import HostDeviceConfig
    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl
    from cni_py.spec.call import Call

CONFIG = "HostDeviceConfig"


def add(call: Call, config: HostDeviceConfig) -> Result:
    """Move the device into the sandbox. Spec section 2, ADD; order as in the Go plugin."""
    check_config(config)
    with (
        open_host() as host,
        open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns,
        open_in(netns) as sandbox,
        Undo() as undo,
    ):
        if has_no_link(config):
            return without_link(undo, call, config)
        restore_lost(host, config.device, config)  # no DEL was called for the pod before
        device = find_device(host, config)
        if find_link(sandbox, call.ifname) is not None:
            raise KernelRefused(
                f'"{call.ifname}" already exists in "{call.netns}"', "the device keeps its place on the host", errno=EEXIST
            )
        record.remember(call, device=device.name)
        undo.on_failure("the device", put_back(call, host, device))
        move(host, device, netns, call.ifname, device.name)
        return sandbox_link.finish(undo, call, config, netns, sandbox)


def delete(call: Call, config: HostDeviceConfig) -> None:
    """Bring the device back, from the sandbox or from wherever the kernel put it, and release the addresses."""
    sandbox_link.delete_by(call, config, lambda of: bring_back(of, config))


def check(call: Call, config: HostDeviceConfig) -> None:
    """Compare everything that ADD set with the actual state."""
    from cni_py.attachment import check as attached

    check_config(config)
    with attached.Opened(call, config) as opened:
        if has_no_link(config):
            return
        end = opened.check_end("")
        if config.device:
            opened.found.expect(f'alias of "{end.name}", its name on the host', config.device, end.alias)
        if config.ipam.type:
            opened.check_configured(end)


def status(call: Call, config: HostDeviceConfig) -> None:
    """Check that the device is on the host, or in use, and that the IPAM plugin is ready."""
    try:
        with open_host() as host:
            if is_named(config):
                check_config(config)
                if not has_no_link(config) and not is_in_use(call):
                    find_device(host, config)
    except InvalidConfig as error:
        raise NotAvailable(error.msg, error.details, error.hint) from error
    delegate.check_ready(call, config)


def gc(call: Call, config: HostDeviceConfig) -> None:
    """Bring back the devices of attachments of this network that no longer exist."""
    sandbox_link.delete_stale_by(call, config, lambda of: bring_back(of, config))


# ---- which device -----------------------------------------------------------------------------


def is_named(config: HostDeviceConfig) -> bool:
    """Return whether the configuration names a device; for STATUS the runtime does not say which one it will be. Pure."""
    return bool(config.device or config.hwaddr or config.kernelpath or config.pci_bus_id or config.runtime_config.device_id)


def check_config(config: HostDeviceConfig) -> None:
    """Raises: InvalidConfig."""
    device_id = config.runtime_config.device_id
    if device_id and not any(sysfs.is_device(bus, device_id) for bus in (sysfs.PCI, sysfs.AUXILIARY)):
        raise InvalidConfig(
            f"runtime config DeviceID {device_id[:80]} not found or unsupported",
            '"runtimeConfig.deviceID"',
            f"ls {sysfs.PCI} {sysfs.AUXILIARY}",
        )
    if not is_named(config):
        raise InvalidConfig('specify either "device", "hwaddr", "kernelpath" or "pciBusID"', "none of them is set")


def pci_of(config: HostDeviceConfig) -> str:
    """The PCI address: the capability's, or the configuration's; "" for a device of the auxiliary bus."""
    device_id = config.runtime_config.device_id
    if not device_id:
        return config.pci_bus_id
    return device_id if sysfs.is_device(sysfs.PCI, device_id) else ""


def has_no_link(config: HostDeviceConfig) -> bool:
    """Return whether a program has the PCI device to itself (DPDK). Raises: InvalidConfig."""
    pci = pci_of(config)
    return bool(pci) and sysfs.has_user_space_driver(pci)


def find_device(host: Rtnl, config: HostDeviceConfig) -> Link:
    """Return the device on the host: by the first key that is not empty. Raises: InvalidConfig."""
    if not config.device and config.hwaddr:
        return find_by_mac(host, config.hwaddr)
    name = config.device or name_in_machine(config)
    link = find_link(host, name)
    if link is None:
        raise InvalidConfig(f"failed to find host device: Link not found: {name}", "", "ip -br link")
    return link


def name_in_machine(config: HostDeviceConfig) -> str:
    """Raises: InvalidConfig."""
    if config.kernelpath:
        return sysfs.link_of_path(config.kernelpath)
    pci = pci_of(config)
    return sysfs.link_of_pci(pci) if pci else sysfs.link_of_auxiliary(config.runtime_config.device_id)


def find_by_mac(host: Rtnl, text: str) -> Link:
    """Raises: InvalidConfig."""
    try:
        mac = interface.parse_mac(text)
    except InvalidConfig as error:
        message = f'failed to find host device: failed to parse MAC address "{text[:40]}"'
        raise InvalidConfig(message, error.msg, error.hint) from error
    for link in list_links(host):
        if link.mac == mac:
            return link
    raise InvalidConfig("failed to find host device: failed to find physical interface", f'"hwaddr": {mac}', "ip -br link")


def is_in_use(call: Call) -> bool:
    """Return whether an attachment of this network has a device, by the records."""
    return any(record.is_remembered(*owner, call.network) for owner in record.remembered(call.network))


# ---- ADD --------------------------------------------------------------------------------------


def without_link(undo: Undo, call: Call, config: HostDeviceConfig) -> Result:
    """Return the result for a device that a program has to itself: its addresses are set by that program. Raises: CniError."""
    result = delegate.lease(undo, call, config) if config.ipam.type else Result()
    return result.replace(interfaces=(Interface(call.ifname, sandbox=call.netns),), dns=dns_from_config(config.dns))


def put_back(call: Call, host: Rtnl, device: Link) -> Callable[[], None]:
    """Return the undo of a move: the device with its name, alias, state, addresses and routes. Raises: KernelRefused."""
    addresses = list_addresses(host, device)
    routes = [r for r in list_routes_over(host, device) if r.protocol != RTPROT_KERNEL and r.table == RT_TABLE_MAIN]

    def restore() -> None:
        move_out(call, host, device.name)
        link = find_link(host, device.name)
        if link is None or link == device:
            return
        if link.alias != device.alias:
            set_alias(host, link, device.alias)
        if device.is_up:
            set_up(host, link)
        for address in addresses:
            attempt(add_address, host, link, address)
        for route in routes:
            attempt(add_route, host, link, route)

    return restore


def attempt(function: Callable[..., None], *args: Any) -> None:
    try:
        function(*args)
    except CniError as error:
        note(f"not restored: {error}")


# ---- DEL and GC -------------------------------------------------------------------------------


def bring_back(call: Call, config: HostDeviceConfig) -> None:
    """Move the device out of the sandbox, or give it its name if the kernel put it on the host. Absence is success.

    Raises: KernelRefused.
    """
    call = record.with_sandbox(call)
    name = str(record.read(call).get("device") or config.device)
    with open_host() as host:
        if move_out(call, host, name):
            return
        restore_lost(host, name, config)


def restore_lost(host: Rtnl, name: str, config: HostDeviceConfig) -> None:
    """Give the device its name if a deleted sandbox gave it back under another one. Raises: KernelRefused."""
    lost = find_lost(host, name, config)
    if lost is not None:
        note(f'"{lost.name}" came back to the host from a deleted sandbox')
        restore_name(host, lost)


def find_lost(host: Rtnl, name: str, config: HostDeviceConfig) -> Link | None:
    """Return the device if it is on the host under another name than its own, which is its alias. Raises: KernelRefused."""
    if name:  # the device is usually there: then a node's links, which may be many, are not listed
        links = list_links(host) if find_link(host, name) is None else []
    else:
        try:
            links = [find_device(host, config)] if is_named(config) else []
        except InvalidConfig:  # it is elsewhere, or no longer in the machine
            links = []
    for link in links:
        is_lost = link.alias != link.name and name in ("", link.alias) and not link_name_fault(link.alias)
        if is_lost and find_link(host, link.alias) is None:
            return link
    return None


def move_out(call: Call, host: Rtnl, name: str) -> bool:
    """Move the device out of the sandbox. Returns: whether the sandbox had it. Raises: KernelRefused.

    Args:
        name: of the device on the host; "" if that is not known: its alias is then.
    """
    if not call.netns:
        return False
    try:
        with (
            open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns,
            open_in(netns) as sandbox,
            open_own() as own,
        ):
            device = find_in_sandbox(call, sandbox, name)
            if device is not None:
                move(sandbox, device, own, device.alias or name, "")
            return device is not None
    except SandboxGone:
        return False


def find_in_sandbox(call: Call, sandbox: Rtnl, name: str) -> Link | None:
    """Return the device: CNI_IFNAME with its name on the host as alias; others are left there. Raises: KernelRefused."""
    link = find_link(sandbox, call.ifname)
    if link is not None and link.alias and not record.is_anothers_interface(call):
        if name in ("", link.alias) and not link_name_fault(link.alias):
            return link
        note(f'"{link.name}" is left in the sandbox: its alias is "{link.alias}", not "{name}"')
    # a move that failed half-way: it is in the sandbox under its own name
    return find_link(sandbox, name) if name and record.read(call).get("device") == name else None
