"""What the pass before decoded, compiled and read, so that a pass in which nothing has changed does none of it again.

Pure. All is found by its content, so that nothing here can be out of date; what two passes did not ask for is
forgotten. Whoever makes passes owns one, and ends each with `end_pass`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, TypeVar
from uuid import UUID

from guestd.filters import compiler
from guestd.filters import xml as nwfilterxml
from guestd.filters.compiler import FilterRow, Problem
from guestd.filters.machine_filter import own_rules
from guestd.filters.model import Filter, Rule
from guestd.filters.services import Policy, Ports

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
Compiled = Filter | tuple[Problem, ...]


class _Kept(Generic[Key, Value]):
    """Values of this pass and of the one before."""

    def __init__(self) -> None:
        self._before: dict[Key, Value] = {}
        self._now: dict[Key, Value] = {}

    def get(self, key: Key) -> Value | None:
        found = self._now.get(key)
        return self._before.get(key) if found is None else found

    def keep(self, key: Key, value: Value) -> Value:
        self._now[key] = value
        return value

    def value(self, key: Key, make: Callable[[], Value]) -> Value:
        found = self.get(key)
        return self.keep(key, make() if found is None else found)

    def end_pass(self) -> None:
        self._before, self._now = self._now, {}

    def __len__(self) -> int:
        return len(self._before.keys() | self._now.keys())


class Memory:
    """Filters of rows and of libvirt's XML, and the rules that machines have of their own.

    Of a filter that both have alike there is one object, so that comparing the two costs nothing.
    """

    def __init__(self) -> None:
        self._rows = _Kept[Hashable, FilterRow]()
        self._compiled = _Kept[UUID, tuple[FilterRow, tuple[str | None, ...], Compiled]]()
        self._read = _Kept[str, Filter]()
        self._by_name = _Kept[str, Filter]()
        self._own_rules = _Kept[Hashable, tuple[Rule, ...]]()

    def knows(self, stored: Hashable) -> bool:
        """Whether `row` would decode nothing."""
        return self._rows.get(stored) is not None

    def row(self, stored: Hashable, decode: Callable[[], FilterRow]) -> FilterRow:
        """A filter's row, decoded unless the store gave the very same before."""
        return self._rows.value(stored, decode)

    def compiled(self, row: FilterRow, names: Mapping[UUID, str]) -> Compiled:
        """As `rows.compiled`."""
        targets = tuple(names.get(target) for target in row.targets)
        kept = self._compiled.get(row.id)
        if kept is None or kept[:2] != (row, targets):
            became = compiler.compiled(row, names)
            kept = row, targets, self._one(became) if isinstance(became, Filter) else became
        return self._compiled.keep(row.id, kept)[2]

    def read(self, xml: str) -> Filter:
        """As `nwfilterxml.read`."""
        return self._read.value(xml, lambda: self._one(nwfilterxml.read(xml)))

    def own_rules(self, services: Mapping[str, Policy], ports: tuple[Ports, ...]) -> tuple[Rule, ...]:
        """As `effective.own_rules`: many machines have the same."""
        key = frozenset(services.items()), ports
        return self._own_rules.value(key, lambda: own_rules(services, ports))

    def end_pass(self) -> None:
        """Forget what this pass and the one before did not ask for."""
        for kept in self._all():
            kept.end_pass()

    def _one(self, found: Filter) -> Filter:
        known = self._by_name.get(found.name)
        return known if known == found else self._by_name.keep(found.name, found)

    def __len__(self) -> int:
        return sum(len(kept) for kept in self._all())

    def _all(self) -> tuple[_Kept[Any, Any], ...]:
        return self._rows, self._compiled, self._read, self._by_name, self._own_rules
