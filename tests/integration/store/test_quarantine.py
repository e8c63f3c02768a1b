"""`guestd quarantine`: as an operator runs it, on frames that a real writer has set aside."""

import asyncio
import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from guestd.core.config import EventsSettings, QuarantineSettings, Settings, StoreSettings
from guestd.store.locks import IndependentSteps
from guestd.store.maintenance import MaintenanceResult, maintain_store
from guestd.telemetry.registry import MaintenanceMetrics
from support.daemon import add_machine, command, environment, execute, metrics_line, rows
from support.faults import sample_line
from support.spooled import drain, spooled

HELD = 'SELECT "reason", "stored", "attempts" FROM "QuarantinedFrame"'


async def maintain(settings: Settings) -> MaintenanceResult:
    steps = IndependentSteps(settings.store.dsn, MaintenanceMetrics())
    result = await maintain_store(settings, steps)
    assert not steps.problems
    return result


def with_limits(dsn: str, *, max_frames: int, max_bytes: int) -> Settings:
    return Settings(
        store=StoreSettings(dsn=dsn),
        events=EventsSettings(keep_days=1, keep_per_machine=1),
        quarantine=QuarantineSettings(max_frames=max_frames, max_bytes=max_bytes, keep_days=5),
    )


def quarantine(dsn: str, *arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        command("guestd", "quarantine", *arguments),
        env=environment() | {"GUESTD_DATABASE_DSN": dsn},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout if status in (0, 1) and done.stdout else done.stderr


def set_aside(tmp_path: Path, dsn: str, machine_id: UUID, *payloads: bytes) -> list[dict[str, Any]]:
    """What is in the quarantine after a writer has seen these."""

    async def written() -> None:
        async with spooled(tmp_path, machine_id, [payload.strip() for payload in payloads]) as spool:
            await drain(spool, dsn)

    asyncio.run(written())
    found: list[dict[str, Any]] = json.loads(quarantine(dsn, "list", "--json"))
    return found


def test_a_frame_that_can_be_stored_now_leaves_the_quarantine(tmp_path: Path, dsn: str) -> None:
    machine_id = uuid4()
    (frame,) = set_aside(tmp_path, dsn, machine_id, metrics_line(datetime.now(UTC).isoformat()))
    assert (frame["reason"], frame["machineId"]) == ("unknown_machine", str(machine_id))
    header, row = quarantine(dsn, "list").splitlines()
    assert header.split() == ["id", "machine", "received", "reason", "bytes", "tried", "detail"]
    assert row.split()[:2] + row.split()[3:4] == [frame["id"], str(machine_id), "unknown_machine"]
    assert "unknown_machine: the store has no such Machine" in quarantine(dsn, "retry", frame["id"], status=1)
    assert rows(dsn, HELD) == [("unknown_machine", False, 1)]
    add_machine(dsn, machine_id)
    assert quarantine(dsn, "retry", frame["id"]) == f"{frame['id']}  stored\n"
    assert rows(dsn, HELD) == []
    assert rows(dsn, 'SELECT count(*) FROM "SystemMetrics"') == [(1,)]
    assert (
        rows(dsn, 'SELECT count(*) FROM "ProcessSnapshot"') == rows(dsn, 'SELECT count(*) FROM "PortUsage"') == [(1,)]
    )
    assert rows(dsn, 'SELECT "receivedAt" = "timestamp" FROM "SystemMetrics"') == [(False,)]


def test_a_numbered_frame_is_stored_behind_the_line_before_it(tmp_path: Path, dsn: str) -> None:
    """Its agent's clock was set back in between."""
    machine_id, boot_id, now = add_machine(dsn), uuid4(), datetime.now(UTC)
    execute(dsn, """ALTER TABLE "ProcessSnapshot" ADD CONSTRAINT "test_only" CHECK ("name" <> 'poison')""")
    poison = {"id": 1, "name": "poison", "memory_usage_kb": 1}
    first, second = (
        sample_line(number, boot_id, processes=processes).replace(
            b'"timestamp":"2025-10-01T12:00:30.125000000+00:00"', b'"timestamp":"%s"' % at.isoformat().encode()
        )
        for number, at, processes in ((1, now, []), (2, now - timedelta(minutes=4), [poison]))
    )
    (frame,) = set_aside(tmp_path, dsn, machine_id, first, second)
    execute(dsn, 'ALTER TABLE "ProcessSnapshot" DROP CONSTRAINT "test_only"')
    quarantine(dsn, "retry", frame["id"])
    earlier, later = rows(dsn, 'SELECT "timestamp" FROM "SystemMetrics" ORDER BY "uptime"')
    assert later > earlier


def test_show_neither_waits_for_a_retry_nor_needs_the_right_to_write(tmp_path: Path, dsn: str) -> None:
    (frame,) = set_aside(tmp_path, dsn, uuid4(), metrics_line())
    with psycopg.connect(dsn) as retrying:
        retrying.execute('SELECT FROM "QuarantinedFrame" FOR UPDATE')
        options = "-c lock_timeout=1s -c default_transaction_read_only=on"
        shown = quarantine(make_conninfo(dsn, options=options, target_session_attrs="any"), "show", frame["id"])
    assert f"id: {frame['id']}" in shown.splitlines()


def test_refused_rows_are_listed_with_the_first_and_shown_one_a_line(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    wrong = [{"id": 7, "name": []}, {"name": "without an id"}]
    one, two = set_aside(tmp_path, dsn, machine_id, *(metrics_line(processes=wrong[:most]) for most in (1, 2)))[::-1]
    if one["refused"] == 2:
        one, two = two, one
    assert one["detail"].startswith("1 row refused: ProcessSnapshot 7: Expected `str`")
    assert two["detail"].startswith("2 rows refused, the first: ProcessSnapshot 7: Expected `str`")
    listed = quarantine(dsn, "list")
    assert one["detail"] in listed
    assert two["detail"] in listed
    lines = [line for line in quarantine(dsn, "show", two["id"]).splitlines() if line.startswith("refused: ")]
    refusals = json.loads(quarantine(dsn, "show", two["id"], "--json"))["refusals"]
    assert [(each["table"], each["key"]) for each in refusals] == [("ProcessSnapshot", "7"), ("ProcessSnapshot", None)]
    assert lines == [
        f"refused: ProcessSnapshot 7: {refusals[0]['reason']}", f"refused: ProcessSnapshot: {refusals[1]['reason']}",
    ]  # fmt: skip
    quarantine(dsn, "retry", one["id"], status=1)
    assert json.loads(quarantine(dsn, "show", one["id"], "--json"))["detail"] == one["detail"]
    execute(dsn, """UPDATE "QuarantinedFrame" SET "refusals" = '[7, "a text", {"reason": "a reason"}, {}]'""")
    lines = [line for line in quarantine(dsn, "show", two["id"]).splitlines() if line.startswith("refused: ")]
    assert lines == ["refused: 7", "refused: a text", "refused: a reason", "refused: "]


def test_the_rest_of_a_frame_that_was_stored_in_part_joins_its_sample(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    execute(dsn, """ALTER TABLE "ProcessSnapshot" ADD CONSTRAINT "test_only" CHECK ("name" <> 'poison')""")
    poison = {"id": 1, "name": "poison", "memory_usage_kb": 1}
    (frame,) = set_aside(tmp_path, dsn, machine_id, sample_line(1, uuid4(), processes=[poison]))
    assert frame["reason"] == "rejected_by_store"
    assert "rejected_by_store: 23514" in quarantine(dsn, "retry", frame["id"], status=1)
    execute(dsn, 'ALTER TABLE "ProcessSnapshot" DROP CONSTRAINT "test_only"')
    # As if all but the poison had been stored.
    quarantine(dsn, "retry", frame["id"])
    execute(dsn, 'DELETE FROM "ProcessSnapshot"')
    execute(
        dsn,
        f"""INSERT INTO "QuarantinedFrame"
        ("machineId", "receivedAt", "spoolId", "seq", "reason", "detail", "stored", "payload", "frameDigest")
        SELECT "machineId", "receivedAt", '{uuid4()}', 1, 'row_refused', '', TRUE,
        convert_to('{sample_line(1, uuid4(), processes=[poison]).decode().strip()}', 'UTF8'), "frameDigest"
        FROM "SystemMetrics" """,
    )
    ((frame_id,),) = rows(dsn, 'SELECT "id" FROM "QuarantinedFrame"')
    quarantine(dsn, "retry", str(frame_id))
    same = 'SELECT count(*) FROM "SystemMetrics" NATURAL JOIN (SELECT "machineId", "timestamp" FROM "ProcessSnapshot")'
    assert rows(dsn, f"{same} AS p") == [(1,)]
    assert rows(dsn, 'SELECT count(*) FROM "SystemMetrics"') == rows(dsn, 'SELECT count(*) FROM "PortUsage"') == [(1,)]
    assert rows(dsn, HELD) == []


def test_a_port_that_was_refused_joins_the_others_and_none_is_stored_twice(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    ports = [{"port": port, "protocol": "TCP", "state": "Listen", "is_listening": True} for port in (80, 443)]
    once_refused = [{"port": 22, "protocol": "TCP", "state": "Listen", "is_listening": True}, *ports]
    stored, whole = (sample_line(1, uuid4(), ports=some) for some in (ports, once_refused))
    set_aside(tmp_path, dsn, machine_id, stored)
    execute(
        dsn,
        f"""INSERT INTO "QuarantinedFrame"
        ("machineId", "receivedAt", "spoolId", "seq", "reason", "detail", "stored", "payload", "frameDigest")
        SELECT "machineId", "receivedAt", '{uuid4()}', 1, 'row_refused', '', TRUE,
        convert_to('{whole.decode().strip()}', 'UTF8'), "frameDigest" FROM "SystemMetrics" """,
    )
    ((frame_id,),) = rows(dsn, 'SELECT "id" FROM "QuarantinedFrame"')
    quarantine(dsn, "retry", str(frame_id))
    assert rows(dsn, 'SELECT "port", "ordinal" FROM "PortUsage" ORDER BY 2') == [(80, 0), (443, 1), (22, 2)]
    assert rows(dsn, HELD) == []


def test_a_retried_frame_is_known_again_when_its_line_is_redelivered(tmp_path: Path, dsn: str) -> None:
    machine_id = uuid4()
    secret = [{"id": 1, "name": "p", "memory_usage_kb": 1, "command_line": "p --password=hunter2"}]
    line = metrics_line(datetime.now(UTC).isoformat(), processes=secret)
    (frame,) = set_aside(tmp_path / "one", dsn, machine_id, line)
    add_machine(dsn, machine_id)
    quarantine(dsn, "retry", frame["id"])
    assert set_aside(tmp_path / "two", dsn, machine_id, line) == []
    assert rows(dsn, 'SELECT count(*) FROM "SystemMetrics"') == [(1,)]


def test_a_frame_that_still_fails_says_why_and_counts_the_attempt(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    frames = set_aside(tmp_path, dsn, machine_id, b"rubbish", b"more rubbish")
    assert len(frames) == 2
    said = quarantine(dsn, "retry", "--reason", "json", status=1)
    assert said.count("json: ") == 2
    assert rows(dsn, HELD) == [("json", False, 1)] * 2
    results = json.loads(quarantine(dsn, "retry", "--reason", "json", "--json", status=1))
    assert [sorted(result) for result in results] == [["id", "reason", "stored"]] * 2
    assert {result["reason"].partition(":")[0] for result in results} == {"json"}
    assert rows(dsn, 'SELECT count(*) FROM "SystemMetrics"') == [(0,)]


def test_a_payload_is_shown_escaped_and_bounded(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    (frame,) = set_aside(tmp_path, dsn, machine_id, b"\x1b[2J\xff" + b"x" * 100_000)
    shown = quarantine(dsn, "show", frame["id"])
    assert "\x1b" not in shown
    assert "payload: \\x1b[2J" in shown
    assert len(shown) < 6000
    assert len(json.loads(quarantine(dsn, "show", frame["id"], "--json"))["payload"]) > 100_000
    assert "there is no frame" in quarantine(dsn, "show", str(uuid4()), status=1)


def test_frames_are_dropped_by_id_reason_and_age_and_never_for_want_of_a_condition(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    frames = set_aside(tmp_path, dsn, machine_id, b"one", b"two", b'{"type":"other"}', b"four")
    assert "drop takes" in quarantine(dsn, "drop", status=2)
    assert quarantine(dsn, "drop", "--older-than", "1") == "0 dropped\n"
    assert quarantine(dsn, "drop", frames[0]["id"]) == "1 dropped\n"
    execute(dsn, """UPDATE "QuarantinedFrame" SET "receivedAt" = "receivedAt" - INTERVAL '1 hour'""")
    assert quarantine(dsn, "drop", "--reason", "json", "--older-than", "0.03") == "2 dropped\n"
    assert len(json.loads(quarantine(dsn, "list", "--json"))) == 1
    assert json.loads(quarantine(dsn, "drop", "--older-than", "1", "--json")) == {"dropped": 0}
    assert rows(dsn, 'SELECT count(*) FROM "QuarantinedFrame"') == [(1,)]


@pytest.mark.asyncio
async def test_the_quarantine_is_bounded_in_frames_in_age_and_by_machine(dsn: str) -> None:
    insert = """INSERT INTO "QuarantinedFrame"
        ("machineId", "receivedAt", "spoolId", "seq", "reason", "detail", "payload", "createdAt")
        SELECT {machine}, now(), gen_random_uuid(), n, 'json', '', '', now() - n * interval '1 hour'
        FROM generate_series({first}, {last}) AS n"""
    loud = f"'{uuid4()}'::uuid"
    execute(
        dsn,
        insert.format(machine=loud, first=1, last=30),
        insert.format(machine="gen_random_uuid()", first=1, last=150),
    )
    settings = with_limits(dsn, max_frames=100, max_bytes=10**9)
    result = await maintain(settings)
    ((of_the_loud,),) = rows(dsn, f'SELECT count(*) FROM "QuarantinedFrame" WHERE "machineId" = {loud}')
    assert of_the_loud <= 10
    assert result.quarantined_remaining is not None
    assert result.quarantined_remaining <= 100
    assert result.quarantined_dropped + result.quarantined_remaining == 180
    ((oldest_hours,),) = rows(
        dsn, """SELECT extract(epoch FROM now() - min("createdAt")) / 3600 FROM "QuarantinedFrame" """
    )
    assert oldest_hours < 5 * 24
    assert (await maintain(settings)).quarantined_dropped == 0


@pytest.mark.asyncio
async def test_a_guest_that_floods_the_quarantine_drops_nothing_of_the_others(dsn: str) -> None:
    insert = """INSERT INTO "QuarantinedFrame"
        ("machineId", "receivedAt", "spoolId", "seq", "reason", "detail", "payload", "createdAt")
        SELECT '{machine}', now(), gen_random_uuid(), n, 'json', '', '', now() - interval '{age}'
        FROM generate_series(1, {count}) AS n"""
    quiet, loud = uuid4(), uuid4()
    execute(
        dsn,
        insert.format(machine=quiet, age="1 hour", count=5),
        insert.format(machine=loud, age="1 minute", count=150),
    )
    result = await maintain(with_limits(dsn, max_frames=100, max_bytes=10**9))
    held = rows(dsn, 'SELECT "machineId", count(*) FROM "QuarantinedFrame" GROUP BY 1')
    assert dict(held) == {quiet: 5, loud: 10}
    assert (result.quarantined_dropped, result.quarantined_remaining) == (140, 15)


@pytest.mark.asyncio
async def test_the_quarantine_is_bounded_in_bytes_of_all_and_of_each_machine(dsn: str) -> None:
    insert = """INSERT INTO "QuarantinedFrame"
        ("machineId", "receivedAt", "spoolId", "seq", "reason", "detail", "payload", "createdAt")
        SELECT {machine}, now(), gen_random_uuid(), n, 'json', '', decode(repeat('00', 1000), 'hex'),
        now() - {age} * interval '1 minute' FROM generate_series(1, {count}) AS n"""
    loud = f"'{uuid4()}'::uuid"
    execute(
        dsn,
        insert.format(machine="gen_random_uuid()", age="(n + 30)", count=30),
        insert.format(machine=loud, age="n", count=30),
    )
    result = await maintain(with_limits(dsn, max_frames=1000, max_bytes=20_000))
    assert rows(dsn, f'SELECT count(*) FROM "QuarantinedFrame" WHERE "machineId" = {loud}') == [(2,)]
    assert (result.quarantined_remaining, result.quarantined_dropped) == (20, 40)


def test_the_quarantine_of_a_store_that_cannot_be_reached_is_no_traceback() -> None:
    assert "port=1" in quarantine("host=127.0.0.1 port=1 dbname=guestd", "list", status=1)
