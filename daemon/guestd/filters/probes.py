"""Packets that the rules of a machine block, and that may pass after a change of its filters.

Pure. For every rule that blocks, packets are made that it matches and that, if possible, no narrower rule names. A
packet can pass only by a new rule, or because the rule is gone that blocks it: no others are made. So one more address
in a filter that drops a thousand costs half a second.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from itertools import product

from guestd.filters import frame_match
from guestd.filters.model import Rule
from guestd.filters.packet_match import (
    OPPOSITE,
    Network,
    Packet,
    PacketRule,
    Range,
    find_deciding_rule,
    find_unknown,
    overlap,
    resolve_network,
)
from guestd.filters.rule_tree import BLOCKING, RuleTree, Work
from guestd.filters.variables import OWN_MAC, list_instances

# Addresses and ports that rules hardly name: of documentation (RFC 5737, RFC 3849), and the last ones.
_STRANGERS = {4: ("203.0.113.77", "198.51.100.77"), 6: ("2001:db8::77", "2001:db8:1::77")}
_EVERYWHERE = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
_PORTS = (0, 65535)
# The last stands for every protocol that no rule can name.
_PROTOCOLS = ("tcp", "udp", "icmp", "gre")
_WITH_PORTS = ("tcp", "udp", "sctp")
# Locally administered, and no address that libvirt gives.
_FALSE_MAC = "02:00:5e:00:53:01"
# What names more than a 128th of the ports (512), or a 256th of the addresses, is not what a packet avoids.
_WIDE_PORTS, _WIDE_NETWORK = 128, 256
# The variables of a machine's addresses.
OWN = ("IP", "IPV6")


def list_probes(was: RuleTree, becomes: RuleTree, work: Work) -> Iterator[Packet]:
    """Packets that the blocking rules of `was` match, and that may pass in `becomes`."""
    named = Named.of(was, becomes)
    old, new = _index_rules(was), _index_rules(becomes)
    kept = _find_kept(old, new)
    passing = [rule for key, rule in new.items() if key not in kept and (rule.unknown or rule.verdict not in BLOCKING)]
    gone = [rule for key, rule in old.items() if key not in kept and rule.verdict in BLOCKING]
    wide = {id(rule) for rule in passing if named.is_wide(rule)}
    frames = _find_changed_frames(was, becomes)
    for rule in old.values():
        if rule.verdict in BLOCKING and not rule.unknown:
            work.spend(1 + len(passing) + len(gone))
            meeting = [each for each in (*passing, *gone) if _meet(each, rule)]
            if not meeting and not frames:
                continue
            probed = [rule, *(_intersect(rule, each) for each in meeting if id(each) in wide)]
            for packet in (each for one in probed for each in probe_packets(one, named)):
                work.spend(1 + len(meeting) + len(frames))
                # Its frame may pass now, too, and an old rule accept the packet.
                if find_deciding_rule(packet, meeting) or any(frame_match.is_match(each, packet) for each in frames):
                    yield packet
    yield from _list_frame_probes(was, frames, named, work)


def _list_frame_probes(was: RuleTree, changed: Sequence[Rule], named: Named, work: Work) -> Iterator[Packet]:
    """As `list_probes`, of the rules for frames. A frame can pass only by what `_find_changed_frames` found."""
    for placed in was.placed if changed else ():
        if placed.rule.action in BLOCKING and placed.rule.is_link:
            for rule in list_instances(placed.rule, placed.variables):
                work.spend(1 + len(changed))
                meeting = [each for each in changed if _may_meet(each, rule)]
                if meeting and not find_unknown(rule, frame_match.EVALUATED):
                    for packet in probe_frames(rule, named):
                        work.spend(1 + len(meeting))
                        if any(frame_match.is_match(each, packet) for each in meeting):
                            yield packet


def _find_changed_frames(was: RuleTree, becomes: RuleTree) -> list[Rule]:
    """Rules of which one matches each frame that is dropped in `was` and passes in `becomes`.

    Those that are new and do not drop, those that are gone and dropped or returned, and of a chain that is new, gone or
    elsewhere the end, at which all its frames pass.
    """
    chains = [
        {(each.filter.chain, each.filter.priority, each.rule.direction) for each in tree.placed if each.rule.is_link}
        for tree in (was, becomes)
    ]
    if chains[0] != chains[1]:
        return [Rule("accept", "inout", 0, "")]
    old, new = _index_frames(was), _index_frames(becomes)
    kept = _find_kept(old, new)
    passing = [rule for key, rule in new.items() if key not in kept and rule.action not in (*BLOCKING, "continue")]
    gone = [rule for key, rule in old.items() if key not in kept and rule.action in (*BLOCKING, "return")]
    # What cannot be evaluated may match any frame of its kind.
    return [
        replace(each, matches=()) if find_unknown(each, frame_match.EVALUATED) else each for each in (*passing, *gone)
    ]


def _index_frames(tree: RuleTree) -> dict[Hashable, Rule]:
    """The rules of ebtables by their chains, in their order; a later equal one decides on nothing."""
    found: dict[Hashable, Rule] = {}
    for each in tree.placed:
        for rule in list_instances(each.rule, each.variables) if each.rule.is_link else ():
            bare = replace(rule, matches=tuple(match for match in rule.matches if match.name != "comment"))
            found.setdefault((each.filter.chain, each.filter.priority, bare), bare)
    return found


def _may_meet(one: Rule, two: Rule) -> bool:
    """Whether two rules for frames may match one frame; false where they name different senders."""
    senders = {one.value("srcmacaddr"), two.value("srcmacaddr")}
    return None in senders or len(senders) == 1


def _index_rules(tree: RuleTree) -> dict[Hashable, PacketRule]:
    """The rules of iptables by what they match and do, in their order; a later equal one decides on nothing."""
    found: dict[Hashable, PacketRule] = {}
    for each in tree.packet_rules:
        key = (
            each.direction, each.version, each.protocol, each.source, each.destination, each.source_ports,
            each.destination_ports, each.mac, each.states, each.answer, each.verdict, each.unknown,
        )  # fmt: skip
        found.setdefault(key, each)
    return found


def _find_kept(old: Iterable[Hashable], new: Collection[Hashable]) -> set[Hashable]:
    """Keys of both in the same order, as many as possible: a longest increasing sequence of their places in `new`."""
    places = {key: place for place, key in enumerate(new)}
    ends: list[int] = []
    tails: list[Hashable] = []
    before: dict[Hashable, Hashable] = {}
    for key in old:
        if (place := places.get(key)) is not None:
            length = bisect_left(ends, place)
            before[key] = tails[length - 1] if length else None
            ends[length : length + 1], tails[length : length + 1] = [place], [key]
    kept, last = set[Hashable](), tails[-1] if tails else None
    while last is not None:
        kept.add(last)
        last = before[last]
    return kept


def _meet(one: PacketRule, two: PacketRule) -> bool:
    return (one.direction, one.version) == (two.direction, two.version) and overlap(one, two)


def _intersect(one: PacketRule, two: PacketRule) -> PacketRule:
    """What both of two rules that meet match; of sender's addresses that of the first, if it names one."""
    states = [each.states for each in (one, two) if each.states is not None]
    return replace(
        one,
        protocol=two.protocol if one.protocol == "all" else one.protocol,
        source=_choose_narrower(one.source, two.source),
        destination=_choose_narrower(one.destination, two.destination),
        source_ports=_cut(one.source_ports, two.source_ports),
        destination_ports=_cut(one.destination_ports, two.destination_ports),
        mac=one.mac or two.mac,
        states=frozenset.intersection(*states) if states else None,
        answer=two.answer if one.answer is None else one.answer,
    )


def _choose_narrower(one: Network | None, two: Network | None) -> Network | None:
    if one is None or two is None:
        return one or two
    return max(one, two, key=lambda each: each.prefixlen)


def _cut(one: Range | None, two: Range | None) -> Range | None:
    if one is None or two is None:
        return one or two
    return max(one[0], two[0]), min(one[1], two[1])


@dataclass(frozen=True, slots=True)
class Named:
    """What rules name: networks, ranges of ports, protocols, and the machine's own addresses by version of IP.

    `chosen` are the addresses that were chosen of a network before.
    """

    networks: frozenset[Network]
    ports: frozenset[Range]
    protocols: Sequence[str]
    own: Mapping[int, str]
    chosen: dict[Network, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, *trees: RuleTree) -> Named:
        """What the rules of trees name."""
        rules = [rule for tree in trees for rule in tree.packet_rules]
        frames = [
            rule
            for tree in trees
            for each in tree.placed
            if each.rule.is_link
            for rule in list_instances(each.rule, each.variables)
            if not find_unknown(rule, frame_match.EVALUATED)
        ]
        sides = [network for rule in rules for network in (rule.source, rule.destination)]
        sides += [_frame_network(rule, side) for rule in frames for side in ("src", "dst")]
        values = {value for tree in trees for each in tree.placed for name, value in each.variables if name in OWN}
        own: dict[int, str] = {ip_address(value).version: value for value in sorted(values) if _is_address(value)}
        ports = (ports for rule in rules for ports in (rule.source_ports, rule.destination_ports))
        protocols = dict.fromkeys((*_PROTOCOLS, *(rule.protocol for rule in rules if rule.protocol != "all")))
        return cls(
            frozenset(each for each in sides if each), frozenset(each for each in ports if each), [*protocols], own
        )

    def is_wide(self, rule: PacketRule) -> bool:
        """Whether a rule passes new connections, or packets without one, that no narrower rule may name.

        A source port is what the sender chooses: to the machine, a rule that names no other port passes all.
        """
        if rule.answer or not (rule.states is None or rule.states & {"NEW", "INVALID"}):
            return False
        if rule.mac not in (None, OWN_MAC) or not self._is_wide_network(rule.source, rule.version):
            return False
        if not self._is_wide_network(rule.destination, rule.version):
            return False
        ports = rule.destination_ports
        if ports is None and rule.direction == "out":
            ports = rule.source_ports
        return ports is None or (ports[1] - ports[0]) * _WIDE_PORTS >= _PORTS[1] - _PORTS[0]

    def _is_wide_network(self, network: Network | None, version: int) -> bool:
        if network is None or network.num_addresses * _WIDE_NETWORK >= _EVERYWHERE[version].num_addresses:
            return True
        return network.num_addresses == 1 and str(network[0]) == self.own.get(version)

    def choose_addresses(self, network: Network | None, version: int) -> list[str]:
        """Addresses within: the machine's own, one of the widest narrower network, one of none of them if possible."""
        within = _EVERYWHERE[version] if network is None else network
        if within not in self.chosen:
            self.chosen[within] = self._choose_addresses(within, version)
        return self.chosen[within]

    def _choose_addresses(self, within: Network, version: int) -> list[str]:
        size = within.num_addresses
        if size == 1:
            return [str(within[0])]
        narrower = [each for each in self.networks if each.version == version and each.prefixlen > within.prefixlen]
        inner = sorted(
            (each for each in narrower if each.network_address in within), key=lambda net: (net.prefixlen, net)
        )
        widest = [*inner[:1], *(each for each in inner[1:2] if each.num_addresses * _WIDE_NETWORK >= size)]
        others = [within[number] for number in (size // 2, size - 1, size // 3, 0, min(1, size - 1))]
        candidates = [each for each in (*map(ip_address, _STRANGERS[version]), *others) if each in within]
        free = [each for each in candidates if not any(each in net for net in inner)]
        own = [each for each in (self.own.get(version),) if each and ip_address(each) in within]
        return list(dict.fromkeys([*own, *(str(each[-1]) for each in widest), str((free or candidates)[0])]))

    def choose_port(self, ports: Range | None) -> int:
        """A port within that narrower ranges do not contain, if there is one."""
        first, last = _PORTS if ports is None else ports
        if first == last:
            return first
        narrower = [each for each in self.ports if (each[1] - each[0]) * _WIDE_PORTS < last - first]
        ends = [(first + last) // 2, last, first, *(edge for low, high in narrower for edge in (low - 1, high + 1))]
        candidates = [each for each in ends if first <= each <= last]
        return next((each for each in candidates if not any(low <= each <= high for low, high in narrower)), first)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def probe_packets(rule: PacketRule, named: Named) -> Iterator[Packet]:
    """Packets that a rule of iptables matches."""
    state = "NEW" if rule.states is None or "NEW" in rule.states else min(rule.states)
    source_port, destination_port = named.choose_port(rule.source_ports), named.choose_port(rule.destination_ports)
    for protocol in named.protocols if rule.protocol == "all" else (rule.protocol,):
        packet = _make_packet(rule.direction, protocol, source_port, destination_port)
        packet = replace(packet, state=state, answer=bool(rule.answer))
        sources = named.choose_addresses(rule.source, rule.version)
        destinations = named.choose_addresses(rule.destination, rule.version)
        yield from _vary(packet, sources, destinations, rule.mac)
        if rule.states is None:
            yield from _vary(replace(packet, state="INVALID"), sources[:1], destinations[:1], rule.mac)


def probe_frames(rule: Rule, named: Named) -> Iterator[Packet]:
    """Packets whose frames a rule of ebtables matches."""
    directions = OPPOSITE if rule.direction == "inout" else (rule.direction,)
    for version, protocol in _list_frame_kinds(rule, named.protocols):
        sides = [named.choose_addresses(_frame_network(rule, side), version) for side in ("src", "dst")]
        port = named.choose_port(None)
        for direction in directions:
            sources, destinations = sides[::-1] if (rule.direction, direction) == ("inout", "out") else sides
            packet = _make_packet(direction, protocol, port, port)
            yield from _vary(packet, sources, destinations, rule.value("srcmacaddr"))


def _make_packet(direction: str, protocol: str, source_port: int, destination_port: int) -> Packet:
    """A packet without addresses; without ports where its protocol has none."""
    ports = (source_port, destination_port) if protocol in _WITH_PORTS else (None, None)
    return Packet(direction, protocol, "", "", *ports)


def _vary(packet: Packet, sources: Sequence[str], destinations: Sequence[str], mac: str | None) -> Iterator[Packet]:
    """The packet between these addresses, the machine's own first on its side.

    It comes from the MAC address that a rule names, else from the right and a false one.
    """
    if packet.direction == "in":
        sources = sources[::-1]
    else:
        destinations = destinations[::-1]
    macs = {None: (None, _FALSE_MAC), OWN_MAC: (None,)}.get(mac, (mac,))
    for source, destination, sender in product(sources, destinations, macs):
        yield replace(packet, source=source, destination=destination, mac=sender)


def _list_frame_kinds(rule: Rule, protocols: Sequence[str]) -> Iterable[tuple[int, str]]:
    """The versions of IP and protocols of packets that a rule for frames may match."""
    match rule.protocol:
        case "ip":
            return product((4,), protocols)
        case "ipv6":
            return product((6,), protocols)
        case "" | "mac":
            return *product((4, 6), protocols), *((4, each) for each in frame_match.WITHOUT_IP)
        case _:
            return ((4, rule.protocol),)


def _frame_network(rule: Rule, side: str) -> Network | None:
    return resolve_network(rule, frame_match.name_side(rule, side))
