"""The parts that keep a host's virtual machines, put together; nothing of it exists where libvirt.uri is empty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from guestd import hypervisor, reconcile
from guestd.channels import Domains
from guestd.hypervisor import Hypervisor
from guestd.lifecycle import Life
from guestd.plans.vms import REPORT_KINDS, Plan, Report, Rules
from guestd.protecting import Protecting, host_name
from guestd.reconcile import Reconciler, preview
from guestd.roster import Roster
from guestd.sampler import Sampler
from guestd.settings import Libvirt, Settings
from guestd.telemetry import Hosting as HostingMetrics
from guestd.telemetry import Telemetry
from guestd.upkeep import Upkeep

NOBODY = UUID(int=0)


class Hosting:
    """Driver, loop and statistics of one host. Raises ConfigError where libvirt's bindings are missing."""

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        chosen = self._chosen = settings.libvirt
        self._memory = Path(settings.spool.directory, "channels.json")
        self.hypervisor = Hypervisor(chosen.uri, _driver_counters(telemetry.hosting))
        self._loop = Reconciler(
            self.hypervisor,
            dsn=settings.store.dsn,
            host_name=host_name(chosen),
            rules=rules_of(chosen),
            counters=_loop_counters(telemetry.hosting),
        )
        shown, driver = telemetry.hosting, self.hypervisor
        self._sampler = Sampler(
            chosen.uri, lambda: driver.domains, gave_up=shown.calls_given_up.inc, took=shown.call_seconds.observe
        )
        self._protecting = Protecting(settings, telemetry)
        shown.show(self._sampler.families)
        shown.libvirt_up.set_function(lambda: self.hypervisor.error is None)
        shown.libvirt_domains.set_function(lambda: len(self.hypervisor.domains))
        shown.calls_stuck.set_function(lambda: self.hypervisor.stuck + self._sampler.stuck + self._protecting.stuck)

    def lives(self) -> dict[str, Life]:
        """What runs beside the pipeline, by the names of the tasks."""
        return {
            "libvirt": self.hypervisor.run(),
            "vms": self._loop.run(),
            "wishes": self._loop.watch_wishes(),
            "statistics": self._sampler.run(self.hypervisor.listener()),
        } | self._protecting.lives(self.hypervisor)

    def place(self, roster: Roster) -> Domains:
        """Where the guests have their channels, as libvirt tells it."""
        driver = self.hypervisor
        return Domains(
            lambda: None if driver.looked_at is None else driver.domains,
            driver.listener(),
            roster=roster,
            channel_names=self._chosen.channel_names,
            memory=self._memory,
        )

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


def upkeep_of(settings: Settings, telemetry: Telemetry) -> Upkeep:
    """What is derived from stored samples; where there is no libvirt too."""
    chosen, shown = settings.libvirt, telemetry.hosting
    upkeep = Upkeep(
        settings.store.dsn, host_name=host_name(chosen), uri=chosen.uri, silent=shown.machines_without_data.set
    )
    shown.show(upkeep.families)
    return upkeep


async def planned(settings: Settings) -> Plan:
    """What a guestd that starts now would do to machines and rows; SourceLost or StoreUnavailable where it cannot."""
    driver = Hypervisor(settings.libvirt.uri, _driver_counters(Telemetry().hosting))
    async with driver.connected():
        return await preview(
            driver, dsn=settings.store.dsn, host_name=host_name(settings.libvirt), rules=rules_of(settings.libvirt)
        )


def _driver_counters(shown: HostingMetrics) -> hypervisor.Counters:
    return hypervisor.Counters(
        lost=shown.libvirt_lost.inc,
        gave_up=shown.calls_given_up.inc,
        looked=shown.look_seconds.observe,
        took=shown.call_seconds.observe,
    )


def _loop_counters(shown: HostingMetrics) -> reconcile.Counters:
    def reports(found: Sequence[Report]) -> None:
        kinds = Counter(report.kind for report in found)
        for kind in REPORT_KINDS:
            shown.reports.labels(kind).set(kinds[kind])

    return reconcile.Counters(
        passed=shown.pass_seconds.observe,
        wrote=lambda kind: shown.written.labels(kind).inc(),
        acted=lambda action, outcome: shown.actions.labels(action, outcome).inc(),
        moved=shown.moved.inc,
        reports=reports,
        lost=shown.lost.inc,
    )
