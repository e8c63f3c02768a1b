"""`guestd quarantine list | show | retry | drop`: frames that could not be read or stored."""

from __future__ import annotations

import argparse
import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from guestd.cli.arguments import (
    EXIT_FAILURE,
    EXIT_USAGE,
    add_config_option,
    add_json_option,
    add_verb,
    number,
    read_settings,
    text,
    uuid,
    whole_number,
)
from guestd.core.config import Settings
from guestd.core.text import escape_to_ascii

if TYPE_CHECKING:
    from guestd.cli.arguments import Subparsers

# A terminal's worth of a payload; --json shows it whole.
SHOWN_BYTES = 4000
MOST_LISTED, MOST_RETRIED = 100_000, 1_000_000
# From a quarter of an hour to a century: 0 or less would be every frame.
AGE_DAYS = (0.01, 36_500)

DESCRIPTION = """\
Frames that could not be read or stored are quarantined in the table QuarantinedFrame with the reason, so that nothing
that a guest reported is lost without a trace. List and show them, retry them once the cause is fixed, or drop them.
"""
EPILOG = """\
examples:
  guestd quarantine list --reason unknown_machine
  guestd quarantine show 0d3f3a5e-8d0b-4a55-9c0b-5d5e4a2f7c11 --json | jq -r .payload
  guestd quarantine retry --reason unknown_machine
  guestd quarantine drop --older-than 30
"""
LIST = """\
--json prints an array: id, machineId (null where unknown), receivedAt, reason, detail, stored (true where only some
entries were refused), attempts, refused (number of refused entries), size_bytes

exit status: 0 printed, 1 the store cannot be reached, 2 wrong usage, 78 the configuration must be changed
"""
SHOW = """\
--json prints one object: id, machineId, receivedAt, seq, reason, detail, refusals (refused entries, each with
table, key (null where it has none) and reason), stored, attempts, frameDigest, payload (the frame, with control
characters and non-ASCII characters as escapes)

exit status: 0 printed, 1 no such frame, or the store cannot be reached, 2 wrong usage, 78 the configuration must be
changed
"""
RETRY = """\
--json prints an array: id, stored (true or false), reason (why not, empty where stored)

exit status: 0 every frame is stored, 1 one is not, or the store cannot be reached, 2 wrong usage, 78 the configuration
must be changed
"""
DROP = """\
A frame is dropped when it meets all conditions that are given; at least one is required.

--json prints one object: dropped (number of frames)

exit status: 0 done, 1 no frame with this ID, or the store cannot be reached, 2 wrong usage, 78 the configuration must
be changed
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the verb and its four verbs."""
    parser = add_verb(
        subparsers,
        "quarantine",
        summary="list, show, retry or drop frames that could not be read or stored",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    listing = add_verb(verbs, "list", summary="list the newest frames", description="List frames.", epilog=LIST)
    listing.add_argument("--reason", type=text, metavar="R", help="only frames with this reason")
    listing.add_argument(
        "--limit", type=whole_number(1, MOST_LISTED), default=100, metavar="N", help="at most N (default: 100)"
    )
    show = add_verb(verbs, "show", summary="show one frame", description="Show one frame and its payload.", epilog=SHOW)
    show.add_argument("id", type=uuid, metavar="ID")
    retry = add_verb(
        verbs,
        "retry",
        summary="store what can be stored now",
        description="Read frames again and store them; a frame that is stored leaves the quarantine.",
        epilog=RETRY,
    )
    drop = add_verb(verbs, "drop", summary="delete frames", description="Delete frames for good.", epilog=DROP)
    for each in (retry, drop):
        each.add_argument("id", type=uuid, metavar="ID", nargs="?")
        each.add_argument("--reason", type=text, metavar="R", help="all frames with this reason")
    drop.add_argument(
        "--older-than", type=number(*AGE_DAYS), metavar="DAYS", help="all frames received more than DAYS days ago"
    )
    for each, verb in ((listing, _list), (show, _show), (retry, _retry), (drop, _drop)):
        add_config_option(each)
        add_json_option(each)
        each.set_defaults(run=run, quarantine_verb=verb)


def run(arguments: argparse.Namespace) -> int:
    """Run one of the four verbs; returns the exit status."""
    return int(asyncio.run(arguments.quarantine_verb(arguments, read_settings(arguments))))


async def _list(arguments: argparse.Namespace, settings: Settings) -> int:
    from guestd.cli.terminal import make_console, make_table, print_json, print_table
    from guestd.ingest import quarantine
    from guestd.store.connection import connection_to

    async with connection_to(settings.store.dsn) as connection:
        frames = await quarantine.list_frames(connection, reason=arguments.reason, limit=arguments.limit)
    if arguments.json:
        print_json(frames)
        return 0
    table = make_table("id", "machine", "received", "reason", "bytes", "tried", "detail", numbers=("bytes", "tried"))
    for frame in frames:
        received = frame.receivedAt.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        machine = str(frame.machineId or "-")
        table.add_row(
            str(frame.id), machine, received, frame.reason, str(frame.size_bytes), str(frame.attempts), frame.detail
        )
    print_table(make_console(), table)
    return 0


async def _show(arguments: argparse.Namespace, settings: Settings) -> int:
    from guestd.cli.terminal import make_console, print_error, print_json, print_line
    from guestd.ingest import quarantine
    from guestd.store.connection import connection_to

    async with connection_to(settings.store.dsn) as connection:
        frame = await quarantine.read_frame(connection, arguments.id)
    if frame is None:
        print_error(f"there is no frame {arguments.id} in the quarantine")
        return EXIT_FAILURE
    payload = escape_to_ascii(frame.payload.decode("utf-8", "backslashreplace"))
    described = msgspec.to_builtins(frame) | {"payload": payload}
    if arguments.json:
        print_json(described)
        return 0
    if len(payload) > SHOWN_BYTES:
        described["payload"] = f"{payload[:SHOWN_BYTES]}... (--json shows all)"
    console = make_console()
    for name, value in described.items():
        if name != "refusals":
            print_line(console, f"{name}: {value}")
            continue
        for refusal in frame.refusals:
            print_line(console, f"refused: {_describe_refusal(refusal)}")
    return 0


def _describe_refusal(refusal: Any) -> str:
    """A refused row on one line. Any program may write the table: it may be no object, and parts may be missing."""
    if not isinstance(refusal, dict):
        return str(refusal)
    row = " ".join(str(refusal[part]) for part in ("table", "key") if refusal.get(part) is not None)
    return ": ".join(str(part) for part in (row, refusal.get("reason")) if part)


async def _retry(arguments: argparse.Namespace, settings: Settings) -> int:
    from guestd.cli.terminal import make_console, print_error, print_json, print_line
    from guestd.ingest import quarantine
    from guestd.store.connection import connection_to

    if (arguments.id is None) == (arguments.reason is None):
        print_error("retry takes an ID or --reason")
        return EXIT_USAGE
    console, results = make_console(), []
    async with connection_to(settings.store.dsn) as connection:
        ids = [arguments.id]
        if arguments.id is None:
            frames = await quarantine.list_frames(connection, reason=arguments.reason, limit=MOST_RETRIED)
            ids = [frame.id for frame in reversed(frames)]
        for frame_id in ids:
            result = await quarantine.retry_frame(connection, frame_id, settings.privacy.command_lines)
            results.append({"id": frame_id, "stored": result.is_stored, "reason": result.why})
            if not arguments.json:
                print_line(console, f"{frame_id}  {'stored' if result.is_stored else result.why}")
    if arguments.json:
        print_json(results)
    return 0 if all(each["stored"] for each in results) else EXIT_FAILURE


async def _drop(arguments: argparse.Namespace, settings: Settings) -> int:
    from guestd.cli.terminal import make_console, print_error, print_json, print_line
    from guestd.ingest import quarantine
    from guestd.store.connection import connection_to

    if arguments.id is None and arguments.reason is None and arguments.older_than is None:
        print_error("drop takes an ID, --reason or --older-than")
        return EXIT_USAGE
    days = arguments.older_than
    async with connection_to(settings.store.dsn) as connection:
        dropped = await quarantine.delete_frames(
            connection,
            ids=None if arguments.id is None else [arguments.id],
            reason=arguments.reason,
            older_than=None if days is None else datetime.now(UTC) - timedelta(days=days),
        )
    if arguments.json:
        print_json({"dropped": dropped})
    else:
        print_line(make_console(), f"{dropped} dropped")
    return 0 if dropped or arguments.id is None else EXIT_FAILURE
