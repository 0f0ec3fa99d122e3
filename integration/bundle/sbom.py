"""Write the list of what a bundle consists of, as SPDX 2.3 in JSON.

Owns: lib/sbom.spdx.json. One package for each Debian package and each wheel, with its version, the hash of the downloaded
file, and a package URL, by which scanners find known vulnerabilities.
"""

from __future__ import annotations

import json
import re
import uuid
from datetime import UTC, datetime
from urllib.parse import quote

from integration.bundle.debian import SUITE, Package
from integration.bundle.tree import version
from integration.bundle.wheels import Wheel

NAME = "sbom.spdx.json"
WHOLE = "SPDXRef-cni-py"
NAMESPACE = uuid.UUID("3f0f8a52-6d0e-5f0a-9d3c-2b8f1f6f1c11")


def parts_of(packages: list[Package], wheels: list[Wheel]) -> list[dict[str, object]]:
    """Return one entry for each package."""
    return [of_debian(package) for package in packages] + [of_wheel(wheel) for wheel in wheels]


def parts_in(text: str) -> list[dict[str, object]]:
    """Return the entries of a document, without cni-py itself."""
    return [part for part in json.loads(text)["packages"] if part["SPDXID"] != WHOLE]


def document(name: str, parts: list[dict[str, object]], date: int) -> str:
    """Return the document; the same inputs give the same text."""
    digest = uuid.uuid5(NAMESPACE, json.dumps(parts))
    ours = {
        "SPDXID": WHOLE,
        "name": "cni-py",
        "versionInfo": version(),
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "Apache-2.0",
        "licenseDeclared": "Apache-2.0",
        "copyrightText": "NOASSERTION",
    }
    contents = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": f"urn:uuid:{digest}",
        "creationInfo": {
            "created": datetime.fromtimestamp(date, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": [f"Tool: cni-py-bundle-{version()}"],
        },
        "packages": [ours, *parts],
        "relationships": [
            relationship("SPDXRef-DOCUMENT", "DESCRIBES", WHOLE),
            *(relationship(WHOLE, "CONTAINS", str(part["SPDXID"])) for part in parts),
        ],
    }
    return json.dumps(contents, indent=1) + "\n"


def relationship(element: str, kind: str, related: str) -> dict[str, str]:
    return {"spdxElementId": element, "relationshipType": kind, "relatedSpdxElement": related}


def of_debian(package: Package) -> dict[str, object]:
    architecture = package.file.stem.rpartition("_")[2]
    url = f"pkg:deb/debian/{package.name}@{quote(package.version, safe='')}?arch={architecture}&distro={SUITE}"
    return part(f"deb-{package.name}", package.name, package.version, package.sha256, url, "")


def of_wheel(wheel: Wheel) -> dict[str, object]:
    name = re.sub(r"[-_.]+", "-", wheel.name).lower()
    return part(f"pypi-{name}", wheel.name, wheel.version, wheel.sha256, f"pkg:pypi/{name}@{wheel.version}", wheel.license)


def part(key: str, name: str, number: str, sha256: str, url: str, license_: str) -> dict[str, object]:
    """Return a package. `license_` is an SPDX expression, or empty."""
    return {
        "SPDXID": "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]", "-", key),
        "name": name,
        "versionInfo": number,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "checksums": [{"algorithm": "SHA256", "checksumValue": sha256}],
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": license_ or "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": url}],
    }
