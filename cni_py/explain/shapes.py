"""Shapes of the journal's commands: what each is for, and why it is made. A table, pure.

A command is recognised by its words alone (``recognise.py``), so the code that makes a change does not have to say what it is
for. Every ``with step(…)`` of this suite has a row; a command that has none is shown as it is, in the group :data:`OTHER`.
"""

from __future__ import annotations

from dataclasses import dataclass

Keys = tuple[str, ...]
Row = tuple[str, str, str] | tuple[str, str, str, Keys] | tuple[str, str, str, Keys, str]
"""Columns of the table, without the group."""

GROUPS = {
    "record": "Record of the attachment",
    "configuration": "Configuration of the delegate",
    "directory": "Directories",
    "bridge": "Bridge",
    "veth": "Pair of interfaces (veth)",
    "interface": "Interface of the pod",
    "device": "Device of the host",
    "reservation": "Reservation of the address",
    "lease": "Lease of the address (DHCP)",
    "address": "Addresses",
    "neighbour": "Neighbours (ARP, NDP)",
    "route": "Routes",
    "rule": "Policy rules",
    "vlan": "VLANs",
    "vrf": "VRF",
    "forwarding": "Forwarding",
    "sysctl": "Kernel parameters",
    "masquerade": "Masquerade",
    "hostport": "Host ports",
    "mac": "Check of MAC addresses",
    "firewall": "Firewall",
    "shaping": "Limits of bandwidth",
    "connections": "Known connections",
    "tunnel": "Tunnel between nodes",
    "fdb": "Which node has which MAC address (FDB)",
    "peer": "Peers of WireGuard",
    "state": "State on disk",
    "other": "Other changes",
}
"""Groups of changes, with the headings under which they are shown. The names are stable: programs read them."""
OTHER = "other"

ADD, DEL, GC = "section 2, ADD", "section 2, DEL", "section 2, GC"
DELEGATION = "section 4, plugin delegation"
CONVENTIONS = "conventions: "


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape of commands.

    Attributes:
        pattern: ``{name}`` is one word of the command, ``{/name}`` for a part of a path, ``{*name}`` for any text, and
            ``{name:a|b}`` for one of these; all else is literal.
        what: a sentence with the same names.
        why: a sentence.
        keys: of the configuration, which may have asked for the change; the first that is set has.
        section: of the CNI specification.
    """

    group: str
    pattern: str
    what: str
    why: str
    keys: tuple[str, ...] = ()
    section: str = ""

    @property
    def is_of_link(self) -> bool:
        """Return whether it is part of making the link that it names, whose group counts then."""
        return self.pattern in _OF_LINK


@dataclass(frozen=True, slots=True)
class Recognised:
    """A command, recognised. ``netns``: the namespace in which it runs; "": that of the host."""

    shape: Shape
    what: str
    words: dict[str, str]
    netns: str = ""


def _rows(group: str, *rows: Row) -> list[Shape]:
    return [Shape(group, *row) for row in rows]


_ADDRESS = "[0-9]+[.][0-9.]+|[0-9a-f]*:[0-9a-f:.]*"
_GATEWAY = ("isDefaultGateway", "isGateway")
_MTU = ("mtu",)
_RANGES = ("ipam.ranges", "ipam.subnet", "ipam.addresses", "runtimeConfig.ips", "ipam.type")
_ROUTES = ("ipam.routes", "isDefaultGateway", "ipam.type")
_PORTS = ("runtimeConfig.portMappings",)
_LIMITS = ("runtimeConfig.bandwidth", "ingressRate", "egressRate")

ON_HOST: tuple[Shape, ...] = (
    Shape(
        "address",
        "ip addr add {address}{*options} dev {link}",
        "Give {address} to {link}.",
        "It is the gateway of the pods: what they send to elsewhere comes to the node here.",
        _GATEWAY,
    ),
    Shape(
        "interface",
        "ip link set {link} address {mac}",
        "Fix the MAC address of {link}: {mac}.",
        "A bridge takes that of one of its ports otherwise, and pods would have to learn another one whenever a port is added.",
        ("mac",),
    ),
    Shape(
        "route",
        "ip route {verb:add|append|replace} {*route} dev {link}",
        "Add the route {route} over {link}.",
        "The node finds the pod behind this link.",
        ("type",),
        ADD,
    ),
)
"""Rows that are tried first for what a plugin does in the host's namespace."""

OF_DAEMON: tuple[Shape, ...] = (
    *_rows(
        "address",
        (
            "ip addr add {address}{*options} dev {link}",
            "Give {address} to {link}.",
            "What the node itself sends to pods of other nodes comes from it, and the replies reach it.",
        ),
    ),
    *_rows(
        "route",
        (
            "ip route {verb:add|replace} {dst} {*route}",
            "Route {dst} {route}.",
            "The lease of another node has that subnet: its pods are there.",
        ),
        (
            "ip route {verb:del|delete} {*route}",
            "Delete the route {route}.",
            "No lease that is followed has that subnet any more.",
        ),
    ),
    *_rows(
        "neighbour",
        (
            "ip neigh {verb:add|replace} {address} lladdr {mac} dev {link}{*more}",
            "Let {link} know {address} by the MAC address {mac}.",
            "The other node publishes it in its lease, so it is not asked for with each packet.",
        ),
    ),
    *_rows(
        "fdb",
        (
            "bridge fdb {verb:add|replace|append} {mac} dev {link} dst {node}{*more}",
            "Let {link} send frames for {mac} to the node {node}.",
            "The other node publishes both in its lease.",
        ),
    ),
    *_rows(
        "state",
        (
            "install -m {mode} /dev/stdin {*directory}/subnet.env",
            "Write {directory}/subnet.env.",
            "The plugin flannel reads the node's subnet and MTU there; without it no pod starts.",
        ),
        (
            "install -m {mode} /dev/stdin {*directory}/flanneld{/name}",
            "Save the leases in {directory}/flanneld{name}.",
            "A start without the datastore forwards by what is saved there.",
        ),
    ),
)
"""Rows that are tried first for what flanneld does."""

_OF_LINK = frozenset(
    {
        "sysctl -w net/ipv6/conf/{link}/accept_dad={value}",
        "sysctl -w net/ipv6/conf/{link}/{name}={value}",
        "sysctl -w net/ipv4/conf/{link}/arp_notify={value}",
        "ip link set {link} up",
        "ip link set {link} down",
        "ip link set {link} address {mac}",
        "ip link set {link} mtu {mtu}{*more}",
        "ip link set {link} promisc {onoff}",
        "ip link set {link} arp {onoff}",
        "ip link set {port} up type bridge_slave hairpin {hairpin} isolated {isolated}",
    }
)
"""Shapes that are part of making the link that they name."""

SHAPES: tuple[Shape, ...] = (
    # ---- state on disk ------------------------------------------------------------------------
    *_rows(
        "record",
        (
            "install -m {mode} /dev/stdin /run/cni-py/{/directory}/{name}",
            "Write the record of the attachment {name}.",
            "By it DEL and GC find what to delete, even if the node loses power now; so it comes before any other change.",
            (),
            ADD,
        ),
        (
            "install -m {mode} /dev/stdin /run/cni-py/boot-id",
            "Remember that this boot was begun with a sweep.",
            "The first call of a boot removes what pods of the boot before have left; once is enough.",
        ),
        (
            "rm -f /run/cni-py/{/directory}/{name}",
            "Delete the record of the attachment {name}.",
            "Nothing is left that it names.",
            (),
            DEL,
        ),
        ("mkdir -p -m {mode} /run/cni-py{*rest}", "Create the directory of the records.", "Only root may look into it."),
    ),
    *_rows(
        "reservation",
        (
            "> {*directory}/last_reserved_ip.{/set}",
            "Remember the last address that was given.",
            "The next pod gets the one after it: an address that has just become free rests for a while.",
            _RANGES,
        ),
        (
            "install -m {mode} /dev/stdin {*directory}/last_reserved_ip.{/set}",
            "Remember the last address that was given.",
            "The next pod gets the one after it: an address that has just become free rests for a while.",
            _RANGES,
        ),
        (
            "install -m {mode} /dev/stdin {*directory}/{/address:[0-9]+[.][0-9.]+|[0-9a-f]*:[0-9a-f:.]*}",
            "Reserve {address}.",
            "The file is the reservation: its name is the address, its content the owner; no other pod of this node gets it.",
            _RANGES,
            DELEGATION,
        ),
        (
            "rm -f {*directory}/{/network}/{/address:[0-9]+[.][0-9.]+|[0-9a-f]*:[0-9a-f:.]*}",
            "Give {address} back.",
            "The next pod may have it.",
            (),
            DEL,
        ),
        (
            "mkdir -p -m {mode} /var/lib/cni/networks{*network}",
            "Create the directory of the reservations.",
            "host-local has a file for each address in it.",
        ),
    ),
    *_rows(
        "record",
        (
            "install -m {mode} /dev/stdin {*directory}/results/{/name}",
            "Keep the result of ADD in {directory}/results/{name}.",
            "The runtime passes it to CHECK and DEL, with the arguments that ADD had.",
            (),
            "section 3, cached results",
        ),
        (
            "rm -f {*directory}/results/{/name}",
            "Delete the cached result {name}.",
            "The attachment does not exist any more.",
            (),
        ),
    ),
    *_rows(
        "configuration",
        (
            "install -m {mode} /dev/stdin /var/lib/cni/flannel/{name}",
            "Save the configuration that flannel gives to its delegate.",
            "DEL uses this file: subnet.env may have changed, or may not exist.",
            ("delegate", "type"),
            DELEGATION,
        ),
        (
            "rm -f /var/lib/cni/flannel/{name}",
            "Delete the saved configuration of the delegate.",
            "The delegate has deleted all of it.",
            (),
            DEL,
        ),
        (
            "mkdir -p -m {mode} /var/lib/cni/flannel",
            "Create the directory of saved configurations.",
            "Only root may look into it.",
        ),
    ),
    # ---- links --------------------------------------------------------------------------------
    *_rows(
        "bridge",
        (
            "ip link add {bridge}{*options} type bridge{*more}",
            "Create the bridge {bridge}.",
            "It is the switch to which every pod of the network on this node is connected; the first pod creates it.",
            ("bridge", "type"),
            ADD,
        ),
        (
            "ip link set {port} up type bridge_slave hairpin {hairpin} isolated {isolated}",
            "Set {port} up as a port of the bridge: hairpin {hairpin}, isolated {isolated}.",
            "With hairpin a pod reaches itself through a host port of its own; isolated ports do not see each other.",
            ("hairpinMode", "portIsolation"),
        ),
        (
            "ip link set {link} promisc {onoff}",
            "Set {link} to receive frames for any MAC address ({onoff}).",
            "A bridge that does so takes part in the traffic of its ports without hairpin.",
            ("promiscMode", "promisc"),
        ),
        (
            "ip link set {link} master {bridge}",
            "Make {link} a port of {bridge}.",
            "What comes in there goes on to the other ports.",
            ("bridge", "vrfname", "type"),
        ),
        ("ip link set {link} nomaster", "Take {link} out of its bridge or VRF.", "It belongs to no other link.", ()),
    ),
    *_rows(
        "veth",
        (
            (
                "ip link add {host}{*options} type veth peer name {ifname}{*more} netns {netns}"
                " && ip link property add dev {named} altname {mark}"
            ),
            "Create a cable with two ends: {host} on the host, {ifname} in {netns}.",
            "The pod gets an interface, and the host can forward to it. The host's end says whose it is: {mark}.",
            ("ifname", "type"),
            ADD,
        ),
        (
            "ip link add {host}{*options} type veth peer name {gateway}{*more}",
            "Create {host} in the bridge and {gateway}, which has the gateway's address in the VLAN.",
            "A bridge that filters VLANs reaches the host's own addresses by such a pair.",
            ("vlan", "isGateway"),
        ),
    ),
    *_rows(
        "vrf",
        (
            "ip link add {vrf} type vrf table {table}",
            "Create the VRF {vrf} with the routing table {table}.",
            "Its interfaces have routes of their own.",
            ("vrfname", "table"),
        ),
    ),
    *_rows(
        "shaping",
        (
            "ip link add {ifb} mtu {mtu} type ifb && ip link set {named} up alias {alias}",
            "Create {ifb}, a device that only delays.",
            "The kernel limits what an interface sends, not what it receives: what the pod sends is led through this device.",
            _LIMITS,
            CONVENTIONS + "bandwidth",
        ),
        (
            "tc qdisc replace dev {link} root handle 1: tbf rate {rate} burst {burst} limit {limit}",
            "Let {link} send {rate} at most (bytes per second), and {burst} bytes at once.",
            "A token bucket: packets that come faster wait, and are dropped when too many wait.",
            _LIMITS,
            CONVENTIONS + "bandwidth",
        ),
        ("tc qdisc del dev {link} root", "Remove the limit of {link}.", "It sends as fast as it can.", _LIMITS),
        (
            "tc qdisc add dev {link} handle ffff: ingress",
            "Prepare {link} for a filter on what it receives.",
            "The filter that comes next needs it.",
            _LIMITS,
        ),
        (
            (
                "tc filter add dev {link} parent ffff: protocol all prio {prio} u32 match u32 0 0"
                " action mirred egress redirect dev {ifb}"
            ),
            "Lead all that comes from the pod through {ifb}.",
            "There its limit is.",
            _LIMITS,
        ),
        (
            "tc filter del dev {link} parent ffff: prio {prio}",
            "Delete the filter of {link} that led its packets elsewhere.",
            "The one that comes next is in its place.",
            _LIMITS,
        ),
        (
            "tc qdisc del dev {link} ingress",
            "Remove the filter of {link}.",
            "What comes from the pod no longer takes the way over the ifb.",
            _LIMITS,
        ),
    ),
    *_rows(
        "interface",
        (
            "ip link add {ifname} link {master} netns {netns}{*options} type {kind}{*more}",
            "Create {ifname} in {netns}: a {kind} of {master}.",
            "The pod is in the network of {master} itself, with no bridge between them.",
            ("master", "type", "mode"),
            ADD,
        ),
        (
            "ip link add {ifname} netns {netns}{*options} type {kind}{*more}",
            "Create {ifname} in {netns}: a {kind}.",
            "The pod needs the interface that the runtime asked for.",
            ("type",),
            ADD,
        ),
        (
            "ip tuntap add dev {ifname} mode {mode}{*options}",
            "Create {ifname}: a {mode} device.",
            "A program, as a virtual machine, reads and writes its packets.",
            ("type", "multiQueue", "owner", "group"),
            ADD,
        ),
        (
            "ip link set {link} up",
            "Set {link} up.",
            "Before that it carries no packet, and routes over it are refused.",
            (),
            ADD,
        ),
        ("ip link set {link} down", "Set {link} down.", "Some of its properties can be changed only so.", ()),
        (
            "ip link set {link} address {mac}",
            "Set the MAC address of {link} to {mac}.",
            "The configuration or the runtime asked for it, or it has to stay the same.",
            ("mac", "runtimeConfig.mac", "args.cni.mac"),
        ),
        (
            "ip link set {link} mtu {mtu}{*more}",
            "Set the largest packet of {link} to {mtu} bytes.",
            "Larger ones would not fit through the tunnel between nodes, or the wire.",
            _MTU,
        ),
        (
            "ip link set {link} name {name}",
            "Rename {link} to {name}.",
            "The runtime chose the name (CNI_IFNAME).",
            (),
            "section 2, parameters",
        ),
        (
            "ip link set {link} allmulticast {onoff}",
            "Let {link} receive every multicast packet ({onoff}).",
            "A program in the pod listens to several groups.",
            ("allmulti",),
        ),
        (
            "ip link set {link} txqueuelen {packets}",
            "Let {packets} packets wait in {link}.",
            "The configuration asked for that length of its queue.",
            ("txQLen",),
        ),
        (
            "ip link set {link} arp {onoff}",
            "Let {link} answer ARP ({onoff}).",
            "A device of another program may have been left without.",
            (),
        ),
        ("ip link del {link}", "Delete the link {link}.", "Its other end, its addresses and its routes go with it.", (), DEL),
    ),
    *_rows(
        "device",
        (
            "ip link set {link} netns {netns} name {name} alias {alias}",
            "Move {link} to {netns}, as {name}.",
            "A device of the host is lent; its alias keeps the name that it had, for the way back.",
            ("device", "hwaddr", "kernelpath", "pciBusID", "runtimeConfig.deviceID"),
            ADD,
        ),
        (
            "ip link set {link} alias {alias}",
            "Note on {link}: {alias}.",
            "The alias says whose the device is, or what it was called.",
            (),
        ),
    ),
    *_rows(
        "vlan",
        (
            "bridge vlan add dev {port} vid {vlan}{*more}",
            "Let {port} have VLAN {vlan}.",
            "The port belongs to it; untagged frames do, where it is the native one.",
            ("vlan", "vlanTrunk", "preserveDefaultVlan"),
        ),
        (
            "bridge vlan del dev {port} vid {vlan}{*more}",
            "Take VLAN {vlan} from {port}.",
            "The kernel gives VLAN 1 to every new port.",
            ("preserveDefaultVlan", "vlan", "vlanTrunk"),
        ),
    ),
    # ---- addresses and routes -----------------------------------------------------------------
    *_rows(
        "address",
        (
            "ip addr add {address}{*options} dev {link}",
            "Give {address} to {link}.",
            "IPAM has reserved it for this interface.",
            _RANGES,
            ADD,
        ),
        (
            "ip addr del {address} dev {link}",
            "Take {address} from {link}.",
            "The address is of another subnet, or of a pod that is deleted.",
            ("forceAddress",),
        ),
        (
            "sysctl -w net/ipv6/conf/{link}/accept_dad={value}",
            "Skip the search for duplicates of IPv6 addresses on {link}.",
            "IPAM has seen to it already; the pod would wait more than a second for nothing.",
            ("enabledad",),
        ),
        (
            "sysctl -w net/ipv6/conf/{link}/{name}={value}",
            "Set {name} of {link} to {value}.",
            "Its IPv6 addresses are given to it, and stay; no router's advertisement adds others.",
        ),
        (
            "sysctl -w net/ipv4/conf/{link}/arp_notify={value}",
            "Let {link} announce its address when it comes up.",
            "Neighbours that know the address of a former pod learn the new MAC address at once.",
        ),
    ),
    *_rows(
        "route",
        (
            "ip route del {dst} dev {link} proto kernel",
            "Delete the route to {dst} that the kernel made.",
            "Packets to the pod's neighbours are to go by the gateway.",
            (),
        ),
        ("ip route del {*route} dev {link}", "Delete the route {route}.", "Nothing that it leads to is left.", ()),
        (
            "ip route {verb:add|append|replace} {*route} dev {link}",
            "Add the route {route} over {link}.",
            "Without it the kernel would not know which way packets to there go.",
            _ROUTES,
            ADD,
        ),
        (
            "ip route {verb:add|append|replace|del|delete} {*route}",
            "Change the route ({verb}): {route}.",
            "Packets to there take this way, or no longer.",
            _ROUTES,
        ),
    ),
    *_rows(
        "rule",
        (
            "ip {family} rule add {*rule}",
            "Add the rule: packets {rule}.",
            "Replies leave by the interface by which the question came.",
            ("table", "type"),
        ),
        (
            "ip {family} rule del {*rule}",
            "Delete the rule: packets {rule}.",
            "The interface that it was for is deleted, or has another address.",
            ("table", "type"),
        ),
    ),
    *_rows(
        "neighbour",
        (
            "ip neigh {verb:add|replace|del|delete} {*entry}",
            "Change the neighbour ({verb}): {entry}.",
            "The node knows the MAC address behind an address without asking for it.",
            (),
        ),
    ),
    *_rows(
        "fdb",
        (
            "bridge fdb {verb:add|replace|del|delete|append} {*entry}",
            "Change the FDB entry ({verb}): {entry}.",
            "The tunnel sends frames for this MAC address to that node.",
            (),
        ),
    ),
    # ---- kernel parameters --------------------------------------------------------------------
    *_rows(
        "forwarding",
        (
            "sysctl -w net/ipv4/ip_forward={value}",
            "Let this node forward IPv4.",
            "Packets of pods to other nodes and to the outside pass through it as through a router.",
            _GATEWAY,
        ),
        (
            "sysctl -w net/ipv6/conf/{link:all|default}/forwarding={value}",
            "Let this node forward IPv6.",
            "Packets of pods to other nodes and to the outside pass through it as through a router.",
            _GATEWAY,
        ),
        (
            "sysctl -w net/ipv4/conf/{link}/forwarding={value}",
            "Let packets from {link} be forwarded.",
            "Packets of pods pass through this node as through a router.",
            _GATEWAY,
        ),
    ),
    *_rows(
        "hostport",
        (
            "sysctl -w net/ipv4/conf/{link}/route_localnet={value}",
            "Let {link} carry packets of 127.0.0.1.",
            "Host ports work on 127.0.0.1 too; a rule keeps pods away from all else that listens there.",
            _PORTS,
        ),
    ),
    *_rows(
        "sysctl",
        (
            "sysctl -w {name}={value}",
            "Set the kernel parameter {name} to {value}.",
            "The configuration or the kind of network asked for it.",
            ("sysctl",),
        ),
    ),
    # ---- the packet filter --------------------------------------------------------------------
    *_rows(
        "connections",
        (
            "conntrack -D {*which}",
            "Forget connections to the host port: {which}.",
            "The kernel would go on translating them as before the port changed.",
            _PORTS,
        ),
    ),
    *_rows(
        "firewall",
        (
            "firewall-cmd --zone={zone} --add-source={source}",
            "Put {source} into the zone {zone} of firewalld.",
            "It then lets the pod's packets pass.",
            ("firewalldZone", "backend"),
        ),
        (
            "firewall-cmd --zone={zone} --remove-source={source}",
            "Take {source} out of the zone {zone} of firewalld.",
            "The address may be another pod's.",
            ("firewalldZone", "backend"),
        ),
    ),
    # ---- between nodes ------------------------------------------------------------------------
    *_rows(
        "tunnel",
        (
            "ip link set {link} type vxlan {*options}",
            "Change the VXLAN device {link}: {options}.",
            "Its options are those of the network configuration.",
            (),
        ),
        (
            "ip link add {link}{*options} type {kind:vxlan|wireguard|ipip|ip6tnl|sit|tun}{*more}",
            "Create the tunnel {link} ({kind}).",
            "Packets between pods of different nodes go through it.",
            ("Backend.Type",),
        ),
        (
            "wg set {link} listen-port {port} private-key {*key}",
            "Give {link} its key, and the UDP port {port}.",
            "Peers know this node by its public key.",
            ("Backend.ListenPort",),
        ),
    ),
    *_rows(
        "peer",
        ("wg set {link} peer {peer} remove", "Remove the peer {peer}.", "Its node has no lease any more.", ()),
        (
            "wg set {link} {*peers}",
            "Set the peers of {link}.",
            "Each node with a lease is one; its pods' subnet is what it may send from.",
            (),
        ),
    ),
    # ---- files, in general --------------------------------------------------------------------
    *_rows(
        "state",
        (
            "install -m {mode} /dev/stdin {path}",
            "Write {path}.",
            "Other programs, and this one when it starts again, read it.",
            (),
        ),
        ("install /dev/stdin {path}", "Write {path}.", "Other programs, and this one when it starts again, read it.", ()),
        ("tee -a {path}", "Append to {path}.", "A start without the datastore forwards by what is saved there.", ()),
        ("rm -f {path}", "Delete {path}.", "Nothing needs it any more.", ()),
        ("mkdir -p -m {mode} {path}", "Create the directory {path}.", "What is written next is in it.", ()),
    ),
)
"""Rows in the order in which they are tried."""
