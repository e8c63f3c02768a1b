"""./dev bench peers: rows a second of the same samples into the same tables, as guestd and as others write them.

One private server (fsync on), one connection each, the same rows (SystemMetrics, ProcessSnapshot, PortUsage), the ways
in turns, round after round; every way begins with empty tables. Slow ways get the first messages only. What others do
is reproduced here with psycopg: the same statements, the same commits.

* encoded COPY: the rows as they go over the wire, made beforehand, one COPY a table: what the server can take;
* guestd: `Preparer` and `Store.write`, frames in, batches as the daemon makes them, ledger, locks and inventories too;
* COPY by thousands: a COPY for each table and 1,000 samples, as Telegraf's output and pgwatch's sink do with CopyFrom;
* executemany: INSERT with psycopg's executemany (pipelined), a transaction a message;
* one statement: an INSERT of many rows a table and message, as createMany does, a transaction a message;
* asyncpg executemany: the same INSERT through asyncpg;
* upserts: INSERT ... ON CONFLICT DO UPDATE for each row by itself, a transaction a row, as upsert does;
* Prisma: what the platform's backend does with a message, through its own client (harness/prisma.py): a create, two
  createMany, and an upsert for each program that the message lists. Left out where npm is not installed.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import psycopg
from tools.bench.feeder import lines_of
from tools.bench.server import own_store, truncate
from tools.bench.suite import add_load_options, add_rounds_option, run
from tools.harness import prisma

from guestd.core.ledger import Ledger
from guestd.core.transport import Transport
from guestd.ingest.prepare import Preparer
from guestd.rows.model import Rows, Values, whole_rows
from guestd.spool.file import Frame, from_milliseconds
from guestd.store import dumpers
from guestd.store.batch_writer import Store, open_store
from guestd.telemetry.registry import Telemetry
from guestd.wire.line import METRICS, read_line
from gueststore import contract

TABLES = contract.SERIES[:3]
SAMPLES_AT_ONCE = 1000  # Telegraf's metric_batch_size, and pgwatch's
FRAMES_AT_ONCE = 130  # of 30 KB each: what the daemon's batch of 4 MiB holds
Message = Mapping[contract.Table, Sequence[Values]]
Way = Callable[[psycopg.AsyncConnection[Any], Sequence[Message]], Awaitable[float | None]]
"""May tell the seconds that count, where something else took time as well."""


def main() -> None:
    """Run all ways in turns, round after round."""
    run(__doc__, _add_options, _measure)


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_load_options(parser, guests=100, messages=20)
    add_rounds_option(parser)
    parser.add_argument("--slow-messages", type=int, default=20, help="messages for executemany; a tenth for upserts")


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with own_store(arguments.guests) as (dsn, _):
        frames = _frames(arguments)
        rates = asyncio.run(_measured(dsn, frames, arguments))
    median = {name: statistics.median(each) for name, each in rates.items()}
    for name, rate in median.items():
        print(f"{name:>20} {rate:10.0f} rows/s   guestd is {median['guestd'] / rate:8.2f} times as fast")
    return {"rows_per_second": median, "rounds": rates}


def _frames(arguments: argparse.Namespace) -> list[Frame]:
    lines = lines_of(arguments.guests, arguments.messages, arguments.processes)
    now_ms = int(time.time() * 1000)
    by_message = zip(*([(key, line) for line in feed.splitlines()] for key, feed in lines.items()), strict=True)
    return [
        Frame(seq, key, from_milliseconds(now_ms + seq), line, Transport.VIRTIO, METRICS, read_line(line).line_id)
        for seq, (key, line) in enumerate(chain.from_iterable(by_message), 1)
    ]


async def _measured(dsn: str, frames: Sequence[Frame], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Rows/s of every way, of every round."""
    messages = await _messages(frames)
    slow = messages[: arguments.slow_messages * 10]
    truncate(dsn)
    await _guestd(dsn, frames)
    ways: dict[str, tuple[Way, Sequence[Message]]] = {
        "encoded COPY": (_encoded(await _exported(dsn)), messages),
        "COPY by thousands": (_copy_by_thousands, messages),
        "executemany": (_executemany, slow),
        "one statement": (_one_statement, slow),
        "asyncpg executemany": (_asyncpg_executemany(dsn), slow),
        "upserts": (_upserts, messages[: max(1, arguments.slow_messages // 10)]),
    }
    if (client := prisma.generate_client()) is not None:
        ways["Prisma"] = (_prisma(client, dsn), slow)
    else:
        print("Prisma is left out: npm is not installed")
    rates: dict[str, list[float]] = {"guestd": [], **{name: [] for name in ways}}
    for _ in range(arguments.rounds):
        truncate(dsn)
        rates["guestd"].append(await _guestd(dsn, frames))
        for name, (way, some) in ways.items():
            truncate(dsn)
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
                dumpers.register_dumpers(connection)
                began = time.perf_counter()
                took_seconds = await way(connection, some) or time.perf_counter() - began
                rates[name].append(sum(map(_rows, some)) / took_seconds)
    return rates


def _rows(message: Message) -> int:
    return sum(len(message[table]) for table in TABLES)


async def _messages(frames: Sequence[Frame]) -> list[Message]:
    prepared = await _preparer().prepare(frames, _nothing_taken)
    messages: list[Message] = []
    for frame in prepared:
        assert isinstance(frame.content, Rows)
        tables = (*TABLES, contract.INCOMING_APPLICATION)
        messages.append({table: list(whole_rows(frame.content.group(table))) for table in tables})
    return messages


def _preparer() -> Preparer:
    return Preparer(Telemetry().writer.preparing)


async def _nothing_taken(_: object) -> set[Any]:
    return set()


async def _guestd(dsn: str, frames: Sequence[Frame]) -> float:
    """As the writer does: the next batch is prepared while the server works on one."""
    preparer, spool_id, rows = _preparer(), uuid4(), 0
    async with open_store(dsn) as store:
        await store.set_ledger(spool_id, None, Ledger(0))
        began = time.perf_counter()
        writing: asyncio.Task[int] | None = None
        for some in _parts(frames, FRAMES_AT_ONCE):
            prepared = await preparer.prepare(some, _nothing_taken)
            rows += await writing if writing else 0
            writing = asyncio.create_task(_stored(store, spool_id, some[0].seq - 1, prepared))
        rows += await writing if writing else 0
        return rows / (time.perf_counter() - began)


async def _stored(store: Store, spool_id: UUID, seq: int, prepared: Sequence[Any]) -> int:
    outcome = await store.write(spool_id, Ledger(seq), prepared)
    return sum(outcome.rows[table.name] for table in TABLES)


def _parts(some: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (some[place : place + size] for place in range(0, len(some), size))


async def _copy(connection: psycopg.AsyncConnection[Any], table: contract.Table, rows: Iterable[Values]) -> None:
    statement = f"COPY {_named(table)} FROM STDIN (FORMAT BINARY)"
    async with connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
        copy.set_types(list(table.types.values()))
        for row in rows:
            await copy.write_row(row)


def _named(table: contract.Table) -> str:
    return f'"{table.name}" ({table.column_list})'


async def _exported(dsn: str) -> dict[contract.Table, bytes]:
    """What the tables hold, as binary COPY has it."""
    exported = {}
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for table in TABLES:
            statement = f'COPY (SELECT {table.column_list} FROM "{table.name}") TO STDOUT (FORMAT BINARY)'
            async with connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
                exported[table] = b"".join([bytes(part) async for part in copy])
    return exported


def _encoded(exported: Mapping[contract.Table, bytes]) -> Way:
    async def way(connection: psycopg.AsyncConnection[Any], _: Sequence[Message]) -> None:
        for table, content in exported.items():
            statement = f"COPY {_named(table)} FROM STDIN (FORMAT BINARY)".encode()
            async with connection.cursor() as cursor, cursor.copy(statement) as copy:
                for part in _parts(content, 256 * 1024):
                    await copy.write(bytes(part))

    return way


async def _copy_by_thousands(connection: psycopg.AsyncConnection[Any], messages: Sequence[Message]) -> None:
    for some in _parts(messages, SAMPLES_AT_ONCE):
        async with connection.transaction():
            for table in TABLES:
                await _copy(connection, table, chain.from_iterable(message[table] for message in some))


async def _executemany(connection: psycopg.AsyncConnection[Any], messages: Sequence[Message]) -> None:
    for message in messages:
        async with connection.transaction(), connection.cursor() as cursor:
            for table in TABLES:
                await cursor.executemany(_insert(table).encode(), _parameters(table, message[table]))


async def _one_statement(connection: psycopg.AsyncConnection[Any], messages: Sequence[Message]) -> None:
    for message in messages:
        async with connection.transaction():
            for table in TABLES:
                if rows := _parameters(table, message[table]):
                    statement = _insert(table, len(rows))
                    await connection.execute(statement.encode(), list(chain.from_iterable(rows)))


async def _upserts(connection: psycopg.AsyncConnection[Any], messages: Sequence[Message]) -> None:
    keys = ('"id", "timestamp"', '"machineId", "timestamp", "processId"', '"machineId", "timestamp", "ordinal"')
    for message in messages:
        for table, key in zip(TABLES, keys, strict=True):
            changed = table.columns[-1].name
            statement = f'{_insert(table)} ON CONFLICT ({key}) DO UPDATE SET "{changed}" = EXCLUDED."{changed}"'
            for row in _parameters(table, message[table]):
                await connection.execute(statement.encode(), row)


def _asyncpg_executemany(dsn: str) -> Way:
    async def way(_: psycopg.AsyncConnection[Any], messages: Sequence[Message]) -> float:
        connection = await asyncpg.connect(dsn)
        began = time.perf_counter()
        for message in messages:
            async with connection.transaction():
                for table in TABLES:
                    places = ", ".join(f"${place}" for place in range(1, len(table.columns) + 1))
                    statement = f"INSERT INTO {_named(table)} VALUES ({places})"
                    await connection.executemany(statement, _parameters(table, message[table]))
        took_seconds = time.perf_counter() - began
        await connection.close()
        return took_seconds

    return way


def _prisma(client: Path, dsn: str) -> Way:
    async def way(_: psycopg.AsyncConnection[Any], messages: Sequence[Message]) -> float:
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            for message in messages:
                named = {table.name: _objects(table, message[table]) for table in TABLES}
                named["ApplicationUsage"] = [
                    _application(row)
                    for row in _objects(contract.INCOMING_APPLICATION, message[contract.INCOMING_APPLICATION])
                ]
                file.write(json.dumps(named) + "\n")
            file.flush()
            return float(
                await asyncio.to_thread(prisma.run_program, client, dsn, "bench.cjs", str(client), messages=file.name)
            )

    return way


def _objects(table: contract.Table, rows: Sequence[Values]) -> list[dict[str, Any]]:
    """Rows as Prisma's client takes them, by column."""
    return [
        {
            name: _as_json(value, type_name)
            for (name, type_name), value in zip(table.types.items(), row, strict=True)
            if value is not None
        }
        for row in _parameters(table, rows)
    ]


def _as_json(value: Any, type_name: str) -> Any:
    if type_name == "jsonb":
        return json.loads(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else value


def _application(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the waiting table as one of ApplicationUsage; without its picture, which JSON cannot hold."""
    described = {name: value for name, value in row.items() if name not in ("receivedAt", "iconData", "iconFormat")}
    return described | {"firstSeen": row["receivedAt"], "lastSeen": row["receivedAt"]}


def _insert(table: contract.Table, rows: int = 1) -> str:
    row = f"({', '.join(f'%s::{type_name}' for type_name in table.types.values())})"
    return f"INSERT INTO {_named(table)} VALUES {', '.join([row] * rows)}"


def _parameters(table: contract.Table, rows: Sequence[Values]) -> list[list[Any]]:
    """What COPY takes in binary as parameters of a statement: JSON as text, unix seconds as a time."""
    types = list(table.types.values())
    return [[_parameter(value, type_name) for value, type_name in zip(row, types, strict=True)] for row in rows]


def _parameter(value: Any, type_name: str) -> Any:
    if type_name == "jsonb" and value is not None:
        return value.decode()
    return from_milliseconds(int(value * 1000)) if type_name == "timestamptz" and isinstance(value, float) else value


if __name__ == "__main__":
    main()
