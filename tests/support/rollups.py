"""Messages of machines in all series, and their roll-ups, as the daemon writes them."""

import random
import uuid
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from gueststore.database import Connection
from gueststore.queries import query
from support.schema import insert

SAMPLE: dict[str, Any] = {
    "cpuCoresUsage": Jsonb([1.0]),
    "totalMemoryKB": 10**9,
    "diskUsageStats": Jsonb([]),
    "uptime": 1,
}


def roll_up(connection: Connection, most: int = 1000) -> int:
    """Roll up all that is pending, as the daemon does; returns the number of pairs of machine and bucket."""
    done = 0
    for step in ("rollups/roll_up_minutes", "rollups/roll_up_hours", "rollups/roll_up_fleet"):
        while pairs := run_step(connection, step, most):
            done += pairs
    return done


def run_step(connection: Connection, step: str, most: int) -> int:
    """Run one transaction of a step; returns the number of pairs."""
    row = connection.execute(query(step), {"most": most}).fetchone()
    assert row is not None
    return int(row[0])


def send(connection: Connection, machine: uuid.UUID, at: datetime, chance: random.Random) -> None:
    """One message of a machine: a row of SystemMetrics, and some of the other series at the same time."""
    common = {"machineId": machine, "timestamp": at}
    system: dict[str, Any] = {
        "cpuUsagePercent": chance.uniform(0, 100),
        "usedMemoryKB": chance.randrange(10**9),
        "availableMemoryKB": chance.randrange(10**9),
        "diskIOStats": Jsonb({"readBytesPerSec": chance.randrange(10**6)}),
        "networkStats": Jsonb([{"bytesSent": chance.randrange(10**6)}, {"bytesSent": 1}]),
        "loadAverage": Jsonb({"load1min": chance.random()}),
    }
    with connection.transaction():
        insert(connection, "SystemMetrics", **SAMPLE | system | common)
        for number in range(chance.randrange(4)):
            process = {"processId": number, "name": chance.choice("abc"), "status": "running"}
            load = {"cpuUsagePercent": chance.uniform(0, 300), "memoryUsageKB": chance.randrange(10**9)}
            insert(connection, "ProcessSnapshot", **process | load | common)
        for number in range(chance.randrange(3)):
            port = {"ordinal": number, "port": chance.choice((22, 80)), "protocol": "TCP", "state": "LISTEN"}
            owner = {"processName": chance.choice((None, "sshd")), "executablePath": chance.choice("xyz")}
            listening = {"isListening": chance.random() < 0.8, "connectionCount": chance.randrange(9)}
            insert(connection, "PortUsage", **port | owner | listening | common)
        for path in chance.sample("pqr", chance.randrange(3)):
            used = {"accessCount": chance.randrange(99), "totalUsageMinutes": chance.randrange(99), "isActive": True}
            insert(connection, "ApplicationUsageHistory", executablePath=path, **used | common)
