"""The VM plan for domains that libvirt no longer lists."""

from dataclasses import replace
from uuid import UUID

import pytest

from guestd.hypervisor.domains import KNOWN_ENDS, Domain, Graphics
from guestd.vms import plan
from guestd.vms.model import Absence, DropLease, KeepFacts, Lease, VmPlan, VmRow, Write
from support.vm_world import (
    BORN,
    HERE,
    SINCE,
    THERE,
    attempts_of,
    domain,
    facts_of,
    machine,
    policy,
    steps,
)


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
    # The reason of the running state says nothing about its end.
    arrived = machine(facts=facts_of(domain(state="running", reason="migrated")))
    assert plan_gone(arrived, None, 0.0).recheck_seconds == plan.MISSING_SECONDS


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
    rows = [machine(number, facts=facts_of(domain(number))) for number in (1, 2, 3)]
    rows += [machine(4, host_id=THERE), machine(5), machine(6)]
    before = {UUID(int=1): Absence(5.0, None), UUID(int=2): Absence(5.0, "destroyed")}
    stops = {UUID(int=101): "destroyed", UUID(int=102): "destroyed"}
    found = plan.find_absences(before, rows, [domain(2), domain(5)], stops=stops, host_id=HERE, now=BORN)
    assert found == {
        UUID(int=1): Absence(5.0, "destroyed"), UUID(int=3): Absence(BORN, None), UUID(int=6): Absence(BORN, None)
    }  # fmt: skip


def test_a_machine_is_absent_while_another_domain_has_its_name_and_is_here_under_another_name() -> None:
    rows = [machine(facts=facts_of(domain()))]
    for seen, is_absent in (([domain(uuid=UUID(int=9))], True), ([domain(name="other")], False)):
        found = plan.find_absences({}, rows, seen, stops={}, host_id=HERE, now=BORN)
        assert (UUID(int=1) in found) == is_absent


def test_the_end_of_another_domain_of_the_machines_name_says_nothing_of_its_own() -> None:
    """A clone that ran for a moment made the machine's end known, and gave its lease back."""
    lease = Lease(HERE, "here", "boot 1", UUID(int=101))
    row = machine(facts=facts_of(domain()), lease=lease)
    stops = {UUID(int=9): "destroyed"}
    absences = plan.find_absences({}, [row], [], stops=stops, host_id=HERE, now=BORN - 10)
    found = plan.plan_vms([row], [], attempts={}, absences=absences, now=BORN, policy=policy())
    assert list_writes(found) == []
    for seen in (domain(uuid=UUID(int=9)), domain(state="shutoff", reason="destroyed", uuid=UUID(int=9))):
        found = plan.plan_vms([row], [seen], attempts={}, absences={}, now=BORN, policy=policy())
        (stored,) = [step.facts for step in found.writes if isinstance(step, KeepFacts)]
        assert (stored.domain_uuid, stored.state, stored.reason) == (UUID(int=101), "missing", "unknown")
        gone = replace(row, facts=stored)
        assert not [text for text in list_writes(plan_gone(gone, None)) if "lease" in text]


def test_what_another_domain_of_the_machines_name_reaches_the_machine_has_not_reached() -> None:
    row = machine(desired="running", desired_since=SINCE, facts=facts_of(domain()))
    for number, reached in ((9, None), (101, SINCE)):
        found = plan.plan_vms(
            [row], [domain(uuid=UUID(int=number))], attempts={}, absences={}, now=BORN, policy=policy()
        )  # fmt: skip
        (stored,) = [step.facts for step in found.writes if isinstance(step, KeepFacts)]
        assert stored.reached_since == reached
        tried = {row.id: attempts_of("running", "Start", 3, 0.0, desired_since=SINCE)}
        kept = plan.keep_recent_attempts(tried, [row], [domain(uuid=UUID(int=number))], BORN)
        assert kept == (tried if number == 9 else {})


def plan_one(row: VmRow, seen: Domain) -> tuple[Write, ...]:
    return plan.plan_vms([row], [seen], attempts={}, absences={}, now=BORN, policy=policy()).writes


ON_ITS_WAY = [
    ("paused", reason) for reason in ("migration", "save", "dump", "shutting_down", "snapshot", "starting_up")
] + [("paused", "postcopy"), ("shutdown", "unknown"), ("nostate", "unknown")]  # fmt: skip


@pytest.mark.parametrize("state", ["shutoff", "missing"])
@pytest.mark.parametrize("way", ON_ITS_WAY)
def test_a_machine_that_was_migrated_away_stays_so_when_its_migration_back_fails(
    way: tuple[str, str], state: str
) -> None:
    """The domain was seen paused (starting_up) here, and that was all that was known of it."""
    migrated = replace(facts_of(domain(state="shutoff", reason="migrated")), state=state)
    row = machine(status="running", desired="running", facts=migrated, lease=Lease(HERE, "", "", UUID(int=101)))
    (stored,) = plan.plan_vms(
        [row], [domain(1, *way, is_active=True)], attempts={}, absences={}, now=BORN, policy=policy()
    ).writes  # fmt: skip
    assert isinstance(stored, KeepFacts)
    assert (stored.facts.state, stored.facts.reason) == (way[0], "migrated")
    seen = replace(row, facts=stored.facts)
    for reason in ("unknown", *sorted(KNOWN_ENDS)):
        assert steps(seen, domain(state="shutoff", reason=reason)) == []
        off = plan.plan_vms(
            [seen], [domain(state="shutoff", reason=reason)], attempts={}, absences={}, now=BORN, policy=policy()
        )  # fmt: skip
        assert [step.facts.reason for step in off.writes if isinstance(step, KeepFacts)] == ["migrated"]
        assert not [step for step in off.writes if isinstance(step, DropLease)]
        assert list_writes(plan_gone(seen, reason)) == []
    # It has run here since.
    assert steps(seen, domain(reason="booted")) == []
    assert [step.facts.reason for step in plan_one(seen, domain(reason="booted")) if isinstance(step, KeepFacts)] == [
        "booted"
    ]
    # It was not migrated away.
    found = plan_one(replace(row, facts=facts_of(domain())), domain(1, *way, is_active=True))
    assert [step.facts.reason for step in found if isinstance(step, KeepFacts)] == [way[1]]
    # Another domain was accepted.
    accepted = replace(row, facts=replace(migrated, domain_uuid=None))
    found = plan_one(accepted, domain(1, *way, is_active=True))
    assert [step.facts.reason for step in found if isinstance(step, KeepFacts)] == [way[1]]
    ran = replace(row, facts=facts_of(domain(reason="migrated")))
    assert steps(ran, domain(state="shutoff", reason="destroyed"))[0].endswith("off: domain is shutoff (destroyed)")


def test_what_was_migrated_away_stays_so_when_libvirt_forgets_it() -> None:
    migrated = facts_of(domain(state="shutoff", reason="migrated"))
    forgotten = domain(state="shutoff", reason="unknown")
    for reason in ("unknown", "failed", "daemon"):
        row = machine(desired="running", facts=migrated, lease=Lease(HERE, "here", "boot 1", UUID(int=101)))
        assert steps(row, domain(state="shutoff", reason=reason)) == []
        assert list_writes(plan_gone(machine(facts=migrated), reason)) == []
    assert list_writes(plan_gone(machine(facts=migrated), "destroyed"))[0].endswith("gone (destroyed)")
    off = ["status of vm1: running -> off: domain is shutoff (unknown)"]
    assert steps(machine(facts=replace(migrated, domain_uuid=UUID(int=9))), forgotten)[0] == off[0]
    assert steps(machine(facts=replace(migrated, reason="destroyed")), forgotten) == off
    assert steps(machine(facts=replace(migrated, state="running")), forgotten) == off
    assert steps(machine(), forgotten) == off
    assert steps(machine(facts=migrated), domain(state="shutoff", reason="destroyed"))[0].endswith("(destroyed)")
    assert steps(machine(status="off", facts=migrated), domain(reason="unknown"))[0].endswith("running (unknown)")
