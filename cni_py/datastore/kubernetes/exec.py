"""Credentials of a program that a kubeconfig names: ``exec`` of a user, as kubectl runs it for managed clusters.

The program gets the ExecCredential that it shall fill in KUBERNETES_EXEC_INFO, and prints it filled, with a token or
a client certificate and perhaps its end. It gets no terminal: a daemon has none.

Source: kubernetes/client-go plugin/pkg/client/auth/exec, pkg/apis/clientauthentication (v1, v1beta1).
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from cni_py.errors import InvalidConfig

SECONDS = 30.0
OUTPUT_BYTES = 1 << 20
SHOWN_BYTES = 1000
"""Limit of what an error quotes of a program's standard error."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, hide_input_in_errors=True)


class Variable(_Part):
    name: str
    value: str


class Program(_Part):
    """``exec`` of a kubeconfig's user."""

    version: Literal["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"] = Field(alias="apiVersion")
    command: str = Field(min_length=1)
    arguments: list[str] | None = Field(None, alias="args")
    env: list[Variable] | None = None
    hint: str = Field("", alias="installHint")
    wants_cluster: bool = Field(False, alias="provideClusterInfo")
    interactive: Literal["Never", "IfAvailable"] = Field("IfAvailable", alias="interactiveMode")


class Credential(_Part):
    """``status`` of an ExecCredential. Nothing of it is ever shown."""

    token: str = Field("", repr=False)
    certificate: str = Field("", alias="clientCertificateData", repr=False)
    key: str = Field("", alias="clientKeyData", repr=False)
    expires: AwareDatetime | None = Field(None, alias="expirationTimestamp")

    @property
    def has_expired(self) -> bool:
        return self.expires is not None and datetime.now(UTC) >= self.expires


class _Answer(_Part):
    version: str = Field(alias="apiVersion")
    kind: Literal["ExecCredential"]
    status: Credential


def parse(content: Mapping[str, Any]) -> Program:
    """Raises: InvalidConfig."""
    try:
        return Program.model_validate(content)
    except ValidationError as error:
        raise InvalidConfig('"exec" of the kubeconfig cannot be used', faults(error)) from error


def run(program: Program, directory: str, cluster: Mapping[str, Any]) -> Credential:
    """``directory``: the kubeconfig's, where a relative path begins; a bare name is searched in PATH. Raises: InvalidConfig."""
    command = os.path.join(directory, program.command) if "/" in program.command else program.command
    variables = {variable.name: variable.value for variable in program.env or ()}
    spec = {"interactive": False} | ({"cluster": cluster} if program.wants_cluster else {})
    info = {"kind": "ExecCredential", "apiVersion": program.version, "spec": spec}
    try:
        output = _output([command, *(program.arguments or ())], variables | {"KUBERNETES_EXEC_INFO": json.dumps(info)})
    except OSError as error:
        raise _failed(program, f"{command}: {error.strerror}", program.hint) from error
    except _NotDone as error:
        raise _failed(program, str(error)) from error
    return _credential(program, output)


def _credential(program: Program, output: bytes) -> Credential:
    """Raises: InvalidConfig. The output is not shown, for it is a secret."""
    try:
        answer = _Answer.model_validate_json(output)
    except ValidationError as error:
        raise _failed(program, f"its output is no ExecCredential: {faults(error)}") from error
    if answer.version != program.version:
        raise _failed(program, f'it replies in apiVersion "{answer.version}", the kubeconfig says "{program.version}"')
    found = answer.status
    if bool(found.certificate) != bool(found.key) or not (found.token or found.key):
        raise _failed(program, "it gave neither a token nor a certificate with its key")
    return found


def faults(error: ValidationError) -> str:
    """Return what is wrong by its key, a line each; the value is not shown."""
    return "\n".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".removeprefix(": ") for fault in error.errors())


def _failed(program: Program, words: str, hint: str = "") -> InvalidConfig:
    return InvalidConfig(f'the program "{program.command}" of the kubeconfig gave no credentials', words, hint)


class _NotDone(Exception):
    """The program failed, or was killed by us."""


def _output(argv: list[str], variables: Mapping[str, str]) -> bytes:
    """Its standard output. Raises: OSError where it cannot be run; _NotDone."""
    with subprocess.Popen(
        argv,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            out, err = _read_to_the_end(process)
        except _NotDone:
            os.killpg(process.pid, signal.SIGKILL)  # its session: what it started, too
            raise
    if process.returncode:
        status = process.returncode
        how = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
        words = err[-SHOWN_BYTES:].decode(errors="replace").strip()
        raise _NotDone(f"{how}: {words}" if words else how)
    return out


def _read_to_the_end(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Standard output and standard error, until both are closed and it has ended. Raises: _NotDone."""
    ends = monotonic() + SECONDS
    contents = {process.stdout: b"", process.stderr: b""}
    with selectors.DefaultSelector() as selector:
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(ends - monotonic())
            if monotonic() >= ends:
                raise _NotDone(f"not done after {SECONDS:g} s, killed")
            for key, _ in ready:
                block = os.read(key.fd, 65536)
                contents[key.fileobj] += block  # type: ignore[index]
                if not block:
                    selector.unregister(key.fileobj)
            if max(map(len, contents.values())) > OUTPUT_BYTES:
                raise _NotDone(f"it wrote more than {OUTPUT_BYTES} bytes, killed")
    try:
        process.wait(max(ends - monotonic(), 0))
    except subprocess.TimeoutExpired as error:
        raise _NotDone(f"not done after {SECONDS:g} s, killed") from error
    return contents[process.stdout], contents[process.stderr]
