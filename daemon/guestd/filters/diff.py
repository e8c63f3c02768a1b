"""Compare the rows with a host's libvirt: desired state, observed state, and the plans that lead from one to the other.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal
from uuid import UUID

from guestd.filters.cache import FilterCache
from guestd.filters.desired import CompiledRows, DesiredFilters, add_static_ips, build_desired, compile_rows
from guestd.filters.interface_plan import InterfacePlan, ObservedInterfaces, plan_interfaces
from guestd.filters.machine_filter import machine_filter_name
from guestd.filters.plan import Define, FilterPlan, FilterReport, Guard, Past, digest_plan, plan_filters
from guestd.filters.snapshot import FilterHostState, HostSnapshot, MachineRow, StoreSnapshot, is_stand_in


@dataclass(frozen=True, slots=True)
class Permissions:
    """What a run may do. An operator allows the last two: `confirmed` is the digest of the only plan that the run may
    apply, `may_take_over` allows to take interfaces that name another filter.
    """

    guard: Guard
    attach: Literal["off", "report", "enforce"]
    confirmed: str | None = None
    may_take_over: bool = False


@dataclass(frozen=True, slots=True)
class FilterDiff:
    """The rows and libvirt at one moment, and the plan that leads from one to the other.

    `machines` are those of this host, `states` what the store knows of the host's filters, `digests` those of the
    desired filters, by name.
    """

    store: StoreSnapshot
    compiled: CompiledRows
    machines: tuple[MachineRow, ...]
    states: Mapping[tuple[str, UUID], FilterHostState]
    desired: DesiredFilters
    digests: Mapping[str, str]
    host: HostSnapshot
    plan: FilterPlan

    def is_in_force(self, name: str) -> bool:
        """Whether libvirt has a filter in its desired form."""
        return name in self.desired.filters and self.host.observed.filters.get(name) == self.desired.filters[name]

    def get_machine_filters(self) -> dict[str, str]:
        """Names of the machine filters, by the names of their domains."""
        return {machine.internal_name: self.compiled.machine_filters[machine.id].name for machine in self.machines}

    def get_owners(self) -> dict[str, str]:
        """Ids of machines, as text, by the names of their machine filters."""
        return {self.compiled.machine_filters[machine.id].name: str(machine.id) for machine in self.machines}

    def explain_define(self, action: Define) -> str:
        """Why a filter is defined; marked as drift where it was in force and somebody changed it since."""
        state = self.states.get((action.definition.name, action.definition.uuid))
        is_drift = state is not None and state.digest == self.digests[action.definition.name]
        return f"drift: {action.why}" if is_drift else action.why


def diff_filters(
    store: StoreSnapshot, states: Iterable[FilterHostState], host: HostSnapshot, guard: Guard, cache: FilterCache,
    past: Past | None = None,
) -> FilterDiff:  # fmt: skip
    """Compare all rows with the libvirt of one host, and plan its filters. What `states` hold is added to `past`."""
    store = add_static_ips(store, {**host.static_ips, **dict(_list_unknown_addresses(store, host))})
    compiled = compile_rows(store, cache, host.observed.filters)
    machines = tuple(machine for machine in store.machines if machine.internal_name in host.domains)
    by_key = {(state.name, state.uuid): state for state in states}
    known = frozenset(key for key, state in by_key.items() if state.is_known)
    desired = build_desired(compiled, frozenset(machine.id for machine in machines), known)
    past = replace(past or Past(), held=frozenset(state.name for state in by_key.values() if state.is_held))
    return FilterDiff(
        store=store,
        compiled=compiled,
        machines=machines,
        states=by_key,
        desired=desired,
        digests={name: cache.digest_filter(each) for name, each in desired.filters.items()},
        host=host,
        plan=plan_filters(desired, host.observed, guard, past),
    )


def plan_host_interfaces(diff: FilterDiff, flushed: Mapping[str, str], permissions: Permissions) -> InterfacePlan:
    """Plan the interfaces of this host's machines; `flushed` are devices whose rules the kernel lost."""
    if permissions.attach == "off":
        return InterfacePlan((), ())
    machine_filters = diff.get_machine_filters()
    return plan_interfaces(
        ObservedInterfaces(diff.host.interfaces, diff.host.bindings, flushed),
        machine_filters,
        {name for name in machine_filters.values() if diff.is_in_force(name)},
        may_act=permissions.attach == "enforce",
        may_take_over=permissions.may_take_over,
    )


def _list_unknown_addresses(store: StoreSnapshot, host: HostSnapshot) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The domains with a network that cannot be read: the addresses of the others, and those in force."""
    for name in host.without_addresses:
        installed = _find_installed_addresses(name, store, host)
        yield name, tuple(sorted({*host.static_ips.get(name, ()), *installed}))


def _find_installed_addresses(domain: str, store: StoreSnapshot, host: HostSnapshot) -> tuple[str, ...]:
    """The addresses that a machine's filter passes now, where libvirt's networks do not say them."""
    machines = [each for each in store.machines if each.internal_name == domain and not each.allowed_ips]
    names = [machine_filter_name(each.id) for each in machines]
    installed = [host.observed.filters[name] for name in names if name in host.observed.filters]
    found = {value for each in installed for to in each.references for _, value in to.parameters}
    return tuple(sorted(found))


def find_hold(plan: FilterPlan, confirmed: str | None) -> str | None:
    """Why a run may do no action of a plan; None where it may. `confirmed` as in Permissions."""
    if confirmed is None:
        return plan.needs_confirmation
    digest = digest_plan(plan)
    if confirmed == digest:
        return None
    reason = plan.needs_confirmation or "nothing in it needs confirmation"
    return f"the plan is not {confirmed} but {digest} now: {reason}"


def list_reports(diff: FilterDiff, held: str | None) -> list[FilterReport]:
    """The issues of rows and filters that an operator should know of. `held`: why the plan is held, or None."""
    unreadable = [
        FilterReport("unreadable", each.name, f"libvirt's {each.kind} cannot be read: {each.reason}")
        for each in diff.host.skipped
        if each.kind != "filter" or is_stand_in(diff.host.observed.filters.get(each.name))
    ]
    problems = [
        FilterReport("refused", name, str(problem)) for name, each in diff.compiled.problems.items() for problem in each
    ]
    unenforceable = [
        FilterReport("unenforceable", machine.name, text)
        for machine in diff.machines
        for text in diff.compiled.reports[machine.id]
    ]
    reports = [*diff.plan.reports, *problems, *unenforceable, *unreadable]
    if held is None:
        return [each for each in reports if each.kind != "held"]
    command = f"guestd apply --filters {digest_plan(diff.plan)}"
    return [*reports, FilterReport("held", "all", f"{held}; to confirm exactly this plan: {command}")]
