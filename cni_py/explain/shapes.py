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
        "Assign {address} to {link}.",
        "It is the pods' gateway: what they send beyond their subnet arrives at the node here.",
        _GATEWAY,
    ),
    Shape(
        "interface",
        "ip link set {link} address {mac}",
        "Fix the MAC address of {link}: {mac}.",
        "Otherwise a bridge takes that of one of its ports, and pods would have to learn another one whenever a port is added.",
        ("mac",),
    ),
    Shape(
        "route",
        "ip route {verb:add|append|replace} {*route} dev {link}",
        "Add the route {route} through {link}.",
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
            "Assign {address} to {link}.",
            "Packets of the node itself to pods of other nodes have it as their source, so that replies find the way back.",
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
            "Enter {mac} as the MAC address of {address} on {link}.",
            "The other node publishes it in its lease, so the kernel need not ask for it.",
        ),
    ),
    *_rows(
        "fdb",
        (
            "bridge fdb {verb:add|replace|append} {mac} dev {link} dst {node}{*more}",
            "Send frames for {mac} through {link} to the node {node}.",
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
            "If flanneld starts while the datastore is unreachable, it uses what is saved there.",
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
            "DEL and GC find in it what to delete, even if the node loses power now; so it is written before any other change.",
            (),
            ADD,
        ),
        (
            "install -m {mode} /dev/stdin /run/cni-py/boot-id",
            "Remember that leaked resources were removed after this boot.",
            "The first call after a boot removes what the pods of the boot before it have left; once is enough.",
        ),
        (
            "rm -f /run/cni-py/{/directory}/{name}",
            "Delete the record of the attachment {name}.",
            "Nothing that it names is left.",
            (),
            DEL,
        ),
        ("mkdir -p -m {mode} /run/cni-py{*rest}", "Create the directory of the records.", "Only root may read it."),
    ),
    *_rows(
        "reservation",
        (
            "> {*directory}/last_reserved_ip.{/set}",
            "Remember the last address that was given.",
            "The next pod gets the one after it, so that a released address is not used again at once.",
            _RANGES,
        ),
        (
            "install -m {mode} /dev/stdin {*directory}/last_reserved_ip.{/set}",
            "Remember the last address that was given.",
            "The next pod gets the one after it, so that a released address is not used again at once.",
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
            "Release {address}.",
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
            "Save the configuration that flannel passes to its delegate.",
            "DEL uses this file: subnet.env may have changed, or may not exist.",
            ("delegate", "type"),
            DELEGATION,
        ),
        (
            "rm -f /var/lib/cni/flannel/{name}",
            "Delete the saved configuration of the delegate.",
            "DEL of the delegate has succeeded, and nothing needs it any more.",
            (),
            DEL,
        ),
        (
            "mkdir -p -m {mode} /var/lib/cni/flannel",
            "Create the directory of saved configurations.",
            "Only root may read it.",
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
            "It is an alternative to hairpin mode, for a pod that reaches itself through a Service.",
            ("promiscMode", "promisc"),
        ),
        (
            "ip link set {link} master {bridge}",
            "Make {link} a port of {bridge}.",
            "Frames that arrive there are forwarded to the other ports.",
            ("bridge", "vrfname", "type"),
        ),
        ("ip link set {link} nomaster", "Take {link} out of its bridge or VRF.", "It no longer belongs to that link.", ()),
    ),
    *_rows(
        "veth",
        (
            (
                "ip link add {host}{*options} type veth peer name {ifname}{*more} netns {netns}"
                " && ip link property add dev {named} altname {mark}"
            ),
            "Create a veth, a cable with two ends: {host} on the host, {ifname} in {netns}.",
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
            "Create {ifb}, a device that only queues packets.",
            "The kernel shapes what an interface sends, not what it receives, so what the pod sends goes through this device.",
            _LIMITS,
            CONVENTIONS + "bandwidth",
        ),
        (
            "tc qdisc replace dev {link} root handle 1: tbf rate {rate} burst {burst} limit {limit}",
            "Let {link} send {rate} at most (bytes per second), and {burst} bytes at once.",
            "A token bucket: packets that come faster are queued, and dropped when the queue is full.",
            _LIMITS,
            CONVENTIONS + "bandwidth",
        ),
        ("tc qdisc del dev {link} root", "Remove the limit of {link}.", "It sends as fast as it can.", _LIMITS),
        (
            "tc qdisc add dev {link} handle ffff: ingress",
            "Prepare {link} for a filter on what it receives.",
            "The filter that is added next needs it.",
            _LIMITS,
        ),
        (
            (
                "tc filter add dev {link} parent ffff: protocol all prio {prio} u32 match u32 0 0"
                " action mirred egress redirect dev {ifb}"
            ),
            "Redirect everything that comes from the pod through {ifb}.",
            "Its limit is applied there.",
            _LIMITS,
        ),
        (
            "tc filter del dev {link} parent ffff: prio {prio}",
            "Delete the filter of {link} that redirected its packets.",
            "The next one replaces it.",
            _LIMITS,
        ),
        (
            "tc qdisc del dev {link} ingress",
            "Remove the filter of {link}.",
            "What comes from the pod no longer passes through the ifb.",
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
            "A program, such as a virtual machine, reads and writes its packets.",
            ("type", "multiQueue", "owner", "group"),
            ADD,
        ),
        (
            "ip link set {link} up",
            "Set {link} up.",
            "Until then it carries no packets, and the kernel refuses routes through it.",
            (),
            ADD,
        ),
        ("ip link set {link} down", "Set {link} down.", "Some of its properties can be changed only while it is down.", ()),
        (
            "ip link set {link} address {mac}",
            "Set the MAC address of {link} to {mac}.",
            "The configuration or the runtime asked for it, or it has to stay the same.",
            ("mac", "runtimeConfig.mac", "args.cni.mac"),
        ),
        (
            "ip link set {link} mtu {mtu}{*more}",
            "Set the MTU of {link} to {mtu} bytes.",
            "Larger packets would not fit through the tunnel between nodes, or the wire.",
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
            "A program in the pod receives many multicast groups.",
            ("allmulti",),
        ),
        (
            "ip link set {link} txqueuelen {packets}",
            "Set the queue length of {link} to {packets} packets.",
            "The configuration asks for it.",
            ("txQLen",),
        ),
        (
            "ip link set {link} arp {onoff}",
            "Let {link} answer ARP ({onoff}).",
            "Another program may have turned it off.",
            (),
        ),
        (
            "ip link del {link}",
            "Delete the link {link}.",
            "The kernel deletes its other end, its addresses and its routes with it.",
            (),
            DEL,
        ),
    ),
    *_rows(
        "device",
        (
            "ip link set {link} netns {netns} name {name} alias {alias}",
            "Move {link} to {netns}, as {name}.",
            "A device of the host is lent to the pod; its alias keeps its name, which DEL restores.",
            ("device", "hwaddr", "kernelpath", "pciBusID", "runtimeConfig.deviceID"),
            ADD,
        ),
        (
            "ip link set {link} alias {alias}",
            "Set the alias of {link}: {alias}.",
            "The alias is the owner of the device, or its former name.",
            (),
        ),
    ),
    *_rows(
        "vlan",
        (
            "bridge vlan add dev {port} vid {vlan}{*more}",
            "Add VLAN {vlan} to {port}.",
            "The port is a member of it; untagged frames belong to it if it is the native VLAN.",
            ("vlan", "vlanTrunk", "preserveDefaultVlan"),
        ),
        (
            "bridge vlan del dev {port} vid {vlan}{*more}",
            "Remove VLAN {vlan} from {port}.",
            "The kernel gives VLAN 1 to every new port.",
            ("preserveDefaultVlan", "vlan", "vlanTrunk"),
        ),
    ),
    # ---- addresses and routes -----------------------------------------------------------------
    *_rows(
        "address",
        (
            "ip addr add {address}{*options} dev {link}",
            "Assign {address} to {link}.",
            "IPAM has reserved it for this interface.",
            _RANGES,
            ADD,
        ),
        (
            "ip addr del {address} dev {link}",
            "Remove {address} from {link}.",
            "It belongs to another subnet, or to a pod that is being deleted.",
            ("forceAddress",),
        ),
        (
            "sysctl -w net/ipv6/conf/{link}/accept_dad={value}",
            "Turn off duplicate address detection for IPv6 on {link}.",
            "IPAM never gives an address to two pods; the pod would wait more than a second for nothing.",
            ("enabledad",),
        ),
        (
            "sysctl -w net/ipv6/conf/{link}/{name}={value}",
            "Set {name} of {link} to {value}.",
            "Its IPv6 addresses are assigned and kept; router advertisements must not add others.",
        ),
        (
            "sysctl -w net/ipv4/conf/{link}/arp_notify={value}",
            "Let {link} announce its address when it comes up.",
            "Neighbours that remember the MAC address of its former owner learn the new one at once.",
        ),
    ),
    *_rows(
        "route",
        (
            "ip route del {dst} dev {link} proto kernel",
            "Delete the route to {dst} that the kernel added.",
            "Packets to the pod's neighbours have to go through the gateway.",
            (),
        ),
        ("ip route del {*route} dev {link}", "Delete the route {route}.", "Nothing that it leads to is left.", ()),
        (
            "ip route {verb:add|append|replace} {*route} dev {link}",
            "Add the route {route} through {link}.",
            "Without it the kernel would not know where to send these packets.",
            _ROUTES,
            ADD,
        ),
        (
            "ip route {verb:add|append|replace|del|delete} {*route}",
            "Change the route ({verb}): {route}.",
            "Packets to this destination take this route, or no longer do.",
            _ROUTES,
        ),
    ),
    *_rows(
        "rule",
        (
            "ip {family} rule add {*rule}",
            "Add the rule: packets {rule}.",
            "Replies leave through the interface on which the request arrived.",
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
            "The node knows the MAC address of this neighbour without asking for it.",
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
            "It is the router of its pods, for packets to other nodes and to the outside.",
            _GATEWAY,
        ),
        (
            "sysctl -w net/ipv6/conf/{link:all|default}/forwarding={value}",
            "Let this node forward IPv6.",
            "It is the router of its pods, for packets to other nodes and to the outside.",
            _GATEWAY,
        ),
        (
            "sysctl -w net/ipv4/conf/{link}/forwarding={value}",
            "Let packets from {link} be forwarded.",
            "The node is the router of its pods.",
            _GATEWAY,
        ),
    ),
    *_rows(
        "hostport",
        (
            "sysctl -w net/ipv4/conf/{link}/route_localnet={value}",
            "Let {link} carry packets of 127.0.0.1.",
            "Host ports work on 127.0.0.1 too; a rule keeps pods away from everything else that listens there.",
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
            "Delete the tracked connections to the host port: {which}.",
            "Otherwise the kernel would translate them as before the change.",
            _PORTS,
        ),
    ),
    *_rows(
        "firewall",
        (
            "firewall-cmd --zone={zone} --add-source={source}",
            "Add {source} to the zone {zone} of firewalld.",
            "It then lets the pod's packets pass.",
            ("firewalldZone", "backend"),
        ),
        (
            "firewall-cmd --zone={zone} --remove-source={source}",
            "Remove {source} from the zone {zone} of firewalld.",
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
            "Each node with a lease is a peer, which may send from its pods' subnet.",
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
        (
            "tee -a {path}",
            "Append to {path}.",
            "If flanneld starts while the datastore is unreachable, it uses what is saved there.",
            (),
        ),
        ("rm -f {path}", "Delete {path}.", "Nothing needs it any more.", ()),
        ("mkdir -p -m {mode} {path}", "Create the directory {path}.", "The next file is written there.", ()),
    ),
)
"""Rows in the order in which they are tried."""
