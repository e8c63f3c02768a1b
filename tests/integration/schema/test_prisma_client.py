"""The platform's own client on the live store: Prisma 7 reads, writes, pages and follows every relation.

The client comes from npm into the cache that ./dev keeps, and is generated there, once; later runs are offline.
"""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql
from tools.harness import prisma
from tools.harness.prisma import INSTALL_SECONDS, SCHEMA, run_program

from gueststore.catalogue import load_catalogue
from gueststore.database import Connection
from support.models import FOREIGN_KEYS, NOW, REQUIRED
from support.schema import insert, make_machine, rows


@pytest.fixture(scope="module")
def generated() -> Path:
    """The directory of Prisma's client for schema.prisma, made on first use."""
    client = prisma.generate_client()
    if client is None:
        pytest.skip("npm is not installed: the client is proven where it is, on CI for one")
    return client


@pytest.fixture
def filled(connection: Connection) -> uuid.UUID:
    """A row of every model, and one at both ends of every relation; a machine with samples whose values are known."""
    for required in REQUIRED.items():
        table, row = required
        insert(connection, table, **row(connection))
    for table, column, target, _rule, _name in rows(connection, FOREIGN_KEYS):
        owner = insert(connection, target, **REQUIRED[target](connection))["id"]
        insert(connection, table, **REQUIRED[table](connection) | {column: owner})
    machine = make_machine(connection, name="known")
    values = {"uptime": 2**53 + 1, "cpuUsagePercent": 12.5, "timestamp": NOW.replace(microsecond=123000)}
    insert(connection, "SystemMetrics", **REQUIRED["SystemMetrics"](connection) | {"machineId": machine} | values)
    for number in range(8):
        key = {"machineId": machine, "timestamp": NOW, "processId": number}
        insert(connection, "ProcessSnapshot", **REQUIRED["ProcessSnapshot"](connection) | key)
    return machine


@pytest.mark.timeout(2 * INSTALL_SECONDS + 120)
def test_prismas_client_reads_writes_pages_and_follows_every_relation(
    dsn: str, connection: Connection, generated: Path, filled: uuid.UUID
) -> None:
    answer = run_proof(generated, dsn, filled)
    assert set(answer["models"]) == {name for kind, name in load_catalogue() if kind == "table"}
    for model, found in answer["models"].items():
        counted = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(model))
        assert found["rows"] > 0, model
        if model not in ("Machine", "MachineTemplate", "Department"):  # to which it wrote meanwhile
            assert connection.execute(counted).fetchone() == (found["rows"],), model
        for relation, behind in found["relations"].items():
            assert behind > 0, (model, relation)
    assert_sees_what_guestd_wrote(answer, filled)
    assert_writes_what_it_means(answer["written"])


def run_proof(generated: Path, dsn: str, known: uuid.UUID) -> dict[str, Any]:
    """Return what schema/prisma-client/proof.cjs found in a database."""
    answer: dict[str, Any] = json.loads(run_program(generated, dsn, "proof.cjs", str(generated), known=str(known)))
    return answer


def assert_sees_what_guestd_wrote(answer: dict[str, Any], known: uuid.UUID) -> None:
    sample = answer["sample"]
    assert (sample["uptime"], sample["cpuUsagePercent"]) == (f"{2**53 + 1}n", 12.5)
    assert sample["timestamp"] == NOW.replace(microsecond=123000).isoformat(timespec="milliseconds").replace(
        "+00:00", "Z"
    )
    assert (sample["machine"]["id"], sample["machine"]["name"]) == (str(known), "known")
    assert sample["diskUsageStats"] == []
    assert answer["pages"] == list(range(8))


def assert_writes_what_it_means(written: dict[str, Any]) -> None:
    assert written == {
        "fileSize": "9007199254740993n",
        "iconData": [0, 255, 7],
        "detail": {"text": "é", "list": [1, None, {"deep": True}]},
        "ips": ["10.0.0.7"],
        "moved": True,
        "made": True,
        "refused": "P2002",
        "left": 0,
    }


# Every change that Prisma's migration engine would make, and why it is not made.
ALLOWED = {
    # A foreign key on a hypertable doubles the cost of a batch; decision 0017 describes what replaces it.
    *(
        f'ALTER TABLE "{name}" ADD CONSTRAINT "{name}_machineId_fkey" FOREIGN KEY ("machineId") '
        'REFERENCES "Machine"("id") ON DELETE CASCADE ON UPDATE CASCADE;'
        for kind, name in load_catalogue()
        if kind == "hypertable" and ("column", f"{name}.machineId") in load_catalogue()
    ),
    # An identity that only a trigger uses; Prisma knows it only as the default of a sequence.
    'ALTER TABLE "RollupPending" ALTER COLUMN "id" DROP DEFAULT;',
}


@pytest.mark.timeout(2 * INSTALL_SECONDS + 120)
def test_prismas_migration_engine_finds_no_difference_that_is_not_meant(
    dsn: str, connection: Connection, generated: Path
) -> None:
    output = run_program(generated, dsn, "oracle.cjs", str(SCHEMA))
    changes = {line for line in output.splitlines() if line and not line.startswith("--")}
    assert changes == ALLOWED
    connection.execute('DROP INDEX "Disk_nodeId_idx"')
    output = run_program(generated, dsn, "oracle.cjs", str(SCHEMA))
    assert 'CREATE INDEX "Disk_nodeId_idx" ON "Disk"("nodeId");' in output
