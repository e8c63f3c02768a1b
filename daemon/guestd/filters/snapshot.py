"""What the store and a host's libvirt have of filters, each read at one moment. Pure: values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from guestd.filters.model import Filter
from guestd.filters.network_services import Policy, Ports


@dataclass(frozen=True, slots=True)
class RuleRow:
    """A row of FWRule; the columns under their own names, in Python's spelling."""

    id: UUID
    action: str
    direction: str
    priority: int
    protocol: str
    ip_version: str | None = None
    src_mac_addr: str | None = None
    src_ip_addr: str | None = None
    src_ip_mask: str | None = None
    dst_ip_addr: str | None = None
    dst_ip_mask: str | None = None
    src_port_start: int | None = None
    src_port_end: int | None = None
    dst_port_start: int | None = None
    dst_port_end: int | None = None
    state: object = None
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class FilterRow:
    """A row of NWFilter with its rules, and the ids of the filters that it includes."""

    id: UUID
    name: str
    internal_name: str
    uuid: UUID
    chain: str | None
    priority: int
    state_match: bool
    rules: tuple[RuleRow, ...] = ()
    targets: tuple[UUID, ...] = ()


@dataclass(frozen=True, slots=True)
class MachineRow:
    """The network settings of a machine: ids of its own and its department's filters, policies by service.

    `static_ips` are not from the store: they come from libvirt's networks on the host that runs the machine.
    """

    id: UUID
    name: str
    internal_name: str
    allowed_ips: tuple[str, ...]
    own: tuple[UUID, ...]
    department: tuple[UUID, ...]
    has_clean_traffic: bool
    services: Mapping[str, Policy]
    department_services: Mapping[str, Policy]
    ports: tuple[Ports, ...]
    static_ips: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreSnapshot:
    """All rows about filters, read in one transaction. `services` are the global policies."""

    filters: tuple[FilterRow, ...]
    machines: tuple[MachineRow, ...]
    services: Mapping[str, Policy]


HELD = "held: "


@dataclass(frozen=True, slots=True)
class FilterHostState:
    """A row of FilterHostState: what a host has of a filter. `is_known`: guestd defined it there.

    `problem` begins with HELD where a change of the filter waits until an operator confirms it.
    """

    name: str
    uuid: UUID
    is_known: bool
    digest: str | None
    is_bound: bool
    problem: str | None

    @property
    def is_held(self) -> bool:
        """Whether a change of the filter waits until an operator confirms it."""
        return self.problem is not None and self.problem.startswith(HELD)


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface of a domain. `live` and `stored` are the filters that it names now and after its next start:

    empty for none, None where the domain is not running or not stored. `port` is its device on the host, `number`
    counts the interfaces with its MAC address: libvirt allows several.
    """

    domain: str
    domain_uuid: UUID
    mac: str
    port: str
    live: str | None
    stored: str | None
    number: int = 0


@dataclass(frozen=True, slots=True)
class ObservedFilters:
    """All of libvirt's filters by name; `bound` are those that an interface names, live or in a stored definition.

    For one that cannot be read there is a stand-in. `are_uses_known` is false where something that cannot be read may
    use any of them. Applying a plan updates `filters` step by step.
    """

    filters: dict[str, Filter]
    bound: frozenset[str] = frozenset()
    are_uses_known: bool = True


SkippedKind = Literal["filter", "domain", "network"]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A filter, domain or network of libvirt's that cannot be read, and why."""

    kind: SkippedKind
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class HostSnapshot:
    """What libvirt has: filters, names of domains, their interfaces, and the filter enforced on each device.

    `static_ips` are the addresses that libvirt's networks give to a domain's interfaces in static host entries, not all
    for the domains `without_addresses`: they, or a network of theirs, cannot be read. `skipped` cannot be read.
    """

    observed: ObservedFilters
    domains: frozenset[str]
    interfaces: tuple[Interface, ...]
    bindings: dict[str, str]
    static_ips: Mapping[str, tuple[str, ...]]
    without_addresses: frozenset[str] = frozenset()
    skipped: tuple[Skipped, ...] = ()


# No row describes a filter without a chain, so a stand-in differs from every desired filter.
_NO_CHAIN = ""


def build_stand_in(name: str, uuid: UUID) -> Filter:
    """A filter of which only name and uuid are known."""
    return Filter(name, uuid, _NO_CHAIN, 0)


def is_stand_in(definition: Filter | None) -> bool:
    """Whether only name and uuid of a filter are known."""
    return definition is not None and definition.chain == _NO_CHAIN
