"""libvirt's filters: snapshots of filters and interfaces, and the calls that change them.

It has its own connection, and each call runs on a thread with a deadline: redefining a filter waits for every domain
that uses it.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar
from uuid import UUID

from guestd.filters import xml as filter_xml
from guestd.filters.cache import FilterCache
from guestd.filters.interface_plan import Attach, Bind
from guestd.filters.model import Filter
from guestd.filters.printed import PrintedDomain, PrintedFilter, PrintedHost, build_snapshot, parse_filter
from guestd.filters.snapshot import HostSnapshot
from guestd.hypervisor.blocking import BlockingCalls
from guestd.hypervisor.connection import (
    abandoned_on_failure,
    call_or_refuse,
    describe_version,
    open_read_only,
    open_read_write,
    read_xml,
    require_bindings,
    start_closing,
    translate_errors,
)
from guestd.hypervisor.xml import Unreadable
from guestd.telemetry.registry import VmMetrics

try:
    import libvirt
except ImportError:  # guestd[libvirt] is not installed; `require_bindings` raises
    libvirt = None

T = TypeVar("T")
# Reading a thousand filters takes half a second; a libvirtd under load several times that.
READ_DEADLINE_SECONDS = 30.0
# A filter that many running machines include takes minutes: 10 ms for each address in each rule that names it. Beyond
# this the run ends. To do the next step instead would not help: libvirt changes no filter before this change ends.
CHANGE_DEADLINE_SECONDS = 300.0
MAX_STUCK = 4


class FilterDriver:
    """One libvirt, inside `connect()`; every method raises SourceLost where it does not answer.

    Raises ConfigError where libvirt's bindings are missing.
    """

    def __init__(
        self,
        uri: str,
        metrics: VmMetrics,
        *,
        read_deadline_seconds: float = READ_DEADLINE_SECONDS,
        change_deadline_seconds: float = CHANGE_DEADLINE_SECONDS,
    ) -> None:
        require_bindings(uri)
        self.uri = uri
        self._read_deadline_seconds = read_deadline_seconds
        self._change_deadline_seconds = change_deadline_seconds
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

    async def has_filters(self) -> bool:
        """Whether libvirt's driver has network filters at all; false only where it certainly never has."""
        connection = self._connection
        return await self._read(lambda: _has_filters(connection))

    async def observe(self, cache: FilterCache) -> HostSnapshot:
        """All filters and what uses them now; unchanged filters are not parsed again."""
        connection = self._connection
        return await self._read(lambda: _take_snapshot(connection, cache))

    async def define(self, definition: Filter) -> Filter | str:
        """Define or redefine a filter; returns what libvirt then has, or why it refused."""
        xml = filter_xml.render_filter(definition)

        def change(connection: Any) -> Filter | str:
            printed = read_xml(connection, connection.nwfilterDefineXML(xml).XMLDesc, libvirt.VIR_ERR_NO_NWFILTER)
            if printed is None:
                return "it was undefined at once"
            found = parse_filter(definition.name, definition.uuid, printed)
            return f"libvirt accepted it, and {found.reason}" if isinstance(found, Unreadable) else found

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
            flags = 0 if is_live else libvirt.VIR_DOMAIN_XML_INACTIVE
            xml = read_xml(connection, lambda: domain.XMLDesc(flags), libvirt.VIR_ERR_NO_DOMAIN)
            if not isinstance(xml, str):
                return "the domain is no longer defined" if xml is None else xml.reason
            try:
                device = filter_xml.set_interface_filter(
                    xml, action.interface.mac, action.interface.number, action.filter
                )
            except ValueError as exc:
                return str(exc)
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
        return await self._call(lambda: call_or_refuse(connection, change), self._change_deadline_seconds)

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


def _has_filters(connection: Any) -> bool:
    try:
        connection.numOfNWFilters()
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return False
        raise
    return True


def _take_snapshot(connection: Any, cache: FilterCache) -> HostSnapshot:
    # Filters before domains: a filter that a new domain names is then known, or the next run finds it.
    filters = [
        PrintedFilter(each.name(), UUID(each.UUIDString()), xml)
        for each in connection.listAllNWFilters()
        if (xml := read_xml(connection, each.XMLDesc, libvirt.VIR_ERR_NO_NWFILTER)) is not None
    ]
    domains = [print_domain(connection, each) for each in connection.listAllDomains()]
    bindings = {each.portDev(): each.filterName() for each in connection.listAllNWFilterBindings()}
    return build_snapshot(PrintedHost(filters, domains, _print_networks(connection), bindings), cache)


def print_domain(connection: Any, domain: Any) -> PrintedDomain:
    """The XML of the running domain and the stored XML for its next start; none if it was undefined meanwhile."""

    def print_live() -> str | None:
        return domain.XMLDesc() if domain.isActive() else None

    def print_stored() -> str | None:
        return domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) if domain.isPersistent() else None

    live, stored = (read_xml(connection, read, libvirt.VIR_ERR_NO_DOMAIN) for read in (print_live, print_stored))
    return PrintedDomain(domain.name(), UUID(domain.UUIDString()), live, stored)


def _print_networks(connection: Any) -> dict[str, str | Unreadable]:
    try:
        networks = connection.listAllNetworks()
    except libvirt.libvirtError as exc:
        # Only if there is certainly none: a missing answer must not remove protection.
        if exc.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return {}
        raise
    texts = {each.name(): read_xml(connection, each.XMLDesc, libvirt.VIR_ERR_NO_NETWORK) for each in networks}
    return {name: text for name, text in texts.items() if text is not None}
