"""The VM plan: after any prefix of it is applied, a new plan leads to the same end and changes nothing foreign."""

from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.hypervisor.domains import NO_BOOT, Domain, DomainChannel, DomainDescription, Graphics, derive_status
from guestd.vms import plan, power
from guestd.vms.model import (
    DomainFacts,
    KeepFacts,
    KeepGraphics,
    ShutdownRequest,
    Start,
    VmRow,
    Write,
)
from support.vm_world import (
    AGENT,
    BORN,
    HERE,
    OF_OTHERS,
    SAME,
    SETTLED,
    SINCE,
    THERE,
    World,
    attempts_of,
    copied,
    description,
    domain,
    ended,
    facts_of,
    machine,
    policy,
    steps,
    unreachable,
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


@given(worlds())
def test_after_convergence_the_rows_match_the_domains(world: World) -> None:
    world.settle()
    by_name = {row.name: row for row in world.machines.values()}
    for seen in world.domains.values():
        row = by_name.get(seen.name)
        if row is None or row.host_id != HERE or row.status not in SETTLED:
            continue
        assert row.facts is not None
        assert row.facts.state == (seen.state if row.facts.domain_uuid == seen.uuid else "missing")
        if derive_status(seen) is not None:
            assert SAME.get(row.status, row.status) == derive_status(seen)
            reached = row.desired in (None, derive_status(seen))
            assert reached or not world.is_converging or unreachable(world, row, seen)


@given(worlds())
def test_a_second_plan_is_empty(world: World) -> None:
    world.settle()
    again = world.plan()
    assert (again.writes, again.actions) == ((), ())


@given(worlds())
def test_machines_of_other_hosts_are_not_changed(world: World) -> None:
    before = copied(world)
    world.settle()
    names = {row.name for row in before.machines.values()}
    for uuid, seen in before.domains.items():
        if seen.name not in names or not world.is_converging:
            assert world.domains[uuid] == seen
    for key, row in before.machines.items():
        after = world.machines[key]
        if after.host_id != HERE:
            assert replace(after, lease=None) == replace(row, lease=None)
            # This host writes its own lease, and one of a machine that runs here.
            runs_here = any(seen.name == row.name and seen.is_active for seen in before.domains.values())
            is_lease_ours = row.lease is not None and row.lease.host_id == HERE
            assert runs_here or is_lease_ours or after.lease == row.lease


@given(worlds())
def test_a_domain_that_was_migrated_away_is_not_off(world: World) -> None:
    world.domains.clear()
    uuids = [row.facts.domain_uuid for row in world.machines.values() if row.facts is not None]
    world.stops = {uuid: "migrated" for uuid in uuids if uuid is not None}
    before = {key: row.status for key, row in world.machines.items()}
    world.settle()
    world.stops.clear()  # as a guestd that was restarted since
    world.settle()
    assert {key: row.status for key, row in world.machines.items()} == before


@given(worlds())
def test_a_domain_that_is_gone_is_off_in_the_end_where_this_host_had_it_and_is_not_acted_on(world: World) -> None:
    world.domains.clear()
    before = dict(world.machines)
    world.settle()
    for key, row in before.items():
        status = world.machines[key].status
        ours = row.host_id == HERE and row.facts is not None and row.status in SETTLED
        assert SAME.get(status, status) == "off" if ours else status == row.status
    assert world.attempts == {}


@given(worlds())
def test_a_status_of_another_program_is_left_alone_and_so_is_its_domain(world: World) -> None:
    before = copied(world)
    world.settle()
    by_name = {row.name: row for row in before.machines.values()}
    for row in before.machines.values():
        if row.status in OF_OTHERS:
            assert world.machines[row.id].status == row.status
    for uuid, seen in before.domains.items():
        if seen.name in by_name and by_name[seen.name].status in OF_OTHERS:
            assert world.domains[uuid] == seen


# ---- one rule each


def test_a_row_follows_its_domain() -> None:
    assert steps(machine(status="off"), domain()) == [
        "status of vm1: off -> running: domain is running (unknown)"
    ]  # fmt: skip


def test_shutoff_is_debounced() -> None:
    stopped = domain(state="shutoff", since=BORN - plan.SHUTOFF_DEBOUNCE_SECONDS + 1)
    assert steps(machine(), stopped) == []
    assert (
        plan.plan_vms([machine()], [stopped], attempts={}, absences={}, now=BORN, policy=policy()).recheck_seconds == 1
    )
    assert steps(machine(), domain()) == []


@pytest.mark.parametrize(("status", "state"), [("stopped", "shutoff"), ("paused", "paused")])
def test_synonyms_of_a_status_are_not_overwritten(status: str, state: str) -> None:
    assert steps(machine(status=status), domain(state=state)) == []


def test_only_an_active_domain_claims_a_machine_of_another_host() -> None:
    held = machine(host_id=THERE, is_holder_live=False)
    assert steps(held, domain(state="shutoff")) == []
    assert steps(held, domain()) == [f"claim vm1: active here, and host {THERE} does not report"]


def test_an_unassigned_machine_is_claimed_by_an_inactive_domain() -> None:
    assert steps(machine(status="off", host_id=None), domain(state="shutoff")) == [
        "claim vm1: not assigned to any host"
    ]


def test_a_migrated_machine_is_reassigned_once_and_is_never_off() -> None:
    seen = domain(state="running", reason="migrated")
    held = machine(host_id=THERE, facts=facts_of(domain()))
    assert steps(held, domain(state="paused", reason="migration")) == []
    assert steps(held, seen) == [f"claim vm1: migrated here from host {THERE}"]
    # The old host, before and after.
    left_behind = domain(state="shutoff", reason="migrated")
    assert steps(machine(facts=facts_of(domain())), left_behind) == []
    assert steps(machine(host_id=THERE, facts=facts_of(seen)), left_behind) == []


def test_a_duplicate_domain_is_reported_and_the_row_left_alone() -> None:
    expected = [f"duplicate: vm1: also runs on host {THERE}, to which it is assigned"]
    assert steps(machine(host_id=THERE, facts=facts_of(domain())), domain()) == expected
    # An operator has set the UUID to NULL.
    accepted = machine(host_id=THERE, facts=facts_of(domain(), domain_uuid=None))
    assert steps(accepted, domain(reason="migrated")) == expected


def test_a_domain_without_a_row_and_a_row_without_a_domain_are_reported() -> None:
    assert steps(None, domain()) == ["unmatched: vm1: no Machine has this domain name as its internalName"]
    assert steps(machine(), None) == ["missing: vm1: assigned to this host, which has no domain of that name"]
    assert steps(machine(status="building"), None) == []


def test_of_a_domain_that_cannot_be_read_the_state_is_known_and_all_else_stays() -> None:
    console = Graphics("spice", 5901, "127.0.0.1")
    known = facts_of(domain(), vcpus=4, memory_kib=7, channel="connected")
    row = machine(status="off", cpu_cores=2, ram_gb=3, graphics=console, facts=known)
    seen = domain(description=None, problem="libvirt's XML is malformed")
    assert steps(row, seen) == [
        "status of vm1: off -> running: domain is running (unknown)",
        "unreadable: vm1: libvirt's XML is malformed",
    ]
    found = plan.plan_vms([row], [seen], attempts={}, absences={}, now=BORN, policy=policy())
    assert [step.facts for step in found.writes if isinstance(step, KeepFacts)] == [
        replace(known, problem="libvirt's XML is malformed")
    ]
    assert not [step for step in found.writes if isinstance(step, KeepGraphics)]
    off = domain(state="shutoff", description=None, problem="libvirt's XML is malformed")
    (written,) = [
        step
        for step in plan.plan_vms([row], [off], attempts={}, absences={}, now=BORN + 60, policy=policy()).writes
        if isinstance(step, KeepGraphics)
    ]
    assert written.graphics == Graphics("spice", -1, None)


def test_a_domain_that_was_never_read_has_facts_without_values() -> None:
    seen = domain(description=None, problem="gone wrong")
    found = plan.plan_vms([machine()], [seen], attempts={}, absences={}, now=BORN, policy=policy())
    assert [step.facts for step in found.writes if isinstance(step, KeepFacts)] == [
        DomainFacts(seen.uuid, "running", "unknown", 0, 0, "absent", "gone wrong")
    ]


def test_a_domain_that_cannot_be_read_is_brought_to_its_desired_state() -> None:
    seen = domain(state="shutoff", description=None, problem="gone wrong")
    row = machine(status="off", desired="running")
    assert "start vm1: off, desired state is running" in steps(row, seen, now=BORN + 60)


def test_drift_is_reported_and_nothing_is_changed() -> None:
    assert steps(machine(cpu_cores=4, ram_gb=2), domain()) == [
        "drift: vm1: cpuCores is 4, the domain has 2 vCPUs",
        "drift: vm1: ramGB is 2, the domain has 1048576 KiB",
    ]


@pytest.mark.parametrize(
    ("desired", "seen", "expected"),
    [
        ("running", domain(state="shutoff"), "start vm1: off, desired state is running"),
        ("running", domain(state="paused", reason="user"), "resume vm1: suspended, desired state is running"),
        ("suspended", domain(), "suspend vm1: running, desired state is suspended"),
        ("off", domain(), "shutdown vm1: running, desired state is off"),
        (
            "off",
            domain(state="paused", reason="user"),
            "resume vm1: suspended, desired state is off; it must run to shut down",
        ),
        (
            "suspended",
            domain(state="shutoff"),
            "cannot: vm1: shutoff (unknown), desired state is suspended: needs manual action",
        ),
        (
            "running",
            domain(state="paused", reason="io_error"),
            "cannot: vm1: paused (io_error), desired state is running: needs manual action",
        ),
    ],
)
def test_the_desired_state_determines_the_action(desired: str, seen: Domain, expected: str) -> None:
    row = machine(status=derive_status(seen) or "", desired=desired)
    assert steps(row, seen) == [expected]
    assert steps(row, seen, is_converging=False) == []


@pytest.mark.parametrize("status", OF_OTHERS)
def test_no_action_is_planned_while_the_status_belongs_to_another_program(status: str) -> None:
    assert steps(machine(desired="off"), domain()) != []
    assert steps(machine(status=status, desired="off"), domain()) == []
    assert steps(machine(status=status, desired="running"), domain(state="shutoff"), now=BORN + 60) == []


def test_a_guest_that_does_not_shut_down_is_destroyed_only_when_that_is_allowed() -> None:
    row = machine(desired="off")
    asked = {row.id: attempts_of("off", "Shutdown", 1, BORN, asked=ShutdownRequest(NO_BOOT, BORN))}
    assert steps(row, domain(), attempts=asked, now=BORN + 59, may_destroy=True) == []
    assert steps(row, domain(), attempts=asked, now=BORN + 61, may_destroy=True) == [
        "destroy vm1: the guest did not shut down in time"
    ]  # fmt: skip
    assert steps(row, domain(), attempts=asked, now=BORN + 61) == ["shutdown vm1: running, desired state is off"]


def test_the_delay_between_attempts_grows() -> None:
    row = machine(status="suspended", desired="running")
    for count, delay in ((1, 2), (2, 4), (5, 32), (20, 300)):
        attempts = {row.id: attempts_of("running", "Resume", count, BORN)}
        paused = domain(state="paused", reason="user")
        assert steps(row, paused, attempts=attempts, now=BORN + delay - 0.1) == []
        assert len(steps(row, paused, attempts=attempts, now=BORN + delay)) == 1


def test_a_machine_that_keeps_crashing_is_given_up_until_its_desired_state_is_set_again() -> None:
    row, crashed = machine(status="off", desired="running"), domain(state="shutoff", reason="crashed")
    attempts = {row.id: attempts_of("running", "Start", power.MAX_START_ATTEMPTS, BORN - 900)}
    assert steps(row, crashed, attempts=attempts) == [
        "left: vm1: started 5 times, never ran for 10 minutes; fix the guest, then set desiredStatus again"
    ]  # fmt: skip
    assert plan.keep_recent_attempts(attempts, [replace(row, desired=None)], [crashed], BORN) == {}


def test_starts_are_forgotten_when_the_machine_has_run_for_long() -> None:
    row, attempts = machine(desired="running"), {UUID(int=1): attempts_of("running", "Start", 3, BORN)}
    later = BORN + plan.HEALTHY_SECONDS
    assert plan.keep_recent_attempts(attempts, [row], [domain(since=BORN + 1)], later) == attempts
    assert plan.keep_recent_attempts(attempts, [row], [domain(since=BORN + 1)], later + 1) == {}
    assert plan.keep_recent_attempts(attempts, [row], [domain(state="shutoff")], later + 9) == attempts


def kept(seen: Domain, row: VmRow) -> list[Write]:
    found = plan.plan_vms([row], [seen], attempts={}, absences={}, now=BORN, policy=policy())
    return [step for step in found.writes if isinstance(step, KeepGraphics)]


def test_the_console_is_stored_and_a_machine_that_is_off_has_none() -> None:
    spice = Graphics("spice", 5900, "127.0.0.1")
    on = domain(description=description(graphics=spice))
    off = domain(state="shutoff", description=description(graphics=Graphics("spice", -1, "127.0.0.1")))
    assert kept(on, machine()) == [KeepGraphics(UUID(int=1), "vm1", spice)]
    assert kept(on, machine(graphics=spice)) == []
    assert kept(off, machine(graphics=spice)) == [KeepGraphics(UUID(int=1), "vm1", Graphics("spice", -1, None))]
    assert kept(domain(), machine(graphics=spice)) == [KeepGraphics(UUID(int=1), "vm1", Graphics("spice", -1, None))]
    assert kept(domain(), machine()) == []


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        ((), "absent"),
        ((DomainChannel("org.qemu.guest_agent.0", "/x", True),), "absent"),
        ((DomainChannel(AGENT, "/x", None),), "disconnected"),
        ((DomainChannel(AGENT, "/x", False),), "disconnected"),
        ((DomainChannel(AGENT, "/x", True),), "connected"),
    ],
)
def test_the_state_of_the_agents_channel_is_stored(channels: tuple[DomainChannel, ...], expected: str) -> None:
    seen = domain(description=description(channels=channels))
    found = plan.plan_vms([machine()], [seen], attempts={}, absences={}, now=BORN, policy=policy())
    (facts,) = [step for step in found.writes if isinstance(step, KeepFacts)]
    assert facts.facts.channel == expected


@pytest.mark.parametrize("described", [None, description(channels=(DomainChannel(AGENT, "/x", True),))])
def test_the_agents_channel_of_a_domain_that_is_off_and_cannot_be_read_is_disconnected(
    described: DomainDescription | None,
) -> None:
    for last in ("connected", "absent"):
        row = machine(status="off", facts=facts_of(domain(), channel=last))
        seen = domain(state="shutoff", description=described, problem="libvirt does not print it")
        found = plan.plan_vms([row], [seen], attempts={}, absences={}, now=BORN, policy=policy())
        (facts,) = [step.facts for step in found.writes if isinstance(step, KeepFacts)]
        assert facts.channel == ("absent" if (described, last) == (None, "absent") else "disconnected")


def test_a_row_without_a_domain_keeps_its_last_facts() -> None:
    row = machine(facts=facts_of(domain(), channel="connected"))
    (kept_facts,) = plan.plan_vms([row], [], attempts={}, absences={}, now=BORN, policy=policy()).writes
    assert isinstance(kept_facts, KeepFacts)
    assert (kept_facts.facts.state, kept_facts.facts.channel) == ("missing", "absent")
    assert kept_facts.facts.vcpus == 2
    assert kept_facts.facts.problem


def test_a_holder_that_is_alive_keeps_its_machine_unless_its_domain_is_gone_or_migrated() -> None:
    there = facts_of(domain())
    assert steps(machine(host_id=THERE, facts=there), domain(reason="booted")) == [
        f"duplicate: vm1: also runs on host {THERE}, to which it is assigned"
    ]
    gone = [f"claim vm1: active here, and no longer on host {THERE}"]
    assert steps(machine(host_id=THERE, facts=replace(there, state="shutoff")), domain()) == gone
    assert steps(machine(host_id=THERE, facts=replace(there, state="missing")), domain()) == gone
    assert steps(machine(host_id=THERE, facts=None), domain()) == gone


def test_a_duplicate_is_checked_again_soon() -> None:
    held = machine(host_id=THERE, facts=facts_of(domain()))
    found = plan.plan_vms([held], [domain()], attempts={}, absences={}, now=BORN, policy=policy())
    assert found.recheck_seconds == plan.DUPLICATE_RECHECK_SECONDS


@pytest.mark.parametrize(("state", "reason"), [("paused", "migration"), ("shutoff", "migrated")])
def test_an_unassigned_machine_is_not_claimed_while_its_domain_is_on_its_way(state: str, reason: str) -> None:
    assert steps(machine(host_id=None), domain(state=state, reason=reason)) == []


def test_a_machine_is_started_only_when_its_claim_is_in_the_store() -> None:
    row = machine(status="off", host_id=None, desired="running")
    assert steps(row, domain(state="shutoff")) == ["claim vm1: not assigned to any host"]


def test_a_machine_of_another_host_without_a_domain_here_is_none_of_our_business() -> None:
    assert steps(machine(host_id=THERE), None) == []


def test_the_next_check_is_the_earliest_that_a_machine_needs() -> None:
    rows = [machine(1), machine(2)]
    stopped = [domain(number, "shutoff", since=BORN - number) for number in (1, 2)]
    found = plan.plan_vms(rows, stopped, attempts={}, absences={}, now=BORN, policy=policy())
    assert found.recheck_seconds == plan.SHUTOFF_DEBOUNCE_SECONDS - 2


def test_only_shutoff_is_debounced_and_keeps_the_problem_meanwhile() -> None:
    assert steps(machine(status="off"), domain(since=BORN)) == [
        "status of vm1: off -> running: domain is running (unknown)"
    ]
    stopped = domain(state="shutoff", since=BORN)
    known = machine(facts=facts_of(stopped, problem="needs manual action"))
    assert plan.plan_vms([known], [stopped], attempts={}, absences={}, now=BORN, policy=policy()).writes == ()


def test_why_there_is_no_action_is_stored_as_the_problem() -> None:
    row = machine(status="off", desired="suspended")
    found = plan.plan_vms([row], [domain(state="shutoff")], attempts={}, absences={}, now=BORN, policy=policy())
    (facts,) = found.writes
    (report,) = found.reports
    assert isinstance(facts, KeepFacts)
    assert facts.facts.problem == report.text


def test_attempts_are_counted_for_one_action_towards_one_desired_state() -> None:
    start = Start(UUID(int=1), "vm1", UUID(int=101), "running", "")
    first = power.record_accepted(None, start, BORN)
    assert first == attempts_of("running", "Start", 1, BORN)
    assert power.record_accepted(first, start, BORN + 1) == attempts_of("running", "Start", 2, BORN + 1)
    assert power.record_accepted(replace(first, desired="off"), start, BORN).accepted == 1
    assert power.record_accepted(replace(first, desired_since=SINCE), start, BORN).accepted == 1
    assert power.record_accepted(replace(first, action="Resume"), start, BORN).accepted == 1


def test_attempts_are_forgotten_with_the_domain() -> None:
    attempts = {UUID(int=1): attempts_of("running", "Start", 3, BORN)}
    assert plan.keep_recent_attempts(attempts, [machine(desired="running")], [], BORN) == {}


def test_attempts_towards_another_desired_state_or_of_another_action_do_not_count() -> None:
    row, stopped = machine(status="off", desired="running"), domain(state="shutoff")
    start = ["start vm1: off, desired state is running"]
    assert steps(row, stopped, attempts={row.id: attempts_of("off", "Start", 9, BORN)}) == start
    assert steps(row, stopped, attempts={row.id: attempts_of("running", "Resume", 9, BORN - 900)}) == start


def test_no_action_is_planned_when_the_state_is_reached_or_not_known() -> None:
    assert steps(machine(desired="running"), domain()) == []
    assert steps(machine(desired="off"), domain(state="paused", reason="migration")) == []


def test_a_running_guest_is_asked_to_shut_down_before_it_is_destroyed() -> None:
    shutdown = ["shutdown vm1: running, desired state is off"]
    assert steps(machine(desired="off"), domain(), may_destroy=True) == shutdown
    resumed = {UUID(int=1): attempts_of("off", "Resume", 1, BORN - 900)}
    assert steps(machine(desired="off"), domain(), attempts=resumed, may_destroy=True) == shutdown


@pytest.mark.parametrize("desired", ["running", "off"])
def test_a_guest_that_suspended_itself_needs_manual_action(desired: str) -> None:
    row = machine(status="suspended", desired=desired)
    expected = f"cannot: vm1: pmsuspended (unknown), desired state is {desired}: needs manual action"
    assert steps(row, domain(state="pmsuspended")) == [expected]


def test_a_crashed_guest_that_should_be_off_is_destroyed_only_when_that_is_allowed() -> None:
    row, crashed = machine(status="error", desired="off"), domain(state="crashed", reason="panicked")
    words = "crashed (panicked), desired state is off"
    assert steps(row, crashed, may_destroy=True) == [f"destroy vm1: {words}"]
    assert steps(row, crashed) == [f"cannot: vm1: {words}: needs manual action"]


def test_what_agrees_and_what_is_not_known_is_no_drift() -> None:
    assert steps(machine(cpu_cores=2, ram_gb=1), domain()) == []
    assert steps(machine(cpu_cores=2, ram_gb=1), domain(description=description(vcpus=0, memory_kib=0))) == []


def test_the_protocol_of_a_console_is_the_domains() -> None:
    off = domain(state="shutoff", description=description(graphics=Graphics("spice", 5900, "127.0.0.1")))
    spice = [KeepGraphics(UUID(int=1), "vm1", Graphics("spice", -1, None))]
    assert kept(off, machine(graphics=Graphics("vnc", 5900, "127.0.0.1"))) == spice
    assert kept(off, machine()) == spice
