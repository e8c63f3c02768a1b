"""The values of the VM plan: rows and policy that it reads, steps and reports that it makes. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from guestd.hypervisor.domains import Graphics

REPORT_KINDS = ("unmatched", "missing", "duplicate", "drift", "left", "cannot", "unreadable")


@dataclass(frozen=True, slots=True)
class DomainFacts:
    """A row of MachineDomain: the domain as the assigned host last observed it."""

    domain_uuid: UUID | None
    state: str
    reason: str
    vcpus: int
    memory_kib: int
    channel: str
    problem: str | None

    @property
    def is_active(self) -> bool:
        """Whether the domain was active."""
        return self.state not in ("shutoff", "missing")


@dataclass(frozen=True, slots=True)
class VmRow:
    """A row of Machine with its console and facts. `is_holder_live`: the assigned host has reported recently."""

    id: UUID
    name: str
    status: str
    desired: str | None
    host_id: UUID | None
    is_holder_live: bool
    cpu_cores: int
    ram_gb: int
    graphics: Graphics | None
    facts: DomainFacts | None


@dataclass(frozen=True, slots=True)
class Claim:
    """Assign the machine to this host."""

    machine_id: UUID
    name: str
    holder: UUID | None
    why: str

    def __str__(self) -> str:
        return f"claim {self.name}: {self.why}"


@dataclass(frozen=True, slots=True)
class SetStatus:
    """Set Machine.status to the domain's state."""

    machine_id: UUID
    name: str
    before: str
    after: str
    why: str

    def __str__(self) -> str:
        return f"status of {self.name}: {self.before} -> {self.after}: {self.why}"


@dataclass(frozen=True, slots=True)
class KeepGraphics:
    """Store the graphical console in MachineConfiguration."""

    machine_id: UUID
    name: str
    graphics: Graphics

    def __str__(self) -> str:
        return f"console of {self.name}: {self.graphics.protocol} {self.graphics.host} {self.graphics.port}"


@dataclass(frozen=True, slots=True)
class KeepFacts:
    """Store the domain's facts in MachineDomain."""

    machine_id: UUID
    name: str
    facts: DomainFacts

    def __str__(self) -> str:
        return f"facts of {self.name}: {self.facts.state} ({self.facts.reason}), {self.facts.problem or 'no problem'}"


@dataclass(frozen=True, slots=True)
class PowerAction:
    """One libvirt call that changes a domain."""

    machine_id: UUID
    name: str
    domain_uuid: UUID
    desired: str
    why: str

    def __str__(self) -> str:
        return f"{type(self).__name__.lower()} {self.name}: {self.why}"


class Start(PowerAction):
    """Boot an inactive domain."""


class Resume(PowerAction):
    """Resume a paused domain."""


class Suspend(PowerAction):
    """Pause a running domain."""


class Shutdown(PowerAction):
    """Request the guest to shut down."""


class Destroy(PowerAction):
    """Power the domain off."""


Write = Claim | SetStatus | KeepGraphics | KeepFacts


@dataclass(frozen=True, slots=True)
class VmReport:
    """A condition that guestd reports and does not resolve.

    `kind` is one of REPORT_KINDS; `name` is the domain's.
    """

    kind: str
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}: {self.text}"


@dataclass(frozen=True, slots=True)
class Attempts:
    """Recent attempts to bring a machine to its desired state. `at` is the monotonic time of the last one."""

    desired: str
    action: str
    count: int
    at: float


@dataclass(frozen=True, slots=True)
class VmPolicy:
    """What guestd may do on this host, from the configuration."""

    host_id: UUID
    is_converging: bool
    may_destroy: bool
    shutdown_seconds: float
    channel_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Absence:
    """A machine of this host without a domain here.

    `since` is the monotonic time at which that was first observed; `reason` is libvirt's for the domain's last stop,
    None if it has reported none.
    """

    since: float
    reason: str | None


@dataclass(frozen=True, slots=True)
class Recheck:
    """Run again after this many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class VmPlan:
    """The result of planning. `recheck_seconds`: plan again after this long even without an event; None: not needed."""

    writes: tuple[Write, ...]
    actions: tuple[PowerAction, ...]
    reports: tuple[VmReport, ...]
    recheck_seconds: float | None
