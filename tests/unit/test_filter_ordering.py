"""Filters of one chain with several priorities: conflicts are refused before libvirt gets the definitions."""

from dataclasses import replace
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from guestd.filters.chain_conflict import find_chain_conflict
from guestd.filters.desired import DesiredFilters
from guestd.filters.model import Filter, Reference, Rule
from guestd.filters.plan import Define, FilterPlan, Guard, plan_filters
from guestd.filters.snapshot import ObservedFilters

TOP = "ibay-9"
ALL = Guard(1000)


def chained(name: str, priority: int, *rule_priorities: int, direction: str = "in", chain: str = "ipv4") -> Filter:
    rules = tuple(Rule("accept", direction, each, "ip") for each in rule_priorities)
    return Filter(name, UUID(int=int(name[-1])), chain, priority, rules)


def top(*targets: str) -> Filter:
    return Filter(TOP, UUID(int=9), "root", 0, tuple(Reference(each) for each in targets))


def by_name(*filters: Filter) -> dict[str, Filter]:
    return {each.name: each for each in filters}


def plan(desired: dict[str, Filter], there: dict[str, Filter]) -> FilterPlan:
    known = frozenset((each.name, each.uuid) for each in there.values())
    return plan_filters(
        DesiredFilters(desired, known=known, tops=frozenset({TOP})), ObservedFilters(there, frozenset({TOP})), ALL
    )


def defined(found: FilterPlan) -> list[str]:
    return [action.definition.name for action in found.actions if isinstance(action, Define)]


LOW, HIGH = chained("ibay-1", 100, 100), chained("ibay-2", 500, 500)
BOTH = top("ibay-1", "ibay-2")


def test_a_rule_before_its_chain_is_a_conflict() -> None:
    found = find_chain_conflict(BOTH, by_name(LOW, HIGH))
    assert found is not None
    assert (found.chain, found.early, found.late) == ("ipv4", LOW, HIGH)
    assert "ibay-1 (priority 100) and ibay-2 (priority 500)" in str(found)


def test_chains_of_one_priority_other_directions_or_other_names_do_not_conflict() -> None:
    for other in (
        replace(HIGH, priority=100),
        chained("ibay-2", 500, 500, direction="out"),
        chained("ibay-2", 500, 500, chain="ipv4-x"),
        chained("ibay-2", 500, 50),
    ):
        assert find_chain_conflict(BOTH, by_name(LOW, other)) is None


def test_an_edit_that_a_machine_could_not_start_with_is_refused_and_both_filters_are_reported() -> None:
    there = by_name(chained("ibay-1", 500, 100), HIGH, BOTH)
    found = plan({**there, "ibay-1": LOW}, there)
    assert found.actions == ()
    assert [(each.kind, each.name) for each in found.reports] == [("refused", "ibay-1"), ("clash", "ibay-2")]
    assert all("ibay-1 (priority 100) and ibay-2 (priority 500)" in each.text for each in found.reports)


def test_a_machines_filter_that_includes_both_is_refused_and_they_are_not() -> None:
    found = plan(by_name(LOW, HIGH, BOTH), by_name(LOW, top("ibay-1")))
    assert defined(found) == ["ibay-2"]
    assert [(each.kind, each.name) for each in found.reports] == [
        ("refused", TOP), ("clash", "ibay-1"), ("clash", "ibay-2"),
    ]  # fmt: skip


def test_an_existing_conflict_is_reported_and_blocks_nothing() -> None:
    there = by_name(LOW, HIGH, BOTH)
    found = plan({**there, "ibay-2": chained("ibay-2", 500, 500, 900)}, there)
    assert defined(found) == ["ibay-2"]
    assert [each.kind for each in found.reports] == ["clash", "clash"]


def test_filters_of_a_chain_change_their_priority_in_the_order_that_works() -> None:
    old, new = (by_name(chained("ibay-1", each, -900), chained("ibay-2", each, -800), BOTH) for each in (-100, 100))
    assert sorted(defined(plan(new, old))) == sorted(defined(plan(old, new))) == ["ibay-1", "ibay-2"]
    assert defined(plan(new, old)) != defined(plan(old, new))


chains = st.builds(
    chained,
    st.sampled_from(["ibay-1", "ibay-2", "ibay-3"]),
    st.sampled_from([-100, 100, 500]),
    st.sampled_from([-800, 100, 500]),
    direction=st.sampled_from(["in", "out", "inout"]),
    chain=st.sampled_from(["ipv4", "ipv4-x", "root"]),
)
worlds = st.lists(chains, max_size=3).map(lambda found: {each.name: each for each in found})


@given(worlds, worlds)
def test_after_each_step_of_a_plan_an_installable_tree_is_still_installable(
    before: dict[str, Filter], after: dict[str, Filter]
) -> None:
    world = {**before, TOP: top(*sorted(before))}
    was_installable = find_chain_conflict(world[TOP], world) is None
    desired = {**before, **after, TOP: top(*sorted({**before, **after}))}
    found = plan(desired, dict(world))
    for action in found.actions:
        assert isinstance(action, Define)
        world[action.definition.name] = action.definition
        assert not was_installable or find_chain_conflict(world[TOP], world) is None
    refused = {each.name for each in found.reports if each.kind == "refused"}
    assert all(world.get(name) == each for name, each in desired.items() if name not in refused)
    assert plan(desired, dict(world)).actions == ()


def test_a_conflict_counts_in_a_machine_filter_and_in_what_an_interface_uses() -> None:
    filters = by_name(BOTH, LOW, HIGH)
    for tops, bound, there in (({TOP}, set[str](), {}), (set[str](), {TOP}, filters)):
        desired = DesiredFilters(filters, tops=frozenset(tops))
        found = plan_filters(desired, ObservedFilters(there, frozenset(bound)), ALL)
        assert any("ibay-1 (priority 100) and ibay-2 (priority 500)" in report.text for report in found.reports)


def test_conflicts_are_reported_in_the_order_of_names() -> None:
    there = by_name(BOTH, chained("ibay-2", 100, 100), chained("ibay-1", 500, 500))
    found = plan(there, there)
    assert [(report.kind, report.name) for report in found.reports] == [("clash", "ibay-1"), ("clash", "ibay-2")]
