"""What the last two reconcile runs decoded, compiled and parsed, so that a run without changes repeats none of it.

Pure. Every value is found by the content that it was made from, so no entry can be outdated. Entries that two runs did
not use are dropped. Whoever makes runs owns a cache and ends each run with `end_run`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

from guestd.filters import compiler, machine_filter
from guestd.filters.compiler import Problem
from guestd.filters.model import Filter, Rule
from guestd.filters.network_services import Policy, Ports
from guestd.filters.snapshot import FilterRow
from guestd.filters.xml import digest_filter, parse_filter

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
CompileResult = Filter | tuple[Problem, ...]


class _Compiled(NamedTuple):
    """A row and the names of the filters that it includes, and what they compile to."""

    row: FilterRow
    targets: tuple[str | None, ...]
    result: CompileResult


class _Digested(NamedTuple):
    """A filter and its digest."""

    definition: Filter
    digest: str


class _LastTwoRuns(Generic[Key, Value]):
    """Values of this run and of the one before."""

    def __init__(self) -> None:
        self._before: dict[Key, Value] = {}
        self._now: dict[Key, Value] = {}

    def get(self, key: Key) -> Value | None:
        found = self._now.get(key)
        return self._before.get(key) if found is None else found

    def put(self, key: Key, value: Value) -> Value:
        self._now[key] = value
        return value

    def get_or_make(self, key: Key, make: Callable[[], Value]) -> Value:
        found = self.get(key)
        return self.put(key, make() if found is None else found)

    def end_run(self) -> None:
        self._before, self._now = self._now, {}

    def __len__(self) -> int:
        return len(self._before.keys() | self._now.keys())


class FilterCache:
    """Filters made from rows and from libvirt's XML, and the machines' own rules.

    Equal filters of both sides are one object, so that comparing them costs nothing.
    """

    def __init__(self) -> None:
        self._rows = _LastTwoRuns[Hashable, FilterRow]()
        self._compiled = _LastTwoRuns[UUID, _Compiled]()
        self._parsed = _LastTwoRuns[str, Filter]()
        self._by_name = _LastTwoRuns[str, Filter]()
        self._digests = _LastTwoRuns[str, _Digested]()
        self._own_rules = _LastTwoRuns[Hashable, tuple[Rule, ...]]()

    def has_row(self, key: Hashable) -> bool:
        """Whether `get_row` would decode nothing."""
        return self._rows.get(key) is not None

    def get_row(self, key: Hashable, decode: Callable[[], FilterRow]) -> FilterRow:
        """The row of a filter; decoded only where the store returned another `key` before."""
        return self._rows.get_or_make(key, decode)

    def compile_filter(self, row: FilterRow, names: Mapping[UUID, str]) -> CompileResult:
        """As `compiler.compile_filter`."""
        targets = tuple(names.get(target) for target in row.targets)
        entry = self._compiled.get(row.id)
        if entry is None or (entry.row, entry.targets) != (row, targets):
            result = compiler.compile_filter(row, names)
            entry = _Compiled(row, targets, self._share(result) if isinstance(result, Filter) else result)
        return self._compiled.put(row.id, entry).result

    def parse_filter(self, xml: str) -> Filter:
        """As `xml.parse_filter`."""
        return self._parsed.get_or_make(xml, lambda: self._share(parse_filter(xml)))

    def digest_filter(self, definition: Filter) -> str:
        """As `xml.digest_filter`."""
        entry = self._digests.get(definition.name)
        if entry is None or (entry.definition is not definition and entry.definition != definition):
            entry = _Digested(definition, digest_filter(definition))
        return self._digests.put(definition.name, entry).digest

    def build_own_rules(self, services: Mapping[str, Policy], ports: tuple[Ports, ...]) -> tuple[Rule, ...]:
        """As `machine_filter.build_own_rules`: many machines have the same rules."""
        key = frozenset(services.items()), ports
        return self._own_rules.get_or_make(key, lambda: machine_filter.build_own_rules(services, ports))

    def end_run(self) -> None:
        """Drop what neither this run nor the one before used."""
        for values in self._all():
            values.end_run()

    def _share(self, made: Filter) -> Filter:
        known = self._by_name.get(made.name)
        return known if known == made else self._by_name.put(made.name, made)

    def __len__(self) -> int:
        return sum(len(values) for values in self._all())

    def _all(self) -> tuple[_LastTwoRuns[Any, Any], ...]:
        return self._rows, self._compiled, self._parsed, self._by_name, self._digests, self._own_rules
