"""The order of definitions in which libvirt can install every machine's tree after each step.

Pure. A definition is refused where it would turn an installable tree into one that is not (`filters.chain_conflict`):
libvirt accepts it while no machine runs, and then no machine with it starts. Two filters of a chain may change their
priority in one order and not in the other, so more than one order is tried.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from guestd.filters.chain_conflict import ChainConflict, find_chain_conflict
from guestd.filters.graph import list_edges, reach
from guestd.filters.model import ROOT, Filter


def order_definitions(
    definitions: Sequence[Filter], there: Mapping[str, Filter], tops: Collection[str]
) -> tuple[list[Filter], dict[str, ChainConflict]]:
    """The definitions in an order that works, and by name the conflicts of those that have none.

    `definitions` come after what they include, `there` is what libvirt has, `tops` are names of machine filters.
    """
    suspects = _find_suspects(definitions, there, tops)
    if not suspects:
        return list(definitions), {}
    world, ordered, waiting = dict(there), list[Filter](), list(definitions)
    conflicts: dict[str, ChainConflict] = {}
    while waiting:
        left = []
        for each in waiting:
            conflict = _find_new_conflict(each, world, suspects)
            has_targets = all(to.target in world for to in each.references)
            if conflict is None and has_targets and not _would_include_itself(each, world):
                world[each.name] = each
                ordered.append(each)
            else:
                left.append(each)
                if conflict is not None:
                    conflicts[each.name] = conflict
        if len(left) == len(waiting):
            break
        waiting = left
    return ordered, {each.name: conflicts[each.name] for each in waiting if each.name in conflicts}


def find_standing_conflicts(
    filters: Mapping[str, Filter], tops: Collection[str]
) -> Iterator[tuple[str, ChainConflict]]:
    """The machine filters that libvirt cannot install, each with its conflict."""
    for top in _find_suspects((), filters, tops):
        if (conflict := find_chain_conflict(filters[top], filters)) is not None:
            yield top, conflict


def _find_new_conflict(
    each: Filter, world: Mapping[str, Filter], suspects: Mapping[str, frozenset[str]]
) -> ChainConflict | None:
    """The conflict of a tree that is installable now, and no longer once this filter is defined."""
    after = {**world, each.name: each}
    for top in [top for top, names in suspects.items() if each.name in names and top in after]:
        conflict = find_chain_conflict(after[top], after)
        if conflict is not None and (top not in world or find_chain_conflict(world[top], world) is None):
            return conflict
    return None


def _find_suspects(
    definitions: Iterable[Filter], there: Mapping[str, Filter], tops: Collection[str]
) -> dict[str, frozenset[str]]:
    """The machine filters in whose trees a chain has two priorities, now or later; with the names in their trees."""
    versions: dict[str, list[Filter]] = {}
    for each in (*there.values(), *definitions):
        versions.setdefault(each.name, []).append(each)
    chains = {name: {pair for each in both for pair in _chain(each)} for name, both in versions.items()}
    if not _is_mixed(chains.values()):
        return {}
    edges = {name: [to.target for each in both for to in each.references] for name, both in versions.items()}
    trees = {top: versions.keys() & set(reach([top], edges)) for top in sorted(tops) if top in versions}
    return {top: frozenset(names) for top, names in trees.items() if _is_mixed(chains[name] for name in names)}


def _chain(each: Filter) -> Iterator[tuple[str, int]]:
    if each.chain != ROOT and any(rule.is_link for rule in each.rules):
        yield each.chain, each.priority


def _is_mixed(chains: Iterable[set[tuple[str, int]]]) -> bool:
    pairs = set[tuple[str, int]]().union(*chains)
    return len({chain for chain, _ in pairs}) < len(pairs)


def _would_include_itself(each: Filter, world: Mapping[str, Filter]) -> bool:
    edges = list_edges({**world, each.name: each})
    return each.name in reach(edges[each.name], edges)
