"""A machine whose every figure is at the extreme of its column's type breaks no question, for itself or for others.

guestd bounds figures when it makes rows; rows of before, or of another program, have whatever their columns allow.
"""

import itertools
import re
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb
from tools.docs.panels import BOARDS, fill_in_macros

from gueststore.database import Connection
from gueststore.queries import query
from support.models import REQUIRED
from support.rollups import roll_up
from support.schema import insert, make_machine, rows

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)
QUERIES = Path(__file__).parents[3] / "sql/queries"


# By kind: the values of int4, int8, float8 and of numbers in JSON.
EXTREMES: dict[str, tuple[int, int, float, str]] = {
    "largest": (2**31 - 1, 2**63 - 1, 1.7976931348623157e308, "1e400"),
    "smallest": (-(2**31), -(2**63), -1.7976931348623157e308, "-1e400"),
    "NaN": (2**31 - 1, 2**63 - 1, float("nan"), "1e308"),
    "infinite": (2**31 - 1, 2**63 - 1, float("inf"), "1e4000"),
    "least above zero": (1, 1, 5e-324, "1e-400"),
    "zero": (0, 0, 0.0, "0"),
}
# Of a difference both sides.
TURNS = {"in turn": ("largest", "smallest")}
JSON_COLUMNS = {
    "cpuCoresUsage": "[{0}]",
    "diskUsageStats": '[{{"mountPoint": "/", "totalGB": {0}, "usedGB": {0}, "availableGB": {0}}}]',
    "diskIOStats": '{{"readBytesPerSec": {0}, "writeBytesPerSec": {0}}}',
    "networkStats": '[{{"interface": "a", "bytesReceived": {0}, "bytesSent": {0}}},'
    ' {{"interface": "b", "bytesReceived": {0}, "bytesSent": {0}}}]',
    "loadAverage": '{{"load1min": {0}, "load5min": {0}, "load15min": {0}}}',
}
# The roll-ups refuse nothing: they are written by functions. Their own rows of before are at these hours.
ROLLED_UP_BEFORE = [NOW.replace(minute=0, second=0, microsecond=0) - hours * HOUR for hours in (5, 6, 300)]
SAMPLED = [NOW - timedelta(seconds=seconds) for seconds in (20, 30, 3 * 3600, 3 * 3600 + 10, 4 * 3600)]
# What has no figures of a guest, or is what the roll-ups wait for.
LEFT_OUT = {"RollupPending", "RollupState", "RetentionSetting", "Machine", "DeletedMachine", "User"}
OF_MACHINE = {"machineId", "vmId"}


def figures(connection: Connection, table: str, kind: str) -> dict[str, Any]:
    """A table's columns at the extremes that it accepts, each tried alone."""
    int4, int8, float8, number = EXTREMES[kind]
    by_type: dict[str, Any] = {"integer": int4, "bigint": int8, "double precision": float8, "jsonb": number}
    columns = rows(
        connection,
        "SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'"
        " AND table_name = %s AND data_type = ANY(%s) AND identity_generation IS NULL",
        table, list(by_type),
    )  # fmt: skip
    accepted = {}
    for column, type_name in columns:
        if type_name == "jsonb" and column not in JSON_COLUMNS:
            continue
        value = by_type[type_name]
        if type_name == "jsonb":
            value = Jsonb(JSON_COLUMNS[column].format(number), dumps=lambda text: text)
        try:
            with connection.transaction(force_rollback=True):
                insert(connection, table, **REQUIRED[table](connection) | {column: value})
        except psycopg.errors.CheckViolation:
            continue
        accepted[column] = value
    return accepted


def fill(connection: Connection, machines: list[uuid.UUID], kind: str) -> None:
    """Rows of each table for each machine, with every column at its extreme; the samples rolled up."""
    for table in sorted(REQUIRED.keys() - LEFT_OUT):
        accepted = itertools.cycle([figures(connection, table, each) for each in TURNS.get(kind, (kind,))])
        for machine in machines:
            with connection.transaction(force_rollback=True):
                required = REQUIRED[table](connection)
            if "bucket" in required:
                times = [{"bucket": bucket} for bucket in ROLLED_UP_BEFORE]
            elif "timestamp" in columns_of(connection, table) and "machineId" in required:
                times = [{"timestamp": moment} for moment in SAMPLED]
            else:
                times = [{}]
            for time in times:
                row = REQUIRED[table](connection) | next(accepted) | time
                row |= dict.fromkeys(OF_MACHINE & row.keys(), machine)
                if table == "PortUsage":
                    row["isListening"] = True
                # Fleet roll-ups have no machine: the second one's rows are the first one's.
                if OF_MACHINE & row.keys() or machine == machines[0]:
                    insert(connection, table, **row)

    for values in (figures(connection, "Machine", each) for each in TURNS.get(kind, (kind,))):
        for column, value in values.items():
            update = sql.SQL('UPDATE "Machine" SET {} = %s').format(sql.Identifier(column))
            connection.execute(update, [value])


def columns_of(connection: Connection, table: str) -> set[str]:
    select = "SELECT column_name FROM information_schema.columns WHERE table_name = %s AND table_schema = 'public'"
    return {name for (name,) in rows(connection, select, table)}


@pytest.fixture(params=[*EXTREMES, *TURNS])
def extreme(connection: Connection, request: pytest.FixtureRequest) -> tuple[Connection, list[uuid.UUID]]:
    """A store with two such machines, and one that reports what a machine does."""
    connection.execute("CREATE EXTENSION pg_stat_statements")
    machines = [make_machine(connection, name=f"vm-{number}") for number in range(2)]
    fill(connection, machines, request.param)
    return connection, machines


def test_the_roll_ups_go_on(extreme: tuple[Connection, list[uuid.UUID]]) -> None:
    connection, _ = extreme
    roll_up(connection)
    assert (
        rows(
            connection,
            """SELECT 1 FROM "RollupPending" WHERE "unit" <> 'minute' AND "bucket" < now() - INTERVAL '2 hours'""",
        )
        == []
    )


# A batch of inventories that changes the state of every service.
INCOMING = (
    query("ingest/create_incoming").decode()
    + """
INSERT INTO incoming_service ("machineId", "receivedAt", "serviceName", "displayName", "startType", "serviceType",
    "currentState", "isDefaultService")
SELECT "machineId", now() + INTERVAL '1 minute', "serviceName", 's', 's', 's', 'another', FALSE FROM "WindowsService";
INSERT INTO incoming_application ("machineId", "receivedAt", "executablePath", "applicationName", "accessCount",
    "totalUsageMinutes", "isActive")
SELECT "machineId", now() + INTERVAL '1 minute', "executablePath", 'a', 2147483647, 2147483647, TRUE
FROM "ApplicationUsage";
"""
)
JSON_PARAMETERS = ("refusals", "states", "ports", "actions", "filters", "outcomes")


class Given(dict[str, Any]):
    """NULL for parameters that are not here."""

    def __missing__(self, name: str) -> None:
        return None


def given(machines: list[uuid.UUID], hours: int) -> Given:
    """A value for every parameter of sql/queries."""
    machine = machines[0]
    nobody, text = uuid.uuid4(), "nothing"
    arrays = {
        name: [value] * len(machines)
        for value, names in (
            (machine, "process_machines port_machines application_machines"),
            (NOW, "timestamps received_ats process_times port_times application_times"),
            (1, "digests process_keys port_keys"),
            ("guestd", "names types severities messages dialects application_keys"),
            ("{}", "details"),
        )
        for name in names.split()
    }
    uuids = dict.fromkeys(("host_id", "spool_id", "id", "event_id", "department_id", "holder", "domain_uuid"), nobody)
    times = {"earliest": NOW - HOUR, "since": NOW - hours * HOUR, "older_than": NOW - 900 * 24 * HOUR}
    times |= dict.fromkeys(("latest", "until", "at", "received_at"), NOW)
    texts = (
        "name",
        "uri",
        "reason",
        "checksum",
        "detail",
        "body",
        "outcome",
        "problem",
        "state",
        "action",
        "channel",
        "application_name",
        "graphic_host",
    )
    numbers = (
        "lane",
        "committed_seq",
        "expected_seq",
        "seq",
        "version",
        "compat",
        "port",
        "pid",
        "attempt",
        "vcpus",
        "digest",
        "memory_kib",
    )
    return Given(
        {
            **arrays,
            **uuids,
            **times,
            **dict.fromkeys(texts, text),
            **dict.fromkeys(numbers, 1),
            **dict.fromkeys(JSON_PARAMETERS, Jsonb([])),
            **dict.fromkeys(("identifier", "before", "after")),
            "machine_id": machine,
            "machine_ids": machines,
            "ids": [uuid.uuid4() for _ in machines],
            "keep_days": 36500,
            "keep_per_machine": 10**6,
            "max_frames": 2**31 - 1,
            "max_bytes": 2**62,
            "after_at": NOW - 900 * HOUR,
            "after_id": -1,
            "before_at": NOW + HOUR,
            "before_id": nobody,
            "relation": "QuarantinedFrame",
            "protocol": "vnc",
            "desired": "running",
            "stored": True,
            "most": 10,
            "points": 400,
            "healthy_seconds": 60,
            "number": 10**6,
            "mean_ms": 1.0,
            "payload": b"",
        }
    )


def answer(
    connection: Connection, question: str, parameters: Given | None = None, *, strict: bool = True
) -> str | None:
    """Run statements and read the rows, without keeping changes; the error, if there is one."""
    try:
        with connection.transaction(force_rollback=True), psycopg.ClientCursor(connection) as cursor:
            cursor.execute(question.encode(), parameters if "%(" in question else None)
            while cursor.nextset():
                pass
            if cursor.description:
                cursor.fetchall()
    except psycopg.Error as exc:
        # Of the queries that are asked here with values of another kind only what a figure may be the cause of.
        if not strict and (exc.sqlstate or "")[:2] not in ("22", "54"):
            return None
        return f"{exc.sqlstate} {' '.join(re.sub('0{20,}', '0..0', str(exc)).split())}"
    return None


STRICT = ("read_api/", "rollups/", "maintenance/", "doctor/", "ingest/merge_")
SPANS = (1, 3, 24, 900)


def test_every_question_is_answered(extreme: tuple[Connection, list[uuid.UUID]]) -> None:
    connection, machines = extreme
    failed: dict[str, str | None] = {}
    for rolled_up in (False, True):
        if rolled_up:
            roll_up(connection)
        for path in sorted(QUERIES.rglob("*.sql")):
            name = str(path.relative_to(QUERIES).with_suffix(""))
            for hours in SPANS:
                parameters = given(machines, hours)
                if name == "filters/read_rules":
                    parameters["filters"] = machines
                text = INCOMING * name.startswith("ingest/") + query(name).decode()
                failed[name] = failed.get(name) or answer(connection, text, parameters, strict=name.startswith(STRICT))
        for (view,) in rows(connection, "SELECT viewname FROM pg_views WHERE schemaname = 'public'"):
            failed[view] = failed.get(view) or answer(connection, f'SELECT * FROM "{view}"')
        for hours in SPANS:
            window = f"now() - INTERVAL '{hours} hours', now()"
            for question in (
                f"SELECT * FROM guestd_process_series('{machines[0]}', {window})",
                f"SELECT * FROM guestd_fleet_series({window})",
            ):
                failed[question] = answer(connection, question)
            for board in BOARDS:
                for panel in board.panels:
                    if panel.sql:
                        title = f"{board.uid}: {panel.title}"
                        asked = fill_in_macros(panel.sql, machines[0], hours)
                        failed[title] = failed.get(title) or answer(connection, asked)
    problems = [f"{name}: {error}" for name, error in failed.items() if error]
    assert not problems, "\n".join(problems)
