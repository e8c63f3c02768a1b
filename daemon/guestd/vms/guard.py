"""Holds the power actions of a plan that changes too many machines at once, until an operator confirms them. Pure.

An UPDATE without its WHERE clause sets the desired state of every machine. What only restores a state that a machine
has reached before (a guest that crashed is started again) is not held. A change that was held stays held, however few
of them are left: who sets the rows back one by one must not cause the last ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from guestd.vms.model import Hold, PowerAction, Start, VmPolicy, VmRow

# So many machines may always change at once: on a host with few machines a share of them is less than one.
ALWAYS_ALLOWED = 2


def find_held(
    actions: Sequence[PowerAction], machines: Mapping[UUID, VmRow], policy: VmPolicy
) -> tuple[PowerAction, ...]:
    """Find the actions to hold: all that are not confirmed, if they are more than the policy allows at once.

    Otherwise those that were held before.
    """
    changes = tuple(action for action in actions if _is_change(action, machines[action.machine_id]))
    if len(changes) > count_allowed(machines.values(), policy):
        return changes
    return tuple(action for action in changes if machines[action.machine_id].is_held)


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


def digest_changes(actions: Sequence[PowerAction]) -> str:
    """The name of a set of changes: the same machines with the same changes of their desired states."""
    lines = sorted(f"{action.machine_id} {action.desired} {action.desired_since}" for action in actions)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _is_change(action: PowerAction, machine: VmRow) -> bool:
    since = machine.desired_since
    if since is None:
        return True
    is_reached = machine.facts is not None and machine.facts.reached_since == since
    return machine.confirmed_since != since and not (isinstance(action, Start) and is_reached)
