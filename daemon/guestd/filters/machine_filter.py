"""The machine filter: the one filter that the interfaces of a machine name, because an interface can name only one.

Pure. It includes the machine's filters, its department's filters, and Clean Traffic where the department has that. The
rules of services and open ports are its own. It passes the machine's addresses as parameters: those of
Machine.allowedIps or, where that is empty, of the static host entries of libvirt's networks. Operators set both;
nothing comes from the guest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from uuid import UUID, uuid5

from guestd.filters.addresses import read_addresses
from guestd.filters.compiler import rule_order
from guestd.filters.graph import list_edges, list_includers
from guestd.filters.model import PREFIX, ROOT, Filter, Reference, Rule
from guestd.filters.network_services import SERVICES, Policy, Ports, build_accept_rule, build_service_rules
from guestd.filters.snapshot import is_stand_in
from guestd.filters.variables import find_variable

CLEAN_TRAFFIC = "Clean Traffic"
# For the uuids of machine filters, which follow from the machines' ids: every host computes the same ones.
MACHINE_FILTER_NAMESPACE = UUID("6f1c0c5e-3b0f-5d3a-9a55-2d0b6f3f7a10")
_VARIABLES = ("$IP", "$IPV6")


@dataclass(frozen=True, slots=True)
class MachineNetwork:
    """Network settings of a machine: filters by their internal names, `services` the policies that apply to it."""

    id: UUID
    name: str
    allowed_ips: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    department: tuple[str, ...] = ()
    clean_traffic: tuple[str, ...] = ()
    services: Mapping[str, Policy] = field(default_factory=dict)
    ports: tuple[Ports, ...] = ()
    static_ips: tuple[str, ...] = ()


def machine_filter_name(machine_id: UUID) -> str:
    """The name of a machine filter in libvirt."""
    return PREFIX + hashlib.sha256(machine_id.bytes).hexdigest()[:16]


def build_machine_filter(
    machine: MachineNetwork,
    rules: tuple[Rule, ...],
    filters: Mapping[str, Filter],
    needed: Mapping[str, frozenset[str]],
) -> tuple[Filter, tuple[str, ...]]:
    """The filter of a machine, and a sentence for each part of its rows that cannot be enforced.

    `rules` come from `build_own_rules`, `filters` are those of the store by name, `needed` comes from `find_variables`.
    """
    found = read_addresses(machine.allowed_ips, machine.static_ips)
    addresses, reports = found.get_variables(), list(found.problems)
    references: dict[str, Reference] = {}
    for target in (*machine.clean_traffic, *machine.department, *machine.own):
        for reference, reason in _include(target, filters, needed, addresses):
            if reference is None:
                reports.append(reason)
            else:
                references[reference.target] = reference
    reports += [f"service {key} is unknown to guestd" for key in sorted(set(machine.services) - set(SERVICES))]
    definition = Filter(
        name=machine_filter_name(machine.id),
        uuid=uuid5(MACHINE_FILTER_NAMESPACE, str(machine.id)),
        chain=ROOT,
        priority=0,
        entries=(*rules, *(references[name] for name in sorted(references))),
    )
    return definition, tuple(dict.fromkeys(reports))


def build_own_rules(services: Mapping[str, Policy], ports: Iterable[Ports]) -> tuple[Rule, ...]:
    """The rules that a machine filter has itself: those of services and open ports."""
    rules = {*build_service_rules(services)} | {
        build_accept_rule(each, "in", f"Port {each.first} is open") for each in ports
    }
    return tuple(sorted(rules, key=rule_order))


def find_variables(filters: Mapping[str, Filter]) -> dict[str, frozenset[str]]:
    """The address variables that each filter needs, by itself or through its references; others are left out."""
    includers = list_includers(list_edges(filters))
    found: dict[str, frozenset[str]] = {}
    waiting = [(name, variable) for name, each in filters.items() for variable in _own_variables(each)]
    while waiting:
        name, variable = waiting.pop()
        if variable not in found.get(name, frozenset()):
            found[name] = found.get(name, frozenset()) | {variable}
            waiting += [(includer, variable) for includer in includers.get(name, ())]
    return found


def add_passed_variables(
    needed: Mapping[str, frozenset[str]],
    unread: Collection[str],
    machine: MachineNetwork,
    installed: Mapping[str, Filter],
) -> dict[str, frozenset[str]]:
    """The variables that filters need, with those that `unread` ones may need, because something there cannot be read.

    Those are what the machine's installed filter passes to them, or all that have a value where it passes none.
    """
    there = installed.get(machine_filter_name(machine.id))
    passed = {
        each.target: frozenset(f"${name}" for name, _ in each.parameters).intersection(_VARIABLES)
        for each in (() if there is None else there.references)
        if each.target in unread
    }
    available = read_addresses(machine.allowed_ips, machine.static_ips).get_variables()
    others = frozenset[str]().union(*passed.values()) or frozenset(available)
    return {**needed, **{name: needed.get(name, frozenset()) | passed.get(name, others) for name in unread}}


def _own_variables(each: Filter) -> set[str]:
    named = {find_variable(match.value) for rule in each.rules for match in rule.matches}
    return {variable for variable in _VARIABLES if variable in named}


def _include(
    name: str,
    filters: Mapping[str, Filter],
    needed: Mapping[str, frozenset[str]],
    addresses: Mapping[str, tuple[str, ...]],
) -> Iterator[tuple[Reference | None, str]]:
    """How to include a filter. libvirt enforces nothing of a tree that has a variable without a value."""
    variables = sorted(needed.get(name, ()))
    missing = [variable for variable in variables if variable not in addresses]
    if not missing:
        parameters = [(variable[1:], value) for variable in variables for value in addresses[variable]]
        yield Reference(name, tuple(parameters)), ""
    elif filters[name].rules or is_stand_in(filters[name]):
        yield None, f"filter {name} cannot be enforced: no address for {', '.join(missing)} in Machine.allowedIps"
    else:
        # Without rules of its own: include its references instead.
        for reference in filters[name].references:
            yield from _include(reference.target, filters, needed, addresses)
