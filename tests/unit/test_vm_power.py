"""When a domain is powered off: only after libvirt accepted a request to shut down, in the same boot of the domain."""

from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest

from guestd.hypervisor.domains import Boot, Domain
from guestd.vms import plan, power
from guestd.vms.model import Attempts, Destroy, PowerAction, Resume, Shutdown, ShutdownRequest, Start
from support.vm_world import BORN, SINCE, attempts_of, domain, machine, policy, steps

FIRST, SECOND = Boot(1, 0, 7), Boot(1, 3, 7)
ROW = machine(desired="off", desired_since=SINCE)
SHUTDOWN = Shutdown(UUID(int=1), "vm1", UUID(int=101), "off", "", "running", FIRST, SINCE)
DESTROYED = ["destroy vm1: the guest did not shut down in time"]
ASKED_AGAIN = ["shutdown vm1: running, desired state is off"]


def plan_steps(attempts: Attempts | None, seen: Domain, seconds: float, **changes: object) -> list[str]:
    known = {} if attempts is None else {ROW.id: attempts}
    return steps(replace(ROW, **changes), seen, attempts=known, now=BORN + seconds, may_destroy=True)  # type: ignore[arg-type]


def test_a_guest_that_was_asked_in_this_boot_is_destroyed_after_its_time() -> None:
    asked = power.record_accepted(None, SHUTDOWN, BORN)
    assert asked.asked == ShutdownRequest(FIRST, BORN)
    seen = domain(boot=FIRST)
    assert plan_steps(asked, seen, 59) == []
    assert plan_steps(asked, seen, 60) == DESTROYED


@pytest.mark.parametrize("error", ["libvirt refused", "no answer"])
def test_a_request_that_libvirt_did_not_accept_is_no_request(error: str) -> None:
    failed = power.record_failed(None, SHUTDOWN, error, BORN)
    assert (failed.accepted, failed.failed, failed.asked) == (0, 1, None)
    report = f"failing: vm1: shutdown failed: {error}; guestd tries again, at least every 5 minutes"
    assert plan_steps(failed, domain(boot=FIRST), 1) == [report]
    assert plan_steps(failed, domain(boot=FIRST), 2) == [*ASKED_AGAIN, report]
    assert plan_steps(failed, domain(boot=FIRST), 900) == [*ASKED_AGAIN, report]


def test_a_request_of_an_earlier_boot_or_connection_is_no_request() -> None:
    asked = power.record_accepted(None, SHUTDOWN, BORN)
    for boot in (SECOND, replace(FIRST, connection=2), replace(FIRST, id=8)):
        assert plan_steps(asked, domain(boot=boot), 900) == ASKED_AGAIN


def test_a_request_before_the_guest_was_paused_and_resumed_is_no_request() -> None:
    asked = power.record_accepted(None, SHUTDOWN, BORN)
    assert plan_steps(asked, domain(boot=FIRST, since=BORN + 1), 900) == ASKED_AGAIN
    assert plan_steps(asked, domain(boot=FIRST, since=BORN), 900) == DESTROYED


def test_a_request_for_an_earlier_change_of_the_desired_state_is_no_request() -> None:
    asked = power.record_accepted(None, SHUTDOWN, BORN)
    later = SINCE + timedelta(seconds=1)
    assert plan_steps(asked, domain(boot=FIRST), 900, desired_since=later) == ASKED_AGAIN
    row = replace(ROW, desired_since=later)
    assert plan.keep_recent_attempts({ROW.id: asked}, [row], [domain(boot=FIRST)], BORN) == {}
    assert plan.keep_recent_attempts({ROW.id: asked}, [ROW], [domain(boot=FIRST)], BORN) == {ROW.id: asked}


def test_a_request_of_an_earlier_guestd_is_no_request() -> None:
    restored = attempts_of("off", "Shutdown", 3, BORN - 900, desired_since=SINCE)
    assert plan_steps(restored, domain(boot=FIRST), 0) == ASKED_AGAIN


def test_a_request_stays_one_when_another_or_the_destroy_failed() -> None:
    asked = power.record_accepted(None, SHUTDOWN, BORN)
    again = power.record_failed(asked, SHUTDOWN, "busy", BORN + 10)
    assert (again.asked, again.accepted, again.failed) == (asked.asked, 1, 1)
    assert plan_steps(again, domain(boot=FIRST), 59) == []
    assert plan_steps(again, domain(boot=FIRST), 60) == DESTROYED
    known = {ROW.id: again}
    text = "failing: vm1: shutdown failed: busy; guestd tries again, at least every 5 minutes"
    assert steps(ROW, domain(boot=FIRST), attempts=known, now=BORN + 13) == [text]
    assert steps(ROW, domain(boot=FIRST), attempts=known, now=BORN + 14) == [*ASKED_AGAIN, text]
    destroy = Destroy(*[getattr(SHUTDOWN, name) for name in SHUTDOWN.__slots__ or PowerAction.__slots__])
    refused = power.record_failed(again, destroy, "busy", BORN + 60)
    assert (refused.asked, refused.action, refused.accepted, refused.failed) == (asked.asked, "Destroy", 0, 1)
    text = "failing: vm1: destroy failed: busy; guestd tries again, at least every 5 minutes"
    assert plan_steps(refused, domain(boot=FIRST), 61) == [text]
    assert plan_steps(refused, domain(boot=FIRST), 62) == [*DESTROYED, text]


def test_a_later_request_counts_from_its_own_time() -> None:
    asked = power.record_accepted(power.record_accepted(None, SHUTDOWN, BORN), SHUTDOWN, BORN + 30)
    assert (asked.accepted, asked.asked) == (2, ShutdownRequest(FIRST, BORN + 30))
    assert plan_steps(asked, domain(boot=FIRST), 89) == []
    assert plan_steps(asked, domain(boot=FIRST), 90) == DESTROYED


@pytest.mark.parametrize("reason", ["io_error", "watchdog", "postcopy_failed"])
def test_a_guest_that_is_paused_by_an_error_is_not_destroyed(reason: str) -> None:
    expected = f"cannot: vm1: paused ({reason}), desired state is off: needs manual action"
    row = replace(ROW, status="error")
    assert steps(row, domain(state="paused", reason=reason), may_destroy=True) == [expected]


def test_a_guest_that_has_crashed_is_destroyed_without_a_request() -> None:
    row = replace(ROW, status="error")
    for state, reason in (("crashed", "panicked"), ("paused", "crashed")):
        text = f"destroy vm1: {state} ({reason}), desired state is off"
        assert steps(row, domain(state=state, reason=reason), may_destroy=True) == [text]


@pytest.mark.parametrize("reason", ["unknown", "api_error", "save"])
def test_only_what_somebody_paused_is_resumed(reason: str) -> None:
    row = machine(status="suspended", desired="running")
    assert not any("resume" in step for step in steps(row, domain(state="paused", reason=reason)))
    for ours in ("user", "from_snapshot"):
        assert len(steps(row, domain(state="paused", reason=ours))) == 1


def test_starts_that_failed_are_retried_and_are_not_counted_as_starts() -> None:
    row, off = machine(status="off", desired="running"), domain(state="shutoff", reason="destroyed")
    start = Start(UUID(int=1), "vm1", UUID(int=101), "running", "")
    attempts = None
    for _ in range(9):
        attempts = power.record_failed(attempts, start, "no such disk", BORN)
    assert attempts is not None
    assert (attempts.accepted, attempts.failed) == (0, 9)
    text = "failing: vm1: start failed: no such disk; guestd tries again, at least every 5 minutes"
    assert steps(row, off, attempts={row.id: attempts}, now=BORN + 299) == [text]
    assert steps(row, off, attempts={row.id: attempts}, now=BORN + 300) == [
        "start vm1: off, desired state is running", text
    ]  # fmt: skip
    resumed = replace(attempts, action="Resume")
    assert steps(row, off, attempts={row.id: resumed}, now=BORN + 300) == ["start vm1: off, desired state is running"]


def test_a_failure_is_forgotten_when_libvirt_accepts_the_action() -> None:
    failed = power.record_failed(power.record_accepted(None, SHUTDOWN, BORN), SHUTDOWN, "busy", BORN + 1)
    accepted = power.record_accepted(failed, SHUTDOWN, BORN + 2)
    assert (accepted.accepted, accepted.failed, accepted.error) == (2, 0, None)


def test_an_action_names_the_domain_as_it_was_observed() -> None:
    seen = domain(boot=SECOND)
    (action,) = plan.plan_vms([ROW], [seen], attempts={}, absences={}, now=BORN, policy=policy()).actions
    assert (action.state, action.boot, action.desired_since) == ("running", SECOND, SINCE)


def test_a_guest_has_its_time_between_two_requests() -> None:
    known = {ROW.id: power.record_accepted(None, SHUTDOWN, BORN)}
    seen = domain(boot=FIRST)
    assert steps(ROW, seen, attempts=known, now=BORN + 59) == []
    assert steps(ROW, seen, attempts=known, now=BORN + 60) == ASKED_AGAIN
    found = plan.plan_vms([ROW], [seen], attempts=known, absences={}, now=BORN + 59, policy=policy())
    assert found.recheck_seconds == 1


def test_a_request_stays_one_when_another_action_is_accepted() -> None:
    asked = power.record_accepted(None, SHUTDOWN, BORN)
    resume = Resume(UUID(int=1), "vm1", UUID(int=101), "off", "", "paused", FIRST, SINCE)
    assert power.record_accepted(asked, resume, BORN + 1).asked == asked.asked


def test_failures_towards_another_desired_state_do_not_count() -> None:
    failed = power.record_failed(None, SHUTDOWN, "busy", BORN)
    later = replace(SHUTDOWN, desired_since=SINCE + timedelta(seconds=1))
    assert power.record_failed(failed, later, "busy", BORN).failed == 1
    assert power.record_failed(failed, SHUTDOWN, "busy", BORN).failed == 2


def test_a_machine_that_was_started_often_and_is_paused_is_resumed() -> None:
    row = machine(status="suspended", desired="running")
    started = {row.id: attempts_of("running", "Start", power.MAX_START_ATTEMPTS, BORN - 900)}
    seen = domain(state="paused", reason="user")
    assert steps(row, seen, attempts=started) == ["resume vm1: suspended, desired state is running"]


def test_a_guest_that_suspended_itself_is_not_resumed() -> None:
    row = machine(status="suspended", desired="running")
    assert steps(row, domain(state="pmsuspended", reason="user"))[0].startswith("cannot")
