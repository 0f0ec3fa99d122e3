"""Credentials over plain HTTP (datastore/plaintext.py): one rule for etcd and the Kubernetes API."""

from __future__ import annotations

from pathlib import Path

import pytest

from cni_py.datastore.etcd import Etcd
from cni_py.datastore.kubernetes.api import KubeApi
from cni_py.datastore.kubernetes.config import Access, Cluster, User
from cni_py.datastore.plaintext import warning_about

HERE = ["127.0.0.1", "127.8.9.1", "localhost", "etcd.localhost", "[::1]"]
THERE = ["192.0.2.1", "etcd-1", "localhost.example", "[2001:db8::1]", "0.0.0.0"]


@pytest.mark.parametrize("host", THERE)
@pytest.mark.parametrize("given", [["the password"], ["the TLS files"], ["the password", "the TLS files"]])
def test_credentials_that_leave_the_host_are_a_warning(host: str, given: list[str]) -> None:
    for url in (f"http://{host}:2379", f"{host}:2379"):
        text = warning_about(url, given)
        assert text.startswith(f"{url} is plain HTTP, although {' and '.join(given)} ")
        assert not warning_about(url, [])


@pytest.mark.parametrize("host", HERE)
def test_loopback_and_unix_sockets_do_not_leave_it(host: str) -> None:
    for url in (f"http://{host}:2379", f"{host}:2379", f"unix:/run/{host}"):
        assert not warning_about(url, ["the password"])


@pytest.mark.parametrize(
    ("endpoint", "count"),
    [("http://192.0.2.1:2379", 1), ("192.0.2.1:2379", 1), ("https://192.0.2.1:2379", 0), ("http://127.0.0.1:2379", 0)],
)
def test_etcd_with_a_password(endpoint: str, count: int, capfd: pytest.CaptureFixture[str]) -> None:
    Etcd([endpoint], user="flannel", password="secret").close()
    log = capfd.readouterr().err
    assert log.count(f"{endpoint} is plain HTTP, although the password is given") == count
    assert "secret" not in log
    Etcd([endpoint]).close()
    assert "plain HTTP" not in capfd.readouterr().err


@pytest.mark.parametrize(("server", "count"), [("http://192.0.2.1:8080", 1), ("http://localhost:8080", 0)])
@pytest.mark.parametrize("user", ["token", "tokenFile", "password"])
def test_kubernetes_api_with_a_token(
    server: str, count: int, user: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("urllib3")
    (tmp_path / "token").write_text("secret")
    value = str(tmp_path / "token") if user == "tokenFile" else "secret"
    KubeApi(lambda: Access(Cluster(server=server), User.model_validate({user: value}))).close()
    log = capfd.readouterr().err
    assert log.count(f"{server} is plain HTTP, although the ") == count
    assert "secret" not in log.replace(str(tmp_path), "")
    KubeApi(lambda: Access(Cluster(server=server), User())).close()
    assert "plain HTTP" not in capfd.readouterr().err
