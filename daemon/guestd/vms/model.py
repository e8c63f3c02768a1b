"""The values of the VM plan: rows and policy that it reads, steps and reports that it makes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from guestd.hypervisor.domains import NO_BOOT, Boot, Graphics

REPORT_KINDS = (
    "unmatched", "missing", "duplicate", "drift", "left", "cannot", "unreadable", "failing", "elsewhere", "replaced",
    "renamed", "held", "unwritten",
)  # fmt: skip

# The platform's synonyms of our statuses: they are not overwritten.
SYNONYMS = {"stopped": "off", "paused": "suspended"}
# Any other status means that another program is working on the machine.
SETTLED_STATUSES = frozenset({"running", "off", "suspended", "error", *SYNONYMS})


@dataclass(frozen=True, slots=True)
class DomainFacts:
    """A row of MachineDomain: the domain as the assigned host last observed it.

    `domain_uuid` stays that of the machine's own domain; `state` is missing while another has its name. `reached_since`
    is the VmRow.desired_since of the last desired state that it reached.
    """

    domain_uuid: UUID | None
    state: str
    reason: str
    vcpus: int
    memory_kib: int
    channel: str
    problem: str | None
    reached_since: datetime | None = None

    @property
    def is_active(self) -> bool:
        """Whether the domain was active."""
        return self.state not in ("shutoff", "missing")

    @property
    def is_migrated(self) -> bool:
        """Whether the domain was migrated away and has not run here since; it may be on its way back.

        A domain that was migrated here is running (migrated).
        """
        return self.reason == "migrated" and self.state != "running"


@dataclass(frozen=True, slots=True)
class Lease:
    """A row of MachineLease: the host that runs a machine or may run it.

    `host_boot` is the boot of that host's kernel in which the domain was last active there, empty if it is not known.
    """

    host_id: UUID
    host_name: str
    host_boot: str
    domain_uuid: UUID


@dataclass(frozen=True, slots=True)
class VmRow:
    """A row of Machine with its console, facts and lease. `is_holder_live`: the assigned host has reported recently.

    `desired_since` is when the desired state last changed, `confirmed_since` that of the change that was confirmed.
    `is_held`: this change was held before; `is_restored`: because the store was restored from a backup since.
    """

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
    desired_since: datetime | None = None
    confirmed_since: datetime | None = None
    lease: Lease | None = None
    is_held: bool = False
    is_restored: bool = False


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
class TakeLease:
    """Record that this host runs the machine. `holder`: the expected holder, None for none."""

    machine_id: UUID
    name: str
    holder: UUID | None
    host_boot: str
    domain_uuid: UUID

    def __str__(self) -> str:
        return f"lease of {self.name}: taken, its domain is active here"


@dataclass(frozen=True, slots=True)
class DropLease:
    """Record that this host no longer runs the machine."""

    machine_id: UUID
    name: str
    why: str

    def __str__(self) -> str:
        return f"lease of {self.name}: given back, {self.why}"


@dataclass(frozen=True, slots=True)
class Hold:
    """Record that a change of the desired state is held."""

    machine_id: UUID
    name: str
    desired_since: datetime
    why: str

    def __str__(self) -> str:
        return f"hold {self.name}: {self.why}"


@dataclass(frozen=True, slots=True)
class Release:
    """Record that a change that was held is none any more: the desired state is reached."""

    machine_id: UUID
    name: str
    desired_since: datetime | None

    def __str__(self) -> str:
        return f"hold of {self.name}: ended, its desired state is reached"


@dataclass(frozen=True, slots=True)
class PowerAction:
    """One libvirt call that changes a domain, which is to be as it was observed: `state` and `boot`."""

    machine_id: UUID
    name: str
    domain_uuid: UUID
    desired: str
    why: str
    state: str = "nostate"
    boot: Boot = NO_BOOT
    desired_since: datetime | None = None

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


Write = Claim | TakeLease | DropLease | SetStatus | KeepGraphics | KeepFacts | Hold | Release


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
class ShutdownRequest:
    """A request to shut down that libvirt accepted: of which boot of the domain, and at what monotonic time."""

    boot: Boot
    at: float


@dataclass(frozen=True, slots=True)
class Attempts:
    """Recent attempts to bring a machine to its desired state, by one kind of action.

    `accepted` counts the calls that libvirt accepted, `failed` those since then that it did not: `error` is why the
    last of these failed. `at` is the monotonic time of the last attempt. `asked` is the last accepted request to shut
    down.
    """

    desired: str
    desired_since: datetime | None
    action: str
    accepted: int
    failed: int
    at: float
    error: str | None = None
    asked: ShutdownRequest | None = None


@dataclass(frozen=True, slots=True)
class BegunChange:
    """A change of the desired state whose first action began at monotonic time `at`, and that nobody had confirmed."""

    desired_since: datetime | None
    at: float


@dataclass(frozen=True, slots=True)
class VmPolicy:
    """What guestd may do on this host, from the configuration.

    `host_boot` is the boot of this host's kernel and `host_machine` the hash of its machine ID, both empty if libvirt
    is on another machine. `starts_from` is the monotonic time before which it starts nothing: the other hosts may be
    about to report what they run.
    `silent_hosts` are the other hosts of the store that have not reported recently, by name. `begun` are the last
    changes that began, by machine.
    """

    host_id: UUID
    is_converging: bool
    may_destroy: bool
    shutdown_seconds: float
    channel_names: tuple[str, ...]
    most_changes: int
    most_changes_share: float
    host_boot: str = ""
    host_machine: str = ""
    starts_from: float = 0.0
    silent_hosts: tuple[str, ...] = ()
    begun: Mapping[UUID, BegunChange] = field(default_factory=dict)


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
    """The result of planning. `recheck_seconds`: plan again after this long even without an event; None: not needed.

    `held` are the actions that an operator must confirm first.
    """

    writes: tuple[Write, ...]
    actions: tuple[PowerAction, ...]
    reports: tuple[VmReport, ...]
    recheck_seconds: float | None
    held: tuple[PowerAction, ...] = ()
