"""The platform's own client on the live store: Prisma 7 reads, writes, pages and follows every relation.

The client comes from npm into the cache that ./dev keeps, and is generated there, once; later runs are offline.
"""

import hashlib
import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from fix_models import FOREIGN_KEYS, NOW, REQUIRED
from fix_schema import insert, make_machine, rows
from gueststore.catalogue import packaged
from gueststore.database import Connection

SCHEMA = Path(__file__).parents[2] / "schema/schema.prisma"
PROOF = Path(__file__).parents[2] / "schema/prisma-client"
# 157 packages over the network and a cold parser.
INSTALL_SECONDS = 400


@pytest.fixture(scope="module")
def generated() -> Path:
    """The directory of Prisma's client for schema.prisma, made on first use."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed: the client is proven where it is, on CI for one")
    lock = (PROOF / "package-lock.json").read_bytes()
    name = hashlib.sha256(lock + SCHEMA.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("GUESTD_CACHE") or Path.home() / ".cache/guestd")
    packages = cache / f"prisma-client-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not (packages / "stamp").exists():
        packages.mkdir(parents=True, exist_ok=True)
        for file in ("package.json", "package-lock.json"):
            shutil.copy(PROOF / file, packages)
        install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(install, cwd=packages, check=True, capture_output=True, timeout=INSTALL_SECONDS)
        (packages / "stamp").touch()
    client = packages / f"generated-{name}"
    if not (client / "stamp").exists():
        scratch = packages / f"schema-{name}.prisma"
        # Of the two that Prisma generates from one page, that which node runs as it is.
        text = SCHEMA.read_text("utf-8").replace('"prisma-client"', '"prisma-client-js"')
        scratch.write_text(text.replace('"./generated"', f'"./{client.name}"'), "utf-8")
        # It asks for an engine that only its migrations need, and takes any program for it.
        environment = os.environ | {
            "PRISMA_SCHEMA_ENGINE_BINARY": shutil.which("true") or "",
            "CHECKPOINT_DISABLE": "1",
        }
        generate = ["node", "node_modules/prisma/build/index.js", "generate", "--schema", scratch.name]
        subprocess.run(
            generate, cwd=packages, env=environment, check=True, capture_output=True, timeout=INSTALL_SECONDS
        )
        (client / "stamp").touch()
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
    answer = used(generated, dsn, filled)
    assert set(answer["models"]) == {name for kind, name in packaged() if kind == "table"}
    for model, found in answer["models"].items():
        counted = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(model))
        assert found["rows"] > 0, model
        if model not in ("Machine", "MachineTemplate", "Department"):  # to which it wrote meanwhile
            assert connection.execute(counted).fetchone() == (found["rows"],), model
        for relation, behind in found["relations"].items():
            assert behind > 0, (model, relation)
    assert_sees_what_guestd_wrote(answer, filled)
    assert_writes_what_it_means(answer["written"])


def used(generated: Path, dsn: str, known: uuid.UUID) -> dict[str, Any]:
    """What schema/prisma-client/proof.cjs found in a database."""
    answer: dict[str, Any] = json.loads(said_by(generated, dsn, "proof.cjs", str(generated), known=str(known)))
    return answer


def said_by(generated: Path, dsn: str, program: str, *words: str, **given: str) -> str:
    """What a program of schema/prisma-client prints about a database."""
    parts = conninfo_to_dict(dsn)
    pool = {"host": parts["host"], "port": int(str(parts["port"])), "user": parts["user"], "database": parts["dbname"]}
    if parts.get("password"):
        pool["password"] = parts["password"]
    done = subprocess.run(
        ["node", PROOF / program, *words],
        env=os.environ | {"NODE_PATH": str(generated.parent / "node_modules")},
        input=json.dumps({"pool": pool} | given),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


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


# All that Prisma's migration engine would change, and why it stays as it is.
ALLOWED = {
    # A foreign key on a hypertable doubles the cost of a batch; decision 0021 has what is there in its stead.
    *(
        f'ALTER TABLE "{name}" ADD CONSTRAINT "{name}_machineId_fkey" FOREIGN KEY ("machineId") '
        'REFERENCES "Machine"("id") ON DELETE CASCADE ON UPDATE CASCADE;'
        for kind, name in packaged()
        if kind == "hypertable" and ("column", f"{name}.machineId") in packaged()
    ),
    # An identity, which a trigger alone uses; Prisma has no word for it but a sequence's.
    'ALTER TABLE "RollupPending" ALTER COLUMN "id" DROP DEFAULT;',
}


@pytest.mark.timeout(2 * INSTALL_SECONDS + 120)
def test_prismas_migration_engine_finds_no_difference_that_is_not_meant(
    dsn: str, connection: Connection, generated: Path
) -> None:
    said = said_by(generated, dsn, "oracle.cjs", str(SCHEMA))
    wanted = {line for line in said.splitlines() if line and not line.startswith("--")}
    assert wanted == ALLOWED
    connection.execute('DROP INDEX "Disk_nodeId_idx"')
    said = said_by(generated, dsn, "oracle.cjs", str(SCHEMA))
    assert 'CREATE INDEX "Disk_nodeId_idx" ON "Disk"("nodeId");' in said
