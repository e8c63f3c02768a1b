"""A plan that opens more machines than allowed waits until an operator confirms it."""

from dataclasses import replace
from uuid import UUID

import pytest

from guestd.filters.apply import RecentChanges
from guestd.filters.desired import DesiredFilters
from guestd.filters.diff import find_hold
from guestd.filters.model import Filter, Rule
from guestd.filters.plan import Define, FilterPlan, Guard, Past, Remove, digest_plan, plan_filters
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


def plan_opening(names: list[str], past: Past) -> FilterPlan:
    """The plan that opens these of ten machines, of which three may be opened at once."""
    there = made(10, DROP, ACCEPT)
    after = {name: replace(each, entries=(ACCEPT,)) if name in names else each for name, each in there.items()}
    return plan_filters(DesiredFilters(after), ObservedFilters(there, frozenset(there)), Guard(20, 0.3), past)


def test_machines_that_were_opened_shortly_before_count_together_with_those_of_the_plan() -> None:
    opened = {"ibay-7": 5.9, "ibay-8": 5.9, "ibay-9": 5.9}
    plan = plan_opening(["ibay-0"], Past(opened_seconds_ago=opened))
    assert plan.needs_confirmation is not None
    assert plan.needs_confirmation.startswith(
        "it would open 1 of 10 machines, after 3 shortly before, and 3 may be opened at once; ibay-0: tcp in from "
    )
    two = {"ibay-7": 0.0, "ibay-8": 0.0}
    for free in ({**opened, "ibay-7": 6.0}, two, {"ibay-0": 0.0, **two}):
        assert plan_opening(["ibay-0"], Past(opened_seconds_ago=free)).needs_confirmation is None
    more = {**opened, "ibay-6": 0.0}
    assert plan_opening([], Past(opened_seconds_ago=more)).needs_confirmation is None, "it opens nothing"


def test_a_loop_of_single_edits_is_held_and_a_person_is_not() -> None:
    names = [*made(10)]
    for seconds, applied in ((0.5, 3), (1.9, 3), (2.0, 10)):
        recent, count = RecentChanges(), 0
        for number, name in enumerate(names):
            plan = plan_opening([name], recent.get_past(seconds * number))
            if plan.needs_confirmation is not None:
                break
            recent.note(plan, seconds * number)
            count += 1
        assert count == applied, seconds


def test_an_opening_that_was_held_stays_held_however_few_are_left_until_its_rows_are_set_back() -> None:
    held = Past(held=frozenset({"ibay-0", "ibay-1"}))
    plan = plan_opening(["ibay-0", "ibay-2"], held)
    assert plan.needs_confirmation is not None
    assert plan.needs_confirmation.startswith(
        "it would open 2 of 10 machines, 1 of which were held before, and 3 may be opened at once; ibay-0: "
    )
    assert plan_opening(["ibay-2"], held).needs_confirmation is None
    assert plan_opening([], held).needs_confirmation is None


def test_filters_that_were_lost_shortly_before_count_together_with_those_of_the_plan() -> None:
    there = made(5, DROP)
    after = {name: replace(each, entries=() if name == "ibay-0" else each.entries) for name, each in there.items()}

    def find_reason(lost: dict[str, float]) -> str | None:
        past = Past(lost_seconds_ago=lost)
        return plan_filters(DesiredFilters(after), ObservedFilters(there), Guard(20, 0.4), past).needs_confirmation

    reason = "it would remove or empty 1 of 5 filters, after 2 shortly before, and 2 are allowed at once"
    assert find_reason({"ibay-8": 3.9, "ibay-9": 3.9}) == reason
    for free in ({"ibay-8": 4.0, "ibay-9": 3.9}, {"ibay-0": 0.0, "ibay-9": 0.0}):
        assert find_reason(free) is None


def test_recent_changes_are_those_of_the_plans_that_were_applied() -> None:
    recent = RecentChanges()
    plan = replace(plan_of(opened=("ibay-a",)), lost=frozenset({"ibay-7"}))
    recent.note(plan, 100.0)
    assert recent.get_past(101.5) == Past(opened_seconds_ago={"ibay-a": 1.5}, lost_seconds_ago={"ibay-7": 1.5})


def test_a_plan_names_the_filters_that_it_removes_and_empties() -> None:
    there = made(3, DROP)
    after = {name: replace(each, entries=()) for name, each in there.items() if name == "ibay-0"}
    known = frozenset((each.name, each.uuid) for each in there.values())
    plan = plan_filters(DesiredFilters(after, known=known), ObservedFilters(there), Guard(20))
    assert plan.lost == {*there}
