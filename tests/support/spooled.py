"""A spool with frames, and a writer that stores them: what tests of the writer share."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from guestd.ingest.prefetch import OnPrepared
from guestd.ingest.writer import Writer
from guestd.rows.batch import Limits, Prepared
from guestd.rows.model import Rows
from guestd.spool.file import Entry, SenderState
from guestd.spool.queue import Spool, open_spool
from guestd.telemetry.registry import Telemetry
from guestd.wire.line import read_line
from support.daemon import metrics_line, rows


class Tally:
    """What a writer counts in the registry, and what it prepares."""

    def __init__(self) -> None:
        self.telemetry = Telemetry()
        self.prepared: list[Prepared] = []

    def writer(self, spool: Spool, dsn: str, limits: Limits, *on_prepared: OnPrepared) -> Writer:
        metrics, subscribers = self.telemetry.writer, [*on_prepared, self.prepared.extend]
        return Writer(spool, dsn=dsn, limits=limits, metrics=metrics, on_prepared=subscribers)

    def _by_label(self, metric: str) -> Counter[str]:
        samples = [each for family in self.telemetry.registry.collect() for each in family.samples]
        return Counter({",".join(each.labels.values()): int(each.value) for each in samples if each.name == metric})

    @property
    def frames(self) -> Counter[str]:
        counts = self._by_label("guestd_frames_done_total")
        counts.pop("quarantined", None)
        if conflicts := self._by_label("guestd_key_conflicts_total").total():
            counts["key_taken"] = conflicts
        return counts

    @property
    def quarantined(self) -> Counter[str]:
        return self._by_label("guestd_frames_quarantined_total")

    @property
    def stored_rows(self) -> Counter[str]:
        return self._by_label("guestd_rows_written_total")

    @property
    def left_out(self) -> int:
        return self._by_label("guestd_values_adjusted_total")["inventory_full"]

    @property
    def bugs(self) -> int:
        return self._by_label("guestd_bugs_total").total()

    @property
    def store_lost(self) -> int:
        return self._by_label("guestd_store_lost_total").total()

    @property
    def rows(self) -> Counter[UUID]:
        made: Counter[UUID] = Counter()
        for frame in self.prepared:
            if isinstance(frame.content, Rows):
                made[frame.machine_id] += frame.content.count
        return made


def entry(machine_id: UUID, received_at_ms: int, payload: bytes) -> Entry:
    return Entry(machine_id, read_line(payload), SenderState(received_at_ms, None, None))


@asynccontextmanager
async def spooled(directory: Path, machine_id: UUID, payloads: Sequence[bytes]) -> AsyncIterator[Spool]:
    """A spool that holds these frames and takes no more after the block."""
    spool = open_spool(directory, max_bytes=2**30, share=1, metrics=Telemetry().spool)
    running = asyncio.create_task(spool.run())
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    try:
        if payloads:
            await spool.append([entry(machine_id, now_ms + place, line) for place, line in enumerate(payloads)])
        yield spool
    finally:
        spool.seal()
        await running
        spool.close()


async def drain(spool: Spool, dsn: str) -> Tally:
    """Run a writer until the spool is empty."""
    tally = Tally()
    consumer = tally.writer(spool, dsn, Limits(100, 1_000_000, 0.01))
    spool.seal()
    await asyncio.wait_for(consumer.run(), 90)
    assert spool.frames == 0
    return tally


def samples(dsn: str) -> list[tuple[datetime, float]]:
    return [(at, cpu) for at, cpu in rows(dsn, 'SELECT "timestamp", "cpuUsagePercent" FROM "SystemMetrics" ORDER BY 1')]


def line(cpu: float, timestamp: str | None = None) -> bytes:
    return metrics_line(timestamp or "2020-01-01T00:00:00Z", cpu={"usage_percent": cpu, "cores_usage": []}).strip()


EVENT = b'{"type":"error_report","error_type":"e","severity":"s"}'
