"""The machine registry, kept current from the store's Machine rows."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import class_row

from guestd.core.errors import RowsRejected, StoreUnavailable
from guestd.core.machines import MachineRegistry, RegisteredMachine
from guestd.core.tasks import Backoff, run_with_retry, warn_once
from guestd.store.connection import ROW_SECONDS, listen, store_deadline
from gueststore.queries import query


async def read_machines(connection: psycopg.AsyncConnection[Any]) -> list[RegisteredMachine]:
    """Read all machines that the store knows."""
    async with store_deadline(ROW_SECONDS), connection.cursor(row_factory=class_row(RegisteredMachine)) as cursor:
        await cursor.execute(query("machines/read_machines"))
        return await cursor.fetchall()


async def watch_machines(dsn: str, machine_registry: MachineRegistry) -> None:
    """Update the registry whenever a machine changes; never returns."""

    async def update(connection: psycopg.AsyncConnection[Any]) -> None:
        machine_registry.replace(await read_machines(connection))

    warn = warn_once("LISTEN lost, machine registry not updated until the store is back")

    def on_failure(exc: Exception, delay_seconds: float) -> None:
        machine_registry.note_failure(str(exc))
        warn(exc, delay_seconds)

    await run_with_retry(
        lambda: listen(dsn, "guestd_machine", update),
        expected=(StoreUnavailable, RowsRejected),
        backoff=Backoff(cap_seconds=5),
        on_failure=on_failure,
    )
