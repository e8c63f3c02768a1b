"""Migrations on a real server: from nothing, twice, at once, half-way, edited, foreign, and by command."""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from tools.harness.cluster import Cluster, prefix

from gueststore.errors import ConfigurationError, StoreError
from gueststore.migrations import ADVISORY_LOCK_KEY, migrate, read_status
from gueststore.scripts import Migration, Scripts, load_scripts, parse_migration
from support.schema import insert, make_machine, rows

TABLES = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"


def with_migrations(*bodies: str) -> Scripts:
    """Scripts with migrations of these bodies and no repeatable."""
    migrations = tuple(parse_migration(f"{number:04}_step.sql", body) for number, body in enumerate(bodies, start=1))
    return replace(load_scripts(), migrations=migrations, repeatables=())


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gueststore", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_an_empty_database_gets_everything_and_then_nothing(empty_dsn: str) -> None:
    reported: list[str] = []
    applied = migrate(empty_dsn, report=reported.append)
    assert [a.script for a in applied] == [*load_scripts().migrations, *load_scripts().repeatables]
    assert [line for line in reported if line.startswith("applied")] == [str(a) for a in applied]
    assert migrate(empty_dsn) == []
    state = read_status(empty_dsn)
    assert (state.pending, state.problems, state.version) == ((), (), len(load_scripts().migrations))


def test_status_of_an_empty_database_is_all_pending_and_changes_nothing(empty_dsn: str) -> None:
    state = read_status(empty_dsn)
    assert state.version == 0
    assert state.pending == (*load_scripts().migrations, *load_scripts().repeatables)
    with psycopg.connect(empty_dsn) as connection:
        assert rows(connection, TABLES) == []


@pytest.mark.parametrize("migration", load_scripts().migrations[:-1], ids=str)
def test_every_earlier_migration_leads_to_the_current_schema(empty_dsn: str, migration: Migration) -> None:
    earlier = replace(load_scripts(), migrations=load_scripts().migrations[: migration.number], repeatables=())
    migrate(empty_dsn, scripts=earlier)
    migrate(empty_dsn)
    assert read_status(empty_dsn).pending == ()


def test_a_hold_that_was_confirmed_or_reached_before_migration_21_has_ended(empty_dsn: str) -> None:
    """Of a confirmed one an earlier guestd left the outcome as it was."""
    migrate(empty_dsn, scripts=replace(load_scripts(), migrations=load_scripts().migrations[:20], repeatables=()))
    since = datetime(2026, 12, 1, tzinfo=UTC)
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        for name in ("waits", "confirmed", "reached", "confirmed before"):
            machine = make_machine(connection, name=name, internalName=name, desiredStatus="off", desiredSince=since)
            event = {"name": name, "action": "hold", "reason": "", "outcome": "held", "occurredAt": since}
            insert(connection, "ReconcileEvent", machineId=machine, **event)
            insert(
                connection, "MachineDomain",
                machineId=machine, state="shutoff", reason="shutdown", vcpus=1, memoryKB=1, channel="absent",
                reachedSince=since if name == "reached" else None,
            )  # fmt: skip
        at = """UPDATE "Machine" SET "confirmedSince" = "desiredSince" - INTERVAL %s WHERE "name" = %s"""
        for ago, name in (("0 h", "confirmed"), ("1 h", "confirmed before")):
            connection.execute(at.replace("INTERVAL %s", f"INTERVAL '{ago}'").encode(), [name])
        migrate(empty_dsn)
        assert dict(rows(connection, 'SELECT "name", "outcome" FROM "ReconcileEvent"')) == {
            "waits": "held", "confirmed": "confirmed", "reached": "reached", "confirmed before": "held",
        }  # fmt: skip


def test_runs_at_the_same_time_take_turns(empty_dsn: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: migrate(empty_dsn), range(4)))
    assert sorted(len(applied) for applied in results)[:3] == [0, 0, 0]
    assert read_status(empty_dsn).pending == ()


def test_a_waiting_run_reports_it(empty_dsn: str) -> None:
    migrate(empty_dsn)
    reported: list[str] = []
    with psycopg.connect(empty_dsn, autocommit=True) as other, ThreadPoolExecutor(1) as pool:
        other.execute("SELECT pg_advisory_lock(%s)", (ADVISORY_LOCK_KEY,))

        def report(line: str) -> None:
            reported.append(line)
            other.execute("SELECT pg_advisory_unlock(%s)", (ADVISORY_LOCK_KEY,))

        assert pool.submit(migrate, empty_dsn, report=report).result(timeout=30) == []
    assert "waiting" in reported[0]


def test_a_migration_that_fails_half_way_leaves_nothing_behind(empty_dsn: str) -> None:
    good = "-- compat: 1\nCREATE TABLE one (id integer);"
    bad = "-- compat: 1\nCREATE TABLE two (id integer);\nSELECT 1 / 0;"
    with pytest.raises(StoreError, match=r"0002 step failed.*division by zero"):
        migrate(empty_dsn, scripts=with_migrations(good, bad))
    assert read_status(empty_dsn, scripts=with_migrations(good, bad)).version == 1
    with psycopg.connect(empty_dsn) as connection:
        names = {name for (name,) in rows(connection, TABLES)}
    assert "one" in names
    assert "two" not in names
    repaired = with_migrations(good, bad.replace("1 / 0", "1"))
    assert [str(a.script) for a in migrate(empty_dsn, scripts=repaired)] == ["0002 step"]


def test_an_edited_migration_is_named_and_nothing_runs(empty_dsn: str) -> None:
    migrate(empty_dsn, scripts=with_migrations("-- compat: 1\nSELECT 1;"))
    edited = with_migrations("-- compat: 1\nSELECT 2;", "-- compat: 1\nCREATE TABLE two (id integer);")
    with pytest.raises(StoreError, match="0001 step was edited"):
        migrate(empty_dsn, scripts=edited)
    assert read_status(empty_dsn, scripts=edited).version == 1


def test_a_database_ahead_of_the_program_is_refused_by_the_migrations_name(empty_dsn: str) -> None:
    one, two = "-- compat: 1\nSELECT 1;", "-- compat: 1\nSELECT 2;"
    migrate(empty_dsn, scripts=with_migrations(one, two))
    with pytest.raises(StoreError, match="0002 step, which this program does not know"):
        migrate(empty_dsn, scripts=with_migrations(one))


def test_a_changed_repeatable_runs_again(empty_dsn: str) -> None:
    migrate(empty_dsn)
    first, *rest = load_scripts().repeatables
    changed = replace(first, body=first.body + "\n-- changed\n")
    applied = migrate(empty_dsn, scripts=replace(load_scripts(), repeatables=(changed, *rest)))
    assert [a.script for a in applied] == [changed]


def test_a_statement_that_cannot_be_in_a_transaction_runs_outside_one(empty_dsn: str) -> None:
    table = "-- compat: 1\nCREATE TABLE one (id integer);"
    index = (
        "-- compat: 1\n-- no-transaction: writers must not wait\n"
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS one_idx ON one (id);"
    )
    migrate(empty_dsn, scripts=with_migrations(table, index))
    with psycopg.connect(empty_dsn) as connection:
        assert rows(connection, "SELECT to_regclass('one_idx') IS NOT NULL") == [(True,)]


def test_a_migration_stops_waiting_for_a_lock(empty_dsn: str) -> None:
    migrate(empty_dsn, scripts=with_migrations("-- compat: 1\nCREATE TABLE one (id integer);"))
    more = with_migrations(
        "-- compat: 1\nCREATE TABLE one (id integer);",
        "-- compat: 1\nSET LOCAL lock_timeout = '50ms';\nALTER TABLE one ADD COLUMN more integer;",
    )
    with psycopg.connect(empty_dsn) as reader:
        reader.execute("SELECT * FROM one")
        with pytest.raises(StoreError, match=r"0002 step could not get its locks.*run again"):
            migrate(empty_dsn, scripts=more)
    assert len(migrate(empty_dsn, scripts=more)) == 1


def test_a_database_of_prisma_is_refused_with_the_reason(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn) as connection:
        connection.execute("CREATE TABLE _prisma_migrations (id text)")
    with pytest.raises(ConfigurationError, match="managed by Prisma"):
        migrate(empty_dsn)


def test_a_role_with_a_search_path_of_its_own_gets_the_tables_in_public(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn) as connection:
        connection.execute("CREATE SCHEMA elsewhere")
    migrate(make_conninfo(empty_dsn, options="-c search_path=elsewhere,public"))
    with psycopg.connect(empty_dsn) as connection:
        assert rows(connection, "SELECT to_regclass('public.\"Machine\"') IS NOT NULL") == [(True,)]


def test_the_command_migrates_and_prints_its_status(empty_dsn: str) -> None:
    before = run("status", "--dsn", empty_dsn)
    assert (before.returncode, "pending  0001 machines" in before.stdout) == (1, True)
    first = run("migrate", "--dsn", empty_dsn)
    assert (first.returncode, first.stderr) == (0, "")
    assert "applied 0001 machines in" in first.stdout
    again = run("migrate", "--dsn", empty_dsn)
    assert (again.returncode, again.stdout) == (0, "nothing to do: the schema is current\n")
    after = run("status", "--dsn", empty_dsn)
    assert (after.returncode, "applied  0001 machines" in after.stdout) == (0, True)
    facts = json.loads(run("status", "--dsn", empty_dsn, "--json").stdout)
    assert list(facts) == ["version", "compat", "edition", "rollups", "applied", "pending", "problems"]
    assert (facts["version"], facts["pending"], facts["problems"]) == (len(load_scripts().migrations), [], [])
    assert facts["edition"] in {"apache", "timescale"}
    assert {"relation", "covered_until", "waiting", "oldest"} == set(facts["rollups"][0])


def test_the_command_without_a_database_says_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GUESTD_DATABASE_DSN", raising=False)
    result = run("migrate")
    assert (result.returncode, result.stdout) == (78, "")
    assert "GUESTD_DATABASE_DSN" in result.stderr


def test_an_unknown_command_is_a_usage_error() -> None:
    assert run("migrat").returncode == 2


def test_help_lists_the_exit_statuses() -> None:
    assert "exit status" in run("--help").stdout


def test_a_host_that_does_not_answer_is_named_in_one_sentence() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken and not listening: refused at once
        port = closed.getsockname()[1]
        result = run("migrate", "--dsn", f"host=127.0.0.1 port={port} user=postgres dbname=guestd")
    assert result.returncode == 1
    assert f"cannot reach database guestd on 127.0.0.1 port {port}" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_malformed_dsn_and_a_refused_login_ask_for_configuration(empty_dsn: str) -> None:
    assert run("status", "--dsn", "nonsense").returncode == 78
    refused = run("status", "--dsn", make_conninfo(empty_dsn, dbname="no_such_database"))
    assert refused.returncode == 78
    assert "does not exist" in refused.stderr


def test_the_error_of_a_server_without_timescaledb_names_the_setting() -> None:
    directory = Path(tempfile.mkdtemp(prefix="guestd-"))
    server = Cluster(directory, prefix=prefix(), settings={"fsync": "off", "shared_preload_libraries": ""})
    try:
        server.start()
        with pytest.raises(ConfigurationError, match=r"postgres.*shared_preload_libraries") as refusal:
            migrate(server.dsn("postgres"))
        assert "\n" not in str(refusal.value)
    finally:
        server.stop()
        shutil.rmtree(directory)
