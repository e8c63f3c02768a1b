"""Random histories of one machine, two hosts and what fails between them: none loses power, none is started twice."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from uuid import UUID

from hypothesis import example, given
from hypothesis import strategies as st

from guestd.hypervisor.domains import Boot, Domain
from guestd.vms import plan, power
from guestd.vms.model import (
    Absence,
    Attempts,
    Claim,
    Destroy,
    DropLease,
    KeepFacts,
    Lease,
    PowerAction,
    SetStatus,
    Shutdown,
    Start,
    Suspend,
    TakeLease,
    VmRow,
    Write,
)
from support.vm_world import BORN, HERE, SINCE, THERE, domain, machine, policy

HOSTS = (HERE, THERE)
SHUTDOWN_SECONDS = 60.0


@dataclass
class Side:
    """One host: its libvirt's domain of the machine, its guestd, and the actions that wait for their turn."""

    host_id: UUID
    seen: Domain
    kernel: int = 1
    reported_at: float = float("-inf")
    attempts: dict[UUID, Attempts] = field(default_factory=dict)
    waiting: list[PowerAction] = field(default_factory=list)
    # The accepted request to shut down of the domain's present run: when, and for which change of the desired state.
    truly_asked: tuple[float, object] | None = None


@dataclass
class History:
    """The store's row and both hosts; checks every call that is made."""

    row: VmRow
    sides: dict[UUID, Side]
    now: float = BORN
    changes: int = 0

    def happen(self, side: Side, state: str, reason: str) -> None:
        """The domain changes, and libvirt sends a lifecycle event."""
        boot, was_active = side.seen.boot, side.seen.is_active
        is_active = state != "shutoff"
        number = boot.event + 1 if is_active and not was_active else boot.id if is_active else -1
        if not (was_active and is_active):
            side.truly_asked = None
        boot = Boot(boot.connection, boot.event + 1, number)
        side.seen = replace(
            side.seen, state=state, reason=reason, is_active=is_active, since=self.now, boot=boot
        )  # fmt: skip
        if not is_active and reason != "migrated":
            self.abort(self.get_other(side))

    def restart_libvirtd(self, side: Side) -> None:
        """It forgets why a domain is off, and guestd connects again."""
        if not side.seen.is_active:
            side.seen = replace(side.seen, reason="unknown")
        self.reconnect(side)

    def reconnect(self, side: Side) -> None:
        side.seen = replace(side.seen, since=self.now, boot=Boot(side.seen.boot.connection + 1, 0, side.seen.boot.id))

    def restart_guestd(self, side: Side) -> None:
        """What it knew is gone, except the attempts that the store has."""
        side.waiting.clear()
        side.attempts = {key: replace(each, asked=None, failed=0) for key, each in side.attempts.items()}
        self.reconnect(side)

    def restart_host(self, side: Side) -> None:
        """A power failure."""
        side.kernel += 1
        self.happen(side, "shutoff", "unknown")
        self.restart_guestd(side)

    def reboot(self, side: Side) -> None:
        if side.seen.is_active:
            side.seen = replace(side.seen, boot=replace(side.seen.boot, event=side.seen.boot.event + 1))
            side.truly_asked = None

    def stop(self, side: Side) -> None:
        if side.seen.is_active:
            self.happen(side, "shutoff", "shutdown")

    def crash(self, side: Side) -> None:
        if side.seen.is_active:
            self.happen(side, "shutoff", "crashed")

    def start(self, side: Side) -> None:
        """Somebody starts it, where no other host runs it and no guestd is about to."""
        if not any(each.seen.is_active for each in self.sides.values()) and self.row.host_id == side.host_id:
            self.happen(side, "running", "booted")

    def migrate(self, side: Side) -> None:
        other = self.get_other(side)
        if side.seen.state == "running" and (not other.seen.is_active or other.seen.reason == "starting_up"):
            self.happen(side, "shutoff", "migrated")
            self.happen(other, "running", "migrated")

    def arrive(self, side: Side) -> None:
        """A migration from the other host to this one begins."""
        if not side.seen.is_active and self.get_other(side).seen.state == "running":
            self.happen(side, "paused", "starting_up")

    def abort(self, side: Side) -> None:
        """It fails, or the connection between the hosts is lost."""
        if side.seen.reason == "starting_up":
            self.happen(side, "shutoff", "destroyed")

    def move_row(self, side: Side) -> None:
        """Somebody assigns the machine to this host."""
        self.row = replace(self.row, host_id=side.host_id)

    def change_desired(self, desired: str) -> None:
        if desired != self.row.desired:
            self.changes += 1
            self.row = replace(self.row, desired=desired, desired_since=SINCE + timedelta(seconds=self.changes))

    def get_other(self, side: Side) -> Side:
        return self.sides[THERE if side.host_id == HERE else HERE]

    def reconcile(self, side: Side) -> None:
        """One run of a host's guestd, up to the actions."""
        other = self.get_other(side)
        row = replace(self.row, is_holder_live=self.now - self.sides[self.row.host_id or HERE].reported_at < 60)
        silent = ("other",) if self.now - other.reported_at > 60 else ()
        rules = policy(
            host_id=side.host_id, may_destroy=True, shutdown_seconds=SHUTDOWN_SECONDS, silent_hosts=silent,
            host_boot=f"{side.host_id} {side.kernel}",
        )  # fmt: skip
        side.attempts = plan.keep_recent_attempts(side.attempts, [row], [side.seen], self.now)
        absences: dict[UUID, Absence] = {}
        found = plan.plan_vms(
            [row], [side.seen], attempts=side.attempts, absences=absences, now=self.now, policy=rules
        )  # fmt: skip
        acting = bool(side.waiting)
        for write in found.writes:
            if not (acting and isinstance(write, DropLease)):
                self.write(side, write)
        if not acting:
            side.waiting = list(found.actions)
        side.reported_at = self.now

    def write(self, side: Side, write: Write) -> None:
        """Write what the statements write: only while what they expect is so."""
        row = self.row
        match write:
            case Claim() if row.host_id == write.holder:
                self.row = replace(row, host_id=side.host_id)
            case TakeLease() if (row.lease and row.lease.host_id) == write.holder:
                self.row = replace(row, lease=Lease(side.host_id, "host", write.host_boot, write.domain_uuid))
            case DropLease() if row.lease is not None and row.lease.host_id == side.host_id:
                self.row = replace(row, lease=None)
            case SetStatus() if row.host_id == side.host_id and row.status == write.before:
                self.row = replace(row, status=write.after)
            case KeepFacts() if row.host_id == side.host_id:
                self.row = replace(row, facts=write.facts)

    def act(self, side: Side, answer: str) -> None:
        """Take the turn of the action that waits: `answer` is libvirt's."""
        if not side.waiting:
            return
        action = side.waiting.pop()
        row, seen = self.row, side.seen
        due = (side.host_id, action.desired, action.desired_since) == (row.host_id, row.desired, row.desired_since)
        has_lease = row.lease is None or row.lease.host_id == side.host_id or not isinstance(action, Start)
        if not due or not has_lease or (action.state, action.boot) != (seen.state, seen.boot):
            return
        if isinstance(action, Start):
            kernel = f"{side.host_id} {side.kernel}"
            self.row = replace(row, lease=Lease(side.host_id, "host", kernel, seen.uuid))
        self.check(side, action)
        before = side.attempts.get(row.id)
        if answer != "accepted":
            side.attempts[row.id] = power.record_failed(before, action, answer, self.now)
            if isinstance(action, Start):
                self.row = replace(self.row, lease=None)
            return
        side.attempts[row.id] = power.record_accepted(before, action, self.now)
        self.take_effect(side, action)

    def take_effect(self, side: Side, action: PowerAction) -> None:
        match action:
            case Shutdown():  # and the guest ignores it
                side.truly_asked = (self.now, action.desired_since)
            case Destroy():
                self.happen(side, "shutoff", "destroyed")
            case Suspend():
                self.happen(side, "paused", "user")
            case _:
                self.happen(side, "running", "booted")

    def check(self, side: Side, action: PowerAction) -> None:
        """The invariants of every call."""
        if isinstance(action, Start):
            assert not self.get_other(side).seen.is_active, "it runs on the other host"
        if isinstance(action, Destroy):
            assert side.truly_asked is not None, "its guest was not asked to shut down in this run"
            at, change = side.truly_asked
            assert change == action.desired_since, "it was asked for another change of the desired state"
            assert self.now - at >= SHUTDOWN_SECONDS, "it had no time to shut down"


Step = tuple[str, ...]
EVENTS: dict[str, Callable[[History, Side], None]] = {
    "run": History.reconcile,
    "accepted": lambda history, side: history.act(side, "accepted"),
    "refused": lambda history, side: history.act(side, "refused"),
    "libvirtd": History.restart_libvirtd,
    "guestd": History.restart_guestd,
    "host": History.restart_host,
    "reboot": History.reboot,
    "stop": History.stop,
    "crash": History.crash,
    "start": History.start,
    "migrate": History.migrate,
    "arrive": History.arrive,
    "abort": History.abort,
    "row": History.move_row,
    "off": lambda history, _: history.change_desired("off"),
    "running": lambda history, _: history.change_desired("running"),
    "suspended": lambda history, _: history.change_desired("suspended"),
    "moment": lambda history, _: pass_time(history, 4.0),
    "minute": lambda history, _: pass_time(history, 61.0),
}
# What happens most is what guestd does.
NAMES = (*EVENTS, *["run", "accepted"] * 6, *["minute"] * 3)
STEPS = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(HOSTS)), max_size=60)


def pass_time(history: History, seconds: float) -> None:
    history.now += seconds


def begin() -> History:
    """The machine runs here, and has a definition on both hosts."""
    here = Side(HERE, replace(domain(), reason="booted", boot=Boot(1, 0, 1), since=BORN))
    there = Side(THERE, replace(domain(state="shutoff"), boot=Boot(1, 0, -1), since=BORN))
    history = History(machine(desired="running", desired_since=SINCE), {HERE: here, THERE: there})
    history.reconcile(here)
    return history


def play(steps: list[tuple[str, UUID]]) -> History:
    history = begin()
    for name, host_id in steps:
        EVENTS[name](history, history.sides[host_id])
    return history


ASKED = [("off", HERE), ("run", HERE), ("accepted", HERE)]
AWAY = [("migrate", HERE), ("run", HERE)]
TRY = [("minute", HERE), ("minute", HERE), ("run", HERE), ("accepted", HERE)]


@given(STEPS)
@example([*ASKED, ("reboot", HERE), *TRY])
@example([*ASKED, ("crash", HERE), ("start", HERE), *TRY])
@example([*ASKED, ("guestd", HERE), *TRY])
@example([("off", HERE), ("run", HERE), ("refused", HERE), *TRY])
@example([*ASKED, ("running", HERE), ("off", HERE), *TRY])
@example([("migrate", HERE), ("libvirtd", HERE), ("run", HERE), ("moment", HERE), ("run", HERE), ("accepted", HERE)])
@example([("row", THERE), ("run", THERE), ("accepted", THERE)])
@example([*AWAY, ("arrive", HERE), ("run", HERE), ("abort", HERE), ("moment", HERE), *TRY])
@example([("migrate", HERE), ("host", HERE), *[("minute", HERE), ("run", HERE), ("accepted", HERE)] * 3])
def test_no_guest_is_destroyed_unasked_and_none_is_started_twice(steps: list[tuple[str, UUID]]) -> None:
    play(steps)


def test_a_guest_that_was_asked_is_destroyed_in_the_end() -> None:
    assert play([*ASKED, *TRY]).sides[HERE].seen.reason == "destroyed"


def test_after_a_power_failure_the_machine_is_started_when_the_other_host_reports() -> None:
    waits = [("minute", HERE), ("run", THERE), ("run", HERE), ("accepted", HERE)]
    assert play([("host", HERE), *waits]).sides[HERE].seen.is_active
    silent = [("minute", HERE), ("run", HERE), ("accepted", HERE)]
    assert not play([("host", HERE), *silent * 3]).sides[HERE].seen.is_active


def test_a_crashed_machine_is_started_again() -> None:
    assert play([("crash", HERE), ("moment", HERE), ("run", HERE), ("accepted", HERE)]).sides[HERE].seen.is_active


def test_after_a_migration_the_other_host_has_the_machine_and_may_start_it_again() -> None:
    waits = [("moment", HERE), ("run", HERE), ("run", THERE), ("run", THERE)]
    history = play([("migrate", HERE), *waits, ("crash", THERE), *waits, ("accepted", THERE)])
    assert (history.row.host_id, history.sides[THERE].seen.is_active) == (THERE, True)
