"""CNI spec versions and the verbs that each of them defines (spec, "Released versions")."""

SUPPORTED = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
CURRENT = SUPPORTED[-1]
FIRST_VERSION_OF_VERB = {"CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}


def supported_since(version: str) -> tuple[str, ...]:
    """Return the versions that a plugin supports whose first one this is."""
    return SUPPORTED[SUPPORTED.index(version) :]


def at_least(version: str, minimum: str) -> bool:
    """Return whether a supported version is ``minimum`` or newer."""
    return SUPPORTED.index(version) >= SUPPORTED.index(minimum)
