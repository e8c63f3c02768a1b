"""Why a filter cannot be defined: another has its name or uuid, it includes itself or a missing one, or too much.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from guestd.filters.desired import DesiredFilters
from guestd.filters.graph import (
    MAX_TREE_ENTRIES,
    count_tree_entries,
    list_edges,
    list_includers,
    order_targets_first,
    reach,
)
from guestd.filters.model import PREFIX, Filter
from guestd.filters.snapshot import ObservedFilters

# A path is printed with this many names at most.
SHOWN_PATH = 10

TOO_LARGE = (
    f"it includes more than {MAX_TREE_ENTRIES} rules and references, those of a filter as often as it is included: "
    "libvirt could not install it on an interface"
)


def find_refusals(desired: DesiredFilters, observed: ObservedFilters, refused: Mapping[str, str]) -> dict[str, str]:
    """Further filters that cannot be defined, given those that are refused already; empty where there are none."""
    accepted = {name: each for name, each in desired.filters.items() if name not in refused}
    names = {each.uuid: name for name, each in observed.filters.items()}
    found = {}
    for name, each in accepted.items():
        if reason := _find_conflict(each, _occupants(each, observed, names), accepted, desired, observed):
            found[name] = reason
    if not found:
        gone = find_blocking(accepted, observed)
        remaining = {name: each for name, each in observed.filters.items() if name not in gone}
        found = _find_bad_trees(accepted, remaining)
    return found


def find_blocking(accepted: Mapping[str, Filter], observed: ObservedFilters) -> set[str]:
    """The observed filters that must be removed before the accepted ones can be defined."""
    names = {each.uuid: name for name, each in observed.filters.items()}
    occupants = [name for each in accepted.values() for name in _occupants(each, observed, names)]
    return set(_list_users(occupants, observed))


def is_own(name: str, desired: DesiredFilters, observed: ObservedFilters) -> bool:
    """Whether guestd may change or remove an observed filter."""
    there = observed.filters[name]
    row = desired.filters.get(name)
    is_row = row is not None and row.uuid == there.uuid
    return name.startswith(PREFIX) and (is_row or (name, there.uuid) in desired.known)


def _find_bad_trees(accepted: Mapping[str, Filter], remaining: Mapping[str, Filter]) -> dict[str, str]:
    """The accepted filters that include themselves or a missing filter; else those whose trees are too large."""
    filters = {**remaining, **accepted}
    edges = list_edges(filters)
    found = {
        name: reason
        for name in _find_unresolvable(edges)
        if name in accepted and (reason := _find_bad_path(name, edges))
    }
    return found or {
        name: TOO_LARGE
        for name, count in count_tree_entries(filters).items()
        if name in accepted and count > MAX_TREE_ENTRIES
    }


def _find_unresolvable(edges: Mapping[str, Sequence[str]]) -> set[str]:
    """The filters that lead to a cycle or to a missing filter."""
    missing = {target for targets in edges.values() for target in targets} - edges.keys()
    # A missing filter counts as one that includes itself: neither it nor what leads to it is ever resolved.
    return edges.keys() - set(order_targets_first({**edges, **{name: (name,) for name in missing}}))


def _find_conflict(
    each: Filter,
    occupants: Iterable[str],
    accepted: Mapping[str, Filter],
    desired: DesiredFilters,
    observed: ObservedFilters,
) -> str | None:
    """Why a filter cannot have its name or uuid, or None."""
    if not each.name.startswith(PREFIX):
        return f"its name does not begin with {PREFIX}"
    for name in occupants:
        if not is_own(name, desired, observed):
            return f"libvirt has {name} with uuid {observed.filters[name].uuid}, which guestd did not define"
        if not observed.are_uses_known:
            return f"it needs the name or uuid of {name}, and something that cannot be read may use that"
        for user in _list_users([name], observed):
            if user in observed.bound:
                return f"it needs the name or uuid of {name}, and an interface uses {user}"
            is_staying = user in desired.invalid or (user in desired.filters and user not in accepted)
            if is_staying or not is_own(user, desired, observed):
                return f"it needs the name or uuid of {name}, which {user} includes"
    return None


def _occupants(each: Filter, observed: ObservedFilters, names: Mapping[UUID, str]) -> list[str]:
    """The filters that occupy its name (with another uuid) or its uuid (in `names`, under another name)."""
    there = observed.filters.get(each.name)
    occupants = [each.name] if there is not None and there.uuid != each.uuid else []
    other = names.get(each.uuid, each.name)
    return occupants if other == each.name else [*occupants, other]


def _list_users(names: Iterable[str], observed: ObservedFilters) -> list[str]:
    """These filters and all that include one of them, directly or through others."""
    return list(reach(names, list_includers(list_edges(observed.filters))))


def _find_bad_path(start: str, edges: Mapping[str, Sequence[str]]) -> str | None:
    """The path from a filter back to itself, or to a missing one; None where neither exists."""
    waiting, includer_of = [start], {start: ""}
    while waiting:
        name = waiting.pop()
        for target in edges[name]:
            if target == start:
                return f"it includes itself: {_describe_path(name, target, includer_of)}"
            if target not in edges:
                return f"it includes a filter that libvirt does not have: {_describe_path(name, target, includer_of)}"
            if target not in includer_of:
                includer_of[target] = name
                waiting.append(target)
    return None


def _describe_path(name: str, end: str, includer_of: Mapping[str, str]) -> str:
    path = [end]
    while name:
        path.append(name)
        name = includer_of[name]
    if len(path) > SHOWN_PATH:
        path[SHOWN_PATH // 2 : -SHOWN_PATH // 2] = [f"({len(path) - SHOWN_PATH} more)"]
    return " -> ".join(reversed(path))
