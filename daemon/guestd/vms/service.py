"""The VM part of guestd put together: libvirt driver, reconciler, statistics. Not created if libvirt.uri is empty."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from guestd.core.config import LibvirtSettings, Settings, get_host_name
from guestd.core.tasks import TaskFunction
from guestd.hypervisor.domain_stats import DomainStatsPoller
from guestd.hypervisor.driver import Hypervisor
from guestd.hypervisor.uri import get_transport
from guestd.telemetry.registry import Telemetry, VmMetrics
from guestd.vms.guard import digest_changes
from guestd.vms.identity import hash_machine_id
from guestd.vms.model import PowerAction, VmPlan, VmPolicy
from guestd.vms.reconciler import UNKNOWN_HOST, VmReconciler, preview_vm_plan
from guestd.vms.reported import FILE
from guestd.vms.store import confirm_changes


class VmService:
    """Driver, reconciler and statistics of one host. Raises ConfigError if libvirt's bindings are missing."""

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        libvirt, metrics = settings.libvirt, telemetry.vms
        hypervisor = self.hypervisor = Hypervisor(libvirt.uri, metrics)
        self._reconciler = VmReconciler(
            hypervisor,
            dsn=settings.store.dsn,
            host_name=get_host_name(libvirt),
            policy=build_policy(libvirt),
            metrics=metrics,
            reports_file=Path(settings.spool.directory, FILE),
        )
        self._stats_poller = DomainStatsPoller(libvirt.uri, lambda: hypervisor.domains, metrics=metrics)
        telemetry.add_source(self._stats_poller.build_families)
        metrics.libvirt_up.set_function(lambda: hypervisor.error is None)
        metrics.libvirt_domains.set_function(lambda: len(hypervisor.domains))

    @property
    def stuck(self) -> int:
        """Abandoned libvirt calls that have not returned."""
        return self.hypervisor.stuck + self._stats_poller.stuck

    def get_tasks(self) -> dict[str, TaskFunction]:
        """Get the background tasks by name."""
        observed = self.hypervisor.subscribe()
        return {
            "libvirt": self.hypervisor.run,
            "vm-reconciler": self._reconciler.run,
            "vm-desired-state": self._reconciler.watch_desired_state,
            "domain-stats": lambda: self._stats_poller.run(observed),
        }

    def list_problems(self) -> list[str]:
        """List what is wrong; if libvirt is unavailable, only that."""
        if self.hypervisor.error is not None:
            return [f"libvirt: {self.hypervisor.error}"]
        return [] if self._reconciler.error is None else [f"VM reconciler: {self._reconciler.error}"]


def build_policy(settings: LibvirtSettings) -> VmPolicy:
    """Build the policy from the settings; the host's ID is set when the store has assigned it."""
    return VmPolicy(
        host_id=UNKNOWN_HOST,
        is_converging=settings.vms == "converge",
        may_destroy=settings.may_destroy,
        shutdown_seconds=settings.shutdown_seconds,
        channel_names=settings.channel_names,
        most_changes=settings.most_changes,
        most_changes_share=settings.most_changes_share,
        host_boot=read_host_boot(settings.uri),
        host_machine=read_host_machine(settings.uri),
    )


def read_host_boot(uri: str) -> str:
    """Read the ID of this host's boot, empty if libvirt is on another machine."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text().strip() if get_transport(uri) == "unix" and file.exists() else ""


def read_host_machine(uri: str) -> str:
    """Read the hash of this host's machine ID, empty if libvirt is on another machine or there is none."""
    file = Path("/etc/machine-id")
    return hash_machine_id(file.read_text().strip()) if get_transport(uri) == "unix" and file.exists() else ""


@dataclass(frozen=True, slots=True)
class HeldChanges:
    """The changes that an operator must confirm. `digest` names exactly these."""

    count: int
    digest: str

    def __str__(self) -> str:
        return f"{self.count} changes of VMs are held; to confirm exactly these: guestd apply --vms {self.digest}"


def list_held(plan: VmPlan) -> list[HeldChanges]:
    """The changes that a plan holds, if there are any."""
    return [HeldChanges(len(plan.held), digest_changes(plan.held))] if plan.held else []


async def confirm_held(settings: Settings, digest: str) -> list[PowerAction]:
    """Confirm the changes that are held now; returns those that it confirmed: none if they are not the digest's.

    A change whose machine got another desired state meanwhile is left out. Raises SourceLost or StoreUnavailable.
    """
    held = (await preview_plan(settings)).held
    if digest_changes(held) != digest:
        return []
    confirmed = await confirm_changes(settings.store.dsn, held)
    return [action for action in held if action.machine_id in confirmed]


async def preview_plan(settings: Settings) -> VmPlan:
    """Plan what a guestd that starts now would do; raises SourceLost or StoreUnavailable."""
    hypervisor = Hypervisor(settings.libvirt.uri, VmMetrics())
    async with hypervisor.connect():
        return await preview_vm_plan(
            hypervisor,
            dsn=settings.store.dsn,
            host_name=get_host_name(settings.libvirt),
            policy=build_policy(settings.libvirt),
        )
