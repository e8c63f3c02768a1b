"""libvirt's filters: what there is as models, what interfaces use, and the calls that change either.

A connection of its own, each call on a thread with a deadline: redefining a filter waits for every domain that uses it.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from guestd.core.errors import ConfigError, SourceLost
from guestd.filters import xml as nwfilterxml
from guestd.filters.cache import Memory
from guestd.filters.interface_plan import Attach, Bind, Interface
from guestd.filters.model import Filter
from guestd.filters.plan import Seen
from guestd.hypervisor.blocking import BlockingCalls
from guestd.telemetry.registry import VmMetrics

try:
    import libvirt
except ImportError:  # the extra is not installed; `NWFilters` says so
    libvirt = None

T = TypeVar("T")
# A thousand filters take half a second; a libvirtd under load several times that.
LOOK_SECONDS = 30.0
ACT_SECONDS = 30.0
STUCK_CAP = 4


@dataclass(frozen=True, slots=True)
class Look:
    """What a host's libvirt has: filters, names of domains, their interfaces, and what is enforced on each device.

    `static_ips` are the addresses that libvirt's networks give a domain's interfaces by static host entries.
    """

    seen: Seen
    domains: frozenset[str]
    interfaces: tuple[Interface, ...]
    bindings: dict[str, str]
    static_ips: Mapping[str, tuple[str, ...]]


class NWFilters:
    """One libvirt, while `connected`; every method raises SourceLost when it does not answer.

    Raises ConfigError when libvirt's bindings are missing.
    """

    def __init__(self, uri: str, metrics: VmMetrics) -> None:
        if libvirt is None:
            raise ConfigError("libvirt.uri is set and libvirt's bindings are not installed: guestd[libvirt] has them")
        self.uri = uri
        # Two: what changes a filter need not wait for a look at all of them.
        self._calls = BlockingCalls("libvirt-filters", max_concurrent=2, max_stuck=STUCK_CAP, metrics=metrics)
        self._connection: Any = None

    @property
    def stuck(self) -> int:
        """Calls that were given up and have not come back."""
        return self._calls.stuck

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """One connection's life."""
        libvirt.registerErrorHandler(lambda *_: None, None)  # its errors come as exceptions, and need not be printed
        self._connection = connection = await self._call(lambda: libvirt.open(self.uri), LOOK_SECONDS)
        try:
            yield
        finally:
            self._connection = None
            # Not waited for: of a libvirtd that hangs there is no answer to this either.
            threading.Thread(target=_close, args=(connection,), name="libvirt-filters-close", daemon=True).start()

    async def version(self) -> str:
        """libvirt's version and the name of its driver."""
        connection = self._connection
        number, kind = await self._call(lambda: (connection.getLibVersion(), connection.getType()), LOOK_SECONDS)
        return f"libvirt {number // 1_000_000}.{number // 1000 % 1000}.{number % 1000} {kind}"

    async def look(self, memory: Memory) -> Look:
        """All filters and what uses them, as they are now; what has not changed is not read again."""
        connection = self._connection
        return await self._call(lambda: _look(connection, memory), LOOK_SECONDS)

    async def define(self, definition: Filter) -> Filter | str:
        """Tell libvirt what a filter is from now on; gives what it then has, or what it refused and why."""
        xml = nwfilterxml.write(definition)

        def act(connection: Any) -> Filter:
            return nwfilterxml.read(connection.nwfilterDefineXML(xml).XMLDesc())

        return await self._act(act)

    async def remove(self, name: str, uuid: UUID) -> str | None:
        """Have libvirt forget a filter of this name and uuid; what it refused."""

        def act(connection: Any) -> str | None:
            try:
                found = connection.nwfilterLookupByName(name)
            except libvirt.libvirtError as exc:
                if exc.get_error_code() == libvirt.VIR_ERR_NO_NWFILTER:
                    return None
                raise
            if UUID(found.UUIDString()) != uuid:
                return f"{name} has another uuid by now"
            found.undefine()
            return None

        return await self._act(act)

    async def attach(self, action: Attach) -> str | None:
        """Have an interface name a filter; what libvirt refused."""
        is_live = action.scope == "live"

        def act(connection: Any) -> str | None:
            domain = connection.lookupByUUID(action.interface.domain_uuid.bytes)
            xml = domain.XMLDesc(0 if is_live else libvirt.VIR_DOMAIN_XML_INACTIVE)
            device = nwfilterxml.with_filter(xml, action.interface.mac, action.filter)
            if device is None:
                return f"it has no interface {action.interface.mac} any more"
            domain.updateDeviceFlags(
                device, libvirt.VIR_DOMAIN_AFFECT_LIVE if is_live else libvirt.VIR_DOMAIN_AFFECT_CONFIG
            )
            return None

        return await self._act(act)

    async def bind(self, action: Bind) -> str | None:
        """Have libvirt make the kernel's rules of an interface anew; what it refused."""
        of = action.interface
        xml = nwfilterxml.binding(of.domain, of.domain_uuid, of.port, of.mac, action.filter)

        def act(connection: Any) -> None:
            # Only when there is none: libvirt has no call that makes rules of a filter anew that it thinks are there.
            with suppress(libvirt.libvirtError):
                connection.nwfilterBindingLookupByPortDev(of.port).delete()
            connection.nwfilterBindingCreateXML(xml)

        return await self._act(act)

    async def _act(self, act: Callable[[Any], T]) -> T | str:
        connection = self._connection

        def done() -> T | str:
            try:
                return act(connection)
            except libvirt.libvirtError as exc:
                if connection.isAlive() != 1:
                    raise
                return str(exc)

        return await self._call(done, ACT_SECONDS)

    async def _call(self, function: Callable[[], T], deadline_seconds: float) -> T:
        try:
            return await self._calls.run(function, deadline_seconds=deadline_seconds)
        except libvirt.libvirtError as exc:
            raise SourceLost(f"{self.uri}: {exc}") from exc


def look(uri: str) -> Look:
    """Ask a libvirt once, and wait for it; reads only. SourceLost when it does not answer, ConfigError as above."""
    if libvirt is None:
        raise ConfigError("libvirt.uri is set and libvirt's bindings are not installed: guestd[libvirt] has them")
    libvirt.registerErrorHandler(lambda *_: None, None)
    try:
        with closing(libvirt.openReadOnly(uri)) as connection:
            return _look(connection, Memory())
    except libvirt.libvirtError as exc:
        raise SourceLost(f"{uri}: {exc}") from exc


def _look(connection: Any, memory: Memory) -> Look:
    texts = [text for each in connection.listAllNWFilters() if (text := _text(each.XMLDesc)) is not None]
    found = [memory.read(text) for text in texts]
    interfaces: list[Interface] = []
    names = set[str]()
    cards: dict[str, set[tuple[str, str]]] = {}
    for domain in connection.listAllDomains():
        name, live, stored = domain.name(), *_printed(domain)
        names.add(name)
        interfaces += _interfaces(name, UUID(domain.UUIDString()), live, stored)
        cards[name] = {card for xml in (live, stored) if xml is not None for card in nwfilterxml.networks(xml)}
    bindings = {each.portDev(): each.filterName() for each in connection.listAllNWFilterBindings()}
    bound = {*bindings.values(), *(name for each in interfaces for name in (each.live, each.stored) if name)}
    seen = Seen({each.name: each for each in found}, frozenset(bound))
    return Look(seen, frozenset(names), tuple(interfaces), bindings, _static_ips(connection, cards))


def _static_ips(connection: Any, cards: Mapping[str, set[tuple[str, str]]]) -> dict[str, tuple[str, ...]]:
    """The addresses of domains, of whose `cards` MAC address and network are given; those without any are left out."""
    entries = {
        network: _static_hosts(connection, network) for network in {n for each in cards.values() for _, n in each}
    }
    found = {
        name: {ip for mac, network in each for entry, ip in entries[network] if entry == mac}
        for name, each in cards.items()
    }
    return {name: tuple(sorted(ips)) for name, ips in found.items() if ips}


def _static_hosts(connection: Any, network: str) -> list[tuple[str, str]]:
    try:
        return list(nwfilterxml.static_hosts(connection.networkLookupByName(network).XMLDesc()))
    except libvirt.libvirtError as exc:
        # Only where there is surely none: taking protection away for want of an answer would be wrong.
        if exc.get_error_code() in (libvirt.VIR_ERR_NO_NETWORK, libvirt.VIR_ERR_NO_SUPPORT):
            return []
        raise


def _text(ask: Callable[[], str]) -> str | None:
    """What libvirt prints; None of what was undefined meanwhile."""
    try:
        return ask()
    except libvirt.libvirtError as exc:
        if exc.get_error_code() in (libvirt.VIR_ERR_NO_NWFILTER, libvirt.VIR_ERR_NO_DOMAIN):
            return None
        raise


def _printed(domain: Any) -> tuple[str | None, str | None]:
    """The domain as it is now, and as it will be when it is started again."""
    live = _text(domain.XMLDesc) if domain.isActive() else None
    return live, _text(lambda: domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)) if domain.isPersistent() else None


def _interfaces(domain: str, uuid: UUID, live: str | None, stored: str | None) -> Iterator[Interface]:
    """What the domain names now, and what it will name when it is started again."""
    now = {} if live is None else {mac: (port, name) for mac, port, name in nwfilterxml.interfaces(live)}
    later = {} if stored is None else {mac: name for mac, _, name in nwfilterxml.interfaces(stored)}
    for mac in {**now, **later}:
        port, name = now.get(mac, ("", None))
        yield Interface(domain, uuid, mac, port, name, later.get(mac))


def _close(connection: Any) -> None:
    with suppress(libvirt.libvirtError):  # the other side is gone, and with it what was to be closed
        connection.close()
