"""The directory of network configurations, and the plugins that they name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cni_py.doctor.findings import ERROR, WARNING, Finding
from cni_py.plural import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_py.doctor.facts import Facts


def missing(facts: Facts) -> Iterator[Finding]:
    if not facts.is_flannel or any(file.network for file in facts.conf_files):
        return
    found = f"{counted(len(facts.conf_files), 'file')} cannot be used" if facts.conf_files else "it has no *.conflist or *.conf"
    yield Finding(
        f"no network configuration in {facts.conf_directory}",
        (found,),
        (f"put one there, as conf/10-flannel.conflist: install -m 644 10-flannel.conflist {facts.conf_directory}/",),
    )


def broken(facts: Facts) -> Iterator[Finding]:
    """Files that a runtime cannot use, and mistakes that the plugins would refuse."""
    first = next((at for at, file in enumerate(facts.conf_files) if file.network), len(facts.conf_files))
    for at, file in enumerate(facts.conf_files):
        checked = file.checked
        is_in_front = at <= first or file.is_flannel
        if checked.errors:
            see = f"correct it: cni-py config check {file.path}"
            is_flannels = file.is_flannel or "flannel" in os.path.basename(file.path)
            away = () if is_flannels else (f"mv {file.path} {file.path}.off",)  # a configuration of another network, or of none
            yield Finding(f"{file.path} is broken", checked.errors, (see, *away), severity=ERROR if is_in_front else WARNING)
        elif checked.warnings and file.is_flannel:
            yield Finding(
                f"{file.path} has keys without effect",
                checked.warnings,
                (f"correct it: cni-py config check --strict {file.path}",),
                severity=WARNING,
            )


def order(facts: Facts) -> Iterator[Finding]:
    """Another network's file in front: a runtime takes the first by name."""
    usable = [file for file in facts.conf_files if file.network is not None]
    flannel = facts.flannel_conf
    if flannel is None or not usable or usable[0] is flannel:
        return
    if usable[0].is_flannel:
        return
    front = usable[0]
    assert front.network is not None, "it is one of the usable ones"
    kinds = ", ".join(str(plugin.get("type")) for plugin in front.network.plugins)
    yield Finding(
        f"{os.path.basename(front.path)} comes before {os.path.basename(flannel.path)}",
        (f'its network is "{front.network.name}" ({kinds}): a runtime attaches new pods to that one',),
        (f"mv {front.path} {front.path}.off",),
    )


def program(facts: Facts) -> Iterator[Finding]:
    """A plugin that the runtime cannot execute."""
    for one in facts.programs:
        if not one.fault:
            continue
        is_mode = one.fault == "it is not executable"
        repair = f"chmod +x {one.path}" if is_mode else f"install it: make install; CNI_PATH is {':'.join(facts.cni_path)}"
        yield Finding(
            f'the plugin "{one.name}" cannot be executed',
            (f"{one.path}: {one.fault}" if one.path else one.fault,),
            (repair,),
            (("chmod", "+x", one.path),) if is_mode else (),
        )
