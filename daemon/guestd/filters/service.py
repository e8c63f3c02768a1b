"""Wires the filter reconciler of a host, and makes single runs and previews; used only where libvirt.uri is set."""

from __future__ import annotations

from guestd.core.config import Settings, get_host_name
from guestd.core.tasks import TaskFunction
from guestd.filters.apply import FilterRuns, RunResult
from guestd.filters.cache import FilterCache
from guestd.filters.diff import FilterDiff, Permissions, diff_filters, plan_host_interfaces
from guestd.filters.driver import FilterDriver, observe_host
from guestd.filters.interface_plan import InterfacePlan
from guestd.filters.kernel import make_local_inspector
from guestd.filters.plan import Guard
from guestd.filters.reconciler import FilterReconciler
from guestd.filters.store import open_filter_store, read_states, read_store_snapshot
from guestd.hypervisor.driver import Hypervisor
from guestd.telemetry.registry import Telemetry, VmMetrics


class FilterService:
    """Driver and reconciler of one host. Raises ConfigError where libvirt's bindings are missing."""

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        self._driver = FilterDriver(settings.libvirt.uri, telemetry.vms)
        self._reconciler = FilterReconciler(
            self._driver,
            dsn=settings.store.dsn,
            host_name=get_host_name(settings.libvirt),
            permissions=get_permissions(settings),
            interval_seconds=settings.filters.interval_seconds,
            find_flushed=make_local_inspector().find_flushed,
            metrics=telemetry.filters,
        )

    @property
    def stuck(self) -> int:
        """The number of calls that timed out and have not returned."""
        return self._driver.stuck

    def list_problems(self) -> list[str]:
        """What is wrong."""
        return [] if self._reconciler.error is None else [f"filter reconciler: {self._reconciler.error}"]

    def get_tasks(self, hypervisor: Hypervisor) -> dict[str, TaskFunction]:
        """The background tasks, by name."""
        observed = hypervisor.subscribe()
        return {
            "filter-reconciler": self._reconciler.run,
            "filter-edits": self._reconciler.watch_edits,
            "filter-domains": lambda: self._reconciler.watch_domains(hypervisor, observed),
        }


def get_permissions(settings: Settings, *, confirmed: str | None = None, may_take_over: bool = False) -> Permissions:
    """What the settings allow, and what an operator allows in addition."""
    guard = Guard(settings.filters.most_removals, settings.filters.most_removals_share)
    return Permissions(guard, settings.filters.attach, confirmed=confirmed, may_take_over=may_take_over)


async def preview_run(settings: Settings) -> tuple[FilterDiff, InterfacePlan]:
    """What a run would do now; SourceLost or StoreUnavailable where libvirt or the store does not answer."""
    uri, permissions = settings.libvirt.uri, get_permissions(settings)
    store = await read_store_snapshot(settings.store.dsn)
    states = await read_states(settings.store.dsn, name=get_host_name(settings.libvirt), uri=uri)
    host = await observe_host(uri)
    diff = diff_filters(store, states, host, permissions.guard, FilterCache())
    return diff, plan_host_interfaces(diff, {}, permissions)


async def run_once(settings: Settings, *, confirmed: str | None, may_take_over: bool) -> RunResult:
    """One full run, also beside a running guestd; SourceLost or StoreUnavailable where it is impossible.

    `confirmed` as in Permissions.
    """
    driver = FilterDriver(settings.libvirt.uri, VmMetrics())
    permissions = get_permissions(settings, confirmed=confirmed, may_take_over=may_take_over)
    async with driver.connect():
        version = await driver.version()
        name = get_host_name(settings.libvirt)
        async with open_filter_store(settings.store.dsn, name=name, uri=driver.uri, version=version) as store:
            return await FilterRuns(driver, store, permissions, make_local_inspector().find_flushed).run_full()
