"""Which rule of ebtables decides on the frame of a packet, before iptables sees the packet.

Pure. ebtables processes the rules of the root chain and the other chains, each as a whole, by priority. A chain sees
only frames of its family. accept and drop decide, return leaves the chain, continue goes to the next rule. A frame that
reaches the end of a chain passes: measured, see docs/decisions/0033.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

from guestd.filters import packet_match
from guestd.filters.model import ROOT, Rule
from guestd.filters.packet_match import (
    ADDRESSES,
    OPPOSITE,
    UNKNOWN,
    Decision,
    Packet,
    PacketRule,
    PlacedRule,
    find_unknown,
    parse_address,
    resolve_network,
)
from guestd.filters.variables import list_instances

# What guestd evaluates of rules for frames; the addresses of ARP are those in its header.
EVALUATED = ADDRESSES | {"arpsrcipaddr", "arpsrcipmask", "arpdstipaddr", "arpdstipmask"}
# Frames without a packet of IP; the last stands for every protocol that no rule can name.
WITHOUT_IP = ("arp", "rarp", "vlan", "stp", "other")
# The kinds of frames that each chain and protocol matches; _ALL matches the others as well.
_ALL = ("4", "6", "arp", "rarp", "vlan", "stp")
_KINDS = {"": _ALL, "ip": ("4",), "ipv4": ("4",), "ipv6": ("6",), "mac": _ALL, **{each: (each,) for each in _ALL[2:]}}


def decide(packet: Packet, placed: Sequence[PlacedRule], packet_rules: Sequence[PacketRule]) -> Decision:
    """What happens to a packet. `packet_rules` are those of `placed`. Only IP packets reach them."""
    frame = decide_frame(packet, placed)
    if frame.action in ("drop", UNKNOWN) or packet.protocol in WITHOUT_IP:
        return frame
    rule = packet_match.find_deciding_rule(packet, packet_rules)
    if rule is None:
        return Decision("accept")
    return Decision(UNKNOWN if rule.unknown else rule.verdict, rule.placed, rule.unknown)


def decide_frame(packet: Packet, placed: Sequence[PlacedRule]) -> Decision:
    """What ebtables does with the frame of a packet; one that is not dropped reaches iptables."""
    for group in _list_groups(packet, placed):
        ends = [end for rules in group if (end := _process(rules, packet)) is not None]
        if ends:
            return _choose(ends)
    return Decision("accept")


def _list_groups(packet: Packet, placed: Sequence[PlacedRule]) -> list[list[list[PlacedRule]]]:
    """The rules that process a frame, in order: those of each chain, and each rule of the root chain.

    Chains of one priority are one group: libvirt processes them in an order that differs from process to process.
    """
    rules = [each for each in placed if each.rule.is_link and each.rule.direction != OPPOSITE[packet.direction]]
    chains = {each.filter.chain: each.filter.priority for each in rules if each.filter.chain != ROOT}
    groups: dict[tuple[int, int], list[list[PlacedRule]]] = {}
    for chain in sorted(chains):
        if _is_of_kind(packet, chain.partition("-")[0]):
            groups.setdefault((chains[chain], -1), []).append(_rules_of_chain(chain, rules))
    for number, each in enumerate(rules):
        if each.filter.chain == ROOT:
            groups[each.rule.priority, number] = [[each]]
    return [groups[position] for position in sorted(groups)]


def _process(rules: Sequence[PlacedRule], packet: Packet) -> Decision | None:
    """What rules of one chain do with a frame; None where further rules see it."""
    is_root = rules[0].filter.chain == ROOT
    for each in rules:
        for rule in list_instances(each.rule, each.variables) if each.rule.action != "continue" else ():
            unknown = find_unknown(rule, EVALUATED)
            # What cannot be evaluated may match any frame of its kind.
            if is_match(replace(rule, matches=()) if unknown else rule, packet):
                if unknown:
                    return Decision(UNKNOWN, each, unknown)
                if rule.action == "return" and not is_root:
                    return None
                return Decision("drop" if _drops(rule) else rule.action, each)
    return None if is_root else Decision("accept")


def _choose(ends: Sequence[Decision]) -> Decision:
    """The end of a frame that several chains of one priority end."""
    dropping = [each for each in ends if each.action == "drop"]
    unknown = [each for each in ends if each.action == UNKNOWN]
    if unknown or not 0 < len(dropping) < len(ends):
        return (unknown or ends)[0]
    return Decision(UNKNOWN, dropping[0].rule, "another chain has the same priority, and libvirt may process it first")


def _drops(rule: Rule) -> bool:
    # ebtables has no reject: libvirt drops instead.
    return rule.action in ("drop", "reject")


def count_chain_rules(placed: Sequence[PlacedRule]) -> Counter[tuple[str, str]]:
    """The number of ebtables rules by chain and direction: one for each combination of values, and jumps.

    NotEvaluated where it is unknown what libvirt makes of one.
    """
    found: Counter[tuple[str, str]] = Counter()
    for each in placed:
        for direction in OPPOSITE if each.rule.is_link else ():
            if each.rule.direction in (direction, "inout"):
                found[each.filter.chain, direction] += len(list_instances(each.rule, each.variables))
    for chain, direction in list(found):
        found[ROOT, direction] += chain != ROOT
    return found


def find_open_ends(placed: Sequence[PlacedRule]) -> list[tuple[str, str]]:
    """Chains and directions where a frame passes at the end of the chain although a later rule might drop it."""
    return [
        (chain, direction)
        for direction, rules in _by_direction(placed)
        for chain in _list_chains(rules)
        if _is_open(chain, rules)
    ]


def find_unordered_chains(placed: Sequence[PlacedRule]) -> list[tuple[str, str, str]]:
    """Pairs of chains of one priority, with the direction, one of which may pass frames that the other drops."""
    return [
        (one, other, direction)
        for direction, rules in _by_direction(placed)
        for one, other in combinations(_list_chains(rules), 2)
        if _is_unordered(_rules_of_chain(one, rules), _rules_of_chain(other, rules))
    ]


def _by_direction(placed: Sequence[PlacedRule]) -> Iterator[tuple[str, list[PlacedRule]]]:
    """The rules for frames, by direction."""
    for direction in OPPOSITE:
        yield direction, [each for each in placed if each.rule.is_link and each.rule.direction in (direction, "inout")]


def _list_chains(rules: Sequence[PlacedRule]) -> list[str]:
    return sorted({each.filter.chain for each in rules} - {ROOT})


def _is_unordered(one: Sequence[PlacedRule], other: Sequence[PlacedRule]) -> bool:
    if one[-1].filter.priority != other[-1].filter.priority:
        return False
    pairs = ((one, other), (other, one))
    return any(_list_passing(here) & _list_kinds(there, "drop", "reject") for here, there in pairs)


def _list_passing(rules: Sequence[PlacedRule]) -> set[str]:
    """The kinds of frames of which a chain may let some pass, before further chains see them."""
    return _list_kinds(rules, "accept") | _list_left(rules)


def _list_kinds(rules: Sequence[PlacedRule], *actions: str) -> set[str]:
    """The kinds of frames that rules of one chain with these actions match."""
    reached = set(_KINDS[rules[0].filter.chain.partition("-")[0]])
    return {kind for each in rules if each.rule.action in actions for kind in _KINDS[each.rule.protocol]} & reached


def _list_left(rules: Sequence[PlacedRule]) -> set[str]:
    """The kinds of frames that may reach the end of a chain."""
    left = set(_KINDS[rules[0].filter.chain.partition("-")[0]])
    for each in rules:
        if each.rule.action != "continue" and all(match.name == "comment" for match in each.rule.matches):
            left -= {*_KINDS[each.rule.protocol]}
    return left


def _is_open(chain: str, rules: Sequence[PlacedRule]) -> bool:
    """Whether rules, all of one direction, leave the end of a chain open before a rule that drops."""
    own = _rules_of_chain(chain, rules)
    left, position = _list_left(own), (own[-1].filter.priority, False)
    later = [each for each in rules if _position(each) > position]
    return any(_drops(each.rule) and left & {*_KINDS[each.rule.protocol]} for each in later)


def _position(placed: PlacedRule) -> tuple[int, bool]:
    """When a rule, or its chain, is processed; rules of the root chain come after chains of the same priority."""
    is_root = placed.filter.chain == ROOT
    return (placed.rule.priority if is_root else placed.filter.priority, is_root)


def _rules_of_chain(chain: str, rules: Sequence[PlacedRule]) -> list[PlacedRule]:
    return sorted((each for each in rules if each.filter.chain == chain), key=lambda each: each.rule.priority)


def _kind(packet: Packet) -> str:
    return packet.protocol if packet.protocol in WITHOUT_IP else str(parse_address(packet.source).version)


def _is_of_kind(packet: Packet, name: str) -> bool:
    """Whether a chain or protocol of this name matches frames of a packet's kind."""
    kinds = _KINDS.get(name, ())
    return kinds is _ALL or _kind(packet) in kinds


def is_match(rule: Rule, packet: Packet) -> bool:
    """Whether a rule without variables and without unknown conditions matches the frame of a packet."""
    if not _is_of_kind(packet, rule.protocol):
        return False
    is_reversed = rule.direction == "inout" and packet.direction == "out"
    mac = rule.value("srcmacaddr")
    if mac is not None and (is_reversed or not packet.is_sent_by(mac)):
        return False
    source, destination = (packet.destination, packet.source) if is_reversed else (packet.source, packet.destination)
    return _is_within(source, rule, "src") and _is_within(destination, rule, "dst")


def _is_within(address: str, rule: Rule, side: str) -> bool:
    network = resolve_network(rule, name_side(rule, side))
    return network is None or parse_address(address) in network


def name_side(rule: Rule, side: str) -> str:
    """How a rule's conditions on addresses begin; ARP and RARP have addresses of their own."""
    return f"arp{side}" if rule.protocol in ("arp", "rarp") else side
