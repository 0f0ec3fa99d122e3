"""Access to the Kubernetes API: a kubeconfig, or what a pod is given. Reads files, runs programs; opens no connection.

In the order of Go's client: ``-kube-api-url`` and ``-kubeconfig-file``, of which the URL overrides that in
the file; with neither, the service account of the pod. ``~/.kube/config`` and ``KUBECONFIG`` are not read.
A program that makes credentials (``exec``) is run when they are needed. What we cannot do (``auth-provider``,
``proxy-url``) is refused by name.

Source: kubernetes/client-go tools/clientcmd (BuildConfigFromFlags), rest/config.go (InClusterConfig).
"""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from cni_py import files
from cni_py.datastore import tls as certificates
from cni_py.datastore.kubernetes import exec as kube_exec
from cni_py.datastore.kubernetes.exec import Credential
from cni_py.errors import CniError, InvalidConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

EXEC_EXTENSION = "client.authentication.k8s.io/exec"
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


def _decoded(value: object) -> bytes:
    if isinstance(value, str):
        return base64.b64decode(value, validate=True)
    raise ValueError("it is base64")


Data = Annotated[bytes, BeforeValidator(_decoded)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, hide_input_in_errors=True)


class _Extension(_Part):
    name: str = ""
    content: Any = Field(None, alias="extension")


class Cluster(_Part):
    """The API server, and which certificates are trusted."""

    server: str = ""
    ca_file: str = Field("", alias="certificate-authority")
    ca_data: Data = Field(b"", alias="certificate-authority-data")
    server_name: str = Field("", alias="tls-server-name")
    insecure: bool = Field(False, alias="insecure-skip-tls-verify")
    proxy: str = Field("", alias="proxy-url")
    extensions: list[_Extension] = []


class User(_Part):
    """Our credentials. Nothing of them is ever shown."""

    token: str = Field("", repr=False)
    token_file: str = Field("", alias="tokenFile")
    certificate_file: str = Field("", alias="client-certificate")
    certificate_data: Data = Field(b"", alias="client-certificate-data", repr=False)
    key_file: str = Field("", alias="client-key")
    key_data: Data = Field(b"", alias="client-key-data", repr=False)
    username: str = ""
    password: str = Field("", repr=False)
    program: dict[str, Any] | None = Field(None, alias="exec", repr=False)
    provider: dict[str, Any] | None = Field(None, alias="auth-provider", repr=False)


class _Context(_Part):
    cluster: str
    user: str = ""


class _NamedCluster(_Part):
    name: str
    cluster: Cluster


class _NamedUser(_Part):
    name: str
    user: User


class _NamedContext(_Part):
    name: str
    context: _Context


class _Kubeconfig(_Part):
    current_context: str = Field("", alias="current-context")
    clusters: list[_NamedCluster] = []
    users: list[_NamedUser] = []
    contexts: list[_NamedContext] = []


class Access:
    """An API server and a user, as the files say now.

    ``kubeconfig``: the file that it is from, in whose directory relative file names begin; "" where there is none.

    Raises: InvalidConfig.
    """

    def __init__(self, cluster: Cluster, user: User, kubeconfig: str = "") -> None:
        self.server, self._cluster, self._user, self._kubeconfig = cluster.server.rstrip("/"), cluster, user, kubeconfig
        self._directory = os.path.dirname(os.path.abspath(kubeconfig))
        self.server_name, self.is_verified = cluster.server_name, not cluster.insecure
        named = [cluster.ca_file, user.certificate_file, user.key_file]
        self._files = [os.path.join(self._directory, path) for path in [os.path.basename(kubeconfig), *named] if path]
        self._stamp = certificates.stamp(self._files)
        self._is_refused = False
        self._refuse_what_we_cannot_do()
        self._program = kube_exec.parse(user.program) if user.program is not None else None
        self._credential: Credential | None = None
        if self.has_tls:
            self._context(Credential())

    def __str__(self) -> str:
        return self.server

    @property
    def has_tls(self) -> bool:
        return self.server.startswith("https:")

    @property
    def credentials(self) -> list[str]:
        """Return what is given for this server, in words."""
        user, cluster = self._user, self._cluster
        given = [
            ("the token", user.token or user.token_file),
            ("the password", user.password),
            ("the program for credentials", user.program),
            ("the client certificate", user.certificate_file or user.certificate_data),
            ("the CA certificate", cluster.ca_file or cluster.ca_data),
        ]
        return [name for name, is_given in given if is_given]

    def refuse(self) -> None:
        """The API does not take it: it is no longer current."""
        self._is_refused = True

    def is_current(self) -> bool:
        """False where a file was replaced, what a program gave has expired, or the API refused it: find the access again."""
        has_expired = self._credential is not None and self._credential.has_expired
        return not (self._is_refused or has_expired) and certificates.stamp(self._files) == self._stamp

    def headers(self) -> dict[str, str]:
        """Return our credentials. A token's file is read each time: kubelet replaces it hourly. Raises: InvalidConfig."""
        user = self._user
        if user.token_file:
            return {"Authorization": f"Bearer {self._read('token', user.token_file).decode(errors='replace').strip()}"}
        if token := user.token or self._of_program().token:
            return {"Authorization": f"Bearer {token}"}
        if user.username:
            pair = base64.b64encode(f"{user.username}:{user.password}".encode()).decode()
            return {"Authorization": f"Basic {pair}"}
        return {}

    def tls(self) -> ssl.SSLContext:
        """Return the context with the certificate that the program gives, where there is one. Raises: InvalidConfig."""
        return self._context(self._of_program())

    def fault(self) -> str:
        """Return which certificate has expired, or which file cannot be read; "" where it is something else."""
        ours = self._user.certificate_file or f"{self._kubeconfig}: client-certificate-data"
        authority = self._cluster.ca_file or f"{self._kubeconfig}: certificate-authority-data"
        try:
            return certificates.what_is_invalid((ours, self._certificate()), (authority, self._authority()))
        except InvalidConfig as error:
            return str(error)

    def _of_program(self) -> Credential:
        """Run when it is first needed; empty where there is none. Raises: InvalidConfig."""
        if self._credential is None:
            self._credential = (
                kube_exec.run(self._program, self._directory, self._for_program()) if self._program else Credential()
            )
        return self._credential

    def _for_program(self) -> dict[str, Any]:
        """Return what a program may know of the cluster."""
        cluster = self._cluster
        extensions = {extension.name: extension.content for extension in cluster.extensions}
        known = {
            "server": self.server,
            "tls-server-name": cluster.server_name,
            "insecure-skip-tls-verify": cluster.insecure,
            "certificate-authority-data": base64.b64encode(self._authority()).decode(),
            "config": extensions.get(EXEC_EXTENSION),
        }
        return {key: value for key, value in known.items() if value}

    def _authority(self) -> bytes:
        return self._cluster.ca_data or self._read_if_named("certificate-authority", self._cluster.ca_file)

    def _certificate(self) -> bytes:
        return self._user.certificate_data or self._read_if_named("client-certificate", self._user.certificate_file)

    def _context(self, credential: Credential) -> ssl.SSLContext:
        """Raises: InvalidConfig."""
        ca = self._authority()  # it alone is believed, not the system's
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if ca else ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._cluster.insecure:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        certificate = credential.certificate.encode() or self._certificate()
        key = credential.key.encode() or self._user.key_data or self._read_if_named("client-key", self._user.key_file)
        try:
            if ca:
                context.load_verify_locations(cadata=ca.decode("ascii"))
            if certificate:
                with _in_memory(certificate) as certificate_path, _in_memory(key) as key_path:
                    context.load_cert_chain(certificate_path, key_path, lambda: "")
        except (ssl.SSLError, OSError, ValueError) as error:
            raise InvalidConfig(f"the certificates for {self.server} cannot be used", str(error)) from error
        return context

    def _read_if_named(self, key: str, path: str) -> bytes:
        return self._read(key, path) if path else b""

    def _read(self, key: str, path: str) -> bytes:
        """Raises: InvalidConfig."""
        return _read(key, os.path.join(self._directory, path))

    def _refuse_what_we_cannot_do(self) -> None:
        url = urlsplit(self.server)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise InvalidConfig(f'"{self.server}" is no URL of an API server', hint="it looks like https://192.168.123.11:6443")
        what = [
            ("auth-provider", self._user.provider is not None),
            ("proxy-url", bool(self._cluster.proxy)),
        ]
        for key, is_there in what:
            if is_there:
                hint = "a service account's token does: tokenFile, or kubectl create token" if key != "proxy-url" else ""
                raise InvalidConfig(f'"{key}" of the kubeconfig is not supported', hint=hint)


def find_access(url: str, kubeconfig: str, environ: Mapping[str, str], account: str = SERVICE_ACCOUNT) -> Access:
    """Find it by the options, else by what the pod is given. Raises: InvalidConfig."""
    if kubeconfig:
        return read_kubeconfig(kubeconfig, url)
    if url:
        return Access(Cluster(server=url), User())
    return in_cluster(environ, account)


def in_cluster(environ: Mapping[str, str], account: str = SERVICE_ACCOUNT) -> Access:
    """The pod's service account. Raises: InvalidConfig."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port:
        raise InvalidConfig(
            "unable to load in-cluster configuration, KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must be defined",
            hint="outside a pod give -kubeconfig-file or -kube-api-url",
        )
    host = f"[{host}]" if ":" in host else host
    cluster = Cluster.model_validate({"server": f"https://{host}:{port}", "certificate-authority": f"{account}/ca.crt"})
    access = Access(cluster, User(tokenFile=f"{account}/token"))
    access.headers()
    return access


def read_kubeconfig(path: str, url: str = "") -> Access:
    """The cluster and the user of the current context; ``url`` overrides the server. Raises: InvalidConfig."""
    config = _parse(_read("kubeconfig-file", path), path)
    contexts = {entry.name: entry.context for entry in config.contexts}
    if config.current_context not in contexts:
        raise InvalidConfig(
            f'{path}: "current-context" is "{config.current_context}"', f"there are {', '.join(contexts) or 'none'}"
        )
    context = contexts[config.current_context]
    clusters = {entry.name: entry.cluster for entry in config.clusters}
    users = {entry.name: entry.user for entry in config.users} | {"": User()}
    if context.cluster not in clusters or context.user not in users:
        raise InvalidConfig(f'{path}: the context "{config.current_context}" names a cluster or a user that does not exist')
    cluster = clusters[context.cluster]
    cluster = cluster.model_copy(update={"server": url}) if url else cluster
    return Access(cluster, users[context.user], path)


def _parse(text: bytes, path: str) -> _Kubeconfig:
    """Raises: InvalidConfig. What is wrong is named by its key, its value is not shown."""
    yaml = load_library("yaml", "PyYAML")
    try:
        return _Kubeconfig.model_validate(yaml.safe_load(text) or {})
    except ValidationError as error:
        raise InvalidConfig(f"{path} is no valid kubeconfig", kube_exec.faults(error)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidConfig(f"{path} is no YAML", _where(error)) from error


def _where(error: Exception) -> str:
    """Return what is wrong, and in which line; not the line itself, which may be a key."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", "")
    return f"line {mark.line + 1}: {problem}" if mark else str(error)


def load_library(module: str, package: str) -> Any:
    """Import what only this datastore needs. Raises: InvalidConfig, naming the package."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InvalidConfig(
            f'-kube-subnet-mgr needs the Python package "{package}"', str(error), "install it: pip install 'cni-py[flanneld]'"
        ) from error


def _read(key: str, path: str) -> bytes:
    """Raises: InvalidConfig."""
    try:
        return files.read(path)
    except (CniError, OSError) as error:
        words = str(error) if isinstance(error, CniError) else f"{path}: {error.strerror}"
        raise InvalidConfig(f'the file of "{key}" cannot be read', words) from error


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """A path for a library that wants one: a key never gets onto a disk."""
    fd = os.memfd_create("key", os.MFD_CLOEXEC)
    try:
        files.write_all(fd, content)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
