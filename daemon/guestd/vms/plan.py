"""Plans writes, power actions and reports from the rows (desired state) and the domains (observed state).

Pure. Invariants of every plan:

* A host writes only machines that are assigned to it, and claims one only after observing its domain: an active domain
  claims its row, an inactive one only a row without a host. A migrated machine is therefore reassigned exactly once,
  although its old definition remains.
* A status that guestd did not set (building, updating_hardware, any unknown word) means that another program is working
  on the machine: neither the row nor the domain is changed.
* A machine's domain has its name and the UUID that was first stored. One of its name with another UUID was defined anew
  or cloned by somebody: it is reported, never claims the machine, and is never started or stopped. What it does says
  nothing of how the machine's own domain ended.
* A domain that is not observed is unknown. Its machine becomes off when this host had the domain, libvirt answers, and
  either has reported how the domain ended, or nobody has claimed the machine for a while (a transient domain has no
  definition that remains). It never does when the domain was migrated away, and it cannot be started.
* Of a domain whose XML cannot be read the state is known, and all else stays as last known.
* Every write states the value it expects; if another writer was faster, the write is skipped and the next run plans
  again.
* Writes come before actions, and each machine gets one action: its result is observed by the next run, not assumed.
* Actions that change too many machines at once are held until an operator confirms them (`guestd.vms.guard`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from uuid import UUID

from guestd.hypervisor.domains import KNOWN_ENDS, Domain, DomainDescription, Graphics, derive_status
from guestd.vms.guard import find_held, list_holds, report_held
from guestd.vms.leases import ELSEWHERE_SECONDS, plan_lease
from guestd.vms.model import (
    SETTLED_STATUSES,
    SYNONYMS,
    Absence,
    Attempts,
    Claim,
    DomainFacts,
    DropLease,
    KeepFacts,
    KeepGraphics,
    PowerAction,
    Recheck,
    Release,
    SetStatus,
    VmPlan,
    VmPolicy,
    VmReport,
    VmRow,
    Write,
)
from guestd.vms.power import plan_power

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
KIB_PER_GB = 1024 * 1024
# Reasons that a domain is off which do not show that it has run: libvirtd was restarted, or a start has failed. A
# libvirtd that is restarted during an incoming migration ends that with `daemon`.
_NO_END = ("unknown", "failed", "daemon")


_Step = Write | PowerAction | VmReport | Recheck


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
    by_uuid: dict[UUID | None, Domain] = {domain.uuid: domain for domain in domains}
    known = {machine.name for machine in machines}
    steps: list[_Step] = [
        VmReport("unmatched", domain.name, "no Machine has this domain name as its internalName")
        for domain in domains
        if domain.name not in known
    ]
    steps += [VmReport("unreadable", domain.name, domain.problem) for domain in domains if domain.problem is not None]
    for machine in machines:
        domain, own = by_name.get(machine.name), by_uuid.get(_get_own_uuid(machine))
        if own is not None and own is not domain:
            steps += _plan_renamed(machine, own, policy)
        elif domain is not None:
            steps += _plan_observed(machine, domain, attempts.get(machine.id), now, policy)
        elif machine.host_id == policy.host_id and _is_settled(machine.status):
            steps += _plan_missing(machine, absences.get(machine.id), now, policy)
    actions = [step for step in steps if isinstance(step, PowerAction)]
    by_id = {machine.id: machine for machine in machines}
    held = find_held(actions, by_id, now, policy)
    return VmPlan(
        writes=(*(step for step in steps if isinstance(step, Write)), *list_holds(held, by_id)),
        actions=tuple(action for action in actions if action not in held),
        reports=(
            *(step for step in steps if isinstance(step, VmReport)),
            *report_held(held, by_id, policy),
        ),
        recheck_seconds=min((step.seconds for step in steps if isinstance(step, Recheck)), default=None),
        held=held,
    )


def keep_recent_attempts(
    attempts: Mapping[UUID, Attempts], machines: Sequence[VmRow], domains: Sequence[Domain], now: float
) -> dict[UUID, Attempts]:
    """Drop the attempts of an earlier desired state, and those that succeeded."""
    by_name = {domain.name: domain for domain in domains}
    recent = {}
    for machine in machines:
        last, domain = attempts.get(machine.id), by_name.get(machine.name)
        if last is None or domain is None:
            continue
        if (last.desired, last.desired_since) != (machine.desired, machine.desired_since):
            continue
        has_reached = derive_status(domain) == machine.desired and not _is_another(machine, domain)
        if not has_reached or now - max(domain.since, last.at) < HEALTHY_SECONDS:
            recent[machine.id] = last
    return recent


def find_absences(
    before: Mapping[UUID, Absence],
    machines: Sequence[VmRow],
    domains: Sequence[Domain],
    *,
    stops: Mapping[UUID, str],
    host_id: UUID,
    now: float,
) -> dict[UUID, Absence]:
    """Find the machines of this host without a domain; `before` are those of the previous run.

    `stops` has libvirt's reason for the last stop of a domain, by its UUID.
    """
    names, uuids = {domain.name for domain in domains}, {domain.uuid for domain in domains}
    absences = {}
    for machine in machines:
        own_uuid = _get_own_uuid(machine)
        is_here = machine.name in names if own_uuid is None else own_uuid in uuids
        if machine.host_id == host_id and not is_here:
            since = before[machine.id].since if machine.id in before else now
            absences[machine.id] = Absence(since, None if own_uuid is None else stops.get(own_uuid))
    return absences


def _is_settled(status: str) -> bool:
    return status in SETTLED_STATUSES


def _get_own_uuid(machine: VmRow) -> UUID | None:
    """Get the UUID of the machine's own domain, None if none was ever stored."""
    return None if machine.facts is None else machine.facts.domain_uuid


def _is_another(machine: VmRow, domain: Domain) -> bool:
    """Whether a domain of the machine's name is not the machine's own."""
    return _get_own_uuid(machine) not in (None, domain.uuid)


def _plan_renamed(machine: VmRow, domain: Domain, policy: VmPolicy) -> Iterator[_Step]:
    """Plan for a machine whose domain has another name here: it is reported, and its lease says where it runs."""
    text = f"its domain, UUID {domain.uuid}, has the name {domain.name} here: rename the domain, or set internalName"
    yield VmReport("renamed", machine.name, text)
    yield from plan_lease(machine, domain, is_ours=False, is_off=False, policy=policy)
    if machine.host_id == policy.host_id and machine.facts is not None and machine.facts.problem != text:
        yield KeepFacts(machine.id, machine.name, replace(machine.facts, problem=text))


def _plan_missing(machine: VmRow, absence: Absence | None, now: float, policy: VmPolicy) -> Iterator[_Step]:
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
        lease = machine.lease
        mine = lease is not None and (lease.host_id, lease.domain_uuid) == (policy.host_id, before.domain_uuid)
        if mine and absence is not None and reason in KNOWN_ENDS:
            yield DropLease(machine.id, machine.name, f"its domain is gone ({reason})")
    if facts != before:
        yield KeepFacts(machine.id, machine.name, facts)


def _get_stop_reason(facts: DomainFacts | None, absence: Absence | None) -> str:
    """Get libvirt's reason why a domain that is gone stopped; unknown if it has reported none.

    A domain that was undefined stopped for the reason that was stored while it had a definition.
    """
    reported = None if absence is None else absence.reason
    if facts is not None and _is_still_migrated(facts, reported):
        return "migrated"
    if reported is not None:
        return reported
    return "unknown" if facts is None or facts.is_active else facts.reason


def _plan_end(machine: VmRow, absence: Absence | None, reason: str, now: float) -> Iterator[Write | Recheck]:
    """Plan the status of a machine whose domain was here and is gone."""
    if absence is None or reason == "migrated" or SYNONYMS.get(machine.status, machine.status) == "off":
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
) -> Iterator[_Step]:
    domain = _keep_migrated(machine.facts, domain)
    is_ours = machine.host_id == policy.host_id
    left = SHUTOFF_DEBOUNCE_SECONDS - (now - domain.since)
    is_debounced = domain.state == "shutoff" and left > 0
    if not is_ours:
        reason = _get_claim_reason(machine, domain)
        if reason is None:
            yield from plan_lease(machine, domain, is_ours=False, is_off=not is_debounced, policy=policy)
            yield from _report_unclaimed(machine, domain, policy)
            return
        yield Claim(machine.id, machine.name, machine.host_id, reason)
    yield from plan_lease(machine, domain, is_ours=True, is_off=not is_debounced, policy=policy)
    is_reached = derive_status(domain) == machine.desired and not _is_another(machine, domain)
    if machine.is_held and is_reached and not is_debounced:
        yield Release(machine.id, machine.name, machine.desired_since)
    yield from _report_drift(machine, domain)
    power: list[PowerAction | VmReport | Recheck] = []
    problem = None
    if is_debounced:
        problem = None if machine.facts is None else machine.facts.problem
        yield Recheck(left)
    else:
        yield from _plan_status(machine, domain)
        power = list(_plan_power(machine, domain, attempts, now, policy)) if is_ours else []
        problem = next((step.text for step in power if isinstance(step, VmReport)), None)
    yield from _plan_graphics(machine, domain)
    facts = _build_facts(machine, domain, policy, problem or domain.problem)
    if facts != machine.facts:
        yield KeepFacts(machine.id, machine.name, facts)
    yield from power


def _report_unclaimed(machine: VmRow, domain: Domain, policy: VmPolicy) -> Iterator[VmReport | Recheck]:
    """Report a domain of a machine that this host neither has nor may claim."""
    if _is_another(machine, domain):
        text = (
            f"a domain of this name has the UUID {domain.uuid} here, and the machine's has {_get_own_uuid(machine)}:"
            " its row is not claimed; rename this domain, or if it is the machine's now, set MachineDomain.domainUuid"
            f" to NULL and Machine.hostId to {policy.host_id}"
        )
        yield VmReport("replaced", machine.name, text)
    elif domain.is_active and derive_status(domain) is not None:
        text = f"also runs on host {machine.host_id}, to which it is assigned"
        yield VmReport("duplicate", machine.name, text)
        yield Recheck(DUPLICATE_RECHECK_SECONDS)


def _plan_power(
    machine: VmRow, domain: Domain, attempts: Attempts | None, now: float, policy: VmPolicy
) -> Iterator[PowerAction | VmReport | Recheck]:
    """Plan the power of a machine that is assigned to this host in the store; a claim in this plan may still fail."""
    if _is_another(machine, domain):
        text = (
            f"the domain of this name has the UUID {domain.uuid}, and the machine's has {_get_own_uuid(machine)}: it is"
            " not started or stopped; if it is the machine's now, set MachineDomain.domainUuid to NULL"
        )
        yield VmReport("replaced", machine.name, text)
    elif policy.is_converging and _is_settled(machine.status):
        if (domain.state, domain.reason) == ("shutoff", "migrated"):
            yield from _report_migrated(machine, domain, now, policy)
        else:
            yield from plan_power(machine, domain, attempts, now, policy)


def _report_migrated(machine: VmRow, domain: Domain, now: float, policy: VmPolicy) -> Iterator[VmReport | Recheck]:
    """Report a machine that was migrated away, is assigned to this host, and should have another state.

    Its status is that of the host to which it was migrated. Only if that has no guestd the lease still is this host's.
    """
    is_ours = machine.lease is not None and machine.lease.host_id == policy.host_id
    is_reached = machine.desired == SYNONYMS.get(machine.status, machine.status)
    if machine.desired is None or (is_reached and (is_ours or machine.desired == "off")):
        return
    left = domain.since + ELSEWHERE_SECONDS - now
    if left > 0:
        yield Recheck(left)  # the host to which it was migrated is about to claim it
        return
    text = (
        "left alone: its domain was migrated away from this host; set Machine.hostId to the host that has it now, or if"
        " it runs nowhere, start it here: virsh start"
    )
    yield VmReport("elsewhere", machine.name, text)


def _keep_migrated(facts: DomainFacts | None, domain: Domain) -> Domain:
    """Keep the reason of a domain that was migrated away."""
    if facts is None or (domain.uuid, domain.state) != (facts.domain_uuid, "shutoff"):
        return domain
    return replace(domain, reason="migrated") if _is_still_migrated(facts, domain.reason) else domain


def _is_still_migrated(facts: DomainFacts, reason: str | None) -> bool:
    """Whether a domain that was migrated away has not run here since; it is off or gone again for this reason.

    A libvirtd that is restarted forgets it, as does one where the domain is defined again, and a start that fails. A
    domain that was only seen on its way here since (a migration back that failed) ended here for any reason.
    """
    return facts.is_migrated and (facts.is_active or reason in _NO_END)


def _get_claim_reason(machine: VmRow, domain: Domain) -> str | None:
    """Get the reason why this host may claim the machine; None if it may not."""
    facts = machine.facts
    reason = None
    if derive_status(domain) is None or _is_another(machine, domain):
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
    if after is None or not _is_settled(machine.status) or SYNONYMS.get(machine.status, machine.status) == after:
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
    facts = DomainFacts(domain.uuid, domain.state, domain.reason, vcpus, memory_kib, channel, problem)
    if before is None:
        pass
    elif _is_another(machine, domain):
        # The machine's own domain is not here: how it ended decides about its lease, and is kept.
        reason = _get_stop_reason(before, None)
        return replace(
            facts, domain_uuid=before.domain_uuid, state="missing", reason=reason, reached_since=before.reached_since
        )  # fmt: skip
    elif before.is_migrated and before.domain_uuid == domain.uuid and derive_status(domain) is None:
        facts = replace(facts, reason="migrated")
    is_reached = derive_status(domain) == machine.desired
    before_since = None if before is None else before.reached_since
    return replace(facts, reached_since=machine.desired_since if is_reached else before_since)


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
