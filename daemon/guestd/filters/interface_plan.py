"""Compare interfaces with the filters of their machines and plan the calls that make each name its machine filter.

Pure. An interface can name only one filter. One that names another filter than its machine's is reported, and changed
only on demand. One that names its machine filter without enforcement in the kernel is bound again. An interface gets a
filter only when libvirt has that filter as the rows describe it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from guestd.filters.plan import FilterReport
from guestd.filters.snapshot import Interface


@dataclass(frozen=True, slots=True)
class Attach:
    """Make an interface name a filter, live or in the stored definition."""

    interface: Interface
    filter: str
    scope: Literal["live", "stored"]
    why: str

    def __str__(self) -> str:
        return f"attach {self.filter} to {self.interface.domain} {self.interface.mac} ({self.scope}): {self.why}"


@dataclass(frozen=True, slots=True)
class Bind:
    """Make libvirt install the kernel's rules of an interface again."""

    interface: Interface
    filter: str
    why: str

    def __str__(self) -> str:
        return f"bind {self.filter} to {self.interface.domain} {self.interface.port}: {self.why}"


InterfaceAction = Attach | Bind


@dataclass(frozen=True, slots=True)
class InterfacePlan:
    """Actions in no particular order, and reports."""

    actions: tuple[InterfaceAction, ...]
    reports: tuple[FilterReport, ...]


@dataclass(frozen=True, slots=True)
class ObservedInterfaces:
    """The host's interfaces; the filter that libvirt enforces on each device; devices whose kernel rules are gone."""

    interfaces: Sequence[Interface]
    bindings: Mapping[str, str]
    flushed: Mapping[str, str]


def plan_interfaces(
    observed: ObservedInterfaces,
    machine_filters: Mapping[str, str],
    in_force: Collection[str],
    *,
    may_act: bool,
    may_take_over: bool,
) -> InterfacePlan:
    """`machine_filters` are names by domain; `in_force` are those that libvirt has in their desired form.

    Where guestd may not act, it reports what it would do.
    """
    steps = [
        step
        for interface in observed.interfaces
        if (name := machine_filters.get(interface.domain)) is not None
        for step in _plan_interface(interface, name, observed, may_take_over=may_take_over and may_act)
    ]
    actions = tuple(
        step for step in steps if not isinstance(step, FilterReport) and may_act and step.filter in in_force
    )
    reports = [
        step if isinstance(step, FilterReport) else FilterReport("unattached", step.interface.domain, str(step))
        for step in steps
        if step not in actions
    ]
    return InterfacePlan(actions, tuple(reports))


def _plan_interface(
    interface: Interface, name: str, observed: ObservedInterfaces, *, may_take_over: bool
) -> Iterator[InterfaceAction | FilterReport]:
    scopes: tuple[tuple[Literal["live", "stored"], str | None], ...] = (
        ("live", interface.live),
        ("stored", interface.stored),
    )
    for scope, current in scopes:
        if current is None or current == name:
            continue
        if current and not may_take_over:
            text = f"{interface.mac} ({scope}) names {current}, not its machine filter; guestd apply --take replaces it"
            yield FilterReport("taken", interface.domain, text)
        else:
            yield Attach(interface, name, scope, f"it names {current}" if current else "it names no filter")
    if interface.live == name and interface.port:
        bound = observed.bindings.get(interface.port)
        if bound != name:
            yield Bind(interface, name, "libvirt enforces nothing there" if bound is None else f"{bound} is enforced")
        elif interface.port in observed.flushed:
            yield Bind(interface, name, observed.flushed[interface.port])
