"""The machine registry, kept current from the store's Machine rows."""

from __future__ import annotations

from typing import Any

import psycopg

from guestd.core.errors import StoreUnavailable
from guestd.core.machines import MachineRegistry, RegisteredMachine
from guestd.core.tasks import Backoff, run_with_retry, warn_once
from guestd.store.connection import connection_to, translate_errors
from gueststore.queries import query

# Notifications only wake the loop; this bounds the delay if one is lost.
LISTEN_REFRESH_SECONDS = 30


async def read_machines(connection: psycopg.AsyncConnection[Any]) -> list[RegisteredMachine]:
    """Read all machines that the store knows."""
    cursor = await connection.execute(query("machines/read_machines"))
    return [RegisteredMachine(*row) for row in await cursor.fetchall()]


async def watch_machines(dsn: str, machine_registry: MachineRegistry) -> None:
    """Update the registry whenever a machine changes; never returns."""

    async def listen() -> None:
        async with connection_to(dsn) as connection, translate_errors():
            await connection.execute("LISTEN guestd_machine")
            while True:
                machine_registry.replace(await read_machines(connection))
                async for _ in connection.notifies(timeout=LISTEN_REFRESH_SECONDS, stop_after=1):
                    pass

    warn = warn_once("LISTEN lost, machine registry not updated until the store is back")

    def on_failure(exc: Exception, delay_seconds: float) -> None:
        machine_registry.note_failure(str(exc))
        warn(exc, delay_seconds)

    await run_with_retry(listen, expected=StoreUnavailable, backoff=Backoff(cap_seconds=5), on_failure=on_failure)
