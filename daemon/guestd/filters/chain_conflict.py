"""Filters that libvirt cannot install together: filters of one chain whose priorities differ in certain ways.

Pure. In each direction, libvirt gives a chain the priority of the filter whose rule comes last in that chain. It
installs all rules for frames in order, and creates a chain when it reaches the first rule whose priority is not below
the chain's. A rule of another filter of the chain, with a lower priority, may come before its chain exists. Then
libvirt enforces nothing of the whole tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from guestd.filters.model import ROOT, Filter, Rule
from guestd.filters.packet_match import PlacedRule, order_rules
from guestd.filters.variables import NotEvaluated


@dataclass(frozen=True, slots=True)
class ChainConflict:
    """Two filters of one chain: rules of `early` come before the chain, which is created at the priority of `late`."""

    chain: str
    early: Filter
    late: Filter

    def __str__(self) -> str:
        both = " and ".join(f"{each.name} (priority {each.priority})" for each in (self.early, self.late))
        return f"libvirt cannot install {both} together: both are in chain {self.chain}, give them one priority"


def find_chain_conflict(top: Filter, filters: Mapping[str, Filter]) -> ChainConflict | None:
    """The conflict that prevents libvirt from installing a tree, or None."""
    try:
        placed = [each for each in order_rules(top, filters) if each.rule.is_link]
    except NotEvaluated:  # no tree of libvirt's: the plan refuses it for another reason
        return None
    last = {(each.filter.chain, direction): each.filter for each in placed for direction in _directions(each.rule)}
    reached = -1001
    for each in placed:
        reached = max(reached, _priority(each))
        for direction in _directions(each.rule) if each.filter.chain != ROOT else ():
            late = last[each.filter.chain, direction]
            if late.priority > reached:
                return ChainConflict(each.filter.chain, each.filter, late)
    return None


def _priority(placed: PlacedRule) -> int:
    """A rule never comes before the chain of its own filter."""
    own = placed.rule.priority
    return own if placed.filter.chain == ROOT else max(own, placed.filter.priority)


def _directions(rule: Rule) -> Iterator[str]:
    yield from ("in", "out") if rule.direction == "inout" else (rule.direction,)
