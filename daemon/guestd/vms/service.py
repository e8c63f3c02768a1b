"""The parts that keep a host's virtual machines, put together; nothing of it exists where libvirt.uri is empty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from uuid import UUID

from guestd.core.config import Libvirt, Settings, host_name
from guestd.core.tasks import Life
from guestd.hypervisor import connection
from guestd.hypervisor.connection import Hypervisor
from guestd.hypervisor.domain_stats import Sampler
from guestd.telemetry.registry import Telemetry
from guestd.telemetry.registry import VmMetrics as HostingMetrics
from guestd.vms import reconciler
from guestd.vms.plan import REPORT_KINDS, Plan, Report, Rules
from guestd.vms.reconciler import Reconciler, preview

NOBODY = UUID(int=0)


class VmService:
    """Driver, loop and statistics of one host. Raises ConfigError where libvirt's bindings are missing."""

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        chosen = settings.libvirt
        self.hypervisor = Hypervisor(chosen.uri, _driver_counters(telemetry.vms))
        self._loop = Reconciler(
            self.hypervisor,
            dsn=settings.store.dsn,
            host_name=host_name(chosen),
            rules=rules_of(chosen),
            counters=_loop_counters(telemetry.vms),
        )
        shown, driver = telemetry.vms, self.hypervisor
        self._sampler = Sampler(
            chosen.uri, lambda: driver.domains, gave_up=shown.calls_given_up.inc, took=shown.call_seconds.observe
        )
        shown.show(self._sampler.families)
        shown.libvirt_up.set_function(lambda: self.hypervisor.error is None)
        shown.libvirt_domains.set_function(lambda: len(self.hypervisor.domains))

    @property
    def stuck(self) -> int:
        """Calls that were given up and have not come back."""
        return self.hypervisor.stuck + self._sampler.stuck

    def lives(self) -> dict[str, Life]:
        """What runs beside the pipeline, by the names of the tasks."""
        return {
            "libvirt": self.hypervisor.run(),
            "vms": self._loop.run(),
            "wishes": self._loop.watch_wishes(),
            "statistics": self._sampler.run(self.hypervisor.listener()),
        }

    def problems(self) -> list[str]:
        """What is wrong, in words; of two, the cause."""
        if self.hypervisor.error is not None:
            return [f"libvirt: {self.hypervisor.error}"]
        return [] if self._loop.error is None else [f"machines: {self._loop.error}"]


def rules_of(chosen: Libvirt) -> Rules:
    """What the settings allow; the host's id is known when the store has told it."""
    return Rules(
        host_id=NOBODY,
        is_converging=chosen.vms == "converge",
        may_destroy=chosen.may_destroy,
        shutdown_seconds=chosen.shutdown_seconds,
        channel_names=chosen.channel_names,
    )


async def planned(settings: Settings) -> Plan:
    """What a guestd that starts now would do to machines and rows; SourceLost or StoreUnavailable where it cannot."""
    driver = Hypervisor(settings.libvirt.uri, _driver_counters(Telemetry().vms))
    async with driver.connected():
        return await preview(
            driver, dsn=settings.store.dsn, host_name=host_name(settings.libvirt), rules=rules_of(settings.libvirt)
        )


def _driver_counters(shown: HostingMetrics) -> connection.Counters:
    return connection.Counters(
        lost=shown.libvirt_lost.inc,
        gave_up=shown.calls_given_up.inc,
        looked=shown.look_seconds.observe,
        took=shown.call_seconds.observe,
    )


def _loop_counters(shown: HostingMetrics) -> reconciler.Counters:
    def reports(found: Sequence[Report]) -> None:
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
