"""The work of every statement grows no faster than what one machine reports, whatever statistics the planner has.

Two stores, in one of which a machine reports twice as much: statements are compared by the rows that their plans
returned and compared, not by time.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from tools.bench.hostile_store import fill_store, stage_inventories

from gueststore.database import Connection
from gueststore.queries import query
from support.plans import count_work, explain, load_plans
from support.schema import make_machine, make_template
from support.store import Server, database

# Shares of the limits; twice the input.
SHARES = (0.05, 0.1)
# Linear work doubles; quadratic work is four times as much. Sorting and an index's depth need some room.
MOST_GROWTH = 2.5
NOW = datetime.now(UTC)
GIVEN: dict[str, Any] = {
    "most": 1000,
    "points": 400,
    "identifier": None,
    "since": NOW - timedelta(days=1),
    "until": NOW + timedelta(hours=1),
    "after_at": NOW - timedelta(days=1),
    "after_id": -1,
    "before_at": NOW + timedelta(hours=1),
    "before_id": UUID(int=2**128 - 1),
    "keep_days": 30,
    "keep_per_machine": 1000,
    "max_frames": 10_000,
    "max_bytes": 2**30,
    "name": "h",
    "uri": "",
    "history_per_day": 1000,
}
UPKEEP = (
    "maintenance/merge_ports",
    # Again: with rows that the planner has no statistics of.
    "maintenance/merge_ports",
    "maintenance/delete_excess_ports",
    "rollups/roll_up_minutes",
    "rollups/roll_up_hours",
    "rollups/roll_up_fleet",
    "rollups/read_rollups",
    "maintenance/read_retention",
    "maintenance/read_machines_without_data",
    "maintenance/read_agent_counts",
    "maintenance/delete_old_guest_events",
    "maintenance/delete_excess_frames",
)
PRUNED = ("ApplicationUsage", "QuarantinedFrame", "VmPort", "WindowsService", "ServiceStateHistory")
ALL_OLD = (
    'UPDATE "RetentionSetting" SET "keepDays" = 1',
    """UPDATE "ApplicationUsage" SET "isActive" = FALSE, "lastSeen" = now() - INTERVAL '2 days'""",
    """UPDATE "VmPort" SET "running" = FALSE, "lastSeen" = now() - INTERVAL '2 days'""",
    """UPDATE "QuarantinedFrame" SET "createdAt" = now() - INTERVAL '2 days'""",
    """UPDATE "ServiceStateHistory" SET "timestamp" = now() - INTERVAL '2 days'""",
    """UPDATE "WindowsService" SET "lastSeen" = now() - INTERVAL '2 days' WHERE "serviceName" <> 'service-1'""",
)
READ = (
    "read_api/read_applications",
    "read_api/read_changes",
    "read_api/read_fleet",
    "read_api/read_machines",
    "read_api/read_machines_without_data",
    "read_api/read_ports",
    "read_api/read_processes",
    "read_api/read_series",
    "read_api/read_top_processes",
)
VIEWS = (
    "ApplicationUse",
    "ApplicationUsage_1d",
    "ListeningPort",
    "ListeningPort_1d",
    "ProcessUsage_1h",
    "StateChange",
    "SystemMetrics_1h",
    "SystemMetrics_1m",
)
INGEST = (
    "ingest/limit_services",
    "ingest/lock_services",
    "ingest/merge_services",
    "ingest/limit_applications",
    "ingest/merge_applications",
)
Stores = list[tuple[Connection, UUID, float]]


@pytest.fixture
def stores(cluster: Server, template: str) -> Iterator[Stores]:
    """The two stores, never analysed: each with the machine that reports much and its share."""
    with ExitStack() as stack:
        pair = []
        for share in SHARES:
            name = stack.enter_context(database(cluster, template))
            connection = stack.enter_context(psycopg.connect(cluster.dsn(name), autocommit=True))
            # It would analyse, and take away dead rows, which count as work, from one of the two.
            for (table,) in connection.execute(
                "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
            ).fetchall():
                connection.execute(SQL("ALTER TABLE {} SET (autovacuum_enabled = off)").format(Identifier(table)))
            template_id = make_template(connection)
            hostile, *_others = [make_machine(connection, templateId=template_id) for _ in range(3)]
            fill_store(connection, hostile, shares=share)
            load_plans(connection)
            pair.append((connection, hostile, share))
        yield pair


def assert_linear(stores: Stores, name: str, statement: bytes) -> None:
    assert_doubled(name, [work_of(connection, machine, statement) for connection, machine, _ in stores])


def assert_doubled(name: str, works: list[int]) -> None:
    less, more = works
    # What is so little does not matter, and is mostly the other machines'.
    assert more <= max(2000, MOST_GROWTH * less), f"{name}: {less}, then {more}"


def work_of(connection: Connection, machine: UUID, statement: bytes) -> int:
    given = GIVEN | {"machine_id": machine, "machine_ids": [machine]}
    return count_work(explain(connection, statement, given))


def test_upkeep_does_no_more_than_linear_work(stores: Stores) -> None:
    for name in UPKEEP:
        assert_linear(stores, name, query(name))
    for connection, *_ in stores:
        for statement in ALL_OLD:
            connection.execute(statement.encode())
    for relation in PRUNED:
        assert_linear(stores, relation, f"SELECT guestd_enforce_retention('{relation}')".encode())


def test_reading_does_no_more_than_linear_work(stores: Stores) -> None:
    for name in READ:
        assert_linear(stores, name, query(name))
    for view in VIEWS:
        assert_linear(stores, view, f'SELECT * FROM "{view}" WHERE "machineId" = %(machine_id)s'.encode())


def test_merging_inventories_does_no_more_than_linear_work(stores: Stores) -> None:
    works: dict[str, list[int]] = {name: [] for name in INGEST}
    for connection, machine, share in stores:
        with connection.transaction():
            stage_inventories(connection, machine, shares=share)
            for name, each in works.items():
                each.append(work_of(connection, machine, query(name)))
    for name, each in works.items():
        assert_doubled(name, each)
