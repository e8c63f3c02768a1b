"""A department of machines with one filter that drops everything, and the plan when its rows change."""

from collections.abc import Sequence
from uuid import UUID

from guestd.filters.desired import build_desired, compile_rows
from guestd.filters.machine_filter import machine_filter_name
from guestd.filters.model import Filter
from guestd.filters.network_services import Policy
from guestd.filters.plan import FilterPlan, Guard, plan_filters
from guestd.filters.snapshot import FilterRow, MachineRow, ObservedFilters, StoreSnapshot
from support.filter_rows import filter_row, rule_row

GUARD = Guard(20, 0.5)
DROP_ALL = filter_row(
    rule_row(id=UUID(int=21), action="drop", direction="inout", priority=900, protocol="all"),
    id=UUID(int=20), name="drop all", internal_name="ibay-drop", uuid=UUID(int=20),
)  # fmt: skip


def machines(count: int, *, department: tuple[UUID, ...] = (DROP_ALL.id,), is_clean: bool = False) -> list[MachineRow]:
    """Machines with an address each and the service http."""
    return [
        MachineRow(
            UUID(int=1000 + number), f"m{number}", f"vm-{number}", (f"10.9.{number // 200}.{number % 200 + 2}",), (),
            department, is_clean, {"http": Policy(False, True)}, {}, (),
        )
        for number in range(count)
    ]  # fmt: skip


def filters_of(rows: Sequence[FilterRow], these: Sequence[MachineRow]) -> dict[str, Filter]:
    """The filters that these rows describe, by name."""
    compiled = compile_rows(StoreSnapshot(tuple(rows), tuple(these), {}))
    return dict(build_desired(compiled, [each.id for each in these]).filters)


def plan_change(
    before: Sequence[MachineRow], after: Sequence[MachineRow], rows: Sequence[FilterRow] = (DROP_ALL,),
    later_rows: Sequence[FilterRow] | None = None,
) -> FilterPlan:  # fmt: skip
    """The plan where the rows of machines, all of them with an interface, change from one to the other."""
    there = filters_of(rows, before)
    bound = frozenset(machine_filter_name(each.id) for each in before)
    known = frozenset((each.name, each.uuid) for each in there.values())
    compiled = compile_rows(StoreSnapshot(tuple(rows if later_rows is None else later_rows), tuple(after), {}))
    return plan_filters(
        build_desired(compiled, [each.id for each in after], known), ObservedFilters(there, bound), GUARD
    )
