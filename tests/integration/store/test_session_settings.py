"""The settings of server, database and role do not matter: every session sets what it relies on."""

import copy
import json
import random
import subprocess
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tools.harness.waiting import eventually

from guestd.core.config import Settings, StoreSettings
from guestd.core.errors import RowsRejected, StoreUnavailable
from guestd.filters.snapshot import FilterHostState
from guestd.filters.store import open_filter_store, read_store_snapshot
from guestd.hypervisor.domains import Domain
from guestd.store.connection import connection_to, listen, translate_errors
from guestd.store.locks import IndependentSteps
from guestd.store.maintenance import maintain_store
from guestd.store.rollups import RollupRefresher
from guestd.telemetry.registry import MaintenanceMetrics, VmMetrics
from guestd.vms.store import open_vm_store
from gueststore import catalogue, read_api
from gueststore.alarms import read_alarms
from gueststore.database import connect
from gueststore.errors import ConfigurationError, StoreError
from gueststore.migrations import migrate, read_status
from gueststore.retention import read_retention_due
from support.daemon import Daemon, command, environment
from support.hostile import turn_database, turned_role
from support.poison import D2
from support.rollups import send
from support.schema import insert, make_machine
from support.spooled import drain, spooled
from support.store import Server, database

TEXT = "café \N{SNOWMAN} \N{CJK UNIFIED IDEOGRAPH-65E5}\\d"
ICON = bytes(range(256))


MACHINE = UUID("b0a1f2c4-5d6e-4f70-8a91-0b1c2d3e4f50")


def query(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    with connect(dsn) as connection:
        return connection.execute(statement.encode()).fetchall()


def sample(at: datetime) -> bytes:
    """A message with texts that no single-byte encoding has, a time, an icon, and columns that are NULL."""
    message = copy.deepcopy(D2)
    message["timestamp"] = at.isoformat()
    (process,), (application,) = message["data"]["processes"], message["data"]["applications"]
    process["name"] = application["name"] = message["data"]["windows_services"][0]["description"] = TEXT
    application["icon_base64"] = b64encode(ICON).decode()
    return json.dumps(message).encode()


EVENTS = [
    {"type": "error_report", "error_type": TEXT, "severity": "error"},
    {"type": "error_report", "error_type": "e", "severity": "error", "details": {"text": TEXT}},
]
# Without what differs from run to run: ids, and times of receipt.
STORED = (
    'SELECT "timestamp", "cpuUsagePercent", "cpuCoresUsage", "loadAverage" FROM "SystemMetrics" ORDER BY 1',
    'SELECT "timestamp", "name", "cpuUsagePercent", "startTime" FROM "ProcessSnapshot" ORDER BY 1, 2',
    'SELECT "applicationName", "iconData", "lastAccessTime", "lastModifiedTime" FROM "ApplicationUsage"',
    'SELECT "serviceName", "description", "dependencies" FROM "WindowsService"',
    'SELECT "type", "message", "detail" FROM "GuestEvent" ORDER BY 1, 2',
    'SELECT "reason", "detail", "payload" FROM "QuarantinedFrame"',
    'SELECT "bucket", "samples", "cpuUsagePercentAvg", "load1minAvg" FROM "SystemMetricsMinute" ORDER BY 1',
    'SELECT "bucket", "name", "cpuUsagePercentSum" FROM "ProcessUsageHour" ORDER BY 1, 2',
    'SELECT "bucket", "executablePath", "totalUsageMinutesMax" FROM "ApplicationUsageDay" ORDER BY 1, 2',
    'SELECT "portStart", "protocol", "running", "lastSeen" FROM "VmPort" ORDER BY 1',
    'SELECT "relation", "keepDays", "due" FROM "RetentionDue" ORDER BY 1',
)


async def work(dsn: str, directory: Path, now: datetime) -> list[Any]:
    """What guestd stores of a guest, derives, deletes and reads, and what the reconcilers read."""
    with connect(make_conninfo(dsn, user="postgres")) as connection:
        make_machine(connection, id=MACHINE, name=TEXT, internalName="vm", createdAt=now)
        insert(connection, "NWFilter", name=TEXT, internalName="f", uuid=MACHINE, description=TEXT)
        # An hour to roll up, and one that retention drops then.
        for hours in (5, 24 * 30):
            send(connection, MACHINE, now - timedelta(hours=hours), random.Random(3))
    lines = [sample(now - timedelta(minutes=minutes)) for minutes in (3, 2)]
    lines += [*(json.dumps(event).encode() for event in EVENTS), b"caf\xe9", TEXT.encode()]
    async with spooled(directory, MACHINE, lines) as spool:
        tally = await drain(spool, dsn)
    refresher = RollupRefresher(
        dsn, host_name="h", uri="", metrics=VmMetrics(None), maintenance=(metrics := MaintenanceMetrics())
    )
    await refresher.refresh()
    steps = IndependentSteps(dsn, metrics)
    result = await maintain_store(Settings(store=StoreSettings(dsn=dsn)), steps)
    async with open_vm_store(dsn, name="h", uri="", version="1") as vms:
        seen = Domain(MACHINE, "vm", "running", "booted", True, 0.0, None)
        rows, silent_hosts = await vms.read_machines([seen])
        machines = [(row.name, row.status, row.facts) for row in rows]
        assert silent_hosts == ()
        assert await vms.read_attempts(0) == {}
    async with open_filter_store(dsn, name="h", uri="", version="1") as filters:
        await filters.write_states([FilterHostState("f", MACHINE, False, "d", False, TEXT)], [])
        states = await filters.read_states()
    snapshot = await read_store_snapshot(dsn)
    async with connection_to(dsn) as connection:
        window = (now - timedelta(hours=2), now + timedelta(seconds=1))
        found = [
            await read_api.read_machines(connection, "vm"),
            await read_api.read_series(connection, MACHINE, *window),
            await read_api.read_series(connection, MACHINE, now - timedelta(days=20), window[1]),
            await read_api.read_fleet(connection, *window),
            await read_api.read_processes(connection, MACHINE, *window),
            await read_api.read_top_processes(connection, *window, of=[MACHINE]),
            await read_api.read_ports(connection, MACHINE),
        ]
    stored = [query(dsn, statement) for statement in STORED]
    filter_names = [each.name for each in snapshot.filters]
    return [tally.frames, tally.quarantined, result, steps.problems, machines, states, filter_names, found, stored]


@pytest.mark.asyncio
async def test_a_database_and_a_role_with_all_settings_changed_change_nothing(
    cluster: Server, dsn: str, template: str, tmp_path: Path
) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    with database(cluster, template) as name, turned_role(cluster, name) as turned:
        with turned_role(cluster, str(conninfo_to_dict(dsn)["dbname"]), settings={}) as plain:
            expected = await work(plain, tmp_path / "plain", now)
        assert await work(turned, tmp_path / "turned", now) == expected
    assert TEXT in [row[1] for row in expected[-1][1]]
    assert ICON in [row[1] for row in expected[-1][2]]
    assert expected[2].retired > 0


def test_the_tools_of_the_store_work_on_a_database_with_all_settings_changed(cluster: Server, empty_dsn: str) -> None:
    turn_database(cluster, str(conninfo_to_dict(empty_dsn)["dbname"]))
    assert migrate(empty_dsn)
    assert migrate(empty_dsn) == []
    assert catalogue.find_drift(empty_dsn) == []
    assert read_alarms(empty_dsn) == []
    assert not read_status(empty_dsn).problems
    assert {due.due for due in read_retention_due(empty_dsn)} == {0}


def test_guestd_starts_and_its_verbs_answer_on_a_database_with_all_settings_changed(
    cluster: Server, dsn: str, directory: Path
) -> None:
    with turned_role(cluster, str(conninfo_to_dict(dsn)["dbname"])) as turned:
        with connect(dsn) as connection:
            machine_id = make_machine(connection, name=TEXT)
        daemon = Daemon(directory, turned)
        guest = daemon.guest(machine_id)
        try:
            daemon.start()
            guest.write(sample(datetime.now(UTC)) + b"\nrubbish\n")
            eventually(lambda: daemon.metric("guestd_frames_done_total", outcome="stored") == 1, "the sample is stored")
            eventually(lambda: daemon.page("/readyz") == (200, "ready\n"), "ready")
            config = str(directory / "guestd.toml")
            for words in (["show", TEXT], ["show", TEXT, "--json"], ["top", "--rounds", "1"], ["quarantine", "list"]):
                done = subprocess.run(
                    command("guestd", *words, "--config", config), capture_output=True, env=environment(), check=False
                )
                assert (done.returncode, done.stderr) == (0, b""), words
            doctor = subprocess.run(
                command("guestd", "doctor", "--json", "--config", config),
                capture_output=True, env=environment(), check=False,
            )  # fmt: skip
            found = {each["subject"]: each["level"] for each in json.loads(doctor.stdout)}
            assert (found["store"], found["schema"], found["rights"]) == ("ok", "ok", "ok"), doctor.stdout
            assert daemon.stop() == 0
        finally:
            guest.leave()
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.kill()


@pytest.mark.parametrize(
    "connection_string", ["options='-c DateStyle=German -c statement_timeout=100ms'", "client_encoding=LATIN1"]
)
@pytest.mark.asyncio
async def test_the_settings_of_the_connection_string_do_not_matter_either(dsn: str, connection_string: str) -> None:
    given = make_conninfo(dsn, **conninfo_to_dict(connection_string))
    async with connection_to(given) as connection:
        cursor = await connection.execute("SELECT now(), %s::text, pg_sleep(0.2)", (TEXT,))
        (row,) = await cursor.fetchall()
        assert row[1] == TEXT
    assert query(given, "SELECT now() IS NOT NULL, pg_sleep(0.2)") == [(True, "")]


@pytest.mark.asyncio
async def test_messages_are_in_english_where_the_role_may_choose_their_language(cluster: Server, dsn: str) -> None:
    """Any other role can work without it."""
    with turned_role(cluster, str(conninfo_to_dict(dsn)["dbname"]), {"lc_messages": "POSIX"}) as turned:
        for each, language in ((turned, "POSIX"), (make_conninfo(turned, user="postgres"), "C")):
            async with connection_to(each) as connection:
                assert await (await connection.execute("SHOW lc_messages")).fetchone() == (language,)
            with connect(each) as opened:
                assert opened.execute("SHOW lc_messages").fetchall() == [(language,)]


@pytest.mark.parametrize(("turned", "kept"), [("off", "local"), ("on", "on"), ("remote_apply", "remote_apply")])
@pytest.mark.asyncio
async def test_commit_waits_for_the_disk_and_for_no_standby_that_the_owner_did_not_name(
    dsn: str, turned: str, kept: str
) -> None:
    async with connection_to(make_conninfo(dsn, options=f"-c synchronous_commit={turned}")) as connection:
        cursor = await connection.execute("SHOW synchronous_commit")
        assert await cursor.fetchone() == (kept,)


@pytest.mark.asyncio
async def test_a_role_whose_triggers_are_off_stores_nothing_and_the_error_names_what_to_reset(
    cluster: Server, dsn: str
) -> None:
    """Without triggers no sample is noted for its roll-up, and retention would drop it."""
    name = str(conninfo_to_dict(dsn)["dbname"])
    with turned_role(cluster, name, {"session_replication_role": "replica"}) as turned:
        with pytest.raises(StoreUnavailable, match=r"session_replication_role.*ALTER DATABASE \.\.\. RESET"):
            async with connection_to(turned):
                pass
        with pytest.raises(ConfigurationError, match="session_replication_role"), connect(turned):
            pass
    # A superuser may correct it, and does.
    async with connection_to(make_conninfo(dsn, options="-c session_replication_role=replica")) as connection:
        cursor = await connection.execute("SHOW session_replication_role")
        assert await cursor.fetchone() == ("origin",)


UNREADABLE = [
    # What the statement makes of the session, a value that the driver cannot read then, and the error.
    ("SET DateStyle TO 'German'", "SELECT now()", None, StoreUnavailable, "NotImplementedError"),
    ("SET IntervalStyle TO iso_8601", "SELECT INTERVAL '1 day 1 hour'", None, StoreUnavailable, "NotImplementedError"),
    ("SELECT 1", "SELECT '-infinity'::timestamptz", None, RowsRejected, "DataError"),
    ("SET client_encoding TO 'LATIN1'", "SELECT %s::text", [TEXT], RowsRejected, "UnicodeEncodeError"),
    ("SELECT 1", "SELECT %s::text", ["\ud800"], RowsRejected, "UnicodeEncodeError"),
    ("SELECT 1", "SELECT %s::text", ["a\0"], RowsRejected, "DataError"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "statement", "values", "expected", "name"), UNREADABLE)
@pytest.mark.asyncio
async def test_every_exception_of_the_driver_is_one_that_guestd_handles(
    dsn: str, first: str, statement: str, values: list[object] | None, expected: type[Exception], name: str
) -> None:
    async with connection_to(dsn) as connection:
        await connection.execute(first.encode())
        with pytest.raises(expected, match=name):
            async with translate_errors():
                await (await connection.execute(statement.encode(), values)).fetchall()


@pytest.mark.parametrize("host", ["a" * 70, "b..c"])
@pytest.mark.asyncio
async def test_a_host_that_no_name_service_can_be_asked_for_is_a_store_that_cannot_be_reached(host: str) -> None:
    with pytest.raises(StoreUnavailable, match=f"host={host}: UnicodeError"):
        async with connection_to(f"host={host}"):
            pass
    with pytest.raises(StoreError, match=f"on {host} port 5432: UnicodeError"), connect(f"host={host}"):
        pass


@pytest.mark.asyncio
async def test_a_database_that_is_still_in_restore_mode_stores_no_row_and_the_error_names_what_to_set(
    cluster: Server, dsn: str
) -> None:
    """timescaledb_pre_restore() sets it for the database; somebody has forgotten timescaledb_post_restore()."""
    name = str(conninfo_to_dict(dsn)["dbname"])
    with turned_role(cluster, name, {"timescaledb.restoring": "on"}) as turned:
        async with connection_to(turned) as connection:
            with pytest.raises(StoreUnavailable, match=r"Set 'timescaledb\.restoring' to 'off'"):
                async with translate_errors():
                    await connection.execute(
                        """INSERT INTO "PortUsage" ("machineId", "timestamp", "ordinal", "port", "protocol", "state")
                        VALUES (gen_random_uuid(), now(), 0, 1, 'tcp', '')"""
                    )
    assert query(dsn, 'SELECT count(*) FROM ONLY "PortUsage"') == [(0,)]


@pytest.mark.asyncio
async def test_a_bug_of_ours_within_a_statement_is_not_taken_for_the_drivers(dsn: str) -> None:
    async def on_change(_: object) -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        await listen(dsn, "guestd_machine", on_change)
