"""Whether libvirt can lay a tree's rules for frames: it fails on some where filters of one chain differ in priority.

Pure. libvirt gives a chain, on each way, the priority of the filter whose rule there comes last. It goes through all
rules for frames in their order, and makes a chain when it comes to a rule that is not before it. A rule of another
filter of that chain, of a lower priority, may come up before its chain is there: then the tree is not enforced at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from guestd.filters.model import ROOT, Filter, Rule
from guestd.filters.packet_match import Placed, ordered


@dataclass(frozen=True, slots=True)
class Clash:
    """Two filters of one chain: rules of `early` come up before the chain, which is made at the priority of `late`."""

    chain: str
    early: Filter
    late: Filter

    def __str__(self) -> str:
        both = " and ".join(f"{each.name} (priority {each.priority})" for each in (self.early, self.late))
        return f"libvirt cannot lay {both} together: they are of chain {self.chain}, give them one priority"


def clash(top: Filter, filters: Mapping[str, Filter]) -> Clash | None:
    """What keeps libvirt from laying a tree; None where it can be laid."""
    placed = [each for each in ordered(top, filters) if each.rule.is_link]
    made = {(each.filter.chain, way): each.filter for each in placed for way in _ways(each.rule)}
    reached = -1001
    for each in placed:
        reached = max(reached, _priority(each))
        for way in _ways(each.rule) if each.filter.chain != ROOT else ():
            late = made[each.filter.chain, way]
            if late.priority > reached:
                return Clash(each.filter.chain, each.filter, late)
    return None


def _priority(placed: Placed) -> int:
    """A rule is never before its own filter's chain."""
    own = placed.rule.priority
    return own if placed.filter.chain == ROOT else max(own, placed.filter.priority)


def _ways(rule: Rule) -> Iterator[str]:
    yield from ("in", "out") if rule.direction == "inout" else (rule.direction,)
