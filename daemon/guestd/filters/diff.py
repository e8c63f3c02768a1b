"""Rows and a host's libvirt compared: what should be, what is, the plans that lead from one to the other.

Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from guestd.filters import desired, interface_plan
from guestd.filters import plan as filters
from guestd.filters.cache import Memory
from guestd.filters.desired import Asked, MachineRow, Rows
from guestd.filters.driver import Look
from guestd.filters.model import Filter
from guestd.filters.plan import Define, Guard, Report
from guestd.filters.store import HostState
from guestd.filters.xml import write


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a pass may do. A person said yes: `is_confirmed` to what the guard holds, `is_taking` to taking over."""

    guard: Guard
    attach: Literal["off", "report", "enforce"]
    is_confirmed: bool = False
    is_taking: bool = False


@dataclass(frozen=True, slots=True)
class Compared:
    """Rows and libvirt at one moment, and the plan that leads from one to the other."""

    rows: Rows
    asked: Asked
    here: tuple[MachineRow, ...]
    known: Mapping[tuple[str, UUID], HostState]
    wanted: filters.Wanted
    look: Look
    plan: filters.Plan

    def is_in_force(self, name: str) -> bool:
        """Whether libvirt has a filter as it is wanted."""
        return name in self.wanted.filters and self.look.seen.filters.get(name) == self.wanted.filters[name]

    def umbrellas(self) -> dict[str, str]:
        """Names of machines' own filters, by the names of their domains."""
        return {machine.internal_name: self.asked.umbrellas[machine.id].name for machine in self.here}

    def owners(self) -> dict[str, str]:
        """Ids of machines, as text, by the names of their own filters."""
        return {self.asked.umbrellas[machine.id].name: str(machine.id) for machine in self.here}

    def why(self, action: Define) -> str:
        """Why a filter is defined; what was in force already, somebody has changed."""
        state = self.known.get((action.definition.name, action.definition.uuid))
        is_drift = state is not None and state.digest == digest(action.definition)
        return f"drift: {action.why}" if is_drift else action.why


def compare(rows: Rows, states: Iterable[HostState], look: Look, guard: Guard, memory: Memory) -> Compared:
    """What is and what should be on the host that has these domains."""
    rows = desired.on_networks(rows, look.static_ips)
    asked = desired.asked(rows, memory, look.seen.filters)
    here = tuple(machine for machine in rows.machines if machine.internal_name in look.domains)
    by_key = {(state.name, state.uuid): state for state in states}
    known = frozenset(key for key, state in by_key.items() if state.is_known)
    wishes = filters.wished(asked, frozenset(machine.id for machine in here), known)
    return Compared(rows, asked, here, by_key, wishes, look, filters.plan(wishes, look.seen, guard))


def compare_interfaces(found: Compared, flushed: Mapping[str, str], allowed: Allowed) -> interface_plan.Plan:
    """What is to be done to the interfaces of this host's machines."""
    if allowed.attach == "off":
        return interface_plan.Plan((), ())
    in_force = {name for name in found.umbrellas().values() if found.is_in_force(name)}
    return interface_plan.plan(
        interface_plan.Seen(found.look.interfaces, found.look.bindings, flushed), found.umbrellas(), in_force,
        may_act=allowed.attach == "enforce", is_taking=allowed.is_taking,
    )  # fmt: skip


def reports_of(found: Compared) -> list[Report]:
    """What a person should know of rows and filters."""
    problems = [Report("refused", name, str(exc)) for name, each in found.asked.problems.items() for exc in each]
    unmet = [
        Report("unenforceable", machine.name, text)
        for machine in found.here
        for text in found.asked.reports[machine.id]
    ]
    held = [] if found.plan.guarded is None else [Report("held", "all", found.plan.guarded)]
    return [*found.plan.reports, *problems, *unmet, *held]


def digest(definition: Filter) -> str:
    """What two hosts compare: SHA-256 of what libvirt is told."""
    return hashlib.sha256(write(definition).encode()).hexdigest()
