"""A filter that libvirt prints is, as a model, the one that it was given."""

from contextlib import suppress
from typing import Any
from uuid import UUID, uuid5

import pytest
from hypothesis import HealthCheck, given, settings

from guestd.filters.compiler import compile_filter
from guestd.filters.model import Filter, Reference, Rule
from guestd.filters.snapshot import FilterRow
from guestd.filters.xml import parse_filter, render_filter
from support.filter_rows import filter_rows, wild_filter_rows
from support.filter_xml import filter_entries
from support.libvirt import libvirt

pytestmark = pytest.mark.timeout(600)
COPY = "ibay-copy"
SPACE = UUID(int=0)


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=filter_rows())
def test_a_generated_filter_comes_back_equal(nwfilters: Any, row: FilterRow) -> None:
    compiled = compile_filter(row, {})
    assert isinstance(compiled, Filter)
    assert parse_filter(nwfilters.nwfilterDefineXML(render_filter(compiled)).XMLDesc()) == compiled


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=wild_filter_rows())
def test_rows_that_libvirt_would_change_are_refused_first(nwfilters: Any, row: FilterRow) -> None:
    compiled = compile_filter(row, {})
    if isinstance(compiled, Filter):
        assert parse_filter(nwfilters.nwfilterDefineXML(render_filter(compiled)).XMLDesc()) == compiled
    else:
        assert all(problem.column and problem.reason for problem in compiled)


def test_libvirts_own_filters_come_back_equal_under_another_name(nwfilters: Any) -> None:
    own = [parse_filter(each.XMLDesc()) for each in nwfilters.listAllNWFilters()]
    stock = {each.name: each for each in own if not each.name.startswith("ibay-")}
    assert len(stock) > 20
    for each in stock.values():
        copy = Filter(COPY, uuid5(SPACE, COPY), each.chain, each.priority or -1, each.entries)
        assert parse_filter(nwfilters.nwfilterDefineXML(render_filter(copy)).XMLDesc()) == copy
        assert_written_as_read(nwfilters, render_filter(copy))
    kinds = [type(each) for each in stock["clean-traffic"].entries]
    assert kinds.index(Rule) < max(place for place, kind in enumerate(kinds) if kind is Reference)


def assert_written_as_read(nwfilters: Any, xml: str) -> None:
    """What guestd writes of a filter that libvirt prints, libvirt prints in the same way."""
    printed = nwfilters.nwfilterDefineXML(xml).XMLDesc()
    assert nwfilters.nwfilterDefineXML(render_filter(parse_filter(printed))).XMLDesc() == printed


@settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(entries=filter_entries)
def test_nothing_of_what_libvirt_prints_is_lost_or_moved(nwfilters: Any, entries: list[str]) -> None:
    frame = f"<filter name='{COPY}' chain='root'><uuid>{uuid5(SPACE, COPY)}</uuid>{{}}</filter>"
    accepted = []
    for each in entries:  # libvirt refuses the whole filter for one entry
        with suppress(libvirt.libvirtError):
            nwfilters.nwfilterDefineXML(frame.format(each))
            accepted.append(each)
    assert_written_as_read(nwfilters, frame.format("".join(accepted)))


@pytest.mark.parametrize("row_priority", [-1000, -1, 1, 1000])
def test_a_stated_priority_of_a_chain_is_kept(nwfilters: Any, row_priority: int) -> None:
    compiled = Filter(COPY, uuid5(SPACE, COPY), "ipv4", row_priority)
    assert parse_filter(nwfilters.nwfilterDefineXML(render_filter(compiled)).XMLDesc()) == compiled
