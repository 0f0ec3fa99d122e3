"""Download the kernel of a Debian suite into a directory: integration/kernel/prepare calls this.

    python -m integration.kernel.fetch bullseye DIRECTORY

apt has a state of its own (integration/bundle/debian.py), so that this machine's sources stay as they are.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from integration.bundle.debian import Apt

ARCHITECTURE = "amd64"


def main(suite: str, directory: str) -> None:
    to = Path(directory).resolve()
    apt = Apt(to.parent / f"apt-{suite}", ARCHITECTURE, suite)
    (package,) = apt.packages([apt.newest(f"linux-image-{ARCHITECTURE}")])
    shutil.copy(package.file, to)
    print(f"kernel/fetch: {package.name} {package.version}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
