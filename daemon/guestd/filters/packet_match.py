"""Which rule decides on a packet: the rules of a tree of filters, as libvirt installs them in iptables.

Pure. Measured on libvirt 9.0 (docs/filters.md): rules of the root chain come before those of all other chains, then
priority decides. libvirt installs each rule in both directions. An accepting rule accepts new connections in its own
direction and only their answers in the other. A rule that drops, rejects or returns applies to both directions unless
it names states. A packet that no rule matches passes. libvirt knows more conditions than rows can have: where such a
condition decides, the answer is that guestd cannot evaluate it, and never a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import combinations, product
from typing import Any

from guestd.filters.graph import MAX_TREE_ENTRIES
from guestd.filters.model import ROOT, STATES, Filter, Match, Reference, Rule, is_ipv6, is_mac
from guestd.filters.variables import OWN_MAC, NotEvaluated, Variables, list_instances, pass_on

Network = IPv4Network | IPv6Network
Range = tuple[int, int]
OPPOSITE = {"in": "out", "out": "in"}
UNKNOWN = "unknown"
# libvirt has many further conditions that rows cannot have, such as dscp.
ADDRESSES = frozenset({"srcmacaddr", "srcipaddr", "srcipmask", "dstipaddr", "dstipmask"})
EVALUATED = ADDRESSES | {"srcportstart", "srcportend", "dstportstart", "dstportend", "state"}
_STATES = frozenset(STATES) - {"NONE"}
# The same few addresses are compared with hundreds of rules.
parse_address = lru_cache(1024)(ip_address)


@dataclass(frozen=True, slots=True)
class PlacedRule:
    """A rule at its position in a tree, with its filter and the values of the variables there."""

    filter: Filter
    rule: Rule
    variables: Variables


@dataclass(frozen=True, slots=True)
class PacketRule:
    """A rule of iptables: `direction` is in (to the guest) or out. None matches anything.

    `unknown` is what guestd cannot evaluate of it, or empty: the rule may match less than its other fields do.
    """

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
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to a packet: accept, return, drop, reject, or UNKNOWN with the reason in `unknown`.

    `rule` decides, or may decide where the action is UNKNOWN; None where no rule does and the packet passes.
    """

    action: str
    rule: PlacedRule | None = None
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet; `state` is that of its connection in the kernel, `answer` that it goes back to the connection's opener.

    The addresses of arp and rarp are those in their headers; rarp, vlan, stp and other are frames without IP. `mac` is
    the sender's address: without it, the machine sends from its own, and others from one that no rule names.
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
        return (self.direction == "out" and self.mac is None) if mac == OWN_MAC else mac == self.mac


def order_rules(top: Filter, filters: Mapping[str, Filter]) -> list[PlacedRule]:
    """All rules of a tree in the order in which they match.

    Raises NotEvaluated where a filter includes itself, and for trees larger than MAX_TREE_ENTRIES: neither is ever in
    libvirt.
    """
    found = [PlacedRule(*each) for each in _walk(top, filters)]
    return sorted(found, key=lambda each: (each.filter.chain != ROOT, each.rule.priority))


def _walk(top: Filter, filters: Mapping[str, Filter]) -> Iterator[tuple[Filter, Rule, Variables]]:
    """The rules of a tree as libvirt reaches them; a filter that is included twice is walked twice."""
    path: dict[str, tuple[Filter, Variables, Iterator[Rule | Reference]]] = {top.name: (top, (), iter(top.entries))}
    walked = 0
    while path:
        current, variables, entries = path[next(reversed(path))]
        entry = next(entries, None)
        if entry is None:
            path.popitem()
            continue
        walked += 1
        if walked > MAX_TREE_ENTRIES:
            raise NotEvaluated(f"filter {top.name} includes more than {MAX_TREE_ENTRIES} rules and references")
        if isinstance(entry, Rule):
            yield current, entry, variables
        elif entry.target in path:
            raise NotEvaluated(f"filter {entry.target} includes itself")
        elif entry.target in filters:
            included = filters[entry.target]
            path[entry.target] = included, pass_on(variables, entry), iter(included.entries)


def build_packet_rules(placed: Sequence[PlacedRule]) -> list[PacketRule]:
    """The rules of iptables and ip6tables, in order; rules for ebtables are left out.

    NotEvaluated where it is unknown what libvirt installs, because of any rule of the tree.
    """
    instances = [(each, rule) for each in placed for rule in list_instances(each.rule, each.variables)]
    return [found for each, rule in instances if not rule.is_link for found in _both_directions(each, rule)]


def _both_directions(placed: PlacedRule, rule: Rule) -> Iterator[PacketRule]:
    forward = _forward_rule(placed, rule)
    back = _reverse(forward)
    states = rule.value("state") if rule.is_stateful else None
    if states is not None and not forward.unknown:
        named = frozenset(states.split(","))
        yield replace(forward, states=named)
        if rule.direction == "inout" and back is not None:
            yield replace(back, states=named)
    elif rule.is_stateful and rule.action == "accept" and rule.direction != "inout" and not forward.unknown:
        yield replace(forward, states=frozenset({"NEW", "ESTABLISHED"}), answer=False)
        if back is not None:
            yield replace(back, states=frozenset({"ESTABLISHED"}), answer=True)
    else:
        yield forward
        if back is not None:
            yield back


def _forward_rule(placed: PlacedRule, rule: Rule) -> PacketRule:
    unknown = find_unknown(rule, EVALUATED)
    # What cannot be evaluated may match any packet of its protocol.
    known = replace(rule, matches=()) if unknown else rule
    return PacketRule(
        direction="out" if rule.direction == "out" else "in",
        version=6 if is_ipv6(rule.protocol) else 4,
        protocol={"icmpv6": "icmp"}.get(rule.protocol, rule.protocol.removesuffix("-ipv6")),
        source=resolve_network(known, "src"),
        destination=resolve_network(known, "dst"),
        source_ports=_ports(known, "src"),
        destination_ports=_ports(known, "dst"),
        mac=known.value("srcmacaddr"),
        states=None,
        answer=None,
        verdict=rule.action,
        placed=placed,
        unknown=unknown,
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


def find_unknown(rule: Rule, evaluated: Collection[str]) -> str:
    """What guestd cannot evaluate of a rule without variables, or an empty string."""
    for each in rule.matches:
        is_known = each.name in evaluated and not each.is_negated and _is_readable(each, rule.protocol)
        if each.name != "comment" and not is_known:
            return f"guestd does not evaluate {each.name}{'!=' if each.is_negated else '='}{each.value}"
    return ""


def _is_readable(match: Match, protocol: str) -> bool:
    name, value = match.name, match.value
    bits = 128 if is_ipv6(protocol) else 32
    if name.endswith("macaddr"):
        return value == OWN_MAC or is_mac(value)
    if name.endswith("ipmask"):
        return value.isdecimal() and int(value) <= bits
    if name == "state":
        return set(value.split(",")) <= _STATES
    try:
        return ip_address(value).max_prefixlen == bits if name.endswith("ipaddr") else 0 <= int(value, 0) <= 65535
    except ValueError:
        return False


def resolve_network(rule: Rule, side: str) -> Network | None:
    """The addresses of one side of a rule; None for any address."""
    address, mask = rule.value(f"{side}ipaddr"), rule.value(f"{side}ipmask")
    return None if address is None else ip_network(f"{address}{'' if mask is None else f'/{mask}'}", strict=False)


def _ports(rule: Rule, side: str) -> Range | None:
    first = rule.value(f"{side}portstart")
    return None if first is None else (int(first, 0), int(rule.value(f"{side}portend") or first, 0))


def find_deciding_rule(packet: Packet, packet_rules: Sequence[PacketRule]) -> PacketRule | None:
    """The first rule that matches a packet; None where none does and the packet passes."""
    return next((rule for rule in packet_rules if _is_match(rule, packet)), None)


def _is_match(rule: PacketRule, packet: Packet) -> bool:
    source, destination = parse_address(packet.source), parse_address(packet.destination)
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
    """Pairs of rules at the same position in the order that decide differently on some packet.

    Of the rules that libvirt makes of two rules, one for each combination of values, the first such pair.
    """
    groups: dict[tuple[object, ...], dict[int, list[PacketRule]]] = {}
    for rule in packet_rules:
        is_root = rule.placed.filter.chain == ROOT
        group = groups.setdefault((rule.direction, rule.version, is_root, rule.placed.rule.priority), {})
        group.setdefault(id(rule.placed), []).append(rule)
    pairs = (
        _find_overlap(ones, others)
        for group in groups.values()
        for ones, others in combinations(group.values(), 2)
        if ones[0].verdict != others[0].verdict
    )
    return [pair for pair in pairs if pair is not None]


def _find_overlap(ones: Sequence[PacketRule], others: Sequence[PacketRule]) -> tuple[PacketRule, PacketRule] | None:
    # Each condition by itself first: it has few different values, and there are many pairs of rules.
    for name, meet in _CONDITIONS:
        values, other_values = (dict.fromkeys(getattr(each, name) for each in rules) for rules in (ones, others))
        if not any(meet(value, other) for value, other in product(values, other_values)):
            return None
    return next(((one, two) for one, two in product(ones, others) if overlap(one, two)), None)


def overlap(one: PacketRule, two: PacketRule) -> bool:
    """Whether some packet meets the conditions of both rules, which are of one direction and version of IP."""
    return all(meet(getattr(one, name), getattr(two, name)) for name, meet in _CONDITIONS)


def _protocols_meet(one: str, two: str) -> bool:
    return one == two or "all" in (one, two)


def _nets_meet(one: Network | None, two: Network | None) -> bool:
    return one is None or two is None or one.overlaps(two)


def _ranges_meet(one: Range | None, two: Range | None) -> bool:
    return one is None or two is None or (one[0] <= two[1] and two[0] <= one[1])


def _states_meet(one: frozenset[str] | None, two: frozenset[str] | None) -> bool:
    return one is None or two is None or bool(one & two)


def _values_meet(one: object, two: object) -> bool:
    return one is None or two is None or one == two


# Whether some packet meets this condition of both rules.
_CONDITIONS: tuple[tuple[str, Callable[[Any, Any], bool]], ...] = (
    ("protocol", _protocols_meet),
    ("source_ports", _ranges_meet),
    ("destination_ports", _ranges_meet),
    ("states", _states_meet),
    ("mac", _values_meet),
    ("answer", _values_meet),
    ("source", _nets_meet),
    ("destination", _nets_meet),
)
