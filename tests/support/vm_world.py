"""A world of machines and domains in which a VM plan is applied step by step."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from guestd.hypervisor.domains import Domain, DomainChannel, DomainDescription, Graphics
from guestd.vms import plan, power
from guestd.vms.model import (
    Absence,
    Attempts,
    Claim,
    Destroy,
    DomainFacts,
    DropLease,
    KeepFacts,
    KeepGraphics,
    Lease,
    PowerAction,
    Resume,
    SetStatus,
    Shutdown,
    Start,
    Suspend,
    TakeLease,
    VmPlan,
    VmPolicy,
    VmRow,
    Write,
)

HERE, THERE = UUID(int=1), UUID(int=2)
SETTLED = ("running", "off", "suspended", "error", "stopped", "paused")
OF_OTHERS = ("building", "updating_hardware", "powering_off_update", "failed", "")
SAME = {"stopped": "off", "paused": "suspended"}
AGENT = "org.infinibay.agent"
BORN = 1000.0
SINCE = datetime(2026, 1, 1, tzinfo=UTC)


def policy(**changes: Any) -> VmPolicy:
    before = VmPolicy(
        host_id=HERE, is_converging=True, may_destroy=False, shutdown_seconds=60.0, channel_names=(AGENT,),
        most_changes=100, most_changes_share=1.0, host_boot="boot 1",
    )  # fmt: skip
    return replace(before, **changes)


def description(**changes: Any) -> DomainDescription:
    return replace(DomainDescription(vcpus=2, memory_kib=1048576, graphics=None, channels=()), **changes)


def domain(number: int = 1, state: str = "running", reason: str = "unknown", **changes: Any) -> Domain:
    is_active = state not in ("shutoff", "nostate")
    before = Domain(UUID(int=100 + number), f"vm{number}", state, reason, is_active, 0.0, description())
    return replace(before, **changes)


def facts_of(seen: Domain, **changes: Any) -> DomainFacts:
    described = seen.description
    assert described is not None
    before = DomainFacts(
        seen.uuid, seen.state, seen.reason, described.vcpus, described.memory_kib, "absent", None
    )  # fmt: skip
    return replace(before, **changes)


def machine(number: int = 1, status: str = "running", **changes: Any) -> VmRow:
    before = VmRow(
        id=UUID(int=number), name=f"vm{number}", status=status, desired=None, host_id=HERE, is_holder_live=True,
        cpu_cores=0, ram_gb=0, graphics=None, facts=None,
    )  # fmt: skip
    return replace(before, **changes)


def attempts_of(desired: str, action: str, accepted: int, at: float, **changes: Any) -> Attempts:
    before = Attempts(desired=desired, desired_since=None, action=action, accepted=accepted, failed=0, at=at)
    return replace(before, **changes)


@dataclass
class World:
    """One host's domains, the store's rows, and a clock; refuses what libvirt and the store would refuse."""

    machines: dict[UUID, VmRow]
    domains: dict[UUID, Domain]
    is_stubborn: bool = False
    may_destroy: bool = False
    is_converging: bool = True
    now: float = BORN
    attempts: dict[UUID, Attempts] = field(default_factory=dict)
    absences: dict[UUID, Absence] = field(default_factory=dict)
    stops: dict[UUID, str] = field(default_factory=dict)

    def plan(self) -> VmPlan:
        names = {each.name for each in self.domains.values()}
        mine = [each for each in self.machines.values() if each.host_id == HERE or each.name in names]
        domains = list(self.domains.values())
        self.attempts = plan.keep_recent_attempts(self.attempts, mine, domains, self.now)
        chosen = policy(may_destroy=self.may_destroy, is_converging=self.is_converging)
        self.absences = plan.find_absences(
            self.absences, mine, domains, stops=self.stops, host_id=HERE, now=self.now
        )  # fmt: skip
        return plan.plan_vms(
            mine, domains, attempts=self.attempts, absences=self.absences, now=self.now, policy=chosen
        )  # fmt: skip

    def apply(self, steps: Iterable[Write | PowerAction]) -> None:
        for step in steps:
            match step:
                case PowerAction():
                    self._power(step)
                case _:
                    self._write(step)

    def _write(self, step: Write) -> None:
        row = self.machines[step.machine_id]
        if isinstance(step, Claim):
            assert row.host_id == step.holder
            seen = next(each for each in self.domains.values() if each.name == row.name)
            assert seen.is_active or row.host_id is None
            self.machines[row.id] = replace(row, host_id=HERE, is_holder_live=True)
            return
        is_lease = isinstance(step, TakeLease | DropLease)
        assert row.host_id == HERE or is_lease, f"{step}: the machine is not assigned here"
        match step:
            case TakeLease():
                assert (None if row.lease is None else row.lease.host_id) == step.holder
                self.machines[row.id] = replace(row, lease=Lease(HERE, "here", step.host_boot, step.domain_uuid))
            case DropLease():
                assert row.lease is not None
                assert row.lease.host_id == HERE
                self.machines[row.id] = replace(row, lease=None)
            case SetStatus():
                assert row.status == step.before
                assert row.status in SETTLED, f"{step}: another program is working on it"
                self.machines[row.id] = replace(row, status=step.after)
            case KeepGraphics():
                self.machines[row.id] = replace(row, graphics=step.graphics)
            case KeepFacts():
                self.machines[row.id] = replace(row, facts=step.facts)

    def _power(self, step: PowerAction) -> None:
        row, seen = self.machines[step.machine_id], self.domains[step.domain_uuid]
        assert row.host_id == HERE
        assert row.desired == step.desired
        assert row.status in SETTLED, f"{step}: another program is working on it"
        assert seen.name == row.name
        assert row.facts is None or row.facts.domain_uuid in (None, seen.uuid), f"{step}: another domain"
        self.attempts[row.id] = power.record_accepted(self.attempts.get(row.id), step, self.now)
        match step:
            case Start():
                assert not seen.is_active
                assert row.lease is None or row.lease.host_id == HERE, f"{step}: it may run elsewhere"
                self.machines[row.id] = replace(row, lease=Lease(HERE, "here", "boot 1", seen.uuid))
                self._becomes(seen, "running", "booted")
            case Resume():
                assert seen.state == "paused"
                self._becomes(seen, "running", "unpaused")
            case Suspend():
                assert seen.state in ("running", "blocked")
                self._becomes(seen, "paused", "user")
            case Shutdown():
                assert seen.state in ("running", "blocked")
                if not self.is_stubborn:
                    self._becomes(seen, "shutoff", "shutdown")
            case Destroy():
                assert self.may_destroy
                assert seen.is_active
                self._becomes(seen, "shutoff", "destroyed")

    def _becomes(self, seen: Domain, state: str, reason: str) -> None:
        is_active = state != "shutoff"
        self.domains[seen.uuid] = replace(seen, state=state, reason=reason, is_active=is_active, since=self.now)

    def settle(self) -> None:
        """Plan and apply, as the reconciler does, until nothing is left to do or wait for."""
        for _ in range(200):
            found = self.plan()
            self.apply([*found.writes, *found.actions])
            if not found.writes and not found.actions:
                if found.recheck_seconds is None or self.now > BORN + 2000:
                    return
                # A duplicate is rechecked forever: the clock runs faster here.
                self.now += max(found.recheck_seconds, 40.0) + 0.001
        raise AssertionError("the plan does not converge")


STATES = st.sampled_from(
    [
        ("running", "booted"), ("running", "migrated"), ("blocked", "unknown"), ("paused", "user"),
        ("paused", "migration"), ("paused", "starting_up"), ("paused", "io_error"), ("shutdown", "unknown"),
        ("shutoff", "destroyed"), ("shutoff", "migrated"), ("crashed", "panicked"), ("pmsuspended", "unknown"),
        ("nostate", "unknown"),
    ]
)  # fmt: skip
GRAPHICS = st.sampled_from([None, Graphics("spice", 5900, "127.0.0.1"), Graphics("vnc", -1, None)])
CHANNELS = st.sampled_from([(), (DomainChannel(AGENT, "/a", True),), (DomainChannel("other", "/b", True),)])


@st.composite
def domains(draw: st.DrawFn, number: int) -> Domain:
    state, reason = draw(STATES)
    since = draw(st.sampled_from([0.0, BORN - 1, BORN]))
    described = description(graphics=draw(GRAPHICS), channels=draw(CHANNELS))
    return domain(number, state, reason, since=since, description=described)


def leases(number: int) -> list[Lease]:
    """Leases of this host in this boot and in an earlier one, of another domain, and of another host."""
    uuid = UUID(int=100 + number)
    return [
        Lease(HERE, "here", "boot 1", uuid), Lease(HERE, "here", "boot 0", uuid),
        Lease(HERE, "here", "boot 1", UUID(int=7)), Lease(THERE, "there", "boot 1", uuid),
    ]  # fmt: skip


@st.composite
def machines(draw: st.DrawFn, number: int) -> VmRow:
    uuid = draw(st.sampled_from([100 + number, 7]))
    seen = draw(st.sampled_from(["running", "shutoff", "missing"]))
    return machine(
        number,
        draw(st.sampled_from(SETTLED + OF_OTHERS)),
        desired=draw(st.sampled_from([None, "running", "off", "suspended"])),
        host_id=draw(st.sampled_from([None, HERE, HERE, THERE])),
        is_holder_live=draw(st.booleans()),
        cpu_cores=draw(st.integers(0, 2)),
        graphics=draw(GRAPHICS),
        facts=draw(st.sampled_from([None, DomainFacts(UUID(int=uuid), seen, "unknown", 1, 1, "absent", None)])),
        lease=draw(st.sampled_from([None, None, *leases(number)])),
    )


@st.composite
def worlds(draw: st.DrawFn) -> World:
    rows = [draw(machines(number)) for number in draw(st.sets(st.integers(1, 4)))]
    seen = [draw(domains(number)) for number in draw(st.sets(st.integers(1, 4)))]
    return World(
        {row.id: row for row in rows},
        {each.uuid: each for each in seen},
        is_stubborn=draw(st.booleans()),
        may_destroy=draw(st.booleans()),
        is_converging=draw(st.booleans()),
    )


def copied(world: World) -> World:
    return replace(
        world,
        machines=dict(world.machines),
        domains=dict(world.domains),
        attempts=dict(world.attempts),
        absences=dict(world.absences),
    )


def ended(world: World) -> tuple[Any, ...]:
    """The final rows and power states, without times."""
    return (
        {key: replace(row, facts=None) for key, row in world.machines.items()},
        {key: (each.state, each.is_active) for key, each in world.domains.items()},
    )


def unreachable(world: World, row: VmRow, seen: Domain) -> bool:
    """Whether the desired state needs manual action, or more time than this world has."""
    is_plain = seen.state in ("running", "blocked", "shutoff") or (seen.state, seen.reason) == ("paused", "user")
    if row.facts is not None and row.facts.domain_uuid != seen.uuid:
        return True
    if seen.state == "shutoff" and row.lease is not None:
        return True
    is_stuck = row.desired == "off" and world.is_stubborn and not world.may_destroy
    return not is_plain or is_stuck or (row.desired == "suspended" and seen.state == "shutoff")


def steps(row: VmRow | None, seen: Domain | None, **changes: Any) -> list[str]:
    """The steps planned for one machine and one domain, as text."""
    attempts = changes.pop("attempts", {})
    now = changes.pop("now", BORN)
    found = plan.plan_vms(
        [row] if row else [], [seen] if seen else [], attempts=attempts, absences=changes.pop("absences", {}), now=now,
        policy=policy(**changes),
    )  # fmt: skip
    kept = (KeepFacts, TakeLease, DropLease)  # these are tested by themselves
    return [str(step) for step in (*found.writes, *found.actions, *found.reports) if not isinstance(step, kept)]
