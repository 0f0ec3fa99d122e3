"""A container of the manifest without a runtime: its arguments, environment, mounts and capabilities, in the namespaces of a test's host.

    argv, env = confined(container, FIELDS, "/run/config", command=flanneld_command(*container["args"]))

How it works. A shell in a mount namespace of its own mounts every hostPath volume over itself, and ConfigMaps from a directory; then it
makes all other file systems read-only, /proc/sys too, as a runtime does for a container that is not privileged. setpriv leaves the
capabilities that `securityContext` adds to none, and no new privileges. Files are the machine's: there is no image. seccomp is not
applied.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

CONFINE = """
mount --make-rprivate /
{mounts}
mount --bind /proc/sys /proc/sys
awk '{{ print $5 }}' /proc/self/mountinfo | while read -r point; do
    case $point in /proc|/dev|/dev/*{kept}) ;; *) mount -o remount,bind,ro "$point" 2>/dev/null || true ;; esac
done
if (touch /run/written || echo 1 >/proc/sys/net/ipv4/ip_forward) 2>/dev/null; then echo "not read-only" >&2; exit 9; fi
exec setpriv --bounding-set={capabilities} --inh-caps=-all --no-new-privs -- {command}
"""


def confined(
    container: Mapping[str, Any], fields: Mapping[str, str], config: str, command: list[str]
) -> tuple[list[str], dict[str, str]]:
    """Return what runs `command` as the container is run, and its environment.

    Args:
        fields: values of the downward API, by their paths.
        config: directory with what the ConfigMap has; its parent is writable.
    """
    context = container["securityContext"]
    assert context["capabilities"]["drop"] == ["ALL"]
    assert context["readOnlyRootFilesystem"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    lines = []
    for path, mount in mounts.items():
        source = config if mount["name"] == "config" else path
        lines.append(f"mkdir -p {shlex.quote(path)} && mount --bind {shlex.quote(source)} {shlex.quote(path)}")
    script = CONFINE.format(
        mounts="\n".join(lines),
        kept="".join(f"|{path}" for path, mount in mounts.items() if not mount.get("readOnly")),
        capabilities=",".join(["-all", *(f"+{name.lower()}" for name in context["capabilities"]["add"])]),
        command=shlex.join(command),
    )
    env = {one["name"]: fields[one["valueFrom"]["fieldRef"]["fieldPath"]] for one in container["env"]}
    return ["unshare", "--mount", "--propagation=private", "sh", "-ec", script], env
