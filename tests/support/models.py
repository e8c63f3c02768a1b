"""The values that a row of each table needs and has no default for."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from psycopg.types.json import Jsonb

from gueststore.database import Connection
from support.schema import BCRYPT, insert, make_machine, make_template

Row = dict[str, Any]

# (table, column, table it refers to, c, n or r for what a delete there does, constraint) of each.
FOREIGN_KEYS = """
SELECT source.relname, attribute.attname, target.relname, rule.confdeltype, rule.conname
FROM pg_constraint AS rule
INNER JOIN pg_class AS source ON rule.conrelid = source.oid
INNER JOIN pg_class AS target ON rule.confrelid = target.oid
INNER JOIN pg_attribute AS attribute
    ON rule.conrelid = attribute.attrelid AND attribute.attnum = rule.conkey[1]
WHERE rule.contype = 'f' AND source.relnamespace = 'public'::regnamespace
"""


def department(connection: Connection) -> uuid.UUID:
    return uuid.UUID(str(insert(connection, "Department", name="Sales")["id"]))


def nw_filter(connection: Connection) -> uuid.UUID:
    name = str(uuid.uuid4())
    row = insert(connection, "NWFilter", name=name, internalName=f"ibay-{name[:8]}", uuid=uuid.uuid4())
    return uuid.UUID(str(row["id"]))


def service(connection: Connection, machine: uuid.UUID) -> uuid.UUID:
    row = insert(connection, "WindowsService", **REQUIRED["WindowsService"](connection) | {"machineId": machine})
    return uuid.UUID(str(row["id"]))


def unset_retention(connection: Connection) -> str:
    """A relation whose setting is away, for every one has one."""
    longest_set = 'SELECT "relation" FROM "RetentionSetting" ORDER BY "updatedAt", "relation" LIMIT 1'
    ((relation,),) = connection.execute(
        f'DELETE FROM "RetentionSetting" WHERE "relation" = ({longest_set}) RETURNING "relation"'.encode()
    ).fetchall()
    return str(relation)


def system_rollup(connection: Connection) -> Row:
    means = ("cpuUsagePercentAvg", "cpuUsagePercentMax", "usedMemoryKBAvg")
    counts = ("samples", "usedMemoryKBMax", "totalMemoryKBMax", "availableMemoryKBMin")
    values = dict.fromkeys(means, 1.0) | dict.fromkeys(counts, 1)
    return {"machineId": make_machine(connection), "bucket": NOW} | values


NOW = datetime.now(UTC)
SAMPLE = {"cpuUsagePercent": 1.0, "cpuCoresUsage": Jsonb([1.0]), "totalMemoryKB": 1, "usedMemoryKB": 1}
JSON_STATS = {"diskUsageStats": Jsonb([]), "diskIOStats": Jsonb({}), "networkStats": Jsonb([])}

# The values that a row of each table needs and has no default for.
REQUIRED: dict[str, Callable[[Connection], Row]] = {
    "Application": lambda c: {"name": "vim", "installCommand": Jsonb({}), "parameters": Jsonb({})},
    "ApplicationUsage": lambda c: {"machineId": make_machine(c), "executablePath": "/a", "applicationName": "a"},
    "ApplicationUsageHistory": lambda c: {
        "machineId": make_machine(c),
        "executablePath": "/a",
        "accessCount": 1,
        "totalUsageMinutes": 1,
        "isActive": True,
    },
    "DeletedMachine": lambda c: {"id": uuid.uuid4()},
    "Department": lambda c: {"name": "Sales"},
    "DepartmentConfiguration": lambda c: {"departmentId": department(c)},
    "DepartmentNWFilter": lambda c: {"departmentId": department(c), "nwFilterId": nw_filter(c)},
    "DepartmentServiceConfig": lambda c: {"departmentId": department(c), "serviceId": "ssh"},
    "Disk": lambda c: {
        "path": "/dev/sda",
        "nodeId": insert(c, "Node", **REQUIRED["Node"](c))["id"],
        "status": "ok",
    },
    "FWRule": lambda c: {"nwFilterId": nw_filter(c), "priority": 1},
    "FilterReference": lambda c: {"sourceFilterId": nw_filter(c), "targetFilterId": nw_filter(c)},
    "GlobalServiceConfig": lambda c: {"serviceId": str(uuid.uuid4())},
    "GuestEvent": lambda c: {"machineId": make_machine(c), "type": "error_report"},
    "Host": lambda c: {"name": str(uuid.uuid4()), "uri": "test:///default", "version": "libvirt 9.0.0"},
    "IngestLedger": lambda c: {"spoolId": uuid.uuid4(), "lane": 0, "committedSeq": 0},
    "Machine": lambda c: {
        "name": "vm",
        "internalName": str(uuid.uuid4()),
        "status": "running",
        "os": "ubuntu",
        "templateId": make_template(c),
    },
    "MachineApplication": lambda c: {
        "machineId": make_machine(c),
        "applicationId": insert(c, "Application", **REQUIRED["Application"](c))["id"],
        "parameters": Jsonb({}),
    },
    "MachineDomain": lambda c: {
        "machineId": make_machine(c),
        "state": "running",
        "reason": "booted",
        "vcpus": 1,
        "memoryKB": 1,
        "channel": "absent",
    },
    "MachineConfiguration": lambda c: {"machineId": make_machine(c)},
    "MachineTemplate": lambda c: {
        "name": "small",
        "cores": 1,
        "ram": 1,
        "storage": 1,
        "categoryId": insert(c, "MachineTemplateCategory", name="all")["id"],
    },
    "MachineTemplateCategory": lambda c: {"name": "all"},
    "NWFilter": lambda c: {"name": str(uuid.uuid4()), "internalName": str(uuid.uuid4()), "uuid": uuid.uuid4()},
    "Node": lambda c: {"name": "host", "currentRaid": "1", "cpuFlags": Jsonb([]), "ram": 64, "cores": 8},
    "Notification": lambda c: {"message": "hello"},
    "PendingCommand": lambda c: {"machineId": make_machine(c), "command": "Metrics", "parameters": Jsonb({})},
    "PortUsage": lambda c: {
        "machineId": make_machine(c),
        "ordinal": 0,
        "port": 22,
        "protocol": "TCP",
        "state": "LISTEN",
    },
    "ProcessSnapshot": lambda c: {
        "machineId": make_machine(c),
        "processId": 1,
        "name": "init",
        "cpuUsagePercent": 0.0,
        "memoryUsageKB": 1,
        "status": "running",
    },
    "QuarantinedFrame": lambda c: {
        "receivedAt": "2026-11-22T12:00:00Z",
        "spoolId": uuid.uuid4(),
        "machineId": uuid.uuid4(),
        "seq": 1,
        "frameDigest": 1,
        "reason": "json",
        "detail": "not JSON",
        "payload": b"{",
    },
    "ServiceStateHistory": lambda c: {"serviceId": service(c, make_machine(c)), "toState": "running"},
    "RetentionSetting": lambda c: {"relation": unset_retention(c), "keepDays": 7},
    "RollupPending": lambda c: {"unit": "minute", "bucket": NOW, "machineId": uuid.uuid4()},
    "RollupState": lambda c: {"relation": str(uuid.uuid4())},
    "SystemMetricsMinute": system_rollup,
    "SystemMetricsHour": system_rollup,
    "ProcessUsageHour": lambda c: {
        "machineId": make_machine(c),
        "bucket": NOW,
        "name": "vim",
        "samples": 1,
        "cpuUsagePercentSum": 1.0,
        "cpuUsagePercentMax": 1.0,
        "memoryUsageKBSum": 1,
        "memoryUsageKBMax": 1,
    },
    "ApplicationUsageDay": lambda c: {
        "machineId": make_machine(c),
        "bucket": NOW,
        "executablePath": "/a",
        "totalUsageMinutesMin": 1,
        "totalUsageMinutesMax": 1,
        "accessCountMin": 1,
        "accessCountMax": 1,
    },
    "ListeningPortDay": lambda c: {
        "machineId": make_machine(c),
        "bucket": NOW,
        "port": 22,
        "protocol": "TCP",
        "processName": "sshd",
        "firstSeen": NOW,
        "lastSeen": NOW,
        "connectionCountMax": 1,
    },
    "SystemFleetMinute": lambda c: {
        "bucket": NOW,
        "machines": 1,
        "cpuUsagePercentAvg": 1.0,
        "cpuUsagePercentMax": 1.0,
        "usedMemoryKBAvg": 1.0,
    },
    "ProcessFleetHour": lambda c: {
        "bucket": NOW,
        "name": "vim",
        "machines": 1,
        "cpuUsagePercent": 1.0,
        "memoryUsageKB": 1.0,
    },
    "FilterHostState": lambda c: {
        "hostId": insert(c, "Host", **REQUIRED["Host"](c))["id"],
        "name": f"ibay-{uuid.uuid4().hex[:16]}",
        "uuid": uuid.uuid4(),
        "isBound": False,
    },
    "MachineLease": lambda c: {
        "machineId": make_machine(c),
        "hostId": insert(c, "Host", **REQUIRED["Host"](c))["id"],
        "hostBoot": "",
        "domainUuid": uuid.uuid4(),
    },
    "MachineAgent": lambda c: {"machineId": make_machine(c), "dialect": "guestd"},
    "ReconcileEvent": lambda c: {"name": "vm", "action": "start", "reason": "desired", "outcome": "done"},
    "SystemMetrics": lambda c: {
        "machineId": make_machine(c),
        **SAMPLE,
        **JSON_STATS,
        "availableMemoryKB": 1,
        "uptime": 1,
    },
    "User": lambda c: {
        "email": f"{uuid.uuid4()}@example.com",
        "password": BCRYPT,
        "deleted": False,
        "firstName": "Ada",
        "lastName": "Lovelace",
        "role": "USER",
    },
    "VMNWFilter": lambda c: {"vmId": make_machine(c), "nwFilterId": nw_filter(c)},
    "VMServiceConfig": lambda c: {"vmId": make_machine(c), "serviceId": "ssh"},
    "VmPort": lambda c: {
        "vmId": make_machine(c),
        "portStart": 22,
        "portEnd": 22,
        "protocol": "tcp",
        "running": True,
        "enabled": False,
        "toEnable": False,
    },
    "WindowsService": lambda c: {
        "machineId": make_machine(c),
        "serviceName": "spooler",
        "displayName": "Print Spooler",
        "startType": "automatic",
        "serviceType": "win32",
        "currentState": "running",
    },
}
