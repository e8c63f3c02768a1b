"""The one filter of a machine, which its interfaces name: an interface keeps only one.

Pure. This umbrella includes the machine's filters, its department's, and Clean Traffic where the department wants it,
and has the rules of its services and open ports itself. It carries the machine's addresses as parameters: they come
from Machine.allowedIps, or without any from static host entries of libvirt's networks. Operators set both; nothing
comes from the guest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from uuid import UUID, uuid5

from guestd.filters.compiler import in_order
from guestd.filters.model import PREFIX, ROOT, Filter, Reference, Rule
from guestd.filters.services import SERVICES, Policy, Ports, accepting, service_rules

CLEAN_TRAFFIC = "Clean Traffic"
# Umbrellas are named after their machines: a host that knows the machine knows the name.
UMBRELLAS = UUID("6f1c0c5e-3b0f-5d3a-9a55-2d0b6f3f7a10")
_VARIABLES = ("$IP", "$IPV6")


@dataclass(frozen=True, slots=True)
class Machine:
    """What the store says of a machine's network: names are internal names of filters, `services` what holds for it."""

    id: UUID
    name: str
    allowed_ips: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    department: tuple[str, ...] = ()
    clean_traffic: tuple[str, ...] = ()
    services: Mapping[str, Policy] = field(default_factory=dict)
    ports: tuple[Ports, ...] = ()
    static_ips: tuple[str, ...] = ()


def umbrella_name(machine_id: UUID) -> str:
    """The name of a machine's filter in libvirt."""
    return PREFIX + hashlib.sha256(machine_id.bytes).hexdigest()[:16]


def umbrella(
    machine: Machine,
    rules: tuple[Rule, ...],
    filters: Mapping[str, Filter],
    needed: Mapping[str, frozenset[str]],
) -> tuple[Filter, tuple[str, ...]]:
    """The filter of a machine, and what of its rows cannot be enforced.

    `rules` are its `own_rules`, `filters` those of the store by name, `needed` their `variables`.
    """
    addresses, reports = _addresses(machine)
    references: dict[str, Reference] = {}
    for target in (*machine.clean_traffic, *machine.department, *machine.own):
        for reference, exc in _included(target, filters, needed, addresses):
            if reference is None:
                reports.append(exc)
            else:
                references[reference.target] = reference
    reports += [f"service {key} is not one that guestd knows" for key in sorted(set(machine.services) - set(SERVICES))]
    definition = Filter(
        name=umbrella_name(machine.id),
        uuid=uuid5(UMBRELLAS, str(machine.id)),
        chain=ROOT,
        priority=0,
        rules=rules,
        references=tuple(references[name] for name in sorted(references)),
    )
    return definition, tuple(dict.fromkeys(reports))


def own_rules(services: Mapping[str, Policy], ports: Iterable[Ports]) -> tuple[Rule, ...]:
    """The rules that a machine's filter has itself: those of its services and of its open ports."""
    rules = {*service_rules(services)} | {accepting(each, "in", f"Port {each.first} is open") for each in ports}
    return tuple(sorted(rules, key=in_order))


def variables(filters: Mapping[str, Filter]) -> dict[str, frozenset[str]]:
    """The address variables that each filter, or one that it includes, needs; those that need none are left out."""
    includers: dict[str, list[str]] = {}
    for name, each in filters.items():
        for reference in each.references:
            includers.setdefault(reference.target, []).append(name)
    found: dict[str, frozenset[str]] = {}
    waiting = [(name, variable) for name, each in filters.items() for variable in _own_variables(each)]
    while waiting:
        name, variable = waiting.pop()
        if variable not in found.get(name, frozenset()):
            found[name] = found.get(name, frozenset()) | {variable}
            waiting += [(includer, variable) for includer in includers.get(name, ())]
    return found


def _own_variables(each: Filter) -> set[str]:
    return {match.value for rule in each.rules for match in rule.matches if match.value in _VARIABLES}


def _addresses(machine: Machine) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The values of the address variables, and what is wrong with them."""
    found: dict[str, list[str]] = {}
    reports = []
    for text in machine.allowed_ips or machine.static_ips:
        try:
            address = ip_address(text)
        except ValueError:
            reports.append(f"Machine.allowedIps: {text!r} is not an IP address")
            continue
        found.setdefault("$IP" if address.version == 4 else "$IPV6", []).append(str(address))
    known = {value for values in found.values() for value in values}
    reports += [
        f"libvirt's network gives it {address}, which is not in Machine.allowedIps: allowedIps holds"
        for address in map(str, map(ip_address, machine.static_ips))
        if address not in known
    ]
    return {name: tuple(sorted(set(values))) for name, values in found.items()}, reports


def _included(
    name: str,
    filters: Mapping[str, Filter],
    needed: Mapping[str, frozenset[str]],
    addresses: Mapping[str, tuple[str, ...]],
) -> Iterator[tuple[Reference | None, str]]:
    """How a filter is included. libvirt enforces nothing at all of a tree with a variable that has no value."""
    wanted = sorted(needed.get(name, ()))
    missing = [variable for variable in wanted if variable not in addresses]
    if not missing:
        parameters = [(variable[1:], value) for variable in wanted for value in addresses[variable]]
        yield Reference(name, tuple(parameters)), ""
    elif filters[name].rules:
        yield None, f"filter {name} cannot be enforced: no address for {', '.join(missing)} in Machine.allowedIps"
    else:
        # It has no rules of its own: what it includes is included without it.
        for reference in filters[name].references:
            yield from _included(reference.target, filters, needed, addresses)
