"""Which filters include which: edges lead from a filter to its targets.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter

from guestd.filters.model import Filter

Edges = Mapping[str, Sequence[str]]
# libvirt walks a filter as often as it is included: filters that include each other twice, ten deep, are a thousand
# walks. It needs 10 ms for each rule of each interface, so that machines with a tree of this size hardly start.
MAX_TREE_ENTRIES = 10_000


def list_edges(filters: Mapping[str, Filter]) -> dict[str, tuple[str, ...]]:
    """The targets of each filter."""
    return {name: tuple(reference.target for reference in each.references) for name, each in filters.items()}


def list_includers(edges: Edges) -> dict[str, list[str]]:
    """The filters that include each filter directly: the same edges, reversed."""
    includers: dict[str, list[str]] = {}
    for name, targets in edges.items():
        for target in targets:
            includers.setdefault(target, []).append(name)
    return includers


def reach(names: Iterable[str], edges: Edges) -> Iterator[str]:
    """These names and all that the edges lead to, each once."""
    waiting, met = list(names), set[str]()
    while waiting:
        name = waiting.pop()
        if name not in met:
            met.add(name)
            yield name
            waiting += edges.get(name, ())


def order_targets_first(edges: Edges) -> list[str]:
    """All names, each after its targets. Names in a cycle, and those that lead to one, are left out."""
    sorter = TopologicalSorter({name: edges[name] for name in sorted(edges)})
    with suppress(CycleError):  # what does not lead to a cycle is ordered all the same
        sorter.prepare()
    ordered: list[str] = []
    while ready := sorter.get_ready():
        ordered += ready
        sorter.done(*ready)
    return ordered


def count_tree_entries(filters: Mapping[str, Filter]) -> dict[str, int]:
    """The rules and references that libvirt walks for each filter, those of an included filter each time.

    At most one more than MAX_TREE_ENTRIES. Filters in a cycle, and those that lead to one, are left out; a missing
    target counts as empty.
    """
    edges = list_edges(filters)
    counts: dict[str, int] = {}
    for name in order_targets_first({name: [each for each in edges[name] if each in edges] for name in edges}):
        count = len(filters[name].entries) + sum(counts.get(target, 0) for target in edges[name])
        counts[name] = min(count, MAX_TREE_ENTRIES + 1)
    return counts
