"""Interfaces that are seen and the filters of their machines to the calls that make each interface name its own.

Pure. An interface keeps only one filter. One that names somebody else's is reported, and taken over only on demand; one
that names its machine's and is not enforced in the kernel is bound anew. An interface is given a filter only when
libvirt has that filter as the rows say.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from guestd.filters.plan import Report


@dataclass(frozen=True, slots=True)
class Interface:
    """A network card of a domain. `live` and `stored` are the filters that it names now and when it is started again:

    empty for none, None where the domain is not running or not stored. `port` is its device on the host.
    """

    domain: str
    domain_uuid: UUID
    mac: str
    port: str
    live: str | None
    stored: str | None


@dataclass(frozen=True, slots=True)
class Attach:
    """Have an interface name a filter: live, or in the stored definition."""

    interface: Interface
    filter: str
    scope: Literal["live", "stored"]
    why: str

    def __str__(self) -> str:
        return f"attach {self.filter} to {self.interface.domain} {self.interface.mac} ({self.scope}): {self.why}"


@dataclass(frozen=True, slots=True)
class Bind:
    """Have libvirt make the kernel's rules of an interface anew."""

    interface: Interface
    filter: str
    why: str

    def __str__(self) -> str:
        return f"bind {self.filter} to {self.interface.domain} {self.interface.port}: {self.why}"


Action = Attach | Bind


@dataclass(frozen=True, slots=True)
class Plan:
    """Calls in no particular order, and what to tell."""

    actions: tuple[Action, ...]
    reports: tuple[Report, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """The host's interfaces; the filter that libvirt enforces on each device; devices whose rules the kernel lacks."""

    interfaces: Sequence[Interface]
    bindings: Mapping[str, str]
    flushed: Mapping[str, str]


def plan(
    seen: Seen, umbrellas: Mapping[str, str], in_force: Collection[str], *, may_act: bool, is_taking: bool
) -> Plan:
    """`umbrellas` are filters by the names of their domains; `in_force` are those that libvirt has as they should be.

    Where guestd may not act, what it would do is reported.
    """
    steps = [
        step
        for interface in seen.interfaces
        if (name := umbrellas.get(interface.domain)) is not None
        for step in _steps(interface, name, seen, is_taking=is_taking and may_act)
    ]
    actions = tuple(step for step in steps if not isinstance(step, Report) and may_act and step.filter in in_force)
    reports = [
        step if isinstance(step, Report) else Report("unattached", step.interface.domain, str(step))
        for step in steps
        if step not in actions
    ]
    return Plan(actions, tuple(reports))


def _steps(interface: Interface, name: str, seen: Seen, *, is_taking: bool) -> Iterator[Action | Report]:
    scopes: tuple[tuple[Literal["live", "stored"], str | None], ...] = (
        ("live", interface.live),
        ("stored", interface.stored),
    )
    for scope, current in scopes:
        if current is None or current == name:
            continue
        if current and not is_taking:
            text = f"{interface.mac} ({scope}) names {current}: not its machine's; guestd apply --take replaces it"
            yield Report("taken", interface.domain, text)
        else:
            yield Attach(interface, name, scope, f"it names {current}" if current else "it names no filter")
    if interface.live == name and interface.port:
        bound = seen.bindings.get(interface.port)
        if bound != name:
            yield Bind(interface, name, "libvirt enforces nothing there" if bound is None else f"{bound} is enforced")
        elif interface.port in seen.flushed:
            yield Bind(interface, name, seen.flushed[interface.port])
