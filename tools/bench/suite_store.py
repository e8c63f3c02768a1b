"""./dev bench store: how long queries take in a store of a thousand machines, and the bytes of a row.

On a private server (fsync on): an empty database is migrated; machines get 30 samples of 100 processes over the last
hour (3 million rows), and 24 hours of SystemMetrics and of roll-ups; one has 24 hours of processes and ports as well.
Then each query is run, and each panel of deploy/grafana over 24 hours, median of 9.
"""

import argparse
import statistics
import time
from typing import Any

import psycopg
from tools.bench.server import migrated_database, own_server, roll_up
from tools.bench.suite import run
from tools.docs.panels import BOARDS, fill_in_macros

ROUNDS = 9
MACHINES = """
WITH template AS (
    INSERT INTO "MachineTemplate" ("name", "cores", "ram", "storage") VALUES ('bench', 1, 1, 1) RETURNING "id"
)
INSERT INTO "Machine" ("name", "internalName", "status", "templateId", "os")
SELECT 'bench ' || number, 'bench-' || number, 'running', template."id", 'linux'
FROM template, generate_series(1, %(machines)s) AS number
"""
SYSTEM = """
INSERT INTO "SystemMetrics" ("machineId", "timestamp", "cpuUsagePercent", "cpuCoresUsage", "totalMemoryKB",
    "usedMemoryKB", "availableMemoryKB", "diskUsageStats", "diskIOStats", "networkStats", "uptime", "loadAverage")
SELECT machine."id", now() - minute * INTERVAL '1 minute', random() * 100, '[1, 2, 3, 4]', 8000000, 4000000, 3000000,
    '[{{"mountPoint": "/", "totalGB": 100, "usedGB": 50, "availableGB": 50}}]',
    '{{"readBytesPerSec": 1000, "writeBytesPerSec": 2000, "readOpsPerSec": 1, "writeOpsPerSec": 2}}',
    '[{{"interface": "eth0", "bytesReceived": 1000, "bytesSent": 2000, "packetsReceived": 10, "packetsSent": 20}}]',
    1000, '{{"load1min": 1, "load5min": 1, "load15min": 1}}'
FROM generate_series({oldest}, {newest}, -1) AS minute, "Machine" AS machine
"""
PROCESSES = """
INSERT INTO "ProcessSnapshot" ("machineId", "timestamp", "processId", "parentPid", "name", "executablePath",
    "commandLine", "cpuUsagePercent", "memoryUsageKB", "diskReadBytes", "diskWriteBytes", "status", "startTime")
SELECT machine."id", now() - minute * INTERVAL '1 minute', process, 1, 'process-' || process % 60,
    '/usr/lib/program-' || process, '/usr/lib/program --with=some --options=that-are --as-long-as=they-are',
    random() * 20, process * 1000, 1000000, 2000000, 'sleeping', now() - INTERVAL '3 days'
FROM generate_series({oldest}, {newest}, -{step}) AS minute, "Machine" AS machine, generate_series(1, 100) AS process
WHERE {whose}
"""
PORTS = """
INSERT INTO "PortUsage" ("machineId", "timestamp", "ordinal", "port", "protocol", "state", "isListening")
SELECT machine."id", now() - minute * INTERVAL '1 minute', ordinal, 1000 + ordinal, 'TCP', 'LISTEN', TRUE
FROM generate_series(1439, 0, -1) AS minute, "Machine" AS machine, generate_series(1, 20) AS ordinal
WHERE {whose}
"""
# As many hours and minutes as a day has, beside those that were rolled up from the above.
DAY = """
INSERT INTO "{table}" SELECT machine."id", date_trunc('{unit}', now(), 'UTC') - place * INTERVAL '1 {unit}', {samples},
    random() * 100, 100, 4000000, 4000000, 8000000, 3000000, NULL, 1000, 2000, 1000, 2000, 1
FROM generate_series({first}, {last}) AS place, "Machine" AS machine ON CONFLICT DO NOTHING
"""
PROCESS_HOURS = """
INSERT INTO "ProcessUsageHour" SELECT machine."id", date_trunc('hour', now(), 'UTC') - hour * INTERVAL '1 hour',
    'process-' || number, 60, random() * 1000, 20, 60000000, 100000
FROM generate_series(1, 24) AS hour, "Machine" AS machine, generate_series(0, 59) AS number ON CONFLICT DO NOTHING
"""
FLEET_DAY = """SELECT guestd_note_fleet(ARRAY(SELECT DISTINCT "bucket" FROM "SystemMetricsHour"))"""
# What it answers, the most it may take in ms (None: no target), and the query.
QUERIES: list[tuple[str, float | None, str]] = [
    (
        "latest sample of all machines",
        20,
        'SELECT "id", "timestamp", "cpuUsagePercent", "usedMemoryKB" FROM "MachineLatest"',
    ),
    (
        "one machine's processes, last hour, by the minute",
        5,
        """SELECT "timestamp", sum("cpuUsagePercent") FROM "ProcessSnapshot"
        WHERE "machineId" = '$machine' AND "timestamp" >= $__timeFrom() GROUP BY 1 ORDER BY 1""",
    ),
    (
        "one machine's series, last hour",
        5,
        "SELECT * FROM guestd_machine_series('$machine', $__timeFrom(), $__timeTo())",
    ),
    (
        "fleet CPU per minute, last hour, from the roll-up",
        20,
        """SELECT "bucket", "cpuUsagePercentAvg" FROM "SystemFleetMinute"
        WHERE "bucket" >= $__timeFrom() ORDER BY 1""",
    ),
    (
        "the same up to the last sample",
        100,
        "SELECT * FROM guestd_fleet_series($__timeFrom(), $__timeTo())",
    ),
    ("fleet by the minute, 24 h", 100, "SELECT * FROM guestd_fleet_series($__timeFrom(), $__timeTo())"),
    (
        "one machine's series, 24 h",
        100,
        "SELECT * FROM guestd_machine_series('$machine', $__timeFrom(), $__timeTo())",
    ),
    (
        "top processes of a machine, last hour",
        100,
        "SELECT * FROM guestd_top_processes(ARRAY['$machine'::uuid], $__timeFrom(), $__timeTo())",
    ),
    (
        "top processes of the fleet, last 5 minutes",
        None,
        "SELECT * FROM guestd_top_processes(NULL, now() - INTERVAL '5 minutes', now())",
    ),
    (
        "top processes of the fleet, 24 h",
        100,
        "SELECT * FROM guestd_top_processes(NULL, $__timeFrom(), $__timeTo())",
    ),
    ("machines without data", 100, 'SELECT * FROM "MachineWithoutData"'),
    *((f"panel: {panel.title}", 100, panel.sql) for board in BOARDS for panel in board.panels if panel.sql),
]


def main() -> None:
    """Fill a store, and run each query."""
    run(__doc__, _add_options, _measure)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--machines", type=int, default=1000, help="machines, with 3,000 rows of processes each")


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with own_server() as (cluster, _):
        began = time.monotonic()
        dsn = migrated_database(cluster, "bench")
        figures: dict[str, Any] = {"migrate_empty_s": round(time.monotonic() - began, 2)}
        with psycopg.connect(dsn, autocommit=True) as connection:
            figures |= _fill(connection, arguments.machines)
            figures["bytes_a_row"] = _bytes_a_row(connection)
            one = _one_of(connection)
            figures["ms"] = {
                name: _median_ms(connection, fill_in_macros(query, one, hours=1 if "last hour" in name else 24))
                for name, _, query in QUERIES
            }
    _print(figures)
    return figures


def _fill(connection: psycopg.Connection[Any], machines: int) -> dict[str, Any]:
    connection.execute(MACHINES, {"machines": machines})
    began = time.monotonic()
    connection.execute(SYSTEM.format(oldest=119, newest=0).encode())
    connection.execute(PROCESSES.format(oldest=58, newest=0, step=2, whose="TRUE").encode())
    filled = time.monotonic()
    pairs = roll_up(connection)
    rolled_up = time.monotonic()
    _fill_day(connection)
    roll_up(connection)
    connection.execute("VACUUM ANALYZE")
    return {"insert_s": round(filled - began, 1), "roll_up_s": round(rolled_up - filled, 1), "rolled_up": pairs}


def _fill_day(connection: psycopg.Connection[Any]) -> None:
    """The rest of 24 hours: samples that are not noted for the roll-ups, and roll-ups without samples: quicker."""
    connection.execute("SET session_replication_role = replica")
    connection.execute(SYSTEM.format(oldest=1439, newest=120).encode())
    connection.execute("RESET session_replication_role")
    whose = f"machine.\"id\" = '{_one_of(connection)}'"
    connection.execute(PROCESSES.format(oldest=1439, newest=59, step=1, whose=whose).encode())
    connection.execute(PORTS.format(whose=whose).encode())
    day = {"SystemMetricsMinute": ("minute", 1, 110, 1440), "SystemMetricsHour": ("hour", 60, 1, 24)}
    for table, (unit, samples, first, last) in day.items():
        fill = DAY.format(table=table, unit=unit, samples=samples, first=first, last=last)
        connection.execute(fill.encode())
    connection.execute(PROCESS_HOURS.encode())
    connection.execute(FLEET_DAY.encode())


def _one_of(connection: psycopg.Connection[Any]) -> str:
    """The machine that `$machine` stands for."""
    found = connection.execute(
        'SELECT "id" FROM "Machine" ORDER BY "id" LIMIT 1 OFFSET (SELECT count(*) / 2 FROM "Machine")'
    )
    return str(found.fetchall()[0][0])


def _bytes_a_row(connection: psycopg.Connection[Any]) -> dict[str, float]:
    series = ("SystemMetrics", "ProcessSnapshot", "PortUsage")
    rolled_up = (
        "SystemMetricsMinute",
        "SystemMetricsHour",
        "ProcessUsageHour",
        "SystemFleetMinute",
        "ProcessFleetHour",
    )
    sizes = {}
    for table in (*series, *rolled_up):
        sized = f"""SELECT hypertable_size('"{table}"')::float8 / (SELECT count(*) FROM "{table}")"""
        sizes[table] = round(connection.execute(sized.encode()).fetchall()[0][0], 1)
    return sizes


def _median_ms(connection: psycopg.Connection[Any], query: str) -> float:
    took = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        connection.execute(query.encode()).fetchall()
        took.append(time.perf_counter() - began)
    return round(statistics.median(took) * 1000, 1)


def _print(figures: dict[str, Any]) -> None:
    print(f"empty database migrated in {figures['migrate_empty_s']} s (at most 5)")
    print(f"{figures['rolled_up']} minutes and hours of machines rolled up in {figures['roll_up_s']} s")
    for table, size in figures["bytes_a_row"].items():
        print(f"{table}: {size} bytes a row")
    for name, most, _ in QUERIES:
        print(f"{name}: {figures['ms'][name]} ms" + ("" if most is None else f" (at most {most})"))


if __name__ == "__main__":
    main()
