"""./dev bench upkeep: what a machine at all its limits costs ingest, upkeep and the queries of people.

On a private server, without statistics of the tables: one machine has as many ports, processes, applications, services,
events and quarantined frames as its limits admit, the others report as usual. Each statement is run and rolled back,
except those that later ones build on; one that takes longer than --limit is ended.
"""

import argparse
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from tools.bench.hostile_store import fill_store, stage_inventories
from tools.bench.server import SEED, own_store
from tools.bench.suite import print_figures, run

from guestd.simulator import machine_ids
from gueststore.queries import query

UPKEEP = (
    "maintenance/merge_ports",
    "maintenance/merge_ports",
    "rollups/roll_up_minutes",
    "rollups/roll_up_hours",
    "rollups/roll_up_fleet",
    "maintenance/read_retention",
    "maintenance/read_machines_without_data",
    "maintenance/read_agent_counts",
    "maintenance/delete_old_guest_events",
    "maintenance/delete_excess_frames",
)
READ = (
    "read_applications",
    "read_changes",
    "read_fleet",
    "read_machines",
    "read_machines_without_data",
    "read_ports",
    "read_processes",
    "read_series",
    "read_top_processes",
)
VIEWS = ("ApplicationUsage_1d", "ListeningPort_1d", "ProcessUsage_1h", "StateChange", "SystemMetrics_1h")
INGEST = ("limit_services", "lock_services", "merge_services", "limit_applications", "merge_applications")
OTHERS = ("RetentionDue", "MachineLatest", "MachineState", "ListeningPort")


def main() -> None:
    """Fill a store and time every statement."""
    run(__doc__, _add_options, _measure)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--machines", type=int, default=20, help="machines, one of them at its limits")
    parser.add_argument("--share", type=float, default=1.0, help="share of the limits that it has reached, 0 to 1")
    parser.add_argument("--limit", type=int, default=300, help="seconds after which a statement is ended")


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    hostile, *_others = machine_ids(arguments.machines, SEED)
    with own_store(arguments.machines) as (dsn, _), psycopg.connect(dsn, autocommit=True) as connection:
        # The planner has no statistics: a guest may add its rows between two runs of autovacuum.
        connection.execute('ALTER TABLE "VmPort" SET (autovacuum_enabled = off)')
        fill_store(connection, hostile, shares=arguments.share)
        connection.execute(f"SET statement_timeout = '{arguments.limit}s'".encode())
        figures = (
            _time_upkeep(connection) | _time_reading(connection, hostile) | _time_ingest(connection, hostile, arguments)
        )
    print_figures(figures)
    return {"ms": figures}


def _time_upkeep(connection: psycopg.Connection[Any]) -> dict[str, float]:
    given = {"most": 1000, "name": "h", "uri": "", "keep_days": 30, "keep_per_machine": 1000, "max_frames": 10_000}
    given["max_bytes"] = 2**30
    figures: dict[str, float] = {}
    for name in UPKEEP:
        again = f"{name} again" if name in figures else name
        figures[again] = _ms(connection, query(name), given)
    for (relation,) in connection.execute('SELECT "relation" FROM "RetentionSetting" ORDER BY 1').fetchall():
        figures[f"retention {relation}"] = _ms(connection, b"SELECT guestd_enforce_retention(%(r)s)", {"r": relation})
    return figures


def _time_reading(connection: psycopg.Connection[Any], machine: UUID) -> dict[str, float]:
    now = datetime.now(UTC)
    given = {
        "machine_id": machine, "machine_ids": [machine], "points": 400, "most": 100, "identifier": None,
        "since": now - timedelta(days=1), "until": now + timedelta(hours=1),
        "after_at": now - timedelta(days=1), "after_id": -1,
        "before_at": now + timedelta(hours=1), "before_id": UUID(int=2**128 - 1),
    }  # fmt: skip
    figures = {f"read_api/{name}": _ms(connection, query(f"read_api/{name}"), given) for name in READ}
    for view in VIEWS:
        figures[view] = _ms(connection, f'SELECT * FROM "{view}" WHERE "machineId" = %(machine_id)s'.encode(), given)
    for view in OTHERS:
        figures[view] = _ms(connection, f'SELECT * FROM "{view}"'.encode(), None)
    return figures


def _time_ingest(connection: psycopg.Connection[Any], machine: UUID, arguments: argparse.Namespace) -> dict[str, float]:
    with connection.transaction(force_rollback=True):
        stage_inventories(connection, machine, shares=arguments.share)
        given = {"most": 10_000, "history_per_day": 1000}
        return {f"ingest/{name}": _ms(connection, query(f"ingest/{name}"), given) for name in INGEST}


def _ms(connection: psycopg.Connection[Any], statement: bytes, given: dict[str, Any] | None) -> float:
    """Milliseconds of a statement; infinity when it was ended at the limit."""
    began = time.perf_counter()
    try:
        with connection.transaction():
            cursor = connection.execute(statement, given)
            if cursor.description:
                cursor.fetchall()
    except psycopg.errors.QueryCanceled:
        return float("inf")
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()
