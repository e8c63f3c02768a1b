"""Which machines a plan makes more open: something that their filters block now would pass.

Pure. For every rule that blocks, packets are made that it matches and that, if possible, no narrower rule names; the
trees before and after decide on each. So a new rule that accepts one port opens nothing here, and a lost reference to a
filter that drops everything does, whatever else the machine includes.

Where the rules for frames stay, a packet can pass only by a new rule, or because the rule is gone that blocks it: other
packets are not tried. So one more address in a filter that drops a thousand costs half a second.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from itertools import product

from guestd.filters import frame_match
from guestd.filters.graph import list_edges, list_includers, reach
from guestd.filters.model import Filter, Reference, Rule
from guestd.filters.packet_match import (
    OPPOSITE,
    Network,
    Packet,
    PacketRule,
    PlacedRule,
    Range,
    build_packet_rules,
    find_deciding_rule,
    find_unknown,
    order_rules,
    overlap,
    resolve_network,
)
from guestd.filters.snapshot import is_stand_in
from guestd.filters.variables import OWN_MAC, NotEvaluated, NotInstallable, list_instances

BLOCKING = ("drop", "reject")
# Addresses and ports that rules hardly name: of documentation (RFC 5737, RFC 3849), and the last ones.
_STRANGERS = {4: ("203.0.113.77", "198.51.100.77"), 6: ("2001:db8::77", "2001:db8:1::77")}
_EVERYWHERE = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
_PORTS = (0, 65535)
_PROTOCOLS = ("tcp", "udp", "icmp")
_WITH_PORTS = ("tcp", "udp", "sctp")
# Locally administered, and no address that libvirt gives.
_FALSE_MAC = "02:00:5e:00:53:01"
# Comparisons of a packet with a rule for one plan: ten seconds of a thread, a minute where most rules are for frames.
MAX_COMPARISONS = 10_000_000
# A range of half of the ports is not what a packet avoids. Of networks of a 256th of the addresses two are tried.
_WIDE_PORTS, _WIDE_NETWORK = 2, 256
# Frames that `Packet` does not describe: their rules are compared as they are.
_OTHER_FRAMES = ("rarp", "vlan", "stp")


@dataclass(frozen=True, slots=True)
class _Tree:
    """The rules of a machine, in order, as ebtables and iptables have them."""

    placed: Sequence[PlacedRule]
    packet_rules: Sequence[PacketRule]

    @property
    def frames(self) -> list[Hashable]:
        """All that decides on frames."""
        links = [each for each in self.placed if each.rule.is_link]
        return [(each.filter.chain, each.filter.priority, each.rule, each.variables) for each in links]

    def blocks(self, packet: Packet, work: _Work) -> bool:
        work.spend(len(self.placed) + len(self.packet_rules))
        return frame_match.decide(packet, self.placed, self.packet_rules).action in BLOCKING


@dataclass(slots=True)
class _Work:
    """The comparisons that may still be made."""

    left: int = MAX_COMPARISONS

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise NotEvaluated(f"more than {MAX_COMPARISONS} comparisons of packets with rules")


def find_opened(tops: Collection[str], before: Mapping[str, Filter], after: Mapping[str, Filter]) -> dict[str, str]:
    """The filters of `tops` that would pass what they block now, each with a sentence on what that is.

    `before` and `after` are all of libvirt's filters. What cannot be evaluated afterwards counts as passing.
    """
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    includers = list_includers({**list_edges(before), **list_edges(after)})
    for name, targets in list_includers(list_edges(before)).items():
        includers.setdefault(name, []).extend(targets)
    # Machines of a department differ in their addresses only, so one of them is judged.
    judged: dict[tuple[object, object], str | None] = {}
    found, work = {}, _Work()
    unread = {name for name, each in before.items() if is_stand_in(each)}
    for top in sorted({*reach(changed, includers)} & {*tops} & before.keys() & after.keys()):
        key = _without_addresses(before[top]), _without_addresses(after[top])
        if key not in judged:
            judged[key] = _find_opening(top, before, after, work)
        if (opening := judged[key] or _find_lost(unread, top, before, after)) is not None:
            found[top] = opening
    return found


def _find_lost(unread: set[str], top: str, before: Mapping[str, Filter], after: Mapping[str, Filter]) -> str | None:
    """A filter that cannot be read and would not be included any more: what it blocks is unknown."""
    if not unread:
        return None
    lost = unread.intersection(reach([top], list_edges(before))) - {*reach([top], list_edges(after))}
    return f"it would not include {min(lost)} any more, which cannot be read now" if lost else None


def _without_addresses(definition: Filter) -> object:
    entries = [
        (each.target, tuple(name for name, _ in each.parameters)) if isinstance(each, Reference) else each
        for each in definition.entries
    ]
    return definition.chain, definition.priority, tuple(entries)


def _find_opening(top: str, before: Mapping[str, Filter], after: Mapping[str, Filter], work: _Work) -> str | None:
    try:
        was = _build_tree(before[top], before)
    except NotInstallable:
        return None  # libvirt enforces nothing of it
    except NotEvaluated as exc:
        return f"what it blocks now cannot be evaluated: {exc}"
    try:
        becomes = _build_tree(after[top], after)
        for packet in dict.fromkeys(_list_probes(was, becomes, work)):
            if not becomes.blocks(packet, work) and was.blocks(packet, work):
                return f"{_describe(packet)} would pass, and is blocked now"
    except NotEvaluated as exc:
        return f"what it would block cannot be evaluated: {exc}"
    lost = _list_unprobed(was) - _list_unprobed(becomes)
    return f"the rule {min(map(str, lost))} would be gone" if lost else None


def _build_tree(top: Filter, filters: Mapping[str, Filter]) -> _Tree:
    placed = order_rules(top, filters)
    return _Tree(placed, build_packet_rules(placed))


def _list_unprobed(tree: _Tree) -> set[Rule]:
    """The blocking rules of which no packet can be made."""
    frames = (each for each in tree.placed if each.rule.is_link and each.rule.action in BLOCKING)
    return {each.placed.rule for each in tree.packet_rules if each.unknown and each.verdict in BLOCKING} | {
        each.rule
        for each in frames
        if each.rule.protocol in _OTHER_FRAMES
        or any(find_unknown(rule, frame_match.EVALUATED) for rule in list_instances(each.rule, each.variables))
    }


def _list_probes(was: _Tree, becomes: _Tree, work: _Work) -> Iterator[Packet]:
    """Packets that the blocking rules of `was` match, and that may pass in `becomes`."""
    named = _Named.of(was, becomes)
    old, new = _index_rules(was), _index_rules(becomes)
    kept = _find_kept(old, new) if was.frames == becomes.frames else set()
    passing = [rule for key, rule in new.items() if key not in kept and (rule.unknown or rule.verdict not in BLOCKING)]
    gone = [rule for key, rule in old.items() if key not in kept and rule.verdict in BLOCKING]
    for rule in old.values():
        if rule.verdict in BLOCKING and not rule.unknown:
            work.spend(1 + len(passing) + len(gone))
            meeting = [each for each in (*passing, *gone) if _meet(each, rule)]
            for packet in _probe_packets(rule, named) if meeting else ():
                work.spend(1 + len(meeting))
                if find_deciding_rule(packet, meeting) is not None:
                    yield packet
    for placed in was.placed:
        if placed.rule.action in BLOCKING and placed.rule.is_link:
            for each in list_instances(placed.rule, placed.variables):
                if not find_unknown(each, frame_match.EVALUATED):
                    yield from _probe_frames(each, named)


def _index_rules(tree: _Tree) -> dict[Hashable, PacketRule]:
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


@dataclass(frozen=True, slots=True)
class _Named:
    """What rules name: networks, ranges of destination ports, and the machine's own addresses by version of IP.

    `chosen` are the addresses that were chosen of a network before.
    """

    networks: frozenset[Network]
    ports: frozenset[Range]
    own: Mapping[int, str]
    chosen: dict[Network, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, *trees: _Tree) -> _Named:
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
        values = {value for tree in trees for each in tree.placed for name, value in each.variables if name in _OWN}
        own: dict[int, str] = {ip_address(value).version: value for value in sorted(values) if _is_address(value)}
        ports = (ports for rule in rules for ports in (rule.source_ports, rule.destination_ports))
        return cls(frozenset(each for each in sides if each), frozenset(each for each in ports if each), own)

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


_OWN = ("IP", "IPV6")


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _probe_packets(rule: PacketRule, named: _Named) -> Iterator[Packet]:
    state = "NEW" if rule.states is None or "NEW" in rule.states else min(rule.states)
    source_port, destination_port = named.choose_port(rule.source_ports), named.choose_port(rule.destination_ports)
    for protocol in _PROTOCOLS if rule.protocol == "all" else (rule.protocol,):
        packet = _make_packet(rule.direction, protocol, source_port, destination_port)
        packet = replace(packet, state=state, answer=bool(rule.answer))
        sources = named.choose_addresses(rule.source, rule.version)
        destinations = named.choose_addresses(rule.destination, rule.version)
        yield from _vary(packet, sources, destinations, rule.mac)
        if rule.states is None:
            yield from _vary(replace(packet, state="INVALID"), sources[:1], destinations[:1], rule.mac)


def _probe_frames(rule: Rule, named: _Named) -> Iterator[Packet]:
    directions = OPPOSITE if rule.direction == "inout" else (rule.direction,)
    for version, protocol in _list_frame_kinds(rule):
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


def _list_frame_kinds(rule: Rule) -> Iterable[tuple[int, str]]:
    """The versions of IP and protocols of packets that a rule for frames may match."""
    match rule.protocol:
        case "ip":
            return ((4, "tcp"),)
        case "ipv6":
            return ((6, "tcp"),)
        case "arp":
            return ((4, "arp"),)
        case "" | "mac":
            return (4, "tcp"), (6, "tcp"), (4, "arp")
        case _:
            return ()


def _frame_network(rule: Rule, side: str) -> Network | None:
    return resolve_network(rule, f"arp{side}" if rule.protocol == "arp" else side)


def _describe(packet: Packet) -> str:
    def end(address: str, port: int | None) -> str:
        return address if port is None else f"{f'[{address}]' if ':' in address else address}:{port}"

    source, destination = end(packet.source, packet.source_port), end(packet.destination, packet.destination_port)
    return f"{packet.protocol} {packet.direction} from {source} to {destination}"
