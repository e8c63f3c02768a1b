"""Which host may start a machine: a lease names the host that runs it, or may run it. Pure.

Two QEMUs on one disk destroy it, so these rules hold:

* A host has the lease of a machine from before it starts it, or from when it observes it active, until it observes how
  it ended there. It does not expire: a host that is dead or cut off from the store may still run its machines.
* Only a host on which the machine is active takes the lease of another host.
* No host starts a machine whose lease another host has.
* A host whose own domain ended in a way that libvirt does not report starts it only if the host was restarted since,
  and every other host has reported and has not claimed it: it may have been migrated away.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from guestd.hypervisor.domains import KNOWN_ENDS, Domain, derive_status
from guestd.vms.model import DropLease, Lease, Recheck, TakeLease, VmPolicy, VmReport, VmRow

# For as long another host has time to claim a machine that runs there, after this one has stored that it is off here.
ELSEWHERE_SECONDS = 60.0
RELEASE = "if it runs nowhere: guestd vms release (docs/vms.md)"


def plan_lease(
    machine: VmRow, domain: Domain, *, is_ours: bool, is_off: bool, policy: VmPolicy
) -> Iterator[TakeLease | DropLease]:
    """Plan what this host writes of a machine's lease.

    `is_ours`: the machine is assigned to this host, or it claims it. `is_off`: its domain has been off for long enough.
    """
    lease, facts = machine.lease, machine.facts
    is_own_domain = facts is None or facts.domain_uuid in (None, domain.uuid)
    if domain.is_active:
        if derive_status(domain) is None:
            return  # it is migrated or started: until that has ended, whoever has the lease keeps it
        mine = Lease(policy.host_id, "", policy.host_boot, domain.uuid)
        if lease is None:
            if is_ours or is_own_domain:
                yield TakeLease(machine.id, machine.name, None, policy.host_boot, domain.uuid)
        elif (is_ours or lease.host_id == policy.host_id) and is_own_domain and replace(lease, host_name="") != mine:
            yield TakeLease(machine.id, machine.name, lease.host_id, policy.host_boot, domain.uuid)
    elif is_off and _has_ended(lease, domain, policy):
        yield DropLease(machine.id, machine.name, f"its domain is {domain.state} ({domain.reason})")


def find_obstacle(machine: VmRow, domain: Domain, now: float, policy: VmPolicy) -> VmReport | Recheck | None:
    """Find why this host may not start a machine, or not yet; None if it may."""
    lease = machine.lease
    if lease is not None and lease.host_id != policy.host_id:
        text = f"not started: host {lease.host_name} runs it, or may run it; {RELEASE}"
        return VmReport("elsewhere", machine.name, text)
    starts_from = policy.starts_from
    if lease is not None and not _has_ended(lease, domain, policy):
        if not policy.host_boot or lease.host_boot in ("", policy.host_boot):
            text = f"not started: libvirt does not report how it ended here, so it may have been migrated; {RELEASE}"
            return VmReport("elsewhere", machine.name, text)
        if policy.silent_hosts:
            names = ", ".join(policy.silent_hosts)
            text = f"not started: it may run on a host that does not report: {names}; {RELEASE}"
            return VmReport("elsewhere", machine.name, text)
        starts_from = max(starts_from, domain.since + ELSEWHERE_SECONDS)
    return Recheck(starts_from - now) if now < starts_from else None


def _has_ended(lease: Lease | None, domain: Domain, policy: VmPolicy) -> bool:
    """Whether this host has the lease of a domain that is off, and libvirt reports how it ended here."""
    if lease is None or (lease.host_id, lease.domain_uuid) != (policy.host_id, domain.uuid):
        return False
    # A start that failed after this host was restarted says nothing of how it ended before.
    is_new_boot = domain.reason == "failed" and lease.host_boot != policy.host_boot
    return domain.reason in KNOWN_ENDS and not is_new_boot
