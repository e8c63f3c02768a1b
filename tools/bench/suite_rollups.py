"""./dev bench rollups: what noting samples for the roll-ups adds to a batch, and how long a roll-up takes.

On a private server (fsync on): batches of 100 messages, one of each machine, with 100 processes and 10 ports, in one
transaction by COPY; every second one with the trigger of SystemMetrics. Then what was noted is rolled up.
"""

import argparse
import statistics
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from tools.bench.server import SEED, own_store, roll_up
from tools.bench.suite import run

from guestd.simulator import machine_ids

PROCESSES = 100
PORTS = 10
SYSTEM = """COPY "SystemMetrics" ("machineId", "timestamp", "cpuUsagePercent", "cpuCoresUsage", "totalMemoryKB",
    "usedMemoryKB", "availableMemoryKB", "diskUsageStats", "diskIOStats", "networkStats", "uptime") FROM STDIN"""
PROCESS = """COPY "ProcessSnapshot" ("machineId", "timestamp", "processId", "name", "executablePath", "commandLine",
    "cpuUsagePercent", "memoryUsageKB", "status") FROM STDIN"""
PORT = """COPY "PortUsage" ("machineId", "timestamp", "ordinal", "port", "protocol", "state", "isListening")
    FROM STDIN"""
# With it no trigger fires, as in a replica that is fed by another's changes.
WITHOUT, WITH = "replica", "origin"


def main() -> None:
    """Write the pairs of batches, then roll them up."""
    run(__doc__, _add_options, _measure)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--machines", type=int, default=100, help="machines, with a message of each in a batch")
    parser.add_argument("--batches", type=int, default=60, help="batches with the trigger, and as many without")


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    machines = machine_ids(arguments.machines, SEED)
    with own_store(arguments.machines) as (dsn, _), psycopg.connect(dsn, autocommit=True) as connection:
        took: dict[str, list[float]] = {WITHOUT: [], WITH: []}
        # Long ago, a second apart: minutes that are closed.
        began = datetime.now(UTC) - timedelta(hours=3)
        for number in range(2 * arguments.batches):
            role = (WITHOUT, WITH)[number % 2]
            took[role].append(_batch_ms(connection, role, _rendered(machines, began + timedelta(seconds=number))))
        median = {role: statistics.median(each) for role, each in took.items()}
        # Pairs: other load on the machine affects both of one alike.
        added = statistics.median(with_it / without for without, with_it in zip(*took.values(), strict=True)) - 1
        began_seconds = time.perf_counter()
        pairs = roll_up(connection)
        roll_up_ms = (time.perf_counter() - began_seconds) * 1000
    rows = arguments.machines * (1 + PROCESSES + PORTS)
    print(f"a batch of {rows} rows: {median[WITHOUT]:.1f} ms without, {median[WITH]:.1f} ms with the trigger")
    print(f"the trigger adds {added:.1%} (median of {arguments.batches} pairs)")
    print(f"{pairs} minutes and hours rolled up in {roll_up_ms:.0f} ms")
    return {"batch_ms": median, "added": round(added, 4), "rolled_up": pairs, "roll_up_ms": round(roll_up_ms, 1)}


def _rendered(machines: list[uuid.UUID], at: datetime) -> dict[str, str]:
    """The lines of a batch by the COPY that takes them."""
    stats = '[{"mountPoint": "/", "totalGB": 100}]\t{"readBytesPerSec": 1}\t[{"bytesSent": 1}]'
    system = [f"{machine}\t{at}\t1\t[1]\t8000000\t4000000\t3000000\t{stats}\t1\n" for machine in machines]
    process = [
        f"{machine}\t{at}\t{number}\tname-{number}\t/usr/bin/program-{number}\t/usr/bin/program --with=words\t1\t1\tS\n"
        for machine in machines
        for number in range(PROCESSES)
    ]
    port = [f"{machine}\t{at}\t{number}\t{number}\tTCP\tLISTEN\tt\n" for machine in machines for number in range(PORTS)]
    return {SYSTEM: "".join(system), PROCESS: "".join(process), PORT: "".join(port)}


def _batch_ms(connection: psycopg.Connection[Any], role: str, lines: dict[str, str]) -> float:
    connection.execute(f"SET session_replication_role = {role}".encode())
    began = time.perf_counter()
    with connection.transaction():
        for statement, text in lines.items():
            with connection.cursor().copy(statement.encode()) as copy:
                copy.write(text)
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()
