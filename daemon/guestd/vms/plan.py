"""Machines (rows) and domains (seen) to what is to be written, done and reported.

Pure. What must hold whatever is planned:

* Nothing is written of a machine that this host does not hold, and a host holds one only by having seen its domain: an
  active domain claims its row, a defined one only a row that nobody has. So a machine that was migrated changes hands
  once, though its old definition stays behind.
* A status that guestd did not choose (building, updating_hardware, any word it does not know) is somebody's work in
  progress: neither the row nor the domain is touched.
* What is not seen is not known: no domain is ever taken for a stopped one.
* Every write names what it expects to find; whoever was faster wins and the next look plans again.
* Rows first, then power, one step a machine: what a step led to is seen by the next look and not assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from guestd.hypervisor.domains import Domain, Graphics, derive_status

# STOPPED that is followed by STARTED is how a reboot looks from outside: off is believed when it has lasted.
SHUTOFF_DEBOUNCE_SECONDS = 3.0
# When a machine moves without libvirt's migration, its old host may yet have to tell that it has gone; this is well
# before off is believed there.
DUPLICATE_RECHECK_SECONDS = 1.0
# A start counts as having worked when the machine has run for so long.
HEALTHY_SECONDS = 600.0
MAX_START_ATTEMPTS = 5
FIRST_DELAY_SECONDS = 2.0
MAX_DELAY_SECONDS = 300.0
KIB_PER_GB = 1024 * 1024

REPORT_KINDS = ("unmatched", "missing", "duplicate", "drift", "left", "cannot")

# Words of the platform that say the same as ours: not worth a write, and not worth a fight.
_SYNONYMS = {"stopped": "off", "paused": "suspended"}
_SETTLED_STATUSES = frozenset({"running", "off", "suspended", "error", *_SYNONYMS})


@dataclass(frozen=True, slots=True)
class DomainFacts:
    """A row of MachineDomain: what the holder last saw."""

    domain_uuid: UUID | None
    state: str
    reason: str
    vcpus: int
    memory_kib: int
    channel: str
    problem: str | None

    @property
    def is_active(self) -> bool:
        """Whether the holder saw it alive."""
        return self.state not in ("shutoff", "missing")


@dataclass(frozen=True, slots=True)
class VmRecord:
    """A row of Machine with what is kept beside it. `is_holder_live`: the host that holds it was seen lately."""

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
    """This host holds the machine from now on."""

    machine_id: UUID
    name: str
    holder: UUID | None
    why: str

    def __str__(self) -> str:
        return f"claim {self.name}: {self.why}"


@dataclass(frozen=True, slots=True)
class SetStatus:
    """Machine.status follows its domain."""

    machine_id: UUID
    name: str
    before: str
    after: str
    why: str

    def __str__(self) -> str:
        return f"status of {self.name}: {self.before} -> {self.after}: {self.why}"


@dataclass(frozen=True, slots=True)
class KeepGraphics:
    """MachineConfiguration follows the screen."""

    machine_id: UUID
    name: str
    graphics: Graphics

    def __str__(self) -> str:
        return f"screen of {self.name}: {self.graphics.protocol} {self.graphics.host} {self.graphics.port}"


@dataclass(frozen=True, slots=True)
class KeepFacts:
    """MachineDomain follows the domain."""

    machine_id: UUID
    name: str
    facts: DomainFacts

    def __str__(self) -> str:
        return f"facts of {self.name}: {self.facts.state} ({self.facts.reason}), {self.facts.problem or 'no problem'}"


@dataclass(frozen=True, slots=True)
class PowerAction:
    """One call of libvirt."""

    machine_id: UUID
    name: str
    domain_uuid: UUID
    desired: str
    why: str

    def __str__(self) -> str:
        return f"{type(self).__name__.lower()} {self.name}: {self.why}"


class Start(PowerAction):
    """Boot a domain that is off."""


class Resume(PowerAction):
    """Let a paused domain go on."""


class Suspend(PowerAction):
    """Pause a running domain."""


class Shutdown(PowerAction):
    """Ask the guest to end."""


class Destroy(PowerAction):
    """Take the power away."""


Write = Claim | SetStatus | KeepGraphics | KeepFacts


@dataclass(frozen=True, slots=True)
class VmReport:
    """What a person should know and guestd does not decide.

    `kind` is one of REPORT_KINDS; `name` is the domain's.
    """

    kind: str
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}: {self.text}"


@dataclass(frozen=True, slots=True)
class Attempts:
    """What has been tried of late to get one machine where it is wanted. `at` is monotonic."""

    desired: str
    action: str
    count: int
    at: float


@dataclass(frozen=True, slots=True)
class VmPolicy:
    """What this host may do."""

    host_id: UUID
    is_converging: bool
    may_destroy: bool
    shutdown_seconds: float
    channel_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recheck:
    """Nothing to do before so many seconds have passed."""

    seconds: float


@dataclass(frozen=True, slots=True)
class VmPlan:
    """Rows first, then power; what to tell; when to look again although nothing wakes us (seconds)."""

    writes: tuple[Write, ...]
    actions: tuple[PowerAction, ...]
    reports: tuple[VmReport, ...]
    recheck_seconds: float | None


def plan_vms(
    machines: Sequence[VmRecord],
    domains: Sequence[Domain],
    *,
    tries: Mapping[UUID, Attempts],
    now: float,
    rules: VmPolicy,
) -> VmPlan:
    """What leads from what is seen to what is wanted. `machines` are those held here and those with a domain here."""
    by_name = {domain.name: domain for domain in domains}
    known = {machine.name for machine in machines}
    steps: list[Write | PowerAction | VmReport | Recheck] = [
        VmReport("unmatched", domain.name, "a domain without a Machine of that internalName")
        for domain in domains
        if domain.name not in known
    ]
    for machine in machines:
        domain = by_name.get(machine.name)
        if domain is not None:
            steps += _plan_observed(machine, domain, tries.get(machine.id), now, rules)
        elif machine.host_id == rules.host_id and _is_settled(machine.status):
            steps += _plan_missing(machine)
    return VmPlan(
        writes=tuple(step for step in steps if isinstance(step, Claim | SetStatus | KeepGraphics | KeepFacts)),
        actions=tuple(step for step in steps if isinstance(step, PowerAction)),
        reports=tuple(step for step in steps if isinstance(step, VmReport)),
        recheck_seconds=min((step.seconds for step in steps if isinstance(step, Recheck)), default=None),
    )


def keep_recent_attempts(
    tries: Mapping[UUID, Attempts], machines: Sequence[VmRecord], domains: Sequence[Domain], now: float
) -> dict[UUID, Attempts]:
    """The tries that still count: not those of another wish, nor those that led to something that lasted."""
    by_name = {domain.name: domain for domain in domains}
    kept = {}
    for machine in machines:
        found, domain = tries.get(machine.id), by_name.get(machine.name)
        if found is None or domain is None or found.desired != machine.desired:
            continue
        if derive_status(domain) != machine.desired or now - max(domain.since, found.at) < HEALTHY_SECONDS:
            kept[machine.id] = found
    return kept


def record_attempt(before: Attempts | None, action: PowerAction, now: float) -> Attempts:
    """The memory of a machine after an action, whether or not that worked."""
    name = type(action).__name__
    again = before is not None and before.desired == action.desired and before.action == name
    return Attempts(action.desired, name, before.count + 1 if again and before is not None else 1, now)


def _is_settled(status: str) -> bool:
    return status in _SETTLED_STATUSES


def _plan_missing(machine: VmRecord) -> Iterator[KeepFacts | VmReport]:
    text = "held by this host, which has no domain of that name"
    yield VmReport("missing", machine.name, text)
    if machine.facts is None:
        facts = DomainFacts(None, "missing", "unknown", 0, 0, "absent", text)
    else:
        facts = replace(machine.facts, state="missing", reason="unknown", channel="absent", problem=text)
    if facts != machine.facts:
        yield KeepFacts(machine.id, machine.name, facts)


def _plan_observed(
    machine: VmRecord, domain: Domain, tries: Attempts | None, now: float, rules: VmPolicy
) -> Iterator[Write | PowerAction | VmReport | Recheck]:
    if machine.host_id != rules.host_id:
        exc = _get_claim_reason(machine, domain)
        if exc is None:
            if domain.is_active and derive_status(domain) is not None:
                yield VmReport("duplicate", machine.name, f"it also runs on host {machine.host_id}, which holds it")
                yield Recheck(DUPLICATE_RECHECK_SECONDS)
            return
        yield Claim(machine.id, machine.name, machine.host_id, exc)
    yield from _report_drift(machine, domain)
    power: PowerAction | VmReport | Recheck | None = None
    problem = None
    left = SHUTOFF_DEBOUNCE_SECONDS - (now - domain.since)
    if domain.state == "shutoff" and left > 0:
        problem = None if machine.facts is None else machine.facts.problem
        yield Recheck(left)
    else:
        yield from _plan_status(machine, domain)
        # Only the row as the store has it counts, not as this plan will leave it.
        if rules.is_converging and machine.host_id == rules.host_id and _is_settled(machine.status):
            power = _plan_power(machine, domain, tries, now, rules)
            problem = power.text if isinstance(power, VmReport) else None
    yield from _plan_graphics(machine, domain)
    facts = _build_facts(domain, rules, problem)
    if facts != machine.facts:
        yield KeepFacts(machine.id, machine.name, facts)
    if power is not None:
        yield power


def _get_claim_reason(machine: VmRecord, domain: Domain) -> str | None:
    """Why this host may take the machine, or None."""
    facts = machine.facts
    exc = None
    if derive_status(domain) is None:
        pass
    elif machine.host_id is None:
        exc = "nobody held it"
    elif not domain.is_active:
        pass
    elif not machine.is_holder_live:
        exc = f"it is active here and host {machine.host_id} is not heard of"
    elif facts is None or not facts.is_active:
        exc = f"it is active here and no longer on host {machine.host_id}"
    elif domain.reason == "migrated" and domain.uuid == facts.domain_uuid:
        exc = f"it was migrated here from host {machine.host_id}"
    return exc


def _plan_status(machine: VmRecord, domain: Domain) -> Iterator[SetStatus]:
    after = derive_status(domain)
    if after is None or not _is_settled(machine.status) or _SYNONYMS.get(machine.status, machine.status) == after:
        return
    yield SetStatus(machine.id, machine.name, machine.status, after, f"its domain is {domain.state} ({domain.reason})")


def _plan_graphics(machine: VmRecord, domain: Domain) -> Iterator[KeepGraphics]:
    seen = domain.description.graphics
    before = machine.graphics
    if seen is None or not domain.is_active:
        protocol = seen.protocol if seen is not None else before.protocol if before is not None else None
        wanted = Graphics(protocol, -1, None)
        if before is None and seen is None:
            return
    else:
        wanted = seen
    if wanted != before:
        yield KeepGraphics(machine.id, machine.name, wanted)


def _build_facts(domain: Domain, rules: VmPolicy, problem: str | None) -> DomainFacts:
    described = domain.description
    return DomainFacts(
        domain.uuid,
        domain.state,
        domain.reason,
        described.vcpus,
        described.memory_kib,
        _get_channel_state(domain, rules.channel_names),
        problem,
    )


def _get_channel_state(domain: Domain, names: Sequence[str]) -> str:
    """absent, disconnected, connected: of the first of these channels that the domain has."""
    for name in names:
        for channel in domain.description.channels:
            if channel.name == name:
                return "connected" if channel.is_open else "disconnected"
    return "absent"


def _report_drift(machine: VmRecord, domain: Domain) -> Iterator[VmReport]:
    seen = domain.description
    if machine.cpu_cores and seen.vcpus and machine.cpu_cores != seen.vcpus:
        yield VmReport("drift", machine.name, f"cpuCores is {machine.cpu_cores}, the domain has {seen.vcpus} vCPUs")
    if machine.ram_gb and seen.memory_kib and machine.ram_gb * KIB_PER_GB != seen.memory_kib:
        yield VmReport("drift", machine.name, f"ramGB is {machine.ram_gb}, the domain has {seen.memory_kib} KiB")


def _plan_power(
    machine: VmRecord, domain: Domain, tries: Attempts | None, now: float, rules: VmPolicy
) -> PowerAction | VmReport | Recheck | None:
    """The one step towards what is wanted: an action, a reason why not, or a wait; None when it is there."""
    desired, actual = machine.desired, derive_status(domain)
    if desired is None or actual is None or actual == desired:
        return None
    if tries is not None and tries.desired != desired:
        tries = None
    kind, exc = _choose_action(desired, actual, domain, tries, rules)
    if kind is None:
        return VmReport("cannot", machine.name, exc)
    count = 0 if tries is None or tries.action != kind.__name__ else tries.count
    if kind is Start and count >= MAX_START_ATTEMPTS:
        return VmReport("left", machine.name, f"started {count} times and it did not stay; set desiredStatus again")
    left = 0.0 if tries is None else tries.at + _get_delay_seconds(tries, rules) - now
    if left > 0:
        return Recheck(left)
    return kind(machine.id, machine.name, domain.uuid, desired, exc)


def _choose_action(
    desired: str, actual: str, domain: Domain, tries: Attempts | None, rules: VmPolicy
) -> tuple[type[PowerAction] | None, str]:
    """Which action leads on, and why; None and the reason when none does."""
    was_asked = tries is not None and tries.action in (Shutdown.__name__, Destroy.__name__)
    step: tuple[type[PowerAction] | None, str]
    match desired, actual:
        case "running", "off":
            step = Start, "it is off and wanted running"
        case "running", "suspended" if domain.state == "paused":
            step = Resume, "it is suspended and wanted running"
        case "suspended", "running":
            step = Suspend, "it is running and wanted suspended"
        case "off", "running" if was_asked and rules.may_destroy:
            step = Destroy, "it did not shut down in time"
        case "off", "running":
            step = Shutdown, "it is running and wanted off"
        case "off", "suspended" if domain.state == "paused":
            step = Resume, "it is suspended, wanted off, and can only shut down when it runs"
        case "off", "error" if rules.may_destroy:
            step = Destroy, f"it is {domain.state} ({domain.reason}) and wanted off"
        case _:
            step = None, f"it is {domain.state} ({domain.reason}) and wanted {desired}: that needs a person"
    return step


def _get_delay_seconds(tries: Attempts, rules: VmPolicy) -> float:
    """Seconds before the next step after the last: it may still work, and what fails is tried ever more rarely."""
    delay = min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** (tries.count - 1))
    return max(delay, rules.shutdown_seconds) if tries.action == Shutdown.__name__ else delay
