"""Which rule of ebtables decides on the frame that a packet comes in, before iptables sees it.

Pure. Rules of the root chain and the other chains as wholes are gone through by priority; a chain sees the frames of
its family only. accept and drop end the look, return leaves a chain, continue goes on. A frame that comes to the end of
a chain has passed them all: measured, and docs/decisions/0033 says where.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_address
from math import prod

from guestd.filters import packet_match
from guestd.filters.model import ROOT, Rule
from guestd.filters.packet_match import OPPOSITE, Line, Packet, Placed, network

# Chains and protocols, and what frames hold of which they speak.
_ALL = ("4", "6", "arp", "rarp", "vlan", "stp")
_KINDS = {"ip": ("4",), "ipv4": ("4",), "ipv6": ("6",), "mac": _ALL, **{each: (each,) for each in _ALL[2:]}}


def outcome(packet: Packet, placed: Sequence[Placed], told: Sequence[Line]) -> tuple[str, Placed | None]:
    """What becomes of a packet (accept, return, drop or reject), and the rule that says so, if any does.

    `told` are the lines of `placed`. Only packets of IP reach them.
    """
    frame = decides(packet, placed)
    if frame is not None and (frame.rule.action == "drop" or packet.protocol == "arp"):
        return frame.rule.action, frame
    line = None if packet.protocol == "arp" else packet_match.decides(packet, told)
    return ("accept", None) if line is None else (line.verdict, line.placed)


def decides(packet: Packet, placed: Sequence[Placed]) -> Placed | None:
    """The rule that accepts or drops the frame; None when none does and it goes on to iptables."""
    rules = [each for each in placed if each.rule.is_link and each.rule.direction != OPPOSITE[packet.way]]
    chains = {each.filter.chain: each.filter.priority for each in rules if each.filter.chain != ROOT}
    steps = [(chains[chain], _of_chain(chain, rules)) for chain in sorted(chains) if _is_seen(chain, packet)]
    steps += [(each.rule.priority, [each]) for each in rules if each.filter.chain == ROOT]
    for _, step in sorted(steps, key=lambda each: each[0]):
        found = next((each for each in step if each.rule.action != "continue" and _is_match(each, packet)), None)
        if found is not None and found.rule.action != "return":
            return found
        if (found is None) == (step[0].filter.chain != ROOT):
            return None
    return None


def entries(placed: Sequence[Placed]) -> Counter[tuple[str, str]]:
    """How many rules ebtables has in each chain, on each way: one for each value of a variable, and those to chains."""
    found: Counter[tuple[str, str]] = Counter()
    for each in placed:
        for way in OPPOSITE if each.rule.is_link else ():
            if each.rule.direction in (way, "inout"):
                found[each.filter.chain, way] += _count(each)
    for chain, way in list(found):
        found[ROOT, way] += chain != ROOT
    return found


def _count(placed: Placed) -> int:
    """A variable of a rule that has several values makes so many rules of it."""
    named = {match.value[1:] for match in placed.rule.matches if match.value.startswith("$")} - {"MAC"}
    return prod(len({value for name, value in placed.variables if name == each}) for each in named)


def open_ends(placed: Sequence[Placed]) -> list[tuple[str, str]]:
    """Chains, each with a way, at whose end some frame passes that a later rule might have dropped."""
    rules = [each for each in placed if each.rule.is_link]
    return [
        (chain, way)
        for way in OPPOSITE
        for chain in sorted({each.filter.chain for each in rules} - {ROOT})
        if _is_open(chain, [each for each in rules if each.rule.direction in (way, "inout")])
    ]


def _is_open(chain: str, rules: Sequence[Placed]) -> bool:
    """Whether rules, all of one way, leave the end of a chain open with one that drops behind it."""
    own = _of_chain(chain, rules)
    left = set(_KINDS[chain.partition("-")[0]])
    for each in own:
        if each.rule.action != "continue" and all(match.name == "comment" for match in each.rule.matches):
            left -= {*_KINDS[each.rule.protocol]}
    later = [each for each in rules if own and _place(each) > (own[-1].filter.priority, chain)]
    return any(each.rule.action == "drop" and left & {*_KINDS[each.rule.protocol]} for each in later)


def _place(placed: Placed) -> tuple[int, str]:
    """Where a rule, or the chain that it is of, is gone through; the root chain's are after chains of that priority."""
    is_root = placed.filter.chain == ROOT
    return (placed.rule.priority, "~") if is_root else (placed.filter.priority, placed.filter.chain)


def _of_chain(chain: str, rules: Sequence[Placed]) -> list[Placed]:
    return sorted((each for each in rules if each.filter.chain == chain), key=lambda each: each.rule.priority)


def _is_seen(chain: str, packet: Packet) -> bool:
    return _kind(packet) in _KINDS.get(chain.partition("-")[0], ())


def _kind(packet: Packet) -> str:
    return "arp" if packet.protocol == "arp" else str(ip_address(packet.source).version)


def _is_match(placed: Placed, packet: Packet) -> bool:
    rule = placed.rule
    if _kind(packet) not in _KINDS.get(rule.protocol, ()):
        return False
    is_turned = rule.direction == "inout" and packet.way == "out"
    mac = rule.value("srcmacaddr")
    if mac is not None and (is_turned or not packet.is_sent_by(mac)):
        return False
    source, destination = (packet.destination, packet.source) if is_turned else (packet.source, packet.destination)
    return _is_within(source, rule, "src", placed) and _is_within(destination, rule, "dst", placed)


def _is_within(address: str, rule: Rule, side: str, placed: Placed) -> bool:
    field = f"arp{side}" if rule.protocol == "arp" else side
    named = rule.value(f"{field}ipaddr")
    if named is None:
        return True
    values = [value for name, value in placed.variables if f"${name}" == named] or [""]
    found = (network(rule, field, value) for value in values)
    return any(each is not None and ip_address(address) in each for each in found)
