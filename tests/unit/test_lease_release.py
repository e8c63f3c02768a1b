"""What a person is shown of a lease before it is released."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

from guestd.vms.lease_release import ShownLease

LEASE = ShownLease(
    UUID(int=1), "vm1", UUID(int=2), "there", datetime(2026, 1, 1, tzinfo=UTC), UUID(int=101), is_host_live=True,
    is_assigned=True, state="running",
)  # fmt: skip


def test_the_digest_names_exactly_a_lease_in_whichever_time_zone_it_is_read() -> None:
    elsewhere = LEASE.taken_at.astimezone(timezone(timedelta(hours=5)))
    assert replace(LEASE, taken_at=elsewhere).digest == LEASE.digest
    others = (
        replace(LEASE, machine_id=UUID(int=3)),
        replace(LEASE, host_id=UUID(int=3)),
        replace(LEASE, taken_at=LEASE.taken_at + timedelta(milliseconds=1)),
    )
    assert len({each.digest for each in (LEASE, *others)}) == 4


def test_a_machine_runs_where_the_host_reports_that_has_it_and_its_domain_is_active() -> None:
    for state in ("running", "paused", "crashed", "shutdown"):
        assert replace(LEASE, state=state).runs_there
    for ended in ("shutoff", "missing", None):
        assert not replace(LEASE, state=ended).runs_there
    # Nobody knows.
    assert not replace(LEASE, is_host_live=False).runs_there
    assert not replace(LEASE, is_assigned=False).runs_there
