"""A frame that reaches the store by two ways is stored once: by its number, or by its bytes; never by its time."""

import asyncio
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from tools.harness.waiting import eventually

from guestd.rows.batch import Limits
from guestd.store.batch_writer import open_store
from support.daemon import add_machine, execute, metrics_line, rows
from support.faults import count_samples, sample_line
from support.spooled import Tally, drain, entry, spooled

WAITS = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


async def through_a_spool_of_its_own(directory: Path, dsn: str, machine_id: UUID, payloads: list[bytes]) -> Tally:
    async with spooled(directory, machine_id, [payload.strip() for payload in payloads]) as spool:
        return await drain(spool, dsn)


def known_by(dsn: str) -> list[int | None]:
    return [digest for (digest,) in rows(dsn, 'SELECT "frameDigest" FROM "SystemMetrics" ORDER BY "timestamp"')]


@pytest.mark.asyncio
async def test_a_numbered_line_that_is_written_again_to_another_host_is_stored_once(tmp_path: Path, dsn: str) -> None:
    machine_id, boot_id = add_machine(dsn), uuid4()
    lines = [sample_line(number, boot_id) for number in (1, 2, 3, 4)]
    before = await through_a_spool_of_its_own(tmp_path / "one", dsn, machine_id, lines[:3])
    # The acknowledgement of 2 and 3 was lost in the migration; their time is not plausible, so each copy has another.
    after = await through_a_spool_of_its_own(tmp_path / "two", dsn, machine_id, lines[1:])
    assert (before.frames["stored"], before.frames["duplicate"]) == (3, 0)
    assert (after.frames["stored"], after.frames["duplicate"]) == (1, 2)
    tally = count_samples(dsn, {machine_id: [1, 2, 3, 4]})
    assert (tally.stored, tally.duplicated, tally.lost) == (4, 0, 0)


@pytest.mark.asyncio
async def test_the_same_number_of_another_run_or_another_machine_is_another_line(tmp_path: Path, dsn: str) -> None:
    machine_ids, boot_ids = [add_machine(dsn), add_machine(dsn)], [uuid4(), uuid4()]
    for place, machine_id in enumerate(machine_ids):
        lines = [sample_line(1, boot_id) for boot_id in boot_ids]
        tally = await through_a_spool_of_its_own(tmp_path / str(place), dsn, machine_id, lines)
        assert (tally.frames["stored"], tally.frames["duplicate"]) == (2, 0)


@pytest.mark.asyncio
async def test_a_line_without_a_number_that_is_redelivered_is_stored_once(tmp_path: Path, dsn: str) -> None:
    """As a broker does after a PUBACK that was lost: to the same spool or, in a shared subscription, to another."""
    machine_id = add_machine(dsn)
    at = datetime.now(UTC).isoformat()
    line, other = metrics_line(at), metrics_line(at, cpu={"usage_percent": 8.5})
    tally = await through_a_spool_of_its_own(tmp_path / "one", dsn, machine_id, [line, line, other])
    assert (tally.frames["stored"], tally.frames["duplicate"]) == (2, 1)
    tally = await through_a_spool_of_its_own(tmp_path / "two", dsn, machine_id, [other, line])
    assert (tally.frames["stored"], tally.frames["duplicate"]) == (0, 2)
    assert rows(dsn, 'SELECT count(*) FROM "SystemMetrics"') == [(2,)]


@pytest.mark.asyncio
async def test_equal_lines_that_say_no_time_are_different_samples_and_each_is_known_again_in_a_copy_of_the_spool(
    tmp_path: Path, dsn: str
) -> None:
    machine_id = add_machine(dsn)
    line = metrics_line().replace(b'"timestamp": "2025-10-01T12:00:30.125000000+00:00", ', b"")
    assert b"timestamp" not in line
    async with spooled(tmp_path / "spool", machine_id, [line.strip()] * 3):
        pass
    shutil.copytree(tmp_path / "spool", tmp_path / "copy")
    for place, name in enumerate(("spool", "copy")):
        async with spooled(tmp_path / name, machine_id, []) as spool:
            await spool.rename(0)
            tally = await drain(spool, dsn)
            assert (tally.frames["stored"], tally.frames["duplicate"]) == (3 - 3 * place, 3 * place)
    assert len(set(known_by(dsn))) == 3


@pytest.mark.asyncio
async def test_the_same_rubbish_sent_over_and_over_takes_one_row(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    for place in range(2):
        tally = await through_a_spool_of_its_own(tmp_path / str(place), dsn, machine_id, [b"rubbish"] * 50)
        assert (tally.quarantined.total(), tally.frames["duplicate"]) == (1 - place, 49 + place)
    assert rows(dsn, 'SELECT "reason" FROM "QuarantinedFrame"') == [("json",)]


@pytest.mark.asyncio
async def test_a_line_that_was_stored_in_part_is_known_again(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    line = sample_line(1, uuid4(), processes=[{"id": -1, "name": "bad", "memory_usage_kb": 1}])
    for place in range(2):
        tally = await through_a_spool_of_its_own(tmp_path / str(place), dsn, machine_id, [line])
        assert (tally.frames["stored_in_part"], tally.frames["duplicate"]) == (1 - place, place)


@pytest.mark.asyncio
async def test_an_older_copy_of_a_spool_under_a_new_name_stores_nothing_twice(tmp_path: Path, dsn: str) -> None:
    machine_id, boot_id = add_machine(dsn), uuid4()
    async with spooled(tmp_path / "spool", machine_id, [sample_line(n, boot_id).strip() for n in (1, 2)]) as spool:
        await spool.settle()
    shutil.copytree(tmp_path / "spool", tmp_path / "copy")
    async with spooled(tmp_path / "spool", machine_id, []) as spool:
        await drain(spool, dsn)
    with psycopg.connect(dsn) as connection:  # nobody remembers the spool
        connection.execute('DELETE FROM "IngestLedger"')
    async with spooled(tmp_path / "copy", machine_id, []) as spool:
        tally = await drain(spool, dsn)
    assert (tally.frames["stored"], tally.frames["duplicate"]) == (0, 2)


@pytest.mark.asyncio
async def test_a_line_is_known_again_after_days(tmp_path: Path, dsn: str) -> None:
    machine_id, boot_id = add_machine(dsn), uuid4()
    now = datetime.now(UTC)
    for place, days in enumerate((6, 0)):
        received_at_ms = int((now - timedelta(days=days)).timestamp() * 1000)
        async with spooled(tmp_path / str(place), machine_id, []) as spool:
            await spool.append([entry(machine_id, received_at_ms, sample_line(1, boot_id).strip())])
            tally = await drain(spool, dsn)
            assert (tally.frames["stored"], tally.frames["duplicate"]) == (1 - place, place)


@pytest.mark.asyncio
async def test_two_hosts_that_store_the_same_lines_at_the_same_moment_store_each_once(tmp_path: Path, dsn: str) -> None:
    """An outage of the store ends: both hosts of a machine that migrated meanwhile empty their spools at once."""
    machine_id, boot_id = add_machine(dsn), uuid4()
    at = datetime.now(UTC).isoformat()
    lines = [
        sample_line(number, boot_id).replace(b"2025-10-01T12:00:30.125000000+00:00", at.encode())
        for number in range(1, 201)
    ]
    async with (
        spooled(tmp_path / "one", machine_id, [line.strip() for line in lines]) as one,
        spooled(tmp_path / "two", machine_id, [line.strip() for line in lines]) as two,
    ):
        tallies = await asyncio.gather(drain(one, dsn), drain(two, dsn))
    assert sum(tally.frames["stored"] for tally in tallies) == 200
    assert sum(tally.frames["duplicate"] for tally in tallies) == 200
    tally = count_samples(dsn, {machine_id: range(1, 201)})
    assert (tally.stored, tally.duplicated, tally.lost) == (200, 0, 0)


@pytest.mark.asyncio
async def test_two_hosts_that_store_the_same_lines_of_a_guest_with_a_wrong_clock_at_the_same_moment_store_each_once(
    tmp_path: Path, dsn: str
) -> None:
    """Each host has placed them at its own time of receipt, so that no key of theirs is equal."""
    machine_id, boot_id = add_machine(dsn), uuid4()
    lines = [sample_line(number, boot_id).strip() for number in range(1, 21)]
    async with (
        spooled(tmp_path / "one", machine_id, lines) as one,
        spooled(tmp_path / "two", machine_id, []) as two,
        await psycopg.AsyncConnection.connect(dsn) as busy,
    ):
        later_ms = int((datetime.now(UTC) + timedelta(seconds=2)).timestamp() * 1000)
        await two.append([entry(machine_id, later_ms + place, line) for place, line in enumerate(lines)])
        # Both transactions have looked for stored frames before either has written its samples.
        await busy.execute('LOCK TABLE "SystemMetrics" IN SHARE MODE')
        draining = [asyncio.create_task(drain(spool, dsn)) for spool in (one, two)]
        waiting = """SELECT count(*) FROM pg_stat_activity
            WHERE application_name = 'guestd' AND wait_event_type = 'Lock' AND datname = current_database()"""
        await asyncio.to_thread(eventually, lambda: rows(dsn, waiting) == [(2,)], "both wait")
        await busy.rollback()
        tallies = await asyncio.wait_for(asyncio.gather(*draining), 60)
    assert sum(tally.frames["stored"] for tally in tallies) == 20
    assert sum(tally.frames["duplicate"] for tally in tallies) == 20
    tally = count_samples(dsn, {machine_id: range(1, 21)})
    assert (tally.stored, tally.duplicated, tally.lost) == (20, 0, 0)


def _now() -> datetime:
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


@pytest.mark.asyncio
async def test_a_row_whose_key_somebody_has_taken_costs_itself_and_is_named(tmp_path: Path, dsn: str) -> None:
    machine_id, at = add_machine(dsn), _now()
    with psycopg.connect(dsn) as connection:
        connection.execute(
            """INSERT INTO "ProcessSnapshot"
            ("machineId", "timestamp", "processId", "name", "cpuUsagePercent", "memoryUsageKB", "status")
            VALUES (%s, %s, 812, 'by hand', 0, 1, 'running')""",
            (machine_id, at),
        )
    lines = [
        metrics_line(at.isoformat()),
        *(metrics_line((at + timedelta(seconds=n)).isoformat()) for n in range(1, 9)),
    ]
    tally = await through_a_spool_of_its_own(tmp_path, dsn, machine_id, lines)
    assert tally.frames == {"stored": 8, "stored_in_part": 1, "duplicate": 0, "key_taken": 1}
    assert rows(dsn, 'SELECT count(*) FROM "SystemMetrics"') == rows(dsn, 'SELECT count(*) FROM "PortUsage"') == [(9,)]
    assert rows(dsn, """SELECT count(*) FROM "ProcessSnapshot" WHERE "name" = 'sshd'""") == [(8,)]
    ((reason, stored, refusals),) = rows(dsn, 'SELECT "reason", "stored", "refusals" FROM "QuarantinedFrame"')
    assert (reason, stored, [(each["table"], each["key"]) for each in refusals]) == (
        "row_refused", True, [("ProcessSnapshot", "812")],
    )  # fmt: skip


@pytest.mark.asyncio
async def test_a_sample_whose_time_somebody_takes_at_the_last_moment_moves_on(tmp_path: Path, dsn: str) -> None:
    machine_id, at = add_machine(dsn), _now()
    async with spooled(tmp_path, machine_id, [metrics_line(at.isoformat()).strip()]) as spool:
        tally = Tally()
        consumer = tally.writer(spool, dsn, Limits(100, 1_000_000, 0.01))
        async with open_store(dsn) as store:
            frames = await spool.read(0, max_frames=1, max_bytes=1)
            consumer._uncommitted = await consumer._preparer.prepare(frames, store.find_stored_timestamps)
            consumer._moved_seq = frames[-1].seq
        insert_sample(dsn, machine_id, at)
        spool.seal()
        await asyncio.wait_for(consumer.run(), 60)
    assert (tally.frames["stored"], tally.frames["key_taken"]) == (1, 1)
    assert rows(dsn, 'SELECT "timestamp" FROM "SystemMetrics" ORDER BY 1') == [
        (at,), (at + timedelta(milliseconds=1),),
    ]  # fmt: skip
    assert rows(dsn, 'SELECT "timestamp", "lastActivity" FROM "PortUsage"') == [(at + timedelta(milliseconds=1),) * 2]


def insert_sample(dsn: str, machine_id: UUID, at: datetime) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(
            """INSERT INTO "SystemMetrics" ("machineId", "timestamp", "cpuUsagePercent", "cpuCoresUsage",
            "totalMemoryKB", "usedMemoryKB", "availableMemoryKB", "diskUsageStats", "diskIOStats", "networkStats",
            "uptime") VALUES (%s, %s, 0, '[]', 0, 0, 0, '[]', '{}', '[]', 0)""",
            (machine_id, at),
        )


@pytest.mark.asyncio
async def test_an_agent_whose_dialect_is_not_known_yet_is_locked_before_any_other_row(tmp_path: Path, dsn: str) -> None:
    """Two hosts that locked it last and first, and services between, each waited for the other."""
    machine_id = add_machine(dsn)
    execute(dsn, f"""INSERT INTO "MachineAgent" ("machineId", "dialect") VALUES ('{machine_id}', 'D2')""")
    line = metrics_line(datetime.now(UTC).isoformat())
    with psycopg.connect(dsn) as blocking, psycopg.connect(dsn) as asking:
        blocking.execute('LOCK TABLE "SystemMetrics" IN EXCLUSIVE MODE')
        storing = asyncio.create_task(through_a_spool_of_its_own(tmp_path, dsn, machine_id, [line]))
        await asyncio.to_thread(eventually, lambda: rows(dsn, WAITS), "the batch waits for the table")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            asking.execute('SELECT FROM "MachineAgent" FOR UPDATE NOWAIT')
        blocking.rollback()
    assert (await storing).frames["stored"] == 1
