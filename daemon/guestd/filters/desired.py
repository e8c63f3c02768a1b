"""The desired state: all rows compiled to the filters that libvirt should have, and the part that one host needs.

Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from uuid import UUID

from guestd.filters.cache import FilterCache
from guestd.filters.compiler import Problem
from guestd.filters.graph import list_edges, list_includers, reach
from guestd.filters.machine_filter import (
    CLEAN_TRAFFIC,
    MachineNetwork,
    add_passed_variables,
    build_machine_filter,
    find_variables,
)
from guestd.filters.model import Filter
from guestd.filters.network_services import Policy, merge_policies
from guestd.filters.snapshot import MachineRow, StoreSnapshot, is_stand_in


@dataclass(frozen=True, slots=True)
class CompiledRows:
    """All rows compiled: filters by their name in libvirt, problems of refused rows likewise.

    `titles` are the names for people; `machine_filters` and `reports` are by machine.
    """

    filters: Mapping[str, Filter]
    problems: Mapping[str, tuple[Problem, ...]]
    titles: Mapping[str, str]
    machine_filters: Mapping[UUID, Filter]
    reports: Mapping[UUID, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class DesiredFilters:
    """The filters that a host should have, by name; `invalid` are the names whose rows do not compile.

    `known` are the filters that guestd defined on this host, as names with uuids. `tops` are the machine filters.
    """

    filters: Mapping[str, Filter]
    invalid: frozenset[str] = frozenset()
    known: frozenset[tuple[str, UUID]] = frozenset()
    tops: frozenset[str] = frozenset()


def add_static_ips(store: StoreSnapshot, static_ips: Mapping[str, tuple[str, ...]]) -> StoreSnapshot:
    """The same rows with the addresses that a host's networks assign to machines, by internal name."""
    machines = tuple(
        replace(each, static_ips=static_ips[each.internal_name]) if each.internal_name in static_ips else each
        for each in store.machines
    )
    return replace(store, machines=machines)


def compile_rows(
    store: StoreSnapshot, cache: FilterCache | None = None, installed: Mapping[str, Filter] | None = None
) -> CompiledRows:
    """Compile the filters of all rows, and one of each machine. Repeated callers pass a `cache`.

    libvirt keeps the last definition of a refused row: `installed` has these by name, for the variables they need. Of
    one that cannot be read, these are taken to be those that the machine's filter passes to it.
    """
    cache = FilterCache() if cache is None else cache
    names = {row.id: row.internal_name for row in store.filters}
    filters: dict[str, Filter] = {}
    problems: dict[str, tuple[Problem, ...]] = {}
    for row in store.filters:
        result = cache.compile_filter(row, names)
        if isinstance(result, Filter):
            filters[row.internal_name] = result
        else:
            problems[row.internal_name] = result
    clean = tuple(row.internal_name for row in store.filters if row.name == CLEAN_TRAFFIC)
    installed = installed or {}
    included = {**{name: installed[name] for name in problems if name in installed}, **filters}
    needs = find_variables(included)
    stand_ins = [name for name, each in included.items() if is_stand_in(each)]
    unread = frozenset(reach(stand_ins, list_includers(list_edges(included))) if stand_ins else ())
    machine_filters, reports = {}, {}
    for each in store.machines:
        machine = _network(each, names, clean, store.services)
        own_rules = cache.build_own_rules(machine.services, machine.ports)
        own_needs = add_passed_variables(needs, unread, machine, installed) if unread else needs
        definition, unenforceable = build_machine_filter(machine, own_rules, included, own_needs)
        if each.has_clean_traffic and not clean:
            reason = f"its department has clean traffic enabled, and there is no filter named {CLEAN_TRAFFIC}"
            unenforceable = (*unenforceable, reason)
        machine_filters[each.id], reports[each.id] = definition, unenforceable
    titles = {row.internal_name: row.name for row in store.filters}
    titles |= {machine_filters[machine.id].name: f"of machine {machine.name}" for machine in store.machines}
    return CompiledRows(filters, problems, titles, machine_filters, reports)


def build_desired(
    compiled: CompiledRows, machine_ids: Collection[UUID], known: frozenset[tuple[str, UUID]] = frozenset()
) -> DesiredFilters:
    """The desired state of a host with these machines: every filter of the store, and the machine filters."""
    machine_filters = [each for machine_id, each in compiled.machine_filters.items() if machine_id in machine_ids]
    filters = {**compiled.filters, **{each.name: each for each in machine_filters}}
    tops = frozenset(each.name for each in machine_filters)
    return DesiredFilters(filters, invalid=frozenset(compiled.problems), known=known, tops=tops)


def _network(
    row: MachineRow, names: Mapping[UUID, str], clean: tuple[str, ...], global_policies: Mapping[str, Policy]
) -> MachineNetwork:
    return MachineNetwork(
        id=row.id,
        name=row.name,
        allowed_ips=row.allowed_ips,
        own=tuple(names[each] for each in row.own),
        department=tuple(names[each] for each in row.department),
        clean_traffic=clean if row.has_clean_traffic else (),
        services=merge_policies(row.services, row.department_services, global_policies),
        ports=row.ports,
        static_ips=row.static_ips,
    )
