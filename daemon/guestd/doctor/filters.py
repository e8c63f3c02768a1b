"""libvirt's filters against the store's: what `guestd filters plan` would change, and what it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator

from guestd.core.config import Settings
from guestd.core.errors import ConfigError, SourceLost, StoreUnavailable
from guestd.doctor.finding import Finding, fault, ok, warning
from guestd.filters.service import previewed


async def examined(settings: Settings) -> AsyncIterator[Finding]:
    """Drift and refusals; nothing where there is no libvirt, or no store, which have findings of their own."""
    if not settings.libvirt.uri:
        return
    try:
        found, attaching = await previewed(settings)
    except (StoreUnavailable, ConfigError):
        return
    except SourceLost as exc:
        if "not supported by the connection driver" not in str(exc):
            yield fault("filters", str(exc), "install libvirt-daemon-config-nwfilter; guestd's user must be in libvirt")
        return
    plan = found.plan
    problems = {*found.asked.problems, *(each.name for each in plan.reports if each.kind in ("refused", "clash"))}
    steps = len(plan.actions) + len(attaching.actions)
    if problems:
        fix = "correct their rules: guestd filters plan says what is wrong with each"
        yield warning("filters", f"refused: {', '.join(sorted(problems))}", fix)
    if plan.guarded is not None:
        yield warning(
            "filters",
            f"waits for a yes: {plan.guarded}",
            "look at guestd filters plan, then say it: guestd apply --yes",
        )
    if steps:
        fix = "guestd filters plan names each step, guestd apply does them"
        yield warning("filters", f"libvirt's filters differ from the store's in {steps} steps", fix)
    if not (problems or steps or plan.guarded):
        yield ok("filters", "libvirt has them as the store wants them")
