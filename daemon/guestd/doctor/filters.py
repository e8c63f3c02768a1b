"""libvirt's filters against the store's: what `guestd filters plan` would change, and what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from guestd import nwfilters
from guestd.doctor.finding import Finding, fault, warning, well
from guestd.errors import ConfigError, SourceLost, StoreUnavailable
from guestd.filters import wanted
from guestd.filterstore import read_rows
from guestd.plans import filters
from guestd.settings import Settings


async def examined(settings: Settings) -> AsyncIterator[Finding]:
    """Drift and refusals; nothing where there is no libvirt, or no store, which have findings of their own."""
    if not settings.libvirt.uri:
        return
    try:
        rows = await read_rows(settings.store.dsn)
        found = await asyncio.to_thread(nwfilters.look, settings.libvirt.uri)
    except (StoreUnavailable, ConfigError):
        return
    except SourceLost as why:
        if "not supported by the connection driver" not in str(why):
            yield fault("filters", str(why), "install libvirt-daemon-config-nwfilter; guestd's user must be in libvirt")
        return
    here = frozenset(machine.id for machine in rows.machines if machine.internal_name in found.domains)
    asked = wanted.asked(rows)
    plan = filters.plan(filters.wished(asked, here), found.seen, most_removals=filters.MOST_REMOVALS)
    if asked.problems:
        fix = "correct their rules: guestd filters plan says what is wrong with each"
        yield warning("filters", f"refused: {', '.join(sorted(asked.problems))}", fix)
    if plan.guarded is not None:
        yield warning("filters", f"waits for a yes: {plan.guarded}", "look at guestd filters plan before saying it")
    if plan.actions:
        fix = "guestd filters plan names each step"
        yield warning("filters", f"libvirt's filters differ from the store's in {len(plan.actions)} steps", fix)
    if not (asked.problems or plan.actions or plan.guarded):
        yield well("filters", "libvirt has them as the store wants them")
