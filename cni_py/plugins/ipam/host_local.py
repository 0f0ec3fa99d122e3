"""``host-local``: addresses from ranges, kept in files of this node.

Owns: ``<dataDir>/<network>/`` with everything in it (see ``ipam/store.py``).

Source: plugins/ipam/host-local (main.go, backend/allocator/config.go) of containernetworking/plugins.
Differences: STATUS and GC exist, CHECK compares addresses, DEL needs no valid ranges and creates
no directory, and an address outside all ranges is rejected before any is reserved.
"""

from __future__ import annotations

from ipaddress import ip_interface

from cni_py import files
from cni_py.errors import AddressesExhausted, CheckFailed, CniError, InvalidConfig, InvalidEnvironment, IOFailure, NotAvailable
from cni_py.ipam import resolv_conf
from cni_py.ipam.ranges import as_address, parse_address, parse_cidr, parse_range_sets
from cni_py.ipam.store import Store, reserved_names
from cni_py.journal import note, quote
from cni_py.spec.call import check_network_name
from cni_py.spec.result import DNS, IPConfig, Result, Route, from_json
from cni_py.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    from cni_py.config.models import HostLocalConfig, HostLocalIpam
    from cni_py.config.models import Range as ConfiguredRange
    from cni_py.ipam.ranges import Range, RangeSet
    from cni_py.spec.call import Call

    Address = IPv4Address | IPv6Address
    Requests = dict[Address, type[CniError]]
    Choice = tuple[Range, Address]

CONFIG = "HostLocalConfig"
DATA_DIR = "/var/lib/cni/networks"
MAX_PATH = 1024


def add(call: Call, config: HostLocalConfig) -> Result:
    """Reserve one address of each range set; all of them or none."""
    range_sets = _range_sets(call, config)
    wanted = _distribute(_requested(call, config), range_sets)
    dns, routes = _dns(config), _routes(config)
    ips = []
    with Store(*_place(call, config), create=True) as store, Undo() as undo:
        own = _of_before(call, store)
        for index, range_set in enumerate(range_sets):
            asked = wanted[index] or _again(own, range_set)
            if asked and asked[1] in own:
                chosen, address = asked
                own.remove(address)
            else:
                chosen, address = _take(call, store, index, asked) if asked else _take_next(call, store, index, range_set)
                undo.on_failure(f"release {address}", store.release, [address])
            ips.append(IPConfig(ip_interface((int(address), chosen.subnet.prefixlen)), chosen.gateway))
        store.release(own)
    return Result(ips=tuple(ips), routes=routes, dns=dns)


def delete(call: Call, config: HostLocalConfig) -> None:
    """Release all addresses of the attachment, whatever the ranges are now."""
    with Store(*_place(call, config)) as store:
        store.release(store.held_by(call.container_id, call.ifname))


def check(call: Call, config: HostLocalConfig) -> None:
    """Check that the attachment holds the addresses of our ranges in prevResult; if there are none, any."""
    range_sets = _range_sets(call, config)
    _requested(call.replace(args=()), config)  # CNI_ARGS are ADD's
    named = [ip.address.ip for ip in from_json(config.prev_result).ips] if config.prev_result else []
    expected = [address for address in named if any(address in range_set for range_set in range_sets)]
    owners = ((call.container_id, call.ifname), (call.container_id, ""))
    with Store(*_place(call, config)) as store:
        wrong = [address for address in expected if store.owner_of(address) not in owners]
        if expected and not wrong:
            return
        held = store.held_by(call.container_id, call.ifname)
        if held and not wrong:
            return
        if not wrong:
            raise CheckFailed(
                f"host-local: Failed to find address added by container {call.container_id}",
                f'expected: a reservation of interface "{call.ifname}" in "{store.directory}", found: none',
                f"list the reservations: grep -r . {store.directory}",
            )
        first, *others = [_misplaced(call, store, address, held) for address in wrong]
        if not held:
            first.msg = f"host-local: Failed to find address added by container {call.container_id}"
        first.others = tuple(others)
        raise first


def _misplaced(call: Call, store: Store, address: Address, held: list[Address]) -> CheckFailed:
    """Return the difference: an address of prevResult that the attachment does not hold."""
    owner, path = store.owner_of(address), f"{store.directory}/{address}"
    reserve = f"printf '{call.container_id}\\r\\n{call.ifname}' >{quote(path)}"
    return CheckFailed(
        f'host-local: container {call.container_id} does not hold the address "{address}" of prevResult',
        f'expected: {call.container_id} {call.ifname} in "{path}", found: {" ".join(owner or ["not reserved"])}; '
        f"the container holds {', '.join(map(str, held)) or 'none'}",
        "another pod has the address too: delete one of the two and create it again" if owner else reserve,
    )


def status(call: Call, config: HostLocalConfig) -> None:
    """Check that every range set has a free address, and that it can be reserved. Raises: NotAvailable."""
    try:
        if _may_get_ranges(call, config):
            return
        range_sets = _range_sets(call, config)
        data_dir, network = _place(call, config)
        files.check_space(f"{data_dir}/{network}")
        names = frozenset(reserved_names(f"{data_dir}/{network}"))
        for range_set in range_sets:
            if not _has_free(data_dir, network, names, range_set):
                raise _exhausted(f"{data_dir}/{network}", range_set)
    except CniError as error:
        raise NotAvailable(error.msg, error.details, error.hint) from error


def usage(call: Call, config: HostLocalConfig) -> list[tuple[RangeSet, int]]:
    """Return each range set, and how many of its addresses have a file: arithmetic, by the names alone. Raises: CniError."""
    range_sets = _range_sets(call, config)
    data_dir, network = _place(call, config)
    addresses = [address for name in reserved_names(f"{data_dir}/{network}") if (address := as_address(name)) is not None]
    return [(range_set, sum(map(range_set.can_give, addresses))) for range_set in range_sets]


def gc(call: Call, config: HostLocalConfig) -> None:
    """Release addresses of stale attachments, and remove damaged files."""
    from cni_py.attachment.record import stale_test

    is_stale = stale_test(call)
    with Store(*_place(call, config)) as store:
        store.release([address for address, owner in store.reservations() if owner is None or is_stale(*owner)])


def _take(call: Call, store: Store, index: int, chosen: Choice) -> Choice:
    """Reserve the requested address."""
    address = chosen[1]
    if not store.reserve(address, call.container_id, call.ifname, index):
        raise AddressesExhausted(
            f"failed to allocate for range {index}: requested IP address {address} is not available in range set {chosen[0]}",
            f'"{store.directory}/{address}" is reserved by {" ".join(store.owner_of(address) or ["an unknown owner"])}',
        )
    return chosen


def _take_next(call: Call, store: Store, index: int, range_set: RangeSet) -> Choice:
    """Reserve the next free address after the last allocated one."""
    _refuse_second_address(call, store, index, range_set)
    for chosen in range_set.candidates(store.last_reserved(index)):
        if store.reserve(chosen[1], call.container_id, call.ifname, index):
            return chosen
    error = _exhausted(store.directory, range_set)
    raise AddressesExhausted(f"failed to allocate for range {index}: {error.msg}", error.details, error.hint)


def _of_before(call: Call, store: Store) -> list[Address]:
    """The addresses that the container had when its runtime was killed without DEL: it gets them again."""
    held = store.held_by(call.container_id, call.ifname) if call.is_return else []
    if held:
        note(f"{call.container_id} comes back: its sandbox of before no longer exists, it had {', '.join(map(str, held))}")
    return held


def _again(own: list[Address], range_set: RangeSet) -> Choice | None:
    """The first of them that the range set gives, with its range."""
    again = ((found, address) for address in own if range_set.can_give(address) and (found := range_set.range_of(address)))
    return next(again, None)


def _refuse_second_address(call: Call, store: Store, index: int, range_set: RangeSet) -> None:
    """Reject a second ADD without a DEL in between (spec, section 2, ADD)."""
    for address in store.held_by(call.container_id, call.ifname):
        if address in range_set:
            raise InvalidEnvironment(
                f"failed to allocate for range {index}: {address} has been allocated to {call.container_id}, "
                "duplicate allocation is not allowed",
                f'CNI_CONTAINERID and CNI_IFNAME: see "{store.directory}/{address}"',
                f"see the attachment: cni-py explain {call.container_id}",
            )


def _has_free(data_dir: str, network: str, names: frozenset[str], range_set: RangeSet) -> bool:
    """Return whether an address is free: by the number of files, by their names, and only if all have one, by their content."""
    if len(names) < range_set.capacity() or any(str(address) not in names for _, address in range_set.candidates()):
        return True
    with Store(data_dir, network) as store:
        return any(store.is_free(address) for _, address in range_set.candidates())


def _exhausted(directory: str, range_set: RangeSet) -> AddressesExhausted:
    return AddressesExhausted(
        f"no IP addresses available in range set: {range_set}",
        f'all {range_set.capacity()} addresses are reserved in "{directory}"',
        f"list the reservations with their container ids: grep -r . {directory}; remove those of deleted pods: cni-py sweep",
    )


def _place(call: Call, config: HostLocalConfig) -> tuple[str, str]:
    """dataDir and network. Raises: InvalidConfig."""
    check_network_name(call.network)
    data_dir = (config.ipam.data_dir if config.ipam else "") or DATA_DIR
    return _checked_path("ipam.dataDir", data_dir), call.network


def _checked_path(key: str, path: str) -> str:
    """An absolute path without doubled slashes. Raises: InvalidConfig."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not path.startswith("/") or ".." in parts or len(path) > MAX_PATH or not path.isprintable():
        raise InvalidConfig(
            f'"{key}" must be an absolute path without "..", not {path[:100]!r}',
            hint=f"at most {MAX_PATH} characters, all printable",
        )
    return "/" + "/".join(parts)


def _range_sets(call: Call, config: HostLocalConfig) -> tuple[RangeSet, ...]:
    """The range sets in order: the capability's, that of the old form, the configuration's. Raises: InvalidConfig."""
    ipam = _ipam(config)
    old_form: list[list[ConfiguredRange]] = [[ipam]] if ipam.subnet else []
    sets = [*config.runtime_config.ip_ranges, *old_form, *ipam.ranges]
    if not sets:
        raise InvalidConfig("no IP ranges specified", hint='set "ranges" of "ipam": [[{"subnet": "10.1.2.0/24"}]]')
    range_sets = parse_range_sets([[(r.subnet, r.range_start, r.range_end, r.gateway) for r in ranges] for ranges in sets])
    families = [range_set.version for range_set in range_sets]
    if call.cni_version in ("0.1.0", "0.2.0") and max(families.count(4), families.count(6)) > 1:
        raise InvalidConfig(f"CNI version {call.cni_version} does not support more than 1 address per family")
    return range_sets


def _ipam(config: HostLocalConfig) -> HostLocalIpam:
    """Raises: InvalidConfig."""
    if config.ipam is None:
        raise InvalidConfig("IPAM config missing 'ipam' key", hint='set "ipam": {"type": "host-local", "ranges": …}')
    return config.ipam


def _may_get_ranges(call: Call, config: HostLocalConfig) -> bool:
    """Return whether the only ranges are those that the runtime will pass with ADD (capability ``ipRanges``)."""
    capabilities = call.conf.get("capabilities")
    is_capable = isinstance(capabilities, dict) and capabilities.get("ipRanges") is True
    return is_capable and config.ipam is not None and not config.ipam.ranges and not config.ipam.subnet


def _requested(call: Call, config: HostLocalConfig) -> Requests:
    """Return the requested addresses, and the error if one cannot be allocated.

    From CNI_ARGS, ``args.cni.ips`` and the capability ``ips``. Raises: InvalidEnvironment, InvalidConfig.
    """
    out: Requests = {}
    address = _address_of_args(call)
    if address is not None:
        out[address] = InvalidEnvironment
    for text in (*config.args.cni.ips, *config.runtime_config.ips):
        out.setdefault(_parse_ip(text), InvalidConfig)
    return out


def _address_of_args(call: Call) -> Address | None:
    """``IP`` of CNI_ARGS, which may hold ``IgnoreUnknown`` besides. Raises: InvalidEnvironment.

    Go-compatible: containernetworking/cni pkg/types/args.go.
    """
    pairs = call.pairs()
    unknown = [f'"{key}={value}"' for key, value in pairs.items() if key not in ("IP", "IgnoreUnknown")]
    ignore = pairs.get("IgnoreUnknown", "").lower()
    if "IgnoreUnknown" in pairs and ignore not in ("1", "true", "0", "false"):
        pair = f'"IgnoreUnknown={pairs["IgnoreUnknown"]}"'
        words = f"boolean unmarshal error: invalid input {ignore}"
        raise InvalidEnvironment(f"ARGS: error parsing value of pair {pair}: {words}", "CNI_ARGS")
    if unknown and ignore not in ("1", "true"):
        raise InvalidEnvironment(f"ARGS: unknown args [{' '.join(unknown)}]", "CNI_ARGS", "add IgnoreUnknown=1 to CNI_ARGS")
    text = pairs.get("IP", "")
    try:
        return _parse_ip(text) if text else None
    except InvalidConfig as error:
        raise InvalidEnvironment(f'ARGS: error parsing value of pair "IP={text}": {error.msg}', "CNI_ARGS") from error


def _parse_ip(text: str) -> Address:
    """An address with or without a prefix, which says nothing here. Raises: InvalidConfig."""
    return parse_address(str(parse_cidr(text).ip) if "/" in text else text)


def _distribute(requested: Requests, range_sets: tuple[RangeSet, ...]) -> list[Choice | None]:
    """Return for each range set the requested address with its range, or None. Pure.

    Raises: the request's error, if it is a gateway's address or no set has a place for it.
    """
    left = dict(requested)
    out: list[Choice | None] = []
    for index, range_set in enumerate(range_sets):
        choices = ((r, address) for address in left if (r := range_set.range_of(address)))
        chosen = next(choices, None)
        out.append(chosen)
        if chosen is not None:
            error = left.pop(chosen[1])
            if chosen[0].gateway == chosen[1]:
                raise error(f"failed to allocate for range {index}: requested ip {chosen[1]} is subnet's gateway")
    if left:
        error = next(iter(left.values()))
        raise error(
            f"failed to allocate all requested IPs: {' '.join(map(str, left))}",
            f"each range set provides one address: {'; '.join(map(str, range_sets))}",
        )
    return out


def _dns(config: HostLocalConfig) -> DNS:
    """The settings of ``resolvConf``. Raises: IOFailure, InvalidConfig."""
    resolv_conf_path = _ipam(config).resolv_conf
    if not resolv_conf_path:
        return DNS()
    path = _checked_path("ipam.resolvConf", resolv_conf_path)
    try:
        text = files.read(path).decode(errors="replace")
    except OSError as error:
        raise IOFailure(f'could not read resolvConf "{path}"', error.strerror or "", errno=error.errno or 0) from error
    return DNS(*resolv_conf.parse(text))


def _routes(config: HostLocalConfig) -> tuple[Route, ...]:
    """Return the configured routes, for the result. Raises: InvalidConfig."""
    out = []
    for index, r in enumerate(_ipam(config).routes):
        try:
            gateway = parse_address(r.gw) if r.gw else None
            out.append(Route(parse_cidr(r.dst), gateway, r.mtu, r.advmss, r.priority, r.table, r.scope))
        except InvalidConfig as error:
            raise InvalidConfig(f'"ipam.routes[{index}]": {error.msg}', error.details) from error
    return tuple(out)
