"""The rules of a machine filter in the order in which they match, and whether they block a packet.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from guestd.filters import frame_match
from guestd.filters.model import Filter
from guestd.filters.packet_match import (
    Packet,
    PacketRule,
    PlacedRule,
    build_packet_rules,
    find_unknown,
    order_rules,
)
from guestd.filters.variables import OWN_MAC, NotEvaluated

BLOCKING = ("drop", "reject")
# Comparisons of a packet with a rule for one plan: ten seconds of a thread, a minute where most rules are for frames.
MAX_COMPARISONS = 10_000_000


@dataclass(frozen=True, slots=True)
class RuleTree:
    """The rules of a machine, in order, as ebtables and iptables have them."""

    placed: Sequence[PlacedRule]
    packet_rules: Sequence[PacketRule]
    # Where the rules for each sender stand: those of all others match nothing that it sends. None: for all senders.
    placed_by_sender: Mapping[str | None, Sequence[int]]
    packet_rules_by_sender: Mapping[str | None, Sequence[int]]

    def blocks(self, packet: Packet, work: Work) -> bool:
        """Whether a rule drops or rejects a packet."""
        placed = [self.placed[place] for place in _list_places(self.placed_by_sender, packet)]
        packet_rules = [self.packet_rules[place] for place in _list_places(self.packet_rules_by_sender, packet)]
        work.spend(len(placed) + len(packet_rules))
        return frame_match.decide(packet, placed, packet_rules).action in BLOCKING


def _list_places(by_sender: Mapping[str | None, Sequence[int]], packet: Packet) -> list[int]:
    sender = OWN_MAC if packet.mac is None and packet.direction == "out" else packet.mac
    return sorted({*by_sender[None], *by_sender.get(sender, ())})


@dataclass(slots=True)
class Work:
    """The comparisons that may still be made."""

    left: int = MAX_COMPARISONS

    def spend(self, count: int) -> None:
        """Count comparisons. NotEvaluated where they are more than MAX_COMPARISONS in all."""
        self.left -= count
        if self.left < 0:
            raise NotEvaluated(f"more than {MAX_COMPARISONS} comparisons of packets with rules")


def build_tree(top: Filter, filters: Mapping[str, Filter]) -> RuleTree:
    """The tree of a machine filter. NotEvaluated, NotInstallable as `build_packet_rules`."""
    placed = order_rules(top, filters)
    packet_rules = build_packet_rules(placed)
    packet_senders = (each.mac for each in packet_rules)
    return RuleTree(placed, packet_rules, _index_senders(_list_senders(placed)), _index_senders(packet_senders))


def _list_senders(placed: Sequence[PlacedRule]) -> Iterator[str | None]:
    """The only sender whose frames each rule matches; None where it may match those of several.

    None also for the first and the last rule of a chain: frames pass at the end of a chain that has any rule, and the
    filter of the last one has the chain's priority.
    """
    chains: dict[tuple[str, str], list[int]] = {}
    for number, each in enumerate(placed):
        if each.rule.is_link:
            chains.setdefault((each.filter.chain, each.rule.direction), []).append(number)
    ends = {number for numbers in chains.values() for number in (numbers[0], numbers[-1])}
    for number, each in enumerate(placed):
        is_for_one = number not in ends and not find_unknown(each.rule, frame_match.EVALUATED)
        yield each.rule.value("srcmacaddr") if is_for_one else None


def _index_senders(senders: Iterable[str | None]) -> dict[str | None, list[int]]:
    found: dict[str | None, list[int]] = {None: []}
    for place, sender in enumerate(senders):
        found.setdefault(sender, []).append(place)
    return found
