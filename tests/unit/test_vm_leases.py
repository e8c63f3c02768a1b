"""Which host may start a machine, and what a host writes of a machine's lease."""

from dataclasses import replace
from uuid import UUID

import pytest

from guestd.hypervisor.domains import KNOWN_ENDS, Domain
from guestd.vms import plan
from guestd.vms.leases import ELSEWHERE_SECONDS, RELEASE
from guestd.vms.model import Absence, DomainFacts, DropLease, KeepFacts, Lease, TakeLease, VmPlan, VmRow
from support.vm_world import BORN, HERE, THERE, domain, facts_of, machine, policy, steps

OURS = Lease(HERE, "here", "boot 1", UUID(int=101))
EARLIER = replace(OURS, host_boot="boot 0")
THEIRS = Lease(THERE, "there", "boot 1", UUID(int=101))
START = ["start vm1: off, desired state is running"]
MIGRATED = (
    f"elsewhere: vm1: not started: libvirt does not report how it ended here, so it may have been migrated; {RELEASE}"
)


def row(lease: Lease | None, **changes: object) -> VmRow:
    return replace(machine(status="off", desired="running", lease=lease), **changes)  # type: ignore[arg-type]


def off(reason: str = "unknown") -> Domain:
    return domain(state="shutoff", reason=reason)


def leases_of(machine_row: VmRow, seen: Domain | None, **changes: object) -> list[TakeLease | DropLease]:
    found = plan_of(machine_row, seen, **changes)
    return [step for step in found.writes if isinstance(step, TakeLease | DropLease)]


def plan_of(machine_row: VmRow, seen: Domain | None, **changes: object) -> VmPlan:
    absences = {machine_row.id: Absence(BORN - 900, None)}
    return plan.plan_vms(
        [machine_row], [seen] if seen else [], attempts={}, absences=absences, now=BORN, policy=policy(**changes)
    )  # fmt: skip


def test_a_machine_that_no_host_runs_is_started() -> None:
    assert steps(row(None), off()) == START
    assert steps(row(None), off("destroyed")) == START


def test_a_machine_whose_lease_another_host_has_is_not_started() -> None:
    text = f"elsewhere: vm1: not started: host there runs it, or may run it; {RELEASE}"
    for reason in ("unknown", *KNOWN_ENDS):
        assert steps(row(THEIRS), off(reason)) == [text]


@pytest.mark.parametrize("reason", sorted(KNOWN_ENDS))
def test_a_machine_that_ended_here_is_started_again(reason: str) -> None:
    assert steps(row(OURS), off(reason)) == START
    # That a start failed after the host was restarted does not say how it ended before.
    is_started = steps(row(EARLIER), off(reason), silent_hosts=("there",)) == START
    assert is_started == (reason != "failed")


@pytest.mark.parametrize("reason", ["unknown", "failed"])
@pytest.mark.parametrize("state", ["shutoff", "missing"])
def test_a_machine_that_was_migrated_away_is_not_off_and_not_started_when_libvirt_forgets_it(
    state: str, reason: str
) -> None:
    """libvirtd is restarted, the domain is undefined and defined again, or somebody's start fails."""
    facts = replace(facts_of(off("migrated")), state=state)
    running = row(OURS, status="running", facts=facts)
    for host_boot in ("boot 1", "boot 2"):
        assert steps(running, off(reason), host_boot=host_boot) == []
        assert leases_of(running, off(reason), host_boot=host_boot) == []


def test_a_machine_that_ended_here_in_a_way_that_is_not_known_is_not_started_in_the_same_boot_of_the_host() -> None:
    assert steps(row(OURS), off()) == [MIGRATED]
    assert steps(row(replace(OURS, host_boot="")), off()) == [MIGRATED]
    # Where libvirt is on another machine, its boot is not known.
    assert steps(row(EARLIER), off(), host_boot="") == [MIGRATED]
    # What is known of another domain says nothing of this one.
    assert steps(row(replace(OURS, domain_uuid=UUID(int=9))), off("destroyed")) == [MIGRATED]


def test_after_a_restart_of_the_host_a_machine_is_started_when_all_hosts_report_and_none_claims_it() -> None:
    silent = f"elsewhere: vm1: not started: it may run on a host that does not report: a, b; {RELEASE}"
    assert steps(row(EARLIER), off(), silent_hosts=("a", "b")) == [silent]
    seen = domain(state="shutoff", since=BORN - ELSEWHERE_SECONDS + 1)
    assert (steps(row(EARLIER), seen), plan_of(row(EARLIER), seen).recheck_seconds) == ([], 1)
    assert steps(row(EARLIER), domain(state="shutoff", since=BORN - ELSEWHERE_SECONDS)) == START


def test_nothing_is_started_before_the_other_hosts_could_report() -> None:
    assert steps(row(None), off(), starts_from=BORN + 1) == []
    assert plan_of(row(None), off(), starts_from=BORN + 1).recheck_seconds == 1
    assert steps(row(None), off(), starts_from=BORN) == START


def test_a_lease_concerns_starts_only() -> None:
    running = machine(desired="off", lease=THEIRS)
    assert steps(running, domain()) == ["shutdown vm1: running, desired state is off"]


def test_a_host_takes_the_lease_of_what_is_active_there() -> None:
    taken = TakeLease(UUID(int=1), "vm1", None, "boot 1", UUID(int=101))
    assert leases_of(machine(), domain()) == [taken]
    assert leases_of(machine(host_id=THERE), domain()) == [taken]
    assert leases_of(machine(lease=OURS), domain()) == []
    for lease in (EARLIER, replace(OURS, domain_uuid=UUID(int=9)), THEIRS):
        assert leases_of(machine(lease=lease), domain()) == [replace(taken, holder=lease.host_id)]
    assert leases_of(machine(host_id=THERE, lease=EARLIER), domain()) == [replace(taken, holder=HERE)]


def test_a_host_that_cannot_claim_a_machine_does_not_take_its_lease() -> None:
    held = machine(host_id=THERE, lease=THEIRS, facts=facts_of(domain()))
    assert leases_of(held, domain()) == []
    assert leases_of(replace(held, lease=EARLIER), domain()) == [
        TakeLease(UUID(int=1), "vm1", HERE, "boot 1", UUID(int=101))
    ]  # fmt: skip
    migrated = domain(reason="migrated")
    assert leases_of(held, migrated) == [TakeLease(UUID(int=1), "vm1", THERE, "boot 1", UUID(int=101))]


@pytest.mark.parametrize("state", [("paused", "migration"), ("paused", "starting_up"), ("nostate", "unknown")])
def test_while_a_domain_is_on_its_way_the_lease_stays(state: tuple[str, str]) -> None:
    for lease in (None, OURS, THEIRS):
        assert leases_of(machine(lease=lease), domain(1, *state, is_active=True)) == []


def test_a_lease_is_given_back_when_the_domain_has_ended_here() -> None:
    dropped = [DropLease(UUID(int=1), "vm1", "its domain is shutoff (destroyed)")]
    assert leases_of(machine(lease=OURS), off("destroyed")) == dropped
    assert leases_of(machine(host_id=THERE, lease=OURS), off("destroyed")) == dropped
    assert leases_of(machine(lease=OURS), domain(state="shutoff", reason="destroyed", since=BORN)) == []
    for kept in (off(), off("migrated")):
        assert leases_of(machine(lease=OURS), kept) == []
    for lease in (None, THEIRS, replace(OURS, domain_uuid=UUID(int=9))):
        assert leases_of(machine(lease=lease), off("destroyed")) == []


def gone(reason: str, lease: Lease | None) -> VmRow:
    return machine(status="off", lease=lease, facts=facts_of(domain(state="shutoff", reason=reason)))


def test_the_lease_of_a_domain_that_is_gone_is_given_back_when_it_ended_here() -> None:
    assert leases_of(gone("destroyed", OURS), None) == [
        DropLease(UUID(int=1), "vm1", "its domain is gone (destroyed)")
    ]  # fmt: skip
    for reason in ("migrated", "unknown"):
        assert leases_of(gone(reason, OURS), None) == []
    for lease in (None, THEIRS, replace(OURS, domain_uuid=UUID(int=9))):
        assert leases_of(gone("destroyed", lease), None) == []
    never = plan.plan_vms([gone("destroyed", OURS)], [], attempts={}, absences={}, now=BORN, policy=policy())
    assert not any(isinstance(step, DropLease) for step in never.writes)


@pytest.mark.parametrize("seen", [domain(), off("destroyed")])
def test_another_domain_under_the_machines_name_is_reported_and_not_powered(seen: Domain) -> None:
    other = DomainFacts(UUID(int=9), "shutoff", "destroyed", 1, 1, "absent", None)
    for desired in ("running", "off", "suspended"):
        held = machine(status="off", desired=desired, facts=other)
        found = plan_of(held, seen, may_destroy=True)
        assert found.actions == ()
        (report,) = found.reports
        assert (report.kind, str(UUID(int=9)) in report.text, str(seen.uuid) in report.text) == ("replaced", True, True)
        (stored,) = [step.facts for step in found.writes if isinstance(step, KeepFacts)]
        assert (stored.domain_uuid, stored.problem) == (UUID(int=9), report.text)
    # An operator accepts it.
    accepted = machine(status="off", desired="off", facts=replace(other, domain_uuid=None))
    (stored,) = [step.facts for step in plan_of(accepted, seen).writes if isinstance(step, KeepFacts)]
    assert stored.domain_uuid == seen.uuid
    # It does not take the lease of the machine's own domain.
    assert leases_of(machine(lease=replace(OURS, domain_uuid=UUID(int=9)), facts=other), domain()) == []


def test_a_machine_whose_domain_has_another_name_is_reported_and_not_off() -> None:
    renamed = replace(domain(), name="other")
    held = machine(desired="running", facts=facts_of(domain()))
    found = plan_of(held, renamed)
    text = f"its domain, UUID {renamed.uuid}, has the name other here: rename the domain, or set internalName"
    assert [(report.kind, report.name) for report in found.reports] == [("unmatched", "other"), ("renamed", "vm1")]
    assert [str(step) for step in found.writes] == [
        "lease of vm1: taken, its domain is active here",
        f"facts of vm1: running (unknown), {text}",
    ]
    assert found.actions == ()
    known = machine(facts=facts_of(domain(), problem=text), lease=OURS)
    assert plan_of(known, renamed).writes == ()
    assert leases_of(machine(facts=facts_of(domain()), lease=OURS), replace(off("destroyed"), name="other")) == []


@pytest.mark.parametrize("holder", [None, THERE])
@pytest.mark.parametrize("seen", [domain(), domain(reason="migrated"), off(), off("destroyed")])
def test_a_clone_of_a_machines_name_claims_nothing_and_takes_no_lease(seen: Domain, holder: UUID | None) -> None:
    """The holder does not report, or its domain is off: each was a reason to claim the machine."""
    for state in ("running", "shutoff", "missing"):
        facts = DomainFacts(UUID(int=9), state, "unknown", 1, 1, "absent", None)
        for is_live in (True, False):
            held = machine(host_id=holder, is_holder_live=is_live, facts=facts)
            found = plan_of(held, seen)
            (report,) = found.reports
            assert (found.writes, found.actions, report.kind) == ((), (), "replaced")
            for part in (f"has the UUID {seen.uuid} here", f"machine's has {UUID(int=9)}:", f"hostId to {HERE}"):
                assert part in report.text
            # As the report says, where it is the machine's now.
            accepted = replace(held, host_id=HERE, facts=replace(facts, domain_uuid=None))
            assert "replaced" not in "".join(steps(accepted, seen))
            assert any(isinstance(step, KeepFacts) for step in plan_of(accepted, seen).writes)


def test_a_clones_own_lease_is_given_back_when_it_ends() -> None:
    facts = DomainFacts(UUID(int=9), "running", "unknown", 1, 1, "absent", None)
    assert len(leases_of(machine(host_id=THERE, facts=facts, lease=OURS), off("destroyed"))) == 1


def test_a_domain_that_replaced_the_machines_own_on_its_host_has_a_lease_while_it_runs() -> None:
    facts = DomainFacts(UUID(int=9), "missing", "unknown", 1, 1, "absent", None)
    (taken,) = leases_of(machine(facts=facts), domain())
    assert isinstance(taken, TakeLease)


def test_the_machines_own_domain_counts_where_another_has_its_name() -> None:
    held = machine(facts=facts_of(domain()), lease=OURS)
    own, clone = replace(domain(), name="other"), domain(uuid=UUID(int=9))
    for seen in ([own, clone], [clone, own]):
        found = plan.plan_vms([held], seen, attempts={}, absences={}, now=BORN, policy=policy())
        assert [report.kind for report in found.reports] == ["unmatched", "renamed"]


def test_a_machine_that_was_migrated_away_and_is_assigned_to_its_old_host_again_is_reported() -> None:
    """It was off, should run, and nothing said why."""
    left_behind = domain(state="shutoff", reason="migrated", since=BORN - ELSEWHERE_SECONDS)
    for desired, status in (("running", "off"), ("running", "stopped"), ("suspended", "off"), ("off", "running")):
        held = machine(status=status, desired=desired)
        (report,) = plan_of(held, left_behind).reports
        assert (report.kind, "Machine.hostId" in report.text, "virsh start" in report.text) == ("elsewhere", True, True)
        (stored,) = [step.facts for step in plan_of(held, left_behind).writes if isinstance(step, KeepFacts)]
        assert stored.problem == report.text
        # The host to which it was migrated is about to claim it.
        early = plan_of(held, replace(left_behind, since=BORN - ELSEWHERE_SECONDS + 1))
        assert (early.reports, early.recheck_seconds) == ((), 1)
    for status, reached in (("off", "off"), ("stopped", "off"), ("off", None), ("running", None)):
        assert plan_of(machine(status=status, desired=reached), left_behind).reports == ()
    assert plan_of(machine(status="off", desired="running"), left_behind, is_converging=False).reports == ()
    assert plan_of(machine(status="building", desired="running"), left_behind).reports == ()
    assert plan_of(machine(status="off", desired="running", host_id=THERE), left_behind).reports == ()


@pytest.mark.parametrize(("status", "desired"), [("running", "running"), ("suspended", "suspended")])
def test_a_machine_that_was_migrated_away_to_a_host_that_died_is_reported_when_its_old_host_has_it_again(
    status: str, desired: str
) -> None:
    """Its status stays as it last was, so its desired state seemed to be reached."""
    left_behind = domain(state="shutoff", reason="migrated", since=BORN - ELSEWHERE_SECONDS)
    # A person has released the lease, or has not yet.
    for lease in (None, THEIRS):
        held = machine(status=status, desired=desired, lease=lease)
        (report,) = plan_of(held, left_behind).reports
        assert (report.kind, "virsh start" in report.text) == ("elsewhere", True)
        early = plan_of(held, replace(left_behind, since=BORN - ELSEWHERE_SECONDS + 1))
        assert (early.reports, early.recheck_seconds) == ((), 1)
    # On a host without guestd it has the lease of the host from which it came.
    assert plan_of(machine(status=status, desired=desired, lease=OURS), left_behind).reports == ()


def test_another_host_that_has_the_machines_domain_under_another_name_takes_its_lease() -> None:
    held = machine(host_id=THERE, facts=facts_of(domain()))
    (taken,) = plan_of(held, replace(domain(), name="other")).writes
    assert isinstance(taken, TakeLease)
