"""All that the store says of filters, to the filters that libvirt should have and what is wrong with the rest.

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from uuid import UUID

from guestd.filters.cache import Memory
from guestd.filters.compiler import FilterRow, Problem
from guestd.filters.machine_filter import CLEAN_TRAFFIC, Machine, umbrella, variables
from guestd.filters.model import Filter
from guestd.filters.services import Policy, Ports, policies


@dataclass(frozen=True, slots=True)
class MachineRow:
    """A machine's network in the store: ids of its own and its department's filters, policies by service.

    `static_ips` are not of the store: libvirt's networks give them to it, on the host that has it.
    """

    id: UUID
    name: str
    internal_name: str
    allowed_ips: tuple[str, ...]
    own: tuple[UUID, ...]
    department: tuple[UUID, ...]
    is_clean: bool
    services: Mapping[str, Policy]
    department_services: Mapping[str, Policy]
    ports: tuple[Ports, ...]
    static_ips: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rows:
    """What the store says, read at one moment."""

    filters: tuple[FilterRow, ...]
    machines: tuple[MachineRow, ...]
    services: Mapping[str, Policy]


@dataclass(frozen=True, slots=True)
class Asked:
    """What libvirt should have: filters by their name there, problems of refused rows likewise.

    `titles` are the names for people; `umbrellas` and `reports` are by machine.
    """

    filters: Mapping[str, Filter]
    problems: Mapping[str, tuple[Problem, ...]]
    titles: Mapping[str, str]
    umbrellas: Mapping[UUID, Filter]
    reports: Mapping[UUID, tuple[str, ...]]


def on_networks(rows: Rows, static_ips: Mapping[str, tuple[str, ...]]) -> Rows:
    """The same rows, with the addresses that a host's networks give to machines, by their internal names."""
    machines = tuple(
        replace(each, static_ips=static_ips[each.internal_name]) if each.internal_name in static_ips else each
        for each in rows.machines
    )
    return replace(rows, machines=machines)


def asked(rows: Rows, memory: Memory | None = None, in_force: Mapping[str, Filter] | None = None) -> Asked:
    """The filters of all rows, and one of each machine. Who asks again and again has a `memory`.

    Of a row that is refused, libvirt keeps what it has: `in_force` tells by name what those filters need.
    """
    memory = Memory() if memory is None else memory
    names = {row.id: row.internal_name for row in rows.filters}
    filters: dict[str, Filter] = {}
    problems: dict[str, tuple[Problem, ...]] = {}
    for row in rows.filters:
        became = memory.compiled(row, names)
        if isinstance(became, Filter):
            filters[row.internal_name] = became
        else:
            problems[row.internal_name] = became
    clean = tuple(row.internal_name for row in rows.filters if row.name == CLEAN_TRAFFIC)
    kept = {name: in_force[name] for name in problems if name in in_force} if in_force else {}
    included = {**kept, **filters}
    needed = variables(included)
    umbrellas, reports = {}, {}
    for each in rows.machines:
        machine = _machine(each, names, clean, rows.services)
        definition, wrong = umbrella(machine, memory.own_rules(machine.services, machine.ports), included, needed)
        if each.is_clean and not clean:
            wrong = (*wrong, f"its department wants clean traffic, and there is no filter of the name {CLEAN_TRAFFIC}")
        umbrellas[each.id], reports[each.id] = definition, wrong
    titles = {row.internal_name: row.name for row in rows.filters}
    titles |= {umbrellas[machine.id].name: f"of machine {machine.name}" for machine in rows.machines}
    return Asked(filters, problems, titles, umbrellas, reports)


def _machine(
    row: MachineRow, names: Mapping[UUID, str], clean: tuple[str, ...], everywhere: Mapping[str, Policy]
) -> Machine:
    return Machine(
        id=row.id,
        name=row.name,
        allowed_ips=row.allowed_ips,
        own=tuple(names[each] for each in row.own),
        department=tuple(names[each] for each in row.department),
        clean_traffic=clean if row.is_clean else (),
        services=policies(row.services, row.department_services, everywhere),
        ports=row.ports,
        static_ips=row.static_ips,
    )
