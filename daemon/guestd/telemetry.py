"""Every metric of guestd in one table, and the pages that show them: /metrics, /healthz, /readyz.

No label value ever comes from a guest. Reasons are closed sets.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

from guestd.errors import ConfigError

COMMIT_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
LAG_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800)


class Telemetry:
    """The metrics, each in its place; own registry, so that two daemons in one test do not meet."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        # Intake
        self.frames_accepted = Counter("guestd_frames_accepted", "Frames fsynced in the spool.", registry=registry)
        self.bytes_accepted = Counter("guestd_accepted_bytes", "Bytes of those frames.", registry=registry)
        self.frames_refused = Counter(
            "guestd_frames_refused",
            "Lines not accepted: oversize, out_of_order (asked for again), fragment and cut_off (a connection's ends).",
            ["reason"],
            registry=registry,
        )
        self.frames_resent = Counter(
            "guestd_frames_duplicate",
            "Lines that an agent sent again and that were on disk already.",
            registry=registry,
        )
        self.agent_dropped = Counter(
            "guestd_agent_lines_dropped", "Lines that agents gave up before guestd could take them.", registry=registry
        )
        self.other_messages = Counter(
            "guestd_other_messages", "Guest messages that carry no metrics, by type.", ["type"], registry=registry
        )
        # Channels
        self.channels = Gauge("guestd_channels", "Channels that are to be read.", registry=registry)
        self.channels_connected = Gauge("guestd_channels_connected", "Channels that are connected.", registry=registry)
        self.channels_lost = Counter("guestd_channels_lost", "Connections that ended or failed.", registry=registry)
        self.unknown_machines = Gauge(
            "guestd_channels_unknown_machine",
            "Channels that are not read because the store has no such machine.",
            registry=registry,
        )
        # Spool
        self.spool_bytes = Gauge("guestd_spool_bytes", "Bytes that wait for the store.", registry=registry)
        self.spool_limit = Gauge("guestd_spool_limit_bytes", "At so many guestd stops reading.", registry=registry)
        self.spool_frames = Gauge("guestd_spool_frames", "Frames that wait for the store.", registry=registry)
        self.spool_commit = Histogram(
            "guestd_spool_commit_seconds",
            "Time of one group commit to the spool.",
            buckets=COMMIT_BUCKETS,
            registry=registry,
        )
        # Writer and store
        self.frames_done = Counter(
            "guestd_frames_done",
            "Accepted frames by what became of them: stored, stored_in_part, quarantined.",
            ["outcome"],
            registry=registry,
        )
        self.quarantined = Counter(
            "guestd_frames_quarantined", "Frames set aside, by reason.", ["reason"], registry=registry
        )
        self.rows_written = Counter("guestd_rows_written", "Rows committed, by table.", ["table"], registry=registry)
        self.adjusted = Counter(
            "guestd_values_adjusted",
            "What guests got wrong and guestd put right, by reason.",
            ["reason"],
            registry=registry,
        )
        self.skew = Histogram(
            "guestd_guest_clock_skew_seconds",
            "How far the clocks of guests are from this host's, either way.",
            buckets=(0.1, 1, 5, 30, 60, 300, 3600, 86400),
            registry=registry,
        )
        self.write_seconds = Histogram(
            "guestd_write_seconds", "Time of one batch's transaction.", buckets=COMMIT_BUCKETS, registry=registry
        )
        self.lag_seconds = Histogram(
            "guestd_receive_to_commit_seconds",
            "From the receipt of a batch's oldest frame to its commit.",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        self.store_lost = Counter("guestd_store_lost", "Failed or ended connections to the store.", registry=registry)
        self.bugs = Counter("guestd_bugs", "Frames that reached a bug of ours; each is in the log.", registry=registry)


Problems = Callable[[], list[str]]


@asynccontextmanager
async def served(telemetry: Telemetry, *, host: str, port: int, problems: Problems) -> AsyncIterator[int]:
    """Serve the pages while in the context; gives the port. `problems` says why guestd is not ready."""

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(telemetry.registry), headers={"Content-Type": content_type})

    async def alive(_: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def ready(_: web.Request) -> web.Response:
        found = problems()
        return web.Response(text="\n".join(found or ["ready"]) + "\n", status=503 if found else 200)

    application = web.Application()
    application.add_routes([web.get("/metrics", metrics), web.get("/healthz", alive), web.get("/readyz", ready)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as why:
            raise ConfigError(f"telemetry: cannot listen on {host} port {port}: {why.strerror}") from why
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
