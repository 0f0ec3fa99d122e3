"""Plan of portmap before any change: configuration and previous result in, values out."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

from cni_py.attachment.record import owner_of
from cni_py.errors import InvalidConfig, UnsupportedField
from cni_py.journal import note
from cni_py.packetfilter.hostports.rules import PROTOCOLS, Mapping, Wanted
from cni_py.spec.result import from_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Interface, IPv6Interface

    from cni_py.config.models import PortmapConfig, PortMapping
    from cni_py.spec.call import Call
    from cni_py.spec.result import Result

    Address = IPv4Address | IPv6Address

DEFAULT_MARK_BIT = 13  # Go-compatible: plugins/meta/portmap/main.go; Kubernetes uses 14 and 15
BACKENDS = ("nftables", "iptables")
IPV6_LOOPBACK = IPv6Address(1)
MAX_PORT = 65535
MAX_CHAIN = 28  # characters of a chain's name in iptables
_CHAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.:")


def check_config(config: PortmapConfig) -> str:
    """The back end that the configuration asks for; empty: the one that works. Raises: InvalidConfig, UnsupportedField."""
    if config.mark_masq_bit is not None and config.external_set_mark_chain is not None:
        raise InvalidConfig("Cannot specify externalSetMarkChain and markMasqBit")
    if config.mark_masq_bit is not None and not 0 <= config.mark_masq_bit <= 31:
        raise InvalidConfig("MasqMarkBit must be between 0 and 31", f'"markMasqBit": {config.mark_masq_bit}')
    chain = config.external_set_mark_chain
    if chain is not None and not (0 < len(chain) <= MAX_CHAIN and chain[0] not in "-!" and _CHAIN.issuperset(chain)):
        raise InvalidConfig(
            f'"externalSetMarkChain" cannot be the name of a chain: "{chain[:40]}"', f"up to {MAX_CHAIN} characters"
        )
    for key, words in (("conditionsV4", config.conditions_v4), ("conditionsV6", config.conditions_v6)):
        _check_words(key, words)
    return _backend(config)


def _check_words(key: str, words: list[str]) -> None:
    """A condition ends where its words end: nothing in it may begin another command."""
    text = " ".join(words)
    if any(c in ";#\\" or not c.isprintable() for c in text) or text.count("{") != text.count("}"):
        raise InvalidConfig(f'"{key}" is not a valid condition', text[:200], "no ; # \\ and no line break; { and } in pairs")


def _backend(config: PortmapConfig) -> str:
    """Go-compatible: plugins/meta/portmap/main.go, ensureBackend(), but that nftables is the first choice here."""
    options: dict[str, list[str]] = {"iptables": [], "nftables": []}
    if config.external_set_mark_chain is not None:
        options["iptables"].append("externalSetMarkChain")
    for key, words in (("conditionsV4", config.conditions_v4), ("conditionsV6", config.conditions_v6)):
        if words and words[0]:
            options["iptables" if words[0][0] in "-!" else "nftables"].append(key)
    if config.backend is not None and config.backend not in BACKENDS:
        raise InvalidConfig(f'unrecognized backend "{config.backend}"', f'"backend" is one of {", ".join(BACKENDS)}')
    backend = config.backend or ("iptables" if options["iptables"] else "nftables" if options["nftables"] else "")
    other = "nftables" if backend == "iptables" else "iptables"
    if backend and options[other]:
        values = {
            "externalSetMarkChain": config.external_set_mark_chain,
            "conditionsV4": config.conditions_v4,
            "conditionsV6": config.conditions_v6,
        }
        raise UnsupportedField(
            f"{backend} backend was requested but configuration contains {other}-specific options [{' '.join(options[other])}]",
            "; ".join([f'"{key}": {values[key]!r:.200}' for key in options[other]]),
            f'"backend": "{other}" supports them' if not options[backend] else "",
        )
    return backend


def wanted(call: Call, config: PortmapConfig) -> Wanted:
    """The mappings that the runtime asks for. Raises: InvalidConfig, DecodingFailure."""
    if config.prev_result is None:
        raise InvalidConfig("must be called as chained plugin", "there is no prevResult", "put portmap behind another plugin")
    pods = pod_addresses(from_json(config.prev_result), call.ifname)
    mappings: dict[tuple[str, int, Address | None, int], Mapping] = {}
    ports = []
    for entry in config.runtime_config.port_mappings:
        protocol, host_address, versions = parse_mapping(entry)
        ports.append((protocol, entry.host_port))
        if host_address == IPV6_LOOPBACK:
            note(f"{protocol} {entry.host_port} of ::1 is not mapped: the kernel accepts no reply to ::1 from another link")
            continue
        for version in versions:
            if version in pods:
                # Go-compatible: of two entries for one port the first counts
                mapping = Mapping(protocol, entry.host_port, pods[version], entry.container_port, host_address)
                mappings.setdefault((protocol, entry.host_port, host_address, version), mapping)
    return Wanted(
        owner_of(call),
        tuple(mappings.values()),
        tuple(ports),
        snat=config.snat,
        masq_all=config.masq_all,
        mark_bit=DEFAULT_MARK_BIT if config.mark_masq_bit is None else config.mark_masq_bit,
        conditions=((4, _words(config.conditions_v4)), (6, _words(config.conditions_v6))),
        set_mark_chain=config.external_set_mark_chain or "",
    )


def _words(conditions: list[str]) -> tuple[str, ...]:
    return tuple([word for word in conditions if word])


def parse_mapping(entry: PortMapping) -> tuple[str, Address | None, tuple[int, ...]]:
    """Protocol, the one address of the host (``None``: any), and the IP versions it is for. Raises: InvalidConfig."""
    if not 0 < entry.container_port <= MAX_PORT:
        raise InvalidConfig(f"Invalid container port number: {entry.container_port}", '"containerPort" is 1 to 65535')
    if not 0 < entry.host_port <= MAX_PORT:
        raise InvalidConfig(f"Invalid host port number: {entry.host_port}", '"hostPort" is 1 to 65535')
    protocol = entry.protocol.lower()
    if protocol not in PROTOCOLS:
        known = f'"protocol" is one of {", ".join(PROTOCOLS)}'
        raise InvalidConfig(f'unknown protocol "{entry.protocol[:40]}" of host port {entry.host_port}', known)
    if not entry.host_ip:
        return protocol, None, (4, 6)
    address = parse_host_ip(entry)
    return protocol, None if address.is_unspecified else address, (address.version,)


def parse_host_ip(entry: PortMapping) -> Address:
    """``hostIP``; an IPv4 address in the form of IPv6 is IPv4. Raises: InvalidConfig."""
    try:
        address: Address = ip_address(entry.host_ip)
    except ValueError as error:
        raise InvalidConfig(f'"hostIP" of host port {entry.host_port} is not an address: "{entry.host_ip[:60]}"') from error
    if address.version == 6 and address.scope_id:
        raise InvalidConfig(
            f'"hostIP" of host port {entry.host_port} names a link: "{entry.host_ip[:60]}"', "a mapping is for an address"
        )
    return (address.ipv4_mapped or address) if address.version == 6 else address


def pod_addresses(result: Result, ifname: str) -> dict[int, IPv4Interface | IPv6Interface]:
    """The first address of each IP version that may be in the sandbox.

    Go-compatible: plugins/meta/portmap/main.go, parseConfig(): an address without a known interface counts.
    """
    found: dict[int, IPv4Interface | IPv6Interface] = {}
    for ip in result.ips:
        if ip.interface is not None and 0 <= ip.interface < len(result.interfaces):
            interface = result.interfaces[ip.interface]
            if interface.name != ifname or not interface.sandbox:
                continue
        found.setdefault(ip.address.version, ip.address)
    return found
