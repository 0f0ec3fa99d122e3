"""Secrets in texts of a node: none of them is in what a bundle contains, and the rest is."""

from __future__ import annotations

import base64
import json

import pytest

from cni_py.doctor.redact import HIDDEN, Redactor

SECRET = "hunter2-S3cr3t"
KEY = base64.b64encode(bytes(range(32))).decode()
PEM = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIIabcdefghijklmnopqrstuvwx\nyz0123456789ABCDEFGHIJKLMNOPQRSTUV\n-----END EC PRIVATE KEY-----\n"
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJub2RlIn0.c2lnbmF0dXJl"
PLACES = [
    f"FLANNELD_ETCD_PASSWORD={SECRET}\n",
    f"FLANNELD_ETCD_PASSWORD='{SECRET}'\n",
    f'export ETCD_PASSWORD="{SECRET}"\n',
    f"flanneld -etcd-password={SECRET} -iface eth0\n",
    f"flanneld --etcd-password {SECRET} --iface eth0\n",
    f"Nov 30 12:00:00 node1 flanneld[17]: login failed, password: {SECRET}, retrying\n",
    f'{{"Network": "10.244.0.0/16", "Backend": {{"Type": "wireguard", "PSK": "{SECRET}"}}}}\n',
    json.dumps({"config": json.dumps({"Backend": {"PSK": SECRET}})}),
    json.dumps({"config": json.dumps({"x": json.dumps({"psk": SECRET})})}),
    json.dumps({"users": [{"user": {"token": SECRET, "client-key-data": SECRET}}]}),
    f"users:\n- user:\n    token: {SECRET}\n",
    f"users:\n- user:\n    client-key-data: {SECRET}\n",
    f"etcd-endpoints: https://root:{SECRET}@192.168.123.11:2379/v2\n",
    f"https://{SECRET}@192.168.123.11:2379/v2\n",
    f"Authorization: Bearer {SECRET}\n",
    f"authorization: basic {SECRET}\n",
    f"PrivateKey = {SECRET}\n",
    f"PresharedKey={SECRET}\n",
    f"preshared_key: {SECRET}\n",
    f"  WIREGUARD_PRIVATE_KEY={SECRET}\n",
    f"AWS_SECRET_ACCESS_KEY={SECRET}\n",
    f"aws-secret-access-key: {SECRET}\n",
    f"apiKey: {SECRET}\n",
    f"DB_PASS={SECRET}\n",
    f"MYSQL_PWD={SECRET}\n",
    f"passphrase '{SECRET}'\n",
    f"ENVIRONMENT: Environment=TOKEN={SECRET}\n",
    f'Environment="FLANNELD_ETCD_PASSWORD={SECRET}"\n',
    f"- name: ETCD_PASSWORD\n  value: {SECRET}\n",
    f'{{"name": "ETCD_PASSWORD", "value": "{SECRET}"}}',
    f'{{"env": [{{"name": "ETCD_PASSWORD", "value": "{SECRET}"}}]}}',
    f"DB_PW={SECRET}\n",
    f"encryptionKey: {SECRET}\n",
    f"AZURE_STORAGE_ACCOUNT_KEY={SECRET}\n",
    f"etcdctl --user root:{SECRET} get /x\n",
    f"curl -u root:{SECRET} https://x\n",
    f"ETCDCTL_USER=root:{SECRET}\n",
    json.dumps({"auths": {"registry.example": {"auth": base64.b64encode(f"root:{SECRET}".encode()).decode()}}}),
    f"Authorization: Basic {base64.b64encode(f'root:{SECRET}'.encode()).decode()}\n",
    json.dumps({".dockerconfigjson": base64.b64encode(json.dumps({"auths": {"x": {"password": SECRET}}}).encode()).decode()}),
    f"mount -t cifs //a/b /m -o username=a,password={SECRET}\n",
]


@pytest.mark.parametrize("text", PLACES, ids=[str(number) for number in range(len(PLACES))])
def test_secret_is_removed_wherever_it_is_assigned(text: str) -> None:
    redactor = Redactor()
    redactor.learn(text)
    assert SECRET not in redactor.redact(text)


@pytest.mark.parametrize("text", PLACES, ids=[str(number) for number in range(len(PLACES))])
def test_secret_that_was_recognized_once_is_removed_everywhere(text: str) -> None:
    redactor = Redactor()
    redactor.learn(text)
    elsewhere = f"node1 login as root with {SECRET} refused; {base64.b64encode(SECRET.encode()).decode()}"
    assert redactor.redact(elsewhere) == f"node1 login as root with {HIDDEN} refused; {HIDDEN}"


ISSUED = [
    "xoxb-123456789012-abcdefGHIJ",
    "ghp_" + "a1B2" * 9,
    "glpat-abcdefGHIJ12345678",
    "AKIAIOSFODNN7EXAMPLE",
    "abcdef.0123456789abcdef",
]


@pytest.mark.parametrize("secret", [KEY, PEM.splitlines()[1], JWT, *ISSUED])
def test_form_of_a_secret_is_removed_without_its_name(secret: str) -> None:
    text = f"line one\n{PEM if secret in PEM else secret}\nline three\n"
    redacted = Redactor().redact(text)
    assert secret not in redacted
    assert redacted.startswith("line one\n")
    assert redacted.endswith("line three\n")


def test_truncated_private_key_is_removed() -> None:
    assert "MHcCAQEE" not in Redactor().redact(PEM[:60])


def test_known_secret_with_special_characters() -> None:
    secret = 'p@ss"w/rd&1'
    redactor = Redactor([secret])
    for form in (secret, json.dumps(secret), "p%40ss%22w%2Frd%261"):
        assert form.strip('"') not in redactor.redact(f"with {form} in it")


def test_what_was_removed_is_not_removed_again() -> None:
    redactor = Redactor()
    text = f"-etcd-password={SECRET} -v\nAuthorization: Bearer {SECRET}\n"
    redactor.learn(text)
    once = redactor.redact(text)
    assert f"-etcd-password={HIDDEN} -v" in once
    assert redactor.redact(once) == once
    assert f"{HIDDEN}]" not in once


HARMLESS = [
    "time=2026-11-30T12:00:00 node1.example.com 6.18.44-fc\n",
    "inet 10.244.1.1/24 brd 10.244.1.255 scope global cni0\n",
    "I1130 12:00:00.000001 17 lease.py:148] Found lease (ip: 10.244.91.0/24 ipv6: ::/0) for current IP\n",
    "-A POSTROUTING -s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully\n",
    '{"VNI": 1, "VtepMAC": "6a:62:31:e3:c6:b5"}\n',
    "etcdPassword:*** etcdKeyfile:/etc/kube-flannel/client.key\n",
    "the token is not valid\n",
    "authorization failed, token expired: bearer unknown, basic authentication\n",
    "-etcd-keyfile=/etc/kube-flannel/client.key\n",
    "name: cbr0\nvalue: 5\n",
    "sha512 352833ea4e7f1a968163352833ea4e7f1a968163\n",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str) -> None:
    redactor = Redactor()
    redactor.learn(text)
    assert redactor.redact(text) == text
