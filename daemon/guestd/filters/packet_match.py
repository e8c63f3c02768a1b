"""Which rule decides on a packet: the rules of a tree of filters, as libvirt installs them in iptables.

Pure. Measured on libvirt 9.0 (docs/filters.md): rules of the root chain come before those of all other chains, then
priority decides. libvirt installs each rule in both directions. An accepting rule accepts new connections in its own
direction and only their answers in the other. A rule that drops, rejects or returns applies to both directions unless
it names states. A packet that no rule matches passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import combinations

from guestd.filters.model import ROOT, Filter, Reference, Rule, is_ipv6

Network = IPv4Network | IPv6Network
Range = tuple[int, int]
Variables = tuple[tuple[str, str], ...]
OPPOSITE = {"in": "out", "out": "in"}


@dataclass(frozen=True, slots=True)
class PlacedRule:
    """A rule at its position in a tree, with its filter and the values of the variables there."""

    filter: Filter
    rule: Rule
    variables: Variables


@dataclass(frozen=True, slots=True)
class PacketRule:
    """A rule of iptables: `direction` is in (to the guest) or out. None matches anything."""

    direction: str
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
    placed: PlacedRule


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet; `state` is that of its connection in the kernel, `answer` that it goes back to the connection's opener.

    The addresses of protocol arp are those in its header. `mac` is the sender's address: without it, the machine sends
    from its own, and others from one that no rule names.
    """

    direction: str
    protocol: str
    source: str
    destination: str
    source_port: int | None = None
    destination_port: int | None = None
    state: str = "NEW"
    answer: bool = False
    mac: str | None = None

    def is_sent_by(self, mac: str) -> bool:
        """Whether the sender has the MAC address that a rule names; $MAC is the machine's own."""
        return (self.direction == "out" and self.mac is None) if mac == "$MAC" else mac == self.mac


def order_rules(top: Filter, filters: Mapping[str, Filter]) -> list[PlacedRule]:
    """All rules of a tree in the order in which they match."""
    found: list[PlacedRule] = []
    _collect(top, (), filters, found)
    return sorted(found, key=lambda each: (each.filter.chain != ROOT, each.rule.priority))


def _collect(current: Filter, variables: Variables, filters: Mapping[str, Filter], found: list[PlacedRule]) -> None:
    for each in current.entries:
        if isinstance(each, Rule):
            found.append(PlacedRule(current, each, variables))
        elif each.target in filters:
            _collect(filters[each.target], _pass_on(variables, each), filters, found)


def _pass_on(variables: Variables, reference: Reference) -> Variables:
    """The variables within an included filter: what the includer has itself overrides what it passes."""
    names = {name for name, _ in variables}
    return variables + tuple(each for each in reference.parameters if each[0] not in names)


def build_packet_rules(placed: Sequence[PlacedRule]) -> list[PacketRule]:
    """The rules of iptables and ip6tables, in order; rules for ebtables are left out."""
    return [packet_rule for each in placed if not each.rule.is_link for packet_rule in _both_directions(each)]


def _both_directions(placed: PlacedRule) -> Iterator[PacketRule]:
    rule = placed.rule
    direction = "out" if rule.direction == "out" else "in"
    states = rule.value("state") if rule.is_stateful else None
    for forward in _forward_rules(placed, direction):
        back = _reverse(forward)
        if states is not None:
            named = frozenset(states.split(","))
            yield replace(forward, states=named)
            if rule.direction == "inout" and back is not None:
                yield replace(back, states=named)
        elif rule.is_stateful and rule.action == "accept" and rule.direction != "inout":
            yield replace(forward, states=frozenset({"NEW", "ESTABLISHED"}), answer=False)
            if back is not None:
                yield replace(back, states=frozenset({"ESTABLISHED"}), answer=True)
        else:
            yield forward
            if back is not None:
                yield back


def _forward_rules(placed: PlacedRule, direction: str) -> Iterator[PacketRule]:
    """One rule for each value of the variable that the rule names; none where the variable has no value."""
    rule = placed.rule
    version = 6 if is_ipv6(rule.protocol) else 4
    variable = "IPV6" if version == 6 else "IP"
    uses = any(match.value == f"${variable}" for match in rule.matches)
    values = [value for name, value in placed.variables if name == variable] if uses else [""]
    for value in dict.fromkeys(values):
        yield PacketRule(
            direction=direction,
            version=version,
            protocol={"icmpv6": "icmp"}.get(rule.protocol, rule.protocol.removesuffix("-ipv6")),
            source=resolve_network(rule, "src", value),
            destination=resolve_network(rule, "dst", value),
            source_ports=_ports(rule, "src"),
            destination_ports=_ports(rule, "dst"),
            mac=rule.value("srcmacaddr"),
            states=None,
            answer=None,
            verdict=rule.action,
            placed=placed,
        )


def _reverse(forward: PacketRule) -> PacketRule | None:
    """The rule of the other direction; None where the sender's MAC is the only condition: answers do not have it."""
    reverse = replace(
        forward,
        direction=OPPOSITE[forward.direction],
        source=forward.destination,
        destination=forward.source,
        source_ports=forward.destination_ports,
        destination_ports=forward.source_ports,
        mac=None,
    )
    conditions = (reverse.source, reverse.destination, reverse.source_ports, reverse.destination_ports)
    return None if forward.mac is not None and all(each is None for each in conditions) else reverse


def resolve_network(rule: Rule, side: str, value: str) -> Network | None:
    """The addresses of one side of a rule, with `value` for its variable; None for any address, or without a value."""
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


def find_deciding_rule(packet: Packet, packet_rules: Sequence[PacketRule]) -> PacketRule | None:
    """The first rule that matches a packet; None where none does and the packet passes."""
    return next((rule for rule in packet_rules if _is_match(rule, packet)), None)


def _is_match(rule: PacketRule, packet: Packet) -> bool:
    source, destination = ip_address(packet.source), ip_address(packet.destination)
    return (
        rule.direction == packet.direction
        and rule.version == source.version
        and rule.protocol in ("all", packet.protocol)
        and (rule.source is None or source in rule.source)
        and (rule.destination is None or destination in rule.destination)
        and _is_within(packet.source_port, rule.source_ports)
        and _is_within(packet.destination_port, rule.destination_ports)
        and (rule.mac is None or packet.is_sent_by(rule.mac))
        and (rule.states is None or packet.state in rule.states)
        and rule.answer in (None, packet.answer)
    )


def _is_within(port: int | None, ports: Range | None) -> bool:
    return ports is None or (port is not None and ports[0] <= port <= ports[1])


def find_contradictions(packet_rules: Sequence[PacketRule]) -> list[tuple[PacketRule, PacketRule]]:
    """Pairs of rules at the same position in the order that decide differently on some packet."""
    groups: dict[tuple[object, ...], list[PacketRule]] = {}
    for rule in packet_rules:
        is_root = rule.placed.filter.chain == ROOT
        groups.setdefault((rule.direction, rule.version, is_root, rule.placed.rule.priority), []).append(rule)
    pairs = (pair for group in groups.values() for pair in combinations(group, 2))
    return [(one, two) for one, two in pairs if one.verdict != two.verdict and _overlap(one, two)]


def _overlap(one: PacketRule, two: PacketRule) -> bool:
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
