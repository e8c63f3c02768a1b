"""Plans writes, power actions and reports from the rows (desired state) and the domains (observed state).

Pure. Invariants of every plan:

* A host writes only machines that are assigned to it, and claims one only after observing its domain: an active domain
  claims its row, an inactive one only a row without a host. A migrated machine is therefore reassigned exactly once,
  although its old definition remains.
* A status that guestd did not set (building, updating_hardware, any unknown word) means that another program is working
  on the machine: neither the row nor the domain is changed.
* A domain that is not observed is unknown. Its machine becomes off when this host had the domain, libvirt answers, and
  either has reported how the domain ended, or nobody has claimed the machine for a while (a transient domain has no
  definition that remains). It never does when the domain was migrated away, and it cannot be started.
* Of a domain whose XML cannot be read the state is known, and all else stays as last known.
* Every write states the value it expects; if another writer was faster, the write is skipped and the next run plans
  again.
* Writes come before actions, and each machine gets one action: its result is observed by the next run, not assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from uuid import UUID

from guestd.hypervisor.domains import Domain, DomainDescription, Graphics, derive_status
from guestd.vms.model import (
    Absence,
    Attempts,
    Claim,
    Destroy,
    DomainFacts,
    KeepFacts,
    KeepGraphics,
    PowerAction,
    Recheck,
    Resume,
    SetStatus,
    Shutdown,
    Start,
    Suspend,
    VmPlan,
    VmPolicy,
    VmReport,
    VmRow,
    Write,
)

# A reboot from outside appears as shutoff followed by running: shutoff counts as off only after this long.
SHUTOFF_DEBOUNCE_SECONDS = 3.0
# When a machine moves without libvirt's migration, its old host may not have reported yet that it is gone; this is
# well below SHUTOFF_DEBOUNCE_SECONDS there.
DUPLICATE_RECHECK_SECONDS = 1.0
# A domain that is gone, and libvirt has not reported how it ended, may run on another host, whose guestd claims the
# machine as soon as this one has stored that the domain is gone. A host that has not reported for as long is not live.
MISSING_SECONDS = 60.0
# A start has succeeded when the machine has run for this long.
HEALTHY_SECONDS = 600.0
MAX_START_ATTEMPTS = 5
FIRST_DELAY_SECONDS = 2.0
MAX_DELAY_SECONDS = 300.0
KIB_PER_GB = 1024 * 1024


# The platform's synonyms of our statuses: they are not overwritten.
_SYNONYMS = {"stopped": "off", "paused": "suspended"}
_SETTLED_STATUSES = frozenset({"running", "off", "suspended", "error", *_SYNONYMS})


def plan_vms(
    machines: Sequence[VmRow],
    domains: Sequence[Domain],
    *,
    attempts: Mapping[UUID, Attempts],
    absences: Mapping[UUID, Absence],
    now: float,
    policy: VmPolicy,
) -> VmPlan:
    """Plan the steps from observed to desired state.

    `machines` are those assigned to this host and those that have a domain on it; `absences` come from `find_absences`.
    """
    by_name = {domain.name: domain for domain in domains}
    known = {machine.name for machine in machines}
    steps: list[Write | PowerAction | VmReport | Recheck] = [
        VmReport("unmatched", domain.name, "no Machine has this domain name as its internalName")
        for domain in domains
        if domain.name not in known
    ]
    steps += [VmReport("unreadable", domain.name, domain.problem) for domain in domains if domain.problem is not None]
    for machine in machines:
        domain = by_name.get(machine.name)
        if domain is not None:
            steps += _plan_observed(machine, domain, attempts.get(machine.id), now, policy)
        elif machine.host_id == policy.host_id and _is_settled(machine.status):
            steps += _plan_missing(machine, absences.get(machine.id), now)
    return VmPlan(
        writes=tuple(step for step in steps if isinstance(step, Claim | SetStatus | KeepGraphics | KeepFacts)),
        actions=tuple(step for step in steps if isinstance(step, PowerAction)),
        reports=tuple(step for step in steps if isinstance(step, VmReport)),
        recheck_seconds=min((step.seconds for step in steps if isinstance(step, Recheck)), default=None),
    )


def keep_recent_attempts(
    attempts: Mapping[UUID, Attempts], machines: Sequence[VmRow], domains: Sequence[Domain], now: float
) -> dict[UUID, Attempts]:
    """Drop the attempts of an earlier desired state, and those that succeeded."""
    by_name = {domain.name: domain for domain in domains}
    recent = {}
    for machine in machines:
        last, domain = attempts.get(machine.id), by_name.get(machine.name)
        if last is None or domain is None or last.desired != machine.desired:
            continue
        if derive_status(domain) != machine.desired or now - max(domain.since, last.at) < HEALTHY_SECONDS:
            recent[machine.id] = last
    return recent


def find_absences(
    before: Mapping[UUID, Absence],
    machines: Sequence[VmRow],
    domains: Sequence[Domain],
    *,
    stops: Mapping[str, str],
    host_id: UUID,
    now: float,
) -> dict[UUID, Absence]:
    """Find the machines of this host without a domain; `before` are those of the previous run.

    `stops` has libvirt's reason for the last stop of a domain, by its name.
    """
    present = {domain.name for domain in domains}
    return {
        machine.id: Absence(before[machine.id].since if machine.id in before else now, stops.get(machine.name))
        for machine in machines
        if machine.host_id == host_id and machine.name not in present
    }


def record_attempt(before: Attempts | None, action: PowerAction, now: float) -> Attempts:
    """Add an action to a machine's attempts, whether or not it succeeded."""
    name = type(action).__name__
    again = before is not None and before.desired == action.desired and before.action == name
    return Attempts(action.desired, name, before.count + 1 if again and before is not None else 1, now)


def _is_settled(status: str) -> bool:
    return status in _SETTLED_STATUSES


def _plan_missing(machine: VmRow, absence: Absence | None, now: float) -> Iterator[Write | VmReport | Recheck]:
    text = "assigned to this host, which has no domain of that name"
    if machine.desired in ("running", "suspended"):
        text += "; it cannot be started until it is defined"
    yield VmReport("missing", machine.name, text)
    before, reason = machine.facts, _get_stop_reason(machine.facts, absence)
    if before is None:
        facts = DomainFacts(None, "missing", reason, 0, 0, "absent", text)
    else:
        facts = replace(before, state="missing", reason=reason, channel="absent", problem=text)
        # Without a UUID there never was one here.
        if before.domain_uuid is not None:
            yield from _plan_end(machine, absence, reason, now)
    if facts != before:
        yield KeepFacts(machine.id, machine.name, facts)


def _get_stop_reason(facts: DomainFacts | None, absence: Absence | None) -> str:
    """Get libvirt's reason why a domain that is gone stopped; unknown if it has reported none.

    A domain that was undefined stopped for the reason that was stored while it had a definition.
    """
    if absence is not None and absence.reason is not None:
        return absence.reason
    return "unknown" if facts is None or facts.is_active else facts.reason


def _plan_end(machine: VmRow, absence: Absence | None, reason: str, now: float) -> Iterator[Write | Recheck]:
    """Plan the status of a machine whose domain was here and is gone."""
    if absence is None or reason == "migrated" or _SYNONYMS.get(machine.status, machine.status) == "off":
        return
    wait = MISSING_SECONDS if reason == "unknown" else SHUTOFF_DEBOUNCE_SECONDS
    left = absence.since + wait - now
    if left > 0:
        yield Recheck(left)
        return
    yield SetStatus(machine.id, machine.name, machine.status, "off", f"domain is gone ({reason})")
    if machine.graphics is not None and machine.graphics.port != -1:
        yield KeepGraphics(machine.id, machine.name, Graphics(machine.graphics.protocol, -1, None))


def _plan_observed(
    machine: VmRow, domain: Domain, attempts: Attempts | None, now: float, policy: VmPolicy
) -> Iterator[Write | PowerAction | VmReport | Recheck]:
    domain = _keep_migrated(machine.facts, domain)
    if machine.host_id != policy.host_id:
        reason = _get_claim_reason(machine, domain)
        if reason is None:
            if domain.is_active and derive_status(domain) is not None:
                text = f"also runs on host {machine.host_id}, to which it is assigned"
                yield VmReport("duplicate", machine.name, text)
                yield Recheck(DUPLICATE_RECHECK_SECONDS)
            return
        yield Claim(machine.id, machine.name, machine.host_id, reason)
    yield from _report_drift(machine, domain)
    power: PowerAction | VmReport | Recheck | None = None
    problem = None
    left = SHUTOFF_DEBOUNCE_SECONDS - (now - domain.since)
    if domain.state == "shutoff" and left > 0:
        problem = None if machine.facts is None else machine.facts.problem
        yield Recheck(left)
    else:
        yield from _plan_status(machine, domain)
        # The row must be assigned in the store already; a claim in this plan may still fail.
        if policy.is_converging and machine.host_id == policy.host_id and _is_settled(machine.status):
            power = _plan_power(machine, domain, attempts, now, policy)
            problem = power.text if isinstance(power, VmReport) else None
    yield from _plan_graphics(machine, domain)
    facts = _build_facts(machine, domain, policy, problem or domain.problem)
    if facts != machine.facts:
        yield KeepFacts(machine.id, machine.name, facts)
    if power is not None:
        yield power


def _keep_migrated(facts: DomainFacts | None, domain: Domain) -> Domain:
    """Keep the reason of a domain that was migrated away: a libvirtd that is restarted forgets it."""
    if facts is None or (domain.uuid, domain.state, domain.reason) != (facts.domain_uuid, "shutoff", "unknown"):
        return domain
    is_elsewhere = (facts.state, facts.reason) == ("shutoff", "migrated")
    return replace(domain, reason="migrated") if is_elsewhere else domain


def _get_claim_reason(machine: VmRow, domain: Domain) -> str | None:
    """Get the reason why this host may claim the machine; None if it may not."""
    facts = machine.facts
    reason = None
    if derive_status(domain) is None:
        pass
    elif machine.host_id is None:
        reason = "not assigned to any host"
    elif not domain.is_active:
        pass
    elif not machine.is_holder_live:
        reason = f"active here, and host {machine.host_id} does not report"
    elif facts is None or not facts.is_active:
        reason = f"active here, and no longer on host {machine.host_id}"
    elif domain.reason == "migrated" and domain.uuid == facts.domain_uuid:
        reason = f"migrated here from host {machine.host_id}"
    return reason


def _plan_status(machine: VmRow, domain: Domain) -> Iterator[SetStatus]:
    after = derive_status(domain)
    if after is None or not _is_settled(machine.status) or _SYNONYMS.get(machine.status, machine.status) == after:
        return
    yield SetStatus(machine.id, machine.name, machine.status, after, f"domain is {domain.state} ({domain.reason})")


def _plan_graphics(machine: VmRow, domain: Domain) -> Iterator[KeepGraphics]:
    if domain.description is None and domain.is_active:
        return
    observed = None if domain.description is None else domain.description.graphics
    before = machine.graphics
    if observed is None or not domain.is_active:
        protocol = observed.protocol if observed is not None else before.protocol if before is not None else None
        after = Graphics(protocol, -1, None)
        if before is None and observed is None:
            return
    else:
        after = observed
    if after != before:
        yield KeepGraphics(machine.id, machine.name, after)


def _build_facts(machine: VmRow, domain: Domain, policy: VmPolicy, problem: str | None) -> DomainFacts:
    described, before = domain.description, machine.facts
    if described is not None:
        channel = _get_channel_state(described, policy.channel_names)
        vcpus, memory_kib = described.vcpus, described.memory_kib
    elif before is not None:
        vcpus, memory_kib, channel = before.vcpus, before.memory_kib, before.channel
    else:
        vcpus, memory_kib, channel = 0, 0, "absent"
    if channel == "connected" and not domain.is_active:
        channel = "disconnected"  # it is as last read, where the domain cannot be read now
    return DomainFacts(domain.uuid, domain.state, domain.reason, vcpus, memory_kib, channel, problem)


def _get_channel_state(described: DomainDescription, names: Sequence[str]) -> str:
    """Get absent, disconnected or connected, for the first of these channels that the domain has."""
    for name in names:
        for channel in described.channels:
            if channel.name == name:
                return "connected" if channel.is_open else "disconnected"
    return "absent"


def _report_drift(machine: VmRow, domain: Domain) -> Iterator[VmReport]:
    observed = domain.description
    if observed is None:
        return
    if machine.cpu_cores and observed.vcpus and machine.cpu_cores != observed.vcpus:
        yield VmReport("drift", machine.name, f"cpuCores is {machine.cpu_cores}, the domain has {observed.vcpus} vCPUs")
    if machine.ram_gb and observed.memory_kib and machine.ram_gb * KIB_PER_GB != observed.memory_kib:
        yield VmReport("drift", machine.name, f"ramGB is {machine.ram_gb}, the domain has {observed.memory_kib} KiB")


def _plan_power(
    machine: VmRow, domain: Domain, attempts: Attempts | None, now: float, policy: VmPolicy
) -> PowerAction | VmReport | Recheck | None:
    """Plan one step to the desired state: an action, a report why there is none, or a wait; None if it is reached."""
    desired, actual = machine.desired, derive_status(domain)
    if desired is None or actual is None or actual == desired:
        return None
    if attempts is not None and attempts.desired != desired:
        attempts = None
    kind, reason = _choose_action(desired, actual, domain, attempts, policy)
    if kind is None:
        return VmReport("cannot", machine.name, reason)
    count = 0 if attempts is None or attempts.action != kind.__name__ else attempts.count
    if kind is Start and count >= MAX_START_ATTEMPTS:
        return VmReport(
            "left",
            machine.name,
            f"started {count} times, never ran for 10 minutes; fix the guest, then set desiredStatus again",
        )
    left = 0.0 if attempts is None else attempts.at + _get_delay_seconds(attempts, policy) - now
    if left > 0:
        return Recheck(left)
    return kind(machine.id, machine.name, domain.uuid, desired, reason)


def _choose_action(
    desired: str, actual: str, domain: Domain, attempts: Attempts | None, policy: VmPolicy
) -> tuple[type[PowerAction] | None, str]:
    """Choose the action and its reason; None and the reason if there is no suitable action."""
    was_requested = attempts is not None and attempts.action in (Shutdown.__name__, Destroy.__name__)
    step: tuple[type[PowerAction] | None, str]
    match desired, actual:
        case "running", "off":
            step = Start, "off, desired state is running"
        case "running", "suspended" if domain.state == "paused":
            step = Resume, "suspended, desired state is running"
        case "suspended", "running":
            step = Suspend, "running, desired state is suspended"
        case "off", "running" if was_requested and policy.may_destroy:
            step = Destroy, "the guest did not shut down in time"
        case "off", "running":
            step = Shutdown, "running, desired state is off"
        case "off", "suspended" if domain.state == "paused":
            step = Resume, "suspended, desired state is off; it must run to shut down"
        case "off", "error" if policy.may_destroy:
            step = Destroy, f"{domain.state} ({domain.reason}), desired state is off"
        case _:
            step = None, f"{domain.state} ({domain.reason}), desired state is {desired}: needs manual action"
    return step


def _get_delay_seconds(attempts: Attempts, policy: VmPolicy) -> float:
    """Get the delay between the last attempt and the next: exponential, and at least a shutdown's time."""
    delay = min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** (attempts.count - 1))
    return max(delay, policy.shutdown_seconds) if attempts.action == Shutdown.__name__ else delay
