"""gueststore: brings a guestd database to the current schema and says where it stands."""

import argparse
import os
import sys
from collections.abc import Sequence

from gueststore.alarms import read_alarms
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

_EPILOG = f"""\
The database is named by --dsn or the environment variable {DSN_VARIABLE}, either as
postgresql://user@host:5432/name or as host=... port=... user=... dbname=...

exit codes: 0 done, 1 failed (see the message; running again is safe), 2 wrong usage,
78 something must be configured first
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(_dsn(options.dsn), options))
    except ConfigurationError as exc:
        print(f"gueststore: {exc}", file=sys.stderr)
        return 78
    except StoreError as exc:
        print(f"gueststore: {exc}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gueststore",
        description="The store of guestd: its schema in a TimescaleDB database.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    added = {}
    for name, run, help_line in (
        ("migrate", _migrate, "apply what the database lacks; safe to run at any time, also twice at once"),
        ("status", _status, "say what has run and what has not; exit code 1 when something has not"),
        (
            "check",
            _check,
            "compare the live schema with what the migrations make, and look for what comes with age",
        ),
        (
            "seed",
            _seed,
            "add what a new platform lacks, with the first user of GUESTD_ADMIN_EMAIL and GUESTD_ADMIN_PASSWORD",
        ),
        ("retention", _retention, "take away what is older than RetentionSetting says and rolled up"),
        ("reset", _reset, "delete everything, rows included, and build the schema anew"),
    ):
        command = commands.add_parser(name, help=help_line, description=help_line, epilog=_EPILOG)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.add_argument("--dsn", help=f"the database; without it, {DSN_VARIABLE}")
        command.set_defaults(run=run)
        added[name] = command
    added["seed"].add_argument(
        "--allow-default-password", action="store_true", help="let the first user have the well-known password"
    )
    added["retention"].add_argument("--dry-run", action="store_true", help="say what would go, and take nothing")
    added["reset"].add_argument("--yes", action="store_true", help="really do it")
    return parser


def _dsn(given: str | None) -> str:
    dsn = given or os.environ.get(DSN_VARIABLE)
    if not dsn:
        raise ConfigurationError(f"no database named: give --dsn or set {DSN_VARIABLE}")
    return dsn


def _say(line: str) -> None:
    print(line, flush=True)


def _migrate(dsn: str, _options: argparse.Namespace) -> int:
    applied = migrate(dsn, report=_say)
    _say(f"{len(applied)} applied" if applied else "nothing to do: the schema is current")
    return 0


def _status(dsn: str, _options: argparse.Namespace) -> int:
    state = read_status(dsn)
    _say(f"schema version {state.version}; works with programs of version {state.compat} or newer")
    _say(_EDITIONS.get(state.licence, "the extension timescaledb is not in this database yet"))
    if state.version == SCHEMA_VERSION:
        for rollup in read_rollups(dsn):
            _say(f"  roll-up  {rollup}")
    for migration in state.applied:
        _say(f"  applied  {migration}")
    for script in state.pending:
        _say(f"  pending  {script}")
    for problem in state.problems:
        _say(f"  problem  {problem}")
    return 1 if state.pending or state.problems else 0


def _check(dsn: str, _options: argparse.Namespace) -> int:
    found = read_alarms(dsn)
    for each in found:
        _say(each.sentence)
    _say(f"{len(found)} differences or alarms" if found else "the schema is as the migrations make it")
    return 1 if found else 0


def _retention(dsn: str, options: argparse.Namespace) -> int:
    if options.dry_run:
        for each in read_retention_due(dsn):
            _say(str(each))
        return 0
    gone = enforce_retention(dsn)
    for relation, count in gone.items():
        _say(f"{relation}: {count} gone")
    if not gone:
        _say("nothing to do: all is younger than its setting, or waits for its roll-up")
    return 0


def _seed(dsn: str, options: argparse.Namespace) -> int:
    from gueststore.seed import read_admin, seed  # noqa: PLC0415  only this verb needs bcrypt

    admin = read_admin(os.environ, allow_well_known=options.allow_default_password)
    _say(f"{seed(dsn, admin, report=_say)} rows added")
    return 0


def _reset(dsn: str, options: argparse.Namespace) -> int:
    if not options.yes:
        print(f"gueststore: this deletes everything in {describe(dsn)}; to do it, add --yes", file=sys.stderr)
        return 2
    _say(f"deleting everything in {describe(dsn)} ...")
    reset(dsn, report=_say)
    return 0


if __name__ == "__main__":
    sys.exit(main())
