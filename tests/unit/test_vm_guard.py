"""A plan that changes too many machines at once is held until an operator confirms exactly that."""

from dataclasses import replace
from datetime import timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from guestd.hypervisor.domains import Domain
from guestd.vms import plan
from guestd.vms.guard import count_allowed, digest_changes, note_begun
from guestd.vms.model import BegunChange, Hold, Release, VmPlan, VmRow
from support.vm_world import BORN, SINCE, THERE, domain, facts_of, machine, policy


def plan_of(machines: list[VmRow], domains: list[Domain], **changes: object) -> VmPlan:
    return plan.plan_vms(machines, domains, attempts={}, absences={}, now=BORN, policy=policy(**changes))


def many(count: int, **changes: Any) -> list[VmRow]:
    return [machine(number, desired="off", desired_since=SINCE, **changes) for number in range(1, count + 1)]


def running(count: int) -> list[Domain]:
    return [domain(number) for number in range(1, count + 1)]


def test_an_update_of_all_machines_is_held_and_reported() -> None:
    found = plan_of(many(12), running(12), most_changes=10)
    assert (found.actions, len(found.held)) == ((), 12)
    held = [report for report in found.reports if report.kind == "held"]
    assert str(held[0]) == (
        "held: vm1: shutdown vm1: running, desired state is off: held: one of more than 10 changes within 18 s;"
        " guestd plan shows how to confirm it"
    )
    assert len(held) == 12


@pytest.mark.parametrize(("count", "is_held"), [(1, False), (2, False), (3, True), (10, True)])
def test_half_of_the_machines_may_change_at_once_and_always_two(count: int, is_held: bool) -> None:
    found = plan_of(many(count), running(count), most_changes=10, most_changes_share=0.5)
    assert (len(found.held), len(found.actions)) == ((count, 0) if is_held else (0, count))


def test_what_was_held_stays_held_however_few_are_left_until_it_is_confirmed() -> None:
    found = plan_of(many(12), running(12), most_changes=10)
    holds = [write for write in found.writes if isinstance(write, Hold)]
    assert [hold.machine_id for hold in holds] == [row.id for row in many(12)]
    # All but two were set back.
    left = plan_of(many(2, is_held=True), running(2), most_changes=10)
    assert (left.actions, len(left.held)) == ((), 2)
    assert not any(isinstance(write, Hold) for write in left.writes)
    both = [*many(1, is_held=True), machine(2, desired="off", desired_since=SINCE)]
    assert [action.name for action in plan_of(both, running(2), most_changes=10).actions] == ["vm2"]
    # A confirmation ends the hold.
    assert len(plan_of(many(2, confirmed_since=SINCE), running(2)).actions) == 2


def test_a_change_without_a_time_is_held_and_not_recorded() -> None:
    found = plan_of([replace(each, desired_since=None) for each in many(12)], running(12), most_changes=10)
    assert len(found.held) == 12
    assert not any(isinstance(write, Hold) for write in found.writes)


def test_only_the_machines_of_this_host_are_counted_for_the_share() -> None:
    machines = [*many(4), machine(9, host_id=THERE)]
    assert count_allowed(machines, policy(most_changes=10, most_changes_share=0.75)) == 3
    assert count_allowed(machines, policy(most_changes=10, most_changes_share=0.8)) == 3
    assert count_allowed(many(100), policy(most_changes=10, most_changes_share=0.5)) == 10
    assert count_allowed([], policy(most_changes=0, most_changes_share=0.0)) == 2


def test_what_is_confirmed_is_not_held_and_not_counted() -> None:
    confirmed = many(12, confirmed_since=SINCE)
    found = plan_of(confirmed, running(12), most_changes=10)
    assert (len(found.actions), found.held) == (12, ())
    later = [replace(row, desired_since=SINCE + timedelta(seconds=1)) for row in confirmed]
    assert len(plan_of(later, running(12), most_changes=10).held) == 12
    two = [*confirmed[:10], *many(12)[10:]]
    assert plan_of(two, running(12), most_changes=2).held == ()
    three = [*confirmed[:9], *many(12)[9:]]
    found = plan_of(three, running(12), most_changes=2)
    assert [action.name for action in found.held] == ["vm10", "vm11", "vm12"]
    assert len(found.actions) == 9


def test_a_desired_state_without_a_time_is_never_confirmed() -> None:
    rows = [replace(row, desired_since=None, confirmed_since=None) for row in many(12)]
    assert len(plan_of(rows, running(12), most_changes=10).held) == 12


def test_machines_that_ran_as_desired_and_crashed_are_started_all_at_once() -> None:
    domains = [domain(number, "shutoff", "crashed") for number in range(1, 13)]
    reached = [
        machine(number, "off", desired="running", desired_since=SINCE, facts=facts_of(seen, reached_since=SINCE))
        for number, seen in enumerate(domains, 1)
    ]
    assert len(plan_of(reached, domains, most_changes=10).actions) == 12
    for row in (
        replace(reached[0], facts=None),
        replace(reached[0], facts=facts_of(domains[0], reached_since=SINCE - timedelta(days=1))),
    ):
        rows = [replace(row, id=each.id, name=each.name) for each in reached]
        rows = [replace(each, facts=row.facts and replace(row.facts, domain_uuid=None)) for each in rows]
        assert len(plan_of(rows, domains, most_changes=10).held) == 12


def test_machines_that_somebody_started_although_they_should_be_off_are_held() -> None:
    rows = [replace(row, facts=facts_of(domain(number), reached_since=SINCE)) for number, row in enumerate(many(12), 1)]
    assert len(plan_of(rows, running(12), most_changes=10).held) == 12


def test_a_reached_state_is_stored_and_stays_until_another_is_reached() -> None:
    reached = machine(desired="running", desired_since=SINCE)
    stored = plan_of([reached], [domain()]).writes[-1]
    assert stored.facts.reached_since == SINCE  # type: ignore[union-attr]
    wanted = replace(reached, desired="off", desired_since=BORN, facts=stored.facts)  # type: ignore[union-attr, arg-type]
    paused = plan_of([wanted], [domain(state="paused", reason="user")]).writes[-1]
    assert paused.facts.reached_since == SINCE  # type: ignore[union-attr]
    assert plan_of([machine()], [domain()]).writes[-1].facts.reached_since is None  # type: ignore[union-attr]


def test_the_digest_names_exactly_a_set_of_changes() -> None:
    first = plan_of(many(12), running(12), most_changes=10).held
    assert digest_changes(first) == digest_changes(tuple(reversed(first)))
    others = (
        first[1:],
        (replace(first[0], desired="suspended"), *first[1:]),
        (replace(first[0], desired_since=SINCE + timedelta(milliseconds=1)), *first[1:]),
        (replace(first[0], desired_since=None), *first[1:]),
    )
    assert len({digest_changes(each) for each in (first, *others)}) == 5
    assert len(digest_changes(())) == 12
    # guestd plan and guestd apply may have sessions with other time zones.
    elsewhere = [replace(each, desired_since=SINCE.astimezone(timezone(timedelta(hours=5)))) for each in first]
    assert digest_changes(elsewhere) == digest_changes(first)


def begin_one_by_one(count: int, *, seconds: float, **changes: Any) -> list[int]:
    """Set the desired states of machines one by one, with so many seconds in between; returns how many began each time.

    None of them reaches its desired state.
    """
    began: list[int] = []
    begun: dict[UUID, BegunChange] = {}
    for number in range(1, count + 1):
        now = BORN + seconds * number
        rows = [replace(row, desired=None) if row.id.int > number else row for row in many(count)]
        used = policy(begun=begun, **changes)
        found = plan.plan_vms(rows, running(count), attempts={}, absences={}, now=now, policy=used)
        begun = note_begun(found.actions, {row.id: row for row in rows}, now, used)
        began.append(len(found.actions))
        assert len(found.actions) + len(found.held) == number
    return began


@pytest.mark.parametrize(
    ("count", "seconds", "most"), [(12, 0.1, 10), (12, 1.7, 10), (4, 0.1, 2), (4, 0.9, 2), (6, 1.3, 3)]
)
def test_a_program_that_sets_rows_one_by_one_is_held_like_one_update_of_all(
    count: int, seconds: float, most: int
) -> None:
    began = begin_one_by_one(count, seconds=seconds, most_changes=10, most_changes_share=0.5 if count < 12 else 1.0)
    assert began == [*range(1, most + 1), *[most] * (count - most)]


@pytest.mark.parametrize(("count", "seconds"), [(40, 2.0), (4, 1.0), (5, 1.0), (6, 1.4)])
def test_a_person_who_clicks_through_a_list_is_not_held(count: int, seconds: float) -> None:
    began = begin_one_by_one(count, seconds=seconds, most_changes=10, most_changes_share=0.5)
    assert began == list(range(1, count + 1))


def test_a_change_that_began_is_continued_although_others_are_held_and_counted_once() -> None:
    """A paused guest is resumed, then shut down; the request is repeated."""
    machines, now = many(4), BORN
    begun = {row.id: BegunChange(SINCE, now) for row in machines[:2]}
    found = plan_of(machines, running(4), most_changes_share=0.5, begun=begun)
    assert [action.name for action in found.actions] == ["vm1", "vm2"]
    assert [action.name for action in found.held] == ["vm3", "vm4"]
    assert plan_of(machines[:2], running(2), most_changes=2, begun=begun).held == ()
    # Of another change of the desired state, or after it was reached, it is a new one.
    for row in (
        replace(machines[0], desired_since=SINCE + timedelta(seconds=1)),
        replace(machines[0], facts=facts_of(domain(), reached_since=SINCE)),
    ):
        used = policy(begun={row.id: BegunChange(SINCE, 0.0)})
        (action,) = plan.plan_vms([row], running(1), attempts={}, absences={}, now=BORN, policy=used).actions
        assert note_begun([action], {row.id: row}, BORN, used) == {row.id: BegunChange(row.desired_since, BORN)}


def test_only_changes_that_nobody_confirmed_are_noted_and_machines_that_are_gone_are_forgotten() -> None:
    confirmed, crashed, changed = machine(1), machine(2, "off"), machine(3, desired="off", desired_since=SINCE)
    confirmed = replace(confirmed, desired="off", desired_since=SINCE, confirmed_since=SINCE)
    seen = domain(2, "shutoff", "crashed")
    crashed = replace(crashed, desired="running", desired_since=SINCE, facts=facts_of(seen, reached_since=SINCE))
    rows = [confirmed, crashed, changed]
    used = policy(begun={machine(9).id: BegunChange(SINCE, BORN), changed.id: BegunChange(SINCE, BORN - 900)})
    found = plan.plan_vms(rows, [domain(1), seen, domain(3)], attempts={}, absences={}, now=BORN, policy=used)
    assert len(found.actions) == 3
    by_id = {row.id: row for row in rows}
    assert note_begun(found.actions, by_id, BORN, used) == {changed.id: BegunChange(SINCE, BORN - 900)}
    assert note_begun(found.actions, by_id, BORN, policy()) == {changed.id: BegunChange(SINCE, BORN)}


def restored(number: int = 1, status: str = "running", **changes: Any) -> VmRow:
    return machine(number, status, desired_since=SINCE, is_held=True, is_restored=True, **changes)


def test_after_a_restore_one_change_is_held_although_it_was_confirmed_or_has_begun_before() -> None:
    row = restored(desired="off", confirmed_since=SINCE)
    found = plan_of([row], running(1), begun={row.id: BegunChange(SINCE, 0.0)})
    (report,) = found.reports
    assert (found.actions, len(found.held)) == ((), 1)
    assert report.text == (
        "shutdown vm1: running, desired state is off: held: the store was restored from a backup, or this host's row"
        " deleted, since this was desired; guestd plan shows how to confirm it"
    )


def test_after_a_restore_a_machine_that_was_stopped_since_the_backup_is_not_started() -> None:
    seen = domain(1, "shutoff", "destroyed")
    row = restored(1, "off", desired="running", facts=facts_of(seen, reached_since=SINCE), confirmed_since=SINCE)
    assert [str(action) for action in plan_of([row], [seen]).held] == ["start vm1: off, desired state is running"]


def test_what_is_desired_since_a_restore_is_not_held_because_of_what_was_desired_before() -> None:
    rows = [*(restored(number, desired="off") for number in range(1, 12)), replace(many(12)[-1])]
    found = plan_of(rows, running(12), most_changes=1)
    assert [action.name for action in found.actions] == ["vm12"]
    assert len(found.held) == 11


@pytest.mark.parametrize("is_restored", [True, False])
def test_a_hold_ends_when_its_desired_state_is_reached(*, is_restored: bool) -> None:
    row = replace(restored(desired="running"), is_restored=is_restored)
    ended = Release(row.id, "vm1", SINCE)
    assert ended in plan_of([row], running(1)).writes
    assert str(ended) == "hold of vm1: ended, its desired state is reached"
    for kept in (
        plan_of([replace(row, is_held=False)], running(1)),
        plan_of([replace(row, desired="off")], running(1)),
        plan_of([replace(row, host_id=THERE, facts=facts_of(domain()))], running(1)),
        # A clone of its name has reached it: the machine's own domain is not here.
        plan_of([replace(row, facts=facts_of(domain(), domain_uuid=UUID(int=9)))], running(1)),
    ):
        assert not any(isinstance(write, Release) for write in kept.writes)


def test_a_hold_does_not_end_when_a_reboot_from_outside_passes_through_its_desired_state() -> None:
    row = restored(1, desired="off")
    for since, is_ended in ((BORN, False), (BORN - plan.SHUTOFF_DEBOUNCE_SECONDS, True)):
        found = plan_of([row], [domain(1, "shutoff", "shutdown", since=since)])
        assert any(isinstance(write, Release) for write in found.writes) == is_ended
