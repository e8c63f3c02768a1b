"""A pass in which nothing has changed compiles and reads nothing again."""

from copy import deepcopy
from dataclasses import replace
from uuid import UUID

from hypothesis import given

from guestd.filters.cache import Memory
from guestd.filters.compiler import FilterRow, compiled
from guestd.filters.desired import MachineRow, Rows, asked
from guestd.filters.model import Filter
from guestd.filters.services import Policy, Ports
from guestd.filters.xml import write
from support.filter_rows import filter_row, filter_rows, rule_row

ROW = filter_row(rule_row(state={"new": True}))
MACHINE = MachineRow(
    UUID(int=5), "web", "vm-web", ("10.0.0.2",), (ROW.id,), (), False, {"ssh": Policy(True, True)}, {},
    (Ports("tcp", 80, 80),),
)  # fmt: skip


@given(before=filter_rows(), after=filter_rows())
def test_what_is_remembered_is_what_is_compiled_and_read(before: FilterRow, after: FilterRow) -> None:
    memory = Memory()
    for row in (before, after, before, deepcopy(after)):
        fresh = compiled(row, {})
        assert memory.compiled(row, {}) == fresh
        assert isinstance(fresh, Filter)
        assert memory.read(write(fresh)) == fresh
        memory.end_pass()


def test_a_row_that_has_not_changed_and_its_xml_are_the_same_object_again() -> None:
    memory = Memory()
    first = memory.compiled(ROW, {})
    assert isinstance(first, Filter)
    for _ in range(3):
        assert memory.compiled(deepcopy(ROW), {}) is first
        assert memory.read(write(first)) is first
        memory.end_pass()


def test_a_filter_that_is_included_and_renamed_compiles_its_includers_again() -> None:
    memory, target = Memory(), UUID(int=9)
    row = replace(ROW, targets=(target,))
    for name in ("ibay-one", "ibay-two"):
        found = memory.compiled(row, {target: name})
        assert isinstance(found, Filter)
        assert [each.target for each in found.references] == [name]
    assert not isinstance(memory.compiled(row, {}), Filter)


def test_what_two_passes_did_not_ask_for_is_forgotten() -> None:
    memory = Memory()
    asked(Rows((ROW,), (MACHINE,), {}), memory)
    memory.end_pass()
    assert len(memory) > 0
    memory.end_pass()
    assert len(memory) == 0


def test_a_quiet_pass_asks_for_the_same_and_makes_no_rules() -> None:
    memory, rows = Memory(), Rows((ROW,), (MACHINE, replace(MACHINE, id=UUID(int=6))), {"http": Policy(True, False)})
    first = asked(rows, memory)
    memory.end_pass()
    second = asked(deepcopy(rows), memory)
    assert second == first
    assert len({id(each.rules) for found in (first, second) for each in found.umbrellas.values()}) == 1
