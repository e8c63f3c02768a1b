"""A plan that opens more machines than allowed waits until an operator confirms it."""

from dataclasses import replace
from uuid import UUID

import pytest

from guestd.filters.desired import DesiredFilters
from guestd.filters.diff import find_hold
from guestd.filters.model import Filter, Rule
from guestd.filters.plan import Define, FilterPlan, Guard, Remove, digest_plan, plan_filters
from guestd.filters.snapshot import ObservedFilters

ACCEPT = Rule("accept", "in", 500, "tcp")
DROP = replace(ACCEPT, action="drop")


def made(count: int, *entries: Rule) -> dict[str, Filter]:
    names = [f"ibay-{number}" for number in range(count)]
    return {name: Filter(name, UUID(int=number), "root", 500, entries) for number, name in enumerate(names)}


@pytest.mark.parametrize(
    ("guard", "bound", "opened", "is_held"),
    [
        (Guard(0, 0.0), 1, 1, False),
        (Guard(0, 0.0), 2, 2, True),
        (Guard(20, 0.5), 3, 1, False),
        (Guard(20, 0.5), 3, 2, True),
        (Guard(20, 0.5), 4, 2, False),
        (Guard(20, 0.5), 40, 20, False),
        (Guard(20, 0.5), 60, 20, False),
        (Guard(20, 0.5), 60, 21, True),
        (Guard(100, 1.0), 60, 60, False),
    ],
)
def test_a_plan_that_opens_more_machines_than_allowed_is_held(
    guard: Guard, bound: int, opened: int, *, is_held: bool
) -> None:
    there = made(bound, DROP, ACCEPT)
    after = {
        name: replace(each, entries=(ACCEPT,)) if number < opened else each
        for number, (name, each) in enumerate(there.items())
    }
    plan = plan_filters(DesiredFilters(after), ObservedFilters(there, frozenset(there)), guard)
    assert len(plan.actions) == opened
    held = [each.name for each in plan.reports if each.kind == "held"]
    if is_held:
        assert held == sorted(after.keys() - {name for name in after if after[name] == there[name]})
        assert plan.needs_confirmation is not None
        share = f"it would open {opened} of {bound} machines, and {max(1, min(guard.most_removals, bound // 2))} may be"
        assert plan.needs_confirmation.startswith(f"{share} opened at once; {held[0]}: tcp in from ")
        assert "; it would" not in plan.needs_confirmation
    else:
        assert (plan.needs_confirmation, held) == (None, [])


def test_machines_that_an_interface_does_not_use_are_not_opened() -> None:
    there = made(5, DROP, ACCEPT)
    after = {name: replace(each, entries=(ACCEPT,)) for name, each in there.items()}
    assert plan_filters(DesiredFilters(after), ObservedFilters(there), Guard(0, 0.0)).needs_confirmation is None


def test_a_plan_that_empties_filters_and_opens_machines_has_both_reasons() -> None:
    there = made(2, DROP)
    after = {name: replace(each, entries=()) for name, each in there.items()}
    reason = plan_filters(DesiredFilters(after), ObservedFilters(there, frozenset(there)), Guard(0)).needs_confirmation
    assert reason is not None
    assert reason.startswith("it would remove or empty 2 of 2 filters, and 0 are allowed at once; it would open 2 of 2")


def plan_of(*, opened: tuple[str, ...] = (), rules: tuple[Rule, ...] = (DROP,), uuid: int = 7) -> FilterPlan:
    (definition,) = made(1, *rules).values()
    actions = Define(definition, "1 rule added"), Remove("ibay-7", UUID(int=uuid), "the store has no such filter")
    return FilterPlan(actions, (), "it would open many", dict.fromkeys(opened, "tcp in would pass"))


def test_a_digest_names_the_definitions_the_removals_and_the_machines_that_a_plan_opens() -> None:
    plan = plan_of(opened=("ibay-a", "ibay-b"))
    others = (
        plan_of(opened=("ibay-a", "ibay-b"), rules=(ACCEPT,)),
        plan_of(opened=("ibay-a", "ibay-b"), rules=(replace(DROP, is_stateful=False),)),
        plan_of(opened=("ibay-a", "ibay-b"), uuid=8),
        plan_of(opened=("ibay-a",)),
        replace(plan, actions=plan.actions[:1]),
        replace(plan, actions=plan.actions[1:]),
    )
    assert len({digest_plan(each) for each in (plan, *others)}) == 7
    assert len(digest_plan(plan)) == 12
    same = replace(plan_of(opened=("ibay-b", "ibay-a")), actions=plan.actions[::-1], needs_confirmation=None)
    assert digest_plan(same) == digest_plan(plan)


def test_the_digest_of_a_plan_is_one_of_what_it_opens() -> None:
    there = made(3, DROP, ACCEPT)
    after = {name: replace(each, entries=(ACCEPT,)) for name, each in there.items()}
    few, all_three = (
        plan_filters(DesiredFilters(after), ObservedFilters(there, frozenset([*there][:count])), Guard(0))
        for count in (2, 3)
    )
    assert few.actions == all_three.actions
    assert [*few.opened] == [*there][:2]
    assert digest_plan(few) != digest_plan(all_three)


def test_a_run_applies_the_confirmed_plan_and_no_other() -> None:
    held, free = plan_of(), replace(plan_of(rules=(ACCEPT,)), needs_confirmation=None)
    assert find_hold(held, None) == "it would open many"
    assert find_hold(held, digest_plan(held)) is None
    assert find_hold(free, None) is None
    assert find_hold(free, digest_plan(free)) is None
    other = find_hold(held, "0123456789ab")
    assert other == f"the plan is not 0123456789ab but {digest_plan(held)} now: it would open many"
    assert digest_plan(free) in (find_hold(free, digest_plan(held)) or "")
