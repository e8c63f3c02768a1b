"""Compare desired with observed filters and plan the libvirt calls that lead from one to the other.

Pure. These rules hold after every single action of a plan, because guestd may die between any two:

* A plan names only filters that guestd owns: the name has the prefix, and the filter is the row's own (same name, same
  uuid) or one that guestd is known to have defined on this host.
* No filter is undefined that an interface uses, directly or through others: no machine loses its rules, not even for a
  moment. So a filter is redefined in place, under the same name and uuid.
* Every filter that a definition includes exists before it, in its final form. Definitions go targets first, also
  through filters that stay unchanged, because a target of one of those may lead back. Removals go referrers first.
* Where something cannot be read, what it uses is unknown: no filter is removed.
* A refused filter (a row that libvirt would not install as it is, a cycle, a missing target, filters that libvirt
  cannot install together) stays as libvirt last had it.
* A plan that removes many filters, or opens many machines (`filters.exposure`), waits until an operator confirms it.
  What the plans shortly before it removed and opened counts as well, so that a loop of single edits waits. A machine
  whose opening waited stays so: who sets rows back one by one must not open the last ones.

A uuid cannot move to another name, nor a name to another uuid: the old filter and all that include it are removed
first, which is only done where no interface uses any of them. If that waits for another action of the same plan, the
run after the next snapshot does it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args
from uuid import UUID

from guestd.filters import ordering
from guestd.filters.chain_conflict import ChainConflict
from guestd.filters.desired import DesiredFilters
from guestd.filters.exposure import find_opened
from guestd.filters.graph import list_edges, order_targets_first, reach
from guestd.filters.model import PREFIX, Filter
from guestd.filters.refusals import find_blocking, find_refusals, is_own
from guestd.filters.snapshot import ObservedFilters, is_stand_in

RunReportKind = Literal[
    "refused",
    "clash",
    "failed",
    "foreign",
    "used",
    "held",
    "unenforceable",
    "unattached",
    "taken",
    "blind",
    "unreadable",
]
# Only what prints a plan looks for doubts; a run does not.
ReportKind = RunReportKind | Literal["doubt"]
RUN_REPORT_KINDS: tuple[RunReportKind, ...] = get_args(RunReportKind)
FOREIGN = "it has guestd's prefix, and guestd did not define it: undefine it, or give it another name"


@dataclass(frozen=True, slots=True)
class Define:
    """Define a filter in libvirt, or redefine it."""

    definition: Filter
    why: str

    def __str__(self) -> str:
        return f"define {self.definition.name}: {self.why}"


@dataclass(frozen=True, slots=True)
class Remove:
    """Undefine a filter in libvirt."""

    name: str
    uuid: UUID
    why: str

    def __str__(self) -> str:
        return f"remove {self.name}: {self.why}"


FilterAction = Define | Remove


@dataclass(frozen=True, slots=True)
class FilterReport:
    """An issue that an operator should know of."""

    kind: ReportKind
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}: {self.text}"


@dataclass(frozen=True, slots=True)
class FilterPlan:
    """Actions in order, and reports. `needs_confirmation`: why an operator must confirm it before any action.

    `opened` are the machine filters that would pass what they block now, each with a sentence on what that is; `lost`
    are the filters that would be removed or emptied.
    """

    actions: tuple[FilterAction, ...]
    reports: tuple[FilterReport, ...]
    needs_confirmation: str | None = None
    opened: Mapping[str, str] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Guard:
    """Plans that remove more filters, or open more machines, or a larger share of them, need to be confirmed."""

    most_removals: int
    most_removals_share: float = 1.0


# A person who clicks through a list needs as long from one change to the next; a program that sets rows does not.
SECONDS_PER_CHANGE = 2.0


@dataclass(frozen=True, slots=True)
class Past:
    """What came before a plan: filters whose changes are held; how many seconds ago filters were opened and lost."""

    held: frozenset[str] = frozenset()
    opened_seconds_ago: Mapping[str, float] = field(default_factory=dict)
    lost_seconds_ago: Mapping[str, float] = field(default_factory=dict)


def plan_filters(
    desired: DesiredFilters, observed: ObservedFilters, guard: Guard, past: Past | None = None
) -> FilterPlan:
    """The actions that lead from the observed to the desired state. The guard marks a plan that takes too much away."""
    past = past or Past()
    refused: dict[str, str] = {}
    conflicts: dict[str, ChainConflict] = {}
    while True:
        while found := find_refusals(desired, observed, refused):
            refused |= found
        accepted = {name: each for name, each in desired.filters.items() if name not in refused}
        first = find_blocking(accepted, observed)
        changed = [name for name, each in accepted.items() if name in first or observed.filters.get(name) != each]
        remaining = {name: each for name, each in observed.filters.items() if name not in first}
        tops = desired.tops | observed.bound
        targets_first = [accepted[name] for name in _targets_first(changed, {**remaining, **accepted})]
        definitions, new_conflicts = ordering.order_definitions(targets_first, remaining, tops)
        if not new_conflicts:
            break
        conflicts |= new_conflicts
        refused |= {name: str(conflict) for name, conflict in new_conflicts.items()}
    rowless, used = _find_without_row(accepted, desired, observed)
    unused = rowless - used if observed.are_uses_known else set()
    actions: tuple[FilterAction, ...] = (
        *_removals(first, observed, "another filter has its name or uuid now"),
        *(Define(each, _describe_change(observed.filters.get(each.name), each)) for each in definitions),
        *_removals(unused - first, observed, "the store has no such filter"),
    )
    installed = {**remaining, **{each.name: each for each in definitions}}
    standing = ordering.find_standing_conflicts(installed, tops)
    opened = find_opened(observed.bound, observed.filters, installed)
    lost = _find_lost(actions, observed)
    own = sum(is_own(name, desired, observed) for name in observed.filters)
    checks = (_check_lost(lost, own, guard, past), _check_opened(opened, observed, guard, past))
    held = [reason for reason in checks if reason is not None]
    reports = (
        *(FilterReport("refused", name, text) for name, text in sorted(refused.items())),
        *_report_conflicts([*conflicts.items(), *standing], refused),
        *_report_kept(rowless - unused, used),
        *(FilterReport("foreign", name, FOREIGN) for name in _find_foreign(desired, observed)),
        *(FilterReport("held", name, text) for name, text in opened.items() if held),
    )
    return FilterPlan(actions, reports, "; ".join(held) or None, opened, frozenset(lost))


def digest_plan(plan: FilterPlan) -> str:
    """The name of a plan: the same definitions and removals, which open the same machines."""
    lines = [
        *(repr(each.definition) if isinstance(each, Define) else f"{each.name} {each.uuid}" for each in plan.actions),
        *plan.opened,
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:12]


def _report_conflicts(found: Iterable[tuple[str, ChainConflict]], refused: Collection[str]) -> list[FilterReport]:
    """Reports on filters that a machine includes and that libvirt cannot install together."""
    reports = {
        each.name: FilterReport("clash", each.name, f"within {top}: {conflict}")
        for top, conflict in found
        for each in (conflict.early, conflict.late)
        if each.name not in refused
    }
    return [reports[name] for name in sorted(reports)]


def _report_kept(kept: Collection[str], used: Collection[str]) -> Iterator[FilterReport]:
    """Reports on filters without a row that are not removed."""
    for name in sorted(kept):
        reason = "it is still in use" if name in used else "something cannot be read, so its uses are unknown"
        yield FilterReport("used", name, f"the store has no such filter; kept: {reason}")


def list_used(observed: ObservedFilters) -> frozenset[str]:
    """The filters that interfaces use: those that they name, and all that these include."""
    return frozenset(reach(observed.bound, list_edges(observed.filters)))


def _find_without_row(
    accepted: Mapping[str, Filter], desired: DesiredFilters, observed: ObservedFilters
) -> tuple[set[str], set[str]]:
    """Own filters without a row, and all filters that something uses, as far as is known."""
    rowless = {
        name
        for name in observed.filters
        if name not in desired.filters and name not in desired.invalid and is_own(name, desired, observed)
    }
    edges = list_edges(observed.filters) | list_edges(accepted)
    staying = [name for name in edges if name not in rowless or name in observed.bound]
    return rowless, set(reach(staying, edges))


def _find_foreign(desired: DesiredFilters, observed: ObservedFilters) -> list[str]:
    names = [name for name in observed.filters if name.startswith(PREFIX) and name not in desired.invalid]
    return sorted(name for name in names if name not in desired.filters and not is_own(name, desired, observed))


def _targets_first(names: Collection[str], filters: Mapping[str, Filter]) -> list[str]:
    """Names in an order in which each comes after all that it includes."""
    return [name for name in order_targets_first(list_edges(filters)) if name in names] if names else []


def _removals(names: Collection[str], observed: ObservedFilters, reason: str) -> list[Remove]:
    referrers_first = reversed(_targets_first(names, observed.filters))
    return [Remove(name, observed.filters[name].uuid, reason) for name in referrers_first]


def _describe_change(before: Filter | None, after: Filter) -> str:
    if is_stand_in(before):
        return "libvirt's definition cannot be read"
    if before is None:
        return f"new, {len(after.rules)} rules, {len(after.references)} references"
    if before.uuid != after.uuid:
        return "it had another uuid"
    changes = []
    for what, was, becomes in (
        ("rules", Counter(map(str, before.rules)), Counter(map(str, after.rules))),
        ("references", Counter(map(str, before.references)), Counter(map(str, after.references))),
    ):
        if was != becomes:
            changes.append(f"{(becomes - was).total()} {what} added, {(was - becomes).total()} removed")
    if (before.chain, before.priority) != (after.chain, after.priority):
        changes.append(f"chain {before.chain} {before.priority} becomes {after.chain} {after.priority}")
    return "; ".join(changes) or "the order of its rules and references differs"


def _find_lost(actions: Iterable[FilterAction], observed: ObservedFilters) -> set[str]:
    """The filters that the actions remove or empty: they protect nothing any more."""
    lost = {action.name for action in actions if isinstance(action, Remove)}
    for action in actions:
        if isinstance(action, Define):
            lost.discard(action.definition.name)
            before = observed.filters.get(action.definition.name)
            was_filtering = before is not None and (is_stand_in(before) or before.entries)
            if was_filtering and not action.definition.entries:
                lost.add(action.definition.name)
    return lost


def _check_lost(lost: Collection[str], own: int, guard: Guard, past: Past) -> str | None:
    """Why an operator must confirm that filters are lost; `own` is the number of filters that guestd may remove."""
    most = min(float(guard.most_removals), guard.most_removals_share * own, own - 1.0)
    before = _list_recent(past.lost_seconds_ago, most) - {*lost}
    if not lost or len(lost) + len(before) <= most:
        return None
    so_far = f", after {len(before)} shortly before" if before else ""
    allowed = max(0, int(most))
    return f"it would remove or empty {len(lost)} of {own} filters{so_far}, and {allowed} are allowed at once"


def _check_opened(opened: Mapping[str, str], observed: ObservedFilters, guard: Guard, past: Past) -> str | None:
    """Why an operator must confirm that interfaces pass more: one machine's may at once, for that is an edit of it."""
    allowed = int(max(1, min(guard.most_removals, guard.most_removals_share * len(observed.bound))))
    before = _list_recent(past.opened_seconds_ago, allowed) - opened.keys()
    held = opened.keys() & past.held
    if not opened or (len(opened) + len(before) <= allowed and not held):
        return None
    name, text = next(iter(opened.items()))
    share = f"{len(opened)} of {len(observed.bound)} machines"
    so_far = f", after {len(before)} shortly before" if before else ""
    waiting = f", {len(held)} of which were held before" if held else ""
    return f"it would open {share}{so_far}{waiting}, and {allowed} may be opened at once; {name}: {text}"


def _list_recent(seconds_ago: Mapping[str, float], allowed: float) -> set[str]:
    """What happened so shortly before that a person would not have changed more than `allowed` since."""
    return {name for name, seconds in seconds_ago.items() if seconds < SECONDS_PER_CHANGE * allowed}
