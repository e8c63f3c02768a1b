"""The only module that knows all parts: opens resources, wires the parts, names the tasks.

    VirtioSource -> Gate ----+
                             +-> Spool -> Writer (Prefetch) -> store
    MqttSource -> MqttGate --+             |
                                           +-> on_prepared: rate limit, latest samples; on_stored: maintenance

Start: spool, pages, READY, then all tasks at once. Every task but the spool's is supervised: one that fails is started
again. Only a spool that is lost, or a database that this guestd cannot work with, ends guestd. Stop: the sources end,
the writer drains the spool within the grace period, the rest stays in the spool for the next start.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import secrets
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import structlog

from guestd import __version__
from guestd.core.address import format_url
from guestd.core.config import CommandLines, Settings, get_host_name
from guestd.core.errors import ConfigError, SpoolLost
from guestd.core.machines import MachineRegistry
from guestd.core.secrets import read_secret
from guestd.core.supervision import Supervisor
from guestd.core.tasks import Backoff, TaskCoroutine, TaskFunction, UnexpectedExit, run_until
from guestd.filters.service import FilterService
from guestd.ingest.discovery import ChannelDiscovery, DirectoryDiscovery, LibvirtDiscovery
from guestd.ingest.gate import Gate
from guestd.ingest.mqtt import MqttSource
from guestd.ingest.mqtt_gate import MqttGate
from guestd.ingest.mqtt_session import BrokerSession
from guestd.ingest.rate_limit import Rate, RateLimit, Rates
from guestd.ingest.virtio import VirtioSource
from guestd.ingest.writer import Writer
from guestd.mqtt.options import read_options
from guestd.mqtt.session_file import SessionFile, open_session_file
from guestd.mqtt.topics import Topics
from guestd.rows.batch import Limits
from guestd.service import http_auth, systemd
from guestd.service.exposures import list_exposures
from guestd.service.http import serve_pages
from guestd.service.reload import ConfigReloader
from guestd.service.watchdog import Watchdog
from guestd.spool.file import FILE as SPOOL_FILE
from guestd.spool.queue import Spool, open_spool
from guestd.store.connection import check_dsn, server_name
from guestd.store.machines import watch_machines
from guestd.store.maintenance import StoreMaintenance
from guestd.store.rollups import RollupRefresher
from guestd.telemetry.guests import LatestSamples
from guestd.telemetry.registry import Telemetry
from guestd.vms.service import VmService
from guestd.wire import signing

log = structlog.get_logger()
T = TypeVar("T")

# Threads for calls that wait for a disk or a peer: more than guestd has places that make one, each of which makes one
# at a time (tests/meta/test_blocking_calls.py). So no such call waits for another. The pages have threads of their own.
BLOCKING_CALLS = 32
# Machines are rarely deleted, and what is remembered of one is small.
FORGET_SECONDS = 600.0
# Without a store only the spool's last commit is worth waiting for.
NO_STORE_GRACE_SECONDS = 1.0


async def run(settings: Settings, reread: Callable[[], Settings]) -> None:
    """Run guestd until SIGTERM. `reread` reads the settings again. ConfigError: the operator must change them."""
    check_dsn(settings.store.dsn)
    _allow_many_channels()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(BLOCKING_CALLS, "blocking-call"))
    stop = asyncio.Event()
    _stop_on_signals(stop)
    auth = http_auth.read_web_config(settings.telemetry.web_config_file)
    for exposure in list_exposures(settings):
        log.warning(
            "connection is not protected, others on the network may read it or answer it",
            risk=exposure.text,
            fix=exposure.fix,
        )
    telemetry = Telemetry()
    supervisor = Supervisor(count_failure=telemetry.tasks.count_failure, show_failing=telemetry.tasks.show_failing)
    _note_bugs_outside_of_tasks(supervisor)
    directory = Path(settings.spool.directory)
    is_upgrade = (directory / SPOOL_FILE).exists()
    async with AsyncExitStack() as resources:
        spool = open_spool(
            directory,
            max_bytes=settings.spool.max_bytes,
            share=settings.spool.machine_share,
            metrics=telemetry.spool,
        )
        resources.callback(spool.close)
        chosen = settings.mqtt
        session_file = open_session_file(directory, chosen.client_id, is_upgrade=is_upgrade) if chosen.host else None
        parts = _wire(settings, reread, telemetry, spool, supervisor, session_file)
        port = await resources.enter_async_context(
            serve_pages(
                telemetry,
                host=settings.telemetry.listen_host,
                port=settings.telemetry.listen_port,
                list_problems=parts.problems,
                auth=auth,
                supervisor=supervisor,
            )
        )
        _tune_garbage_collector()
        scheme, host = "http" if auth.tls is None else "https", settings.telemetry.listen_host or "0.0.0.0"  # noqa: S104
        log.info(
            "guestd started", version=__version__, store=server_name(settings.store.dsn), spool_frames=spool.frames,
            channels=_discovery_target(settings), metrics=format_url(scheme, host, port, "/metrics"),
        )  # fmt: skip
        systemd.notify("READY=1")
        await run_until(
            stop,
            inputs=parts.inputs(),
            drains=parts.drains(),
            background=parts.background(),
            seal=lambda: _seal(spool),
            grace_seconds=parts.grace_seconds,
        )
        log.info("guestd stopped, frames in the spool are stored after the next start", spool_frames=spool.frames)


@dataclass(frozen=True)
class _Parts:
    """The parts that run until guestd is stopped."""

    supervisor: Supervisor
    spool: Spool
    gate: Gate
    writer: Writer
    reloader: ConfigReloader
    maintenance: StoreMaintenance
    watchdog: Watchdog
    machine_registry: MachineRegistry
    virtio_source: VirtioSource
    mqtt_source: MqttSource | None
    vm_service: VmService | None
    filter_service: FilterService | None
    rollup_refresher: RollupRefresher

    def inputs(self) -> dict[str, TaskCoroutine]:
        mqtt = {"mqtt": self.mqtt_source.run} if self.mqtt_source else {}
        return self._supervise({"virtio": self.virtio_source.run} | mqtt)

    def drains(self) -> dict[str, TaskCoroutine]:
        writer = self.supervisor.run(
            "writer",
            self.writer.run,
            backoff=Backoff(cap_seconds=5),
            ends_with=(ConfigError, SpoolLost),
            may_return=lambda: self.spool.has_ended,
        )
        return {"spool": self.spool.run(), "writer": writer}

    def background(self) -> dict[str, TaskCoroutine]:
        return self._supervise(
            {
                "maintenance": self.maintenance.run,
                "deleted-machines": self._forget_deleted_machines,
                "machine-registry": lambda: watch_machines(self.reloader.settings.store.dsn, self.machine_registry),
                **self.rollup_refresher.get_tasks(),
                "status": lambda: systemd.report_status(self._describe_status),
                "watchdog": self.watchdog.run,
                "reload": self.reloader.run,
            }
            | self._reconcilers()
        )

    def _supervise(self, tasks: Mapping[str, TaskFunction]) -> dict[str, TaskCoroutine]:
        return {name: self.supervisor.run(name, task) for name, task in tasks.items()}

    def _reconcilers(self) -> dict[str, TaskFunction]:
        if self.vm_service is None or self.filter_service is None:
            return {}
        return self.vm_service.get_tasks() | self.filter_service.get_tasks(self.vm_service.hypervisor)

    async def _forget_deleted_machines(self) -> None:
        await self.machine_registry.loaded.wait()
        while True:
            self.writer.forget(self.machine_registry.knows)
            await self.gate.forget(self.machine_registry.knows)
            await asyncio.sleep(FORGET_SECONDS)

    def grace_seconds(self) -> float:
        return NO_STORE_GRACE_SECONDS if self.writer.store_error else self.reloader.settings.stop_grace_seconds

    def problems(self) -> list[str]:
        """What is wrong, a sentence each, for /readyz and systemd's status."""
        spool = self.spool
        problems = [
            *self.supervisor.list_problems(),
            *self._list_libvirt_problems(),
            *self.maintenance.problems,
            *self.rollup_refresher.problems,
        ]
        if self.watchdog.problem is not None:
            problems.append(f"guestd: {self.watchdog.problem}")
        if self.mqtt_source is not None and self.mqtt_source.problem is not None:
            problems.append(f"broker: {self.mqtt_source.problem}")
        if self.writer.problem is not None:
            problems.append(f"store: {self.writer.problem}")
        elif self.machine_registry.problem is not None:
            problems.append(f"store: machines cannot be read: {self.machine_registry.problem}")
        if spool.error is not None:
            problems.append(f"spool: it cannot be written: {spool.error}")
        if spool.bytes > 0.95 * spool.max_bytes:
            used = f"{spool.bytes} of {spool.max_bytes} bytes are used"
            problems.append(f"spool: {used}; guestd stops reading when it is full")
        return problems

    def _list_libvirt_problems(self) -> list[str]:
        if self.vm_service is None or self.filter_service is None:
            return []
        problems = self.vm_service.list_problems()
        # Without libvirt no filter can be applied: one problem, not two.
        return problems if self.vm_service.hypervisor.error else problems + self.filter_service.list_problems()

    def _describe_status(self) -> str:
        problems = "; ".join(self.problems())
        return f"{self.virtio_source.connected} channels, {self.spool.frames} frames in the spool; {problems or 'ok'}"


def _wire(
    settings: Settings,
    reread: Callable[[], Settings],
    telemetry: Telemetry,
    spool: Spool,
    supervisor: Supervisor,
    session_file: SessionFile | None,
) -> _Parts:
    """Create each part with those that it works with. Raises ConfigError."""

    def guard(callback: Callable[[T], None]) -> Callable[[T], None]:
        return supervisor.guard("callback", callback)

    machine_registry = MachineRegistry()
    telemetry.channels.machines.set_function(lambda: machine_registry.count)
    samples = LatestSamples()
    telemetry.add_source(lambda: samples.build_families(machine_registry.get_domain_names(), datetime.now(UTC)))
    gate = Gate(spool, telemetry.gate, _now_ms, rate_limit := RateLimit(_read_rates(settings)))
    reloader = ConfigReloader(settings, read_settings=reread, on_reload=lambda now: _apply(now, writer, rate_limit))
    maintenance = StoreMaintenance(lambda: reloader.settings, telemetry.maintenance)
    writer = Writer(
        spool,
        dsn=settings.store.dsn,
        limits=_read_batch_limits(settings),
        metrics=telemetry.writer,
        command_lines_of=lambda machine_id: _get_command_lines(machine_registry, reloader.settings, machine_id),
        on_prepared=(guard(gate.charge_batch), guard(samples.add)),
        on_stored=(guard(gate.charge_outcome), guard(maintenance.note_quarantined)),
    )
    vm_service = VmService(settings, telemetry) if settings.libvirt.uri else None
    filter_service = FilterService(settings, telemetry) if settings.libvirt.uri else None
    if vm_service is not None and filter_service is not None:
        vms, filters = vm_service, filter_service
        telemetry.vms.calls_stuck.set_function(lambda: vms.stuck + filters.stuck)
    return _Parts(
        supervisor=supervisor,
        spool=spool,
        gate=gate,
        writer=writer,
        reloader=reloader,
        maintenance=maintenance,
        watchdog=Watchdog(spool, writer, machine_registry),
        machine_registry=machine_registry,
        virtio_source=VirtioSource(
            _create_discovery(settings, machine_registry, vm_service),
            gate=gate,
            machine_registry=machine_registry,
            metrics=telemetry.channels,
            max_frame_bytes=settings.virtio.max_frame_bytes,
            max_partial_bytes=max(settings.virtio.partial_bytes, 2 * settings.virtio.max_frame_bytes),
            wrap=_create_wrapper(settings.virtio.master_secret_file),
            supervisor=supervisor,
        ),
        mqtt_source=_create_mqtt_source(
            settings, telemetry, session_file, gate=gate, machine_registry=machine_registry, spool=spool
        ),
        vm_service=vm_service,
        filter_service=filter_service,
        rollup_refresher=_create_rollup_refresher(settings, telemetry),
    )


def _apply(settings: Settings, writer: Writer, rate_limit: RateLimit) -> None:
    """Apply changed settings; the others are read where they are needed (`guestd.service.reload`)."""
    writer.set_limits(_read_batch_limits(settings))
    rate_limit.set_rates(_read_rates(settings))


def _read_batch_limits(settings: Settings) -> Limits:
    return Limits(settings.store.batch_frames, settings.store.batch_bytes, settings.store.flush_seconds)


def _read_rates(settings: Settings) -> Rates:
    limits = settings.limits
    return Rates(
        size_bytes=Rate(limits.bytes_per_second, limits.burst_bytes),
        frames=Rate(limits.frames_per_second, limits.burst_frames),
        rows=Rate(limits.rows_per_second, limits.burst_rows),
    )


def _create_discovery(
    settings: Settings, machine_registry: MachineRegistry, vm_service: VmService | None
) -> ChannelDiscovery:
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


def _discovery_target(settings: Settings) -> str:
    return settings.virtio.directory if settings.virtio.discovery == "directory" else settings.libvirt.uri


def _create_wrapper(master_secret_file: str) -> Callable[[UUID, bytes], bytes]:
    """How a line to a machine is written to its channel: as it is, or signed with the machine's own secret.

    Raises ConfigError for a secret that cannot be read.
    """
    if not master_secret_file:
        return lambda _, line: line
    master = read_secret(Path(master_secret_file), "virtio.master_secret_file")

    def sign(machine_id: UUID, line: bytes) -> bytes:
        secret = signing.machine_secret(master, machine_id)
        return signing.signed(secret, line, ts_ms=time.time_ns() // 1_000_000, nonce=secrets.token_hex(16))

    return sign


def _create_mqtt_source(
    settings: Settings,
    telemetry: Telemetry,
    session_file: SessionFile | None,
    *,
    spool: Spool,
    gate: Gate,
    machine_registry: MachineRegistry,
) -> MqttSource | None:
    """The source for the configured broker, if there is one. Raises ConfigError for files that cannot be used."""
    chosen = settings.mqtt
    if session_file is None:
        return None
    options = read_options(chosen)
    mqtt_gate = MqttGate(
        spool,
        gate,
        metrics=telemetry.gate,
        # In a shared group other daemons have the lines that are missing here.
        count_missing=telemetry.broker.missing.inc if not chosen.shared_group else lambda _: None,
        now_ms=_now_ms,
        max_frame_bytes=chosen.max_frame_bytes,
    )
    return MqttSource(
        options,
        Topics(chosen.prefix, chosen.shared_group),
        session=BrokerSession(options, session_file, telemetry.broker),
        gate=mqtt_gate,
        machine_registry=machine_registry,
        metrics=telemetry.broker,
        gate_metrics=telemetry.gate,
    )


def _create_rollup_refresher(settings: Settings, telemetry: Telemetry) -> RollupRefresher:
    libvirt = settings.libvirt
    refresher = RollupRefresher(
        settings.store.dsn,
        host_name=get_host_name(libvirt),
        uri=libvirt.uri,
        metrics=telemetry.vms,
        maintenance=telemetry.maintenance,
    )
    telemetry.add_source(refresher.build_families)
    return refresher


async def _get_command_lines(machine_registry: MachineRegistry, settings: Settings, machine_id: UUID) -> CommandLines:
    # A machine's own setting must be known before its first row is made.
    await machine_registry.loaded.wait()
    return machine_registry.get_command_lines(machine_id) or settings.privacy.command_lines


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _allow_many_channels() -> None:
    """Raise the limit of open files, one a channel; the usual 1,024 is for programs that still use select."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _stop_on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):

        def on_signal(number: signal.Signals = number) -> None:
            # A second signal ends the wait for the drain.
            loop.remove_signal_handler(number)
            stop.set()

        loop.add_signal_handler(number, on_signal)


def _note_bugs_outside_of_tasks(supervisor: Supervisor) -> None:
    """Log and count what callbacks of the event loop and threads raise: nobody waits for them."""

    def on_callback(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        exc = context.get("exception") or UnexpectedExit(context["message"])
        supervisor.note_bug("callback", exc, message=context["message"])

    def on_thread(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None:
            name = None if arguments.thread is None else arguments.thread.name
            supervisor.note_bug("thread", arguments.exc_value, thread=name)

    asyncio.get_running_loop().set_exception_handler(on_callback)
    threading.excepthook = on_thread


def _seal(spool: Spool) -> None:
    systemd.notify("STOPPING=1")
    log.info("stopping, draining the spool to the store", spool_frames=spool.frames)
    spool.seal()


def _tune_garbage_collector() -> None:
    """Rows are tuples in their millions and have no cycles: the default thresholds cost a quarter of the throughput."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
