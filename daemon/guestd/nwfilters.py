"""libvirt's filters as models, and what of them interfaces use. Reads only, on a connection for each look."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from guestd.errors import ConfigError, SourceLost
from guestd.filters.nwfilterxml import named_by, read
from guestd.plans.filters import Seen

try:
    import libvirt
except ImportError:  # the extra is not installed; `look` says so
    libvirt = None


@dataclass(frozen=True, slots=True)
class Look:
    """What a host's libvirt has: its filters, and the names of its domains."""

    seen: Seen
    domains: frozenset[str]


def look(uri: str) -> Look:
    """Ask libvirt, and wait for it. SourceLost when it does not answer, ConfigError when its bindings are missing."""
    if libvirt is None:
        raise ConfigError("libvirt.uri is set and libvirt's bindings are not installed: guestd[libvirt] has them")
    libvirt.registerErrorHandler(lambda *_: None, None)  # its errors come as exceptions, and need not be printed too
    try:
        with closing(libvirt.openReadOnly(uri)) as connection:
            filters = [read(each.XMLDesc()) for each in connection.listAllNWFilters()]
            domains = connection.listAllDomains()
            bound = {*_bound(connection), *(name for each in domains for name in _named(each))}
            return Look(
                Seen({each.name: each for each in filters}, frozenset(bound)),
                frozenset(each.name() for each in domains),
            )
    except libvirt.libvirtError as why:
        raise SourceLost(f"{uri}: {why}") from why


def _bound(connection: Any) -> Iterator[str]:
    """What libvirt enforces at this moment."""
    for binding in connection.listAllNWFilterBindings():
        yield binding.filterName()


def _named(domain: Any) -> Iterator[str]:
    """What the domain names now, and what it will name when it is started again."""
    yield from named_by(domain.XMLDesc())
    if domain.isPersistent():
        yield from named_by(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
