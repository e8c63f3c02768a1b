"""A bug in writing that one frame triggers costs that frame alone; one that hits every frame costs none.

A subscriber of the writer changes what was prepared, so that writing it raises.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from structlog.testing import capture_logs
from tools.harness.waiting import eventually

from guestd.core.supervision import Supervisor
from guestd.core.tasks import Backoff
from guestd.ingest.mqtt_gate import MachineMessage
from guestd.ingest.prefetch import OnPrepared
from guestd.ingest.writer import Writer
from guestd.rows.batch import Limits, Prepared
from guestd.rows.model import Rows
from guestd.spool.queue import Spool
from support.daemon import add_machine, execute, metrics_line, rows
from support.faults import sample_line
from support.gate import MACHINE, gate_on, mqtt_gate
from support.proxy import Proxy
from support.spooled import EVENT, Tally, drain, entry, line, spooled

LIMITS = Limits(100, 1_000_000, 0.01)
FAULTY_CPU = 99.5
FAULTY = line(FAULTY_CPU)


class Raises:
    """A value that cannot be hashed, as `Store` does with inventories."""

    def __init__(self, exc: Exception) -> None:
        self._exc = exc

    def __hash__(self) -> int:
        raise self._exc


def make_faulty(rows: Rows, exc: Exception) -> None:
    service: Any = Raises(exc)
    rows.services = [service]


def is_faulty(frame: Prepared) -> bool:
    return b"99.5" in frame.payload


def faulty_with(change: Callable[[Rows], None]) -> OnPrepared:
    """A subscriber that changes the rows of the frames with FAULTY_CPU."""

    def on_prepared(batch: Sequence[Prepared]) -> None:
        for frame in batch:
            if is_faulty(frame) and isinstance(frame.content, Rows):
                change(frame.content)

    return on_prepared


unhashable = faulty_with(lambda content: make_faulty(content, TypeError("a bug")))


async def write(spool: Spool, dsn: str, *on_prepared: OnPrepared, limits: Limits = LIMITS) -> tuple[Tally, int]:
    """Run a supervised writer as guestd does until the spool is empty; also how often its task failed."""
    tally, failures = Tally(), 0

    def count_failure(_: str) -> None:
        nonlocal failures
        failures += 1

    supervisor = Supervisor(count_failure=count_failure, show_failing=lambda *_: None)
    writer = tally.writer(spool, dsn, limits, *on_prepared)
    spool.seal()
    backoff = Backoff(first_seconds=0.01, cap_seconds=0.1)
    async with asyncio.timeout(60):
        await supervisor.run("writer", writer.run, backoff=backoff, may_return=lambda: spool.has_ended)
    assert spool.frames == 0
    return tally, failures


def stored_cpus(dsn: str) -> list[float]:
    return [cpu for (cpu,) in rows(dsn, 'SELECT "cpuUsagePercent" FROM "SystemMetrics" ORDER BY "receivedAt"')]


def quarantined(dsn: str) -> list[tuple[str, str, bytes]]:
    return rows(dsn, 'SELECT "reason", "detail", "payload" FROM "QuarantinedFrame" ORDER BY "seq"')


def other_lines(number: int) -> list[bytes]:
    return [line(place / 4) for place in range(number)]


@pytest.mark.asyncio
@pytest.mark.parametrize("places", [[0], [17], [39], [0, 1, 2, 20, 39]])
async def test_a_frame_whose_writing_raises_costs_only_itself(tmp_path: Path, dsn: str, places: list[int]) -> None:
    machine_id, other_id = add_machine(dsn), add_machine(dsn)
    payloads = other_lines(40)
    for place in places:
        payloads[place] = metrics_line(f"2020-01-01T00:00:{place:02}Z", cpu={"usage_percent": FAULTY_CPU}).strip()
    expected = [place / 4 for place in range(40) if place not in places]
    async with spooled(tmp_path, machine_id, payloads) as spool:
        await spool.append([entry(other_id, int(datetime.now(UTC).timestamp() * 1000), line(50))])
        with capture_logs() as logged:
            tally, failures = await write(spool, dsn, unhashable)
    assert sorted(stored_cpus(dsn)) == [*expected, 50]
    assert quarantined(dsn) == [("bug", "TypeError: a bug", payloads[place]) for place in places]
    assert tally.frames == {"stored": 41 - len(places), "stored_in_part": 0, "duplicate": 0}
    assert (tally.quarantined["bug"], tally.bugs, failures) == (len(places), len(places), 0)
    assert [each["exc_info"] for each in logged if each["event"].startswith("batch could not be written")]
    assert len(tally.prepared) == 41


@pytest.mark.asyncio
async def test_a_faulty_frame_alone_in_the_spool_does_not_wait_for_others(tmp_path: Path, dsn: str) -> None:
    async with spooled(tmp_path, add_machine(dsn), [FAULTY]) as spool:
        await write(spool, dsn, unhashable)
    assert [reason for reason, _, _ in quarantined(dsn)] == ["bug"]


@pytest.mark.asyncio
async def test_a_frame_whose_time_cannot_be_compared_costs_only_itself(tmp_path: Path, dsn: str) -> None:
    def forget_time(content: Rows) -> None:
        timestamp: Any = None
        content.shared = content.shared._replace(timestamp=timestamp)

    async with spooled(tmp_path, add_machine(dsn), [line(1), FAULTY, line(2), EVENT]) as spool:
        tally, _ = await write(spool, dsn, faulty_with(forget_time))
    assert stored_cpus(dsn) == [1, 2]
    assert [(reason, payload) for reason, _, payload in quarantined(dsn)] == [("bug", FAULTY)]
    assert tally.bugs == 1


@pytest.mark.asyncio
async def test_what_fails_fewer_than_three_times_costs_no_frame(tmp_path: Path, dsn: str) -> None:
    class FailsTwice(list[Any]):
        failures = 0

        def __bool__(self) -> bool:
            return True

        def __iter__(self) -> Iterator[Any]:
            self.failures += 1
            if self.failures <= 2:
                raise LookupError("for a while")
            return iter(())

    services = FailsTwice()

    def fail_twice(content: Rows) -> None:
        content.services = services

    async with spooled(tmp_path, add_machine(dsn), [line(1), FAULTY, line(2)]) as spool:
        tally, _ = await write(spool, dsn, faulty_with(fail_twice))
    assert services.failures == 3
    assert stored_cpus(dsn) == [1, FAULTY_CPU, 2]
    assert tally.quarantined == {}


def with_text_payload(batch: Sequence[Prepared]) -> None:
    """Neither its rows nor its payload can be written."""
    assert isinstance(batch, list)
    unhashable(batch)
    text: Any = "text"
    batch[:] = [replace(frame, payload=text) if is_faulty(frame) else frame for frame in batch]


def with_text_time(batch: Sequence[Prepared]) -> None:
    """Its rows cannot be written, nor can another sample in its place."""
    assert isinstance(batch, list)
    text: Any = "2020-01-01"
    batch[:] = [replace(frame, received_at=text) if is_faulty(frame) else frame for frame in batch]


def out_of_memory(batch: Sequence[Prepared]) -> None:
    faulty_with(lambda content: make_faulty(content, MemoryError()))(batch)


@pytest.mark.asyncio
@pytest.mark.parametrize("change", [with_text_payload, with_text_time, out_of_memory])
async def test_what_is_not_the_fault_of_a_frame_quarantines_none_and_is_tried_for_ever(
    tmp_path: Path, dsn: str, change: OnPrepared
) -> None:
    machine_id = add_machine(dsn)
    async with spooled(tmp_path, machine_id, [line(1), FAULTY, line(2)]) as spool:
        writer = Tally().writer(spool, dsn, LIMITS, change)
        for _ in range(3):
            async with asyncio.timeout(30):
                with pytest.raises((TypeError, AttributeError, MemoryError)):
                    await writer.run()
        assert quarantined(dsn) == []
        # What a corrected guestd finds.
        await write(spool, dsn)
    assert stored_cpus(dsn) == [1, FAULTY_CPU, 2]
    assert quarantined(dsn) == []


@pytest.mark.asyncio
async def test_answers_to_commit_that_are_lost_while_a_frame_is_sought_double_nothing(tmp_path: Path, dsn: str) -> None:
    machine_id, commits = add_machine(dsn), 0

    def is_last(chunk: bytes) -> bool:
        nonlocal commits
        if b"COMMIT\0" not in chunk:
            return False
        commits += 1
        return commits % 4 == 1

    payloads = [*other_lines(20), FAULTY, *other_lines(20)[10:]]
    port = int(str(conninfo_to_dict(dsn).get("port") or 5432))
    with Proxy(port, lambda: 2**62, is_last) as proxy:
        through = make_conninfo(dsn, host="127.0.0.1", port=proxy.port)
        async with spooled(tmp_path, machine_id, payloads) as spool:
            tally, _ = await write(spool, through, unhashable, limits=Limits(8, 1_000_000, 0.01))
        assert proxy.cuts >= 3
    assert sorted(stored_cpus(dsn)) == sorted([place / 4 for place in [*range(20), *range(10, 20)]])
    assert [(reason, payload) for reason, _, payload in quarantined(dsn)] == [("bug", FAULTY)]
    assert len(tally.prepared) == len(payloads)


@pytest.mark.asyncio
async def test_an_exception_behind_a_commit_neither_doubles_nor_quarantines_a_frame(tmp_path: Path, dsn: str) -> None:
    async with spooled(tmp_path, add_machine(dsn), other_lines(40)) as spool:

        def broken(_: object) -> None:
            raise LookupError("behind the commit")

        limits, metrics = Limits(8, 1_000_000, 0.01), Tally().telemetry.writer
        writer = Writer(spool, dsn=dsn, limits=limits, metrics=metrics, on_stored=[broken])
        spool.seal()
        async with asyncio.timeout(60):
            await writer.run()
    assert stored_cpus(dsn) == [place / 4 for place in range(40)]
    assert quarantined(dsn) == []


@pytest.mark.asyncio
async def test_a_batch_whose_times_could_not_be_compared_is_not_prepared_again(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    async with spooled(tmp_path, machine_id, [line(1), line(2)]) as spool:
        with psycopg.connect(dsn) as busy:
            busy.execute('LOCK TABLE "SystemMetrics" IN ACCESS EXCLUSIVE MODE')
            tally = Tally()
            writing = asyncio.create_task(tally.writer(spool, dsn, LIMITS).run())
            await asyncio.to_thread(eventually, lambda: tally.prepared, "they are prepared")
            execute(
                dsn,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'guestd' AND datname = current_database()",
            )
            await asyncio.to_thread(eventually, lambda: tally.store_lost, "the connection is lost")
        spool.seal()
        async with asyncio.timeout(60):
            await writing
    assert len(tally.prepared) == 2
    assert stored_cpus(dsn) == [1, 2]


@pytest.mark.asyncio
async def test_the_plain_sample_is_written_to_every_table_and_leaves_nothing(tmp_path: Path, dsn: str) -> None:
    """It would otherwise tell nothing of a table, or of a machine what it never sent."""
    add_machine(dsn)
    async with spooled(tmp_path, add_machine(dsn), [FAULTY]) as spool:
        await write(spool, dsn, unhashable)
    for table in ("SystemMetrics", "ProcessSnapshot", "PortUsage", "ApplicationUsage", "WindowsService", "GuestEvent"):
        assert rows(dsn, f'SELECT count(*) FROM "{table}"') == [(0,)]


@pytest.mark.asyncio
async def test_a_message_with_which_the_gate_fails_is_stored_once_however_often_the_broker_delivers_it(
    tmp_path: Path, dsn: str
) -> None:
    add_machine(dsn, MACHINE)
    boot_id = uuid4()

    def broken(missing: int) -> None:
        raise LookupError(f"{missing} are missing")

    async with gate_on(tmp_path) as rig:
        gate = mqtt_gate(rig, count_missing=broken)
        for seq in (1, 5, 5, 2):
            assert await gate.accept([MachineMessage(MACHINE, sample_line(seq, boot_id).strip())]) == 1
        tally = await drain(rig.spool, dsn)
    assert (tally.frames["stored"], tally.frames["duplicate"]) == (3, 1)
    assert rows(dsn, 'SELECT count(*) FROM "SystemMetrics"') == [(3,)]
