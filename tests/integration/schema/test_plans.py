"""Each query of `gueststore.read_api`, and each view, uses the index or the roll-up that is meant for it.

There are enough rows for the planner to have a choice; auto_explain logs the plans of the statements in functions.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest

from gueststore.database import Connection
from gueststore.queries import query
from support.plans import explain, list_scans, load_plans
from support.rollups import roll_up
from support.schema import rows
from support.store import Server, database

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)
FILL = """
INSERT INTO "MachineTemplate" ("name", "cores", "ram", "storage") VALUES ('t', 1, 1, 1);
INSERT INTO "Department" ("name") VALUES ('Sales');
INSERT INTO "Machine" ("name", "internalName", "status", "templateId", "os", "departmentId")
SELECT 'vm-' || number, 'vm-' || number, 'running', template."id", 'linux', department."id"
FROM "MachineTemplate" AS template, "Department" AS department, generate_series(1, 30) AS number;
INSERT INTO "SystemMetrics" ("machineId", "timestamp", "cpuUsagePercent", "cpuCoresUsage", "totalMemoryKB",
    "usedMemoryKB", "availableMemoryKB", "diskUsageStats", "diskIOStats", "networkStats", "uptime")
SELECT machine."id", now() - place * INTERVAL '30 seconds', 1, '[]', 8000000, 4000000, 3000000, '[]', '{}', '[]', 1
FROM generate_series(240, 0, -1) AS place, "Machine" AS machine;
INSERT INTO "ProcessSnapshot" ("machineId", "timestamp", "processId", "name", "cpuUsagePercent", "memoryUsageKB",
    "status")
SELECT machine."id", now() - place * INTERVAL '5 minutes', process, 'process-' || process, 1, 1, 'sleeping'
FROM generate_series(24, 0, -1) AS place, "Machine" AS machine, generate_series(1, 40) AS process;
INSERT INTO "PortUsage" ("machineId", "timestamp", "ordinal", "port", "protocol", "state", "isListening")
SELECT machine."id", now() - place * INTERVAL '5 minutes', ordinal, ordinal, 'TCP', 'LISTEN', TRUE
FROM generate_series(24, 0, -1) AS place, "Machine" AS machine, generate_series(1, 10) AS ordinal;
INSERT INTO "ApplicationUsage" ("machineId", "executablePath", "applicationName")
SELECT machine."id", 'path-' || number, 'name-' || number FROM "Machine" AS machine, generate_series(1, 100) AS number;
INSERT INTO "ReconcileEvent" ("occurredAt", "machineId", "name", "action", "reason", "outcome")
SELECT now() - number * INTERVAL '1 minute', machine."id", 'vm', 'start', 'wanted', 'done'
FROM "Machine" AS machine, generate_series(1, 200) AS number;
INSERT INTO "WindowsService" ("machineId", "serviceName", "displayName", "serviceType", "startType",
    "currentState")
SELECT machine."id", 'service-' || number, 's', 'own', 'auto', 'running'
FROM "Machine" AS machine, generate_series(1, 20) AS number;
INSERT INTO "ServiceStateHistory" ("serviceId", "toState", "timestamp")
SELECT service."id", 'running', now() - number * INTERVAL '1 minute'
FROM "WindowsService" AS service, generate_series(1, 100) AS number;
"""
# A machine has a thirtieth of each: no query may read all rows of these.
LARGE = {
    "SystemMetrics", "ProcessSnapshot", "PortUsage", "SystemMetricsMinute", "ApplicationUsage", "ReconcileEvent",
    "ServiceStateHistory",
}  # fmt: skip
FIRST_PAGE = {"after_at": NOW - 900 * HOUR, "after_id": -1, "most": 100}
LAST_CHANGE = {"before_at": NOW + HOUR, "before_id": UUID(int=2**128 - 1), "most": 100}
PROCESS_SERIES = "SELECT * FROM guestd_process_series(%(machine_id)s, %(since)s, %(until)s)"
# The query, how far back, further parameters; the tables that it must read and those that it must not.
QUERIES: list[tuple[str, timedelta, dict[str, object], set[str], set[str]]] = [
    ("read_api/read_machines", HOUR, {"identifier": None}, {"SystemMetrics"}, set()),
    ("read_api/read_machines_without_data", HOUR, {}, {"SystemMetrics"}, set()),
    ("read_api/read_series", HOUR, {"points": 400}, {"SystemMetrics"}, {"SystemMetricsMinute"}),
    ("read_api/read_series", 24 * HOUR, {"points": 400}, {"SystemMetricsMinute"}, {"SystemMetricsHour"}),
    ("read_api/read_series", 900 * HOUR, {"points": 400}, {"SystemMetricsHour"}, set()),
    ("read_api/read_fleet", HOUR, {"points": 400}, {"SystemFleetMinute"}, {"SystemMetricsHour"}),
    ("read_api/read_fleet", 900 * HOUR, {"points": 400}, {"SystemFleetMinute"}, {"SystemMetricsHour"}),
    (
        "read_api/read_top_processes",
        HOUR,
        {"machine_ids": "one", "most": 10},
        {"ProcessSnapshot", "SystemMetrics"},
        {"ProcessUsageHour"},
    ),
    (
        "read_api/read_top_processes",
        24 * HOUR,
        {"machine_ids": "one", "most": 10},
        {"ProcessUsageHour"},
        {"ProcessSnapshot"},
    ),
    (
        "read_api/read_top_processes",
        24 * HOUR,
        {"machine_ids": None, "most": 10},
        {"ProcessFleetHour"},
        {"ProcessSnapshot", "ProcessUsageHour"},
    ),
    ("read_api/read_processes", HOUR, FIRST_PAGE, {"ProcessSnapshot"}, set()),
    ("read_api/read_ports", HOUR, {}, {"PortUsage"}, set()),
    ("read_api/read_applications", HOUR, {}, {"ApplicationUsage"}, set()),
    ("read_api/read_changes", HOUR, LAST_CHANGE, {"ReconcileEvent", "ServiceStateHistory"}, set()),
    (PROCESS_SERIES, HOUR, {}, {"ProcessSnapshot"}, {"ProcessUsageHour"}),
    (PROCESS_SERIES, 24 * HOUR, {}, {"ProcessUsageHour"}, set()),
]


@pytest.fixture(scope="module")
def filled(cluster: Server, template: str) -> Iterator[Connection]:
    """A store of thirty machines that have reported for some hours, rolled up; plans come as notices."""
    with database(cluster, template) as name, psycopg.connect(cluster.dsn(name), autocommit=True) as connection:
        for statement in FILL.split(";\n"):
            connection.execute(statement.encode())
        roll_up(connection, most=5000)
        connection.execute("ANALYZE")
        load_plans(connection)
        yield connection


@pytest.mark.parametrize(
    ("name", "span", "parameters", "reads", "avoids"),
    QUERIES,
    ids=[
        f"{name.removeprefix('read_api/')[:40]} {span / HOUR:.0f} h {parameters.get('machine_ids', '')}"
        for name, span, parameters, *_ in QUERIES
    ],
)
def test_a_query_uses_the_index_or_roll_up_that_is_meant_for_it(
    filled: Connection, name: str, span: timedelta, parameters: dict[str, object], reads: set[str], avoids: set[str]
) -> None:
    ((machine,),) = rows(filled, 'SELECT "id" FROM "Machine" ORDER BY "id" LIMIT 1')
    tables = dict(rows(filled, "SELECT chunk_name::text, hypertable_name::text FROM timescaledb_information.chunks"))
    given = {"machine_id": machine, "since": NOW - span, "until": NOW + HOUR} | parameters
    if given.get("machine_ids") == "one":
        given["machine_ids"] = [machine]
    scans = []
    for plan in explain(filled, query(name) if name.startswith("read_api/") else name.encode(), given):
        scans += [(tables.get(node["Relation Name"], node["Relation Name"]), node) for node in list_scans(plan)]
    read = {table for table, _ in scans}
    assert reads <= read
    assert not avoids & read
    for table, node in scans:
        assert table not in LARGE or node["Node Type"] in ("Index Scan", "Index Only Scan", "Bitmap Heap Scan"), node


def test_the_holds_of_a_machine_are_read_without_its_other_events(filled: Connection) -> None:
    given = {"host_id": None, "names": ["vm-1"], "uuids": []}
    (plan,) = explain(filled, query("vms/read_machines"), given)
    scans = [node for node in list_scans(plan) if node["Relation Name"] == "ReconcileEvent"]
    assert [node.get("Rows Removed by Filter", 0) for node in scans] == [0]
