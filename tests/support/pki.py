"""Certificates that are valid for seconds: `openssl req` and `x509` know days only."""

from __future__ import annotations

import subprocess
from datetime import datetime
from pathlib import Path

CONFIG = """\
[ca]
default_ca=ours
[ours]
database=index
new_certs_dir=.
rand_serial=yes
default_md=sha256
policy=any
[any]
commonName=supplied
"""


def sign(directory: Path, begins: datetime, ends: datetime, out: str, *words: str) -> None:
    """`openssl ca` with these words, which name the request and the signer; `out` is replaced in one step."""
    (directory / "index").write_text("")
    (directory / "authority").write_text(CONFIG)
    dates = ["-startdate", f"{begins:%Y%m%d%H%M%SZ}", "-enddate", f"{ends:%Y%m%d%H%M%SZ}"]
    openssl(directory, "ca", "-batch", "-notext", "-config", "authority", "-out", f"{out}.new", *dates, *words)
    (directory / f"{out}.new").replace(directory / out)


def openssl(directory: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True, stdin=subprocess.DEVNULL)
