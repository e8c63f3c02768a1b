"""Which rule of ebtables decides on the frame of a packet, before iptables sees the packet.

Pure. ebtables processes the rules of the root chain and the other chains, each as a whole, by priority. A chain sees
only frames of its family. accept and drop decide, return leaves the chain, continue goes to the next rule. A frame that
reaches the end of a chain passes: measured, see docs/decisions/0033.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_address
from math import prod

from guestd.filters import packet_match
from guestd.filters.model import ROOT, Rule
from guestd.filters.packet_match import OPPOSITE, Packet, PacketRule, PlacedRule, resolve_network

# The kinds of frames that each chain and protocol matches.
_ALL = ("4", "6", "arp", "rarp", "vlan", "stp")
_KINDS = {"ip": ("4",), "ipv4": ("4",), "ipv6": ("6",), "mac": _ALL, **{each: (each,) for each in _ALL[2:]}}


def decide(
    packet: Packet, placed: Sequence[PlacedRule], packet_rules: Sequence[PacketRule]
) -> tuple[str, PlacedRule | None]:
    """The verdict on a packet (accept, return, drop or reject), and the deciding rule, if there is one.

    `packet_rules` are those of `placed`. Only IP packets reach them.
    """
    frame = find_deciding_rule(packet, placed)
    if frame is not None and (frame.rule.action == "drop" or packet.protocol == "arp"):
        return frame.rule.action, frame
    rule = None if packet.protocol == "arp" else packet_match.find_deciding_rule(packet, packet_rules)
    return ("accept", None) if rule is None else (rule.verdict, rule.placed)


def find_deciding_rule(packet: Packet, placed: Sequence[PlacedRule]) -> PlacedRule | None:
    """The rule that accepts or drops the frame; None where none does and the packet reaches iptables."""
    rules = [each for each in placed if each.rule.is_link and each.rule.direction != OPPOSITE[packet.direction]]
    chains = {each.filter.chain: each.filter.priority for each in rules if each.filter.chain != ROOT}
    steps = [
        (chains[chain], _rules_of_chain(chain, rules)) for chain in sorted(chains) if _reaches_chain(chain, packet)
    ]
    steps += [(each.rule.priority, [each]) for each in rules if each.filter.chain == ROOT]
    for _, step in sorted(steps, key=lambda each: each[0]):
        found = next((each for each in step if each.rule.action != "continue" and _is_match(each, packet)), None)
        if found is not None and found.rule.action != "return":
            return found
        if (found is None) == (step[0].filter.chain != ROOT):
            return None
    return None


def count_chain_rules(placed: Sequence[PlacedRule]) -> Counter[tuple[str, str]]:
    """The number of ebtables rules by chain and direction: one for each value of a variable, and jumps."""
    found: Counter[tuple[str, str]] = Counter()
    for each in placed:
        for direction in OPPOSITE if each.rule.is_link else ():
            if each.rule.direction in (direction, "inout"):
                found[each.filter.chain, direction] += _count_values(each)
    for chain, direction in list(found):
        found[ROOT, direction] += chain != ROOT
    return found


def _count_values(placed: PlacedRule) -> int:
    """The number of rules that libvirt makes of one: one for each combination of its variables' values."""
    named = {match.value[1:] for match in placed.rule.matches if match.value.startswith("$")} - {"MAC"}
    return prod(len({value for name, value in placed.variables if name == each}) for each in named)


def find_open_ends(placed: Sequence[PlacedRule]) -> list[tuple[str, str]]:
    """Chains and directions where a frame passes at the end of the chain although a later rule might drop it."""
    rules = [each for each in placed if each.rule.is_link]
    return [
        (chain, direction)
        for direction in OPPOSITE
        for chain in sorted({each.filter.chain for each in rules} - {ROOT})
        if _is_open(chain, [each for each in rules if each.rule.direction in (direction, "inout")])
    ]


def _is_open(chain: str, rules: Sequence[PlacedRule]) -> bool:
    """Whether rules, all of one direction, leave the end of a chain open before a rule that drops."""
    own = _rules_of_chain(chain, rules)
    left = set(_KINDS[chain.partition("-")[0]])
    for each in own:
        if each.rule.action != "continue" and all(match.name == "comment" for match in each.rule.matches):
            left -= {*_KINDS[each.rule.protocol]}
    later = [each for each in rules if own and _position(each) > (own[-1].filter.priority, chain)]
    return any(each.rule.action == "drop" and left & {*_KINDS[each.rule.protocol]} for each in later)


def _position(placed: PlacedRule) -> tuple[int, str]:
    """When a rule, or its chain, is processed; rules of the root chain come after chains of the same priority."""
    is_root = placed.filter.chain == ROOT
    return (placed.rule.priority, "~") if is_root else (placed.filter.priority, placed.filter.chain)


def _rules_of_chain(chain: str, rules: Sequence[PlacedRule]) -> list[PlacedRule]:
    return sorted((each for each in rules if each.filter.chain == chain), key=lambda each: each.rule.priority)


def _reaches_chain(chain: str, packet: Packet) -> bool:
    return _kind(packet) in _KINDS.get(chain.partition("-")[0], ())


def _kind(packet: Packet) -> str:
    return "arp" if packet.protocol == "arp" else str(ip_address(packet.source).version)


def _is_match(placed: PlacedRule, packet: Packet) -> bool:
    rule = placed.rule
    if _kind(packet) not in _KINDS.get(rule.protocol, ()):
        return False
    is_reversed = rule.direction == "inout" and packet.direction == "out"
    mac = rule.value("srcmacaddr")
    if mac is not None and (is_reversed or not packet.is_sent_by(mac)):
        return False
    source, destination = (packet.destination, packet.source) if is_reversed else (packet.source, packet.destination)
    return _is_within(source, rule, "src", placed) and _is_within(destination, rule, "dst", placed)


def _is_within(address: str, rule: Rule, side: str, placed: PlacedRule) -> bool:
    field = f"arp{side}" if rule.protocol == "arp" else side
    named = rule.value(f"{field}ipaddr")
    if named is None:
        return True
    values = [value for name, value in placed.variables if f"${name}" == named] or [""]
    found = (resolve_network(rule, field, value) for value in values)
    return any(each is not None and ip_address(address) in each for each in found)
