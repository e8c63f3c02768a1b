"""Holds the power actions of a plan that changes too many machines at once, until an operator confirms them. Pure.

An UPDATE without its WHERE clause sets the desired state of every machine, and a loop of UPDATEs does so one by one:
changes that began shortly before count together with those of the plan. What only restores a state that a machine has
reached before (a guest that crashed is started again) is not held. A change that was held stays held, however few of
them are left: who sets the rows back one by one must not cause the last ones. After the store was restored from a
backup, each desired state is held that is not reached already (sql/queries/vms/insert_restored_holds.sql).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from uuid import UUID

from guestd.vms.model import BegunChange, Hold, PowerAction, Start, VmPolicy, VmReport, VmRow

# So many machines may always change at once: on a host with few machines a share of them is less than one.
ALWAYS_ALLOWED = 2
# A person who clicks through a list needs as long from one change to the next; a program that sets rows does not.
SECONDS_PER_CHANGE = 2.0


def find_held(
    actions: Sequence[PowerAction], machines: Mapping[UUID, VmRow], now: float, policy: VmPolicy
) -> tuple[PowerAction, ...]:
    """Find the actions to hold: all new changes that are not confirmed, if too many machines change at once.

    At once: within `get_window_seconds`. Otherwise those that were held before. What is held because the store was
    restored does not count: it must not hold what is desired since.
    """
    changes = tuple(action for action in actions if _is_change(action, machines[action.machine_id], policy))
    allowed = count_allowed(machines.values(), policy)
    since = now - get_window_seconds(allowed)
    recent = {machine_id for machine_id, begun in policy.begun.items() if begun.at > since}
    counted = (change.machine_id for change in changes if not machines[change.machine_id].is_restored)
    if len(recent.union(counted)) > allowed:
        return changes
    return tuple(action for action in changes if machines[action.machine_id].is_held)


def get_window_seconds(allowed: int) -> float:
    """Get the time within which changes of so many machines count as at once."""
    return SECONDS_PER_CHANGE * (allowed - 1)


def note_begun(
    actions: Iterable[PowerAction], machines: Mapping[UUID, VmRow], now: float, policy: VmPolicy
) -> dict[UUID, BegunChange]:
    """Note which changes begin with these actions: `policy.begun` of the machines, and these."""
    before = {machine_id: begun for machine_id, begun in policy.begun.items() if machine_id in machines}
    return before | {
        action.machine_id: BegunChange(action.desired_since, now)
        for action in actions
        if _is_change(action, machines[action.machine_id], policy)
    }


def count_allowed(machines: Iterable[VmRow], policy: VmPolicy) -> int:
    """Count the machines of this host that may change at once."""
    own = sum(machine.host_id == policy.host_id for machine in machines)
    return max(ALWAYS_ALLOWED, min(policy.most_changes, int(policy.most_changes_share * own)))


def list_holds(held: Sequence[PowerAction], machines: Mapping[UUID, VmRow]) -> list[Hold]:
    """List what must be recorded of the actions that are held: those that were not before."""
    return [
        Hold(action.machine_id, action.name, action.desired_since, str(action))
        for action in held
        if action.desired_since is not None and not machines[action.machine_id].is_held
    ]


def report_held(held: Iterable[PowerAction], machines: Mapping[UUID, VmRow], policy: VmPolicy) -> Iterator[VmReport]:
    """Report each action that is held, and why."""
    allowed = count_allowed(machines.values(), policy)
    for action in held:
        why = f"one of more than {allowed} changes within {get_window_seconds(allowed):g} s"
        if machines[action.machine_id].is_restored:
            why = "the store was restored from a backup, or this host's row deleted, since this was desired"
        yield VmReport("held", action.name, f"{action}: held: {why}; guestd plan shows how to confirm it")


def digest_changes(actions: Sequence[PowerAction]) -> str:
    """The name of a set of changes: the same machines with the same changes of their desired states."""
    lines = sorted(f"{action.machine_id} {action.desired} {_name_time(action.desired_since)}" for action in actions)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _name_time(time: datetime | None) -> str:
    """Name a time independently of the time zone in which a session of the store reads it."""
    return "" if time is None else time.astimezone(UTC).isoformat()


def _is_change(action: PowerAction, machine: VmRow, policy: VmPolicy) -> bool:
    """Whether an action begins a change that nobody has confirmed."""
    since = machine.desired_since
    if since is None or machine.is_held:
        return True
    is_reached = machine.facts is not None and machine.facts.reached_since == since
    begun = policy.begun.get(machine.id)
    # Resumed to be shut down, or asked again: the change is the one that was allowed to begin.
    is_continued = begun is not None and begun.desired_since == since and not is_reached
    return not is_continued and machine.confirmed_since != since and not (isinstance(action, Start) and is_reached)
