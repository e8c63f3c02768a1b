"""Filters that are to be defined, in an order in which libvirt can lay every machine's tree after each of them.

Pure. What would make a tree that can be laid one that cannot is refused (`filters.laying` says when that is), for
libvirt would take it where no machine runs, and then no machine would start with it. Two filters of a chain may change
their priority in one order and not in the other, so more than one is tried.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from guestd.filters.chain_conflict import Clash, clash
from guestd.filters.model import ROOT, Filter


def in_order(
    definitions: Sequence[Filter], there: Mapping[str, Filter], tops: Collection[str]
) -> tuple[list[Filter], dict[str, Clash]]:
    """The definitions in an order that works, and by name those for which there is none.

    `definitions` come after what they include, `there` is what libvirt has, `tops` are names of machines' filters.
    """
    suspects = _suspects(definitions, there, tops)
    if not suspects:
        return list(definitions), {}
    world, ordered, waiting = dict(there), list[Filter](), list(definitions)
    clashes: dict[str, Clash] = {}
    while waiting:
        left = []
        for each in waiting:
            found = _made_worse(each, world, suspects)
            is_there = all(to.target in world for to in each.references)
            if found is None and is_there and each.name not in _included(each, world):
                world[each.name] = each
                ordered.append(each)
            else:
                left.append(each)
                if found is not None:
                    clashes[each.name] = found
        if len(left) == len(waiting):
            break
        waiting = left
    return ordered, {each.name: clashes[each.name] for each in waiting if each.name in clashes}


def standing(filters: Mapping[str, Filter], tops: Collection[str]) -> Iterator[tuple[str, Clash]]:
    """The machines' filters that libvirt cannot lay."""
    for top in _suspects((), filters, tops):
        if (found := clash(filters[top], filters)) is not None:
            yield top, found


def _made_worse(each: Filter, world: Mapping[str, Filter], suspects: Mapping[str, frozenset[str]]) -> Clash | None:
    """What could be laid before, and cannot when this is defined."""
    after = {**world, each.name: each}
    for top in [top for top, names in suspects.items() if each.name in names and top in after]:
        found = clash(after[top], after)
        if found is not None and (top not in world or clash(world[top], world) is None):
            return found
    return None


def _suspects(
    definitions: Iterable[Filter], there: Mapping[str, Filter], tops: Collection[str]
) -> dict[str, frozenset[str]]:
    """Of machines' filters, those in whose trees a chain has two priorities, now or later; with what they include."""
    versions: dict[str, list[Filter]] = {}
    for each in (*there.values(), *definitions):
        versions.setdefault(each.name, []).append(each)
    chains = {name: {pair for each in both for pair in _chain(each)} for name, both in versions.items()}
    if not _is_mixed(chains.values()):
        return {}
    trees = {top: frozenset((top, *_reached(top, versions))) for top in sorted(tops) if top in versions}
    return {top: names for top, names in trees.items() if _is_mixed(chains[name] for name in names)}


def _chain(each: Filter) -> Iterator[tuple[str, int]]:
    if each.chain != ROOT and any(rule.is_link for rule in each.rules):
        yield each.chain, each.priority


def _is_mixed(found: Iterable[set[tuple[str, int]]]) -> bool:
    pairs = set[tuple[str, int]]().union(*found)
    return len({chain for chain, _ in pairs}) < len(pairs)


def _included(each: Filter, world: Mapping[str, Filter]) -> set[str]:
    """What it would include as things are, directly or through others."""
    return _reached(each.name, {name: (other,) for name, other in {**world, each.name: each}.items()})


def _reached(start: str, versions: Mapping[str, Sequence[Filter]]) -> set[str]:
    """What any version of a filter includes, directly or through any version of others."""
    met = set[str]()
    waiting = [to.target for each in versions[start] for to in each.references]
    while waiting:
        name = waiting.pop()
        if name not in met and name in versions:
            met.add(name)
            waiting += [to.target for each in versions[name] for to in each.references]
    return met
