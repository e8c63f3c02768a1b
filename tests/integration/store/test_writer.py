"""The writer between a real spool and a real TimescaleDB."""

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from tools.harness.waiting import eventually

from guestd.agent.outbox import Outbox
from guestd.core.errors import BadFrame
from guestd.core.ledger import Ledger
from guestd.core.transport import Transport
from guestd.ingest.prepare import Preparer
from guestd.rows.batch import Limits, Moment, Prepared
from guestd.spool.file import Frame
from guestd.spool.queue import Spool
from guestd.store.batch_writer import open_store
from guestd.telemetry.registry import Telemetry
from guestd.wire.limits import INVENTORY
from guestd.wire.line import METRICS
from support.daemon import add_machine, execute, metrics_line, rows
from support.faults import sample_line
from support.spooled import EVENT, Tally, drain, entry, line, samples, spooled


@pytest.mark.asyncio
async def test_events_of_an_older_copy_of_the_spool_are_known_again(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    async with spooled(tmp_path / "a", machine_id, [EVENT, line(1), EVENT]):
        pass
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    async with spooled(tmp_path / "a", machine_id, []) as spool:
        tally = await drain(spool, dsn)
    assert tally.frames == {"stored": 3, "stored_in_part": 0, "duplicate": 0}
    async with spooled(tmp_path / "b", machine_id, []) as spool:
        await spool.rename(0)
        tally = await drain(spool, dsn)
    assert tally.frames["stored"] == 0
    assert rows(dsn, 'SELECT "type", "message" FROM "GuestEvent"') == [("error_report", "e")] * 2


@pytest.mark.asyncio
async def test_events_of_a_machine_that_is_gone_are_set_aside(tmp_path: Path, dsn: str) -> None:
    async with spooled(tmp_path, uuid4(), [EVENT]) as spool:
        tally = await drain(spool, dsn)
    assert tally.quarantined == {"unknown_machine": 1}
    assert rows(dsn, 'SELECT * FROM "GuestEvent"') == []


@pytest.mark.asyncio
async def test_frames_of_many_batches_are_stored_in_order(tmp_path: Path, dsn: str) -> None:
    async with spooled(tmp_path, add_machine(dsn), [line(place / 4) for place in range(250)]) as spool:
        tally = await drain(spool, dsn)
    assert tally.frames["stored"] == 250
    assert [cpu for _, cpu in samples(dsn)] == [place / 4 for place in range(250)]
    ((committed,),) = rows(dsn, 'SELECT "committedSeq" FROM "IngestLedger"')
    assert committed == 250


@pytest.mark.asyncio
async def test_what_a_machines_agent_speaks_is_kept_and_follows_it(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    kept = 'SELECT "dialect", "changedAt" FROM "MachineAgent"'
    async with spooled(tmp_path / "a", machine_id, [line(1), line(2)]) as spool:
        await drain(spool, dsn)
    ((dialect, since),) = rows(dsn, kept)
    assert dialect == "D1"
    async with spooled(tmp_path / "b", machine_id, [line(3)]) as spool:
        await drain(spool, dsn)
    assert rows(dsn, kept) == [("D1", since)]
    async with spooled(tmp_path / "c", machine_id, [sample_line(4, uuid4()).strip()]) as spool:
        await drain(spool, dsn)
    assert rows(dsn, 'SELECT "dialect" FROM "MachineState"') == [("guestd",)]


@pytest.mark.asyncio
async def test_a_poisoned_row_is_set_aside_and_the_rest_is_written(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    with psycopg.connect(dsn) as connection:
        connection.execute("""ALTER TABLE "ProcessSnapshot" ADD CONSTRAINT "test_only" CHECK ("name" <> 'poison')""")
    poison = metrics_line(processes=[{"id": 1, "name": "poison", "memory_usage_kb": 1}]).strip()
    payloads = [line(1), line(2), poison, line(4), line(5)]
    async with spooled(tmp_path, machine_id, payloads) as spool:
        tally = await drain(spool, dsn)
    assert [cpu for _, cpu in samples(dsn)] == [1, 2, 4, 5]
    assert tally.quarantined == {"rejected_by_store": 1}
    ((reason, detail, kept, seq),) = rows(dsn, 'SELECT "reason", "detail", "payload", "seq" FROM "QuarantinedFrame"')
    assert (reason, kept, seq) == ("rejected_by_store", poison, 3)
    assert "23514" in detail


@pytest.mark.asyncio
async def test_the_rows_of_a_frame_are_charged_to_its_machine(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    async with spooled(tmp_path, machine_id, [line(1), line(2), b"rubbish"]) as spool:
        tally = await drain(spool, dsn)
    # A sample, a process and a port of each message.
    assert tally.rows == {machine_id: 6}


@pytest.mark.asyncio
async def test_programs_beyond_what_a_machine_may_have_are_left_out_and_counted(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    execute(
        dsn,
        f"""INSERT INTO "ApplicationUsage" ("machineId", "executablePath", "applicationName", "lastSeen", "isActive")
        SELECT '{machine_id}', '/old/' || n, 'old', now() - interval '1 day', FALSE
        FROM generate_series(1, {INVENTORY} - 1) AS n""",
    )
    message = json.loads(metrics_line())
    message["data"]["applications"] = [{"exe_path": f"/new/{number}", "name": "new"} for number in range(3)]
    async with spooled(tmp_path, machine_id, [json.dumps(message).encode()]) as spool:
        tally = await drain(spool, dsn)
    assert (tally.frames["stored"], tally.left_out) == (1, 2)
    assert rows(dsn, 'SELECT count(*) FROM "ApplicationUsage"') == [(INVENTORY,)]


def listing(*programs: str) -> bytes:
    message = json.loads(metrics_line())
    message["data"]["applications"] = [{"exe_path": path, "name": path} for path in programs]
    return json.dumps(message).encode()


@pytest.mark.asyncio
async def test_an_inventory_is_merged_again_only_when_it_says_something_new(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    lists = [listing("vi"), listing("vi"), listing("vi", "ed"), listing("vi", "ed"), listing("vi"), listing()]
    async with spooled(tmp_path, machine_id, lists) as spool:
        tally = await drain(spool, dsn)
    assert tally.stored_rows["ApplicationUsage"] == 4
    assert rows(dsn, 'SELECT count(*) FROM "ApplicationUsageHistory"') == [(7,)]
    found = rows(dsn, 'SELECT "executablePath", "isActive" FROM "ApplicationUsage" ORDER BY 1')
    assert found == [("ed", False), ("vi", True)]


@pytest.mark.asyncio
async def test_frames_of_a_machine_that_is_gone_are_set_aside(tmp_path: Path, dsn: str) -> None:
    async with spooled(tmp_path, uuid4(), [line(1)]) as spool:
        tally = await drain(spool, dsn)
    assert tally.quarantined == {"unknown_machine": 1}
    assert samples(dsn) == []


@pytest.mark.asyncio
async def test_a_payload_that_claims_another_machine_is_set_aside(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    claims = [line(1)[:-1] + b',"vm_id":"%s"}' % str(claimed).encode() for claimed in (uuid4(), machine_id)]
    async with spooled(tmp_path, machine_id, claims) as spool:
        tally = await drain(spool, dsn)
    assert tally.quarantined == {"identity": 1}
    assert tally.frames["stored"] == 1


@pytest.mark.asyncio
async def test_equal_timestamps_of_one_machine_move_by_a_millisecond(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    now = datetime.now(UTC).replace(microsecond=0)
    same = now.isoformat()
    async with spooled(tmp_path, machine_id, [line(1, same), line(2, same)]) as spool:
        await drain(spool, dsn)
    # Another writer, which remembers nothing.
    async with spooled(tmp_path, machine_id, [line(3, same), line(4, same)]) as spool:
        tally = await drain(spool, dsn)
    assert [(at - now).total_seconds() * 1000 for at, _ in samples(dsn)] == [0, 1, 2, 3]
    assert [cpu for _, cpu in samples(dsn)] == [1, 2, 3, 4]
    assert tally.quarantined == {}


@pytest.mark.asyncio
async def test_what_is_set_aside_tells_no_more_secrets_than_what_is_stored(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    broken = b'{"type":"metrics","data":{"processes":[{"pid":1,"cmd_line":"app --password=hunter2"},'
    async with spooled(tmp_path, machine_id, [broken]) as spool:
        await drain(spool, dsn)
    assert rows(dsn, 'SELECT "payload" FROM "QuarantinedFrame"') == [(broken.replace(b"hunter2", b"***"),)]


@pytest.mark.asyncio
async def test_frames_that_were_committed_but_not_trimmed_are_not_stored_again(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    async with spooled(tmp_path, machine_id, [b"rubbish"]) as spool, open_store(dsn) as store:
        await store.set_ledger(spool.spool_id, None, Ledger(0))
        await spool.settle()
        received_at = datetime.now(UTC)
        frame = Prepared(
            1, machine_id, received_at, b"rubbish", BadFrame("json", "as if by a writer that was killed"), None
        )
        await store.write(spool.spool_id, Ledger(0), [frame])
    async with spooled(tmp_path, machine_id, []) as spool:
        tally = await drain(spool, dsn)
    assert tally.quarantined == {}
    assert rows(dsn, 'SELECT count(*) FROM "QuarantinedFrame"') == [(1,)]


@pytest.mark.asyncio
async def test_a_commit_that_is_still_under_way_is_waited_for(dsn: str) -> None:
    """The connection was lost, and the server, slow to its disk, is not done with what came before."""
    spool_id = uuid4()
    async with open_store(dsn) as store:
        await store.set_ledger(spool_id, None, Ledger(5))
        with psycopg.connect(dsn) as slow:
            slow.execute('UPDATE "IngestLedger" SET "committedSeq" = 9 WHERE "spoolId" = %s', (spool_id,))
            asked = asyncio.create_task(store.read_ledger(spool_id))
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            await asyncio.to_thread(eventually, lambda: rows(dsn, waiting) == [(1,)], "the ledger row is waited for")
            slow.commit()
        assert await asked == Ledger(9)


@pytest.mark.asyncio
async def test_a_store_restored_from_a_backup_is_adopted(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    async with spooled(tmp_path, machine_id, [line(1), line(2)]) as spool:
        await drain(spool, dsn)
    with psycopg.connect(dsn) as connection:
        connection.execute('UPDATE "IngestLedger" SET "committedSeq" = 1')
    async with spooled(tmp_path, machine_id, [line(3)]) as spool:
        await drain(spool, dsn)
    assert [cpu for _, cpu in samples(dsn)] == [1, 2, 3]
    assert rows(dsn, 'SELECT "committedSeq" FROM "IngestLedger"') == [(3,)]


@pytest.mark.asyncio
async def test_an_older_copy_of_the_spool_stores_nothing_twice_and_goes_on_under_a_new_id(
    tmp_path: Path, dsn: str
) -> None:
    machine_id = add_machine(dsn)
    older = tmp_path / "older"
    async with spooled(tmp_path / "spool", machine_id, [line(1)]) as spool:
        old_id = spool.spool_id
        await spool.settle()
    (tmp_path / "spool").rename(older)
    current = tmp_path / "spool"
    current.mkdir()
    for file in older.iterdir():
        (current / file.name).write_bytes(file.read_bytes())
    async with spooled(current, machine_id, [line(2), line(3)]) as spool:
        await drain(spool, dsn)
    async with spooled(older, machine_id, [line(4)]) as spool:
        # What the old copy held is stored; the new frame has a number that the ledger has passed.
        tally = await drain(spool, dsn)
        assert spool.spool_id != old_id
    assert [cpu for _, cpu in samples(dsn)] == [1, 2, 3, 4]
    assert tally.frames["stored"] == 1


@pytest.mark.asyncio
async def test_a_frame_that_reaches_a_bug_of_ours_is_set_aside_and_counted(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    async with spooled(tmp_path, machine_id, [line(1)]) as spool:
        tally = Tally()
        (frame,) = await spool.read(0, max_frames=1, max_bytes=1)

        def buggy(_: object) -> object:
            raise LookupError("a bug")

        content = Preparer(tally.telemetry.writer.preparing).guard(frame, buggy)
    assert isinstance(content, BadFrame)
    assert (content.reason, tally.bugs) == ("bug", 1)


@pytest.mark.asyncio
async def test_nothing_is_stored_before_the_spool_has_recorded_the_comparison_with_the_ledger(
    tmp_path: Path, dsn: str
) -> None:
    machine_id = add_machine(dsn)
    async with spooled(tmp_path / "spool", machine_id, [line(1)]) as spool:
        spool._writing.execute("PRAGMA busy_timeout = 10")
        with closing(sqlite3.connect(tmp_path / "spool/spool.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # a disk that takes nothing
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(drain(spool, dsn), 2)
        assert samples(dsn) == []
        # Else a crash here would leave a ledger that is ahead of what the file says: an older copy, it would seem.
        await drain(spool, dsn)
    assert [cpu for _, cpu in samples(dsn)] == [1]


@pytest.mark.asyncio
async def test_an_older_copy_that_took_frames_before_it_reached_the_store_loses_none_of_them(
    tmp_path: Path, dsn: str
) -> None:
    machine_id = add_machine(dsn)
    async with spooled(tmp_path / "spool", machine_id, [line(1)]) as spool:
        await spool.settle()
    shutil.copytree(tmp_path / "spool", tmp_path / "copy")
    async with spooled(tmp_path / "spool", machine_id, [line(2), line(3), line(4)]) as spool:
        await drain(spool, dsn)
    for cpu in (5, 6):  # two starts without a store
        async with spooled(tmp_path / "copy", machine_id, [line(cpu)]):
            pass
    async with spooled(tmp_path / "copy", machine_id, []) as spool:
        await drain(spool, dsn)
    assert sorted(cpu for _, cpu in samples(dsn)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.asyncio
async def test_two_hosts_with_a_cloned_spool_lose_nothing_of_what_each_of_them_took(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    async with spooled(tmp_path / "one", machine_id, [line(1)]) as spool:
        await drain(spool, dsn)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    async with (
        spooled(tmp_path / "one", machine_id, []) as one,
        spooled(tmp_path / "two", machine_id, []) as two,
    ):
        writers = [asyncio.create_task(_written(spool, dsn)) for spool in (one, two)]
        now_ms = int(datetime.now(UTC).timestamp() * 1000)
        for cpu in range(2, 12):
            for host, spool in enumerate((one, two)):
                await spool.append([entry(machine_id, now_ms + cpu * 10 + host, line(cpu + 20 * host))])
        for spool in (one, two):
            spool.seal()
        await asyncio.wait_for(asyncio.gather(*writers), 30)
        assert one.spool_id != two.spool_id
    assert sorted(cpu for _, cpu in samples(dsn)) == [1, *range(2, 12), *range(22, 32)]


async def _written(spool: Spool, dsn: str) -> None:
    await Tally().writer(spool, dsn, Limits(2, 1_000_000, 0.01)).run()


@pytest.mark.asyncio
async def test_a_guest_whose_clock_stands_still_does_not_hold_up_the_writer(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    stuck = datetime.now(UTC).replace(microsecond=0).isoformat()
    async with spooled(tmp_path, machine_id, [line(0.01 * place, stuck) for place in range(3000)]) as spool:
        await drain(spool, dsn)
    async with spooled(tmp_path, machine_id, [line(2, stuck)]) as spool, open_store(dsn) as store:
        (frame,) = await spool.read(0, max_frames=1, max_bytes=1)
        questions: list[int] = []

        async def taken(moments: Sequence[Moment]) -> set[Moment]:
            questions.append(len(moments))
            return await store.find_stored_timestamps(moments)

        (prepared,) = await Preparer(Telemetry().writer.preparing).prepare([frame], taken)
    assert prepared.seq == frame.seq
    assert len(questions) < 20


@pytest.mark.asyncio
@pytest.mark.parametrize("has_marks", [True, False])
async def test_a_run_is_continued_in_its_order_by_a_guestd_that_was_started_in_the_middle_of_it(
    tmp_path: Path, dsn: str, has_marks: bool
) -> None:
    """The agent's clock is set back by four minutes meanwhile."""
    machine_id, boot_id, now = add_machine(dsn), uuid4(), datetime.now(UTC)
    times = [now, now - timedelta(minutes=4), now - timedelta(minutes=3)]
    outbox = Outbox(str(boot_id), 1 << 20)
    lines = []
    for number, at in enumerate(times, 1):
        message = json.loads(sample_line(number)) | {"timestamp": at.isoformat(timespec="milliseconds")}
        head = b'{"type":"metrics","boot_id":"%s","seq":%d,"oldest":1,' % (str(boot_id).encode(), number)
        del message["type"]
        body = json.dumps(message).encode()
        outbox.add(body, 0.0)
        lines.append((outbox.next_line(0.0) or b"").strip() if has_marks else head + body[1:])
    for place, part in enumerate([lines[:1], lines[1:]]):
        async with spooled(tmp_path / str(place), machine_id, part) as spool:
            await drain(spool, dsn)
    stored = [at for (at,) in rows(dsn, 'SELECT "timestamp" FROM "SystemMetrics" ORDER BY "uptime"')]
    assert len(stored) == 3
    assert stored == sorted(set(stored))


@pytest.mark.asyncio
async def test_an_error_of_the_store_itself_costs_no_frame(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    with psycopg.connect(dsn) as connection:
        connection.execute('ALTER TABLE "IngestLedger" RENAME COLUMN "updatedAt" TO "gone"')
    async with spooled(tmp_path, machine_id, [line(1)]) as spool:
        tally = Tally()
        consumer = tally.writer(spool, dsn, Limits(100, 1_000_000, 0.01))
        spool.seal()
        writing = asyncio.create_task(consumer.run())
        async with asyncio.timeout(30):
            await asyncio.to_thread(eventually, lambda: tally.store_lost >= 2, "the store is lost twice")
            assert "gueststore check" in (consumer.store_error or "")
            with psycopg.connect(dsn) as connection:
                connection.execute('ALTER TABLE "IngestLedger" RENAME COLUMN "gone" TO "updatedAt"')
            await writing
    assert tally.frames["stored"] == 1
    assert tally.quarantined == {}


@pytest.mark.asyncio
async def test_a_batch_of_small_frames_does_not_wait_a_turn_of_the_loop_for_each() -> None:
    async def taken(moments: Sequence[Moment]) -> set[Moment]:
        return set()

    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    frames = [Frame(seq, uuid4(), datetime.now(UTC), line(1), Transport.VIRTIO, METRICS, None) for seq in range(1, 501)]
    busy = asyncio.create_task(others())
    prepared = await Preparer(Telemetry().writer.preparing).prepare(frames, taken)
    busy.cancel()
    assert len(prepared) == 500
    assert 0 < turns < 500


@pytest.mark.asyncio
async def test_the_next_batch_is_prepared_while_the_store_works_on_one(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    async with (
        spooled(tmp_path, machine_id, [line(cpu) for cpu in range(1, 7)]) as spool,
        await psycopg.AsyncConnection.connect(dsn) as busy,
    ):
        await busy.execute('SELECT 1 FROM "Machine" WHERE "id" = %s FOR UPDATE', [machine_id])
        tally = Tally()
        writing = asyncio.create_task(tally.writer(spool, dsn, Limits(2, 1_000_000, 0.01)).run())
        async with asyncio.timeout(60):
            await asyncio.to_thread(eventually, lambda: len(tally.prepared) == 4, "the second batch is prepared")
            assert tally.frames["stored"] == 0
            await busy.rollback()
            spool.seal()
            await writing
    assert len(tally.prepared) == 6
    assert [cpu for _, cpu in samples(dsn)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.asyncio
async def test_what_was_prepared_ahead_outlives_the_connection(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    async with (
        spooled(tmp_path, machine_id, [line(cpu) for cpu in range(1, 7)]) as spool,
        await psycopg.AsyncConnection.connect(dsn) as busy,
    ):
        await busy.execute('SELECT 1 FROM "Machine" WHERE "id" = %s FOR UPDATE', [machine_id])
        tally = Tally()
        writing = asyncio.create_task(tally.writer(spool, dsn, Limits(2, 1_000_000, 0.01)).run())
        async with asyncio.timeout(60):
            await asyncio.to_thread(eventually, lambda: len(tally.prepared) == 4, "the second batch is prepared")
            with psycopg.connect(dsn, autocommit=True) as admin:
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'guestd' AND datname = current_database()"
                )
            await asyncio.to_thread(eventually, lambda: tally.store_lost, "the connection is lost")
            await busy.rollback()
            spool.seal()
            await writing
    assert len(tally.prepared) == 6
    assert [cpu for _, cpu in samples(dsn)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.asyncio
async def test_a_store_that_does_not_say_whether_a_time_is_taken_is_told_of(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    async with (
        spooled(tmp_path, machine_id, [line(1)]) as spool,
        await psycopg.AsyncConnection.connect(dsn) as busy,
    ):
        await busy.execute('LOCK TABLE "SystemMetrics" IN ACCESS EXCLUSIVE MODE')
        consumer = Tally().writer(spool, dsn, Limits(2, 1_000_000, 0.01))
        writing = asyncio.create_task(consumer.run())
        async with asyncio.timeout(90):
            await asyncio.to_thread(eventually, lambda: "no answer for" in (consumer.problem or ""), "it says so")
            await busy.rollback()
            spool.seal()
            await writing
    assert consumer.problem is None
    assert [cpu for _, cpu in samples(dsn)] == [1]
