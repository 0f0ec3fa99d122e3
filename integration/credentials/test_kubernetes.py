"""Access of flanneld to a Kubernetes API: TLS, tokens, kubeconfigs, and credential programs."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import time
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest

from cni_py.datastore.errors import Refused, StoreError
from cni_py.datastore.kubernetes import api as kube_api
from cni_py.datastore.kubernetes import exec as kube_exec
from cni_py.datastore.kubernetes.config import SERVICE_ACCOUNT, find_access, in_cluster, read_kubeconfig
from cni_py.errors import InvalidConfig
from support import pki
from support.apiserver import ApiServer, node, vxlan
from support.kube import CONFIG, OURS, Certificates, Cluster, kubeconfig, network
from support.waiting import until
from support.watching import Watching

for package in ("urllib3", "yaml"):
    pytest.importorskip(package, reason="urllib3 and PyYAML are not installed: pip install 'cni-py[flanneld]'")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def test_kubeconfig_with_token_and_authority(tmp_path: Path, certificates: Certificates) -> None:
    with ApiServer("secret", certificates.server()) as server:
        cluster = Cluster(server, tmp_path)
        path = kubeconfig(
            tmp_path, {"server": server.url, "certificate-authority-data": certificates.data("ca.crt")}, {"token": "secret"}
        )
        store = cluster.connect(f"-kubeconfig-file={path}")
        store.acquire(network(CONFIG), OURS, None)
        assert server.requests[-1].headers["Authorization"] == "Bearer secret"
        store.close()


@pytest.mark.parametrize("inline", [True, False])
def test_kubeconfig_with_client_certificate(tmp_path: Path, certificates: Certificates, inline: bool) -> None:
    with ApiServer(tls=certificates.server(wants_client=True)) as server:
        cluster = Cluster(server, tmp_path)
        if inline:
            user = {
                "client-certificate-data": certificates.data("client.crt"),
                "client-key-data": certificates.data("client.key"),
            }
        else:
            for name in ("client.crt", "client.key"):
                (tmp_path / name).write_bytes((certificates.directory / name).read_bytes())
            user = {"client-certificate": "client.crt", "client-key": "client.key"}
        of_server = {"server": server.url, "certificate-authority": certificates.path("ca.crt")}
        store = cluster.connect(f"-kubeconfig-file={kubeconfig(tmp_path, of_server, user)}")
        store.acquire(network(CONFIG), OURS, None)
        store.close()
        anonymous = cluster.connect(f"-kubeconfig-file={kubeconfig(tmp_path, of_server, {})}")
        with pytest.raises(StoreError):
            anonymous.ready()
        anonymous.close()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"certificate-authority": "other.crt"}, "certificate verify failed"),
        ({}, "certificate verify failed"),
        ({"certificate-authority": "ca.crt", "tls-server-name": "elsewhere.example"}, "Hostname mismatch|doesn't match"),
        ({"certificate-authority": "ca.crt", "tls-server-name": "kube.example"}, ""),
        ({"insecure-skip-tls-verify": True}, ""),
    ],
)
def test_server_is_verified(tmp_path: Path, certificates: Certificates, more: dict[str, Any], words: str) -> None:
    if "certificate-authority" in more:
        more = more | {"certificate-authority": certificates.path(more["certificate-authority"])}
    with ApiServer(tls=certificates.server()) as server:
        cluster = Cluster(server, tmp_path)
        store = cluster.connect(f"-kubeconfig-file={kubeconfig(tmp_path, {'server': server.url} | more, {})}")
        if words:
            with pytest.raises(Refused, match=f"no TLS with {server.url}: .*({words})"):
                store.acquire(network(CONFIG), OURS, None)
            assert not server.requests
        else:
            store.acquire(network(CONFIG), OURS, None)
        store.close()


def test_pod_uses_its_service_account_and_a_new_token_of_it(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("first\n")
    (tmp_path / "ca.crt").write_bytes((certificates.directory / "ca.crt").read_bytes())
    with ApiServer("first", certificates.server()) as server:
        environ = {"KUBERNETES_SERVICE_HOST": server.host, "KUBERNETES_SERVICE_PORT": str(server.port)}
        api = kube_api.KubeApi(lambda: in_cluster(environ, str(tmp_path)))
        assert api.get("/api/v1/nodes")["kind"] == "NodeList"
        server.token = "second"
        with pytest.raises(Refused, match="401: Unauthorized; the token or the client certificate is not accepted"):
            api.get("/api/v1/nodes")
        (tmp_path / "token").write_text("second\n")
        assert api.get("/api/v1/nodes")["kind"] == "NodeList"
        (tmp_path / "token").unlink()
        with pytest.raises(Refused, match='the file of "token" cannot be read'):
            api.get("/api/v1/nodes")
        api.close()
    with pytest.raises(InvalidConfig, match="KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must be defined"):
        find_access("", "", {})
    assert str(in_cluster_of("fd00::1", tmp_path, certificates)) == "https://[fd00::1]:443"
    assert SERVICE_ACCOUNT == "/var/run/secrets/kubernetes.io/serviceaccount"


def in_cluster_of(host: str, directory: Path, certificates: Certificates) -> Any:
    (directory / "token").write_text("x")
    return in_cluster({"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": "443"}, str(directory))


def test_renewed_authority_is_believed_without_a_restart(tmp_path: Path, certificates: Certificates) -> None:
    ca = tmp_path / "ca.crt"
    ca.write_bytes((certificates.directory / "other.crt").read_bytes())
    with ApiServer(tls=certificates.server()) as server:
        cluster = Cluster(server, tmp_path)
        store = cluster.connect(
            f"-kubeconfig-file={kubeconfig(tmp_path, {'server': server.url, 'certificate-authority': 'ca.crt'}, {})}"
        )
        with pytest.raises(Refused):
            store.ready()
        ca.write_bytes((certificates.directory / "ca.crt").read_bytes())
        store.ready()
        store.close()


def test_client_certificate_expires_and_is_replaced(
    tmp_path: Path, certificates: Certificates, capfd: pytest.CaptureFixture[str]
) -> None:
    """The watch of an expired one goes on; when it breaks, the log says why it does not come back."""
    for name in ("ca.crt", "ca.key"):
        shutil.copy(certificates.path(name), tmp_path)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "client.key"]
    pki.openssl(tmp_path, "req", *key, "-subj", "/CN=client", "-out", "client.csr")
    by = ["-in", "client.csr", "-cert", "ca.crt", "-keyfile", "ca.key"]
    began, ends = datetime(2020, 1, 1, tzinfo=UTC), datetime.now(UTC) + timedelta(seconds=5)
    pki.sign(tmp_path, began, ends, "client.crt", *by)
    user = {"client-certificate": "client.crt", "client-key": "client.key"}
    with ApiServer(tls=certificates.server(wants_client=True)) as server:
        cluster = Cluster(server, tmp_path)
        path = kubeconfig(tmp_path, {"server": server.url, "certificate-authority": "ca.crt"}, user)
        store = cluster.connect(f"-kubeconfig-file={path}")
        with Watching(store) as watcher:
            server.wait_for_watch()
            time.sleep((ends - datetime.now(UTC)).total_seconds() + 1.5)
            server.put(node(2, **vxlan(2)))
            watcher.until(lambda found: len(found) == 1)
            server.disconnect()
            words = f'our client certificate "client.crt" has expired, on {ends:%Y-%m-%d %H:%M:%S} UTC; put a new one there'
            until(lambda: words in capfd.readouterr().err)
            with pytest.raises(StoreError, match=re.escape(words)):
                store.ready()
            pki.sign(tmp_path, began, ends + timedelta(days=1), "client.crt", *by)
            server.put(node(3, **vxlan(3)))
            watcher.until(lambda found: len(found) == 2)
            store.ready()
        store.close()


def test_kubeconfig_that_was_replaced_is_read_without_a_restart(tmp_path: Path) -> None:
    """Replace it as kubeadm does to renew the certificate in it."""
    with ApiServer("first") as server:
        cluster = Cluster(server, tmp_path)
        store = cluster.connect(f"-kubeconfig-file={kubeconfig(tmp_path, {'server': server.url}, {'token': 'first'})}")
        store.ready()
        server.token = "second and longer"
        kubeconfig(tmp_path, {"server": server.url}, {"token": server.token})
        store.ready()
        Path(tmp_path / "kubeconfig").write_text("half of ")
        with pytest.raises(Refused, match="is no valid kubeconfig"):
            store.ready()
        kubeconfig(tmp_path, {"server": server.url}, {"token": server.token})
        store.ready()
        store.close()


# A program that makes credentials


V1 = "client.authentication.k8s.io/v1"


class Plugin:
    """A program in the kubeconfig's directory that prints the file `answer`, and counts how often it was run."""

    def __init__(self, directory: Path, script: str = "cat answer") -> None:
        self.directory = directory
        program = directory / "bin" / "login"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\ncd {directory}\necho >>runs\nenv >env\necho "$@" >words\n{script}\n')
        program.chmod(0o755)

    def gives(self, version: str = V1, kind: str = "ExecCredential", **status: str) -> None:
        (self.directory / "answer").write_text(json.dumps({"kind": kind, "apiVersion": version, "status": status}))

    @property
    def runs(self) -> int:
        return len((self.directory / "runs").read_text())

    def env(self) -> dict[str, str]:
        return dict(line.partition("=")[::2] for line in (self.directory / "env").read_text().splitlines())


def user_of(command: str, **more: Any) -> dict[str, Any]:
    return {"exec": {"apiVersion": V1, "command": command, "interactiveMode": "Never", "args": None, "env": None} | more}


class AnHourLater(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return datetime.now(tz) + timedelta(hours=1)


@pytest.mark.parametrize("version", [V1, f"{V1}beta1"])
def test_program_makes_a_token_and_is_run_again_when_it_is_refused(tmp_path: Path, version: str) -> None:
    plugin = Plugin(tmp_path)
    plugin.gives(version, token="first")
    with ApiServer("first") as server:
        cluster = Cluster(server, tmp_path)
        more: dict[str, Any] = {
            "apiVersion": version,
            "args": ["get-token", "a b"],
            "env": [{"name": "USERNAME", "value": "me"}],
        }
        path = kubeconfig(tmp_path, {"server": server.url}, user_of("./bin/login", **more))
        store = cluster.connect(f"-kubeconfig-file={path}")
        store.acquire(network(CONFIG), OURS, None)
        assert plugin.runs == 1
        server.token = "second"
        plugin.gives(version, token="second")
        with pytest.raises(Refused, match="401"):
            store.ready()
        store.ready()
        store.ready()
        assert plugin.runs == 2
        store.close()
    assert (tmp_path / "words").read_text() == "get-token a b\n"
    assert plugin.env()["USERNAME"] == "me"
    assert json.loads(plugin.env()["KUBERNETES_EXEC_INFO"]) == {
        "kind": "ExecCredential",
        "apiVersion": version,
        "spec": {"interactive": False},
    }


def test_program_is_run_again_when_what_it_gave_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here one that is looked for in PATH."""
    plugin = Plugin(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    ends = datetime.now(UTC) + timedelta(minutes=30)
    plugin.gives(token="first", expirationTimestamp=f"{ends:%Y-%m-%dT%H:%M:%SZ}")
    with ApiServer("first") as server:
        cluster = Cluster(server, tmp_path)
        store = cluster.connect(f"-kubeconfig-file={kubeconfig(tmp_path, {'server': server.url}, user_of('login'))}")
        store.ready()
        store.ready()
        assert plugin.runs == 1
        server.token = "second"
        plugin.gives(token="second", expirationTimestamp="2100-01-01T00:00:00+02:00")
        monkeypatch.setattr(kube_exec, "datetime", AnHourLater)
        store.ready()
        store.ready()
        assert plugin.runs == 2
        store.close()


def test_program_makes_a_certificate_and_knows_the_cluster(tmp_path: Path, certificates: Certificates) -> None:
    plugin = Plugin(tmp_path)
    pem = {key: (certificates.directory / f"client.{end}").read_text() for key, end in (("Certificate", "crt"), ("Key", "key"))}
    plugin.gives(**{f"client{key}Data": text for key, text in pem.items()})
    with ApiServer(tls=certificates.server(wants_client=True)) as server:
        cluster = Cluster(server, tmp_path)
        extension = {"name": "client.authentication.k8s.io/exec", "extension": {"audience": "x"}}
        where = {"server": server.url, "certificate-authority": certificates.path("ca.crt"), "extensions": [extension]}
        store = cluster.connect(
            f"-kubeconfig-file={kubeconfig(tmp_path, where, user_of('bin/login', provideClusterInfo=True))}"
        )
        store.ready()
        store.close()
    assert json.loads(plugin.env()["KUBERNETES_EXEC_INFO"])["spec"] == {
        "interactive": False,
        "cluster": {
            "server": server.url,
            "certificate-authority-data": certificates.data("ca.crt"),
            "config": {"audience": "x"},
        },
    }


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo hush; echo no such profile >&2; exit 3", "exit status 3: no such profile"),
        ("kill -9 $$", "killed by signal 9"),
        ("sleep 60 & sleep 60", "not done after 0.5 s, killed"),
        ("exec >&- 2>&-; sleep 60", "not done after 0.5 s, killed"),
        ("cat /dev/zero", "it wrote more than 1048576 bytes, killed"),
        ("cat /dev/zero >&2", "it wrote more than 1048576 bytes, killed"),
        ("read line || true; cat", "its output is no ExecCredential: Invalid JSON"),
        ('echo \'{"kind": "hush"}\'', "its output is no ExecCredential: apiVersion: Field required"),
        (f'echo \'{{"kind": "ExecCredential", "apiVersion": "{V1}"}}\'', "status: Field required"),
    ],
)
def test_program_that_fails_is_said_and_waited_for(
    tmp_path: Path, script: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_exec, "SECONDS", 0.5)
    Plugin(tmp_path, script)
    assert_refused(tmp_path, user_of("bin/login"), words)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"version": f"{V1}beta1", "token": "hush"}, f'it replies in apiVersion "{V1}beta1", the kubeconfig says "{V1}"'),
        ({}, "it gave neither a token nor a certificate with its key"),
        ({"clientKeyData": "hush"}, "it gave neither a token nor a certificate with its key"),
        ({"token": "hush", "clientKeyData": "hush"}, "it gave neither a token nor a certificate with its key"),
        ({"token": "hush", "expirationTimestamp": "tomorrow"}, "status.expirationTimestamp: "),
        ({"kind": "Pod", "token": "hush"}, "kind: Input should be 'ExecCredential'"),
    ],
)
def test_answer_that_cannot_be_used_is_said(tmp_path: Path, answer: dict[str, str], words: str) -> None:
    Plugin(tmp_path).gives(**answer)
    assert_refused(tmp_path, user_of("bin/login"), words)


def test_program_that_is_not_there_is_said_with_how_to_get_it(tmp_path: Path) -> None:
    words = "nowhere-login: No such file or directory; apt install it"
    assert_refused(tmp_path, user_of("nowhere-login", installHint="apt install it"), words)


def assert_refused(directory: Path, user: dict[str, Any], words: str) -> None:
    """Check that every call fails, and that none reaches the server."""
    with ApiServer() as server:
        store = Cluster(server, directory).connect(f"-kubeconfig-file={kubeconfig(directory, {'server': server.url}, user)}")
        with pytest.raises(Refused, match="of the kubeconfig gave no credentials") as caught:
            store.ready()
        assert words in str(caught.value)
        assert "hush" not in str(caught.value)
        assert not server.requests
        store.close()


def test_url_overrides_that_of_the_kubeconfig(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, {"server": "https://10.0.0.1:6443"}, {"username": "me", "password": "secret"})
    access = read_kubeconfig(path, "http://127.0.0.1:8080/")
    assert str(access) == "http://127.0.0.1:8080"
    assert access.headers() == {"Authorization": "Basic " + base64.b64encode(b"me:secret").decode()}


BAD_KUBECONFIGS = [
    ("", "", 'current-context" is "": there are none'),
    ("current-context: x\nclusters: 1", "", "clusters: Input should be a valid list"),
    ("a: [b\nc: d", "", "is no YAML: line 2"),
    ("- 1", "", "no valid kubeconfig"),
    ("a: \x00", "", "is no YAML"),
    ("here", "there", "names a cluster or a user that does not exist"),
    ("here", "nowhere", '"current-context" is "nowhere": there are here, there'),
]


@pytest.mark.parametrize(("text", "context", "words"), BAD_KUBECONFIGS)
def test_kubeconfig_that_is_wrong_is_said(tmp_path: Path, text: str, context: str, words: str) -> None:
    path = kubeconfig(tmp_path, {"server": "https://10.0.0.1:6443"}, {})
    content = Path(path).read_text().replace("current-context: here", f"current-context: {context}") if context else text
    Path(path).write_text(content)
    with pytest.raises(InvalidConfig) as caught:
        read_kubeconfig(path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("cluster", "user", "words"),
    [
        ({"server": "10.0.0.1:6443"}, {}, "is no URL of an API server"),
        ({}, {}, "is no URL of an API server"),
        ({"server": "https://10.0.0.1", "proxy-url": "http://p"}, {}, '"proxy-url" of the kubeconfig is not supported'),
        ({"server": "https://10.0.0.1"}, {"exec": {"command": "aws"}}, '"exec" of the kubeconfig cannot be used: apiVersion: '),
        (
            {"server": "https://10.0.0.1"},
            {"auth-provider": {"name": "gcp"}},
            '"auth-provider" of the kubeconfig is not supported',
        ),
        ({"server": 7}, {}, "server: Input should be a valid string"),
        ({"server": "https://10.0.0.1", "certificate-authority-data": "?"}, {}, "certificate-authority-data"),
        (
            {"server": "https://10.0.0.1", "certificate-authority-data": "c2VjcmV0"},
            {},
            "the certificates for https://10.0.0.1 cannot be used",
        ),
        ({"server": "https://10.0.0.1", "certificate-authority": "nowhere"}, {}, "nowhere: No such file"),
        (
            {"server": "https://10.0.0.1"},
            {"client-certificate-data": "c2VjcmV0", "client-key-data": "c2VjcmV0"},
            "cannot be used",
        ),
        ({"server": "https://10.0.0.1"}, {"token": ["hush"]}, "token: Input should be a valid string"),
    ],
)
def test_access_that_is_wrong_is_said_and_no_secret_is_shown(
    tmp_path: Path, cluster: dict[str, Any], user: dict[str, Any], words: str
) -> None:
    path = kubeconfig(tmp_path, cluster, user)
    with pytest.raises(InvalidConfig) as caught:
        kube_api.KubeApi(lambda: read_kubeconfig(path))
    assert words in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "secret" not in str(caught.value)
