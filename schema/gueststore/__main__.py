"""gueststore: brings a guestd database to the current schema and says where it stands."""

import argparse
import os
import sys
from collections.abc import Sequence

from gueststore.errors import ConfigurationError, StoreError
from gueststore.migrations import migrate, status

DSN_VARIABLE = "GUESTD_DATABASE_DSN"

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
        return int(options.run(_dsn(options.dsn)))
    except ConfigurationError as why:
        print(f"gueststore: {why}", file=sys.stderr)
        return 78
    except StoreError as why:
        print(f"gueststore: {why}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gueststore",
        description="The store of guestd: its schema in a TimescaleDB database.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, run, help_line in (
        ("migrate", _migrate, "apply what the database lacks; safe to run at any time, also twice at once"),
        ("status", _status, "say what has run and what has not; exit code 1 when something has not"),
    ):
        command = commands.add_parser(name, help=help_line, description=help_line, epilog=_EPILOG)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.add_argument("--dsn", help=f"the database; without it, {DSN_VARIABLE}")
        command.set_defaults(run=run)
    return parser


def _dsn(given: str | None) -> str:
    dsn = given or os.environ.get(DSN_VARIABLE)
    if not dsn:
        raise ConfigurationError(f"no database named: give --dsn or set {DSN_VARIABLE}")
    return dsn


def _migrate(dsn: str) -> int:
    applied = migrate(dsn, report=lambda line: print(line, flush=True))
    print(f"{len(applied)} applied" if applied else "nothing to do: the schema is current")
    return 0


def _status(dsn: str) -> int:
    state = status(dsn)
    print(f"schema version {state.version}; works with programs of version {state.compat} or newer")
    for migration in state.applied:
        print(f"  applied  {migration}")
    for script in state.pending:
        print(f"  pending  {script}")
    for problem in state.problems:
        print(f"  problem  {problem}")
    return 1 if state.pending or state.problems else 0


if __name__ == "__main__":
    sys.exit(main())
