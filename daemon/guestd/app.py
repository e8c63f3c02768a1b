"""The only page that knows everyone: opens resources, wires the pipeline, names the tasks.

    sources/virtio -> intake -> spool -> writer -> store
                        |                  |
                        +---- telemetry ---+

Starting: spool, writer, telemetry, sources, READY. Stopping: sources end, the writer drains within the
grace, the rest stays in the spool for the next start.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import secrets
import signal
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog

from guestd import __version__, metering
from guestd.core.config import CommandLines, Settings, get_host_name
from guestd.core.errors import ConfigError, StoreUnavailable
from guestd.core.machines import MachineRegistry
from guestd.core.secrets import read_secret
from guestd.core.tasks import Backoff, run_until, run_with_retry
from guestd.filters.service import FilterService
from guestd.ingest import mqtt, virtio
from guestd.ingest.discovery import ChannelDiscovery, DirectoryDiscovery, LibvirtDiscovery
from guestd.ingest.gate import Intake
from guestd.ingest.mqtt_gate import Publications
from guestd.ingest.rate_limit import Budget, Rate, Rates
from guestd.ingest.writer import Writer
from guestd.mqtt.options import login
from guestd.rows.batch import Limits
from guestd.service import http_auth, systemd
from guestd.service import watchdog as supervision
from guestd.service.http import serve_pages
from guestd.service.watchdog import ConfigReloader, Watchdog
from guestd.spool.queue import Spool, open_spool
from guestd.store.batch_writer import watch_machines
from guestd.store.connection import check_dsn, server_name
from guestd.store.maintenance import StoreMaintenance
from guestd.store.rollups import RollupRefresher
from guestd.telemetry.guests import LatestSamples
from guestd.telemetry.registry import Telemetry
from guestd.vms.service import VmService
from guestd.wire import signing

log = structlog.get_logger()

# Without a store only the spool's last commit is worth waiting for.
NO_STORE_GRACE_SECONDS = 1.0


async def run(settings: Settings, reread: Callable[[], Settings]) -> None:
    """guestd, from start to SIGTERM. `reread` reads the settings again; ConfigError: the operator must change them."""
    check_dsn(settings.store.dsn)
    _allow_many_channels()
    stop = asyncio.Event()
    _stop_on_signals(stop)
    protection = http_auth.read_web_config(settings.telemetry.web_config_file)
    telemetry = Telemetry()
    async with AsyncExitStack() as resources:
        spool = open_spool(
            Path(settings.spool.directory), max_bytes=settings.spool.max_bytes, share=settings.spool.machine_share
        )
        resources.callback(spool.close)
        parts = _wired(settings, reread, telemetry, spool)
        port = await resources.enter_async_context(
            serve_pages(
                telemetry,
                host=settings.telemetry.listen_host,
                port=settings.telemetry.listen_port,
                problems=parts.problems,
                protection=protection,
            )
        )
        _tune_collector()
        log.info(
            "guestd is up", version=__version__, store=server_name(settings.store.dsn), spool_frames=spool.frames,
            channels=_sought_in(settings), metrics=f"http://{settings.telemetry.listen_host}:{port}/metrics",
        )  # fmt: skip
        systemd.notify("READY=1")
        await run_until(
            stop,
            inputs=parts.inputs(),
            drains={"spool": spool.run(), "writer": parts.consumer.run()},
            background=parts.background(telemetry),
            seal=lambda: _seal(spool),
            grace_seconds=parts.grace_seconds,
        )
        log.info("guestd has stopped", spool_frames=spool.frames)


@dataclass(frozen=True)
class _Parts:
    """What runs until guestd is stopped."""

    spool: Spool
    gate: Intake
    consumer: Writer
    reload: ConfigReloader
    tidying: StoreMaintenance
    watchdog: Watchdog
    machine_registry: MachineRegistry
    channels: virtio.Virtio
    from_broker: mqtt.Mqtt | None
    vm_service: VmService | None
    filter_service: FilterService | None

    def inputs(self) -> dict[str, Coroutine[Any, Any, None]]:
        return {"virtio": self.channels.run()} | ({"mqtt": self.from_broker.run()} if self.from_broker else {})

    def background(self, telemetry: Telemetry) -> dict[str, Coroutine[Any, Any, None]]:
        settings = self.reload.settings
        return {
            "tidying": self.tidying.run(self._forget_the_deleted),
            "machine-registry": _machine_registry(settings.store.dsn, self.machine_registry),
            "upkeep": _upkeep(settings, telemetry).run(),
            "status": supervision.report_status(self._standing),
            "watchdog": self.watchdog.run(),
            "reload": self.reload.run(),
        } | self._reconcilers()

    def _reconcilers(self) -> dict[str, Coroutine[Any, Any, None]]:
        if self.vm_service is None or self.filter_service is None:
            return {}
        return self.vm_service.get_tasks() | self.filter_service.get_tasks(self.vm_service.hypervisor)

    async def _forget_the_deleted(self) -> None:
        self.consumer.forget(self.machine_registry.knows)
        await self.gate.forget(self.machine_registry.knows)

    def grace_seconds(self) -> float:
        return NO_STORE_GRACE_SECONDS if self.consumer.store_error else self.reload.settings.stop_grace_seconds

    def problems(self) -> list[str]:
        """What is wrong, a sentence each, for /readyz and STATUS."""
        spool = self.spool
        problems = [] if self.vm_service is None else self.vm_service.list_problems()
        if self.watchdog.problem is not None:
            problems.append(f"guestd: {self.watchdog.problem}")
        if self.from_broker is not None and self.from_broker.problem is not None:
            problems.append(f"broker: {self.from_broker.problem}")
        if self.consumer.problem is not None:
            problems.append(f"store: {self.consumer.problem}")
        if spool.error is not None:
            problems.append(f"spool: it cannot be written: {spool.error}")
        if spool.bytes > 0.95 * spool.max_bytes:
            used = f"{spool.bytes} of {spool.max_bytes} bytes are used"
            problems.append(f"spool: {used}; when it is full nothing is read")
        return problems

    def _standing(self) -> str:
        wrong = "; ".join(self.problems())
        return f"{self.channels.connected} channels, {self.spool.frames} frames in the spool; {wrong or 'well'}"


def _wired(settings: Settings, reread: Callable[[], Settings], telemetry: Telemetry, spool: Spool) -> _Parts:
    """Each part with those that it works with. Raises ConfigError."""
    metering.show_spool(telemetry, spool)
    samples = LatestSamples()
    machine_registry = MachineRegistry()
    telemetry.machines.set_function(lambda: machine_registry.count)
    telemetry.vms.add_source(lambda: samples.families(machine_registry.get_domain_names(), datetime.now(UTC)))
    budget = Budget(_rates(settings))
    gate = Intake(spool, metering.of_intake(telemetry), _now_ms, budget)
    tidying = StoreMaintenance(lambda: reload.settings, telemetry)
    consumer = Writer(
        spool,
        dsn=settings.store.dsn,
        limits=_batch_limits(settings),
        counters=metering.of_writer(telemetry, gate, samples, tidying),
        command_lines_of=lambda machine_id: _command_lines(machine_registry, reload.settings, machine_id),
    )
    reload = ConfigReloader(settings, reread=reread, applied=lambda now: _apply(now, consumer, budget))
    vm_service = VmService(settings, telemetry) if settings.libvirt.uri else None
    filter_service = FilterService(settings, telemetry) if settings.libvirt.uri else None
    if vm_service is not None and filter_service is not None:
        vms, filters = vm_service, filter_service
        telemetry.vms.calls_stuck.set_function(lambda: vms.stuck + filters.stuck)
    return _Parts(
        spool=spool,
        gate=gate,
        consumer=consumer,
        reload=reload,
        tidying=tidying,
        watchdog=Watchdog(spool, consumer),
        machine_registry=machine_registry,
        channels=_from_channels(
            settings,
            telemetry,
            place=_place(settings, machine_registry, vm_service),
            gate=gate,
            machine_registry=machine_registry,
        ),
        from_broker=_from_broker(settings, telemetry, spool=spool, gate=gate, machine_registry=machine_registry),
        vm_service=vm_service,
        filter_service=filter_service,
    )


def _apply(settings: Settings, consumer: Writer, budget: Budget) -> None:
    """Put changed settings in force; the others are asked for when they are needed (`guestd.service.reload`)."""
    consumer.limits = _batch_limits(settings)
    budget.change(_rates(settings))


def _batch_limits(settings: Settings) -> Limits:
    return Limits(settings.store.batch_frames, settings.store.batch_bytes, settings.store.flush_seconds)


def _from_channels(
    settings: Settings,
    telemetry: Telemetry,
    *,
    place: ChannelDiscovery,
    gate: Intake,
    machine_registry: MachineRegistry,
) -> virtio.Virtio:
    """The source that reads what QEMU serves. Raises ConfigError for a secret that cannot be read."""
    return virtio.Virtio(
        place,
        intake=gate,
        machine_registry=machine_registry,
        gauges=metering.of_channels(telemetry),
        max_frame_bytes=settings.virtio.max_frame_bytes,
        wrapped=_wrapping(settings.virtio.master_secret_file),
    )


def _place(settings: Settings, machine_registry: MachineRegistry, vm_service: VmService | None) -> ChannelDiscovery:
    """Where channels are looked for."""
    if settings.virtio.discovery == "directory":
        return DirectoryDiscovery(Path(settings.virtio.directory), machine_registry)
    if vm_service is None:
        raise ConfigError('virtio.discovery is "libvirt", and libvirt.uri is empty: set it, say to qemu:///system')
    driver = vm_service.hypervisor
    return LibvirtDiscovery(
        lambda: None if driver.observed_at is None else driver.domains,
        driver.subscribe(),
        machine_registry=machine_registry,
        channel_names=settings.libvirt.channel_names,
        cache_file=Path(settings.spool.directory, "channels.json"),
    )


def _upkeep(settings: Settings, telemetry: Telemetry) -> RollupRefresher:
    """What is derived from stored samples; where there is no libvirt too."""
    chosen, shown = settings.libvirt, telemetry.vms
    upkeep = RollupRefresher(
        settings.store.dsn, host_name=get_host_name(chosen), uri=chosen.uri, silent=shown.machines_without_data.set
    )
    shown.add_source(upkeep.families)
    return upkeep


def _sought_in(settings: Settings) -> str:
    return settings.virtio.directory if settings.virtio.discovery == "directory" else settings.libvirt.uri


def _wrapping(master_secret_file: str) -> Callable[[UUID, bytes], bytes]:
    """What a line to a machine looks like on its channel: as it is, or signed with a secret of the machine's own."""
    if not master_secret_file:
        return lambda _, line: line
    master = read_secret(Path(master_secret_file), "virtio.master_secret_file")

    def signed(machine_id: UUID, line: bytes) -> bytes:
        secret = signing.machine_secret(master, machine_id)
        return signing.signed(secret, line, ts_ms=time.time_ns() // 1_000_000, nonce=secrets.token_hex(16))

    return signed


def _allow_many_channels() -> None:
    """A descriptor a channel: the usual soft limit of 1,024 is for programs that still use select."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _stop_on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):

        def stopping(number: signal.Signals = number) -> None:
            # A second signal ends the wait for the drain.
            loop.remove_signal_handler(number)
            stop.set()

        loop.add_signal_handler(number, stopping)


def _seal(spool: Spool) -> None:
    systemd.notify("STOPPING=1")
    log.info("stopping: draining the spool", spool_frames=spool.frames)
    spool.seal()


def _tune_collector() -> None:
    """Rows are tuples in their millions and hold no cycles: the default thresholds cost a quarter of the throughput."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


async def _command_lines(machine_registry: MachineRegistry, settings: Settings, machine_id: UUID) -> CommandLines:
    # What is set for a machine must be known before a row of it is made.
    await machine_registry.loaded.wait()
    return machine_registry.get_command_lines(machine_id) or settings.privacy.command_lines


async def _machine_registry(dsn: str, machine_registry: MachineRegistry) -> None:
    def lost(exc: Exception, _: float) -> None:
        machine_registry.attempted.set()
        log.debug("the machine registry of machines is not being updated", error=str(exc))

    await run_with_retry(
        lambda: watch_machines(dsn, machine_registry),
        expected=StoreUnavailable,
        backoff=Backoff(cap_seconds=5),
        on_failure=lost,
    )


def _from_broker(
    settings: Settings, telemetry: Telemetry, *, spool: Spool, gate: Intake, machine_registry: MachineRegistry
) -> mqtt.Mqtt | None:
    """The source that the settings name a broker for. Raises ConfigError for files that cannot be used."""
    chosen = settings.mqtt
    if not chosen.host:
        return None
    publications = Publications(
        spool,
        gate,
        counters=metering.of_intake(telemetry),
        # In a shared group what is not here is with the others.
        missing=telemetry.broker_missing.inc if not chosen.shared_group else lambda _: None,
        now_ms=_now_ms,
        max_frame_bytes=chosen.max_frame_bytes,
    )
    topics = mqtt.Topics(chosen.prefix, chosen.shared_group)
    return mqtt.Mqtt(
        login(chosen),
        topics,
        gate=publications,
        machine_registry=machine_registry,
        counters=metering.of_broker(telemetry),
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _rates(settings: Settings) -> Rates:
    limits = settings.limits
    return Rates(
        size_bytes=Rate(limits.bytes_per_second, limits.burst_bytes),
        frames=Rate(limits.frames_per_second, limits.burst_frames),
        rows=Rate(limits.rows_per_second, limits.burst_rows),
    )
