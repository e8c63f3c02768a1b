"""`guestd quarantine list | show | retry | drop`: what an operator does with frames that were set aside."""

from __future__ import annotations

import argparse
import asyncio
import sys
from datetime import UTC, datetime, timedelta

import msgspec

from guestd.core.config import Settings
from guestd.core.errors import RowsRejected, StoreUnavailable
from guestd.core.text import escape_to_ascii
from guestd.ingest import quarantine
from guestd.store.connection import connection_to

# A terminal's worth of a payload; --json shows it whole.
SHOWN_BYTES = 4000
MOST_RETRIED = 1_000_000


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Do the verb; returns the exit status."""
    try:
        return asyncio.run(_VERBS[arguments.quarantine_verb](arguments, settings))
    except (StoreUnavailable, RowsRejected) as exc:
        print(f"guestd: {exc}", file=sys.stderr)
        return 1


async def _list(arguments: argparse.Namespace, settings: Settings) -> int:
    async with connection_to(settings.store.dsn) as connection:
        found = await quarantine.listed(connection, reason=arguments.reason, limit=arguments.limit)
    if arguments.json:
        print(msgspec.json.encode(found).decode())
        return 0
    print(f"{'id':36}  {'machine':36}  {'received':20}  {'reason':17}  {'bytes':>8}  {'tried':>5}  detail")
    for each in found:
        received = each.receivedAt.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        machine = str(each.machineId or "")
        print(
            f"{each.id!s:36}  {machine:36}  {received:20}  {each.reason:17}  {each.size_bytes:8}  {each.attempts:5}"
            f"  {escape_to_ascii(each.detail)[:80]}"
        )
    return 0


async def _show(arguments: argparse.Namespace, settings: Settings) -> int:
    async with connection_to(settings.store.dsn) as connection:
        frame = await quarantine.held(connection, arguments.id)
    if frame is None:
        print(f"guestd: there is no frame {arguments.id} in the quarantine", file=sys.stderr)
        return 1
    whole = escape_to_ascii(frame.payload.decode("utf-8", "backslashreplace"))
    described = msgspec.to_builtins(frame)
    described["payload"] = whole
    if arguments.json:
        print(msgspec.json.encode(described).decode())
        return 0
    described["payload"] = whole if len(whole) <= SHOWN_BYTES else f"{whole[:SHOWN_BYTES]}... (--json shows all)"
    for name, value in described.items():
        print(f"{name}: {escape_to_ascii(str(value)) if name != 'payload' else value}")
    return 0


async def _retry(arguments: argparse.Namespace, settings: Settings) -> int:
    if (arguments.id is None) == (arguments.reason is None):
        print("guestd: retry takes an ID or --reason", file=sys.stderr)
        return 2
    results = []
    async with connection_to(settings.store.dsn) as connection:
        ids = [arguments.id]
        if arguments.id is None:
            found = await quarantine.listed(connection, reason=arguments.reason, limit=MOST_RETRIED)
            ids = [each.id for each in reversed(found)]
        for frame_id in ids:
            result = await quarantine.retried(connection, frame_id, settings.privacy.command_lines)
            results.append({"id": frame_id, "stored": result.is_stored, "why": result.why})
            if not arguments.json:
                print(f"{frame_id}  {'stored' if result.is_stored else result.why}")
    if arguments.json:
        print(msgspec.json.encode(results).decode())
    return 0 if all(each["stored"] for each in results) else 1


async def _drop(arguments: argparse.Namespace, settings: Settings) -> int:
    if arguments.id is None and arguments.reason is None and arguments.older_than is None:
        print("guestd: drop takes an ID, --reason or --older-than", file=sys.stderr)
        return 2
    days = arguments.older_than
    async with connection_to(settings.store.dsn) as connection:
        dropped = await quarantine.dropped(
            connection,
            ids=None if arguments.id is None else [arguments.id],
            reason=arguments.reason,
            older_than=None if days is None else datetime.now(UTC) - timedelta(days=days),
        )
    print(msgspec.json.encode({"dropped": dropped}).decode() if arguments.json else f"{dropped} dropped")
    return 0 if dropped or arguments.id is None else 1


_VERBS = {"list": _list, "show": _show, "retry": _retry, "drop": _drop}
