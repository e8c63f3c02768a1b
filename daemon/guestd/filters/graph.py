"""Which filters include which: edges lead from a filter to its targets.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter

from guestd.filters.model import Filter

Edges = Mapping[str, Sequence[str]]


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
