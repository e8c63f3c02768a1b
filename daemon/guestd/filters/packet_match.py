"""Which rule decides on a packet: the rules of a tree of filters as libvirt hands them to the kernel.

Pure. Measured on libvirt 9.0 (docs/filters.md): rules of the root chain come before those of all others, whatever their
priority, then priority decides. A rule makes lines on both ways: an accepting one tracks the connection that it lets be
opened and takes back its answers only; one that drops, rejects or returns holds on both ways, unless it names states.
What no line decides is let through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import combinations

from guestd.filters.model import ROOT, Filter, Rule, is_ipv6

Network = IPv4Network | IPv6Network
Range = tuple[int, int]
OPPOSITE = {"in": "out", "out": "in"}


@dataclass(frozen=True, slots=True)
class Placed:
    """A rule in its place in the order of a tree, with the filter that it is of; variables have their values."""

    filter: Filter
    rule: Rule
    variables: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Line:
    """What the kernel is told: `way` is in (to the guest) or out. What is None matches anything."""

    way: str
    version: int
    protocol: str
    source: Network | None
    destination: Network | None
    source_ports: Range | None
    destination_ports: Range | None
    mac: str | None
    states: frozenset[str] | None
    answer: bool | None
    verdict: str
    placed: Placed


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet on its way; `state` is the kernel's word for its connection, `answer` that it goes back to who began.

    Of protocol arp, the addresses are those in its header. `mac` is the sender's: without one, the machine sends under
    its own, and others under one that no rule names.
    """

    way: str
    protocol: str
    source: str
    destination: str
    source_port: int | None = None
    destination_port: int | None = None
    state: str = "NEW"
    answer: bool = False
    mac: str | None = None

    def is_sent_by(self, mac: str) -> bool:
        """Whether its sender has the MAC address that a rule names, $MAC being the machine's own."""
        return (self.way == "out" and self.mac is None) if mac == "$MAC" else mac == self.mac


def ordered(top: Filter, filters: Mapping[str, Filter]) -> list[Placed]:
    """All rules of a tree in the order in which they match."""
    found: list[Placed] = []
    _collect(top, (), filters, found)
    return sorted(found, key=lambda each: (each.filter.chain != ROOT, each.rule.priority))


def _collect(
    current: Filter, variables: tuple[tuple[str, str], ...], filters: Mapping[str, Filter], found: list[Placed]
) -> None:
    found += [Placed(current, rule, variables) for rule in current.rules]
    for reference in current.references:
        if reference.target in filters:
            _collect(filters[reference.target], variables + reference.parameters, filters, found)


def lines(placed: Sequence[Placed]) -> list[Line]:
    """What iptables and ip6tables are told, in order; the rules of ebtables make none."""
    return [line for each in placed if not each.rule.is_link for line in _lines_of(each)]


def _lines_of(placed: Placed) -> Iterator[Line]:
    rule = placed.rule
    way = "out" if rule.direction == "out" else "in"
    states = rule.value("state") if rule.is_stateful else None
    for line in _plain_lines(placed, way):
        back = _back(line)
        if states is not None:
            named = frozenset(states.split(","))
            yield replace(line, states=named)
            if rule.direction == "inout" and back is not None:
                yield replace(back, states=named)
        elif rule.is_stateful and rule.action == "accept" and rule.direction != "inout":
            yield replace(line, states=frozenset({"NEW", "ESTABLISHED"}), answer=False)
            if back is not None:
                yield replace(back, states=frozenset({"ESTABLISHED"}), answer=True)
        else:
            yield line
            if back is not None:
                yield back


def _plain_lines(placed: Placed, way: str) -> Iterator[Line]:
    """One line for each value of the variable that the rule names; none while that has no value."""
    rule = placed.rule
    version = 6 if is_ipv6(rule.protocol) else 4
    variable = "IPV6" if version == 6 else "IP"
    uses = any(match.value == f"${variable}" for match in rule.matches)
    values = [value for name, value in placed.variables if name == variable] if uses else [""]
    for value in dict.fromkeys(values):
        yield Line(
            way=way,
            version=version,
            protocol={"icmpv6": "icmp"}.get(rule.protocol, rule.protocol.removesuffix("-ipv6")),
            source=network(rule, "src", value),
            destination=network(rule, "dst", value),
            source_ports=_ports(rule, "src"),
            destination_ports=_ports(rule, "dst"),
            mac=rule.value("srcmacaddr"),
            states=None,
            answer=None,
            verdict=rule.action,
            placed=placed,
        )


def _back(line: Line) -> Line | None:
    """The same on the other way; None where nothing but the sender's MAC, which the way back has not, was named."""
    turned = replace(
        line,
        way=OPPOSITE[line.way],
        source=line.destination,
        destination=line.source,
        source_ports=line.destination_ports,
        destination_ports=line.source_ports,
        mac=None,
    )
    conditions = (turned.source, turned.destination, turned.source_ports, turned.destination_ports)
    return None if line.mac is not None and all(each is None for each in conditions) else turned


def network(rule: Rule, side: str, value: str) -> Network | None:
    """The addresses of one side that a rule names, `value` being that of its variable; None for any, or no value."""
    address = rule.value(f"{side}ipaddr")
    if address is None or (address.startswith("$") and not value):
        return None
    mask = rule.value(f"{side}ipmask")
    return ip_network(
        f"{value if address.startswith('$') else address}{'' if mask is None else f'/{mask}'}", strict=False
    )


def _ports(rule: Rule, side: str) -> Range | None:
    first = rule.value(f"{side}portstart")
    return None if first is None else (int(first), int(rule.value(f"{side}portend") or first))


def decides(packet: Packet, told: Sequence[Line]) -> Line | None:
    """The first line that matches a packet; None when none does and it is let through."""
    return next((line for line in told if _is_match(line, packet)), None)


def _is_match(line: Line, packet: Packet) -> bool:
    source, destination = ip_address(packet.source), ip_address(packet.destination)
    return (
        line.way == packet.way
        and line.version == source.version
        and line.protocol in ("all", packet.protocol)
        and (line.source is None or source in line.source)
        and (line.destination is None or destination in line.destination)
        and _is_within(packet.source_port, line.source_ports)
        and _is_within(packet.destination_port, line.destination_ports)
        and (line.mac is None or packet.is_sent_by(line.mac))
        and (line.states is None or packet.state in line.states)
        and line.answer in (None, packet.answer)
    )


def _is_within(port: int | None, ports: Range | None) -> bool:
    return ports is None or (port is not None and ports[0] <= port <= ports[1])


def contradictions(told: Sequence[Line]) -> list[tuple[Line, Line]]:
    """Pairs of lines of one place in the order that decide differently on some packet."""
    groups: dict[tuple[object, ...], list[Line]] = {}
    for line in told:
        is_root = line.placed.filter.chain == ROOT
        groups.setdefault((line.way, line.version, is_root, line.placed.rule.priority), []).append(line)
    pairs = (pair for group in groups.values() for pair in combinations(group, 2))
    return [(one, two) for one, two in pairs if one.verdict != two.verdict and _overlap(one, two)]


def _overlap(one: Line, two: Line) -> bool:
    return (
        (one.protocol == two.protocol or "all" in (one.protocol, two.protocol))
        and _nets_meet(one.source, two.source)
        and _nets_meet(one.destination, two.destination)
        and _ranges_meet(one.source_ports, two.source_ports)
        and _ranges_meet(one.destination_ports, two.destination_ports)
        and (one.states is None or two.states is None or bool(one.states & two.states))
        and (one.mac is None or two.mac is None or one.mac == two.mac)
        and (one.answer is None or two.answer is None or one.answer == two.answer)
    )


def _nets_meet(one: Network | None, two: Network | None) -> bool:
    return one is None or two is None or one.overlaps(two)


def _ranges_meet(one: Range | None, two: Range | None) -> bool:
    return one is None or two is None or (one[0] <= two[1] and two[0] <= one[1])
