"""A run without changes compiles and parses nothing again."""

from copy import deepcopy
from dataclasses import replace
from typing import cast
from uuid import UUID

from hypothesis import given

from guestd.filters.cache import FilterCache
from guestd.filters.compiler import compile_filter
from guestd.filters.desired import compile_rows
from guestd.filters.model import Filter
from guestd.filters.network_services import Policy, Ports
from guestd.filters.snapshot import FilterRow, MachineRow, StoreSnapshot
from guestd.filters.xml import digest_filter, render_filter
from support.filter_rows import filter_row, filter_rows, rule_row

ROW = filter_row(rule_row(state={"new": True}))
MACHINE = MachineRow(
    UUID(int=5), "web", "vm-web", ("10.0.0.2",), (ROW.id,), (), False, {"ssh": Policy(True, True)}, {},
    (Ports("tcp", 80, 80),),
)  # fmt: skip


@given(before=filter_rows(), after=filter_rows())
def test_the_cache_returns_what_compiling_and_parsing_return(before: FilterRow, after: FilterRow) -> None:
    cache = FilterCache()
    for row in (before, after, before, deepcopy(after)):
        fresh = compile_filter(row, {})
        assert cache.compile_filter(row, {}) == fresh
        assert isinstance(fresh, Filter)
        assert cache.parse_filter(render_filter(fresh)) == fresh
        cache.end_run()


def test_an_unchanged_row_and_its_xml_give_the_same_object() -> None:
    cache = FilterCache()
    first = cache.compile_filter(ROW, {})
    assert isinstance(first, Filter)
    for _ in range(3):
        assert cache.compile_filter(deepcopy(ROW), {}) is first
        assert cache.parse_filter(render_filter(first)) is first
        cache.end_run()


def test_a_filter_that_is_included_and_renamed_compiles_its_includers_again() -> None:
    cache, target = FilterCache(), UUID(int=9)
    row = replace(ROW, targets=(target,))
    for name in ("ibay-one", "ibay-two"):
        found = cache.compile_filter(row, {target: name})
        assert isinstance(found, Filter)
        assert [each.target for each in found.references] == [name]
    assert not isinstance(cache.compile_filter(row, {}), Filter)


def test_the_digest_of_a_filter_follows_its_definition() -> None:
    cache, first = FilterCache(), cast(Filter, compile_filter(ROW, {}))
    for definition in (first, deepcopy(first), replace(first, priority=7), first):
        assert cache.digest_filter(definition) == digest_filter(definition)


def test_entries_that_two_runs_did_not_use_are_dropped() -> None:
    cache = FilterCache()
    compile_rows(StoreSnapshot((ROW,), (MACHINE,), {}), cache)
    cache.end_run()
    assert len(cache) > 0
    cache.end_run()
    assert len(cache) == 0


def test_a_run_without_changes_makes_no_rules() -> None:
    cache, rows = (
        FilterCache(),
        StoreSnapshot((ROW,), (MACHINE, replace(MACHINE, id=UUID(int=6))), {"http": Policy(True, False)}),
    )
    first = compile_rows(rows, cache)
    cache.end_run()
    second = compile_rows(deepcopy(rows), cache)
    assert second == first
    assert (
        len({tuple(map(id, each.rules)) for found in (first, second) for each in found.machine_filters.values()}) == 1
    )
