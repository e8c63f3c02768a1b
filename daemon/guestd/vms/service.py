"""The parts that keep a host's virtual machines, put together; nothing of it exists where libvirt.uri is empty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from uuid import UUID

from guestd.core.config import LibvirtSettings, Settings, get_host_name
from guestd.core.tasks import TaskCoroutine
from guestd.hypervisor import connection
from guestd.hypervisor.connection import Hypervisor
from guestd.hypervisor.domain_stats import DomainStatsPoller
from guestd.telemetry.registry import Telemetry
from guestd.telemetry.registry import VmMetrics as HostingMetrics
from guestd.vms import reconciler
from guestd.vms.plan import REPORT_KINDS, VmPlan, VmPolicy, VmReport
from guestd.vms.reconciler import VmReconciler, preview_vm_plan

NOBODY = UUID(int=0)


class VmService:
    """Driver, loop and statistics of one host. Raises ConfigError where libvirt's bindings are missing."""

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        chosen = settings.libvirt
        self.hypervisor = Hypervisor(chosen.uri, _driver_counters(telemetry.vms))
        self._loop = VmReconciler(
            self.hypervisor,
            dsn=settings.store.dsn,
            host_name=get_host_name(chosen),
            rules=build_policy(chosen),
            counters=_loop_counters(telemetry.vms),
        )
        shown, driver = telemetry.vms, self.hypervisor
        self._sampler = DomainStatsPoller(
            chosen.uri, lambda: driver.domains, gave_up=shown.calls_given_up.inc, took=shown.call_seconds.observe
        )
        shown.show(self._sampler.families)
        shown.libvirt_up.set_function(lambda: self.hypervisor.error is None)
        shown.libvirt_domains.set_function(lambda: len(self.hypervisor.domains))

    @property
    def stuck(self) -> int:
        """Calls that were given up and have not come back."""
        return self.hypervisor.stuck + self._sampler.stuck

    def get_tasks(self) -> dict[str, TaskCoroutine]:
        """What runs beside the pipeline, by the names of the tasks."""
        return {
            "libvirt": self.hypervisor.run(),
            "vms": self._loop.run(),
            "wishes": self._loop.watch_desired_state(),
            "statistics": self._sampler.run(self.hypervisor.subscribe()),
        }

    def problems(self) -> list[str]:
        """What is wrong, in words; of two, the cause."""
        if self.hypervisor.error is not None:
            return [f"libvirt: {self.hypervisor.error}"]
        return [] if self._loop.error is None else [f"machines: {self._loop.error}"]


def build_policy(chosen: LibvirtSettings) -> VmPolicy:
    """What the settings allow; the host's id is known when the store has told it."""
    return VmPolicy(
        host_id=NOBODY,
        is_converging=chosen.vms == "converge",
        may_destroy=chosen.may_destroy,
        shutdown_seconds=chosen.shutdown_seconds,
        channel_names=chosen.channel_names,
    )


async def preview_plan(settings: Settings) -> VmPlan:
    """What a guestd that starts now would do to machines and rows; SourceLost or StoreUnavailable where it cannot."""
    driver = Hypervisor(settings.libvirt.uri, _driver_counters(Telemetry().vms))
    async with driver.connected():
        return await preview_vm_plan(
            driver,
            dsn=settings.store.dsn,
            host_name=get_host_name(settings.libvirt),
            rules=build_policy(settings.libvirt),
        )


def _driver_counters(shown: HostingMetrics) -> connection.Counters:
    return connection.Counters(
        lost=shown.libvirt_lost.inc,
        gave_up=shown.calls_given_up.inc,
        looked=shown.look_seconds.observe,
        took=shown.call_seconds.observe,
    )


def _loop_counters(shown: HostingMetrics) -> reconciler.Counters:
    def reports(found: Sequence[VmReport]) -> None:
        kinds = Counter(report.kind for report in found)
        for kind in REPORT_KINDS:
            shown.reports.labels(kind).set(kinds[kind])

    return reconciler.Counters(
        passed=shown.pass_seconds.observe,
        wrote=lambda kind: shown.written.labels(kind).inc(),
        acted=lambda action, outcome: shown.actions.labels(action, outcome).inc(),
        moved=shown.moved.inc,
        reports=reports,
        lost=shown.lost.inc,
    )
