"""gueststore: creates, upgrades, checks and cleans the database of guestd."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from gueststore.alarms import read_alarms
from gueststore.command_line import EXIT_FAILURE, Parser, print_error, print_json, print_line, run_command_line
from gueststore.contract import SCHEMA_VERSION
from gueststore.database import describe
from gueststore.errors import ConfigurationError, StoreError
from gueststore.migrations import migrate, read_status
from gueststore.reset import reset
from gueststore.retention import enforce_retention, read_retention_due
from gueststore.rollups import read_rollups

DSN_VARIABLE = "GUESTD_DATABASE_DSN"

_EDITIONS = {
    "apache": "TimescaleDB, Apache edition: plain chunks; guestd rolls up and drops old chunks",
    "timescale": "TimescaleDB, Community edition: old chunks in the columnstore; guestd rolls up and drops old chunks",
}

_DESCRIPTION = """\
Creates, upgrades, checks and cleans the TimescaleDB database that guestd writes to.
"""
_DATABASE = f"""\
The database is named by --dsn or the environment variable {DSN_VARIABLE}, either as
postgresql://user@host:5432/name or as host=... port=... user=... dbname=...
"""
_EPILOG = f"""\
examples:
  gueststore migrate --dsn 'host=db dbname=guestd user=postgres'
  gueststore status
  gueststore retention --dry-run

{_DATABASE}
exit status: 0 done, 1 failed (see the message; running it again is safe), 2 wrong usage,
78 something must be configured first, 130 interrupted, 141 the reader of stdout has ended (| head)
"""
_MIGRATE = """\
Applies the migrations that the database lacks. It is safe to run at any time, on several hosts at once, and beside
running daemons.
"""
_STATUS = """\
Prints which migrations are applied and which are pending, the edition of TimescaleDB, and how far the roll-ups are.

--json prints one object: version, compat (the oldest version of programs that work with this schema), edition (apache,
timescale, or null before the extension exists), rollups (array: relation, covered_until, waiting, oldest), applied,
pending and problems (arrays of texts)

exit status: 0 the schema is current, 1 a migration is pending or there is a problem
"""
_CHECK = """\
Compares the live schema with what the migrations make, and runs the health checks, such as relations without retention,
roll-ups that are behind, and tables that autovacuum does not keep up with.

--json prints an array: kind, text

exit status: 0 no finding, 1 at least one
"""
_SEED = """\
Adds the rows that a new platform needs, such as filters and services, and the first user from the environment variables
GUESTD_ADMIN_EMAIL and GUESTD_ADMIN_PASSWORD. Rows that exist are left alone.
"""
_RETENTION = """\
Drops data past its retention (table RetentionSetting) that has been rolled up. guestd does the same every 10 minutes.

--json prints an array for --dry-run: relation, keep_days, cutoff, is_held_back (true where more waits for its roll-up),
due (chunks or rows); otherwise an array: relation, dropped (chunks or rows)
"""
_RESET = """\
Deletes everything in the database, data included, and builds the schema anew.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    return run_command_line("gueststore", lambda: _run_command(arguments))


def _run_command(arguments: Sequence[str] | None) -> int:
    options = _make_parser().parse_args(arguments)
    try:
        return int(options.run(_get_dsn(options.dsn), options))
    except ConfigurationError as exc:
        print_error("gueststore", str(exc))
        return 78
    except StoreError as exc:
        print_error("gueststore", str(exc))
        return EXIT_FAILURE


def _make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="gueststore",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[[str, argparse.Namespace], int], summary: str, description: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=description,
            epilog=_DATABASE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("--dsn", help=f"the database (default: {DSN_VARIABLE})")
        command.set_defaults(run=run)
        return command

    add("migrate", _migrate, "apply pending migrations", _MIGRATE)
    status = add("status", _status, "show applied and pending migrations, edition and roll-ups", _STATUS)
    check = add("check", _check, "compare the live schema with the migrations, and run the health checks", _CHECK)
    seed = add("seed", _seed, "add the rows that a new platform needs", _SEED)
    default_help = "allow the well-known password for the first user"
    seed.add_argument("--allow-default-password", action="store_true", help=default_help)
    retention = add("retention", _retention, "drop data past its retention that has been rolled up", _RETENTION)
    retention.add_argument("--dry-run", action="store_true", help="print what would be dropped, and drop nothing")
    for each in (status, check, retention):
        each.add_argument("--json", action="store_true", help="print one line of JSON; the keys are stable")
    wipe = add("reset", _reset, "delete everything, data included, and build the schema anew", _RESET)
    wipe.add_argument("--yes", action="store_true", help="confirm; without it nothing is deleted")
    return parser


def _get_dsn(given: str | None) -> str:
    dsn = given or os.environ.get(DSN_VARIABLE)
    if not dsn:
        raise ConfigurationError(f"no database named: give --dsn or set {DSN_VARIABLE}")
    return dsn


def _print_json(value: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    print_json(value, default=_format_moment)


def _format_moment(moment: object) -> str:
    assert isinstance(moment, datetime), moment
    return moment.isoformat()


def _migrate(dsn: str, _options: argparse.Namespace) -> int:
    applied = migrate(dsn, report=print_line)
    print_line(f"{len(applied)} applied" if applied else "nothing to do: the schema is current")
    return 0


def _status(dsn: str, options: argparse.Namespace) -> int:
    state = read_status(dsn)
    rollups = read_rollups(dsn) if state.version == SCHEMA_VERSION else []
    lists = {"applied": state.applied, "pending": state.pending, "problems": state.problems}
    if options.json:
        numbers = {"version": state.version, "compat": state.compat, "edition": state.licence or None}
        texts = {name: [str(each) for each in found] for name, found in lists.items()}
        _print_json(numbers | {"rollups": [asdict(rollup) for rollup in rollups]} | texts)
    else:
        print_line(f"schema version {state.version}; works with programs of version {state.compat} or newer")
        print_line(_EDITIONS.get(state.licence, "the extension timescaledb is not in this database yet"))
        for rollup in rollups:
            print_line(f"  roll-up  {rollup}")
        for name, found in lists.items():
            for each in found:
                print_line(f"  {name.removesuffix('s'):7}  {each}")
    return 1 if state.pending or state.problems else 0


def _check(dsn: str, options: argparse.Namespace) -> int:
    found = read_alarms(dsn)
    if options.json:
        _print_json([{"kind": each.kind, "text": each.sentence} for each in found])
    else:
        for each in found:
            print_line(each.sentence)
        print_line(f"{len(found)} differences or alarms" if found else "the schema is as the migrations make it")
    return 1 if found else 0


def _retention(dsn: str, options: argparse.Namespace) -> int:
    if options.dry_run:
        due = read_retention_due(dsn)
        if options.json:
            _print_json([asdict(each) for each in due])
        else:
            for each in due:
                print_line(str(each))
        return 0
    dropped = enforce_retention(dsn)
    if options.json:
        _print_json([{"relation": relation, "dropped": count} for relation, count in dropped.items()])
        return 0
    for relation, count in dropped.items():
        print_line(f"{relation}: {count} dropped")
    if not dropped:
        print_line("nothing to do: no data is past its retention, or it waits for its roll-up")
    return 0


def _seed(dsn: str, options: argparse.Namespace) -> int:
    from gueststore.seed import read_admin, seed  # noqa: PLC0415  only this command needs bcrypt

    admin = read_admin(os.environ, allow_well_known=options.allow_default_password)
    print_line(f"{seed(dsn, admin, report=print_line)} rows added")
    return 0


def _reset(dsn: str, options: argparse.Namespace) -> int:
    if not options.yes:
        print_error("gueststore", f"this deletes everything in {describe(dsn)}; add --yes to confirm")
        return 2
    print_line(f"deleting everything in {describe(dsn)} ...")
    reset(dsn, report=print_line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
