"""libvirt's filters: snapshots of filters and interfaces, and the calls that change them.

It has its own connection, and each call runs on a thread with a deadline: redefining a filter waits for every domain
that uses it.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar
from uuid import UUID

from guestd.filters import xml as filter_xml
from guestd.filters.cache import FilterCache
from guestd.filters.interface_plan import Attach, Bind
from guestd.filters.model import Filter
from guestd.filters.snapshot import HostSnapshot, Interface, ObservedFilters
from guestd.hypervisor.blocking import BlockingCalls
from guestd.hypervisor.connection import (
    abandoned_on_failure,
    call_or_refuse,
    describe_version,
    open_read_only,
    open_read_write,
    require_bindings,
    start_closing,
    translate_errors,
)
from guestd.telemetry.registry import VmMetrics

try:
    import libvirt
except ImportError:  # guestd[libvirt] is not installed; `require_bindings` raises
    libvirt = None

T = TypeVar("T")
# Reading a thousand filters takes half a second; a libvirtd under load several times that.
READ_DEADLINE_SECONDS = 30.0
CHANGE_DEADLINE_SECONDS = 30.0
MAX_STUCK = 4


class FilterDriver:
    """One libvirt, inside `connect()`; every method raises SourceLost where it does not answer.

    Raises ConfigError where libvirt's bindings are missing.
    """

    def __init__(self, uri: str, metrics: VmMetrics, *, read_deadline_seconds: float = READ_DEADLINE_SECONDS) -> None:
        require_bindings(uri)
        self.uri = uri
        self._read_deadline_seconds = read_deadline_seconds
        # Two: a change of a filter does not wait for a snapshot of all of them.
        self._calls = BlockingCalls("libvirt-filters", max_concurrent=2, max_stuck=MAX_STUCK, metrics=metrics)
        self._connection: Any = None

    @property
    def stuck(self) -> int:
        """The number of calls that timed out and have not returned."""
        return self._calls.stuck

    @asynccontextmanager
    async def connect(self, open_uri: Callable[[str, threading.Event], Any] = open_read_write) -> AsyncIterator[None]:
        """Connect for as long as the context lasts."""
        with abandoned_on_failure() as abandoned:
            connection = await self._read(lambda: open_uri(self.uri, abandoned))
        self._connection = connection
        try:
            yield
        finally:
            self._connection = None
            start_closing(connection)

    async def version(self) -> str:
        """libvirt's version and the name of its driver."""
        connection = self._connection
        return await self._read(lambda: describe_version(connection))

    async def observe(self, cache: FilterCache) -> HostSnapshot:
        """All filters and what uses them now; unchanged filters are not parsed again."""
        connection = self._connection
        return await self._read(lambda: _take_snapshot(connection, cache))

    async def define(self, definition: Filter) -> Filter | str:
        """Define or redefine a filter; returns what libvirt then has, or why it refused."""
        xml = filter_xml.render_filter(definition)

        def change(connection: Any) -> Filter:
            return filter_xml.parse_filter(connection.nwfilterDefineXML(xml).XMLDesc())

        return await self._change(change)

    async def remove(self, name: str, uuid: UUID) -> str | None:
        """Undefine the filter with this name and uuid; returns why libvirt refused, or None."""

        def change(connection: Any) -> str | None:
            try:
                found = connection.nwfilterLookupByName(name)
            except libvirt.libvirtError as exc:
                if exc.get_error_code() == libvirt.VIR_ERR_NO_NWFILTER:
                    return None
                raise
            if UUID(found.UUIDString()) != uuid:
                return f"{name} has another uuid now"
            found.undefine()
            return None

        return await self._change(change)

    async def attach(self, action: Attach) -> str | None:
        """Make an interface name a filter; returns why libvirt refused, or None."""
        is_live = action.scope == "live"

        def change(connection: Any) -> str | None:
            domain = connection.lookupByUUID(action.interface.domain_uuid.bytes)
            xml = domain.XMLDesc(0 if is_live else libvirt.VIR_DOMAIN_XML_INACTIVE)
            device = filter_xml.set_interface_filter(xml, action.interface.mac, action.filter)
            if device is None:
                return f"the domain has no interface {action.interface.mac} any more"
            domain.updateDeviceFlags(
                device, libvirt.VIR_DOMAIN_AFFECT_LIVE if is_live else libvirt.VIR_DOMAIN_AFFECT_CONFIG
            )
            return None

        return await self._change(change)

    async def bind(self, action: Bind) -> str | None:
        """Make libvirt install the kernel's rules of an interface again; returns why it refused, or None."""
        interface = action.interface
        xml = filter_xml.render_binding(
            interface.domain, interface.domain_uuid, interface.port, interface.mac, action.filter
        )

        def change(connection: Any) -> None:
            # Deleted first: libvirt has no call that installs rules again that it believes to be there.
            with suppress(libvirt.libvirtError):  # there is no binding
                connection.nwfilterBindingLookupByPortDev(interface.port).delete()
            connection.nwfilterBindingCreateXML(xml)

        return await self._change(change)

    async def _change(self, change: Callable[[Any], T]) -> T | str:
        """The result of a change, or the text of libvirt's error where the connection is still alive."""
        connection = self._connection
        return await self._call(lambda: call_or_refuse(connection, change), CHANGE_DEADLINE_SECONDS)

    async def _read(self, function: Callable[[], T]) -> T:
        return await self._call(function, self._read_deadline_seconds)

    async def _call(self, function: Callable[[], T], deadline_seconds: float) -> T:
        with translate_errors(self.uri):
            return await self._calls.run(function, deadline_seconds=deadline_seconds)


async def observe_host(uri: str, *, read_deadline_seconds: float = READ_DEADLINE_SECONDS) -> HostSnapshot:
    """Take one snapshot, on a connection that can change nothing; raises as `FilterDriver` does."""
    driver = FilterDriver(uri, VmMetrics(), read_deadline_seconds=read_deadline_seconds)
    async with driver.connect(open_read_only):
        return await driver.observe(FilterCache())


def _take_snapshot(connection: Any, cache: FilterCache) -> HostSnapshot:
    texts = [text for each in connection.listAllNWFilters() if (text := _read_filter_xml(each)) is not None]
    found = [cache.parse_filter(text) for text in texts]
    interfaces: list[Interface] = []
    names = set[str]()
    cards: dict[str, set[tuple[str, str]]] = {}
    for domain in connection.listAllDomains():
        name, live, stored = domain.name(), *_read_definitions(domain)
        names.add(name)
        interfaces += _list_interfaces(name, UUID(domain.UUIDString()), live, stored)
        cards[name] = {card for xml in (live, stored) if xml is not None for card in filter_xml.list_networks(xml)}
    bindings = {each.portDev(): each.filterName() for each in connection.listAllNWFilterBindings()}
    bound = {*bindings.values(), *(name for each in interfaces for name in (each.live, each.stored) if name)}
    observed = ObservedFilters({each.name: each for each in found}, frozenset(bound))
    return HostSnapshot(observed, frozenset(names), tuple(interfaces), bindings, _read_static_ips(connection, cards))


def _read_static_ips(connection: Any, cards: Mapping[str, set[tuple[str, str]]]) -> dict[str, tuple[str, ...]]:
    """The static addresses of domains; `cards` has MAC address and network of each interface. Others are left out."""
    entries = {
        network: _read_static_hosts(connection, network) for network in {n for each in cards.values() for _, n in each}
    }
    found = {
        name: {ip for mac, network in each for entry, ip in entries[network] if entry == mac}
        for name, each in cards.items()
    }
    return {name: tuple(sorted(ips)) for name, ips in found.items() if ips}


def _read_static_hosts(connection: Any, network: str) -> list[tuple[str, str]]:
    try:
        return list(filter_xml.list_static_hosts(connection.networkLookupByName(network).XMLDesc()))
    except libvirt.libvirtError as exc:
        # Only where there is certainly none: a missing answer must not remove protection.
        if exc.get_error_code() in (libvirt.VIR_ERR_NO_NETWORK, libvirt.VIR_ERR_NO_SUPPORT):
            return []
        raise


def _read_filter_xml(nwfilter: Any) -> str | None:
    """The XML of a filter, or None where it was undefined meanwhile."""
    try:
        return str(nwfilter.XMLDesc())
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_NWFILTER:
            return None
        raise


def _read_definitions(domain: Any) -> tuple[str | None, str | None]:
    """The XML of the running domain and the stored XML for its next start; none where it was undefined meanwhile."""
    try:
        live = domain.XMLDesc() if domain.isActive() else None
        return live, domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) if domain.isPersistent() else None
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None, None
        raise


def _list_interfaces(domain: str, uuid: UUID, live: str | None, stored: str | None) -> Iterator[Interface]:
    """The interfaces of a domain, with the filters that they name now and after its next start."""
    now = {} if live is None else {mac: (port, name) for mac, port, name in filter_xml.list_interfaces(live)}
    later = {} if stored is None else {mac: name for mac, _, name in filter_xml.list_interfaces(stored)}
    for mac in {**now, **later}:
        port, name = now.get(mac, ("", None))
        yield Interface(domain, uuid, mac, port, name, later.get(mac))
