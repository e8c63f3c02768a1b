"""libvirt's filters against the store's: what `guestd filters plan` would change, and what it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator

from guestd.core.config import Settings
from guestd.core.errors import ConfigError, SourceLost, StoreUnavailable
from guestd.doctor.finding import Finding, fault, ok, warning
from guestd.filters.plan import digest_plan
from guestd.filters.service import preview_run


async def check_filters(settings: Settings) -> AsyncIterator[Finding]:
    """Drift and refused filters; nothing where libvirt or the store is missing: they have findings of their own."""
    if not settings.libvirt.uri:
        return
    try:
        diff, interfaces = await preview_run(settings)
    except (StoreUnavailable, ConfigError):
        return
    except SourceLost as exc:
        if "not supported by the connection driver" not in str(exc):
            fix = "install libvirt-daemon-config-nwfilter, and add guestd's user to group libvirt"
            yield fault("filters", str(exc), fix)
        return
    plan = diff.plan
    refused = {*diff.compiled.problems, *(each.name for each in plan.reports if each.kind in ("refused", "clash"))}
    steps = len(plan.actions) + len(interfaces.actions)
    if refused:
        fix = "correct their rows: guestd filters plan prints what is wrong with each"
        yield warning("filters", f"refused: {', '.join(sorted(refused))}", fix)
    if unreadable := sorted({each.name for each in diff.host.skipped}):
        fix = "correct or undefine them: guestd filters plan prints why; until then no filter is removed"
        yield warning("filters", f"libvirt's objects that cannot be read: {', '.join(unreadable)}", fix)
    if plan.needs_confirmation is not None:
        fix = f"read guestd filters plan, then confirm it: guestd apply --filters {digest_plan(plan)}"
        yield warning("filters", f"needs manual action: {plan.needs_confirmation}", fix)
    if steps:
        fix = "guestd filters plan prints each step, guestd apply does them"
        yield warning("filters", f"libvirt's filters differ from the store's in {steps} steps", fix)
    if not (refused or unreadable or steps or plan.needs_confirmation):
        yield ok("filters", "libvirt has them as the store describes them")
