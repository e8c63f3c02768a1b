"""What libvirt prints of its filters, domains and networks, as one snapshot. Only what cannot be read is left out.

Pure. Name and uuid are those that libvirt lists, never those in the text: it prints names unescaped, so that a text can
be malformed, or name another filter. Of what cannot be read, the uses are unknown, and all that it may use stays:

* an unreadable filter may include any other, and an unreadable domain may name any filter: no filter is removed;
* the interfaces of an unreadable domain are not changed;
* the addresses that unreadable domains and networks assign are unknown: machine filters keep those that they pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from guestd.filters import xml as filter_xml
from guestd.filters.cache import FilterCache
from guestd.filters.model import Filter
from guestd.filters.snapshot import HostSnapshot, Interface, ObservedFilters, Skipped, SkippedKind, build_stand_in
from guestd.hypervisor.xml import Unreadable

Text = str | Unreadable


@dataclass(frozen=True, slots=True)
class PrintedFilter:
    """A filter as libvirt lists and prints it."""

    name: str
    uuid: UUID
    xml: Text


@dataclass(frozen=True, slots=True)
class PrintedDomain:
    """A domain as libvirt lists and prints it: as it runs and as stored for its next start, None where it is not."""

    name: str
    uuid: UUID
    live: Text | None
    stored: Text | None


@dataclass(frozen=True, slots=True)
class PrintedHost:
    """All of a host at one moment. `networks` are texts by name, `bindings` the filter enforced on each device."""

    filters: Sequence[PrintedFilter]
    domains: Sequence[PrintedDomain]
    networks: Mapping[str, Text]
    bindings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _DomainInterfaces:
    """The interfaces of a domain, and their MAC addresses and networks."""

    interfaces: tuple[Interface, ...]
    networks: frozenset[tuple[str, str]]


def build_snapshot(printed: PrintedHost, cache: FilterCache) -> HostSnapshot:
    """Parse all; unchanged filters are not parsed again."""
    filters = {each.name: parse_filter(each.name, each.uuid, each.xml, cache) for each in printed.filters}
    domains = {each.name: _parse_domain(each) for each in printed.domains}
    hosts = {name: _parse_network(text) for name, text in printed.networks.items()}
    skipped = (*_skip("filter", filters), *_skip("domain", domains), *_skip("network", hosts))
    read_domains = {name: found for name, found in domains.items() if isinstance(found, _DomainInterfaces)}
    interfaces = tuple(interface for each in read_domains.values() for interface in each.interfaces)
    named = {name for each in interfaces for name in (each.live, each.stored) if name}
    stand_ins = {each.name: build_stand_in(each.name, each.uuid) for each in printed.filters}
    read = {name: found for name, found in filters.items() if isinstance(found, Filter)}
    observed = ObservedFilters(
        stand_ins | read,
        frozenset({*printed.bindings.values(), *named}),
        are_uses_known=not any(each.kind in ("filter", "domain") for each in skipped),
    )
    static_ips, unknown = _find_static_ips(read_domains, hosts)
    return HostSnapshot(
        observed,
        frozenset(domains),
        interfaces,
        dict(printed.bindings),
        static_ips,
        without_addresses=unknown | (domains.keys() - read_domains.keys()),
        skipped=skipped,
    )


def parse_filter(name: str, uuid: UUID, xml: Text, cache: FilterCache | None = None) -> Filter | Unreadable:
    """The model of a filter that libvirt lists under this name and uuid."""
    if isinstance(xml, Unreadable):
        return xml
    try:
        found = filter_xml.parse_filter(xml) if cache is None else cache.parse_filter(xml)
    except ValueError as exc:
        return Unreadable(str(exc))
    return found if (found.name, found.uuid) == (name, uuid) else replace(found, name=name, uuid=uuid)


def _skip(kind: SkippedKind, found: Mapping[str, object]) -> Iterator[Skipped]:
    return (Skipped(kind, name, each.reason) for name, each in found.items() if isinstance(each, Unreadable))


def _parse_domain(printed: PrintedDomain) -> _DomainInterfaces | Unreadable:
    texts = [text for text in (printed.live, printed.stored) if text is not None]
    for text in texts:
        if isinstance(text, Unreadable):
            return text
    try:
        networks = {each for text in texts if isinstance(text, str) for each in filter_xml.list_networks(text)}
        return _DomainInterfaces(tuple(_list_interfaces(printed)), frozenset(networks))
    except ValueError as exc:
        return Unreadable(str(exc))


def _list_interfaces(printed: PrintedDomain) -> Iterator[Interface]:
    """The interfaces of a domain, with the filters that they name now and after its next start."""
    now, later = _number_interfaces(printed.live), _number_interfaces(printed.stored)
    for mac, number in {**now, **later}:
        port, live = now.get((mac, number), ("", None))
        _, stored = later.get((mac, number), ("", None))
        yield Interface(printed.name, printed.uuid, mac, port, live, stored, number)


def _number_interfaces(text: Text | None) -> dict[tuple[str, int], tuple[str, str]]:
    """Device and filter of each interface, by its MAC address and its number among those of that address."""
    found: dict[tuple[str, int], tuple[str, str]] = {}
    counts = Counter[str]()
    for mac, port, name in filter_xml.list_interfaces(text) if isinstance(text, str) else ():
        found[mac, counts[mac]] = port, name
        counts[mac] += 1
    return found


def _parse_network(text: Text) -> list[tuple[str, str]] | Unreadable:
    if isinstance(text, Unreadable):
        return text
    try:
        return list(filter_xml.list_static_hosts(text))
    except ValueError as exc:
        return Unreadable(str(exc))


def _find_static_ips(
    read_domains: Mapping[str, _DomainInterfaces], hosts: Mapping[str, list[tuple[str, str]] | Unreadable]
) -> tuple[dict[str, tuple[str, ...]], frozenset[str]]:
    """The static addresses of domains, others are left out; and the domains with a network that cannot be read."""
    found: dict[str, tuple[str, ...]] = {}
    unknown = set()
    for name, each in read_domains.items():
        entries = [(mac, hosts.get(network, [])) for mac, network in each.networks]
        if any(isinstance(listed, Unreadable) for _, listed in entries):
            unknown.add(name)
        ips = {ip for mac, listed in entries for ip in _list_addresses(mac, listed)}
        if ips:
            found[name] = tuple(sorted(ips))
    return found, frozenset(unknown)


def _list_addresses(mac: str, listed: list[tuple[str, str]] | Unreadable) -> Iterable[str]:
    return () if isinstance(listed, Unreadable) else (ip for entry, ip in listed if entry == mac)
