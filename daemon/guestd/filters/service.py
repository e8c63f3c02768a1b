"""The parts that keep a host's network filters, put together; nothing of it exists where libvirt.uri is empty."""

from __future__ import annotations

import asyncio
from collections import Counter

from guestd.core.config import Settings, get_host_name
from guestd.core.tasks import TaskCoroutine
from guestd.filters import driver as nwfilters
from guestd.filters import interface_plan, reconciler
from guestd.filters.apply import REPORT_KINDS, Outcome, Passes
from guestd.filters.cache import Memory
from guestd.filters.diff import Allowed, Compared, compare, compare_interfaces
from guestd.filters.driver import NWFilters
from guestd.filters.kernel import own_kernel
from guestd.filters.plan import Guard
from guestd.filters.reconciler import FilterLoop
from guestd.filters.store import filter_store, read_rows, read_states
from guestd.hypervisor.connection import Hypervisor
from guestd.telemetry.registry import FilterMetrics, Telemetry, VmMetrics


class FilterService:
    """Driver and loop of one host. Raises ConfigError where libvirt's bindings are missing."""

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        self._driver = NWFilters(settings.libvirt.uri, telemetry.vms)
        self._loop = FilterLoop(
            self._driver,
            dsn=settings.store.dsn,
            host_name=get_host_name(settings.libvirt),
            allowed=allowed_by(settings),
            interval_seconds=settings.filters.interval_seconds,
            flushed=own_kernel().flushed,
            counters=_counters(telemetry.filters),
        )

    @property
    def stuck(self) -> int:
        """Calls that were given up and have not come back."""
        return self._driver.stuck

    def get_tasks(self, hypervisor: Hypervisor) -> dict[str, TaskCoroutine]:
        """What runs beside the pipeline, by the names of the tasks."""
        return {
            "filters": self._loop.run(),
            "filter-edits": self._loop.watch_edits(),
            "filter-domains": self._loop.watch_domains(hypervisor),
        }


def allowed_by(settings: Settings, *, is_confirmed: bool = False, is_taking: bool = False) -> Allowed:
    """What the settings allow, and what a person has said yes to."""
    chosen = settings.filters
    guard = Guard(chosen.most_removals, chosen.most_removals_share)
    return Allowed(guard, chosen.attach, is_confirmed=is_confirmed, is_taking=is_taking)


async def previewed(settings: Settings) -> tuple[Compared, interface_plan.Plan]:
    """What a pass that begins now would do; SourceLost or StoreUnavailable where it cannot be said."""
    uri, allowed = settings.libvirt.uri, allowed_by(settings)
    rows = await read_rows(settings.store.dsn)
    states = await read_states(settings.store.dsn, name=get_host_name(settings.libvirt), uri=uri)
    look = await asyncio.to_thread(nwfilters.look, uri)
    found = compare(rows, states, look, allowed.guard, Memory())
    return found, compare_interfaces(found, {}, allowed)


async def applied(settings: Settings, *, is_confirmed: bool, is_taking: bool) -> Outcome:
    """One pass, whether or not a guestd keeps this host; SourceLost or StoreUnavailable where there can be none."""
    driver = NWFilters(settings.libvirt.uri, VmMetrics())
    allowed = allowed_by(settings, is_confirmed=is_confirmed, is_taking=is_taking)
    async with driver.connected():
        version = await driver.version()
        name = get_host_name(settings.libvirt)
        async with filter_store(settings.store.dsn, name=name, uri=driver.uri, version=version) as store:
            return await Passes(driver, store, allowed, own_kernel().flushed).full()


def _counters(shown: FilterMetrics) -> reconciler.Counters:
    def passed(outcome: Outcome, seconds: float) -> None:
        shown.wanted.set(outcome.wanted)
        shown.in_force.set(outcome.in_force)
        shown.pending.set(outcome.wanted - outcome.in_force)
        shown.held.set(outcome.held is not None)
        shown.drift.inc(outcome.drifted)
        for action, result in outcome.done:
            shown.actions.labels(type(action).__name__.lower(), _word(result)).inc()
        kinds = Counter(report.kind for report in outcome.reports)
        for kind in REPORT_KINDS:
            shown.reports.labels(kind).set(kinds[kind])
        shown.pass_seconds.observe(seconds)

    return reconciler.Counters(passed=passed, lost=shown.lost.inc)


def _word(result: str) -> str:
    return "done" if result == "done" else "failed"
