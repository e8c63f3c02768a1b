"""The machine filter: the one filter that the interfaces of a machine name, because an interface can name only one.

Pure. It includes the machine's filters, its department's filters, and Clean Traffic where the department has that. The
rules of services and open ports are its own. It passes the machine's addresses as parameters: those of
Machine.allowedIps or, where that is empty, of the static host entries of libvirt's networks. Operators set both;
nothing comes from the guest.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID, uuid5

from guestd.filters.addresses import read_addresses
from guestd.filters.compiler import rule_order
from guestd.filters.graph import list_edges, list_includers, order_targets_first, reach
from guestd.filters.model import PREFIX, ROOT, Filter, Reference, Rule
from guestd.filters.network_services import SERVICES, Policy, Ports, build_accept_rule, build_service_rules
from guestd.filters.snapshot import is_stand_in
from guestd.filters.variables import find_variable

CLEAN_TRAFFIC = "Clean Traffic"
# For the uuids of machine filters, which follow from the machines' ids: every host computes the same ones.
MACHINE_FILTER_NAMESPACE = UUID("6f1c0c5e-3b0f-5d3a-9a55-2d0b6f3f7a10")
_VARIABLES = ("$IP", "$IPV6")
# By filter, the address variables that it needs, each with the number of rules that name it.
Needs = Mapping[str, Mapping[str, int]]


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
    needs: Needs,
) -> tuple[Filter, tuple[str, ...]]:
    """The filter of a machine, and a sentence for each part of its rows that cannot be enforced.

    `rules` come from `build_own_rules`, `filters` are those of the store by name, `needs` comes from `find_variables`.
    """
    addresses = read_addresses(machine.allowed_ips, machine.static_ips)
    reasons: list[str] = []
    targets: set[str] = set()
    for name in (*machine.clean_traffic, *machine.department, *machine.own):
        for target, reason in _include(name, filters, needs, addresses.get_variables().keys()):
            if reason:
                reasons.append(reason)
            else:
                targets.add(target)
    addresses = addresses.limit(sum((Counter(needs.get(target)) for target in targets), Counter[str]()))
    values = addresses.get_variables()
    reasons += [f"service {key} is unknown to guestd" for key in sorted(set(machine.services) - set(SERVICES))]
    definition = Filter(
        name=machine_filter_name(machine.id),
        uuid=uuid5(MACHINE_FILTER_NAMESPACE, str(machine.id)),
        chain=ROOT,
        priority=0,
        entries=(*rules, *(_refer(target, needs, values) for target in sorted(targets))),
    )
    return definition, tuple(dict.fromkeys([*addresses.problems, *reasons]))


def build_own_rules(services: Mapping[str, Policy], ports: Iterable[Ports]) -> tuple[Rule, ...]:
    """The rules that a machine filter has itself: those of services and open ports."""
    rules = {*build_service_rules(services)} | {
        build_accept_rule(each, "in", f"Port {each.first} is open") for each in ports
    }
    return tuple(sorted(rules, key=rule_order))


def find_variables(filters: Mapping[str, Filter]) -> dict[str, dict[str, int]]:
    """The address variables that each filter needs, by itself or through its references; others are left out.

    Each with the number of rules that name it, as often as libvirt makes them; 0 where a filter includes itself.
    """
    edges = list_edges(filters)
    own = {name: _count_own_rules(each) for name, each in filters.items()}
    includers = list_includers(edges)
    found: dict[str, dict[str, int]] = {}
    for variable in _VARIABLES:
        for name in reach([name for name in own if variable in own[name]], includers):
            found.setdefault(name, {})[variable] = 0
    for name in order_targets_first({name: [each for each in edges[name] if each in edges] for name in edges}):
        for variable in found.get(name, ()):
            included = sum(found.get(target, {}).get(variable, 0) for target in edges[name])
            found[name][variable] = own[name][variable] + included
    return found


def add_passed_variables(
    needs: Needs, unread: Collection[str], machine: MachineNetwork, installed: Mapping[str, Filter]
) -> dict[str, Mapping[str, int]]:
    """The variables that filters need, with those that `unread` ones may need, because something there cannot be read.

    Those are what the machine's installed filter passes to them, or all that have a value where it passes none.
    """
    there = installed.get(machine_filter_name(machine.id))
    passed = {
        each.target: {f"${name}" for name, _ in each.parameters}.intersection(_VARIABLES)
        for each in (() if there is None else there.references)
        if each.target in unread
    }
    available = read_addresses(machine.allowed_ips, machine.static_ips).get_variables()
    others = set[str]().union(*passed.values()) or set(available)
    return {**needs, **{name: dict.fromkeys(passed.get(name, others), 1) | {**needs.get(name, {})} for name in unread}}


def _count_own_rules(each: Filter) -> Counter[str]:
    named = [{find_variable(match.value) for match in rule.matches} for rule in each.rules]
    return Counter(variable for variables in named for variable in _VARIABLES if variable in variables)


def _include(
    top: str, filters: Mapping[str, Filter], needs: Needs, available: Collection[str]
) -> Iterator[tuple[str, str]]:
    """What to include for a filter: names, each with the reason why it cannot be enforced, or an empty one.

    libvirt enforces nothing of a tree that has a variable without a value. Of a filter that needs one and has no rules
    of its own, its references are included instead. Filters may include each other: each is looked at once.
    """
    waiting, met = [top], set[str]()
    while waiting:
        name = waiting.pop()
        if name in met:
            continue
        met.add(name)
        missing = sorted(needs.get(name, {}).keys() - set(available))
        if not missing:
            yield name, ""
        elif filters[name].rules or is_stand_in(filters[name]):
            yield name, f"filter {name} cannot be enforced: no address for {', '.join(missing)} in Machine.allowedIps"
        else:
            waiting += [reference.target for reference in reversed(filters[name].references)]


def _refer(name: str, needs: Needs, values: Mapping[str, Sequence[str]]) -> Reference:
    variables = sorted(needs.get(name, ()))
    return Reference(name, tuple((variable[1:], value) for variable in variables for value in values[variable]))
