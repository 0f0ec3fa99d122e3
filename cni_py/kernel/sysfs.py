"""Names of network devices by their places in the machine: a bus address, a path below /sys/devices.

/sys/class/net and the ``net`` directories show the devices of the namespace that sysfs was mounted in, which is the host's.

Source: linux Documentation/ABI/testing/sysfs-class-net, sysfs-bus-pci.
"""

from __future__ import annotations

import posix

from cni_py.errors import InvalidConfig

PCI, AUXILIARY = "/sys/bus/pci/devices", "/sys/bus/auxiliary/devices"
USER_SPACE_DRIVERS = ("vfio-pci", "uio_pci_generic", "igb_uio")
"""Drivers by which a program has the device to itself: it has no link."""


def is_device(bus: str, device: str) -> bool:
    """Return whether the bus has a device of this id."""
    try:
        posix.stat(_path(bus, device))
    except (OSError, ValueError, InvalidConfig):
        return False
    return True


def has_user_space_driver(pci: str) -> bool:
    """Return whether a program has the PCI device to itself. Raises: InvalidConfig if it is absent, or has no driver."""
    path = f"{_path(PCI, pci)}/driver"
    try:
        driver = posix.readlink(path).rpartition("/")[2]
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"error with host device: {path}: {_words(error)}", '"pciBusID"', f"ls {PCI}") from error
    return driver in USER_SPACE_DRIVERS


def link_of_pci(pci: str) -> str:
    """Return the name of the PCI device's link, which of a virtio device is one level deeper. Raises: InvalidConfig."""
    path = _path(PCI, pci)
    names = _list(path)
    virtio = sorted(name for name in names if name.startswith("virtio"))
    for directory in (path, *(f"{path}/{name}" for name in virtio)):
        if "net" in _list(directory):
            return first_link(f"{directory}/net")
    raise InvalidConfig(f"failed to find host device: no net directory under pci device {pci}", '"pciBusID"', f"ls {path}")


def link_of_auxiliary(device: str) -> str:
    """Return the name of the link of a device of the auxiliary bus. Raises: InvalidConfig."""
    return first_link(f"{_path(AUXILIARY, device)}/net")


def link_of_path(path: str) -> str:
    """Return the name of the link of a device below /sys/devices. Raises: InvalidConfig."""
    if not path.startswith("/sys/devices/") or ".." in path.split("/"):
        raise InvalidConfig(
            f'failed to find host device: kernel device path "{path[:200]}" must be absolute and begin with /sys/devices/',
            '"kernelpath"',
        )
    return first_link(f"{path}/net")


def first_link(directory: str) -> str:
    """Return the first name in a ``net`` directory. Raises: InvalidConfig."""
    try:
        names = sorted(posix.listdir(directory))
    except (OSError, ValueError) as error:
        message = f"failed to find host device: failed to read directory {directory[:200]}: {_words(error)}"
        raise InvalidConfig(message, hint="is the device on this host, and in no other container?") from error
    if not names:
        raise InvalidConfig(f"failed to find host device: failed to find network device in path {directory[:200]}")
    return names[0]


def _path(bus: str, device: str) -> str:
    """Raises: InvalidConfig if this cannot be the name of a directory."""
    if not device or "/" in device or device in (".", ".."):
        raise InvalidConfig(f'"{device[:80]}" is not the id of a device', hint=f"ls {bus}")
    return f"{bus}/{device}"


def _list(directory: str) -> list[str]:
    try:
        return posix.listdir(directory)
    except (OSError, ValueError):
        return []


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
