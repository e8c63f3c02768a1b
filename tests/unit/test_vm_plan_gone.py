"""The VM plan for domains that libvirt no longer lists."""

from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.hypervisor.domains import Graphics
from guestd.vms import plan
from guestd.vms.model import Absence, KeepFacts, VmPlan, VmRow
from support.vm_world import (
    BORN,
    HERE,
    THERE,
    World,
    copied,
    domain,
    ended,
    facts_of,
    machine,
    policy,
    steps,
    worlds,
)


@given(worlds(), st.integers(0, 12))
def test_after_any_prefix_of_a_plan_a_new_plan_leads_to_the_same_end(world: World, done: int) -> None:
    whole, cut = copied(world), copied(world)
    whole.settle()
    first = cut.plan()
    cut.apply([*first.writes, *first.actions][:done])
    cut.settle()
    assert ended(cut) == ended(whole)


def plan_gone(row: VmRow, reason: str | None, seconds: float = 1000.0) -> VmPlan:
    """The plan for a machine whose domain has been gone for so long."""
    absences = {row.id: Absence(BORN - seconds, reason)}
    return plan.plan_vms([row], [], attempts={}, absences=absences, now=BORN, policy=policy())


def list_writes(found: VmPlan) -> list[str]:
    return [str(step) for step in found.writes if not isinstance(step, KeepFacts)]


@pytest.mark.parametrize(
    ("reason", "seconds"), [("destroyed", plan.SHUTOFF_DEBOUNCE_SECONDS), (None, plan.MISSING_SECONDS)]
)
def test_a_transient_domain_that_is_gone_is_off_after_a_while(reason: str | None, seconds: float) -> None:
    row = machine(facts=facts_of(domain()))
    early = plan_gone(row, reason, seconds - 1)
    assert (list_writes(early), early.recheck_seconds) == ([], 1)
    # Another host where it runs may claim the machine at once.
    (stored,) = early.writes
    assert isinstance(stored, KeepFacts)
    assert (stored.facts.state, stored.facts.reason) == ("missing", reason or "unknown")
    late = plan_gone(row, reason, seconds)
    assert list_writes(late) == [f"status of vm1: running -> off: domain is gone ({reason or 'unknown'})"]
    assert (late.actions, late.recheck_seconds) == ((), None)


def test_a_domain_that_was_migrated_away_and_is_gone_is_unchanged_and_stays_so_when_guestd_is_restarted() -> None:
    row = machine(desired="running", facts=facts_of(domain()))
    found = plan_gone(row, "migrated")
    assert (list_writes(found), found.actions, found.recheck_seconds) == ([], (), None)
    (stored,) = found.writes
    assert isinstance(stored, KeepFacts)
    assert stored.facts.reason == "migrated"
    again = plan_gone(replace(row, facts=stored.facts), None)
    assert (again.writes, again.actions, again.recheck_seconds) == ((), (), None)


def test_a_domain_that_was_undefined_after_it_stopped_has_the_reason_of_its_stop() -> None:
    row = machine(facts=facts_of(domain(state="shutoff", reason="destroyed")))
    assert list_writes(plan_gone(row, None, plan.SHUTOFF_DEBOUNCE_SECONDS)) == [
        "status of vm1: running -> off: domain is gone (destroyed)"
    ]
    migrated = machine(facts=facts_of(domain(state="shutoff", reason="migrated")))
    assert list_writes(plan_gone(migrated, None)) == []
    # The reason of the paused state says nothing about its end.
    paused = machine(status="suspended", facts=facts_of(domain(state="paused", reason="migrated")))
    assert plan_gone(paused, None, 0.0).recheck_seconds == plan.MISSING_SECONDS


def test_a_machine_that_never_had_a_domain_here_is_unchanged() -> None:
    found = plan_gone(machine(), "destroyed")
    assert (list_writes(found), found.recheck_seconds) == ([], None)
    (stored,) = found.writes
    assert isinstance(stored, KeepFacts)
    again = plan_gone(machine(facts=stored.facts), "destroyed")
    assert (again.writes, again.recheck_seconds) == ((), None)
    assert list_writes(plan_gone(machine(host_id=THERE, facts=facts_of(domain())), "destroyed")) == []


@pytest.mark.parametrize("status", ["off", "stopped"])
def test_a_machine_that_is_off_already_needs_no_write_and_no_recheck(status: str) -> None:
    found = plan_gone(machine(status=status, facts=facts_of(domain())), None, 0.0)
    assert (list_writes(found), found.recheck_seconds) == ([], None)


@pytest.mark.parametrize("status", ["running", "suspended", "paused", "error"])
def test_a_machine_whose_domain_is_gone_has_no_console(status: str) -> None:
    row = machine(status=status, graphics=Graphics("spice", 5900, "127.0.0.1"), facts=facts_of(domain()))
    assert list_writes(plan_gone(row, "destroyed")) == [
        f"status of vm1: {status} -> off: domain is gone (destroyed)",
        "console of vm1: spice None -1",
    ]
    without = replace(row, graphics=Graphics("spice", -1, "127.0.0.1"))
    assert len(list_writes(plan_gone(without, "destroyed"))) == 1


@pytest.mark.parametrize("desired", ["running", "suspended", "off", None])
def test_what_is_not_defined_cannot_be_started(desired: str | None) -> None:
    found = plan_gone(machine(status="off", desired=desired, facts=facts_of(domain())), "destroyed")
    text = "missing: vm1: assigned to this host, which has no domain of that name"
    more = "; it cannot be started until it is defined" if desired in ("running", "suspended") else ""
    assert ([str(each) for each in found.reports], found.actions) == ([text + more], ())


def test_absences_begin_when_they_are_first_observed() -> None:
    rows = [machine(1), machine(2), machine(3), machine(4, host_id=THERE)]
    before = {UUID(int=1): Absence(5.0, None), UUID(int=2): Absence(5.0, "destroyed")}
    stops = {"vm1": "destroyed", "vm2": "destroyed"}
    found = plan.find_absences(before, rows, [domain(2)], stops=stops, host_id=HERE, now=BORN)
    assert found == {UUID(int=1): Absence(5.0, "destroyed"), UUID(int=3): Absence(BORN, None)}


def test_what_was_migrated_away_stays_so_when_libvirt_forgets_it() -> None:
    migrated = facts_of(domain(state="shutoff", reason="migrated"))
    forgotten = domain(state="shutoff", reason="unknown")
    assert steps(machine(desired="running", facts=migrated), forgotten) == []
    off = ["status of vm1: running -> off: domain is shutoff (unknown)"]
    assert steps(machine(facts=replace(migrated, domain_uuid=UUID(int=9))), forgotten)[0] == off[0]
    assert steps(machine(facts=replace(migrated, reason="destroyed")), forgotten) == off
    assert steps(machine(facts=replace(migrated, state="running")), forgotten) == off
    assert steps(machine(), forgotten) == off
    assert steps(machine(facts=migrated), domain(state="shutoff", reason="destroyed"))[0].endswith("(destroyed)")
    assert steps(machine(status="off", facts=migrated), domain(reason="unknown"))[0].endswith("running (unknown)")
